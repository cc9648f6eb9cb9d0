"""The least sum of tables, against every combination tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering.elimination import Table, minimize


def total(tables: Sequence[Table], found: dict[Hashable, int]) -> float:
    return float(sum(table.costs[tuple(found[variable] for variable in table.variables)] for table in tables))


def least(tables: Sequence[Table]) -> float:
    states = {v: n for table in tables for v, n in zip(table.variables, table.costs.shape, strict=True)}
    return min(total(tables, dict(zip(states, choice, strict=True))) for choice in itertools.product(*map(range, states.values())))


@st.composite
def drawn(draw: st.DrawFn) -> list[Table]:
    """Tables of whole numbers, so that sums in any order are the same, some combinations impossible but never all."""
    states = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    scopes = draw(
        st.lists(st.lists(st.integers(0, len(states) - 1), min_size=0, max_size=3, unique=True), min_size=1, max_size=10)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    possible = [int(rng.integers(n)) for n in states]
    tables = []
    for scope in scopes:
        costs = rng.integers(0, 20, [states[v] for v in scope]).astype(float)
        costs = np.where(rng.random(costs.shape) < 0.2, math.inf, costs)
        costs[tuple(possible[v] for v in scope)] = 10.0
        tables.append(Table(tuple(scope), costs))
    return tables


@given(drawn())
def test_the_sum_is_least(tables: list[Table]) -> None:
    found = minimize(tables)
    assert set(found) == {variable for table in tables for variable in table.variables}
    assert total(tables, found) == least(tables) < math.inf


@given(drawn())
def test_equal_problems_have_equal_answers(tables: list[Table]) -> None:
    assert minimize(tables) == minimize([Table(table.variables, table.costs.copy()) for table in tables])


def test_a_chain_with_a_shared_value_is_exact_where_no_table_is_large() -> None:
    """A value read by all others, as a densely connected block has it: 40 variables, tables of 3 axes at most."""
    rng = np.random.default_rng(0)
    tables = [Table(("shared", i, i + 1), rng.integers(0, 9, (2, 2, 2)).astype(float)) for i in range(39)]
    found = minimize(tables, largest=8)
    by_state = []
    for state in range(2):
        reached = np.zeros(2)
        for table in tables:
            reached = (reached[:, None] + table.costs[state]).min(0)
        by_state.append(float(reached.min()))
    assert total(tables, found) == min(by_state)


def test_where_every_table_would_be_large_the_answer_is_possible() -> None:
    rng = np.random.default_rng(0)
    tables = [Table((i, j), rng.integers(0, 9, (2, 2)).astype(float)) for i in range(12) for j in range(i)]
    found = minimize(tables, largest=16)
    worst = sum(float(table.costs.max()) for table in tables)
    assert least(tables) <= total(tables, found) < worst
    assert set(found) == set(range(12))


@given(drawn(), st.sampled_from([1, 4, 8]))
def test_where_tables_would_be_large_no_combination_is_impossible(tables: list[Table], largest: int) -> None:
    found = minimize(tables, largest=largest)
    assert set(found) == {variable for table in tables for variable in table.variables}
    assert least(tables) <= total(tables, found) < math.inf


def test_a_set_state_excludes_those_of_others() -> None:
    """Variables that all have to agree, where one of them forbids what is cheap."""
    agree = np.where(np.eye(3, dtype=bool), 0.0, math.inf)
    tables = [Table((i, j), agree) for i in range(8) for j in range(i)]
    tables += [Table((i,), np.array([0.0, 1.0, 2.0])) for i in range(7)] + [Table((7,), np.array([math.inf, math.inf, 0.0]))]
    assert set(minimize(tables, largest=9).values()) == {2}


def test_consistent_arcs_can_be_impossible_and_another_state_is_tried() -> None:
    """Of three colours two are too few for a triangle, which no single arc shows; the cheap state leaves but two."""
    differ = np.where(np.eye(3, dtype=bool), math.inf, 0.0)
    triangle = [Table((a, b), differ) for a, b in ("ab", "bc", "ca")]
    allowed = np.zeros((2, 3))
    allowed[0, 2] = math.inf
    cheap = Table(("s",), np.array([0.0, 5.0]))
    tables = [cheap, *triangle, *(Table(("s", v), allowed) for v in "abc")]
    found = minimize(tables, largest=1)
    assert found["s"] == 1
    assert total(tables, found) == 5.0


@pytest.mark.parametrize("largest", [1, 2**20])
def test_what_is_impossible_is_said(largest: int) -> None:
    differ = np.where(np.eye(2, dtype=bool), math.inf, 0.0)
    with pytest.raises(ValueError, match="Every combination of states is impossible"):
        minimize([Table((a, b), differ) for a, b in ("ab", "bc", "ca")], largest=largest)
    with pytest.raises(ValueError, match="Every combination of states is impossible"):
        minimize([Table(("a",), np.zeros(2)), Table((), np.array(math.inf))], largest=largest)


@pytest.mark.parametrize("variables", [("a",), ("a", "a"), ("a", "b", "c")])
def test_a_table_has_one_axis_for_each_variable(variables: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        Table(variables, np.zeros((2, 2)))
