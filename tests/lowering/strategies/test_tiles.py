"""Tiles of rows: the register tile that fits, and the rows of a task."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sepwise.lowering.cost import register_tiles
from sepwise.lowering.device import Device, get
from sepwise.lowering.strategies.dense import DenseStrategy
from sepwise.lowering.strategies.packing import input_rows_bytes
from sepwise.lowering.strategies.tiles import NEAR_FASTEST, RowTile, grains, little_staged_bytes, rank_staging, row_tiles
from sepwise.lowering.workload import ConvWorkload, Stage


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_sizes_are_positive(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(AssertionError):
        RowTile(*sizes)


def test_fitting_is_the_register_tiles(every_device: Mapping[str, Device]) -> None:
    """More accumulators than a device has registers spill; one always fits, whatever the rows."""
    for device in every_device.values():
        assert RowTile(100, 1, 1).fits(device)
        assert not RowTile(1, device.vector_registers + 1, 1).fits(device)
        assert not RowTile(1, 1, device.vector_registers + 1).fits(device)


def test_rows_are_even_shares_of_the_height(every_device: Mapping[str, Device]) -> None:
    for device in every_device.values():
        tiles = row_tiles(device, 7, 9, 2, staged_row_bytes=0)
        assert {tile.rows for tile in tiles} == {1, 2, 3, 4, 7}, "5 and 6 rows leave a task with as much as 4 do"
        pairs = register_tiles(device, 9, 2)
        assert {(tile.pixels, tile.oc_vectors) for tile in tiles} == set(pairs)
        assert len(tiles) == 5 * len(pairs)
        assert all(tile.fits(device) for tile in tiles)


def test_staged_rows_stay_in_the_second_level_cache(every_device: Mapping[str, Device]) -> None:
    for device in (each for each in every_device.values() if each.l2_bytes):
        quarter = row_tiles(device, 8, 4, 1, staged_row_bytes=device.l2_bytes / 4)
        assert max(tile.rows for tile in quarter) < 4
        huge = row_tiles(device, 8, 4, 1, staged_row_bytes=2 * device.l2_bytes)
        assert {tile.rows for tile in huge} == {1}, "a single row is always allowed"


@pytest.mark.parametrize(("count", "threads", "expected"), [(7, 1, [2, 4, 7]), (7, 2, [2, 4, 7]), (3, 4, [3]), (1, 1, [1])])
def test_tasks_have_all_tiles_or_an_even_share(count: int, threads: int, expected: list[int]) -> None:
    assert grains(count, threads) == expected


def test_of_tiles_about_as_fast_those_that_stage_least_stand_first() -> None:
    cycles = {"fastest": 1000, "near": 1000 * NEAR_FASTEST, "slow": 1000 * NEAR_FASTEST + 1, "slower": 1200}
    staged = {"fastest": 900, "near": 800, "slow": 100, "slower": 0}
    ranked = rank_staging(reversed(cycles), cycles.__getitem__, staged.__getitem__)
    assert ranked == ["near", "fastest", "slow", "slower"]
    ranked = rank_staging(cycles, cycles.__getitem__, staged.__getitem__, near=1.2, little_bytes=100)
    assert ranked == ["slow", "slower", "near", "fastest"]


def test_large_caches_do_not_make_tasks_of_whole_images() -> None:
    """What stays in level 2 is read at one rate: by cycles alone whole images would be staged, and lie in the arena."""
    pipes = {"fma_ports": 1, "load_ports": 1, "issue_width": 6, "l2_bytes_per_cycle": 32.0, "memory_bytes_per_cycle": 32.0}
    device = replace(get("x86-64-v4"), l1d_bytes=32 << 10, l2_bytes=1 << 20, **pipes)
    one, two = (1, 1), (2, 2)
    stage = Stage(3, 16, 1, (3, 3), two, one, one, one)
    workload = ConvWorkload(1, (224, 224), (stage,), False, None, 0, 16)
    first, *others = DenseStrategy().tiles(workload, device, 1)
    fewest = min((first, *others), key=lambda tile: DenseStrategy().predicted_cycles(workload, device, 1, tile))
    assert fewest.rows == 112
    assert input_rows_bytes(workload, first.rows) <= little_staged_bytes(device) < input_rows_bytes(workload, fewest.rows)
