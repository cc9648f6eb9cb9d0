"""Workloads: kinds, shapes, multiply-accumulates, and keys that tell different computations apart."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering.workload import ConvKind, ConvWorkload, DTypes, LinearWorkload, Stage
from sepwise.passes.equivalence import Oracle
from sepwise.passes.vocabulary import Activation

PLAIN = Stage(8, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
DEPTHWISE = replace(PLAIN, out_channels=8, groups=8)
POINTWISE = Stage(8, 24, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))
CHAIN = ConvWorkload(2, (9, 7), (DEPTHWISE, POINTWISE), False, None, 8, 8)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, ConvKind.DENSE),
        ({"kernel": (1, 1)}, ConvKind.POINTWISE),
        ({"groups": 2}, ConvKind.GROUPED),
        ({"groups": 8}, ConvKind.DEPTHWISE),
        ({"groups": 8, "kernel": (1, 1)}, ConvKind.DEPTHWISE),
        ({"in_channels": 1}, ConvKind.DENSE),
        ({"groups": 2, "kernel": (1, 1)}, ConvKind.GROUPED),
    ],
)
def test_kinds(changes: dict[str, Any], kind: ConvKind) -> None:
    assert replace(PLAIN, **changes).kind is kind


def test_channels_of_a_group() -> None:
    assert (PLAIN.in_channels_per_group, PLAIN.out_channels_per_group) == (8, 16)
    multiplier = replace(PLAIN, groups=8)
    assert (multiplier.in_channels_per_group, multiplier.out_channels_per_group) == (1, 2)


@pytest.mark.parametrize(
    "changes", [{"kernel": (1, 2)}, {"strides": (1, 2)}, {"pads_begin": (1, 0)}, {"pads_end": (0, 1)}]
)
def test_flat_means_that_no_pixel_moves(changes: dict[str, Any]) -> None:
    assert POINTWISE.flat
    assert not replace(POINTWISE, **changes).flat


def test_padded_by_either_side() -> None:
    assert not POINTWISE.padded
    assert replace(POINTWISE, pads_begin=(1, 0)).padded
    assert replace(POINTWISE, pads_end=(0, 1)).padded


@st.composite
def stages(draw: st.DrawFn) -> tuple[Stage, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))
    axes = []
    for _ in range(rank):
        kernel, stride, dilation = (draw(st.integers(1, 3)) for _ in range(3))
        begin, end = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        size = draw(st.integers(max(1, dilation * (kernel - 1) + 1 - begin - end), 8))
        axes.append((size, kernel, stride, begin, end, dilation))
    sizes, kernels, strides, begins, ends, dilations = zip(*axes, strict=True)
    groups = draw(st.integers(1, 3))
    in_channels, out_channels = (groups * draw(st.integers(1, 2)) for _ in range(2))
    return Stage(in_channels, out_channels, groups, kernels, strides, begins, ends, dilations), sizes


@given(stages())
def test_output_shape_and_macs_are_those_of_onnx(drawn: tuple[Stage, tuple[int, ...]]) -> None:
    """With ones for weights and input, an unpadded convolution's outputs sum up to its multiply-accumulates."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stage, spatial = drawn
    pads = [*stage.pads_begin, *stage.pads_end]
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=stage.groups, pads=pads, strides=stage.strides, dilations=stage.dilations
    )
    weight = np.ones((stage.out_channels, stage.in_channels_per_group, *stage.kernel), np.float32)
    given_ = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, stage.in_channels, *spatial))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [given_], [result], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert isinstance(model, onnx.ModelProto)
    y = Oracle(model).run({"x": np.ones((1, stage.in_channels, *spatial), np.float32)})["y"]
    workload = ConvWorkload(3, spatial, (stage,), False, None, 8, 8)
    assert workload.output_shape == (3, *y.shape[1:])
    assert workload.macs == 3 * y.size * stage.in_channels_per_group * np.prod(stage.kernel)
    if not stage.padded:
        assert stage.macs(spatial) == y.sum()


def test_a_chain_adds_up() -> None:
    assert CHAIN.kind == "depthwise+pointwise"
    assert CHAIN.spatials == [(9, 7)] * 3
    assert CHAIN.output_shape == (2, 24, 9, 7)
    assert CHAIN.macs == 2 * 9 * 7 * (8 * 9 + 8 * 24)
    halved = replace(CHAIN, stages=(replace(DEPTHWISE, strides=(2, 2)), POINTWISE))
    assert halved.spatials == [(9, 7), (5, 4), (5, 4)]
    assert halved.macs == 2 * 5 * 4 * (8 * 9 + 8 * 24)


def test_equal_workloads_have_equal_keys() -> None:
    again = ConvWorkload(2, (9, 7), (replace(DEPTHWISE), replace(POINTWISE)), False, None, 8, 8, DTypes())
    assert again == CHAIN
    assert again.key == CHAIN.key


def test_whatever_differs_shows_in_the_key() -> None:
    clip = Activation("clip", (0.0, 6.0))
    changes: list[dict[str, Any]] = [
        {"batch": 1},
        {"spatial": (9, 8)},
        {"residual": True},
        {"residual": True, "post_activation": clip},
        {"input_lanes": 16},
        {"output_lanes": 16},
        {"dtypes": DTypes("int8", "int8", "int32", "int8")},
        {"stages": (DEPTHWISE,)},
        {"stages": (POINTWISE, DEPTHWISE)},
    ]
    stage_changes: list[dict[str, Any]] = [
        {"in_channels": 9},
        {"out_channels": 16},
        {"groups": 4},
        {"kernel": (5, 3)},
        {"strides": (1, 2)},
        {"pads_begin": (0, 1)},
        {"pads_end": (0, 1)},
        {"dilations": (2, 1)},
        {"activation": clip},
        {"activation": Activation("clip", (0.0, 6.5))},
        {"activation": Activation("relu")},
    ]
    changes += [{"stages": (replace(DEPTHWISE, **change), POINTWISE)} for change in stage_changes]
    changes += [{"stages": (DEPTHWISE, replace(POINTWISE, activation=clip))}]
    keys = [CHAIN.key, *(replace(CHAIN, **change).key for change in changes)]
    same = [pair for pair in itertools.combinations(range(len(keys)), 2) if keys[pair[0]] == keys[pair[1]]]
    assert not same


def test_a_key_keeps_every_digit_of_a_parameter() -> None:
    near = np.nextafter(np.float32(6.0), np.float32(7.0))
    keys = {LinearWorkload(1, 2, 3, Activation("clip", (0.0, limit))).key for limit in (6.0, float(near))}
    assert len(keys) == 2


def test_linear() -> None:
    product = LinearWorkload(5, 7, 11)
    assert (product.kind, product.macs) == ("linear", 5 * 7 * 11)
    others = [replace(product, rows=6), replace(product, in_features=8), replace(product, out_features=12)]
    others += [replace(product, activation=Activation("relu")), replace(product, dtypes=DTypes(input="float16"))]
    assert len({product.key, *(other.key for other in others)}) == 6


def test_types_in_one_word_where_they_agree() -> None:
    assert str(DTypes()) == "float32"
    assert str(DTypes("int8", "int8", "int32", "int8")) == "int8-int8-int32-int8"
