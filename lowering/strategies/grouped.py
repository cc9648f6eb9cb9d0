"""Grouped convolution whose vectors hold lanes of several groups: the inputs of a vector are put together in registers.

# for n, [od], oh_o task:                 accumulators: ow_i pixels, and as many inputs where taps share them: 14 + 14 of 32
#   copy the padded input rows of oh_o    packed [ic_o, ih, iw, ic_v] or plain [ic, ih, iw]
#   for oc_o, oh_i, ow_o:
#     for kh, ic_o, ic_i:                 one step: kw weights, one input vector a column, ow_i * kw FMA
#       unrolled kw, ow_i: vector oc_v FMA
#     unrolled ow_i: epilogue, store      [n, oc_o, oh, ow, oc_v]

The input vector of one column and one step of `ic_i` holds for each lane the channel of its group, in one of two forms:

- selected: each group's channel is broadcast, and the lanes take theirs; for any channels, cheap for few groups;
- permuted: where groups fill vectors evenly, the input's vectors are permuted, by `ic_i` unrolled a constant
  permutation (see `lane_loads`).

Either way it costs moves beside the FMAs, and serves all taps of a row that read the column. `group_wise` makes none, and
multiplies for lanes that it leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    COPY_CYCLES,
    EPILOGUE_CYCLES,
    LOST_SHARE,
    TILE_OVERHEAD_CYCLES,
    copy_cycles,
    loads_alone,
    parallel_cycles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer, input_rows_bytes, true_shapes
from sepwise.lowering.strategies.steps import accumulate_in_registers, split_reduction, stage_rows, start_from_bias
from sepwise.lowering.strategies.tiles import MOST_UNROLLED_FMAS, little_staged_bytes, rank_staging, row_shares
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["GroupedStrategy", "GroupedTile"]


@dataclass(frozen=True, slots=True)
class GroupedTile:
    """Sizes of a grouped kernel.

    Attributes:
        rows: Output rows of one task.
        pixels: Output pixels in registers, all of one row.
        inputs: Input vectors that stay in registers.
        permuted: Whether inputs are permuted, else selected.
    """

    rows: int
    pixels: int
    inputs: int
    permuted: bool

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.pixels, self.inputs) >= 1

    def fits(self, device: Device) -> bool:
        """Whether accumulators and inputs leave registers for a weight, a mask or permutation, and what it makes."""
        return self.pixels + self.inputs + 3 <= device.vector_registers


class GroupedStrategy:
    """Lanes of one vector belong to several groups."""

    name = "grouped"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses groups that fill vectors, and lanes that each read their own channel."""
        del device
        if len(workload.stages) != 1:
            return Refusal("one convolution at a time")
        source = compute.lane_source(workload.stages[0], workload.output_lanes)
        if source is not compute.LaneSource.GATHER:
            return Refusal(f"a lane reads {source.value}")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[GroupedTile]:
        """Row counts whose copied input fits the second-level cache, times pixels that fit with their inputs, in each form."""
        stage = workload.stages[0]
        *_, height, width = workload.spatials[-1]
        row_bytes = input_rows_bytes(workload, 2) - input_rows_bytes(workload, 1) if stage.padded else 0
        forms = [False]
        if compute.permuted_channels(stage, workload.input_lanes, workload.output_lanes):
            # At equal cost: a single step loads less where it permutes, several need fewer registers where they select.
            forms = [True, False] if stage.in_channels_per_group == 1 else [False, True]
        found = [
            GroupedTile(rows, pixels, _inputs(workload, pixels, permuted=permuted), permuted)
            for rows in row_shares(device, height, staged_row_bytes=row_bytes)
            for pixels in range(1, min(width, device.vector_registers) + 1)
            for permuted in forms
        ]
        fitting = [tile for tile in found if tile.fits(device)]
        return rank_staging(
            fitting,
            lambda tile: self.predicted_cycles(workload, device, threads, tile),
            lambda tile: input_rows_bytes(workload, tile.rows) if stage.padded else 0,
            little_bytes=little_staged_bytes(device),
        )

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: GroupedTile
    ) -> float:
        """Register tiles, and the copy of the padded rows."""
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        steps = stage.in_channels_per_group * math.prod(stage.kernel[:-1])
        kernel = steps * _step_cycles(workload, device, tile) + tile.pixels * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES
        cycles = tile.rows * math.ceil(width / tile.pixels) * blocks * kernel
        if stage.padded:
            staged_bytes = input_rows_bytes(workload, tile.rows)
            cycles += staged_bytes / device.vector_bytes * COPY_CYCLES
            cycles += copy_cycles(device, 2 * staged_bytes, footprint_bytes=staged_bytes)  # written, and read
        tasks = workload.batch * math.prod(outer) * math.ceil(height / tile.rows)
        return parallel_cycles(cycles * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: GroupedTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        stage = workload.stages[0]
        *outer, height, width = workload.spatials[-1]
        blocks = math.ceil(stage.out_channels / workload.output_lanes)
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.conv(workload, domain, blocks, (1,), permuted=tile.permuted)
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        n, oc_o, *depth, oh, ow, oc_v = sch.get_loops(output)
        oh_o, oh_i = sch.split(oh, [None, tile.rows])
        ow_o, ow_i = sch.split(ow, [None, tile.pixels])
        sch.reorder(n, *depth, oh_o, oc_o, oh_i, ow_o, ow_i, oc_v)
        sch.compute_at(total, ow_o, preserve_unit_loops=True)
        if names.pad is not None:
            stage_rows(sch, sch.get_sblock(names.pad), oh_o, workload)
        rank = len(stage.kernel)
        *_, t_ow_i, t_oc_v = sch.get_loops(total)[: -rank - 1]
        *taps, kw, ic = sch.get_loops(total)[-rank - 1 :]
        ic_o, ic_i = split_reduction(sch, ic, stage.in_channels_per_group, workload.input_lanes)
        accumulate_in_registers(
            sch, total, output, [*taps, ic_o, ic_i, kw], unrolled=[t_ow_i], vector=t_oc_v, output_loops=[ow_i, oc_v]
        )
        if tile.permuted:
            sch.unroll(ic_i)
        if tile.pixels * stage.kernel[-1] <= MOST_UNROLLED_FMAS:
            sch.unroll(kw)
        for loop in (n, *depth, oh_o):
            mark_task(sch, loop)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, ow_o, width, tile.pixels)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), true_shapes(workload, (1,)))
        return Implementation(function, conv_packer(workload, (1,)))


def _columns(stage: Stage, pixels: int) -> int:
    """Columns of the input that a row of taps reads for some pixels, each as often as it is put together."""
    taps = stage.kernel[-1]
    if pixels * taps > MOST_UNROLLED_FMAS:
        return pixels * taps
    stride, dilation = stage.strides[-1], stage.dilations[-1]
    return len({pixel * stride + tap * dilation for pixel in range(pixels) for tap in range(taps)})


def _inputs(workload: ConvWorkload, pixels: int, *, permuted: bool) -> int:
    """Input vectors that LLVM keeps in registers.

    Steps that permute the same vectors keep those, less the columns that are dead after their last tap; taps that share
    what was put together keep one a pixel; else each is used at once.
    """
    stage = workload.stages[0]
    columns, taps = _columns(stage, pixels), stage.kernel[-1]
    if permuted and stage.in_channels_per_group > 1:
        return max(1, columns - taps + 1) * _permuted_vectors(workload)
    return pixels if columns < pixels * taps else 1


def _permuted_vectors(workload: ConvWorkload) -> int:
    """Vectors of the input that hold one channel of each group of a block."""
    stage, lanes = workload.stages[0], workload.output_lanes
    vectors = math.ceil(compute.permuted_channels(stage, workload.input_lanes, lanes) / lanes)
    return min(vectors, compute.groups_of_block(stage, lanes))


def _step_cycles(workload: ConvWorkload, device: Device, tile: GroupedTile) -> float:
    """Cycles of one row of taps and one channel of each group: FMAs and moves share the ports of vector arithmetic."""
    stage, lanes = workload.stages[0], workload.output_lanes
    groups, taps = compute.groups_of_block(stage, lanes), stage.kernel[-1]
    if tile.permuted:
        loads = _permuted_vectors(workload)
        moves = max(1, loads - 1)
        slots = loads + moves
    else:
        loads = groups
        # x86 broadcasts while it loads, with masks it selects, too, and ARM spends moves on both.
        moves = groups - 1 if device.isa == "x86" else 2 * groups - 1
        slots = loads if "avx512f" in device.flags else loads + moves
    columns, fmas = _columns(stage, tile.pixels), tile.pixels * taps
    others = columns * slots + taps
    step = max(
        (fmas + columns * moves) / device.fma_ports,
        (columns * loads + taps) / device.load_ports,
        (fmas + others) / device.issue_width,
        taps * device.fma_latency_cycles,
    )
    alone = device.multiplies_by_lane and loads_alone(device)
    return step if alone else step + LOST_SHARE * others / device.issue_width
