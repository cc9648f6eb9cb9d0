"""Tiles that several strategies draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.cost import register_tile_fits

if TYPE_CHECKING:
    from sepwise.lowering.device import Device

__all__ = ["RowTile"]


@dataclass(frozen=True, slots=True)
class RowTile:
    """Sizes of a kernel that computes some rows of all output channels in one task.

    Attributes:
        rows: Output rows of one task.
        pixels: Output pixels in registers, all of one row.
        oc_vectors: Output channel vectors in registers.
    """

    rows: int
    pixels: int
    oc_vectors: int

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.rows, self.pixels, self.oc_vectors) >= 1

    def fits(self, device: Device) -> bool:
        """Whether the register tile compiles without spills."""
        return register_tile_fits(device, self.pixels, self.oc_vectors)
