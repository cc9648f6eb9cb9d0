"""What a network costs as a whole: its layers' costs added up, and the memory that a run takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from sepwise.lowering.foretell import Forecast
    from sepwise.passes.cost import LayerCost, SeparableCost

__all__ = ["Inspection", "inspect_model"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network's layers and totals.

    Attributes:
        model: Its name.
        layers: Those with parameters or multiply-accumulates, batch norm folded, in execution order.
        separable: The depthwise and pointwise pairs among them.
        parameters: Of all layers.
        macs: Of all layers.
        standard_parameters: With a standard convolution in place of every separable pair and every group.
        standard_macs: Likewise.
        peak_ram_bytes: The most bytes of activations alive at once, run node by node without fusion.
        flash_bytes: Bytes of all constants.
        forecast: What a device will need, None where none was asked for.
    """

    model: str
    layers: tuple[LayerCost, ...]
    separable: tuple[SeparableCost, ...]
    parameters: int
    macs: int
    standard_parameters: int
    standard_macs: int
    peak_ram_bytes: int
    flash_bytes: int
    forecast: Forecast | None = None

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that `sepwise inspect --json` prints."""
        return asdict(self)


def _nbytes(value: ir.Value) -> int:
    if value.shape is None or value.dtype is None:
        return 0
    return int(math.prod(value.shape.numpy()) * value.dtype.itemsize) if value.shape.is_static() else 0


def _peak_ram_bytes(graph: ir.Graph) -> int:
    """Sums the activations alive at each node, its inputs and outputs included, and takes the largest sum."""
    nodes = list(graph)
    last_use = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    last_use |= dict.fromkeys(graph.outputs, len(nodes))
    alive = {value: _nbytes(value) for value in graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(nodes):
        alive |= {value: _nbytes(value) for value in node.outputs}
        peak = max(peak, sum(alive.values()))
        alive = {value: nbytes for value, nbytes in alive.items() if last_use.get(value, -1) > index}
    return peak


def inspect_model(name: str, model: ir.Model) -> Inspection:
    """Counts what a model costs.

    Args:
        name: What to call the model.
        model: With fixed input shapes, as `load_model` gives it.

    Returns:
        Its layers, separable pairs and totals.
    """
    from sepwise.passes import canonicalize, layer_costs

    cost = layer_costs(model)
    paired = {layer for pair in cost.separable for layer in pair.layers}
    parts: list[LayerCost | SeparableCost] = [layer for layer in cost.layers if layer.name not in paired]
    parts += cost.separable
    # A pair counts weights only; its layers' biases stay as they are.
    biases = cost.parameters - sum(part.parameters for part in parts)
    graph = canonicalize(model).graph
    return Inspection(
        model=name,
        layers=cost.layers,
        separable=cost.separable,
        parameters=cost.parameters,
        macs=cost.macs,
        standard_parameters=sum(part.standard_parameters for part in parts) + biases,
        standard_macs=sum(part.standard_macs for part in parts),
        peak_ram_bytes=_peak_ram_bytes(graph),
        flash_bytes=sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None),
    )
