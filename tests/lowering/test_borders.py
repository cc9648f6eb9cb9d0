"""Border tiles apart from inner ones: which versions there are, what is left to test in each, and the values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir.expr import Call

from sepwise.lowering import borders, codegen, device, tiling

LANES = 8
TILES = 6


def shifted(first: int, last: int, *, task: bool = False) -> tirx.PrimFunc:
    """`y[t, v] = x[t - 1, v] + x[t + 1, v]`, zero outside, vectorised over `v`; `t` is marked."""
    x = te.placeholder((TILES, LANES), name="x")

    def neighbour(t: Any, v: Any) -> Any:
        return tirx.if_then_else(tirx.all(t >= 0, t < TILES), x[t, v], tirx.const(0.0, "float32"))

    y = te.compute((TILES, LANES), lambda t, v: neighbour(t - 1, v) + neighbour(t + 1, v), name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    t, lane = schedule.get_loops(schedule.get_sblock("y"))
    schedule.vectorize(lane)
    borders.mark_border(schedule, t, first, last)
    if task:
        tiling.mark_task(schedule, t)
    return schedule.mod["main"]


def peeled(function: tirx.PrimFunc) -> tirx.Stmt:
    flat = codegen._FLATTEN(tvm.IRModule({"k": function.with_attr("global_symbol", "k")}))["k"]
    return borders.peel_borders(flat.body)


def found(body: tirx.Stmt, kind: type) -> list[Any]:
    nodes: list[Any] = []
    tvm_ffi.structural_walk(body, (kind, nodes.append), order="pre")
    return nodes


def left_to_test(body: tirx.Stmt) -> list[Call]:
    return [call for call in found(body, Call) if getattr(call.op, "name", "") == "prim.if_then_else"]


def test_inner_tiles_test_nothing() -> None:
    body = peeled(shifted(1, 1))
    (loop,) = found(body, tirx.For)
    assert int(loop.extent) == TILES - 2
    assert not left_to_test(loop)
    assert not loop.annotations
    assert len(found(body, tirx.BufferStore)) == 3


def test_what_is_not_known_is_still_tested() -> None:
    (loop,) = found(peeled(shifted(1, 0)), tirx.For)
    (left,) = left_to_test(loop)  # of the last neighbour alone
    assert int(loop.extent) == TILES - 1
    assert not found(left.args[0], tirx.And)


def test_no_tile_inside() -> None:
    body = peeled(shifted(TILES, 0))
    assert not found(body, tirx.For)
    assert len(found(body, tirx.BufferStore)) == TILES


def test_a_loop_without_borders_is_not_marked() -> None:
    (loop,) = found(peeled(shifted(0, 0)), tirx.For)
    assert int(loop.extent) == TILES


@pytest.mark.parametrize("task", [False, True])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (2, 0), (0, 3), (3, 3), (TILES, 0), (1, 0)])
def test_values(first: int, last: int, task: bool, native: Callable[..., Any]) -> None:
    x, y = np.random.default_rng(0).standard_normal((TILES, LANES)).astype(np.float32), np.empty((TILES, LANES), np.float32)
    native({"k": shifted(first, last, task=task)}, device.get("host"))("k", x, y)
    around = np.pad(x, ((1, 1), (0, 0)))
    assert np.array_equal(y, around[:-2] + around[2:])
