"""Layouts and what they make of shapes and arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering.graph import PLAIN, Kernel, KernelGraph, Layout, TensorType, pack, unpack
from sepwise.lowering.workload import LinearWorkload

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 20), st.lists(st.integers(1, 4), max_size=3))


def test_plain_is_as_it_is() -> None:
    assert not PLAIN.packed
    assert str(PLAIN) == "plain"
    assert TensorType((2, 3)).layout == PLAIN
    assert TensorType((2, 3, 4), "int64").physical_shape == (2, 3, 4)
    assert TensorType((2, 3, 4), "int64").nbytes == 2 * 3 * 4 * 8
    assert TensorType(()).nbytes == 4


@pytest.mark.parametrize(
    ("shape", "lanes", "physical"),
    [((2, 16, 5, 7), 16, (2, 1, 5, 7, 16)), ((2, 17, 5), 16, (2, 2, 5, 16)), ((1, 3), 4, (1, 1, 4))],
)
def test_packed_channels_fill_whole_blocks(shape: tuple[int, ...], lanes: int, physical: tuple[int, ...]) -> None:
    packed = TensorType(shape, "float32", Layout(lanes))
    assert str(packed.layout) == f"NCHW{lanes}c"
    assert packed.physical_shape == physical
    assert packed.nbytes == 4 * int(np.prod(physical))


@given(shape=SHAPES, lanes=st.sampled_from([1, 4]), other=st.sampled_from([0, 1, 4]))
def test_between_which_layouts_nothing_moves(shape: tuple[int, int, list[int]], lanes: int, other: int) -> None:
    n, channels, spatial = shape
    array = np.arange(1, n * channels * int(np.prod(spatial)) + 1, dtype=np.float32).reshape(n, channels, *spatial)
    alike = [array.ravel() if not each else pack(array, each).ravel() for each in (lanes, other)]
    moves = not Layout(lanes).moves_nothing(Layout(other))
    assert moves == (max(lanes, 1) != max(other, 1))
    assert moves or np.array_equal(*alike)
    assert Layout(other).moves_nothing(Layout(lanes)) == (not moves)


@given(shape=SHAPES, lanes=st.sampled_from([1, 4, 8, 16]))
def test_pack_puts_every_channel_in_its_lane(shape: tuple[int, int, list[int]], lanes: int) -> None:
    n, channels, spatial = shape
    array = np.arange(1, n * channels * int(np.prod(spatial)) + 1, dtype=np.float32).reshape(n, channels, *spatial)
    packed = pack(array, lanes)
    assert packed.shape == Layout(lanes).physical_shape(array.shape)
    assert packed.flags.c_contiguous
    for channel in range(channels):
        np.testing.assert_array_equal(packed[:, channel // lanes, ..., channel % lanes], array[:, channel])
    assert np.count_nonzero(packed) == array.size, "pad lanes are zero"
    back = unpack(packed, channels)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, array)


def test_graphs_share_no_kernels() -> None:
    one, other = (KernelGraph(name, [], [], {}, {}) for name in "ab")
    one.kernels.append(Kernel("k", LinearWorkload(1, 2, 3), ("x",), ("w", "b"), ("y",), ("MatMul_0",)))
    assert other.kernels == []
