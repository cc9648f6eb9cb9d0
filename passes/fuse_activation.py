"""Fuses an activation, and the numbers that scale and shift it, with the convolution that feeds it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.activations import scalar
from sepwise.passes.chains import conv_steps, read_activation
from sepwise.passes.functions import DATA, Step, joined, spell
from sepwise.passes.fused_operators import replace_by_fused
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_tensor,
    is_operator,
    only_consumer,
    original_nodes,
    sole_use_refusal,
)

__all__ = ["FuseActivationPass"]


@dataclass(frozen=True, eq=False)
class ActivatedConv:
    """A convolution and what is applied to its result.

    Attributes:
        nodes: The Conv, the activation node, and a Mul and an Add of numbers if they follow.
        steps: What they compute.
    """

    nodes: tuple[ir.Node, ...]
    steps: tuple[Step, ...]


class FuseActivationPass(RewritePass[ActivatedConv]):
    """Makes one FusedConv of a convolution and its activation, and of the numbers that this is multiplied by and added to.

        y = [s *] activation(W * x + b) [+ t]   ->   y = FusedConv(x, W, b)

    The function's body is the same nodes, so the rewrite is of the class `exact`. Where `fold_affine` could move s or t into
    the next convolution it has; what is left stands before one that pads, or before another operator (PP-LCNetV3).

    Fires when:
        1. an activation of the vocabulary reads the output of a Conv; a Mul by one finite number other than 0 that alone reads
           the activation, and an Add of one that alone reads this, are taken along.

    Refuses when:
        1. the convolution's output has a second consumer or is a graph output;
        2. its weight is not constant (nothing could pack it), or its geometry is not known.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fuse_activation"
    summary = "fused %d activations"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every activation that reads a Conv."""
        for node in graph:
            source = node.inputs[0] if node.inputs else None
            if source is not None and is_operator(source.producer(), "Conv") and read_activation(model, node) is not None:
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> ActivatedConv | Refusal:
        """Decides about one activation."""
        source = node.inputs[0]
        conv = None if source is None else source.producer()
        assert source is not None, "anchors yields nodes with an input"
        assert conv is not None, "anchors yields nodes behind a Conv"
        refusal = sole_use_refusal(source, conv, node)
        if refusal is not None:
            return refusal
        if constant_tensor(conv.inputs[1]) is None:
            return Refusal(f"the weight of Conv '{conv.name}' is not constant", node.name or "")
        steps = conv_steps(model, conv)
        if isinstance(steps, Refusal):
            return Refusal(steps.reason, node.name or "")
        assert steps is not None, "a Conv has steps"
        nodes, steps = [conv, node], joined(steps, activation_steps(model, node))
        for operator in ("Mul", "Add"):
            behind = only_consumer(nodes[-1].outputs[0])
            if behind is not None and behind.graph is node.graph and is_operator(behind, operator):
                step = _step_of_number(behind, nodes[-1].outputs[0])
                if step is not None:
                    nodes, steps = [*nodes, behind], joined(steps, [step])
        return ActivatedConv(tuple(nodes), steps)

    def rewrite(self, model: ir.Model, match: ActivatedConv) -> None:
        """Replaces the nodes by one call."""
        replace_by_fused(model, "FusedConv", match.steps, match.nodes)


def activation_steps(model: ir.Model, node: ir.Node) -> tuple[Step, ...]:
    """Returns an activation node, or the call of a recognised one, as one step."""
    if node.domain == "":
        return spell(model, node)
    (call,) = spell(ir.Model(ir.Graph([], [], nodes=[]), ir_version=model.ir_version), node)  # no functions: not opened
    return (call,)


def _step_of_number(node: ir.Node, data: ir.Value) -> Step | None:
    """Returns a Mul or Add of data and one number as a step; None where there is none, or it widens the result."""
    (other,) = [value for value in node.inputs if value is not data] or [None]
    tensor = constant_tensor(other)
    number = scalar(tensor)
    if tensor is None or number is None or not math.isfinite(number) or (number == 0 and node.op_type == "Mul"):
        return None
    if data.shape is None or len(tensor.shape) > len(data.shape):
        return None
    names = tuple(name for step in original_nodes(node) for name in step)
    return Step(node.op_type, "", (DATA, tensor), {}, names)
