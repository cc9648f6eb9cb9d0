"""Pointwise, depthwise and pointwise in one kernel against the bound, in every tile; what it refuses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.codegen import lower_kernel
from sepwise.lowering.compute import input_extents
from sepwise.lowering.cost import CACHE_SHARE
from sepwise.lowering.selection import Selector
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.depthwise_tile import MOST_PEELED_FMAS, inside_share
from sepwise.lowering.strategies.inverted import NEAR_FASTEST_CHAIN, TILES_TRIED, InvertedStrategy, InvertedTile
from sepwise.lowering.tiling import round_up
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = InvertedStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def inverted(
    spatial: tuple[int, ...],
    channels: Sequence[int],
    lanes: int,
    *,
    flat_changes: Any = None,
    residual: bool = False,
    batch: int = 1,
    input_lanes: int | None = None,
    **changes: Any,
) -> ConvWorkload:
    rank, (read, inner, written) = len(spatial), channels
    one, none = (1,) * rank, (0,) * rank
    given = {"groups": inner, "kernel": (3,) * rank, "strides": one, "pads_begin": one, "pads_end": one, "dilations": one}
    first = replace(Stage(read, inner, 1, one, one, none, none, one, RELU6), **(flat_changes or {}))
    depthwise = Stage(inner, inner, **{**given, "activation": RELU6, **changes})
    last = Stage(inner, written, 1, one, one, none, none, one)
    return ConvWorkload(batch, spatial, (first, depthwise, last), residual, None, lanes if input_lanes is None else input_lanes, lanes)


def reads_every_row(stage: Stage) -> bool:
    reach = input_extents(stage, (1,) * len(stage.kernel))
    return not stage.flat and all(stride <= extent for stride, extent in zip(stage.strides[:-1], reach, strict=False))


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        inner = draw(draws.channels(lanes).filter(lambda count: count > 1))
        spatial, depthwise = draw(draws.spatial_stage(inner, inner, inner).filter(lambda drawn: reads_every_row(drawn[1])))
        first = draws.flat_stage(draw(draws.channels(lanes)), inner, len(spatial), draw(draws.activations))
        last = draws.flat_stage(inner, draw(draws.channels(lanes)), len(spatial), draw(draws.activations))
        workload: ConvWorkload = draw(draws.chain(spatial, [first, depthwise, last], lanes))
        return workload

    return build().filter(lambda drawn: inside_share(drawn.stages[1], drawn.spatial, drawn.spatials[-1]) > 0)


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
    workload = inverted((9, 8), (lanes - 1, 4 * lanes + 1, 2 * lanes + 3), lanes, residual=padded, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, _ = workload.spatials[-1]
    assert len(tiles) >= 20
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert len({(tile.pixels, tile.oc_vectors) for tile in tiles}) == TILES_TRIED
    assert len({(tile.expanded_pixels, tile.expanded_vectors) for tile in tiles}) == TILES_TRIED
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_what_is_padded_is_not_read(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    """The first stage's bias and edge, which lie where the depthwise stage pads, must not reach a result."""
    lanes, two = target.lanes, (2, 2)
    workload = inverted((4, 5), (lanes, 2 * lanes, lanes), lanes, activation=None, batch=2, kernel=(5, 5), pads_begin=two, pads_end=two)
    tiles = [InvertedTile(rows, pixels, 1, 1, 1, 3, 2) for rows in (1, 3, 4) for pixels in (2, 3, 4)]
    check_native([make_case(workload, STRATEGY, tile, kind) for tile in tiles for kind in ("constant", "nonfinite")], target)


def test_of_tiles_about_as_fast_the_first_stages_least() -> None:
    v4 = device.get("x86-64-v4")
    for spatial, channels in (((112, 112), (16, 64, 24)), ((56, 56), (24, 144, 32))):
        workload = inverted(spatial, channels, 16, strides=(2, 2))
        first, *others = STRATEGY.tiles(workload, v4, 1)
        limit = NEAR_FASTEST_CHAIN * min(STRATEGY.predicted_cycles(workload, v4, 1, tile) for tile in (first, *others))
        near = [tile for tile in others if STRATEGY.predicted_cycles(workload, v4, 1, tile) <= limit]
        assert STRATEGY.predicted_cycles(workload, v4, 1, first) <= limit
        scratch = [lower_kernel(STRATEGY.schedule(workload, v4, tile).function, "k", v4).scratch_bytes for tile in (first, *near[-3:])]
        assert scratch[0] == min(scratch) < max(scratch)


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = (
        inverted((9, 10), (4, 12, 5), 4, strides=(2, 2)),
        inverted((7, 6), (6, 24, 6), 4, residual=True, kernel=(5, 5), pads_begin=(2, 2), pads_end=(2, 2)),
    )
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, channels in (((112, 112), (16, 96, 24)), ((7, 7), (160, 960, 320)), ((5, 1), (3, 7, 5)), ((3, 9, 9), (24, 48, 24))):
            check_tiles(STRATEGY, inverted(spatial, channels, each.lanes), each, NEAR_FASTEST_CHAIN)


def test_what_a_task_stages_stays_in_the_second_level_cache(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        inner = 16 * each.lanes
        for tile in STRATEGY.tiles(inverted((64, 64), (each.lanes, inner, each.lanes), each.lanes), each, 1):
            staged = 64 * (16 * tile.rows + tile.expanded_vectors * (tile.rows + 2)) * each.vector_bytes
            assert tile.rows == 1 or staged <= each.l2_bytes * CACHE_SHARE


def test_scratch_is_what_a_task_stages() -> None:
    """Rows that a tile does not divide, and a stride: still only the rows of a task are staged."""
    v3 = device.get("x86-64-v3")
    workload = inverted((30, 30), (8, 32, 8), v3.lanes, strides=(2, 2))
    kernel = lower_kernel(STRATEGY.schedule(workload, v3, InvertedTile(4, 4, 1, 2, 4, 7, 2)).function, "kernel", v3)
    expanded, filtered = 2 * 9 * round_up(30, 7), 4 * 4 * round_up(15, 4)
    assert 0 < kernel.scratch_bytes <= (expanded + filtered) * v3.vector_bytes + 128


def test_a_tile_is_positive_and_of_whole_rectangles() -> None:
    sizes = [2, 1, 1, 1, 1, 1, 1]
    InvertedTile(*sizes)
    for place in range(len(sizes)):
        with pytest.raises(AssertionError):
            InvertedTile(*sizes[:place], 0, *sizes[place + 1 :])
    with pytest.raises(AssertionError):
        InvertedTile(3, 1, 1, 2, 1, 1, 1)


def test_a_tile_that_spills_does_not_fit() -> None:
    v2 = device.get("x86-64-v2")
    assert InvertedTile(1, 3, 3, 1, 1, 3, 3).fits(v2)
    assert not InvertedTile(1, 4, 3, 1, 1, 3, 3).fits(v2)
    assert not InvertedTile(1, 3, 3, 1, 1, 4, 3).fits(v2)


def test_rectangles_divide_rows_and_the_computed_width(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        for tile in STRATEGY.tiles(inverted((14, 15), (8, 16, 8), each.lanes), each, 1):
            assert tile.rows % tile.depthwise_rows == 0
            assert round_up(15, tile.pixels) % tile.depthwise_pixels == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": 1}, "the second convolution is not depthwise with multiplier 1 over several pixels"),
        ({"groups": 4}, "the second convolution is not depthwise with multiplier 1 over several pixels"),
        (
            {"kernel": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)},
            "the second convolution is not depthwise with multiplier 1 over several pixels",
        ),
        ({"input_lanes": 0}, "input and output are packed differently"),
        ({"flat_changes": {"strides": (2, 2)}}, "the first or the last convolution moves pixels or has groups"),
        ({"flat_changes": {"pads_end": (1, 1)}}, "the first or the last convolution moves pixels or has groups"),
        ({"flat_changes": {"groups": 2}}, "the first or the last convolution moves pixels or has groups"),
        ({"kernel": (1, 3), "strides": (2, 1), "pads_begin": (0, 1), "pads_end": (0, 1)}, "the second convolution skips rows of the first"),
        ({"kernel": (3, 1), "strides": (1, 7), "pads_begin": (1, 1), "pads_end": (1, 0)}, "the second convolution reads padding alone"),
        ({"kernel": (17, 17), "pads_begin": (8, 8), "pads_end": (8, 8)}, "the taps of a tile are too many to be written out"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    v3 = device.get("x86-64-v3")
    assert STRATEGY.applies(inverted((5, 5), (8, 16, 8), 8), v3) is None
    assert STRATEGY.applies(inverted((5, 5), (8, 16, 8), 8, **changes), v3) == Refusal(reason)


def test_refuses_two_and_four() -> None:
    v3 = device.get("x86-64-v3")
    whole = inverted((5, 5), (8, 8, 8), 8)
    for stages in (whole.stages[1:], (*whole.stages, whole.stages[2])):
        assert STRATEGY.applies(replace(whole, stages=stages), v3) == Refusal("not a chain of three convolutions")


def test_versions_at_the_ends_of_a_row_are_few_enough_to_be_written_out() -> None:
    """Dilated taps reach over many tiles of a row, each of which would be written out for itself."""
    v3, far = device.get("x86-64-v3"), (18, 18)
    workload = inverted((33, 33), (8, 16, 8), v3.lanes, pads_begin=far, pads_end=far, dilations=far)
    for tile in STRATEGY.tiles(workload, v3, 1):
        count = round_up(33, tile.pixels) // tile.depthwise_pixels
        assert count * tile.depthwise_rows * tile.depthwise_pixels * 9 <= MOST_PEELED_FMAS


@pytest.mark.parametrize(("size", "channels", "stages"), [(112, (16, 96, 24), [3]), (7, (160, 960, 160), [1, 1, 1])])
def test_chosen_where_no_cache_holds_what_is_expanded(size: int, channels: Sequence[int], stages: list[int]) -> None:
    v4 = replace(device.get("x86-64-v4"), l2_bytes=1 << 20)
    workload = inverted((size, size), channels, v4.lanes)
    assert [len(part.stages) for part in Selector(v4, 1).partition(workload)] == stages
