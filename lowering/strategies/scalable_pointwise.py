"""Pointwise convolution with scalable vectors along the pixels: SVE, right at every vector length.

# for n, oc_t, p_o task:                      p_o: even shares of the pixels of an image
#   for p by vectors * vscale:                the register tile of `scalable_tile`
#     for ic_o: unrolled ic_i, oc_i, vectors: FMA by lane
#     unrolled oc_i, vectors: epilogue, store [n, oc_o, p, oc_v]

Memory and weights are those of the schedule with vectors of four lanes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import copy_cycles, parallel_cycles
from sepwise.lowering.scalable import QUAD_BYTES, mark_scalable
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer, oc_pack, true_shapes
from sepwise.lowering.strategies.scalable_tile import refuse_parted_quads, scalable_tiles, strip_cycles, strip_pixels
from sepwise.lowering.strategies.steps import tile_flat_pixels
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.scalable_tile import ScalableTile
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["ScalablePointwiseStrategy"]


class ScalablePointwiseStrategy:
    """One matrix product over all pixels of an image, the pixels in scalable vectors."""

    name = "scalable pointwise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses devices without scalable vectors, what moves pixels, and channels that do not fill quads."""
        refusal = refuse_parted_quads(workload, device)
        if refusal is None and not workload.stages[0].flat:
            return Refusal("the kernel, stride or padding moves pixels")
        return refusal

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[ScalableTile]:
        """All register tiles that fit, each with the pixels of an image in one task or shared out."""
        found = scalable_tiles(device, _blocks(workload), grains(_pixels(workload), threads))
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(self, workload: ConvWorkload, device: Device, threads: int, tile: ScalableTile) -> float:
        """Register tiles, plus weights and inputs streamed from where they lie."""
        reduction, pixels = workload.stages[0].in_channels_per_group, _pixels(workload)
        strips, oc_tiles = math.ceil(tile.share / strip_pixels(device, tile)), math.ceil(_blocks(workload) / tile.oc_vectors)
        kernel = strip_cycles(device, tile, reduction)
        weight_tile = reduction * tile.oc_vectors * QUAD_BYTES
        input_share = reduction * 4 * tile.share
        # Each strip reads the weights of its output tile; each output tile reads the task's pixels.
        weights = copy_cycles(
            device, weight_tile * strips, footprint_bytes=weight_tile + reduction * 4 * strip_pixels(device, tile)
        )
        inputs = copy_cycles(device, input_share, footprint_bytes=input_share + weight_tile)
        # Half of a stream hides behind arithmetic.
        tasks = workload.batch * oc_tiles * math.ceil(pixels / tile.share)
        return parallel_cycles(tasks * (strips * kernel + (weights + inputs) / 2), tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: ScalableTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        pixels, blocks = _pixels(workload), _blocks(workload)
        pack = oc_pack(blocks, tile.oc_vectors)
        domain = (round_up(pixels, tile.share),)
        built = compute.conv(workload, domain, round_up(blocks, tile.oc_vectors), (pack,), flat=True)
        sch = s_tir.Schedule(built.function)
        stage = workload.stages[0]
        (n, oc_t, p), (*_, ic_i) = tile_flat_pixels(
            sch,
            built.stages[0],
            channels=stage.in_channels_per_group,
            lanes=workload.input_lanes,
            pixels=1,
            oc_vectors=tile.oc_vectors,
        )
        sch.unroll(ic_i)
        p_o, p_i = sch.split(p, [None, tile.share])
        for loop in (n, oc_t, p_o):
            mark_task(sch, loop)
        mark_scalable(sch, p_i, tile.vectors)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        mark_clamp(sch, p_o, pixels, tile.share)
        function = clamp_tiles(sch.mod["main"], true_shapes(workload, (pack,), flat=True))
        return Implementation(function, conv_packer(workload, (pack,)))


def _pixels(workload: ConvWorkload) -> int:
    """Output pixels of one image."""
    return math.prod(workload.spatials[-1])


def _blocks(workload: ConvWorkload) -> int:
    """Output channel blocks."""
    return math.ceil(workload.stages[-1].out_channels / workload.output_lanes)
