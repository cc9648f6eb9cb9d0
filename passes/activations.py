"""Recognises what elementwise nodes compute, however they are spelled.

A value is described in terms of one other value x by a small algebra of forms, closed under the operators that
exporters spell activations with:

    Clipped      clip(a x + b, lo, hi)              affine maps, Relu, Clip, Min, Max, HardSigmoid
    Gated        x * clip(a x + b, lo, hi)          hard-swish, whatever the order of its Add, Clip, Mul, Div
    Saturating   [x *] (c + d * g(a x))             sigmoid, SiLU, GELU (erf), Mish
    Named        an activation as it stands         LeakyRelu, Elu, Tanh, Softplus, ...

`classify` says which activation of the vocabulary a form is. Constants may differ from their ideal values by the
rounding with which they were stored and multiplied (1/6 as float32), by no more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from sepwise.passes.vocabulary import Activation

__all__ = ["ELEMENTWISE", "IDENTITY", "Form", "apply", "classify", "scalar"]

STORED_ROUNDING = 2.0**-22
"""Relative difference allowed to a constant: two of them rounded to float32 (2**-24 each), and their product."""

FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Clipped:
    """clip(slope * x + offset, low, high)."""

    slope: float
    offset: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def linear(self) -> bool:
        """True for slope * x alone."""
        return self.offset == 0 and self.low == -math.inf and self.high == math.inf


@dataclass(frozen=True)
class Gated:
    """x * clip(slope * x + offset, low, high)."""

    gate: Clipped


@dataclass(frozen=True)
class Saturating:
    """offset + scale * function(slope * x), multiplied by x if `gated`."""

    function: str
    slope: float
    offset: float = 0.0
    scale: float = 1.0
    gated: bool = False


@dataclass(frozen=True)
class Named:
    """An activation of the vocabulary, as it stands."""

    activation: Activation


Form = Clipped | Gated | Saturating | Named

IDENTITY = Clipped(1.0, 0.0)
"""The value x itself."""


def scalar(tensor: ir.TensorProtocol | None) -> float | None:
    """Returns the number in a floating-point tensor of one element, or None."""
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return None
    return float(tensor.numpy().reshape(()))


def _scaled(form: Form, factor: float) -> Form | None:
    if factor == 0 or not math.isfinite(factor):
        return None
    match form:
        case Clipped(slope, offset, low, high):
            low, high = sorted((low * factor, high * factor))
            return Clipped(slope * factor, offset * factor, low, high)
        case Gated(gate):
            scaled = _scaled(gate, factor)
            return Gated(scaled) if isinstance(scaled, Clipped) else None
        case Saturating():
            return replace(form, offset=form.offset * factor, scale=form.scale * factor)
    return None


def _shifted(form: Form, constant: float) -> Form | None:
    match form:
        case Clipped(slope, offset, low, high):
            return Clipped(slope, offset + constant, low + constant, high + constant)
        case Saturating(gated=False):
            return replace(form, offset=form.offset + constant)
    return None


def _clipped(form: Form, low: float, high: float) -> Form | None:
    if not isinstance(form, Clipped) or not low < high:
        return None
    low, high = (-math.inf if low <= -FLOAT32_MAX else low), (math.inf if high >= FLOAT32_MAX else high)
    return replace(form, low=min(max(form.low, low), high), high=min(max(form.high, low), high))


def _product(left: Form, right: Form) -> Form | None:
    for factor, other in ((left, right), (right, left)):
        if isinstance(factor, Clipped) and factor.linear:
            if isinstance(other, Clipped):
                scaled = _scaled(other, factor.slope)
                return Gated(scaled) if isinstance(scaled, Clipped) else None
            if isinstance(other, Saturating) and not other.gated:
                scaled = _scaled(other, factor.slope)
                return replace(scaled, gated=True) if isinstance(scaled, Saturating) else None
    return None


def _maximum(left: Form, right: Form) -> Form | None:
    for identity, other in ((left, right), (right, left)):
        if identity == IDENTITY and isinstance(other, Clipped) and other.linear and 0 < other.slope < 1:
            return Named(Activation("leaky_relu", (other.slope,)))
    return None


Operand = Form | float | None
Attributes = Mapping[str, ir.Attr]


def _number(attributes: Attributes, name: str, default: float) -> float:
    return float(attributes[name].as_float()) if name in attributes else default


def _add(operands: Sequence[Operand], _: Attributes) -> Form | None:
    match operands:
        case [float(number), Clipped() | Saturating() as form] | [Clipped() | Saturating() as form, float(number)]:
            return _shifted(form, number)
    return None


def _sub(operands: Sequence[Operand], _: Attributes) -> Form | None:
    match operands:
        case [Clipped() | Saturating() as form, float(number)]:
            return _shifted(form, -number)
        case [float(number), Clipped() | Saturating() as form]:
            negated = _scaled(form, -1.0)
            return None if negated is None else _shifted(negated, number)
    return None


def _mul(operands: Sequence[Operand], _: Attributes) -> Form | None:
    match operands:
        case [float(), float()] | [None, _] | [_, None]:
            return None
        case [float(number), form] | [form, float(number)] if not isinstance(form, float | None):
            return _scaled(form, number)
        case [left, right] if not isinstance(left, float | None) and not isinstance(right, float | None):
            return _product(left, right)
    return None


def _div(operands: Sequence[Operand], _: Attributes) -> Form | None:
    match operands:
        case [form, float(number)] if not isinstance(form, float | None) and number != 0:
            return _scaled(form, 1.0 / number)
    return None


def _bound(operands: Sequence[Operand], index: int, default: float) -> float | None:
    if index >= len(operands):
        return default
    operand = operands[index]
    return operand if isinstance(operand, float) else None


def _clip(operands: Sequence[Operand], attributes: Attributes) -> Form | None:
    low = _bound(operands, 1, _number(attributes, "min", -math.inf))
    high = _bound(operands, 2, _number(attributes, "max", math.inf))
    form = operands[0]
    if low is None or high is None or form is None or isinstance(form, float):
        return None
    return _clipped(form, low, high)


def _extremum(operands: Sequence[Operand], *, maximum: bool) -> Form | None:
    match operands:
        case [float(number), Clipped() as form] | [Clipped() as form, float(number)]:
            return _clipped(form, number, math.inf) if maximum else _clipped(form, -math.inf, number)
        case [Clipped() as left, Clipped() as right] if maximum:
            return _maximum(left, right)
    return None


def _hard_sigmoid(operands: Sequence[Operand], attributes: Attributes) -> Form | None:
    form = operands[0]
    if not isinstance(form, Clipped):
        return None
    scaled = _scaled(form, _number(attributes, "alpha", 0.2))
    shifted = None if scaled is None else _shifted(scaled, _number(attributes, "beta", 0.5))
    return None if shifted is None else _clipped(shifted, 0.0, 1.0)


def _saturating(function: str) -> Callable[[Sequence[Operand], Attributes], Form | None]:
    def apply_to(operands: Sequence[Operand], _: Attributes) -> Form | None:
        form = operands[0]
        return Saturating(function, form.slope) if isinstance(form, Clipped) and form.linear else None

    return apply_to


def _tanh(operands: Sequence[Operand], _: Attributes) -> Form | None:
    if operands[0] == IDENTITY:
        return Named(Activation("tanh"))
    if operands[0] == Named(Activation("softplus")):
        return Saturating("tanh_softplus", 1.0)
    return None


def _gelu(operands: Sequence[Operand], attributes: Attributes) -> Form | None:
    if "approximate" in attributes and attributes["approximate"].as_string() != "none":
        return None
    return Named(Activation("gelu")) if operands[0] == IDENTITY else None


def _swish(operands: Sequence[Operand], attributes: Attributes) -> Form | None:
    plain = operands[0] == IDENTITY and _number(attributes, "alpha", 1.0) == 1.0
    return Named(Activation("silu")) if plain else None


def _named(kind: str, **defaults: float) -> Callable[[Sequence[Operand], Attributes], Form | None]:
    def apply_to(operands: Sequence[Operand], attributes: Attributes) -> Form | None:
        if operands[0] != IDENTITY:
            return None
        return Named(Activation(kind, tuple(_number(attributes, name, value) for name, value in defaults.items())))

    return apply_to


ELEMENTWISE: Mapping[str, Callable[[Sequence[Operand], Attributes], Form | None]] = {
    "Add": _add,
    "Clip": _clip,
    "Div": _div,
    "Elu": _named("elu", alpha=1.0),
    "Erf": _saturating("erf"),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _named("hard_swish"),
    "LeakyRelu": _named("leaky_relu", alpha=0.01),
    "Max": lambda operands, _: _extremum(operands, maximum=True),
    "Min": lambda operands, _: _extremum(operands, maximum=False),
    "Mish": _named("mish"),
    "Mul": _mul,
    "Neg": lambda operands, _: None if isinstance(operands[0], float | None) else _scaled(operands[0], -1.0),
    "Relu": lambda operands, _: None if isinstance(operands[0], float | None) else _clipped(operands[0], 0.0, math.inf),
    "Sigmoid": _saturating("sigmoid"),
    "Softplus": _named("softplus"),
    "Sub": _sub,
    "Swish": _swish,
    "Tanh": _tanh,
}
"""The operators of the algebra: each maps the forms (or numbers) of its operands to the form of its result."""


def apply(op_type: str, operands: Sequence[Operand], attributes: Attributes) -> Form | None:
    """Returns the form of an operator's result.

    Args:
        op_type: An operator of the standard ONNX domain.
        operands: Of each input its form, its value if it is a constant scalar, or None for anything else.
        attributes: The operator's attributes, none of them a reference.

    Returns:
        The form, or None if the result has none.
    """
    operator = ELEMENTWISE.get(op_type)
    return operator(operands, attributes) if operator is not None and operands else None


def _near(value: float, ideal: float) -> bool:
    return abs(value - ideal) <= STORED_ROUNDING * abs(ideal)


def classify(form: Form | None) -> Activation | None:
    """Says which activation of the vocabulary a form is, or None.

    Args:
        form: A form in terms of the activation's input.

    Returns:
        The activation; None for the identity and for everything that the vocabulary does not name.

    Example:
        >>> classify(Gated(Clipped(1 / 6, 0.5, 0.0, 1.0)))
        Activation(kind='hard_swish', parameters=())
    """
    match form:
        case Named(activation):
            return activation
        case Clipped(slope, offset, low, high) if low < high:
            if (slope, offset) == (1.0, 0.0):
                if (low, high) == (-math.inf, math.inf):
                    return None
                return Activation("relu") if (low, high) == (0.0, math.inf) else Activation("clip", (low, high))
            if slope > 0 and low == 0 and _near(high, 1.0):
                return Activation("hard_sigmoid", (slope, offset))
        case Gated(Clipped(slope, offset, low, high)):
            if _near(slope, 1 / 6) and _near(offset, 0.5) and low == 0 and _near(high, 1.0):
                return Activation("hard_swish")
        case Saturating("sigmoid", 1.0, 0.0, scale, gated) if _near(scale, 1.0):
            return Activation("silu" if gated else "sigmoid")
        case Saturating("tanh_softplus", _, 0.0, scale, True) if _near(scale, 1.0):
            return Activation("mish")
        case Saturating("erf", slope, offset, scale, True):
            if _near(slope, math.sqrt(0.5)) and _near(offset, 0.5) and _near(scale, 0.5):
                return Activation("gelu")
    return None
