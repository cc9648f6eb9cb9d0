import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest


@pytest.mark.parametrize("inline", [False, True])
def test_fuse(command: Callable[..., Any], network: Path, tmp_path: Path, inline: bool) -> None:
    fused = tmp_path / "fused.onnx"
    flags = ("--inline",) if inline else ()
    status, out, _ = command("fuse", network, "-o", fused, "--shape", "2,3,6,6", "--json", *flags)
    assert status == 0
    report = json.loads(out)
    assert report["model"] == "net"
    assert report["operators"] == {"SeparableConv": 1}
    assert {each["name"]: each["fired"] for each in report["passes"]}["group_separable"] == 1
    model = onnx.load(fused)
    assert [bool(model.functions), len(model.graph.node)] == ([False, 3] if inline else [True, 1])


def test_float16(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    status, out, _ = command("fuse", network, "-o", fused, "--shape", "2,3,6,6", "--float16", "--json")
    assert status == 0
    assert {each["name"]: each["fired"] for each in json.loads(out)["passes"]}["convert_float16"] == 3
    model = onnx.load(fused)
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert {each.data_type for each in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    status, _, _ = command("verify", fused, "--against", network, "--shape", "2,3,6,6")
    assert status == 0


def test_refusals_are_told(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    model.graph.output.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ("n", 4, 6, 6)))
    seen = tmp_path / "seen.onnx"
    onnx.save(model, seen)
    status, out, _ = command("fuse", seen, "-o", tmp_path / "fused.onnx", "--shape", "1,3,6,6")
    assert status == 0
    assert "fuse_activation: act: the output 'b' of Conv 'pw' is a graph output" in out.splitlines()
    assert out.splitlines()[-1] == "1 SeparableConv, 1 Relu"
