"""Operators that are no convolution: grouped, imported through TVM, and kept under the user's node names.

Relax bindings carry no node names, so the graph is cut into groups first: a tree of elementwise and shape operators, or a
reduction with the elementwise operators behind it. Each group is imported by itself as a small model (TVM's
ONNX importer, legalisation and operator fusion) and usually becomes one PrimFunc. A reshape that is left
alone computes nothing and becomes a view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.ir.expr import Call, GenericConst
from tvm.relax.frontend.onnx import from_onnx

from sepwise.lowering.codegen import HIDDEN
from sepwise.lowering.generic_schedule import CONSTANT_SLACK, schedule
from sepwise.lowering.graph import Kernel, Layout, TensorType
from sepwise.lowering.legalization import LEGALIZE
from sepwise.lowering.relayout import identity
from sepwise.lowering.tile_loads import APART
from sepwise.lowering.vector_math import activate, activation
from sepwise.passes import layer_costs, read_activation
from sepwise.passes.chains import family
from sepwise.passes.errors import UnsupportedError
from sepwise.passes.rewriting import original_nodes
from sepwise.passes.vocabulary import ELEMENTWISE_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sepwise.lowering.device import Device
    from sepwise.passes.vocabulary import Activation

__all__ = [
    "RUNTIME_ONLY",
    "GenericGraph",
    "GenericWorkload",
    "NeedsRuntimeError",
    "addition",
    "constant_block",
    "conversion",
    "import_generic",
    "library_calls",
    "schedule_generic",
    "tensor_type",
]

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators that leave elements where they are in a plain tensor."""

SHAPERS = VIEWS | frozenset(
    {"Transpose", "Concat", "Slice", "Pad", "Resize", "Expand", "DepthToSpace", "SpaceToDepth", "Gather", "Tile"}
)
"""Operators that move elements."""

REDUCERS = frozenset(
    {
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LayerNormalization",
        "LogSoftmax",
        "MatMul",
        "MaxPool",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Softmax",
    }
)
"""Operators that need more than one element of their input for one of their output."""

OWN_ACTIVATIONS = frozenset({"elu", "gelu", "mish", "silu", "softplus"})
"""Activations that are kernels by themselves: TVM's formulas for them overflow or cancel."""

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Attributes of a Selu that gives none: `gamma * Elu(x, alpha)`. It is a kernel by itself as Elu is."""

RUNTIME_ONLY = frozenset({"If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "TopK", "Unique"})
"""Operators whose results depend on TVM's runtime, or whose shapes depend on data."""

RUNTIME_CALLS = frozenset({"tirx.tvm_call_packed", "tirx.tvm_call_cpacked", "tirx.call_extern", "tirx.call_pure_extern"})
"""Calls that need TVM's runtime or a library."""

LIBRARY_FUNCTIONS = frozenset(
    "acos acosh asin asinh atan atan2 atanh cos cosh erf exp exp10 exp2 fmod hypot ldexp log log10 log1p log2 "
    "nextafter pow powi sin sinh tan tanh".split()
)
"""Elementary functions that are calls of a C library where `vector_math` does not write them out."""

DROPOUT_MODE = 2
"""Input of a Dropout that says whether it is training."""

RESIZE_SCALES = 2
"""Input of a Resize with its scales."""

ELEMENT_TYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)
"""Types of elements that are at least a byte and that TVM computes with."""

CALL_ARGUMENTS = 2
"""Arguments of the call of a static kernel: the kernel and what it reads."""

PASSING = (relax.Var, relax.Tuple, relax.TupleGetItem, GenericConst)
"""What binds a name and computes nothing."""

MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply and accumulate."""


def _misread(node: ir.Node) -> str | None:
    """Says what TVM's importer passes over in a node and would compute wrongly; None where it reads all."""
    integers = {name: value.as_int() for name, value in node.attributes.items() if value.type == ir.AttributeType.INT}
    match node.op_type:
        case "BatchNormalization" if integers.get("training_mode"):
            return "training_mode"
        case "Dropout" if len(node.inputs) > DROPOUT_MODE and node.inputs[DROPOUT_MODE] is not None:
            return "training_mode"
        case "IsInf" if not (integers.get("detect_negative", 1) and integers.get("detect_positive", 1)):
            return "detect_negative and detect_positive"
        case "SpaceToDepth" if "mode" in node.attributes and node.attributes["mode"].as_string() != "DCR":
            return "mode"
        case "Resize" if integers.get("antialias"):
            return "antialias"
        case "Resize" | "Upsample" if not _whole_sizes(node):
            return "scales that give no whole size"
    return None


def _whole_sizes(node: ir.Node) -> bool:
    """Whether a Resize is by its sizes, or its scales give them exactly."""
    scales = node.inputs[RESIZE_SCALES] if len(node.inputs) > RESIZE_SCALES else None
    if scales is None or scales.const_value is None or not scales.const_value.size or node.inputs[0] is None:
        return True
    factors = scales.const_value.numpy()
    if node.inputs[0].shape is None or len(node.inputs[0].shape) != factors.size:
        return True
    sizes = np.array(_static_shape(node.inputs[0])) * factors.astype(np.float64)
    return bool(np.all(np.abs(sizes - np.round(sizes)) <= np.spacing(np.float32(sizes))))


class NeedsRuntimeError(UnsupportedError):
    """A node that becomes no static kernel; TVM's runtime may still compute it.

    Attributes:
        node: Its name.
    """

    def __init__(self, node: str, message: str) -> None:
        """Makes the error.

        Args:
            node: The node's name.
            message: One line.
        """
        super().__init__(message)
        self.node = node


@dataclass(frozen=True, eq=False)
class GenericWorkload:
    """A PrimFunc out of TVM's importer.

    Attributes:
        function: Unscheduled; plain parameters: inputs, constants, outputs.
        operators: ONNX operator types that it computes.
        macs: Multiply-accumulates of those that multiply.
        signature: Identifies the function, layouts aside.
        input_layouts: Of the inputs as they come; constants are plain.
        output_layouts: Of the outputs as they are wanted.
        constant_count: Parameters between inputs and outputs.
    """

    function: tirx.PrimFunc
    operators: tuple[str, ...]
    macs: int
    signature: str
    input_layouts: tuple[Layout, ...]
    output_layouts: tuple[Layout, ...]
    constant_count: int = 0

    @property
    def kind(self) -> str:
        """The operators, joined by `+`."""
        return "+".join(self.operators)

    @property
    def key(self) -> str:
        """Identifies the computation with its layouts."""
        layouts = ",".join(str(layout) for layout in (*self.input_layouts, *self.output_layouts))
        return f"generic/{self.signature}/{layouts}"


@dataclass(slots=True)
class GenericGraph:
    """Kernels of all operators that are no convolution.

    Attributes:
        kernels: In the order of the graph.
        values: Types of what they read and write, plain.
        constants: What they read besides.
        views: Values that are views of others, by the name of what they view.
    """

    kernels: list[Kernel] = field(default_factory=list)
    values: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)


def import_generic(model: ir.Model, nodes: Sequence[ir.Node]) -> GenericGraph:
    """Imports the nodes that no convolution workload took.

    Args:
        model: The canonical graph they belong to, with its functions and constants.
        nodes: In topological order.

    Returns:
        Their kernels.

    Raises:
        NeedsRuntimeError: An operator that TVM's importer does not take, or that only TVM's runtime computes.
        UnsupportedError: The importer leaves an output out.
    """
    importer = _GenericImporter(model)
    for group in _groups(model, nodes):
        importer.add(group)
    return importer.graph


def conversion(source: TensorType, layout: Layout) -> GenericWorkload:
    """Makes the workload that copies a tensor into another layout.

    Args:
        source: The tensor as it is.
        layout: The layout of the copy.

    Returns:
        A workload of one input and one output.
    """
    function = identity(source.shape, source.dtype)
    signature = f"copy{source.shape}{source.dtype}"
    return GenericWorkload(function, ("Layout",), 0, signature, (source.layout,), (layout,))


def addition(
    product: TensorType, addend: TensorType, factor: float, act: Activation | None, *, constant: bool
) -> GenericWorkload:
    """Makes the workload that adds a tensor to another one: `act(product + factor * addend)`.

    Args:
        product: Type of the first input and of the output.
        addend: Type of the second one, which broadcasts to it.
        factor: What the second one is multiplied by.
        act: Applied to the sum, or None.
        constant: Whether the second one is a constant.

    Returns:
        A workload of two inputs, or of an input and a constant.
    """
    first = te.placeholder(_extents(product.shape), product.dtype, name="product")
    second = te.placeholder(_extents(addend.shape), addend.dtype, name="addend")

    def total(*index: tirx.Var) -> tirx.PrimExpr:
        own = index[len(index) - len(addend.shape) :]
        places = [i if extent > 1 else tirx.const(0, i.ty.dtype) for i, extent in zip(own, addend.shape, strict=True)]
        added = second(*places) if factor == 1.0 else second(*places) * tirx.const(factor, addend.dtype)
        value = first(*index) + added
        return activate(act, value)

    function = te.create_prim_func([first, second, te.compute(_extents(product.shape), total, name="total")])
    signature = f"add{product.shape}{addend.shape}{factor}{act}"
    inputs = 1 if constant else 2
    return GenericWorkload(function, ("Add",), 0, signature, (Layout(),) * inputs, (Layout(),), 2 - inputs)


def constant_block(array: np.ndarray) -> np.ndarray:
    """Lays a constant out for a generic kernel.

    Args:
        array: Plain.

    Returns:
        Its elements, and `CONSTANT_SLACK` more that may be read.
    """
    return np.pad(array.reshape(-1), (0, CONSTANT_SLACK))


def schedule_generic(workload: GenericWorkload, device: Device) -> tirx.PrimFunc:
    """Schedules a generic workload in its layouts.

    Args:
        workload: What to compute.
        device: The target.

    Returns:
        The scheduled function.
    """
    first = len(workload.input_layouts)
    constants = range(first, first + workload.constant_count)
    layouts = (*workload.input_layouts, *(Layout() for _ in constants), *workload.output_layouts)
    return schedule(workload.function, device, layouts, constants)


def library_calls(function: tirx.PrimFunc) -> list[str]:
    """Lists the functions of a C library that a lowered kernel calls; a kernel may call none.

    Args:
        function: As `codegen.lower_kernel` leaves it.

    Returns:
        Their names in LLVM, C or TVM.
    """
    found: dict[str, None] = {}

    def on_call(call: Call) -> None:
        name = getattr(call.op, "name", "")
        if name in ("tirx.call_llvm_intrin", "tirx.call_llvm_pure_intrin"):
            name = str(_intrinsic_name(int(call.args[0])))
        elif name in ("tirx.call_extern", "tirx.call_pure_extern"):
            name = call.args[0].value
            if name not in (APART, HIDDEN):
                found[name] = None
        if name.rpartition(".")[2] in LIBRARY_FUNCTIONS and name.startswith(("llvm.", "tirx.")):
            found[name] = None

    def on_mod(mod: tirx.Mod) -> None:
        if "float" in str(mod.ty.dtype):
            found["fmod"] = None

    tvm_ffi.structural_walk(function.body, [(Call, on_call), (tirx.Mod, on_mod)])
    return list(found)


def _intrinsic_name(number: int) -> str:
    """Names an intrinsic of LLVM."""
    return str(tvm.get_global_func("target.llvm_get_intrinsic_name")(number))


def tensor_type(value: ir.Value) -> TensorType:
    """Reads a value's static shape and element type.

    Args:
        value: A value of a canonical graph.

    Returns:
        Its type, in plain layout.

    Raises:
        UnsupportedError: The shape is not static or the type is unknown.
    """
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        raise UnsupportedError(
            f"Value '{value.name}': shape {value.shape} is not static; fix the input shapes with --shape."
        )
    name = value.dtype.numpy().name
    if name not in ELEMENT_TYPES:
        raise UnsupportedError(f"Value '{value.name}': elements of type {name} cannot be compiled; cast it to another type.")
    return TensorType(_static_shape(value), name)


def _static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """A static shape."""
    assert value is not None
    assert value.shape is not None
    return tuple(int(str(dim)) for dim in value.shape)


def _groups(model: ir.Model, nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Cuts nodes into trees, each with one node whose outputs leave it, in the order of those nodes."""
    group_of: dict[int, list[ir.Node]] = {}
    members = {id(node) for node in nodes}
    groups: list[list[ir.Node]] = []
    for node in nodes:
        group = [node]
        if _is_follower(model, node):
            for value in node.inputs:
                producer = value.producer() if value is not None else None
                if producer is None or id(producer) not in members or not _inner(value):
                    continue
                before = group_of[id(producer)]
                if before is group or not _fusible(model, before, node):
                    continue
                groups.remove(before)
                group[:0] = before
        for member in group:
            group_of[id(member)] = group
        groups.append(group)
    return groups


def _inner(value: ir.Value | None) -> bool:
    """Whether one node alone reads a value, and it is no output of the network."""
    return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def _is_follower(model: ir.Model, node: ir.Node) -> bool:
    """Whether a node may share a kernel with what computes its inputs."""
    kind = read_activation(model, node)
    if (kind is not None and kind.kind in OWN_ACTIVATIONS) or (node.domain == "" and node.op_type == "Selu"):
        return False
    return _is_elementwise(node) or (node.domain == "" and node.op_type in SHAPERS)


def _is_view(node: ir.Node) -> bool:
    """Whether a node leaves elements where they are."""
    return node.domain == "" and node.op_type in VIEWS


def _is_mover(node: ir.Node) -> bool:
    """Whether a node puts elements elsewhere."""
    return node.domain == "" and node.op_type in SHAPERS - VIEWS


def _is_elementwise(node: ir.Node) -> bool:
    """Whether a node computes each element for itself; recognised activations do."""
    return node.op_type in ELEMENTWISE_OPERATORS if node.domain == "" else True


def _fusible(model: ir.Model, before: Sequence[ir.Node], node: ir.Node) -> bool:
    """Whether `node` may join the group that computes one of its inputs."""
    if any(len(member.outputs) > 1 for member in before):
        return False
    # Beside what computes each element at its place, a reshape is a view of its own and costs nothing.
    group = [*before, node]
    if any(_is_view(member) for member in group) and not any(_is_mover(member) for member in group):
        return False
    if any(member.domain == "" and member.op_type in REDUCERS for member in before):
        return _is_elementwise(node)
    return all(_is_follower(model, member) for member in before)


class _GenericImporter:
    """Imports groups one by one; equal groups share their PrimFuncs by signature."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._layer_macs: dict[str, int] | None = None
        self.graph = GenericGraph()

    def add(self, group: Sequence[ir.Node]) -> None:
        """Imports a group, node by node where it does not become one PrimFunc."""
        only = group[0]
        for node in group:
            if node.domain == "" and (what := _misread(node)) is not None:
                raise UnsupportedError(
                    f"Node '{node.name}' ({node.op_type}): TVM's importer passes over {what}; spell it with other operators."
                )
        if len(group) == 1 and _is_view(only):
            self._add_view(only)
            return
        if len(group) == 1:
            call = _activation_call(self._model, only)
            if call is not None:
                for value in (*only.inputs, *only.outputs):
                    if value is not None and value.name and value.const_value is None:
                        self._declare(value)
                names = {name: name for name in (*call.sources, *call.outputs)}
                self._add_calls(group, [call], names)
                return
        try:
            module, originals = self._import(group)
            calls = _calls(only, module)
        except NeedsRuntimeError:
            if len(group) == 1:
                raise
            calls = []
        if len(calls) != 1 and len(group) > 1:
            for node in group:
                self.add([node])
            return
        self._add_kernels(group, module, calls, originals)

    def _add_view(self, node: ir.Node) -> None:
        """A value that is its input under another shape."""
        source, target = node.inputs[0], node.outputs[0]
        assert source is not None
        self._declare(source)
        self._declare(target)
        self.graph.views[_name(target)] = _name(source)

    def _declare(self, value: ir.Value) -> TensorType:
        """Notes a value's type."""
        declared = tensor_type(value)
        self.graph.values[_name(value)] = declared
        return declared

    def _import(self, group: Sequence[ir.Node]) -> tuple[tvm.IRModule, dict[str, str]]:
        """Runs TVM's importer, legalisation and fusion over a group; also gives the graph's names of its values."""
        for node in group:
            if node.domain == "" and node.op_type in RUNTIME_ONLY:
                raise _refusal(node, "it needs a runtime with dynamic shapes")
        proto, originals = self._proto(group)
        try:
            return _FUSE(from_onnx(proto, keep_params_in_input=False)), originals
        except Exception as error:  # TVM raises whatever comes to hand for what it does not take
            raise _refusal(group[0], "TVM's importer does not take it", error) from error

    def _proto(self, group: Sequence[ir.Node]) -> tuple[onnx.ModelProto, dict[str, str]]:
        """The group as a model of its own, without functions, and the graph's names of its values."""
        short: dict[str, str] = {}  # TVM's importer would rewrite names that are no identifiers
        made = {_name(value) for node in group for value in node.outputs if value.name}
        inputs: dict[str, onnx.ValueInfoProto] = {}
        initializers: list[onnx.TensorProto] = []
        for node in group:
            for value in (*node.inputs, *node.outputs):
                if value is None or not value.name or value.name in short:
                    continue
                short[value.name] = f"v{len(short)}"
                if value.name in made:
                    continue
                if value.const_value is not None:
                    tensor = ir.to_proto(value.const_value)
                    tensor.name = short[value.name]
                    initializers.append(tensor)
                else:
                    inputs[value.name] = _value_info(value, self._declare(value), short)
        outputs = [_value_info(v, self._declare(v), short) for v in group[-1].outputs if v.name and _used(v)]
        graph = onnx.helper.make_graph(
            [_short_node(node, short) for node in group], "group", list(inputs.values()), outputs, initializers
        )
        functions = self._functions(group)
        domains = {**self._model.opset_imports}
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items() if version]
        proto = onnx.helper.make_model(
            graph, opset_imports=opsets, functions=functions, ir_version=self._model.ir_version
        )
        inlined = onnx.inliner.inline_local_functions(proto) if functions else proto
        return inlined, {name: original for original, name in short.items()}

    def _functions(self, group: Sequence[ir.Node]) -> list[onnx.FunctionProto]:
        """The functions that a group calls, those that these call included."""
        found: dict[Any, ir.Function] = {}
        waiting = list(group)
        while waiting:
            node = waiting.pop()
            function = self._model.functions.get(node.op_identifier())
            if function is not None and function.identifier() not in found:
                found[function.identifier()] = function
                waiting += list(function)
        return [ir.to_proto(function) for function in found.values()]

    def _add_kernels(
        self, group: Sequence[ir.Node], module: tvm.IRModule, calls: Sequence[_Call], originals: dict[str, str]
    ) -> None:
        """One kernel for each call of the imported function."""
        results = [_name(value) for value in group[-1].outputs if value.name and _used(value)]
        names = _value_names(module, results, originals)
        computed = {name for call in calls for name in map(names.get, call.outputs)}
        for result, source in zip(results, _returned(module, len(results)), strict=True):
            if result in computed:
                continue
            if source not in originals:
                raise UnsupportedError(
                    f"Node '{group[-1].name}' ({group[-1].op_type}): TVM's importer leaves its output '{result}' out; "
                    "remove it from the model."
                )
            self.graph.views[result] = originals[source]  # nothing to compute: it is its input
        self._add_calls(group, calls, names)

    def _add_calls(self, group: Sequence[ir.Node], calls: Sequence[_Call], names: dict[str, str]) -> None:
        """One kernel for each call."""
        nodes = tuple(name for node in group for name in _original_names(node))
        operators = tuple(dict.fromkeys(family(node) or node.op_type for node in group))
        results = [_name(value) for value in group[-1].outputs if value.name and _used(value)]
        macs = sum(self._fused_macs(node) if family(node) else _macs(node) for node in group)
        for call in calls:
            name = f"g{len(self.graph.kernels)}_" + _identifier("_".join((*operators, *nodes[:1])))
            inputs = tuple(names.setdefault(source, f"{results[0]}.{source}") for source in call.sources)
            outputs = tuple(self._output(names, target, results[0], call, i) for i, target in enumerate(call.outputs))
            constants = []
            for index, array in enumerate(call.constants):
                constants.append(f"{name}.constant{index}")
                self.graph.constants[constants[-1]] = constant_block(array)
            plain = Layout()
            workload = GenericWorkload(
                function=call.function,
                operators=operators,
                macs=macs if call is calls[0] else 0,
                signature=f"{'_'.join(operators)}:{tvm_ffi.structural_hash(call.function):016x}",
                input_layouts=(plain,) * len(inputs),
                output_layouts=(plain,) * len(outputs),
                constant_count=len(constants),
            )
            self.graph.kernels.append(Kernel(name, workload, inputs, tuple(constants), outputs, nodes))

    def _fused_macs(self, node: ir.Node) -> int:
        """Multiply-accumulates of a fused operator, whose function's body has no shapes of its own."""
        if self._layer_macs is None:
            self._layer_macs = {layer.name: layer.macs for layer in layer_costs(self._model).layers}
        return sum(self._layer_macs.get(name, 0) for name in _original_names(node))

    def _output(self, names: dict[str, str], target: str, base: str, call: _Call, index: int) -> str:
        """The graph's name of a Relax variable that a call writes; its type is noted."""
        name = names.setdefault(target, f"{base}.{target}")
        self.graph.values.setdefault(name, call.output_types[index])
        return name


@dataclass(frozen=True, eq=False)
class _Call:
    """One `call_tir`: its function with parameters in our order, and what it reads and writes."""

    function: tirx.PrimFunc
    sources: tuple[str, ...]
    constants: tuple[np.ndarray, ...]
    outputs: tuple[str, ...]
    output_types: tuple[TensorType, ...]


def _activation_call(model: ir.Model, node: ir.Node) -> _Call | None:
    """An activation by itself, in our own formulas; None for any other node."""
    formula = _formula(model, node)
    data = node.inputs[0] if node.inputs else None
    if formula is None or data is None or data.const_value is not None or data.shape is None or data.dtype != ir.DataType.FLOAT:
        return None
    shape = _static_shape(data)
    extents = _extents(shape)
    source = te.placeholder(extents, name="source")
    target = te.compute(extents, lambda *i: formula(source(*i)), name="target")
    return _Call(
        te.create_prim_func([source, target]), (_name(data),), (), (_name(node.outputs[0]),), (TensorType(shape),)
    )


def _formula(model: ir.Model, node: ir.Node) -> Callable[[tirx.PrimExpr], tirx.PrimExpr] | None:
    """How we compute an activation of the vocabulary, or Selu, which is a multiple of Elu; None for any other node."""
    if node.domain == "" and node.op_type == "Selu":
        alpha, gamma = node.attributes.get_float("alpha", SELU_ALPHA), node.attributes.get_float("gamma", SELU_GAMMA)
        return lambda x: tirx.const(gamma, "float32") * activation("elu", (alpha,), x)
    kind = read_activation(model, node)
    return None if kind is None else lambda x: activate(kind, x)


def _extents(shape: Sequence[int]) -> tuple[Any, ...]:
    """A shape in 64 bits, as what TVM imports."""
    return tuple(tirx.const(extent, "int64") for extent in shape)


_FUSE = tvm.ir.transform.Sequential(
    [
        LEGALIZE,
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
)


def _calls(node: ir.Node, module: tvm.IRModule) -> list[_Call]:
    """Reads the calls of an imported group, in order; `node` is its first."""
    calls: list[_Call] = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            name = binding.var.name
            if isinstance(value, PASSING):
                continue
            if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.call_tir":
                raise _refusal(node, "it becomes no static kernel")
            if len(value.args) > CALL_ARGUMENTS or not _is_static(module[value.args[0]]):
                raise _refusal(node, "its shapes depend on data, or it calls TVM's runtime")
            if any(0 in _extents_of(parameter) for parameter in module[value.args[0]].params):
                raise _refusal(node, "it has a tensor without elements")
            kind = value.ty_args[0]
            fields = list(kind.fields) if hasattr(kind, "fields") else []
            outputs = [f"{name}.{index}" for index in range(len(fields))] or [name]
            calls.append(_read_call(module, value, outputs, fields or [kind]))
    return calls


def _extents_of(parameter: Any) -> list[int]:
    """The static shape of a kernel's parameter."""
    return [int(extent) for extent in parameter.ty.shape]


def _is_static(function: tirx.PrimFunc) -> bool:
    """Whether all shapes are known and nothing outside of the function is called."""
    if not all(isinstance(extent, tirx.IntImm) for parameter in function.params for extent in parameter.ty.shape):
        return False
    calls: list[Call] = []
    tvm_ffi.structural_walk(function.body, (Call, calls.append))
    return not any(getattr(call.op, "name", "") in RUNTIME_CALLS for call in calls)


def _refusal(node: ir.Node, what: str, error: Exception | None = None) -> NeedsRuntimeError:
    """Says why a node becomes no kernel, in TVM's words where it has some."""
    lines = str(error).strip().splitlines() if error is not None else []
    reason = f": {lines[-1] if lines else type(error).__name__}" if error is not None else ""
    return NeedsRuntimeError(node.name or "", f"Node '{node.name}' ({node.op_type}): {what}{reason}")


def _read_call(module: tvm.IRModule, call: Any, outputs: Sequence[str], kinds: Sequence[Any]) -> _Call:
    """Sorts a call's arguments into what is computed and what is constant."""
    function = module[call.args[0]]
    arguments = list(call.args[1])
    parameters = list(function.params)
    given, written = parameters[: len(arguments)], parameters[len(arguments) :]
    sources, constants, first, second = [], [], [], []
    for argument, parameter in zip(arguments, given, strict=True):
        if isinstance(argument, GenericConst):
            constants.append(argument.value.numpy())
            second.append(parameter)
        else:
            sources.append(argument.name)
            first.append(parameter)
    types = tuple(
        TensorType(tuple(int(extent) for extent in kind.shape), str(kind.dtype)) for kind in kinds
    )
    ordered = type(function)([*first, *second, *written], function.body, function.ret_type, function.attrs)
    return _Call(ordered, tuple(sources), tuple(constants), tuple(outputs), types)


def _value_names(module: tvm.IRModule, results: Sequence[str], originals: dict[str, str]) -> dict[str, str]:
    """Relax variables by the names they have in the graph: the inputs' are their own, the results come last."""
    names = {parameter.name: originals[parameter.name] for parameter in module["main"].params}
    inputs = set(names)
    returned = _returned(module, len(results))
    names.update((name, result) for name, result in zip(returned, results, strict=True) if name not in inputs)
    return names


def _returned(module: tvm.IRModule, count: int) -> list[str]:
    """Relax variables that are returned, `count` of them; an empty name stands for a constant."""
    body = module["main"].body
    aliases: dict[str, list[str]] = {}

    def ends(value: Any) -> list[str]:
        if isinstance(value, relax.Tuple):
            return [end for item in value.fields for end in ends(item)]
        if isinstance(value, relax.TupleGetItem):
            name = value.tuple_value.name
            return [aliases[name][value.index] if name in aliases else f"{name}.{value.index}"]
        if isinstance(value, relax.Var):
            return aliases.get(value.name, [value.name])
        return [""]

    for block in body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, PASSING):
                aliases[binding.var.name] = ends(binding.value)
    found = ends(body.body)
    if len(found) == 1 and count > 1:
        return [f"{found[0]}.{index}" for index in range(count)]
    return found


def _value_info(value: ir.Value, declared: TensorType, short: dict[str, str]) -> onnx.ValueInfoProto:
    """A value's type as ONNX writes it."""
    assert value.dtype is not None
    return onnx.helper.make_tensor_value_info(short[_name(value)], int(value.dtype), declared.shape)


def _short_node(node: ir.Node, short: dict[str, str]) -> onnx.NodeProto:
    """A node over values of short names."""
    proto = ir.to_proto(node)
    for field_name in ("input", "output"):
        names = [short[name] if name else "" for name in getattr(proto, field_name)]
        proto.ClearField(field_name)
        getattr(proto, field_name).extend(names)
    return proto


def _used(value: ir.Value) -> bool:
    """Whether anything reads a value."""
    return bool(list(value.uses())) or value.is_graph_output()


def _original_names(node: ir.Node) -> tuple[str, ...]:
    """Names of the user's nodes that a node covers."""
    return tuple(name for step in original_nodes(node) for name in step if name)


def _macs(node: ir.Node) -> int:
    """Multiply-accumulates of a node, 0 where it does not multiply."""
    if node.domain != "" or node.op_type not in MULTIPLYING:
        return 0
    outputs, sizes = math.prod(_static_shape(node.outputs[0])), _static_shape(node.inputs[1])
    if node.op_type == "Conv":
        return outputs * math.prod(sizes[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(_static_shape(node.inputs[0])) * math.prod(sizes[1:])
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return outputs * (sizes[-1] if transposed else sizes[-2] if len(sizes) > 1 else sizes[0])


def _identifier(text: str) -> str:
    """A C identifier out of a name."""
    return "".join(c if c.isalnum() else "_" for c in text)[:80]


def _name(value: ir.Value) -> str:
    """The name, which canonical graphs always have."""
    assert value.name
    return value.name
