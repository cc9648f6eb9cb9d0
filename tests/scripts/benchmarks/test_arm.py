"""The page is made from the counts, and says which of them are missing."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from sepwise.lowering.device import get
from sepwise.passes import load_model


@pytest.fixture(scope="module")
def arm(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("arm")


def count(runtime: str, per_mac: float | None, cycles: float | None = None, failure: str = "") -> dict[str, Any]:
    return {
        "runtime": runtime,
        "version": "1.2" if per_mac else "",
        "instructions": None if per_mac is None else round(1000 * per_mac),
        "instructions_per_mac": per_mac,
        "estimated_cycles": cycles,
        "worst_ratio": 0.25,
        "failure": failure,
    }


def test_the_page_compares_with_the_best_peer(arm: ModuleType) -> None:
    common = {"core": "cortex-a72", "macs": 1000, "date": "2026-01-01"}
    first = [count("sepwise", 0.3, 2e6), count("p", 0.4, 1e6), count("q", 0.6, 4e6)]
    second = [count("sepwise", 0.4, 3e6), count("p", None, None, "did not run: why"), count("q", 0.3)]
    networks = [
        {**common, "network": "a", "input": [1, 3, 8, 8], "runtimes": first},
        {**common, "network": "b", "input": [1, 8], "runtimes": second},
    ]
    page = arm.make_table({"networks": networks})
    assert "float32, 2026-01-01, made by" in page
    assert "| core | network | input | sepwise | p | q | over the best |" in page
    assert "| cortex-a72 | a | 1 x 3 x 8 x 8 | 0.300 / 2.00 | 0.400 / 1.00 | 0.600 / 4.00 | 0.750 / 2.00 |" in page
    assert "| cortex-a72 | b | 1 x 8 | 0.400 / 3.00 | - / - | 0.300 / - | 1.333 / - |" in page
    assert "Geometric means of the last column, cortex-a72: 1.000 / 2.00." in page
    assert "- b on cortex-a72, p: did not run: why" in page


def test_the_block_is_that_of_mobilenet_v2(arm: ModuleType, tmp_path: Path) -> None:
    arm.make_block(tmp_path / "block.onnx")
    load_model(tmp_path / "block.onnx")
    weights = {tensor.name: list(tensor.dims) for tensor in onnx.load(tmp_path / "block.onnx").graph.initializer}
    macs = 56 * 56 * (32 * 192 + 9 * 192 + 192 * 32)
    assert weights["expand_w"] == [192, 32, 1, 1]
    assert macs == 43_954_176


def test_libraries_are_shown_the_core_they_run_on(arm: ModuleType, tmp_path: Path) -> None:
    arm.describe_core(get("cortex-a72"), tmp_path)
    lines = [line.split("\t: ") for line in (tmp_path / "proc/cpuinfo").read_text().splitlines() if line]
    assert [value for key, value in lines if key == "processor"] == ["0", "1", "2", "3"]
    assert dict(lines)["CPU part"] == "0xd08"
    assert "asimd" in dict(lines)["Features"].split()


@pytest.mark.parametrize(("name", "sharers"), [("cortex-a72", "f"), ("cortex-a76", "1")])
def test_libraries_are_shown_its_caches(name: str, sharers: str, arm: ModuleType, tmp_path: Path) -> None:
    device = get(name)
    arm.describe_core(device, tmp_path)
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache"
    levels = [(cache / f"index{index}") for index in range(3)]
    assert [(level / "level").read_text() for level in levels] == ["1\n", "2\n", "3\n"]
    sizes = [device.l1d_bytes, device.l2_bytes, device.l3_bytes]
    assert [(level / "size").read_text() for level in levels] == [f"{nbytes // 1024}K\n" for nbytes in sizes]
    assert (levels[1] / "shared_cpu_map").read_text().strip() == sharers


def test_another_clock_brings_as_many_bytes_in_a_second(arm: ModuleType) -> None:
    board = get("rpi4")
    faster = arm.at_clock(board, 2 * board.clock_hz)
    assert faster.clock_hz * faster.memory_bytes_per_cycle == board.clock_hz * board.memory_bytes_per_cycle


def test_boards_are_devices_with_the_clock_that_their_source_states(arm: ModuleType) -> None:
    for board in arm.PUBLISHED:
        assert get(board.device).emulated
        assert set(board.times_ms) <= set(arm.NETWORKS)
        assert "ncnn, benchmark/README.md" in board.source
