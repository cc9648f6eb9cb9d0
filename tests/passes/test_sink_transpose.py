from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.pipeline import fuse
from sepwise.passes.rewriting import original_nodes
from sepwise.passes.sink_transpose import SinkTransposePass

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
IN, OUT = "Transpose <perm = [0,3,1,2]>", "Transpose <perm = [0,2,3,1]>"


def sink(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    sunk = model.clone()
    result = SinkTransposePass()(sunk)
    assert result.modified == (result.fired > 0)
    again = SinkTransposePass()(sunk)
    assert not again.modified
    assert again.refused == result.refused
    return sunk, result.fired, tuple(refusal.reason for refusal in result.refused)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_inverse_permutations_cancel(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"g (float[1,4,5,6] x) => (float y) {{ a = {OUT} (x) b = {IN} (a) y = Relu (b) }}")
    sunk, fired, refused = sink(model)
    assert (fired, refused) == (1, ())
    assert operators(sunk) == ["Relu"]
    equivalent(model, sunk, exact=True)


def test_other_permutations_are_one(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"g (float[1,4,5,6] x) => (float y, float z) {{ a = {OUT} (x) y = {OUT} (a) b = Transpose (y) z = Neg (b) }}")
    sunk, fired, _ = sink(model)
    assert fired == 3
    assert operators(sunk) == ["Transpose", "Neg", "Transpose"]
    equivalent(model, sunk, exact=True)


def test_pairs_that_end_in_an_output(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"g (float[1,4,5,6] x) => (float y) {{ n = Neg (x) a = {OUT} (n) y = {IN} (a) }}")
    sunk, fired, _ = sink(model)
    assert fired == 1
    assert operators(sunk) == ["Neg"]
    assert [value.name for value in sunk.graph.outputs] == ["y"]
    equivalent(model, sunk, exact=True)


@pytest.mark.parametrize(
    ("first", "second"), [("", ""), ("", "<perm = [2,1,0]>"), ("<perm = [2,1,0]>", "")], ids=["neither", "second", "first"]
)
def test_one_permutation_says_how_many_axes_the_other_has(first: str, second: str, build: Build, equivalent: Equivalent) -> None:
    shaped = build(HEAD + f"g (float[3,4,5] x) => (float y) {{ n = Neg (x) t = Transpose {first} (n) z = Transpose {second} (t) y = Abs (z) }}")
    model = shaped.clone()
    for node in model.graph:
        if node.op_type != "Abs" and (node.op_type != "Neg" or first or second):
            node.outputs[0].shape = None
    sunk, fired, refused = sink(model)
    assert (fired, refused) == (1, ())
    assert operators(sunk) == ["Neg", "Abs"]
    equivalent(shaped, sunk, exact=True)


BODIES = {
    "unary": "s = Sigmoid (a)",
    "clip": "s = Clip (a, zero, one)",
    "vector": "s = Mul (a, channels)",
    "image": "s = Sub (image, a)",
    "slope": "s = PRelu (a, channels)",
    "twice": "s = Mul (a, a)",
    "two": "q = Neg (x) b = OUT (q) s = Add (a, b)",
    "three": "q = Neg (x) b = OUT (q) s = Sum (a, b, image)",
    "joined": "q = Neg (x) b = OUT (q) s = Concat <axis = 3> (a, b)",
    "joined from the end": "q = Neg (x) b = OUT (q) s = Concat <axis = -2> (a, b, image)",
    "joined with nothing": "s = Concat <axis = 1> (a, nothing)",
    "padded": "s = Pad (a, pads, one)",
    "a type": "i = Cast <to = 6> (a) s = Cast <to = 1> (i)",
    "a condition": "q = Neg (x) b = OUT (q) c = Greater (b, channels) s = Where (c, a, image)",
    "a constant condition": "c = Less (image, channels) s = Where (chosen, channels, a)",
    "logic": "c = Equal (a, image) d = Not (c) s = Cast <to = 1> (d)",
    "remainder": "s = Mod <fmod = 1> (image, a)",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_transpose_goes_past(body: str, build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"""
    g (float[1,4,5,6] x) => (float y)
    <float zero = {{0}}, float one = {{1}}, float[4] channels, int64[8] pads = {{0,1,0,2,0,0,3,1}},
     float[1,5,6,4] image, float[1,0,6,4] nothing = {{}}, bool[6,1] chosen = {{1,0,0,1,1,0}}>
    {{ [before] a = {OUT} (x) {BODIES[body].replace("OUT", OUT)} [behind] b_ = {IN} (s) y = Abs (b_) }}
    """)
    sunk, fired, refused = sink(model)
    assert refused == ()
    assert fired >= 2
    assert "Transpose" not in operators(sunk)
    equivalent(model, sunk, exact=True)


def test_names_survive(build: Build) -> None:
    model = build(HEAD + f"g (float[1,4,5,6] x) => (float y) {{ [t] a = {OUT} (x) [r] y = Relu (a) }}")
    sunk, fired, _ = sink(model)
    assert fired == 1
    relu, moved = sunk.graph
    assert (relu.op_type, relu.name, original_nodes(moved)) == ("Relu", "r", (("t",),))
    assert [value.name for value in sunk.graph.outputs] == ["y"]
    assert list(sunk.graph.outputs[0].shape or ()) == [1, 5, 6, 4]
    assert list(relu.outputs[0].shape or ()) == [1, 4, 5, 6]


def test_what_is_said_of_a_value_survives(build: Build) -> None:
    model = build(HEAD + f"g (float[1,4,5,6] x) => (float y) {{ [t] a = {OUT} (x) [r] y = Relu (a) }}")
    relu = model.graph.node("r")
    for said in (relu, relu.outputs[0]):
        said.doc_string = f"of {said.name}"
        said.metadata_props["by"] = f"{said.name}'s author"
    sunk, fired, _ = sink(model)
    assert fired == 1
    output, relu = sunk.graph.outputs[0], sunk.graph.node("r")
    assert (output.doc_string, output.metadata_props) == ("of y", {"by": "y's author"})
    assert (relu.doc_string, relu.metadata_props) == ("of r", {"by": "r's author"})
    assert (relu.outputs[0].doc_string, relu.outputs[0].metadata_props) == (None, {})


REFUSED = {
    "its inputs are transposed in different ways": "s = Transpose <perm = [0,2,1,3]> (x) p = Transpose <perm = [0,3,2,1]> (w) y = Add (s, p)",
    "its input 'w' is neither constant nor transposed": f"s = {OUT} (x) y = Add (s, w)",
    "its constant 'words' is of strings": f"c = Cast <to = 8> (w) s = {OUT} (c) y = Equal (s, words)",
    "its amounts are of some axes only": f"s = {OUT} (x) y = Pad (s, two, zero, axis)",
    "its amounts are not constant": f"s = {OUT} (x) y = Pad <pads = [0,0,0,0,0,0,0,1]> (s)",
    "the output 's' of Transpose 't' has a second consumer, 'other'": f"[t] s = {OUT} (x) y = Relu (s) [other] z = Softmax (s)",
    "the output 's' of Transpose 't' is a graph output": f"[t] s = {OUT} (x) y = Relu (s)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str, build: Build) -> None:
    outputs = {"'other'": "float y, float z", "graph output": "float y, float s"}
    wanted = next((names for part, names in outputs.items() if part in reason), "float y")
    version = "10" if "not constant" in reason else "18"
    text = HEAD.replace(": 18", f": {version}") + f"""
    g (float[1,6,6,6] x, float[1,6,6,6] w) => ({wanted})
    <int64[2] two = {{0, 1}}, float zero = {{0}}, int64[1] axis = {{3}}, string[6] words = {{"a", "b", "c", "d", "e", "f"}}> {{ {REFUSED[reason]} }}
    """
    model = build(text)
    sunk, fired, refused = sink(model)
    assert fired == 0
    assert reason in refused
    assert operators(sunk) == operators(model)


@given(st.permutations(range(4)), st.permutations(range(4)), st.sampled_from(["Relu (a)", "Add (a, a)", "Mul (a, c)", "Div (c, a)"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_permutations(build: Build, equivalent: Equivalent, first: list[int], second: list[int], operator: str) -> None:
    shape = [(2, 3, 4, 5)[axis] for axis in first]
    model = build(HEAD + f"""
    g (float[2,3,4,5] x) => (float y) <float[{shape[1]},1,{shape[3]}] c>
    {{ a = Transpose <perm = {first}> (x) s = {operator} t = Transpose <perm = {second}> (s) y = Abs (t) }}
    """)
    sunk, fired, _ = sink(model)
    assert fired >= 2
    assert operators(sunk).count("Transpose") <= 1
    equivalent(model, sunk)


def test_a_network_of_images_in_the_other_order_is_fused_as_any_other(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"""
    g (float[1,9,8,4] x) => (float y)
    <float[12,4,1,1] v, float[12] bias, float[12,1,3,3] w, float[4,12,1,1] u, float zero = {{0}}, float six = {{6}}>
    {{
      a1 = {IN} (x)  a2 = Conv (a1, v)  a3 = {OUT} (a2)  a4 = Add (a3, bias)  a = Clip (a4, zero, six)
      b1 = {IN} (a)  b2 = Conv <group = 12, pads = [1,1,1,1]> (b1, w)  b3 = {OUT} (b2)  b = Clip (b3, zero, six)
      c1 = {IN} (b)  c2 = Conv (c1, u)  c = {OUT} (c2)
      y = Add (c, x)
    }}
    """)
    report = fuse(model)
    assert report.operators["InvertedResidual"] + report.operators.get("SeparableConv", 0) == 1
    equivalent(model, report.model)
