"""Benchmarks: what is compared within a round, and the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sepwise.lowering import bench as benchmark
from sepwise.lowering import estimate
from sepwise.lowering.bench import bench
from sepwise.lowering.device import get as get_device
from sepwise.lowering.estimate import missing
from sepwise.lowering.remote import Board
from sepwise.lowering.roofline import roof_of_facts
from sepwise.passes.errors import InputError


def test_unknown_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Peer 'abacus': unknown; known are onnxruntime, openvino, ncnn, mnn, iree, torch-compile, stock-tvm"):
        bench(tmp_path / "m.onnx", against=("abacus",))


def test_a_peer_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "missing_packages", lambda peer: [peer])
    with pytest.raises(InputError, match=r"Peer 'ncnn': ncnn is not installed here; install it with: pip install 'sepwise\[peers\]'"):
        bench(tmp_path / "m.onnx", against=("ncnn",))


def test_peers_under_emulation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="peers run natively only"):
        bench(tmp_path / "m.onnx", target="cortex-a72", against=("onnxruntime",))


def test_report_of_a_small_network(zoo_file: Callable[..., Path]) -> None:
    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    found = bench(path, against=("onnxruntime", "stock-tvm"), rounds=2)
    assert [runtime.name for runtime in found.runtimes] == ["sepwise", "onnxruntime", "stock-tvm"]
    assert set(found.speedup) == {"onnxruntime", "stock-tvm"}
    assert all(ratio > 0 for ratio in found.speedup.values())
    assert found.macs == sum(kernel.macs for kernel in found.kernels)
    json = found.to_json()
    assert set(json) == {
        "model", "target", "method", "threads", "macs", "strategy_mac_share", "runtimes", "speedup", "kernels", "notes",
        "float16_mac_share", "records_used", "roof", "whole_us", "kernels_us",
    }  # fmt: skip
    assert {"name", "version", "median_us", "minimum_us", "p90_us", "runs"} <= set(json["runtimes"][0])
    assert {"name", "nodes", "strategy", "median_us", "macs", "roofline"} <= set(json["kernels"][0])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_profile_measures_the_roof(zoo_file: Callable[..., Path], threads: int) -> None:
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), rounds=1, threads=threads, profile=True)
    assert found.roof is not None
    assert found.roof.origin == "measured"
    assert found.whole_us > 0
    assert found.kernels_us >= max(kernel.median_us for kernel in found.kernels)
    for kernel in found.kernels:
        assert kernel.attained == kernel.attainable_us / kernel.median_us > 0
        assert kernel.roofline == pytest.approx(kernel.macs / kernel.median_us / found.roof.macs_per_unit)
        assert kernel.bound in ("compute", *(level.name for level in found.roof.levels))


def test_without_a_profile_nothing_is_said_of_a_clock_that_varies(zoo_file: Callable[..., Path]) -> None:
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), rounds=1)
    assert (found.roof, found.whole_us, found.kernels_us) == (None, None, None)
    assert {kernel.attained for kernel in found.kernels} == {kernel.bound for kernel in found.kernels} == {None}


@pytest.mark.parametrize(
    ("body", "tail", "strategies"),
    [
        ("[act] r = Relu (x) [last] i = NonZero (r)", ("last",), ["generic", "relax-vm"]),
        ("[all] i = NonZero (x)", ("all",), ["relax-vm"]),
    ],
    ids=["head and tail", "nothing but a tail"],
)
def test_the_tail_counts(tmp_path: Path, body: str, tail: tuple[str, ...], strategies: list[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[3,40] x) => (int64[m,n] i) {{ {body} }}"""), path)
    found = bench(path, against=("onnxruntime",), rounds=1)
    assert [kernel.strategy for kernel in found.kernels] == strategies
    assert (found.kernels[-1].name, found.kernels[-1].nodes) == ("tail", tail)
    assert found.runtimes[0].minimum_us > 0
    assert found.speedup["onnxruntime"] > 0


@pytest.mark.emulated
def test_report_under_emulation(zoo_file: Callable[..., Path]) -> None:
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), target="cortex-a72", cores=("cortex-a53",))
    assert found.method == "emulated"
    (ours,) = found.runtimes
    for counted in ("instructions", "loads", "stores", "l1_misses", "l2_misses"):
        assert getattr(ours, counted) == sum(getattr(kernel, counted) for kernel in found.kernels)
    assert ours.loads + ours.stores < ours.instructions
    assert ours.instructions_per_mac == ours.instructions / found.macs
    assert not found.speedup
    for core in ("cortex-a72", "cortex-a53"):
        if missing(get_device(core)) is None:
            assert ours.estimated_cycles[core] == sum(kernel.estimated_cycles[core] for kernel in found.kernels)
            assert all(kernel.estimated_cycles[core] >= kernel.macs / get_device(core).lanes for kernel in found.kernels)
    assert found.roof is not None
    assert (found.roof.origin, found.roof.unit) == ("facts", "cycles")
    for kernel in found.kernels:
        assert kernel.attainable_cycles >= kernel.macs / found.roof.macs_per_unit
        estimated = kernel.estimated_cycles["cortex-a72"]
        assert kernel.attained == (kernel.attainable_cycles / estimated if estimated else None)
    assert ours.estimated_cycles.keys() == {"cortex-a72", "cortex-a53"}


@pytest.mark.emulated
@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72"])
def test_kernels_keep_to_their_registers(tmp_path: Path, core: str) -> None:
    """Of 4 lanes each, 0.25 instructions per multiply-accumulate multiply and add; a tile that spills takes 0.35 and more."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    inverted_residual (float[1,32,28,28] x) => (float[1,32,28,28] y) <float low = {0.0}, float high = {6.0}>
    {
      a = Conv (x, expand)
      b = Clip (a, low, high)
      c = Conv <group = 192, pads = [1, 1, 1, 1]> (b, depthwise)
      d = Clip (c, low, high)
      y = Conv (d, project)
    }""")
    for name, shape in {"expand": (192, 32, 1, 1), "depthwise": (192, 1, 3, 3), "project": (32, 192, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    path = tmp_path / "inverted_residual.onnx"
    onnx.save(model, path)
    assert 0.25 < bench(path, target=core).runtimes[0].instructions_per_mac < 0.34


@pytest.mark.emulated
def test_counts_without_an_estimate(zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_find_tools", lambda: None)
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), target="cortex-a72")
    assert found.notes == ("No estimate: llvm-mca is missing. Install it with `apt-get install llvm-19`.",)
    assert found.runtimes[0].instructions > 0
    assert found.runtimes[0].l1_misses > 0
    assert found.runtimes[0].estimated_cycles == {"cortex-a72": None}
    assert {kernel.estimated_cycles["cortex-a72"] for kernel in found.kernels} == {None}


@pytest.mark.emulated
def test_scalable_vectors_have_instructions_alone(zoo_file: Callable[..., Path]) -> None:
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), target="neoverse-v1", cores=("neoverse-v2",))
    (ours,) = found.runtimes
    assert "scalable depthwise" in {kernel.strategy for kernel in found.kernels}
    assert ours.instructions == sum(kernel.instructions for kernel in found.kernels) > 0
    assert {ours.loads, ours.stores, ours.l1_misses, ours.l2_misses} == {None}
    assert ours.estimated_cycles == {"neoverse-v1": None, "neoverse-v2": None}
    assert found.notes == (
        "Target 'neoverse-v1': no estimate, qemu does not show what scalable vectors load and store.",
    )


@pytest.mark.emulated
def test_a_core_with_scalable_vectors_that_ran_none_is_counted_like_others(zoo_file: Callable[..., Path]) -> None:
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), target="neoverse-v2", cores=("graviton4",))
    (ours,) = found.runtimes
    assert not any("scalable" in kernel.strategy for kernel in found.kernels)
    for counted in ("loads", "stores", "l1_misses", "l2_misses"):
        assert getattr(ours, counted) == sum(getattr(kernel, counted) for kernel in found.kernels)
    assert 0 < ours.loads + ours.stores < ours.instructions
    for core, cycles in ours.estimated_cycles.items():
        lacking = missing(get_device(core))
        assert (cycles is None, lacking in found.notes) == (lacking is not None, lacking is not None)


def test_one_thread_is_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Target 'cortex-a72': is emulated here, where one thread is counted; leave --threads 2 out"):
        bench(tmp_path / "m.onnx", target="cortex-a72", threads=2)


@pytest.mark.parametrize("target", ["cortex-a72", "cortex-m7"])
def test_what_unicorn_counts(zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("PATH", "")
    if not get_device(target).emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    found = bench(zoo_file("separable_block", shape=(1, 8, 16, 16)), target=target)
    (ours,) = found.runtimes
    for counted in ("instructions", "loads", "stores"):
        assert getattr(ours, counted) == sum(getattr(kernel, counted) for kernel in found.kernels) > 0
    assert all(kernel.load_bytes >= 4 * kernel.loads > 0 and kernel.store_bytes > 0 for kernel in found.kernels)
    assert {ours.l1_misses, ours.l2_misses, *ours.estimated_cycles.values()} == {None}
    reason = {"cortex-a72": "qemu-aarch64 is missing and unicorn models no caches", "cortex-m7": "the cycles of cortex-m7 are not modelled"}
    assert [reason[target] in note for note in found.notes] == [True]


def test_cores_beside_a_native_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Target 'host': runs here and is measured"):
        bench(tmp_path / "m.onnx", cores=("cortex-a72",))


@pytest.mark.parametrize(
    ("target", "core", "reason"),
    [("cortex-a72", "x86-64-v3", r" \(x86_64-.*, not aarch64-.*\)"), ("cortex-a76", "cortex-a53", ", it has no asimddp, asimdhp, atomics")],
)
def test_cores_that_do_not_run_the_code_are_refused(tmp_path: Path, target: str, core: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"Core '{core}': does not run code for {target}{reason}"):
        bench(tmp_path / "m.onnx", target=target, cores=(core,))


@pytest.mark.parametrize("target", ["host", pytest.param("rpi4", marks=pytest.mark.emulated)])
def test_a_profile_of_a_board_has_the_roof_of_its_facts(
    zoo_file: Callable[..., Path], board_server: Callable[..., Any], target: str
) -> None:
    path, device = zoo_file("separable_block", shape=(1, 8, 16, 16)), get_device(target)
    with board_server(target) as server, Board(("127.0.0.1", server.port)) as board:
        found = bench(path, target=target, rounds=1, threads=2, profile=True, board=board)
    assert (found.method, found.roof) == ("remote", roof_of_facts(device, 2, unit="us") if device.clock_hz else None)
    assert found.whole_us > 0
    assert found.kernels_us >= max(kernel.median_us for kernel in found.kernels)
    for kernel in found.kernels:
        assert kernel.attained == (kernel.attainable_us / kernel.median_us if device.clock_hz else None)
