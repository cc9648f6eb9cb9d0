"""Groups depthwise and pointwise convolutions that follow each other into separable convolutions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.chains import conv_steps, family, read_chain, stage_kind
from sepwise.passes.functions import Step, joined
from sepwise.passes.fused_operators import replace_by_fused
from sepwise.passes.rewriting import Refusal, RewritePass, constant_tensor, is_operator, sole_use_refusal, static_shape

__all__ = ["GroupSeparablePass"]


@dataclass(frozen=True, eq=False)
class SeparableGroup:
    """Convolutions that become one operator.

    Attributes:
        operator: `SeparableConv` or `InvertedResidual`.
        roles: For each stage its role.
        nodes: The convolutions in order.
        steps: What they compute.
    """

    operator: str
    roles: tuple[str, ...]
    nodes: tuple[ir.Node, ...]
    steps: tuple[Step, ...]


class GroupSeparablePass(RewritePass[SeparableGroup]):
    """Groups single convolutions, with all their epilogues, into SeparableConv and InvertedResidual.

        depthwise -> pointwise                 SeparableConv    (MobileNetV1)
        pointwise -> depthwise                 SeparableConv    (Xception's order, YOLO)
        pointwise -> depthwise -> pointwise    InvertedResidual (MobileNetV2)

    The function's body is the same nodes, paddings of every stage included (a pointwise stage may carry padding: its
    border pixels see only the bias), so the rewrite is of the class `exact`. Grouping records intent, no kernel.

    An alternating run of pointwise (p) and depthwise (d) stages is cut from its head: p d p at the head is an inverted
    residual if that leaves no p without its d (p d p, p d p d p, ...), otherwise pairs are cut; a residual ends a run.

    Fires when:
        1. a depthwise convolution feeds a pointwise one, or the reverse, each a Conv or FusedConv.

    Refuses when:
        1. the first one's output has a second consumer or is a graph output;
        2. it adds a residual, which nothing may follow within an operator;
        3. a weight is not constant, or a geometry is not known.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "group_separable"
    summary = "grouped %d separable convolutions"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields the heads of groups, and the convolutions whose neighbour they cannot be grouped with."""
        kinds = {node: kind for node in graph if (kind := _kind(model, node)) is not None}
        for run in _runs(model, graph, kinds):
            for group in _cut([kinds[node] for node in run]):
                if len(group) > 1:
                    yield run[group.start]
        for node in kinds:
            neighbour = _alternating_neighbour(node, kinds)
            if neighbour is not None and _link_refusal(model, node, neighbour) is not None:
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> SeparableGroup | Refusal:
        """Decides about the group that begins at `node`."""
        assert node.graph is not None, "the node is in a graph"
        kinds = {other: kind for other in _neighbourhood(node) if (kind := _kind(model, other)) is not None}
        for run in _runs(model, kinds, kinds):
            for group in _cut([kinds[member] for member in run]):
                if run[group.start] is node and len(group) > 1:
                    return self._grouped(model, [run[index] for index in group], [kinds[run[index]] for index in group])
        neighbour = _alternating_neighbour(node, kinds)
        refusal = None if neighbour is None else _link_refusal(model, node, neighbour)
        assert refusal is not None, "anchors yields heads of groups, or nodes with a refusal"
        return refusal

    def _grouped(self, model: ir.Model, nodes: list[ir.Node], kinds: list[str]) -> SeparableGroup:
        steps: tuple[Step, ...] = ()
        for node in nodes:
            own = conv_steps(model, node)
            assert isinstance(own, tuple), "a stage of a run has steps"
            steps = joined(steps, own)
        if len(nodes) == 3:
            return SeparableGroup("InvertedResidual", ("expand_", "depthwise_", "project_"), tuple(nodes), steps)
        return SeparableGroup("SeparableConv", tuple(f"{kind}_" for kind in kinds), tuple(nodes), steps)

    def rewrite(self, model: ir.Model, match: SeparableGroup) -> None:
        """Replaces the convolutions by one call."""
        replace_by_fused(model, match.operator, match.steps, match.nodes, match.roles)


def _kind(model: ir.Model, node: ir.Node) -> str | None:
    """Returns `depthwise` or `pointwise` for a single convolution of that kind, else None."""
    if not is_operator(node, "Conv") and family(node) != "FusedConv":
        return None
    shape = static_shape(node.inputs[1])
    chain = read_chain(model, node)
    if shape is None or chain is None or constant_tensor(node.inputs[1]) is None:
        return None
    kind = stage_kind(chain.stages[0], shape)
    return kind if kind in ("depthwise", "pointwise") else None


def _alternating_neighbour(node: ir.Node, kinds: dict[ir.Node, str]) -> ir.Node | None:
    """Returns a convolution of the other kind that takes the output of `node` as its data."""
    for use in node.outputs[0].uses():
        if use.idx == 0 and use.node in kinds and kinds[use.node] != kinds[node]:
            return use.node
    return None


def _link_refusal(model: ir.Model, node: ir.Node, neighbour: ir.Node) -> Refusal | None:
    refusal = sole_use_refusal(node.outputs[0], node, neighbour)
    if refusal is not None:
        return Refusal(refusal.reason, node.name or "")
    chain = read_chain(model, node)
    assert chain is not None, "a node with a kind is a chain"
    if chain.residual is not None:
        return Refusal(f"it adds the residual '{chain.residual}' before '{neighbour.name}'", node.name or "")
    return None


def _successor(model: ir.Model, node: ir.Node, kinds: dict[ir.Node, str]) -> ir.Node | None:
    neighbour = _alternating_neighbour(node, kinds)
    return None if neighbour is None or _link_refusal(model, node, neighbour) is not None else neighbour


def _runs(model: ir.Model, nodes: Iterable[ir.Node], kinds: dict[ir.Node, str]) -> list[list[ir.Node]]:
    """Returns the maximal alternating runs among `nodes`."""
    successors = {node: _successor(model, node, kinds) for node in nodes if node in kinds}
    followers = set(successors.values())
    runs = []
    for node in successors:
        if node in followers:
            continue
        run = [node]
        while (following := successors.get(run[-1])) is not None:
            run.append(following)
        runs.append(run)
    return runs


def _neighbourhood(node: ir.Node) -> list[ir.Node]:
    """Returns the convolutions connected with `node` through data inputs, `node` among them."""
    members = [node]
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None and _is_single(producer):
        members.append(producer)
        value = producer.inputs[0]
    frontier = [node]
    while frontier:
        for use in frontier.pop().outputs[0].uses():
            if use.idx == 0 and _is_single(use.node) and use.node not in members:
                members.append(use.node)
                frontier.append(use.node)
    return members


def _is_single(node: ir.Node) -> bool:
    return is_operator(node, "Conv") or family(node) == "FusedConv"


def _cut(kinds: list[str]) -> Iterator[range]:
    """Cuts an alternating run into groups, as ranges of positions."""
    position, length = 0, len(kinds)
    if kinds[0] == "pointwise" and length % 2 == 1 and length > 1:
        yield range(3)
        position = 3
    while position < length:
        end = min(position + 2, length)
        yield range(position, end)
        position = end
