"""Networks that take bytes and other orders of axes compute what they computed of the numbers that these stand for."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.passes import canonicalize, fuse
from sepwise.passes.convert_input import ConvertInputPass, ImageFormat, convert_input, name_images, own_layout
from sepwise.passes.equivalence import GraphReference, Oracle, compare_graph, sample_inputs
from sepwise.passes.errors import InputError

Build = Callable[..., ir.Model]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BYTES = ImageFormat(element_type="uint8", mean=MEAN, std=STD)
CAMERA = ImageFormat(layout="NHWC", element_type="uint8", mean=MEAN, std=STD)

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
PADDED = HEAD + """g (float[2,3,9,8] x) => (float y)
<float[8,3,3,3] w, float[8] b>
{ [conv] y = Conv <pads = [1,0,1,1]> (x, w, b) }
"""
UNPADDED = PADDED.replace("pads = [1,0,1,1]", "strides = [2,1]")
TRANSPOSED = PADDED.replace("Conv <pads = [1,0,1,1]>", "ConvTranspose").replace("[8,3,3,3]", "[3,8,3,3]")
GROUPED = PADDED.replace("[8,3,3,3]", "[6,1,3,3]").replace("[8] b", "[6] b").replace("<pads = [1,0,1,1]>", "<group = 3>")
PLAIN = HEAD + "g (float[2,3,9,8] x) => (float y) { [relu] y = Relu (x) }"
SEVERAL = HEAD + """g (float[2,3,9,8] x) => (float y, float z, float r)
<float[8,3,3,3] v, float[8,3,3,3] w, float[8] b>
{
  [unpadded] y = Conv (x, v)
  [padded] z = Conv <pads = [1,1,1,1]> (x, w, b)
  [relu] r = Relu (x)
}
"""
IN_NHWC = HEAD + """g (float[2,9,8,3] x) => (float y)
<float[8,3,3,3] w, float[8] b>
{
  [transpose] t = Transpose <perm = [0,3,1,2]> (x)
  [conv] y = Conv <pads = [1,0,1,1]> (t, w, b)
}
"""
BRANCH = HEAD + """g (float[2,3,9,8] x, bool c) => (float y)
<float[8,3,3,3] w, float[8,3,3,3] v>
{
  [choose] y = If (c) <
    then_branch = a () => (float[2,8,7,6] p) { [inner] p = Conv (x, w) },
    else_branch = b () => (float[2,8,7,6] q) { [other] q = Conv (x, v) }
  >
}
"""


def numbers(image: ImageFormat, given: np.ndarray, own: str) -> np.ndarray:
    """What bytes stand for, spelled out channel by channel."""
    layout = image.layout or own
    planes = given if layout == "NCHW" else given.transpose(0, 3, 1, 2)
    result = planes if image.element_type is None else planes.astype(np.float64)
    if image.element_type is not None:
        for channel in range(planes.shape[1]):
            mean, std = (values[channel % len(values)] for values in (image.mean, image.std))
            result[:, channel] = (result[:, channel] / 255 - mean) / std
    return result if own == "NCHW" else result.transpose(0, 2, 3, 1)


def assert_same(model: ir.Model, converted: ir.Model, image: ImageFormat, own: str = "NCHW") -> None:
    """Asserts that a model of another input is valid, and computes what rounding its constants explains."""
    onnx.checker.check_model(ir.to_proto(converted), full_check=True)
    names = name_images(canonicalize(model), image).inputs
    feeds = [sample_inputs(converted, seed) for seed in range(2)]
    given = [feed | {name: numbers(image, feed[name], own) for name in names} for feed in feeds]
    wanted = [Oracle(model).run(feed) for feed in given]
    for check in GraphReference(converted, feeds).judge(wanted, exact=image.element_type is None):
        assert check.passed, (check.name, check.reason)


def convert(model: ir.Model, image: ImageFormat, own: str = "NCHW") -> ir.Model:
    """Converts a model, which has to compute the same, and whose second conversion changes nothing."""
    before = ir.to_proto(model)
    converted = convert_input(model, image)
    assert ir.to_proto(model) == before
    again = converted.clone()
    second = ConvertInputPass(name_images(converted, image))(again)
    assert not second.modified
    assert ir.to_proto(again) == ir.to_proto(converted)
    assert_same(model, converted, image, own)
    return converted


def listed(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_what_a_padded_convolution_reads_keeps_the_shift_alone(build: Build) -> None:
    converted = convert(build(PADDED), CAMERA)
    assert listed(converted) == ["Transpose", "Cast", "Sub", "Conv"]
    (value,) = converted.graph.inputs
    assert (value.name, value.dtype, list(value.shape)) == ("x", ir.DataType.UINT8, [2, 9, 8, 3])
    transpose, cast, sub, conv = converted.graph
    assert (transpose.outputs[0].dtype, cast.outputs[0].dtype) == (ir.DataType.UINT8, ir.DataType.FLOAT)
    np.testing.assert_array_equal(sub.inputs[1].const_value.numpy().reshape(-1), (255 * np.array(MEAN)).astype(np.float32))
    assert {each.outputs[0].name for each in (transpose, cast, sub)} == {"x.transpose", "x.cast", "x.sub"}
    assert conv.outputs[0].name == "y"


@pytest.mark.parametrize("text", [UNPADDED, UNPADDED.replace("(x, w, b)", "(x, w)"), GROUPED])
def test_an_unpadded_convolution_takes_everything_in(build: Build, text: str) -> None:
    converted = convert(build(text), BYTES)
    assert listed(converted) == ["Cast", "Conv"]
    assert len(list(converted.graph)[-1].inputs) == 3


def test_without_a_mean_padding_reads_the_same_zeros(build: Build) -> None:
    image = ImageFormat(element_type="uint8", std=(0.5,))
    assert listed(convert(build(PADDED), image)) == ["Cast", "Conv"]
    assert listed(convert(build(TRANSPOSED), image)) == ["Cast", "ConvTranspose"]
    assert listed(convert(build(TRANSPOSED), BYTES)) == ["Cast", "Sub", "ConvTranspose"]


def test_a_network_of_0_to_255_is_widened_alone(build: Build) -> None:
    model, image = build(PADDED), ImageFormat(element_type="uint8", std=(1 / 255,))
    converted = convert(model, image)
    assert listed(converted) == ["Cast", "Conv"]
    weights = [np.array(each.graph.initializers["w"].const_value.numpy()) for each in (model, converted)]
    np.testing.assert_array_equal(*weights)
    assert listed(convert(build(PLAIN), image)) == ["Cast", "Relu"]


def test_what_is_no_convolution_gets_the_numbers_themselves(build: Build) -> None:
    assert listed(convert(build(PLAIN), CAMERA)) == ["Transpose", "Cast", "Sub", "Mul", "Relu"]


def test_several_readers_take_in_what_each_can(build: Build) -> None:
    converted = convert(build(SEVERAL), CAMERA)
    assert listed(converted) == ["Transpose", "Cast", "Sub", "Mul", "Conv", "Conv", "Relu"]
    unpadded, padded, relu = list(converted.graph)[-3:]
    assert [node.inputs[0].name for node in (unpadded, padded, relu)] == ["x.cast", "x.sub", "x.mul"]


def test_a_weight_that_two_convolutions_share_stays(build: Build) -> None:
    converted = convert(build(SEVERAL.replace("float[8,3,3,3] v, ", "").replace("(x, v)", "(x, w)")), BYTES)
    assert [node.inputs[0].name for node in list(converted.graph)[-3:]] == ["x.mul"] * 3


def test_a_weight_that_is_computed_stays(build: Build) -> None:
    text = PADDED.replace("x) =>", "x, float[8,3,3,3] w) =>").replace("float[8,3,3,3] w, float", "float")
    assert listed(convert(build(text), ImageFormat(**{**BYTES.to_json(), "inputs": ("x",)}))) == ["Cast", "Sub", "Mul", "Conv"]


def test_readers_in_branches_get_the_numbers_themselves(build: Build) -> None:
    assert listed(convert(build(BRANCH), BYTES)) == ["Cast", "Sub", "Mul", "If"]


def test_a_layout_alone_is_exact(build: Build) -> None:
    converted = convert(build(PADDED), ImageFormat(layout="NHWC"))
    assert listed(converted) == ["Transpose", "Conv"]
    assert converted.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert listed(convert(build(PADDED), ImageFormat(layout="NCHW"))) == ["Conv"]


def test_a_layout_is_of_any_type(build: Build) -> None:
    text = PLAIN.replace("float[2,3,9,8] x", "int8[2,3,9,8] x").replace("Relu", "Abs")
    assert listed(convert(build(text), ImageFormat(layout="NHWC"))) == ["Transpose", "Abs"]


@pytest.mark.parametrize(
    ("image", "operators"),
    [
        (ImageFormat(layout="NCHW"), ["Conv"]),
        (ImageFormat(layout="NHWC"), ["Transpose", "Conv"]),
        (BYTES, ["Transpose", "Cast", "Sub", "Conv"]),
        (CAMERA, ["Transpose", "Cast", "Sub", "Conv"]),
        (ImageFormat(layout="NCHW", element_type="uint8", mean=MEAN, std=STD), ["Cast", "Sub", "Conv"]),
    ],
)
def test_a_network_that_transposes_its_input_has_nhwc_already(build: Build, image: ImageFormat, operators: list[str]) -> None:
    model = build(IN_NHWC)
    assert own_layout(model.graph.inputs[0]) == "NHWC"
    converted = convert(model, image, own="NHWC")
    assert listed(converted) == operators
    assert list(converted.graph.inputs[0].shape) == ([2, 3, 9, 8] if image.layout == "NCHW" else [2, 9, 8, 3])


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_bytes_become_what_the_network_computes_in(build: Build, dtype: str) -> None:
    converted = convert(build(UNPADDED.replace("float", dtype)), BYTES)
    cast, conv = converted.graph
    assert cast.outputs[0].dtype == conv.inputs[1].dtype != ir.DataType.FLOAT


def test_several_inputs_are_named(build: Build) -> None:
    text = PADDED.replace("x) =>", "x, float[2,3,9,8] other) =>").replace("(x, w, b) }", "(s, w, b) [add] s = Add (x, other) }")
    text = text.replace("{ [conv] y = Conv <pads = [1,0,1,1]> (s, w, b) [add] s = Add (x, other) }",
                        "{ [add] s = Add (x, other) [conv] y = Conv <pads = [1,0,1,1]> (s, w, b) }")
    model = build(text)
    with pytest.raises(InputError, match=r"Model 'g': inputs x, other have 4 axes; needed is one\. Name the images with --image\."):
        convert_input(model, BYTES)
    one = convert(model, ImageFormat(element_type="uint8", mean=(0.5,), inputs=("other",)))
    assert [value.dtype for value in one.graph.inputs] == [ir.DataType.FLOAT, ir.DataType.UINT8]
    both = convert(model, ImageFormat(layout="NHWC", element_type="uint8", mean=MEAN, inputs=("other", "x", "other")))
    assert [value.dtype for value in both.graph.inputs] == [ir.DataType.UINT8] * 2


REFUSED = {
    "Model 'g': no input has 4 axes; needed is one.": (PLAIN.replace("2,3,9,8", "2,9,8"), BYTES),
    "Input 'z': there is no such input; the model has x": (PADDED, ImageFormat(layout="NHWC", inputs=("z",))),
    "Input 'x': its shape is [3,9,8]; an image has 4 axes of known extents": (
        PLAIN.replace("2,3,9,8", "3,9,8"),
        ImageFormat(layout="NHWC", inputs=("x",)),
    ),
    "Input 'x': its elements are INT32; bytes stand for floating-point numbers": (
        PLAIN.replace("float[2,3,9,8] x", "int32[2,3,9,8] x").replace("Relu", "Abs"),
        BYTES,
    ),
    "Input 'x': its elements are UINT8; bytes stand": (
        PLAIN.replace("float[2,3,9,8] x", "uint8[2,3,9,8] x").replace("Relu", "Abs"),
        BYTES,
    ),
    "Input 'x': the mean has 2 numbers, and it has 3 channels": (PADDED, ImageFormat(element_type="uint8", mean=(0.5, 0.5))),
    "Input 'x': the std has 4 numbers, and it has 3 channels": (PADDED, ImageFormat(element_type="uint8", std=(1.0,) * 4)),
    "Input 'x': 255 mean or 1 / (255 std) is beyond what FLOAT holds": (PADDED, ImageFormat(element_type="uint8", mean=(1e38,))),
    "Input 'x': 255 mean or 1 / (255 std) is beyond": (PADDED, ImageFormat(element_type="uint8", std=(1e-60,))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, reason: str) -> None:
    text, image = REFUSED[reason]
    model = build(text)
    before = ir.to_proto(model)
    with pytest.raises(InputError) as raised:
        convert_input(model, image)
    assert str(raised.value).startswith(reason)
    assert ir.to_proto(model) == before


def test_refuses_an_output(build: Build) -> None:
    model = build(PADDED)
    model.graph.outputs.append(model.graph.inputs[0])
    with pytest.raises(InputError, match="Input 'x': it is an output too"):
        convert_input(model, BYTES)


def test_refuses_a_default(build: Build) -> None:
    model = build(PADDED)
    model.graph.inputs[0].const_value = ir.tensor(np.zeros((2, 3, 9, 8), np.float32), name="x")
    model.graph.register_initializer(model.graph.inputs[0])
    with pytest.raises(InputError, match="Input 'x': it has a default, which is of the format that it has"):
        convert_input(model, BYTES)


def test_one_refusal_leaves_all_as_they_are(build: Build) -> None:
    model = canonicalize(build(PADDED))
    before = ir.to_proto(model)
    result = ConvertInputPass(ImageFormat(layout="NHWC", inputs=("x", "z")))(model)
    assert (result.modified, result.fired, len(result.refused)) == (False, 0, 1)
    assert ir.to_proto(model) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5,)}, "Mean and std: are what bytes are normalised with"),
        ({"element_type": "uint8", "std": (0.2, 0.0, 0.2)}, r"Std 0\.2,0,0\.2: it is divided by, so each has to be above 0"),
        ({"element_type": "uint8", "std": (-1.0,)}, "Std -1: it is divided by"),
        ({"element_type": "uint8", "mean": (float("nan"),)}, "Mean nan: needed is one finite number, or one for each channel"),
        ({"element_type": "uint8", "mean": ()}, "Mean : needed is one finite number"),
    ],
)
def test_numbers_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageFormat(**fields)


def test_a_format_is_read_back() -> None:
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in CAMERA.to_json().items()}
    assert ImageFormat.from_json(fields) == CAMERA


def test_zeros_in_front_of_a_convolution_are_its_padding(build: Build) -> None:
    text = PADDED.replace("{ [conv] y = Conv <pads = [1,0,1,1]> (x, w, b) }", """{
      [pad] p = Pad (x, pads)
      [conv] c = Conv (p, w, b)
      [relu] y = Relu (c)
    }""").replace("float[8] b>", "float[8] b, int64[8] pads = {0,0,1,0,0,0,2,1}>")
    model = build(text)
    converted = convert(model, CAMERA)
    fused = fuse(converted)
    assert_same(model, fused.model, CAMERA)
    assert dict(fused.operators) == {"Transpose": 1, "Cast": 1, "Sub": 1, "FusedConv": 1}


@pytest.mark.parametrize("wrong", ["offset", "scale", "weight"])
def test_a_wrong_constant_is_found(build: Build, wrong: str) -> None:
    model = build(SEVERAL)
    converted = convert_input(model, CAMERA)
    name = {"offset": "x.sub.constant", "scale": "x.mul.constant", "weight": "w"}[wrong]
    value = converted.graph.initializers[name]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1 + 1e-4), name=name)
    with pytest.raises(AssertionError, match="rounding the constants explains"):
        assert_same(model, converted, CAMERA)
    assert all(check.passed for check in compare_graph(converted, converted, sample_inputs(converted, 0)))
