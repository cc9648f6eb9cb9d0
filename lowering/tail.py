"""The tail of a network: operators that need TVM's runtime, and what depends on them.

The Relax VM runs it on the host, after the Program and on the Program's outputs; nothing else does. An artifact keeps it
as ONNX and compiles it when it is first run: the VM's own format is bound to one version of TVM and its libraries to a
linker, while the compilation of what follows a TopK takes some tenths of a second.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from sepwise.lowering import device as devices
from sepwise.lowering.codegen import tvm_target
from sepwise.lowering.generic import RUNTIME_ONLY
from sepwise.lowering.legalization import LEGALIZE
from sepwise.lowering.program import Tail
from sepwise.passes.equivalence import extract
from sepwise.passes.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["TailRunner", "find_runtime_nodes", "split"]


def find_runtime_nodes(model: ir.Model) -> dict[str, str]:
    """Finds the nodes that need TVM's runtime: by their operator, or because a shape depends on data.

    Args:
        model: A canonical or fused model.

    Returns:
        The reason by node name, in graph order.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        if node.domain == "" and (node.op_type in RUNTIME_ONLY or any(_subgraphs(node))):
            found[_name(node)] = f"Node '{node.name}': {node.op_type} needs TVM's runtime"
        elif any(value.name and not _is_static(value) for value in node.outputs):
            reason = "the shape of its output depends on data, it needs TVM's runtime"
            found[_name(node)] = f"Node '{node.name}' ({node.op_type}): {reason}"
    return found


def split(model: ir.Model, starts: Collection[str]) -> tuple[ir.Model, Tail | None]:
    """Splits a fused model before the given nodes and all that depend on them.

    Args:
        model: As `passes.fuse` leaves it; left as it is.
        starts: Names of nodes that belong to the tail.

    Returns:
        The model of the Program, whose outputs include what the tail reads, and the tail; the model itself and None
        where nothing belongs to the tail.
    """
    if not starts:
        return model, None
    inside: set[str] = set()
    written: set[str] = set()
    read: dict[str, None] = {}
    for node in model.graph:
        names = [value.name for value in _reads(node) if value.name]
        if node.name in starts or written.intersection(names):
            inside.add(_name(node))
            written.update(value.name for value in node.outputs if value.name)
            read.update(dict.fromkeys(names))
    results = [_name(value) for value in model.graph.outputs]
    computed = {value.name for node in model.graph for value in node.outputs} - written
    computed.update(value.name for value in model.graph.inputs)
    inputs = [name for name in read if name in computed]
    outputs = [name for name in dict.fromkeys(results) if name in written]
    part = extract(model, inputs, outputs)
    if part.functions:
        part = onnx.inliner.inline_local_functions(part)
    nodes = tuple(name for name in (_name(node) for node in model.graph) if name in inside)
    tail = Tail(part.SerializeToString(), tuple(inputs), tuple(outputs), tuple(results), nodes)
    return _head(model, inside, inputs, outputs), tail


def _head(model: ir.Model, removed: Collection[str], needed: Collection[str], gone: Collection[str]) -> ir.Model:
    """The model without some nodes; what they need becomes an output."""
    head = model.clone()
    graph = head.graph
    kept = [value for value in graph.outputs if value.name not in gone]
    names = {value.name for value in (*graph.inputs, *kept)}
    kept += [v for node in graph for v in node.outputs if v.name in needed and v.name not in names]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    for node in reversed([node for node in graph if node.name in removed]):
        graph.remove(node, safe=True)
    return head


class TailRunner:
    """Runs a tail on this machine."""

    def __init__(self, tail: Tail, device_name: str) -> None:
        """Compiles the tail, unless this process has done so before.

        Args:
            tail: What to run.
            device_name: The device it runs on, which this machine has to be.

        Raises:
            UnsupportedError: TVM does not take it.
        """
        self._tail = tail
        self._machine = relax.VirtualMachine(_compile(tail.model, device_name), tvm.cpu())

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the tail once.

        Args:
            values: Inputs of the network and outputs of the Program by name.

        Returns:
            The outputs of the network by name, in its order.
        """
        arguments = [tvm.runtime.tensor(np.asarray(values[name], order="C")) for name in self._tail.inputs]
        returned: Any = self._machine["main"](*arguments)
        tensors = [returned] if hasattr(returned, "numpy") else list(returned)
        arrays = {name: tensor.numpy() for name, tensor in zip(self._tail.outputs, tensors, strict=True)}
        return {name: arrays[name] if name in arrays else values[name] for name in self._tail.results}


@functools.lru_cache(maxsize=8)
def _compile(model: bytes, device_name: str) -> Any:
    """Compiles a tail for the VM."""
    proto = onnx.load_model_from_string(model)
    try:
        module = LEGALIZE(from_onnx(proto, keep_params_in_input=False))
        return tvm.compile(module, target=tvm_target(devices.get(device_name)))
    except Exception as error:  # TVM raises whatever comes to hand for what it does not take
        operators = ", ".join(dict.fromkeys(node.op_type for node in proto.graph.node))
        lines = str(error).strip().splitlines()
        raise UnsupportedError(
            f"Nodes after '{proto.graph.node[0].name}' ({operators}): TVM does not take them: "
            f"{lines[-1] if lines else type(error).__name__}"
        ) from error


def _is_static(value: ir.Value) -> bool:
    """Whether a value is a tensor of known type and shape."""
    return value.dtype is not None and value.shape is not None and value.shape.is_static()


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Lists the graphs that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Lists the values that a node reads, those that its graphs capture included."""
    yield from (value for value in node.inputs if value is not None)
    for graph in _subgraphs(node):
        for inner in graph:
            yield from _reads(inner)
        yield from graph.outputs


def _name(named: ir.Value | ir.Node) -> str:
    """The name, which canonical graphs always have."""
    assert named.name
    return named.name
