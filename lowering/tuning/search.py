"""Which candidates of which kernel are tried next, and what is kept of them.

A kernel's candidates come in batches, in the order of `space.order`. A batch is timed together with the default and the best
until then: a few rounds for all, then double for the better half, and so on (successive halving) until two are left. These
go on until their intervals tell, or `MOST_ROUNDS`. The fastest that beats the best until then beyond the noise is verified; then
it has a record and is the best. A candidate that is wrong is reported, and the next one takes its place.

Batches go to the kernel that can still save most: its time in the network, halved for each batch that has brought nothing. After
`PATIENCE` such batches in a row, or when there is nothing left to try, a kernel is done.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sepwise.lowering.tuning.database import Evidence
from sepwise.lowering.tuning.intervals import compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from sepwise.lowering.selection import Pick
    from sepwise.lowering.tuning.intervals import Interval
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.trial import Tuned
    from sepwise.passes.equivalence import Check

__all__ = ["Bench", "Outcome", "Search", "Wrong"]

BATCH = 8
"""Candidates that are timed together, and are lost together where the process is killed."""

PATIENCE = 3
"""Batches without any gain after which a kernel is done."""

FIRST_ROUNDS = 12
"""Samples of each candidate of a batch; fewer tell nothing with the doubt of `intervals`."""

MOST_ROUNDS = 400
"""Samples of the last two at most."""

LONGEST_US = 3e6
"""Time of all samples of a batch, beyond which no more are taken."""


class TrialLike(Protocol):
    """Candidates that can be timed and verified (see `trial.Trial`)."""

    @property
    def refused(self) -> Mapping[Pick, str]:
        """Why some cannot be timed."""

    def time(self, picks: Sequence[Pick], rounds: int) -> list[list[float]]:
        """Samples of each."""

    def check(self, pick: Pick) -> Check:
        """The verifier's check of one."""


class Bench(Protocol):
    """Makes trials (see `trial.Workbench`)."""

    @property
    def exact(self) -> bool:
        """Whether times are the same each time."""

    def open(self, kernel: Tuned, candidates: Sequence[Candidate]) -> AbstractContextManager[TrialLike]:
        """Compiles and loads candidates."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A candidate that was refused.

    Attributes:
        kernel: The kernel's name.
        pick: The candidate.
        reason: Why.
    """

    kernel: str
    pick: Pick
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch has shown.

    Attributes:
        tried: For each candidate its time over that of the best until then, or why it was refused.
        verified: Those that were verified, the default among them the first time; the last is the new best.
        timed: Candidates that were timed.
    """

    tried: dict[Pick, float | str]
    verified: list[Evidence]
    timed: int


@dataclass(slots=True)
class Search:
    """The search for one kernel.

    Attributes:
        kernel: What is tuned.
        default: What the model picks.
        queue: What is still to be tried.
        share: Time that the network spends in it, in the timer's unit.
        verified: Candidates that have a record, worst first; the default is the first.
        fruitless: Batches in a row that have brought nothing.
        unverified: Why the default could not be verified, so that nothing is compared with it; None where it was.
    """

    kernel: Tuned
    default: Candidate
    queue: list[Candidate]
    share: float
    verified: dict[Pick, Interval] = field(default_factory=dict)
    fruitless: int = 0
    unverified: str | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is tried."""
        return self.unverified is not None or (bool(self.verified) and (not self.queue or self.fruitless >= PATIENCE))

    @property
    def best(self) -> Pick:
        """The fastest that was verified, the default where none was."""
        return min(self.verified, key=lambda pick: self.verified[pick].ratio, default=self.default.pick)

    @property
    def ratio(self) -> float:
        """Time of the best over that of the default."""
        return self.verified[self.best].ratio if self.verified else 1.0

    @property
    def left(self) -> int:
        """Candidates that are tried if none of them brings anything."""
        return min(len(self.queue), BATCH * (PATIENCE - self.fruitless))

    @property
    def promise(self) -> float:
        """What a batch may save, compared with other kernels."""
        return self.share * self.ratio * 0.5**self.fruitless

    def leaders(self, count: int) -> list[Pick]:
        """The fastest ones that beat the default.

        Args:
            count: Of these at most so many.

        Returns:
            The fastest first.
        """
        faster = [pick for pick in self.verified if pick != self.default.pick]
        return sorted(faster, key=lambda pick: self.verified[pick].ratio)[:count]

    def step(self, bench: Bench, candidates: Mapping[Pick, Candidate], most: int = BATCH) -> Outcome:
        """Tries the next batch.

        Args:
            bench: Makes the trial.
            candidates: All of the kernel's by name.
            most: Candidates that may be tried.

        Returns:
            What it has shown.
        """
        batch, self.queue = self.queue[: min(BATCH, most)], self.queue[min(BATCH, most) :]
        known = dict.fromkeys([self.default.pick, self.best])
        with bench.open(self.kernel, [*(candidates[pick] for pick in known), *batch]) as trial:
            tried: dict[Pick, float | str] = {}
            verified: list[Evidence] = []
            if not self.verified:
                check = trial.check(self.default.pick)
                if check.status != "passed":
                    self.unverified = check.reason or check.status
                    return Outcome({}, [], 0)
            race = _Race(trial, self.default.pick, self.best, exact=bench.exact)
            ranking = race.run([each.pick for each in batch if each.pick not in trial.refused])
            if not self.verified:
                verified.append(race.evidence(self.default.pick, check))
                self.verified[self.default.pick] = verified[0].interval
            tried |= {pick: interval.ratio for pick, interval in ranking.items()}
            tried |= {pick: trial.refused[pick] for each in batch if (pick := each.pick) in trial.refused}
            for pick, interval in ranking.items():
                if not interval.faster:
                    break
                check = trial.check(pick)
                if check.status == "passed":
                    verified.append(race.evidence(pick, check))
                    self.verified[pick] = verified[-1].interval
                    break
                tried[pick] = f"wrong: {check.reason or check.status}"
        gained = any(each.pick != self.default.pick for each in verified)
        self.fruitless = 0 if gained else self.fruitless + 1
        return Outcome(tried, verified, len(ranking))


class _Race:
    """Successive halving of some candidates, timed against the best until then."""

    def __init__(self, trial: TrialLike, default: Pick, best: Pick, *, exact: bool) -> None:
        self._trial = trial
        self._default = default
        self._best = best
        self._exact = exact
        self._samples: dict[Pick, list[float]] = {}

    def run(self, picks: Sequence[Pick]) -> dict[Pick, Interval]:
        """Times candidates, and gives their intervals against the best until then, the fastest first."""
        alive, rounds = list(picks), FIRST_ROUNDS
        found: dict[Pick, Interval] = {}
        self._time(alive, rounds)
        found |= self._compare(alive)
        while not self._exact and len(alive) > 2:
            alive = sorted(alive, key=lambda pick: found[pick].ratio)[: max(2, len(alive) // 2)]
            self._time(alive, rounds)
            found |= self._compare(alive)
            rounds *= 2
        while not self._exact and self._may_go_on(rounds) and any(found[pick].undecided for pick in alive):
            self._time(alive, rounds)
            found |= self._compare(alive)
            rounds *= 2
        return dict(sorted(found.items(), key=lambda item: item[1].ratio))

    def _may_go_on(self, rounds: int) -> bool:
        """Whether so many more rounds are worth it."""
        return rounds < MOST_ROUNDS and sum(map(sum, self._samples.values())) < LONGEST_US

    def evidence(self, pick: Pick, check: Check) -> Evidence:
        """What a candidate took beside the default, in the rounds in which both were timed last."""
        ours = self._samples[pick]
        theirs = self._samples[self._default][: len(ours)]
        interval = compare(ours, theirs, exact=self._exact)
        times = statistics.median(ours), statistics.median(theirs)
        return Evidence(pick, -1, *times, interval, len(ours), check.worst_ratio or 0.0)

    def _time(self, alive: Sequence[Pick], rounds: int) -> None:
        """Times those that are left, with the default and the best."""
        picks = list(dict.fromkeys([self._default, self._best, *alive]))
        for pick, samples in zip(picks, self._trial.time(picks, rounds), strict=True):
            self._samples.setdefault(pick, []).extend(samples)

    def _compare(self, alive: Sequence[Pick]) -> dict[Pick, Interval]:
        """Intervals of those that are left: what was timed in the same rounds."""
        theirs = self._samples[self._best]
        return {pick: compare(self._samples[pick], theirs, exact=self._exact) for pick in alive}
