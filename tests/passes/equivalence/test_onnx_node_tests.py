"""The ONNX project's own node tests (`onnx.backend.test`) for the operators that the oracle implements itself."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from onnx.backend.test.case.test_case import TestCase

from sepwise.passes.equivalence import Oracle, compare_kernel, run_with_bounds
from sepwise.passes.equivalence.operators import OPERATORS
from sepwise.passes.equivalence.running_error import RULES
from sepwise.passes.errors import UnsupportedError

# What the oracle leaves out, and says so: training, indices of a pool, cropping and antialiasing in a Resize.
REFUSED = ("training_mode", "training_dropout", "with_argmax", "tf_crop_and_resize", "antialias")
# Downsampling with align_corners and fractional scale * size: these tests use the fraction, ONNX Runtime, TVM and the
# formula in the operator's text use the whole size.
DIFFERENT = ("resize_downsample_scales_linear_align_corners", "resize_downsample_scales_cubic_align_corners")
# Its expected tensor is written down with four digits.
ROUNDED = "averagepool_2d_ceil_last_window_starts_on_pad"


def cases(collected: Sequence[TestCase]) -> dict[str, TestCase]:
    """Takes the cases of our operators in floating-point numbers, integers and booleans."""
    found = {}
    for case in collected:
        graph = case.model.graph
        types = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
        if graph.node[0].op_type in OPERATORS and 0 not in types:
            found[case.name] = case
    return found


def test_node_tests_of_our_operators(node_cases: Sequence[TestCase]) -> None:
    seen: Counter[str] = Counter()
    failures = []
    for name, case in cases(node_cases).items():
        if any(word in name for word in DIFFERENT):
            continue
        for inputs, outputs in case.data_sets:
            try:
                problem = run(case, [np.asarray(x) for x in inputs], [np.asarray(y) for y in outputs])
            except UnsupportedError:
                assert any(word in name for word in REFUSED), name
                continue
            if problem:
                failures.append(f"{name}: {problem}")
            seen[case.model.graph.node[0].op_type] += 1
    assert not failures, "\n".join(failures)
    # Cast and CastLike are tested with tensors in protobuf form only; they stand in test_operators.py.
    assert set(OPERATORS) - set(seen) <= {"Cast", "CastLike"}
    assert sum(seen.values()) > 450


def run(case: TestCase, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> str:
    """Runs one case; returns what is wrong.

    The expected tensors were computed in the types of the case, so they have to lie within the running error bound; where an operator
    has none, within the case's own tolerance.
    """
    feeds = dict(zip([value.name for value in case.model.graph.input], inputs, strict=True))
    oracle = Oracle(case.model).run(feeds)
    has_bound = case.model.graph.node[0].op_type in RULES and ROUNDED not in case.name
    bounded = run_with_bounds(case.model, feeds) if has_bound else None
    for value, expected in zip(case.model.graph.output, outputs, strict=True):
        actual = oracle[value.name]
        if actual.shape != expected.shape:
            return f"{value.name} has shape {actual.shape} where {expected.shape} is right"
        if bounded is not None:
            check = compare_kernel(expected, *bounded[value.name], name=value.name)
            if check.status == "failed":  # infinities alone are skipped
                return check.reason
        elif not np.allclose(
            actual.astype(np.float64), expected.astype(np.float64), rtol=case.rtol, atol=case.atol, equal_nan=True
        ):
            return f"{value.name} differs"
    return ""


@pytest.mark.parametrize("name", DIFFERENT)
def test_whole_sizes_in_align_corners(name: str, node_cases: Sequence[TestCase]) -> None:
    case = cases(node_cases)[f"test_{name}"]
    inputs, outputs = case.data_sets[0]
    assert "differs" in run(case, inputs, outputs) or "off by" in run(case, inputs, outputs)
