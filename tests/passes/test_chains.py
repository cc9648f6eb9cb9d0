from collections.abc import Callable

import onnx_ir as ir
import pytest

from sepwise.passes import fuse, read_activation, read_chain
from sepwise.passes.chains import conv_kind, family
from sepwise.passes.vocabulary import Activation, ConvStage, FusedChain

Build = Callable[..., ir.Model]

PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,9] x) => (float y) <float[8,2,3] w, float[8] b> {{ [conv] y = Conv <group = 2{attributes}> (x, w, b) }}
"""


def test_a_plain_convolution_with_defaults(build: Build) -> None:
    model = build(PLAIN.format(attributes=""))
    stage = ConvStage("w", "b", (3,), (1,), (0, 0), (1,), 2, None, ("conv",))
    assert read_chain(model, next(iter(model.graph))) == FusedChain("Conv", "x", (stage,), None, None, "y", ("conv",))


def test_a_plain_convolution_with_same_padding(build: Build) -> None:
    model = build(PLAIN.format(attributes=', auto_pad = "SAME_LOWER", dilations = [2]'))
    chain = read_chain(model, next(iter(model.graph)))
    assert chain is not None
    assert (chain.stages[0].pads, chain.stages[0].dilations) == ((2, 2), (2,))


def test_unknown_padding_is_no_chain(build: Build) -> None:
    model = build(PLAIN.format(attributes=', auto_pad = "SAME_LOWER"'))
    model.graph.inputs[0].shape = None
    assert read_chain(model, next(iter(model.graph))) is None


def test_other_nodes_are_no_chains(build: Build) -> None:
    model = build('<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float y) { t = Relu (x) y = Add (t, x) }')
    relu, add = model.graph
    assert (read_chain(model, relu), read_chain(model, add), family(relu)) == (None, None, None)
    assert read_activation(model, relu) == Activation("relu")
    assert read_activation(model, add) is None


def test_a_function_is_read_by_its_body_not_by_its_name() -> None:
    """A body that the vocabulary has no words for is no chain, whatever the function is called."""
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17, "sepwise" : 1]>
        g (float[1,1,4] x, float[1,1,2] w) => (float[1,1,3] y)
        { y = sepwise.FusedConv_conv <kernel_shape = [2], strides = [1], pads = [0,0], dilations = [1], group = 1> (x, w) }
        <domain: "sepwise", opset_import: ["" : 17]>
        FusedConv_conv <kernel_shape, strides, pads, dilations, group> (x, w) => (y) {
          t = Conv <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
                    dilations: ints = @dilations, group: int = @group> (x, w)
          y = Cos (t)
        }"""
    )
    (node,) = model.graph
    assert family(node) == "FusedConv"
    assert read_chain(model, node) is None


def test_an_activation_function_is_read_by_its_body() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17, "sepwise" : 1]>
        g (float[4] x) => (float[4] y, float[4] z)
        { y = sepwise.HardSwish_SigmoidMul (x) z = sepwise.Absent (x) }
        <domain: "sepwise", opset_import: ["" : 17]>
        HardSwish_SigmoidMul (x) => (y) { s = Sigmoid (x) y = Mul (x, s) }"""
    )
    recognised, absent = model.graph
    assert read_activation(model, recognised) == Activation("silu")
    assert read_activation(model, absent) is None


def test_clip_with_bounds_that_are_not_constant(build: Build) -> None:
    model = build('<ir_version: 8, opset_import: ["" : 17]> g (float[4] x, float low) => (float y) { y = Clip (x, low) }')
    assert read_activation(model, next(iter(model.graph))) is None


def test_chains_survive_the_file(build: Build) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,9,8] x) => (float y) <float[4,4,1,1] v, float[4,1,3,3] w>
        { [a] t = Conv (x, v) [b] s = Sigmoid (t) [c] u = Mul (s, t) [d] r = Conv <group = 4, pads = [1,1,1,1]> (u, w) [e] y = Add (r, x) }"""
    )
    fused = fuse(model).model
    loaded = ir.from_proto(ir.to_proto(fused))
    chain = read_chain(loaded, next(iter(loaded.graph)))
    assert chain == read_chain(fused, next(iter(fused.graph)))
    assert chain is not None
    assert (chain.operator, chain.residual, chain.nodes) == ("SeparableConv", "x", ("a", "b", "c", "d", "e"))
    assert chain.stages[0].activation == Activation("silu")


@pytest.mark.parametrize(
    ("weight_shape", "group", "kind"),
    [
        ((8, 4, 3, 3), 1, "dense"),
        ((8, 4, 1, 1), 1, "pointwise"),
        ((8, 1, 3, 3), 4, "depthwise"),
        ((4, 1, 1), 4, "depthwise"),
        ((8, 2, 3), 2, "grouped"),
        ((8, 2, 1), 2, "grouped"),
        ((1, 1, 3, 3), 1, "dense"),
    ],
)
def test_kinds(weight_shape: tuple[int, ...], group: int, kind: str) -> None:
    assert conv_kind(weight_shape, group) == kind
