"""Some candidates of one kernel in one Program: compiled together, timed in turn, checked like any kernel of a network.

They read the tensors that the oracle computed for the network's kernel, with its weights, in its layouts, and all write the same
output. Before anything is timed each runs once between guards: what strays from its operands is refused, as it might end
this process. The check that a record needs is the verifier's own, of the network's nodes (`verify.KernelChecker`).

A candidate during which a board is lost is refused too, whether it was its fault or not: the board is reached again, and the
others go on.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.build import COMPILER_ERRORS
from sepwise.lowering.guarded import StrayAccessError
from sepwise.lowering.remote import BoardError
from sepwise.lowering.runner import to_memory
from sepwise.lowering.trials import IN_MEMORY, Step, build_candidates
from sepwise.lowering.verify import KernelChecker, onnx_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import onnx_ir as ir

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program, Value
    from sepwise.lowering.selection import Pick
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.timing import Place, Timed, Timer
    from sepwise.lowering.workload import ConvWorkload, LinearWorkload
    from sepwise.passes.equivalence import Check

__all__ = ["Trial", "Tuned", "Workbench"]

MISHAPS = (*COMPILER_ERRORS, AssertionError)
"""What a schedule or the compiler may raise for a tile that was never tried before: that tile is refused, and no other."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A kernel of a network that is to be tuned; it stands for all of its workload.

    Attributes:
        name: The first kernel of the workload.
        workload: What it computes.
        calls: Which of the Program's calls compute it.
        default: What the model picks.
        weights: Weight and bias of each stage.
        inputs: What it reads, as it lies in the network.
        output: What it writes.
        part: The nodes that it covers, as a network of their own.
        feed: The oracle's tensors that go into them, by ONNX name.
    """

    name: str
    workload: ConvWorkload | LinearWorkload
    calls: tuple[int, ...]
    default: Pick
    weights: Sequence[tuple[np.ndarray, np.ndarray]]
    inputs: tuple[Value, ...]
    output: Value
    part: ir.Model
    feed: Mapping[str, np.ndarray]


class Trial:
    """Candidates that are loaded where they are timed.

    Attributes:
        refused: Why some cannot be timed.
        gone: What became of the board, where one of those was the last that it ran.
    """

    def __init__(
        self, kernel: Tuned, places: Mapping[Pick, int], program: Program, load: Callable[[], Timed], refused: dict[Pick, str]
    ) -> None:
        """Loads them.

        Args:
            kernel: What all compute.
            places: Call of each candidate.
            program: Holds them.
            load: Loads the program, again each time it is called.
            refused: Those that did not even compile.
        """
        self.refused = refused
        self.gone: BoardError | None = None
        self._kernel = kernel
        self._places = dict(places)
        self._program = program
        self._load = load
        self._timed = load()
        self._checker: KernelChecker | None = None

    def run_each(self, known: Sequence[Pick]) -> None:
        """Runs each once between guards, and refuses what strays.

        Args:
            known: Candidates that have run before, and are not to blame where the board is lost.

        Raises:
            BoardError: It was lost during one of these.
        """
        values = self._kernel.inputs
        arrays = [self._kernel.feed[onnx_name(self._program, value.name)].astype(value.type.dtype) for value in values]
        for pick, place in list(self._places.items()):
            try:
                self._timed.runner.run_kernel(place, arrays)
                continue
            except StrayAccessError as error:
                self.refused[pick] = str(error)
            except BoardError as error:
                if pick in known:
                    raise
                self.refused[pick] = str(error)
                try:
                    self.reload()
                except BoardError as gone:
                    self.gone = gone
                    return
            del self._places[pick]

    def reload(self) -> None:
        """Loads all again, after the board was lost.

        Raises:
            BoardGoneError: It could not be reached.
        """
        self._checker = None
        self._timed.close()
        self._timed = self._load()

    def close(self) -> None:
        """Unloads them."""
        self._timed.close()

    def time(self, picks: Sequence[Pick], rounds: int) -> list[list[float]]:
        """Times candidates in turn.

        Args:
            picks: Which; none is refused.
            rounds: Samples of each.

        Returns:
            Samples of each, those of a round beside each other in time.

        Raises:
            BoardError: The board was lost meanwhile.
        """
        return self._timed.time([self._places[pick] for pick in picks], rounds)

    def check(self, pick: Pick) -> Check:
        """Verifies a candidate where it is timed, by what it writes for the oracle's tensors and for others that are drawn.

        Args:
            pick: Which.

        Returns:
            The verifier's check of a kernel.

        Raises:
            BoardError: The board was lost meanwhile.
        """
        if self._checker is None:
            kernel = self._kernel
            self._checker = KernelChecker(self._program, self._timed.runner, kernel.part, kernel.feed, alike=True)
        (check,) = self._checker.check(self._places[pick])
        return check


class Workbench:
    """Makes trials for one device."""

    def __init__(self, timer: Timer) -> None:
        """Notes where they run.

        Args:
            timer: Knows the device.
        """
        self.timer = timer

    @property
    def place(self) -> Place:
        """Where candidates run."""
        return self.timer.place

    @property
    def machine(self) -> str | None:
        """The processor there, as it names itself."""
        return self.timer.machine

    @contextmanager
    def open(self, kernel: Tuned, known: Sequence[Candidate], candidates: Sequence[Candidate]) -> Iterator[Trial]:
        """Compiles and loads candidates.

        Args:
            kernel: What they compute.
            known: Those that have run before.
            candidates: Those that have not.

        Yields:
            The trial; what does not compile is refused in it.
        """
        device = self.timer.device
        held = device.holding(kernel.workload.dtypes.input)
        steps = {each.pick: Step(kernel.workload, each.strategy, each.tile, held) for each in (*known, *candidates)}
        refused: dict[Pick, str] = {}
        try:
            program, places = self._build(kernel, steps, device)
        except MISHAPS:
            refused = {pick: reason for pick, step in steps.items() if (reason := _refuse(kernel, step, held))}
            if not refused:
                raise
            program, places = self._build(kernel, {pick: step for pick, step in steps.items() if pick not in refused}, device)
        inputs = {
            f"{value.name}{IN_MEMORY}": to_memory(value, kernel.feed[onnx_name(program, value.name)]) for value in kernel.inputs
        }
        trial = Trial(kernel, places, program, lambda: self.timer.load(program, inputs), refused)
        try:
            trial.run_each([each.pick for each in known])
            yield trial
        finally:
            trial.close()

    def _build(self, kernel: Tuned, steps: Mapping[Pick, Step], device: Device) -> tuple[Program, dict[Pick, int]]:
        """Builds the Program. Where times are computed of one run, its first call finds the caches empty and stands for none."""
        cold = [next(iter(steps.values()))] if self.timer.exact else []
        program = build_candidates([*cold, *steps.values()], device, kernel.weights, kernel.inputs, kernel.output)
        return program, {pick: len(cold) + place for place, pick in enumerate(steps)}


def _refuse(kernel: Tuned, step: Step, held: Device) -> str | None:
    """Says why a candidate does not compile by itself."""
    try:
        build_candidates([step], held, kernel.weights, kernel.inputs, kernel.output)
    except MISHAPS as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        return f"does not compile: {type(error).__name__}: {line}"
    return None
