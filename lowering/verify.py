"""Checks of a model on a target: every pass, every kernel, the whole network, against the float64 oracle.

A kernel is checked on its own target, the very object code that ships. Its reference is the part of the graph that it
covers, cut out of the model as it was before stages were grouped into functions. It is fed the oracle's tensors rounded to
their types, so that errors of other kernels do not add up, and then what is drawn for it alone, as those seldom come near
the limits of what it computes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from sepwise.lowering import device as devices
from sepwise.lowering.build import build_program, require_float16
from sepwise.lowering.guarded import StrayAccessError
from sepwise.lowering.runner import open_runner
from sepwise.lowering.strategies import is_direct, transformed_nodes
from sepwise.passes import fuse, load_model
from sepwise.passes.convert_float16 import ConvertFloat16Pass
from sepwise.passes.equivalence import (
    EMULATED_NETWORK_KINDS,
    NETWORK_KINDS,
    STRESSES,
    Check,
    GraphReference,
    Oracle,
    Stress,
    Verification,
    compare_answers,
    compare_branches,
    compare_execution,
    compare_graph,
    compare_kernel,
    compare_parts,
    execution_sigma,
    extract,
    run_with_bounds,
    sample_inputs,
    settle,
    worst_check,
)
from sepwise.passes.equivalence.formats import BINARY32, format_of
from sepwise.passes.equivalence.graph import read_graph
from sepwise.passes.equivalence.tolerances import SEEDS
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import KernelCall, Program
    from sepwise.lowering.remote import Board
    from sepwise.lowering.runner import Runner
    from sepwise.lowering.selection import Records
    from sepwise.passes.equivalence import Agreement
    from sepwise.passes.equivalence.graph import Graph

    Tensors = Mapping[str, np.ndarray]
    Case = tuple[str, Tensors, Mapping[str, tuple[np.ndarray, np.ndarray]]]

__all__ = [
    "KernelChecker",
    "before_grouping",
    "check_model",
    "onnx_name",
    "transformed",
    "transformed_values",
    "verify",
    "verify_model",
]

ORACLE, NONFINITE = "oracle", "nonfinite"
KERNEL_INPUTS = (ORACLE, *STRESSES)
"""What every kernel is fed: the oracle's tensors on the first inputs of the network, and what is drawn at its own inputs."""

CONVERSION = ConvertFloat16Pass.name
"""The pass behind which the model computes in other formats."""

GROUPING = "group_separable"
"""The pass behind which the values between the stages of a chain have no name any more."""


def verify(
    path: str | Path,
    *,
    target: str = "host",
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    float16: bool = False,
    bisect: bool = False,
    board: Board | None = None,
    records: Records | None = None,
) -> Verification:
    """Verifies a model file on a target.

    Args:
        path: An ONNX file.
        target: Name of a device.
        inputs: Arrays by input name; drawn where None.
        shapes: Shapes of inputs whose dimensions are symbolic, by name.
        threads: Workers.
        float16: Whether what is float32 is computed in float16, but for what needs more.
        bisect: Whether to narrow a failure down.
        board: Where the kernels and the network run, None for here.
        records: What tuning has found (see `tuning.database.read_records`).

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The model, the target or the inputs cannot be used.
    """
    model = load_model(path, shapes=shapes)
    device, name = devices.get(target), Path(path).stem
    return verify_model(
        model,
        device,
        inputs=inputs,
        threads=threads,
        float16=float16,
        bisect=bisect,
        name=name,
        board=board,
        records=records,
    )


def verify_model(
    model: ir.Model,
    device: Device,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    float16: bool = False,
    bisect: bool = False,
    name: str | None = None,
    board: Board | None = None,
    records: Records | None = None,
) -> Verification:
    """Verifies a loaded model on a device.

    Where it is converted to float16, the conversion is checked against the model as it came in, by what rounding its constants
    to float16 explains, and all that follows against the converted model, by what rounding in float16 explains.

    Args:
        model: As `passes.load_model` returns it.
        device: The target.
        inputs: Arrays by input name; drawn where None.
        threads: Workers.
        float16: Whether what is float32 is computed in float16, but for what needs more.
        bisect: Whether to narrow a failure down to a pass and its operators, to a kernel, or to a value.
        name: What to call the model; as its graph is called where None.
        board: Where the kernels and the network run, None for here; failures are narrowed down here only.
        records: What tuning has found.

    Returns:
        Every check with its error and its bound.

    Raises:
        InputError: The inputs do not fit, or the model cannot be compiled.
    """
    if float16:
        require_float16(device)
    if board is not None:
        board.require(device)
    report = fuse(model, float16=float16, keep_stages=True)
    canonical = report.stages[0][1]
    converted = next((stage for name, stage in report.stages if name == CONVERSION), None)
    described: tuple[str, ...]
    if inputs is not None:
        feeds, described = [dict(inputs)], ("given",)
    else:
        kinds = EMULATED_NETWORK_KINDS if device.emulated and board is None else NETWORK_KINDS
        feeds = [sample_inputs(model, seed, kind) for seed, kind in enumerate(kinds)]
        described = kinds
    stages = (("load_model", model), *report.stages)
    graph_checks = _check_passes(model, stages[1:], feeds)
    wrong = next((check.pass_name for check in graph_checks if check.status == "failed"), None)
    if wrong is not None:  # its shapes may not be those that kernels are built for
        name = name or model.graph.name or "model"
        reason = f"the pass {wrong} is wrong, so what it leaves was not compiled"
        left_out = [_skip("kernel", name, reason), _skip("model", name, reason)]
        found = Verification(name, device.name, (*graph_checks, *left_out), passes=report.passes, inputs=described)
        if not bisect:
            return found
        from sepwise.lowering.bisect import bisect_passes

        return replace(found, reproducer=bisect_passes(stages, graph_checks, feeds))
    program, built = build_program(model, device, threads=threads, float16=float16, records=records)
    with open_runner(program, threads=threads, board=board) as runner:
        checker = KernelChecker(program, runner, before_grouping(stages), feeds[0])
        kernel_checks = [check for index in range(len(program.calls)) for check in checker.check(index)]
        answers: tuple[Agreement, ...] = ()
        notes: tuple[str, ...] = ()
        used = () if records is None else (f"{built.records_used} of {built.kernels} kernels by tuning records",)
        if checker.stray is None:
            model_check, answers = check_model(
                runner.run,
                model,
                model if converted is None else converted,
                feeds,
                name=name or program.name,
                flush=device.flushes_subnormals,
                winograd=transformed_values(transformed_nodes(program.calls), canonical),
            )
            notes = () if converted is None else _tell_conversion(runner, model, feeds[0])
        else:  # it may end this process
            reason = f"not run, as kernel '{checker.stray}' does not keep to its own memory"
            model_check = _skip("model", name or program.name, reason)
        checks = (*graph_checks, *kernel_checks, model_check)
        found = Verification(
            name or program.name,
            device.name,
            checks,
            passes=report.passes,
            inputs=described,
            kernel_inputs=KERNEL_INPUTS,
            agreement=() if inputs is None else answers,
            notes=(*notes, *used),
        )
        if not bisect or all(check.status != "failed" for check in checks):
            return found
        from sepwise.lowering.bisect import bisect_kernels, bisect_program

        if any(check.status == "failed" for check in kernel_checks):
            return replace(found, reproducer=bisect_kernels(checker, kernel_checks, device, threads))
        return replace(found, reproducer=bisect_program(checker, converted or canonical, model_check, device, threads))


def before_grouping(stages: Sequence[tuple[str, ir.Model]]) -> ir.Model:
    """Finds the graph whose nodes kernels cover and whose values all have names.

    Args:
        stages: The model behind each pass, with the pass's name.

    Returns:
        The last one in which no stages were grouped.
    """
    return [stage for name, stage in stages if name != GROUPING][-1]


def _skip(scope: Literal["kernel", "model"], name: str, reason: str) -> Check:
    """A check that was not made."""
    return Check(scope, name, (), "skipped", 0.0, 0.0, None, None, reason=reason)


def _check_passes(
    original: ir.Model, stages: Sequence[tuple[str, ir.Model]], feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[Check]:
    """Compares the model after each pass that changed something with the model as it came in.

    From the conversion to float16 on the converted model stands for that. The conversion itself is compared the other way
    round, as the rounding of float16 constants is measured on the model that has them.
    """
    reference, before = GraphReference(original, [dict(feed) for feed in feeds]), original
    checks: list[Check] = []
    for name, stage in stages:
        if name == CONVERSION:
            reference = GraphReference(stage, [dict(feed) for feed in feeds])
            swapped = compare_graph(reference, before)
            found = [replace(check, computed=check.expected, expected=check.computed) for check in swapped]
        else:
            found = compare_graph(reference, stage)
        checks += [replace(check, name=f"{name}: {check.name}", pass_name=name) for check in found]
        before = stage
    if any(check.status == "failed" for check in checks):
        return checks
    branches = compare_branches(original, stages[-1][1], feeds) if stages else []
    return [*checks, *branches, *_check_parts(original, stages, feeds[0])]


def _check_parts(original: ir.Model, stages: Sequence[tuple[str, ir.Model]], feed: Mapping[str, np.ndarray]) -> list[Check]:
    """Compares what the passes left with what they were given part by part, behind a conversion to float16 where there is one.

    Where a part is wrong, the first pass behind which one is wrong is named.
    """
    converted = next((place for place, (name, _) in enumerate(stages) if name == CONVERSION), None)
    if converted is not None:
        original, stages = stages[converted][1], stages[converted + 1 :]
    checks = compare_parts(original, stages[-1][1], feed) if stages else []
    if all(check.status != "failed" for check in checks):
        return [replace(check, name=f"all passes: {check.name}") for check in checks]
    for name, stage in stages:
        checks = compare_parts(original, stage, feed)
        if any(check.status == "failed" for check in checks):
            return [replace(check, name=f"{name}: {check.name}", pass_name=name) for check in checks]
    return []


class KernelChecker:
    """Checks kernels one after the other, each alone on the oracle's tensors and on tensors drawn for it.

    A value that the graph does not have (several kernels compute one node) cannot be checked by itself: the kernel that
    reads it is run behind the one that writes it, and both are checked against all nodes from the first of them on.

    Attributes:
        program: Holds the kernels.
        runner: Runs them.
        model: The graph whose nodes they cover.
        tensors: The oracle's by ONNX name, as kernels are fed them.
        flush: Whether they take and give 0 for numbers below the normal range.
        stray: The first kernel that touched other memory than its own, None where none did.
        covered: By kernel, the values between which its nodes lie: those fed, and those written.
    """

    def __init__(
        self, program: Program, runner: Runner, model: ir.Model, feed: Mapping[str, np.ndarray], *, alike: bool = False
    ) -> None:
        """Runs the oracle.

        Args:
            program: Holds the kernels.
            runner: Runs them.
            model: The graph whose nodes they cover, before stages were grouped into functions.
            feed: The network's inputs.
            alike: Whether all kernels cover the same nodes; what they are compared with is then worked out once.
        """
        self._alike = alike
        self._kept: dict[tuple[Hashable, ...], list[Case]] = {}
        names = {onnx_name(program, name) for call in program.calls for name in (*call.inputs, *call.outputs)}
        known = {value for node in model.graph for value in (v.name for v in node.outputs)}
        self.program = program
        self.runner = runner
        self.model = ir.to_proto(model)
        values = (*program.inputs, *program.values, *program.outputs)
        self._types = {onnx_name(program, value.name): value.type.dtype for value in values}
        self.flush = devices.get(program.device).flushes_subnormals
        tensors = {**feed, **Oracle(self.model).run(feed, keep=names & known)}
        self.tensors = {name: self.as_stored(name, array) for name, array in tensors.items()}
        self.covered: dict[str, tuple[list[str], list[str]]] = {}
        self._writers: dict[str, KernelCall] = {}
        self.stray: str | None = None
        self._failing: dict[str, Tensors] = {}

    def check(self, index: int) -> list[Check]:
        """Runs one kernel on the oracle's tensors and on those drawn for it.

        Args:
            index: Which of the Program's calls; all before it have been checked.

        Returns:
            Its check, the worst over all that it was fed; none where all that it writes has no name in the graph.
        """
        call = self.program.calls[index]
        self._writers.update(dict.fromkeys(call.outputs, call))
        sources = list(self._sources(call))
        targets = {target: name for name in call.outputs if (target := onnx_name(self.program, name)) in self.tensors}
        self.covered[call.name] = (sources, list(targets))
        if not targets:
            return []
        feeds = self.feeds_of(call.name)
        bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]
        if set(sources) == set(targets):  # a change of layout computes nothing
            bounds = {name: (self.tensors[name], np.zeros(self.tensors[name].shape)) for name in targets}
            return [self._compare(call, feeds, targets, bounds, ORACLE)]
        cases = self._cases(index, feeds, list(targets))
        try:
            *_, bounds = next(cases)
        except SepwiseError as error:
            skipped = Check("kernel", call.name, call.nodes, "skipped", 0.0, 0.0, None, None, reason=str(error))
            return [replace(skipped, strategy=call.strategy)]
        worst = self._compare(call, feeds, targets, bounds, ORACLE)
        for kind, drawn, bounds in cases:
            check = self._compare(call, drawn, targets, bounds, kind)
            worst = worst_check([worst, check])
            if worst.status == "failed" and worst.worst_input == check.worst_input:
                self._failing[call.name] = drawn
        return [worst]

    def cover(self, index: int) -> tuple[list[str], list[str]]:
        """Finds the values of the graph between which a call's nodes lie.

        Args:
            index: Which of the Program's calls.

        Returns:
            Those that it reads, through calls before it where the graph does not have what it reads itself, and those it writes.
        """
        call = self.program.calls[index]
        targets = [target for name in call.outputs if (target := onnx_name(self.program, name)) in self.tensors]
        return list(self._sources(call)), targets

    def feeds_of(self, name: str) -> Tensors:
        """Gives what shows that a kernel is wrong.

        Args:
            name: A kernel that was checked.

        Returns:
            Tensors by ONNX name: those on which it is worst, the oracle's where it is right.
        """
        return self._failing.get(name) or {source: self.tensors[source] for source in self.covered[name][0]}

    def as_stored(self, name: str, array: np.ndarray) -> np.ndarray:
        """Gives what a kernel is fed of the oracle's tensor.

        Args:
            name: ONNX name of the value.
            array: A tensor of the oracle.

        Returns:
            The same in the type in which the Program holds the value.
        """
        return _as_typed(array, self._types.get(name, str(array.dtype)))

    def _chain(self, call: KernelCall) -> list[KernelCall]:
        """A call and, behind it, those that write what it reads and the graph does not have."""
        calls = [call]
        for each in calls:
            calls += [self._writers[name] for name in each.inputs if onnx_name(self.program, name) not in self.tensors]
        return calls

    def _sources(self, call: KernelCall) -> dict[str, str]:
        """Finds the values of the graph that a call depends on, through those that the graph does not have, and their types."""
        read = [name for each in self._chain(call) for name in each.inputs]
        types = {onnx_name(self.program, name): self.program.find_value(name).type.dtype for name in read}
        return {name: dtype for name, dtype in types.items() if name in self.tensors}

    def _cases(self, index: int, feeds: Tensors, targets: Sequence[str]) -> Iterator[Case]:
        """Gives what a kernel is fed, first the oracle's tensors, each with the values and bounds of what it is to write.

        Raises:
            SepwiseError: How much rounding may do is not known for the oracle's tensors.
        """
        call = self.program.calls[index]
        part = read_graph(extract(self.model, list(feeds), list(targets)))
        winograd = transformed(call, part)
        direct = all(is_direct(each.strategy) for each in self._chain(call))
        key = (*feeds, *targets, *winograd.items(), direct)
        if key in self._kept:
            yield from self._kept[key]
            return
        cases: list[Case] = []
        for kind, drawn in itertools.chain([(ORACLE, feeds)], self._draw(index, part, feeds, direct=direct)):
            try:
                bounds = run_with_bounds(part, drawn, flush=self.flush, winograd=winograd)
            except SepwiseError:  # how much rounding may do is not known there; on the oracle's tensors it is
                if kind == ORACLE:
                    raise
                continue
            if self._alike:
                cases.append((kind, drawn, bounds))
            yield kind, drawn, bounds
        if self._alike:
            self._kept[key] = cases

    def _draw(self, index: int, part: Graph, feeds: Tensors, *, direct: bool) -> Iterator[tuple[str, Tensors]]:
        """Draws what a kernel is fed besides, of each kind that fits it."""
        call = self.program.calls[index]
        types = {name: np.dtype("float16" if dtype == "float16" else "float32") for name, dtype in self._sources(call).items()}
        try:
            stress = Stress(part, feeds, types, index)
        except SepwiseError:
            return
        for kind in STRESSES if stress.drawn else ():
            if kind != NONFINITE or direct:
                yield kind, {name: self.as_stored(name, array) for name, array in stress.draw(kind).items()}

    def _run(self, call: KernelCall, feeds: Tensors) -> Tensors:
        """Runs a call, and before it those that write what the graph does not have."""
        arrays = []
        for name in call.inputs:
            source = onnx_name(self.program, name)
            if source in self.tensors:
                arrays.append(_as_typed(feeds[source], self.program.find_value(name).type.dtype))
            else:
                arrays.append(self._run(self._writers[name], feeds)[name])
        return self.runner.run_kernel(self.program.calls.index(call), arrays)

    def _compare(
        self,
        call: KernelCall,
        feeds: Tensors,
        targets: Mapping[str, str],
        bounds: Mapping[str, tuple[np.ndarray, np.ndarray]],
        kind: str,
    ) -> Check:
        """What a kernel writes against the nodes that it covers; the worst of its outputs."""
        place = KERNEL_INPUTS.index(kind)
        try:
            written = self._run(call, feeds)
        except StrayAccessError as error:
            self.stray = self.stray or call.name
            wrong = Check("kernel", call.name, call.nodes, "failed", math.inf, 0.0, None, None, reason=str(error))
            return replace(wrong, worst_input=place, strategy=call.strategy)
        checks = []
        for target, name in targets.items():
            value, bound = bounds[target]
            if kind == NONFINITE and value.dtype.kind == "f":
                bound = np.minimum(bound, _surely_finite(written[name].dtype))
            placed = kind in (ORACLE, NONFINITE)
            check = compare_kernel(written[name], value, bound, name=call.name, nodes=call.nodes, placed=placed)
            reason = f"{check.reason}, fed {kind}" if check.reason and kind != ORACLE else check.reason
            checks.append(replace(check, worst_tensor=target, worst_input=place, strategy=call.strategy, reason=reason))
        return worst_check(checks)


def check_model(
    run: Callable[[Tensors], Tensors],
    model: ir.Model,
    executed: ir.Model,
    feeds: Sequence[Tensors],
    *,
    name: str,
    flush: bool,
    winograd: Mapping[str, int] | None = None,
) -> tuple[Check, tuple[Agreement, ...]]:
    """Compares a whole network with what rounding explains, and on the first inputs its answers with those of the model.

    Args:
        run: Gives its outputs for inputs, by name.
        model: As it came in.
        executed: The same, or what it was converted to.
        feeds: Inputs by name.
        name: What to call the check.
        flush: Whether it takes and gives 0 for numbers below the normal range.
        winograd: m of the convolutions, by the names of their outputs, that it computes as F(m x m, 3 x 3).

    Returns:
        The check, and the answers.
    """
    oracle = Oracle(executed)
    expected = [oracle.run(feed) for feed in feeds]
    outputs = [run(feed) for feed in feeds]

    @cache
    def sigma(seeds: int) -> list[dict[str, np.ndarray]]:
        return [execution_sigma(oracle, feed, seeds=seeds, flush=flush, winograd=winograd) for feed in feeds]

    check = settle(lambda seeds: compare_execution(outputs, expected, sigma(seeds), name=name))
    answers = expected[0] if executed is model else Oracle(model).run(feeds[0])
    return check, compare_answers(outputs[0], answers, sigma(SEEDS)[0])


def _tell_conversion(runner: Runner, model: ir.Model, feed: Tensors) -> tuple[str, ...]:
    """Says how far the outputs are from those of the model before it was converted, which no tolerance limits."""
    outputs, expected = runner.run(feed), Oracle(model).run(feed)
    notes = []
    for name, right in expected.items():
        if right.dtype.kind != "f":
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            error, size = (float(np.sqrt(np.mean(np.square(each)))) for each in (outputs[name] - right, right))
        if size and math.isfinite(error):
            notes.append(f"{name}: float16, weights and arithmetic, moves it by {error / size:.2g} of its root mean square.")
    return tuple(notes)


def transformed(call: KernelCall, part: Graph) -> dict[str, int]:
    """Finds the convolutions that a kernel computes by Winograd's algorithm, whose bound is another.

    Args:
        call: Knows its strategy.
        part: What it covers.

    Returns:
        m of F(m x m, 3 x 3) by the output of the convolution.
    """
    found = transformed_nodes([call])
    convolutions = [op.outputs[0] for op in part.operations if op.operator == "Conv"]
    return dict.fromkeys(convolutions, next(iter(found.values()))) if found else {}


def transformed_values(nodes: Mapping[str, int], canonical: ir.Model) -> dict[str, int]:
    """Finds the values of a network that are computed by Winograd's algorithm.

    Args:
        nodes: m of F(m x m, 3 x 3) by the name of a node, as `strategies.transformed_nodes` gives it.
        canonical: The network, in canonical form.

    Returns:
        m by the name of a convolution's output.
    """
    convolutions = [node for node in canonical.graph if node.op_type == "Conv" and node.name in nodes]
    return {node.outputs[0].name or "": nodes[node.name or ""] for node in convolutions}


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


def _surely_finite(dtype: np.dtype) -> float:
    """Gives the largest number of a type where nothing comes near to it by itself, so that what is finite has to be."""
    held = format_of(dtype)
    return held.largest if held.holds(BINARY32) else np.inf


def _as_typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """A floating-point tensor in the type that a kernel reads."""
    return array.astype(dtype) if array.dtype.kind == "f" else array
