"""Where candidates are timed: which devices can be, and what a loaded Program answers."""

import shutil

import numpy as np
import pytest

from sepwise.lowering import device, estimate
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.program import BufferRef, Home, Program, Value
from sepwise.lowering.trials import IN_MEMORY, Step, build_candidates
from sepwise.lowering.tuning.space import list_candidates
from sepwise.lowering.tuning.timing import EstimateTimer, NativeTimer, open_timer
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.errors import InputError

SIDE = 6
needs_emulated_a72 = pytest.mark.skipif(
    estimate.llvm_version() is None or shutil.which("qemu-aarch64") is None or not device.get("cortex-a72").emulated,
    reason="llvm-mca or qemu-aarch64 is missing: apt-get install llvm qemu-user",
)


def candidates(target: device.Device, *, warm: bool = False) -> Program:
    """Two pointwise kernels, the best by prediction and the worst; with `warm` the best one before them."""
    c = target.lanes
    workload = ConvWorkload(1, (SIDE, SIDE), (Stage(c, c, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),), False, None, c, c)
    declared = list_candidates(workload, target, 1)
    steps = [Step(workload, each.strategy, each.tile, target) for each in (*declared[:1] * warm, declared[0], declared[-1])]
    held = TensorType((1, c, SIDE, SIDE), "float32", Layout(c))
    values = [Value(name, held, BufferRef(Home.ARENA, 0)) for name in ("x", "y")]
    rng = np.random.default_rng(0)
    weights = [(rng.standard_normal((c, c, 1, 1), dtype=np.float32), np.zeros(c, np.float32))]
    return build_candidates(steps, target, weights, values[:1], values[1])


def inputs(target: device.Device) -> dict[str, np.ndarray]:
    return {f"x{IN_MEMORY}": np.ones((1, 1, SIDE, SIDE, target.lanes), np.float32)}


def test_this_machine_measures() -> None:
    timer = open_timer(device.get("host"), 1)
    assert isinstance(timer, NativeTimer)
    assert (timer.method, timer.unit, timer.exact) == ("measured", "us", False)
    timed = timer.load(candidates(timer.device), inputs(timer.device))
    try:
        assert [len(samples) for samples in timed.time([1, 0], 5)] == [5, 5]
        assert [len(samples) for samples in timed.time_network(3)] == [3, 3]
        assert min(map(min, timed.time_network(3))) > 0
    finally:
        timed.close()


@needs_emulated_a72
@pytest.mark.emulated
def test_an_emulated_core_is_estimated() -> None:
    timer = open_timer(device.get("cortex-a72"), 1)
    assert isinstance(timer, EstimateTimer)
    assert (timer.method, timer.unit, timer.exact) == ("estimated", "cycles", True)
    timed = timer.load(candidates(timer.device, warm=True), inputs(timer.device))
    try:
        (best,), (worst,) = timed.time([1, 2], 7)
        assert 0 < best < worst
        assert timed.time_network(2)[1:] == [[best], [worst]]
    finally:
        timed.close()


@pytest.mark.parametrize(
    ("target", "threads", "reason"),
    [
        ("cortex-m7", 1, "its cycles are not modelled"),
        ("cortex-a72", 2, "is emulated here, with one thread"),
        ("neoverse-v1", 1, "qemu does not show what scalable vectors load and store"),
    ],
)
def test_what_cannot_be_timed_is_refused(target: str, threads: int, reason: str) -> None:
    if not device.get(target).emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    with pytest.raises(InputError, match=reason):
        open_timer(device.get(target), threads)
