from dataclasses import replace

import numpy as np
import pytest

from sepwise.passes.equivalence.formats import BINARY16, BINARY32, FORMATS, Format
from sepwise.passes.equivalence.graph import Operation
from sepwise.passes.equivalence.operators import OPERATORS, evaluate
from sepwise.passes.equivalence.rounding import ALLOWANCES, MOVES, NEVER_ROUND, SELECTS, SUMS, UNITS, noise_scale, repeats
from sepwise.passes.equivalence.running_error import RULES

# Their results are integers or booleans, or nothing rounds that has no rule yet.
WITHOUT_FLOATS = {
    *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonMaxSuppression", "Not", "Or", "Xor"),
}
OWN_NOISE = {*UNITS, "Resize", "Upsample"}
SCATTERS = {"ScatterElements", "ScatterND"}  # they move elements or add to them
STEP = 2.0**-16  # of a difference quotient, whose operands are exact
FUNCTION_ULPS = 4  # numpy's and scipy's functions stay within
STATED_DIGIT = 1e-4  # the table has four decimals, rounded up
NO_NOISE = {"MeanVarianceNormalization", "ReduceLogSumExp", "ReduceProd"}


def operation(name: str) -> Operation:
    return Operation(name, 24, "", ("x",), ("y",))


@pytest.mark.parametrize("name", sorted(name for name, allowance in ALLOWANCES.items() if allowance.lipschitz is not None))
def test_slopes_are_the_largest(name: str) -> None:
    x = np.arange(-12 * 2**16, 12 * 2**16 + 1) * STEP
    (y,) = evaluate(operation(name), [x])
    slope = np.abs(np.diff(y) / STEP).max()
    stated = ALLOWANCES[name].lipschitz
    assert stated is not None
    rounding = FUNCTION_ULPS * 2 * 2.0**-53 * np.abs(y).max() / STEP
    assert slope <= stated + rounding
    assert slope > stated - STATED_DIGIT - rounding


def test_every_operator_has_one_kind_of_noise() -> None:
    kinds = [set(MOVES) - SCATTERS, set(SELECTS), set(SUMS), set(ALLOWANCES), OWN_NOISE, WITHOUT_FLOATS, NO_NOISE]
    assert set(OPERATORS) <= set().union(*kinds)
    for i, one in enumerate(kinds):
        for other in kinds[i + 1 :]:
            assert not one & other


def test_every_operator_has_a_bound() -> None:
    known = set(MOVES) | set(RULES) | NEVER_ROUND | WITHOUT_FLOATS | NO_NOISE
    assert set(OPERATORS) <= known


def test_what_never_rounds_adds_no_noise() -> None:
    assert NEVER_ROUND - SELECTS == {"Abs", "Neg"}
    x = np.linspace(-1, 1, 5)
    for name in ("Relu", "Abs", "Neg", "Hardmax"):
        (y,) = evaluate(operation(name), [x])
        assert noise_scale(operation(name), [x], [y], BINARY32) is None


@pytest.mark.parametrize("arithmetic", FORMATS.values(), ids=lambda each: each.name)
def test_noise_of_a_rounding_is_one_unit(arithmetic: Format) -> None:
    x, y = np.array([3.0, -5.0]), np.array([0.5, 2.0])
    scale = noise_scale(operation("Mul"), [x, y], [x * y], arithmetic)
    assert scale is not None
    np.testing.assert_array_equal(scale, arithmetic.unit * np.abs(x * y) + arithmetic.smallest)


def test_a_cast_rounds_what_the_target_does_not_have() -> None:
    y = np.array([1.0, 1 + 2.0**-12, 3.0])
    for source, target, where in ((BINARY32, BINARY16, [1]), (BINARY16, BINARY32, []), (None, BINARY16, [1])):
        op = replace(operation("Cast"), format=target, source=source)
        scale = noise_scale(op, [y], [y], target)
        assert ([] if scale is None else np.flatnonzero(scale).tolist()) == where


@pytest.mark.parametrize("repeated", [False, True])
def test_a_sum_in_order_is_within_its_noise(repeated: bool) -> None:
    """The plainest order, whose partial sums are the longest: numbers of one sign, and one number over and over."""
    rng = np.random.default_rng(0)
    shape = (200, 1, 1) if repeated else (200, 1, 4000)
    x = np.broadcast_to(rng.uniform(1, 2, shape).astype(np.float32), (200, 1, 4000))
    total = np.cumsum(x, axis=2, dtype=np.float32)[..., -1:]
    exact = x.astype(np.float64)
    y = exact.sum(axis=2, keepdims=True)
    scale = noise_scale(operation("ReduceSum"), [exact, np.array([2])], [y], BINARY32)
    assert scale is not None
    rms = np.sqrt(np.mean(((total - y) / scale) ** 2))
    assert 0.2 < rms < 1


def test_what_repeats() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 50, 50))
    assert not repeats(x)
    assert repeats(np.where(rng.random(x.shape) < 0.5, x, 1.0))
    assert not repeats(np.empty(0))
