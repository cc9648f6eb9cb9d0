"""Moves Transposes towards the outputs, past what computes each element for itself, until they meet their inverses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    constant_tensor,
    is_operator,
    original_nodes,
    replace_with_input,
    set_constant_input,
    set_original_nodes,
    sole_use_refusal,
    static_shape,
    unique_value_name,
)
from sepwise.passes.vocabulary import ELEMENTWISE_OPERATORS

__all__ = ["SinkTransposePass"]

ALONG_AN_AXIS = ("Concat",)
"""Operators that do the same to every element, but for one axis that they name."""

PADS = 1
"""Input of a Pad that says how much."""


@dataclass(frozen=True, eq=False)
class SunkTranspose:
    """A node behind Transposes, and what it becomes in front of one.

    Attributes:
        node: The node.
        perm: Permutation of the Transpose that follows it, or that it becomes where it is one itself.
        sources: What the node reads instead of its transposed inputs, by their positions.
        constants: Its constants in the order of its new inputs, by their positions.
    """

    node: ir.Node
    perm: tuple[int, ...]
    sources: dict[int, ir.Value]
    constants: dict[int, np.ndarray]


class SinkTransposePass(RewritePass[SunkTranspose]):
    """Exchanges a Transpose with the node behind it, and merges it with a Transpose behind it.

        f(transpose(x, p), transpose(y, p), c) = transpose(f(x, y, transpose(c, inverse p)), p)
        transpose(transpose(x, p), q)          = transpose(x, r),  r[i] = p[q[i]],  which is x where r[i] = i

    So the pairs around every convolution of a network that keeps its tensors as `(n, h, w, c)` cancel.

    Class of the rewrite: `exact`.

    Fires when:
        1. a Transpose reads a Transpose;
        2. an elementwise operator, a Concat or a Pad reads Transposes of one permutation and constants, and nothing else.

    Refuses when:
        1. an input is neither constant nor transposed in the same way, or a Pad's amounts are not constant or name their axes;
        2. a Transpose in front of such an operator has a second consumer or is a graph output.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "sink_transpose"
    summary = "moved or merged %d Transpose"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every node behind a Transpose that it could be exchanged or merged with."""
        for node in graph:
            if is_operator(node, "Transpose", "Pad", *ALONG_AN_AXIS, *ELEMENTWISE_OPERATORS) and any(
                value is not None and is_operator(value.producer(), "Transpose") for value in node.inputs
            ):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> SunkTranspose | Refusal:
        """Decides about one node."""
        name = node.name or ""
        transposes = {
            index: producer
            for index, value in enumerate(node.inputs)
            if value is not None and (producer := value.producer()) is not None and is_operator(producer, "Transpose")
        }
        if not transposes:
            return Refusal("none of its inputs is transposed any more", name)
        sources = {index: producer.inputs[0] for index, producer in transposes.items()}
        own = _permutation(node) if is_operator(node, "Transpose") else None
        perms = {_permutation(producer, rank=None if own is None else len(own)) for producer in transposes.values()}
        perm = next(iter(perms))
        found = {index: value for index, value in sources.items() if value is not None}
        if len(perms) > 1 or perm is None or len(found) < len(sources):
            return Refusal("its inputs are transposed in different ways", name)
        if is_operator(node, "Transpose"):
            own = own or tuple(reversed(range(len(perm))))
            return SunkTranspose(node, tuple(perm[axis] for axis in own), found, {})
        for index, producer in transposes.items():
            refusal = sole_use_refusal(producer.outputs[0], producer, node)
            if refusal is not None and not _reads_twice(node, index):
                return refusal
        constants: dict[int, np.ndarray] = {}
        for index, value in enumerate(node.inputs):
            if value is None or index in found:
                continue
            tensor = constant_tensor(value)
            if tensor is None or len(tensor.shape) > len(perm):
                return Refusal(f"its input '{value.name}' is neither constant nor transposed", name)
            if tensor.dtype == ir.DataType.STRING:
                return Refusal(f"its constant '{value.name}' is of strings", name)
            array = tensor.numpy()
            if is_operator(node, "Pad") and index == PADS:
                if len(array) != 2 * len(perm) or len(node.inputs) > 3:
                    return Refusal("its amounts are of some axes only", name)
                array = array.reshape(2, -1)[:, _inverse(perm)].reshape(-1)
            elif array.size != 1:
                array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(_inverse(perm))
            else:
                continue
            constants[index] = array
        if is_operator(node, "Pad") and PADS not in constants:
            return Refusal("its amounts are not constant", name)
        return SunkTranspose(node, perm, found, constants)

    def rewrite(self, model: ir.Model, match: SunkTranspose) -> None:
        """Merges the two Transposes, or puts one behind the node and takes those before it away."""
        node, perm = match.node, match.perm
        gone = [producer for index in match.sources if (producer := node.inputs[index].producer()) is not None]  # type: ignore[union-attr]
        for index, source in match.sources.items():
            node.replace_input_with(index, source)
        for index, array in match.constants.items():
            set_constant_input(model, node, index, np.ascontiguousarray(array), f"{node.name}.constant{index}")
        if is_operator(node, "Transpose"):
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
            source = match.sources[0]
            if perm == tuple(range(len(perm))):
                _remove(node, source)
        else:
            if is_operator(node, *ALONG_AN_AXIS):
                axis = node.attributes.get_int("axis", 0)
                node.attributes["axis"] = ir.AttrInt64("axis", perm[axis])
            self._put_behind(model, node, perm, gone[0])
        for producer in dict.fromkeys(gone):
            if producer.graph is not None and not producer.outputs[0].uses() and not producer.outputs[0].is_graph_output():
                producer.graph.remove(producer, safe=True)

    def _put_behind(self, model: ir.Model, node: ir.Node, perm: Sequence[int], before: ir.Node) -> None:
        """`node -> y` becomes `node -> y.sunk, Transpose -> y`."""
        output, graph = node.outputs[0], node.graph
        assert graph is not None, "the node is in a graph"
        shape = static_shape(output)
        name = output.name
        inner = ir.Value(
            name=unique_value_name(model, f"{name}.sunk"),
            type=output.type,
            shape=None if shape is None else ir.Shape([shape[axis] for axis in _inverse(perm)]),
        )
        computed = ir.Node(
            "",
            node.op_type,
            node.inputs,
            list(node.attributes.values()),
            outputs=[inner],
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=node.metadata_props,
        )
        moved = ir.Node("", "Transpose", [inner], [ir.AttrInt64s("perm", list(perm))], name=f"{before.name}.{node.name}")
        set_original_nodes(moved, original_nodes(before))
        moved.outputs[0].type, moved.outputs[0].shape = output.type, output.shape
        moved.outputs[0].doc_string = output.doc_string
        moved.outputs[0].metadata_props.update(output.metadata_props)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [computed, moved], [output], moved.outputs)
        moved.outputs[0].name = name


def _remove(node: ir.Node, source: ir.Value) -> None:
    """Takes away a Transpose that changes nothing; an output of the graph stays where it would be an input or another output."""
    if not node.outputs[0].is_graph_output():
        replace_with_input(node, source, keep_name=False)
    elif source.producer() is not None and not source.is_graph_output() and source.graph is node.graph:
        replace_with_input(node, source, keep_name=True)


def _permutation(node: ir.Node, *, rank: int | None = None) -> tuple[int, ...] | None:
    """A Transpose's permutation, reversed axes where it gives none; None where neither its input nor `rank` says how many."""
    perm = node.attributes.get_ints("perm")
    if perm is not None:
        return tuple(perm)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    rank = rank if shape is None else len(shape)
    return None if rank is None else tuple(reversed(range(rank)))


def _inverse(perm: Sequence[int]) -> list[int]:
    """The permutation that undoes another."""
    return [int(axis) for axis in np.argsort(perm)]


def _reads_twice(node: ir.Node, index: int) -> bool:
    """Whether a node reads that input more than once, and no other node reads it."""
    value = node.inputs[index]
    return value is not None and not value.is_graph_output() and all(use.node is node for use in value.uses())
