"""Transposed convolution as a convolution with more channels and a rearrangement of pixels.

With stride `s`, output position `y + pad = s * q + a` of phase `a < s` receives

    out[y] = sum over j: x[q - j] * w[a + s * j]

so all phases together are one convolution of kernel `ceil(k / s)` over the input, its taps reversed and its output
channels `s * s` times as many, whose channel `(phase, o)` at `q` is pixel `s * q + phase - pad` of channel `o`
(Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import te, tirx

from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.workload import Stage

if TYPE_CHECKING:
    from sepwise.passes.vocabulary import Activation

__all__ = ["Transposed"]


@dataclass(frozen=True, slots=True)
class Transposed:
    """A transposed convolution of one group without dilation; spatial tuples have rank 2 or 3.

    Attributes:
        input_shape: `(n, c, *spatial)`.
        output_shape: `(n, o, *spatial)`.
        kernel: Kernel size.
        strides: Strides.
        pads_begin: Elements cut off before the first output element.
        activation: Applied to the output, or None.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    activation: Activation | None

    @property
    def taps(self) -> tuple[int, ...]:
        """Kernel of the convolution, `ceil(k / s)` on each axis."""
        return tuple(math.ceil(k / s) for k, s in zip(self.kernel, self.strides, strict=True))

    @property
    def phases(self) -> list[tuple[int, ...]]:
        """Every phase, row-major."""
        return list(itertools.product(*(range(s) for s in self.strides)))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions `q` of the convolution's output on each axis."""
        return tuple(
            (extent + pad - 1) // stride + 1
            for extent, pad, stride in zip(self.output_shape[2:], self.pads_begin, self.strides, strict=True)
        )

    def stage(self) -> Stage:
        """Gives the convolution.

        Returns:
            A dense or pointwise stage with `len(phases)` times the output channels.
        """
        rank = len(self.kernel)
        begin = tuple(tap - 1 for tap in self.taps)
        end = tuple(q - extent for q, extent in zip(self.positions, self.input_shape[2:], strict=True))
        return Stage(
            in_channels=self.input_shape[1],
            out_channels=self.output_shape[1] * len(self.phases),
            groups=1,
            kernel=self.taps,
            strides=(1,) * rank,
            pads_begin=begin,
            pads_end=end,
            dilations=(1,) * rank,
            activation=self.activation,
        )

    def weights(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rearranges weight and bias for `stage`.

        Args:
            weight: `(c, o, *kernel)`.
            bias: `(o,)`.

        Returns:
            `(phases * o, c, *taps)` and `(phases * o,)`.
        """
        inputs, outputs = weight.shape[:2]
        result = np.zeros((len(self.phases), outputs, inputs, *self.taps), weight.dtype)
        for index, phase in enumerate(self.phases):
            for tap in np.ndindex(*self.taps):
                source = tuple(
                    a + s * (count - 1 - t)
                    for a, s, count, t in zip(phase, self.strides, self.taps, tap, strict=True)
                )
                if all(position < k for position, k in zip(source, self.kernel, strict=True)):
                    result[(index, slice(None), slice(None), *tap)] = weight[(slice(None), slice(None), *source)].T
        return result.reshape(-1, inputs, *self.taps), np.tile(bias, len(self.phases))

    def subpixels(self) -> TensorType:
        """The convolution's output, plain."""
        shape = (self.output_shape[0], self.output_shape[1] * len(self.phases), *self.positions)
        return TensorType(shape)

    def rearrangement(self) -> GenericWorkload:
        """Gives the kernel that puts every pixel in its place.

        Returns:
            A workload from `subpixels` to the output.
        """
        channels = self.output_shape[1]
        data = te.placeholder(self.subpixels().shape, name="data")

        def pixel(n: tirx.Var, o: tirx.Var, *spatial: tirx.Var) -> tirx.PrimExpr:
            phase = 0
            position: list[tirx.PrimExpr] = []
            for axis, pad, stride in zip(spatial, self.pads_begin, self.strides, strict=True):
                phase = phase * stride + tirx.floormod(axis + pad, stride)
                position.append(tirx.floordiv(axis + pad, stride))
            return data[(n, phase * channels + o, *position)]

        output = te.compute(self.output_shape, pixel, name="subpixel")
        function = te.create_prim_func([data, output])
        signature = f"subpixel:{self.output_shape}{self.strides}{self.pads_begin}"
        return GenericWorkload(function, ("DepthToSpace",), 0, signature, (Layout(),), (Layout(),))

