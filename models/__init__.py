"""The zoo: networks and blocks of separable convolutions in torch, and their export to ONNX.

Importing this package does not import torch; `build` and `export` do when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepwise.models.catalogue import ENTRIES, Entry, ZooModel, find

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

__all__ = ["ENTRIES", "Entry", "ZooModel", "build", "export", "find", "names"]


def names() -> list[str]:
    """Lists the zoo.

    Returns:
        Every name that `build` takes.

    Example:
        >>> "mobilenet_v2" in names()
        True
    """
    return [entry.name for entry in ENTRIES]


def build(
    name: str, *, shape: Sequence[int] | None = None, width: float = 1.0, batch: int = 1
) -> ZooModel:
    """Builds a model of the zoo with deterministic, calibrated weights.

    The same name, shape and width always give the same weights, whatever the batch.

    Args:
        name: One of `names()`.
        shape: Shape of the input, batch included, such as `(1, 3, 224, 224)`; None takes the default.
        width: Width multiplier: the channels inside are scaled by it.
        batch: Batch size, where `shape` does not give one above 1.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: The name is unknown, the shape does not fit the model, or the width or batch is not positive.

    Example:
        >>> build("separable_block", shape=(1, 4, 8, 8)).module.training
        False
    """
    from sepwise.models.building import build_model

    return build_model(name, shape=shape, width=width, batch=batch)


def export(
    model: ZooModel | str,
    path: str | PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    width: float = 1.0,
    batch: int = 1,
    opset: int | None = None,
) -> Path:
    """Writes a model as ONNX, batch norm kept.

    Args:
        model: A built model, or a name with the options of `build`.
        path: The file to write; it appears only when it is whole.
        shape: As in `build`; only with a name.
        width: As in `build`; only with a name.
        batch: As in `build`; only with a name.
        opset: The opset that the file must have; None takes torch's default.

    Returns:
        The path written.

    Raises:
        InputError: The model cannot be written with that opset, the file cannot be written, or as in `build`.
    """
    from sepwise.models.exporting import export_model

    if isinstance(model, str):
        model = build(model, shape=shape, width=width, batch=batch)
    return export_model(model, path, opset=opset)
