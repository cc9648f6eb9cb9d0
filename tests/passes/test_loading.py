from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sepwise.passes import canonicalize, fuse, load_model, save_model
from sepwise.passes.errors import InputError, UnsupportedError

FIXED = """<ir_version: 10, opset_import: ["" : 17]>
g (float[1,3,8,8] x) => (float[1,3,8,8] y) <float[4] unused = {1,2,3,4}> { [act] y = Relu (x) }
"""

DYNAMIC = """<ir_version: 10, opset_import: ["" : 17]>
g (float[n,3,h,w] x, float[n,7] z) => (float[n,3,h,w] y, float[n,7] q) { y = Relu (x) q = Relu (z) }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def refusal(path: Path, kind: type[InputError] = InputError, **shapes: Sequence[int]) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path, shapes=shapes)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def test_loads(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, FIXED))
    assert [node.name for node in model.graph] == ["act"]


def test_fixes_shapes(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, DYNAMIC), shapes={"x": (2, 3, 5, 6)})
    assert [list(value.shape or ()) for value in model.graph.inputs] == [[2, 3, 5, 6], [2, 7]]
    assert [list(value.shape or ()) for value in canonicalize(model).graph.outputs] == [[2, 3, 5, 6], [2, 7]]


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "m.onnx") == "no such file. Check the path."


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is not a file but a folder. Name the .onnx file in it."


def test_a_device() -> None:
    assert refusal(Path("/dev/null")) == "is not a file but a device or a pipe. Name an .onnx file."


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert refusal(path) == "is empty. Copy or export it again."


@pytest.mark.parametrize(
    "content", [b"hello world\n" * 50, b'{"a": 1}', b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(90)]
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file" in refusal(path)


def test_random_bytes_are_always_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    for length in range(1, 120):
        path.write_bytes(rng.bytes(length))
        refusal(path)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    data = write(tmp_path, FIXED).read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        message = refusal(path)
        assert any(word in message for word in ("truncated", "not an ONNX file")), message
    path.write_bytes(data[: len(data) // 2])
    assert "is truncated: it has" in refusal(path)


def test_every_flipped_byte_is_an_input_error_or_loads(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path, FIXED).read_bytes())
    path = tmp_path / "flipped.onnx"
    for index in range(len(data)):
        flipped = bytearray(data)
        flipped[index] ^= 0x24
        path.write_bytes(bytes(flipped))
        try:
            canonicalize(load_model(path))
        except InputError as error:
            assert str(error)  # noqa: PT017 - loading may also succeed


def external(folder: Path) -> Path:
    model = onnx.parser.parse_model(FIXED)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "unused"))
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    tensor = model.graph.initializers["unused"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), 1.0)


def test_external_data_is_in_memory(tmp_path: Path) -> None:
    """Parts that are cut out of the model are whole without its files."""
    path = external(tmp_path)
    model = ir.to_proto(load_model(path))
    (tmp_path / "weights.bin").unlink()
    (tensor,) = (each for each in model.graph.initializer if each.name == "unused")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), 1.0)


def test_missing_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    expected = f"the external data of tensor 'unused' is missing: no file {tmp_path / 'weights.bin'}. Put it beside the model."
    assert refusal(path) == expected


def test_truncated_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    assert "weights.bin is truncated: it has 100 bytes, tensor 'unused' needs 4000. Copy it again." in refusal(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", ""])
def test_external_data_elsewhere(tmp_path: Path, location: str) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    assert "which is not beside the file" in refusal(path)


def test_unknown_opset(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    message = refusal(write(tmp_path, FIXED.replace("17", str(newest + 1))), UnsupportedError)
    assert message.startswith(f"uses operator set {newest + 1}; the newest known here is {newest}.")


def test_ancient_opset(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, FIXED.replace("17", "6")), UnsupportedError)
    assert message.startswith("uses operator set 6; the oldest taken is 7.")


OPERATORS = {
    "Relux": "node 'act' uses the operator Relux, which is unknown in version 17 of its domain.",
    "Gelu": "node 'act' uses the operator Gelu, which is unknown in version 17 of its domain.",
    "Upsample": "node 'act' uses the operator Upsample, which version 17 of its domain no longer has.",
    "com.microsoft.Gelu": "node 'act' uses the operator com.microsoft::Gelu, and the file imports no operator set of the domain 'com.microsoft'.",
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_unknown_operator(tmp_path: Path, operator: str) -> None:
    assert refusal(write(tmp_path, FIXED.replace("Relu", operator)), UnsupportedError).startswith(OPERATORS[operator])


def test_unknown_operator_of_another_domain(tmp_path: Path) -> None:
    text = FIXED.replace("Relu", "com.microsoft.Inverse").replace('"" : 17', '"" : 17, "com.microsoft" : 1')
    message = refusal(write(tmp_path, text), UnsupportedError)
    assert message.startswith(
        "node 'act' uses the operator com.microsoft::Inverse, which is unknown in version 1 of its domain."
    )
    assert "standard operators only" in message


def test_unknown_operator_in_a_subgraph(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[4] x, bool p) => (float[4] y) {
      y = If (p) < then_branch = t () => (float[4] a) { [inner] a = Relux (x) }, else_branch = e () => (float[4] b) { b = Relu (x) } >
    }"""
    assert refusal(write(tmp_path, text), UnsupportedError).startswith("node 'inner' uses the operator Relux")


def test_invalid(tmp_path: Path) -> None:
    assert "is not a valid model" in refusal(write(tmp_path, FIXED.replace("Relu (x)", "Relu (missing)")))


def test_no_outputs(tmp_path: Path) -> None:
    """What passes its inputs on is a model; what gives nothing is none."""
    model = onnx.parser.parse_model(FIXED)
    del model.graph.node[:], model.graph.output[:]
    onnx.save(model, tmp_path / "m.onnx")
    assert refusal(tmp_path / "m.onnx").startswith("has no outputs")
    model.graph.output.append(model.graph.input[0])
    onnx.save(model, tmp_path / "m.onnx")
    assert [value.name for value in load_model(tmp_path / "m.onnx").graph.outputs] == ["x"]


def test_symbolic_shapes(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, DYNAMIC)) == (
        "the shapes of its inputs are not fixed: x (n, 3, h, w); z (n, 7). "
        "Fix them, for example with --shape x=1,3,224,224 --shape z=1,7."
    )


def test_one_shape_missing(tmp_path: Path) -> None:
    text = DYNAMIC.replace("float[n,7]", "float[m,7]")
    assert refusal(write(tmp_path, text), x=(1, 3, 8, 8)).startswith("the shapes of its inputs are not fixed: z (m, 7).")


def test_anonymous_dimensions_are_unequal(tmp_path: Path) -> None:
    path = write(tmp_path, FIXED)
    model = onnx.load(path)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "?"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    path.write_bytes(model.SerializeToString())
    assert "x (?, 3, ?, ?)" in refusal(path)
    assert list(load_model(path, shapes={"x": (1, 3, 5, 6)}).graph.inputs[0].shape or ()) == [1, 3, 5, 6]


def test_dimensions_of_no_extent(tmp_path: Path) -> None:
    """Fixed, and so no case of a missing shape; a shape that is given does not help either."""
    for axis, shape in ((0, "0,3,8,8"), (2, "n,3,0,8")):
        path = write(tmp_path, FIXED.replace("float[1,3,8,8] x", f"float[{shape}] x"))
        message = f"dimension {axis} of 'x' is 0; tensors without elements are not supported."
        assert refusal(path) == refusal(path, x=(1, 3, 8, 8)) == message


def test_unknown_rank(tmp_path: Path) -> None:
    path = write(tmp_path, FIXED)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    assert refusal(path).startswith("the shapes of its inputs are not fixed: x (unknown rank).")
    assert list(load_model(path, shapes={"x": (1, 3, 5, 6)}).graph.inputs[0].shape or ()) == [1, 3, 5, 6]


SHAPES = {
    "has no input 'y'; its inputs are x, z. Check --shape.": {"y": (1, 3, 8, 8)},
    "shape 1,3,8 for input 'x' has 3 dimensions; the model has 4: x (n, 3, h, w). Check --shape.": {"x": (1, 3, 8)},
    "shape 1,4,8,8 for input 'x': dimension 1 is fixed to 3 in the model, not 4.": {"x": (1, 4, 8, 8)},
    "shape 1,3,0,8 for input 'x': every extent must be positive. Check --shape.": {"x": (1, 3, 0, 8)},
    "shape 2,7 for input 'z': dimension 'n' is 1 elsewhere, not 2. Check --shape.": {"x": (1, 3, 8, 8), "z": (2, 7)},
}


@pytest.mark.parametrize("message", SHAPES)
def test_wrong_shapes(tmp_path: Path, message: str) -> None:
    assert refusal(write(tmp_path, DYNAMIC), **SHAPES[message]).startswith(message)


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 17]> g (seq(float[4]) x, int64 i) => (float[4] y) { y = SequenceAt (x, i) }'
    assert refusal(write(tmp_path, text), UnsupportedError).startswith("input 'x' is not a tensor but sequence_type.")


def test_saved_models_load_again(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[1,2,9] x) => (float[1,2,9] y) <float[2,1,1] w = {1, 2}> { c = Conv <group = 2> (x, w) y = Relu (c) }"""
    fused = fuse(load_model(write(tmp_path, text))).model
    save_model(fused, tmp_path / "fused.onnx")
    assert [node.op_type for node in load_model(tmp_path / "fused.onnx").graph] == ["FusedConv_convRelu"]
    ort.InferenceSession(tmp_path / "fused.onnx", providers=["CPUExecutionProvider"])


def test_nodes_are_sorted(tmp_path: Path) -> None:
    """Also where only a branch reads what comes later, and there in the branch; what is in order stays in its order."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[3] x, bool p) => (float[3] y, float[3] z) {
        [choose] y = If (p) <
            then_branch = t () => (float[3] a) { [second] a = Exp (b) [first] b = Abs (late) },
            else_branch = e () => (float[3] c) { c = Neg (x) }
        >
        [after] z = Sub (late, x)
        [late] late = Relu (x)
    }"""
    model = load_model(write(tmp_path, text))
    assert [node.name for node in model.graph] == ["late", "choose", "after"]
    branch = next(node for node in model.graph if node.name == "choose").attributes["then_branch"].as_graph()
    assert [node.name for node in branch] == ["first", "second"]


def test_nodes_in_a_circle(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[3] x) => (float[3] y) { [one] a = Add (x, b) [two] b = Relu (a) y = Neg (b) }"""
    assert "is not a valid model: Nodes in a graph must be topologically sorted" in refusal(write(tmp_path, text))


def test_complex_inputs(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 17]> g (complex64[3] x) => (complex64[3] y) { y = Identity (x) }'
    found = refusal(write(tmp_path, text), UnsupportedError)
    assert found == "input 'x' holds complex numbers, which are not supported. Give their parts."
