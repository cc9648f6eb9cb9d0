"""Model-local functions of the domain `sepwise`: written, and read back as the steps that they consist of.

A fused operator is a list of steps, each an operator of plain ONNX (or a recognised activation, itself a function).
`write_call` turns steps into a call of a function with

    one function per signature: which operators, how connected; its name says it (`SeparableConv_dwBiasClip_pwBias`)
    attributes on the call:     geometry, alpha, ..., and scalar constants as tensors; the body refers to them
    inputs of the call:         the data, then weights, biases and the residual, as the steps come to them

`spell` is its inverse, for calls and for plain nodes alike.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from sepwise.passes.rewriting import constant_tensor, original_nodes, set_original_nodes
from sepwise.passes.vocabulary import DOMAIN, DOMAIN_VERSION

__all__ = [
    "DATA",
    "MINIMUM_IR_VERSION",
    "Operand",
    "Result",
    "Step",
    "adds_tensor",
    "function_of",
    "joined",
    "spell",
    "write_call",
]

MINIMUM_IR_VERSION = 8
"""Model-local functions exist since this version of the ONNX IR."""

COMMUTATIVE = ("Add", "Max", "Min", "Mul")


@dataclass(frozen=True)
class Result:
    """The result of an earlier step, as an operand.

    Attributes:
        step: Index of the step, or -1 for the data input of the whole list.
    """

    step: int


DATA = Result(-1)
"""The data input of a list of steps."""

Operand = Result | ir.Value | ir.TensorProtocol | None
"""An earlier result, a value of the calling graph, a scalar constant, or an omitted input."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of a fused computation.

    Attributes:
        op_type: The operator, or the name of a function.
        domain: "" or `sepwise`.
        operands: Its inputs.
        attributes: Its attributes, none of them a reference.
        nodes: Names of the original nodes that it covers.
    """

    op_type: str
    domain: str
    operands: tuple[Operand, ...]
    attributes: Mapping[str, ir.Attr]
    nodes: tuple[str, ...]


def function_of(model: ir.Model, step: ir.Node | Step) -> ir.Function | None:
    """Returns the function of the domain `sepwise` that a node or step calls, or None."""
    return model.functions.get((DOMAIN, step.op_type, "")) if step.domain == DOMAIN else None


def adds_tensor(step: Step) -> bool:
    """Tells whether a step adds a value of the caller's graph, as a residual is, and no number."""
    return step.op_type == "Add" and step.domain == "" and any(isinstance(operand, ir.Value) for operand in step.operands)


def joined(first: Sequence[Step], second: Sequence[Step]) -> tuple[Step, ...]:
    """Lets `second` read the last result of `first` as its data."""
    offset = len(first)

    def moved(operand: Operand) -> Operand:
        return Result(operand.step + offset) if isinstance(operand, Result) else operand

    return (*first, *(replace(step, operands=tuple(moved(operand) for operand in step.operands)) for step in second))


def spell(model: ir.Model, node: ir.Node) -> tuple[Step, ...]:
    """Returns the steps of a node: its function's body if it calls one of ours, else the node itself.

    Args:
        model: Holds the functions.
        node: A node whose first input is its data.

    Returns:
        The steps, in terms of values of the caller's graph.
    """
    covered = original_nodes(node)
    function = function_of(model, node)
    if function is None:
        operands: list[Operand] = [DATA]
        for value in node.inputs[1:]:
            tensor = constant_tensor(value)
            is_number = tensor is not None and tensor.size == 1 and node.op_type != "Conv"
            operands.append(tensor if is_number else value)
        names = tuple(name for step in covered for name in step)
        return (Step(node.op_type, node.domain, tuple(operands), dict(node.attributes), names),)
    known: dict[ir.Value | None, Operand] = {None: None}
    for index, parameter in enumerate(function.inputs):
        known[parameter] = DATA if index == 0 else node.inputs[index]
    steps: list[Step] = []
    for inner in function:
        attributes = {name: _resolved(attribute, node, function) for name, attribute in inner.attributes.items()}
        if inner.op_type == "Constant" and inner.domain == "":
            known[inner.outputs[0]] = attributes["value"].as_tensor()
            continue
        known[inner.outputs[0]] = Result(len(steps))
        names = covered[len(steps)] if len(steps) < len(covered) else ()
        steps.append(Step(inner.op_type, inner.domain, tuple(known[value] for value in inner.inputs), attributes, names))
    return tuple(steps)


def _resolved(attribute: ir.Attr, call: ir.Node, function: ir.Function) -> ir.Attr:
    if not attribute.is_ref():
        return attribute
    assert attribute.ref_attr_name is not None, "a reference names its attribute"
    given = call.attributes.get(attribute.ref_attr_name)
    actual = function.attributes[attribute.ref_attr_name] if given is None else given
    return ir.Attr(attribute.name, actual.type, actual.value)


def _order(operand: Operand) -> tuple[int, int]:
    match operand:
        case Result(step):
            return (0, step)
        case ir.Value():
            return (1, 0)
    return (2, 0)


def _label(step: Step, position: int) -> str:
    if step.op_type == "Conv":
        return ("x", "weight", "bias")[position]
    if step.op_type == "Clip":
        return ("x", "min", "max")[position]
    return "b"


def write_call(
    model: ir.Model,
    function_name: str,
    steps: Sequence[Step],
    prefixes: Sequence[str],
    data: ir.Value,
    *,
    node_name: str,
) -> ir.Node:
    """Makes the call of a function that computes `steps`, and the function if the model lacks it.

    Args:
        model: Gets the function; its IR version and operator set imports are raised as functions need.
        function_name: The name that the signature deserves.
        steps: What is computed; the last step's result is the output.
        prefixes: For each step what its attributes and inputs are prefixed with on the call.
        data: The data input.
        node_name: Name of the call.

    Returns:
        The call, in no graph yet, with one output that has no name yet.
    """
    body: list[ir.Node] = []
    parameters = [ir.Value(name="x")]
    arguments: list[ir.Value] = [data]
    attributes: dict[str, ir.Attr] = {}
    results: list[ir.Value] = []
    nested = False

    def lifted(wanted: str, attribute: ir.Attr) -> str:
        name, number = wanted, 1
        while name in attributes:
            number += 1
            name = f"{wanted}_{number}"
        attributes[name] = ir.Attr(name, attribute.type, attribute.value)
        return name

    for step, prefix in zip(steps, prefixes, strict=True):
        short = step.op_type.split("_")[0].lower()
        own = prefix if step.op_type == "Conv" else f"{prefix}{short}_"
        operands = sorted(step.operands, key=_order) if step.op_type in COMMUTATIVE and step.domain == "" else step.operands
        inputs: list[ir.Value | None] = []
        for position, operand in enumerate(operands):
            match operand:
                case None:
                    inputs.append(None)
                case Result(index):
                    inputs.append(parameters[0] if index < 0 else results[index])
                case ir.Value():
                    label = "residual" if step.op_type == "Add" else f"{prefix}{_label(step, position)}"
                    parameters.append(ir.Value(name=label))
                    arguments.append(operand)
                    inputs.append(parameters[-1])
                case tensor:
                    name = lifted(f"{own}{_label(step, position)}", ir.AttrTensor("value", tensor))
                    reference = ir.RefAttr("value", name, ir.AttributeType.TENSOR)
                    constant = ir.Node("", "Constant", [], [reference], outputs=[ir.Value(name=f"constant_{name}")])
                    body.append(constant)
                    inputs.append(constant.outputs[0])
        references = [
            ir.RefAttr(attribute.name, lifted(f"{own}{attribute.name}", attribute), attribute.type)
            for _, attribute in sorted(step.attributes.items())
        ]
        last = len(results) == len(steps) - 1
        output = ir.Value(name="y" if last else f"{prefix}{short}_{len(results)}")
        node = ir.Node(step.domain, step.op_type, inputs, references, outputs=[output], name=f"{prefix}{short}_{len(results)}")
        nested = nested or step.domain == DOMAIN
        body.append(node)
        results.append(output)

    version = model.opset_imports.get("", 1)
    imports = {"": version, DOMAIN: DOMAIN_VERSION} if nested else {"": version}
    declared = [ir.Attr(name, attribute.type, None) for name, attribute in attributes.items()]
    graph = ir.Graph(parameters, [results[-1]], nodes=body, opset_imports=imports)
    name = _registered(model, function_name, ir.Function(DOMAIN, function_name, graph=graph, attributes=declared))
    call = ir.Node(DOMAIN, name, arguments, list(attributes.values()), num_outputs=1, name=node_name)
    set_original_nodes(call, [step.nodes for step in steps])
    return call


def _signature(function: ir.Function) -> str:
    lines = [",".join(value.name or "" for value in function.inputs), ",".join(sorted(function.attributes))]
    for node in function:
        inputs = ",".join("" if value is None else value.name or "" for value in node.inputs)
        attributes = ",".join(f"{name}=@{attribute.ref_attr_name}" for name, attribute in sorted(node.attributes.items()))
        lines.append(f"{node.outputs[0].name}={node.domain}::{node.op_type}({inputs};{attributes})")
    return "\n".join(lines)


def _registered(model: ir.Model, name: str, function: ir.Function) -> str:
    signature = _signature(function)
    present = model.functions.get((DOMAIN, name, ""))
    if present is not None and _signature(present) != signature:  # the same words for another wiring
        name = f"{name}_{hashlib.sha256(signature.encode()).hexdigest()[:8]}"
        function.name = name
        present = model.functions.get((DOMAIN, name, ""))
    if present is None:
        model.functions[(DOMAIN, name, "")] = function
        model.opset_imports.setdefault(DOMAIN, DOMAIN_VERSION)
        model.ir_version = max(model.ir_version, MINIMUM_IR_VERSION)
    return name
