"""Pools against windows written out one by one."""

import itertools
import math

import numpy as np
import pytest

from sepwise.passes.equivalence.graph import Operation
from sepwise.passes.equivalence.pooling import average_pool, average_pool_counts, max_pool
from sepwise.passes.errors import InputError, UnsupportedError

GEOMETRIES = [
    ((9,), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ((7, 6), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ((7, 6), {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [2, 1]}),
    ((4, 5, 3), {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1]}),
]


def pool(name: str, attributes: dict[str, object], outputs: tuple[str, ...] = ("y",)) -> Operation:
    return Operation(name, 19, "", ("x",), outputs, attributes)


def windows(x: np.ndarray, attributes: dict[str, list[int]]) -> dict[tuple[int, ...], tuple[np.ndarray, int]]:
    """For each output position its elements, (n, c, count), and how many its window has with padding."""
    kernel, rank = attributes["kernel_shape"], x.ndim - 2
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    sizes = [
        (extent + pads[i] + pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i, extent in enumerate(x.shape[2:])
    ]
    found = {}
    for place in itertools.product(*map(range, sizes)):
        taps = []
        for tap in itertools.product(*map(range, kernel)):
            at = [place[i] * strides[i] - pads[i] + tap[i] * dilations[i] for i in range(rank)]
            if all(0 <= where < extent for where, extent in zip(at, x.shape[2:], strict=True)):
                taps.append(x[(slice(None), slice(None), *at)])
        found[place] = np.stack(taps, axis=-1), math.prod(kernel)
    return found


@pytest.mark.parametrize(("extents", "attributes"), GEOMETRIES)
@pytest.mark.parametrize("padding_counts", [0, 1])
def test_every_window(extents: tuple[int, ...], attributes: dict[str, list[int]], padding_counts: int) -> None:
    x = np.random.default_rng(0).integers(-8, 9, (2, 3, *extents)).astype(np.float64)  # sums are exact in any order
    highest = max_pool(pool("MaxPool", attributes), x)
    mean = pool("AveragePool", {**attributes, "count_include_pad": padding_counts})
    average, counts = average_pool(mean, x), average_pool_counts(mean, x)
    expected = windows(x, attributes)
    assert highest.shape == average.shape == (2, 3, *(max(axis) + 1 for axis in zip(*expected, strict=True)))
    for place, (elements, size) in expected.items():
        at = (slice(None), slice(None), *place)
        np.testing.assert_array_equal(highest[at], elements.max(axis=-1))
        count = size if padding_counts else elements.shape[-1]
        np.testing.assert_array_equal(counts[(0, 0, *place)], count)
        np.testing.assert_array_equal(average[at], elements.sum(axis=-1) / count)


def test_what_ceil_mode_covers_beyond_the_padding_never_counts() -> None:
    attributes = {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1, "count_include_pad": 1}
    counts = average_pool_counts(pool("AveragePool", attributes), np.zeros((1, 1, 6)))
    assert counts.reshape(-1).tolist() == [3, 3, 3, 2], "the last window has the last element and one zero of padding"


def test_integers_pool_too() -> None:
    x = np.array([[[-128, -128, 5]]], np.int8)
    y = max_pool(pool("MaxPool", {"kernel_shape": [2], "pads": [1, 1]}), x)
    assert y.dtype == np.int8
    assert y.tolist() == [[[-128, -128, 5, 5]]]


def test_indices_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="the output Indices is not supported"):
        max_pool(pool("MaxPool", {"kernel_shape": [2]}, ("y", "indices")), np.zeros((1, 1, 4)))


def test_a_pool_without_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="kernel_shape is missing"):
        average_pool(pool("AveragePool", {}), np.zeros((1, 1, 4)))
