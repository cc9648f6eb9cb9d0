"""How a node computes the same where its tensors keep their axes in another order.

An `order` of a value says which of its axes, as the node is written, stands where: the reordered value is
`transpose(value, order)`. With `x'` for a reordered `x` and `place[a]` for the position of axis a in the order

    elementwise       f(x, y, c)'       = f(x', y', transpose(c, order))       all of one rank, or of one element
    along an axis     f(x, axis)'       = f(x', place[axis])                   Concat, Split, Slice, Softmax, ArgMax, reductions
    by axis           f(x, amounts)'    = f(x', amounts[order])                Pad, Tile, Expand
    dropped axes      the order of those that stay, where a reduction keeps none of those it reduces
    regrouped axes    the order of the groups: Reshape and its kin split or join neighbouring axes, which must stay neighbours
    moved axes        transpose(x, p)'  = transpose(x', r),  r[i] = place[p[order[i]]]

Axes of one element stand anywhere without moving anything; one that a Reshape adds goes with the axis before or behind it. What
normalises, convolves, pools, resizes or multiplies matrices names its axes by their position, so it has no other order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.rewriting import constant_tensor, is_operator, set_constant_input, static_shape
from sepwise.passes.vocabulary import ELEMENTWISE_OPERATORS

__all__ = ["REGROUPING", "Order", "ReorderedNode", "inverse", "moves_nothing", "permutation", "reorder", "rewrite_reordered"]

Order = tuple[int, ...]
"""A permutation: what stands where."""

Constants = dict[int, npt.NDArray[np.generic]]
"""Constants of a node, by position."""

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip
ALONG_AN_AXIS = {"Concat": 0, "Split": 0, "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1}
"""Operators that keep the rank and do along one axis what they do, with the axis where they name none."""
SINCE_WHICH_ONE_AXIS = 13
"""First operator set in which Softmax and its kin are along one axis, and not along all behind one."""
REGROUPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True, eq=False)
class ReorderedNode:
    """What a node becomes on reordered tensors.

    Attributes:
        node: The node.
        inputs: Orders of the inputs that are reordered, by position.
        outputs: Orders of its outputs.
        attributes: Attributes that change.
        transposed: Orders of its constants that change with the axes, by position.
        constants: Other constants that change.
        operator: Its operator, where it becomes another one.
    """

    node: ir.Node
    inputs: dict[int, Order]
    outputs: dict[int, Order]
    attributes: dict[str, ir.Attr] = field(default_factory=dict)
    transposed: dict[int, Order] = field(default_factory=dict)
    constants: Constants = field(default_factory=dict)
    operator: str | None = None


def inverse(order: Sequence[int]) -> Order:
    """The permutation that undoes another."""
    return tuple(int(axis) for axis in np.argsort(order))


def moves_nothing(order: Sequence[int], shape: Sequence[int]) -> bool:
    """Tells whether a Transpose leaves every element where it is in memory: the axes of more than one element stay in line."""
    long = [axis for axis in order if shape[axis] != 1]
    return long == sorted(long)


def permutation(node: ir.Node, *, rank: int | None = None) -> Order | None:
    """A Transpose's permutation, reversed axes where it gives none; None where neither its input nor `rank` says how many."""
    perm = node.attributes.get_ints("perm")
    if perm is not None:
        return tuple(perm)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    rank = rank if shape is None else len(shape)
    return None if rank is None else tuple(reversed(range(rank)))


def reorder(node: ir.Node, value: ir.Value, order: Order, opset: int, *, with_next: bool = True) -> ReorderedNode | str:
    """Says what a node becomes where one of its values has its axes in another order.

    Args:
        node: The node; the shapes of its values are known.
        value: One of its inputs or outputs.
        order: Which axis of the value stands where.
        opset: Version of the standard operator set.
        with_next: Whether an axis of one element that is added goes with the axis behind it, or with that before it.

    Returns:
        The node on reordered tensors, or why there is none: one clause about the node.
    """
    shapes = [static_shape(each) for each in (*node.inputs, *node.outputs) if each is not None]
    if None in shapes:
        return "has values of unknown shape"
    if is_operator(node, *ELEMENTWISE_OPERATORS):
        return _elementwise(node, order)
    if is_operator(node, *REGROUPING):
        return _regrouped(node, value, order, with_next=with_next)
    if is_operator(node, "Transpose"):
        perm = permutation(node)
        assert perm is not None, "the rank of its input is known"
        place = inverse(order)
        moved = ir.AttrInt64s("perm", [place[perm[axis]] for axis in order])
        return ReorderedNode(node, {0: order}, {0: order}, {"perm": moved})
    if is_operator(node, *REDUCTIONS, "ArgMax", "ArgMin"):
        return _reduced(node, value, order)
    along = ALONG_AN_AXIS.get(node.op_type) if node.domain == "" else None
    if along is not None and (opset >= SINCE_WHICH_ONE_AXIS or is_operator(node, "Concat", "Split")):
        axis = node.attributes.get_int("axis", along)
        moved = ir.AttrInt64("axis", inverse(order)[axis])
        places = range(len(node.inputs)) if is_operator(node, "Concat") else (0,)
        constants = {place: order for place in places if constant_tensor(node.inputs[place]) is not None}
        inputs = {place: order for place in places if place not in constants}
        return ReorderedNode(node, inputs, dict.fromkeys(range(len(node.outputs)), order), {"axis": moved}, constants)
    amounts_of = BY_AXIS.get(node.op_type) if node.domain == "" else None
    if amounts_of is not None and len(node.inputs) > 1 and len(static_shape(node.inputs[0]) or ()) == len(order):
        amounts = amounts_of(node, order)
        return amounts if isinstance(amounts, str) else ReorderedNode(node, {0: order}, {0: order}, constants=amounts)
    return "works on its axes as they stand"


def rewrite_reordered(model: ir.Model, found: ReorderedNode) -> None:
    """Changes a node's attributes and constants to what reordered tensors need; its other inputs are left to the caller."""
    node = found.node
    for position, order in found.transposed.items():
        tensor = constant_tensor(node.inputs[position])
        assert tensor is not None, "it was constant when it was looked at"
        array = tensor.numpy()
        array = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(order)
        set_constant_input(model, node, position, np.ascontiguousarray(array), f"{node.name}.constant{position}")
    if found.operator is not None:
        node.op_type = found.operator
        node.attributes.clear()
        node.resize_inputs(2)
    for position, constant in found.constants.items():
        set_constant_input(model, node, position, constant, f"{node.name}.constant{position}")
    node.attributes.update(found.attributes)


def _elementwise(node: ir.Node, order: Order) -> ReorderedNode | str:
    """Constants of fewer axes are broadcast from the last one on, so that they get them all before they are transposed."""
    rank = len(order)
    inputs: dict[int, Order] = {}
    constants: dict[int, Order] = {}
    for position, value in enumerate(node.inputs):
        shape = static_shape(value)
        if value is None or shape is None:
            continue
        tensor = constant_tensor(value)
        if len(shape) <= rank and math.prod(shape) == 1 and (tensor is not None or len(shape) < rank):
            continue
        if len(shape) > rank or (tensor is None and len(shape) < rank):
            return f"has '{value.name}' of {len(shape)} axes among its inputs of {rank}"
        if tensor is not None and tensor.dtype == ir.DataType.STRING:
            return f"has a constant of strings, '{value.name}'"
        (inputs if tensor is None else constants)[position] = order
    return ReorderedNode(node, inputs, {0: order}, transposed=constants)


def _reduced(node: ir.Node, value: ir.Value, order: Order) -> ReorderedNode | str:
    shape = static_shape(node.inputs[0])
    assert shape is not None, "shapes are known"
    rank, place = len(shape), inverse(order)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    keep = bool(node.attributes.get_int("keepdims", 1))
    if is_operator(node, "ArgMax", "ArgMin"):
        axes, named = [node.attributes.get_int("axis", 0)], "axis"
    elif given is not None:
        tensor = constant_tensor(given)
        if tensor is None:
            return "reduces axes that are not constant"
        axes, named = [int(axis) for axis in tensor.numpy()], "input"
    else:
        axes, named = list(node.attributes.get_ints("axes") or ()), "axes"
    if not axes:
        return "reduces all axes or none"
    if not keep and value is not node.inputs[0]:
        return "drops axes"
    moved = sorted(place[axis] for axis in axes)
    attributes: dict[str, ir.Attr] = {}
    if named == "axis":
        attributes["axis"] = ir.AttrInt64("axis", moved[0])
    elif named == "axes":
        attributes["axes"] = ir.AttrInt64s("axes", moved)
    constants: Constants = {1: np.asarray(moved, np.int64)} if named == "input" else {}
    out = order
    if not keep:
        left = [axis for axis in range(rank) if axis not in {each % rank for each in axes}]
        out = tuple(left.index(axis) for axis in order if axis in left)
    return ReorderedNode(node, {0: order}, {0: out}, attributes, constants=constants)


def _regrouped(node: ir.Node, value: ir.Value, order: Order, *, with_next: bool) -> ReorderedNode | str:
    """A Reshape of any name between fixed shapes, in either direction."""
    source, result = (static_shape(each) for each in (node.inputs[0], node.outputs[0]))
    assert source is not None, "shapes are known"
    assert result is not None, "shapes are known"
    backwards = value is node.outputs[0]
    pair = (result, source) if backwards else (source, result)
    other = _order_behind(*pair, order, with_next=with_next)
    if other is None:
        return "joins or splits axes that another order parts"
    before, behind = (other, order) if backwards else (order, other)
    shape = np.asarray([result[axis] for axis in behind], np.int64)
    return ReorderedNode(node, {0: before}, {0: behind}, constants={1: shape}, operator="Reshape")


def _order_behind(source: Sequence[int], result: Sequence[int], order: Order, *, with_next: bool) -> Order | None:
    """The order of a Reshape's result that goes with one of its source, or None where the groups of axes are torn apart."""
    if 0 in source:
        return None
    groups = _groups(source, result)
    grouped = {axis for group, _ in groups for axis in group}
    ordered = [axis for axis in order if axis in grouped]
    placed: list[int] = []
    while ordered:
        group, behind = next((before, behind) for before, behind in groups if ordered[0] in before)
        if ordered[: len(group)] != group:
            return None
        placed += behind
        del ordered[: len(group)]
    neighbour: int | None = None
    for axis in reversed(range(len(result))) if with_next else range(len(result)):
        if axis not in placed:
            at = placed.index(neighbour) + (not with_next) if neighbour is not None else len(placed) if with_next else 0
            placed.insert(at, axis)
        neighbour = axis
    return tuple(placed)


def _groups(source: Sequence[int], result: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes with the same elements on both sides.

    Axes of one element stand for themselves where both sides have one between the same groups, else they are in none.
    """
    left, right = list(range(len(source))), list(range(len(result)))
    groups: list[tuple[list[int], list[int]]] = []
    while True:
        while left and right and source[left[0]] == result[right[0]] == 1:
            groups.append(([left.pop(0)], [right.pop(0)]))
        for waiting, shape in ((left, source), (right, result)):
            while waiting and shape[waiting[0]] == 1:
                del waiting[0]
        if not left:
            return groups
        before, behind = [left.pop(0)], [right.pop(0)]
        sizes = [source[before[0]], result[behind[0]]]
        while sizes[0] != sizes[1]:
            shorter = sizes[0] > sizes[1]
            group, waiting, shape = ((before, left, source), (behind, right, result))[shorter]
            sizes[shorter] *= shape[waiting[0]]
            if shape[waiting[0]] != 1:
                group.append(waiting[0])
            del waiting[0]
        groups.append((before, behind))


def _pads(node: ir.Node, order: Order) -> Constants | str:
    amounts, rank = constant_tensor(node.inputs[1]), len(order)
    axes = constant_tensor(node.inputs[3]) if len(node.inputs) > 3 else None
    if amounts is None or (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return "has amounts or axes that are not constant"
    if axes is not None:
        return {3: np.asarray([inverse(order)[axis] for axis in axes.numpy()], axes.numpy().dtype)}
    return {1: amounts.numpy().reshape(2, rank)[:, list(order)].reshape(-1)}


def _amounts(node: ir.Node, order: Order) -> Constants | str:
    amounts = constant_tensor(node.inputs[1])
    if amounts is None or len(amounts.numpy()) != len(order):
        return "has amounts that are not constant or not one for each axis"
    return {1: amounts.numpy()[list(order)]}


def _slices(node: ir.Node, order: Order) -> Constants | str:
    """Axes that were not named are of the type of the starts, as the operator wants them."""
    named: npt.NDArray[np.generic] | None = None
    starts, shape = node.inputs[1], static_shape(node.inputs[1])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant_tensor(node.inputs[3])
        named = None if axes is None else axes.numpy()
    elif starts is not None and starts.dtype is not None and shape is not None:
        named = np.arange(shape[0], dtype=starts.dtype.numpy())
    if named is None:
        return "has axes that are not constant"
    return {3: np.asarray([inverse(order)[int(axis)] for axis in named], named.dtype)}


BY_AXIS: dict[str, Callable[[ir.Node, Order], Constants | str]] = {
    "Pad": _pads,
    "Tile": _amounts,
    "Expand": _amounts,
    "Slice": _slices,
}
"""Operators of numbers for each axis, with what becomes of them."""
