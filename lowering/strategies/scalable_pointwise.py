"""Pointwise convolution with scalable vectors along the pixels: SVE, right at every vector length.

# for n, oc_t, p_o task:                      p_o: even shares of the pixels of an image
#   for p by vectors * vscale:                accumulators: `vectors` * oc_i scalable vectors, 25 of 32 for 5 x 5
#     for ic_o: unrolled ic_i:                one step: oc_i quads of weights, each in all segments
#       unrolled oc_i, vectors: FMA by lane   `vectors` inputs, loaded once for four steps
#     unrolled oc_i, vectors: epilogue, store [n, oc_o, p, oc_v]

A vector holds four channels of `vscale` pixels (see `lowering.scalable`), so memory and weights are those of the schedule with
vectors of four lanes. The FMA by lane takes its inputs from the first eight registers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    EPILOGUE_CYCLES,
    LOOP_INSTRUCTIONS,
    LOST_SHARE,
    TILE_OVERHEAD_CYCLES,
    copy_cycles,
    parallel_cycles,
)
from sepwise.lowering.scalable import QUAD_BYTES, mark_scalable
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import accumulate_in_registers, split_reduction
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up
from sepwise.lowering.workload import DTypes

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["ScalablePointwiseStrategy", "ScalablePointwiseTile"]

MOST_VECTORS: Final = 5
"""Vectors of inputs that LLVM keeps in z0 to z7, of which alone a lane-indexed FMA takes lanes."""

LEAST_READERS: Final = 3
"""Quads of weights that have to read an input: for fewer LLVM gives z0 to z7 to accumulators, and moves the inputs."""


@dataclass(frozen=True, slots=True)
class ScalablePointwiseTile:
    """Sizes of a pointwise kernel.

    Attributes:
        vectors: Vectors of output pixels in registers.
        oc_vectors: Quads of output channels in registers.
        pixels: Output pixels of one task.
    """

    vectors: int
    oc_vectors: int
    pixels: int

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.vectors, self.oc_vectors, self.pixels) >= 1

    def fits(self, device: Device) -> bool:
        """Whether accumulators, inputs and two quads of weights are registers."""
        live = self.vectors * self.oc_vectors + self.vectors + min(self.oc_vectors, 2)
        most_vectors = MOST_VECTORS if self.oc_vectors >= LEAST_READERS else self.oc_vectors
        return self.vectors <= most_vectors and live <= device.vector_registers


class ScalablePointwiseStrategy:
    """One matrix product over all pixels of an image, the pixels in scalable vectors."""

    name = "scalable pointwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses devices without scalable vectors, what moves pixels, groups, and channels that do not fill quads."""
        if not device.scalable_bytes:
            return Refusal("the device has no scalable vectors")
        if workload.dtypes != DTypes():
            return Refusal(f"elements are {workload.dtypes}")
        if len(workload.stages) != 1 or not workload.stages[0].flat:
            return Refusal("the kernel, stride or padding moves pixels")
        if workload.stages[0].groups > 1:
            return Refusal("channels are grouped")
        if workload.input_lanes != workload.output_lanes or workload.stages[0].in_channels % workload.input_lanes:
            return Refusal("the channels of a pixel are not whole vectors")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[ScalablePointwiseTile]:
        """All register tiles that fit, each with the pixels of an image in one task or shared out."""
        pixels, blocks = _pixels(workload), _blocks(workload)
        found = [
            ScalablePointwiseTile(vectors, oc_vectors, share)
            for vectors in range(1, MOST_VECTORS + 1)
            for oc_vectors in range(1, min(blocks, device.vector_registers) + 1)
            for share in grains(pixels, threads)
        ]
        fitting = [tile for tile in found if tile.fits(device)]
        return sorted(fitting, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: ScalablePointwiseTile
    ) -> float:
        """Register tiles, plus weights and inputs streamed from where they lie."""
        reduction, pixels = workload.stages[0].in_channels, _pixels(workload)
        tile_pixels = tile.vectors * (device.scalable_bytes // QUAD_BYTES)
        strips, oc_tiles = math.ceil(tile.pixels / tile_pixels), math.ceil(_blocks(workload) / tile.oc_vectors)
        fmas = tile.vectors * tile.oc_vectors
        loads = tile.vectors / workload.input_lanes + tile.oc_vectors
        others = loads + LOOP_INSTRUCTIONS / workload.input_lanes
        step = max(
            max(fmas, loads) / device.scalable_ports,
            (fmas + others) / device.issue_width,
            device.fma_latency_cycles,
        )
        step += LOST_SHARE * others / device.issue_width
        kernel = reduction * step + fmas * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES
        weight_tile = reduction * tile.oc_vectors * QUAD_BYTES
        input_share = reduction * 4 * tile.pixels
        # Each strip reads the weights of its output tile; each output tile reads the task's pixels.
        weights = copy_cycles(device, weight_tile * strips, footprint_bytes=weight_tile + reduction * 4 * tile_pixels)
        inputs = copy_cycles(device, input_share, footprint_bytes=input_share + weight_tile)
        # Half of a stream hides behind arithmetic.
        tasks = workload.batch * oc_tiles * math.ceil(pixels / tile.pixels)
        return parallel_cycles(tasks * (strips * kernel + (weights + inputs) / 2), tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: ScalablePointwiseTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        pixels, blocks = _pixels(workload), _blocks(workload)
        pack = oc_pack(blocks, tile.oc_vectors)
        domain = (round_up(pixels, tile.pixels),)
        built = compute.conv(workload, domain, round_up(blocks, tile.oc_vectors), (pack,), flat=True)
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        n, oc_o, p, oc_v = sch.get_loops(output)
        oc_t, oc_i = sch.split(oc_o, [None, tile.oc_vectors])
        p_o, p_i = sch.split(p, [None, tile.pixels])
        sch.reorder(n, oc_t, p_o, p_i, oc_i, oc_v)
        sch.compute_at(total, p_i, preserve_unit_loops=True)
        _, t_oc_i, t_p, t_oc_v, ic = sch.get_loops(total)[4:]
        steps = split_reduction(sch, ic, workload.stages[0].in_channels, workload.input_lanes)
        accumulate_in_registers(
            sch, total, output, steps, unrolled=[t_oc_i, t_p], vector=t_oc_v, output_loops=[oc_i, oc_v]
        )
        sch.unroll(steps[-1])
        for loop in (n, oc_t, p_o):
            mark_task(sch, loop)
        mark_scalable(sch, p_i, tile.vectors)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        mark_clamp(sch, p_o, pixels, tile.pixels)
        function = clamp_tiles(sch.mod["main"], true_shapes(workload, (pack,), flat=True))
        return Implementation(function, conv_packer(workload, (pack,)))


def _pixels(workload: ConvWorkload) -> int:
    """Output pixels of one image."""
    return math.prod(workload.spatials[-1])


def _blocks(workload: ConvWorkload) -> int:
    """Output channel blocks."""
    return math.ceil(workload.stages[-1].out_channels / workload.output_lanes)
