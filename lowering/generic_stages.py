"""A PrimFunc of plain loops as a list of stages, each one assignment over a box of indices.

TVM's legalised operators are sequences of blocks. Here each block is a `Stage`, which is easy to inline into its
readers, to cut along an axis where its value changes form, and to merge with the elementwise stage behind a reduction.
All of it is logical: no layout and no loop order yet.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import Call, TensorLoad, Var

from sepwise.lowering.vector_math import MAX_ULP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Expr = Any  # tvm has no type stubs

__all__ = [
    "EXPENSIVE_CALLS",
    "INDEX_TYPE",
    "Axis",
    "Stage",
    "StageFunction",
    "analyzer_of",
    "loads",
    "parse",
    "restricted",
    "simplify",
    "simplify_stages",
    "split_digits",
    "substitute",
]

LARGEST_INLINED: Final = 12
"""A value of more operations than that is computed once where several stages read it."""

MOST_COMPUTED_AGAIN: Final = 1.5
"""Such a value is computed in its one reader if that evaluates it at most so often for each of its elements."""

LARGEST_SEGMENTED: Final = 64
"""An axis is cut into at most so many segments."""

LARGEST_PERIOD: Final = 4
"""An axis is split into at most so many phases."""

INDEX_TYPE: Final = "int32"
"""Of all that counts elements; no tensor has more of them."""

CHANNEL_AXIS: Final = 1
"""Where a tensor `(n, c, *spatial)` has its channels."""

EXPENSIVE_CALLS: Final = frozenset(
    [f"tirx.{name}" for name in (*MAX_ULP, "log2", "log10", "sqrt")]
    + [f"sepwise.{name}" for name in MAX_ULP]
    + [f"sepwise.{name}" for name in ("elu", "silu", "gelu", "softplus", "mish")]
)
"""Calls that cost many operations."""


@dataclass(frozen=True, eq=False)
class Axis:
    """A loop: its variable and its extent."""

    var: Var
    extent: int


@dataclass(eq=False)
class Stage:
    """`buffer[indices] = value` over `axes`, or the reduction of `value` over `reduced`.

    Attributes:
        axes: Spatial axes.
        reduced: Axes that are reduced away, empty for none.
        buffer: What is written.
        indices: Where, in terms of `axes`.
        value: What is written or accumulated.
        combiner: `sum`, `max`, `min` or `prod` for a reduction.
        initial: The accumulator's first value.
        accumulator: Stands for the finished sum in `epilogue`.
        epilogue: What is written once the sum is finished, None for the sum itself.
    """

    axes: list[Axis]
    reduced: list[Axis]
    buffer: Var
    indices: list[Expr]
    value: Expr
    combiner: str | None = None
    initial: Expr = None
    accumulator: Var | None = None
    epilogue: Expr = None

    @property
    def expressions(self) -> list[Expr]:
        """All that is evaluated."""
        return [self.value] if self.epilogue is None else [self.value, self.epilogue]

    @property
    def points(self) -> int:
        """Evaluations of the value."""
        return math.prod(axis.extent for axis in (*self.axes, *self.reduced))

    def mapped(self, change: Callable[[Expr], Expr]) -> Stage:
        """Applies a change to every expression."""
        epilogue = None if self.epilogue is None else change(self.epilogue)
        return replace(self, indices=[change(i) for i in self.indices], value=change(self.value), epilogue=epilogue)


@dataclass(eq=False)
class StageFunction:
    """A kernel's stages in execution order.

    Attributes:
        parameters: Buffers of the caller.
        intermediates: Buffers of its own.
        stages: In execution order.
    """

    parameters: list[Var]
    intermediates: list[Var]
    stages: list[Stage] = field(default_factory=list)


def substitute(expression: Expr, values: dict[Var, Expr] | Sequence[tuple[Var, Expr]]) -> Expr:
    """Replaces variables.

    Args:
        expression: Any expression.
        values: What to put for each variable.

    Returns:
        The expression with all replaced at once.
    """
    pairs = list(values.items()) if isinstance(values, dict) else list(values)
    by_name: dict[str, list[tuple[Var, Expr]]] = {}
    for variable, value in pairs:
        by_name.setdefault(variable.name, []).append((variable, value))

    def on_var(variable: Var) -> Expr:
        for other, value in by_name.get(variable.name, ()):
            if other.same_as(variable):
                return value
        return variable

    return tvm_ffi.structural_map(expression, (Var, on_var))


def loads(expression: Expr) -> list[TensorLoad]:
    """Lists the loads in an expression, each as often as it is written."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(expression, (TensorLoad, found.append), order="pre")
    return found


def analyzer_of(axes: Sequence[Axis]) -> tvm.sym.Analyzer:
    """An analyzer that knows the ranges of the axes."""
    analyzer = tvm.sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, tvm.ir.Range.from_min_extent(tirx.const(0, axis.var.ty.dtype), axis.extent))
    return analyzer


def simplify(stage: Stage) -> Stage:
    """Simplifies all index arithmetic of a stage, knowing the ranges of its axes.

    TVM's rules hold for reals: `x - x` would be 0 and `x == x` true, of infinities and NaN too. So they are spelled as
    `x + x * -1` and by `isnan`, which no rule knows.
    """
    analyzer = analyzer_of([*stage.axes, *stage.reduced])

    def on_div(division: tirx.Div) -> Expr:
        """Division that rounds to zero is division that rounds down where nothing is negative."""
        if "int" not in str(division.ty.dtype) or not analyzer.can_prove(division.a >= 0):
            return division
        return tirx.floordiv(division.a, division.b)

    def on_sub(difference: tirx.Sub) -> Expr:
        if not _same_floats(difference):
            return difference
        return difference.a + difference.b * tirx.const(-1.0, str(difference.ty.dtype))

    def on_comparison(comparison: tirx.EQ | tirx.NE) -> Expr:
        if not _same_floats(comparison):
            return comparison
        differs = tirx.isnan(comparison.a)
        return tirx.Not(differs) if isinstance(comparison, tirx.EQ) else differs

    spelled = [(tirx.Div, on_div), (tirx.Sub, on_sub), ((tirx.EQ, tirx.NE), on_comparison)]
    return stage.mapped(lambda e: analyzer.simplify(tvm_ffi.structural_map(e, spelled)))


def _same_floats(operation: tirx.Sub | tirx.EQ | tirx.NE) -> bool:
    """Whether an operation has one floating-point value on both sides."""
    return "float" in str(operation.a.ty.dtype) and bool(tvm_ffi.structural_equal(operation.a, operation.b))


def parse(function: tirx.PrimFunc) -> StageFunction | None:
    """Reads a PrimFunc.

    Args:
        function: Unscheduled, as legalisation or TE make it.

    Returns:
        Its stages, or None where it holds anything but assignments and simple reductions.
    """
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize) or root.block.iter_vars:
        return None
    found: list[s_tir.SBlockRealize] = []
    strange: list[Any] = []
    tvm_ffi.structural_walk(root.block.body, (s_tir.SBlockRealize, found.append), order="pre")
    for kind in (tirx.While, tirx.IfThenElse, tirx.Bind, tirx.Evaluate, tirx.AllocBuffer, tirx.DeclBuffer):
        tvm_ffi.structural_walk(root.block.body, (kind, strange.append), order="pre")
    if strange or root.block.match_buffers:
        return None
    stages = [_parse_block(realize) for realize in found]
    if any(stage is None for stage in stages):
        return None
    return StageFunction(list(function.params), list(root.block.alloc_buffers), [s for s in stages if s is not None])


def _parse_block(realize: s_tir.SBlockRealize) -> Stage | None:
    """One block; None where it is no assignment and no reduction by a known operation."""
    block = realize.block
    store = block.body
    if not isinstance(store, tirx.BufferStore) or block.alloc_buffers or block.match_buffers:
        return None
    if not all(isinstance(value, (Var, tirx.IntImm)) for value in realize.iter_values):
        return None
    axes: list[Axis] = []
    reduced: list[Axis] = []
    fresh: list[tuple[Var, Expr]] = []
    for iter_var in block.iter_vars:
        # A variable of our own: composed functions may share theirs.
        variable = Var(iter_var.var.name, INDEX_TYPE)
        fresh.append((iter_var.var, _cast(variable, iter_var.var)))
        target = reduced if iter_var.iter_type == tirx.IterVar.CommReduce else axes
        target.append(Axis(variable, int(iter_var.dom.extent)))
    indices = [_narrow(substitute(index, fresh)) for index in store.indices]
    value = _narrow_indices(substitute(store.value, fresh))
    if not reduced:
        if block.init is not None or any(load.source.same_as(store.buffer) for load in loads(value)):
            return None
        return Stage(axes, [], store.buffer, indices, value)
    if not isinstance(block.init, tirx.BufferStore):
        return None
    for name, node in (("sum", tirx.Add), ("max", tirx.Max), ("min", tirx.Min), ("prod", tirx.Mul)):
        if isinstance(value, node):
            for own, term in ((value.a, value.b), (value.b, value.a)):
                if isinstance(own, TensorLoad) and own.source.same_as(store.buffer):
                    if any(load.source.same_as(store.buffer) for load in loads(term)):
                        return None
                    return Stage(axes, reduced, store.buffer, indices, term, name, block.init.value)
    return None


def _narrow_indices(value: Expr) -> Expr:
    """The value with `INDEX_TYPE` in all that addresses memory, and in comparisons of what would be wider."""

    def on_load(load: TensorLoad) -> Expr:
        return tirx.BufferLoad(load.source, [_narrow(index) for index in load.indices])

    def on_comparison(comparison: Expr) -> Expr:
        wide = str(comparison.a.ty.dtype) == "int64" and not loads(comparison)
        return type(comparison)(_narrow(comparison.a), _narrow(comparison.b)) if wide else comparison

    comparisons = [(kind, on_comparison) for kind in (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)]
    return tvm_ffi.structural_map(value, [(TensorLoad, on_load), *comparisons])


def _narrow(index: Expr) -> Expr:
    """An index in `INDEX_TYPE`: TVM counts in 64 bits, and mixes both where an index is computed from data or by rounding."""
    if str(index.ty.dtype) != "int64":
        return index
    if isinstance(index, tirx.IntImm):
        return tirx.const(int(index), INDEX_TYPE)
    if isinstance(index, tirx.Cast):
        integer = "int" in str(index.value.ty.dtype)
        return _narrow(index.value) if integer else tirx.Cast(INDEX_TYPE, index.value)
    if isinstance(index, _ARITHMETIC):
        return type(index)(_narrow(index.a), _narrow(index.b))
    if isinstance(index, tirx.Select):
        return tirx.Select(_narrow_indices(index.condition), _narrow(index.true_value), _narrow(index.false_value))
    if isinstance(index, Call) and getattr(index.op, "name", "") == "prim.if_then_else":
        condition, *branches = index.args
        return tirx.if_then_else(_narrow_indices(condition), *map(_narrow, branches))
    return tirx.Cast(INDEX_TYPE, index)


_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)


def simplify_stages(function: StageFunction) -> StageFunction:
    """Inlines, cuts and merges stages until each one is worth a loop nest.

    Args:
        function: As parsed.

    Returns:
        Fewer stages that compute the same.
    """
    stages = [simplify(_without_rounding(stage)) for stage in function.stages]
    intermediates = list(function.intermediates)
    changed = True
    while changed:
        changed = False
        for position, stage in enumerate(stages):
            if not any(stage.buffer.same_as(buffer) for buffer in intermediates):
                continue
            if sum(other.buffer.same_as(stage.buffer) for other in stages) > 1:
                continue
            readers = [other for other in stages if _reads(other, stage.buffer)]
            if not readers:
                del stages[position]
                changed = True
                break
            merged = _inlined(stage, readers) if stage.combiner is None else _merged(stage, readers)
            if merged is None:
                continue
            for old, new in zip(readers, merged, strict=True):
                stages[_position(stages, old)] = new
            stages.remove(stage)
            changed = True
            break
    stages = [phase for stage in stages for part in _segments(_without_periods(stage)) for phase in _phases(part)]
    used = [b for b in intermediates if any(stage.buffer.same_as(b) for stage in stages)]
    return StageFunction(function.parameters, used, stages)


def _position(stages: Sequence[Stage], stage: Stage) -> int:
    return next(i for i, other in enumerate(stages) if other is stage)


def _reads(stage: Stage, buffer: Var) -> bool:
    return any(load.source.same_as(buffer) for expression in stage.expressions for load in loads(expression))


def _count(stage: Stage, buffer: Var) -> int:
    return sum(load.source.same_as(buffer) for expression in stage.expressions for load in loads(expression))


def _identity(stage: Stage) -> bool:
    """Whether the stage writes its whole buffer at `[axis 0, axis 1, ...]`."""
    written = [axis for axis in stage.axes if axis.extent > 1]
    found = []
    for index, extent in zip(stage.indices, stage.buffer.ty.shape, strict=True):
        if isinstance(index, Var):
            found.append(next((axis for axis in stage.axes if axis.var.same_as(index)), None))
        elif not (isinstance(index, tirx.IntImm) and int(extent) == 1):
            return False
    return [axis for axis in found if axis is not None and axis.extent > 1] == written


def _at(stage: Stage, indices: Sequence[Expr]) -> list[tuple[Var, Expr]]:
    """What to put for the stage's axes to get its value at `indices`."""
    pairs: list[tuple[Var, Expr]] = []
    known: list[Var] = []
    for own, index in zip(stage.indices, indices, strict=True):
        if isinstance(own, Var):
            pairs.append((own, _cast(index, own)))
            known.append(own)
    pairs += [
        (axis.var, tirx.const(0, axis.var.ty.dtype))
        for axis in stage.axes
        if not any(axis.var.same_as(variable) for variable in known)
    ]
    return pairs


def _cast(index: Expr, like: Var) -> Expr:
    same = str(index.ty.dtype) == str(like.ty.dtype)
    return index if same else tirx.Cast(like.ty.dtype, index)


def _size(expression: Expr) -> int:
    """Operations in an expression outside of indices, calls of elementary functions counted as many."""
    if isinstance(expression, TensorLoad):
        return 1
    if isinstance(expression, Call):
        name = getattr(expression.op, "name", "")
        own = LARGEST_INLINED if name in EXPENSIVE_CALLS else 1
        arguments = expression.args[1:] if name == "prim.if_then_else" else expression.args
        return own + sum(_size(argument) for argument in arguments)
    children = [getattr(expression, name, None) for name in ("a", "b", "true_value", "false_value", "value")]
    own = LARGEST_INLINED if isinstance(expression, tirx.Mod) and "float" in str(expression.ty.dtype) else 1
    return own + sum(_size(child) for child in children if isinstance(child, tvm.ir.Expr))


def _inlined(stage: Stage, readers: Sequence[Stage]) -> list[Stage] | None:
    """The readers with the stage's value in place of its buffer, None where that would compute too much twice."""
    if not _identity(stage):
        return None
    uses = sum(_count(reader, stage.buffer) for reader in readers)
    size = _size(stage.value)
    if uses > 1 and size > LARGEST_INLINED // 2:
        return None
    if size >= LARGEST_INLINED and (uses > 1 or _evaluations(stage, readers[0]) > MOST_COMPUTED_AGAIN * stage.points):
        return None

    def on_load(load: TensorLoad) -> Expr:
        return substitute(stage.value, _at(stage, load.indices)) if load.source.same_as(stage.buffer) else load

    return [simplify(reader.mapped(lambda e: tvm_ffi.structural_map(e, (TensorLoad, on_load)))) for reader in readers]


def _evaluations(stage: Stage, reader: Stage) -> int:
    """How often a reader would evaluate the stage's value: a concatenation only where it takes this input."""
    return sum(part.points for part in _segments(reader) if _reads(part, stage.buffer))


def _merged(stage: Stage, readers: Sequence[Stage]) -> list[Stage] | None:
    """A reduction with the elementwise reader behind it as its epilogue: `y = f(sum(x))`."""
    reader = readers[0]
    if len(readers) > 1 or reader.combiner is not None or not _identity(stage) or stage.epilogue is not None:
        return None
    found = [load for load in loads(reader.value) if load.source.same_as(stage.buffer)]
    first = found[0]
    if any(not tvm_ffi.structural_equal(load, first) for load in found[1:]):
        return None
    seen: list[Var] = []
    for index, extent in zip(first.indices, stage.buffer.ty.shape, strict=True):
        if int(extent) == 1:
            continue
        if not isinstance(index, Var) or any(index.same_as(other) for other in seen):
            return None
        seen.append(index)
    wide = [axis for axis in reader.axes if axis.extent > 1]
    extents = [int(extent) for extent in stage.buffer.ty.shape if int(extent) > 1]
    by_axis = [next((a for a in wide if a.var.same_as(v)), None) for v in seen]
    if len(seen) != len(wide) or any(a is None for a in by_axis):
        return None
    if [a.extent for a in by_axis if a is not None] != extents:
        return None
    accumulator = Var("total", stage.buffer.ty.dtype)

    def on_load(load: TensorLoad) -> Expr:
        return accumulator if load.source.same_as(stage.buffer) else load

    epilogue = tvm_ffi.structural_map(reader.value, (TensorLoad, on_load))
    value = substitute(stage.value, _at(stage, first.indices))
    merged = Stage(
        reader.axes, stage.reduced, reader.buffer, reader.indices, value, stage.combiner, stage.initial, accumulator, epilogue
    )
    return [simplify(merged)]


def _without_rounding(stage: Stage) -> Stage:
    """Positions that are rounded products of an axis, as those of a Resize, in whole numbers.

    `x[int(floor((i + 0.5) * 0.5 - 0.5))]` becomes `x[(i - 1) // 2]`: found by search and compared at every point of the axis.

    What is compared are the positions in their own arithmetic where weights are made from them too (their fractions must be of
    the same rounding), and otherwise the exact ones: `ceil(i * (66 / 200) - 0.5)` is 49 at i = 150, and 50 in binary32.
    """
    exact = not _makes_weights(stage)

    def on_cast(cast: tirx.Cast) -> Expr:
        axis = _rounded_axis(cast, stage.axes)
        values = _evaluated(cast.value, axis, exact=exact) if axis is not None else None
        found = _floor_of_line(values.astype(np.int64)) if values is not None else None
        if axis is None or found is None:
            return cast
        slope, start, divisor = (tirx.const(number, axis.var.ty.dtype) for number in found)
        position = tirx.floordiv(axis.var * slope + start, divisor)
        return position if str(cast.ty.dtype) == str(axis.var.ty.dtype) else tirx.Cast(cast.ty.dtype, position)

    return stage.mapped(lambda e: tvm_ffi.structural_map(e, (tirx.Cast, on_cast)))


def _rounded_axis(cast: tirx.Cast, axes: Sequence[Axis]) -> Axis | None:
    """The one axis that a floating-point number depends on which is cast to a whole one, None for any other cast."""
    if "int" not in str(cast.ty.dtype) or "float" not in str(cast.value.ty.dtype) or loads(cast.value):
        return None
    used: list[Var] = []
    tvm_ffi.structural_walk(cast.value, (Var, used.append), order="pre")
    return next((axis for axis in axes if used and all(variable.same_as(axis.var) for variable in used)), None)


def _makes_weights(stage: Stage) -> bool:
    """Whether axes are made floating-point numbers elsewhere than in what is rounded to a position."""
    found: list[tirx.Cast] = []

    def on_position(cast: tirx.Cast) -> Expr:
        return cast if _rounded_axis(cast, stage.axes) is None else tirx.const(0, cast.ty.dtype)

    def on_cast(cast: tirx.Cast) -> None:
        if "float" in str(cast.ty.dtype) and not loads(cast.value):
            found.append(cast)

    for expression in stage.expressions:
        tvm_ffi.structural_walk(tvm_ffi.structural_map(expression, (tirx.Cast, on_position)), (tirx.Cast, on_cast))
    return bool(found)


def _evaluated(expression: Expr, axis: Axis, *, exact: bool) -> np.ndarray | None:
    """The values of an expression at all points of an axis; None where it holds unknown operations.

    They are in its own arithmetic or, exactly, fractions.
    """
    dtype = object if exact else str(expression.ty.dtype)
    if isinstance(expression, Var):
        return np.array([Fraction(i) for i in range(axis.extent)]) if exact else np.arange(axis.extent, dtype=dtype)
    if isinstance(expression, (tirx.IntImm, tirx.FloatImm)):
        value = _quotient(expression, axis.extent) if exact else expression.value
        return np.full(axis.extent, value, dtype)
    compute: Callable[..., np.ndarray] | None
    if isinstance(expression, tirx.Cast):
        operands, compute = [expression.value], np.positive
    elif isinstance(expression, Call):
        operands, compute = list(expression.args), _ROUNDINGS.get(getattr(expression.op, "name", ""))
    else:
        operands = [getattr(expression, name, None) for name in ("a", "b")]
        compute = _OPERATIONS.get(type(expression))
    if compute is None:
        return None
    terms = [term for operand in operands if (term := _evaluated(operand, axis, exact=exact)) is not None]
    if len(terms) < len(operands):
        return None
    values = compute(*terms)
    return np.trunc(values) if exact and "int" in str(expression.ty.dtype) else values.astype(dtype)


def _quotient(number: tirx.IntImm | tirx.FloatImm, largest: int) -> Fraction:
    """The quotient of small whole numbers that a constant stands for, such as that of two extents; otherwise itself."""
    simple = Fraction(number.value).limit_denominator(largest)
    stored = np.dtype(str(number.ty.dtype)).type
    return simple if stored(simple) == stored(number.value) else Fraction(number.value)


def _floor_of_line(values: np.ndarray) -> tuple[int, int, int] | None:
    """`a, b, c` with the least c such that `(a * i + b) // c` are the values, None where there are none."""
    at = np.arange(values.size)
    steps = max(values.size - 1, 1)
    rise = int(values[-1] - values[0])
    for divisor in range(1, 2 * values.size + 1):
        # The slope lies within one step of the mean.
        for slope in range(-(-divisor * (rise - 1) // steps), divisor * (rise + 1) // steps + 1):
            rest = values * divisor - slope * at
            if rest.max() <= rest.min() + divisor - 1:
                return slope, int(rest.max()), divisor
    return None


_OPERATIONS: Final[dict[type, Callable[..., np.ndarray]]] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.Div: np.divide,
    tirx.Max: np.maximum,
    tirx.Min: np.minimum,
}

_ROUNDINGS: Final[dict[str, Callable[..., np.ndarray]]] = {"tirx.floor": np.floor, "prim.ceil": np.ceil}


def _without_periods(stage: Stage) -> Stage:
    """Splits axes of which the value reads nothing but a remainder: `y[i] = x[i % 4]` becomes `y[o * 4 + i] = x[i]`.

    What is read is contiguous again. And LLVM's vectoriser for AVX-512 gets some loops over such remainders wrong: it reads
    on where it should begin again (a `Tile` of large repeats; the same loops are right for AVX2).
    """
    for axis in list(stage.axes):
        period = _lone_period(stage.value, axis)
        if period < 2 or axis.extent % period or axis.extent == period:
            continue
        stage = _split(stage, axis, period)
    return stage


def _lone_period(value: Expr, axis: Axis) -> int:
    """The divisor where an axis occurs in remainders by it and nowhere else, otherwise 0."""
    periods: list[int] = []
    uses: list[Var] = []

    def on_remainder(remainder: tirx.FloorMod) -> None:
        if isinstance(remainder.a, Var) and remainder.a.same_as(axis.var) and isinstance(remainder.b, tirx.IntImm):
            periods.append(int(remainder.b))

    tvm_ffi.structural_walk(value, [(tirx.FloorMod, on_remainder)])
    tvm_ffi.structural_walk(value, [(Var, uses.append)])
    lone = len(periods) == sum(use.same_as(axis.var) for use in uses)
    return periods[0] if lone and len(set(periods)) == 1 else 0


def split_digits(stage: Stage) -> Stage:
    """Splits axes whose quotient and remainder by the same number address memory, as those of a reshaped tensor.

    `y[i] = x[i // 64, i % 64]` becomes `y[o * 64 + i] = x[o, i]`, each of whose axes is one stride through both.

    Args:
        stage: The stage.

    Returns:
        The stage over more axes, itself where it has no such axis.
    """
    for axis in stage.axes:
        found: set[int] = set()

        def on_quotient(quotient: tirx.FloorDiv | tirx.FloorMod, axis: Axis = axis, found: set[int] = found) -> None:
            if isinstance(quotient.a, Var) and quotient.a.same_as(axis.var) and isinstance(quotient.b, tirx.IntImm):
                found.add(int(quotient.b))

        tvm_ffi.structural_walk(stage.value, [(tirx.FloorDiv, on_quotient), (tirx.FloorMod, on_quotient)])
        period = max((p for p in found if LARGEST_PERIOD < p < axis.extent and axis.extent % p == 0), default=0)
        if period:
            return split_digits(_split(stage, axis, period))
    return stage


def _split(stage: Stage, axis: Axis, period: int) -> Stage:
    """The stage over `axis = outer * period + inner`."""
    outer = Axis(Var(f"{axis.var.name}_period", axis.var.ty), axis.extent // period)
    inner = Axis(Var(axis.var.name, axis.var.ty), period)
    whole = [(axis.var, outer.var * tirx.const(period, axis.var.ty.dtype) + inner.var)]
    axes = [part for other in stage.axes for part in ((outer, inner) if other is axis else (other,))]
    return simplify(replace(stage.mapped(functools.partial(substitute, values=whole)), axes=axes))


def _segments(stage: Stage) -> list[Stage]:
    """Cuts a stage along the axes that its conditions speak of, so that most of it has no condition.

    `y[c] = if_then_else(c < 8, a[c], b[c - 8])` over 20 becomes `y[c] = a[c]` over 8 and `y[c + 8] = b[c]` over 12;
    a padded pooling becomes its interior and its borders.
    """
    parts = [stage]
    for axis in stage.axes:
        cuts = _cuts(stage, axis)
        if not 0 < len(cuts) < LARGEST_SEGMENTED:
            continue
        bounds = [0, *cuts, axis.extent]
        parts = [
            restricted(part, axis, start, end)
            for part in parts
            for start, end in itertools.pairwise(bounds)
        ]
    return parts


def _cuts(stage: Stage, axis: Axis) -> list[int]:
    """Where, inside an axis, a condition on it (and on a reduced axis) begins or ceases to be always or never true."""
    cuts: set[int] = set()
    signs = {
        tirx.LT: np.less,
        tirx.LE: np.less_equal,
        tirx.GT: np.greater,
        tirx.GE: np.greater_equal,
        tirx.EQ: np.equal,
        tirx.NE: np.not_equal,
    }
    at = np.arange(axis.extent)[:, None]

    def on_condition(condition: Expr) -> None:
        compare = signs.get(type(condition))
        if compare is None:
            return
        difference = condition.a - condition.b
        for other in (None, *stage.reduced):
            variables = [axis.var] if other is None else [axis.var, other.var]
            linear = tvm.sym.detect_linear_equation(difference, variables)
            if len(linear) != len(variables) + 1 or not all(isinstance(part, tirx.IntImm) for part in linear):
                continue
            value = int(linear[0]) * at + int(linear[-1])
            if other is not None:
                value = value + int(linear[1]) * np.arange(other.extent)[None, :]
            true = compare(value, 0)
            state = true.all(axis=1).astype(int) - (~true).all(axis=1).astype(int)
            cuts.update((np.flatnonzero(np.diff(state)) + 1).tolist())
            return

    def on_call(call: Call) -> None:
        if getattr(call.op, "name", "") == "prim.if_then_else":
            _each_comparison(call.args[0], on_condition)

    def on_select(select: tirx.Select) -> None:
        _each_comparison(select.condition, on_condition)

    tvm_ffi.structural_walk(stage.value, [(Call, on_call), (tirx.Select, on_select)])
    return sorted(cuts)


def _phases(stage: Stage) -> list[Stage]:
    """Splits spatial axes whose remainders choose the channel that is read, as a rearrangement of subpixels does.

    `y[o, h] = x[h % 2 * 8 + o, h // 2]` becomes `y[o, 2 h] = x[o, h]` and `y[o, 2 h + 1] = x[8 + o, h]`.
    """
    parts = [stage]
    for axis in stage.axes:
        place = next((i for i, index in enumerate(stage.indices) if isinstance(index, Var) and index.same_as(axis.var)), 0)
        period = _period(stage, axis) if place > CHANNEL_AXIS else 1
        if 1 < period <= min(axis.extent, LARGEST_PERIOD):
            parts = [_every(part, axis, period, phase) for part in parts for phase in range(period)]
    return parts


def _period(stage: Stage, axis: Axis) -> int:
    """The divisor of an axis' remainder in an index of channels or in a condition, 1 where there is none."""
    periods = [1]

    def on_remainder(remainder: tirx.FloorMod) -> None:
        linear = tvm.sym.detect_linear_equation(remainder.a, [axis.var])
        if isinstance(remainder.b, tirx.IntImm) and len(linear) == 2 and all(isinstance(x, tirx.IntImm) for x in linear):
            periods.append(int(remainder.b) if int(linear[0]) else 1)

    def on_call(call: Call) -> None:
        if getattr(call.op, "name", "") == "prim.if_then_else":
            tvm_ffi.structural_walk(call.args[0], (tirx.FloorMod, on_remainder))

    for load in loads(stage.value):
        if len(load.indices) > CHANNEL_AXIS:
            tvm_ffi.structural_walk(load.indices[CHANNEL_AXIS], (tirx.FloorMod, on_remainder))
    tvm_ffi.structural_walk(stage.value, (Call, on_call))
    return max(periods)


def _every(stage: Stage, axis: Axis, period: int, phase: int) -> Stage:
    """The stage over `axis = period * i + phase`."""
    variable = Var(axis.var.name, axis.var.ty)
    dtype = variable.ty.dtype
    index = variable * tirx.const(period, dtype) + tirx.const(phase, dtype)
    part = stage.mapped(lambda e: substitute(e, [(axis.var, index)]))
    extent = -(-(axis.extent - phase) // period)
    return simplify(replace(part, axes=[Axis(variable, extent) if other is axis else other for other in stage.axes]))


def _each_comparison(condition: Expr, visit: Callable[[Expr], None]) -> None:
    if isinstance(condition, (tirx.And, tirx.Or)):
        _each_comparison(condition.a, visit)
        _each_comparison(condition.b, visit)
    else:
        visit(condition)


def restricted(stage: Stage, axis: Axis, start: int, end: int) -> Stage:
    """Gives the part of a stage over `start <= axis < end`.

    Args:
        stage: The stage.
        axis: One of its axes.
        start: First point.
        end: Behind the last point.

    Returns:
        A stage whose axis begins at 0 again.
    """
    variable = Var(axis.var.name, axis.var.ty)
    shifted = variable + tirx.const(start, variable.ty.dtype) if start else variable
    part = stage.mapped(lambda e: substitute(e, [(axis.var, shifted)]))
    axes = [Axis(variable, end - start) if other is axis else other for other in stage.axes]
    return simplify(replace(part, axes=axes))
