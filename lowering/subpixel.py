"""Transposed convolution as convolutions of the input and a rearrangement of pixels.

With stride `s` and dilation `d`, output position `y + pad = s * q + a` of phase `a < s` receives

    out[y] = sum over taps t with d * t = a (mod s):  x[q - (d * t - a) / s] * w[t]

so each phase is a convolution of stride 1 over the input (Shi et al. 2016, "Is the deconvolution layer the same as a
convolutional layer?"). Its taps lie `d / gcd(s, d)` pixels apart; a phase without taps is the bias alone. Neighbouring phases can
share one convolution with so many times the output channels, its taps those of all of them:

    s = 2, d = 1, k = 3:  phase 0 reads q, q - 1;  phase 1 reads q        together 4 channels of 2 x 2 taps in two dimensions,
                                                                          apart 2 x 2, 2 x 1, 1 x 2 and 1 x 1 taps

Together the input is read once and small channel counts fill vectors; apart no tap is zero. Both are plans, and whoever
imports chooses. Convolutions with groups keep each phase apart, so that channels stay in their lanes.
The last kernel puts pixel `q` of phase `a` to `s * q + a - pad`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te, tirx

from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.vector_math import activate
from sepwise.lowering.workload import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.passes.vocabulary import Activation

__all__ = ["PhaseConv", "Transposed", "crop_begins"]


def crop_begins(
    output: Sequence[int], full: Sequence[int], output_padding: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """Finds the elements cut off before the output where its size is given instead of pads.

    Args:
        output: Spatial shape of the output.
        full: Spatial shape of all that the input spreads to, `(size - 1) * stride + dilation * (kernel - 1) + 1`.
        output_padding: Of the operator.
        upper: Whether an odd element is cut off at the end (`SAME_UPPER`), not at the beginning.

    Returns:
        One number for each axis.
    """
    totals = [max(f + extra - size, 0) for size, f, extra in zip(output, full, output_padding, strict=True)]
    return tuple(total // 2 if upper else total - total // 2 for total in totals)


@dataclass(frozen=True, slots=True)
class _AxisPhases:
    """Neighbouring phases of one axis that one convolution computes.

    Attributes:
        first: The first phase.
        taps: For each phase the distances `q - i` that it reads and the weight's tap at each.
        nearest: Least distance.
        step: Distance between taps.
        count: Taps.
    """

    first: int
    taps: tuple[dict[int, int], ...]
    nearest: int
    step: int
    count: int

    @classmethod
    def sharing(cls, first: int, taps: Sequence[dict[int, int]]) -> _AxisPhases:
        """The convolution's axis for phases from `first` on; at least one of them has a tap."""
        distances = sorted({distance for phase in taps for distance in phase})
        nearest, farthest = distances[0], distances[-1]
        step = math.gcd(*(distance - nearest for distance in distances)) or 1
        return cls(first, tuple(taps), nearest, step, (farthest - nearest) // step + 1)

    def place(self, distance: int) -> int:
        """The convolution's tap that reads at a distance; its taps go forward."""
        return self.count - 1 - (distance - self.nearest) // self.step


@dataclass(frozen=True, slots=True)
class PhaseConv:
    """One convolution of a plan; its output channels are `(group, phases row-major, channel of the group)`.

    Attributes:
        transposed: What it is part of.
        axes: Its phases and taps, by axis.
    """

    transposed: Transposed
    axes: tuple[_AxisPhases, ...]

    @property
    def phases(self) -> int:
        """Phases that it computes."""
        return math.prod(len(axis.taps) for axis in self.axes)

    def stage(self) -> Stage:
        """Gives the convolution.

        Returns:
            A stage of at least two spatial axes with `phases` times the output channels.
        """
        whole, positions = self.transposed, self.transposed.positions
        begins = [axis.nearest + axis.step * (axis.count - 1) for axis in self.axes]
        sizes = whole.input_shape[2:]
        ends = [q - size - axis.nearest for q, size, axis in zip(positions, sizes, self.axes, strict=True)]
        lift = len(sizes) == 1
        return Stage(
            in_channels=whole.input_shape[1],
            out_channels=whole.output_shape[1] * self.phases,
            groups=whole.groups,
            kernel=(1,) * lift + tuple(axis.count for axis in self.axes),
            strides=(1,) * (lift + len(sizes)),
            pads_begin=(0,) * lift + tuple(begins),
            pads_end=(0,) * lift + tuple(ends),
            dilations=(1,) * lift + tuple(axis.step if axis.count > 1 else 1 for axis in self.axes),
            activation=whole.activation,
            phase=True,
        )

    def weights(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rearranges weight and bias for `stage`.

        Args:
            weight: `(c, o / groups, *kernel)`.
            bias: `(o,)`.

        Returns:
            `(phases * o, c / groups, *taps)` with at least two axes of taps, and `(phases * o,)`.
        """
        groups, rank = self.transposed.groups, len(self.axes)
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        taps = tuple(axis.count for axis in self.axes)
        by_group = weight.reshape(groups, inputs, outputs, *weight.shape[2:])
        result = np.zeros((groups, self.phases, outputs, inputs, *taps), weight.dtype)
        for index, phase in enumerate(itertools.product(*(axis.taps for axis in self.axes))):
            for reads in itertools.product(*(axis_taps.items() for axis_taps in phase)):
                places = tuple(axis.place(distance) for axis, (distance, _) in zip(self.axes, reads, strict=True))
                source: tuple[Any, ...] = (..., *(tap for _, tap in reads))
                target: tuple[Any, ...] = (slice(None), index, ..., *places)
                result[target] = np.swapaxes(by_group[source], 1, 2)
        lifted = (1,) * (rank == 1) + taps
        many = np.broadcast_to(bias.reshape(groups, 1, outputs), (groups, self.phases, outputs))
        return result.reshape(groups * self.phases * outputs, inputs, *lifted), many.reshape(-1)

    def output(self) -> TensorType:
        """The convolution's output, plain."""
        whole = self.transposed
        return TensorType((whole.output_shape[0], whole.output_shape[1] * self.phases, *whole.positions))


@dataclass(frozen=True, slots=True)
class Transposed:
    """A transposed convolution; spatial tuples have its rank, 1 or more.

    Attributes:
        input_shape: `(n, c, *spatial)`.
        output_shape: `(n, o, *spatial)`.
        kernel: Kernel size.
        strides: Strides.
        dilations: Dilations.
        pads_begin: Elements cut off before the first output element.
        groups: Groups.
        activation: Applied to the output, or None.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    groups: int
    activation: Activation | None

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions `q` of the convolutions' outputs on each axis."""
        return tuple(
            (extent + pad - 1) // stride + 1
            for extent, pad, stride in zip(self.output_shape[2:], self.pads_begin, self.strides, strict=True)
        )

    def plans(self) -> list[tuple[PhaseConv, ...]]:
        """Lists ways to compute it, each a set of convolutions whose phases are all that have taps.

        Returns:
            All phases together, and those apart that read at different distances; with groups each phase apart.
        """
        if self.groups > 1:
            return [self._plan([self._runs(axis, alone=True) for axis in range(len(self.kernel))])]
        together = [[self._reach(axis)] for axis in range(len(self.kernel))]
        apart = [self._runs(axis, alone=False) for axis in range(len(self.kernel))]
        return [self._plan(together), self._plan(apart)]

    def _plan(self, axes: Sequence[Sequence[_AxisPhases]]) -> tuple[PhaseConv, ...]:
        return tuple(PhaseConv(self, combination) for combination in itertools.product(*axes))

    def _taps(self, axis: int) -> list[dict[int, int]]:
        """For each phase of an axis the distances that it reads, and the weight's tap at each."""
        stride, dilation = self.strides[axis], self.dilations[axis]
        reach = [(tap, dilation * tap) for tap in range(self.kernel[axis])]
        return [
            {(at - phase) // stride: tap for tap, at in reach if (at - phase) % stride == 0} for phase in range(stride)
        ]

    def _reach(self, axis: int) -> _AxisPhases:
        """All phases from the first to the last that has taps."""
        taps = self._taps(axis)
        used = [phase for phase, found in enumerate(taps) if found]
        return _AxisPhases.sharing(used[0], taps[used[0] : used[-1] + 1])

    def _runs(self, axis: int, *, alone: bool) -> list[_AxisPhases]:
        """Runs of phases that read at the same distances, or each phase, without those that have no taps."""
        numbered = enumerate(self._taps(axis))
        runs = [
            list(run) for _, run in itertools.groupby(numbered, key=lambda x: x[0] if alone else frozenset(x[1]))
        ]
        return [_AxisPhases.sharing(run[0][0], [taps for _, taps in run]) for run in runs if run[0][1]]

    def rearrangement(self, plan: Sequence[PhaseConv]) -> GenericWorkload:
        """Gives the kernel that puts every pixel in its place.

        Args:
            plan: One of `plans`.

        Returns:
            A workload of the convolutions' outputs, and of the bias as a constant where some phase has no taps.
        """
        channels = self.output_shape[1] // self.groups
        sources = [te.placeholder(conv.output().shape, name=f"data{i}") for i, conv in enumerate(plan)]
        bias = None
        if sum(conv.phases for conv in plan) < math.prod(self.strides):
            bias = te.placeholder((self.output_shape[1],), name="bias")

        def pixel(n: tirx.Var, o: tirx.Var, *spatial: tirx.Var) -> tirx.PrimExpr:
            shifted = [axis + pad for axis, pad in zip(spatial, self.pads_begin, strict=True)]
            phases = [tirx.floormod(at, stride) for at, stride in zip(shifted, self.strides, strict=True)]
            position = [tirx.floordiv(at, stride) for at, stride in zip(shifted, self.strides, strict=True)]
            group, channel = (tirx.floordiv(o, channels), tirx.floormod(o, channels)) if self.groups > 1 else (0, o)
            value = None
            if bias is not None:
                value = activate(self.activation, bias[o])
            for conv, source in zip(plan, sources, strict=True):
                index, inside = group, []
                for axis, phase, stride in zip(conv.axes, phases, self.strides, strict=True):
                    last = axis.first + len(axis.taps)
                    index = index * len(axis.taps) + (phase - axis.first)
                    inside += [phase >= axis.first] * (axis.first > 0) + [phase < last] * (last < stride)
                read = source[(n, index * channels + channel, *position)]
                value = read if value is None else tirx.if_then_else(tirx.all(*inside), read, value)
            return value

        output = te.compute(self.output_shape, pixel, name="subpixel")
        constants = [] if bias is None else [bias]
        function = te.create_prim_func([*sources, *constants, output])
        geometry = [(axis.first, len(axis.taps)) for conv in plan for axis in conv.axes]
        signature = f"subpixel:{self.output_shape}{self.strides}{self.pads_begin}g{self.groups}{geometry}{self.activation}"
        plain = Layout()
        return GenericWorkload(function, ("DepthToSpace",), 0, signature, (plain,) * len(plan), (plain,), len(constants))
