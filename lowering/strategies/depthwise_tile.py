"""Depthwise convolution with several rows of outputs in registers, read from the input as it is.

# for n, oc_o, [od] task; oh_o task by grain: accumulators: oh_i rows * ow_i pixels, 16 of 32 for 4 x 4
#   for ow_o:                                 tiles at the border apart from inner ones (see `borders`)
#     unrolled by input: vector oc_v FMA      one step: an input, all FMA that read it; weights: 9 for 3 x 3 on 4 x 4
#     unrolled oh_i, ow_i: epilogue, store    [n, oc_o, oh, ow, oc_v]

An input serves all rows and columns of the tile that read it, so a 3 x 3 kernel on 4 x 4 outputs loads 36 inputs for 144
multiply-adds. What the border would multiply by zero is left out, and nothing is copied. Weights stay in registers as
long as rows of the input read them. Each row of a tile is a sequence of lines of its own, more than the prefetcher of a
small core follows: where such a core would wait, a row of tiles asks for what the next one reads (`prefetch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import starmap
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.borders import mark_border
from sepwise.lowering.core_model import core_model
from sepwise.lowering.cost import (
    CACHE_SHARE,
    EPILOGUE_CYCLES,
    LINE_BYTES,
    LOST_SHARE,
    TILE_OVERHEAD_CYCLES,
    is_prefetched,
    parallel_cycles,
    waiting_cycles,
)
from sepwise.lowering.prefetch import mark_prefetch
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise import refuse_shared_lanes
from sepwise.lowering.strategies.packing import boundary_bytes, conv_packer, true_shapes
from sepwise.lowering.strategies.steps import start_from_bias, tile_rectangle
from sepwise.lowering.strategies.tiles import MOST_UNROLLED_FMAS, grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = [
    "MOST_LOADED_AHEAD",
    "MOST_PEELED_FMAS",
    "DepthwiseTile",
    "DepthwiseTileStrategy",
    "border_tiles",
    "code_fits",
    "inside_share",
    "rectangle_cycles",
    "rectangle_fits",
    "weights_of_row",
]

MOST_PEELED_FMAS = 12 * MOST_UNROLLED_FMAS
"""Multiply-adds of all versions of a tile together, 4 x 3 where the last one is moved back along an axis: beyond, code would fill
the instruction cache."""

MOST_LOADED_AHEAD = 6
"""Inputs that LLVM loads before they are used."""


@dataclass(frozen=True, slots=True)
class DepthwiseTile:
    """Sizes of a depthwise kernel.

    Attributes:
        rows: Output rows in registers.
        pixels: Output pixels of each row in registers.
        beside: Weights and inputs in registers beside the accumulators.
        grain: Row tiles of one task.
    """

    rows: int
    pixels: int
    beside: int
    grain: int

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.pixels, self.beside, self.grain) >= 1

    def fits(self, device: Device) -> bool:
        """Whether accumulators, weights and inputs fit the registers, and a product that is not fused."""
        return self.rows * self.pixels + self.beside + (not device.fuses_multiply_add) <= device.vector_registers


class DepthwiseTileStrategy:
    """Each lane is a channel, a rectangle of its outputs in registers."""

    name = "depthwise tile"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses lanes that share a channel, plain inputs, and kernels of so many taps that no tile is written out."""
        refusal = refuse_shared_lanes(workload)
        if refusal is None and not self.tiles(workload, device, 1):
            return Refusal("the taps of a tile are too many to be written out")
        return refusal

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[DepthwiseTile]:
        """Rectangles that fit registers and code, each with the rows of an image in one task or shared out."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        found = []
        for rows in range(1, min(height, device.vector_registers) + 1):
            for pixels in range(1, min(width, device.vector_registers) + 1):
                if code_fits(stage, workload.spatial, workload.spatials[-1], (*(1 for _ in outer), rows, pixels)):
                    beside = _beside(stage, rows, pixels)
                    found += [DepthwiseTile(rows, pixels, beside, grain) for grain in grains(math.ceil(height / rows), threads)]
        fitting = [tile for tile in found if tile.fits(device)]
        return sorted(fitting, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: DepthwiseTile
    ) -> float:
        """The register tiles, and what they ask for ahead or wait for."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        row_tiles = math.ceil(height / tile.rows)
        images = workload.batch * math.ceil(stage.out_channels / workload.output_lanes) * math.prod(outer)
        waiting = (_asking_cycles if _asks_ahead(workload, device, tile) else _waiting_cycles)(workload, device, tile)
        inside = inside_share(stage, workload.spatial, workload.spatials[-1])
        each = rectangle_cycles(stage, device, tile.rows, tile.pixels, inside=inside) + waiting
        cycles = images * row_tiles * math.ceil(width / tile.pixels) * each
        return parallel_cycles(cycles, images * math.ceil(row_tiles / tile.grain), threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: DepthwiseTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.conv(workload, domain, blocks, (1,))
        sch = s_tir.Schedule(built.function)
        n, oc_o, *depth, oh_o, ow_o = tile_rectangle(
            sch, built.stages[0], rank=len(stage.kernel), rows=tile.rows, pixels=tile.pixels
        )
        for loop in (n, oc_o, *depth):
            mark_task(sch, loop)
        mark_task(sch, oh_o, tile.grain)
        if _asks_ahead(workload, device, tile):
            behind = tile.rows * stage.strides[-2] * workload.spatial[-1] * workload.input_lanes
            mark_prefetch(sch, oh_o, "data", elements=behind)
        tiles = (*(1 for _ in outer), tile.rows, tile.pixels)
        borders = border_tiles(stage, workload.spatial, workload.spatials[-1], tiles)
        for loop, (first, last) in zip((*depth, oh_o, ow_o), borders, strict=True):
            mark_border(sch, loop, first, last)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, (1,)))
        return Implementation(function, conv_packer(workload, (1,)))


def _rows_read(workload: ConvWorkload, tile: DepthwiseTile) -> tuple[int, int]:
    """Rows of the input that a tile reads, and how many of them the row of tiles before it has not."""
    stage = workload.stages[0]
    *depth, rows, _ = _places_read(stage, tile.rows, 1)
    planes = math.prod(depth)
    return planes * rows, planes * min(tile.rows * stage.strides[-2], rows)


def _asks_ahead(workload: ConvWorkload, device: Device, tile: DepthwiseTile) -> bool:
    """Whether a row of tiles asks for what the next one of its task reads: it would wait longer, and level 1 holds both."""
    read = sum(_rows_read(workload, tile)) * workload.spatial[-1]
    written = tile.rows * workload.spatials[-1][-1]
    fits = (read + written) * device.vector_bytes <= device.l1d_bytes * CACHE_SHARE
    may = tile.grain > 1 and fits and is_prefetched(device, boundary_bytes(workload)[0])
    return may and _asking_cycles(workload, device, tile) < _waiting_cycles(workload, device, tile)


def _new_lines(workload: ConvWorkload, device: Device, tile: DepthwiseTile) -> float:
    """Lines that a tile is the first to read."""
    _, new_rows = _rows_read(workload, tile)
    return new_rows * tile.pixels * workload.stages[0].strides[-1] * device.vector_bytes / LINE_BYTES


def _asking_cycles(workload: ConvWorkload, device: Device, tile: DepthwiseTile) -> float:
    """Predicts what the prefetches of a tile cost: as many in each row as it may begin lines."""
    _, new_rows = _rows_read(workload, tile)
    in_row = math.ceil(tile.pixels * workload.stages[0].strides[-1] * device.vector_bytes / LINE_BYTES)
    return (1 + LOST_SHARE) * new_rows * in_row / device.issue_width


def _waiting_cycles(workload: ConvWorkload, device: Device, tile: DepthwiseTile) -> float:
    """Predicts how long a tile waits for the lines that it is the first to read where nothing has asked for them."""
    stage = workload.stages[0]
    rows, _ = _rows_read(workload, tile)
    fmas = tile.rows * tile.pixels * math.prod(stage.kernel)
    loads = math.prod(_places_read(stage, tile.rows, tile.pixels))
    return waiting_cycles(
        device,
        boundary_bytes(workload)[0],
        lines=_new_lines(workload, device, tile),
        streams=rows + tile.rows,
        instructions=fmas + loads,
    )


def inside_share(stage: Stage, inputs: Sequence[int], outputs: Sequence[int]) -> float:
    """Gives the part of the taps that read the input and no padding, which is left out.

    Args:
        stage: The convolution.
        inputs: Spatial extents of its input.
        outputs: Spatial extents that are computed.

    Returns:
        At most 1; 0 where all of them read padding.
    """
    share = 1.0
    for axis, (available, extent) in enumerate(zip(inputs, outputs, strict=True)):
        stride, taps = stage.strides[axis], range(stage.kernel[axis])
        places = (stage.dilations[axis] * tap - stage.pads_begin[axis] for tap in taps)  # that the first output reads
        counts = (min(extent, -(-(available - place) // stride)) - max(0, -(place // stride)) for place in places)
        share *= sum(max(count, 0) for count in counts) / (extent * stage.kernel[axis])
    return share


def rectangle_cycles(stage: Stage, device: Device, rows: int, pixels: int, *, inside: float) -> float:
    """Predicts the cycles of one register tile.

    A core that runs out of order begins the next tiles while the chains of one are not done, as many as its reorder buffer holds.
    On x86 it does so while what is around one is not done either: that takes ports and issue slots, and on AArch64, where other
    strategies count it so too, cycles of its own. With this the predictions of 16 depthwise convolutions pick tiles that take
    1.02 of the fastest ones' time by the geometric mean, and 1.11 at most; with cycles of its own they take 1.08 and 1.27
    (Sapphire Rapids, one thread, medians of 60 turns, 2026-11-24).

    Args:
        stage: The convolution.
        device: Ports, registers and the core.
        rows: Output rows in registers.
        pixels: Output pixels of each row.
        inside: The part of the taps that is computed, on average.

    Returns:
        Cycles for multiply-adds, for loads of inputs and of weights that do not stay in registers, and for the epilogue.
    """
    accumulators, taps = rows * pixels, math.prod(stage.kernel)
    fmas = accumulators * taps * inside
    columns = _columns(stage, pixels)
    loads = inside * math.prod(_places_read(stage, rows, pixels))
    if accumulators + taps + columns > device.vector_registers:
        loads += taps * inside
    core = core_model(device)
    ahead = 0 if core is None else core.reorder_entries
    epilogue = accumulators * EPILOGUE_CYCLES
    overlaps = ahead > 0 and device.isa == "x86"
    beside, alone = (epilogue, 0.0) if overlaps else (0.0, epilogue + TILE_OVERHEAD_CYCLES)
    cycles = max(
        (fmas + beside) / device.fma_ports,
        loads / device.load_ports,
        (fmas + loads + beside) / device.issue_width,
        taps * inside * device.fma_latency_cycles / max(1.0, ahead / max(fmas + loads, 1.0)),
    )
    return cycles + LOST_SHARE * loads / device.issue_width + alone


def rectangle_fits(stage: Stage, device: Device, rows: int, pixels: int) -> bool:
    """Whether a register tile compiles without spills of accumulators.

    Args:
        stage: The convolution.
        device: Its registers.
        rows: Output rows in registers.
        pixels: Output pixels of each row.
    """
    return DepthwiseTile(rows, pixels, _beside(stage, rows, pixels), 1).fits(device)


def border_tiles(
    stage: Stage, inputs: Sequence[int], outputs: Sequence[int], tiles: Sequence[int]
) -> list[tuple[int, int]]:
    """Counts for each axis the tiles at its beginning, and the others at its end, that read behind the border.

    Args:
        stage: The convolution.
        inputs: Spatial extents of its input.
        outputs: Spatial extents that are computed; the last tile is moved back into them.
        tiles: Spatial extents of a tile.

    Returns:
        Pairs of counts.
    """
    found = []
    for axis, (tile, extent, available) in enumerate(zip(tiles, outputs, inputs, strict=True)):
        stride, begin = stage.strides[axis], stage.pads_begin[axis]
        reach = (tile - 1) * stride + stage.dilations[axis] * (stage.kernel[axis] - 1) + 1
        starts = [min(start, extent - tile) * stride - begin for start in range(0, extent, tile)]
        before = sum(start < 0 for start in starts)
        found.append((before, sum(start >= 0 and start + reach > available for start in starts)))
    return found


def code_fits(
    stage: Stage, inputs: Sequence[int], outputs: Sequence[int], tiles: Sequence[int], *, vectors: int = 1, lanes: int = 1
) -> bool:
    """Whether all versions of a tile that the borders need are short enough to be written out.

    Args:
        stage: The convolution.
        inputs: Spatial extents of its input, of the first axes where a tile has no borders along the last.
        outputs: Spatial extents that are computed.
        tiles: Spatial extents of a tile.
        vectors: Vectors at each place of the tile.
        lanes: Places of the tile that one vector holds.
    """
    fmas = math.prod(tiles) // lanes * vectors * math.prod(stage.kernel)
    counts = [math.ceil(extent / tile) for extent, tile in zip(outputs, tiles, strict=True)]
    borders = border_tiles(stage, inputs, outputs, tiles)
    versions = math.prod(min(sum(ends) + 1, count) for ends, count in zip(borders, counts, strict=True))
    return fmas <= MOST_UNROLLED_FMAS and fmas * versions <= MOST_PEELED_FMAS


def weights_of_row(stage: Stage, rows: int) -> int:
    """Counts the weights of the rows of taps that read one row of the input.

    Args:
        stage: The convolution.
        rows: Output rows in registers.

    Returns:
        The weights.
    """
    reach = (rows - 1) * stage.strides[-2] + 1  # rows of the input between the first and the last reader of a weight
    return stage.kernel[-1] * min(stage.kernel[-2], math.ceil(reach / stage.dilations[-2]))


def _beside(stage: Stage, rows: int, pixels: int) -> int:
    """Registers beside the accumulators: weights of the rows of taps that read one row of the input, and that row."""
    return weights_of_row(stage, rows) + _columns(stage, pixels)


def _columns(stage: Stage, pixels: int) -> int:
    """Inputs of one row that are in registers: all that a tile reads, or as many as are loaded ahead."""
    return min(_places_read(stage, 1, pixels)[-1], MOST_LOADED_AHEAD)


def _places_read(stage: Stage, rows: int, pixels: int) -> tuple[int, ...]:
    """Counts the places of each axis of the input that a tile reads; a dilated or strided convolution leaves some out."""
    domain = (*(1 for _ in stage.kernel[:-2]), rows, pixels)
    return tuple(starmap(_places, zip(domain, stage.strides, stage.kernel, stage.dilations, strict=True)))


@cache
def _places(extent: int, stride: int, taps: int, dilation: int) -> int:
    """Counts the places of one axis that some outputs side by side read."""
    return len({output * stride + tap * dilation for output in range(extent) for tap in range(taps)})
