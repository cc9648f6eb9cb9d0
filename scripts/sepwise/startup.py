"""What makes a process of the command line start sooner. A program that imports sepwise is left as it is.

`import tvm` imports torch wherever it is installed, to know its types, and parts of TVM that no CPU needs. Two of these fail in
TVM's wheel for want of a library, and their first failure reads the symbols of all libraries of the process for its backtrace.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["start_lean"]

_LEFT_OUT: Final = "tvm.runtime.disco"
"""TVM's distributed runtime, which TVM does without where it cannot be imported."""

_ALLOCATIONS: Final = 50_000
_GENERATIONS: Final = 20
"""Objects made between two collections of garbage, and collections of a generation between two of the next: Python's 700 and 10
visit what imports and compilations keep a hundred times."""


class _LeanImports(MetaPathFinder):
    """Finds no torch while TVM is imported. Whoever imports torch later finds it; where it is imported already, TVM takes it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Finds nothing, and leaves all other modules to the finders behind it."""
        if fullname == _LEFT_OUT or (fullname == "torch" and (_is_being_imported("tvm_ffi") or _is_being_imported("tvm"))):
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
        return None


def start_lean() -> None:
    """Leaves out of `import tvm` what no subcommand needs, and collects garbage less often; again it does nothing."""
    if not any(isinstance(finder, _LeanImports) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeanImports())
    os.environ.setdefault("TVM_DEVICE_BACKEND_AUTOLOAD", "0")  # those of GPUs and other accelerators
    gc.set_threshold(_ALLOCATIONS, _GENERATIONS, _GENERATIONS)


def _is_being_imported(name: str) -> bool:
    """Whether a package's own code is still running, as importlib notes it."""
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))
