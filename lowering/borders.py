"""Border tiles apart from inner ones, so that no tile tests or copies its padded input.

A compute that reads its padding as `if_then_else(inside, x[i], 0)` costs a test for each element, and a padded copy of the
input a load and a store. Few tiles touch the border, and which do is known from the loops over tiles:

    # for t in range(6): f(t)  ->  f(0); for t in range(1, 5): f(t); f(5)          first = last = 1

In each version the tests are decided: inner tiles have none, and border tiles skip what they would multiply by zero.
It runs on flat functions before their loops are unrolled. A loop that becomes part of the task chooses its version by tests of
its variable, once a row of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, Var

from sepwise.lowering.tiling import TASK_LOOP

if TYPE_CHECKING:
    from tvm import s_tir

__all__ = ["BORDER_LOOP", "mark_border", "peel_borders"]

BORDER_LOOP = "sepwise.border"
"""Annotation of a loop over tiles, `"first,last"`: how many at either end touch the border."""


def mark_border(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, first: int, last: int) -> None:
    """Notes how many tiles at the ends of a loop touch the border.

    Args:
        sch: The schedule.
        loop: The loop over tiles.
        first: Tiles at its beginning.
        last: Tiles at its end.
    """
    if first or last:
        sch.annotate(loop, BORDER_LOOP, f"{first},{last}")


def peel_borders(body: tirx.Stmt) -> tirx.Stmt:
    """Writes out the versions of marked loops; see above.

    Args:
        body: Flat, its loops not unrolled.

    Returns:
        The statement without marks.
    """
    return tvm_ffi.structural_map(body, (tirx.For, _peel))


def _peel(loop: tirx.For) -> tirx.Stmt:
    """One marked loop, the loops inside already without marks."""
    if BORDER_LOOP not in loop.annotations:
        return loop
    extent = int(loop.extent)
    first, last = map(int, str(loop.annotations[BORDER_LOOP]).split(","))
    before = range(min(first, extent))
    behind = range(max(extent - last, len(before)), extent)
    inner = range(before.stop, behind.start)
    annotations = {key: value for key, value in loop.annotations.items() if key != BORDER_LOOP}

    def end(t: int) -> tirx.Stmt:
        value = tirx.IntImm("int32", t)
        return tvm_ffi.structural_map(loop.body, (Var, lambda v: value if v.same_as(loop.loop_var) else v))

    middle = _decided(loop.body, loop.loop_var, inner) if inner else None
    if TASK_LOOP in annotations:
        tested = [*before, *behind]
        chosen = middle if middle is not None else end(tested.pop())
        for t in tested:
            chosen = tirx.IfThenElse(tirx.EQ(loop.loop_var, t), end(t), chosen)
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, chosen, loop.thread_binding, annotations)
    statements = [end(t) for t in before]
    if middle is not None:
        shifted = loop.loop_var + inner.start if inner.start else loop.loop_var
        middle = tvm_ffi.structural_map(middle, (Var, lambda v: shifted if v.same_as(loop.loop_var) else v))
        statements.append(tirx.For(loop.loop_var, 0, len(inner), loop.kind, middle, loop.thread_binding, annotations))
    statements += [end(t) for t in behind]
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _decided(body: tirx.Stmt, variable: Var, values: range) -> tirx.Stmt:
    """`if_then_else(inside, x, 0)` -> `x` where `inside` holds for all values of a variable and of the loops inside."""
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(variable, tvm.ir.Range.from_min_extent(values.start, len(values)))
    tvm_ffi.structural_walk(
        body,
        (tirx.For, lambda loop: analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))),
        order="pre",
    )

    def on_call(call: Call) -> Any:
        if getattr(call.op, "name", "") != "prim.if_then_else":
            return call
        condition, inside, outside = call.args
        left = [part for part in _conjuncts(condition) if not analyzer.can_prove(part)]
        return tirx.if_then_else(tirx.all(*left), inside, outside) if left else inside

    return tvm_ffi.structural_map(body, (Call, on_call))


def _conjuncts(condition: Any) -> list[Any]:
    """The parts of a conjunction."""
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]
