import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx


def test_export(command: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    words = ("export", "separable_block", "-o", path, "--shape", "1,8,6,5", "--width", "0.25", "--batch", "2", "--opset", "17")
    status, out, _ = command(*words, "--json")
    assert (status, json.loads(out)) == (0, {"model": "separable_block", "file": str(path), "bytes": path.stat().st_size})
    model = onnx.load(path)
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [2, 8, 6, 5]
    assert [axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim] == [2, 16, 8, 7]
    assert [entry.version for entry in model.opset_import if not entry.domain] == [17]


def test_what_is_written_is_said(command: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert command("export", "separable_block", "-o", path, "--shape", "1,4,4,4").out == f"separable_block -> {path}\n"


def test_a_shape_that_is_none(command: Callable[..., Any], tmp_path: Path) -> None:
    status, out, err = command("export", "separable_block", "-o", tmp_path / "m.onnx", "--shape", "1,4,x")
    assert (status, out) == (2, "")
    assert "--shape 1,4,x" in err
    assert not list(tmp_path.iterdir())
