"""Which code schedules kernels: a digest of the sources, as the version of a package does not change with each of them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

import sepwise.lowering

__all__ = ["digest_sources", "own_sources"]

NO_MATTER: Final = frozenset({"tuning", "peers"})
"""Folders of `lowering` that have no part in how a kernel is computed."""


def digest_sources(root: Path) -> str:
    """Hashes the Python sources of a package.

    Args:
        root: Its folder; which one is no matter.

    Returns:
        12 hexadecimal digits, by names and contents of all files but those in folders of `NO_MATTER`.
    """
    found = hashlib.sha256()
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for name, path in sorted(files.items()):
        if name.split("/", maxsplit=1)[0] not in NO_MATTER:
            found.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


@functools.cache
def own_sources() -> str:
    """Hashes the sources of `lowering` that run here, once for each process.

    Returns:
        As `digest_sources` has it.
    """
    return digest_sources(Path(sepwise.lowering.__path__[0]))
