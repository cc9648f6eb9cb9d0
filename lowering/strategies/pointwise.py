"""Pointwise convolution on the packed layout: a matrix product with a register tile of pixels by vectors.

# for n, oc_t task; p_o task by grain:        accumulators: p_i pixels * oc_i vectors, 14 of 32 for 7 x 2
#   for ic_o, ic_i:                           one step: oc_i loads, p_i broadcasts, p_i * oc_i FMA
#     unrolled oc_i, p_i: vector oc_v FMA
#   unrolled oc_i, p_i: epilogue, store       [n, oc_o, p, oc_v]

The weights of one `oc_t` (ic * oc_i * oc_v elements) stay in the first- or second-level cache while pixels stream
past. The pixels of an image are one axis, so a tile may span rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    copy_cycles,
    line_cycles,
    micro_kernel_cycles,
    parallel_cycles,
    register_tile_fits,
    register_tiles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import Source, ask_ahead, start_from_bias, tile_flat_pixels, unroll_lanes
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["PointwiseStrategy", "PointwiseTile"]


@dataclass(frozen=True, slots=True)
class PointwiseTile:
    """Sizes of a pointwise kernel.

    Attributes:
        pixels: Output pixels in registers.
        oc_vectors: Output channel vectors in registers.
        grain: Pixel tiles of one task.
        adjacent: Whether the inputs of pixels lie side by side.
    """

    pixels: int
    oc_vectors: int
    grain: int
    adjacent: bool = False

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.pixels, self.oc_vectors, self.grain) >= 1

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.pixels, self.oc_vectors, adjacent=self.adjacent)


class PointwiseStrategy:
    """One matrix product over all pixels of an image."""

    name = "pointwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses what moves pixels: a kernel, a stride, pads; and groups that do not fill vectors."""
        del device
        if len(workload.stages) != 1 or not workload.stages[0].flat:
            return Refusal("the kernel, stride or padding moves pixels")
        if compute.lane_source(workload.stages[0], workload.output_lanes) is not compute.LaneSource.BROADCAST:
            return Refusal("the lanes of a vector belong to different groups")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[PointwiseTile]:
        """All register tiles that fit, each with the pixel tiles of an image in one task or shared out."""
        pixels, blocks = _pixels(workload), _blocks(workload)
        found: list[PointwiseTile] = []
        adjacent = workload.input_lanes == 0
        for tile_pixels, oc_vectors in register_tiles(device, pixels, blocks, adjacent=adjacent):
            shares = grains(math.ceil(pixels / tile_pixels), threads)
            found += [PointwiseTile(tile_pixels, oc_vectors, grain, adjacent) for grain in shares]
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: PointwiseTile
    ) -> float:
        """Register tiles, plus weights and inputs streamed from where they lie."""
        stage = workload.stages[0]
        reduction, pixels, blocks = stage.in_channels_per_group, _pixels(workload), _blocks(workload)
        p_tiles, oc_tiles = math.ceil(pixels / tile.pixels), math.ceil(blocks / tile.oc_vectors)
        shares = math.ceil(p_tiles / tile.grain)
        together = blocks % tile.oc_vectors == 0
        kernel = micro_kernel_cycles(
            device, tile.pixels, tile.oc_vectors, reduction, adjacent=tile.adjacent, weights_together=together
        )
        vector = device.vector_bytes
        weight_tile = reduction * tile.oc_vectors * vector
        input_share = reduction * workload.dtypes.input_bytes * min(pixels, tile.grain * tile.pixels)
        input_tile = reduction * workload.dtypes.input_bytes * tile.pixels
        waits = reduction * line_cycles(device, input_share) if tile.adjacent else 0.0
        cycles = p_tiles * oc_tiles * (kernel + waits)
        # Each pixel tile reads the weights of its output tile; each output tile reads the task's pixels.
        weights = copy_cycles(device, weight_tile * p_tiles * oc_tiles, footprint_bytes=weight_tile + input_tile)
        inputs = copy_cycles(device, input_share * shares * oc_tiles, footprint_bytes=input_share + weight_tile)
        # Half of a stream hides behind arithmetic.
        cycles += (weights + inputs) / 2
        return parallel_cycles(cycles * workload.batch, workload.batch * oc_tiles * shares, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: PointwiseTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        pixels, blocks = _pixels(workload), _blocks(workload)
        pack = oc_pack(blocks, tile.oc_vectors)
        built = compute.conv(
            workload,
            (round_up(pixels, tile.pixels),),
            round_up(blocks, tile.oc_vectors),
            (pack,),
            flat=True,
        )
        sch = s_tir.Schedule(built.function)
        stage = workload.stages[0]
        (n, oc_t, p_o), steps = tile_flat_pixels(
            sch,
            built.stages[0],
            channels=stage.in_channels_per_group,
            lanes=workload.input_lanes,
            pixels=tile.pixels,
            oc_vectors=tile.oc_vectors,
        )
        steps[-1] = unroll_lanes(sch, device, steps[-1], tile.pixels * tile.oc_vectors)
        register_tile = tile.pixels, tile.oc_vectors
        source = None if tile.adjacent else Source.input_of(workload)
        ask_ahead(sch, device, workload, steps, tile=register_tile, passes=[(p_o, tile.grain)], source=source)
        mark_task(sch, n)
        mark_task(sch, oc_t)
        mark_task(sch, p_o, tile.grain)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        mark_clamp(sch, p_o, pixels, tile.pixels)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, (pack,), flat=True))
        return Implementation(function, conv_packer(workload, (pack,)))


def _pixels(workload: ConvWorkload) -> int:
    """Output pixels of one image."""
    return math.prod(workload.spatials[-1])


def _blocks(workload: ConvWorkload) -> int:
    """Output channel blocks."""
    return math.ceil(workload.stages[-1].out_channels / workload.output_lanes)
