"""Writes the fused operators of ONNX Runtime's own domain as what they stand for.

A file that ONNX Runtime saved after optimising it (up to `ORT_ENABLE_EXTENDED`) calls operators of the domain
`com.microsoft`. Each is short for a few operators of ONNX, and is replaced by these before anything else looks at the file:

    FusedConv(x, w, b, z)     activation(Conv(x, w, b) + z)
    FusedGemm(a, b, c)        activation(Gemm(a, b, c))
    FusedMatMul(a, b)         alpha MatMul(a, b), either of them transposed
    Gelu(x), BiasGelu(x, b)   x / 2 (1 + erf(x / sqrt 2)), of x + b
    FastGelu(x, b)            x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of x + b
    QuickGelu(x)              x sigmoid(alpha x)
    SkipLayerNormalization(x, s, g, b, c)         LayerNormalization(x + s + c, g, b), and x + s + c as another result
    SkipSimplifiedLayerNormalization(x, s, g, c)  SimplifiedLayerNormalization(x + s + c, g), and the same

Two of them are written as if they were ONNX's own, which has the first from operator set 17 on and the second never:

    LayerNormalization(x, g, b)           (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) g + b, from `axis` on
    SimplifiedLayerNormalization(x, g)    x / sqrt(mean(x^2) + epsilon) g

Source: onnxruntime, docs/ContribOperators.md and core/graph/contrib_ops/contrib_defs.cc.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["CONTRIB_DOMAIN", "CONTRIB_OPERATORS", "expand_contrib_operators", "has_contrib_operators"]

CONTRIB_DOMAIN = "com.microsoft"

CLIP_TAKES_INPUTS = 11
"""From this operator set on, the limits of Clip are inputs; attributes before."""

MEAN_TAKES_AXES = 18
"""From this operator set on, the axes of ReduceMean are an input; an attribute before."""

MOST_SHAPE_ELEMENTS = 64
"""Constants of up to so many elements may say shapes or axes."""

UNLISTED: Mapping[str, float] = {"LayerNormalization": 17, "SimplifiedLayerNormalization": math.inf}
"""Operators that ONNX Runtime writes in ONNX's own domain, and the operator set from which on ONNX has them."""

GATE_SLOPE = 1.702
"""The default `alpha` of QuickGelu."""

EPSILON, SKIP_EPSILON = 1e-5, 1e-12
"""The default `epsilon` of layer norms, and of those behind a sum."""


def expand_contrib_operators(model: onnx.ModelProto, file: str) -> None:
    """Replaces every fused operator of ONNX Runtime that is known here, in place.

    The first node written keeps the name of the operator, the others are named after it. Operators that the model defines
    itself, as functions, are left alone; so are the bodies of functions.

    Args:
        model: As it was parsed.
        file: Where it came from, for messages.

    Raises:
        InputError: If an operator lacks an attribute, or has one that it cannot have.
        UnsupportedError: If an activation is not known, or the rank of a transposed operand is not.
    """
    version, known = _known_operators(model)
    _expand(model, model.graph, known, version, file)


def has_contrib_operators(model: onnx.ModelProto) -> bool:
    """Tells whether `expand_contrib_operators` would replace anything."""
    return _calls(model.graph, _known_operators(model)[1])


def _known_operators(model: onnx.ModelProto) -> tuple[int, Collection[tuple[str, str]]]:
    """Gives the version of ONNX's operator set, and the operators that are replaced in this model."""
    versions = {imported.domain: imported.version for imported in model.opset_import}
    own = {function.name for function in model.functions if function.domain == CONTRIB_DOMAIN}
    version = versions.get("", versions.get("ai.onnx", 0))
    known = {("", name) for name, since in UNLISTED.items() if version < since}
    if CONTRIB_DOMAIN in versions:
        known |= {(CONTRIB_DOMAIN, name) for name in CONTRIB_OPERATORS.keys() - UNLISTED.keys() - own}
    return version, known


def _calls(graph: onnx.GraphProto, operators: Collection[tuple[str, str]]) -> bool:
    return any(
        (node.domain, node.op_type) in operators
        or any(_calls(attribute.g, operators) for attribute in node.attribute if attribute.HasField("g"))
        for node in graph.node
    )


def _expand(model: onnx.ModelProto, graph: onnx.GraphProto, known: Collection[tuple[str, str]], version: int, file: str) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _expand(model, attribute.g, known, version, file)
    fused = [(node.domain, node.op_type) in known for node in graph.node]
    if not any(fused):
        return
    writer = _Writer(model, graph, version, file)
    for node, is_fused in zip(graph.node, fused, strict=True):
        writer.nodes += writer.expand(node) if is_fused else [node]
    del graph.node[:]
    graph.node.extend(writer.nodes)


class _Writer:
    """Writes what one operator after the other stands for.

    Attributes:
        nodes: what is done: what was written, and what stays.
        version: operator set of ONNX that the graph is written in.
        node: the operator being replaced.
        attributes: its attributes.
    """

    def __init__(self, model: onnx.ModelProto, graph: onnx.GraphProto, version: int, file: str) -> None:
        typed = [*graph.input, *graph.output, *graph.value_info]
        self.nodes: list[onnx.NodeProto] = []
        self.version = version
        self._model, self._graph, self._file = model, graph, file
        self._types = {value.name: value.type.tensor_type.elem_type for value in typed}
        self._types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in typed if _has_rank(value)}
        self._ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self._taken = {name for node in graph.node for name in (*node.output, node.name)} | set(self._types)

    def expand(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Writes the nodes that an operator stands for."""
        self.node = node
        self.attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._written: list[onnx.NodeProto] = []
        CONTRIB_OPERATORS[node.op_type](self)
        self.give(0)
        return self._written

    def give(self, place: int) -> str:
        """Gives the last result the name of an output of the operator."""
        name = str(self.node.output[place])
        self._written[-1].output[0] = name
        return name

    def operand(self, place: int) -> str:
        """Names an input; empty where it is left out."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def rank(self, operand: str) -> int:
        """Counts the dimensions of an input, inferred where the file does not state them."""
        if operand not in self._ranks:
            self._ranks = self._infer_ranks() | self._ranks
        if operand not in self._ranks:
            raise UnsupportedError(
                f"{self.who()}: needs the rank of '{operand}', which the file does not state. "
                "Save it with inferred shapes (onnx.shape_inference)."
            )
        return self._ranks[operand]

    def _infer_ranks(self) -> dict[str, int]:
        """Infers shapes as far as nodes are done; ONNX's inference does not see through operators of other domains."""
        whole = self._graph
        graph = onnx.GraphProto(name=whole.name, node=self.nodes, input=whole.input, value_info=whole.value_info)
        for tensor in whole.initializer:
            if math.prod(tensor.dims) <= MOST_SHAPE_ELEMENTS:
                graph.initializer.append(tensor)
            else:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        done = onnx.ModelProto(
            ir_version=self._model.ir_version, opset_import=self._model.opset_import, functions=self._model.functions, graph=graph
        )
        try:
            inferred = onnx.shape_inference.infer_shapes(done, data_prop=True).graph.value_info
        except onnx.shape_inference.InferenceError:
            return {}
        return {value.name: len(value.type.tensor_type.shape.dim) for value in inferred if _has_rank(value)}

    def who(self) -> str:
        """Names the operator for messages."""
        spelled = "::".join(filter(None, (self.node.domain, self.node.op_type)))
        return f"{self._file}: node '{self.node.name or self.node.output[0]}' ({spelled})"

    def number(self, value: float) -> str:
        """Writes a scalar of the type of the operator's first input."""
        kind = self._types.get(self.node.input[0], 0) or TensorProto.FLOAT
        return self.write("Constant", value=helper.make_tensor("value", kind, [], [value]))

    def write(self, operator: str, *operands: str, **attributes: object) -> str:
        """Writes a node and names its result."""
        base = self.node.name or self.node.output[0]
        used = operator == "Constant" or any(node.op_type != "Constant" for node in self._written)
        name = self._fresh(f"{base}/{operator}") if used else self.node.name
        result = self._fresh(f"{base}/{operator}_output")
        node = helper.make_node(operator, operands, [result], name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._written.append(node)
        return result

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name


def _has_rank(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _fused_conv(write: _Writer) -> None:
    kept = {name: value for name, value in write.attributes.items() if name not in ("activation", "activation_params")}
    result = write.write("Conv", *filter(None, (write.operand(place) for place in range(3))), **kept)
    if write.operand(3):
        result = write.write("Add", result, write.operand(3))
    _activation(write, result, list(write.attributes.get("activation_params", ())))


def _fused_gemm(write: _Writer) -> None:
    kept = {name: value for name, value in write.attributes.items() if not name.startswith("activation")}
    result = write.write("Gemm", *filter(None, (write.operand(place) for place in range(3))), **kept)
    parameters = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    _activation(write, result, [write.attributes[name] for name in parameters if name in write.attributes])


def _fused_matmul(write: _Writer) -> None:
    unknown = sorted(set(write.attributes) - {"alpha", "transA", "transB"})
    if any(write.attributes[name] for name in unknown):
        raise UnsupportedError(f"{write.who()}: has {unknown[0]}, which is not known here. Save the file less optimised.")
    operands = []
    for place, name in enumerate(("transA", "transB")):
        operand = write.operand(place)
        if write.attributes.get(name, 0):
            rank = write.rank(operand)
            operand = write.write("Transpose", operand, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(operand)
    result = write.write("MatMul", *operands)
    if write.attributes.get("alpha", 1.0) != 1.0:
        write.write("Mul", result, write.number(write.attributes["alpha"]))


def _biased(write: _Writer) -> str:
    """The first input, plus the second where there is one."""
    return write.write("Add", write.operand(0), write.operand(1)) if write.operand(1) else write.operand(0)


def _gelu(write: _Writer) -> None:
    x = _biased(write)
    _half_gated(write, x, write.write("Erf", write.write("Mul", x, write.number(math.sqrt(0.5)))))


def _fast_gelu(write: _Writer) -> None:
    x = _biased(write)
    cube = write.write("Mul", write.write("Mul", x, x), x)
    inner = write.write("Add", x, write.write("Mul", cube, write.number(0.044715)))
    _half_gated(write, x, write.write("Tanh", write.write("Mul", inner, write.number(math.sqrt(2 / math.pi)))))


def _half_gated(write: _Writer, x: str, gate: str) -> None:
    """Writes x / 2 (1 + gate)."""
    half = write.write("Mul", x, write.number(0.5))
    write.write("Mul", half, write.write("Add", gate, write.number(1.0)))


def _quick_gelu(write: _Writer) -> None:
    x, slope = write.operand(0), write.number(write.attributes.get("alpha", GATE_SLOPE))
    write.write("Mul", x, write.write("Sigmoid", write.write("Mul", x, slope)))


def _layer_norm(write: _Writer) -> None:
    _require_one_result(write, write.node.output[1:])
    _scale_to_unit(write, _centre(write, write.operand(0)), *map(write.operand, (1, 2)))


def _simplified_layer_norm(write: _Writer) -> None:
    _require_one_result(write, write.node.output[1:])
    _scale_to_unit(write, write.operand(0), *map(write.operand, (1, 2)))


def _skip_layer_norm(write: _Writer) -> None:
    x = _add_skip(write, write.operand(4))
    _scale_to_unit(write, _centre(write, x), *map(write.operand, (2, 3)))


def _skip_simplified_layer_norm(write: _Writer) -> None:
    x = _add_skip(write, write.operand(3))
    _scale_to_unit(write, x, write.operand(2), "")


def _add_skip(write: _Writer, bias: str) -> str:
    """Writes x + skip + bias, which is the fourth result where that is asked for."""
    _require_one_result(write, write.node.output[1:3])
    x = write.write("Add", write.operand(0), write.operand(1))
    if bias:
        x = write.write("Add", x, bias)
    return write.give(3) if any(write.node.output[3:]) else x


def _require_one_result(write: _Writer, others: Sequence[str]) -> None:
    if any(others):
        raise UnsupportedError(f"{write.who()}: gives the mean or the deviation too, which is not known here.")


def _centre(write: _Writer, x: str) -> str:
    return write.write("Sub", x, _mean(write, x))


def _scale_to_unit(write: _Writer, x: str, scale: str, shift: str) -> None:
    """Divides by the root of the mean square, and applies scale and shift."""
    square = _mean(write, write.write("Mul", x, x))
    epsilon = write.attributes.get("epsilon", SKIP_EPSILON if write.node.op_type.startswith("Skip") else EPSILON)
    root = write.write("Sqrt", write.write("Add", square, write.number(epsilon)))
    scaled = write.write("Mul", write.write("Div", x, root), scale)
    if shift:
        write.write("Add", scaled, shift)


def _mean(write: _Writer, x: str) -> str:
    """The mean over the axes from the attribute `axis` on."""
    first = write.attributes.get("axis", -1)
    axes = list(range(first, 0 if first < 0 else write.rank(write.operand(0))))
    if write.version < MEAN_TAKES_AXES:
        return write.write("ReduceMean", x, axes=axes)
    named = write.write("Constant", value=helper.make_tensor("value", TensorProto.INT64, [len(axes)], axes))
    return write.write("ReduceMean", x, named)


ACTIVATIONS: Mapping[str, Sequence[str]] = {
    "": (),
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""The activations of fused operators, with the names of their parameters."""


def _activation(write: _Writer, x: str, parameters: Sequence[float]) -> None:
    """Applies what the attribute `activation` names; without it nothing."""
    name = write.attributes.get("activation", b"").decode()
    if name not in ACTIVATIONS:
        known = ", ".join(filter(None, ACTIVATIONS))
        raise UnsupportedError(f"{write.who()}: its activation {name!r} is not known; known are {known}.")
    if len(parameters) != len(ACTIVATIONS[name]):
        wanted = " and ".join(ACTIVATIONS[name]) or "no parameter"
        raise InputError(f"{write.who()}: its activation {name!r} has {len(parameters)} parameters; needed: {wanted}.")
    if not name:
        return
    if name == "Clip" and write.version >= CLIP_TAKES_INPUTS:
        write.write("Clip", x, *(write.number(value) for value in parameters))
    else:
        write.write(name, x, **dict(zip(ACTIVATIONS[name], parameters, strict=True)))


CONTRIB_OPERATORS: Mapping[str, Callable[[_Writer], None]] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_simplified_layer_norm,
}
"""What is expanded, and by what."""
