"""Converts a float32 network to float16, but for what needs the digits or the range of float32."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.chains import read_activation
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    RewriteResult,
    constant_tensor,
    free_name,
    is_operator,
    replace_with_input,
    value_names,
)
from sepwise.passes.vocabulary import DOMAIN

__all__ = ["ConvertFloat16Pass"]

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""What is worth being converted to by itself, where its weights are constant: sums of products."""

FOLLOWERS = (
    *("Abs", "Add", "Clip", "Div", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg"),
    *("PRelu", "Relu", "Sigmoid", "Softplus", "Sub", "Swish", "Tanh"),
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "MaxPool", "Pad", "Reshape", "Slice"),
    *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
"""What computes in float16 where it is fed float16: one operation an element, or none, that neither sums nor squares."""

MATRIX_RANK = 2
LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
LIMITS = {1: -np.inf, "min": -np.inf, 2: np.inf, "max": np.inf}
"""What of a Clip's inputs and attributes may become infinite, and how it then limits nothing."""

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
SUFFIXES = {HALF: ".float16", SINGLE: ".float32"}


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A node that can compute in float16.

    Attributes:
        node: The node.
        constants: Its float32 constants, rounded, by their positions.
        data: Positions of its other float32 inputs.
        attributes: Its tensors of constants among the attributes, rounded; of calls of recognised activations alone.
    """

    node: ir.Node
    constants: dict[int, npt.NDArray[np.generic]]
    data: tuple[int, ...]
    attributes: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)


class ConvertFloat16Pass(RewritePass[Narrowed]):
    """Lets products, and what elementwise and moving operators follow them, compute in float16 (IEEE 754 binary16).

        f(x, w)  =  widen(f16(narrow(x), round(w)))  but for rounding,   narrow(widen(h)) = h   exactly

    `narrow` and `widen` are Casts, `round` is to nearest, ties to even. Pairs of Casts cancel. What is left of them stands at
    the inputs and outputs of the network, which stay float32, and around what stays in float32: sums over pixels and channels
    (means, average pools, norms, Softmax), powers, exponentials and roots, Resize, products of two tensors that are both
    computed, transposed convolutions, and operators within subgraphs. Weights of up to 2^-25 become 0, as the smallest
    subnormal is 2^-24. A Cast to float16 that makes an output of the network stays, from float16 where that is what it reads.

    Class of the rewrite: `rounding`, of constants in float16.

    Fires when:
        1. a Conv, Gemm or MatMul computes in float32 with constant weights;
        2. an elementwise or moving operator, or a recognised activation, reads float32 that was widened from float16.

    Refuses when:
        1. a constant is larger than the largest float16, 65504; the maximum of a Clip may become infinite, and its minimum
           minus infinite, which means the same;
        2. a constant that is no weight or bias loses digits below 2^-14, where they get fewer, as an epsilon would;
        3. all weights of a filter (an output channel) would become 0;
        4. a recognised activation has constants that float16 does not hold, so that it would no longer be that activation;
        5. a tensor is multiplied by itself or divided by another one, as squares and quotients leave the range first.

    Constants are initializers and attributes: the value of a Pad, the factors of a Gemm.

    Visits the main graph, neither subgraphs nor function bodies. Values that were float32 keep their names in float16, the
    outputs of the network excepted.
    """

    name = "convert_float16"
    summary = "converted %d operators to float16"

    def call(self, model: ir.Model) -> RewriteResult:
        """Runs the pass with the names of the model at hand: to gather them for each Cast would take quadratic time."""
        self._names = value_names(model)
        return super().call(model)

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every float32 node of the main graph that is worth converting, in order, as later ones follow earlier ones."""
        for node in graph if graph is model.graph else ():
            if len(node.outputs) == 0 or any(output.dtype != SINGLE for output in node.outputs if output.name):
                continue
            if is_operator(node, *PRODUCTS):
                weight = constant_tensor(node.inputs[1])
                if weight is not None and (node.op_type != "MatMul" or len(weight.shape) == MATRIX_RANK):
                    yield node
            elif any(_widened(value) is not None for value in node.inputs) and (
                is_operator(node, *FOLLOWERS) or (node.domain == DOMAIN and read_activation(model, node) is not None)
            ):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> Narrowed | Refusal:
        """Decides about one node."""
        name = node.name or ""
        constants: dict[int, npt.NDArray[np.generic]] = {}
        data: list[int] = []
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != SINGLE:
                continue
            tensor = constant_tensor(value)
            if tensor is None:
                data.append(index)
                continue
            rounded = _rounded(tensor.numpy(), node, index)
            if isinstance(rounded, str):
                return Refusal(f"its constant '{value.name}' {rounded}", name)
            constants[index] = rounded
        for key, attribute in node.attributes.items() if node.domain == "" else ():
            if attribute.type == ir.AttributeType.FLOAT:
                rounded = _rounded(np.array(attribute.as_float()), node, key)
                if isinstance(rounded, str):
                    return Refusal(f"its attribute '{key}' {rounded}", name)
        if is_operator(node, "Div") and 1 in data:
            return Refusal("a quotient of two tensors may leave the range of float16", name)
        if is_operator(node, "Mul") and len(data) > 1 and node.inputs[0] is node.inputs[1]:
            return Refusal("a square may leave the range of float16", name)
        attributes: dict[str, npt.NDArray[np.generic]] = {}
        for key, attribute in node.attributes.items() if node.domain == DOMAIN else ():
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == SINGLE:
                exact = attribute.as_tensor().numpy()
                attributes[key] = exact.astype(np.float16)
                if not np.array_equal(attributes[key].astype(exact.dtype), exact):
                    return Refusal(f"float16 does not hold its constant {exact.reshape(-1)[0]:g}", name)
        return Narrowed(node, constants, tuple(data), attributes)

    def rewrite(self, model: ir.Model, match: Narrowed) -> None:
        """Narrows the inputs, and widens the outputs for whoever reads them."""
        node = match.node
        for index, array in match.constants.items():
            node.replace_input_with(index, _constant(model, node.inputs[index], array, self._names))
        for index in match.data:
            value = node.inputs[index]
            assert value is not None, "a match holds inputs that are there"
            node.replace_input_with(index, _widened(value) or _narrow(node, value, self._names))
            widening = value.producer()
            if _widened(value) is not None and not value.uses() and not value.is_graph_output():
                assert widening is not None, "what was widened has a producer"
                assert isinstance(widening.graph, ir.Graph), "passes do not visit function bodies"
                widening.graph.remove(widening, safe=True)
        for key, array in match.attributes.items():
            node.attributes[key] = ir.AttrTensor(key, ir.tensor(array))
        for output in node.outputs:
            if output.name:
                _widen(node, output, self._names)


def _widened(value: ir.Value | None) -> ir.Value | None:
    """The float16 value that a float32 one was cast from, or None."""
    producer = None if value is None else value.producer()
    if producer is None or not is_operator(producer, "Cast") or producer.attributes.get_int("to") != SINGLE.value:
        return None
    source = producer.inputs[0]
    return source if source is not None and source.dtype == HALF else None


def _narrows(node: ir.Node) -> bool:
    """Whether a node casts to float16."""
    return is_operator(node, "Cast") and node.attributes.get_int("to") == HALF.value


def _rounded(array: npt.NDArray[np.generic], node: ir.Node, place: int | str) -> npt.NDArray[np.generic] | str:
    """A constant of a node in float16, or what is wrong with it there; its place is that of an input or an attribute."""
    exact = array.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    beyond = np.isinf(rounded) & np.isfinite(exact)
    if is_operator(node, "Clip") and place in LIMITS:
        beyond &= rounded != LIMITS[place]
    if beyond.any():
        return f"holds {exact[beyond].reshape(-1)[0]:g}, and float16 ends at {LARGEST:g}"
    if not is_operator(node, *PRODUCTS) or isinstance(place, str):
        lost = (np.abs(exact) < SMALLEST_NORMAL) & (rounded != exact)
        if lost.any():
            return f"holds {exact[lost].reshape(-1)[0]:g}, which float16 rounds to {rounded[lost].reshape(-1)[0]:g}"
    elif place == 1:
        rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
        filters = tuple(range(1, exact.ndim)) if rows else 0
        if (exact.any(filters) & ~rounded.any(filters)).any():
            return "has a filter of which float16 rounds all weights to 0"
    return rounded


def _constant(model: ir.Model, old: ir.Value | None, array: npt.NDArray[np.generic], names: set[str]) -> ir.Value:
    """The initializer of a rounded constant, one for all that read it."""
    assert old is not None, "a match holds inputs that are there"
    assert old.name, "constants are initializers"
    name = old.name + SUFFIXES[HALF]
    known = model.graph.initializers.get(name)
    tensor = constant_tensor(known)
    if known is not None and tensor is not None and tensor.dtype == HALF and np.array_equal(tensor.numpy(), array):
        return known
    name = free_name(names, name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(HALF), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _narrow(node: ir.Node, value: ir.Value, names: set[str]) -> ir.Value:
    """A float32 value in float16, by the Cast that is there or a new one; it then stands right behind what makes the value."""
    graph, producer = node.graph, value.producer()
    assert isinstance(graph, ir.Graph), "passes do not visit function bodies"
    cast = next((use.node for use in value.uses() if _narrows(use.node) and use.node.graph is graph), None)
    if cast is None:
        cast = _cast(value, HALF, free_name(names, (value.name or "") + SUFFIXES[HALF]))
    else:
        graph.remove(cast)
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def _widen(node: ir.Node, output: ir.Value, names: set[str]) -> None:
    """`node -> y` becomes `node -> y, Cast -> y.float32`; where y is an output of the network `node -> y.float16, Cast -> y`.

    Who has narrowed y itself reads it as it is, and no Cast is made that nobody would read. Where the narrowed y is an output
    of the network its Cast keeps its name, from float16 to float16.
    """
    graph, name, leaves = node.graph, output.name or "", output.is_graph_output()
    assert isinstance(graph, ir.Graph), "passes do not visit function bodies"
    uses = list(output.uses())
    narrowing = [use.node for use in uses if _narrows(use.node)]
    output.type = ir.TensorType(HALF)
    if leaves or len(narrowing) < len(uses):
        other = free_name(names, name + SUFFIXES[HALF if leaves else SINGLE])
        cast = _cast(output, SINGLE, other)
        widened = cast.outputs[0]
        ir.convenience.replace_all_uses_with(output, widened, replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        graph.insert_after(node, cast)
        if leaves:
            output.name, widened.name = other, name
    for each in narrowing:
        if each.outputs[0].is_graph_output():
            each.replace_input_with(0, output)
        else:
            replace_with_input(each, output, keep_name=False)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    """A Cast of a value, in no graph yet."""
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype.value)], name=name, num_outputs=1)
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, ir.TensorType(dtype)
    return cast
