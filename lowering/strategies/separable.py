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
    staged_cycles,
)
from sepwise.lowering.prefetch import mark_prefetch
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise import depthwise_cycles, staging_wait_cycles, tile_row
from sepwise.lowering.strategies.depthwise_tile import border_tiles, code_fits, inside_share, rectangle_cycles, rectangle_fits
from sepwise.lowering.strategies.packing import boundary_bytes, conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import Source, mark_rows, multiply_rows, start_from_bias, tile_rectangle
from sepwise.lowering.strategies.tiles import RowTile, little_staged_bytes, rank_staging, row_tiles
from sepwise.lowering.tiling import clamp_tiles, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["SeparableStrategy", "SeparableTile", "multiplied_rows_cycles"]


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

    @property
    def row_tile(self) -> RowTile:
        """What the pointwise stage has of it."""
        return RowTile(self.rows, self.pixels, self.oc_vectors)

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return self.row_tile.fits(device)


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
        return rank_staging(
            found,
            lambda tile: self.predicted_cycles(workload, device, threads, tile),
            lambda tile: tile.rows * row_bytes,
            little_bytes=little_staged_bytes(device),
        )

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: SeparableTile
    ) -> float:
        """Both stages, the depthwise rows read from where they lie, and weights streamed once a task."""
        depthwise = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        in_blocks = math.ceil(depthwise.out_channels / workload.output_lanes)
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
        *depth, in_rows, in_width = compute.input_extents(depthwise, (1,) * len(outer) + (tile.rows, width))
        source_bytes = in_blocks * math.prod(depth) * in_rows * in_width * device.vector_bytes
        second = multiplied_rows_cycles(workload, device, tile.row_tile, source_bytes=source_bytes)
        tasks = workload.batch * math.prod(outer) * row_tasks
        return parallel_cycles((first + second) * tasks, tasks, threads)

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

        in_blocks = math.ceil(depthwise.out_channels / workload.output_lanes)
        staged = tile.rows * domain[-1]
        source = Source(first.output, in_blocks * staged * device.vector_bytes, staged)
        nest = multiply_rows(sch, workload, device, second, tile=tile.row_tile, source=source)
        dw_output = sch.get_sblock(first.output)
        sch.compute_at(dw_output, nest.tasks[-1], preserve_unit_loops=True)
        d_ic_o = sch.get_loops(dw_output)[-rank - 2]
        if tile.rectangle:
            *_, d_ow_o = tile_rectangle(sch, first, rank=rank, rows=tile.rows, pixels=tile.rectangle)
            tiles = (*(1 for _ in outer), tile.rows, tile.rectangle)
            borders = border_tiles(depthwise, workload.spatial, (*outer, height, domain[-1]), tiles)
            for loop, (begin, end) in zip((*nest.tasks[1:], d_ow_o), borders, strict=True):
                mark_border(sch, loop, begin, end)
            if is_prefetched(device, boundary_bytes(workload)[0]):
                mark_prefetch(sch, d_ic_o, "data")
        else:
            tile_row(sch, first, workload, pixels=tile.pixels, rows=d_ic_o)
        mark_rows(sch, nest, workload, tile.row_tile)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, packs))
        return Implementation(function, conv_packer(workload, packs))


def multiplied_rows_cycles(workload: ConvWorkload, device: Device, tile: RowTile, *, source_bytes: float) -> float:
    """Predicts the cycles of a task's last stage, which is pointwise, and of writing and reading the rows that it multiplies.

    Args:
        workload: The chain.
        device: Ports and caches.
        tile: Of the last stage.
        source_bytes: What the task computes these rows from.

    Returns:
        Cycles of the multiply-adds, of the staged rows and of the stage's weights, of which half hides behind arithmetic.
    """
    stage, lanes, width = workload.stages[-1], workload.output_lanes, workload.spatials[-1][-1]
    blocks, p_tiles = math.ceil(stage.out_channels / lanes), math.ceil(width / tile.pixels)
    oc_tiles, together = math.ceil(blocks / tile.oc_vectors), blocks % tile.oc_vectors == 0
    reduction, passes = stage.in_channels, tile.rows * p_tiles
    cycles = passes * oc_tiles * micro_kernel_cycles(
        device, tile.pixels, tile.oc_vectors, reduction, weights_together=together
    )
    weight_tile = reduction * tile.oc_vectors * device.vector_bytes
    rows_bytes = math.ceil(reduction / lanes) * passes * tile.pixels * device.vector_bytes
    stored = tile.rows * width * device.vector_bytes
    task_bytes, pass_bytes = source_bytes + weight_tile + blocks * stored, weight_tile + tile.oc_vectors * stored
    inputs = staged_cycles(device, rows_bytes, passes=oc_tiles, task_bytes=task_bytes, pass_bytes=pass_bytes)
    weights = copy_cycles(device, weight_tile * oc_tiles, footprint_bytes=weight_tile * oc_tiles + rows_bytes)
    weights += copy_cycles(device, weight_tile * oc_tiles * (passes - 1), footprint_bytes=weight_tile)
    return cycles + (inputs + weights) / 2


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
