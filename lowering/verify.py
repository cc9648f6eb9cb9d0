"""Checks of a model on a target: every pass, every kernel, the whole network, against the float64 oracle.

A kernel is checked on its own target, the very object code that ships, fed the oracle's tensors rounded to float32, so
that errors of other kernels do not add up. Its reference is the part of the graph that it covers, cut out of the
model as it was before stages were grouped into functions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from sepwise.lowering import device as devices
from sepwise.lowering.build import build_program
from sepwise.lowering.runner import open_runner
from sepwise.passes import fuse, load_model
from sepwise.passes.equivalence import (
    Check,
    GraphReference,
    Oracle,
    Verification,
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
    from pathlib import Path

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import KernelCall, Program
    from sepwise.lowering.runner import Runner

__all__ = ["KernelChecker", "onnx_name", "verify", "verify_model"]

NATIVE_KINDS = ("normal", "uniform")
"""Inputs drawn for a device that this machine can run."""

EMULATED_KINDS = ("normal",)
"""Inputs drawn for an emulated device, where a run takes a few hundred times as long."""

GROUPING = "group_separable"
"""The pass behind which the values between the stages of a chain have no name any more."""


def verify(
    path: str | Path,
    *,
    target: str = "host",
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    bisect: bool = False,
) -> Verification:
    """Verifies a model file on a target.

    Args:
        path: An ONNX file.
        target: Name of a device.
        inputs: Arrays by input name; drawn where None.
        shapes: Shapes of inputs whose dimensions are symbolic, by name.
        threads: Workers.
        bisect: Whether to narrow a failure down.

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The model, the target or the inputs cannot be used.
    """
    return verify_model(
        load_model(path, shapes=shapes), devices.get(target), inputs=inputs, threads=threads, bisect=bisect
    )


def verify_model(
    model: ir.Model,
    device: Device,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    bisect: bool = False,
) -> Verification:
    """Verifies a loaded model on a device.

    Args:
        model: As `passes.load_model` returns it.
        device: The target.
        inputs: Arrays by input name; drawn where None.
        threads: Workers.
        bisect: Whether to narrow a failure down to a pass and its operators, to a kernel, or to a value.

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The inputs do not fit, or the model cannot be compiled.
    """
    report = fuse(model, keep_stages=True)
    canonical = report.stages[0][1]
    described: tuple[str, ...]
    if inputs is not None:
        feeds, described = [dict(inputs)], ("given",)
    else:
        kinds = EMULATED_KINDS if device.emulated else NATIVE_KINDS
        feeds = [sample_inputs(model, seed, kind) for seed, kind in enumerate(kinds)]
        described = kinds
    stages = (("load_model", model), *report.stages)
    graph_checks = _check_passes(model, stages[1:], feeds)
    wrong = next((check.pass_name for check in graph_checks if check.status == "failed"), None)
    if wrong is not None:  # its shapes may not be those that kernels are built for
        name = model.graph.name or "model"
        left_out = _skip(name, f"the pass {wrong} is wrong, so what it leaves was not compiled")
        found = Verification(name, device.name, (*graph_checks, *left_out), passes=report.passes, inputs=described)
        if not bisect:
            return found
        from sepwise.lowering.bisect import bisect_passes

        return replace(found, reproducer=bisect_passes(stages, graph_checks, feeds))
    program, _ = build_program(model, device, threads=threads)
    with open_runner(program, threads=threads) as runner:
        ungrouped = [stage for name, stage in stages if name != GROUPING][-1]
        checker = KernelChecker(program, runner, ungrouped, feeds[0])
        kernel_checks = [check for index in range(len(program.calls)) for check in checker.check(index)]
        model_check = _check_model(runner, model, feeds, program.name)
        checks = (*graph_checks, *kernel_checks, model_check)
        found = Verification(program.name, device.name, checks, passes=report.passes, inputs=described)
        if not bisect or all(check.status != "failed" for check in checks):
            return found
        from sepwise.lowering.bisect import bisect_kernels, bisect_program

        if any(check.status == "failed" for check in kernel_checks):
            return replace(found, reproducer=bisect_kernels(checker, kernel_checks, device, threads))
        return replace(found, reproducer=bisect_program(checker, canonical, model_check, device, threads))


def _skip(name: str, reason: str) -> list[Check]:
    """Checks of kernels and model that were not made."""
    return [Check(scope, name, (), "skipped", 0.0, 0.0, None, None, reason=reason) for scope in ("kernel", "model")]


def _check_passes(
    original: ir.Model, stages: Sequence[tuple[str, ir.Model]], feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[Check]:
    """Compares the model after each pass that changed something with the model as it came in."""
    reference = GraphReference(original, [dict(feed) for feed in feeds])
    return [
        replace(check, name=f"{name}: {check.name}", pass_name=name)
        for name, stage in stages
        for check in compare_graph(reference, stage)
    ]


class KernelChecker:
    """Checks kernels one after the other, each alone on the oracle's tensors.

    A value that the graph does not have (several kernels compute one node) cannot be checked by itself: the kernel that
    reads it is fed what was written, and checked against all nodes from the first of them on.

    Attributes:
        program: Holds the kernels.
        runner: Runs them.
        model: The graph whose nodes they cover.
        tensors: The oracle's by ONNX name, as kernels are fed them.
        single: Whether kernels compute in float32; otherwise the whole Program is in float64.
        flush: Whether they take and give 0 for numbers below the normal range.
        covered: By kernel, the values between which its nodes lie: those fed, and those written.
    """

    def __init__(self, program: Program, runner: Runner, model: ir.Model, feed: Mapping[str, np.ndarray]) -> None:
        """Runs the oracle.

        Args:
            program: Holds the kernels.
            runner: Runs them.
            model: The graph whose nodes they cover, before stages were grouped into functions.
            feed: The network's inputs.
        """
        names = {onnx_name(program, name) for call in program.calls for name in (*call.inputs, *call.outputs)}
        known = {value for node in model.graph for value in (v.name for v in node.outputs)}
        self.program = program
        self.runner = runner
        self.model = ir.to_proto(model)
        typed = (*program.inputs, *program.values, *program.outputs)
        self.single = any(value.type.dtype == "float32" for value in typed)
        self.flush = devices.get(program.device).flushes_subnormals
        tensors = {**feed, **Oracle(self.model).run(feed, keep=names & known)}
        self.tensors = {name: self.as_stored(array) for name, array in tensors.items()}
        self.covered: dict[str, tuple[list[str], list[str]]] = {}
        self._unnamed: dict[str, tuple[np.ndarray, list[str]]] = {}

    def check(self, index: int) -> list[Check]:
        """Runs one kernel.

        Args:
            index: Which of the Program's calls; all before it have been checked.

        Returns:
            Its check; none where all that it writes has no name in the graph.
        """
        call = self.program.calls[index]
        sources: list[str] = []
        arrays: list[np.ndarray] = []
        for name in call.inputs:
            source = onnx_name(self.program, name)
            if source in self.tensors:
                sources.append(source)
                arrays.append(_as_typed(self.tensors[source], self.program.find_value(name).type.dtype))
            else:
                array, before = self._unnamed[source]
                sources += before
                arrays.append(array)
        written = self.runner.run_kernel(index, arrays)
        targets = {onnx_name(self.program, name): name for name in call.outputs}
        for target, name in targets.items():
            if target not in self.tensors:
                self._unnamed[target] = (written[name], sources)
        named = {target: written[name] for target, name in targets.items() if target in self.tensors}
        self.covered[call.name] = (sources, list(named))
        return [self._compare(call, sources, named)] if named else []

    def as_stored(self, array: np.ndarray) -> np.ndarray:
        """Gives what a kernel is fed of the oracle's tensor.

        Args:
            array: Of any type.

        Returns:
            Floating-point numbers in float32, unless the whole Program is in float64.
        """
        return array.astype(np.float32) if self.single and array.dtype == np.float64 else array

    def _compare(self, call: KernelCall, sources: Sequence[str], written: Mapping[str, np.ndarray]) -> Check:
        """What a kernel wrote against the nodes between `sources` and it; the worst of its outputs."""
        if set(sources) == set(written):  # a change of layout computes nothing
            bounds = {name: (self.tensors[name], np.zeros(self.tensors[name].shape)) for name in written}
        else:
            feeds = {name: self.tensors[name] for name in sources}
            try:
                part = extract(self.model, list(feeds), list(written))
                bounds = run_with_bounds(part, feeds, single=self.single, flush=self.flush)
            except SepwiseError as error:
                skipped = Check("kernel", call.name, call.nodes, "skipped", 0.0, 0.0, None, None, reason=str(error))
                return replace(skipped, strategy=call.strategy)
        compared = (
            (name, compare_kernel(array, *bounds[name], name=call.name, nodes=call.nodes)) for name, array in written.items()
        )
        checks = [replace(check, worst_tensor=name, strategy=call.strategy) for name, check in compared]
        failed = [check for check in checks if check.status == "failed"]
        passed = [check for check in checks if check.passed]
        return max(failed or passed or checks, key=lambda check: math.inf if check.worst_ratio is None else check.worst_ratio)


def _check_model(
    runner: Runner, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], name: str
) -> Check:
    """The whole network against what float32 arithmetic explains."""
    oracle = Oracle(model)
    expected = [oracle.run(feed) for feed in feeds]
    flush = devices.get(runner.program.device).flushes_subnormals
    sigma = [execution_sigma(oracle, feed, flush=flush) for feed in feeds]
    outputs = [runner.run(feed) for feed in feeds]
    return compare_execution(outputs, expected, sigma, name=name)


def onnx_name(program: Program, name: str) -> str:
    """Finds the ONNX value that a Program's value is a copy of, in another layout.

    Args:
        program: Knows the layouts.
        name: The Program's name of the value.

    Returns:
        The ONNX name.
    """
    suffix = f".{program.find_value(name).type.layout}"
    return name.removesuffix(suffix)


def _as_typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """A floating-point tensor in the type that a kernel reads."""
    return array.astype(dtype) if array.dtype.kind == "f" else array
