"""Windows of any shape beside ONNX Runtime: 1-D to 3-D, groups, strides, dilations, uneven pads."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sepwise.passes.equivalence import Oracle, compare_kernel, run_with_bounds
from sepwise.passes.errors import InputError

SMALL = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(run_onnxruntime, node, x, constants, *, opset: int = 19) -> None:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    actual = run_onnxruntime(model, {"x": x})["y"]
    verdict = compare_kernel(actual, *run_with_bounds(model, {"x": x})["y"])
    assert verdict.passed, verdict


def per_axis(draw, rank: int, low: int, high: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))


@SMALL
@given(data=st.data())
def test_conv(run_onnxruntime, data) -> None:
    rank = data.draw(st.integers(1, 3), "rank")
    group, group_ic, multiplier = (data.draw(st.integers(1, 3), name) for name in ("group", "group_ic", "multiplier"))
    kernel, strides = per_axis(data.draw, rank, 1, 3), per_axis(data.draw, rank, 1, 3)
    dilations, pads = per_axis(data.draw, rank, 1, 2), per_axis(data.draw, 2 * rank, 0, 2)
    sizes = per_axis(data.draw, rank, 1, 7)
    for axis in range(rank):
        assume(sizes[axis] + pads[axis] + pads[axis + rank] >= (kernel[axis] - 1) * dilations[axis] + 1)
    rng = np.random.default_rng(0)
    oc = group * multiplier
    constants = {"w": rng.standard_normal((oc, group_ic, *kernel), np.float32)}
    if data.draw(st.booleans(), "bias"):
        constants["b"] = rng.standard_normal(oc, np.float32)
    x = rng.standard_normal((2, group * group_ic, *sizes), np.float32)
    node = helper.make_node(
        "Conv", ["x", *constants], ["y"], group=group, strides=strides, dilations=dilations, pads=pads, kernel_shape=kernel
    )
    check(run_onnxruntime, node, x, constants)


@SMALL
@given(data=st.data())
def test_conv_transpose(run_onnxruntime, data) -> None:
    rank = data.draw(st.integers(1, 3), "rank")
    group, group_ic, group_oc = (data.draw(st.integers(1, 3), name) for name in ("group", "group_ic", "group_oc"))
    kernel, strides = per_axis(data.draw, rank, 1, 3), per_axis(data.draw, rank, 1, 3)
    dilations, sizes = per_axis(data.draw, rank, 1, 2), per_axis(data.draw, rank, 1, 4)
    extra = [data.draw(st.integers(0, stride - 1)) for stride in strides]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [data.draw(st.integers(0, (extent - 1) // 2)) for extent in extents * 2]
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((group * group_ic, group_oc, *kernel), np.float32)}
    x = rng.standard_normal((2, group * group_ic, *sizes), np.float32)
    node = helper.make_node(
        *("ConvTranspose", ["x", "w"], ["y"]),
        group=group,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=extra,
        kernel_shape=kernel,
    )
    check(run_onnxruntime, node, x, constants)


@SMALL
@given(data=st.data())
def test_conv_transpose_to_the_same_size(run_onnxruntime, data) -> None:
    """A stride beyond the window leaves nothing to cut off, and the output shorter than input times stride."""
    rank, mode = data.draw(st.integers(1, 3), "rank"), data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    kernel, strides = per_axis(data.draw, rank, 1, 3), per_axis(data.draw, rank, 1, 3)
    dilations, sizes = per_axis(data.draw, rank, 1, 2), per_axis(data.draw, rank, 1, 5)
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((2, 3, *kernel), np.float32)}
    x = rng.standard_normal((1, 2, *sizes), np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=strides, dilations=dilations, auto_pad=mode)
    check(run_onnxruntime, node, x, constants)


@SMALL
@given(data=st.data())
def test_pools(run_onnxruntime, data) -> None:
    rank = data.draw(st.integers(1, 3), "rank")
    operator = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel, strides = per_axis(data.draw, rank, 1, 3), per_axis(data.draw, rank, 1, 3)
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    sizes = per_axis(data.draw, rank, 3, 8)
    attributes: dict[str, object] = {"ceil_mode": data.draw(st.integers(0, 1), "ceil")}
    if operator == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1), "include")
    x = np.random.default_rng(0).standard_normal((2, 2, *sizes), np.float32)
    node = helper.make_node(operator, ["x"], ["y"], kernel_shape=kernel, strides=strides, pads=pads, **attributes)
    check(run_onnxruntime, node, x, {})


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_kernel_shape_that_is_not_the_weights_is_an_error(operator: str) -> None:
    text = f"n (float[1,2,9,9] x, float[2,2,K,L] w) => (float[N,M,P,Q] y) {{ y = {operator} <kernel_shape = [3,5]> (x, w) }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 19]> {text}')
    with pytest.raises(InputError, match=r"kernel_shape \[3, 5\] does not fit a weight of shape"):
        Oracle(model).run({"x": np.zeros((1, 2, 9, 9)), "w": np.zeros((2, 2, 3, 3))})
