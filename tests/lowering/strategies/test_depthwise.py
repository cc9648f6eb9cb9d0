"""Depthwise kernels against the bound in every tile; what they refuse."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.depthwise import DepthwiseStrategy, depthwise_cycles
from sepwise.lowering.strategies.tiles import RowTile
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = DepthwiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def depthwise(
    spatial: tuple[int, ...], channels: int, lanes: int, *, multiplier: int = 1, input_lanes: int | None = None, **changes: Any
) -> ConvWorkload:
    rank = len(spatial)
    one = (1,) * rank
    given = {"groups": channels, "kernel": (3,) * rank, "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    stage = Stage(channels, channels * multiplier, **{**given, "activation": RELU6, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, lanes if input_lanes is None else input_lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        channels = draw(draws.channels(lanes).filter(lambda count: count > 1))
        spatial, stage = draw(draws.spatial_stage(channels, channels, channels))
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], lanes))
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
    uneven: dict[str, Any] = {"strides": (2, 1), "pads_begin": (2, 0), "pads_end": (0, 3), "kernel": (3, 4), "dilations": (1, 2)}
    workload = depthwise((9, 9), lanes + 3, lanes, residual=True, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, width = workload.spatials[-1]
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert {tile.pixels for tile in tiles} == {p for p in range(1, width + 1) if RowTile(1, p, 1).fits(target)}
    assert {tile.oc_vectors for tile in tiles} == {1}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_a_large_kernel_keeps_its_loops(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    wide: dict[str, Any] = {"kernel": (9, 11), "pads_begin": (4, 5), "pads_end": (4, 5)}
    check_native([make_case(depthwise((12, 13), lanes + 1, lanes, **wide), STRATEGY, RowTile(3, 5, 1))], target)


def test_only_the_middle_reads_the_input(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    wide: dict[str, Any] = {"pads_begin": (5, 4), "pads_end": (4, 6)}
    workload = depthwise((1, 1), lanes, lanes, **wide)
    check_native([make_case(workload, STRATEGY, tile) for tile in STRATEGY.tiles(workload, target, 1)[:6]], target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, channels in (((112, 112), 32), ((7, 7), 960), ((14, 15), 5), ((3, 9, 9), 24)):
            check_tiles(STRATEGY, depthwise(spatial, channels, each.lanes), each)


def test_a_copy_costs() -> None:
    v3 = device.get("x86-64-v3")
    stage = depthwise((14, 14), 16, 8).stages[0]
    plain, staged = (depthwise_cycles(stage, v3, 2, 14, 7, staged=staged) for staged in (False, True))
    assert plain < staged


def test_refuses_lanes_that_share_a_channel() -> None:
    v3 = device.get("x86-64-v3")
    same = Refusal("a lane reads the same channel for all lanes")
    assert STRATEGY.applies(depthwise((5, 5), 8, 8, groups=1), v3) == same
    assert STRATEGY.applies(depthwise((5, 5), 4, 8, multiplier=8), v3) == same
    assert STRATEGY.applies(depthwise((5, 5), 4, 8, multiplier=4), v3) == Refusal("a lane reads a channel of its group")
    assert STRATEGY.applies(depthwise((5, 5), 8, 8), v3) is None


def test_refuses_another_packing() -> None:
    v3 = device.get("x86-64-v3")
    reason = Refusal("input and output are packed differently")
    for input_lanes in (0, 4):
        assert STRATEGY.applies(depthwise((5, 5), 16, 8, input_lanes=input_lanes), v3) == reason


def test_refuses_chains() -> None:
    v3 = device.get("x86-64-v3")
    one = depthwise((5, 5), 8, 8)
    chain = ConvWorkload(1, (5, 5), one.stages * 2, False, None, 8, 8)
    assert STRATEGY.applies(chain, v3) == Refusal("one convolution at a time")


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = [
        depthwise((7, 9), 9, 4, residual=True, batch=2, activation=Activation("hard_swish")),
        depthwise((9, 7), 8, 4, kernel=(5, 5), strides=(2, 2), pads_begin=(2, 1), pads_end=(1, 2)),
        depthwise((1, 9), 5, 4, kernel=(1, 3), pads_begin=(0, 2), pads_end=(0, 0), dilations=(1, 2)),
        depthwise((3, 4, 5), 6, 4),
    ]
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)
