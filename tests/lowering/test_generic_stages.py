import numpy as np
import pytest
import tvm
from tvm import te, tirx

from sepwise.lowering import generic_stages as gs


def extents(*shape):
    return tuple(tirx.const(extent, "int64") for extent in shape)


def stages_of(*tensors):
    function = gs.parse(te.create_prim_func(list(tensors)))
    assert function is not None
    return gs.simplify_stages(function)


def test_elementwise_chain_becomes_one_stage():
    x = te.placeholder(extents(3, 20), name="x")
    a = te.compute(extents(3, 20), lambda i, j: x[i, j] + 1.0, name="a")
    b = te.compute(extents(3, 20), lambda i, j: a[i, j] * 2.0, name="b")
    found = stages_of(x, b)
    assert [len(found.stages), len(found.intermediates)] == [1, 0]
    assert found.stages[0].buffer.name == "b"


@pytest.mark.parametrize(
    "of", [lambda v, w: v - w, lambda v, w: tirx.Cast("float32", tirx.EQ(v, w)), lambda v, w: tirx.Cast("float32", tirx.NE(v, w))]
)
def test_no_rule_of_reals_decides_what_infinities_and_nan_give(of):
    x = te.placeholder(extents(3, 20), name="x")
    a, b = (te.compute(extents(3, 20), lambda i, j: x[i, j] * 2.0, name=name) for name in "ab")
    c = te.compute(extents(3, 20), lambda i, j: tirx.exp(of(a[i, j], b[i, j])), name="c")
    (stage,) = stages_of(x, c).stages
    assert gs.loads(stage.value), stage.value


def test_a_difference_of_indices_is_simplified():
    x = te.placeholder(extents(3, 20), name="x")
    a = te.compute(extents(3, 20), lambda i, j: x[i, j + i - i], name="a")
    (stage,) = stages_of(x, a).stages
    (load,) = gs.loads(stage.value)
    assert load.indices[1].same_as(stage.axes[1].var)


def test_costly_value_that_is_read_twice_is_kept():
    x = te.placeholder(extents(3, 20), name="x")
    a = te.compute(extents(3, 20), lambda i, j: tirx.exp(x[i, j]), name="a")
    b = te.compute(extents(3, 20), lambda i, j: a[i, j] * a[i, 19 - j], name="b")
    found = stages_of(x, b)
    assert [stage.buffer.name for stage in found.stages] == ["a", "b"]


def test_what_follows_a_reduction_becomes_its_epilogue():
    x = te.placeholder(extents(3, 20), name="x")
    k = te.reduce_axis((tirx.const(0, "int64"), tirx.const(20, "int64")), name="k")
    total = te.compute(extents(3), lambda i: te.sum(x[i, k], axis=k), name="total")
    mean = te.compute(extents(3), lambda i: total[i] / 20.0, name="mean")
    (stage,) = stages_of(x, mean).stages
    assert stage.combiner == "sum"
    assert stage.buffer.name == "mean"
    assert "/ T.float32(20.0)" in str(stage.epilogue)


def test_reduction_that_is_read_elsewhere_stays_a_stage():
    x = te.placeholder(extents(3, 20), name="x")
    k = te.reduce_axis((tirx.const(0, "int64"), tirx.const(20, "int64")), name="k")
    total = te.compute(extents(3), lambda i: te.sum(x[i, k], axis=k), name="total")
    share = te.compute(extents(3, 20), lambda i, j: x[i, j] / total[i], name="share")
    found = stages_of(x, share)
    assert [stage.buffer.name for stage in found.stages] == ["total", "share"]


@pytest.mark.parametrize("cut", [1, 8, 19])
def test_conditions_on_an_axis_cut_it(cut):
    x = te.placeholder(extents(20), name="x")
    y = te.placeholder(extents(20), name="y")
    z = te.compute(extents(20), lambda i: tirx.if_then_else(i < cut, x[i], y[i - cut]), name="z")
    found = stages_of(x, y, z)
    assert [stage.axes[0].extent for stage in found.stages] == [cut, 20 - cut]
    assert all("if_then_else" not in str(stage.value) for stage in found.stages)
    assert [gs.loads(stage.value)[0].source.name for stage in found.stages] == ["x", "y"]


def test_padded_window_has_an_interior_without_conditions():
    x = te.placeholder(extents(10), name="x")
    pad = te.compute(
        extents(12), lambda i: tirx.if_then_else(tirx.all(i >= 1, i < 11), x[i - 1], tirx.const(0.0, "float32")), name="pad"
    )
    k = te.reduce_axis((tirx.const(0, "int64"), tirx.const(3, "int64")), name="k")
    y = te.compute(extents(10), lambda i: te.sum(pad[i + k], axis=k), name="y")
    found = stages_of(x, y)
    assert {stage.axes[0].extent: "if_then_else" in str(stage.value) for stage in found.stages} == {8: False, 1: True}


def test_remainders_that_choose_the_channel_split_the_axis():
    x = te.placeholder(extents(1, 16, 5), name="x")
    y = te.compute(extents(1, 8, 9), lambda n, c, w: x[n, w % 2 * 8 + c, w // 2], name="y")
    found = stages_of(x, y)
    assert [stage.axes[2].extent for stage in found.stages] == [5, 4]
    assert all("%" not in str(stage.value) for stage in found.stages)


def test_division_that_rounds_to_zero_becomes_a_floor_where_it_is_one():
    x = te.placeholder(extents(10), name="x")
    y = te.compute(extents(20), lambda i: x[tirx.Div(i, tirx.const(2, "int64"))], name="y")
    (stage,) = stages_of(x, y).stages
    assert "//" in str(gs.loads(stage.value)[0].indices[0])


def test_functions_with_other_statements_are_not_parsed():
    assert gs.parse(tirx.PrimFunc([], tirx.Evaluate(tirx.const(0, "int32")))) is None


def _places(index, axis):
    values = (gs.substitute(index, [(axis.var, tirx.const(i, "int32"))]) for i in range(axis.extent))
    return [int(tvm.sym.Analyzer().simplify(value)) for value in values]


@pytest.mark.parametrize(("wide", "high"), [(10, 5), (5, 10), (96, 192), (40, 7), (7, 40), (1, 9), (9, 1)])
def test_rounded_positions_become_whole_numbers(wide, high):
    x = te.placeholder(extents(wide), name="x")

    def position(i):
        exact = (tirx.Cast("float32", i) + 0.5) * tirx.const(wide / high, "float32") - 0.5
        return tirx.max(tirx.min(tirx.Cast("int64", tirx.floor(exact)), wide - 1), 0)

    y = te.compute(extents(high), lambda i: x[position(i)], name="y")
    (stage,) = stages_of(x, y).stages
    index = gs.loads(stage.value)[0].indices[0]
    assert "float" not in str(index)
    at = np.arange(high, dtype=np.float32)
    expected = np.clip(np.floor((at + np.float32(0.5)) * np.float32(wide / high) - np.float32(0.5)), 0, wide - 1)
    assert _places(index, stage.axes[0]) == expected.tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_positions_between_two_elements_are_exact_where_nothing_else_is_made_of_them(weighted):
    x = te.placeholder(extents(67), name="x")
    step = np.float32(66 / 200)

    def value(i):
        where = tirx.Cast("float32", i) * tirx.const(float(step), "float32") - 0.5
        place = tirx.Cast("int64", tirx.ceil(where))
        return x[place] * (tirx.Cast("float32", place) - where) if weighted else x[place]

    (stage,) = stages_of(x, te.compute(extents(201), value, name="y")).stages
    index = gs.loads(stage.value)[0].indices[0]
    exact = [-((50 - 33 * i) // 100) for i in range(201)]
    rounded = np.ceil(np.arange(201, dtype=np.float32) * step - np.float32(0.5)).astype(int).tolist()
    assert rounded != exact
    assert _places(index, stage.axes[0]) == (rounded if weighted else exact)


def test_positions_that_are_no_rounded_line_are_left():
    x = te.placeholder(extents(20), name="x")
    y = te.compute(
        extents(20), lambda i: x[tirx.Cast("int64", tirx.floor(tirx.Cast("float32", i) * tirx.Cast("float32", i) / 20.0))], name="y"
    )
    (stage,) = stages_of(x, y).stages
    assert "floor" in str(gs.loads(stage.value)[0].indices[0])


def test_all_that_addresses_memory_has_one_type():
    x = te.placeholder(extents(20), name="x")
    places = te.placeholder(extents(9), dtype="int64", name="places")
    y = te.compute(
        extents(12), lambda i: tirx.if_then_else(i < 9, x[tirx.max(places[tirx.min(i, 8)], 0)], x[i]), name="y"
    )
    for stage in stages_of(x, places, y).stages:
        assert {axis.var.ty.dtype for axis in stage.axes} == {gs.INDEX_TYPE}
        assert all(index.ty.dtype == gs.INDEX_TYPE for load in gs.loads(stage.value) for index in load.indices)
        assert all(index.ty.dtype == gs.INDEX_TYPE for index in stage.indices)


def test_costly_value_is_computed_where_a_concatenation_takes_it():
    x = te.placeholder(extents(4), name="x")
    z = te.placeholder(extents(16), name="z")
    a = te.compute(extents(4), lambda i: tirx.exp(x[i]), name="a")
    y = te.compute(extents(20), lambda i: tirx.if_then_else(i < 4, a[i], z[i - 4]), name="y")
    found = stages_of(x, z, y)
    assert found.intermediates == []
    assert ["exp" in str(stage.value) for stage in found.stages] == [True, False]


def test_digits_of_an_axis_become_axes():
    x = te.placeholder(extents(3, 5, 8), name="x")
    y = te.compute(extents(120), lambda i: x[i // 40, i % 40 // 8, i % 8], name="y")
    (stage,) = stages_of(x, y).stages
    split = gs.split_digits(stage)
    assert [axis.extent for axis in split.axes] == [3, 5, 8]
    assert [str(index) for index in gs.loads(split.value)[0].indices] == [axis.var.name for axis in split.axes]
    assert gs.split_digits(split) is split
