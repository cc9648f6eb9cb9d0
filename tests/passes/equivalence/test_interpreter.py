"""The walk over a graph: order, branches, what is kept and released, and what inputs are taken."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence.graph import Operation, read_graph
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.errors import InputError, UnsupportedError

HEADER = '<ir_version: 8, opset_import: ["" : 18]>'


def walk(text: str, scope: dict[str, str], keep: tuple[str, ...] = (), truth: bool = True) -> dict[str, str]:
    """Interprets over words: a value is the expression that makes it."""

    def step(op: Operation, operands: list[str | None]) -> tuple[str, ...]:
        made = f"{op.operator}({', '.join(operand or '-' for operand in operands)})"
        return tuple(f"{made}.{index}" if index else made for index in range(len(op.outputs)))

    graph = read_graph(onnx.parser.parse_model(f"{HEADER} {text}"))
    return interpret(graph, scope, constant=lambda name, *_: f"#{name}", step=step, truth=lambda _: truth, keep=keep)


def test_values_of_any_kind_flow() -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { a = Add (x, k) y = Mul (a, a) }"
    assert walk(text, {"x": "x"}) == {"y": "Mul(Add(x, #k), Add(x, #k))"}


def test_outputs_come_first_then_what_is_kept() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg (x) b = Abs (a) y = Exp (b) }"
    assert list(walk(text, {"x": "x"}, keep=("b", "a", "x"))) == ["y", "b", "a", "x"]


def test_inputs_that_are_left_out_are_none() -> None:
    text = "g (float[2] x, float h) => (float[2] y) { y = Clip (x, , h) }"
    assert walk(text, {"x": "x", "h": "h"}) == {"y": "Clip(x, -, h)"}


@pytest.mark.parametrize(("truth", "expected"), [(True, "Neg(Abs(x))"), (False, "Exp(x)")])
def test_a_branch_sees_what_is_around_it(truth: bool, expected: str) -> None:
    text = """g (float[2] x, bool p) => (float[2] y) {
        a = Abs (x)
        y = If (p) <
          then_branch = t () => (float[2] u) { u = Neg (a) },
          else_branch = e () => (float[2] v) { v = Exp (x) }
        >
    }"""
    assert walk(text, {"x": "x", "p": "p"}, truth=truth) == {"y": expected}


def test_values_are_released_after_their_last_use() -> None:
    class Tracked:
        alive = 0
        most = 0

        def __init__(self) -> None:
            Tracked.alive += 1
            Tracked.most = max(Tracked.most, Tracked.alive)

        def __del__(self) -> None:
            Tracked.alive -= 1

    length = 10
    lines = " ".join(f"a{i + 1} = Neg (a{i})" for i in range(length))
    graph = read_graph(onnx.parser.parse_model(f"{HEADER} g (float[2] a0) => (float[2] a{length}) {{ {lines} }}"))
    interpret(graph, {"a0": Tracked()}, constant=lambda *_: Tracked(), step=lambda *_: (Tracked(),), truth=lambda _: True)
    assert Tracked.most < length, "a chain needs few values at a time"


def test_a_value_that_is_not_there_cannot_be_kept() -> None:
    with pytest.raises(InputError, match="has no value named 'nowhere'"):
        walk("g (float[2] x) => (float[2] y) { y = Neg (x) }", {"x": "x"}, keep=("nowhere",))


def test_an_operand_that_nothing_computes() -> None:
    model = onnx.parser.parse_model(f"{HEADER} g (float[2] x) => (float[2] y) {{ y = Neg (x) }}")
    model.graph.node[0].input[0] = "lost"
    with pytest.raises(InputError, match="reads 'lost', which nothing before it computes"):
        interpret(read_graph(model), {"x": 1}, constant=lambda *_: 0, step=lambda *_: (0,), truth=lambda _: True)


def test_loops_are_refused() -> None:
    text = """g (int64 n, bool p, float[2] x) => (float[2] y) {
        y = Loop (n, p, x) < body = b (int64 i, bool q, float[2] u) => (bool r, float[2] v) { r = Identity (q) v = Neg (u) } >
    }"""
    with pytest.raises(UnsupportedError, match="loops are not supported"):
        walk(text, {"n": "n", "p": "p", "x": "x"})


@pytest.fixture
def feed() -> Callable[..., dict[str, np.ndarray]]:
    """Reads inputs of a model of a float and an integer one."""
    model = onnx.parser.parse_model(f"{HEADER} g (float[2, n] x, int64[1] i) => (float[2, n] y) {{ y = Gather (x, i) }}")
    return lambda stored=False, **given: read_inputs(read_graph(model), given, stored=stored)


def test_floats_are_widened_and_integers_kept(feed: Callable[..., dict[str, np.ndarray]]) -> None:
    third = np.full((2, 3), 1 / 3)
    index = np.zeros(1, np.int64)
    read = feed(x=third, i=index)
    assert (read["x"].dtype, read["i"].dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(read["x"], third)
    stored = feed(stored=True, x=third, i=index)["x"]
    assert stored.dtype == np.float64
    np.testing.assert_array_equal(stored, third.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": np.zeros(1)}, "There is no input 'z'; the inputs are i, x"),
        ({"x": None}, "No tensor is given for input 'x'"),
        ({"x": np.zeros((3, 3))}, r"Input 'x' has shape \(3, 3\); the model declares"),
        ({"x": np.zeros(2)}, r"Input 'x' has shape \(2,\)"),
        ({"x": np.zeros((2, 3), np.int64)}, "Input 'x' has type int64; the model declares float32"),
        ({"i": np.zeros(1)}, "Input 'i' has type float64; the model declares int64"),
    ],
)
def test_inputs_that_do_not_fit(
    feed: Callable[..., dict[str, np.ndarray]], changes: dict[str, np.ndarray | None], message: str
) -> None:
    given = {"x": np.zeros((2, 3)), "i": np.zeros(1, np.int64), **changes}
    with pytest.raises(InputError, match=message):
        feed(**{name: array for name, array in given.items() if array is not None})
