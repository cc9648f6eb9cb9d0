"""Files whose types have fewer digits are told from executions of the original."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.passes.equivalence import GraphReference, compare_graph, compare_precision, sample_inputs

BODY = "{{ a = Conv (x, w) {} y = Conv (b, w) }}"
WHOLE = BODY.format("b = Relu (a)")

ISLAND = "h = Cast <to = {}> (a) r = Relu (h) b = Cast <to = 1> (r)"
FLOAT16, BFLOAT16 = (BODY.format(ISLAND.format(kind)) for kind in (10, 16))


@pytest.fixture
def parse(network: Callable[..., ir.Model]) -> Callable[[str], ir.Model]:
    def read(body: str) -> ir.Model:
        return network(f'<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,6,6] x) => (float y) <float[4,4,1,1] w> {body}')

    return read


def reference_of(model: ir.Model) -> GraphReference:
    return GraphReference(model, [sample_inputs(model, 0), sample_inputs(model, 1, "large")])


@pytest.mark.parametrize("body", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_fewer_digits_are_found(body: str, parse: Callable[[str], ir.Model]) -> None:
    reference, rewritten = reference_of(parse(WHOLE)), parse(body)
    assert all(check.passed for check in compare_graph(reference, rewritten)), "in float64 nothing rounds"
    (check,) = compare_precision(reference, rewritten)
    assert (check.name, check.status) == ("precision of y", "failed")
    assert check.worst_ratio is not None
    assert check.worst_ratio > 1


def test_what_may_overflow_is_found(parse: Callable[[str], ir.Model]) -> None:
    original = parse(BODY.format("s = Mul (a, a) r = Relu (a) b = Add (r, s)"))
    squared = BODY.format("h = Cast <to = 10> (a) s = Mul (h, h) c = Cast <to = 1> (s) r = Relu (a) b = Add (r, c)")
    (check,) = compare_precision(reference_of(original), parse(squared))
    assert (check.status, check.worst_ratio) == ("failed", None)
    assert check.reason.startswith("its types overflow, where an execution of the original is off by ")


def test_the_nodes_with_fewest_digits_are_named(parse: Callable[[str], ir.Model]) -> None:
    islands = ["[down] h = Cast <to = 10> (a) [first] r = Relu (h)"]
    islands += [f"[n{i}] r{i} = Neg ({f'r{i - 1}' if i else 'r'})" for i in range(4)]
    rewritten = parse(BODY.format(f"{' '.join(islands)} b = Cast <to = 1> (r3)"))
    (check,) = compare_precision(reference_of(parse(BODY.format("r = Relu (a) b = Identity (r)"))), rewritten)
    assert check.nodes == ("down", "first", "n0", "n1", "n2", "n3")
    assert check.reason.endswith("at most: fewest digits have down, first, n0 and 3 more")


def test_the_same_digits_or_more_are_not_judged(parse: Callable[[str], ir.Model]) -> None:
    finer = parse(BODY.format("d = Cast <to = 11> (a) r = Relu (d) b = Cast <to = 1> (r)"))
    assert compare_precision(reference_of(parse(FLOAT16)), parse(WHOLE)) == []
    assert compare_precision(reference_of(parse(WHOLE)), finer) == []


def test_constants_are_numbers_however_they_are_stored(parse: Callable[[str], ir.Model]) -> None:
    stored = ir.to_proto(parse(WHOLE))
    (tensor,) = stored.graph.initializer
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), "half")
    tensor.CopyFrom(half)
    stored.graph.node.insert(0, onnx.helper.make_node("Cast", ["half"], ["w"], to=onnx.TensorProto.FLOAT))
    assert compare_precision(reference_of(parse(WHOLE)), stored) == []
