"""The page is made from the counts, and says which of them are missing."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from sepwise.lowering.device import get
from sepwise.passes import load_model


@pytest.fixture(scope="module")
def arm() -> Iterator[ModuleType]:
    file = Path(__file__).parents[3] / "scripts/benchmarks/arm.py"
    spec = importlib.util.spec_from_file_location("arm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def count(runtime: str, per_mac: float | None, failure: str = "") -> dict[str, Any]:
    return {
        "runtime": runtime,
        "version": "1.2" if per_mac else "",
        "instructions": None if per_mac is None else round(1000 * per_mac),
        "instructions_per_mac": per_mac,
        "worst_ratio": 0.25,
        "failure": failure,
    }


def test_the_page_compares_with_the_best_peer(arm: ModuleType) -> None:
    networks = [
        {"network": "a", "input": [1, 3, 8, 8], "macs": 1000, "runtimes": [count("sepwise", 0.3), count("p", 0.4), count("q", 0.6)]},
        {"network": "b", "input": [1, 8], "macs": 1000, "runtimes": [count("sepwise", 0.4), count("p", None, "did not run: why"), count("q", 0.3)]},
    ]
    page = arm.make_table({"core": "cortex-a72", "lanes": 4, "date": "2026-01-01", "networks": networks})
    assert "| network | input | sepwise | p | q | against the best |" in page
    assert "| a | 1 x 3 x 8 x 8 | 0.300 | 0.400 | 0.600 | 0.75 |" in page
    assert "| b | 1 x 8 | 0.400 | - | 0.300 | 1.33 |" in page
    assert "Geometric mean of the last column: 1.00." in page
    assert "The floor is 0.25" in page
    assert "b, p: did not run: why" in page


def test_the_block_is_that_of_mobilenet_v2(arm: ModuleType, tmp_path: Path) -> None:
    arm.make_block(tmp_path / "block.onnx")
    load_model(tmp_path / "block.onnx")
    weights = {tensor.name: list(tensor.dims) for tensor in onnx.load(tmp_path / "block.onnx").graph.initializer}
    macs = 56 * 56 * (32 * 192 + 9 * 192 + 192 * 32)
    assert weights["expand_w"] == [192, 32, 1, 1]
    assert macs == 43_954_176


def test_libraries_are_shown_the_core_they_run_on(arm: ModuleType, tmp_path: Path) -> None:
    arm.describe_core(get("cortex-a72"), tmp_path)
    lines = dict(line.split("\t: ") for line in (tmp_path / "proc/cpuinfo").read_text().splitlines() if line)
    assert lines["CPU part"] == "0xd08"
    assert "asimd" in lines["Features"].split()
