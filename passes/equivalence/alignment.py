"""Finds where two graphs part ways: which value of one is which value of the other, and the operations that are wrong.

The method is that of equivalence checking with cut points. The original runs once, with all its values kept. Then
the rewritten graph is walked in its order:

    for each operation:
        operands that equal a value of the original are replaced by it              (cut points)
        the same operator on the same operands as in the original: equal, nothing is computed
        else computed, and compared with the value of the same name, and with the nearest of the same shape

Every part is so fed the original's tensors, and no difference hides behind another. A part between cut points is judged
as a whole model is, against the rounding of its own constants (`compare_graph`). Where a value differs, a name that
survived is no proof that the meaning did (a fused operator may keep the name of its first node), and a difference may
be undone on purpose further on. So a value counts as wrong only if, replaced by the original's, what follows is right
again, and if without the replacement it is not.
"""

import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sepwise.passes.equivalence.compare import Check, GraphReference
from sepwise.passes.equivalence.formats import BINARY32
from sepwise.passes.equivalence.graph import Array, Attribute, Graph, Operation, Port
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import evaluate
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.errors import InputError, SepwiseError

__all__ = [
    "LOOKAHEAD",
    "Fault",
    "Search",
    "Side",
    "distance_between",
    "find_faults",
    "judge_part",
    "part_of",
    "run_part",
    "spell_operation",
]

SCREEN_UNITS = 2.0**14
"""A value further than so many units of rounding from another is not worth the six runs that measure a tolerance."""

LOOKAHEAD = 8
"""Operations behind a replaced value in which what follows has to become right."""

SAMPLES = 64
"""Elements by which the nearest value is looked up before all elements are compared."""

Token = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Fault:
    """A part of the original and the part of the rewritten graph in its place, which computes something else.

    Attributes:
        inputs: values of the original that both parts are fed.
        output: the value of the original that is computed wrongly.
        rewritten_inputs: values of the rewritten graph, and which of `inputs` each equals.
        rewritten_output: the wrong value in the rewritten graph.
        original: operations of the original between `inputs` and `output`.
        rewritten: operations of the rewritten graph in their place.
        check: error and tolerance of the part.
        drawn: what the part was fed, by name of the value in the original; empty where that was the original's tensors.
    """

    inputs: tuple[str, ...]
    output: str
    rewritten_inputs: Mapping[str, str]
    rewritten_output: str
    original: tuple[Operation, ...]
    rewritten: tuple[Operation, ...]
    check: Check
    drawn: Mapping[str, Array] = field(default_factory=dict)


def find_faults(
    original: Graph,
    rewritten: Graph,
    inputs: Sequence[Mapping[str, Array]],
    *,
    named: Collection[str] | None = None,
    rewritten_named: Collection[str] | None = None,
) -> list[Fault]:
    """Finds the smallest parts of a rewritten graph that compute something else than the original.

    Args:
        original: the graph as it came in.
        rewritten: the graph to judge, with inputs and outputs of the same names.
        inputs: sets of tensors by input name on which an output differs.
        named: values of the original at which a part may be cut; all where None.
        rewritten_named: the same for the rewritten graph.

    Returns:
        The faults, the one that by itself moves the outputs most first; none where every part is within its own tolerance.

    Raises:
        InputError: if the inputs do not fit the original.
    """
    search = Search(Side(original, named), Side(rewritten, rewritten_named), inputs)
    return search.run()


class Side:
    """A graph with what a search looks up in it.

    Attributes:
        graph: the graph.
        producer: place of the operation that computes each value.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        values: names of the values that are computed whoever reads them, in order.
        cuttable: those at which a part may be cut.
    """

    def __init__(self, graph: Graph, named: Collection[str] | None = None) -> None:
        """Looks values up.

        Args:
            graph: the graph.
            named: values at which a part may be cut; all where None.
        """
        self.graph = graph
        self.producer = {name: index for index, op in enumerate(graph.operations) for name in op.outputs if name}
        self.inputs = [port.name for port in graph.inputs]
        self.outputs = [port.name for port in graph.outputs]
        first = {op.outputs[0] for op in graph.operations}  # others may be left uncomputed where nobody reads them
        used = first | {name for op in graph.operations for name in _reads(op)} | set(self.outputs)
        self.values = {name: None for name in self.producer if name in used}
        self.cuttable = set(self.values) if named is None else set(self.values) & set(named)
        self._digests: dict[str, str] = {}

    def digest(self, constant: str) -> str:
        """Hashes a constant once."""
        if constant not in self._digests:
            self._digests[constant] = _digest(self.graph.constants[constant])
        return self._digests[constant]

    def behind(self, output: str, cuts: Collection[str]) -> tuple[list[Operation], list[str]]:
        """Lists the operations that compute a value from cut points, and these cut points; at least its own operation."""
        found: set[int] = set()
        frontier: dict[str, None] = {}
        pending = [output]
        while pending:
            name = pending.pop()
            if name in self.graph.constants:
                continue
            if name not in self.producer or (name != output and name in cuts):
                frontier[name] = None
            elif self.producer[name] not in found:
                found.add(self.producer[name])
                pending.extend(_reads(self.graph.operations[self.producer[name]]))
        return [self.graph.operations[index] for index in sorted(found)], list(frontier)

    def after(self, value: str) -> set[str]:
        """Lists the values that depend on one."""
        found = {value}
        for op in self.graph.operations:
            if found.intersection(_reads(op)):
                found.update(filter(None, op.outputs))
        return found - {value}


class Search:
    """Walks the rewritten graph beside the original.

    `_twin` says which value of the original each value of the rewritten graph equals, or was replaced by; `_own` holds the
    others as computed (None where an operation cannot be computed, as after a change of shape).
    """

    def __init__(self, original: Side, rewritten: Side, inputs: Sequence[Mapping[str, Array]]) -> None:
        """Runs the original.

        Args:
            original: the graph as it came in.
            rewritten: the graph to judge.
            inputs: sets of tensors by input name.

        Raises:
            InputError: if the inputs do not fit the original.
        """
        self._original = original
        self._rewritten = rewritten
        oracle = Oracle(original.graph)
        fed = [read_inputs(original.graph, feeds, stored=False) for feeds in inputs]
        runs = [oracle.run(feeds, keep=original.values) for feeds in inputs]
        self._values = {name: [run[name] for run in runs] for name in original.values}
        self._values |= {name: [feeds[name] for feeds in fed] for name in original.inputs}
        self._twin: dict[str, str] = {name: name for name in rewritten.inputs if name in original.inputs}
        self._own: dict[str, list[Array] | None] = {}
        self._faults: dict[str, Fault] = {}
        coarsest = max((each.unit for each in original.graph.formats.values()), default=BINARY32.unit)
        self._screen = SCREEN_UNITS * coarsest
        self._patience = LOOKAHEAD
        self._same: dict[Hashable, Operation] = {}
        for op in original.graph.operations:
            key = self._key(op, original, {name: name for name in self._values})
            if key is not None:
                self._same.setdefault(key, op)
        self._nearest = _Nearest({name: self._values[name] for name in original.values if name in original.cuttable})

    def run(self) -> list[Fault]:
        """Walks to the end, replaces wrong values until all outputs are right, and gives what was replaced."""
        for op in self._rewritten.graph.operations:
            self._visit(op, force=True)
        while wrong := [name for name in self._rewritten.outputs if not self._is_right(name)]:
            if not self._replace_first(wrong[0]):
                self._replace(wrong[0], wrong[0])
        faults = list(self._faults.values())
        return sorted(faults, key=self._effect, reverse=True) if len(faults) > 1 else faults

    def _effect(self, fault: Fault) -> float:
        """Measures how far a fault alone moves the outputs: RMS error by RMS, infinite where they cannot be computed.

        The original computes them, from what the rewritten part makes of the original's tensors. (To put the original's value in
        that place of the rewritten graph would heal it in any place behind the wrong part, too.) A part far beyond a tolerance
        that is next to nothing may well be innocent.
        """
        part = part_of(self._rewritten, fault.rewritten, tuple(fault.rewritten_inputs), fault.rewritten_output)
        behind = self._original.after(fault.output)
        operations = [op for op in self._original.graph.operations if behind.intersection(op.outputs)]
        moved = [name for name in self._original.outputs if name == fault.output or name in behind]
        outputs = tuple(Port(name, 0, None) for name in moved)
        rest = replace(part_of(self._original, operations, (), fault.output), outputs=outputs)
        effect = 0.0
        for place in range(self._sets):
            scope = {name: arrays[place] for name, arrays in self._values.items()}
            try:
                wrong = run_part(part, {b: scope[a] for b, a in fault.rewritten_inputs.items()})[fault.rewritten_output]
                found = run_part(rest, {**scope, fault.output: wrong})
            except SepwiseError:
                return np.inf
            for name in moved:
                if found[name].shape != scope[name].shape:
                    return np.inf
                effect = max(effect, distance_between([found[name].astype(np.float64)], [scope[name].astype(np.float64)]))
        return effect

    def _is_right(self, output: str) -> bool:
        """Tells whether an output equals the one of its name, or was replaced by it."""
        twin = self._twin.get(output)
        if output not in self._values or output in self._faults:
            return True
        return twin is not None and all(map(_equal, self._values[twin], self._values[output]))

    # One operation --------------------------------------------------------------------------------------------------------

    def _enter(self, op: Operation) -> list[str]:
        """Finds the twins of an operation that the original has too; computes another, and lists its outputs."""
        same = self._same.get(self._key(op, self._rewritten, self._twin))
        if same is not None and len(same.outputs) >= len(op.outputs):
            self._twin.update((b, a) for b, a in zip(op.outputs, same.outputs, strict=False) if b and a in self._values)
            return []
        results = self._compute(op)
        made = [name for name in op.outputs if name in self._rewritten.values]
        self._own.update((name, None if results is None else [result[name] for result in results]) for name in made)
        return [name for name in made if name in self._rewritten.cuttable]

    def _visit(self, op: Operation, *, force: bool) -> None:
        """Finds the twins of an operation's outputs; replaces one that is wrong, where `force` and a name say by what."""
        for name in self._enter(op):
            twin = next((a for a in self._candidates(name) if self._agrees(name, a)), None)
            if twin is not None:
                self._twin[name] = twin
            elif force and name in self._original.cuttable and self._heals(name, name):
                if not self._replace_first(name):
                    self._replace(name, name)
            elif force and self._length(name) >= self._patience and not self._replace_first(name):
                self._patience *= 2

    def _length(self, name: str) -> int:
        """Counts the operations between the nearest cut points and a value."""
        return len(self._rewritten.behind(name, self._cuts(self._twin))[0])

    def _compute(self, op: Operation) -> list[dict[str, Array]] | None:
        """Computes an operation on every input set; None where that is impossible."""
        constants = self._rewritten.graph.constants
        results = []
        for place in range(self._sets):
            scope: dict[str, Array] = {}
            for name in _reads(op):
                if name in self._twin:
                    scope[name] = self._values[self._twin[name]][place]
                elif name in constants:
                    scope[name] = constants[name]
                else:
                    own = self._own.get(name)
                    if own is None:
                        return None
                    scope[name] = own[place]
            outputs = tuple(Port(name, 0, None) for name in op.outputs if name in self._rewritten.values)
            try:
                results.append(run_part(Graph((), outputs, {}, (op,)), scope))
            except SepwiseError:
                return None
        return results

    @property
    def _sets(self) -> int:
        return len(next(iter(self._values.values())))

    def _candidates(self, name: str) -> Iterator[str]:
        """Yields the values of the original that one may equal."""
        if name in self._original.cuttable:
            yield name
        own = self._own[name]
        yield from (nearest for nearest in self._nearest.find(own) if nearest != name) if own is not None else ()

    def _agrees(self, name: str, twin: str) -> bool:
        """Tells whether a value, as computed, equals one of the original up to the rounding of constants in between."""
        own = self._own[name]
        if own is None:
            return False
        right = self._values[twin]
        if any(a.shape != b.shape or a.dtype.kind != b.dtype.kind for a, b in zip(own, right, strict=True)):
            return False
        if all(map(_equal, own, right)):
            return True
        if right[0].dtype.kind != "f" or distance_between(own, right) > self._screen:
            return False
        length = self._length(name)
        if length > LOOKAHEAD and length & (length - 1) and name not in self._rewritten.outputs:
            return False  # behind a wrong value the parts grow; they are judged at powers of two, not at each operation
        return self._part(name, twin, self._twin).check.status != "failed"

    def _key(self, op: Operation, side: Side, twins: Mapping[str, str]) -> Hashable | None:
        """Spells an operation in terms of values of the original; None where it reads something else."""
        operands: list[Token] = []
        for name in op.inputs:
            if not name:
                operands.append(("", ""))
            elif name in side.graph.constants:
                operands.append(("constant", side.digest(name)))
            elif name in twins:
                operands.append(("value", twins[name]))
            else:
                return None
        if any(True for _ in op.subgraphs()):
            return None
        return (op.operator, op.version, _spelled(op.attributes), tuple(operands))

    # Parts ----------------------------------------------------------------------------------------------------------------

    def _cuts(self, twins: Mapping[str, str]) -> dict[str, str]:
        """Picks those pairs of equal values at which both graphs may be cut."""
        here, there = (side.cuttable | set(side.inputs) for side in (self._rewritten, self._original))
        return {b: a for b, a in twins.items() if b in here and a in there}

    def _part(self, name: str, twin: str, twins: Mapping[str, str]) -> Fault:
        """Judges the operations between the nearest cut points and a value, on the original's tensors.

        What depends on the value in the original is no cut point: something wrong before it was taken for that.
        """
        later = self._original.after(twin) | {twin}
        twins = {b: a for b, a in self._cuts(twins).items() if a not in later}
        before, sources = self._original.behind(twin, set(twins.values()))
        after, own_sources = self._rewritten.behind(name, twins)
        fed = {source: twins[source] for source in own_sources}
        inputs = tuple(dict.fromkeys([*sources, *fed.values()])) or tuple(self._original.inputs)
        feeds = [{source: self._values[source][place] for source in inputs} for place in range(self._sets)]
        parts = part_of(self._original, before, inputs, twin), part_of(self._rewritten, after, tuple(fed), name)
        check = judge_part(*parts, feeds, fed)
        return Fault(inputs, twin, fed, name, tuple(before), tuple(after), check)

    # Replacing ------------------------------------------------------------------------------------------------------------

    def _replace(self, name: str, twin: str) -> None:
        """Replaces a wrong value by the original's and notes the fault, unless it makes up for faults before it."""
        fault = self._part(name, twin, self._twin)
        self._twin[name] = twin
        undone = next((source for source in reversed(self._faults) if name in self._rewritten.after(source)), None)
        if undone is None or not self._makes_up_for(name, twin, undone):
            self._faults[name] = fault
        else:
            del self._faults[undone]

    def _makes_up_for(self, name: str, twin: str, undone: str) -> bool:
        """Tells whether a value is right where an earlier wrong one is not replaced."""
        behind = self._rewritten.after(undone)
        without = self._cuts({b: a for b, a in self._twin.items() if b != undone and b not in behind})
        operations, sources = self._rewritten.behind(name, without)
        part = part_of(self._rewritten, operations, sources, name)
        try:
            own = [
                run_part(part, {source: self._values[without[source]][place] for source in sources})[name]
                for place in range(self._sets)
            ]
        except InputError:
            return False
        right = self._values[twin]
        if any(a.shape != b.shape for a, b in zip(own, right, strict=True)) or distance_between(own, right) > self._screen:
            return False
        return self._part(name, twin, without).check.status != "failed"

    def _heals(self, name: str, twin: str) -> bool:
        """Tells whether a value, were it replaced by one of the original, would make what follows right."""
        if name in self._rewritten.outputs:
            return name == twin
        saved = dict(self._twin), dict(self._own)
        self._twin[name] = twin
        healed = self._leads_on(name, self._original.after(twin))
        self._twin, self._own = saved
        return healed

    def _leads_on(self, name: str, behind: Collection[str]) -> bool:
        """Follows a value for some operations, until one computes a value of the original in `behind`."""
        touched = {name}
        followed = 0
        for op in self._rewritten.graph.operations[self._rewritten.producer[name] + 1 :]:
            if touched.intersection(_reads(op)):
                touched.update(filter(None, op.outputs))
                self._visit(op, force=False)
                followed += 1
                if any(self._twin.get(output) in behind for output in op.outputs):
                    return True
                if followed == LOOKAHEAD:
                    break
        return False

    def _replace_first(self, output: str) -> bool:
        """Replaces the first wrong value behind another by whichever value of the original makes what follows right."""
        cuts = self._cuts(self._twin)
        wrong, _ = self._rewritten.behind(output, cuts)
        open_ops, _ = self._original.behind(output, set(cuts.values()))
        for op in wrong:
            for name in op.outputs:
                if name == output or name not in self._rewritten.cuttable or name in self._twin:
                    continue
                for twin in self._hypotheses(op, name, open_ops):
                    if twin == output or not self._heals(name, twin):
                        continue
                    self._replace(name, twin)
                    for later in wrong[wrong.index(op) + 1 :]:
                        if any(b not in self._twin for b in later.outputs if b):
                            self._visit(later, force=True)
                    return True
        return False

    def _hypotheses(self, op: Operation, name: str, open_ops: Sequence[Operation]) -> Iterator[str]:
        """Yields what a wrong value may have been meant to be: the same operator on the same tensors, then any of its shape."""
        read = {self._twin[source] for source in op.inputs if source in self._twin}
        alike = [o for o in open_ops if o.operator == op.operator and read.intersection(o.inputs)]
        own = self._own.get(name)
        shape = None if own is None else own[0].shape
        known = [twin for o in open_ops for twin in o.outputs if twin in self._original.cuttable]
        same_shape = (twin for twin in known if self._values[twin][0].shape == shape)
        yield from dict.fromkeys([*(twin for o in alike for twin in o.outputs if twin in known), *same_shape])


class _Nearest:
    """Looks up, among values of the original, those that are nearest to a given tensor."""

    def __init__(self, values: Mapping[str, list[Array]]) -> None:
        self._places: dict[tuple[int, ...], Array] = {}
        groups: dict[tuple[int, ...], list[tuple[str, Array]]] = {}
        for name, arrays in values.items():
            first = arrays[0]
            if first.dtype.kind == "f" and first.size > 1 and np.ptp(sample := self._sample(arrays)) > 0:
                groups.setdefault(first.shape, []).append((name, sample))
        self._groups = {shape: ([n for n, _ in group], np.stack([s for _, s in group])) for shape, group in groups.items()}

    def find(self, arrays: list[Array]) -> list[str]:
        """Gives the nearest value of the same shape that varies, and those that are as near up to rounding; the nearest first."""
        group = self._groups.get(arrays[0].shape)
        if group is None or arrays[0].dtype.kind != "f":
            return []
        names, samples = group
        own = self._sample(arrays)
        with np.errstate(all="ignore"):
            distances = np.nan_to_num(np.abs(samples - own).sum(axis=1), nan=np.inf)
            reach = distances.min() + SCREEN_UNITS * BINARY32.unit * np.abs(own).sum()
        return [names[place] for place in distances.argsort(kind="stable") if not distances[place] > reach]

    def _sample(self, arrays: list[Array]) -> Array:
        shape = arrays[0].shape
        if shape not in self._places:
            self._places[shape] = np.random.default_rng(0).integers(0, max(arrays[0].size, 1), SAMPLES)
        return np.concatenate([array.reshape(-1)[self._places[shape]] for array in arrays])


def _reads(op: Operation) -> Iterator[str]:
    """Lists what an operation reads, what its subgraphs capture included."""
    yield from filter(None, op.inputs)
    for subgraph in op.subgraphs():
        yield from subgraph.captured()


def part_of(side: Side, operations: Iterable[Operation], inputs: Sequence[str], output: str) -> Graph:
    """Makes a graph of some operations and the constants that they read.

    Args:
        side: where they are from.
        operations: in execution order.
        inputs: values that it is fed.
        output: the value that it computes.

    Returns:
        The graph.
    """
    chosen = tuple(operations)
    constants = side.graph.constants
    used = {name: constants[name] for op in chosen for name in _reads(op) if name in constants}
    ports = tuple(Port(name, 0, None) for name in inputs)
    return Graph(ports, (Port(output, 0, None),), used, chosen, side.graph.formats)


def judge_part(original: Graph, rewritten: Graph, inputs: Sequence[Mapping[str, Array]], fed: Mapping[str, str]) -> Check:
    """Decides whether two parts with one output compute the same.

    What they differ by may be what rounding in the original explains, or in the rewritten part: 0.55 x + 0.45 |x| for a leaky
    ReLU rounds a slope of 1 where the original has none, and what the original is fed the rewritten part may have to compute.

    Args:
        original: the part of the original.
        rewritten: that in its place.
        inputs: sets of tensors by input name of the original part.
        fed: inputs of the rewritten part, and which of the original's each is.

    Returns:
        The check, named after the output of the original part; failed where only the rewritten part cannot be computed.

    Raises:
        InputError: if the tensors do not fit the original part.
        UnsupportedError: if an operator is not known.
    """
    (twin,), (name,) = ([port.name for port in part.outputs] for part in (original, rewritten))
    reference = GraphReference(original, inputs)
    own = [{b: feeds[a] for b, a in fed.items()} for feeds in inputs]
    try:
        results = [run_part(rewritten, feeds)[name] for feeds in own]
    except InputError as error:
        return Check("graph", twin, (), "failed", np.inf, 0.0, None, None, reason=str(error))
    (check,) = reference.judge([{twin: result} for result in results])
    if check.status != "failed" or not np.isfinite(check.max_abs_error):
        return check
    (mirrored,) = GraphReference(rewritten, own).judge([{name: outputs[twin]} for outputs in reference.outputs])
    if mirrored.status == "failed":
        return check
    return replace(mirrored, name=twin, worst_tensor=twin, computed=mirrored.expected, expected=mirrored.computed)


def run_part(part: Graph, scope: Mapping[str, Array]) -> dict[str, Array]:
    """Computes a part in float64.

    Args:
        part: a graph.
        scope: tensors by input name, in float64 where they are floating-point.

    Returns:
        Its outputs by name.

    Raises:
        InputError: if the tensors do not fit.
        UnsupportedError: if an operator is not known.
    """
    with np.errstate(all="ignore"):
        return interpret(part, scope, constant=lambda _, array, __: array, step=evaluate, truth=lambda value: bool(value.all()))


def spell_operation(op: Operation, graph: Graph) -> Hashable:
    """Spells what an operation does, apart from which tensors it reads: operator, attributes, constants.

    Args:
        op: the operation.
        graph: holds its constants.

    Returns:
        A key that is equal for operations that do the same.
    """
    constants = [(place, name) for place, name in enumerate(op.inputs) if name in graph.constants]
    return (op.operator, _spelled(op.attributes), tuple((place, _digest(graph.constants[name])) for place, name in constants))


def _digest(array: Array) -> str:
    """Hashes a constant's type, shape and content."""
    content = repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + content).hexdigest()


def _spelled(attributes: Mapping[str, Attribute]) -> Hashable:
    """Spells attributes so that equal ones compare equal."""
    return tuple(
        (name, repr(value.tolist()) if isinstance(value, np.ndarray) else repr(value))
        for name, value in sorted(attributes.items())
    )


def _equal(a: Array, b: Array) -> bool:
    """Tells whether two tensors are the same to the last bit, NaN included."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def distance_between(own: Sequence[Array], right: Sequence[Array]) -> float:
    """Measures how far tensors are from others of their shapes.

    Args:
        own: one for each input set.
        right: what they are compared with.

    Returns:
        RMS of the difference in units of that of `right`; infinite where NaN is misplaced.
    """
    error = size = 0.0
    with np.errstate(all="ignore"):
        for a, b in zip(own, right, strict=True):
            difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
            error += float((difference**2).sum())
            size += float(np.where(np.isfinite(b), b**2, 0.0).sum())
        return float(np.nan_to_num(np.sqrt(error / size), nan=np.inf)) if error else 0.0
