"""Layout assignment: which values are packed, and the few conversions between.

Convolutions read and write packed tensors; matrix products, views and the network's own inputs and outputs are plain.
A generic kernel reads and writes any layout at no cost of its own, so it takes its inputs as they come, and writes
what its readers want: packed where a convolution reads it, or where it only passes packed tensors on. Conversions
appear where a network's input meets a packed reader, and where one value is wanted both ways.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sepwise.lowering.generic import GenericWorkload, conversion
from sepwise.lowering.graph import Kernel, Layout
from sepwise.lowering.workload import ConvWorkload, LinearWorkload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.device import Device
    from sepwise.lowering.graph import KernelGraph

__all__ = ["assign_layouts"]

PLAIN = Layout()
LEAST_PACKED_RANK = 3


def assign_layouts(graph: KernelGraph, views: Mapping[str, str], device: Device) -> None:
    """Gives every value a layout, and inserts conversions.

    Args:
        graph: Changed in place; its values are plain before.
        views: Values that are views of others, which must be plain.
        device: Gives the lanes of packed tensors.
    """
    packed = Layout(device.lanes)
    fixed = set(graph.inputs) | set(graph.outputs) | set(views) | set(views.values())
    wants = _wants(graph, packed)
    for kernel in graph.kernels:
        for name in kernel.outputs:
            layout = _written(kernel, name, graph, packed, wants.get(name, set()))
            if name in fixed and isinstance(kernel.workload, GenericWorkload):
                layout = PLAIN
            graph.values[name] = replace(graph.values[name], layout=layout)
    _insert_conversions(graph, fixed, packed)
    for kernel in graph.kernels:
        if isinstance(kernel.workload, GenericWorkload):
            kernel.workload = replace(
                kernel.workload,
                input_layouts=tuple(graph.values[name].layout for name in kernel.inputs),
                output_layouts=tuple(graph.values[name].layout for name in kernel.outputs),
            )


def _required(kernel: Kernel, position: int, packed: Layout) -> Layout | None:
    """The layout in which a kernel reads its input at `position`, or None where it reads any."""
    if isinstance(kernel.workload, ConvWorkload):
        return PLAIN if position == 0 and not kernel.workload.input_lanes else packed
    return PLAIN if isinstance(kernel.workload, LinearWorkload) else None


def _wants(graph: KernelGraph, packed: Layout) -> dict[str, set[Layout]]:
    """The layouts in which each value is read by kernels that insist."""
    wants: dict[str, set[Layout]] = {}
    for kernel in graph.kernels:
        for position, name in enumerate(kernel.inputs):
            layout = _required(kernel, position, packed)
            if layout is not None:
                wants.setdefault(name, set()).add(layout)
    return wants


def _written(
    kernel: Kernel, name: str, graph: KernelGraph, packed: Layout, wanted: set[Layout]
) -> Layout:
    """The layout in which a kernel writes an output."""
    if isinstance(kernel.workload, ConvWorkload):
        return packed
    if isinstance(kernel.workload, LinearWorkload) or len(graph.values[name].shape) < LEAST_PACKED_RANK:
        return PLAIN
    if graph.values[name].dtype != "float32":
        return PLAIN
    if len(wanted) == 1:
        return next(iter(wanted))
    rank = len(graph.values[name].shape)
    sources = [graph.values[source] for source in kernel.inputs]
    alike = [source.layout.packed for source in sources if len(source.shape) == rank]
    return packed if wanted or (alike and all(alike)) else PLAIN


def _insert_conversions(graph: KernelGraph, fixed: set[str], packed: Layout) -> None:
    """Adds a copy in the other layout for every value that is read or kept in a layout it does not have."""
    kernels: list[Kernel] = []
    copies: dict[str, str] = {}

    def convert(source: str, target: str, layout: Layout) -> None:
        graph.values[target] = replace(graph.values[source], layout=layout)
        workload = conversion(graph.values[source], layout)
        name = f"k{len(graph.kernels) + len(copies)}_layout_{''.join(c if c.isalnum() else '_' for c in source)}"[:96]
        kernels.append(Kernel(name, workload, (source,), (), (target,), ()))

    def as_needed(name: str, layout: Layout | None) -> str:
        if layout is None or graph.values[name].layout == layout:
            return name
        if name not in copies:
            copies[name] = f"{name}.{layout}"
            convert(name, copies[name], layout)
        return copies[name]

    for kernel in graph.kernels:
        kernel.inputs = tuple(
            as_needed(name, _required(kernel, position, packed)) for position, name in enumerate(kernel.inputs)
        )
        # A fixed value that comes out packed is written aside and converted at once.
        renamed = {
            name: f"{name}.{graph.values[name].layout}"
            for name in kernel.outputs
            if name in fixed and graph.values[name].layout.packed
        }
        for name, aside in renamed.items():
            graph.values[aside] = graph.values[name]
            copies[name] = aside
        kernel.outputs = tuple(renamed.get(name, name) for name in kernel.outputs)
        kernels.append(kernel)
        for name, aside in renamed.items():
            convert(aside, name, PLAIN)
    graph.kernels[:] = kernels
