"""What every graph pass shares: the contract, refusals, constants, names.

A pass over `onnx_ir.Model` is a `RewritePass`: it names the nodes worth looking at (`anchors`), `match()` answers
each with a frozen match or a `Refusal`, and `rewrite()` carries out a match and cannot refuse. The pass repeats until
nothing more matches, in the main graph and in the subgraphs of control flow; function bodies are not visited
(functions of other domains are inlined by `canonicalize`, those of `sepwise` are results of these passes).

The names of the original nodes that a node stands for travel with it as metadata: one list of names for each
step of its computation.
"""

import abc
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = [
    "NODES_KEY",
    "Refusal",
    "RewritePass",
    "RewriteResult",
    "constant_array",
    "constant_tensor",
    "free_name",
    "is_operator",
    "only_consumer",
    "original_nodes",
    "remove_unused_initializers",
    "replace_with_input",
    "set_constant_input",
    "set_original_nodes",
    "sole_use_refusal",
    "static_shape",
    "unique_value_name",
    "value_names",
]

logger = logging.getLogger(__name__)

MatchT = TypeVar("MatchT")

NODES_KEY = "sepwise.nodes"
"""Metadata key of a node: JSON, for each step of the node's computation the names of the original nodes it covers."""


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite was not carried out.

    Attributes:
        reason: One sentence, lower case, with what was found.
        node: Name of the node that the pass looked at.
    """

    reason: str
    node: str


@dataclass
class RewriteResult(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        fired: Number of rewrites.
        refused: The refusals that hold for the model as the pass left it.
    """

    fired: int = 0
    refused: tuple[Refusal, ...] = ()


class RewritePass(ir.passes.InPlacePass, Generic[MatchT]):
    """A pass that matches one node at a time and rewrites in place.

    Attributes:
        name: Name of the pass in reports, the stem of its file.
        summary: For the log, what happened to the matches: `folded %d BatchNormalization`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abc.abstractmethod
    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields the nodes of `graph` that are worth matching."""

    @abc.abstractmethod
    def match(self, model: ir.Model, node: ir.Node) -> MatchT | Refusal:
        """Decides about one node and changes nothing."""

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, match: MatchT) -> None:
        """Carries out a match."""

    def call(self, model: ir.Model) -> RewriteResult:
        """Runs the pass until nothing more matches.

        Args:
            model: Changed in place.

        Returns:
            The same model, whether it changed, and what fired and was refused.
        """
        fired = 0
        while True:
            fired_now, refused = self._sweep(model)
            fired += fired_now
            if not fired_now:
                break
        for refusal in refused:
            logger.debug("%s refuses '%s': %s", self.name, refusal.node, refusal.reason)
        if fired:
            remove_unused_initializers(model)
            logger.info(self.summary, fired)
        return RewriteResult(model, modified=fired > 0, fired=fired, refused=tuple(refused))

    def _sweep(self, model: ir.Model) -> tuple[int, list[Refusal]]:
        fired = 0
        refused: list[Refusal] = []
        for graph in list(model.graphs()):
            for node in list(self.anchors(model, graph)):
                if node.graph is not graph:  # an earlier match of this sweep consumed it
                    continue
                match self.match(model, node):
                    case Refusal() as refusal:
                        refused.append(refusal)
                    case found:
                        self.rewrite(model, found)
                        fired += 1
        return fired, refused


def is_operator(node: ir.Node | None, *op_types: str) -> bool:
    """Tells whether `node` is one of the operators of the standard ONNX domain."""
    return node is not None and node.domain == "" and node.op_type in op_types


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Returns the tensor of a constant value.

    An initializer that is also a graph input is a default that the caller may override, so it is not constant.

    Args:
        value: Any value, or None for an omitted input.

    Returns:
        The tensor of an initializer or of a Constant node, or None.
    """
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant_array(value: ir.Value | None) -> npt.NDArray[np.float64] | None:
    """Returns a constant in float64, the precision in which all passes calculate, or None if it is not constant."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.float64)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns the shape of a value if every dimension is a known number."""
    if value is None:
        return None
    shape = value.shape
    if shape is None:
        tensor = constant_tensor(value)
        if tensor is None:
            return None
        shape = ir.Shape(tensor.shape.numpy())
    dims = tuple(shape)
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return tuple(int(dim) for dim in dims if isinstance(dim, int))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Returns the node that alone consumes `value`, once, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def sole_use_refusal(value: ir.Value, producer: ir.Node, consumer: ir.Node) -> Refusal | None:
    """Refuses where `value`, made by `producer`, is seen by anyone beside `consumer`.

    Args:
        value: The value that a rewrite would make disappear.
        producer: Its producer, for the message.
        consumer: The node that the rewrite looks at.

    Returns:
        The refusal, or None if the value may disappear.
    """
    name = consumer.name or ""
    operator = producer.op_type.split("_")[0]
    if value.is_graph_output():
        return Refusal(f"the output '{value.name}' of {operator} '{producer.name}' is a graph output", name)
    others = [use.node.name for use in value.uses() if use.node is not consumer]
    if others or len(list(value.uses())) != 1:
        seen = f"'{others[0]}'" if others else "the same node once more"
        return Refusal(f"the output '{value.name}' of {operator} '{producer.name}' has a second consumer, {seen}", name)
    if producer.graph is not consumer.graph:
        return Refusal(f"{operator} '{producer.name}' is in another graph", name)
    return None


def original_nodes(node: ir.Node) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the original nodes that `node` stands for, one tuple for each step of its computation."""
    text = node.metadata_props.get(NODES_KEY)
    if text is None:
        return ((node.name or "",),)
    return tuple(tuple(step) for step in json.loads(text))


def set_original_nodes(node: ir.Node, steps: Sequence[Sequence[str]]) -> None:
    """Records the names of the original nodes that `node` stands for; nothing is written if that is its own name."""
    if [list(step) for step in steps] == [[node.name or ""]]:
        node.metadata_props.pop(NODES_KEY, None)
    else:
        node.metadata_props[NODES_KEY] = json.dumps([list(step) for step in steps])


def value_names(model: ir.Model) -> set[str]:
    """Returns the names that the values of a model have, in all of its graphs."""
    used: set[str] = set()
    for graph in model.graphs():
        used.update(graph.initializers)
        used.update(value.name or "" for value in graph.inputs)
        for node in graph:
            used.update(value.name or "" for value in node.outputs)
    return used


def free_name(used: set[str], wanted: str) -> str:
    """Returns `wanted`, or with a number behind it the first name that is not used, and notes that it is used now."""
    name, number = wanted, 0
    while name in used:
        number += 1
        name = f"{wanted}_{number}"
    used.add(name)
    return name


def unique_value_name(model: ir.Model, wanted: str) -> str:
    """Returns `wanted`, or with a number behind it the first name that no value of the model has."""
    return free_name(value_names(model), wanted)


def remove_unused_initializers(model: ir.Model) -> None:
    """Drops the initializers that nothing reads and that are neither inputs nor outputs."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
                del graph.initializers[name]


def set_constant_input(model: ir.Model, node: ir.Node, index: int, array: npt.NDArray[np.generic], wanted_name: str) -> None:
    """Gives a node a new constant as one of its inputs.

    An initializer that nobody else reads keeps its name and changes its content; otherwise a new one is made.

    Args:
        model: Its main graph owns the new initializer.
        node: The node to change.
        index: Which input, at most one behind the last.
        array: The content, in the type in which it is stored.
        wanted_name: Name of a new initializer, made unique.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and not old.is_graph_input() and only_consumer(old) is node:
        old.const_value = ir.tensor(array, name=old.name)
        old.type, old.shape = ir.TensorType(old.const_value.dtype), ir.Shape(array.shape)
        return
    name = unique_value_name(model, wanted_name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def replace_with_input(node: ir.Node, value: ir.Value, *, keep_name: bool) -> None:
    """Removes a node of one output; whoever read its output reads `value` instead.

    Args:
        node: The node that disappears.
        value: Takes over the uses of the node's output, and its place among the graph's outputs.
        keep_name: True if `value` also takes over the name, type and shape, because it now has that meaning.
    """
    output = node.outputs[0]
    graph = node.graph
    assert graph is not None, "the node is in a graph"
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    name, shape, dtype = output.name, output.shape, output.type
    graph.remove(node, safe=True)
    if keep_name:
        output.name = None
        value.name = name
        value.shape = shape if shape is not None else value.shape
        value.type = dtype if dtype is not None else value.type
