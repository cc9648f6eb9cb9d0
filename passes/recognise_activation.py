"""Recognises activations that are spelled as several nodes, and names them."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.activations import ELEMENTWISE, IDENTITY, Form, apply, classify, scalar
from sepwise.passes.activations import Operand as FormOperand
from sepwise.passes.functions import DATA, Operand, Result, Step, write_call
from sepwise.passes.rewriting import Refusal, RewritePass, constant_tensor, is_operator, original_nodes
from sepwise.passes.vocabulary import Activation

__all__ = ["RecogniseActivationPass"]

SINKS = ("Add", "Clip", "Div", "Max", "Min", "Mul", "Relu")
"""The operators that a spelled-out activation ends with."""

MAXIMUM_NODES = 8
"""The longest spelling known has six nodes."""


@dataclass(frozen=True, eq=False)
class Recognised:
    """A spelled-out activation.

    Attributes:
        activation: What it computes.
        source: Its input.
        nodes: Its nodes, operands before their users; the last one's output is the result.
    """

    activation: Activation
    source: ir.Value
    nodes: tuple[ir.Node, ...]


class RecogniseActivationPass(RewritePass[Recognised]):
    """Replaces several nodes that spell one activation by one call of a function whose body is those nodes.

    What nodes compute is decided by the algebra of `sepwise.passes.activations`, not by a list of spellings:

        hard_swish    x * clip(x + 3, 0, 6) / 6, the division anywhere; x * HardSigmoid(x)
        silu          x * Sigmoid(x)
        clip          Min(Max(x, lo), hi), Relu then Min, Clip of Clip
        hard_sigmoid  clip(x + 3, 0, 6) / 6, and the like
        gelu, mish, leaky_relu as x * (1 + Erf(x / sqrt(2))) / 2, x * Tanh(Softplus(x)), Max(x, alpha x)

    The body keeps the nodes and their constants as they were, so the rewrite is of the class `exact`. The function's
    name tells both: `HardSwish_AddClipMulDiv`.

    Fires when:
        1. a node and one or more of its elementwise ancestors together compute an activation of the vocabulary from
           one value, every other operand being a constant scalar; the longest such spelling is taken.

    Refuses when:
        1. a value inside has another consumer, or is a graph output;
        2. the nodes are in different graphs.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "recognise_activation"
    summary = "recognised %d activations"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields the last nodes of spelled-out activations, later ones first so that the longest is seen first."""
        for node in reversed(list(graph)):
            if node.graph is graph and is_operator(node, *SINKS) and next(_spellings(node), None) is not None:
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> Recognised | Refusal:
        """Returns the longest spelling that ends at `node` and that nothing else looks into."""
        refusal: Refusal | None = None
        for found in _spellings(node):
            seen = _seen_from_outside(found)
            if seen is None:
                return found
            refusal = refusal or seen
        assert refusal is not None, "anchors yields only nodes that end a spelling"
        return refusal

    def rewrite(self, model: ir.Model, match: Recognised) -> None:
        """Replaces the nodes by a call."""
        places = {node.outputs[0]: index for index, node in enumerate(match.nodes)}

        def operand_of(value: ir.Value | None) -> Operand:
            if value is None:
                return None
            if value is match.source:
                return DATA
            return Result(places[value]) if value in places else constant_tensor(value)

        steps = [
            Step(
                node.op_type,
                "",
                tuple(operand_of(value) for value in node.inputs),
                dict(node.attributes),
                tuple(name for step in original_nodes(node) for name in step),
            )
            for node in match.nodes
        ]
        words = "".join(word.capitalize() for word in match.activation.kind.split("_"))
        function_name = f"{'SiLU' if match.activation.kind == 'silu' else words}_{''.join(step.op_type for step in steps)}"
        sink = match.nodes[-1]
        call = write_call(model, function_name, steps, [""] * len(steps), match.source, node_name=sink.name or "")
        graph = sink.graph
        assert isinstance(graph, ir.Graph), "passes do not visit function bodies"
        ir.convenience.replace_nodes_and_values(graph, sink, list(match.nodes), [call], sink.outputs, call.outputs)


def _spellings(sink: ir.Node) -> Iterator[Recognised]:
    """Yields the spellings of two or more nodes that end at `sink`, longest first."""
    ancestors = _elementwise_ancestors(sink)
    if len(ancestors) < 2:
        return
    leaves: dict[ir.Value, None] = {}
    for node in ancestors:
        leaves.update((value, None) for value in node.inputs if value is not None and scalar(constant_tensor(value)) is None)
    found = []
    for leaf in leaves:
        covered: dict[ir.Node, Form | None] = {}
        activation = classify(_form(sink.outputs[0], leaf, ancestors, covered))
        if activation is not None and len(covered) >= 2 and _keeps_rank(covered, leaf):
            found.append(Recognised(activation, leaf, tuple(covered)))
    yield from sorted(found, key=lambda spelling: -len(spelling.nodes))


def _elementwise_ancestors(sink: ir.Node) -> set[ir.Node]:
    ancestors = {sink}
    frontier = [sink]
    while frontier and len(ancestors) < MAXIMUM_NODES:
        node = frontier.pop(0)
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in ancestors and is_operator(producer, *ELEMENTWISE):
                ancestors.add(producer)
                frontier.append(producer)
    return ancestors


def _form(value: ir.Value, leaf: ir.Value, allowed: set[ir.Node], covered: dict[ir.Node, Form | None]) -> Form | None:
    if value is leaf:
        return IDENTITY
    producer = value.producer()
    if producer is None or producer not in allowed:
        return None
    if producer in covered:
        return covered[producer]
    operands: list[FormOperand] = []
    for index, operand in enumerate(producer.inputs):
        if operand is None:
            operands.append(float("-inf") if index == 1 else float("inf"))  # only Clip has optional operands
            continue
        number = None if operand is leaf else scalar(constant_tensor(operand))
        operands.append(_form(operand, leaf, allowed, covered) if number is None else number)
        if operands[-1] is None:
            return None
    form = apply(producer.op_type, operands, producer.attributes)
    if form is not None:
        covered[producer] = form
    return form


def _keeps_rank(covered: dict[ir.Node, Form | None], leaf: ir.Value) -> bool:
    """A constant of higher rank than the data would widen the result."""
    tensors = [constant_tensor(value) for node in covered for value in node.inputs if value is not leaf]
    highest = max((len(tensor.shape) for tensor in tensors if tensor is not None), default=0)
    return highest == 0 or (leaf.shape is not None and highest <= len(leaf.shape))


def _seen_from_outside(found: Recognised) -> Refusal | None:
    sink = found.nodes[-1]
    for node in found.nodes:
        if node.graph is not sink.graph:
            return Refusal(f"{node.op_type} '{node.name}' is in another graph", sink.name or "")
        if node is sink:
            continue
        value = node.outputs[0]
        inside = f"'{value.name}' inside the spelled-out {found.activation.kind}"
        if value.is_graph_output():
            return Refusal(f"{inside} is a graph output", sink.name or "")
        for use in value.uses():
            if use.node not in found.nodes:
                return Refusal(f"{inside} has another consumer, '{use.node.name}'", sink.name or "")
    return None
