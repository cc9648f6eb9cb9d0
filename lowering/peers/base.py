"""What a runtime in a benchmark is: a network loaded once, with its inputs in place, that runs and times itself."""

from __future__ import annotations

import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from sepwise.passes.errors import SepwiseError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

__all__ = ["Job", "Runtime", "fastest", "pick_image", "run_converter", "timed"]

_CHOICE_ROUNDS: Final = 3
_CHOICE_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker loads.

    Attributes:
        runtime: `OURS` or a key of `PEERS`.
        original: The ONNX file as it came in.
        simplified: The same network canonicalised: shapes fixed, constants folded.
        artifact: Folder of our compiled artifact.
        inputs: One set of inputs, used for every run that is not given another, in the order of the graph.
        outputs: Names of the outputs in the order of the graph.
        threads: Worker threads.
    """

    runtime: str
    original: Path
    simplified: Path
    artifact: Path
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    threads: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The different files of the network."""
        return tuple(dict.fromkeys((self.original, self.simplified)))


class Runtime(ABC):
    """A network loaded by one runtime, with its inputs in place.

    Attributes:
        packages: Modules that it needs beside ours.
        version: The runtime's.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    version: str

    @abstractmethod
    def __init__(self, job: Job) -> None:
        """Loads the network of a job."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""

    @abstractmethod
    def execute(self) -> object:
        """Runs once on the job's inputs, which are in place; the outputs stay with the runtime."""

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""
        return timed(self.execute, repeats)


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Times a call `repeats` times, in microseconds."""
    times_us = []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        call()
        times_us.append((time.perf_counter_ns() - start_ns) / 1e3)
    return times_us


def fastest(calls: Sequence[Callable[[], object]]) -> int:
    """Picks the fastest of several calls, by the least median in any of a few alternating rounds."""
    medians_us: list[list[float]] = [[] for _ in calls]
    for _ in range(_CHOICE_ROUNDS if len(calls) > 1 else 0):
        for call, found in zip(calls, medians_us, strict=True):
            found.append(statistics.median(timed(call, _CHOICE_RUNS)))
    return min(range(len(calls)), key=lambda index: min(medians_us[index], default=0.0))


def pick_image(array: np.ndarray) -> np.ndarray:
    """The only image of a batch, for runtimes that know none.

    Raises:
        UnsupportedError: If there are several.
    """
    if array.ndim < 2 or array.shape[0] != 1:
        raise UnsupportedError(f"it takes one image at a time, and an input is of shape {array.shape}")
    image: np.ndarray = array[0]
    return image


def run_converter(command: Sequence[object], written: Path) -> None:
    """Runs the program that converts ONNX into a runtime's own format.

    Args:
        command: Its words.
        written: The file that it should write.

    Raises:
        SepwiseError: It did not; the message holds the last line that it said.
    """
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if not written.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SepwiseError("; ".join(["conversion failed", f"status {done.returncode} and no {written.name}", *lines[-1:]]))
