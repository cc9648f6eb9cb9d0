"""Runs a Program: here in this process, or under an emulator, behind one interface.

Callers give and get plain row-major arrays under the names of the ONNX values; packing for kernels that are run
alone, and unpacking of what they wrote, happens here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sepwise.lowering import device as devices
from sepwise.lowering.c_source import PREFIX
from sepwise.lowering.counts import CallCounts, Counts, read_counts
from sepwise.lowering.graph import pack, unpack
from sepwise.lowering.guarded import UNWRITTEN, Access, AccessError, Stage, StageMemory, require_alike, run_alone
from sepwise.lowering.link import count_plugin, link_executable, link_shared
from sepwise.lowering.memory_plan import ALIGNMENT_BYTES
from sepwise.lowering.prefetch_loads import carry_out_prefetches
from sepwise.lowering.program import Home
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from sepwise.lowering.counts import CacheGeometry
    from sepwise.lowering.device import Device
    from sepwise.lowering.program import BufferRef, KernelCall, Program, Value
    from sepwise.lowering.remote import Board
    from sepwise.lowering.tail import TailRunner

__all__ = [
    "EmulatedRunner",
    "Guest",
    "GuestRunner",
    "NativeRunner",
    "Region",
    "Runner",
    "aligned_empty",
    "find_emulator",
    "open_runner",
]

Arrays = dict[str, np.ndarray]

_SIGNALS = threading.Lock()
"""Held while a kernel runs alone in this process, whose handlers of signals all threads share."""


def aligned_empty(nbytes: int) -> np.ndarray:
    """Allocates bytes at a multiple of 64.

    Args:
        nbytes: How many.

    Returns:
        A uint8 array.
    """
    block = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -block.ctypes.data % ALIGNMENT_BYTES
    return block[start : start + nbytes]


def _unwritten(nbytes: int) -> np.ndarray:
    """Allocates bytes without a value."""
    memory = aligned_empty(nbytes)
    memory.fill(UNWRITTEN)
    return memory


def to_memory(value: Value, array: np.ndarray) -> np.ndarray:
    """Lays a plain array out as a value lies in memory; pad lanes get NaN, so that whoever reads them is found out.

    Args:
        value: Says shape, element type and layout.
        array: `value.type.shape`.

    Returns:
        A contiguous array of the physical shape.
    """
    array = np.ascontiguousarray(array, dtype=value.type.dtype)
    layout = value.type.layout
    if not layout.packed:
        return array
    packed = pack(array, layout.lanes)
    used = array.shape[1] % layout.lanes
    if used and np.issubdtype(packed.dtype, np.floating):
        packed[:, -1, ..., used:] = np.nan
    return packed


def from_memory(value: Value, memory: np.ndarray) -> np.ndarray:
    """Undoes `to_memory`.

    Args:
        value: Says shape, element type and layout.
        memory: Its bytes.

    Returns:
        A new plain array of `value.type.shape`.
    """
    array = memory.view(value.type.dtype).reshape(value.type.physical_shape)
    return unpack(array, value.type.shape[1]).copy() if value.type.layout.packed else array.copy()


class Runner(ABC):
    """Runs one Program. Use it as a context manager or `close` it.

    Attributes:
        program: What it runs.
    """

    def __init__(self, program: Program) -> None:
        """Notes the program.

        Args:
            program: What to run.
        """
        self.program = program
        self._written = _writers(program)
        self._tail: TailRunner | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the network once.

        Args:
            inputs: Every input of the network by name, of its exact shape and element type.

        Returns:
            The outputs by name, plain.

        Raises:
            InputError: An input is missing, unknown, or of the wrong shape or element type.
        """
        return self.run_keeping(inputs, ())

    @abstractmethod
    def run_keeping(self, inputs: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
        """Runs the network call by call and reads intermediates right after the call that wrote them.

        Args:
            inputs: As for `run`.
            names: Intermediates to keep.

        Returns:
            The outputs and the intermediates by name, plain.

        Raises:
            InputError: As for `run`, or a name is no value of the Program.
        """

    def run_kernel(self, index: int, arrays: Sequence[np.ndarray]) -> Arrays:
        """Runs a single kernel call on given tensors, with the constants of the Program, between guards.

        Args:
            index: Which of `program.calls`.
            arrays: Its inputs in order, plain; it gets them in its layout with NaN in the pad lanes.

        Returns:
            What it wrote, by name, plain.

        Raises:
            InputError: The arrays are not what the kernel takes.
            StrayAccessError: It touched other memory than that of its operands, wrote to what it only reads, or gives other
                numbers where its operands lie elsewhere.
        """
        call = self.program.calls[index]
        values = [to_memory(value, array) for value, array in self._check_kernel_inputs(call, arrays)]
        places = zip(call.arguments[len(values) :], call.constant_bytes, strict=False)
        constants = [self.program.constants[reference.offset :][:nbytes] for reference, nbytes in places]
        runs = self._run_alone(index, [None, *values, *constants, *(None for _ in call.outputs)])
        outputs = [self.program.find_value(name) for name in call.outputs]
        first, second = (
            {value.name: from_memory(value, memory) for value, memory in zip(outputs, written, strict=True)} for written in runs
        )
        require_alike(call, first, second)
        return first

    @abstractmethod
    def _run_alone(self, index: int, data: Sequence[np.ndarray | None]) -> list[list[np.ndarray]]:
        """Runs a call as `guarded.run_alone` does."""

    @abstractmethod
    def close(self) -> None:
        """Frees threads, memory and processes; twice is harmless."""

    def __enter__(self) -> Self:
        """Gives itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes."""
        self.close()

    def _finish(self, inputs: Mapping[str, np.ndarray], outputs: Arrays) -> Arrays:
        """Gives the network's outputs for the Program's: runs the tail, where there is one."""
        if self.program.tail is None:
            return outputs
        if self._tail is None:
            from sepwise.lowering.tail import TailRunner  # it loads TVM, which other programs do without

            self._tail = TailRunner(self.program.tail, self.program.device)
        return self._tail.run({**inputs, **outputs})

    def _check_inputs(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Orders the network's inputs, or says what is wrong with them."""
        expected = {value.name: value for value in self.program.inputs}
        wanted = ", ".join(f"{name} {_spell(value)}" for name, value in expected.items())
        for name in inputs:
            if name not in expected:
                raise InputError(f"Input '{name}': model '{self.program.name}' has no such input; it takes {wanted}.")
        arrays = []
        for name, value in expected.items():
            if name not in inputs:
                raise InputError(f"Input '{name}': missing; model '{self.program.name}' takes {wanted}.")
            arrays.append(_check_array(f"Input '{name}'", value, inputs[name]))
        return arrays

    def _check_kernel_inputs(self, call: KernelCall, arrays: Sequence[np.ndarray]) -> list[tuple[Value, np.ndarray]]:
        """Pairs a call's inputs with their values."""
        if len(arrays) != len(call.inputs):
            raise InputError(f"Kernel '{call.name}': {len(arrays)} arrays given, it takes {', '.join(call.inputs)}.")
        return [
            (value, _check_array(f"Kernel '{call.name}', input '{value.name}'", value, array))
            for value, array in zip(map(self.program.find_value, call.inputs), arrays, strict=True)
        ]

    def _check_names(self, names: Collection[str]) -> dict[int, list[Value]]:
        """Groups intermediates by the call that writes them; -1 for the network's inputs."""
        groups: dict[int, list[Value]] = {}
        for name in names:
            if name not in self._written:
                raise InputError(f"Value '{name}': model '{self.program.name}' computes no such value.")
            groups.setdefault(self._written[name], []).append(self.program.find_value(name))
        return groups


def _writers(program: Program) -> dict[str, int]:
    """Finds the call that writes each value; -1 for the network's inputs."""
    writers = {value.name: -1 for value in program.inputs}
    for index, call in enumerate(program.calls):
        writers.update(dict.fromkeys(call.outputs, index))
    by_buffer = {
        reference: writers[name]
        for call in program.calls
        for name, reference in zip(call.outputs, call.arguments[-len(call.outputs) :], strict=True)
        if reference.home is not Home.ARENA
    }
    for value in program.outputs:  # A network output may be known to its kernel by the name of what it is a view of.
        writers.setdefault(value.name, by_buffer.get(value.buffer, len(program.calls) - 1))
    return writers


def _spell(value: Value) -> str:
    """Writes a type as `float32[1,3,224,224]`."""
    return f"{value.type.dtype}[{','.join(map(str, value.type.shape))}]"


def _check_array(who: str, value: Value, array: np.ndarray) -> np.ndarray:
    """Takes an array of the exact type of a value."""
    array = np.asarray(array)
    if array.shape != value.type.shape or array.dtype != np.dtype(value.type.dtype):
        found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        raise InputError(f"{who}: found {found}, needed {_spell(value)}.")
    return np.ascontiguousarray(array)


def open_runner(program: Program, *, threads: int = 1, board: Board | None = None) -> Runner:
    """Opens the runner that fits a Program's device.

    Args:
        program: What to run.
        threads: Workers, the caller counted; an emulator takes one.
        board: Where to run it, None for here.

    Returns:
        A remote runner where there is a board, a native one where this machine can run the device's code, else an emulated one.

    Raises:
        InputError: The device can neither run here nor be emulated, or is not what the board is.
    """
    if board is not None:
        from sepwise.lowering.remote import RemoteRunner  # it loads TVM, which other runners do without

        return RemoteRunner(program, board, threads=threads)
    device = devices.get(program.device)
    return EmulatedRunner(program, device) if device.emulated else NativeRunner(program, threads=threads)


# In this process ------------------------------------------------------------------------------------------------------


class NativeRunner(Runner):
    """Runs a Program in this process on its own threads.

    One run at a time: calls from several threads wait for each other. Memory is allocated once.
    """

    def __init__(self, program: Program, *, threads: int = 1, library: Path | None = None) -> None:
        """Links (unless linked before), loads, allocates and starts the workers.

        Args:
            program: Built for a device that this machine can run.
            threads: Workers, the caller counted.
            library: The shared object, if there is one already.

        Raises:
            InputError: This machine lacks something that the program needs, or `threads` is not in 1 to 256.
            SepwiseError: The program does not link or load.
        """
        super().__init__(program)
        if not 1 <= threads <= 256:
            raise InputError(f"Threads: {threads} asked for, possible are 1 to 256.")
        _check_runs_here(program)
        self.threads = threads
        self._library = _load(program, library)
        self._lock = threading.Lock()
        self._constants = program.constants
        if self._constants.ctypes.data % ALIGNMENT_BYTES:
            self._constants = aligned_empty(program.constants.nbytes)
            self._constants[:] = program.constants
        self._arena, *self._outputs = map(
            _unwritten, (program.memory_bytes(threads), *(value.type.nbytes for value in program.outputs))
        )
        self._inputs = [aligned_empty(value.type.nbytes) for value in program.inputs]
        self._pool = self._start_pool()
        self._arguments = (
            ctypes.c_void_p(self._constants.ctypes.data),
            _pointers(self._inputs),
            _pointers(self._outputs),
            ctypes.c_void_p(self._arena.ctypes.data),
            ctypes.cast(self._library.sepwise_pool_parallel_for, ctypes.c_void_p) if self._pool else None,
            self._pool,
        )
        self._run_range = self._library[f"{PREFIX}_run_range"]
        self._alone: _NativeStage | None = None
        self._end = weakref.finalize(self, _end_native, self._library, self._pool)
        self._end.atexit = False  # A daemon thread may still be running; the process takes all with it.

    def _start_pool(self) -> ctypes.c_void_p | None:
        """Creates the thread pool on one cpu of each core first."""
        if self.threads == 1:
            return None
        allowed = frozenset(os.sched_getaffinity(0))
        first = devices.distinct_cores(Path("/sys/devices/system/cpu"), allowed)
        cpus = [*first, *sorted(allowed - set(first))]
        self._library.sepwise_pool_create.restype = ctypes.c_void_p
        pool = self._library.sepwise_pool_create(self.threads, (ctypes.c_int32 * len(cpus))(*cpus), len(cpus))
        if not pool:
            raise SepwiseError(f"Threads: the system gives no memory for a pool of {self.threads}.")
        return ctypes.c_void_p(pool)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the network once; see `Runner.run`."""
        arrays = self._check_inputs(inputs)
        with self._lock:
            self._require_open()
            self._set_inputs(arrays)
            self._call(0, len(self.program.calls))
            return self._finish(inputs, self._read_outputs())

    def run_keeping(self, inputs: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
        """Runs the network call by call; see `Runner.run_keeping`."""
        arrays = self._check_inputs(inputs)
        groups = self._check_names(names)
        kept: Arrays = {}
        with self._lock:
            self._require_open()
            self._set_inputs(arrays)
            for index in range(-1, len(self.program.calls)):
                if index >= 0:
                    self._call(index, index + 1)
                for value in groups.get(index, ()):
                    kept[value.name] = from_memory(value, self._memory(value))
            return {**kept, **self._finish(inputs, self._read_outputs())}

    def _run_alone(self, index: int, data: Sequence[np.ndarray | None]) -> list[list[np.ndarray]]:
        """Runs a single kernel call; see `Runner.run_kernel`."""
        with _SIGNALS, self._lock:
            self._require_open()
            if self._alone is None:
                self._alone = _NativeStage(self.program, self._library, self.threads, self._arguments[-2:])
            return run_alone(self._alone, index, data)

    def time(self, repeats: int, *, inputs: Mapping[str, np.ndarray] | None = None) -> list[float]:
        """Times whole runs, the kernels in C, and behind them the tail as `run` runs it.

        Args:
            repeats: How many runs.
            inputs: What to run on; what was last run on where not given.

        Returns:
            Microseconds of each run.
        """
        parts_us = self._time(repeats, inputs, each=False)
        return [sum(run_us) for run_us in zip(*parts_us, strict=True)]

    def time_kernels(self, repeats: int, *, inputs: Mapping[str, np.ndarray] | None = None) -> list[list[float]]:
        """Times every kernel call in C, each in the cache state that the run up to it leaves, and the tail.

        Args:
            repeats: How many runs.
            inputs: What to run on; what was last run on where not given.

        Returns:
            For each of `program.steps` the microseconds in each run.
        """
        return self._time(repeats, inputs, each=True)

    def place(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Places the network's inputs for calls that are timed by themselves; nothing runs.

        Args:
            inputs: As for `run`.

        Raises:
            InputError: As for `run`.
        """
        arrays = self._check_inputs(inputs)
        with self._lock:
            self._require_open()
            self._set_inputs(arrays)

    def time_calls(self, indices: Sequence[int], rounds: int) -> list[list[float]]:
        """Times some kernel calls by themselves, in turn, on what was last placed: to and fro, so that a drift evens out.

        Args:
            indices: Which of `program.calls`.
            rounds: Times that each is run.

        Returns:
            For each of the indices the microseconds of its run in each round.
        """
        count = len(indices)
        us = (ctypes.c_double * (count * rounds))()
        with self._lock:
            self._require_open()
            self._library.sepwise_time_calls(
                self._run_range, (ctypes.c_int32 * count)(*indices), count, *self._arguments, rounds, us
            )
        return [us[place * rounds : (place + 1) * rounds] for place in range(count)]

    def _time(self, repeats: int, inputs: Mapping[str, np.ndarray] | None, *, each: bool) -> list[list[float]]:
        """Times runs, the kernels together or call by call, and the tail by itself where there is one."""
        arrays = None if inputs is None else self._check_inputs(inputs)
        with self._lock:
            self._require_open()
            if arrays is not None:
                self._set_inputs(arrays)
            if self.program.tail is None:
                return self._time_calls(repeats, each=each)
            pairs = zip(self.program.inputs, self._inputs, strict=True)
            given = {value.name: from_memory(value, memory) for value, memory in pairs}
            runs_us = []
            for _ in range(repeats):
                calls_us = [part_us for (part_us,) in self._time_calls(1, each=each)]
                start_ns = time.perf_counter_ns()
                self._finish(given, self._read_outputs())
                runs_us.append([*calls_us, (time.perf_counter_ns() - start_ns) / 1e3])
        return [list(part_us) for part_us in zip(*runs_us, strict=True)]

    def _time_calls(self, repeats: int, *, each: bool) -> list[list[float]]:
        """Times the kernels, together or call by call."""
        calls = len(self.program.calls)
        width = calls if each else 1
        us = (ctypes.c_double * (repeats * width))()
        self._library.sepwise_time(self._run_range, 0, calls, *self._arguments, repeats, int(each), us)
        return [list(us[index::width]) for index in range(width)]

    def close(self) -> None:
        """Joins the workers and unloads; see `Runner.close`."""
        with self._lock:
            self._end()

    def _require_open(self) -> None:
        if not self._end.alive:
            raise SepwiseError(f"Model '{self.program.name}': closed; it cannot run any more.")

    def _set_inputs(self, arrays: Sequence[np.ndarray]) -> None:
        for memory, array in zip(self._inputs, arrays, strict=True):
            memory[:] = array.reshape(-1).view(np.uint8)

    def _read_outputs(self) -> Arrays:
        return {value.name: from_memory(value, memory) for value, memory in zip(self.program.outputs, self._outputs, strict=True)}

    def _call(self, first: int, last: int) -> None:
        """Runs the calls from `first` to `last - 1`."""
        status = self._run_range(first, last, *self._arguments)
        if status:
            raise SepwiseError(f"Model '{self.program.name}': calls {first} to {last - 1} ended with {status}.")

    def _memory(self, value: Value) -> np.ndarray:
        """Gives the bytes of a value."""
        match value.buffer.home:
            case Home.ARENA:
                return self._arena[value.buffer.offset : value.buffer.offset + value.type.nbytes]
            case Home.CONSTANT:
                return self._constants[value.buffer.offset : value.buffer.offset + value.type.nbytes]
            case Home.INPUT:
                return self._inputs[value.buffer.offset]
            case Home.OUTPUT:
                return self._outputs[value.buffer.offset]


class _NativeStage(StageMemory):
    """Where kernels run alone in this process."""

    def __init__(self, program: Program, library: ctypes.CDLL, threads: int, pool: Sequence[object]) -> None:
        """Makes the memory; `pool` is what runs tasks, and its context."""
        self.stage = Stage(program, vector_bytes=devices.get(program.device).vector_bytes, threads=threads)
        self._memory = np.frombuffer(mmap.mmap(-1, self.stage.nbytes), np.uint8)
        self._calls = len(program.calls)
        self._library = library
        self._pool = pool
        self._system = ctypes.CDLL(None, use_errno=True)
        self.close_gaps()

    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        """Changes what may be done with whole pages; see `StageMemory`."""
        if self._system.mprotect(ctypes.c_void_p(self._memory.ctypes.data + offset), ctypes.c_size_t(nbytes), int(access)):
            raise SepwiseError(f"Memory of kernels that run alone: {os.strerror(ctypes.get_errno())}.")

    def write_stage(self, offset: int, data: np.ndarray) -> None:
        """Writes bytes."""
        self._memory[offset : offset + data.nbytes] = data

    def read_stage(self, offset: int, nbytes: int) -> np.ndarray:
        """Reads bytes."""
        return self._memory[offset : offset + nbytes].copy()

    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        """Runs one call; see `StageMemory`. What is touched is opened, so that the call comes to its end."""
        start = self._memory.ctypes.data
        scratch, *operands = (start + offset for offset in offsets)
        stray = ctypes.c_size_t()
        status = self._library.sepwise_run_guarded(
            self._library[f"{PREFIX}_run_range"],
            self._calls + index,
            (ctypes.c_void_p * len(operands))(*operands),
            ctypes.c_void_p(scratch),
            *(self._pool if shared else (None, None)),
            ctypes.c_void_p(start),
            ctypes.c_int64(self.stage.nbytes),
            ctypes.byref(stray),
        )
        if status:
            raise SepwiseError(f"Kernel '{self.stage.program.calls[index].name}': ended with {status}.")
        if not stray.value:
            return None
        self.close_gaps()
        return stray.value - start


def _check_runs_here(program: Program) -> None:
    """Refuses a program whose code would trap on this machine."""
    missing = devices.missing_flags(devices.get(program.device))
    if missing:
        raise InputError(
            f"Model '{program.name}': built for {program.device}, this machine lacks {', '.join(missing)}. "
            "Compile it for `--target host`."
        )


def _load(program: Program, library: Path | None) -> ctypes.CDLL:
    """Loads the shared object, linked first where there is none.

    It is loaded under a name of its own: the dynamic linker answers a name that it knows with what it has already
    loaded, even where the file has been replaced since.
    """
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        unique = Path(folder) / "model.so"
        if library is None:
            link_shared(program, unique)
        else:
            unique.symlink_to(library.absolute())
        try:
            return ctypes.CDLL(str(unique))
        except OSError as error:
            reason = str(error).removeprefix(f"{unique}: ")
            raise SepwiseError(f"Model '{program.name}': its code does not load: {reason}") from error


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    """Makes a C array of addresses."""
    return (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))


def _end_native(library: ctypes.CDLL, pool: ctypes.c_void_p | None) -> None:
    """Joins the workers and unloads the code."""
    if pool:
        library.sepwise_pool_destroy(pool)
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


# In memory that is not this process's ---------------------------------------------------------------------------------


class Region(IntEnum):
    """Memory of a guest; inputs and outputs have one each, all others one at whose offsets things lie."""

    ARENA = 0
    CONSTANT = 1
    INPUT = 2
    OUTPUT = 3
    STAGE = 4


_REGIONS = {home: Region[home.name] for home in Home}


class GuestRunner(Runner):
    """Runs a Program in a guest: something that has memory of its own and runs calls on command, one run at a time.

    Attributes:
        device: What it runs on.
    """

    def __init__(self, program: Program, device: Device) -> None:
        """Notes what to run.

        Args:
            program: Built for the device.
            device: What it runs on.
        """
        super().__init__(program)
        self.device = device
        self._lock = threading.Lock()

    @abstractmethod
    def _open_guest(self) -> Guest:
        """Gives the guest, which may have to be started; the lock is held."""

    def run_keeping(self, inputs: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
        """Runs the network, held wherever something is to be read; see `Runner.run_keeping`."""
        arrays = self._check_inputs(inputs)
        groups = self._check_names(names)
        kept: Arrays = {}
        with self._lock:
            guest = self._open_guest()
            for value, array in zip(self.program.inputs, arrays, strict=True):
                guest.write(value.buffer, array)
            done = 0
            for index in sorted({*groups, len(self.program.calls) - 1}):
                guest.run_range(done, index + 1)
                done = index + 1
                for value in groups.get(index, ()):
                    kept[value.name] = guest.read(value)
            return {**kept, **{value.name: guest.read(value) for value in self.program.outputs}}

    def _run_alone(self, index: int, data: Sequence[np.ndarray | None]) -> list[list[np.ndarray]]:
        """Runs a single kernel call; see `Runner.run_kernel`."""
        with self._lock:
            guest = self._open_guest()
            guest.open_stage(self.device.vector_bytes)
            return run_alone(guest, index, data)


class Guest(StageMemory):
    """What runs a Program elsewhere than in this process: its memory and its calls."""

    def __init__(self, program: Program, device: str, *, threads: int = 1) -> None:
        """Gives the program its memory."""
        self._program = program
        self._device = device
        self._threads = threads
        self._staged = False
        unwritten = [(Home.ARENA, 0, program.memory_bytes(threads))]
        unwritten += [(Home.OUTPUT, index, value.type.nbytes) for index, value in enumerate(program.outputs)]
        for home, index, nbytes in unwritten:
            self._allocate(_REGIONS[home], index, nbytes)
            self._spoil(_REGIONS[home], index, nbytes)
        self._allocate(Region.CONSTANT, 0, program.constants.nbytes)
        self._put(Region.CONSTANT, 0, program.constants)
        for index, value in enumerate(program.inputs):
            self._allocate(Region.INPUT, index, value.type.nbytes)

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it can still run."""

    @abstractmethod
    def run(self, index: int) -> None:
        """Runs one kernel call to its end."""

    def run_range(self, first: int, last: int) -> None:
        """Runs the calls from `first` to `last - 1`."""
        for index in range(first, last):
            self.run(index)

    @abstractmethod
    def close(self) -> None:
        """Ends it."""

    @abstractmethod
    def _allocate(self, region: Region, index: int, nbytes: int) -> None:
        """Makes a region, or the input or output of that index."""

    def _spoil(self, region: Region, index: int, nbytes: int) -> None:
        """Leaves memory that was just made without a value."""
        self._put(region, index, np.full(nbytes, UNWRITTEN, np.uint8))

    @abstractmethod
    def _put(self, region: Region, offset: int, data: np.ndarray) -> None:
        """Writes an array's bytes at an offset of a region, or to the input or output of that index."""

    @abstractmethod
    def _get(self, region: Region, offset: int, nbytes: int) -> np.ndarray:
        """Reads bytes from where `_put` writes them."""

    def write(self, buffer: BufferRef, array: np.ndarray) -> None:
        """Writes a tensor as it is."""
        self._put(_REGIONS[buffer.home], buffer.offset, np.ascontiguousarray(array))

    def read(self, value: Value) -> np.ndarray:
        """Reads a value, plain."""
        return from_memory(value, self._get(_REGIONS[value.buffer.home], value.buffer.offset, value.type.nbytes))

    def open_stage(self, vector_bytes: int) -> None:
        """Makes the memory in which kernels run alone, the first time."""
        if self._staged:
            return
        self.stage = Stage(self._program, vector_bytes=vector_bytes, threads=self._threads)
        self._allocate(Region.STAGE, 0, self.stage.nbytes)
        self.close_gaps()
        self._staged = True

    def write_stage(self, offset: int, data: np.ndarray) -> None:
        """Writes bytes."""
        self._put(Region.STAGE, offset, data)

    def read_stage(self, offset: int, nbytes: int) -> np.ndarray:
        """Reads bytes."""
        return self._get(Region.STAGE, offset, nbytes)


# Under an emulator ----------------------------------------------------------------------------------------------------

_ALLOCATE, _WRITE, _READ, _RUN, _PROTECT, _RUN_ALONE = 1, 2, 3, 4, 5, 6
_TOUCHED = 1


class EmulatedRunner(GuestRunner):
    """Runs a Program under qemu-user, or on a bare core that unicorn emulates in this process, with one thread.

    Unicorn serves cores without a system, and stands in where qemu-user is missing. One guest lives from the first run until
    `close` and serves everything but counts. Numbers and counts of instructions, loads and stores are exact; time under an
    emulator says nothing, so there is none.
    """

    def __init__(self, program: Program, device: Device | None = None, *, executable: Path | None = None) -> None:
        """Links (unless linked before); the emulator starts with the first run.

        Args:
            program: Built for the device.
            device: What to emulate; the program's own where not given.
            executable: The static program, if there is one already.

        Raises:
            InputError: The device has no emulator, or it is not installed.
            SepwiseError: The program does not link.
        """
        super().__init__(program, devices.emulated_here(device or devices.get(program.device)))
        self._emulator = find_emulator(self.device)
        self._guest: Guest | None = None
        self._closed = False
        self._remove: weakref.finalize[..., Any] | None = None
        if executable is None:
            folder = tempfile.mkdtemp(prefix="sepwise-")
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            executable = Path(folder) / "model"
            link_executable(program, self.device, executable)
        self._executable = executable

    def count(self, inputs: Mapping[str, np.ndarray], *, caches: Sequence[CacheGeometry] = ()) -> Counts:
        """Counts what one run executes, call by call, and what would miss the caches of cores.

        The loop that starts the tasks counts with its call: some ten instructions a task. Where all that the Program touches
        fits the target's second-level cache, it runs once before, so that the caches are as a run leaves them to the next.

        Args:
            inputs: As for `run`.
            caches: Of the cores whose misses are wanted; all see the same run.

        Returns:
            Exact counts, misses in the order of `caches`. Where scalable vectors ran, instructions alone: qemu does not show what
            they load and store.

        Raises:
            InputError: As for `run`, this qemu loads no plugins, or caches are to be modelled and the emulator is unicorn.
        """
        arrays = self._check_inputs(inputs)
        if self.device.emulator == devices.UNICORN:
            if caches:
                raise InputError(f"Target '{self.device.name}': is emulated in unicorn here, under which no caches are modelled.")
            with self._lock, closing(_BareGuest(self.program, self._executable, self.device, count=True)) as bare:
                for value, array in zip(self.program.inputs, arrays, strict=True):
                    bare.write(value.buffer, array)
                bare.run_range(0, len(self.program.calls))
                return Counts(tuple(bare.counts))
        tensors = (*self.program.inputs, *self.program.outputs)
        footprint = self.program.constants.nbytes + self.program.arena_bytes + sum(value.type.nbytes for value in tensors)
        warm = bool(caches) and footprint <= self.device.l2_bytes
        calls = len(self.program.calls)
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            counts = Path(folder) / "counts"
            plugin = count_plugin(_emulator_major(self._emulator))
            executable = Path(folder) / "counted"
            executable.write_bytes(carry_out_prefetches(self._executable.read_bytes()))
            executable.chmod(0o700)
            loads = f"prefetches={int(self.device.triple.startswith('aarch64'))}"
            options = [f"counts={counts}", f"skip={calls * warm}", loads, *(f"core={cache}" for cache in caches)]
            command = self._command(executable, "-plugin", ",".join([str(plugin), *options]))
            guest = _ProcessGuest(self.program, command, self.device.name)
            try:
                for value, array in zip(self.program.inputs, arrays, strict=True):
                    guest.write(value.buffer, array)
                for index in [*range(calls)] * (1 + warm):
                    guest.run(index)
            finally:
                guest.close()
            if not counts.exists():
                raise InputError(
                    f"{self._emulator}: writes no instruction counts; it needs plugins, which Debian's qemu-user has "
                    "and qemu-user-static has not. Install it with `apt-get install qemu-user`."
                )
            found = read_counts(counts.read_text(), calls)
            return found.without_memory() if self.device.scalable_bytes and found.scalable else found

    def close(self) -> None:
        """Ends the emulator; see `Runner.close`."""
        with self._lock:
            self._closed = True
            if self._guest is not None:
                self._guest.close()
                self._guest = None
            if self._remove is not None:
                self._remove()

    def _command(self, executable: Path, *options: str) -> list[str]:
        """Writes the emulator's command line."""
        return [self._emulator, "-cpu", str(self.device.emulator_option), *options, str(executable)]

    def _open_guest(self) -> Guest:
        """Gives the running emulator, started anew where it has died."""
        if self._closed:
            raise SepwiseError(f"Model '{self.program.name}': closed; it cannot run any more.")
        if self._guest is None or not self._guest.alive:
            if self.device.emulator == devices.UNICORN:
                self._guest = _BareGuest(self.program, self._executable, self.device)
            else:
                self._guest = _ProcessGuest(self.program, self._command(self._executable), self.device.name)
        return self._guest


class _ProcessGuest(Guest):
    """One process of qemu-user and the commands of `runtime/emulated.c`."""

    def __init__(self, program: Program, command: Sequence[str], device: str) -> None:
        """Starts the emulator and gives the program its memory."""
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._end = weakref.finalize(self, _end_guest, self._process, self._errors)
        self._call = -1
        super().__init__(program, device)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def run(self, index: int) -> None:
        """Runs one kernel call to its end."""
        self._call = index
        self._send(_RUN, index, 0, 0)
        (status,) = struct.unpack("<q", self._receive(8))
        if status:
            raise SepwiseError(f"Model '{self._program.name}': call {index} ended with {status}.")
        self._call = -1

    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        """Runs one call; see `StageMemory`. The process ends where it touches what it must not."""
        self._call = index
        self._send(_RUN_ALONE, len(self._program.calls) + index, len(offsets), 8 * len(offsets), np.array(offsets, np.int64))
        status, touched = struct.unpack("<2q", self._receive(16))
        self._call = -1
        if status == _TOUCHED:
            self._process.wait()
            return int(touched)
        if status:
            raise SepwiseError(f"Model '{self._program.name}': call {index} ended with {status}.")
        return None

    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        """Changes what may be done with whole pages; see `StageMemory`."""
        self._send(_PROTECT, access, offset, nbytes)

    def close(self) -> None:
        """Lets the process end by itself, as it does at the end of its input."""
        self._end()

    def _allocate(self, region: Region, index: int, nbytes: int) -> None:
        self._send(_ALLOCATE, region, index, nbytes)

    def _put(self, region: Region, offset: int, data: np.ndarray) -> None:
        self._send(_WRITE, region, offset, data.nbytes, data)

    def _get(self, region: Region, offset: int, nbytes: int) -> np.ndarray:
        self._send(_READ, region, offset, nbytes)
        return np.frombuffer(self._receive(nbytes), np.uint8)

    def _send(self, *command: int | np.ndarray) -> None:
        """Sends four numbers and perhaps bytes."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(struct.pack("<4q", *command[:4]))
            for data in command[4:]:
                pipe.write(np.asarray(data).reshape(-1).view(np.uint8).data)
            pipe.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self, nbytes: int) -> bytes:
        """Receives an answer."""
        pipe = self._process.stdout
        assert pipe is not None
        data = pipe.read(nbytes)
        if len(data) != nbytes:
            raise self._died()
        return data

    def _died(self) -> SepwiseError:
        """Says what killed the process and which kernel ran."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        where = f"kernel '{self._program.calls[self._call].name}'" if self._call >= 0 else "start"
        if status == -signal.SIGILL:
            what = "met an instruction that this cpu lacks (SIGILL)"
        elif status < 0:
            what = f"was killed by {signal.Signals(-status).name}"
        else:
            what = f"ended with status {status}"
        detail = f": {said[-1]}" if said else ""
        return SepwiseError(f"Model '{self._program.name}' on emulated {self._device}: {where} {what}{detail}.")


class _BareGuest(Guest):
    """A core in this process that calls the generated C by itself.

    Attributes:
        counts: Of each call that was run; zeros where nothing is counted.
    """

    def __init__(self, program: Program, image: Path, device: Device, *, count: bool = False) -> None:
        """Loads the image and gives the program its memory; `count` has what calls execute counted."""
        from sepwise.lowering.bare_metal import Core  # it loads unicorn, which other guests do without

        self._core = Core(image, str(device.emulator_cpu), count=count)
        self._addresses: dict[tuple[Region, int], int] = {}
        self._failed = False
        self.counts: list[CallCounts] = []
        super().__init__(program, device.name)
        tensors = [(Region.INPUT, len(program.inputs)), (Region.OUTPUT, len(program.outputs))]
        self._tables = [self._table(region, number) for region, number in tensors]
        operands = max((len(call.arguments) for call in program.calls), default=0)
        self._operands = self._core.allocate(np.dtype(self._core.address).itemsize * operands)

    @property
    def alive(self) -> bool:
        """Whether no call has failed."""
        return not self._failed

    def run(self, index: int) -> None:
        """Runs one kernel call to its end."""
        constants, arena = (self._addresses[_REGIONS[home], 0] for home in (Home.CONSTANT, Home.ARENA))
        no_pool = (0, 0)
        self._enter(index, (index, index + 1, constants, *self._tables, arena, *no_pool))
        self.counts.append(self._core.take_counts())

    def run_stage(self, index: int, offsets: Sequence[int], *, shared: bool) -> int | None:
        """Runs one call; see `StageMemory`."""
        start = self._addresses[Region.STAGE, 0]
        scratch, *operands = (start + offset for offset in offsets)
        self._core.write(self._operands, np.array(operands, self._core.address))
        call = len(self._program.calls) + index
        try:
            self._enter(index, (call, call + 1, 0, self._operands, 0, scratch, 0, 0))
        except SepwiseError as error:
            if isinstance(error.__cause__, AccessError):
                return error.__cause__.address - start
            raise
        return None

    def protect_stage(self, offset: int, nbytes: int, access: Access) -> None:
        """Changes what may be done with whole pages; see `StageMemory`."""
        self._core.protect(self._addresses[Region.STAGE, 0] + offset, nbytes, access)

    def _enter(self, index: int, arguments: Sequence[int]) -> None:
        """Calls the generated C for a call of the Program."""
        where = f"Model '{self._program.name}' on emulated {self._device}: kernel '{self._program.calls[index].name}'"
        try:
            status = self._core.call(arguments)
        except SepwiseError as error:
            self._failed = True
            raise SepwiseError(f"{where} was ended: {error}.") from error
        if status:
            raise SepwiseError(f"{where} ended with {status}.")

    def close(self) -> None:
        """Leaves the core to the garbage collector."""
        self._failed = True

    def _allocate(self, region: Region, index: int, nbytes: int) -> None:
        self._addresses[region, index] = self._core.allocate(nbytes)

    def _put(self, region: Region, offset: int, data: np.ndarray) -> None:
        self._core.write(self._find(region, offset), data)

    def _get(self, region: Region, offset: int, nbytes: int) -> np.ndarray:
        return self._core.read(self._find(region, offset), nbytes)

    def _find(self, region: Region, offset: int) -> int:
        """The address of an offset of a region, or of the input or output of that index."""
        if region in (Region.INPUT, Region.OUTPUT):
            return self._addresses[region, offset]
        return self._addresses[region, 0] + offset

    def _table(self, region: Region, number: int) -> int:
        """Writes the C array of the addresses of inputs or outputs."""
        table = np.array([self._addresses[region, index] for index in range(number)], self._core.address)
        address = self._core.allocate(table.nbytes)
        self._core.write(address, table)
        return address


def _end_guest(process: subprocess.Popen[bytes], errors: object) -> None:
    """Ends the process by ending its input, by force after a moment."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            pass
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()  # type: ignore[attr-defined]


def find_emulator(device: Device) -> str:
    """Finds a device's emulator.

    Args:
        device: What to emulate.

    Returns:
        The program's path, or the package's name.

    Raises:
        InputError: The device has no emulator, or it is not installed.
    """
    if device.emulator is None:
        raise InputError(f"Target '{device.name}': has no emulator; it only runs on a machine of its kind.")
    lacking = devices.reach(device)
    if lacking.install is not None:
        alone = ", and unicorn has no scalable vectors" if device.scalable_bytes else ""
        needed = f"needs {device.emulator}, which is not installed{alone}"
        raise InputError(f"Target '{device.name}': {needed}. Install it with `{lacking.install}`.")
    return shutil.which(device.emulator) or device.emulator


@cache
def _emulator_major(path: str) -> int:
    """Reads qemu's major version."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)", said)
    if found is None:
        raise InputError(f"{path}: does not say its version as qemu does; install it with `apt-get install qemu-user`.")
    return int(found.group(1))
