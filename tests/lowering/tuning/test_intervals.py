"""Intervals of medians: that they hold what they claim, and tell nothing that they do not know."""

import math

import numpy as np
import pytest

from sepwise.lowering.tuning.intervals import DOUBT, LEAST_ESTIMATED_GAIN, LEAST_GAIN, Interval, compare


def test_it_misses_the_median_as_seldom_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(4000):
        found = compare(np.exp(rng.standard_cauchy(40).clip(-9, 9)).tolist(), [1.0] * 40)
        missed += not found.low <= 1 <= found.high
    assert missed / 4000 < DOUBT


def test_what_disturbs_both_cancels() -> None:
    drift = np.geomspace(1, 30, 24)
    found = compare((0.8 * drift).tolist(), drift.tolist())
    assert (found.low, found.ratio, found.high) == pytest.approx((0.8, 0.8, 0.8))
    assert found.faster


def test_single_outliers_do_not_matter() -> None:
    ours = [0.8] * 24
    ours[3] = ours[17] = 50.0
    assert compare(ours, [1.0] * 24).high == 0.8


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_a_few_samples_tell_nothing(samples: int) -> None:
    found = compare([0.1] * samples, [1.0] * samples)
    assert (found.low, found.high) == (0.0, math.inf)
    assert not found.faster
    assert found.undecided


def test_eight_samples_are_the_fewest() -> None:
    """2 / 2^8 is below the doubt, 2 / 2^7 is not."""
    assert 2 / 2**8 < DOUBT < 2 / 2**7
    assert compare([0.1] * 8, [1.0] * 8).faster


def test_a_computed_time_needs_one_sample() -> None:
    assert compare([3.0], [4.0], exact=True) == Interval(0.75, 0.75, 0.75, LEAST_ESTIMATED_GAIN)


def test_small_gains_are_not_believed() -> None:
    gain = 1 - LEAST_GAIN / 2
    found = compare([gain] * 100, [1.0] * 100)
    assert not found.faster
    assert not found.undecided
    assert not found.hopeful
    assert compare([gain], [1.0], exact=True).faster
    assert not compare([1 - LEAST_ESTIMATED_GAIN / 2], [1.0], exact=True).faster
