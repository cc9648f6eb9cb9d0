"""The play-off, with whole networks whose times a script gives."""

from collections.abc import Mapping

import numpy as np
import pytest

from sepwise.lowering.selection import Pick, Records
from sepwise.lowering.tuning.intervals import Interval
from sepwise.lowering.tuning.playoff import Result, Standing, Team, play, play_structures

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

    def time_network(self, rounds: int) -> list[list[float]]:
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
) -> Result:
    rng, loaded = np.random.default_rng(0), []

    def load(records: Records) -> Scripted:
        loaded.append(Scripted(records, factors, rng, extra))
        return loaded[-1]

    calls = {workload: own for workload, own in CALLS.items() if workload not in (kept or {})}
    result = play(load, leaders, calls, exact=False, kept=kept)
    assert all(each.closed for each in loaded)
    return result


def test_what_is_faster_in_the_network_is_chosen() -> None:
    result = run({("first", A): 0.7, ("second", A): 0.8}, {"first": [A], "second": [A]})
    assert {workload: standing.pick for workload, standing in result.standings.items()} == {"first": A, "second": A}
    assert result.median == pytest.approx(0.7 * 20 + 0.8 * 20 + 5, rel=0.02)
    assert result.default_median == pytest.approx(45, rel=0.02)
    assert result.interval.high < 0.8
    assert result.standings["first"].default_median == pytest.approx(20, rel=0.02)


def test_what_only_was_faster_alone_is_not() -> None:
    result = run({("first", A): 0.7, ("second", A): 1.01}, {"first": [A], "second": [A]})
    assert result.standings["first"].pick == A
    assert result.standings["second"].pick is None
    assert result.standings["second"].median == result.standings["second"].default_median


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
    assert result.standings["second"].median == pytest.approx(20, rel=0.02)


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
) -> tuple[Result, list[tuple[str, Pick | None]]]:
    rng, loaded, verified = np.random.default_rng(0), [], []

    def load(records: Records) -> Team:
        loaded.append(team(records, factors, extra, rng))
        return loaded[-1]

    def verify(found: Team, key: str, standing: Standing) -> bool:
        assert len(found.chains[key]) == (1 if standing.pick is None else 2)
        verified.append((key, standing.pick))
        return standing.pick not in wrong

    result = play_structures(load, BEFORE, {}, alternatives, verify, exact=False, kept=kept)
    assert all(each.timed.closed for each in loaded)
    return result, verified


def test_a_structure_that_is_faster_is_verified_and_chosen() -> None:
    result, verified = run_structures({(CHAIN, A): 0.7, (OTHER, A): 1.2}, [{CHAIN: A, OTHER: A}])
    assert {key: standing.pick for key, standing in result.standings.items()} == {CHAIN: A, OTHER: None}
    assert result.standings[CHAIN].median == pytest.approx(14, rel=0.02)
    assert result.standings[CHAIN].default_median == pytest.approx(20, rel=0.02)
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
    assert result.standings == {
        key: Standing(None, standing.interval, standing.default_median, standing.default_median, standing.rounds)
        for key, standing in result.standings.items()
    }
    assert result.median == BEFORE.median


def test_structures_that_were_settled_before_count_for_the_whole() -> None:
    result, verified = run_structures({(OTHER, B): 0.5}, [], kept={OTHER: B})
    assert not result.standings
    assert not verified
    assert result.median == pytest.approx(20 + 10 + 5, rel=0.02)
