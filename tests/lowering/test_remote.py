"""Boards: the same numbers over the wire as here, and a clear word for whatever can go wrong on the way."""

import itertools
import math
import os
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from tvm import rpc
from tvm.rpc import base

from sepwise.lowering import device
from sepwise.lowering.guarded import StrayAccessError
from sepwise.lowering.program import Program, Tail
from sepwise.lowering.remote import Board, BoardError, Connect, RemoteRunner, list_boards, open_board, read_address
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

Tensors = dict[str, np.ndarray]

TARGETS = ["host", pytest.param("cortex-a72", marks=pytest.mark.emulated)]
OTHER = "x86-64-v2" if platform.machine() == "aarch64" else "cortex-a72"

HANGING_KERNELS = """
#include <stdint.h>
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) {}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {
  for (volatile int forever = 1; forever;) {}
}
"""

TRAPPING_KERNELS = HANGING_KERNELS.replace("for (volatile int forever = 1; forever;) {}", "__builtin_trap();")

STRAY_KERNELS = """
#include <stdint.h>
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) { y[280 * task] = 1; }
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {
  for (int p = 0; p < 35; ++p) s[task * 35 + p] = 1;
  z[task] = 1;
}
"""


def inputs_of(tensors: Tensors) -> Tensors:
    return {"x": tensors["x"], "shift": tensors["shift"]}


def serve_once(address: str, built: Program, tensors: Tensors) -> None:
    """Waits for a server, and has it compute what it should."""
    with open_board(address) as board, RemoteRunner(built, board) as runner:
        np.testing.assert_array_equal(runner.run(inputs_of(tensors))["z"], tensors["z"])


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def board(target: str, board_server: Callable[..., object]) -> Iterator[Board]:
    with board_server(target) as server, Board(("127.0.0.1", server.port)) as connected:
        yield connected


@pytest.fixture(scope="module", params=[1, 3], ids="{} workers".format)
def runner(request: pytest.FixtureRequest, target: str, board: Board, c_program: Callable[..., Program]) -> Iterator[RemoteRunner]:
    with RemoteRunner(c_program(target), board, threads=request.param) as opened:
        yield opened


def test_outputs(runner: RemoteRunner, c_program_tensors: Tensors) -> None:
    for _ in range(2):
        outputs = runner.run(inputs_of(c_program_tensors))
        assert list(outputs) == ["s", "z"]
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, c_program_tensors[name])


def test_intermediates(runner: RemoteRunner, c_program_tensors: Tensors) -> None:
    kept = runner.run_keeping(inputs_of(c_program_tensors), ["y", "x"])
    assert set(kept) == {"x", "y", "s", "z"}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, c_program_tensors[name])


def test_a_single_kernel(runner: RemoteRunner, c_program_tensors: Tensors) -> None:
    first = runner.run_kernel(0, [c_program_tensors["x"], c_program_tensors["shift"]])
    np.testing.assert_array_equal(first["y"], c_program_tensors["y"])
    second = runner.run_kernel(1, [c_program_tensors["y"], c_program_tensors["x"]])
    np.testing.assert_array_equal(second["s"], c_program_tensors["s"])


def test_a_kernel_that_strays_is_named(target: str, board: Board, c_program: Callable[..., Program]) -> None:
    tensors = [np.zeros((1, 6, 5, 7), np.float32), np.zeros((1, 6), np.float32)]
    with RemoteRunner(c_program(target, kernels=STRAY_KERNELS), board) as strays:
        for _ in range(2):  # the pages are closed again
            with pytest.raises(StrayAccessError, match="Kernel 'first': touched byte 1120 of output 'y', which has 1120"):
                strays.run_kernel(0, tensors)
        assert set(strays.run_kernel(1, [tensors[0], tensors[0]])["z"].ravel()) == {1}


def test_times_are_taken_on_the_board(runner: RemoteRunner, c_program_tensors: Tensors) -> None:
    assert len(runner.time(3, inputs=inputs_of(c_program_tensors))) == 3
    kernels_us = runner.time_kernels(2)
    assert [len(times_us) for times_us in kernels_us] == [2, 2]
    assert all(time_us > 0 for times_us in kernels_us for time_us in times_us)
    runner.place(inputs_of(c_program_tensors))
    calls_us = runner.time_calls([1, 0, 1], 5)
    assert [len(times_us) for times_us in calls_us] == [5, 5, 5]
    assert all(time_us > 0 for times_us in calls_us for time_us in times_us)
    np.testing.assert_array_equal(runner.run(inputs_of(c_program_tensors))["z"], c_program_tensors["z"])


def test_wrong_inputs_never_leave(runner: RemoteRunner, c_program_tensors: Tensors) -> None:
    with pytest.raises(InputError, match="Input 'shift': missing"):
        runner.run({"x": c_program_tensors["x"]})


def test_programs_one_after_the_other(board: Board, target: str, c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    built = c_program(target)
    for _ in range(2):
        runner = RemoteRunner(built, board)
        runner.run(inputs_of(c_program_tensors))
        runner.close()
        runner.close()
        with pytest.raises(SepwiseError, match="Model 'small': closed"):
            runner.run(inputs_of(c_program_tensors))


# What a board is ------------------------------------------------------------------------------------------------------


def test_the_board_says_what_it_is(board: Board, target: str) -> None:
    found = device.get(target)
    assert board.machine == found.triple.split("-")[0]
    assert board.flags >= found.flags
    board.require(found)


def test_another_machine_is_refused(board: Board, target: str, c_program: Callable[..., Program]) -> None:
    other = OTHER if target == "host" else "x86-64-v2"
    with pytest.raises(InputError, match=rf"Board 127\.0\.0\.1:\d+: is {board.machine}, not .* target '{other}'.* Give a target that"):
        RemoteRunner(c_program(other), board)


def test_a_lacking_extension_is_named(board: Board, target: str) -> None:
    with pytest.raises(InputError, match=r"has no telepathy, which code for the target"):
        board.require(replace(device.get(target), flags=frozenset({"telepathy"})))


def test_a_tail_is_refused_with_its_operator(board: Board, target: str, c_program: Callable[..., Program]) -> None:
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[6] z, int64[1] n) => (float[k] v) { [pick] v, i = TopK (z, n) }'
    tail = Tail(parser.parse_model(text).SerializeToString(), ("z",), ("v",), ("v",), ("pick",))
    with pytest.raises(UnsupportedError, match="TopK 'pick': needs TVM's virtual machine, which a board has not"):
        RemoteRunner(replace(c_program(target), tail=tail), board)


# What goes wrong ------------------------------------------------------------------------------------------------------


@contextmanager
def listener(*answers: bytes | None) -> Iterator[str]:
    """Listens and answers whatever comes with bytes, or with nothing, the last of them for ever; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as links:

        def serve() -> None:
            for answer in itertools.chain(answers, itertools.repeat(answers[-1])):
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                links.enter_context(link)
                if answer is not None:
                    with suppress(OSError):  # the other side may have gone
                        link.recv(1 << 10)
                        link.sendall(answer)
                        link.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=rf"Board 127\.0\.0\.1:{port}: nobody listens there. Start the server"):
        open_board(f"127.0.0.1:{port}")
    with pytest.raises(InputError, match=rf"Tracker 127\.0\.0\.1:{port}: nobody listens there"):
        open_board(None, tracker=f"127.0.0.1:{port}", key="pi")


def test_something_else_listens() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n") as address:
        with pytest.raises(InputError, match=f"Board {address}: is no RPC server"):
            open_board(address)
        with pytest.raises(InputError, match=f"Tracker {address}: is no tracker"):
            open_board(None, tracker=address, key="pi")


def test_nothing_answers() -> None:
    with listener(None) as address, pytest.raises(InputError, match=f"Board {address}: takes no client within 0.2 s"):
        open_board(address, timeout_s=0.2)


def test_a_tracker_that_does_not_answer() -> None:
    with listener(None) as address, pytest.raises(InputError, match=f"Tracker {address}: does not answer within 0.2 s"):
        open_board(None, tracker=address, key="pi", timeout_s=0.2)


def test_timeout_and_the_next_client(
    target: str, board_server: Callable[..., object], c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    hanging = c_program(target, kernels=HANGING_KERNELS)
    with board_server(target) as server:
        with open_board(server.address, timeout_s=2) as board, RemoteRunner(hanging, board) as runner:
            with pytest.raises(BoardError, match=r"no answer within 2 s, running model 'small'\. Look whether .* by --timeout"):
                runner.run(inputs_of(c_program_tensors))
            with pytest.raises(BoardError, match="is not possible, the connection is lost"):
                runner.run(inputs_of(c_program_tensors))
        serve_once(server.address, c_program(target), c_program_tensors)  # as the server gives it the place of the one that hangs


def test_a_crash_and_the_next_client(
    target: str, board_server: Callable[..., object], c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    with board_server(target) as server:
        trapping = c_program(target, kernels=TRAPPING_KERNELS)
        with open_board(server.address) as board, RemoteRunner(trapping, board) as runner:
            with pytest.raises(BoardError, match="the connection was lost, running kernel 'second'"):
                runner.run_kernel(1, [c_program_tensors["y"], c_program_tensors["x"]])
        serve_once(server.address, c_program(target), c_program_tensors)


def test_the_server_is_killed_during_a_run(
    target: str, board_server: Callable[..., object], c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    with board_server(target) as server, open_board(server.address) as board:
        with RemoteRunner(c_program(target, kernels=HANGING_KERNELS), board) as runner:
            killer = threading.Timer(0.5, server.process.kill)
            killer.start()
            with pytest.raises(BoardError, match="the connection was lost, running model 'small'"):
                runner.run(inputs_of(c_program_tensors))
            killer.join()


def test_a_server_that_ends_leaves_nothing(
    target: str,
    board_server: Callable[..., object],
    c_program: Callable[..., Program],
    c_program_tensors: Tensors,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setenv("TMPDIR", str(tmp_path))
        server = stack.enter_context(board_server(target))
        patch.undo()
        board = stack.enter_context(open_board(server.address))
        with RemoteRunner(c_program(target), board) as runner:
            runner.run(inputs_of(c_program_tensors))
            (folder,) = tmp_path.iterdir()
            assert not list(folder.iterdir())  # what is loaded takes no room besides
        with pytest.raises(InputError, match="busy with another client"):
            open_board(server.address, timeout_s=1)
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
    assert not list(tmp_path.iterdir())


def test_two_clients_at_once(
    target: str, board_server: Callable[..., object], c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    built = c_program(target)
    with board_server(target) as server, ThreadPoolExecutor() as pool:
        with open_board(server.address) as first, RemoteRunner(built, first) as runner:
            with pytest.raises(InputError, match=r"busy with another client for 1 s\. Wait, give --timeout"):
                open_board(server.address, timeout_s=1)
            second = pool.submit(serve_once, server.address, built, c_program_tensors)
            time.sleep(0.3)
            assert not second.done()
            np.testing.assert_array_equal(runner.run(inputs_of(c_program_tensors))["z"], c_program_tensors["z"])
        second.result(timeout=60)


def test_another_client_that_slips_in_is_waited_for(
    target: str, board_server: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, calls = rpc.connect, []

    def come_second(*address: object) -> object:
        calls.append(address)
        other = connect(*address) if len(calls) == 1 else None
        try:
            return connect(*address)
        finally:
            del other

    monkeypatch.setattr(rpc, "connect", come_second)
    with board_server(target) as server, open_board(server.address) as board:
        assert board.machine is not None
    assert len(calls) == 2


def test_a_server_that_hangs_in_the_greeting() -> None:
    free = struct.pack("<i", base.RPC_CODE_MISMATCH)
    with listener(free, None) as address, pytest.raises(InputError, match=rf"Board {address}: takes no client within 0.5 s; it hangs"):
        open_board(address, timeout_s=0.5)


def test_the_timeout_is_for_the_own_connection(board_server: Callable[..., object]) -> None:
    with board_server() as server, open(os.devnull) as gap, socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"GET ")
        assert other.recv(1) == b""  # sent away, and still connected on this side
        gap.close()  # the next connection has a lower number than this
        with open_board(server.address, timeout_s=30) as board:
            assert not any(other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
            assert board.machine == platform.machine()
            board.close()
        other.settimeout(0)
        assert other.recv(1) == b""  # not shut from here, as what was the board's was


def test_a_key_that_the_server_asks_for(board_server: Callable[..., object]) -> None:
    with board_server("host", "--key", "mine") as server:
        with pytest.raises(InputError, match=r"does not take this client .*Give the key that it was started with by --key"):
            open_board(server.address)
        with open_board(server.address, key="mine") as board:
            assert board.machine == platform.machine()


def test_options_that_name_no_board() -> None:
    assert open_board(None) is None
    with pytest.raises(InputError, match="--key k: says which board"):
        open_board(None, key="k")
    with pytest.raises(InputError, match="a board is reached by one of them"):
        open_board("a:1", tracker="b:2")
    with pytest.raises(InputError, match="a tracker knows boards by their keys"):
        open_board(None, tracker="b:2")
    for seconds in (0, -1, 1e6, math.inf, math.nan):
        with pytest.raises(InputError, match=rf"--timeout {seconds:g}: needed are seconds, more than 0 and 86400 ".replace("+", r"\+")):
            open_board("a:1", timeout_s=seconds)
    with pytest.raises(InputError, match="--timeout 5: says how long to wait for a board"):
        open_board(None, timeout_s=5)
    with pytest.raises(InputError, match="--key k: says which board"):
        list_boards(None, key="k")
    assert list_boards(None) == []
    for text in ("pi", ":9090", "pi:", "pi:0", "pi:65536", "pi:²"):
        with pytest.raises(InputError, match=r"--rpc .*: needed is HOST:PORT"):
            open_board(text)
    assert read_address("--rpc", "[::1]:9090") == ("::1", 9090)
    for host in ("nowhere.invalid", "no..where", "x" * 70):
        with pytest.raises(InputError, match=f"Board {host}:9090: no such host"):
            open_board(f"{host}:9090")


# The tracker ----------------------------------------------------------------------------------------------------------

def test_boards_of_a_tracker(
    tracker: str, board_server: Callable[..., object], c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    with pytest.raises(InputError, match=r"no board of key 'desk' was free within 0.5 s; it knows no key"):
        open_board(None, tracker=tracker, key="desk", timeout_s=0.5)
    with board_server("host", "--tracker", tracker, "--key", "desk") as server:
        for _ in range(2):  # it is offered again
            with open_board(None, tracker=tracker, key="desk", timeout_s=30) as board, RemoteRunner(c_program(), board) as runner:
                assert board.name.endswith(f":{server.port}")
                np.testing.assert_array_equal(runner.run(inputs_of(c_program_tensors))["z"], c_program_tensors["z"])
                with pytest.raises(InputError, match=r"no board of key 'desk' was free within 0.5 s; it knows desk\."):
                    open_board(None, tracker=tracker, key="desk", timeout_s=0.5)


def test_as_many_boards_as_a_tracker_knows(
    tracker: str, board_server: Callable[..., object], tracked_boards: Callable[[str, int], list[Connect]]
) -> None:
    options = ("--tracker", tracker, "--key", "desk")
    with board_server("host", *options) as first, board_server("host", *options) as second:
        connects = tracked_boards(tracker, 2)
        with connects[0]() as one, connects[1]() as other:
            assert {one.name.rpartition(":")[2], other.name.rpartition(":")[2]} == {str(first.port), str(second.port)}
            one.close()
            assert one.lost
            assert not other.lost
    with pytest.raises(InputError, match="knows no board of key 'shelf'; it knows "):
        list_boards(None, tracker=tracker, key="shelf")
