"""Runs a Program on a board, over TVM's RPC.

A `Board` is one connection: to a server at an address, or to whichever board a tracker has free. The Program is linked here to a
shared object that brings all it needs (`runtime/remote.c`), uploaded, loaded there and entered through functions of TVM's calling
convention. Constants and arena lie on the board, and so does the loop that times: only inputs, outputs and what is asked for
cross the wire. A kernel that runs alone lies between pages that nothing may touch, as it does here.

Nothing waits for ever: the socket on which TVM waits for the board is given a timeout, which the protocol does not have.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import socket
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np
import onnx
import tvm.error
import tvm.runtime
from tvm import rpc
from tvm.rpc import base

from sepwise.lowering import device as devices
from sepwise.lowering.link import link_remote
from sepwise.lowering.runner import Guest, GuestRunner, Region
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.guarded import Access
    from sepwise.lowering.program import Program

__all__ = [
    "TIMEOUT_SECONDS",
    "Board",
    "BoardError",
    "Connect",
    "RemoteRunner",
    "list_boards",
    "open_board",
    "read_address",
    "server_machine",
]

TIMEOUT_SECONDS: Final = 60.0
"""How long a board may take for one answer where the caller says nothing else."""

_MOST_SECONDS: Final = 86400.0
_RETRY_SECONDS: Final = 0.2
_LONGEST_RETRY_SECONDS: Final = 1.0
_PIECE_BYTES: Final = 1 << 22
_NOWHERE: Final = -(1 << 63)
_ENTRIES: Final = ("open", "allocate", "write", "read", "main", "run", "time", "time_calls", "protect", "run_alone")
_MACHINES: Final = ("aarch64", "x86_64")
_WRONG_ANSWERS: Final = (OSError, ValueError, LookupError, TypeError)

Address = tuple[str, int]


class BoardError(SepwiseError):
    """A board that was reached does not answer any more."""

    exit_status = 2


class Connect(Protocol):
    """What connects to a board, each time it is called."""

    def __call__(self, *, within_s: float | None = None) -> Board:
        """Connects.

        Args:
            within_s: How long to wait for the connection; as long as for an answer where None.

        Returns:
            The connection.

        Raises:
            InputError: There is none within that time.
            BoardError: The board goes while it is connected to.
        """


def read_address(option: str, text: str) -> Address:
    """Reads the address of a board or a tracker.

    Args:
        option: What was given it, for messages.
        text: `HOST:PORT`; an IPv6 address stands in brackets.

    Returns:
        Host and port.

    Raises:
        InputError: The text is something else.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(f"{option} {text}: needed is HOST:PORT, as in raspberrypi:9090.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def open_board(
    rpc: str | None, *, tracker: str | None = None, key: str | None = None, timeout_s: float | None = None
) -> Board | None:
    """Connects to the board that options name.

    Args:
        rpc: `HOST:PORT` of its server.
        tracker: `HOST:PORT` of a tracker that knows some, with `key`.
        key: Which of them; with `rpc` what the server was started with.
        timeout_s: How long to wait for it, and then for each of its answers; `TIMEOUT_SECONDS` where None.

    Returns:
        The connection, None where no option names a board.

    Raises:
        InputError: The options contradict each other, or there is no such board.
    """
    patience_s = _check_options(rpc, tracker, key, timeout_s)
    if tracker is not None and key is not None:
        return _open_free_board(read_address("--tracker", tracker), key, timeout_s=patience_s)
    return None if rpc is None else Board(read_address("--rpc", rpc), key or "", timeout_s=patience_s)


def list_boards(
    rpc: str | None, *, tracker: str | None = None, key: str | None = None, timeout_s: float | None = None
) -> list[Connect]:
    """Lists the boards that options name: one, or as many as a tracker knows of a key, free or not.

    Args:
        rpc: As for `open_board`, and so are all others.
        tracker: Where boards are asked for.
        key: Which.
        timeout_s: How long to wait for each.

    Returns:
        What connects to one of them, for each; all of a tracker's are alike, and it says which is free.

    Raises:
        InputError: The options contradict each other, or the tracker knows no such board.
    """
    patience_s = _check_options(rpc, tracker, key, timeout_s)
    if rpc is not None:
        return [functools.partial(Board, read_address("--rpc", rpc), key or "", timeout_s=patience_s)]
    if tracker is None or key is None:
        return []
    address = read_address("--tracker", tracker)
    with _open_tracker(address, _Deadline(patience_s)) as (who, _, keys):
        if key not in keys:
            raise InputError(f"{who}: knows no board of key '{key}'; it knows {_spell_keys(keys)}.")
    return [functools.partial(_open_free_board, address, key, timeout_s=patience_s)] * keys.count(key)


def _check_options(rpc: str | None, tracker: str | None, key: str | None, timeout_s: float | None) -> float:
    """Refuses options that contradict each other, and gives the time for one answer."""
    if rpc is not None and tracker is not None:
        raise InputError(f"--rpc {rpc} and --tracker {tracker}: a board is reached by one of them. Give one.")
    if timeout_s is not None and not 0 < timeout_s <= _MOST_SECONDS:
        raise InputError(f"--timeout {timeout_s:g}: needed are seconds, more than 0 and {_MOST_SECONDS:g} (a day) at most.")
    if tracker is not None and not key:
        raise InputError(f"--tracker {tracker}: a tracker knows boards by their keys. Give one with --key.")
    if rpc is None and tracker is None and key is not None:
        raise InputError(f"--key {key}: says which board. Give --tracker or --rpc with it.")
    if rpc is None and tracker is None and timeout_s is not None:
        raise InputError(f"--timeout {timeout_s:g}: says how long to wait for a board. Give --tracker or --rpc with it.")
    return TIMEOUT_SECONDS if timeout_s is None else timeout_s


class Board:
    """A connection to a board. Use it as a context manager or `close` it.

    Attributes:
        name: What messages call it.
        machine: Its instruction set as `uname` names it, None where its server does not say.
        flags: Extensions of its processor, as /proc/cpuinfo names them.
        timeout_s: How long it may take for one answer.
    """

    def __init__(
        self, address: Address, key: str = "", *, timeout_s: float = TIMEOUT_SECONDS, within_s: float | None = None
    ) -> None:
        """Connects, and waits its turn where the board serves another client.

        Args:
            address: Where its server listens.
            key: What the server asks for.
            timeout_s: How long to wait for each answer.
            within_s: How long to wait for the connection in all; `timeout_s` where None, and no longer than that.

        Raises:
            InputError: Nobody listens there, it is no RPC server, or it is busy for too long.
            BoardError: It goes while it is connected to.
        """
        self.name = f"Board {address[0]}:{address[1]}"
        self.timeout_s = timeout_s
        self._lost = False
        self._numbers = itertools.count()
        deadline = _Deadline(timeout_s if within_s is None else min(timeout_s, within_s))
        self._session, self._socket = _connect(self.name, address, key, deadline)
        self._wait_for_answers(deadline.left_s)
        self.machine, self.flags = self._describe()
        self._wait_for_answers(timeout_s)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost

    def ask(self, doing: str, function: Callable[..., Any], *arguments: object) -> Any:
        """Calls something that asks the board, and says what became of it where it does not answer.

        Args:
            doing: What the board was to do, for messages.
            function: What asks it.
            *arguments: What it is called with.

        Returns:
            The answer.

        Raises:
            SepwiseError: The board answered with an error.
            BoardError: It did not answer in time, or the connection is lost.
        """
        if self._lost:
            raise BoardError(f"{self.name}: {doing} is not possible, the connection is lost.")
        try:
            return function(*arguments)
        except tvm.error.RPCError as error:
            raise SepwiseError(f"{self.name}: {doing} failed: {_last_line(error)}") from error
        except tvm.error.InternalError as error:
            self._lose()
            if os.strerror(errno.EAGAIN) in str(error):
                raise BoardError(
                    f"{self.name}: no answer within {_spell(self._patience_s)}, {doing}. Look whether it still runs, or give it "
                    "longer by --timeout."
                ) from error
            raise BoardError(
                f"{self.name}: the connection was lost, {doing}. The code ended there or the server did, or the network is gone; "
                "the server says which."
            ) from error

    def require(self, device: Device) -> None:
        """Refuses a device whose code does not run on the board.

        Args:
            device: What a Program was built for.

        Raises:
            InputError: The board is another machine, or its processor lacks an extension.
        """
        machine = server_machine(device)
        if self.machine is None:
            return
        missing = [machine] if machine != self.machine else sorted(device.flags - self.flags)
        if not missing:
            return
        fitting = [name for name in devices.names() if name != devices.HOST and self._runs(devices.get(name))]
        hint = f"Give a target that it runs: {', '.join(fitting)}." if fitting else "No target of `sepwise targets` runs there."
        what = f"is {self.machine}, not {machine}" if machine != self.machine else f"has no {', '.join(missing)}"
        raise InputError(f"{self.name}: {what}, which code for the target '{device.name}' needs. {hint}")

    def load(self, library: Path) -> dict[str, Callable[..., Any]]:
        """Uploads a shared object and loads it there.

        Args:
            library: As `link_remote` makes it.

        Returns:
            Its entries by name.

        Raises:
            SepwiseError: It does not load there.
        """
        name = f"model-{next(self._numbers)}.so"
        self.ask("taking the code", self._session.upload, bytearray(library.read_bytes()), name)
        module = self.ask("loading the code", self._session.load_module, name)
        return {entry: self.ask("finding an entry", module.get_function, entry) for entry in _ENTRIES}

    def allocate(self, nbytes: int) -> Any:
        """Makes a tensor of bytes on the board.

        Args:
            nbytes: How many; a tensor has one at least.

        Returns:
            TVM's tensor.
        """
        return self.ask("making room", tvm.runtime.empty, (max(nbytes, 1),), "uint8", self._session.cpu())

    def close(self) -> None:
        """Ends the connection, and with it all that runs there; twice is harmless."""
        self._lose()
        self._session = None

    def __enter__(self) -> Self:
        """Gives itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes."""
        self.close()

    def _wait_for_answers(self, seconds: float) -> None:
        """Sets how long it may take for one answer from now on."""
        self._patience_s = seconds
        time_value = struct.pack("@ll", *divmod(max(int(seconds * 1e6), 1), 1_000_000))  # 0 would be no limit
        for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, side, time_value)

    def _lose(self) -> None:
        """Ends the connection under TVM's hands: what is still asked fails at once, and the server ends what hangs."""
        self._lost = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side was faster
            pass
        self._socket.close()

    def _describe(self) -> tuple[str | None, frozenset[str]]:
        """Asks for the machine and its extensions; a server of another make does not know."""
        try:
            describe = self.ask("telling what it is", self._session.get_function, "sepwise.board")
        except AttributeError:
            return None, frozenset()
        machine, *flags = str(self.ask("telling what it is", describe)).split()
        return machine, frozenset(flags)

    def _runs(self, device: Device) -> bool:
        """Whether code for a device runs there."""
        return device.triple.split("-", maxsplit=1)[0] == self.machine and device.flags <= self.flags


def server_machine(device: Device) -> str:
    """Names the machine that a device's code runs on, as far as there is a server for it.

    Args:
        device: Any device.

    Returns:
        The machine as `uname` names it.

    Raises:
        InputError: There is none.
    """
    machine = device.triple.split("-", maxsplit=1)[0]
    if machine not in _MACHINES or "linux" not in device.triple:
        raise InputError(
            f"Target '{device.name}': boards are reached whose Linux is {' or '.join(_MACHINES)}, and it is {device.triple}. "
            "Run it under its emulator, or make a bundle."
        )
    return machine


def _last_line(error: Exception) -> str:
    """The last line that an error of TVM's says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


# Finding a server -----------------------------------------------------------------------------------------------------


class _Deadline:
    """When to wait no longer.

    Attributes:
        seconds: How long it is from the start.
    """

    def __init__(self, seconds: float) -> None:
        """Starts."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """What is left, never nothing, as that often stands for no limit."""
        return max(self._until - time.monotonic(), 1e-3)

    @property
    def over(self) -> bool:
        """Whether it has come."""
        return time.monotonic() >= self._until

    def __str__(self) -> str:
        """How long it is, for messages."""
        return _spell(self.seconds)


def _spell(seconds: float) -> str:
    """Spells a time."""
    return f"{round(seconds, 2):g} s"


def _dial(who: str, address: Address, deadline: _Deadline) -> socket.socket:
    """Connects, or says why not."""
    try:
        return socket.create_connection(address, timeout=deadline.left_s)
    except ConnectionRefusedError:
        raise InputError(f"{who}: nobody listens there. Start the server, or check the port.") from None
    except socket.gaierror as error:
        raise InputError(f"{who}: no such host ({error.strerror}).") from None
    except UnicodeError:
        raise InputError(f"{who}: no such host (that is not how one is named).") from None
    except TimeoutError:
        raise InputError(f"{who}: no answer within {deadline}. Check that it is on, and the address.") from None
    except OSError as error:
        raise InputError(f"{who}: cannot be reached: {error.strerror}.") from None


def _connect(who: str, address: Address, key: str, deadline: _Deadline) -> tuple[Any, socket.socket]:
    """Waits until a server takes this client; gives TVM's session, and a copy of the socket that TVM keeps to itself."""
    busy, pause_s = False, _RETRY_SECONDS
    while not (busy and deadline.over):
        try:
            peer = _greet(who, address, deadline)
            if peer is not None and (found := _take(who, peer, key, deadline)) is not None:
                return found
        except InputError:
            if not (busy and deadline.over):
                raise
        busy = True
        time.sleep(min(pause_s, deadline.left_s))
        pause_s = min(2 * pause_s, _LONGEST_RETRY_SECONDS)  # as asking disturbs what the other client measures
    raise InputError(f"{who}: busy with another client for {deadline}. Wait, give --timeout, or share it by a tracker.")


def _greet(who: str, address: Address, deadline: _Deadline) -> Address | None:
    """Greets a server under a key that none has, and gives its numeric address; None where it is busy.

    TVM waits for the answer to its own greeting as long as the system does; who answers this one, answers that.
    """
    greeting = f"client:{uuid.uuid4()}".encode()
    with _dial(who, address, deadline) as link:
        try:
            host, port, *_ = link.getpeername()
            link.settimeout(deadline.left_s)
            link.sendall(struct.pack("<2i", base.RPC_MAGIC, len(greeting)) + greeting)
            (code,) = struct.unpack("<i", base.recvall(link, 4))
        except TimeoutError:
            raise InputError(f"{who}: takes no client within {deadline}; it is busy, or no RPC server.") from None
        except OSError:
            raise InputError(
                f"{who}: hangs up on clients. Start the server behind the tunnel, or check the port: it may be no RPC server."
            ) from None
    if code not in (base.RPC_CODE_MISMATCH, base.RPC_CODE_DUPLICATE):
        raise InputError(f"{who}: is no RPC server. Check the port.")
    return (host, port) if code == base.RPC_CODE_MISMATCH else None


_LOCKS: Final[dict[Address, threading.Lock]] = {}
"""By peer, held while TVM connects to it."""


def _take(who: str, peer: Address, key: str, deadline: _Deadline) -> tuple[Any, socket.socket] | None:
    """Has TVM connect to a server that was free; None where another client came first.

    TVM says nothing of its socket, which is the one to this peer that comes into being meanwhile: no other thread connects there
    then. Where its greeting takes too long that socket is shut, which ends the call.
    """
    lock = _LOCKS.setdefault(peer, threading.Lock())
    if not lock.acquire(timeout=deadline.left_s):
        return None
    try:
        with _list_sockets(peer) as others:
            known = set(others)
        watch = threading.Timer(deadline.left_s, _shut_sockets, (peer, known))
        watch.daemon = True
        watch.start()
        try:
            session = rpc.connect(*peer, key)
        finally:
            watch.cancel()
        with _list_sockets(peer) as sockets:
            new = [each.dup() for inode, each in sockets.items() if inode not in known]
    except tvm.error.InternalError as error:
        if "already have key" in str(error):
            return None
        if deadline.over:
            raise InputError(f"{who}: takes no client within {deadline}; it hangs, or is no RPC server.") from error
        hint = (
            "Give the key that it was started with by --key; what is registered with a tracker is reached by --tracker."
            if "matches key" in str(error)
            else "Try again."
        )
        raise InputError(f"{who}: does not take this client ({_last_line(error)}). {hint}") from error
    finally:
        lock.release()
    if not new:
        raise BoardError(f"{who}: the connection was lost as soon as it was there.")
    return session, new[0]


@contextmanager
def _list_sockets(peer: Address) -> Iterator[dict[int, socket.socket]]:
    """Gives copies of the sockets that are connected to a peer and block, as TVM's do, by inode; they are closed in the end."""
    found: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        for entry in map(int, os.listdir("/proc/self/fd")):
            try:
                copy = os.dup(entry)
            except OSError:  # gone since
                continue
            try:
                each = stack.enter_context(socket.socket(fileno=copy))
            except OSError:  # no socket
                os.close(copy)
                continue
            try:
                if os.get_blocking(copy) and each.getpeername()[:2] == peer:
                    found[os.fstat(copy).st_ino] = each
            except OSError:  # not connected
                pass
        yield found


def _shut_sockets(peer: Address, known: Collection[int]) -> None:
    """Ends the connections to a peer that are not known."""
    with _list_sockets(peer) as sockets:
        for inode, each in sockets.items():
            if inode not in known:
                with suppress(OSError):  # the other side was faster
                    each.shutdown(socket.SHUT_RDWR)


@contextmanager
def _open_tracker(address: Address, deadline: _Deadline) -> Iterator[tuple[str, socket.socket, list[str]]]:
    """Connects to a tracker; gives what messages call it, the connection, and the key of each board that it knows."""
    who = f"Tracker {address[0]}:{address[1]}"
    with _dial(who, address, deadline) as link:
        try:
            link.settimeout(deadline.left_s)
            link.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(link, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise InputError(f"{who}: is no tracker. Check the port.")
            link.settimeout(deadline.left_s)
            base.sendjson(link, [base.TrackerCode.SUMMARY])
            keys = [server["key"].partition(":")[2] for server in base.recvjson(link)[1]["server_info"]]
        except TimeoutError:
            raise InputError(f"{who}: does not answer within {deadline}. Check the port.") from None
        except _WRONG_ANSWERS as error:
            raise InputError(f"{who}: is no tracker ({error}). Check the port.") from None
        yield who, link, keys


def _open_free_board(address: Address, key: str, *, timeout_s: float, within_s: float | None = None) -> Board:
    """Connects to a free board of a tracker's, at the address and under the key that the tracker gives; see `Board`."""
    deadline = _Deadline(timeout_s if within_s is None else min(timeout_s, within_s))
    with _open_tracker(address, deadline) as (who, link, keys):
        try:
            link.settimeout(deadline.left_s)
            base.sendjson(link, [base.TrackerCode.REQUEST, key, "", 1])
            host, port, match = base.recvjson(link)[1]
        except TimeoutError:
            known = _spell_keys(keys)
            raise InputError(f"{who}: no board of key '{key}' was free within {deadline}; it knows {known}.") from None
        except _WRONG_ANSWERS as error:
            raise InputError(f"{who}: does not give boards of key '{key}' ({error}). Try again.") from None
    return Board((host, int(port)), match, timeout_s=timeout_s, within_s=deadline.left_s)


def _spell_keys(keys: Sequence[str]) -> str:
    """Names the kinds of boards that a tracker knows."""
    return ", ".join(sorted(set(keys))) or "no key"


# Running --------------------------------------------------------------------------------------------------------------


class RemoteRunner(GuestRunner):
    """Runs a Program on a board. Memory is allocated once."""

    def __init__(self, program: Program, board: Board, *, threads: int = 1) -> None:
        """Links, uploads and loads.

        Args:
            program: Built for what the board is.
            board: The connection, which the caller closes.
            threads: Workers there, the one that serves counted.

        Raises:
            InputError: The board cannot run the program, or `threads` is not in 1 to 256.
            UnsupportedError: The model needs more of TVM than a board has.
            SepwiseError: The program does not link, or not load there.
        """
        device = devices.get(program.device)
        super().__init__(program, device)
        if not 1 <= threads <= 256:
            raise InputError(f"Threads: {threads} asked for, possible are 1 to 256.")
        if program.tail is not None:
            node = onnx.load_from_string(program.tail.model).graph.node[0]
            raise UnsupportedError(
                f"{node.op_type} '{node.name}': needs TVM's virtual machine, which a board has not. Run the model here, or cut "
                "it before that."
            )
        board.require(device)
        self._board = board
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            library = Path(folder) / "model.so"
            link_remote(program, device, library)
            self._guest: _RemoteGuest | None = _RemoteGuest(program, board, library, threads)

    def time(self, repeats: int, *, inputs: Mapping[str, np.ndarray] | None = None) -> list[float]:
        """Times whole runs on the board, in C.

        Args:
            repeats: How many runs.
            inputs: What to run on; what was last run on where not given.

        Returns:
            Microseconds of each run.
        """
        (times_us,) = self._time(repeats, inputs, each=False)
        return times_us

    def time_kernels(self, repeats: int, *, inputs: Mapping[str, np.ndarray] | None = None) -> list[list[float]]:
        """Times every kernel call on the board, in C, each in the cache state that the run up to it leaves.

        Args:
            repeats: How many runs.
            inputs: What to run on; what was last run on where not given.

        Returns:
            For each of `program.calls` the microseconds in each run.
        """
        return self._time(repeats, inputs, each=True)

    def place(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Places the network's inputs for calls that are timed; see `NativeRunner.place`."""
        arrays = self._check_inputs(inputs)
        with self._lock:
            self._place(self._open_guest(), arrays)

    def time_calls(self, indices: Sequence[int], rounds: int) -> list[list[float]]:
        """Times some kernel calls by themselves on the board, in C; see `NativeRunner.time_calls`."""
        with self._lock:
            return self._open_guest().time_calls(indices, rounds)

    def _place(self, guest: _RemoteGuest, arrays: Sequence[np.ndarray]) -> None:
        for value, array in zip(self.program.inputs, arrays, strict=True):
            guest.write(value.buffer, array)

    def _time(self, repeats: int, inputs: Mapping[str, np.ndarray] | None, *, each: bool) -> list[list[float]]:
        arrays = None if inputs is None else self._check_inputs(inputs)
        with self._lock:
            guest = self._open_guest()
            if arrays is not None:
                self._place(guest, arrays)
            return guest.time(repeats, each=each)

    def close(self) -> None:
        """Unloads the code; see `Runner.close`. The board stays connected."""
        with self._lock:
            if self._guest is not None:
                self._guest.close()
                self._guest = None

    def _open_guest(self) -> _RemoteGuest:
        """Gives the program on the board."""
        if self._guest is None:
            raise SepwiseError(f"Model '{self.program.name}': closed; it cannot run any more.")
        return self._guest


class _RemoteGuest(Guest):
    """A library on a board, and the tensors that are its inputs and outputs."""

    def __init__(self, program: Program, board: Board, library: Path, threads: int) -> None:
        """Loads the library and gives the program its memory."""
        self._board = board
        self._entries = board.load(library)
        self._tensors: dict[tuple[Region, int], Any] = {}
        self._enter("starting the workers", "open", len(program.inputs), len(program.calls), threads)
        super().__init__(program, board.name, threads=threads)
        places = [(Region.INPUT, len(program.inputs)), (Region.OUTPUT, len(program.outputs))]
        self._operands = [self._tensors[region, index] for region, number in places for index in range(number)]

    @property
    def alive(self) -> bool:
        """Whether it is still loaded."""
        return bool(self._entries)

    def run(self, index: int) -> None:
        """Runs one kernel call to its end."""
        self.run_range(index, index + 1)

    def run_range(self, first: int, last: int) -> None:
        """Runs the calls from `first` to `last - 1` without a word between them."""
        calls = self._program.calls
        if (first, last) == (0, len(calls)):
            self._enter(f"running model '{self._program.name}'", "main", *self._operands)
        elif first < last:
            doing = f"running kernel '{calls[first].name}'" + (f" to '{calls[last - 1].name}'" if last - first > 1 else "")
            self._enter(doing, "run", first, last, *self._operands)

    def time(self, repeats: int, *, each: bool) -> list[list[float]]:
        """Times runs, together or call by call."""
        found = self._enter(f"timing model '{self._program.name}'", "time", repeats, int(each), *self._operands)
        width = len(self._program.calls) if each else 1
        return np.frombuffer(found, np.float64).reshape(repeats, width).T.tolist()

    def time_calls(self, indices: Sequence[int], rounds: int) -> list[list[float]]:
        """Times calls in turn."""
        doing = f"timing kernels {', '.join(dict.fromkeys(repr(self._program.calls[index].name) for index in indices))}"
        found = self._enter(doing, "time_calls", rounds, bytearray(np.array(indices, np.int32)), *self._operands)
        return np.frombuffer(found, np.float64).reshape(len(indices), rounds).tolist()

    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        """Runs one call; see `StageMemory`. What is touched is opened, so that the call comes to its end."""
        calls = self._program.calls
        places = bytearray(np.array(offsets, np.int64))
        touched = int(self._enter(f"running kernel '{calls[index].name}'", "run_alone", len(calls) + index, int(shared), places))
        if touched == _NOWHERE:
            return None
        self.close_gaps()
        return touched

    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        """Changes what may be done with whole pages; see `StageMemory`."""
        self._enter("protecting memory", "protect", int(access), offset, nbytes)

    def close(self) -> None:
        """Has the library unloaded, as nothing of it is held any more."""
        self._operands.clear()
        self._tensors.clear()
        self._entries.clear()

    def _allocate(self, region: Region, index: int, nbytes: int) -> None:
        if region in (Region.INPUT, Region.OUTPUT):
            self._tensors[region, index] = self._board.allocate(nbytes)
        else:
            self._enter("making room", "allocate", int(region), nbytes)

    def _spoil(self, region: Region, index: int, nbytes: int) -> None:
        if region is Region.OUTPUT:  # all else comes so
            super()._spoil(region, index, nbytes)

    def _put(self, region: Region, offset: int, data: np.ndarray) -> None:
        raw = data.reshape(-1).view(np.uint8)
        if region in (Region.INPUT, Region.OUTPUT):
            if raw.size:
                self._board.ask("taking an input", self._tensors[region, offset].copyfrom, raw)
            return
        for start in range(0, raw.size, _PIECE_BYTES):
            piece = bytearray(raw[start : start + _PIECE_BYTES])
            self._enter("taking data", "write", int(region), offset + start, piece)

    def _get(self, region: Region, offset: int, nbytes: int) -> np.ndarray:
        if region in (Region.INPUT, Region.OUTPUT):
            tensor = self._tensors[region, offset]
            return np.asarray(self._board.ask("giving an output", tensor.numpy))[:nbytes]
        return np.frombuffer(self._enter("giving data", "read", int(region), offset, nbytes), np.uint8)

    def _enter(self, doing: str, entry: str, *arguments: object) -> Any:
        return self._board.ask(doing, self._entries[entry], *arguments)
