"""Depthwise convolution with scalable vectors along the width: SVE, right at every vector length.

# for n, oc_o, [od] task; oh_o task by grain: accumulators: oh_i rows * `vectors` scalable vectors, 16 of 32 for 4 x 4
#   for ow by vectors * vscale:               rows at the border apart from inner ones (see `borders`)
#     unrolled by input: vectors: FMA         one step: an input, all FMA that read it; weights: a quad in all segments each
#     unrolled oh_i, vectors: epilogue, store [n, oc_o, oh, ow, oc_v]

A vector holds four channels of `vscale` neighbouring pixels (see `lowering.scalable`). Each tap of a row is a load at its own
offset, and what it would read beside the row is off in its predicate, so nothing is copied; strips inside the row need no
predicates and have code of their own. With a stride along the row each load is a gather, which takes a vector of indices. A 1-D
convolution is one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.borders import mark_border
from sepwise.lowering.cost import EPILOGUE_CYCLES, LOST_SHARE, TILE_OVERHEAD_CYCLES, parallel_cycles
from sepwise.lowering.scalable import NEAR_QUADS, QUAD_BYTES, mark_scalable
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise import refuse_shared_lanes
from sepwise.lowering.strategies.depthwise_tile import border_tiles, code_fits, weights_of_row
from sepwise.lowering.strategies.packing import conv_packer, true_shapes
from sepwise.lowering.strategies.scalable_tile import gather_slots
from sepwise.lowering.strategies.steps import tile_rectangle
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up
from sepwise.lowering.workload import DTypes

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["ScalableDepthwiseStrategy", "ScalableDepthwiseTile"]

PREDICATES: Final = 8
"""Predicates that loads take: p0 to p7."""


@dataclass(frozen=True, slots=True)
class ScalableDepthwiseTile:
    """Sizes of a depthwise kernel.

    Attributes:
        rows: Output rows in registers.
        vectors: Vectors of output pixels of each row.
        weights: Weights that are in registers at a time.
        grain: Row tiles of one task.
        indices: Vectors of indices of gathers that are in registers, 0 without a stride along the row.
    """

    rows: int
    vectors: int
    weights: int
    grain: int
    indices: int = 0

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.vectors, self.weights, self.grain, self.indices + 1) >= 1

    def fits(self, device: Device) -> bool:
        """Whether accumulators, weights, the inputs of one tap and indices are registers."""
        return self.rows * self.vectors + self.weights + self.vectors + self.indices <= device.vector_registers


class ScalableDepthwiseStrategy:
    """Each segment is a pixel, each of its lanes a channel."""

    name = "scalable depthwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses devices without scalable vectors, lanes that share a channel, and plain inputs."""
        if not device.scalable_bytes:
            return Refusal("the device has no scalable vectors")
        if workload.dtypes != DTypes():
            return Refusal(f"elements are {workload.dtypes}")
        refusal = refuse_shared_lanes(workload)
        if refusal is not None:
            return refusal
        if not self._code_fits(workload, 1, 1):
            return Refusal("a tile would be too long to write out")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[ScalableDepthwiseTile]:
        """Rectangles that fit registers and code, each with the rows of an image in one task or shared out."""
        stage, height = workload.stages[0], workload.spatials[-1][-2]
        found = []
        for rows in range(1, min(height, device.vector_registers) + 1):
            shares = grains(math.ceil(height / rows), threads)
            weights = weights_of_row(stage, rows)
            for vectors in range(1, device.vector_registers + 1):
                if self._code_fits(workload, rows, vectors):
                    indices = _indices(stage, vectors)
                    found += [ScalableDepthwiseTile(rows, vectors, weights, grain, indices) for grain in shares]
        # A kernel of many taps fits no tile whole: then its weights are loaded again for each row.
        fitting = [tile for tile in found if tile.fits(device)] or [ScalableDepthwiseTile(1, 1, 1, 1, _indices(stage, 1))]
        return sorted(fitting, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: ScalableDepthwiseTile
    ) -> float:
        """The register tiles; those at the ends of rows take longer where their predicates are more than there are.

        Before the strips of a row addresses, vectors of indices and predicates are made, two instructions for each of these.
        """
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        strips = math.ceil(width / (tile.vectors * (device.scalable_bytes // QUAD_BYTES)))
        row_tiles = math.ceil(height / tile.rows)
        accumulators, taps = tile.rows * tile.vectors, math.prod(stage.kernel)
        fmas = accumulators * taps
        *read, _ = compute.input_extents(stage, (*(1 for _ in outer), tile.rows, 1))
        inputs = math.prod(read) * stage.kernel[-1]
        loads = inputs * tile.vectors + taps
        if _gathers(stage):
            places = addresses = math.prod(read) * math.ceil(stage.kernel[-1] / _near_taps(stage))
            gathered = inputs * tile.vectors * gather_slots(device)
        else:
            places, gathered = inputs, 0
            addresses = inputs if tile.vectors > 1 else 0  # of the second vector; those of the first are in registers

        def strip(spills: int) -> float:
            others = loads + addresses + spills
            cycles = max(
                max(fmas, loads + spills) / device.scalable_ports,
                gathered / device.load_ports,
                (fmas + gathered) / device.fma_ports,
                (fmas + others) / device.issue_width,
                taps * device.fma_latency_cycles,
            )
            return cycles + LOST_SHARE * others / device.issue_width + accumulators * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES

        predicates = _predicates(stage, tile.vectors)
        spills = loads if predicates > PREDICATES else 0
        ends = min(strips, 2)
        before = (1 + LOST_SHARE) * (places + 2 * (tile.indices + predicates)) / device.issue_width
        row = before + ends * strip(spills) + (strips - ends) * strip(0)
        images = workload.batch * math.ceil(stage.out_channels / workload.output_lanes) * math.prod(outer)
        return parallel_cycles(images * row_tiles * row, images * math.ceil(row_tiles / tile.grain), threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: ScalableDepthwiseTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        built = compute.conv(workload, (*outer, round_up(height, tile.rows), width), blocks, (1,))
        sch = s_tir.Schedule(built.function)
        n, oc_o, *depth, oh_o, ow = tile_rectangle(sch, built.stages[0], rank=len(stage.kernel), rows=tile.rows, pixels=1)
        for loop in (n, oc_o, *depth):
            mark_task(sch, loop)
        mark_task(sch, oh_o, tile.grain)
        mark_scalable(sch, ow, tile.vectors)
        for loop, (first, last) in zip((*depth, oh_o), self._borders(workload, tile.rows), strict=True):
            mark_border(sch, loop, first, last)
        mark_clamp(sch, oh_o, height, tile.rows)
        function = clamp_tiles(sch.mod["main"], true_shapes(workload, (1,)))
        return Implementation(function, conv_packer(workload, (1,)))

    def _borders(self, workload: ConvWorkload, rows: int) -> list[tuple[int, int]]:
        """Tiles at the ends of all axes but the row's that read behind the border."""
        *outer, height, _ = workload.spatials[-1]
        tiles = (*(1 for _ in outer), rows)
        return border_tiles(workload.stages[0], workload.spatial[:-1], (*outer, height), tiles)

    def _code_fits(self, workload: ConvWorkload, rows: int, vectors: int) -> bool:
        """Whether all versions of a tile that the borders need are short enough to be written out."""
        *outer, height, _ = workload.spatials[-1]
        tiles = (*(1 for _ in outer), rows)
        return code_fits(workload.stages[0], workload.spatial[:-1], (*outer, height), tiles, vectors=vectors)


def _gathers(stage: Stage) -> bool:
    """Whether the pixels that neighbours read lie apart."""
    return stage.strides[-1] > 1


def _indices(stage: Stage, vectors: int) -> int:
    """Vectors of indices that gathers of a row of taps take: for each vector of pixels one a distance from their address."""
    return vectors * _near_taps(stage) if _gathers(stage) else 0


def _near_taps(stage: Stage) -> int:
    """Taps of a row that gathers read from one address."""
    return min(stage.kernel[-1], math.ceil(NEAR_QUADS / stage.dilations[-1]))


def _predicates(stage: Stage, vectors: int) -> int:
    """Predicates at the ends of a row: all lanes, the pixels of each vector, and those of each tap that reads beside the row.

    Gathers have their own of the pixels of each vector, as their elements are larger.
    """
    offsets = [tap * stage.dilations[-1] - stage.pads_begin[-1] for tap in range(stage.kernel[-1])]
    before = sum(min(math.ceil(-offset / stage.strides[-1]), vectors) for offset in offsets if offset < 0)
    behind = sum(offset > 0 for offset in offsets)
    return 1 + vectors * (1 + _gathers(stage) + behind) + before
