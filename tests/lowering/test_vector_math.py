import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import s_tir, te, tirx

from sepwise.lowering import device, vector_math
from sepwise.passes.errors import UnsupportedError
from sepwise.passes.vocabulary import ACTIVATION_PARAMETERS

COUNT = 1 << 18
LANES = 8
LARGEST = float(np.finfo(np.float32).max)

FLATTEN = tvm.ir.transform.Sequential(
    [
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.VectorizeLoop(),
    ]
)

RANGES = {
    "exp": (-110.0, 95.0),
    "expm1": (-30.0, 79.0),
    "log": (0.0, 3.4e38),
    "log1p": (0.0, 1.0),
    "sigmoid": (-110.0, 110.0),
    "tanh": (-12.0, 12.0),
    "erf": (-5.0, 5.0),
    "sin": (-LARGEST, LARGEST),
    "cos": (-LARGEST, LARGEST),
    "tan": (-LARGEST, LARGEST),
    "asin": (-1.0, 1.0),
    "acos": (-1.0, 1.0),
    "atan": (-LARGEST, LARGEST),
    "sinh": (-90.0, 90.0),
    "cosh": (-90.0, 90.0),
    "asinh": (-LARGEST, LARGEST),
    "acosh": (1.0, LARGEST),
    "atanh": (-1.0, 1.0),
}
PAIRS = ("pow", "fmod")

PARAMETERS = {"clip": (0.0, 6.0), "leaky_relu": (0.1,), "elu": (1.5,), "hard_sigmoid": (0.2, 0.5)}


def exact_erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x])


def exact_sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sigmoid": exact_sigmoid,
    "tanh": np.tanh,
    "erf": exact_erf,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "pow": np.power,
    "fmod": np.fmod,
}

EXACT_ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x, low, high: np.clip(x, low, high),
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "elu": lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
    "sigmoid": exact_sigmoid,
    "tanh": np.tanh,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda x: x * exact_sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + exact_erf(x * math.sqrt(0.5))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
}


def elementwise(build: Callable[..., Any], count: int = COUNT, operands: int = 1, dtype: str = "float32") -> tirx.PrimFunc:
    sources = [te.placeholder((count,), dtype, name=f"source{index}") for index in range(operands)]
    result = te.compute((count,), lambda i: build(*(source[i] for source in sources)), name="result")
    schedule = s_tir.Schedule(te.create_prim_func([*sources, result]))
    (loop,) = schedule.get_loops(schedule.get_sblock("result"))
    schedule.vectorize(schedule.split(loop, [None, LANES])[1])
    module = FLATTEN(schedule.mod)
    return vector_math.replace_math(module["main"])


def every_scale(low: float, high: float) -> np.ndarray:
    """Half of the points evenly spread, half evenly over all magnitudes, subnormal ones included."""
    rng = np.random.default_rng(0)
    even = rng.uniform(low, high, COUNT // 2)
    magnitude = np.exp(rng.uniform(math.log(1e-42), math.log(max(-low, high)), COUNT // 2))
    return np.concatenate([even, np.clip(magnitude * rng.choice([-1, 1], COUNT // 2), low, high)]).astype(np.float32)


@pytest.fixture(scope="module")
def functions(native):
    named = {name: elementwise(functools.partial(vector_math.call, name)) for name in RANGES}
    pairs = {name: elementwise(functools.partial(vector_math.call, name), operands=2) for name in PAIRS}
    return native({**named, **pairs}, device.get("x86-64-v3"))


def check_ulp(functions, name, *operands):
    y = np.empty_like(operands[0])
    functions(name, *operands, y)
    with np.errstate(all="ignore"):
        exact = EXACT[name](*(x.astype(np.float64) for x in operands))
        rounded = exact.astype(np.float32)
        errors = np.abs(y - exact) / np.spacing(np.abs(rounded)).astype(np.float64)
    overflow = np.abs(exact) > LARGEST * (1 + 2.0**-20)
    finite = np.abs(exact) < LARGEST * (1 - 2.0**-20)
    assert np.array_equal(y[overflow], rounded[overflow])
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    assert np.count_nonzero(finite) > COUNT // 8
    assert errors[finite].max() <= vector_math.MAX_ULP[name]


@pytest.mark.parametrize("name", RANGES)
def test_error_stays_below_the_stated_ulp(functions, name):
    check_ulp(functions, name, every_scale(*RANGES[name]))


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_whole_quarters_of_a_turn(functions, name):
    """The float32 next to multiples of pi / 2, where almost all digits of the argument cancel; among them the nearest of all."""
    quarters = np.random.default_rng(0).integers(1, 2**23, COUNT - 1) * (np.pi / 2)
    check_ulp(functions, name, np.append(quarters, 16367173 * 2.0**72).astype(np.float32))


def test_powers_near_one_and_of_every_size(functions):
    rng = np.random.default_rng(0)
    base = every_scale(0.0, 1e38)
    base[: COUNT // 2] = 1 + rng.uniform(-1, 1, COUNT // 2) * 2.0 ** rng.integers(-23, 0, COUNT // 2)
    with np.errstate(all="ignore"):
        reach = 150 / np.abs(np.log2(base.astype(np.float64)))
    exponent = np.clip(rng.uniform(-1, 1, COUNT) * reach, -1e30, 1e30).astype(np.float32)
    check_ulp(functions, "pow", base, exponent)
    check_ulp(functions, "pow", -base, np.rint(exponent))


def test_remainders_are_exact(functions):
    x, y = every_scale(-LARGEST, LARGEST), np.random.default_rng(1).permutation(every_scale(-LARGEST, LARGEST))
    check_ulp(functions, "fmod", x, y)
    check_ulp(functions, "fmod", x, (x / (1 + np.abs(np.rint(y)))).astype(np.float32))
    check_ulp(functions, "fmod", np.clip(x, -1e3, 1e3), np.clip(y, -7, 7))


@pytest.mark.parametrize("name", PAIRS)
def test_limits_of_pairs(functions, name):
    at = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 2.5, 16777217.0], np.float32)
    x, y = np.ones((2, COUNT), np.float32)
    x[: at.size**2], y[: at.size**2] = (grid.ravel() for grid in np.meshgrid(at, at))
    check_ulp(functions, name, x, y)
    found = np.empty_like(x)
    functions(name, x, y, found)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    numbers, infinite = ~np.isnan(exact), np.isinf(exact)
    assert np.array_equal(np.isinf(found), infinite)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(exact[numbers]))


@pytest.mark.parametrize(
    ("name", "at", "values"),
    [
        ("exp", [np.nan, np.inf, -np.inf, 0.0, 1000.0, -1000.0], [np.nan, np.inf, 0.0, 1.0, np.inf, 0.0]),
        ("sigmoid", [np.nan, np.inf, -np.inf, 0.0], [np.nan, 1.0, 0.0, 0.5]),
        ("tanh", [np.nan, np.inf, -np.inf, -0.0], [np.nan, 1.0, -1.0, -0.0]),
        ("erf", [np.nan, np.inf, -np.inf, -0.0], [np.nan, 1.0, -1.0, -0.0]),
        ("log", [np.nan, np.inf, -1.0, 0.0, 1.0], [np.nan, np.inf, np.nan, -np.inf, 0.0]),
        ("sin", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.nan, np.nan, 0.0, -0.0]),
        ("cos", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.nan, np.nan, 1.0, 1.0]),
        ("tan", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.nan, np.nan, 0.0, -0.0]),
        ("asin", [np.nan, np.inf, 1.5, 0.0, -0.0, -1.0], [np.nan, np.nan, np.nan, 0.0, -0.0, -np.pi / 2]),
        ("acos", [np.nan, np.inf, -1.5, 1.0, -1.0], [np.nan, np.nan, np.nan, 0.0, np.pi]),
        ("atan", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.pi / 2, -np.pi / 2, 0.0, -0.0]),
        ("sinh", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.inf, -np.inf, 0.0, -0.0]),
        ("cosh", [np.nan, np.inf, -np.inf, 0.0], [np.nan, np.inf, np.inf, 1.0]),
        ("asinh", [np.nan, np.inf, -np.inf, 0.0, -0.0], [np.nan, np.inf, -np.inf, 0.0, -0.0]),
        ("acosh", [np.nan, np.inf, -np.inf, 0.5, -2.0, -1e10, -LARGEST, 1.0], [np.nan, np.inf, *[np.nan] * 5, 0.0]),
        ("atanh", [np.nan, 2.0, -1.0, 1.0, 0.0, -0.0], [np.nan, np.nan, -np.inf, np.inf, 0.0, -0.0]),
    ],
)
def test_limits(functions, name, at, values):
    x = np.ones(COUNT, np.float32)
    x[: len(at)] = at
    y = np.empty_like(x)
    functions(name, x, y)
    np.testing.assert_array_equal(y[: len(at)], np.array(values, np.float32))
    assert np.array_equal(np.signbit(y[: len(at)][~np.isnan(values)]), np.signbit(np.array(values)[~np.isnan(values)]))


@pytest.fixture(scope="module")
def activations(native):
    def builder(kind):
        return lambda x: vector_math.activation(kind, PARAMETERS.get(kind, ()), x)

    named = {kind: elementwise(builder(kind)) for kind in ACTIVATION_PARAMETERS}
    return native(named, device.get("x86-64-v3"))


@pytest.mark.parametrize("kind", ACTIVATION_PARAMETERS)
def test_activation(activations, kind):
    x = every_scale(-30.0, 30.0)
    x[0] = np.nan
    y = np.empty_like(x)
    activations(kind, x, y)
    with np.errstate(invalid="ignore"):
        exact = EXACT_ACTIVATIONS[kind](x.astype(np.float64), *PARAMETERS.get(kind, ()))
    unit = 2.0**-24
    # At most eight roundings of quantities bounded by |x| + 2, and a function's own ulp.
    assert np.isnan(y[0])
    assert np.all(np.abs(y - exact)[1:] <= 8 * unit * (np.abs(x[1:]) + 2))
    small = np.abs(x[1:]) < 1e-3
    if kind in ("tanh", "silu", "mish", "gelu", "hard_swish", "elu", "leaky_relu"):  # zero at zero: relative there
        assert np.all(np.abs(y - exact)[1:][small] <= 8 * unit * np.abs(exact[1:][small]) + 2.0**-149)


HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
"""Every float16."""


def rounds_to_half(x: np.ndarray, y: np.ndarray, exact: np.ndarray, error: np.ndarray) -> bool:
    """Whether results are exact ones with an error, rounded once to float16; where NaN is exact, NaN."""
    known = ~np.isnan(exact) & ~np.isnan(x)
    with np.errstate(over="ignore"):
        low, high = ((exact[known] + side * error[known]).astype(np.float16) for side in (-1, 1))
    return bool(np.isnan(y[~known]).all() and np.all((low <= y[known]) & (y[known] <= high)))


@pytest.fixture(scope="module")
def halves(native):
    kinds = {
        kind: elementwise(lambda x, k=kind: vector_math.activation(k, PARAMETERS.get(k, ()), x), HALVES.size, dtype="float16")
        for kind in ACTIVATION_PARAMETERS
    }
    tvms = {name: elementwise(getattr(tirx, name), HALVES.size, dtype="float16") for name in ("exp", "log", "erf", "sin")}
    return native({**kinds, **tvms}, device.get("x86-64-v3"))


@pytest.mark.parametrize("kind", ACTIVATION_PARAMETERS)
def test_activation_of_every_float16(halves, kind):
    y = np.empty_like(HALVES)
    halves(kind, HALVES, y)
    x = HALVES.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = EXACT_ACTIVATIONS[kind](x, *PARAMETERS.get(kind, ()))
        error = 8 * 2.0**-24 * (np.abs(np.nan_to_num(x, posinf=0, neginf=0)) + 2)
    if kind in ("relu", "clip"):
        np.testing.assert_array_equal(y, exact.astype(np.float16))
        return
    finite = np.isfinite(x) | np.isnan(x)  # at infinity some give their limit where the formula has NaN
    assert rounds_to_half(x[finite], y[finite], exact[finite], error[finite])


@pytest.mark.parametrize("name", ["exp", "log", "erf", "sin"])
def test_function_of_every_float16(halves, name):
    y = np.empty_like(HALVES)
    halves(name, HALVES, y)
    x = HALVES.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        exact = EXACT[name](x)
        error = np.nan_to_num(vector_math.MAX_ULP[name] * 2.0**-23 * np.abs(exact), posinf=0)
    assert rounds_to_half(x, y, exact, error)


def test_float16_needs_no_library(foreign_symbols):
    kinds = {
        kind: elementwise(lambda x, k=kind: vector_math.activation(k, PARAMETERS.get(k, ()), x), 64, dtype="float16")
        for kind in ACTIVATION_PARAMETERS
    }
    assert foreign_symbols(kinds, device.get("cortex-a76")) == []


def test_unknown_activation_is_refused():
    with pytest.raises(UnsupportedError, match=r"Activation 'swoosh' has no kernel"):
        vector_math.activation("swoosh", (), tirx.FloatImm("float32", 1.0))


@pytest.mark.parametrize("name", ["cortex-a72", "cortex-a7", "x86-64-v2"])
def test_objects_need_no_libm(foreign_symbols, name):
    named = {function: elementwise(functools.partial(vector_math.call, function), 64) for function in RANGES}
    named.update({pair: elementwise(functools.partial(vector_math.call, pair), 64, operands=2) for pair in PAIRS})
    kinds = {
        kind: elementwise(lambda x, k=kind: vector_math.activation(k, PARAMETERS.get(k, ()), x), 64)
        for kind in ACTIVATION_PARAMETERS
    }
    assert foreign_symbols({**named, **kinds}, device.get(name)) == []


ROUNDINGS = {"trunc": np.trunc, "floor": np.floor, "ceil": np.ceil, "nearbyint": np.rint}


def test_roundings_without_an_instruction(native, monkeypatch):
    """Of Armv7-A, on this machine: exact for every number, also as parts of other functions."""
    functions = {name: elementwise(getattr(tirx, name)) for name in ROUNDINGS}
    functions |= {f"wide_{name}": elementwise(widened(getattr(tirx, name))) for name in ROUNDINGS}
    parts = {name: elementwise(functools.partial(vector_math.call, name)) for name in ("sin", "tan")}
    monkeypatch.setattr(vector_math, "_has_rounding", lambda function: False)
    written = {name: vector_math.replace_math(function) for name, function in functions.items()}
    written |= {f"own_{name}": elementwise(functools.partial(vector_math.call, name)) for name in parts}
    assert not any(f"T.{name}(" in str(function) for function in written.values() for name in ROUNDINGS)
    x = every_scale(-LARGEST, LARGEST)
    edges = [0.5, 1.5, 2.5, 0.49999997, 0.99999994, 1.0, 8388607.5, 8388608.0, 8388609.0, 4194303.75, 1e-40, np.inf, np.nan]
    x[: 2 * len(edges)] = [*edges, *(-edge for edge in edges)]
    run = native(written | parts, device.get("x86-64-v3"))
    for symbol in written:
        found = np.empty_like(x)
        run(symbol, x, found)
        name = symbol.split("_")[-1]
        wanted = np.empty_like(x)
        if name in ROUNDINGS:
            wanted = ROUNDINGS[name](x)
        else:
            run(name, x, wanted)
        np.testing.assert_array_equal(found, wanted, err_msg=symbol)


def widened(function):
    return lambda x: tirx.Cast("float32", function(tirx.Cast("float64", x)))


def test_replace_math(native):
    def sampled(x):
        return tirx.exp(x) + tirx.erf(tirx.tanh(x)) * tirx.sigmoid(x) + tirx.pow(x, tirx.FloatImm("float32", 2.0))

    function = elementwise(sampled)
    assert not any(f"T.{name}(" in str(function) for name in ("exp", "erf", "tanh", "sigmoid", "pow"))
    x = np.linspace(-3, 3, COUNT, dtype=np.float32)
    y = np.empty_like(x)
    native({"sampled": function}, device.get("x86-64-v3"))("sampled", x, y)
    d = x.astype(np.float64)
    exact = np.exp(d) + exact_erf(np.tanh(d)) * exact_sigmoid(d) + d * d
    assert np.all(np.abs(y - exact) <= 8 * 2.0**-24 * (np.exp(d) + 1 + d * d))
