from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from sepwise import models
from sepwise.passes import fuse, load_model, read_chain
from sepwise.passes.equivalence import GraphReference, compare_graph, sample_inputs

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

PASSES = [
    "sink_transpose",
    "fold_transpose",
    "fold_pad",
    "recognise_activation",
    "fold_batch_norm",
    "fold_affine",
    "fuse_activation",
    "fuse_residual",
    "group_separable",
]

BLOCK = """<ir_version: 7, opset_import: ["" : {opset}]>
g (float[1,4,9,8] x) => (float y)
<float[6,4,1,1] v, float[6] g1, float[6] b1, float[6] m1, float[6] var1,
 float[6,1,3,3] w, float[6] g2, float[6] b2, float[6] m2, float[6] var2, float[4,6,1,1] u, float[4,1,1] k,
 float zero = {{0}}, float six = {{6}}, float three = {{3}}>
{{
  [expand] a = Conv (x, v)
  [norm1] b = BatchNormalization (a, g1, b1, m1, var1)
  [p] c = Add (b, three) [q] d = Clip (c, zero, six) [r] e = Mul (b, d) [s] f = Div (e, six)
  [depthwise] h = Conv <group = 6, pads = [1,1,1,1]> (f, w)
  [scale] i = Mul (h, six)
  [norm2] j = BatchNormalization (i, g2, b2, m2, var2)
  [relu6] l = Clip (j, zero, six)
  [project] m = Conv (l, u)
  [shift] n = Add (m, k)
  [add] o = Add (n, x)
  [last] y = Relu (o)
}}
"""


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_a_whole_block(build: Build, equivalent: Equivalent, opset: int) -> None:
    model = build(BLOCK.format(opset=opset))
    before = ir.to_proto(model)
    report = fuse(model)
    assert ir.to_proto(model) == before
    assert report.operators == {"InvertedResidual": 1}
    assert [(each.name, each.fired) for each in report.passes] == list(zip(PASSES, [0, 0, 0, 1, 2, 2, 2, 1, 1], strict=True))
    (node,) = report.model.graph
    chain = read_chain(report.model, node)
    assert chain is not None
    assert [stage.nodes for stage in chain.stages] == [
        ("expand", "norm1", "p", "q", "r", "s"),
        ("depthwise", "scale", "norm2", "relu6"),
        ("project", "shift"),
    ]
    assert chain.nodes[-2:] == ("add", "last")
    equivalent(model, report.model)
    equivalent(model, fuse(model, inline=True).model)


def test_stages(build: Build, equivalent: Equivalent) -> None:
    model = build(BLOCK.format(opset=17))
    report = fuse(model, keep_stages=True)
    names = [name for name, _ in report.stages]
    assert names == ["canonicalize", "recognise_activation", "fold_batch_norm", "fold_affine", "fold_batch_norm", *PASSES[6:]]
    stages = [stage for _, stage in report.stages]
    equivalent(model, stages[1], exact=True)
    equivalent(stages[4], stages[-1], exact=True)
    assert ir.to_proto(stages[-1]) == ir.to_proto(report.model)
    assert fuse(model).stages == ()


def test_refusals_are_pairs_of_node_and_reason(build: Build) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,9] x) => (float y, float c) <float[4,2,3] w> { [conv] c = Conv (x, w) [act] y = Relu (c) }"""
    )
    refused = {each.name: each.refused for each in fuse(model).passes}
    assert refused["fuse_activation"] == (("act", "the output 'c' of Conv 'conv' is a graph output"),)
    assert refused["fold_batch_norm"] == ()


def test_fusing_twice_changes_nothing(build: Build) -> None:
    fused = fuse(build(BLOCK.format(opset=17))).model
    again = fuse(fused)
    assert not any(each.fired for each in again.passes)
    assert ir.to_proto(again.model) == ir.to_proto(fused)


def test_the_result_is_deterministic(build: Build) -> None:
    first, second = (ir.to_proto(fuse(build(BLOCK.format(opset=17))).model).SerializeToString() for _ in range(2))
    assert first == second


def test_an_unknown_function_domain_is_gone(build: Build) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[1,2,9] x) => (float[1,2,9] y) <float[2,2,1] w = {1, 2, 3, 4}> { y = local.Block (x, w) }
        <domain: "local", opset_import: ["" : 17]>
        Block (x, w) => (y) { c = Conv (x, w) y = Relu (c) }"""
    )
    report = fuse(model)
    assert report.operators == {"FusedConv": 1}
    assert set(report.model.opset_imports) == {"", "sepwise"}


ZOO = {
    "mobilenet_v1": {"SeparableConv": 13, "FusedConv": 1},
    "mobilenet_v2": {"SeparableConv": 1, "InvertedResidual": 16, "FusedConv": 2},
    "mobilenet_v3_small": {"SeparableConv": 8, "InvertedResidual": 2},
    "separable_block": {"SeparableConv": 1},
    "depth_multiplier": {"SeparableConv": 2},
    "tcn_1d": {"InvertedResidual": 8},
    "x3d_block": {"SeparableConv": 1, "InvertedResidual": 1, "FusedConv": 3},
}

NARROW = {"mobilenet_v1": (1, 3, 32, 32), "mobilenet_v2": (1, 3, 32, 32), "mobilenet_v3_small": (1, 3, 32, 32)}


@pytest.mark.parametrize("name", ZOO)
def test_zoo(zoo_file: Callable[..., Path], name: str) -> None:
    options = {"shape": NARROW[name], "width": 0.25} if name in NARROW else {}
    model = load_model(zoo_file(name, **options))
    report = fuse(model, keep_stages=True)
    assert {operator: count for operator, count in report.operators.items() if operator in ZOO[name]} == ZOO[name]
    assert "BatchNormalization" not in report.operators
    reference = GraphReference(model, [sample_inputs(model, 0)])
    for stage, snapshot in report.stages:
        for check in compare_graph(reference, snapshot):
            assert check.passed, (stage, check)
    folded = next(index for index, (stage, _) in enumerate(report.stages) if stage == "fuse_activation") - 1
    for check in compare_graph(report.stages[folded][1], report.model, sample_inputs(model, 0), exact=True):
        assert check.passed, check


@pytest.mark.nightly
@pytest.mark.parametrize("name", models.names())
def test_the_whole_zoo_at_full_size(zoo_file: Callable[..., Path], name: str) -> None:
    model = load_model(zoo_file(name))
    report = fuse(model)
    assert "BatchNormalization" not in report.operators
    for rewritten in (report.model, fuse(model, inline=True).model):
        for check in compare_graph(model, rewritten, sample_inputs(model, 0)):
            assert check.passed, check
