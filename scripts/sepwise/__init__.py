"""sepwise compiles networks of separable convolutions for x86 and ARM CPUs and proves that the numbers did not change.

The verbs of the command line are functions here, with the same names:

    import sepwise
    artifact = sepwise.compile("m.onnx", target="cortex-a72")
    outputs = artifact.run(x=x)

Each is imported when it is first used: `import sepwise` alone loads neither TVM nor torch. (The verb `models` is
`sepwise.models.names()`: the name belongs to the package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sepwise import lowering, models, passes
    from sepwise.api import bench, bundle, compile, export, fuse, inspect, load, run, server, targets, tune, verify
    from sepwise.passes.convert_input import ImageFormat
    from sepwise.passes.errors import CheckFailed, InputError, SepwiseError, UnsupportedError

__all__ = [
    "CheckFailed",
    "ImageFormat",
    "InputError",
    "SepwiseError",
    "UnsupportedError",
    "__version__",
    "bench",
    "bundle",
    "compile",
    "export",
    "fuse",
    "inspect",
    "load",
    "lowering",
    "models",
    "passes",
    "run",
    "server",
    "targets",
    "tune",
    "verify",
]

_API: Final = "sepwise.api"
_ERRORS: Final = "sepwise.passes.errors"
_HOMES: Final = {
    "CheckFailed": _ERRORS,
    "ImageFormat": "sepwise.passes.convert_input",
    "InputError": _ERRORS,
    "SepwiseError": _ERRORS,
    "UnsupportedError": _ERRORS,
    "bench": _API,
    "bundle": _API,
    "compile": _API,
    "export": _API,
    "fuse": _API,
    "inspect": _API,
    "load": _API,
    "run": _API,
    "server": _API,
    "targets": _API,
    "tune": _API,
    "verify": _API,
}
"""The module of every name that is resolved on first use."""

__version__: str


def __getattr__(name: str) -> object:
    """Resolves a verb, an error or a package on its first use.

    Args:
        name: The attribute asked for.

    Returns:
        What it names; kept, so that the next use finds it at once.

    Raises:
        AttributeError: If sepwise has no such name.
    """
    value: object
    if name == "__version__":
        from importlib.metadata import version

        value = version("sepwise")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in {"lowering", "models", "passes"}:
        value = importlib.import_module(f"sepwise.{name}")
    else:
        raise AttributeError(f"module 'sepwise' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, resolved or not."""
    return list(__all__)
