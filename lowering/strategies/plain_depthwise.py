"""Depthwise convolution on plain tensors: lanes are neighbours along the width.

# for n, oc, [od] task; oh_o task by grain: accumulators: oh_i rows * ow_i vectors, 16 of 32 for 4 x 4
#   for ow_o:                               tiles at the border apart from inner ones (see `borders`)
#     unrolled by input: vector ow_v FMA    one step: an input, all FMA that read it; weights by lane: 3 vectors for 3 x 3
#     unrolled oh_i, ow_i: epilogue, store  [n, oc, oh, ow]

A tap reads a vector from its own, unaligned, place, which serves all rows of the tile: a 3 x 3 kernel on 4 rows loads 18 vectors
for 36 multiply-adds, whatever the channels: few that would fill no block, or many, where packing what is plain on either side
would take longer. With a stride it reads neighbouring vectors and takes every second lane; at the border a vector is what lies
inside, and zeros (see `width_loads`).

It is for ARM, whose loads that take lanes a stride apart and multiply-adds by lane it counts on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.borders import mark_border
from sepwise.lowering.cost import EPILOGUE_CYCLES, LOST_SHARE, TILE_OVERHEAD_CYCLES, parallel_cycles
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.depthwise_tile import MOST_LOADED_AHEAD, border_tiles, code_fits
from sepwise.lowering.strategies.steps import accumulate_in_registers, start_from_bias
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["PlainDepthwiseStrategy", "PlainDepthwiseTile"]


MOST_STRIDED = 1
"""Vectors of a row whose lanes lie a stride apart. Of more LLVM 22 merges loads that overlap and takes others apart: the
inner loop of 3 x 3 with stride 2 has 2.4 instructions a multiply-add with one, 3.0 with two (cortex-a72, the object's code)."""


@dataclass(frozen=True, slots=True)
class PlainDepthwiseTile:
    """Sizes of a depthwise kernel with lanes along the width.

    Attributes:
        rows: Output rows in registers.
        vectors: Vectors of each row in registers.
        lanes: Pixels of a vector.
        beside: Weights and inputs in registers beside the accumulators.
        grain: Row tiles of one task.
    """

    rows: int
    vectors: int
    lanes: int
    beside: int
    grain: int

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.vectors, self.lanes, self.beside, self.grain) >= 1

    @property
    def pixels(self) -> int:
        """Pixels of a row."""
        return self.vectors * self.lanes

    def fits(self, device: Device) -> bool:
        """Whether accumulators, weights and inputs fit the registers, and a product that is not fused."""
        return self.rows * self.vectors + self.beside + (not device.fuses_multiply_add) <= device.vector_registers


class PlainDepthwiseStrategy:
    """Each lane is a pixel of one row, of one channel."""

    name = "plain depthwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses x86, single lanes, packed tensors, groups of several channels, short rows, and taps too many to write out."""
        if device.isa != "arm":
            return Refusal("the model of its cycles is known to hold on ARM alone")
        if device.lanes == 1:
            return Refusal("the device has no vectors")
        if workload.input_lanes or workload.output_lanes:
            return Refusal("input or output is packed")
        if len(workload.stages) != 1:
            return Refusal("one convolution at a time")
        if workload.stages[0].in_channels_per_group != 1:
            return Refusal("an output reads several channels")
        if workload.spatials[-1][-1] < device.lanes:
            return Refusal("a row of outputs is shorter than a vector")
        if not self.tiles(workload, device, 1):
            return Refusal("the taps of a tile are too many to be written out")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[PlainDepthwiseTile]:
        """Rectangles that fit registers and code, each with the rows of an image in one task or shared out."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        lanes = device.lanes
        most_vectors = min(width // lanes, device.vector_registers) if stage.strides[-1] == 1 else MOST_STRIDED
        found = []
        for rows in range(1, min(height, device.vector_registers) + 1):
            for vectors in range(1, most_vectors + 1):
                tile = (*(1 for _ in outer), rows, vectors * lanes)
                if code_fits(stage, workload.spatial, workload.spatials[-1], tile, lanes=lanes):
                    beside = _weight_vectors(stage, device) + min(_columns(stage, vectors, lanes), MOST_LOADED_AHEAD)
                    shares = grains(math.ceil(height / rows), threads)
                    found += [PlainDepthwiseTile(rows, vectors, lanes, beside, grain) for grain in shares]
        fitting = [tile for tile in found if tile.fits(device)]
        return sorted(fitting, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: PlainDepthwiseTile
    ) -> float:
        """The register tiles."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        row_tiles = math.ceil(height / tile.rows)
        images = workload.batch * stage.out_channels * math.prod(outer)
        cycles = images * row_tiles * math.ceil(width / tile.pixels) * _tile_cycles(stage, device, tile)
        return parallel_cycles(cycles, images * math.ceil(row_tiles / tile.grain), threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: PlainDepthwiseTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        built = compute.plain_depthwise(workload, (*outer, round_up(height, tile.rows), round_up(width, tile.pixels)))
        sch, names, rank = s_tir.Schedule(built.function), built.stages[0], len(stage.kernel)
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        n, oc, *depth, oh, ow = sch.get_loops(output)
        oh_o, oh_i = sch.split(oh, [None, tile.rows])
        ow_o, ow_i, ow_v = sch.split(ow, [None, tile.vectors, tile.lanes])
        sch.reorder(n, oc, *depth, oh_o, ow_o, oh_i, ow_i, ow_v)
        sch.compute_at(total, ow_o, preserve_unit_loops=True)
        loops = sch.get_loops(total)
        taps = loops[-rank:]
        t_oh_i, t_ow = loops[-rank - 2 : -rank]
        t_ow_i, t_ow_v = sch.split(t_ow, [None, tile.lanes])
        accumulate_in_registers(
            sch, total, output, taps, unrolled=[t_oh_i, t_ow_i], vector=t_ow_v, output_loops=[oh_i, ow_i, ow_v]
        )
        for tap in taps:
            sch.unroll(tap)
        for loop in (n, oc, *depth):
            mark_task(sch, loop)
        mark_task(sch, oh_o, tile.grain)
        tiles = (*(1 for _ in outer), tile.rows, tile.pixels)
        borders = border_tiles(stage, workload.spatial, workload.spatials[-1], tiles)
        for loop, (first, last) in zip((*depth, oh_o, ow_o), borders, strict=True):
            mark_border(sch, loop, first, last)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        shapes = {"residual": workload.output_shape, names.output: workload.output_shape}
        return Implementation(clamp_tiles(start_from_bias(sch.mod["main"]), shapes), _pack)


def _pack(stages: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """`(oc, 1, *kernel)` -> `[oc, *kernel]`, and the bias as it is."""
    ((weight, bias),) = stages
    return [np.ascontiguousarray(weight[:, 0]), bias]


def _weight_vectors(stage: Stage, device: Device) -> int:
    """Registers of weights that stay: by lane, or one that is broadcast from memory."""
    return math.ceil(math.prod(stage.kernel) / device.lanes) if device.multiplies_by_lane else 1


def _columns(stage: Stage, vectors: int, lanes: int) -> int:
    """Vectors that the taps of one row read, each as often as it starts elsewhere."""
    stride, dilation = stage.strides[-1], stage.dilations[-1]
    return len({vector * lanes * stride + tap * dilation for vector in range(vectors) for tap in range(stage.kernel[-1])})


def _tile_cycles(stage: Stage, device: Device, tile: PlainDepthwiseTile) -> float:
    """Cycles of one register tile: multiply-adds, loads, lanes that are picked of them, addresses of rows, epilogue."""
    accumulators, taps, stride = tile.rows * tile.vectors, math.prod(stage.kernel), stage.strides[-1]
    fmas = accumulators * taps
    *outer, _ = compute.input_extents(stage, (*(1 for _ in stage.kernel[:-2]), tile.rows, tile.pixels))
    in_rows = math.prod(outer)
    inputs = in_rows * _columns(stage, tile.vectors, tile.lanes)
    loads, picked = inputs * stride, inputs * (stride - 1)
    if not device.multiplies_by_lane:
        loads += taps
    others = loads + picked + in_rows + tile.rows
    cycles = max(
        (fmas + picked) / device.fma_ports,
        loads / device.load_ports,
        (fmas + others) / device.issue_width,
        taps * device.fma_latency_cycles,
    )
    return cycles + LOST_SHARE * others / device.issue_width + accumulators * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES
