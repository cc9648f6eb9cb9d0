"""Depthwise then pointwise in one kernel: the depthwise rows never leave the cache.

# for n, oh_o task:                           accumulators: ow_i pixels * oc_i vectors, 14 of 32 for 7 x 2
#   for ic_o:                                 (depthwise)
#     copy the padded input rows of oh_o      [ih, iw, ic_v], first-level cache
#     for oh_i, ow_o: unrolled taps, ow_i     rows -> [ic_o, oh_i, ow, ic_v], second-level cache
#   for oc_t, oh_i, ow_o:                     (pointwise)
#     for ic_o, ic_i: unrolled oc_i, ow_i: vector oc_v FMA
#     unrolled oc_i, ow_i: epilogue, store    [n, oc_o, oh, ow, oc_v]

Rows are computed up to a whole number of register tiles; what lies behind the true width is a border of zeros that
the pointwise tile, moved back into range, never reads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    copy_cycles,
    micro_kernel_cycles,
    parallel_cycles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise import depthwise_cycles, unrolled_taps
from sepwise.lowering.strategies.packing import conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import accumulate_in_registers, split_reduction, stage_rows
from sepwise.lowering.strategies.tiles import row_tiles
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.tiles import RowTile
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["SeparableStrategy"]


class SeparableStrategy:
    """A depthwise convolution of multiplier 1 whose result is read by a flat pointwise one, and nothing else."""

    name = "depthwise+pointwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses other chains, and depthwise stages whose lanes do not read their own channel."""
        del device
        if len(workload.stages) != 2:
            return Refusal("not a chain of two convolutions")
        depthwise, pointwise = workload.stages
        if compute.lane_source(depthwise, workload.output_lanes) is not compute.LaneSource.LANE:
            return Refusal("the first convolution is not depthwise with multiplier 1")
        if workload.input_lanes != workload.output_lanes:
            return Refusal("input and output are packed differently")
        if not pointwise.flat or pointwise.groups != 1:
            return Refusal("the second convolution moves pixels or has groups")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[RowTile]:
        """Register tiles that fit, times row counts whose depthwise result fits the second-level cache."""
        *_, height, width = workload.spatials[-1]
        depthwise, pointwise = workload.stages
        blocks = math.ceil(pointwise.out_channels / workload.output_lanes)
        in_blocks = math.ceil(depthwise.out_channels / workload.output_lanes)
        row_bytes = in_blocks * width * device.vector_bytes
        found = row_tiles(device, height, width, blocks, staged_row_bytes=row_bytes)
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: RowTile
    ) -> float:
        """Both stages, the depthwise rows read from where they lie, and weights streamed once a task."""
        depthwise, pointwise = workload.stages
        *outer, height, width = workload.spatials[-1]
        lanes = workload.output_lanes
        in_blocks = math.ceil(depthwise.out_channels / lanes)
        oc_tiles = math.ceil(pointwise.out_channels / lanes / tile.oc_vectors)
        row_tasks, p_tiles = math.ceil(height / tile.rows), math.ceil(width / tile.pixels)
        staged = depthwise.padded or width % tile.pixels != 0
        first = in_blocks * depthwise_cycles(
            depthwise, device, tile.rows, p_tiles * tile.pixels, tile.pixels, staged=staged
        )
        reduction = pointwise.in_channels
        second = tile.rows * p_tiles * oc_tiles * micro_kernel_cycles(
            device, tile.pixels, tile.oc_vectors, reduction
        )
        vector = device.vector_bytes
        weight_tile = reduction * tile.oc_vectors * vector
        rows_bytes = in_blocks * tile.rows * p_tiles * tile.pixels * vector
        inputs = copy_cycles(device, rows_bytes * oc_tiles, footprint_bytes=rows_bytes + weight_tile)
        weights = copy_cycles(device, weight_tile * oc_tiles, footprint_bytes=weight_tile * oc_tiles + rows_bytes)
        rereads = weight_tile * oc_tiles * (tile.rows * p_tiles - 1)
        weights += copy_cycles(device, rereads, footprint_bytes=weight_tile)
        tasks = workload.batch * math.prod(outer) * row_tasks
        return parallel_cycles((first + second + (inputs + weights) / 2) * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: RowTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        depthwise, pointwise = workload.stages
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(pointwise.out_channels / workload.output_lanes)
        packs = (1, oc_pack(blocks, tile.oc_vectors))
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.conv(workload, domain, round_up(blocks, tile.oc_vectors), packs)
        sch = s_tir.Schedule(built.function)
        first, second = built.stages
        rank = len(pointwise.kernel)

        output, total = sch.get_sblock(second.output), sch.get_sblock(second.accumulator)
        n, oc_o, *depth, oh, ow, oc_v = sch.get_loops(output)
        oc_t, oc_i = sch.split(oc_o, [None, tile.oc_vectors])
        oh_o, oh_i = sch.split(oh, [None, tile.rows])
        ow_o, ow_i = sch.split(ow, [None, tile.pixels])
        sch.reorder(n, *depth, oh_o, oc_t, oh_i, ow_o, oc_i, ow_i, oc_v)
        sch.compute_at(total, ow_o, preserve_unit_loops=True)
        *loops, t_oc_v = sch.get_loops(total)[: -rank - 1]
        *_, ic = sch.get_loops(total)
        accumulate_in_registers(
            sch,
            total,
            output,
            split_reduction(sch, ic, pointwise.in_channels, workload.output_lanes),
            unrolled=[loops[-1 - rank], loops[-1]],
            vector=t_oc_v,
            output_loops=[oc_i, ow_i, oc_v],
        )

        dw_output, dw_total = sch.get_sblock(first.output), sch.get_sblock(first.accumulator)
        sch.compute_at(dw_output, oh_o, preserve_unit_loops=True)
        d_ic_o, *d_spatial, d_ic_v = sch.get_loops(dw_output)[-rank - 2 :]
        d_ow_o, d_ow_i = sch.split(d_spatial[-1], [None, tile.pixels])
        sch.compute_at(dw_total, d_ow_o, preserve_unit_loops=True)
        if first.pad is not None:
            stage_rows(sch, sch.get_sblock(first.pad), d_ic_o, vector=True)
        *_, d_t_ow_i, d_t_ic_v = sch.get_loops(dw_total)[: -rank - 1]
        taps = sch.get_loops(dw_total)[-rank - 1 :]
        accumulate_in_registers(
            sch, dw_total, dw_output, taps, unrolled=[d_t_ow_i], vector=d_t_ic_v, output_loops=[d_ow_i, d_ic_v]
        )
        for tap in unrolled_taps(taps, depthwise, tile.pixels):
            sch.unroll(tap)

        for loop in (n, *depth, oh_o):
            mark_task(sch, loop)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        function = clamp_tiles(sch.mod["main"], true_shapes(workload, packs))
        return Implementation(function, conv_packer(workload, packs))
