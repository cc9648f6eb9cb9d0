"""From scheduled PrimFuncs to one object file of plain C functions.

The loops of a scheduled PrimFunc that are annotated with `TASK_LOOP` (nested in each other) become the
kernel's last parameter. Buffers of the schedule that do not fit the stack are placed in the caller's scratch. The
result is `void symbol(arg0 *, ..., void *scratch, int32_t task)`: it never allocates, never launches, and the
object has no undefined symbol and no writable data.

TVM's packed ABI is not used on purpose: a plain C function needs no argument boxes at each call, lets LLVM see that
its buffers do not alias, and is what a bundle or an emulator wants to link.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import Call, StringImm, TensorLoad, Var

from sepwise.lowering.advanced_simd import clamp_by_minimum, load_by_streams, load_lanes_together, order_by_input
from sepwise.lowering.borders import peel_borders
from sepwise.lowering.cost import repeats_iterations
from sepwise.lowering.lane_loads import permute_loads
from sepwise.lowering.link import merge_objects
from sepwise.lowering.prefetch import ask_for_next_tiles, prefetch_next
from sepwise.lowering.quotients import ascend_quotients
from sepwise.lowering.scalable import widen_loops
from sepwise.lowering.symbols import undefined_symbols
from sepwise.lowering.tile_loads import separate_tiles
from sepwise.lowering.tiling import TASK_LOOP
from sepwise.lowering.vector_math import replace_math
from sepwise.lowering.width_loads import load_along_width
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sepwise.lowering.device import Device

__all__ = ["HIDDEN", "CompiledKernel", "build_object", "computes_float16", "lower_kernel", "tvm_target"]

STACK_BYTES = 4096
"""Buffers of a schedule up to this size live on the stack (registers, mostly); larger ones in scratch."""

ALIGNMENT_BYTES = 64

HIDDEN = "sepwise_hidden"
"""A function that gives what it is given, in no way that LLVM knows of; inlined, it is no instruction."""

FLOAT16_FEATURES = frozenset({"fullfp16", "avx512fp16"})
"""LLVM's names of float16 arithmetic."""

LLVM_OPTIONS = ("-misched-cyclicpath:bool=false",)
"""LLVM's options where iterations share a counter. Its scheduler would otherwise take the chains of accumulations of a long loop
for what limits it, load what all of them read first, and spill; their loads stand where they are needed."""

OBJECT_BYTES = 32 << 20
"""Room that an object file is given, ample for hundreds of kernels."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel's lowered function and what its caller must know.

    Attributes:
        symbol: C symbol.
        function: Lowered PrimFunc, ready for LLVM.
        tasks: Product of the task loops' shares, 1 without one.
        scratch_bytes: Scratch that one worker needs.
    """

    symbol: str
    function: tirx.PrimFunc
    tasks: int
    scratch_bytes: int


def tvm_target(device: Device) -> tvm.target.Target:
    """Builds TVM's target for a device.

    Args:
        device: Its triple, cpu and features.

    Returns:
        An LLVM target.
    """
    options: dict[str, Any] = {"kind": "llvm", "mtriple": device.triple, "mcpu": device.cpu}
    options["vector-width"] = 8 * device.vector_bytes
    if device.features:
        options["mattr"] = list(device.features)
    if repeats_iterations(device):
        options["cl-opt"] = list(LLVM_OPTIONS)
    return tvm.target.Target(options)


@cache
def computes_float16(device: Device) -> bool:
    """Tells whether a device has float16 arithmetic in vectors, and not conversions alone.

    Args:
        device: Its triple, cpu and features.

    Returns:
        Whether LLVM may use FEAT_FP16 of AArch64 or AVX512-FP16 for it.
    """
    features = tvm.get_global_func("target.llvm_get_cpu_features")(tvm_target(device))
    return not FLOAT16_FEATURES.isdisjoint(map(str, features))


def lower_kernel(function: tirx.PrimFunc, symbol: str, device: Device) -> CompiledKernel:
    """Lowers one scheduled PrimFunc to the kernel interface.

    Args:
        function: Scheduled; its parameters are buffers of static shape.
        symbol: C symbol of the result.
        device: The target.

    Returns:
        The lowered kernel.
    """
    module = tvm.IRModule({symbol: function.with_attr({"global_symbol": symbol, "target": tvm_target(device)})})
    flat = replace_math(_FLATTEN(module)[symbol])
    body, tasks, task = _take_task_loops(peel_borders(flat.body))
    parameters = list(flat.params)
    handles = [
        Var(f"{parameter.name}_data", PointerType(parameter.ty.dtype)) for parameter in parameters
    ]
    body = _bind_parameters(body, parameters, handles)
    scratch = Var("scratch", PointerType(PrimType("uint8")))
    body, scratch_bytes = _place_scratch(body, scratch)
    lowered = tirx.PrimFunc([*handles, scratch, task], body, flat.ret_type, flat.attrs)
    lowered = lowered.with_attr("tirx.noalias", True)
    lowered = _UNROLL(tvm.IRModule({symbol: lowered}))[symbol]
    lowered = load_along_width(lowered)
    lowered = lowered.with_body(_hide_moves(lowered.body))
    if device.scalable_bytes:
        lowered = widen_loops(lowered)
    if device.isa == "x86":
        lowered = ask_for_next_tiles(separate_tiles(order_by_input(lowered), device.vector_registers))
    if device.multiplies_by_lane:
        lowered = prefetch_next(order_by_input(load_lanes_together(clamp_by_minimum(lowered))))
        lowered = load_by_streams(lowered, device.vector_registers, repeated=repeats_iterations(device))
    module = _FINISH(tvm.IRModule({symbol: lowered}))
    return CompiledKernel(symbol, module[symbol], tasks, scratch_bytes)


def build_object(kernels: Mapping[str, CompiledKernel], target: tvm.target.Target) -> bytes:
    """Compiles kernels to one relocatable object: each by itself, as many at a time as there are processors to run on.

    Args:
        kernels: By symbol.
        target: The LLVM target.

    Returns:
        The object file's bytes, the same each time.

    Raises:
        InputError: The folder for temporary files has no room, or zig is not installed.
        ValueError: A kernel calls a function that is not in the object.
    """
    modules = [tvm.IRModule({symbol: kernel.function}) for symbol, kernel in kernels.items()] or [tvm.IRModule()]
    # The options are the process's: whoever is done takes them from all others.
    workers = 1 if "cl-opt" in target.attrs else len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        free = shutil.disk_usage(folder).free
        if free < OBJECT_BYTES:  # LLVM would end the process
            raise InputError(
                f"{tempfile.gettempdir()}: {free} bytes are free and an object needs up to {OBJECT_BYTES}. Make room, or "
                "set TMPDIR to another folder."
            )
        path = Path(folder) / "kernels.o"
        objects = [Path(folder) / f"{number}.o" for number in range(len(modules))] if len(modules) > 1 else [path]
        with ThreadPoolExecutor(min(workers, len(modules))) as pool:
            list(pool.map(_compile, modules, itertools.repeat(target), objects))
        if len(modules) > 1:
            merge_objects(objects, kernels, str(target.attrs["mtriple"]), path)
        object_code = path.read_bytes()
    if missing := undefined_symbols(object_code):
        raise ValueError(f"it would call {', '.join(missing)} of a C library")
    return object_code


def _compile(module: tvm.IRModule, target: tvm.target.Target, output: Path) -> None:
    """Compiles functions to an object file; Python runs beside LLVM."""
    tvm.get_global_func("target.build.llvm")(module, target).write_to_file(str(output))


_FLATTEN = tvm.ir.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.prim_func_pass(ascend_quotients, opt_level=0),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(),
    ]
)

_UNROLL = tvm.ir.transform.Sequential(
    [
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
    ]
)

_FINISH = tvm.ir.transform.Sequential(
    [
        tirx.transform.prim_func_pass(permute_loads, opt_level=0),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.LowerIntrin(),
        tirx.transform.SkipAssert(),
    ]
)


def _take_task_loops(body: tirx.Stmt) -> tuple[tirx.Stmt, int, Var]:
    """`for n: for o: f(n, o)` -> `f(task // O, task % O)`; returns the body, the tasks and the task variable.

    A loop of grain `g` over `extent` stays as a loop over its share:
    `for p in range(min(g, extent - t * g)): f(t * g + p)`, its `t` varying slowest of all.
    """
    task = Var("task", PrimType("int32"))
    loops: list[tirx.For] = []

    def on_task_loop(loop: tirx.For) -> None:
        """Notes a loop once, also where the branches of a condition around it have a copy each."""
        if TASK_LOOP in loop.annotations and not _among(loop.loop_var, [other.loop_var for other in loops]):
            loops.append(loop)

    tvm_ffi.structural_walk(body, (tirx.For, on_task_loop), order="pre")
    shares = {id(loop): _ceil_div(int(loop.extent), int(loop.annotations[TASK_LOOP])) for loop in loops}
    fastest_first = sorted(reversed(loops), key=lambda loop: int(loop.annotations[TASK_LOOP]) > 1)
    starts: list[tuple[tirx.For, Any]] = []
    stride = 1
    tasks = math.prod(shares.values())
    for loop in fastest_first:
        share = shares[id(loop)]
        index = task if stride == 1 else tirx.floordiv(task, stride)
        if stride * share < tasks:
            index = tirx.floormod(index, share)
        starts.append((loop, tirx.const(0, "int32") if share == 1 else index))
        stride *= share

    def on_for(loop: tirx.For) -> tirx.Stmt:
        if TASK_LOOP not in loop.annotations:
            return loop
        index = next(start for other, start in starts if other.loop_var.same_as(loop.loop_var))
        grain = int(loop.annotations[TASK_LOOP])
        if grain == 1:
            return _substitute(loop.body, loop.loop_var, index)
        inner = Var(f"{loop.loop_var.name}_in_task", PrimType("int32"))
        first = index * grain
        inner_body = _substitute(loop.body, loop.loop_var, first + inner)
        extent = tirx.min(grain, loop.extent - first)
        annotations = {key: value for key, value in loop.annotations.items() if key != TASK_LOOP}
        return tirx.For(inner, 0, extent, tirx.ForKind.SERIAL, inner_body, None, annotations)

    return tvm_ffi.structural_map(body, (tirx.For, on_for)), tasks, task


def _substitute(body: tirx.Stmt, variable: Var, value: Any) -> tirx.Stmt:
    """`body` with `value` for `variable`."""
    return tvm_ffi.structural_map(body, (Var, lambda v: value if v.same_as(variable) else v))


def _ceil_div(dividend: int, divisor: int) -> int:
    """Integer division, rounded up."""
    return -(-dividend // divisor)


def _bind_parameters(body: tirx.Stmt, parameters: list[Var], handles: list[Var]) -> tirx.Stmt:
    """`decl_buffer(data=A.data)` -> `decl_buffer(data=A_data)` for each buffer parameter `A`."""

    def on_call(call: Call) -> Any:
        if getattr(call.op, "name", "") != "tirx.buffer_data":
            return call
        for parameter, handle in zip(parameters, handles, strict=True):
            if call.args[0].same_as(parameter):
                return handle
        return call

    return tvm_ffi.structural_map(body, (Call, on_call))


def _place_scratch(body: tirx.Stmt, scratch: Var) -> tuple[tirx.Stmt, int]:
    """`alloc_buffer` over `STACK_BYTES` -> `decl_buffer` at an offset of the scratch; returns the bytes used."""
    used = 0
    places: list[tuple[Var, int]] = []

    def on_alloc(alloc: tirx.AllocBuffer) -> tirx.Stmt:
        nonlocal used
        buffer = alloc.buffer
        count = 1
        for extent in buffer.ty.shape:
            count *= int(extent)
        nbytes = count * (buffer.ty.dtype.dtype.bits // 8)
        if nbytes <= STACK_BYTES:
            return alloc
        offset = next((place for other, place in places if other.same_as(buffer)), None)
        if offset is None:  # else another version of the same statement, one of which runs
            offset = used
            places.append((buffer, offset))
            used += _ceil_div(nbytes, ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        data = tirx.call_intrin(
            PointerType(buffer.ty.dtype), "tirx.handle_add_byte_offset", scratch, offset
        )
        return tirx.DeclBuffer(buffer, data=data)

    mapped = tvm_ffi.structural_map(body, (tirx.AllocBuffer, on_alloc))
    return mapped, used


def _hide_moves(body: tirx.Stmt) -> tirx.Stmt:
    """`buffer[i] = other[i]` or `buffer[i] = 0` -> the same with its bits xor `zero`, which is 0 without LLVM's knowing.

    A loop that only moves or clears bytes, such as the copy of padded rows, otherwise becomes a call of the C
    library's `memcpy` or `memset`. Of bytes any store may be one of a single value, and `memset` takes values that are not
    known: so they are xor `zero & (i | 1)`, which is another one in each step, and booleans or `zero & i & 64`.
    """
    moving = _moving_registers(body)
    zero = tirx.call_pure_extern("int32", HIDDEN, tirx.const(0, "int32"))

    def on_store(store: tirx.BufferStore) -> tirx.Stmt:
        dtype = store.value.ty.dtype
        kind, lanes = str(dtype).split("x")[0], int(dtype.lanes)
        if store.buffer.scope() == "local":
            return store
        if kind == "bool":
            changing = _in_each_step(zero, store, lambda index: tirx.bitwise_and(index, tirx.const(64, str(index.ty.dtype))))
            value = tirx.Or(store.value, tirx.NE(changing, tirx.const(0, str(changing.ty.dtype))))
            return tirx.BufferStore(store.buffer, value, store.indices)
        if kind not in _MOVED_TYPES or not (dtype.bits == 8 or _only_moves(store.value, moving)):
            return store
        integer = _MOVED_TYPES[kind] + (f"x{lanes}" if lanes > 1 else "")
        if dtype.bits == 8:
            hidden = _in_each_step(zero, store, lambda index: tirx.bitwise_or(index, tirx.const(1, str(index.ty.dtype))))
        else:
            hidden = zero if lanes == 1 else tirx.Broadcast(zero, lanes)
        bits = hidden if str(hidden.ty.dtype) == integer else tirx.Cast(integer, hidden)
        value = store.value if str(dtype) == integer else tirx.reinterpret(integer, store.value)
        value = tirx.bitwise_xor(value, bits)
        value = value if str(dtype) == integer else tirx.reinterpret(str(dtype), value)
        return tirx.BufferStore(store.buffer, value, store.indices)

    changed = tvm_ffi.structural_map(body, (tirx.BufferStore, on_store))
    if changed.same_as(body):
        return body
    return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(_HIDDEN_CODE), changed)


def _in_each_step(zero: Any, store: tirx.BufferStore, spread: Callable[[Any], Any]) -> Any:
    """`zero & spread(index)` in all lanes of a flat store; of a vector in a row the first index stands for all."""
    (index,) = store.indices
    lanes = int(store.value.ty.dtype.lanes)
    index = index.base if isinstance(index, tirx.Ramp) else index
    each = int(index.ty.dtype.lanes)
    wanted = "int32" if each == 1 else f"int32x{each}"
    index = index if str(index.ty.dtype) == wanted else tirx.Cast(wanted, index)
    hidden = tirx.bitwise_and(zero if each == 1 else tirx.Broadcast(zero, each), spread(index))
    return hidden if each == lanes else tirx.Broadcast(hidden, lanes)


_HIDDEN_CODE = f"""
define i32 @{HIDDEN}(i32 %value) {{
  %same = call i32 asm "", "=r,0"(i32 %value) memory(none)
  ret i32 %same
}}
"""

_MOVED_TYPES = {
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"int{bits}" for bits in (16, 32, 64)},
}
"""Element types whose moves are hidden, with the integer of as many bits."""


def _moving_registers(body: tirx.Stmt) -> list[Var]:
    """Buffers in registers that are filled with constants, or at once with what only moves, and that nothing accumulates in.

    Of several versions of a statement, as of borders and what is between them, one that fills so is enough.
    """
    filled: list[Var] = []
    accumulated: list[Var] = []

    def on_fill(store: tirx.BufferStore) -> None:
        register, value = store.buffer, store.value
        if register.scope() != "local" or _among(register, filled):
            return
        if _is_number(value) or (int(value.ty.dtype.lanes) == math.prod(map(int, register.ty.shape)) and _only_moves(value)):
            filled.append(register)

    def on_sum(store: tirx.BufferStore) -> None:
        register = store.buffer
        if _among(register, filled) and not _among(register, accumulated):
            accumulated.extend(load.source for load in _loads(store.value) if load.source.same_as(register))

    tvm_ffi.structural_walk(body, (tirx.BufferStore, on_fill))
    tvm_ffi.structural_walk(body, (tirx.BufferStore, on_sum))
    return [register for register in filled if not _among(register, accumulated)]


def _among(register: Var, registers: Sequence[Var]) -> bool:
    """Whether a register is one of several."""
    return any(register.same_as(other) for other in registers)


def _only_moves(value: Any, moving: Sequence[Var] = ()) -> bool:
    """Whether a value is a constant, an element of a buffer or of the registers `moving`, or one or the other of such.

    Where the indices alone decide between two values, LLVM may make a loop of each: then one of them is enough.
    """
    if isinstance(value, TensorLoad) and value.source.scope() == "local" and _constant(value.indices[0]):
        return _among(value.source, moving)
    if isinstance(value, tirx.Select):
        condition, *branches = value.condition, value.true_value, value.false_value
    elif isinstance(value, Call) and getattr(value.op, "name", "") == "prim.if_then_else":
        condition, *branches = value.args
    else:
        return _is_number(value) or isinstance(value, TensorLoad)
    return (all if _loads(condition) else any)(_only_moves(branch, moving) for branch in branches)


def _is_number(value: Any) -> bool:
    """Whether a value is a constant, in one lane or in all."""
    return isinstance(value.value if isinstance(value, tirx.Broadcast) else value, (tirx.FloatImm, tirx.IntImm))


def _loads(value: Any) -> list[TensorLoad]:
    """What a value reads of buffers."""
    loads: list[TensorLoad] = []
    tvm_ffi.structural_walk(value, (TensorLoad, loads.append))
    return loads


def _constant(index: Any) -> bool:
    """Whether an index is the same wherever it is read."""
    return isinstance(index.base if isinstance(index, tirx.Ramp) else index, tirx.IntImm)
