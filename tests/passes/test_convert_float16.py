"""The conversion to float16: what computes in it, what stays in float32 and why, and that rounding constants is all it changes."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.passes import convert_float16, fuse, read_activation
from sepwise.passes.convert_float16 import ConvertFloat16Pass
from sepwise.passes.equivalence import GraphReference, compare_graph, sample_inputs
from sepwise.passes.recognise_activation import RecogniseActivationPass
from sepwise.passes.rewriting import value_names

Build = Callable[..., ir.Model]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,9,8] x) => (float y) '
CONV = "c = Conv <pads = [1,1,1,1], kernel_shape = [3,3]> (x, w, b)"
WEIGHTS = "<float[4,4,3,3] w, float[4] b{more}>"


def text(body: str, more: str = "") -> str:
    return f"{HEAD}{WEIGHTS.format(more=more)} {{ [conv] {CONV} {body} }}"


def convert(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    """Converts a copy; the model stays valid, and a second time nothing changes."""
    converted = model.clone()
    result = ConvertFloat16Pass()(converted)
    assert result.modified == (result.fired > 0)
    again = ConvertFloat16Pass()(converted)
    assert (again.modified, again.refused) == (False, result.refused)
    onnx.checker.check_model(ir.to_proto(converted), full_check=True)
    return converted, result.fired, tuple(refusal.reason for refusal in result.refused)


def computing(model: ir.Model, dtype: ir.DataType) -> list[str]:
    """Names the operators other than Casts whose result has a type."""
    return [node.op_type for node in model.graph if node.op_type != "Cast" and node.outputs[0].dtype == dtype]


def assert_rounded(original: ir.Model, converted: ir.Model) -> None:
    """What differs is explained by the rounding of float16 constants, and not by that of float32 ones."""
    feeds = [sample_inputs(original, seed, kind) for seed, kind in enumerate(("normal", "constant"))]
    assert all(check.passed for check in compare_graph(GraphReference(converted, feeds), original))
    assert not all(check.passed for check in compare_graph(original, converted, feeds))


def test_products_and_what_follows_them(build: Build) -> None:
    model = build(text("r = Relu (c) a = Add (r, c) p = MaxPool <kernel_shape = [2,2]> (a) y = Conv (p, v)", ", float[2,4,1,1] v"))
    converted, fired, refused = convert(model)
    assert (fired, refused) == (5, ())
    assert computing(converted, ir.DataType.FLOAT) == []
    assert [node.op_type for node in converted.graph if node.op_type == "Cast"] == ["Cast", "Cast"]
    assert [value.dtype for value in (*converted.graph.inputs, *converted.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert {value.dtype for value in converted.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert {"c", "r", "a", "p"} <= {value.name for node in converted.graph for value in node.outputs}
    assert_rounded(model, converted)


def test_constants_are_rounded_to_nearest(build: Build) -> None:
    model = build(text("y = Relu (c)"), b=np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 3 * 2.0**-26]))
    converted, _, _ = convert(model)
    bias = next(value for name, value in converted.graph.initializers.items() if name.startswith("b"))
    assert bias.const_value is not None
    assert bias.const_value.numpy().tolist() == [1.0, 1 + 2.0**-9, 0.0, 2.0**-24]


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("m = GlobalAveragePool (c) y = Mul (m, c)", ["GlobalAveragePool"]),
        ("s = Softmax <axis = 1> (c) y = Conv (s, w)", ["Softmax"]),
        ("e = Exp (c) l = Log (e) r = Relu (l) y = Conv (r, w)", ["Exp", "Log", "Relu"]),
        ("e = Elu (c) y = Conv (e, w)", ["Elu"]),
        ("m = ReduceMean <axes = [2,3]> (c) y = Flatten (m)", ["ReduceMean", "Flatten"]),
    ],
)
def test_what_stays_in_float32(build: Build, body: str, stays: list[str]) -> None:
    model = build(text(body))
    converted, _, refused = convert(model)
    assert refused == ()
    assert computing(converted, ir.DataType.FLOAT) == stays
    assert_rounded(model, converted)


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        ("y = Mul (c, h)", ", float h = {1e5}", "its constant 'h' holds 100000, and float16 ends at 65504"),
        ("y = Add (c, h)", ", float h = {1e-9}", "its constant 'h' holds 1e-09, which float16 rounds to 0"),
        ("a = Abs (c) y = Div (a, h)", ", float h = {1e-7}", "its constant 'h' holds 1e-07, which float16 rounds to 1.19209e-07"),
        ("y = LeakyRelu <alpha=1e-05> (c)", "", "its attribute 'alpha' holds 1e-05, which float16 rounds to 1.00136e-05"),
        ("y = Clip (c, h)", ", float h = {1e5}", "its constant 'h' holds 100000, and float16 ends at 65504"),
        ("y = Clip (c, , h)", ", float h = {-1e5}", "its constant 'h' holds -100000, and float16 ends at 65504"),
        (
            "f = Flatten (c) y = Gemm <alpha=100000.0> (f, g)",
            ", float[288,4] g",
            "its attribute 'alpha' holds 100000, and float16 ends at 65504",
        ),
        (
            "f = Flatten (c) y = Gemm <beta=100000.0> (f, g, a)",
            ", float[288,4] g, float[4] a",
            "its attribute 'beta' holds 100000, and float16 ends at 65504",
        ),
        ("y = Mul (c, c)", "", "a square may leave the range of float16"),
        ("r = Relu (c) y = Div (c, r)", "", "a quotient of two tensors may leave the range of float16"),
        ("y = Conv (c, v)", ", float[4,4,1,1] v", "its constant 'v' holds 70000, and float16 ends at 65504"),
    ],
)
def test_refuses(build: Build, body: str, more: str, reason: str) -> None:
    converted, fired, refused = convert(build(text(body, more), v=70000.0))
    assert refused == (reason,)
    assert fired == len(body.split(" = ")) - 1
    assert converted.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_refuses_the_value_of_a_pad(build: Build) -> None:
    body = 'y = Pad <mode = "constant", pads = [0,0,1,1,0,0,1,1], value = -340000.0> (c)'
    _, fired, refused = convert(build(text(body).replace('"" : 17', '"" : 10').replace("ir_version: 8", "ir_version: 4")))
    assert (fired, refused) == (1, ("its attribute 'value' holds -340000, and float16 ends at 65504",))


@pytest.mark.parametrize(
    ("body", "shape", "place"),
    [
        ("y = Conv (c, v)", (5, 4, 1, 1), (2,)),
        ("f = Flatten (c) y = MatMul (f, v)", (288, 5), (slice(None), 2)),
        ("f = Flatten (c) y = Gemm (f, v)", (288, 5), (slice(None), 2)),
        ("f = Flatten (c) y = Gemm <transB = 1> (f, v)", (5, 288), (2,)),
    ],
)
@pytest.mark.parametrize(("small", "kept"), [(1e-8, True), (0.0, False)])
def test_refuses_weights_of_which_a_filter_vanishes(
    build: Build, body: str, shape: tuple[int, ...], place: tuple[int | slice, ...], small: float, kept: bool
) -> None:
    weight = np.ones(shape)
    weight[place] = small
    _, _, refused = convert(build(text(body, f", float{list(shape)} v".replace(" ", "")), v=weight))
    assert refused == (("its constant 'v' has a filter of which float16 rounds all weights to 0",) if kept else ())


def test_a_limit_out_of_range_is_no_limit(build: Build) -> None:
    model = build(text("y = Clip (c, low, high)", ", float low = {0}, float high = {1e30}"))
    converted, fired, refused = convert(model)
    assert (fired, refused) == (2, ())
    (clip,) = (node for node in converted.graph if node.op_type == "Clip")
    assert clip.inputs[2] is not None
    assert clip.inputs[2].const_value is not None
    assert clip.inputs[2].const_value.numpy() == np.inf


@pytest.mark.parametrize(("third", "kept"), [("Div (m, six)", True), ("Mul (m, sixth)", False)])
def test_a_recognised_activation_stays_that_activation(build: Build, third: str, kept: bool) -> None:
    more = f", float zero = {{0}}, float three = {{3}}, float six = {{6}}, float sixth = {{{1 / 6}}}"
    model = build(text(f"a = Add (c, three) d = Clip (a, zero, six) m = Mul (c, d) y = {third}", more))
    RecogniseActivationPass()(model)
    converted, fired, refused = convert(model)
    call = next(node for node in converted.graph if node.domain == "sepwise")
    activation = read_activation(converted, call)
    assert activation is not None
    assert activation.kind == "hard_swish"
    assert (call.outputs[0].dtype == ir.DataType.FLOAT16) == kept
    assert (fired, refused) == ((2, ()) if kept else (1, ("float16 does not hold its constant 0.166667",)))


@pytest.mark.parametrize("body", ["y = MatMul (f, m)", "y = Gemm <transB = 1> (f, m)"])
def test_matrix_products(build: Build, body: str) -> None:
    model = build(text(f"f = Flatten (c) {body}", ", float[288,288] m"))
    converted, fired, refused = convert(model)
    assert (fired, refused) == (3, ())
    assert_rounded(model, converted)


def test_a_product_of_two_computed_tensors_stays_in_float32(build: Build) -> None:
    converted, fired, _ = convert(build(text("t = Transpose <perm = [0,1,3,2]> (c) y = MatMul (c, t)")))
    assert fired == 2
    assert computing(converted, ir.DataType.FLOAT) == ["MatMul"]


def test_a_value_that_is_an_output_too(build: Build) -> None:
    model = build(text("y = Relu (c)").replace("(float y)", "(float c, float y)"))
    converted, fired, _ = convert(model)
    assert fired == 2
    assert [(value.name, value.dtype) for value in converted.graph.outputs] == [("c", ir.DataType.FLOAT), ("y", ir.DataType.FLOAT)]
    assert_rounded(model, converted)


def test_one_cast_serves_all_that_read_an_input(build: Build) -> None:
    converted, _, _ = convert(build(text("d = Conv (x, v) y = Concat <axis = 1> (c, d)", ", float[4,4,1,1] v")))
    casts = [node for node in converted.graph if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT16]
    assert len(casts) == 1


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (a, w) s = Add (x, c) y = Relu (s) z = Conv (x, w)",
        "y = Conv (x, w) c = Cast <to = 10> (x) r = Relu (c) z = Cast <to = 1> (r)",
        "y = Conv (x, w) e = Exp (x) q = Relu (e) c = Cast <to = 10> (e) r = Relu (c) z = Conv (e, w)",
        "e = Exp (x) q = Relu (e) y = Conv (e, w) c = Cast <to = 10> (e) z = Relu (c)",
    ],
)
def test_a_cast_stands_before_all_that_read_it(build: Build, body: str) -> None:
    model = build(text("").replace(CONV, body).replace("x) => (float y)", "x, float[1,4,9,8] a) => (float y, float z)").replace("3,3]", "1,1]"))
    assert_rounded(model, convert(model)[0])


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("y = Cast <to = 10> (c)", "float", ("y",)),
        ("y = Cast <to = 10> (c)", "float", ("c", "y")),
        ("y = Cast <to = 10> (c) z = Cast <to = 10> (c)", "float", ("y", "z")),
        ("y = Cast <to = 10> (c)", "float16", ("y",)),
    ],
)
def test_outputs_that_are_casts_keep_names_and_types(build: Build, body: str, inputs: str, outputs: tuple[str, ...]) -> None:
    wanted = text(body).replace("float y", ", ".join(f"float {name}" for name in outputs))
    if inputs == "float16":
        wanted = wanted.replace("float[1,4,9,8] x", "float16[1,4,9,8] h").replace("[conv]", "x = Cast <to = 1> (h) [conv]")
    model = build(wanted)
    types = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    converted, fired, refused = convert(model)
    assert (fired, refused) == (1, ())
    assert [(value.name, value.dtype) for value in (*converted.graph.inputs, *converted.graph.outputs)] == types
    assert_rounded(model, converted)


def test_a_constant_of_the_network_may_have_the_name_of_a_rounded_one(build: Build) -> None:
    model = build(text("y = ConvTranspose (c, h)", ", float[4,4,3,3] h"), w=0.5, h=0.5)
    model.graph.initializers["h"].name = "w.float16"
    converted, fired, _ = convert(model)
    assert fired == 1
    assert converted.graph.initializers["w.float16"].dtype == ir.DataType.FLOAT


def test_names_are_gathered_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[ir.Model] = []
    monkeypatch.setattr(convert_float16, "value_names", lambda model: gathered.append(model) or value_names(model))
    converted = build(text("r = Relu (c) d = Conv (r, w) e = Exp (d) q = Conv (e, w) y = Exp (q)"))
    ConvertFloat16Pass()(converted)
    assert gathered == [converted]


def test_a_network_in_float16_is_left_alone(build: Build) -> None:
    model = build(text("y = Relu (c)").replace("float[", "float16["))
    _, fired, refused = convert(model)
    assert (fired, refused) == (0, ())


def test_it_is_off_by_default_and_fuses_like_float32(build: Build) -> None:
    body = "r = Relu (c) d = Conv <group = 4, pads = [1,1,1,1]> (r, u) q = Relu (d) y = Conv (q, v)"
    model = build(text(body, ", float[4,1,3,3] u, float[4,4,1,1] v"))
    plain, half = fuse(model), fuse(model, float16=True)
    assert "convert_float16" not in {each.name for each in plain.passes}
    assert half.operators == {**plain.operators, "Cast": 2}
    onnx.checker.check_model(ir.to_proto(half.model), full_check=True)
