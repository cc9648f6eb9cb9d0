"""The cheapest division of things between two sides, as a minimum cut of a network of capacities.

Every thing takes side 0 or side 1. What a division costs is a sum of terms `c if u is on side 0 and v is on side 1`: an arc from
u to v of capacity c. The cheapest division is a minimum cut between two terminals that stand for the sides, found as the
residual reach of a maximum flow (Ford and Fulkerson 1956), along shortest paths (Edmonds and Karp 1972).
"""

from collections import deque
from collections.abc import Hashable

__all__ = ["Division"]


class Division:
    """Things on two sides and what it costs to part them.

    Attributes:
        SIDES: The terminals: whatever is `SIDES[0]` is on side 0, `SIDES[1]` on side 1.

    Example:
        >>> division = Division()
        >>> division.part(Division.SIDES[0], "a", 3)
        >>> division.part("a", Division.SIDES[1], 2)
        >>> division.solve()
        (2, set())
    """

    SIDES = ("side 0", "side 1")

    def __init__(self) -> None:
        """Nothing costs anything yet."""
        self._capacity: dict[Hashable, dict[Hashable, float]] = {side: {} for side in self.SIDES}

    def part(self, first: Hashable, second: Hashable, cost: float) -> None:
        """Adds what it costs if the first is on side 0 and the second on side 1.

        Args:
            first: A thing or one of `SIDES`.
            second: Another one.
            cost: At least 0; `math.inf` where it must not be.
        """
        ahead, back = (self._capacity.setdefault(thing, {}) for thing in (first, second))
        ahead[second] = ahead.get(second, 0) + cost
        back.setdefault(first, 0)

    def solve(self) -> tuple[float, set[Hashable]]:
        """Finds a cheapest division; of several that with the most on side 1.

        Returns:
            What it costs, and what is on side 1.
        """
        source, sink = self.SIDES
        residual = {thing: dict(arcs) for thing, arcs in self._capacity.items()}
        total: float = 0
        while True:
            before: dict[Hashable, Hashable] = {source: source}
            queue = deque([source])
            while queue and sink not in before:
                here: Hashable = queue.popleft()
                for there, capacity in residual[here].items():
                    if capacity > 0 and there not in before:
                        before[there] = here
                        queue.append(there)  # type: ignore[arg-type]
            if sink not in before:
                return total, {thing for thing in residual if thing not in before and thing != sink}
            path, thing = [], sink
            while thing != source:
                path.append((before[thing], thing))
                thing = before[thing]  # type: ignore[assignment]
            flow = min(residual[here][there] for here, there in path)
            for here, there in path:
                residual[here][there] -= flow
                residual[there][here] += flow
            total += flow
