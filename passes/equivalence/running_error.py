# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""Running error analysis: how far any execution of a graph may be from its exact values, element by element.

`run_with_bounds` carries a value and a bound through the graph together. For each operator a rule says how much the
errors of the operands may grow, and what the operator's own rounding adds. The rules hold for every order of
summation, blocked or not, with fused multiply-add or not (Higham, Accuracy and Stability of Numerical Algorithms,
chapter 3), for batch norms and scales that were folded into weights, and for affine maps that are rewritten with
their constants multiplied through.

Each operation rounds in the format of its result (`Operation.format`), the partial results of a sum included: that is the
worst that an execution may do, and what ours do. In binary16 it makes the bound of a dense sum of more than some forty terms
larger than most of its terms: a lost one shows on sparse tensors, of whose sums only the nonzero terms count, and where
several are lost. Sums whose terms together exceed the largest number have no bound, as partial sums may overflow.

The exact values are the oracle's, in binary64. It rounds by 2^-53, which is nothing beside the coarser formats; of a model in
binary64 it is an execution like any other, and the bound is of the difference of two (`_as_compared`).

Arithmetic is IEEE's with gradual underflow, or (`flush`) takes and gives 0 for numbers below the normal range of binary32, as
vector units of Armv7 do. Each number that is flushed is one off by less than the smallest normal number N: operands below
N have that error, and of a sum of k products each product, each partial sum and each weight that a batch norm was
folded into, (2 k + 4) N (1 + max |x|) in all. What only moves through memory is left as it is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from sepwise.passes.equivalence.beginnings import Beginnings
from sepwise.passes.equivalence.convolution import conv, conv_transpose
from sepwise.passes.equivalence.formats import BINARY32, BINARY64, Format
from sepwise.passes.equivalence.graph import Array, Model, Operation
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import (
    aligned_slope,
    channel_window_sums,
    clip_limits,
    evaluate,
    fold_channels,
    gemm_operands,
    hard_sigmoid_parameters,
    lp_norm,
    lrn_parameters,
    normalized_axes,
    reduced_axes,
    softmax_view,
)
from sepwise.passes.equivalence.oracle import Oracle, as_graph
from sepwise.passes.equivalence.pooling import average_pool, average_pool_counts
from sepwise.passes.equivalence.resampling import (
    apply_axis,
    axis_weights,
    coordinates,
    nearest_indices,
    read_plan,
    resized_axes,
)
from sepwise.passes.equivalence.rounding import ALLOWANCES, CASTS, MOVES, NEVER_ROUND, PRODUCT_SUMS, moves
from sepwise.passes.equivalence.winograd import Winograd
from sepwise.passes.errors import UnsupportedError

__all__ = ["run_with_bounds"]

# A weight may carry a folded scale (gamma / sqrt(variance + epsilon): an addition, a root, a division, a product),
# each rounded once.
FOLDED_ROUNDINGS = 4

# Below this share of nonzero elements the nonzero products of each sum are counted: adding a zero is exact.
SPARSE_SHARE = 0.125


@dataclass(frozen=True)
class Bounded:
    """A value and how far an execution may be from it, elementwise.

    Attributes:
        value: exact, float64 (or an integer or boolean tensor).
        error: bound of the absolute error, of the same shape; shape () where it is zero throughout. For booleans 1
            means that rounding may flip the element.
    """

    value: Array
    error: Array

    @property
    def exact(self) -> bool:
        """Tells whether no element has any error."""
        return self.error.ndim == 0

    @property
    def size(self) -> Array:
        """Returns the largest magnitude that an execution may hold, |value| + error."""
        return np.abs(self.value) + self.error


EXACT = np.zeros(())
Operands: TypeAlias = list[Bounded | None]
Rule: TypeAlias = Callable[..., Array]


def run_with_bounds(
    model: "Model | Oracle",
    inputs: Mapping[str, Array],
    *,
    keep: Collection[str] = (),
    flush: bool = False,
    winograd: Mapping[str, int] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Computes the outputs of a model and how far any execution may be from them.

    The argument: a sum of k products is off by at most gamma_k sum |w| |x|, gamma_k = k u / (1 - k u), u the unit roundoff of
    its format, in whatever order it is summed, since no term sees more than k roundings. A constant that is added to it is one
    more term (`beginnings`). Errors e of the operands add
    |w| e to that. An activation with slope at most L turns an error e into L e and adds its own allowance
    (`rounding.ALLOWANCES`); piecewise linear ones are evaluated at both ends of the interval instead, so that a
    saturated ReLU6 is exact. The bound is a fact about arithmetic, not an experiment: a correct kernel cannot violate
    it on any input, and a single lost tap of a convolution exceeds it by orders of magnitude.

    Args:
        model: a model, usually the few nodes that one kernel covers (`extract`).
        inputs: tensors by input name. They are rounded to the formats of the inputs first, as the kernel is fed; so their
            error is 0.
        keep: names of intermediate values to return as well.
        flush: whether arithmetic takes and gives 0 for numbers below the normal range of binary32.
        winograd: m of the convolutions, by the names of their outputs, that are computed as F(m x m, 3 x 3) and have the bound of
            that (`Winograd.bound`).

    Returns:
        (value, bound) of each output, then of what was to be kept; both float64 and of one shape. The bound is
        infinite where an execution may overflow.

    Raises:
        UnsupportedError: if an operator has no rule.
        InputError: if inputs do not fit the model.
    """
    graph = as_graph(model)
    feeds = read_inputs(graph, inputs, stored=True)
    with np.errstate(all="ignore"):
        results = interpret(
            graph,
            {name: Bounded(array, EXACT) for name, array in feeds.items()},
            constant=lambda _, array, __: Bounded(array, EXACT),
            step=partial(_step, beginnings=Beginnings(graph), terms={}, flush=flush, winograd=winograd or {}),
            truth=_truth,
            keep=keep,
        )
    return {name: (b.value, np.broadcast_to(b.error, b.value.shape).copy()) for name, b in results.items()}


def _as_compared(stored: Format) -> Format:
    """The format of which a difference from the oracle's result is: of binary64 two results, each rounded, are compared."""
    return replace(stored, unit=stored.unit + BINARY64.unit) if stored is BINARY64 else stored


def _truth(condition: Bounded) -> bool:
    if not condition.exact:
        raise UnsupportedError("The condition of an If depends on rounding, so no bound can be given.")
    return bool(condition.value.all())


def _step(
    op: Operation,
    operands: Operands,
    *,
    beginnings: Beginnings,
    terms: dict[str, Callable[[], Array | int]],
    flush: bool,
    winograd: Mapping[str, int],
) -> tuple[Bounded, ...]:
    op = replace(op, format=_as_compared(op.format))
    values = [None if o is None else o.value for o in operands]
    outputs = evaluate(op, values)
    begun = beginnings.find(op, values)
    if op.operator in PRODUCT_SUMS:
        terms[op.outputs[0]] = partial(_count_terms, op, operands, beginnings.products[op.outputs[0]])
    if flush and not moves(op):
        read = len(operands) if op.operator in READS_ALL else 1
        operands = [*map(_flushed, operands[:read]), *operands[read:]]
    exact = all(o is None or o.exact for o in operands)
    if op.operator in ("Shape", "Size"):
        return _exact(outputs)
    if exact and outputs[0].dtype.kind == "f" and op.operator in CASTS:
        return (Bounded(outputs[0], _finish(op, outputs[0], op.format.misses(outputs[0]))),)
    if exact and op.operator in CASTS and operands[0] is not None and not (held := _held(outputs[0], operands[0])).all():
        return (Bounded(outputs[0], np.where(held, 0.0, np.inf)),)
    if exact and (moves(op) or op.operator in NEVER_ROUND or outputs[0].dtype.kind != "f"):
        return tuple(Bounded(y, EXACT) for y in outputs)
    if moves(op):
        return _move(op, operands, outputs)
    rule = RULES.get(op.operator)
    if op.operator == "Conv" and op.outputs[0] in winograd:
        rule = partial(_winograd_rule, Winograd.of(winograd[op.outputs[0]]), flush)
    if rule is None:
        raise UnsupportedError(f"{op}: has no rule in the running error analysis, so no bound can be given for it.")
    error = rule(op, outputs[0], *operands)
    if begun is not None and op.operator not in PRODUCT_SUMS:  # these count their own bias
        error = error + op.format.gamma(terms[begun[0]]()) * begun[1]
    if op.operator not in NEVER_ROUND and outputs[0].dtype.kind == "f":
        error = error + 4 * op.format.smallest  # a result below the normal range is rounded absolutely, in at most a few steps
        error = error + (_flushed_results(operands) if flush else 0.0)
    first = Bounded(outputs[0], _finish(op, outputs[0], error))
    return (first, *(Bounded(y, np.full(y.shape, np.inf)) for y in outputs[1:]))


def _flushed(operand: Bounded | None) -> Bounded | None:
    """An operand whose elements may be taken for 0 where they may lie below the normal range."""
    if operand is None or operand.value.dtype.kind != "f":
        return operand
    below = (operand.size > 0) & (np.abs(operand.value) - operand.error < BINARY32.normal)
    return Bounded(operand.value, operand.error + BINARY32.normal * below) if below.any() else operand


def _flushed_results(operands: Operands) -> float:
    """What flushed products, partial sums and folded weights amount to: no element is made of more than the largest operand."""
    terms = max((o.value.size for o in operands if o is not None), default=0)
    data = operands[0].size if operands and operands[0] is not None else np.zeros(1)
    largest = np.max(data, where=np.isfinite(data), initial=0.0)
    return (2 * terms + 4) * BINARY32.normal * (1 + float(largest))


def _finish(op: Operation, y: Array, error: Array) -> Array:
    error = np.where(np.isnan(error), np.inf, np.broadcast_to(error, y.shape))
    error = np.where(np.abs(y) + error > op.format.largest, np.inf, error)
    return error if error.any() else EXACT


def _move(op: Operation, operands: Operands, outputs: Sequence[Array]) -> tuple[Bounded, ...]:
    """Moves the errors as the operator moves the values."""
    places = MOVES[op.operator] or range(len(operands))
    moved: list[Array | None] = []
    for place, operand in enumerate(operands):
        if operand is None:
            moved.append(None)
        elif place in places:
            moved.append(np.broadcast_to(operand.error, operand.value.shape).astype(np.float64))
        elif not operand.exact:
            raise UnsupportedError(f"{op}: its input {place} depends on rounding, so no bound can be given.")
        else:
            filler = op.operator == "Pad" and place == 2 and operand.value.dtype.kind == "f"
            moved.append(np.zeros_like(operand.value) if filler else operand.value)
    if op.operator == "Pad" and op.version < 11:
        op = replace(op, attributes={**op.attributes, "value": 0.0})
    if outputs[0].dtype.kind != "f":
        raise UnsupportedError(f"{op}: makes integers of a value that depends on rounding, so no bound can be given.")
    if op.operator == "Dropout":
        return (Bounded(outputs[0], _finish(op, outputs[0], operands[0].error if operands[0] else EXACT)), *_exact(outputs[1:]))
    return tuple(Bounded(y, _finish(op, y, e)) for y, e in zip(outputs, evaluate(op, moved), strict=True))


def _exact(outputs: Sequence[Array]) -> tuple[Bounded, ...]:
    return tuple(Bounded(y, EXACT) for y in outputs)


def _attribute(op: Operation, name: str, default: float) -> Bounded:
    """A number of the model that a kernel holds in its own format: rounded, where that has fewer digits than binary32."""
    number = np.asarray(op.number(name, default))
    return Bounded(number, op.format.misses(number))


def _summed(op: Operation, total: Array, error: Array) -> Array:
    """The error of a sum whose terms are of given size in total; infinite where a partial sum may overflow."""
    return np.where(total > op.format.largest, np.inf, error)


# Sums of products ----------------------------------------------------------------------------------------------


def _products(
    op: Operation,
    multiply: Callable[[Array, Array], Array],
    a: Bounded,
    b: Bounded,
    k: int,
    bias: Bounded | None = None,
) -> Array:
    """Bounds a sum of k products and a bias, given the bilinear map that computes the sum.

    |fl(sum a b) - sum a b| <= gamma_k sum |a'||b'| + sum (|a'| e_b + e_a |b|), a' and b' as the execution holds them.
    """
    size_a, size_b = a.size, b.size
    total = multiply(size_a, size_b)
    terms: int | Array = k
    for operand in (a, b):
        if operand.value.size and np.count_nonzero(operand.size) < SPARSE_SHARE * operand.value.size:
            terms = np.rint(multiply((size_a != 0).astype(np.float64), (size_b != 0).astype(np.float64)))
            break
    if bias is not None:
        terms = terms + 1
        total = total + bias.size
    error = op.format.gamma(terms + FOLDED_ROUNDINGS) * total + terms * op.format.smallest
    if bias is not None:
        error = error + bias.error
    if not a.exact:
        error = error + multiply(np.broadcast_to(a.error, a.value.shape), np.abs(b.value))
    if not b.exact:
        error = error + multiply(size_a, np.broadcast_to(b.error, b.value.shape))
    return _summed(op, total, error)


def _count_terms(op: Operation, operands: Operands, k: int) -> Array | int:
    """Counts the products in each sum that are not 0: adding a zero is exact."""
    factors = [operand for operand in operands[:2] if operand is not None]
    if all(np.count_nonzero(each.size) >= SPARSE_SHARE * each.value.size for each in factors):
        return k
    plain = replace(op, attributes={name: value for name, value in op.attributes.items() if name not in ("alpha", "beta")})
    found: Array = np.rint(evaluate(plain, [(each.size != 0).astype(np.float64) for each in factors])[0])
    return found


def _conv_rule(op: Operation, y: Array, x: Bounded, w: Bounded, b: Bounded | None = None) -> Array:
    return _products(op, lambda p, q: conv(op, p, q), x, w, w.value[0].size, _per_channel(y, b))


def _winograd_rule(
    algorithm: Winograd, flush: bool, op: Operation, y: Array, x: Bounded, w: Bounded, b: Bounded | None = None
) -> Array:
    below = BINARY32.normal if flush else op.format.smallest
    bias = _per_channel(y, b)
    others = FOLDED_ROUNDINGS + (bias is not None)
    error, total = algorithm.bound(op, x.size, w.size, below, others)
    if bias is not None:
        error = error + op.format.gamma(others) * bias.size + bias.error
        total = total + bias.size
    if not x.exact:
        error = error + conv(op, np.broadcast_to(x.error, x.value.shape), np.abs(w.value))
    if not w.exact:
        error = error + conv(op, x.size, np.broadcast_to(w.error, w.value.shape))
    return _summed(op, total, error)


def _conv_transpose_rule(op: Operation, y: Array, x: Bounded, w: Bounded, b: Bounded | None = None) -> Array:
    k = w.value[:, 0].size // op.integer("group", 1)
    return _products(op, lambda p, q: conv_transpose(op, p, q), x, w, k, _per_channel(y, b))


def _per_channel(y: Array, b: Bounded | None) -> Bounded | None:
    return None if b is None else Bounded(fold_channels(y, b.value), EXACT if b.exact else fold_channels(y, b.error))


def _gemm_rule(op: Operation, _: Array, a: Bounded, b: Bounded, c: Bounded | None = None) -> Array:
    factors = [_attribute(op, name, 1.0) for name in ("alpha", "beta")]
    alpha, beta = (factor.size for factor in factors)

    def multiply(p: Array, q: Array) -> Array:
        p, q = gemm_operands(op, p, q)
        return alpha * (p @ q) if alpha != 1 else p @ q

    scaled = sum(int(factor.value != 1) + int(factor.error > 0) for factor in factors)
    k = gemm_operands(op, a.value, b.value)[0].shape[1] + scaled
    return _products(op, multiply, a, b, k, None if c is None else Bounded(beta * c.value, beta * c.error))


def _matmul_rule(op: Operation, _: Array, a: Bounded, b: Bounded) -> Array:
    return _products(op, np.matmul, a, b, a.value.shape[-1])


def _average_pool_rule(op: Operation, _: Array, x: Bounded) -> Array:
    counts = average_pool_counts(op, x.value)
    size = average_pool(op, x.size)
    return _summed(op, counts * size, average_pool(op, _full(x)) + op.format.gamma(counts + 2) * size)


def _full(x: Bounded) -> Array:
    return np.broadcast_to(x.error, x.value.shape)


def _global_average_pool_rule(op: Operation, y: Array, x: Bounded) -> Array:
    return _mean(op, x, tuple(range(2, x.value.ndim)), keep=True)


def _mean(op: Operation, x: Bounded, axes: tuple[int, ...], *, keep: bool) -> Array:
    k = int(np.prod([x.value.shape[axis] for axis in axes]))
    mean_size = x.size.mean(axis=axes, keepdims=keep)
    rounding = op.format.gamma(_terms(x, axes, keep=keep) + 2) * mean_size
    return _summed(op, k * mean_size, _full(x).mean(axis=axes, keepdims=keep) + rounding)


def _terms(x: Bounded, axes: tuple[int, ...], *, keep: bool) -> Array:
    """Counts the terms of sums over some axes that are not 0: adding a zero is exact."""
    return np.asarray(np.count_nonzero(x.size, axis=axes, keepdims=keep))


def _reduce_mean_rule(op: Operation, _: Array, x: Bounded, axes: Bounded | None = None) -> Array:
    return _mean(op, x, _over(op, x, axes), keep=bool(op.integer("keepdims", 1)))


def _over(op: Operation, x: Bounded, axes: Bounded | None) -> tuple[int, ...]:
    return reduced_axes(op, x.value, None if axes is None else axes.value) or ()


def _reduce_sum_rule(op: Operation, _: Array, x: Bounded, axes: Bounded | None = None) -> Array:
    over, keep = _over(op, x, axes), bool(op.integer("keepdims", 1))
    size = x.size.sum(axis=over, keepdims=keep)
    return _summed(op, size, _full(x).sum(axis=over, keepdims=keep) + op.format.gamma(_terms(x, over, keep=keep)) * size)


def _reduce_squares_rule(op: Operation, y: Array, x: Bounded, axes: Bounded | None = None) -> Array:
    return _reduce_sum_rule(op, y, _square(op, x), axes)


def _square(op: Operation, x: Bounded) -> Bounded:
    error = (2 * np.abs(x.value) + x.error) * x.error + op.format.unit * x.size**2 + op.format.smallest
    return Bounded(x.value**2, error)


def _reduce_l2_rule(op: Operation, y: Array, x: Bounded, axes: Bounded | None = None) -> Array:
    """The root of a sum of squares, which is never computed as less than 0."""
    return _root(y**2, _reduce_squares_rule(op, y, x, axes)) + 2 * op.format.unit * y


def _reduce_max_rule(op: Operation, _: Array, x: Bounded, axes: Bounded | None = None) -> Array:
    return _full(x).max(axis=_over(op, x, axes), keepdims=bool(op.integer("keepdims", 1)))


def _global_max_pool_rule(_: Operation, __: Array, x: Bounded) -> Array:
    return _full(x).max(axis=tuple(range(2, x.value.ndim)), keepdims=True)


def _max_pool_rule(op: Operation, _: Array, x: Bounded) -> Array:
    return np.maximum(evaluate(op, [_full(x)])[0], 0)


# Normalisation -------------------------------------------------------------------------------------------------


def _batch_normalization_rule(
    op: Operation, y: Array, x: Bounded, scale: Bounded, bias: Bounded, mean: Bounded, variance: Bounded
) -> Array:
    """(x - mean) f + bias or x f + (bias - mean f), f = scale / sqrt(variance + epsilon): at most 8 roundings a term.

    An epsilon below the normal range of binary16 loses digits, and moves f.
    """
    if not all(p.exact for p in (scale, bias, mean, variance)):
        raise UnsupportedError(f"{op}: its parameters are computed; a bound is known for constant ones only.")
    s, b, m, v = (fold_channels(x.value, p.value) for p in (scale, bias, mean, variance))
    epsilon = _attribute(op, "epsilon", 1e-5)
    factor = np.abs(s) / np.sqrt(v + epsilon.value - epsilon.error)
    moved = (factor - np.abs(s) / np.sqrt(v + epsilon.size)) * np.abs(x.value - m)
    rounding = op.format.gamma(8) * (factor * (x.size + np.abs(m)) + np.abs(b)) + op.format.smallest
    return factor * x.error + moved + rounding


def _normalization_rule(op: Operation, y: Array, x: Bounded, scale: Bounded, bias: Bounded | None = None) -> Array:
    """Bounds (x - mean) / sqrt(var + epsilon) * scale + bias.

    The variance may be computed as mean (x - mean)^2 or as mean x^2 - mean^2; the bound covers the second, which
    cancels: its error is up to gamma_n (mean x^2 + mean^2).
    """
    axes = normalized_axes(op, x.value)
    gain, shift = (None if p is None else Bounded(_affine(op, x.value, p.value), EXACT) for p in (scale, bias))
    if not scale.exact or (bias is not None and not bias.exact):
        raise UnsupportedError(f"{op}: its parameters are computed; a bound is known for constant ones only.")
    n = int(np.prod([x.value.shape[axis] for axis in axes]))
    epsilon = _attribute(op, "epsilon", 1e-5)
    gamma, unit = op.format.gamma, op.format.unit
    mean = x.value.mean(axis=axes, keepdims=True)
    mean_error = _full(x).mean(axis=axes, keepdims=True) + gamma(n + 2) * x.size.mean(axis=axes, keepdims=True)
    centred = x.value - mean
    centred_error = x.error + mean_error + unit * (np.abs(x.value) + np.abs(mean)) + n * op.format.smallest
    variance = (centred**2).mean(axis=axes, keepdims=True)
    squares = (x.size**2).mean(axis=axes, keepdims=True) + (np.abs(mean) + mean_error) ** 2
    spread = x.error + _full(x).mean(axis=axes, keepdims=True)
    variance_error = (
        (2 * np.abs(centred) * spread + spread**2).mean(axis=axes, keepdims=True) + gamma(2 * n + 8) * squares + 2 * mean_error**2
    )
    variance_error = variance_error + 2 * op.format.smallest
    # A variance below 0 is an execution's mistake, not rounding.
    low = np.maximum(variance - variance_error, 0) + epsilon.value - epsilon.error
    inverse = 1 / np.sqrt(variance + epsilon.value)
    inverse_error = 1 / np.sqrt(low) - inverse + gamma(4) / np.sqrt(low)
    assert gain is not None
    size = (np.abs(centred) + centred_error) * (inverse + inverse_error) * np.abs(gain.value)
    error = (centred_error * (inverse + inverse_error) + np.abs(centred) * inverse_error) * np.abs(gain.value)
    error = error + gamma(4) * size + gamma(4) * np.abs(mean) * inverse * np.abs(gain.value)
    error = _summed(op, n * squares, error)
    return error if shift is None else error + gamma(2) * (np.abs(y) + np.abs(shift.value))


def _affine(op: Operation, x: Array, parameter: Array) -> Array:
    return fold_channels(x, parameter) if op.operator == "InstanceNormalization" else parameter


def _lrn_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Bounds x q^-beta, q = bias + share sum x^2, by the smallest q that an execution may hold; no parameter is negative.

    Each channel's sum may be the one before, with a term added and one taken away: at most three roundings of the size of sums.
    """
    share, bias, beta = lrn_parameters(op)
    square = _square(op, x)
    total = channel_window_sums(op, square.size)
    base = bias + share * channel_window_sums(op, square.value)
    stored = [_attribute(op, name, default).error for name, default in (("alpha", 1e-4), ("bias", 1.0), ("beta", 0.75))]
    error = share * channel_window_sums(op, np.broadcast_to(square.error, x.value.shape)) + stored[1]
    rounding = op.format.gamma(op.integer("size", 1)) * total + op.format.gamma(4) * np.cumsum(total, axis=1)
    error = error + stored[0] * total + share * rounding + op.format.gamma(4) * (bias + share * total)
    low = base - error
    scale = np.where(low > 0, np.maximum(low, op.format.smallest) ** -(beta + stored[2] * (low < 1)), np.inf)
    exponent = stored[2] * np.abs(np.log(base)) * base**-beta
    grown = x.size * (scale - base**-beta + exponent) + x.error * base**-beta
    return _summed(op, total, grown + op.format.unit * (ALLOWANCES["Pow"].ulps + 2) * x.size * scale)


def _lp_normalization_rule(op: Operation, y: Array, x: Bounded) -> Array:
    axis, p = op.integer("axis", -1), op.integer("p", 2)
    powers = _square(op, x) if p == 2 else Bounded(np.abs(x.value), x.error)
    error = _full(powers).sum(axis=axis, keepdims=True)
    error = error + op.format.gamma(x.value.shape[axis]) * powers.size.sum(axis=axis, keepdims=True)
    norm = lp_norm(op, x.value)
    return _div_rule(op, y, x, Bounded(norm, _root(norm**2, error) + 2 * op.format.unit * norm if p == 2 else error))


def _softmax_terms(op: Operation, x: Bounded) -> tuple[Array, Array, Array, int, int]:
    """Returns the shift max - x, the weights exp(-shift), and the relative error of each weight.

    The shift cancels between numerator and sum, so the error of the maximum itself does not count.
    """
    view, axis = softmax_view(op, x.value)
    shift = view.max(axis=axis, keepdims=True) - view
    error = _full(x).reshape(view.shape)
    unit = op.format.unit
    relative = np.expm1(error + unit * (shift + 2 * error.max(axis=axis, keepdims=True))) + ALLOWANCES["Exp"].ulps * unit
    return shift, np.exp(-shift), relative, axis, view.shape[axis]


def _softmax_rule(op: Operation, y: Array, x: Bounded) -> Array:
    _, weights, relative, axis, k = _softmax_terms(op, x)
    total = weights.sum(axis=axis, keepdims=True)
    total_relative = (weights * relative).sum(axis=axis, keepdims=True) / total + op.format.gamma(k + 2) + k * op.format.smallest
    growth = np.where(total_relative < 1, (1 + relative) * (1 + 2 * op.format.unit) / (1 - total_relative) - 1, np.inf)
    return np.minimum(np.abs(y) * growth.reshape(y.shape), 1) + op.format.normal


def _log_softmax_rule(op: Operation, y: Array, x: Bounded) -> Array:
    shift, weights, relative, axis, k = _softmax_terms(op, x)
    total = weights.sum(axis=axis, keepdims=True)
    total_relative = (weights * relative).sum(axis=axis, keepdims=True) / total + op.format.gamma(k) + k * op.format.smallest
    unit, log_ulps = op.format.unit, ALLOWANCES["Log"].ulps
    top = _full(x).reshape(shift.shape)
    log_error = np.where(total_relative < 1, -np.log1p(-total_relative), np.inf) + log_ulps * unit * np.log(total)
    error = top + 2 * unit * (shift + np.abs(np.log(total))) + log_error + unit
    return error.reshape(y.shape)


# Elementwise ---------------------------------------------------------------------------------------------------


def _add_rule(op: Operation, _: Array, a: Bounded, b: Bounded) -> Array:
    """Two roundings of each operand, so that s a + s b in place of s (a + b) is covered as well."""
    return a.error + b.error + op.format.gamma(2) * (a.size + b.size)


def _sum_rule(op: Operation, y: Array, *inputs: Bounded) -> Array:
    error = np.zeros(y.shape)
    for operand in inputs:
        error = error + operand.error + op.format.gamma(len(inputs) + 1) * operand.size
    return error / len(inputs) if op.operator == "Mean" else error


def _mul_rule(op: Operation, _: Array, a: Bounded, b: Bounded) -> Array:
    rounding = op.format.gamma(2) * a.size * b.size + op.format.smallest
    return np.abs(a.value) * b.error + a.error * b.size + rounding


def _div_rule(op: Operation, y: Array, a: Bounded, b: Bounded) -> Array:
    room = np.abs(b.value) - b.error
    grown = np.where(room > 0, (a.error + np.abs(y) * b.error) / np.maximum(room, op.format.smallest), np.inf)
    return grown + op.format.gamma(3) * (np.abs(y) + grown) + op.format.smallest


def _reciprocal_rule(op: Operation, y: Array, x: Bounded) -> Array:
    return _div_rule(op, y, Bounded(np.ones(()), EXACT), x)


def _root(value: Array, error: Array) -> Array:
    """Error of the square root of what is not negative, from both ends of the interval."""
    up = np.sqrt(value + error) - np.sqrt(value)
    down = np.sqrt(value) - np.sqrt(np.maximum(value - error, 0))
    return np.maximum(up, down)


def _sqrt_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Infinite where the root may not exist."""
    change = np.where((x.value < x.error) & (x.error > op.format.smallest), np.inf, _root(x.value, _full(x)))
    return change + 2 * op.format.unit * np.abs(y)


def _pow_rule(op: Operation, y: Array, a: Bounded, b: Bounded) -> Array:
    if not b.exact:
        raise UnsupportedError(f"{op}: its exponent is computed; a bound is known for a constant one only.")
    p = b.value.astype(np.float64)
    low, high = np.maximum(np.abs(a.value) - a.error, 0) ** p, a.size**p
    change = np.maximum(np.abs(low - np.abs(y)), np.abs(high - np.abs(y)))
    change = np.where(np.abs(a.value) < a.error, np.maximum(low, high) + np.abs(y), change)
    rounding = np.where(p == 2, 1.0, ALLOWANCES["Pow"].ulps) * op.format.unit
    return change + rounding * (np.abs(y) + change) + op.format.smallest


def _exp_rule(op: Operation, y: Array, x: Bounded) -> Array:
    grown = y * np.expm1(x.error)
    return grown + ALLOWANCES["Exp"].ulps * op.format.unit * (y + grown) + op.format.normal


def _log_rule(op: Operation, y: Array, x: Bounded) -> Array:
    change = np.where(x.error < x.value, -np.log1p(-x.error / x.value), np.inf)
    rounding = ALLOWANCES["Log"].ulps * op.format.unit * (np.abs(y) + change * (x.error > 0)) + op.format.smallest
    return np.where(x.error == 0, 0.0, change) + rounding


def _smooth_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """L e, and the allowance of the operator on the result that an execution may hold."""
    allowance = ALLOWANCES[op.operator]
    assert allowance.lipschitz is not None
    moved = allowance.lipschitz * x.error
    scale = x.size if allowance.gated else 1.0
    rounding = 0.0 if not allowance.ulps else op.format.smallest
    return moved + op.format.unit * (allowance.ulps * (np.abs(y) + moved) + allowance.absolute * scale) + rounding


def _monotone_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Monotone functions by both ends of the interval; where one lies outside of the domain there is no bound."""
    change = np.zeros(())
    if not x.exact:
        ends = [evaluate(op, [x.value + sign * x.error])[0] for sign in (-1, 1)]
        change = np.maximum(np.abs(ends[0] - y), np.abs(ends[1] - y))
    return change + ALLOWANCES[op.operator].ulps * op.format.unit * (np.abs(y) + change) + op.format.smallest


def _tan_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Monotone between its poles; an interval with a pole has no bound."""
    branches = [np.floor((x.value + sign * x.error) / np.pi + 0.5) for sign in (-1, 1)]
    return np.where(branches[0] == branches[1], _monotone_rule(op, y, x), np.inf)


def _cosh_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Steepest at the end that is farther from 0."""
    change = np.sinh(x.size) * x.error
    return change + ALLOWANCES[op.operator].ulps * op.format.unit * (y + change)


def _mod_rule(op: Operation, y: Array, a: Bounded, b: Bounded) -> Array:
    """A remainder moves as its dividend does, or by a whole divisor where the quotient may pass a whole number."""
    if not b.exact:
        raise UnsupportedError(f"{op}: its divisor is computed; a bound is known for a constant one only.")
    whole = np.trunc if op.integer("fmod", 0) else np.floor
    same = whole((a.value - a.error) / b.value) == whole((a.value + a.error) / b.value)
    moved = np.where(same | (a.error == 0), a.error, np.abs(b.value))
    return moved + ALLOWANCES[op.operator].ulps * op.format.unit * (np.abs(y) + moved)


def _elu_rule(op: Operation, y: Array, x: Bounded) -> Array:
    inner = _attribute(op, "alpha", 1.67326319217681884765625 if op.operator == "Selu" else 1.0)
    outer = _attribute(op, "gamma", 1.05070102214813232421875) if op.operator == "Selu" else Bounded(np.ones(()), EXACT)
    slope = outer.size * (np.maximum(1.0, inner.size) if op.operator != "Celu" else 1.0)
    moved = slope * x.error
    below = (x.value - x.error) < 0
    stored = outer.error * np.where(below, inner.size, x.size) + below * outer.size * inner.error
    # Below zero exp(x) - 1 may be computed as a difference: its error is absolute.
    rounding = ALLOWANCES[op.operator].ulps * (np.abs(y) + moved) + 4 * below * outer.size * inner.size
    return moved + stored + op.format.unit * rounding


def _slope_rule(op: Operation, y: Array, x: Bounded, slope: Bounded | None = None) -> Array:
    stored = _attribute(op, "alpha", 0.01) if slope is None else Bounded(aligned_slope(op, x.value, slope.value), EXACT)
    if slope is not None and not slope.exact:
        raise UnsupportedError(f"{op}: its slope is computed; a bound is known for a constant one only.")
    alpha = stored.size
    touches = (x.value - x.error) < 0
    factor = np.where(touches, np.where(x.value + x.error > 0, np.maximum(1, alpha), alpha), 1.0)
    moved = factor * x.error
    return moved + touches * (stored.error * np.abs(x.value) + op.format.unit * (np.abs(y) + moved) + op.format.smallest)


def _within(value: Array, error: Array, low: float | None, high: float | None) -> Array:
    """Error of a clip: what is left of the interval between the limits."""

    def clip(x: Array) -> Array:
        x = x if low is None else np.maximum(x, low)
        return x if high is None else np.minimum(x, high)

    # Where both ends of a difference are infinite the result is NaN, which `_finish` takes for an infinite error.
    return np.maximum(clip(value + error) - clip(value), clip(value) - clip(value - error))


def _relu_rule(_: Operation, __: Array, x: Bounded) -> Array:
    return _within(x.value, x.error, 0.0, None)


def _clip_rule(op: Operation, _: Array, x: Bounded, *limits: Bounded | None) -> Array:
    low, high = clip_limits(op, *(None if limit is None else limit.value for limit in limits))
    own = max((float(limit.error.max()) for limit in limits if limit is not None), default=0.0)
    return _within(x.value, x.error, low, high) + own


def _hard_sigmoid(op: Operation, x: Bounded) -> Bounded:
    alpha, beta = hard_sigmoid_parameters(op)
    inner = alpha * x.value + beta
    stored = op.format.misses(np.asarray(alpha, np.float32)) * x.size + op.format.misses(np.asarray(beta, np.float32))
    error = abs(alpha) * x.error + stored + op.format.gamma(3) * (abs(alpha) * x.size + abs(beta))
    return Bounded(np.clip(inner, 0, 1), _within(inner, error, 0.0, 1.0))


def _hard_sigmoid_rule(op: Operation, _: Array, x: Bounded) -> Array:
    return _hard_sigmoid(op, x).error


def _hard_swish_rule(op: Operation, y: Array, x: Bounded) -> Array:
    error = _mul_rule(op, y, x, _hard_sigmoid(op, x))
    return _summed(op, 6 * x.size, error)  # x times x + 3, clipped to 6, may come before the division by 6


def _largest_error_rule(_: Operation, y: Array, *inputs: Bounded) -> Array:
    error = np.zeros(y.shape)
    for operand in inputs:
        error = np.maximum(error, operand.error)
    return error


def _cast_rule(op: Operation, y: Array, x: Bounded, like: Bounded | None = None) -> Array:
    """Exact to a format that has every number of the source's, one rounding to others; to integers by steps.

    ONNX leaves open what becomes of a number that the integers do not hold.
    """
    if y.dtype.kind != "f":
        return np.where(_held(y, x), _step_rule(op, y, x, *([] if like is None else [like])), np.inf)
    if op.source is not None and op.format.holds(op.source):
        return x.error
    return x.error + op.format.unit * x.size + op.format.smallest


def _held(y: Array, x: Bounded) -> Array:
    """Tells which numbers are sure to be between the smallest and the largest of the integers that they are cast to."""
    if y.dtype.kind not in "iu" or x.value.dtype.kind != "f":
        return np.ones(y.shape, bool)
    held = np.iinfo(y.dtype)
    return (x.value - x.error > held.min - 1.0) & (x.value + x.error < held.max + 1.0)


def _step_rule(op: Operation, y: Array, x: Bounded, *inputs: Bounded) -> Array:
    """Functions that rise in steps (Floor, Round, Sign, a cast to integers): evaluate both ends of the interval.

    A cast to booleans does not rise, it is false at 0 alone.
    """
    if x.value.dtype.kind != "f":
        raise UnsupportedError(f"{op}: its integer input depends on rounding, so no bound can be given.")
    others = [each.value for each in inputs]
    if y.dtype == np.bool_:
        return ((x.error > 0) & (np.abs(x.value) <= x.error)).astype(np.float64)
    ends = [evaluate(op, [x.value + sign * x.error, *others])[0].astype(np.float64) for sign in (-1, 1)]
    exact = y.astype(np.float64)
    return np.maximum(np.abs(ends[0] - exact), np.abs(ends[1] - exact))


def _hardmax_rule(op: Operation, y: Array, x: Bounded) -> Array:
    """Either of several may be the largest where their intervals overlap."""
    value, axis = softmax_view(op, x.value)
    error, _ = softmax_view(op, _full(x))
    candidates = value + error >= (value - error).max(axis=axis, keepdims=True)
    unsure = candidates & (candidates.sum(axis=axis, keepdims=True) > 1) & (error.max(axis=axis, keepdims=True) > 0)
    return unsure.astype(np.float64).reshape(y.shape)


def _comparison_rule(_: Operation, __: Array, a: Bounded, b: Bounded) -> Array:
    return (np.abs(a.value - b.value) <= a.error + b.error).astype(np.float64) * ((a.error + b.error) > 0)


def _where_rule(_: Operation, __: Array, condition: Bounded, a: Bounded, b: Bounded) -> Array:
    chosen = np.where(condition.value, a.error, b.error)
    either = np.abs(a.value.astype(np.float64) - b.value) + a.error + b.error
    return np.where(condition.error > 0, either, chosen)


def _resize_rule(op: Operation, y: Array, x: Bounded, *inputs: Bounded | None) -> Array:
    """Weighted sums, plus the effect of computing the coordinates in binary32: slope times coordinate error.

    Coordinates are in binary32 whatever the format of the elements.
    """
    plan = read_plan(op, x.value, *(None if i is None else i.value for i in inputs))
    axes = resized_axes(plan, x.value.shape)
    error = _full(x)
    if plan.mode == "nearest":
        value = x.value
        for axis in axes:
            before = x.value.shape[axis]
            index, *others = nearest_indices(plan, axis, before)
            chosen, bound = np.take(value, index, axis=axis), np.take(error, index, axis=axis)
            for other in others:
                bound = np.maximum(bound, np.take(error, other, axis=axis) + np.abs(np.take(value, other, axis=axis) - chosen))
            value, error = chosen, bound
        return error
    size, k = x.size, 2
    drift = np.zeros(())
    largest = x.size.max(axis=tuple(axes), keepdims=True) if axes else x.size
    for axis in axes:
        before = x.value.shape[axis]
        weights = np.abs(axis_weights(op, plan, axis, before))
        k += int((weights != 0).sum(axis=1).max()) + 4
        error, size, largest = (apply_axis(weights, t, axis) if t.shape[axis] > 1 else t for t in (error, size, largest))
        exact = coordinates(plan.coordinates, plan.scales[axis], before, plan.sizes[axis])
        single = coordinates(plan.coordinates, plan.scales[axis], before, plan.sizes[axis], number=np.float32, by_step=True)
        if not np.array_equal(exact, single):
            drift = drift + 4 * BINARY32.unit * (before + 1) * (2 if plan.mode == "linear" else 8) * largest
    return error + op.format.gamma(k) * size + k * op.format.smallest + drift


RULES: Mapping[str, Rule] = {
    "Add": _add_rule,
    "AveragePool": _average_pool_rule,
    "BatchNormalization": _batch_normalization_rule,
    "Cast": _cast_rule,
    "CastLike": _cast_rule,
    "Ceil": _step_rule,
    "Clip": _clip_rule,
    "Conv": _conv_rule,
    "ConvTranspose": _conv_transpose_rule,
    "Cosh": _cosh_rule,
    "Div": _div_rule,
    "Equal": _comparison_rule,
    "Exp": _exp_rule,
    "Floor": _step_rule,
    "Gemm": _gemm_rule,
    "GlobalAveragePool": _global_average_pool_rule,
    "GlobalMaxPool": _global_max_pool_rule,
    "Greater": _comparison_rule,
    "GreaterOrEqual": _comparison_rule,
    "HardSigmoid": _hard_sigmoid_rule,
    "Hardmax": _hardmax_rule,
    "HardSwish": _hard_swish_rule,
    "InstanceNormalization": _normalization_rule,
    "LayerNormalization": _normalization_rule,
    "LRN": _lrn_rule,
    "LeakyRelu": _slope_rule,
    "Less": _comparison_rule,
    "LessOrEqual": _comparison_rule,
    "Log": _log_rule,
    "LogSoftmax": _log_softmax_rule,
    "LpNormalization": _lp_normalization_rule,
    "MatMul": _matmul_rule,
    "Max": _largest_error_rule,
    "MaxPool": _max_pool_rule,
    "Mean": _sum_rule,
    "Min": _largest_error_rule,
    "Mod": _mod_rule,
    "Mul": _mul_rule,
    "Pow": _pow_rule,
    "PRelu": _slope_rule,
    "Reciprocal": _reciprocal_rule,
    "ReduceL1": _reduce_sum_rule,
    "ReduceL2": _reduce_l2_rule,
    "ReduceMax": _reduce_max_rule,
    "ReduceMean": _reduce_mean_rule,
    "ReduceMin": _reduce_max_rule,
    "ReduceSum": _reduce_sum_rule,
    "ReduceSumSquare": _reduce_squares_rule,
    "Relu": _relu_rule,
    "Resize": _resize_rule,
    "Round": _step_rule,
    "Sign": _step_rule,
    "Softmax": _softmax_rule,
    "Sqrt": _sqrt_rule,
    "Sub": _add_rule,
    "Sum": _sum_rule,
    "Tan": _tan_rule,
    "Upsample": _resize_rule,
    "Where": _where_rule,
    **dict.fromkeys(["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Sinh"], _monotone_rule),
    **dict.fromkeys(["Celu", "Elu", "Selu"], _elu_rule),
    **dict.fromkeys(
        ["Abs", "Cos", "Erf", "Gelu", "Mish", "Neg", "Sigmoid", "Sin", "Softplus", "Softsign", "Swish", "Tanh"], _smooth_rule
    ),
}

# Operators that compute with all their operands; of the others those after the first are parameters.
READS_ALL = frozenset(
    {
        *("Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum", "Where"),
        *("Conv", "ConvTranspose", "Gemm", "MatMul"),
    }
)
