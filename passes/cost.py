"""What a network costs, layer by layer, and what it would cost with standard convolutions.

Parameters are weights and biases; a MAC is one multiply-accumulate of a convolution or a matrix product. For a
convolution with kernel k1..kd, c input and m output channels, g groups and an output of n x P positions:

    parameters = m (c / g) prod(k) [+ m]        MACs = n P m (c / g) prod(k)

A standard convolution has g = 1. A depthwise convolution and its pointwise one stand in for a single standard
convolution with the kernel, stride and dilation of the first, from its input to the output channels of the second: a 3x3
layer from 3 to 4 channels has 108 parameters, its separable form 27 + 12 = 39.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.canonical_form import canonicalize
from sepwise.passes.chains import conv_kind, read_chain
from sepwise.passes.pipeline import fuse
from sepwise.passes.rewriting import constant_tensor, is_operator, original_nodes, static_shape
from sepwise.passes.vocabulary import ConvStage

__all__ = ["LayerCost", "ModelCost", "SeparableCost", "layer_costs"]


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer.

    Attributes:
        name: Name of its first node in the original model.
        nodes: Names of all of them.
        kind: `dense`, `grouped`, `depthwise`, `pointwise`, `transposed` or `linear`.
        input_shape: Shape of its data, (n, c, *spatial), or of the left factor of a product.
        output_shape: Shape of its result.
        parameters: Elements of its constants, batch norm folded.
        macs: Multiply-accumulates.
        standard_parameters: Parameters of the same layer as a standard convolution, without groups.
        standard_macs: MACs of that.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int


@dataclass(frozen=True)
class SeparableCost:
    """A depthwise and a pointwise layer against the one standard convolution that they stand in for.

    Attributes:
        layers: Names of the two layers, in their order.
        parameters: Parameters of both, without biases.
        macs: MACs of both.
        standard_parameters: Parameters of the standard convolution, without bias.
        standard_macs: MACs of it.
    """

    layers: tuple[str, str]
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model.

    Attributes:
        layers: Its layers with parameters or MACs, in order.
        separable: The separable pairs among them.
    """

    layers: tuple[LayerCost, ...]
    separable: tuple[SeparableCost, ...]

    @property
    def parameters(self) -> int:
        """Parameters of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of all layers."""
        return sum(layer.macs for layer in self.layers)


def layer_costs(model: ir.Model) -> ModelCost:
    """Counts what each layer of a model costs.

    Args:
        model: Original, canonical or fused, with fixed input shapes; left as it is.

    Returns:
        The costs, under the names of the original nodes.

    Raises:
        InputError: If the model cannot be canonicalized.

    Example:
        >>> cost = layer_costs(load_model("mobilenet_v2.onnx"))  # doctest: +SKIP
        >>> cost.macs  # doctest: +SKIP
        300774272
    """
    plain = canonicalize(fuse(model, inline=True).model)
    layers: list[LayerCost] = []
    stages: dict[str, tuple[LayerCost, ConvStage]] = {}
    for graph in plain.graphs():
        for node in graph:
            layer = _layer(plain, node)
            if layer is not None:
                layers.append(layer)
                chain = read_chain(plain, node)
                if chain is not None:
                    stages[layer.name] = (layer, chain.stages[0])
    fused = fuse(plain).model
    pairs = tuple(pair for graph in fused.graphs() for node in graph for pair in _pairs(fused, node, stages))
    return ModelCost(tuple(layers), pairs)


def _layer(model: ir.Model, node: ir.Node) -> LayerCost | None:
    if is_operator(node, "Conv", "ConvTranspose"):
        return _conv_layer(model, node)
    if is_operator(node, "Gemm", "MatMul"):
        return _linear_layer(node)
    return None


def _elements(value: ir.Value | None) -> int:
    tensor = constant_tensor(value)
    return 0 if tensor is None else int(tensor.size)


def _covered(node: ir.Node) -> tuple[str, ...]:
    return tuple(name for step in original_nodes(node) for name in step)


def _conv_layer(model: ir.Model, node: ir.Node) -> LayerCost | None:
    weight, before, after = (static_shape(value) for value in (node.inputs[1], node.inputs[0], node.outputs[0]))
    if weight is None or before is None or after is None:
        return None
    group: int = node.attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    positions = math.prod((before if transposed else after)[2:]) * after[0]
    weights = math.prod(weight)
    biases = _elements(node.inputs[2]) if len(node.inputs) > 2 else 0
    chain = read_chain(model, node)
    return LayerCost(
        name=node.name or "",
        nodes=_covered(node),
        kind="transposed" if chain is None else conv_kind(weight, group),
        input_shape=before,
        output_shape=after,
        parameters=weights + biases,
        macs=positions * weights,
        standard_parameters=weights * group + biases,
        standard_macs=positions * weights * group,
    )


def _linear_layer(node: ir.Node) -> LayerCost | None:
    left, right, after = (static_shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if left is None or right is None or after is None:
        return None
    turned: int = node.attributes.get_int("transA", 0)
    depth = left[0] if node.op_type == "Gemm" and turned else left[-1]
    parameters = sum(_elements(value) for value in node.inputs)
    macs = math.prod(after) * depth
    return LayerCost(node.name or "", _covered(node), "linear", left, after, parameters, macs, parameters, macs)


def _pairs(model: ir.Model, node: ir.Node, stages: dict[str, tuple[LayerCost, ConvStage]]) -> Iterator[SeparableCost]:
    """Yields the separable pair of a grouped operator: its depthwise stage with the pointwise one beside it."""
    chain = read_chain(model, node)
    if chain is None or len(chain.stages) < 2:
        return
    found = [stages[name] for stage in chain.stages for name in stage.nodes if name in stages]
    kinds = [layer.kind for layer, _ in found]
    position = kinds.index("depthwise")
    other = position + 1 if position + 1 < len(found) else position - 1
    (depthwise, stage), (pointwise, _) = found[position], found[other]
    window = math.prod(stage.kernel_shape)
    if other > position:
        channels_in, channels_out = depthwise.input_shape[1], pointwise.output_shape[1]
    else:
        channels_in, channels_out = pointwise.input_shape[1], depthwise.output_shape[1]
    positions = depthwise.output_shape[0] * math.prod(depthwise.output_shape[2:])
    weights = window * depthwise.output_shape[1] + pointwise.input_shape[1] * pointwise.output_shape[1]
    first, second = sorted((position, other))
    yield SeparableCost(
        layers=(found[first][0].name, found[second][0].name),
        parameters=weights,
        macs=depthwise.macs + pointwise.macs,
        standard_parameters=window * channels_in * channels_out,
        standard_macs=positions * window * channels_in * channels_out,
    )
