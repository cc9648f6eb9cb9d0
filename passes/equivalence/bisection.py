"""Narrows a difference between two models to the operators that make it, as two small files and one input.

    original, rewritten  --find_faults-->  the part that moves the outputs most, beyond its tolerance
                         --extract------>  before.onnx, after.onnx: that part alone, from the original and in its place
                         --reduce------->  input.npz: zero wherever the input need not be anything else

The files stand for themselves: `sepwise verify before.onnx --against after.onnx --input input.npz` fails as the whole did.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from sepwise.passes.equivalence.alignment import Fault, Side, find_faults, spell_operation
from sepwise.passes.equivalence.compare import Check, compare_graph
from sepwise.passes.equivalence.extract import declared_types, extract, extract_like
from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation, as_proto, read_graph, spell_out
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.parts import find_unseen_faults
from sepwise.passes.equivalence.reproducer import Reproducer
from sepwise.passes.errors import SepwiseError

__all__ = ["bisect_graphs", "reduce_inputs"]

TRIALS = 48
"""At most so many runs to make an input smaller,"""

TRIAL_ELEMENTS = 1 << 24
"""and fewer where its elements, over all runs, would be more than this."""


def bisect_graphs(original: Model, rewritten: Model, inputs: Sequence[Mapping[str, Array]]) -> Reproducer:
    """Narrows a difference between two models.

    Args:
        original: the model as it came in.
        rewritten: a model that computes something else, with inputs and outputs of the same names.
        inputs: sets of tensors by input name, on which they differ or which at least tell values apart.

    Returns:
        The part beyond its own tolerance that moves the outputs most, on what is drawn for it where it moves none; or both models
        whole where each part is within its own.

    Raises:
        InputError: if the inputs do not fit.
    """
    sides = [_flat(as_proto(model)) for model in (original, rewritten)]
    graphs = [read_graph(side) for side in sides]
    named = [{name for node in side.graph.node for name in node.output} for side in sides]
    faults = find_faults(graphs[0], graphs[1], inputs, named=named[0], rewritten_named=named[1])
    if not faults:
        faults = find_unseen_faults(Side(graphs[0], named[0]), Side(graphs[1], named[1]), inputs[0])
    for fault in faults:
        found = _isolate(fault, sides, graphs, as_proto(rewritten), inputs)
        if found is not None:
            others = [f"Further parts that differ: {len(faults) - 1}."] if len(faults) > 1 else []
            return replace(found, finding=(*found.finding, *others))
    finding = "No part of it differs beyond its own tolerance; the files are the whole models."
    whole = {"before.onnx": sides[0], "after.onnx": sides[1]}
    failing = [feeds for feeds in inputs if any(map(_fails, compare_graph(sides[0], sides[1], feeds)))]
    return Reproducer((finding,), (), whole, dict((failing or inputs)[0]), _ARGUMENTS, reproduces=bool(failing))


_ARGUMENTS = ("verify", "before.onnx", "--against", "after.onnx", "--input", "input.npz")


def _flat(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Opens model-local functions and what the oracle takes by its definition, so that a part may be cut inside of them."""
    proto = spell_out(proto)
    if not proto.functions:
        return proto
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def _isolate(
    fault: Fault,
    sides: Sequence[onnx.ModelProto],
    graphs: Sequence[Graph],
    rewritten: onnx.ModelProto,
    inputs: Sequence[Mapping[str, Array]],
) -> Reproducer | None:
    """Makes files of a fault and the smallest input that shows it; None where they do not show it by themselves."""
    oracle = Oracle(graphs[0])
    keep = {*fault.inputs, fault.output} - {port.name for port in graphs[0].inputs}
    runs = [{**feeds, **oracle.run(feeds, keep=keep), **fault.drawn} for feeds in (inputs[:1] if fault.drawn else inputs)]
    known = declared_types(sides[0], [*fault.inputs, fault.output])
    types = {name: _described(name, runs[0][name], known.get(name), graphs[0]) for name in (*fault.inputs, fault.output)}
    try:
        before = extract(sides[0], fault.inputs, [fault.output], types=types)
        after = extract_like(sides[1], fault.rewritten_inputs, (fault.rewritten_output, fault.output), before)
        for run in runs:
            feeds = {name: _stored(run[name], types[name]) for name in fault.inputs}
            check = _check(before, after, feeds)
            if check is not None and check.status == "failed":
                feeds = reduce_inputs(feeds, lambda trial: _fails(_check(before, after, trial)))
                check = _check(before, after, feeds) or check
                wrong, nodes = _name(fault, graphs, rewritten)
                reads = ", ".join(map(repr, fault.inputs))
                finding = (f"'{fault.output}' is wrong, computed from {reads}: {check.reason}.", *wrong)
                models = {"before.onnx": before, "after.onnx": after}
                return Reproducer(finding, nodes, models, feeds, _ARGUMENTS, reproduces=True)
    except SepwiseError:
        return None
    return None


def _check(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Array]) -> Check | None:
    try:
        (check,) = compare_graph(before, after, feeds)
    except SepwiseError:
        return None
    return check


def _fails(check: Check | None) -> bool:
    return check is not None and check.status == "failed"


def _described(name: str, array: Array, known: onnx.ValueInfoProto | None, graph: Graph) -> onnx.ValueInfoProto:
    """Declares a value as it is: its shape as computed, its element type as declared, or as its operators make it."""
    declared = 0 if known is None else known.type.tensor_type.elem_type
    computed = graph.format_of(name).element_type if array.dtype.kind == "f" else helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, declared or computed, array.shape)


def _stored(array: Array, info: onnx.ValueInfoProto) -> Array:
    """Rounds a tensor to the type in which it is fed."""
    return array.astype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


def reduce_inputs(inputs: Mapping[str, Array], fails: Callable[[dict[str, Array]], bool]) -> dict[str, Array]:
    """Sets to zero whatever a failure does not need, by halves along every axis of every floating-point input.

    Args:
        inputs: tensors by name on which something fails.
        fails: tells whether it fails on others.

    Returns:
        Tensors of the same shapes on which it fails; outside of a box in each they are zero.
    """
    found = dict(inputs)
    elements = sum(array.size for array in found.values())
    trials = min(TRIALS, TRIAL_ELEMENTS // max(elements, 1))
    for name in sorted(found, key=lambda key: -found[key].size):
        array = found[name]
        if array.dtype.kind != "f":
            continue
        for axis in range(array.ndim):
            low, high = 0, array.shape[axis]
            while high - low > 1:
                middle = (low + high) // 2
                for box in ((low, middle), (middle, high)):
                    if trials <= 0:
                        return found
                    trials -= 1
                    kept = np.zeros_like(array)
                    inside = (slice(None),) * axis + (slice(*box),)
                    kept[inside] = found[name][inside]
                    if fails({**found, name: kept}):
                        found[name] = kept
                        low, high = box
                        break
                else:
                    break
    return found


# Names ----------------------------------------------------------------------------------------------------------------


def _name(fault: Fault, graphs: Sequence[Graph], rewritten: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Says which operators the two parts do not have in common, in lines to read and as names of nodes."""
    spelled = [
        [spell_operation(op, graph) for op in ops]
        for graph, ops in zip(graphs, (fault.original, fault.rewritten), strict=True)
    ]
    paired = _pair(fault, spelled)
    left = [
        [(op, key) for place, (op, key) in enumerate(zip(ops, keys, strict=True)) if place not in places]
        for ops, keys, places in zip((fault.original, fault.rewritten), spelled, paired, strict=True)
    ]
    common = Counter(key for _, key in left[0]) & Counter(key for _, key in left[1])
    alone = [_without([op for op, _ in side], [key for _, key in side], common) for side in left]
    if not any(alone):
        alone = [list(fault.original), list(fault.rewritten)]
    owners = _owners(rewritten)
    names = [[_of(op, {}) for op in alone[0]], [_of(op, owners) for op in alone[1]]]
    lines = [
        f"{side}: {', '.join(f'{op.operator} {name!r}' for op, name in zip(ops, of, strict=True)) or 'nothing in its place'}"
        for side, ops, of in zip(("before", "after"), alone, names, strict=True)
    ]
    return tuple(lines), tuple(dict.fromkeys(name for of in names for name in of))


def _pair(fault: Fault, spelled: Sequence[Sequence[Hashable]]) -> tuple[set[int], set[int]]:
    """Pairs operations that do the same in the same place, as places in both parts.

    Such are those that do the same to the same operands, from the inputs on, and those whose results go the same way, from the
    output back. So it is told which of several alike is missing.
    """
    sides = (fault.original, fault.rewritten)
    made = [{name: (at, i) for at, op in enumerate(ops) for i, name in enumerate(op.outputs) if name} for ops in sides]
    known = [{name: name for name in fault.inputs}, dict(fault.rewritten_inputs)]
    pairs: dict[int, int] = {}

    def reads(side: int, at: int) -> tuple[str, ...]:
        """Names the operands of an operation, those that both parts have by their names in the original."""
        return tuple(known[side].get(name, "") for name in sides[side][at].inputs)

    for there, op in enumerate(fault.rewritten):
        if any(name in made[1] and name not in known[1] for name in op.inputs):
            continue
        for here, other in enumerate(fault.original):
            alike = spelled[0][here] == spelled[1][there] and reads(0, here) == reads(1, there)
            if alike and here not in pairs and not any(name in made[0] and name not in known[0] for name in other.inputs):
                pairs[here] = there
                known[0].update((name, name) for name in other.outputs)
                known[1].update(zip(op.outputs, other.outputs, strict=False))
                break
    pending = [(fault.output, fault.rewritten_output)]
    while pending:
        a, b = pending.pop()
        if a not in made[0] or b not in made[1]:
            continue
        (here, output), (there, other_output) = made[0][a], made[1][b]
        free = here not in pairs and there not in pairs.values() and output == other_output
        if free and spelled[0][here] == spelled[1][there]:
            pairs[here] = there
            pending.extend(zip(fault.original[here].inputs, fault.rewritten[there].inputs, strict=False))
    return set(pairs), set(pairs.values())


def _without(operations: Iterable[Operation], keys: Iterable[Hashable], common: Counter[Hashable]) -> list[Operation]:
    left = Counter(common)
    alone = []
    for op, key in zip(operations, keys, strict=True):
        if left[key] > 0:
            left[key] -= 1
        else:
            alone.append(op)
    return alone


def _owners(proto: onnx.ModelProto) -> dict[str, str]:
    """Finds for each value inside an opened function the call that it came from."""
    functions = {(f.domain, f.name, f.overload) for f in proto.functions}
    called = (node for node in proto.graph.node if (node.domain, node.op_type, node.overload) in functions)
    calls = {output: node for node in called for output in node.output}
    owners: dict[str, str] = {}
    if not calls:
        return owners
    flat = _flat(proto)
    producer = {out: node for node in flat.graph.node for out in node.output}
    for output, call in calls.items():
        pending, seen = [output], set(call.input)
        while pending:
            name = pending.pop()
            if name in producer and name not in seen:
                seen.add(name)
                owners[name] = call.name or output
                pending.extend(producer[name].input)
    return owners


def _of(op: Operation, owners: Mapping[str, str]) -> str:
    return owners.get(op.outputs[0]) or op.name or op.outputs[0]
