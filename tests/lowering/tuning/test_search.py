"""The search, with times and checks that a script gives."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from sepwise.lowering.remote import BoardError
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.search import BATCH, EXACT_PATIENCE, MOST_ROUNDS, PATIENCE, Search, Settled
from sepwise.lowering.tuning.space import Candidate
from sepwise.passes.equivalence import Check


@dataclass(frozen=True)
class Tile:
    size: int


def candidate(size: int) -> Candidate:
    return Candidate(SimpleNamespace(name="any"), Tile(size), float(size))


def pick(size: int) -> Pick:
    return Pick("any", (("size", size),))


DEFAULT = pick(0)


@dataclass
class Script:
    """Times by tile, 100 where none is given, with noise and a drift of the whole machine."""

    times: Mapping[int, float] = field(default_factory=dict)
    wrong: Sequence[int] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    lost: Mapping[int, str] = field(default_factory=dict)
    gone: bool = False
    noise: float = 0.0
    drift: float = 0.0
    exact: bool = False
    seed: int = 0
    opened: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.sampled = self.reloaded = 0

    place = "native"
    machine = "a cpu"

    @contextmanager
    def open(self, kernel: object, known: Sequence[Candidate], candidates: Sequence[Candidate]) -> Iterator["ScriptedTrial"]:
        self.opened.append([each.tile.size for each in (*known, *candidates)])
        yield ScriptedTrial(self, BoardError("gone") if self.gone and self.refused else None)


@dataclass
class ScriptedTrial:
    script: Script
    gone: BoardError | None = None

    @property
    def refused(self) -> Mapping[Pick, str]:
        return {pick(size): reason for size, reason in self.script.refused.items()}

    def time(self, picks: Sequence[Pick], rounds: int) -> list[list[float]]:
        s = self.script
        self.lose(picks, "time")
        s.sampled += len(picks)
        rounds = 1 if s.exact else rounds
        load = np.exp(s.drift * s.rng.standard_normal(rounds))
        return [
            (s.times.get(p.sizes[0][1], 100.0) * load * np.exp(s.noise * np.abs(s.rng.standard_normal(rounds)))).tolist()
            for p in picks
        ]

    def lose(self, picks: Sequence[Pick], during: str) -> None:
        if any(self.script.lost.get(p.sizes[0][1]) == during for p in picks):
            raise BoardError("the board is lost")

    def reload(self) -> None:
        self.script.reloaded += 1
        if self.script.gone:
            raise BoardError("gone")

    def check(self, found: Pick) -> Check:
        self.lose([found], "check")
        size = found.sizes[0][1]
        status = "failed" if size in self.script.wrong else "passed"
        return Check("kernel", "k", (), status, 0.5, 1.0, 0.5, None, None, reason="off by 7" if status == "failed" else "")


def search(count: int = 3 * BATCH, *, share: float = 100.0, exact: bool = False) -> tuple[Search, dict[Pick, Candidate]]:
    candidates = [candidate(size) for size in range(count + 1)]
    return Search(SimpleNamespace(name="k"), candidates[0], candidates[1:], share, exact), {c.pick: c for c in candidates}


def exhaust(script: Script, count: int = 3 * BATCH) -> Search:
    found, candidates = search(count, exact=script.exact)
    while not found.done:
        step(found, script, candidates)
    return found


def step(found: Search, script: Script, candidates: dict[Pick, Candidate], **options: int) -> dict[Pick, Settled]:
    """What is settled by a batch, in order."""
    return {settled.pick: settled for settled in found.step(script, candidates, **options)}


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_it_finds_what_is_faster_through_noise_and_drift(drift: float) -> None:
    found = exhaust(Script({5: 80.0, 7: 95.0, 13: 60.0}, noise=0.1, drift=drift))
    assert found.best == pick(13)
    assert found.leaders(2) == [pick(13), pick(5)]
    assert found.ratio == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_changes_nothing(seed: int) -> None:
    found = exhaust(Script(noise=0.3, drift=0.5, seed=seed))
    assert list(found.verified) == [DEFAULT]
    assert found.leaders(2) == []


def test_a_gain_too_small_to_believe_is_left() -> None:
    assert exhaust(Script({3: 99.0})).best == DEFAULT


def test_a_wrong_candidate_is_told_and_the_next_one_takes_its_place() -> None:
    found, candidates = search()
    settled = step(found, Script({2: 40.0, 4: 70.0}, wrong=[2]), candidates)
    assert settled[pick(2)].refused == "wrong: off by 7"
    assert [each.pick for each in settled.values() if each.evidence is not None] == [DEFAULT, pick(4)]
    assert pick(2) not in found.verified


def test_what_was_verified_carries_its_times() -> None:
    found, candidates = search()
    settled = step(found, Script({4: 70.0}), candidates)
    assert list(settled) == list(map(pick, range(BATCH + 1)))
    default, best = (each.evidence for each in settled.values() if each.evidence is not None)
    assert (default.times.median, default.interval.ratio, default.worst_ratio) == (100.0, 1.0, 0.5)
    assert (best.times.median, best.times.default_median, best.interval.ratio) == pytest.approx((70.0, 100.0, 0.7))
    assert best.times.rounds >= default.times.rounds > 1
    assert (best.place, best.machine) == ("native", "a cpu")


def test_evidence_has_medians_and_minima_of_what_was_compared() -> None:
    found, candidates = search()
    times = step(found, Script({4: 70.0}, noise=0.1), candidates)[pick(4)].evidence.times  # type: ignore[union-attr]
    assert 70.0 <= times.minimum < times.median < 100.0 <= times.default_minimum < times.default_median
    assert times.rounds >= 12


def test_a_refused_candidate_is_not_timed() -> None:
    found, candidates = search()
    settled = step(found, Script({1: 1.0}, refused={1: "does not compile"}), candidates)
    assert settled[pick(1)] == Settled(pick(1), refused="does not compile")
    assert sum(each.interval is not None for each in settled.values()) == BATCH
    assert found.best == DEFAULT


@pytest.mark.parametrize(("exact", "patience"), [(False, PATIENCE), (True, EXACT_PATIENCE)])
def test_it_gives_up_where_batches_bring_nothing(exact: bool, patience: int) -> None:
    script = Script(exact=exact)
    found = exhaust(script, 100 * BATCH)
    assert len(script.opened) == patience
    assert script.opened[1] == [0, *range(BATCH + 1, 2 * BATCH + 1)]
    assert found.queue


def test_a_gain_renews_its_patience() -> None:
    script = Script({PATIENCE * BATCH - 1: 50.0})
    exhaust(script, 100 * BATCH)
    assert len(script.opened) == 2 * PATIENCE
    assert script.opened[-1][:2] == [0, PATIENCE * BATCH - 1]


def test_what_is_slower_is_soon_given_up() -> None:
    script = Script(dict.fromkeys(range(1, BATCH + 1), 120.0), noise=0.01)
    found, candidates = search(BATCH)
    step(found, script, candidates)
    assert script.sampled == 1 + 2 * BATCH


def test_what_looks_faster_is_timed_until_it_is_sure() -> None:
    script = Script({1: 90.0}, noise=0.2)
    found, candidates = search(1)
    settled = step(found, script, candidates)
    evidence = settled[pick(1)].evidence
    assert evidence is not None
    assert 12 < evidence.times.rounds <= 2 * MOST_ROUNDS
    assert found.best == pick(1)


def test_what_is_settled_is_known_at_once_and_the_rest_stays_in_the_queue() -> None:
    """As where the process ends, or the disk is full, in the middle of a batch."""
    found, candidates = search()
    steps = found.step(Script({2: 50.0}), candidates)
    assert [next(steps).pick for _ in range(4)] == list(map(pick, range(4)))
    steps.close()
    assert [each.pick for each in found.queue] == list(map(pick, range(4, 3 * BATCH + 1)))
    assert found.best == pick(2)


@pytest.mark.parametrize("during", ["time", "check"])
def test_a_lost_board_costs_one_candidate(during: str) -> None:
    found, candidates = search(BATCH)
    script = Script({3: 50.0, 5: 60.0}, lost={3: during})
    settled = step(found, script, candidates)
    assert settled[pick(3)] == Settled(pick(3), refused="the board is lost")
    assert [each.pick for each in settled.values() if each.refused is not None] == [pick(3)]
    assert script.reloaded == 1
    assert found.best == pick(5)


@pytest.mark.parametrize("how", [{"lost": {3: "time"}}, {"lost": {3: "check"}}, {"refused": {3: "the board is lost"}}])
def test_what_takes_a_board_away_for_good_is_settled_and_the_rest_stays_in_the_queue(how: dict[str, dict[int, str]]) -> None:
    """Or it would take the next board away, too."""
    found, candidates = search(BATCH)
    settled: list[Settled] = []
    with pytest.raises(BoardError, match="gone"):
        settled.extend(found.step(Script({3: 50.0}, gone=True, **how), candidates))
    assert settled[-1] == Settled(pick(3), refused="the board is lost")
    assert pick(3) not in [each.pick for each in found.queue]
    assert pick(4) in [each.pick for each in found.queue]
    assert found.fruitless == 0


def test_nothing_is_compared_with_a_default_that_cannot_be_verified() -> None:
    found, candidates = search()
    assert not step(found, Script({1: 1.0}, wrong=[0]), candidates)
    assert found.done
    assert found.unverified == "off by 7"


def test_an_estimate_is_taken_once() -> None:
    script = Script({3: 60.0}, exact=True)
    found, candidates = search(BATCH, exact=True)
    step(found, script, candidates)
    assert script.sampled == 1 + 2 * 3 + 3 * (BATCH - 3)
    assert found.best == pick(3)


def test_what_takes_longer_comes_first_until_it_brings_nothing() -> None:
    small, candidates = search(share=60.0)
    large, _ = search(100 * BATCH, share=100.0)
    assert large.promise > small.promise
    step(large, Script(), candidates)
    assert large.promise < small.promise
    step(small, Script({1: 90.0}), candidates)
    assert small.promise == pytest.approx(54.0)


def test_what_is_at_its_roofline_promises_nothing() -> None:
    bound, candidates = search(share=100.0)
    bound.least = 95.0
    free, _ = search(share=40.0)
    free.least = 10.0
    assert (free.promise, bound.promise) == pytest.approx((30.0, 5.0))
    step(bound, Script({1: 80.0}), candidates)
    assert bound.promise == 0.0


def test_a_batch_that_runs_out_of_time_leaves_the_rest_in_the_queue() -> None:
    found, candidates = search()
    asked = iter([False, False, True])
    settled = list(found.step(Script(), candidates, out_of_time=lambda: next(asked)))
    assert [each.pick for each in settled] == [DEFAULT, pick(1), pick(2)]
    assert [each.pick for each in found.queue] == list(map(pick, range(3, 3 * BATCH + 1)))
    assert found.fruitless == 0


def test_no_more_candidates_than_are_allowed() -> None:
    script = Script()
    found, candidates = search()
    assert list(step(found, script, candidates, most=3)) == list(map(pick, range(4)))
    assert script.opened == [[0, 1, 2, 3]]


@dataclass
class Proposer:
    """Takes the last ones first, and notes what it is told."""

    told: list[tuple[Pick, float | None]] = field(default_factory=list)

    def propose(self, queue: Sequence[Candidate], count: int) -> list[Candidate]:
        return list(reversed(queue[-count:]))

    def learn(self, found: Pick, ratio: float | None) -> None:
        self.told.append((found, ratio))


def test_a_proposer_chooses_and_is_told_times_over_the_defaults() -> None:
    found, candidates = search(exact=True)
    last = len(candidates) - 1
    found.proposer = proposer = Proposer()
    settled = step(found, Script({last: 50.0, last - 1: 25.0}, refused={last - 2: "too wide"}, exact=True), candidates)
    timed = [pick(last - place) for place in range(BATCH) if place != 2]
    assert list(settled) == [pick(last - 2), DEFAULT, *timed]
    assert proposer.told[:4] == [(pick(last - 2), None), (pick(last), 0.5), (pick(last - 1), 0.25), (pick(last - 3), 1.0)]
    assert [each.pick for each in found.queue] == [pick(size) for size in range(1, last - BATCH + 1)]
