"""Fuses an activation with the convolution that feeds it."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.chains import conv_steps, read_activation
from sepwise.passes.functions import Step, joined, spell
from sepwise.passes.fused_operators import replace_by_fused
from sepwise.passes.rewriting import Refusal, RewritePass, constant_tensor, is_operator, sole_use_refusal

__all__ = ["FuseActivationPass"]


@dataclass(frozen=True, eq=False)
class ActivatedConv:
    """A convolution and its activation.

    Attributes:
        conv: The Conv.
        activation: The activation node.
        steps: Both, as steps.
    """

    conv: ir.Node
    activation: ir.Node
    steps: tuple[Step, ...]


class FuseActivationPass(RewritePass[ActivatedConv]):
    """Makes one FusedConv of a convolution and its activation.

        y = activation(W * x + b)   ->   y = FusedConv(x, W, b)

    The function's body is the two nodes, so the rewrite is of the class `exact`.

    Fires when:
        1. an activation of the vocabulary reads the output of a Conv.

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
        return ActivatedConv(conv, node, joined(steps, activation_steps(model, node)))

    def rewrite(self, model: ir.Model, match: ActivatedConv) -> None:
        """Replaces both nodes by one call."""
        replace_by_fused(model, "FusedConv", match.steps, [match.conv, match.activation])


def activation_steps(model: ir.Model, node: ir.Node) -> tuple[Step, ...]:
    """Returns an activation node, or the call of a recognised one, as one step."""
    if node.domain == "":
        return spell(model, node)
    (call,) = spell(ir.Model(ir.Graph([], [], nodes=[]), ir_version=model.ir_version), node)  # no functions: not opened
    return (call,)
