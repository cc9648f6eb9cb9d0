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
    assert command(*words).status == 0
    assert asked.pop("inputs")["x"].tolist() == [0, 1, 2]
    given = {"model": "net.onnx", "target": "cortex-a72", "against": None, "shapes": (1, 3), "threads": 2}
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
