"""Fuses the addition of a residual, and the activation behind it, with the convolution before."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.chains import conv_steps, read_activation
from sepwise.passes.functions import DATA, Step, adds_tensor, joined
from sepwise.passes.fuse_activation import activation_steps
from sepwise.passes.fused_operators import replace_by_fused
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_tensor,
    is_operator,
    only_consumer,
    original_nodes,
    sole_use_refusal,
    static_shape,
)

__all__ = ["FuseResidualPass"]


@dataclass(frozen=True, eq=False)
class ResidualConv:
    """A convolution, the addition behind it, and perhaps an activation behind that.

    Attributes:
        nodes: Those nodes.
        steps: What they compute.
    """

    nodes: tuple[ir.Node, ...]
    steps: tuple[Step, ...]


class FuseResidualPass(RewritePass[ResidualConv]):
    """Makes one FusedConv of a convolution and the addition of a residual.

        y = post(activation(W * x + b) + r)   ->   y = FusedConv(x, W, b, r)

    The function's body is the same nodes, so the rewrite is of the class `exact`. If both summands are convolutions,
    the one that comes later in the graph takes the other's result as its residual.

    Fires when:
        1. an Add joins the output of a Conv, or of a FusedConv without residual, with a value of the same shape;
           an activation that alone reads the sum is taken along.

    Refuses when:
        1. the convolution's output has a second consumer (the other summand among them) or is a graph output;
        2. the other summand is constant, or of another shape, or a shape is not known;
        3. the convolution's weight is not constant, or its geometry is not known.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fuse_residual"
    summary = "fused %d residual additions"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every Add of a convolution's output."""
        for node in graph:
            if is_operator(node, "Add") and any(_takes_residual(model, value) for value in node.inputs):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> ResidualConv | Refusal:
        """Decides about one addition; of two convolutions the later one is tried first."""
        order = {other: index for index, other in enumerate(node.graph or ())}
        candidates = [value for value in node.inputs if value is not None and _takes_residual(model, value)]
        candidates.sort(key=lambda value: -order.get(value.producer() or node, -1))
        refusal: Refusal | None = None
        for value in candidates:
            found = self._match_summand(model, node, value)
            if not isinstance(found, Refusal):
                return found
            refusal = refusal or found
        assert refusal is not None, "anchors yields only additions of a convolution's output"
        return refusal

    def _match_summand(self, model: ir.Model, node: ir.Node, value: ir.Value) -> ResidualConv | Refusal:
        name = node.name or ""
        conv = value.producer()
        assert conv is not None, "a candidate is the output of a convolution"
        refusal = sole_use_refusal(value, conv, node)
        if refusal is not None:
            return refusal
        residual = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
        if residual is None or constant_tensor(residual) is not None:
            return Refusal(f"the other summand '{residual.name if residual else ''}' is constant", name)
        own, other = static_shape(value), static_shape(residual)
        if own is None or own != other:
            return Refusal(f"the residual '{residual.name}' has shape {_shown(residual)}, the convolution {_shown(value)}", name)
        if constant_tensor(conv.inputs[1]) is None:
            return Refusal(f"the weight of '{conv.name}' is not constant", name)
        steps = conv_steps(model, conv)
        if isinstance(steps, Refusal):
            return Refusal(steps.reason, name)
        assert steps is not None, "a candidate has steps"
        covered = tuple(name for step in original_nodes(node) for name in step)
        steps = joined(steps, [Step("Add", "", (DATA, residual), {}, covered)])
        behind = only_consumer(node.outputs[0])
        if behind is None or behind.graph is not node.graph or read_activation(model, behind) is None:
            return ResidualConv((conv, node), steps)
        return ResidualConv((conv, node, behind), joined(steps, activation_steps(model, behind)))

    def rewrite(self, model: ir.Model, match: ResidualConv) -> None:
        """Replaces the nodes by one call."""
        replace_by_fused(model, "FusedConv", match.steps, match.nodes)


def _takes_residual(model: ir.Model, value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is None:
        return False
    if is_operator(producer, "Conv"):
        return True
    if not producer.op_type.startswith("FusedConv"):
        return False
    steps = conv_steps(model, producer)
    return isinstance(steps, tuple) and not any(map(adds_tensor, steps))


def _shown(value: ir.Value) -> str:
    return "unknown" if value.shape is None else str(value.shape)
