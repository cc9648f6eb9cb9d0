import numpy as np
import onnx.parser
import pytest

from sepwise.passes.equivalence import Check, compare_branches

DATA = """
(float[4] x) => (float[4] y) <float high = {{{0}.0}}, float[4] w = {{1, 2, 3, 4}}> {{
    top = ReduceMax <keepdims = 0> (x)
    big = Greater (top, high)
    y = If (big) <
        then_branch = a () => (float[4] {1}) {{ b = Neg (x) {1} = Mul (b, w) }},
        else_branch = c () => (float[4] d) {{ d = {2} (x) }}
    >
}}
"""

SHAPE = """
(float[4] x) => (float[4] y) <int64[1] one = {{1}}> {{
    s = Shape (x)
    single = Equal (s, one)
    y = If (single) <
        then_branch = a () => (float[4] b) {{ b = {0} (x) }},
        else_branch = c () => (float[4] d) {{ d = Abs (x) }}
    >
}}
"""

SIZED = """
(float[4] x) => (int64 y) <int64[1] none = {{0}}, int64 c = {{7}}> {{
    s = NonZero (x)
    n = Shape <start = 1> (s)
    empty = Equal (n, none)
    y = If (empty) <
        then_branch = a () => (int64 b) {{ {0} }},
        else_branch = c () => (int64 d) {{ d = Size (s) }}
    >
}}
"""

NESTED = """
(float[4] x, bool p, bool q) => (float[4] y) {{
    y = If (p) <
        then_branch = a () => (float[4] b) {{
            b = If (q) <
                then_branch = c () => (float[4] d) {{ d = {0} (x) }},
                else_branch = e () => (float[4] f) {{ f = Abs (x) }}
            >
        }},
        else_branch = g () => (float[4] h) {{ h = {1} (x) }}
    >
}}
"""


def compared(first: str, second: str, **more: object) -> list[Check]:
    models = [onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g {text}') for text in (first, second)]
    return compare_branches(*models, [{"x": np.arange(4, dtype=np.float32), **{name: np.array(value) for name, value in more.items()}}])


def test_a_branch_that_no_input_takes() -> None:
    """What another file calls its values is no matter; what it computes is, and so is one that only one of them has."""
    original = DATA.format(100, "t", "Exp")
    assert compared(original, DATA.format(100, "u", "Exp")) == []
    (check,) = compared(original, original.replace("4}", "5}"))
    assert (check.scope, check.name, check.nodes, check.status) == ("graph", "then_branch of If 'y'", ("y",), "skipped")
    assert "no input set takes it" in check.reason
    assert [each.name for each in compared(original, "(float[4] x) => (float[4] y) { y = Exp (x) }")] == ["then_branch of If 'y'"]


def test_a_branch_that_is_taken_is_judged_by_what_it_computes() -> None:
    assert compared(DATA.format(100, "t", "Exp"), DATA.format(100, "t", "Sin")) == []


@pytest.mark.parametrize("other", [SHAPE.format("Sin"), "(float[4] x) => (float[4] y) { y = Abs (x) }"])
def test_what_the_shape_decides_is_always_the_same(other: str) -> None:
    assert compared(SHAPE.format("Exp"), other) == []


def test_how_many_there_are_may_depend_on_data() -> None:
    constant, size = (SIZED.format(body) for body in ("b = Identity (c)", "b = Size (x)"))
    assert compared(constant, constant) == []
    assert [check.name for check in compared(constant, size)] == ["then_branch of If 'y'"]


def test_branches_of_branches() -> None:
    original = NESTED.format("Exp", "Neg")
    assert [check.name for check in compared(original, NESTED.format("Sin", "Neg"), p=True, q=False)] == ["then_branch of If 'b'"]
    assert compared(original, NESTED.format("Sin", "Neg"), p=True, q=True) == []
    assert [check.name for check in compared(original, NESTED.format("Sin", "Neg"), p=False, q=True)] == ["then_branch of If 'y'"]
