"""Takes Transposes away where what stands between them can be computed in another order of axes, and moves the others on."""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sepwise.passes.axis_order import (
    REGROUPING,
    Order,
    ReorderedNode,
    inverse,
    moves_nothing,
    permutation,
    reorder,
    rewrite_reordered,
)
from sepwise.passes.minimum_cut import Division
from sepwise.passes.rewriting import (
    Refusal,
    RewritePass,
    free_name,
    is_operator,
    original_nodes,
    replace_with_input,
    set_constant_input,
    set_original_nodes,
    static_shape,
    unique_value_name,
)

__all__ = ["ReorderedRegion", "SinkTransposePass"]

UNIT = 1 << 20
"""More nodes than a network has."""
STANDING = UNIT**2
"""What a Transpose costs: more than where all of them stand."""
MOVING = UNIT**3
"""What an element costs that a Transpose moves: more than all Transposes."""

AS_WRITTEN, REORDERED = Division.SIDES


@dataclass(frozen=True, eq=False)
class MergedTranspose:
    """A Transpose of a Transpose.

    Attributes:
        node: The second one.
        perm: What both do together.
        source: What the first one reads.
    """

    node: ir.Node
    perm: Order
    source: ir.Value


@dataclass(frozen=True, eq=False)
class StandingTranspose:
    """A Transpose that moves no element, as its axes of more than one element stay in line.

    Attributes:
        node: The Transpose.
        source: What it reads, before any other Reshape of it.
        shape: Of its output.
    """

    node: ir.Node
    source: ir.Value
    shape: tuple[int, ...]


@dataclass(eq=False)
class Region:
    """What a Transpose is connected with through nodes that have another order of axes.

    Attributes:
        seed: The Transpose.
        orders: For each value, the order that it would have.
        nodes: The nodes, and what they are in that order.
        entries: Transposes that make one of the values out of the reordered one.
        exits: Transposes that make the reordered value out of one.
        kept: Nodes beside these that have no other order, and why.
        depths: For each value of the graph, how many nodes but Transposes are on the longest way to it.
    """

    seed: ir.Node
    orders: dict[ir.Value, Order]
    nodes: dict[ir.Node, ReorderedNode] = field(default_factory=dict)
    entries: set[ir.Node] = field(default_factory=set)
    exits: set[ir.Node] = field(default_factory=set)
    kept: dict[ir.Node, str] = field(default_factory=dict)
    depths: dict[ir.Value, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ReorderedRegion:
    """The nodes of a region that are computed in the other order.

    Attributes:
        region: The region.
        nodes: Which.
    """

    region: Region
    nodes: frozenset[ir.Node]


SunkTranspose = MergedTranspose | StandingTranspose | ReorderedRegion


class SinkTransposePass(RewritePass[SunkTranspose]):
    """Computes nodes in the order of axes in which Transposes move the fewest elements.

        f(transpose(x, p), transpose(y, p), c) = transpose(f(x, y, transpose(c, inverse p)), p)
        transpose(transpose(x, p), q)          = transpose(x, r),  r[i] = p[q[i]],  which is x where r[i] = i
        transpose(x, p)                        = reshape(x)        where its axes of more than one element stay in line

    and alike for operators that name axes (`axis_order.py`). The first line holds from right to left as well, and a value
    that nothing transposes is `transpose(transpose(x, inverse p), p)`, so any connected nodes of that kind may be on either
    side of their Transposes. From one Transpose, the region is found of all nodes that it could be moved past, those that
    these are connected with, and the Transposes at its borders. Each node of the region takes one of two sides, as written or
    reordered; a value that is made on one side and read on the other costs a Transpose, which all its readers share; a
    Transpose in the region costs what it moves on its side. What stands at the border is on a given side. The cheapest
    division is a minimum cut (`minimum_cut.py`); of several, the one in which Transposes stand farthest from the inputs. So the
    pairs around every convolution of a network that keeps its tensors as `(n, h, w, c)` cancel, past squeeze-and-excitation
    and residuals, and those at its inputs and outputs are left.

    Class of the rewrite: `exact`, but for sums over several axes, which may be added up in another order.

    Every rewrite lowers, in this order: how many Transposes there are of tensors of unknown shape; the elements that the
    others move; how many Transposes there are; how far they stand from the depth of the graph, in sum; and how many Transposes
    are in front of each without anything between. The depth of a value counts nodes but Transposes, so it is the same from
    whichever Transpose a region is found, and no rewrite of a region changes it: what one region has lowered, another one, of
    the opposite order, cannot raise. So none is doubled or enlarged, and the pass ends.

    Fires when:
        1. a Transpose reads a Transpose, unless both together move elements that it does not, and others need the first;
        2. a division of its region costs less than what is written: in elements, else in Transposes, else in depth;
        3. else, a Transpose of some elements moves none, and becomes a Reshape.

    Refuses when:
        1. what reads the Transpose works on its axes as they stand, or it is a graph output;
        2. no other division of its region is cheaper.

    Visits the graph and its subgraphs, not function bodies.
    """

    name = "sink_transpose"
    summary = "moved or merged %d Transpose"

    def anchors(self, model: ir.Model, graph: ir.Graph) -> Iterator[ir.Node]:
        """Yields every Transpose."""
        for node in graph:
            if is_operator(node, "Transpose"):
                yield node

    def match(self, model: ir.Model, node: ir.Node) -> SunkTranspose | Refusal:
        """Decides about one Transpose."""
        merged = _merge(node)
        if merged is not None:
            return merged
        name, source, output = node.name or "", node.inputs[0], node.outputs[0]
        perm, shape = permutation(node), static_shape(output)
        if perm is None or source is None or shape is None:
            return Refusal("the shape of what it transposes is not known", name)
        if any(use.node.graph is node.graph and is_operator(use.node, "Transpose") for use in output.uses()):
            return Refusal("a Transpose reads it, into which it is merged", name)
        if perm == tuple(range(len(perm))) and _removable(node, source):
            return MergedTranspose(node, perm, source)
        regions = [_grow(model, node, perm, with_next=with_next) for with_next in (True, False)]
        for region in regions:
            nodes = _divide(region)
            if _cost(region, nodes) < _cost(region, ()):
                return ReorderedRegion(region, nodes)
        region = regions[0]
        if 0 not in shape and moves_nothing(inverse(perm), shape) and perm != tuple(range(len(perm))):
            return StandingTranspose(node, _before_reshapes(source), shape)
        if region.nodes:
            return Refusal(f"to move it past {' or '.join(_shown(region.nodes)[:3])} would transpose no fewer elements", name)
        if output.is_graph_output():
            return Refusal(f"its output '{output.name}' is a graph output", name)
        reasons = [f"{shown} {why}" for shown, why in zip(_shown(region.kept), region.kept.values(), strict=True)]
        return Refusal(reasons[0] if reasons else "nothing in this graph reads it", name)

    def rewrite(self, model: ir.Model, match: SunkTranspose) -> None:
        """Merges two Transposes, makes a Reshape of one, or reorders nodes."""
        match match:
            case MergedTranspose(node, perm, source):
                first = node.inputs[0]
                node.replace_input_with(0, source)
                node.attributes["perm"] = ir.AttrInt64s("perm", perm)
                if perm == tuple(range(len(perm))):
                    _remove(node, source)
                _drop_unread([first.producer()] if first is not None else [])
            case StandingTranspose(node, source, shape):
                before = node.inputs[0].producer() if node.inputs[0] is not None and node.inputs[0] is not source else None
                node.op_type = "Reshape"
                node.attributes.clear()
                node.replace_input_with(0, source)
                _drop_unread([before])
                set_constant_input(model, node, 1, np.asarray(shape, np.int64), f"{node.name}.shape")
            case ReorderedRegion(region, nodes):
                _reorder_region(model, region, nodes)


def _merge(node: ir.Node) -> MergedTranspose | None:
    """What two Transposes in a row are together, if they move no more than they do apart."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    if first is None or not is_operator(first, "Transpose") or first.inputs[0] is None:
        return None
    ranks = [len(perm) for perm in (permutation(node), permutation(first)) if perm is not None]
    if not ranks:
        return None
    own, before = (permutation(each, rank=ranks[0]) for each in (node, first))
    assert own is not None, "the rank is known"
    assert before is not None, "the rank is known"
    perm, shape, between = tuple(before[axis] for axis in own), static_shape(node.outputs[0]), first.outputs[0]
    stays = between.is_graph_output() or len(between.uses()) > 1
    if stays and shape is not None and moves_nothing(inverse(own), shape) and not moves_nothing(inverse(perm), shape):
        return None
    return MergedTranspose(node, perm, first.inputs[0])


def _before_reshapes(value: ir.Value) -> ir.Value:
    """What a value is a Reshape of, under any name, or the value."""
    producer = value.producer()
    while producer is not None and is_operator(producer, *REGROUPING) and producer.inputs[0] is not None:
        value, producer = producer.inputs[0], producer.inputs[0].producer()
    return value


# The region and its division --------------------------------------------------------------------------------------------


def _depths(graph: ir.Graph | None) -> dict[ir.Value, int]:
    """For each value that nodes of a graph make, how many nodes but Transposes are on the longest way to it."""
    depths: dict[ir.Value, int] = {}
    for node in graph or ():
        before = max((depths.get(value, 0) for value in node.inputs if value is not None), default=0)
        depths.update(dict.fromkeys(node.outputs, before + (not is_operator(node, "Transpose"))))
    return depths


def _grow(model: ir.Model, seed: ir.Node, perm: Order, *, with_next: bool) -> Region:
    """Finds what a Transpose could be moved past, and what that is connected with; `with_next` as `reorder` takes it."""
    opset, graph = model.opset_imports.get("", 0), seed.graph
    region = Region(seed, {seed.outputs[0]: inverse(perm)}, entries={seed})
    queue = [seed.outputs[0]]
    while queue:
        value = queue.pop()
        order = region.orders[value]
        producer = value.producer()
        for node in (*(use.node for use in value.uses()), *([] if producer is None else [producer])):
            if node.graph is not graph or node in region.entries or node in region.exits or node in region.nodes:
                continue
            if is_operator(node, "Transpose") and node.inputs[0] is value and permutation(node) == order:
                region.exits.add(node)
            elif is_operator(node, "Transpose") and node.outputs[0] is value and permutation(node) == inverse(order):
                region.entries.add(node)
            elif node not in region.kept:
                found = reorder(node, value, order, opset, with_next=with_next)
                if isinstance(found, str):
                    region.kept[node] = found
                    continue
                carried = _carried(found)
                if any(region.orders.get(each, its) != its for each, its in carried):
                    region.kept[node] = "meets its values in several orders"
                    continue
                region.nodes[node] = found
                for each, its in carried:
                    if each not in region.orders:
                        region.orders[each] = its
                        if _differs(its):
                            queue.append(each)
    if region.nodes:
        region.depths = _depths(graph)
    return region


def _carried(found: ReorderedNode) -> list[tuple[ir.Value, Order]]:
    """The values of a node that are reordered."""
    node = found.node
    inputs = ((node.inputs[position], order) for position, order in found.inputs.items())
    return [(value, order) for value, order in inputs if value is not None] + [
        (node.outputs[position], order) for position, order in found.outputs.items()
    ]


def _differs(order: Order) -> bool:
    return order != tuple(range(len(order)))


def _elements(region: Region, value: ir.Value) -> int:
    """Elements that a Transpose of a value moves."""
    shape = static_shape(value)
    assert shape is not None, "shapes in a region are known"
    return 0 if moves_nothing(region.orders[value], shape) else math.prod(shape)


def _price(region: Region, value: ir.Value) -> int:
    """What a Transpose of a value costs: the elements that it moves, itself, and how far it stands from the greatest depth."""
    return _elements(region, value) * MOVING + STANDING + UNIT - region.depths.get(value, 0)


def _moved(found: ReorderedNode, *, reordered: bool) -> int:
    """Elements that a Transpose within a region moves, on either side."""
    perm, shape = permutation(found.node), static_shape(found.node.inputs[0])
    assert perm is not None, "the rank of its input is known"
    assert shape is not None, "shapes in a region are known"
    if reordered:
        perm, shape = found.attributes["perm"].as_ints(), tuple(shape[axis] for axis in found.inputs[0])
    return 0 if moves_nothing(perm, shape) else math.prod(shape)


def _ends(region: Region, value: ir.Value) -> tuple[ir.Node | str, set[ir.Node | str]]:
    """Where a value is made and read: nodes of the region, or the side on which it is given.

    A Transpose of a Transpose reads it as written: it keeps the first one until both are merged.
    """
    producer = value.producer()
    made: ir.Node | str = REORDERED if producer in region.entries else AS_WRITTEN
    if producer in region.nodes and producer is not None:
        made = producer
    read: set[ir.Node | str] = {AS_WRITTEN} if value.is_graph_output() else set()
    for use in value.uses():
        found = region.nodes.get(use.node)
        if found is not None:
            read.add(use.node if use.idx in found.inputs else AS_WRITTEN)
        else:
            read.add(REORDERED if use.node in region.exits and made != REORDERED else AS_WRITTEN)
    return made, read


def _divide(region: Region) -> frozenset[ir.Node]:
    """Finds the nodes that are cheapest reordered."""
    division = Division()
    for value, order in region.orders.items():
        if not _differs(order):
            continue
        made, read = _ends(region, value)
        price = _price(region, value)
        if made != REORDERED:
            before = "before", value
            division.part(made, before, price)
            for reader in read - {AS_WRITTEN}:
                division.part(before, reader, math.inf)
        if made != AS_WRITTEN:
            behind = "behind", value
            division.part(behind, made, price)
            for reader in read - {REORDERED}:
                division.part(reader, behind, math.inf)
    for node, found in region.nodes.items():
        if is_operator(node, "Transpose"):
            division.part(node, REORDERED, _moved(found, reordered=False) * MOVING)
            division.part(AS_WRITTEN, node, _moved(found, reordered=True) * MOVING)
    _, reordered = division.solve()
    return frozenset(node for node in region.nodes if node in reordered)


def _cost(region: Region, reordered: Collection[ir.Node]) -> int:
    """What Transposes cost where some nodes are reordered."""
    def side(end: ir.Node | str) -> bool:
        return end == REORDERED if isinstance(end, str) else end in reordered

    within = (found for node, found in region.nodes.items() if is_operator(node, "Transpose"))
    total = sum(_moved(found, reordered=found.node in reordered) * MOVING for found in within)
    for value, order in region.orders.items():
        made, read = _ends(region, value)
        if _differs(order) and any(side(reader) != side(made) for reader in read):
            total += _price(region, value)
    return total


def _shown(nodes: Collection[ir.Node]) -> list[str]:
    return [f"{node.op_type.split('_')[0]} '{node.name}'" for node in nodes]


# The rewrite ------------------------------------------------------------------------------------------------------------


def _reorder_region(model: ir.Model, region: Region, nodes: Collection[ir.Node]) -> None:
    """Computes nodes in the order of their region, and puts Transposes where others read or make their values."""
    inputs = [
        (node, position, value)
        for node in nodes
        for position, order in region.nodes[node].inputs.items()
        if _differs(order) and (value := node.inputs[position]) is not None and value.producer() not in nodes
    ]
    for node in nodes:  # first, as a Transpose at the border may read one of them as written
        for position, order in region.nodes[node].outputs.items():
            if _differs(order):
                _keep_as_written(model, region, nodes, node.outputs[position])
    made: dict[ir.Value, ir.Value] = {}
    for node, position, value in inputs:
        if value not in made:
            made[value] = _reordered_input(model, region, value)
        node.replace_input_with(position, made[value])
    for node in nodes:
        rewrite_reordered(model, region.nodes[node])
    for node in region.exits:
        source = node.inputs[0]
        if source is not None and source.producer() in nodes:
            node.attributes["perm"] = ir.AttrInt64s("perm", range(len(region.orders[source])))
            _remove(node, source)
    _drop_unread(region.entries)


def _reordered_input(model: ir.Model, region: Region, value: ir.Value) -> ir.Value:
    """The reordered value of one that no reordered node makes: what a Transpose at the border reads or makes, or a new one."""
    producer, graph = value.producer(), region.seed.graph
    assert graph is not None, "the Transpose is in a graph"
    if producer is not None and producer in region.entries:
        assert producer.inputs[0] is not None, "a Transpose has an input"
        return producer.inputs[0]
    node = next((use.node for use in value.uses() if use.node in region.exits), None)
    if node is None:
        node = _transpose(model, region, value, region.orders[value])
        node.outputs[0].name = unique_value_name(model, f"{value.name}.reordered")
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return node.outputs[0]


def _keep_as_written(model: ir.Model, region: Region, nodes: Collection[ir.Node], value: ir.Value) -> None:
    """Gives the output of a reordered node its new shape, and who reads it as it was written a Transpose of it."""
    order, producer = region.orders[value], value.producer()
    assert producer is not None, "a node made it"
    readers = [
        use for use in value.uses()
        if use.node not in region.exits and not (use.node in nodes and use.idx in region.nodes[use.node].inputs)
    ]  # fmt: skip
    if readers or value.is_graph_output():
        behind = _transpose(model, region, value, inverse(order))
        written, name = behind.outputs[0], value.name
        written.doc_string = value.doc_string
        written.metadata_props.update(value.metadata_props)
        kept = [use for use in value.uses() if use not in readers and use.node is not behind]
        ir.convenience.replace_all_uses_with(value, written, replace_graph_outputs=True)
        for use in kept:
            use.node.replace_input_with(use.idx, value)
        behind.replace_input_with(0, value)
        assert producer.graph is not None, "the node is in a graph"
        producer.graph.insert_after(producer, behind)
        value.name = unique_value_name(model, f"{name}.sunk")
        written.name, written.shape = name, value.shape
    value.doc_string = None
    value.metadata_props.clear()
    shape = static_shape(value)
    assert shape is not None, "shapes in a region are known"
    value.shape = ir.Shape([shape[axis] for axis in order])


def _transpose(model: ir.Model, region: Region, value: ir.Value, perm: Order) -> ir.Node:
    """A Transpose of a value of a region, not yet in its graph."""
    near = value.producer()
    taken = {node.name or "" for graph in model.graphs() for node in graph}
    name = free_name(taken, f"{region.seed.name}.{value.name if near is None else near.name}")
    node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", perm)], name=name)
    set_original_nodes(node, original_nodes(region.seed))
    shape = static_shape(value)
    assert shape is not None, "shapes in a region are known"
    node.outputs[0].type, node.outputs[0].shape = value.type, ir.Shape([shape[axis] for axis in perm])
    return node


def _remove(node: ir.Node, source: ir.Value) -> None:
    """Takes away a Transpose that changes nothing, if it may go."""
    if _removable(node, source):
        replace_with_input(node, source, keep_name=node.outputs[0].is_graph_output())


def _removable(node: ir.Node, source: ir.Value) -> bool:
    """Tells whether a Transpose that changes nothing may go: an output of the graph is no input of it, and no other output."""
    if not node.outputs[0].is_graph_output():
        return True
    return source.producer() is not None and not source.is_graph_output() and source.graph is node.graph


def _drop_unread(nodes: Iterable[ir.Node | None]) -> None:
    """Removes Transposes and Reshapes that nothing reads any more, and what only they have read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is None or node.graph is None or node.outputs[0].uses() or node.outputs[0].is_graph_output():
            continue
        if is_operator(node, "Transpose", *REGROUPING):
            waiting.append(node.inputs[0].producer() if node.inputs[0] is not None else None)
            node.graph.remove(node, safe=True)
