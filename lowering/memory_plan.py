"""The memory plan: where each intermediate lies in the one arena, and the scratch of each kernel while it runs.

Values whose lifetimes overlap must not overlap in memory. The smallest arena is NP-hard to find (it is dynamic
storage allocation); greedy placement in a good order comes close, and the bound says how close. Several orders
are tried, then exchanges of the best one, and the smallest plan is kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ALIGNMENT_BYTES", "Lifetime", "MemoryPlan", "align", "largest_live_bytes", "plan_memory"]

ALIGNMENT_BYTES = 64
_EXCHANGES = 100
_SEED = 1


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value, or a kernel's scratch, and when it is needed.

    Attributes:
        name: What `MemoryPlan.offsets` calls it.
        nbytes: Its size.
        first_use: Index of the call that writes it.
        last_use: Index of the last call that reads it, or `first_use`; both ends count.
    """

    name: str
    nbytes: int
    first_use: int
    last_use: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are live during some call."""
        return self.first_use <= other.last_use and other.first_use <= self.last_use


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where every value lies.

    Attributes:
        offsets: Bytes from the start of the arena, multiples of 64.
        arena_bytes: Size of the arena, a multiple of 64; at least that, for an arena has an address.
        lower_bound_bytes: The largest sum of live bytes, sizes rounded up to 64: no plan is smaller.
    """

    offsets: dict[str, int]
    arena_bytes: int
    lower_bound_bytes: int


def align(nbytes: int) -> int:
    """Rounds a size up to a multiple of 64 bytes."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def plan_memory(lifetimes: Sequence[Lifetime], *, aliases: Mapping[str, str] | None = None) -> MemoryPlan:
    """Places values in one arena.

    Args:
        lifetimes: The values, names unique.
        aliases: Values that are views of others (a reshape of a plain tensor), by the name of what they view, which
            may itself be a view. A view lies where its base lies and keeps it alive.

    Returns:
        The plan, a pure function of the arguments.

    Raises:
        ValueError: A name comes twice, ends before it begins, or a view's base is not among the values.

    Example:
        >>> plan = plan_memory([Lifetime("a", 100, 0, 1), Lifetime("b", 64, 1, 2), Lifetime("c", 128, 2, 3)])
        >>> plan.offsets, plan.arena_bytes
        ({'c': 0, 'a': 0, 'b': 128}, 192)
    """
    bases = _merge_views(lifetimes, aliases or {})
    values = list({base.name: base for base in bases.values()}.values())
    lower_bound_bytes = largest_live_bytes(values)
    best_order: list[Lifetime] = []
    best_offsets: dict[str, int] = {}
    best_bytes = -1

    def consider(order: list[Lifetime]) -> bool:
        nonlocal best_order, best_offsets, best_bytes
        for pick in (_smallest_gap, _lowest_gap, _either_end):
            offsets, arena_bytes = _place(order, pick, lower_bound_bytes)
            if best_bytes < 0 or arena_bytes < best_bytes:
                best_order, best_offsets, best_bytes = order, offsets, arena_bytes
        return best_bytes == lower_bound_bytes

    done = any(consider(order) for order in _orders(values))
    chance = random.Random(_SEED)
    for _ in range(0 if done or len(values) < 2 else _EXCHANGES):
        order = best_order.copy()
        order.insert(chance.randrange(len(order)), order.pop(chance.randrange(len(order))))
        if consider(order):
            break
    placed = {name: best_offsets[base.name] for name, base in bases.items()}
    return MemoryPlan(
        offsets={value.name: placed[value.name] for value in sorted(lifetimes, key=lambda v: (-v.nbytes, v.first_use))},
        arena_bytes=max(best_bytes, ALIGNMENT_BYTES),
        lower_bound_bytes=lower_bound_bytes,
    )


def _merge_views(lifetimes: Sequence[Lifetime], aliases: Mapping[str, str]) -> dict[str, Lifetime]:
    """Gives every value the lifetime of the memory it lies in."""
    by_name = {value.name: value for value in lifetimes}
    if len(by_name) != len(lifetimes):
        raise ValueError("a value is given twice")
    roots = {}
    for value in lifetimes:
        if value.last_use < value.first_use:
            raise ValueError(f"value '{value.name}': last use {value.last_use} is before first use {value.first_use}")
        root = value.name
        seen = {root}
        while root in aliases:
            root = aliases[root]
            if root not in by_name or root in seen:
                raise ValueError(f"value '{value.name}': is a view of '{root}', which is no value of the plan")
            seen.add(root)
        roots[value.name] = root
    members: dict[str, list[Lifetime]] = {}
    for name, root in roots.items():
        members.setdefault(root, []).append(by_name[name])
    merged = {
        root: Lifetime(
            root,
            max(view.nbytes for view in views),
            min(view.first_use for view in views),
            max(view.last_use for view in views),
        )
        for root, views in members.items()
    }
    return {name: merged[root] for name, root in roots.items()}


def largest_live_bytes(values: Sequence[Lifetime]) -> int:
    """Finds the largest sum of live bytes; it is reached where some value begins.

    Args:
        values: None of them a view.

    Returns:
        Bytes, each size rounded up to 64: no plan is smaller.
    """
    return max(
        (
            sum(align(value.nbytes) for value in values if value.first_use <= start.first_use <= value.last_use)
            for start in values
        ),
        default=0,
    )


def _orders(values: Sequence[Lifetime]) -> list[list[Lifetime]]:
    """Lists the orders that greedy placement tries."""
    live_bytes = {
        value.name: max(
            sum(other.nbytes for other in values if other.first_use <= moment <= other.last_use)
            for moment in {value.first_use, value.last_use}
        )
        for value in values
    }
    keys: list[Callable[[Lifetime], tuple[int, int]]] = [
        lambda value: (-value.nbytes, value.first_use),
        lambda value: (-value.nbytes * (value.last_use - value.first_use + 1), value.first_use),
        lambda value: (-live_bytes[value.name], -value.nbytes),
        lambda value: (value.first_use - value.last_use, -value.nbytes),
        lambda value: (value.first_use, -value.nbytes),
    ]
    return [sorted(values, key=key) for key in keys]


class _Gap(NamedTuple):
    """Room between values that lie already, or above them up to the lower bound of the arena."""

    offset: int
    nbytes: int


def _smallest_gap(gaps: Sequence[_Gap], value: Lifetime) -> int:
    """Picks the offset of the gap that leaves the least behind."""
    del value
    return min(gaps, key=lambda gap: (gap.nbytes, gap.offset)).offset


def _lowest_gap(gaps: Sequence[_Gap], value: Lifetime) -> int:
    """Picks the lowest offset."""
    del value
    return gaps[0].offset


def _either_end(gaps: Sequence[_Gap], value: Lifetime) -> int:
    """Picks the lowest offset or the end of the highest gap in turn, so that of a chain neighbours lie at either end."""
    if value.first_use % 2 == 0:
        return gaps[0].offset
    return gaps[-1].offset + gaps[-1].nbytes - align(value.nbytes)


def _place(
    order: Sequence[Lifetime], pick: Callable[[Sequence[_Gap], Lifetime], int], room_bytes: int
) -> tuple[dict[str, int], int]:
    """Places values one after the other, each into a gap between those placed that are live with it, or above them.

    Args:
        order: The values.
        pick: Chooses an offset in the gaps that are large enough, lowest first.
        room_bytes: Up to which the room above all values counts as a gap; a value that fits no gap lies above them nevertheless.

    Returns:
        Offsets and the size of the arena.
    """
    placed: list[tuple[int, Lifetime]] = []
    arena_bytes = 0
    for value in order:
        nbytes = align(value.nbytes)
        end = 0
        gaps = []
        for offset, other in sorted(
            ((offset, other) for offset, other in placed if value.overlaps(other)), key=lambda item: item[0]
        ):
            if offset - end >= nbytes:
                gaps.append(_Gap(end, offset - end))
            end = max(end, offset + align(other.nbytes))
        if not gaps or room_bytes - end >= nbytes:
            gaps.append(_Gap(end, max(room_bytes - end, nbytes)))
        chosen = pick(gaps, value)
        placed.append((chosen, value))
        arena_bytes = max(arena_bytes, chosen + nbytes)
    return {value.name: offset for offset, value in placed}, arena_bytes
