"""What a Program executes on an emulated core, exactly: instructions, loads and stores by block, and modelled cache misses.

The file that `runtime/count.c` writes is read here; that plugin says what a block is and how the caches are modelled.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Block", "BlockRun", "CacheGeometry", "CallCounts", "Counts", "Misses", "read_counts"]


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """The caches of a core, as the model takes them.

    Attributes:
        l1d_bytes: Level 1 data cache.
        l1d_ways: Its associativity.
        l2_bytes: Level 2 cache that the core sees.
        l2_ways: Its associativity.
        line_bytes: Line of both, a power of two.
        streams: Sequences of lines that the prefetcher follows at a time, at most 64.
    """

    l1d_bytes: int
    l1d_ways: int
    l2_bytes: int
    l2_ways: int
    line_bytes: int
    streams: int

    def __str__(self) -> str:
        """Gives the plugin's option."""
        sizes = (self.l1d_bytes, self.l1d_ways, self.l2_bytes, self.l2_ways, self.line_bytes, self.streams)
        return ":".join(map(str, sizes))


@dataclass(frozen=True, slots=True)
class Misses:
    """Events of one core's modelled caches, in lines.

    Attributes:
        l1_streamed: Misses of level 1 that nothing waits for: loads that a prefetcher foresees, and stores.
        l1_stored: Stores that miss and continue a stream.
        l1_demanded: Its other misses: loads wait for them.
        l1_written: Lines that level 1 writes back.
        l2_streamed: Those of `l1_streamed` that miss level 2 too.
        l2_stored: Those of `l1_stored`.
        l2_demanded: Those of `l1_demanded`.
        l2_written: Lines that level 2 writes back.
    """

    l1_streamed: int = 0
    l1_stored: int = 0
    l1_demanded: int = 0
    l1_written: int = 0
    l2_streamed: int = 0
    l2_stored: int = 0
    l2_demanded: int = 0
    l2_written: int = 0

    @property
    def l1(self) -> int:
        """Misses of level 1."""
        return self.l1_streamed + self.l1_stored + self.l1_demanded

    @property
    def l2(self) -> int:
        """Misses of level 2."""
        return self.l2_streamed + self.l2_stored + self.l2_demanded

    def __add__(self, other: Self) -> Misses:
        """Adds event by event."""
        return Misses(*(getattr(self, name) + getattr(other, name) for name in _EVENTS))


_EVENTS = tuple(field.name for field in fields(Misses))


@dataclass(frozen=True, slots=True)
class Block:
    """Straight-line code.

    Attributes:
        address: Where it lies.
        instructions: How many it has.
        loads: Those that load, None where that is not counted.
        stores: Those that store, None where that is not counted.
        code: Their bytes.
    """

    address: int
    instructions: int
    loads: int | None
    stores: int | None
    code: bytes

    @property
    def scalable(self) -> bool:
        """Whether AArch64's code has an instruction of scalable vectors: bits 28 to 25 are 0010 (Arm DDI 0487, C4.1)."""
        words = struct.unpack(f"<{len(self.code) // 4}I", self.code)
        return any(word >> 25 & 0xF == 0b0010 for word in words)


@dataclass(frozen=True, slots=True)
class BlockRun:
    """What one block did in one kernel call.

    Attributes:
        block: Which.
        count: Times that it ran.
        load_bytes: Bytes loaded, all times together.
        store_bytes: Bytes stored.
        misses: For each core whose caches were modelled, all times together.
        predecessors: Times that it ran right behind the block of that number; -1 for the start of the call.
    """

    block: Block
    count: int
    load_bytes: int
    store_bytes: int
    misses: tuple[Misses, ...]
    predecessors: dict[int, int]

    def without_memory(self) -> BlockRun:
        """Gives the same without loads, stores and misses."""
        return replace(self, block=replace(self.block, loads=None, stores=None), load_bytes=0, store_bytes=0, misses=())

    def __add__(self, other: BlockRun | None) -> BlockRun:
        """Adds what the same block did another time."""
        if other is None:
            return self
        return BlockRun(
            self.block,
            self.count + other.count,
            self.load_bytes + other.load_bytes,
            self.store_bytes + other.store_bytes,
            tuple(mine + its for mine, its in zip(self.misses, other.misses, strict=True)),
            {each: self.predecessors.get(each, 0) + other.predecessors.get(each, 0)
             for each in (self.predecessors | other.predecessors)},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What one kernel call executed.

    Attributes:
        runs: Its blocks, by number.
    """

    runs: dict[int, BlockRun]

    @classmethod
    def of_totals(cls, *, instructions: int, loads: int, stores: int, load_bytes: int, store_bytes: int) -> CallCounts:
        """Gives the counts of a call whose blocks are not known.

        Args:
            instructions: How many it executed.
            loads: Those that loaded.
            stores: Those that stored.
            load_bytes: Bytes loaded.
            store_bytes: Bytes stored.

        Returns:
            Counts of one block without code.
        """
        return cls({0: BlockRun(Block(0, instructions, loads, stores, b""), 1, load_bytes, store_bytes, (), {})})

    @property
    def instructions(self) -> int:
        """Instructions."""
        return sum(run.count * run.block.instructions for run in self.runs.values())

    @property
    def loads(self) -> int | None:
        """Instructions that load, None where that is not counted."""
        return _total((run.count, run.block.loads) for run in self.runs.values())

    @property
    def stores(self) -> int | None:
        """Instructions that store, None where that is not counted."""
        return _total((run.count, run.block.stores) for run in self.runs.values())

    @property
    def load_bytes(self) -> int | None:
        """Bytes loaded, None where that is not counted."""
        return None if self.loads is None else sum(run.load_bytes for run in self.runs.values())

    @property
    def store_bytes(self) -> int | None:
        """Bytes stored, None where that is not counted."""
        return None if self.stores is None else sum(run.store_bytes for run in self.runs.values())

    def misses(self, core: int = 0) -> Misses:
        """Events of the caches.

        Args:
            core: Index of the geometry among those that were asked for.

        Returns:
            Their sum over the blocks.
        """
        return sum((run.misses[core] for run in self.runs.values()), Misses())


@dataclass(frozen=True, slots=True)
class Counts:
    """What one run of a Program executed.

    Attributes:
        calls: Of each kernel call, in execution order.
    """

    calls: tuple[CallCounts, ...]

    @property
    def instructions(self) -> int:
        """Instructions of all calls."""
        return sum(call.instructions for call in self.calls)

    @property
    def scalable(self) -> bool:
        """Whether an AArch64 core ran instructions of scalable vectors."""
        return any(run.block.scalable for call in self.calls for run in call.runs.values())

    @property
    def memory_seen(self) -> bool:
        """Whether all loads and stores were seen."""
        return all(call.loads is not None and call.stores is not None for call in self.calls)

    def without_memory(self) -> Counts:
        """Gives the same where not every load and store was seen: how many they are, and what they miss, is not known."""
        calls = ({number: run.without_memory() for number, run in call.runs.items()} for call in self.calls)
        return Counts(tuple(map(CallCounts, calls)))


def _total(counted: Iterable[tuple[int, int | None]]) -> int | None:
    """Sums products of which the second factor may not be known, and so the sum."""
    products = [None if each is None else count * each for count, each in counted]
    return None if None in products else sum(product or 0 for product in products)


def read_counts(text: str, calls: int) -> Counts:
    """Reads what the plugin has written.

    Args:
        text: The file, as `runtime/count.c` describes it.
        calls: Kernel calls of the Program.

    Returns:
        The counts; calls that never ran have none.
    """
    lines = [line.split() for line in text.splitlines()]
    blocks = {}
    for kind, *words in lines:
        if kind == "block":
            number, address, instructions, loads, stores = map(int, words[:5])
            blocks[number] = Block(address, instructions, loads, stores, bytes.fromhex(words[5]))
    runs: list[dict[int, BlockRun]] = [{} for _ in range(calls)]
    running: dict[int, BlockRun] = {}
    for kind, *words in lines:
        if kind == "block":
            continue
        first, *rest = map(int, words)
        if kind == "call":
            running = runs[first]
        elif kind == "run":
            count, load_bytes, store_bytes, *events = rest
            misses = tuple(Misses(*events[at : at + len(_EVENTS)]) for at in range(0, len(events), len(_EVENTS)))
            running[first] = BlockRun(blocks[first], count, load_bytes, store_bytes, misses, {}) + running.get(first)
        else:
            number, count = rest
            running[number].predecessors[first] = running[number].predecessors.get(first, 0) + count
    return Counts(tuple(map(CallCounts, runs)))
