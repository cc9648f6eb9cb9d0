"""Depthwise kernels with scalable vectors: one object at three vector lengths against the bound; borders; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sepwise.lowering import device
from sepwise.lowering.strategies import scalable_depthwise
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.depthwise_tile import DepthwiseTileStrategy
from sepwise.lowering.strategies.scalable_depthwise import ScalableDepthwiseStrategy, ScalableDepthwiseTile
from sepwise.lowering.workload import ConvWorkload, DTypes, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = ScalableDepthwiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))
LENGTHS = (16, 32, 64)


def depthwise(spatial: tuple[int, ...], channels: int, **changes: Any) -> ConvWorkload:
    one = (1,) * len(spatial)
    given = {"groups": channels, "kernel": tuple(3 for _ in one), "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    workload = {name: changes.pop(name) for name in ("residual", "batch", "input_lanes") if name in changes}
    stage = Stage(channels, changes.pop("out_channels", channels), **{**given, "activation": RELU6, **changes})
    return replace(ConvWorkload(1, spatial, (stage,), False, None, 4, 4), **workload)


def row(length: int, channels: int, kernel: int, **changes: Any) -> ConvWorkload:
    """A 1-D convolution: height 1."""
    before, behind = changes.pop("pads", (kernel // 2, kernel // 2))
    stage = {"dilations": (1, changes.pop("dilation", 1)), "strides": (1, changes.pop("stride", 1))}
    return depthwise((1, length), channels, kernel=(1, kernel), pads_begin=(0, before), pads_end=(0, behind), **stage, **changes)


@pytest.mark.emulated
def test_one_object_at_three_lengths(
    make_case: Callable[..., Any], check_emulated: Callable[..., list[int]], neoverse_v1: device.Device
) -> None:
    square = depthwise((9, 14), 7, residual=True, batch=2)  # rows whose ends, at every length, are within a vector and between
    cases = [make_case(square, STRATEGY, ScalableDepthwiseTile(*sizes, 9, 1)) for sizes in ((1, 1), (4, 1), (3, 2), (2, 3), (9, 1))]
    uneven: dict[str, Any] = {"strides": (2, 1), "pads_begin": (2, 0), "pads_end": (0, 3), "kernel": (3, 2), "dilations": (1, 2)}
    others = [
        depthwise((9, 6), 5, **uneven),
        depthwise((3, 4, 6), 4, activation=Activation("silu")),
        depthwise((1, 2), 4, pads_begin=(3, 2), pads_end=(2, 3), dilations=(2, 2)),  # only the middle reads the input
        depthwise((6, 1), 4, kernel=(1, 1), pads_begin=(0, 1), pads_end=(0, 1)),  # one pixel a row, which one place reads
        depthwise((4, 1), 5, kernel=(3, 1), strides=(2, 1), pads_begin=(1, 9), pads_end=(2, 4), dilations=(2, 1)),
        row(33, 6, 9),
        row(33, 6, 9, pads=(32, 0), dilation=4, activation=None),
        row(40, 4, 5, pads=(0, 0)),
    ]
    for workload in others:
        tiles = STRATEGY.tiles(workload, neoverse_v1, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2])]
    for workload in others[3:6]:
        cases.append(make_case(workload, STRATEGY, STRATEGY.tiles(workload, neoverse_v1, 1)[0], "nonfinite"))
    counts = check_emulated(cases, neoverse_v1, lengths=LENGTHS)
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.emulated
def test_strides_along_the_row_at_three_lengths(
    make_case: Callable[..., Any], check_emulated: Callable[..., list[int]], neoverse_v1: device.Device
) -> None:
    square = depthwise((9, 29), 7, strides=(2, 2), residual=True, batch=2)
    sizes = ((1, 1, 3, 1, 3), (5, 1, 9, 1, 3), (2, 3, 9, 1, 9))
    cases = [make_case(square, STRATEGY, ScalableDepthwiseTile(*each)) for each in sizes]
    others = [
        depthwise((9, 13), 5, kernel=(3, 2), strides=(1, 3), pads_begin=(2, 0), pads_end=(0, 3), dilations=(1, 2)),
        depthwise((3, 4, 11), 4, strides=(1, 2, 2), activation=Activation("silu")),
        depthwise((2, 4), 4, strides=(1, 2), pads_begin=(3, 2), pads_end=(2, 3), dilations=(2, 2)),  # not the first pixel's taps
        depthwise((4, 1), 4, kernel=(1, 1), strides=(1, 2), pads_begin=(0, 4), pads_end=(0, 1)),  # one pixel reads the row
        depthwise((4, 1), 4, kernel=(1, 1), strides=(1, 2), pads_begin=(0, 3), pads_end=(0, 2)),  # none does
        row(67, 6, 9, stride=2),
        row(47, 6, 9, pads=(32, 0), dilation=4, stride=3, activation=None),
        row(83, 4, 31, pads=(15, 14), stride=2),
        row(40, 4, 1, pads=(0, 0), stride=4),
    ]
    cases += [make_case(workload, STRATEGY, STRATEGY.tiles(workload, neoverse_v1, 1)[0]) for workload in others]
    cases += [make_case(each, STRATEGY, STRATEGY.tiles(each, neoverse_v1, 1)[0], "nonfinite") for each in (square, *others[2:6])]
    counts = check_emulated(cases, neoverse_v1, lengths=LENGTHS)
    assert counts[0] > counts[1] > counts[2]


def test_tiles_fit(check_tiles: Callable[..., None]) -> None:
    v1 = device.get("neoverse-v1")
    for workload in (depthwise((112, 112), 32), depthwise((7, 7), 960), depthwise((3, 9, 9), 24), row(401, 64, 31), row(1, 4, 1)):
        strided = replace(workload.stages[0], strides=(*workload.stages[0].strides[:-1], 2))
        check_tiles(STRATEGY, replace(workload, stages=(strided,)), v1)
        check_tiles(STRATEGY, workload, v1)


def test_registers_of_a_tile() -> None:
    v1 = device.get("neoverse-v1")
    assert ScalableDepthwiseTile(7, 2, 9, 1).fits(v1)  # 14 sums, 9 weights, 2 inputs
    assert not ScalableDepthwiseTile(11, 2, 9, 1).fits(v1)
    assert ScalableDepthwiseTile(19, 1, 9, 1, 3).fits(v1)
    assert not ScalableDepthwiseTile(20, 1, 9, 1, 3).fits(v1)
    with pytest.raises(AssertionError):
        ScalableDepthwiseTile(0, 1, 1, 1)


@pytest.mark.parametrize(
    ("workload", "vectors", "predicates"),
    [
        (depthwise((9, 9), 4), 1, 4),  # all lanes, the row's, and those of the taps on either side
        (depthwise((9, 9), 4), 3, 8),  # no vector but the first begins at the row's first pixel
        (row(9, 4, 9), 1, 10),
        (row(9, 4, 5, pads=(0, 0)), 2, 11),
        (row(9, 4, 3, pads=(2, 0)), 2, 6),
        (row(9, 4, 3, stride=2), 2, 8),  # the row's for gathers, too
        (row(40, 4, 9, stride=2), 3, 25),
    ],
)
def test_predicates_at_the_ends_of_a_row(workload: ConvWorkload, vectors: int, predicates: int) -> None:
    assert scalable_depthwise._predicates(workload.stages[0], vectors) == predicates


def test_what_is_made_before_a_row_is_not_worth_it_for_a_few_pixels() -> None:
    v1, four_lanes = device.get("neoverse-v1"), DepthwiseTileStrategy()
    for size, strides, wins in ((2, (1, 1), False), (4, (2, 2), False), (7, (1, 1), True), (28, (2, 2), True)):
        workload = depthwise((size, size), 16, strides=strides)
        cycles = [each.predicted_cycles(workload, v1, 1, each.tiles(workload, v1, 1)[0]) for each in (STRATEGY, four_lanes)]
        assert (cycles[0] < cycles[1]) == wins


@pytest.mark.parametrize(
    ("workload", "vectors", "indices"),
    [
        (row(40, 4, 3), 2, 0),
        (row(40, 4, 3, stride=2), 2, 6),
        (row(40, 4, 9, stride=2), 2, 10),  # the taps behind the fifth have an address of their own
        (row(40, 4, 9, stride=3, dilation=2), 1, 3),
    ],
)
def test_indices_of_a_row_of_taps(workload: ConvWorkload, vectors: int, indices: int) -> None:
    assert scalable_depthwise._indices(workload.stages[0], vectors) == indices


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": 1}, "a lane reads the same channel for all lanes"),
        ({"out_channels": 16}, "a lane reads a channel of its group"),
        ({"input_lanes": 0}, "input and output are packed differently"),
        ({"kernel": (17, 17), "pads_begin": (8, 8), "pads_end": (8, 8)}, "a tile would be too long to write out"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    v1 = device.get("neoverse-v1")
    assert STRATEGY.applies(depthwise((40, 40), 8), v1) is None
    assert STRATEGY.applies(depthwise((40, 40), 8, **changes), v1) == Refusal(reason)


def test_refuses_chains_other_types_and_other_devices() -> None:
    v1, one = device.get("neoverse-v1"), depthwise((5, 5), 8)
    assert STRATEGY.applies(replace(one, stages=one.stages * 2), v1) == Refusal("one convolution at a time")
    assert STRATEGY.applies(replace(one, dtypes=DTypes.all("float16")), v1) == Refusal("elements are float16")
    assert STRATEGY.applies(one, device.get("cortex-a72")) == Refusal("the device has no scalable vectors")
