"""Lowering: from a fused ONNX graph to a Program that runs on a device, with its checks and measurements.

The names below are resolved when first used, so that importing the package loads neither TVM nor anything else:

    compile(model, target=...)   load(folder)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepwise.lowering.artifact import Artifact, load
    from sepwise.lowering.build import compile

__all__ = ["Artifact", "compile", "load"]

MODULES = {
    "Artifact": "sepwise.lowering.artifact",
    "compile": "sepwise.lowering.build",
    "load": "sepwise.lowering.artifact",
}


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first used."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)
