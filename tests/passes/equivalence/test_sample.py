import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence import KINDS, sample_inputs
from sepwise.passes.errors import InputError


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,8,9] x, int64[4] i, bool[2] b, float[5] v) => (float[5] y) '
        "{ y = Relu(v) }"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_types_shapes_and_seeds(model: onnx.ModelProto, kind: str) -> None:
    first, again, other = sample_inputs(model, 1, kind), sample_inputs(model, 1, kind), sample_inputs(model, 2, kind)
    assert {name: (x.dtype.name, x.shape) for name, x in first.items()} == {
        "x": ("float32", (2, 3, 8, 9)),
        "i": ("int64", (4,)),
        "b": ("bool", (2,)),
        "v": ("float32", (5,)),
    }
    np.testing.assert_equal(first, again)
    if kind != "zeros":
        assert not np.array_equal(first["x"], other["x"], equal_nan=True)


def test_impulses_are_few_ones(model: onnx.ModelProto) -> None:
    x = sample_inputs(model, 0, "impulse")["x"]
    assert set(np.unique(x)) == {0, 1}
    assert 1 <= x.sum() <= 4


def test_knees_are_met_exactly_and_almost(model: onnx.ModelProto) -> None:
    x = sample_inputs(model, 0, "knees")["x"]
    assert {-3, 0, 3, 6} <= set(np.unique(x).tolist())
    assert np.nextafter(np.float32(6), np.float32(np.inf)) in x


def test_subnormals_are_subnormal(model: onnx.ModelProto) -> None:
    x = np.abs(sample_inputs(model, 0, "subnormal")["x"])
    assert 0 < x.max() < np.finfo(np.float32).tiny


def test_nonfinite_inputs_have_few_of_them(model: onnx.ModelProto) -> None:
    wrong = sum(int((~np.isfinite(sample_inputs(model, seed, "nonfinite")["x"])).sum()) for seed in range(5))
    assert 1 <= wrong <= 60


def test_unknown_kinds_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="There is no kind of input 'gaussian'; use one of normal, uniform"):
        sample_inputs(model, 0, "gaussian")


def test_open_shapes_are_refused() -> None:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }')
    with pytest.raises(InputError, match=r"'x' has shape \(None, 3\); fix it first"):
        sample_inputs(model, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_without_axes_are_arrays(kind: str) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float x, bool b, uint8 i) => (float y) { y = Relu(x) }'
    for name, array in sample_inputs(onnx.parser.parse_model(text), 0, kind).items():
        assert isinstance(array, np.ndarray), name
        assert array.shape == ()


def test_booleans_take_both_values(model: onnx.ModelProto) -> None:
    first, second, third = (sample_inputs(model, seed)["b"] for seed in range(3))
    assert (first != second).all()
    assert third.dtype == bool
