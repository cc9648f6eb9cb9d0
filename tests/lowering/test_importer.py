"""From a fused ONNX graph to kernels: what becomes a workload, under which names, with which weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.lowering import device
from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.graph import Kernel, KernelGraph
from sepwise.lowering.importer import ImportedGraph, import_graph
from sepwise.lowering.selection import Selector
from sepwise.lowering.verify import verify_model
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import canonicalize, fuse
from sepwise.passes.equivalence import Oracle, run_with_bounds, sample_inputs
from sepwise.passes.errors import UnsupportedError
from sepwise.passes.vocabulary import Activation

V3 = device.get("x86-64-v3")
HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

SEPARABLE = HEAD + """
separable (float[1,8,6,7] x) => (float[1,12,6,7] y)
<float[8,1,3,3] w0, float[8] b0, float[12,8,1,1] w1, float[12] g, float[12] b, float[12] m, float[12] var>
{
  [dw] a = Conv <group = 8, pads = [1,1,1,1]> (x, w0, b0)
  [pw] c = Conv (a, w1)
  [bn] n = BatchNormalization (c, g, b, m, var)
  [act] y = Relu (n)
}
"""

INVERTED = HEAD + """
inverted (float[1,8,7,7] x) => (float[1,8,7,7] y)
<float[24,8,1,1] w0, float[24] b0, float[24,1,3,3] w1, float[24] b1, float[8,24,1,1] w2, float[8] b2>
{
  [expand] a = Conv (x, w0, b0)
  [act0] b = Relu (a)
  [dw] c = Conv <group = 24, pads = [1,1,1,1]> (b, w1, b1)
  [act1] d = Relu (c)
  [project] e = Conv (d, w2, b2)
  [add] f = Add (x, e)
  [last] y = Relu (f)
}
"""


class Apart(Selector):
    """Gives each stage a kernel of its own."""

    def partition(self, workload: ConvWorkload) -> list[ConvWorkload]:
        from sepwise.lowering.selection import segment

        return [segment(workload, index, index + 1) for index in range(len(workload.stages))]


class Together(Selector):
    """Keeps every chain in one kernel."""

    def partition(self, workload: ConvWorkload) -> list[ConvWorkload]:
        return [workload]


def imported(model: ir.Model, *, selector: type[Selector] = Selector, target: device.Device = V3) -> ImportedGraph:
    canonical = canonicalize(model)
    names = {str(node.name): str(node.outputs[0].name) for node in canonical.graph if node.name}
    return import_graph(fuse(canonical).model, target, selector(target, 1), value_names=names)


def kernels(graph: KernelGraph, kind: type[Any]) -> list[Kernel]:
    return [kernel for kernel in graph.kernels if isinstance(kernel.workload, kind)]


def operators(kernel: Kernel) -> tuple[str, ...]:
    assert isinstance(kernel.workload, GenericWorkload)
    return kernel.workload.operators


def only(graph: KernelGraph, kind: type[Any]) -> Kernel:
    (kernel,) = kernels(graph, kind)
    return kernel


def test_a_chain_becomes_a_workload(network: Callable[..., ir.Model]) -> None:
    found = imported(network(SEPARABLE), selector=Together)
    kernel = only(found.graph, ConvWorkload)
    assert kernel.inputs == ("x",)
    assert kernel.outputs == ("y",)
    assert kernel.nodes == ("dw", "pw", "bn", "act")
    workload = kernel.workload
    assert isinstance(workload, ConvWorkload)
    assert workload.kind == "depthwise+pointwise"
    assert workload.output_shape == (1, 12, 6, 7)
    assert [stage.activation for stage in workload.stages] == [None, Activation("relu")]
    assert (workload.input_lanes, workload.output_lanes) == (8, 8)
    assert found.graph.inputs == ["x"]
    assert found.graph.outputs == ["y"]


def test_names_are_c_identifiers_of_their_own(network: Callable[..., ir.Model]) -> None:
    text = INVERTED.replace("[dw]", "[a_b]").replace("[project]", "[a__b]")
    model = network(text)
    for node in model.graph:
        if node.name == "a_b":
            node.name = "/block.0/Conv-1"
    graph = imported(model, selector=Apart).graph
    names = [kernel.name for kernel in graph.kernels]
    assert all(name.isidentifier() and name.isascii() for name in names)
    assert len(set(names)) == len(names)
    constants = [constant for kernel in graph.kernels for constant in kernel.constants]
    assert len(set(constants)) == len(constants)


def test_stages_in_kernels_of_their_own_keep_the_users_values(network: Callable[..., ir.Model]) -> None:
    model = network(INVERTED)
    graph = imported(model, selector=Apart).graph
    first, second, third = graph.kernels
    assert (first.inputs, first.outputs, first.nodes) == (("x",), ("b",), ("expand", "act0"))
    assert (second.inputs, second.outputs, second.nodes) == (("b",), ("d",), ("dw", "act1"))
    assert (third.inputs, third.outputs, third.nodes) == (("d", "x"), ("y",), ("project", "add", "last"))
    types = {name: value.shape for name, value in graph.values.items()}
    right = Oracle(model).run(sample_inputs(model, 0), keep=["b", "d"])
    for name in ("b", "d", "y"):
        assert types[name] == right[name].shape


def test_a_residual_is_the_second_input(network: Callable[..., ir.Model]) -> None:
    kernel = only(imported(network(INVERTED), selector=Together).graph, ConvWorkload)
    assert kernel.inputs == ("x", "x")
    workload = kernel.workload
    assert isinstance(workload, ConvWorkload)
    assert workload.residual
    assert workload.post_activation == Activation("relu")
    assert kernel.nodes == ("expand", "act0", "dw", "act1", "project", "add", "last")


def test_weights_are_those_of_the_folded_network(network: Callable[..., ir.Model]) -> None:
    """Weight and bias of each stage, put back into convolutions, compute what the network does."""
    model = network(SEPARABLE)
    found = imported(model, selector=Together)
    (w0, b0), (w1, b1) = found.weights[found.graph.kernels[0].name]
    assert w0.shape == (8, 1, 3, 3)
    assert w1.shape == (12, 8, 1, 1)
    feed = sample_inputs(model, 0)
    right = run_with_bounds(model, feed)["y"]
    again = network(HEAD + """
    again (float[1,8,6,7] x) => (float[1,12,6,7] y)
    <float[8,1,3,3] w0, float[8] b0, float[12,8,1,1] w1, float[12] b1>
    {
      a = Conv <group = 8, pads = [1,1,1,1]> (x, w0, b0)
      c = Conv (a, w1, b1)
      y = Relu (c)
    }
    """)
    for name, array in (("w0", w0), ("b0", b0), ("w1", w1), ("b1", b1)):
        again.graph.initializers[name].const_value = ir.tensor(array, name=name)
    assert (np.abs(Oracle(again).run(feed)["y"] - right[0]) <= right[1]).all()


def test_a_missing_bias_is_zero(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    one (float[1,8,6,7] x) => (float[1,4,6,7] y) <float[4,8,1,1] w> { y = Conv (x, w) }
    """))
    ((_, bias),) = found.weights[only(found.graph, ConvWorkload).name]
    np.testing.assert_array_equal(bias, np.zeros(4, np.float32))


def test_one_axis_gets_a_height_of_one(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    temporal (float[2,8,20] x) => (float[2,12,10] y) <float[8,1,3] w0, float[8] b0, float[12,8,1] w1, float[12] b1>
    {
      [dw] a = Conv <group = 8, pads = [4,0], dilations = [2], strides = [2]> (x, w0, b0)
      [pw] y = Conv (a, w1, b1)
    }
    """), selector=Apart)
    first, second = (kernel.workload for kernel in kernels(found.graph, ConvWorkload))
    assert isinstance(first, ConvWorkload)
    assert isinstance(second, ConvWorkload)
    assert first.spatial == (1, 20)
    stage = first.stages[0]
    assert (stage.kernel, stage.strides, stage.dilations) == ((1, 3), (1, 2), (1, 2))
    assert (stage.pads_begin, stage.pads_end) == ((0, 4), (0, 0))
    assert second.spatial == (1, 10)
    assert found.graph.values["a"].shape == (2, 8, 10)
    assert found.weights[found.graph.kernels[0].name][0][0].shape == (8, 1, 1, 3)


def test_three_axes_stay_three(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    video (float[1,8,3,6,7] x) => (float[1,8,3,3,7] y) <float[8,1,3,3,1] w>
    { y = Conv <group = 8, pads = [1,1,0,1,0,0], strides = [1,2,1]> (x, w) }
    """))
    workload = only(found.graph, ConvWorkload).workload
    assert isinstance(workload, ConvWorkload)
    assert workload.spatial == (3, 6, 7)
    assert workload.stages[0].pads_begin == (1, 1, 0)
    assert workload.stages[0].pads_end == (1, 0, 0)


@pytest.mark.parametrize(
    ("body", "weight", "bias"),
    [
        ("Gemm (x, w)", lambda w, b: w.T, lambda w, b: 0 * w[0]),
        ("Gemm (x, w, b)", lambda w, b: w.T, lambda w, b: b),
        ("Gemm <alpha = 2.0, beta = 4.0> (x, w, b)", lambda w, b: 2 * w.T, lambda w, b: 4 * b),
        ("Gemm <transB = 1> (x, v, b)", lambda w, b: w.T, lambda w, b: b),
        ("MatMul (x, w)", lambda w, b: w.T, lambda w, b: 0 * w[0]),
    ],
)
def test_matrix_products(
    body: str, weight: Callable[..., np.ndarray], bias: Callable[..., np.ndarray], network: Callable[..., ir.Model]
) -> None:
    model = network(HEAD + f"""
    product (float[3,9] x) => (float[3,5] y) <float[9,5] w, float[5,9] v, float[5] b> {{ [fc] y = {body} }}
    """)
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    w = constants["v"].T if "transB" in body else constants["w"]
    found = imported(model)
    kernel = only(found.graph, LinearWorkload)
    assert kernel.workload == LinearWorkload(3, 9, 5)
    assert kernel.nodes == ("fc",)
    ((stored, stored_bias),) = found.weights[kernel.name]
    np.testing.assert_array_equal(stored, weight(w, constants["b"]))
    np.testing.assert_array_equal(stored_bias, bias(w, constants["b"]))
    assert stored.dtype == stored_bias.dtype == np.float32


@pytest.mark.parametrize(("factor", "constant", "is_product"), [(1e5, 2.0**-10, True), (6e4, 2.0, False)])
@pytest.mark.parametrize("attribute", ["alpha", "beta"])
def test_factors_and_products_that_float16_does_not_hold(
    attribute: str, factor: float, constant: float, is_product: bool, network: Callable[..., ir.Model]
) -> None:
    """2^-10 * 1e5 = 97.65625, to the nearest float16 97.625."""
    model = network(HEAD + f"""
    product (float16[3,9] x) => (float16[3,5] y) <float16[9,5] w, float16[5] b> {{ y = Gemm <{attribute} = {factor:.1f}> (x, w, b) }}
    """)
    for value in model.graph.initializers.values():
        assert value.shape is not None
        value.const_value = ir.tensor(np.full(value.shape.numpy(), constant, np.float16), name=value.name)
    found = imported(model, target=device.get("cortex-a76"))
    assert len(kernels(found.graph, LinearWorkload)) == len(found.weights) == is_product
    for ((weight, bias),) in found.weights.values():
        np.testing.assert_array_equal(weight if attribute == "alpha" else bias, np.float16(97.625))


def test_leading_axes_are_rows(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + "tokens (float[2,7,9] x) => (float[2,7,5] y) <float[9,5] w> { y = MatMul (x, w) }"))
    assert only(found.graph, LinearWorkload).workload == LinearWorkload(14, 9, 5)


def test_bias_and_activation_go_with_the_product(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    product (float[3,9] x) => (float[3,5] y) <float[9,5] w, float[5] b>
    {
      [mm] a = MatMul (x, w)
      [bias] c = Add (b, a)
      [act] y = Sigmoid (c)
    }
    """))
    (kernel,) = found.graph.kernels
    assert kernel.workload == LinearWorkload(3, 9, 5, Activation("sigmoid"))
    assert kernel.nodes == ("mm", "bias", "act")
    assert kernel.outputs == ("y",)


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul (x, w) c = Add (a, b) y = Neg (c) z = Relu (a)",  # a second consumer
        "z = MatMul (x, w) c = Add (z, b) y = Neg (c)",  # an output of the network
        "a = MatMul (x, w) y = Add (a, column) z = Neg (y)",  # not along the features
        "a = MatMul (x, w) y = Add (a, x2) z = Neg (y)",  # not a constant
    ],
)
def test_what_is_no_bias_stays_apart(body: str, network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + f"""
    product (float[5,9] x, float[5,5] x2) => (float[5,5] y, float[5,5] z) <float[9,5] w, float[5] b, float[5,1] column>
    {{ {body} }}
    """))
    assert only(found.graph, LinearWorkload).workload == LinearWorkload(5, 9, 5)
    assert kernels(found.graph, GenericWorkload)


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("y = MatMul (x, x2)", "MatMul"),
        ("y = Gemm <transA = 1> (x3, w)", "Gemm"),
    ],
)
def test_other_products_are_generic(body: str, operator: str, network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + f"""
    product (float[5,5] x, float[5,5] x2, float[5,5] x3) => (float[5,5] y) <float[5,5] w> {{ {body} }}
    """))
    assert not kernels(found.graph, LinearWorkload)
    assert any(operator in operators(kernel) for kernel in kernels(found.graph, GenericWorkload))


def test_dynamic_weights_are_generic(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + "dynamic (float[1,8,6,7] x, float[4,8,3,3] w) => (float[1,4,4,5] y) { y = Conv (x, w) }"))
    kernel = only(found.graph, GenericWorkload)
    assert kernel.inputs == ("x", "w")
    assert "Conv" in operators(kernel)
    assert not kernels(found.graph, ConvWorkload)


def test_another_element_type_is_generic(network: Callable[..., ir.Model]) -> None:
    model = network(HEAD + """
    wide (double[1,8,6,7] x) => (double[1,4,6,7] y) <int64[4] shape = {4, 8, 1, 1}>
    {
      w = ConstantOfShape <value = double[1] {1.0}> (shape)
      [c] y = Conv (x, w)
    }
    """)
    found = imported(model)
    assert "Conv" in operators(only(found.graph, GenericWorkload))
    assert found.graph.values["y"].dtype == "float64"


def test_what_needs_a_runtime_is_refused_by_name(network: Callable[..., ir.Model]) -> None:
    model = network(HEAD + """
    top (float[1,9] x) => (float[1,3] y) <int64[1] k = {3}> { [best] y, i = TopK (x, k) }
    """)
    with pytest.raises(UnsupportedError, match=r"Node 'best'.*TopK"):
        imported(model)


def test_kernels_come_after_what_they_read(network: Callable[..., ir.Model]) -> None:
    """Generic kernels are imported last, and yet stand between convolutions."""
    graph = imported(network(HEAD + """
    mixed (float[1,8,6,6] x) => (float[1,5] y) <float[8,8,3,3] w, float[8,8,1,1] v, int64[2] shape = {1, 72}, float[72,5] u>
    {
      a = Conv (x, w)
      b = MaxPool <kernel_shape = [2,2]> (a)
      c = Conv (b, v)
      d = Reshape (c, shape)
      e = Neg (d)
      y = Gemm (e, u)
    }
    """), selector=Apart).graph
    views = {"d": "c"}
    known = set(graph.inputs)
    for kernel in graph.kernels:
        for name in kernel.inputs:
            assert views.get(name, name) in known or name in known, f"{kernel.name} reads {name} too early"
        known |= set(kernel.outputs)
    assert set(graph.outputs) <= known


def test_a_reshape_is_a_view(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    flat (float[1,8,3,3] x) => (float[1,5] y) <float[8,8,1,1] v, float[72,5] u>
    {
      c = Conv (x, v)
      d = Flatten (c)
      y = Gemm (d, u)
    }
    """))
    assert found.views == {"d": "c"}
    assert found.graph.values["d"].shape == (1, 72)
    assert not kernels(found.graph, GenericWorkload)


def test_of_outputs_that_are_views_of_each_other_one_is_no_copy(network: Callable[..., ir.Model]) -> None:
    found = imported(network(HEAD + """
    chain (float[1,8,3] x) => (float[1,8,3] first, float[1,1,8,3] between) <int64[1] axis = {0}>
    {
      r = Relu (x)
      between = Unsqueeze (r, axis)
      first = Squeeze (between, axis)
    }
    """))
    assert found.views == {"first": "r"}
    assert [kernel.outputs for kernel in found.graph.kernels] == [("r",), ("between",)]


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm (x, w, column)",
        "a = Gemm <beta = 0.5, alpha = 2.0> (x, w, full) y = Sigmoid (a)",
        "a = Gemm <beta = 0.5> (x, w, x2) y = Relu (a)",
        "a = Neg (row) y = Gemm (x, w, a)",
        "a = Neg (scalar) y = Gemm <transB = 1> (x, w, a)",
    ],
)
def test_what_a_gemm_adds_and_is_no_row_of_constants_is_added_apart(body: str, network: Callable[..., ir.Model]) -> None:
    model = network(HEAD + f"""
    g (float[5,5] x, float[5,5] x2, float[5] row, float scalar) => (float[5,5] y)
    <float[5,5] w, float[5,1] column, float[5,5] full> {{ {body} }}
    """)
    found = imported(model)
    assert only(found.graph, LinearWorkload).workload == LinearWorkload(5, 5, 5)
    ((_, bias),) = found.weights[only(found.graph, LinearWorkload).name]
    np.testing.assert_array_equal(bias, 0)
    assert ("Add",) in [operators(kernel) for kernel in kernels(found.graph, GenericWorkload)]
    assert verify_model(model, device.get("host")).passed


@pytest.mark.parametrize("attributes", ["", "<alpha = 2.5, gamma = 0.5>"])
def test_selu_keeps_its_digits_next_to_0(attributes: str, network: Callable[..., ir.Model]) -> None:
    """TVM's importer makes `1 - exp(x)` of it, which has none left there."""
    model = network(f"{HEAD}selu (float[4,9,50] x) => (float[4,9,50] y) {{ a = Relu (x) b = Sub (a, x) c = Neg (b) y = Selu {attributes} (c) }}")
    x = sample_inputs(model, 0)["x"] * np.float32(2.0**-20)
    found = verify_model(model, device.get("host"), inputs={"x": x})
    assert found.passed, [check for check in found.checks if not check.passed]
