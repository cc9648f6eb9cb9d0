"""The ONNX project's own node tests (`onnx.backend.test`) through a Program on this machine.

Every input but the first becomes a constant, as in exported networks. A result in float32 has to lie within the running
error bound, what moves or counts is exact, and what has no bound lies within the case's own tolerance.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.test_case import TestCase

from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.generic import ELEMENT_TYPES, MULTIPLYING, REDUCERS, SHAPERS
from sepwise.lowering.runner import NativeRunner
from sepwise.models.catalogue import ENTRIES
from sepwise.passes.equivalence import compare_kernel, run_with_bounds
from sepwise.passes.errors import SepwiseError, UnsupportedError
from sepwise.passes.vocabulary import ELEMENTWISE_OPERATORS

OPERATORS = SHAPERS | REDUCERS | ELEMENTWISE_OPERATORS | MULTIPLYING | frozenset(
    "ArgMax ArgMin BatchNormalization CumSum Einsum GatherElements GatherND GlobalLpPool GreaterOrEqual GridSample Hardmax "
    "InstanceNormalization IsInf IsNaN LessOrEqual LRN LpPool Mean Mod OneHot ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceProd ReduceSumSquare ScatterElements ScatterND Shrink Split ThresholdedRelu Trilu Upsample".split()
)  # fmt: skip

CHOSEN = (
    "conv_with", "convtranspose", "gemm_all", "gemm_transposeB", "matmul_3d", "averagepool_2d_ceil", "averagepool_2d_dilations",
    "averagepool_2d_pads_count", "averagepool_2d_same", "maxpool_2d_ceil", "maxpool_2d_dilations", "maxpool_2d_same",
    "maxpool_3d_default", "batchnorm_e", "resize_upsample_scales_linear", "resize_upsample_sizes_nearest_floor", "_pad",
    "softmax_axis_1", "reduce_mean_keepdims_r", "reduce_max_neg", "clip_e", "concat_3d_axis_1", "split_equal_parts_2d", "slice_neg",
    "gather_1", "transpose_all", "reshape_neg", "tile", "depthtospace", "where", "layer_normalization_3d_axis1",
    "test_pow", "mod_mixed_sign_float", "mod_float_edge", "test_sin", "test_cos", "test_tan", "test_asin", "test_acos", "test_atan",
)  # fmt: skip
"""Parts of the names of cases that run every time; all run at night."""

REFUSED = {
    "LayerNormalization": ("leaves its output", "", "layer_normalization_2d", "layer_normalization_3d", "layer_normalization_4d",
        "layer_normalization_default"),
    "BatchNormalization": ("passes over training_mode", "apache/tvm#18703", "training_mode"),
    "Dropout": ("passes over training_mode", "", "training_dropout($|_default|_mask)"),
    "IsInf": ("passes over detect_negative", "", "isinf_positive", "isinf_negative"),
    "MaxPool": ("Missing outputs", "apache/tvm#14614", "with_argmax"),
    "OneHot": ("Mismatched type", "", "onehot"),
    "Pow": ("TVM does not take", "", "pow_types"),
    "ReduceMax": ("Cannot decide", "", "bool_inputs"),
    "ReduceMin": ("Cannot decide", "", "bool_inputs"),
    "Resize": ("passes over|TVM does not take", "apache/tvm#18945, apache/tvm#19570", "downsample_scales", "antialias", "_axes_",
        "not_larger", "not_smaller", "half_pixel_symmetric"),
    "SpaceToDepth": ("passes over mode", "", "crd"),
    "Upsample": ("TVM does not take", "", "upsample"),
}  # fmt: skip
"""What TVM's importer does not take, or takes and computes otherwise: the message, the thread that tells of it where there is one,
and patterns of the cases' names."""

PROMISED = frozenset("Add BatchNormalization Concat Conv ConvTranspose Gemm Mul Reshape Resize Softmax Split Transpose".split())
"""Operators that have cases whatever networks need."""

WITHOUT_CASES = frozenset({"Cast", "Constant", "Shape"})
"""The cases of Cast are no arrays (`test_cast` stands for them); of the others nothing is left to compile."""

LEFT_OUT = ("_expanded", "empty_set", "zero_size", "triu_zero", "tril_zero", "allowzero", "not_2d", "not_3d", "not_4d", "cast_", "castlike_")
"""Functions' bodies, tensors without elements (an input has to have some), operator set 1, and elements narrower than a byte."""


def take(case: TestCase) -> tuple[pytest.MarkDecorator, ...] | None:
    """Says when a case runs: every time or at night; None where it does not, or holds types that cannot be compiled."""
    arrays = [x for data in case.data_sets for part in data for x in part]
    plain = all(x.dtype.name in ELEMENT_TYPES - {"float16"} for x in arrays)
    if case.model.graph.node[0].op_type not in OPERATORS or not plain or any(part in case.name for part in LEFT_OUT):
        return None
    return () if any(part in case.name for part in CHOSEN) else (pytest.mark.nightly,)


def refusal(case: TestCase) -> tuple[str, str] | None:
    """Says with what message a case is refused and where TVM's limit is told, None where it is taken."""
    message, thread, *parts = REFUSED.get(case.model.graph.node[0].op_type, ("", ""))
    return (message, thread) if any(re.search(part, case.name) for part in parts) else None


def compute(case: TestCase, inputs: list[np.ndarray]) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs a case with all inputs but the first as constants: the model, what it was fed, and its outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 7)
    first, *rest = [value.name for value in model.graph.input if value.name]
    del model.graph.input[1:]
    for name, array in zip(rest, inputs[1:], strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    program, _ = build_program(ir.from_proto(model), device.get("host"))
    with NativeRunner(program) as runner:
        return model, {first: inputs[0]}, runner.run({first: inputs[0]})


def test_node(node_case: TestCase, record_property: Callable[[str, object], None]) -> None:
    """What it records, `scripts/benchmarks/conformance.py` writes down."""
    refused = refusal(node_case)
    for given, wanted in node_case.data_sets:
        inputs = [np.asarray(x) for x in given]
        told: dict[str, object] = {"operator": node_case.model.graph.node[0].op_type, "case": node_case.name}
        if refused is not None:
            with pytest.raises(UnsupportedError, match=refused[0]) as raised:
                compute(node_case, inputs)
            record_property("node", {**told, "refused": str(raised.value), "thread": refused[1]})
            continue
        model, feed, outputs = compute(node_case, inputs)
        problems = list(differences(node_case, model, feed, outputs, [np.asarray(y) for y in wanted]))
        record_property("node", {**told, "problems": problems})
        assert not problems, problems


@pytest.mark.parametrize(("given", "wanted"), [("float32", "int32"), ("float32", "int64"), ("int32", "float32"), ("int64", "int32")])
def test_cast(given: str, wanted: str) -> None:
    """Towards zero."""
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in (given, wanted)]
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=kinds[1])
    ends = [[onnx.helper.make_tensor_value_info(name, kind, [5])] for name, kind in zip("xy", kinds, strict=True)]
    x = np.array([-2.75, -0.5, 0, 0.5, 3.75]).astype(given)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "cast", *ends), ir_version=10)
    program, _ = build_program(ir.from_proto(model), device.get("host"))
    with NativeRunner(program) as runner:
        y = runner.run({"x": x})["y"]
    assert y.dtype == wanted
    np.testing.assert_array_equal(y, x.astype(wanted))


@pytest.mark.nightly
def test_the_zoo_and_the_trained_networks_are_covered(
    zoo_file: Callable[..., Path], trained_networks: dict[str, Path], node_cases: Sequence[TestCase]
) -> None:
    """Every operator that they hold, and every one that the documentation promises, has cases here."""
    files = [*(zoo_file(entry.name) for entry in ENTRIES), *trained_networks.values()]
    held = {node.op_type for file in files for node in onnx.load(file, load_external_data=False).graph.node}
    wanted = (held | PROMISED) - WITHOUT_CASES
    have = {case.model.graph.node[0].op_type for case in node_cases if take(case) is not None}
    assert wanted <= have, wanted - have


def differences(
    case: TestCase, model: onnx.ModelProto, feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray], wanted: list[np.ndarray]
) -> Iterator[str]:
    """Says which outputs are wrong."""
    try:
        bounds = run_with_bounds(model, feed)
    except SepwiseError:
        bounds = {}
    for value, expected in zip([value for value in model.graph.output if value.name], wanted, strict=True):
        found = outputs[value.name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            yield f"{value.name} is {found.dtype}{found.shape} where {expected.dtype}{expected.shape} is right"
        elif found.dtype == np.float32 and value.name in bounds:
            check = compare_kernel(found, *bounds[value.name], name=value.name)
            if not check.passed:
                yield check.reason
        elif found.dtype.kind == "f":
            if not np.allclose(found, expected, rtol=case.rtol, atol=case.atol, equal_nan=True):
                yield f"{value.name} differs"
        elif not np.array_equal(found, expected):
            yield f"{value.name} differs"
