"""What a strategy is: one way to compute a kind of workload on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from tvm import tirx

    from sepwise.lowering.device import Device
    from sepwise.lowering.workload import Workload

__all__ = ["Implementation", "Refusal", "Strategy", "Tile"]


class Tile(Protocol):
    """A strategy's choice of sizes: a frozen dataclass that checks its own divisibility."""

    def fits(self, device: Device) -> bool:
        """Whether registers and caches of the device hold it."""


TileT = TypeVar("TileT", bound=Tile)
WorkloadT_contra = TypeVar("WorkloadT_contra", bound="Workload", contravariant=True)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a strategy does not apply.

    Attributes:
        reason: One sentence.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Implementation:
    """A workload scheduled for a device.

    Attributes:
        function: Scheduled PrimFunc; parameters are inputs, constants, output.
        pack: Turns the ONNX weight and bias of each stage into the kernel's constants, in its argument order.
    """

    function: tirx.PrimFunc
    pack: Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], list[np.ndarray]]


class Strategy(Protocol, Generic[WorkloadT_contra, TileT]):
    """One implementation of a kind of workload; tiles come from one place and the tuner draws from the same.

    Attributes:
        name: What reports call it.
        direct: Whether it adds up the products of the definition and no others, so that NaN and infinities come out exactly
            where the definition has them; a transformed convolution (Winograd, FFT) is not direct.
    """

    name: str
    direct: bool

    def applies(self, workload: WorkloadT_contra, device: Device) -> Refusal | None:
        """Says why it cannot compute the workload on the device, or None where it can."""

    def tiles(self, workload: WorkloadT_contra, device: Device, threads: int) -> list[TileT]:
        """Lists the tiles it allows, the one it would pick first."""

    def predicted_cycles(self, workload: WorkloadT_contra, device: Device, threads: int, tile: TileT) -> float:
        """Predicts the cycles of one run with a tile."""

    def schedule(self, workload: WorkloadT_contra, device: Device, tile: TileT) -> Implementation:
        """Schedules the workload with a tile."""


AnyStrategy = Strategy[Any, Any]
