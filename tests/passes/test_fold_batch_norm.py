from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.fold_batch_norm import FoldBatchNormPass
from sepwise.passes.rewriting import original_nodes

Build = Callable[..., ir.Model]
InRank = Callable[[str, int], str]
Equivalent = Callable[..., None]

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\n'

AFTER = (
    HEAD.format(opset=17)
    + """
g (float[1,3,9,8] x) => (float y)
<float[8,3,3,3] w, float[8] b, float[8] gamma, float[8] beta, float[8] mean, float[8] var>
{
  [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
  [norm] y = BatchNormalization <epsilon = 0.1> (c, gamma, beta, mean, var)
}
"""
)

BEFORE = (
    HEAD.format(opset=17)
    + """
g (float[1,4,9,8] x) => (float y)
<float[8,4,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var>
{
  [norm] c = BatchNormalization (x, gamma, beta, mean, var)
  [conv] y = Conv (c, w)
}
"""
)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def fold(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    folded = model.clone()
    result = FoldBatchNormPass()(folded)
    assert result.modified == (result.fired > 0)
    again = FoldBatchNormPass()(folded)
    assert not again.modified
    assert again.refused == result.refused
    return folded, result.fired, tuple(refusal.reason for refusal in result.refused)


def test_after_a_convolution_with_bias(build: Build, equivalent: Equivalent) -> None:
    model = build(AFTER)
    folded, fired, refused = fold(model)
    assert (fired, refused, op_types(folded)) == (1, (), ["Conv"])
    (conv,) = folded.graph
    assert original_nodes(conv) == (("conv", "norm"),)
    assert [value.name for value in conv.inputs] == ["x", "w", "b"]
    assert conv.outputs[0].name == "y"
    assert set(folded.graph.initializers) == {"w", "b"}
    equivalent(model, folded)


def test_the_bias_is_scaled_too(build: Build) -> None:
    """The mistake of ncnn #1339: bias += a in place of bias * b + a."""
    text = AFTER.replace("epsilon = 0.1", "epsilon = 0.25")
    model = build(text, b=np.full(8, 100.0), gamma=np.full(8, 3.0), beta=np.zeros(8), mean=np.zeros(8), var=np.full(8, 0.75))
    folded, _, _ = fold(model)
    np.testing.assert_array_equal(folded.graph.initializers["b"].const_value.numpy(), 300.0)


def test_without_bias_one_is_made(build: Build, equivalent: Equivalent) -> None:
    model = build(AFTER.replace(", float[8] b,", ",").replace("(x, w, b)", "(x, w)"))
    folded, fired, _ = fold(model)
    assert fired == 1
    assert next(iter(folded.graph)).inputs[2].name == "conv.bias"
    equivalent(model, folded)


def test_without_bias_and_shift_none_is_made(build: Build, equivalent: Equivalent) -> None:
    text = AFTER.replace(", float[8] b,", ",").replace("(x, w, b)", "(x, w)")
    model = build(text, beta=np.zeros(8), mean=np.zeros(8))
    folded, fired, _ = fold(model)
    assert (fired, len(next(iter(folded.graph)).inputs)) == (1, 2)
    equivalent(model, folded)


def test_negative_and_tiny_scales(build: Build, equivalent: Equivalent) -> None:
    gamma, var = np.array([-1, 1e-6, 0, 2, -3, 1e3, 1, -1e-3]), np.array([1e-8, 1, 1e4, 0, 1, 1, 1e-8, 2])
    model = build(AFTER.replace("epsilon = 0.1", "epsilon = 0.00001"), gamma=gamma, var=var)
    folded, fired, _ = fold(model)
    assert fired == 1
    equivalent(model, folded)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_after_a_transposed_convolution(build: Build, equivalent: Equivalent, group: int) -> None:
    channels = 8 // group
    model = build(
        HEAD.format(opset=17)
        + f"""
        g (float[1,4,5,4] x) => (float y)
        <float[4,{channels},3,3] w, float[8] gamma, float[8] beta, float[8] mean, float[8] var>
        {{
          [conv] c = ConvTranspose <strides = [2,2], group = {group}> (x, w)
          [norm] y = BatchNormalization (c, gamma, beta, mean, var)
        }}
        """
    )
    folded, fired, _ = fold(model)
    assert (fired, op_types(folded)) == (1, ["ConvTranspose"])
    equivalent(model, folded)


def test_before_a_convolution_without_padding(build: Build, equivalent: Equivalent) -> None:
    model = build(BEFORE)
    folded, fired, refused = fold(model)
    assert (fired, refused, op_types(folded)) == (1, (), ["Conv"])
    assert original_nodes(next(iter(folded.graph))) == (("norm", "conv"),)
    equivalent(model, folded)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_before_a_padded_convolution_only_without_shift(
    build: Build, in_rank: InRank, equivalent: Equivalent, rank: int
) -> None:
    text = in_rank(BEFORE.replace("Conv (c", "Conv <pads = [0,1,0,0]> (c"), rank)
    assert fold(build(text))[1:] == (0, ("Conv 'conv' pads its input with zeros, which do not see the shift",))
    model = build(text, beta=np.zeros(4), mean=np.zeros(4))
    folded, fired, _ = fold(model)
    assert fired == 1
    equivalent(model, folded)


def test_before_a_convolution_with_same_padding(build: Build) -> None:
    model = build(BEFORE.replace("Conv (c", 'Conv <auto_pad = "SAME_UPPER"> (c'))
    assert fold(model)[1:] == (0, ("Conv 'conv' pads its input with zeros, which do not see the shift",))


def test_before_a_transposed_convolution(build: Build) -> None:
    model = build(BEFORE.replace("Conv (c", "ConvTranspose (c").replace("[8,4,3,3]", "[4,8,3,3]"))
    assert fold(model)[1:] == (0, ("the border of ConvTranspose 'conv' would not see the shift",))


def test_between_two_convolutions_the_second_takes_it_if_the_first_cannot(build: Build, equivalent: Equivalent) -> None:
    model = build(
        HEAD.format(opset=17)
        + """
        g (float[1,4,9,8] x) => (float y, float z)
        <float[4,4,1,1] v, float[8,4,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var>
        {
          [first] a = Conv (x, v)
          [norm] c = BatchNormalization (a, gamma, beta, mean, var)
          [second] y = Conv (c, w)
          [other] z = Relu (a)
        }
        """
    )
    folded, fired, _ = fold(model)
    assert (fired, op_types(folded)) == (1, ["Conv", "Conv", "Relu"])
    assert original_nodes(list(folded.graph)[1]) == (("norm", "second"),)
    equivalent(model, folded)


def test_inside_a_subgraph(build: Build) -> None:
    model = build(
        HEAD.format(opset=17)
        + """
        g (float[1,3,9,8] x, bool p) => (float y)
        <float[8,3,3,3] w, float[8] gamma, float[8] beta, float[8] mean, float[8] var>
        {
          y = If (p) <
            then_branch = t () => (float[1,8,7,6] a) {
              [conv] c = Conv (x, w)
              [norm] a = BatchNormalization (c, gamma, beta, mean, var)
            },
            else_branch = e () => (float[1,3,9,8] d) { d = Relu (x) }
          >
        }
        """
    )
    _, fired, refused = fold(model)
    assert (fired, refused) == (1, ())


REFUSED = {
    "it is in training mode": AFTER.replace("epsilon = 0.1", "training_mode = 1").replace("] y = Batch", "] y, m, v = Batch"),
    "its scale 'gamma' is not constant": AFTER.replace("x) =>", "x, float[8] gamma) =>").replace(" float[8] gamma,", ""),
    "its bias 'beta' is not constant": AFTER.replace("x) =>", "x, float[8] beta) =>").replace(" float[8] beta,", ""),
    "its variance 'var' is not constant": AFTER.replace("x) =>", "x, float[8] var) =>").replace(", float[8] var>", ">"),
    "its mean 'mean' is not constant": AFTER.replace("x) =>", "x, float[8] mean) =>").replace(
        ", float[8] mean, float[8] var>", ", float[8] var>"
    ),
    "its variance + epsilon is -2, not positive": AFTER,
    "no convolution beside it: its input comes from Relu 'conv' and its output is a graph output": AFTER.replace(
        "Conv <pads = [1,1,1,1]> (x, w, b)", "Relu (x)"
    ).replace("[1,3,9,8]", "[1,8,9,8]"),
    "the output 'c' of Conv 'conv' has a second consumer, 'other'": AFTER.replace(
        "=> (float y)", "=> (float y, float z)"
    ).replace("  [norm]", "  [other] z = Relu (c)\n  [norm]"),
    "the output 'c' of Conv 'conv' is a graph output": AFTER.replace("=> (float y)", "=> (float y, float c)"),
    "the weight of Conv 'conv' is not constant": AFTER.replace("x) =>", "x, float[8,3,3,3] w) =>").replace(
        "<float[8,3,3,3] w, ", "<"
    ),
    "the bias of Conv 'conv' is not constant": AFTER.replace("x) =>", "x, float[8] b) =>").replace(" float[8] b,", ""),
    "the weight 'w' of 'conv' is shared with 'other'": AFTER.replace("=> (float y)", "=> (float y, float z)").replace(
        "  [norm]", "  [other] z = Conv (x, w)\n  [norm]"
    ),
    "the weight 'w' of 'conv' is a graph output": AFTER.replace("=> (float y)", "=> (float y, float[8,3,3,3] w)"),
    "the folded constants of 'conv' are not finite in float32": AFTER,
}

CONSTANTS = {
    "its variance + epsilon is -2, not positive": {"var": np.full(8, -2.1)},
    "the folded constants of 'conv' are not finite in float32": {"gamma": np.full(8, 3e38), "w": np.full(1, 1e3)},
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, in_rank: InRank, reason: str, rank: int) -> None:
    model = build(in_rank(REFUSED[reason], rank), **CONSTANTS.get(reason, {}))
    before = ir.to_proto(model)
    folded, fired, refused = fold(model)
    assert (fired, refused) == (0, (reason,))
    assert ir.to_proto(folded) == before


def test_refuses_an_initializer_that_the_caller_may_override(build: Build) -> None:
    model = build(AFTER)
    model.graph.inputs.append(model.graph.initializers["var"])
    assert fold(model)[1:] == (0, ("its variance 'var' is not constant",))


def test_refuses_statistics_of_every_place(build: Build) -> None:
    text = AFTER.replace('"" : 17', '"" : 8').replace("epsilon = 0.1", "spatial = 0").replace("] mean", ",9,8] mean")
    assert fold(build(text.replace("] var", ",9,8] var")))[1:] == (0, ("it does not normalize over channels (spatial=0)",))


def test_refuses_the_training_form_of_old_operator_sets(build: Build) -> None:
    text = AFTER.replace('"" : 17', '"" : 13').replace("] y = Batch", "] y, m, v, sm, sv = Batch")
    model = build(text)
    assert fold(model)[1:] == (0, ("it is in training mode",))


def test_the_judgement_rejects_a_wrong_fold(build: Build, equivalent: Equivalent) -> None:
    model = build(AFTER)
    folded, _, _ = fold(model)
    bias = folded.graph.initializers["b"]
    assert bias.const_value is not None
    unscaled = model.graph.initializers["b"].const_value.numpy() + model.graph.initializers["beta"].const_value.numpy()
    bias.const_value = ir.tensor(unscaled, name="b")
    with pytest.raises(AssertionError, match="failed"):
        equivalent(model, folded)


@st.composite
def convolutions(draw: st.DrawFn) -> str:
    """A convolution in 1 to 3 dimensions between or beside batch norms."""
    rank = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 2, 4]))
    per_group_in, multiplier = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    channels, outputs = group * per_group_in, group * multiplier
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    extents = ",".join(str(draw(st.integers(6, 9))) for _ in range(rank))
    strides = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    pads = draw(st.one_of(st.just([0] * 2 * rank), st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)))
    bias = draw(st.booleans())
    before = draw(st.booleans())
    size = channels if before else outputs
    batch_norm = "BatchNormalization ({}, gamma, beta, mean, var)"
    conv = f"Conv <group = {group}, pads = {pads}, strides = {strides}, dilations = {dilations}> ({{}}, w{', b' if bias else ''})"
    first, second = (batch_norm, conv) if before else (conv, batch_norm)
    return (
        HEAD.format(opset=draw(st.sampled_from([11, 17, 21])))
        + f"""
        g (float[2,{channels},{extents}] x) => (float y)
        <float[{outputs},{per_group_in},{",".join(map(str, kernel))}] w, {f"float[{outputs}] b, " if bias else ""}
         float[{size}] gamma, float[{size}] beta, float[{size}] mean, float[{size}] var>
        {{
          [first] c = {first.format("x")}
          [second] y = {second.format("c")}
        }}
        """
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=convolutions(), seed=st.integers(0, 2**16))
def test_any_geometry(build: Build, equivalent: Equivalent, text: str, seed: int) -> None:
    model = build(text, seed=seed)
    padded = any(any(node.attributes.get_ints("pads", ())) for node in model.graph)
    batch_norm_first = next(iter(model.graph)).op_type == "BatchNormalization"
    folded, fired, _ = fold(model)
    assert fired == (0 if padded and batch_norm_first else 1)
    equivalent(model, folded)
