"""Which code schedules kernels: a digest of the sources, as the version of a package does not change with each of them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

import sepwise.lowering

__all__ = ["digest_sources", "own_sources"]

NO_MATTER: Final = frozenset(
    """
    tuning peers templates bench.py bisect.py board_server.py bundle.py bundle_check.py remote.py verify.py
    example.c freestanding.c remote.c rpc_server.c sepwise.h
    """.split()
)
"""Folders and files of `lowering` that have no part in how a kernel is computed, timed or estimated."""

SUFFIXES: Final = frozenset({".py", ".c", ".h"})
"""Of sources: the pool of threads and what counts instructions are in C."""


def digest_sources(root: Path) -> str:
    """Hashes the sources of a package.

    Args:
        root: Its folder; which one is no matter.

    Returns:
        12 hexadecimal digits, by names and contents of all files but those of `NO_MATTER`.
    """
    found = hashlib.sha256()
    files = {path.relative_to(root): path for path in root.rglob("*") if path.suffix in SUFFIXES}
    for name, path in sorted(files.items()):
        if NO_MATTER.isdisjoint(name.parts):
            found.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


@functools.cache
def own_sources() -> str:
    """Hashes the sources of `lowering` that run here, once for each process.

    Returns:
        As `digest_sources` has it.
    """
    return digest_sources(Path(sepwise.lowering.__path__[0]))
