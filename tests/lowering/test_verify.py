"""The verifier: right networks pass, and deliberately wrong kernels fail under their names."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm_ffi
from tvm import te, tirx

from sepwise.lowering import build, compute, device, tiling, verify
from sepwise.lowering.program import Home
from sepwise.lowering.strategies import linear, packing
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.depthwise import DepthwiseStrategy
from sepwise.lowering.strategies.depthwise_tile import DepthwiseTileStrategy
from sepwise.lowering.strategies.separable import SeparableStrategy
from sepwise.lowering.strategies.tiles import RowTile
from sepwise.lowering.verify import verify_model
from sepwise.passes import convert_float16
from sepwise.passes.equivalence import Check, Verification, sample_inputs
from sepwise.passes.errors import InputError

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
HOST = device.get("host")

# 13 channels fill no block of any device, 9 x 9 pixels no tile of two or four.
NETWORK = HEAD + """
small (float[1,13,9,9] x) => (float[1,5] y, float[1,13,9,9] r)
<float[13,1,3,3] w0, float[13] b0, float[21,13,1,1] w1, float[21] g, float[21] h, float[21] m, float[21] var,
 float[13,21,1,1] w2, float[13] b2, float[5,13] u, float[5] c>
{
  [dw] a = Conv <group = 13, pads = [1,1,1,1]> (x, w0, b0)
  [act0] a6 = Relu (a)
  [pw] d = Conv (a6, w1)
  [bn] n = BatchNormalization (d, g, h, m, var)
  [act1] n6 = HardSwish (n)
  [project] p = Conv (n6, w2, b2)
  [add] r = Add (x, p)
  [pool] q = GlobalAveragePool (r)
  [flat] f = Flatten (q)
  [fc] y = Gemm <transB = 1> (f, u, c)
}
"""


def failed(found: Verification, scope: str) -> list[Check]:
    return [check for check in found.checks if check.scope == scope and check.status == "failed"]


def kernels_of(found: Verification, node: str) -> list[Check]:
    return [check for check in found.checks if check.scope == "kernel" and node in check.nodes]


@pytest.fixture(scope="module")
def right(network: Callable[..., ir.Model]) -> Verification:
    return verify_model(network(NETWORK), HOST)


def test_a_right_network_passes(right: Verification) -> None:
    assert right.passed, [check for check in right.checks if not check.passed]
    assert right.worst_ratio is not None
    assert 0 < right.worst_ratio <= 1
    assert (right.model, right.target) == ("small", "host")


def test_a_rewritten_branch_that_no_input_takes_is_no_proof(network: Callable[..., ir.Model]) -> None:
    model = network(
        HEAD
        + """branch (float[1,4,5,5] x) => (float[1,4,5,5] y) <float far = {1e9}, float[4,4,1,1] w, float[4] s, float[4] v> {
      m = ReduceMean <keepdims = 0> (x)
      c = Greater (m, far)
      [choice] y = If (c) <
        then_branch = t () => (float[1,4,5,5] a) { q = Conv (x, w) a = BatchNormalization (q, s, s, s, v) },
        else_branch = e () => (float[1,4,5,5] b) { b = Relu (x) }
      >
    }"""
    )
    found = verify_model(model, HOST)
    unproven = [check for check in found.checks if check.status != "passed"]
    assert [(check.scope, check.name, check.status) for check in unproven] == [("graph", "then_branch of If 'choice'", "skipped")]
    assert not found.passed


WIDE = {
    "kernels alone": """wide (double[1,3,9,9] x) => (double[1,8,9,9] y) <double[8,3,3,3] w, double[8] b, double low = {0.1}, double high = {0.7}> {
      c = Conv <pads = [1,1,1,1]> (x, w, b)
      y = Clip (c, low, high)
    }""",
    "kernels and a tail": """wide (double[2,30] x) => (double[2,8] y) <double[30,8] w> {
      m = MatMul (x, w)
      y = Softmax (m)
    }""",
    "both types": """wide (float[2,30] x) => (double[2,30] y, float[2,30] z) <double low = {0.1}> {
      z = Relu (x)
      d = Cast <to = 11> (z)
      y = Add (d, d)
    }""",
    "scalar limits": """boxes (float[1,6,4] b, float[1,2,6] x) => (int64[n,3] i, float[1,2,6] s)
    <int64 most = {3}, float iou = {0.5}, float least = {0.4}> {
      s = Sigmoid (x)
      i = NonMaxSuppression (b, s, most, iou, least)
    }""",
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_other_types_pass(name: str) -> None:
    proto = onnx.parser.parse_model(HEAD + WIDE[name])
    rng = np.random.default_rng(0)
    for value in proto.graph.value_info:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape), value.name))
    del proto.graph.value_info[:]
    found = verify_model(ir.from_proto(proto), HOST)
    assert found.passed, [check for check in found.checks if not check.passed]
    assert {check.scope for check in found.checks} >= {"kernel", "model"}


STRESSED = {
    # A part of the domain, gates that are 0 times infinity somewhere, sums of squares, whole numbers, a mean of its own.
    "domains": """domains (float[2,8,6,7] x, int64[3] i) => (float[2,8,6,7] s, float[2,8,6,7] l, float[2,8,6,7] d, float[2,8,6,7] n,
    float[2,3,6,7] g, float[2,8,6,7] e, float[2,8,1,1] q)
    <float[8] ones, float[8] zeros> {
      s = Sqrt (x)
      l = Log (s)
      a = Add (x, l)
      d = Div (x, a)
      n = InstanceNormalization (x, ones, zeros)
      g = Gather <axis = 1> (x, i)
      t = Softmax <axis = 1> (x)
      h = Exp (x)
      e = Mul (t, h)
      q = ReduceL2 <axes = [2, 3]> (x)
    }""",
    "gates": """gates (float[1,5,9,9] x) => (float[1,5,9,9] y) <float[5,1,3,3] w0, float[5,5,1,1] w1, float[5] b1, float[5,5,1,1] w2> {
      c0 = Conv <group = 5, pads = [1,1,1,1]> (x, w0)
      s0 = Sigmoid (c0)
      a0 = Mul (c0, s0)
      c1 = Conv (a0, w1, b1)
      a1 = HardSwish (c1)
      c2 = Conv (a1, w2)
      t2 = Tanh (c2)
      e2 = Elu (t2)
      y = Add (e2, x)
    }""",
    # One node in several kernels, among whose taps are zeros: NaN is not where a direct kernel has it.
    "several kernels": """transposed (float[1,5,6,7] x) => (float[1,4,12,14] y) <float[5,4,3,3] w0, float[4] b0> {
      c = ConvTranspose <strides = [2,2], pads = [1,1,1,1], output_padding = [1,1]> (x, w0, b0)
      y = Relu (c)
    }""",
}  # fmt: skip


@pytest.mark.parametrize("name", STRESSED)
def test_right_kernels_pass_on_inputs_that_hurt(name: str, network: Callable[..., ir.Model]) -> None:
    header = HEAD.replace("18", "16") if name == "domains" else HEAD
    found = verify_model(network(header + STRESSED[name]), HOST)
    kernels = [check for check in found.checks if check.scope == "kernel"]
    assert kernels
    assert all(check.passed for check in kernels), [check for check in kernels if not check.passed]


def test_a_limit_that_is_never_reached_is_found_and_reproduced(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is right on all that reaches it within the network, so it is cut out with what was drawn for it."""
    activate = compute.activate

    def wrong(activation: Any, value: Any) -> Any:
        return activate(replace(activation, parameters=(0.0, 500.0)) if activation and activation.kind == "clip" else activation, value)

    text = """far (float[1,5,9,9] x) => (float[1,5,9,9] y) <float[5,5,1,1] w0, float low = {0.0}, float high = {400.0}> {
      s = Sigmoid (x)
      [pw] c = Conv (s, w0)
      y = Clip (c, low, high)
    }"""
    assert verify_model(network(HEAD + text), HOST).passed
    monkeypatch.setattr(compute, "activate", wrong)
    found = verify_model(network(HEAD + text), HOST, bisect=True)
    (check,) = failed(found, "kernel")
    assert found.kernel_inputs[check.worst_input or 0] in ("knees", "impulses")
    assert "fed" in check.reason
    assert not failed(found, "model")
    assert found.reproducer is not None
    assert found.reproducer.reproduces
    assert max(float(np.abs(array).max()) for array in found.reproducer.inputs.values()) > 1, "no sigmoid gives that"


def test_every_scope_is_checked(right: Verification) -> None:
    assert {check.scope for check in right.checks} == {"graph", "kernel", "model"}
    covered = {node for check in right.checks if check.scope == "kernel" for node in check.nodes}
    assert {"dw", "act0", "pw", "bn", "act1", "project", "add", "pool", "fc"} <= covered
    assert any(check.name.startswith("fold_batch_norm") for check in right.checks)


def test_what_a_report_shows_is_there(right: Verification) -> None:
    """The passes' log, each kernel's strategy, each check's elements and the values at its worst one."""
    log = {each.name: each for each in right.passes}
    of_passes = [check for check in right.checks if check.pass_name is not None]
    assert {check.pass_name for check in of_passes} <= {"canonicalize", *log}
    assert log["fold_batch_norm"].fired == 1
    assert right.inputs == ("normal", "uniform", "large")
    assert right.kernel_inputs == ("oracle", "knees", "impulses", "nonfinite")
    for check in right.checks:
        assert (check.strategy is not None) == (check.scope == "kernel")
        assert (check.pass_name is not None or check.name == "all passes: parts") == (check.scope == "graph")
        assert sum(check.histogram) > 0
        assert check.worst_tensor
        assert check.worst_input in range(len(right.kernel_inputs if check.scope == "kernel" else right.inputs))
        assert check.computed is not None
        assert abs(check.computed - check.expected) <= check.max_abs_error


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3"])
def test_other_devices_of_this_machine(target: str, network: Callable[..., ir.Model]) -> None:
    there = device.get(target)
    missing = device.missing_flags(there)
    if missing:
        pytest.skip(f"this processor cannot run {target}: {', '.join(missing)} missing; nothing installs it")
    found = verify_model(network(NETWORK), there)
    assert found.passed, [check for check in found.checks if not check.passed]


@pytest.mark.emulated
def test_an_emulated_device(network: Callable[..., ir.Model]) -> None:
    cortex_a72 = device.get("cortex-a72")
    if cortex_a72.emulated and shutil.which(str(cortex_a72.emulator)) is None:
        pytest.skip(f"{cortex_a72.emulator} is missing: apt-get install qemu-user")
    found = verify_model(network(NETWORK), cortex_a72)
    assert found.passed, [check for check in found.checks if not check.passed]
    assert found.target == "cortex-a72"


@pytest.fixture(scope="module")
def float16_device() -> device.Device:
    found = device.get("cortex-a76")
    if found.emulated and shutil.which(str(found.emulator)) is None:
        pytest.skip(f"{found.emulator} is missing: apt-get install qemu-user")
    return found


@pytest.mark.emulated
def test_a_network_in_float16(network: Callable[..., ir.Model], float16_device: device.Device) -> None:
    """The conversion by its own check, kernels and network by float16: each beyond what float32 explains."""
    found = verify_model(network(NETWORK), float16_device, float16=True)
    assert found.passed, [check for check in found.checks if not check.passed]
    single = verify_model(network(NETWORK), float16_device)
    converted = [check for check in found.checks if check.pass_name == "convert_float16"]
    assert {check.name for check in converted} == {"convert_float16: y", "convert_float16: r"}
    assert all(check.rms_error and check.worst_ratio for check in converted)
    assert "convert_float16" not in {check.pass_name for check in single.checks}
    in_float16 = [check for check in found.checks if check.strategy not in (None, "generic")]
    assert {node for check in in_float16 for node in check.nodes} >= {"dw", "pw", "project", "add", "fc"}
    bounds = {check.nodes: check.bound for check in single.checks if check.scope == "kernel"}
    assert all(check.bound > 1000 * bounds[check.nodes] for check in in_float16 if check.nodes in bounds)
    assert [note.split(":")[0] for note in found.notes] == ["y", "r"]
    assert all(1e-5 < float(note.split(" by ")[1].split()[0]) < 1e-2 for note in found.notes)
    assert single.notes == ()
    errors = [each.checks[-1].rms_error for each in (found, single)]
    assert errors[0] > 1000 * errors[1] > 0


def test_float16_is_refused_where_nothing_computes_in_it(network: Callable[..., ir.Model]) -> None:
    with pytest.raises(InputError, match=r"Target 'cortex-a72': its core \(cortex-a72\) has no float16 arithmetic"):
        verify_model(network(NETWORK), device.get("cortex-a72"), float16=True)


def test_the_json(right: Verification) -> None:
    fields = json.loads(json.dumps(right.to_json()))
    assert set(fields) >= {"model", "target", "passed", "worst_ratio", "checks"}
    wanted = {"scope", "name", "nodes", "status", "max_abs_error", "bound", "worst_ratio", "worst_index", "reproducer"}
    assert all(set(check) >= wanted for check in fields["checks"])


def test_given_inputs_are_used(network: Callable[..., ir.Model]) -> None:
    model = network(NETWORK)
    feed = {name: array.astype(np.float32) for name, array in sample_inputs(model, 5, "knees").items()}
    found = verify_model(model, HOST, inputs=feed)
    assert found.passed
    assert found.inputs == ("given",)
    assert {answer.output: answer.agreeing + answer.undecided for answer in found.agreement} == {"y": 1, "r": 81}


def test_a_file(network: Callable[..., ir.Model], tmp_path: Path) -> None:
    """It is called by its name, not by that of its graph."""
    onnx.save(ir.to_proto(network(NETWORK)), tmp_path / "file.onnx")
    found = verify.verify(tmp_path / "file.onnx", threads=2)
    assert found.passed
    assert found.model == "file"
    assert found.checks[-1].name.startswith("file: ") or found.checks[-1].name == "file"
    with pytest.raises(InputError, match="Target 'z80': unknown"):
        verify.verify(tmp_path / "file.onnx", target="z80")


def test_what_is_skipped_has_not_passed() -> None:
    good = Check("kernel", "k", (), "passed", 0.0, 1.0, 0.5, (0,))
    skipped = replace(good, status="skipped", worst_ratio=None)
    endless = replace(good, status="failed", worst_ratio=None)
    assert Verification("m", "host", (good,)).passed
    assert not Verification("m", "host", (good, skipped)).passed
    assert not Verification("m", "host", ()).passed
    assert Verification("m", "host", (good, skipped)).worst_ratio == 0.5
    assert Verification("m", "host", (good, endless)).worst_ratio is None
    assert Verification("m", "host", ()).worst_ratio is None


# Mutants ---------------------------------------------------------------------------------------------------------------


def on_weights(change: Callable[[np.ndarray], None], applies: Callable[[np.ndarray], bool]) -> Callable[..., Any]:
    """Packs weights that were changed first."""

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        pack = packing.pack_weight

        def wrong(weight: np.ndarray, lanes: int, together: int) -> np.ndarray:
            if applies(weight):
                weight = weight.copy()
                change(weight)
            return pack(weight, lanes, together)

        monkeypatch.setattr(packing, "pack_weight", wrong)

    return install


def is_depthwise(weight: np.ndarray) -> bool:
    return bool(weight.shape[1] == 1)


def lose_a_tap(weight: np.ndarray) -> None:
    weight[:, :, 2, 1] = 0


def repeat_the_last_lane(weight: np.ndarray) -> None:
    weight[-1] = weight[-2]


def swap_rows_and_columns(weight: np.ndarray) -> None:
    weight[...] = weight.swapaxes(2, 3).copy()


def change_a_weight_in_its_tenth_bit(weight: np.ndarray) -> None:
    weight[-1, -1] *= 1 + 2.0**-10


def round_to_half(weight: np.ndarray) -> None:
    weight[...] = weight.astype(np.float16)


def shift_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packing.pack_bias
    monkeypatch.setattr(packing, "pack_bias", lambda bias, lanes: pack(np.roll(bias, 1) if len(bias) == 13 else bias, lanes))


def forget_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    epilogue = compute._Form.epilogue

    def wrong(self: Any, total: Any, shape: Any, bias: Any, residual: Any, post: Any) -> Any:
        return epilogue(self, total, shape, bias, None, post)

    monkeypatch.setattr(compute._Form, "epilogue", wrong)


def forget_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "activate", lambda activation, value: value)


def read_a_pixel_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The border is one wider at the begin: everything moves by a pixel."""
    stage_input = compute._Form.stage_input

    def wrong(self: Any, source: Any, true_input: Any) -> Any:
        stage = replace(self.stage, pads_begin=(0, *self.stage.pads_begin[1:]))
        return stage_input(replace(self, stage=stage), source, true_input)

    monkeypatch.setattr(compute._Form, "stage_input", wrong)


def lose_the_last_reduction_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reduce_axis = te.reduce_axis

    def wrong(domain: tuple[int, int], name: str = "rv") -> Any:
        return reduce_axis((domain[0], domain[1] - 1) if name == "kw" and domain[1] == 3 else domain, name=name)

    monkeypatch.setattr(te, "reduce_axis", wrong)


def move_the_last_tile_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tile starts one element early, so the last element of the axis is never computed."""
    clamp_loop = tiling._clamp_loop

    def wrong(loop: tirx.For) -> tirx.Stmt:
        marks = dict(loop.annotations)
        if tiling.CLAMP_LOOP in marks:
            extent, tile = map(int, str(marks[tiling.CLAMP_LOOP]).split(","))
            marks[tiling.CLAMP_LOOP] = f"{extent - 1},{tile}"
        return clamp_loop(tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, loop.thread_binding, marks))

    monkeypatch.setattr(tiling, "_clamp_loop", wrong)
    monkeypatch.setattr(DepthwiseStrategy, "tiles", lambda *_: [RowTile(9, 4, 1)])
    for other in (DepthwiseTileStrategy, SeparableStrategy):
        monkeypatch.setattr(other, "applies", lambda *_: Refusal("rows, one convolution at a time"))


def lose_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = linear._packer

    def wrong(workload: Any, tile: Any) -> Any:
        pack = packer(workload, tile)

        def swapped(stages: Any) -> list[np.ndarray]:
            weights, bias = pack(stages)
            weights = weights.copy()
            weights[-1, -1, -1] = 0
            return [weights, bias]

        return swapped

    monkeypatch.setattr(linear, "_packer", wrong)


MUTANTS = {
    "lost tap": (on_weights(lose_a_tap, is_depthwise), "dw"),
    "last lane": (on_weights(repeat_the_last_lane, is_depthwise), "dw"),
    "last lane of the pointwise stage": (on_weights(repeat_the_last_lane, lambda weight: weight.shape[0] == 21), "pw"),
    "transposed kernel": (on_weights(swap_rows_and_columns, is_depthwise), "dw"),
    "one weight by a thousandth": (on_weights(change_a_weight_in_its_tenth_bit, lambda w: w.shape[:2] == (13, 21)), "project"),
    "half precision": (on_weights(round_to_half, lambda weight: weight.shape[:2] == (13, 21)), "project"),
    "bias of another lane": (shift_the_bias, "project"),
    "residual": (forget_the_residual, "add"),
    "activation": (forget_activations, "act1"),
    "border": (read_a_pixel_too_far, "dw"),
    "reduction": (lose_the_last_reduction_step, "dw"),
    "last tile": (move_the_last_tile_too_far, "dw"),
    "matrix product": (lose_a_feature, "fc"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_kernel_is_found_and_named(
    mutant: str, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    install, node = MUTANTS[mutant]
    install(monkeypatch)
    found = verify_model(network(NETWORK), HOST)
    assert not found.passed
    assert not failed(found, "graph"), "the passes were not touched"
    wrong = failed(found, "kernel")
    assert wrong
    assert any(node in check.nodes for check in wrong), f"{node} is not among {[check.nodes for check in wrong]}"
    for check in wrong:
        assert check.worst_ratio is None or check.worst_ratio > 1
        assert check.reason


@pytest.mark.emulated
@pytest.mark.parametrize("mutant", ["lost tap", "last lane", "bias of another lane", "residual", "activation", "matrix product"])
def test_a_wrong_kernel_in_float16_is_found_and_named(
    mutant: str, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, float16_device: device.Device
) -> None:
    install, node = MUTANTS[mutant]
    install(monkeypatch)
    found = verify_model(network(NETWORK), float16_device, float16=True)
    assert not failed(found, "graph"), "the passes were not touched"
    assert any(node in check.nodes for check in failed(found, "kernel"))


@pytest.mark.parametrize("bits", [7, 8])
def test_a_wrong_conversion_is_found(
    bits: int, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, float16_device: device.Device
) -> None:
    """Constants of fewer digits than float16 has."""

    def wrong(array: np.ndarray, *_: object) -> np.ndarray:
        mantissa, exponent = np.frexp(array.astype(np.float64))
        return np.asarray(np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent), np.float16)

    monkeypatch.setattr(convert_float16, "_rounded", wrong)
    found = verify_model(network(NETWORK), float16_device, float16=True)
    assert {check.pass_name for check in failed(found, "graph")} == {"convert_float16"}
    assert [check.status for check in found.checks if check.scope != "graph"] == ["skipped", "skipped"]


def test_a_wrong_conversion_is_narrowed_down(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, float16_device: device.Device
) -> None:
    rounded = convert_float16._rounded

    def wrong(array: np.ndarray, *place: Any) -> Any:
        return rounded(array * 1.01 if array.shape[:2] == (13, 21) else array, *place)

    monkeypatch.setattr(convert_float16, "_rounded", wrong)
    found = verify_model(network(NETWORK), float16_device, float16=True, bisect=True)
    assert found.reproducer is not None
    assert found.reproducer.finding[0] == "The pass convert_float16 is wrong."
    assert "project" in " ".join(found.reproducer.finding)


@pytest.mark.parametrize("mutant", ["lost tap", "last lane of the pointwise stage", "matrix product", "half precision"])
def test_kernels_that_are_right_are_not_blamed(
    mutant: str, network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kernel is fed the oracle's tensors, so errors of others do not reach it."""
    install, node = MUTANTS[mutant]
    install(monkeypatch)
    found = verify_model(network(NETWORK), HOST)
    assert {check.name for check in failed(found, "kernel")} == {check.name for check in kernels_of(found, node)}


def test_nan_out_of_a_pad_lane_is_found(network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reduction that reads pad lanes multiplies them by zero weights; only NaN shows it."""
    sum_of = te.reduce_axis

    def wrong(domain: tuple[int, int], name: str = "rv") -> Any:
        return sum_of((domain[0], domain[1] + 1) if name == "ic" and domain[1] == 13 else domain, name=name)

    monkeypatch.setattr(te, "reduce_axis", wrong)
    placeholder = te.placeholder

    def wider(shape: Any, *args: Any, **keywords: Any) -> Any:
        if keywords.get("name", "").startswith("weight"):
            shape = tuple(14 if int(extent) == 13 else extent for extent in shape)
        return placeholder(shape, *args, **keywords)

    monkeypatch.setattr(te, "placeholder", wider)
    monkeypatch.setattr(packing, "_weight_shape", widened(packing._weight_shape))
    pack = packing.pack_weight
    pads = [(0, 0), (0, 1), (0, 0), (0, 0)]
    monkeypatch.setattr(
        packing, "pack_weight", lambda w, lanes, together: pack(np.pad(w, pads) if w.shape[1] == 13 else w, lanes, together)
    )
    found = verify_model(network(NETWORK), HOST)
    wrong_kernels = failed(found, "kernel")
    assert any("pw" in check.nodes and math.isinf(check.max_abs_error) for check in wrong_kernels), wrong_kernels


def widened(weight_shape: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    def wrong(*args: Any, **keywords: Any) -> tuple[int, ...]:
        return tuple(14 if extent == 13 else extent for extent in weight_shape(*args, **keywords))

    return wrong


def test_a_network_is_not_run_with_a_kernel_that_writes_elsewhere(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    far, lower = 4096, build.lower_kernel

    def wrong(function: tirx.PrimFunc, *rest: Any) -> Any:
        def on_store(store: tirx.BufferStore) -> tirx.Stmt:
            if not store.buffer.same_as(function.params[-1]):
                return store
            return tirx.BufferStore(store.buffer, store.value, [index + far for index in store.indices])

        return lower(function.with_body(tvm_ffi.structural_map(function.body, (tirx.BufferStore, on_store))), *rest)

    monkeypatch.setattr(build, "lower_kernel", wrong)
    found = verify_model(network(HEAD + "small (float[4096] x) => (float[4096] y) { [act] y = Exp (x) }"), HOST, bisect=True)
    (kernel,) = failed(found, "kernel")
    assert "touched byte" in kernel.reason
    model = next(check for check in found.checks if check.scope == "model")
    assert (model.status, found.passed) == ("skipped", False)
    assert kernel.name in model.reason
    assert found.reproducer is not None


def test_a_wrong_program_fails_even_where_kernels_are_right(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two values in one place of the arena: each kernel alone is right, the network is not."""
    place = build._place_values

    def wrong(*arguments: Any, **keywords: Any) -> Any:
        plan, homes = place(*arguments, **keywords)
        arena = {name: home for name, home in homes.items() if home.home is Home.ARENA}
        first = min(home.offset for home in arena.values())
        homes.update({name: replace(home, offset=first) for name, home in arena.items()})
        return plan, homes

    monkeypatch.setattr(build, "_place_values", wrong)
    found = verify_model(network(NETWORK), HOST)
    assert failed(found, "model")
    assert not failed(found, "graph")
