# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""What rounding does to one operation, in whatever format: the table of allowances, the expected noise.

`ALLOWANCES` is the one table that says how accurate an elementwise operator has to be. The expected noise
(`noise_scale`) and the rigorous bound (`running_error.py`) both read it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from sepwise.passes.equivalence.convolution import conv, conv_transpose
from sepwise.passes.equivalence.formats import BINARY32, Format
from sepwise.passes.equivalence.graph import Array, Operation
from sepwise.passes.equivalence.operators import (
    channel_window_sums,
    evaluate,
    fold_channels,
    gemm_operands,
    lrn_parameters,
    normalized_axes,
    reduced_axes,
    softmax_view,
)
from sepwise.passes.equivalence.pooling import average_pool, average_pool_counts
from sepwise.passes.equivalence.resampling import apply_axis, axis_weights, read_plan, resize, resized_axes
from sepwise.passes.equivalence.winograd import Winograd
from sepwise.passes.errors import UnsupportedError

__all__ = [
    "ALLOWANCES",
    "CASTS",
    "MOVES",
    "NEVER_ROUND",
    "SELECTS",
    "Allowance",
    "evaluate_rounded",
    "may_overflow",
    "moves",
    "noise_scale",
    "repeats",
]

DRIFT = 3.0  # of a sum: see noise_scale
REPEATED_SHARE = 0.25

# By a sample of so many elements it is seen whether values repeat, and below this share of distinct ones they do.
REPETITION_SAMPLES = 4096
DISTINCT_SHARE = 0.75

MAXIMUM_SIGMAS = 3  # a largest error of several roundings, in standard deviations of their sum


@dataclass(frozen=True)
class Allowance:
    """How far the result of an elementwise operator may be from the exact one.

    The error is at most `(ulps * |y| + absolute * scale) * u`, where `scale` is 1, or |x| for the operators that
    multiply their operand by a gate in 0..1, and u is the unit roundoff of the result's format: an operator is as many
    roundings in one format as in another, and fewer where it is computed in a wider one and rounded once.

    Attributes:
        ulps: relative part, in units of u * |y|; one correctly rounded operation is 1.
        lipschitz: largest slope of the function; None where it has none and the bound uses an interval.
        absolute: absolute part, in units of u * scale: the rational approximations of sigmoid, tanh and erf that
            runtimes use are accurate against the largest value, not against a result near zero.
        gated: whether `scale` is |x|.
        cancelled: absolute part that other runtimes need, in units of u: exp(x) - 1 next to 0. Kernels are held to what can
            be reached without it.
    """

    ulps: float
    lipschitz: float | None = None
    absolute: float = 0.0
    gated: bool = False
    cancelled: float = 0.0

    @property
    def noise(self) -> float:
        """Returns the standard deviation behind `ulps`: at least the 1 of a single rounding."""
        return max(self.ulps / MAXIMUM_SIGMAS, 1.0)


ALLOWANCES: Mapping[str, Allowance] = {
    # Slopes are the largest |f'|; for gated operators that is at x = 2.40 (SiLU), sqrt 2 (GELU), 1.49 (Mish).
    "Abs": Allowance(0, 1),
    "Acos": Allowance(4),
    "Acosh": Allowance(4),
    "Add": Allowance(1),
    "Asin": Allowance(5),
    "Asinh": Allowance(4),
    "Atan": Allowance(4),
    "Atanh": Allowance(4),
    "Celu": Allowance(4, 1, cancelled=4),
    "Cos": Allowance(2, 1, absolute=1),
    "Cosh": Allowance(4),
    "Div": Allowance(1),
    "Elu": Allowance(4, cancelled=4),
    "Erf": Allowance(4, 1.1284, absolute=4),
    "Exp": Allowance(4),
    "Gelu": Allowance(6, 1.1290, absolute=6, gated=True),
    "HardSigmoid": Allowance(2),
    "HardSwish": Allowance(3, 1.5),
    "LeakyRelu": Allowance(1),
    "Log": Allowance(4),
    "Mean": Allowance(2),
    "Mish": Allowance(8, 1.0885, absolute=4, gated=True),
    "Mod": Allowance(1),
    "Mul": Allowance(1),
    "Neg": Allowance(0, 1),
    "PRelu": Allowance(1),
    "Pow": Allowance(4),
    "Reciprocal": Allowance(1),
    "Selu": Allowance(6, cancelled=8),
    "Sigmoid": Allowance(4, 0.25, absolute=4),
    "Sin": Allowance(2, 1, absolute=1),
    "Sinh": Allowance(4),
    "Softplus": Allowance(6, 1, absolute=4),
    "Softsign": Allowance(3, 1),
    "Sqrt": Allowance(1),
    "Sub": Allowance(1),
    "Sum": Allowance(1),
    "Swish": Allowance(6, 1.0999, absolute=4, gated=True),
    "Tan": Allowance(8),
    "Tanh": Allowance(4, 1, absolute=4),
}

# Operators that only move elements, and which of their inputs they move. Their results are exact.
MOVES: Mapping[str, tuple[int, ...]] = {
    "Concat": (),  # all
    "DepthToSpace": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "CenterCropPad": (0,),
    "Compress": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "OneHot": (2,),
    "Pad": (0,),
    "Reshape": (0,),
    "ReverseSequence": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Trilu": (0,),
    "Unsqueeze": (0,),
    "Dropout": (0,),
    "Identity": (0,),
}

CASTS = frozenset({"Cast", "CastLike"})

# Operators that choose among values or round to an integer: nothing is rounded in them, but by a cast to fewer digits.
SELECTS = frozenset(
    {
        *CASTS,
        *("Ceil", "Clip", "Floor", "Max", "Min", "Relu", "Round", "Sign", "ThresholdedRelu", "Where"),
        *("GlobalMaxPool", "Hardmax", "MaxPool", "ReduceMax", "ReduceMin", "TopK"),
        *("ConstantOfShape", "Range", "Shape", "Size", "NonZero"),
    }
)

# With exact operands all of these are exact: besides those that select, the functions without an allowance for rounding.
NEVER_ROUND = SELECTS | {name for name, allowance in ALLOWANCES.items() if not allowance.ulps}


def moves(op: Operation) -> bool:
    """Tells whether an operation is one of `MOVES` and only moves elements, as a scatter does that adds nothing up."""
    return op.operator in MOVES and op.text("reduction", "none") == "none"


def noise_scale(
    op: Operation,
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
    arithmetic: Format,
    algorithm: Winograd | None = None,
) -> Array | None:
    """Estimates the standard deviation of the rounding noise of one operation.

    A sum of k terms t_i has k partial sums, each rounded by about u times its own size: the j-th walks at random like the root
    of the terms' squares up to it, and drifts to y as j y / k. The squares of both, summed over j, are k^2 mean t_i^2 / 2 and
    k y^2 / 3, and the roundings' variance is u^2 / 3: so u * sqrt(k) * sqrt(sum t_i^2 + y^2 / 9), the walk without its
    factor of 1 / sqrt 6 for orders that are worse. The final rounding adds u * |y|. Where what is summed repeats, as on an
    image of one colour, roundings do not cancel: adding the same number is rounded the same way as long as the partial sum
    stays below the next power of two. Its residue is uniform in half an ulp either way, and half of all terms meet the last
    power of two, which makes some 0.22 u k |y|, here a quarter.

    All other operators go by their allowance: `noise` * u * |y| and a third of its absolute part, which is a largest error and
    taken for three standard deviations. Below the normal range roundings are absolute, a smallest subnormal number each.

    Args:
        op: the operation.
        inputs: its inputs.
        outputs: its outputs, exact.
        arithmetic: the format in which it rounds.
        algorithm: of a convolution that is computed by transformed tiles, whose terms are others (`Winograd.energy`); None for
            what the definition adds up.

    Returns:
        The scale of the first output, or None where nothing is rounded.

    Raises:
        UnsupportedError: if the operator is not known.
    """
    y, unit = outputs[0], arithmetic.unit
    if op.operator in CASTS and y.dtype.kind == "f":
        return _cast_noise(op, y)
    if y.dtype.kind != "f" or moves(op) or op.operator in NEVER_ROUND:
        return None
    if op.operator in SUMS:
        k, energy = SUMS[op.operator](op, *inputs)
        if algorithm is not None and inputs[0] is not None and inputs[1] is not None:
            energy = np.maximum(energy, algorithm.energy(op, inputs[0], inputs[1]) / k)
        noise = np.sqrt(k * (energy + (y / DRIFT) ** 2)) + np.abs(y)
        if op.operator in PLAIN_SUMS and inputs[0] is not None and repeats(inputs[0][inputs[0] != 0]):
            noise = noise + REPEATED_SHARE * k * np.abs(y)
        return unit * noise + np.sqrt(k) * arithmetic.smallest
    if op.operator in UNITS:
        return unit * UNITS[op.operator](op, y, *inputs) + arithmetic.smallest
    if op.operator in ("Resize", "Upsample"):
        units = _resize_units(op, y, *inputs)
        return None if units is None else unit * units + arithmetic.smallest
    if op.operator in ALLOWANCES:
        allowance = ALLOWANCES[op.operator]
        scale = np.abs(inputs[0]) if allowance.gated and inputs[0] is not None else 1.0
        noise = allowance.noise * np.abs(y) + (allowance.absolute + allowance.cancelled) / MAXIMUM_SIGMAS * scale
        return unit * noise + arithmetic.smallest
    raise UnsupportedError(f"{op}: how it rounds is not known, so no tolerance can be derived.")


def evaluate_rounded(op: Operation, inputs: Sequence[Array | None], rng: np.random.Generator) -> tuple[Array, ...]:
    """Computes one operation with what it computes of its own rounded at random.

    The weights of a Resize are the same for whole rows and for all channels, so their noise is no matter of single elements;
    the positions of a GridSample are so for all channels.
    What `noise_scale` says of the sums is left out.

    Args:
        op: the operation.
        inputs: its inputs.
        rng: draws the roundings.

    Returns:
        Its outputs.
    """
    if op.operator in ("Resize", "Upsample") and inputs[0] is not None:
        return (resize(op, inputs[0], *inputs[1:], rng=rng),)
    if op.operator == "GridSample" and inputs[1] is not None and op.text("mode", "linear") != "nearest":
        grid = inputs[1]  # in -1..1: 1 is added, then half of the size multiplied in
        inputs = [inputs[0], grid + 2 * BINARY32.unit * (np.abs(grid) + 1) * rng.standard_normal(grid.shape)]
    return evaluate(op, inputs)


def repeats(values: Array) -> bool:
    """Tells whether many of some numbers are equal.

    Args:
        values: those that are rounded, of any shape.

    Returns:
        Whether less than `DISTINCT_SHARE` of a sample are distinct.
    """
    sample = values.reshape(-1)[:: max(1, values.size // REPETITION_SAMPLES)]
    return len(np.unique(sample)) < DISTINCT_SHARE * len(sample)


def _cast_noise(op: Operation, y: Array) -> Array | None:
    """One rounding to the target's format of what it does not have; None where it has all numbers of the source's."""
    if op.source is not None and op.format.holds(op.source):
        return None
    return op.format.unit * np.maximum(np.abs(y), op.format.normal) * (op.format.misses(y) > 0)


def may_overflow(
    op: Operation, inputs: Sequence[Array | None], y: Array, scale: Array | None, arithmetic: Format
) -> Array:
    """Tells where a result may be beyond the largest number of a format on the way, which makes it infinite or NaN.

    Args:
        op: the operation.
        inputs: its inputs.
        y: its first output, exact.
        scale: its `noise_scale`; of a sum that holds sqrt(k) sqrt(sum t_i^2), which no partial sum exceeds.
        arithmetic: the format.

    Returns:
        For each element whether it may; finite ones only.
    """
    if y.dtype.kind != "f":
        return np.zeros(y.shape, bool)
    reach = scale / arithmetic.unit if scale is not None and op.operator in SUMS else np.abs(y)
    if op.operator in MEANS and inputs[0] is not None and y.size:  # a sum, then divided
        window = op.integers("kernel_shape")
        reach = reach * (np.prod(window) if window else inputs[0].size / y.size)
    return (reach > arithmetic.largest) & np.isfinite(y)


# The number of terms of a sum, and the sum of their squares ------------------------------------------------------

Energy: TypeAlias = tuple[float | Array, Array]


def product_count(op: Operation, a: Array, b: Array) -> int:
    """Counts the products in each sum of an operator in `PRODUCT_SUMS`.

    Args:
        op: the operation.
        a: its first operand.
        b: its second operand.

    Returns:
        The number without a bias.
    """
    if op.operator == "Conv":
        return b[0].size
    if op.operator == "ConvTranspose":
        strides = op.integers("strides") or [1] * (a.ndim - 2)
        taps = np.prod([-(-k // s) for k, s in zip(b.shape[2:], strides, strict=True)])
        return int(b.shape[0] // op.integer("group", 1) * taps)
    return int(a.shape[0 if op.integer("transA", 0) else -1])


def _conv_energy(op: Operation, x: Array, w: Array, b: Array | None = None) -> Energy:
    k = product_count(op, x, w) + (b is not None)
    return k, conv(op, x * x, w * w, None if b is None else b * b)


def _conv_transpose_energy(op: Operation, x: Array, w: Array, b: Array | None = None) -> Energy:
    k = product_count(op, x, w) + (b is not None)
    return k, conv_transpose(op, x * x, w * w, None if b is None else b * b)


def _gemm_energy(op: Operation, a: Array, b: Array, c: Array | None = None) -> Energy:
    k = product_count(op, a, b) + (c is not None)
    a, b = gemm_operands(op, a, b)
    energy = (op.number("alpha", 1.0) ** 2) * ((a * a) @ (b * b))
    if c is not None:
        energy = energy + (op.number("beta", 1.0) * c) ** 2
    return k, energy


def _matmul_energy(op: Operation, a: Array, b: Array) -> Energy:
    return product_count(op, a, b), np.matmul(a * a, b * b)


def _average_pool_energy(op: Operation, x: Array) -> Energy:
    counts = average_pool_counts(op, x)
    return counts, average_pool(op, x * x) / counts


def _mean_energy(x: Array, axes: tuple[int, ...], *, keep: bool) -> Energy:
    k = max(int(np.prod([x.shape[axis] for axis in axes])), 1)
    return k, (x * x).mean(axis=axes, keepdims=keep) / k


def _global_average_pool_energy(_: Operation, x: Array) -> Energy:
    return _mean_energy(x, tuple(range(2, x.ndim)), keep=True)


def _reduce_mean_energy(op: Operation, x: Array, axes: Array | None = None) -> Energy:
    return _mean_energy(x, reduced_axes(op, x, axes) or (), keep=bool(op.integer("keepdims", 1)))


def _reduce_sum_energy(op: Operation, x: Array, axes: Array | None = None) -> Energy:
    over = reduced_axes(op, x, axes) or ()
    k = int(np.prod([x.shape[axis] for axis in over]))
    return k, (x * x).sum(axis=over, keepdims=bool(op.integer("keepdims", 1)))


def _reduce_squares_energy(op: Operation, x: Array, axes: Array | None = None) -> Energy:
    return _reduce_sum_energy(op, x * x, axes)


def _reduce_l2_energy(op: Operation, x: Array, axes: Array | None = None) -> Energy:
    # y = sqrt(s), so an error of s becomes one of y divided by 2 y.
    k, energy = _reduce_squares_energy(op, x, axes)
    _, squares = _reduce_sum_energy(op, x, axes)
    return k, energy / np.maximum(4 * squares, np.finfo(np.float64).tiny)


def _batch_normalization_energy(op: Operation, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Energy:
    scale, bias, mean, variance = (fold_channels(x, p) for p in (scale, bias, mean, variance))
    factor = scale / np.sqrt(variance + op.number("epsilon", 1e-5))
    return 3, (x * factor) ** 2 + (mean * factor) ** 2 + bias**2


def _normalization_energy(op: Operation, x: Array, scale: Array, bias: Array | None = None) -> Energy:
    # Three terms as in a batch norm, and the sums behind the statistics: each element adds its share x / n.
    axes = normalized_axes(op, x)
    if op.operator == "InstanceNormalization":
        scale = fold_channels(x, scale)
        bias = None if bias is None else fold_channels(x, bias)
    mean = x.mean(axis=axes, keepdims=True)
    squares = (x * x).mean(axis=axes, keepdims=True)
    factor = scale / np.sqrt(np.maximum(squares - mean**2, 0) + op.number("epsilon", 1e-5))
    energy = ((x * factor) ** 2 + (mean * factor) ** 2) + squares * factor**2
    return 4, energy if bias is None else energy + bias**2


def _plain_energy(op: Operation, *inputs: Array | None) -> Energy:
    # Of operators that add up products of elements of their operands, or elements: with ones in place of all they count.
    moved = [x is not None and x.dtype.kind == "f" for x in inputs]
    ones, squares = (
        [change(x) if is_moved and x is not None else x for x, is_moved in zip(inputs, moved, strict=True)]
        for change in (np.ones_like, np.square)
    )
    return evaluate(op, ones)[0], evaluate(op, squares)[0]


def _scatter_energy(op: Operation, *inputs: Array | None) -> Energy:
    # What is added to elements; one that replaces them is among `MOVES`.
    if op.text("reduction", "none") != "add":
        raise UnsupportedError(f"{op}: how it rounds is not known, so no tolerance can be derived.")
    return _plain_energy(op, *inputs)


def _lp_pool_energy(op: Operation, x: Array) -> Energy:
    # y = s^(1/p), so an error of s becomes one of y divided by p y^(p-1).
    p = op.integer("p", 2)
    (y,), (k,), (squares,) = (evaluate(op, [each]) for each in (x, np.ones_like(x), x * x))
    return np.rint(k**p), squares**p / np.maximum((p * y ** (p - 1)) ** 2, np.finfo(np.float64).tiny)


def _grid_sample_energy(op: Operation, x: Array, grid: Array) -> Energy:
    # The 2^d weights are between 0 and 1 and add up to 1, so the squares of the terms are at most the mean of squares.
    if op.text("mode", "linear") not in {"linear", "bilinear"}:
        raise UnsupportedError(f"{op}: how it rounds is not known, so no tolerance can be derived.")
    return 2 ** grid.shape[-1], evaluate(op, [x * x, grid])[0]


SUMS: Mapping[str, Callable[..., Energy]] = {
    "AveragePool": _average_pool_energy,
    "BatchNormalization": _batch_normalization_energy,
    "Conv": _conv_energy,
    "ConvTranspose": _conv_transpose_energy,
    "CumSum": _plain_energy,
    "Einsum": _plain_energy,
    "Gemm": _gemm_energy,
    "GlobalAveragePool": _global_average_pool_energy,
    "GridSample": _grid_sample_energy,
    "InstanceNormalization": _normalization_energy,
    "LayerNormalization": _normalization_energy,
    "LpPool": _lp_pool_energy,
    "MatMul": _matmul_energy,
    "ReduceL1": _reduce_sum_energy,
    "ReduceL2": _reduce_l2_energy,
    "ReduceMean": _reduce_mean_energy,
    "ReduceSum": _reduce_sum_energy,
    "ReduceSumSquare": _reduce_squares_energy,
    "ScatterElements": _scatter_energy,
    "ScatterND": _scatter_energy,
}


PRODUCT_SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
PLAIN_SUMS = MEANS | {"CumSum", "ReduceL1", "ReduceSum"}  # of the operand's elements as they are


# The noise of what divides by a sum, in units of u -----------------------------------------------------------------


def _softmax_units(op: Operation, y: Array, x: Array) -> Array:
    """The shift x - max, the exponential, the sum of the weights."""
    view, axis = softmax_view(op, x)
    shift = view.max(axis=axis, keepdims=True) - view
    weights = np.exp(-shift)
    total = weights.sum(axis=axis, keepdims=True)
    k = weights.shape[axis]
    spread = _relative_noise(k, total, (weights**2).sum(axis=axis, keepdims=True)) + REPEATED_SHARE * k * repeats(view)
    relative = shift + ALLOWANCES["Exp"].ulps + spread + 1
    if op.operator == "Softmax":
        return (relative.reshape(y.shape)) * y
    return (shift + np.abs(np.log(total)) + spread + ALLOWANCES["Exp"].ulps).reshape(y.shape)


def _relative_noise(k: int, total: Array, energy: Array) -> Array:
    """What the sum of k numbers that are not negative is off by, relative to it; 0 where all are."""
    return np.sqrt(k * (energy / np.maximum(total, np.finfo(np.float64).tiny) ** 2 + (total > 0) / DRIFT**2))


def _lp_normalization_units(op: Operation, y: Array, x: Array) -> Array:
    """A norm, in which p halves the error of the sum, the root and the division."""
    axis, p = op.integer("axis", -1), op.integer("p", 2)
    powers = np.abs(x) ** p
    total, energy = (each.sum(axis=axis, keepdims=True) for each in (powers, powers**2))
    return np.abs(y) * (_relative_noise(x.shape[axis], total, energy) / p + 2)


def _rms_normalization_units(op: Operation, y: Array, x: Array, _: Array) -> Array:
    """A mean of squares, whose error the root halves, the root, the division and the product with the scale."""
    axes = normalized_axes(op, x)
    squares = x * x
    k = int(np.prod([x.shape[axis] for axis in axes]))
    total, energy = (each.sum(axis=axes, keepdims=True) for each in (squares, squares**2))
    return np.abs(y) * (_relative_noise(k, total, energy) / 2 + 3)


def _lrn_units(op: Operation, y: Array, x: Array) -> Array:
    """A sum over channels next to each other, the power, the quotient.

    The sum is slid along the channels, one added and one taken away, so that its roundings stay: a walk over all before it.
    """
    share, bias, beta = lrn_parameters(op)
    total = channel_window_sums(op, x**2)
    walk = np.sqrt(2 * np.cumsum(total**2, axis=1))
    base = bias + share * total
    return np.abs(y) * (beta * (np.abs(share / base) * (walk + 2 * total) + 1) + ALLOWANCES["Pow"].noise + 1)


UNITS: Mapping[str, Callable[..., Array]] = {
    "LRN": _lrn_units,
    "LogSoftmax": _softmax_units,
    "LpNormalization": _lp_normalization_units,
    "RMSNormalization": _rms_normalization_units,
    "Softmax": _softmax_units,
}


def _resize_units(op: Operation, y: Array, x: Array | None, *inputs: Array | None) -> Array | None:
    """Noise of a resize in units of u: a sum of k terms."""
    assert x is not None
    plan = read_plan(op, x, *inputs)
    axes = resized_axes(plan, x.shape)
    if plan.mode == "nearest" or not axes:
        return None
    energy, k = x * x, 1
    for axis in axes:
        weights = axis_weights(op, plan, axis, x.shape[axis])
        k *= int((weights != 0).sum(axis=1).max())
        energy = apply_axis(weights**2, energy, axis)
    return np.sqrt(k * energy) + np.abs(y)
