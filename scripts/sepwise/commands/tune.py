"""`sepwise tune`."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepwise.console import number, print_json, print_table, reserved_stdout, say
from sepwise.options import AsJson, Float16, Key, Model, Rpc, Shape, Target, Threads, Timeout, Tracker, read_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sepwise.lowering.tuning.result import KernelResult, Progress, Tuning

__all__ = ["tune"]


SECONDS = (
    "Time for all of it: loading, compiling, the search and the play-off. What was begun is ended, which may take some seconds "
    "more. 0 with --from: take databases over, and tune nothing."
)

LINE_SECONDS = 10.0
"""From one line of progress to the next, where standard error is no terminal."""


class Search(StrEnum):
    """How candidates are chosen: in the order of their prediction, or by MetaSchedule's evolutionary search."""

    PREDICTED = "predicted"
    EVOLUTIONARY = "evolutionary"


def tune(
    context: typer.Context,
    model: Model,
    database: Annotated[
        Path, typer.Option("--database", metavar="DB", help="Folder of the records; made if it is not there.", show_default=False)
    ],
    target: Target = "host",
    search: Annotated[Search, typer.Option("--search", help="How candidates are chosen.")] = Search.PREDICTED,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Candidates at most.", show_default=False)] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0, help=SECONDS, show_default=False)] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="OTHER", help="A database to take over; again for each.", show_default=False),
    ] = None,
    shape: Shape = None,
    threads: Threads = 1,
    float16: Float16 = False,
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: Timeout = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="REPORT.html", help="Write a page with plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure other tiles and strategies than the default, and keep what is right and faster in a database."""
    from sepwise import api
    from sepwise.report import require_places, write_tuning
    from sepwise.report.provenance import spell_command

    require_places(html)
    shapes = read_shapes(shape)
    with _showing(f"tuning {model} for {target}") as show:
        tuning = api.tune(
            model,
            database,
            target=target,
            shapes=shapes,
            threads=threads,
            float16=float16,
            search=search.value,
            trials=trials,
            seconds=seconds,
            others=tuple(others or ()),
            rpc=rpc,
            tracker=tracker,
            key=key,
            timeout=timeout,
            on_progress=show,
        )
    if html is not None:
        write_tuning(tuning, html, command=spell_command(context))
    if as_json:
        print_json(tuning.to_json())
        return
    _print(tuning)


@contextmanager
def _showing(message: str) -> Iterator[Callable[[Progress], None]]:
    """Shows on standard error how far it has come, a line now and then where that is no terminal; reserves standard output."""
    if not sys.stderr.isatty():
        with reserved_stdout(), _saying(message) as show:
            yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with reserved_stdout(), Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(message, total=None, told="")

        def show(progress: Progress) -> None:
            total = None if progress.seconds_left is None else progress.seconds + progress.seconds_left
            bar.update(task, total=total, completed=progress.seconds, told=_spell(progress, 0.0))

        yield show


@contextmanager
def _saying(message: str) -> Iterator[Callable[[Progress], None]]:
    """Says every `LINE_SECONDS` how far it has come, by what was told last and the time since."""
    ended = threading.Event()
    last: list[tuple[Progress, float]] = []

    def repeat() -> None:
        while not ended.wait(LINE_SECONDS):
            if last:
                progress, told = last[-1]
                say(f"{message}: {_spell(progress, time.monotonic() - told)}")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield lambda progress: last.append((progress, time.monotonic()))
    finally:
        ended.set()
        thread.join()


def _spell(progress: Progress, since: float) -> str:
    """Spells how far it has come, some seconds after that was told."""
    parts = [progress.doing, _clock(progress.seconds + since)]
    if progress.trials or progress.left:
        parts.append(f"{progress.trials} tried")
    if progress.default is not None and progress.current is not None:
        share = number(progress.current / progress.default)
        parts.append(f"about {number(progress.current)} {progress.unit}, {share} of {number(progress.default)}")
    if progress.seconds_left is not None:
        parts.append(f"{_clock(max(progress.seconds_left - since, 0.0))} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    """Minutes and seconds: `1:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _print(tuning: Tuning) -> None:
    """Prints the tables of kernels and chains, and what was found for the network."""
    where = f" on {tuning.machine}" if tuning.machine else ""
    title = f"{tuning.model} on {tuning.target}, {tuning.threads} thread(s), {tuning.method} ({tuning.runner}{where})"
    if tuning.kernels:
        _print_results(title, "kernel", tuning.kernels, tuning.unit, str)
    if tuning.structures:
        chains = "Chains of convolutions, by the stages that each of their kernels computes"
        _print_results(chains, "chain, by its first kernel", tuning.structures, tuning.unit, _spell_structure)
    for each in tuning.wrong:
        print(f"refused: {each.kernel}, {each.pick}: {each.reason}")
    for note in tuning.notes:
        print(note)
    if tuning.default_time is not None and tuning.tuned_time is not None and tuning.ratio is not None:
        times = map(number, (tuning.default_time, tuning.tuned_time))
        print(f"{' -> '.join(times)} {tuning.unit} for all kernels, {number(tuning.ratio)} of the default")
    print(f"{tuning.trials} candidates tried, {tuning.records} recorded in {tuning.database}, {tuning.seconds:.0f} s")


def _print_results(
    title: str, head: str, results: Sequence[KernelResult], unit: str, spell: Callable[[str], str]
) -> None:
    """Prints one table."""
    rows = [
        [
            each.name,
            *map(number, (each.calls, each.default_time, each.tuned_time)),
            number(each.ratio) if each.tuned else "-",
            f"{each.tried} of {each.space - 1}",
            spell(each.chosen) if each.tuned else f"default{'' if spell is str else f' ({spell(each.default)})'}",
        ]
        for each in results
    ]
    print_table(title, [head, "calls", f"default {unit}", f"tuned {unit}", "ratio", "tried", "chosen"], rows)


def _spell_structure(structure: str) -> str:
    """Spells a structure for a table: `structure kernel0=1 kernel1=2` is `1 + 2`."""
    return " + ".join(word.partition("=")[2] for word in structure.split()[1:])
