"""What the tests of the passes share: models from ONNX text, and the judgement that two models compute the same."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, shape_inference

from sepwise.passes.equivalence import compare_graph, sample_inputs

Array = npt.NDArray[Any]

KINDS = ("normal", "constant")
"""Constant inputs bring mistakes at borders to light."""


def build_model(text: str, *, seed: int = 0, **constants: object) -> ir.Model:
    """Reads ONNX text with shapes inferred.

    A constant without a value (`<float[4,3] w>`) gets the one given under its name, else it is drawn; the names of
    variances begin with `var`, they are drawn positive. Types of outputs are inferred: the text may state any.
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in list(model.graph.value_info):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        if value.name.startswith("var"):
            array = np.abs(array) + 0.5
        if value.name in constants:
            array = np.asarray(constants[value.name])
        model.graph.initializer.append(numpy_helper.from_array(np.broadcast_to(array, shape).astype(dtype), value.name))
        model.graph.value_info.remove(value)
    stored = {initializer.name for initializer in model.graph.initializer}
    for output in model.graph.output:
        if output.name not in stored:
            output.ClearField("type")
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def change_rank(text: str, rank: int) -> str:
    """Turns ONNX text about images of 9 x 8, windows of 3 x 3 or 1 x 1 and their pads into the same with `rank` spatial axes.

    Axes like the first are added, or the first is dropped, so that what is said of the last one stays.
    """

    def moved(values: list[str]) -> list[str]:
        return [*values[:1] * (rank - len(values)), *values[-rank:]]

    def window(match: re.Match[str]) -> str:
        return f"{match[1]}{','.join(moved(match[2].split(',')))}]"

    def pads(match: re.Match[str]) -> str:
        values = match[1].split(",")
        return f"pads = [{','.join([*moved(values[:2]), *moved(values[2:])])}]"

    text = re.sub(r"(?<=,)9,8\]", f"{','.join(moved(['9', '8']))}]", text)
    text = re.sub(r"(float\[\d+,\d+,)(3,3|1,1)\]", window, text)
    return re.sub(r"pads = \[([\d, ]+)\]", pads, text)


def run_onnxruntime(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """Runs a model in stock ONNX Runtime with its graph optimisations off."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def assert_equivalent(original: ir.Model, rewritten: ir.Model, *, exact: bool = False) -> None:
    """Asserts that a rewritten model is valid and computes the same, in the oracle and in ONNX Runtime."""
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    feeds = [sample_inputs(original, seed, kind) for seed, kind in enumerate(KINDS)]
    for check in compare_graph(original, rewritten, feeds, exact=exact):
        assert check.passed, check
    singles = {name: array.astype(np.float32) for name, array in feeds[0].items()}
    for before, after in zip(run_onnxruntime(original, singles), run_onnxruntime(rewritten, singles), strict=True):
        assert before.shape == after.shape
        if exact:
            np.testing.assert_array_equal(before, after)


@pytest.fixture(scope="session")
def build() -> Callable[..., ir.Model]:
    """Reads ONNX text with drawn constants."""
    return build_model


@pytest.fixture(scope="session")
def in_rank() -> Callable[[str, int], str]:
    """Turns text about two spatial axes into the same with 1 to 3."""
    return change_rank


@pytest.fixture(scope="session")
def equivalent() -> Callable[..., None]:
    """Asserts that two models compute the same."""
    return assert_equivalent


@pytest.fixture(scope="session")
def onnxruntime_outputs() -> Callable[..., list[Array]]:
    """Runs a model in ONNX Runtime."""
    return run_onnxruntime
