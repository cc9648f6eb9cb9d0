"""Elementary functions that vectorise: polynomials instead of calls into the C library.

TVM lowers elementary functions to libm, which LLVM calls once per element; a bare-metal
target has no libm at all. Compute says `call("erf", x)` or `activation("silu", (), x)`, which is one TIR call that schedules and
vectorises like any other; `replace_math` then writes it out as additions, multiplications, selections and bit casts, for any
number of lanes, so that the object has no undefined symbol. It runs on flat functions, after loops were vectorised.

All take and give float32, or float16: that is computed in float32 and rounded, but for `relu` and `clip`, which are exact in
any type. Results in float32 are within `MAX_ULP` of the exact value (units in the last place of the
exact value rounded to float32; a test sweeps them densely), also relative to small results; NaN gives NaN, and
infinities and overflow give the limits that C's libm gives. Each holds for every float32 unless `MAX_ULP` says otherwise.

The coefficients are weighted minimax fits (Lawson's iteration in float64) of the functions named beside them.

    # exp(x) = 2^n * e^r,  n = round(x / ln 2),  r = x - n ln 2 in two steps (Cody and Waite 1980)
    # e^r = 1 + r + r^2 q(r)

    # sin(x): x = n pi/2 + r. The bits of 2/pi are cut into slices so short that x times a slice is exact in float64;
    # multiples of 4 are taken off each product, and what is left of their sum is n mod 4 and r / (pi/2) (Payne and
    # Hanek 1983, in floating point). So r is right for every x up to the largest, not for small ones alone.

    # x^y = 2^(y log2 x) with the logarithm and the product in float64: an error of the exponent is one of the result
    # times 88, which float32 has no bits for.

A value that is used twice goes through a local buffer of one vector, which LLVM keeps in a register. It is neither
a `Let` nor a `Bind`: TVM's analyzer takes time exponential in the length of a chain of `Let`, and copies the value of a `Bind`
to each of its uses.

Armv7-A has no instruction that rounds to a whole number, so there `trunc`, `floor`, `ceil` and `nearbyint` are written out too:

    # |x| < 2^23:  |x| + 2^23 has no bits behind the binary point, so (|x| + 2^23) - 2^23 is |x| rounded, ties to even
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

    from sepwise.passes.vocabulary import Activation

    Expr = Any  # tvm has no type stubs: a float32 expression

__all__ = ["MAX_ULP", "activate", "activation", "call", "replace_math"]

MAX_ULP: Final[dict[str, float]] = {
    "exp": 1.5,
    "expm1": 2.0,
    "log": 2.0,
    "log1p": 2.5,
    "sigmoid": 3.0,
    "tanh": 3.0,
    "erf": 3.0,
    "sin": 2.0,
    "cos": 2.0,
    "tan": 4.0,
    "asin": 2.5,
    "acos": 2.0,
    "atan": 2.0,
    "sinh": 2.0,
    "cosh": 2.0,
    "asinh": 1.0,
    "acosh": 1.0,
    "atanh": 1.0,
    "pow": 1.5,
    "fmod": 0.0,
}
"""Largest error of each function, in units in the last place of the exact result. `expm1` holds up to 80, `log1p` in [0, 1].

`pow` and `fmod` take two operands."""

LOG2_E: Final = 1.4426950408889634
LN2_HI: Final = 355.0 / 512.0
"""9 bits of ln 2: its product with any exponent is exact, with or without a fused multiply-add."""
LN2_LO: Final = math.log(2.0) - LN2_HI
ROUND_MAGIC: Final = 12582912.0
"""1.5 * 2^23: adding it to |y| < 2^22 leaves round(y) in the low bits of the mantissa."""
ROUND_MAGIC_BITS: Final = 0x4B400000
WIDE_ROUND_MAGIC: Final = 6755399441055744.0
"""1.5 * 2^52: the same in float64, with round(y) in the low 32 bits."""

PI_2_HI: Final = 1.57079637050628662109375
"""pi / 2 rounded to float32, and what that leaves."""
PI_2_LO: Final = math.pi / 2 - PI_2_HI
TWO_OVER_PI: Final = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041
"""The first bits of 2 / pi behind the binary point."""
TWO_OVER_PI_BITS: Final = 192
FAR: Final = 64
"""From 2^64 on x is scaled by 2^-64 and 2 / pi by 2^64, of which multiples of 2^25 do not count: x is one of 2^-23 then."""
SLICES: Final = (-4, -33, -62)
"""Weights of the last bits of the slices; each slice has up to 29 bits and x has 24, so that a product has 53."""

QUOTIENT_BITS: Final = 29
"""Bits of a quotient that `fmod` takes at a time."""
LARGEST_QUOTIENT_BITS: Final = 278
"""Bits of the largest float32 over the smallest."""

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

# (sin(r) / r - 1) / r^2 in t = r^2, |r| <= pi / 4, relative error of sin below 3.9e-9
SIN: Final = (-0.16666654537, 0.0083321560537, -0.00019514631888)
# (cos(r) - 1 + r^2 / 2) / r^4 in t = r^2, |r| <= pi / 4, relative error of cos below 1.2e-10
COS: Final = (0.041666645554, -0.0013887309866, 2.4432412967e-05)
# (f(x) / x - 1) / x^2 in t = x^2: atan up to tan(pi / 8), asin up to 1/2, sinh up to 1; relative errors of f below
# 6.8e-10, 4.9e-9 and 5.2e-11
ATAN: Final = (-0.33333315105, 0.19998466001, -0.14243422308, 0.10592946605, -0.06075916457)
ASIN: Final = (0.16666752482, 0.074952976432, 0.045470375938, 0.02417951478, 0.042166308298)
SINH: Final = (0.16666666498, 0.0083333500582, 0.00019836159778, 2.8169512263e-06)
# log2((1 + s) / (1 - s)) / s in t = s^2 on [0, 0.0295], relative error below 4.3e-12
LOG2: Final = (2.885390081790152, 0.961796673274434, 0.5770835963643819, 0.4116721002409112, 0.3407406105945666)


def call(name: str, *operands: Expr) -> Expr:
    """Calls an elementary function.

    Args:
        name: A key of `MAX_ULP`.
        *operands: float32 expressions, two for `pow` and `fmod`.

    Returns:
        One TIR call, which `replace_math` writes out.
    """
    return tirx.call_intrin("float32", f"sepwise.{name}", *operands)


def activation(kind: str, parameters: Sequence[float], x: Expr) -> Expr:
    """Builds an activation of the vocabulary.

    Args:
        kind: A key of `sepwise.passes.vocabulary.ACTIVATION_PARAMETERS`.
        parameters: Its parameters.
        x: float32 or float16 expression.

    Returns:
        The activation of x, in its type, as one TIR call, which `replace_math` writes out.

    Raises:
        UnsupportedError: If the kind is unknown.

    Example:
        `te.compute(x.shape, lambda *i: activation("silu", (), x(*i)))`
    """
    if kind not in _ACTIVATIONS:
        raise UnsupportedError(f"Activation {kind!r} has no kernel; known are {', '.join(_ACTIVATIONS)}.")
    constants = [tirx.FloatImm("float32", _float32(value)) for value in parameters]
    x = tirx.convert(x)  # an element of a tensor is no expression yet
    return tirx.call_intrin(str(x.ty.dtype), f"sepwise.{kind}", x, *constants)


def activate(act: Activation | None, x: Expr) -> Expr:
    """Builds what follows a sum: an activation with its scale and shift, or nothing.

    Args:
        act: The activation, or None.
        x: float32 or float16 expression.

    Returns:
        `scale * kind(x) + shift`, in the type of x, with no product or sum that changes nothing.
    """
    if act is None:
        return x
    result = activation(act.kind, act.parameters, x)
    if act.scale != 1.0:
        result = result * tirx.const(act.scale, result.ty.dtype)
    return result if act.shift == 0.0 else result + tirx.const(act.shift, result.ty.dtype)


def replace_math(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Writes out elementary functions and activations.

    `B[i] = sepwise.sigmoid(A[i])` becomes `v[0] = A[i]; e[0] = ...; B[i] = select(v[0] < 0, e[0], 1) / (1 + e[0])`.

    Args:
        function: Without loops still to be vectorised; calls on other types than float32 and float16 are left alone.

    Returns:
        The function without calls of this module and without those of TVM's that `_BUILDERS` names.
    """

    def on_remainder(remainder: tirx.Mod) -> Expr:
        dtype = remainder.ty.dtype
        return tirx.call_intrin(dtype, "sepwise.fmod", remainder.a, remainder.b) if _is_float32(remainder) else remainder

    rounds = _has_rounding(function)

    def on_store(store: tirx.BufferStore) -> tirx.Stmt:
        block = _Block(rounds=rounds)
        value = block.replace(tvm_ffi.structural_map(store.value, (tirx.Mod, on_remainder)))
        if value.same_as(store.value):
            return store
        replaced = tirx.BufferStore(store.buffer, value, store.indices)
        return tirx.SeqStmt([*block.statements, replaced]) if block.statements else replaced

    body = tvm_ffi.structural_map(function.body, (tirx.BufferStore, on_store))
    return function if body.same_as(function.body) else function.with_body(body)


def _has_rounding(function: tirx.PrimFunc) -> bool:
    """Whether the function's target rounds to whole numbers by instructions: all but Armv7-A."""
    target = function.attrs.get("target") if function.attrs else None
    return target is None or not str(target.attrs.get("mtriple", "")).startswith("armv7")


class _Block:
    """Statements that compute what one expression needs; `rounds` says whether the target rounds to whole numbers by itself."""

    def __init__(self, *, rounds: bool = True) -> None:
        self.rounds = rounds
        self.statements: list[tirx.Stmt] = []
        self.lanes = 1
        self._names = 0

    def replace(self, value: Expr) -> Expr:
        """Gives `value` without elementary functions."""
        guarded = tvm_ffi.structural_map(value, (Call, _guard_arguments))
        return tvm_ffi.structural_map(guarded, (Call, self._replace_call))

    def let(self, value: Expr) -> Expr:
        """Names a value: what is used twice is computed once."""
        if isinstance(value, (Var, tirx.FloatImm, tirx.IntImm, tirx.Broadcast)):
            return value
        return tirx.BufferLoad(*self._variable(value))

    def _variable(self, value: Expr) -> tuple[Expr, list[Expr]]:
        """A buffer of one vector that holds a value, and the index of all of it."""
        dtype = str(value.ty.dtype).split("x")[0]
        buffer = tirx.decl_buffer((self.lanes,), dtype, f"v{self._names}", scope="local")
        self._names += 1
        index = tirx.IntImm("int32", 0)
        at = [index if self.lanes == 1 else tirx.Ramp(index, tirx.IntImm("int32", 1), self.lanes)]
        self.statements += [tirx.AllocBuffer(buffer), tirx.BufferStore(buffer, value, at)]
        return buffer, at

    def repeat(self, times: int, step: Callable[..., Sequence[Expr]], *initial: Expr) -> list[Expr]:
        """`state = initial; for i in range(times): state = step(*state)`; gives the last state."""
        variables = [self._variable(value) for value in initial]
        before, self.statements = self.statements, []
        values = [self.let(value) for value in step(*(tirx.BufferLoad(*variable) for variable in variables))]
        stores = [tirx.BufferStore(buffer, value, at) for (buffer, at), value in zip(variables, values, strict=True)]
        body = tirx.SeqStmt([*self.statements, *stores])
        counter = Var(f"i{self._names}", PrimType("int32"))
        self.statements = [*before, tirx.For(counter, 0, times, tirx.ForKind.SERIAL, body)]
        return [tirx.BufferLoad(*variable) for variable in variables]

    def f(self, value: float) -> Expr:
        """A float32 constant in all lanes."""
        return self._spread(tirx.FloatImm("float32", _float32(value)))

    def d(self, value: float) -> Expr:
        """A float64 constant in all lanes."""
        return self._spread(tirx.FloatImm("float64", value))

    def i(self, value: int) -> Expr:
        """An int32 constant in all lanes."""
        return self._spread(tirx.IntImm("int32", value))

    def constant(self, value: float, like: Expr) -> Expr:
        """A constant of the type of an expression."""
        if _is_float16(like):
            return self._spread(tirx.FloatImm("float16", float(np.float16(value))))
        return self.d(value) if _is_float64(like) else self.f(value)

    def bits(self, x: Expr) -> Expr:
        """The bits of a float32."""
        return tirx.reinterpret(self._type("int32"), x)

    def from_bits(self, x: Expr) -> Expr:
        """The float32 of given bits."""
        return tirx.reinterpret(self._type("float32"), x)

    def wide_bits(self, x: Expr) -> Expr:
        """The bits of a float64."""
        return tirx.reinterpret(self._type("int64"), x)

    def from_wide_bits(self, x: Expr) -> Expr:
        """The float64 of given bits."""
        return tirx.reinterpret(self._type("float64"), x)

    def cast(self, dtype: str, x: Expr) -> Expr:
        """Converts all lanes."""
        return tirx.Cast(self._type(dtype), x)

    def horner(self, coefficients: Sequence[float], x: Expr) -> Expr:
        """`c0 + x (c1 + x (c2 + ...))`, in the type of x."""
        value = self.constant(coefficients[-1], x)
        for coefficient in reversed(coefficients[:-1]):
            value = value * x + self.constant(coefficient, x)
        return value

    def clamp(self, x: Expr, low: float, high: float) -> Expr:
        """Clamps and keeps NaN, which fails both comparisons (`min` and `max` would drop it)."""
        if high < math.inf:
            x = self.let(tirx.Select(x > self.constant(high, x), self.constant(high, x), x))
        if low > -math.inf:
            x = self.let(tirx.Select(x < self.constant(low, x), self.constant(low, x), x))
        return x

    def nearbyint(self, x: Expr) -> Expr:
        """The whole number nearest to x, ties to even."""
        return tirx.nearbyint(x) if self.rounds else self._signed(self._nearest(x), x)

    def trunc(self, x: Expr) -> Expr:
        """The whole number next to x towards 0."""
        if self.rounds:
            return tirx.trunc(x)
        whole = self._nearest(x)
        return self._signed(self.let(whole - self._one_where(whole > tirx.abs(x), x)), x)

    def floor(self, x: Expr) -> Expr:
        """The whole number next to x below, which the target has no instruction for."""
        whole = self.let(self._signed(self._nearest(x), x))
        return whole - self._one_where(whole > x, x)

    def ceil(self, x: Expr) -> Expr:
        """The whole number next to x above, which the target has no instruction for."""
        whole = self.let(self._signed(self._nearest(x), x))
        return whole + self._one_where(whole < x, x)

    def _nearest(self, x: Expr) -> Expr:
        """`|x|` rounded; from where on all numbers are whole, `|x|` itself, infinities and NaN too."""
        limit = self.constant(2.0**52 if _is_float64(x) else 2.0**23, x)
        magnitude = self.let(tirx.abs(x))
        return self.let(tirx.Select(magnitude < limit, self.let(magnitude + limit) - limit, magnitude))

    def _signed(self, magnitude: Expr, x: Expr) -> Expr:
        return tirx.Select(x < self.constant(0.0, x), -magnitude, magnitude)

    def _one_where(self, condition: Expr, like: Expr) -> Expr:
        return tirx.Select(condition, self.constant(1.0, like), self.constant(0.0, like))

    def _type(self, dtype: str) -> str:
        return dtype if self.lanes == 1 else f"{dtype}x{self.lanes}"

    def _spread(self, value: Expr) -> Expr:
        return value if self.lanes == 1 else tirx.Broadcast(value, self.lanes)

    def _replace_call(self, node: Call) -> Expr:
        name = getattr(node.op, "name", "")
        rounding = None if self.rounds else _ROUNDINGS.get(name)
        builder = rounding or _BUILDERS.get(name)
        if builder is None or not isinstance(node.ty, PrimType):
            return node
        half = _is_float16(node) and not rounding
        if not (half or _is_float32(node) or (rounding and _is_float64(node))):
            return node
        self.lanes = int(node.ty.dtype.lanes)
        if half and name not in _EXACT:
            wide = [a if _is_float32(a) else self.cast("float32", self.let(a)) for a in node.args]
            return self.let(self.cast("float16", self.let(builder(self, *map(self.let, wide)))))
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
            return Call(inner.op, arguments, ret_ty=inner.ty)

        return tvm_ffi.structural_map(branch, (Call, on_call))

    return tirx.if_then_else(condition, guarded(branches[0], condition), guarded(branches[1], tirx.Not(condition)))


def _is_float32(value: Expr) -> bool:
    return str(value.ty.dtype).startswith("float32")


def _is_float16(value: Expr) -> bool:
    return str(value.ty.dtype).startswith("float16")


def _is_float64(value: Expr) -> bool:
    return str(value.ty.dtype).startswith("float64")


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
    """E^r 2^n of x = n ln 2 + r."""
    return _scaled_exp(b, *_reduce_exponent(b, b.clamp(x, -104.0, 89.0)))


def _scaled_exp(b: _Block, n: Expr, r: Expr) -> Expr:
    """`(1 + r + r^2 q(r)) * 2^(n / 2) * 2^(n - n / 2)`: two factors reach subnormals and infinity."""
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
    exponent = b.let(b.cast("float32", n) + tirx.Select(subnormal, b.f(-23.0), b.f(0.0)))
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


def _wide_log2(b: _Block, x: Expr) -> Expr:
    """The logarithm to base 2 of a float64 that is no subnormal one, within 1e-11 of itself: as `_log`, in float64."""
    bits = b.let(b.wide_bits(x))
    high = b.cast("int32", bits >> b.cast("int64", b.i(32)))
    n = b.let((high - b.i(0x3FE6A09E)) >> b.i(20))  # 0x3FE6A09E: the upper half of sqrt(1/2)
    f = b.let(b.from_wide_bits(bits - (b.cast("int64", n) << b.cast("int64", b.i(52)))) - b.d(1.0))
    s = b.let(f / (b.d(2.0) + f))
    finite = b.cast("float64", n) + s * b.horner(LOG2, b.let(s * s))
    out = b.let(tirx.Select(x < b.d(math.inf), finite, x))  # infinity and NaN give themselves
    out = b.let(tirx.Select(x < b.d(0.0), b.d(math.nan), out))
    return tirx.Select(tirx.EQ(x, b.d(0.0)), b.d(-math.inf), out)


def _power(b: _Block, x: Expr, exponent: Expr) -> Expr:
    """By at most three multiplications or a square root where a constant exponent permits, else `2^(exponent * log2 |x|)`."""
    constant = exponent.value if isinstance(exponent, tirx.Broadcast) else exponent
    if isinstance(constant, tirx.FloatImm):
        match float(constant.value):
            case 1.0:
                return x
            case 2.0:
                return x * x
            case 3.0:
                return x * x * x
            case 0.5:
                return tirx.sqrt(x)
            case -0.5:
                return b.f(1.0) / tirx.sqrt(x)
            case -1.0:
                return b.f(1.0) / x
            case -2.0:  # the square of the reciprocal: that of x may overflow where the result is a number
                inverse = b.let(b.f(1.0) / x)
                return inverse * inverse
    return _general_power(b, x, exponent)


def _general_power(b: _Block, x: Expr, exponent: Expr) -> Expr:
    """`+-2^n e^r` of `exponent * log2 |x| = n + r / ln 2`; the sign and NaN of a negative x as C's `pow` has them."""
    magnitude = b.let(tirx.abs(x))
    product = b.let(b.cast("float64", exponent) * _wide_log2(b, b.let(b.cast("float64", magnitude))))
    product = tirx.Select(tirx.EQ(magnitude, b.f(1.0)), b.d(0.0), product)  # also where the exponent is infinite
    product = b.clamp(b.let(product), -152.0, 130.0)
    shifted = b.let(product + b.d(WIDE_ROUND_MAGIC))
    r = b.let(b.cast("float32", (product - (shifted - b.d(WIDE_ROUND_MAGIC))) * b.d(math.log(2.0))))
    value = b.let(_scaled_exp(b, b.let(b.cast("int32", b.wide_bits(shifted))), r))
    half = b.let(exponent * b.f(0.5))
    whole = tirx.EQ(b.let(b.trunc(exponent)), exponent)
    sign = tirx.Select(tirx.EQ(b.let(b.trunc(half)), half), b.i(0), b.bits(x) & b.i(-0x80000000))
    signed = b.let(b.from_bits(b.bits(value) | tirx.Select(whole, sign, b.i(0))))
    real = tirx.Select(magnitude < b.f(math.inf), b.from_bits(b.i(0x7FC00000)), signed)
    out = tirx.Select(x < b.f(0.0), tirx.Select(whole, signed, real), signed)
    return tirx.Select(tirx.EQ(exponent, b.f(0.0)), b.f(1.0), out)


def _remainder(b: _Block, x: Expr, y: Expr) -> Expr:
    """`x - trunc(x / y) y`, exactly, as C's `fmod`: long division in float64 by 29 bits of the quotient at a time.

    These and the 24 of the divisor make a product of 53 bits, and what is left is a multiple of a unit in the last place of x or
    y: all is exact, and where the quotient was rounded up to a whole number the rest is negative.
    """
    divisor = b.let(b.cast("float64", tirx.abs(y)))
    finite = b.let(tirx.Select(tirx.EQ(divisor, b.d(math.inf)), b.d(2.0**128), divisor))

    def step(rest: Expr, scaled: Expr) -> tuple[Expr, Expr]:
        below = b.let(rest - b.trunc(b.let(rest / scaled)) * scaled)
        return tirx.Select(below < b.d(0.0), below + scaled, below), scaled * b.d(2.0**-QUOTIENT_BITS)

    steps = -(-LARGEST_QUOTIENT_BITS // QUOTIENT_BITS)
    first = finite * b.d(2.0 ** (QUOTIENT_BITS * (steps - 1)))
    rest, _ = b.repeat(steps, step, b.cast("float64", tirx.abs(x)), first)
    return _with_sign(b, b.cast("float32", rest), x)


def _quadrant(b: _Block, x: Expr) -> tuple[Expr, Expr]:
    """N mod 4, with more bits above, and r of `x = n pi/2 + r`, `|r| <= pi/4`."""
    wide = b.let(b.cast("float64", x))
    far = tirx.abs(wide) >= b.d(2.0**FAR)
    scaled = b.let(tirx.Select(far, wide * b.d(2.0**-FAR), wide))
    parts = []
    for near_slice, far_slice in zip(_slices(0), _slices(FAR), strict=True):
        product = b.let(scaled * tirx.Select(far, b.d(far_slice), b.d(near_slice)))
        parts.append(b.let(product - b.d(4.0) * b.nearbyint(b.let(product * b.d(0.25)))))
    shifted = b.let(((parts[0] + parts[1]) + (parts[2] + parts[3])) + b.d(WIDE_ROUND_MAGIC))
    turns = parts[0] - (shifted - b.d(WIDE_ROUND_MAGIC))
    r = ((turns + parts[1]) + (parts[2] + parts[3])) * b.d(math.pi / 2)
    return b.let(b.cast("int32", b.wide_bits(shifted))), b.let(b.cast("float32", r))


def _slices(shift: int) -> list[float]:
    """`2^shift * 2 / pi` without multiples of 2^25 as a sum of floats, all but the last as short as `SLICES` says."""
    bits = TWO_OVER_PI << shift & (1 << 25 + TWO_OVER_PI_BITS) - 1
    found = []
    for weight in SLICES:
        taken = bits >> weight + TWO_OVER_PI_BITS
        found.append(math.ldexp(taken, weight))
        bits -= taken << weight + TWO_OVER_PI_BITS
    return [*found, math.ldexp(bits, -TWO_OVER_PI_BITS)]


def _sin_and_cos(b: _Block, r: Expr) -> tuple[Expr, Expr]:
    """Both for `|r| <= pi/4`."""
    t = b.let(r * r)
    sine = b.let(r + r * (t * b.horner(SIN, t)))
    cosine = b.let((b.f(1.0) - b.f(0.5) * t) + t * t * b.horner(COS, t))
    return sine, cosine


def _sin_of_quarters(b: _Block, x: Expr, quarters: int) -> Expr:
    """`sin(x + quarters * pi/2)`."""
    n, r = _quadrant(b, x)
    sine, cosine = _sin_and_cos(b, r)
    n = b.let(n + b.i(quarters)) if quarters else n
    value = tirx.Select(tirx.EQ(n & b.i(1), b.i(0)), sine, cosine)
    return b.from_bits(b.bits(b.let(value)) ^ ((n & b.i(2)) << b.i(30)))


def _sin(b: _Block, x: Expr) -> Expr:
    """+-sin r or +-cos r by the quadrant; x itself where it is small, -0 included."""
    return tirx.Select(tirx.abs(x) < b.f(2.0**-12), x, b.let(_sin_of_quarters(b, x, 0)))


def _cos(b: _Block, x: Expr) -> Expr:
    """`sin(x + pi/2)`."""
    return _sin_of_quarters(b, x, 1)


def _tan(b: _Block, x: Expr) -> Expr:
    """`sin r / cos r` in even quadrants, `-cos r / sin r` in odd ones."""
    n, r = _quadrant(b, x)
    sine, cosine = _sin_and_cos(b, r)
    even = tirx.EQ(n & b.i(1), b.i(0))
    quotient = tirx.Select(even, sine, -cosine) / tirx.Select(even, cosine, sine)
    return tirx.Select(tirx.abs(x) < b.f(2.0**-12), x, b.let(quotient))


def _odd(b: _Block, coefficients: Sequence[float], x: Expr) -> Expr:
    """`x + x^3 p(x^2)`."""
    t = b.let(x * x)
    return x + x * (t * b.horner(coefficients, t))


def _folded_asin(b: _Block, x: Expr) -> tuple[Expr, Expr]:
    """Whether `|x| > 1/2`, and `asin(s)` of `s = |x|` or, there, of `s = sqrt((1 - |x|) / 2)`: `asin |x| = pi/2 - 2 asin(s)`."""
    magnitude = b.let(tirx.abs(x))
    steep = magnitude > b.f(0.5)
    s = tirx.Select(steep, tirx.sqrt(b.let((b.f(1.0) - magnitude) * b.f(0.5))), magnitude)
    return steep, b.let(_odd(b, ASIN, b.let(s)))


def _asin(b: _Block, x: Expr) -> Expr:
    steep, part = _folded_asin(b, x)
    return _with_sign(b, tirx.Select(steep, b.f(PI_2_HI) - (b.f(2.0) * part - b.f(PI_2_LO)), part), x)


def _acos(b: _Block, x: Expr) -> Expr:
    """`pi/2 - asin x`, with `2 asin(s)` whole where x is near 1."""
    steep, part = _folded_asin(b, x)
    twice = b.let(b.f(2.0) * part)
    near_ends = tirx.Select(x < b.f(0.0), b.f(2 * PI_2_HI) - (twice - b.f(2 * PI_2_LO)), twice)
    return tirx.Select(steep, near_ends, b.f(PI_2_HI) - (b.let(_with_sign(b, part, x)) - b.f(PI_2_LO)))


def _atan(b: _Block, x: Expr) -> Expr:
    """`atan a = k pi/4 + atan z`: z = a, (a - 1) / (a + 1) or -1 / a, at most tan(pi/8)."""
    magnitude = b.let(tirx.abs(x))
    low, high = magnitude > b.f(math.sqrt(2.0) - 1.0), magnitude > b.f(math.sqrt(2.0) + 1.0)

    def chosen(near: Expr, middle: Expr, far: Expr) -> Expr:
        return tirx.Select(high, far, tirx.Select(low, middle, near))

    one = b.f(1.0)
    z = chosen(magnitude, magnitude - one, b.f(-1.0)) / chosen(one, magnitude + one, magnitude)
    part = _odd(b, ATAN, b.let(z)) + chosen(b.f(0.0), b.f(PI_2_LO / 2), b.f(PI_2_LO))
    return _with_sign(b, chosen(b.f(0.0), b.f(PI_2_HI / 2), b.f(PI_2_HI)) + part, x)


def _half_exp_of_abs(b: _Block, x: Expr) -> Expr:
    """`e^|x| / 2`, which overflows later than e^|x|."""
    n, r = _reduce_exponent(b, b.clamp(b.let(tirx.abs(x)), -math.inf, 91.0))
    return b.let(_scaled_exp(b, b.let(n - b.i(1)), r))


def _sinh(b: _Block, x: Expr) -> Expr:
    """A polynomial up to 1, `h - 1 / (4 h)` with h = e^|x| / 2 beyond."""
    h = _half_exp_of_abs(b, x)
    beyond = b.let(_with_sign(b, h - b.f(0.25) / h, x))
    return tirx.Select(tirx.abs(x) < b.f(1.0), _odd(b, SINH, x), beyond)


def _cosh(b: _Block, x: Expr) -> Expr:
    """`h + 1 / (4 h)`."""
    h = _half_exp_of_abs(b, x)
    return h + b.f(0.25) / h


def _logarithm(b: _Block, x: Expr, factor: float) -> Expr:
    """`factor * log x` in float32 of a float64."""
    return b.cast("float32", _wide_log2(b, b.let(x)) * b.d(factor * math.log(2.0)))


def _asinh(b: _Block, x: Expr) -> Expr:
    """`log(a + sqrt(a^2 + 1))` with the sign of x; x itself where it is small."""
    magnitude = b.let(tirx.abs(x))
    wide = b.let(b.cast("float64", magnitude))
    value = b.let(_logarithm(b, wide + tirx.sqrt(wide * wide + b.d(1.0)), 1.0))
    return tirx.Select(magnitude < b.f(2.0**-12), x, _with_sign(b, value, x))


def _acosh(b: _Block, x: Expr) -> Expr:
    """`log(x + sqrt(x - 1) sqrt(x + 1))`, whose roots are NaN wherever x is below 1."""
    wide = b.let(b.cast("float64", x))
    return _logarithm(b, wide + tirx.sqrt(wide - b.d(1.0)) * tirx.sqrt(wide + b.d(1.0)), 1.0)


def _atanh(b: _Block, x: Expr) -> Expr:
    """`log((1 + a) / (1 - a)) / 2` with the sign of x; x itself where it is small."""
    magnitude = b.let(tirx.abs(x))
    wide = b.let(b.cast("float64", magnitude))
    value = b.let(_logarithm(b, (b.d(1.0) + wide) / (b.d(1.0) - wide), 0.5))
    return tirx.Select(magnitude < b.f(2.0**-12), x, _with_sign(b, value, x))


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
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "asin": _asin,
    "acos": _acos,
    "atan": _atan,
    "sinh": _sinh,
    "cosh": _cosh,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "pow": _power,
    "fmod": _remainder,
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

_EXACT: Final = frozenset({"sepwise.relu", "sepwise.clip"})
"""Comparisons and nothing else, in any type."""

_BUILDERS: Final[dict[str, Callable[..., Expr]]] = {
    **{f"sepwise.{name}": builder for name, builder in (_FUNCTIONS | _ACTIVATIONS).items()},
    **{f"tirx.{name}": builder for name, builder in _FUNCTIONS.items() if name != "expm1"},
    "tirx.log1p": _any_log1p,
    "tirx.log2": _log_base(2.0),
    "tirx.log10": _log_base(10.0),
}


_ROUNDINGS: Final[dict[str, Callable[[_Block, Expr], Expr]]] = {
    "tirx.trunc": _Block.trunc,
    "tirx.floor": _Block.floor,
    "prim.ceil": _Block.ceil,
    "tirx.nearbyint": _Block.nearbyint,
}
"""Written out where the target has no instruction for them."""


def _register_operators() -> None:
    """Makes TVM know our calls as pure and vectorisable, and its own that we write out as vectorisable."""
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
    for name in _BUILDERS:
        if name in known and name.startswith("tirx."):
            Op.get(name).set_attr("TVectorizable", True, plevel=11)


_register_operators()
