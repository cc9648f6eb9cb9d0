"""Writes sequences of tensors as the tensors that they hold.

Exporters write a split, a chunk or an unbind as a sequence out of which its elements are taken, and a stack as one that is
concatenated. Where it is known how many tensors a sequence holds and which of them is meant, it is no more than a list of names:

    SplitToSequence      Split into the names of the list, behind it a Squeeze of each where `keepdims` is 0
    SequenceConstruct    nothing: the list is its operands
    SequenceAt           nothing where the part of a split has its result's name, otherwise Identity
    SequenceLength       a constant
    ConcatFromSequence   Concat of the list, before it an Unsqueeze of each where `new_axis` is 1

So nothing else of the oracle has to know of a value that is not a tensor. A sequence that is an input or an output of a graph, or
that anything else reads, is refused, and so is an element at a position that is computed. So is `keepdims` 0 beside a scalar
size: by ONNX's text it means nothing there, and ONNX Runtime drops the axis.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["spell_out_sequences"]

OPERATORS = frozenset(("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceLength", "SplitToSequence"))

STANDARD_DOMAINS = frozenset(("", "ai.onnx"))

AXES_ARE_INPUTS = 13
"""Opset from which Split, Squeeze and Unsqueeze take their numbers as an input."""


def spell_out_sequences(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Writes sequences of tensors as the tensors that they hold.

    Args:
        proto: a model.

    Returns:
        The model itself where no operator of sequences is in it; otherwise one without them, and without functions where one of
        those has them. A part of a split has the name under which it is taken out first, `<sequence>/<place>` where it is not.

    Raises:
        InputError: if a position or a size does not fit a sequence.
        UnsupportedError: if it is not known how many tensors a sequence holds, or something else reads it.
    """
    bodies = [node for function in proto.functions for node in _nested(function.node)]
    if any(map(_is_of_sequences, bodies)):
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    if not any(map(_is_of_sequences, _nested(proto.graph.node))):
        return proto
    typed = shape_inference.infer_shapes(proto, data_prop=True)  # a copy: how long an axis is says how many parts it has
    versions = {entry.domain: entry.version for entry in typed.opset_import}
    taken = {name for node in _nested(typed.graph.node) for name in (*node.input, *node.output)}
    _Writer(versions.get("", versions.get("ai.onnx", 0)), taken).write(typed.graph, _Scope())
    return typed


def _is_of_sequences(node: onnx.NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS and node.op_type in OPERATORS


def _nested(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nested(attribute.g.node)


@dataclass(frozen=True)
class _Scope:
    """What is known in a graph of its own values and of those around it.

    Attributes:
        sequences: by name of a sequence those of its tensors.
        constants: tensors by name.
        shapes: shapes by name, None for a dimension that is not known.
        takers: by name of a sequence what takes elements out of it, in the graph alone.
    """

    sequences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    takers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def inner(self, graph: onnx.GraphProto) -> "_Scope":
        """Adds what a graph declares to what is known around it."""
        constants = {tensor.name: tensor for tensor in graph.initializer}
        takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if node.op_type == "SequenceAt":
                takers.setdefault(node.input[0], []).append(node)
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
                elif attribute.name in {"value_int", "value_ints"}:
                    constants[node.output[0]] = _integers(helper.get_attribute_value(attribute))
        shapes: dict[str, tuple[int | None, ...]] = {name: tuple(tensor.dims) for name, tensor in constants.items()}
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                shapes[value.name] = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in dims)
        return _Scope(dict(self.sequences), self.constants | constants, self.shapes | shapes, takers)

    def integers(self, name: str) -> npt.NDArray[Any] | None:
        """Reads a constant; None where it is computed."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


@dataclass(frozen=True)
class _Writer:
    """Writes the nodes of a graph anew.

    Attributes:
        version: opset of the model.
        taken: names that values have.
    """

    version: int
    taken: set[str]

    def write(self, graph: onnx.GraphProto, around: _Scope) -> None:
        """Replaces the operators of sequences in a graph and in its branches."""
        scope = around.inner(graph)
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if _is_of_sequences(node):
                nodes.extend(self.spell(node, scope))
                continue
            for name in node.input:
                if name in scope.sequences:
                    raise UnsupportedError(f"{_title(node)}: the oracle does not know it of a sequence ({name!r}). Remove it.")
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.write(attribute.g, scope)
            nodes.append(node)
        for value in (*graph.input, *graph.output):
            if value.name in scope.sequences or value.type.HasField("sequence_type"):
                raise UnsupportedError(
                    f"{value.name!r} is a sequence, and an input or an output of a graph. Have the tensors in it in its place."
                )
        tensors = [value for value in graph.value_info if value.name not in scope.sequences]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.value_info.extend(tensors)

    def spell(self, node: onnx.NodeProto, scope: _Scope) -> Iterator[onnx.NodeProto]:
        """Yields what stands for an operator of sequences, and notes the sequence that it makes."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        (output,) = node.output
        if node.op_type == "SequenceConstruct":
            scope.sequences[output] = tuple(node.input)
        elif node.op_type == "SplitToSequence":
            yield from self.split(node, scope, attributes)
        else:
            names = self.elements(node, scope)
            if node.op_type == "SequenceAt":
                name = names[_position(node, scope, len(names))]
                if name != output:
                    yield helper.make_node("Identity", [name], [output], node.name)
            elif node.op_type == "SequenceLength":
                yield helper.make_node("Constant", [], [output], node.name, value=_integers(len(names)))
            else:
                axis = attributes["axis"]
                if attributes.get("new_axis", 0):
                    single = [self.free(f"{output}/{place}") for place in range(len(names))]
                    for name, made in zip(names, single, strict=True):
                        yield from self.with_numbers("Unsqueeze", "axes", [axis], name, [made], node.name)
                    names = tuple(single)
                yield helper.make_node("Concat", names, [output], node.name, axis=axis)

    def elements(self, node: onnx.NodeProto, scope: _Scope) -> tuple[str, ...]:
        """Looks up the tensors of the sequence that an operator reads."""
        if node.input[0] not in scope.sequences:
            raise UnsupportedError(
                f"{_title(node)}: reads the sequence {node.input[0]!r}, which neither SequenceConstruct nor SplitToSequence "
                "makes. Have the tensors in it in its place."
            )
        return scope.sequences[node.input[0]]

    def split(self, node: onnx.NodeProto, scope: _Scope, attributes: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
        """Yields a Split into parts of known sizes, and drops the axis of each where that is asked for."""
        axis, keepdims, (output,) = attributes.get("axis", 0), bool(attributes.get("keepdims", 1)), node.output
        sizes = _sizes(node, scope, axis, keepdims=keepdims)
        taken: dict[int, str] = {}
        for taker in scope.takers.get(output, ()):
            taken.setdefault(_position(taker, scope, len(sizes)), taker.output[0])
        names = [taken[place] if place in taken else self.free(f"{output}/{place}") for place in range(len(sizes))]
        scope.sequences[output] = tuple(names)
        if keepdims or (len(node.input) > 1 and node.input[1]):
            yield from self.with_numbers("Split", "split", sizes, node.input[0], names, node.name, axis=axis)
            return
        kept = [self.free(f"{name}/kept") for name in names]
        yield from self.with_numbers("Split", "split", sizes, node.input[0], kept, node.name, axis=axis)
        for name, made in zip(kept, names, strict=True):
            yield from self.with_numbers("Squeeze", "axes", [axis], name, [made], node.name)

    def with_numbers(
        self, operator: str, formal: str, numbers: Sequence[int], operand: str, made: Sequence[str], name: str, **attributes: Any
    ) -> Iterator[onnx.NodeProto]:
        """Yields an operator that takes numbers: as an attribute in older opsets, and then as a constant input."""
        operands = [operand]
        if self.version < AXES_ARE_INPUTS:
            attributes[formal] = numbers
        else:
            operands.append(self.free(f"{made[0]}/{formal}"))
            yield helper.make_node("Constant", [], operands[1:], value=_integers(numbers))
        yield helper.make_node(operator, operands, made, name, **attributes)

    def free(self, wanted: str) -> str:
        """Takes a name that no value has."""
        while wanted in self.taken:
            wanted += "'"
        self.taken.add(wanted)
        return wanted


def _integers(numbers: int | Sequence[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(numbers, np.int64))


def _title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or repr(node.output[0])}"


def _position(node: onnx.NodeProto, scope: _Scope, length: int) -> int:
    """Reads which element is taken; negative ones count from the end."""
    position = scope.integers(node.input[1])
    if position is None:
        raise UnsupportedError(f"{_title(node)}: its position {node.input[1]!r} is computed. Export it as a constant.")
    place = int(position.reshape(()))
    if not -length <= place < length:
        raise InputError(f"{_title(node)}: takes element {place} of a sequence of {length}. Check the model.")
    return place % length


def _sizes(node: onnx.NodeProto, scope: _Scope, axis: int, *, keepdims: bool) -> list[int]:
    """Reads or works out the extents of the parts of a SplitToSequence."""
    given = None
    if len(node.input) > 1 and node.input[1]:
        given = scope.integers(node.input[1])
        if given is None:
            raise UnsupportedError(f"{_title(node)}: its sizes {node.input[1]!r} are computed. Export them as a constant.")
        if given.ndim:
            return [int(size) for size in given]
        if not keepdims:
            raise UnsupportedError(
                f"{_title(node)}: ONNX ignores keepdims=0 beside a scalar size, and ONNX Runtime drops the axis. "
                "Export it without a size."
            )
    step = 1 if given is None else int(given)
    if step < 1:
        raise InputError(f"{_title(node)}: splits into parts of {step} elements; at least 1 is needed. Check the model.")
    shape = scope.shapes.get(node.input[0])
    if shape is None:
        raise UnsupportedError(f"{_title(node)}: the shape of {node.input[0]!r} is not known. Export it with a static one.")
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"{_title(node)}: axis {axis} of a tensor of {len(shape)} axes. Check the model.")
    extent = shape[axis]
    if extent is None:
        raise UnsupportedError(f"{_title(node)}: axis {axis} of {node.input[0]!r} has no static extent. Export it with one.")
    return [min(step, extent - start) for start in range(0, extent, step)]
