"""What may be tried: the tiles that strategies declare, and in which order."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sepwise import models
from sepwise.lowering import device
from sepwise.lowering.importer import import_graph
from sepwise.lowering.layout import assign_layouts
from sepwise.lowering.selection import Pick, Selector, find_tile
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.tuning.space import MOST_PREDICTED, list_candidates, order
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes import canonicalize, fuse, load_model

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


def count_candidates(path: Path, target: device.Device) -> dict[ConvWorkload, int]:
    """The candidates of each convolution workload of a network as it is compiled."""
    canonical = canonicalize(load_model(path))
    names = {str(node.name): str(node.outputs[0].name) for node in canonical.graph if node.name}
    selector = Selector(target, 1)
    imported = import_graph(fuse(canonical).model, target, selector, value_names=names)
    assign_layouts(imported.graph, imported.views, selector)
    workloads = {kernel.workload for kernel in imported.graph.kernels if isinstance(kernel.workload, ConvWorkload)}
    return {workload: len(list_candidates(workload, target, 1)) for workload in workloads}


def require_choice(path: Path, target: device.Device) -> None:
    """Asserts that there are 20 candidates, but where there is one pixel, and so no choice of rows and pixels."""
    counts = count_candidates(path, target)
    assert counts
    few = {workload.key: count for workload, count in counts.items() if count < 20 and math.prod(workload.spatials[-1]) > 1}
    assert not few
    assert min(counts.values()) >= 2


TARGETS = ("host", "cortex-a55", "cortex-a72")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["separable_block", "ds_cnn", "tcn_1d", "x3d_block"])
def test_every_convolution_has_a_choice(zoo_file: Callable[..., Path], name: str, target: str) -> None:
    require_choice(zoo_file(name), device.get(target))


@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", models.names())
def test_every_convolution_of_the_zoo_has_a_choice(zoo_file: Callable[..., Path], name: str, target: str) -> None:
    require_choice(zoo_file(name), device.get(target))
