import numpy as np
import pytest

from sepwise.passes.equivalence import (
    Oracle,
    compare_execution,
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
