"""Rewrites an exported model of opset 18 for 13 to 17.

The exporter writes 18 at least, and onnx's own version converter knows no way down for BatchNormalization, Split and
Resize. The zoo uses few operators, so the way down is spelled here, each change with the version that made it:

- ReduceMean 18 took its axes as an input; they go back into the attribute, which must exist before.
- Split 18 added `num_outputs`; before it unequal or equal parts are given by the input `split`.
- Resize 18 added `antialias`, `axes` and `keep_aspect_ratio_policy`; their defaults are what was there before.
- Pad 18 added `axes` and Reshape 14 `allowzero`, BatchNormalization 14 `training_mode`; dropped likewise.
- HardSwish came with 14; before it is `x * HardSigmoid(x)` with alpha 1/6 and beta 1/2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper, numpy_helper

from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OPSET_MINIMUM", "lower_opset"]

OPSET_MINIMUM = 13
_FROM = 18

# Attributes that did not exist before the version; dropped where they hold the value that means "as before".
_YOUNGER_ATTRIBUTES: dict[str, dict[str, tuple[int, object]]] = {
    "BatchNormalization": {"training_mode": (14, 0)},
    "ReduceMean": {"noop_with_empty_axes": (18, 0)},
    "Reshape": {"allowzero": (14, None)},  # any: the exporter sets it, and no shape of the zoo has a 0
    "Resize": {"antialias": (18, 0), "keep_aspect_ratio_policy": (18, b"stretch")},
    "Split": {"num_outputs": (18, None)},  # replaced by the input `split`
}
_SAME = frozenset(
    "Add AveragePool BatchNormalization Clip Concat Conv Flatten Gemm GlobalAveragePool HardSigmoid Identity MaxPool Mul Pad "
    "Relu Reshape Resize Sigmoid Slice Transpose".split()
)


def lower_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrites a model of opset 18 for an older one.

    Args:
        proto: The model, constants folded into initializers and shapes inferred.
        opset: The opset wanted, 13 to 17.

    Returns:
        A new model that computes the same.

    Raises:
        InputError: An operator or an attribute has no form in that opset.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(proto)
    graph = lowered.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {info.name: info.type.tensor_type.shape for info in (*graph.value_info, *graph.input, *graph.output)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        _drop_younger_attributes(node, opset)
        if node.op_type == "ReduceMean":
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            del node.input[1:]
            node.attribute.append(helper.make_attribute("axes", axes))
        elif node.op_type == "Split":
            if len(node.input) == 1:
                axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
                sizes = [shapes[name].dim[axis].dim_value for name in node.output]
                graph.initializer.append(helper.make_tensor(f"{node.name}.split", onnx.TensorProto.INT64, [len(sizes)], sizes))
                node.input.append(f"{node.name}.split")
        elif node.op_type == "HardSwish":
            if opset < 14:
                gate = f"{node.name}.HardSigmoid"
                nodes.append(helper.make_node("HardSigmoid", node.input, [gate], gate, alpha=1 / 6, beta=0.5))
                node.op_type = "Mul"
                node.input.append(gate)
        elif node.op_type not in _SAME or (node.op_type in ("Pad", "Resize") and len(node.input) > 4):
            raise InputError(
                f"Node {node.name!r}: {node.op_type} is not written in opset {opset}; ask for {_FROM} or newer."
            )
        nodes.append(node)
    _replace_nodes(graph, nodes)
    for entry in lowered.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return lowered


def _drop_younger_attributes(node: onnx.NodeProto, opset: int) -> None:
    """Removes the attributes of a node that the opset does not have."""
    younger = _YOUNGER_ATTRIBUTES.get(node.op_type, {})
    kept = []
    for attribute in node.attribute:
        since, harmless = younger.get(attribute.name, (0, None))
        if opset >= since:
            kept.append(attribute)
        elif harmless is not None and helper.get_attribute_value(attribute) != harmless:
            raise InputError(
                f"Node {node.name!r}: {node.op_type} with {attribute.name} set has no form in opset {opset}; "
                f"ask for {since} or newer."
            )
    copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def _replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Puts other nodes into a graph, and drops the initializers that none of them reads."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    read = {name for node in copies for name in node.input}
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.initializer[:]
    graph.initializer.extend(tensors)
