from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.passes.folding import ConvFold, channel_vector, fold_after, fold_before, is_unpadded
from sepwise.passes.rewriting import Refusal

Build = Callable[..., ir.Model]

TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[1,4,6,6] x) => (float y) <float[6,2,3,3] w>
{{ [scale] s = Relu (x) [conv] c = Conv <group = 2{attributes}> (s, w) [behind] y = Relu (c) }}
"""


def nodes(build: Build, attributes: str = "") -> list[ir.Node]:
    return list(build(TEXT.format(attributes=attributes)).graph)


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ((), 4, True),
        ((1,), 4, True),
        ((3, 1, 1), 4, True),
        ((1, 3, 1, 1), 4, True),
        ((3,), 4, False),
        ((3, 1), 4, False),
        ((2, 3, 1, 1), 4, False),
        ((1, 1, 1, 1, 1), 4, False),
        ((4, 1, 1), 4, False),
    ],
)
def test_channel_vector(shape: tuple[int, ...], rank: int, expected: bool) -> None:
    vector = channel_vector(np.ones(shape), 3, rank)
    assert (vector is not None and vector.shape == (3,)) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("", True),
        (", pads = [0,0,0,0]", True),
        (", pads = [0,0,0,1]", False),
        (', auto_pad = "VALID"', True),
        (', auto_pad = "SAME_UPPER"', False),
    ],
)
def test_unpadded(build: Build, attributes: str, expected: bool) -> None:
    assert is_unpadded(nodes(build, attributes)[1]) == expected


def test_after(build: Build) -> None:
    _, conv, behind = nodes(build)
    scale = np.arange(1.0, 7.0)
    fold = fold_after(conv, behind, scale, np.zeros(6))
    assert isinstance(fold, ConvFold)
    assert fold.constants.bias is None
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    expected = weight.const_value.numpy().astype(np.float64) * scale.reshape(6, 1, 1, 1)
    np.testing.assert_array_equal(fold.constants.weight, expected.astype(np.float32))


def test_before_scales_the_channels_of_each_group(build: Build) -> None:
    scale_node, conv, _ = nodes(build)
    source = scale_node.inputs[0]
    assert source is not None
    fold = fold_before(conv, scale_node, source, np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4))
    assert isinstance(fold, ConvFold)
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    factors = np.array([[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3).reshape(6, 2, 1, 1)
    np.testing.assert_array_equal(fold.constants.weight, (weight.const_value.numpy() * factors).astype(np.float32))


def test_overflow_is_refused(build: Build) -> None:
    _, conv, behind = nodes(build)
    fold = fold_after(conv, behind, np.full(6, 1e40), np.zeros(6))
    assert fold == Refusal("the folded constants of 'conv' are not finite in float32", "behind")
