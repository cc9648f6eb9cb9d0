"""Decides whether two graphs with the same outputs are the same part by part, on numbers drawn for each part.

What a network feeds a part need not show that it is wrong: a weight that a dead channel multiplies moves nothing, nor does one
behind a gate that is open on all inputs. So the graphs are walked at cut points as in `alignment`, and each part that is computed
differently is fed what reaches every bend in it (`stress`).

What is drawn is no longer what the network can make, and a right rewrite may use what holds for all that it can: a ReLU behind a
sigmoid does nothing, and a mean follows from what it is the mean of. So a part is cut wide:

    where the cuts are      results of convolutions and products of matrices, which may be any number
    what both read          the same values: what only one side reads may follow from what the other does
    twice                   it has to be wrong by itself, and also together with the operations in front of it

Values that differ on the network's own tensors are no cut points, as what they differ by is undone further on: the outputs are
the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sepwise.passes.equivalence.alignment import Fault, Search, Side, part_of, run_part
from sepwise.passes.equivalence.compare import Check, GraphReference, worst_check
from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation, read_graph, widen
from sepwise.passes.equivalence.stress import Stress
from sepwise.passes.errors import SepwiseError

__all__ = ["compare_parts", "find_unseen_faults"]

RANGING = frozenset(("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators whose results may be any number: what is drawn for a part takes the place of these."""

MANY_DRAWS = 16
"""Draws for a part that bends few numbers of a channel: one is on the same side in all of them once in 2^15 times. As many for
one that was wrong by itself, so that what is in front of it hides nothing."""

PARTS = "parts"
"""Name of the check of all parts where none is wrong."""


def compare_parts(original: Model, rewritten: Model, inputs: Mapping[str, Array]) -> list[Check]:
    """Decides whether what two graphs compute differently is the same part by part.

    Args:
        original: the model as it came in.
        rewritten: a model whose outputs are those of the original, as `compare_graph` tells.
        inputs: tensors by input name, by which values of one are matched with those of the other.

    Returns:
        The check of each part that is wrong, named after its result, with the operators of the rewritten part as its nodes; that
        of the worst part where all are right; none where no operation is computed differently.

    Raises:
        InputError: if the inputs do not fit the original.
        UnsupportedError: if an operator is not known.
    """
    search = _PartSearch(Side(read_graph(original)), Side(read_graph(rewritten)), [inputs])
    faults = search.run()
    if not faults:
        return [replace(worst_check(search.right), name=PARTS)] if search.right else []
    checks = []
    for fault in faults:
        nodes = tuple(dict.fromkeys(op.name or op.outputs[0] for op in fault.rewritten))
        reason = f"{fault.check.reason}, on numbers drawn for the part that computes it"
        checks.append(replace(fault.check, name=f"part {fault.output}", nodes=nodes, reason=reason))
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

    Attributes:
        right: checks of the parts that are right.
    """

    def __init__(self, original: Side, rewritten: Side, inputs: Sequence[Mapping[str, Array]]) -> None:
        super().__init__(original, rewritten, inputs)
        self.right: list[Check] = []
        self._ranging = [
            {*side.inputs, *(op.outputs[0] for op in side.graph.operations if op.operator in RANGING)}
            for side in (original, rewritten)
        ]

    def run(self) -> list[Fault]:
        """Walks to the end and gives what was wrong on the way."""
        for op in self._rewritten.graph.operations:
            for name in self._enter(op):
                self._judge(name)
        return list(self._faults.values())

    def _judge(self, name: str) -> None:
        """Finds what a value equals on the network's tensors and on what is drawn; a fault where it does on the former only."""
        wrong: list[Fault] = []
        for twin in self._candidates(name):
            if self._agrees(name, twin):
                fault = self._find_fault(name, twin)
                if fault is None:
                    self._twin[name] = twin
                    return
                wrong.append(fault)
        if wrong:
            self._faults[name] = wrong[0]
            self._twin[name] = wrong[0].output

    def _find_fault(self, name: str, twin: str) -> Fault | None:
        """Judges the operations behind a value by themselves, and together with those in front of them."""
        later = self._original.after(twin) | {twin}
        original, rewritten = self._ranging
        cuts = {b: a for b, a in self._cuts(self._twin).items() if a in original and b in rewritten and a not in later}
        found: list[Fault] = []
        for wider in (False, True):
            before, sources, after, fed = self._between(name, twin, cuts)
            parts = part_of(self._original, before, sources, twin), part_of(self._rewritten, after, tuple(fed), name)
            check, drawn = self._judge_part(parts, fed, thorough=wider)
            if check is None or check.status != "failed":
                self.right += [] if check is None else [check]
                return None
            found.append(Fault(sources, twin, fed, name, tuple(before), tuple(after), check, drawn))
            cuts = {b: a for b, a in cuts.items() if a not in sources or a in self._original.inputs}
        return found[0]

    def _between(
        self, name: str, twin: str, cuts: Mapping[str, str]
    ) -> tuple[list[Operation], tuple[str, ...], list[Operation], dict[str, str]]:
        """Finds the operations behind a value and its twin, down to cut points that both read."""
        while True:
            before, sources = self._original.behind(twin, set(cuts.values()))
            after, own_sources = self._rewritten.behind(name, cuts)
            fed = {source: cuts[source] for source in own_sources}
            lone = set(sources).symmetric_difference(fed.values()) - set(self._original.inputs)
            if not lone:
                return before, tuple(dict.fromkeys([*sources, *fed.values()])), after, fed
            cuts = {b: a for b, a in cuts.items() if a not in lone}

    def _judge_part(
        self, parts: tuple[Graph, Graph], fed: Mapping[str, str], *, thorough: bool
    ) -> tuple[Check | None, Mapping[str, Array]]:
        """Judges a part on what is drawn, and gives what it was fed; no check where nothing can be drawn or computed."""
        original, rewritten = parts
        (twin,), (name,) = ([port.name for port in part.outputs] for part in parts)
        tensors = {port.name: self._values[port.name][0] for port in original.inputs}
        types = {source: self._original.graph.format_of(source).dtype for source in tensors}
        checks: list[Check] = []
        try:
            stress = Stress(original, tensors, types, 0)
            draws = [(stress, "knees")] if stress.drawn else []
            if draws and (thorough or stress.few):
                draws += [(Stress(original, tensors, types, seed), "levels") for seed in range(1, MANY_DRAWS)]
            for each, kind in draws:
                feeds = {source: widen(array) for source, array in each.draw(kind).items()}
                result = run_part(rewritten, {b: feeds[a] for b, a in fed.items()})[name]
                checks += GraphReference(original, feeds).judge([{twin: result}])
                if checks[-1].status == "failed":
                    return checks[-1], feeds
        except SepwiseError:
            return None, {}
        return (worst_check(checks) if checks else None), {}
