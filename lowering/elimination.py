"""The least sum of cost tables over discrete variables, by eliminating one variable after the other.

    min over a, b, c of  f(a, b) + g(b, c)   =   min over a, b of  f(a, b) + (min over c of  g(b, c))

All tables that mention a variable are added up and replaced by their minimum over it; the variable whose sum is smallest
goes first (Bertelè and Brioschi 1972, "Nonserial Dynamic Programming"). On chains with shared values, as networks are, the
sums stay small and the result is exact. A variable whose sum would be too large is set instead to the state of the least
lower bound; before, states that a table excludes are excluded from all others (arc consistency, Mackworth 1977), and where
nothing is possible with a state the next one is tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Table", "minimize"]

LARGEST_SUM = 2**20
"""Entries of the largest table that is made."""


@dataclass(frozen=True, eq=False)
class Table:
    """What each combination of some variables' states costs.

    Attributes:
        variables: Distinct.
        costs: One axis for each variable; infinite where a combination is impossible.
    """

    variables: tuple[Hashable, ...]
    costs: np.ndarray

    def __post_init__(self) -> None:
        """Checks that there is one axis for each variable."""
        assert self.costs.ndim == len(self.variables) == len(set(self.variables))


def minimize(tables: Sequence[Table], *, largest: int = LARGEST_SUM) -> dict[Hashable, int]:
    """Finds the states of all variables for which the sum of all tables is least.

    Args:
        tables: Tables of one variable agree on its number of states.
        largest: Entries of the largest table that may be made; the result is exact where none is larger.

    Returns:
        The state of each variable, their sum finite; of equal sums always the same.

    Raises:
        ValueError: Every combination of states is impossible.

    Example:
        >>> minimize([Table(("a",), np.array([0.0, 2.0])), Table(("a", "b"), np.array([[5.0, 4.0], [1.0, 3.0]]))])
        {'a': 1, 'b': 0}
    """
    found = _search(tables, largest)
    if found is None:
        raise ValueError("Every combination of states is impossible: it meets an infinite cost.")
    return {variable: found[variable] for table in tables for variable in table.variables}


def _search(tables: Sequence[Table], largest: int) -> dict[Hashable, int] | None:
    """Eliminates the variables whose sums are small, then tries states; None where every combination is impossible."""
    if any(math.isinf(table.costs) for table in tables if not table.variables):
        return None
    states = {
        variable: size for table in tables for variable, size in zip(table.variables, table.costs.shape, strict=True)
    }
    touching: dict[Hashable, list[Table]] = {variable: [] for variable in states}
    for table in tables:
        for variable in table.variables:
            touching[variable].append(table)

    def scope(variable: Hashable) -> tuple[Hashable, ...]:
        """The variables that share a table with one, itself last."""
        others = dict.fromkeys(v for table in touching[variable] for v in table.variables if v != variable)
        return (*others, variable)

    def size(variable: Hashable) -> int:
        return math.prod(states[v] for v in scope(variable))

    sizes = {variable: size(variable) for variable in states}
    best: list[tuple[Hashable, tuple[Hashable, ...], np.ndarray]] = []
    found: dict[Hashable, int] | None = {}
    while sizes:
        variable = min(sizes, key=sizes.__getitem__)
        if sizes[variable] > largest:
            left = dict.fromkeys(table for group in touching.values() for table in group)
            found = _branch(list(left), max(sizes, key=sizes.__getitem__), largest)
            break
        *others, _ = around = scope(variable)
        total = sum((_spread(table, around) for table in touching.pop(variable)), np.zeros((1,) * len(around)))
        del sizes[variable]
        least = Table(tuple(others), total.min(-1))
        if np.isinf(least.costs).all():
            return None
        best.append((variable, least.variables, total.argmin(-1)))
        for other in others:
            touching[other] = [table for table in touching[other] if variable not in table.variables] + [least]
        for other in others:
            sizes[other] = size(other)
    if found is None:
        return None
    for variable, others_of_it, choice in reversed(best):
        found[variable] = int(choice[tuple(found[other] for other in others_of_it)])
    return found


def _branch(tables: Sequence[Table], variable: Hashable, largest: int) -> dict[Hashable, int] | None:
    """Tries a variable's states, from the least lower bound on, until the others are possible with one."""
    tables = _make_consistent(tables)
    touching = [table for table in tables if variable in table.variables]
    bounds = np.sum([_least_by_state(table, variable) for table in touching], axis=0)
    for state in map(int, np.argsort(bounds, kind="stable")):
        if math.isinf(bounds[state]):
            break
        found = _search([_restricted(table, variable, state) for table in tables], largest)
        if found is not None:
            return {variable: state, **found}
    return None


def _make_consistent(tables: Sequence[Table]) -> list[Table]:
    """Excludes states that one table makes impossible from all tables, until that excludes no more (arc consistency)."""
    while True:
        excluded: dict[Hashable, Table] = {}
        for table in tables:
            for variable in table.variables:
                costs = np.where(np.isinf(_least_by_state(table, variable)), math.inf, 0.0)
                before = excluded.get(variable)
                excluded[variable] = Table((variable,), costs if before is None else costs + before.costs)
        narrowed = [
            Table(table.variables, sum((_spread(excluded[v], table.variables) for v in table.variables), table.costs))
            for table in tables
        ]
        if all(np.array_equal(new.costs, old.costs) for new, old in zip(narrowed, tables, strict=True)):
            return narrowed
        tables = narrowed


def _least_by_state(table: Table, variable: Hashable) -> np.ndarray:
    """The least cost with each state of a variable."""
    axis = table.variables.index(variable)
    least: np.ndarray = table.costs.min(tuple(other for other in range(table.costs.ndim) if other != axis))
    return least


def _spread(table: Table, around: Sequence[Hashable]) -> np.ndarray:
    """The costs with one axis for each variable of `around`, of extent 1 for those that the table has not."""
    order = sorted(range(len(table.variables)), key=lambda axis: around.index(table.variables[axis]))
    shape = [table.costs.shape[table.variables.index(v)] if v in table.variables else 1 for v in around]
    return table.costs.transpose(order).reshape(shape)


def _restricted(table: Table, variable: Hashable, state: int) -> Table:
    """The table for one state of a variable; itself where it has another scope."""
    if variable not in table.variables:
        return table
    axis = table.variables.index(variable)
    return Table(table.variables[:axis] + table.variables[axis + 1 :], table.costs.take(state, axis))
