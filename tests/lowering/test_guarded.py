"""Rooms of operands, and what is said of accesses beside them; kernels that stray are in `test_runner`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sepwise.lowering.graph import TensorType
from sepwise.lowering.guarded import UNWRITTEN, Access, Stage, StageMemory, StrayAccessError, require_alike, run_alone
from sepwise.lowering.program import BufferRef, Home, KernelCall, Program, Value

X, Y = (Value(name, TensorType((1, size)), BufferRef(Home.ARENA, 0)) for name, size in (("x", 300), ("y", 9)))
CALL = KernelCall("one", "one", (X.buffer, BufferRef(Home.CONSTANT, 0), Y.buffer), ("x",), ("y",), 1, 100, 0, 0, (), "c", constant_bytes=(8,))
PROGRAM = Program("drawn", "host", (CALL, replace(CALL, name="two", scratch_bytes=0)), (), (), (X, Y), np.zeros(8, np.uint8), 0, 0, b"")


class Memory(StageMemory):
    """Bytes, and a kernel in Python that writes ones; it notes the runs and what was accessible in each."""

    def __init__(self, stage: Stage, touched: int | None = None, behind: int = UNWRITTEN) -> None:
        self.stage = stage
        self.touched = touched
        self.behind = behind
        self.bytes = np.zeros(stage.nbytes, np.uint8)
        self.access = np.full(stage.nbytes, Access.WRITE, np.uint8)
        self.runs: list[tuple[Sequence[int], bool]] = []
        self.close_gaps()

    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        self.access[offset : offset + nbytes] = access

    def write_stage(self, offset: int, data: np.ndarray) -> None:
        assert (self.access[offset : offset + data.nbytes] == Access.WRITE).all()
        self.bytes[offset : offset + data.nbytes] = data

    def read_stage(self, offset: int, nbytes: int) -> np.ndarray:
        return self.bytes[offset : offset + nbytes]

    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        self.runs.append((offsets, shared))
        scratch, x, constant, y = offsets
        assert [self.access[offset] for offset in (x, constant, y)] == [Access.READ, Access.READ, Access.WRITE]
        assert (self.bytes[scratch : scratch + self.stage.program.calls[index].scratch_bytes] == UNWRITTEN).all()
        self.bytes[y : y + 36] = 1
        self.bytes[y + 36] = self.behind
        return self.touched


def test_operands_end_before_a_gap_and_then_begin_behind_one() -> None:
    stage = Stage(PROGRAM, vector_bytes=16)
    memory = Memory(stage)
    x = np.arange(300, dtype=np.float32)
    (y,), (_,) = run_alone(memory, 0, [None, x, np.zeros(8, np.uint8), None])
    assert y.nbytes == Y.type.nbytes
    assert (y == 1).all()
    (at_end, alone), (at_begin, together) = memory.runs
    assert (alone, together) == (False, True)
    for offset, nbytes in zip(at_end, (112, 1200, 16, 48), strict=True):  # whole vectors
        assert memory.access[offset + nbytes - 1] != Access.NONE
        assert memory.access[offset + nbytes] == Access.NONE
    for offset in at_begin:
        assert memory.access[offset] != Access.NONE
        assert memory.access[offset - 1] == Access.NONE


def test_workers_have_scratch_of_their_own() -> None:
    few, many = (Stage(PROGRAM, vector_bytes=16, threads=threads) for threads in (1, 1000))
    assert few.rooms[0][1] < 999 * PROGRAM.scratch_bytes <= many.rooms[0][1]
    assert [nbytes for _, nbytes in many.rooms[1:]] == [nbytes for _, nbytes in few.rooms[1:]]


@pytest.mark.parametrize(
    ("operand", "byte", "what"),
    [
        (0, 112, "touched byte 112 of the scratch, which has 100"),
        (1, -4, "touched byte -4 of input 'x', which has 1200"),
        (1, 8, "wrote byte 8 of input 'x', which it may only read"),
        (2, 5000, "touched byte 5000 of constant 0, which has 8"),
        (3, 48, "touched byte 48 of output 'y', which has 36"),
    ],
)
def test_the_nearest_operand_is_named(operand: int, byte: int, what: str) -> None:
    stage = Stage(PROGRAM, vector_bytes=16)
    touched = stage.place(0, at_end=True)[operand][1] + byte
    with pytest.raises(StrayAccessError, match=f"Kernel 'one': {what}"):
        run_alone(Memory(stage, touched), 0, [None, np.zeros(300, np.float32), np.zeros(8, np.uint8), None])


def test_runs_that_differ_are_found() -> None:
    call = PROGRAM.calls[0]
    first = {"y": np.array([0.0, np.nan], np.float32)}
    require_alike(call, first, {"y": first["y"].copy()})
    with pytest.raises(StrayAccessError, match="Kernel 'one': writes other numbers to 'y' in a second run"):
        require_alike(call, first, {"y": np.array([-0.0, np.nan], np.float32)})


def test_what_is_written_behind_an_output_is_found() -> None:
    memory = Memory(Stage(PROGRAM, vector_bytes=16), behind=0)
    with pytest.raises(StrayAccessError, match="Kernel 'two': touched byte 36 of output 'y', which has 36"):
        run_alone(memory, 1, [None, np.zeros(300, np.float32), np.zeros(8, np.uint8), None])
