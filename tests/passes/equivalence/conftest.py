"""What the tests of this folder share: models from text, ONNX Runtime without optimisation."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, shape_inference

Tensors = Mapping[str, npt.NDArray[np.generic]]


def parse(text: str, *, seed: int = 0) -> onnx.ModelProto:
    """Reads ONNX text. Initializers without values (`<float[4,3] w>`) are drawn; variances are positive.

    The outputs' types are inferred: the text may state any.
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in list(model.graph.value_info):
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        if value.name.startswith("var"):
            array = np.abs(array) + 0.5
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), value.name))
        model.graph.value_info.remove(value)
    for output in model.graph.output:
        output.ClearField("type")
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model)
    return model


def run_onnxruntime(model: onnx.ModelProto, inputs: Tensors, *, optimised: bool = False) -> dict[str, npt.NDArray[np.generic]]:
    """Runs a model in ONNX Runtime, with its graph optimisations off unless asked for."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture(scope="session", name="parse")
def parse_fixture() -> Callable[..., onnx.ModelProto]:
    return parse


@pytest.fixture(scope="session", name="run_onnxruntime")
def run_onnxruntime_fixture() -> Callable[..., dict[str, npt.NDArray[np.generic]]]:
    return run_onnxruntime


class Network:
    """Builds a small random network block by block, as exporters write it: batch norm and activations as own nodes.

    Attributes:
        model: what was built, after `finish`.
    """

    CONVOLUTIONS = ("depthwise", "pointwise", "dense", "grouped", "multiplier", "padded pointwise")
    ACTIVATIONS = (
        "Relu",
        "Relu6",
        "HardSwish",
        "Sigmoid",
        "SiLU",
        "Tanh",
        "Gelu",
        "LeakyRelu",
        "Mish",
        "spelled hard-swish",
        "none",
    )

    def __init__(self, seed: int, shape: tuple[int, int, int, int]) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "x"
        self.input_shape = shape

    def constant(self, name: str, array: npt.NDArray[np.float64]) -> str:
        name = f"{name}{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], f"{operator}{len(self.nodes)}", **attributes))
        return output

    def convolution(self, kind: str, *, bias: bool = False, stride: int = 1, dilation: int = 1) -> None:
        n, c, h, w = self.shape
        group, oc, kernel, pads = 1, int(self.rng.integers(2, 20)), 3, [int(p) for p in self.rng.integers(0, 3, 4)]
        if kind == "depthwise":
            group, oc, kernel = c, c, int(self.rng.choice([3, 5]))
        elif kind == "multiplier":
            group, oc = c, 2 * c
        elif kind == "grouped":
            group = 2 if c % 2 == 0 else 1
            oc = 2 * int(self.rng.integers(1, 8))
        elif kind.endswith("pointwise"):
            kernel, pads = 1, [1, 1, 1, 1] if kind.startswith("padded") else [0, 0, 0, 0]
        extent = (kernel - 1) * dilation + 1
        pads = [p + max(0, extent - size - p - q) for p, q, size in zip(pads, (0, 0, *pads[:2]), (h, w, h, w), strict=True)]
        weight = self.rng.standard_normal((oc, c // group, kernel, kernel)) / np.sqrt(c // group * kernel**2)
        inputs = [self.last, self.constant("w", weight)]
        if bias:
            inputs.append(self.constant("b", self.rng.standard_normal(oc)))
        self.last = self.node(
            "Conv", *inputs, group=group, pads=pads, strides=[stride] * 2, dilations=[dilation] * 2, kernel_shape=[kernel] * 2
        )
        sizes = [(size + pads[i] + pads[i + 2] - extent) // stride + 1 for i, size in enumerate((h, w))]
        self.shape = (n, oc, *sizes)

    def batch_norm(self, *, epsilon: float = 1e-5) -> None:
        c = self.shape[1]
        scale = self.rng.uniform(0.5, 2, c) * self.rng.choice([-1, 1, 1, 1], c)
        parameters = (scale, self.rng.standard_normal(c), self.rng.standard_normal(c) * 0.3, self.rng.uniform(0.3, 2, c))
        names = [self.constant(name, p) for name, p in zip(("scale", "shift", "mean", "var"), parameters, strict=True)]
        self.last = self.node("BatchNormalization", self.last, *names, epsilon=epsilon)

    def activation(self, kind: str) -> None:
        x = self.last
        if kind == "Relu6":
            self.last = self.node("Clip", x, self.constant("low", np.float64(0)), self.constant("high", np.float64(6)))
        elif kind == "SiLU":
            self.last = self.node("Mul", x, self.node("Sigmoid", x))
        elif kind == "spelled hard-swish":
            shifted = self.node("Add", x, self.constant("three", np.float64(3)))
            limits = self.constant("low", np.float64(0)), self.constant("high", np.float64(6))
            product = self.node("Mul", x, self.node("Clip", shifted, *limits))
            self.last = self.node("Div", product, self.constant("six", np.float64(6)))
        elif kind != "none":
            self.last = self.node(kind, x)

    def squeeze_and_excite(self) -> None:
        pooled = self.node("GlobalAveragePool", self.last)
        c = self.shape[1]
        weight = self.constant("w", self.rng.standard_normal((c, c, 1, 1)) / np.sqrt(c))
        gate = self.node("HardSigmoid", self.node("Conv", pooled, weight), alpha=0.2)
        self.last = self.node("Mul", self.last, gate)

    def block(self, kind: str, activation: str) -> None:
        """Appends a convolution with everything around it, partly at random; a residual where shapes allow."""
        before, shape = self.last, self.shape
        stride, dilation = int(self.rng.choice([1, 1, 2])), int(self.rng.choice([1, 1, 2]))
        self.convolution(kind, bias=self.rng.random() < 0.5, stride=stride, dilation=dilation)
        if self.rng.random() < 0.8:
            self.batch_norm(epsilon=float(self.rng.choice([1e-3, 1e-5])))
        self.activation(activation)
        if self.rng.random() < 0.2:
            self.squeeze_and_excite()
        if self.shape == shape:
            self.last = self.node("Add", self.last, before)

    def finish(self) -> onnx.ModelProto:
        last = self.nodes[-1]
        last.output[0] = "y"
        graph = onnx.helper.make_graph(
            self.nodes,
            "network",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.input_shape)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            self.constants,
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
        model = shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


def random_network(seed: int, blocks: list[tuple[str, str]]) -> onnx.ModelProto:
    """Builds a network of some blocks (kind of convolution, activation); the seed draws everything else."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 3)), int(rng.integers(1, 10)), int(rng.integers(5, 14)), int(rng.integers(5, 14)))
    network = Network(seed, shape)
    for kind, activation in blocks:
        network.block(kind, activation)
    return network.finish()


def fold_batch_norms(model: onnx.ModelProto, number: type = np.float64, mistake: str = "") -> onnx.ModelProto:
    """Folds every BatchNormalization that follows a Conv into it, rightly or with one mistake.

    Args:
        model: a network in which no such Conv has another consumer.
        number: type in which the folded constants are computed before they are stored as float32.
        mistake: `epsilon` (dropped), `bias` (not scaled by gamma), `mean` (not subtracted), `variance` (not rooted).
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    tensors = {t.name: numpy_helper.to_array(t).astype(number) for t in graph.initializer}
    producer = {node.output[0]: node for node in graph.node}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producer[norm.input[0]]
        if conv.op_type != "Conv":
            continue
        scale, shift, mean, variance = (tensors[name] for name in norm.input[1:])
        epsilon = number(0 if mistake == "epsilon" else norm.attribute[0].f)
        factor = scale / (variance + epsilon if mistake == "variance" else np.sqrt(variance + epsilon))
        weight = tensors[conv.input[1]]
        bias = tensors[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(scale), number)
        bias = bias * (1 if mistake == "bias" else factor) + shift - (0 if mistake == "mean" else mean * factor)
        names = f"{norm.name}.weight", f"{norm.name}.bias"
        for name, array in zip(names, (weight * factor.reshape(-1, 1, 1, 1), bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        replacement = onnx.helper.make_node("Conv", [conv.input[0], *names], [norm.output[0]], conv.name)
        replacement.attribute.extend(conv.attribute)
        index = list(graph.node).index(norm)
        graph.node.remove(norm)
        graph.node.insert(index, replacement)
        graph.node.remove(conv)
    return folded


@pytest.fixture(scope="session", name="random_network")
def random_network_fixture() -> Callable[[int, list[tuple[str, str]]], onnx.ModelProto]:
    return random_network


@pytest.fixture(scope="session", name="fold_batch_norms")
def fold_batch_norms_fixture() -> Callable[..., onnx.ModelProto]:
    return fold_batch_norms


@pytest.fixture(scope="session")
def network_type() -> type[Network]:
    return Network
