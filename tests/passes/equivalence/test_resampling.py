"""Resize as matrices: positions, weights and sizes worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest

from sepwise.passes.equivalence.formats import BINARY32, BINARY64
from sepwise.passes.equivalence.graph import Operation
from sepwise.passes.equivalence.resampling import axis_weights, nearest_indices, read_plan, resize
from sepwise.passes.errors import InputError, UnsupportedError

X = np.arange(1.0, 5.0).reshape(1, 1, 4)


def operation(version: int = 19, name: str = "Resize", **attributes: object) -> Operation:
    return Operation(name, version, "", ("x", "", "scales", "sizes"), ("y",), attributes)


def run(op: Operation, *, scales: list[float] | None = None, sizes: list[int] | None = None) -> list[float]:
    given = [None, None if scales is None else np.array(scales), None if sizes is None else np.array(sizes)]
    return resize(op, X, *given).reshape(-1).tolist()


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("floor", [1, 1, 2, 2, 3, 3, 4, 4]),
        ("ceil", [1, 2, 2, 3, 3, 4, 4, 4]),
        ("round_prefer_floor", [1, 1, 2, 2, 3, 3, 4, 4]),
        ("round_prefer_ceil", [1, 2, 2, 3, 3, 4, 4, 4]),
    ],
)
def test_nearest_rounds_as_asked(rounding: str, expected: list[float]) -> None:
    """Positions 0, 1/2, 1, ...: halves go either way."""
    op = operation(coordinate_transformation_mode="asymmetric", nearest_mode=rounding)
    assert run(op, scales=[1, 1, 2]) == expected


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        ("asymmetric", [1, 1.5, 2, 2.5, 3, 3.5, 4, 4]),
        ("half_pixel", [1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]),
        ("half_pixel_symmetric", [1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]),
        ("pytorch_half_pixel", [1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]),
    ],
)
def test_linear_doubles(coordinates: str, expected: list[float]) -> None:
    assert run(operation(mode="linear", coordinate_transformation_mode=coordinates), scales=[1, 1, 2]) == expected


def test_aligned_corners_keep_both_ends() -> None:
    op = operation(mode="linear", coordinate_transformation_mode="align_corners")
    assert run(op, sizes=[1, 1, 7]) == [1, 1.5, 2, 2.5, 3, 3.5, 4]


@pytest.mark.parametrize(("coordinates", "expected"), [("half_pixel", [2.5]), ("pytorch_half_pixel", [1]), ("align_corners", [1])])
def test_a_single_output(coordinates: str, expected: list[float]) -> None:
    assert run(operation(mode="linear", coordinate_transformation_mode=coordinates), sizes=[1, 1, 1]) == expected


def test_cubic_weights_of_a_half() -> None:
    """With a = -3/4 a point between two samples weighs them -3/32, 19/32, 19/32, -3/32; at the border the last is repeated."""
    op = operation(mode="cubic", coordinate_transformation_mode="asymmetric")
    plan = read_plan(op, X, None, np.array([1.0, 1, 2]))
    weights = axis_weights(op, plan, 2, 4)
    np.testing.assert_array_equal(weights[3] * 32, [-3, 19, 19, -3])
    np.testing.assert_array_equal(weights[1] * 32, [16, 19, -3, 0])
    np.testing.assert_array_equal(weights.sum(axis=1), 1)


def test_what_is_outside_may_be_left_out() -> None:
    op = operation(mode="cubic", coordinate_transformation_mode="asymmetric", exclude_outside=1)
    weights = axis_weights(op, read_plan(op, X, None, np.array([1.0, 1, 2])), 2, 4)
    np.testing.assert_array_equal(weights[1], np.array([19, 19, -3, 0]) / 35)


@pytest.mark.parametrize(
    ("policy", "scale", "size"), [("stretch", 2.5, 10), ("not_larger", 2.0, 8), ("not_smaller", 2.5, 10)]
)
def test_aspect_ratio(policy: str, scale: float, size: int) -> None:
    x = np.zeros((1, 1, 5, 4))
    op = operation(keep_aspect_ratio_policy=policy, axes=[2, 3])
    plan = read_plan(op, x, None, None, np.array([10, 10]))
    assert (plan.scales[3], plan.sizes[3]) == (scale, size)
    assert plan.sizes[2] == {"stretch": 10, "not_larger": 10, "not_smaller": 13}[policy]


@pytest.mark.parametrize("op", [operation(9, "Upsample"), operation(10)])
def test_old_operators_are_asymmetric_and_round_down(op: Operation) -> None:
    plan = read_plan(op, X, np.array([1.0, 1, 2]))
    assert (plan.coordinates, plan.rounding, plan.sizes) == ("asymmetric", "floor", (1, 1, 8))
    assert [index.tolist() for index in nearest_indices(plan, 2, 4)] == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_between_two_elements_either_is_the_nearest() -> None:
    """The ninth of 17 out of 14 lies at 6.5, which float64 makes a little more of."""
    x = np.arange(14.0).reshape(1, 1, 14)
    op = operation(mode="nearest", coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor")
    sizes = np.array([1, 1, 17])
    exact, *others = nearest_indices(read_plan(op, x, None, None, sizes), 2, 14)
    assert exact[8] == 6
    assert {int(index[8]) for index in others} == {7}
    drawn = [resize(op, x, None, None, sizes, rng=np.random.default_rng(seed))[0, 0] for seed in range(8)]
    assert {int(each[8]) for each in drawn} == {6, 7}
    assert all(np.array_equal(np.delete(each, 8), np.delete(exact, 8)) for each in drawn)
    assert np.array_equal(resize(op, x, None, None, sizes)[0, 0], exact)


@pytest.mark.parametrize(("scale", "before", "after"), [(1 / 3, 12, 4), (2.4, 5, 12), (0.6, 5, 3), (2.3, 10, 23)])
def test_a_factor_in_binary32_means_the_quotient_of_the_sizes(scale: float, before: int, after: int) -> None:
    op = operation(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    plan = read_plan(op, np.zeros((1, 1, before)), None, np.array([1, 1, scale], np.float32))
    assert (plan.sizes[2], plan.ratios[2]) == (after, Fraction(after, before))
    assert nearest_indices(plan, 2, before)[0].tolist() == [i * before // after for i in range(after)]


def test_scales_of_an_attribute() -> None:
    assert read_plan(operation(7, "Upsample", scales=[1.0, 1.0, 3.0]), X).sizes == (1, 1, 12)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"antialias": 1}, "antialias or crop"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "antialias or crop"),
        ({"mode": "area"}, "mode 'area'"),
        ({"nearest_mode": "up"}, "nearest_mode 'up' is not known; use one of round_prefer_floor"),
        ({"coordinate_transformation_mode": "odd"}, "coordinate_transformation_mode 'odd' is not supported"),
    ],
)
def test_what_is_not_known_is_refused(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        run(operation(**attributes), scales=[1, 1, 2])


def test_neither_scales_nor_sizes() -> None:
    with pytest.raises(InputError, match="neither scales nor sizes are given"):
        run(operation())


CUBIC_TERMS = [[1.25, 2.25, 0, 1], [6, 15, 12, 3]]  # of a weight, at most: at a distance of 1, and of 2 at which the others are largest
SUM_NOISE = {
    "linear": 2 * BINARY64.unit,  # p and 1 - p
    "cubic": 5 * BINARY32.unit * np.sqrt(2 * np.square(CUBIC_TERMS).sum()),  # two weights of either kind, each rounded by itself
}


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"])
def test_nothing_is_rounded_where_all_positions_are_short(mode: str, coordinates: str) -> None:
    op = operation(mode=mode, coordinate_transformation_mode=coordinates)
    for size, rounded in ((2, False), (8, False), (5, True)):
        plan = read_plan(op, X, None, None, np.array([1, 1, size]))
        drawn = axis_weights(op, plan, 2, 4, np.random.default_rng(0))
        assert np.array_equal(drawn, axis_weights(op, plan, 2, 4)) != rounded
        np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=0, atol=SUM_NOISE[mode])
