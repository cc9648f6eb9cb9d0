"""Buffers of plain functions in any layout: a rewriting of indices, never of computation.

    # plain  x[n, c, h, w]  ->  packed  x[n, c // lanes, h, w, c % lanes],  (n, ceil(c / lanes), h, w, lanes)

Each kernel so reads and writes packed tensors directly, and conversions between layouts are identities relaid out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.ir.expr import TensorLoad, TensorRegion, Var

from sepwise.lowering.graph import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["identity", "physical_indices", "relayout"]


def physical_indices(indices: Sequence[Expr], layout: Layout) -> list[Expr]:
    """Maps logical to physical indices.

    Args:
        indices: `[n, c, *spatial]` for a packed layout.
        layout: The layout.

    Returns:
        `[n, c // lanes, *spatial, c % lanes]`, or the indices themselves for the plain layout.
    """
    if not layout.packed:
        return list(indices)
    batch, channel, *spatial = indices
    lanes = tirx.const(layout.lanes, channel.ty.dtype)
    return [batch, tirx.floordiv(channel, lanes), *spatial, tirx.floormod(channel, lanes)]


def relayout(function: tirx.PrimFunc, layouts: Sequence[Layout]) -> tirx.PrimFunc:
    """Gives a function's parameters other layouts.

    Args:
        function: Its parameters are plain buffers; unscheduled.
        layouts: One for each parameter; packed only for rank 3 and more.

    Returns:
        The function on buffers of the physical shapes. Pad lanes are neither read nor written.
    """
    replaced: list[tuple[Var, Var, Layout]] = []
    for parameter, layout in zip(function.params, layouts, strict=True):
        if layout.packed:
            shape = layout.physical_shape(tuple(int(extent) for extent in parameter.ty.shape))
            replaced.append((parameter, tirx.decl_buffer(shape, parameter.ty.dtype, parameter.name), layout))
    if not replaced:
        return function

    def find(buffer: Var) -> tuple[Var, Layout] | None:
        return next(((new, layout) for old, new, layout in replaced if old.same_as(buffer)), None)

    def on_load(load: TensorLoad) -> Expr:
        found = find(load.source)
        return load if found is None else tirx.BufferLoad(found[0], physical_indices(load.indices, found[1]))

    def on_store(store: tirx.BufferStore) -> tirx.Stmt:
        found = find(store.buffer)
        if found is None:
            return store
        return tirx.BufferStore(found[0], store.value, physical_indices(store.indices, found[1]))

    def on_region(region: TensorRegion) -> TensorRegion:
        """All of a buffer that changed, which is never too little."""
        found = find(region.source)
        if found is None:
            return region
        whole = [tvm.ir.Range.from_min_extent(0, extent) for extent in found[0].ty.shape]
        return tirx.BufferRegion(found[0], whole)

    body = tvm_ffi.structural_map(
        function.body, [(TensorLoad, on_load), (tirx.BufferStore, on_store), (TensorRegion, on_region)]
    )
    parameters = [found[0] if (found := find(parameter)) is not None else parameter for parameter in function.params]
    return tirx.PrimFunc(parameters, body, function.ret_type, function.attrs)


def identity(shape: Sequence[int], dtype: str = "float32") -> tirx.PrimFunc:
    """A copy, which relaid out is a conversion between layouts.

    Args:
        shape: Logical shape.
        dtype: Element type.

    Returns:
        `target[...] = source[...]`.
    """
    extents = tuple(tirx.const(extent, "int64") for extent in shape)  # 64 bits, as what TVM imports
    source = te.placeholder(extents, dtype, name="source")
    target = te.compute(extents, lambda *i: source(*i), name="target")
    return te.create_prim_func([source, target])
