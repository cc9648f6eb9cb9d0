"""Fused operators of ONNX Runtime mean what ONNX Runtime computes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from sepwise.passes import load_model
from sepwise.passes.contrib_operators import CONTRIB_DOMAIN, CONTRIB_OPERATORS, UNLISTED
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

GEOMETRY = "group = 2, pads = [1,0,1,2], strides = [2,2]"

BODIES = {
    "conv": f"y = com.microsoft.FusedConv <{GEOMETRY}> (x, w)",
    "conv_relu": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "Relu"> (x, w, b)',
    "conv_tanh": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "Tanh"> (x, w, b)',
    "conv_sigmoid": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "Sigmoid"> (x, w, b)',
    "conv_leaky": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "LeakyRelu", activation_params = [0.25]> (x, w, b)',
    "conv_clip": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "Clip", activation_params = [-0.5, 0.75]> (x, w, b)',
    "conv_hard": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "HardSigmoid", activation_params = [0.2, 0.5]> (x, w, b)',
    "conv_sum": f'y = com.microsoft.FusedConv <{GEOMETRY}, activation = "Relu"> (x, w, b, z)',
    "gemm_leaky": """f = Flatten (x)
      y = com.microsoft.FusedGemm <transB = 1, alpha = 0.5, beta = 2.0, activation = "LeakyRelu", activation_alpha = 0.125> (f, u, c)""",
    "matmul": "t = com.microsoft.FusedMatMul <alpha = 0.25, transA = 1, transB = 1> (x, x)\n y = Relu (t)",
    "matmul_plain": "y = com.microsoft.FusedMatMul <alpha = 1.0, transB = 1> (x, x)",
    "gelu": "y = com.microsoft.Gelu (x)",
    "bias_gelu": "y = com.microsoft.BiasGelu (x, a)",
    "fast_gelu": "y = com.microsoft.FastGelu (x)",
    "fast_gelu_biased": "y = com.microsoft.FastGelu (x, a)",
    "quick_gelu": "y = com.microsoft.QuickGelu (x)",
    "quick_gelu_sloped": "y = com.microsoft.QuickGelu <alpha = 1.0> (x)",
    "layer_norm": "y = LayerNormalization <epsilon = 0.001> (x, a, a)",
    "layer_norm_unshifted": "y = LayerNormalization <axis = -2> (x, v)",
    "layer_norm_axis": "y = LayerNormalization <axis = 2> (x, v)",
    "skip_norm": "f = Flatten <axis = 3> (x)\n s = Relu (f)\n y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (f, s, a, d)",
    "skip_norm_sum": """f = Flatten <axis = 3> (x)
      t, , , s = com.microsoft.SkipLayerNormalization (f, f, a, , d)
      y = Add (s, t)""",
    "skip_rms_norm": "f = Flatten <axis = 3> (x)\n s = Relu (f)\n y = com.microsoft.SkipSimplifiedLayerNormalization (f, s, a)",
    "skip_rms_norm_sum": """f = Flatten <axis = 3> (x)
      t, , , s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (f, f, a, d)
      y = Add (s, t)""",
    "rms_norm": "y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> (x, a)",
}


def parse(body: str, opset: int = 17) -> onnx.ModelProto:
    """A network around one operator, its constants drawn."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        g (float[1,4,7,7] x) => (float[{"p,q" if "Flatten" in body else "p,q,r,s"}] y)
        <float[6,2,3,3] w, float[6] b, float[1,6,4,4] z, float[5,196] u, float[5] c, float[7] a, float[7] d, float[7,7] v> {{ {body} }}"""
    )
    rng = np.random.default_rng(0)
    used = {name for node in model.graph.node for name in node.input}
    for value in list(model.graph.value_info):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.name in used:
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.value_info.remove(value)
    return model


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the operator itself, in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def refusal(folder: Path, body: str) -> str:
    with pytest.raises(SepwiseError) as caught:
        load_model(write(folder, parse(body)))
    return str(caught.value).removeprefix(f"{folder / 'model.onnx'}: ")


@pytest.mark.parametrize("opset", [9, 16, 18])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_operator_means_what_onnx_runtime_computes(tmp_path: Path, body: str, opset: int) -> None:
    proto = parse(body, opset)
    model = load_model(write(tmp_path, proto))
    assert not any(node.domain for node in model.graph)
    feeds = sample_inputs(model, 0)
    oracle = Oracle(model)
    check = compare_execution(run(proto, feeds), oracle.run(feeds), execution_sigma(oracle, feeds))
    assert check.passed, check


def test_every_operator_is_tried() -> None:
    assert set(CONTRIB_OPERATORS) == {
        node.op_type for body in BODIES.values() for node in parse(body).graph.node if node.domain == CONTRIB_DOMAIN or node.op_type in UNLISTED
    }


def test_later_operator_sets_have_a_layer_norm_of_their_own(tmp_path: Path) -> None:
    body = "[norm] y = LayerNormalization (x, a)"
    assert [node.op_type for node in load_model(write(tmp_path, parse(body, 17))).graph] == ["LayerNormalization"]
    assert load_model(write(tmp_path, parse(body, 16))).graph[-1].op_type == "Mul"


def test_names_survive(tmp_path: Path) -> None:
    body = f'[conv] t = com.microsoft.FusedConv <{GEOMETRY}, activation = "Relu"> (x, w, b)\n [again] y = Identity (t)'
    model = load_model(write(tmp_path, parse(body)))
    assert [(node.name, node.op_type, node.outputs[0].name) for node in model.graph] == [
        ("conv", "Conv", "conv/Conv_output"),
        ("conv/Relu", "Relu", "t"),
        ("again", "Identity", "y"),
    ]


def test_names_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    body = f'[conv] t = com.microsoft.FusedConv <{GEOMETRY}, activation = "Relu"> (x, w, b)\n ["conv/Relu"] y = Identity (t)'
    model = load_model(write(tmp_path, parse(body)))
    assert [node.name for node in model.graph] == ["conv", "conv/Relu_1", "conv/Relu"]


def test_inside_a_subgraph(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[4] x, bool p) => (float[4] y) {
      y = If (p) < then_branch = t () => (float[4] a) { a = com.microsoft.QuickGelu (x) }, else_branch = e () => (float[4] b) { b = Relu (x) } >
    }"""
    model = load_model(write(tmp_path, onnx.parser.parse_model(text)))
    assert [node.op_type for graph in model.graphs() for node in graph if node.domain] == []


def test_a_function_of_the_file_comes_first(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[4] x) => (float[4] y) { y = com.microsoft.Gelu (x) }
    <domain: "com.microsoft", opset_import: ["" : 17]> Gelu (v) => (r) { r = Neg (v) }"""
    model = load_model(write(tmp_path, onnx.parser.parse_model(text)))
    feeds = {"x": np.array([1.0, -2.0, 3.0, 0.5], np.float32)}
    np.testing.assert_array_equal(Oracle(model).run(feeds)["y"], -feeds["x"])


def test_a_file_that_onnx_runtime_saved(tmp_path: Path, build: Callable[..., ir.Model]) -> None:
    """Its own fusions are found in the file, and compute the same."""
    model = build("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4,9,9] x) => (float y) <float[8,4,1,1] w, float[8] b, float[8,1,3,3] v, float[8] c, float low = {0.0}, float high = {6.0}> {
      a = Conv (x, w, b) d = Relu (a) e = Conv <group = 8> (d, v, c) y = Clip (e, low, high)
    }""")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "saved.onnx").graph.node] == ["FusedConv", "FusedConv"]
    saved = load_model(tmp_path / "saved.onnx")
    feeds = sample_inputs(model, 0)
    np.testing.assert_array_equal(Oracle(saved).run(feeds)["y"], Oracle(model).run(feeds)["y"])


def test_unknown_activation(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[c] y = com.microsoft.FusedConv <activation = "Swish"> (x, w)')
    assert message.startswith("node 'c' (com.microsoft::FusedConv): its activation 'Swish' is not known; known are Relu,")


def test_wrong_number_of_parameters(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[c] y = com.microsoft.FusedConv <activation = "Clip", activation_params = [1.0]> (x, w)')
    assert message == "node 'c' (com.microsoft::FusedConv): its activation 'Clip' has 1 parameters; needed: min and max."
    with pytest.raises(InputError):
        load_model(tmp_path / "model.onnx")


def test_transposed_batches(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[m] y = com.microsoft.FusedMatMul <transBatchA = 1> (x, x)")
    assert message.startswith("node 'm' (com.microsoft::FusedMatMul): has transBatchA, which is not known here.")


def test_a_rank_is_inferred_through_what_is_expanded(tmp_path: Path) -> None:
    body = "f = Flatten (x)\n t = com.microsoft.QuickGelu (f)\n [m] y = com.microsoft.FusedMatMul <transA = 1> (t, f)"
    transposes = [node for node in load_model(write(tmp_path, parse(body))).graph if node.op_type == "Transpose"]
    assert [node.attributes["perm"].as_ints() for node in transposes] == [(1, 0)]


def test_unknown_rank(tmp_path: Path) -> None:
    message = refusal(tmp_path, "t = other.Relu (x)\n [m] y = com.microsoft.FusedMatMul <transA = 1> (t, x)")
    assert message.startswith("node 'm' (com.microsoft::FusedMatMul): needs the rank of 't', which the file does not state.")
    with pytest.raises(UnsupportedError):
        load_model(tmp_path / "model.onnx")


def test_layouts_of_one_machine(tmp_path: Path) -> None:
    proto = parse("y = com.microsoft.nchwc.ReorderInput (x)")
    proto.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(UnsupportedError, match="laid out for one machine: let ONNX Runtime save the model at ORT_ENABLE_EXTENDED"):
        load_model(write(tmp_path, proto))
