"""Builds a model of the zoo: checks what was asked, lays the network out on the meta device, calibrates it."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING

from sepwise.models.catalogue import Entry, ZooModel, find
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

__all__ = ["build_model", "lay_out", "resolve_shape"]

WIDTH_MAXIMUM = 16.0
ELEMENTS_MAXIMUM = 2**31 - 1  # of the input: ONNX and TVM index with 32 bits


def build_model(name: str, *, shape: Sequence[int] | None, width: float, batch: int) -> ZooModel:
    """Builds a model; see `sepwise.models.build`.

    Args:
        name: The zoo's name.
        shape: The input's shape, or None for the default.
        width: The width multiplier.
        batch: The batch, where the shape does not say.

    Returns:
        The calibrated model.

    Raises:
        InputError: See `sepwise.models.build`.
    """
    entry = find(name)
    input_shape = resolve_shape(entry, shape, batch)
    module = lay_out(entry, input_shape[1], width)
    try:
        from sepwise.models.calibration import calibrate
        from sepwise.models.counting import count_macs, count_parameters
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    macs = count_macs(module, input_shape)
    module.to_empty(device="cpu")
    calibrate(module, input_shape, f"{name}/{width:g}")
    return ZooModel(
        name=name,
        module=module,
        input_shape=input_shape,
        input_name="x",
        output_names=entry.output_names,
        paper=entry.paper,
        width=width,
        parameters=count_parameters(module),
        macs=macs,
    )


def lay_out(entry: Entry, in_channels: int, width: float) -> nn.Module:
    """Makes a model's layers on the meta device: shapes without numbers.

    Args:
        entry: The model.
        in_channels: Channels of its input.
        width: The width multiplier.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: The width is not positive, or torch is not installed.
    """
    if not (isinstance(width, (int, float)) and math.isfinite(width) and 0 < width <= WIDTH_MAXIMUM):
        raise InputError(
            f"Model {entry.name!r}: width {width!r}; it must be a number above 0 and at most {WIDTH_MAXIMUM:g}."
        )
    try:
        import torch

        family = import_module(f"sepwise.models.{entry.family}")
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    factory: Callable[[int, float], nn.Module] = getattr(family, entry.name)
    with torch.device("meta"):
        return factory(in_channels, float(width)).eval()


def resolve_shape(entry: Entry, shape: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    """Checks the input's shape against a model and puts the batch in.

    Args:
        entry: The model.
        shape: The shape asked for, or None for the default.
        batch: The batch asked for.

    Returns:
        The shape, batch included.

    Raises:
        InputError: Rank, a size or the batch does not fit.
    """
    who = f"Model {entry.name!r}"
    if not _positive(batch):
        raise InputError(f"{who}: batch {batch!r}; it must be a whole number of at least 1.")
    default = entry.input_shape
    asked = default if shape is None else tuple(shape)
    if len(asked) != len(default):
        raise InputError(
            f"{who}: shape {_spell(asked)} has {len(asked)} axes; it needs {len(default)}, "
            f"batch included, such as {_spell(default)}."
        )
    for size in asked:
        if not _positive(size):
            raise InputError(f"{who}: shape {_spell(asked)}; every size must be a whole number of at least 1.")
    if batch > 1 and asked[0] not in (1, batch):
        raise InputError(f"{who}: shape {_spell(asked)} says batch {asked[0]} but batch={batch}; give one of them.")
    for size in asked[2:]:
        if size < entry.minimum_size or size % entry.size_multiple:
            multiple = f" and a multiple of {entry.size_multiple}" if entry.size_multiple > 1 else ""
            raise InputError(
                f"{who}: shape {_spell(asked)}; every size after the channels must be at least "
                f"{entry.minimum_size}{multiple}."
            )
    resolved = (max(batch, int(asked[0])), *(int(size) for size in asked[1:]))
    if math.prod(resolved) > ELEMENTS_MAXIMUM:
        raise InputError(f"{who}: shape {_spell(resolved)} has over {ELEMENTS_MAXIMUM} elements; make it smaller.")
    return resolved


def _positive(size: object) -> bool:
    """Whether something is a whole number of at least 1."""
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _spell(shape: Sequence[object]) -> str:
    """Writes a shape as the command line takes it."""
    return ",".join(str(size) for size in shape)


def _missing(error: ModuleNotFoundError) -> InputError:
    """Says how to install what the zoo needs."""
    return InputError(f"The zoo needs {error.name}, which is not installed; pip install 'sepwise[export]'.")
