"""The order of candidates by evolution: TVM MetaSchedule's `EvolutionarySearch` over the tiles that strategies declare.

Its design space has one schedule for each strategy: the plain PrimFunc of the workload, annotated like a record (see
`metaschedule`), but each size of the tile is drawn (`sample_categorical`). Sizes that make no declared tile are rejected by a
postprocessor; a mutator draws one size anew. The population is ranked by the analytic model's prediction, corrected by what was
timed: a ridge regression of the error over the strategy and the octaves of its sizes. MetaSchedule's own model would see the
same code everywhere, as tiles are not scheduled until they are replayed.

MetaSchedule proposes; races, checks and records are those of `search`, as its runner times a candidate by itself, and its
database takes what nothing has verified.
"""

from __future__ import annotations

import logging
import math
import sys
import types
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule

from sepwise.lowering.codegen import tvm_target
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.database import ANNOTATION
from sepwise.lowering.tuning.metaschedule import plain_function

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.workload import ConvWorkload, LinearWorkload

__all__ = ["Evolution"]

POPULATION = 64
"""Traces that are bred at a time; spaces have hundreds of tiles."""

GENERATIONS = 3
"""Times that they are bred for one batch."""

LEAST_FRESH = 8
"""Traces that were never timed, of which a population must have so many; fewer are not to be found in a small space."""

BARREN = 3
"""Batches in a row in which nothing new is proposed, after which nothing more is asked for."""

UNSEEN = 2**31 - 1
"""As many trials as MetaSchedule counts to; whoever asks knows when to end."""

INTRINSICS = "tvm.s_tir.tensor_intrin"
"""Intrinsics of matrix units, which a `TuneContext` imports whatever it is for; to parse them takes tens of seconds."""

logger = logging.getLogger(__name__)


class Evolution:
    """Proposes candidates of one kernel."""

    def __init__(
        self,
        workload: ConvWorkload | LinearWorkload,
        candidates: Sequence[Candidate],
        device: Device,
        *,
        batch: int,
        first: Iterable[Pick] = (),
        known: Mapping[Pick, float] | None = None,
    ) -> None:
        """Sets the search up; nothing is proposed yet.

        Args:
            workload: What to compute.
            candidates: All that is declared for it.
            device: The target.
            batch: Candidates that are proposed at a time.
            first: What has proved good elsewhere, and is proposed before all else.
            known: Those that were timed before: their time over that of the default.
        """
        self._model = _Model(candidates)
        module = tvm.IRModule({"main": plain_function(workload)})
        names = list(dict.fromkeys(each.strategy.name for each in candidates))
        sizes = {name: _sizes_of(candidates, name) for name in names}

        def spaces(schedule: s_tir.Schedule) -> list[s_tir.Schedule]:
            return [_annotate(schedule.copy(), name, sizes[name]) for name in names]

        seed = zlib.crc32(workload.key.encode()) % UNSEEN + 1
        generator = meta_schedule.space_generator.ScheduleFn(
            spaces,
            sch_rules=[],
            postprocs=[_Declared({each.pick for each in candidates})],
            mutator_probs={_Mutation(np.random.default_rng(seed)): 1.0},
        )
        strategy = meta_schedule.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_min_unmeasured=LEAST_FRESH, genetic_num_iters=GENERATIONS
        )
        with _without_intrinsics():
            self._context = meta_schedule.TuneContext(
                module,
                target=tvm_target(device),
                space_generator=generator,
                search_strategy=strategy,
                rand_state=seed,
                num_threads=1,
                logger=logger,
            )
        drawn = self._context.generate_design_space()
        self._database = meta_schedule.database.MemoryDatabase()
        self._workload = self._database.commit_workload(module)
        self._context.pre_tuning(
            max_trials=UNSEEN,
            num_trials_per_iter=batch,
            design_spaces=drawn,
            database=self._database,
            cost_model=_CostModel(self._model),
        )
        self._traces = {name: schedule.trace for name, schedule in zip(names, drawn, strict=True)}
        self._sizes = sizes
        self._asked: list[Any] = []  # what MetaSchedule has proposed and awaits results of
        self._ahead = list(first)
        self._ratios: dict[Pick, float] = {}
        self._barren = 0
        for pick, ratio in (known or {}).items():
            self.learn(pick, ratio)

    def propose(self, queue: Sequence[Candidate], count: int) -> list[Candidate]:
        """Proposes what to try next.

        Args:
            queue: What was not tried yet, in the order in which it comes where nothing is proposed any more.
            count: Candidates at most.

        Returns:
            Some of the queue; as many as asked for, or all of it.
        """
        left = {each.pick: each for each in queue}
        count = min(count, len(left))
        found = self._take(left, count)
        while len(found) < count and self._barren < BARREN:
            self._breed()
            more = self._take({pick: each for pick, each in left.items() if pick not in found}, count - len(found))
            self._barren = 0 if more else self._barren + 1
            found |= more
        rest = (each for pick, each in left.items() if pick not in found)
        return [*found.values(), *(next(rest) for _ in range(count - len(found)))]

    def learn(self, pick: Pick, ratio: float | None) -> None:
        """Takes note of what was found.

        Args:
            pick: The candidate.
            ratio: Its time over that of the default, None where it was refused.
        """
        if ratio is None or pick.strategy not in self._sizes:
            return
        self._ratios[pick] = ratio
        self._model.learn(pick, ratio)
        trace = self._traces[pick.strategy]
        drawn = [each for each in trace.insts if each.kind.name == "SampleCategorical"]
        for instruction, (name, size) in zip(drawn, pick.sizes, strict=True):
            trace = trace.with_decision(instruction, self._sizes[pick.strategy][name].index(size), remove_postproc=True)
        record = meta_schedule.database.TuningRecord(trace, self._workload, [ratio], self._context.target)
        self._database.commit_tuning_record(record)

    def _take(self, left: Mapping[Pick, Candidate], count: int) -> dict[Pick, Candidate]:
        """Takes what was proposed and is left."""
        found: dict[Pick, Candidate] = {}
        while self._ahead and len(found) < count:
            pick = self._ahead.pop(0)
            if pick in left:
                found[pick] = left[pick]
        return found

    def _breed(self) -> None:
        """Has MetaSchedule propose the next batch, after it was told of the one before."""
        if self._asked:
            results = []
            for each in self._asked:
                ratio = self._ratios.get(_pick_of(each.sch))
                error = None if ratio is not None else "refused"
                results.append(meta_schedule.runner.RunnerResult(None if ratio is None else [ratio], error))
            self._context.notify_runner_results(self._asked, results)
        self._asked = list(self._context.generate_measure_candidates() or [])
        self._ahead += [_pick_of(each.sch) for each in self._asked]


class _Model:
    """Predicts ratios to the default: the analytic model, and what it turned out to leave out.

    log(time / default) = log(cycles / least cycles) + sum over features of weight * feature, with a ridge of one
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        least = min(each.cycles for each in candidates)
        self._predicted = {each.pick: math.log(each.cycles / least) for each in candidates}
        names = dict.fromkeys(name for each in candidates for name in _features(each.pick))
        self._places = {name: place for place, name in enumerate(names)}
        self._squares = np.eye(len(names))
        self._products = np.zeros(len(names))
        self._weights: np.ndarray = np.zeros(len(names))

    def learn(self, pick: Pick, ratio: float) -> None:
        """Fits the weights anew, with one more candidate that was timed."""
        row = self._row(pick)
        self._squares += np.outer(row, row)
        self._products += row * (math.log(ratio) - self._predicted[pick])
        self._weights = np.linalg.solve(self._squares, self._products)

    def score(self, pick: Pick) -> float:
        """Predicts the default's time over that of a candidate."""
        return math.exp(-self._predicted[pick] - float(self._row(pick) @ self._weights))

    def _row(self, pick: Pick) -> np.ndarray:
        row = np.zeros(len(self._places))
        for name, value in _features(pick).items():
            row[self._places[name]] = value
        return row


def _features(pick: Pick) -> dict[tuple[str, ...], float]:
    """What tells candidates apart: the strategy, and the octaves of its sizes."""
    return {(pick.strategy,): 1.0} | {(pick.strategy, name): math.log2(1 + size) for name, size in pick.sizes}


def _sizes_of(candidates: Sequence[Candidate], strategy: str) -> dict[str, list[int]]:
    """The sizes that a strategy's tiles have, by field."""
    found: dict[str, set[int]] = {}
    for each in candidates:
        if each.strategy.name == strategy:
            for name, size in each.pick.sizes:
                found.setdefault(name, set()).add(size)
    return {name: sorted(sizes) for name, sizes in found.items()}


def _annotate(schedule: s_tir.Schedule, strategy: str, sizes: Mapping[str, Sequence[int]]) -> s_tir.Schedule:
    """Annotates a plain PrimFunc with a strategy and sizes that are drawn."""
    root = schedule.get_sblock("root")
    schedule.annotate(root, f"{ANNOTATION}strategy", strategy)
    for name, values in sizes.items():
        drawn = schedule.sample_categorical(list(values), [1 / len(values)] * len(values))
        schedule.annotate(root, f"{ANNOTATION}tile.{name}", drawn)
    return schedule


def _pick_of(schedule: s_tir.Schedule) -> Pick:
    """Reads the candidate that was drawn."""
    said = dict(schedule.get(schedule.get_sblock("root")).annotations)
    tile = f"{ANNOTATION}tile."
    sizes = tuple((name.removeprefix(tile), int(value)) for name, value in said.items() if name.startswith(tile))
    return Pick(str(said[f"{ANNOTATION}strategy"]), sizes)


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Has nothing imported where intrinsics of matrix units are asked for and were not yet."""
    if INTRINSICS in sys.modules:
        yield
        return
    sys.modules[INTRINSICS] = types.ModuleType(INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[INTRINSICS]


@derived_object
class _Declared(meta_schedule.postproc.PyPostproc):  # type: ignore[misc]
    """Rejects sizes that make no declared tile."""

    def __init__(self, declared: set[Pick]) -> None:
        self.declared = declared

    def _initialize_with_tune_context(self, context: object) -> None:
        del context

    def apply(self, schedule: s_tir.Schedule) -> bool:
        """Whether a tile is declared."""
        return _pick_of(schedule) in self.declared

    def clone(self) -> object:
        """The same once more."""
        return _Declared(self.declared)


@derived_object
class _Mutation(meta_schedule.mutator.PyMutator):  # type: ignore[misc]
    """Draws one size anew."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def _initialize_with_tune_context(self, context: object) -> None:
        del context

    def apply(self, trace: s_tir.schedule.Trace, _: object = None) -> s_tir.schedule.Trace | None:
        """The trace with one decision that differs, None where there is none to make."""
        open_ones = [each for each in trace.insts if each.kind.name == "SampleCategorical" and len(each.attrs[0]) > 1]
        if not open_ones:
            return None
        instruction = open_ones[self.random.integers(len(open_ones))]
        choices = len(instruction.attrs[0])
        decision = int(trace.decisions[instruction]) + int(self.random.integers(1, choices))
        return trace.with_decision(instruction, decision % choices, remove_postproc=True)

    def clone(self) -> object:
        """The same once more."""
        return _Mutation(self.random)


@derived_object
class _CostModel(meta_schedule.cost_model.PyCostModel):  # type: ignore[misc]
    """Our prediction, as MetaSchedule asks for it; what was timed it learns elsewhere."""

    def __init__(self, model: _Model) -> None:
        self.model = model

    def load(self, path: str) -> None:
        """Nothing is kept in files."""

    def save(self, path: str) -> None:
        """Nothing is kept in files."""

    def update(self, context: object, candidates: Sequence[object], results: Sequence[object]) -> None:
        """Nothing: `Evolution.learn` has it already."""

    def predict(self, context: object, candidates: Sequence[Any]) -> np.ndarray:
        """Scores candidates, the more the better."""
        del context
        return np.array([self.model.score(_pick_of(each.sch)) for each in candidates])
