"""Steps that several schedules share, one function each, with what it makes of a loop nest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Range
from tvm.ir.expr import TensorLoad, Var

from sepwise.lowering.borders import mark_border
from sepwise.lowering.cost import apart_stay, is_prefetched, iterations_ahead, line_wait_cycles
from sepwise.lowering.prefetch import mark_next_tile, mark_streams
from sepwise.lowering.strategies.packing import boundary_bytes, oc_pack
from sepwise.lowering.tiling import mark_clamp, mark_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm.s_tir.schedule import LoopRV, SBlockRV

    from sepwise.lowering.compute import StageTensors
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.tiles import RowTile
    from sepwise.lowering.workload import ConvWorkload

__all__ = [
    "RowNest",
    "Source",
    "accumulate_in_registers",
    "ask_ahead",
    "ask_for_next_weights",
    "mark_rows",
    "multiply_rows",
    "passes_of_rows",
    "split_reduction",
    "stage_rows",
    "start_from_bias",
    "tile_flat_pixels",
    "tile_rectangle",
    "tile_rows",
    "unroll_lanes",
]

MOST_SCHEDULED_FMAS = 100
"""Multiply-adds of one iteration that LLVM schedules without loading all of its inputs first."""

REGISTERS_TO_LOAD_AHEAD = 32
"""Vector registers of an x86 core that has some left beside a register tile."""


NEXT_TILE_SHARE = 0.25
"""Share of level 1 that a reduction may take so that what it asks for of the next tile stays there."""


def split_reduction(sch: s_tir.Schedule, ic: LoopRV, channels: int, lanes: int) -> list[LoopRV]:
    """`for ic` -> `for ic_o, ic_i`, where `ic_i` stays inside one block of the packed input.

    So `ic // lanes` is the same for a whole `ic_i`, also where channels do not fill their last block.

    Args:
        sch: The schedule.
        ic: The reduction over channels.
        channels: Its extent.
        lanes: Lanes of the packed input, 0 for a plain one.

    Returns:
        The loops, outer first.
    """
    inner = math.gcd(channels, lanes) if lanes else channels
    return list(sch.split(ic, [None, inner]))


def accumulate_in_registers(
    sch: s_tir.Schedule,
    total: SBlockRV,
    output: SBlockRV,
    steps: Sequence[LoopRV],
    *,
    unrolled: Sequence[LoopRV],
    vector: LoopRV,
    output_loops: Sequence[LoopRV],
) -> None:
    """`for tile: for steps` -> `start registers; for steps: unrolled tile: vector FMA; epilogue from registers`.

    Args:
        sch: The schedule.
        total: The reduction block, already computed at the tile's outer loop.
        output: Its epilogue.
        steps: Reduction loops, outer first.
        unrolled: Tile loops of the reduction block.
        vector: Its loop over lanes.
        output_loops: The same tile loops of the epilogue, the last one over lanes.
    """
    sch.reorder(*steps, *unrolled, vector)
    sch.set_scope(total, 0, "local")
    for loop in unrolled:
        sch.unroll(loop)
    sch.vectorize(vector)
    for loop in output_loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(output_loops[-1])
    init = sch.decompose_reduction(total, steps[0])
    init_loops = sch.get_loops(init)
    for loop in init_loops[-1 - len(unrolled) : -1]:
        sch.unroll(loop)
    sch.vectorize(init_loops[-1])


def tile_rectangle(sch: s_tir.Schedule, names: StageTensors, *, rank: int, rows: int, pixels: int) -> list[LoopRV]:
    """`for ..., oh, ow: for taps` -> `for ..., oh_o, ow_o: unrolled taps, oh_i, ow_i: vector FMA; epilogue`.

    The input is read as it is: what would be staged of it is computed where it is read.

    Args:
        sch: The schedule.
        names: The convolution's blocks.
        rank: Its spatial axes.
        rows: Extent of `oh_i`.
        pixels: Extent of `ow_i`.

    Returns:
        The loops over tiles, outer first.
    """
    if names.pad is not None:
        sch.compute_inline(sch.get_sblock(names.pad))
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    *outer, oh, ow, oc_v = sch.get_loops(output)
    oh_o, oh_i = sch.split(oh, [None, rows])
    ow_o, ow_i = sch.split(ow, [None, pixels])
    sch.reorder(oh_o, ow_o, oh_i, ow_i, oc_v)
    sch.compute_at(total, ow_o, preserve_unit_loops=True)
    *_, t_oh_i, t_ow_i, t_oc_v = sch.get_loops(total)[: -rank - 1]
    taps = sch.get_loops(total)[-rank - 1 :]
    accumulate_in_registers(
        sch, total, output, taps, unrolled=[t_oh_i, t_ow_i], vector=t_oc_v, output_loops=[oh_i, ow_i, oc_v]
    )
    for tap in taps:
        sch.unroll(tap)
    return [*outer, oh_o, ow_o]


class RowNest(NamedTuple):
    """The loops of a convolution over tiles of pixels of one row.

    Attributes:
        tasks: Over images, outer axes and row tiles, outer first.
        oc_t: Over tiles of output channels.
        oh_i: Over the rows of a task.
        ow_o: Over tiles of pixels.
        reduction: Taps and channels, outer first.
        registers: Output channel vectors and pixels of a tile, in the reduction.
        vector: Its lanes.
        output_loops: Vectors, pixels and lanes in the epilogue.
    """

    tasks: list[LoopRV]
    oc_t: LoopRV
    oh_i: LoopRV
    ow_o: LoopRV
    reduction: list[LoopRV]
    registers: list[LoopRV]
    vector: LoopRV
    output_loops: list[LoopRV]


def tile_rows(sch: s_tir.Schedule, names: StageTensors, *, rank: int, tile: RowTile) -> RowNest:
    """`for n, oc_o, [od], oh, ow: for steps` -> `for n, [od], oh_o, oc_t, oh_i, ow_o: for oc_i, ow_i, oc_v: steps; epilogue`.

    Args:
        sch: The schedule.
        names: The convolution's blocks.
        rank: Its spatial axes.
        tile: Extents of `oh_i`, `ow_i` and `oc_i`.

    Returns:
        The loops; `accumulate_in_registers` brings the reduction outside of the registers.
    """
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    n, oc_o, *depth, oh, ow, oc_v = sch.get_loops(output)
    oc_t, oc_i = sch.split(oc_o, [None, tile.oc_vectors])
    oh_o, oh_i = sch.split(oh, [None, tile.rows])
    ow_o, ow_i = sch.split(ow, [None, tile.pixels])
    sch.reorder(n, *depth, oh_o, oc_t, oh_i, ow_o, oc_i, ow_i, oc_v)
    sch.compute_at(total, ow_o, preserve_unit_loops=True)
    loops = sch.get_loops(total)
    *outer, t_oc_v = loops[: -rank - 1]
    return RowNest(
        [n, *depth, oh_o], oc_t, oh_i, ow_o, loops[-rank - 1 :], [outer[-1 - rank], outer[-1]], t_oc_v, [oc_i, ow_i, oc_v]
    )


def mark_rows(sch: s_tir.Schedule, nest: RowNest, workload: ConvWorkload, tile: RowTile) -> None:
    """Notes what is a task and what stands out behind the output, of the loops that `tile_rows` made of its last stage.

    Args:
        sch: The schedule.
        nest: The loops.
        workload: Gives the output's extents.
        tile: The tile.
    """
    *_, height, width = workload.spatials[-1]
    for loop in nest.tasks:
        mark_task(sch, loop)
    mark_clamp(sch, nest.oc_t, math.ceil(workload.stages[-1].out_channels / workload.output_lanes), tile.oc_vectors)
    mark_clamp(sch, nest.tasks[-1], height, tile.rows)
    mark_clamp(sch, nest.ow_o, width, tile.pixels)


def multiply_rows(
    sch: s_tir.Schedule, workload: ConvWorkload, device: Device, names: StageTensors, *, tile: RowTile, source: Source
) -> RowNest:
    """`tile_rows` of the flat last stage of a chain, which reads rows that a task has staged; its reduction outside of the tile.

    Args:
        sch: The schedule.
        workload: The chain.
        device: The target.
        names: The last stage's blocks.
        tile: Its tile.
        source: The rows that it reads.

    Returns:
        The loops.
    """
    stage = workload.stages[-1]
    nest = tile_rows(sch, names, rank=len(stage.kernel), tile=tile)
    steps = split_reduction(sch, nest.reduction[-1], stage.in_channels, workload.output_lanes)
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    accumulate_in_registers(
        sch, total, output, steps, unrolled=nest.registers, vector=nest.vector, output_loops=nest.output_loops
    )
    steps[-1] = unroll_lanes(sch, device, steps[-1], tile.pixels * tile.oc_vectors)
    passes = passes_of_rows(nest, workload, tile)
    ask_ahead(sch, device, workload, steps, tile=(tile.pixels, tile.oc_vectors), passes=passes, source=source)
    return nest


def passes_of_rows(nest: RowNest, workload: ConvWorkload, tile: RowTile) -> list[tuple[LoopRV, int]]:
    """Gives the loops of a task in which each tile of channels reads its weights again, for `ask_ahead`.

    Args:
        nest: What `tile_rows` made of the workload's last stage.
        workload: Gives the output's extents.
        tile: The tile.

    Returns:
        Loops over rows and over tiles of pixels, with their iterations.
    """
    return [(nest.oh_i, tile.rows), (nest.ow_o, math.ceil(workload.spatials[-1][-1] / tile.pixels))]


def tile_flat_pixels(
    sch: s_tir.Schedule, names: StageTensors, *, channels: int, lanes: int, pixels: int, oc_vectors: int
) -> tuple[list[LoopRV], list[LoopRV]]:
    """`for n, oc_o, p: for ic` -> `for n, oc_t, p_o: for ic_o, ic_i: unrolled oc_i, p_i: vector FMA; epilogue`.

    Args:
        sch: The schedule.
        names: The blocks of a convolution whose spatial axes are one.
        channels: Input channels of a group.
        lanes: Lanes of the packed input, 0 for a plain one.
        pixels: Extent of `p_i`.
        oc_vectors: Extent of `oc_i`.

    Returns:
        The loops over tiles, outer first, and the loops of the reduction.
    """
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    n, oc_o, p, oc_v = sch.get_loops(output)
    oc_t, oc_i = sch.split(oc_o, [None, oc_vectors])
    p_o, p_i = sch.split(p, [None, pixels])
    sch.reorder(n, oc_t, p_o, oc_i, p_i, oc_v)
    sch.compute_at(total, p_o, preserve_unit_loops=True)
    _, t_oc_i, t_p_i, t_oc_v, ic = sch.get_loops(total)[3:]
    steps = split_reduction(sch, ic, channels, lanes)
    accumulate_in_registers(
        sch, total, output, steps, unrolled=[t_oc_i, t_p_i], vector=t_oc_v, output_loops=[oc_i, p_i, oc_v]
    )
    return [n, oc_t, p_o], steps


def unroll_lanes(sch: s_tir.Schedule, device: Device, ic_i: LoopRV, accumulators: int) -> LoopRV:
    """`for ic_i: load; FMA` -> `for ic_u: load what its steps need; unrolled: FMA`, where registers are left for it.

    AArch64 multiplies by the lanes of inputs that it loads as vectors. With the 32 registers of AVX-512 LLVM loads the weights of
    later steps early, which hides where they come from: where level 1 does not hold a tile's weights, pointwise convolutions take
    0.89 to 0.99 of the time, elsewhere 0.98 to 1.03, dense 3 x 3 ones 0.92 to 0.98. With the 16 of AVX2 it hides nothing (1.00 to
    1.03; Sapphire Rapids, one thread, 8 tiles of each of 10 shapes in turn, 2026-11-24).

    Args:
        sch: The schedule.
        device: The target.
        ic_i: The inner loop of the reduction, as `split_reduction` gives it.
        accumulators: Vectors of the register tile.

    Returns:
        The loop that is left of it.
    """
    if not device.multiplies_by_lane and device.vector_registers < REGISTERS_TO_LOAD_AHEAD:
        return ic_i
    channels = int(sch.get(ic_i).extent)
    steps = max(n for n in range(1, channels + 1) if channels % n == 0 and (n == 1 or n * accumulators <= MOST_SCHEDULED_FMAS))
    left, unrolled = sch.split(ic_i, [None, steps])
    sch.unroll(unrolled)
    return left


class Source(NamedTuple):
    """A packed tensor that a reduction reads.

    Attributes:
        name: Of its buffer.
        nbytes: Of the whole tensor.
        pixels: Of one block of channels.
    """

    name: str
    nbytes: int
    pixels: int

    @classmethod
    def input_of(cls, workload: ConvWorkload) -> Source:
        """The input of a workload."""
        nbytes, _ = boundary_bytes(workload)
        return cls("data", nbytes, math.prod(workload.spatial))


def ask_ahead(
    sch: s_tir.Schedule,
    device: Device,
    workload: ConvWorkload,
    loops: Sequence[LoopRV],
    *,
    tile: tuple[int, int],
    passes: Sequence[tuple[LoopRV, int]],
    source: Source | None,
    index: int = -1,
) -> None:
    """`for ic_o: load weights, inputs; FMA` -> `for ic_o: load, prefetch weights and inputs of later iterations; FMA`.

    On x86 the passes of a tile together ask for the weights of the next one; inputs are left to the prefetcher. Else inputs are
    those of the same pixels some blocks of channels on, as what is asked for earlier is driven out before it is read; those of
    the next tile where a whole reduction takes little of level 1, and no more lines of a set than it has ways. Where a core would
    not wait, nothing changes.

    Args:
        sch: The schedule.
        device: The target.
        workload: The weights of its stage are packed as `oc_pack` says.
        loops: The stage's reduction, those that are not unrolled.
        tile: Output pixels and output channel vectors of the register tile.
        passes: Loops over the tiles of a task that read the same weights, with their iterations in a task.
        source: What it reads, None where that is padded or each pixel reads several.
        index: The stage.
    """
    stage, (pixels, oc_vectors) = workload.stages[index], tile
    blocks = math.ceil(stage.out_channels / workload.output_lanes)
    reduction, pack = stage.in_channels_per_group * math.prod(stage.kernel), oc_pack(blocks, oc_vectors)
    weight = f"weight{index % len(workload.stages)}"
    if device.isa == "x86":
        if math.prod(count for _, count in passes) > 1:  # a single pass leaves memory no rest
            ask_for_next_weights(sch, passes, loops, weight, reduction * oc_vectors * device.lanes)
        return
    weights, taken = reduction * device.vector_bytes, reduction * pixels * device.lane_bytes
    iteration_cycles = device.lanes * pixels * oc_vectors / device.fma_ports
    ahead = iterations_ahead(
        device,
        total_bytes=weights * blocks,
        footprint_bytes=weights * oc_vectors + taken,
        panels=oc_vectors // pack,
        passes=math.prod(count for _, count in passes),
        iteration_cycles=iteration_cycles,
    )
    distances = {weight: ahead * device.lanes * pack * device.lanes} if ahead else {}
    whole_blocks = int(sch.get(loops[-1]).extent) == 1  # else several iterations read the same inputs
    if source is not None and whole_blocks and is_prefetched(device, source.nbytes):
        lanes = workload.output_lanes
        plane = source.pixels * lanes
        near = weights * oc_vectors + 2 * taken <= device.l1d_bytes * NEXT_TILE_SHARE
        if near and apart_stay(device, math.ceil(stage.in_channels / lanes), plane * device.lane_bytes):
            distances[source.name] = pixels * stage.strides[-1] * lanes
        else:
            distances[source.name] = max(1, math.ceil(line_wait_cycles(device, source.nbytes) / iteration_cycles)) * plane
    mark_streams(sch, loops, distances)


def ask_for_next_weights(
    sch: s_tir.Schedule, passes: Sequence[tuple[LoopRV, int]], loops: Sequence[LoopRV], parameter: str, elements: int
) -> None:
    """`for p, ic_o, ic_i: load weights; FMA` -> `for p, ic_o: prefetch weights of the next tile; for ic_i: load; FMA`.

    A reduction of one loop asks in each of its iterations.

    Args:
        sch: The schedule.
        passes: Loops in which a tile's weights are read again, with their iterations in a task.
        loops: The reduction, those loops that are not unrolled.
        parameter: The weights' name.
        elements: Of a tile's weights, which lie together; the next tile's lie behind them.
    """
    extents = ((loop, int(sch.get(loop).extent)) for loop in loops)
    longer = [(loop, extent) for loop, extent in extents if extent > 1]
    if longer:  # else a tile reads its weights at once
        mark_next_tile(sch, [*passes, *(longer[:-1] or longer)], parameter, elements)


def stage_rows(sch: s_tir.Schedule, pad: SBlockRV, loop: LoopRV, workload: ConvWorkload) -> None:
    """`loop: compute` -> `loop: copy the padded rows that it reads; compute`.

    Of packed rows a vector is copied at once; of plain ones LLVM copies vectors where no element is tested, so the pads and
    what lies behind them are apart.

    Args:
        sch: The schedule.
        pad: The block that stages the padded input.
        loop: The loop whose iterations read whole rows.
        workload: The convolution, whose first stage reads them.
    """
    sch.compute_at(pad, loop, preserve_unit_loops=True)
    last = sch.get_loops(pad)[-1]
    if workload.input_lanes:
        sch.vectorize(last)
        return
    begin = workload.stages[0].pads_begin[-1]
    mark_border(sch, last, begin, max(0, int(sch.get(last).extent) - begin - workload.spatial[-1]))


def start_from_bias(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """`total = 0; accumulate; output = f(total + bias)` -> `total = bias; accumulate; output = f(total)`.

    Spares the addition for each output. It is a sum of as many terms in another order, each partial sum rounded at the size
    of the bias: harmless in float32 while the bias is of the sum's size. In float16, which has
    few digits to lose, a bias larger than the sum costs most of the sum's, so there it stays last.

    Args:
        function: Scheduled, the reductions decomposed.

    Returns:
        The function with such sums replaced; others, and those in float16, stay as they are.
    """
    sums: list[tirx.Add] = []
    started: list[tirx.Add] = []

    def note(total: tirx.Add) -> None:
        loads = isinstance(total.a, TensorLoad) and isinstance(total.b, TensorLoad) and total.a.source.dtype != "float16"
        if loads and total.a.source.scope() == "local" and any(total.b.source.same_as(each) for each in function.params):
            sums.append(total)

    def on_block(block: s_tir.SBlock) -> s_tir.SBlock:
        store = block.body
        if not (isinstance(store, tirx.BufferStore) and isinstance(store.value, tirx.FloatImm) and float(store.value) == 0.0):
            return block
        biased = next((total for total in sums if total.a.source.same_as(store.buffer)), None)
        if biased is None:
            return block
        started.append(biased)
        assert all(isinstance(index, Var) for index in biased.a.indices), "a register is read at the axes of its block"
        places = dict(zip(biased.a.indices, store.indices, strict=True))
        indices = [tvm_ffi.structural_map(index, (Var, lambda v: places[v])) for index in biased.b.indices]
        region = tirx.BufferRegion(biased.b.source, [Range.from_min_extent(index, 1) for index in indices])
        start = tirx.BufferStore(store.buffer, tirx.BufferLoad(biased.b.source, indices), store.indices)
        return s_tir.SBlock(block.iter_vars, [region], block.writes, block.name_hint, start)

    def on_sum(total: tirx.Add) -> Any:
        if not (isinstance(total.a, TensorLoad) and isinstance(total.b, TensorLoad)):
            return total
        sources = total.a.source, total.b.source  # what is added to `total + bias`, such as a residual, stays
        known = any(sources[0].same_as(each.a.source) and sources[1].same_as(each.b.source) for each in started)
        return total.a if known else total

    tvm_ffi.structural_walk(function.body, (tirx.Add, note))
    body = tvm_ffi.structural_map(function.body, (s_tir.SBlock, on_block))
    return function.with_body(tvm_ffi.structural_map(body, (tirx.Add, on_sum)))
