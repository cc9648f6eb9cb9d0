"""The time that a run was given, and what is left of it for what is still to come.

What building a network, loading it and running it once take is known from the default, which goes first. So are the least that a
play-off takes, which is kept back from the search, and whether one that is begun would end in time.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from sepwise.lowering.tuning.playoff import LEADERS, ROUNDS, RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Budget", "Step"]

Step = Literal["build", "object", "rebuild", "load", "run", "check"]
"""What takes time: compiling a network, of it making the object, compiling it again with other candidates, loading it where it
runs, a run of it, and what the oracle takes to check it."""

OVERRUN = 0.05
"""Share of all time by which what is begun may end later."""

REBUILD = 1.5
"""Time of compiling a network again, of which most kernels are known, over that of making its object, until it was measured."""

MOST_KEPT = 0.5
"""Share of what is left after loading that is kept for the play-off at most, and in which structures have to fit too."""

MARGIN = 1.2
"""What is kept over what is predicted."""


class Budget:
    """A run's time.

    Attributes:
        seconds: That it was given, None for no limit.
        started: When it began, as `time.monotonic` has it.
    """

    def __init__(self, seconds: float | None = None, started: float | None = None) -> None:
        """Starts now, or has started before; nothing is known of what anything takes.

        Args:
            seconds: Time that is given, None for no limit.
            started: When it began, now where None.
        """
        self.seconds = seconds
        self.started = time.monotonic() if started is None else started
        self._took: defaultdict[Step, float] = defaultdict(float)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds until the end, infinite without a limit."""
        return math.inf if self.seconds is None else self.seconds - self.spent

    @contextmanager
    def measure(self, step: Step, times: int = 1) -> Iterator[None]:
        """Notes what something takes; of what was done before the longest counts.

        Args:
            step: What is done.
            times: How often.
        """
        begun = time.monotonic()
        yield
        self._took[step] = max(self._took[step], (time.monotonic() - begun) / times)

    def predict(self, *, builds: int = 0, rebuilds: int = 0, loads: int = 0, runs: int = 0, checks: int = 0) -> float:
        """Predicts seconds by what was measured.

        Args:
            builds: Networks that are compiled.
            rebuilds: Networks that are compiled again, with other candidates.
            loads: Networks that are loaded.
            runs: Whole runs.
            checks: Networks that the oracle computes.

        Returns:
            The sum.
        """
        took = self._took
        rebuild = took["rebuild"] or REBUILD * took["object"]
        return builds * took["build"] + rebuilds * rebuild + loads * took["load"] + runs * took["run"] + checks * took["check"]

    def predict_final(self, *, exact: bool) -> float:
        """Predicts the least that it takes to compare what was chosen with the default, once that is loaded.

        Args:
            exact: Whether one run tells all.
        """
        return self.predict(rebuilds=1, loads=1, runs=1 if exact else 2 * RUNS * ROUNDS)

    def predict_play(self, leaders: int = LEADERS, *, exact: bool) -> float:
        """Predicts the least that a play-off of candidates takes, to its end.

        Args:
            leaders: Of each kernel.
            exact: Whether one run tells all.
        """
        runs = 1 + leaders if exact else (1 + leaders) * RUNS * ROUNDS
        match = self.predict(rebuilds=leaders, loads=1 + leaders, runs=runs)
        return match + (self.predict_final(exact=exact) if leaders else 0.0)

    def predict_structures(self, alternatives: int, *, exact: bool) -> float:
        """Predicts the least that a play-off of structures takes, to its end.

        Args:
            alternatives: Networks beside that with the default's structures.
            exact: Whether one run tells all.
        """
        teams = 1 + alternatives
        runs = teams if exact else teams * RUNS * ROUNDS
        final = self.predict(rebuilds=1, loads=2, runs=2 if exact else 3 * RUNS * ROUNDS)
        return self.predict(rebuilds=teams, loads=teams, runs=runs, checks=2) + final

    def allows(self, seconds: float) -> bool:
        """Whether something would end in time, or hardly later.

        Args:
            seconds: What it is predicted to take.
        """
        return self.seconds is None or seconds <= max(self.left, 0.0) + OVERRUN * self.seconds
