from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.passes import canonicalize
from sepwise.passes.equivalence import compare_graph, sample_inputs
from sepwise.passes.errors import InputError

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check(model: ir.Model, equivalent: Equivalent, *expected: str) -> ir.Model:
    before = ir.to_proto(model)
    canonical = canonicalize(model)
    assert ir.to_proto(model) == before
    assert op_types(canonical) == list(expected)
    assert ir.to_proto(canonicalize(canonical)) == ir.to_proto(canonical)
    equivalent(model, canonical)
    return canonical


def test_nodes_get_names(build: Build) -> None:
    model = build(
        HEAD
        + "g (float[4] x) => (float y) { [Relu_2] a = Relu (x) b = Exp (a) c = Relu (b) [same] d = Exp (c) [same] y = Relu (d) }"
    )
    assert [node.name for node in canonicalize(model).graph] == ["Relu_2", "Exp_1", "Relu_2_1", "same", "same_1"]


def test_shape_arithmetic_becomes_constant(equivalent: Equivalent) -> None:
    """As exporters write it for dynamic sizes: Shape, Slice, Concat, Cast around Reshape and Resize."""
    proto = onnx.parser.parse_model(
        HEAD
        + """
        g (float[n,4,h,w] x) => (float[a,b,c,d] y) <int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] rest = {-1}, float none = {}>
        {
          s = Shape (x)
          front = Slice (s, zero, two)
          back = Slice (s, two, four)
          doubled = Mul (back, two)
          sizes = Concat <axis = 0> (front, doubled)
          r = Resize <mode = "nearest"> (x, , , sizes)
          first = Gather <axis = 0> (s, zero)
          flat = Concat <axis = 0> (first, rest)
          y = Reshape (r, flat)
        }""".replace(", float none = {}", "")
    )
    model = ir.from_proto(proto)
    model.graph.inputs[0].shape = ir.Shape([1, 4, 5, 6])
    canonical = check(model, equivalent, "Resize", "Reshape")
    assert list(canonical.graph.outputs[0].shape or ()) == [1, 480]


def test_constants_are_folded_and_become_initializers(build: Build, equivalent: Equivalent) -> None:
    model = build(
        HEAD
        + """g (float[1,2,3,4] x) => (float y) <float[4] w>
        { k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () s = Sqrt (k) m = Mul (s, w) y = Add (x, m) }"""
    )
    canonical = check(model, equivalent, "Add")
    assert len(canonical.graph.initializers) == 1


def test_weights_stored_in_half_are_folded(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + "g (float[1,2,9] x) => (float y) <float16[4,2,3] h> { w = Cast <to = 1> (h) y = Conv (x, w) }")
    check(model, equivalent, "Conv")


NO_OPS = {
    "identity": "t = Identity (a)",
    "dropout": "t = Dropout (a)",
    "dropout not in training": "t = Dropout (a, ratio, no)",
    "cast": "t = Cast <to = 1> (a)",
    "transpose": "t = Transpose <perm = [0,1,2]> (a)",
    "pad": "t = Pad (a, pads)",
    "slice": "t = Slice (a, zero, far, last)",
    "expand": "t = Expand (a, shape)",
    "reshape": "t = Reshape (a, shape)",
    "concat": "t = Concat <axis = 0> (a)",
    "tile": "t = Tile (a, ones)",
}


@pytest.mark.parametrize("what", NO_OPS)
def test_removes_what_changes_nothing(build: Build, equivalent: Equivalent, what: str) -> None:
    constants = """<float ratio = {0.5}, bool no = {0}, int64[6] pads = {0,0,0,0,0,0}, int64[1] zero = {0}, int64[1] far = {100},
    int64[1] last = {2}, int64[3] shape = {2,3,60}, int64[3] ones = {1,1,1}>"""
    model = build(HEAD + f"g (float[2,3,60] x) => (float y) {constants} {{ a = Exp (x) {NO_OPS[what]} y = Relu (t) }}")
    check(model, equivalent, "Exp", "Relu")
    model = build(HEAD + f"g (float[2,3,60] x) => (float y) {constants} {{ a = Exp (x) {NO_OPS[what].replace('t =', 'y =')} }}")
    assert [value.name for value in check(model, equivalent, "Exp").graph.outputs] == ["y"]


def resizing(opset: int, shape: str, by: str, given: Sequence[float], attributes: str) -> ir.Model:
    """A Resize by `scales` or `sizes` between two other operators; what is not given is an empty tensor before operator set 13."""
    names = ["scales"] if by == "scales" else ["empty" if opset < 13 else "", "sizes"]
    inputs = ", ".join(["a", "empty" if opset < 13 else "", *names])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{shape}] x) => (float y) {{ a = Exp (x) t = Resize <{attributes}> ({inputs}) y = Relu (t) }}"""
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    constants = {by: np.array(given, np.float32 if by == "scales" else np.int64), "empty": np.zeros(0, np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(constants[name], name) for name in constants if name in inputs)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("opset", "by", "given", "attributes", "kept"),
    [
        (13, "sizes", [2, 3, 4, 5], 'mode = "linear"', []),
        (11, "scales", [1, 1, 1, 1], 'mode = "cubic"', []),
        (18, "sizes", [5, 4], "axes = [3, 2]", []),
        (13, "scales", [1, 1, 1.2, 1], 'coordinate_transformation_mode = "align_corners"', []),
        (13, "scales", [1, 1, 1.2, 1], 'mode = "linear"', ["Resize"]),
        (13, "sizes", [2, 3, 4, 5], 'coordinate_transformation_mode = "tf_half_pixel_for_nn"', ["Resize"]),
    ],
)
def test_removes_a_resize_that_moves_nothing(
    equivalent: Equivalent, opset: int, by: str, given: list[float], attributes: str, kept: list[str]
) -> None:
    check(resizing(opset, "2,3,4,5", by, given, attributes), equivalent, "Exp", *kept, "Relu")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    ("opset", "shape", "by", "given", "attributes", "kept"),
    [
        (11, "2,3,4,1", "sizes", [2, 3, 7, 1], "", ["Resize", "Slice"]),
        (11, "2,3,1,5", "scales", [1, 1, 1, 1.6], "", ["Resize", "Slice"]),
        (13, "2,3,6,5", "scales", [1, 1, 0.25, 2], "", ["Resize", "Slice"]),
        (18, "2,3,6,5", "sizes", [9, 1], ", axes = [3, 2]", ["Resize", "Slice"]),
        (18, "2,3,1,5", "scales", [1.6], ", axes = [3]", ["Resize", "Slice"]),
        (22, "2,3,6,5", "sizes", [2, 3, 1, 5], "", ["Slice"]),
        (22, "1,1,1,5", "sizes", [1, 1, 1, 9], "", ["Resize", "Slice"]),
    ],
)
def test_a_resize_between_corners_has_no_single_element_on_an_axis(
    equivalent: Equivalent, mode: str, opset: int, shape: str, by: str, given: list[float], attributes: str, kept: list[str]
) -> None:
    """The step between corners would be `(before - 1) / 0`."""
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "align_corners"{attributes}'
    check(resizing(opset, shape, by, given, attributes), equivalent, "Exp", *kept, "Relu")


def test_keeps_a_slice_that_reverses(build: Build, equivalent: Equivalent) -> None:
    constants = "<int64[1] start = {-1}, int64[1] end = {-100}, int64[1] axis = {0}, int64[1] step = {-1}>"
    model = build(HEAD + f"g (float[120] x) => (float y) {constants} {{ t = Slice (x, start, end, axis, step) y = Relu (t) }}")
    check(model, equivalent, "Slice", "Relu")


def test_keeps_an_identity_from_input_to_output(build: Build, equivalent: Equivalent) -> None:
    check(build(HEAD + "g (float[120] x) => (float y) { y = Identity (x) }"), equivalent, "Identity")


def test_functions_are_inlined(equivalent: Equivalent) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[120] x) => (float[120] y) { [call] t = local.Half (x) y = local.Half (t) }
        <domain: "local", opset_import: ["" : 17]>
        Half (x) => (y) { h = Constant <value_float = 0.5> () y = Mul (x, h) }"""
    )
    canonical = check(model, equivalent, "Mul", "Mul")
    assert not canonical.functions
    assert len({node.name for node in canonical.graph}) == 2


def test_geometry_is_spelled_out(build: Build, equivalent: Equivalent) -> None:
    text = 'g (float[1,2,9,9] x) => (float y) <float[4,2,3,3] w> { y = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w) }'
    canonical = check(build(HEAD + text), equivalent, "Conv")
    (node,) = canonical.graph
    assert sorted(node.attributes) == ["dilations", "group", "kernel_shape", "pads", "strides"]
    assert list(node.attributes["pads"].as_ints()) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("attributes", "fits"), [("strides = [2]", False), ("strides = [2], pads = [1,1]", True), ("strides = [3], dilations = [2], pads = [2,3]", False)]
)
def test_a_window_fits_into_its_input(build: Build, attributes: str, fits: bool) -> None:
    """Shape inference gives one output where the window is larger by less than its stride."""
    model = build(f"{HEAD}g (float[1,2,3] x) => (float y) <float[4,2,5] w> {{ [c] y = Conv <{attributes}> (x, w) }}")
    if fits:
        assert op_types(canonicalize(model)) == ["Conv"]
    else:
        with pytest.raises(InputError, match=r"Conv 'c': its input of shape \(1, 2, 3\) is smaller than its window, kernel \(5,\)"):
            canonicalize(model)


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(
    ("attributes", "pads"),
    [
        ('auto_pad = "SAME_UPPER", kernel_shape = [3,2], strides = [2,2]', (1, 0, 1, 0)),
        ('auto_pad = "SAME_UPPER", kernel_shape = [2,3], strides = [1,2]', (0, 0, 1, 1)),
        ('auto_pad = "SAME_LOWER", kernel_shape = [2,3], strides = [1,2]', (1, 1, 0, 0)),
        ('auto_pad = "SAME_LOWER", kernel_shape = [1,1], strides = [2,3]', (0, 0, 0, 0)),
        ('auto_pad = "VALID", kernel_shape = [3,2]', (0, 0, 0, 0)),
    ],
)
def test_pads_of_poolings_are_spelled_out(build: Build, equivalent: Equivalent, operator: str, attributes: str, pads: tuple[int, ...]) -> None:
    model = build(f"{HEAD}g (float[1,2,9,8] x) => (float y) {{ y = {operator} <{attributes}> (x) }}")
    if "[1,1]" in attributes:  # ONNX Runtime takes no window smaller than its stride here
        canonical = canonicalize(model)
        assert all(check.passed for check in compare_graph(model, canonical, sample_inputs(model, 0), exact=True))
    else:
        canonical = check(model, equivalent, operator)
    node = next(iter(canonical.graph))
    assert "auto_pad" not in node.attributes
    assert node.attributes.get_ints("pads") == pads



def test_unused_nodes_and_initializers_go(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + "g (float[120] x) => (float y) <float[120] w, float[2] u> { z = Mul (x, w) y = Relu (x) }")
    assert not check(model, equivalent, "Relu").graph.initializers


def test_initializers_among_the_inputs(build: Build) -> None:
    """Before IR version 4 the format demanded them there; since then they are defaults that a caller may override."""
    model = build(HEAD + "g (float[1,2,9] x) => (float y) <float[4,2,3] w> { y = Conv (x, w) }")
    model.graph.inputs.append(model.graph.initializers["w"])
    assert [value.name for value in canonicalize(model).graph.inputs] == ["x", "w"]
    model.ir_version = 3
    assert [value.name for value in canonicalize(model).graph.inputs] == ["x"]


def test_stale_symbolic_shapes_are_inferred_anew(build: Build) -> None:
    model = build(HEAD + "g (float[1,2,9] x) => (float y) { a = Relu (x) y = Exp (a) }")
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(["n", 2, "w"])
    assert all(list(node.outputs[0].shape or ()) == [1, 2, 9] for node in canonicalize(model).graph)


def test_shapes_that_clash(build: Build) -> None:
    model = build(HEAD + "g (float[3,4] x) => (float y) <float[4,2] w> { [product] y = MatMul (x, w) }")
    model.graph.inputs[0].shape = ir.Shape([3, 5])
    with pytest.raises(InputError, match=r"its shapes do not fit each other with the inputs x=3,5: .*product.*Give input shapes"):
        canonicalize(model)


@pytest.mark.parametrize("shape", [(1, 3, 9), (1, 4, 9, 9)])
def test_channels_that_clash(build: Build, shape: tuple[int, ...]) -> None:
    model = build(HEAD + "g (float[1,4,9] x) => (float y) <float[4,2,3] w> { [conv] y = Conv <group = 2> (x, w) }")
    model.graph.inputs[0].shape = ir.Shape(shape)
    model.graph.outputs[0].shape = None
    with pytest.raises(InputError, match="conv"):
        canonicalize(model)


def test_a_bias_of_zeros_that_is_no_vector(build: Build) -> None:
    """As torch exports a Conv3d without bias, which ONNX Runtime takes."""
    model = build(
        HEAD + "g (float[1,4,9] x) => (float y) <float[6,4,3] w> { s = Constant <value = int64[2] {6, 2}> () "
        "b = ConstantOfShape (s) [conv] y = Conv (x, w, b) }"
    )
    (conv,) = canonicalize(model).graph
    assert len(conv.inputs) == 2


def test_a_bias_that_is_no_vector(build: Build) -> None:
    model = build(HEAD + "g (float[1,4,9] x) => (float y) <float[6,4,3] w, float[6,2] b> { [conv] y = Conv (x, w, b) }")
    with pytest.raises(InputError, match=r"Conv 'conv': its bias has shape \(6, 2\), .* must have shape \(6,\)\. Check"):
        canonicalize(model)


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_batch_norm_of_other_channels(build: Build, opset: int) -> None:
    """Operator sets before 14 infer shapes without a look at the constants."""
    model = build(
        f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[1,4,9] x) => (float y) <float[4] gamma, float[4] beta, float[3] mean, float[4] var>
        {{ [norm] y = BatchNormalization (x, gamma, beta, mean, var) }}"""
    )
    with pytest.raises(InputError, match=r"'norm': its input has shape \(1, 4, 9\), 'mean' \(3,\); it must be \(4,\), one"):
        canonicalize(model)


def test_a_group_that_does_not_divide_the_outputs(build: Build) -> None:
    model = build(HEAD + "g (float[1,4,9] x) => (float y) <float[3,2,3] w> { [conv] y = Conv <group = 2> (x, w) }")
    with pytest.raises(InputError, match=r"Conv 'conv': .* its weight \(3, 2, 3\) and group=2; the weight must be"):
        canonicalize(model)


def test_what_depends_on_data_keeps_its_declared_shape(caplog: pytest.LogCaptureFixture) -> None:
    model = ir.from_onnx_text(
        HEAD
        + """g (float[4] x, bool p) => (float[n] y) <float[4] w = {1,2,3,4}, int64[1] k = {2}> {
          v, i = TopK (w, k)
          t = Tile (x, i)
          y = If (p) < then_branch = a () => (float[m] c) { c = Relu (t) }, else_branch = b () => (float[o] d) { d = Exp (x) } >
        }"""
    )
    canonical = canonicalize(model)
    assert op_types(canonical) == ["TopK", "Tile", "If"]
    onnx.checker.check_model(ir.to_proto(canonical), full_check=True)
    assert not caplog.records


def test_fused_operators_are_kept(build: Build, equivalent: Equivalent) -> None:
    from sepwise.passes import fuse

    model = build(HEAD + "g (float[1,2,9] x) => (float y) <float[4,2,3] w> { c = Conv (x, w) y = Relu (c) }")
    fused = fuse(model).model
    again = canonicalize(fused)
    assert op_types(again) == ["FusedConv_convRelu"]
    assert np.array_equal(ir.to_proto(again).SerializeToString(), ir.to_proto(fused).SerializeToString())
    equivalent(model, again, exact=True)
