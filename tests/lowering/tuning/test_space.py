"""What may be tried: the tiles that strategies declare, and in which order."""

import pytest

from sepwise.lowering import device
from sepwise.lowering.selection import Pick, Selector, find_tile
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.tuning.space import MOST_PREDICTED, list_candidates, order
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage

V3 = device.get("x86-64-v3")
KINDS = {
    "dense": Stage(16, 24, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "pointwise": Stage(16, 24, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),
    "depthwise": Stage(16, 16, 16, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
}


def convolution(kind: str) -> ConvWorkload:
    return ConvWorkload(1, (14, 14), (KINDS[kind],), False, None, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_declared_tile_and_nothing_else(kind: str) -> None:
    workload = convolution(kind)
    found = list_candidates(workload, V3, 1)
    declared = {
        (strategy.name, str(tile))
        for strategy in strategies_for(workload)
        if strategy.applies(workload, V3) is None
        for tile in strategy.tiles(workload, V3, 1)
    }
    assert {(each.strategy.name, str(each.tile)) for each in found} == declared
    assert len(found) >= 20
    assert [each.cycles for each in found] == sorted(each.cycles for each in found)


@pytest.mark.parametrize("workload", [convolution("dense"), LinearWorkload(4, 32, 40)], ids=["conv", "linear"])
def test_a_name_leads_back_to_its_tile(workload: ConvWorkload | LinearWorkload) -> None:
    for each in list_candidates(workload, V3, 1):
        strategy, tile = find_tile(workload, V3, 1, each.pick) or (None, None)
        assert (strategy, tile) == (each.strategy, each.tile)
    assert find_tile(workload, V3, 1, Pick(each.strategy.name, (("rows", 999),))) is None
    assert find_tile(workload, V3, 1, Pick("no such", each.pick.sizes)) is None


def test_the_order_is_that_of_the_prediction_behind_each_strategys_best() -> None:
    workload = convolution("dense")
    found = list_candidates(workload, V3, 1)
    choice = Selector(V3, 1).choose(workload)
    assert not isinstance(choice, list)
    default = found[0].pick
    assert (choice.strategy.name, str(choice.tile)) == (found[0].strategy.name, str(found[0].tile))
    queue = order(found, default)
    assert default not in {each.pick for each in queue}
    within = [each for each in found if each.cycles <= MOST_PREDICTED * found[0].cycles]
    assert {each.pick for each in queue} == {each.pick for each in within} - {default}
    leading = len({each.strategy.name for each in queue})
    assert len({each.strategy.name for each in queue[:leading]}) == leading
    assert [each.cycles for each in queue[leading:]] == sorted(each.cycles for each in queue[leading:])


def test_what_was_good_elsewhere_is_tried_first_however_it_is_predicted() -> None:
    found = list_candidates(convolution("pointwise"), V3, 1)
    worst = found[-1].pick
    queue = order(found, found[0].pick, [worst, Pick("no such", ()), found[0].pick])
    assert queue[0].pick == worst
    assert found[0].pick not in {each.pick for each in queue}
