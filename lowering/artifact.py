"""The artifact: a compiled network that runs, and the folder that keeps it.

The folder holds

    program.json     what calls what on which memory; for which device; sizes and checksums of the other files
    constants.bin    the weights, packed
    kernels.o        the kernels' object code
    model.so         linked for this machine, or `model`, a static program for the device's emulator
    tail.onnx        the end of the network that needs TVM's runtime, for the few networks that have one

It appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sepwise.lowering import device as devices
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.link import link_executable, link_shared
from sepwise.lowering.program import BufferRef, Home, KernelCall, Program, Tail, Value
from sepwise.lowering.runner import EmulatedRunner, NativeRunner, Runner, aligned_empty
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sepwise.lowering.device import Device

__all__ = [
    "Artifact",
    "KernelProfile",
    "check_cpu",
    "describe_file",
    "device_from_json",
    "device_to_json",
    "load",
    "new_folder",
    "own_version",
    "requires",
]

FORMAT = 3
_PROGRAM, _CONSTANTS, _KERNELS, _LIBRARY, _EXECUTABLE = "program.json", "constants.bin", "kernels.o", "model.so", "model"
_TAIL = "tail.onnx"


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """What one kernel call, or the tail, costs.

    Attributes:
        name: The kernel.
        nodes: The ONNX nodes it computes.
        strategy: How.
        macs: Multiply-accumulates.
        median_us: Median time on this machine, None under an emulator.
        instructions: Guest instructions under an emulator, None on this machine.
    """

    name: str
    nodes: tuple[str, ...]
    strategy: str
    macs: int
    median_us: float | None
    instructions: int | None


class Artifact:
    """A compiled network. Its threads start with the first run; use it as a context manager or `close` it.

    Attributes:
        program: The kernel calls, constants and object code.
        device: What it was built for, as it was described then.
        report: What `sepwise compile --json` prints.
        threads: Workers of a run.
    """

    def __init__(
        self, program: Program, *, report: Mapping[str, Any] | None = None, threads: int = 1, folder: Path | None = None
    ) -> None:
        """Notes what to run; nothing is linked or started yet.

        Args:
            program: What was compiled.
            report: The fields of the compile report.
            threads: Workers of a run, the caller counted.
            folder: Where it was loaded from, with its linked code.
        """
        self.program = program
        self.device = devices.get(program.device)
        self.report = dict(report or {})
        self.threads = threads
        self._folder = folder
        self._runner: Runner | None = None
        self._lock = threading.Lock()

    @property
    def runner(self) -> Runner:
        """The runner of this machine or of the device's emulator, opened at first use.

        Raises:
            InputError: The device can neither run here nor be emulated.
        """
        with self._lock:
            if self._runner is None:
                if self.device.emulated:
                    self._runner = EmulatedRunner(self.program, self.device, executable=self._linked(_EXECUTABLE))
                else:
                    self._runner = NativeRunner(self.program, threads=self.threads, library=self._linked(_LIBRARY))
            return self._runner

    def run(self, /, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the network once.

        Args:
            **inputs: Every input by name, of its exact shape and element type.

        Returns:
            The outputs by name.

        Raises:
            InputError: An input is missing, unknown, or of another shape or element type.

        Example:
            >>> load("mobilenet").run(x=x)["logits"].shape  # doctest: +SKIP
            (1, 1000)
        """
        return self.runner.run(inputs)

    def profile(self, inputs: Mapping[str, np.ndarray] | None = None, *, repeats: int = 50) -> list[KernelProfile]:
        """Measures every kernel call in the course of whole runs.

        Args:
            inputs: What to run on; zeros where not given.
            repeats: Runs to take the median of; an emulator counts once.

        Returns:
            One profile a call and one of the tail, in execution order: times natively, instructions under an emulator.
        """
        runner = self.runner
        given = inputs or {value.name: np.zeros(value.type.shape, value.type.dtype) for value in self.program.inputs}
        costs: list[tuple[float | None, int | None]]
        if isinstance(runner, EmulatedRunner):
            costs = [(None, call.instructions) for call in runner.count(given).calls]
        else:
            assert isinstance(runner, NativeRunner)
            runner.run(given)
            costs = [(statistics.median(times_us), None) for times_us in runner.time_kernels(repeats)]
        return [
            KernelProfile(step.name, step.nodes, step.strategy, step.macs, median_us, instructions)
            for step, (median_us, instructions) in zip(self.program.steps, costs, strict=True)
        ]

    def save(self, folder: str | Path) -> None:
        """Writes the folder, whole or not at all; an artifact that is there already is replaced.

        Args:
            folder: Where it is to appear.

        Raises:
            InputError: The place is taken by something else, is not writable, or has no room.
        """
        folder = Path(folder)
        with new_folder(folder, kind="artifact", find_loss=requires(_PROGRAM)) as temporary:
            (temporary / _KERNELS).write_bytes(self.program.object_code)
            (temporary / _CONSTANTS).write_bytes(self.program.constants.data)
            if self.program.tail is not None:
                (temporary / _TAIL).write_bytes(self.program.tail.model)
            if self.device.emulated:
                link_executable(self.program, self.device, temporary / _EXECUTABLE)
            else:
                link_shared(self.program, temporary / _LIBRARY)
            files = {path.name: describe_file(path) for path in sorted(temporary.iterdir())}
            body = {
                "sepwise": own_version(),
                "device": device_to_json(self.device),
                "threads": self.threads,
                "report": self.report,
                "program": _program_to_json(self.program),
                "files": files,
            }
            document = {"format": FORMAT, "sha256": _hash_json(body), **body}
            (temporary / _PROGRAM).write_text(json.dumps(document, indent=1) + "\n")

    def close(self) -> None:
        """Ends threads and processes; a later run starts them again."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
                self._runner = None

    def __enter__(self) -> Self:
        """Gives itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes."""
        self.close()

    def _linked(self, name: str) -> Path | None:
        """Finds the linked file of the folder it was loaded from."""
        path = None if self._folder is None else self._folder / name
        return path if path is not None and path.exists() else None


def load(folder: str | Path, *, elsewhere: bool = False) -> Artifact:
    """Reads what `Artifact.save` wrote, every checksum compared.

    Args:
        folder: The artifact's folder.
        elsewhere: Whether it is to run on another machine than this one.

    Returns:
        The artifact, ready to run.

    Raises:
        InputError: The folder is no artifact, is damaged, comes from another version, or was built for another cpu.
    """
    folder = Path(folder)
    if not (folder / _PROGRAM).is_file():
        found = "does not exist" if not folder.exists() else f"holds no {_PROGRAM}" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder}: {found}, so it is no artifact; `sepwise compile MODEL -o DIR` makes one.")
    try:
        document = json.loads((folder / _PROGRAM).read_bytes())
        file_format = document["format"]
        if file_format == FORMAT:
            body = {key: value for key, value in document.items() if key not in ("format", "sha256")}
            if document["sha256"] != _hash_json(body):
                raise ValueError("its checksum differs")  # noqa: TRY301 - answered as any other damage below
            device = device_from_json(body["device"])
            program = _program_from_json(body["program"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / _PROGRAM}: damaged ({error}); compile the model again.") from error
    if file_format != FORMAT:
        raise InputError(
            f"{folder}: an artifact of format {file_format}, this sepwise reads format {FORMAT}; compile the model again."
        )
    contents = {name: _read_file(folder / name, facts) for name, facts in body["files"].items()}
    program = replace(program, constants=contents[_CONSTANTS], object_code=contents[_KERNELS].tobytes())
    if program.tail is not None:
        program = replace(program, tail=replace(program.tail, model=contents[_TAIL].tobytes()))
    if not elsewhere:
        check_cpu(folder, device, emulated=_EXECUTABLE in contents)
    return Artifact(program, report=body["report"], threads=body["threads"], folder=folder)


def check_cpu(folder: Path, device: Device, *, emulated: bool) -> None:
    """Refuses code that would trap here.

    Args:
        folder: Where it is.
        device: What it was built for.
        emulated: Whether it runs under an emulator.

    Raises:
        InputError: This machine lacks an extension.
    """
    missing = devices.missing_flags(device)
    if missing and not emulated:
        raise InputError(
            f"{folder}: built for {device.name} ({device.cpu}); this machine lacks {', '.join(missing)}. "
            "Compile the model here, or for a target that both have, such as x86-64-v3."
        )


def own_version() -> str:
    """Reads sepwise's version; `unknown` where it is not installed."""
    try:
        return version("sepwise")
    except PackageNotFoundError:  # Run out of a source folder.
        return "unknown"


@contextmanager
def new_folder(folder: Path, *, kind: str, find_loss: Callable[[Path], str | None]) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `folder` at the end, or goes where the body fails.

    Args:
        folder: Where it is to appear.
        kind: What the folder would be called.
        find_loss: Says what would be lost with a folder that has files; None where all of it can be made again.

    Yields:
        The folder to write to.

    Raises:
        InputError: The place is taken by something else, is not writable, or has no room.
    """
    if (folder.exists() or folder.is_symlink()) and (loss := _describe_loss(folder, find_loss)):
        raise InputError(f"{folder}: exists and is no {kind} ({loss}); choose another place or remove it.")
    place = folder.resolve()
    if place in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{folder}: is or holds the current folder; leave it or choose another place.")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; choose another place.") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if place.exists():
            old = temporary.with_name(f"{temporary.name}-old")
            place.rename(old)
            try:
                temporary.rename(place)
            except OSError:
                old.rename(place)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(place)
    except OSError as error:
        reason = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise InputError(f"{folder}: cannot be written: {reason}; free some room or choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _describe_loss(folder: Path, find_loss: Callable[[Path], str | None]) -> str | None:
    """What would be lost with something that is there."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is a link" if folder.is_symlink() else "it is a file"
    return find_loss(folder) if any(folder.iterdir()) else None


def requires(file: str) -> Callable[[Path], str | None]:
    """Gives the `find_loss` of folders that can be made again if they hold a file.

    Args:
        file: Its name.

    Returns:
        The function.
    """
    return lambda folder: None if (folder / file).is_file() else f"it holds no {file}"


def _umask() -> int:
    """Reads the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def describe_file(path: Path) -> dict[str, Any]:
    """Gives a file's size and checksum, as manifests hold them."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _read_file(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    """Reads a file to aligned memory and compares it with its checksum."""
    try:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            contents = aligned_empty(nbytes)
            file.readinto(contents.data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; compile the model again.") from error
    if nbytes != facts["bytes"]:
        raise InputError(f"{path}: damaged: {nbytes} bytes found, {facts['bytes']} needed; compile the model again.")
    if hashlib.sha256(contents.data).hexdigest() != facts["sha256"]:
        raise InputError(f"{path}: damaged: its checksum differs; compile the model again.")
    return contents


def _hash_json(body: object) -> str:
    """Hashes what a JSON document says, however it is spelled."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def device_to_json(device: Device) -> dict[str, Any]:
    """Gives a device's facts without their sources, as manifests hold them."""
    facts = asdict(device)
    del facts["sources"]
    return {**facts, "features": list(device.features), "flags": sorted(device.flags)}


def device_from_json(facts: Mapping[str, Any]) -> Device:
    """Reads what `device_to_json` gives."""
    return devices.Device(**{**facts, "features": tuple(facts["features"]), "flags": frozenset(facts["flags"])})


def _buffer_to_json(buffer: BufferRef) -> list[Any]:
    """Writes where a buffer lives."""
    return [buffer.home.value, buffer.offset]


def _buffer_from_json(pair: Sequence[Any]) -> BufferRef:
    """Reads where a buffer lives."""
    return BufferRef(Home(pair[0]), int(pair[1]))


def _value_to_json(value: Value) -> dict[str, Any]:
    """Writes a value."""
    return {
        "name": value.name,
        "shape": list(value.type.shape),
        "dtype": value.type.dtype,
        "lanes": value.type.layout.lanes,
        "buffer": _buffer_to_json(value.buffer),
    }


def _value_from_json(facts: Mapping[str, Any]) -> Value:
    """Reads a value."""
    tensor = TensorType(tuple(facts["shape"]), facts["dtype"], Layout(facts["lanes"]))
    return Value(facts["name"], tensor, _buffer_from_json(facts["buffer"]))


def _program_to_json(program: Program) -> dict[str, Any]:
    """Writes a Program without its constants and object code."""
    return {
        "name": program.name,
        "device": program.device,
        "calls": [
            {**asdict(call), "arguments": [_buffer_to_json(buffer) for buffer in call.arguments]} for call in program.calls
        ],
        **{kind: [_value_to_json(value) for value in getattr(program, kind)] for kind in ("inputs", "outputs", "values")},
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound_bytes": program.arena_lower_bound_bytes,
        "tail": None if program.tail is None else {**asdict(program.tail), "model": None},
    }


def _program_from_json(facts: Mapping[str, Any]) -> Program:
    """Reads a Program without its constants and object code."""
    lists = ("inputs", "outputs", "nodes", "constant_bytes")
    calls = (
        KernelCall(
            **{
                **call,
                **{key: tuple(call.get(key, ())) for key in lists},
                "arguments": tuple(map(_buffer_from_json, call["arguments"])),
            }
        )
        for call in facts["calls"]
    )
    return Program(
        name=facts["name"],
        device=facts["device"],
        calls=tuple(calls),
        inputs=tuple(map(_value_from_json, facts["inputs"])),
        outputs=tuple(map(_value_from_json, facts["outputs"])),
        values=tuple(map(_value_from_json, facts["values"])),
        constants=np.empty(0, np.uint8),
        arena_bytes=facts["arena_bytes"],
        arena_lower_bound_bytes=facts["arena_lower_bound_bytes"],
        object_code=b"",
        tail=None if facts.get("tail") is None else _tail_from_json(facts["tail"]),
    )


def _tail_from_json(facts: Mapping[str, Any]) -> Tail:
    """Reads a tail without its model."""
    names = {kind: tuple(facts[kind]) for kind in ("inputs", "outputs", "results", "nodes")}
    return Tail(model=b"", macs=facts["macs"], **names)
