"""Folds batch normalization into the convolution before it, or, where padding permits, after it."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sepwise.passes.folding import CONVOLUTIONS, ConvFold, fold_after, fold_before, rewrite_fold
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_array,
    is_operator,
    only_consumer,
    sole_use_refusal,
)

__all__ = ["FoldBatchNormPass"]


class FoldBatchNormPass(RewritePass[ConvFold]):
    """Folds BatchNormalization into Conv or ConvTranspose.

    With gamma, beta, mean, var the batch norm's constants, over channels:

        s = gamma / sqrt(var + epsilon)      t = beta - mean * s
        after:   BN(W * x + b) = (s W) * x + (s (b - mean) + beta)
        before:  W * BN(x) + b = (W s) * x + (b + sum W t)       without padding, or t = 0

    in float64, stored in the weight's type. Class of the rewrite: `rounding` (constants are rounded anew).

    Fires when:
        1. a BatchNormalization in inference mode with constant scale, bias, mean and variance follows a convolution
           whose output nothing else sees, and whose weight is constant and its own;
        2. or it feeds one such convolution alone, which does not pad (or every t is 0).

    Refuses when:
        1. the batch norm is in training mode, or not over channels (`spatial=0`);
        2. its scale, bias, mean or variance is not constant, or var + epsilon is not positive;
        3. neither its producer nor its only consumer is a convolution;
        4. the convolution's output has a second consumer or is a graph output;
        5. the weight or bias is not constant, or the weight is shared;
        6. a convolution after it pads;
        7. a folded constant is not finite in the weight's type.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fold_batch_norm"
    summary = "folded %d BatchNormalization"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every BatchNormalization."""
        return (node for node in graph if is_operator(node, "BatchNormalization"))

    def match(self, model: ir.Model, node: ir.Node) -> ConvFold | Refusal:
        """Decides whether one batch norm can be folded, and calculates the new constants."""
        name = node.name or ""
        if node.attributes.get_int("training_mode", 0) or any(
            output.uses() or output.is_graph_output() or output.name for output in node.outputs[1:]
        ):
            return Refusal("it is in training mode", name)
        if node.attributes.get_int("spatial", 1) != 1:
            return Refusal("it does not normalize over channels (spatial=0)", name)
        constants = []
        for role, value in zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=True):
            array = constant_array(value)
            if array is None:
                return Refusal(f"its {role} '{value.name if value else ''}' is not constant", name)
            constants.append(array)
        gamma, beta, mean, variance = constants
        epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
        if not np.all(variance + epsilon > 0):
            return Refusal(f"its variance + epsilon is {float(np.min(variance + epsilon)):g}, not positive", name)
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None, "the checker requires the input"

        producer = source.producer()
        after: Refusal | None = None
        if producer is not None and is_operator(producer, *CONVOLUTIONS):
            after = sole_use_refusal(source, producer, node)
            if after is None:
                match fold_after(producer, node, scale, shift):
                    case Refusal() as refusal:
                        after = refusal
                    case fold:
                        return fold
        consumer = only_consumer(output)
        if consumer is None or not is_operator(consumer, *CONVOLUTIONS) or consumer.inputs[0] is not output:
            return after or self._no_convolution(node, producer)
        if consumer.graph is not node.graph:
            return after or Refusal(f"'{consumer.name}' is in another graph", name)
        fold_into_next = fold_before(consumer, node, source, scale, shift)
        return after or fold_into_next if isinstance(fold_into_next, Refusal) else fold_into_next

    def rewrite(self, model: ir.Model, match: ConvFold) -> None:
        """Folds one batch norm."""
        rewrite_fold(model, match)

    def _no_convolution(self, node: ir.Node, producer: ir.Node | None) -> Refusal:
        before = "a graph input" if producer is None else f"{producer.op_type} '{producer.name}'"
        output = node.outputs[0]
        consumers = list(output.uses())
        if output.is_graph_output():
            behind = "its output is a graph output"
        elif len(consumers) != 1:
            behind = f"its output has {len(consumers)} consumers"
        else:
            behind = f"its output goes to {consumers[0].node.op_type} '{consumers[0].node.name}'"
        return Refusal(f"no convolution beside it: its input comes from {before} and {behind}", node.name or "")
