"""Faults in small networks: the operator is named, and the files alone show the fault."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from sepwise.passes import canonicalize, fuse, load_model
from sepwise.passes.equivalence import Reproducer, bisect_graphs, compare_graph, reduce_inputs, sample_inputs

Mutant = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def network(zoo_file: Callable[..., Path]) -> onnx.ModelProto:
    """MobileNetV3: squeeze-and-excite, hard-swish, residuals; batch norms as own nodes."""
    return ir.to_proto(canonicalize(load_model(zoo_file("mobilenet_v3_small", shape=(1, 3, 32, 32), width=0.5))))


@pytest.fixture(scope="module")
def fused(zoo_file: Callable[..., Path]) -> onnx.ModelProto:
    return ir.to_proto(fuse(load_model(zoo_file("mobilenet_v3_small", shape=(1, 3, 32, 32), width=0.5))).model)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(each for each in node.attribute if each.name == name)


def change_weight(model: onnx.ModelProto, name: str, factor: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight.reshape(-1)[np.abs(weight).argmax()] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(weight, name))


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Numbers all nodes and intermediate values, as some exporters do."""
    kept = {value.name for value in model.graph.output}
    made = [output for node in model.graph.node for output in node.output if output and output not in kept]
    names = {name: f"t{number}" for number, name in enumerate(made)}
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    return model


def one_percent(model: onnx.ModelProto) -> None:
    change_weight(model, node_of(model, "blocks.2.expand.conv").input[1], 1.01)


def no_epsilon(model: onnx.ModelProto) -> None:
    attribute(node_of(model, "blocks.1.expand.norm"), "epsilon").f = 0.0


def other_stride(model: onnx.ModelProto) -> None:
    attribute(node_of(model, "blocks.1.depthwise.conv"), "strides").ints[:] = [1, 1]
    del model.graph.value_info[:]


def stride_where_shapes_then_clash(model: onnx.ModelProto) -> None:
    attribute(node_of(model, "blocks.2.depthwise.conv"), "strides").ints[:] = [2, 2]
    del model.graph.value_info[:]


def residual_dropped(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.op_type = "Identity"
    del node.input[1:]


def relu_as_identity(model: onnx.ModelProto) -> None:
    node_of(model, "blocks.1.depthwise.activation").op_type = "Identity"


FAULTS: dict[str, tuple[Mutant, str]] = {
    "weight": (one_percent, "blocks.2.expand.conv"),
    "epsilon": (no_epsilon, "blocks.1.expand.norm"),
    "stride": (other_stride, "blocks.1.depthwise.conv"),
    "clashing stride": (stride_where_shapes_then_clash, "blocks.2.depthwise.conv"),
    "residual": (residual_dropped, "blocks.2.Add"),
    "activation": (relu_as_identity, "blocks.1.depthwise.activation"),
}


def narrowed(original: onnx.ModelProto, rewritten: onnx.ModelProto) -> Reproducer:
    """Bisects, and sees that the files alone fail and are what they should be."""
    inputs = [sample_inputs(original, 0)]
    assert not all(check.passed for check in compare_graph(original, rewritten, inputs)), "the fault shows in the whole"
    found = bisect_graphs(original, rewritten, inputs)
    assert found.reproduces
    before, after = found.models["before.onnx"], found.models["after.onnx"]
    for part in (before, after):
        onnx.checker.check_model(part, full_check=True)
        assert len(part.graph.node) < 4
    (check,) = compare_graph(before, after, found.inputs)
    assert not check.passed
    assert [port.name for port in before.graph.input] == list(found.inputs) == [port.name for port in after.graph.input]
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_the_operator_is_named(fault: str, network: onnx.ModelProto) -> None:
    change, node = FAULTS[fault]
    rewritten = copy(network)
    change(rewritten)
    found = narrowed(network, rewritten)
    assert found.nodes == (node,)
    assert any(node in line for line in found.finding)


@pytest.mark.parametrize("fault", ["weight", "clashing stride"])
def test_the_operator_is_named_without_names(fault: str, network: onnx.ModelProto) -> None:
    change, node = FAULTS[fault]
    rewritten = copy(network)
    change(rewritten)
    found = narrowed(network, anonymous(rewritten))
    place = [each.name for each in network.graph.node].index(node)
    assert found.nodes == (node, f"n{place}")


def test_fused_operators_are_opened(network: onnx.ModelProto, fused: onnx.ModelProto) -> None:
    """The first stage of a grouped chain: its result has no name in the file any more."""
    rewritten = copy(fused)
    weight = "blocks.2.expand.conv.weight"
    call = next(node for node in rewritten.graph.node if weight in node.input)
    assert call.domain == "sepwise"
    change_weight(rewritten, weight, 1.01)
    found = narrowed(network, rewritten)
    assert set(found.nodes) == {"blocks.2.expand.conv", "blocks.2.expand.norm", call.name}
    assert [node.op_type for node in found.models["after.onnx"].graph.node] == ["Conv"]


def test_the_first_of_several_faults_does_not_hide_another(network: onnx.ModelProto) -> None:
    rewritten = copy(network)
    one_percent(rewritten)
    no_epsilon(rewritten)
    found = narrowed(network, rewritten)
    assert found.nodes in (("blocks.1.expand.norm",), ("blocks.2.expand.conv",))
    assert "Further parts that differ: 1." in found.finding


OPENED = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,8,8,8] x) => (float y)
    <float[8,8,1,1] w0, float[8,8,1,1] w1, float[8,8,1,1] w2> {{
        [first] a = Conv (x, w0) {activation} [second] c = Conv (b, w1) [relu] d = Relu (c) [third] y = Conv (d, w2) }}"""


@pytest.mark.parametrize("factor", [1.01, 1.0001])
def test_a_part_of_next_to_no_tolerance_is_not_named_for_another(factor: float, parse: Callable[..., onnx.ModelProto]) -> None:
    original = parse(OPENED.format(activation="[swish] b = HardSwish (a)"))
    rewritten = parse(OPENED.format(activation="s = HardSigmoid<alpha = 0.16666667> (a) b = Mul (a, s)"))
    assert all(check.passed for check in compare_graph(original, rewritten, sample_inputs(original, 0)))
    change_weight(rewritten, "w1", factor)
    found = narrowed(original, rewritten)
    assert found.nodes == ("second",)


def test_what_moves_the_outputs_most_comes_first(parse: Callable[..., onnx.ModelProto]) -> None:
    """A ReLU has no tolerance of its own, so that next to nothing is far beyond it."""
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,8,8] x) => (float y)
        <float[4,4,1,1] w0, float[4,4,1,1] w1, float[4,4,1,1] w2> {{
            [first] a = Conv (x, w0) [bend] b = {bend} (a) [right] c = Conv (b, w2) [second] d = Conv (c, w1) y = Relu (d) }}"""
    original, rewritten = (parse(text.format(bend=bend)) for bend in ("Relu", "Elu<alpha = 1.0e-6>"))
    change_weight(rewritten, "w1", 1.01)
    found = narrowed(original, rewritten)
    assert found.nodes == ("second",)
    assert "Further parts that differ: 1." in found.finding


@pytest.mark.parametrize("numbered", [False, True])
def test_which_of_two_residuals_is_missing(numbered: bool, parse: Callable[..., onnx.ModelProto]) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,8,8] x) => (float y) <float[4,4,1,1] w0, float[4,4,1,1] w1>
        { a = Conv (x, w0) [first] b = Add (a, x) c = Conv (a, w1) [second] d = Add (c, b) y = Relu (d) }"""
    original = parse(text)
    for dropped, kept in ((1, "a"), (3, "c")):
        rewritten = copy(original)
        output = rewritten.graph.node[dropped].output[0]
        del rewritten.graph.node[dropped]
        for node in rewritten.graph.node:
            node.input[:] = [kept if name == output else name for name in node.input]
        found = narrowed(original, anonymous(rewritten) if numbered else rewritten)
        assert found.nodes == (original.graph.node[dropped].name,)


def test_a_scale_that_is_undone_later_is_no_fault(parse: Callable[..., onnx.ModelProto]) -> None:
    """The names of scaled values survive, and what follows a replaced one is right; still the fault is elsewhere."""
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,8,8] x) => (float y)
        <float[4,4,1,1] w0, float[4,4,1,1] w1, float[4,4,1,1] w2>
        { a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c) [last] y = Conv (d, w2) }"""
    original = parse(text)
    rewritten = copy(original)
    for name, factor in (("w0", 2.0), ("w1", 0.5), ("w2", 1.25)):
        tensor = next(tensor for tensor in rewritten.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    found = narrowed(original, rewritten)
    assert found.nodes == ("last",)
    assert len(found.finding) == 3, "nothing else differs"


def test_a_name_that_survives_with_another_meaning_is_no_fault(parse: Callable[..., onnx.ModelProto]) -> None:
    """A fused convolution keeps the name of the convolution, though it has the batch norm in it."""
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,8,8] x) => (float y)'
    original = parse(
        f"""{head} <float[4,4,1,1] w, float[4] s, float[4] b, float[4] m, float[4] var, float[4,4,1,1] u>
        {{ c = Conv (x, w) n = BatchNormalization (c, s, b, m, var) r = Relu (n) [last] y = Conv (r, u) }}"""
    )
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in original.graph.initializer}
    factor = tensors["s"] / np.sqrt(tensors["var"] + np.float32(1e-5))
    constants = "float[4,4,1,1] v, float[4] d, float[4,4,1,1] u"
    rewritten = parse(f"{head} <{constants}> {{ c = Conv (x, v, d) r = Relu (c) y = Conv (r, u) }}")
    folded = {
        "v": tensors["w"] * factor.reshape(-1, 1, 1, 1),
        "d": tensors["b"] - tensors["m"] * factor,
        "u": tensors["u"] * 1.01,
    }
    del rewritten.graph.initializer[:]
    rewritten.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in folded.items())
    assert narrowed(original, rewritten).nodes == ("last", "y")


def test_right_parts_are_said_to_be_right(network: onnx.ModelProto) -> None:
    found = bisect_graphs(network, copy(network), [sample_inputs(network, 0)])
    assert not found.reproduces
    assert "No part of it differs" in found.finding[0]
    assert "do NOT show it" in found.text[-1]


def test_swapped_outputs_are_found(parse: Callable[..., onnx.ModelProto]) -> None:
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[1,9] x) => (float a, float b)'
    original = parse(f"{head} {{ [low] a = Relu (x) [high] b = Exp (x) }}")
    rewritten = parse(f"{head} {{ [low] b = Relu (x) [high] a = Exp (x) }}")
    found = bisect_graphs(original, rewritten, [sample_inputs(original, 0)])
    assert found.reproduces
    assert set(found.nodes) == {"low", "high"}


def test_inputs_become_zero_where_they_do_not_matter() -> None:
    array = np.arange(1.0, 61.0, dtype=np.float32).reshape(3, 4, 5)
    found = reduce_inputs({"x": array, "n": np.arange(3)}, lambda trial: trial["x"][1, 2, 3] != 0)
    assert np.flatnonzero(found["x"]).tolist() == [np.ravel_multi_index((1, 2, 3), array.shape)]
    assert found["n"].tolist() == [0, 1, 2]
    assert reduce_inputs({"x": array}, lambda trial: bool((trial["x"] == array).all()))["x"] is array


def test_several_inputs_of_a_part(parse: Callable[..., onnx.ModelProto]) -> None:
    """What the wrong part no longer reads stays an input of both files."""
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,6,6] x) => (float y) <float[4,4,1,1] w, float[4,4,1,1] u>'
    original = parse(f"{head} {{ a = Conv (x, w) r = Relu (x) [sum] s = Add (a, r) y = Conv (s, u) }}")
    rewritten = copy(original)
    (place,) = (i for i, node in enumerate(rewritten.graph.node) if node.op_type == "Add")
    rewritten.graph.node[place].CopyFrom(helper.make_node("Identity", ["a"], ["s"], "sum"))
    found = narrowed(original, rewritten)
    assert found.nodes == ("sum",)
    assert set(found.inputs) == {"a", "r"}
