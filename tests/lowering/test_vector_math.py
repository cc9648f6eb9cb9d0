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
}

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


def elementwise(build: Callable[[Any], Any], count: int = COUNT) -> tirx.PrimFunc:
    source = te.placeholder((count,), name="source")
    result = te.compute((count,), lambda i: build(source[i]), name="result")
    schedule = s_tir.Schedule(te.create_prim_func([source, result]))
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
    named = {name: elementwise(lambda x, n=name: vector_math.call(n, x)) for name in RANGES}
    return native(named, device.get("x86-64-v3"))


@pytest.mark.parametrize("name", RANGES)
def test_error_stays_below_the_stated_ulp(functions, name):
    x = every_scale(*RANGES[name])
    y = np.empty_like(x)
    functions(name, x, y)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        errors = np.abs(y - exact) / np.spacing(np.abs(rounded)).astype(np.float64)
    overflow = np.abs(exact) > LARGEST * (1 + 2.0**-20)
    finite = np.abs(exact) < LARGEST * (1 - 2.0**-20)
    assert np.array_equal(y[overflow], rounded[overflow])
    assert errors[finite].max() <= vector_math.MAX_ULP[name]


@pytest.mark.parametrize(
    ("name", "at", "values"),
    [
        ("exp", [np.nan, np.inf, -np.inf, 0.0, 1000.0, -1000.0], [np.nan, np.inf, 0.0, 1.0, np.inf, 0.0]),
        ("sigmoid", [np.nan, np.inf, -np.inf, 0.0], [np.nan, 1.0, 0.0, 0.5]),
        ("tanh", [np.nan, np.inf, -np.inf, -0.0], [np.nan, 1.0, -1.0, -0.0]),
        ("erf", [np.nan, np.inf, -np.inf, -0.0], [np.nan, 1.0, -1.0, -0.0]),
        ("log", [np.nan, np.inf, -1.0, 0.0, 1.0], [np.nan, np.inf, np.nan, -np.inf, 0.0]),
    ],
)
def test_limits(functions, name, at, values):
    x = np.zeros(COUNT, np.float32)
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


def test_unknown_activation_is_refused():
    with pytest.raises(UnsupportedError, match=r"Activation 'swoosh' has no kernel"):
        vector_math.activation("swoosh", (), tirx.FloatImm("float32", 1.0))


@pytest.mark.parametrize("name", ["cortex-a72", "x86-64-v2"])
def test_objects_need_no_libm(foreign_symbols, name):
    named = {function: elementwise(lambda x, f=function: vector_math.call(f, x), 64) for function in RANGES}
    kinds = {
        kind: elementwise(lambda x, k=kind: vector_math.activation(k, PARAMETERS.get(k, ()), x), 64)
        for kind in ACTIVATION_PARAMETERS
    }
    assert foreign_symbols({**named, **kinds}, device.get(name)) == []


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
