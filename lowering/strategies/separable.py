"""Depthwise then pointwise in one kernel: the depthwise rows never leave the cache.

# for n, oh_o task:                           accumulators: ow_i pixels * oc_i vectors, 14 of 32 for 7 x 2
#   for ic_o:                                 (depthwise, from a copy of the rows)
#     copy the padded input rows of oh_o      [ih, iw, ic_v], first-level cache
#     for oh_i, ow_o: unrolled taps, ow_i     rows -> [ic_o, oh_i, ow, ic_v], second-level cache
#   for ic_o, ow_d:                           (or by rectangles: all rows of the task * ow_e pixels, see `depthwise_tile`)
#     unrolled taps, oh_i, ow_e               rows -> [ic_o, oh_i, ow, ic_v]
#   for oc_t, oh_i, ow_o:                     (pointwise)
#     for ic_o, ic_i: unrolled oc_i, ow_i: vector oc_v FMA
#     unrolled oc_i, ow_i: epilogue, store    [n, oc_o, oh, ow, oc_v]

Rows are computed up to a whole number of register tiles; what lies behind the true width is a border of zeros that
the pointwise tile, moved back into range, never reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.borders import mark_border
from sepwise.lowering.cost import (
    copy_cycles,
    is_prefetched,
    micro_kernel_cycles,
    parallel_cycles,
    register_tile_fits,
    staged_cycles,
)
from sepwise.lowering.prefetch import mark_prefetch
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise import depthwise_cycles, staging_wait_cycles, unrolled_taps
from sepwise.lowering.strategies.depthwise_tile import border_tiles, code_fits, inside_share, rectangle_cycles, rectangle_fits
from sepwise.lowering.strategies.packing import boundary_bytes, conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import (
    Source,
    accumulate_in_registers,
    ask_ahead,
    split_reduction,
    stage_rows,
    start_from_bias,
    unroll_lanes,
)
from sepwise.lowering.strategies.tiles import row_tiles
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["SeparableStrategy", "SeparableTile"]


@dataclass(frozen=True, slots=True)
class SeparableTile:
    """Sizes of a depthwise and a pointwise convolution in one kernel.

    Attributes:
        rows: Output rows of one task.
        pixels: Output pixels in registers, all of one row.
        oc_vectors: Output channel vectors in registers.
        rectangle: Depthwise pixels of each of the rows in registers at a time, 0 where rows are copied and one is computed
            after the other.
    """

    rows: int
    pixels: int
    oc_vectors: int
    rectangle: int

    def __post_init__(self) -> None:
        """Checks that every size is positive, the rectangle's where there is one."""
        assert min(self.rows, self.pixels, self.oc_vectors) >= 1
        assert self.rectangle >= 0

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.pixels, self.oc_vectors)


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

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[SeparableTile]:
        """Register tiles that fit, times row counts whose depthwise result fits the second-level cache."""
        *_, height, width = workload.spatials[-1]
        depthwise, pointwise = workload.stages
        blocks = math.ceil(pointwise.out_channels / workload.output_lanes)
        in_blocks = math.ceil(depthwise.out_channels / workload.output_lanes)
        row_bytes = in_blocks * width * device.vector_bytes
        rectangles: dict[tuple[int, int], list[int]] = {}
        found = []
        for each in row_tiles(device, height, width, blocks, staged_row_bytes=row_bytes):
            area = each.rows, round_up(width, each.pixels)
            if area not in rectangles:
                rectangles[area] = [0, *_rectangles(workload, device, *area)]
            found += [SeparableTile(each.rows, each.pixels, each.oc_vectors, rectangle) for rectangle in rectangles[area]]
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: SeparableTile
    ) -> float:
        """Both stages, the depthwise rows read from where they lie, and weights streamed once a task."""
        depthwise, pointwise = workload.stages
        *outer, height, width = workload.spatials[-1]
        lanes = workload.output_lanes
        in_blocks = math.ceil(depthwise.out_channels / lanes)
        blocks = math.ceil(pointwise.out_channels / lanes)
        oc_tiles, together = math.ceil(blocks / tile.oc_vectors), blocks % tile.oc_vectors == 0
        row_tasks, p_tiles = math.ceil(height / tile.rows), math.ceil(width / tile.pixels)
        if tile.rectangle:
            rectangles = p_tiles * tile.pixels // tile.rectangle
            inside = inside_share(depthwise, workload.spatial, workload.spatials[1])
            first = in_blocks * rectangles * rectangle_cycles(depthwise, device, tile.rows, tile.rectangle, inside=inside)
        else:
            staged = depthwise.padded or width % tile.pixels != 0
            first = in_blocks * depthwise_cycles(
                depthwise, device, tile.rows, p_tiles * tile.pixels, tile.pixels, staged=staged
            )
            first += in_blocks * staging_wait_cycles(workload, device, tile.rows) * staged
        reduction = pointwise.in_channels
        second = tile.rows * p_tiles * oc_tiles * micro_kernel_cycles(
            device, tile.pixels, tile.oc_vectors, reduction, weights_together=together
        )
        vector = device.vector_bytes
        weight_tile = reduction * tile.oc_vectors * vector
        rows_bytes = in_blocks * tile.rows * p_tiles * tile.pixels * vector
        *depth, in_rows, in_width = compute.input_extents(depthwise, (1,) * len(outer) + (tile.rows, width))
        source_bytes = in_blocks * math.prod(depth) * in_rows * in_width * vector
        stored = tile.rows * width * vector
        task_bytes, pass_bytes = source_bytes + weight_tile + blocks * stored, weight_tile + tile.oc_vectors * stored
        inputs = staged_cycles(device, rows_bytes, passes=oc_tiles, task_bytes=task_bytes, pass_bytes=pass_bytes)
        weights = copy_cycles(device, weight_tile * oc_tiles, footprint_bytes=weight_tile * oc_tiles + rows_bytes)
        rereads = weight_tile * oc_tiles * (tile.rows * p_tiles - 1)
        weights += copy_cycles(device, rereads, footprint_bytes=weight_tile)
        tasks = workload.batch * math.prod(outer) * row_tasks
        return parallel_cycles((first + second + (inputs + weights) / 2) * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: SeparableTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
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
        steps = split_reduction(sch, ic, pointwise.in_channels, workload.output_lanes)
        accumulate_in_registers(
            sch,
            total,
            output,
            steps,
            unrolled=[loops[-1 - rank], loops[-1]],
            vector=t_oc_v,
            output_loops=[oc_i, ow_i, oc_v],
        )
        steps[-1] = unroll_lanes(sch, device, steps[-1], tile.pixels * tile.oc_vectors)
        passes = tile.rows * math.ceil(width / tile.pixels)
        staged = tile.rows * domain[-1]
        in_blocks = math.ceil(depthwise.out_channels / workload.output_lanes)
        source = Source(first.output, in_blocks * staged * device.vector_bytes, staged)
        ask_ahead(sch, device, workload, steps, tile=(tile.pixels, tile.oc_vectors), passes=passes, source=source)

        dw_output, dw_total = sch.get_sblock(first.output), sch.get_sblock(first.accumulator)
        sch.compute_at(dw_output, oh_o, preserve_unit_loops=True)
        d_ic_o, *d_spatial, d_ic_v = sch.get_loops(dw_output)[-rank - 2 :]
        d_ow_o, d_ow_i = sch.split(d_spatial[-1], [None, tile.rectangle or tile.pixels])
        unrolled = [d_ow_i]
        if tile.rectangle:
            unrolled.insert(0, d_spatial[-2])
            sch.reorder(d_ow_o, d_spatial[-2])
        sch.compute_at(dw_total, d_ow_o, preserve_unit_loops=True)
        if first.pad is not None and tile.rectangle:
            sch.compute_inline(sch.get_sblock(first.pad))
        elif first.pad is not None:
            stage_rows(sch, sch.get_sblock(first.pad), d_ic_o, workload)
        *_, d_t_oh_i, d_t_ow_i, d_t_ic_v = sch.get_loops(dw_total)[: -rank - 1]
        taps = sch.get_loops(dw_total)[-rank - 1 :]
        d_unrolled = [d_t_oh_i, d_t_ow_i] if tile.rectangle else [d_t_ow_i]
        accumulate_in_registers(
            sch, dw_total, dw_output, taps, unrolled=d_unrolled, vector=d_t_ic_v, output_loops=[*unrolled, d_ic_v]
        )
        for tap in taps if tile.rectangle else unrolled_taps(taps, depthwise, tile.pixels):
            sch.unroll(tap)
        if tile.rectangle:
            extents = (*outer, height, domain[-1])
            tiles = (*(1 for _ in outer), tile.rows, tile.rectangle)
            borders = border_tiles(depthwise, workload.spatial, extents, tiles)
            for loop, (begin, end) in zip((*depth, oh_o, d_ow_o), borders, strict=True):
                mark_border(sch, loop, begin, end)
            if is_prefetched(device, boundary_bytes(workload)[0]):
                mark_prefetch(sch, d_ic_o, "data")

        for loop in (n, *depth, oh_o):
            mark_task(sch, loop)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, packs))
        return Implementation(function, conv_packer(workload, packs))


def _rectangles(workload: ConvWorkload, device: Device, rows: int, width: int) -> list[int]:
    """Pixels of each of some rows that the depthwise stage may keep in registers: the share of the width predicted best."""
    depthwise = workload.stages[0]
    *outer, height, _ = workload.spatials[-1]
    extents, ones = (*outer, height, width), tuple(1 for _ in outer)
    found = [
        pixels
        for pixels in range(1, min(width, device.vector_registers) + 1)
        if width % pixels == 0
        and rectangle_fits(depthwise, device, rows, pixels)
        and code_fits(depthwise, workload.spatial, extents, (*ones, rows, pixels))
    ]
    return sorted(found, key=lambda pixels: rectangle_cycles(depthwise, device, rows, pixels, inside=1.0) / pixels)[:1]
