"""Branches of an If that no input takes: what they compute reaches no output, so that comparing those says nothing of it.

A condition that does not depend on the elements of the inputs, but at most on their shapes, is always the same: a branch that it
never takes is dead, and rewrites drop it. Every other one has to be taken on some input set, or be the same in both graphs.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sepwise.passes.equivalence.alignment import spell_operation
from sepwise.passes.equivalence.compare import Check
from sepwise.passes.equivalence.graph import Array, Attribute, Graph, Model, Operation, read_graph
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import evaluate
from sepwise.passes.equivalence.tolerances import STRUCTURE

__all__ = ["compare_branches"]

SIZED_BY_DATA = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))

CHOICES = {True: "then_branch", False: "else_branch"}


def compare_branches(original: Model, rewritten: Model, inputs: Sequence[Mapping[str, Array]]) -> list[Check]:
    """Finds the branches of which nothing is known as no input takes them.

    Args:
        original: the model as it came in.
        rewritten: a model whose outputs are those of the original.
        inputs: sets of tensors by input name.

    Returns:
        A skipped check for each branch that no input set takes and that the other model does not have like this.

    Raises:
        InputError: if the inputs do not fit.
        UnsupportedError: if an operator is not known.
    """
    untaken = [_untaken(read_graph(model), inputs) for model in (original, rewritten)]
    checks: dict[str, Check] = {}
    for own, others in (untaken, reversed(untaken)):
        left = [key for _, _, key in others]
        for op, name, key in own:
            if key in left:
                left.remove(key)
                continue
            title = f"{name} of {op}"
            reason = "no input set takes it, and the two files differ there: give inputs that take it"
            checks[title] = Check("graph", title, (op.name or op.outputs[0],), "skipped", 0.0, 0.0, None, None, reason=reason)
    return list(checks.values())


def _untaken(graph: Graph, inputs: Sequence[Mapping[str, Array]]) -> list[tuple[Operation, str, Hashable]]:
    """Lists the branches that no input set takes, as the If, the name of the branch, and what it computes."""
    choosing = list(_choosing(graph, _from_data(graph)))
    if not choosing:
        return []
    seen: dict[str, set[bool]] = {}
    probed = _probed(graph, {op.outputs: _probe(op) for op, _ in choosing})

    def step(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
        if op.operator == PROBE:
            assert operands[0] is not None
            seen.setdefault(op.outputs[0], set()).add(bool(operands[0].all()))
            return (operands[0],)
        return evaluate(op, operands)

    for feeds in inputs:
        with np.errstate(all="ignore"):
            interpret(
                probed,
                read_inputs(probed, feeds, stored=False),
                constant=lambda _, array, __: array,
                step=step,
                truth=lambda value: bool(value.all()),
            )
    found = []
    for op, constants in choosing:
        taken = seen.get(_probe(op).outputs[0], set())  # none where the If itself is in a branch that is not taken
        for choice in {True, False} - taken if taken else ():
            branch = op.attributes[CHOICES[choice]]
            assert isinstance(branch, Graph)
            found.append((op, CHOICES[choice], _spell(branch, constants, {})))
    return found


PROBE = "Probe"


def _probe(op: Operation) -> Operation:
    """An operation that shows the condition of an If."""
    return Operation(PROBE, op.version, "", op.inputs, (f"{op.outputs[0]}/condition",))


def _probed(graph: Graph, probes: Mapping[tuple[str, ...], Operation]) -> Graph:
    """Puts an operation that shows it in front of each condition."""
    operations = []
    for op in graph.operations:
        if op.outputs in probes:
            operations.append(probes[op.outputs])
        inner: dict[str, Attribute] = {
            name: _probed(value, probes) if isinstance(value, Graph) else value for name, value in op.attributes.items()
        }
        operations.append(replace(op, attributes=inner))
    return replace(graph, operations=tuple(operations))


def _choosing(
    graph: Graph, from_data: set[str], around: Mapping[str, Array] | None = None
) -> Iterator[tuple[Operation, Mapping[str, Array]]]:
    """Yields each If whose condition depends on data, with the constants that its branches may read."""
    constants = {**(around or {}), **graph.constants}
    for op in graph.operations:
        if op.operator == "If" and op.inputs[0] in from_data:
            yield op, constants
        for subgraph in op.subgraphs():
            yield from _choosing(subgraph, from_data, constants)


def _from_data(graph: Graph) -> set[str]:
    """Lists what depends on the elements of the inputs, and not on their shapes alone."""
    values = {port.name for port in graph.inputs}
    sized: set[str] = set()  # of as many elements as the inputs' elements say
    for op in _nested(graph):
        read = {*op.inputs, *(name for subgraph in op.subgraphs() for name in subgraph.captured())}
        places = STRUCTURE.get(op.operator, ())
        shaped = any(op.inputs[place] in values for place in places if place < len(op.inputs))
        if read & sized or (read & values and (op.operator in SIZED_BY_DATA or shaped)):
            sized.update(op.outputs)
        if read & (sized if op.operator in ("Shape", "Size") else values):
            values.update(op.outputs)
    return values - {""}


def _nested(graph: Graph) -> Iterator[Operation]:
    for op in graph.operations:
        for subgraph in op.subgraphs():
            yield from _nested(subgraph)
        yield op


def _spell(graph: Graph, constants: Mapping[str, Array], numbers: Mapping[str, int]) -> Hashable:
    """Spells what a branch computes so that equal ones compare equal, whatever the names in it are."""
    scope = replace(graph, constants={**constants, **graph.constants})
    numbers = dict(numbers)
    spelled = []
    for op in graph.operations:
        graphs = {name: each for name, each in op.attributes.items() if isinstance(each, Graph)}
        inner = [(name, _spell(each, scope.constants, numbers)) for name, each in graphs.items()]
        plain = replace(op, attributes={name: each for name, each in op.attributes.items() if name not in graphs})
        reads = tuple("" if name in scope.constants else numbers.get(name, name) for name in op.inputs)
        spelled.append((spell_operation(plain, scope), op.version, reads, len(op.outputs), tuple(sorted(inner))))
        numbers.update((name, len(numbers) + place) for place, name in enumerate(op.outputs))
    names = [port.name for port in graph.outputs]
    made = tuple(numbers.get(name, name) for name in names if name not in scope.constants)
    return (tuple(spelled), made, spell_operation(Operation("Identity", 1, "", tuple(names), ("",)), scope))
