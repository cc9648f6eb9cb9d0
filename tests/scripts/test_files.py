from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sepwise.files import new_file, read_arrays, require_empty, require_writable, resolve, save_reproducer, write_arrays
from sepwise.passes.equivalence import Reproducer, Verification
from sepwise.passes.errors import InputError

ONE_INPUT = '<ir_version: 10, opset_import: ["" : 18]> net (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
TWO_INPUTS = '<ir_version: 10, opset_import: ["" : 18]> net (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }'


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(ONE_INPUT), path)
    found = resolve(path)
    assert (found.name, found.path, found.shapes) == ("net", path, None)
    assert resolve(path, (2, 4)).shapes == {"x": (2, 4)}
    assert resolve(path, {"x": (2, 4)}).shapes == {"x": (2, 4)}


def test_one_shape_for_two_inputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(TWO_INPUTS), path)
    with pytest.raises(InputError, match=r"has the inputs a, b; give each shape with its input's name"):
        resolve(path, (2,))


def test_a_zoo_name_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = resolve("separable_block", (1, 4, 8, 8))
    written = first.path.stat().st_mtime_ns
    assert first.name == "separable_block"
    assert first.shapes is None
    assert onnx.load(first.path).graph.input[0].type.tensor_type.shape.dim[2].dim_value == 8
    again = resolve("separable_block", {"x": (1, 4, 8, 8)})
    assert again == first
    assert again.path.stat().st_mtime_ns == written
    assert resolve("separable_block", (1, 4, 16, 16)).path != first.path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-network", "neither a file nor a zoo network"),
        ("no/such.onnx", "no such file"),
        ("/", "is a folder"),
        ("/dev/null", "is a device or a pipe"),
    ],
)
def test_what_names_no_model(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(model)


def test_a_new_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(path: Path, *, fail: bool) -> None:
        with new_file(path) as temporary:
            temporary.write_text("half")
            if fail:
                raise ValueError("stop")

    write(tmp_path / "a", fail=False)
    with pytest.raises(ValueError, match="stop"):
        write(tmp_path / "b", fail=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="does not exist"):
        require_writable(tmp_path / "no" / "out")
    with pytest.raises(InputError, match="is not a folder"):
        require_writable(tmp_path / "file" / "out")


def test_arrays_survive(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1.5).reshape(()), "t": np.arange(6).reshape(2, 3).T}
    write_arrays(tmp_path / "y.npz", arrays)
    found = read_arrays(tmp_path / "y.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("content", [b"", b"junk" * 40, ONE_INPUT.encode()], ids=["empty", "junk", "text"])
def test_what_holds_no_arrays(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x.npz: is not an .npy or .npz file; save arrays with"):
        read_arrays(path)


def test_only_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    require_empty(tmp_path)
    require_empty(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            require_empty(taken)
    with pytest.raises(InputError, match="does not exist"):
        require_empty(tmp_path / "no" / "parent")


def test_a_reproducer_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    verdict = Verification("net", None, (), reproducer=Reproducer((), (), {}, {}, (), reproduces=True))
    with pytest.raises(InputError, match="cannot be written"):
        save_reproducer(verdict, tmp_path / "file")
    assert save_reproducer(verdict, tmp_path / "new").reproducer is not None
