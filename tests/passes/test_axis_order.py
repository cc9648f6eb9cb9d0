import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from sepwise.passes.axis_order import ReorderedNode, inverse, moves_nothing, permutation, reorder, rewrite_reordered
from sepwise.passes.equivalence import sample_inputs

Build = Callable[..., ir.Model]
Run = Callable[..., list[npt.NDArray[Any]]]

SHAPE = (2, 3, 1, 4)

NODES = {
    "Relu": "y = Relu (x)",
    "Add": "y = Add (x, rows)",
    "Sub": "y = Sub (two, x)",
    "Mul": "y = Mul (x, one)",
    "Where": "y = Where (chosen, x, rows)",
    "Concat": "y = Concat <axis = -2> (x, image, x)",
    "Split": "y, z = Split <axis = -1> (x, sizes)",
    "Softmax": "y = Softmax (x)",
    "LogSoftmax": "y = LogSoftmax <axis = 1> (x)",
    "ArgMax": "y = ArgMax <axis = -1> (x)",
    "ArgMin": "y = ArgMin <axis = 1, keepdims = 0> (x)",
    "ReduceMax": "y = ReduceMax (x, axes)",
    "ReduceMin": "y = ReduceMin <keepdims = 0> (x, axes)",
    "ReduceProd": "y = ReduceProd <axes = [-3], keepdims = 0> (x)",
    "Pad": 'y = Pad <mode = "edge"> (x, amounts)',
    "Pad some axes": "y = Pad (x, few, half, axes)",
    "Tile": "y = Tile (x, times)",
    "Expand": "y = Expand (x, wide)",
    "Slice": "y = Slice (x, begins, ends, axes, steps)",
    "Slice the first axes": "y = Slice (x, begins, ends)",
    "Transpose": "y = Transpose <perm = [2,0,1,3]> (x)",
    "Squeeze": "y = Squeeze (x, third)",
    "Unsqueeze": "y = Unsqueeze (x, third)",
    "Flatten": "y = Flatten (x)",
    "Reshape that splits": "y = Reshape (x, apart)",
    "Reshape that joins": "y = Reshape (x, joined)",
}
CONSTANTS = """
float one = {1.5}, float two = {2}, float half = {0.5}, float[4] rows, float[2,3,5,4] image, bool[3,1,1] chosen = {1,0,1}, int64[2] sizes = {3,1},
int64[2] axes = {-1,1}, int64[8] amounts = {0,1,2,3,1,0,1,2}, int64[4] few = {1,2,0,1}, int64[4] times = {1,2,3,1}, int64[4] wide = {1,1,5,1},
int64[2] begins = {1,0}, int64[2] ends = {4,2}, int64[2] steps = {2,1}, int64[1] third = {2}, int64[5] apart = {2,3,2,1,2}, int64[3] joined = {2,1,12}
"""


def node_model(name: str, build: Build) -> ir.Model:
    second = ", float z" if NODES[name].startswith("y, z") else ""
    opset = 13 if "<axes" in NODES[name] else 18
    return build(f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{",".join(map(str, SHAPE))}] x) => (float y{second}) <{CONSTANTS}> {{ [n] {NODES[name]} }}')


def order_of_input(found: ReorderedNode) -> Sequence[int]:
    """The order of the one input that is no constant."""
    return next(iter(found.inputs.values()))


def reordered(model: ir.Model, found: ReorderedNode) -> ir.Model:
    """A model of one node, computed on what is reordered."""
    value = model.graph.inputs[0]
    value.shape = ir.Shape([SHAPE[axis] for axis in order_of_input(found)])
    rewrite_reordered(model, found)
    for output in model.graph.outputs:
        output.shape = None
    return model


@pytest.mark.parametrize("name", NODES)
@given(st.permutations(range(4)), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
def test_a_node_computes_the_same_in_another_order(
    name: str, build: Build, onnxruntime_outputs: Run, order: Sequence[int], with_next: bool
) -> None:
    model = node_model(name, build)
    array = sample_inputs(model, 0)["x"].astype(np.float32)
    expected = onnxruntime_outputs(model, {"x": array})
    found = reorder(model.graph.node("n"), model.graph.inputs[0], tuple(order), 18, with_next=with_next)
    if isinstance(found, str):
        assert name in ("Flatten", "Reshape that joins")
        assert found == "joins or splits axes that another order parts"
        return
    outputs = onnxruntime_outputs(reordered(model, found), {"x": array.transpose(order)})
    for place, (before, after) in enumerate(zip(expected, outputs, strict=True)):
        np.testing.assert_array_equal(after, before.transpose(found.outputs[place]))


@pytest.mark.parametrize(("name", "order"), [("Squeeze", (2, 0, 1)), ("Unsqueeze", (0, 2, 3, 4, 1)), ("Reshape that joins", (1, 0, 2)), ("Relu", (3, 2, 1, 0))])
def test_an_order_of_the_output_says_that_of_the_input(name: str, order: tuple[int, ...], build: Build, onnxruntime_outputs: Run) -> None:
    model = node_model(name, build)
    array = sample_inputs(model, 0)["x"].astype(np.float32)
    (expected,) = onnxruntime_outputs(model, {"x": array})
    found = reorder(model.graph.node("n"), model.graph.outputs[0], order, 18)
    assert isinstance(found, ReorderedNode)
    assert found.outputs[0] == order
    (actual,) = onnxruntime_outputs(reordered(model, found), {"x": array.transpose(order_of_input(found))})
    np.testing.assert_array_equal(actual, expected.transpose(order))


ADDED = {
    ((5, 6), (1, 5, 6)): ((1, 0), (2, 0, 1), (0, 2, 1)),
    ((1, 7, 8, 3), (1, 7, 8, 1, 3)): ((0, 3, 1, 2), (0, 3, 4, 1, 2), (0, 4, 1, 2, 3)),
    ((1, 9, 3), (1, 1, 9, 3)): ((0, 2, 1), (0, 3, 1, 2), (0, 1, 3, 2)),
    ((1, 1, 9, 3), (1, 9, 3)): ((0, 3, 1, 2), (0, 2, 1), (0, 2, 1)),
}
"""Shapes before and behind a Reshape; the order before, and behind where an added axis goes with the next or the one before."""


@pytest.mark.parametrize("shapes", ADDED)
def test_an_axis_that_is_added_goes_with_its_neighbour(shapes: tuple[tuple[int, ...], tuple[int, ...]], build: Build) -> None:
    (before, behind), (order, with_next, with_last) = shapes, ADDED[shapes]
    model = build(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[{",".join(map(str, before))}] x) => (float y)
    <int64[{len(behind)}] shape = {{{", ".join(map(str, behind))}}}> {{ [n] y = Reshape (x, shape) }}""")
    for wanted, flag in ((with_next, True), (with_last, False)):
        found = reorder(model.graph.node("n"), model.graph.inputs[0], order, 18, with_next=flag)
        assert isinstance(found, ReorderedNode)
        assert found.outputs[0] == wanted


REFUSED = {
    "works on its axes as they stand": "[n] y = LayerNormalization (x, rows)",
    "reduces all axes or none": "[n] y = ReduceSum (x)",
    "has 'v' of 1 axes among its inputs of 4": "v = ReduceMax <keepdims = 0> (x, first) [n] y = Add (x, v)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str, build: Build) -> None:
    model = build(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,1,4] x) => (float y)
    <float[4] rows, int64[3] first = {{0, 1, 2}}> {{ {REFUSED[reason]} }}""")
    assert reorder(model.graph.node("n"), model.graph.inputs[0], (0, 2, 1, 3), 18) == reason


def test_softmax_of_all_axes_behind_one_has_no_other_order(build: Build) -> None:
    model = build('<ir_version: 7, opset_import: ["" : 12]> g (float[2,3,1,4] x) => (float y) { [n] y = Softmax (x) }')
    assert reorder(model.graph.node("n"), model.graph.inputs[0], (0, 2, 1, 3), 12) == "works on its axes as they stand"


def test_dropped_axes_are_not_known_from_what_is_left(build: Build) -> None:
    model = node_model("ReduceMin", build)
    assert reorder(model.graph.node("n"), model.graph.outputs[0], (1, 0), 18) == "drops axes"


@pytest.mark.parametrize("operator", ["y = Pad (x, numbers)", "y = Tile (x, numbers)", "y = Slice (x, begins, begins, numbers)"])
def test_numbers_for_axes_are_constants(operator: str, build: Build) -> None:
    model = build(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[2,3] x, int64[2] numbers) => (float y)
    <int64[2] begins = {{0, 1}}> {{ [n] {operator} }}""")
    model.graph.outputs[0].shape = ir.Shape([2, 3])
    found = reorder(model.graph.node("n"), model.graph.inputs[0], (1, 0), 18)
    assert isinstance(found, str)
    assert "not constant" in found


@pytest.mark.parametrize("operator", ["y = Mul (x, c)", "y = Mul (c, x)", "y = Where (t, x, c)"])
def test_a_constant_of_one_element_adds_no_axis(operator: str, build: Build) -> None:
    model = build(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[3,2] x) => (float y)
    <float[1,1,1] c = {{2}}, bool t = {{1}}> {{ [n] {operator} }}""")
    assert reorder(model.graph.node("n"), model.graph.inputs[0], (1, 0), 18) == "has 'c' of 3 axes among its inputs of 2"


@pytest.mark.parametrize("axes", ["", ", axes"])
def test_the_axes_of_a_slice_are_of_the_type_of_its_starts(axes: str, build: Build, onnxruntime_outputs: Run) -> None:
    model = build(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[{",".join(map(str, SHAPE))}] x) => (float y)
    <int32[2] starts = {{0,1}}, int32[2] ends = {{1,3}}, int32[2] axes = {{0,1}}> {{ [n] y = Slice (x, starts, ends{axes}) }}""")
    array = sample_inputs(model, 0)["x"].astype(np.float32)
    (expected,) = onnxruntime_outputs(model, {"x": array})
    found = reorder(model.graph.node("n"), model.graph.inputs[0], (3, 1, 0, 2), 18)
    assert isinstance(found, ReorderedNode)
    (actual,) = onnxruntime_outputs(reordered(model, found), {"x": array.transpose(3, 1, 0, 2)})
    np.testing.assert_array_equal(actual, expected.transpose(3, 1, 0, 2))
    named = model.graph.node("n").inputs[3]
    assert named is not None
    assert named.dtype == ir.DataType.INT32


def test_shapes_have_to_be_known(build: Build) -> None:
    model = node_model("Relu", build)
    model.graph.outputs[0].shape = None
    assert reorder(model.graph.node("n"), model.graph.inputs[0], (1, 0, 2, 3), 18) == "has values of unknown shape"


@given(st.permutations(range(4)), st.lists(st.sampled_from([1, 1, 2, 3]), min_size=4, max_size=4))
@settings(deadline=None)
def test_what_moves_nothing_is_a_reshape(order: Sequence[int], shape: list[int]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    assert moves_nothing(order, shape) == np.array_equal(array.transpose(order).reshape(-1), array.reshape(-1)) or math.prod(shape) == 0
    assert np.array_equal(array.transpose(order).transpose(inverse(order)), array)


def test_a_transpose_without_permutation_reverses(build: Build) -> None:
    model = build('<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,4] x) => (float y) { [n] y = Transpose (x) }')
    node = model.graph.node("n")
    assert permutation(node) == (2, 1, 0)
    model.graph.inputs[0].shape = None
    assert permutation(node) is None
    assert permutation(node, rank=2) == (1, 0)
