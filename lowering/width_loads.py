"""Vectors of neighbours along the width of plain tensors: at the border, and with a stride.

Where the width is vectorised, lanes of one vector lie on either side of the border, or a stride apart. LLVM takes such a load
apart, one lane at a time. In a tile whose place is known (see `borders`) lanes inside and outside are constant, so that

    # select(lane inside, x[b - 1 : b + 3], 0)  ->  shuffle(x[b : b + 4], 0, [0, 0, 1, 2])
    # x[b], x[b + 2], x[b + 4], x[b + 6]        ->  shuffle(x[b : b + 8], [0, 2, 4, 6])

Whole vectors are loaded as far as they lie between elements that neighbouring statements read in any case; else just what lies
between the lanes, so that nothing outside of a tensor is read.

It runs on flat functions, after loops were vectorised and unrolled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad

from sepwise.lowering.lane_loads import lane_of, map_runs, shuffle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["load_along_width"]


class _Read(NamedTuple):
    """A vector whose lanes are `source[base + place]`, zero where the place is None."""

    source: Expr
    base: Expr
    places: tuple[int | None, ...]

    @property
    def inside(self) -> list[int]:
        """The places that are read."""
        return [place for place in self.places if place is not None]


def load_along_width(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Loads with a stride, and selections of loads or zero that are constant in each lane -> permuted loads of neighbours.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such loads replaced.
    """
    if not _unlike_vectors(function.body):
        return function
    analyzer = tvm.sym.Analyzer()
    tvm_ffi.structural_walk(
        function.body,
        (tirx.For, lambda loop: analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))),
        order="pre",
    )
    return map_runs(function, lambda run: _permuted(run, analyzer))


def _permuted(run: Sequence[tirx.BufferStore], analyzer: Any) -> Sequence[tirx.Stmt]:
    """Statements that follow each other and write registers alone, with their loads replaced."""
    reads: list[tuple[Expr, _Read]] = []  # each by the expression that it replaces

    def note(expression: Expr) -> tvm_ffi.WalkResult | None:
        read = _read(expression, analyzer)
        if read is not None:
            reads.append((expression, read))
        return None if read is None and isinstance(expression, TensorLoad) else tvm_ffi.WalkResult.SKIP

    together = tvm_ffi.Array(run)  # a walk costs more than a statement in it
    if not _unlike_vectors(together):
        return run
    tvm_ffi.structural_walk(together, ((tirx.Select, Call, TensorLoad), note), order="pre")
    groups: list[list[_Read]] = []
    for _, read in reads:
        group = next((each for each in groups if _is_of(read, each[0])), None)
        if group is None:
            groups.append(group := [])
        group.append(read)
    rows = [_rows(place for read in group for place in read.inside) for group in groups]

    def on_expression(expression: Expr) -> Expr:
        read = next((read for known, read in reads if known.same_as(expression)), None)
        if read is None:
            return expression
        if _is_vector(read.places):
            return expression.true_value if isinstance(expression, tirx.Select) else expression
        number = next(number for number, group in enumerate(groups) if _is_of(read, group[0]))
        return _load(read, rows[number], str(expression.ty.dtype).split("x")[0])

    return list(tvm_ffi.structural_map(together, ((tirx.Select, TensorLoad), on_expression)))


def _unlike_vectors(code: tvm_ffi.Array[tirx.Stmt] | tirx.Stmt) -> bool:
    """Whether anything in statements may be a selection of a load, or a load with a stride."""

    def stop(expression: tirx.Select | tirx.Ramp) -> tvm_ffi.VisitInterrupt | None:
        return tvm_ffi.VisitInterrupt() if isinstance(expression, tirx.Select) or _is_strided(expression) else None

    return tvm_ffi.structural_walk(code, ((tirx.Select, tirx.Ramp), stop)) is not None


def _read(expression: Expr, analyzer: Any) -> _Read | None:
    """What a vector load reads, or a selection of one whose lanes are known to be inside or zero."""
    load = expression
    if isinstance(expression, tirx.Select):
        load, zero = expression.true_value, expression.false_value
        if not (isinstance(zero, tirx.Broadcast) and isinstance(zero.value, tirx.FloatImm) and float(zero.value) == 0.0):
            return None
    if not isinstance(load, TensorLoad) or load.source.scope() == "local" or len(load.indices) != 1:
        return None
    (ramp,) = load.indices
    if not isinstance(ramp, tirx.Ramp) or not isinstance(ramp.stride, tirx.IntImm) or int(ramp.stride) < 1:
        return None
    index = analyzer.canonical_simplify(ramp.base)
    base, first = (index.a, int(index.b)) if isinstance(index, tirx.Add) and isinstance(index.b, tirx.IntImm) else (index, 0)
    if isinstance(index, tirx.IntImm):
        base, first = tirx.IntImm("int32", 0), int(index)
    lanes = int(ramp.lanes)
    places: list[int | None] = [first + lane * int(ramp.stride) for lane in range(lanes)]
    if isinstance(expression, tirx.Select):
        for lane in range(lanes):
            inside = lane_of(expression.condition, lane)
            if inside is None:
                return None
            if analyzer.can_prove(tirx.Not(inside)):
                places[lane] = None
            elif not analyzer.can_prove(inside):
                return None
    return _Read(load.source, base, tuple(places))


def _is_strided(index: tirx.Ramp) -> bool:
    """Whether lanes lie apart."""
    return not (isinstance(index.stride, tirx.IntImm) and int(index.stride) == 1)


def _is_vector(places: Sequence[int | None]) -> bool:
    """Whether places follow each other."""
    return places[0] is not None and all(place == places[0] + lane for lane, place in enumerate(places))


def _is_of(read: _Read, other: _Read) -> bool:
    """Whether two reads are of one tensor, their places counted from the same element."""
    return bool(read.source.same_as(other.source)) and bool(tvm_ffi.structural_equal(read.base, other.base))


def _rows(places: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of places, those of which none is missing between together."""
    rows: list[tuple[int, int]] = []
    for place in sorted(set(places)):
        if rows and place <= rows[-1][1] + 1:
            rows[-1] = rows[-1][0], place
        else:
            rows.append((place, place))
    return rows


def _load(read: _Read, rows: Sequence[tuple[int, int]], dtype: str) -> Expr:
    """The vector, from as few loads as there can be."""
    inside, lanes = read.inside, len(read.places)
    if not inside:
        return tirx.Broadcast(tirx.const(0.0, dtype), lanes)
    first, last = inside[0], inside[-1]
    stride = inside[1] - first if len(inside) > 1 else 1
    start, end = next((row for row in rows if row[0] <= first and last <= row[1]), (first, last))
    whole = stride * lanes
    if end - start + 1 >= whole:  # one load serves the other phases of the stride too
        loads = [(min(first - (first - start) % stride, end - whole + 1), whole)]
    elif last - first + 1 >= lanes:
        loads = [(place, lanes) for place in (*range(first, last - lanes + 1, lanes), last - lanes + 1)]
    else:
        loads = [(first, last - first + 1)]
    vectors: list[Expr] = []
    for place, width in loads:
        index = read.base + place
        vectors.append(tirx.BufferLoad(read.source, [index if width == 1 else tirx.Ramp(index, tirx.IntImm("int32", 1), width)]))
    held = [place + lane for place, width in loads for lane in range(width)]
    if len(inside) < lanes:
        vectors.append(tirx.Broadcast(tirx.const(0.0, dtype), lanes))
    return shuffle(vectors, [len(held) if place is None else held.index(place) for place in read.places])
