"""Transposed convolutions as convolutions and a rearrangement."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.generic import GenericWorkload
from sepwise.lowering.importer import import_graph
from sepwise.lowering.selection import Selector
from sepwise.lowering.subpixel import PhaseConv, Transposed, crop_begins
from sepwise.lowering.verify import verify_model
from sepwise.lowering.workload import ConvWorkload
from sepwise.passes import canonicalize
from sepwise.passes.equivalence import Oracle

GEOMETRIES: dict[int, list[tuple[str, tuple[int, ...]]]] = {
    1: [
        ("kernel_shape=[4], strides=[2], pads=[1,1]", (4,)),
        ("kernel_shape=[3], strides=[3], dilations=[2]", (3,)),
        ('kernel_shape=[5], strides=[2], auto_pad="SAME_LOWER"', (5,)),
    ],
    2: [
        ("kernel_shape=[2,2], strides=[2,2]", (2, 2)),
        ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (3, 3)),
        ("kernel_shape=[5,2], strides=[3,1], pads=[0,1,2,0]", (5, 2)),
        ("kernel_shape=[2,3], strides=[3,3]", (2, 3)),
        ("kernel_shape=[3,3], dilations=[2,3]", (3, 3)),
        ("kernel_shape=[3,2], strides=[2,4], dilations=[2,2], pads=[1,0,0,1]", (3, 2)),
        ("kernel_shape=[3,3], strides=[2,3], dilations=[3,2]", (3, 3)),
        ('kernel_shape=[4,3], strides=[2,2], auto_pad="SAME_UPPER"', (4, 3)),
        ("kernel_shape=[3,3], strides=[2,2], output_shape=[10,13]", (3, 3)),
        ("kernel_shape=[4,4], strides=[6,5]", (4, 4)),
    ],
    3: [
        ("kernel_shape=[2,3,3], strides=[2,2,1], pads=[0,1,1,0,1,1]", (2, 3, 3)),
        ("kernel_shape=[3,1,2], strides=[2,1,2], dilations=[2,1,1]", (3, 1, 2)),
    ],
}

SIZES = {1: (7,), 2: (5, 7), 3: (2, 4, 5)}

INPUTS = 6


def model(rank: int, groups: int, channels: int) -> ir.Model:
    """One transposed convolution of every geometry over one input, each with a ReLU behind it."""
    rng = np.random.default_rng(0)
    nodes, initializers, outputs = [], [], []
    for index, (attributes, kernel) in enumerate(GEOMETRIES[rank]):
        weight = rng.normal(size=(INPUTS, channels // groups, *kernel)).astype(np.float32)
        bias = rng.normal(size=channels).astype(np.float32)
        initializers += [onnx.numpy_helper.from_array(weight, f"w{index}"), onnx.numpy_helper.from_array(bias, f"b{index}")]
        text = f"[up{index}] t{index} = ConvTranspose <group={groups}, {attributes}> (x, w{index}, b{index})"
        nodes += [onnx.parser.parse_node(text), onnx.parser.parse_node(f"[relu{index}] y{index} = Relu (t{index})")]
        outputs.append(onnx.helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, None))
    source = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, INPUTS, *SIZES[rank]])
    graph = onnx.helper.make_graph(nodes, "transposed", [source], outputs, initializers)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


@pytest.mark.parametrize(("rank", "groups", "channels"), [(1, 1, 5), (2, 1, 17), (2, 3, 6), (2, 6, 6), (3, 3, 6)])
def test_every_geometry_is_within_its_bound(rank: int, groups: int, channels: int) -> None:
    verification = verify_model(model(rank, groups, channels), device.get("host"))
    assert verification.passed, [check for check in verification.checks if not check.passed]


@pytest.mark.parametrize(("rank", "groups"), [(1, 6), (2, 2), (3, 1)])
def test_no_geometry_is_left_to_the_generic_schedule(rank: int, groups: int) -> None:
    chosen = device.get("x86-64-v3")
    canonical = canonicalize(model(rank, groups, 6))
    graph = import_graph(canonical, chosen, Selector(chosen, 1), value_names={}).graph
    rearranged = {kernel.workload.operators for kernel in graph.kernels if isinstance(kernel.workload, GenericWorkload)}
    assert rearranged == {("DepthToSpace",)}
    assert sum(isinstance(kernel.workload, ConvWorkload) for kernel in graph.kernels) >= len(GEOMETRIES[rank])


@st.composite
def transposed_convolutions(draw: Any) -> Transposed:
    """Any transposed convolution of small numbers."""
    rank = draw(st.integers(1, 3))

    def numbers(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, strides, dilations, size = numbers(1, 4), numbers(1, 4), numbers(1, 4), numbers(1, 4)
    full = [(x - 1) * s + d * (k - 1) + 1 for x, s, d, k in zip(size, strides, dilations, kernel, strict=True)]
    begins = tuple(draw(st.integers(0, min(2, extent - 1))) for extent in full)
    output = tuple(
        extent - begin + draw(st.integers(-min(2, extent - begin - 1), stride - 1))
        for extent, begin, stride in zip(full, begins, strides, strict=True)
    )
    return Transposed(
        (2, groups * inputs, *size), (2, groups * outputs, *output), kernel, strides, dilations, begins, groups, None
    )


@settings(max_examples=50, deadline=None)
@given(transposed=transposed_convolutions(), seed=st.integers(0, 99))
def test_every_plan_computes_the_same(transposed: Transposed, seed: int) -> None:
    # Small integers: sums are exact in any order, so the comparison needs no tolerance.
    rng = np.random.default_rng(seed)
    inputs, outputs, groups = transposed.input_shape[1], transposed.output_shape[1], transposed.groups
    weight = rng.integers(-8, 8, (inputs, outputs // groups, *transposed.kernel)).astype(np.float32)
    bias = rng.integers(-8, 8, outputs).astype(np.float32)
    x = rng.integers(-8, 8, transposed.input_shape).astype(np.float32)
    expected = _conv_transpose(transposed, x, weight, bias)
    for plan in transposed.plans():
        found = np.broadcast_to(bias.reshape(-1, *[1] * len(transposed.kernel)), transposed.output_shape).copy()
        for conv in plan:
            _place(conv, _conv(conv, x, *conv.weights(weight, bias)), found)
        np.testing.assert_array_equal(found, expected)


def test_phases_are_shared_or_apart() -> None:
    one = Transposed((1, 4, 5, 5), (1, 8, 10, 10), (3, 3), (2, 2), (1, 1), (0, 0), 1, None)
    together, apart = one.plans()
    assert [conv.stage().kernel for conv in together] == [(2, 2)]
    assert [conv.stage().kernel for conv in apart] == [(2, 2), (2, 1), (1, 2), (1, 1)]
    assert sum(conv.stage().out_channels for conv in apart) == together[0].stage().out_channels == 32


def test_dilation_reaches_the_convolution_where_it_divides_and_idle_phases_vanish() -> None:
    dilated = Transposed((1, 4, 5), (1, 8, 13), (3,), (2,), (2,), (0,), 1, None)
    for (conv,) in dilated.plans():
        stage = conv.stage()
        assert (stage.kernel, stage.dilations, stage.out_channels) == ((1, 3), (1, 1), 8)
    strided = Transposed((1, 4, 5), (1, 8, 9), (3,), (1,), (2,), (0,), 1, None)
    assert [conv.stage().dilations for plan in strided.plans() for conv in plan] == [(1, 2), (1, 2)]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (5, 3), (3, 3)])
def test_what_a_given_size_cuts_off_is_what_onnx_runtime_cuts_off(mode: str, kernel: int, stride: int) -> None:
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)
    weight = np.ones((1, 1, kernel), np.float32)
    size = 5 * stride
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[stride], auto_pad=mode)
    full = _conv_transpose(
        Transposed(x.shape, (1, 1, 4 * stride + kernel), (kernel,), (stride,), (1,), (0,), 1, None), x, weight, np.zeros(1, np.float32)
    )
    (begin,) = crop_begins((size,), (4 * stride + kernel,), (0,), upper=mode == "SAME_UPPER")
    expected = np.pad(full, ((0, 0), (0, 0), (0, size)))[:, :, begin : begin + size]
    session = onnxruntime.InferenceSession(_proto(node, x, {"w": weight}).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def _place(conv: PhaseConv, subpixels: np.ndarray, target: np.ndarray) -> None:
    """Puts the pixels of one convolution, `(n, group, phase, channel, *q)`, where they belong."""
    whole = conv.transposed
    channels = whole.output_shape[1] // whole.groups
    split = subpixels.reshape(subpixels.shape[0], whole.groups, conv.phases, channels, *subpixels.shape[2:])
    by_group = target.reshape(target.shape[0], whole.groups, channels, *target.shape[2:])
    sizes = [len(axis.taps) for axis in conv.axes]
    for index in np.ndindex(*target.shape[2:]):
        at = [i + pad for i, pad in zip(index, whole.pads_begin, strict=True)]
        phase = [a % s - axis.first for a, s, axis in zip(at, whole.strides, conv.axes, strict=True)]
        if all(0 <= p < size for p, size in zip(phase, sizes, strict=True)):
            number = np.ravel_multi_index(phase, sizes)
            place = tuple(a // s for a, s in zip(at, whole.strides, strict=True))
            by_group[(..., *index)] = split[(slice(None), slice(None), number, slice(None), *place)]


def _proto(node: onnx.NodeProto, x: np.ndarray, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """One node as a model."""
    source = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    target = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * x.ndim)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph([node], "g", [source], [target], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def _conv(conv: PhaseConv, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The convolution of a stage in the oracle; pads below zero cut off."""
    stage = conv.stage()
    lifted = x[:, :, None] if x.ndim == 3 else x
    pads = [(0, 0), (0, 0), *zip(stage.pads_begin, stage.pads_end, strict=True)]
    padded = np.pad(lifted, [(max(begin, 0), max(end, 0)) for begin, end in pads])
    cut = tuple(slice(max(-begin, 0), size - max(-end, 0)) for (begin, end), size in zip(pads, padded.shape, strict=True))
    node = onnx.helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], name="c", group=stage.groups, dilations=list(stage.dilations)
    )
    y = _run(node, padded[cut], weight, bias)
    return y[:, :, 0] if x.ndim == 3 else y


def _conv_transpose(transposed: Transposed, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A transposed convolution in the oracle, all that the input spreads to, then cut or filled with the bias."""
    node = onnx.helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], name="c", strides=list(transposed.strides),
        dilations=list(transposed.dilations), group=transposed.groups,
    )  # fmt: skip
    full = _run(node, x, weight, bias)
    result = np.broadcast_to(bias.reshape(-1, *[1] * len(transposed.kernel)), transposed.output_shape).copy()
    begins, sizes = transposed.pads_begin, transposed.output_shape[2:]
    kept = full[(..., *(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)))]
    result[tuple(map(slice, kept.shape))] = kept
    return result


def _run(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One node in the oracle."""
    return Oracle(canonicalize(ir.from_proto(_proto(node, x, {"w": weight, "b": bias})))).run({"x": x})["y"]
