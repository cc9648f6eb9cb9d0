"""Loads in constant lane orders: what becomes a permutation of whole vectors, which vectors, and what stays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir.expr import TensorLoad

from sepwise.lowering import codegen, device
from sepwise.lowering.lane_loads import map_runs, permute_loads

LANES = 8

Index = Callable[[Any, Any], Any]


def kernel(index: Index, elements: int, rows: int = 3) -> tirx.PrimFunc:
    """`y[r, v] = x[index(r, v)]`, vectorised over `v`."""
    x = te.placeholder((elements,), name="x")
    y = te.compute((rows, LANES), lambda r, v: x[index(r, v)], name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    *_, lane = schedule.get_loops(schedule.get_sblock("y"))
    schedule.vectorize(lane)
    return schedule.mod["main"]


def loads(function: tirx.PrimFunc) -> list[int]:
    """Lanes of each load that is left after the pass."""
    found: list[TensorLoad] = []
    body = codegen.lower_kernel(function, "k", device.get("x86-64-v3")).function.body
    tvm_ffi.structural_walk(body, (TensorLoad, found.append), order="pre")
    return [int(load.ty.dtype.lanes) for load in found]


MOVED: dict[str, tuple[Index, int, list[int]]] = {
    "reversed": (lambda r, v: r * 8 + 7 - v, 24, [8]),
    "each twice": (lambda r, v: r * 4 + v // 2, 12, [4, 4]),  # of one vector of four lanes, which Shuffle is given twice
    "pairs swapped": (lambda r, v: r * 8 + v // 2 * 2 + 1 - v % 2, 24, [8]),
    "every other": (lambda r, v: r * 16 + (v * 2 + 3) % 16, 48, [8, 8]),
    "of two rows": (lambda r, v: r * 8 + v // 4 * 24 + v % 4 * 2, 48, [8, 8]),
    "behind a limit": (lambda r, v: tirx.min(r, 1) * 8 + v // 2, 16, [8]),
}


@pytest.mark.parametrize("name", MOVED)
def test_lanes_are_permuted(name: str, native: Callable[..., Any]) -> None:
    index, elements, widths = MOVED[name]
    function = kernel(index, elements)
    assert loads(function) == widths
    x, y = np.arange(elements, dtype=np.float32), np.zeros((3, LANES), np.float32)
    native({"k": function}, device.get("host"))("k", x, y)
    analyzer = tvm.sym.Analyzer()
    right = [[int(analyzer.simplify(index(tirx.const(r, "int32"), tirx.const(v, "int32")))) for v in range(LANES)] for r in range(3)]
    assert np.array_equal(y, np.array(right, np.float32))


@pytest.mark.parametrize(
    ("index", "elements"),
    [
        (lambda r, v: r * 8 + v, 24),  # in order
        (lambda r, v: r * 7, 24),  # all the same
        (lambda r, v: r + v * 5, 40),  # each in another vector
        (lambda r, v: r * 3 + v // 4 * 4 + 3 - v % 4, 12),  # starts anywhere
        (lambda r, v: r * 4 + v // 2, 13),  # the last vector would reach past the end
    ],
    ids=["ramp", "broadcast", "far apart", "unaligned", "past the end"],
)
def test_other_loads_stay(index: Index, elements: int) -> None:
    function = kernel(index, elements, rows=2)
    flat = codegen._FLATTEN(tvm.IRModule({"k": function.with_attr("global_symbol", "k")}))["k"]
    after = permute_loads(flat, tvm.IRModule(), None)
    tvm.ir.assert_structural_equal(after, flat)


def test_what_writes_memory_ends_a_run_and_stays() -> None:
    buffers = {scope: tirx.decl_buffer((4,), scope=scope) for scope in ("local", "global")}
    places = [("local", 0), ("local", 1), ("global", 0), ("local", 2), ("global", 2), ("global", 1)]
    stores = [tirx.BufferStore(buffers[scope], tirx.const(0.0, "float32"), [place]) for scope, place in places]
    runs: list[list[int]] = []

    def reverse(run: Sequence[tirx.BufferStore]) -> Sequence[tirx.Stmt]:
        runs.append([int(store.indices[0]) for store in run])
        return run[::-1]

    mapped = map_runs(tirx.PrimFunc([], tirx.SeqStmt(stores)), reverse).body
    assert runs == [[0, 1], [2]]
    assert [(store.buffer.scope(), int(store.indices[0])) for store in mapped.seq] == [places[n] for n in (1, 0, 2, 3, 4, 5)]
