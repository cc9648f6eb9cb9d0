"""What Advanced SIMD has instructions for, and LLVM does not find by itself in our kernels.

A multiply-add takes one of its factors from a lane of a vector, so inputs that lie side by side need one load for all:

    # a0 += broadcast(x[i]) * w0; a1 += broadcast(x[i + 1]) * w1; ...
    #   ->  v = x[i : i + 4]; a0 += shuffle(v, [0, 0, 0, 0]) * w0; a1 += shuffle(v, [1, 1, 1, 1]) * w1; ...

Only elements between those that the statements read in any case are loaded, and nothing is written meanwhile. Where whole
vectors are inputs, each is read by neighbouring statements and needs no register for long:

    # a0 += x[4:8] * w0; a1 += x[0:4] * w0; a1 += x[4:8] * w1
    #   ->  a1 += x[0:4] * w0; a0 += x[4:8] * w0; a1 += x[4:8] * w1

Minimum and maximum give NaN for NaN, so a clamp takes two instructions instead of four:

    # select(x > c, c, x)  ->  llvm.minimum(x, c);  select(x < c, c, x)  ->  llvm.maximum(x, c)

All three run on flat functions, after loops were vectorised and unrolled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad

if TYPE_CHECKING:
    from collections.abc import Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["clamp_by_minimum", "load_lanes_together", "order_by_input"]

REGISTER_BITS: Final = 128
"""Bits of a vector register."""

FLOATS: Final = ("float16", "float32")
"""Types that vector instructions compute in; kernels have the first only where the device computes in it."""


def load_lanes_together(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Broadcast elements that lie side by side -> lanes of one vector.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such loads replaced.
    """
    analyzer = tvm.sym.Analyzer()

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.Stmt:
        statements: list[tirx.Stmt] = []
        run: list[tirx.Stmt] = []
        for statement in (*sequence.seq, None):
            if isinstance(statement, tirx.BufferStore) and statement.buffer.scope() == "local":
                run.append(statement)
                continue
            statements += _merged(run, analyzer)
            run = []
            if statement is not None:
                statements.append(statement)
        return tirx.SeqStmt(statements)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence)))


def clamp_by_minimum(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Selections that clamp floating-point values to a constant -> minimum and maximum, which keep NaN as they do.

    Args:
        function: Without loops still to be vectorised.

    Returns:
        The function with such selections replaced. They may give a zero of the other sign.
    """

    def on_select(select: tirx.Select) -> Expr:
        condition, limit, x = select.condition, select.true_value, select.false_value
        if not isinstance(condition, (tirx.GT, tirx.LT)) or not _finite(limit) or str(x.ty.dtype).split("x")[0] not in FLOATS:
            return select
        greater, less = (condition.a, condition.b) if isinstance(condition, tirx.GT) else (condition.b, condition.a)
        if _equal(greater, x) and _equal(less, limit):
            return tirx.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.minimum", x, limit)
        if _equal(less, x) and _equal(greater, limit):
            return tirx.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.maximum", x, limit)
        return select

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.Select, on_select)))


def order_by_input(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Unrolled vector multiply-adds -> the same in the order in which their inputs lie.

    An input is loaded once for all that read it, one after the other, and needs no register beyond. The order of each sum stays:
    statements stay where theirs would change, and where one reads registers other than its own sum.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such statements in order.
    """
    analyzer = tvm.sym.Analyzer()

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.Stmt:
        statements: list[tirx.Stmt] = []
        run: list[_MultiplyAdd] = []
        for statement in (*sequence.seq, None):
            step = None if statement is None else _multiply_add(statement, analyzer)
            if run and (step is None or not (step.source.same_as(run[0].source) and _equal(step.base, run[0].base))):
                statements += [each.statement for each in _ordered(run)]
                run = []
            if step is not None:
                run.append(step)
            elif statement is not None:
                statements.append(statement)
        return tirx.SeqStmt(statements)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence)))


class _MultiplyAdd(NamedTuple):
    """`a[i] = a[i] + x[j] * w[k]`, all vectors and `a` registers: `x`, the variable and the constant part of `j`, `a` and `i`."""

    statement: tirx.Stmt
    source: Expr
    base: Expr
    offset: int
    total: tuple[Expr, int]


def _multiply_add(statement: tirx.Stmt, analyzer: Any) -> _MultiplyAdd | None:
    """A multiply-add that neither reads nor overlaps the registers of others, or None."""
    if not isinstance(statement, tirx.BufferStore) or statement.buffer.scope() != "local":
        return None
    total, place = statement.value, statement.indices[0]
    if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul) and isinstance(total.b.a, TensorLoad)):
        return None
    if not (isinstance(total.a, TensorLoad) and total.a.source.same_as(statement.buffer) and _equal(total.a.indices[0], place)):
        return None
    x = total.b.a
    if not isinstance(x.indices[0], tirx.Ramp) or _reads_registers(total.b):
        return None
    if not (isinstance(place, tirx.Ramp) and isinstance(place.base, tirx.IntImm) and int(place.stride) == 1):
        return None
    if int(place.base) % int(place.lanes):  # it could overlap another
        return None
    return _MultiplyAdd(statement, x.source, *_split(x.indices[0].base, analyzer), (statement.buffer, int(place.base)))


def _ordered(run: Sequence[_MultiplyAdd]) -> Sequence[_MultiplyAdd]:
    """Multiply-adds of one input by its offset, or as they are where that changes the order of a sum."""
    last: dict[tuple[Expr, int], int] = {}
    for step in run:
        if step.offset < last.get(step.total, step.offset):
            return run
        last[step.total] = step.offset
    return sorted(run, key=lambda step: step.offset)


def _reads_registers(expression: Expr) -> bool:
    """Whether an expression reads a buffer of registers."""
    loads: list[TensorLoad] = []
    tvm_ffi.structural_walk(expression, (TensorLoad, loads.append))
    return any(load.source.scope() == "local" for load in loads)


def _split(index: Expr, analyzer: Any) -> tuple[Expr, int]:
    """An index as a variable part and a constant."""
    index = analyzer.canonical_simplify(index)
    if isinstance(index, tirx.IntImm):
        return tirx.IntImm("int32", 0), int(index)
    if isinstance(index, tirx.Add) and isinstance(index.b, tirx.IntImm):
        return index.a, int(index.b)
    return index, 0


def _merged(run: Sequence[tirx.Stmt], analyzer: Any) -> Sequence[tirx.Stmt]:
    """Statements that follow each other and write registers alone, with their inputs loaded together."""
    bases: list[Expr] = []

    def place(broadcast: tirx.Broadcast) -> tuple[TensorLoad, int, int] | None:
        """A broadcast element: the load, which of `bases` its index has, and how far from there; None for other broadcasts."""
        load = broadcast.value
        if not isinstance(load, TensorLoad) or str(load.ty.dtype) not in FLOATS or _reads_registers(load):
            return None
        base, offset = _split(load.indices[0], analyzer)
        number = next((number for number, known in enumerate(bases) if _equal(known, base)), len(bases))
        if number == len(bases):
            bases.append(base)
        return load, number, offset

    offsets: dict[tuple[Expr, int], set[int]] = {}

    def note(broadcast: tirx.Broadcast) -> None:
        if found := place(broadcast):
            load, number, offset = found
            offsets.setdefault((load.source, number), set()).add(offset)

    for statement in run:
        tvm_ffi.structural_walk(statement, ((tirx.Broadcast, note), ((tirx.Select, Call), _skip_guarded)), order="pre")
    firsts = {key: _firsts(sorted(found), _register_lanes(key[0])) for key, found in offsets.items()}
    if not any(firsts.values()):
        return run

    def merge(broadcast: tirx.Broadcast) -> Expr:
        found = place(broadcast)
        if found is None:
            return broadcast
        load, number, offset = found
        first = firsts.get((load.source, number), {}).get(offset)
        if first is None:
            return broadcast
        width, lanes = _register_lanes(load.source), int(broadcast.ty.dtype.lanes)
        vector = tirx.BufferLoad(load.source, [tirx.Ramp(bases[number] + first, tirx.IntImm("int32", 1), width)])
        return tirx.Shuffle([vector] * math.ceil(lanes / width), [tirx.IntImm("int32", offset - first)] * lanes)

    return [tvm_ffi.structural_map(statement, (tirx.Broadcast, merge)) for statement in run]


def _skip_guarded(expression: tirx.Select | Call) -> tvm_ffi.WalkResult | None:
    """Walks past what is read only where a condition holds, such as inputs that lie outside of a buffer elsewhere."""
    guarded = isinstance(expression, tirx.Select) or getattr(expression.op, "name", "") == "prim.if_then_else"
    return tvm_ffi.WalkResult.SKIP if guarded else None


def _register_lanes(buffer: Expr) -> int:
    """Lanes of a vector register that holds elements of a buffer."""
    return REGISTER_BITS // int(buffer.ty.dtype.dtype.bits)


def _firsts(offsets: Sequence[int], lanes: int) -> dict[int, int]:
    """For each offset the first of the lanes that are loaded with it, where several are; none reaches past the outermost."""
    firsts: dict[int, int] = {}
    rows: list[list[int]] = []
    for offset in offsets:
        if rows and offset - rows[-1][-1] < lanes:
            rows[-1].append(offset)
        else:
            rows.append([offset])
    for row in rows:
        vectors = {offset: min(offset - (offset - row[0]) % lanes, row[-1] - lanes + 1) for offset in row}
        if row[-1] - row[0] >= lanes - 1 and len(set(vectors.values())) < len(row):
            firsts.update(vectors)
    return firsts


def _equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same."""
    return bool(a.same_as(b) or tvm_ffi.structural_equal(a, b))


def _finite(limit: Expr) -> bool:
    """Whether an expression is a constant, in all lanes, that is neither infinite nor NaN."""
    constant = limit.value if isinstance(limit, tirx.Broadcast) else limit
    return isinstance(constant, tirx.FloatImm) and math.isfinite(float(constant.value))
