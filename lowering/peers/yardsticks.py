"""What the cores can do at most: loops of multiply-adds, timed as a runtime of a network is, between its blocks.

    fma     for steps:  for accumulators:  a = a * x + y      all in registers, no load and no store
    sgemm   C = A B, of SIDE x SIDE each, by the library of numpy

A run of either is `macs()` multiply-accumulates of float32.
"""

from __future__ import annotations

import ctypes
import tempfile
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sepwise.lowering import device
from sepwise.lowering.link import run_zig
from sepwise.lowering.peers.base import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.peers.base import Job

__all__ = ["YARDSTICKS", "FmaLoop", "Sgemm", "Yardstick"]

SIDE: Final = 1024
"""Rows and columns of the matrices: their 12 MB are read from caches while a core multiplies."""

STEPS: Final = 1_000_000
"""Turns of the loop: some milliseconds, beside which it costs nothing to start threads."""

LOOP: Final = """
typedef float vector __attribute__((vector_size(BYTES)));
float run(long steps, float x, float y) {
    vector sums[ACCUMULATORS], total = {0};
#pragma clang loop unroll(full)
    for (int i = 0; i < ACCUMULATORS; ++i) sums[i] = total + (float)i;
    for (long step = 0; step < steps; ++step)
#pragma clang loop unroll(full)
        for (int i = 0; i < ACCUMULATORS; ++i) sums[i] = sums[i] * x + y;
#pragma clang loop unroll(full)
    for (int i = 0; i < ACCUMULATORS; ++i) total += sums[i];
    return total[0];
}
"""
"""`x` and `y` are arguments, so that the compiler cannot foresee the sums."""


class Yardstick(Runtime):
    """Something that multiplies and adds and computes no network."""

    @classmethod
    @abstractmethod
    def macs(cls) -> int:
        """Multiply-accumulates of a run on this machine, of all threads together."""

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Computes nothing of a network."""
        del inputs
        return {}


class FmaLoop(Yardstick):
    """Multiply-adds whose operands stay in registers, as many chains of them as hide their latency, on each thread."""

    def __init__(self, job: Job) -> None:
        """Compiles the loop for this machine."""
        host = device.get("host")
        self.version = host.cpu
        self._threads = job.threads
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            source, library = Path(folder) / "fma.c", Path(folder) / "fma.so"
            source.write_text(LOOP)
            sizes = (f"-DBYTES={host.vector_bytes}", f"-DACCUMULATORS={_accumulators(host)}")
            flags = ("-O3", "-mcpu=native", "-ffp-contract=fast", "-fno-sanitize=undefined")
            run_zig("cc", "-shared", *flags, *sizes, source, "-o", library)
            self._loop = ctypes.CDLL(str(library)).run
        self._loop.argtypes, self._loop.restype = (ctypes.c_long, ctypes.c_float, ctypes.c_float), ctypes.c_float
        self._pool = ThreadPoolExecutor(job.threads)

    @classmethod
    def macs(cls) -> int:
        """See `Yardstick.macs`."""
        host = device.get("host")
        return STEPS * _accumulators(host) * host.lanes

    def execute(self) -> object:
        """Runs the loop, its steps shared out to the threads."""
        steps = STEPS // self._threads
        return list(self._pool.map(lambda _: self._loop(steps, 0.5, 1.0), range(self._threads)))


def _accumulators(host: device.Device) -> int:
    """Twice as many chains as hide the latency, all in registers."""
    return min(host.vector_registers - 4, 2 * round(host.fma_ports * host.fma_latency_cycles))


class Sgemm(Yardstick):
    """The product of two matrices by the library that numpy is built with, on the threads that its environment allows."""

    def __init__(self, job: Job) -> None:
        """Draws the matrices."""
        del job
        library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        self.version = f"{library['name']} {library['version']}"
        rng = np.random.default_rng(0)
        self._left, self._right = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
        self._product = np.empty((SIDE, SIDE), np.float32)

    @classmethod
    def macs(cls) -> int:
        """See `Yardstick.macs`."""
        return SIDE**3

    def execute(self) -> object:
        """Multiplies once."""
        return np.matmul(self._left, self._right, out=self._product)


YARDSTICKS: Final[Mapping[str, type[Yardstick]]] = {"fma": FmaLoop, "sgemm": Sgemm}
"""By the names that a job gives."""
