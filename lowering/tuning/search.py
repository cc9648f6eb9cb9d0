"""Which candidates of which kernel are tried next, and what is kept of them.

A kernel's candidates come in batches, in the order of `space.order` or as `evolution` proposes them. A batch is compiled
together; its candidates race one after the other, each in turn with the default and the best until then: a few rounds, then twice
as many, and so on, for as long as one looks faster, up to `MOST_ROUNDS`. It has won when it is faster beyond the noise in all
rounds, and again in the later half of them by itself: who looks often enough sees what is not there. Then it is verified, and
settled as the best, with a record. One that has not won, or is wrong, or during which a board is lost, is settled at once, and
only then the board is looked for: it may have gone for good. So whoever writes down what is settled has it as soon as it is
known, and loses one candidate where the process ends.

Batches go to the kernel that can still save most: its time in the network beyond the least that the roofline allows it, halved
for each batch that has brought nothing. After `PATIENCE` such batches in a row, or when there is nothing left to try, a kernel is
done. Estimates have no noise: small gains far down the order show there too, and `EXACT_PATIENCE` batches look for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from sepwise.lowering.remote import BoardError
from sepwise.lowering.tuning.database import Evidence
from sepwise.lowering.tuning.intervals import Interval, compare, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sepwise.lowering.selection import Pick
    from sepwise.lowering.tuning.space import Candidate
    from sepwise.lowering.tuning.timing import Place
    from sepwise.lowering.tuning.trial import Tuned
    from sepwise.passes.equivalence import Check

__all__ = ["Bench", "Proposer", "Search", "Settled", "Wrong"]

BATCH = 8
"""Candidates that are compiled together."""

PATIENCE = 3
"""Batches without any gain after which a kernel is done, where times have noise."""

EXACT_PATIENCE = 12
"""The same where times are the same each time."""

FIRST_ROUNDS = 12
"""Samples of each candidate at first; fewer tell nothing with the doubt of `intervals`."""

MOST_ROUNDS = 400
"""Samples of one that looks faster, at most."""

LONGEST_US = 1e6
"""Time of all samples of a race, beyond which no more are taken."""


class TrialLike(Protocol):
    """Candidates that can be timed and verified (see `trial.Trial`)."""

    @property
    def refused(self) -> Mapping[Pick, str]:
        """Why some cannot be timed."""

    @property
    def gone(self) -> BoardError | None:
        """What became of the board, where one of those that are refused was the last that it ran."""

    def time(self, picks: Sequence[Pick], rounds: int) -> list[list[float]]:
        """Samples of each."""

    def check(self, pick: Pick) -> Check:
        """The verifier's check of one."""

    def reload(self) -> None:
        """Loads all again, after the board was lost."""


class Proposer(Protocol):
    """Says what to try next, by what was found (see `evolution.Evolution`)."""

    def propose(self, queue: Sequence[Candidate], count: int) -> list[Candidate]:
        """Takes some of what was not tried yet: `count`, or all."""

    def learn(self, pick: Pick, ratio: float | None) -> None:
        """Takes note of a candidate's time over the default's, None where it was refused."""


class Bench(Protocol):
    """Makes trials (see `trial.Workbench`)."""

    @property
    def place(self) -> Place:
        """Where candidates run."""

    @property
    def machine(self) -> str | None:
        """The processor there, as it names itself."""

    def open(
        self, kernel: Tuned, known: Sequence[Candidate], candidates: Sequence[Candidate]
    ) -> AbstractContextManager[TrialLike]:
        """Compiles and loads candidates: those that have run before, and others."""


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
class Settled:
    """What is known of a candidate.

    Attributes:
        pick: The candidate; the default comes first of all.
        interval: Its time over that of the best until then, None where it could not be timed.
        rounds: Samples of each.
        refused: Why it was refused, None where it was not.
        evidence: What it took, where it was verified: then it is the new best, or the default.
    """

    pick: Pick
    interval: Interval | None = None
    rounds: int = 0
    refused: str | None = None
    evidence: Evidence | None = None


@dataclass(slots=True)
class Search:
    """The search for one kernel.

    Attributes:
        kernel: What is tuned.
        default: What the model picks.
        queue: What is still to be tried.
        share: Time that the network spends in it, in the timer's unit.
        exact: Whether times are the same each time.
        least: What the roofline allows it of the share at least, 0 where that is not known.
        verified: Candidates that have a record, worst first; the default is the first.
        fruitless: Batches in a row that have brought nothing.
        unverified: Why the default could not be verified, so that nothing is compared with it; None where it was.
        proposer: What chooses out of the queue; it is taken in its order where None.
    """

    kernel: Tuned
    default: Candidate
    queue: list[Candidate]
    share: float
    exact: bool
    least: float = 0.0
    verified: dict[Pick, Interval] = field(default_factory=dict)
    fruitless: int = 0
    unverified: str | None = None
    proposer: Proposer | None = None

    @property
    def patience(self) -> int:
        """Batches without any gain after which it is done."""
        return EXACT_PATIENCE if self.exact else PATIENCE

    @property
    def done(self) -> bool:
        """Whether nothing more is tried."""
        return self.unverified is not None or (
            self.default.pick in self.verified and (not self.queue or self.fruitless >= self.patience)
        )

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
        return min(len(self.queue), BATCH * (self.patience - self.fruitless))

    @property
    def promise(self) -> float:
        """What a batch may save, compared with other kernels: nothing where the kernel is at its roofline."""
        return max(self.share * self.ratio - self.least, 0.0) * 0.5**self.fruitless

    def leaders(self, count: int) -> list[Pick]:
        """The fastest ones that beat the default.

        Args:
            count: Of these at most so many.

        Returns:
            The fastest first.
        """
        verified = dict(self.verified)  # to which another board's thread may add
        faster = [pick for pick in verified if pick != self.default.pick]
        return sorted(faster, key=lambda pick: verified[pick].ratio)[:count]

    def step(
        self,
        bench: Bench,
        candidates: Mapping[Pick, Candidate],
        most: int = BATCH,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> Iterator[Settled]:
        """Tries the next batch.

        Args:
            bench: Makes the trial.
            candidates: All of the kernel's by name.
            most: Candidates that may be tried.
            out_of_time: Whether to leave the rest of the batch in the queue; asked before each candidate.

        Yields:
            What is known of each as soon as it is: of those that cannot be timed first, then of the default where that was not
            verified yet.

        Raises:
            BoardError: A board was lost during what has run before, or could not be reached again; what is not settled stays
                in the queue.
        """
        most = min(BATCH, most)
        batch = self.queue[:most] if self.proposer is None else self.proposer.propose(self.queue, most)
        known = [candidates[pick] for pick in dict.fromkeys([self.default.pick, self.best])]
        gained = False
        with bench.open(self.kernel, known, batch) as trial:
            for candidate in [each for each in batch if each.pick in trial.refused]:
                yield self._take(candidate, Settled(candidate.pick, refused=trial.refused[candidate.pick]))
            if trial.gone is not None:
                raise trial.gone
            if self.default.pick not in self.verified:
                check = trial.check(self.default.pick)
                if check.status != "passed":
                    self.unverified = check.reason or check.status
                    return
                samples = {self.default.pick: trial.time([self.default.pick], FIRST_ROUNDS)[0]}
                yield self._verify(Settled(self.default.pick, Interval(1.0, 1.0, 1.0), FIRST_ROUNDS), samples, check, bench)
            for candidate in [each for each in batch if each.pick not in trial.refused]:
                if out_of_time():
                    return
                before, lost = self.ratio, False
                try:
                    settled = self._settle(candidate.pick, trial, bench)
                except BoardError as error:
                    settled, lost = Settled(candidate.pick, refused=str(error)), True
                gained |= settled.evidence is not None
                yield self._take(candidate, settled, before)
                if lost:
                    trial.reload()
        self.fruitless = 0 if gained else self.fruitless + 1

    def _take(self, candidate: Candidate, settled: Settled, best: float = 1.0) -> Settled:
        """Takes what was settled out of the queue; `best` is the time that it was compared with, over the default's."""
        self.queue.remove(candidate)
        if self.proposer is not None:
            self.proposer.learn(candidate.pick, None if settled.interval is None else settled.interval.ratio * best)
        return settled

    def _settle(self, pick: Pick, trial: TrialLike, bench: Bench) -> Settled:
        """Times a candidate, and verifies it where it is faster."""
        won, interval, samples = self._race(pick, trial)
        settled = Settled(pick, interval, len(samples[pick]))
        if not won:
            return settled
        check = trial.check(pick)
        if check.status != "passed":
            return replace(settled, refused=f"wrong: {check.reason or check.status}")
        return self._verify(settled, samples, check, bench)

    def _race(self, pick: Pick, trial: TrialLike) -> tuple[bool, Interval, dict[Pick, list[float]]]:
        """Times a candidate against the best until then, and with both the default.

        Returns:
            Whether it has won, its time over that of the best, and all samples.
        """
        samples: dict[Pick, list[float]] = {each: [] for each in (self.default.pick, self.best, pick)}
        rounds, confirmed = FIRST_ROUNDS, self.exact
        while True:
            for each, more in zip(samples, trial.time(list(samples), rounds), strict=True):
                samples[each] += more
            whole, late = (compare(samples[pick][start:], samples[self.best][start:], exact=self.exact) for start in (0, -rounds))
            won = confirmed and whole.faster and late.faster
            rounds, confirmed = len(samples[pick]), True
            if won or self.exact or not whole.hopeful or rounds >= MOST_ROUNDS or sum(map(sum, samples.values())) >= LONGEST_US:
                return won, whole, samples

    def _verify(self, settled: Settled, samples: Mapping[Pick, list[float]], check: Check, bench: Bench) -> Settled:
        """Notes what a verified candidate took beside the default."""
        ours, theirs = samples[settled.pick], samples[self.default.pick]
        interval = compare(ours, theirs, exact=self.exact)
        self.verified[settled.pick] = interval
        evidence = Evidence(
            settled.pick, -1, summarise(ours, theirs), interval, check.worst_ratio or 0.0, bench.place, bench.machine
        )
        return replace(settled, evidence=evidence)
