from collections.abc import Callable

import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from sepwise.passes import fuse
from sepwise.passes.equivalence import compare_kernel, run_with_bounds, sample_inputs
from sepwise.passes.functions import DATA, Result, Step, spell, write_call

Build = Callable[..., ir.Model]

TEXT = """<ir_version: 6, opset_import: ["" : 13]>
g (float[1,4,9,8] x) => (float y)
<float[4,1,3,3] w, float[4,4,1,1] v, float[4] b, float zero = {0}, float three = {3}, float six = {6}>
{
  [dw] c = Conv <group = 4, pads = [1,1,1,1]> (x, w)
  [a1] a = Add (c, three) [a2] d = Clip (a, zero, six) [a3] m = Mul (c, d) [a4] e = Div (m, six)
  [pw] f = Conv (e, v, b)
  [act] y = Clip (f, zero, six)
}
"""


@pytest.fixture
def model(build: Build) -> ir.Model:
    return build(TEXT)


def test_signature_attributes_and_imports(model: ir.Model) -> None:
    fused = fuse(model).model
    (node,) = fused.graph
    assert node.op_type == "SeparableConv_dwHardSwishAddClipMulDiv_pwBiasClip"
    function = fused.functions[("sepwise", node.op_type, "")]
    assert [value.name for value in function.inputs] == ["x", "depthwise_weight", "pointwise_weight", "pointwise_bias"]
    assert set(node.attributes) == set(function.attributes)
    assert node.attributes["depthwise_group"].as_int() == 4
    assert float(node.attributes["pointwise_clip_max"].as_tensor().numpy()) == 6.0
    assert function.opset_imports == {"": 13, "sepwise": 1}
    assert fused.opset_imports == {"": 13, "sepwise": 1}
    assert fused.ir_version == 8
    assert set(fused.functions) == {("sepwise", node.op_type, ""), ("sepwise", "HardSwish_AddClipMulDiv", "")}


def test_no_attribute_is_frozen_in_a_body(model: ir.Model) -> None:
    for function in fuse(model).model.functions.values():
        assert all(attribute.is_ref() for node in function for attribute in node.attributes.values())


def test_onnx_reference_evaluator_reads_the_functions(model: ir.Model) -> None:
    """It wants a function defined before the one that calls it."""
    feeds = sample_inputs(model, 0)
    (found,) = onnx.reference.ReferenceEvaluator(ir.to_proto(fuse(model).model)).run(None, feeds)
    check = compare_kernel(found, *run_with_bounds(model, feeds)["y"])
    assert check.passed, check


def test_spelling_survives_the_file(model: ir.Model) -> None:
    fused = ir.from_proto(ir.to_proto(fuse(model).model))
    (node,) = fused.graph
    steps = spell(fused, node)
    assert [step.op_type for step in steps] == ["Conv", "HardSwish_AddClipMulDiv", "Conv", "Clip"]
    assert [step.nodes for step in steps] == [("dw",), ("a1", "a2", "a3", "a4"), ("pw",), ("act",)]
    assert [step.operands[0] for step in steps] == [DATA, Result(0), Result(1), Result(2)]


def test_spelling_a_plain_node(model: ir.Model) -> None:
    nodes = list(model.graph)
    (step,) = spell(model, nodes[-1])
    assert (step.op_type, step.operands[0], step.nodes) == ("Clip", DATA, ("act",))
    assert [float(operand.numpy()) for operand in step.operands[1:] if isinstance(operand, ir.Tensor | ir.TensorProtoTensor)] == [
        0,
        6,
    ]


def test_equal_words_for_unequal_wirings(model: ir.Model) -> None:
    source = model.graph.inputs[0]
    forward = [Step("Relu", "", (DATA,), {}, ("r",)), Step("Sub", "", (DATA, Result(0)), {}, ("s",))]
    backward = [Step("Relu", "", (DATA,), {}, ("r",)), Step("Sub", "", (Result(0), DATA), {}, ("s",))]
    names = [
        write_call(model, "Same", steps, ["", ""], source, node_name="n").op_type
        for steps in (forward, backward, forward, backward)
    ]
    assert names[0] == names[2] == "Same"
    assert names[1] == names[3]
    assert names[1].startswith("Same_")
    assert len(names[1]) == len("Same_") + 8


def test_commutative_operands_are_ordered(model: ir.Model) -> None:
    source = model.graph.inputs[0]
    left = [Step("Relu", "", (DATA,), {}, ("r",)), Step("Mul", "", (DATA, Result(0)), {}, ("s",))]
    right = [Step("Relu", "", (DATA,), {}, ("r",)), Step("Mul", "", (Result(0), DATA), {}, ("s",))]
    names = {write_call(model, "Same", steps, ["", ""], source, node_name="n").op_type for steps in (left, right)}
    assert names == {"Same"}


def test_a_default_of_the_function_holds_where_the_call_is_silent() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17, "sepwise" : 1]>
        g (float[1,1,4] x, float[1,1,2] w) => (float[1,1,3] y) { y = sepwise.FusedConv_conv (x, w) }
        <domain: "sepwise", opset_import: ["" : 17]>
        FusedConv_conv <strides: ints = [1]> (x, w) => (y) { y = Conv <strides: ints = @strides> (x, w) }"""
    )
    (step,) = spell(model, next(iter(model.graph)))
    assert list(step.attributes["strides"].as_ints()) == [1]
