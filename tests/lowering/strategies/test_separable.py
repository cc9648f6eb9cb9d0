"""Depthwise and pointwise in one kernel against the bound, in every tile; what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.codegen import lower_kernel
from sepwise.lowering.cost import CACHE_SHARE
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.separable import SeparableStrategy, SeparableTile
from sepwise.lowering.strategies.tiles import NEAR_FASTEST
from sepwise.lowering.tiling import round_up
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = SeparableStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def separable(
    spatial: tuple[int, ...], channels: int, out_channels: int, lanes: int, *, pointwise_changes: Any = None, **changes: Any
) -> ConvWorkload:
    rank = len(spatial)
    one, none = (1,) * rank, (0,) * rank
    given = {"groups": channels, "kernel": (3,) * rank, "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    input_lanes = changes.pop("input_lanes", lanes)
    depthwise = Stage(channels, channels, **{**given, "activation": RELU6, **changes})
    pointwise = replace(Stage(channels, out_channels, 1, one, one, none, none, one, RELU6), **(pointwise_changes or {}))
    return ConvWorkload(batch, spatial, (depthwise, pointwise), residual, None, input_lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        channels = draw(draws.channels(lanes).filter(lambda count: count > 1))
        spatial, depthwise = draw(draws.spatial_stage(channels, channels, channels))
        pointwise = draws.flat_stage(channels, draw(draws.channels(lanes)), len(spatial), draw(draws.activations))
        workload: ConvWorkload = draw(draws.chain(spatial, [depthwise, pointwise], lanes))
        return workload

    return build()


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), STRATEGY, target, 10)
    explore(cases, lambda drawn: check_native(drawn, target))


@pytest.mark.parametrize("padded", [True, False])
def test_every_tile(
    padded: bool, make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    uneven: dict[str, Any] = {"strides": (2, 1), "kernel": (3, 2), "dilations": (1, 2), "pads_begin": (2, 0), "pads_end": (0, 3)}
    if not padded:
        uneven |= {"pads_begin": (0, 0), "pads_end": (0, 0)}
    workload = separable((9, 8), lanes + 1, 2 * lanes + 3, lanes, residual=padded, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, width = workload.spatials[-1]
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert {tile.pixels for tile in tiles} >= set(range(1, min(width, 7) + 1))
    assert {tile.oc_vectors for tile in tiles} == {1, 2, 3}
    assert {tile.rectangle > 0 for tile in tiles} == {False, True}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_the_border_is_not_zero(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    """A depthwise bias behind the true width must not reach a pointwise result."""
    lanes = target.lanes
    workload = separable((4, 5), lanes, lanes, lanes, activation=None, batch=2)
    tiles = [SeparableTile(rows, pixels, 1, rectangle) for rows in (1, 3, 4) for pixels in (2, 3, 4) for rectangle in (0, 1)]
    check_native([make_case(workload, STRATEGY, tile, kind) for tile in tiles for kind in ("constant", "nonfinite")], target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, channels, out_channels in (((112, 112), 32, 16), ((7, 7), 960, 320), ((5, 1), 7, 5), ((3, 9, 9), 24, 24)):
            check_tiles(STRATEGY, separable(spatial, channels, out_channels, each.lanes), each, NEAR_FASTEST)


def test_rows_stay_in_the_second_level_cache(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        channels = 64 * each.lanes
        tiles = STRATEGY.tiles(separable((64, 64), channels, channels, each.lanes), each, 1)
        rows = {tile.rows for tile in tiles}
        assert rows <= {1} | {count for count in range(2, 65) if channels * 4 * count * 64 <= each.l2_bytes * CACHE_SHARE}


def test_a_tile_is_positive() -> None:
    for sizes in ((0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, -1)):
        with pytest.raises(AssertionError):
            SeparableTile(*sizes)


def test_a_tile_that_spills_does_not_fit() -> None:
    assert SeparableTile(1, 3, 3, 0).fits(device.get("x86-64-v2"))
    assert not SeparableTile(1, 4, 3, 0).fits(device.get("x86-64-v2"))


def test_rectangles_divide_the_computed_width(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        workload = separable((14, 15), 8, 8, each.lanes)
        tiles = [tile for tile in STRATEGY.tiles(workload, each, 1) if tile.rectangle]
        assert tiles
        assert all(round_up(15, tile.pixels) % tile.rectangle == 0 for tile in tiles)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": 1}, "the first convolution is not depthwise with multiplier 1"),
        ({"groups": 4}, "the first convolution is not depthwise with multiplier 1"),
        ({"input_lanes": 0}, "input and output are packed differently"),
        ({"pointwise_changes": {"kernel": (1, 2)}}, "the second convolution moves pixels or has groups"),
        ({"pointwise_changes": {"strides": (2, 2)}}, "the second convolution moves pixels or has groups"),
        ({"pointwise_changes": {"pads_end": (1, 1)}}, "the second convolution moves pixels or has groups"),
        ({"pointwise_changes": {"groups": 2}}, "the second convolution moves pixels or has groups"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    v3 = device.get("x86-64-v3")
    assert STRATEGY.applies(separable((5, 5), 8, 16, 8), v3) is None
    assert STRATEGY.applies(separable((5, 5), 8, 16, 8, **changes), v3) == Refusal(reason)


@pytest.mark.parametrize(("size", "asks"), [(112, True), (28, False)])
def test_inputs_that_no_cache_holds_are_asked_for_ahead(size: int, asks: bool) -> None:
    a72 = device.get("cortex-a72")
    tile = SeparableTile(rows=4, pixels=4, oc_vectors=2, rectangle=4)
    function = STRATEGY.schedule(separable((size, size), 64, 8, a72.lanes), a72, tile).function
    kernel = lower_kernel(function, "kernel", a72)
    assert ("sepwise_prefetch" in str(kernel.function)) == asks


def test_refuses_one_and_three() -> None:
    v3 = device.get("x86-64-v3")
    whole = separable((5, 5), 8, 8, 8)
    for stages in (whole.stages[:1], (*whole.stages, whole.stages[1])):
        assert STRATEGY.applies(replace(whole, stages=stages), v3) == Refusal("not a chain of two convolutions")


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = [
        separable((7, 9), 9, 13, 4, residual=True, batch=2),
        separable((9, 7), 8, 8, 4, strides=(2, 2), activation=Activation("hard_swish")),
        separable((1, 9), 5, 6, 4, kernel=(1, 3), pads_begin=(0, 2), pads_end=(0, 0), dilations=(1, 2)),
        separable((3, 4, 5), 6, 4, 4),
    ]
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)
