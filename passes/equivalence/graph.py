"""Reads an ONNX model into a flat list of operations with float64 constants.

Calls of model-local functions are expanded in place, nested ones too, so that everything after this file sees
operators of ONNX only. Attributes that a function's body takes from its caller are resolved on the way. Every
floating-point value keeps the format in which the model stores it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from sepwise.passes.equivalence.formats import BINARY32, FORMATS, Format, result_format
from sepwise.passes.equivalence.sequences import spell_out_sequences
from sepwise.passes.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Array", "Attribute", "Graph", "Model", "Operation", "Port", "as_proto", "read_graph", "spell_out", "widen"]

Array: TypeAlias = npt.NDArray[Any]
Attribute: TypeAlias = "int | float | str | Array | Graph | list[int] | list[float] | list[str]"
Model: TypeAlias = "onnx.ModelProto | ir.Model | Graph"

STANDARD_DOMAINS = ("", "ai.onnx")
NEWEST_OPSET = 28

QUANTISED = frozenset(
    (
        *("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "QuantizeLinear"),
    )
)


@dataclass(frozen=True)
class Operation:
    """One operator call, after functions are expanded.

    Attributes:
        operator: ONNX operator, such as `Conv`.
        version: opset that the call is written in.
        name: name of the node, for messages.
        inputs: value names; an empty one is an optional input that is left out.
        outputs: value names; an empty one is not used.
        attributes: those present on the node.
        format: in which its first result is stored, where that is of floating-point numbers.
        source: in which its first input is stored, None where that is not of floating-point numbers.
    """

    operator: str
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    format: Format = BINARY32
    source: Format | None = BINARY32

    def __str__(self) -> str:
        """Names the call as messages do."""
        return f"{self.operator} {self.name or self.outputs[0]!r}"

    def integer(self, name: str, default: int) -> int:
        """Reads an integer attribute."""
        value = self.attributes.get(name, default)
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float) -> float:
        """Reads a float attribute; the default is rounded to float32, as a stored attribute is."""
        value = self.attributes.get(name)
        if value is None:
            return float(np.float32(default))
        assert isinstance(value, float)
        return value

    def text(self, name: str, default: str) -> str:
        """Reads a string attribute."""
        value = self.attributes.get(name, default)
        assert isinstance(value, str)
        return value

    def integers(self, name: str) -> list[int] | None:
        """Reads a list of integers, or None where the attribute is absent."""
        value = self.attributes.get(name)
        if value is None:
            return None
        assert isinstance(value, list)
        return [int(item) for item in value]

    def subgraphs(self) -> Iterator["Graph"]:
        """Yields the graphs that the operation carries (If, Loop, Scan)."""
        for value in self.attributes.values():
            if isinstance(value, Graph):
                yield value


@dataclass(frozen=True)
class Port:
    """One input or output of a graph.

    Attributes:
        name: name of the value.
        element_type: `onnx.TensorProto` data type, 0 if not declared.
        shape: dimensions, None where symbolic; None as a whole where not declared.
    """

    name: str
    element_type: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Graph:
    """A flat graph: constants and operations in execution order.

    Attributes:
        inputs: graph inputs without initializers.
        outputs: graph outputs.
        constants: initializers and Constant nodes by name; floating-point ones are float64.
        operations: calls in execution order.
        formats: in which floating-point values are stored, constants among them, as far as that is known.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, Array]
    operations: tuple[Operation, ...]
    formats: Mapping[str, Format] = field(default_factory=dict)

    def format_of(self, name: str) -> Format:
        """Returns the format of a floating-point value; binary32 where nothing says it."""
        return self.formats.get(name, BINARY32)

    def captured(self) -> set[str]:
        """Lists the names that the graph takes from around it."""
        known = {port.name for port in self.inputs} | set(self.constants)
        outer: set[str] = set()
        for operation in self.operations:
            outer.update(name for name in operation.inputs if name and name not in known)
            for subgraph in operation.subgraphs():
                outer.update(subgraph.captured() - known)
            known.update(operation.outputs)
        outer.update(port.name for port in self.outputs if port.name not in known)
        return outer


def widen(array: Array) -> Array:
    """Casts floating-point tensors of any width to float64 and leaves others alone."""
    if array.dtype == np.float64 or array.dtype.kind in "iubOSU":
        return array
    if array.dtype.kind == "f" or "float" in array.dtype.name:
        return array.astype(np.float64)
    return array


def as_proto(model: Model) -> onnx.ModelProto:
    """Returns the model as a protobuf.

    Args:
        model: an `onnx.ModelProto` or an `onnx_ir.Model`.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    import onnx_ir as ir  # half a second, and only needed for models of that kind

    if isinstance(model, ir.Model):
        return ir.to_proto(model)
    raise InputError(f"Expected an onnx.ModelProto or an onnx_ir.Model, found {type(model).__name__}.")


def read_graph(model: Model) -> Graph:
    """Reads a model: functions expanded, constants in float64.

    Args:
        model: an `onnx.ModelProto` or an `onnx_ir.Model`; a graph that was read before is returned as it is.

    Returns:
        The flat graph, with the definitions of operators that nothing computes directly (`spell_out`). Values of the main
        graph keep their names; those inside an expanded function are named `<call>/<name in the body>`.

    Raises:
        UnsupportedError: if an operator is of a domain that is neither ONNX nor a function of the model, or quantises.
    """
    if isinstance(model, Graph):
        return model
    proto = spell_out(as_proto(model))
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    return _Reader(functions).graph(proto.graph, opsets)


def spell_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Writes operators that nothing computes directly as what ONNX defines them by.

    Args:
        proto: a model.

    Returns:
        The model itself where there is no such operator, otherwise one in which their definitions stand for them, and tensors
        for sequences of them. Those in the bodies of functions stay, but for sequences.

    Raises:
        InputError: if a position or a size does not fit a sequence.
        UnsupportedError: if a sequence is not static.
    """
    proto = spell_out_sequences(proto)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    names = {node.op_type for node in _nodes(proto.graph) if node.domain in STANDARD_DOMAINS}
    version = versions.get("", versions.get("ai.onnx", 0))
    defined = [("", name) for name in sorted(names) if _has_definition_alone(name, version)]
    if not defined:
        return proto
    from onnx import inliner

    typed = onnx.ModelProto()
    typed.CopyFrom(proto)  # the definition depends on the types of what it is applied to, constants among them
    declared = {value.name for value in (*proto.graph.input, *proto.graph.value_info)}
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.name not in declared
    )
    return inliner.inline_selected_functions(typed, defined, inline_schema_functions=True)


def _has_definition_alone(operator: str, version: int) -> bool:
    """Tells whether ONNX defines an operator by others, and neither the oracle nor ONNX's reference computes it."""
    from sepwise.passes.equivalence.operators import OPERATORS  # which is made of what is here

    if operator in OPERATORS:
        return False
    if not any(schema.name == operator and schema.domain == "" for schema in onnx.defs.get_function_ops()):
        return False
    from onnx.reference.ops import load_op

    try:
        load_op("", operator, version)
    except Exception:  # whatever it raises, there is none
        return True
    return False


def _nodes(proto: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in proto.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


@dataclass(frozen=True)
class _Reader:
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]

    def graph(
        self,
        proto: onnx.GraphProto,
        opsets: Mapping[str, int],
        rename: Mapping[str, str] | None = None,
        around: Mapping[str, Format] | None = None,
    ) -> Graph:
        rename = {} if rename is None else rename
        constants = {rename.get(t.name, t.name): widen(numpy_helper.to_array(t)) for t in proto.initializer}
        formats = dict(around or {})
        stored = {v.name: v.type.tensor_type.elem_type for v in proto.input} | {t.name: t.data_type for t in proto.initializer}
        formats.update((rename.get(name, name), FORMATS[kind]) for name, kind in stored.items() if kind in FORMATS)
        for sparse in proto.sparse_initializer:
            raise UnsupportedError(f"Initializer {sparse.values.name!r} is sparse; store it as a dense tensor.")
        operations = []
        for operation in self.expand(proto.node, opsets, dict(rename), {}, formats):
            if operation.operator == "Constant":
                constants[operation.outputs[0]] = _constant_value(operation)
            else:
                operations.append(operation)
        return Graph(
            inputs=tuple(_port(value, rename) for value in proto.input if rename.get(value.name, value.name) not in constants),
            outputs=tuple(_port(value, rename) for value in proto.output),
            constants=constants,
            operations=tuple(operations),
            formats=formats,
        )

    def expand(
        self,
        nodes: Iterable[onnx.NodeProto],
        opsets: Mapping[str, int],
        rename: dict[str, str],
        arguments: Mapping[str, onnx.AttributeProto],
        formats: dict[str, Format],
        prefix: str = "",
    ) -> Iterator[Operation]:
        """Yields the operations of a list of nodes.

        Args:
            nodes: nodes in execution order.
            opsets: version of each domain.
            rename: names inside the list to names outside it; grows as values are defined.
            arguments: attributes of the surrounding function call.
            formats: those of values under their names outside; grows as values are defined.
            prefix: put before the names of values defined here; empty in the main graph.
        """
        for node in nodes:
            if prefix:
                for name in node.output:
                    if name:
                        rename.setdefault(name, prefix + name)
            inputs = tuple(rename.get(name, name) for name in node.input)
            outputs = tuple(rename.get(name, name) for name in node.output)
            attributes = _resolve(node.attribute, arguments)
            function = self.functions.get((node.domain, node.op_type, node.overload))
            if function is not None:
                yield from self.call(function, node, inputs, outputs, attributes, formats, prefix)
                continue
            if node.domain not in STANDARD_DOMAINS:
                raise UnsupportedError(
                    f"Node {node.name or node.output[0]!r} calls {node.domain}::{node.op_type}, which is neither an ONNX "
                    "operator nor a function of the model. Export the model without custom operators."
                )
            if node.op_type in QUANTISED:
                raise UnsupportedError(
                    f"{node.op_type} {node.name or node.output[0]!r}: quantised models are not supported, as what rounding to a "
                    "grid may change has no tolerance here. Verify the model before it is quantised."
                )
            version = opsets.get(node.domain, opsets.get("", opsets.get("ai.onnx", 0)))
            if not 0 < version <= NEWEST_OPSET:
                raise UnsupportedError(f"Opset {version} is not known; 1 to {NEWEST_OPSET} are. Convert the model first.")
            read = {a.name: self.attribute(a, opsets, rename, formats) for a in attributes}
            operation = Operation(node.op_type, version, node.name, inputs, outputs, read)
            yield _with_formats(operation, attributes, formats)

    def call(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Sequence[onnx.AttributeProto],
        formats: dict[str, Format],
        outer: str,
    ) -> Iterator[Operation]:
        """Yields the operations of a function call, under the caller's names; its own begin with `outer` and the call's."""
        given = {a.name: a for a in attributes}
        arguments = {a.name: a for a in function.attribute_proto} | given
        actual = dict.fromkeys(function.input, "") | dict(zip(function.input, inputs, strict=False))
        results = {inner: outer for inner, outer in zip(function.output, outputs, strict=False) if outer}
        prefix = f"{outer}{node.name or next(filter(None, node.output))}/"
        passed_on = [name for name in results if name in actual]
        for name in passed_on:  # an input that is also an output: the body needs no node for it, we do
            yield _with_formats(Operation("Identity", 13, node.name, (actual[name],), (results.pop(name),)), (), formats)
        opsets = {entry.domain: entry.version for entry in function.opset_import}
        yield from self.expand(function.node, opsets, actual | results, arguments, formats, prefix)

    def attribute(
        self,
        proto: onnx.AttributeProto,
        opsets: Mapping[str, int],
        rename: Mapping[str, str],
        formats: Mapping[str, Format],
    ) -> Attribute:
        kind = proto.type
        if kind == onnx.AttributeProto.FLOAT:
            return float(proto.f)
        if kind == onnx.AttributeProto.INT:
            return int(proto.i)
        if kind == onnx.AttributeProto.STRING:
            return proto.s.decode()
        if kind == onnx.AttributeProto.FLOATS:
            return [float(item) for item in proto.floats]
        if kind == onnx.AttributeProto.INTS:
            return [int(item) for item in proto.ints]
        if kind == onnx.AttributeProto.STRINGS:
            return [item.decode() for item in proto.strings]
        if kind == onnx.AttributeProto.TENSOR:
            return widen(numpy_helper.to_array(proto.t))
        if kind == onnx.AttributeProto.GRAPH:
            return self.graph(proto.g, opsets, rename, formats)
        kinds = onnx.AttributeProto.AttributeType
        raise UnsupportedError(f"Attribute {proto.name!r} has type {kinds.Name(kind)}, which no supported operator takes.")


def _with_formats(op: Operation, attributes: Iterable[onnx.AttributeProto], formats: dict[str, Format]) -> Operation:
    """Finds the formats of an operation's operand and result, and notes those of what it computes in `formats`."""
    operands = [formats.get(name) for name in op.inputs]
    branches = [graph.formats.get(graph.outputs[0].name) for graph in op.subgraphs() if graph.outputs]
    if branches:
        made = branches[0]
    elif op.operator == "Constant":
        kinds = [_element_type(a) for a in attributes if a.type != onnx.AttributeProto.INT]
        made = FORMATS.get(kinds[0]) if kinds else None
    else:
        stated = {a.name: _element_type(a) for a in attributes}
        made = result_format(op.operator, op.version, operands, stated)
    if made is None:
        return replace(op, source=operands[0] if operands else None)
    formats.update((name, made) for name in op.outputs if name)
    return replace(op, format=made, source=operands[0] if operands else None)


def _element_type(attribute: onnx.AttributeProto) -> int:
    """Reads an attribute as a data type: an integer as itself, numbers and tensors as the type of their elements."""
    kinds = onnx.AttributeProto
    if attribute.type == kinds.TENSOR:
        return attribute.t.data_type
    if attribute.type in {kinds.FLOAT, kinds.FLOATS}:
        return onnx.TensorProto.FLOAT
    return attribute.i if attribute.type == kinds.INT else onnx.TensorProto.UNDEFINED


def _resolve(
    attributes: Collection[onnx.AttributeProto], arguments: Mapping[str, onnx.AttributeProto]
) -> list[onnx.AttributeProto]:
    """Replaces references to attributes of the surrounding call; one that the caller left out stays out."""
    resolved = []
    for attribute in attributes:
        if not attribute.ref_attr_name:
            resolved.append(attribute)
        elif attribute.ref_attr_name in arguments:
            copy = onnx.AttributeProto()
            copy.CopyFrom(arguments[attribute.ref_attr_name])
            copy.name = attribute.name
            resolved.append(copy)
    return resolved


def _constant_value(op: Operation) -> Array:
    """Reads the tensor of a Constant node."""
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in op.attributes:
            value = op.attributes[name]
            return np.asarray(value, np.int64) if name.startswith("value_int") else np.asarray(value)
    raise UnsupportedError(f"{op}: holds neither a tensor nor numbers. Store it as a dense tensor.")


def _port(value: onnx.ValueInfoProto, rename: Mapping[str, str]) -> Port:
    name = rename.get(value.name, value.name)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(name, tensor.elem_type, None)
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return Port(name, tensor.elem_type, shape)
