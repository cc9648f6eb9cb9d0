"""What Advanced SIMD has instructions for, and LLVM does not find by itself in our kernels.

A multiply-add takes one of its factors from a lane of a vector, so inputs that lie side by side need one load for all:

    # a0 += broadcast(x[i]) * w0; a1 += broadcast(x[i + 1]) * w1; ...
    #   ->  v = x[i : i + 4]; a0 += shuffle(v, [0, 0, 0, 0]) * w0; a1 += shuffle(v, [1, 1, 1, 1]) * w1; ...

Only elements between those that the statements read are loaded, and nothing is written meanwhile. Minimum and maximum give NaN
for NaN, so a clamp takes two instructions instead of four:

    # select(x > c, c, x)  ->  llvm.minimum(x, c);  select(x < c, c, x)  ->  llvm.maximum(x, c)

Both run on flat functions, after loops were vectorised and unrolled.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

if TYPE_CHECKING:
    from collections.abc import Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["clamp_by_minimum", "load_lanes_together"]

LANES: Final = 4
"""float32 lanes of a vector register."""


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
    """Selections that clamp float32 values to a constant -> minimum and maximum, which keep NaN as they do.

    Args:
        function: Without loops still to be vectorised.

    Returns:
        The function with such selections replaced. They may give a zero of the other sign.
    """

    def on_select(select: tirx.Select) -> Expr:
        condition, limit, x = select.condition, select.true_value, select.false_value
        if not isinstance(condition, (tirx.GT, tirx.LT)) or not _finite(limit) or str(x.ty.dtype).split("x")[0] != "float32":
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

    An input is loaded once for all that read it, one after the other, and needs no register beyond. The order of each sum stays.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such statements in order.
    """
    analyzer = tvm.sym.Analyzer()

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.Stmt:
        statements: list[tirx.Stmt] = []
        run: list[tuple[int, tirx.Stmt]] = []
        source: tuple[Expr, Expr] | None = None
        for statement in (*sequence.seq, None):
            place = None if statement is None else _input_of(statement, analyzer)
            if run and (place is None or source is None or not (place[0].same_as(source[0]) and _equal(place[1], source[1]))):
                statements += [each for _, each in sorted(run, key=operator.itemgetter(0))]
                run = []
            if place is not None:
                source = place[:2]
                run.append((place[2], statement))
            elif statement is not None:
                statements.append(statement)
        return tirx.SeqStmt(statements)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence)))


def _input_of(statement: tirx.Stmt, analyzer: Any) -> tuple[Expr, Expr, int] | None:
    """Where `a[i] = a[i] + x[j] * w[k]` of vectors reads its input: the buffer, the index and its constant part; else None."""
    if not isinstance(statement, tirx.BufferStore) or statement.buffer.scope() != "local":
        return None
    total = statement.value
    if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul) and isinstance(total.b.a, TensorLoad)):
        return None
    x = total.b.a
    if not isinstance(x.indices[0], tirx.Ramp) or x.source.scope() == "local":
        return None
    return x.source, *_split(x.indices[0].base, analyzer)


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
        if not isinstance(load, TensorLoad) or str(load.ty.dtype) != "float32" or load.source.scope() == "local":
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
        tvm_ffi.structural_walk(statement, (tirx.Broadcast, note))
    firsts = {key: _firsts(sorted(found)) for key, found in offsets.items()}
    if not any(firsts.values()):
        return run

    def merge(broadcast: tirx.Broadcast) -> Expr:
        found = place(broadcast)
        if found is None:
            return broadcast
        load, number, offset = found
        first = firsts[load.source, number].get(offset)
        if first is None:
            return broadcast
        vector = tirx.BufferLoad(load.source, [tirx.Ramp(bases[number] + first, tirx.IntImm("int32", 1), LANES)])
        lanes = int(broadcast.ty.dtype.lanes)
        return tirx.Shuffle([vector] * math.ceil(lanes / LANES), [tirx.IntImm("int32", offset - first)] * lanes)

    return [tvm_ffi.structural_map(statement, (tirx.Broadcast, merge)) for statement in run]


def _firsts(offsets: Sequence[int]) -> dict[int, int]:
    """For each offset the first of the `LANES` that are loaded with it, where several are; none reaches past the outermost."""
    firsts: dict[int, int] = {}
    rows: list[list[int]] = []
    for offset in offsets:
        if rows and offset - rows[-1][-1] < LANES:
            rows[-1].append(offset)
        else:
            rows.append([offset])
    for row in rows:
        vectors = {offset: min(offset - (offset - row[0]) % LANES, row[-1] - LANES + 1) for offset in row}
        if row[-1] - row[0] >= LANES - 1 and len(set(vectors.values())) < len(row):
            firsts.update(vectors)
    return firsts


def _equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same."""
    return bool(a.same_as(b) or tvm_ffi.structural_equal(a, b))


def _finite(limit: Expr) -> bool:
    """Whether an expression is a constant, in all lanes, and not NaN."""
    constant = limit.value if isinstance(limit, tirx.Broadcast) else limit
    return isinstance(constant, tirx.FloatImm) and math.isfinite(float(constant.value))
