import itertools
import math

import hypothesis.strategies as st
from hypothesis import given, settings

from sepwise.passes.minimum_cut import Division

THINGS = (*Division.SIDES, "a", "b", "c", "d", "e")


def cost(costs: dict[tuple[str, str], float], side: set[str]) -> float:
    """What it costs that those are on side 1."""
    return sum(each for (first, second), each in costs.items() if first not in side and second in side)


def solve(costs: dict[tuple[str, str], float]) -> tuple[float, set[str]]:
    division = Division()
    for (first, second), each in costs.items():
        division.part(first, second, each)
    total, side = division.solve()
    return total, {str(thing) for thing in side}


@given(st.dictionaries(st.tuples(st.sampled_from(THINGS), st.sampled_from(THINGS)).filter(lambda pair: pair[0] != pair[1]), st.integers(0, 9)))
@settings(deadline=None)
def test_the_cheapest_division_with_the_most_on_side_1(costs: dict[tuple[str, str], float]) -> None:
    total, side = solve(costs)
    free = {thing for pair in costs for thing in pair} - set(Division.SIDES)
    divisions = [set(chosen) for size in range(len(free) + 1) for chosen in itertools.combinations(free, size)]
    priced = [(cost(costs, {*chosen, Division.SIDES[1]}), chosen) for chosen in divisions]
    assert total == min(each for each, _ in priced)
    assert total == cost(costs, {*side, Division.SIDES[1]})
    assert all(chosen <= side for each, chosen in priced if each == total)


def test_what_must_not_be_parted_is_on_one_side() -> None:
    zero, one = Division.SIDES
    assert solve({(zero, "a"): 5, ("a", "b"): math.inf, ("b", one): 2}) == (2, set())
    assert solve({(zero, "a"): 2, ("a", "b"): math.inf, ("b", one): 5}) == (2, {"a", "b"})


def test_costs_of_one_pair_add_up() -> None:
    division = Division()
    zero, one = Division.SIDES
    for _ in range(2):
        division.part(zero, "a", 2)
    division.part("a", one, 3)
    assert division.solve() == (3, set())


def test_large_costs_are_exact() -> None:
    zero, one = Division.SIDES
    assert solve({(zero, "a"): 2**90 + 1, ("a", one): 2**90 + 2}) == (2**90 + 1, {"a"})
