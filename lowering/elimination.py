"""The least sum of cost tables over discrete variables, by eliminating one variable after the other.

    min over a, b, c of  f(a, b) + g(b, c)   =   min over a, b of  f(a, b) + (min over c of  g(b, c))

All tables that mention a variable are added up and replaced by their minimum over it; the variable whose sum is smallest
goes first (Bertelè and Brioschi 1972, "Nonserial Dynamic Programming"). On chains with shared values, as networks are, the
sums stay small and the result is exact. A variable whose sum would be too large is set instead to the state of the least
lower bound.
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
        The state of each variable; of equal sums always the same.

    Example:
        >>> minimize([Table(("a",), np.array([0.0, 2.0])), Table(("a", "b"), np.array([[5.0, 4.0], [1.0, 3.0]]))])
        {'a': 1, 'b': 0}
    """
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
    while sizes:
        variable = min(sizes, key=sizes.__getitem__)
        exact = sizes[variable] <= largest
        if not exact:
            variable = max(sizes, key=sizes.__getitem__)
        *others, _ = around = scope(variable)
        old = touching.pop(variable)
        del sizes[variable]
        if exact:
            total = sum((_spread(table, around) for table in old), np.zeros((1,) * len(around)))
            best.append((variable, tuple(others), total.argmin(-1)))
            new = [Table(tuple(others), total.min(-1))]
        else:
            state = int(np.argmin(sum(_spread(table, around).reshape(-1, states[variable]).min(0) for table in old)))
            best.append((variable, (), np.array(state)))
            new = [_restricted(table, variable, state) for table in old]
        for other in others:
            kept = [table for table in touching[other] if variable not in table.variables]
            touching[other] = kept + [table for table in new if other in table.variables]
        for other in others:
            sizes[other] = size(other)
    found: dict[Hashable, int] = {}
    for variable, others, choice in reversed(best):
        found[variable] = int(choice[tuple(found[other] for other in others)])
    return {variable: found[variable] for variable in states}


def _spread(table: Table, around: Sequence[Hashable]) -> np.ndarray:
    """The costs with one axis for each variable of `around`, of extent 1 for those that the table has not."""
    order = sorted(range(len(table.variables)), key=lambda axis: around.index(table.variables[axis]))
    shape = [table.costs.shape[table.variables.index(v)] if v in table.variables else 1 for v in around]
    return table.costs.transpose(order).reshape(shape)


def _restricted(table: Table, variable: Hashable, state: int) -> Table:
    """The table for one state of a variable."""
    axis = table.variables.index(variable)
    return Table(table.variables[:axis] + table.variables[axis + 1 :], table.costs.take(state, axis))
