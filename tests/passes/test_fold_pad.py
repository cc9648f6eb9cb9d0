from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.fold_pad import FoldPadPass
from sepwise.passes.rewriting import original_nodes

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

PADDED = """<ir_version: 10, opset_import: ["" : 18]>
g (float[1,4,9,8] x) => (float y)
<float[8,4,3,3] w, int64[8] pads = {0,0,1,0,0,0,2,1}, float zero = {0}>
{
  [pad] c = Pad (x, pads, zero)
  [conv] y = Conv <strides = [2,1], pads = [1,0,0,0]> (c, w)
}
"""


def fold(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    folded = model.clone()
    result = FoldPadPass()(folded)
    assert result.modified == (result.fired > 0)
    again = FoldPadPass()(folded)
    assert not again.modified
    assert again.refused == result.refused
    return folded, result.fired, tuple(refusal.reason for refusal in result.refused)


def test_zeros_move_into_the_convolution(build: Build, equivalent: Equivalent) -> None:
    model = build(PADDED)
    folded, fired, refused = fold(model)
    assert (fired, refused) == (1, ())
    (conv,) = folded.graph
    assert list(conv.attributes["pads"].as_ints()) == [2, 0, 2, 1]
    assert original_nodes(conv) == (("pad", "conv"),)
    equivalent(model, folded, exact=True)


def test_axes_as_an_input(build: Build, equivalent: Equivalent) -> None:
    text = PADDED.replace("int64[8] pads = {0,0,1,0,0,0,2,1}", "int64[4] pads = {1,0,2,3}, int64[2] axes = {-1, 2}")
    model = build(text.replace("(x, pads, zero)", "(x, pads, zero, axes)"))
    folded, fired, _ = fold(model)
    assert fired == 1
    assert list(next(iter(folded.graph)).attributes["pads"].as_ints()) == [1, 1, 3, 2]
    equivalent(model, folded, exact=True)


def test_before_operator_set_11(build: Build, equivalent: Equivalent) -> None:
    text = PADDED.replace('"" : 18', '"" : 10').replace("Pad (x, pads, zero)", "Pad <pads = [0,0,1,0,0,0,2,1]> (x)")
    model = build(text.replace(", int64[8] pads = {0,0,1,0,0,0,2,1}, float zero = {0}", ""))
    folded, fired, _ = fold(model)
    assert fired == 1
    equivalent(model, folded, exact=True)


def test_same_padding_is_resolved_first(build: Build, equivalent: Equivalent) -> None:
    model = build(PADDED.replace("pads = [1,0,0,0]", 'auto_pad = "SAME_LOWER"'))
    folded, fired, _ = fold(model)
    assert fired == 1
    assert "auto_pad" not in next(iter(folded.graph)).attributes
    equivalent(model, folded, exact=True)


REFUSED = {
    "its mode is reflect, not constant": PADDED.replace("Pad (", 'Pad <mode = "reflect"> ('),
    "it pads with 1, not 0": PADDED.replace("float zero = {0}", "float zero = {1}"),
    "its pads are not constant": PADDED.replace("x) =>", "x, int64[8] pads) =>").replace(
        " int64[8] pads = {0,0,1,0,0,0,2,1},", ""
    ),
    "its value is not constant": PADDED.replace("x) =>", "x, float zero) =>").replace(", float zero = {0}", ""),
    "it pads with another value than 0": PADDED.replace('"" : 18', '"" : 10')
    .replace("Pad (x, pads, zero)", "Pad <pads = [0,0,1,0,0,0,2,1], value = 1.0> (x)")
    .replace(", int64[8] pads = {0,0,1,0,0,0,2,1}, float zero = {0}", ""),
    "it pads the batch or the channels": PADDED.replace("{0,0,1,0,0,0,2,1}", "{0,1,1,0,0,0,2,1}").replace(
        "[8,4,3,3]", "[8,5,3,3]"
    ),
    "it crops: pads (0, 0, 1, 0, 0, 0, -2, 1)": PADDED.replace("{0,0,1,0,0,0,2,1}", "{0,0,1,0,0,0,-2,1}"),
    "the output 'c' of Pad 'pad' is a graph output": PADDED.replace("float y", "float y, float c"),
    "the output 'c' of Pad 'pad' has a second consumer, 'other'": PADDED.replace("float y", "float y, float z").replace(
        "  [conv]", "  [other] z = Relu (c)\n  [conv]"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(build: Build, reason: str) -> None:
    model = build(REFUSED[reason])
    before = ir.to_proto(model)
    folded, fired, refused = fold(model)
    assert (fired, refused) == (0, (reason,))
    assert ir.to_proto(folded) == before


def test_refuses_axes_that_the_caller_may_override(build: Build) -> None:
    text = PADDED.replace("int64[8] pads = {0,0,1,0,0,0,2,1}", "int64[4] pads = {1,0,2,3}, int64[2] axes = {-1, 2}")
    model = build(text.replace("(x, pads, zero)", "(x, pads, zero, axes)"))
    model.graph.inputs.append(model.graph.initializers["axes"])
    assert fold(model)[1:] == (0, ("its axes are not constant",))


def test_refuses_unknown_same_padding(build: Build) -> None:
    model = build(PADDED.replace("pads = [1,0,0,0]", 'auto_pad = "SAME_LOWER"'))
    next(iter(model.graph)).outputs[0].shape = None
    assert fold(model)[1:] == (0, ("Conv 'conv' has auto_pad=SAME_LOWER and its input shape is not known",))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    outer=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    inner=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strides=st.lists(st.integers(1, 2), min_size=2, max_size=2),
)
def test_any_pads(build: Build, equivalent: Equivalent, outer: list[int], inner: list[int], strides: list[int]) -> None:
    pads = "{" + ",".join(map(str, [0, 0, *outer[:2], 0, 0, *outer[2:]])) + "}"
    text = PADDED.replace("{0,0,1,0,0,0,2,1}", pads).replace("[1,0,0,0]", str(inner)).replace("[2,1]", str(strides))
    model = build(text)
    folded, fired, _ = fold(model)
    assert fired == 1
    np.testing.assert_array_equal(next(iter(folded.graph)).attributes["pads"].as_ints(), np.add(outer, inner))
    equivalent(model, folded, exact=True)
