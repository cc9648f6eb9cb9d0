"""Shapes and their neighbours, what is kept and what is measured again, and the page and plot of a report that was made up."""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sepwise.lowering.device import get
from sepwise.lowering.peers import Job, Worker
from sepwise.lowering.workload import ConvWorkload
from sepwise.passes.errors import CheckFailed, InputError

MACHINE = {"processor": "P", "cpu": "c", "cpus": 2, "l1d_bytes": 1 << 15, "l2_bytes": 1 << 20, "l3_bytes": 0, "system": "Linux"}
DAY = {"date": "2026-01-01"}


@pytest.fixture(scope="module")
def x86(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("x86")


@pytest.fixture(scope="module")
def page(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("x86_page")


@pytest.fixture(scope="module")
def networks(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("x86_networks")


@pytest.fixture(scope="module")
def kernels(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("x86_kernels")


def ours(speedup: float, minimum_speedup: float) -> dict[str, float]:
    return {"median_us": 2000.0, "minimum_us": 1500.0, "speedup": speedup, "minimum_speedup": minimum_speedup}


def beside(network: str, peer: str, speedups: dict[str, tuple[float, float]], threads: int = 1) -> dict[str, Any]:
    found = {target: ours(*pair) for target, pair in speedups.items()}
    facts = {"network": network, "threads": threads, "input": [1, 3, 8, 8], "rounds": 9}
    return {**facts, "peer": peer, "version": "1.2", "ours": found, "failure": "", **DAY}


def failed(network: str, peer: str, reason: str) -> dict[str, Any]:
    return {"network": network, "threads": 1, "input": [1, 3, 8, 8], "peer": peer, "rounds": 9, "ours": {}, "failure": reason, **DAY}


NETWORKS = [
    beside("a", "onnxruntime", {"host": (1.5, 1.4), "x86-64-v3": (0.9, 0.8)}),
    beside("a", "openvino", {"host": (2.0, 1.2), "x86-64-v3": (1.0, 1.1)}),
    beside("b", "onnxruntime", {"host": (6.0, 5.0), "x86-64-v3": (3.0, 2.5)}),
    beside("b", "openvino", {"host": (6.0, 4.8), "x86-64-v3": (2.5, 2.0)}),
    beside("b", "ncnn", {"host": (7.0, 7.0), "x86-64-v3": (3.5, 3.5)}),
    failed("a", "ncnn", "conversion failed: why"),
    beside("c", "onnxruntime", {"host": (1.0, 1.0), "x86-64-v3": (1.0, 1.0)}),
    failed("c", "openvino", "its outputs are wrong"),
]


def test_the_better_peer_counts_where_both_ran(page: ModuleType) -> None:
    assert page.best_speedups(NETWORKS, "host", 1) == {"a": (1.5, 1.2), "b": (6.0, 4.8)}
    assert page.best_speedups(NETWORKS, "x86-64-v3", 1) == {"a": (0.9, 0.8), "b": (2.5, 2.0)}
    assert page.best_speedups(NETWORKS, "host", 2) == {}


def test_the_table_of_networks(page: ModuleType) -> None:
    text = page.write_page({"machine": MACHINE, "networks": NETWORKS}, "x86")
    assert "| network | input | ours, ms | fastest, ms | onnxruntime | openvino | ncnn | the better of two |" in text
    assert "| a | 1 x 3 x 8 x 8 | 2 | 1.5 | 1.50 (1.40) | 2.00 (1.20) | - | **1.50 (1.20)** |" in text
    assert "| c | 1 x 3 x 8 x 8 | 2 | 1.5 | 1.00 (1.00) | - | - | **-** |" in text
    assert "| geometric mean |  |  |  | 2.08 (1.91) | 3.46 (2.40) | 7.00 (7.00) | **3.00 (2.40)** |" in text
    assert "| least |  |  |  | 1.00 (1.00) | 2.00 (1.20) | 7.00 (7.00) | **1.50 (1.20)** |" in text
    assert "### x86-64-v3, 1 thread" in text
    assert "- a, 1 thread(s), ncnn: conversion failed: why" in text
    assert "32 KiB L1D, 1,024 KiB L2, 0 KiB L3" in text
    assert "![The peer's time over ours](x86.svg)" in text


def test_sections_that_are_missing_are_left_out(page: ModuleType) -> None:
    text = page.write_page({"machine": MACHINE}, "x86")
    assert text.startswith("# On x86")
    assert "##" not in text


def test_memory_is_told_without_the_interpreter(page: ModuleType) -> None:
    common = {"network": "a", "failure": "", "version": "1.2", "start": 10_000_000, **DAY}
    sizes = {"constant_bytes": 4_000_000, "arena_bytes": 1_050_000, "arena_lower_bound_bytes": 1_000_000}
    rows = [
        {**common, "runtime": "sepwise", "loading": 18_000_000, "running": 16_000_000, **sizes},
        {**common, "runtime": "onnxruntime", "loading": 50_000_000, "running": 40_000_000},
        {"network": "a", "runtime": "ncnn", "failure": "why", **DAY},
    ]
    text = page.write_page({"machine": MACHINE, "memory": rows}, "x86")
    assert "| network | weights | arena | lower bound | arena / bound | ours | onnxruntime | ncnn |" in text
    assert "| a | 4.0 | 1.1 | 1.0 | 1.050 | 6.0 / 8.0 | 30.0 / 40.0 | - |" in text


def test_compilation_peak_ragged_shapes_and_choice(page: ModuleType) -> None:
    loops = {
        "fma": {"macs": 400_000_000, "median_us": 4000.0, "share": 0.75},
        "sgemm": {"macs": 900_000_000, "median_us": 10_000.0, "share": 0.8333, "version": "blas 1"},
        "torch-sgemm": {"macs": 800_000_000, "median_us": 8_000.0, "share": 0.75, "version": "torch 1"},
    }
    ragged = {"kind": "k", "channels": 24, "side": 7, "median_us": 12.5, **DAY}
    choice = {"target": "host", "timed": 40, "drawn": 10, "best_drawn": False, "pick_us": 12.0, "pick": "s T(x=1)", "best": "s T(x=2)", **DAY}
    report = {
        "machine": MACHINE,
        "compile": [{"network": "a", "seconds": 4.25, "build_seconds": 2.5, "kernels": 7, **DAY}],
        "import": [{"process": "import sepwise", "minimum_s": 0.0123, "median_s": 0.02, **DAY}],
        "peak": [{"network": "a", "threads": 1, "macs": 300_000_000, "ours": {"median_us": 4000.0}, **loops, **DAY}],
        "ragged": [{**ragged, "ratio": 1.6}, {**ragged, "side": 13, "ratio": 0.4}],
        "choice": [
            {**choice, "workload": "conv/1|2", "kind": "pointwise", "ratio": 1.44},
            {**choice, "workload": "conv/3", "kind": "dense", "ratio": 1.0},
        ],
    }
    text = page.write_page(report, "x86")
    assert "| a | 4.2 | 2.5 | 7 |" in text
    assert "| import sepwise | 0.020 | 0.012 |" in text
    assert "| a | 1 | 4 | 75 | 100 | 90 | 100 | 75 % | 83 % | 75 % |" in text
    assert "| k | 2 | 0.80 | 1.60 | 24 x 7 x 7, 12.5 us | 1 |" in text
    assert "All 2: geometric mean **0.80**, worst **1.60**." in text
    assert "| all | 2 | 1.200 | 1.44 |" in text
    assert r"| `conv/1\|2` | 1.44 | 12 | s T(x=1) | s T(x=2) |" in text


def test_the_plot_names_all_that_it_shows(page: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'sepwise[dev]'")
    file = tmp_path / "x86.svg"
    two = [{**row, "threads": 2} for row in NETWORKS if not row["failure"]]
    page.draw_plot({"machine": MACHINE, "networks": [*NETWORKS, *two]}, file)
    words = {text for element in ElementTree.parse(file).iter() if (text := (element.text or "").strip())}
    assert {"a", "b", "1.50", "6.00", "1 thread, geometric mean 3.00", "2 threads, geometric mean 3.00"} <= words
    assert "time of the better of ONNX Runtime and OpenVINO / time of sepwise" in words
    assert "c" not in words


def test_no_plot_of_nothing(page: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'sepwise[dev]'")
    page.draw_plot({"machine": MACHINE}, tmp_path / "x86.svg")
    assert not (tmp_path / "x86.svg").exists()


@pytest.mark.parametrize(
    ("size", "step", "nearest"), [(24, 32, 32), (40, 32, 32), (48, 32, 64), (58, 32, 64), (3, 32, 32), (13, 8, 16), (27, 8, 24)]
)
def test_the_nearest_round_neighbour(kernels: ModuleType, size: int, step: int, nearest: int) -> None:
    assert kernels.nearest_round(size, step) == nearest


def test_every_ragged_shape_has_another_neighbour_and_keeps_its_size(kernels: ModuleType) -> None:
    device = get("x86-64-v3")
    for kind, channels, side in kernels.ragged_shapes():
        near = kernels.nearest_round(channels, kernels.ROUND_CHANNELS), kernels.nearest_round(side, kernels.ROUND_SIDE)
        assert near != (channels, side)
        stages = kernels.KINDS[kind](channels)
        chain = ConvWorkload(1, (side, side), stages, False, None, device.lanes, device.lanes)
        stride = max(stages[0].strides)
        assert chain.output_shape[2:] == (-(-side // stride),) * 2


def test_ragged_shape_over_its_neighbour_by_multiply_accumulate(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = get("x86-64-v3")
    (row,) = kernels.time_ragged("pointwise", 24, 7, device, tmp_path, 2)
    assert (row["round_channels"], row["round_side"]) == (32, 8)
    assert (row["macs"], row["round_macs"]) == (24 * 24 * 49, 32 * 32 * 64)
    assert row["ratio"] > 0
    built = []
    monkeypatch.setattr(kernels, "build_trials", lambda *_: built.append(1))
    kernels.prepare_ragged("pointwise", 24, 7, device, tmp_path)
    assert not built


def test_workloads_of_a_network_are_those_of_its_kernels(
    kernels: ModuleType, networks: ModuleType, zoo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.Network(str(zoo_file("separable_block", shape=(1, 8, 16, 16))), tmp_path)
    device = get("x86-64-v3")
    found = kernels.list_workloads(network, device)
    keys = [call.workload for call in network.program("x86-64-v3", 1).calls if call.workload.startswith(("conv/", "linear/"))]
    assert [workload.key for workload in found] == list(dict.fromkeys(keys)) != []
    monkeypatch.setattr(kernels, "build_program", None)
    assert kernels.list_workloads(network, device) == found


def test_the_pick_is_timed_among_the_candidates(kernels: ModuleType, tmp_path: Path) -> None:
    device = get("x86-64-v3")
    workload = ConvWorkload(1, (6, 6), kernels.KINDS["depthwise 3x3"](16), False, None, device.lanes, device.lanes)
    (row,) = kernels.time_choice(workload, device, tmp_path, 8, 4)
    assert row["timed"] == 8 < row["candidates"]
    assert row["drawn"] == 2
    assert row["ratio"] == row["pick_us"] / row["best_us"] >= 1
    assert row["workload"] == workload.key


def test_a_small_network_beside_a_peer_that_runs_and_one_that_does_not(
    networks: ModuleType, zoo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.Network(str(zoo_file("separable_block", shape=(1, 8, 16, 16))), tmp_path)
    opened = networks._open_peer

    def open_peer(stack: ExitStack, peer: str, job: Job) -> Worker:
        if peer == "ncnn":
            raise InputError("conversion failed:\nwhy")
        worker: Worker = opened(stack, peer, job)
        return worker

    monkeypatch.setattr(networks, "_open_peer", open_peer)
    monkeypatch.setattr(networks, "LIMITED", {"onnxruntime-avx2": ("onnxruntime", "x86-64-v3", {"OMP_NUM_THREADS": "1"})})
    network.prepare(["host", "x86-64-v3"], [1])
    monkeypatch.setattr(networks, "compile", None)
    monkeypatch.setattr(networks, "Oracle", None)
    peers = ["ncnn", "onnxruntime", "onnxruntime-avx2"]
    ran, limited, left_out = networks.time_peers(network, 1, ["host", "x86-64-v3"], peers, 1)
    assert (ran["peer"], ran["failure"], left_out["peer"], left_out["failure"]) == ("onnxruntime", "", "ncnn", "conversion failed: why")
    assert (ran["input"], ran["macs"]) == ([1, 8, 16, 16], left_out["macs"])
    assert set(ran["ours"]) == {"host", "x86-64-v3"}
    assert (limited["name"], limited["peer"], set(limited["ours"])) == ("onnxruntime", "onnxruntime-avx2", {"x86-64-v3"})
    for ours_ran in ran["ours"].values():
        assert ours_ran["minimum_speedup"] == ran["minimum_us"] / ours_ran["minimum_us"]
        assert ours_ran["speedup"] == pytest.approx(ran["median_us"] / ours_ran["median_us"])  # of the only round
    memory, _ = networks.measure_memory(network, ["ncnn"])
    assert memory["arena_bytes"] >= memory["arena_lower_bound_bytes"] > 0
    assert memory["loading"] >= memory["running"] > memory["start"] > 0
    (peak,) = networks.time_peak(network, 1, 1)
    for name in ("fma", "sgemm", "torch-sgemm"):
        rates = [row["macs"] / row["median_us"] for row in (peak | peak["ours"], peak[name])]
        assert peak[name]["share"] == pytest.approx(rates[0] / rates[1])


def test_outputs_that_are_wrong_are_not_timed(
    networks: ModuleType, zoo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.Network(str(zoo_file("separable_block", shape=(1, 8, 16, 16))), tmp_path)
    expected, sigma = network.reference("host", 1)
    monkeypatch.setattr(network, "reference", lambda *_: ({name: 1.001 * array for name, array in expected.items()}, sigma))
    with pytest.raises(CheckFailed, match="Runtime 'sepwise': its outputs are wrong"):
        networks.time_peers(network, 1, ["host"], ["onnxruntime"], 1)


def units(x86: ModuleType, *sections: str, **given: Any) -> list[Any]:
    options: dict[str, Any] = {"sections": sections, "networks": ["a"], "threads": [1, 2], "targets": ["host", "x86-64-v3"]}
    options |= {"against": None, "rounds": None, "candidates": 3, "folder": Path("none"), **given}
    return list(x86.Plan(argparse.Namespace(**options)).units())


@pytest.fixture
def no_network(x86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        def __init__(self, name: str, folder: Path) -> None:
            self.name, self.prepare = name, print

    monkeypatch.setattr(x86, "Network", Named)


@pytest.mark.usefixtures("no_network")
def test_the_plan(x86: ModuleType) -> None:
    peers = units(x86, "networks")
    assert [unit.keys for unit in peers] == [
        (("a", threads, "onnxruntime"), ("a", threads, "openvino")) for threads in (1, 2)
    ]
    assert {unit.measure.keywords["cold"] for unit in peers} == {False}
    assert peers[0].measure.args[1:] == (1, ["host", "x86-64-v3"], ("onnxruntime", "openvino"), x86.ROUNDS["networks"])
    (cold,) = units(x86, "cold", threads=[2], rounds=3, against=["mnn"])
    assert cold.measure.keywords["cold"]
    assert cold.measure.args[1:] == (2, ["host"], ["mnn"], 3)
    rest = units(x86, "memory", "compile", "import", "peak", "ragged")
    assert {unit.section for unit in rest} == {"memory", "compile", "import", "peak", "ragged"}
    for unit in rest:
        assert {len(key) for key in unit.keys} == {len(x86.SECTIONS[unit.section])}


@pytest.mark.usefixtures("no_network")
def test_what_is_known_is_kept_until_all_of_it_is_measured_again(
    x86: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x86, "describe_machine", lambda: MACHINE)
    report = x86.Report(tmp_path / "x86.json")
    one, two = units(x86, "networks")
    assert not report.knows(one)
    report.put("networks", [beside("a", "onnxruntime", {"host": (1.0, 1.0)})])
    assert not report.knows(one)
    report.put("networks", [beside("a", "openvino", {"host": (1.0, 1.0)}), beside("a", "onnxruntime", {"host": (2.0, 1.0)})])
    again = x86.Report(tmp_path / "x86.json")
    assert again.knows(one)
    assert not again.knows(two)
    with monkeypatch.context() as context:
        context.setattr(x86, "own_sources", lambda: "another")
        assert not again.knows(one)
    assert [row["ours"]["host"]["speedup"] for row in again.data["networks"]] == [2.0, 1.0]
    assert json.loads((tmp_path / "x86.json").read_text())["machine"] == MACHINE

    monkeypatch.setattr(x86, "describe_machine", lambda: {**MACHINE, "processor": "Q"})
    with pytest.raises(InputError, match=r"was measured on .*'P'.* this is .*'Q'.*--output"):
        x86.Report(tmp_path / "x86.json")


def test_of_the_choice_what_other_sources_chose_is_dropped(
    x86: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x86, "describe_machine", lambda: MACHINE)
    report = x86.Report(tmp_path / "x86.json")
    for section in ("choice", "ragged"):
        report.put(section, [{"workload": "a", "target": "host", "kind": "k", "channels": 1, "side": 1}])
    monkeypatch.setattr(x86, "own_sources", lambda: "another")
    for section in ("choice", "ragged"):
        for workload in ("b", "c"):
            report.put(section, [{"workload": workload, "target": "host", "kind": workload, "channels": 1, "side": 1}])
    assert [row["workload"] for row in report.data["choice"]] == ["b", "c"]
    assert [row["workload"] for row in report.data["ragged"]] == ["a", "b", "c"]


@pytest.mark.parametrize("words", [["--against", "abacus"], ["--against", "onnxruntime,openvino-avx"]])
def test_unknown_peers(x86: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["x86.py", *words])
    with pytest.raises(InputError, match=r"unknown; known are onnxruntime, openvino, .*openvino-avx2"):
        x86.read_options()


def test_sections_are_told_from_networks(x86: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x86.py", "cold", "ds_cnn", "--threads", "2", "--against", "stock-tvm"])
    options = x86.read_options()
    assert (options.sections, options.networks, options.threads, options.against) == (["cold"], ["ds_cnn"], [2], ["stock-tvm"])
