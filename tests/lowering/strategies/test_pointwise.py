"""Pointwise kernels against the bound, in every tile; what they refuse."""

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.codegen import lower_kernel
from sepwise.lowering.prefetch import STREAM_LOOPS
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.pointwise import PointwiseStrategy, PointwiseTile
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = PointwiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))
HARD_SWISH = Activation("hard_swish")


def pointwise(
    spatial: tuple[int, ...], in_channels: int, out_channels: int, lanes: int, *, input_lanes: int | None = None, **changes: Any
) -> ConvWorkload:
    rank = len(spatial)
    one, none = (1,) * rank, (0,) * rank
    given = {"groups": 1, "kernel": one, "strides": one, "pads_begin": none, "pads_end": none, "dilations": one, "activation": RELU6}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    stage = Stage(in_channels, out_channels, **{**given, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, lanes if input_lanes is None else input_lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
        in_channels = draw(draws.channels(lanes)) * groups if groups == 1 else draw(st.integers(1, 9)) * groups
        out_channels = draw(draws.channels(lanes)) if groups == 1 else draw(st.integers(1, 2)) * lanes * groups
        spatial = draw(st.sampled_from([(1, 7), (5, 3), (1, 1), (4, 4), (2, 3, 3), (7, 9)]))
        stage = draws.flat_stage(in_channels, out_channels, len(spatial), draw(draws.activations), groups)
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], lanes, input_lanes=(lanes, lanes, lanes, 0)))
        return workload

    return build()


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), STRATEGY, target, 10)
    explore(cases, lambda drawn: check_native(drawn, target))


def test_every_tile(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    workload = pointwise((3, 3), lanes + 1, 2 * lanes + 3, lanes, residual=True)
    tiles = STRATEGY.tiles(workload, target, 2)
    assert {(tile.pixels, tile.oc_vectors) for tile in tiles} >= {(1, 1), (7, 1), (2, 2), (1, 3)}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


@pytest.mark.parametrize("grain", [1, 2, 3, 4])
def test_a_grain_that_does_not_divide_the_tiles(
    grain: int, make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    workload = pointwise((5, 5), lanes, 3 * lanes, lanes, batch=2)
    cases = [make_case(workload, STRATEGY, PointwiseTile(pixels, vectors, grain)) for pixels, vectors in ((3, 1), (2, 2), (7, 1))]
    check_native(cases, target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for shape, in_channels, out_channels in (((7, 7), 320, 1280), ((112, 112), 16, 96), ((1, 1), 5, 3), ((3, 5, 7), 24, 40)):
            check_tiles(STRATEGY, pointwise(shape, in_channels, out_channels, each.lanes), each)


def test_a_tile_is_positive() -> None:
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(AssertionError):
            PointwiseTile(*sizes)


def test_a_tile_that_spills_does_not_fit() -> None:
    v3 = device.get("x86-64-v3")
    assert PointwiseTile(3, 4, 1).fits(v3)
    assert not PointwiseTile(4, 3, 1).fits(v3)
    assert PointwiseTile(10, 2, 1).fits(device.get("x86-64-v4"))


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": (1, 3)},
        {"strides": (2, 1)},
        {"pads_begin": (0, 1)},
        {"pads_end": (1, 0)},
    ],
)
def test_refuses_what_moves_pixels(changes: dict[str, Any]) -> None:
    v3 = device.get("x86-64-v3")
    refusal = STRATEGY.applies(pointwise((5, 5), 8, 8, 8, **changes), v3)
    assert refusal == Refusal("the kernel, stride or padding moves pixels")


def test_refuses_chains() -> None:
    v3 = device.get("x86-64-v3")
    one = pointwise((5, 5), 8, 8, 8)
    chain = ConvWorkload(1, (5, 5), one.stages * 2, False, None, 8, 8)
    assert STRATEGY.applies(chain, v3) == Refusal("the kernel, stride or padding moves pixels")


def test_refuses_groups_within_a_vector() -> None:
    v3 = device.get("x86-64-v3")
    refusal = STRATEGY.applies(pointwise((5, 5), 16, 24, 8, groups=2), v3)
    assert refusal == Refusal("the lanes of a vector belong to different groups")
    assert STRATEGY.applies(pointwise((5, 5), 16, 32, 8, groups=2), v3) is None


@pytest.mark.parametrize(
    ("name", "channels", "size", "oc_vectors", "inputs", "weights"),
    [
        ("cortex-a53", 16, 28, 2, True, False),  # 49 tiles read weights that stay in level 1
        ("cortex-a53", 64, 4, 2, False, True),  # two tiles read them: each line is waited for
        ("cortex-a53", 512, 14, 2, True, True),
        ("cortex-a53", 512, 14, 3, True, True),  # without registers for streams; weights in three rows
        ("cortex-a72", 16, 28, 2, False, False),
        ("cortex-a72", 64, 112, 2, True, False),  # from memory
        ("neoverse-n1", 64, 112, 2, False, False),  # from its third level
    ],
)
def test_what_a_core_would_wait_for_is_asked_for(
    name: str, channels: int, size: int, oc_vectors: int, inputs: bool, weights: bool
) -> None:
    target = device.get(name)
    tile = PointwiseTile(8 if oc_vectors == 2 else 7, oc_vectors, math.ceil(size * size / 8))
    workload = pointwise((size, size), channels, 128, target.lanes)
    function = STRATEGY.schedule(workload, target, tile).function
    marks = [mark for mark in re.findall(rf'"{STREAM_LOOPS}": "([^"]*)"', str(function))]
    assert len(marks) == (inputs or weights)
    assert ("data" in str(marks), "weight0" in str(marks)) == (inputs, weights)
    assert ("sepwise_ask" in str(lower_kernel(function, "kernel", target).function)) == (inputs or weights)


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = [
        pointwise((3, 5), 9, 13, 4, residual=True, batch=2),
        pointwise((7, 7), 8, 24, 4, activation=HARD_SWISH),
        pointwise((4, 4), 6, 8, 4, groups=2),
        pointwise((2, 3, 3), 5, 6, 4, input_lanes=0),
    ]
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)


@pytest.mark.emulated
def test_kernels_that_ask_ahead(make_case: Callable[..., Any], check_emulated: Callable[..., None], cortex_a53: device.Device) -> None:
    workload = pointwise((28, 28), 40, 52, 4)
    tiles = [PointwiseTile(8, 2, 98), PointwiseTile(7, 3, 112), PointwiseTile(5, 4, 40)]
    check_emulated([make_case(workload, STRATEGY, tile) for tile in tiles], cortex_a53)
