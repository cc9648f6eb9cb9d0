"""Layout assignment: every kernel reads what it can read, and few conversions do it."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from sepwise.lowering import device
from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.graph import KernelGraph, Layout
from sepwise.lowering.importer import import_graph
from sepwise.lowering.layout import assign_layouts
from sepwise.lowering.selection import Selector
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import canonicalize, fuse

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
PLAIN = Layout()


def assigned(model: ir.Model, target: device.Device) -> tuple[KernelGraph, dict[str, str]]:
    canonical = canonicalize(model)
    names = {str(node.name): str(node.outputs[0].name) for node in canonical.graph if node.name}
    found = import_graph(fuse(canonical).model, target, Selector(target, 1), value_names=names)
    assign_layouts(found.graph, found.views, target)
    return found.graph, found.views


def conversions(graph: KernelGraph) -> list[tuple[str, str]]:
    return [
        (kernel.inputs[0], kernel.outputs[0])
        for kernel in graph.kernels
        if isinstance(kernel.workload, GenericWorkload) and kernel.workload.operators == ("Layout",)
    ]


def check(graph: KernelGraph, views: dict[str, str], target: device.Device) -> None:
    """What holds for every graph."""
    packed = Layout(target.lanes)
    for name in (*graph.inputs, *graph.outputs, *views, *views.values()):
        assert graph.values[name].layout == PLAIN, name
    known = set(graph.inputs)
    for kernel in graph.kernels:
        layouts = [graph.values[name].layout for name in kernel.inputs]
        results = [graph.values[name].layout for name in kernel.outputs]
        for name in kernel.inputs:
            assert name in known or name in views, f"{kernel.name} reads {name} too early"
        known |= set(kernel.outputs)
        if isinstance(kernel.workload, ConvWorkload):
            assert layouts[0] == Layout(kernel.workload.input_lanes)
            assert all(layout == packed for layout in (*layouts[1:], *results))
        elif isinstance(kernel.workload, LinearWorkload):
            assert all(layout == PLAIN for layout in (*layouts, *results))
        else:
            assert isinstance(kernel.workload, GenericWorkload)
            assert kernel.workload.input_layouts == tuple(layouts)
            assert kernel.workload.output_layouts == tuple(results)
    for source, copy in conversions(graph):
        assert graph.values[source].shape == graph.values[copy].shape
        assert graph.values[source].layout != graph.values[copy].layout
    names = [kernel.name for kernel in graph.kernels]
    assert len(set(names)) == len(names)


@pytest.fixture(params=["x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72"])
def target(request: pytest.FixtureRequest) -> device.Device:
    return device.get(request.param)


def test_between_convolutions_nothing_is_converted(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    chain (float[1,3,9,9] x) => (float[1,9,3,3] y) <float[9,3,3,3] w, float[9,9,3,3] v, float[9,9,3,3] u>
    {
      a = Conv (x, w)
      b = Relu (a)
      c = Conv (b, v)
      y = Conv (c, u)
    }
    """), target)
    check(graph, views, target)
    assert [copy for _, copy in conversions(graph)] == ["y"]


def test_an_input_of_many_channels_is_packed_once(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    wide (float[1,9,5,5] x) => (float[1,9,5,5] y) <float[9,9,1,1] w, float[9,9,1,1] v>
    {
      a = Conv (x, w)
      b = Conv (x, v)
      c = Mul (a, b)
      y = Add (c, x)
    }
    """), target)
    check(graph, views, target)
    assert [source for source, _ in conversions(graph)].count("x") <= 1


def test_generic_kernels_pass_packed_tensors_on(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    pooled (float[1,3,9,9] x) => (float[1,5] y) <float[9,3,3,3] w, float[9,9,1,1] v, float[9,5] u>
    {
      a = Conv (x, w)
      b = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
      c = Conv (b, v)
      d = GlobalAveragePool (c)
      e = Flatten (d)
      y = Gemm (e, u)
    }
    """), target)
    check(graph, views, target)
    assert conversions(graph) == []
    assert graph.values["b"].layout == Layout(target.lanes)


def test_a_squeeze_and_excite_block_stays_packed(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    excited (float[1,3,9,9] x) => (float[1,9,7,7] y)
    <float[9,3,3,3] w, float[4,9,1,1] s, float[9,4,1,1] t, float[9,9,1,1] u>
    {
      a = Conv (x, w)
      p = GlobalAveragePool (a)
      q = Conv (p, s)
      r = Relu (q)
      e = Conv (r, t)
      h = HardSigmoid (e)
      m = Mul (a, h)
      y = Conv (m, u)
    }
    """), target)
    check(graph, views, target)
    assert [copy for _, copy in conversions(graph)] == ["y"]


def test_an_output_that_is_also_read_packed(target: device.Device, network: Callable[..., ir.Model]) -> None:
    """It is written packed under another name, and converted once for the caller."""
    graph, views = assigned(network(HEAD + """
    two (float[1,3,9,9] x) => (float[1,9,7,7] a, float[1,9,7,7] y) <float[9,3,3,3] w, float[9,9,1,1] v>
    {
      a = Conv (x, w)
      y = Conv (a, v)
    }
    """), target)
    check(graph, views, target)
    assert sorted(copy for _, copy in conversions(graph)) == ["a", "y"]
    second = next(k for k in graph.kernels if isinstance(k.workload, ConvWorkload) and k.inputs != ("x",))
    assert graph.values[second.inputs[0]].layout == Layout(target.lanes)


def test_a_value_that_is_wanted_both_ways(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    both (float[1,3,9,9] x) => (float[1,5] y, float[1,9,7,7] z) <float[9,3,3,3] w, float[441,5] u, float[9,9,1,1] v>
    {
      a = Conv (x, w)
      b = Neg (a)
      f = Flatten (b)
      y = Gemm (f, u)
      z = Conv (b, v)
    }
    """), target)
    check(graph, views, target)


def test_other_types_and_small_ranks_stay_plain(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    types (float[1,3,9,9] x) => (bool[1,9,7,7] y, float[1,9] z) <float[9,3,3,3] w, float[9,9,1,1] v, int64[2] axes = {2, 3}>
    {
      a = Conv (x, w)
      b = Greater (a, a)
      y = Not (b)
      z = ReduceMean <keepdims = 0> (a, axes)
    }
    """), target)
    check(graph, views, target)


def test_a_network_of_generic_kernels_alone(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + "plain (float[1,9,4,4] x) => (float[1,9,4,4] y) { a = Exp (x) y = Softmax <axis = 1> (a) }"), target)
    check(graph, views, target)
    assert conversions(graph) == []
    assert all(not value.layout.packed for value in graph.values.values())
