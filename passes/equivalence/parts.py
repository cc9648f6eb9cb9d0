"""Decides whether two graphs with the same outputs are the same part by part, on numbers drawn for each part.

What a network feeds a part need not show that it is wrong: a weight that a dead channel multiplies moves nothing, nor does one
behind a gate that is open on all inputs. So the graphs are walked at cut points as in `alignment`, and each part that is computed
differently is fed what reaches every bend in it (`stress`).

What is drawn is no longer what the network can make, and a right rewrite may use what holds for all that it can: a ReLU behind a
sigmoid does nothing, and a mean follows from what it is the mean of. So a part is cut wide:

    where the cuts are      results of convolutions and products of matrices, which may be any number; not of a blur, whose
                            weights have one sign, so that the sign of its result follows from what it reads
    what both read          the same values: what only one side reads may follow from what the other does
    three times             it has to be wrong by itself, and also together with the operations in front of it, and those before

A value that is far from what it is called after is another one. What is near, and further off than rounding explains, is wrong
on the network's own tensors already: it may have drowned on its way to the outputs.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sepwise.passes.equivalence.alignment import (
    LOOKAHEAD,
    Fault,
    Search,
    Side,
    distance_between,
    judge_part,
    part_of,
    run_part,
    spell_operation,
)
from sepwise.passes.equivalence.compare import Check, GraphReference, worst_check
from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation, Port, read_graph, widen
from sepwise.passes.equivalence.stress import Stress
from sepwise.passes.errors import SepwiseError

__all__ = ["compare_parts", "find_unseen_faults"]

RANGING = frozenset(("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators whose results may be any number: what is drawn for a part takes the place of these."""

MANY_DRAWS = 16
"""Draws for a part that bends few numbers of a channel: one is on the same side in all of them once in 2^15 times. As many for
one that was wrong by itself, so that what is in front of it hides nothing."""

WIDTHS = 3
"""How often a part is judged: by itself, with the convolution in front of it, and with the one before."""

NAMED = 3
"""How many of the parts for which nothing can be drawn are named."""

PARTS = "parts"
"""Name of the check of all parts where none is wrong."""


def compare_parts(original: Model, rewritten: Model, inputs: Mapping[str, Array]) -> list[Check]:
    """Decides whether what two graphs compute differently is the same part by part.

    Args:
        original: the model as it came in.
        rewritten: a model whose outputs are those of the original, as `compare_graph` tells.
        inputs: tensors by input name, by which values of one are matched with those of the other.

    Returns:
        The check of each part that is wrong, named after its result in the rewritten model, with the operators of the rewritten
        part as its nodes; where all are right that of the worst part, with those as its reason for which nothing can be drawn;
        none where no operation is computed differently.

    Raises:
        InputError: if the inputs do not fit the original.
        UnsupportedError: if an operator is not known.
    """
    search = _PartSearch(Side(read_graph(original)), Side(read_graph(rewritten)), [inputs])
    faults = search.run()
    if not faults:
        return [replace(worst_check(search.right), name=PARTS, reason=search.reserve())] if search.right else []
    checks = []
    for fault in faults:
        nodes = tuple(dict.fromkeys(op.name or op.outputs[0] for op in fault.rewritten))
        fed = ", on numbers drawn for the part that computes it" if fault.drawn else ""
        checks.append(replace(fault.check, name=f"part {fault.rewritten_output}", nodes=nodes, reason=fault.check.reason + fed))
    return checks


def find_unseen_faults(original: Side, rewritten: Side, inputs: Mapping[str, Array]) -> list[Fault]:
    """Finds the parts that compute something else than the original where its own tensors do not show it.

    Args:
        original: the graph as it came in.
        rewritten: a graph whose outputs are those of the original.
        inputs: tensors by input name.

    Returns:
        The faults in the order of the rewritten graph, each with what was drawn for it.

    Raises:
        InputError: if the inputs do not fit the original.
    """
    return _PartSearch(original, rewritten, [inputs]).run()


class _PartSearch(Search):
    """Walks the rewritten graph beside the original, and judges each part between cut points on what is drawn for it.

    A value that equals one of the original on the network's own tensors, and not on what is drawn, or that is close to one and
    not equal, is a suspect: it may be another value after all, as a ReLU is that a minimum will make the ReLU6 of the original.
    It is cleared by a value behind it that is right on what is drawn; but what hides a fault, such as a gate, is so too. So
    where it has the name of what it was taken for, that value must be what it was taken for itself, or be wrong were the suspect
    replaced by that. It is at fault where none of the next few values clears it.

    Attributes:
        right: checks of the parts that are right.
        undrawn: values whose parts are judged on the network's own tensors alone.
    """

    def __init__(self, original: Side, rewritten: Side, inputs: Sequence[Mapping[str, Array]]) -> None:
        super().__init__(Side(_without_repetition(original.graph), original.cuttable), rewritten, inputs)
        self.right: list[Check] = []
        self.undrawn: list[str] = []
        self._ranging = [
            {*side.inputs, *(op.outputs[0] for op in side.graph.operations if _ranges(op, side.graph))}
            for side in (self._original, rewritten)
        ]
        self._suspects: dict[str, Fault] = {}
        self._behind: dict[str, int] = {}

    def run(self) -> list[Fault]:
        """Walks to the end and gives what is at fault."""
        self._walk(self._rewritten.graph.operations)
        while self._suspects:
            self._convict(next(iter(self._suspects)))
        return [fault for name, fault in self._faults.items() if self._matters(name)]

    def reserve(self) -> str:
        """Says in one line which parts are judged on the network's own tensors alone; empty where none is."""
        names = ", ".join((*self.undrawn[:NAMED], *(["..."] if self.undrawn[NAMED:] else [])))
        return f"judged on the network's own tensors alone, as nothing can be drawn for them: {names}" if names else ""

    def _walk(self, operations: Sequence[Operation]) -> None:
        for op in operations:
            for name in self._enter(op):
                self._judge(name)

    def _matters(self, name: str) -> bool:
        """Tells whether an output depends on a value."""
        return bool({name, *self._rewritten.after(name)}.intersection(self._rewritten.outputs))

    def _judge(self, name: str) -> None:
        """Finds the value of the original that one equals, clears the suspects in front of it, or suspects it itself."""
        front = [suspect for suspect in self._suspects if name in self._rewritten.after(suspect)]
        found: Fault | None = None
        for twin in self._candidates(name):
            fault = self._find_fault(name, twin, thorough=bool(front))
            if fault is None:
                continue
            if fault.check.status != "failed":
                self._twin[name] = twin
                if not fault.drawn:  # right by itself already
                    for suspect in filter(partial(self._clears, name, twin), front):
                        del self._suspects[suspect]
                return
            found = found or fault
        if found is not None:
            self._suspects[name] = found
        for suspect in front:
            self._behind[suspect] = self._behind.get(suspect, 0) + 1
            if self._behind[suspect] == LOOKAHEAD and suspect in self._suspects:
                self._convict(suspect)

    def _convict(self, name: str) -> None:
        """Holds a suspect at fault, puts the original's value in its place, and looks again at what is behind it."""
        fault = self._suspects.pop(name)
        self._faults[name] = fault
        self._twin[name] = fault.output
        behind = self._rewritten.after(name)
        for other in behind.intersection(self._suspects):
            del self._suspects[other]
        place = self._rewritten.producer[name] + 1
        seen = [op for op in self._rewritten.graph.operations[place:] if any(output in self._own for output in op.outputs)]
        self._walk([op for op in seen if behind.intersection(op.outputs) and not all(o in self._twin for o in op.outputs if o)])

    def _find_fault(self, name: str, twin: str, *, thorough: bool) -> Fault | None:
        """Judges what computes a value, on the network's own tensors and on what is drawn.

        Returns:
            The part and its check: one that passed, `drawn` holding what it was wrong on by itself though not with what is in
            front of it; or one that failed. None where the two values have nothing to do with each other.
        """
        own, right = self._own[name], self._values[twin]
        if own is None or any(a.shape != b.shape or a.dtype.kind != b.dtype.kind for a, b in zip(own, right, strict=True)):
            return None
        if any(a.dtype.kind != "f" and not np.array_equal(a, b) for a, b in zip(own, right, strict=True)):
            return None
        if right[0].dtype.kind == "f" and distance_between(own, right) > self._screen:
            return None
        given = self._part(name, twin, self._twin)
        if given.check.status == "failed":
            return given
        cuts = self._ranging_cuts(twin)
        found: list[Fault] = []
        judged = False
        for width in range(WIDTHS):
            before, sources, after, fed = self._between(name, twin, cuts)
            parts = part_of(self._original, before, sources, twin), part_of(self._rewritten, after, tuple(fed), name)
            check, drawn = self._judge_part(parts, fed, thorough=thorough or width > 0)
            judged = judged or check is not None
            if check is None or check.status != "failed":
                self.right += [given.check if check is None else check]
                self.undrawn += [] if judged else [name]
                return replace(given, drawn=found[0].drawn) if found else given
            found.append(Fault(sources, twin, fed, name, tuple(before), tuple(after), check, drawn))
            cuts = self._without(cuts, sources)
        return found[0]

    def _clears(self, name: str, twin: str, suspect: str) -> bool:
        """Tells whether a value is right because a suspect in front of it is not what it was taken for."""
        taken_for = self._suspects[suspect].output
        if twin == taken_for or suspect != taken_for:
            return True
        cuts = self._ranging_cuts(twin)
        before, sources, _, _ = self._between(name, twin, cuts)
        made = any(taken_for in op.outputs for op in before)
        if not made and taken_for not in sources:
            return False
        after, own_sources = self._rewritten.behind(name, {**cuts, suspect: taken_for})
        if any(source not in cuts and source != suspect for source in own_sources):
            return False
        original = part_of(self._original, before, sources, twin)
        both = replace(original, outputs=(*original.outputs, *([Port(taken_for, 0, None)] if made else [])))
        rewritten = part_of(self._rewritten, after, own_sources, name)
        try:
            for feeds in self._draw(original, thorough=True):
                values = {**feeds, **run_part(both, feeds)}
                scope = {b: values[taken_for if b == suspect else cuts[b]] for b in own_sources}
                (check,) = GraphReference(original, feeds).judge([{twin: run_part(rewritten, scope)[name]}])
                if check.status == "failed":
                    return True
        except (SepwiseError, KeyError):
            return False
        return False

    def _ranging_cuts(self, twin: str) -> dict[str, str]:
        """The pairs of equal values that may be any number, in front of a value of the original."""
        later = self._original.after(twin) | {twin}
        original, rewritten = self._ranging
        return {b: a for b, a in self._cuts(self._twin).items() if a in original and b in rewritten and a not in later}

    def _without(self, cuts: Mapping[str, str], sources: Collection[str]) -> dict[str, str]:
        """Leaves out cut points, and of a batch norm also the convolution that it scales."""
        dropped = set(sources)
        for source in sources:
            op = self._operation(source)
            if op is not None and op.operator == "BatchNormalization":
                dropped.add(op.inputs[0])
        return {b: a for b, a in cuts.items() if a not in dropped or a in self._original.inputs}

    def _operation(self, name: str) -> Operation | None:
        place = self._original.producer.get(name)
        return None if place is None else self._original.graph.operations[place]

    def _between(
        self, name: str, twin: str, cuts: Mapping[str, str]
    ) -> tuple[list[Operation], tuple[str, ...], list[Operation], dict[str, str]]:
        """Finds the operations behind a value and its twin, down to cut points that both read.

        What only one side reads may follow from what the other does. So it is no cut point, nor is what has the same origin.
        """
        inputs = set(self._original.inputs)
        while True:
            after, own_sources = self._rewritten.behind(name, cuts)
            fed = {source: cuts[source] for source in own_sources}
            read = set(cuts.values()) if fed else self._ranging[0] - {twin, *self._original.after(twin)}
            before, sources = self._original.behind(twin, read)
            lone = set(sources).symmetric_difference(fed.values()) - inputs
            if not lone or not fed:
                return before, tuple(dict.fromkeys([*sources, *fed.values()])), after, fed
            cuts = {b: a for b, a in cuts.items() if a not in lone}
            origins = {source for each in lone for source in self._original.behind(each, set(cuts.values()))[1]}
            related = set().union(*(self._original.after(origin) for origin in origins))
            cuts = {b: a for b, a in cuts.items() if a not in related or a in inputs}

    def _judge_part(
        self, parts: tuple[Graph, Graph], fed: Mapping[str, str], *, thorough: bool
    ) -> tuple[Check | None, Mapping[str, Array]]:
        """Judges a part on what is drawn, and gives what it was fed; no check where nothing can be drawn or computed."""
        checks: list[Check] = []
        try:
            for feeds in self._draw(parts[0], thorough=thorough):
                checks.append(judge_part(*parts, [feeds], fed))
                if checks[-1].status == "failed":
                    return checks[-1], feeds
        except SepwiseError:
            return None, {}
        return (worst_check(checks) if checks else None), {}

    def _draw(self, part: Graph, *, thorough: bool) -> Iterator[dict[str, Array]]:
        """Draws what a part of the original is fed, by its inputs; nothing where no input is data."""
        tensors = {port.name: self._values[port.name][0] for port in part.inputs}
        types = {source: self._original.graph.format_of(source).dtype for source in tensors}
        stress = Stress(part, tensors, types, 0)
        draws = [(stress, "knees", scale) for scale in (None, *stress.faint_scales())] if stress.drawn else []
        if draws and (thorough or stress.few):
            draws += [(Stress(part, tensors, types, seed), "levels", None) for seed in range(1, MANY_DRAWS)]
        for each, kind, scale in draws:
            yield {source: widen(array) for source, array in each.draw(kind, scale).items()}


def _ranges(op: Operation, graph: Graph) -> bool:
    """Tells whether a result may be any number: not where weights of one sign pass the sign of what they weight on."""
    if op.operator not in RANGING or op.operator == "BatchNormalization":
        return op.operator in RANGING
    weights = [graph.constants[name] for name in op.inputs[:2] if name in graph.constants]
    return not any(array.size and (np.all(array >= 0) or np.all(array <= 0)) for array in weights)


def _without_repetition(graph: Graph) -> Graph:
    """Lets what reads a value read the first that is computed in the same way, so that it is one cut point."""
    first: dict[Hashable, Operation] = {}
    same: dict[str, str] = {}
    operations = []
    for op in graph.operations:
        op = replace(op, inputs=tuple(same.get(name, name) for name in op.inputs))
        alike = first.setdefault((spell_operation(op, graph), op.inputs, tuple(map(bool, op.outputs))), op)
        if alike is not op and not any(True for _ in op.subgraphs()):
            same.update((name, other) for name, other in zip(op.outputs, alike.outputs, strict=True) if name)
        operations.append(op)
    return replace(graph, operations=tuple(operations))
