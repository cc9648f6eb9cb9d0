from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.passes.geometry import ConvGeometry, explicit_geometry, read_geometry
from sepwise.passes.rewriting import Refusal

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[1,4,{extents}] x) => (float y) <float[8,2,{kernel}] w> {{ y = Conv <group = 2{attributes}> (x, w) }}
"""


def conv(build: Build, extents: str = "9,8", kernel: str = "3,2", attributes: str = "") -> ir.Node:
    return next(iter(build(TEXT.format(extents=extents, kernel=kernel, attributes=attributes)).graph))


def test_defaults(build: Build) -> None:
    node = conv(build)
    assert not explicit_geometry(node)
    assert read_geometry(node) == ConvGeometry((3, 2), (1, 1), (0, 0, 0, 0), (1, 1), 2)


def test_valid(build: Build) -> None:
    assert read_geometry(conv(build, attributes=', auto_pad = "VALID"')) == ConvGeometry((3, 2), (1, 1), (0,) * 4, (1, 1), 2)


def test_unknown_weight_shape(build: Build) -> None:
    model = build(
        TEXT.format(extents="9,8", kernel="3,2", attributes="")
        .replace("y = Conv", "v = Identity (w) [c] y = Conv")
        .replace("(x, w)", "(x, v)")
    )
    node = list(model.graph)[-1]
    value = node.inputs[1]
    assert value is not None
    value.shape = None
    assert read_geometry(node) == Refusal("the weight shape of Conv 'c' is not known", "c")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    auto_pad=st.sampled_from(["SAME_UPPER", "SAME_LOWER"]),
    extents=st.lists(st.integers(3, 11), min_size=2, max_size=2),
    kernel=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    strides=st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_same_padding_is_what_onnx_runtime_does(
    build: Build, equivalent: Equivalent, auto_pad: str, extents: list[int], kernel: list[int], strides: list[int]
) -> None:
    text = TEXT.format(
        extents=",".join(map(str, extents)),
        kernel=",".join(map(str, kernel)),
        attributes=f', auto_pad = "{auto_pad}", strides = {strides}',
    )
    model = build(text)
    explicit = model.clone()
    node = next(iter(explicit.graph))
    geometry = read_geometry(node)
    assert isinstance(geometry, ConvGeometry)
    node.attributes.pop("auto_pad")
    node.attributes.update(geometry.attributes())
    assert explicit_geometry(node)
    equivalent(model, explicit, exact=True)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_of_a_dilated_convolution(build: Build, dilation: int) -> None:
    geometry = read_geometry(conv(build, "9", "3", f', auto_pad = "SAME_UPPER", dilations = [{dilation}]'))
    assert isinstance(geometry, ConvGeometry)
    assert geometry.pads == (dilation, dilation)
