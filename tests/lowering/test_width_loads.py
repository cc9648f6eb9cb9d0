"""Loads at the border and with a stride: whole vectors where neighbours are read, and nothing that lies outside."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir.expr import TensorLoad

from sepwise.lowering import codegen, device

LANES, ROWS = 4, 3

Place = Callable[[int, int], int]


def kernel(place: Callable[[Any, Any], Any], elements: int) -> tirx.PrimFunc:
    """`y[r, v] = 2 * (x[place(r, v)] where there is such an element, else 0)`, vectorised over `v`."""
    x = te.placeholder((elements,), name="x")

    def inside(r: Any, v: Any) -> Any:
        p = place(r, v)
        return tirx.Select(tirx.all(p >= 0, p < elements), x[p], tirx.const(0.0, "float32"))

    a = te.compute((ROWS, LANES), inside, name="a")
    y = te.compute((ROWS, LANES), lambda r, v: a[r, v] * 2.0, name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    schedule.set_scope(schedule.get_sblock("a"), 0, "local")
    for name in ("a", "y"):
        row, lane = schedule.get_loops(schedule.get_sblock(name))
        schedule.unroll(row)
        schedule.vectorize(lane)
    return schedule.mod["main"]


def loads(function: tirx.PrimFunc) -> list[tuple[int, int]]:
    """First element and lanes of each load of `x`, once, in order."""
    found: list[TensorLoad] = []
    body = codegen.lower_kernel(function, "k", device.get("x86-64-v2")).function.body
    tvm_ffi.structural_walk(body, (TensorLoad, found.append), order="pre")
    places = [(load.indices[0], int(load.ty.dtype.lanes)) for load in found if load.source.name.startswith("x")]
    return sorted({(int(getattr(index, "base", index)), lanes) for index, lanes in places})


CASES: dict[str, tuple[Place, int, list[tuple[int, int]]]] = {
    "taps of a row": (lambda r, v: r + v, 6, [(0, 4), (1, 4), (2, 4)]),
    "before the first": (lambda r, v: r + v - 1, 5, [(0, 4), (1, 4)]),
    "behind the last": (lambda r, v: r + v, 5, [(0, 4), (1, 4)]),
    "both sides of fewer than a vector": (lambda r, v: r + v - 1, 3, [(0, 3), (1, 2)]),
    "all outside": (lambda r, v: 7 * r + v - 7, 4, [(0, 4)]),
    "stride": (lambda r, v: 2 * v + r, 9, [(0, 8), (1, 8)]),
    "stride, one phase": (lambda r, v: 2 * v + 7 * r, 21, [(0, 4), (3, 4), (7, 4), (10, 4), (14, 4), (17, 4)]),
    "stride at the border": (lambda r, v: 2 * v + r - 2, 6, [(0, 4), (1, 4), (2, 4)]),
    "every third": (lambda r, v: 3 * v + r, 12, [(0, 12)]),
}


@pytest.mark.parametrize("name", CASES)
def test_loads_are_permuted(name: str, native: Callable[..., Any]) -> None:
    place, elements, expected = CASES[name]
    function = kernel(place, elements)
    found = loads(function)
    assert all(first >= 0 and first + lanes <= elements for first, lanes in found), "it reads outside"
    x, y = np.arange(1, elements + 1, dtype=np.float32), np.zeros((ROWS, LANES), np.float32)
    native({"k": function}, device.get("host"))("k", x, y)
    places = [[place(r, v) for v in range(LANES)] for r in range(ROWS)]
    right = [[2 * (p + 1) if 0 <= p < elements else 0 for p in row] for row in places]
    assert np.array_equal(y, np.array(right, np.float32))
    assert found == expected


def test_a_test_that_is_not_constant_stays(native: Callable[..., Any]) -> None:
    """Of an element that the kernel reads."""
    x, flags = te.placeholder((LANES,), name="x"), te.placeholder((LANES,), name="flags")
    a = te.compute((LANES,), lambda v: tirx.Select(flags[v] > 0.0, x[v], tirx.const(0.0, "float32")), name="a")
    y = te.compute((LANES,), lambda v: a[v] * 2.0, name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, flags, y]))
    schedule.set_scope(schedule.get_sblock("a"), 0, "local")
    for name in ("a", "y"):
        schedule.vectorize(schedule.get_loops(schedule.get_sblock(name))[-1])
    written = np.zeros(LANES, np.float32)
    values, chosen = np.arange(1, LANES + 1, dtype=np.float32), np.array([1, 0, 0, 1], np.float32)
    native({"k": schedule.mod["main"]}, device.get("host"))("k", values, chosen, written)
    assert np.array_equal(written, 2 * values * chosen)
