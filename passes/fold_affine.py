"""Folds a multiplication by, or an addition of, constants into the convolution beside it."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.folding import CONVOLUTIONS, ConvFold, channel_vector, fold_after, fold_before, rewrite_fold
from sepwise.passes.rewriting import Refusal, RewritePass, constant_array, is_operator, sole_use_refusal

__all__ = ["FoldAffinePass"]

Array = npt.NDArray[np.float64]


class FoldAffinePass(RewritePass[ConvFold]):
    """Folds Mul, Div, Add and Sub with a constant per channel into a Conv or ConvTranspose.

        after:   s (W * x + b) + t = (s W) * x + (s b + t)
        before:  W * (s x + t) + b = (W s) * x + (b + sum W t)      without padding, or t = 0

    in float64, stored in the weight's type. Class of the rewrite: `rounding`.

    Fires when:
        1. such a node, its constant one number or one per channel, follows a convolution whose output nothing else
           sees, and whose weight is constant and its own;
        2. or it feeds one such convolution alone, which does not pad (or nothing is added).

    Refuses when:
        1. the constant varies over more than channels, or widens the result, or is 0 in a division;
        2. the value in between has a second consumer or is a graph output;
        3. the weight or bias is not constant, or the weight is shared;
        4. a convolution behind an addition pads;
        5. a folded constant is not finite in the weight's type.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fold_affine"
    summary = "folded %d multiplications and additions of constants"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every Mul, Div, Add and Sub of a constant that stands beside a convolution."""
        for node in graph:
            parts = _split(node) if is_operator(node, "Add", "Div", "Mul", "Sub") else None
            if parts is None:
                continue
            _, source, _ = parts
            behind = any(use.idx == 0 and is_operator(use.node, *CONVOLUTIONS) for use in node.outputs[0].uses())
            if behind or is_operator(source.producer(), *CONVOLUTIONS):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> ConvFold | Refusal:
        """Decides about one node, and calculates the new constants."""
        parts = _split(node)
        assert parts is not None, "anchors yields only nodes with one constant operand"
        constant_first, source, constant = parts
        producer = source.producer()
        after: Refusal | None = None
        if producer is not None and is_operator(producer, *CONVOLUTIONS):
            after = sole_use_refusal(source, producer, node)
            if after is None:
                affine = _affine(node, constant_first, constant, source)
                found = affine if isinstance(affine, Refusal) else fold_after(producer, node, *affine)
                if not isinstance(found, Refusal):
                    return found
                after = found
        uses = [use for use in node.outputs[0].uses() if use.idx == 0 and is_operator(use.node, *CONVOLUTIONS)]
        if not uses:
            assert after is not None, "anchors yields only nodes beside a convolution"
            return after
        refusal = sole_use_refusal(node.outputs[0], node, uses[0].node)
        if refusal is not None:
            return after or Refusal(refusal.reason, node.name or "")
        affine = _affine(node, constant_first, constant, source)
        before = affine if isinstance(affine, Refusal) else fold_before(uses[0].node, node, source, *affine)
        return after or before if isinstance(before, Refusal) else before

    def rewrite(self, model: ir.Model, match: ConvFold) -> None:
        """Folds one node."""
        rewrite_fold(model, match)


def _split(node: ir.Node) -> tuple[bool, ir.Value, Array] | None:
    """Returns whether the constant comes first, the other operand, and the constant; None if there is no such split."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    left_array, right_array = constant_array(left), constant_array(right)
    if left_array is None and right_array is not None:
        return False, left, right_array
    if left_array is not None and right_array is None and node.op_type != "Div":
        return True, right, left_array
    return None


def _affine(node: ir.Node, constant_first: bool, constant: Array, source: ir.Value) -> tuple[Array, Array] | Refusal:
    """Returns scale and shift over channels."""
    name = node.name or ""
    shape = source.shape
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return Refusal(f"the channels of '{source.name}' are not known", name)
    channels = shape[1]
    vector = channel_vector(constant, channels, len(shape))
    if vector is None:
        return Refusal(f"its constant of shape {constant.shape} is not one number per channel", name)
    ones, zeros = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return vector, zeros
        case "Div":
            return (1.0 / vector, zeros) if np.all(vector != 0) else Refusal("it divides by 0", name)
        case "Add":
            return ones, vector
    return (-ones, vector) if constant_first else (ones, -vector)
