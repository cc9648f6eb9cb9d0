"""The geometry of a convolution node, spelled out: defaults filled in and `auto_pad` resolved; and the pads of poolings."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.rewriting import Refusal, static_shape

__all__ = ["POOLS", "ConvGeometry", "explicit_geometry", "read_geometry", "read_pool_pads", "same_pads"]

POOLS = ("AveragePool", "LpPool", "MaxPool")
"""Operators of the standard domain whose windows move as a convolution's."""


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution's window moves; every tuple is over the spatial axes, in elements.

    Attributes:
        kernel_shape: Extent of the window.
        strides: Its step.
        pads: Zeros around the input: the begins of all axes, then the ends.
        dilations: Distance of neighbouring taps.
        group: Number of groups.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int

    def attributes(self) -> dict[str, ir.Attr]:
        """Returns the ONNX attributes that spell this geometry."""
        return {
            "dilations": ir.AttrInt64s("dilations", self.dilations),
            "group": ir.AttrInt64("group", self.group),
            "kernel_shape": ir.AttrInt64s("kernel_shape", self.kernel_shape),
            "pads": ir.AttrInt64s("pads", self.pads),
            "strides": ir.AttrInt64s("strides", self.strides),
        }

    def fits(self, extents: Sequence[int]) -> bool:
        """Tells whether the window is no larger than the padded input; shape inference rounds what is smaller up to one output.

        Args:
            extents: Of the input, spatial.
        """
        rank = len(self.kernel_shape)
        axes = zip(extents, self.pads[:rank], self.pads[rank:], self.kernel_shape, self.dilations, strict=True)
        return all(size + begin + end > (kernel - 1) * dilation for size, begin, end, kernel, dilation in axes)


def same_pads(
    input_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """Resolves SAME padding: as many zeros as make the output ceil(input / stride).

    Args:
        input_shape: Spatial extents of the input.
        kernel_shape: Extents of the window.
        strides: Its steps.
        dilations: Its dilations.
        upper: True if the odd zero goes to the end (SAME_UPPER).

    Returns:
        The pads in ONNX order.
    """
    begins, ends = [], []
    for extent, kernel, stride, dilation in zip(input_shape, kernel_shape, strides, dilations, strict=True):
        outputs = -(-extent // stride)
        total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - extent)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends)


def explicit_geometry(node: ir.Node) -> bool:
    """Tells whether a Conv node already spells out its whole geometry."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    return auto_pad == "NOTSET" and all(
        name in node.attributes for name in ("kernel_shape", "strides", "pads", "dilations", "group")
    )


def read_geometry(node: ir.Node) -> ConvGeometry | Refusal:
    """Reads the geometry of a Conv node.

    Args:
        node: A Conv; its weight's shape must be known, with SAME padding also its input's.

    Returns:
        The geometry, or what is missing to know it.
    """
    name = node.name or ""
    weight_shape = static_shape(node.inputs[1])
    kernel = node.attributes.get_ints("kernel_shape")
    if kernel is None:
        if weight_shape is None:
            return Refusal(f"the weight shape of Conv '{name}' is not known", name)
        kernel = weight_shape[2:]
    rank = len(kernel)
    strides = tuple(node.attributes.get_ints("strides") or (1,) * rank)
    dilations = tuple(node.attributes.get_ints("dilations") or (1,) * rank)
    pads = _pads(node, kernel, strides, dilations)
    if isinstance(pads, Refusal):
        return pads
    return ConvGeometry(tuple(kernel), strides, pads, dilations, node.attributes.get_int("group", 1) or 1)


def read_pool_pads(node: ir.Node) -> tuple[int, ...] | Refusal:
    """Reads what surrounds the input of a pooling over windows.

    Args:
        node: One of `POOLS`; with SAME padding its input's shape must be known.

    Returns:
        The pads in ONNX order, or what is missing to know them.
    """
    kernel = node.attributes["kernel_shape"].as_ints()
    ones = (1,) * len(kernel)
    strides, dilations = (tuple(node.attributes.get_ints(name) or ones) for name in ("strides", "dilations"))
    return _pads(node, kernel, strides, dilations)


def _pads(
    node: ir.Node, kernel: Sequence[int], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...] | Refusal:
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad == "NOTSET":
        return tuple(node.attributes.get_ints("pads") or (0,) * (2 * len(kernel)))
    if auto_pad == "VALID":
        return (0,) * (2 * len(kernel))
    input_shape = static_shape(node.inputs[0])
    if input_shape is None:
        return Refusal(f"{node.op_type} '{node.name}' has auto_pad={auto_pad} and its input shape is not known", node.name or "")
    return same_pads(input_shape[2:], tuple(kernel), strides, dilations, upper=auto_pad == "SAME_UPPER")
