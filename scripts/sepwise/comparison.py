"""Compares two ONNX files that should compute the same; needs neither TVM nor torch."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    import onnx_ir as ir

    from sepwise.files import ModelFile
    from sepwise.passes.equivalence import Agreement, Check, GraphReference, Verification

__all__ = ["compare_files", "run_onnxruntime"]

NEWEST_FORMAT: Final = 10
"""The version of ONNX's file format that ONNX Runtime is given at most. Later ones added types of a few bits, and refusals by
older runtimes of files that have nothing in them that is new."""


def run_onnxruntime(
    model: ir.Model | Path, feeds: Sequence[Mapping[str, np.ndarray]], *, optimised: bool = False
) -> list[dict[str, np.ndarray]]:
    """Runs a model in ONNX Runtime.

    Args:
        model: What to run, or a file.
        feeds: Input sets.
        optimised: Whether ONNX Runtime may rewrite it; otherwise it runs as it is spelled.

    Returns:
        Outputs by name for each input set.

    Raises:
        CheckFailed: ONNX Runtime does not run it.
    """
    import onnx_ir
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    from sepwise.passes.errors import CheckFailed

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if isinstance(model, onnx_ir.Model):
        proto = onnx_ir.to_proto(model)
        proto.ir_version = min(proto.ir_version, NEWEST_FORMAT)
    try:
        source = proto.SerializeToString() if isinstance(model, onnx_ir.Model) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
        said = re.sub(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", " ".join(str(error).split()))
        raise CheckFailed(f"ONNX Runtime does not run it: {said}") from error


def _run_file(file: ModelFile, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Runs a file in ONNX Runtime as it is spelled.

    Fused operators of ONNX Runtime's own are written as others when a file is loaded, so there the file itself is run.

    Args:
        file: The file.
        model: What was loaded of it; inputs and outputs may have other names by now.
        feeds: Input sets, by the names of the model.

    Returns:
        Outputs by the names of the model for each input set.

    Raises:
        CheckFailed: ONNX Runtime does not run it.
    """
    import onnx

    from sepwise.passes.contrib_operators import has_contrib_operators

    proto = onnx.load(file.path, load_external_data=False)
    if not has_contrib_operators(proto):
        return run_onnxruntime(model, feeds)
    inputs = {value.name: own.name for value, own in zip(model.graph.inputs, proto.graph.input, strict=True)}
    found = run_onnxruntime(file.path, [{inputs[name]: array for name, array in feed.items()} for feed in feeds])
    outputs = {own.name: value.name or "" for value, own in zip(model.graph.outputs, proto.graph.output, strict=True)}
    return [{outputs[name]: array for name, array in each.items()} for each in found]


def _match_names(first: ir.Model, second: ir.Model, labels: Sequence[str]) -> str | None:
    """Gives the inputs and outputs of the second model the names of the first's, by position where names do not survive.

    Inputs that have an initializer are constants: nothing is fed to them.

    Args:
        first: The reference; outputs that it merely passes on get names of their own, in place.
        second: The other, renamed in place.
        labels: What the files are called.

    Returns:
        What was matched, for the reader; None where the names agree.

    Raises:
        InputError: The models differ in the number, the shape or the type of inputs or outputs.
    """
    from sepwise.passes.errors import InputError

    for model in (first, second):
        _separate_outputs(model)
    notes = []
    for kind in ("inputs", "outputs"):
        values = ((model, getattr(model.graph, kind)) for model in (first, second))
        wanted, found = ([value for value in side if not _has_default(model, value)] for model, side in values)
        partners = _pair(wanted, found)
        if partners is None:
            sides = zip((wanted, found), labels, strict=True)
            spelled = (f"{', '.join(map(_spell, side)) or 'none'} of {label}" for side, label in sides)
            raise InputError(
                f"The {kind} of the two files do not fit: {' against '.join(spelled)}. They need the same types and shapes, and "
                "the same names or the same order."
            )
        pairs = [(a.name or "", b.name, b) for a, b in zip(wanted, partners, strict=True) if a.name != b.name]
        made = (value for node in second.graph for value in node.outputs)
        taken = {value.name: value for value in (*made, *second.graph.inputs, *second.graph.initializers.values())}
        for name, _, value in pairs:
            other = taken.get(name)
            if other is not None and other is not value:
                other.name = f"{name}.{second.graph.name or 'second'}"
            value.name = name
        if pairs:
            notes.append(f"{kind} matched by position: " + ", ".join(f"{other} is {name}" for name, other, _ in pairs))
    return "; ".join(notes) or None


def _has_default(model: ir.Model, value: ir.Value) -> bool:
    """Tells whether an input need not be fed, as the model holds a value for it."""
    return value.is_graph_input() and value.name in model.graph.initializers


def _separate_outputs(model: ir.Model) -> None:
    """Makes values of their own of outputs that are inputs, constants or other outputs as well, so that each may be renamed."""
    import onnx_ir

    seen: list[str] = []
    for place, value in enumerate(model.graph.outputs):
        name = value.name or ""
        if value.producer() is None or name in seen:
            again = seen.count(name)
            copy = onnx_ir.Value(name=f"{name}.output{again or ''}", type=value.type, shape=value.shape)
            model.graph.append(onnx_ir.node("Identity", [value], outputs=[copy]))
            model.graph.outputs[place] = copy
        seen.append(name)


def _pair(wanted: Sequence[ir.Value], found: Sequence[ir.Value]) -> list[ir.Value] | None:
    """Finds the partner of each value: that of the same name, and for the others in their order; or else all in their order."""
    if len(wanted) != len(found):
        return None
    names = [value.name for value in wanted]
    same = {value.name: value for value in found}
    rest = (value for value in found if value.name not in names)
    surviving = [same[name] if name in same else next(rest) for name in names]
    return next((pairs for pairs in (surviving, list(found)) if all(map(_alike, wanted, pairs))), None)


def _alike(a: ir.Value, b: ir.Value) -> bool:
    """Tells whether two declarations fit, as far as both are known."""
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        return False
    return a.shape is None or b.shape is None or (
        len(a.shape) == len(b.shape)
        and all(x == y for x, y in zip(a.shape, b.shape, strict=True) if isinstance(x, int) and isinstance(y, int))
    )


def _spell(value: ir.Value) -> str:
    """Writes a declaration as `x float32[1,3,224,224]`, as far as it is known."""
    element = "" if value.dtype is None else str(value.dtype.numpy())
    return f"{value.name} {element}{'' if value.shape is None else value.shape}".strip()


def _require_types(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> None:
    """Checks that arrays have the types of a model's inputs, those that numpy has.

    Raises:
        InputError: One has another.
    """
    from sepwise.passes.errors import InputError

    for value in model.graph.inputs:
        array = inputs.get(value.name or "")
        if array is None or value.dtype is None:
            continue
        needed = value.dtype.numpy()
        if needed.kind != "V" and array.dtype != needed:  # bfloat16 cannot be saved as an npz: any floating point will do
            found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
            _, _, declared = _spell(value).rpartition(" ")
            raise InputError(f"Input '{value.name}': found {found}, needed {declared}.")


def _compare_declarations(files: Sequence[ModelFile], labels: Sequence[str]) -> list[str]:
    """Says where two files leave other dimensions of an input open, of which one shape was fixed."""
    import onnx

    if not any(file.shapes for file in files):
        return []
    graphs = [onnx.load(file.path, load_external_data=False).graph for file in files]
    first, second = ({value.name: _spell_dimensions(value.type.tensor_type.shape) for value in graph.input} for graph in graphs)
    return [
        f"{name} is {first[name]} in {labels[0]} and {second[name]} in {labels[1]}: they are compared at the given shape alone"
        for name in first
        if name in second and first[name] != second[name]
    ]


def _spell_dimensions(shape: onnx.TensorShapeProto) -> str:
    """Writes a declared shape; all open dimensions are alike, whatever they are called."""
    return f"[{','.join(str(dim.dim_value) if dim.dim_value > 0 else '?' for dim in shape.dim)}]"


def _compare_formats(first: ir.Model, second: ir.Model, labels: Sequence[str]) -> list[str]:
    """Says that the second file has constants of fewer digits than the first, whose rounding is then taken for a mistake."""
    from sepwise.passes.equivalence.graph import read_graph

    graphs = [read_graph(model) for model in (first, second)]
    held = [[graph.format_of(name) for name, array in graph.constants.items() if array.dtype.kind == "f"] for graph in graphs]
    if not all(held):
        return []
    a, b = (max(formats, key=lambda each: each.unit) for formats in held)
    if b.unit <= a.unit:
        return []
    return [
        f"{labels[1]} holds constants in {b.dtype} and {labels[0]} none below {a.dtype}, whose rounding is all that is allowed: "
        "to judge such a conversion give the coarser file first"
    ]


def _labels(first: ModelFile, second: ModelFile) -> tuple[str, str]:
    """Calls two files by their names, by their paths where those are alike, and one file twice by its place."""
    if first.path.name != second.path.name:
        return first.path.name, second.path.name
    if first.path != second.path:
        return str(first.path), str(second.path)
    return first.path.name, f"{second.path.name} (second)"


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Says which of two files it is that cannot be computed."""
    from sepwise.passes.errors import InputError

    try:
        yield
    except InputError as error:
        raise type(error)(f"{label}: {error}") from error


def _judge(outputs: Sequence[Mapping[str, np.ndarray]], reference: GraphReference, name: str, seeds: int) -> Check:
    """Compares what an execution gave with a reference, by sigma_x from a number of seeds."""
    from sepwise.passes.equivalence import compare_execution

    return compare_execution(outputs, reference.outputs, reference.execution_sigma(seeds), name=name)


def compare_files(
    first: ModelFile, second: ModelFile, inputs: Mapping[str, np.ndarray] | None = None, *, bisect: bool = False
) -> Verification:
    """Decides whether two files compute the same.

    Args:
        first: The reference.
        second: What should compute the same, with inputs and outputs of the same names, or as many in the same order.
        inputs: Arrays by input name; drawn where None.
        bisect: Whether to narrow a difference down to operators.

    Returns:
        One graph check for each output; where all are right one for the parts that differ, by themselves, and a skipped one for
        each branch that differs and that no input takes; one model check
        for each file that ONNX Runtime runs, unless it is not known how an operator rounds, which a note says; a note for one
        that it cannot run for lack of a kernel, or not even as the reference is spelled. One that it does not run though it
        runs the reference is skipped.

    Raises:
        InputError: A file cannot be used, or they differ in inputs or outputs.
    """
    from dataclasses import replace

    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as MissingKernel

    from sepwise.passes import load_model
    from sepwise.passes.equivalence import (
        NETWORK_KINDS,
        Check,
        GraphReference,
        Verification,
        bisect_graphs,
        compare_answers,
        compare_branches,
        compare_graph,
        compare_parts,
        compare_precision,
        sample_inputs,
        settle,
    )
    from sepwise.passes.errors import CheckFailed, UnsupportedError

    models = [load_model(file.path, shapes=file.shapes) for file in (first, second)]
    labels = _labels(first, second)
    matched = _match_names(models[0], models[1], labels)
    notes = [*([] if matched is None else [matched]), *_compare_declarations((first, second), labels)]
    described: tuple[str, ...]
    if inputs is not None:
        _require_types(models[0], inputs)
        feeds, described = [dict(inputs)], ("given",)
    else:
        feeds, described = [sample_inputs(models[0], seed, kind) for seed, kind in enumerate(NETWORK_KINDS)], NETWORK_KINDS
    with _named(labels[0]):
        reference = GraphReference(models[0], feeds)
    with _named(labels[1]):
        checks = compare_graph(reference, models[1], called=labels[1])
    if all(check.status != "failed" for check in checks):
        checks += compare_branches(models[0], models[1], feeds)
        checks += compare_parts(models[0], models[1], feeds[0])
    wrong = tuple(check for check in checks if check.status == "failed")
    if wrong:
        notes += _compare_formats(models[0], models[1], labels)
    else:
        checks += compare_precision(reference, models[1])
    agreement: tuple[Agreement, ...] = ()
    runs, judged = 0, True
    try:
        reference.execution_sigma()
    except UnsupportedError as error:  # both have to run, even so
        notes.append(f"not judged in ONNX Runtime: {error}")
        judged = False
    for label, file, model in zip(labels, (first, second), models, strict=True):
        name = f"{label} in ONNX Runtime"
        try:
            outputs = _run_file(file, model, feeds)
        except CheckFailed as error:
            if isinstance(error.__cause__, MissingKernel) or not runs:
                notes.append(f"{label}: {error}")
            else:
                checks.append(Check("model", name, (), "skipped", 0.0, 0.0, None, None, reason=str(error)))
        else:
            runs += 1
            if not judged:
                continue
            checks.append(settle(partial(_judge, outputs, reference, name)))
            if inputs is not None and model is models[1]:
                agreement = compare_answers(outputs[0], reference.outputs[0], reference.execution_sigma()[0])
    failed = [check for check in checks if check.status == "failed"]
    if not wrong and len([check for check in failed if check.scope == "model"]) == len(models):
        notes.append(
            "both files fail in ONNX Runtime and compute the same in float64: look for an operation that it computes otherwise, "
            "whichever is right, rather than for a wrong rewrite"
        )
    if bisect and not wrong and failed:
        notes.append(
            "not narrowed down: computed in float64 no part differs by more than the rounding of its constants; what failed is "
            "how an execution rounds"
        )
    verdict = Verification(
        first.name,
        None,
        tuple(checks),
        against=second.name,
        inputs=described,
        agreement=agreement,
        notes=tuple(notes),
    )
    if not bisect or not wrong:
        return verdict
    shown = wrong[0].worst_input or 0
    # The first set of inputs tells values apart; on the other, which shows the difference, many may be saturated.
    found = bisect_graphs(models[0], models[1], [feeds[place] for place in sorted({0, shown})])
    return replace(verdict, reproducer=replace(found, checks=tuple(check.name for check in wrong)))
