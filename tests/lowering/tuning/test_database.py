"""The database: what is written is there whatever happens, and holds only where it was made."""

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sepwise.lowering import device
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning import database
from sepwise.lowering.tuning.database import (
    DEVICE,
    EVIDENCE,
    RECORDS,
    WORKLOADS,
    Database,
    Evidence,
    Verdict,
    find_conditions,
    find_neighbours,
    read_picks,
    read_records,
)
from sepwise.lowering.tuning.intervals import Interval, Times
from sepwise.passes.errors import InputError

A72 = device.get("cortex-a72")
HERE = find_conditions(A72, 1, "measured")
SEVEN = Pick("pointwise", (("pixels", 7), ("oc_vectors", 2)))
FOUR = Pick("dense", (("pixels", 4), ("oc_vectors", 4)))
RATIO = Interval(0.9, 0.88, 0.92)
TIMES = Times(9.0, 8.5, 10.0, 9.5, 48)


def trace(pick: Pick) -> list[object]:
    """What is behind the workload of MetaSchedule's line, as TVM writes it (see test_metaschedule)."""
    said = [("strategy", json.dumps(pick.strategy)), *((f"tile.{name}", size) for name, size in pick.sizes)]
    steps = [["Annotate", ["b0", value], [f"sepwise.{key}"], []] for key, value in said]
    return [[[["GetSBlock", [], ["root", "main"], ["b0"]], *steps], []], [1e-5], {"kind": "llvm"}, []]


def record(into: Database, workload: str, pick: Pick) -> Evidence:
    evidence = Evidence(pick, -1, TIMES, RATIO, 0.25, "native", "a cpu")
    return into.add_record(HERE, workload, (json.dumps([f"hash of {workload}", "..."]), trace(pick)), evidence)


def settle(into: Database, workload: str, pick: Pick, *, finished: bool = True) -> None:
    written = record(into, workload, pick)
    verdict = Verdict(pick, written.record, True, TIMES, RATIO, finished, None)
    into.add_verdict(HERE, workload, verdict)


@pytest.fixture
def own(tmp_path: Path) -> Database:
    found = Database(tmp_path / "db", A72)
    found.create()
    return found


def test_what_is_written_is_read(own: Database) -> None:
    own.add_tried(HERE, "w", SEVEN, RATIO, 48, None)
    own.add_tried(HERE, "w", FOUR, None, 0, "does not compile")
    settle(own, "w", SEVEN)
    settle(own, "v", FOUR, finished=False)
    found = own.read(HERE)
    assert found.tried == {"w": {SEVEN, FOUR}}
    assert found.records["w"] == {SEVEN: Evidence(SEVEN, 0, TIMES, RATIO, 0.25, "native", "a cpu")}
    assert found.verdicts["v"] == Verdict(FOUR, 1, True, TIMES, RATIO, False, None)
    assert found.refused == {}
    lines = [json.loads(line) for line in (own.folder / EVIDENCE).read_text().splitlines()]
    assert all(line["low"] < line["ratio"] < line["high"] and line["rounds"] == 48 for line in lines if "refused" not in line)
    assert {line["kind"]: line["minimum"] for line in lines if line["kind"] != "tried"} == {"record": 8.5, "verdict": 8.5}
    assert next(line["machine"] for line in lines if line["kind"] == "record") == "a cpu"
    assert read_records(own.root, A72, 1) == {"w": SEVEN, "v": FOUR}


def test_a_record_without_a_verdict_decides_nothing(own: Database) -> None:
    record(own, "w", SEVEN)
    assert read_records(own.root, A72, 1) == {}


def test_a_workload_is_written_once(own: Database) -> None:
    settle(own, "w", SEVEN)
    settle(own, "v", SEVEN)
    settle(own, "w", FOUR)
    assert len((own.folder / WORKLOADS).read_text().splitlines()) == 2
    assert [json.loads(line)[0] for line in (own.folder / RECORDS).read_text().splitlines()] == [0, 1, 0]
    assert own.read(HERE).verdicts["w"].pick == FOUR


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sepwise": "0.0.1"}, r"1 record is of sepwise 0\.0\.1, this is"),
        ({"sources": "0" * 12}, r"1 record is of other sources of sepwise .* \(0{12}\), these are [0-9a-f]{12}"),
        ({"tvm": "0.20"}, r"1 record is of tvm 0\.20, this is"),
        ({"threads": 2}, r"1 record is for 2 thread\(s\)"),
        ({"device": "0" * 12}, "1 record is of another device"),
    ],
)
def test_records_of_other_conditions_are_refused_with_a_reason(
    own: Database, caplog: pytest.LogCaptureFixture, change: dict[str, object], reason: str
) -> None:
    written = record(own, "w", SEVEN)
    own.add_verdict(replace(HERE, **change), "w", Verdict(SEVEN, written.record, True, TIMES, RATIO, True, None))
    with caplog.at_level(logging.WARNING):
        assert read_records(own.root, A72, 1) == {}
    assert any(re.search(reason, message) for message in caplog.messages)


def test_records_that_say_nothing_of_their_sources_are_of_others(own: Database, caplog: pytest.LogCaptureFixture) -> None:
    settle(own, "w", SEVEN)
    lines = [json.loads(line) for line in (own.folder / EVIDENCE).read_text().splitlines()]
    for line in lines:
        del line["conditions"]["sources"]
    (own.folder / EVIDENCE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_records(own.root, A72, 1) == {}
    assert "1 record is of other sources of sepwise" in caplog.text
    assert "(not recorded)" in caplog.text
    assert read_picks(own) == {"w": [SEVEN]}  # a candidate all the same


def test_what_is_refused_is_told_though_others_hold(own: Database, caplog: pytest.LogCaptureFixture) -> None:
    written = record(own, "w", SEVEN)
    for workload in ("w", "v", "u"):
        refused = Verdict(SEVEN, written.record, True, TIMES, RATIO, True, None)
        own.add_verdict(replace(HERE, threads=2), workload, refused)
    settle(own, "w", FOUR)
    assert read_records(own.root, A72, 1) == {"w": FOUR}
    assert "not used for 'cortex-a72' with 1 thread(s): 2 records are for 2 thread(s)." in caplog.text
    caplog.clear()
    settle(own, "v", FOUR)
    settle(own, "u", FOUR)
    assert len(read_records(own.root, A72, 1)) == 3
    assert not caplog.text


def test_what_was_measured_goes_before_what_was_estimated(own: Database) -> None:
    settle(own, "w", SEVEN)
    for workload in ("w", "v"):
        written = record(own, workload, FOUR)
        estimated = Verdict(FOUR, written.record, True, TIMES, RATIO, True, None)
        own.add_verdict(find_conditions(A72, 1, "estimated"), workload, estimated)
    assert read_records(own.root, A72, 1) == {"w": SEVEN, "v": FOUR}
    assert set(own.read(HERE).verdicts) == {"w"}


def test_records_of_another_device_are_named(own: Database, caplog: pytest.LogCaptureFixture) -> None:
    settle(own, "w", SEVEN)
    with caplog.at_level(logging.WARNING):
        assert read_records(own.root, device.get("cortex-a55"), 1) == {}
    assert "cortex-a72-" in caplog.text


def test_a_folder_that_is_another_devices_is_refused(own: Database) -> None:
    other = Database(own.root, device.get("cortex-a55"))
    own.folder.rename(other.folder)
    with pytest.raises(InputError, match="describes another device than 'cortex-a55'"):
        other.create()


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder; `sepwise tune MODEL --database"):
        read_records(tmp_path / "none", A72, 1)


def test_a_record_of_another_kernel_is_left_out(own: Database, caplog: pytest.LogCaptureFixture) -> None:
    written = record(own, "w", SEVEN)
    own.add_verdict(HERE, "w", Verdict(FOUR, written.record, True, TIMES, RATIO, True, None))
    assert own.read(HERE).verdicts == {}
    assert "record 0 is of another kernel" in caplog.text


@pytest.mark.parametrize("name", [EVIDENCE, RECORDS, WORKLOADS])
def test_half_a_line_is_left_out_and_cut_off(own: Database, caplog: pytest.LogCaptureFixture, name: str) -> None:
    settle(own, "w", SEVEN)
    path = own.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole + b'[1,{"half')
    assert own.read(HERE).verdicts["w"].pick == SEVEN
    settle(own, "v", FOUR)
    assert path.read_bytes().startswith(whole)
    assert b"half" not in path.read_bytes()
    assert "its last line is cut off" in caplog.text
    assert read_records(own.root, A72, 1) == {"w": SEVEN, "v": FOUR}


def test_a_damaged_line_takes_nothing_else_with_it(own: Database, caplog: pytest.LogCaptureFixture) -> None:
    settle(own, "w", SEVEN)
    with (own.folder / EVIDENCE).open("a") as file:
        file.write("garbage\n")
    settle(own, "v", FOUR)
    assert set(own.read(HERE).verdicts) == {"w", "v"}
    assert f"{EVIDENCE}, line 3" in caplog.text


@pytest.mark.parametrize(("fact", "value"), [("sizes", [1]), ("tuned", None), ("record", "first"), ("median", "fast")])
def test_a_line_with_a_wrong_fact_is_left_out_wherever_it_is_read(
    own: Database, tmp_path: Path, fact: str, value: object
) -> None:
    settle(own, "w", SEVEN)
    lines = (own.folder / EVIDENCE).read_text().splitlines()
    wrong = [json.dumps({**json.loads(line), "workload": "v", fact: value}) for line in lines]
    (own.folder / EVIDENCE).write_text("\n".join([*lines, wrong[-1], ""]))
    assert set(own.read(HERE).verdicts) == {"w"}
    assert read_picks(own) == {"w": [SEVEN]}
    other = Database(tmp_path / "other", A72)
    other.create()
    assert other.merge(own)["record"] == 1
    assert read_records(other.root, A72, 1) == {"w": SEVEN}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Lets no file grow by more than a few bytes: a write is cut short, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("room", [0, 20])
def test_a_full_disk_is_told_and_nothing_is_damaged(own: Database, room: int) -> None:
    settle(own, "w", SEVEN)
    before = {path.name: path.read_bytes() for path in own.folder.iterdir()}
    size = len(before[EVIDENCE])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(InputError, match="all lines before are kept"):
        own.add_tried(HERE, "w", FOUR, RATIO, 48, None)
    assert {path.name: path.read_bytes() for path in own.folder.iterdir()} == before


WRITER = """
import sys, json
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_database import *
own = Database(Path({root!r}), A72)
for number in range({count}):
    settle(own, f"{name} {{number}}", SEVEN)
    print(number, flush=True)
"""


def start_writer(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    text = WRITER.format(folder=str(Path(__file__).parent), root=str(root), name=name, count=count)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def test_two_writers_and_one_that_is_killed_lose_nothing(own: Database) -> None:
    one, other = (start_writer(own.root, name, 10**6) for name in "ab")
    told = {}
    for name, process in (("a", one), ("b", other)):
        assert process.stdout is not None
        for _ in range(12):
            told[name] = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    settle(own, "last", FOUR)
    found = own.read(HERE).verdicts
    assert {f"{name} {number}" for name, last in told.items() for number in range(last + 1)} <= set(found)
    assert found["last"].pick == FOUR
    workloads = [json.loads(line)[0] for line in (own.folder / WORKLOADS).read_text().splitlines()]
    assert len(workloads) == len(set(workloads))
    for line in (own.folder / EVIDENCE).read_text().splitlines():
        evidence = json.loads(line)
        index, _ = json.loads((own.folder / RECORDS).read_text().splitlines()[evidence["record"]])
        assert workloads[index] == f"hash of {evidence['workload']}"


def lines_of(folder: Path) -> list[str]:
    """All evidence, apart from where its records stand."""
    found = [json.loads(line) for line in (folder / EVIDENCE).read_text().splitlines()]
    return sorted(json.dumps({**line, "record": line.get("record") is not None}, sort_keys=True) for line in found)


@pytest.fixture
def other(tmp_path: Path) -> Database:
    found = Database(tmp_path / "other", A72)
    found.create()
    return found


def test_a_merge_adds_all_that_is_missing_and_only_once(own: Database, other: Database) -> None:
    settle(own, "w", SEVEN, finished=False)
    own.add_tried(HERE, "w", SEVEN, RATIO, 48, None)
    settle(other, "v", FOUR)
    settle(other, "w", FOUR)
    other.add_tried(HERE, "w", FOUR, RATIO, 48, None)
    other.add_tried(replace(HERE, threads=2), "u", FOUR, RATIO, 48, None)
    assert own.merge(other) == {"record": 2, "verdict": 2, "tried": 2}
    found = own.read(HERE)
    assert found.tried == {"w": {SEVEN, FOUR}}
    assert found.records.keys() == {"v", "w"}
    assert found.records["w"].keys() == {SEVEN, FOUR}
    before = (own.folder / EVIDENCE).read_bytes()
    assert not own.merge(other)
    assert (own.folder / EVIDENCE).read_bytes() == before
    settle(other, "t", SEVEN)
    assert own.merge(other) == {"record": 1, "verdict": 1}


def test_merged_either_way_the_same_is_known(own: Database, other: Database) -> None:
    settle(own, "w", SEVEN, finished=True)
    settle(other, "w", FOUR, finished=False)
    settle(other, "v", FOUR, finished=True)
    settle(own, "v", SEVEN, finished=True)
    first = lines_of(other.folder)
    assert own.merge(other)
    assert other.merge(own)
    assert lines_of(own.folder) == lines_of(other.folder)
    assert set(first) <= set(lines_of(own.folder))
    assert read_records(own.root, A72, 1) == read_records(other.root, A72, 1) == {"w": SEVEN, "v": SEVEN}


def test_what_another_has_not_found_takes_nothing_away(own: Database, other: Database) -> None:
    settle(own, "w", SEVEN, finished=False)
    default = record(other, "w", FOUR)
    other.add_verdict(HERE, "w", Verdict(FOUR, default.record, False, TIMES, RATIO, True, None))
    other.add_verdict(HERE, "v", Verdict(FOUR, record(other, "v", FOUR).record, False, TIMES, RATIO, True, None))
    assert own.merge(other) == {"record": 2, "verdict": 1}
    assert own.read(HERE).verdicts["w"].pick == SEVEN
    assert own.read(HERE).verdicts["v"].pick == FOUR


def test_a_verdict_of_a_record_that_was_merged_before_comes_after_it(own: Database, other: Database) -> None:
    written = record(other, "w", SEVEN)
    settle(own, "v", FOUR)
    assert own.merge(other) == {"record": 1}
    other.add_verdict(HERE, "w", Verdict(SEVEN, written.record, True, TIMES, RATIO, True, None))
    assert own.merge(other) == {"verdict": 1}
    assert read_records(own.root, A72, 1) == {"v": FOUR, "w": SEVEN}
    assert len((own.folder / RECORDS).read_text().splitlines()) == 2


def test_what_is_finished_goes_before_what_is_not_and_the_latest_before_all(own: Database) -> None:
    settle(own, "w", SEVEN, finished=False)
    settle(own, "w", FOUR, finished=False)
    assert own.read(HERE).verdicts["w"].pick == FOUR
    settle(own, "w", SEVEN)
    settle(own, "w", FOUR, finished=False)
    assert own.read(HERE).verdicts["w"].pick == SEVEN
    settle(own, "w", FOUR)
    assert own.read(HERE).verdicts["w"].pick == FOUR


@pytest.mark.parametrize("name", [EVIDENCE, RECORDS, WORKLOADS])
def test_a_merge_leaves_out_what_is_damaged(own: Database, other: Database, name: str) -> None:
    (other.folder / name).write_text("garbage\n")
    settle(other, "v", FOUR)
    settle(other, "w", SEVEN)
    assert own.merge(other)["record"] == 2
    assert read_records(own.root, A72, 1) == {"v": FOUR, "w": SEVEN}


def test_a_merge_with_nothing_adds_nothing(own: Database, tmp_path: Path) -> None:
    assert not own.merge(Database(tmp_path, A72))


def test_neighbours_are_those_of_the_same_kind_the_nearest_first(tmp_path: Path) -> None:
    for name in ("cortex-a53", "cortex-a55", "x86-64-v3"):
        there = Database(tmp_path, device.get(name))
        there.create()
        settle(there, "w", SEVEN)
    found = find_neighbours([tmp_path], A72)
    assert {each.device.cpu for each in found} == {"cortex-a53", "cortex-a55"}
    distances = [database._distance(A72, each.device) for each in found]
    assert distances == sorted(distances)
    assert read_picks(found[0]) == {"w": [SEVEN]}


def test_a_board_of_the_same_facts_is_the_nearest_neighbour(tmp_path: Path) -> None:
    for name in ("cortex-a76", "cortex-a72"):
        Database(tmp_path, device.get(name)).create()
    assert [each.device.name for each in find_neighbours([tmp_path], device.get("rpi4"))] == ["cortex-a72", "cortex-a76"]
    assert [each.device.name for each in find_neighbours([tmp_path], A72)] == ["cortex-a76"]


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Database(tmp_path / "file", A72).create()


def test_the_device_is_described_beside(own: Database) -> None:
    assert json.loads((own.folder / DEVICE).read_text())["cpu"] == "cortex-a72"
    assert os.listdir(own.root) == [own.folder.name]
