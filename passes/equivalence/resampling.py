# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""Resize and Upsample as one small matrix per axis.

Every mode of Resize is linear and separable: axis by axis, each output is a weighted sum of inputs. `axis_weights`
makes that matrix; `nearest` gathers instead. Which element is nearest is decided by exact fractions, as float64 puts the ninth
of 17 positions out of 14 at 6.500000000000001; where formulas that runtimes use come to another one, either is right.

An execution computes the matrix for itself, in binary32 whatever the format of the elements. A position is a product of one
step for all of them, which carries up to two roundings (the quotient of the sizes, its inverse), and a whole number, then a
difference: two roundings of its own. They matter as much as those of the sums where an axis is long, since what is left behind
the whole part is off by u times the position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sepwise.passes.equivalence.formats import BINARY32
from sepwise.passes.equivalence.graph import Array, Operation
from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["Plan", "apply_axis", "axis_weights", "nearest_indices", "read_plan", "resize"]

Rounding = Callable[[Array], Array]

NEAREST: dict[str, Rounding] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Plan:
    """What a Resize does, one entry per axis of the tensor.

    Attributes:
        mode: `nearest`, `linear` or `cubic`.
        coordinates: ONNX's `coordinate_transformation_mode`.
        rounding: ONNX's `nearest_mode`.
        sizes: output sizes.
        scales: factors from input to output coordinates.
        ratios: the same, exactly: the quotient of the sizes where the factor means that.
    """

    mode: str
    coordinates: str
    rounding: str
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[Fraction, ...]


def read_plan(op: Operation, x: Array, *inputs: Array | None) -> Plan:
    """Reads Resize (opset 10 to 19) and Upsample (7, 9).

    Raises:
        UnsupportedError: for antialiasing, crop and resize, and modes that are not known.
        InputError: if neither scales nor sizes are given.
    """
    mode = op.text("mode", "nearest").removeprefix("bi").removeprefix("tri")
    legacy = op.operator == "Upsample" or op.version < 11
    coordinates = "asymmetric" if legacy else op.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if legacy else op.text("nearest_mode", "round_prefer_floor")
    if op.integer("antialias", 0) or coordinates == "tf_crop_and_resize" or mode not in {"nearest", "linear", "cubic"}:
        raise UnsupportedError(f"{op}: mode {mode!r} with coordinates {coordinates!r} (antialias or crop) is not supported.")
    if rounding not in NEAREST:
        raise UnsupportedError(f"{op}: nearest_mode {rounding!r} is not known; use one of {', '.join(NEAREST)}.")
    stored = op.attributes.get("scales")
    if legacy:
        given_scales = np.asarray(stored) if isinstance(stored, list) else (inputs[0] if inputs else None)
        given_sizes = None
    else:
        given_scales = inputs[1] if len(inputs) > 1 else None
        given_sizes = inputs[2] if len(inputs) > 2 else None
    axes = [axis % x.ndim for axis in op.integers("axes") or range(x.ndim)]
    sizes, scales = list(x.shape), [1.0] * x.ndim
    if given_sizes is not None and given_sizes.size:
        wanted = [int(size) for size in given_sizes]
        policy = op.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratios = [size / x.shape[axis] for axis, size in zip(axes, wanted, strict=True)]
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            for axis in axes:
                scales[axis], sizes[axis] = ratio, int(np.floor(ratio * x.shape[axis] + 0.5))
        else:
            for axis, size in zip(axes, wanted, strict=True):
                scales[axis], sizes[axis] = size / x.shape[axis], size
    elif given_scales is not None and given_scales.size:
        for axis, scale in zip(axes, given_scales.tolist(), strict=True):
            scales[axis], sizes[axis] = float(scale), int(np.floor(np.float32(scale) * np.float32(x.shape[axis])))
    else:
        raise InputError(f"{op}: neither scales nor sizes are given. Check the exporter.")
    exact = tuple(map(_exact_ratio, scales, x.shape, sizes))
    return Plan(mode, coordinates, rounding, tuple(sizes), tuple(scales), exact)


def _exact_ratio(scale: float, before: int, after: int) -> Fraction:
    """The quotient of two sizes where a factor in binary32 is that, otherwise the factor."""
    whole = before and abs(scale * before - after) <= np.spacing(np.float32(after))
    return Fraction(after, before) if whole and after else Fraction(scale)


def coordinates(
    kind: str, scale: float | Fraction, before: int, after: int, *, number: Any = np.float64, by_step: bool = False
) -> Array:
    """Maps output positions to positions in the input.

    Args:
        kind: ONNX's `coordinate_transformation_mode`.
        scale: output positions per input position.
        before: input size.
        after: output size.
        number: the type to compute in; Fraction is exact.
        by_step: multiplies by the distance of two positions, rounded, where the formula divides.

    Raises:
        UnsupportedError: for a kind that is not known.
    """
    position: Array = np.array([number(i) for i in range(after)])
    factor, half = number(scale), number(0.5)

    def divided(x: Array) -> Array:
        return x * (number(1) / factor) if by_step else x / factor

    if kind == "asymmetric":
        return divided(position)
    if kind == "align_corners":
        if after == 1:
            return np.zeros_like(position)
        wide, gaps = number(before - 1), number(after - 1)
        return position * (wide / gaps) if by_step else position * wide / gaps
    if kind in {"half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"}:
        if kind == "pytorch_half_pixel" and after == 1:
            return np.zeros_like(position)
        mapped = divided(position + half) - half
        if kind == "half_pixel_symmetric":
            mapped = mapped + number(before) * half * (number(1) - number(after) / (factor * number(before)))
        return mapped
    if kind == "tf_half_pixel_for_nn":
        return divided(position + half)
    raise UnsupportedError(f"Resize: coordinate_transformation_mode {kind!r} is not supported.")


def nearest_indices(plan: Plan, axis: int, before: int) -> list[Array]:
    """Finds the input position of each output position along an axis.

    Returns:
        The exact ones, and behind them those that other formulas come to, if they do.
    """
    exact, scale = plan.ratios[axis], plan.scales[axis]
    ways: list[tuple[float | Fraction, Any, bool]]
    ways = [(exact, Fraction, False), (scale, np.float64, False), (scale, np.float32, False), (scale, np.float32, True)]
    found: list[Array] = []
    for factor, number, by_step in ways:
        where = coordinates(plan.coordinates, factor, before, plan.sizes[axis], number=number, by_step=by_step)
        index = np.clip(NEAREST[plan.rounding](where), 0, before - 1).astype(np.int64)
        if not any(np.array_equal(index, other) for other in found):
            found.append(index)
    return found


def _position_errors(plan: Plan, axis: int, where: Array, before: int, rng: np.random.Generator) -> Array:
    """Draws by how much positions are off that are computed in binary32.

    The error of the step is one for all of them, which nothing averages out, so it counts with the largest that it may be, 2 u;
    the two roundings of each position count as one unit each. Nothing is rounded where the step is a power of two.
    """
    after = plan.sizes[axis]
    corners = plan.coordinates == "align_corners"
    step = (before - 1) / max(after - 1, 1) if corners else 1 / plan.scales[axis]
    if np.abs(np.frexp(step)[0]) in {0.0, 0.5}:
        return np.zeros(after)
    halves = 0.5 if "half_pixel" in plan.coordinates else 0.0
    centre = before if plan.coordinates == "half_pixel_symmetric" else 0.0  # moved by (1 - size / wanted) before / 2
    noise: Array = 2 * rng.standard_normal() + np.sqrt(2) * rng.standard_normal(after)
    return BINARY32.unit * noise * (np.abs(where) + halves + centre)


def axis_weights(op: Operation, plan: Plan, axis: int, before: int, rng: np.random.Generator | None = None) -> Array:
    """Makes the matrix (output size, input size) of one axis.

    Args:
        op: the operation.
        plan: what it does.
        axis: the axis.
        before: input size.
        rng: rounds positions and polynomials at random, as an execution does; none are rounded where it is None.
    """
    after = plan.sizes[axis]
    weights = np.zeros((after, before))
    rows = np.arange(after)
    where = coordinates(plan.coordinates, plan.scales[axis], before, after)
    if plan.mode == "nearest":
        weights[rows, nearest_indices(plan, axis, before)[0]] = 1.0
        return weights
    if rng is not None:
        where = where + _position_errors(plan, axis, where, before, rng)
    if plan.mode == "linear":
        where = np.clip(where, 0, before - 1)
        left = np.floor(where).astype(np.int64)
        part = where - left
        np.add.at(weights, (rows, left), 1 - part)
        np.add.at(weights, (rows, np.minimum(left + 1, before - 1)), part)
        return weights
    a = op.number("cubic_coeff_a", -0.75)
    near, far = np.array([[a + 2, -(a + 3), 0, 1], [a, -5 * a, 8 * a, -4 * a]])[..., None]
    left = np.floor(where).astype(np.int64)
    part = where - left
    for offset in (-1, 0, 1, 2):
        distance = np.abs(part - offset)
        terms = np.where(distance <= 1, near, far) * distance ** np.array([[3], [2], [1], [0]])
        weight = terms.sum(axis=0)
        if rng is not None:  # one rounding of each term that binary32 does not have
            rounded = np.where(BINARY32.misses(terms) > 0, terms, 0.0)
            weight = weight + BINARY32.unit * rng.standard_normal(after) * np.sqrt((rounded**2).sum(axis=0))
        index = left + offset
        if op.integer("exclude_outside", 0):
            weight = np.where((index >= 0) & (index < before), weight, 0.0)
        np.add.at(weights, (rows, np.clip(index, 0, before - 1)), weight)
    if op.integer("exclude_outside", 0):
        weights /= weights.sum(axis=1, keepdims=True)
    return weights


def apply_axis(weights: Array, x: Array, axis: int) -> Array:
    """Multiplies the matrix (after, before) onto one axis of a tensor."""
    return np.moveaxis(np.tensordot(weights, x, axes=(1, axis)), 0, axis)


def resized_axes(plan: Plan, shape: Sequence[int]) -> list[int]:
    """Lists the axes on which a plan does anything."""
    return [axis for axis, size in enumerate(shape) if plan.sizes[axis] != size or plan.scales[axis] != 1.0]


def resize(op: Operation, x: Array, *inputs: Array | None, rng: np.random.Generator | None = None) -> Array:
    """Computes an ONNX Resize or Upsample; with `rng` weights (`axis_weights`) and nearest elements as rounding may have them."""
    plan = read_plan(op, x, *inputs)
    y = x
    for axis in resized_axes(plan, x.shape):
        if plan.mode == "nearest":
            found = nearest_indices(plan, axis, x.shape[axis])
            y = np.take(y, found[0 if rng is None else rng.integers(len(found))], axis=axis)
        else:
            y = apply_axis(axis_weights(op, plan, axis, x.shape[axis], rng), y, axis)
    return y
