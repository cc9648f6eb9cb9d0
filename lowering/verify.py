"""Checks of a model on a target: every pass, every kernel, the whole network, against the float64 oracle.

A kernel is checked on its own target, the very object code that ships, fed the oracle's tensors rounded to float32, so
that errors of other kernels do not add up. Its reference is the part of the graph that it covers, cut out of the
model as it was before stages were grouped into functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sepwise.lowering import device as devices
from sepwise.lowering.build import build_program
from sepwise.lowering.runner import open_runner
from sepwise.passes import fuse, load_model
from sepwise.passes.equivalence import (
    Check,
    GraphReference,
    Oracle,
    compare_execution,
    compare_graph,
    compare_kernel,
    execution_sigma,
    extract,
    run_with_bounds,
    sample_inputs,
)
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    import onnx_ir as ir

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import KernelCall, Program
    from sepwise.lowering.runner import Runner

__all__ = ["Verification", "verify", "verify_model"]

NATIVE_KINDS = ("normal", "uniform")
"""Inputs drawn for a device that this machine can run."""

EMULATED_KINDS = ("normal",)
"""Inputs drawn for an emulated device, where a run takes a few hundred times as long."""

GROUPING = "group_separable"
"""The pass behind which the values between the stages of a chain have no name any more."""


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one model on one target.

    Attributes:
        model: The model's name.
        target: The device's name, None where two files were compared.
        checks: Graph, kernel and model checks; a skipped one counts as not passed.
    """

    model: str
    target: str | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst_ratio(self) -> float | None:
        """The largest error relative to its bound, None where some check has no finite ratio."""
        ratios = [check.worst_ratio for check in self.checks if check.status != "skipped"]
        if not ratios or any(ratio is None for ratio in ratios):
            return None
        return max(ratio for ratio in ratios if ratio is not None)

    def to_json(self) -> dict[str, object]:
        """The fields of the verify JSON."""
        return {
            "model": self.model,
            "target": self.target,
            "passed": self.passed,
            "worst_ratio": self.worst_ratio,
            "checks": [check.to_json() for check in self.checks],
        }


def verify(
    path: str | PathLike[str],
    *,
    target: str = "host",
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
) -> Verification:
    """Verifies a model file on a target.

    Args:
        path: An ONNX file.
        target: Name of a device.
        inputs: Arrays by input name; drawn where None.
        shapes: Shapes of inputs whose dimensions are symbolic, by name.
        threads: Workers.

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The model, the target or the inputs cannot be used.
    """
    return verify_model(
        load_model(path, shapes=shapes), devices.get(target), inputs=inputs, threads=threads
    )


def verify_model(
    model: ir.Model, device: Device, *, inputs: Mapping[str, np.ndarray] | None = None, threads: int = 1
) -> Verification:
    """Verifies a loaded model on a device.

    Args:
        model: As `passes.load_model` returns it.
        device: The target.
        inputs: Arrays by input name; drawn where None.
        threads: Workers.

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The inputs do not fit, or the model cannot be compiled.
    """
    report = fuse(model, keep_stages=True)
    canonical = report.stages[0][1]
    if inputs is not None:
        feeds = [dict(inputs)]
    else:
        kinds = EMULATED_KINDS if device.emulated else NATIVE_KINDS
        feeds = [sample_inputs(canonical, seed, kind) for seed, kind in enumerate(kinds)]
    program, _ = build_program(model, device, threads=threads)
    checks = list(_check_passes(canonical, report.stages[1:], feeds))
    with open_runner(program, threads=threads) as runner:
        ungrouped = [stage for name, stage in report.stages if name != GROUPING][-1]
        checks += _check_kernels(program, runner, ungrouped, feeds[0])
        checks.append(_check_model(runner, canonical, feeds, program.name))
    return Verification(program.name, device.name, tuple(checks))


def _check_passes(
    original: ir.Model, stages: Sequence[tuple[str, ir.Model]], feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[Check]:
    """Compares the model after each pass that changed something with the model before all passes."""
    reference = GraphReference(original, [dict(feed) for feed in feeds])
    checks = []
    for name, stage in stages:
        for check in compare_graph(reference, stage):
            checks.append(replace(check, name=f"{name}: {check.name}"))
    return checks


def _check_kernels(
    program: Program, runner: Runner, model: ir.Model, feed: Mapping[str, np.ndarray]
) -> list[Check]:
    """Runs every kernel alone on the oracle's tensors."""
    oracle = Oracle(model)
    names = {_onnx_name(program, name) for call in program.calls for name in (*call.inputs, *call.outputs)}
    tensors = {**feed, **oracle.run(feed, keep=names)}
    return [_check_kernel(index, call, program, runner, model, tensors) for index, call in enumerate(program.calls)]


def _check_kernel(
    index: int,
    call: KernelCall,
    program: Program,
    runner: Runner,
    model: ir.Model,
    tensors: Mapping[str, np.ndarray],
) -> Check:
    """One kernel against the running error bound of the nodes that it covers."""
    skipped = Check("kernel", call.name, call.nodes, "skipped", 0.0, 0.0, None, None)
    sources = [_onnx_name(program, name) for name in call.inputs]
    targets = [_onnx_name(program, name) for name in call.outputs]
    missing = [name for name in (*sources, *targets) if name not in tensors]
    if missing:
        return replace(skipped, reason=f"The graph has no value '{missing[0]}' to compare with.")
    arrays = [_as_stored(tensors[name]) for name in sources]
    written = runner.run_kernel(index, arrays)
    if sources == targets:  # a change of layout computes nothing
        exact = [(array, np.zeros(array.shape)) for array in arrays]
    else:
        try:
            part = extract(model, list(dict.fromkeys(sources)), targets)
            bounds = run_with_bounds(part, dict(zip(sources, arrays, strict=True)))
        except SepwiseError as error:
            return replace(skipped, reason=str(error))
        exact = [bounds[name] for name in targets]
    checks = [
        compare_kernel(written[name], value, bound, name=call.name, nodes=call.nodes)
        for name, (value, bound) in zip(call.outputs, exact, strict=True)
    ]
    failed = [check for check in checks if not check.passed]
    return max(failed or checks, key=lambda check: float("inf") if check.worst_ratio is None else check.worst_ratio)


def _check_model(
    runner: Runner, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], name: str
) -> Check:
    """The whole network against what float32 arithmetic explains."""
    oracle = Oracle(model)
    expected = [oracle.run(feed) for feed in feeds]
    sigma = [execution_sigma(oracle, feed) for feed in feeds]
    outputs = [runner.run(feed) for feed in feeds]
    return compare_execution(outputs, expected, sigma, name=name)


def _onnx_name(program: Program, name: str) -> str:
    """The ONNX value that a Program's value is a copy of, in another layout."""
    suffix = f".{program.find_value(name).type.layout}"
    return name.removesuffix(suffix)


def _as_stored(array: np.ndarray) -> np.ndarray:
    """What a kernel is fed: float32 where the oracle computes in float64."""
    return array.astype(np.float32) if array.dtype == np.float64 else array
