"""Compares two ONNX files that should compute the same; needs neither TVM nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir

    from sepwise.files import ModelFile
    from sepwise.passes.equivalence import Verification

__all__ = ["compare_files"]

_KINDS: Final = ("normal", "uniform")
"""Inputs that are drawn, one set of each."""


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


def compare_files(first: ModelFile, second: ModelFile, inputs: Mapping[str, np.ndarray] | None = None) -> Verification:
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
    from sepwise.passes.equivalence import (
        GraphReference,
        Verification,
        compare_execution,
        compare_graph,
        execution_sigma,
        sample_inputs,
    )

    models = [load_model(file.path, shapes=file.shapes) for file in (first, second)]
    described: tuple[str, ...]
    if inputs is not None:
        feeds, described = [dict(inputs)], ("given",)
    else:
        feeds, described = [sample_inputs(models[0], seed, kind) for seed, kind in enumerate(_KINDS)], _KINDS
    reference = GraphReference(models[0], feeds)
    checks = compare_graph(reference, models[1])
    sigma = [execution_sigma(reference.oracle, feed) for feed in feeds]
    for file, model in zip((first, second), models, strict=True):
        outputs = [_run_unoptimised(model, feed) for feed in feeds]
        checks.append(compare_execution(outputs, reference.outputs, sigma, name=f"{file.path.name} in ONNX Runtime"))
    return Verification(first.name, None, tuple(checks), against=second.name, inputs=described)
