import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.equivalence import KINDS, compare_kernel, run_with_bounds, sample_inputs
from sepwise.passes.errors import UnsupportedError

CONVOLUTIONS = ["depthwise", "pointwise", "dense", "grouped", "multiplier", "padded pointwise"]
ACTIVATIONS = [
    *("Relu", "Relu6", "HardSwish", "Sigmoid", "SiLU", "Tanh", "Gelu", "LeakyRelu", "Mish", "spelled hard-swish", "none"),
]
BLOCKS = st.lists(st.tuples(st.sampled_from(CONVOLUTIONS), st.sampled_from(ACTIVATIONS)), min_size=1, max_size=3)
FINITE = sorted(set(KINDS) - {"nonfinite"})


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), blocks=BLOCKS, kind=st.sampled_from(FINITE))
def test_no_execution_violates_the_bound(random_network, run_onnxruntime, fold_batch_norms, seed, blocks, kind) -> None:
    """ONNX Runtime with and without its optimiser, and a network folded in float32, all stay inside."""
    model = random_network(seed, blocks)
    inputs = sample_inputs(model, seed, kind)
    value, bound = run_with_bounds(model, inputs)["y"]
    for name, file, optimised in [
        ("plain", model, False),
        ("optimised", model, True),
        ("folded", fold_batch_norms(model, np.float32), False),
    ]:
        check = compare_kernel(run_onnxruntime(file, inputs, optimised=optimised)["y"], value, bound, name=name)
        assert check.passed, check


def test_a_cast_to_booleans_is_false_at_zero_alone() -> None:
    """A sum of 1, 1e-9 and -1 is 1e-9, or 0 in float32: both ends of its interval are other than 0."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[2,3] x) => (bool[2,1] y) <float[3,1] ones = {1, 1, 1}>
        { s = MatMul (x, ones) y = Cast <to = 9> (s) }"""
    )
    x = np.array([[1, 1e-9, -1], [1, 1, 1]], np.float32)
    value, bound = run_with_bounds(model, {"x": x})["y"]
    assert value.ravel().tolist() == [True, True]
    assert bound.ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    "body",
    ["s = MatMul (x, w) y = Add (s, b)", "s = MatMul (x, w) y = Sub (s, b)", "s = Gemm (x, w) y = Add (b, s)", "y = Gemm (x, w, b)"],
)
def test_a_sum_may_begin_with_what_is_added_to_it(body: str) -> None:
    """Three quarters of the last digit of 1, added 25 times, are rounded to a whole one each."""
    digit = np.float32(2.0**-23)
    model = onnx.parser.parse_model(
        f'''<ir_version: 8, opset_import: ["" : 18]> g (float[1,25] x) => (float[1,1] y) <float[25,1] w, float[1] b = {{1}}> {{ {body} }}'''
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((25, 1), np.float32), "w"))
    x = np.full((1, 25), 0.75 * digit * (-1 if "Sub" in body else 1), np.float32)
    total = np.float32(-1 if "Sub" in body else 1)
    for term in x[0]:
        total += term
    value, bound = run_with_bounds(model, {"x": x})["y"]
    assert np.abs(total - value) == 25 * 0.25 * digit
    assert 25 * 0.25 * digit <= bound <= 2 * 25 * digit


def test_impulses_are_few_terms_of_a_sum_that_begins_with_a_constant(parse) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[1,100] x) => (float[1,1] y) <float[100,1] w, float[1] b = {1}>
        { s = MatMul (x, w) y = Add (s, b) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((100, 1), np.float32), "w"))
    x = np.zeros((1, 100), np.float32)
    x[0, 3] = 1
    value, bound = run_with_bounds(model, {"x": x})["y"]
    assert value == 2
    assert 0 < bound <= 10 * 2.0**-24 * value


def test_bound_is_not_absurd(random_network, run_onnxruntime, record_property) -> None:
    """One block's bound is a few hundred times the median error at most, so a lost term cannot hide below it."""
    ratios = []
    for seed in range(30):
        model = random_network(seed, [(CONVOLUTIONS[seed % 6], "Relu6")])
        inputs = sample_inputs(model, seed)
        check = compare_kernel(run_onnxruntime(model, inputs)["y"], *run_with_bounds(model, inputs)["y"])
        ratios.append(check.worst_ratio)
    record_property("worst_ratios", ratios)
    assert np.median(ratios) > 0.02
    assert max(ratios) < 1


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 2.0**-126, np.float32(0), x).astype(np.float32)


def test_a_hardmax_of_exact_operands_is_exact(parse) -> None:
    """It gives 0 and 1, which no arithmetic rounds or flushes; where rounding decides which is the largest, either may be."""
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2,4] x) => (float y) {{ {} y = Hardmax(s) }}'
    x = np.array([[1, 3, 3, 2], [1, 2, 3, 4]], np.float32)
    _, bound = run_with_bounds(parse(text.format("s = Neg(x)")), {"x": x}, flush=True)["y"]
    np.testing.assert_array_equal(bound, np.zeros((2, 4)))
    tied = np.array([[1, 3, 3, 2], [9, 2, 3, 4]], np.float32)
    _, bound = run_with_bounds(parse(text.format("s = Exp(x)")), {"x": tied}, flush=True)["y"]
    np.testing.assert_array_equal(bound, [[0, 1, 1, 0], [0, 0, 0, 0]])


def test_arithmetic_that_flushes_subnormals_stays_inside_its_own_bound_only(parse) -> None:
    """A product of matrices and a scale, every operand, product, partial sum and result below the normal range taken for 0."""
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[5,40] x, float[40,6] w, float s) => (float y, float r) '
        "{ p = MatMul(x, w) y = Mul(p, s) r = Relu(x) }"
    )
    rng = np.random.default_rng(0)
    for x_scale, w_scale, s in ((1e-20, 1e-19, 1e3), (1e-39, 1e30, 1.0), (1.0, 1e-38, 2.0), (1.0, 1.0, 1e-38)):
        x = (rng.standard_normal((5, 40)) * x_scale).astype(np.float32)
        w = (rng.standard_normal((40, 6)) * w_scale).astype(np.float32)
        total = np.zeros((5, 6), np.float32)
        for k in range(40):
            product = flushed(flushed(x)[:, k : k + 1] * flushed(w)[k])
            total = flushed(total + product)
        inputs = {"x": x, "w": w, "s": np.float32(s)}
        outputs = {"y": flushed(total * flushed(np.float32(s))), "r": flushed(np.maximum(x, 0))}
        ieee, own = run_with_bounds(model, inputs), run_with_bounds(model, inputs, flush=True)
        assert all(compare_kernel(outputs[name], *own[name]).passed for name in outputs), x_scale
        assert not all(compare_kernel(outputs[name], *ieee[name]).passed for name in outputs) or s == 1e-38


def test_what_flushing_adds_is_nothing_to_normal_numbers(parse) -> None:
    model = parse(CONV)
    inputs = sample_inputs(model, 0)
    (value, bound), (same, wider) = (run_with_bounds(model, inputs, flush=flush)["y"] for flush in (False, True))
    assert np.array_equal(value, same)
    assert np.all(wider - bound <= 1e-30)
    moved = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[3] x) => (float y) { y = Transpose(x) }')
    _, bound = run_with_bounds(moved, {"x": np.full(3, 1e-40, np.float32)}, flush=True)["y"]
    assert not bound.any()


CONV = (
    '<ir_version: 8, opset_import: ["" : 18]> g (float[1,24,9,9] x) => (float y) <float[8,24,3,3] w, float[8] b> '
    "{ y = Conv<pads=[1,1,1,1]>(x, w, b) }"
)


def test_bound_of_a_convolution_is_gamma_k_times_the_sum_of_terms(parse, network_type) -> None:
    model = parse(CONV)
    inputs = sample_inputs(model, 0)
    value, bound = run_with_bounds(model, inputs)["y"]
    absolute = onnx.ModelProto()
    absolute.CopyFrom(model)
    for tensor in absolute.graph.initializer:
        array = np.abs(onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    terms, _ = run_with_bounds(absolute, {"x": np.abs(inputs["x"])})["y"]
    k = 24 * 9 + 1
    unit = 2.0**-24
    assert (bound >= k * unit * terms).all()
    assert (bound <= (k + 6) * unit * terms).all()
    assert value.shape == bound.shape == (1, 8, 9, 9)


def test_impulses_are_held_to_a_few_ulp(parse) -> None:
    model = parse(CONV)
    value, bound = run_with_bounds(model, sample_inputs(model, 3, "impulse"))["y"]
    terms = np.abs(value) + np.abs(onnx.numpy_helper.to_array(model.graph.initializer[1])).reshape(1, -1, 1, 1) * 2
    assert (bound <= 10 * 2.0**-24 * terms).all()


def test_saturated_elements_are_exact(parse) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1,1,3] x) => (float y) <float[1,1,1] w, float l = {0}, float h = {6}> '
        "{ t = Conv(x, w) y = Clip(t, l, h) }"
    )
    _, bound = run_with_bounds(model, {"x": np.array([[[1e4, -1e4, 1.0]]], np.float32)})["y"]
    assert (bound > 0).tolist() == [[[False, False, True]]]


def test_overflow_makes_the_bound_infinite(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float y) { y = Mul(x, x) }')
    value, bound = run_with_bounds(model, {"x": np.array([1e30, 1.0], np.float32)})["y"]
    assert np.isinf(bound).tolist() == [True, False]
    assert compare_kernel(np.array([np.inf, 1], np.float32), value, bound).passed


def test_inputs_are_rounded_as_they_are_fed(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float y) { y = Neg(x) }')
    value, bound = run_with_bounds(model, {"x": np.array([1 / 3])})["y"]
    assert value[0] == -float(np.float32(1 / 3))
    assert bound[0] == 0


def test_a_float64_model_keeps_its_digits(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (double[1] x) => (double y) <double c = {0.1}> { y = Max(x, c) }')
    value, bound = run_with_bounds(model, {"x": np.zeros(1)})["y"]
    assert (value[0], bound[0]) == (0.1, 0)


def test_intermediate_values_can_be_kept(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float y) { t = Exp(x) y = Log(t) }')
    results = run_with_bounds(model, {"x": np.ones(1, np.float32)}, keep=["t"])
    assert set(results) == {"y", "t"}


@pytest.mark.parametrize("operator", ["CumSum", "Det"])
def test_operators_without_a_rule_are_named(operator: str) -> None:
    inputs = "(x, a)" if operator == "CumSum" else "(x)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[2,2] x) => (float y) <int64 a = {{0}}> {{ y = {operator}{inputs} }}'
    )
    with pytest.raises(UnsupportedError, match=f"{operator} 'y': has no rule"):
        run_with_bounds(model, {"x": np.eye(2, dtype=np.float32)})


def test_a_choice_that_rounding_decides_is_either(parse) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[3] x, float[3] z) => (float y) '
        "{ s = Add(x, z) o = Greater(s, z) y = Where(o, x, z) }"
    )
    x = np.array([0.0, 1.0, -1.0], np.float32)
    value, bound = run_with_bounds(model, {"x": x, "z": np.array([5, 5, 5], np.float32)})["y"]
    assert value.tolist() == [5, 1, 5]
    assert bound.tolist() == [5, 0, 0]


def test_a_number_that_integers_do_not_hold_may_become_any(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (int8 y) { y = Cast<to=3>(x) }')
    _, bound = run_with_bounds(model, {"x": np.array([-128.5, 127.5, 128, np.inf], np.float32)})["y"]
    assert bound.tolist() == [0, 0, np.inf, np.inf]
