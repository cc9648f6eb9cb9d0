"""Pools in float64, over the same windows as convolutions."""

import numpy as np

from sepwise.passes.equivalence.convolution import Window, pad_spatial, read_window
from sepwise.passes.equivalence.graph import Array, Operation
from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["average_pool", "average_pool_counts", "max_pool"]


def max_pool(op: Operation, x: Array) -> Array:
    """Computes an ONNX MaxPool of (n, c, *spatial); its second output, the indices, is not supported.

    Raises:
        UnsupportedError: if the indices are asked for.
    """
    if len(op.outputs) > 1 and op.outputs[1]:
        raise UnsupportedError(f"{op}: the output Indices is not supported. Remove it from the model.")
    window = _window(op, x)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = pad_spatial(x, window, low)
    y = None
    for tap in window.taps():
        source = padded[(slice(None), slice(None), *window.at(tap))]
        y = source.copy() if y is None else np.maximum(y, source, out=y)
    assert y is not None
    return y


def average_pool(op: Operation, x: Array) -> Array:
    """Computes an ONNX AveragePool of (n, c, *spatial)."""
    window = _window(op, x)
    padded = pad_spatial(x, window, 0.0)
    y = np.zeros((*x.shape[:2], *window.outputs))
    for tap in window.taps():
        y += padded[(slice(None), slice(None), *window.at(tap))]
    return y / average_pool_counts(op, x)


def average_pool_counts(op: Operation, x: Array) -> Array:
    """Counts the elements that each window of an AveragePool averages over, shape (1, 1, *outputs).

    Padding counts where `count_include_pad` says so; what a window of `ceil_mode` covers beyond the padding never does.
    """
    window = _window(op, x)
    counted = np.ones((1, 1, *x.shape[2:]))
    if op.integer("count_include_pad", 0):
        pads = [(0, 0), (0, 0), *zip(window.begins, window.ends, strict=True)]
        counted = np.pad(counted, pads, constant_values=1.0)
        none = (0,) * len(window.kernel)
        window = Window(window.kernel, window.strides, window.dilations, none, none, window.outputs)
    counted = pad_spatial(counted, window, 0.0)
    counts = np.zeros((1, 1, *window.outputs))
    for tap in window.taps():
        counts += counted[(slice(None), slice(None), *window.at(tap))]
    return counts


def _window(op: Operation, x: Array) -> Window:
    kernel = op.integers("kernel_shape")
    if kernel is None:
        raise InputError(f"{op}: the attribute kernel_shape is missing. Check the exporter.")
    return read_window(op, x.shape[2:], kernel)
