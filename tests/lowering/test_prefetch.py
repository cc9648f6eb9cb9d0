"""Prefetches: which lines a tile asks for, how far ahead, and where it does so; and what asks for nothing."""

import pytest
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import Call, Var

from sepwise.lowering.prefetch import PREFETCH_LOOP, prefetch_next

PLANE, ROW = 4096, 256  # floats
DATA = tirx.decl_buffer((16 * PLANE,), "float32", "data")
OTHER = tirx.decl_buffer((16 * PLANE,), "float32", "weight0")
SUMS = tirx.decl_buffer((64,), "float32", "sums", scope="local")


def reads(block: Var, tile: Var | int, source: tirx.Buffer, *, rows: int = 3, columns: int = 6, step: int = 16) -> list[tirx.Stmt]:
    """Rows of `columns` vectors of a block's plane, `step` floats on in the next tile."""
    places = [block * PLANE + tile * step + row * ROW + 4 * column for row in range(rows) for column in range(columns)]
    ramps = [tirx.Ramp(place, tirx.IntImm("int32", 1), 4) for place in places]
    register = [tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), 4)]
    return [tirx.BufferStore(SUMS, tirx.BufferLoad(SUMS, register) + tirx.BufferLoad(source, [ramp]), register) for ramp in ramps]


def marked(source: tirx.Buffer = DATA, *, step: int = 16, tiles: bool = True, elements: int = 0) -> tirx.PrimFunc:
    """`for block: for tile: read` with a mark on the outer loop, or `for block: read`; `elements` as `mark_prefetch` has it."""
    block, tile = Var("block", PrimType("int32")), Var("tile", PrimType("int32"))
    body = tirx.SeqStmt(reads(block, tile if tiles else 0, source, step=step))
    if tiles:
        body = tirx.For(tile, 0, 8, tirx.ForKind.SERIAL, body)
    return tirx.PrimFunc([], tirx.For(block, 0, 16, tirx.ForKind.SERIAL, body, None, {PREFETCH_LOOP: f"data,{elements}"}))


def found(after: tirx.PrimFunc) -> tuple[list[int], list[int]]:
    """How far ahead pointers are set, and what prefetches add to them, in bytes."""
    calls: list[Call] = []
    tvm_ffi.structural_walk(after.body, (Call, calls.append), order="pre")
    named = [call for call in calls if getattr(call.op, "name", "") == "tirx.call_extern"]
    ahead = [int(call.args[2]) for call in named if "sepwise_ahead" in str(call.args[0])]
    added = [call.args[1] for call in named if "sepwise_prefetch" in str(call.args[0])]
    return ahead, [int(place.b) if isinstance(place, tirx.Add) else 0 for place in added]


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        (16, [0]),  # 64 bytes are new in each row: the last of them
        (28, [0, 64]),
        (32, [0, 64]),
        (8, [0]),
    ],
)
def test_a_tile_asks_once_for_the_lines_that_are_new_in_each_row(step: int, lines: list[int]) -> None:
    ahead, added = found(prefetch_next(marked(step=step)))
    assert ahead == [4 * PLANE]
    assert added == [4 * ROW * row + line for row in range(3) for line in lines]


def test_without_a_tile_before_it_all_lines_are_new() -> None:
    ahead, added = found(prefetch_next(marked(tiles=False)))
    assert ahead == [4 * PLANE]
    assert added == [4 * ROW * row + place for row in range(3) for place in (0, 16, 80)]  # 96 bytes: ends and what is between


@pytest.mark.parametrize(("rows_ahead", "rows"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2])])
def test_rows_that_this_iteration_reads_are_not_asked_for(rows_ahead: int, rows: list[int]) -> None:
    ahead, added = found(prefetch_next(marked(elements=rows_ahead * ROW)))
    assert ahead == [4 * ROW * rows_ahead]
    assert added == [4 * ROW * (row - rows[0]) for row in rows]


def test_rows_that_are_shorter_than_a_line_are_told_apart() -> None:
    block, tile = Var("block", PrimType("int32")), Var("tile", PrimType("int32"))
    places = [block * PLANE + tile * 8 + row * 24 + 4 * column for row in range(3) for column in range(4)]
    register = [tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), 4)]
    loads = [tirx.BufferLoad(DATA, [tirx.Ramp(place, tirx.IntImm("int32", 1), 4)]) for place in places]
    body = tirx.SeqStmt([tirx.BufferStore(SUMS, load, register) for load in loads])
    loop = tirx.For(tile, 0, 2, tirx.ForKind.SERIAL, body)
    marks = {PREFETCH_LOOP: "data,0"}
    _, added = found(prefetch_next(tirx.PrimFunc([], tirx.For(block, 0, 16, tirx.ForKind.SERIAL, loop, None, marks))))
    assert added == [4 * 24 * row for row in range(3)]


def test_versions_of_a_tile_ask_each_for_its_own() -> None:
    loop = marked(elements=3 * ROW).body
    chosen = tirx.IfThenElse(tirx.EQ(loop.loop_var, 0), tirx.SeqStmt(reads(loop.loop_var, 0, DATA, rows=1)), loop.body)
    both = tirx.For(loop.loop_var, 0, 16, loop.kind, chosen, None, loop.annotations)
    ahead, added = found(prefetch_next(tirx.PrimFunc([], both)))
    assert ahead == [4 * 3 * ROW] * 2
    assert added == [0, 16, 80, *(4 * ROW * row for row in range(3))]


def test_tiles_at_one_place_ask_for_nothing() -> None:
    assert found(prefetch_next(marked(step=0))) == ([], [])


def test_half_of_them_stand_at_the_head_and_half_where_their_rows_are_read() -> None:
    loop = prefetch_next(marked()).body.body if PREFETCH_LOOP not in str(prefetch_next(marked())) else None
    assert loop is not None, "the mark is gone"
    statements = list(loop.body.body.seq)
    asks = [number for number, each in enumerate(statements) if "sepwise_prefetch" in str(each)]
    assert asks == [1, 13, 14]  # behind the pointer; in front of the second row's last vector


def test_other_parameters_and_other_loops_ask_for_nothing() -> None:
    assert found(prefetch_next(marked(OTHER))) == ([], [])
    unmarked = marked().body
    plain = tirx.PrimFunc([], tirx.For(unmarked.loop_var, 0, 16, unmarked.kind, unmarked.body))
    assert str(prefetch_next(plain)) == str(plain)
