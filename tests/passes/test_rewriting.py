import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.passes.rewriting import (
    NODES_KEY,
    Refusal,
    RewritePass,
    constant_array,
    constant_tensor,
    is_operator,
    only_consumer,
    original_nodes,
    remove_unused_initializers,
    replace_with_input,
    set_constant_input,
    set_original_nodes,
    sole_use_refusal,
    static_shape,
    unique_value_name,
)

Build = Callable[..., ir.Model]

TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[2,n] x) => (float y) <float[2,1] k, float[2,1] unused>
{ [a] s = Add (x, k) [b] t = Relu (s) [c] u = Neg (s) [d] v = Mul (t, t) [e] y = Sub (u, v) }
"""


@pytest.fixture
def model(build: Build) -> ir.Model:
    return build(TEXT)


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


@dataclass(frozen=True)
class Found:
    node: ir.Node


class RemoveReluPass(RewritePass[Found]):
    """Removes Relu; refuses Neg."""

    name = "remove_relu"
    summary = "removed %d Relu"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        return (node for node in graph if is_operator(node, "Relu", "Neg"))

    def match(self, model: ir.Model, node: ir.Node) -> Found | Refusal:
        return Found(node) if node.op_type == "Relu" else Refusal("it negates", node.name or "")

    def rewrite(self, model: ir.Model, match: Found) -> None:
        source = match.node.inputs[0]
        assert source is not None
        replace_with_input(match.node, source, keep_name=False)


def test_a_pass_reports_and_logs(model: ir.Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sepwise"):
        result = RemoveReluPass()(model)
    assert (result.modified, result.fired, result.refused) == (True, 1, (Refusal("it negates", "c"),))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "remove_relu refuses 'c': it negates"),
        ("INFO", "removed 1 Relu"),
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sepwise"):
        assert not RemoveReluPass()(model).modified
    assert not caplog.records


def test_what_is_constant(model: ir.Model) -> None:
    x, k = node(model, "a").inputs
    assert constant_tensor(x) is None
    assert constant_tensor(None) is None
    array = constant_array(k)
    assert array is not None
    assert array.dtype == np.float64
    model.graph.inputs.append(model.graph.initializers["k"])
    assert constant_array(k) is None


def test_a_constant_node_is_constant() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { k = Constant <value_float = 2.0> () y = Mul (x, k) }'
    )
    array = constant_array(list(model.graph)[1].inputs[1])
    assert array is not None
    assert float(array) == 2.0


def test_static_shapes(model: ir.Model) -> None:
    x, k = node(model, "a").inputs
    assert static_shape(x) is None
    assert static_shape(k) == (2, 1)
    assert static_shape(None) is None
    assert k is not None
    k.shape = None
    assert static_shape(k) == (2, 1)


def test_sole_use(model: ir.Model) -> None:
    s, t, u, y = (node(model, name).outputs[0] for name in "abce")
    assert only_consumer(s) is None
    assert only_consumer(t) is None
    assert only_consumer(u) is node(model, "e")
    assert only_consumer(y) is None
    assert sole_use_refusal(u, node(model, "c"), node(model, "e")) is None
    assert sole_use_refusal(s, node(model, "a"), node(model, "b")) == Refusal(
        "the output 's' of Add 'a' has a second consumer, 'c'", "b"
    )
    reason = "the output 't' of Relu 'b' has a second consumer, the same node once more"
    assert sole_use_refusal(t, node(model, "b"), node(model, "d")) == Refusal(reason, "d")
    assert sole_use_refusal(y, node(model, "e"), node(model, "d")) == Refusal("the output 'y' of Sub 'e' is a graph output", "d")


def test_original_nodes(model: ir.Model) -> None:
    first = node(model, "a")
    assert original_nodes(first) == (("a",),)
    set_original_nodes(first, [("a", "b"), ("c",)])
    assert original_nodes(first) == (("a", "b"), ("c",))
    loaded = ir.from_proto(ir.to_proto(model))
    assert original_nodes(next(iter(loaded.graph))) == (("a", "b"), ("c",))
    set_original_nodes(first, [("a",)])
    assert NODES_KEY not in first.metadata_props


def test_names(model: ir.Model) -> None:
    assert [unique_value_name(model, name) for name in ("z", "x", "k", "s", "y")] == ["z", "x_1", "k_1", "s_1", "y_1"]


def test_new_constants(model: ir.Model) -> None:
    add = node(model, "a")
    set_constant_input(model, add, 1, np.zeros((2, 1), np.float32), "fresh")
    assert add.inputs[1] is model.graph.initializers["k"]
    set_constant_input(model, add, 1, np.zeros((2, 1), np.float64), "fresh")
    assert model.graph.initializers["k"].dtype == ir.DataType.DOUBLE
    set_constant_input(model, add, 1, np.zeros((2, 1), np.float32), "fresh")
    assert constant_array(add.inputs[1]) is not None
    node(model, "e").replace_input_with(1, model.graph.initializers["k"])
    set_constant_input(model, add, 1, np.ones((2, 1), np.float32), "fresh")
    assert [value.name for value in add.inputs if value] == ["x", "fresh"]
    shared = constant_array(model.graph.initializers["k"])
    assert shared is not None
    assert not shared.any()


def test_unused_initializers(model: ir.Model) -> None:
    remove_unused_initializers(model)
    assert set(model.graph.initializers) == {"k"}


def test_replacing_a_graph_output(model: ir.Model) -> None:
    last = node(model, "e")
    u = last.inputs[0]
    assert u is not None
    replace_with_input(last, u, keep_name=True)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0] is node(model, "c").outputs[0]
