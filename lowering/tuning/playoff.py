"""The last word: the best of each kernel against the default, where it counts, in the network.

Alone a kernel finds its weights where the last candidate left them, in the network where the rest of it did. So whole Programs
are run in turn, the default's and those of the kernels' best and second best, each twice, as it finds the caches after another
the first time; the calls of the second run are timed, and those of one workload are summed. For a workload the fastest is chosen
that beats the default beyond the noise, or else the default. What is chosen together is then compared as a whole, and where that
is surely slower, everything stays as it was.

Then other structures of chains play the same way, with the tiles that were chosen, against the structures of the default. Their
networks have other calls, so those of each chain are summed.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sepwise.lowering.tuning.intervals import Interval, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sepwise.lowering.selection import Pick, Records
    from sepwise.lowering.tuning.timing import Timed

    Load = Callable[[Records], Timed]

__all__ = ["Result", "Standing", "Team", "play", "play_structures"]

LEADERS = 2
"""Candidates of each kernel that play against the default."""

ROUNDS, MOST_ROUNDS = 16, 256
"""Samples at first, and at most."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was chosen for a workload.

    Attributes:
        pick: The candidate, None for the default.
        interval: Its time over the default's, all calls of the workload together; the best one's where none beats it.
        median: Median of its time.
        default_median: Median of the default's.
        rounds: Samples of each.
    """

    pick: Pick | None
    interval: Interval
    median: float
    default_median: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Result:
    """What the play-off has shown.

    Attributes:
        standings: By workload.
        interval: Time of the network as chosen over that of the default.
        median: Median of the sum over all calls, as chosen.
        default_median: The same of the default.
    """

    standings: dict[str, Standing]
    interval: Interval
    median: float
    default_median: float


@dataclass(frozen=True, slots=True)
class Team:
    """A network with the calls of its chains.

    Attributes:
        timed: The network.
        chains: Calls by the key of the chain's structure.
    """

    timed: Timed
    chains: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def close(self) -> None:
        """Unloads it."""
        self.timed.close()


def play_structures(
    load: Callable[[Records], Team],
    before: Result,
    tiles: Records,
    alternatives: Sequence[Records],
    verify: Callable[[Team, str, Standing], bool],
    *,
    exact: bool,
    kept: Records | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Result:
    """Lets structures of chains play against those of the default.

    Args:
        load: Builds and loads the network with tiles and structures.
        before: What was found for the structures of the default.
        tiles: Those that were chosen, for the workloads of all structures.
        alternatives: Sets of structures by chain; one chain may be in several.
        verify: Checks all kernels of a chain in a network, and may refuse what would be chosen; asked of the default's too then.
        exact: Whether times are the same each time.
        kept: Structures that were settled before, and are in the final network only.
        out_of_time: Whether to make an end.

    Returns:
        What was chosen, by chain; times and interval are those of the network with all that was chosen, tiles too.
    """
    standings: dict[str, Standing] = {}
    with ExitStack() as stack:
        teams = [stack.enter_context(closing(load({**tiles, **cuts}))) for cuts in ({}, *alternatives)]
        match = _Match([team.timed for team in teams], exact=exact, out_of_time=out_of_time)
        own = [(place, key) for place, cuts in enumerate(alternatives, 1) for key in cuts]

        def compare_chain(place: int, key: str) -> Interval:
            return match.compare(place, teams[place].chains[key], others=teams[0].chains[key])

        match.run(lambda: any(compare_chain(*each).undecided for each in own))
        for key in dict.fromkeys(key for _, key in own):
            default = match.median(0, teams[0].chains[key])
            ways = sorted((place for place, other in own if other == key), key=lambda place: compare_chain(place, key).ratio)
            standings[key] = Standing(None, compare_chain(ways[0], key), default, default, match.rounds)
            for place in ways:
                interval, median = compare_chain(place, key), match.median(place, teams[place].chains[key])
                standing = Standing(alternatives[place - 1][key], interval, median, default, match.rounds)
                unchanged = Standing(None, Interval(1.0, 1.0, 1.0), default, default, match.rounds)
                if interval.faster and verify(teams[place], key, standing) and verify(teams[0], key, unchanged):
                    standings[key] = standing
                    break
    chosen = dict(kept or {}) | {key: standing.pick for key, standing in standings.items() if standing.pick is not None}
    if not chosen:
        return Result(standings, before.interval, before.median, before.default_median)
    with ExitStack() as stack:
        teams = [stack.enter_context(closing(load(network))) for network in ({}, tiles, {**tiles, **chosen})]
        match = _Match([team.timed for team in teams], exact=exact, out_of_time=lambda: False)
        match.run(lambda: match.compare(2, None, other=1).undecided)
        if match.compare(2, None, other=1).low > 1:
            standings = {key: _keep_default(standing) for key, standing in standings.items()}
            return Result(standings, before.interval, before.median, before.default_median)
        return Result(standings, match.compare(2, None), match.median(2, None), match.median(0, None))


def play(
    load: Load,
    leaders: Mapping[str, Sequence[Pick]],
    calls: Mapping[str, Sequence[int]],
    *,
    exact: bool,
    kept: Records | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Result:
    """Plays.

    Args:
        load: Builds and loads the network with candidates for workloads, the default for all others.
        leaders: For each workload those that play, the fastest first.
        calls: For each workload its calls; all Programs have the same.
        exact: Whether times are the same each time.
        kept: Candidates of other workloads, settled before, that are in all networks but the default's.
        out_of_time: Whether to make an end.

    Returns:
        What was chosen.
    """
    with ExitStack() as stack:
        teams: list[Records] = [{}]
        teams += [
            {**(kept or {}), **{workload: picks[min(place, len(picks) - 1)] for workload, picks in leaders.items() if picks}}
            for place in range(max(map(len, leaders.values()), default=0))
        ]
        match = _Match([stack.enter_context(closing(load(team))) for team in teams], exact=exact, out_of_time=out_of_time)

        def open_questions() -> bool:
            return any(
                match.compare(team, calls[workload]).undecided
                for team in range(1, len(teams))
                for workload, picks in leaders.items()
                if picks
            )

        match.run(open_questions)
        standings = {workload: _stand(match, teams, workload, own) for workload, own in calls.items()}
        chosen = dict(kept or {})
        chosen |= {workload: standing.pick for workload, standing in standings.items() if standing.pick is not None}
        if not chosen:
            whole = match.median(0, None)
            return Result(standings, Interval(1.0, 1.0, 1.0), whole, whole)
        final = next((team for team, picks in enumerate(teams) if picks == chosen), None)
        if final is None:
            match = _Match(
                [stack.enter_context(closing(load(team))) for team in ({}, chosen)], exact=exact, out_of_time=lambda: False
            )
            final = 1
            match.run(lambda: match.compare(1, None).undecided)
        interval = match.compare(final, None)
        if interval.low > 1:
            standings = {workload: _keep_default(standing) for workload, standing in standings.items()}
            return Result(standings, Interval(1.0, 1.0, 1.0), match.median(0, None), match.median(0, None))
        return Result(standings, interval, match.median(final, None), match.median(0, None))


class _Match:
    """Some Programs of one network, run in turn; the first is the default."""

    def __init__(self, teams: Sequence[Timed], *, exact: bool, out_of_time: Callable[[], bool]) -> None:
        self._teams = teams
        self._exact = exact
        self._out_of_time = out_of_time
        self._samples: list[list[list[float]]] = [[] for _ in teams]  # by team and round, one number a call

    @property
    def rounds(self) -> int:
        """Rounds that were played."""
        return len(self._samples[0])

    def run(self, unsettled: Callable[[], bool]) -> None:
        """Plays as many rounds as it takes."""
        rounds = 1 if self._exact else ROUNDS
        while True:
            for _ in range(rounds):
                for team, timed in enumerate(self._teams):
                    self._samples[team].append([times[-1] for times in timed.time_network(2)])
            if self._exact or self.rounds >= MOST_ROUNDS or self._out_of_time() or not unsettled():
                return
            rounds = self.rounds

    def compare(
        self, team: int, calls: Sequence[int] | None, *, other: int = 0, others: Sequence[int] | None = None
    ) -> Interval:
        """Time of a team over that of another, the default, in some calls or in all; `others` are those of the other."""
        return compare(self._sums(team, calls), self._sums(other, others or calls), exact=self._exact)

    def median(self, team: int, calls: Sequence[int] | None) -> float:
        """Median of the time of some calls, or of all."""
        return statistics.median(self._sums(team, calls))

    def _sums(self, team: int, calls: Sequence[int] | None) -> list[float]:
        return [sum(sample if calls is None else [sample[call] for call in calls]) for sample in self._samples[team]]


def _stand(match: _Match, teams: Sequence[Records], workload: str, calls: Sequence[int]) -> Standing:
    """Chooses for one workload."""
    found = [(match.compare(team, calls), team) for team in range(1, len(teams)) if workload in teams[team]]
    default = match.median(0, calls)
    if not found:
        return Standing(None, Interval(1.0, 1.0, 1.0), default, default, match.rounds)
    interval, team = min(found, key=lambda each: (not each[0].faster, each[0].ratio))
    if not interval.faster:
        return Standing(None, interval, default, default, match.rounds)
    return Standing(teams[team][workload], interval, match.median(team, calls), default, match.rounds)


def _keep_default(standing: Standing) -> Standing:
    """The same with the default chosen."""
    return Standing(None, standing.interval, standing.default_median, standing.default_median, standing.rounds)
