"""Convolution in float64, 1-D to n-D: groups, strides, dilations, asymmetric pads, transposed.

A convolution is computed one kernel tap at a time where a tap is a large matrix product (many input channels),
as one matrix product over gathered patches where it is not (a stem of 3 channels), and as an elementwise
multiply-add per tap where it is depthwise.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sepwise.passes.equivalence.graph import Array, Operation
from sepwise.passes.errors import InputError

__all__ = ["Window", "conv", "conv_transpose", "pad_spatial", "read_window"]

PATCH_BYTES = 1 << 26  # larger patch matrices are avoided: they no longer fit any cache


@dataclass(frozen=True)
class Window:
    """The geometry of a sliding window, one entry per spatial axis.

    Attributes:
        kernel: taps.
        strides: step between outputs.
        dilations: step between taps.
        begins: padding before.
        ends: padding after; may be negative on the last axis positions that no window reaches.
        outputs: number of window positions.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    outputs: tuple[int, ...]

    def taps(self) -> list[tuple[int, ...]]:
        """Lists the index of every tap."""
        return list(itertools.product(*map(range, self.kernel)))

    def at(self, tap: Sequence[int]) -> tuple[slice, ...]:
        """Slices the positions in the padded input that one tap reads, over all outputs."""
        return tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, s, o in zip(tap, self.dilations, self.strides, self.outputs, strict=True)
        )


def read_window(op: Operation, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """Reads the geometry that Conv and the pools share.

    Args:
        op: the operation, for its attributes.
        spatial: input size per spatial axis.
        kernel: taps per spatial axis.

    Raises:
        InputError: if the window is larger than the padded input.
    """
    rank = len(spatial)
    strides = op.integers("strides") or [1] * rank
    dilations = op.integers("dilations") or [1] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = op.integers("pads") or [0] * (2 * rank)
    begins, ends = pads[:rank], pads[rank:]
    auto_pad = op.text("auto_pad", "NOTSET")
    ceil_mode = op.integer("ceil_mode", 0) == 1
    outputs = []
    for axis, (size, extent, stride) in enumerate(zip(spatial, extents, strides, strict=True)):
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            count = -(-size // stride)
            total = max((count - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            begins[axis], ends[axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        elif auto_pad == "VALID":
            begins[axis] = ends[axis] = 0
        room = begins[axis] + size + ends[axis] - extent
        count = room // stride + 1
        if ceil_mode and room % stride and count * stride < begins[axis] + size:
            count += 1  # the last window may hang over the end, but has to start inside the input
        if count < 1 or room < 0:
            raise InputError(
                f"{op}: a window of {extent} positions does not fit into spatial axis {axis} of size {size} with pads "
                f"({begins[axis]}, {ends[axis]}). Use a larger input."
            )
        outputs.append(count)
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends), tuple(outputs))


def pad_spatial(x: Array, window: Window, fill: float) -> Array:
    """Pads (n, c, *spatial) so that every window position exists."""
    widths = [(0, 0), (0, 0)]
    for size, k, d, s, begin, end, count in zip(
        x.shape[2:], window.kernel, window.dilations, window.strides, window.begins, window.ends, window.outputs, strict=True
    ):
        needed = (count - 1) * s + (k - 1) * d + 1
        widths.append((begin, max(end, needed - begin - size, 0)))
    if any(before or after for before, after in widths):
        return np.pad(x, widths, constant_values=fill)
    return x


def conv(op: Operation, x: Array, w: Array, b: Array | None = None) -> Array:
    """Computes an ONNX Conv.

    Args:
        op: the operation, for its attributes.
        x: input (n, ic, *spatial).
        w: weight (oc, ic / group, *kernel).
        b: bias (oc,).

    Returns:
        (n, oc, *outputs).

    Raises:
        InputError: if channels and groups, or kernel_shape and the weight, do not match.
    """
    group = op.integer("group", 1)
    n, ic = x.shape[:2]
    oc, group_ic = w.shape[:2]
    if ic != group_ic * group or oc % group:
        raise InputError(
            f"{op}: group={group} with {ic} input channels and a weight of shape {tuple(w.shape)}; the weight needs "
            "(output channels, input channels / group, ...). Check the exporter."
        )
    _require_kernel(op, w)
    window = read_window(op, x.shape[2:], w.shape[2:])
    padded = pad_spatial(x, window, 0.0)
    if group > 1 and group_ic == 1:
        y = _depthwise(padded, w, window, oc // group)
    else:
        y = _grouped(padded, w, window, group)
    y = y.reshape(n, oc, *window.outputs)
    if b is not None:
        y += b.reshape(-1, *[1] * (x.ndim - 2))
    return y


def _require_kernel(op: Operation, w: Array) -> None:
    """Refuses a kernel_shape that is not the weight's; runtimes go by either."""
    kernel = op.integers("kernel_shape")
    if kernel and tuple(kernel) != w.shape[2:]:
        raise InputError(f"{op}: kernel_shape {kernel} does not fit a weight of shape {tuple(w.shape)}. Check the exporter.")


def _depthwise(padded: Array, w: Array, window: Window, multiplier: int) -> Array:
    n, ic = padded.shape[:2]
    y = np.empty((n, ic, multiplier, *window.outputs))
    term = np.empty_like(y)
    per_tap = w.reshape(ic, multiplier, -1)
    ones = (1,) * len(window.outputs)
    for index, tap in enumerate(window.taps()):
        source = padded[(slice(None), slice(None), None, *window.at(tap))]
        np.multiply(source, per_tap[:, :, index].reshape(1, ic, multiplier, *ones), out=term if index else y)
        if index:
            y += term
    return y


def _grouped(padded: Array, w: Array, window: Window, group: int) -> Array:
    n, ic = padded.shape[:2]
    oc, group_ic = w.shape[:2]
    pixels = int(np.prod(window.outputs))
    taps = window.taps()
    split = padded.reshape(n, group, group_ic, *padded.shape[2:])
    w = w.reshape(group, oc // group, group_ic, len(taps))
    at = [split[(slice(None), slice(None), slice(None), *window.at(tap))] for tap in taps]
    if len(taps) == 1 or (group_ic >= 32 and n * ic * len(taps) * pixels * 8 > PATCH_BYTES):
        products = (
            np.ascontiguousarray(w[:, :, :, index]) @ np.ascontiguousarray(source).reshape(n, group, group_ic, pixels)
            for index, source in enumerate(at)
        )
        y: Array = next(products)  # fresh memory costs more than the sum: each page is mapped when it is first written
        for product in products:
            y += product
        return y
    y = np.empty((n, group, oc // group, pixels))
    for item in range(n):  # one item at a time keeps the patches small
        patches = np.stack([source[item] for source in at], axis=2)
        y[item] = w.reshape(group, oc // group, -1) @ patches.reshape(group, group_ic * len(taps), pixels)
    return y


def conv_transpose(op: Operation, x: Array, w: Array, b: Array | None = None) -> Array:
    """Computes an ONNX ConvTranspose: every input pixel spreads its weighted kernel over the output.

    Args:
        op: the operation, for its attributes.
        x: input (n, ic, *spatial).
        w: weight (ic, oc / group, *kernel).
        b: bias (oc,).

    Returns:
        (n, oc, *outputs).

    Raises:
        InputError: if channels and groups, or kernel_shape and the weight, do not match.
    """
    group = op.integer("group", 1)
    n, ic, *spatial = x.shape
    rank = len(spatial)
    kernel = w.shape[2:]
    if w.shape[0] != ic or ic % group:
        raise InputError(
            f"{op}: group={group} with {ic} input channels and a weight of shape {tuple(w.shape)}; the weight needs "
            "(input channels, output channels / group, ...). Check the exporter."
        )
    _require_kernel(op, w)
    strides = op.integers("strides") or [1] * rank
    dilations = op.integers("dilations") or [1] * rank
    extra = op.integers("output_padding") or [0] * rank
    full = [(i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)]
    begins, outputs = _transposed_crop(op, spatial, strides, extra, full)

    group_oc = w.shape[1]
    pixels = int(np.prod(spatial))
    columns = x.reshape(n, group, ic // group, pixels)
    # The scratch holds every position that a tap touches and every one that the crop keeps.
    room = [max(f, b + o) for f, b, o in zip(full, begins, outputs, strict=True)]
    scratch = np.zeros((n, group, group_oc, *room))
    by_tap = w.reshape(group, ic // group, group_oc, *kernel)
    for tap in itertools.product(*map(range, kernel)):
        spread = np.swapaxes(by_tap[(slice(None),) * 3 + tap], 1, 2) @ columns
        target = tuple(
            slice(t * d, t * d + (i - 1) * s + 1, s) for t, d, i, s in zip(tap, dilations, spatial, strides, strict=True)
        )
        scratch[(slice(None),) * 3 + target] += spread.reshape(n, group, group_oc, *spatial)
    crop = tuple(slice(b, b + o) for b, o in zip(begins, outputs, strict=True))
    y = scratch[(slice(None),) * 3 + crop].reshape(n, group * group_oc, *outputs)
    if b is not None:
        y = y + b.reshape(-1, *[1] * rank)
    return y


def _transposed_crop(
    op: Operation, spatial: Sequence[int], strides: Sequence[int], extra: Sequence[int], full: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Finds where the output begins within the full spread, and its size, per axis."""
    rank = len(spatial)
    pads = op.integers("pads") or [0] * (2 * rank)
    auto_pad = op.text("auto_pad", "NOTSET")
    wanted = op.integers("output_shape")
    if wanted is not None:
        wanted = wanted[-rank:]
    elif auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        # Where a stride exceeds its window, nothing can be cut off: ONNX's shape inference and ONNX Runtime leave that as it is.
        wanted = [min(i * s, f + e) for i, s, f, e in zip(spatial, strides, full, extra, strict=True)]
    if wanted is None:
        if auto_pad == "VALID":
            pads = [0] * (2 * rank)
        sizes = [f + e - pads[i] - pads[i + rank] for i, (f, e) in enumerate(zip(full, extra, strict=True))]
        return pads[:rank], sizes
    begins = []
    for f, e, size in zip(full, extra, wanted, strict=True):
        total = max(f + e - size, 0)
        begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
    return begins, wanted
