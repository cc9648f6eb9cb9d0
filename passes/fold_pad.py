"""Folds a Pad of zeros into the padding of the convolution that it feeds."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.geometry import read_geometry
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_array,
    is_operator,
    original_nodes,
    replace_with_input,
    set_original_nodes,
    sole_use_refusal,
)

__all__ = ["FoldPadPass"]


@dataclass(frozen=True, eq=False)
class PaddedConv:
    """A Pad and the convolution that takes over its zeros.

    Attributes:
        pad: The Pad.
        conv: The Conv.
        pads: The convolution's new pads, in ONNX order.
    """

    pad: ir.Node
    conv: ir.Node
    pads: tuple[int, ...]


class FoldPadPass(RewritePass[PaddedConv]):
    """Adds the zeros of a Pad to the pads of the Conv behind it.

        Conv(Pad(x, p), pads=q) = Conv(x, pads=p + q)

    Class of the rewrite: `exact`.

    Fires when:
        1. a Pad of constant zeros, on spatial axes only, feeds one Conv as its data and nothing else.

    Refuses when:
        1. the mode is not `constant`, the value is not 0, or pads, value or axes are not constant;
        2. it pads the batch or the channels, or crops (negative pads);
        3. its output has a second consumer or is a graph output;
        4. the convolution's SAME padding cannot be resolved.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fold_pad"
    summary = "folded %d Pad"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every Pad that feeds a Conv."""
        for node in graph:
            if is_operator(node, "Pad") and any(use.idx == 0 and is_operator(use.node, "Conv") for use in node.outputs[0].uses()):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> PaddedConv | Refusal:
        """Decides about one Pad."""
        name = node.name or ""
        mode = node.attributes.get_string("mode", "constant")
        if mode != "constant":
            return Refusal(f"its mode is {mode}, not constant", name)
        conv = next(use.node for use in node.outputs[0].uses() if use.idx == 0 and is_operator(use.node, "Conv"))
        refusal = sole_use_refusal(node.outputs[0], node, conv)
        if refusal is not None:
            return Refusal(refusal.reason, name)
        amounts = _amounts(node)
        if isinstance(amounts, Refusal):
            return amounts
        geometry = read_geometry(conv)
        if isinstance(geometry, Refusal):
            return Refusal(geometry.reason, name)
        rank = len(geometry.kernel_shape)
        begins, ends = amounts[: rank + 2], amounts[rank + 2 :]
        if any(begins[:2]) or any(ends[:2]):
            return Refusal("it pads the batch or the channels", name)
        if min(amounts) < 0:
            return Refusal(f"it crops: pads {amounts}", name)
        added = (*begins[2:], *ends[2:])
        return PaddedConv(node, conv, tuple(old + new for old, new in zip(geometry.pads, added, strict=True)))

    def rewrite(self, model: ir.Model, match: PaddedConv) -> None:
        """Moves the zeros into the convolution."""
        conv, pad = match.conv, match.pad
        source = pad.inputs[0]
        assert source is not None, "the checker requires the input"
        own, gone = original_nodes(conv)[0], original_nodes(pad)[0]
        conv.attributes.pop("auto_pad", None)
        conv.attributes["pads"] = ir.AttrInt64s("pads", match.pads)
        replace_with_input(pad, source, keep_name=False)
        set_original_nodes(conv, [(*gone, *own)])


def _amounts(node: ir.Node) -> tuple[int, ...] | Refusal:
    """Reads the pads of all axes: the begins, then the ends."""
    name = node.name or ""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if "pads" in node.attributes:  # before operator set 11
        if node.attributes.get_float("value", 0.0) != 0:
            return Refusal("it pads with another value than 0", name)
        return tuple(node.attributes["pads"].as_ints())
    pads = constant_array(node.inputs[1])
    if pads is None:
        return Refusal("its pads are not constant", name)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        value = constant_array(node.inputs[2])
        if value is None:
            return Refusal("its value is not constant", name)
        if value.any():
            return Refusal(f"it pads with {float(value.reshape(-1)[0]):g}, not 0", name)
    amounts = [int(amount) for amount in pads]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant_array(node.inputs[3])
        if axes is None or shape is None:
            return Refusal("its axes are not constant", name)
        rank = len(shape)
        full = [0] * (2 * rank)
        for index, axis in enumerate(int(axis) % rank for axis in axes):
            full[axis], full[rank + axis] = amounts[index], amounts[len(axes) + index]
        amounts = full
    return tuple(amounts)
