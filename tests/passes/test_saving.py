from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from sepwise.passes import save_model, saving
from sepwise.passes.errors import InputError

TEXT = '<ir_version: 10, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { y = Add (x, w) }'


def test_saves(tmp_path: Path) -> None:
    save_model(ir.from_onnx_text(TEXT), tmp_path / "m.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node] == ["Add"]


def test_what_protobuf_cannot_hold_goes_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT_BYTES", 10)
    save_model(ir.from_onnx_text(TEXT), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    assert list(onnx.numpy_helper.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[0])) == [1, 2, 3, 4]


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m.onnx: cannot be written \(No such file or directory\)"):
        save_model(ir.from_onnx_text(TEXT), tmp_path / "absent" / "m.onnx")
