import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepwise import api
from sepwise.passes.equivalence import Check, Verification

PASSED = Check("kernel", "k0", ("dw",), "passed", 1e-7, 2e-7, 0.5, (0, 1))
FAILED = replace(PASSED, name="k1", status="failed", worst_ratio=3.0, reason="off by 6e-07 at [0, 1]")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Gives a function that sets the checks which verifying answers with; what was asked is in what it returns."""

    def answer_with(*checks: Check) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def verify(model: str, **options: Any) -> Verification:
            asked.update(model=model, **options)
            return Verification("net", "host", checks)

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
    assert (status, out.splitlines()[-2:]) == (1, ["k1: off by 6e-07 at [0, 1]", "NOT passed"])
    status, out, _ = command("verify", "net.onnx", "--json")
    assert (status, json.loads(out)["passed"]) == (1, False)
    assert [check["status"] for check in json.loads(out)["checks"]] == ["passed", "failed"]


def test_options_are_passed_on(command: Callable[..., Any], verdicts: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    asked = verdicts(PASSED)
    np.savez(tmp_path / "data.npz", x=np.arange(3))
    words = ("verify", "net.onnx", "--target", "cortex-a72", "--input", tmp_path / "data.npz", "--shape", "1,3", "--threads", "2")
    assert command(*words).status == 0
    assert asked.pop("inputs")["x"].tolist() == [0, 1, 2]
    given = {"model": "net.onnx", "target": "cortex-a72", "against": None, "shapes": (1, 3), "threads": 2}
    assert {name: asked[name] for name in given} == given
