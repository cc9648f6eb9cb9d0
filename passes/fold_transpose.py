"""Folds a Transpose in front of a flattened product of matrices into the weight of the product."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.axis_order import REGROUPING, permutation
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_tensor,
    is_operator,
    original_nodes,
    set_constant_input,
    set_original_nodes,
    sole_use_refusal,
    static_shape,
)

__all__ = ["FoldTransposePass"]

WEIGHT = 1
"""Input of a product that is its weight."""


@dataclass(frozen=True, eq=False)
class FoldedTranspose:
    """A Transpose that goes, and what takes its place.

    Attributes:
        node: The Transpose.
        flatten: What flattens its result.
        weights: The new weight of each product behind.
    """

    node: ir.Node
    flatten: ir.Node
    weights: dict[ir.Node, npt.NDArray[np.generic]]


class FoldTransposePass(RewritePass[FoldedTranspose]):
    """Exchanges the rows of a weight instead of the columns of what it multiplies.

        flatten(transpose(x, p)) W = flatten(x) W',  W' = unflatten(W) with its axes in the order of x, flattened

    So a classifier that was trained on flattened `(n, h, w, c)` takes `(n, c, h, w)`.

    Class of the rewrite: `exact`, but for the order in which the product adds up.

    Fires when:
        a Transpose that leaves the first axis where it is, is read by a Reshape alone that joins all other axes, and that by
        products alone: MatMul, or Gemm whose first operand is as it stands, with a constant weight of two axes.

    Refuses when:
        1. the Transpose has a second consumer or is a graph output; or the Reshape is one;
        2. another node reads the Reshape, or a weight is not constant.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "fold_transpose"
    summary = "folded %d Transpose"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every Transpose in front of what joins all axes but the first."""
        for node in graph:
            if is_operator(node, "Transpose") and any(_flattens(use.node, node.outputs[0]) for use in node.outputs[0].uses()):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> FoldedTranspose | Refusal:
        """Decides about one Transpose."""
        name, output = node.name or "", node.outputs[0]
        flatten = next(use.node for use in output.uses() if _flattens(use.node, output))
        refusal = sole_use_refusal(output, node, flatten)
        if refusal is not None:
            return refusal
        perm, shape, flat = permutation(node), static_shape(output), flatten.outputs[0]
        assert perm is not None, "the rank is known"
        assert shape is not None, "the shape is known"
        if perm[0] != 0:
            return Refusal("its first axis moves", name)
        if flat.is_graph_output() or not flat.uses():
            return Refusal(f"nothing, or a graph output, is what reads {flatten.op_type} '{flatten.name}'", name)
        weights = {}
        for use in flat.uses():
            weight = _weight(use.node, use.idx)
            if weight is None or use.node.graph is not node.graph:
                return Refusal(f"{use.node.op_type} '{use.node.name}' is no product with a constant weight", name)
            inner = 1 if use.node.attributes.get_int("transB", 0) else 0
            rest = weight.shape[1 - inner]
            apart = np.moveaxis(weight, inner, 0).reshape(*shape[1:], rest)
            back = [int(axis) for axis in np.argsort(perm[1:])]
            rows = apart.transpose(*back, len(back)).reshape(-1, rest)
            weights[use.node] = np.ascontiguousarray(np.moveaxis(rows, 0, inner))
        return FoldedTranspose(node, flatten, weights)

    def rewrite(self, model: ir.Model, match: FoldedTranspose) -> None:
        """Takes the Transpose away and exchanges the rows."""
        for product, weight in match.weights.items():
            set_constant_input(model, product, WEIGHT, weight, f"{product.name}.weight")
        node, flatten = match.node, match.flatten
        shape = static_shape(flatten.outputs[0])
        assert shape is not None, "the shape is known"
        flatten.op_type = "Reshape"
        flatten.attributes.clear()
        flatten.replace_input_with(0, node.inputs[0])
        flatten.resize_inputs(2)
        set_constant_input(model, flatten, 1, np.asarray(shape, np.int64), f"{flatten.name}.shape")
        set_original_nodes(flatten, [[name for step in (*original_nodes(node), *original_nodes(flatten)) for name in step]])
        assert node.graph is not None, "the node is in a graph"
        node.graph.remove(node, safe=True)


def _flattens(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node joins all axes of a value but the first."""
    shape, flat = static_shape(value), static_shape(node.outputs[0]) if is_operator(node, *REGROUPING) else None
    if shape is None or flat is None or node.inputs[0] is not value or not shape:
        return False
    return len(flat) == 2 and flat[0] == shape[0] and 0 not in shape


def _weight(node: ir.Node, position: int) -> npt.NDArray[np.generic] | None:
    """The weight of a product that reads a value as its first operand, as it stands."""
    if position != 0 or not is_operator(node, "MatMul", "Gemm") or node.attributes.get_int("transA", 0) == 1:
        return None
    tensor = constant_tensor(node.inputs[WEIGHT])
    return tensor.numpy() if tensor is not None and len(tensor.shape) == 2 else None
