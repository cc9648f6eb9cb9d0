"""The roofline: the least time that arithmetic and memory allow a kernel, whatever its schedule.

    least = max( macs / peak,  over levels of memory: bytes that come from or go to the level / the level's rate )

Every operand is counted once, and all streams and arithmetic as if they overlapped: no kernel is faster. Where an operand lies:

- what other kernels wrote or will read, in the first level that could hold all such operands of the kernel;
- weights, in the first level that could hold all that a run touches, for that is what passes between two uses of them.

Of Winograd's algorithm the products that it does are counted, not those of the definition. Rates are those of all cores that run
the kernel. They are measured here (`RoofMeter`), or follow from a device's facts, which know what is streamed from beyond level
2: memory behind a level 3 is no faster.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from sepwise.lowering.peers.yardsticks import READERS, accumulators, compile_loops
from sepwise.lowering.program import Tail
from sepwise.lowering.runner import aligned_empty
from sepwise.lowering.strategies import algorithm_of
from sepwise.passes.equivalence.winograd import TAPS

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.program import KernelCall, Program

__all__ = ["Level", "Limit", "Roof", "RoofMeter", "limit_of", "peak_macs_per_cycle", "roof_of_facts"]

COMPUTE: Final = "compute"
"""What a kernel is bound by that no memory holds up."""

_PIECE_SECONDS: Final = 2e-4
"""What is timed at once takes about so long: less than what a scheduler gives a process before another one's turn."""

_PIECES: Final = 40
"""Pieces of a sample."""

_PIECE_BYTES: Final = 1 << 23
"""Most of what is read at once; the next piece reads on behind it."""

_TRIES: Final = 3
"""Times that the length of a piece is tried: one may be interrupted."""

_QUANTILE: Final = 0.9
"""Of the rates of all pieces: near the most, of which a few are mistimed."""

_HELD_SHARE: Final = 0.5
"""Share of a cache that a loop reads to measure it: the other half is left to what else is there."""

_BEYOND: Final = 4
"""How many times the caches nearer to the core are read to measure a level: of a shared one no more, as others use it too."""

_MOST_READ: Final = 1 << 28
"""Bytes that are read to measure memory: where caches hold them, what is found is no less than memory's rate."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of memory.

    Attributes:
        name: `L1`, `L2`, `L3` or `memory`.
        nbytes: What it holds, None without end.
        bytes_per_unit: What all cores together read from it in a unit of the roof, None where not known.
    """

    name: str
    nbytes: int | None
    bytes_per_unit: float | None


@dataclass(frozen=True, slots=True)
class Roof:
    """What cores can do at most.

    Attributes:
        origin: `measured` on this machine beside the kernels, or `facts` of the device.
        unit: Of time: `us` or `cycles`.
        macs_per_unit: Multiply-accumulates of all cores together, None where not known.
        levels: Of memory, nearest first; the last holds everything.
    """

    origin: Literal["measured", "facts"]
    unit: Literal["us", "cycles"]
    macs_per_unit: float | None
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """What the roof allows a kernel.

    Attributes:
        operand_bytes: Of its inputs, weights and outputs, pad lanes included, each once; None for what TVM's runtime runs.
        least: Time, in the roof's unit; None where some rate is not known.
        bound: What takes it: `compute` or the name of a level; None with it.
    """

    operand_bytes: int | None = None
    least: float | None = None
    bound: str | None = None


def peak_macs_per_cycle(device: Device) -> float:
    """Gives what one core multiplies and adds at most, with vectors of whichever kind do more of it.

    Args:
        device: As kernels of their type see it (`Device.holding`).

    Returns:
        Multiply-accumulates in a cycle.
    """
    return max(device.lanes * device.fma_ports, device.scalable_bytes / device.lane_bytes * device.scalable_ports)


def roof_of_facts(device: Device, threads: int, *, unit: Literal["us", "cycles"]) -> Roof:
    """Derives the roof from what is known of a device.

    Args:
        device: The target, as kernels of their type see it.
        threads: Workers, each on a core of its own as far as there are cores.
        unit: Cycles, or microseconds by the device's clock.

    Returns:
        The roof; its rates are None in microseconds where the clock is not known.
    """
    cores = min(threads, device.cores)
    if unit == "cycles":
        scale: float | None = cores
    else:
        scale = cores * device.clock_hz / 1e6 if device.clock_hz else None
    loads = max(device.vector_bytes * device.load_ports, float(device.scalable_bytes * device.scalable_ports))
    beyond = device.memory_bytes_per_cycle
    rates = {"L1": loads, "L2": device.l2_bytes_per_cycle, "L3": beyond, "memory": beyond}
    levels = tuple(Level(name, nbytes, rates[name] * scale if scale else None) for name, nbytes in _levels(device, cores))
    return Roof("facts", unit, peak_macs_per_cycle(device) * scale if scale else None, levels)


def _levels(device: Device, cores: int) -> list[tuple[str, int | None]]:
    """The caches that a device has, first and second level of each core together, and what is behind them."""
    caches = (("L1", device.l1d_bytes * cores), ("L2", device.l2_bytes * cores), ("L3", device.l3_bytes))
    return [*((name, nbytes) for name, nbytes in caches if nbytes), ("memory", None)]


def limit_of(step: KernelCall | Tail, program: Program, roof: Roof) -> Limit:
    """Says what the roof allows a kernel of a Program.

    Args:
        step: The kernel's call; the tail has no limit that is known.
        program: What it is part of.
        roof: Of the machine that runs it.

    Returns:
        Its least time, and what takes it.
    """
    if isinstance(step, Tail):
        return Limit()
    held = sum(program.find_value(name).type.nbytes for name in dict.fromkeys((*step.inputs, *step.outputs)))
    weights = sum(step.constant_bytes)
    ends = sum(value.type.nbytes for value in (*program.inputs, *program.outputs))
    nbytes: dict[Level, int] = {}
    for streamed, among in ((held, held), (weights, int(program.constants.nbytes) + program.arena_bytes + ends)):
        level = next(level for level in roof.levels if level.nbytes is None or among <= level.nbytes)
        nbytes[level] = nbytes.get(level, 0) + streamed
    times = {level.name: _time(count, level.bytes_per_unit) for level, count in nbytes.items()}
    times[COMPUTE] = _time(_multiplications(step), roof.macs_per_unit)
    known = {name: found for name, found in times.items() if found is not None}
    if len(known) < len(times):
        return Limit(held + weights)
    bound = max(known, key=known.__getitem__)
    return Limit(held + weights, known[bound], bound)


def _time(amount: float, rate: float | None) -> float | None:
    """The units of time that it takes."""
    if not amount:
        return 0.0
    return amount / rate if rate else None


def _multiplications(call: KernelCall) -> float:
    """The multiply-accumulates that a kernel does."""
    algorithm = algorithm_of(call.strategy)
    if algorithm is None:
        return call.macs
    return call.macs * (algorithm.size / (TAPS * algorithm.outputs)) ** 2


class RoofMeter:
    """Measures what the cores of this machine multiply and read, in samples between other measurements.

    Args:
        host: This machine.
        threads: Workers.
    """

    def __init__(self, host: Device, threads: int) -> None:
        """Compiles the loops and fills what they read."""
        self._host, self._cores = host, min(threads, host.cores)
        self._loops = compile_loops(host)
        self._pool = ThreadPoolExecutor(self._cores)
        self._step = READERS * host.vector_bytes
        self._sizes: dict[str, int] = {}  # bytes that one worker reads of each level
        nearer = 0
        for name, nbytes in _levels(host, self._cores):
            beyond = _BEYOND * nearer if name in ("L3", "memory") else math.inf
            size = min(_HELD_SHARE * nbytes, beyond) if nbytes else min(max(beyond, 1 << 26), _MOST_READ)
            self._sizes[name] = max(round(size / self._cores / self._step), 1) * self._step
            nearer = nbytes or 0
        self._data = [aligned_empty(max(self._sizes.values())) for _ in range(self._cores)]
        for block in self._data:
            block.fill(1)
        self._rates = [defaultdict[str, list[float]](list) for _ in range(self._cores)]
        self._repeats: dict[str, int] = {}

    def sample(self) -> None:
        """Measures everything once more, all workers at the same time."""
        for name in (COMPUTE, *self._sizes):
            if name not in self._repeats:
                self._repeats[name] = self._count_repeats(name)
            list(self._pool.map(functools.partial(self._measure, name), range(self._cores)))

    def roof(self, device: Device) -> Roof:
        """Gives what was found.

        Args:
            device: This machine, as kernels of their type see it: what is measured are float32 multiply-adds.

        Returns:
            The roof, in microseconds.
        """
        peak = self._rate(COMPUTE) * peak_macs_per_cycle(device) / (self._host.lanes * self._host.fma_ports)
        levels = (Level(name, nbytes, self._rate(name)) for name, nbytes in _levels(self._host, self._cores))
        return Roof("measured", "us", peak, tuple(levels))

    def _rate(self, name: str) -> float:
        """What all workers do in a microsecond."""
        return sum(sorted(rates[name])[int(_QUANTILE * (len(rates[name]) - 1))] for rates in self._rates)

    def _count_repeats(self, name: str) -> int:
        """Steps of the loop of multiply-adds, or passes over what is read, that take about the time of a piece."""
        if self._sizes.get(name, 0) > _PIECE_BYTES:
            return 1
        repeats, wanted_us = 1, _PIECE_SECONDS * 1e6
        while (took_us := min(self._piece(name, 0, 0, repeats)[0] for _ in range(_TRIES))) < wanted_us:
            repeats = max(2 * repeats, math.ceil(repeats * wanted_us / max(took_us, 1.0)))
        return repeats

    def _measure(self, name: str, worker: int) -> None:
        """Notes what one worker does in a microsecond, piece by piece."""
        rates = self._rates[worker][name]
        for _ in range(_PIECES):
            took_us, done = self._piece(name, worker, len(rates), self._repeats[name])
            rates.append(done / took_us)

    def _piece(self, name: str, worker: int, piece: int, repeats: int) -> tuple[float, int]:
        """Multiplies and adds, or reads: the microseconds, and how much."""
        if name == COMPUTE:
            work = functools.partial(self._loops.multiply, repeats, 0.5, 1.0)
            done = repeats * accumulators(self._host) * self._host.lanes
        else:
            nbytes = min(self._sizes[name], _PIECE_BYTES // self._step * self._step)
            start = piece % (self._sizes[name] // nbytes) * nbytes
            vectors = nbytes // self._host.vector_bytes
            work = functools.partial(self._loops.read, self._data[worker].ctypes.data + start, vectors, repeats)
            done = repeats * nbytes
        start_ns = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - start_ns) / 1e3, done
