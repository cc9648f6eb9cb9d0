"""Prefetches: which lines a tile asks for, how far ahead, and where it does so; what asks for nothing; and what caches make of it."""

import itertools
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import Call, Var

from sepwise.lowering import device, estimate
from sepwise.lowering.codegen import build_object, lower_kernel, tvm_target
from sepwise.lowering.cost import LINE_BYTES
from sepwise.lowering.prefetch import AHEAD_LOOP, MOST_LINES, PREFETCH_LOOP, ask_for_next_tiles, prefetch_next
from sepwise.lowering.runner import EmulatedRunner
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.strategies.base import Tile
from sepwise.lowering.strategies.depthwise_tile import DepthwiseTile
from sepwise.lowering.strategies.pointwise import PointwiseTile
from sepwise.lowering.strategies.separable import SeparableTile
from sepwise.lowering.strategies.tiles import RowTile
from sepwise.lowering.trials import Step, build_trials
from sepwise.lowering.workload import ConvWorkload, Stage

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


def test_a_line_that_no_read_begins_in_is_asked_for_before_the_read_behind_it() -> None:
    """Reads 12 floats apart, lines of 16: 36 and 20 floats behind the first are asked for, and 20 is between two reads."""
    block = Var("block", PrimType("int32"))
    register = [tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), 4)]
    ramps = [tirx.Ramp(block * PLANE + 12 * place, tirx.IntImm("int32", 1), 4) for place in range(4)]
    body = tirx.SeqStmt([tirx.BufferStore(SUMS, tirx.BufferLoad(DATA, [ramp]), register) for ramp in ramps])
    after = prefetch_next(tirx.PrimFunc([], tirx.For(block, 0, 16, tirx.ForKind.SERIAL, body, None, {PREFETCH_LOOP: "data,0"})))
    assert found(after)[1] == [0, 4 * 4, 4 * 20, 4 * 36]
    order: list[str] = []
    tvm_ffi.structural_walk(after.body, (tirx.Stmt, lambda each: order.append(type(each).__name__)), order="pre")
    kinds = [kind for kind in order if kind in ("Evaluate", "BufferStore")]
    assert kinds == ["Evaluate"] * 2 + ["BufferStore"] * 2 + ["Evaluate"] * 2 + ["BufferStore"] * 2


def test_other_parameters_and_other_loops_ask_for_nothing() -> None:
    assert found(prefetch_next(marked(OTHER))) == ([], [])
    unmarked = marked().body
    plain = tirx.PrimFunc([], tirx.For(unmarked.loop_var, 0, 16, unmarked.kind, unmarked.body))
    assert str(prefetch_next(plain)) == str(plain)


def depthwise(channels: int, stride: int = 1) -> Stage:
    return Stage(channels, channels, channels, (3, 3), (stride, stride), (1, 1), (1, 1), (1, 1))


def pointwise(channels: int, out_channels: int, stride: int = 1) -> Stage:
    return Stage(channels, out_channels, 1, (1, 1), (stride, stride), (0, 0), (0, 0), (1, 1))


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("name", "size", "stages", "tile", "most_left"),
    [
        ("cortex-a53", 56, [depthwise(32)], DepthwiseTile(4, 4, 15, 14), 0.1),
        ("cortex-a53", 112, [depthwise(8, 2)], DepthwiseTile(2, 8, 15, 28), 0.1),
        ("cortex-a55", 28, [pointwise(64, 24)], PointwiseTile(8, 2, 98), 0.05),  # inputs of the next tile
        ("cortex-a55", 28, [pointwise(256, 24)], PointwiseTile(8, 2, 98), 0.05),  # of blocks further on
        ("cortex-a53", 14, [pointwise(320, 60)], RowTile(7, 7, 3), 0.2),  # no registers for streams
        ("cortex-a53", 28, [pointwise(128, 24, 2)], RowTile(7, 7, 2), 0.2),  # inputs apart from each other
        ("cortex-a72", 112, [pointwise(64, 16)], PointwiseTile(4, 4, 784), 0.1),  # inputs of the next tile would share too few sets
        ("cortex-a53", 28, [depthwise(64), pointwise(64, 48)], SeparableTile(4, 7, 3, 4), 0.3),
    ],
)
def test_lines_that_are_asked_for_are_there_when_they_are_read(
    name: str, size: int, stages: list[Stage], tile: Tile, most_left: float
) -> None:
    target = device.get(name)
    if target.emulated and shutil.which(str(target.emulator)) is None:
        pytest.skip(f"{target.emulator} is missing: apt-get install qemu-user")
    deaf = replace(target, cpu="cortex-a57", l2_bytes=1 << 40)  # of which no latency is known, and which never reads from memory
    chain = ConvWorkload(1, (size, size), tuple(stages), False, None, 4, 4)
    able = (each for each in strategies_for(chain) if each.applies(chain, target) is None)
    strategy = next(each for each in able if isinstance(tile, type(each.tiles(chain, target, 1)[0])))
    program = build_trials(chain, [[Step(chain, strategy, tile, seen)] for seen in (target, deaf)], target)
    rng, geometry = np.random.default_rng(0), estimate.cache_geometry(target)
    assert geometry is not None
    with EmulatedRunner(program, target) as runner:
        inputs = {value.name: rng.standard_normal(value.type.shape, dtype=np.float32) for value in program.inputs}
        counts = runner.count(inputs, caches=[geometry])
    left, waited = (sum(run.misses[0].l1_demanded for run in call.runs.values()) for call in counts.calls)
    assert waited > size * size / 4
    assert left < most_left * waited


# Weights of the next tile ------------------------------------------------------------------------------------------------

PASSES, BLOCKS, STEPS, VECTORS, LANES = 3, 4, 8, 2, 8


def tile_of_weights(marks: dict[str, str], elements: int) -> tuple[tirx.PrimFunc, list[Var]]:
    """`for t: for p: for ic_o: for ic_i: sum += w[t, ic_o, ic_i, vectors]`, the loops over passes and blocks with marks."""
    t, p, ic_o, ic_i = loops = [Var(name, PrimType("int32")) for name in ("t", "p", "ic_o", "ic_i")]
    register = [tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), LANES)]
    sums = []
    for vector in range(VECTORS):
        place = t * elements + (ic_o * STEPS + ic_i) * VECTORS * LANES + vector * LANES
        load = tirx.BufferLoad(OTHER, [tirx.Ramp(place, tirx.IntImm("int32", 1), LANES)])
        sums.append(tirx.BufferStore(SUMS, tirx.BufferLoad(SUMS, register) + load, register))
    body: tirx.Stmt = tirx.SeqStmt(sums)
    for loop, extent in reversed(list(zip(loops, (5, PASSES, BLOCKS, STEPS), strict=True))):
        annotations = {AHEAD_LOOP: marks[loop.name]} if loop.name in marks else {}
        body = tirx.For(loop, 0, extent, tirx.ForKind.SERIAL, body, None, annotations)
    return tirx.PrimFunc([], body), [p, ic_o]


def asked_lines(function: tirx.PrimFunc, loops: list[Var]) -> list[int]:
    """The lines behind the tile's first weights that all iterations of some loops ask for, in their order."""
    calls: list[Call] = []
    tvm_ffi.structural_walk(function.body, (Call, calls.append), order="pre")
    places = [call.args[1].b for call in calls if "sepwise_prefetch_weights" in str(call.args)]
    analyzer, lines = tvm.sym.Analyzer(), []
    for values in itertools.product(range(PASSES), range(BLOCKS)):
        known = dict(zip((loop.name for loop in loops), values, strict=True))
        for place in places:
            counted = tvm_ffi.structural_map(place, (Var, lambda v, known=known: tirx.IntImm("int32", known.get(v.name, 0))))
            nbytes = int(analyzer.simplify(counted))
            assert nbytes % LINE_BYTES == 0
            lines.append(nbytes // LINE_BYTES)
    return lines


@pytest.mark.parametrize("blocks_of", [1, 4])
def test_the_iterations_of_a_tile_ask_for_all_lines_of_the_next(blocks_of: int) -> None:
    elements = blocks_of * BLOCKS * STEPS * VECTORS * LANES
    lines = elements * 4 // LINE_BYTES
    function, loops = tile_of_weights({"p": f"{PASSES}", "ic_o": f"{BLOCKS};weight0,{elements}"}, elements)
    after = ask_for_next_tiles(function)
    asked = asked_lines(after, loops)
    each = math.ceil(lines / (PASSES * BLOCKS))
    assert len(asked) == PASSES * BLOCKS * each
    assert set(range(lines, 2 * lines)) <= set(asked) <= set(range(lines, 2 * lines + each))
    assert asked == sorted(asked)
    assert AHEAD_LOOP not in str(after)
    assert str(after).count("pragma_import_llvm") == 1


def test_what_so_few_iterations_cannot_ask_for_is_left_to_the_prefetcher() -> None:
    elements = (MOST_LINES * PASSES * BLOCKS + 1) * LINE_BYTES // 4
    function, _ = tile_of_weights({"p": f"{PASSES}", "ic_o": f"{BLOCKS};weight0,{elements}"}, elements)
    after = ask_for_next_tiles(function)
    assert "sepwise_prefetch" not in str(after)
    assert AHEAD_LOOP not in str(after)


ROWS = ConvWorkload(1, (14, 14), (Stage(64, 64, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),), False, None, 8, 8)
DENSE = replace(ROWS, stages=(replace(ROWS.stages[0], kernel=(3, 3), pads_begin=(1, 1), pads_end=(1, 1)),))
FILTER = replace(DENSE.stages[0], groups=64)


@pytest.mark.parametrize(
    ("workload", "name", "asks"),
    [
        (ROWS, "pointwise", True),
        (replace(ROWS, spatial=(1, 2)), "pointwise", False),  # in a single pass
        (DENSE, "dense", True),
        (DENSE, "winograd 4x4", True),
        (replace(DENSE, stages=(FILTER, ROWS.stages[0])), "depthwise+pointwise", True),
        (replace(DENSE, stages=(ROWS.stages[0], FILTER, ROWS.stages[0])), "pointwise+depthwise+pointwise", True),
        (replace(DENSE, stages=(FILTER,)), "depthwise tile", False),
    ],
)
def test_kernels_that_ask_for_weights_on_x86(workload: ConvWorkload, name: str, asks: bool) -> None:
    v3 = device.get("x86-64-v3")
    (strategy,) = (each for each in strategies_for(workload) if each.name == name)
    kernel = lower_kernel(strategy.schedule(workload, v3, strategy.tiles(workload, v3, 1)[0]).function, "kernel", v3)
    assert ("sepwise_prefetch_weights" in str(kernel.function)) == asks


def test_a_tile_that_reads_its_weights_at_once_asks_for_none() -> None:
    """Of one input channel, and so many vectors that each tile has pointers of its own to its weights."""
    v3 = device.get("x86-64-v3")
    workload = replace(ROWS, spatial=(4, 4), stages=(replace(ROWS.stages[0], in_channels=1, out_channels=48),))
    (strategy,) = (each for each in strategies_for(workload) if each.name == "pointwise")
    kernel = lower_kernel(strategy.schedule(workload, v3, PointwiseTile(2, 6, 8)).function, "kernel", v3)
    assert "sepwise_prefetch_weights" not in str(kernel.function)
    assert build_object({"kernel": kernel}, tvm_target(v3))


def test_arm_does_not_ask_by_tiles() -> None:
    a72 = device.get("cortex-a72")
    workload = replace(ROWS, input_lanes=a72.lanes, output_lanes=a72.lanes)
    (strategy,) = (each for each in strategies_for(workload) if each.name == "pointwise")
    kernel = lower_kernel(strategy.schedule(workload, a72, strategy.tiles(workload, a72, 1)[0]).function, "kernel", a72)
    assert "sepwise_prefetch_weights" not in str(kernel.function)
