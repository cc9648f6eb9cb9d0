"""What is left of the time, and what is predicted of it, by a clock that stands still but where it is moved."""

import math
from types import SimpleNamespace

import pytest

from sepwise.lowering.tuning import budget
from sepwise.lowering.tuning.budget import REBUILD, Budget
from sepwise.lowering.tuning.playoff import ROUNDS, RUNS


class Clock:
    """Tells the time that it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def spend(own: Budget, clock: Clock, step: budget.Step, seconds: float, times: int = 1) -> None:
    with own.measure(step, times):
        clock.now += seconds


def test_it_counts_from_the_start_that_it_is_told(clock: Clock) -> None:
    own = Budget(30.0, started=95.0)
    clock.now += 2.0
    assert (own.spent, own.left) == (7.0, 23.0)
    assert Budget(30.0).left == 30.0


def test_without_a_limit_there_is_always_time(clock: Clock) -> None:
    own = Budget()
    clock.now += 1e6
    assert own.left == math.inf
    assert own.allows(1e9)


def test_what_took_longest_is_predicted(clock: Clock) -> None:
    own = Budget(1000.0)
    spend(own, clock, "load", 1.0)
    spend(own, clock, "load", 3.0)
    spend(own, clock, "load", 2.0)
    spend(own, clock, "run", 1.0, times=5)
    assert own.predict(loads=2, runs=10) == pytest.approx(8.0)


def test_another_build_is_predicted_by_its_object_until_it_was_measured(clock: Clock) -> None:
    own = Budget(1000.0)
    spend(own, clock, "build", 9.0)
    spend(own, clock, "object", 4.0)
    assert own.predict(builds=1, rebuilds=2) == 9.0 + 2 * 4.0 * REBUILD
    spend(own, clock, "rebuild", 5.0)
    assert own.predict(builds=1, rebuilds=2) == 19.0


@pytest.mark.parametrize("exact", [True, False])
def test_a_play_off_takes_its_builds_loads_and_rounds(clock: Clock, exact: bool) -> None:
    own = Budget(1000.0)
    spend(own, clock, "rebuild", 10.0)
    spend(own, clock, "load", 1.0)
    spend(own, clock, "run", 0.01)
    spend(own, clock, "check", 5.0)
    runs = 0.01 if exact else 0.01 * RUNS * ROUNDS
    final = 11.0 + (0.01 if exact else 2 * runs)
    assert own.predict_final(exact=exact) == pytest.approx(final)
    assert own.predict_play(0, exact=exact) == pytest.approx(1.0 + runs)
    assert own.predict_play(2, exact=exact) == pytest.approx(20.0 + 3.0 + 3 * runs + final)
    last = 10.0 + 2.0 + (2 if exact else 3) * runs
    assert own.predict_structures(2, exact=exact) == pytest.approx(30.0 + 3.0 + 3 * runs + 10.0 + last)


def test_what_ends_hardly_later_is_allowed(clock: Clock) -> None:
    own = Budget(100.0)
    clock.now += 90.0
    assert own.allows(14.0)
    assert not own.allows(16.0)
    clock.now += 20.0  # the time is over
    assert own.allows(4.0)
    assert not own.allows(6.0)
