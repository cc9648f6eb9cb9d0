"""From scheduled PrimFuncs to plain C functions: symbols, sections, tasks, scratch."""

import ctypes
import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from tvm import s_tir, te, tirx

from sepwise.lowering import codegen, device, link
from sepwise.lowering.build import build_program
from sepwise.lowering.cost import repeats_iterations
from sepwise.lowering.generic import ELEMENT_TYPES
from sepwise.lowering.runner import NativeRunner
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.tiling import mark_task
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes.vocabulary import ACTIVATION_PARAMETERS, Activation

PARAMETERS = {"clip": (0.0, 6.0), "leaky_relu": (0.1,), "elu": (1.5,), "hard_sigmoid": (0.2, 0.5)}
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "armv7a": "EM_ARM", "thumbv7em": "EM_ARM"}


def one_of_each_kind() -> list[str]:
    """The first device of each instruction set, with its features and width."""
    found: dict[tuple[object, ...], str] = {}
    for name in device.names()[1:]:
        each = device.get(name)
        found.setdefault((each.triple, each.features, each.lanes), name)
    return list(found.values())


TARGETS = one_of_each_kind()


def every_schedule(target: device.Device) -> dict[str, tirx.PrimFunc]:
    """One kernel of every strategy, padded and not, and of every activation."""
    lanes = target.lanes
    workloads: list[ConvWorkload | LinearWorkload] = [LinearWorkload(3, 9, 2 * lanes + 1), LinearWorkload(1, 9, 2)]
    dense = Stage(3, 2 * lanes + 1, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    depthwise = Stage(lanes + 1, lanes + 1, lanes + 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    only_rows = Stage(lanes, lanes, lanes, (3, 1), (1, 1), (1, 0), (1, 0), (1, 1))
    odd = max(lanes - 1, 3)
    multiplier = Stage(odd, 2 * odd, odd, (5, 5), (1, 1), (2, 2), (2, 2), (1, 1))
    pointwise = Stage(lanes + 1, 3 * lanes, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))
    for stages, input_lanes in [
        ((dense,), 0), ((dense,), lanes), ((depthwise,), lanes), ((only_rows,), lanes), ((multiplier,), 0), ((pointwise,), lanes),
        ((depthwise, pointwise), lanes),
    ]:  # fmt: skip
        workloads.append(ConvWorkload(1, (12, 15), stages, True, None, input_lanes, lanes))
    workloads.append(ConvWorkload(1, (6, 2 * lanes + 1), (replace(depthwise, strides=(1, 2)),), True, None, 0, 0))
    activations = [Activation(kind, PARAMETERS.get(kind, ())) for kind in ACTIVATION_PARAMETERS]
    workloads += [LinearWorkload(1, 4, lanes, activation) for activation in activations]
    functions: dict[str, tirx.PrimFunc] = {}
    for workload in workloads:
        for strategy in strategies_for(workload):
            if strategy.applies(workload, target) is None:
                tiles = strategy.tiles(workload, target, 1)
                for tile in (tiles[0], tiles[-1]):
                    functions[f"k{len(functions)}"] = strategy.schedule(workload, target, tile).function
    return functions


@pytest.fixture(scope="module", params=TARGETS)
def elf(request: pytest.FixtureRequest) -> tuple[device.Device, set[str], ELFFile]:
    """An object with a kernel of every kind."""
    target = device.get(request.param)
    llvm = codegen.tvm_target(target)
    kernels = {name: codegen.lower_kernel(f, name, target) for name, f in every_schedule(target).items()}
    return target, set(kernels), ELFFile(io.BytesIO(codegen.build_object(kernels, llvm)))


def symbols(elf_file: ELFFile) -> list[Any]:
    return list(elf_file.get_section_by_name(".symtab").iter_symbols())


def test_the_object_is_for_its_machine(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    target, _, file = elf
    assert file["e_type"] == "ET_REL"
    assert file["e_machine"] == MACHINES[target.triple.split("-")[0]]


def test_arm_objects_link_with_code_that_has_floats_in_registers(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    attributes = elf[2].get_section_by_name(".ARM.attributes")
    if elf[2]["e_machine"] != "EM_ARM":
        assert attributes is None
        return
    values = {
        each.tag: each.value
        for part in attributes.iter_subsections()
        for file in part.iter_subsubsections()
        for each in file.iter_attributes()
    }
    assert values["TAG_ABI_VFP_ARGS"] == 1  # GNU's linker refuses to join objects that differ here


def test_no_symbol_is_undefined(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    assert [s.name for s in symbols(elf[2]) if s["st_shndx"] == "SHN_UNDEF" and s.name] == []


def test_only_kernels_are_visible(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    _, names, file = elf
    assert {s.name for s in symbols(file) if s["st_info"]["bind"] == "STB_GLOBAL"} == names
    # TVM puts its own conversions of half precision into every object; weak, so that objects may be linked together.
    assert {s.name for s in symbols(file) if s["st_info"]["bind"] == "STB_WEAK"} <= {"__truncsfhf2", "__extendhfsf2"}


def test_no_data_is_writable(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    writable = [
        section.name
        for section in elf[2].iter_sections()
        if section["sh_flags"] & SH_FLAGS.SHF_WRITE and section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section["sh_size"]
    ]
    assert writable == []


def test_no_data_is_for_one_thread(elf: tuple[device.Device, set[str], ELFFile]) -> None:
    assert not [s.name for s in elf[2].iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_TLS]


def test_features_reach_the_compiler() -> None:
    plain = device.get("cortex-a72")
    target = codegen.tvm_target(plain)
    assert str(target.kind) == "llvm"
    assert dict(target.attrs)["mcpu"] == "cortex-a72"
    assert "mattr" not in dict(target.attrs)
    for name in device.names():
        each = device.get(name)
        assert tuple(dict(codegen.tvm_target(each).attrs).get("mattr", ())) == each.features


def test_the_scheduler_of_llvm_leaves_loads_where_they_stand_if_iterations_share_a_counter() -> None:
    for name in device.names():
        each = device.get(name)
        options = tuple(dict(codegen.tvm_target(each).attrs).get("cl-opt", ()))
        assert options == (codegen.LLVM_OPTIONS if repeats_iterations(each) else ())


# Tasks -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call_task(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Gives a function that builds one kernel and gives what runs single tasks of it."""

    def build(function: tirx.PrimFunc) -> tuple[codegen.CompiledKernel, Callable[..., None]]:
        target = codegen.tvm_target(device.get("host"))
        kernel = codegen.lower_kernel(function, "kernel", device.get("host"))
        folder: Path = tmp_path_factory.mktemp("task")
        (folder / "kernel.o").write_bytes(codegen.build_object({"kernel": kernel}, target))
        link.run_zig("ld.lld", "-shared", "-o", folder / "kernel.so", folder / "kernel.o")
        entry = ctypes.CDLL(str(folder / "kernel.so")).kernel
        entry.restype = None

        def run(task: int, scratch: np.ndarray | None, *arrays: np.ndarray) -> None:
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
            scratch_pointer = ctypes.c_void_p(None if scratch is None else scratch.ctypes.data)
            entry(*pointers, scratch_pointer, ctypes.c_int32(task))

        return kernel, run

    return build


def numbered(extents: tuple[int, ...], tasks: Mapping[int, int]) -> tirx.PrimFunc:
    """`b[i, j, ...] = a[0]` with some of its loops made tasks, by axis with their grains."""
    a = te.placeholder((1,), name="a")
    b = te.compute(extents, lambda *_: a[0], name="b")
    schedule = s_tir.Schedule(te.create_prim_func([a, b]))
    loops = schedule.get_loops(schedule.get_sblock("b"))
    for axis, grain in tasks.items():
        mark_task(schedule, loops[axis], grain)
    return schedule.mod["main"]


def written_by(kernel: codegen.CompiledKernel, run: Callable[..., None], extents: tuple[int, ...]) -> np.ndarray:
    """Which task writes each element; every one has to be written by exactly one."""
    owner = np.full(extents, -1)
    for task in range(kernel.tasks):
        b = np.zeros(extents, np.float32)
        run(task, None, np.ones(1, np.float32), b)
        assert (owner[b == 1] == -1).all()
        owner[b == 1] = task
    assert (owner >= 0).all()
    return owner


@pytest.mark.parametrize(
    ("extents", "tasks", "expected"),
    [
        ((3, 4), {}, lambda i, j: 0 * i * j),
        ((3, 4), {0: 1}, lambda i, j: i + 0 * j),
        ((3, 4), {0: 1, 1: 1}, lambda i, j: 4 * i + j),
        ((3, 4), {1: 1}, lambda i, j: j + 0 * i),
        ((1, 4), {0: 1, 1: 1}, lambda i, j: 4 * i + j),
        ((3, 1), {0: 1, 1: 1}, lambda i, j: i + j),
        ((2, 3, 4), {0: 1, 1: 1, 2: 1}, lambda i, j, k: 12 * i + 4 * j + k),
        ((7, 4), {0: 2}, lambda i, j: i // 2 + 0 * j),
        ((7, 4), {0: 7}, lambda i, j: 0 * i * j),
        ((7, 4), {0: 100}, lambda i, j: 0 * i * j),
        ((3, 5), {0: 1, 1: 2}, lambda i, j: 3 * (j // 2) + i),  # the loop with a grain varies slowest
        ((2, 3, 5), {0: 1, 1: 1, 2: 3}, lambda i, j, k: 6 * (k // 3) + 3 * i + j),
        ((5, 3), {0: 2, 1: 1}, lambda i, j: 3 * (i // 2) + j),
    ],
)
def test_tasks_share_out_the_loops(
    extents: tuple[int, ...], tasks: dict[int, int], expected: Callable[..., np.ndarray], call_task: Callable[..., Any]
) -> None:
    kernel, run = call_task(numbered(extents, tasks))
    owner = written_by(kernel, run, extents)
    np.testing.assert_array_equal(owner, expected(*np.indices(extents)))
    assert kernel.tasks == owner.max() + 1


# Scratch ---------------------------------------------------------------------------------------------------------------


def test_tasks_are_counted_once_where_borders_have_loops_of_their_own() -> None:
    """Planes at the borders of a volume have branches of their own, each with its copy of the loop over rows."""
    channels = 6
    depthwise = Stage(channels, channels, channels, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    pointwise = Stage(channels, channels, 1, (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1))
    target = device.get("cortex-a55")
    workload = ConvWorkload(1, (4, 10, 12), (depthwise, pointwise), True, None, target.lanes, target.lanes)
    found = 0
    for strategy in strategies_for(workload):
        if strategy.applies(workload, target) is None:
            for tile in strategy.tiles(workload, target, 1)[:8]:
                function = strategy.schedule(workload, target, tile).function
                assert codegen.lower_kernel(function, "kernel", target).tasks <= 4 * 10, tile
                found += 1
    assert found > 1


def staged(rows: int, width: int, count: int = 1) -> tirx.PrimFunc:
    """Sums of shifted copies, each of which is staged row by row in a buffer of its own."""
    a = te.placeholder((rows, width + count), name="a")

    def copy_of(shift: int) -> Any:
        return te.compute((rows, width), lambda i, j: a[i, j + shift] + a[i, j + shift], name=f"copy{shift}")

    copies = [copy_of(shift) for shift in range(count)]

    def total(i: Any, j: Any) -> Any:
        value = copies[0][i, j]
        for copy in copies[1:]:
            value = value + copy[i, width - 1 - j]
        return value

    b = te.compute((rows, width), total, name="b")
    schedule = s_tir.Schedule(te.create_prim_func([a, b]))
    row = schedule.get_loops(schedule.get_sblock("b"))[0]
    for shift in range(count):
        schedule.compute_at(schedule.get_sblock(f"copy{shift}"), row)
    mark_task(schedule, row)
    return schedule.mod["main"]


@pytest.mark.parametrize(
    ("width", "count", "scratch_bytes"),
    [(16, 1, 0), (1024, 1, 0), (1025, 1, 4160), (1040, 2, 2 * 4160), (2048, 3, 3 * 8192)],
)
def test_large_buffers_lie_in_scratch(
    width: int, count: int, scratch_bytes: int, call_task: Callable[..., Any]
) -> None:
    """Up to 4096 bytes live on the stack; others at multiples of 64 bytes, behind each other."""
    kernel, run = call_task(staged(3, width, count))
    assert (kernel.tasks, kernel.scratch_bytes) == (3, scratch_bytes)
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, (3, width + count)).astype(np.float32)
    b = np.full((3, width), np.nan, np.float32)
    raw = np.full(scratch_bytes + 192, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64 + 64
    for task in (2, 0, 1):
        run(task, raw[start:], a, b)
    right = 2 * a[:, :width]
    for shift in range(1, count):
        right = right + 2 * a[:, shift : shift + width][:, ::-1]
    np.testing.assert_array_equal(b, right)
    assert (raw[:start] == 0xFF).all(), "writes before its scratch"
    assert (raw[start + scratch_bytes :] == 0xFF).all(), "writes behind its scratch"
    if scratch_bytes:
        assert (raw[start : start + scratch_bytes] != 0xFF).any(), "does not use its scratch"


def test_workers_with_their_own_scratch_do_not_meet(call_task: Callable[..., Any]) -> None:
    """Reentrant: two tasks interleave on two scratches as they would one after the other."""
    kernel, run = call_task(staged(2, 2048))
    a = np.arange(2 * 2049, dtype=np.float32).reshape(2, 2049)
    b = np.zeros((2, 2048), np.float32)
    scratches = [np.zeros(kernel.scratch_bytes + 64, np.uint8) for _ in range(2)]
    for task, scratch in enumerate(scratches):
        run(task, scratch[-scratch.ctypes.data % 64 :], a, b)
    np.testing.assert_array_equal(b, 2 * a[:, :2048])


# What LLVM makes of it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES))
def test_copying_and_clearing_calls_no_library(name: str, dtype: str) -> None:
    """LLVM knows such loops for memcpy and memset, which a bare target does not have."""
    a = te.placeholder((5000,), name="a", dtype=dtype)
    copied = te.compute((5000,), lambda i: a[i], name="copied")
    cleared = te.compute((5000,), lambda _: tirx.const(0, dtype), name="cleared")
    bordered = te.compute(
        (9000,), lambda i: tirx.if_then_else(tirx.all(i >= 2000, i < 7000), a[i - 2000], tirx.const(0, dtype)), name="bordered"
    )
    function = te.create_prim_func([a, copied, cleared, bordered])
    target = codegen.tvm_target(device.get(name))
    kernel = codegen.lower_kernel(function, "kernel", device.get(name))
    file = ELFFile(io.BytesIO(codegen.build_object({"kernel": kernel}, target)))
    assert [s.name for s in symbols(file) if s["st_shndx"] == "SHN_UNDEF" and s.name] == []


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("choice", [tirx.if_then_else, tirx.Select])
def test_copying_beside_computing_calls_no_library(name: str, choice: Callable[..., Any]) -> None:
    """A concatenation of what is computed and what is there: LLVM makes a loop of each."""
    a, b = te.placeholder((5, 2340), name="a"), te.placeholder((2340,), name="b")
    joined = te.compute((6, 2340), lambda i, j: choice(i == 5, b[j], a[tirx.min(i, 4), j] * a[tirx.min(i, 4), j]), name="joined")
    target = codegen.tvm_target(device.get(name))
    function = s_tir.Schedule(te.create_prim_func([a, b, joined]))
    *_, inner = function.get_loops(function.get_sblock("joined"))
    function.vectorize(function.split(inner, [None, 4])[1])
    kernel = codegen.lower_kernel(function.mod["main"], "kernel", device.get(name))
    file = ELFFile(io.BytesIO(codegen.build_object({"kernel": kernel}, target)))
    assert [s.name for s in symbols(file) if s["st_shndx"] == "SHN_UNDEF" and s.name] == []


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("fill", ["zero", "copy"])
def test_copying_and_clearing_through_registers_calls_no_library(name: str, fill: str) -> None:
    """LLVM sees through a register that holds what one store put there."""
    a = te.placeholder((1024, 4), name="a")
    filled = te.compute((1024, 4), lambda i, j: a[i, j] if fill == "copy" else tirx.const(0, "float32"), name="filled")
    function = s_tir.Schedule(te.create_prim_func([a, filled]))
    block = function.get_sblock("filled")
    store = function.cache_write(block, 0, "local")
    rows, _ = function.get_loops(store)
    function.compute_at(block, rows)
    for each in (block, store):
        function.vectorize(function.get_loops(each)[-1])
    kernel = codegen.lower_kernel(function.mod["main"], "kernel", device.get(name))
    assert "local" in kernel.function.script()
    file = ELFFile(io.BytesIO(codegen.build_object({"kernel": kernel}, codegen.tvm_target(device.get(name)))))
    assert [s.name for s in symbols(file) if s["st_shndx"] == "SHN_UNDEF" and s.name] == []


def two_kernels(target: device.Device) -> dict[str, codegen.CompiledKernel]:
    """Kernels that LLVM takes a while for."""
    schedules = list(every_schedule(target).items())[:2]
    return {symbol: codegen.lower_kernel(function, symbol, target) for symbol, function in schedules}


@pytest.mark.parametrize("name", TARGETS)
def test_an_object_is_the_same_each_time_and_holds_its_kernels_alone(name: str) -> None:
    """LLVM compiles each kernel by itself, with functions of TVM's beside it that none of ours calls."""
    target = device.get(name)
    kernels = two_kernels(target)
    first, second = (codegen.build_object(kernels, codegen.tvm_target(target)) for _ in range(2))
    assert first == second
    functions = [symbol.name for symbol in symbols(ELFFile(io.BytesIO(first))) if symbol["st_info"]["type"] == "STT_FUNC"]
    assert functions == list(kernels)


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_are_compiled_beside_each_other_only_where_llvm_has_no_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are the process's: a thread that ends would take them from the others."""
    target = device.get(name)
    kernels = two_kernels(target)
    compile_module = codegen._compile
    together = threading.Barrier(2)
    running: list[int] = []
    most: list[int] = []

    def compile_noted(*arguments: Any) -> None:
        running.append(1)
        most.append(len(running))
        if not repeats_iterations(target):
            together.wait()  # broken where they run one by one
        compile_module(*arguments)
        running.pop()

    monkeypatch.setattr(codegen, "_compile", compile_noted)
    monkeypatch.setattr(codegen.os, "sched_getaffinity", lambda _: {0, 1})
    assert codegen.build_object(kernels, codegen.tvm_target(target))
    assert max(most) == (1 if repeats_iterations(target) else 2)


def test_a_network_without_kernels_has_an_object() -> None:
    target = codegen.tvm_target(device.get("x86-64-v3"))
    assert ELFFile(io.BytesIO(codegen.build_object({}, target)))["e_type"] == "ET_REL"


def test_an_object_that_calls_a_library_is_refused() -> None:
    a = te.placeholder((64,), name="a", dtype="float64")
    function = te.create_prim_func([a, te.compute((64,), lambda i: tirx.exp(a[i]), name="b")])
    target = codegen.tvm_target(device.get("x86-64-v3"))
    with pytest.raises(ValueError, match="it would call exp of a C library"):
        codegen.build_object({"kernel": codegen.lower_kernel(function, "kernel", device.get("x86-64-v3"))}, target)


@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES))
def test_copying_and_clearing_is_exact(dtype: str, call_task: Callable[..., Any]) -> None:
    a = te.placeholder((100,), name="a", dtype=dtype)
    bordered = te.compute(
        (300,), lambda i: tirx.if_then_else(tirx.all(i >= 90, i < 190), a[i - 90], tirx.const(0, dtype)), name="bordered"
    )
    _, run = call_task(te.create_prim_func([a, bordered]))
    data = np.random.default_rng(0).bytes(100 * np.dtype(dtype).itemsize)
    source = np.frombuffer(data, np.uint8) % 2 == 1 if dtype == "bool" else np.frombuffer(data, dtype)
    result = np.full(300, 7, dtype)
    run(0, None, source, result)
    expected = np.zeros(300, dtype)
    expected[90:190] = source
    assert result.tobytes() == expected.tobytes()


MASKS = """<ir_version: 8, opset_import: ["" : 18]>
net (uint8[1,3,40,40] x) => (uint8[1,3,104,104] y, bool[1,4,40,40] m, bool[3,5000] none)
<int64[8] pads = {0,0,32,32,0,0,32,32}, uint8 limit = {100}, bool[1,1,40,40] off, bool[1] no = {0}, int64[2] shape = {3,5000}>
{
  y = Pad (x, pads)
  g = Greater (x, limit)
  m = Concat <axis = 1> (g, off)
  b = ReduceMin <keepdims = 0> (x)
  z = Less (b, b)
  none = Expand (z, shape)
}"""


@pytest.mark.parametrize("name", ["host", *TARGETS])
def test_masks_and_bytes_call_no_library(name: str) -> None:
    model = onnx.parser.parse_model(MASKS)
    del model.graph.value_info[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 1, 40, 40), bool), "off"))
    program, report = build_program(ir.from_proto(model), device.get(name))
    file = ELFFile(io.BytesIO(program.object_code))
    assert report.tail == ()
    assert [s.name for s in symbols(file) if s["st_shndx"] == "SHN_UNDEF" and s.name] == []
    if name != "host":
        return
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 40)).astype(np.uint8)
    with NativeRunner(program) as runner:
        found = runner.run({"x": x})
    np.testing.assert_array_equal(found["y"], np.pad(x, ((0, 0), (0, 0), (32, 32), (32, 32))))
    np.testing.assert_array_equal(found["m"], np.concatenate([x > 100, np.zeros((1, 1, 40, 40), bool)], axis=1))
    assert not found["none"].any()
