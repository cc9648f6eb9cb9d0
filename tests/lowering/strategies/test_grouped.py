"""Grouped kernels, selected and permuted, against the bound in every tile; what they refuse and what they predict."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import codegen, device
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.grouped import GroupedStrategy, GroupedTile
from sepwise.lowering.strategies.tiles import NEAR_FASTEST
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = GroupedStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def grouped(
    spatial: tuple[int, ...],
    per_group: tuple[int, int],
    groups: int,
    lanes: int,
    *,
    input_lanes: int | None = None,
    batch: int = 1,
    residual: bool = False,
    **changes: Any,
) -> ConvWorkload:
    """`per_group` are the input and the output channels of one group."""
    rank = len(spatial)
    one = (1,) * rank
    given = {"kernel": (3,) * rank, "strides": one, "pads_begin": one, "pads_end": one, "dilations": one, "activation": RELU6}
    stage = Stage(groups * per_group[0], groups * per_group[1], groups, **{**given, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, lanes if input_lanes is None else input_lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        even = [count for count in (1, 2, 4, 8) if count < lanes]
        kind = draw(st.sampled_from(("multiplier", "even", "any")))
        if kind == "multiplier":
            per_group = 1, draw(st.sampled_from([count for count in (*even[1:], 3, 5) if count < lanes]))
        elif kind == "even":
            per_group = draw(st.sampled_from((2, 4, 8, lanes))), draw(st.sampled_from(even))
        else:
            odd = [count for count in range(1, 2 * lanes) if count % lanes]
            per_group = draw(st.integers(2, 5)), draw(st.sampled_from(odd))
        groups = draw(st.integers(2, lanes + 1 if max(per_group) < 4 else 5))
        spatial, stage = draw(draws.spatial_stage(groups * per_group[0], groups * per_group[1], groups))
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], lanes, input_lanes=(lanes, lanes, lanes, 0)))
        return workload

    return build()


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), STRATEGY, target, 6)
    explore(cases, lambda drawn: check_native(drawn, target))


def test_every_tile(
    make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    uneven: dict[str, Any] = {"strides": (2, 1), "pads_begin": (2, 0), "pads_end": (0, 3), "kernel": (3, 4), "dilations": (1, 2)}
    workload = grouped((9, 9), (2, 2), lanes // 2 + 1, lanes, residual=True, **uneven)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, width = workload.spatials[-1]
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert {tile.permuted for tile in tiles} == {False, True}
    assert 1 in {tile.pixels for tile in tiles}
    assert max(tile.pixels for tile in tiles) <= width
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


@pytest.mark.parametrize(("in_channels", "parts"), [(1, 2), (2, 4), (8, 2), (16, 4), (32, 4)])
def test_permutations_of_whole_and_of_parts_of_vectors(
    in_channels: int,
    parts: int,
    make_case: Callable[..., Any],
    check_native: Callable[..., None],
    target: device.Device,
) -> None:
    """Blocks of `parts` groups; the last one is not full."""
    row: dict[str, Any] = {"kernel": (1, 3), "pads_begin": (0, 1), "pads_end": (0, 1)}
    workload = grouped((3, 5), (in_channels, target.lanes // parts), parts + 1, target.lanes, **row)
    tiles = [tile for tile in STRATEGY.tiles(workload, target, 1) if tile.permuted]
    assert tiles
    check_native([make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[-1])], target)


def test_a_long_row_of_taps_stays_a_loop(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    lanes = target.lanes
    long: dict[str, Any] = {"kernel": (1, 67), "pads_begin": (0, 40), "pads_end": (0, 26)}
    workloads_ = [grouped((1, 9), (2, lanes // 2), 3, lanes, **long), grouped((1, 9), (3, 3), 3, lanes, **long)]
    cases = []
    for workload in workloads_:
        widest = max(STRATEGY.tiles(workload, target, 1), key=lambda tile: tile.pixels)
        assert widest.pixels * 67 > 256
        cases.append(make_case(workload, STRATEGY, widest))
    check_native(cases, target)


def test_a_permutation_is_one_instruction(target: device.Device) -> None:
    """No lane is loaded by itself: every load of the input is a whole vector or a part of one."""
    lanes = target.lanes
    workload = grouped((4, 8), (2, 2), lanes, lanes)
    tile = next(tile for tile in STRATEGY.tiles(workload, target, 1) if tile.permuted)
    function = STRATEGY.schedule(workload, target, tile).function
    text = codegen.lower_kernel(function, "k", target).function.script()
    loads = re.findall(r"T\.Shuffle\(\[pad0\w*\[(T\.Ramp\()?", text)
    assert loads
    assert all(loads)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for spatial, per_group, groups in (((56, 56), (1, 2), 32), ((7, 7), (2, 1), 960), ((14, 15), (5, 3), 4), ((3, 9, 9), (2, 2), 12)):
            check_tiles(STRATEGY, grouped(spatial, per_group, groups, each.lanes), each, NEAR_FASTEST)


def test_a_tile_is_positive() -> None:
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(AssertionError):
            GroupedTile(*sizes, permuted=False)


def test_a_tile_that_spills_does_not_fit() -> None:
    v3 = device.get("x86-64-v3")
    assert GroupedTile(1, 6, 6, permuted=False).fits(v3)
    assert not GroupedTile(1, 7, 7, permuted=False).fits(v3)
    assert GroupedTile(1, 12, 1, permuted=False).fits(v3)


def test_inputs_that_stay_in_registers() -> None:
    """Shared columns stay; without any, an input is used at once."""
    v4 = device.get("x86-64-v4")

    def inputs(workload: ConvWorkload, *, permuted: bool) -> int:
        tiles = STRATEGY.tiles(workload, v4, 1)
        return next(tile.inputs for tile in tiles if (tile.pixels, tile.permuted) == (5, permuted))

    pointwise: dict[str, Any] = {"kernel": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
    assert inputs(grouped((8, 8), (20, 20), 3, 16), permuted=False) == 5
    assert inputs(grouped((8, 8), (20, 20), 3, 16, **pointwise), permuted=False) == 1
    assert inputs(grouped((8, 8), (4, 4), 8, 16), permuted=True) == 5
    assert inputs(grouped((16, 16), (4, 4), 8, 16, strides=(2, 2)), permuted=True) == 9
    assert inputs(grouped((8, 8), (2, 1), 32, 16, **pointwise), permuted=True) == 10
    assert inputs(grouped((8, 8), (1, 2), 32, 16, **pointwise), permuted=True) == 1


def test_few_groups_are_selected_where_loads_broadcast() -> None:
    for name, permuted in (("x86-64-v4", (False, True)), ("cortex-a72", (True, True))):
        target = device.get(name)
        found = []
        for groups in (2, 4):
            workload = grouped((56, 56), (target.lanes // groups,) * 2, 8, target.lanes)
            found.append(STRATEGY.tiles(workload, target, 1)[0].permuted)
        assert tuple(found) == permuted, name


def test_selecting_takes_more_slots_without_masks() -> None:
    """Of two devices that differ in nothing else."""
    v4 = device.get("x86-64-v4")
    workload = grouped((28, 28), (80, 20), 3, 16, kernel=(1, 1), pads_begin=(0, 0), pads_end=(0, 0))
    tile = next(tile for tile in STRATEGY.tiles(workload, v4, 1) if not tile.permuted)
    unmasked = replace(v4, flags=v4.flags - {"avx512f"})
    assert STRATEGY.predicted_cycles(workload, v4, 1, tile) < STRATEGY.predicted_cycles(workload, unmasked, 1, tile)


def test_refuses_what_fills_vectors_and_depthwise() -> None:
    v3 = device.get("x86-64-v3")
    assert STRATEGY.applies(grouped((5, 5), (4, 8), 3, 8), v3) == Refusal("a lane reads the same channel for all lanes")
    assert STRATEGY.applies(grouped((5, 5), (1, 1), 9, 8), v3) == Refusal("a lane reads its own channel")
    assert STRATEGY.applies(grouped((5, 5), (1, 2), 9, 8), v3) is None
    assert STRATEGY.applies(grouped((5, 5), (3, 12), 3, 8, input_lanes=0), v3) is None


def test_refuses_chains() -> None:
    v3 = device.get("x86-64-v3")
    one = grouped((5, 5), (2, 2), 4, 8)
    chain = ConvWorkload(1, (5, 5), one.stages * 2, False, None, 8, 8)
    assert STRATEGY.applies(chain, v3) == Refusal("one convolution at a time")


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads_ = [
        grouped((5, 9), (2, 2), 5, 4, residual=True, batch=2, activation=Activation("hard_swish")),
        grouped((9, 7), (1, 2), 5, 4, kernel=(5, 5), strides=(2, 2), pads_begin=(2, 1), pads_end=(1, 2)),
        grouped((1, 9), (2, 1), 6, 4, kernel=(1, 3), pads_begin=(0, 2), pads_end=(0, 0), dilations=(1, 2)),
        grouped((3, 4, 5), (2, 3), 3, 4),
        grouped((5, 5), (2, 6), 3, 4, input_lanes=0),
    ]
    cases = []
    for workload in map(emulated.typed, workloads_):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)
