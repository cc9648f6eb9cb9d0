"""Dense and grouped kernels against the bound in every tile; what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.codegen import lower_kernel
from sepwise.lowering.memory_plan import ALIGNMENT_BYTES
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.dense import DenseStrategy
from sepwise.lowering.strategies.tiles import NEAR_FASTEST, RowTile
from sepwise.lowering.tiling import round_up
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = DenseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))
AVX512 = device.get("x86-64-v4")


def dense(
    spatial: tuple[int, ...], in_channels: int, out_channels: int, lanes: int, *, input_lanes: int | None = None, **changes: Any
) -> ConvWorkload:
    rank = len(spatial)
    one = (1,) * rank
    given = {"groups": 1, "kernel": (3,) * rank, "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    stage = Stage(in_channels, out_channels, **{**given, "activation": RELU6, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, lanes if input_lanes is None else input_lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        kind = draw(st.sampled_from(("dense", "dense", "first layer", "grouped", "multiplier")))
        groups = 1 if kind in ("dense", "first layer") else draw(st.integers(2, 3))
        in_channels = draw(draws.channels(lanes)) if kind == "dense" else groups * draw(st.integers(1, 5))
        out_channels = draw(draws.channels(lanes)) if groups == 1 else groups * lanes * draw(st.integers(1, 2))
        if kind == "multiplier":
            in_channels = groups
        spatial, stage = draw(draws.spatial_stage(in_channels, out_channels, groups))
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], lanes, input_lanes=(0,) if kind == "first layer" else (lanes, lanes, 0)))
        return workload

    return build()


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), STRATEGY, target, 10)
    explore(cases, lambda drawn: check_native(drawn, target))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_that_do_not_divide_are_staged_in_one_place(stride: int) -> None:
    """Not each task's in a place of its own, as large as the image."""
    workload = dense((15 * stride, 62), 3, 16, 16, input_lanes=0, strides=(stride, 1))
    tile = next(tile for tile in STRATEGY.tiles(workload, AVX512, 1) if tile.rows == 4)  # of 15
    kernel = lower_kernel(STRATEGY.schedule(workload, AVX512, tile).function, "k", AVX512)
    in_rows, in_width = 3 * stride + 3, round_up(62, tile.pixels) + 2
    assert kernel.scratch_bytes == round_up(4 * 3 * in_rows * in_width, ALIGNMENT_BYTES)


def test_every_tile(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    uneven: dict[str, Any] = {"strides": (1, 2), "pads_begin": (2, 0), "pads_end": (0, 3), "kernel": (3, 2), "dilations": (2, 1)}
    workload = dense((5, 9), lanes + 1, 2 * lanes + 3, lanes, residual=True, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, width = workload.spatials[-1]
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert {tile.pixels for tile in tiles} == set(range(1, width + 1))
    assert {tile.oc_vectors for tile in tiles} == {1, 2, 3}
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_every_tile_of_a_first_layer(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    workload = dense((7, 7), 3, lanes + 1, lanes, strides=(2, 2), pads_begin=(0, 0), input_lanes=0, batch=2)
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(STRATEGY.tiles(workload, target, 1))], target)


def test_pointwise_that_moves_pixels(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    point: dict[str, Any] = {"kernel": (1, 1)}
    workloads = [
        dense((5, 6), lanes + 2, lanes, lanes, **point),  # padding 1: the border is the bias alone
        dense((5, 6), lanes + 2, lanes, lanes, **point, strides=(2, 3), pads_begin=(0, 0), pads_end=(0, 0)),
        dense((5, 6), 2 * lanes, 2 * lanes, lanes, **point, groups=2),
    ]
    cases = [make_case(w, STRATEGY, tile) for w in workloads for tile in STRATEGY.tiles(w, target, 1)[:5]]
    check_native(cases, target)


def test_a_tile_of_channels_reads_its_group_alone() -> None:
    """Inputs beyond level 2 are read once for each tile of a group, not of all groups."""
    dense_ = dense((28, 28), 1024, 128, 16, kernel=(1, 1), pads_begin=(0, 0), pads_end=(0, 0))
    stage = dense_.stages[0]
    apart = replace(dense_, stages=(replace(stage, in_channels=8 * stage.in_channels, out_channels=8 * stage.out_channels, groups=8),))
    tile = RowTile(28, 4, 4)
    one, eight = (STRATEGY.predicted_cycles(workload, AVX512, 1, tile) for workload in (dense_, apart))
    assert eight == pytest.approx(8 * one, rel=0.05)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, in_channels, out_channels in (((112, 112), 3, 32), ((7, 7), 512, 512), ((5, 1), 7, 5), ((3, 9, 9), 24, 24)):
            check_tiles(STRATEGY, dense(spatial, in_channels, out_channels, each.lanes), each, NEAR_FASTEST)


def test_refuses_groups_within_a_vector() -> None:
    v3 = device.get("x86-64-v3")
    refusal = STRATEGY.applies(dense((5, 5), 16, 24, 8, groups=2), v3)
    assert refusal == Refusal("the lanes of a vector belong to different groups")
    assert STRATEGY.applies(dense((5, 5), 8, 8, 8, groups=8), v3) == refusal
    assert STRATEGY.applies(dense((5, 5), 16, 32, 8, groups=2), v3) is None


def test_refuses_chains() -> None:
    v3 = device.get("x86-64-v3")
    one = dense((5, 5), 8, 8, 8)
    chain = ConvWorkload(1, (5, 5), one.stages * 2, False, None, 8, 8)
    assert STRATEGY.applies(chain, v3) == Refusal("one convolution at a time")


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = [
        dense((7, 9), 3, 9, 4, strides=(2, 2), input_lanes=0, batch=2),
        dense((5, 5), 6, 8, 4, residual=True, activation=Activation("silu")),
        dense((5, 7), 9, 5, 4, kernel=(1, 1)),
        dense((1, 9), 5, 6, 4, kernel=(1, 3), pads_begin=(0, 2), pads_end=(0, 0), dilations=(1, 2)),
        dense((3, 4, 5), 3, 4, 4),
        dense((5, 5), 6, 8, 4, groups=2),
    ]
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)
