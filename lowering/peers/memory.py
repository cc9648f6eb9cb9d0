"""What a process takes of main memory, and what its caches hold."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from sepwise.lowering import device

__all__ = ["evict_caches", "peak_bytes", "reset_peak"]

_SWEEP: Final = 2
"""Bytes that are read and written to evict a cache, over its size: caches replace lines only nearly in the order of their use."""

_LEAST_SWEEP_BYTES: Final = 64 << 20
"""Swept at least: where the machine is virtual, its third level may be larger than it says."""


def peak_bytes() -> int:
    """Reads the most bytes that were resident at once, since the process began or `reset_peak` was called."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux has said so since 2.6"
    return 1024 * int(found[1])


def reset_peak() -> None:
    """Starts `peak_bytes` anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


@cache
def _sweep_buffer() -> np.ndarray:
    """Twice what all caches hold."""
    host = device.get("host")
    return np.ones(max(_SWEEP * (host.l2_bytes + host.l3_bytes), _LEAST_SWEEP_BYTES), np.uint8)


def evict_caches() -> None:
    """Pushes out what the caches of the process's cpus hold, by a sweep from each of them."""
    buffer = _sweep_buffer()
    cpus = os.sched_getaffinity(0)
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            buffer += 1
    finally:
        os.sched_setaffinity(0, cpus)
