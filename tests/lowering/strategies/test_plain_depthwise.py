"""Depthwise kernels with lanes along the width against the bound in every tile; borders, strides, tails; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import codegen, device
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.plain_depthwise import PlainDepthwiseStrategy, PlainDepthwiseTile
from sepwise.lowering.workload import ConvWorkload, DTypes, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = PlainDepthwiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def depthwise(spatial: tuple[int, ...], channels: int, **changes: Any) -> ConvWorkload:
    one = (1,) * len(spatial)
    given = {"groups": channels, "kernel": tuple(3 for _ in one), "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    input_lanes, output_lanes = changes.pop("input_lanes", 0), changes.pop("output_lanes", 0)
    stage = Stage(channels, changes.pop("out_channels", channels), **{**given, "activation": RELU6, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, input_lanes, output_lanes)


@pytest.fixture(scope="module")
def sized(target: device.Device) -> device.Device:
    """An ARM device with vectors of the native target's size: its tiles and schedules are computed here."""
    return replace(target, isa="arm")


def workloads(draws: SimpleNamespace, sized: device.Device) -> st.SearchStrategy[ConvWorkload]:
    """Of the sizes that all strategies are drawn, a vector or two wider."""

    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        channels, multiplier = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2)))
        (*outer, width), stage = draw(draws.spatial_stage(channels, multiplier * channels, channels))
        width += stage.strides[-1] * draw(st.integers(sized.lanes - 1, 2 * sized.lanes + 2))
        workload: ConvWorkload = draw(draws.chain((*outer, width), [stage], 0))
        return workload

    return build().filter(lambda workload: STRATEGY.applies(workload, sized) is None)


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], sized: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, sized), STRATEGY, sized, 4)
    explore(cases, lambda drawn: check_native(drawn, sized))


def test_every_tile(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], sized: device.Device
) -> None:
    uneven: dict[str, Any] = {"strides": (2, 1), "pads_begin": (2, 3), "pads_end": (0, 1), "kernel": (2, 3), "dilations": (1, 2)}
    workload = depthwise((9, 2 * sized.lanes + 3), 2, residual=True, **uneven)
    tiles = STRATEGY.tiles(workload, sized, 1)
    assert {tile.rows for tile in tiles} >= {1, 2, 3}
    assert {tile.vectors for tile in tiles} >= {1, 2}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)[::2]], sized)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_element_of_a_short_row_is_missing(
    stride: int, make_case: Callable[..., Any], check_native: Callable[..., None], sized: device.Device
) -> None:
    """One row that is all of the tensor: pads wider than a vector on one side, none on the other, and taps between elements."""
    lanes = sized.lanes
    cases = []
    for kernel, before, behind in ((1, 0, 0), (2, 1, 0), (3, 0, 2), (3, lanes + 1, 1), (3, 1, lanes + 1)):
        given: dict[str, Any] = {"kernel": (1, kernel), "pads_begin": (0, before), "pads_end": (0, behind), "strides": (1, stride)}
        width = (lanes - 1) * stride + kernel - min(before + behind, lanes)
        workload = depthwise((1, width), 1, **given)
        if STRATEGY.applies(workload, sized) is None:
            tile = STRATEGY.tiles(workload, sized, 1)[0]
            cases += [make_case(workload, STRATEGY, tile, kind) for kind in ("normal", "impulse", "nonfinite")]
    assert len(cases) >= 9
    check_native(cases, sized)


def test_rows_of_a_task_are_shared_out(
    make_case: Callable[..., Any], check_native: Callable[..., None], sized: device.Device
) -> None:
    workload = depthwise((13, sized.lanes + 1), 2, batch=2, out_channels=4)
    tiles = {tile.grain: tile for tile in STRATEGY.tiles(workload, sized, 2) if tile.rows == 2}
    assert len(tiles) >= 3
    check_native([make_case(workload, STRATEGY, tile) for tile in tiles.values()], sized)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        if each.isa != "arm" or each.lanes == 1:
            continue
        for spatial, channels in (((112, 112), 3), ((28, 31), 5), ((3, 9, 16), 2), ((1, 98), 1)):
            check_tiles(STRATEGY, depthwise(spatial, channels), each)


def test_each_row_of_taps_loads_its_inputs_once() -> None:
    """So more rows in registers cost less, down to what the kernel's own rows share."""
    a72 = device.get("cortex-a72")
    workload = depthwise((56, 56), 1)
    cycles = {
        tile.rows: STRATEGY.predicted_cycles(workload, a72, 1, tile)
        for tile in STRATEGY.tiles(workload, a72, 1)
        if tile.vectors == 1 and tile.grain * tile.rows >= 56
    }
    assert cycles[1] > cycles[2] > cycles[4] > cycles[8]


@pytest.mark.parametrize(("stride", "wide"), [(1, 0), (2, 2)])
@pytest.mark.parametrize("target", ["cortex-a72", "cortex-a7"])
def test_every_load_is_of_a_vector(target: str, stride: int, wide: int) -> None:
    """None of a lane, and no test of one: inside, and at the borders."""
    there = device.get(target)
    workload = depthwise((8, 32), 1, strides=(1, stride), activation=None)
    tile = next(tile for tile in STRATEGY.tiles(workload, there, 1) if (tile.rows, tile.vectors) == (2, 1))
    text = codegen.lower_kernel(STRATEGY.schedule(workload, there, tile).function, "k", there).function.script()
    assert "Select" not in text
    assert "if_then_else" not in text
    assert text.count("1, 8)]") >= wide
    assert not [line for line in text.splitlines() if "= data[" in line]


def test_refusals() -> None:
    a72 = device.get("cortex-a72")
    one = depthwise((5, 5), 3)
    assert STRATEGY.applies(one, a72) is None
    assert STRATEGY.applies(replace(one, stages=one.stages * 2), a72) == Refusal("one convolution at a time")
    for packed in ({"input_lanes": 4}, {"output_lanes": 4}):
        assert STRATEGY.applies(depthwise((5, 5), 3, **packed), a72) == Refusal("input or output is packed")
    assert STRATEGY.applies(depthwise((5, 5), 4, groups=2), a72) == Refusal("an output reads several channels")
    assert STRATEGY.applies(depthwise((5, 3), 3), a72) == Refusal("a row of outputs is shorter than a vector")
    assert STRATEGY.applies(one, device.get("x86-64-v3")) == Refusal("the model of its cycles is known to hold on ARM alone")
    assert STRATEGY.applies(one, device.get("cortex-m7")) == Refusal("the device has no vectors")
    huge = depthwise((40, 40), 3, kernel=(17, 17), pads_begin=(8, 8), pads_end=(8, 8))
    assert STRATEGY.applies(huge, a72) == Refusal("the taps of a tile are too many to be written out")


def test_a_tile_is_positive() -> None:
    for zero in range(5):
        with pytest.raises(AssertionError):
            PlainDepthwiseTile(*(int(place != zero) for place in range(5)))


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    lanes = emulated.device.lanes
    dtypes = DTypes.all({4: "float32", 8: "float16"}[lanes])
    workloads = [
        depthwise((7, 2 * lanes + 1), 2, residual=True, batch=2, activation=Activation("hard_swish")),
        depthwise((9, 4 * lanes - 1), 1, out_channels=3, kernel=(5, 5), strides=(2, 2), pads_begin=(2, 1), pads_end=(1, 2)),
        depthwise((1, 3 * lanes), 5, kernel=(1, 3), pads_begin=(0, 2), pads_end=(0, 0), dilations=(1, 2)),
        depthwise((3, 4, lanes), 2),
        depthwise((4, 3 * lanes + 2), 1, strides=(1, 3), pads_begin=(0, 0), pads_end=(0, 0)),
    ]
    cases = []
    for workload in (replace(each, dtypes=dtypes) for each in workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[-1])]
    check_emulated(cases, emulated.device)


@pytest.mark.emulated
def test_emulated_armv7(make_case: Callable[..., Any], check_emulated: Callable[..., None]) -> None:
    a7 = device.get("cortex-a7")
    workloads = [depthwise((5, 11), 3, residual=True), depthwise((6, 13), 1, strides=(2, 2), kernel=(3, 5), pads_begin=(1, 2))]
    check_emulated([make_case(each, STRATEGY, STRATEGY.tiles(each, a7, 1)[0]) for each in workloads], a7)
