from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from sepwise.lowering import device, generic_schedule, relayout
from sepwise.lowering.graph import Layout, pack, unpack

TARGET = "x86-64-v3"


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    read: Layout
    written: Layout


@st.composite
def cases(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 35)), *draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    lanes = st.sampled_from([0, 4, 8, 16])
    return Case(shape, Layout(draw(lanes)), Layout(draw(lanes)))


def laid_out(array, layout):
    return pack(array, layout.lanes) if layout.packed else array


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(cases(), min_size=6, max_size=6))
def test_conversions_between_layouts_keep_every_element(native, drawn):
    chosen = device.get(TARGET)
    functions = {}
    for number, case in enumerate(drawn):
        copy = relayout.identity(case.shape)
        layouts = (case.read, case.written)
        functions[f"scheduled_{number}"] = generic_schedule.schedule(copy, chosen, layouts)
    library = native(functions, chosen)
    for symbol in library.kernels:
        case = drawn[int(symbol.split("_")[1])]
        array = np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)
        written = np.zeros(case.written.physical_shape(case.shape), np.float32)
        library(symbol, laid_out(array, case.read), written)
        found = unpack(written, case.shape[1]) if case.written.packed else written
        np.testing.assert_array_equal(found, array, err_msg=f"{symbol} {case}")


def doubled():
    source = te.placeholder((1, 20, 3), name="source")
    target = te.compute((1, 20, 3), lambda n, c, w: source[n, c, w] * 2.0, name="target")
    return te.create_prim_func([source, target])


def test_an_unscheduled_function_computes_the_same_in_other_layouts(native):
    library = native({"doubled": relayout.relayout(doubled(), (Layout(8), Layout(4)))}, device.get(TARGET))
    array = np.random.default_rng(0).standard_normal((1, 20, 3)).astype(np.float32)
    written = np.zeros((1, 5, 3, 4), np.float32)
    library("doubled", pack(array, 8), written)
    np.testing.assert_array_equal(unpack(written, 20), 2 * array)


def test_only_indices_change():
    function = doubled()
    changed = relayout.relayout(function, (Layout(8), Layout()))
    text = str(changed)
    assert "source[v_n, v_c // 8, v_w, v_c % 8]" in text
    assert "target[v_n, v_c, v_w] =" in text
    assert [tuple(int(d) for d in p.ty.shape) for p in changed.params] == [(1, 3, 3, 8), (1, 20, 3)]


def test_plain_layouts_leave_a_function_alone():
    function = relayout.identity((1, 3, 4))
    assert relayout.relayout(function, (Layout(), Layout())) is function


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_physical_indices(lanes):
    index = [tirx.Var(name, "int64") for name in "nchw"]
    physical = relayout.physical_indices(index, Layout(lanes))
    assert [str(i) for i in physical] == ["n", f"c // T.int64({lanes})", "h", "w", f"c % T.int64({lanes})"]
