"""Pointwise kernels with scalable vectors: one object at three vector lengths against the bound; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sepwise.lowering import device
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.scalable_pointwise import ScalablePointwiseStrategy
from sepwise.lowering.strategies.scalable_tile import ScalableTile
from sepwise.lowering.workload import ConvWorkload, DTypes, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = ScalablePointwiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))
LENGTHS = (16, 32, 64)


def pointwise(spatial: tuple[int, ...], in_channels: int, out_channels: int, **changes: Any) -> ConvWorkload:
    one, none = (1,) * len(spatial), (0,) * len(spatial)
    given = {"groups": 1, "kernel": one, "strides": one, "pads_begin": none, "pads_end": none, "dilations": one, "activation": RELU6}
    workload = {name: changes.pop(name) for name in ("residual", "batch", "input_lanes") if name in changes}
    stage = Stage(in_channels, out_channels, **{**given, **changes})
    return replace(ConvWorkload(1, spatial, (stage,), False, None, 4, 4), **workload)


@pytest.mark.emulated
def test_one_object_at_three_lengths(
    make_case: Callable[..., Any], check_emulated: Callable[..., list[int]], neoverse_v1: device.Device
) -> None:
    ragged = pointwise((5, 7), 8, 22, residual=True, batch=2)  # 35 pixels: a whole number of vectors at the shortest length alone
    tiles = [(1, 1, 35), (2, 2, 18), (5, 3, 35), (3, 6, 9), (4, 4, 35), (5, 5, 18), (3, 6, 1)]
    cases = [make_case(ragged, STRATEGY, ScalableTile(*sizes)) for sizes in tiles]
    others = (
        pointwise((3, 3, 4), 4, 5, activation=Activation("gelu")),
        pointwise((1, 9), 12, 16, activation=None),
        pointwise((1, 9), 16, 24, groups=2),
    )
    cases += [make_case(each, STRATEGY, STRATEGY.tiles(each, neoverse_v1, 2)[0], "nonfinite") for each in others]
    counts = check_emulated(cases, neoverse_v1, lengths=LENGTHS)
    assert counts[0] > counts[1] > counts[2]


def test_tiles_fit(check_tiles: Callable[..., None]) -> None:
    for shape, in_channels, out_channels in (((7, 7), 320, 1280), ((112, 112), 16, 96), ((1, 1), 8, 3), ((3, 5, 7), 24, 40)):
        check_tiles(STRATEGY, pointwise(shape, in_channels, out_channels), device.get("neoverse-v1"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strides": (1, 2)}, "the kernel, stride or padding moves pixels"),
        ({"pads_end": (1, 0)}, "the kernel, stride or padding moves pixels"),
        ({"groups": 4}, "the lanes of a vector belong to different groups"),
        ({"input_lanes": 0}, "the channels of a pixel are not whole vectors"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    v1 = device.get("neoverse-v1")
    assert STRATEGY.applies(pointwise((5, 5), 8, 8), v1) is None
    assert STRATEGY.applies(pointwise((5, 5), 8, 8, **changes), v1) == Refusal(reason)


def test_refuses_channels_between_vectors_other_types_and_other_devices() -> None:
    v1, one = device.get("neoverse-v1"), pointwise((5, 5), 8, 8)
    assert STRATEGY.applies(pointwise((5, 5), 6, 8), v1) == Refusal("the channels of a pixel are not whole vectors")
    assert STRATEGY.applies(replace(one, dtypes=DTypes.all("float16")), v1) == Refusal("elements are float16")
    assert STRATEGY.applies(replace(one, stages=one.stages * 2), v1) == Refusal("one convolution at a time")
    assert STRATEGY.applies(one, device.get("neoverse-n1")) == Refusal("the device has no scalable vectors")
