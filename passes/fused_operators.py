"""Writes fused operators: names their functions, prefixes their attributes, and puts the call in place."""

from collections.abc import Sequence

import onnx_ir as ir

from sepwise.passes.functions import Step, adds_tensor, write_call
from sepwise.passes.vocabulary import DOMAIN

__all__ = ["ROLES", "replace_by_fused"]

ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "FusedConv": (("",),),
    "SeparableConv": (("depthwise_", "pointwise_"), ("pointwise_", "depthwise_")),
    "InvertedResidual": (("expand_", "depthwise_", "project_"),),
}
"""For each fused operator the roles that its stages can have, in order; they prefix attributes and inputs."""

SHORT_ROLES = {"": "conv", "depthwise_": "dw", "pointwise_": "pw", "expand_": "pw", "project_": "pw"}


def is_conv(step: Step) -> bool:
    """Tells whether a step opens a stage."""
    return step.op_type == "Conv" and step.domain == ""


def _word(step: Step) -> str:
    return "".join(part[:1].upper() + part[1:] for part in step.op_type.split("_"))


def describe(operator: str, steps: Sequence[Step], roles: Sequence[str]) -> tuple[str, list[str]]:
    """Names the function of some steps and says which prefix each step has.

    Args:
        operator: One of `FUSED_OPERATORS`.
        steps: Its steps.
        roles: For each stage its prefix.

    Returns:
        The function's name, and one prefix per step.
    """
    words = [operator]
    prefixes: list[str] = []
    stage = -1
    added = False
    for step in steps:
        if is_conv(step):
            stage += 1
            bias = len(step.operands) > 2 and step.operands[2] is not None
            words.append(f"{SHORT_ROLES[roles[stage]]}{'Bias' if bias else ''}")
            prefixes.append(roles[stage])
        elif adds_tensor(step):
            added = True
            words.append("add")
            prefixes.append("")
        elif added:
            words[-1] += _word(step)
            prefixes.append("post_")
        else:
            words[-1] += _word(step)
            prefixes.append(roles[stage])
    return "_".join(words), prefixes


def replace_by_fused(
    model: ir.Model, operator: str, steps: Sequence[Step], nodes: Sequence[ir.Node], roles: Sequence[str] = ("",)
) -> None:
    """Puts one call of a fused operator in the place of several nodes.

    Args:
        model: Gets the function.
        operator: One of `FUSED_OPERATORS`.
        steps: What the nodes compute, the first one's data being the data.
        nodes: The nodes, from the first, which reads the data, to the last, whose output survives.
        roles: For each stage its prefix, one of `ROLES[operator]`.
    """
    function_name, prefixes = describe(operator, steps, roles)
    first, last = nodes[0], nodes[-1]
    data = first.inputs[0]
    assert data is not None, "a convolution has an input"
    call = write_call(model, function_name, steps, prefixes, data, node_name=first.name or "")
    graph = last.graph
    assert isinstance(graph, ir.Graph), "passes do not visit function bodies"
    ir.convenience.replace_nodes_and_values(graph, last, list(nodes), [call], last.outputs, call.outputs)
    _drop_unused_functions(model, nodes)


def _drop_unused_functions(model: ir.Model, gone: Sequence[ir.Node]) -> None:
    suspects = {node.op_identifier() for node in gone if node.domain == DOMAIN}
    if not suspects:
        return
    used = {node.op_identifier() for graph in model.graphs() for node in graph}
    used |= {node.op_identifier() for function in model.functions.values() for node in function}
    for identifier in suspects - used:
        model.functions.pop(identifier, None)
