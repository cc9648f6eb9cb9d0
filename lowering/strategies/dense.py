"""Dense and aligned grouped convolution: direct, a register tile of pixels of one row by output vectors.

# for n, [od], oh_o task:                     accumulators: ow_i pixels * oc_i vectors, 14 of 32 for 7 x 2
#   copy the padded input rows of oh_o        packed [ic_o, ih, iw, ic_v] or plain [ic, ih, iw]
#   for oc_t, oh_i, ow_o:
#     for kh, kw, ic_o, ic_i:                 one step: oc_i loads, ow_i broadcasts, ow_i * oc_i FMA
#       unrolled oc_i, ow_i: vector oc_v FMA
#     unrolled oc_i, ow_i: epilogue, store    [n, oc_o, oh, ow, oc_v]

Also for pointwise convolutions with a stride or with padding. The first layer reads its few channels from the
plain input as it is; where inputs are lanes its order is `kh, ic, kw`, as the taps of a row read the same vectors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    COPY_CYCLES,
    copy_cycles,
    line_cycles,
    micro_kernel_cycles,
    parallel_cycles,
    staged_cycles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer, input_rows_bytes, oc_pack, true_shapes
from sepwise.lowering.strategies.steps import (
    Source,
    accumulate_in_registers,
    ask_ahead,
    mark_rows,
    passes_of_rows,
    split_reduction,
    stage_rows,
    start_from_bias,
    tile_rows,
    unroll_lanes,
)
from sepwise.lowering.strategies.tiles import MOST_UNROLLED_FMAS, little_staged_bytes, rank_staging, row_tiles
from sepwise.lowering.tiling import clamp_tiles, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.tiles import RowTile
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["DenseStrategy"]


class DenseStrategy:
    """Direct convolution with one input channel for all lanes."""

    name = "dense"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses groups that do not fill vectors."""
        del device
        if len(workload.stages) != 1:
            return Refusal("one convolution at a time")
        if compute.lane_source(workload.stages[0], workload.output_lanes) is not compute.LaneSource.BROADCAST:
            return Refusal("the lanes of a vector belong to different groups")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[RowTile]:
        """Register tiles that fit, times row counts whose padded input fits the second-level cache."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        *depth, _, in_width = compute.input_extents(stage, (1,) * len(outer) + (1, width))
        row_bytes = float(workload.dtypes.input_bytes) * stage.in_channels * math.prod(depth) * stage.strides[-2] * in_width
        staged_bytes = row_bytes if stage.padded else 0
        adjacent = workload.input_lanes == 0 and stage.strides[-1] == 1
        found = row_tiles(device, height, width, blocks, staged_row_bytes=staged_bytes, adjacent=adjacent)
        return rank_staging(
            found,
            lambda tile: self.predicted_cycles(workload, device, threads, tile),
            lambda tile: input_rows_bytes(workload, tile.rows) if stage.padded else 0,
            little_bytes=little_staged_bytes(device),
        )

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: RowTile
    ) -> float:
        """Register tiles, the copy of the padded rows, and weights streamed once a task."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        per_group = stage.in_channels_per_group
        reduction = per_group * math.prod(stage.kernel)
        row_tasks, p_tiles = math.ceil(height / tile.rows), math.ceil(width / tile.pixels)
        oc_tiles = math.ceil(blocks / tile.oc_vectors)
        passes = math.ceil(oc_tiles / stage.groups)  # over the channels of a group
        together = blocks % tile.oc_vectors == 0
        kernel = micro_kernel_cycles(
            device, tile.pixels, tile.oc_vectors, reduction, adjacent=tile.adjacent, weights_together=together
        )
        staged_bytes = input_rows_bytes(workload, tile.rows)
        lines = reduction / stage.kernel[-1]  # the taps of a row share theirs
        waits = lines * line_cycles(device, staged_bytes) if tile.adjacent else 0.0
        cycles = tile.rows * p_tiles * oc_tiles * (kernel + waits)
        weight_tile = reduction * tile.oc_vectors * device.vector_bytes
        if stage.padded:
            cycles += staged_bytes / device.vector_bytes * COPY_CYCLES
            stored = float(tile.rows * width * device.vector_bytes)
            task_bytes, pass_bytes = staged_bytes + weight_tile + blocks * stored, weight_tile + tile.oc_vectors * stored
            inputs = staged_cycles(device, staged_bytes, passes=1, task_bytes=task_bytes, pass_bytes=pass_bytes)
            again = staged_bytes * (passes - 1)
            inputs += copy_cycles(device, again, footprint_bytes=staged_bytes / stage.groups + pass_bytes)
        else:
            inputs = copy_cycles(device, staged_bytes * passes, footprint_bytes=staged_bytes + weight_tile)
        weights = copy_cycles(device, weight_tile * oc_tiles, footprint_bytes=weight_tile * oc_tiles + staged_bytes)
        rereads = weight_tile * oc_tiles * (tile.rows * p_tiles - 1)
        weights += copy_cycles(device, rereads, footprint_bytes=weight_tile)
        tasks = workload.batch * math.prod(outer) * row_tasks
        return parallel_cycles((cycles + (inputs + weights) / 2) * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: RowTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        pack = oc_pack(blocks, tile.oc_vectors)
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.conv(workload, domain, round_up(blocks, tile.oc_vectors), (pack,))
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        nest = tile_rows(sch, names, rank=len(stage.kernel), tile=tile)
        if names.pad is not None:
            stage_rows(sch, sch.get_sblock(names.pad), nest.tasks[-1], workload)
        *taps, ic = nest.reduction
        channels = split_reduction(sch, ic, stage.in_channels_per_group, workload.input_lanes)
        taps_by_lane = device.multiplies_by_lane and workload.input_lanes == 0 and stage.kernel[-1] > 1
        steps = [*taps[:-1], *channels, taps[-1]] if taps_by_lane else [*taps, *channels]
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        accumulate_in_registers(
            sch, total, output, steps, unrolled=nest.registers, vector=nest.vector, output_loops=nest.output_loops
        )
        accumulators = tile.pixels * tile.oc_vectors
        if taps_by_lane:  # the taps of a row read lanes of the same vectors
            if accumulators * stage.kernel[-1] <= MOST_UNROLLED_FMAS:
                sch.unroll(taps[-1])
        elif device.multiplies_by_lane or accumulators * stage.in_channels_per_group * stage.kernel[-1] > MOST_UNROLLED_FMAS:
            steps[-1] = unroll_lanes(sch, device, steps[-1], accumulators)
            once = workload.input_lanes > 0 and math.prod(stage.kernel) == 1 and not stage.padded
            source = Source.input_of(workload) if once else None
            passes = passes_of_rows(nest, workload, tile)
            ask_ahead(sch, device, workload, steps, tile=(tile.pixels, tile.oc_vectors), passes=passes, source=source)
        else:
            for loop in steps[-2:]:  # of the taps too, LLVM would keep the pixels that they share, and spill them
                sch.unroll(loop)
        mark_rows(sch, nest, workload, tile)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, (pack,)))
        return Implementation(function, conv_packer(workload, (pack,)))
