"""Pointers of register tiles: which tensors are read through their own, and that LLVM then keeps nothing for later tiles."""

from typing import Any

import pytest
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import Call, TensorLoad, Var

from sepwise.lowering.tile_loads import APART, separate_tiles

LANES, REGISTERS = 16, 32


def ramp(start: Any) -> tirx.Ramp:
    start = tirx.IntImm("int32", start) if isinstance(start, int) else start
    return tirx.Ramp(start, tirx.IntImm("int32", 1), LANES)


X, W, Y = (tirx.decl_buffer((4096,), "float32", name) for name in "xwy")
TOTAL = tirx.decl_buffer((2 * LANES,), "float32", "total", scope="local")
STEP = Var("i", PrimType("int32"))


def add(x: Any, w: Any, number: int = 0) -> tirx.Stmt:
    """`total[number] += x[...] * w[...]`, vectors."""
    place = ramp(number * LANES)
    product = tirx.BufferLoad(X, [ramp(x)]) * tirx.BufferLoad(W, [ramp(w)])
    return tirx.BufferStore(TOTAL, tirx.BufferLoad(TOTAL, [place]) + product, [place])


def tile(*sums: tirx.Stmt) -> list[tirx.Stmt]:
    """Two accumulators that start from 0, their sums, and a store."""
    zeros = tirx.Broadcast(tirx.FloatImm("float32", 0.0), LANES)
    starts = [tirx.BufferStore(TOTAL, zeros, [ramp(number * LANES)]) for number in range(2)]
    return [tirx.AllocBuffer(TOTAL), *starts, *sums, tirx.BufferStore(Y, tirx.BufferLoad(TOTAL, [ramp(0)]), [ramp(0)])]


def function(*statements: tirx.Stmt) -> tirx.PrimFunc:
    handles = [Var(f"{buffer.name}_data", PointerType(PrimType("float32"))) for buffer in (X, W, Y)]
    declared = [tirx.DeclBuffer(buffer, data=handle) for buffer, handle in zip((X, W, Y), handles, strict=True)]
    return tirx.PrimFunc(handles, tirx.SeqStmt([*declared, *statements]))


def sources(after: tirx.PrimFunc, name: str) -> list[Any]:
    """The different buffers of a name that are read."""
    found: list[Any] = []

    def note(load: TensorLoad) -> None:
        if load.source.name == name and not any(load.source.same_as(other) for other in found):
            found.append(load.source)

    tvm_ffi.structural_walk(after.body, (TensorLoad, note))
    return found


def calls(after: tirx.PrimFunc) -> int:
    found: list[Call] = []
    tvm_ffi.structural_walk(after.body, (Call, found.append))
    return sum(APART in str(call) and "call_extern" in str(call.op) for call in found)


def test_each_tile_has_pointers_to_what_registers_do_not_hold() -> None:
    sums = [add(step * LANES, 0) for step in range(REGISTERS)]
    after = separate_tiles(function(*tile(*sums), *tile(*sums)), REGISTERS)
    first, second = sources(after, "x")
    assert not first.same_as(X)
    assert not second.same_as(X)
    assert calls(after) == 2


def test_weights_that_fit_registers_stay_there() -> None:
    sums = [add(step * LANES, step % 9 * LANES) for step in range(REGISTERS)]
    (weight,) = sources(separate_tiles(function(*tile(*sums)), REGISTERS), "w")
    assert weight.same_as(W)


@pytest.mark.parametrize(("vectors", "apart"), [(REGISTERS - 2, False), (REGISTERS - 1, True)])
def test_registers_beside_the_accumulators_count(vectors: int, apart: bool) -> None:
    before = function(*tile(*(add(step * LANES, 0, step % 2) for step in range(vectors))))
    after = separate_tiles(before, REGISTERS)
    (source,) = sources(after, "x")
    assert source.same_as(X) is not apart


def test_iterations_of_a_reduction_count_each() -> None:
    loop = tirx.For(STEP, 0, 40, tirx.ForKind.SERIAL, add(0, STEP * LANES))
    after = separate_tiles(function(*tile(loop)), REGISTERS)
    (weight,) = sources(after, "w")
    assert not weight.same_as(W)


def test_what_a_tile_writes_keeps_its_pointer() -> None:
    sums = [add(step * LANES, 0) for step in range(REGISTERS)]
    copied = tirx.BufferStore(X, tirx.BufferLoad(W, [ramp(0)]), [ramp(0)])
    (source,) = sources(separate_tiles(function(*tile(*sums, copied)), REGISTERS), "x")
    assert source.same_as(X)


def test_a_function_without_accumulators_stays() -> None:
    before = function(tirx.BufferStore(Y, tirx.BufferLoad(X, [ramp(0)]), [ramp(0)]))
    assert separate_tiles(before, REGISTERS).same_as(before)


def test_a_tile_whose_vectors_all_fit_stays() -> None:
    before = function(*tile(add(0, 0), add(LANES, LANES)))
    assert separate_tiles(before, REGISTERS).same_as(before)


def test_sums_that_multiply_nothing_stay() -> None:
    place = ramp(0)
    sums = [
        tirx.BufferStore(TOTAL, tirx.BufferLoad(TOTAL, [place]) + tirx.BufferLoad(X, [ramp(step * LANES)]), [place])
        for step in range(REGISTERS)
    ]
    before = function(*tile(*sums))
    assert separate_tiles(before, REGISTERS).same_as(before)
