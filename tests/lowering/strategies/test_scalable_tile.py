"""Register tiles of scalable vectors: what fits, and what a tile costs."""

from dataclasses import replace

import pytest

from sepwise.lowering import device
from sepwise.lowering.strategies.scalable_tile import ScalableTile, gather_slots, scalable_tiles, strip_cycles, strip_pixels


def test_registers_of_a_tile() -> None:
    v1 = device.get("neoverse-v1")
    assert ScalableTile(5, 5, 1).fits(v1)  # 25 sums, 5 inputs, 2 quads of weights
    assert not ScalableTile(5, 6, 1).fits(v1)
    assert not ScalableTile(6, 3, 1).fits(v1)  # inputs are in z0 to z7
    assert not ScalableTile(4, 2, 1).fits(v1)
    assert not ScalableTile(5, 5, 1, 5).fits(v1)  # nor indices of gathers
    assert ScalableTile(5, 4, 1, 5).fits(v1)
    with pytest.raises(AssertionError):
        ScalableTile(1, 0, 1)


def test_all_tiles_fit_and_have_each_share() -> None:
    v1 = device.get("neoverse-v1")
    tiles = scalable_tiles(v1, 4, [3, 9])
    assert all(tile.fits(v1) and tile.oc_vectors <= 4 for tile in tiles)
    assert len(tiles) == len(set(tiles)) == 2 * len(scalable_tiles(v1, 4, [3]))
    assert ScalableTile(5, 4, 9) in tiles


def test_larger_tiles_cost_less_a_pixel_and_channel() -> None:
    v1 = device.get("neoverse-v1")
    assert strip_pixels(v1, ScalableTile(5, 4, 1)) == 10

    def cost(vectors: int, oc_vectors: int) -> float:
        return strip_cycles(v1, ScalableTile(vectors, oc_vectors, 1), 64) / (vectors * oc_vectors)

    assert cost(5, 5) < cost(4, 4) < cost(2, 2) < cost(1, 1)


def test_a_gather_takes_a_load_for_each_quad() -> None:
    v1 = device.get("neoverse-v1")
    assert gather_slots(v1) == 2
    assert {tile.indices - tile.vectors for tile in scalable_tiles(v1, 4, [1], gathers=True)} == {0}
    loading = replace(v1, load_ports=0.1)
    assert strip_cycles(loading, ScalableTile(4, 4, 1, 4), 64) > strip_cycles(loading, ScalableTile(4, 4, 1), 64)
