"""Rounds: blocks that alternate, ratios within a round, the summary."""

import pytest

from sepwise.lowering import rounds
from sepwise.lowering.rounds import RuntimeTime


class Steady:
    """A worker whose runs take what a list says, drifting from block to block."""

    version = "1"

    def __init__(self, name: str, base_us: float, drift: list[float], log: list[str]) -> None:
        self.name, self.base_us, self.drift, self.log, self.block = name, base_us, drift, log, -1

    def time(self, repeats: int) -> list[float]:
        self.block += 1
        self.log.append(self.name)
        return [self.base_us * self.drift[self.block]] * repeats


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[list, list[str]]:
    monkeypatch.setattr(rounds, "_PAUSE_SECONDS", 0.0)
    log: list[str] = []
    drift = [1.0, 1.0, 5.0, 1.0]
    workers = [Steady("sepwise", 1e4, drift, log), Steady("onnxruntime", 2e4, drift, log)]
    return rounds.time_in_rounds(workers, 3), log


def test_rounds_alternate(measured: tuple[list, list[str]]) -> None:
    _, log = measured
    ours, peer = "sepwise", "onnxruntime"
    assert log == [ours, peer, ours, peer, peer, ours, ours, peer]


def test_speedup_is_taken_within_rounds_so_that_drift_cancels(measured: tuple[list, list[str]]) -> None:
    (ours, peer), _ = measured
    assert rounds.speedup(ours, peer) == pytest.approx(2.0)


def test_slower_runtimes_get_fewer_runs(measured: tuple[list, list[str]]) -> None:
    (ours, peer), _ = measured
    assert {len(block) for block in ours} == {15}
    assert {len(block) for block in peer} == {8}


def test_summary() -> None:
    worker = Steady("sepwise", 1.0, [1.0], [])
    found = rounds.summarise(worker, [[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 100.0]])
    assert found == RuntimeTime("sepwise", "1", median_us=5.5, minimum_us=1.0, p90_us=9.0, runs=10)
