"""Dense and aligned grouped convolution with scalable vectors along the width: SVE, right at every vector length.

# for n, oc_t, [od] task; oh task by share:
#   for ow by vectors * vscale:               the register tile of `scalable_tile`
#     for kh: unrolled kw:
#       for ic_o: unrolled ic_i, oc_i, vectors: FMA by lane
#     unrolled oc_i, vectors: epilogue, store [n, oc_o, oh, ow, oc_v]

Each tap of a row is a load at its own offset, and what it would read outside of the input is off in its predicate, so nothing is
copied. With a stride along the row each load is a gather. Memory and weights are those of the schedule with vectors of four
lanes.
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
from sepwise.lowering.strategies.steps import accumulate_in_registers, split_reduction
from sepwise.lowering.strategies.tiles import grains
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.scalable_tile import ScalableTile
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["ScalableDenseStrategy"]

MOST_UNROLLED_TAPS = 7
"""Taps of a row that are written out, each with a loop over channels."""


class ScalableDenseStrategy:
    """Direct convolution, the pixels of a row in scalable vectors."""

    name = "scalable dense"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses devices without scalable vectors, many taps, and channels that do not fill quads."""
        refusal = refuse_parted_quads(workload, device)
        if refusal is not None:
            return refusal
        if workload.stages[0].kernel[-1] > MOST_UNROLLED_TAPS:
            return Refusal("the taps of a row are too many to be written out")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[ScalableTile]:
        """All register tiles that fit, each with the rows of an image in one task or shared out."""
        shares = grains(workload.spatials[-1][-2], threads)
        found = scalable_tiles(device, _blocks(workload), shares, gathers=workload.stages[0].strides[-1] > 1)
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(self, workload: ConvWorkload, device: Device, threads: int, tile: ScalableTile) -> float:
        """Register tiles, plus weights and inputs streamed from where they lie."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        reduction = stage.in_channels_per_group * math.prod(stage.kernel)
        strips = tile.share * math.ceil(width / strip_pixels(device, tile))
        oc_tiles = math.ceil(_blocks(workload) / tile.oc_vectors)
        weight_tile = reduction * tile.oc_vectors * QUAD_BYTES
        *depth, in_rows, in_width = compute.input_extents(stage, (*(1 for _ in outer), tile.share, width))
        input_share = 4 * stage.in_channels_per_group * math.prod(depth) * in_rows * in_width
        # Each strip reads the weights of its output tile; each output tile reads the task's rows.
        weights = copy_cycles(device, weight_tile * strips, footprint_bytes=weight_tile + input_share // tile.share)
        inputs = copy_cycles(device, input_share, footprint_bytes=input_share + weight_tile)
        # Half of a stream hides behind arithmetic.
        tasks = workload.batch * oc_tiles * math.prod(outer) * math.ceil(height / tile.share)
        cycles = strips * strip_cycles(device, tile, reduction) + (weights + inputs) / 2
        return parallel_cycles(tasks * cycles, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: ScalableTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        stage, blocks = workload.stages[0], _blocks(workload)
        pack = oc_pack(blocks, tile.oc_vectors)
        built = compute.conv(workload, workload.spatials[-1], round_up(blocks, tile.oc_vectors), (pack,))
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        if names.pad is not None:
            sch.compute_inline(sch.get_sblock(names.pad))
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        n, oc_o, *depth, oh, ow, oc_v = sch.get_loops(output)
        oc_t, oc_i = sch.split(oc_o, [None, tile.oc_vectors])
        sch.reorder(n, oc_t, *depth, oh, ow, oc_i, oc_v)
        sch.compute_at(total, ow, preserve_unit_loops=True)
        rank = len(stage.kernel)
        *loops, t_oc_v = sch.get_loops(total)[: -rank - 1]
        t_oc_i, t_ow = loops[-1 - rank], loops[-1]
        *taps, ic = sch.get_loops(total)[-rank - 1 :]
        channels = split_reduction(sch, ic, stage.in_channels_per_group, workload.input_lanes)
        accumulate_in_registers(
            sch, total, output, [*taps, *channels], unrolled=[t_oc_i, t_ow], vector=t_oc_v, output_loops=[oc_i, oc_v]
        )
        for loop in (taps[-1], channels[-1]):
            sch.unroll(loop)
        for loop in (n, oc_t, *depth):
            mark_task(sch, loop)
        mark_task(sch, oh, tile.share)
        mark_scalable(sch, ow, tile.vectors)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        function = clamp_tiles(sch.mod["main"], true_shapes(workload, (pack,)))
        return Implementation(function, conv_packer(workload, (pack,)))


def _blocks(workload: ConvWorkload) -> int:
    """Output channel blocks."""
    return math.ceil(workload.stages[-1].out_channels / workload.output_lanes)
