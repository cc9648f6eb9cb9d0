"""From a model to a Program: what the report says, where values and constants lie, and that the whole computes the network."""

import itertools
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

from sepwise.lowering import artifact, build, device, memory_plan
from sepwise.lowering.build import build_program
from sepwise.lowering.program import BufferRef, Home, Program
from sepwise.lowering.runner import open_runner
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

INVERTED = HEAD + """
inverted (float[2,3,15,15] x) => (float[2,5] y)
<float[9,3,3,3] w, float[9] b, float[18,9,1,1] w0, float[18] b0, float[18,1,3,3] w1, float[18] g, float[18] h, float[18] m,
 float[18] var, float[9,18,1,1] w2, float[9] b2, float[5,9] u, float[5] c>
{
  [stem] s = Conv <strides = [2,2], pads = [1,1,1,1]> (x, w, b)
  [stem_act] t = Clip (s, zero, six)
  [expand] a = Conv (t, w0, b0)
  [expand_act] a6 = Clip (a, zero, six)
  [dw] d = Conv <group = 18, pads = [1,1,1,1]> (a6, w1)
  [bn] n = BatchNormalization (d, g, h, m, var)
  [dw_act] d6 = Clip (n, zero, six)
  [project] p = Conv (d6, w2, b2)
  [add] r = Add (t, p)
  [pool] q = GlobalAveragePool (r)
  [flat] f = Flatten (q)
  [fc] y = Gemm <transB = 1> (f, u, c)
}
""".replace("float[5] c>", "float[5] c, float zero = {0}, float six = {6}>")

SEVERAL = HEAD + """
several (float[1,3,8,8] x, float[1,9,6,6] side) => (float[1,9,6,6] p, float[1,9] q, float[1,9,6,6] r)
<float[9,3,3,3] w, float[9] b, float[9,9,1,1] v, float[9,9,1,1] u, int64[2] axes = {2, 3}>
{
  a = Conv (x, w, b)
  p = Relu (a)
  c = Conv (p, v)
  d = Add (c, side)
  q = ReduceMean <keepdims = 0> (d, axes)
  r = Conv (d, u)
}
"""

REPEATED = HEAD + """
repeated (float[1,8,9,9] x) => (float[1,8,9,9] y)
<float[8,8,3,3] w0, float[8,8,3,3] w1, float[8,8,3,3] w2>
{
  a = Conv <pads = [1,1,1,1]> (x, w0)
  b = Conv <pads = [1,1,1,1]> (a, w1)
  y = Conv <pads = [1,1,1,1]> (b, w2)
}
"""

NETWORKS = {"inverted": INVERTED, "several": SEVERAL, "repeated": REPEATED}
HOST = device.get("host")


@pytest.fixture(scope="module")
def built(network: Callable[..., ir.Model]) -> dict[str, tuple[ir.Model, Program, build.CompileReport]]:
    found = {}
    for name, text in NETWORKS.items():
        model = network(text)
        found[name] = (model, *build_program(model, HOST))
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("target", "threads"), [("host", 1), ("host", 2), ("x86-64-v3", 1), ("x86-64-v2", 1)])
def test_the_program_computes_the_network(
    name: str, target: str, threads: int, network: Callable[..., ir.Model]
) -> None:
    there = device.get(target)
    missing = device.missing_flags(there)
    if missing:
        pytest.skip(f"this processor cannot run {target}: {', '.join(missing)} missing; nothing installs it")
    model = network(NETWORKS[name])
    program, _ = build_program(model, there, threads=threads)
    oracle = Oracle(model)
    feeds = [sample_inputs(model, seed, kind) for seed, kind in enumerate(("normal", "uniform", "knees"))]
    with open_runner(program, threads=threads) as runner:
        outputs = [runner.run(feed) for feed in feeds]
    check = compare_execution(outputs, [oracle.run(f) for f in feeds], [execution_sigma(oracle, f) for f in feeds])
    assert check.passed, check


def test_without_vectors_no_tensor_is_copied(network: Callable[..., ir.Model]) -> None:
    model = network(HEAD + """
    separable (float[1,9,9,9] x) => (float[1,9,9,9] y) <float[9,1,3,3] w, float[9,9,1,1] v>
    {
      a = Conv <group = 9, pads = [1,1,1,1]> (x, w)
      y = Conv (a, v)
    }
    """)
    program, _ = build_program(model, device.get("cortex-m7"))
    assert [call.strategy for call in program.calls].count(build.GENERIC) == 0
    homes = {value.name: value.buffer for value in program.values}
    assert homes["x.NCHW1c"] == BufferRef(Home.INPUT, 0)
    assert homes["y.NCHW1c"] == BufferRef(Home.OUTPUT, 0)
    oracle, feed = Oracle(model), sample_inputs(model, 0)
    with open_runner(program) as runner:
        check = compare_execution([runner.run(feed)], [oracle.run(feed)], [execution_sigma(oracle, feed)])
    assert check.passed, check


def test_the_model_is_left_as_it_is(network: Callable[..., ir.Model]) -> None:
    model = network(INVERTED)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    build_program(model, HOST)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_same_model_gives_the_same_program(network: Callable[..., ir.Model]) -> None:
    one, other = (build_program(network(INVERTED), device.get("cortex-a72"))[0] for _ in range(2))
    assert one.calls == other.calls
    assert one.object_code == other.object_code
    np.testing.assert_array_equal(one.constants, other.constants)


def test_kernels_of_an_earlier_build_are_not_lowered_again(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: build.Lowered = {}
    first, _ = build_program(network(INVERTED), HOST, lowered=lowered)
    assert lowered
    lower, again = build.lower_kernel, []

    def note(function: Any, name: str, *others: Any) -> Any:
        again.append(name)
        return lower(function, name, *others)

    monkeypatch.setattr(build, "lower_kernel", note)
    second, _ = build_program(network(INVERTED), HOST, lowered=lowered)
    assert not {name for name, *_ in lowered} & set(again)
    assert first.object_code == second.object_code
    np.testing.assert_array_equal(first.constants, second.constants)


def test_inputs_and_outputs_are_the_networks(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    for model, program, _ in built.values():
        assert [value.name for value in program.inputs] == [value.name for value in model.graph.inputs]
        assert [value.name for value in program.outputs] == [value.name for value in model.graph.outputs]
        for value, port in zip(program.outputs, model.graph.outputs, strict=True):
            assert value.type.shape == tuple(port.shape or ())
            assert not value.type.layout.packed


def test_every_node_is_in_a_kernel(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    for model, program, _ in built.values():
        covered = {node for call in program.calls for node in call.nodes}
        named = {str(node.name) for node in model.graph if node.name and node.op_type not in ("Flatten", "Constant")}
        assert named <= covered


def test_the_report(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    for name, (_, program, report) in built.items():
        assert (report.model, report.target) == (name, "host")
        assert report.kernels == len(program.calls)
        assert report.generic_convolutions == ()
        assert report.records_used == 0
        assert report.strategy_mac_share == 1.0
        fields = json.loads(json.dumps(report.to_json()))
        assert {"model", "target", "strategy_mac_share", "seconds", "kernels", "records_used"} <= set(fields)


def test_macs_add_up(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    _, program, _ = built["inverted"]
    pixels = 2 * 8 * 8
    assert sum(call.macs for call in program.calls) == pixels * (9 * 27 + 18 * 9 + 18 * 9 + 9 * 18) + 2 * 5 * 9


def test_a_generic_convolution_is_reported(network: Callable[..., ir.Model]) -> None:
    model = network(HEAD + """
    dynamic (float[1,4,6,6] x, float[4,4,3,3] w) => (float[1,4,4,4] y) <float[4,4,1,1] v> { a = Conv (x, w) y = Conv (a, v) }
    """)
    _, report = build_program(model, HOST)
    assert len(report.generic_convolutions) == 1
    assert 0 < report.strategy_mac_share < 1
    assert report.strategy_mac_share == 4 * 4 * 16 / (4 * 4 * 16 + 4 * 4 * 9 * 16)


def test_a_fused_convolution_on_the_generic_path_is_reported(network: Callable[..., ir.Model]) -> None:
    text = """
doubles (double[1,4,8,8] x) => (double[1,6,8,8] y) <double[4,1,3,3] w, double[6,4,1,1] v> {
  [dw] a = Conv <group = 4, pads = [1,1,1,1]> (x, w)
  [act] r = Relu (a)
  [pw] y = Conv (r, v)
}"""
    program, report = build_program(network(HEAD + text), HOST)
    assert report.strategy_mac_share == 0.0
    assert report.generic_convolutions
    assert program.macs == 4 * 64 * 9 + 6 * 4 * 64
    assert {name for call in program.calls for name in call.nodes} == {"dw", "act", "pw"}


def test_equal_workloads_share_their_code(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    _, program, _ = built["repeated"]
    convolutions = [call for call in program.calls if call.strategy != "generic"]
    assert len(convolutions) == 3
    assert len({call.symbol for call in convolutions[1:]}) == 1  # the first reads the plain input
    constants = [tuple(a.offset for a in call.arguments if a.home is Home.CONSTANT) for call in convolutions]
    assert len(set(constants)) == 3


def test_constants_lie_apart_and_aligned(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    for _, program, _ in built.values():
        offsets = [a.offset for call in program.calls for a in call.arguments if a.home is Home.CONSTANT]
        assert all(offset % memory_plan.ALIGNMENT_BYTES == 0 for offset in offsets)
        assert all(offset < program.constants.nbytes for offset in offsets)


def test_live_values_lie_apart(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    """No call writes where a value lies that it or a later call reads."""
    for _, program, _ in built.values():
        assert program.arena_lower_bound_bytes <= program.arena_bytes
        spans: dict[str, list[int]] = {}
        for index, call in enumerate(program.calls):
            for name in (*call.inputs, *call.outputs):
                value = program.find_value(name)
                if value.buffer.home is Home.ARENA:
                    spans.setdefault(name, [index, index])[1] = index
        for one, other in itertools.combinations(spans, 2):
            (a, b), (x, y) = spans[one], spans[other]
            first, second = program.find_value(one), program.find_value(other)
            if first.buffer == second.buffer or b < x or y < a:  # a view, or never alive together
                continue
            low, high = sorted((first, second), key=lambda value: value.buffer.offset)
            assert low.buffer.offset + low.type.nbytes <= high.buffer.offset, f"{one} and {other}"
        for name in spans:
            value = program.find_value(name)
            assert value.buffer.offset + value.type.nbytes <= program.arena_bytes
            assert value.buffer.offset % memory_plan.ALIGNMENT_BYTES == 0


def test_scratch_lies_apart_from_live_values(network: Callable[[str], ir.Model]) -> None:
    """It lies where nothing is that its call or a later one reads, and costs nothing where the arena has room."""
    text = """net (float[1,64,24,24] x) => (float[1,64,24,24] y) <float[64,1,3,3] v, float[64,64,1,1] w, float[64,64,1,1] z> {
  [first] a = Conv (x, w)
  [dw] b = Conv <group = 64, pads = [1,1,1,1]> (a, v)
  [pw] c = Conv (b, w)
  [sum] d = Add (c, a)
  [pool] e = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (d)
  [last] y = Conv (e, z)
}"""
    program, _ = build_program(network(HEAD + text), device.get("cortex-a72"))
    assert any(call.scratch_bytes for call in program.calls)
    last_read = {name: index for index, call in enumerate(program.calls) for name in call.inputs}
    for index, call in enumerate(program.calls):
        start, end = call.scratch_offset, call.scratch_offset + call.scratch_bytes
        assert start % memory_plan.ALIGNMENT_BYTES == 0
        assert end <= program.arena_bytes
        written = {name for earlier in program.calls[: index + 1] for name in earlier.outputs}
        for name in written | set(call.inputs):
            value = program.find_value(name)
            if value.buffer.home is Home.ARENA and (last_read.get(name, -1) >= index or name in call.outputs):
                assert value.buffer.offset + value.type.nbytes <= start or end <= value.buffer.offset, f"{call.name} and {name}"


def test_strategies_are_named(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    _, program, _ = built["inverted"]
    names = {call.strategy for call in program.calls if call.macs}
    assert names <= {"pointwise", "depthwise", "dense", "depthwise+pointwise", "linear"}
    assert "linear" in names


def test_calls_name_workload_and_tile(built: dict[str, tuple[ir.Model, Program, build.CompileReport]]) -> None:
    """A workload is a symbol, and a symbol a workload."""
    for _, program, _ in built.values():
        pairs = {(call.workload, call.symbol) for call in program.calls}
        assert len(pairs) == len({workload for workload, _ in pairs}) == len({symbol for _, symbol in pairs})
        assert all(bool(call.tile) == (call.strategy != "generic") for call in program.calls)


# The API ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(network: Callable[..., ir.Model], tmp_path: Path) -> Path:
    path = tmp_path / "inverted.onnx"
    onnx.save(ir.to_proto(network(INVERTED)), path)
    return path


def test_compile_gives_what_runs(file: Path, tmp_path: Path) -> None:
    compiled = build.compile(file, output=tmp_path / "out")
    assert compiled.report["model"] == "inverted"
    x = np.random.default_rng(0).standard_normal((2, 3, 15, 15)).astype(np.float32)
    y = compiled.run(x=x)["y"]
    np.testing.assert_array_equal(artifact.load(tmp_path / "out").run(x=x)["y"], y)


def test_compile_takes_a_model_in_memory(network: Callable[..., ir.Model]) -> None:
    compiled = build.compile(network(REPEATED), threads=2)
    x = np.ones((1, 8, 9, 9), np.float32)
    assert compiled.run(x=x)["y"].shape == (1, 8, 9, 9)


def test_an_unknown_target_is_an_input_error(file: Path) -> None:
    with pytest.raises(InputError, match="Target 'rpi9': unknown"):
        build.compile(file, target="rpi9")


def test_threads_are_refused_where_no_system_has_any(file: Path) -> None:
    with pytest.raises(InputError, match="Target 'cortex-m7': has no operating system, and so no threads; leave --threads 2 out"):
        build.compile(file, target="cortex-m7", threads=2)


# float16 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a72", "cortex-a7", "cortex-m7", "x86-64-v4"])
def test_float16_is_refused_where_the_core_has_none(target: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"Target '{target}': its core \({target}\) has no float16 arithmetic .* such as cortex-a55"):
        build.compile(file, target=target, float16=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["cortex-a55", "cortex-a76", "neoverse-n1"])
def test_convolutions_and_products_run_in_float16(target: str, network: Callable[..., ir.Model]) -> None:
    single, report = build_program(network(INVERTED), device.get(target))
    assert report.float16_mac_share == 0
    half, report = build_program(network(INVERTED), device.get(target), float16=True)
    assert (report.strategy_mac_share, report.float16_mac_share) == (1, 1)
    assert [value.type.dtype for value in (*half.inputs, *half.outputs)] == ["float32", "float32"]
    packed = {value.type.layout.lanes for value in half.values if value.type.layout.packed}
    assert packed == {2 * device.get(target).lanes}
    assert half.constants.nbytes < 0.75 * single.constants.nbytes


@pytest.mark.emulated
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing: apt-get install qemu-user")
def test_float16_instructions_trap_on_cores_without_them(network: Callable[..., ir.Model]) -> None:
    model = network(REPEATED)
    program, _ = build_program(model, device.get("cortex-a76"), float16=True)
    feed = sample_inputs(model, 0)
    with open_runner(program) as runner:
        assert runner.run(feed)["y"].any()
    with (
        open_runner(replace(program, device="cortex-a72")) as runner,
        pytest.raises(SepwiseError, match=r"met an instruction that this cpu lacks \(SIGILL\)"),
    ):
        runner.run(feed)


MIXED = HEAD + """
mixed (float[1,32,6,6] x) => (float[1,32,12,12] y) <float[32,32,3,3] w, float[32,32,4,4] u>
{
  [half] a = Conv <pads = [1,1,1,1]> (x, w)
  [act] b = Relu (a)
  [single] y = ConvTranspose <strides = [2,2], pads = [1,1,1,1]> (b, u)
}
"""


def test_convolutions_of_both_types_have_their_own_lanes(network: Callable[..., ir.Model]) -> None:
    device_ = device.get("cortex-a76")
    program, report = build_program(network(MIXED), device_, float16=True)
    assert report.generic_convolutions == ()
    assert 0 < report.float16_mac_share < report.strategy_mac_share == 1
    packed = {(value.type.dtype, value.type.layout.lanes) for value in program.values if value.type.layout.packed}
    assert packed >= {("float16", 2 * device_.lanes), ("float32", device_.lanes)}


RANKED = HEAD + """
ranked (float[1,8,5,5] x) => (float[1,3] y) <float[8,8,1,1] w, int64[1] k = {3}>
{
  [conv] a = Conv (x, w)
  [pool] b = GlobalMaxPool (a)
  [flat] c = Flatten (b)
  [best] y, i = TopK (c, k)
}
"""


def test_what_needs_a_runtime_runs_on_the_host(network: Callable[..., ir.Model]) -> None:
    model = network(RANKED)
    program, report = build_program(model, HOST)
    assert report.tail == ("best",)
    feed = sample_inputs(model, 0)
    oracle = Oracle(model)
    with open_runner(program) as runner:
        check = compare_execution(runner.run(feed), oracle.run(feed), execution_sigma(oracle, feed))
    assert check.passed, check


def test_what_needs_a_runtime_is_refused_elsewhere(network: Callable[..., ir.Model], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Node 'best': TopK needs TVM's runtime, which 'cortex-a72' has not"):
        build.compile(network(RANKED), target="cortex-a72", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
