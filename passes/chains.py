"""Reads what nodes compute in the vocabulary of fused operators: chains of convolutions, and activations.

The reading comes from the operators themselves, a function's body included, never from a function's name: a
name cannot lie about what is computed.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from sepwise.passes.activations import IDENTITY, Form, apply, classify, scalar
from sepwise.passes.activations import Operand as FormOperand
from sepwise.passes.functions import DATA, Operand, Result, Step, adds_tensor, function_of, spell
from sepwise.passes.geometry import explicit_geometry, read_geometry
from sepwise.passes.rewriting import Refusal, constant_tensor, is_operator
from sepwise.passes.vocabulary import DOMAIN, FUSED_OPERATORS, Activation, ConvStage, FusedChain

__all__ = ["conv_kind", "conv_steps", "family", "read_activation", "read_chain", "step_activation"]


def family(node: ir.Node) -> str | None:
    """Returns which of `FUSED_OPERATORS` a node is, by its function's name, or None."""
    if node.domain != DOMAIN:
        return None
    stem = node.op_type.split("_")[0]
    return stem if stem in FUSED_OPERATORS else None


def _form_of_steps(model: ir.Model, steps: tuple[Step, ...]) -> Form | None:
    forms: list[Form | None] = []

    def form_operand(operand: Operand) -> FormOperand:
        match operand:
            case Result(index):
                return IDENTITY if index < 0 else forms[index]
            case None:
                return None
            case ir.Value():
                return scalar(constant_tensor(operand))
        return scalar(operand)

    for step in steps:
        if step.domain == "":
            operands = list(step.operands)
            while operands and operands[-1] is None:
                operands.pop()
            if step.op_type == "Clip":  # an omitted bound is no bound
                forms.append(_clip_form(step, tuple(form_operand(operand) for operand in operands), operands))
            else:
                forms.append(apply(step.op_type, [form_operand(operand) for operand in operands], step.attributes))
        else:
            forms.append(None)
    return forms[-1] if forms else None


def _clip_form(step: Step, forms: tuple[FormOperand, ...], operands: list[Operand]) -> Form | None:
    unbounded = (0.0, float("-inf"), float("inf"))
    filled = [unbounded[index] if operand is None else forms[index] for index, operand in enumerate(operands)]
    return apply("Clip", filled, step.attributes)


def step_activation(model: ir.Model, step: Step) -> Activation | None:
    """Returns the activation that a step applies to its first operand, or None."""
    function = function_of(model, step)
    if function is None:
        data = (DATA, *step.operands[1:])
        return classify(_form_of_steps(model, (Step(step.op_type, step.domain, data, step.attributes, ()),)))
    if len(function.inputs) != 1:
        return None
    call = ir.Node(step.domain, step.op_type, [None], list(step.attributes.values()), num_outputs=1)
    return classify(_form_of_steps(model, spell(model, call)))


def read_activation(model: ir.Model, node: ir.Node) -> Activation | None:
    """Reads an activation node, or the call of a recognised one.

    Args:
        model: Holds the functions.
        node: Any node.

    Returns:
        What the node applies to its first input, or None if it is no activation of the vocabulary.
    """
    if node.domain not in ("", DOMAIN) or not node.inputs or node.inputs[0] is None or family(node) is not None:
        return None
    if len(node.inputs) > 1 and node.op_type != "Clip":
        return None
    (step,) = spell(model, node) if node.domain == "" else (Step(node.op_type, DOMAIN, (DATA,), dict(node.attributes), ()),)
    return step_activation(model, step)


def conv_steps(model: ir.Model, node: ir.Node) -> tuple[Step, ...] | Refusal | None:
    """Returns the steps of a Conv or fused call, every Conv with its geometry spelled out.

    Args:
        model: Holds the functions.
        node: Any node.

    Returns:
        The steps; a refusal if a Conv's geometry is not known; None if the node is neither a Conv nor a fused call.
    """
    if family(node) is not None:
        return spell(model, node)
    if not is_operator(node, "Conv"):
        return None
    (step,) = spell(model, node)
    if explicit_geometry(node):
        return (step,)
    geometry = read_geometry(node)
    if isinstance(geometry, Refusal):
        return geometry
    return (Step("Conv", "", step.operands, geometry.attributes(), step.nodes),)


@dataclass
class _Reading:
    stages: list[ConvStage]
    residual: str | None = None
    post_activation: Activation | None = None


def _value_name(operand: Operand) -> str | None:
    return operand.name if isinstance(operand, ir.Value) else None


def read_chain(model: ir.Model, node: ir.Node) -> FusedChain | None:
    """Reads a fused call or a plain Conv as a chain of convolutions.

    Args:
        model: Holds the functions.
        node: Any node.

    Returns:
        The chain, its value names those of the node's graph, its node names those of the original model; None if
        the node is no such chain.
    """
    steps = conv_steps(model, node)
    if steps is None or isinstance(steps, Refusal):
        return None
    reading = _Reading([])
    for index, step in enumerate(steps):
        if step.op_type == "Conv" and step.domain == "":
            if not _read_stage(reading, step, index):
                return None
        elif adds_tensor(step):
            values = [operand for operand in step.operands if isinstance(operand, ir.Value)]
            if len(values) != 1 or reading.residual is not None or Result(index - 1) not in step.operands:
                return None
            reading.residual = values[0].name
        elif not (_read_epilogue(reading, step, step_activation(model, step)) or _read_affine(reading, step, index)):
            return None
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None, "a convolution has an input"
    return FusedChain(
        operator=family(node) or "Conv",
        input=data.name or "",
        stages=tuple(reading.stages),
        residual=reading.residual,
        post_activation=reading.post_activation,
        output=output.name or "",
        nodes=tuple(name for step in steps for name in step.nodes),
    )


def _read_stage(reading: _Reading, step: Step, index: int) -> bool:
    weight = _value_name(step.operands[1])
    if weight is None or step.operands[0] != Result(index - 1) or reading.residual is not None:
        return False
    attributes = step.attributes
    reading.stages.append(
        ConvStage(
            weight=weight,
            bias=_value_name(step.operands[2]) if len(step.operands) > 2 else None,
            kernel_shape=tuple(attributes["kernel_shape"].as_ints()),
            strides=tuple(attributes["strides"].as_ints()),
            pads=tuple(attributes["pads"].as_ints()),
            dilations=tuple(attributes["dilations"].as_ints()),
            group=attributes["group"].as_int(),
            activation=None,
            nodes=step.nodes,
        )
    )
    return True


def _read_epilogue(reading: _Reading, step: Step, activation: Activation | None) -> bool:
    if activation is None or not reading.stages:
        return False
    if reading.residual is not None:
        if reading.post_activation is not None:
            return False
        reading.post_activation = activation
        return True
    last = reading.stages[-1]
    if last.activation is not None:
        return False
    reading.stages[-1] = replace(last, activation=activation, nodes=(*last.nodes, *step.nodes))
    return True


def _read_affine(reading: _Reading, step: Step, index: int) -> bool:
    """Reads the product or the sum of an activation's result and a number."""
    numbers = [scalar(operand) for operand in step.operands if not isinstance(operand, Result | ir.Value | None)]
    last = reading.stages[-1] if reading.stages and reading.residual is None else None
    if last is None or last.activation is None or step.domain != "" or Result(index - 1) not in step.operands:
        return False
    if len(numbers) != 1 or numbers[0] is None:
        return False
    before = last.activation
    if step.op_type == "Mul" and (before.scale, before.shift) == (1.0, 0.0):
        activation = replace(before, scale=numbers[0])
    elif step.op_type == "Add" and before.shift == 0.0:
        activation = replace(before, shift=numbers[0])
    else:
        return False
    reading.stages[-1] = replace(last, activation=activation, nodes=(*last.nodes, *step.nodes))
    return True


def conv_kind(weight_shape: tuple[int, ...], group: int) -> str:
    """Says which kind of convolution a Conv is.

    Args:
        weight_shape: Shape of its weight, (m, c / group, *kernel).
        group: Number of its groups.

    Returns:
        `depthwise` (each group has one input channel), `pointwise` (a window of one element, one group),
        `grouped`, or `dense`.
    """
    if group > 1:
        return "depthwise" if weight_shape[1] == 1 else "grouped"
    return "pointwise" if all(extent == 1 for extent in weight_shape[2:]) else "dense"
