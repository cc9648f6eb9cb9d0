import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from sepwise.passes import load_model, saving
from sepwise.passes.equivalence import Check, Reproducer, Verification

FAILED = Check("graph", "fold: y", (), "failed", 1.0, 0.1, 10.0, (0,), reason="off")


@pytest.fixture
def reproducer(parse: Callable[..., onnx.ModelProto]) -> Reproducer:
    model = parse('<ir_version: 9, opset_import: ["" : 18]> g (float[3] file) => (float y) { y = Relu (file) }')
    return Reproducer(
        finding=("'y' is wrong.",),
        nodes=("relu",),
        models={"before.onnx": model, "after.onnx": model},
        inputs={"file": np.array([0, -1, 2], np.float32)},
        arguments=("verify", "before.onnx", "--against", "after.onnx", "--input", "input.npz"),
        reproduces=True,
        checks=("fold: y",),
    )


def test_the_folder(reproducer: Reproducer, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    reproducer.save(folder)
    assert {path.name for path in folder.iterdir()} == {"before.onnx", "after.onnx", "input.npz", "reproduce.txt"}
    with np.load(folder / "input.npz") as arrays:
        assert arrays["file"].tolist() == [0, -1, 2]
    assert onnx.load(folder / "after.onnx").graph.node[0].op_type == "Relu"
    lines = (folder / "reproduce.txt").read_text().splitlines()
    assert lines == [
        "'y' is wrong.",
        "The files alone show it: sepwise verify before.onnx --against after.onnx --input input.npz",
    ]


def test_weights_that_one_file_cannot_hold(
    reproducer: Reproducer, parse: Callable[..., onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside it, in the folder."""
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT_BYTES", 100)
    model = parse('<ir_version: 9, opset_import: ["" : 18]> g (float[100] x) => (float[100] y) <float[100] w> { y = Add (x, w) }')
    weight = np.arange(100, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    replace(reproducer, models={"part.onnx": model}).save(tmp_path / "found")
    moved = (tmp_path / "found").rename(tmp_path / "elsewhere")
    assert {path.name for path in moved.iterdir()} == {"part.onnx", "part.onnx.data", "input.npz", "reproduce.txt"}
    loaded = load_model(moved / "part.onnx").graph.initializers["w"].const_value
    assert loaded is not None
    assert np.array_equal(loaded.numpy(), weight)


def test_a_workload_is_written(reproducer: Reproducer, tmp_path: Path) -> None:
    replace(reproducer, workload={"kernel": "k0", "macs": 9}).save(tmp_path)
    assert json.loads((tmp_path / "workload.json").read_text()) == {"kernel": "k0", "macs": 9}


def test_what_does_not_reproduce_says_so(reproducer: Reproducer) -> None:
    assert "do NOT show it" in replace(reproducer, reproduces=False).text[-1]
    assert "NOT" not in reproducer.text[-1]


def test_the_checks_name_the_folder(reproducer: Reproducer, tmp_path: Path) -> None:
    other = replace(FAILED, name="group: y")
    verdict = Verification("net", None, (FAILED, other), reproducer=reproducer).save_reproducer(tmp_path / "found")
    assert [check.reproducer for check in verdict.checks] == [str(tmp_path / "found"), None]
    fields = json.loads(json.dumps(verdict.to_json()))["bisection"]
    assert fields == {
        "finding": ["'y' is wrong."],
        "nodes": ["relu"],
        "folder": str(tmp_path / "found"),
        "command": reproducer.command,
        "reproduces": True,
    }


def test_nothing_found_writes_nothing(tmp_path: Path) -> None:
    verdict = Verification("net", None, (FAILED,))
    assert verdict.save_reproducer(tmp_path / "found") is verdict
    assert not (tmp_path / "found").exists()
