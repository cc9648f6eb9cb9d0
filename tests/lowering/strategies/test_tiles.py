"""Tiles of rows: the register tile that fits, and the rows of a task."""

from collections.abc import Mapping

import pytest

from sepwise.lowering.cost import register_tiles
from sepwise.lowering.device import Device
from sepwise.lowering.strategies.tiles import RowTile, grains, row_tiles


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
