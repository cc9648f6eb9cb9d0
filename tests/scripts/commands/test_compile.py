import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sepwise import api
from sepwise.passes.convert_input import ImageFormat


def test_compile_says_how_each_kernel_is_computed(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    status, out, _ = command("compile", network, "-o", folder, "--shape", "1,3,6,6")
    assert status == 0
    artifact = api.load(folder)
    for call in artifact.program.calls:
        assert any(call.name in line and call.strategy in line for line in out.splitlines())
    assert out.splitlines()[-1].startswith("100.00 % of the MACs on strategies")
    assert out.splitlines()[-1].endswith(f"-> {folder}")


def test_options_are_passed_on(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, network: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    class Compiled:
        report = {"model": "net", "target": "cortex-a72"}  # noqa: RUF012 - stands in for an Artifact

    def compile_(model: str, **options: Any) -> Compiled:
        asked.update(model=model, **options)
        return Compiled()

    monkeypatch.setattr(api, "compile", compile_)
    words = ("compile", network, "-o", tmp_path / "d", "--target", "cortex-a72", "--threads", "2", "--shape", "x=1,3,6,6")
    status, out, _ = command(*words, "--float16", "--json")
    assert (status, json.loads(out)) == (0, Compiled.report)
    assert asked == {
        "model": str(network),
        "target": "cortex-a72",
        "shapes": {"x": (1, 3, 6, 6)},
        "threads": 2,
        "float16": True,
        "image": None,
        "database": None,
        "output": tmp_path / "d",
    }
    assert command(*words, "--input-layout", "NHWC", "--json").status == 0
    assert asked["image"] == ImageFormat(layout="NHWC")


def test_float16(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    words = ("compile", network, "--shape", "1,3,6,6", "--float16")
    status, out, _ = command(*words, "-o", tmp_path / "half", "--target", "cortex-a76")
    assert status == 0
    assert out.splitlines()[-1].startswith("100.00 % of the MACs on strategies, 100.00 % in float16, ")
    status, _, err = command(*words, "-o", tmp_path / "none", "--target", "cortex-a72")
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "Target 'cortex-a72': its core (cortex-a72) has no float16 arithmetic" in err
    assert not (tmp_path / "none").exists()
