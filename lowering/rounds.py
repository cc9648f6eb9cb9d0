"""Times runtimes beside each other, in alternating blocks of runs.

Two runtimes are compared only within a round: the machine's clock and its other load drift over seconds, so each round
times a block of runs of every runtime in turn, to and fro, with a pause between blocks in which spinning threads go to
sleep, and a speedup is the median over rounds of the ratio within the round.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rounds = Sequence[Sequence[float]]

__all__ = ["BLOCK_SECONDS", "ROUNDS", "RuntimeTime", "Timed", "speedup", "summarise", "time_in_rounds"]

ROUNDS: Final = 12
BLOCK_SECONDS: Final = 0.15
_BLOCK_RUNS: Final = (3, 200)
_PAUSE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class RuntimeTime:
    """What a runtime took, over all rounds.

    Attributes:
        name: The runtime.
        version: Its version.
        median_us: Median of all runs.
        minimum_us: Fastest run.
        p90_us: 90th percentile of all runs.
        runs: Measured runs.
    """

    name: str
    version: str
    median_us: float
    minimum_us: float
    p90_us: float
    runs: int


class Timed(Protocol):
    """A runtime with its inputs in place.

    Attributes:
        name: The runtime.
        version: Its version.
    """

    name: str
    version: str

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""


def time_in_rounds(timed: Sequence[Timed], rounds: int, *, block_seconds: float = BLOCK_SECONDS) -> list[list[list[float]]]:
    """Times runtimes in alternating blocks.

    Args:
        timed: All loaded.
        rounds: Number of rounds.
        block_seconds: What a block is to take, by its first runs.

    Returns:
        Microseconds of every run, by runtime and round.
    """
    low, high = _BLOCK_RUNS
    repeats = []
    for each in timed:
        first_us = statistics.median(each.time(low))
        repeats.append(min(high, max(low, math.ceil(block_seconds * 1e6 / first_us))))
    times_us: list[list[list[float]]] = [[] for _ in timed]
    for number in range(rounds):
        order = range(len(timed)) if number % 2 == 0 else reversed(range(len(timed)))
        for place in order:
            time.sleep(_PAUSE_SECONDS)
            times_us[place].append(timed[place].time(repeats[place]))
    return times_us


def summarise(timed: Timed, rounds_us: Rounds) -> RuntimeTime:
    """Summarises a runtime's runs.

    Args:
        timed: The runtime.
        rounds_us: Its runs by round.

    Returns:
        Median, minimum and 90th percentile of all runs.
    """
    runs = sorted(run for block in rounds_us for run in block)
    return RuntimeTime(
        name=timed.name,
        version=timed.version,
        median_us=statistics.median(runs),
        minimum_us=runs[0],
        p90_us=runs[math.ceil(0.9 * len(runs)) - 1],
        runs=len(runs),
    )


def speedup(ours_us: Rounds, peer_us: Rounds) -> float:
    """Gives a peer's time over ours.

    Args:
        ours_us: Our runs by round.
        peer_us: The peer's of the same rounds.

    Returns:
        The median over rounds of the ratio of the medians within the round.
    """
    ratios = (statistics.median(peer) / statistics.median(ours) for ours, peer in zip(ours_us, peer_us, strict=True))
    return statistics.median(ratios)
