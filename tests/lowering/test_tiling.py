# TVMScript is Python in form only.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,valid-type"
"""Tiles that need not divide: what the last one computes, in TIR and in bytes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from tvm import s_tir, te, tirx
from tvm.ir.expr import Var
from tvm.script import tirx as T  # noqa: N812 - the script's own spelling

from sepwise.lowering import device
from sepwise.lowering.tiling import CLAMP_LOOP, TASK_LOOP, clamp_tiles, mark_clamp, mark_task, round_up


def doubled(shape: tuple[int, ...]) -> s_tir.Schedule:
    """`b[i] = a[i] + a[i]`."""
    a = te.placeholder(shape, name="a")
    b = te.compute(shape, lambda *index: a[index] + a[index], name="b")
    return s_tir.Schedule(te.create_prim_func([a, b]))


def split(schedule: s_tir.Schedule, extent: int, tile: int) -> tirx.PrimFunc:
    (loop,) = schedule.get_loops(schedule.get_sblock("b"))
    outer, _ = schedule.split(loop, [None, tile])
    mark_clamp(schedule, outer, extent, tile)
    return clamp_tiles(schedule.mod["main"], {"a": (extent,), "b": (extent,)})


def assert_same(found: tirx.PrimFunc, expected: tirx.PrimFunc) -> None:
    """Structural equality; the script declares buffers without a layout, `decl_buffer` with the row-major one."""
    replaced = {p: tirx.decl_buffer(p.ty.shape, p.ty.dtype, p.name) for p in expected.params if found.params[0].ty.layout}
    body = tvm_ffi.structural_map(expected.body, (Var, lambda variable: replaced.get(variable, variable)))
    parameters = [replaced.get(parameter, parameter) for parameter in expected.params]
    expected = tirx.PrimFunc(parameters, body, expected.ret_type, expected.attrs)
    tvm.ir.assert_structural_equal(found.without_attr("global_symbol"), expected.without_attr("global_symbol"))


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_round_up(extent: int, tile: int) -> None:
    rounded = round_up(extent, tile)
    assert rounded % tile == 0
    assert extent <= rounded < extent + tile


def test_the_last_tile_moves_back() -> None:
    @T.prim_func(s_tir=True)
    def expected(a: T.Buffer((10,), "float32"), b: T.Buffer((10,), "float32")):
        T.func_attr({"tirx.noalias": True})
        for i_0, i_1 in T.grid(3, 4):
            with T.sblock("b"):
                v_i = T.axis.spatial(12, T.min(i_0 * 4, 6) + i_1)
                T.reads(a[v_i])
                T.writes(b[v_i])
                b[v_i] = a[v_i] + a[v_i]

    found = split(doubled((12,)), 10, 4)
    assert_same(found, expected)


def test_tiles_that_divide_stay_as_they_are() -> None:
    @T.prim_func(s_tir=True)
    def expected(a: T.Buffer((12,), "float32"), b: T.Buffer((12,), "float32")):
        T.func_attr({"tirx.noalias": True})
        for i_0, i_1 in T.grid(3, 4):
            with T.sblock("b"):
                v_i = T.axis.spatial(12, i_0 * 4 + i_1)
                T.reads(a[v_i])
                T.writes(b[v_i])
                b[v_i] = a[v_i] + a[v_i]

    found = split(doubled((12,)), 12, 4)
    assert_same(found, expected)


def test_marks() -> None:
    schedule = doubled((12,))
    (loop,) = schedule.get_loops(schedule.get_sblock("b"))
    outer, inner = schedule.split(loop, [None, 4])
    mark_clamp(schedule, outer, 10, 4)
    mark_clamp(schedule, inner, 4, 2)
    mark_task(schedule, outer, 2)
    assert str(schedule.get(outer).annotations[CLAMP_LOOP]) == "10,4"
    assert int(schedule.get(outer).annotations[TASK_LOOP]) == 2
    assert CLAMP_LOOP not in schedule.get(inner).annotations


def test_other_annotations_survive() -> None:
    schedule = doubled((12,))
    (loop,) = schedule.get_loops(schedule.get_sblock("b"))
    outer, _ = schedule.split(loop, [None, 4])
    mark_clamp(schedule, outer, 10, 4)
    mark_task(schedule, outer)
    schedule.annotate(outer, "kept", "yes")
    function = clamp_tiles(schedule.mod["main"], {})
    found = annotations_of(function)
    assert found == [{TASK_LOOP: "1", "kept": "yes"}]


def annotations_of(function: tirx.PrimFunc) -> list[dict[str, str]]:
    loops: list[Any] = []
    tvm_ffi.structural_walk(function.body, (tirx.For, loops.append), order="pre")
    return [{str(key): str(value) for key, value in loop.annotations.items()} for loop in loops if loop.annotations]


def test_parameters_get_their_true_shapes() -> None:
    found = split(doubled((12,)), 10, 4)
    assert {p.name: tuple(map(int, p.ty.shape)) for p in found.params} == {"a": (10,), "b": (10,)}
    schedule = doubled((12,))
    untouched = clamp_tiles(schedule.mod["main"], {"a": (10,)})
    assert {p.name: tuple(map(int, p.ty.shape)) for p in untouched.params} == {"a": (10,), "b": (12,)}


def test_a_block_must_step_by_whole_tiles() -> None:
    """A stage that covers half a tile a step could not start where the last tile does."""
    schedule = doubled((6,))
    (loop,) = schedule.get_loops(schedule.get_sblock("b"))
    outer, _ = schedule.split(loop, [None, 2])
    mark_clamp(schedule, outer, 10, 4)  # tiles of 4 elements elsewhere, 2 here
    with pytest.raises(AssertionError, match="a block inside must step by whole tiles"):
        clamp_tiles(schedule.mod["main"], {})


def test_every_element_is_computed_once_or_twice(native: Callable[..., Any]) -> None:
    """Rows and columns, each moved back by itself; beyond the true shapes nothing is read or written."""
    cases = [(h, w, th, tw) for h in (1, 3, 5) for w in (4, 7, 8) for th in (1, 2, 3) for tw in (1, 3, 4) if th <= h and tw <= w]
    functions = {}
    for index, (h, w, th, tw) in enumerate(cases):
        schedule = doubled((round_up(h, th), round_up(w, tw)))
        y, x = schedule.get_loops(schedule.get_sblock("b"))
        y_o, y_i = schedule.split(y, [None, th])
        x_o, x_i = schedule.split(x, [None, tw])
        schedule.reorder(y_o, x_o, y_i, x_i)
        mark_task(schedule, y_o)
        mark_clamp(schedule, y_o, h, th)
        mark_clamp(schedule, x_o, w, tw)
        functions[f"k{index}"] = clamp_tiles(schedule.mod["main"], {"a": (h, w), "b": (h, w)})
    kernels = native(functions, device.get("host"))
    for index, (h, w, th, _) in enumerate(cases):
        assert kernels.kernels[f"k{index}"].tasks == math.ceil(h / th)
        guarded = np.full(64 + h * w + 64, np.nan, np.float32)
        a = np.arange(h * w, dtype=np.float32)
        kernels(f"k{index}", a, guarded[64 : 64 + h * w])
        np.testing.assert_array_equal(guarded[64 : 64 + h * w], 2 * a)
        assert np.isnan(guarded[:64]).all()
        assert np.isnan(guarded[64 + h * w :]).all()
