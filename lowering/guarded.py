"""Memory for a kernel that runs alone: each operand lies in a room of its own, between gaps that nothing may touch.

    gap | room of the scratch | gap | room of argument 0 | gap | room of argument 1 | gap | ...

A kernel runs twice, once with every operand at the end of its room and once with every one at the beginning: what it reads or
writes behind an operand traps in the first run, what it reads or writes before one in the second. The first is one worker's, the
second that of all, and both give the same numbers, pad lanes aside. Operands that it only reads are write-protected. Kernels take
operands to be aligned to the vectors of the device, so that up to a vector may be left between the end of one and its gap; what
lies there, is not written yet or was never given is `UNWRITTEN`, and no kernel may change it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sepwise.lowering.program import KernelCall, Program

__all__ = [
    "GAP_BYTES",
    "UNWRITTEN",
    "Access",
    "AccessError",
    "Stage",
    "StageMemory",
    "StrayAccessError",
    "require_alike",
    "run_alone",
]

UNWRITTEN: Final = 0xFF
"""Byte of memory without a value: float32 values of it are NaN, so nothing can take them for results."""

PAGE_BYTES: Final = 1 << 16
"""Multiple of the pages of every system that kernels run on."""

GAP_BYTES: Final = 1 << 20
"""Between two rooms: what runs over by no more is found out."""


class StrayAccessError(SepwiseError):
    """A kernel that ran alone touched memory outside of its operands, or changed what it only reads."""


class AccessError(SepwiseError):
    """Memory that may not be accessed was.

    Attributes:
        address: Where.
    """

    def __init__(self, what: str, address: int) -> None:
        """Notes where; `what` is what the emulator says."""
        super().__init__(what)
        self.address = address


@dataclass(frozen=True, slots=True)
class Operand:
    """A buffer that a kernel is given.

    Attributes:
        name: What messages call it.
        nbytes: Its size.
        written: Whether the kernel may write it.
    """

    name: str
    nbytes: int
    written: bool


def _find_operands(program: Program, call: KernelCall) -> list[Operand]:
    """Lists what a call is given: the scratch of one worker, then its arguments in order."""
    inputs, outputs = ([(name, program.find_value(name).type.nbytes) for name in names] for names in (call.inputs, call.outputs))
    operands = [
        Operand("the scratch", call.scratch_bytes, written=True),
        *(Operand(f"input '{name}'", nbytes, written=False) for name, nbytes in inputs),
        *(Operand(f"constant {place}", nbytes, written=False) for place, nbytes in enumerate(call.constant_bytes)),
        *(Operand(f"output '{name}'", nbytes, written=True) for name, nbytes in outputs),
    ]
    assert len(operands) == 1 + len(call.arguments), "every argument's size is known"
    return operands


class Access(IntEnum):
    """What may be done with pages; systems and emulators have the same bits."""

    NONE = 0
    READ = 1
    WRITE = 3


class StageMemory(ABC):
    """Memory in which a stage lies, and the calls that can run on it; offsets are from the stage's begin.

    Attributes:
        stage: What lies where.
    """

    stage: Stage

    def close_gaps(self) -> None:
        """Takes all access to what is between rooms."""
        for gap in self.stage.gaps:
            self.protect_stage(*gap, Access.NONE)

    @abstractmethod
    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        """Changes what may be done with whole pages."""

    @abstractmethod
    def write_stage(self, offset: int, data: np.ndarray) -> None:
        """Writes bytes."""

    @abstractmethod
    def read_stage(self, offset: int, nbytes: int) -> np.ndarray:
        """Reads bytes."""

    @abstractmethod
    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        """Runs one call, all its tasks.

        Args:
            index: Which of the Program's calls.
            offsets: Where the scratch and the arguments lie.
            shared: Whether all workers run it, where there are some; each has scratch, that of the first at the offset.

        Returns:
            Where it touched what it must not, None where it kept to what is its own.
        """


class Stage:
    """Rooms for the operands of any call of a Program.

    Attributes:
        program: What runs here.
        nbytes: Size of the whole, gaps included; it begins at a page.
        gaps: Offsets and sizes of what nothing may touch.
        rooms: Offsets and sizes of the rooms, that of the scratch first.
    """

    def __init__(self, program: Program, *, vector_bytes: int, threads: int = 1) -> None:
        """Makes each room as large as its largest operand.

        Args:
            program: Its calls run here.
            vector_bytes: What operands are aligned to.
            threads: Workers, each of which has scratch of its own.
        """
        self.program = program
        self._vector_bytes = vector_bytes
        self._operands = [_find_operands(program, call) for call in program.calls]
        self.gaps, self.rooms = [(0, GAP_BYTES)], []
        for place in range(max(map(len, self._operands), default=0)):
            start = sum(self.gaps[-1])
            largest = max(operands[place].nbytes for operands in self._operands if place < len(operands))
            others = 0 if place else (threads - 1) * program.scratch_bytes
            nbytes = -(-max(largest + others, 1) // PAGE_BYTES) * PAGE_BYTES
            self.rooms.append((start, nbytes))
            self.gaps.append((start + nbytes, GAP_BYTES))
        self.nbytes = sum(self.gaps[-1])

    def place(self, index: int, *, at_end: bool) -> list[tuple[Operand, int]]:
        """Places a call's operands.

        Args:
            index: Which of the Program's calls.
            at_end: Whether at the ends of their rooms, otherwise at the beginnings.

        Returns:
            The operands and their offsets.
        """
        places = zip(self._operands[index], self.rooms, strict=False)
        return [(operand, start + at_end * (nbytes - self._aligned(operand.nbytes))) for operand, (start, nbytes) in places]

    def fill(self, operand: Operand, data: np.ndarray | None) -> np.ndarray:
        """Makes what is written where an operand lies: its data, `UNWRITTEN` where there is none, up to the next vector."""
        memory = np.full(self._aligned(operand.nbytes), UNWRITTEN, np.uint8)
        if data is not None:
            memory[: operand.nbytes] = data.reshape(-1).view(np.uint8)
        return memory

    def split(self, call: KernelCall, operand: Operand, memory: np.ndarray) -> np.ndarray:
        """Takes an operand out of what was read where it lies.

        Args:
            call: What ran.
            operand: One of its outputs.
            memory: As many bytes as `fill` makes.

        Returns:
            The operand's bytes.

        Raises:
            StrayAccessError: What lies behind was written to.
        """
        changed = np.flatnonzero(memory[operand.nbytes :] != UNWRITTEN)
        if changed.size:
            raise _stray(call, operand, operand.nbytes + int(changed[0]))
        return memory[: operand.nbytes]

    def blame(self, call: KernelCall, placed: Sequence[tuple[Operand, int]], offset: int) -> StrayAccessError:
        """Says whose bounds a call left.

        Args:
            call: What ran.
            placed: Its operands and where they lay.
            offset: What it touched.

        Returns:
            An error that names the kernel, and the nearest operand.
        """
        operand, start = min(placed, key=lambda each: max(each[1] - offset, offset - (each[1] + each[0].nbytes - 1)))
        return _stray(call, operand, offset - start)

    def _aligned(self, nbytes: int) -> int:
        """Rounds a size up to whole vectors."""
        return -(-nbytes // self._vector_bytes) * self._vector_bytes


def run_alone(memory: StageMemory, index: int, data: Sequence[np.ndarray | None]) -> list[list[np.ndarray]]:
    """Runs a call twice, its operands at the ends of their rooms and at the beginnings.

    Args:
        memory: Holds the operands; its gaps are closed.
        index: Which of the Program's calls.
        data: What each operand holds, as it lies in memory; None for the scratch and for outputs.

    Returns:
        The bytes of the outputs after either run.

    Raises:
        StrayAccessError: It touched anything else.
    """
    stage = memory.stage
    call = stage.program.calls[index]
    runs = []
    for at_end in (True, False):
        placed = stage.place(index, at_end=at_end)
        filled = [stage.fill(operand, array) for (operand, _), array in zip(placed, data, strict=True)]
        for (operand, offset), room, bytes_ in zip(placed, stage.rooms, filled, strict=False):
            memory.protect_stage(*room, Access.WRITE)
            memory.write_stage(offset, bytes_)
            memory.protect_stage(*room, Access.WRITE if operand.written else Access.READ)
        touched = memory.run_stage(index, [offset for _, offset in placed], shared=not at_end)
        if touched is not None:
            raise stage.blame(call, placed, touched)
        outputs = list(zip(placed, filled, strict=True))[-len(call.outputs) :]
        runs.append(
            [stage.split(call, operand, memory.read_stage(offset, bytes_.nbytes)) for (operand, offset), bytes_ in outputs]
        )
    return runs


def require_alike(call: KernelCall, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """Compares what a call gave in two runs.

    Args:
        call: What ran.
        first: Its outputs by name, plain: pad lanes may hold anything.
        second: The same of the other run.

    Raises:
        StrayAccessError: They differ in a bit.
    """
    for name, array in first.items():
        if array.tobytes() != second[name].tobytes():
            raise StrayAccessError(
                f"Kernel '{call.name}': writes other numbers to '{name}' in a second run, where its operands lie elsewhere. "
                "Report it: it reads what it was not given, or its tasks disturb each other."
            )


def _stray(call: KernelCall, operand: Operand, offset: int) -> StrayAccessError:
    """An access at an offset from an operand, outside of it or a write to what is read."""
    if 0 <= offset < operand.nbytes:
        what = f"wrote byte {offset} of {operand.name}, which it may only read"
    else:
        what = f"touched byte {offset} of {operand.name}, which has {operand.nbytes}"
    return StrayAccessError(f"Kernel '{call.name}': {what}. Report it: memory of other values is read or overwritten.")
