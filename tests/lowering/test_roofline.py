"""The roof of a device, and what it allows a kernel."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sepwise.lowering.build import compile
from sepwise.lowering.device import get
from sepwise.lowering.program import KernelCall, Program, Tail
from sepwise.lowering.roofline import Level, Limit, Roof, RoofMeter, limit_of, peak_macs_per_cycle, roof_of_facts


def test_the_peak_is_that_of_the_widest_vectors() -> None:
    v1 = get("neoverse-v1")
    assert v1.scalable_bytes // 4 * v1.scalable_ports == v1.lanes * v1.fma_ports  # two vectors of 256 bits, or four of 128
    assert peak_macs_per_cycle(v1) == 16
    assert peak_macs_per_cycle(replace(v1, scalable_bytes=64)) == 32
    assert peak_macs_per_cycle(replace(v1, scalable_bytes=64).holding("float16")) == 64


def test_the_roof_of_facts_counts_cores_that_work() -> None:
    a72 = replace(get("cortex-a72"), clock_hz=10**9, cores=2)
    assert roof_of_facts(a72, 1, unit="us").macs_per_unit == a72.lanes * a72.fma_ports * 1e3
    assert roof_of_facts(a72, 4, unit="cycles").macs_per_unit == 2 * a72.lanes * a72.fma_ports
    one, two = (roof_of_facts(a72, threads, unit="cycles").levels for threads in (1, 2))
    assert [level.name for level in one] == ["L1", "L2", "memory"]
    assert [level.bytes_per_unit for level in one] == [
        a72.vector_bytes * a72.load_ports, a72.l2_bytes_per_cycle, a72.memory_bytes_per_cycle
    ]  # fmt: skip
    assert [level.nbytes for level in two] == [2 * a72.l1d_bytes, 2 * a72.l2_bytes, None]


def test_without_a_clock_nothing_is_known_in_microseconds() -> None:
    roof = roof_of_facts(replace(get("cortex-a72"), clock_hz=None), 1, unit="us")
    assert {roof.macs_per_unit, *(level.bytes_per_unit for level in roof.levels)} == {None}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One pointwise convolution: 64 KiB in and out each, 4 KiB and a bias of 128 bytes of weights."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    net (float[1,32,16,32] x) => (float[1,32,16,32] y) { y = Conv (x, w) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((32, 32, 1, 1), np.float32), "w"))
    path = tmp_path_factory.mktemp("roofline") / "net.onnx"
    onnx.save(model, path)
    return compile(path, target="cortex-a72").program


def the_convolution(program: Program) -> KernelCall:
    (call,) = (call for call in program.calls if call.macs)
    return call


@pytest.mark.parametrize(
    ("macs", "l2", "memory", "least", "bound"),
    [
        (1.0, 1e9, 1e9, 32 * 32 * 512, "compute"),
        (1e9, 8.0, 1e9, 2 * 65536 / 8, "L2"),  # tensors that kernels hand on
        (1e9, 1e9, 2.0, (4096 + 128) / 2, "memory"),  # weights come from where all that a run touches fits
    ],
)
def test_a_kernel_is_bound_by_what_takes_longest(
    program: Program, macs: float, l2: float, memory: float, least: float, bound: str
) -> None:
    roof = Roof("facts", "cycles", macs, (Level("L1", 1 << 15, 1e9), Level("L2", 135_000, l2), Level("memory", None, memory)))
    assert limit_of(the_convolution(program), program, roof) == Limit(2 * 65536 + 4096 + 128, pytest.approx(least), bound)


def test_what_is_not_known_bounds_nothing(program: Program) -> None:
    roof = Roof("facts", "us", None, (Level("memory", None, 1.0),))
    assert limit_of(the_convolution(program), program, roof) == Limit(2 * 65536 + 4096 + 128)


def test_a_tail_has_no_limit(program: Program) -> None:
    roof = roof_of_facts(get("cortex-a72"), 1, unit="cycles")
    assert limit_of(Tail(b"", (), (), (), ("last",), 5), program, roof) == Limit()


def test_of_winograd_its_products_are_counted(program: Program) -> None:
    call = the_convolution(program)
    roof = Roof("facts", "cycles", 1.0, (Level("memory", None, 1e9),))
    direct, by_4 = (limit_of(replace(call, strategy=name), program, roof) for name in ("dense", "winograd 4x4"))
    assert by_4.least == direct.least * 36 / 144


@pytest.mark.parametrize("threads", [1, 2])
def test_this_machine_is_measured(threads: int) -> None:
    host = get("host")
    meter = RoofMeter(host, threads)
    meter.sample()
    roof, half = meter.roof(host), meter.roof(host.holding("float16"))
    assert (roof.origin, roof.unit, half.macs_per_unit) == ("measured", "us", pytest.approx(2 * roof.macs_per_unit))
    assert roof.macs_per_unit > 0
    facts = roof_of_facts(host, threads, unit="us")
    assert [(level.name, level.nbytes) for level in roof.levels] == [(level.name, level.nbytes) for level in facts.levels]
    assert all(level.bytes_per_unit > 0 for level in roof.levels)
