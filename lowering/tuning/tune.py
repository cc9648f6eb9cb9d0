"""Tunes the kernels of a network for a device, and keeps what it finds in a database.

Where there are several boards, each searches for another kernel; profile and play-off are one board's. A board that is lost costs
the candidate that it was running. One that stays away costs nothing more while there are others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sepwise.lowering import device as devices
from sepwise.lowering.build import build_objects, build_program
from sepwise.lowering.remote import BoardError
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning import playoff
from sepwise.lowering.tuning.database import (
    Database,
    Verdict,
    find_conditions,
    find_neighbours,
    read_picks,
)
from sepwise.lowering.tuning.evolution import Evolution
from sepwise.lowering.tuning.metaschedule import spell_record
from sepwise.lowering.tuning.search import BATCH, Search, Wrong
from sepwise.lowering.tuning.space import MOST_PREDICTED, list_candidates, order
from sepwise.lowering.tuning.timing import BoardGoneError, BoardTimer, open_timer
from sepwise.lowering.tuning.trial import Tuned, Workbench
from sepwise.lowering.verify import KernelChecker, before_grouping
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import fuse, load_model
from sepwise.passes.equivalence import extract, sample_inputs
from sepwise.passes.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from sepwise.lowering.codegen import CompiledKernel
    from sepwise.lowering.device import Device
    from sepwise.lowering.importer import ImportedGraph
    from sepwise.lowering.program import Program
    from sepwise.lowering.remote import Board
    from sepwise.lowering.selection import Records
    from sepwise.lowering.tuning.database import Conditions, Findings
    from sepwise.lowering.tuning.search import Settled
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.timing import Timed, Timer

__all__ = ["KernelResult", "Progress", "Tuning", "tune"]

PLAYOFF_SHARE = 0.2
"""Share of the time that is kept for the play-off."""

PROFILE_ROUNDS = 5

PREDICTED, EVOLUTIONARY = ORDERS = ("predicted", "evolutionary")
"""How candidates are chosen: in the order of their prediction, or by MetaSchedule's evolutionary search (see `evolution`)."""

MOST_LOSSES = 3
"""How often in a row a board may be lost during what has run before."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a tuning has come.

    Attributes:
        kernel: What was tried last.
        trials: Candidates that were timed or refused until then.
        left: Candidates that are tried if none of them brings anything.
        seconds: Since the start.
        seconds_left: Until the end, estimated from the pace or from the time that was given.
        default: Time of the network with the default kernels, in the timer's unit.
        current: The same with the best ones, as far as they were timed by themselves.
        unit: `us` or `cycles`.
    """

    kernel: str
    trials: int
    left: int
    seconds: float
    seconds_left: float
    default: float
    current: float
    unit: str


@dataclass(frozen=True, slots=True)
class KernelResult:
    """What tuning has found for a workload.

    Attributes:
        name: Its first kernel.
        calls: Kernels of the network that compute it.
        workload: Its key.
        default: What the model picks.
        chosen: What computes it now.
        tuned: Whether that is another one.
        default_time: Time of all its calls in the network with the default, in microseconds or estimated cycles.
        tuned_time: The same with what was chosen.
        low: The ratio of both is surely no less.
        high: It is surely no more.
        space: Candidates that the strategies declare.
        tried: Those that were timed or refused, now or before.
        finished: Whether nothing is left to try.
    """

    name: str
    calls: int
    workload: str
    default: str
    chosen: str
    tuned: bool
    default_time: float
    tuned_time: float
    low: float
    high: float
    space: int
    tried: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `sepwise tune` reports.

    Attributes:
        model: The network's name.
        target: The device.
        method: `measured` or `estimated`.
        search: How candidates were chosen: `predicted` or `evolutionary`.
        runner: `native`, `remote` or `emulated`.
        unit: `us` or `cycles`.
        threads: Workers.
        database: The folder of the device.
        trials: Candidates that were timed or refused.
        records: Records that were added.
        seconds: Time that it took.
        default_time: Time of the network's kernels with the default, None where nothing was done.
        tuned_time: The same as chosen.
        low: The ratio of both is surely no less, None where nothing was done.
        high: It is surely no more.
        kernels: By workload, what takes longest first.
        wrong: Candidates that were refused, and why.
        history: After each batch the trials until then and the estimated time of the network.
        notes: What is worth saying.
    """

    model: str
    target: str
    method: str
    search: str
    runner: str
    unit: str
    threads: int
    database: str
    trials: int
    records: int
    seconds: float
    default_time: float | None
    tuned_time: float | None
    low: float | None
    high: float | None
    kernels: tuple[KernelResult, ...]
    wrong: tuple[Wrong, ...]
    history: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that `sepwise tune --json` prints; times bear their unit in the name."""
        unit = self.unit
        fields = asdict(self)
        for each in (fields, *fields["kernels"]):
            each[f"default_{unit}"], each[f"tuned_{unit}"] = each.pop("default_time"), each.pop("tuned_time")
        fields["wrong"] = [{"kernel": each.kernel, "candidate": str(each.pick), "reason": each.reason} for each in self.wrong]
        return fields


@dataclass(slots=True)
class _Network:
    """A network with the default kernels, and those that are tuned."""

    model: ir.Model
    program: Program
    inputs: dict[str, np.ndarray]
    kernels: list[Tuned]
    notes: list[str] = field(default_factory=list)


def tune(
    model: str | Path,
    database: str | Path,
    *,
    target: str = "host",
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    float16: bool = False,
    search: str = PREDICTED,
    trials: int | None = None,
    seconds: float | None = None,
    others: Sequence[str | Path] = (),
    boards: Sequence[Callable[[], Board]] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Tuning:
    """Tunes a network's kernels.

    Args:
        model: An ONNX file.
        database: Folder of the devices' databases; made where it is not there.
        target: Name of a device.
        shapes: Shapes of inputs that the file leaves open, by name.
        threads: Workers.
        float16: Whether what is float32 is computed in float16, but for what needs more.
        search: How candidates are chosen, one of `ORDERS`.
        trials: Candidates at most; until nothing is left to try where None.
        seconds: Time at most, but for what it takes to load the network and to end what was begun; no limit where None.
        others: Further databases: records of the same device are taken over, those of the nearest other device are tried first.
        boards: What connects to each board that candidates are timed on (see `remote.list_boards`); none for here.
        on_progress: Told after each batch.

    Returns:
        What was found.

    Raises:
        InputError: The model, the target or a database cannot be used, or no time was left for a single candidate.
        CheckFailed: Candidates were tried, and none could be timed.
        BoardError: The last board was lost, and could not be reached again; what was recorded until then is kept.
    """
    started = time.monotonic()
    device = devices.get(target)
    if search not in ORDERS:
        raise InputError(f"Search '{search}': is none of {', '.join(ORDERS)}.")
    for other in others:
        if not Path(other).is_dir():
            raise InputError(f"{other}: is no folder, so there is no database in it.")
    own = Database(Path(database), device)
    own.create()
    merged = sum(own.merge(Database(Path(other), device)) for other in others)
    with ExitStack() as stack:
        timers, notes = _open_timers(device, threads, boards, stack)
        network = _load(load_model(model, shapes=shapes), timers[0], float16=float16)
        if not network.kernels:
            raise InputError(f"Model '{network.program.name}': has no kernel that can be tuned.")
        network.notes += notes
        if merged:
            network.notes.append(f"{merged} records were taken over.")
        tuner = _Tuner(network, own, timers, roots=[Path(database), *map(Path, others)], float16=float16, order=search)
        try:
            tuner.run(trials, None if seconds is None else started + seconds, seconds, on_progress)
        except BoardError as error:
            kept = f"{tuner.records} records of this run are kept in {own.folder}; the same command goes on from there."
            raise BoardError(f"{error} {kept}") from error
        return tuner.report(Path(model).stem, time.monotonic() - started)


def _open_timers(
    device: Device, threads: int, boards: Sequence[Callable[[], Board]], stack: ExitStack
) -> tuple[list[Timer], list[str]]:
    """Opens what times candidates: as many boards as can be had, one at least, or this machine. Says what is missing."""
    if not boards:
        return [open_timer(device, threads)], []
    timers: list[Timer] = []
    for connect in boards:
        try:
            timer = BoardTimer(device, threads, connect)
        except (InputError, BoardError) as error:
            if not timers:
                raise
            return timers, [f"{len(timers)} of {len(boards)} boards are used. The next one: {error}"]
        timers.append(stack.enter_context(closing(timer)))
    return timers, []


def _load(model: ir.Model, timer: Timer, *, float16: bool) -> _Network:
    """Builds the network as it is compiled without a database, and finds its kernels."""
    device, threads = timer.device, timer.threads
    built: list[ImportedGraph] = []

    def emit(imported: ImportedGraph, compiled: Mapping[str, CompiledKernel], device: Device) -> bytes:
        built.append(imported)
        return build_objects(imported, compiled, device)

    program, _ = build_program(model, device, threads=threads, float16=float16, emit=emit)
    imported = built[-1]
    inputs = sample_inputs(model, 0)
    graph = before_grouping(fuse(model, float16=float16, keep_stages=True).stages)
    network = _Network(model, program, inputs, [])
    by_workload: dict[str, list[int]] = {}
    for index, call in enumerate(program.calls):
        by_workload.setdefault(call.workload, []).append(index)
    with closing(timer.load(program, inputs)) as timed:
        checker = KernelChecker(program, timed.runner, graph, inputs)
    own = {kernel.name: kernel.workload for kernel in imported.graph.kernels}
    for calls in by_workload.values():
        call = program.calls[calls[0]]
        workload = own[call.name]
        if not isinstance(workload, ConvWorkload | LinearWorkload):
            continue
        sources, targets = checker.cover(calls[0])
        if len(targets) != 1 or len(sources) != len(set(call.inputs)):
            network.notes.append(f"Kernel '{call.name}' keeps its default: it computes part of a node, which cannot be checked.")
            continue
        declared = list_candidates(workload, device, threads)
        default = next(each for each in declared if (each.strategy.name, str(each.tile)) == (call.strategy, call.tile))
        network.kernels.append(
            Tuned(
                name=call.name,
                workload=workload,
                calls=tuple(calls),
                default=default.pick,
                weights=imported.weights[call.name],
                inputs=tuple(map(program.find_value, call.inputs)),
                output=program.find_value(call.outputs[0]),
                part=ir.from_proto(extract(checker.model, sources, targets)),
                feed={source: checker.tensors[source] for source in sources},
            )
        )
    return network


@dataclass(frozen=True, slots=True)
class _Limits:
    """When a search ends."""

    trials: int | None
    until: float | None
    begun: float


class _Tuner:
    """One tuning: the searches, the play-off, and what goes to the database."""

    def __init__(
        self,
        network: _Network,
        database: Database,
        timers: Sequence[Timer],
        *,
        roots: Sequence[Path],
        float16: bool,
        order: str,
    ) -> None:
        self._network = network
        self._database = database
        self._timers = list(timers)
        self._timer = timer = timers[0]
        self._float16 = float16
        self._order = order
        self._conditions: Conditions = find_conditions(timer.device, timer.threads, timer.method)
        self._lock = threading.Lock()  # of all below, which several boards share
        self._open: dict[str, int] = {}  # by workload, candidates that a board has yet to settle
        self._failures: list[Exception] = []
        self._ending = False
        self._elsewhere = [read_picks(neighbour) for neighbour in find_neighbours(roots, timer.device)]
        self._spaces: dict[str, dict[Pick, Candidate]] = {}
        self._searches: dict[str, Search] = {}
        self._trials = self.records = self._timed = 0
        self._wrong: list[Wrong] = []
        self._history: list[tuple[int, float]] = []
        self._result: playoff.Result | None = None
        self._default_total = 0.0
        self._settled: Findings = database.read(self._conditions)

    def run(
        self,
        trials: int | None,
        deadline: float | None,
        seconds: float | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Searches until there is nothing to try or a limit is reached, and plays."""
        open_kernels = [kernel for kernel in self._network.kernels if not self._is_settled(kernel)]
        for kernel in self._network.kernels:
            device = self._timer.device
            space = list_candidates(kernel.workload, device, self._timer.threads)
            self._spaces[kernel.workload.key] = {candidate.pick: candidate for candidate in space}
        if not open_kernels:
            self._network.notes.append("Nothing to do: every kernel has a record that holds here, and nothing is left to try.")
            return
        self._begin(open_kernels)
        until = None if deadline is None or seconds is None else deadline - PLAYOFF_SHARE * seconds
        self._search(_Limits(trials, until, time.monotonic()), on_progress)
        if not self._timed and self._trials:
            raise CheckFailed(f"None of {self._trials} candidates could be timed; the first: {self._wrong[0].reason}")
        if not self._timed and not any(len(each.verified) > 1 for each in self._searches.values()):
            if any(each.queue for each in self._searches.values() if each.unverified is None):
                raise InputError("No candidate was timed: no time or no trials were left. Give more with --seconds or --trials.")
        self._insist(lambda: self._play(deadline))

    def _insist(self, ask: Callable[[], None]) -> None:
        """Asks something of a board, again where that is lost meanwhile."""
        for left in reversed(range(MOST_LOSSES)):
            try:
                return ask()
            except BoardGoneError:
                raise
            except BoardError as error:
                if not left:
                    raise
                self._tell(f"Tried again: {error}")

    def _tell(self, what: str) -> None:
        """Notes something, and says so at once."""
        logger.warning("%s", what)
        self._network.notes.append(what)

    def _is_settled(self, kernel: Tuned) -> bool:
        """Whether the database has the last word on a workload."""
        verdict = self._settled.verdicts.get(kernel.workload.key)
        return verdict is not None and verdict.finished

    def _begin(self, kernels: Sequence[Tuned]) -> None:
        """Finds out where the network's time goes, and queues candidates."""
        times: list[float] = []

        def profile() -> None:
            with closing(self._timer.load(self._network.program, self._network.inputs)) as timed:
                times[:] = [sorted(samples)[len(samples) // 2] for samples in timed.time_network(PROFILE_ROUNDS)]

        self._insist(profile)
        self._default_total = sum(times)
        for kernel in kernels:
            key = kernel.workload.key
            space = self._spaces[key]
            elsewhere = [pick for picks in self._elsewhere for pick in picks.get(key, ())]
            known = self._settled.records.get(key, {})
            tried = self._settled.tried.get(key, set()) | set(known)
            candidates, evolves = list(space.values()), self._order == EVOLUTIONARY
            ordered = order(candidates, kernel.default, elsewhere, most_predicted=math.inf if evolves else MOST_PREDICTED)
            queue = [each for each in ordered if each.pick not in tried]
            search = Search(kernel, space[kernel.default], queue, sum(times[call] for call in kernel.calls))
            search.verified = {pick: evidence.interval for pick, evidence in known.items() if pick in space}
            if evolves:
                ratios = {pick: interval.ratio for pick, interval in search.verified.items()}
                evolution = Evolution(kernel.workload, candidates, self._timer.device, batch=BATCH, first=elsewhere, known=ratios)
                search.proposer = evolution
            self._searches[key] = search
        self._history.append((0, self._default_total))

    def _search(self, limits: _Limits, on_progress: Callable[[Progress], None]) -> None:
        """Tries candidates until there is nothing to try or a limit is reached, on all boards at once."""
        if len(self._timers) == 1:
            self._work(self._timer, limits, on_progress)
            return
        boards = working = len(self._timers)
        with ThreadPoolExecutor(boards) as pool:
            try:
                while True:
                    wait([pool.submit(self._work_beside, timer, limits, on_progress) for timer in [*self._timers]])
                    if self._ending or len(self._timers) == working or len(self._failures) == boards:
                        break
                    working = len(self._timers)  # others may have ended before, as what a lost one had claimed was no longer free
            finally:  # whoever interrupts it waits for the batches that were begun
                self._ending = True
        gone = [error for error in self._failures if isinstance(error, BoardError)]
        for error in self._failures:
            if error not in gone or len(gone) == boards:
                raise error
        self._timer = self._timers[0]

    def _work_beside(self, timer: Timer, limits: _Limits, on_progress: Callable[[Progress], None]) -> None:
        """Works on one of several boards; one that is gone is left out, anything else ends the work on all."""
        try:
            self._work(timer, limits, on_progress)
        except Exception as error:
            with self._lock:
                self._failures.append(error)
                if not isinstance(error, BoardError):
                    self._ending = True
                elif len(self._timers) > 1:
                    self._timers.remove(timer)
                    self._tell(f"The others go on: {error}")

    def _work(self, timer: Timer, limits: _Limits, on_progress: Callable[[Progress], None]) -> None:
        """Tries batch after batch of the most promising kernels."""
        bench, losses = Workbench(timer), 0
        while (claimed := self._claim(limits)) is not None:
            search, most = claimed
            try:
                for settled in search.step(bench, self._spaces[search.kernel.workload.key], most):
                    losses = 0
                    with self._lock:
                        self._write_down(search, settled)
            except BoardGoneError:
                raise
            except BoardError as error:
                losses += 1
                if losses == MOST_LOSSES:
                    raise
                with self._lock:
                    self._tell(f"Tried again: {error}")
            finally:
                with self._lock:
                    self._release(search)
            with self._lock:
                on_progress(self._progress(search.kernel.name, limits))

    def _claim(self, limits: _Limits) -> tuple[Search, int] | None:
        """Gives the most promising kernel that no other board works on, and how many candidates may be tried; None at the end."""
        with self._lock:
            over = limits.until is not None and time.monotonic() >= limits.until
            if over or self._ending:
                return None
            most = BATCH if limits.trials is None else min(BATCH, limits.trials - self._trials - sum(self._open.values()))
            free = (each for key, each in self._searches.items() if not each.done and key not in self._open)
            search = max(free, key=lambda each: each.promise, default=None)
            if search is None or most <= 0:
                return None
            self._open[search.kernel.workload.key] = min(most, len(search.queue))
            return search, most

    def _write_down(self, search: Search, settled: Settled) -> None:
        """Writes down what is known of a candidate: its record first, as only that it was tried must not stand alone."""
        key, pick = search.kernel.workload.key, settled.pick
        if settled.evidence is not None:
            evidence, device = settled.evidence, self._timer.device
            lines = spell_record(search.kernel.workload, pick, evidence.median, device, self._timer.method, evidence.place)
            self._settled.records.setdefault(key, {})[pick] = self._database.add_record(self._conditions, key, lines, evidence)
            self.records += 1
        if pick == search.default.pick:
            return
        self._database.add_tried(self._conditions, key, pick, settled.ratio, settled.refused)
        self._settled.tried.setdefault(key, set()).add(pick)
        self._trials += 1
        self._timed += settled.ratio is not None
        self._open[key] -= 1
        if settled.refused is not None:
            self._wrong.append(Wrong(search.kernel.name, pick, settled.refused))
            logger.warning("Kernel '%s', candidate '%s': %s", search.kernel.name, pick, settled.refused)

    def _release(self, search: Search) -> None:
        """Ends the work on a kernel for now."""
        key = search.kernel.workload.key
        del self._open[key]
        if search.unverified is not None:
            self._network.notes.append(f"Kernel '{search.kernel.name}' keeps its default: {search.unverified}")
        self._history.append((self._trials, self._current()))
        found = self._database.read(self._conditions).verdicts.get(key)
        if found is not None and found.finished:  # another tuner was faster
            self._settled.verdicts[key] = found
            del self._searches[key]

    def _current(self) -> float:
        """The time of the network with the best until now."""
        return self._default_total - sum(each.share * (1 - each.ratio) for each in self._searches.values())

    def _progress(self, name: str, limits: _Limits) -> Progress:
        """How far it has come."""
        now = time.monotonic()
        seconds = now - limits.begun
        left = sum(each.left for each in self._searches.values() if not each.done)
        if limits.trials is not None:
            left = min(left, limits.trials - self._trials)
        seconds_left = left * seconds / max(self._trials, 1)
        if limits.until is not None:
            seconds_left = min(seconds_left, max(limits.until - now, 0.0))
        return Progress(name, self._trials, left, seconds, seconds_left, self._default_total, self._current(), self._timer.unit)

    def _load(self, records: Records) -> Timed:
        """Builds and loads the network with candidates."""
        device, threads = self._timer.device, self._timer.threads
        program, _ = build_program(self._network.model, device, threads=threads, float16=self._float16, records=records)
        return self._timer.load(program, self._network.inputs)

    def _play(self, deadline: float | None) -> None:
        """Lets the best of each search play against the default, and writes the verdicts."""
        searches = {key: each for key, each in self._searches.items() if each.verified}
        leaders = {key: each.leaders(playoff.LEADERS) for key, each in searches.items()}
        own = {kernel.workload.key for kernel in self._network.kernels}
        settled = {key: each.pick for key, each in self._settled.verdicts.items() if each.tuned and key in own - set(searches)}
        self._result = playoff.play(
            self._load,
            {key: picks for key, picks in leaders.items() if picks},
            {key: each.kernel.calls for key, each in searches.items()},
            exact=self._timer.exact,
            kept=settled,
            out_of_time=lambda: deadline is not None and time.monotonic() >= deadline,
        )
        for key, standing in self._result.standings.items():
            search = searches[key]
            pick = standing.pick or search.default.pick
            verdict = Verdict(
                pick=pick,
                record=self._settled.records[key][pick].record,
                tuned=standing.pick is not None,
                median=standing.median,
                default_median=standing.default_median,
                interval=standing.interval,
                rounds=standing.rounds,
                finished=search.done,
            )
            self._database.add_verdict(self._conditions, key, verdict)
            self._settled.verdicts[key] = verdict

    def report(self, name: str, seconds: float) -> Tuning:
        """Gives what was found."""
        kernels = [self._kernel_result(kernel) for kernel in self._network.kernels]
        result = self._result
        return Tuning(
            model=name,
            target=self._timer.device.name,
            method=self._timer.method,
            search=self._order,
            runner=self._timer.place,
            unit=self._timer.unit,
            threads=self._timer.threads,
            database=str(self._database.folder),
            trials=self._trials,
            records=self.records,
            seconds=seconds,
            default_time=None if result is None else result.default_median,
            tuned_time=None if result is None else result.median,
            low=None if result is None else result.interval.low,
            high=None if result is None else result.interval.high,
            kernels=tuple(sorted((each for each in kernels if each is not None), key=lambda each: -each.default_time)),
            wrong=tuple(self._wrong),
            history=tuple(self._history),
            notes=tuple(self._network.notes),
        )

    def _kernel_result(self, kernel: Tuned) -> KernelResult | None:
        """What was found for a workload, None where nothing was."""
        key = kernel.workload.key
        verdict = self._settled.verdicts.get(key)
        if verdict is None:
            return None
        return KernelResult(
            name=kernel.name,
            calls=len(kernel.calls),
            workload=key,
            default=str(kernel.default),
            chosen=str(verdict.pick),
            tuned=verdict.tuned,
            default_time=verdict.default_median,
            tuned_time=verdict.median,
            low=verdict.interval.low,
            high=verdict.interval.high,
            space=len(self._spaces[key]),
            tried=len(self._settled.tried.get(key, ())),
            finished=verdict.finished,
        )
