import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence import Oracle
from sepwise.passes.errors import InputError, UnsupportedError

BRANCHES = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[3] x, bool c) => (float[3] y) {
  y = If (c) <
    then_branch = g1 () => (float[3] t) { t = Neg(x) },
    else_branch = g2 () => (float[3] e) { k = Constant<value_float = 2.0>() e = Mul(x, k) }
  >
}
"""


@pytest.mark.parametrize(("condition", "factor"), [(True, -1.0), (False, 2.0)])
def test_branches_see_the_values_around_them(condition: bool, factor: float) -> None:
    x = np.arange(3, dtype=np.float32)
    outputs = Oracle(onnx.parser.parse_model(BRANCHES)).run({"x": x, "c": np.array(condition)})
    np.testing.assert_array_equal(outputs["y"], factor * x)


def test_loops_are_refused_by_name() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]> g (int64 n, bool c, float[1] x) => (float[1] y) {
      y = Loop (n, c, x) <body = b (int64 i, bool k, float[1] a) => (bool k2, float[1] o) { k2 = Identity(k) o = Add(a, a) }>
    }"""
    inputs = {"n": np.array(3), "c": np.array(True), "x": np.ones(1, np.float32)}
    with pytest.raises(UnsupportedError, match="Loop 'y': loops are not supported"):
        Oracle(onnx.parser.parse_model(text)).run(inputs)


@pytest.fixture
def relu() -> Oracle:
    return Oracle(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }')
    )


def test_results_are_float64(relu: Oracle) -> None:
    assert relu.run({"x": np.zeros((2, 3), np.float32)})["y"].dtype == np.float64


def test_double_inputs_keep_their_digits(relu: Oracle) -> None:
    x = np.full((2, 3), 1 / 3)
    np.testing.assert_array_equal(relu.run({"x": x})["y"], x)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "No tensor is given for input 'x'"),
        ({"x": np.zeros((2, 4), np.float32)}, r"'x' has shape \(2, 4\); the model declares \(2, 3\)"),
        ({"x": np.zeros((2, 3), np.int32)}, "'x' has type int32; the model declares float32"),
        ({"x": np.zeros((2, 3), np.float32), "z": np.zeros(1)}, "There is no input 'z'; the inputs are x"),
    ],
)
def test_wrong_inputs_are_one_clear_line(relu: Oracle, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        relu.run(inputs)


def test_unknown_values_cannot_be_kept(relu: Oracle) -> None:
    with pytest.raises(InputError, match="no value named 'nothing'"):
        relu.run({"x": np.zeros((2, 3), np.float32)}, keep=["nothing"])


def test_nan_and_infinity_pass_through_a_convolution(parse) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1,1,5,5] x) => (float y) <float[1,1,3,3] w> '
        "{ y = Conv<pads=[1,1,1,1]>(x, w) }"
    )
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[0, 0, 0, 0] = np.inf
    x[0, 0, 4, 4] = np.nan
    y = Oracle(model).run({"x": x})["y"][0, 0]
    assert np.isinf(y[:2, :2]).all()
    assert np.isnan(y[3:, 3:]).all()
    assert np.isfinite(y).sum() == 25 - 8


def test_operators_beyond_our_table_come_from_onnx() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y) { y = LpNormalization<p=1>(x) }'
    )
    y = Oracle(model).run({"x": np.array([[1, 0, 0, 2.0**-30]])})["y"]
    assert y.dtype == np.float64
    norm = 1 + 2.0**-30  # 1 in float32
    np.testing.assert_array_equal(y, [[1 / norm, 0, 0, 2.0**-30 / norm]])


def test_import_is_light() -> None:
    script = (
        "import sys, sepwise.passes.equivalence; "
        "print([m for m in ('tvm', 'torch', 'onnx_ir', 'onnxscript', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
