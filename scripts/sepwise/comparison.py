"""Compares two ONNX files that should compute the same; needs neither TVM nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir

    from sepwise.files import ModelFile
    from sepwise.passes.equivalence import Check

__all__ = ["Comparison", "compare_files"]

_KINDS: Final = ("normal", "uniform")
"""Inputs that are drawn, one set of each."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All checks of one pair of files.

    Attributes:
        model: The first file's name.
        checks: Graph checks in the float64 oracle, then both files in ONNX Runtime, unoptimised.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst_ratio(self) -> float | None:
        """The largest error relative to its bound, None where some check has no finite ratio."""
        ratios = [check.worst_ratio for check in self.checks]
        return None if None in ratios else max(ratio for ratio in ratios if ratio is not None)

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that `sepwise verify --json` prints; no target, as nothing was compiled."""
        return {
            "model": self.model,
            "target": None,
            "passed": self.passed,
            "worst_ratio": self.worst_ratio,
            "checks": [check.to_json() for check in self.checks],
        }


def _run_unoptimised(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnx_ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def compare_files(first: ModelFile, second: ModelFile, inputs: Mapping[str, np.ndarray] | None = None) -> Comparison:
    """Decides whether two files compute the same.

    Args:
        first: The reference.
        second: What should compute the same, with inputs and outputs of the same names.
        inputs: Arrays by input name; drawn where None.

    Returns:
        One graph check for each output, and one model check for each file.

    Raises:
        InputError: A file cannot be used, or they differ in inputs or outputs.
    """
    from sepwise.passes import load_model
    from sepwise.passes.equivalence import GraphReference, compare_execution, compare_graph, execution_sigma, sample_inputs

    models = [load_model(file.path, shapes=file.shapes) for file in (first, second)]
    feeds = [dict(inputs)] if inputs is not None else [sample_inputs(models[0], seed, kind) for seed, kind in enumerate(_KINDS)]
    reference = GraphReference(models[0], feeds)
    checks = compare_graph(reference, models[1])
    sigma = [execution_sigma(reference.oracle, feed) for feed in feeds]
    for file, model in zip((first, second), models, strict=True):
        outputs = [_run_unoptimised(model, feed) for feed in feeds]
        checks.append(compare_execution(outputs, reference.outputs, sigma, name=f"{file.path.name} in ONNX Runtime"))
    return Comparison(first.name, tuple(checks))
