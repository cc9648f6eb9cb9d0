"""Loads of each register tile apart from those of the others: LLVM keeps no vectors for later tiles, which it would spill.

Of tiles that it writes out one behind the other, or of a loop whose reduction it unrolls whole, LLVM sees which vectors several
read, and loads them once: more than there are registers, so they go to the stack and come back from there, and multiply-adds are
ordered by what is left of registers. Each tile therefore reads through pointers of its own, which are moved by zero elements
without LLVM's knowing:

    # for p: a0 = b; for i: a0 += x[p + i] * w[i]; ...
    #   ->  for p: z = apart(); x' = x + z; w' = w + z; a0 = b; for i: a0 += x'[p + i] * w'[i]; ...

Weights of which all fit the registers beside accumulators are read as they are, and stay there. It runs on flat functions, after
loops were vectorised and unrolled.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import StringImm, TensorLoad, Var

if TYPE_CHECKING:
    from collections.abc import Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["APART", "separate_tiles"]

APART: Final = "sepwise_apart"
"""A function that gives 0, in no way that LLVM knows of; inlined, it is one instruction."""

_APART_CODE: Final = f"""
define i64 @{APART}() {{
  %zero = call i64 asm sideeffect "", "=r,0"(i64 0)
  ret i64 %zero
}}
"""


def separate_tiles(function: tirx.PrimFunc, registers: int) -> tirx.PrimFunc:
    """Loads of each register tile -> loads through pointers of its own.

    Args:
        function: Flat and vectorised, its loops unrolled.
        registers: Vector registers of the device.

    Returns:
        The function with such loads replaced, and with LLVM's intermediate code of what it calls for them.
    """
    accumulated = _accumulated(function.body)
    places: list[tuple[Expr, Expr]] = []
    apart: list[int] = []

    def on_declaration(declaration: tirx.DeclBuffer) -> None:
        if declaration.data is not None and declaration.buffer.scope() != "local":
            places.append((declaration.buffer, declaration.data))

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.Stmt:
        counts = {
            at: count
            for at, statement in enumerate(sequence.seq)
            if isinstance(statement, tirx.AllocBuffer)
            for buffer, count in accumulated
            if buffer.same_as(statement.buffer)
        }
        starts = list(counts)
        if not starts:
            return sequence
        statements = list(sequence.seq[: starts[0]])
        for start, end in itertools.pairwise([*starts, len(sequence.seq)]):
            tile = _apart(sequence.seq[start:end], counts[start], places, registers)
            apart.extend([start] * (len(tile) > end - start))
            statements += tile
        return tirx.SeqStmt(statements)

    tvm_ffi.structural_walk(function.body, (tirx.DeclBuffer, on_declaration), order="pre")
    body = tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence))
    if not apart:
        return function
    return function.with_body(tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(_APART_CODE), body))


def _accumulated(body: tirx.Stmt) -> list[tuple[Expr, int]]:
    """The registers that vectors of products are accumulated in, with how many vectors they are."""
    found: list[tuple[Expr, int]] = []

    def on_sum(store: tirx.BufferStore) -> None:
        total, buffer = store.value, store.buffer
        if buffer.scope() != "local" or not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
            return
        lanes = int(total.ty.dtype.lanes)
        summed = isinstance(total.a, TensorLoad) and total.a.source.same_as(buffer)
        if lanes > 1 and summed and not _among(buffer, [known for known, _ in found]):
            found.append((buffer, math.prod(map(int, buffer.ty.shape)) // lanes))

    tvm_ffi.structural_walk(body, (tirx.BufferStore, on_sum))
    return found


def _apart(tile: Sequence[tirx.Stmt], accumulators: int, places: Sequence[tuple[Expr, Expr]], registers: int) -> list[tirx.Stmt]:
    """The statements of a tile, with pointers of its own to what registers beside its accumulators do not hold."""
    together = tvm_ffi.Array(tile)  # a walk costs more than a statement in it
    written: list[Expr] = []

    def on_store(store: tirx.BufferStore) -> None:
        if not _among(store.buffer, written):
            written.append(store.buffer)

    tvm_ffi.structural_walk(together, (tirx.BufferStore, on_store))
    zero = Var("zero", PrimType("int64"))
    declared: list[tirx.Stmt] = [tirx.Bind(zero, tirx.call_extern("int64", APART))]
    moved: list[tuple[Expr, Expr]] = []
    counts = _vectors(together, [source for source, _ in places])
    for (source, place), count in zip(places, counts, strict=True):
        if _among(source, written) or count + accumulators <= registers:
            continue
        data = tirx.call_intrin(PointerType(source.ty.dtype), "tirx.handle_add_byte_offset", place, zero)
        buffer = tirx.decl_buffer(source.ty.shape, source.ty.dtype, source.name)
        declared.append(tirx.DeclBuffer(buffer, data=data))
        moved.append((source, buffer))
    if not moved:
        return list(tile)

    def on_load(load: TensorLoad) -> Expr:
        buffer = next((buffer for source, buffer in moved if source.same_as(load.source)), None)
        return load if buffer is None else tirx.BufferLoad(buffer, load.indices)

    return [*declared, *tvm_ffi.structural_map(together, (TensorLoad, on_load))]


def _vectors(statements: tvm_ffi.Array[tirx.Stmt] | tirx.Stmt, sources: Sequence[Expr]) -> list[int]:
    """For each tensor the different vectors, or broadcast elements, that statements load of it, each iteration others."""
    places: list[set[Any]] = [set() for _ in sources]
    inside = [0 for _ in sources]

    def on_load(load: TensorLoad) -> None:
        if load.source.scope() == "local":
            return
        for source, known in zip(sources, places, strict=True):
            if source.same_as(load.source):
                known.add(tvm_ffi.StructuralKey(load.indices[0]))

    def on_loop(loop: tirx.For) -> tvm_ffi.WalkResult:
        extent = int(loop.extent.value) if isinstance(loop.extent, tirx.IntImm) else 1
        for number, count in enumerate(_vectors(loop.body, sources)):
            inside[number] += extent * count
        return tvm_ffi.WalkResult.SKIP

    tvm_ffi.structural_walk(statements, ((tirx.For, on_loop), (TensorLoad, on_load)), order="pre")
    return [len(known) + count for known, count in zip(places, inside, strict=True)]


def _among(buffer: Expr, buffers: Sequence[Expr]) -> bool:
    """Whether a buffer is one of several."""
    return any(buffer.same_as(other) for other in buffers)
