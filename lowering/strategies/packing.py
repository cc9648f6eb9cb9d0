"""How tensors lie in memory for the strategies; weights are packed once at compile time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sepwise.lowering import compute
from sepwise.lowering.graph import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sepwise.lowering.workload import ConvWorkload, Stage

__all__ = ["boundary_bytes", "conv_packer", "input_rows_bytes", "oc_pack", "pack_bias", "pack_weight", "true_shapes"]


def oc_pack(blocks: int, oc_vectors: int) -> int:
    """Chooses how many output blocks lie together in the weights.

    Args:
        blocks: Output channel blocks.
        oc_vectors: Output vectors of a register tile.

    Returns:
        `oc_vectors` where tiles divide the blocks; 1 where the last tile is moved back and so starts anywhere.
    """
    return oc_vectors if blocks % oc_vectors == 0 else 1


def pack_weight(weight: np.ndarray, lanes: int, pack: int) -> np.ndarray:
    """Packs a convolution's weight.

    Args:
        weight: `(oc, ic / group, *kernel)`.
        lanes: Lanes of an output block.
        pack: Output blocks that lie together.

    Returns:
        `[oc_o / pack, *kernel, ic, oc_o % pack, oc_v]`, zero in the pad lanes.
    """
    channels, per_group, *kernel = weight.shape
    blocks = math.ceil(channels / lanes)
    padded = np.zeros((blocks * lanes, per_group, *kernel), weight.dtype)
    padded[:channels] = weight
    split = padded.reshape(blocks // pack, pack, lanes, per_group, *kernel)
    rank = len(kernel)
    axes = (0, *range(4, 4 + rank), 3, 1, 2)
    return np.ascontiguousarray(split.transpose(axes))


def pack_bias(bias: np.ndarray, lanes: int) -> np.ndarray:
    """Packs a bias.

    Args:
        bias: `(oc,)`.
        lanes: Lanes of an output block.

    Returns:
        `[oc_o, oc_v]`, zero in the pad lanes.
    """
    blocks = math.ceil(len(bias) / lanes)
    padded = np.zeros(blocks * lanes, bias.dtype)
    padded[: len(bias)] = bias
    return padded.reshape(blocks, lanes)


def conv_packer(
    workload: ConvWorkload, packs: Sequence[int]
) -> Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], list[np.ndarray]]:
    """Makes the packing function of a chain.

    Args:
        workload: The chain.
        packs: For each stage the output blocks that lie together.

    Returns:
        A function from each stage's weight and bias to the kernel's constants.
    """

    def pack(stages: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        constants = []
        for (weight, bias), together in zip(stages, packs, strict=True):
            constants.append(pack_weight(weight, workload.output_lanes, together))
            constants.append(pack_bias(bias, workload.output_lanes))
        return constants

    return pack


def true_shapes(
    workload: ConvWorkload, packs: Sequence[int], *, flat: bool = False
) -> dict[str, tuple[int, ...]]:
    """Gives the shapes in memory of a chain's parameters.

    Args:
        workload: The chain.
        packs: For each stage the output blocks that lie together.
        flat: Whether the spatial axes are one, and the kernel has none.

    Returns:
        Shapes by parameter name.
    """
    lanes = workload.output_lanes
    spatials = [(math.prod(spatial),) if flat else spatial for spatial in workload.spatials]
    first, last = workload.stages[0], workload.stages[-1]
    output = Layout(lanes).physical_shape((workload.batch, last.out_channels, *spatials[-1]))
    shapes = {
        "data": Layout(workload.input_lanes).physical_shape((workload.batch, first.in_channels, *spatials[0])),
        "residual": output,
        f"output{len(workload.stages) - 1}": output,
    }
    for index, (stage, pack) in enumerate(zip(workload.stages, packs, strict=True)):
        shapes[f"weight{index}"] = _weight_shape(stage, lanes, pack, flat=flat)
        shapes[f"bias{index}"] = (math.ceil(stage.out_channels / lanes), lanes)
    return shapes


def boundary_bytes(workload: ConvWorkload) -> tuple[int, int]:
    """Gives the bytes of a chain's input and of its output as they lie in memory.

    Args:
        workload: The chain.
    """
    first = (workload.batch, workload.stages[0].in_channels, *workload.spatial)
    tensors = ((workload.input_lanes, first), (workload.output_lanes, workload.output_shape))
    read, written = (workload.dtypes.input_bytes * math.prod(Layout(lanes).physical_shape(shape)) for lanes, shape in tensors)
    return read, written


def input_rows_bytes(workload: ConvWorkload, rows: int) -> float:
    """Gives the bytes, as they lie in memory, of the padded input that some output rows of the first stage read.

    Args:
        workload: The chain.
        rows: Output rows.
    """
    stage = workload.stages[0]
    *outer, _, width = workload.spatials[1]
    extents = compute.input_extents(stage, (*(1 for _ in outer), rows, width))
    shape = Layout(workload.input_lanes).physical_shape((1, stage.in_channels, *extents))
    return float(workload.dtypes.input_bytes) * math.prod(shape)


def _weight_shape(stage: Stage, lanes: int, pack: int, *, flat: bool) -> tuple[int, ...]:
    """`[oc_o / pack, *kernel, ic, oc_o % pack, oc_v]`."""
    blocks = math.ceil(stage.out_channels / lanes)
    kernel = () if flat else stage.kernel
    return (blocks // pack, *kernel, stage.in_channels_per_group, pack, lanes)
