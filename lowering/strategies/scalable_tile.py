"""The register tile of schedules that take inputs from lanes of scalable vectors, and what it costs.

# for ic_o: unrolled ic_i:                accumulators: `vectors` * oc_i scalable vectors, 25 of 32 for 5 x 5
#   unrolled oc_i, vectors: FMA by lane   one step: oc_i quads of weights, each in all segments
#                                         `vectors` inputs, loaded once for four steps

A vector holds four channels of `vscale` pixels (see `lowering.scalable`). The FMA by lane takes its inputs from the first eight
registers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sepwise.lowering import compute
from sepwise.lowering.cost import EPILOGUE_CYCLES, LOOP_INSTRUCTIONS, LOST_SHARE, TILE_OVERHEAD_CYCLES
from sepwise.lowering.scalable import QUAD_BYTES
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.workload import DTypes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import ConvWorkload

__all__ = ["ScalableTile", "gather_slots", "refuse_parted_quads", "scalable_tiles", "strip_cycles", "strip_pixels"]

MOST_VECTORS: Final = 5
"""Vectors of inputs that LLVM keeps in z0 to z7, of which alone a lane-indexed FMA takes lanes."""

LEAST_READERS: Final = 3
"""Quads of weights that have to read an input: for fewer LLVM gives z0 to z7 to accumulators, and moves the inputs."""


@dataclass(frozen=True, slots=True)
class ScalableTile:
    """Sizes of a kernel.

    Attributes:
        vectors: Vectors of output pixels in registers.
        oc_vectors: Quads of output channels in registers.
        share: What one task computes of an image: pixels, or rows where the kernel has taps.
        indices: Vectors of indices of gathers that are in registers, 0 where the pixels that neighbours read lie side by side.
    """

    vectors: int
    oc_vectors: int
    share: int
    indices: int = 0

    def __post_init__(self) -> None:
        """Checks that every size is positive."""
        assert min(self.vectors, self.oc_vectors, self.share, self.indices + 1) >= 1

    def fits(self, device: Device) -> bool:
        """Whether accumulators, inputs, two quads of weights and indices are registers."""
        live = self.vectors * self.oc_vectors + self.vectors + min(self.oc_vectors, 2) + self.indices
        most_vectors = MOST_VECTORS if self.oc_vectors >= LEAST_READERS else self.oc_vectors
        return self.vectors <= most_vectors and live <= device.vector_registers


def scalable_tiles(device: Device, blocks: int, shares: Sequence[int], *, gathers: bool = False) -> list[ScalableTile]:
    """Lists all register tiles that fit, with each share.

    Args:
        device: Its registers.
        blocks: Quads of output channels that there are.
        shares: What one task may compute.
        gathers: Whether the pixels that neighbours read lie apart.

    Returns:
        The tiles.
    """
    found = [
        ScalableTile(vectors, oc_vectors, share, vectors if gathers else 0)
        for vectors in range(1, MOST_VECTORS + 1)
        for oc_vectors in range(1, min(blocks, device.vector_registers) + 1)
        for share in shares
    ]
    return [tile for tile in found if tile.fits(device)]


def strip_cycles(device: Device, tile: ScalableTile, reduction: int) -> float:
    """Predicts the cycles of one register tile.

    Args:
        device: Its ports.
        tile: The sizes.
        reduction: Products of one sum.

    Returns:
        Cycles for multiply-adds, for loads of inputs and weights, and for the epilogue.
    """
    fmas, inputs = tile.vectors * tile.oc_vectors, tile.vectors / device.lanes
    loads = inputs + tile.oc_vectors
    others = loads + LOOP_INSTRUCTIONS / device.lanes
    gathered = inputs * gather_slots(device) if tile.indices else 0
    step = max(
        max(fmas, loads) / device.scalable_ports,
        gathered / device.load_ports,
        (fmas + gathered) / device.fma_ports,
        (fmas + others) / device.issue_width,
        device.fma_latency_cycles,
    )
    step += LOST_SHARE * others / device.issue_width
    return reduction * step + fmas * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES


def gather_slots(device: Device) -> int:
    """Counts the loads that a gather of quads is, and the slots of any vector port that it takes: one of each for a quad.

    So LLVM models Neoverse V1 (`V1Write_9c_2L_2V`).

    Args:
        device: Its vectors.

    Returns:
        The slots.
    """
    return device.scalable_bytes // QUAD_BYTES


def strip_pixels(device: Device, tile: ScalableTile) -> int:
    """Counts the output pixels of a register tile on the machine that stands for the target.

    Args:
        device: Its vectors.
        tile: The sizes.

    Returns:
        The pixels.
    """
    return tile.vectors * (device.scalable_bytes // QUAD_BYTES)


def refuse_parted_quads(workload: ConvWorkload, device: Device) -> Refusal | None:
    """Refuses devices without scalable vectors, chains, and what does not read whole quads of channels.

    Args:
        workload: The convolutions of one kernel.
        device: The target.

    Returns:
        Why, or None.
    """
    if not device.scalable_bytes:
        return Refusal("the device has no scalable vectors")
    if workload.dtypes != DTypes():
        return Refusal(f"elements are {workload.dtypes}")
    if len(workload.stages) != 1:
        return Refusal("one convolution at a time")
    stage, lanes = workload.stages[0], workload.output_lanes
    if compute.lane_source(stage, lanes) is not compute.LaneSource.BROADCAST:
        return Refusal("the lanes of a vector belong to different groups")
    if workload.input_lanes != lanes or math.gcd(stage.in_channels_per_group, lanes) != lanes:
        return Refusal("the channels of a pixel are not whole vectors")
    return None
