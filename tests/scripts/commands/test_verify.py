import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise import api
from sepwise.passes.equivalence import Agreement, Check, Verification
from sepwise.passes.errors import InputError

PASSED = Check("kernel", "k0", ("dw",), "passed", 1e-7, 2e-7, 0.5, (0, 1))
FAILED = replace(PASSED, name="k1", status="failed", worst_ratio=3.0, reason="off by 6e-07 at [0, 1]")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Gives a function that sets the checks which verifying answers with; what was asked is in what it returns."""

    def answer_with(*checks: Check) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def verify(model: str, **options: Any) -> Verification:
            asked.update(model=model, **options)
            return Verification("net", "host", checks, agreement=(Agreement("y", 1, None, 3, 3, 0),))

        monkeypatch.setattr(api, "verify", verify)
        return asked

    return answer_with


def test_what_passes_is_status_0(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]]) -> None:
    verdicts(PASSED)
    status, out, _ = command("verify", "net.onnx")
    assert (status, out.splitlines()[-1]) == (0, "passed")
    assert any("k0" in line and "kernel" in line and "0.5" in line for line in out.splitlines())


def test_error_and_bound_in_the_table_are_of_one_thing(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]]) -> None:
    element = replace(PASSED, max_abs_error=0.0557, bound=1.64e-5, worst_ratio=0.206, worst_error=3.38e-6)
    rms = replace(element, scope="graph", name="fold: y", worst_ratio=0.25, rms_ratio=0.25, rms_error=1e-7, rms_bound=4e-7)
    skipped = replace(PASSED, name="k2", status="skipped", worst_ratio=None)
    verdicts(element, rms, skipped)
    _, out, _ = command("verify", "net.onnx")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert cells == [
        ["k0", "kernel", "passed", "element", "3.38e-06", "1.64e-05", "0.206"],
        ["fold: y", "graph", "passed", "RMS", "1e-07", "4e-07", "0.25"],
        ["k2", "kernel", "skipped", "-", "-", "-", "-"],
    ]


def test_what_fails_is_status_1_with_its_reason(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]]) -> None:
    verdicts(PASSED, FAILED)
    status, out, _ = command("verify", "net.onnx")
    answer = "y: the same is largest along axis 1 at 3 of 3 places"
    assert (status, out.splitlines()[-3:]) == (1, [answer, "k1: off by 6e-07 at [0, 1]", "NOT passed"])
    status, out, _ = command("verify", "net.onnx", "--json")
    assert (status, json.loads(out)["passed"]) == (1, False)
    assert [check["status"] for check in json.loads(out)["checks"]] == ["passed", "failed"]
    assert json.loads(out)["agreement"][0]["agreeing"] == 3


def test_options_are_passed_on(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    asked = verdicts(PASSED)
    np.savez(tmp_path / "data.npz", x=np.arange(3))
    words = ("verify", "net.onnx", "--target", "cortex-a72", "--input", tmp_path / "data.npz", "--shape", "1,3", "--threads", "2")
    assert command(*words, "--float16").status == 0
    assert asked.pop("inputs")["x"].tolist() == [0, 1, 2]
    given = {"model": "net.onnx", "target": "cortex-a72", "against": None, "shapes": (1, 3), "threads": 2, "float16": True}
    assert {name: asked[name] for name in given} == given


def test_bisection_is_passed_on(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    asked = verdicts(PASSED)
    assert command("verify", "net.onnx", "--bisect", "--output", tmp_path / "found").status == 0
    assert (asked["bisect"], asked["output"]) == (True, tmp_path / "found")


def test_options_that_would_do_nothing_are_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    """In the command's words and in Python's alike."""
    file = tmp_path / "a.onnx"
    onnx.save(onnx.parser.parse_model(f"{HEAD} Exp(x) y = Tanh(h) }}"), file)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"output": tmp_path / "found"}, "is for what bisecting finds"),
        ({"against": file, "threads": 3}, "3 threads: two files are compared by one"),
        ({"against": file, "target": "cortex-a72"}, "two files are compared without a target"),
    ]
    status, _, err = command("verify", file, "--against", file, "--float16")
    assert (status, "two files are compared as they are" in err) == (2, True)
    for options, message in cases:
        status, _, err = command("verify", file, *(word for name, value in options.items() for word in (f"--{name}", value)))
        assert (status, message in err) == (2, True)
        with pytest.raises(InputError, match=message):
            api.verify(file, **options)


def test_one_array_without_a_name_is_the_only_input(command: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4, 8, 8), np.float32))
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    text = f"{HEAD} Exp(x) y = Tanh(h) }}"
    onnx.save(onnx.parser.parse_model(text), one)
    onnx.save(onnx.parser.parse_model(text.replace("(float[1,4,8,8] x)", "(float[1,4,8,8] x, float[1] z)")), two)
    status, out, _ = command("verify", one, "--against", one, "--input", tmp_path / "x.npy", "--json")
    assert (status, json.loads(out)["inputs"]) == (0, ["given"])
    status, _, err = command("verify", two, "--against", two, "--input", tmp_path / "x.npy")
    assert status == 2
    assert "has the inputs x, z;" in err
    assert "give an .npz of all by name" in " ".join(err.split())


HEAD = '<ir_version: 10, opset_import: ["" : 18]> net (float[1,4,8,8] x) => (float[1,4,8,8] y) { h = '


def test_what_bisection_writes_fails_by_itself(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the files that differ to the folder, and from the folder back to the failure."""
    for name, operator in (("a", "Softplus"), ("b", "Exp")):
        onnx.save(onnx.parser.parse_model(f"{HEAD} {operator}(x) y = Tanh(h) }}"), tmp_path / f"{name}.onnx")
    monkeypatch.chdir(tmp_path)
    status, out, _ = command("verify", "a.onnx", "--against", "b.onnx", "--bisect")
    assert status == 1
    folder = tmp_path / "a.bisect"
    assert {path.name for path in folder.iterdir()} == {"before.onnx", "after.onnx", "input.npz", "reproduce.txt"}
    said = (folder / "reproduce.txt").read_text().splitlines()
    assert [line for line in out.splitlines() if line in said] == said
    assert "before: Softplus 'h'" in said
    assert "after: Exp 'h'" in said
    monkeypatch.chdir(folder)
    words = said[-1].partition("sepwise ")[2].split()
    status, out, _ = command(*words, "--json")
    assert status == 1
    assert [check["status"] for check in json.loads(out)["checks"] if check["scope"] == "graph"] == ["failed"]


def change_a_weight(fused: onnx.ModelProto) -> str:
    """One weight of one layer by 1 %; gives the layer's node."""
    node = next(node for node in fused.graph.node if "blocks.10." in node.name and node.op_type.startswith("SeparableConv"))
    tensor = next(tensor for tensor in fused.graph.initializer if tensor.name == node.input[1])
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[np.abs(array).argmax()] *= np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return "blocks.10."


def swap_strides(fused: onnx.ModelProto) -> str:
    """The strides of two stages of one operator change places, so that its output keeps its shape."""
    node = next(node for node in fused.graph.node if node.name.startswith("blocks.3.") and node.op_type.startswith("SeparableConv"))
    strides = {each.name: each for each in node.attribute if each.name.endswith("strides")}
    first, second = strides["pointwise_strides"], strides["depthwise_strides"]
    assert first.ints != second.ints
    first.ints[:], second.ints[:] = list(second.ints), list(first.ints)
    del fused.graph.value_info[:]
    return "blocks.3."


def drop_an_epsilon(model: onnx.ModelProto) -> str:
    """Of the original, before it is fused: the fold is without it."""
    node = next(node for node in model.graph.node if node.name == "blocks.6.depthwise.norm")
    (epsilon,) = (each for each in node.attribute if each.name == "epsilon")
    epsilon.f = 0.0
    return "blocks.6."


@pytest.mark.parametrize("options", [
    pytest.param({"shape": (1, 3, 64, 64), "width": 0.25}, id="narrow"), pytest.param({}, id="full", marks=pytest.mark.nightly)
])  # fmt: skip
@pytest.mark.parametrize("fault", [change_a_weight, drop_an_epsilon, swap_strides], ids=lambda fault: fault.__name__)
def test_one_fault_of_mobilenet_v3(
    fault: Callable[[onnx.ModelProto], str],
    options: dict[str, Any],
    zoo_file: Callable[..., Path],
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is named, and the files that are written show it without the model."""
    original = zoo_file("mobilenet_v3_large", **options)
    fused = tmp_path / "fused.onnx"
    if fault is drop_an_epsilon:
        model = onnx.load(original)
        layer = fault(model)
        onnx.save(model, tmp_path / "other.onnx")
        assert command("fuse", tmp_path / "other.onnx", "-o", fused).status == 0
    else:
        assert command("fuse", original, "-o", fused).status == 0
        model = onnx.load(fused)
        layer = fault(model)
        onnx.save(model, fused)
    found = tmp_path / "found"
    status, out, _ = command("verify", original, "--against", fused, "--bisect", "-o", found, "--json")
    bisection = json.loads(out)["bisection"]
    assert (status, bisection["reproduces"]) == (1, True)
    assert bisection["nodes"]
    assert all(name.startswith(layer) for name in bisection["nodes"])
    fused.unlink()
    monkeypatch.chdir(found)
    status, out, _ = command(*bisection["command"].split()[1:], "--json")
    assert status == 1
    assert [check["status"] for check in json.loads(out)["checks"] if check["scope"] == "graph"] == ["failed"]


def test_a_folder_in_use_is_refused_before_the_work(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    onnx.save(onnx.parser.parse_model(f"{HEAD} Exp(x) y = Tanh(h) }}"), tmp_path / "a.onnx")
    status, _, err = command("verify", tmp_path / "a.onnx", "--bisect", "--output", tmp_path)
    assert status == 2
    assert "exists and is not an empty folder" in err


def test_what_is_right_leaves_no_folder(command: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    onnx.save(onnx.parser.parse_model(f"{HEAD} Exp(x) y = Tanh(h) }}"), file)
    status, out, _ = command("verify", file, "--against", file, "--bisect", "--output", tmp_path / "found", "--json")
    assert (status, json.loads(out)["bisection"]) == (0, None)
    assert not (tmp_path / "found").exists()
