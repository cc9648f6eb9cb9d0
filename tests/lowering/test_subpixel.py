"""Transposed convolutions as convolutions of more channels and a rearrangement."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.subpixel import Transposed
from sepwise.lowering.verify import verify_model
from sepwise.passes import canonicalize
from sepwise.passes.equivalence import Oracle

GEOMETRIES = [
    ("kernel_shape=[2,2], strides=[2,2]", (2, 2), (10, 14)),
    ("kernel_shape=[4,4], strides=[2,2], pads=[1,1,1,1]", (4, 4), (10, 14)),
    ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (3, 3), (10, 14)),
    ("kernel_shape=[5,2], strides=[3,1], pads=[0,1,2,0]", (5, 2), (15, 7)),
    ("kernel_shape=[2,3], strides=[3,3]", (2, 3), (14, 21)),
    ("kernel_shape=[3,3]", (3, 3), (7, 9)),
]


def model(channels: int) -> ir.Model:
    """One transposed convolution of every geometry over one input, each with a ReLU behind it."""
    rng = np.random.default_rng(0)
    nodes, initializers, outputs = [], [], []
    for index, (attributes, kernel, size) in enumerate(GEOMETRIES):
        weight = rng.normal(size=(6, channels, *kernel)).astype(np.float32)
        bias = rng.normal(size=channels).astype(np.float32)
        initializers += [onnx.numpy_helper.from_array(weight, f"w{index}"), onnx.numpy_helper.from_array(bias, f"b{index}")]
        text = f"[up{index}] t{index} = ConvTranspose <{attributes}> (x, w{index}, b{index})"
        nodes += [onnx.parser.parse_node(text), onnx.parser.parse_node(f"[relu{index}] y{index} = Relu (t{index})")]
        outputs.append(onnx.helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, [2, channels, *size]))
    source = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 6, 5, 7])
    graph = onnx.helper.make_graph(nodes, "transposed", [source], outputs, initializers)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


@pytest.mark.parametrize("channels", [1, 5, 32])
def test_every_geometry_is_within_its_bound(channels: int) -> None:
    verification = verify_model(model(channels), device.get("host"))
    assert verification.passed, [check for check in verification.checks if not check.passed]
    _, report = build_program(model(channels), device.get("host"))
    assert report.strategy_mac_share == 1.0
    assert not report.generic_convolutions


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_the_rearranged_weights_compute_the_same(kernel: tuple[int, int], strides: tuple[int, int], seed: int) -> None:
    size = tuple((extent - 1) * stride + k for extent, stride, k in zip((3, 4), strides, kernel, strict=True))
    transposed = Transposed((1, 2, 3, 4), (1, 3, *size), kernel, strides, (0, 0), None)
    rng = np.random.default_rng(seed)
    # Small integers: sums are exact in any order, so the comparison needs no tolerance.
    weight = rng.integers(-8, 8, (2, 3, *kernel)).astype(np.float32)
    bias = rng.integers(-8, 8, 3).astype(np.float32)
    x = rng.integers(-8, 8, (1, 2, 3, 4)).astype(np.float32)
    stage = transposed.stage()
    subpixels = _conv(x, *transposed.weights(weight, bias), (*stage.pads_begin, *stage.pads_end))
    expected = _conv_transpose(x, weight, bias, strides)
    found = np.empty_like(expected)
    for index in np.ndindex(*size):
        phase = np.ravel_multi_index([i % s for i, s in zip(index, strides, strict=True)], strides)
        place = tuple(i // s for i, s in zip(index, strides, strict=True))
        found[(0, slice(None), *index)] = subpixels[(0, slice(phase * 3, phase * 3 + 3), *place)]
    np.testing.assert_array_equal(found, expected)


def _run(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One node in the oracle."""
    source = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    target = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * x.ndim)
    constants = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")]
    graph = onnx.helper.make_graph([node], "g", [source], [target], constants)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return Oracle(canonicalize(ir.from_proto(proto))).run({"x": x})["y"]


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, pads: tuple[int, ...]) -> np.ndarray:
    return _run(onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c", pads=list(pads)), x, weight, bias)


def _conv_transpose(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="c", strides=list(strides))
    return _run(node, x, weight, bias)
