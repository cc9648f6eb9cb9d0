"""Layout assignment: every kernel reads what it can read, and few conversions do it."""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import onnx_ir as ir
import pytest

from sepwise.lowering import device, layout
from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.generic_stages import StageFunction
from sepwise.lowering.graph import KernelGraph, Layout
from sepwise.lowering.importer import import_graph
from sepwise.lowering.layout import MOST_MIXED, assign_layouts
from sepwise.lowering.selection import Choice, Selector
from sepwise.lowering.strategies import Refusal
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import canonicalize, fuse

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
PLAIN = Layout()


class Priced(Selector):
    """A selector for which convolutions of plain inputs, or of packed ones, cost so many cycles more."""

    plain = 0.0
    packed = 0.0

    def choose(self, workload: ConvWorkload | LinearWorkload) -> Choice | list[Refusal]:
        choice = super().choose(workload)
        if isinstance(choice, list) or not isinstance(workload, ConvWorkload):
            return choice
        return replace(choice, cycles=choice.cycles + (self.packed if workload.input_lanes else self.plain))


def assigned(
    model: ir.Model, target: device.Device, selector: Selector | None = None
) -> tuple[KernelGraph, dict[str, str]]:
    canonical = canonicalize(model)
    names = {str(node.name): str(node.outputs[0].name) for node in canonical.graph if node.name}
    selector = selector or Selector(target, 1)
    found = import_graph(fuse(canonical).model, target, selector, value_names=names)
    assign_layouts(found.graph, found.views, selector)
    return found.graph, found.views


def conversions(graph: KernelGraph) -> list[tuple[str, str]]:
    return [
        (kernel.inputs[0], kernel.outputs[0])
        for kernel in graph.kernels
        if isinstance(kernel.workload, GenericWorkload) and kernel.workload.operators == ("Layout",)
        and kernel.workload.input_layouts != kernel.workload.output_layouts
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
            assert results[0] in (packed, PLAIN)
            assert all(layout == Layout(kernel.workload.output_lanes) for layout in (*layouts[1:], *results))
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


ARM = ["cortex-a72", "cortex-a7"]
X86 = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]


@pytest.fixture(params=[*X86, *ARM])
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


def test_what_moves_no_element_is_a_view(network: Callable[..., ir.Model]) -> None:
    model = canonicalize(network(HEAD + """
    chain (float[1,9,9,9] x) => (float[1,9,9,9] y) <float[9,1,3,3] w, float[9,9,1,1] v>
    {
      a = Conv <group = 9, pads = [1, 1, 1, 1]> (x, w)
      b = Relu (a)
      y = Conv (b, v)
    }
    """))
    selector = Selector(device.get("cortex-m7"), 1)
    found = import_graph(fuse(model).model, selector.device, selector, value_names={})
    views = assign_layouts(found.graph, found.views, selector)
    assert views == {"x.NCHW1c": "x", "y": "y.NCHW1c"}
    assert not conversions(found.graph)
    for one, other in views.items():
        assert found.graph.values[one].nbytes == found.graph.values[other].nbytes
    read = {name for kernel in found.graph.kernels for name in kernel.inputs}
    written = {name for kernel in found.graph.kernels for name in kernel.outputs}
    assert "x.NCHW1c" in read
    assert "y.NCHW1c" in written
    four_lanes = Selector(device.get("cortex-a72"), 1)
    packed = import_graph(fuse(model).model, four_lanes.device, four_lanes, value_names={})
    assert not assign_layouts(packed.graph, packed.views, four_lanes)


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
    assert graph.values["y"].layout == PLAIN


TWO_READERS = HEAD + """
    wide (float[1,32,9,9] x) => (float[1,9,9,9] y) <float[9,32,1,1] w, float[9,32,1,1] v>
    {
      a = Conv (x, w)
      b = Conv (x, v)
      y = Mul (a, b)
    }
    """


def test_an_input_is_packed_where_that_is_cheaper_and_once(target: device.Device, network: Callable[..., ir.Model]) -> None:
    dear, cheap = Priced(target, 1), Priced(target, 1)
    dear.plain, cheap.packed = 1e9, 1e9
    graph, views = assigned(network(TWO_READERS), target, dear)
    check(graph, views, target)
    assert [source for source, _ in conversions(graph)].count("x") == 1
    graph, views = assigned(network(TWO_READERS), target, cheap)
    check(graph, views, target)
    assert "x" not in [source for source, _ in conversions(graph)]
    assert all(k.workload.input_lanes == 0 for k in graph.kernels if isinstance(k.workload, ConvWorkload))


def test_the_first_layer_reads_the_image_as_it_is(target: device.Device, network: Callable[..., ir.Model]) -> None:
    """Also behind an operator: three channels would fill a vector with pad lanes."""
    graph, views = assigned(network(HEAD + """
    image (float[1,3,64,64] x) => (float[1,16,31,31] y) <float[16,3,3,3] w>
    {
      a = Sqrt (x)
      y = Conv <strides = [2,2]> (a, w)
    }
    """), target)
    check(graph, views, target)
    assert graph.values["a"].layout == PLAIN
    assert [copy for _, copy in conversions(graph)] == ["y"]


def test_an_image_of_the_other_order_is_turned_as_it_came(target: device.Device, network: Callable[..., ir.Model]) -> None:
    """To pack what stands where channels do, which are rows, would move all of it twice."""
    graph, views = assigned(network(HEAD + """
    image (float[1,64,64,3] x) => (float[1,16,31,31] y) <float[16,3,3,3] w>
    {
      a = Transpose <perm = [0,3,1,2]> (x)
      y = Conv <strides = [2,2]> (a, w)
    }
    """), target)
    check(graph, views, target)
    assert "x" not in [source for source, _ in conversions(graph)]


@pytest.mark.parametrize("shape", ["1,36,3,12", "1296"])
def test_an_input_that_is_an_output_in_another_shape_is_read_plain(
    shape: str, target: device.Device, network: Callable[..., ir.Model]
) -> None:
    """Though the convolution's packed copy is there."""
    prices = Priced(target, 1)
    prices.plain = math.inf
    rank = len(shape.split(","))
    graph, views = assigned(network(HEAD + f"""
    reshaped (float[1,36,6,6] x) => (float[1,8,6,6] y, float[{shape}] z)
    <float[8,36,1,1] w, int64[{rank}] s = {{{shape}}}> {{ y = Conv (x, w) z = Reshape (x, s) }}
    """), target, prices)
    check(graph, views, target)
    copy = next(kernel for kernel in graph.kernels if kernel.outputs == ("z",))
    assert isinstance(copy.workload, GenericWorkload)
    assert copy.inputs == ("x",)
    assert copy.workload.input_layouts == (PLAIN,)
    assert "x" in dict(conversions(graph))


def test_a_strategy_that_takes_no_plain_input_gets_none(target: device.Device, network: Callable[..., ir.Model]) -> None:
    """Of rows too short for lanes along them."""
    graph, views = assigned(network(HEAD + """
    direct (float[1,20,9,5] x) => (float[1,20,7,3] y) <float[20,1,3,3] w> { y = Conv <group = 20> (x, w) }
    """), target)
    check(graph, views, target)
    assert [source for source, _ in conversions(graph)].count("x") == 1


def lanes(graph: KernelGraph) -> list[tuple[int, int]]:
    """Of the inputs and outputs of convolutions."""
    workloads = [kernel.workload for kernel in graph.kernels if isinstance(kernel.workload, ConvWorkload)]
    return [(workload.input_lanes, workload.output_lanes) for workload in workloads]


FEW = HEAD + """
    few (float[1,3,64,64] x) => (float[1,3,64,64] y) <float[3,1,3,3] w>
    {
      a = Conv <group = 3, pads = [1,1,1,1]> (x, w)
      y = Add (a, x)
    }
    """


@pytest.mark.parametrize("target", ARM, indirect=True)
def test_few_channels_stay_plain(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(FEW), target)
    check(graph, views, target)
    assert conversions(graph) == []
    assert lanes(graph) == [(0, 0)]
    assert [len(kernel.inputs) for kernel in graph.kernels] == [2]  # what is added is read plain too


@pytest.mark.parametrize("target", X86, indirect=True)
def test_few_channels_are_packed_on_x86(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(FEW), target)
    check(graph, views, target)
    assert [written for _, written in lanes(graph)] == [target.lanes]


@pytest.mark.parametrize("target", ARM, indirect=True)
def test_few_channels_are_plain_up_to_a_convolution_that_makes_many(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    first (float[1,2,64,64] x) => (float[1,16,64,64] y) <float[2,1,3,3] w, float[16,2,1,1] v, float[16,16,1,1] u>
    {
      a = Conv <group = 2, pads = [1,1,1,1]> (x, w)
      b = Conv (a, v)
      c = Relu (b)
      y = Conv (c, u)
    }
    """), target)
    check(graph, views, target)
    assert [copy for _, copy in conversions(graph)] == ["y"]
    assert lanes(graph) == [(0, 0), (0, target.lanes), (target.lanes, target.lanes)]


def test_many_channels_between_convolutions_stay_packed(target: device.Device, network: Callable[..., ir.Model]) -> None:
    graph, views = assigned(network(HEAD + """
    many (float[1,32,64,64] x) => (float[1,32,64,64] y) <float[32,32,3,3] w, float[32,1,3,3] v, float[32,32,3,3] u>
    {
      a = Conv <pads = [1,1,1,1]> (x, w)
      b = Conv <group = 32, pads = [1,1,1,1]> (a, v)
      y = Conv <pads = [1,1,1,1]> (b, u)
    }
    """), target)
    check(graph, views, target)
    assert all(written == target.lanes for _, written in lanes(graph))
    assert {copy for _, copy in conversions(graph)} <= {"x", "y", f"x.{Layout(target.lanes)}"}


@pytest.mark.parametrize("target", ARM, indirect=True)
def test_a_convolution_writes_plain_where_that_is_cheaper(target: device.Device, network: Callable[..., ir.Model]) -> None:
    """Though it reads what is packed already, where the packed kernel costs more than a conversion."""

    class Dear(Selector):
        def choose(self, workload: ConvWorkload | LinearWorkload) -> Choice | list[Refusal]:
            choice = super().choose(workload)
            if isinstance(choice, list) or not isinstance(workload, ConvWorkload) or workload.kind != "depthwise":
                return choice
            return replace(choice, cycles=choice.cycles + (1e9 if workload.output_lanes else 0.0))

    graph, views = assigned(network(HEAD + """
    between (float[1,8,24,24] x) => (float[1,8,24,24] y) <float[8,8,3,3] w, float[8,1,3,3] v, float[8,8,3,3] u>
    {
      a = Conv <pads = [1,1,1,1]> (x, w)
      b = Conv <group = 8, pads = [1,1,1,1]> (a, v)
      c = Add (b, a)
      y = Conv <pads = [1,1,1,1]> (c, u)
    }
    """), target, Dear(target, 1))
    check(graph, views, target)
    assert [pair for pair in lanes(graph) if pair == (0, 0)] == [(0, 0)]
    assert ("a", "a.plain") in conversions(graph)


REGION = HEAD + """
    region (float[1,3,9,9] x) => (float[1,9,7,7] y)
    <float[9,3,3,3] w, float[9,9,1,1] v, float[9,9,1,1] u>
    {
      a = Conv (x, w)
      b = Softmax <axis = 1> (a)
      c = Softmax <axis = 2> (b)
      d = Softmax <axis = 3> (c)
      e = Conv (d, v)
      f = Softmax <axis = 3> (b)
      g = Conv (f, u)
      y = Add (e, g)
    }
    """


@pytest.mark.parametrize("mixed", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("packed", [0.0, 30.0, 1000.0])
def test_no_other_assignment_costs_less(
    network: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, mixed: float, packed: float
) -> None:
    """With invented costs that every kernel has by its own layouts alone, against every assignment of a region of values."""
    target = device.get("x86-64-v3")

    def cycles(
        function: StageFunction, device: device.Device, layouts: Sequence[Layout], constants: Collection[int] = (), *, threads: int = 1
    ) -> float:
        return kernel_cycles([tensor.packed for tensor in layouts])

    def kernel_cycles(tensors: Sequence[bool]) -> float:
        return mixed * (len(set(tensors)) - 1) + packed * sum(tensors) + 7.0 * (not any(tensors))

    monkeypatch.setattr(layout, "predicted_cycles", cycles)
    monkeypatch.setattr(layout, "stream_cycles", lambda device, nbytes: 0.0)
    monkeypatch.setattr(layout, "CALL_CYCLES", 1.0)
    prices = Priced(target, 1)
    prices.plain = 20.0
    graph, views = assigned(network(REGION), target, prices)
    check(graph, views, target)

    def total(kernels: Sequence[tuple[Sequence[bool], bool]]) -> float:
        return sum(kernel_cycles(tensors) + (1.0 if conversion else 0.0) for tensors, conversion in kernels)

    region = [k for k in graph.kernels if isinstance(k.workload, GenericWorkload) and not {"x", "y"} & {*k.inputs, *k.outputs}]
    found = total([
        ([graph.values[n].layout.packed for n in (*k.inputs, *k.outputs)], k.workload.kind == "Layout") for k in region
    ])
    readers = [k.workload for k in graph.kernels if isinstance(k.workload, ConvWorkload) and "x" not in k.inputs]
    found += sum(reads(prices, workload, workload.input_lanes > 0) for workload in readers)
    best = math.inf
    for held in itertools.product([True, False], repeat=4):  # b, c, d, f as they are written
        for copied in itertools.product([False, True], repeat=5):  # and a
            have = [{first} | ({not first} if copy else set()) for first, copy in zip((True, *held), copied, strict=True)]
            both = total([((first, not first), True) for first, copy in zip((True, *held), copied, strict=True) if copy])
            edges = [(0, 1), (1, 2), (2, 3), (1, 4)]
            kernels = sum(min(total([((r, held[to - 1]), False)]) for r in have[source]) for source, to in edges)
            convolutions = sum(min(reads(prices, w, r) for r in have[at]) for w, at in zip(readers, (3, 4), strict=True))
            best = min(best, both + kernels + convolutions)
    assert found == pytest.approx(best, rel=1e-12)


def reads(prices: Priced, workload: ConvWorkload, packed: bool) -> float:
    """Cycles of a convolution of a packed or a plain input."""
    choice = prices.choose(replace(workload, input_lanes=workload.output_lanes if packed else 0))
    assert isinstance(choice, Choice)
    return choice.cycles


def test_many_tensors_of_one_kernel_are_alike(target: device.Device, network: Callable[..., ir.Model]) -> None:
    count = MOST_MIXED + 2
    convolutions = "\n".join(f"c{i} = Conv (x, w{i})" for i in range(count))
    weights = ", ".join(f"float[20,3,3,3] w{i}" for i in range(count))
    names = ", ".join(f"c{i}" for i in range(count))
    graph, views = assigned(network(HEAD + f"""
    many (float[1,3,9,9] x) => (float[1,8,7,7] y) <{weights}, float[8,20,1,1] v>
    {{ {convolutions} s = Sum ({names}) y = Conv (s, v) }}
    """), target)
    check(graph, views, target)
    summed = next(k for k in graph.kernels if isinstance(k.workload, GenericWorkload) and len(k.inputs) == count)
    assert len({graph.values[name].layout for name in (*summed.inputs, *summed.outputs)}) == 1
