"""The last word: the best of each kernel against the default, where it counts, in the network.

Alone a kernel finds its weights where the last candidate left them, in the network where the rest of it did. So whole Programs
are run in turn, the default's and those of the kernels' best and second best, each twice, as it finds the caches after another
the first time; the calls of the second run are timed, and those of one workload are summed. For a workload the fastest is chosen
that beats the default beyond the noise, or else the default. What is chosen together is then compared as a whole, and where that
looks slower, everything stays as it was.

Then other structures of chains play the same way, with the tiles that were chosen, against the structures of the default. Their
networks have other calls, so those of each chain are summed.

A match goes on until it has told or time is out. What it has not told by then stays as it was, and so does all of it where the
comparison as a whole is cut off before it is sure. Only `LEAST_ROUNDS` are played in any case: fewer tell nothing at all.
"""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sepwise.lowering.tuning.intervals import Interval, Times, compare, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sepwise.lowering.selection import Pick, Records
    from sepwise.lowering.tuning.timing import Timed

    Load = Callable[[Records], Timed]

__all__ = ["Result", "Standing", "Team", "play", "play_structures"]

LEADERS = 2
"""Candidates of each kernel that play against the default."""

LEAST_ROUNDS, ROUNDS, MOST_ROUNDS = 8, 16, 256
"""Samples that are taken even without time, at first, and at most."""

RUNS = 2
"""Runs for a sample: in the first a network finds the caches as another one left them."""

NO_GAIN = Interval(1.0, 1.0, 1.0)
"""Of what stays as it is."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was chosen for a workload.

    Attributes:
        pick: The candidate, None for the default.
        interval: Its time over the default's, all calls of the workload together.
        times: Its samples beside the default's.
        cut_off: Whether more time might have told another.
        played: Of each structure that has played, its time over the default's.
    """

    pick: Pick | None
    interval: Interval
    times: Times
    cut_off: bool = False
    played: Mapping[Pick, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What the play-off has shown.

    Attributes:
        standings: By workload; one that was settled before is among them only where it has to be taken back.
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
    time_left: Callable[[], float] = lambda: math.inf,
    final_seconds: float = 0.0,
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
        time_left: Seconds until it has to end.
        final_seconds: Of them what the last match takes.

    Returns:
        What was chosen, by chain; times and interval are those of the network with all that was chosen, tiles too. Where it is
        surely slower with the structures that were settled before, these are the default's again.
    """
    standings: dict[str, Standing] = {}
    kept = kept or {}
    with ExitStack() as stack:

        def enter(records: Records) -> Team:
            return stack.enter_context(closing(load(records)))

        teams = [enter({**tiles, **cuts}) for cuts in ({}, *alternatives)]
        match = _Match([team.timed for team in teams], exact=exact, out_of_time=lambda: time_left() <= final_seconds)
        own = [(place, key) for place, cuts in enumerate(alternatives, 1) for key in cuts]

        def compare_chain(place: int, key: str) -> Interval:
            return match.compare(place, teams[place].chains[key], others=teams[0].chains[key])

        if own:
            match.run(lambda: any(compare_chain(*each).undecided for each in own))
        for key in dict.fromkeys(key for _, key in own):
            unchanged = Standing(None, NO_GAIN, match.times(0, teams[0].chains[key]))
            ways = sorted((place for place, other in own if other == key), key=lambda place: compare_chain(place, key).ratio)
            open_ones = any(compare_chain(place, key).undecided for place in ways)
            played = {alternatives[place - 1][key]: compare_chain(place, key) for place in reversed(ways)}
            standings[key] = replace(unchanged, cut_off=match.cut and open_ones, played=played)
            for place in ways:
                interval, times = compare_chain(place, key), match.times(place, teams[place].chains[key], teams[0].chains[key])
                standing = Standing(alternatives[place - 1][key], interval, times, played=played)
                if interval.faster and verify(teams[place], key, standing) and verify(teams[0], key, unchanged):
                    standings[key] = standing
                    break
        chosen = {key: standing.pick for key, standing in standings.items() if standing.pick is not None}
        if not chosen and not kept:
            return Result(standings, before.interval, before.median, before.default_median)
        plain = enter({}).timed
        settled = enter({**tiles, **kept}) if kept else teams[0]
        if chosen:
            networks = [plain, settled.timed, enter({**tiles, **kept, **chosen}).timed]
            final = _play_whole(networks, [(2, 1)], exact=exact, time_left=time_left)
            if final.holds(2, other=1):
                return Result(standings, final.compare(2, None), final.median(2, None), final.median(0, None))
            standings = {key: _keep_default(standing, cut_off=final.cut) for key, standing in standings.items()}
            if not kept:
                return Result(standings, before.interval, before.median, before.default_median)
        last = _play_whole([plain, teams[0].timed, settled.timed], [(2, 1)], exact=exact, time_left=time_left)
        if last.compare(2, None, other=1).low <= 1:
            return Result(standings, last.compare(2, None), last.median(2, None), last.median(0, None))
        back = {key: Standing(None, NO_GAIN, last.times(1, teams[0].chains[key])) for key in kept}
        return Result(standings | back, last.compare(1, None), last.median(1, None), last.median(0, None))


def play(
    load: Load,
    leaders: Mapping[str, Sequence[Pick]],
    calls: Mapping[str, Sequence[int]],
    *,
    exact: bool,
    kept: Records | None = None,
    time_left: Callable[[], float] = lambda: math.inf,
    final_seconds: float = 0.0,
) -> Result:
    """Plays.

    Args:
        load: Builds and loads the network with candidates for workloads, the default for all others.
        leaders: For each workload those that play, the fastest first.
        calls: For each workload its calls, of `kept` too; all Programs have the same.
        exact: Whether times are the same each time.
        kept: Candidates of other workloads, settled before, that are in all networks but the default's.
        time_left: Seconds until it has to end.
        final_seconds: Of them what the last match takes.

    Returns:
        What was chosen. Where the network is surely slower with what was settled before, those of it that are have the default
        again, all of it if none is by itself.
    """
    kept = kept or {}
    with ExitStack() as stack:

        def enter(records: Records) -> Timed:
            return stack.enter_context(closing(load(records)))

        teams: list[Records] = [{}]
        teams += [
            {**kept, **{workload: picks[min(place, len(picks) - 1)] for workload, picks in leaders.items() if picks}}
            for place in range(max(map(len, leaders.values()), default=0))
        ]
        entered = [enter(team) for team in teams]
        match = _Match(entered, exact=exact, out_of_time=lambda: time_left() <= final_seconds)

        def open_questions() -> bool:
            return any(
                match.compare(team, calls[workload]).undecided
                for team in range(1, len(teams))
                for workload, picks in leaders.items()
                if picks
            )

        match.run(open_questions)
        standings = {workload: _stand(match, teams, workload, own) for workload, own in calls.items() if workload not in kept}
        chosen = {workload: standing.pick for workload, standing in standings.items() if standing.pick is not None}
        if chosen:
            others = [0, 2] if kept else [0]  # it is no gain over the default that others have made
            final = next((team for team, picks in enumerate(teams) if picks == chosen), None)
            last = match
            if final is None:
                networks, final = [entered[0], enter({**kept, **chosen}), *([enter(kept)] if kept else [])], 1
                last = _play_whole(networks, [(1, other) for other in others], exact=exact, time_left=time_left)
            if all(last.holds(final, other=other) for other in others):
                return Result(standings, last.compare(final, None), last.median(final, None), last.median(0, None))
            standings = {workload: _keep_default(standing, cut_off=last.cut) for workload, standing in standings.items()}
        while kept:
            last = _play_whole([entered[0], enter(kept)], [(1, 0)], exact=exact, time_left=time_left)
            if last.compare(1, None).low <= 1:
                return Result(standings, last.compare(1, None), last.median(1, None), last.median(0, None))
            slower = {key for key in kept if last.compare(1, calls[key]).low > 1} or set(kept)
            standings |= {key: Standing(None, NO_GAIN, last.times(0, calls[key])) for key in slower}
            kept = {key: pick for key, pick in kept.items() if key not in slower}
        return Result(standings, NO_GAIN, match.median(0, None), match.median(0, None))


class _Match:
    """Some Programs of one network, run in turn; the first is the default.

    Attributes:
        cut: Whether time ended it before it had told what it was to tell.
    """

    def __init__(self, teams: Sequence[Timed], *, exact: bool, out_of_time: Callable[[], bool]) -> None:
        self.cut = False
        self._teams = teams
        self._exact = exact
        self._out_of_time = out_of_time
        self._samples: list[list[list[float]]] = [[] for _ in teams]  # by team and round, one number a call

    @property
    def rounds(self) -> int:
        """Rounds that were played."""
        return len(self._samples[0])

    def run(self, unsettled: Callable[[], bool]) -> None:
        """Plays as many rounds as it takes, and as there is time for."""
        rounds = 1 if self._exact else ROUNDS
        while True:
            for _ in range(rounds):
                for team, timed in enumerate(self._teams):
                    self._samples[team].append([times[-1] for times in timed.time_network(RUNS)])
                if not self._exact and self.rounds >= LEAST_ROUNDS and self._out_of_time():
                    self.cut = unsettled()
                    return
            if self._exact or self.rounds >= MOST_ROUNDS or not unsettled():
                return
            rounds = self.rounds

    def holds(self, team: int, *, other: int = 0) -> bool:
        """Whether a network may stay as it was chosen: it looks no slower as a whole, surely so where time ended the match."""
        interval = self.compare(team, None, other=other)
        return interval.high <= 1 if self.cut else interval.ratio <= 1

    def compare(
        self, team: int, calls: Sequence[int] | None, *, other: int = 0, others: Sequence[int] | None = None
    ) -> Interval:
        """Time of a team over that of another, the default, in some calls or in all; `others` are those of the other."""
        return compare(self._sums(team, calls), self._sums(other, others or calls), exact=self._exact)

    def times(self, team: int, calls: Sequence[int], others: Sequence[int] | None = None) -> Times:
        """Samples of some calls beside those of the default."""
        return summarise(self._sums(team, calls), self._sums(0, others or calls))

    def median(self, team: int, calls: Sequence[int] | None) -> float:
        """Median of the time of some calls, or of all."""
        return statistics.median(self._sums(team, calls))

    def _sums(self, team: int, calls: Sequence[int] | None) -> list[float]:
        return [sum(sample if calls is None else [sample[call] for call in calls]) for sample in self._samples[team]]


def _play_whole(
    teams: Sequence[Timed], pairs: Sequence[tuple[int, int]], *, exact: bool, time_left: Callable[[], float]
) -> _Match:
    """Compares whole networks, the first of each pair with the second, until all are told or time is out."""
    match = _Match(teams, exact=exact, out_of_time=lambda: time_left() <= 0)
    match.run(lambda: any(match.compare(team, None, other=other).undecided for team, other in pairs))
    return match


def _stand(match: _Match, teams: Sequence[Records], workload: str, calls: Sequence[int]) -> Standing:
    """Chooses for one workload."""
    found = [(match.compare(team, calls), team) for team in range(1, len(teams)) if workload in teams[team]]
    unchanged = Standing(None, NO_GAIN, match.times(0, calls))
    if not found:
        return unchanged
    interval, team = min(found, key=lambda each: (not each[0].faster, each[0].ratio))
    if not interval.faster:
        return replace(unchanged, cut_off=match.cut and any(each.undecided for each, _ in found))
    return Standing(teams[team][workload], interval, match.times(team, calls))


def _keep_default(standing: Standing, *, cut_off: bool) -> Standing:
    """The same with the default chosen."""
    own = standing.times.default_median, standing.times.default_minimum
    times = Times(*own, *own, standing.times.rounds)
    return replace(standing, pick=None, interval=NO_GAIN, times=times, cut_off=standing.cut_off or cut_off)
