import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sepwise.passes.equivalence import (
    HISTOGRAM_EDGES,
    GraphReference,
    Margin,
    Oracle,
    compare_execution,
    compare_graph,
    compare_kernel,
    execution_sigma,
    run_with_bounds,
    sample_inputs,
    worst_check,
)
from sepwise.passes.equivalence.compare import ALL_UNDECIDED, NOTHING_BOUNDED, NOTHING_FINITE
from sepwise.passes.errors import InputError

Mutant = Callable[[onnx.ModelProto], onnx.ModelProto]


@pytest.fixture(scope="module")
def network(network_type) -> onnx.ModelProto:
    """Separable blocks with everything that can be folded wrongly: biases, a padded pointwise conv, a stride, a residual."""
    built = network_type(5, (1, 8, 14, 14))
    built.convolution("depthwise", bias=True)
    built.batch_norm()
    built.activation("Relu6")
    built.convolution("padded pointwise", bias=True)
    built.batch_norm(epsilon=1e-3)
    built.activation("HardSwish")
    before = built.last
    built.convolution("multiplier", stride=2)
    built.batch_norm()
    built.activation("Relu6")
    built.squeeze_and_excite()
    built.convolution("pointwise")
    built.batch_norm()
    built.activation("Relu")
    assert before != built.last
    return built.finish()


@pytest.fixture(scope="module")
def reference(network: onnx.ModelProto) -> GraphReference:
    return GraphReference(network, [sample_inputs(network, seed) for seed in range(2)])


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    return mutant


def nodes_of(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def change_tensor(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return model


def one_weight_by_a_percent(model: onnx.ModelProto) -> onnx.ModelProto:
    def change(weight: np.ndarray) -> np.ndarray:
        weight[1, 0, 0, 0] *= np.float32(1.01)
        return weight

    return change_tensor(model, nodes_of(model, "Conv")[1].input[1], change)


def epsilon_of_another_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    attribute(nodes_of(model, "BatchNormalization")[0], "epsilon").f = 1.1e-5
    return model


def pad_lost(model: onnx.ModelProto) -> onnx.ModelProto:
    """The padding of the pointwise conv moves behind it, where it is zeros instead of the bias."""
    conv = nodes_of(model, "Conv")[1]
    attribute(conv, "pads").ints[:] = [0, 0, 0, 0]
    inner, outer = "unpadded", conv.output[0]
    conv.output[0] = inner
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "widths"))
    index = list(model.graph.node).index(conv)
    model.graph.node.insert(index + 1, helper.make_node("Pad", [inner, "widths"], [outer]))
    return model


def pads_mirrored(model: onnx.ModelProto) -> onnx.ModelProto:
    for conv in nodes_of(model, "Conv"):
        pads = attribute(conv, "pads").ints
        if list(pads[:2]) != list(pads[2:]):
            pads[:] = [*pads[2:], *pads[:2]]
            return model
    raise AssertionError("the network has no asymmetric pads")


def relu6_as_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    clip = nodes_of(model, "Clip")[0]
    clip.op_type = "Relu"
    del clip.input[1:]
    return model


def hard_swish_as_silu(model: onnx.ModelProto) -> onnx.ModelProto:
    node = nodes_of(model, "HardSwish")[0]
    index = list(model.graph.node).index(node)
    model.graph.node.insert(index, helper.make_node("Sigmoid", [node.input[0]], ["gate"]))
    node.op_type = "Mul"
    node.input.append("gate")
    return model


def group_order_swapped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The channels of a multiplier-2 conv are interleaved the other way."""
    weight = nodes_of(model, "Conv")[2].input[1]
    return change_tensor(model, weight, lambda w: w.reshape(-1, 2, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape))


def gate_dropped(model: onnx.ModelProto) -> onnx.ModelProto:
    product = nodes_of(model, "Mul")[-1]
    product.op_type = "Identity"
    del product.input[1]
    return model


def transposed_kernel(model: onnx.ModelProto) -> onnx.ModelProto:
    return change_tensor(model, nodes_of(model, "Conv")[0].input[1], lambda w: np.swapaxes(w, 2, 3).copy())


def norm_behind_activation(model: onnx.ModelProto) -> onnx.ModelProto:
    norm, relu = nodes_of(model, "BatchNormalization")[-1], nodes_of(model, "Relu")[-1]
    before, after = norm.input[0], relu.output[0]
    relu.input[0], norm.input[0] = before, "relu_first"
    relu.output[0], norm.output[0] = "relu_first", after
    nodes = list(model.graph.node)
    i, j = nodes.index(norm), nodes.index(relu)
    nodes[i], nodes[j] = relu, norm
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


MUTANTS: dict[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        one_weight_by_a_percent,
        epsilon_of_another_layer,
        pad_lost,
        pads_mirrored,
        relu6_as_relu,
        hard_swish_as_silu,
        group_order_swapped,
        gate_dropped,
        transposed_kernel,
        norm_behind_activation,
    )
}


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_right_folds_pass(reference: GraphReference, network: onnx.ModelProto, fold_batch_norms, number: type) -> None:
    (check,) = compare_graph(reference, fold_batch_norms(network, number))
    assert check.passed, check
    assert 0.01 < check.worst_ratio < 0.9


@pytest.mark.parametrize("mistake", ["epsilon", "bias", "mean", "variance"])
@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_wrong_folds_fail(
    reference: GraphReference, network: onnx.ModelProto, fold_batch_norms, number: type, mistake: str
) -> None:
    (check,) = compare_graph(reference, fold_batch_norms(network, number, mistake))
    assert check.status == "failed"
    assert check.worst_ratio > 3


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(reference: GraphReference, network: onnx.ModelProto, fold_batch_norms, mutant: str) -> None:
    changed = MUTANTS[mutant](copy(network))
    (check,) = compare_graph(reference, changed)
    assert check.status == "failed", check
    (check,) = compare_graph(reference, fold_batch_norms(changed))
    assert check.status == "failed", check


@pytest.mark.parametrize("mutant", sorted(set(MUTANTS) - {"epsilon_of_another_layer"}))
def test_mutants_fail_as_executions(network: onnx.ModelProto, run_onnxruntime, mutant: str) -> None:
    inputs = sample_inputs(network, 0)
    outputs = run_onnxruntime(MUTANTS[mutant](copy(network)), inputs)
    check = compare_execution(outputs, Oracle(network).run(inputs), execution_sigma(network, inputs))
    assert check.status == "failed", check
    kernel = compare_kernel(outputs["y"], *run_with_bounds(network, inputs)["y"])
    assert kernel.max_abs_error == check.max_abs_error or not np.isfinite(check.max_abs_error)


def test_stride_swapped_for_dilation_changes_the_shape(reference: GraphReference, network: onnx.ModelProto) -> None:
    changed = copy(network)
    conv = nodes_of(changed, "Conv")[2]
    attribute(conv, "strides").ints[:] = [2, 1]
    del changed.graph.value_info[:]
    changed.graph.output[0].type.tensor_type.ClearField("shape")
    (check,) = compare_graph(reference, changed)
    assert check.status == "failed"
    assert "shape" in check.reason
    assert check.to_json()["max_abs_error"] is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(
        st.sampled_from(["depthwise", "pointwise", "dense", "multiplier", "padded pointwise"]), min_size=1, max_size=3
    ),
    activation=st.sampled_from(["Relu6", "HardSwish", "SiLU", "none"]),
)
def test_no_false_alarms(random_network, fold_batch_norms, run_onnxruntime, seed, kinds, activation) -> None:
    model = random_network(seed, [(kind, activation) for kind in kinds])
    inputs = [sample_inputs(model, seed, kind) for kind in ("normal", "impulse", "knees")]
    reference = GraphReference(model, inputs)
    for number in (np.float64, np.float32):
        (check,) = compare_graph(reference, fold_batch_norms(model, number))
        assert check.passed, check
    outputs = [run_onnxruntime(model, feeds) for feeds in inputs]
    check = compare_execution(outputs, reference.outputs, [execution_sigma(model, feeds) for feeds in inputs])
    assert check.passed, check


def test_exact_passes_are_held_to_the_last_bit(network: onnx.ModelProto, reference: GraphReference, fold_batch_norms) -> None:
    (check,) = compare_graph(reference, copy(network), exact=True)
    assert check.passed
    assert check.worst_ratio == 0
    (check,) = compare_graph(reference, fold_batch_norms(network), exact=True)
    assert check.status == "failed"
    assert check.worst_ratio is None
    assert "has to be exact" in check.reason


def test_other_order_without_constants_is_no_mistake(parse) -> None:
    """Nothing is stored, so sigma_c is 0; what float64 itself rounds is allowed."""
    header = '<ir_version: 8, opset_import: ["" : 18]> g (float[300] x, float[300] z, float[300] w) => (float y)'
    left = parse(f"{header} {{ t = Add(x, z) y = Add(t, w) }}")
    right = parse(f"{header} {{ t = Add(z, w) y = Add(x, t) }}")
    wrong = parse(f"{header} {{ t = Add(z, w) y = Sub(t, x) }}")
    inputs = sample_inputs(left, 0)
    assert compare_graph(left, right, inputs)[0].passed
    assert not compare_graph(left, wrong, inputs)[0].passed


def test_a_pixel_does_not_drown_among_all_others(parse) -> None:
    """By the root mean square alone a single one of 100,000 may be off by 300 times its own rounding."""

    def scaled(shift: float) -> onnx.ModelProto:
        return parse(
            f"""<ir_version: 8, opset_import: ["" : 18]> g (float[1,10,100,100] x) => (float[1,10,100,100] y)
            <float s = {{1.1}}, float[1,1,1,1] corner = {{{shift}}}, int64[8] pads = {{0, 0, 0, 0, 0, 9, 99, 99}}>
            {{ t = Mul (x, s) p = Pad (corner, pads) y = Add (t, p) }}"""
        )

    x = {"x": np.random.default_rng(0).uniform(1, 2, (1, 10, 100, 100)).astype(np.float32)}
    reference = GraphReference(scaled(0), x)
    (right,) = compare_graph(reference, scaled(1e-7))
    (wrong,) = compare_graph(reference, scaled(1e-5))
    assert right.passed
    assert wrong.status == "failed"
    assert wrong.rms_ratio is not None
    assert wrong.rms_ratio < 1
    assert wrong.worst_index == (0, 0, 0, 0)
    assert wrong.margin == Margin("element", pytest.approx(1e-5, rel=1e-3), wrong.bound)
    assert wrong.worst_ratio == pytest.approx(wrong.worst_error / wrong.bound)
    assert wrong.reason.startswith("1 of 100000 elements are off by more than 16 times what rounding the constants explains of each, by 1e-05")


def test_integer_outputs_are_exact(parse) -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]> g (float[4,9] x) => (float y)'
    model = parse(f"{header} {{ y = ArgMax<axis=1>(x) }}")
    other = parse(f"{header} {{ y = ArgMin<axis=1>(x) }}")
    inputs = sample_inputs(model, 0)
    assert compare_graph(model, model, inputs)[0].passed
    assert compare_graph(model, other, inputs)[0].status == "failed"
    oracle, sigma = Oracle(model).run(inputs), execution_sigma(model, inputs)
    assert compare_execution(oracle, oracle, sigma).passed
    assert compare_execution({"y": oracle["y"] + 1}, oracle, sigma).worst_ratio is None


def test_missing_outputs_are_named(network: onnx.ModelProto, parse) -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]> g (float[3] x)'
    model, other = parse(f"{header} => (float y) {{ y = Relu(x) }}"), parse(f"{header} => (float q) {{ q = Relu(x) }}")
    with pytest.raises(InputError, match="has no output 'y'; it has q"):
        compare_graph(model, other, sample_inputs(model, 0))


def test_kernel_check_names_the_worst_element() -> None:
    value, bound = np.zeros((2, 3)), np.full((2, 3), 2.0**-20)
    actual = np.zeros((2, 3), np.float32)
    actual[1, 2], actual[0, 0] = 3 * 2.0**-20, 2.0**-21
    check = compare_kernel(actual, value, bound, name="k", nodes=["Conv_0"])
    assert check.status == "failed"
    assert check.worst_index == (1, 2)
    assert check.worst_ratio == 3
    assert check.bound == 2.0**-20
    assert check.nodes == ("Conv_0",)
    assert "[1, 2]" in check.reason
    assert json.loads(json.dumps(check.to_json()))["worst_index"] == [1, 2]


def test_the_worst_element_comes_with_its_values(parse) -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]> g (float[2,300] x) => (float y)'
    left, right = parse(f"{header} {{ y = Relu(x) }}"), parse(f"{header} {{ y = LeakyRelu(x) }}")
    inputs = [sample_inputs(left, 0), {"x": np.zeros((2, 300), np.float32)}]
    inputs[1]["x"][1, 7] = -1000
    (graph,) = compare_graph(left, right, inputs)
    outputs = [Oracle(right).run(feeds) for feeds in inputs]
    expected = [Oracle(left).run(feeds) for feeds in inputs]
    model = compare_execution(outputs, expected, [execution_sigma(left, feeds) for feeds in inputs])
    kernel = compare_kernel(outputs[1]["y"], expected[1]["y"], np.zeros((2, 300)))
    for check in (graph, model):
        assert (check.worst_tensor, check.worst_input, check.worst_index) == ("y", 1, (1, 7))
    assert (graph.computed, graph.expected) == (model.computed, model.expected) == (kernel.computed, kernel.expected)
    assert graph.computed == -1000 * float(np.float32(0.01))
    assert graph.expected == 0
    assert sum(graph.histogram) == sum(model.histogram) == 2 * sum(kernel.histogram) == 2 * 600
    assert kernel.histogram[-1] == 1, "an error where none is allowed is off the scale"


def test_margin_is_of_one_element() -> None:
    """The largest error is on other inputs, where more is allowed, and it is not what the bound belongs to."""
    outputs = [{"y": np.array([1.0, 2.0])}, {"y": np.array([1000.0, 2.0])}]
    wrong = [{"y": np.array([1.0, 2.0 + 2.0**-15])}, {"y": np.array([1000.0 + 2.0**-4, 2.0])}]
    sigma = [{"y": np.full(2, 2.0**-17)}, {"y": np.full(2, 1.0)}]
    check = compare_execution(wrong, outputs, sigma)
    assert check.passed
    assert check.max_abs_error == 2.0**-4
    assert (check.worst_input, check.worst_index) == (0, (1,))
    assert check.worst_error == abs(check.computed - check.expected) == 2.0**-15
    assert check.margin == Margin("element", 2.0**-15, check.bound)
    assert check.margin.error / check.margin.bound == check.worst_ratio
    assert check.to_json()["worst_error"] == 2.0**-15


def test_margin_is_of_the_rms_where_it_decides(reference: GraphReference, fold_batch_norms, network: onnx.ModelProto) -> None:
    (graph,) = compare_graph(reference, fold_batch_norms(network))
    right, sigma = {"y": np.ones(200)}, {"y": np.full(200, 2.0**-23)}
    one = compare_execution({"y": np.full(200, 1 + 2.0**-23, np.float32)}, right, sigma)
    for check in (graph, one):
        assert check.margin == Margin("RMS", check.rms_error, check.rms_bound)
        assert check.margin.error / check.margin.bound == pytest.approx(check.worst_ratio)
    assert abs(graph.computed - graph.expected) == graph.worst_error == graph.max_abs_error
    outputs = {"y": np.full(200, 1 + 2.0**-23, np.float32), "z": np.zeros(200, np.float32)}
    two = compare_execution(outputs, {**right, "z": np.zeros(200)}, {**sigma, "z": np.ones(200)})
    assert two.margin == Margin("RMS / sigma", two.worst_ratio, 1.0)
    assert two.worst_ratio == pytest.approx(0.5**0.5)


def test_margin_of_what_is_exact_or_misplaced_or_skipped(parse) -> None:
    model, other = (
        parse(f'<ir_version: 8, opset_import: ["" : 18]> g (float[4,9] x) => (float y) {{ y = Arg{m}<axis=1>(x) }}')
        for m in ("Max", "Min")
    )
    (check,) = compare_graph(model, other, sample_inputs(model, 0))
    assert check.margin == Margin("element", check.worst_error, 0.0)
    assert check.worst_error == check.max_abs_error > 0
    value = np.ones(3)
    assert compare_kernel(np.array([1, np.nan, 1]), value, value).margin == Margin("element", np.inf, 0.0)
    assert compare_kernel(value, value, np.full(3, np.inf)).margin is None


def test_failure_says_what_is_allowed(parse) -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]> g'
    for count, text in (
        (20, "where 3 times what rounding the constants explains, as of few elements"),
        (200, "where rounding the constants explains"),
    ):
        models = [parse(f"{header} (float[{count}] x) => (float y) <float c = {{{c}}}> {{ y = Mul (x, c) }}") for c in (1.5, 1.6)]
        (check,) = compare_graph(*models, sample_inputs(models[0], 0))
        assert text in check.reason
        assert f"{check.rms_bound:.3g}" in check.reason
    models = [
        parse(f"{header} (float[200] x, float[200] z) => (float y) {{ y = {operator} (x, z) }}") for operator in ("Add", "Sub")
    ]
    (check,) = compare_graph(*models, sample_inputs(models[0], 0))
    assert "where rounding in the float64 reference explains" in check.reason


def test_histogram_counts_each_element_once() -> None:
    """A ratio that is an edge belongs to the bin below it, so that what is within its bound ends at 1."""
    ratios = np.array([0.0, 2.0**-40, HISTOGRAM_EDGES[0], 0.3, 0.5, 0.75, 1.0, np.nextafter(1, 2), HISTOGRAM_EDGES[-1], 1e9])
    bound = np.full(ratios.shape, 2.0**-10)
    counts = compare_kernel(ratios * bound, np.zeros(ratios.shape), bound).histogram
    expected = [int((ratios == 0).sum())]
    below = 0.0
    for edge in HISTOGRAM_EDGES:
        expected.append(int(((ratios > below) & (ratios <= edge)).sum()))
        below = edge
    assert counts == (*expected, int((ratios > below).sum()))
    assert 1.0 in HISTOGRAM_EDGES


def test_elements_that_are_not_judged_are_not_counted() -> None:
    check = compare_kernel(np.ones(3, np.float32), np.ones(3), np.array([1.0, np.inf, 1.0]))
    assert check.passed
    assert sum(check.histogram) == 2


def test_a_kernel_of_which_nothing_is_known_is_skipped() -> None:
    check = compare_kernel(np.zeros(3, np.float32), np.ones(3), np.full(3, np.inf))
    assert (check.status, check.worst_ratio) == ("skipped", None)
    assert "overflow at every element" in check.reason


def test_places_of_nan_may_be_left_open() -> None:
    """As on inputs that were drawn beyond a domain: one kernel gives NaN where another, rounding otherwise, does not."""
    value, bound = np.array([np.nan, np.inf, 1.0]), np.full(3, 0.5)
    actual = np.array([0.0, np.nan, 1.25], np.float32)
    assert compare_kernel(actual, value, bound).status == "failed"
    open_places = compare_kernel(actual, value, bound, placed=False)
    assert (open_places.status, open_places.worst_ratio, sum(open_places.histogram)) == ("passed", 0.5, 1)
    actual[2] = np.nan
    assert compare_kernel(actual, value, bound, placed=False).status == "failed"
    assert compare_kernel(actual[:2], value[:2], bound[:2], placed=False).status == "skipped"


def test_the_worst_of_several_checks() -> None:
    bound = np.full(4, 1.0)
    half, twice = (compare_kernel(np.full(4, size, np.float32), np.zeros(4), bound) for size in (0.5, 2.0))
    nothing = compare_kernel(np.zeros(4, np.float32), np.zeros(4), np.full(4, np.inf))
    misplaced = compare_kernel(np.full(4, np.nan, np.float32), np.zeros(4), bound)
    assert worst_check([half, nothing]).worst_ratio == 0.5
    assert worst_check([nothing, twice, half]).worst_ratio == 2
    assert worst_check([twice, misplaced, half]).reason == misplaced.reason
    assert worst_check([nothing, nothing]).status == "skipped"
    assert sum(worst_check([half, twice, nothing]).histogram) == 8


def test_a_mistake_does_not_drown_in_larger_inputs(network: onnx.ModelProto) -> None:
    """Of the graph by itself and of its execution: the weight is wrong on the small inputs alone."""
    small, large = sample_inputs(network, 0), sample_inputs(network, 1, "large")
    reference = GraphReference(network, [small, large])
    assert all(check.passed for check in reference.judge(reference.outputs))
    off = [{name: array * (1 + 1e-4 * (place == 0)) for name, array in run.items()} for place, run in enumerate(reference.outputs)]
    (check,) = reference.judge(off)
    assert (check.status, check.worst_input) == ("failed", 0)
    assert compare_execution(off, reference.outputs, reference.execution_sigma()).status == "failed"


def test_zero_bound_is_exact_or_null() -> None:
    zero = np.zeros(3)
    assert compare_kernel(np.zeros(3, np.float32), zero, zero).worst_ratio == 0
    check = compare_kernel(np.array([0, 1e-9, 0], np.float32), zero, zero)
    assert check.status == "failed"
    assert check.worst_ratio is None


@pytest.mark.parametrize("there", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_have_their_places(there: float) -> None:
    value = np.array([1.0, there, 2.0])
    bound = np.array([0.1, np.inf, 0.1])
    assert compare_kernel(value.astype(np.float32), value, bound).passed
    for wrong in ([1.0, 5.0, 2.0], [there, there, 2.0], [1.0, 0.0, there]):
        check = compare_kernel(np.array(wrong, np.float32), value, bound)
        assert check.status == "failed", wrong
        assert check.to_json()["max_abs_error"] is None


def test_execution_may_overflow_where_float32_does() -> None:
    oracle, sigma = {"y": np.array([1e39, 1.0])}, {"y": np.array([1e32, 1e-7])}
    assert compare_execution({"y": np.array([np.inf, 1], np.float32)}, oracle, sigma).passed
    assert not compare_execution({"y": np.array([1, np.inf], np.float32)}, oracle, sigma).passed


def test_rms_is_not_applied_to_few_elements() -> None:
    sigma = {"y": np.full(20, 2.0**-23)}
    oracle = {"y": np.ones(20)}
    actual = {"y": (1 + 3 * 2.0**-23 * np.ones(20)).astype(np.float32)}
    check = compare_execution(actual, oracle, sigma)
    assert check.passed
    assert check.rms_error is None
    many = {key: np.tile(value, 10) for key, value in (("a", actual["y"]), ("o", oracle["y"]), ("s", sigma["y"]))}
    check = compare_execution({"y": many["a"]}, {"y": many["o"]}, {"y": many["s"]})
    assert check.status == "failed"
    assert "RMS" in check.reason
    assert check.worst_ratio == 3


@pytest.mark.parametrize("there", [np.nan, np.inf, -np.inf])
def test_where_nothing_is_finite_nothing_is_proven(there: float, parse) -> None:
    """Twice a number is another one, but twice NaN or infinity is itself."""
    header = '<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float[4] y)'
    model = parse(f"{header} {{ y = Identity(x) }}")
    other = parse(f"{header} <float two = {{2.0}}> {{ y = Mul(x, two) }}")
    for rest, status in ((there, "skipped"), (1.0, "failed")):
        inputs = {"x": np.array([there, rest, rest, there], np.float32)}
        right, found = Oracle(model).run(inputs), Oracle(other).run(inputs)
        (graph,) = compare_graph(model, other, inputs)
        checks = [graph, compare_execution(found, right, execution_sigma(model, inputs))]
        checks.append(compare_kernel(found["y"], *run_with_bounds(model, inputs)["y"], name="k", nodes=["n"]))
        assert [check.status for check in checks] == [status] * 3
        assert all((check.reason == "nothing finite to compare: give other inputs") == (status == "skipped") for check in checks)
        assert (checks[2].name, checks[2].nodes) == ("k", ("n",))
        (same,) = compare_graph(model, model, inputs, exact=True)
        assert same.status == ("skipped" if status == "skipped" else "passed")
    assert compare_execution({"y": np.zeros(4, np.float32)}, right | {"y": np.full(4, there)}, {"y": np.zeros(4)}).status == "failed"


def test_one_finite_output_is_something_to_compare(parse) -> None:
    """Outputs that are constant infinities, empty or whole numbers need no other inputs."""
    model = parse(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[4] x, float[0] e) => (float[4] y, float[4] m, float[0] z, bool[4] b) '
        "<float zero = {0.0}> { y = Relu(x) none = Mul(x, zero) m = Log(none) z = Relu(e) b = IsNaN(x) }"
    )
    for value, status in ((1.0, "passed"), (np.nan, "skipped")):
        inputs = {"x": np.full(4, value, np.float32), "e": np.zeros(0, np.float32)}
        found = {check.name: check.status for check in compare_graph(model, model, inputs)}
        assert found == {"y": status, "m": status, "z": "passed", "b": "passed"}
        oracle = Oracle(model).run(inputs)
        assert compare_execution(oracle, oracle, execution_sigma(model, inputs)).status == status
    assert compare_kernel(np.zeros(0, np.float32), np.zeros(0), np.zeros(0)).passed
    assert compare_kernel(np.ones(2, np.int64), np.ones(2, np.int64), np.zeros(2)).passed


ROUNDED = """<ir_version: 8, opset_import: ["" : 18]> g (float[40000] x) => (int64 y, bool z)
<float c = {1.1}, float s = {100000}, float half = {0.5}>
{
  t = Mul (x, c)
  u = Mul (t, s)
  r = Round (u)
  y = Cast <to=7> (r)
  f = Floor (u)
  d = Sub (u, f)
  z = Greater (d, half)
}"""


def test_integers_are_exact_except_where_rounding_decides_them(parse) -> None:
    """The product of two constants as one is right, and rounds some of the numbers to other integers."""

    def folded(factor: float) -> onnx.ModelProto:
        product = float(np.float32(np.float32(1.1).astype(np.float64) * 100000 * factor))
        text = ROUNDED.replace("s = {100000}", f"s = {{{product:.9g}}}").replace("t = Mul (x, c)", "t = Identity (x)")
        return parse(text)

    original = parse(ROUNDED)
    reference = GraphReference(original, [sample_inputs(original, seed) for seed in range(2)])
    right, flipped = Oracle(folded(1)).run(reference.inputs[0]), 0
    for name, expected in reference.outputs[0].items():
        flipped += int((right[name] != expected).sum())
    assert flipped > 0
    assert [check.status for check in compare_graph(reference, folded(1))] == ["passed", "passed"]
    assert [check.status for check in compare_graph(reference, folded(1), exact=True)] == ["failed", "failed"]
    wrong = compare_graph(reference, folded(1 + 1e-5))
    assert [(check.status, check.worst_ratio) for check in wrong] == [("failed", None), ("failed", None)]
    assert wrong[0].reason.endswith("and has to be exact")


def test_integers_that_rounding_decides_throughout_are_not_judged(parse) -> None:
    model = parse(ROUNDED.replace("100000", "1e15").replace("(int64 y, bool z)", "(int64 y)").replace("40000", "50"))
    x = {"x": np.linspace(1, 2, 50, dtype=np.float32)}
    (check,) = compare_graph(model, model, x)
    assert (check.status, check.reason) == ("skipped", ALL_UNDECIDED)
    expected, sigma = Oracle(model).run(x), execution_sigma(model, x)
    judged = compare_execution(expected, expected, sigma)
    assert (judged.status, judged.reason) == ("skipped", ALL_UNDECIDED)


def test_outputs_whose_shape_rounding_decides_are_not_judged(parse) -> None:
    """Of two numbers next to a half, one, both or none is above it."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[3] x) => (float[n] y) <float c = {1}, float half = {0.5}>
        { t = Mul (x, c) b = Greater (t, half) i = NonZero (b) j = Transpose (i) k = GatherND (t, j) y = Mul (k, c) }"""
    )
    close = {"x": np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 2], np.float32)}
    (check,) = compare_graph(model, model, close)
    assert (check.status, check.reason) == ("skipped", ALL_UNDECIDED)
    expected, sigma = Oracle(model).run(close), execution_sigma(model, close)
    for outputs in (expected, {"y": np.ones(7, np.float32)}):
        judged = compare_execution(outputs, expected, sigma)
        assert (judged.status, judged.reason) == ("skipped", ALL_UNDECIDED)
    far = {"x": np.array([0.1, 1, 2], np.float32)}
    for inputs in (far, [close, far]):
        assert [check.status for check in compare_graph(model, model, inputs)] == ["passed"]
    both = [Oracle(model).run(feeds) for feeds in (close, far)], [execution_sigma(model, feeds) for feeds in (close, far)]
    assert compare_execution(both[0], *both).passed
    wrong = [both[0][0], {"y": np.ones(7, np.float32)}]
    assert compare_execution(wrong, *both).reason == "shape (7,) where (2,) is right"


def test_overflow_is_the_reason_where_nothing_is_left_to_compare(parse) -> None:
    model = parse('<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float y) { y = Mul (x, x) }')
    x = {"x": np.full(4, 1e38, np.float32)}
    expected, sigma = Oracle(model).run(x), execution_sigma(model, x)
    check = compare_execution({"y": np.full(4, np.inf, np.float32)}, expected, sigma)
    assert (check.status, check.reason) == ("skipped", NOTHING_BOUNDED)
    x = {"x": np.full(4, np.nan, np.float32)}
    expected, sigma = Oracle(model).run(x), execution_sigma(model, x)
    assert compare_execution(expected, expected, sigma).reason == NOTHING_FINITE
