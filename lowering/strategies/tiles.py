"""Tiles that several strategies draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.cost import CACHE_SHARE, register_tile_fits, register_tiles
from sepwise.lowering.strategies.base import TileT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sepwise.lowering.device import Device

__all__ = [
    "MOST_UNROLLED_FMAS",
    "NEAR_FASTEST",
    "RowTile",
    "grains",
    "little_staged_bytes",
    "rank_staging",
    "row_shares",
    "row_tiles",
]

MOST_UNROLLED_FMAS = 256
"""Multiply-adds of one tile that are written out one by one: beyond, its taps or channels stay a loop."""

NEAR_FASTEST = 1.01
"""Predicted cycles over the fewest up to which tiles are ranked by what they stage."""

LITTLE_SHARE = 0.25
"""Of level 2, up to which it is not worth a slower tile that less is staged. Where single rows were preferred because all of an
image's took more than level 1, mobilenet_v2 took 1.03 times as long on a Zen 4."""


@dataclass(frozen=True, slots=True)
class RowTile:
    """Sizes of a kernel that computes some rows of all its output channels in one task.

    Attributes:
        rows: Output rows of one task.
        pixels: Output pixels in registers, all of one row.
        oc_vectors: Output channel vectors in registers.
        adjacent: Whether the inputs of pixels lie side by side.
    """

    rows: int
    pixels: int
    oc_vectors: int
    adjacent: bool = False

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.pixels, self.oc_vectors) >= 1

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.pixels, self.oc_vectors, adjacent=self.adjacent)


def row_tiles(
    device: Device, height: int, width: int, blocks: int, *, staged_row_bytes: float, adjacent: bool = False
) -> list[RowTile]:
    """Lists the tiles of a kernel over rows: every register tile that fits, times the even shares of the height.

    Args:
        device: Gives registers and caches.
        height: Output rows.
        width: Output pixels of a row.
        blocks: Output channel vectors that one task computes side by side.
        staged_row_bytes: What a task stages for each of its rows, 0 for nothing.
        adjacent: Whether the inputs of pixels lie side by side.

    Returns:
        Tiles whose staged rows fit the second-level cache; a single row is always among them.
    """
    return [
        RowTile(rows, pixels, oc_vectors, adjacent)
        for rows in row_shares(device, height, staged_row_bytes=staged_row_bytes)
        for pixels, oc_vectors in register_tiles(device, width, blocks, adjacent=adjacent)
    ]


def row_shares(device: Device, height: int, *, staged_row_bytes: float) -> list[int]:
    """Lists how many rows one task may compute: the even shares of the height.

    Args:
        device: Gives the caches.
        height: Output rows.
        staged_row_bytes: What a task stages for each of its rows, 0 for nothing.

    Returns:
        Ascending counts whose staged rows fit the second-level cache; 1 is always among them.
    """
    most_rows = CACHE_SHARE * device.l2_bytes / staged_row_bytes if staged_row_bytes else height
    shares = {math.ceil(height / tasks) for tasks in range(1, height + 1)}
    return [rows for rows in sorted(shares) if rows <= max(most_rows, 1)]


def grains(count: int, threads: int) -> list[int]:
    """Lists how many of a kernel's tiles one task may have: all of an image, or so few that each worker has up to four tasks.

    Args:
        count: Tiles of an image.
        threads: Workers.

    Returns:
        Tiles of a task, fewest first.
    """
    return sorted({math.ceil(count / share) for share in (1, threads, 2 * threads, 4 * threads) if share <= count})


def rank_staging(
    tiles: Iterable[TileT],
    cycles: Callable[[TileT], float],
    staged_bytes: Callable[[TileT], float],
    *,
    near: float = NEAR_FASTEST,
    little_bytes: float = 0.0,
) -> list[TileT]:
    """Orders tiles by their cycles; but of those that are about as fast as the fastest, the ones that stage least stand first.

    What a task stages lies in the arena, and displaces from the caches what the next kernel reads.

    Args:
        tiles: In the order that equal ones keep.
        cycles: Predicted ones of a tile.
        staged_bytes: What a task of a tile stages.
        near: Cycles over the fewest that count as about as fast.
        little_bytes: Up to which there is nothing to save.

    Returns:
        The same tiles.
    """
    by_cycles = sorted(((cycles(tile), tile) for tile in tiles), key=lambda pair: pair[0])
    limit = near * by_cycles[0][0]

    def staged(pair: tuple[float, TileT]) -> float:
        return max(staged_bytes(pair[1]), little_bytes) if pair[0] <= limit else math.inf

    return [tile for _, tile in sorted(by_cycles, key=staged)]


def little_staged_bytes(device: Device) -> float:
    """Gives what a task may stage before tiles that stage less are preferred: of level 2 a share that it hardly misses."""
    return max(float(device.l1d_bytes), LITTLE_SHARE * device.l2_bytes)
