"""Pointwise, depthwise and pointwise in one kernel: the expanded tensor never leaves the cache.

# for n, [od], oh_o task:
#   for e_t:                                  (pointwise) e_i vectors of expanded channels
#     for each row that oh_o reads, ew_o:     accumulators: ew_i pixels * e_i vectors
#       for ic_o, ic_i: unrolled e_i, ew_i: vector FMA
#       unrolled e_i, ew_i: epilogue, store   rows -> [e_i, ih, iw, e_v], second-level cache
#     for e_i, dh_o, dw_o:                    (depthwise) accumulators: dh_i rows * dw_i pixels
#       unrolled taps, dh_i, dw_i             rows -> [e_o, oh_i, ow, e_v], second-level cache
#   for oc_t, oh_i, ow_o:                     (pointwise) accumulators: ow_i pixels * oc_i vectors
#     for e_o, e_v: unrolled oc_i, ow_i: vector oc_v FMA
#     unrolled oc_i, ow_i: epilogue, store    [n, oc_o, oh, ow, oc_v]

The rows that two tasks read are computed by both, zeros in the place of those that are padded (see `compute.expanded`), so that
rows of the depthwise stage have no borders; tiles at the ends of a row leave out what is padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.borders import mark_border
from sepwise.lowering.cost import (
    CACHE_SHARE,
    LINE_BYTES,
    copy_cycles,
    micro_kernel_cycles,
    parallel_cycles,
    register_tile_fits,
    register_tiles,
    staged_cycles,
    waiting_cycles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise_tile import (
    MOST_PEELED_FMAS,
    border_tiles,
    inside_share,
    rectangle_cycles,
    rectangle_fits,
)
from sepwise.lowering.strategies.packing import conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.separable import multiplied_rows_cycles
from sepwise.lowering.strategies.steps import (
    Source,
    accumulate_in_registers,
    ask_ahead,
    mark_rows,
    multiply_rows,
    split_reduction,
    start_from_bias,
    tile_rectangle,
    unroll_lanes,
)
from sepwise.lowering.strategies.tiles import MOST_UNROLLED_FMAS, RowTile, rank_staging, row_shares
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, round_up

if TYPE_CHECKING:
    from tvm.s_tir.schedule import LoopRV

    from sepwise.lowering.compute import StageTensors
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["NEAR_FASTEST_CHAIN", "TILES_TRIED", "InvertedStrategy", "InvertedTile"]

NEAR_FASTEST_CHAIN = 1.03
"""In place of `NEAR_FASTEST`: rows are staged twice, and what is saved is most of what the largest tensor was."""

TILES_TRIED = 5
"""Register tiles of either pointwise stage, of those that are predicted best by themselves, that are tried with each other's."""


@dataclass(frozen=True, slots=True)
class InvertedTile:
    """Sizes of a pointwise, a depthwise and a pointwise convolution in one kernel.

    Attributes:
        rows: Output rows of one task.
        pixels: Output pixels in registers, all of one row.
        oc_vectors: Output channel vectors in registers.
        depthwise_rows: Rows of the depthwise stage in registers, which divide those of a task.
        depthwise_pixels: Pixels of each of them.
        expanded_pixels: Pixels of the first stage in registers, all of one row.
        expanded_vectors: Its channel vectors in registers; so many go through the depthwise stage at a time.
    """

    rows: int
    pixels: int
    oc_vectors: int
    depthwise_rows: int
    depthwise_pixels: int
    expanded_pixels: int
    expanded_vectors: int

    def __post_init__(self) -> None:
        """Checks that every size is positive, and that rows are whole tiles."""
        assert min(self.pixels, self.oc_vectors, self.depthwise_pixels, self.expanded_pixels, self.expanded_vectors) >= 1
        assert min(self.rows, self.depthwise_rows) >= 1
        assert self.rows % self.depthwise_rows == 0

    @property
    def row_tile(self) -> RowTile:
        """What the last stage has of it."""
        return RowTile(self.rows, self.pixels, self.oc_vectors)

    def fits(self, device: Device) -> bool:
        """Whether the register tiles of the pointwise stages compile without spills."""
        return self.row_tile.fits(device) and register_tile_fits(device, self.expanded_pixels, self.expanded_vectors)


class InvertedStrategy:
    """A flat pointwise convolution, a depthwise one of multiplier 1 that reads it, and a flat pointwise one that reads that."""

    name = "pointwise+depthwise+pointwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses other chains, and depthwise stages whose lanes do not read their own channel."""
        if len(workload.stages) != 3:
            return Refusal("not a chain of three convolutions")
        first, depthwise, last = workload.stages
        if compute.lane_source(depthwise, workload.output_lanes) is not compute.LaneSource.LANE or depthwise.flat:
            return Refusal("the second convolution is not depthwise with multiplier 1 over several pixels")
        if workload.input_lanes != workload.output_lanes:
            return Refusal("input and output are packed differently")
        if not all(stage.flat and stage.groups == 1 for stage in (first, last)):
            return Refusal("the first or the last convolution moves pixels or has groups")
        *skipping, _ = zip(depthwise.strides, compute.input_extents(depthwise, (1,) * len(depthwise.kernel)), strict=True)
        if any(stride > reach for stride, reach in skipping):
            return Refusal("the second convolution skips rows of the first")
        if not inside_share(depthwise, workload.spatial, workload.spatials[-1]):
            return Refusal("the second convolution reads padding alone")
        widths = [pixels for pixels, _ in _best_tiles(workload, device, last, workload.spatials[-1][-1])]
        if all(_rectangle(workload, device, 1, pixels) is None for pixels in widths):
            return Refusal("the taps of a tile are too many to be written out")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[InvertedTile]:
        """Row counts whose staged rows fit the second-level cache, or one row, times the best register tiles of each stage.

        What is staged was a tensor before, and lies in the arena as that did: of tiles that are predicted about as fast those
        that stage the least come first.
        """
        first, depthwise, last = workload.stages
        *_, height, width = workload.spatials[-1]
        in_width = workload.spatial[-1]
        expanded = _best_tiles(workload, device, first, in_width)
        deepest = max(vectors for _, vectors in expanded)
        row_vectors = _blocks(workload, depthwise) * width
        found = []
        for rows in row_shares(device, height, staged_row_bytes=row_vectors * device.vector_bytes):
            staged = rows * row_vectors + deepest * _rows_read(workload, rows) * in_width
            if rows > 1 and staged * device.vector_bytes > CACHE_SHARE * device.l2_bytes:
                continue
            for pixels, oc_vectors in _best_tiles(workload, device, last, width):
                rectangle = _rectangle(workload, device, rows, pixels)
                if rectangle is not None:
                    found += [InvertedTile(rows, pixels, oc_vectors, *rectangle, *each) for each in expanded]

        def staged_bytes(tile: InvertedTile) -> float:
            staged = tile.rows * row_vectors + tile.expanded_vectors * _rows_read(workload, tile.rows) * in_width
            return staged * device.vector_bytes

        def cycles(tile: InvertedTile) -> float:
            return self.predicted_cycles(workload, device, threads, tile)

        return rank_staging(found, cycles, staged_bytes, near=NEAR_FASTEST_CHAIN)

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: InvertedTile
    ) -> float:
        """The stages of all tasks, the rows that neighbours share computed twice, and what is read and written between them."""
        first, depthwise, _ = workload.stages
        *outer, height, width = workload.spatials[-1]
        in_width, vector = workload.spatial[-1], device.vector_bytes
        read_rows = _rows_read(workload, tile.rows)
        blocks, depth = _blocks(workload, depthwise), tile.expanded_vectors
        passes, together = math.ceil(blocks / depth), blocks % depth == 0
        tiles = read_rows * math.ceil(in_width / tile.expanded_pixels)
        expand = tiles * micro_kernel_cycles(
            device, tile.expanded_pixels, depth, first.in_channels, weights_together=together
        )
        rectangles = tile.rows * round_up(width, tile.pixels) // (tile.depthwise_rows * tile.depthwise_pixels)
        filtered = depth * rectangles * rectangle_cycles(
            depthwise, device, tile.depthwise_rows, tile.depthwise_pixels, inside=1.0
        )
        source_bytes = math.ceil(first.in_channels / workload.output_lanes) * read_rows * in_width * vector
        expanded_bytes = depth * read_rows * in_width * vector
        lines = expanded_bytes / LINE_BYTES
        streams = _rows_read(workload, tile.depthwise_rows) + tile.depthwise_rows
        work = depth * tile.rows * width * math.prod(depthwise.kernel)
        filtered += waiting_cycles(device, expanded_bytes, lines=lines, streams=streams, instructions=work)
        weight_bytes = first.in_channels * depth * vector
        stored = depth * tile.rows * width * vector
        rows = staged_cycles(device, expanded_bytes, passes=1, task_bytes=source_bytes + weight_bytes + stored, pass_bytes=0)
        again = copy_cycles(device, source_bytes * (passes - 1), footprint_bytes=source_bytes + expanded_bytes + stored)
        weights = copy_cycles(device, weight_bytes * passes, footprint_bytes=(weight_bytes + stored) * passes + source_bytes)
        weights += copy_cycles(device, weight_bytes * passes * (tiles - 1), footprint_bytes=weight_bytes)
        cycles = passes * (expand + filtered + rows / 2) + (again + weights) / 2
        cycles += multiplied_rows_cycles(workload, device, tile.row_tile, source_bytes=source_bytes + expanded_bytes)
        tasks = workload.batch * math.prod(outer) * math.ceil(height / tile.rows)
        return parallel_cycles(cycles * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: InvertedTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        _, depthwise, last = workload.stages
        *outer, height, width = workload.spatials[-1]
        in_width, rank = workload.spatial[-1], len(depthwise.kernel)
        middle, blocks = _blocks(workload, depthwise), _blocks(workload, last)
        packs = (oc_pack(middle, tile.expanded_vectors), 1, oc_pack(blocks, tile.oc_vectors))
        built = compute.expanded(
            workload,
            (*outer, round_up(height, tile.rows), round_up(width, tile.pixels)),
            round_up(in_width, tile.expanded_pixels),
            round_up(middle, tile.expanded_vectors),
            round_up(blocks, tile.oc_vectors),
            packs,
        )
        sch = s_tir.Schedule(built.function)
        _, second, third = built.stages
        staged = tile.rows * round_up(width, tile.pixels)
        source = Source(second.output, middle * staged * device.vector_bytes, staged)
        nest = multiply_rows(sch, workload, device, third, tile=tile.row_tile, source=source)
        filtered = sch.get_sblock(second.output)
        sch.compute_at(filtered, nest.tasks[-1], preserve_unit_loops=True)
        e_o = sch.get_loops(filtered)[-rank - 2]
        *_, dw_o = tile_rectangle(sch, second, rank=rank, rows=tile.depthwise_rows, pixels=tile.depthwise_pixels)
        extents = (*outer, height, round_up(width, tile.pixels))
        tiles = (*(1 for _ in outer), tile.depthwise_rows, tile.depthwise_pixels)
        mark_border(sch, dw_o, *border_tiles(depthwise, workload.spatial, extents, tiles)[-1])
        e_t, _ = sch.split(e_o, [None, tile.expanded_vectors], disable_predication=True)
        mark_clamp(sch, e_t, middle, tile.expanded_vectors)
        _expand_rows(sch, workload, device, built.stages[0], tile, e_t)
        mark_rows(sch, nest, workload, tile.row_tile)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, packs))
        return Implementation(function, conv_packer(workload, packs))


def _expand_rows(
    sch: s_tir.Schedule, workload: ConvWorkload, device: Device, names: StageTensors, tile: InvertedTile, e_t: LoopRV
) -> None:
    """`e_t: compute` -> `e_t: for rows, ew_o: for ic: unrolled e_i, ew_i: vector FMA; epilogue; compute`, of the first stage."""
    stage, rank = workload.stages[0], len(workload.spatial)
    output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    sch.compute_at(output, e_t, preserve_unit_loops=True)
    e_i, *rows, ew, e_v = sch.get_loops(output)[-rank - 2 :]
    ew_o, ew_i = sch.split(ew, [None, tile.expanded_pixels], disable_predication=True)
    sch.reorder(*rows, ew_o, e_i, ew_i, e_v)
    sch.compute_at(total, ew_o, preserve_unit_loops=True)
    loops = sch.get_loops(total)
    *outer, vector = loops[: -rank - 1]
    steps = split_reduction(sch, loops[-1], stage.in_channels, workload.input_lanes)
    accumulate_in_registers(
        sch, total, output, steps, unrolled=[outer[-1 - rank], outer[-1]], vector=vector, output_loops=[e_i, ew_i, e_v]
    )
    steps[-1] = unroll_lanes(sch, device, steps[-1], tile.expanded_pixels * tile.expanded_vectors)
    register_tile = tile.expanded_pixels, tile.expanded_vectors
    passes = [(loop, int(sch.get(loop).extent)) for loop in (*rows, ew_o)]
    ask_ahead(sch, device, workload, steps, tile=register_tile, passes=passes, source=Source.input_of(workload), index=0)
    mark_clamp(sch, ew_o, workload.spatial[-1], tile.expanded_pixels)


def _blocks(workload: ConvWorkload, stage: Stage) -> int:
    """Vectors of a stage's output channels."""
    return math.ceil(stage.out_channels / workload.output_lanes)


def _rows_read(workload: ConvWorkload, rows: int) -> int:
    """Rows of the first stage that some rows of the depthwise one read, of all planes."""
    stage = workload.stages[1]
    return math.prod(compute.input_extents(stage, (*(1 for _ in stage.kernel[:-2]), rows, 1))[:-1])


def _best_tiles(workload: ConvWorkload, device: Device, stage: Stage, width: int) -> list[tuple[int, int]]:
    """Pixels and channel vectors of a flat stage's register tiles that take the fewest cycles for a row, best first."""
    blocks = _blocks(workload, stage)

    def row_cycles(tile: tuple[int, int]) -> float:
        pixels, vectors = tile
        count = math.ceil(width / pixels) * math.ceil(blocks / vectors)
        return count * micro_kernel_cycles(
            device, pixels, vectors, stage.in_channels, weights_together=blocks % vectors == 0
        )

    return sorted(register_tiles(device, width, blocks), key=row_cycles)[:TILES_TRIED]


def _rectangle(workload: ConvWorkload, device: Device, rows: int, pixels: int) -> tuple[int, int] | None:
    """Rows and pixels of the depthwise stage in registers, None where none can be written out with its versions at borders.

    Args:
        workload: Its second stage is the depthwise one.
        device: Its registers.
        rows: Of a task, a multiple of those in registers.
        pixels: Of the last stage's tile; whole tiles of a row are whole rectangles.
    """
    stage = workload.stages[1]
    *outer, height, true_width = workload.spatials[-1]
    width, most = round_up(true_width, pixels), MOST_UNROLLED_FMAS // math.prod(stage.kernel)
    found = []
    for high in range(1, min(rows, most) + 1):
        for wide in range(1, min(width, most // high) + 1):
            if rows % high or width % wide or not rectangle_fits(stage, device, high, wide):
                continue
            tiles = (*(1 for _ in outer), high, wide)
            ends = border_tiles(stage, workload.spatial, (*outer, height, width), tiles)[-1]
            versions = min(sum(ends) + 1, width // wide)
            if versions * high * wide * math.prod(stage.kernel) <= MOST_PEELED_FMAS:
                found.append((high, wide))
    return min(
        found,
        key=lambda sizes: rectangle_cycles(stage, device, *sizes, inside=1.0) / math.prod(sizes),
        default=None,
    )
