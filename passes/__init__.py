"""Graph passes over ONNX models: loading, canonical form, folding, recognition, fusion, cost.

The names below are resolved when first used, so that importing the package costs nothing:

    load_model(path, shapes=...)   canonicalize(model)   fuse(model)   read_chain(model, node)
    read_activation(model, node)   layer_costs(model)      save_model(model, path)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepwise.passes.canonical_form import canonicalize
    from sepwise.passes.chains import read_activation, read_chain
    from sepwise.passes.cost import layer_costs
    from sepwise.passes.loading import load_model
    from sepwise.passes.pipeline import FuseReport, PassReport, fuse
    from sepwise.passes.saving import save_model

__all__ = [
    "FuseReport",
    "PassReport",
    "canonicalize",
    "fuse",
    "layer_costs",
    "load_model",
    "read_activation",
    "read_chain",
    "save_model",
]

MODULES = {
    "FuseReport": "sepwise.passes.pipeline",
    "PassReport": "sepwise.passes.pipeline",
    "canonicalize": "sepwise.passes.canonical_form",
    "fuse": "sepwise.passes.pipeline",
    "layer_costs": "sepwise.passes.cost",
    "load_model": "sepwise.passes.loading",
    "read_activation": "sepwise.passes.chains",
    "read_chain": "sepwise.passes.chains",
    "save_model": "sepwise.passes.saving",
}


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first used."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)
