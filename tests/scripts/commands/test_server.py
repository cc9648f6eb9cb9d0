"""A board from the command line: the server that `sepwise server` makes, and the commands that reach it."""

import itertools
import json
import os
import platform
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepwise.lowering.board_server import SERVER
from sepwise.lowering.remote import Board, open_board

SHAPE = ("--shape", "1,3,6,6")
EMULATED = "cortex-a72"


@pytest.fixture(scope="module", params=["host", pytest.param(EMULATED, marks=pytest.mark.emulated)])
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def board(target: str, board_server: Callable[..., Any]) -> Iterator[tuple[str, ...]]:
    """The options that name a board, which is this machine or an emulated one."""
    with board_server(target) as server:
        yield ("--target", target, "--rpc", server.address)


def test_the_folder(command: Callable[..., Any], tmp_path: Path) -> None:
    made = tmp_path / "board"
    found = json.loads(command("server", "--target", "host", "-o", made, "--json").out)
    assert found == {
        "target": "host",
        "folder": str(made),
        "files": ["libtvm_ffi.so", "libtvm_runtime.so", SERVER],
        "start": f"board/{SERVER}",
    }
    assert sorted(path.name for path in made.iterdir()) == found["files"]
    with subprocess.Popen([made / SERVER, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on 127.0.0.1 port ")
        process.kill()
    assert f"ssh -t -L 9090:localhost:9090 USER@BOARD board/{SERVER}" in command("server", "--target", "host", "-o", made).out


@pytest.mark.parametrize("fails", [False, True])
def test_the_folder_on_a_board(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    scp = tmp_path / "bin" / "scp"
    ending = "echo 'scp: rpc_server: Text file busy' >&2; exit 1" if fails else f'test "$4" = pi@desk: && cp -r "$3" {tmp_path / "home"}'
    scp.write_text(f"#!/bin/sh\n{ending}\n")
    scp.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    status, out, err = command("server", "--target", "host", "-o", tmp_path / "board", "--copy", "pi@desk")
    if fails:
        assert (status, out) == (2, "")
        assert "--copy pi@desk: scp says 'scp: rpc_server: Text file busy'. Check `ssh pi@desk`" in err
        return
    assert status == 0
    assert f"ssh -t -L 9090:localhost:9090 pi@desk board/{SERVER}" in out
    assert {path.name for path in (tmp_path / "home" / "board").iterdir()} == {"libtvm_ffi.so", "libtvm_runtime.so", SERVER}


def test_a_copy_that_cannot_be(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for board in ("-oProxyCommand=ls", "pi@desk:there", "folder/desk"):
        status, _, err = command("server", "--target", "host", "-o", tmp_path / "board", f"--copy={board}")
        assert status == 2
        assert f"--copy {board}: needed is USER@BOARD" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = command("server", "--target", "host", "-o", tmp_path / "board", "--copy", "pi@desk")
    assert status == 2
    assert "--copy pi@desk: scp is missing here" in err
    assert not (tmp_path / "board").exists()


def test_targets_without_a_server(command: Callable[..., Any], tmp_path: Path) -> None:
    status, _, err = command("server", "--target", "cortex-m7", "-o", tmp_path / "board")
    assert status == 2
    assert "boards are reached whose Linux is aarch64 or x86_64" in err
    assert not (tmp_path / "board").exists()


def test_run(command: Callable[..., Any], network: Path, board: tuple[str, ...], target: str, tmp_path: Path) -> None:
    command("compile", network, *SHAPE, "-o", tmp_path / "net", "--target", target)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32))
    words = ("run", tmp_path / "net", "--input", f"x={tmp_path / 'x.npy'}", "-o")
    assert command(*words, tmp_path / "here.npz").status == 0
    assert command(*words, tmp_path / "there.npz", *board[2:]).status == 0
    with np.load(tmp_path / "here.npz") as here, np.load(tmp_path / "there.npz") as there:
        np.testing.assert_array_equal(there["y"], here["y"])


def test_verify(command: Callable[..., Any], network: Path, board: tuple[str, ...], target: str) -> None:
    status, out, _ = command("verify", network, *SHAPE, *board, "--json")
    found = json.loads(out)
    assert (status, found["passed"], found["target"]) == (0, True, target)
    assert {check["scope"] for check in found["checks"]} == {"graph", "kernel", "model"}


def test_bench(command: Callable[..., Any], network: Path, board: tuple[str, ...], target: str) -> None:
    status, out, _ = command("bench", network, *SHAPE, *board, "--json")
    found = json.loads(out)
    assert (status, found["method"], found["target"], found["speedup"]) == (0, "remote", target, {})
    assert [runtime["name"] for runtime in found["runtimes"]] == ["sepwise"]
    assert all(kernel["median_us"] > 0 for kernel in found["kernels"])


def test_tune(command: Callable[..., Any], network: Path, board: tuple[str, ...], target: str, tmp_path: Path) -> None:
    words = (network, *SHAPE, *board, "--database", tmp_path / "db", "--json")
    status, out, _ = command("tune", *words, "--trials", "3")
    found = json.loads(out)
    assert (status, found["method"], found["runner"], found["target"]) == (0, "measured", "remote", target)
    assert found["trials"] == 3
    assert found["kernels"]
    status, out, _ = command("verify", *words)
    assert (status, json.loads(out)["passed"]) == (0, True)


def test_what_a_board_does_not_do(command: Callable[..., Any], network: Path, board: tuple[str, ...], target: str) -> None:
    other = "x86-64-v2" if target != "host" or platform.machine() == "aarch64" else "rpi4"
    refused = {
        ("bench", network, *SHAPE, *board, "--against", "onnxruntime"): "measures ours alone, peers run natively only",
        ("bench", network, *SHAPE, *board, "--cores", "cortex-a72"): "runs on a board and is measured",
        ("verify", network, *SHAPE, *board, "--bisect"): "a failure is narrowed down here",
        ("verify", network, *SHAPE, *board[2:], "--against", network): "two files are compared here",
        ("verify", network, *board[2:], "--bundle", "folder"): "--rpc: a bundle is verified as it was made",
        ("bench", network, *SHAPE, *board, "--tracker", "desk:9190"): "a board is reached by one of them",
        ("bench", network, *SHAPE, *board, "--timeout", "1e9"): "--timeout 1e+09: needed are seconds",
    }
    for verb in ("bench", "verify"):
        refused[verb, network, *SHAPE, *board, "--target", other] = f"which code for the target '{other}' needs"
        refused[verb, network, *SHAPE, *board, "--target", "cortex-a7"] = "Target 'cortex-a7': boards are reached whose Linux is aarch64 or"
    for words, reason in refused.items():
        status, out, err = command(*words)
        assert (status, out, err.count("\n")) == (2, "", 1), words
        assert reason in err


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], None]], None]:
    """Gives a function that has something done each time before a board is asked for what begins with some words."""

    def install(words: str, do: Callable[[], None]) -> None:
        ask = Board.ask

        def done_before(board: Board, doing: str, function: Callable[..., Any], *arguments: object) -> Any:
            if doing.startswith(words):
                do()
            return ask(board, doing, function, *arguments)

        monkeypatch.setattr(Board, "ask", done_before)

    return install


def kill(server: Any) -> None:
    """Kills a server, and with it whoever it serves."""
    server.process.kill()
    server.process.wait()


@pytest.mark.emulated
@pytest.mark.parametrize("verb", ["run", "verify", "bench"])
def test_a_server_that_is_killed(
    command: Callable[..., Any],
    network: Path,
    board_server: Callable[..., Any],
    before: Callable[..., None],
    tmp_path: Path,
    verb: str,
) -> None:
    words: tuple[object, ...] = (verb, network, *SHAPE, "--target", EMULATED)
    if verb == "run":
        command("compile", *words[1:], "-o", tmp_path / "net")
        np.save(tmp_path / "x.npy", np.zeros((1, 3, 6, 6), np.float32))
        words = (verb, tmp_path / "net", "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz")
    with board_server(EMULATED) as server:
        before("running", partial(kill, server))
        status, out, err = command(*words, "--rpc", server.address)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"sepwise: Board {server.address}: the connection was lost, running .*\n", err)
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.emulated
def test_a_server_that_is_killed_and_started_again_costs_a_candidate(
    command: Callable[..., Any],
    network: Path,
    board_server: Callable[..., Any],
    before: Callable[..., None],
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        first, numbers = stack.enter_context(board_server(EMULATED)), itertools.count(1)

        def restart() -> None:
            if next(numbers) == 2:  # the default was timed
                kill(first)
                stack.enter_context(board_server(EMULATED, "--port", str(first.port)))

        before("timing kernels", restart)
        words = (network, *SHAPE, "--target", EMULATED, "--database", tmp_path / "db")
        status, out, _ = command("tune", *words, "--rpc", first.address, "--trials", "3", "--json")
    found = json.loads(out)
    assert (status, found["trials"], found["runner"]) == (0, 3, "remote")
    assert ["the connection was lost, timing kernels" in each["reason"] for each in found["wrong"]] == [True]


@pytest.mark.emulated
def test_a_board_that_hangs_and_one_that_is_busy(
    command: Callable[..., Any], network: Path, board_server: Callable[..., Any], before: Callable[..., None]
) -> None:
    words = ("bench", network, *SHAPE, "--target", EMULATED)
    with board_server(EMULATED) as server:

        def stop() -> None:
            for child in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGSTOP)

        with open_board(server.address):
            status, out, err = command(*words, "--rpc", server.address, "--timeout", "1")
        assert (status, out) == (2, "")
        assert f"Board {server.address}: busy with another client for 1 s" in err
        before("running", stop)
        status, out, err = command(*words, "--rpc", server.address, "--timeout", "2")
        assert (status, out) == (2, "")
        assert f"Board {server.address}: no answer within 2 s, running " in err
