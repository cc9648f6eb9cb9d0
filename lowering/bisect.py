"""Narrows a failure on a target: to a pass and its operators, to a kernel, or to the first value that the Program gets wrong.

    a pass fails      the first one that does, between the model before it and the model behind it (`bisect_graphs`)
    a kernel fails    the smallest one that fails by itself too, as the part of the graph that it covers
    only the whole    each kernel is right on the oracle's tensors, so it is fed others: the first call that writes something
                      else in the course of a run than alone on the same tensors; where there is none, the tail, if it is
                      wrong on the oracle's tensors; otherwise the rounding of kernels adds up, and the one counts that is
                      worst against what rounding explains

Whatever is found is verified by itself, in the smallest part of the model that fails, before it is said to reproduce.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from sepwise.lowering.guarded import StrayAccessError
from sepwise.lowering.program import Home, KernelCall
from sepwise.lowering.verify import CONVERSION, onnx_name, transformed, verify_model
from sepwise.passes.equivalence import (
    Oracle,
    Reproducer,
    bisect_graphs,
    compare_execution,
    compare_kernel,
    execution_sigma,
    extract,
    reduce_inputs,
    run_with_bounds,
)
from sepwise.passes.equivalence.graph import read_graph
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import BufferRef, Program, Tail
    from sepwise.lowering.verify import KernelChecker
    from sepwise.passes.equivalence import Check

__all__ = ["bisect_kernels", "bisect_passes", "bisect_program"]

PART = "part.onnx"

WHOLE = "Every kernel is right, and each writes in the course of a run what it writes alone. The files are the whole model."
"""What is said where nothing smaller than the model fails."""

ATTEMPTS = 4
"""Parts that are compiled by themselves in search of one that fails."""

Arrays = dict[str, np.ndarray]


def bisect_passes(
    stages: Sequence[tuple[str, ir.Model]], checks: Sequence[Check], feeds: Sequence[Mapping[str, np.ndarray]]
) -> Reproducer:
    """Narrows the failure of a pass.

    A conversion to float16 is looked at from its result, whose constants say what rounding explains.

    Args:
        stages: Names of the passes with the model behind each, the model as it came in first.
        checks: One for each output behind each pass but the first.
        feeds: The inputs that were checked.

    Returns:
        What the first wrong pass made wrong.
    """
    outputs = len(checks) // (len(stages) - 1)
    place = next(place for place, check in enumerate(checks) if check.status == "failed")
    first, shown = place // outputs, checks[place].worst_input or 0
    (_, before), (name, after) = stages[first : first + 2]
    failed = tuple(check.name for check in checks[first * outputs : (first + 1) * outputs] if check.status == "failed")
    # The first set of inputs tells values apart; on the other, which shows the failure, many may be saturated.
    if name == CONVERSION:
        before, after = after, before
    found = bisect_graphs(before, after, [feeds[each] for each in sorted({0, shown})])
    return replace(found, finding=(f"The pass {name} is wrong.", *found.finding), checks=failed)


def bisect_kernels(checker: KernelChecker, checks: Sequence[Check], device: Device, threads: int) -> Reproducer:
    """Narrows the failure of kernels.

    Args:
        checker: Holds the Program, what runs it, and the graph.
        checks: Of all kernels.
        device: The target.
        threads: Workers.

    Returns:
        The smallest kernel that fails compiled by itself as well; the smallest that fails where there is none.
    """
    program = checker.program
    failed = {check.name: check for check in checks if check.status == "failed"}
    sizes = {call.name: _elements(program, call) for call in program.calls}
    by_size = sorted(failed, key=lambda name: (set(checker.covered[name][0]) == set(checker.covered[name][1]), sizes[name]))
    found = None
    for name in by_size[:ATTEMPTS]:
        tried = _isolate_kernel(checker, failed[name], device, threads)
        found = found or tried
        if tried.reproduces:
            found = tried
            break
    assert found is not None, "a kernel failed"
    others = [name for name in failed if name not in found.checks]
    further = (f"Further kernels that are wrong: {', '.join(others)}.",) if others else ()
    return replace(found, finding=(*found.finding, *further))


def _elements(program: Program, call: KernelCall) -> int:
    """Elements that a call reads and writes."""
    return sum(math.prod(program.find_value(name).type.shape) for name in (*call.inputs, *call.outputs))


def _isolate_kernel(checker: KernelChecker, check: Check, device: Device, threads: int) -> Reproducer:
    """Cuts out what a kernel covers and tries it by itself, on the smallest input on which the kernel fails."""
    program = checker.program
    index = next(place for place, call in enumerate(program.calls) if call.name == check.name)
    call = program.calls[index]
    sources, targets = checker.covered[call.name]
    part = extract(checker.model, sources, targets)
    feeds = dict(checker.feeds_of(call.name))
    reduced = feeds
    if {onnx_name(program, name) for name in call.inputs} == set(sources):
        reduced = reduce_inputs(feeds, lambda trial: _kernel_fails(checker, index, part, trial))
    finding = (
        f"The kernel {call.name} ({call.strategy}) is wrong: {check.reason}.",
        f"It computes {', '.join(map(repr, targets))} from {', '.join(map(repr, feeds))}: nodes {', '.join(call.nodes)}.",
    )
    return _try_alone(finding, call, part, (reduced, feeds), device, threads, (check.name,))


def _kernel_fails(checker: KernelChecker, index: int, part: onnx.ModelProto, feeds: Arrays) -> bool:
    """Tells whether a kernel, as it ships, is wrong on some tensors."""
    call = checker.program.calls[index]
    bounds = run_with_bounds(part, feeds, flush=checker.flush, winograd=transformed(call, read_graph(part)))
    arrays = [feeds[onnx_name(checker.program, name)] for name in call.inputs]
    try:
        written = {onnx_name(checker.program, name): array for name, array in checker.runner.run_kernel(index, arrays).items()}
    except StrayAccessError:
        return True
    return any(compare_kernel(written[name], *bound).status == "failed" for name, bound in bounds.items())


def _try_alone(
    finding: Sequence[str],
    step: KernelCall | Tail | None,
    part: onnx.ModelProto,
    candidates: Sequence[Mapping[str, np.ndarray]],
    device: Device,
    threads: int,
    checks: Sequence[str],
) -> Reproducer:
    """Verifies a part by itself, on the first of some inputs that shows a failure; None as the step is the whole model."""
    shown = next((feeds for feeds in candidates if _fails_alone(part, feeds, device, threads)), None)
    options = () if threads == 1 else ("--threads", str(threads))
    return Reproducer(
        finding=tuple(finding),
        nodes=() if step is None else step.nodes,
        models={PART: part},
        inputs=candidates[0] if shown is None else shown,
        arguments=("verify", PART, "--target", device.name, "--input", "input.npz", *options),
        reproduces=shown is not None,
        workload={} if step is None else _describe(step, device, threads),
        checks=tuple(checks),
    )


def _describe(step: KernelCall | Tail, device: Device, threads: int) -> dict[str, object]:
    """What was compiled, for whom, and how."""
    facts: dict[str, object] = {"kernel": step.name, "target": device.name, "threads": threads, "strategy": step.strategy}
    if isinstance(step, KernelCall):
        facts |= {"workload": step.workload, "tile": step.tile, "tasks": step.tasks}
    return {**facts, "macs": step.macs, "nodes": list(step.nodes)}


def _fails_alone(part: onnx.ModelProto, feeds: Mapping[str, np.ndarray], device: Device, threads: int) -> bool:
    """Compiles and verifies a part by itself."""
    try:
        found = verify_model(ir.from_proto(part), device, inputs=feeds, threads=threads)
    except SepwiseError:
        return False
    return any(check.status == "failed" for check in found.checks)


def bisect_program(checker: KernelChecker, model: ir.Model, check: Check, device: Device, threads: int) -> Reproducer:
    """Narrows a failure of the whole where every kernel is right.

    Args:
        checker: Holds the Program, what runs it, and the graph.
        model: The canonical model.
        check: What failed.
        device: The target.
        threads: Workers.

    Returns:
        The first call that goes wrong in the course of a run and the smallest part of the model in which it does, or the
        tail, or the kernel whose rounding is worst, or the whole model.
    """
    program = checker.program
    feeds = {value.name: checker.tensors[value.name] for value in program.inputs}
    wrong = _first_wrong_call(checker, feeds)
    if wrong is None:
        return (
            _wrong_tail(checker, feeds, check, device, threads)
            or _worst_rounding(checker, check, device, threads)
            or _try_alone((WHOLE,), None, ir.to_proto(model), (feeds,), device, threads, (check.name,))
        )
    sources, targets = checker.covered[wrong.name]
    target = next(iter(targets), onnx_name(program, wrong.outputs[0]))
    finding = (
        f"Every kernel is right by itself, but {wrong.name} writes something else in the course of a run than on the same "
        f"tensors alone: {_explain(program, wrong)}.",
        f"It computes '{target}' from {', '.join(map(repr, sources))}: nodes {', '.join(wrong.nodes)}.",
    )
    smallest = None
    for part, inputs in _parts_before(checker, target, feeds):
        tried = _try_alone(finding, wrong, part, (inputs,), device, threads, (check.name,))
        if tried.reproduces or smallest is None:
            smallest = tried
        if not tried.reproduces:
            break
    assert smallest is not None, "the model from its inputs on is a part"
    return smallest


def _first_wrong_call(checker: KernelChecker, feeds: Mapping[str, np.ndarray]) -> KernelCall | None:
    """Finds the first call that, run again alone on what the calls before it wrote, writes something else."""
    program = checker.program
    names = [name for call in program.calls for name in call.outputs]
    kept = {**feeds, **checker.runner.run_keeping(feeds, names)}
    for index, call in enumerate(program.calls):
        written = checker.runner.run_kernel(index, [kept[name] for name in call.inputs])
        for name, array in written.items():
            if not np.array_equal(array, kept[name], equal_nan=array.dtype.kind == "f"):
                return call
    return None


def _explain(program: Program, reader: KernelCall) -> str:
    """Says which value a call does not find where and as it was written."""
    place = program.calls.index(reader)
    writes = [
        (index, name, reference)
        for index, call in enumerate(program.calls)
        for name, reference in zip(call.outputs, call.arguments[-len(call.outputs) :], strict=True)
    ]
    for name, reference in zip(reader.inputs, reader.arguments, strict=False):
        written = next(((index, at) for index, other, at in writes if other == name), None)
        if written is None:  # an input of the network, or a view of what was written under another name
            earlier = [(index, at) for index, _, at in writes if at == reference and index < place]
            written = earlier[-1] if earlier else (-1, reference)
        index, at = written
        if index > place:
            return f"it reads '{name}' before {program.calls[index].name} writes it"
        if at != reference:
            return f"it reads '{name}' elsewhere than {program.calls[index].name} writes it"
        for later, other, over in writes:
            if index < later < place and _overlap(program, name, reference, other, over):
                return f"{program.calls[later].name} writes '{other}' over '{name}', which it reads"
        for call in program.calls[index + 1 : place]:
            if reference.home is Home.ARENA and _in_scratch(program, call, name, reference):
                return f"the scratch of {call.name} lies over '{name}', which it reads"
    return "what it reads was overwritten"


def _overlap(program: Program, name: str, reference: BufferRef, other: str, over: BufferRef) -> bool:
    """Whether two values share bytes."""
    if reference.home != over.home or reference.home is not Home.ARENA:
        return reference == over
    low, high = sorted(((reference.offset, name), (over.offset, other)))
    return low[0] + program.find_value(low[1]).type.nbytes > high[0]


def _in_scratch(program: Program, call: KernelCall, name: str, reference: BufferRef) -> bool:
    """Whether a value of the arena shares bytes with a call's scratch."""
    end = reference.offset + program.find_value(name).type.nbytes
    return reference.offset < call.scratch_offset + call.scratch_bytes and call.scratch_offset < end


def _parts_before(
    checker: KernelChecker, target: str, feeds: Mapping[str, np.ndarray]
) -> list[tuple[onnx.ModelProto, Arrays]]:
    """Cuts out what computes a value: from the network's inputs on, then from ever later values that it wholly depends on."""
    parts = [(extract(checker.model, list(feeds), [target]), dict(feeds))]
    for call in checker.program.calls:
        for name in checker.covered.get(call.name, ((), ()))[1]:
            if name == target:
                return _spread(parts)
            try:
                parts.append((extract(checker.model, [name], [target]), {name: checker.tensors[name]}))
            except SepwiseError:
                continue  # another path leads past this value
    return _spread(parts)


def _spread(parts: list[tuple[onnx.ModelProto, Arrays]]) -> list[tuple[onnx.ModelProto, Arrays]]:
    """Picks a few parts at even distances, the largest among them."""
    step = max(-(-len(parts) // ATTEMPTS), 1)
    return parts[::step]


def _wrong_tail(
    checker: KernelChecker, feeds: Mapping[str, np.ndarray], check: Check, device: Device, threads: int
) -> Reproducer | None:
    """Tries what TVM's virtual machine runs by itself, on the oracle's tensors."""
    tail = checker.program.tail
    if tail is None:
        return None
    part = extract(checker.model, tail.inputs, tail.outputs)
    oracle = Oracle(checker.model).run(feeds, keep=set(tail.inputs) - set(feeds))
    kept = {name: checker.as_stored(name, array) for name, array in {**oracle, **feeds}.items()}
    finding = (
        "Every kernel is right, but the end of the network, which TVM's virtual machine runs, is wrong.",
        f"It computes {', '.join(map(repr, tail.outputs))} from {', '.join(map(repr, tail.inputs))}: "
        f"nodes {', '.join(tail.nodes)}.",
    )
    inputs = {name: kept[name] for name in tail.inputs}
    tried = _try_alone(finding, tail, part, (inputs,), device, threads, (check.name,))
    return tried if tried.reproduces else None


def _worst_rounding(checker: KernelChecker, check: Check, device: Device, threads: int) -> Reproducer | None:
    """Finds the kernel, right by its bound, that is worst against what rounding is expected to do."""
    program = checker.program
    worst: tuple[float, KernelCall, onnx.ModelProto, Arrays] | None = None
    for index, call in enumerate(program.calls):
        sources, targets = checker.covered[call.name]
        if not targets or set(sources) == set(targets) or [onnx_name(program, name) for name in call.inputs] != list(sources):
            continue
        feeds = {name: checker.tensors[name] for name in sources}
        part = Oracle(proto := extract(checker.model, list(feeds), targets))
        arrays = [feeds[onnx_name(program, name)] for name in call.inputs]
        written = {onnx_name(program, name): array for name, array in checker.runner.run_kernel(index, arrays).items()}
        try:
            winograd = transformed(call, part.graph)
            sigma = execution_sigma(part, feeds, flush=checker.flush, winograd=winograd)
            judged = compare_execution(written, part.run(feeds), sigma)
        except SepwiseError:
            continue
        ratio = math.inf if judged.worst_ratio is None else judged.worst_ratio
        if judged.status == "failed" and (worst is None or ratio > worst[0]):
            worst = (ratio, call, proto, feeds)
    if worst is None:
        return None
    ratio, call, proto, feeds = worst
    finding = (
        f"Every kernel is within its bound, but {call.name} ({call.strategy}) is off by {ratio:.3g} times what "
        "rounding is expected to be.",
        f"It computes {', '.join(map(repr, checker.covered[call.name][1]))}: nodes {', '.join(call.nodes)}.",
    )
    return _try_alone(finding, call, proto, (feeds,), device, threads, (check.name,))
