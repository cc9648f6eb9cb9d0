from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from sepwise.lowering.verify import verify
from sepwise.passes.loading import load_model
from sepwise.passes.rewriting import constant_tensor

HEAD = '<ir_version: 9, opset_import: ["" : 17]> net '
SMALL = np.array([[[[1e-40]], [[-2.5]]], [[[1.2e-38]], [[-1e-44]]]], np.float32)
FLUSHED = np.array([[[[0]], [[-2.5]]], [[[1.2e-38]], [[0]]]], np.float32)
DATA = "(float[1,2,3,3] x) => (float[1,2,3,3] y)"


def load(text: str, folder: Path, **constants: np.ndarray) -> ir.Model:
    """Saves a model with initializers, and loads it."""
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "net.onnx")
    return load_model(folder / "net.onnx")


def weight(model: ir.Model, operator: str = "Conv", place: int = 1) -> np.ndarray:
    """What a node of the model multiplies by."""
    (node,) = [node for node in model.graph if node.op_type == operator]
    tensor = constant_tensor(node.inputs[place])
    assert tensor is not None
    return tensor.numpy()


def test_weights_and_biases(tmp_path: Path) -> None:
    model = load(f"{DATA} {{ y = Conv (x, w, b) }}", tmp_path, w=SMALL, b=np.array([1e-39, 1], np.float32))
    np.testing.assert_array_equal(weight(model), FLUSHED)
    np.testing.assert_array_equal(weight(model, place=2), [0, 1])


def test_constant_nodes(tmp_path: Path) -> None:
    text = f"{DATA} {{ w = Constant <value = float[2,2,1,1] {{1e-40, -2.5, 1.2e-38, -1e-44}}> () y = Conv (x, w) }}"
    np.testing.assert_array_equal(weight(load(text, tmp_path)), FLUSHED)


KEPT = {
    "what something else reads": f"{DATA} {{ c = Conv (x, w) s = ReduceSum (w) y = Div (c, s) }}",
    "what is divided by": f"{DATA} {{ y = Div (x, w) }}",
    "an output": "(float[1,2,3,3] x) => (float[1,2,3,3] y, float[2,2,1,1] w) { y = Conv (x, w) }",
    "what the caller may override": "(float[1,2,3,3] x, float[2,2,1,1] w) => (float[1,2,3,3] y) { y = Conv (x, w) }",
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_stays(kept: str, tmp_path: Path) -> None:
    array = SMALL[:1] if "y = Div (x, w)" in KEPT[kept] else SMALL
    model = load(KEPT[kept], tmp_path, w=array)
    found = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    assert found[0] is not None
    np.testing.assert_array_equal(found[0].numpy(), array)


def test_products_that_scale_their_weights(tmp_path: Path) -> None:
    array = SMALL.reshape(2, 2)
    for alpha, expected in ((1.0, FLUSHED.reshape(2, 2)), (1e38, array)):
        model = load(f"(float[3,2] x) => (float[3,2] y) {{ y = Gemm <alpha = {alpha}> (x, w) }}", tmp_path, w=array)
        np.testing.assert_array_equal(weight(model, "Gemm"), expected)


def test_float16_has_another_range(tmp_path: Path) -> None:
    array = np.array([[[[1e-6]], [[1]]]], np.float16)
    model = load("(float16[1,2,3,3] x) => (float16[1,1,3,3] y) { y = Conv (x, w) }", tmp_path, w=array)
    np.testing.assert_array_equal(weight(model), array)


def test_a_network_with_switched_off_channels_passes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 8, 1, 1)).astype(np.float32)
    weights[1] *= 1e-39
    weights[2, 3:] *= 1e-41
    text = "(float[1,8,9,9] x) => (float[1,8,9,9] y) { c = Conv (x, w) y = Relu (c) }"
    load(text, tmp_path, w=weights)
    found = verify(tmp_path / "net.onnx")
    assert found.passed, [check for check in found.checks if not check.passed]
