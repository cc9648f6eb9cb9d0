"""Operators that onnx's implementation computes for the oracle: set against ONNX Runtime, attribute by attribute."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from sepwise.passes.equivalence import Oracle
from sepwise.passes.equivalence.operators import OPERATORS
from sepwise.passes.equivalence.reference_operators import REFUSALS
from sepwise.passes.errors import InputError, UnsupportedError

RNG = np.random.default_rng(0)
UNIT = 2.0**-24


class Case(NamedTuple):
    """One node: its operator set, its inputs (None for one that is left out) and attributes."""

    operator: str
    version: int
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = {}

    def __str__(self) -> str:
        spelled = (f"{key}={getattr(value, 'tolist', lambda value=value: value)()}" for key, value in self.attributes.items())
        return f"{self.operator}{self.version}({', '.join(spelled)})"

    def model(self) -> onnx.ModelProto:
        """A network of this node alone; its floating-point tensors are inputs."""
        arrays = {f"x{i}": np.asarray(array) for i, array in enumerate(self.inputs) if array is not None}
        names = [f"x{i}" if array is not None else "" for i, array in enumerate(self.inputs)]
        floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
        graph = helper.make_graph(
            [helper.make_node(self.operator, names, ["y"], **self.attributes)],
            "case",
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape) for name, array in floats.items()],
            [helper.make_empty_tensor_value_info("y")],
            [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in floats],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.version)], ir_version=10)

    def feeds(self) -> dict[str, np.ndarray]:
        """Its floating-point tensors."""
        arrays = {f"x{i}": np.asarray(array) for i, array in enumerate(self.inputs) if array is not None}
        return {name: array for name, array in arrays.items() if array.dtype == np.float32}


def root_mean_square(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(array**2)))


def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


X = draw(1, 4, 8, 8)
GRID = RNG.uniform(-1.3, 1.3, (1, 6, 5, 2)).astype(np.float32)
ROIS = np.array([[0, 0, 5, 5], [1.3, 2.2, 6.7, 7.1]], np.float32)
QUERY, KEY, NARROW = draw(1, 4, 6, 8), draw(1, 4, 7, 8), draw(1, 2, 7, 8)


def recurrent(operator: str, gates: int, **attributes: Any) -> Case:
    """A recurrent layer of 5 features, 3 to 6 steps and 2 sequences; in both directions where it is asked for."""
    both = 2 if attributes.get("direction") == "bidirectional" else 1
    weights = (draw(both, 4 * gates, 5, scale=0.5), draw(both, 4 * gates, 4, scale=0.5), draw(both, 8 * gates, scale=0.3))
    return Case(operator, 14, (draw(6, 2, 5), *weights), {"hidden_size": 4, **attributes})


CASES = [
    *(
        Case("GridSample", version, (X, GRID), {"mode": mode, "padding_mode": padding, "align_corners": corners})
        for version, modes in ((16, ("bilinear", "nearest", "bicubic")), (20, ("linear", "nearest", "cubic")))
        for mode in modes
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
        if (mode.removeprefix("bi"), padding) != ("cubic", "border")
    ),
    *(
        Case("RoiAlign", 16, (X, ROIS, np.zeros(2, np.int64)),
             {"mode": mode, "sampling_ratio": ratio, "coordinate_transformation_mode": coordinates, "output_height": 3,
              "output_width": 2, "spatial_scale": 0.7})
        for mode in ("avg", "max") for ratio in (0, 2) for coordinates in ("half_pixel", "output_half_pixel")
    ),
    *(
        Case("LpPool", 18, (X,), {"p": p, "kernel_shape": [3, 2], **more})
        for p in (1, 2, 3)
        for more in ({"strides": [2, 1], "pads": [1, 0, 1, 1]}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]})
    ),
    *(Case("Trilu", 14, (X, np.array(k)), {"upper": upper}) for upper in (0, 1) for k in (-1, 0, 2)),
    *(Case("CumSum", 14, (X, np.array(2)), {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    *(
        Case("ScatterElements", 18, (X[0, 0], np.array([[0, 1, 0], [2, 1, 2]]), draw(2, 3)), {"axis": 1, "reduction": reduction})
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    *(
        Case("ScatterND", 18, (X[0, 0], np.array([[0], [3], [0]]), draw(3, 8)), {"reduction": reduction})
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    Case("GatherND", 13, (X, np.array([[[0, 1], [3, 2]]])), {"batch_dims": 1}),
    Case("Shrink", 9, (X,), {"lambd": 0.3, "bias": 0.1}),
    Case("DeformConv", 19, (X, draw(4, 4, 3, 3), draw(1, 36, 8, 8, scale=0.7)),
         {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "offset_group": 2}),
    Case("DeformConv", 19, (X, draw(4, 2, 3, 3), draw(1, 18, 4, 4, scale=0.7), draw(4), np.abs(draw(1, 9, 4, 4))),
         {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "group": 2}),
    Case("Col2Im", 18, (draw(1, 36, 16), np.array([8, 8]), np.array([3, 3])), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("Col2Im", 18, (draw(1, 36, 16), np.array([8, 8]), np.array([3, 3])), {"dilations": [2, 2]}),
    Case("ReverseSequence", 10, (X[0], np.array([3, 5, 2, 8])), {"batch_axis": 0, "time_axis": 1}),
    *(Case("AffineGrid", 20, (draw(1, 2, 3), np.array([1, 3, 5, 6])), {"align_corners": corners}) for corners in (0, 1)),
    *(Case("DFT", 20, (draw(1, 8, 1), None, np.array(1)), {"onesided": onesided}) for onesided in (0, 1)),
    *(Case("Einsum", 12, (X, X), {"equation": text}) for text in ("...ij,...kj->...ik", "bcij,bcij->bc", "bcij,bdij")),
    Case("Einsum", 12, (X,), {"equation": "bcii->bci"}),
    Case("Det", 11, (X,)),
    Case("ReduceLogSum", 18, (np.abs(X), np.array([1])), {"keepdims": 0}),
    Case("CenterCropPad", 18, (X, np.array([5, 11])), {"axes": [2, 3]}),
    Case("OneHot", 11, (np.array([[0, -1], [2, 9]]), np.array(4), np.array([0.5, 3], np.float32)), {"axis": 0}),
    Case("EyeLike", 9, (X[0, 0],), {"k": 1}),
    Case("MaxUnpool", 11, (X[:, :, :4, :4], np.arange(64).reshape(1, 4, 4, 4) * 4), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("Compress", 11, (X, np.array([1, 0, 1, 1], bool)), {"axis": 1}),
    Case("RMSNormalization", 23, (X, draw(8, 8)), {"axis": 2, "epsilon": 1e-2}),
    *(
        Case("Attention", 23, (QUERY, key, key[:, :, ::-1].copy(), *mask), more)
        for key, mask, more in (
            (KEY, (), {}), (NARROW, (), {}), (KEY, (), {"is_causal": 1}), (KEY, (), {"scale": 0.2}), (KEY, (), {"softcap": 1.5}),
            (KEY, (draw(6, 7),), {}),
        )
    ),
    *(
        Case("RotaryEmbedding", 23, (QUERY, draw(10, 4), draw(10, 4), np.arange(6).reshape(1, 6)), {"interleaved": interleaved})
        for interleaved in (0, 1)
    ),
    *(Case("Hardmax", version, (X,), {"axis": 1}) for version in (11, 13)),
    *(Case("MeanVarianceNormalization", 13, (X,), more) for more in ({}, {"axes": [1]}, {"axes": [0, 2, 3]})),
    *(
        recurrent(operator, gates, **more)
        for operator, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
        for more in ({}, {"direction": "reverse"}, {"direction": "bidirectional"})
    ),
    *(recurrent("GRU", 3, linear_before_reset=before) for before in (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_as_in_onnxruntime(case: Case) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, case.feeds())
    oracle, feeds = Oracle(case.model()), case.feeds()
    found = oracle.run(feeds)["y"]
    assert found.shape == expected.shape
    # Float32 rounds inputs, and then results of the same size; a sum of 256 products rounds it some four times in the mean square.
    rng, moved = np.random.default_rng(0), np.abs(found) * UNIT
    for _ in range(2):
        shifted = oracle.run({name: array * (1 + 2 * UNIT * rng.standard_normal(array.shape)) for name, array in feeds.items()})["y"]
        moved = np.maximum(moved, np.abs(shifted - found))
    assert root_mean_square(found - expected) <= 4 * root_mean_square(moved)


def test_cases_are_of_what_is_let_through() -> None:
    assert {case.operator for case in CASES} <= {*REFUSALS, *OPERATORS}
    assert not set(REFUSALS) & set(OPERATORS) - {"NonMaxSuppression"}


@pytest.mark.parametrize(
    ("case", "what"),
    [
        *(
            (recurrent(operator, gates, **{name: value}), name)
            for operator, gates, name, value in (
                ("LSTM", 4, "clip", 0.5), ("GRU", 3, "clip", 0.5), ("RNN", 1, "clip", 0.5), ("LSTM", 4, "input_forget", 1),
                ("LSTM", 4, "activations", ["HardSigmoid", "Tanh", "Tanh"]), ("GRU", 3, "activations", ["Sigmoid", "Relu"]),
                ("RNN", 1, "activations", ["Relu"]),
            )
        ),
        (Case("GridSample", 16, (X, GRID), {"mode": "bicubic", "padding_mode": "border"}), "cubic samples"),
        (Case("LpPool", 18, (X,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}), "ceil_mode"),
        (Case("DFT", 20, (draw(1, 8, 2), None, np.array(1)), {"inverse": 1}), "inverse"),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(case: Case, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"does not know this operator with {what}"):
        Oracle(case.model()).run(case.feeds())


def test_the_default_activations_may_be_spelled_out() -> None:
    plain = recurrent("LSTM", 4)
    spelled = plain._replace(attributes={**plain.attributes, "activations": ["Sigmoid", "Tanh", "Tanh"]})
    feeds = plain.feeds()
    np.testing.assert_array_equal(Oracle(plain.model()).run(feeds)["y"], Oracle(spelled.model()).run(feeds)["y"])


def test_sequences_that_are_cut_short_are_refused() -> None:
    case = recurrent("GRU", 3)
    with pytest.raises(UnsupportedError, match="sequence_lens"):
        Oracle(case._replace(inputs=(*case.inputs, np.array([5, 3], np.int32))).model()).run(case.feeds())


def test_weights_that_do_not_fit_are_an_error() -> None:
    case = recurrent("GRU", 3, hidden_size=5)
    with pytest.raises(InputError, match="hidden_size 5 does not fit weights"):
        Oracle(case.model()).run(case.feeds())


def test_what_nothing_was_set_against_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not know this operator"):
        Oracle(Case("GlobalLpPool", 2, (X,)).model()).run({"x0": X})
