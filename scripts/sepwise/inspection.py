"""What a network costs, layer by layer, and what it would cost with standard convolutions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Inspection", "Layer", "SeparablePair", "inspect_model"]

_CONVOLUTIONS: Final = {"Conv", "ConvTranspose"}
_FOLLOWED: Final = {
    "BatchNormalization",
    "Clip",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Tanh",
}
"""What may stand between a depthwise convolution and the pointwise one that makes it separable."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with parameters or multiply-accumulates.

    Attributes:
        name: The node's name.
        kind: dense, grouped, depthwise, pointwise, transposed, fully connected, matrix product or batch norm.
        input_shape: Shape of its first input, such as (n, c, h, w).
        output_shape: Shape of its output.
        parameters: Learned numbers; batch norm's statistics are not counted.
        macs: Multiply-accumulates.
        standard_parameters: Of the same layer as a convolution with one group.
        standard_macs: Likewise.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int


@dataclass(frozen=True, slots=True)
class SeparablePair:
    """A depthwise convolution and the pointwise one after it, against one standard convolution in their place.

    Attributes:
        depthwise: The depthwise layer's name.
        pointwise: The pointwise layer's name.
        parameters: Of both.
        macs: Of both.
        standard_parameters: Of a convolution with the depthwise kernel, its input and the pointwise output channels.
        standard_macs: Likewise.
    """

    depthwise: str
    pointwise: str
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network's layers and totals.

    Attributes:
        model: Its name.
        layers: In execution order.
        separable: The separable convolutions among them.
        parameters: Of all layers.
        macs: Of all layers.
        standard_parameters: With a standard convolution in place of every separable pair and group.
        standard_macs: Likewise.
        peak_ram_bytes: The most bytes of activations alive at once, run node by node.
        flash_bytes: Bytes of all constants.
    """

    model: str
    layers: tuple[Layer, ...]
    separable: tuple[SeparablePair, ...]
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int
    peak_ram_bytes: int
    flash_bytes: int

    def to_json(self) -> dict[str, object]:
        """Gives the fields that `sepwise inspect --json` prints."""
        return asdict(self)


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Gives a value's shape, empty where it is unknown."""
    if value is None or value.shape is None:
        return ()
    return tuple(int(dimension) for dimension in value.shape if isinstance(dimension, int))


def _elements(value: ir.Value | None) -> int:
    """Counts the elements of a constant, 0 for an activation."""
    return 0 if value is None or value.const_value is None else math.prod(value.const_value.shape)


def _convolution(node: ir.Node, name: str) -> Layer | None:
    source, weight = node.inputs[0], node.inputs[1]
    output, kernel = _shape(node.outputs[0]), _shape(weight)
    if not output or not kernel:
        return None
    transposed = node.op_type == "ConvTranspose"
    group = node.attributes.get_int("group", 1)
    in_channels = _shape(source)[1]
    out_channels = output[1]
    window = math.prod(kernel[2:])
    positions = output[0] * math.prod((_shape(source) if transposed else output)[2:])
    if transposed:
        kind = "transposed"
    elif group == 1:
        kind = "pointwise" if window == 1 else "dense"
    else:
        kind = "depthwise" if group == in_channels else "grouped"
    bias = _elements(node.inputs[2]) if len(node.inputs) > 2 else 0
    weights = window * in_channels * out_channels
    return Layer(
        name=name,
        kind=kind,
        input_shape=_shape(source),
        output_shape=output,
        parameters=weights // group + bias,
        macs=positions * weights // group,
        standard_parameters=weights + bias,
        standard_macs=positions * weights,
    )


def _product(node: ir.Node, name: str) -> Layer | None:
    left, right, output = _shape(node.inputs[0]), _shape(node.inputs[1]), _shape(node.outputs[0])
    if not left or not right or not output:
        return None
    depth = left[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) else left[-1]
    parameters = sum(_elements(value) for value in node.inputs)
    macs = math.prod(output) * depth
    kind = "fully connected" if _elements(node.inputs[1]) else "matrix product"
    return Layer(name, kind, left, output, parameters, macs, parameters, macs)


def _batch_norm(node: ir.Node, name: str) -> Layer:
    parameters = sum(_elements(value) for value in node.inputs[1:3])
    return Layer(name, "batch norm", _shape(node.inputs[0]), _shape(node.outputs[0]), parameters, 0, parameters, 0)


def _describe(node: ir.Node, index: int) -> Layer | None:
    name = node.name or f"{node.op_type}_{index}"
    if node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type in _CONVOLUTIONS:
        return _convolution(node, name)
    if node.op_type in {"Gemm", "MatMul"}:
        return _product(node, name)
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, name)
    return None


def _next_convolution(node: ir.Node) -> ir.Node | None:
    """Follows the only consumer through batch norm and activations to the next convolution."""
    while True:
        consumers = {use.node for use in node.outputs[0].uses()}
        if len(consumers) != 1:
            return None
        (node,) = consumers
        if node.op_type == "Conv":
            return node
        if node.op_type not in _FOLLOWED:
            return None


def _pair(depthwise: Layer, pointwise: Layer) -> SeparablePair:
    in_channels, out_channels = depthwise.input_shape[1], pointwise.output_shape[1]
    window = depthwise.standard_macs // (math.prod(depthwise.output_shape) * in_channels)
    positions = depthwise.output_shape[0] * math.prod(depthwise.output_shape[2:])
    bias = pointwise.parameters - pointwise.input_shape[1] * out_channels
    return SeparablePair(
        depthwise=depthwise.name,
        pointwise=pointwise.name,
        parameters=depthwise.parameters + pointwise.parameters,
        macs=depthwise.macs + pointwise.macs,
        standard_parameters=window * in_channels * out_channels + bias,
        standard_macs=positions * window * in_channels * out_channels,
    )


def _peak_ram_bytes(graph: ir.Graph) -> int:
    """Sums the activations alive at each node, its inputs and outputs included, and takes the largest sum."""
    nodes = list(graph)
    last_use = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    last_use |= dict.fromkeys(graph.outputs, len(nodes))
    alive: dict[ir.Value, int] = {}

    def size(value: ir.Value) -> int:
        return math.prod(_shape(value)) * (value.dtype.itemsize if value.dtype is not None else 4)

    for value in graph.inputs:
        if value.const_value is None:
            alive[value] = size(value)
    peak = sum(alive.values())
    for index, node in enumerate(nodes):
        alive |= {value: size(value) for value in node.outputs}
        peak = max(peak, sum(alive.values()))
        alive = {value: nbytes for value, nbytes in alive.items() if last_use.get(value, -1) > index}
    return int(peak)


def inspect_model(name: str, model: ir.Model) -> Inspection:
    """Counts what a model's layers cost.

    A depthwise convolution followed, through batch norm and activations only, by a pointwise one is a separable
    convolution; the totals in standard terms put one standard convolution in the place of both.

    Args:
        name: What to call the model.
        model: Shapes known, before fusion.

    Returns:
        Its layers, separable pairs and totals.
    """
    described = {node: layer for index, node in enumerate(model.graph) if (layer := _describe(node, index)) is not None}
    pairs: dict[ir.Node, SeparablePair] = {}
    covered: set[ir.Node] = set()
    for node, layer in described.items():
        if layer.kind != "depthwise":
            continue
        following = _next_convolution(node)
        if following is not None and following in described and described[following].kind == "pointwise":
            pairs[node] = _pair(layer, described[following])
            covered |= {node, following}
    others = [layer for node, layer in described.items() if node not in covered]
    layers = tuple(described.values())
    return Inspection(
        model=name,
        layers=layers,
        separable=tuple(pairs.values()),
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        standard_parameters=sum(layer.standard_parameters for layer in others)
        + sum(pair.standard_parameters for pair in pairs.values()),
        standard_macs=sum(layer.standard_macs for layer in others) + sum(pair.standard_macs for pair in pairs.values()),
        peak_ram_bytes=_peak_ram_bytes(model.graph),
        flash_bytes=sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None),
    )
