"""What the cores can do at most: loops of multiply-adds, timed as a runtime of a network is, between its blocks.

    fma           for steps:  for accumulators:  a = a * x + y      all in registers, no load and no store
    sgemm         C = A B, of SIDE x SIDE each, by the library of numpy
    torch-sgemm   the same by that of torch: which of the two is faster depends on the processor

A run of each is `macs()` multiply-accumulates of float32. Another loop reads memory, for `lowering.roofline`.
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

__all__ = ["READERS", "YARDSTICKS", "FmaLoop", "Sgemm", "TorchSgemm", "Yardstick", "accumulators", "compile_loops"]

SIDE: Final = 1024
"""Rows and columns of the matrices: their 12 MB are read from caches while a core multiplies."""

STEPS: Final = 1_000_000
"""Turns of the loop: some milliseconds, beside which it costs nothing to start threads."""

READERS: Final = 8
"""Vectors that the loop over memory reads in a turn, each into a sum of its own."""

LOOPS: Final = """
typedef float vector __attribute__((vector_size(BYTES)));
typedef int words __attribute__((vector_size(BYTES)));

float multiply(long steps, float x, float y) {
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

int read(const words *data, long vectors, long passes) {
    words sums[READERS] = {0}, total = {0};
    for (long pass = 0; pass < passes; ++pass) {
        for (long first = 0; first < vectors; first += READERS)
#pragma clang loop unroll(full)
            for (int i = 0; i < READERS; ++i) sums[i] += data[first + i];
        __asm__ volatile("" ::: "memory");
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < READERS; ++i) total += sums[i];
    return total[0];
}
"""
"""`x` and `y` are arguments, so that the compiler cannot foresee the sums; after each pass it has to take memory for changed."""


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
        self._loop = compile_loops(host).multiply
        self._pool = ThreadPoolExecutor(job.threads)

    @classmethod
    def macs(cls) -> int:
        """See `Yardstick.macs`."""
        host = device.get("host")
        return STEPS * accumulators(host) * host.lanes

    def execute(self) -> object:
        """Runs the loop, its steps shared out to the threads."""
        steps = STEPS // self._threads
        return list(self._pool.map(lambda _: self._loop(steps, 0.5, 1.0), range(self._threads)))


def compile_loops(host: device.Device) -> ctypes.CDLL:
    """Compiles the loops for this machine.

    Args:
        host: What is known of it.

    Returns:
        The library: `multiply(steps, x, y)`, and `read(data, vectors, passes)` of a whole number of `READERS` vectors.
    """
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        source, library = Path(folder) / "loops.c", Path(folder) / "loops.so"
        source.write_text(LOOPS)
        sizes = (f"-DBYTES={host.vector_bytes}", f"-DACCUMULATORS={accumulators(host)}", f"-DREADERS={READERS}")
        flags = ["-O3", "-mcpu=native", "-ffp-contract=fast", "-fno-sanitize=undefined"]
        if host.isa == "x86":  # of some cores clang halves vectors of 64 bytes
            flags.append(f"-mprefer-vector-width={8 * host.vector_bytes}")
        run_zig("cc", "-shared", *flags, *sizes, source, "-o", library)
        loops = ctypes.CDLL(str(library))
    loops.multiply.argtypes, loops.multiply.restype = (ctypes.c_long, ctypes.c_float, ctypes.c_float), ctypes.c_float
    loops.read.argtypes, loops.read.restype = (ctypes.c_void_p, ctypes.c_long, ctypes.c_long), ctypes.c_int
    return loops


def accumulators(host: device.Device) -> int:
    """Counts the chains of the loop of multiply-adds.

    Args:
        host: What is known of this machine.

    Returns:
        Twice as many as hide the latency, all in registers.
    """
    return min(host.vector_registers - 4, 2 * round(host.fma_ports * host.fma_latency_cycles))


class Sgemm(Yardstick):
    """The product of two matrices by the library that numpy is built with, on the threads that its environment allows."""

    def __init__(self, job: Job) -> None:
        """Draws the matrices."""
        del job
        library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        self.version = f"{library['name']} {library['version']}"
        self._left, self._right = _draw_matrices()
        self._product = np.empty((SIDE, SIDE), np.float32)

    @classmethod
    def macs(cls) -> int:
        """See `Yardstick.macs`."""
        return SIDE**3

    def execute(self) -> object:
        """Multiplies once."""
        return np.matmul(self._left, self._right, out=self._product)


class TorchSgemm(Yardstick):
    """The same product by the library that torch is built with."""

    def __init__(self, job: Job) -> None:
        """Draws the matrices."""
        import torch

        torch.set_num_threads(job.threads)
        self.version = f"torch {torch.__version__}"
        self._left, self._right = map(torch.from_numpy, _draw_matrices())
        self._product = torch.empty((SIDE, SIDE), dtype=torch.float32)
        self._multiply = torch.mm

    @classmethod
    def macs(cls) -> int:
        """See `Yardstick.macs`."""
        return SIDE**3

    def execute(self) -> object:
        """Multiplies once."""
        return self._multiply(self._left, self._right, out=self._product)


def _draw_matrices() -> tuple[np.ndarray, np.ndarray]:
    """What is multiplied."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    return left, right


YARDSTICKS: Final[Mapping[str, type[Yardstick]]] = {"fma": FmaLoop, "sgemm": Sgemm, "torch-sgemm": TorchSgemm}
"""By the names that a job gives."""
