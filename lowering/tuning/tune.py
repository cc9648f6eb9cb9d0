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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sepwise.lowering import device as devices
from sepwise.lowering.remote import BoardError
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning import playoff
from sepwise.lowering.tuning.database import (
    Database,
    Evidence,
    Verdict,
    find_conditions,
    find_neighbours,
    read_picks,
)
from sepwise.lowering.tuning.evolution import Evolution
from sepwise.lowering.tuning.metaschedule import spell_record
from sepwise.lowering.tuning.network import build_network, load_network
from sepwise.lowering.tuning.result import KernelResult, Progress, Tuning
from sepwise.lowering.tuning.search import BATCH, Search, Wrong
from sepwise.lowering.tuning.space import MOST_PREDICTED, list_candidates, order
from sepwise.lowering.tuning.structure import find_chains
from sepwise.lowering.tuning.timing import BoardGoneError, BoardTimer, open_timer
from sepwise.lowering.tuning.trial import Tuned, Workbench
from sepwise.lowering.verify import KernelChecker
from sepwise.passes import load_model
from sepwise.passes.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.remote import Connect
    from sepwise.lowering.selection import Records
    from sepwise.lowering.tuning.database import Conditions, Findings
    from sepwise.lowering.tuning.network import Network, Variant
    from sepwise.lowering.tuning.search import Settled
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.structure import Chain
    from sepwise.lowering.tuning.timing import Timed, Timer

__all__ = ["tune"]

PLAYOFF_SHARE = 0.2
"""Share of the time that is kept for the play-off."""

PROFILE_ROUNDS = 5

PREDICTED, EVOLUTIONARY = ORDERS = ("predicted", "evolutionary")
"""How candidates are chosen: in the order of their prediction, or by MetaSchedule's evolutionary search (see `evolution`)."""

MOST_BEHIND = 1.25
"""Time of a chain over that of the default's structure, both with default tiles, beyond which the kernels of it are not tuned."""

MOST_LOSSES = 3
"""How often in a row a board may be lost during what has run before."""

logger = logging.getLogger(__name__)


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
    boards: Sequence[Connect] = (),
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
    with ExitStack() as stack:
        timers, notes = _open_timers(device, threads, boards, stack)
        own.create()
        merged = sum(own.merge(Database(Path(other), device)) for other in others)
        network = load_network(load_model(model, shapes=shapes), timers[0], float16=float16)
        if not network.kernels:
            raise InputError(f"Model '{network.default.program.name}': has no kernel that can be tuned.")
        network.notes += notes
        if merged:
            network.notes.append(f"{merged} records were taken over.")
        tuner = _Tuner(network, own, timers, roots=[Path(database), *map(Path, others)], float16=float16, order=search)
        try:
            tuner.run(trials, None if seconds is None else time.monotonic() + seconds, seconds, on_progress)
        except BoardError as error:
            kept = f"{tuner.records} records of this run are kept in {own.folder}; the same command goes on from there."
            raise BoardError(f"{error} {kept}") from error
        return tuner.report(Path(model).stem, time.monotonic() - started)


def _open_timers(
    device: Device, threads: int, boards: Sequence[Connect], stack: ExitStack
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
        network: Network,
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
        self._elsewhere = [read_picks(each) for each in (database, *find_neighbours(roots, timer.device))]
        self._spaces: dict[str, dict[Pick, Candidate]] = {}
        self._searches: dict[str, Search] = {}
        self._trials = self.records = self._timed = 0
        self._wrong: list[Wrong] = []
        self._history: list[tuple[int, float]] = []
        self._result: playoff.Result | None = None
        self._standings: dict[str, playoff.Standing] = {}
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
        open_chains = {key for key in self._alternatives() if not self._is_chain_settled(key)}
        waiting = {kernel.workload.key for key in open_chains for kernel in self._network.around(key)}
        own = {kernel.workload.key for kernel in self._network.default.kernels}
        open_kernels = [
            kernel
            for kernel in self._network.kernels
            if kernel.workload.key in own | waiting and not self._is_settled(kernel)
        ]
        for kernel in self._network.kernels:
            device = self._timer.device
            space = list_candidates(kernel.workload, device, self._timer.threads)
            self._spaces[kernel.workload.key] = {candidate.pick: candidate for candidate in space}
        if not open_kernels and not open_chains:
            self._network.notes.append("Nothing to do: every kernel has a record that holds here, and nothing is left to try.")
            return
        self._begin(open_kernels, open_chains)
        until = None if deadline is None or seconds is None else deadline - PLAYOFF_SHARE * seconds
        self._search(_Limits(trials, until, time.monotonic()), on_progress)
        if not self._timed and self._trials:
            raise CheckFailed(f"None of {self._trials} candidates could be timed; the first: {self._wrong[0].reason}")
        if not self._timed and not any(len(each.verified) > 1 for each in self._searches.values()):
            if any(each.queue for each in self._searches.values() if each.unverified is None):
                raise InputError("No candidate was timed: no time or no trials were left. Give more with --seconds or --trials.")
            wrong = [f"kernel '{each.kernel.name}': {each.unverified}" for each in self._searches.values() if each.unverified]
            if wrong:
                raise CheckFailed(f"No candidate was timed: the defaults that they would be compared with are wrong, {wrong[0]}")
        self._insist(lambda: self._play(deadline))
        self._insist(lambda: self._play_structures(deadline, open_chains))

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

    def _alternatives(self) -> dict[str, list[Pick]]:
        """The structures beside the default's, by chain."""
        found: dict[str, list[Pick]] = {}
        for variant in self._network.variants:
            for key, structure in variant.structures.items():
                found.setdefault(key, []).append(structure)
        return found

    def _is_chain_settled(self, key: str) -> bool:
        """Whether the database has the last word on a chain's structure."""
        return set(self._alternatives()[key]) <= self._settled.tried.get(key, set())

    def _begin(self, kernels: Sequence[Tuned], chains: set[str]) -> None:
        """Finds out where the network's time goes, and queues candidates."""
        times: list[list[float]] = []

        def profile(variant: Variant) -> None:
            with closing(self._timer.load(variant.program, self._network.inputs)) as timed:
                times.append([sorted(samples)[len(samples) // 2] for samples in timed.time_network(PROFILE_ROUNDS)])

        default = self._network.default
        for variant in self._network.variants:
            if variant is default or chains.intersection(variant.chains):
                self._insist(partial(profile, variant))
            else:
                times.append([])
        self._default_total = sum(times[0])
        shares: dict[str, float] = {}
        for variant, own in zip(self._network.variants, times, strict=True):
            behind = {
                call
                for key, chain in variant.chains.items()
                if own and _sum(own, chain.calls) > MOST_BEHIND * _sum(times[0], default.chains[key].calls)
                for call in chain.calls
            }
            for kernel in variant.kernels:
                if own and not behind.issuperset(kernel.calls):
                    shares[kernel.workload.key] = _sum(own, kernel.calls)
        kernels = [kernel for kernel in kernels if kernel.workload.key in shares]
        for kernel in kernels:
            key = kernel.workload.key
            space = self._spaces[key]
            elsewhere = [pick for picks in self._elsewhere for pick in picks.get(key, ())]
            known = self._settled.records.get(key, {})
            tried = self._settled.tried.get(key, set()) | set(known)
            candidates, evolves = list(space.values()), self._order == EVOLUTIONARY
            ordered = order(candidates, kernel.default, elsewhere, most_predicted=math.inf if evolves else MOST_PREDICTED)
            queue = [each for each in ordered if each.pick not in tried]
            search = Search(kernel, space[kernel.default], queue, shares[key], self._timer.exact)
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

    def _load(self, records: Records) -> playoff.Team:
        """Builds and loads the network with candidates."""
        program, imported = build_network(self._network.model, self._timer, records, float16=self._float16)
        chains = {key: chain.calls for key, chain in find_chains(program, imported).items()}
        return playoff.Team(self._timer.load(program, self._network.inputs), chains)

    def _load_variant(self, variant: Variant, records: Records) -> Timed:
        """Builds and loads the network with the structures of a variant, and candidates."""
        return self._load({**variant.structures, **records}).timed

    def _tuned(self) -> dict[str, Pick]:
        """What was found to be faster than the default until now, workloads and chains."""
        own = {kernel.workload.key for kernel in self._network.kernels} | self._network.default.chains.keys()
        return {key: verdict.pick for key, verdict in self._settled.verdicts.items() if verdict.tuned and key in own}

    def _play(self, deadline: float | None) -> None:
        """Lets the best of each search play against the default, in the networks that have it, and writes the verdicts."""
        self._result = None
        for variant in self._network.variants:
            own = {kernel.workload.key: kernel.calls for kernel in variant.kernels}
            searches = {key: each for key, each in self._searches.items() if each.verified and key in own}
            if not searches and variant is not self._network.default:
                continue
            leaders = {key: each.leaders(playoff.LEADERS) for key, each in searches.items()}
            result = playoff.play(
                partial(self._load_variant, variant),
                {key: picks for key, picks in leaders.items() if picks},
                {key: own[key] for key in searches},
                exact=self._timer.exact,
                kept={key: pick for key, pick in self._tuned().items() if key in own.keys() - searches.keys()},
                out_of_time=lambda: deadline is not None and time.monotonic() >= deadline,
            )
            self._result = self._result or result  # of the default, which is first
            for key, standing in result.standings.items():
                search = searches[key]
                self._judge(key, standing, standing.pick or search.default.pick, finished=search.done)

    def _judge(self, key: str, standing: playoff.Standing, pick: Pick, *, finished: bool) -> None:
        """Writes a verdict."""
        verdict = Verdict(
            pick=pick,
            record=self._settled.records[key][pick].record,
            tuned=standing.pick is not None,
            median=standing.median,
            default_median=standing.default_median,
            interval=standing.interval,
            rounds=standing.rounds,
            finished=finished,
        )
        self._database.add_verdict(self._conditions, key, verdict)
        self._settled.verdicts[key] = verdict

    def _play_structures(self, deadline: float | None, chains: set[str]) -> None:
        """Lets other structures of chains play against the default's, all with the chosen kernels, and writes the verdicts."""
        assert self._result is not None, "tiles have played"
        known = self._network.default.chains.keys()
        tuned = self._tuned()
        tiles = {key: pick for key, pick in tuned.items() if key not in known}
        kept = {key: pick for key, pick in tuned.items() if key in known and key not in chains}
        sets = ({key: pick for key, pick in each.structures.items() if key in chains} for each in self._network.variants)
        alternatives = [each for each in sets if each]
        if not alternatives and not kept:
            return
        self._result = playoff.play_structures(
            self._load,
            self._result,
            tiles,
            alternatives,
            self._verify_structure,
            exact=self._timer.exact,
            kept=kept,
            out_of_time=lambda: deadline is not None and time.monotonic() >= deadline,
        )
        for key, standing in self._result.standings.items():
            around = self._network.around(key)
            finished = all(self._is_settled(kernel) or kernel.workload.key not in self._searches for kernel in around)
            default = self._network.default.chains[key].structure
            if standing.pick is not None or (key in self._settled.verdicts and default in self._settled.records.get(key, {})):
                self._judge(key, standing, standing.pick or default, finished=finished)
            self._standings[key] = standing
            if finished:
                for structure in self._alternatives()[key]:
                    self._database.add_tried(self._conditions, key, structure, standing.interval.ratio, None)
                    self._settled.tried.setdefault(key, set()).add(structure)

    def _verify_structure(self, team: playoff.Team, key: str, standing: playoff.Standing) -> bool:
        """Verifies all kernels of a chain as they are in a network; a record has what was found."""
        chain, timed = self._network.default.chains[key], team.timed
        pick = standing.pick or chain.structure
        checker = KernelChecker(timed.runner.program, timed.runner, self._network.graph, self._network.inputs)
        checks = [check for call in team.chains[key] for check in checker.check(call)]
        wrong = next((check for check in checks if check.status != "passed"), None)
        if wrong is not None or not checks:
            reason = f"wrong: {(wrong.reason or wrong.status) if wrong is not None else 'nothing of it could be checked'}"
            self._wrong.append(Wrong(chain.name, pick, reason))
            logger.warning("Chain '%s', candidate '%s': %s", chain.name, pick, reason)
            return False
        worst = max(check.worst_ratio or 0.0 for check in checks)
        place, times = self._timer.place, (standing.median, standing.default_median)
        evidence = Evidence(pick, -1, *times, standing.interval, standing.rounds, worst, place)
        lines = spell_record(chain.workload, pick, standing.median, self._timer.device, self._timer.method, place)
        self._settled.records.setdefault(key, {})[pick] = self._database.add_record(self._conditions, key, lines, evidence)
        self.records += 1
        return True

    def report(self, name: str, seconds: float) -> Tuning:
        """Gives what was found."""
        kernels = [self._kernel_result(kernel) for kernel in self._network.default.kernels]
        default = self._network.default.chains
        chains = [self._chain_result(key, default[key]) for key in self._alternatives()]
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
            structures=tuple(each for each in chains if each is not None),
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

    def _chain_result(self, key: str, chain: Chain) -> KernelResult | None:
        """What was found for a chain, None where nothing was."""
        found = self._standings.get(key) or self._settled.verdicts.get(key)
        if found is None:
            return None
        verdict = self._settled.verdicts.get(key)
        tuned = verdict is not None and verdict.tuned
        return KernelResult(
            name=chain.name,
            calls=chain.count,
            workload=key,
            default=str(chain.structure),
            chosen=str(verdict.pick if verdict is not None and tuned else chain.structure),
            tuned=tuned,
            default_time=found.default_median,
            tuned_time=found.median,
            low=found.interval.low,
            high=found.interval.high,
            space=1 + len(self._alternatives()[key]),
            tried=len(self._settled.tried.get(key, ())),
            finished=self._is_chain_settled(key),
        )


def _sum(times: Sequence[float], calls: Iterable[int]) -> float:
    """Time of some calls."""
    return sum(times[call] for call in calls)
