"""Tunes the kernels of a network for a device, and keeps what it finds in a database.

Where there are several boards, each searches for another kernel; profile and play-off are one board's. A board that is lost costs
the candidate that it was running. One that stays away costs nothing more while there are others.
"""

from __future__ import annotations

import logging
import math
import statistics
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
from sepwise.lowering.roofline import limit_of
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning import playoff
from sepwise.lowering.tuning.budget import MARGIN, MOST_KEPT, Budget
from sepwise.lowering.tuning.database import (
    DEVICE,
    Database,
    Evidence,
    Verdict,
    find_conditions,
    find_neighbours,
    list_folders,
    read_picks,
    spell_refused,
)
from sepwise.lowering.tuning.evolution import Evolution
from sepwise.lowering.tuning.metaschedule import spell_record
from sepwise.lowering.tuning.network import add_variants, build_network, load_network
from sepwise.lowering.tuning.playoff import LEADERS
from sepwise.lowering.tuning.result import KernelResult, Progress, Tuning
from sepwise.lowering.tuning.search import BATCH, Search, Wrong
from sepwise.lowering.tuning.space import MOST_PREDICTED, list_candidates, order
from sepwise.lowering.tuning.structure import find_chains, list_alternatives
from sepwise.lowering.tuning.timing import BoardGoneError, BoardTimer, open_timer
from sepwise.lowering.tuning.trial import Tuned, Workbench
from sepwise.lowering.verify import KernelChecker
from sepwise.passes import load_model
from sepwise.passes.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.remote import Connect
    from sepwise.lowering.roofline import Roof
    from sepwise.lowering.selection import Records
    from sepwise.lowering.tuning.database import Conditions, Findings
    from sepwise.lowering.tuning.network import Network, Variant
    from sepwise.lowering.tuning.search import Settled
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.structure import Chain
    from sepwise.lowering.tuning.timing import Timed, Timer

__all__ = ["tune"]

PROFILE_ROUNDS = 5

PREDICTED, EVOLUTIONARY = ORDERS = ("predicted", "evolutionary")
"""How candidates are chosen: in the order of their prediction, or by MetaSchedule's evolutionary search (see `evolution`)."""

MOST_BEHIND = 1.25
"""Time of a chain over that of the default's structure, both with default tiles, beyond which the kernels of it are not tuned."""

FURTHER_SECONDS = 5.0
"""How long a tracker's further boards are waited for, one after the other, where the first is there."""

NOTHING_TO_DO = "Nothing to do: every kernel is finished, by records that hold here. Of what was not tried nothing is expected."

NOTHING_TIMED = "No candidate was timed: no time or no trials were left. Give more with --seconds or --trials."

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
    started: float | None = None,
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
        seconds: Time for all of it, from `started` to the end of the play-off, for which a share is kept; no limit where None.
            What was begun is ended. With 0 nothing is tuned: other databases are taken over, and that is all.
        started: When it began, as `time.monotonic` has it; now where None.
        others: Further databases: what they have of the same device is taken over, records of the nearest other one are tried
            first.
        boards: What connects to each board that candidates are timed on (see `remote.list_boards`); none for here.
        on_progress: Told what is begun, and after each batch.

    Returns:
        What was found.

    Raises:
        InputError: The model, the target or a database cannot be used, or no time was left for a single candidate.
        CheckFailed: Candidates were tried, and none could be timed.
        BoardError: The last board was lost, and could not be reached again; what was recorded until then is kept.
    """
    budget = Budget(seconds, started)
    device = devices.get(target)
    if search not in ORDERS:
        raise InputError(f"Search '{search}': is none of {', '.join(ORDERS)}.")
    for other in others:
        _require_database(Path(other))
    if seconds == 0 and not others:
        raise InputError(f"{NOTHING_TIMED} With --seconds 0 other databases are taken over, which --from names.")
    own = Database(Path(database), device)
    if seconds == 0 and boards:
        raise InputError("With --seconds 0 nothing is timed, so no board is needed.")
    if seconds == 0:
        taken = _take_over(own, others)
        return _describe_merge(Path(model).stem, own, search, threads, taken, budget, emulated=device.emulated and not boards)
    with ExitStack() as stack:
        timers, notes = _open_timers(device, threads, boards, stack)
        on_progress(Progress("compiling the network", 0, 0, budget.spent, _finite(budget.left), None, None, timers[0].unit))
        network = load_network(load_model(model, shapes=shapes), timers[0], float16=float16, budget=budget)
        taken = _take_over(own, others)
        if not network.kernels:
            raise InputError(f"Model '{network.default.program.name}': has no kernel that can be tuned.")
        network.notes += notes + taken
        roots = [Path(database), *map(Path, others)]
        tuner = _Tuner(network, own, timers, budget, roots=roots, float16=float16, order=search, on_progress=on_progress)
        try:
            tuner.run(trials)
        except BoardError as error:
            kept = f"{tuner.records} records of this run are kept in {own.folder}; the same command goes on from there."
            raise BoardError(f"{error} {kept}") from error
        return tuner.report(Path(model).stem)


def _require_database(root: Path) -> None:
    """Refuses a folder in which there are no records of any device."""
    if not root.is_dir():
        raise InputError(f"{root}: is no folder, so there is no database in it.")
    if not list_folders(root):
        hint = f" It is the folder of one device; give {root.absolute().parent}." if (root / DEVICE).is_file() else ""
        raise InputError(f"{root}: there is no database in it, as it has no folder with a {DEVICE}.{hint}")


def _take_over(own: Database, others: Iterable[str | Path]) -> list[str]:
    """Makes a database where there is none, adds what others have of the device, and says how much that was."""
    own.create()
    return [_take_over_one(own, Path(other)) for other in others]


def _take_over_one(own: Database, root: Path) -> str:
    other = Database(root, own.device)
    folders = list_folders(root)
    if other.folder.name not in folders:
        has = f"it has {', '.join(folders)}, whose records are candidates at most"
        return f"{root} has nothing of '{own.device.name}' with these facts; {has}."
    added = own.merge(other)
    counts = f"{added['record']} records, {added['verdict']} verdicts and {added['tried']} candidates that were tried"
    return f"{counts} were taken over from {root}." if added else f"Nothing in {root} is new here."


def _describe_merge(
    name: str, own: Database, search: str, threads: int, notes: Sequence[str], budget: Budget, *, emulated: bool
) -> Tuning:
    """Reports a run that has taken databases over and done nothing else."""
    return Tuning(
        model=name,
        target=own.device.name,
        method="estimated" if emulated else "measured",
        machine=None,
        search=search,
        runner="emulated" if emulated else "native",
        unit="cycles" if emulated else "us",
        threads=threads,
        database=str(own.folder),
        trials=0,
        records=0,
        seconds=budget.spent,
        default_time=None,
        tuned_time=None,
        ratio=None,
        low=None,
        high=None,
        kernels=(),
        structures=(),
        wrong=(),
        history=(),
        notes=(*notes, "Nothing was tuned, as no time was given."),
    )


def _open_timers(
    device: Device, threads: int, boards: Sequence[Connect], stack: ExitStack
) -> tuple[list[Timer], list[str]]:
    """Opens what times candidates: as many boards as can be had, one at least, or this machine. Says what is missing."""
    if not boards:
        return [open_timer(device, threads)], []
    timers: list[Timer] = []
    for connect in boards:
        try:
            timer = BoardTimer(device, threads, connect, within_s=FURTHER_SECONDS if timers else None)
        except (InputError, BoardError) as error:
            if not timers:
                raise
            return timers, [f"{len(timers)} of {len(boards)} boards are used. The next one: {error}"]
        timers.append(stack.enter_context(closing(timer)))
    return timers, []


@dataclass(frozen=True, slots=True)
class _Limits:
    """When a search ends: after so many candidates, or when what is left of the time is kept for the play-off; and when it began.

    That is one of so many candidates of each kernel at most, and of these chains' structures; without candidates there is none.
    """

    trials: int | None
    begun: float
    leaders: int
    chains: frozenset[str]


class _Tuner:
    """One tuning: the searches, the play-off, and what goes to the database."""

    def __init__(
        self,
        network: Network,
        database: Database,
        timers: Sequence[Timer],
        budget: Budget,
        *,
        roots: Sequence[Path],
        float16: bool,
        order: str,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._network = network
        self._database = database
        self._timers = list(timers)
        self._timer = timer = timers[0]
        self._budget = budget
        self._on_progress = on_progress
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
        self._played: dict[str, set[Pick]] = {}  # by chain, structures that have played
        self._profiles: dict[int, list[float]] = {}  # by the place of the variant, the time of each call
        self._roofs: dict[Device, Roof] = {}
        self._default_total = 0.0
        self._settled: Findings = database.read(self._conditions)
        refused = spell_refused(self._settled.refused, self._settled.verdicts)
        network.notes += [f"Of this database {each}; they decide nothing here, and what won is tried first." for each in refused]

    def run(self, trials: int | None) -> None:
        """Searches until there is nothing to try or a limit is reached, and plays."""
        left_out = not self._add_variants()
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
        if not open_kernels and not open_chains and left_out:
            return
        if not open_kernels and not open_chains:
            self._network.notes.append(NOTHING_TO_DO)
            return
        self._begin(open_kernels, open_chains)
        leaders, playing = self._plan_play(open_chains)
        self._search(_Limits(trials, time.monotonic(), leaders, playing))
        if not self._timed and self._trials:
            raise CheckFailed(f"None of {self._trials} candidates could be timed; the first: {self._wrong[0].reason}")
        if not self._timed and not any(len(each.verified) > 1 for each in self._searches.values()):
            if any(each.queue for each in self._searches.values() if each.unverified is None):
                raise InputError(NOTHING_TIMED)
            wrong = [f"kernel '{each.kernel.name}': {each.unverified}" for each in self._searches.values() if each.unverified]
            if wrong:
                raise CheckFailed(f"No candidate was timed: the defaults that they would be compared with are wrong, {wrong[0]}")
        self._insist(lambda: self._play(open_chains))
        if self._result is not None:
            self._insist(lambda: self._play_structures(open_chains))

    def _add_variants(self) -> bool:
        """Builds the network with other structures of its chains; says whether there was time for it."""
        network, timer, budget = self._network, self._timer, self._budget
        alternatives = list_alternatives(network.default.chains, timer.device, timer.threads)
        tried = self._settled.tried
        kernels_open = not all(map(self._is_settled, network.default.kernels))
        chains_open = any(pick not in tried.get(key, ()) for cuts in alternatives for key, pick in cuts.items())
        if alternatives and budget.seconds is not None:
            count = len(alternatives)
            takes = budget.predict(builds=count, loads=2 * count, checks=count)
            if kernels_open or chains_open:
                self._profile(0)
                takes += (1 + count) * budget.predict_play(exact=timer.exact) + budget.predict(runs=count)
                takes += budget.predict_structures(count, exact=timer.exact)
            left = max(budget.left, 0.0)
            if takes > (MOST_KEPT if kernels_open else 1.0) * left:
                network.notes.append(
                    f"Chains keep their structures: to try others takes about {takes:.0f} s, and {left:.0f} s are left for all "
                    "that is to do. Give more with --seconds."
                )
                return False
        if alternatives:
            self._say("compiling other structures")
        add_variants(network, alternatives, timer, float16=self._float16, budget=budget)
        return True

    def _plan_play(self, chains: set[str]) -> tuple[int, frozenset[str]]:
        """Says how many candidates of each kernel are to play, and whose structures: as much as fits beside a search."""
        ways = [(leaders, frozenset(own)) for own in (chains, ()) for leaders in (LEADERS, 1)]
        left = self._budget.left
        fitting = [way for way in ways if self._predict_play(*way) <= MOST_KEPT * left]
        smallest = ways[-1] if self._predict_play(*ways[-1]) <= left else (0, frozenset[str]())
        return [*fitting, smallest][0]

    def _kept_seconds(self, limits: _Limits) -> float:
        """Seconds that the play-off takes, by what was found until now and may be found yet."""
        if not limits.leaders:
            return 0.0
        found = max((len(each.leaders(limits.leaders)) for each in list(self._searches.values())), default=0)
        return self._predict_play(max(found, 1), limits.chains)

    def _predict_play(self, leaders: int, chains: Collection[str]) -> float:
        """Predicts what play-offs take, those of structures too where some chains are open."""
        playing = [each for each in self._network.variants[1:] if any(k.workload.key in self._searches for k in each.kernels)]
        cost = (1 + len(playing)) * self._budget.predict_play(leaders, exact=self._timer.exact)
        return MARGIN * (cost + self._predict_structures(chains))

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
        default = self._network.default
        times = [
            self._profile(place) if variant is default or chains.intersection(variant.chains) else []
            for place, variant in enumerate(self._network.variants)
        ]
        self._default_total = sum(times[0])
        shares: dict[str, float] = {}
        least: dict[str, float] = {}
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
                    least[kernel.workload.key] = self._attainable(variant, kernel)
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
            search = Search(kernel, space[kernel.default], queue, shares[key], self._timer.exact, least[key])
            search.verified = {pick: evidence.interval for pick, evidence in known.items() if pick in space}
            if evolves:
                ratios = {pick: interval.ratio for pick, interval in search.verified.items()}
                evolution = Evolution(kernel.workload, candidates, self._timer.device, batch=BATCH, first=elsewhere, known=ratios)
                search.proposer = evolution
            self._searches[key] = search
        self._history.append((0, self._default_total))

    def _profile(self, place: int) -> list[float]:
        """Times the calls of a network with default kernels, the first time that it is asked for."""
        variant, runs = self._network.variants[place], 1 if self._timer.exact else PROFILE_ROUNDS

        def profile() -> None:
            with self._budget.measure("load"):
                loaded = self._timer.load(variant.program, self._network.inputs)
            with closing(loaded) as timed, self._budget.measure("run", runs):
                self._profiles[place] = [statistics.median(samples) for samples in timed.time_network(PROFILE_ROUNDS)]

        if place not in self._profiles:
            self._say("timing the network")
            self._insist(profile)
        return self._profiles[place]

    def _attainable(self, variant: Variant, kernel: Tuned) -> float:
        """What the roofline allows all calls of a kernel at least, 0 where it is not known."""
        held = self._timer.device.holding(kernel.workload.dtypes.input)
        roof = self._roofs.get(held)
        if roof is None:
            roof = self._roofs[held] = self._timer.roof(held)
        limits = [limit_of(variant.program.calls[call], variant.program, roof).least for call in kernel.calls]
        return sum(limit or 0.0 for limit in limits)

    def _search(self, limits: _Limits) -> None:
        """Tries candidates until there is nothing to try or a limit is reached, on all boards at once."""
        if len(self._timers) == 1:
            self._work(self._timer, limits)
            return
        boards = working = len(self._timers)
        with ThreadPoolExecutor(boards) as pool:
            try:
                while True:
                    wait([pool.submit(self._work_beside, timer, limits) for timer in [*self._timers]])
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

    def _work_beside(self, timer: Timer, limits: _Limits) -> None:
        """Works on one of several boards; one that is gone is left out, anything else ends the work on all."""
        try:
            self._work(timer, limits)
        except Exception as error:
            with self._lock:
                self._failures.append(error)
                if not isinstance(error, BoardError):
                    self._ending = True
                elif len(self._timers) > 1:
                    self._timers.remove(timer)
                    self._tell(f"The others go on: {error}")

    def _work(self, timer: Timer, limits: _Limits) -> None:
        """Tries batch after batch of the most promising kernels."""
        bench, losses = Workbench(timer), 0
        while (claimed := self._claim(limits)) is not None:
            search, most = claimed
            try:
                space = self._spaces[search.kernel.workload.key]
                for settled in search.step(bench, space, most, lambda: self._is_over(limits)):
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
                self._on_progress(self._progress(search.kernel.name, limits))

    def _fits(self, limits: _Limits) -> int:
        """Candidates of a batch that, by those before, end in time."""
        spare = self._budget.left - self._kept_seconds(limits)
        if math.isinf(spare) or not self._trials:
            return BATCH
        each = len(self._timers) * (time.monotonic() - limits.begun) / self._trials
        return min(BATCH, math.floor(spare / each))

    def _claim(self, limits: _Limits) -> tuple[Search, int] | None:
        """Gives the most promising kernel that no other board works on, and how many candidates may be tried; None at the end."""
        with self._lock:
            if self._is_over(limits) or self._ending:
                return None
            most = self._fits(limits)
            if limits.trials is not None:
                most = min(most, limits.trials - self._trials - sum(self._open.values()))
            if most <= 0:
                return None
            while True:
                free = (each for key, each in self._searches.items() if not each.done and key not in self._open)
                search = max(free, key=lambda each: each.promise, default=None)
                if search is None:
                    return None
                self._look_at_others([search])
                if search.kernel.workload.key in self._searches and not search.done:
                    break
            self._open[search.kernel.workload.key] = min(most, len(search.queue))
            return search, most

    def _is_over(self, limits: _Limits) -> bool:
        """Whether what is left of the time is kept for the play-off."""
        return self._budget.left <= self._kept_seconds(limits)

    def _write_down(self, search: Search, settled: Settled) -> None:
        """Writes down what is known of a candidate: its record first, as only that it was tried must not stand alone."""
        key, pick = search.kernel.workload.key, settled.pick
        if settled.evidence is not None:
            evidence, device = settled.evidence, self._timer.device
            median, method = evidence.times.median, self._timer.method
            lines = spell_record(search.kernel.workload, pick, median, device, method, evidence.place)
            self._settled.records.setdefault(key, {})[pick] = self._database.add_record(self._conditions, key, lines, evidence)
            self.records += 1
        if pick == search.default.pick:
            return
        self._database.add_tried(self._conditions, key, pick, settled.interval, settled.rounds, settled.refused)
        self._settled.tried.setdefault(key, set()).add(pick)
        self._trials += 1
        self._timed += settled.interval is not None
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
        self._look_at_others([search])

    def _look_at_others(self, searches: Sequence[Search]) -> None:
        """Takes note of what other tuners have found of some kernels meanwhile."""
        found = self._database.read(self._conditions)
        for search in searches:
            key = search.kernel.workload.key
            verdict = found.verdicts.get(key)
            if verdict is not None and verdict.finished:  # another tuner was faster
                self._settled.verdicts[key] = verdict
                del self._searches[key]
                continue
            for pick, evidence in found.records.get(key, {}).items():
                if pick in self._spaces[key]:
                    search.verified.setdefault(pick, evidence.interval)
                    self._settled.records.setdefault(key, {}).setdefault(pick, evidence)
            tried = self._settled.tried[key] = found.tried.get(key, set())
            search.queue = [each for each in search.queue if each.pick not in tried]

    def _current(self) -> float:
        """The time of the network with the best until now."""
        return self._default_total - sum(each.share * (1 - each.ratio) for each in self._searches.values())

    def _progress(self, name: str, limits: _Limits) -> Progress:
        """How far the search has come."""
        left = sum(each.left for each in self._searches.values() if not each.done)
        if limits.trials is not None:
            left = min(left, limits.trials - self._trials)
        search_seconds = left * (time.monotonic() - limits.begun) / max(self._trials, 1)
        seconds_left = min(search_seconds + self._kept_seconds(limits), max(self._budget.left, 0.0))
        current = self._current()
        return Progress(
            name, self._trials, left, self._budget.spent, seconds_left, self._default_total, current, self._timer.unit
        )

    def _say(self, doing: str, seconds_left: float | None = None) -> None:
        """Tells what is begun."""
        left = _finite(self._budget.left) if seconds_left is None else min(seconds_left, max(self._budget.left, 0.0))
        default, current = (self._default_total, self._current()) if self._default_total else (None, None)
        self._on_progress(Progress(doing, self._trials, 0, self._budget.spent, left, default, current, self._timer.unit))

    def _load(self, records: Records) -> playoff.Team:
        """Builds and loads the network with candidates."""
        known = next((each for each in self._network.variants if each.whole and each.structures == records), None)
        if known is not None:
            program, chains = known.program, known.chains
        else:
            with self._budget.measure("rebuild"):
                lowered, float16 = self._network.lowered, self._float16
                program, imported = build_network(
                    self._network.model, self._timer, records, lowered, self._budget, float16=float16
                )
            chains = find_chains(program, imported)
        return playoff.Team(
            self._timer.load(program, self._network.inputs), {key: chain.calls for key, chain in chains.items()}
        )

    def _load_variant(self, variant: Variant, records: Records) -> Timed:
        """Builds and loads the network with the structures of a variant, and candidates."""
        return self._load({**variant.structures, **records}).timed

    def _tuned(self) -> dict[str, Pick]:
        """What was found to be faster than the default until now, workloads and chains."""
        own = {kernel.workload.key for kernel in self._network.kernels} | self._network.default.chains.keys()
        return {key: verdict.pick for key, verdict in self._settled.verdicts.items() if verdict.tuned and key in own}

    def _play(self, chains: set[str]) -> None:
        """Lets the best of each search play against the default, in the networks that have it, and writes the verdicts."""
        self._result = None
        self._look_at_others(list(self._searches.values()))
        exact = self._timer.exact
        verified = {key for key, each in self._searches.items() if each.verified}
        default, *others = self._network.variants
        playing = [default, *(each for each in others if not verified.isdisjoint(kernel.workload.key for kernel in each.kernels))]
        for place, variant in enumerate(playing):
            own = {kernel.workload.key: kernel.calls for kernel in variant.kernels}
            searches = {key: self._searches[key] for key in own if key in verified}
            kept = {key: pick for key, pick in self._tuned().items() if key in own.keys() - searches.keys()}
            most = max((len(each.leaders(LEADERS)) for each in searches.values()), default=0)
            costs = {count: self._budget.predict_play(count, exact=exact) for count in range(most + 1)}
            costs[0] += self._budget.predict_final(exact=exact) if kept else 0.0
            count = next((count for count in range(most, min(most, 1) - 1, -1) if self._budget.allows(costs[count])), None)
            if count is None:
                self._leave_out(f"The play-off of '{variant.program.name}'", costs[min(most, 1)])
                if place == 0:
                    return
                continue
            others_seconds = (len(playing) - place - 1) * self._budget.predict_play(1, exact=exact)
            later = others_seconds + self._predict_structures(chains)
            later = later if self._budget.allows(costs[count] + later) else 0.0
            self._say("the play-off", costs[count] + later)
            leaders = {key: each.leaders(count) for key, each in searches.items()}
            result = playoff.play(
                partial(self._load_variant, variant),
                {key: picks for key, picks in leaders.items() if picks},
                {key: own[key] for key in (*searches, *kept)},
                exact=exact,
                kept=kept,
                time_left=partial(self._left_before, later),
                final_seconds=self._budget.predict_final(exact=exact),
            )
            self._result = self._result or result  # of the default, which is first
            for key, standing in result.standings.items():
                if key not in searches:
                    self._take_back(key, standing)
                elif not self._keeps_earlier(key, standing, searches[key].kernel.name):
                    search = searches[key]
                    all_played = len(leaders[key]) == len(search.leaders(LEADERS))
                    finished = search.done and all_played and not standing.cut_off
                    self._judge(key, standing, standing.pick or search.default.pick, len(own[key]), finished=finished)

    def _left_before(self, later_seconds: float) -> float:
        """Seconds that are left where others are kept for what comes later."""
        return self._budget.left - later_seconds

    def _take_back(self, key: str, standing: playoff.Standing) -> None:
        """Has a workload that was settled before computed by the default again."""
        kernel = next(each for each in self._network.kernels if each.workload.key == key)
        if kernel.default in self._settled.records.get(key, {}):
            self._network.notes.append(
                f"Kernel '{kernel.name}' has its default again: with what was chosen before the network is slower."
            )
            self._judge(key, standing, kernel.default, len(kernel.calls), finished=True)

    def _keeps_earlier(self, key: str, standing: playoff.Standing, name: str) -> bool:
        """Whether what an earlier run has chosen stays, as time ended the match that might have told otherwise; says so."""
        earlier = self._settled.verdicts.get(key)
        keeps = standing.cut_off and earlier is not None and earlier.tuned
        if keeps:
            self._network.notes.append(f"'{name}' keeps what an earlier run has chosen: time ended the match before it told.")
        return keeps

    def _leave_out(self, what: str, seconds: float) -> None:
        """Says that there was no time for something."""
        self._network.notes.append(
            f"{what} was left out: it takes about {math.ceil(seconds)} s, and {max(self._budget.left, 0.0):.0f} s were left. "
            "Defaults are kept there; what was found is recorded, and plays in the next run. Give more with --seconds."
        )

    def _predict_structures(self, chains: Collection[str]) -> float:
        """Predicts what the play-off of structures takes, nothing where no chain is open."""
        count = len(self._network.variants) - 1 if chains else 0
        return self._budget.predict_structures(count, exact=self._timer.exact) if count else 0.0

    def _judge(self, key: str, standing: playoff.Standing, pick: Pick, calls: int, *, finished: bool) -> None:
        """Writes a verdict."""
        verdict = Verdict(
            pick=pick,
            record=self._settled.records[key][pick].record,
            tuned=standing.pick is not None,
            times=standing.times,
            interval=standing.interval,
            finished=finished,
            machine=self._timer.machine,
            calls=calls,
        )
        self._database.add_verdict(self._conditions, key, verdict)
        self._settled.verdicts[key] = verdict

    def _play_structures(self, chains: set[str]) -> None:
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
        seconds = self._budget.predict_structures(len(alternatives), exact=self._timer.exact)
        if not self._budget.allows(seconds):
            return self._leave_out("The play-off of structures", seconds)
        self._say("the play-off of structures", seconds)
        self._result = playoff.play_structures(
            self._load,
            self._result,
            tiles,
            alternatives,
            self._verify_structure,
            exact=self._timer.exact,
            kept=kept,
            time_left=lambda: self._budget.left,
            final_seconds=self._budget.predict_final(exact=self._timer.exact),
        )
        for key, standing in self._result.standings.items():
            self._played[key] = set(standing.played)
            around = self._network.around(key)
            finished = all(self._is_settled(kernel) or kernel.workload.key not in self._searches for kernel in around)
            finished = finished and not standing.cut_off
            chain = self._network.default.chains[key]
            told = key in self._settled.verdicts and chain.structure in self._settled.records.get(key, {})
            if (standing.pick is not None or told) and not self._keeps_earlier(key, standing, chain.name):
                self._judge(key, standing, standing.pick or chain.structure, chain.count, finished=finished)
            self._standings[key] = standing
            for structure, interval in standing.played.items() if finished else ():
                refused = next((each.reason for each in self._wrong if (each.kernel, each.pick) == (chain.name, structure)), None)
                self._database.add_tried(self._conditions, key, structure, interval, standing.times.rounds, refused)
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
        place, times = self._timer.place, standing.times
        evidence = Evidence(pick, -1, times, standing.interval, worst, place, self._timer.machine)
        lines = spell_record(chain.workload, pick, times.median, self._timer.device, self._timer.method, place)
        self._settled.records.setdefault(key, {})[pick] = self._database.add_record(self._conditions, key, lines, evidence)
        self.records += 1
        return True

    def report(self, name: str) -> Tuning:
        """Gives what was found."""
        kernels = [self._kernel_result(kernel) for kernel in self._network.default.kernels]
        default = self._network.default.chains
        chains = [self._chain_result(key, default[key]) for key in self._alternatives()]
        result = self._result
        if result is None and self._default_total:  # no play-off: the profile, and what earlier verdicts say
            tuned = self._default_total - self._saved_before()
            times: tuple[float | None, ...] = (self._default_total, tuned, tuned / self._default_total)
        else:
            times = (None, None, None) if result is None else (result.default_median, result.median, result.interval.ratio)
        return Tuning(
            model=name,
            target=self._timer.device.name,
            method=self._timer.method,
            machine=self._timer.machine,
            search=self._order,
            runner=self._timer.place,
            unit=self._timer.unit,
            threads=self._timer.threads,
            database=str(self._database.folder),
            trials=self._trials,
            records=self.records,
            seconds=self._budget.spent,
            default_time=times[0],
            tuned_time=times[1],
            ratio=times[2],
            low=None if result is None else result.interval.low,
            high=None if result is None else result.interval.high,
            kernels=tuple(sorted((each for each in kernels if each is not None), key=lambda each: -each.default_time)),
            structures=tuple(each for each in chains if each is not None),
            wrong=tuple(self._wrong),
            history=tuple(self._history),
            notes=tuple(self._network.notes),
        )

    def _saved_before(self) -> float:
        """What the verdicts of earlier runs save of the network's time, by their ratios."""
        profile, verdicts = self._profiles[0], self._settled.verdicts
        kernels = [each for each in self._network.default.kernels if each.workload.key in verdicts]
        return sum(_sum(profile, each.calls) * (1 - verdicts[each.workload.key].interval.ratio) for each in kernels)

    def _kernel_result(self, kernel: Tuned) -> KernelResult | None:
        """What was found for a workload, None where nothing was."""
        key = kernel.workload.key
        verdict = self._settled.verdicts.get(key)
        if verdict is None and key not in self._searches:
            return None
        count = len(kernel.calls)
        if verdict is None:
            default_time = tuned_time = _sum(self._profiles[0], kernel.calls)
        else:
            share = count / verdict.calls
            default_time, tuned_time = share * verdict.times.default_median, share * verdict.times.median
        return KernelResult(
            name=kernel.name,
            calls=count,
            workload=key,
            default=str(kernel.default),
            chosen=str(kernel.default if verdict is None else verdict.pick),
            tuned=verdict is not None and verdict.tuned,
            default_time=default_time,
            tuned_time=tuned_time,
            ratio=1.0 if verdict is None else verdict.interval.ratio,
            low=1.0 if verdict is None else verdict.interval.low,
            high=1.0 if verdict is None else verdict.interval.high,
            space=len(self._spaces[key]),
            tried=len(self._settled.tried.get(key, set()) - {kernel.default}),
            finished=verdict is not None and verdict.finished,
        )

    def _chain_result(self, key: str, chain: Chain) -> KernelResult | None:
        """What was found for a chain, None where nothing was."""
        verdict = self._settled.verdicts.get(key)
        found = self._standings.get(key) or verdict
        if found is None:
            return None
        tried = self._settled.tried.get(key, set()) | self._settled.records.get(key, {}).keys() | self._played.get(key, set())
        return KernelResult(
            name=chain.name,
            calls=chain.count,
            workload=key,
            default=str(chain.structure),
            chosen=str(verdict.pick if verdict is not None and verdict.tuned else chain.structure),
            tuned=verdict is not None and verdict.tuned,
            default_time=found.times.default_median,
            tuned_time=found.times.median,
            ratio=found.interval.ratio,
            low=found.interval.low,
            high=found.interval.high,
            space=1 + len(self._alternatives()[key]),
            tried=len(tried - {chain.structure}),
            finished=self._is_chain_settled(key),
        )


def _finite(seconds: float) -> float | None:
    """Seconds that are left, None without a limit."""
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _sum(times: Sequence[float], calls: Iterable[int]) -> float:
    """Time of some calls."""
    return sum(times[call] for call in calls)
