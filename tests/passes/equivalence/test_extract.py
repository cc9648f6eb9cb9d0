from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper, shape_inference

from sepwise.passes.equivalence import Oracle, extract, run_with_bounds, sample_inputs
from sepwise.passes.equivalence.extract import extract_like
from sepwise.passes.errors import InputError


@pytest.fixture
def model(parse) -> onnx.ModelProto:
    return parse(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[1,4,6,6] x, float[1,4,6,6] z) => (float y)
        <float[4,1,3,3] w1, float[8,4,1,1] w2, float[8] b2>
        {
          [first] a = Conv<group=4,pads=[1,1,1,1]>(x, w1)
          [act] b = Relu(a)
          [side] s = Add(b, z)
          [second] c = Conv(b, w2, b2)
          [last] y = Sigmoid(c)
        }"""
    )


def test_part_computes_what_the_whole_does(model: onnx.ModelProto) -> None:
    inputs = sample_inputs(model, 0)
    whole = Oracle(model).run(inputs, keep=["b", "c"])
    part = extract(model, ["b"], ["c", "y"])
    onnx.checker.check_model(part, full_check=True)
    assert [node.name for node in part.graph.node] == ["second", "last"]
    assert {tensor.name for tensor in part.graph.initializer} == {"w2", "b2"}
    results = Oracle(part).run({"b": whole["b"]})
    for name in ("c", "y"):
        np.testing.assert_array_equal(results[name], whole[name])


def test_values_between_keep_their_types(model: onnx.ModelProto) -> None:
    part = extract(shape_inference.infer_shapes(model), ["x"], ["c"])
    assert {value.name for value in part.graph.value_info} == {"a", "b"}


def test_kernel_bound_of_a_part(model: onnx.ModelProto, run_onnxruntime) -> None:
    whole = Oracle(model).run(sample_inputs(model, 0), keep=["b"])
    part = extract(model, ["b"], ["y"])
    value, bound = run_with_bounds(part, {"b": whole["b"]})["y"]
    actual = run_onnxruntime(part, {"b": whole["b"].astype(np.float32)})["y"]
    assert (np.abs(actual - value) <= bound).all()


def test_a_graph_input_may_be_left_out(model: onnx.ModelProto) -> None:
    assert [value.name for value in extract(model, ["x"], ["y"]).graph.input] == ["x"]


def test_weights_may_be_computed(parse) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float y) <float[2] c> { d = Neg(c) y = Mul(x, d) }'
    )
    assert [node.op_type for node in extract(model, ["x"], ["y"]).graph.node] == ["Neg", "Mul"]


def test_functions_come_along() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "sepwise" : 1]> g (float[2] x) => (float[2] y) {
          t = sepwise.Outer(x)  u = sepwise.Unused(t)  y = Neg(t)
        }
        <opset_import: ["" : 18, "sepwise" : 1], domain: "sepwise"> Outer (a) => (c) { c = sepwise.Inner(a) }
        <opset_import: ["" : 18], domain: "sepwise"> Inner (a) => (c) { c = Relu(a) }
        <opset_import: ["" : 18], domain: "sepwise"> Unused (a) => (c) { c = Abs(a) }"""
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [2]))
    part = extract(model, ["x"], ["t"])
    assert [function.name for function in part.functions] == ["Outer", "Inner"]
    assert Oracle(part).run({"x": np.array([-1, 1], np.float32)})["t"].tolist() == [0, 1]


def test_missing_input_is_named(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="'s' also depends on the input 'z'"):
        extract(model, ["b"], ["s"])


def test_unknown_value_is_named(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no value named 'nothing'"):
        extract(model, ["x"], ["nothing"])


def test_a_part_in_the_place_of_another_has_its_names(parse: Callable[..., onnx.ModelProto]) -> None:
    """Also where a name of the other part is that of something else inside this one."""
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[2,3] x) => (float y)'
    original = parse(f"{head} {{ a = Relu (x) b = Exp (a) y = Neg (b) }}")
    rewritten = parse(f"{head} <float[3] a> {{ p = Relu (x) b = Mul (p, a) q = Exp (b) y = Neg (q) }}")
    pattern = extract(original, ["a"], ["b"])
    part = extract_like(rewritten, {"p": "a"}, ("q", "b"), pattern)
    onnx.checker.check_model(part, full_check=True)
    assert [value.name for value in part.graph.input] == ["a"]
    assert [value.name for value in part.graph.output] == ["b"]
    assert [tensor.name for tensor in part.graph.initializer] == ["a.rewritten"]
    x = np.ones((2, 3), np.float32)
    (scale,) = (numpy_helper.to_array(tensor) for tensor in rewritten.graph.initializer)
    np.testing.assert_array_equal(Oracle(part).run({"a": x})["b"], np.exp(np.float64(1) * scale.astype(np.float64) * x))


def test_types_may_be_given(parse: Callable[..., onnx.ModelProto]) -> None:
    model = parse('<ir_version: 9, opset_import: ["" : 18]> g (float[2,3] x) => (float y) { a = Relu (x) y = Exp (a) }')
    types = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [7]) for name in ("a", "y")}
    part = extract(model, ["a"], ["y"], types=types)
    assert part.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 7
