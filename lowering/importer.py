"""From a fused ONNX graph to the KernelGraph.

Each convolution, fused call and matrix product with constant weights becomes a workload directly; what is left
becomes generic kernels. Values keep their ONNX names: a value between two stages that the fused graph keeps inside a
function gets the name it had in the original graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sepwise.lowering.codegen import computes_float16
from sepwise.lowering.generic import addition, constant_block, conversion, import_generic, tensor_type
from sepwise.lowering.graph import Kernel, KernelGraph, TensorType
from sepwise.lowering.selection import Selector
from sepwise.lowering.subpixel import Transposed, crop_begins
from sepwise.lowering.workload import ConvWorkload, DTypes, LinearWorkload, Stage
from sepwise.passes import read_activation, read_chain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from sepwise.lowering.device import Device
    from sepwise.lowering.subpixel import PhaseConv
    from sepwise.passes.vocabulary import Activation, ConvStage, FusedChain

__all__ = ["ImportedChain", "ImportedGraph", "import_graph"]

GEMM_ADDEND = 2
"""Input of a Gemm that is added to the product."""

TRANSPOSED_RANKS = range(1, 4)
"""Spatial axes of a transposed convolution."""


@dataclass(frozen=True, slots=True)
class ImportedChain:
    """Convolutions that the graph passes grouped, and what computes them.

    Attributes:
        workload: The whole chain.
        kernels: Names of its kernels, in execution order.
    """

    workload: ConvWorkload
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class ImportedGraph:
    """The KernelGraph and what its kernels' constants are made from.

    Attributes:
        graph: The kernels; constants of convolutions and matrix products are not packed yet.
        weights: Weight and bias of each stage of such kernels, by kernel name.
        views: Values that are views of others, by the name of what they view.
        renamed: Outputs of the network that are copies under another name, with the name they have in the network.
        chains: Those of more than one convolution.
    """

    graph: KernelGraph
    weights: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    views: dict[str, str]
    renamed: dict[str, str]
    chains: tuple[ImportedChain, ...] = ()


def import_graph(
    model: ir.Model, device: Device, selector: Selector, *, value_names: Mapping[str, str]
) -> ImportedGraph:
    """Imports a fused model.

    Args:
        model: As `passes.fuse` leaves it; static shapes.
        device: Gives the lanes of packed tensors.
        selector: Decides which stages share a kernel.
        value_names: Output value of each node of the original graph, by node name.

    Returns:
        The graph, its layouts still open: all values plain.

    Raises:
        UnsupportedError: An element type, operator or convolution that cannot be compiled.
    """
    return _Importer(model, device, selector, value_names).run()


class _Importer:
    """Walks the nodes of one graph."""

    def __init__(
        self, model: ir.Model, device: Device, selector: Selector, value_names: Mapping[str, str]
    ) -> None:
        self._model = model
        self._device = device
        self._selector = selector
        self._value_names = value_names
        self._graph_inputs = {_name(value) for value in model.graph.inputs}
        self._values: dict[str, TensorType] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._kernels: list[Kernel] = []
        self._weights: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._chains: list[ImportedChain] = []

    def run(self) -> ImportedGraph:
        """Imports every node."""
        graph = self._model.graph
        for value in graph.inputs:
            self._declare(value)
        rest: list[ir.Node] = []
        absorbed: set[int] = set()
        for node in graph:
            if id(node) in absorbed:
                continue
            chain = read_chain(self._model, node)
            if chain is not None and self._constant_weights(chain) and self._has_strategies(node):
                self._import_chain(node, chain)
                continue
            transposed = self._match_transposed(node)
            if transposed is not None and self._import_transposed(transposed):
                absorbed.update(id(other) for other in transposed.nodes)
                continue
            linear = self._match_linear(node)
            if linear is None:
                rest.append(node)
            else:
                absorbed.update(id(other) for other in linear.nodes)
                self._import_linear(linear)
        generic = import_generic(self._model, rest)
        self._kernels += generic.kernels
        self._values |= generic.values
        self._constants |= generic.constants
        views = dict(generic.views)
        outputs, renamed = self._import_outputs(views)
        kernel_graph = KernelGraph(
            name=graph.name or "model",
            inputs=[_name(value) for value in graph.inputs],
            outputs=outputs,
            values=self._values,
            constants=self._constants,
            kernels=_in_order(self._kernels, set(self._graph_inputs), views),
        )
        return ImportedGraph(kernel_graph, self._weights, views, renamed, tuple(self._chains))

    def _import_outputs(self, views: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """Gives every output memory of its own: a kernel copies what is an input, a constant, or a view of another output.

        Args:
            views: Views that become copies are taken out; what is a view of them is one of what they were views of.

        Returns:
            The outputs' names in the graph, and the names in the network of those that have another one there.
        """
        outputs: list[str] = []
        renamed: dict[str, str] = {}
        taken = set(self._graph_inputs)
        for value in dict.fromkeys(self._model.graph.outputs):
            name = _name(value)
            base = name
            while base in views:
                base = views[base]
            constant = self._array(base)
            if constant is None and base not in taken:
                taken.add(base)
                outputs.append(name)
                continue
            own = name
            if name not in views:
                own = f"{name}.output"
                renamed[own] = name
            views.pop(name, None)
            views.update((other, base) for other, viewed in list(views.items()) if viewed == name)
            self._values[own] = tensor_type(value)
            self._copy(base, own, constant)
            taken.add(own)
            outputs.append(own)
        return outputs, renamed

    def _copy(self, source: str, target: str, constant: np.ndarray | None) -> None:
        """A kernel that copies a plain value, or a constant."""
        declared = self._values[target]
        name = self._kernel_name("copy", (target,))
        workload = conversion(declared, declared.layout)
        if constant is None:
            self._kernels.append(Kernel(name, workload, (source,), (), (target,), ()))
            return
        self._constants[f"{name}.constant"] = constant_block(constant)
        workload = replace(workload, signature=f"constant/{workload.signature}", input_layouts=(), constant_count=1)
        self._kernels.append(Kernel(name, workload, (), (f"{name}.constant",), (target,), ()))

    def _declare(self, value: ir.Value) -> TensorType:
        """Notes a value's type."""
        declared = tensor_type(value)
        self._values[_name(value)] = declared
        return declared

    def _constant_weights(self, chain: FusedChain) -> bool:
        """Whether every weight and bias is known; a convolution with dynamic weights is a generic operator."""
        return all(
            self._array(stage.weight) is not None and (stage.bias is None or self._array(stage.bias) is not None)
            for stage in chain.stages
        )

    def _array(self, name: str | None) -> np.ndarray | None:
        """The constant of that name, or None."""
        value = self._model.graph.initializers.get(name) if name is not None else None
        if value is None or value.const_value is None:
            return None
        return value.const_value.numpy()

    def _import_chain(self, node: ir.Node, chain: FusedChain) -> None:
        """One or more kernels for a chain of convolutions."""
        source = next(value for value in node.inputs if value is not None and value.name == chain.input)
        source_type = tensor_type(source)
        self._values.setdefault(chain.input, source_type)
        output_type = self._declare(node.outputs[0])
        weights = [self._stage_weights(stage) for stage in chain.stages]
        batch, _, *spatial = source_type.shape
        stages = tuple(
            _stage(stage, weight) for stage, (weight, _) in zip(chain.stages, weights, strict=True)
        )
        lanes = self._device.holding(output_type.dtype).lanes
        # A 1-D network is a 2-D one of height 1.
        workload = ConvWorkload(
            batch=batch,
            spatial=tuple(spatial) if len(spatial) > 1 else (1, *spatial),
            stages=stages,
            residual=chain.residual is not None,
            post_activation=chain.post_activation,
            input_lanes=lanes,
            output_lanes=lanes,
            dtypes=DTypes.all(output_type.dtype),
        )
        start, name = 0, chain.input
        parts = self._selector.partition(workload)
        for part in parts:
            end = start + len(part.stages)
            last = end == len(stages)
            covered = chain.stages[start:end]
            nodes = tuple(n for stage in covered for n in stage.nodes)
            if last:
                nodes += tuple(n for n in chain.nodes if n not in {m for s in chain.stages for m in s.nodes})
                output = chain.output
            else:
                output = self._value_names.get(covered[-1].nodes[-1], f"{chain.output}.{start}")
                shape = (batch, part.stages[-1].out_channels, *part.spatials[-1][-len(spatial) :])
                self._values[output] = replace(output_type, shape=shape)
            kernel_name = self._kernel_name(part.kind, nodes)
            inputs = (name, chain.residual) if part.residual and chain.residual else (name,)
            constants = tuple(f"{kernel_name}.{kind}{i}" for i in range(len(part.stages)) for kind in ("weight", "bias"))
            self._kernels.append(Kernel(kernel_name, part, inputs, constants, (output,), nodes))
            self._weights[kernel_name] = weights[start:end]
            start, name = end, output
        if len(stages) > 1:
            self._chains.append(ImportedChain(workload, tuple(kernel.name for kernel in self._kernels[-len(parts) :])))

    def _has_strategies(self, node: ir.Node) -> bool:
        """Whether a node computes in float32, or in float16 where the device's instructions do; strategies know no other type."""
        return _is_float32(node) or (tensor_type(node.outputs[0]).dtype == "float16" and computes_float16(self._device))

    def _stage_weights(self, stage: ConvStage) -> tuple[np.ndarray, np.ndarray]:
        """Weight `(oc, ic / group, *kernel)` with at least two kernel axes, and bias `(oc,)`."""
        weight, bias = self._array(stage.weight), self._array(stage.bias)
        assert weight is not None
        if weight.ndim == 3:
            weight = weight[:, :, None, :]
        if bias is None:
            bias = np.zeros(weight.shape[0], weight.dtype)
        return weight, bias

    def _match_transposed(self, node: ir.Node) -> _TransposedMatch | None:
        """A transposed convolution with constant weights and the activation behind it."""
        if node.domain != "" or node.op_type != "ConvTranspose" or not _is_float32(node):
            return None
        data, weight_value, *rest = node.inputs
        weight = self._array(weight_value.name) if weight_value is not None else None
        if data is None or weight is None or weight.ndim - 2 not in TRANSPOSED_RANKS:
            return None
        groups = node.attributes.get_int("group", 1)
        bias: np.ndarray | None = np.zeros(weight.shape[1] * groups, np.float32)
        if rest and rest[0] is not None:
            bias = self._array(rest[0].name)
        if bias is None:
            return None
        nodes, output = [node], node.outputs[0]
        follower = self._only_consumer(output)
        activation = read_activation(self._model, follower) if follower is not None else None
        if follower is not None and activation is not None:
            nodes.append(follower)
            output = follower.outputs[0]
        ones = (1,) * (weight.ndim - 2)
        transposed = Transposed(
            input_shape=tensor_type(data).shape,
            output_shape=tensor_type(output).shape,
            kernel=tuple(weight.shape[2:]),
            strides=tuple(node.attributes.get_ints("strides", ones)),
            dilations=tuple(node.attributes.get_ints("dilations", ones)),
            pads_begin=_pads_begin(node, tensor_type(data).shape[2:], tensor_type(output).shape[2:], weight.shape[2:]),
            groups=groups,
            activation=activation,
        )
        return _TransposedMatch(nodes, data, output, weight, bias, transposed)

    def _import_transposed(self, match: _TransposedMatch) -> bool:
        """A kernel for each convolution of the plan that is predicted fastest, and one that puts the pixels in their places.

        Returns:
            Whether some plan can be computed.
        """
        transposed, lanes = match.transposed, self._device.lanes
        batch, _, *spatial = transposed.input_shape
        lifted = tuple(spatial) if len(spatial) > 1 else (1, *spatial)
        best: tuple[float, list[ConvWorkload], tuple[PhaseConv, ...]] | None = None
        for plan in transposed.plans():
            workloads = [ConvWorkload(batch, lifted, (conv.stage(),), False, None, lanes, lanes) for conv in plan]
            choices = [self._selector.choose(workload) for workload in workloads]
            if any(isinstance(choice, list) for choice in choices):
                continue
            cycles = sum(choice.cycles for choice in choices if not isinstance(choice, list))
            if best is None or cycles < best[0]:
                best = cycles, workloads, plan
        if best is None:
            return False
        _, workloads, plan = best
        nodes = tuple(_name(node) for node in match.nodes)
        self._values.setdefault(_name(match.data), tensor_type(match.data))
        self._declare(match.output)
        between: list[str] = []
        for workload, conv in zip(workloads, plan, strict=True):
            between.append(f"{_name(match.output)}.subpixels{len(between)}")
            self._values[between[-1]] = conv.output()
            name = self._kernel_name(workload.kind, nodes)
            constants = (f"{name}.weight0", f"{name}.bias0")
            self._kernels.append(Kernel(name, workload, (_name(match.data),), constants, (between[-1],), nodes))
            self._weights[name] = [conv.weights(match.weight, match.bias)]
        name = self._kernel_name("subpixel", nodes)
        moved = transposed.rearrangement(plan)
        biases = (f"{name}.bias",) * moved.constant_count
        self._constants |= dict.fromkeys(biases, constant_block(match.bias))
        self._kernels.append(Kernel(name, moved, tuple(between), biases, (_name(match.output),), nodes))
        return True

    def _match_linear(self, node: ir.Node) -> _Linear | None:
        """A Gemm or MatMul with constant weights, with the bias and activation behind it."""
        if node.domain != "" or node.op_type not in ("Gemm", "MatMul"):
            return None
        data, weight_value = node.inputs[0], node.inputs[1]
        weight = self._array(weight_value.name) if weight_value is not None else None
        if data is None or weight is None or weight.ndim != 2 or data.name in self._model.graph.initializers:
            return None
        if not self._has_strategies(node) or node.attributes.get_int("transA", 0) != 0:
            return None
        linear = _Linear([node], node.outputs[0], weight.T)
        if node.op_type == "Gemm":
            if not self._read_gemm(node, linear):
                return None
            if linear.addend is not None and tensor_type(data).dtype != "float32":
                return None
        self._absorb_bias(linear)
        self._absorb_activation(linear)
        return linear

    def _read_gemm(self, node: ir.Node, linear: _Linear) -> bool:
        """`alpha * x * w + beta * c`: alpha goes into the weight; c is the bias where it is a constant row, else added apart.

        Returns:
            Whether what became of the constants is finite.
        """
        if node.attributes.get_int("transB", 0):
            linear.weight = linear.weight.T
        linear.weight = _scaled(linear.weight, node.attributes.get_float("alpha", 1.0))
        addend = node.inputs[GEMM_ADDEND] if len(node.inputs) > GEMM_ADDEND else None
        beta = node.attributes.get_float("beta", 1.0)
        row = self._array(addend.name) if addend is not None else None
        if row is not None and (row.size == 1 or row.shape[-1:] == (row.size,)):
            linear.bias = np.broadcast_to(_scaled(row.reshape(-1), beta), linear.weight.shape[:1])
        elif addend is not None:
            linear.addend, linear.factor = addend, beta
        return bool(np.isfinite(linear.weight).all() and (linear.bias is None or np.isfinite(linear.bias).all()))

    def _absorb_bias(self, linear: _Linear) -> None:
        """`MatMul; Add(constant vector)` -> one product with bias."""
        follower = self._only_consumer(linear.output)
        if linear.bias is not None or linear.addend is not None:
            return
        if follower is None or follower.op_type != "Add" or follower.domain != "":
            return
        other = next((v for v in follower.inputs if v is not linear.output), None)
        bias = self._array(other.name) if other is not None else None
        if bias is None or bias.size != linear.weight.shape[0] or bias.shape[-1:] != (bias.size,):
            return
        linear.bias = bias.reshape(-1)
        linear.extend(follower)

    def _absorb_activation(self, linear: _Linear) -> None:
        """`product; activation` -> one product with epilogue."""
        follower = self._only_consumer(linear.output)
        activation = read_activation(self._model, follower) if follower is not None else None
        if follower is not None and activation is not None:
            linear.activation = activation
            linear.extend(follower)

    def _only_consumer(self, value: ir.Value) -> ir.Node | None:
        """The one node that reads a value which is no output of the network, or None."""
        consumers = list(value.consumers())
        return consumers[0] if len(consumers) == 1 and not value.is_graph_output() else None

    def _import_linear(self, linear: _Linear) -> None:
        """One kernel for a matrix product."""
        data = linear.nodes[0].inputs[0]
        assert data is not None
        source = tensor_type(data)
        self._values.setdefault(_name(data), source)
        self._declare(linear.output)
        features, reduction = linear.weight.shape
        rows = math.prod(source.shape[:-1])
        nodes = tuple(_name(node) for node in linear.nodes)
        output, activation = _name(linear.output), linear.activation
        if linear.addend is not None:
            output, activation = f"{output}.product", None
            self._values[output] = TensorType((rows, features))
            self._import_addition(linear, linear.addend, output, nodes)
        workload = LinearWorkload(rows, reduction, features, activation, DTypes.all(source.dtype))
        name = self._kernel_name("linear", nodes)
        bias = linear.bias if linear.bias is not None else np.zeros(features, linear.weight.dtype)
        constants = (f"{name}.weight0", f"{name}.bias0")
        self._kernels.append(Kernel(name, workload, (_name(data),), constants, (output,), nodes))
        self._weights[name] = [(linear.weight, bias)]

    def _import_addition(self, linear: _Linear, addend: ir.Value, product: str, nodes: Sequence[str]) -> None:
        """A kernel that adds what is no row of constants to a matrix product, and applies the activation."""
        name = self._kernel_name("addition", nodes)
        array = self._array(addend.name)
        added = tensor_type(addend)
        workload = addition(self._values[product], added, linear.factor, linear.activation, constant=array is not None)
        inputs: tuple[str, ...] = (product,)
        constants: tuple[str, ...] = ()
        if array is None:
            inputs += (_name(addend),)
            self._values.setdefault(_name(addend), added)
        else:
            constants = (f"{name}.addend",)
            self._constants[constants[0]] = constant_block(array)
        self._kernels.append(Kernel(name, workload, inputs, constants, (_name(linear.output),), tuple(nodes)))

    def _kernel_name(self, kind: str, nodes: Sequence[str]) -> str:
        """A C identifier out of the place in the graph and the first node."""
        first = "".join(c if c.isalnum() else "_" for c in nodes[0]) if nodes else ""
        kind = kind.replace("+", "_")
        return f"k{len(self._kernels)}_{kind}_{first}"[:96]


@dataclass(frozen=True)
class _TransposedMatch:
    """A transposed convolution with what follows it."""

    nodes: list[ir.Node]
    data: ir.Value
    output: ir.Value
    weight: np.ndarray
    bias: np.ndarray
    transposed: Transposed


def _pads_begin(
    node: ir.Node, source: Sequence[int], output: Sequence[int], kernel: Sequence[int]
) -> tuple[int, ...]:
    """What a ConvTranspose cuts off before its output: its pads, or half of what its given size leaves over."""
    attributes, rank = node.attributes, len(kernel)
    mode = attributes.get_string("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * rank
    if mode == "NOTSET" and "output_shape" not in attributes:
        return tuple(attributes.get_ints("pads", (0,) * rank))[:rank]
    ones = (1,) * rank
    strides, dilations = attributes.get_ints("strides", ones), attributes.get_ints("dilations", ones)
    full = [
        (size - 1) * stride + dilation * (taps - 1) + 1
        for size, stride, dilation, taps in zip(source, strides, dilations, kernel, strict=True)
    ]
    padding = attributes.get_ints("output_padding", (0,) * rank)
    return crop_begins(output, full, padding, upper=mode == "SAME_UPPER")


@dataclass
class _Linear:
    """A matrix product with what follows it: `activation(x * weight + bias)`, or `... + factor * addend` where that is no row."""

    nodes: list[ir.Node]
    output: ir.Value
    weight: np.ndarray
    bias: np.ndarray | None = None
    addend: ir.Value | None = None
    factor: float = 1.0
    activation: Activation | None = None

    def extend(self, node: ir.Node) -> None:
        """Takes in a node behind it."""
        self.nodes.append(node)
        self.output = node.outputs[0]


def _is_float32(node: ir.Node) -> bool:
    """Whether a node computes in float32."""
    return tensor_type(node.outputs[0]).dtype == "float32"


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """A constant times a factor that its type need not hold, in float32 before it is rounded, infinite where it is beyond."""
    with np.errstate(over="ignore"):
        return (array.astype(np.float32) * np.float32(factor)).astype(array.dtype)


def _stage(stage: ConvStage, weight: np.ndarray) -> Stage:
    """A stage of the workload; a 1-D convolution gets a height of 1."""
    lift = (1,) if len(stage.kernel_shape) == 1 else ()
    rank = len(stage.kernel_shape)
    zero = (0,) if lift else ()
    return Stage(
        in_channels=weight.shape[1] * stage.group,
        out_channels=weight.shape[0],
        groups=stage.group,
        kernel=lift + tuple(stage.kernel_shape),
        strides=lift + tuple(stage.strides),
        pads_begin=zero + tuple(stage.pads[:rank]),
        pads_end=zero + tuple(stage.pads[rank:]),
        dilations=lift + tuple(stage.dilations),
        activation=stage.activation,
    )


def _name(named: ir.Value | ir.Node) -> str:
    """The name, which canonical graphs always have."""
    assert named.name
    return named.name


def _in_order(kernels: Sequence[Kernel], ready: set[str], views: Mapping[str, str]) -> list[Kernel]:
    """Sorts kernels so that each follows what it reads, otherwise keeping their order."""
    waiting, ordered = list(kernels), []
    known = set(ready)

    def available(name: str) -> bool:
        while name not in known and name in views:
            name = views[name]
        return name in known

    while waiting:
        kernel = next((k for k in waiting if all(available(name) for name in k.inputs)), None)
        assert kernel is not None, "the graph has a cycle"
        waiting.remove(kernel)
        ordered.append(kernel)
        known.update(kernel.outputs)
    return ordered
