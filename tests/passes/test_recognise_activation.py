from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.chains import read_activation
from sepwise.passes.recognise_activation import RecogniseActivationPass
from sepwise.passes.rewriting import original_nodes
from sepwise.passes.vocabulary import Activation

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

CONSTANTS = """<float zero = {0}, float half = {0.5}, float one = {1}, float three = {3}, float six = {6},
 float sixth = {0.16666667}, float tenth = {0.1}, float root = {1.4142135}, float wrong = {0.1666}, float[1,1] wide = {3}>"""


def text(body: str, opset: int = 17, rank: str = "2,5,7,3") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{rank}] x) => (float y) {CONSTANTS} {{ {body} }}'


def recognise(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    rewritten = model.clone()
    result = RecogniseActivationPass()(rewritten)
    assert result.modified == (result.fired > 0)
    again = RecogniseActivationPass()(rewritten)
    assert not again.modified
    assert again.refused == result.refused
    return rewritten, result.fired, tuple(refusal.reason for refusal in result.refused)


HARD_SWISH, SIX = Activation("hard_swish"), Activation("clip", (0.0, 6.0))

SPELLINGS = {
    "HardSwish_AddClipMulDiv": ("a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) y = Div (c, six)", HARD_SWISH),
    "HardSwish_AddClipDivMul": ("a = Add (three, x) b = Clip (a, zero, six) c = Div (b, six) y = Mul (c, x)", HARD_SWISH),
    "HardSwish_AddClipMulMul": ("a = Add (x, three) b = Clip (a, zero, six) c = Mul (b, sixth) y = Mul (x, c)", HARD_SWISH),
    "HardSwish_MulAddClipMul": ("s = Mul (x, sixth) a = Add (s, half) b = Clip (a, zero, one) y = Mul (x, b)", HARD_SWISH),
    "HardSwish_AddReluMinDivMul": (
        "a = Add (x, three) b = Relu (a) c = Min (b, six) d = Div (c, six) y = Mul (x, d)",
        HARD_SWISH,
    ),
    "HardSwish_DivAddClipMul": ("s = Div (x, six) a = Add (s, half) b = Clip (a, zero, one) y = Mul (x, b)", HARD_SWISH),
    "HardSwish_HardSigmoidMul": ("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, h)", HARD_SWISH),
    "HardSwish_DivAddClipMul ": ("d = Div (x, six) a = Add (x, three) b = Clip (a, zero, six) y = Mul (d, b)", HARD_SWISH),
    "SiLU_SigmoidMul": ("s = Sigmoid (x) y = Mul (s, x)", Activation("silu")),
    "SiLU_MulSigmoidMul": ("o = Mul (x, one) s = Sigmoid (o) y = Mul (x, s)", Activation("silu")),
    "Clip_MaxMin": ("a = Max (x, zero) y = Min (a, six)", SIX),
    "Clip_MinMax": ("a = Min (six, x) y = Max (zero, a)", SIX),
    "Clip_ReluMin": ("a = Relu (x) y = Min (a, six)", SIX),
    "Clip_ReluClip": ("a = Relu (x) y = Clip (a, , six)", SIX),
    "HardSigmoid_AddClipDiv": (
        "a = Add (x, three) b = Clip (a, zero, six) y = Div (b, six)",
        Activation("hard_sigmoid", (1 / 6, 0.5)),
    ),
    "HardSigmoid_MulAddClip": (
        "a = Mul (x, tenth) b = Add (a, half) y = Clip (b, zero, one)",
        Activation("hard_sigmoid", (0.10000000149011612, 0.5)),
    ),
    "LeakyRelu_MulMax": ("a = Mul (x, tenth) y = Max (x, a)", Activation("leaky_relu", (0.10000000149011612,))),
    "Gelu_DivErfAddMulMul": (
        "a = Div (x, root) e = Erf (a) p = Add (e, one) m = Mul (x, p) y = Mul (m, half)",
        Activation("gelu"),
    ),
    "Gelu_MulDivErfAddMul": (
        "h = Mul (half, x) a = Div (x, root) e = Erf (a) p = Add (one, e) y = Mul (h, p)",
        Activation("gelu"),
    ),
    "Mish_SoftplusTanhMul": ("s = Softplus (x) t = Tanh (s) y = Mul (x, t)", Activation("mish")),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_recognises(build: Build, equivalent: Equivalent, name: str) -> None:
    body, activation = SPELLINGS[name]
    model = build(text(body))
    rewritten, fired, refused = recognise(model)
    assert (fired, refused, len(rewritten.graph)) == (1, (), 1)
    (node,) = rewritten.graph
    assert node.op_type == name.strip()
    assert node.outputs[0].name == "y"
    read = read_activation(rewritten, node)
    assert read is not None
    assert read.kind == activation.kind
    assert [np.float32(found) for found in read.parameters] == [np.float32(stated) for stated in activation.parameters]
    equivalent(model, rewritten, exact=True)


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_operator_sets(build: Build, equivalent: Equivalent, opset: int) -> None:
    model = build(text(SPELLINGS["HardSwish_AddClipMulDiv"][0], opset))
    rewritten, fired, _ = recognise(model)
    assert fired == 1
    equivalent(model, rewritten, exact=True)


def test_the_original_names_are_kept(build: Build) -> None:
    model = build(text("[p] a = Add (x, three) [q] b = Clip (a, zero, six) [r] c = Mul (x, b) [s] y = Div (c, six)"))
    rewritten, _, _ = recognise(model)
    (node,) = rewritten.graph
    assert (node.name, original_nodes(node)) == ("s", (("p",), ("q",), ("r",), ("s",)))


def test_one_function_for_all_of_a_spelling(build: Build, equivalent: Equivalent) -> None:
    """The order of a commutative operator's operands, and the constants, make no other function."""
    model = build(
        text(
            """a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) d = Div (c, six)
               e = Add (three, d) f = Clip (e, zero, six) h = Mul (f, d) y = Div (h, six)"""
        )
    )
    rewritten, fired, _ = recognise(model)
    assert (fired, len(rewritten.functions)) == (2, 1)
    equivalent(model, rewritten, exact=True)


def test_another_wiring_of_the_same_operators_has_a_name_of_its_own(build: Build, equivalent: Equivalent) -> None:
    model = build(
        text(
            """d = Div (x, six) a = Add (x, three) b = Clip (a, zero, six) u = Mul (d, b)
               s = Div (u, six) e = Add (s, half) f = Clip (e, zero, one) y = Mul (u, f)"""
        )
    )
    rewritten, fired, _ = recognise(model)
    assert (fired, len(rewritten.functions)) == (2, 2)
    equivalent(model, rewritten, exact=True)


def test_the_result_may_have_several_consumers(build: Build, equivalent: Equivalent) -> None:
    model = build(text("s = Sigmoid (x) m = Mul (s, x) p = Add (m, x) y = Add (p, m)"))
    rewritten, fired, _ = recognise(model)
    assert fired == 1
    equivalent(model, rewritten, exact=True)


NOT_ACTIVATIONS = {
    "a wrong constant": "a = Add (x, three) b = Clip (a, zero, six) c = Mul (b, wrong) y = Mul (x, c)",
    "another gate": "h = HardSigmoid (x) y = Mul (x, h)",
    "one node": "y = Clip (x, zero, six)",
    "a squared value": "y = Mul (x, x)",
    "another input": "t = Tanh (x) s = Sigmoid (t) y = Mul (x, s)",
    "an affine map": "a = Mul (x, half) y = Add (a, one)",
}


@pytest.mark.parametrize("what", NOT_ACTIVATIONS)
def test_leaves_alone(build: Build, what: str) -> None:
    assert recognise(build(text(NOT_ACTIVATIONS[what])))[1:] == (0, ())


def test_leaves_alone_a_constant_that_widens_the_result(build: Build, equivalent: Equivalent) -> None:
    model = build(text("a = Add (x, wide) b = Clip (a, zero, six) y = Div (b, six)", rank="5"))
    rewritten, _, _ = recognise(model)
    assert [node.op_type for node in rewritten.graph] == ["Add", "HardSigmoid_ClipDiv"]
    equivalent(model, rewritten, exact=True)


REFUSED = {
    "'b' inside the spelled-out hard_swish has another consumer, 'o'": (
        "a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) d = Div (c, six) [o] y = Add (b, d)"
    ),
    "'s' inside the spelled-out silu has another consumer, 'o'": "s = Sigmoid (x) m = Mul (s, x) [o] y = Add (s, m)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, reason: str) -> None:
    model = build(text(REFUSED[reason]))
    before = ir.to_proto(model)
    rewritten, fired, refused = recognise(model)
    assert (fired, refused) == (0, (reason,))
    assert ir.to_proto(rewritten) == before


def test_refuses_a_value_that_is_an_output(build: Build) -> None:
    model = build(text("s = Sigmoid (x) y = Mul (s, x)").replace("(float y)", "(float y, float s)"))
    assert recognise(model)[1:] == (0, ("'s' inside the spelled-out silu is a graph output",))


def test_takes_a_shorter_spelling_where_the_longest_is_seen_from_outside(build: Build, equivalent: Equivalent) -> None:
    model = build(text("a = Relu (x) b = Min (a, six) c = Clip (b, zero, three) y = Add (c, a)"))
    rewritten, fired, _ = recognise(model)
    assert [node.op_type for node in rewritten.graph] == ["Relu", "Clip_MinClip", "Add"]
    assert fired == 1
    equivalent(model, rewritten, exact=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["Add", "Sub", "Mul", "Div", "Min", "Max", "Relu", "Sigmoid", "Clip", "MulX", "Neg"]),
            st.sampled_from(["half", "one", "three", "six", "sixth"]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_is_recognised_computes_the_same(build: Build, equivalent: Equivalent, steps: list[tuple[str, str]]) -> None:
    """The algebra may leave a composition alone, but never give it a wrong name."""
    lines, last = [], "x"
    for index, (operator, constant) in enumerate(steps):
        operands = {"Relu": "", "Sigmoid": "", "Neg": "", "Clip": f", zero, {constant}", "MulX": ", x"}.get(
            operator, f", {constant}"
        )
        lines.append(f"v{index} = {operator.removesuffix('X')} ({last}{operands})")
        last = f"v{index}"
    model = build(text(" ".join([*lines, f"y = Identity ({last})"])))
    rewritten, _, _ = recognise(model)
    equivalent(model, rewritten, exact=True)
