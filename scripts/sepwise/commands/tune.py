"""`sepwise tune`."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepwise.console import number, print_json, print_table, reserved_stdout
from sepwise.options import AsJson, Float16, Key, Model, Rpc, Shape, Target, Threads, Timeout, Tracker, read_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sepwise.lowering.tuning.result import Progress, Tuning

__all__ = ["tune"]


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
    seconds: Annotated[float | None, typer.Option("--seconds", min=0, help="Time at most, about.", show_default=False)] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="OTHER", help="A database to take records from; again for each.", show_default=False),
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
    """Shows on standard error how far it has come, and reserves standard output."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with reserved_stdout(), Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(message, total=None, told="")

        def show(progress: Progress) -> None:
            minutes, seconds = divmod(round(progress.seconds_left), 60)
            share = f"{progress.current / progress.default:.3f} of {number(progress.default)} {progress.unit}"
            told = f"{progress.trials} tried, {share}, {minutes}:{seconds:02} left"
            total = progress.seconds + progress.seconds_left
            bar.update(task, total=total, completed=progress.seconds, told=told)

        yield show


def _print(tuning: Tuning) -> None:
    """Prints the table of kernels and what was found for the network."""
    unit = tuning.unit
    rows = [
        [
            kernel.name,
            *map(number, (kernel.calls, kernel.default_time, kernel.tuned_time)),
            number(kernel.tuned_time / kernel.default_time) if kernel.tuned else "-",
            f"{kernel.tried} of {kernel.space}",
            kernel.chosen if kernel.tuned else "default",
        ]
        for kernel in (*tuning.kernels, *tuning.structures)
    ]
    title = f"{tuning.model} on {tuning.target}, {tuning.threads} thread(s), {tuning.method} ({tuning.runner})"
    print_table(title, ["kernel", "calls", f"default {unit}", f"tuned {unit}", "ratio", "tried", "chosen"], rows)
    for each in tuning.wrong:
        print(f"refused: {each.kernel}, {each.pick}: {each.reason}")
    for note in tuning.notes:
        print(note)
    if tuning.default_time is not None and tuning.tuned_time is not None:
        ratio = number(tuning.tuned_time / tuning.default_time)
        print(f"{number(tuning.default_time)} -> {number(tuning.tuned_time)} {unit} for all kernels, {ratio} of the default")
    print(f"{tuning.trials} candidates tried, {tuning.records} recorded in {tuning.database}, {tuning.seconds:.0f} s")
