from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sepwise.comparison import compare_files
from sepwise.files import resolve
from sepwise.passes.errors import InputError

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 4, 1, 1] w>
{
   h = Conv(x, w)
   y = Relu(h)
}
"""


def saved(path: Path, *, scale: float = 1.0, activation: str = "Relu", output: str = "y") -> Path:
    model = parser.parse_model(NETWORK.replace("Relu", activation).replace("y", output))
    weight = np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight * np.float32(scale), "w"))
    onnx.save(model, path)
    return path


def test_a_file_equals_itself(tmp_path: Path) -> None:
    file = resolve(saved(tmp_path / "a.onnx"))
    verdict = compare_files(file, file)
    assert verdict.passed
    assert {check.scope for check in verdict.checks} == {"graph", "model"}
    json = verdict.to_json()
    assert json["target"] is None
    assert json["worst_ratio"] <= 1


@pytest.mark.parametrize("change", [{"scale": 1.001}, {"activation": "Elu"}])
def test_a_mutant_is_rejected(change: dict[str, object], tmp_path: Path) -> None:
    verdict = compare_files(resolve(saved(tmp_path / "a.onnx")), resolve(saved(tmp_path / "b.onnx", **change)))
    assert not verdict.passed
    assert [check.passed for check in verdict.checks] == [False, True, False]


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="z"):
        compare_files(resolve(saved(tmp_path / "a.onnx")), resolve(saved(tmp_path / "b.onnx", output="z")))
