"""Groups depthwise and pointwise convolutions that follow each other into separable convolutions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sepwise.passes.chains import conv_kind, conv_steps, family, read_chain
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
        """Yields the heads of groups, and the convolutions that cannot be grouped with their neighbour."""
        for node in graph:
            link = _link(model, node)
            if isinstance(link, Refusal) or (link is not None and _group_of(model, node)[0] is node):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> SeparableGroup | Refusal:
        """Decides about the group that begins at `node`."""
        link = _link(model, node)
        return link if isinstance(link, Refusal) else self._grouped(model, _group_of(model, node))

    def _grouped(self, model: ir.Model, nodes: list[ir.Node]) -> SeparableGroup:
        kinds = [_first_kind(model, node) for node in nodes]
        steps: tuple[Step, ...] = ()
        for node in nodes:
            own = conv_steps(model, node)
            assert isinstance(own, tuple), "a linked convolution has steps"
            steps = joined(steps, own)
        if len(nodes) == 3:
            return SeparableGroup("InvertedResidual", ("expand_", "depthwise_", "project_"), tuple(nodes), steps)
        return SeparableGroup("SeparableConv", tuple(f"{kind}_" for kind in kinds), tuple(nodes), steps)

    def rewrite(self, model: ir.Model, match: SeparableGroup) -> None:
        """Replaces the convolutions by one call."""
        replace_by_fused(model, match.operator, match.steps, match.nodes, match.roles)


def _is_single(node: ir.Node) -> bool:
    return is_operator(node, "Conv") or family(node) == "FusedConv"


def _first_kind(model: ir.Model, node: ir.Node) -> str | None:
    """Returns the kind of a convolution, or of the first one of a fused operator; None if it is neither of ours."""
    if family(node) is None and not is_operator(node, "Conv"):
        return None
    shape = static_shape(node.inputs[1])
    steps = conv_steps(model, node)
    if shape is None or steps is None:
        return None
    if isinstance(steps, Refusal):  # its padding is not known, its kind is
        group: int = node.attributes.get_int("group", 1)
    else:
        group = steps[0].attributes["group"].as_int()
    kind = conv_kind(shape, group)
    return kind if kind in ("depthwise", "pointwise") else None


def _link(model: ir.Model, node: ir.Node) -> ir.Node | Refusal | None:
    """Returns the convolution of the other kind that `node` can be grouped with, or why it cannot, or None."""
    kind = _first_kind(model, node) if _is_single(node) else None
    if kind is None:
        return None
    name = node.name or ""
    for use in node.outputs[0].uses():
        other = _first_kind(model, use.node) if use.idx == 0 else None
        if other is None or other == kind:
            continue
        refusal = sole_use_refusal(node.outputs[0], node, use.node)
        if refusal is not None:
            return Refusal(refusal.reason, name)
        if not _is_single(use.node):
            return None
        for conv in (node, use.node):
            if constant_tensor(conv.inputs[1]) is None:
                return Refusal(f"the weight of '{conv.name}' is not constant", name)
            steps = conv_steps(model, conv)
            if isinstance(steps, Refusal):
                return Refusal(steps.reason, name)
        chain = read_chain(model, node)
        assert chain is not None, "its steps are known"
        if chain.residual is not None:
            return Refusal(f"it adds the residual '{chain.residual}' before '{use.node.name}'", name)
        return use.node
    return None


def _group_of(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    """Returns the group that `node` belongs to within its maximal alternating run."""
    run = [node]
    while True:
        source = run[0].inputs[0]
        producer = None if source is None else source.producer()
        if producer is None or _link(model, producer) is not run[0]:
            break
        run.insert(0, producer)
    while isinstance(following := _link(model, run[-1]), ir.Node):
        run.append(following)
    groups = _cut([_first_kind(model, member) for member in run])
    position = run.index(node)
    return next(run[group.start : group.stop] for group in groups if position in group)


def _cut(kinds: Sequence[str | None]) -> Iterator[range]:
    """Cuts an alternating run into groups, as ranges of positions."""
    position, length = 0, len(kinds)
    if kinds[0] == "pointwise" and length % 2 == 1 and length > 1:
        yield range(3)
        position = 3
    while position < length:
        end = min(position + 2, length)
        yield range(position, end)
        position = end
