"""Loads whose lanes lie in constant order within a few vectors: the vectors are loaded whole and permuted in registers.

LLVM takes a load at a vector of addresses apart, one lane at a time. Where lanes read constant distances from a common
address, such as the channels of several groups, all of them lie in few aligned vectors:

    # x[a + 4, a + 4, a + 5, a + 5]  ->  shuffle(x[b : b + 4], [0, 0, 1, 1])      with b = a + 4, a multiple of 4

It runs on flat functions, after loops were vectorised. An aligned vector lies in the buffer wherever one of its
elements does, so nothing outside is read.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["lane_of", "map_runs", "permute_loads", "shuffle", "writes_registers"]

_OPERATIONS: Final[dict[type, Callable[[Expr, Expr], Expr]]] = {
    tirx.Add: operator.add,
    tirx.Sub: operator.sub,
    tirx.Mul: operator.mul,
    tirx.FloorDiv: tirx.floordiv,
    tirx.FloorMod: tirx.floormod,
    tirx.Min: tirx.min,
    tirx.Max: tirx.max,
    tirx.LT: tirx.LT,
    tirx.LE: tirx.LE,
    tirx.GT: tirx.GT,
    tirx.GE: tirx.GE,
    tirx.And: tirx.And,
}


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    """Lanes of several vectors in a new order, each as often as is wanted.

    Args:
        vectors: Their lanes are counted through all of them.
        order: The lane of each lane of the result, more of them than there are lanes too.

    Returns:
        A vector of as many lanes as `order` has.
    """
    lanes = sum(int(vector.ty.dtype.lanes) for vector in vectors)
    repeats = math.ceil(len(order) / lanes)  # TVM's Shuffle gives no more lanes than it takes
    return tirx.Shuffle(list(vectors) * repeats, [tirx.const(lane, "int32") for lane in order])


def map_runs(
    function: tirx.PrimFunc, rewrite: Callable[[Sequence[tirx.BufferStore]], Sequence[tirx.Stmt]]
) -> tirx.PrimFunc:
    """Statements that follow each other and write registers alone, so that their loads may be made together -> others.

    Args:
        function: Flat and vectorised, its loops unrolled.
        rewrite: What takes the place of such statements, as many of them as follow each other.

    Returns:
        The function with all of them replaced.
    """

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.Stmt:
        statements: list[tirx.Stmt] = []
        for in_registers, group in itertools.groupby(sequence.seq, writes_registers):
            run = list(group)
            statements += rewrite(run) if in_registers else run
        return tirx.SeqStmt(statements)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence)))


def writes_registers(statement: tirx.Stmt) -> bool:
    """Whether a statement writes registers, and nothing that a load of a tensor could read.

    Args:
        statement: Of a flat function.
    """
    return isinstance(statement, tirx.BufferStore) and statement.buffer.scope() == "local"


def permute_loads(function: tirx.PrimFunc, module: tvm.IRModule, context: Any) -> tirx.PrimFunc:
    """`buffer[vector of indices]` -> `shuffle(buffer[ramp], ...)` where half as many vectors as lanes hold all lanes.

    Args:
        function: Flat and vectorised, its loops unrolled.
        module: Unused; TVM gives a pass its module and context.
        context: Unused.

    Returns:
        The function with such loads replaced.
    """
    del module, context
    analyzer = tvm.sym.Analyzer()

    def on_load(load: TensorLoad) -> Expr:
        index, *others = load.indices
        if others or isinstance(index, (tirx.Ramp, tirx.Broadcast)):
            return load
        lanes = int(load.ty.dtype.lanes)
        if lanes == 1:
            return load
        indices = [lane_of(index, lane) for lane in range(lanes)]
        known = [analyzer.simplify(each) for each in indices if each is not None]
        permuted = _permuted(load, known, analyzer) if len(known) == lanes else None
        return load if permuted is None else permuted

    return function.with_body(tvm_ffi.structural_map(function.body, (TensorLoad, on_load)))


def lane_of(index: Expr, lane: int) -> Expr | None:
    """Gives one lane of a vector of indices, or of tests of indices.

    Args:
        index: The vector, or what is the same in all lanes.
        lane: Which.

    Returns:
        The lane, None where it is made by an operation that is not known here.
    """
    if isinstance(index, tirx.Ramp):
        return index.base + index.stride * lane
    if isinstance(index, tirx.Broadcast):
        return index.value
    combine = _OPERATIONS.get(type(index))
    if combine is None:
        return None
    a, b = lane_of(index.a, lane), lane_of(index.b, lane)
    return None if a is None or b is None else combine(a, b)


def _permuted(load: TensorLoad, indices: list[Expr], analyzer: Any) -> Expr | None:
    """The load as vectors and a permutation, None where the vectors are too many or reach past the buffer's end."""
    lanes = len(indices)
    vectors: list[tuple[Expr, int]] = []
    places: list[tuple[int, int]] = []
    for index in indices:
        place = _place(index, vectors, analyzer)
        if place is None:
            vectors.append(_aligned(index, lanes, analyzer))
            place = len(vectors) - 1, int(analyzer.simplify(index - vectors[-1][0]))
        places.append(place)
    elements = math.prod(map(int, load.source.ty.shape))
    if 2 * len(vectors) > lanes or any(elements % width for _, width in vectors):
        return None
    loads = [tirx.BufferLoad(load.source, [_ramp(start, width)]) for start, width in vectors]
    firsts = list(itertools.accumulate((width for _, width in vectors), initial=0))
    return shuffle(loads, [firsts[number] + lane for number, lane in places])


def _place(index: Expr, vectors: list[tuple[Expr, int]], analyzer: Any) -> tuple[int, int] | None:
    """The vector that holds an index and its lane there, None where none is known to."""
    for number, (start, width) in enumerate(vectors):
        distance = analyzer.simplify(index - start)
        if isinstance(distance, tirx.IntImm) and 0 <= int(distance) < width:
            return number, int(distance)
    return None


def _aligned(index: Expr, lanes: int, analyzer: Any) -> tuple[Expr, int]:
    """The widest aligned vector of at most `lanes` that is known to hold an index: its start and width."""
    modular = analyzer.modular_set(index)
    width = math.gcd(int(modular.coeff), lanes)
    return analyzer.simplify(index - int(modular.base) % width), width


def _ramp(start: Expr, width: int) -> Expr:
    """`start, start + 1, ...`; the start itself for a width of 1."""
    return start if width == 1 else tirx.Ramp(start, tirx.const(1, start.ty.dtype), width)
