from collections.abc import Callable

import onnx_ir as ir
import pytest

from sepwise.passes.chains import read_chain
from sepwise.passes.fuse_activation import FuseActivationPass
from sepwise.passes.fuse_residual import FuseResidualPass
from sepwise.passes.rewriting import RewriteResult
from sepwise.passes.vocabulary import Activation

Build = Callable[..., ir.Model]
InRank = Callable[[str, int], str]
Equivalent = Callable[..., None]

TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[1,4,9,8] x) => (float y)
<float[4,4,3,3] w, float[4] b, float[4,4,3,3] v>
{
  [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
  [add] y = Add (x, c)
}
"""


def fuse(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    fused = model.clone()
    FuseActivationPass()(fused)
    result = FuseResidualPass()(fused)
    assert isinstance(result, RewriteResult)
    assert result.modified == (result.fired > 0)
    again = FuseResidualPass()(fused)
    assert not again.modified
    assert again.refused == result.refused
    return fused, result.fired, tuple(refusal.reason for refusal in result.refused)


@pytest.mark.parametrize("operands", ["x, c", "c, x"])
def test_a_residual(build: Build, equivalent: Equivalent, operands: str) -> None:
    model = build(TEXT.replace("x, c", operands))
    fused, fired, refused = fuse(model)
    assert (fired, refused) == (1, ())
    (node,) = fused.graph
    assert node.op_type == "FusedConv_convBias_add"
    chain = read_chain(fused, node)
    assert chain is not None
    assert (chain.input, chain.residual, chain.output, chain.post_activation) == ("x", "x", "y", None)
    assert chain.nodes == ("conv", "add")
    equivalent(model, fused, exact=True)


def test_activations_on_both_sides_of_the_addition(build: Build, equivalent: Equivalent) -> None:
    model = build(TEXT.replace("[add] y = Add (x, c)", "[act] d = HardSwish (c) [add] s = Add (d, x) [post] y = LeakyRelu (s)"))
    fused, fired, _ = fuse(model)
    assert fired == 1
    (node,) = fused.graph
    assert node.op_type == "FusedConv_convBiasHardSwish_addLeakyRelu"
    chain = read_chain(fused, node)
    assert chain is not None
    assert chain.stages[0].activation == Activation("hard_swish")
    assert chain.stages[0].nodes == ("conv", "act")
    assert chain.post_activation is not None
    assert chain.post_activation.kind == "leaky_relu"
    assert chain.nodes == ("conv", "act", "add", "post")
    equivalent(model, fused, exact=True)


def test_a_residual_behind_a_number(build: Build, equivalent: Equivalent) -> None:
    text = TEXT.replace("float[4] b,", "float[4] b, float two = {2},")
    model = build(text.replace("[add] y = Add (x, c)", "d = HardSwish (c) m = Mul (d, two) s = Add (m, two) [add] y = Add (x, s)"))
    fused, fired, _ = fuse(model)
    assert fired == 1
    (node,) = fused.graph
    assert node.op_type == "FusedConv_convBiasHardSwishMulAdd_add"
    chain = read_chain(fused, node)
    assert chain is not None
    assert chain.stages[0].activation == Activation("hard_swish", (), 2.0, 2.0)
    assert chain.residual == "x"
    equivalent(model, fused, exact=True)


def test_the_sum_may_have_several_consumers(build: Build, equivalent: Equivalent) -> None:
    model = build(TEXT.replace("[add] y = Add (x, c)", "[add] s = Add (x, c) r = Relu (s) y = Add (r, s)"))
    fused, fired, _ = fuse(model)
    assert (fired, [node.op_type for node in fused.graph]) == (1, ["FusedConv_convBias_add", "Relu", "Add"])
    equivalent(model, fused, exact=True)


def test_of_two_convolutions_the_later_takes_the_other(build: Build, equivalent: Equivalent) -> None:
    model = build(TEXT.replace("[add] y = Add (x, c)", "[later] d = Conv <pads = [1,1,1,1]> (x, v) [add] y = Add (c, d)"))
    fused, fired, _ = fuse(model)
    assert (fired, [node.op_type for node in fused.graph]) == (1, ["Conv", "FusedConv_conv_add"])
    chain = read_chain(fused, list(fused.graph)[1])
    assert chain is not None
    assert (chain.residual, chain.stages[0].weight) == ("c", "v")
    equivalent(model, fused, exact=True)


def test_the_earlier_convolution_takes_it_where_the_later_cannot(build: Build, equivalent: Equivalent) -> None:
    body = "[later] d = Conv <pads = [1,1,1,1]> (x, v) z = Relu (d) [add] y = Add (c, d)"
    model = build(TEXT.replace("[add] y = Add (x, c)", body).replace("float y", "float y, float z"))
    fused, fired, _ = fuse(model)
    assert fired == 1
    chain = read_chain(fused, list(fused.graph)[-1])
    assert chain is not None
    assert (chain.residual, chain.stages[0].weight) == ("d", "w")
    equivalent(model, fused, exact=True)


def test_two_residuals_take_two_operators(build: Build, equivalent: Equivalent) -> None:
    model = build(TEXT.replace("[add] y = Add (x, c)", "t = Tanh (x) s = Add (x, c) y = Add (s, t)"))
    fused, fired, _ = fuse(model)
    assert (fired, [node.op_type for node in fused.graph]) == (1, ["Tanh", "FusedConv_convBias_add", "Add"])
    equivalent(model, fused, exact=True)


def replaced(body: str) -> str:
    return TEXT.replace("[add] y = Add (x, c)", body)


REFUSED = {
    "the output 'c' of Conv 'conv' has a second consumer, 'other'": replaced(
        "[other] z = Relu (c) [add] t = Add (x, c) y = Sub (t, z)"
    ),
    "the output 'c' of Conv 'conv' has a second consumer, the same node once more": replaced("[add] y = Add (c, c)"),
    "the output 'c' of Conv 'conv' is a graph output": TEXT.replace("float y", "float y, float c"),
    "the other summand 'r' is constant": replaced("[add] y = Add (c, r)").replace("float[4] b", "float[4,9,8] r, float[4] b"),
    "the residual 'r' has shape [1,1,9,8], the convolution [1,4,9,8]": replaced("[add] y = Add (c, r)").replace(
        "x) =>", "x, float[1,1,9,8] r) =>"
    ),
    "the weight of 'conv' is not constant": TEXT.replace("x) =>", "x, float[4,4,3,3] w) =>").replace("<float[4,4,3,3] w, ", "<"),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, in_rank: InRank, reason: str, rank: int) -> None:
    model = build(in_rank(REFUSED[reason], rank))
    before = ir.to_proto(model)
    fused, fired, refused = fuse(model)
    assert (fired, refused) == (0, (in_rank(reason, rank),))
    assert ir.to_proto(fused) == before


def test_refuses_unknown_shapes(build: Build) -> None:
    model = build(TEXT)
    model.graph.inputs[0].shape = ir.Shape([1, 4, "h", 8])
    assert fuse(model)[1:] == (0, ("the residual 'x' has shape [1,4,h,8], the convolution [1,4,9,8]",))


def test_refuses_unknown_padding(build: Build) -> None:
    body = 't = Relu (x) [conv] c = Conv <auto_pad = "SAME_UPPER"> (t, w, b) [add] y = Add (x, c)'
    text = TEXT.replace("[conv] c = Conv <pads = [1,1,1,1]> (x, w, b)", "").replace("[add] y = Add (x, c)", body)
    model = build(text)
    next(iter(model.graph)).outputs[0].shape = None
    assert fuse(model)[1:] == (0, ("Conv 'conv' has auto_pad=SAME_UPPER and its input shape is not known",))
