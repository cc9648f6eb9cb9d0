"""Which whole numbers an input may hold, as what reads it tells.

An input is followed through the operators that pass its numbers on (Cast, Reshape, Slice ...) to those that do something with
them:

    a place in an axis   Gather and its kind             all of the axis' extent, its last element too
    what says shapes     Reshape, axes, k of TopK ...    0, 1 and 2
    data                 everything else                 of 8 bits all numbers; of more bits 0, 1 and 2, as flags and masks hold,
                                                         and on other sets such as narrower types and float32 do not hold

An input that is several of them is drawn from what all allow. Behind arithmetic (`2 * x + y`) it is not known how large a place
becomes, and an input that leads to one is drawn from 0, 1 and 2 as well.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sepwise.passes.equivalence.formats import FORMATS
from sepwise.passes.equivalence.graph import Graph, Operation
from sepwise.passes.equivalence.rounding import CASTS, MOVES
from sepwise.passes.equivalence.tolerances import STRUCTURE

__all__ = ["Numbers", "Reading", "read_integers"]

FEW = 3
"""So many numbers are drawn from, from 0 on, where larger ones may mean nothing."""

SIZES: Mapping[str, int] = {"uniform": 100, "large": 1 << 26}
"""How large data of more than 8 bits is, by kind of input set: within a byte, and beyond what float32 holds exactly."""

COMPUTED_SIZE = 1 << 12
"""How large it is where integers are computed with: squares, and sums of some hundred of them, overflow no type."""

PLACES: Mapping[str, int] = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "RoiAlign": 2,
    "ScatterElements": 1,
    "ScatterND": 1,
}
"""Operators that read places in an axis, and which of their inputs says so."""

SETTINGS: Mapping[str, tuple[int, ...]] = {"BitShift": (1,), "NonMaxSuppression": (2,), "ReverseSequence": (1,), "Trilu": (1,)}
"""Further inputs that are no data: those whose value `STRUCTURE` leaves to sigma_c."""

ARITHMETIC = frozenset(
    ("Abs", "Add", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Relu", "Round", "Sub", "Sum")
)
"""Operators behind which a number is another one, but may still become a place or a shape."""

COMPARING = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
DIVIDING = frozenset(("Div", "Mod"))


@dataclass(frozen=True)
class Numbers:
    """Whole numbers to draw from.

    Attributes:
        first: the smallest.
        last: the largest.
        placed: whether they are places, of which each is as good as any.
    """

    first: int
    last: int
    placed: bool = False


@dataclass(frozen=True)
class Reading:
    """What becomes of an integer input.

    Attributes:
        tables: tensors in which it says a place, each with the axes that it may be in, None for all.
        small: whether it says shapes, or a place that is computed from it.
        computed: whether integers are computed with it.
        divides: whether something is divided by it.
    """

    tables: tuple[tuple[str, int | None], ...]
    small: bool
    computed: bool
    divides: bool

    def numbers(self, dtype: "np.dtype[np.integer]", kind: str, shape_of: Callable[[str], tuple[int, ...] | None]) -> Numbers:
        """Says what it is drawn from.

        Args:
            dtype: its type.
            kind: of the input set, one of `KINDS`.
            shape_of: finds the shape of a tensor; None where it is not known.
        """
        shapes = [(shape_of(name), axis) for name, axis in self.tables]
        if self.small or any(shape is None for shape, _ in shapes):
            return Numbers(0, FEW - 1)
        extents = [min(shape or (1,)) if axis is None else shape[axis] for shape, axis in shapes if shape is not None]
        limits = np.iinfo(dtype)
        if extents:
            return Numbers(0, min(*extents, int(limits.max) + 1) - 1, placed=True)
        lowest, largest = int(limits.min), int(limits.max)
        if limits.bits > 8:
            size = SIZES.get(kind, FEW - 1)
            largest = min(size, largest, COMPUTED_SIZE if self.computed else size)
            lowest = max(-largest, lowest) if kind in SIZES else 0
        return Numbers(1 if self.divides else lowest, largest)


def read_integers(graph: Graph, name: str) -> Reading:
    """Finds out what becomes of an integer input.

    Args:
        graph: the graph.
        name: the input.

    Returns:
        What reads it, also in branches and behind what passes it on.
    """
    readers: dict[str, list[tuple[Operation, int]]] = {}
    for op in _operations(graph):
        for place, read in enumerate(op.inputs):
            readers.setdefault(read, []).append((op, place))
    tables: list[tuple[str, int | None]] = []
    small = computed = divides = False
    pending = [(name, False, False)]  # whether arithmetic lies between, and whether it is a floating-point number by then
    seen = set(pending)
    while pending:
        value, changed, floating = pending.pop()
        for op, place in readers.get(value, ()):
            if PLACES.get(op.operator) == place:
                tables.append((op.inputs[0], _axis(op)))
                small = small or changed
                continue
            if place in _settings(op):
                small = True
                continue
            passed = _passes(op, place)
            if not passed and not floating and op.operator not in COMPARING:
                computed = True
                divides = divides or (op.operator in DIVIDING and place == 1)
            if passed or op.operator in ARITHMETIC:
                made = op.attributes.get("to") in FORMATS if op.operator in CASTS else floating
                following = {(output, changed or not passed, made) for output in op.outputs if output} - seen
                seen |= following
                pending += sorted(following)
    return Reading(tuple(tables), small, computed, divides)


def _axis(op: Operation) -> int | None:
    if op.operator.endswith("ND"):
        return None
    return 0 if op.operator == "RoiAlign" else op.integer("axis", 0)


def _settings(op: Operation) -> tuple[int, ...]:
    """The inputs of an operator that are no data."""
    reduced = (1,) if op.operator.startswith("Reduce") else ()
    return (*STRUCTURE.get(op.operator, ()), *SETTINGS.get(op.operator, ()), *reduced)


def _passes(op: Operation, place: int) -> bool:
    """Tells whether an operator's result holds the numbers of one of its inputs."""
    moved = (0,) if op.operator in CASTS else (1, 2) if op.operator == "Where" else MOVES.get(op.operator)
    return moved is not None and (place in moved or not moved)


def _operations(graph: Graph) -> Iterator[Operation]:
    for op in graph.operations:
        yield op
        for subgraph in op.subgraphs():
            yield from _operations(subgraph)
