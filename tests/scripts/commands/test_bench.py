import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sepwise import api
from sepwise.lowering.bench import Benchmark, KernelTime, RuntimeCount, RuntimeTime

TIMED = Benchmark(
    "net", "host", "native", 2, 1_000_000, 0.995,
    (RuntimeTime("sepwise", "1.0", 1200.0, 1100.0, 1300.0, 50), RuntimeTime("onnxruntime", "1.2", 2500.0, 2400.0, 2600.0, 40)),
    {"onnxruntime": 2.08}, (),
)  # fmt: skip
COUNTED = Benchmark(
    "net", "cortex-a72", "emulated", 1, 1_000_000, 1.0,
    (RuntimeCount("sepwise", "1.0", 512_345, 0.512, 100_001, 50_002, 3003, None, {"cortex-a72": 456_789.0, "cortex-a53": None}),), {}, (),
    ("No estimate for the Cortex-A53.",),
)  # fmt: skip


def answer_with(monkeypatch: pytest.MonkeyPatch, result: Benchmark) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def bench(model: str, **options: Any) -> Benchmark:
        asked.update(model=model, **options)
        return result

    monkeypatch.setattr(api, "bench", bench)
    return asked


def test_times_beside_a_peer(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, TIMED)
    status, out, _ = command("bench", "net.onnx", "--threads", "2", "--against", "onnxruntime, stock-tvm", "--shape", "1,3")
    assert status == 0
    assert asked == {
        "model": "net.onnx", "target": "host", "threads": 2, "against": ("onnxruntime", "stock-tvm"), "shapes": (1, 3), "cores": (),
        "float16": False, "profile": False, "database": None, "rpc": None, "tracker": None, "key": None, "timeout": None,
    }  # fmt: skip
    ours, peer = (next(line for line in out.splitlines() if name in line) for name in ("sepwise 1.0", "onnxruntime 1.2"))
    assert [word for word in ours.split() if word[0].isdigit() or word == "-"][1:] == ["1,200", "1,100", "1,300", "50", "-"]
    assert "2.08" in peer
    assert out.splitlines()[-1] == "99.50 % of 1,000,000 MACs on strategies"


def test_counts_of_an_emulated_target_are_no_times(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, COUNTED)
    status, out, _ = command("bench", "net.onnx", "--target", "cortex-a72")
    assert status == 0
    assert " us" not in out
    assert any({"512,345", "0.512", "100,001", "50,002", "3,003", "-"} <= set(line.split()) for line in out.splitlines())
    assert "sepwise on cortex-a72: 0.46 million cycles, estimated, not measured" in out.splitlines()
    assert "No estimate for the Cortex-A53." in out.splitlines()
    assert "cortex-a53:" not in out


def test_cores_are_handed_on(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, COUNTED)
    command("bench", "net.onnx", "--target", "cortex-a72", "--cores", "cortex-a53, neoverse-n1")
    assert asked["cores"] == ("cortex-a53", "neoverse-n1")


def test_float16_is_handed_on_and_told(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, replace(COUNTED, target="cortex-a76", float16_mac_share=0.75))
    status, out, _ = command("bench", "net.onnx", "--target", "cortex-a76", "--float16")
    assert (status, asked["float16"]) == (0, True)
    assert out.splitlines()[-1] == "100.00 % of 1,000,000 MACs on strategies, 75.00 % in float16"


def test_a_profile_is_asked_for_and_shown(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KernelTime("k0", ("stem.conv", "stem.act"), "dense", 1150.0, 1_000_000, None)
    asked = answer_with(monkeypatch, replace(TIMED, kernels=(kernel,), whole_us=1210.0, kernels_us=1160.0))
    status, out, _ = command("bench", "net.onnx", "--profile")
    assert (status, asked["profile"]) == (0, True)
    assert any("stem.{conv, act}" in line and "1,150" in line for line in out.splitlines())
    assert "kernels of a run add up to 1,160 us, and a whole run takes 1,210 us" in out.splitlines()
    assert "stem" not in command("bench", "net.onnx").out


@pytest.mark.parametrize("result", [TIMED, COUNTED])
def test_json(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, result: Benchmark) -> None:
    answer_with(monkeypatch, result)
    assert json.loads(command("bench", "net.onnx", "--json").out) == json.loads(json.dumps(result.to_json()))
