"""Writes fused operators out again as plain ONNX, for tools that read no functions."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.functions import Operand, Result, Step, function_of, spell
from sepwise.passes.rewriting import Refusal, RewritePass, RewriteResult, set_original_nodes, unique_value_name
from sepwise.passes.vocabulary import DOMAIN

__all__ = ["InlineFunctionsPass"]


@dataclass(frozen=True, eq=False)
class Call:
    """A call and what its function consists of.

    Attributes:
        node: The call.
        steps: The body.
    """

    node: ir.Node
    steps: tuple[Step, ...]


class InlineFunctionsPass(RewritePass[Call]):
    """Replaces every call of a `sepwise` function by the nodes of its body, under their original names.

    Class of the rewrite: `exact`. The model then has no function of the domain left.

    Fires when:
        1. a node calls a function of the domain `sepwise`.

    Refuses when:
        1. the model lacks the function.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "inline_functions"
    summary = "inlined %d calls"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every call."""
        return (node for node in graph if node.domain == DOMAIN)

    def match(self, model: ir.Model, node: ir.Node) -> Call | Refusal:
        """Reads the body of one call."""
        if function_of(model, node) is None:
            return Refusal(f"the model has no function {DOMAIN}::{node.op_type}", node.name or "")
        return Call(node, spell(model, node))

    def rewrite(self, model: ir.Model, match: Call) -> None:
        """Puts the nodes in the place of the call."""
        call, data = match.node, match.node.inputs[0]
        assert data is not None, "a call has a data input"
        results: list[ir.Value] = []
        nodes: list[ir.Node] = []
        for step in match.steps:
            name = step.nodes[0] if step.nodes else f"{call.name}.{len(nodes)}"

            def value_of(operand: Operand, owner: str = name) -> ir.Value | None:
                match operand:
                    case Result(index):
                        return data if index < 0 else results[index]
                    case None | ir.Value():
                        return operand
                return _initializer(model, operand, f"{owner}.constant")

            inputs = [value_of(operand) for operand in step.operands]
            node = ir.Node(step.domain, step.op_type, inputs, list(step.attributes.values()), num_outputs=1, name=name)
            set_original_nodes(node, _covered(model, step, name))
            nodes.append(node)
            results.append(node.outputs[0])
            if len(nodes) < len(match.steps):
                node.outputs[0].name = unique_value_name(model, f"{name}.output")
                node.outputs[0].type = call.outputs[0].type
        graph = call.graph
        assert isinstance(graph, ir.Graph), "passes do not visit function bodies"
        ir.convenience.replace_nodes_and_values(graph, call, [call], nodes, call.outputs, [results[-1]])

    def call(self, model: ir.Model) -> RewriteResult:
        """Inlines all calls, those inside functions included, and drops the functions."""
        result = super().call(model)
        if not any(node.domain == DOMAIN for graph in model.graphs() for node in graph):
            for identifier in [identifier for identifier in model.functions if identifier[0] == DOMAIN]:
                del model.functions[identifier]
            model.opset_imports.pop(DOMAIN, None)
        return result


def _covered(model: ir.Model, step: Step, name: str) -> list[tuple[str, ...]]:
    """Divides the names of a nested activation among its nodes, where each has one."""
    function = function_of(model, step)
    if function is not None:
        length = sum(node.op_type != "Constant" for node in function)
        if length == len(step.nodes):
            return [(node,) for node in step.nodes]
    return [step.nodes or (name,)]


def _initializer(model: ir.Model, tensor: ir.TensorProtocol, wanted_name: str) -> ir.Value:
    name = unique_value_name(model, wanted_name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=ir.tensor(tensor.numpy(), name=name),
    )
    model.graph.register_initializer(value)
    return value
