"""Matrix products against the bound, in every tile."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.strategies.linear import LinearStrategy, LinearTile
from sepwise.lowering.workload import LinearWorkload
from sepwise.passes.vocabulary import Activation

STRATEGY = LinearStrategy()


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[LinearWorkload]:
    features = st.integers(1, lanes) | st.integers(lanes, 4 * lanes + 1)
    return st.builds(LinearWorkload, st.sampled_from((1, 1, 2, 3, 7, 13)), st.integers(1, 40), features, draws.activations)


def test_drawn_kernels(
    explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), STRATEGY, target, 10)
    explore(cases, lambda drawn: check_native(drawn, target))


@pytest.mark.parametrize("fewer", [True, False])
def test_every_tile(
    fewer: bool, make_case: Callable[..., Any], check_native: Callable[..., None], drawn_tiles: Callable[..., Any], target: device.Device
) -> None:
    lanes = target.lanes
    features = lanes - 1 if fewer else 3 * lanes + 2
    workload = LinearWorkload(5, 2 * lanes + 1, features, Activation("relu"))
    tiles = STRATEGY.tiles(workload, target, 1)
    assert {tile.vectors for tile in tiles} == ({1} if fewer else {1, 2, 3})
    assert {tile.rows for tile in tiles} == set(range(1, 6))
    check_native([make_case(workload, STRATEGY, tile) for tile in drawn_tiles(tiles)], target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for rows, in_features, out_features in ((1, 1280, 1000), (40, 120, 360), (3, 50, 37), (100, 8, 2), (1, 1, 1)):
            check_tiles(STRATEGY, LinearWorkload(rows, in_features, out_features), each)


def test_a_tile_fills_whole_vectors(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        for features in (1, max(1, each.lanes - 1), each.lanes, 5 * each.lanes + 3):
            for tile in STRATEGY.tiles(LinearWorkload(3, 7, features), each, 1):
                assert tile.features <= features
                assert tile.features == tile.vectors * each.lanes or (tile.vectors, tile.features) == (1, features)
    with pytest.raises(AssertionError):
        LinearTile(1, 9, 2)


def test_a_tile_that_spills_does_not_fit() -> None:
    v3 = device.get("x86-64-v3")
    assert LinearTile(3, 24, 3).fits(v3)
    assert not LinearTile(4, 24, 3).fits(v3)


def test_applies_to_every_product() -> None:
    v3 = device.get("x86-64-v3")
    for sizes in ((1, 1, 1), (7, 1024, 3), (100, 3, 1000)):
        assert STRATEGY.applies(LinearWorkload(*sizes), v3) is None


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    workloads = [LinearWorkload(1, 37, 50), LinearWorkload(5, 9, 14, Activation("gelu")), LinearWorkload(3, 6, 2)]
    cases = []
    for workload in map(emulated.typed, workloads):
        tiles = STRATEGY.tiles(workload, emulated.device, 1)
        cases += [make_case(workload, STRATEGY, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    check_emulated(cases, emulated.device)
