"""Tiles that need not divide: schedules work on whole tiles, and the last tile is moved back into range.

A schedule is written for a domain rounded up to whole tiles, so every split is perfect and no predicate reaches
a micro-kernel. Afterwards `clamp_tiles` gives the parameters their true shapes and moves the last tile of
each marked loop back by what it stands out: `start = min(tile_index * tile, extent - tile)`. Its first elements are
then computed twice, to the same values. Two workers may do so at once: both store the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import Var

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CLAMP_LOOP", "TASK_LOOP", "clamp_tiles", "mark_clamp", "mark_task", "round_up"]

TASK_LOOP = "sepwise.task"
"""Annotation of a loop that becomes part of the kernel's task; its value is the iterations of one task."""

CLAMP_LOOP = "sepwise.clamp"
"""Annotation of a loop over tiles, `"extent,tile"`, whose last tile may stand out."""


def round_up(extent: int, tile: int) -> int:
    """Rounds `extent` up to whole tiles.

    Args:
        extent: Elements.
        tile: Elements of a tile.

    Returns:
        The least multiple of `tile` that is at least `extent`.
    """
    return math.ceil(extent / tile) * tile


def mark_task(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, grain: int = 1) -> None:
    """Makes a loop part of the task.

    Args:
        sch: The schedule.
        loop: The loop; loops so marked are nested in each other.
        grain: Iterations that one task does one after the other. A loop with a grain over 1 varies slowest
            in the order of tasks, whatever its place in the nest.
    """
    sch.annotate(loop, TASK_LOOP, grain)


def mark_clamp(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, extent: int, tile: int) -> None:
    """Notes that a loop runs over tiles of an axis of `extent` elements.

    Args:
        sch: The schedule.
        loop: The loop over tiles.
        extent: True elements of the axis, at least `tile`.
        tile: Elements of one tile.
    """
    if extent % tile:
        sch.annotate(loop, CLAMP_LOOP, f"{extent},{tile}")


def clamp_tiles(function: tirx.PrimFunc, shapes: Mapping[str, tuple[int, ...]]) -> tirx.PrimFunc:
    """Moves the last tiles into range and gives the parameters their true shapes.

    Args:
        function: Scheduled over the rounded-up domain.
        shapes: True shapes of the parameters that were rounded up, by name.

    Returns:
        The function over the true shapes.
    """
    body = tvm_ffi.structural_map(function.body, (tirx.For, _clamp_loop))
    replaced = {}
    for parameter in function.params:
        true_shape = shapes.get(parameter.name)
        if true_shape is not None and tuple(map(int, parameter.ty.shape)) != true_shape:
            buffer = tirx.decl_buffer(true_shape, parameter.ty.dtype, parameter.name)
            replaced[parameter.name] = (parameter, buffer)
    if replaced:
        body = tvm_ffi.structural_map(body, (Var, lambda v: _replacement(v, replaced)))
    parameters = [_replacement(parameter, replaced) for parameter in function.params]
    return tirx.PrimFunc(parameters, body, function.ret_type, function.attrs)


def _replacement(variable: Var, replaced: Mapping[str, tuple[Var, Any]]) -> Any:
    """The buffer of true shape for a parameter that has one, else the variable itself."""
    old, new = replaced.get(variable.name, (None, None))
    return new if old is not None and old.same_as(variable) else variable


def _clamp_loop(loop: tirx.For) -> tirx.Stmt:
    """`v = tile_index * m * k + i` -> `v = min(tile_index * m, limit) * k + i` in the bindings of the blocks inside.

    `k` is the stride where inputs are staged. All blocks share one minimum: else TVM does not see that what is written is what is
    read, and stages the rows of every task in a place of their own.
    """
    if CLAMP_LOOP not in loop.annotations:
        return loop
    extent, tile = map(int, str(loop.annotations[CLAMP_LOOP]).split(","))
    annotations = {key: value for key, value in loop.annotations.items() if key != CLAMP_LOOP}

    def on_mul(product: tirx.Mul) -> Any:
        if not (isinstance(product.a, Var) and product.a.same_as(loop.loop_var)):
            return product
        elements, rest = divmod(int(product.b), tile)
        assert rest == 0, "a block inside must step by whole tiles"
        return tirx.min(loop.loop_var * tile, extent - tile) * elements

    def on_realize(realize: s_tir.SBlockRealize) -> tirx.Stmt:
        values = [tvm_ffi.structural_map(value, (tirx.Mul, on_mul)) for value in realize.iter_values]
        return s_tir.SBlockRealize(values, realize.predicate, realize.block)

    body = tvm_ffi.structural_map(loop.body, (s_tir.SBlockRealize, on_realize))
    return tirx.For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind,
        body,
        loop.thread_binding,
        annotations,
    )
