"""Elementary functions that vectorise: polynomials instead of calls into the C library.

TVM lowers `exp`, `sigmoid`, `tanh` and `erf` to libm, which LLVM calls once per element; a bare-metal
target has no libm at all. Compute says `call("erf", x)` or `activation("silu", (), x)`, which is one TIR call that schedules and
vectorises like any other; `replace_math` then writes it out as additions, multiplications, selections and bit casts, for any
number of lanes, so that the object has no undefined symbol. It runs on flat functions, after loops were vectorised.

All take and give float32. Results are within `MAX_ULP` of the exact value (units in the last place of the
exact value rounded to float32; a test sweeps them densely), also relative to small results; NaN gives NaN, and
infinities and overflow give the limits that C's libm gives.

The coefficients are weighted minimax fits (Lawson's iteration in float64) of the functions named beside them.

    # exp(x) = 2^n * e^r,  n = round(x / ln 2),  r = x - n ln 2 in two steps (Cody and Waite 1980)
    # e^r = 1 + r + r^2 q(r)

A value that is used twice goes through a local buffer of one vector, which LLVM keeps in a register. It is neither
a `Let` nor a `Bind`: TVM's analyzer takes time exponential in the length of a chain of `Let`, and copies the value of a `Bind`
to each of its uses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Op, PrimType
from tvm.ir import _ffi_api as ir_ffi
from tvm.ir.expr import Call, Var

from sepwise.passes.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Expr = Any  # tvm has no type stubs: a float32 expression

__all__ = ["MAX_ULP", "activation", "call", "replace_math"]

MAX_ULP: Final[dict[str, float]] = {
    "exp": 1.5,
    "expm1": 2.0,
    "log": 2.0,
    "log1p": 2.5,
    "sigmoid": 3.0,
    "tanh": 3.0,
    "erf": 3.0,
}
"""Largest error of each function, in units in the last place of the exact result. `expm1` holds up to 80, `log1p` in [0, 1]."""

LOG2_E: Final = 1.4426950408889634
LN2_HI: Final = 355.0 / 512.0
"""9 bits of ln 2: its product with any exponent is exact, with or without a fused multiply-add."""
LN2_LO: Final = math.log(2.0) - LN2_HI
ROUND_MAGIC: Final = 12582912.0
"""1.5 * 2^23: adding it to |y| < 2^22 leaves round(y) in the low bits of the mantissa."""
ROUND_MAGIC_BITS: Final = 0x4B400000

# (e^r - 1 - r) / r^2 on |r| <= 1.01 * ln(2) / 2, relative error of e^r - 1 below 1.5e-8
EXPM1_Q: Final = (0.5000000066, 0.1666653802, 0.0416662665, 0.0083672468, 0.0013947598)
# (atanh(s) / s - 1) / s^2 in t = s^2 on [0, 1/9], absolute error times t below 1.2e-10
ATANH_WIDE: Final = (0.3333333783, 0.1999943644, 0.143085176, 0.1071292601, 0.1215416049)
# the same on [0, 0.0296], for s = (m - 1) / (m + 1) with m within a factor sqrt(2) of 1
ATANH_NARROW: Final = (0.3333333281, 0.2000017045, 0.142684597, 0.1179499485)
# erf(x) / x in t = x^2 on [0, 1], relative error below 1.3e-9
ERF_SMALL: Final = (
    1.1283791657,
    -0.37612625824,
    0.11283585148,
    -0.026853811929,
    0.0051883276735,
    -0.00080101935174,
    0.000078538609972,
)
# log(1 - erf(a)) on [1, 4], error times erfc(a) below 1.1e-9
ERFC_LOG: Final = (
    -0.00035371876,
    -1.1270400391,
    -0.63822567209,
    -0.10303737336,
    0.02180532060,
    -0.0029396078882,
    0.000185574071,
)



def call(name: str, x: Expr) -> Expr:
    """Calls an elementary function.

    Args:
        name: A key of `MAX_ULP`.
        x: float32 expression.

    Returns:
        One TIR call, which `replace_math` writes out.
    """
    return tirx.call_intrin("float32", f"sepwise.{name}", x)


def activation(kind: str, parameters: Sequence[float], x: Expr) -> Expr:
    """Builds an activation of the vocabulary.

    Args:
        kind: A key of `sepwise.passes.vocabulary.ACTIVATION_PARAMETERS`.
        parameters: Its parameters.
        x: float32 expression.

    Returns:
        The activation of x as one TIR call, which `replace_math` writes out.

    Raises:
        UnsupportedError: If the kind is unknown.

    Example:
        `te.compute(x.shape, lambda *i: activation("silu", (), x(*i)))`
    """
    if kind not in _ACTIVATIONS:
        raise UnsupportedError(f"Activation {kind!r} has no kernel; known are {', '.join(_ACTIVATIONS)}.")
    constants = [tirx.FloatImm("float32", _float32(value)) for value in parameters]
    return tirx.call_intrin("float32", f"sepwise.{kind}", x, *constants)


def replace_math(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Writes out elementary functions and activations.

    `B[i] = sepwise.sigmoid(A[i])` becomes `v[0] = A[i]; e[0] = ...; B[i] = select(v[0] < 0, e[0], 1) / (1 + e[0])`.

    Args:
        function: Without loops still to be vectorised; calls on other types than float32 are left alone.

    Returns:
        The function without calls of this module and without TVM's `exp`, `sigmoid`, `tanh`, `erf`, `log`,
        `log2`, `log10`, `log1p` and `pow`.
    """

    def on_store(store: tirx.BufferStore) -> tirx.Stmt:
        block = _Block()
        value = block.replace(store.value)
        if value.same_as(store.value):
            return store
        replaced = tirx.BufferStore(store.buffer, value, store.indices)
        return tirx.SeqStmt([*block.statements, replaced]) if block.statements else replaced

    body = tvm_ffi.structural_map(function.body, (tirx.BufferStore, on_store))
    return function if body.same_as(function.body) else function.with_body(body)


class _Block:
    """Statements that compute what one expression needs."""

    def __init__(self) -> None:
        self.statements: list[tirx.Stmt] = []
        self.lanes = 1

    def replace(self, value: Expr) -> Expr:
        """Gives `value` without elementary functions."""
        guarded = tvm_ffi.structural_map(value, (Call, _guard_arguments))
        return tvm_ffi.structural_map(guarded, (Call, self._replace_call))

    def let(self, value: Expr) -> Expr:
        """Names a value: what is used twice is computed once."""
        if isinstance(value, (Var, tirx.FloatImm, tirx.IntImm, tirx.Broadcast)):
            return value
        dtype = str(value.ty.dtype).split("x")[0]
        buffer = tirx.decl_buffer((self.lanes,), dtype, f"v{len(self.statements) // 2}", scope="local")
        index = tirx.IntImm("int32", 0)
        at = [index if self.lanes == 1 else tirx.Ramp(index, tirx.IntImm("int32", 1), self.lanes)]
        self.statements += [tirx.AllocBuffer(buffer), tirx.BufferStore(buffer, value, at)]
        return tirx.BufferLoad(buffer, at)

    def f(self, value: float) -> Expr:
        """A float32 constant in all lanes."""
        return self._spread(tirx.FloatImm("float32", _float32(value)))

    def i(self, value: int) -> Expr:
        """An int32 constant in all lanes."""
        return self._spread(tirx.IntImm("int32", value))

    def bits(self, x: Expr) -> Expr:
        """The bits of a float32."""
        return tirx.reinterpret("int32" if self.lanes == 1 else f"int32x{self.lanes}", x)

    def from_bits(self, x: Expr) -> Expr:
        """The float32 of given bits."""
        return tirx.reinterpret("float32" if self.lanes == 1 else f"float32x{self.lanes}", x)

    def to_float(self, x: Expr) -> Expr:
        """int32 to float32."""
        return tirx.Cast("float32" if self.lanes == 1 else f"float32x{self.lanes}", x)

    def horner(self, coefficients: Sequence[float], x: Expr) -> Expr:
        """`c0 + x (c1 + x (c2 + ...))`."""
        value = self.f(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = value * x + self.f(coefficient)
        return value

    def clamp(self, x: Expr, low: float, high: float) -> Expr:
        """Clamps and keeps NaN, which fails both comparisons (`min` and `max` would drop it)."""
        if high < math.inf:
            x = self.let(tirx.Select(x > self.f(high), self.f(high), x))
        if low > -math.inf:
            x = self.let(tirx.Select(x < self.f(low), self.f(low), x))
        return x

    def _spread(self, value: Expr) -> Expr:
        return value if self.lanes == 1 else tirx.Broadcast(value, self.lanes)

    def _replace_call(self, node: Call) -> Expr:
        builder = _BUILDERS.get(getattr(node.op, "name", ""))
        if builder is None or not isinstance(node.ty, PrimType) or not str(node.ty.dtype).startswith("float32"):
            return node
        self.lanes = int(node.ty.dtype.lanes)
        return self.let(builder(self, *(self.let(argument) for argument in node.args)))


def _guard_arguments(node: Call) -> Call:
    """`if_then_else(c, exp(x), y)` -> `if_then_else(c, exp(if_then_else(c, x, 0)), y)`: x may be unreadable where c fails."""
    if getattr(node.op, "name", "") != "prim.if_then_else":
        return node
    condition, *branches = node.args

    def guarded(branch: Expr, holds: Expr) -> Expr:
        def on_call(inner: Call) -> Call:
            if getattr(inner.op, "name", "") not in _BUILDERS:
                return inner
            arguments = [
                argument
                if isinstance(argument, (tirx.FloatImm, tirx.Broadcast))
                else tirx.if_then_else(holds, argument, tirx.const(0, argument.ty.dtype))
                for argument in inner.args
            ]
            return Call(inner.ty, inner.op, arguments)

        return tvm_ffi.structural_map(branch, (Call, on_call))

    return tirx.if_then_else(condition, guarded(branches[0], condition), guarded(branches[1], tirx.Not(condition)))


def _float32(value: float) -> float:
    return float(np.float32(value))


def _reduce_exponent(b: _Block, x: Expr) -> tuple[Expr, Expr]:
    """N and r of x = n ln 2 + r."""
    shifted = b.let(x * b.f(LOG2_E) + b.f(ROUND_MAGIC))
    n = b.let(shifted - b.f(ROUND_MAGIC))
    r = b.let((x - n * b.f(LN2_HI)) - n * b.f(LN2_LO))
    return b.let(b.bits(shifted) - b.i(ROUND_MAGIC_BITS)), r


def _power_of_two(b: _Block, n: Expr) -> Expr:
    """2^n for -126 <= n <= 127."""
    return b.from_bits((n + b.i(127)) << b.i(23))


def _exp(b: _Block, x: Expr) -> Expr:
    """`(1 + r + r^2 q(r)) * 2^(n / 2) * 2^(n - n / 2)`: two factors reach subnormals and infinity."""
    n, r = _reduce_exponent(b, b.clamp(x, -104.0, 89.0))
    half = b.let(n >> b.i(1))
    value = b.f(1.0) + (r + r * r * b.horner(EXPM1_Q, r))
    return (value * _power_of_two(b, half)) * _power_of_two(b, n - half)


def _expm1(b: _Block, x: Expr) -> Expr:
    """`2^n * (r + r^2 q(r)) + (2^n - 1)`, accurate near 0."""
    n, r = _reduce_exponent(b, b.clamp(x, -20.0, 80.0))
    scale = b.let(_power_of_two(b, n))
    return scale * (r + r * r * b.horner(EXPM1_Q, r)) + (scale - b.f(1.0))


def _exp_of_minus_abs(b: _Block, x: Expr) -> Expr:
    """e^-|x|, at most 1."""
    return b.let(_exp(b, b.let(-tirx.abs(x))))


def _sigmoid(b: _Block, x: Expr) -> Expr:
    """`(x >= 0 ? 1 : e) / (1 + e)` with e = e^-|x|: neither side overflows or cancels."""
    e = _exp_of_minus_abs(b, x)
    return tirx.Select(x < b.f(0.0), e, b.f(1.0)) / (b.f(1.0) + e)


def _silu(b: _Block, x: Expr) -> Expr:
    """`x * sigmoid(x)` with one division; of -infinity it is 0."""
    e = _exp_of_minus_abs(b, x)
    finite = b.clamp(x, -1e4, math.inf)
    return tirx.Select(x < b.f(0.0), finite * e, x) / (b.f(1.0) + e)


def _with_sign(b: _Block, magnitude: Expr, sign: Expr) -> Expr:
    """`|magnitude|` with the sign bit of `sign`, -0 included."""
    return b.from_bits((b.bits(magnitude) & b.i(0x7FFFFFFF)) | (b.bits(sign) & b.i(-0x80000000)))


def _tanh(b: _Block, x: Expr) -> Expr:
    """`-d / (2 + d)` with the sign of x, d = e^(-2|x|) - 1."""
    d = b.let(_expm1(b, b.let(tirx.abs(x) * b.f(-2.0))))
    return _with_sign(b, d / (b.f(2.0) + d), x)


def _erf(b: _Block, x: Expr) -> Expr:
    """An odd polynomial up to 1, 1 - e^p(|x|) beyond."""
    magnitude = b.let(tirx.abs(x))
    square = b.let(x * x)
    near = x * b.horner(ERF_SMALL, square)
    tail = _exp(b, b.let(b.horner(ERFC_LOG, b.clamp(magnitude, 1.0, 4.0))))
    return tirx.Select(magnitude < b.f(1.0), near, _with_sign(b, b.f(1.0) - tail, x))


def _log(b: _Block, x: Expr) -> Expr:
    """X = 2^n m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s) with s = f / (2 + f), f = m - 1."""
    subnormal = x < b.f(1.1754943508222875e-38)
    bits = b.let(b.bits(tirx.Select(subnormal, x * b.f(8388608.0), x)))  # 2^23 makes it normal
    n = b.let((bits - b.i(0x3F3504F3)) >> b.i(23))  # 0x3F3504F3: sqrt(1/2)
    f = b.let(b.from_bits(bits - (n << b.i(23))) - b.f(1.0))
    exponent = b.let(b.to_float(n) + tirx.Select(subnormal, b.f(-23.0), b.f(0.0)))
    s = b.let(f / (b.f(2.0) + f))
    t = b.let(s * s)
    tail = t * b.horner(ATANH_NARROW, t) * b.f(2.0)
    # log(1 + f) = f - s f + s * tail, as 2 s = f - s f: f apart keeps its bits whole
    finite = exponent * b.f(LN2_HI) + (f - (s * (f - tail) - exponent * b.f(LN2_LO)))
    infinity = b.from_bits(b.i(0x7F800000))
    out = b.let(tirx.Select(x < infinity, finite, x))  # infinity and NaN give themselves
    out = b.let(tirx.Select(x < b.f(0.0), b.from_bits(b.i(0x7FC00000)), out))
    return tirx.Select(tirx.EQ(x, b.f(0.0)), -infinity, out)


def _log1p(b: _Block, x: Expr) -> Expr:
    """2 atanh(s), s = x / (2 + x), for x in [0, 1]."""
    s = b.let(x / (b.f(2.0) + x))
    t = b.let(s * s)
    twice = b.let(b.f(2.0) * s)
    return twice + twice * (t * b.horner(ATANH_WIDE, t))


def _any_log1p(b: _Block, x: Expr) -> Expr:
    """`log(u) + (x - (u - 1)) / u` with u = 1 + x: the second term is what rounding took from u."""
    u = b.let(b.f(1.0) + x)
    lost = b.let((x - (u - b.f(1.0))) / u)
    out = b.let(_log(b, u) + lost)
    return tirx.Select(tirx.abs(x) < b.f(1e-4), x - x * x * b.f(0.5), tirx.Select(u > b.f(3e38), _log(b, u), out))


def _log_base(base: float) -> Callable[[_Block, Expr], Expr]:
    return lambda b, x: _log(b, x) * b.f(1.0 / math.log(base))


def _power(b: _Block, x: Expr, exponent: Expr) -> Expr:
    """By multiplication or square root where a constant exponent permits, else e^(exponent * log x), NaN for negative x."""
    constant = exponent.value if isinstance(exponent, tirx.Broadcast) else exponent
    if isinstance(constant, tirx.FloatImm):
        value = float(constant.value)
        if value == int(value) and abs(value) <= 8:
            product = _repeated_product(b, x, int(abs(value)))
            return b.f(1.0) / product if value < 0 else product
        if abs(value) == 0.5:
            return b.f(1.0) / tirx.sqrt(x) if value < 0 else tirx.sqrt(x)
    return _exp(b, b.let(b.let(_log(b, x)) * exponent))


def _repeated_product(b: _Block, x: Expr, times: int) -> Expr:
    """`x * x * ...` by squaring."""
    if times < 2:
        return x if times else b.f(1.0)
    half = b.let(_repeated_product(b, x, times // 2))
    return half * half * x if times % 2 else half * half


def _relu(b: _Block, x: Expr) -> Expr:
    return b.clamp(x, 0.0, math.inf)


def _clip(b: _Block, x: Expr, low: Expr, high: Expr) -> Expr:
    return b.clamp(x, _constant(low), _constant(high))


def _leaky_relu(b: _Block, x: Expr, alpha: Expr) -> Expr:
    return tirx.Select(x < b.f(0.0), x * b.f(_constant(alpha)), x)


def _elu(b: _Block, x: Expr, alpha: Expr) -> Expr:
    negative = _expm1(b, b.clamp(x, -math.inf, 0.0))
    return tirx.Select(x < b.f(0.0), negative * b.f(_constant(alpha)), x)


def _hard_sigmoid(b: _Block, x: Expr, alpha: Expr, beta: Expr) -> Expr:
    return b.clamp(b.let(x * b.f(_constant(alpha)) + b.f(_constant(beta))), 0.0, 1.0)


def _hard_swish(b: _Block, x: Expr) -> Expr:
    return x * b.clamp(b.let(x * b.f(1.0 / 6.0) + b.f(0.5)), 0.0, 1.0)


def _gelu(b: _Block, x: Expr) -> Expr:
    return x * b.f(0.5) * (b.f(1.0) + _erf(b, b.let(x * b.f(math.sqrt(0.5)))))


def _softplus(b: _Block, x: Expr) -> Expr:
    """`max(x, 0) + log(1 + e^-|x|)`."""
    return b.clamp(x, 0.0, math.inf) + _log1p(b, _exp_of_minus_abs(b, x))


def _mish(b: _Block, x: Expr) -> Expr:
    """`x a / c`, as tanh(log(1 + t)) = t (t + 2) / (t (t + 2) + 2) with t = e^x, both sides times e^-2x where x >= 0."""
    e = _exp_of_minus_abs(b, x)
    negative = x < b.f(0.0)
    top = b.let(tirx.Select(negative, e * (e + b.f(2.0)), b.f(1.0) + b.f(2.0) * e))
    rest = tirx.Select(negative, b.f(2.0), b.f(2.0) * e * e)
    return b.clamp(x, -1e4, math.inf) * (top / (top + rest))


def _constant(parameter: Expr) -> float:
    """The value of an activation's parameter, which vectorising may have spread."""
    return float((parameter.value if isinstance(parameter, tirx.Broadcast) else parameter).value)


_FUNCTIONS: Final[dict[str, Callable[..., Expr]]] = {
    "exp": _exp,
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
}

_ACTIVATIONS: Final[dict[str, Callable[..., Expr]]] = {
    "relu": _relu,
    "clip": _clip,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
    "mish": _mish,
}

_BUILDERS: Final[dict[str, Callable[..., Expr]]] = {
    **{f"sepwise.{name}": builder for name, builder in (_FUNCTIONS | _ACTIVATIONS).items()},
    "tirx.exp": _exp,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
    "tirx.log": _log,
    "tirx.log1p": _any_log1p,
    "tirx.log2": _log_base(2.0),
    "tirx.log10": _log_base(10.0),
    "tirx.pow": _power,
}


def _register_operators() -> None:
    """Makes TVM know our calls as pure and vectorisable, and its own `erf` and `log1p` as vectorisable."""
    pure = Op.get("tirx.exp").get_attr("TCallEffectKind")
    known = set(map(str, Op.list_op_names()))
    for name in (_FUNCTIONS | _ACTIVATIONS).keys():
        if f"sepwise.{name}" in known:
            continue
        ir_ffi.RegisterOp(f"sepwise.{name}", f"The elementary function {name} of sepwise.")
        operator = Op.get(f"sepwise.{name}")
        operator.set_attr("TCallEffectKind", pure)
        operator.set_attr("TVectorizable", True)
        operator.set_attr("TScriptPrinterName", f"sepwise_{name}")
    for name in ("tirx.erf", "tirx.log1p"):
        Op.get(name).set_attr("TVectorizable", True, plevel=11)


_register_operators()
