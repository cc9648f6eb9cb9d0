"""Wrong passes, kernels and Programs are narrowed down, and what is written fails by itself."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.lowering import bisect, build, device
from sepwise.lowering.device import Device
from sepwise.lowering.program import Home, Program
from sepwise.lowering.strategies import packing, plain_depthwise
from sepwise.lowering.tail import TailRunner
from sepwise.lowering.verify import verify, verify_model
from sepwise.passes import fold_batch_norm
from sepwise.passes.equivalence import Reproducer, Verification

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
HOST = device.get("host")

# A residual over three layers: the arena holds several values at a time.
NETWORK = HEAD + """
small (float[1,13,9,9] x) => (float[1,13,9,9] y)
<float[13,1,3,3] w0, float[13] b0, float[21,13,1,1] w1, float[21] g, float[21] h, float[21] m, float[21] var,
 float[13,21,1,1] w2, float[13] b2, float[13,13,1,1] w3>
{
  [dw] a = Conv <group = 13, pads = [1,1,1,1]> (x, w0, b0)
  [act0] a6 = Relu (a)
  [pw] d = Conv (a6, w1)
  [bn] n = BatchNormalization (d, g, h, m, var)
  [act1] n6 = HardSwish (n)
  [pool] p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (n6)
  [project] q = Conv (p, w2, b2)
  [soft] s = Softmax <axis = 1> (q)
  [sum] t = Add (s, a6)
  [last] y = Conv (t, w3)
}
"""


TAIL = NETWORK.replace("=> (float[1,13,9,9] y)", "=> (float[1,5,9,9] v, int64[1,5,9,9] i)").replace(
    "w3>", "w3, int64[1] k = {5}>"
).replace("[last] y = Conv (t, w3)", "[last] y = Conv (t, w3)\n  [top] v, i = TopK <axis = 1> (y, k)")
"""TVM's virtual machine runs the last node."""


@pytest.fixture(
    params=["host", pytest.param("cortex-a72", marks=[pytest.mark.emulated, pytest.mark.skipif(
        shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing: apt-get install qemu-user")])]
)  # fmt: skip
def target(request: pytest.FixtureRequest) -> Device:
    """This machine, and one that is emulated."""
    return device.get(request.param)


def narrowed(model: ir.Model, target: Device = HOST) -> tuple[Verification, Reproducer]:
    """Verifies and bisects; the files that are found fail again, and only where they should."""
    found = verify_model(model, target, bisect=True)
    assert not found.passed
    reproducer = found.reproducer
    assert reproducer is not None
    assert reproducer.checks
    failed = {check.name for check in found.checks if check.status == "failed"}
    assert set(reproducer.checks) <= failed
    for part in reproducer.models.values():
        onnx.checker.check_model(part)
    return found, reproducer


def fails_alone(reproducer: Reproducer, target: Device = HOST) -> bool:
    again = verify_model(ir.from_proto(reproducer.models["part.onnx"]), target, inputs=reproducer.inputs)
    return any(check.status == "failed" for check in again.checks)


def test_what_is_right_gives_no_reproducer(network: Callable[..., ir.Model]) -> None:
    found = verify_model(network(NETWORK), HOST, bisect=True)
    assert found.passed
    assert found.reproducer is None
    assert found.to_json()["bisection"] is None


def test_a_wrong_pass(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model behind the pass is wrong too; the first one is named."""
    right = fold_batch_norm.FoldBatchNormPass.rewrite

    def wrong(self: Any, model: ir.Model, match: Any) -> None:
        right(self, model, match)
        for name, value in model.graph.initializers.items():
            if name in ("w1", "pw.weight"):
                array = value.const_value.numpy().copy()
                array.reshape(-1)[5] *= np.float32(1.01)
                value.const_value = ir.tensor(array, name=name)

    monkeypatch.setattr(fold_batch_norm.FoldBatchNormPass, "rewrite", wrong)
    found, reproducer = narrowed(network(NETWORK))
    assert reproducer.finding[0] == "The pass fold_batch_norm is wrong."
    assert reproducer.checks == ("fold_batch_norm: y",)
    assert set(reproducer.nodes) == {"pw", "bn"}
    assert reproducer.reproduces
    assert {node.op_type for node in reproducer.models["before.onnx"].graph.node} == {"Conv", "BatchNormalization"}
    failed = [check.pass_name for check in found.checks if check.scope == "graph" and not check.passed]
    assert len(failed) > 1


def lose_a_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of depthwise weights, packed or plain."""
    pack, pack_plain = packing.pack_weight, plain_depthwise._pack

    def without(weight: np.ndarray) -> np.ndarray:
        weight = weight.copy()
        weight[:, :, 2, 1] = 0
        return weight

    def wrong(weight: np.ndarray, lanes: int, together: int) -> np.ndarray:
        return pack(without(weight) if weight.shape[1] == 1 else weight, lanes, together)

    monkeypatch.setattr(packing, "pack_weight", wrong)
    monkeypatch.setattr(plain_depthwise, "_pack", lambda stages: pack_plain([(without(weight), bias) for weight, bias in stages]))


def test_a_wrong_kernel(target: Device, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    lose_a_tap(monkeypatch)
    found, reproducer = narrowed(network(NETWORK), target)
    assert "dw" in reproducer.nodes
    assert reproducer.reproduces
    assert fails_alone(reproducer, target)
    (check,) = (check for check in found.checks if check.name in reproducer.checks)
    assert (check.scope, check.nodes) == ("kernel", reproducer.nodes)
    assert {"kernel": check.name, "strategy": check.strategy, "target": target.name}.items() <= reproducer.workload.items()
    assert reproducer.arguments[:4] == ("verify", "part.onnx", "--target", target.name)


def test_a_wrong_kernel_in_front_of_a_tail(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    lose_a_tap(monkeypatch)
    _, reproducer = narrowed(network(TAIL))
    assert "dw" in reproducer.nodes
    assert reproducer.reproduces


def test_the_workload_is_named_in_full(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file alone computes the same stages, in other layouts perhaps: its inputs and outputs are plain."""
    lose_a_tap(monkeypatch)
    _, reproducer = narrowed(network(NETWORK))
    family, sizes, stages, _, dtypes = str(reproducer.workload["workload"]).split("/")
    assert (family, sizes, dtypes) == ("conv", "n1x9x9", "float32")
    assert stages.startswith("13>13g13[3s1p1.1d1,3s1p1.1d1]:relu")
    alone, _ = build.build_program(ir.from_proto(reproducer.models["part.onnx"]), HOST)
    assert any(f"/{stages}/" in call.workload for call in alone.calls)
    assert "Tile(" in str(reproducer.workload["tile"])


def test_the_input_is_the_smallest(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel of one channel under the lost tap is enough."""
    lose_a_tap(monkeypatch)
    _, reproducer = narrowed(network(NETWORK))
    (array,) = reproducer.inputs.values()
    assert array.shape == (1, 13, 9, 9)
    assert np.count_nonzero(array) == 1


def test_a_kernel_that_is_right_by_itself_is_said_to_be(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault needs the whole model: there, and only there, weights are packed wrongly."""
    pack = packing.pack_weight
    rest = {"calls": 4}

    def wrong(weight: np.ndarray, lanes: int, together: int) -> np.ndarray:
        rest["calls"] -= 1
        if rest["calls"] >= 0 and weight.shape[1] == 1:
            weight = np.zeros_like(weight)
        return pack(weight, lanes, together)

    monkeypatch.setattr(packing, "pack_weight", wrong)
    _, reproducer = narrowed(network(NETWORK))
    assert "dw" in reproducer.nodes
    assert not reproducer.reproduces
    assert "do NOT show it" in reproducer.text[-1]


def misplace(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a6`, which is read late, lies where `p` is written meanwhile."""
    place = build._place_values

    def wrong(*arguments: Any, **keywords: Any) -> Any:
        plan, homes = place(*arguments, **keywords)
        early, late = homes.get("a6"), homes.get("p")
        if early is not None and late is not None and early.home is late.home is Home.ARENA:
            homes["a6"] = late
        return plan, homes

    monkeypatch.setattr(build, "_place_values", wrong)


def test_a_wrong_memory_plan(target: Device, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel alone is right; both values are named."""
    misplace(monkeypatch)
    found, reproducer = narrowed(network(NETWORK), target)
    assert all(check.scope == "model" for check in found.checks if check.status == "failed")
    assert "in the course of a run" in reproducer.finding[0]
    assert "writes 'p' over 'a6', which it reads" in reproducer.finding[0]
    assert reproducer.checks == (found.checks[-1].name,)
    assert reproducer.reproduces
    assert fails_alone(reproducer, target)


def test_scratch_over_a_value_is_named(c_program: Callable[..., Program]) -> None:
    program = c_program()
    first, second = program.calls
    between = replace(first, name="between", inputs=(), arguments=(), outputs=())
    calls = (first, replace(between, scratch_offset=192), second)
    assert bisect._explain(replace(program, calls=calls), second) == "the scratch of between lies over 'y', which it reads"
    calls = (first, between, second)
    assert bisect._explain(replace(program, calls=calls), second) == "what it reads was overwritten"


def test_calls_in_a_wrong_order(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = build._assemble

    def wrong(*arguments: Any) -> Program:
        program = assemble(*arguments)
        names = [call.name for call in program.calls]
        first = next(place for place, call in enumerate(program.calls) if "project" in call.nodes)
        calls = [*program.calls]
        calls[first : first + 2] = reversed(calls[first : first + 2])
        assert names != [call.name for call in calls]
        return replace(program, calls=tuple(calls))

    monkeypatch.setattr(build, "_assemble", wrong)
    _, reproducer = narrowed(network(NETWORK))
    assert "it reads 'q' before" in reproducer.finding[0]
    assert set(reproducer.nodes) == {"soft", "sum"}


def test_a_wrong_tail(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in front of it are right, so that the files hold nothing of them."""
    run = TailRunner.run

    def wrong(self: TailRunner, values: Any) -> dict[str, np.ndarray]:
        outputs = run(self, values)
        return {**outputs, "v": np.ascontiguousarray(outputs["v"][:, ::-1])}

    monkeypatch.setattr(TailRunner, "run", wrong)
    _, reproducer = narrowed(network(TAIL))
    assert reproducer.nodes == ("top",)
    assert [node.name for node in reproducer.models["part.onnx"].graph.node] == ["top"]
    assert (reproducer.workload["kernel"], reproducer.workload["strategy"]) == ("tail", "relax-vm")
    assert reproducer.reproduces
    assert fails_alone(reproducer)


def test_the_folder_is_enough(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that lay beside the model are in it, and the model may be gone."""
    lose_a_tap(monkeypatch)
    onnx.save(ir.to_proto(network(NETWORK)), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = verify(tmp_path / "net.onnx", bisect=True).save_reproducer(tmp_path / "found")
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "w.bin").unlink()
    assert found.reproducer is not None
    with np.load(tmp_path / "found" / "input.npz") as arrays:
        again = verify(tmp_path / "found" / "part.onnx", inputs=dict(arrays))
    assert any(check.status == "failed" for check in again.checks)
    facts = json.loads((tmp_path / "found" / "workload.json").read_text())
    assert facts == json.loads(json.dumps(found.reproducer.workload))
