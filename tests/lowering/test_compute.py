"""Compute: the domain it may be rounded up to, what is staged, and which lanes read what. Numbers are the strategies' tests."""

import math
from dataclasses import replace
from typing import Any

import pytest
from tvm import s_tir, tirx

from sepwise.lowering import compute
from sepwise.lowering.compute import LaneSource, lane_source
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes.vocabulary import Activation

LANES = 8
DENSE = Stage(5, 11, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
DEPTHWISE = replace(DENSE, in_channels=12, out_channels=12, groups=12)
POINTWISE = Stage(12, 20, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))


def workload(*stages: Stage, residual: bool = False, input_lanes: int = LANES, batch: int = 1) -> ConvWorkload:
    return ConvWorkload(batch, (6, 7), stages, residual, None, input_lanes, LANES)


def shapes(function: tirx.PrimFunc) -> dict[str, tuple[int, ...]]:
    return {parameter.name: tuple(map(int, parameter.ty.shape)) for parameter in function.params}


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, LaneSource.BROADCAST),
        ({"groups": 12, "in_channels": 12, "out_channels": 12}, LaneSource.LANE),
        ({"groups": 12, "in_channels": 12, "out_channels": 24}, LaneSource.GATHER),
        ({"groups": 3, "in_channels": 12, "out_channels": 12}, LaneSource.GATHER),
        ({"groups": 2, "in_channels": 4, "out_channels": 32}, LaneSource.BROADCAST),
        ({"groups": 2, "in_channels": 4, "out_channels": 24}, LaneSource.GATHER),
        ({"groups": 3, "in_channels": 3, "out_channels": 24}, LaneSource.BROADCAST),
        ({"groups": 1, "in_channels": 1, "out_channels": 1}, LaneSource.BROADCAST),
    ],
)
def test_which_channels_lanes_read(changes: dict[str, Any], source: LaneSource) -> None:
    assert lane_source(replace(DENSE, **changes), LANES) is source


def test_input_extents() -> None:
    stage = replace(DENSE, kernel=(3, 5), strides=(2, 1), dilations=(1, 3))
    assert compute.input_extents(stage, (4, 7)) == (9, 19)
    assert compute.input_extents(POINTWISE, (4, 7)) == (4, 7)


def test_parameters_come_in_the_kernels_order() -> None:
    built = compute.conv(workload(DEPTHWISE, POINTWISE, residual=True), (6, 7), 3, (1, 1))
    assert shapes(built.function) == {
        "data": (1, 2, 6, 7, 8),
        "residual": (1, 3, 6, 7, 8),
        "weight0": (2, 3, 3, 1, 1, 8),
        "bias0": (2, 8),
        "weight1": (3, 1, 1, 12, 1, 8),
        "bias1": (3, 8),
        "output1": (1, 3, 6, 7, 8),
    }
    assert list(shapes(built.function)) == ["data", "residual", "weight0", "bias0", "weight1", "bias1", "output1"]


def test_the_domain_may_be_rounded_up() -> None:
    built = compute.conv(workload(POINTWISE), (8, 9), 4, (2,))
    found = shapes(built.function)
    assert found["data"] == (1, 2, 8, 9, 8)
    assert found["weight0"] == (2, 1, 1, 12, 2, 8)
    assert found["output0"] == (1, 4, 8, 9, 8)


def test_a_padded_input_keeps_its_true_shape() -> None:
    built = compute.conv(workload(DENSE, batch=2), (8, 12), 2, (1,))
    assert shapes(built.function)["data"] == (2, 1, 6, 7, 8)
    assert built.stages[0].pad == "pad0"


def test_flat_joins_the_spatial_axes() -> None:
    built = compute.conv(workload(POINTWISE), (45,), 3, (3,), flat=True)
    found = shapes(built.function)
    assert found["data"] == (1, 2, 45, 8)
    assert found["weight0"] == (1, 12, 3, 8)
    assert found["output0"] == (1, 3, 45, 8)


@pytest.mark.parametrize(
    ("stages", "domain", "staged"),
    [
        ((POINTWISE,), (6, 7), (False,)),
        ((DENSE,), (6, 7), (True,)),
        ((replace(POINTWISE, groups=4),), (6, 7), (False,)),  # lanes of several groups read the input itself
        ((replace(DEPTHWISE, pads_begin=(0, 0), pads_end=(0, 0)),), (4, 5), (False,)),
        ((replace(DEPTHWISE, pads_begin=(0, 0), pads_end=(0, 0)), POINTWISE), (4, 5), (False, False)),
        ((replace(DEPTHWISE, pads_begin=(0, 0), pads_end=(0, 0)), POINTWISE), (4, 6), (True, False)),  # reads past its end
        ((DEPTHWISE, POINTWISE), (6, 7), (True, False)),
    ],
)
def test_what_is_staged(stages: tuple[Stage, ...], domain: tuple[int, ...], staged: tuple[bool, ...]) -> None:
    built = compute.conv(workload(*stages), domain, 3, (1,) * len(stages))
    assert tuple(names.pad is not None for names in built.stages) == staged


@pytest.mark.parametrize("input_lanes", [0, LANES])
def test_every_block_can_be_found(input_lanes: int) -> None:
    built = compute.conv(workload(DENSE, input_lanes=input_lanes), (6, 7), 2, (1,))
    schedule = s_tir.Schedule(built.function)
    for names in built.stages:
        for name in (names.pad, names.accumulator, names.output):
            assert schedule.get_sblock(name) is not None


@pytest.mark.parametrize(
    ("groups", "in_channels", "out_channels", "most", "permuted"),
    [
        (1, 5, 12, 1, 0),
        (4, 4, 32, 1, 8 // 8),  # groups fill blocks
        (12, 12, 24, 4, 4),  # channel multiplier 2: half a block
        (3, 12, 12, 2, 8),
        (12, 24, 12, 8, 16),  # two blocks
        (2, 24, 8, 2, 24),
        (3, 9, 12, 2, 0),  # 6 channels divide no block
        (3, 9, 9, 3, 0),
        (4, 12, 12, 4, 0),
        (2, 6, 18, 2, 0),  # a block has lanes of one group or of two
        (3, 60, 60, 2, 0),
    ],
)
def test_groups_of_a_block(groups: int, in_channels: int, out_channels: int, most: int, permuted: int) -> None:
    stage = replace(DENSE, groups=groups, in_channels=in_channels, out_channels=out_channels)
    per_group = out_channels // groups
    blocks = [range(start, min(start + LANES, out_channels)) for start in range(0, out_channels, LANES)]
    assert max(len({channel // per_group for channel in block}) for block in blocks) <= most
    assert compute.groups_of_block(stage, LANES) == most
    assert compute.permuted_channels(stage, LANES, LANES) == permuted
    assert compute.permuted_channels(stage, 0, LANES) == 0


def test_linear_pads_rows_and_features() -> None:
    built = compute.linear(LinearWorkload(5, 7, 11, Activation("relu")), 6, 8)
    assert shapes(built.function) == {
        "data": (6, 7),
        "weight0": (2, 7, 8),
        "bias0": (2, 8),
        "output0": (6, math.ceil(11 / 8), 8),
    }


def test_compute_knows_no_tile() -> None:
    """STYLE 12: the loops of compute are the axes and nothing else."""
    built = compute.conv(workload(DENSE), (6, 7), 2, (1,))
    schedule = s_tir.Schedule(built.function)
    loops = schedule.get_loops(schedule.get_sblock("conv0"))
    assert [int(schedule.get(loop).extent) for loop in loops] == [1, 2, 6, 7, 8, 3, 3, 5]
    assert all(schedule.get(loop).kind == tirx.ForKind.SERIAL for loop in loops)
    assert not any(schedule.get(loop).annotations for loop in loops)
