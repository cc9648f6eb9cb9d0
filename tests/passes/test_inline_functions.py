from collections.abc import Callable

import onnx_ir as ir

from sepwise.passes import fuse
from sepwise.passes.inline_functions import InlineFunctionsPass
from sepwise.passes.rewriting import original_nodes

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,9,8] x) => (float y)
<float[4,4,1,1] v, float[4] b, float[4,1,3,3] w, float[4,4,1,1] u, float zero = {0}, float three = {3}, float six = {6}>
{
  [expand] c = Conv (x, v, b)
  [a1] a = Add (c, three) [a2] d = Clip (a, zero, six) [a3] m = Mul (c, d) [a4] e = Div (m, six)
  [depthwise] f = Conv <group = 4, pads = [1,1,1,1]> (e, w)
  [relu6] h = Clip (f, zero, six)
  [project] i = Conv (h, u)
  [add] y = Add (i, x)
}
"""


def test_inlining_is_the_inverse_of_fusing(build: Build, equivalent: Equivalent) -> None:
    model = build(TEXT)
    plain = fuse(model, inline=True).model
    assert [(node.domain, node.op_type, node.name) for node in plain.graph] == [
        (node.domain, node.op_type, node.name) for node in model.graph
    ]
    assert not plain.functions
    assert plain.opset_imports == {"": 17}
    assert all(original_nodes(node) == ((node.name,),) for node in plain.graph)
    equivalent(model, plain, exact=True)


def test_folded_names_stay_with_their_convolution(build: Build) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,9,8] x) => (float y)
        <float[4,4,1,1] v, float[4] gamma, float[4] beta, float[4] mean, float[4] var>
        {
          [conv] c = Conv (x, v)
          [norm] n = BatchNormalization (c, gamma, beta, mean, var)
          [act] y = Relu (n)
        }"""
    )
    conv, act = fuse(model, inline=True).model.graph
    assert (conv.name, original_nodes(conv)) == ("conv", (("conv", "norm"),))
    assert (act.name, original_nodes(act)) == ("act", (("act",),))


def test_refuses_a_function_that_is_missing(build: Build) -> None:
    fused = fuse(build(TEXT)).model
    (node,) = fused.graph
    fused.functions.clear()
    result = InlineFunctionsPass()(fused)
    assert not result.modified
    assert [refusal.reason for refusal in result.refused] == [f"the model has no function sepwise::{node.op_type}"]


def test_twice_in_a_row(build: Build) -> None:
    plain = fuse(build(TEXT), inline=True).model
    assert not InlineFunctionsPass()(plain).modified
