from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from sepwise.passes import canonicalize
from sepwise.passes.axis_order import moves_nothing, permutation
from sepwise.passes.pipeline import fuse
from sepwise.passes.rewriting import Refusal, original_nodes
from sepwise.passes.sink_transpose import ReorderedRegion, SinkTransposePass

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
    assert moved_elements(sunk) <= moved_elements(model)
    return sunk, result.fired, tuple(refusal.reason for refusal in result.refused)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def transposes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Transpose"]


def moved_elements(model: ir.Model) -> int:
    """Elements that the Transposes of a model move; those of unknown shape count as one."""
    total = 0
    for node in transposes(model):
        source, perm = node.inputs[0], permutation(node)
        if source is None or source.shape is None or perm is None or not source.shape.is_static():
            total += 1
        elif not moves_nothing(perm, source.shape.numpy()):
            total += math.prod(source.shape.numpy())
    return total


def measure(model: ir.Model) -> tuple[int, int, int, int]:
    """What every rewrite lowers, of a model whose shapes are known."""
    depths: dict[ir.Value | None, int] = {}
    rows: dict[ir.Value | None, int] = {}
    for node in model.graph:
        before = max(depths.get(value, 0) for value in node.inputs)
        depths.update(dict.fromkeys(node.outputs, before + (node.op_type != "Transpose")))
        if node.op_type == "Transpose":
            rows[node.outputs[0]] = rows.get(node.inputs[0], -1) + 1
    return moved_elements(model), len(rows), -sum(depths[value] for value in rows), sum(rows.values())


def sink_step_by_step(model: ir.Model) -> ir.Model:
    """The pass, with the measure that has to fall looked at behind each rewrite."""
    sunk, sinking = model.clone(), SinkTransposePass()
    last, lowered = measure(sunk), True
    while lowered:
        lowered = False
        for node in transposes(sunk):
            if node.graph is None or isinstance(found := sinking.match(sunk, node), Refusal):
                continue
            sinking.rewrite(sunk, found)
            now = measure(sunk)
            assert now < last
            last, lowered = now, True
    return sunk


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
    assert sorted(operators(sunk)) == ["Neg", "Transpose", "Transpose"]
    equivalent(model, sunk, exact=True)


def test_nodes_behind_several_outputs_have_names_of_their_own(build: Build, equivalent: Equivalent) -> None:
    model = build(
        HEAD + """g (float[1,5,11] x) => (float w, float y, float z) <int64[6] pads = {0, 1, 0, 0, 1, 0}, int64[2] sizes = {1, 10}>
        { n = Sigmoid (x) [out] a = Transpose <perm = [0,2,1]> (n) r = Relu (a) p = Pad (r, pads)
          b = Transpose <perm = [0,2,1]> (p) w = Neg (b) [parts] y, z = Split <axis = 1> (a, sizes) }"""
    )
    sunk, _, _ = sink(model)
    assert sorted(operators(sunk)) == ["Neg", "Pad", "Relu", "Reshape", "Sigmoid", "Split", "Transpose"]
    names = [node.name for node in sunk.graph if node.name]
    assert len(set(names)) == len(names)
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
    assert fired >= 1
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


WRITTEN = "would transpose no fewer elements"

REFUSED = {
    f"to move it past Add 'r' or Transpose 'p' {WRITTEN}": "s = Transpose <perm = [0,2,1,3]> (x) [p] q = Transpose <perm = [0,3,2,1]> (w) [r] y = Add (s, q)",
    f"to move it past Add 'r' {WRITTEN}": f"s = {OUT} (x) [r] y = Add (s, w)",
    "Equal 'r' has a constant of strings, 'words'": f"c = Cast <to = 8> (w) s = {OUT} (c) [r] y = Equal (s, words)",
    "Add 'r' has 'v' of 2 axes among its inputs of 4": f"s = {OUT} (x) v = ReduceMean <keepdims = 0> (w, two) [r] y = Add (s, v)",
    f"to move it past Pad 'r' {WRITTEN}": f"s = {OUT} (x) [r] y = Pad (s, two, zero, axis)",
    "Pad 'r' works on its axes as they stand": f"s = {OUT} (x) [r] y = Pad <pads = [0,0,0,0,0,0,0,1]> (s)",
    "Pad 'r' has values of unknown shape": f"s = {OUT} (x) i = Shape (w) j = Concat <axis = 0> (i, i) [r] y = Pad (s, j)",
    "Expand 'r' has amounts that are not constant or not one for each axis": f"s = {OUT} (x) [r] y = Expand (s, five)",
    "Reshape 'r' joins or splits axes that another order parts": f"s = {OUT} (x) [r] y = Reshape (s, flat)",
    "ReduceMean 'r' reduces all axes or none": f"s = {OUT} (x) [r] y = ReduceMean (s)",
    "Conv 'r' works on its axes as they stand": f"s = {OUT} (x) [r] y = Conv (s, weight)",
    f"to move it past Relu 'r' or Softmax 'other' {WRITTEN}": f"[t] s = {OUT} (x) [r] y = Relu (s) [other] z = Softmax (s)",
    f"to move it past Relu 'q' {WRITTEN}": f"[t] s = {OUT} (x) [q] y = Relu (s)",
    "its output 'y' is a graph output": f"y = {OUT} (x)",
    "the shape of what it transposes is not known": "u = NonZero (x) s = Transpose (u) y = Cast <to = 1> (s)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str, build: Build) -> None:
    outputs = {"'other'": "float y, float z", "Relu 'q'": "float y, float s"}
    wanted = next((names for part, names in outputs.items() if part in reason), "float y")
    text = HEAD.replace(": 18", f": {10 if 'pads = ' in REFUSED[reason] else 18}") + f"""
    g (float[1,6,6,6] x, float[1,6,6,6] w) => ({wanted})
    <int64[2] two = {{0, 1}}, int64[5] five = {{2,1,6,6,6}}, int64[2] flat = {{6, 36}}, float zero = {{0}}, int64[1] axis = {{3}},
     string[6] words = {{"a", "b", "c", "d", "e", "f"}}, float[2,6,1,1] weight> {{ {REFUSED[reason]} }}
    """
    model = build(text)
    sunk, fired, refused = sink(model)
    assert fired == 0
    assert reason in refused
    assert operators(sunk) == operators(model)


def test_a_transpose_of_axes_of_one_element_is_a_reshape(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"g (float[1,9,8,1] x) => (float y) <float[2,1,3,3] w> {{ a = {IN} (x) y = Conv (a, w) }}")
    sunk, fired, refused = sink(model)
    assert (fired, refused) == (1, ())
    assert operators(sunk) == ["Reshape", "Conv"]
    equivalent(model, sunk, exact=True)


def test_one_that_changes_nothing_goes(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + "g (float[2,9] x) => (float y) { a = Transpose <perm = [0,1]> (x) y = Relu (a) }")
    sunk, fired, refused = sink(model)
    assert (fired, refused) == (1, ())
    assert operators(sunk) == ["Relu"]
    equivalent(model, sunk, exact=True)


def test_it_stays_where_an_input_would_be_an_output(build: Build) -> None:
    model = build(HEAD + "g (float[2,9] x) => (float y) { y = Transpose <perm = [0,1]> (x) }")
    assert sink(model)[1] == 0


def test_what_is_not_transposed_is_where_that_is_cheaper(build: Build, equivalent: Equivalent) -> None:
    """A gate is transposed in place of the image that it scales."""
    model = build(HEAD + f"""
    g (float[1,4,5,6] x, float[1,1,1,4] gate) => (float y) <float[3,4,1,1] w>
    {{ a = {OUT} (x) b = Mul (a, gate) c = {IN} (b) y = Conv (c, w) }}
    """)
    sunk, fired, _ = sink(model)
    assert fired == 2
    assert operators(sunk) == ["Reshape", "Mul", "Conv"]
    equivalent(model, sunk, exact=True)


def test_what_another_moves_on_either_side_counts(build: Build, equivalent: Equivalent) -> None:
    """The second Transpose moves nothing where it is, and all before the first."""
    model = build(HEAD + """
    g (float[1,4,5,6] x) => (float y) <float[4] k>
    { [first] a = Transpose <perm = [0,2,3,1]> (x) [relu] b = Relu (a)
      [second] c = Transpose <perm = [1,0,2,3]> (b) y = LayerNormalization (c, k) }
    """)
    found = SinkTransposePass().match(model, model.graph.node("first"))
    assert isinstance(found, ReorderedRegion)
    assert {node.name for node in found.region.nodes} == {"relu", "second"}
    assert {node.name for node in found.nodes} == {"relu"}
    sunk, fired, _ = sink(model)
    assert fired == 2
    assert operators(sunk) == ["Relu", "Transpose", "LayerNormalization"]
    equivalent(model, sunk)


def test_all_that_read_it_move_together(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"""
    g (float[1,4,5,6] x) => (float y) <float three = {{3}}, float zero = {{0}}, float six = {{6}}>
    {{ n = Neg (x) a = {OUT} (n) b = Add (a, three) c = Clip (b, zero, six) d = Mul (c, a) e = {IN} (d) y = Abs (e) }}
    """)
    sunk, fired, refused = sink(model)
    assert (fired, refused) == (1, ())
    assert "Transpose" not in operators(sunk)
    equivalent(model, sunk, exact=True)


def test_what_others_read_is_transposed_once_for_all(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"""
    g (float[1,4,5,6] x) => (float y, float z, float v) <float[2,5,1,1] w, float[2,5,1,1] u>
    {{ a = {OUT} (x) b = Relu (a) y = Conv (b, w) z = Conv (b, u) c = {IN} (b) v = Abs (c) }}
    """)
    sunk, fired, _ = sink(model)
    assert fired == 1
    (left,) = transposes(sunk)
    assert left.outputs[0].name == "b"
    assert len(left.outputs[0].uses()) == 2
    equivalent(model, sunk, exact=True)


def test_subgraphs_read_what_was_written(build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"""
    g (float[1,4,5,6] x, bool t) => (float y)
    {{ a = {OUT} (x) b = Relu (a) c = {IN} (b) d = Abs (c)
       y = If (t) <then_branch = th () => (float[1,5,6,4] p) {{ p = Neg (b) }}, else_branch = el () => (float[1,4,5,6] q) {{ q = Exp (d) }}> }}
    """)
    sunk, fired, _ = sink(model)
    assert fired == 1
    assert [node.outputs[0].name for node in transposes(sunk)] == ["b"]


@given(st.permutations(range(4)), st.permutations(range(4)), st.sampled_from(["Relu (a)", "Add (a, a)", "Mul (a, c)", "Div (c, a)"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_permutations(build: Build, equivalent: Equivalent, first: list[int], second: list[int], operator: str) -> None:
    shape = [(2, 3, 4, 5)[axis] for axis in first]
    model = build(HEAD + f"""
    g (float[2,3,4,5] x) => (float y) <float[{shape[1]},1,{shape[3]}] c>
    {{ a = Transpose <perm = {first}> (x) s = {operator} t = Transpose <perm = {second}> (s) y = Abs (t) }}
    """)
    sunk, fired, _ = sink(model)
    assert fired >= 1
    assert operators(sunk).count("Transpose") <= 1
    equivalent(model, sunk)


def test_regions_of_opposite_orders_do_not_undo_each_other(build: Build, equivalent: Equivalent) -> None:
    """One Transpose makes `(n, h, w, c)` of the values of the Add, the next one `(n, c, h, w)`, at the same cost."""
    model = build(HEAD + f"""
    g (float[1,4,6,6] x) => (float c, float a, float o) <float[4] s, float[4,4,1,1] w>
    {{ t = {OUT} (x) l = LayerNormalization (t, s) u = {IN} (l) c = Conv (u, w)
       a = Add (u, x) t2 = {OUT} (a) l2 = LayerNormalization (t2, s) o = {IN} (l2) }}
    """)
    sunk = sink_step_by_step(model)
    assert len(transposes(sunk)) == 4
    equivalent(model, sunk)
    assert operators(sink(model)[0]) == operators(sunk)


MIXED = {
    "normalised": f"t# = {OUT} (A) l# = LayerNormalization (t#, s) v# = {IN} (l#)",
    "convolved": "v# = Conv (A, w)",
    "added": "v# = Add (A, B)",
    "scaled": f"t# = {OUT} (A) m# = Mul (t#, s) v# = {IN} (m#)",
    "of one axis": f"t# = {OUT} (A) r# = ReduceMax <keepdims = 1> (t#, last) q# = Transpose <perm = [0,3,2,1]> (r#) v# = Mul (A, q#)",
    "there and back": "t# = Transpose <perm = [0,1,3,2]> (A) n# = Neg (t#) q# = Transpose <perm = [0,1,3,2]> (n#) v# = Add (B, q#)",
    "by rows": "t# = Transpose <perm = [0,2,1,3]> (A) n# = Softmax (t#) q# = Transpose <perm = [0,2,1,3]> (n#) v# = Add (B, q#)",
    "in halves": f"t# = {OUT} (A) p#, q# = Split <axis = 3, num_outputs = 2> (t#) c# = Concat <axis = 3> (q#, p#) v# = {IN} (c#)",
}
"""Layers of images `(n, c, h, w)` that work in one order or another, each on values A and B."""


@given(st.lists(st.tuples(st.sampled_from(sorted(MIXED)), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=14))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_rewrite_lowers_one_measure(build: Build, equivalent: Equivalent, layers: list[tuple[str, int, int]]) -> None:
    values, lines = ["x"], []
    for number, (kind, *back) in enumerate(layers):
        first, second = (values[-1 - min(steps, len(values) - 1)] for steps in back)
        lines.append(MIXED[kind].replace("#", str(number)).replace("A)", f"{first})").replace("(A", f"({first}").replace("B", second))
        values.append(f"v{number}")
    text = HEAD + f"""
    g (float[1,4,4,4] x) => ({", ".join(f"float {value}" for value in values[-4:] if value != "x")})
    <float[4] s, float[4,4,1,1] w, int64[1] last = {{3}}> {{ {" ".join(lines)} }}
    """
    model = canonicalize(build(text))
    equivalent(model, sink_step_by_step(model))


def test_a_transpose_at_the_border_may_read_what_is_reordered(build: Build, equivalent: Equivalent) -> None:
    """[c] makes a value of the region of [t] out of another one, which it reads as written."""
    model = build(HEAD + f"""
    g (float[1,4,5,6] x) => (float y) <int64[1] last = {{3}}>
    {{ [t] t = {OUT} (x) [r] r = ReduceMax (t, last) [c] c = {OUT} (r) [q] q = Transpose <perm = [0,1,3,2]> (c)
       [a] a = Transpose <perm = [0,2,1,3]> (q) [m] m = Mul (t, a) [y] y = {IN} (m) }}
    """)
    sunk, sinking = model.clone(), SinkTransposePass()
    found = sinking.match(sunk, sunk.graph.node("t"))
    assert isinstance(found, ReorderedRegion)
    assert {node.name for node in found.region.entries} == {"t", "c"}
    assert {"r", "q"} <= {node.name for node in found.nodes}
    sinking.rewrite(sunk, found)
    equivalent(model, sunk, exact=True)


def test_two_that_move_more_together_stay_apart(build: Build, equivalent: Equivalent) -> None:
    """The second Transpose moves nothing, and others read the first one."""
    model = build(HEAD + f"""
    g (float[1,4,5,6] x) => (float y, float z) <float[6] k, float[4] m>
    {{ a = {OUT} (x) y = LayerNormalization (a, m) b = Transpose <perm = [1,0,2,3]> (a) z = LayerNormalization (b, m) }}
    """)
    sunk, fired, _ = sink(model)
    assert fired == 1
    assert sorted(operators(sunk)) == ["LayerNormalization", "LayerNormalization", "Reshape", "Transpose"]
    equivalent(model, sunk)


def test_one_of_no_elements_is_no_reshape(build: Build) -> None:
    """A 0 in the shape of a Reshape stands for an axis of what it reads."""
    model = build(HEAD + """
    g (float[2,3] x) => (float y) <int64[1] none = {0}, int64[1] axis = {1}>
    { [cut] a = Slice (x, none, none, axis) [t] b = Transpose (a) y = MatMul (b, x) }
    """)
    sunk, fired, _ = sink(model)
    assert fired == 0
    assert operators(sunk) == ["Slice", "Transpose", "MatMul"]


# Networks as TensorFlow's exporter writes them: every tensor channels-last, Transposes around what ONNX has channels-first ---


class ChannelsLast:
    """A network that grows layer by layer; the last value is always `(n, *spatial, c)`.

    Attributes:
        shape: Of the last value.
        own: Transposes that are the network's own: those of channel shuffles.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = list(shape)
        self.own = 0
        self._input = shape
        self._lines: list[str] = []
        self._constants: list[str] = []
        self.value = "x"

    def text(self) -> str:
        """The network as ONNX text."""
        constants = ", ".join(self._constants)
        body = "\n".join(f"  {line}" for line in self._lines)
        return f"{HEAD}g (float[{','.join(map(str, self._input))}] x) => (float {self.value}) <{constants}> {{\n{body}\n}}"

    def node(self, operator: str, *sources: str, attributes: str = "") -> str:
        self.value = f"v{len(self._lines)}"
        self._lines.append(f"[n{len(self._lines)}] {self.value} = {operator} {f'<{attributes}>' if attributes else ''} ({', '.join(sources)})")
        return self.value

    def constant(self, *shape: int, stem: str = "k") -> str:
        self._constants.append(f"float[{','.join(map(str, shape))}] {stem}{len(self._constants)}")
        return self._constants[-1].split()[-1]

    def scalar(self, value: float) -> str:
        self._constants.append(f"float k{len(self._constants)} = {{{float(value)!r}}}")
        return f"k{len(self._constants) - 1}"

    def numbers(self, *values: int) -> str:
        self._constants.append(f"int64[{len(values)}] k{len(self._constants)} = {{{', '.join(map(str, values))}}}")
        return f"k{len(self._constants) - 1}"

    def around(self, operator: str, x: str, *constants: str, attributes: str = "") -> str:
        """An operator that ONNX has channels-first only."""
        rank = len(self.shape)
        y = self.node("Transpose", x, attributes=f"perm = [0,{rank - 1},{','.join(map(str, range(1, rank - 1)))}]")
        y = self.node(operator, y, *constants, attributes=attributes)
        return self.node("Transpose", y, attributes=f"perm = [0,{','.join(map(str, range(2, rank)))},1]")

    def conv(self, x: str, out: int, window: int = 1, stride: int = 1, *, depthwise: bool = False) -> str:
        """A convolution, and what is added to each channel."""
        spatial, channels = len(self.shape) - 2, self.shape[-1]
        group = channels if depthwise else 1
        weight = self.constant(out, channels // group, *(window,) * spatial)
        y = self.around("Conv", x, weight, attributes=f'group = {group}, strides = {[stride] * spatial}, auto_pad = "SAME_UPPER"')
        self.shape = [self.shape[0], *(-(-extent // stride) for extent in self.shape[1:-1]), out]
        return self.node("Add", y, self.constant(out))

    def activation(self, x: str, kind: str) -> str:
        match kind:
            case "relu6":
                return self.node("Clip", x, self.scalar(0), self.scalar(6))
            case "hard_swish":
                y = self.node("Clip", self.node("Add", x, self.scalar(3)), self.scalar(0), self.scalar(6))
                return self.node("Mul", x, self.node("Mul", y, self.scalar(1 / 6)))
            case "swish":
                return self.node("Mul", x, self.node("Sigmoid", x))
            case "prelu":
                positive = self.node("Relu", x)
                return self.node("Add", positive, self.node("Mul", self.constant(self.shape[-1]), self.node("Neg", self.node("Relu", self.node("Neg", x)))))
        return self.node("Relu", x)

    def mean(self, x: str, *, keep: bool) -> str:
        axes = self.numbers(*range(1, len(self.shape) - 1))
        return self.node("ReduceMean", x, axes, attributes=f"keepdims = {int(keep)}")

    def excite(self, x: str, *, dense: bool) -> str:
        """Squeeze and excitation, by convolutions or by products of matrices."""
        shape, channels = self.shape, self.shape[-1]
        y = self.mean(x, keep=not dense)
        if dense:
            y = self.node("Relu", self.node("MatMul", y, self.constant(channels, 3)))
            y = self.node("MatMul", y, self.constant(3, channels))
            y = self.node("Reshape", y, self.numbers(shape[0], *(1,) * (len(shape) - 2), channels))
        else:
            self.shape = [shape[0], *(1,) * (len(shape) - 2), channels]
            y = self.conv(self.activation(self.conv(y, 3), "relu"), channels)
        self.shape = shape
        return self.node("Mul", x, self.node("HardSigmoid", y))

    def block(self, x: str, grown: int, out: int, *, window: int = 3, stride: int = 1, kind: str = "relu6", excite: str = "") -> str:
        """An inverted residual."""
        before = list(self.shape)
        y = self.activation(self.conv(x, grown), kind)
        y = self.activation(self.conv(y, grown, window, stride, depthwise=True), kind)
        if excite:
            y = self.excite(y, dense=excite == "dense")
        y = self.conv(y, out)
        return self.node("Add", x, y) if self.shape == before else y

    def shuffle_unit(self, x: str) -> str:
        """Half of the channels convolved, both halves shuffled."""
        *front, channels = self.shape
        half, rank = channels // 2, len(self.shape)
        left, right = (self.node("Slice", x, *(self.numbers(n) for n in (at, at + half, rank - 1))) for at in (0, half))
        self.shape = [*front, half]
        right = self.activation(self.conv(self.conv(right, half, 3, depthwise=True), half), "relu")
        y = self.node("Concat", left, right, attributes="axis = -1")
        self.shape = [*front, channels]
        y = self.node("Reshape", y, self.numbers(*front, 2, half))
        y = self.node("Transpose", y, attributes=f"perm = {[*range(rank - 1), rank, rank - 1]}")
        self.own += 1
        return self.node("Reshape", y, self.numbers(*self.shape))

    def resize(self, x: str, factor: int) -> str:
        spatial = len(self.shape) - 2
        self._constants.append(f"float[{spatial + 2}] k{len(self._constants)} = {{1, 1, {', '.join([str(factor)] * spatial)}}}")
        y = self.around("Resize", x, "", f"k{len(self._constants) - 1}", attributes='mode = "linear"')
        self.shape = [self.shape[0], *(factor * extent for extent in self.shape[1:-1]), self.shape[-1]]
        return y

    def repeat(self, x: str, factor: int) -> str:
        """Nearest neighbours as TensorFlow repeats them: an axis behind each, tiled, and joined."""
        for axis in range(1, len(self.shape) - 1):
            apart = self.node("Unsqueeze", x, self.numbers(axis + 1))
            ones = [1] * (len(self.shape) + 1)
            ones[axis + 1] = factor
            tiled = self.node("Tile", apart, self.numbers(*ones))
            self.shape[axis] *= factor
            x = self.node("Reshape", tiled, self.numbers(*self.shape))
        return x

    def dense(self, x: str, out: int) -> str:
        y = self.node("MatMul", x, self.constant(self.shape[-1], out))
        return self.node("Add", y, self.constant(out))


def mobilenet_v2() -> ChannelsLast:
    net = ChannelsLast(1, 16, 16, 3)
    y = net.activation(net.conv("x", 8, 3, 2), "relu6")
    y = net.block(net.block(net.block(y, 12, 8), 12, 10, stride=2), 14, 10)
    y = net.mean(net.activation(net.conv(y, 16), "relu6"), keep=False)
    net.node("Softmax", net.dense(y, 5), attributes="axis = -1")
    return net


def mobilenet_v3() -> ChannelsLast:
    net = ChannelsLast(1, 16, 16, 3)
    y = net.activation(net.conv("x", 8, 3, 2), "hard_swish")
    y = net.block(y, 12, 8, kind="relu", excite="convolved")
    y = net.block(y, 12, 10, window=5, stride=2, kind="hard_swish", excite="dense")
    y = net.block(y, 14, 10, window=5, kind="hard_swish", excite="convolved")
    y = net.mean(net.activation(net.conv(y, 16), "hard_swish"), keep=True)
    net.shape = [1, 1, 1, 16]
    y = net.conv(net.activation(net.conv(y, 20), "hard_swish"), 5)
    net.node("Reshape", y, net.numbers(1, 5))
    return net


def efficientnet() -> ChannelsLast:
    net = ChannelsLast(2, 17, 15, 3)
    y = net.activation(net.conv("x", 8, 3, 2), "swish")
    for stride in (1, 2, 1):
        y = net.block(y, 12, 8, window=5, stride=stride, kind="swish", excite="convolved")
    net.dense(net.mean(y, keep=False), 5)
    return net


def shufflenet() -> ChannelsLast:
    net = ChannelsLast(1, 16, 16, 3)
    y = net.activation(net.conv("x", 8, 3, 2), "relu")
    y = net.around("MaxPool", y, attributes="kernel_shape = [2,2], strides = [2,2]")
    net.shape = [1, 4, 4, 8]
    y = net.shuffle_unit(net.shuffle_unit(y))
    net.dense(net.mean(y, keep=False), 5)
    return net


def segmentation() -> ChannelsLast:
    net = ChannelsLast(1, 16, 16, 3)
    a = net.activation(net.conv("x", 8, 3, 2), "prelu")
    b, shape = net.block(a, 12, 8, stride=2), list(net.shape)
    p = net.mean(b, keep=True)
    net.shape = [1, 1, 1, 8]
    p = net.resize(net.activation(net.conv(p, 4), "relu"), 4)
    net.shape = shape
    q = net.conv(b, 4)
    y = net.node("Concat", p, q, attributes="axis = 3")
    net.shape = [1, 4, 4, 8]
    y = net.repeat(y, 2)
    y = net.node("Concat", y, a, attributes="axis = -1")
    y = net.node("Pad", y, net.numbers(0, 1, 1, 0, 0, 1, 1, 0))
    net.shape = [1, 10, 10, 16]
    y = net.resize(net.conv(y, 3), 2)
    net.node("ArgMax", y, attributes="axis = 3")
    return net


def keywords() -> ChannelsLast:
    """Its convolutions over time are those of images of one row."""
    net = ChannelsLast(1, 1, 30, 10)
    y = net.node("Squeeze", "x", net.numbers(1))
    for out in (8, 8):
        y = net.node("Unsqueeze", y, net.numbers(1))
        y = net.conv(net.conv(y, net.shape[-1], 3, depthwise=True), out)
        y = net.activation(net.node("Squeeze", y, net.numbers(1)), "relu")
    net.shape = [1, 30, 8]
    net.dense(net.mean(y, keep=False), 4)
    return net


def spectrum() -> ChannelsLast:
    net = ChannelsLast(1, 21, 10, 1)
    y = net.activation(net.conv("x", 8, 3, 2), "relu")
    y = net.activation(net.conv(net.conv(y, 8, 3, depthwise=True), 8), "relu")
    net.dense(net.mean(y, keep=False), 4)
    return net


def audio() -> ChannelsLast:
    net = ChannelsLast(1, 40, 6)
    y = net.block(net.activation(net.conv("x", 8, 5, 2), "relu"), 12, 8, excite="dense")
    net.dense(net.mean(y, keep=False), 4)
    return net


def video() -> ChannelsLast:
    net = ChannelsLast(1, 4, 8, 8, 3)
    y = net.block(net.activation(net.conv("x", 6, 3), "relu"), 8, 6, excite="convolved", kind="swish")
    net.dense(net.mean(y, keep=False), 4)
    return net


NETWORKS = {
    mobilenet_v2: 1, mobilenet_v3: 1, efficientnet: 1, shufflenet: 1, segmentation: 1, keywords: 1, spectrum: 0, audio: 1, video: 1,
}  # fmt: skip
"""Each with the Transposes that are left beside its own: of its input, where that has more than one channel."""


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_only_the_input_is_transposed(network: Callable[[], ChannelsLast], build: Build, equivalent: Equivalent) -> None:
    net = network()
    model = canonicalize(build(net.text()))
    sunk, _, _ = sink(model)
    left = transposes(sunk)
    assert len(transposes(model)) >= 6
    assert len(left) - net.own == NETWORKS[network]
    images = [node for node in left if is_image(node)]
    assert all(reads_the_input(node) for node in images)
    assert len(images) == NETWORKS[network]
    equivalent(model, sunk)


def is_image(node: ir.Node) -> bool:
    """Whether the axes of channels and space change places, not groups and channels."""
    perm = permutation(node)
    return perm is not None and perm[1] == len(perm) - 1


def reads_the_input(node: ir.Node) -> bool:
    """Whether nothing but axes of one element stands between the network's input and a node."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    return producer is None or (producer.op_type in ("Squeeze", "Unsqueeze", "Reshape") and reads_the_input(producer))


LAYERS: dict[str, Callable[[ChannelsLast, str], str]] = {
    "pointwise": lambda net, x: net.conv(x, 4),
    "depthwise": lambda net, x: net.conv(x, net.shape[-1], 3, depthwise=True),
    "hard swish": lambda net, x: net.activation(x, "hard_swish"),
    "prelu": lambda net, x: net.activation(x, "prelu"),
    "excite": lambda net, x: net.excite(x, dense=False),
    "excite by products": lambda net, x: net.excite(x, dense=True),
    "shuffle": lambda net, x: net.shuffle_unit(x),
    "repeat": lambda net, x: net.repeat(x, 2),
    "double": lambda net, x: net.node("Add", x, x),
    "normalise": lambda net, x: net.node("Softmax", x, attributes="axis = -1"),
    "across": lambda net, x: net.node("LayerNormalization", x, net.constant(net.shape[-1])),
    "with rows": lambda net, x: net.node("Mul", x, net.node("ReduceMax", x, net.numbers(2), attributes="keepdims = 1")),
    "with rows of few axes": lambda net, x: net.node("Add", x, net.node("ReduceMin", x, net.numbers(0, 1), attributes="keepdims = 0")),
}


@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_layers(build: Build, equivalent: Equivalent, names: list[str], first: bool) -> None:
    """Never more elements are transposed than were (`sink`), nor by more Transposes."""
    net = ChannelsLast(1, 4, 3, 4)
    y = "x" if first else net.conv("x", 4)
    for name in names:
        y = LAYERS[name](net, y)
    model = canonicalize(build(net.text()))
    sunk, _, _ = sink(model)
    assert len(transposes(sunk)) <= len(transposes(model))
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
