from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from sepwise.passes.equivalence import (
    Oracle,
    compare_execution,
    compare_graph,
    constant_rounding_sigma,
    execution_sigma,
    sample_inputs,
)
from sepwise.passes.equivalence.graph import read_graph
from sepwise.passes.equivalence.tolerances import SEEDS, structural_values
from sepwise.passes.errors import UnsupportedError

BLOCKS = [("depthwise", "Relu6"), ("pointwise", "HardSwish"), ("dense", "none")]
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def spread(elements: int) -> float:
    """Five standard deviations of the RMS of independent normal deviations, relative: each elements times seeds of them."""
    return 5 / float(np.sqrt(2 * elements * SEEDS))


def test_seeds_make_it_reproducible(random_network) -> None:
    model = random_network(1, BLOCKS)
    inputs = sample_inputs(model, 0)
    for sigma in (constant_rounding_sigma, execution_sigma):
        first, second = sigma(model, inputs)["y"], sigma(model, inputs)["y"]
        np.testing.assert_array_equal(first, second)
        assert rms(first) > 0


def test_constants_are_perturbed_by_two_units(parse) -> None:
    model = parse(f"{HEADER} g (float[20000] x) => (float y) <float[20000] c> {{ y = Add(x, c) }}")
    sigma = constant_rounding_sigma(model, {"x": np.zeros(20000, np.float32)})["y"]
    constant = read_graph(model).constants["c"]
    assert rms(sigma / constant) == pytest.approx(2 * 2.0**-24, rel=spread(sigma.size))


SPELLINGS = {
    "hard-swish by hard-sigmoid": ("y = HardSwish(x)", "s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, s)"),
    "hard-swish by clip": ("y = HardSwish(x)", "a = Add(x, three) c = Clip(a, zero, six) t = Mul(c, sixth) y = Mul(x, t)"),
    "gelu": ("y = Gelu(x)", "a = Div(x, root) e = Erf(a) f = Add(e, one) g = Mul(x, f) y = Mul(g, half)"),
    "mean": ("y = GlobalAveragePool(x)", "s = ReduceSum(x, axes) y = Mul(s, share)"),
    "default slope": ("y = LeakyRelu(x)", "y = PRelu(x, slope)"),
    "shared six": (
        "a = Add(x, three) c = Clip(a, zero, six) t = Mul(x, c) y = Div(t, six)",
        "a = Add(x, three) c = Clip(a, zero, six) t = Mul(x, c) y = Mul(t, sixth)",
    ),
}
LITERALS = """<float zero = {0}, float half = {0.5}, float one = {1}, float root = {1.4142135}, float three = {3}, float six = {6},
    float sixth = {0.16666667}, float share = {0.012345679}, float[1] slope = {0.01}, int64[2] axes = {2, 3}>"""


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_constants_within_operators_and_uses_of_shared_ones_are_perturbed(spelling: str, parse) -> None:
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[1,8,9,9] x) => (float y) ' + LITERALS
    original, rewritten = (parse(f"{head} {{ {body} }}") for body in SPELLINGS[spelling])
    inputs = [sample_inputs(original, seed) for seed in range(3)]
    for pair in ((original, rewritten), (rewritten, original)):
        (check,) = compare_graph(*pair, inputs)
        assert check.passed, check
    for tensor in rewritten.graph.initializer:  # a faint mistake in one literal
        if tensor.name in {"sixth", "share", "slope", "root"} and any(tensor.name in node.input for node in rewritten.graph.node):
            wrong = numpy_helper.to_array(tensor) * np.float32(1 + 1e-5)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(wrong), tensor.name))
            assert not compare_graph(original, rewritten, inputs)[0].passed


COUNT = "c = Shape<start=1, end=2>(x) f = Cast<to=1>(c)"
FOLDS = {
    "root": (f"{COUNT} r = Sqrt(f) y = Div(x, r)", "y = Div(x, c)", np.sqrt(np.float32(7))),
    "root as a factor": (f"{COUNT} r = Sqrt(f) y = Div(x, r)", "y = Mul(x, c)", 1 / np.sqrt(np.float32(7))),
    "inverse": (f"{COUNT} r = Reciprocal(f) y = Mul(x, r)", "y = Mul(x, c)", 1 / np.float32(7)),
    "divisor that is exact": (f"{COUNT} y = Div(x, f)", "y = Mul(x, c)", 1 / np.float32(7)),
    "root of a root of a constant": (
        "c = Constant<value_float=7.0>() q = Sqrt(c) r = Sqrt(q) y = Mul(x, r)",
        "y = Mul(x, c)",
        np.float32(7) ** 0.25,
    ),
    "cast of a constant": (
        "c = Constant<value=double {0.3}>() r = Cast<to=1>(c) y = Mul(x, r)",
        "y = Mul(x, c)",
        np.float32(0.3),
    ),
}


@pytest.mark.parametrize("fold", FOLDS)
def test_what_follows_from_shapes_and_constants_may_be_folded(fold: str, parse) -> None:
    spelled, folded, constant = FOLDS[fold]
    head = f"{HEADER} g (float[1,7,9,9] x) => (float y)"
    original = parse(f"{head} {{ {spelled} }}")
    inputs = [sample_inputs(original, seed) for seed in range(3)]
    for wrong in (1, 1 + 1e-5, 1 - 1e-5):
        rewritten = parse(f"{head} <float c> {{ {folded} }}")
        rewritten.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.asarray(constant * wrong, np.float32), "c"))
        (check,) = compare_graph(original, rewritten, inputs)
        assert check.passed == (wrong == 1), check


def test_what_is_folded_exactly_has_no_noise(parse) -> None:
    for body in (f"{COUNT} y = Div(x, f)", f"{COUNT} q = Mul(f, f) r = Sqrt(q) y = Add(x, r)"):
        model = parse(f"{HEADER} g (float[1,8] x) => (float y) {{ {body} }}")
        assert not constant_rounding_sigma(model, sample_inputs(model, 0))["y"].any()


def test_branches_may_use_the_same_names() -> None:
    branch = "{{ t = {} r = Mul (t, c) }}"
    bodies = [f"g{place} () => (float[4] r) {branch.format(of)}" for place, of in enumerate(("Relu (x)", "Gelu (x)"))]
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[4] x, bool b) => (float[4] y, float[4] z) <float[4] c = {{1.5, 2.5, 3.5, 4.5}}> "
        f"{{ y = If (b) <then_branch = {bodies[0]}, else_branch = {bodies[1]}> n = Not (b) "
        f"z = If (n) <then_branch = {bodies[0]}, else_branch = {bodies[1]}> }}"
    )
    inputs = {"x": np.array([-3, -1, 1, 3], np.float32), "b": np.array(True)}
    sigma = constant_rounding_sigma(model, inputs)
    for output, value in Oracle(model).run(inputs).items():
        assert (sigma[output] <= 1e-5 * np.abs(value)).all()


def test_attributes_are_perturbed_by_two_units_unless_they_say_where_or_nothing(parse) -> None:
    model = parse(f"{HEADER} g (float[1,4] x) => (float y) {{ y = LeakyRelu<alpha=0.3>(x) }}")
    sigma = constant_rounding_sigma(model, {"x": np.full((1, 4), -2, np.float32)}, 500)["y"]
    assert rms(sigma) == pytest.approx(2 * 2.0**-24 * 0.6, rel=5 / np.sqrt(2 * 500))
    for body in (
        "y = Gemm<alpha=1.0, beta=1.0>(x, x, x)",
        "y = Elu<alpha=1.0>(x)",
        'y = Resize<mode="cubic", cubic_coeff_a=-0.5>(x, "", "", sizes)',
    ):
        model = parse(f"{HEADER} g (float[4,4] x) => (float y) <int64[2] sizes = {{4, 8}}> {{ {body} }}")
        assert not constant_rounding_sigma(model, sample_inputs(model, 0))["y"].any()


def test_sums_are_perturbed_by_the_walk_of_their_partial_sums(parse) -> None:
    model = parse(f"{HEADER} g (float[40,100] x) => (float y) <float[100,500] w> {{ y = MatMul(x, w) }}")
    inputs = sample_inputs(model, 0)
    sigma, y = execution_sigma(model, inputs)["y"], Oracle(model).run(inputs)["y"]
    w = read_graph(model).constants["w"]
    energy = (inputs["x"].astype(np.float64) ** 2) @ (w**2)
    expected = 2.0**-24 * (np.sqrt(100 * (energy + y**2 / 9)) + np.abs(y))
    assert rms(sigma / expected) == pytest.approx(1, rel=spread(sigma.size))


def test_a_square_stays_a_square(parse) -> None:
    model = parse(f"{HEADER} g (float[100] x) => (float y) <float p = {{2}}> {{ y = Pow(x, p) }}")
    sigma = constant_rounding_sigma(model, sample_inputs(model, 0))["y"]
    assert not sigma.any()


def test_shape_arithmetic_is_never_perturbed(parse) -> None:
    model = parse(
        f"""{HEADER} g (float[1,2,6,6] x) => (float y)
        <float half = {{0.5}}, int64[1] two = {{2}}, int64[2] head = {{1,2}}, float[4] scales = {{1,1,2,2}}, float[1] c>
        {{
          s = Shape<start=2,end=3>(x)
          f = Cast<to=1>(s)
          g = Mul(f, half)
          h = Cast<to=7>(g)
          sizes = Concat<axis=0>(head, h, h)
          r = Resize<mode="linear">(x, "", "", sizes)
          q = Resize<mode="linear">(r, "", scales)
          y = Mul(q, c)
        }}"""
    )
    fixed = structural_values(read_graph(model))
    assert {"half", "scales", "sizes", "g", "f"} <= fixed
    assert not {"x", "c", "r", "q", "y"} & fixed
    inputs = sample_inputs(model, 0)
    assert constant_rounding_sigma(model, inputs)["y"].shape == (1, 2, 6, 6)
    assert execution_sigma(model, inputs)["y"].shape == (1, 2, 6, 6)


def test_data_dependent_indices_do_not_exempt_the_network(parse) -> None:
    model = parse(
        f"{HEADER} g (float[5] x) => (float y) <float[5] c, float[5] d> "
        "{ t = Mul(x, c) i = ArgMax<keepdims=1>(t) y = Gather(d, i) }"
    )
    assert not {"c", "t"} & structural_values(read_graph(model))


def test_integer_outputs_tell_where_rounding_decides(parse) -> None:
    model = parse(f"{HEADER} g (float[3,2] x) => (float y) <float[2] c = {{1, 1}}> {{ t = Mul(x, c) y = ArgMax<axis=1>(t) }}")
    x = np.array([[1, 2], [2, 1], [1, np.nextafter(np.float32(1), np.float32(0))]], np.float32)
    sigma = execution_sigma(model, {"x": x})["y"]
    assert (sigma[:2] == 0).all()
    assert sigma[2] > 0


def test_sigma_is_infinite_where_rounding_decides_the_shape(parse) -> None:
    model = parse(
        f"""{HEADER} g (float[3] x) => (float[n] y) <float c = {{1}}, float half = {{0.5}}>
        {{ t = Mul (x, c) b = Greater (t, half) i = NonZero (b) j = Transpose (i) k = GatherND (t, j) y = Mul (k, c) }}"""
    )
    x = np.array([0.1, np.nextafter(np.float32(0.5), np.float32(1)), 2], np.float32)
    for sigma in (constant_rounding_sigma, execution_sigma):
        assert np.isposinf(sigma(model, {"x": x})["y"]).all()
        assert np.isfinite(sigma(model, {"x": x + 1})["y"]).all()


def test_runtimes_pass_and_faint_mistakes_fail(random_network, run_onnxruntime) -> None:
    model = random_network(11, BLOCKS)
    inputs = [sample_inputs(model, seed) for seed in range(3)]
    oracle = [Oracle(model).run(feeds) for feeds in inputs]
    sigma = [execution_sigma(model, feeds) for feeds in inputs]
    for optimised in (False, True):
        outputs = [run_onnxruntime(model, feeds, optimised=optimised) for feeds in inputs]
        check = compare_execution(outputs, oracle, sigma)
        assert check.passed, check
        assert 0.02 < check.worst_ratio < 0.8
    wrong = [{"y": o["y"] * np.float32(1 + 1e-5)} for o in outputs]
    assert not compare_execution(wrong, oracle, sigma).passed


SQUEEZE = HEADER + """ g (float[1,3,40,40] x) => (float y) <float[24,3,1,1] w, float[24] b, float[24,24,1,1] u, float[24,24,1,1] v>
{
  a = Conv (x, w, b)
  s = Sigmoid (a)
  h = Mul (a, s)
  p = GlobalAveragePool (h)
  q = Conv (p, u)
  r = Relu (q)
  t = Conv (r, v)
  g = Sigmoid (t)
  y = Mul (h, g)
}"""


@pytest.mark.parametrize("kind", ["constant", "impulse"])
def test_areas_of_one_colour_do_not_average_their_rounding_out(kind: str, parse, run_onnxruntime) -> None:
    for width in range(17, 25):
        model = parse(SQUEEZE.replace("24", str(width)))
        inputs = sample_inputs(model, width, kind)
        expected, sigma = Oracle(model).run(inputs), execution_sigma(model, inputs)
        check = compare_execution(run_onnxruntime(model, inputs), expected, sigma)
        assert check.passed, check
        wrong = {"y": expected["y"].astype(np.float32) * np.float32(1 + 1e-3)}
        assert not compare_execution(wrong, expected, sigma).passed


@pytest.mark.parametrize(("mode", "wanted"), [("linear", 64), ("linear", 57), ("cubic", 64), ("cubic", 57)])
@pytest.mark.parametrize("coordinates", ["align_corners", "half_pixel", "asymmetric"])
def test_positions_that_a_runtime_rounds_are_within_the_tolerance(
    mode: str, wanted: int, coordinates: str, parse, run_onnxruntime
) -> None:
    model = parse(
        f"{HEADER} g (float[1,2,40,32] x) => (float y) <int64[4] sizes = {{1, 2, {wanted}, {wanted}}}> "
        f'{{ y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}">(x, "", "", sizes) }}'
    )
    inputs = sample_inputs(model, 0)
    expected, sigma = Oracle(model).run(inputs), execution_sigma(model, inputs)
    check = compare_execution(run_onnxruntime(model, inputs), expected, sigma)
    assert check.passed, check
    assert check.worst_ratio < 0.5
    stretched = {"y": (expected["y"] * (1 + 1e-5)).astype(np.float32)}
    assert not compare_execution(stretched, expected, sigma).passed


def test_resized_subnormals_round_absolutely(parse, run_onnxruntime) -> None:
    model = parse(
        f"{HEADER} g (float[1,2,40,32] x) => (float y) <int64[4] sizes = {{1, 2, 57, 57}}> "
        '{ y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, "", "", sizes) }'
    )
    x = {"x": (np.random.default_rng(0).integers(-3, 4, (1, 2, 40, 32)) * 2.0**-149).astype(np.float32)}
    sigma = execution_sigma(model, x)
    check = compare_execution(run_onnxruntime(model, x), Oracle(model).run(x), sigma)
    assert check.passed, check
    assert sigma["y"].max() < 16 * 2.0**-149


ROUNDING = {  # opset, initializers, nodes
    "CumSum": (14, "int64 k = {2}", "y = CumSum<reverse=1>(x, k)"),
    "Einsum": (12, "float[9,6] w", 'y = Einsum<equation="nchw,wk->nkc">(x, w)'),
    "GridSample": (16, "float[2,5,6,2] v", 't = Tanh(v) y = GridSample<mode="bilinear">(x, t)'),
    "LRN": (13, "", "y = LRN<size=3, alpha=0.5>(x)"),
    "LpNormalization 1": (1, "", "y = LpNormalization<axis=1, p=1>(x)"),
    "LpNormalization 2": (1, "", "y = LpNormalization<axis=2>(x)"),
    "LpPool": (18, "", "y = LpPool<kernel_shape=[2,3], p=3>(x)"),
    "RMSNormalization": (23, "float[9] s", "y = RMSNormalization(x, s)"),
    "ScatterElements": (
        18,
        "int64[1,1,1,3] i = {0, 0, 0}, float[1,1,1,3] v",
        't = Exp(v) y = ScatterElements<axis=3, reduction="add">(x, i, t)',
    ),
}


@pytest.mark.parametrize("name", ROUNDING)
def test_runtimes_pass_where_rounding_is_derived_for_one_operator(name: str, parse, run_onnxruntime) -> None:
    opset, initializers, nodes = ROUNDING[name]
    text = (
        f'<ir_version: 9, opset_import: ["" : {max(opset, 7)}]> g (float[2,5,8,9] x) => (float y) <{initializers}> {{ {nodes} }}'
    )
    model = parse(text)
    inputs = sample_inputs(model, 0)
    expected, sigma = Oracle(model).run(inputs), execution_sigma(model, inputs)
    found = run_onnxruntime(model, inputs)
    check = compare_execution(found, expected, sigma)
    assert check.passed, check
    assert check.worst_ratio < 0.8
    assert not compare_execution({"y": found["y"] * np.float32(1 + 1e-5)}, expected, sigma).passed


@pytest.mark.parametrize(
    "node", ["ScatterND(x, i, v)", "Trilu(x)", "Compress<axis=1>(x, b)", "ReverseSequence<time_axis=1>(x, n)"]
)
def test_what_moves_elements_is_exact(node: str, parse) -> None:
    model = parse(
        f"{HEADER} g (float[2,3] x) => (float y) "
        f"<int64[1,1] i = {{1}}, float[1,3] v, bool[3] b = {{1, 0, 1}}, int64[3] n = {{1, 2, 1}}> {{ y = {node} }}"
    )
    assert not execution_sigma(model, sample_inputs(model, 0))["y"].any()


def test_operators_of_unknown_rounding_are_named(parse) -> None:
    model = parse(f"{HEADER} g (float[2,2] x) => (float y) {{ y = Det(x) }}")
    with pytest.raises(UnsupportedError, match="Det 'y': how it rounds is not known"):
        execution_sigma(model, sample_inputs(model, 0))


def test_nothing_is_known_where_an_execution_may_overflow(parse) -> None:
    """40 numbers of 2000 are beyond 65504 together, but not their mean."""
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float16[2,3,40] x) => (float16 y) <int64[1] axes = {2}> '
        "{ m = ReduceMean<keepdims=0>(x, axes) y = Div(m, m) }"
    )
    x = np.ones((2, 3, 40), np.float16)
    x[1, 1] = 2000
    expected, sigma = Oracle(model).run({"x": x}), execution_sigma(model, {"x": x})
    assert np.argwhere(np.isnan(sigma["y"])).tolist() == [[1, 1]]
    found = expected["y"].astype(np.float16)
    found[1, 1] = np.nan
    assert compare_execution({"y": found}, expected, sigma).passed
    found[0, 0] = 1.1
    assert not compare_execution({"y": found}, expected, sigma).passed
    x[...] = 2000
    sigma = execution_sigma(model, {"x": x})
    assert compare_execution({"y": found}, Oracle(model).run({"x": x}), sigma).status == "skipped"
    wide = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float y) { y = Mul(x, x) }')
    assert not np.isnan(execution_sigma(wide, {"x": np.full(2, 2000, np.float32)})["y"]).any()


AFFINE = {
    "the shift of a norm": "c = Conv (x, w) y = BatchNormalization (c, scale, shift, mean, variance)",
    "a constant": "c = Conv (x, w) y = Add (shifts, c)",
    "a bias": "c = Conv (x, w, shift) y = Identity (c)",
    "a constant behind a factor": "c = Conv (x, w) m = Mul (c, scales) y = Add (m, shifts)",
}


@pytest.mark.parametrize("name", AFFINE)
def test_sums_may_begin_with_what_is_added_to_them(name: str, network: Callable[..., ir.Model]) -> None:
    model = network(
        f"""<ir_version: 10, opset_import: ["" : 18]> g (float[1,256,1,100] x) => (float[1,2,1,100] y)
        <float[2,256,1,1] w, float[2] scale = {{1, 1}}, float[2] shift = {{40, -33}}, float[2] mean = {{0, 0}},
         float[2] variance = {{0.99999, 0.99999}}, float[1,2,1,1] scales = {{1, 1}}, float[1,2,1,1] shifts = {{40, -33}}> {{ {AFFINE[name]} }}"""
    )
    x = np.random.default_rng(0).standard_normal((1, 256, 1, 100)).astype(np.float32)
    weight = next(value.const_value.numpy() for value in model.graph.initializers.values() if value.name == "w")
    sums = np.broadcast_to(np.float32([40, -33])[:, None], (2, 100)).copy()
    for channel in range(256):
        sums += weight[:, channel, 0] * x[0, channel, 0]
    oracle = Oracle(model)
    error = sums - oracle.run({"x": x})["y"][0, :, 0]
    sigma = execution_sigma(oracle, {"x": x})["y"]
    assert 0.25 < np.sqrt((error**2).mean()) / np.sqrt((sigma**2).mean()) < 1
