import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from sepwise.passes.equivalence import Oracle, compare_graph, compare_kernel, run_with_bounds
from sepwise.passes.equivalence.graph import read_graph
from sepwise.passes.errors import InputError, UnsupportedError

NESTED = """
<ir_version: 10, opset_import: ["" : 18, "sepwise" : 1]>
main (float[1,2,4,4] x, float[2,1,3,3] w) => (float[1,2,4,4] y, float[1,2,4,4] z) {
  [first] y = sepwise.Block <pads = [1,1,1,1], top = 0.5> (x, w)
  [second] z = sepwise.Block <pads = [1,1,1,1]> (x, w)
}
<opset_import: ["" : 18, "sepwise" : 1], domain: "sepwise">
Block <pads, top: float = 6.0> (a, w) => (c) {
  t = Conv <group = 2, pads: ints = @pads> (a, w)
  c = sepwise.Limit <top: float = @top> (t)
}
<opset_import: ["" : 13], domain: "sepwise">
Limit <top: float = 1.0> (t) => (c) {
  low = Constant <value_float = 0.0> ()
  high = Constant <value_float: float = @top> ()
  c = Clip (t, low, high)
}
"""


@pytest.fixture
def nested() -> onnx.ModelProto:
    return onnx.parser.parse_model(NESTED)


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((1, 2, 4, 4)).astype(np.float32),
        "w": rng.standard_normal((2, 1, 3, 3)).astype(np.float32),
    }


def test_nested_functions_with_attributes_of_the_call(nested: onnx.ModelProto) -> None:
    outputs = Oracle(nested).run(feeds())
    assert outputs["y"].max() == 0.5
    assert outputs["y"].min() == 0.0
    assert outputs["z"].max() > 0.5
    np.testing.assert_array_equal(outputs["y"], np.minimum(outputs["z"], 0.5))


def test_functions_agree_with_onnxruntime(nested: onnx.ModelProto, run_onnxruntime) -> None:
    inputs = feeds()
    bounded = run_with_bounds(nested, inputs)
    for name, actual in run_onnxruntime(nested, inputs).items():
        check = compare_kernel(actual, *bounded[name])
        assert check.passed, check


def test_values_inside_a_function_are_named_after_the_call(nested: onnx.ModelProto) -> None:
    graph = read_graph(nested)
    assert [op.outputs[0] for op in graph.operations] == ["first/t", "y", "second/t", "z"]
    assert [op.version for op in graph.operations] == [18, 13, 18, 13]
    kept = Oracle(nested).run(feeds(), keep=["first/t"])
    np.testing.assert_array_equal(np.clip(kept["first/t"], 0, 0.5), kept["y"])


def test_values_of_calls_in_calls_have_names_of_their_own() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[2] x) => (float[2] y) { [first] t = f.outer (x) [second] y = f.outer (t) }
        <opset_import: ["" : 18], domain: "f"> inner (a) => (b) { c = Neg (a) b = Abs (c) }
        <opset_import: ["" : 18, "f" : 1], domain: "f"> outer (a) => (b) { [call] c = f.inner (a) b = Neg (c) }
    """)
    made = [name for op in read_graph(model).operations for name in op.outputs]
    assert made == ["first/call/c", "first/c", "t", "second/call/c", "second/c", "y"]


def test_onnx_ir_models_are_taken_too(nested: onnx.ModelProto) -> None:
    from_ir = Oracle(ir.from_proto(nested)).run(feeds())
    for name, value in Oracle(nested).run(feeds()).items():
        np.testing.assert_array_equal(from_ir[name], value)


def test_constants_become_float64() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) <float16[2] h = {1, 2}> '
        "{ c = Cast<to=1>(h) y = Add(x, c) }"
    )
    assert read_graph(model).constants["h"].dtype == np.float64


def test_other_domains_are_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "com.shop" : 1]> g (float[2] x) => (float[2] y) { [n] y = com.shop.Magic(x) }'
    )
    with pytest.raises(UnsupportedError, match=r"'n' calls com.shop::Magic"):
        read_graph(model)


def test_future_opsets_are_refused() -> None:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 99]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    with pytest.raises(UnsupportedError, match="Opset 99 is not known"):
        read_graph(model)


def test_only_models_are_taken() -> None:
    with pytest.raises(InputError, match="found str"):
        Oracle("model.onnx")  # type: ignore[arg-type]


GROUPS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[2,6,5,5] x{0}) => (float[2,6,5,5] y) <float[6] scale = {{1, 2, 3, 4, 5, 6}}, float[6] bias = {{0.1, 0.2, 0.3, 0.4, 0.5, 0.6}}>
{{
  a = Abs (x)
  {1}
}}
"""
NORM = "y = GroupNormalization <num_groups = 2, epsilon = 0.25> (a, scale, bias)"
PLAIN = """
  two = Constant <value_ints: ints = [2, 2, -1]> () whole = Shape (a) each = Constant <value_ints: ints = [6, 1, 1]> ()
  one = Constant <value_floats: floats = [1.0, 1.0]> () zero = Constant <value_floats: floats = [0.0, 0.0]> ()
  r = Reshape (a, two) n = InstanceNormalization <epsilon = 0.25> (r, one, zero) m = Reshape (n, whole)
  u = Reshape (scale, each) v = Reshape (bias, each) w = Mul (m, u) y = Add (w, v)
"""
IN_BRANCH = """
  y = If (p) <
      then_branch = t () => (float[2,6,5,5] b) {{ {0} b = Identity (y) }},
      else_branch = e () => (float[2,6,5,5] c) {{ c = Neg (a) }}
  >
"""


@pytest.mark.parametrize("branch", [False, True])
def test_operators_that_are_functions_alone_are_spelled_out(*, branch: bool) -> None:
    """Constants that are no inputs have types too, which the definition asks for."""
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 5)).astype(np.float32)

    def build(body: str) -> onnx.ModelProto:
        if not branch:
            return onnx.parser.parse_model(GROUPS.format("", body))
        return onnx.parser.parse_model(GROUPS.format(", bool p", IN_BRANCH.format(body.replace("y =", "z =")).replace("(y)", "(z)")))

    feeds = {"x": x, "p": np.array(True)} if branch else {"x": x}
    (right,) = compare_graph(build(NORM), build(PLAIN), feeds)
    assert right.passed, right
    (wrong,) = compare_graph(build(NORM), build(PLAIN.replace("0.25", "0.125")), feeds)
    assert not wrong.passed


def test_what_is_computed_directly_is_not_spelled_out() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 22]> g (float[4] x) => (float[4] y) { a = Mish (x) b = Shrink (a) y = HardSwish (b) }'
    )
    assert [op.operator for op in read_graph(model).operations] == ["Mish", "Shrink", "HardSwish"]


def test_quantised_models_are_refused() -> None:
    text = "(float[3] x) => (float[3] y) <float s = {0.5}, uint8 z = {8}> { [q] t = QuantizeLinear (x, s, z) y = DequantizeLinear (t, s, z) }"
    with pytest.raises(UnsupportedError, match="QuantizeLinear 'q': quantised models are not supported"):
        read_graph(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g {text}'))
