"""`sepwise tune`: what it asks for, what it prints, and a run from end to end."""

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sepwise import api
from sepwise.commands import tune as tuning_command
from sepwise.lowering import device
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.database import Database
from sepwise.lowering.tuning.result import KernelResult, Progress, Tuning
from sepwise.lowering.tuning.search import Wrong

KERNELS = (
    KernelResult("k0", 2, "conv/a", "dense rows=1", "dense rows=2", True, 200.0, 150.0, 0.75, 0.74, 0.76, 380, 24, True),
    KernelResult("k1", 1, "conv/b", "dense rows=1", "dense rows=1", False, 50.0, 50.0, 1.0, 1.0, 1.0, 20, 19, False),
)
CHAINS = (
    KernelResult(
        "k0", 2, "chain/a", "structure kernel0=1 kernel1=1", "structure kernel0=2", True, 220.0, 200.0, 0.91, 0.9, 0.92, 2, 1, True
    ),
    KernelResult("k1", 1, "chain/b", "structure kernel0=1 kernel1=2", "the same", False, 9.0, 9.0, 1.0, 1.0, 1.0, 4, 3, True),
)
TUNING = Tuning(
    "net", "host", "measured", "a cpu", "predicted", "native", "us", 1, "db/host-0", 43, 3, 12.5, 260.0, 210.0, 0.81, 0.8, 0.82, KERNELS,
    CHAINS, (Wrong("k1", Pick("planted", (("rows", 3),)), "wrong: off by <7>"),), ((0, 260.0), (8, 210.0), (43, 210.0)), ("One note.",),
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def tune(model: str, database: Path, **options: Any) -> Tuning:
        options.pop("on_progress")(Progress("k0", 8, 35, 1.0, 61.0, 260.0, 210.0, "us"))
        found.update(model=model, database=database, **options)
        return TUNING

    monkeypatch.setattr(api, "tune", tune)
    return found


def test_what_is_asked_for(command: Callable[..., Any], asked: dict[str, Any]) -> None:
    words = ["--trials", "40", "--seconds", "9.5", "--threads", "2", "--from", "a", "--from", "b", "--shape", "1,3", "--float16"]
    words += ["--search", "evolutionary"]
    words += ["--tracker", "pi:9190", "--key", "desk", "--timeout", "5"]
    assert command("tune", "net.onnx", "--database", "db", "--target", "cortex-a72", *words).status == 0
    assert asked == {
        "model": "net.onnx", "database": Path("db"), "target": "cortex-a72", "trials": 40, "seconds": 9.5, "threads": 2,
        "others": (Path("a"), Path("b")), "shapes": (1, 3), "float16": True,
        "search": "evolutionary",
        "rpc": None, "tracker": "pi:9190", "key": "desk", "timeout": 5.0,
    }  # fmt: skip


@pytest.mark.usefixtures("asked")
def test_the_table_says_what_got_faster(command: Callable[..., Any]) -> None:
    status, out, _ = command("tune", "net.onnx", "--database", "db")
    assert status == 0
    assert "measured (native on a cpu)" in out
    kernels, chains = out.split("Chains of convolutions")
    first, second = (next(line for line in kernels.splitlines() if name in line) for name in ("k0", "k1 "))
    assert "0.75" in first
    assert "dense rows=2" in first
    assert "24 of 379" in first
    assert "default" in second
    assert "19 of 19" in second
    first, second = (next(line for line in chains.splitlines() if name in line) for name in ("k0", "k1 "))
    assert [cell.strip() for cell in first.split("│")[-3:-1]] == ["1 of 1", "2"]
    assert [cell.strip() for cell in second.split("│")[-3:-1]] == ["3 of 3", "default (1 + 2)"]
    assert "refused: k1, planted rows=3: wrong: off by <7>" in out
    assert "One note." in out
    assert "260 -> 210 us for all kernels, 0.81 of the default" in out


def test_off_a_terminal_lines_say_how_far_it_has_come(
    command: Callable[..., Any], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, enough, answer = [], threading.Event(), api.tune

    def note(message: str) -> None:
        said.append(message)
        if len(said) == 3:
            enough.set()

    def tune(*words: Any, **options: Any) -> Tuning:
        found = answer(*words, **options)
        assert enough.wait(60)
        return found

    monkeypatch.setattr(tuning_command, "say", note)
    monkeypatch.setattr(tuning_command, "LINE_SECONDS", 0.001)
    monkeypatch.setattr(api, "tune", tune)
    assert command("tune", "net.onnx", "--database", "db").status == 0
    line = r"tuning net\.onnx for host: k0, \d:\d\d, 8 tried, about 210 us, 0\.808 of 260, \d:\d\d left"
    assert all(re.fullmatch(line, each) for each in said[:3])


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("compiling", 0, 0, 0.2, None, None, None, "us"), "compiling, 0:03"),
        (Progress("compiling", 0, 0, 0.2, 50.0, None, None, "us"), "compiling, 0:03, 0:47 left"),
        (Progress("the play-off", 40, 0, 100.0, 2.0, 99.0, 99.0, "cycles"), "the play-off, 1:43, 40 tried, about 99 cycles, 1 of 99, 0:00 left"),
    ],
)
def test_what_is_not_known_is_not_said(progress: Progress, line: str) -> None:
    assert tuning_command._spell(progress, 3.0) == line


@pytest.mark.usefixtures("asked")
def test_json(command: Callable[..., Any]) -> None:
    status, out, _ = command("tune", "net.onnx", "--database", "db", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["model"], found["target"], found["method"], found["trials"], found["seconds"]) == ("net", "host", "measured", 43, 12.5)
    assert (found["default_us"], found["tuned_us"]) == (260.0, 210.0)
    assert (found["kernels"][0]["default_us"], found["kernels"][0]["tuned_us"]) == (200.0, 150.0)
    assert found["wrong"] == [{"kernel": "k1", "candidate": "planted rows=3", "reason": "wrong: off by <7>"}]


@pytest.mark.usefixtures("asked")
def test_a_page(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("tune", "net.onnx", "--database", "db", "--html", tmp_path / "t.html").status == 0
    page = (tmp_path / "t.html").read_text()
    assert "sepwise tune net.onnx --database db" in page
    assert page.count("<svg") == 2
    assert "off by &lt;7&gt;" in page
    assert "<script" not in page


def test_a_folder_that_is_missing_is_told(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    answer = command("compile", network, "--shape", "1,3,6,6", "-o", tmp_path / "d", "--database", tmp_path / "none")
    assert answer.status == 2
    assert "sepwise tune MODEL --database" in answer.err


def test_from_a_model_to_an_artifact(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    words = ("--shape", "1,3,6,6")
    tuned = command("tune", network, "--database", tmp_path / "db", *words, "--trials", "2", "--json")
    assert tuned.status == 0
    found = json.loads(tuned.out)
    assert found["trials"] == 2
    assert found["machine"] == device.host_processor()
    assert "compiling" not in tuned.out
    compiled = command("compile", network, *words, "-o", tmp_path / "d", "--database", tmp_path / "db", "--json")
    assert json.loads(compiled.out)["records_used"] == len(found["kernels"]) == 1


def test_databases_are_merged_without_tuning(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    words = ("--shape", "1,3,6,6")
    assert command("tune", network, "--database", tmp_path / "one", *words, "--trials", "2").status == 0
    merge = ("tune", network, "--database", tmp_path / "db", *words, "--from", tmp_path / "one", "--seconds", "0")
    first, again = (json.loads(command(*merge, "--json").out) for _ in range(2))
    assert first["kernels"] == again["kernels"] == []
    assert first["notes"][0].endswith(f"verdicts and 2 candidates that were tried were taken over from {tmp_path / 'one'}.")
    assert again["notes"][0] == f"Nothing in {tmp_path / 'one'} is new here."
    compiled = command("compile", network, *words, "-o", tmp_path / "d", "--database", tmp_path / "db", "--json")
    assert json.loads(compiled.out)["records_used"] == 1
    a53 = command(*merge, "--target", "cortex-a53")
    assert a53.status == 0
    assert "has nothing of 'cortex-a53' with these facts; it has host-" in a53.out


def test_a_folder_without_a_database_is_told(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ("tune", network, "--shape", "1,3,6,6", "--database", tmp_path / "db", "--seconds", "0")
    answer = command(*words, "--from", tmp_path / "empty")
    assert answer.status == 2
    assert "empty: there is no database in it" in answer.err
    assert not (tmp_path / "db").exists()
    one = Database(tmp_path / "one", device.get("host"))
    one.create()
    answer = command(*words, "--from", one.folder)
    assert answer.status == 2
    assert f"It is the folder of one device; give {tmp_path / 'one'}." in answer.err
    answer = command(*words)
    assert answer.status == 2
    assert "No candidate was timed" in answer.err


def test_a_board_that_is_not_there_is_told(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    answer = command("tune", network, "--database", tmp_path / "db", "--shape", "1,3,6,6", "--rpc", address)
    assert answer.status == 2
    assert f"Board {address}: nobody listens there" in answer.err
    assert not (tmp_path / "db").exists()
    answer = command("tune", network, "--database", tmp_path / "db", "--tracker", address)
    assert answer.status == 2
    assert "Give one with --key" in answer.err
