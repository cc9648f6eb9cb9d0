"""What is foretold of a network, beside the bundle that is made of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812 - the script's own spelling

from sepwise.lowering import device
from sepwise.lowering.bundle import bundle
from sepwise.lowering.foretell import CODE_ERROR, LOOP_INSTRUCTIONS, Forecast, _count_instructions, foretell
from sepwise.passes import load_model

BLOCK = """<ir_version: 10, opset_import: ["" : 20]>
block (float[1,8,24,24] x) => (float[1,12,24,24] y) <float[8,1,3,3] w, float[12,8,1,1] v, float[12,12,1,1] u> {
  [dw] a = Conv <group = 8, pads = [1,1,1,1]> (x, w)
  [act] b = Relu (a)
  [pw] c = Conv (b, v)
  [pool] d = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (c)
  [last] e = Conv (d, u)
  [sum] y = Add (e, c)
}"""


@pytest.fixture(scope="module")
def block(network: Callable[[str], ir.Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    onnx.save(ir.to_proto(network(BLOCK)), path)
    return path


@pytest.fixture(scope="module")
def bare(block: Path) -> Forecast:
    return foretell(load_model(block), device.get("cortex-m7"))


SINGLE = """<ir_version: 10, opset_import: ["" : 20]> single (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Relu (x) }"""


def test_one_kernel_needs_an_arena_too(network: Callable[[str], ir.Model], tmp_path: Path) -> None:
    onnx.save(ir.to_proto(network(SINGLE)), tmp_path / "single.onnx")
    manifest = bundle(tmp_path / "single.onnx", tmp_path / "single").manifest
    found = foretell(load_model(tmp_path / "single.onnx"), device.get("host"))
    assert (found.arena_bytes, found.arena_lower_bound_bytes) == (manifest["arena_bytes"], 0) == (64, 0)


@T.prim_func(s_tir=True)
def doubled_twice(x: T.Buffer((4,), "float32"), y: T.Buffer((8,), "float32")) -> None:
    for i in range(4):
        y[i] = x[i] + x[i]
    for i in range(4):
        y[i + 4] = x[i] + x[i]


def test_an_address_is_loaded_once_in_a_body() -> None:
    load, add, store = 1, 1, 1
    expected = 2 * (LOOP_INSTRUCTIONS + load + add + store)
    assert _count_instructions(doubled_twice.body, device.get("cortex-a72")) == expected


@pytest.mark.parametrize(("lanes", "instructions"), [([3, 0, 1, 2], 1), ([1, 1, 1, 1], 0), ([4, 5, 6, 7], 0), ([2, 3, 4, 5], 1)])
def test_lanes_that_move(lanes: list[int], instructions: int) -> None:
    vectors = [tirx.const(float(start), "float32") for start in range(8)]
    shuffled = tirx.Shuffle([tirx.Shuffle(vectors, list(range(8)))], lanes)
    first, both = (_count_instructions(tirx.Evaluate(each), device.get("cortex-a72")) for each in (shuffled.vectors[0], shuffled))
    assert both - first == instructions


@pytest.mark.parametrize("target", ["cortex-m7", "cortex-a72", "neoverse-v1"])
def test_a_bundle_is_as_it_was_foretold(target: str, block: Path, tmp_path: Path) -> None:
    manifest = bundle(block, tmp_path / "block", target=target).manifest
    found = foretell(load_model(block), device.get(target))
    for size in ("arena_bytes", "arena_lower_bound_bytes", "worker_bytes", "weight_bytes"):
        assert getattr(found, size) == manifest[size], size
    assert found.tensor_bytes == sum(each["bytes"] for each in (*manifest["inputs"], *manifest["outputs"]))
    assert abs(found.code_estimate_bytes / manifest["code_bytes"] - 1) <= CODE_ERROR


def test_a_bare_core_reads_weights_and_code_where_they_are(bare: Forecast) -> None:
    assert (bare.device_flash_bytes, bare.device_ram_bytes) == (512 << 10, 128 << 10)
    assert bare.ram_bytes == bare.arena_bytes + bare.tensor_bytes
    assert bare.flash_bytes == bare.weight_bytes + bare.code_estimate_bytes
    assert 0 < bare.arena_lower_bound_bytes <= bare.arena_bytes
    assert bare.lacks == ()


def test_a_system_loads_them(block: Path) -> None:
    found = foretell(load_model(block), device.get("cortex-a72"))
    assert found.ram_bytes == found.arena_bytes + found.tensor_bytes + found.flash_bytes
    assert (found.device_flash_bytes, found.device_ram_bytes, found.lacks) == (None, None, ())


def test_what_does_not_fit_is_said_with_its_reason(block: Path, bare: Forecast) -> None:
    small = replace(device.get("cortex-m7"), ram_bytes=bare.ram_bytes - 1, flash_bytes=bare.flash_bytes - 1)
    flash, ram = foretell(load_model(block), small).lacks
    assert flash == (
        f"Flash: some {bare.flash_bytes:,} bytes are needed and cortex-m7 has {bare.flash_bytes - 1:,}: "
        f"{bare.weight_bytes:,} of weights, some {bare.code_estimate_bytes:,} of code."
    )
    assert ram == (
        f"RAM: {bare.ram_bytes:,} bytes are needed and cortex-m7 has {bare.ram_bytes - 1:,}: {bare.tensor_bytes:,} of inputs and "
        f"outputs, {bare.arena_bytes:,} of arena, where '{bare.largest_call}' needs most."
    )
    enough = replace(small, ram_bytes=bare.ram_bytes, flash_bytes=bare.flash_bytes)
    assert foretell(load_model(block), enough).lacks == ()
