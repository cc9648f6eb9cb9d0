"""Where candidates are timed: which devices can be, and what a loaded Program answers."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sepwise.lowering import device, estimate
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.program import BufferRef, Home, Program, Value
from sepwise.lowering.remote import BoardError, list_boards
from sepwise.lowering.trials import IN_MEMORY, Step, build_candidates
from sepwise.lowering.tuning import timing
from sepwise.lowering.tuning.space import list_candidates
from sepwise.lowering.tuning.timing import BoardGoneError, BoardTimer, EstimateTimer, NativeTimer, Timed, open_timer
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.errors import InputError

SIDE = 6
needs_emulated_a72 = pytest.mark.skipif(
    estimate.llvm_version() is None or shutil.which("qemu-aarch64") is None or not device.get("cortex-a72").emulated,
    reason="llvm-mca or qemu-aarch64 is missing: apt-get install llvm-19 qemu-user",
)


def candidates(target: device.Device, *, warm: bool = False) -> Program:
    """Two pointwise kernels, the best by prediction and the worst; with `warm` the best one before them."""
    c = target.lanes
    workload = ConvWorkload(1, (SIDE, SIDE), (Stage(c, c, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),), False, None, c, c)
    declared = list_candidates(workload, target, 1)
    steps = [Step(workload, each.strategy, each.tile, target) for each in (*declared[:1] * warm, declared[0], declared[-1])]
    held = TensorType((1, c, SIDE, SIDE), "float32", Layout(c))
    values = [Value(name, held, BufferRef(Home.ARENA, 0)) for name in ("x", "y")]
    rng = np.random.default_rng(0)
    weights = [(rng.standard_normal((c, c, 1, 1), dtype=np.float32), np.zeros(c, np.float32))]
    return build_candidates(steps, target, weights, values[:1], values[1])


def inputs(target: device.Device) -> dict[str, np.ndarray]:
    return {f"x{IN_MEMORY}": np.ones((1, 1, SIDE, SIDE, target.lanes), np.float32)}


def test_this_machine_measures() -> None:
    timer = open_timer(device.get("host"), 1)
    assert isinstance(timer, NativeTimer)
    assert (timer.method, timer.place, timer.unit, timer.exact) == ("measured", "native", "us", False)
    assert timer.machine == device.host_processor()
    roof = timer.roof(timer.device)
    assert (roof.origin, roof.unit) == ("measured", "us")
    assert all(level.bytes_per_unit for level in roof.levels)
    timed = timer.load(candidates(timer.device), inputs(timer.device))
    try:
        assert [len(samples) for samples in timed.time([1, 0], 5)] == [5, 5]
        assert [len(samples) for samples in timed.time_network(3)] == [3, 3]
        assert min(map(min, timed.time_network(3))) > 0
    finally:
        timed.close()


def load(timer: BoardTimer) -> Timed:
    return timer.load(candidates(timer.device), inputs(timer.device))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SEARCH_SECONDS", 2.0)
    monkeypatch.setattr(timing, "PAUSE_SECONDS", 0.1)


@pytest.mark.usefixtures("quickly")
def test_a_board_measures_and_is_found_again(board_server: Callable[..., object]) -> None:
    with board_server() as server:
        (connect,) = list_boards(server.address)
        timer = BoardTimer(device.get("host"), 1, connect)
        assert (timer.method, timer.place, timer.unit, timer.exact) == ("measured", "remote", "us", False)
        timed = load(timer)
        assert [len(samples) for samples in timed.time([1, 0, 1], 5)] == [5, 5, 5]
        assert [len(samples) for samples in timed.time_network(3)] == [3, 3]
        assert min(map(min, timed.time_network(3))) > 0
        server.process.kill()
        server.process.wait()
        with pytest.raises(BoardError, match="the connection was lost, timing kernels 'k0'"):
            timed.time([0], 1)
        timed.close()
        with pytest.raises(BoardGoneError, match=r"lost, and given up after 2 s\. The last: .*nobody listens there"):
            load(timer)
    with board_server("host", "--port", str(server.port)):
        timed = load(timer)
        assert len(timed.time([0], 4)[0]) == 4
        timed.close()
        timer.close()


@pytest.mark.usefixtures("quickly")
def test_a_board_that_stays_away_is_waited_for_no_longer_than_said(board_server: Callable[..., object]) -> None:
    with board_server() as server:
        (connect,) = list_boards(server.address)  # whose answers may take a minute each
        timer = BoardTimer(device.get("host"), 1, connect)
        server.process.kill()
        server.process.wait()
        with socket.create_server(("127.0.0.1", server.port)):  # takes clients and says nothing
            with pytest.raises(BoardGoneError, match=r"lost, and given up after 2 s\. The last: .* takes no client within [12][0-9.]* s"):
                load(timer)
        timer.close()


def children(process: int) -> Iterator[int]:
    yield from map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())


def test_a_board_that_hangs_is_found_again(board_server: Callable[..., object]) -> None:
    with board_server() as server:
        (connect,) = list_boards(server.address, timeout_s=3)
        timer = BoardTimer(device.get("host"), 1, connect)
        timed = load(timer)
        for child in children(server.process.pid):
            os.kill(child, signal.SIGSTOP)
        with pytest.raises(BoardError, match="no answer within 3 s, timing kernels 'k0'"):
            timed.time([0], 1)
        timed.close()
        timed = load(timer)  # once the server has killed what hangs
        assert len(timed.time([0], 4)[0]) == 4
        timed.close()
        timer.close()


def test_a_board_that_is_another_device_is_refused(board_server: Callable[..., object]) -> None:
    other = device.get("x86-64-v2" if device.get("host").isa == device.get("cortex-a72").isa else "cortex-a72")
    with board_server() as server:
        (connect,) = list_boards(server.address)
        with pytest.raises(InputError, match=f"which code for the target '{other.name}' needs"):
            BoardTimer(other, 1, connect)


@needs_emulated_a72
@pytest.mark.emulated
def test_an_emulated_core_is_estimated() -> None:
    timer = open_timer(device.get("cortex-a72"), 1)
    assert isinstance(timer, EstimateTimer)
    assert (timer.method, timer.place, timer.unit, timer.exact) == ("estimated", "emulated", "cycles", True)
    assert timer.machine == f"qemu-aarch64 -cpu {timer.device.emulator_cpu}"
    assert (timer.roof(timer.device).unit, timer.roof(timer.device).origin) == ("cycles", "facts")
    timed = timer.load(candidates(timer.device, warm=True), inputs(timer.device))
    try:
        (best,), (worst,) = timed.time([1, 2], 7)
        assert 0 < best < worst
        assert timed.time_network(2)[1:] == [[best], [worst]]
    finally:
        timed.close()


def test_without_qemu_nothing_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    if not device.get("cortex-a72").emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"'cortex-a72': no estimate, qemu-aarch64 is missing .*apt-get install qemu-user"):
        open_timer(device.get("cortex-a72"), 1)


@pytest.mark.parametrize(
    ("target", "threads", "reason"),
    [
        ("cortex-m7", 1, "its cycles are not modelled"),
        ("cortex-a72", 2, "is emulated here, with one thread"),
        ("neoverse-v1", 1, "qemu does not show what scalable vectors load and store"),
    ],
)
def test_what_cannot_be_timed_is_refused(target: str, threads: int, reason: str) -> None:
    if not device.get(target).emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    with pytest.raises(InputError, match=reason):
        open_timer(device.get(target), threads)
