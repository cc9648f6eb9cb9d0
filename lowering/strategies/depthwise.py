"""Depthwise convolution on the packed layout: each lane is a channel, a row of output pixels in registers.

# for n, oc_o, [od], oh_o task:               accumulators: ow_i pixels, 7 of 32; one weight per tap
#   copy the padded input rows of oh_o        [oh_i * stride + kh, iw, oc_v], first-level cache
#   for oh_i, ow_o:
#     for kh: unrolled kw, ow_i:              one step: ow_i loads, one weight, ow_i FMA
#       vector oc_v FMA
#     unrolled ow_i: epilogue, store          [n, oc_o, oh, ow, oc_v]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    COPY_CYCLES,
    EPILOGUE_CYCLES,
    LINE_BYTES,
    TILE_OVERHEAD_CYCLES,
    copy_cycles,
    parallel_cycles,
    waiting_cycles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import boundary_bytes, conv_packer, true_shapes
from sepwise.lowering.strategies.steps import accumulate_in_registers, stage_rows, start_from_bias
from sepwise.lowering.strategies.tiles import MOST_UNROLLED_FMAS, row_tiles
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm.s_tir.schedule import LoopRV

    from sepwise.lowering.compute import StageTensors
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.tiles import RowTile
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["DepthwiseStrategy", "depthwise_cycles", "refuse_shared_lanes", "staging_wait_cycles", "tile_row"]


class DepthwiseStrategy:
    """Each lane is a channel."""

    name = "depthwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses lanes that share a channel, and plain inputs."""
        del device
        return refuse_shared_lanes(workload)

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[RowTile]:
        """Register tiles of one vector, times row counts whose copied input fits the second-level cache."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        *depth, _, in_width = compute.input_extents(stage, (1,) * len(outer) + (1, width))
        row_vectors = math.prod(depth) * stage.strides[-2] * in_width
        row_bytes = row_vectors * device.vector_bytes if stage.padded else 0
        found = row_tiles(device, height, width, 1, staged_row_bytes=row_bytes)
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: RowTile
    ) -> float:
        """The copy of the padded rows and the register tiles."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        row_tasks = math.ceil(height / tile.rows)
        cycles = depthwise_cycles(stage, device, tile.rows, width, tile.pixels, staged=stage.padded)
        cycles += staging_wait_cycles(workload, device, tile.rows) * stage.padded
        tasks = workload.batch * blocks * math.prod(outer) * row_tasks
        return parallel_cycles(tasks * cycles, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: RowTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.conv(workload, domain, blocks, (1,))
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        n, oc_o, *depth, oh, _, _ = sch.get_loops(sch.get_sblock(names.output))
        oh_o, _ = sch.split(oh, [None, tile.rows])
        ow_o = tile_row(sch, names, workload, pixels=tile.pixels, rows=oh_o)
        for loop in (n, oc_o, *depth, oh_o):
            mark_task(sch, loop)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, (1,)))
        return Implementation(function, conv_packer(workload, (1,)))


def tile_row(sch: s_tir.Schedule, names: StageTensors, workload: ConvWorkload, *, pixels: int, rows: LoopRV) -> LoopRV:
    """`rows: for ow: for taps` -> `rows: copy what they read; for ow_o: unrolled taps, ow_i: vector FMA; epilogue`.

    Args:
        sch: The schedule.
        names: The blocks of the workload's first stage.
        workload: The convolutions.
        pixels: Extent of `ow_i`.
        rows: The loop whose iterations read whole rows.

    Returns:
        The loop over tiles.
    """
    stage = workload.stages[0]
    rank = len(stage.kernel)
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    *_, ow, oc_v = sch.get_loops(output)
    ow_o, ow_i = sch.split(ow, [None, pixels])
    sch.compute_at(total, ow_o, preserve_unit_loops=True)
    if names.pad is not None:
        stage_rows(sch, sch.get_sblock(names.pad), rows, workload)
    *_, t_ow_i, t_oc_v = sch.get_loops(total)[: -rank - 1]
    taps = sch.get_loops(total)[-rank - 1 :]
    accumulate_in_registers(sch, total, output, taps, unrolled=[t_ow_i], vector=t_oc_v, output_loops=[ow_i, oc_v])
    for tap in _unrolled_taps(taps, stage, pixels):
        sch.unroll(tap)
    return ow_o


def _unrolled_taps(taps: Sequence[LoopRV], stage: Stage, pixels: int) -> Sequence[LoopRV]:
    """Chooses the loops over taps to unroll: all, or as many inner ones as keep the code small.

    Args:
        taps: Loops over the kernel and the one channel of a group, outer first.
        stage: The convolution.
        pixels: Multiply-adds of one tap.

    Returns:
        The inner loops to unroll.
    """
    extents = [*stage.kernel, 1]
    fmas, first = pixels, len(taps)
    while first > 0 and fmas * extents[first - 1] <= MOST_UNROLLED_FMAS:
        first -= 1
        fmas *= extents[first]
    return taps[first:]


def refuse_shared_lanes(workload: ConvWorkload) -> Refusal | None:
    """Refuses what is no single convolution in which each lane of the output reads its own lane of the input.

    Args:
        workload: The convolutions of one kernel.

    Returns:
        Why, or None.
    """
    if len(workload.stages) != 1:
        return Refusal("one convolution at a time")
    source = compute.lane_source(workload.stages[0], workload.output_lanes)
    if source is not compute.LaneSource.LANE:
        return Refusal(f"a lane reads {source.value}")
    if workload.input_lanes != workload.output_lanes:
        return Refusal("input and output are packed differently")
    return None


def staging_wait_cycles(workload: ConvWorkload, device: Device, rows: int) -> float:
    """Predicts how long the copy of the padded rows of one vector of channels waits for its lines.

    Args:
        workload: Its first stage reads them.
        device: The core; one that follows a single stream does not follow both what is read and what is written.
        rows: Output rows of that stage.

    Returns:
        Cycles.
    """
    stage, (*_, height, width) = workload.stages[0], workload.spatial
    vectors = math.prod(stage.kernel[:-2]) * min(rows * stage.strides[-2], height) * width
    nbytes, _ = boundary_bytes(workload)
    lines = vectors * device.vector_bytes / LINE_BYTES
    return waiting_cycles(device, nbytes, lines=lines, streams=2, instructions=2 * vectors)


def depthwise_cycles(stage: Stage, device: Device, rows: int, width: int, pixels: int, *, staged: bool) -> float:
    """Predicts the cycles of some rows of one vector of channels.

    Args:
        stage: The convolution.
        device: Ports and caches.
        rows: Output rows.
        width: Output pixels of a row.
        pixels: Pixels in registers.
        staged: Whether the input rows are copied first.

    Returns:
        Cycles for the copy and the register tiles.
    """
    taps = math.prod(stage.kernel)
    *depth, in_rows, in_width = compute.input_extents(stage, (1,) * (len(stage.kernel) - 2) + (rows, width))
    step = max(pixels / device.fma_ports, (pixels + 1) / device.load_ports)
    chain = taps * device.fma_latency_cycles
    tile = max(taps * step, chain) + pixels * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES
    cycles = rows * math.ceil(width / pixels) * tile
    if staged:
        vectors = math.prod(depth) * in_rows * in_width
        cycles += vectors * COPY_CYCLES
        staged_bytes = vectors * device.vector_bytes
        cycles += copy_cycles(device, 2 * staged_bytes, footprint_bytes=staged_bytes)  # written, and read
    return cycles
