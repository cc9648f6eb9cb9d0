"""The KernelGraph: what is computed by one call, on which tensors, in which layout.

After import it is the only intermediate representation: passes over it (layout assignment, strategy choice,
memory plan) read and write the classes below and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sepwise.lowering.workload import Workload

__all__ = ["Kernel", "KernelGraph", "Layout", "TensorType", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a logical tensor `(n, c, *spatial)` lies in memory.

    Attributes:
        lanes: 0 for plain row-major order of the logical shape. Otherwise channels are blocked:
            `(n, ceil(c / lanes), *spatial, lanes)`; the lanes past `c` are undefined and never read by a
            reduction or an output.
    """

    lanes: int = 0

    @property
    def packed(self) -> bool:
        """Whether channels are blocked."""
        return self.lanes > 0

    def moves_nothing(self, other: Layout) -> bool:
        """Whether a tensor's elements lie in the same order in another layout: blocks of one channel are the plain order."""
        return max(self.lanes, 1) == max(other.lanes, 1)

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Gives the shape in memory of a tensor of the logical `shape`.

        Args:
            shape: Logical shape, `(n, c, *spatial)` for a packed layout.

        Returns:
            The physical shape, row-major.
        """
        if not self.packed:
            return shape
        n, channels, *spatial = shape
        return (n, math.ceil(channels / self.lanes), *spatial, self.lanes)

    def __str__(self) -> str:
        """Names the layout as the field does: `plain` or `NCHW16c`."""
        return f"NCHW{self.lanes}c" if self.packed else "plain"


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's logical shape, element type and layout.

    Attributes:
        shape: Logical shape, all dimensions known.
        dtype: numpy name of the element type.
        layout: How it lies in memory.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: Layout = PLAIN

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """The row-major shape in memory."""
        return self.layout.physical_shape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, pad lanes included."""
        return math.prod(self.physical_shape) * np.dtype(self.dtype).itemsize


@dataclass(slots=True)
class Kernel:
    """One call: a workload applied to named values.

    Attributes:
        name: Unique within the graph, a C identifier.
        workload: What is computed; keyed, drawn by tests, tuned.
        inputs: Names of the activations read.
        constants: Names in `KernelGraph.constants`, in the kernel's argument order after the inputs.
        outputs: Names of the values written.
        nodes: Names of the ONNX nodes that it computes, as the user named them.
    """

    name: str
    workload: Workload
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(slots=True)
class KernelGraph:
    """A network as kernels in topological order.

    Attributes:
        name: The model's name.
        inputs: Names of the network's inputs, plain layout.
        outputs: Names of the network's outputs, plain layout.
        values: Type of every activation.
        constants: Every constant, in the order of elements that its kernel reads.
        kernels: In execution order.
    """

    name: str
    inputs: list[str]
    outputs: list[str]
    values: dict[str, TensorType]
    constants: dict[str, np.ndarray]
    kernels: list[Kernel] = field(default_factory=list)


def pack(array: np.ndarray, lanes: int) -> np.ndarray:
    """Blocks the channels of `array`, zero in the pad lanes.

    Args:
        array: `(n, c, *spatial)`.
        lanes: Channels per block.

    Returns:
        `(n, ceil(c / lanes), *spatial, lanes)`, contiguous.
    """
    n, channels, *spatial = array.shape
    blocks = math.ceil(channels / lanes)
    padded = np.zeros((n, blocks * lanes, *spatial), array.dtype)
    padded[:, :channels] = array
    split = padded.reshape(n, blocks, lanes, *spatial)
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def unpack(array: np.ndarray, channels: int) -> np.ndarray:
    """Undoes `pack`.

    Args:
        array: `(n, blocks, *spatial, lanes)`.
        channels: Logical channels.

    Returns:
        `(n, channels, *spatial)`, contiguous.
    """
    n, blocks, *spatial, lanes = array.shape
    merged = np.moveaxis(array, -1, 2).reshape(n, blocks * lanes, *spatial)
    return np.ascontiguousarray(merged[:, :channels])
