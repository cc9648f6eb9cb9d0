# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""What each ONNX operator computes, in float64.

`OPERATORS` maps an operator's name to a function `(operation, *inputs) -> output or tuple of outputs`; inputs that
are left out are None. What is not in the table may be known to the implementation that ships with onnx
(`reference_operators`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, helper

from sepwise.passes.equivalence.convolution import conv, conv_transpose
from sepwise.passes.equivalence.graph import Array, Operation, widen
from sepwise.passes.equivalence.pooling import average_pool, max_pool
from sepwise.passes.equivalence.reference_operators import evaluate_by_reference
from sepwise.passes.equivalence.resampling import resize
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

__all__ = ["OPERATORS", "erf", "evaluate", "fold_channels", "normalized_axes", "reduced_axes"]

Result: TypeAlias = Array | tuple[Array, ...]
Evaluate: TypeAlias = Callable[..., Result]


def evaluate(op: Operation, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Computes one operation.

    Args:
        op: the operation.
        inputs: its inputs in order, None for one that is left out.

    Returns:
        Its outputs in order; floating-point ones are float64.

    Raises:
        UnsupportedError: if neither we nor onnx's reference implementation know the operator.
        InputError: if the inputs do not fit the operator.
    """
    function = OPERATORS.get(op.operator)
    try:
        result = evaluate_by_reference(op, inputs) if function is None else function(op, *inputs)
    except SepwiseError:
        raise
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        shapes = ", ".join("none" if x is None else str(tuple(x.shape)) for x in inputs)
        raise InputError(f"{op}: cannot be computed on inputs of shapes {shapes}: {error}. Check the model.") from error
    return tuple(widen(np.asarray(y)) for y in (result if isinstance(result, tuple) else (result,)))


# Elementwise ---------------------------------------------------------------------------------------------------


def erf(x: Array) -> Array:
    """Computes the error function to the last bit or so, by libm."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def sigmoid(x: Array) -> Array:
    """Computes 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def softplus(x: Array) -> Array:
    """Computes log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _unary(function: Callable[[Array], Array]) -> Evaluate:
    return lambda _, x: function(x)


def _binary(function: Callable[[Array, Array], Array]) -> Evaluate:
    return lambda op, a, b: function(*_legacy_broadcast(op, a, b))


def _legacy_broadcast(op: Operation, a: Array, b: Array) -> tuple[Array, Array]:
    """Lines up the second operand along `axis`, as opsets below 7 do."""
    if op.version < 7 and op.integer("broadcast", 0):
        axis = op.integer("axis", a.ndim - b.ndim) % max(a.ndim, 1)
        b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
    return a, b


def _variadic(function: Callable[[Array, Array], Array]) -> Evaluate:
    def call(_: Operation, *inputs: Array) -> Array:
        result = inputs[0]
        for other in inputs[1:]:
            result = function(result, other)
        return result

    return call


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":  # ONNX truncates, numpy floors
        quotient = np.abs(a) // np.abs(b)
        return (quotient * np.sign(a) * np.sign(b)).astype(a.dtype)
    return a / b


def _mod(op: Operation, a: Array, b: Array) -> Array:
    return np.fmod(a, b) if op.integer("fmod", 0) else np.mod(a, b)


def _power(_: Operation, a: Array, b: Array) -> Array:
    return np.power(a, b) if a.dtype.kind == "f" else np.power(a.astype(np.float64), b).astype(a.dtype)


def clip_limits(op: Operation, *limits: Array | None) -> tuple[float | None, float | None]:
    """Reads the limits of a Clip from attributes (below opset 11) or inputs."""
    if op.version < 11:
        low = op.number("min", -np.inf) if "min" in op.attributes else None
        high = op.number("max", np.inf) if "max" in op.attributes else None
        return low, high
    bounds = [None if limit is None else limit.reshape(()).item() for limit in limits]
    bounds += [None] * (2 - len(bounds))
    return bounds[0], bounds[1]


def _clip(op: Operation, x: Array, *limits: Array | None) -> Array:
    low, high = clip_limits(op, *limits)
    y = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return y if high is None else np.minimum(y, np.asarray(high, x.dtype))


def hard_sigmoid_parameters(op: Operation) -> tuple[float, float]:
    """Reads alpha and beta of a HardSigmoid, or those that HardSwish is defined with."""
    if op.operator == "HardSwish":
        return 1 / 6, 0.5
    return op.number("alpha", 0.2), op.number("beta", 0.5)


def hard_sigmoid(op: Operation, x: Array) -> Array:
    """Computes max(0, min(1, alpha x + beta))."""
    alpha, beta = hard_sigmoid_parameters(op)
    return np.clip(alpha * x + beta, 0, 1)


def _leaky_relu(op: Operation, x: Array) -> Array:
    return np.where(x < 0, op.number("alpha", 0.01) * x, x)


def aligned_slope(op: Operation, x: Array, slope: Array) -> Array:
    """Lines up the slope of a PRelu with its input: by its last axes, or below opset 7 one number by channel."""
    return fold_channels(x, slope) if op.version < 7 and slope.size > 1 else slope


def _prelu(op: Operation, x: Array, slope: Array) -> Array:
    return np.where(x < 0, aligned_slope(op, x, slope) * x, x)


def _elu(op: Operation, x: Array) -> Array:
    return np.where(x < 0, op.number("alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


def _celu(op: Operation, x: Array) -> Array:
    alpha = op.number("alpha", 1.0)
    return np.maximum(0, x) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(op: Operation, x: Array) -> Array:
    alpha, gamma = op.number("alpha", 1.67326319217681884765625), op.number("gamma", 1.05070102214813232421875)
    return gamma * np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _gelu(op: Operation, x: Array) -> Array:
    if op.text("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _cast(op: Operation, x: Array) -> Array:
    return cast_to(op, x, op.integer("to", 1))


def cast_to(op: Operation, x: Array, element_type: int) -> Array:
    """Casts to an ONNX data type; every floating-point one is float64 here.

    Raises:
        UnsupportedError: for types that are neither numbers nor booleans.
    """
    if element_type in {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return x.astype(np.float64)
    if element_type == TensorProto.BOOL or TensorProto.UINT8 <= element_type <= TensorProto.UINT64:
        return x.astype(helper.tensor_dtype_to_np_dtype(element_type))
    raise UnsupportedError(f"{op}: a cast to {TensorProto.DataType.Name(element_type)} is not supported.")


# Normalisation -------------------------------------------------------------------------------------------------


def fold_channels(x: Array, parameter: Array, *, axis: int = 1) -> Array:
    """Reshapes a parameter per channel so that it broadcasts over (n, c, *spatial)."""
    return parameter.reshape(parameter.shape + (1,) * (x.ndim - axis - parameter.ndim))


def _batch_normalization(op: Operation, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    if op.integer("training_mode", 0):
        raise UnsupportedError(f"{op}: training_mode=1; only inference is supported. Export the model in evaluation mode.")
    epsilon = op.number("epsilon", 1e-5)
    scale, bias, mean, variance = (fold_channels(x, p) for p in (scale, bias, mean, variance))
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def normalized_axes(op: Operation, x: Array) -> tuple[int, ...]:
    """Lists the axes over which a normalisation takes its statistics."""
    if op.operator == "InstanceNormalization":
        return tuple(range(2, x.ndim))
    return tuple(range(op.integer("axis", -1) % x.ndim, x.ndim))


def _layer_normalization(op: Operation, x: Array, scale: Array, bias: Array | None = None) -> tuple[Array, ...]:
    axes = normalized_axes(op, x)
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + op.number("epsilon", 1e-5))
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def _instance_normalization(op: Operation, x: Array, scale: Array, bias: Array) -> Array:
    axes = normalized_axes(op, x)
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + op.number("epsilon", 1e-5))
    return (x - mean) * inverse * fold_channels(x, scale) + fold_channels(x, bias)


def channel_window_sums(op: Operation, x: Array) -> Array:
    """Adds up, for each channel, it and those around it that a LRN divides it by."""
    size = op.integer("size", 1)
    before = (size - 1) // 2
    padded = np.pad(x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    return np.sum([padded[:, start : start + x.shape[1]] for start in range(size)], axis=0)


def lrn_parameters(op: Operation) -> tuple[float, float, float]:
    """Reads what the sum of squares of a LRN is multiplied by, what is added to that, and the exponent."""
    return op.number("alpha", 1e-4) / op.integer("size", 1), op.number("bias", 1.0), op.number("beta", 0.75)


def _lrn(op: Operation, x: Array) -> Array:
    """Not left to onnx's implementation, which takes the extent of the batch for that of the channels."""
    share, bias, beta = lrn_parameters(op)
    return x / (bias + share * channel_window_sums(op, x * x)) ** beta


def lp_norm(op: Operation, x: Array) -> Array:
    """Computes the norm that a LpNormalization divides by; the axis stays, of extent 1."""
    p = op.integer("p", 2)
    return (np.abs(x) ** p).sum(axis=op.integer("axis", -1), keepdims=True) ** (1 / p)


def _lp_normalization(op: Operation, x: Array) -> Array:
    """Not left to onnx's implementation, which adds up numbers rather than magnitudes for p = 1."""
    norm = lp_norm(op, x)
    return x / np.where(norm == 0, 1.0, norm)


def softmax_view(op: Operation, x: Array) -> tuple[Array, int]:
    """Returns the input and the axis over which a softmax runs; below opset 13 it is flattened to two axes."""
    if op.version < 13:
        axis = op.integer("axis", 1) % x.ndim
        return x.reshape(int(np.prod(x.shape[:axis])), -1), 1
    return x, op.integer("axis", -1) % x.ndim


def _softmax(op: Operation, x: Array) -> Array:
    view, axis = softmax_view(op, x)
    weights = np.exp(view - view.max(axis=axis, keepdims=True))
    return (weights / weights.sum(axis=axis, keepdims=True)).reshape(x.shape)


def _log_softmax(op: Operation, x: Array) -> Array:
    view, axis = softmax_view(op, x)
    shifted = view - view.max(axis=axis, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).reshape(x.shape)


def _hardmax(op: Operation, x: Array) -> Array:
    view, axis = softmax_view(op, x)
    places = np.arange(view.shape[axis]).reshape([-1 if i == axis else 1 for i in range(view.ndim)])
    return (places == view.argmax(axis=axis, keepdims=True)).astype(x.dtype).reshape(x.shape)


def _mean_variance_normalization(op: Operation, x: Array) -> Array:
    """By the definition in the operator's text, whose default axes onnx's implementation does not take."""
    axes = tuple(op.integers("axes") or (0, 2, 3))
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axis=axes, keepdims=True)) + 1e-9)


# Reductions and products ---------------------------------------------------------------------------------------


def reduced_axes(op: Operation, x: Array, axes: Array | None = None) -> tuple[int, ...] | None:
    """Lists the axes of a reduction; None where it is told to do nothing."""
    chosen = op.integers("axes") if axes is None else [int(axis) for axis in axes.ravel()]
    if not chosen:
        return None if op.integer("noop_with_empty_axes", 0) else tuple(range(x.ndim))
    return tuple(axis % x.ndim for axis in chosen)


def _reduce(function: Callable[..., Array]) -> Evaluate:
    def call(op: Operation, x: Array, axes: Array | None = None) -> Array:
        over = reduced_axes(op, x, axes)
        keep = bool(op.integer("keepdims", 1))
        return function(x, axis=() if over is None else over, keepdims=keep)

    return call


def lowest(dtype: np.dtype[Any]) -> float | int | bool:
    """Returns what the maximum over nothing is."""
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min)
    return -np.inf if dtype.kind == "f" else False


def highest(dtype: np.dtype[Any]) -> float | int | bool:
    """Returns what the minimum over nothing is."""
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).max)
    return np.inf if dtype.kind == "f" else True


def _extreme(function: Callable[..., Array], of_nothing: Callable[[np.dtype[Any]], float]) -> Callable[..., Array]:
    return lambda x, axis, keepdims: function(x, axis=axis, keepdims=keepdims, initial=of_nothing(x.dtype))


def _log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return total if keepdims else total.squeeze(axis)


def _global_average_pool(_: Operation, x: Array) -> Array:
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


def _global_max_pool(_: Operation, x: Array) -> Array:
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


def gemm_operands(op: Operation, a: Array, b: Array) -> tuple[Array, Array]:
    """Transposes the operands of a Gemm as its attributes say."""
    return (a.T if op.integer("transA", 0) else a), (b.T if op.integer("transB", 0) else b)


def _gemm(op: Operation, a: Array, b: Array, c: Array | None = None) -> Array:
    a, b = gemm_operands(op, a, b)
    y = op.number("alpha", 1.0) * (a @ b)
    return y if c is None else y + op.number("beta", 1.0) * c


def _arg(function: Callable[..., Array]) -> Evaluate:
    def call(op: Operation, x: Array) -> Array:
        axis = op.integer("axis", 0) % x.ndim
        if op.integer("select_last_index", 0):
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            found = function(x, axis=axis)
        return np.expand_dims(found, axis) if op.integer("keepdims", 1) else found

    return call


def _top_k(op: Operation, x: Array, count: Array | None = None) -> tuple[Array, Array]:
    k = op.integer("k", 0) if count is None else int(count.reshape(()))
    axis = op.integer("axis", -1) % x.ndim
    falling = ~x if x.dtype.kind in "iu" else -x  # reverses the order of integers without overflow
    order = np.argsort(falling if op.integer("largest", 1) else x, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


# Shapes and movement -------------------------------------------------------------------------------------------


def _constant_of_shape(op: Operation, shape: Array) -> Array:
    value = op.attributes.get("value", np.zeros(1))
    assert isinstance(value, np.ndarray)
    return np.full(tuple(shape.tolist()), value.reshape(-1)[0])


def _shape(op: Operation, x: Array) -> Array:
    return np.asarray(x.shape, np.int64)[slice(op.integer("start", 0), op.attributes.get("end"))]


def _reshape(op: Operation, x: Array, shape: Array | None = None) -> Array:
    wanted = (op.integers("shape") or []) if shape is None else [int(d) for d in shape]
    if not op.integer("allowzero", 0):
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(op: Operation, x: Array) -> Array:
    axis = op.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _axes(op: Operation, axes: Array | None) -> list[int] | None:
    return op.integers("axes") if axes is None else [int(axis) for axis in axes.ravel()]


def _squeeze(op: Operation, x: Array, axes: Array | None = None) -> Array:
    chosen = _axes(op, axes)
    return np.squeeze(x) if chosen is None else np.squeeze(x, tuple(chosen))


def _unsqueeze(op: Operation, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, tuple(_axes(op, axes) or ()))


def _transpose(op: Operation, x: Array) -> Array:
    return np.ascontiguousarray(np.transpose(x, op.integers("perm")))


def _concat(op: Operation, *inputs: Array) -> Array:
    return np.concatenate(inputs, axis=op.integer("axis", 1))


def _split(op: Operation, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    axis = op.integer("axis", 0) % x.ndim
    lengths = op.integers("split") if sizes is None else [int(size) for size in sizes]
    if lengths is None:
        parts = op.integer("num_outputs", len(op.outputs))
        step = -(-x.shape[axis] // parts)
        lengths = [min(step, x.shape[axis] - i * step) for i in range(parts)]
    if sum(lengths) != x.shape[axis]:
        raise ValueError(f"parts of {lengths} elements")
    return tuple(np.ascontiguousarray(part) for part in np.split(x, np.cumsum(lengths)[:-1], axis))


def _slice(op: Operation, x: Array, *inputs: Array | None) -> Array:
    if op.version < 10:
        starts, ends, axes, steps = op.integers("starts") or [], op.integers("ends") or [], op.integers("axes"), None
    else:
        lists = [None if i is None else [int(v) for v in i.ravel()] for i in inputs]
        starts, ends, axes, steps = (lists + [None] * 4)[:4]  # type: ignore[assignment]
    axes = axes or list(range(len(starts)))
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        # Like numpy's, but that a negative step starts at the first element where it would start before it.
        start = max(start, -x.shape[axis]) if step < 0 else start
        # One that ends before the first element ends at None; ONNX writes it as a very negative number.
        stop = None if step < 0 and end < -x.shape[axis] else end
        where[axis] = slice(start, stop, step)
    return np.ascontiguousarray(x[tuple(where)])


def pad_widths(op: Operation, x: Array, *inputs: Array | None) -> list[tuple[int, int]]:
    """Reads how much a Pad adds before and after each axis."""
    pads = op.integers("paddings" if op.version < 2 else "pads") if op.version < 11 else None
    if pads is None:
        assert inputs
        assert inputs[0] is not None
        pads = [int(pad) for pad in inputs[0].ravel()]
    given = inputs[2] if len(inputs) > 2 else None
    axes = list(range(x.ndim)) if given is None else [int(axis) % x.ndim for axis in given.ravel()]
    widths = [(0, 0)] * x.ndim
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        widths[axis] = (begin, end)
    return widths


def pad_fill(op: Operation, *inputs: Array | None) -> float:
    """Reads the value that a Pad of mode `constant` fills in."""
    if op.version < 11:
        return op.number("value", 0.0)
    fill = inputs[1] if len(inputs) > 1 else None
    return 0.0 if fill is None or not fill.size else fill.reshape(-1)[0].item()


def _pad(op: Operation, x: Array, *inputs: Array | None) -> Array:
    widths = pad_widths(op, x, *inputs)
    crop = tuple(slice(max(-b, 0), size - max(-e, 0)) for size, (b, e) in zip(x.shape, widths, strict=True))
    x = x[crop]
    grow = [(max(b, 0), max(e, 0)) for b, e in widths]
    mode = op.text("mode", "constant")
    if mode == "constant":
        return np.pad(x, grow, constant_values=pad_fill(op, *inputs))
    if mode not in {"reflect", "edge", "wrap"}:
        raise UnsupportedError(f"{op}: mode {mode!r} is not known; use constant, reflect, edge or wrap.")
    return np.pad(x, grow, mode=mode)  # type: ignore[call-overload]


def _gather(op: Operation, x: Array, indices: Array) -> Array:
    return np.take(x, indices, axis=op.integer("axis", 0))


def _gather_elements(op: Operation, x: Array, indices: Array) -> Array:
    axis = op.integer("axis", 0) % x.ndim
    return np.take_along_axis(x, np.where(indices < 0, indices + x.shape[axis], indices), axis)


def _expand(_: Operation, x: Array, shape: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist()))))


def _depth_to_space(op: Operation, x: Array) -> Array:
    n, c, h, w = x.shape
    block = op.integer("blocksize", 1)
    if op.text("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(y).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(op: Operation, x: Array) -> Array:
    n, c, h, w = x.shape
    block = op.integer("blocksize", 1)
    order = (0, 3, 5, 1, 2, 4) if op.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(order)
    return np.ascontiguousarray(y).reshape(n, c * block**2, h // block, w // block)


def _non_max_suppression(op: Operation, boxes: Array, scores: Array, *limits: Array | None) -> Array:
    """ONNX's own implementation takes the limits as vectors only, of one element; scalars are common."""
    vectors = [None if limit is None else limit.reshape(-1) for limit in limits]
    return evaluate_by_reference(op, [boxes, scores, *vectors])[0]


def _dropout(op: Operation, x: Array, ratio: Array | None = None, training: Array | None = None) -> tuple[Array, ...]:
    if training is not None and training.all() and (ratio is None or ratio.any()):
        raise UnsupportedError(f"{op}: runs in training mode; only inference is supported. Export the model in evaluation mode.")
    return x, np.ones(x.shape, bool)


OPERATORS: dict[str, Evaluate] = {
    # elementwise, one operand
    "Abs": _unary(np.abs),
    "Acos": _unary(np.arccos),
    "Acosh": _unary(np.arccosh),
    "Asin": _unary(np.arcsin),
    "Asinh": _unary(np.arcsinh),
    "Atan": _unary(np.arctan),
    "Atanh": _unary(np.arctanh),
    "Cast": _cast,
    "CastLike": lambda _, x, like: x.astype(like.dtype),
    "Ceil": _unary(np.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _unary(np.cos),
    "Cosh": _unary(np.cosh),
    "Dropout": _dropout,
    "Elu": _elu,
    "Erf": _unary(erf),
    "Exp": _unary(np.exp),
    "Floor": _unary(np.floor),
    "Gelu": _gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda op, x: x * hard_sigmoid(op, x),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": _leaky_relu,
    "Log": _unary(np.log),
    "Mish": _unary(lambda x: x * np.tanh(softplus(x))),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Reciprocal": _unary(lambda x: 1 / x),
    "Relu": _unary(lambda x: np.maximum(x, np.zeros((), x.dtype))),
    "Round": _unary(np.rint),
    "Selu": _selu,
    "Sigmoid": _unary(sigmoid),
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Sinh": _unary(np.sinh),
    "Softplus": _unary(softplus),
    "Softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _unary(np.sqrt),
    "Swish": lambda op, x: x * sigmoid(op.number("alpha", 1.0) * x),
    "Tan": _unary(np.tan),
    "Tanh": _unary(np.tanh),
    "ThresholdedRelu": lambda op, x: np.where(x > op.number("alpha", 1.0), x, 0.0),
    # elementwise, several operands
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Div": _binary(_divide),
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Max": _variadic(np.maximum),
    "Mean": lambda _, *inputs: sum(inputs[1:], inputs[0]) / len(inputs),
    "Min": _variadic(np.minimum),
    "Mod": _mod,
    "Mul": _binary(np.multiply),
    "Or": _binary(np.logical_or),
    "Pow": _power,
    "PRelu": _prelu,
    "Sub": _binary(np.subtract),
    "Sum": _variadic(np.add),
    "Where": lambda _, condition, a, b: np.where(condition, a, b),
    "Xor": _binary(np.logical_xor),
    # convolution, products, pools
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MatMul": lambda _, a, b: np.matmul(a, b),
    "MaxPool": max_pool,
    # normalisation
    "BatchNormalization": _batch_normalization,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LRN": _lrn,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "Softmax": _softmax,
    # reductions and selection
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "ReduceL1": _reduce(lambda x, axis, keepdims: np.abs(x).sum(axis=axis, keepdims=keepdims)),
    "ReduceL2": _reduce(lambda x, axis, keepdims: np.sqrt((x * x).sum(axis=axis, keepdims=keepdims))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_extreme(np.max, lowest)),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(_extreme(np.min, highest)),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceSumSquare": _reduce(lambda x, axis, keepdims: (x * x).sum(axis=axis, keepdims=keepdims)),
    "TopK": _top_k,
    # shapes and movement
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": lambda _, x: np.asarray(np.nonzero(x), np.int64),
    "Pad": _pad,
    "Range": lambda _, start, limit, step: np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype),
    "Reshape": _reshape,
    "Resize": resize,
    "Shape": _shape,
    "Size": lambda _, x: np.asarray(x.size, np.int64),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _, x, repeats: np.tile(x, tuple(repeats.tolist())),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": resize,
}
