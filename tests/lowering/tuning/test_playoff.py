"""The play-off, with whole networks whose times a script gives."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from sepwise.lowering.selection import Pick, Records
from sepwise.lowering.tuning.intervals import Interval
from sepwise.lowering.tuning.playoff import LEAST_ROUNDS, Result, Standing, Team, play, play_structures

A, B = (Pick(name, ()) for name in "ab")
CALLS = {"first": (0, 2), "second": (1,)}
DEFAULT_US = (10.0, 20.0, 10.0, 5.0)


class Scripted:
    """A network of four calls; what `first` takes is that of calls 0 and 2, call 3 is of no workload that is tuned."""

    def __init__(self, records: Records, factors: Mapping[tuple[str, Pick], float], rng: np.random.Generator, extra: float) -> None:
        times = list(DEFAULT_US)
        for workload, calls in CALLS.items():
            for call in calls if workload in records else ():
                times[call] *= factors[workload, records[workload]]
        times[3] += extra if len(records) > 1 else 0.0
        self.times, self.rng, self.closed = times, rng, False
        self.records, self.played = records, 0

    def time_network(self, rounds: int) -> list[list[float]]:
        self.played += 1
        cold = [[9.0 * time] * (rounds - 1) for time in self.times]
        return [[*first, time * float(np.exp(0.02 * self.rng.standard_normal()))] for first, time in zip(cold, self.times, strict=True)]

    def close(self) -> None:
        self.closed = True


def run(
    factors: Mapping[tuple[str, Pick], float],
    leaders: Mapping[str, list[Pick]],
    *,
    extra: float = 0.0,
    kept: Records | None = None,
    time_left: Callable[[int], float] = lambda _: math.inf,
    final_seconds: float = 0.0,
    played: list[int] | None = None,
) -> Result:
    """Plays; `time_left` is told how often networks were run until then, which `played` has in the end."""
    rng, loaded = np.random.default_rng(0), []

    def load(records: Records) -> Scripted:
        loaded.append(Scripted(records, factors, rng, extra))
        return loaded[-1]

    def count() -> int:
        return sum(each.played for each in loaded)

    left = lambda: time_left(count())  # noqa: E731
    result = play(load, leaders, CALLS, exact=False, kept=kept, time_left=left, final_seconds=final_seconds)
    assert all(each.closed for each in loaded)
    assert sum(not each.records for each in loaded) == 1
    if played is not None:
        played.append(count())
    return result


def test_what_is_faster_in_the_network_is_chosen() -> None:
    result = run({("first", A): 0.7, ("second", A): 0.8}, {"first": [A], "second": [A]})
    assert {workload: standing.pick for workload, standing in result.standings.items()} == {"first": A, "second": A}
    assert result.median == pytest.approx(0.7 * 20 + 0.8 * 20 + 5, rel=0.02)
    assert result.default_median == pytest.approx(45, rel=0.02)
    assert result.interval.high < 0.8
    times = result.standings["first"].times
    assert times.minimum <= times.median < times.default_minimum <= times.default_median == pytest.approx(20, rel=0.02)


def test_what_only_was_faster_alone_is_not() -> None:
    result = run({("first", A): 0.7, ("second", A): 1.01}, {"first": [A], "second": [A]})
    assert result.standings["first"].pick == A
    assert result.standings["second"].pick is None
    times = result.standings["second"].times
    assert (times.median, times.minimum) == (times.default_median, times.default_minimum)


def test_the_second_best_may_win() -> None:
    result = run({("first", A): 0.95, ("first", B): 0.6}, {"first": [A, B]})
    assert result.standings["first"].pick == B


def test_a_mixture_of_teams_plays_by_itself() -> None:
    factors = {("first", A): 0.95, ("first", B): 0.6, ("second", A): 0.5, ("second", B): 0.9}
    result = run(factors, {"first": [A, B], "second": [A, B]})
    assert {workload: standing.pick for workload, standing in result.standings.items()} == {"first": B, "second": A}
    assert result.median == pytest.approx(0.6 * 20 + 0.5 * 20 + 5, rel=0.02)


def test_nothing_stays_where_the_whole_is_slower() -> None:
    result = run({("first", A): 0.9, ("second", A): 0.9}, {"first": [A], "second": [A]}, extra=30.0)
    assert all(standing.pick is None for standing in result.standings.values())
    assert result.median == result.default_median


@pytest.mark.parametrize("leaders", [{}, {"first": [A]}])
def test_what_was_settled_before_counts_for_the_whole(leaders: dict[str, list[Pick]]) -> None:
    result = run({("first", A): 0.5, ("second", B): 0.6}, leaders, kept={"second": B})
    assert set(result.standings) == {"first"}
    assert result.default_median == pytest.approx(45, rel=0.02)
    assert result.median == pytest.approx((10 if leaders else 20) + 12 + 5, rel=0.02)


def test_without_leaders_the_default_is_timed() -> None:
    result = run({}, {})
    assert all(standing.pick is None for standing in result.standings.values())
    assert result.standings["second"].times.median == pytest.approx(20, rel=0.02)


def test_where_new_ones_lose_what_was_settled_before_is_reported_as_it_is() -> None:
    """Not as if it had gained nothing."""
    result = run({("first", A): 0.9, ("second", B): 0.5}, {"first": [A]}, kept={"second": B}, extra=30.0)
    assert result.standings["first"].pick is None
    assert set(result.standings) == {"first"}
    assert result.interval.ratio == pytest.approx(35 / 45, rel=0.02)
    assert result.median == pytest.approx(35, rel=0.02)


def test_what_was_settled_before_is_taken_back_where_it_is_slower() -> None:
    result = run({("second", B): 1.5}, {}, kept={"second": B})
    assert (result.standings["second"].pick, result.standings["second"].interval) == (None, Interval(1.0, 1.0, 1.0))
    assert result.median == result.default_median == pytest.approx(45, rel=0.02)


def test_only_what_is_slower_is_taken_back() -> None:
    result = run({("first", A): 0.9, ("second", B): 1.5}, {}, kept={"first": A, "second": B})
    assert result.standings.keys() == {"second"}
    assert result.median == pytest.approx(18 + 20 + 5, rel=0.02)


def test_what_was_settled_before_does_not_hide_that_new_ones_cost_time() -> None:
    """All together is faster than the default, and slower than without them."""
    result = run({("first", A): 0.9, ("second", B): 0.5}, {"first": [A]}, kept={"second": B}, extra=8.0)
    assert result.standings["first"].pick is None
    assert result.median == pytest.approx(20 + 10 + 5, rel=0.02)


# Out of time ------------------------------------------------------------------------------------------------------------


def test_a_match_that_time_cuts_off_keeps_the_default() -> None:
    """A gain that 8 rounds cannot tell from noise."""
    factors = {("first", A): 0.972}
    assert run(factors, {"first": [A]}).standings["first"].pick == A
    played: list[int] = []
    result = run(factors, {"first": [A]}, time_left=lambda _: -1.0, played=played)
    assert (result.standings["first"].pick, result.standings["first"].cut_off) == (None, True)
    assert result.median == result.default_median
    assert played == [2 * LEAST_ROUNDS]


def test_what_is_sure_in_the_least_rounds_is_chosen_without_time() -> None:
    result = run({("first", A): 0.5}, {"first": [A]}, time_left=lambda _: -1.0)
    assert (result.standings["first"].pick, result.standings["first"].cut_off) == (A, False)


@pytest.mark.parametrize("time_left", [100, 0])
def test_the_last_match_is_bounded_too(time_left: int) -> None:
    """A mixture plays by itself: its parts are surely faster, the whole is faster by so little that few rounds do not tell."""
    factors = {("first", A): 0.95, ("first", B): 0.7, ("second", A): 0.7, ("second", B): 0.95}
    leaders = {"first": [A, B], "second": [A, B]}
    played: list[int] = []
    result = run(factors, leaders, extra=11.6, time_left=lambda count: 3 * 16 + time_left - count, played=played)
    whole = 0.7 * 20 + 0.7 * 20 + 5 + 11.6
    if time_left:
        assert {key: standing.pick for key, standing in result.standings.items()} == {"first": B, "second": A}
        assert result.median == pytest.approx(whole, rel=0.02)
    else:
        assert all(standing.pick is None and standing.cut_off for standing in result.standings.values())
        assert result.interval == Interval(1.0, 1.0, 1.0)
        assert played == [3 * 16 + 2 * LEAST_ROUNDS]


def test_the_first_match_leaves_time_for_the_last() -> None:
    played: list[int] = []
    run({("first", A): 0.98}, {"first": [A]}, time_left=lambda count: 100 - count, final_seconds=60, played=played)
    assert played == [40]


# Structures -------------------------------------------------------------------------------------------------------------

CHAIN, OTHER = "chain/a", "chain/b"
BEFORE = Result({}, Interval(0.9, 0.9, 0.9), 40.5, 45.0)


def team(records: Records, factors: Mapping[tuple[str, Pick], float], extra: float, rng: np.random.Generator) -> Team:
    """A network whose chain has one call of 20 by default, another chain one of 20, and something else 5: cut, each has two."""
    times: list[float] = [5.0]
    chains: dict[str, tuple[int, ...]] = {}
    for key in (CHAIN, OTHER):
        if key in records:
            chains[key] = (len(times), len(times) + 1)
            times += [10.0 * factors[key, records[key]]] * 2
        else:
            chains[key] = (len(times),)
            times.append(20.0)
    times[0] += extra if len(records) > 1 else 0.0
    scripted = Scripted({}, {}, rng, 0.0)
    scripted.times = times
    return Team(scripted, chains)


def run_structures(
    factors: Mapping[tuple[str, Pick], float],
    alternatives: list[Records],
    *,
    extra: float = 0.0,
    kept: Records | None = None,
    wrong: tuple[Pick, ...] = (),
    time_left: float = math.inf,
) -> tuple[Result, list[tuple[str, Pick | None]]]:
    rng, loaded, verified = np.random.default_rng(0), [], []

    def load(records: Records) -> Team:
        loaded.append(team(records, factors, extra, rng))
        return loaded[-1]

    def verify(found: Team, key: str, standing: Standing) -> bool:
        assert len(found.chains[key]) == (1 if standing.pick is None else 2)
        verified.append((key, standing.pick))
        return standing.pick not in wrong

    result = play_structures(load, BEFORE, {}, alternatives, verify, exact=False, kept=kept, time_left=lambda: time_left)
    assert all(each.timed.closed for each in loaded)
    return result, verified


def test_a_structure_that_is_faster_is_verified_and_chosen() -> None:
    result, verified = run_structures({(CHAIN, A): 0.7, (OTHER, A): 1.2}, [{CHAIN: A, OTHER: A}])
    assert {key: standing.pick for key, standing in result.standings.items()} == {CHAIN: A, OTHER: None}
    assert result.standings[CHAIN].times.median == pytest.approx(14, rel=0.02)
    assert result.standings[CHAIN].times.default_median == pytest.approx(20, rel=0.02)
    assert verified == [(CHAIN, A), (CHAIN, None)]
    assert result.median == pytest.approx(14 + 20 + 5, rel=0.02)
    assert result.default_median == pytest.approx(45, rel=0.02)


def test_of_several_structures_the_fastest_that_is_right_is_chosen() -> None:
    factors = {(CHAIN, A): 0.6, (CHAIN, B): 0.8}
    assert run_structures(factors, [{CHAIN: B}, {CHAIN: A}])[0].standings[CHAIN].pick == A
    result, verified = run_structures(factors, [{CHAIN: B}, {CHAIN: A}], wrong=(A,))
    assert result.standings[CHAIN].pick == B
    assert [pick for _, pick in verified] == [A, B, None]
    result, _ = run_structures(factors, [{CHAIN: B}, {CHAIN: A}], wrong=(A, B))
    assert result.standings[CHAIN].pick is None
    assert (result.interval, result.median, result.default_median) == (BEFORE.interval, BEFORE.median, BEFORE.default_median)


def test_a_default_that_is_wrong_is_no_measure() -> None:
    result, _ = run_structures({(CHAIN, A): 0.6}, [{CHAIN: A}], wrong=(None,))  # type: ignore[arg-type]
    assert result.standings[CHAIN].pick is None


def test_structures_stay_where_the_whole_is_slower() -> None:
    result, _ = run_structures({(CHAIN, A): 0.9, (OTHER, A): 0.9}, [{CHAIN: A, OTHER: A}], extra=30.0)
    for standing in result.standings.values():
        times = standing.times
        assert standing.pick is None
        assert (times.median, times.minimum) == (times.default_median, times.default_minimum)
    assert result.median == BEFORE.median


def test_structures_that_were_settled_before_count_for_the_whole() -> None:
    result, verified = run_structures({(OTHER, B): 0.5}, [], kept={OTHER: B})
    assert not result.standings
    assert not verified
    assert result.median == pytest.approx(20 + 10 + 5, rel=0.02)


def test_where_new_structures_lose_those_before_are_reported_as_they_are() -> None:
    result, _ = run_structures({(CHAIN, A): 0.9, (OTHER, B): 0.5}, [{CHAIN: A}], kept={OTHER: B}, extra=30.0)
    assert result.standings[CHAIN].pick is None
    assert result.median == pytest.approx(20 + 10 + 5, rel=0.02)
    assert result.interval.ratio == pytest.approx(35 / 45, rel=0.02)


def test_structures_settled_before_do_not_hide_that_new_ones_cost_time() -> None:
    result, _ = run_structures({(CHAIN, A): 0.9, (OTHER, B): 0.5}, [{CHAIN: A}], kept={OTHER: B}, extra=8.0)
    assert result.standings[CHAIN].pick is None
    assert result.median == pytest.approx(20 + 10 + 5, rel=0.02)


def test_structures_settled_before_are_taken_back_where_they_are_slower() -> None:
    result, _ = run_structures({(OTHER, B): 1.5}, [], kept={OTHER: B})
    assert result.standings[OTHER].pick is None
    assert result.median == pytest.approx(45, rel=0.02)


def test_each_structure_that_has_played_is_told() -> None:
    result, _ = run_structures({(CHAIN, A): 0.7, (CHAIN, B): 1.3}, [{CHAIN: A}, {CHAIN: B}])
    ratios = {pick: interval.ratio for pick, interval in result.standings[CHAIN].played.items()}
    assert ratios == {A: pytest.approx(0.7, rel=0.02), B: pytest.approx(1.3, rel=0.02)}
    assert result.standings[CHAIN].interval.ratio == ratios[A]


def test_structures_that_time_cuts_off_stay() -> None:
    factors = {(CHAIN, A): 0.97}
    assert run_structures(factors, [{CHAIN: A}])[0].standings[CHAIN].pick == A
    result, verified = run_structures(factors, [{CHAIN: A}], time_left=-1.0)
    assert (result.standings[CHAIN].pick, result.standings[CHAIN].cut_off) == (None, True)
    assert not verified
