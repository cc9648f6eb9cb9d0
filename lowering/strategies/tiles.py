"""Tiles that several strategies draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.cost import CACHE_SHARE, register_tile_fits, register_tiles

if TYPE_CHECKING:
    from sepwise.lowering.device import Device

__all__ = ["MOST_UNROLLED_FMAS", "RowTile", "grains", "row_shares", "row_tiles"]

MOST_UNROLLED_FMAS = 256
"""Multiply-adds of one tile that are written out one by one: beyond, its taps or channels stay a loop."""


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
