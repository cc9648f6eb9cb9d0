"""Winograd's convolution: 3 x 3 taps, stride 1, by products of transformed tiles (`passes.equivalence.winograd` has the algebra).

# for n, s_h, s_w task:                       a block of th x tw tiles, m x m outputs each; p = th * tw
#   for ic_o:
#     copy the padded input of the block      [ih, iw, ic_v], first-level cache
#     for p: B' d B                           -> [n * n, ic_o, p, ic_v], second-level cache
#   for oc_t:
#     for n * n, p_o:                         accumulators: p_i tiles * oc_i vectors, 14 of 32 for 7 x 2
#       for ic_o, ic_i: unrolled oc_i, p_i: vector oc_v FMA
#       store                                 -> [n * n, oc_i, p, oc_v], first-level cache
#     for p, oc_i: A' M A, epilogue, store    [n, oc_o, oh, ow, oc_v]

These are (m + 2)^2 multiply-adds in place of 9 m^2: 16 for 36, or 36 for 144. Weights are transformed in float64 when they are
packed. What tiles compute beyond the borders of the output is not stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm_ffi
from tvm import s_tir, tirx

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    COPY_CYCLES,
    EPILOGUE_CYCLES,
    TILE_OVERHEAD_CYCLES,
    copy_cycles,
    micro_kernel_cycles,
    parallel_cycles,
    register_tile_fits,
    register_tiles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import oc_pack, pack_bias, pack_weight, true_shapes
from sepwise.lowering.strategies.steps import (
    accumulate_in_registers,
    ask_for_next_weights,
    split_reduction,
    stage_rows,
    unroll_lanes,
)
from sepwise.lowering.strategies.tiles import row_shares
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up
from sepwise.lowering.workload import DTypes
from sepwise.passes.equivalence.winograd import TAPS, Winograd

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["Winograd2Strategy", "Winograd4Strategy", "WinogradTile"]


BEYOND_LEVEL_3 = 4
"""How much faster a level 3 cache, where there is one, is read than memory: `Device.memory_bytes_per_cycle` is its rate."""

NETWORK_BYTES = 128 << 20
"""Weights and tensors of a large network (Xception: 92 MB of weights): a level 3 with room for them keeps them between runs."""


@dataclass(frozen=True, slots=True)
class WinogradTile:
    """Sizes of a Winograd kernel.

    Attributes:
        rows: Rows of tiles of one task.
        columns: Tiles of each of these rows.
        pixels: Tiles in registers of one matrix product, a divisor of the task's.
        oc_vectors: Output channel vectors in registers.
    """

    rows: int
    columns: int
    pixels: int
    oc_vectors: int

    def __post_init__(self) -> None:
        """Checks that every size is positive and that register tiles divide the task."""
        assert min(self.rows, self.columns, self.pixels, self.oc_vectors) >= 1
        assert self.rows * self.columns % self.pixels == 0

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.pixels, self.oc_vectors)


class _WinogradStrategy:
    """F(m x m, 3 x 3)."""

    name: str
    direct = False
    algorithm: Winograd

    def applies(self, workload: ConvWorkload, device: Device) -> Refusal | None:
        """Refuses other geometries, groups and types, plain inputs, and devices without a second-level cache."""
        if not device.l2_bytes:
            return Refusal("the device has no second-level cache for transformed inputs and more weights")
        if len(workload.stages) != 1:
            return Refusal("one convolution at a time")
        stage = workload.stages[0]
        if stage.kernel != (TAPS, TAPS) or stage.strides != (1, 1) or stage.dilations != (1, 1) or stage.groups != 1:
            return Refusal("not 3 x 3 with stride 1, dilation 1 and one group")
        if stage.phase:
            return Refusal("phases of a transposed convolution, of which no bound by transformed tiles is known")
        if workload.dtypes != DTypes():
            return Refusal(f"elements are {workload.dtypes}, whose few digits the transforms would lose")
        if workload.input_lanes != workload.output_lanes:
            return Refusal("input and output are packed differently")
        return None

    def tiles(self, workload: ConvWorkload, device: Device, threads: int) -> list[WinogradTile]:
        """Blocks of tiles whose transformed input fits the second-level cache, times register tiles that divide them."""
        found = []
        high, wide = self._grid(workload)
        _, blocks = _blocks(workload)
        vectors = self.algorithm.size**2 * _blocks(workload)[0]
        for columns in row_shares(device, wide, staged_row_bytes=vectors * device.vector_bytes):
            row_bytes = vectors * columns * device.vector_bytes
            for rows in row_shares(device, high, staged_row_bytes=row_bytes) if columns == wide else [1]:
                for pixels, oc_vectors in register_tiles(device, rows * columns, blocks):
                    if rows * columns % pixels == 0:
                        found.append(WinogradTile(rows, columns, pixels, oc_vectors))
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: ConvWorkload, device: Device, threads: int, tile: WinogradTile
    ) -> float:
        """Copy, transforms and products of each block, with weights streamed once for each.

        The weights are more than direct convolution reads, and of a network few caches hold them from one run to the next: the
        first read of what is more comes from beyond level 2, with little to hide behind where few tiles read each weight.
        """
        outputs, size = self.algorithm.outputs, self.algorithm.size
        in_blocks, blocks = _blocks(workload)
        reduction = workload.stages[0].in_channels
        high, wide = self._grid(workload)
        count, vector = tile.rows * tile.columns, device.vector_bytes
        oc_tiles, together = math.ceil(blocks / tile.oc_vectors), blocks % tile.oc_vectors == 0
        staged = (tile.rows * outputs + TAPS - 1) * (tile.columns * outputs + TAPS - 1)
        cycles = in_blocks * staged * COPY_CYCLES
        # Of each transform the operations of one row or column, as often as there are rows and columns.
        pairs = len(self.algorithm.squares)
        sums = 2 * pairs * size - (size - 2)
        cycles += in_blocks * count * _transform_cycles(device, 2 * size * sums, size**2, size**2)
        sums = pairs * (2 + outputs) + outputs
        stored = (size + outputs) * sums
        cycles += oc_tiles * tile.oc_vectors * count * _transform_cycles(device, stored, size**2, 0)
        cycles += oc_tiles * tile.oc_vectors * count * outputs**2 * EPILOGUE_CYCLES
        product = micro_kernel_cycles(device, tile.pixels, tile.oc_vectors, reduction, weights_together=together)
        cycles += size**2 * oc_tiles * (count // tile.pixels) * product
        weight_tile = float(size**2 * reduction * tile.oc_vectors * vector)
        inputs = float(size**2 * in_blocks * count * vector)
        sums_bytes = float(size**2 * tile.oc_vectors * count * vector)
        streams = copy_cycles(device, inputs * (1 + oc_tiles), footprint_bytes=inputs + weight_tile)
        streams += copy_cycles(device, weight_tile * oc_tiles, footprint_bytes=weight_tile * oc_tiles + inputs)
        slab = (weight_tile + inputs + sums_bytes) / size**2
        rereads = weight_tile * oc_tiles * (count // tile.pixels - 1)
        streams += copy_cycles(device, rereads, footprint_bytes=slab)
        streams += copy_cycles(device, 2 * sums_bytes * oc_tiles, footprint_bytes=sums_bytes + slab)
        tasks = workload.batch * math.ceil(high / tile.rows) * math.ceil(wide / tile.columns)
        cold = weight_tile * oc_tiles * (1 - (TAPS / size) ** 2) / _cold_bytes_per_cycle(device)
        return cold + parallel_cycles((cycles + streams / 2) * tasks, tasks, threads)

    def schedule(self, workload: ConvWorkload, device: Device, tile: WinogradTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        outputs, size = self.algorithm.outputs, self.algorithm.size
        stage = workload.stages[0]
        height, width = workload.spatials[-1]
        _, blocks = _blocks(workload)
        pack = oc_pack(blocks, tile.oc_vectors)
        grid = (tile.rows, tile.columns)
        built = compute.winograd(workload, self.algorithm, grid, round_up(blocks, tile.oc_vectors), pack)
        sch = s_tir.Schedule(built.function)
        output = sch.get_sblock(built.output)
        n, oc_o, oh, ow, oc_v = sch.get_loops(output)
        oc_t, oc_i = sch.split(oc_o, [None, tile.oc_vectors])
        s_h, th, i = sch.split(oh, [None, tile.rows, outputs])
        s_w, tw, j = sch.split(ow, [None, tile.columns, outputs])
        sch.reorder(n, s_h, s_w, oc_t, th, tw, oc_i, i, j, oc_v)

        columns = sch.get_sblock(built.columns)
        sch.compute_at(columns, oc_i, preserve_unit_loops=True)
        _in_registers(sch, columns, 3)
        for loop in (i, j):
            sch.unroll(loop)
        sch.vectorize(oc_v)

        product, total = sch.get_sblock(built.product), sch.get_sblock(built.accumulator)
        sch.compute_at(product, oc_t, preserve_unit_loops=True)
        e, p_oc_i, p, p_oc_v = sch.get_loops(product)[-4:]
        p_o, p_i = sch.split(p, [None, tile.pixels])
        sch.reorder(e, p_o, p_oc_i, p_i, p_oc_v)
        sch.compute_at(total, p_o, preserve_unit_loops=True)
        t_oc_i, t_p_i, t_oc_v, ic = sch.get_loops(total)[-4:]
        steps = split_reduction(sch, ic, stage.in_channels, workload.input_lanes)
        accumulate_in_registers(
            sch, total, product, steps, unrolled=[t_oc_i, t_p_i], vector=t_oc_v, output_loops=[p_oc_i, p_i, p_oc_v]
        )
        steps[-1] = unroll_lanes(sch, device, steps[-1], tile.pixels * tile.oc_vectors)
        if device.isa == "x86" and pack == tile.oc_vectors:
            slab = stage.in_channels * pack * workload.output_lanes
            ask_for_next_weights(sch, [(p_o, tile.rows * tile.columns // tile.pixels)], steps, "weight0", slab)

        values = sch.get_sblock(built.values)
        sch.compute_at(values, s_w, preserve_unit_loops=True)
        v_e, v_ic_o, v_p, v_ic_v = sch.get_loops(values)[-4:]
        v_a, v_b = sch.split(v_e, [None, size])
        v_th, v_tw = sch.split(v_p, [None, tile.columns])
        sch.reorder(v_ic_o, v_th, v_tw, v_a, v_b, v_ic_v)
        rows = sch.get_sblock(built.rows)
        sch.compute_at(rows, v_tw, preserve_unit_loops=True)
        _in_registers(sch, rows, 3)
        for loop in (v_a, v_b):
            sch.unroll(loop)
        sch.vectorize(v_ic_v)
        stage_rows(sch, sch.get_sblock(built.pad), v_ic_o, workload)

        for loop in (n, s_h, s_w):
            mark_task(sch, loop)
        mark_clamp(sch, oc_t, blocks, tile.oc_vectors)
        shapes = true_shapes(workload, (pack,))
        shapes["weight0"] = (blocks // pack, size**2, stage.in_channels, pack, workload.output_lanes)
        function = _store_inside(sch.mod["main"], built.output, (height, width))
        return Implementation(clamp_tiles(function, shapes), lambda stages: self._pack(workload, pack, stages))

    def _grid(self, workload: ConvWorkload) -> tuple[int, int]:
        """Tiles along the height and the width of the output."""
        height, width = workload.spatials[-1]
        return math.ceil(height / self.algorithm.outputs), math.ceil(width / self.algorithm.outputs)

    def _pack(
        self, workload: ConvWorkload, pack: int, stages: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[np.ndarray]:
        """Transforms the weights: `[oc_o / pack, n * n, ic, oc_o % pack, oc_v]`; and the bias."""
        ((weight, bias),) = stages
        transformed = self.algorithm.transform_weight(weight).astype(weight.dtype)
        flat = transformed.reshape(*weight.shape[:2], -1)
        return [pack_weight(flat, workload.output_lanes, pack), pack_bias(bias, workload.output_lanes)]


class Winograd2Strategy(_WinogradStrategy):
    """Tiles of 2 x 2 outputs: 16 products for 36."""

    name = "winograd 2x2"
    algorithm = Winograd.of(2)


class Winograd4Strategy(_WinogradStrategy):
    """Tiles of 4 x 4 outputs: 36 products for 144."""

    name = "winograd 4x4"
    algorithm = Winograd.of(4)


def _blocks(workload: ConvWorkload) -> tuple[int, int]:
    """Blocks of input and of output channels."""
    stage, lanes = workload.stages[0], workload.output_lanes
    return math.ceil(stage.in_channels / lanes), math.ceil(stage.out_channels / lanes)


def _cold_bytes_per_cycle(device: Device) -> float:
    """Rate at which weights come that other kernels have evicted since the last run, from level 3 where that holds a network."""
    from_memory = 0 < device.l3_bytes < NETWORK_BYTES
    return device.memory_bytes_per_cycle / (BEYOND_LEVEL_3 if from_memory else 1)


def _transform_cycles(device: Device, operations: int, loads: int, stores: int) -> float:
    """Cycles of the transform of one tile of vectors."""
    memory = loads / device.load_ports + stores
    return max(operations / device.fma_ports, memory, (operations + loads + stores) / device.issue_width) + TILE_OVERHEAD_CYCLES


def _in_registers(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV, axes: int) -> None:
    """Unrolls the last axes of a block, vectors along the very last, and keeps what it computes in registers."""
    sch.set_scope(block, 0, "local")
    *loops, vector = sch.get_loops(block)[-axes:]
    for loop in loops:
        sch.unroll(loop)
    sch.vectorize(vector)


def _store_inside(function: tirx.PrimFunc, name: str, limits: tuple[int, int]) -> tirx.PrimFunc:
    """`output[n, oc_o, oh, ow, oc_v] = ...` -> the same where `oh` and `ow` are below their limits."""

    def on_realize(realize: s_tir.SBlockRealize) -> Any:
        if realize.block.name_hint != name:
            return realize
        _, _, oh, ow, _ = realize.iter_values
        inside = tirx.all(*(value < limit for value, limit in zip((oh, ow), limits, strict=True)))
        return s_tir.SBlockRealize(realize.iter_values, inside, realize.block)

    return function.with_body(tvm_ffi.structural_map(function.body, (s_tir.SBlockRealize, on_realize)))
