from collections.abc import Callable, Sequence

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.chains import family, read_chain
from sepwise.passes.fuse_activation import FuseActivationPass
from sepwise.passes.fuse_residual import FuseResidualPass
from sepwise.passes.group_separable import GroupSeparablePass
from sepwise.passes.rewriting import RewriteResult

Build = Callable[..., ir.Model]
InRank = Callable[[str, int], str]
Equivalent = Callable[..., None]


def network(layers: str, *, relu: Sequence[int] = (), tail: str = "", outputs: str = "float y") -> str:
    """Writes a chain of layers: `d` depthwise 3x3 with padding, `p` pointwise, `c` dense 3x3, `g` grouped pointwise.

    Values are v0, v1, ...; layers in `relu` have a Relu behind them. `y` is the last value unless `tail` makes it.
    """
    kinds = {
        "d": ("4,1,3,3", "group = 4, pads = [1,1,1,1]"),
        "p": ("4,4,1,1", ""),
        "c": ("4,4,3,3", "pads = [1,1,1,1]"),
        "g": ("4,2,1,1", "group = 2"),
    }
    weights, lines, last = [], [], "x"
    for index, kind in enumerate(layers):
        shape, attributes = kinds[kind]
        weights.append(f"float[{shape}] w{index}, float[4] b{index}")
        lines.append(f"[n{index}] v{index} = Conv <{attributes}> ({last}, w{index}, b{index})".replace(" <>", ""))
        last = f"v{index}"
        if index in relu:
            lines.append(f"[r{index}] u{index} = Relu ({last})")
            last = f"u{index}"
    body = "\n  ".join([*lines, tail or f"y = Identity ({last})"])
    return f"""<ir_version: 10, opset_import: ["" : 17]>
g (float[2,4,9,8] x) => ({outputs}) <{", ".join(weights)}> {{
  {body}
}}"""


def group(model: ir.Model) -> tuple[ir.Model, int, tuple[tuple[str, str], ...]]:
    grouped = model.clone()
    FuseActivationPass()(grouped)
    FuseResidualPass()(grouped)
    result = GroupSeparablePass()(grouped)
    assert isinstance(result, RewriteResult)
    assert result.modified == (result.fired > 0)
    again = GroupSeparablePass()(grouped)
    assert not again.modified
    assert again.refused == result.refused
    return grouped, result.fired, tuple((refusal.node, refusal.reason) for refusal in result.refused)


RUNS = {
    "dp": ["SeparableConv"],
    "pd": ["SeparableConv"],
    "pdp": ["InvertedResidual"],
    "dpdp": ["SeparableConv", "SeparableConv"],
    "dpd": ["SeparableConv", "Conv"],
    "pdpd": ["SeparableConv", "SeparableConv"],
    "pdpdp": ["InvertedResidual", "SeparableConv"],
    "pdppdp": ["InvertedResidual", "InvertedResidual"],
    "cdpdp": ["Conv", "SeparableConv", "SeparableConv"],
    "cdppdpp": ["Conv", "SeparableConv", "InvertedResidual", "Conv"],
    "dd": ["Conv", "Conv"],
    "pp": ["Conv", "Conv"],
    "cc": ["Conv", "Conv"],
    "dg": ["Conv", "Conv"],
    "dcp": ["Conv", "Conv", "Conv"],
}


@pytest.mark.parametrize("layers", RUNS)
def test_how_a_run_is_cut(build: Build, equivalent: Equivalent, layers: str) -> None:
    model = build(network(layers))
    grouped, fired, refused = group(model)
    operators = [family(node) or node.op_type for node in grouped.graph]
    assert operators == [*RUNS[layers], "Identity"]
    assert (fired, refused) == (len([name for name in RUNS[layers] if name != "Conv"]), ())
    equivalent(model, grouped, exact=True)


def test_epilogues_come_along(build: Build, equivalent: Equivalent) -> None:
    model = build(network("pdp", relu=(0, 1), tail="[add] y = Add (v2, x)"))
    grouped, fired, _ = group(model)
    assert fired == 1
    (node,) = grouped.graph
    assert node.op_type == "InvertedResidual_pwBiasRelu_dwBiasRelu_pwBias_add"
    chain = read_chain(grouped, node)
    assert chain is not None
    assert (chain.operator, chain.input, chain.residual, chain.output) == ("InvertedResidual", "x", "x", "y")
    assert [stage.weight for stage in chain.stages] == ["w0", "w1", "w2"]
    assert [stage.group for stage in chain.stages] == [1, 4, 1]
    assert [stage.nodes for stage in chain.stages] == [("n0", "r0"), ("n1", "r1"), ("n2",)]
    assert chain.nodes == ("n0", "r0", "n1", "r1", "n2", "add")
    assert set(node.attributes) >= {"expand_group", "depthwise_strides", "project_pads"}
    equivalent(model, grouped, exact=True)


def test_pointwise_with_padding(build: Build, equivalent: Equivalent) -> None:
    """Its border pixels see only the bias, which a depthwise stage computed too far would overwrite."""
    model = build(network("dp", relu=(1,)).replace("[n1] v1 = Conv (", "[n1] v1 = Conv <pads = [1,1,1,1]> ("))
    grouped, fired, _ = group(model)
    assert fired == 1
    chain = read_chain(grouped, next(iter(grouped.graph)))
    assert chain is not None
    assert [stage.pads for stage in chain.stages] == [(1, 1, 1, 1), (1, 1, 1, 1)]
    equivalent(model, grouped, exact=True)


def test_groups_share_functions(build: Build) -> None:
    grouped, fired, _ = group(build(network("dpdpdp", relu=(0, 1, 2, 3, 4, 5))))
    assert (fired, len(grouped.functions)) == (3, 1)


def test_weights_shared_by_two_groups(build: Build, equivalent: Equivalent) -> None:
    model = build(network("dpdp").replace("w2", "w0").replace("float[4,1,3,3] w0, float[4] b2", "float[4] b2"))
    grouped, fired, _ = group(model)
    assert fired == 2
    equivalent(model, grouped, exact=True)


REFUSED = {
    "the output 'v0' of Conv 'n0' has a second consumer, 'other'": network("dp", tail="[other] z = Neg (v0) y = Sub (v1, z)"),
    "the output 'v0' of Conv 'n0' is a graph output": network("dp", outputs="float y, float v0"),
    "the weight of 'n0' is not constant": network("dp")
    .replace("x) =>", "x, float[4,1,3,3] w0) =>")
    .replace("float[4,1,3,3] w0, float[4] b0", "float[4] b0"),
    "the weight of 'n1' is not constant": network("dp")
    .replace("x) =>", "x, float[4,4,1,1] w1) =>")
    .replace("float[4,4,1,1] w1, float[4] b1", "float[4] b1"),
    "it adds the residual 'x' before 'n1'": network("dp").replace(
        "[n1] v1 = Conv (v0", "[add] s = Add (v0, x) [n1] v1 = Conv (s"
    ),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, in_rank: InRank, reason: str, rank: int) -> None:
    model = build(in_rank(REFUSED[reason], rank))
    before = ir.to_proto(model)
    grouped, fired, refused = group(model)
    assert (fired, refused) == (0, (("n0", reason),))
    assert "residual" in reason or ir.to_proto(grouped) == before


def test_refuses_unknown_padding(build: Build) -> None:
    model = build(network("dp").replace("group = 4, pads = [1,1,1,1]", 'group = 4, auto_pad = "SAME_UPPER"'))
    model.graph.inputs[0].shape = ir.Shape([2, 4, "h", "w"])
    assert group(model)[1:] == (0, (("n0", "Conv 'n0' has auto_pad=SAME_UPPER and its input shape is not known"),))


def test_a_refusal_stays_where_the_neighbour_was_grouped(build: Build) -> None:
    model = build(network("dpdp", tail="[other] z = Neg (v1) y = Sub (v3, z)"))
    grouped, fired, refused = group(model)
    assert [family(node) or node.op_type for node in grouped.graph] == ["SeparableConv", "SeparableConv", "Neg", "Sub"]
    assert (fired, refused) == (2, ())
    model = build(network("pdp", tail="[other] z = Neg (v0) y = Sub (v2, z)"))
    grouped, fired, refused = group(model)
    assert (fired, refused) == (1, (("n0", "the output 'v0' of Conv 'n0' has a second consumer, 'other'"),))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_geometry(build: Build, equivalent: Equivalent, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    pairs = [st.integers(1, 2)] * rank

    def conv(index: int, kind: str, channels: int, source: str) -> tuple[str, str, int, str]:
        multiplier = data.draw(st.sampled_from([1, 2, 4])) if kind == "d" else 1
        outputs = channels * multiplier if kind == "d" else data.draw(st.integers(1, 5))
        kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)) if kind == "d" else [1] * rank
        pads = data.draw(st.lists(st.integers(0, 2 if kind == "d" else 1), min_size=2 * rank, max_size=2 * rank))
        strides, dilations = list(data.draw(st.tuples(*pairs))), list(data.draw(st.tuples(*pairs)))
        bias = data.draw(st.booleans())
        shape = ",".join(map(str, [outputs, 1 if kind == "d" else channels, *kernel]))
        group_count = channels if kind == "d" else 1
        line = (
            f"v{index} = Conv <group = {group_count}, pads = {pads}, strides = {strides}, dilations = {dilations}>"
            f" ({source}, w{index}{f', b{index}' if bias else ''})"
        )
        activation = data.draw(st.sampled_from(["", "Relu", "HardSwish", "Clip"]))
        last = f"v{index}"
        if activation:
            line += f"\nu{index} = {activation} ({last}{', zero, six' if activation == 'Clip' else ''})"
            last = f"u{index}"
        return f"float[{shape}] w{index}, float[{outputs}] b{index}", line, outputs, last

    layers = data.draw(st.sampled_from(["dp", "pd", "pdp"]))
    channels = data.draw(st.integers(2, 4))
    text, weights, last, width = [], ["float zero = {0}", "float six = {6}"], "x", channels
    for index, kind in enumerate(layers):
        if kind == "d" and width == 1:
            return  # one channel: its depthwise convolution is a dense one
        weight, line, width, last = conv(index, kind, width, last)
        weights.append(weight)
        text.append(line)
    extents = data.draw(st.lists(st.integers(9, 12), min_size=rank, max_size=rank))
    body = "\n".join(text)
    model = build(
        f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[2,{channels},{",".join(map(str, extents))}] x) => (float {last}) <{", ".join(weights)}> {{ {body} }}""",
        seed=data.draw(st.integers(0, 2**16)),
    )
    grouped, fired, _ = group(model)
    assert fired == 1
    assert len(grouped.graph) == 1
    equivalent(model, grouped, exact=True)


def test_a_wrong_padding_would_be_seen(build: Build, equivalent: Equivalent) -> None:
    model = build(network("dp").replace("[n1] v1 = Conv (", "[n1] v1 = Conv <pads = [1,1,1,1]> ("))
    grouped, _, _ = group(model)
    node = next(iter(grouped.graph))
    node.attributes["depthwise_pads"] = ir.AttrInt64s("depthwise_pads", [2, 2, 2, 2])
    node.attributes["pointwise_pads"] = ir.AttrInt64s("pointwise_pads", [0, 0, 0, 0])
    with pytest.raises(AssertionError, match="failed"):
        equivalent(model, grouped, exact=True)
