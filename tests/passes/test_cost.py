from collections.abc import Callable

import onnx_ir as ir

from sepwise.passes import fuse, layer_costs
from sepwise.passes.cost import LayerCost, SeparableCost

Build = Callable[..., ir.Model]

HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'


def test_three_to_four_channels(build: Build) -> None:
    """The textbook example: 108 parameters as a standard convolution, 27 + 12 = 39 separable."""
    model = build(
        HEAD
        + """g (float[1,3,12,10] x) => (float y) <float[3,1,3,3] w, float[4,3,1,1] v>
        { [dw] c = Conv <group = 3> (x, w) [pw] y = Conv (c, v) }"""
    )
    cost = layer_costs(model)
    assert [layer.parameters for layer in cost.layers] == [27, 12]
    assert cost.separable == (SeparableCost(("dw", "pw"), 39, 39 * 80, 108, 108 * 80),)
    assert (cost.parameters, cost.macs) == (39, 39 * 80)


def test_pointwise_first(build: Build) -> None:
    model = build(
        HEAD
        + """g (float[1,3,12,10] x) => (float y) <float[3,1,3,3] w, float[4,3,1,1] v, float[4,1,3,3] u>
        { [pw] c = Conv (x, v) [dw] y = Conv <group = 4> (c, u) }"""
    )
    assert layer_costs(model).separable == (SeparableCost(("pw", "dw"), 48, 12 * 120 + 36 * 80, 108, 108 * 80),)


def test_kinds_biases_and_folded_norms(build: Build) -> None:
    model = build(
        HEAD
        + """g (float[2,4,6,6] x) => (float y)
        <float[8,2,3,3] w, float[8] b, float[8] gamma, float[8] beta, float[8] mean, float[8] var, float[8,5,2,2] t, float[180,7] k, float[7] z>
        {
          [conv] c = Conv <group = 2, pads = [1,1,1,1], strides = [2,2]> (x, w, b)
          [norm] n = BatchNormalization (c, gamma, beta, mean, var)
          [up] u = ConvTranspose <strides = [2,2]> (n, t)
          f = Flatten (u)
          [fc] y = Gemm (f, k, z)
        }"""
    )
    assert layer_costs(model).layers == (
        LayerCost("conv", ("conv", "norm"), "grouped", (2, 4, 6, 6), (2, 8, 3, 3), 152, 2 * 9 * 144, 296, 2 * 9 * 288),
        LayerCost("up", ("up",), "transposed", (2, 8, 3, 3), (2, 5, 6, 6), 160, 2 * 9 * 160, 160, 2 * 9 * 160),
        LayerCost("fc", ("fc",), "linear", (2, 180), (2, 7), 1267, 2520, 1267, 2520),
    )


def test_products(build: Build) -> None:
    model = build(
        HEAD
        + """g (float[2,3,4] x, float[5,3] a) => (float y, float z) <float[4,6] w, float[5,7] k>
        { [left] y = MatMul (x, w) [turned] z = Gemm <transA = 1> (a, k) }"""
    )
    assert [(layer.parameters, layer.macs) for layer in layer_costs(model).layers] == [(24, 144), (35, 105)]


def test_original_and_fused_models_cost_the_same(build: Build) -> None:
    model = build(
        HEAD
        + """g (float[1,4,9,8] x) => (float y) <float[6,4,1,1] v, float[6,1,3,3] w, float[4,6,1,1] u>
        { [p] a = Conv (x, v) b = Relu (a) [q] c = Conv <group = 6, pads = [1,1,1,1]> (b, w) d = Relu (c) [r] e = Conv (d, u) y = Add (e, x) }"""
    )
    assert layer_costs(model) == layer_costs(fuse(model).model)
    assert layer_costs(model).separable[0].layers == ("q", "r")
