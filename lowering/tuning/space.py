"""What may be tried for a workload: every tile that every strategy declares for it, and nothing else.

The default is the first of them by prediction. A search takes the others in an order that the analytic model gives, as far as
it is trusted: what is predicted to take `MOST_PREDICTED` times the default is left out, but each strategy's own best one
comes among the first, since the model compares tiles of one strategy better than strategies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.selection import Pick, tile_sizes
from sepwise.lowering.strategies import strategies_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.base import AnyStrategy, Tile
    from sepwise.lowering.workload import ConvWorkload, LinearWorkload

__all__ = ["MOST_PREDICTED", "Candidate", "list_candidates", "order"]

MOST_PREDICTED = 2.0
"""Predicted cycles over those of the default beyond which a candidate is not tried."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy and a tile for a workload.

    Attributes:
        strategy: The implementation.
        tile: Its sizes.
        cycles: Predicted.
    """

    strategy: AnyStrategy
    tile: Tile
    cycles: float

    @property
    def pick(self) -> Pick:
        """Its name in records."""
        return Pick(self.strategy.name, tile_sizes(self.tile))


def list_candidates(workload: ConvWorkload | LinearWorkload, device: Device, threads: int) -> list[Candidate]:
    """Lists what may be tried.

    Args:
        workload: What to compute.
        device: The target.
        threads: Workers.

    Returns:
        Every tile of every strategy that applies, in the order of predicted cycles.
    """
    held = device.holding(workload.dtypes.input)
    found = [
        Candidate(strategy, tile, strategy.predicted_cycles(workload, held, threads, tile))
        for strategy in strategies_for(workload)
        if strategy.applies(workload, held) is None
        for tile in strategy.tiles(workload, held, threads)
    ]
    return sorted(found, key=lambda candidate: candidate.cycles)


def order(
    candidates: list[Candidate], default: Pick, first: Iterable[Pick] = (), *, most_predicted: float = MOST_PREDICTED
) -> list[Candidate]:
    """Orders what is tried beside the default.

    Args:
        candidates: As `list_candidates` gives them.
        default: What is measured anyway.
        first: What has proved good elsewhere: tried before all else, however it is predicted.
        most_predicted: Predicted cycles over those of the default beyond which a candidate is left out.

    Returns:
        The candidates to try: those, each strategy's best, all others in the order of prediction.
    """
    by_pick = {candidate.pick: candidate for candidate in candidates}
    limit = most_predicted * by_pick[default].cycles
    trusted = [candidate for candidate in candidates if candidate.cycles <= limit]
    leaders: dict[str, Candidate] = {}
    for candidate in trusted:
        if candidate.pick != default:
            leaders.setdefault(candidate.strategy.name, candidate)
    known = [by_pick[pick] for pick in first if pick in by_pick]
    ordered = {candidate.pick: candidate for candidate in (*known, *leaders.values(), *trusted)}
    ordered.pop(default, None)
    return list(ordered.values())
