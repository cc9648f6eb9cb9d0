"""Workloads: what a kernel computes, as frozen descriptions.

A workload knows its multiply-accumulates and its `key`. Compute is generated from it, strategies are chosen for
it, tests draw it and tuning records are keyed by it. It knows no tile and no device, and of layouts only the
lanes of its operands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from sepwise.passes.vocabulary import Activation

__all__ = ["ConvKind", "ConvWorkload", "DTypes", "LinearWorkload", "Stage", "Workload"]


class Workload(Protocol):
    """What every workload can say of itself."""

    @property
    def kind(self) -> str:
        """The field's word for it, `depthwise+pointwise` for a chain."""

    @property
    def key(self) -> str:
        """Identifies the computation; equal keys, equal kernels."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates, pads counted as the field counts them."""


class ConvKind(Enum):
    """How input channels reach output channels."""

    DENSE = "dense"
    GROUPED = "grouped"
    DEPTHWISE = "depthwise"
    POINTWISE = "pointwise"


@dataclass(frozen=True, slots=True)
class DTypes:
    """Element types of a workload."""

    input: str = "float32"
    weight: str = "float32"
    accumulator: str = "float32"
    output: str = "float32"

    def __str__(self) -> str:
        """Gives the four types, one word where they agree."""
        kinds = (self.input, self.weight, self.accumulator, self.output)
        return kinds[0] if len(set(kinds)) == 1 else "-".join(kinds)

    @classmethod
    def all(cls, dtype: str) -> DTypes:
        """Everything in one type."""
        return cls(dtype, dtype, dtype, dtype)

    @property
    def input_bytes(self) -> int:
        """Bytes of one element of the input."""
        return np.dtype(self.input).itemsize


@dataclass(frozen=True, slots=True)
class Stage:
    """One convolution of a chain. Spatial tuples have the workload's spatial rank.

    Attributes:
        in_channels: Input channels.
        out_channels: Output channels.
        groups: Groups; `in_channels` for a depthwise stage.
        kernel: Kernel size.
        strides: Strides.
        pads_begin: Zero padding before the first element.
        pads_end: Zero padding behind the last element.
        dilations: Dilations.
        activation: Applied after the bias, or None.
        phase: Whether it makes phases of a transposed convolution (`lowering.subpixel`).
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    dilations: tuple[int, ...]
    activation: Activation | None = None
    phase: bool = False

    @property
    def kind(self) -> ConvKind:
        """Depthwise where each group has one input channel; pointwise where the kernel is one element."""
        if self.groups > 1:
            return ConvKind.DEPTHWISE if self.groups == self.in_channels else ConvKind.GROUPED
        return ConvKind.POINTWISE if math.prod(self.kernel) == 1 else ConvKind.DENSE

    @property
    def in_channels_per_group(self) -> int:
        """Length of the reduction over channels."""
        return self.in_channels // self.groups

    @property
    def out_channels_per_group(self) -> int:
        """The channel multiplier of a depthwise stage."""
        return self.out_channels // self.groups

    @property
    def padded(self) -> bool:
        """Whether any border is padded."""
        return any(self.pads_begin) or any(self.pads_end)

    @property
    def flat(self) -> bool:
        """Whether each output pixel reads just the input pixel of the same index."""
        return math.prod(self.kernel) == 1 and math.prod(self.strides) == 1 and not self.padded

    def output_spatial(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Gives the output's spatial shape.

        Args:
            spatial: The input's spatial shape.

        Returns:
            `(size + pads - dilation * (kernel - 1) - 1) // stride + 1` for each axis.
        """
        return tuple(
            (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
            for size, begin, end, dilation, kernel, stride in zip(
                spatial, self.pads_begin, self.pads_end, self.dilations, self.kernel, self.strides, strict=True
            )
        )

    def macs(self, spatial: tuple[int, ...]) -> int:
        """Counts multiply-accumulates for one image.

        Args:
            spatial: The input's spatial shape.

        Returns:
            Output elements times the length of the reduction.
        """
        outputs = self.out_channels * math.prod(self.output_spatial(spatial))
        return outputs * self.in_channels_per_group * math.prod(self.kernel)

    def __str__(self) -> str:
        """Gives the stage's part of a workload key."""
        axes = [
            f"{kernel}s{stride}p{begin}.{end}d{dilation}"
            for kernel, stride, begin, end, dilation in zip(
                self.kernel, self.strides, self.pads_begin, self.pads_end, self.dilations, strict=True
            )
        ]
        activation = "" if self.activation is None else f":{self.activation}"
        phase = "t" if self.phase else ""
        return f"{self.in_channels}>{self.out_channels}g{self.groups}{phase}[{','.join(axes)}]{activation}"


@dataclass(frozen=True, slots=True)
class ConvWorkload:
    """A chain of convolutions with an optional residual, each stage with its bias.

    Attributes:
        batch: Images.
        spatial: The input's spatial shape, rank 2 or 3 (a 1-D network has height 1).
        stages: In execution order.
        residual: Whether a tensor of the output's shape is added after the last stage's activation.
        post_activation: Applied after the residual, or None.
        input_lanes: Lanes of the packed input, 0 for a plain one.
        output_lanes: Lanes of the packed output and residual, 0 for plain ones.
        dtypes: Element types.
    """

    batch: int
    spatial: tuple[int, ...]
    stages: tuple[Stage, ...]
    residual: bool
    post_activation: Activation | None
    input_lanes: int
    output_lanes: int
    dtypes: DTypes = DTypes()

    @property
    def kind(self) -> str:
        """The stages' kinds, joined by `+`."""
        return "+".join(stage.kind.value for stage in self.stages)

    @property
    def spatials(self) -> list[tuple[int, ...]]:
        """Spatial shapes of the input and of each stage's output."""
        shapes = [self.spatial]
        for stage in self.stages:
            shapes.append(stage.output_spatial(shapes[-1]))
        return shapes

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Logical output shape `(n, c, *spatial)`."""
        return (self.batch, self.stages[-1].out_channels, *self.spatials[-1])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all stages."""
        return self.batch * sum(
            stage.macs(spatial) for stage, spatial in zip(self.stages, self.spatials, strict=False)
        )

    @property
    def key(self) -> str:
        """Identifies the computation; equal keys, equal kernels.

            conv/n1x9x9/13>13g13[3s1p0.1d1,3s1p0.1d1]:relu|13>21g1[1s1p0.0d1,1s1p0.0d1]+r:relu/l16.16/float32

        Batch and spatial shape; of each stage channels in and out, groups (`t` for phases of a transposed one), for each axis
        kernel, stride, pads before and behind, and dilation, and the activation; `+r` for a residual, with the activation
        behind it; lanes of input and output, 0 for a plain tensor; element types.
        """
        stages = "|".join(map(str, self.stages))
        tail = "+r" if self.residual else ""
        if self.post_activation is not None:
            tail += f":{self.post_activation}"
        spatial = "x".join(map(str, self.spatial))
        return f"conv/n{self.batch}x{spatial}/{stages}{tail}/l{self.input_lanes}.{self.output_lanes}/{self.dtypes}"


@dataclass(frozen=True, slots=True)
class LinearWorkload:
    """A matrix product with constant weights and a bias: Gemm, or MatMul of plain tensors.

    Attributes:
        rows: Rows of the input, all leading axes together.
        in_features: Length of the reduction.
        out_features: Columns of the output.
        activation: Applied after the bias, or None.
        dtypes: Element types.
    """

    rows: int
    in_features: int
    out_features: int
    activation: Activation | None = None
    dtypes: DTypes = DTypes()

    @property
    def kind(self) -> str:
        """Always `linear`."""
        return "linear"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.in_features * self.out_features

    @property
    def key(self) -> str:
        """Identifies the computation; equal keys, equal kernels."""
        activation = "" if self.activation is None else f":{self.activation}"
        return f"linear/{self.rows}x{self.in_features}>{self.out_features}{activation}/{self.dtypes}"
