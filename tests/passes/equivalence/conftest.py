"""What the tests of this folder share: models from text, ONNX Runtime without optimisation."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper, shape_inference

Tensors = Mapping[str, npt.NDArray[np.generic]]


def parse(text: str, *, seed: int = 0) -> onnx.ModelProto:
    """Reads ONNX text. Initializers without values (`<float[4,3] w>`) are drawn; variances are positive.

    The outputs' types are inferred: the text may state any.
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in list(model.graph.value_info):
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        if value.name.startswith("var"):
            array = np.abs(array) + 0.5
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
        model.graph.value_info.remove(value)
    for output in model.graph.output:
        output.ClearField("type")
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model)
    return model


def run_onnxruntime(model: onnx.ModelProto, inputs: Tensors, *, optimised: bool = False) -> dict[str, npt.NDArray[np.generic]]:
    """Runs a model in ONNX Runtime, with its graph optimisations off unless asked for."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture(scope="session", name="parse")
def parse_fixture() -> Callable[..., onnx.ModelProto]:
    return parse


@pytest.fixture(scope="session", name="run_onnxruntime")
def run_onnxruntime_fixture() -> Callable[..., dict[str, npt.NDArray[np.generic]]]:
    return run_onnxruntime
