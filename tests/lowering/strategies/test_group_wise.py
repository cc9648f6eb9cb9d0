"""Group-wise kernels against the bound in every tile; what they refuse and what they predict."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.selection import Choice, Selector
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.group_wise import GroupWiseStrategy
from sepwise.lowering.strategies.tiles import NEAR_FASTEST
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.vocabulary import Activation

STRATEGY = GroupWiseStrategy()
RELU6 = Activation("clip", (0.0, 6.0))


def flat(size: int, per_group: tuple[int, int], groups: int, lanes: int) -> ConvWorkload:
    """A pointwise convolution over a square; `per_group` are the input and the output channels of one group."""
    one, none = (1, 1), (0, 0)
    stage = Stage(groups * per_group[0], groups * per_group[1], groups, one, one, none, none, one, RELU6)
    return ConvWorkload(1, (size, size), (stage,), False, None, lanes, lanes)


def uneven(per_group: tuple[int, int], groups: int, lanes: int) -> ConvWorkload:
    """A convolution with a stride, a dilation and different pads, and a residual."""
    channels = (groups * count for count in per_group)
    stage = Stage(*channels, groups, (3, 4), (2, 1), (2, 0), (0, 3), (1, 2), RELU6)
    return ConvWorkload(2, (9, 9), (stage,), True, Activation("clip", (-1.0, 2.0)), lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        groups, read = draw(st.integers(2, 5)), draw(st.integers(1, 2 * lanes))
        written = draw(st.integers(1 + (read == 1), 3 * lanes).filter(lambda count: count % lanes))
        spatial, stage = draw(draws.spatial_stage(groups * read, groups * written, groups))
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
    workload = uneven((3, 2 * target.lanes + 1), 3, target.lanes)
    tiles = STRATEGY.tiles(workload, target, 1)
    *_, height, width = workload.spatials[-1]
    assert {tile.rows for tile in tiles} >= {1, 2, height}
    assert {tile.oc_vectors for tile in tiles} == {1, 2, 3}
    assert max(tile.pixels for tile in tiles) <= width
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_groups_that_share_vectors(
    make_case: Callable[..., Any], check_native: Callable[..., None], target: device.Device
) -> None:
    """Two in a vector, many in one, and one that begins in the last lane; what is not finite stays in its group."""
    lanes = target.lanes
    shapes = [((5, lanes + 1), 2), ((3, lanes // 2 + 1), 5), ((2, 2), lanes), ((1, 3), 7), ((7, 2 * lanes - 1), 2)]
    cases = []
    for per_group, groups in shapes:
        workload = flat(5, per_group, groups, lanes)
        tiles = STRATEGY.tiles(workload, target, 1)
        cases += [make_case(workload, STRATEGY, tile, kind) for tile in (tiles[0], tiles[-1]) for kind in ("normal", "nonfinite")]
    check_native(cases, target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for size, per_group, groups in ((56, (25, 100), 2), (7, (5, 3), 4), (14, (58, 58), 2), (27, (80, 20), 3)):
            workload = flat(size, per_group, groups, each.lanes)
            if STRATEGY.applies(workload, each) is None:
                check_tiles(STRATEGY, workload, each, NEAR_FASTEST)


def test_refuses_what_fills_vectors_depthwise_and_chains() -> None:
    v3 = device.get("x86-64-v3")
    assert STRATEGY.applies(flat(5, (4, 8), 3, 8), v3) == Refusal("a lane reads the same channel for all lanes")
    assert STRATEGY.applies(flat(5, (1, 1), 9, 8), v3) == Refusal("a lane reads its own channel")
    one = flat(5, (4, 12), 3, 8)
    assert STRATEGY.applies(one, v3) is None
    assert STRATEGY.applies(replace(one, input_lanes=0), v3) is None
    chain = replace(one, stages=(*one.stages, flat(5, (12, 4), 3, 8).stages[0]))
    assert STRATEGY.applies(chain, v3) == Refusal("one convolution at a time")


@pytest.mark.parametrize("name", ["cortex-a72", "cortex-a7"])
def test_refuses_devices_that_load_and_then_multiply(name: str) -> None:
    refusal = STRATEGY.applies(flat(5, (4, 6), 3, 4), device.get(name))
    assert refusal == Refusal("the device does not broadcast what it loads beside a multiply-add")


def test_rows_whose_sums_exceed_level_2_are_no_tiles() -> None:
    v4 = device.get("x86-64-v4")
    workload = flat(56, (200, 200), 5, 16)
    rows = {tile.rows for tile in STRATEGY.tiles(workload, v4, 1)}
    assert 1 in rows
    assert max(rows) * 56 * 5 * 200 * 4 <= v4.l2_bytes


@pytest.mark.parametrize(
    ("per_group", "groups", "name"),
    [((58, 58), 2, "group-wise"), ((80, 20), 3, "group-wise"), ((25, 100), 2, "group-wise"), ((48, 12), 8, "grouped"), ((4, 4), 8, "grouped")],
)
def test_is_chosen_where_groups_have_about_a_vector_and_more(per_group: tuple[int, int], groups: int, name: str) -> None:
    choice = Selector(device.get("x86-64-v4"), 1).choose(flat(28, per_group, groups, 16))
    assert isinstance(choice, Choice)
    assert choice.strategy.name == name
