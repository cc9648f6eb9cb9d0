"""Depthwise kernels with a rectangle of outputs in registers against the bound in every tile; borders; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.codegen import lower_kernel
from sepwise.lowering.strategies import depthwise_tile
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.depthwise_tile import DepthwiseTile, DepthwiseTileStrategy
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = DepthwiseTileStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def depthwise(spatial: tuple[int, ...], channels: int, lanes: int, **changes: Any) -> ConvWorkload:
    one = (1,) * len(spatial)
    given = {"groups": channels, "kernel": tuple(3 for _ in one), "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    input_lanes, out_channels = changes.pop("input_lanes", lanes), changes.pop("out_channels", channels)
    stage = Stage(channels, out_channels, **{**given, "activation": RELU6, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, input_lanes, lanes)


def workloads(draws: SimpleNamespace, target: device.Device) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        channels = draw(draws.channels(target.lanes).filter(lambda count: count > 1))
        spatial, stage = draw(draws.spatial_stage(channels, channels, channels))
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], target.lanes))
        return workload

    return build().filter(lambda workload: STRATEGY.applies(workload, target) is None)


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target), STRATEGY, target, 10)
    explore(cases, lambda drawn: check_native(drawn, target))


def test_every_tile(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    uneven: dict[str, Any] = {"strides": (2, 1), "pads_begin": (2, 0), "pads_end": (0, 3), "kernel": (3, 2), "dilations": (1, 2)}
    workload = depthwise((9, 9), lanes + 3, lanes, residual=True, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    assert {tile.rows for tile in tiles} >= {1, 2, 3}
    assert {tile.pixels for tile in tiles} >= {1, 2}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_only_the_middle_reads_the_input(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    workload = depthwise((1, 1), lanes, lanes, pads_begin=(3, 2), pads_end=(2, 3), dilations=(2, 2))
    tiles = STRATEGY.tiles(workload, target, 1)
    check_native([make_case(workload, STRATEGY, tile, kind) for tile in tiles[:6] for kind in ("normal", "nonfinite")], target)


def test_rows_of_a_task_are_shared_out(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    workload = depthwise((13, 6), target.lanes, target.lanes, batch=2)
    tiles = {tile.grain: tile for tile in STRATEGY.tiles(workload, target, 2) if tile.rows == 2}
    assert len(tiles) >= 3
    check_native([make_case(workload, STRATEGY, tile) for tile in tiles.values()], target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, channels in (((112, 112), 32), ((7, 7), 960), ((14, 15), 5), ((3, 9, 9), 24)):
            check_tiles(STRATEGY, depthwise(spatial, channels, each.lanes), each)


def test_registers_of_a_tile() -> None:
    a72 = device.get("cortex-a72")
    stage = depthwise((56, 56), 4, 4).stages[0]
    assert depthwise_tile.rectangle_fits(stage, a72, 4, 4)  # 16 sums, 9 weights, 6 inputs of a row
    assert not depthwise_tile.rectangle_fits(stage, a72, 3, 6)  # 18 + 9 + 6
    assert depthwise_tile.rectangle_fits(stage, a72, 1, 21)  # 21 + 3 + 6: a row of inputs meets one row of taps
    wide = replace(stage, kernel=(5, 5), pads_begin=(2, 2), pads_end=(2, 2))
    assert depthwise_tile.rectangle_fits(wide, a72, 2, 8)  # 16 + 10 + 6
    assert not depthwise_tile.rectangle_fits(wide, a72, 3, 4)  # 12 + 15 + 6
    assert depthwise_tile.rectangle_fits(replace(wide, dilations=(3, 1)), a72, 3, 4)  # 12 + 5 + 6: rows of taps lie apart


def test_border_tiles() -> None:
    stage = depthwise((9, 9), 4, 4, pads_begin=(1, 3), pads_end=(1, 0)).stages[0]
    assert depthwise_tile.border_tiles(stage, (9, 9), (9, 10), (4, 2)) == [(1, 1), (2, 0)]
    assert depthwise_tile.border_tiles(stage, (9, 9), (9, 10), (9, 10)) == [(1, 0), (1, 0)]
    free = replace(stage, pads_begin=(0, 0), pads_end=(0, 0))
    assert depthwise_tile.border_tiles(free, (9, 9), (7, 7), (2, 3)) == [(0, 0), (0, 0)]


def test_an_input_read_once_is_cheaper() -> None:
    a72 = device.get("cortex-a72")
    stage = depthwise((56, 56), 4, 4).stages[0]
    in_rows, in_one_row = (depthwise_tile.rectangle_cycles(stage, a72, *sizes, inside=1.0) for sizes in ((4, 4), (1, 16)))
    assert in_rows < in_one_row


def test_taps_in_the_padding_cost_nothing() -> None:
    stage = depthwise((5, 7), 8, 8).stages[0]
    assert depthwise_tile.inside_share(stage, (5, 7), (5, 7)) == pytest.approx((13 / 15) * (19 / 21))
    free = replace(stage, pads_begin=(0, 0), pads_end=(0, 0))
    assert depthwise_tile.inside_share(free, (5, 7), (3, 5)) == 1.0
    strided = replace(stage, strides=(2, 2), dilations=(2, 1), pads_begin=(2, 1), pads_end=(2, 1))
    assert depthwise_tile.inside_share(strided, (5, 7), (3, 4)) == pytest.approx((7 / 9) * (10 / 12))
    v3 = device.get("x86-64-v3")
    whole, part = (depthwise_tile.rectangle_cycles(stage, v3, 4, 2, inside=inside) for inside in (1.0, 0.8))
    assert part < whole


def test_inputs_between_dilated_taps_cost_nothing() -> None:
    host = device.get("x86-64-v3")
    stage = depthwise((33, 33), 8, 8).stages[0]
    far, farther = (replace(stage, dilations=(apart, apart), pads_begin=(apart, apart), pads_end=(apart, apart)) for apart in (3, 6))
    each = [depthwise_tile.rectangle_cycles(dilated, host, 2, 2, inside=1.0) for dilated in (far, farther)]
    assert each[0] == each[1]  # 4 x 9 inputs either way: no two taps share one
    assert depthwise_tile.rectangle_cycles(stage, host, 2, 2, inside=1.0) < each[0]


def test_tiles_of_a_core_out_of_order_overlap() -> None:
    stage = depthwise((20, 20), 8, 8, kernel=(5, 5)).stages[0]
    host = replace(device.get("x86-64-v3"), cpu="toaster")  # whose core is not known
    alone, together = (depthwise_tile.rectangle_cycles(stage, each, 1, 2, inside=1.0) for each in (host, replace(host, cpu="znver5")))
    assert alone - together > 25 * host.fma_latency_cycles / 2  # several chains of 25 taps at a time


@pytest.mark.parametrize(
    ("size", "tile", "asks"),
    [
        (56, DepthwiseTile(4, 4, 15, 14), True),
        (56, DepthwiseTile(4, 4, 15, 1), False),  # a task has no next row of tiles
        (224, DepthwiseTile(4, 4, 15, 56), False),  # level 1 does not hold ten rows
        (224, DepthwiseTile(1, 14, 15, 224), True),
        (7, DepthwiseTile(4, 4, 15, 2), False),  # in level 1
    ],
)
def test_rows_of_the_next_tiles_are_asked_for(size: int, tile: DepthwiseTile, asks: bool) -> None:
    a53 = device.get("cortex-a53")
    workload = depthwise((size, size), 16, a53.lanes)
    kernel = lower_kernel(STRATEGY.schedule(workload, a53, tile).function, "kernel", a53)
    assert ("sepwise_prefetch" in str(kernel.function)) == asks
    deaf = replace(a53, cpu="toaster")
    waits = STRATEGY.predicted_cycles(workload, a53, 1, tile) - STRATEGY.predicted_cycles(workload, deaf, 1, tile)
    lines = size * size * 16 * 4 / 64
    assert waits == 0 if size == 7 else waits < 3 * lines if asks else waits > 10 * lines


def test_refusals() -> None:
    v3 = device.get("x86-64-v3")
    one = depthwise((5, 5), 8, 8)
    assert STRATEGY.applies(one, v3) is None
    assert STRATEGY.applies(replace(one, stages=one.stages * 2), v3) == Refusal("one convolution at a time")
    assert STRATEGY.applies(depthwise((5, 5), 8, 8, groups=1), v3) == Refusal("a lane reads the same channel for all lanes")
    assert STRATEGY.applies(depthwise((5, 5), 4, 8, out_channels=16), v3) == Refusal("a lane reads a channel of its group")
    assert STRATEGY.applies(depthwise((5, 5), 16, 8, input_lanes=0), v3) == Refusal("input and output are packed differently")
    huge = depthwise((40, 40), 8, 8, kernel=(17, 17), pads_begin=(8, 8), pads_end=(8, 8))
    assert STRATEGY.applies(huge, v3) == Refusal("the taps of a tile are too many to be written out")


def test_a_tile_is_positive() -> None:
    for sizes in ((0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)):
        with pytest.raises(AssertionError):
            DepthwiseTile(*sizes)


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


@pytest.mark.emulated
def test_kernels_that_ask_ahead(make_case: Callable[..., Any], check_emulated: Callable[..., None], cortex_a53: device.Device) -> None:
    cases = []
    for changes in ({}, {"strides": (2, 2)}, {"kernel": (5, 5), "pads_begin": (2, 2), "pads_end": (2, 2)}):
        workload = depthwise((31, 28), 9, 4, **changes)
        tiles = [tile for tile in STRATEGY.tiles(workload, cortex_a53, 1) if tile.grain > 1 and tile.rows > 1]
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2])]
    check_emulated(cases, cortex_a53)
