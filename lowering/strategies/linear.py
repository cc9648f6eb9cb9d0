"""Matrix product with constant weights on plain tensors: Gemm and MatMul.

# for t task, m_o:                            accumulators: m_i rows * j_i vectors, 8 of 32 for 1 x 8
#   for ic:                                   one step: j_i loads, m_i broadcasts, m_i * j_i FMA
#     unrolled j_i, m_i: vector j_v FMA       weights [t, ic, j] stream past once
#   unrolled j_i, m_i: epilogue, store        [m, t * j]

With one row it is bound by the stream of weights, so a tile takes enough vectors to hide the latency of its chains. The
last tile of outputs starts early enough to end with the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Range
from tvm.ir.expr import TensorRegion

from sepwise.lowering import compute
from sepwise.lowering.cost import (
    copy_cycles,
    micro_kernel_cycles,
    parallel_cycles,
    register_tile_fits,
    register_tiles,
)
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.steps import start_from_bias
from sepwise.lowering.tiling import clamp_tiles, mark_clamp, mark_task, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import LinearWorkload

__all__ = ["LinearStrategy", "LinearTile"]


@dataclass(frozen=True, slots=True)
class LinearTile:
    """Sizes of a matrix product.

    Attributes:
        rows: Rows in registers.
        features: Output features of a tile, a whole number of vectors unless there are fewer features.
        vectors: Vectors that hold them.
    """

    rows: int
    features: int
    vectors: int

    def __post_init__(self) -> None:
        """Checks that features fill whole vectors, or fit one."""
        assert self.vectors == 1 or self.features % self.vectors == 0

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.rows, self.vectors)


class LinearStrategy:
    """Rows by output vectors."""

    name = "linear"
    direct = True

    def applies(self, workload: LinearWorkload, device: Device) -> Refusal | None:
        """Applies to every matrix product with constant weights."""
        del workload, device
        return None

    def tiles(self, workload: LinearWorkload, device: Device, threads: int) -> list[LinearTile]:
        """All register tiles that fit."""
        if workload.out_features < device.lanes:
            found = [
                LinearTile(rows, workload.out_features, 1)
                for rows, _ in register_tiles(device, workload.rows, 1)
            ]
        else:
            most = workload.out_features // device.lanes
            found = [
                LinearTile(rows, vectors * device.lanes, vectors)
                for rows, vectors in register_tiles(device, workload.rows, most)
            ]
        return sorted(found, key=lambda tile: self.predicted_cycles(workload, device, threads, tile))

    def predicted_cycles(
        self, workload: LinearWorkload, device: Device, threads: int, tile: LinearTile
    ) -> float:
        """Register tiles, and the weights streamed once from memory and again for each tile of rows."""
        tiles = math.ceil(workload.out_features / tile.features)
        row_tiles = math.ceil(workload.rows / tile.rows)
        kernel = micro_kernel_cycles(device, tile.rows, tile.vectors, workload.in_features)
        weight_tile = float(workload.dtypes.input_bytes) * workload.in_features * tile.features
        stream = copy_cycles(device, weight_tile * tiles, footprint_bytes=weight_tile * tiles)
        rereads = copy_cycles(device, weight_tile * tiles * (row_tiles - 1), footprint_bytes=weight_tile)
        cycles = max(tiles * row_tiles * kernel, stream) + rereads / 2
        return parallel_cycles(cycles, tiles, threads)

    def schedule(self, workload: LinearWorkload, device: Device, tile: LinearTile) -> Implementation:
        """Builds the loop nest at the head of this file."""
        del device
        rows = round_up(workload.rows, tile.rows)
        built = compute.linear(workload, rows, tile.features)
        sch = s_tir.Schedule(built.function)
        names = built.stages[0]
        output, total = sch.get_sblock(names.output), sch.get_sblock(names.accumulator)
        m, t, j = sch.get_loops(output)
        m_o, m_i = sch.split(m, [None, tile.rows])
        j_o, j_v = sch.split(j, [tile.vectors, None])
        sch.reorder(t, m_o, j_o, m_i, j_v)
        sch.compute_at(total, m_o, preserve_unit_loops=True)
        t_m, _, t_j, ic = sch.get_loops(total)[-4:]
        t_j_o, t_j_v = sch.split(t_j, [tile.vectors, None])
        sch.reorder(ic, t_j_o, t_m, t_j_v)
        sch.set_scope(total, 0, "local")
        for loop in (m_i, j_o, t_m, t_j_o):
            sch.unroll(loop)
        for loop in (j_v, t_j_v):
            sch.vectorize(loop)
        init = sch.decompose_reduction(total, ic)
        *init_loops, init_v = sch.get_loops(init)
        for loop in init_loops[-3:]:
            sch.unroll(loop)
        sch.vectorize(init_v)
        mark_task(sch, t)
        mark_clamp(sch, m_o, workload.rows, tile.rows)
        function = clamp_tiles(start_from_bias(sch.mod["main"]), {"data": (workload.rows, workload.in_features)})
        function = _flatten_output(function, workload, tile)
        return Implementation(function, _packer(workload, tile))


def _flatten_output(function: tirx.PrimFunc, workload: LinearWorkload, tile: LinearTile) -> tirx.PrimFunc:
    """`output0[m, t, j]` -> `output0[m, min(t * features, out_features - features) + j]`."""
    *others, old = function.params
    shape = (workload.rows, workload.out_features)
    new = tirx.decl_buffer(shape, old.ty.dtype, old.name)

    def on_store(store: tirx.BufferStore) -> tirx.Stmt:
        if not store.buffer.same_as(old):
            return store
        m, t, j = store.indices
        start = tirx.min(t * tile.features, workload.out_features - tile.features)
        return tirx.BufferStore(new, store.value, [m, start + j])

    def on_region(region: TensorRegion) -> Any:
        if not region.source.same_as(old):
            return region
        return tirx.BufferRegion(new, [Range.from_min_extent(0, extent) for extent in shape])

    body = tvm_ffi.structural_map(
        function.body, ((tirx.BufferStore, on_store), (TensorRegion, on_region))
    )
    return tirx.PrimFunc([*others, new], body, function.ret_type, function.attrs)


def _packer(workload: LinearWorkload, tile: LinearTile) -> Any:
    """Packs the weight `(out, in)` to `[tile, ic, feature]` and the bias to `[tile, feature]`."""
    last = workload.out_features - tile.features
    starts = [min(start, last) for start in range(0, workload.out_features, tile.features)]

    def pack(stages: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        ((weight, bias),) = stages
        weights = np.stack([weight[start : start + tile.features].T for start in starts])
        return [weights, np.stack([bias[start : start + tile.features] for start in starts])]

    return pack
