"""Dense kernels with scalable vectors: one object at three vector lengths against the bound; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sepwise.lowering import device
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.scalable_dense import ScalableDenseStrategy
from sepwise.lowering.strategies.scalable_tile import ScalableTile
from sepwise.lowering.workload import ConvWorkload, DTypes, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = ScalableDenseStrategy()
LENGTHS = (16, 32, 64)


def dense(spatial: tuple[int, ...], in_channels: int, out_channels: int, kernel: tuple[int, ...], **changes: Any) -> ConvWorkload:
    one, same = (1,) * len(spatial), tuple(taps // 2 for taps in kernel)
    given = {"groups": 1, "strides": one, "pads_begin": same, "pads_end": same, "dilations": one, "activation": Activation("relu")}
    workload = {name: changes.pop(name) for name in ("residual", "batch", "input_lanes") if name in changes}
    stage = Stage(in_channels, out_channels, kernel=kernel, **{**given, **changes})
    return replace(ConvWorkload(1, spatial, (stage,), False, None, 4, 4), **workload)


@pytest.mark.emulated
def test_one_object_at_three_lengths(
    make_case: Callable[..., Any], check_emulated: Callable[..., list[int]], neoverse_v1: device.Device
) -> None:
    ragged = dense((5, 11), 8, 22, (3, 3), residual=True, batch=2)
    cases = [make_case(ragged, STRATEGY, ScalableTile(*sizes)) for sizes in ((1, 1, 5), (2, 2, 2), (5, 5, 3))]
    others = (
        dense((7, 9), 4, 8, (3, 3), dilations=(2, 2), strides=(2, 1), pads_begin=(2, 2), pads_end=(1, 3)),
        dense((1, 13), 8, 5, (1, 5), pads_begin=(0, 4), pads_end=(0, 0), activation=Activation("gelu")),
        dense((4, 6), 16, 24, (3, 3), groups=2),
        dense((2, 3, 5), 4, 8, (2, 3, 3), pads_end=(0, 1, 1)),
        dense((3, 1), 4, 8, (3, 3), pads_begin=(3, 3), pads_end=(3, 3)),  # a row of one pixel
        dense((5, 25), 8, 22, (3, 3), strides=(2, 2), residual=True),
        dense((3, 17), 4, 8, (1, 2), strides=(1, 3), pads_begin=(0, 2), pads_end=(0, 4)),
        dense((6, 13), 16, 24, (1, 1), strides=(2, 2)),
    )
    cases += [make_case(each, STRATEGY, STRATEGY.tiles(each, neoverse_v1, 2)[0], "nonfinite") for each in others]
    counts = check_emulated(cases, neoverse_v1, lengths=LENGTHS)
    assert counts[0] > counts[1] > counts[2]


def test_tiles_fit(check_tiles: Callable[..., None]) -> None:
    for shape, in_channels, out_channels in (((7, 7), 512, 512), ((56, 56), 64, 64), ((1, 1), 8, 3)):
        for strides in ((1, 1), (2, 2)):
            check_tiles(STRATEGY, dense(shape, in_channels, out_channels, (3, 3), strides=strides), device.get("neoverse-v1"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": 4}, "the lanes of a vector belong to different groups"),
        ({"input_lanes": 0}, "the channels of a pixel are not whole vectors"),
        ({"kernel": (1, 9)}, "the taps of a row are too many to be written out"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    v1 = device.get("neoverse-v1")
    given = {"kernel": (3, 3), "strides": (2, 1), **changes}
    assert STRATEGY.applies(dense((9, 9), 8, 8, (3, 3)), v1) is None
    assert STRATEGY.applies(dense((9, 9), 8, 8, **given), v1) == Refusal(reason)


def test_refuses_other_types_chains_and_other_devices() -> None:
    v1, one = device.get("neoverse-v1"), dense((5, 5), 8, 8, (3, 3))
    assert STRATEGY.applies(replace(one, dtypes=DTypes.all("float16")), v1) == Refusal("elements are float16")
    assert STRATEGY.applies(replace(one, stages=one.stages * 2), v1) == Refusal("one convolution at a time")
    assert STRATEGY.applies(one, device.get("neoverse-n1")) == Refusal("the device has no scalable vectors")
