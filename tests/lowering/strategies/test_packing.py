"""Weights and biases in the order that kernels read them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering.strategies.packing import conv_packer, oc_pack, pack_bias, pack_weight, true_shapes
from sepwise.lowering.workload import ConvWorkload, Stage


def stage(in_channels: int, out_channels: int, groups: int, kernel: tuple[int, ...]) -> Stage:
    rank = len(kernel)
    zero, one = (0,) * rank, (1,) * rank
    return Stage(in_channels, out_channels, groups, kernel, one, zero, zero, one)


@pytest.mark.parametrize(("blocks", "vectors", "together"), [(6, 3, 3), (6, 4, 1), (1, 1, 1), (5, 2, 1)])
def test_blocks_lie_together_where_tiles_divide_them(blocks: int, vectors: int, together: int) -> None:
    assert oc_pack(blocks, vectors) == together


@given(
    blocks=st.integers(1, 6),
    lanes=st.sampled_from([4, 8]),
    short=st.integers(0, 3),
    per_group=st.integers(1, 5),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_every_weight_has_its_place(
    blocks: int, lanes: int, short: int, per_group: int, kernel: list[int], data: st.DataObject
) -> None:
    together = data.draw(st.sampled_from([size for size in range(1, blocks + 1) if blocks % size == 0]))
    channels = blocks * lanes - short
    weight = np.arange(1, channels * per_group * math.prod(kernel) + 1, dtype=np.float32)
    weight = weight.reshape(channels, per_group, *kernel)
    packed = pack_weight(weight, lanes, together)
    assert packed.shape == (blocks // together, *kernel, per_group, together, lanes)
    assert packed.flags.c_contiguous
    for channel in range(channels):
        block, lane = divmod(channel, lanes)
        found = packed[block // together, ..., block % together, lane]  # [*kernel, ic]
        np.testing.assert_array_equal(np.moveaxis(found, -1, 0), weight[channel])
    assert np.count_nonzero(packed) == weight.size, "pad lanes are zero"


@pytest.mark.parametrize("channels", [1, 8, 9, 16])
def test_bias_is_padded_with_zeros(channels: int) -> None:
    bias = np.arange(1, channels + 1, dtype=np.float32)
    packed = pack_bias(bias, 8)
    assert packed.shape == (math.ceil(channels / 8), 8)
    np.testing.assert_array_equal(packed.reshape(-1)[:channels], bias)
    assert not packed.reshape(-1)[channels:].any()


@pytest.mark.parametrize("residual", [False, True])
def test_a_chains_constants_have_the_shapes_that_its_schedule_declares(residual: bool) -> None:
    stages = (stage(5, 5, 5, (3, 2)), stage(5, 24, 1, (1, 1)))
    workload = ConvWorkload(2, (9, 7), stages, residual, None, 8, 8)
    packs = [1, 3]
    weights = [(np.ones((5, 1, 3, 2), np.float32), np.ones(5, np.float32)), (np.ones((24, 5, 1, 1), np.float32), np.ones(24, np.float32))]
    shapes = true_shapes(workload, packs)
    constants = conv_packer(workload, packs)(weights)
    assert [constant.shape for constant in constants] == [shapes[name] for name in ("weight0", "bias0", "weight1", "bias1")]
    assert shapes["data"] == (2, 1, 9, 7, 8)
    assert shapes["output1"] == shapes["residual"] == (2, 3, 7, 6, 8)


def test_flat_chains_have_one_spatial_axis_and_no_kernel() -> None:
    workload = ConvWorkload(1, (4, 6), (stage(16, 16, 1, (1, 1)),), False, None, 0, 8)
    shapes = true_shapes(workload, [2], flat=True)
    assert shapes["data"] == (1, 16, 24)
    assert shapes["output0"] == (1, 2, 24, 8)
    assert shapes["weight0"] == (1, 16, 2, 8)
