"""The page is made from the counts, and says which of them are missing."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from sepwise.lowering.device import get
from sepwise.passes import load_model
from sepwise.passes.errors import SepwiseError


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
        "date": "2026-01-01",
        "failure": failure,
    }


def test_the_page_compares_with_the_best_peer(arm: ModuleType) -> None:
    common = {"core": "cortex-a72", "macs": 1000, "llvm": 22}
    first = [count("sepwise", 0.3, 2e6), count("p", 0.4, 1e6), count("q", 0.6, 4e6)]
    second = [count("sepwise", 0.4, 3e6), count("p", None, None, "did not run: why"), count("q", 0.3)]
    networks = [
        {**common, "network": "a", "input": [1, 3, 8, 8], "runtimes": first},
        {**common, "network": "b", "input": [1, 8], "runtimes": second},
        {**common, "network": "c", "input": [1, 8], "runtimes": first},
        {**common, "network": arm.BLOCK, "input": [1, 8], "runtimes": [count("sepwise", 0.1, 1e6), count("p", 0.4, 2e6)]},
        {**common, "core": "cortex-a55", "network": "a", "input": [1, 3, 8, 8], "runtimes": first},
        {**common, "core": "cortex-a55", "network": arm.BLOCK, "input": [1, 8], "runtimes": first},
    ]
    page = arm.make_table({"networks": networks})
    assert "float32, 2026-01-01, made by" in page
    assert "| core | network | input | sepwise | p | q | over the best |" in page
    assert "| cortex-a72 | a | 1 x 3 x 8 x 8 | 0.300 / 2.00 | 0.400 / 1.00 | 0.600 / 4.00 | 0.750 / 2.00 |" in page
    assert "| cortex-a72 | b | 1 x 8 | 0.400 / 3.00 | - / - | 0.300 / - | 1.333 / - |" in page
    means = [line for line in page.splitlines() if line.startswith("Geometric")]
    assert means == [
        "Geometric means of the last column, cortex-a72, 3 networks, inverted_residual left out: 0.909 / 2.00; "
        "of the 2 that every peer computes: 0.750 / 2.00."
    ]
    assert "- b on cortex-a72, p: did not run: why" in page
    assert "Versions: sepwise 1.2, p 1.2, q 1.2; estimated with LLVM 22." in page


def test_others_stay_where_the_same_llvm_estimated_them(arm: ModuleType) -> None:
    entry = {"core": "cortex-a72", "network": "a", "input": [1, 8], "macs": 1000, "llvm": 22}
    known = {**entry, "runtimes": [count("sepwise", 0.4, 3e6), count("p", 0.4, 1e6)]}
    new = {**entry, "runtimes": [count("sepwise", 0.3, 2e6)]}
    assert arm.with_others(new, known)["runtimes"] == [count("sepwise", 0.3, 2e6), count("p", 0.4, 1e6)]
    assert arm.with_others(new, {**known, "llvm": 14}) == new
    assert arm.with_others(new, None) == new


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
def test_libraries_are_shown_its_caches_and_no_others(name: str, sharers: str, arm: ModuleType, tmp_path: Path) -> None:
    device = get(name)
    arm.describe_core(get("neoverse-v1"), tmp_path)  # 64 cores with three levels
    arm.describe_core(device, tmp_path)
    cpus = tmp_path / "sys/devices/system/cpu"
    assert sorted(cpu.name for cpu in cpus.iterdir()) == [f"cpu{number}" for number in range(device.cores)]
    cache = cpus / "cpu0/cache"
    sizes = [nbytes for nbytes in (device.l1d_bytes, device.l2_bytes, device.l3_bytes) if nbytes]
    levels = [cache / f"index{index}" for index in range(len(sizes))]
    assert sorted(cache.iterdir()) == levels
    assert [(level / "level").read_text() for level in levels] == [f"{index + 1}\n" for index in range(len(sizes))]
    assert [(level / "size").read_text() for level in levels] == [f"{nbytes // 1024}K\n" for nbytes in sizes]
    assert (levels[1] / "shared_cpu_map").read_text().strip() == sharers


@pytest.mark.parametrize("name", ["neoverse-v1", "a64fx", "cortex-a72"])
def test_peers_run_with_the_vectors_that_ours_do(
    name: str, arm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, commands = get(name), []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        if "--version" in command:
            return SimpleNamespace(stdout="qemu-aarch64 version 7.2.1")
        return SimpleNamespace(returncode=1, stderr="refused")

    monkeypatch.setattr(arm.subprocess, "run", run)
    monkeypatch.setattr(arm, "count_plugin", lambda version: Path("plugin.so"))
    with pytest.raises(SepwiseError, match="did not run: refused"):
        arm.run_guest("ncnn", tmp_path / "model", device, tmp_path, tmp_path / "x.npy")
    option = commands[-1][commands[-1].index("-cpu") + 1]
    assert option == device.emulator_option
    assert (f"sve-default-vector-length={device.scalable_bytes}" in option) == bool(device.scalable_bytes)


@pytest.mark.parametrize(
    ("name", "scalable", "known"),
    [("neoverse-v1", True, False), ("a64fx", True, False), ("neoverse-v1", False, True), ("cortex-a72", False, True)],
)
def test_no_cycles_are_estimated_of_loads_that_are_not_seen(
    name: str, scalable: bool, known: bool, arm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = SimpleNamespace(instructions=7, scalable=scalable)
    monkeypatch.setattr(arm, "convert", lambda *_: tmp_path)
    monkeypatch.setattr(arm, "run_guest", lambda *_: (executed, None, "1.2"))
    monkeypatch.setattr(arm.estimate, "missing", lambda _: None)
    monkeypatch.setattr(arm.estimate, "estimate_cycles", lambda *_: (3.0, 4.0))
    network = SimpleNamespace(source=tmp_path / "n.onnx", check=lambda _: SimpleNamespace(passed=True, worst_ratio=0.5))
    _, count = arm.count_peer("ncnn", network, get(name), tmp_path)
    assert (count.instructions, count.estimated_cycles) == (7, 7.0 if known else None)


def test_another_clock_brings_as_many_bytes_in_a_second(arm: ModuleType) -> None:
    board = get("rpi4")
    faster = arm.at_clock(board, 2 * board.clock_hz)
    assert faster.clock_hz * faster.memory_bytes_per_cycle == board.clock_hz * board.memory_bytes_per_cycle


def test_boards_are_devices_with_the_clock_that_their_source_states(arm: ModuleType) -> None:
    for board in (*arm.PUBLISHED, *arm.ALSO_PUBLISHED):
        assert get(board.device).emulated
        assert set(board.times_ms) <= set(arm.NETWORKS)
        assert "ncnn, benchmark/README.md" in board.source


def test_other_times_of_the_source_are_in_the_file(arm: ModuleType) -> None:
    assert json.loads(arm.BOARDS.read_text())["also_published"] == arm.also_published()


@pytest.mark.parametrize("more", [["--core", "cortex-a53"], ["--runtimes", "ncnn"], ["-o", "x.json"], ["mobilenet_v1"]])
def test_published_boards_take_no_other_choice(
    more: list[str], arm: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["arm.py", "--folder", "none", "--published", *more])
    with pytest.raises(SystemExit):
        arm.main()
    assert "--published takes no networks, --core, --runtimes or --output" in capsys.readouterr().err
