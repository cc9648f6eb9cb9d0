"""Tuning a small network from its file to a database that compilations use, with times that a script gives."""

import itertools
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tvm.s_tir.meta_schedule.database import JSONDatabase

from sepwise.lowering import device, strategies
from sepwise.lowering.build import build_program
from sepwise.lowering.importer import ImportedGraph
from sepwise.lowering.remote import Board, BoardError, Connect, RemoteRunner, list_boards
from sepwise.lowering.roofline import Roof, roof_of_facts
from sepwise.lowering.runner import NativeRunner
from sepwise.lowering.selection import Pick
from sepwise.lowering.strategies.base import Implementation
from sepwise.lowering.strategies.pointwise import PointwiseStrategy
from sepwise.lowering.trials import Step
from sepwise.lowering.tuning import budget, database, intervals, playoff, search, timing, trial
from sepwise.lowering.tuning import tune as tuning
from sepwise.lowering.tuning.database import EVIDENCE, RECORDS, Database, Evidence, Verdict, find_conditions, read_records
from sepwise.lowering.tuning.metaschedule import spell_record
from sepwise.lowering.tuning.result import Progress, Tuning
from sepwise.lowering.tuning.search import BATCH, Search
from sepwise.lowering.tuning.space import Candidate, list_candidates
from sepwise.lowering.tuning.timing import Method, Place, Timed
from sepwise.lowering.tuning.tune import tune
from sepwise.lowering.verify import verify_model
from sepwise.passes import load_model
from sepwise.passes.errors import CheckFailed, InputError

HOST = device.get("host")
TEXT = """<ir_version: 10, opset_import: ["" : 18]>
small (float[1,20,6,6] x) => (float[1,20,6,6] y)
<float[20,20,1,1] w0, float[20,20,1,1] w1, float[20] b0, float[20,1,3,3] d>
{
  [first] a = Conv (x, w0, b0)
  [act] r = Relu (a)
  [second] c = Conv (r, w1)
  [dw] e = Conv <group = 20, pads = [1,1,1,1]> (c, d)
  [pool] y = Softmax <axis = 1> (e)
}
"""

Times = Callable[[str, str], float]
"""Gives the time of a call by its strategy and tile."""


def slow(strategy: str, tile: str) -> float:
    return 100.0


@pytest.fixture(scope="module")
def built(network: Callable[[str], ir.Model]) -> tuple[dict[str, Any], Times]:
    """The workloads of the network by key, and times by which everything is faster than the default."""
    keys: dict[str, Any] = {}

    def emit(imported: ImportedGraph, *_: Any) -> bytes:
        keys.update({kernel.workload.key: kernel.workload for kernel in imported.graph.kernels})
        return b""

    program, _ = build_program(network(TEXT), HOST, emit=emit)
    defaults = {(call.strategy, call.tile) for call in program.calls}
    return keys, lambda strategy, tile: 100.0 if (strategy, tile) in defaults else 60.0


class ScriptedTimer:
    """This machine, on which calls take what a script says."""

    method: Method = "measured"
    place: Place = "native"
    unit = "us"
    exact = True
    machine = "a cpu"

    def __init__(self, times: Times, method: Method = "measured") -> None:
        self.device, self.threads, self.times, self.method = HOST, 1, times, method

    def roof(self, held: device.Device) -> Roof:
        return roof_of_facts(held, 1, unit="us")

    def load(self, program: Any, inputs: Any) -> Timed:
        return ScriptedTimed(NativeRunner(program), self.times)


class ScriptedTimed:
    def __init__(self, runner: NativeRunner, times: Times) -> None:
        self.runner, self._times = runner, times

    def time(self, calls: Sequence[int], rounds: int) -> list[list[float]]:
        own = self.runner.program.calls
        return [[self._times(own[call].strategy, own[call].tile)] for call in calls]

    def time_network(self, rounds: int) -> list[list[float]]:
        return self.time(range(len(self.runner.program.calls)), rounds)

    def close(self) -> None:
        self.runner.close()


@pytest.fixture
def file(network: Callable[[str], ir.Model], tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(ir.to_proto(network(TEXT)), path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> Callable[..., Tuning]:
    def tuned(times: Times = slow, *, method: Method = "measured", **options: Any) -> Tuning:
        monkeypatch.setattr(tuning, "open_timer", lambda *_: ScriptedTimer(times, method))
        return tune(file, tmp_path / "db", **{"trials": 3 * BATCH, **options})

    return tuned


def evidence(result: Tuning, kind: str) -> list[dict[str, Any]]:
    lines = (Path(result.database) / EVIDENCE).read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def test_what_is_faster_is_kept_and_used(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], file: Path, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    result = run(built[1], trials=None, on_progress=seen.append)
    assert (result.model, result.target, result.method, result.runner, result.unit) == (
        "small",
        "host",
        "measured",
        "native",
        "us",
    )
    faster = [kernel for kernel in result.kernels if kernel.tuned]
    assert faster
    assert all(kernel.chosen != kernel.default and kernel.tuned_time == 0.6 * kernel.default_time for kernel in faster)
    assert all(kernel.finished for kernel in result.kernels)
    assert result.tuned_time is not None
    assert result.default_time == result.tuned_time + sum(k.default_time - k.tuned_time for k in result.kernels)
    assert seen[-1].current < seen[-1].default
    assert seen[-1].trials == result.trials == result.history[-1][0]
    assert [*(point[1] for point in result.history)] == sorted((point[1] for point in result.history), reverse=True)

    loaded = JSONDatabase(work_dir=result.database, allow_missing=False)
    assert len(loaded) == result.records == len((Path(result.database) / RECORDS).read_text().splitlines())
    assert all(0 <= line["worst_ratio"] <= 1 for line in evidence(result, "record"))

    records = read_records(tmp_path / "db", HOST, 1)
    assert len(records) == len(result.kernels)
    program, report = build_program(load_model(file), HOST, records=records)
    strategic = [call for call in program.calls if call.workload in records]
    assert report.records_used == len(strategic) >= 3
    assert {call.workload for call in strategic if built[1](call.strategy, call.tile) < 100} == {k.workload for k in faster}
    assert verify_model(load_model(file), HOST, records=records).passed

    again = run(lambda *_: pytest.fail("timed"), trials=None)
    assert (again.trials, again.records, again.default_time) == (0, 0, None)
    assert again.notes == (tuning.NOTHING_TO_DO,)
    assert again.kernels == result.kernels


def test_without_a_database_nothing_is_recorded(file: Path) -> None:
    assert build_program(load_model(file), HOST)[1].records_used == 0


def test_a_run_that_ended_early_goes_on_where_it_was(run: Callable[..., Tuning]) -> None:
    first = run(trials=BATCH)
    assert first.trials == BATCH
    assert not all(kernel.finished for kernel in first.kernels)
    tried = [(line["workload"], line["strategy"], str(line["sizes"])) for line in evidence(first, "tried")]
    second = run(trials=BATCH)
    both = [(line["workload"], line["strategy"], str(line["sizes"])) for line in evidence(second, "tried")]
    assert both[: len(tried)] == tried
    assert len(both) == len(set(both)) == 2 * BATCH


def test_what_another_tuner_has_tried_meanwhile_is_not_tried_again(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], tmp_path: Path
) -> None:
    """What it has found plays too."""
    told: list[tuple[str, Candidate]] = []

    def meddle(progress: Progress) -> None:
        if told or not progress.trials:
            return
        other = Database(tmp_path / "db", HOST)
        conditions = find_conditions(HOST, 1, "measured")
        last = json.loads((other.folder / EVIDENCE).read_text().splitlines()[-1])
        known = {pick for picks in other.read(conditions).tried.values() for pick in picks}
        space = list_candidates(built[0][last["workload"]], HOST, 1)
        left = [each for each in space if each.pick not in known][2 : 2 + BATCH]
        picks = [each.pick for each in left]
        told.append((last["workload"], left[0]))
        interval = intervals.Interval(0.1, 0.1, 0.1)
        times = intervals.Times(10.0, 10.0, 100.0, 100.0, 9)
        lines = spell_record(built[0][last["workload"]], picks[0], 10.0, HOST, "measured", "native")
        other.add_record(conditions, last["workload"], lines, Evidence(picks[0], -1, times, interval, 0.1, "native", None))
        for pick in picks:
            other.add_tried(conditions, last["workload"], pick, interval, 9, None)

    def times(strategy: str, tile: str) -> float:
        return 50.0 if told and (strategy, tile) == (told[0][1].strategy.name, str(told[0][1].tile)) else 100.0

    result = run(times, on_progress=meddle)
    tried = names_of(evidence(result, "tried"), "tried")
    assert len(set(tried)) == len(tried) == result.trials + BATCH
    ((workload, found),) = told
    assert {kernel.workload: kernel.chosen for kernel in result.kernels if kernel.tuned} == {workload: str(found.pick)}


def test_estimates_and_measurements_do_not_mix(run: Callable[..., Tuning], built: tuple[dict[str, Any], Times]) -> None:
    estimated = run(built[1], method="estimated", trials=BATCH)
    (kernel,) = [each for each in estimated.kernels if each.tried]
    assert kernel.tuned
    (kernel,) = [each for each in run(trials=BATCH).kernels if each.tried]
    assert not kernel.tuned


def test_the_evolutionary_search_has_the_same_space_gate_and_database(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], tmp_path: Path
) -> None:
    """What it tries is declared; it finds what the prediction is wrong about; another run goes on behind what was tried."""

    def draw(strategy: str, tile: str) -> float:
        return built[1](strategy, tile) + zlib.crc32(tile.encode()) % 30

    first = run(draw, search="evolutionary", trials=2 * BATCH)
    assert (first.search, first.trials) == ("evolutionary", 2 * BATCH)
    second = run(draw, search="evolutionary", trials=BATCH)
    tried = names_of(evidence(second, "tried"), "tried")
    assert len(set(tried)) == len(tried) == 3 * BATCH
    for line in evidence(second, "tried"):
        assert Pick(line["strategy"], tuple(line["sizes"].items())) in {
            each.pick for each in list_candidates(built[0][line["workload"]], HOST, 1)
        }
    assert any(kernel.tuned for kernel in second.kernels)
    assert all(0 <= line["worst_ratio"] <= 1 for line in evidence(second, "record"))
    assert len(JSONDatabase(work_dir=second.database, allow_missing=False)) == first.records + second.records
    assert len(read_records(tmp_path / "db", HOST, 1)) == len(second.kernels)
    with pytest.raises(InputError, match=r"Search 'random': is none of predicted, evolutionary\."):
        run(search="random")


class Planted(PointwiseStrategy):
    """Claims to be a pointwise convolution."""

    name = "planted"


class Wrong(Planted):
    """Its weights are not quite those that it was given."""

    def schedule(self, workload: Any, target: device.Device, tile: Any) -> Implementation:
        right = super().schedule(workload, target, tile)

        def pack(weights: Any) -> list[np.ndarray]:
            first, *others = right.pack(weights)
            return [first * np.float32(1 + 1e-4), *others]

        return replace(right, pack=pack)


class Straying(Planted):
    """Reads more weights than there are."""

    def schedule(self, workload: Any, target: device.Device, tile: Any) -> Implementation:
        right = super().schedule(workload, target, tile)
        return replace(right, pack=lambda weights: [array.reshape(-1)[:1] for array in right.pack(weights)])


class Raising(Planted):
    """Does not compile."""

    def schedule(self, workload: Any, target: device.Device, tile: Any) -> Implementation:
        raise ValueError("no such loop")


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    def add(strategy: Any) -> None:
        monkeypatch.setattr(strategies, "CONV_STRATEGIES", [*strategies.CONV_STRATEGIES, strategy])

    return add


@pytest.mark.parametrize(
    ("planted", "reason"),
    [(Wrong(), "wrong: "), (Straying(), "Kernel 'k"), (Raising(), "does not compile: ValueError: no such loop")],
)
def test_a_planted_schedule_never_reaches_the_database(
    run: Callable[..., Tuning],
    plant: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    planted: Any,
    reason: str,
) -> None:
    plant(planted)
    with caplog.at_level(logging.WARNING):
        result = run(lambda strategy, _: 1.0 if strategy == "planted" else 100.0, trials=BATCH)
    refused = [each for each in result.wrong if each.pick.strategy == "planted"]
    assert refused
    assert all(each.reason.startswith(reason) for each in refused)
    assert "planted" in caplog.text
    assert "planted" not in (Path(result.database) / RECORDS).read_text()
    assert not [line for kind in ("record", "verdict") for line in evidence(result, kind) if line["strategy"] == "planted"]
    assert all(pick.strategy != "planted" for pick in read_records(tmp_path / "db", HOST, 1).values())


def test_no_candidate_timed_is_an_error(run: Callable[..., Tuning]) -> None:
    with pytest.raises(InputError, match="No candidate was timed"):
        run(seconds=0.0)


def test_nothing_but_refused_candidates_is_an_error(run: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    build = trial.build_candidates

    def build_default(steps: Sequence[Step], *others: Any) -> Any:
        if {id(step.tile) for step in steps} - allowed:
            raise RuntimeError("no registers left")
        return build(steps, *others)

    allowed: set[int] = set()
    opened = trial.Workbench.open

    def note(bench: Any, kernel: Any, known: Any, candidates: Any) -> Any:
        allowed.update(id(each.tile) for each in known)
        return opened(bench, kernel, known, candidates)

    monkeypatch.setattr(trial, "build_candidates", build_default)
    monkeypatch.setattr(trial.Workbench, "open", note)
    with pytest.raises(
        CheckFailed, match="None of 8 candidates could be timed; the first: does not compile: RuntimeError: no reg"
    ):
        run(trials=BATCH)


def test_defaults_that_are_all_wrong_are_an_error(run: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    checked = trial.KernelChecker.check

    def check(checker: Any, index: int) -> Any:
        return [replace(each, status="failed", reason="off by 7") for each in checked(checker, index)]

    monkeypatch.setattr(trial.KernelChecker, "check", check)
    with pytest.raises(CheckFailed, match=r"the defaults that they would be compared with are wrong, kernel 'k.*': off by 7"):
        run()


def test_another_devices_winner_is_tried_first(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], tmp_path: Path
) -> None:
    """What won there is far behind in the order here, and comes first all the same."""
    first = run(trials=1)
    (kernel,) = [each for each in first.kernels if each.tried]
    picks = [each.pick for each in list_candidates(built[0][kernel.workload], HOST, 1)]
    elsewhere = Database(tmp_path / "other", replace(HOST, name="elsewhere", l2_bytes=2 * HOST.l2_bytes))
    elsewhere.create()
    conditions = find_conditions(elsewhere.device, 1, "measured")
    won = Verdict(picks[-1], 0, True, intervals.Times(1.0, 1.0, 2.0, 2.0, 9), intervals.Interval(0.5, 0.5, 0.5), True, None)
    elsewhere.add_verdict(conditions, kernel.workload, won)
    second = run(trials=1, others=[tmp_path / "other"])
    (tried,) = evidence(second, "tried")[1:]
    assert (tried["workload"], tried["sizes"]) == (kernel.workload, dict(picks[-1].sizes))


def test_records_of_the_same_device_are_taken_over(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], tmp_path: Path
) -> None:
    first = run(built[1], trials=BATCH)
    (tmp_path / "db").rename(tmp_path / "other")
    second = run(built[1], trials=1, others=[tmp_path / "other"])
    (kernel,) = [each for each in first.kernels if each.tried]
    (taken,) = [each for each in second.kernels if each.workload == kernel.workload]
    assert taken.chosen == kernel.chosen != kernel.default
    assert BATCH <= taken.tried <= BATCH + 1
    assert second.notes[0].startswith(f"{first.records} records, ")
    assert second.notes[0].endswith(f" were taken over from {tmp_path / 'other'}.")


# Limits of time ---------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still but for what is timed: a load of a network takes 2 s, and so does each sample."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (budget, tuning):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        for name in ("time", "time_network"):
            self.slow_down(monkeypatch, ScriptedTimed, name)
        self.slow_down(monkeypatch, ScriptedTimer, "load")

    def slow_down(self, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str) -> None:
        fast = getattr(kind, name)

        def slowly(*words: Any) -> Any:
            self.now += 2.0
            return fast(*words)

        monkeypatch.setattr(kind, name, slowly)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("seconds", [60.0, 120.0, 400.0])
def test_all_of_it_ends_in_the_time_that_is_given(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], clock: Clock, seconds: float
) -> None:
    """Loading and play-off too; what it says of the time that is left never ends later."""
    seen: list[Progress] = []
    result = run(built[1], trials=None, seconds=seconds, started=clock.now - 5.0, on_progress=seen.append)
    assert result.low is not None
    assert any(kernel.tuned for kernel in result.kernels)
    assert result.seconds <= seconds + 4.0
    assert result.seconds > 0.6 * seconds or all(kernel.finished for kernel in result.kernels)
    assert result.seconds == clock.now - 1000.0 + 5.0
    assert all(each.seconds + each.seconds_left <= seconds for each in seen if each.seconds_left is not None)
    assert [each.doing for each in seen][:2] == ["compiling the network", "timing the network"]
    assert seen[-1].doing.startswith("the play-off")


def test_without_time_for_the_play_off_defaults_are_kept_and_the_next_run_plays(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], clock: Clock, tmp_path: Path
) -> None:
    first = run(built[1], trials=None, seconds=20.0)
    assert first.records > 0
    assert first.low is None
    assert first.tuned_time == first.default_time
    assert any(note.startswith("The play-off of") and note.endswith("Give more with --seconds.") for note in first.notes)
    assert not any(kernel.tuned or kernel.finished for kernel in first.kernels)
    assert read_records(tmp_path / "db", HOST, 1) == {}
    second = run(built[1], trials=1)
    assert any(kernel.tuned for kernel in second.kernels)
    assert second.tuned_time is not None
    assert second.tuned_time < second.default_time


def test_without_a_play_off_earlier_verdicts_count(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(built[1], trials=BATCH)
    clock = Clock(monkeypatch)
    clock.now += 1.0
    second = run(built[1], trials=None, seconds=20.0)
    assert (second.low, second.default_time) == (None, first.default_time)
    assert second.tuned_time == pytest.approx(first.tuned_time)


def test_a_match_that_time_cuts_off_leaves_what_an_earlier_run_has_chosen(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cut_off(*words: Any, **options: Any) -> playoff.Result:
        result = play(*words, **options)
        cut = {key: replace(each, pick=None, interval=playoff.NO_GAIN, cut_off=True) for key, each in result.standings.items()}
        return replace(result, standings=cut)

    play = playoff.play
    first = run(built[1], trials=BATCH)
    assert any(kernel.tuned and not kernel.finished for kernel in first.kernels)
    before = read_records(tmp_path / "db", HOST, 1)
    monkeypatch.setattr(playoff, "play", cut_off)
    second = run(built[1], trials=BATCH)
    after = read_records(tmp_path / "db", HOST, 1)
    assert {key: after[key] for key in before} == before
    kept = [note for note in second.notes if "keeps what an earlier run has chosen" in note]
    assert len(kept) == sum(kernel.tuned and not kernel.finished for kernel in first.kernels)


def test_no_time_at_all_is_an_error_before_anything_is_loaded(run: Callable[..., Tuning], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No candidate was timed: .* other databases are taken over, which --from names"):
        run(lambda *_: pytest.fail("timed"), seconds=0.0)
    assert not (tmp_path / "db").exists()


def test_what_decides_nothing_is_told(
    run: Callable[..., Tuning], built: tuple[dict[str, Any], Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of other sources: tried first, and no truth."""
    first = run(built[1], trials=1)
    (kernel,) = [each for each in first.kernels if each.tuned]
    monkeypatch.setattr(database, "own_sources", lambda: "0" * 12)
    second = run(trials=1)
    assert any("of other sources of sepwise" in note and "what won is tried first" in note for note in second.notes)
    assert not any(each.tuned for each in second.kernels)
    lines = evidence(second, "tried")
    assert (lines[1]["workload"], lines[1]["sizes"]) == (kernel.workload, lines[0]["sizes"])
    assert lines[0]["conditions"]["sources"] != lines[1]["conditions"]["sources"] == "0" * 12


def test_the_processor_is_in_what_is_written(run: Callable[..., Tuning], built: tuple[dict[str, Any], Times]) -> None:
    result = run(built[1], trials=BATCH)
    assert result.machine == "a cpu"
    assert {line["machine"] for kind in ("record", "verdict") for line in evidence(result, kind)} == {"a cpu"}


# Structures of chains ---------------------------------------------------------------------------------------------------

CHAIN_TEXT = """<ir_version: 10, opset_import: ["" : 18]>
chain (float[1,16,7,7] x) => (float[1,16,7,7] y)
<float[16,1,3,3] d, float[16,16,1,1] p>
{
  [dw] a = Conv <group = 16, pads = [1,1,1,1]> (x, d)
  [act] r = Relu (a)
  [pw] y = Conv (r, p)
}
"""


@pytest.fixture
def chained(network: Callable[[str], ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tuning]:
    """Tunes a chain, in which kernels take what a function of the strategy says; few candidates are tried of each."""
    path = tmp_path / "chain.onnx"
    onnx.save(ir.to_proto(network(CHAIN_TEXT)), path)
    monkeypatch.setattr(search, "BATCH", 2)
    monkeypatch.setattr(search, "EXACT_PATIENCE", 1)

    def tuned(times: Times, **options: Any) -> Tuning:
        monkeypatch.setattr(tuning, "open_timer", lambda *_: ScriptedTimer(times))
        return tune(path, tmp_path / "db", **options)

    return tuned


def cut_of(path: Path, records: Any = None) -> list[str]:
    """The strategies of a chain's kernels."""
    program, _ = build_program(load_model(path), HOST, records=records)
    return [call.strategy for call in program.calls if call.strategy != "generic"]


FUSED = "depthwise+pointwise"


def test_a_structure_that_is_not_settled_yet_was_tried(chained: Callable[..., Tuning], tmp_path: Path) -> None:
    by_default = cut_of(tmp_path / "chain.onnx")
    (structure,) = chained(lambda strategy, _: 100.0 if strategy in by_default else 20.0, trials=1).structures
    assert (structure.tuned, structure.finished, structure.tried, structure.space) == (True, False, 1, 2)


def test_structures_are_left_out_without_time(chained: Callable[..., Tuning], tmp_path: Path, clock: Clock) -> None:
    by_default = cut_of(tmp_path / "chain.onnx")
    result = chained(lambda strategy, _: 100.0 if strategy in by_default else 20.0, seconds=40.0)
    assert result.structures == ()
    assert result.trials > 0
    assert any(note.startswith("Chains keep their structures: to try others takes about") for note in result.notes)
    assert result.seconds <= 44.0
    (structure,) = chained(lambda strategy, _: 100.0 if strategy in by_default else 20.0).structures
    assert structure.tuned


@pytest.mark.parametrize("fused", [True, False])
def test_the_faster_structure_is_recorded_and_replayed(chained: Callable[..., Tuning], tmp_path: Path, fused: bool) -> None:
    """Whichever structure the prediction takes, the one that is faster is found, verified, kept and used."""
    path = tmp_path / "chain.onnx"

    def times(strategy: str, tile: str) -> float:
        return 100.0 if (strategy == FUSED) == fused else 400.0

    result = chained(times)
    (structure,) = result.structures
    by_default = cut_of(path)
    assert structure.default == f"structure {'kernel0=2' if by_default == [FUSED] else 'kernel0=1 kernel1=1'}"
    assert structure.chosen == f"structure {'kernel0=2' if fused else 'kernel0=1 kernel1=1'}"
    assert structure.tuned == (structure.chosen != structure.default)
    assert (structure.calls, structure.space, structure.tried, structure.finished) == (1, 2, 1, True)
    records = read_records(tmp_path / "db", HOST, 1)
    assert (cut_of(path, records) == [FUSED]) == fused
    assert verify_model(load_model(path), HOST, records=records).passed
    if structure.tuned:
        verdict = next(line for line in evidence(result, "verdict") if line["workload"] == structure.workload)
        assert verdict["strategy"] == "structure"
        verified = {str(line["sizes"]) for line in evidence(result, "record") if line["workload"] == structure.workload}
        assert len(verified) == 2  # with what it is compared with
        assert structure.tuned_time < structure.default_time
        assert result.tuned_time is not None
        assert result.tuned_time < result.default_time
    again = chained(lambda *_: pytest.fail("timed"))
    assert again.trials == again.records == 0
    assert again.notes == (tuning.NOTHING_TO_DO,)
    assert (cut_of(path, read_records(tmp_path / "db", HOST, 1)) == [FUSED]) == fused


def test_kernels_of_a_structure_far_behind_are_not_tuned(chained: Callable[..., Tuning], tmp_path: Path) -> None:
    by_default = cut_of(tmp_path / "chain.onnx")
    chained(lambda strategy, _: 10.0 if strategy in by_default else 1000.0)
    (folder,) = (tmp_path / "db").iterdir()
    lines = [json.loads(line) for line in (folder / EVIDENCE).read_text().splitlines()]
    stages = {len(by_default): "|" in line["workload"] for line in lines if line["workload"].startswith("conv")}
    assert stages == {len(by_default): by_default == [FUSED]}


def test_a_structure_with_a_wrong_kernel_is_never_recorded(
    chained: Callable[..., Tuning], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_default = cut_of(tmp_path / "chain.onnx")
    checked = tuning.KernelChecker.check

    def check(checker: Any, index: int) -> Any:
        found = checked(checker, index)
        if checker.program.calls[index].strategy in by_default:
            return found
        return [replace(each, status="failed", reason="off by 7") for each in found]

    monkeypatch.setattr(tuning.KernelChecker, "check", check)
    result = chained(lambda strategy, _: 100.0 if strategy in by_default else 10.0)
    (structure,) = result.structures
    assert not structure.tuned
    assert structure.chosen == structure.default
    assert [each.reason for each in result.wrong if each.pick.strategy == "structure"] == ["wrong: off by 7"]
    assert not [line for line in evidence(result, "record") if line["workload"].startswith("chain")]
    assert "structure" not in (Path(result.database) / RECORDS).read_text()


def test_a_structure_that_was_faster_and_is_not_any_more_is_taken_back(chained: Callable[..., Tuning], tmp_path: Path) -> None:
    by_default = cut_of(tmp_path / "chain.onnx")
    first = chained(lambda strategy, _: 100.0 if strategy in by_default else 20.0, trials=1)
    assert [each.tuned for each in first.structures] == [True]
    assert not first.structures[0].finished
    second = chained(lambda strategy, _: 100.0 if strategy in by_default else 110.0, trials=1)
    assert [each.tuned for each in second.structures] == [False]
    assert cut_of(tmp_path / "chain.onnx", read_records(tmp_path / "db", HOST, 1)) == by_default


# On boards --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SEARCH_SECONDS", 2.0)
    monkeypatch.setattr(timing, "PAUSE_SECONDS", 0.1)


@pytest.fixture
def before_timing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], None]], None]:
    """Gives a function that has another one told the board and the number of each timing of candidates there, before it begins."""

    def install(tell: Callable[[str, int], None]) -> None:
        time_calls, numbers = RemoteRunner.time_calls, itertools.count(1)

        def told(runner: RemoteRunner, indices: Sequence[int], rounds: int) -> list[list[float]]:
            tell(runner._board.name, next(numbers))
            return time_calls(runner, indices, rounds)

        monkeypatch.setattr(RemoteRunner, "time_calls", told)

    return install


def kill(server: Any) -> None:
    server.process.kill()
    server.process.wait()


def once(connect: Connect) -> Connect:
    """Connects the first time; then no board is free, as a tracker says after its timeout."""
    connects = iter([connect])

    def connect_once(*, within_s: float | None = None) -> Board:
        for each in connects:
            return each(within_s=within_s)
        raise InputError("no board is free")

    return connect_once


@pytest.mark.usefixtures("quickly")
def test_a_server_that_is_killed_twice_costs_two_candidates(
    board_server: Callable[..., Any], before_timing: Callable[..., None], file: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(board_server())]

        def kill_twice(_: str, number: int) -> None:
            if number in (3, 6):  # the first is the default's
                kill(servers[-1])
                servers.append(stack.enter_context(board_server("host", "--port", str(servers[0].port))))

        before_timing(kill_twice)
        result = tune(file, tmp_path / "db", trials=BATCH + 2, boards=list_boards(servers[0].address))
    assert len(servers) == 3
    assert (result.trials, result.method, result.runner) == (BATCH + 2, "measured", "remote")
    assert len(result.wrong) == 2
    assert all("the connection was lost, timing kernels" in each.reason for each in result.wrong)
    tried = evidence(result, "tried")
    assert len({(line["workload"], line["strategy"], str(line["sizes"])) for line in tried}) == len(tried) == BATCH + 2
    assert sum("refused" in line for line in tried) == 2
    records = evidence(result, "record")
    assert len(records) == result.records >= 1
    assert {line["place"] for line in records} == {"remote"}
    assert all('"sepwise.runner"' in line and '\\"remote\\"' in line for line in (Path(result.database) / RECORDS).read_text().splitlines())
    assert len(JSONDatabase(work_dir=result.database, allow_missing=False)) == result.records
    assert verify_model(load_model(file), HOST, records=read_records(tmp_path / "db", HOST, 1)).passed


@pytest.mark.usefixtures("quickly")
def test_a_board_that_is_gone_ends_the_run_and_another_one_goes_on(
    board_server: Callable[..., Any], before_timing: Callable[..., None], file: Path, tmp_path: Path
) -> None:
    with board_server() as server:
        before_timing(lambda _, number: kill(server) if number == 4 else None)
        with pytest.raises(BoardError, match=r"lost, and given up after 2 s\. .* \d records of this run are kept in .*; the same command"):
            tune(file, tmp_path / "db", trials=BATCH, boards=list_boards(server.address))
    (folder,) = (tmp_path / "db").iterdir()
    before = (folder / EVIDENCE).read_bytes()
    settled = [line["kind"] for line in map(json.loads, before.splitlines())].count("tried")
    assert settled <= 3  # the one that was being timed too, as it may have been its fault
    with board_server() as server:
        before_timing(lambda *_: None)
        result = tune(file, tmp_path / "db", trials=BATCH, boards=list_boards(server.address))
    assert (folder / EVIDENCE).read_bytes().startswith(before)
    tried = evidence(result, "tried")
    assert len({(line["workload"], line["strategy"], str(line["sizes"])) for line in tried}) == len(tried) == settled + BATCH


@pytest.mark.usefixtures("quickly")
def test_the_boards_of_a_tracker_work_at_once_and_one_may_go(
    tracker: str,
    tracked_boards: Callable[..., Any],
    board_server: Callable[..., Any],
    before_timing: Callable[..., None],
    file: Path,
    tmp_path: Path,
) -> None:
    options = ("--tracker", tracker, "--key", "desk")
    met, seen = threading.Barrier(2), set()
    with board_server("host", *options) as first, board_server("host", *options):
        boards = tracked_boards(tracker, 2)

        def meet(name: str, number: int) -> None:
            if name not in seen:
                seen.add(name)
                met.wait(60)  # both have begun to time
                if name.endswith(f":{first.port}"):
                    kill(first)

        before_timing(meet)
        result = tune(file, tmp_path / "db", trials=3 * BATCH, boards=list(map(once, boards)))
    assert len(seen) == 2
    assert result.trials == 3 * BATCH
    assert any(re.match(rf"The others go on: Board .*:{first.port}: lost, and given up", note) for note in result.notes)
    assert result.tuned_time is not None
    tried = evidence(result, "tried")
    assert len({(line["workload"], line["strategy"], str(line["sizes"])) for line in tried}) == len(tried) == 3 * BATCH


# Runs that end before their time ----------------------------------------------------------------------------------------

FORKS = """
import json, os, sys
sys.path.insert(0, {folder!r})
from test_tune import run_child
for line in sys.stdin:
    children = []
    for arguments in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            run_child(*arguments)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
os._exit(0)
"""
"""Runs tuners in processes of their own, which begin with all that takes long to import."""


def run_child(file: str, root: str, end: str, number: int, log: str) -> None:
    """Tunes in this process, which then ends: by itself, or at the given line that it writes: killed, or with the disk full."""
    append, settle, numbers = Database._append, Search._settle, itertools.count(1)

    def ending(database: Database, name: str, line: str) -> None:
        if end == "full" and next(numbers) >= number:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            path = database.folder / name
            resource.setrlimit(resource.RLIMIT_FSIZE, ((path.stat().st_size if path.exists() else 0) + 9, limits[1]))
            try:
                append(database, name, line)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if end in ("before", "half", "after") and next(numbers) == number:
            if end != "before":
                with (database.folder / name).open("a") as file:
                    file.write(f"{line}\n" if end == "after" else line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(database, name, line)

    def noting(search: Search, pick: Pick, *others: Any) -> Any:
        with Path(log).open("a") as file:
            file.write(f"{(search.kernel.workload.key, pick)}\n")
        return settle(search, pick, *others)

    def draw(strategy: str, tile: str) -> float:
        return 60.0 + zlib.crc32(f"{strategy} {tile}".encode()) % 40

    Database._append = ending  # type: ignore[method-assign]
    Search._settle = noting  # type: ignore[method-assign]
    tuning.open_timer = lambda *_: ScriptedTimer(draw)  # type: ignore[assignment, misc]
    try:
        tune(file, root, trials=3)
    except InputError as error:
        Path(f"{log}.error").write_text(str(error))
        os._exit(error.exit_status)
    os._exit(0)


@pytest.fixture
def forks(file: Path, tmp_path: Path) -> Iterator[Callable[..., list[int]]]:
    """Gives a function that runs tuners at once: `forks(("half", 3, "log"))`; gives their exit codes."""
    command = [sys.executable, "-c", FORKS.format(folder=str(Path(__file__).parent))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(*ends: tuple[str, int, Path]) -> list[int]:
            arguments = [(str(file), str(tmp_path / "db"), end, number, str(log)) for end, number, log in ends]
            print(json.dumps(arguments), file=process.stdin, flush=True)
            return list(json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()


def lines_of(folder: Path) -> dict[str, list[str]]:
    """The whole lines of a database's files."""
    return {name: (folder / name).read_text().split("\n")[:-1] for name in (EVIDENCE, RECORDS) if (folder / name).exists()}


def require_whole(folder: Path) -> list[dict[str, Any]]:
    """Asserts that a database is in order; gives the lines of evidence."""
    records = lines_of(folder)[RECORDS]
    assert len(JSONDatabase(work_dir=str(folder), allow_missing=False)) == len(records)
    found = [json.loads(line) for line in lines_of(folder)[EVIDENCE]]
    for line in found:
        if line["kind"] == "record":
            assert line["strategy"] in records[line["record"]]
            assert all(f"sepwise.tile.{name}" in records[line["record"]] for name in line["sizes"])
    return found


def names_of(lines: list[dict[str, Any]], kind: str) -> list[str]:
    """The candidates that lines of a kind are about, as a Program names them."""
    return [str((line["workload"], Pick(line["strategy"], tuple(line["sizes"].items())))) for line in lines if line["kind"] == kind]


def test_whoever_is_killed_or_finds_the_disk_full_loses_the_candidate_in_flight(
    forks: Callable[..., list[int]], tmp_path: Path
) -> None:
    before: dict[str, list[str]] = {}
    folder = Database(tmp_path / "db", HOST).folder
    for number, (end, line) in enumerate([("half", 2), ("full", 3), ("after", 2), ("before", 1)]):
        log = tmp_path / f"log{number}"
        assert forks((end, line, log)) == [InputError.exit_status if end == "full" else -signal.SIGKILL]
        if end == "full":
            said = Path(f"{log}.error").read_text()
            assert re.fullmatch(r".*\.jsonl?: .*; all lines before are kept\. Free some space\.", said)
        after = lines_of(folder)
        assert all(after.get(name, [])[: len(lines)] == lines for name, lines in before.items())
        known = [json.loads(each) for each in after.get(EVIDENCE, [])]
        begun = log.read_text().splitlines() if log.exists() else []
        assert len(set(begun) - set(names_of(known, "tried"))) <= 1
        before = after
    assert forks(("by itself", 0, tmp_path / "last")) == [0]
    lines = require_whole(folder)
    assert all(lines_of(folder)[name][: len(each)] == each for name, each in before.items())
    tried = names_of(lines, "tried")
    assert len(set(tried)) == len(tried) >= 3
    assert set(names_of(lines, "verdict")) <= set(names_of(lines, "record"))


def test_two_tuners_share_a_database(forks: Callable[..., list[int]], tmp_path: Path) -> None:
    assert forks(*(("by itself", 0, tmp_path / f"log{number}") for number in range(2))) == [0, 0]
    lines = require_whole(Database(tmp_path / "db", HOST).folder)
    assert len(names_of(lines, "tried")) == 2 * 3
    assert set(names_of(lines, "verdict")) <= set(names_of(lines, "record"))


@pytest.mark.nightly
def test_ten_kills_at_random(file: Path, tmp_path: Path) -> None:
    """The command as it is, with real times."""
    folder = Database(tmp_path / "db", HOST).folder
    command = [sys.executable, "-c", "from sepwise.cli import main; main()", "tune", str(file), "--database", str(tmp_path / "db")]
    began = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "other"), "--trials", str(3 * BATCH)], check=True)
    takes_s = time.monotonic() - began
    random = np.random.default_rng()
    before: dict[str, list[str]] = {}
    for _ in range(10):
        with subprocess.Popen([*command, "--trials", str(3 * BATCH)]) as process:
            time.sleep(random.uniform(0.2, 1.0) * takes_s)
            process.kill()
        after = lines_of(folder) if folder.exists() else {}
        assert all(after.get(name, [])[: len(lines)] == lines for name, lines in before.items())
        before = after
    subprocess.run([*command, "--trials", str(BATCH)], check=True)
    tried = names_of(require_whole(folder), "tried")
    assert len(set(tried)) == len(tried)
