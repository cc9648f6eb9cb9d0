"""Walks a graph in order and hands each operation to a step function.

The values may be of any kind: plain arrays (the oracle), perturbed arrays (the tolerances), values with their error
bounds (the running error analysis).
"""

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np
from onnx import helper

from sepwise.passes.equivalence.formats import FORMATS, Format
from sepwise.passes.equivalence.graph import Array, Graph, Operation, widen
from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["interpret", "read_inputs"]

V = TypeVar("V")


def interpret(
    graph: Graph,
    scope: Mapping[str, V],
    *,
    constant: Callable[[str, Array, Format], V],
    step: Callable[[Operation, list[V | None]], tuple[V, ...]],
    truth: Callable[[V], bool],
    keep: Collection[str] = (),
) -> dict[str, V]:
    """Runs a graph.

    Args:
        graph: the graph.
        scope: values of its inputs, and of what it takes from around it.
        constant: makes a value of a named constant, which is stored in the given format where that is of floating-point numbers.
        step: computes one operation; an input that is left out is None.
        truth: reads a value as the condition of an If.
        keep: names to return besides the outputs.

    Returns:
        Values of the outputs, then of what was to be kept. Others are released after their last use.

    Raises:
        InputError: if a name to keep does not exist in the graph.
    """
    wanted = dict.fromkeys([*(port.name for port in graph.outputs), *keep])
    last_use: dict[str, int] = {}
    for index, op in enumerate(graph.operations):
        used = [name for name in op.inputs if name]
        for subgraph in op.subgraphs():
            used.extend(subgraph.captured())
        last_use.update(dict.fromkeys(used, index))
    released: dict[int, list[str]] = {}
    for name, index in last_use.items():
        if name not in wanted:
            released.setdefault(index, []).append(name)

    values = {**scope, **{name: constant(name, array, graph.format_of(name)) for name, array in graph.constants.items()}}
    for index, op in enumerate(graph.operations):
        if op.operator == "If":
            branch = op.attributes["then_branch" if truth(values[op.inputs[0]]) else "else_branch"]
            assert isinstance(branch, Graph)
            results = tuple(interpret(branch, values, constant=constant, step=step, truth=truth).values())
        elif any(True for _ in op.subgraphs()):
            raise UnsupportedError(f"{op}: loops are not supported. Unroll it, or remove it from the model.")
        else:
            try:
                operands = [values[name] if name else None for name in op.inputs]
            except KeyError as error:
                raise InputError(f"{op} reads {error.args[0]!r}, which nothing before it computes. Check the model.") from None
            results = step(op, operands)
        values.update((name, result) for name, result in zip(op.outputs, results, strict=False) if name)
        for name in released.get(index, ()):
            values.pop(name, None)
    missing = [name for name in wanted if name not in values]
    if missing:
        raise InputError(f"The graph has no value named {missing[0]!r}.")
    return {name: values[name] for name in wanted}


def read_inputs(graph: Graph, inputs: Mapping[str, Array], *, stored: bool) -> dict[str, Array]:
    """Checks input tensors against a graph and widens them.

    Args:
        graph: the graph.
        inputs: tensors by input name.
        stored: rounds floating-point tensors to the format of their input first, as an execution is fed.

    Raises:
        InputError: if a tensor is missing, unknown, or of another shape or kind than declared.
    """
    known = {port.name for port in graph.inputs}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise InputError(f"There is no input {unknown[0]!r}; the inputs are {', '.join(sorted(known)) or 'none'}.")
    feeds = {}
    for port in graph.inputs:
        if port.name not in inputs:
            raise InputError(f"No tensor is given for input {port.name!r}; the inputs are {', '.join(sorted(known))}.")
        array = np.asarray(inputs[port.name])
        fits = port.shape is None or (
            len(port.shape) == array.ndim and all(d in {None, s} for d, s in zip(port.shape, array.shape, strict=True))
        )
        if not fits:
            raise InputError(f"Input {port.name!r} has shape {tuple(array.shape)}; the model declares {port.shape}.")
        declared = np.dtype(helper.tensor_dtype_to_np_dtype(port.element_type)) if port.element_type else array.dtype
        floating = port.element_type in FORMATS
        fits = widen(array).dtype == np.float64 if floating else array.dtype == declared
        if port.element_type and not fits:
            raise InputError(f"Input {port.name!r} has type {array.dtype}; the model declares {declared}.")
        array = widen(array)
        feeds[port.name] = graph.format_of(port.name).round(array) if stored and array.dtype.kind == "f" else array
    return feeds
