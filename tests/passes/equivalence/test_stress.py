from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence import STRESSES, Oracle, Stress, run_with_bounds
from sepwise.passes.equivalence.graph import Graph, read_graph

HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'

# The sums of both are far from their limits on normal inputs: those of the first are too small, those of the second too large.
FAR = {
    "clip": "(float[1,4,9,9] x) => (float[1,6,9,9] y) <float low = {0.0}, float high = {6.0}>"
    "{ c = Conv <pads = [1,1,1,1]> (x, w, b)\n y = Clip (c, low, high) }",
    "hard-swish": "(float[1,4,9,9] x) => (float[1,6,9,9] y) { c = Conv <pads = [1,1,1,1]> (x, w, b)\n y = HardSwish (c) }",
    "hard-sigmoid": "(float[1,4,9,9] x) => (float[1,6,9,9] y)"
    "{ c = Conv <pads = [1,1,1,1]> (x, w, b)\n y = HardSigmoid <alpha = 0.25, beta = 0.75> (c) }",
    "in front": "(float[1,4,9,9] x) => (float[1,6,9,9] y) <float low = {-0.001}, float high = {900.0}>"
    "{ c = Clip (x, low, high)\n y = Conv <pads = [1,1,1,1]> (c, w, b) }",
}
FAR["one pixel"] = FAR["hard-sigmoid"].replace("9,9]", "1,1]").replace("x, w", "x, v").replace("b)", "f)").replace("1,6,", "1,60,")
BENDS = {"one pixel": (-3.0, 1.0), "clip": (0.0, 6.0), "hard-swish": (-3.0, 3.0), "hard-sigmoid": (-3.0, 1.0), "in front": (-0.001, 900.0)}


def part(text: str, size: float = 1.0) -> Graph:
    """A small graph with random weights of a size."""
    model = onnx.parser.parse_model(f"{HEAD}g {text}")
    rng = np.random.default_rng(0)
    for name, shape in {"w": (6, 4, 3, 3), "b": (6,), "v": (60, 4, 3, 3), "f": (60,)}.items():
        if any(name in node.input for node in model.graph.node):
            array = (size * rng.standard_normal(shape)).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return read_graph(model)


def tensors(graph: Graph) -> dict[str, np.ndarray]:
    types = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.INT64: np.int64, onnx.TensorProto.BOOL: bool}
    return {port.name: np.ones(port.shape, types[port.element_type]) for port in graph.inputs}


def stress(graph: Graph, dtype: str = "float32", seed: int = 0) -> Stress:
    feeds = tensors(graph)
    return Stress(graph, feeds, dict.fromkeys(feeds, np.dtype(dtype)), seed)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", FAR)
def test_a_fair_share_lies_on_both_sides_of_every_bend(name: str, size: float) -> None:
    graph = part(FAR[name], size)
    feeds = stress(graph).draw("knees")
    reaches = next(op for op in graph.operations if op.operator != "Conv").inputs[0]
    values = {**feeds, **Oracle(graph).run(feeds, keep={reaches} - set(feeds))}[reaches]
    for bend in BENDS[name]:
        assert 0.1 < (values > bend).mean() < 0.9


def test_the_bend_behind_two_stages_is_reached() -> None:
    graph = part(
        "(float[1,4,9,9] x) => (float[1,6,9,9] y) <float low = {0.0}, float high = {6.0}> {"
        "r = Relu (x)\n c = Conv <pads = [1,1,1,1]> (r, w, b)\n y = Clip (c, low, high) }",
        1e-3,
    )
    y = Oracle(graph).run(stress(graph).draw("knees"))["y"]
    assert (y == 0).mean() > 0.1
    assert (y == 6).mean() > 0.1


@pytest.mark.parametrize("terms", ["depthwise", "dense"])
def test_sums_of_impulses_have_few_terms(terms: str) -> None:
    text = FAR["clip"].replace("x, w, b", "x, w")
    graph = part(text)
    if terms == "depthwise":
        constants = {**graph.constants, "w": graph.constants["w"][:4, :1]}
        conv = graph.operations[0]
        operations = (type(conv)(**{**vars(conv), "attributes": {**conv.attributes, "group": 4}}), graph.operations[1])
        graph = Graph(graph.inputs, graph.outputs, constants, operations)
    feeds = stress(graph).draw("impulses")
    there = feeds["x"] != 0
    assert 0 < there.mean() < 2 * 1.5 / graph.constants["w"][0].size
    for row in (0, -1):
        for column in (0, -1):
            assert there[:, :, row, column].any()
    results = run_with_bounds(graph, feeds, keep=("c",))
    value, bound = results["c"]
    computed = np.isfinite(bound) & (np.abs(value) > 1e-3)
    assert np.median(bound[computed] / np.abs(value[computed])) < 2.0**-19, "a few ulp"


MEANS = {
    "all positions": "y = GlobalAveragePool (x)",
    "a window": "y = AveragePool <kernel_shape = [8, 8]> (x)",
    "named axes": "y = ReduceMean (x, axes)",
    "a sum": "y = ReduceSum (x, axes)",
}


@pytest.mark.parametrize("name", MEANS)
def test_means_of_impulses_have_few_terms(name: str) -> None:
    graph = part(f"(float[1,32,40,40] x) => (float y) <int64[2] axes = {{2, 3}}> {{ {MEANS[name]} }}")
    value, bound = run_with_bounds(graph, stress(graph).draw("impulses"))["y"]
    usual = np.abs(value) > 1e-5
    assert usual.sum() > 4
    if name != "a window":
        assert np.median(bound[usual] / np.abs(value[usual])) < 1 / 1600 / 8, "a mean over one less is told from a right one"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_impulses_are_usual_large_and_subnormal(dtype: str) -> None:
    graph = part("(float[1,40,9,9] x) => (float[1,40,9,9] y) { y = Sigmoid (x) }")
    x = np.abs(stress(graph, dtype).draw("impulses")["x"].astype(np.float64))
    limits = np.finfo(dtype)
    assert np.isfinite(x).all()
    assert ((x > 0) & (x < float(limits.tiny))).mean() > 0.05
    assert (x > 2.0 ** (limits.maxexp // 3 - 1)).mean() > 0.05
    assert ((x > 0.5) & (x < 16)).mean() > 0.5


def test_nonfinite_numbers_are_at_single_places() -> None:
    x = stress(part("(float[1,4,9,9] x) => (float[1,4,9,9] y) { y = Relu (x) }")).draw("nonfinite")["x"]
    wrong = x[~np.isfinite(x)]
    assert np.isnan(wrong).any()
    assert np.isinf(wrong).any()
    assert len(wrong) < 5


@pytest.mark.parametrize(
    "body", ["y = HardSwish (x)", "s = Sigmoid (x)\n y = Mul (x, s)", "d = Abs (x)\n y = Div (x, d)"]
)
def test_gates_get_no_infinities(body: str) -> None:
    x = stress(part(f"(float[1,4,9,9] x) => (float[1,4,9,9] y) {{ {body} }}")).draw("nonfinite")["x"]
    assert np.isnan(x).any()
    assert not np.isinf(x).any()


@pytest.mark.parametrize("kind", STRESSES)
def test_the_same_seed_draws_the_same(kind: str) -> None:
    graph = part(FAR["clip"])
    first, again, other = (stress(graph, seed=seed).draw(kind)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)
    assert first.dtype == np.float32


FIXED = {
    "whole numbers": "(float[3,5] x, int64[2] i) => (float[2,5] y) { y = Gather (x, i) }",
    "booleans": "(float[3,5] x, bool[3,5] c) => (float[3,5] y) { y = Where (c, x, x) }",
    "limits": "(float[3,5] x, float low) => (float[3,5] y) { y = Clip (x, low) }",
    "exponents": "(float[3,5] x, float e) => (float[3,5] y) { y = Pow (x, e) }",
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_no_data_is_left(name: str) -> None:
    graph = part(FIXED[name])
    given = tensors(graph)
    kept = [key for key in given if key != "x"]
    for kind in STRESSES:
        drawn: Mapping[str, np.ndarray] = stress(graph).draw(kind)
        assert not np.array_equal(drawn["x"], given["x"])
        for key in kept:
            np.testing.assert_array_equal(drawn[key], given[key])


@pytest.mark.parametrize(
    "text",
    [
        "(float[0,4] x) => (float[0,4] y) { y = Relu (x) }",
        "(float[4,0] x) => (float[4,0] y) { y = Relu (x) }",
        "(float x) => (float y) { y = Relu (x) }",
        "(float[7] x) => (float[7] y) { y = Sigmoid (x) }",
        "(float[1,4] x) => (float[1,4] y) { y = Softmax (x) }",
    ],
)
def test_small_shapes(text: str) -> None:
    graph = part(text)
    for kind in STRESSES:
        assert stress(graph).draw(kind)["x"].shape == tensors(graph)["x"].shape


def test_the_scale_is_1_where_nothing_bends() -> None:
    assert stress(part("(float[3,5] x) => (float[3,5] y) { y = Neg (x) }")).scale == 1.0


VANISHING = {
    "variance": ("{ y = LayerNormalization <axis = 1, epsilon = 1e-6> (x, s) }", 1e-6, lambda x: x.var(axis=(1, 2, 3))),
    "norm": ("<float e = {1e-12}> { n = ReduceL2 <axes = [1]> (x) m = Max (n, e) y = Div (x, m) }", 1e-12, None),
    "squares": (
        "<float e = {1e-9}> { q = Mul (x, x) n = ReduceMean <axes = [1]> (q) m = Add (n, e) r = Sqrt (m) y = Div (x, r) }",
        1e-9,
        None,
    ),
}


@pytest.mark.parametrize("name", VANISHING)
def test_a_faint_scale_is_where_an_epsilon_matters(name: str) -> None:
    nodes, epsilon, measure = VANISHING[name]
    model = onnx.parser.parse_model(HEAD.replace("18", "17") + "g (float[4,4,5,5] x) => (float[4,4,5,5] y) " + nodes)
    if measure is not None:
        ones = np.ones((4, 5, 5), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(ones, "s"))
    graph = read_graph(model)
    drawn = stress(graph)
    (scale,) = drawn.faint_scales()
    feeds = drawn.draw("knees", scale)
    found = measure(feeds["x"]) if measure else Oracle(graph).run(feeds, keep={"n"})["n"]
    assert epsilon / 10 < np.median(found) < epsilon * 10


def test_what_something_else_is_added_to_does_not_vanish() -> None:
    graph = part("(float[1,4,9,9] x) => (float[1,6,9,9] y) <float e = {1e-5}> { c = Conv <pads = [1,1,1,1]> (x, w, b)\n y = Max (c, e) }")
    assert not stress(graph).faint_scales()
