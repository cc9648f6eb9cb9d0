"""Where candidates run and how long they take there: measured on this machine or on a board, or estimated for an emulated core.

A `Timer` is all that tuning knows of a device. A board may hang, reboot or drop off; whoever was asking it then gets a
`BoardError`, and the next Program that is loaded finds the board again, or gives up after a bounded time.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal, Protocol

from sepwise.lowering import device as devices
from sepwise.lowering import estimate
from sepwise.lowering.device import UNICORN
from sepwise.lowering.remote import BoardError, RemoteRunner
from sepwise.lowering.roofline import RoofMeter, roof_of_facts
from sepwise.lowering.runner import EmulatedRunner, NativeRunner
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program
    from sepwise.lowering.remote import Connect
    from sepwise.lowering.roofline import Roof
    from sepwise.lowering.runner import Runner

__all__ = [
    "BoardGoneError",
    "BoardTimer",
    "EstimateTimer",
    "Method",
    "NativeTimer",
    "Place",
    "Timed",
    "Timer",
    "open_timer",
]

Method = Literal["measured", "estimated"]
"""How times come about; records of one are never compared with records of the other."""

Place = Literal["native", "remote", "emulated"]
"""Where Programs are timed: here, on a board, or under an emulator."""

SEARCH_SECONDS = 60.0
"""How long a board that was lost is looked for: longer than a Raspberry Pi takes to start."""

PAUSE_SECONDS = 1.0
"""Between two attempts."""


class BoardGoneError(BoardError):
    """A board that was lost could not be reached again."""


class Timed(Protocol):
    """A Program that is loaded where it is timed.

    Attributes:
        runner: Runs it there.
    """

    runner: Runner

    def time(self, calls: Sequence[int], rounds: int) -> list[list[float]]:
        """Times some of its calls in turn.

        Args:
            calls: Which.
            rounds: Samples of each; a timer that is exact may give one.

        Returns:
            Samples of each call, in the timer's unit; those of one round beside each other in time.
        """

    def time_network(self, rounds: int) -> list[list[float]]:
        """Times all of its calls in the course of whole runs.

        Args:
            rounds: Runs.

        Returns:
            Samples of each call, in the cache state that the run up to it leaves.
        """

    def close(self) -> None:
        """Unloads it."""


class Timer(Protocol):
    """A place where Programs are timed.

    Attributes:
        device: What they are built for.
        threads: Workers.
        method: How times come about.
        place: Where.
        unit: `us` or `cycles`.
        exact: Whether times are the same each time.
        machine: The processor as it names itself, None where nothing does.
    """

    device: Device
    threads: int
    method: Method
    place: Place
    unit: str
    exact: bool
    machine: str | None

    def roof(self, held: Device) -> Roof:
        """Says what the cores can do at most.

        Args:
            held: The device as kernels of their type see it (`Device.holding`).

        Returns:
            The roof in the timer's unit; rates that are not known are None in it.
        """

    def load(self, program: Program, inputs: Mapping[str, np.ndarray]) -> Timed:
        """Loads a Program.

        Args:
            program: Built for the device.
            inputs: What it runs on.

        Returns:
            The Program, to be closed.
        """


class NativeTimer:
    """This machine."""

    method: Method = "measured"
    place: Place = "native"
    unit = "us"
    exact = False

    def __init__(self, device: Device, threads: int) -> None:
        """Notes the device, which this machine can stand for, and the number of workers."""
        self.device = device
        self.threads = threads
        self.machine = devices.host_processor()
        self._meter: RoofMeter | None = None

    def roof(self, held: Device) -> Roof:
        """Measures what the cores can do, the first time; see `Timer.roof`."""
        if self._meter is None:
            self._meter = RoofMeter(devices.get(devices.HOST), self.threads)
            self._meter.sample()
        return self._meter.roof(held)

    def load(self, program: Program, inputs: Mapping[str, np.ndarray]) -> Timed:
        """Loads a Program in this process; see `Timer.load`."""
        return _MeasuredTimed(NativeRunner(program, threads=self.threads), inputs)


class BoardTimer:
    """A board; one that was lost is connected to again.

    Attributes:
        name: What messages call it.
    """

    method: Method = "measured"
    place: Place = "remote"
    unit = "us"
    exact = False
    machine: str | None = None  # servers tell the instruction set and its extensions alone

    def __init__(self, device: Device, threads: int, connect: Connect, *, within_s: float | None = None) -> None:
        """Connects.

        Args:
            device: What the board is.
            threads: Workers there.
            connect: Gives a connection, each time it is called.
            within_s: How long to wait for the first; as long as for an answer where None.

        Raises:
            InputError: There is no such board, or it is another device.
        """
        self.device = device
        self.threads = threads
        self._connect = connect
        self._board = connect(within_s=within_s)
        self.name = self._board.name
        try:
            self._board.require(device)
        except InputError:
            self._board.close()
            raise

    def roof(self, held: Device) -> Roof:
        """Derives it from the device's facts; see `Timer.roof`."""
        return roof_of_facts(held, self.threads, unit="us")

    def load(self, program: Program, inputs: Mapping[str, np.ndarray]) -> Timed:
        """Uploads a Program; see `Timer.load`.

        Raises:
            BoardGoneError: The board was lost, and could not be reached again.
        """
        until, reason = math.inf, ""
        while True:
            if self._board.lost:
                until = min(until, time.monotonic() + SEARCH_SECONDS)
                self._reconnect(until, reason)
            try:
                return _MeasuredTimed(RemoteRunner(program, self._board, threads=self.threads), inputs)
            except BoardError as error:
                reason = str(error)
                time.sleep(PAUSE_SECONDS)

    def _reconnect(self, until: float, reason: str) -> None:
        """Connects to a board that was lost, or gives up at a time of the monotonic clock for what was told last."""
        while (left_s := until - time.monotonic()) > 0:
            try:
                self._board = self._connect(within_s=left_s)
            except (BoardError, InputError) as error:
                reason = str(error)
                time.sleep(min(PAUSE_SECONDS, max(until - time.monotonic(), 0)))
            else:
                return
        raise BoardGoneError(f"{self.name}: lost, and given up after {SEARCH_SECONDS:g} s. The last: {reason}")

    def close(self) -> None:
        """Ends the connection."""
        self._board.close()


class _MeasuredTimed:
    """A Program in this process, or on a board."""

    def __init__(self, runner: NativeRunner | RemoteRunner, inputs: Mapping[str, np.ndarray]) -> None:
        """Places the inputs; nothing runs yet."""
        self.runner: Runner = runner
        self._own = runner
        runner.place(inputs)

    def time(self, calls: Sequence[int], rounds: int) -> list[list[float]]:
        """Times calls in C; see `Timed.time`."""
        return self._own.time_calls(calls, rounds)

    def time_network(self, rounds: int) -> list[list[float]]:
        """Times whole runs in C; see `Timed.time_network`."""
        return self._own.time_kernels(rounds)[: len(self.runner.program.calls)]

    def close(self) -> None:
        """Unloads it."""
        self._own.close()


class EstimateTimer:
    """An emulated core of which cycles are estimated (see `estimate`): one worker, the same number each time."""

    method: Method = "estimated"
    place: Place = "emulated"
    unit = "cycles"
    exact = True
    threads = 1

    def __init__(self, device: Device) -> None:
        """Notes the device.

        Raises:
            InputError: Its cycles cannot be estimated here.
        """
        reason = estimate.unseen(device, scalable=bool(device.scalable_bytes)) or estimate.missing(device)
        if reason is not None:
            raise InputError(f"{reason} Without it there is nothing to tune by.")
        self.device = device
        self.machine: str | None = f"{device.emulator} -cpu {device.emulator_cpu}"

    def roof(self, held: Device) -> Roof:
        """Derives it from the device's facts; see `Timer.roof`."""
        return roof_of_facts(held, 1, unit="cycles")

    def load(self, program: Program, inputs: Mapping[str, np.ndarray]) -> Timed:
        """Links a Program; see `Timer.load`."""
        return _EstimateTimed(EmulatedRunner(program, self.device), self.device, inputs)


class _EstimateTimed:
    """A Program under the emulator; all its calls are counted in one run, the first time."""

    def __init__(self, runner: EmulatedRunner, device: Device, inputs: Mapping[str, np.ndarray]) -> None:
        """Nothing runs yet."""
        self.runner: Runner = runner
        self._emulated = runner
        self._device = device
        self._inputs = inputs
        self._cycles: tuple[float, ...] = ()

    def time(self, calls: Sequence[int], rounds: int) -> list[list[float]]:
        """Gives one estimate of each call; see `Timed.time`."""
        del rounds
        if not self._cycles:
            geometry = estimate.cache_geometry(self._device)
            assert geometry is not None, "the timer has asked what is missing"
            counts = self._emulated.count(self._inputs, caches=[geometry])
            self._cycles = estimate.estimate_cycles(counts, self._device, self._device)
        return [[self._cycles[call]] for call in calls]

    def time_network(self, rounds: int) -> list[list[float]]:
        """Gives one estimate of each call; see `Timed.time_network`."""
        return self.time(range(len(self.runner.program.calls)), rounds)

    def close(self) -> None:
        """Ends the emulator."""
        self._emulated.close()


def open_timer(device: Device, threads: int) -> Timer:
    """Finds how times come about for a device on this machine.

    Args:
        device: The target.
        threads: Workers.

    Returns:
        The timer.

    Raises:
        InputError: The device neither runs here nor can its cycles be estimated, or an estimate is asked for with threads.
    """
    if not device.emulated:
        lacking = devices.missing_flags(device)
        if lacking:
            raise InputError(f"Target '{device.name}': this machine lacks {', '.join(lacking)}; nothing can be timed.")
        return NativeTimer(device, threads)
    if device.emulator == UNICORN:
        raise InputError(f"Target '{device.name}': its cycles are not modelled, so there is nothing to tune by.")
    if threads != 1:
        raise InputError(f"Target '{device.name}': is emulated here, with one thread; leave --threads out.")
    return EstimateTimer(device)
