import onnx
import pytest
from onnx import parser

from sepwise.models.opsets import lower_opset
from sepwise.passes.errors import InputError


def model(body: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{body}')


def lowered(body: str, opset: int) -> onnx.ModelProto:
    result = lower_opset(model(body), opset)
    onnx.checker.check_model(result, full_check=True)
    assert result.opset_import[0].version == opset
    return result


MEAN = """g (float[1, 4, 3, 3] x) => (float[1, 4, 1, 1] y) <int64[2] axes = {-1, -2}>
    { y = ReduceMean<keepdims = 1, noop_with_empty_axes = 0>(x, axes) }"""
SPLIT = """g (float[1, 6, 3] x) => (float[1, 3, 3] a, float[1, 3, 3] b) { a, b = Split<axis = 1, num_outputs = 2>(x) }"""
SWISH = "g (float[1, 4] x) => (float[1, 4] y) { y = HardSwish(x) }"


def test_mean_takes_its_axes_as_an_attribute() -> None:
    result = lowered(MEAN, 13)
    (node,) = result.graph.node
    assert list(node.input) == ["x"]
    assert {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} == {"keepdims": 1, "axes": [-1, -2]}
    assert not result.graph.initializer


def test_split_gets_its_sizes() -> None:
    result = lowered(SPLIT, 17)
    (node,) = result.graph.node
    assert [item.name for item in node.attribute] == ["axis"]
    assert onnx.numpy_helper.to_array(result.graph.initializer[0]).tolist() == [3, 3]


def test_hard_swish_is_spelled_out_before_14() -> None:
    assert [node.op_type for node in lowered(SWISH, 14).graph.node] == ["HardSwish"]
    gate, product = lowered(SWISH, 13).graph.node
    assert (gate.op_type, product.op_type) == ("HardSigmoid", "Mul")
    assert list(product.input) == ["x", gate.output[0]]


def test_training_mode_off_is_dropped_and_on_is_refused() -> None:
    body = """g (float[1, 2, 3] x) => (float[1, 2, 3] y)
        <float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}, float[2] m = {0.0, 1.0}, float[2] v = {1.0, 2.0}>
        { y = BatchNormalization<training_mode = %d>(x, s, b, m, v) }"""
    assert not lowered(body % 0, 13).graph.node[0].attribute
    assert lowered(body % 0, 15).graph.node[0].attribute
    with pytest.raises(InputError, match=r"BatchNormalization with training_mode set has no form in opset 13; ask for 14"):
        lower_opset(model(body % 1), 13)


def test_resize_that_is_younger_is_refused() -> None:
    body = """g (float[1, 1, 2, 2] x) => (float[1, 1, 1, 1] y) <float[4] s = {1.0, 1.0, 0.5, 0.5}>
        { y = Resize<mode = "linear", antialias = %d>(x, , s) }"""
    assert [item.name for item in lowered(body % 0, 13).graph.node[0].attribute] == ["mode"]
    with pytest.raises(InputError, match="Resize with antialias set has no form in opset 13"):
        lower_opset(model(body % 1), 13)


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(InputError, match="Mish is not written in opset 13; ask for 18 or newer"):
        lower_opset(model("g (float[1, 4] x) => (float[1, 4] y) { y = Mish(x) }"), 13)


def test_input_is_left_alone() -> None:
    before = model(MEAN)
    copy = before.SerializeToString()
    lower_opset(before, 13)
    assert before.SerializeToString() == copy
