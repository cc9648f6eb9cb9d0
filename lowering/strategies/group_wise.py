"""Grouped convolution whose vectors hold lanes of several groups: each group computes whole vectors, the lanes are merged.

# for n, [od], oh_o task:                     accumulators: ow_i pixels * oc_i vectors, 14 of 32 for 7 x 2
#   copy the padded input rows of oh_o        packed [ic_o, ih, iw, ic_v] or plain [ic, ih, iw]
#   for g, oc_t, oh_i, ow_o:
#     for kh, kw, ic_o, ic_i:                 one step: oc_i loads, ow_i broadcasts, ow_i * oc_i FMA
#       unrolled oc_i, ow_i: vector oc_v FMA
#     unrolled oc_i, ow_i: store              sums [g, oc_b, oh_i, ow, oc_v]
#   for oc_o, oh_i, ow:
#     select lanes of groups, epilogue        [n, oc_o, oh, ow, oc_v]

A vector that several groups share is computed by each of them, and no lane moves: of 2 groups of 58 channels vectors of 16
lanes are computed 10 for 8, of 2 of 25 channels 6 for 4. Where groups are smaller than vectors, most lanes are computed in vain.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.cost import CACHE_SHARE, EPILOGUE_CYCLES, staged_cycles
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.dense import DenseStrategy
from sepwise.lowering.strategies.packing import pack_bias, pack_weight, true_shapes
from sepwise.lowering.strategies.steps import (
    RowNest,
    accumulate_in_registers,
    ask_ahead,
    passes_of_rows,
    split_reduction,
    stage_rows,
    start_from_bias,
    unroll_lanes,
)
from sepwise.lowering.strategies.tiles import little_staged_bytes, rank_staging, row_tiles
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm.s_tir.schedule import LoopRV

    from sepwise.lowering.compute import StageTensors
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.tiles import RowTile
    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["GroupWiseStrategy"]


class GroupWiseStrategy:
    """Lanes of one vector belong to several groups."""

    name = "group-wise"
    direct = True

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses groups that fill vectors, lanes that each read their own channel, and devices that multiply by a lane.

        There a step takes lanes that its code names, and a group's first channel may be any.
        """
        if len(workload.stages) != 1:
            return Refusal("one convolution at a time")
        source = compute.lane_source(workload.stages[0], workload.output_lanes)
        if source is not compute.LaneSource.GATHER:
            return Refusal(f"a lane reads {source.value}")
        if device.isa != "x86":
            return Refusal("the device does not broadcast what it loads beside a multiply-add")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[RowTile]:
        """Register tiles that fit, times row counts whose padded input and sums fit the second-level cache."""
        *_, height, width = workload.spatials[-1]
        adjacent = workload.input_lanes == 0 and workload.stages[0].strides[-1] == 1
        most = _most_blocks(workload.stages[0], workload.output_lanes)
        found = [
            tile
            for tile in row_tiles(device, height, width, most, staged_row_bytes=0, adjacent=adjacent)
            if tile.rows == 1 or sum(_staged_bytes(workload, tile)) <= CACHE_SHARE * device.l2_bytes
        ]
        return rank_staging(
            found,
            lambda tile: self.predicted_cycles(workload, device, threads, tile),
            lambda tile: sum(_staged_bytes(workload, tile)),
            little_bytes=little_staged_bytes(device),
        )

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: RowTile
    ) -> float:
        """As *dense* for groups that are rounded up to whole tiles; and the sums of a task, which are written and merged."""
        stage, lanes = workload.stages[0], workload.output_lanes
        *outer, height, width = workload.spatials[-1]
        computed = stage.groups * round_up(_most_blocks(stage, lanes), tile.oc_vectors)
        whole = replace(workload, stages=(replace(stage, out_channels=computed * lanes),))
        cycles = DenseStrategy().predicted_cycles(whole, device, threads, tile)
        input_bytes, sum_bytes = _staged_bytes(workload, tile)
        vectors = tile.rows * width * math.ceil(stage.out_channels / lanes)
        weights = stage.in_channels_per_group * math.prod(stage.kernel) * computed
        passed = input_bytes + (weights + vectors) * device.vector_bytes
        merged = vectors * EPILOGUE_CYCLES * compute.groups_of_block(stage, lanes)
        merged += staged_cycles(device, sum_bytes, passes=1, task_bytes=passed, pass_bytes=0) / 2
        tasks = workload.batch * math.prod(outer) * math.ceil(height / tile.rows)
        return cycles + merged * math.ceil(tasks / threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: RowTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        (stage,), lanes, rank = workload.stages, workload.output_lanes, len(workload.spatial)
        *outer, height, width = workload.spatials[-1]
        group_blocks = round_up(_most_blocks(stage, lanes), tile.oc_vectors)
        domain = (*outer, round_up(height, tile.rows), round_up(width, tile.pixels))
        built = compute.group_wise(workload, domain, group_blocks, tile.oc_vectors)
        sch = s_tir.Schedule(built.function)
        names, merged = built.stage, sch.get_sblock(built.merged)
        n, oc_o, *depth, oh, ow, oc_v = sch.get_loops(merged)
        oh_o, oh_i = sch.split(oh, [None, tile.rows])
        sch.reorder(n, *depth, oh_o, oc_o, oh_i, ow, oc_v)
        sch.vectorize(oc_v)
        tasks = [n, *depth, oh_o]
        nest = _tile_sums(sch, names, tasks, rank, tile)
        if names.pad is not None:
            stage_rows(sch, sch.get_sblock(names.pad), oh_o, workload)
        *taps, ic = nest.reduction
        steps = [*taps, *split_reduction(sch, ic, stage.in_channels_per_group, workload.input_lanes)]
        sums, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        accumulate_in_registers(
            sch, total, sums, steps, unrolled=nest.registers, vector=nest.vector, output_loops=nest.output_loops
        )
        steps[-1] = unroll_lanes(sch, device, steps[-1], tile.pixels * tile.oc_vectors)
        passes, register_tile = passes_of_rows(nest, workload, tile), (tile.pixels, tile.oc_vectors)
        ask_ahead(sch, device, workload, steps, tile=register_tile, passes=passes, source=None)
        for loop in tasks:
            mark_task(sch, loop)
        mark_clamp(sch, oh_o, height, tile.rows)
        mark_clamp(sch, nest.ow_o, width, tile.pixels)
        blocks = stage.groups * group_blocks
        shapes = true_shapes(workload, (1,)) | {
            "weight0": (blocks // tile.oc_vectors, *stage.kernel, stage.in_channels_per_group, tile.oc_vectors, lanes),
            "bias0": (blocks, lanes),
        }

        def pack(stages: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
            ((weight, bias),) = stages
            weight, bias = (_by_group(array, stage, lanes, group_blocks) for array in (weight, bias))
            return [pack_weight(weight, lanes, tile.oc_vectors), pack_bias(bias, lanes)]

        return Implementation(clamp_tiles(start_from_bias(sch.mod["main"]), shapes), pack)


def _tile_sums(
    sch: s_tir.Schedule, names: StageTensors, tasks: Sequence[LoopRV], rank: int, tile: RowTile
) -> RowNest:
    """`task: merge` -> `task: for oc_t, oh_i, ow_o: for oc_i, ow_i, oc_v: steps; sums; merge`, `oc` over blocks of all groups."""
    sums, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
    sch.compute_at(sums, tasks[-1], preserve_unit_loops=True)
    oc_b, *inner, oh_i, ow, oc_v = sch.get_loops(sums)[-rank - 2 :]
    oc_t, oc_i = sch.split(oc_b, [None, tile.oc_vectors])
    ow_o, ow_i = sch.split(ow, [None, tile.pixels], disable_predication=True)
    sch.reorder(oc_t, *inner, oh_i, ow_o, oc_i, ow_i, oc_v)
    sch.compute_at(total, ow_o, preserve_unit_loops=True)
    loops = sch.get_loops(total)
    *outer, t_oc_v = loops[: -rank - 1]
    registers = [outer[-1 - rank], outer[-1]]
    return RowNest(list(tasks), oc_t, oh_i, ow_o, loops[-rank - 1 :], registers, t_oc_v, [oc_i, ow_i, oc_v])


def _most_blocks(stage: Stage, lanes: int) -> int:
    """Output blocks that have a lane of a group, of that group which has most."""
    size = stage.out_channels_per_group
    return max(math.ceil((group + 1) * size / lanes) - group * size // lanes for group in range(stage.groups))


def _staged_bytes(workload: ConvWorkload, tile: RowTile) -> tuple[float, float]:
    """Bytes of the padded input and of the sums that a task writes."""
    stage, lanes = workload.stages[0], workload.output_lanes
    *outer, _, width = workload.spatials[-1]
    extents = compute.input_extents(stage, (*(1 for _ in outer), tile.rows, width))
    read = stage.in_channels * math.prod(extents) if stage.padded else 0
    computed = stage.groups * round_up(_most_blocks(stage, lanes), tile.oc_vectors)
    return float(workload.dtypes.input_bytes) * read, float(workload.dtypes.input_bytes) * computed * lanes * tile.rows * width


def _by_group(array: np.ndarray, stage: Stage, lanes: int, group_blocks: int) -> np.ndarray:
    """Channels `[oc, ...]` where each group computes them, `[g * group_blocks * oc_v, ...]`, zeros in lanes of others."""
    size = stage.out_channels_per_group
    placed = np.zeros((stage.groups, group_blocks * lanes, *array.shape[1:]), array.dtype)
    for group in range(stage.groups):
        first = group * size % lanes
        placed[group, first : first + size] = array[group * size : (group + 1) * size]
    return placed.reshape(-1, *array.shape[1:])
