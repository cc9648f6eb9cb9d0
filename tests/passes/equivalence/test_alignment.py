"""Which value is which, and which part is wrong; whole networks are in `test_bisection`."""

from collections.abc import Callable

import onnx
import pytest

from sepwise.passes.equivalence import sample_inputs
from sepwise.passes.equivalence.alignment import find_faults, spell_operation
from sepwise.passes.equivalence.graph import read_graph

HEAD = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,6,6] x) => (float y)
    <float[4,4,1,1] w, float[4,4,1,1] u, float one = {1}>"""
RIGHT = "{ a = Conv (x, w) b = Relu (a) c = Conv (b, u) y = Tanh (c) }"


@pytest.fixture
def faults(parse: Callable[..., onnx.ModelProto]) -> Callable[[str], list[tuple[str, list[str], list[str]]]]:
    def find(body: str) -> list[tuple[str, list[str], list[str]]]:
        original, rewritten = parse(f"{HEAD} {RIGHT}"), parse(f"{HEAD} {body}")
        inputs = [sample_inputs(original, seed) for seed in range(2)]
        found = find_faults(read_graph(original), read_graph(rewritten), inputs)
        return [
            (fault.output, [op.operator for op in fault.original], [op.operator for op in fault.rewritten]) for fault in found
        ]

    return find


@pytest.mark.parametrize(
    "body",
    [
        RIGHT,
        "{ p = Conv (x, w) q = Relu (p) r = Conv (q, u) y = Tanh (r) }",
        "{ b = Conv (x, w) a = Relu (b) c = Conv (a, u) y = Tanh (c) }",
        "{ a = Conv (x, w) i = Identity (a) b = Relu (i) c = Conv (b, u) y = Tanh (c) }",
        "{ a = Conv (x, w) t = Mul (a, one) b = Relu (t) c = Conv (b, u) y = Tanh (c) }",
        "{ n = Neg (x) a = Conv (n, w) t = Neg (a) b = Relu (t) c = Conv (b, u) y = Tanh (c) }",
    ],
    ids=["the same", "other names", "names exchanged", "identity", "factor of one", "detour"],
)
def test_what_is_right_has_no_fault(faults, body: str) -> None:
    assert faults(body) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("{ a = Conv (x, u) b = Relu (a) c = Conv (b, u) y = Tanh (c) }", ("a", ["Conv"], ["Conv"])),
        ("{ a = Conv (x, w) b = Elu (a) c = Conv (b, u) y = Tanh (c) }", ("b", ["Relu"], ["Elu"])),
        ("{ a = Conv (x, w) c = Conv (a, u) y = Tanh (c) }", ("c", ["Relu", "Conv"], ["Conv"])),
        ("{ a = Conv (x, w) b = Relu (a) c = Conv (b, u) y = Sigmoid (c) }", ("y", ["Tanh"], ["Sigmoid"])),
        ("{ p = Conv (x, w) q = Elu (p) r = Conv (q, u) y = Tanh (r) }", ("b", ["Relu"], ["Elu"])),
        ("{ a = Conv <strides=[2,2]> (x, w) b = Relu (a) c = Conv (b, u) y = Tanh (c) }", ("a", ["Conv"], ["Conv"])),
        ("{ p = Conv <strides=[2,2]> (x, w) q = Relu (p) r = Conv (q, u) y = Tanh (r) }", ("a", ["Conv"], ["Conv"])),
    ],
    ids=["weights", "activation", "dropped", "output", "unnamed", "stride", "unnamed stride"],
)
def test_the_smallest_wrong_part(faults, body: str, fault: tuple[str, list[str], list[str]]) -> None:
    assert faults(body) == [fault]


def test_two_faults_are_told_apart(faults) -> None:
    found = faults("{ a = Conv (x, u) b = Relu (a) c = Conv (b, w) y = Tanh (c) }")
    assert sorted(output for output, _, _ in found) == ["a", "c"]


def test_no_part_is_cut_where_that_is_not_allowed(parse: Callable[..., onnx.ModelProto]) -> None:
    original = parse(f"{HEAD} {RIGHT}")
    rewritten = parse(f"{HEAD} {RIGHT.replace('Relu', 'Elu')}")
    graphs = read_graph(original), read_graph(rewritten)
    (fault,) = find_faults(*graphs, [sample_inputs(original, 0)], named=["c", "y"], rewritten_named=["c", "y"])
    assert (fault.inputs, fault.output) == (("x",), "c")
    assert fault.rewritten_inputs == {"x": "x"}
    assert not fault.check.passed


def test_operations_are_spelled_by_what_they_do(parse: Callable[..., onnx.ModelProto]) -> None:
    graph = read_graph(parse(f"{HEAD} {{ a = Conv (x, w) b = Conv (a, w) c = Conv (b, u) y = Conv <group=1> (c, u) }}"))
    keys = [spell_operation(op, graph) for op in graph.operations]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
