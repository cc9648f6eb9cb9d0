"""Running Programs: the same numbers natively and emulated, whole, call by call and kernel by kernel."""

import ctypes
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sepwise.lowering import device, link
from sepwise.lowering.build import compile
from sepwise.lowering.counts import CacheGeometry
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.guarded import StrayAccessError
from sepwise.lowering.program import BufferRef, Home, Program, Value
from sepwise.lowering.runner import (
    EmulatedRunner,
    NativeRunner,
    Runner,
    aligned_empty,
    from_memory,
    open_runner,
    to_memory,
)
from sepwise.passes.errors import InputError, SepwiseError

Tensors = dict[str, np.ndarray]

needs_qemu = pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing: apt-get install qemu-user")

TRAPPING_KERNELS = """
#include <stdint.h>
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) {}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) { __builtin_trap(); }
"""

# The share of one worker's scratch is filled and checked, so workers that share one are found out.
BUSY_KERNELS = """
#include <stdint.h>
void scale(const float *x, const float *shift, const float *bias, float *y, volatile float *scratch, int32_t task) {
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < 140; ++i) scratch[i] = (float)(task + i);
    for (int i = 0; i < 140; ++i) if (scratch[i] != (float)(task + i)) y[task] = -1;
  }
  if (y[task] != -1) y[task] += 1;
}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) { s[task] = y[task]; }
"""


STRAYS = [
    (0, "y[280] = 1", "touched byte 1120 of output 'y', which has 1120"),
    (0, "y[-1] = 1", "touched byte -4 of output 'y', which has 1120"),
    (0, "y[0] = x[224]", "touched byte 896 of input 'x', which has 840"),
    (0, "y[0] = shift[-1]", "touched byte -4 of input 'shift', which has 24"),
    (0, "y[0] = bias[16]", "touched byte 64 of constant 0, which has 24"),
    (0, "y[0] = bias[-1]", "touched byte -4 of constant 0, which has 24"),
    (0, "((float *)scratch)[160] = 1", "touched byte 640 of the scratch, which has 560"),
    (0, "*(float *)x = 1", "wrote byte 0 of input 'x', which it may only read"),
    (0, "*(float *)bias = 1", "wrote byte 0 of constant 0, which it may only read"),
    (0, "y[0] = (uintptr_t)x % 65536", "writes other numbers to 'y' in a second run"),
    (1, "z[7] = 1", "touched byte 28 of output 'z', which has 24"),
]
"""By call: what the last task does besides, where the first number of its second input is the place in this list, and what is said."""

STRAY_KERNELS = f"""
#include <stdint.h>
void scale(const volatile float *x, const volatile float *shift, const volatile float *bias, volatile float *y, volatile void *scratch,
           int32_t task) {{
  for (int i = 0; i < 140; ++i) y[task * 140 + i] = 1;
  switch (task == 1 ? (int)shift[0] : -1) {{
    {" ".join(f"case {place}: {stray}; break;" for place, (call, stray, _) in enumerate(STRAYS) if call == 0)}
  }}
}}
void add_and_sum(const float *y, const float *x, volatile float *s, volatile float *z, void *scratch, int32_t task) {{
  s[task] = z[task] = 1;
  switch (task == 5 ? (int)x[0] : -1) {{
    {" ".join(f"case {place}: {stray}; break;" for place, (call, stray, _) in enumerate(STRAYS) if call == 1)}
  }}
}}
"""

IDLE_KERNELS = """
#include <stdint.h>
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) {}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {
  for (int p = 0; p < 35; ++p) s[task * 35 + p] = y[((task / 4) * 35 + p) * 4 + task % 4];
}
"""


EMULATED_KINDS = {
    "emulated": "cortex-a72",
    "emulated with 32 bits": "cortex-a7",
    "emulated bare": "cortex-m7",
    "in unicorn": "cortex-a72",
    "in unicorn with 32 bits": "cortex-a7",
}
KINDS = ["one thread", "two threads", "five threads", *EMULATED_KINDS]


def open_kind(kind: str, c_program: Callable[..., Program]) -> Runner:
    if kind not in EMULATED_KINDS:
        return NativeRunner(c_program(), threads={"one": 1, "two": 2, "five": 5}[kind.split()[0]])
    emulated = device.get(EMULATED_KINDS[kind])
    if kind.startswith("in unicorn"):
        emulated = in_unicorn(emulated)
    elif kind != "emulated bare" and shutil.which(str(emulated.emulator)) is None:
        pytest.skip(f"{emulated.emulator} is missing: apt-get install qemu-user")
    return EmulatedRunner(c_program(EMULATED_KINDS[kind]), emulated)


def in_unicorn(found: device.Device) -> device.Device:
    """A device as it is emulated where its own emulator is missing."""
    assert found.unicorn_cpu is not None
    return replace(found, emulator=device.UNICORN, emulator_cpu=found.unicorn_cpu)


@pytest.fixture(scope="module", params=KINDS)
def runner(request: pytest.FixtureRequest, c_program: Callable[..., Program]) -> Iterator[Runner]:
    with open_kind(request.param, c_program) as opened:
        yield opened


def inputs_of(tensors: Tensors) -> Tensors:
    return {"x": tensors["x"], "shift": tensors["shift"]}


def test_outputs(runner: Runner, c_program_tensors: Tensors) -> None:
    for _ in range(3):
        outputs = runner.run(inputs_of(c_program_tensors))
        assert list(outputs) == ["s", "z"]
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, c_program_tensors[name])


def test_outputs_are_the_callers_own(runner: Runner, c_program_tensors: Tensors) -> None:
    first = runner.run(inputs_of(c_program_tensors))["z"]
    zeros = {name: np.zeros_like(array) for name, array in inputs_of(c_program_tensors).items()}
    runner.run(zeros)
    np.testing.assert_array_equal(first, c_program_tensors["z"])


def test_intermediates_are_kept_and_unpacked(runner: Runner, c_program_tensors: Tensors) -> None:
    kept = runner.run_keeping(inputs_of(c_program_tensors), ["y", "x"])
    assert set(kept) == {"x", "y", "s", "z"}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, c_program_tensors[name])


def test_a_single_kernel(runner: Runner, c_program_tensors: Tensors) -> None:
    rng = np.random.default_rng(1)
    y, x = (rng.integers(0, 9, (1, 6, 5, 7)).astype(np.float32) for _ in range(2))
    outputs = runner.run_kernel(1, [y, x])
    np.testing.assert_array_equal(outputs["s"], y + x)
    np.testing.assert_array_equal(outputs["z"], y.sum((2, 3)))
    first = runner.run_kernel(0, [c_program_tensors["x"], c_program_tensors["shift"]])
    np.testing.assert_array_equal(first["y"], c_program_tensors["y"])


@pytest.mark.parametrize("kind", ["one thread", "two threads", *EMULATED_KINDS])
def test_a_kernel_alone_keeps_to_its_operands(
    kind: str, c_program: Callable[..., Program], c_program_tensors: Tensors
) -> None:
    with open_kind(kind, lambda *target: c_program(*target, kernels=STRAY_KERNELS)) as runner:

        def run(index: int, place: int) -> Tensors:
            arrays = [np.full_like(c_program_tensors[name], place) for name in (("x", "shift"), ("y", "x"))[index]]
            return runner.run_kernel(index, arrays)

        for place, (index, _, what) in enumerate(STRAYS):
            with pytest.raises(StrayAccessError, match=f"Kernel '{runner.program.calls[index].name}': {what}") as stopped:
                run(index, place)
            assert "Report it" in str(stopped.value)
            assert (run(0, -1)["y"] == 1).all()  # what it does next is not changed by it


@pytest.mark.parametrize("kind", ["one thread", "emulated", "in unicorn"])
def test_a_kernel_alone_leaves_nothing_behind(kind: str, c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    """A run in which the first kernel writes nothing finds neither its tensors nor its results."""
    with open_kind(kind, lambda *target: c_program(*target, kernels=IDLE_KERNELS)) as runner:
        runner.run_kernel(1, [c_program_tensors["y"], c_program_tensors["x"]])
        assert np.isnan(runner.run(inputs_of(c_program_tensors))["s"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": None}, r"Input 'shift': missing; model 'small' takes x float32\[1,6,5,7\], shift float32\[1,6\]"),
        ({"u": np.zeros(1)}, "Input 'u': model 'small' has no such input"),
        ({"x": np.zeros((1, 6, 5, 8), np.float32)}, r"Input 'x': found float32\[1,6,5,8\], needed float32\[1,6,5,7\]"),
        ({"x": np.zeros((1, 6, 5, 7))}, r"Input 'x': found float64\[1,6,5,7\], needed float32\[1,6,5,7\]"),
    ],
)
def test_wrong_inputs_are_named(
    change: dict[str, np.ndarray | None], message: str, runner: Runner, c_program_tensors: Tensors
) -> None:
    given = {name: array for name, array in (inputs_of(c_program_tensors) | change).items() if array is not None}
    with pytest.raises(InputError, match=message):
        runner.run(given)


def test_wrong_names_and_kernel_arguments_are_named(runner: Runner, c_program_tensors: Tensors) -> None:
    with pytest.raises(InputError, match="Value 'w': model 'small' computes no such value"):
        runner.run_keeping(inputs_of(c_program_tensors), ["w"])
    with pytest.raises(InputError, match="Kernel 'second': 1 arrays given, it takes y, x"):
        runner.run_kernel(1, [c_program_tensors["y"]])


@pytest.mark.parametrize("kind", ["two threads", "emulated"])
def test_closed_is_closed(kind: str, c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    runner = open_kind(kind, c_program)
    runner.close()
    runner.close()
    with pytest.raises(SepwiseError, match="closed"):
        runner.run(inputs_of(c_program_tensors))


def test_pad_lanes_are_poisoned() -> None:
    value = Value("v", TensorType((1, 6, 2), layout=Layout(4)), BufferRef(Home.ARENA, 0))
    array = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    memory = to_memory(value, array)
    assert memory.shape == (1, 2, 2, 4)
    assert np.isnan(memory[:, 1, :, 2:]).all()
    assert not np.isnan(memory[:, 0]).any()
    np.testing.assert_array_equal(from_memory(value, memory.reshape(-1).view(np.uint8)), array)


def test_memory_is_aligned() -> None:
    assert all(aligned_empty(nbytes).ctypes.data % 64 == 0 for nbytes in (1, 100, 4096))


# In this process


def test_times_have_one_number_a_run_and_call(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    with NativeRunner(c_program(), threads=2) as runner:
        assert len(runner.time(5, inputs=inputs_of(c_program_tensors))) == 5
        assert [len(times) for times in runner.time_kernels(3)] == [3, 3]
        assert all(time >= 0 for times in runner.time_kernels(3) for time in times)


def test_threads_take_turns_on_one_runner(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    with NativeRunner(c_program(), threads=2) as runner:
        wrong: list[str] = []

        def use(factor: float) -> None:
            given = {"x": c_program_tensors["x"] * np.float32(factor), "shift": c_program_tensors["shift"] * 0}
            expected = np.maximum(2 * given["x"] + np.arange(-3, 3, dtype=np.float32)[:, None, None], 0).sum((2, 3))
            wrong.extend("z" for _ in range(50) if not np.array_equal(runner.run(given)["z"], expected))

        users = [threading.Thread(target=use, args=(factor,)) for factor in (1, 2, -3)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert wrong == []


def test_a_forked_child_starts_its_own_workers(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    with NativeRunner(c_program(), threads=2) as runner:
        runner.run(inputs_of(c_program_tensors))
        child = os.fork()
        if child == 0:  # Leaves without the interpreter's clean-up: it belongs to the parent.
            signal.alarm(20)
            z = runner.run(inputs_of(c_program_tensors))["z"]
            threads = len(os.listdir("/proc/self/task"))
            os._exit(0 if np.array_equal(z, c_program_tensors["z"]) and threads == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(runner.run(inputs_of(c_program_tensors))["z"], c_program_tensors["z"])


def test_workers_end_with_the_runner(c_program: Callable[..., Program]) -> None:
    before = len(os.listdir("/proc/self/task"))
    with NativeRunner(c_program(), threads=4):
        assert len(os.listdir("/proc/self/task")) == before + 3
    assert len(os.listdir("/proc/self/task")) == before


def test_the_pool_changes_nobodys_affinity(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    before = os.sched_getaffinity(0)
    with NativeRunner(c_program(), threads=2) as runner:
        runner.run(inputs_of(c_program_tensors))
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one cpu is allowed; nothing installs another")
def test_the_caller_leaves_a_workers_cpu(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    allowed = os.sched_getaffinity(0)
    current_cpu = ctypes.CDLL(None).sched_getcpu
    others = set(os.listdir("/proc/self/task"))
    with NativeRunner(c_program(), threads=2) as runner:
        (worker,) = set(os.listdir("/proc/self/task")) - others
        (worker_cpu,) = os.sched_getaffinity(int(worker))

        def leaves() -> bool:
            os.sched_setaffinity(0, {worker_cpu})
            os.sched_setaffinity(0, allowed)
            runner.run(inputs_of(c_program_tensors))
            return bool(current_cpu() != worker_cpu)

        assert any(leaves() for _ in range(50))  # The system may move it back at any time.


@pytest.fixture(scope="module")
def pool(
    c_program: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    """A pool of four workers, loaded without a runner."""
    path = tmp_path_factory.mktemp("pool") / "model.so"
    link.link_shared(c_program(), path)
    library = ctypes.CDLL(str(path))
    library.sepwise_pool_create.restype = ctypes.c_void_p
    cpus = sorted(os.sched_getaffinity(0))
    made = ctypes.c_void_p(library.sepwise_pool_create(4, (ctypes.c_int32 * len(cpus))(*cpus), len(cpus)))
    yield library, made
    library.sepwise_pool_destroy(made)


TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 4, 5, 97])
def test_every_task_runs_once_on_a_worker(tasks: int, pool: tuple[ctypes.CDLL, ctypes.c_void_p]) -> None:
    library, made = pool
    for _ in range(20):
        ran: list[tuple[int, int]] = []

        def note(_: int | None, task: int, worker: int, ran: list[tuple[int, int]] = ran) -> None:
            ran.append((task, worker))

        library.sepwise_pool_parallel_for(made, tasks, TASK(note), None)
        assert sorted(task for task, _ in ran) == list(range(tasks))
        assert all(0 <= worker < 4 for _, worker in ran)


def test_a_task_that_launches_stays_on_its_worker(pool: tuple[ctypes.CDLL, ctypes.c_void_p]) -> None:
    library, made = pool
    ran: list[tuple[int, int, int]] = []

    def outer(_: int | None, task: int, worker: int) -> None:
        inner = TASK(lambda _, inner_task, inner_worker: ran.append((task, inner_task, inner_worker - worker)))
        library.sepwise_pool_parallel_for(made, 3, inner, None)

    library.sepwise_pool_parallel_for(made, 8, TASK(outer), None)
    assert sorted(ran) == [(task, inner, 0) for task in range(8) for inner in range(3)]


def test_workers_do_not_share_scratch(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    program = c_program(kernels=BUSY_KERNELS)
    with NativeRunner(program, threads=2) as runner:
        for _ in range(200):
            runner._arena[:] = 0
            runner.run(inputs_of(c_program_tensors))
            y = runner._arena[128:136].view(np.float32)
            assert y.tolist() == [1, 1]


def test_a_program_for_another_cpu_is_refused(c_program: Callable[..., Program]) -> None:
    other = "x86-64-v3" if device.get("host").isa == "arm" else "cortex-a72"
    with pytest.raises(InputError, match=f"built for {other}, this machine lacks"):
        NativeRunner(c_program(other))


@pytest.mark.parametrize("threads", [0, -1, 1000])
def test_impossible_numbers_of_threads_are_refused(threads: int, c_program: Callable[..., Program]) -> None:
    with pytest.raises(InputError, match=f"Threads: {threads} asked for, possible are 1 to 256"):
        NativeRunner(c_program(), threads=threads)


def test_the_device_decides_where_it_runs(c_program: Callable[..., Program]) -> None:
    with open_runner(c_program()) as runner:
        assert isinstance(runner, NativeRunner)


# Under an emulator


@needs_qemu
@pytest.mark.emulated
def test_instructions_are_counted_call_by_call(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    with EmulatedRunner(c_program("cortex-a72")) as runner:
        counts = runner.count(inputs_of(c_program_tensors))
        assert len(counts.calls) == 2
        assert counts.instructions == sum(call.instructions for call in counts.calls)
        assert all(200 < call.instructions < 20000 for call in counts.calls)
        again = runner.count(inputs_of(c_program_tensors))
        assert [call.instructions for call in again.calls] == [call.instructions for call in counts.calls]


COPYING_KERNELS = """
#include <stdint.h>
void scale(const volatile float *x, const float *shift, const float *bias, volatile float *y, void *scratch, int32_t task) {
  _Pragma("clang loop unroll(disable)") for (int i = 0; i < %d; ++i) y[i] = x[i];
}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {}
"""


@needs_qemu
@pytest.mark.emulated
def test_loads_and_stores_are_counted_exactly(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    calls = []
    for floats in (100, 140):
        with EmulatedRunner(c_program("cortex-a72", kernels=COPYING_KERNELS % floats)) as runner:
            calls.append(runner.count(inputs_of(c_program_tensors)).calls[0])
    few, many = calls
    moved = 2 * 40  # two tasks
    assert (many.loads - few.loads, many.load_bytes - few.load_bytes) == (moved, 4 * moved)
    assert (many.stores - few.stores, many.store_bytes - few.store_bytes) == (moved, 4 * moved)
    assert (many.instructions - few.instructions) % moved == 0
    assert all(sum(run.predecessors.values()) == run.count for run in many.runs.values())
    loop = max(many.runs.values(), key=lambda run: run.count)
    assert (loop.block.loads, loop.block.stores) == (1, 1)
    assert len(loop.block.code) == 4 * loop.block.instructions


# Reads 256 lines one by one: apart from the first two, whose order tells the direction, a prefetcher foresees all.
READING_KERNELS = """
#include <stdint.h>
static const float table[4096] __attribute__((aligned(64))) = {1};
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) {
  if (task) return;
  for (int i = 0; i < 256; ++i) y[0] += ((const volatile float *)table)[16 * (%s)];
}
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {}
"""


@needs_qemu
@pytest.mark.emulated
@pytest.mark.parametrize(("order", "foreseen"), [("i", True), ("255 - i", True), ("i * 101 % 256", False)], ids=["up", "down", "apart"])
def test_a_prefetcher_foresees_neighbours(
    c_program: Callable[..., Program], c_program_tensors: Tensors, order: str, foreseen: bool
) -> None:
    small = CacheGeometry(l1d_bytes=1024, l1d_ways=2, l2_bytes=2048, l2_ways=2, line_bytes=64, streams=4)
    with EmulatedRunner(c_program("cortex-a72", kernels=READING_KERNELS % order)) as runner:
        call = runner.count(inputs_of(c_program_tensors), caches=[small]).calls[0]
    assert call.misses().l2 >= 256
    loop = max(call.runs.values(), key=lambda run: run.count).misses[0]
    assert (loop.l2_streamed >= 250) == foreseen
    assert (loop.l2_demanded >= 250) == (not foreseen)


@needs_qemu
@pytest.mark.emulated
def test_misses_follow_the_caches(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    ample = CacheGeometry(l1d_bytes=1 << 16, l1d_ways=4, l2_bytes=1 << 20, l2_ways=16, line_bytes=64, streams=4)
    tiny = replace(ample, l1d_bytes=256, l1d_ways=1, l2_bytes=512, l2_ways=1)
    uneven = replace(ample, l1d_bytes=256, l1d_ways=1)
    with EmulatedRunner(c_program("cortex-a72")) as runner:
        counts = runner.count(inputs_of(c_program_tensors), caches=[ample, tiny, uneven])
        (cold,) = (call.misses() for call in runner.count(inputs_of(c_program_tensors), caches=[tiny]).calls[:1])
    first = counts.calls[0]
    assert first.misses(0).l1 == first.misses(0).l2 == 0, "all of it fits and ran before"
    lines = c_program_tensors["x"].nbytes // 64
    assert first.misses(1).l1 >= first.misses(1).l2 >= lines
    assert first.misses(1).l1_streamed > 0
    assert first.misses(1).l1_stored > 0
    assert (first.misses(2).l1, first.misses(2).l2) == (first.misses(1).l1, 0)
    assert cold.l1 >= lines


@needs_qemu
@pytest.mark.emulated
def test_a_trap_names_kernel_and_cpu(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    with EmulatedRunner(c_program("cortex-a72", kernels=TRAPPING_KERNELS)) as runner:
        with pytest.raises(SepwiseError, match=r"on emulated cortex-a72: kernel 'second' (met|was killed)"):
            runner.run(inputs_of(c_program_tensors))
        first = runner.run_kernel(0, [c_program_tensors["x"], c_program_tensors["shift"]])  # It starts anew.
        assert set(first) == {"y"}


@needs_qemu
@pytest.mark.emulated
def test_instructions_of_newer_cores_trap(c_program: Callable[..., Program], c_program_tensors: Tensors) -> None:
    kernels = TRAPPING_KERNELS.replace("__builtin_trap();", '__asm__("sdot v0.4s, v1.16b, v2.16b");')
    program = c_program("cortex-a72", kernels=kernels, flags=("-mcpu=cortex_a76",))
    with (
        EmulatedRunner(program) as runner,
        pytest.raises(SepwiseError, match=r"kernel 'second' met an instruction that this cpu lacks \(SIGILL\)"),
    ):
        runner.run(inputs_of(c_program_tensors))


@pytest.mark.parametrize(
    ("instruction", "flags"), [("sdot v0.4s, v1.16b, v2.16b", ("-mcpu=cortex_a76",)), ("udf #0", ()), ("brk #1", ())]
)
def test_instructions_that_unicorns_cpu_lacks_end_the_call(
    c_program: Callable[..., Program], c_program_tensors: Tensors, instruction: str, flags: tuple[str, ...]
) -> None:
    kernels = TRAPPING_KERNELS.replace("__builtin_trap();", f'__asm__("{instruction}");')
    program = c_program("cortex-a72", kernels=kernels, flags=flags)
    with EmulatedRunner(program, in_unicorn(device.get("cortex-a72"))) as runner:
        with pytest.raises(SepwiseError, match=r"on emulated cortex-a72: kernel 'second' was ended: .*UC_ERR.* at 0x"):
            runner.run(inputs_of(c_program_tensors))
        first = runner.run_kernel(0, [c_program_tensors["x"], c_program_tensors["shift"]])  # It starts anew.
        assert set(first) == {"y"}


def fill(program: Program) -> Tensors:
    rng = np.random.default_rng(0)
    return {each.name: rng.standard_normal(each.type.shape).astype(each.type.dtype) for each in program.inputs}


@pytest.mark.emulated
@pytest.mark.parametrize(("target", "float16"), [("cortex-a72", False), ("cortex-a76", True), ("cortex-a7", False)])
def test_both_emulators_compute_and_execute_the_same(zoo_file: Callable[..., Path], target: str, float16: bool) -> None:
    """Bit for bit, as a network and kernel by kernel. Where qemu counts, its program's way to the call is added, the same for all.

    A conditional instruction, which AArch64 does not have, may load in some runs of its block; qemu's plugin counts it in all.
    """
    known = device.get(target)
    if shutil.which(str(known.emulator)) is None:
        pytest.skip(f"{known.emulator} is missing: apt-get install qemu-user")
    program = compile(zoo_file("separable_block", shape=(1, 8, 16, 16)), target=target, float16=float16).program
    inputs = fill(program)
    inner = [name for call in program.calls for name in call.outputs]
    with EmulatedRunner(program, known) as qemu, EmulatedRunner(program, in_unicorn(known)) as unicorn:
        wanted, found = (runner.run_keeping(inputs, inner) for runner in (qemu, unicorn))
        assert wanted.keys() == found.keys() >= set(inner)
        for index, call in enumerate(program.calls):
            given = [{**inputs, **wanted}[name] for name in call.inputs]
            alone = [runner.run_kernel(index, given) for runner in (qemu, unicorn)]
            for name in call.outputs:
                assert alone[0][name].tobytes() == alone[1][name].tobytes() == wanted[name].tobytes() == found[name].tobytes()
        pairs = list(zip(qemu.count(inputs).calls, unicorn.count(inputs).calls, strict=True))
    for kind in ("instructions", "loads", "stores", "load_bytes", "store_bytes"):
        beyond = [getattr(hosted, kind) - getattr(bare, kind) for hosted, bare in pairs]
        assert 0 <= min(beyond) < 64
        assert len(set(beyond)) == 1 or (kind in ("loads", "stores") and not known.triple.startswith("aarch64"))


def test_without_qemu_targets_run_in_unicorn(
    c_program: Callable[..., Program], c_program_tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not device.get("cortex-a7").emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    program = c_program("cortex-a7")
    monkeypatch.setenv("PATH", "")
    with open_runner(program) as runner:
        assert isinstance(runner, EmulatedRunner)
        assert (runner.device.emulator, runner.device.emulator_cpu) == ("unicorn", "cortex-a7")
        np.testing.assert_array_equal(runner.run(inputs_of(c_program_tensors))["s"], c_program_tensors["s"])
        small = CacheGeometry(l1d_bytes=1024, l1d_ways=2, l2_bytes=2048, l2_ways=2, line_bytes=64, streams=4)
        with pytest.raises(InputError, match="Target 'cortex-a7': is emulated in unicorn here, under which no caches are modelled"):
            runner.count(inputs_of(c_program_tensors), caches=[small])


@needs_qemu
@pytest.mark.emulated
def test_emulated_targets_are_emulated(c_program: Callable[..., Program]) -> None:
    if device.get("host").isa == "arm":
        pytest.skip("this machine may run the target itself; nothing installs another one")
    with open_runner(c_program("cortex-a72")) as runner:
        assert isinstance(runner, EmulatedRunner)


def test_a_missing_emulator_says_what_to_install(c_program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said = r"needs qemu-aarch64, which is not installed, and unicorn has no scalable vectors\. .*apt-get install qemu-user"
    with pytest.raises(InputError, match=said):
        EmulatedRunner(c_program("neoverse-v1"))


def test_a_device_without_emulator_says_so(c_program: Callable[..., Program]) -> None:
    with pytest.raises(InputError, match="Target 'host': has no emulator"):
        EmulatedRunner(c_program())
