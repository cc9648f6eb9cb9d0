import json

import numpy as np
import pytest

from sepwise.passes.equivalence import Agreement, compare_answers
from sepwise.passes.equivalence.compare import ELEMENTWISE_SIGMAS


def answer(right: np.ndarray, actual: np.ndarray, tolerance: float = 1e-3) -> Agreement:
    (found,) = compare_answers({"y": actual}, {"y": right}, {"y": np.full(right.shape, tolerance / ELEMENTWISE_SIGMAS)})
    return found


def counts(found: Agreement) -> tuple[int, int, int]:
    return found.places, found.agreeing, found.undecided


def test_the_class_of_each_row() -> None:
    right = np.array([[1.0, 3.0, 2.0], [5.0, -1.0, 0.0], [1.0, 1.0015, 0.0]])
    same = answer(right, right.astype(np.float32))
    assert (same.axis, same.threshold, *counts(same)) == (1, None, 3, 3, 0)
    other = right.copy()
    other[0] = [1.0, 2.0, 3.0]  # a mistake
    other[2] = [1.001, 1.0, 0.0]  # either may be larger
    assert counts(answer(right, other)) == (3, 1, 1)
    assert counts(answer(right, other, tolerance=0.0)) == (3, 1, 0)


@pytest.mark.parametrize("axis", [1, 2])
def test_shares_tell_the_axis(axis: int) -> None:
    right = np.random.default_rng(0).random((2, 4, 5))
    right /= right.sum(axis, keepdims=True)
    found = answer(right, right)
    assert (found.axis, *counts(found)) == (axis, right.size // right.shape[axis], right.size // right.shape[axis], 0)


def test_what_was_found_counts_and_the_background_does_not() -> None:
    right = np.zeros((1, 1, 10, 10))
    right[..., 2:4, 2:4] = 0.9
    right[..., 5, 5] = 0.5005
    actual = right.copy()
    actual[..., 2, 2] = 0.3
    actual[..., 8, 8] = 0.7
    actual[..., 5, 5] = 0.4999
    found = answer(right, actual)
    assert (found.axis, found.threshold, *counts(found)) == (None, 0.5, 6, 3, 1)


@pytest.mark.parametrize(("channels", "expected"), [(1, (None, 0.0)), (3, (1, None))])
def test_maps_of_other_values(channels: int, expected: tuple[int | None, float | None]) -> None:
    found = answer(*[np.random.default_rng(0).standard_normal((1, channels, 6, 6))] * 2)
    assert (found.axis, found.threshold) == expected
    assert found.places == found.agreeing > 0


@pytest.mark.parametrize(
    "right", [np.zeros(5), np.array([[1, 2]]), np.full((1, 3), np.nan), np.zeros((1, 0))], ids=["vector", "whole", "nan", "empty"]
)
def test_some_outputs_answer_nothing(right: np.ndarray) -> None:
    assert compare_answers({"y": right}, {"y": right}, {"y": np.zeros(right.shape)}) == ()


def test_a_wrong_shape_answers_nothing() -> None:
    assert compare_answers({"y": np.zeros((1, 3))}, {"y": np.zeros((1, 4))}, {"y": np.zeros((1, 4))}) == ()


def test_it_can_be_read() -> None:
    found = Agreement("y", 1, None, 7, 5, 1)
    assert str(found) == "y: the same is largest along axis 1 at 5 of 7 places, 1 too close to tell"
    assert str(Agreement("m", None, 0.5, 7, 7, 0)) == "m: the same is above 0.5 at 7 of 7 places"
    assert json.loads(json.dumps(found.to_json()))["places"] == 7
