from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.chains import read_chain
from sepwise.passes.fuse_activation import FuseActivationPass
from sepwise.passes.recognise_activation import RecogniseActivationPass
from sepwise.passes.vocabulary import Activation

Build = Callable[..., ir.Model]
InRank = Callable[[str, int], str]
Equivalent = Callable[..., None]

TEXT = """<ir_version: 7, opset_import: ["" : {opset}]>
g (float[1,4,9,8] x) => (float y)
<float[8,2,3,3] w, float[8] b, float zero = {{0}}, float three = {{3}}, float six = {{6}}>
{{
  [conv] c = Conv <group = 2, strides = [2,1], pads = [1,0,2,1]> (x, w, b)
  {activation}
}}
"""


def fuse(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    fused = model.clone()
    RecogniseActivationPass()(fused)
    result = FuseActivationPass()(fused)
    assert result.modified == (result.fired > 0)
    again = FuseActivationPass()(fused)
    assert not again.modified
    assert again.refused == result.refused
    return fused, result.fired, tuple(refusal.reason for refusal in result.refused)


HARD_SWISH = "a = Add (c, three) d = Clip (a, zero, six) m = Mul (c, d) y = Div (m, six)"

ACTIVATIONS = {
    "FusedConv_convBiasRelu": (17, "y = Relu (c)", Activation("relu")),
    "FusedConv_convBiasClip": (17, "y = Clip (c, zero, six)", Activation("clip", (0, 6))),
    "FusedConv_convBiasClip ": (9, "y = Clip <min = 0.0, max = 6.0> (c)", Activation("clip", (0, 6))),
    "FusedConv_convBiasClip  ": (17, "y = Clip (c, , six)", Activation("clip", (float("-inf"), 6))),
    "FusedConv_convBiasClip   ": (17, "y = Clip (c, zero)", Activation("relu")),
    "FusedConv_convBiasLeakyRelu": (17, "y = LeakyRelu <alpha = 0.25> (c)", Activation("leaky_relu", (0.25,))),
    "FusedConv_convBiasElu": (17, "y = Elu (c)", Activation("elu", (1,))),
    "FusedConv_convBiasSigmoid": (17, "y = Sigmoid (c)", Activation("sigmoid")),
    "FusedConv_convBiasTanh": (17, "y = Tanh (c)", Activation("tanh")),
    "FusedConv_convBiasHardSigmoid": (17, "y = HardSigmoid <alpha = 0.25> (c)", Activation("hard_sigmoid", (0.25, 0.5))),
    "FusedConv_convBiasHardSwish": (17, "y = HardSwish (c)", Activation("hard_swish")),
    "FusedConv_convBiasSoftplus": (17, "y = Softplus (c)", Activation("softplus")),
    "FusedConv_convBiasMish": (18, "y = Mish (c)", Activation("mish")),
    "FusedConv_convBiasGelu": (20, "y = Gelu (c)", Activation("gelu")),
    "FusedConv_convBiasSiLUSigmoidMul": (17, "s = Sigmoid (c) y = Mul (c, s)", Activation("silu")),
    "FusedConv_convBiasHardSwishAddClipMulDiv": (11, HARD_SWISH, Activation("hard_swish")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(build: Build, equivalent: Equivalent, name: str) -> None:
    opset, activation, expected = ACTIVATIONS[name]
    model = build(TEXT.format(opset=opset, activation=activation))
    fused, fired, refused = fuse(model)
    assert (fired, refused) == (1, ())
    (node,) = fused.graph
    assert (node.domain, node.op_type, node.name, node.outputs[0].name) == ("sepwise", name.strip(), "conv", "y")
    chain = read_chain(fused, node)
    assert chain is not None
    (stage,) = chain.stages
    assert stage.activation == expected
    assert (stage.group, stage.strides, stage.pads, stage.dilations) == (2, (2, 1), (1, 0, 2, 1), (1, 1))
    assert fused.ir_version == 8
    equivalent(model, fused, exact=True)


AFFINE = {
    "m = Mul (a, two) y = Add (m, three)": ("HardSwishMulAdd", 2.0, 3.0),
    "m = Mul (two, a) y = Add (three, m)": ("HardSwishMulAdd", 2.0, 3.0),
    "y = Mul (a, two)": ("HardSwishMul", 2.0, 0.0),
    "y = Add (a, three)": ("HardSwishAdd", 1.0, 3.0),
    "m = Mul (a, two) s = Add (m, three) y = Mul (s, two)": ("HardSwishMulAdd", 2.0, 3.0),
    "s = Add (a, three) y = Mul (s, two)": ("HardSwishAdd", 1.0, 3.0),
    "m = Mul (a, two) n = Mul (m, two) y = Add (n, three)": ("HardSwishMul", 2.0, 0.0),
    "y = Add (a, each)": ("HardSwish", 1.0, 0.0),
    "y = Mul (a, zero)": ("HardSwish", 1.0, 0.0),
    "y = Add (a, wide)": ("HardSwish", 1.0, 0.0),
    "m = Mul (a, two) y = Add (m, a)": ("HardSwish", 1.0, 0.0),
    "y = Mul (a, a)": ("HardSwish", 1.0, 0.0),
    "m = Mul (a, x0) y = Add (m, three)": ("HardSwish", 1.0, 0.0),
}


@pytest.mark.parametrize("behind", AFFINE)
def test_numbers_behind_an_activation(build: Build, equivalent: Equivalent, behind: str) -> None:
    text = TEXT.format(opset=17, activation=f"a = HardSwish (c) {behind}")
    text = text.replace("float six = {6}", "float[1] two = {2}, float[8,1,1] each, float[1,1,1,1,1] wide = {3}")
    model = build(text.replace("x) =>", "x, float x0) =>"))
    fused, fired, refused = fuse(model)
    assert (fired, refused) == (1, ())
    name, scale, shift = AFFINE[behind]
    node = next(iter(fused.graph))
    assert node.op_type == f"FusedConv_convBias{name}"
    chain = read_chain(fused, node)
    assert chain is not None
    assert chain.stages[0].activation == Activation("hard_swish", (), scale, shift)
    assert len(chain.nodes) == 2 + (scale != 1) + (shift != 0)
    equivalent(model, fused, exact=True)


def test_the_original_names_are_kept(build: Build) -> None:
    model = build(TEXT.format(opset=17, activation="[p] s = Sigmoid (c) [q] y = Mul (c, s)"))
    fused, _, _ = fuse(model)
    chain = read_chain(fused, next(iter(fused.graph)))
    assert chain is not None
    assert chain.nodes == ("conv", "p", "q")


def test_a_gelu_by_tanh_is_left_alone(build: Build) -> None:
    model = build(TEXT.format(opset=20, activation='y = Gelu <approximate = "tanh"> (c)'))
    assert fuse(model)[1:] == (0, ())


def test_two_calls_of_one_function(build: Build, equivalent: Equivalent) -> None:
    model = build(
        TEXT.format(
            opset=17, activation="d = Clip (c, zero, six) e = Conv <pads = [1,1,1,1]> (d, v, b) y = Clip (e, zero, three)"
        ).replace("float[8] b", "float[8,8,3,3] v, float[8] b")
    )
    fused, fired, _ = fuse(model)
    assert (fired, len(fused.functions)) == (2, 1)
    equivalent(model, fused, exact=True)


ACTIVATED = TEXT.format(opset=17, activation="[act] y = Relu (c)").replace("strides = [2,1], ", "")

REFUSED = {
    "the output 'c' of Conv 'conv' has a second consumer, 'other'": ACTIVATED.replace("float y", "float y, float z").replace(
        "[act]", "[other] z = Neg (c) [act]"
    ),
    "the output 'c' of Conv 'conv' is a graph output": ACTIVATED.replace("float y", "float y, float c"),
    "the weight of Conv 'conv' is not constant": ACTIVATED.replace("x) =>", "x, float[8,2,3,3] w) =>").replace(
        "<float[8,2,3,3] w, ", "<"
    ),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, in_rank: InRank, reason: str, rank: int) -> None:
    model = build(in_rank(REFUSED[reason], rank))
    before = ir.to_proto(model)
    fused, fired, refused = fuse(model)
    assert (fired, refused) == (0, (reason,))
    assert ir.to_proto(fused) == before


def test_refuses_unknown_padding(build: Build) -> None:
    text = TEXT.format(opset=17, activation="y = Relu (c)").replace("pads = [1,0,2,1]", 'auto_pad = "SAME_UPPER"')
    model = build(text)
    model.graph.inputs[0].shape = ir.Shape([1, 4, "h", "w"])
    assert fuse(model)[1:] == (0, ("Conv 'conv' has auto_pad=SAME_UPPER and its input shape is not known",))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_geometry(build: Build, equivalent: Equivalent, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    group, multiplier = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, 3))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    dilations = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    extents = data.draw(st.lists(st.integers(6, 9), min_size=rank, max_size=rank))
    bias = data.draw(st.booleans())
    opset, activation, expected = data.draw(st.sampled_from(list(ACTIVATIONS.values())))
    outputs = group * multiplier
    model = build(
        TEXT.format(opset=opset, activation=activation)
        .replace("1,4,9,8", ",".join(map(str, [2, 4, *extents])))
        .replace(
            "float[8,2,3,3] w, float[8] b", f"float[{','.join(map(str, [outputs, 4 // group, *kernel]))}] w, float[{outputs}] b"
        )
        .replace(
            "group = 2, strides = [2,1], pads = [1,0,2,1]",
            f"group = {group}, strides = {strides}, pads = {pads}, dilations = {dilations}",
        )
        .replace("(x, w, b)", "(x, w, b)" if bias else "(x, w)")
    )
    fused, fired, _ = fuse(model)
    assert fired == 1
    chain = read_chain(fused, next(iter(fused.graph)))
    assert chain is not None
    (stage,) = chain.stages
    assert (stage.kernel_shape, stage.strides, stage.pads) == (tuple(kernel), tuple(strides), tuple(pads))
    assert (stage.dilations, stage.group, stage.activation) == (tuple(dilations), group, expected)
    assert (stage.weight, stage.bias) == ("w", "b" if bias else None)
    equivalent(model, fused, exact=True)
