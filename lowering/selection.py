"""Choice of strategy, tile and fusion: whatever the analytic model predicts to take the fewest cycles.

Where tuning has left a record of a workload (see `tuning`), its strategy and tile are taken instead, and where it has left one of
a chain, that structure: how many of its stages each of its kernels computes. How tensors lie stays as predicted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sepwise.lowering.cost import stream_cycles
from sepwise.lowering.strategies import Refusal, strategies_for
from sepwise.lowering.strategies.packing import boundary_bytes
from sepwise.lowering.workload import ConvWorkload
from sepwise.passes.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.base import AnyStrategy, Tile
    from sepwise.lowering.workload import LinearWorkload

__all__ = ["Choice", "Pick", "Records", "Selector", "find_tile", "segment", "spell_cut", "structure_key", "tile_sizes"]

STRUCTURE = "structure"
"""What a record of a chain has for a strategy; its sizes are the stages of each kernel."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pick:
    """A strategy and a tile by name, as records hold them.

    Attributes:
        strategy: Its name.
        sizes: The tile's fields as integers, in order.
    """

    strategy: str
    sizes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """Gives both for reports: `pointwise pixels=7 oc_vectors=2`."""
        return " ".join([self.strategy, *(f"{name}={size}" for name, size in self.sizes)])


Records = Mapping[str, Pick]
"""What to compute workloads with, by their keys; and how chains are cut into kernels, by their `structure_key`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs a workload.

    Attributes:
        strategy: The implementation.
        tile: Its sizes.
        cycles: Predicted cycles of the strategy that is predicted best, with reading the inputs and writing the output.
        recorded: Whether a tuning record decided.
    """

    strategy: AnyStrategy
    tile: Tile
    cycles: float
    recorded: bool = False


class Selector:
    """Chooses for one device and number of threads; equal workloads are chosen for once.

    Args:
        device: The target.
        threads: Workers.
        records: What tuning has found.
    """

    def __init__(self, device: Device, threads: int, records: Records | None = None) -> None:
        """Starts with no choice made."""
        self._device = device
        self._threads = threads
        self._records = records or {}
        self._choices: dict[str, Choice | list[Refusal]] = {}

    @property
    def device(self) -> Device:
        """The target."""
        return self._device

    @property
    def threads(self) -> int:
        """Workers."""
        return self._threads

    def choose(self, workload: ConvWorkload | LinearWorkload) -> Choice | list[Refusal]:
        """Chooses strategy and tile.

        Args:
            workload: What to compute.

        Returns:
            The choice, or every strategy's refusal where none applies.
        """
        if workload.key not in self._choices:
            self._choices[workload.key] = self._search(workload)
        return self._choices[workload.key]

    def partition(self, workload: ConvWorkload) -> list[ConvWorkload]:
        """Cuts a chain as its record says, or else into the kernels that are predicted fastest.

        What lies between them may be plain, and so what the first of such kernels reads. In which layout it is in the end, layout
        assignment chooses.

        Args:
            workload: A chain as the graph passes grouped it.

        Returns:
            One workload a kernel, in execution order, between them packed tensors.

        Raises:
            UnsupportedError: No strategy computes some stage.
        """
        pick = self._records.get(structure_key(workload))
        if pick is not None:
            if pick in map(spell_cut, self.cuts(workload)):
                return _segments(workload, [stages for _, stages in pick.sizes])
            logger.warning("Record of %s: no strategies compute '%s' of it any more; not used.", structure_key(workload), pick)
        count, packed = len(workload.stages), workload.output_lanes
        # By the stages before and the lanes of what they write: cycles, and the kernels.
        best: list[dict[int, tuple[float, list[ConvWorkload]]]] = [{} for _ in range(count + 1)]
        best[0] = {workload.input_lanes: (0.0, [])}
        refusals: list[Refusal] = []
        for start in range(count):
            for lanes, (before, kernels) in best[start].items():
                for end in range(start + 1, count + 1):
                    part = segment(workload, start, end)
                    ways = [(lanes, packed)]
                    if end < count and (start == 0 or not lanes):
                        ways.append((0, 0))
                    for read, written in ways:
                        choice = self.choose(replace(part, input_lanes=read, output_lanes=written))
                        if isinstance(choice, list):
                            refusals += choice if written else []
                            continue
                        total, known = before + choice.cycles, best[end].get(written)
                        if known is None or total < known[0]:
                            best[end][written] = (total, [*kernels, part])
        chosen = best[count].get(packed)
        if chosen is None:
            reasons = "; ".join(dict.fromkeys(refusal.reason for refusal in refusals))
            raise UnsupportedError(f"Convolution {workload.key}: no strategy computes it ({reasons}).")
        return chosen[1]

    def cuts(self, workload: ConvWorkload) -> list[tuple[int, ...]]:
        """Lists the structures of a chain that strategies can compute.

        Args:
            workload: A chain as the graph passes grouped it.

        Returns:
            Of each the stages of its kernels, in execution order; the fewest kernels first.
        """
        count = len(workload.stages)
        borders = (inside for kernels in range(count) for inside in itertools.combinations(range(1, count), kernels))
        found = [tuple(end - start for start, end in itertools.pairwise((0, *inside, count))) for inside in borders]
        return [cut for cut in found if not any(isinstance(self.choose(part), list) for part in _segments(workload, cut))]

    def _search(self, workload: ConvWorkload | LinearWorkload) -> Choice | list[Refusal]:
        """Asks every strategy for its best tile."""
        device = self._device.holding(workload.dtypes.input)
        refusals: list[Refusal] = []
        best: Choice | None = None
        for strategy in strategies_for(workload):
            refusal = strategy.applies(workload, device)
            if refusal is not None:
                refusals.append(refusal)
                continue
            tile = strategy.tiles(workload, device, self._threads)[0]
            cycles = strategy.predicted_cycles(workload, device, self._threads, tile)
            cycles += _boundary_cycles(workload, self._device)
            if best is None or cycles < best.cycles:
                best = Choice(strategy, tile, cycles)
        if best is None:
            return refusals
        pick = self._records.get(workload.key)
        if pick is None:
            return best
        found = find_tile(workload, self._device, self._threads, pick)
        if found is None:
            logger.warning("Record of %s: no strategy has the tile '%s' for it any more; not used.", workload.key, pick)
            return best
        return Choice(*found, best.cycles, recorded=True)


def tile_sizes(tile: Tile) -> tuple[tuple[str, int], ...]:
    """Spells a tile for a record.

    Args:
        tile: Of any strategy: a dataclass of integers and truth values.

    Returns:
        Its fields by name.
    """
    return tuple((field.name, int(getattr(tile, field.name))) for field in fields(tile))  # type: ignore[arg-type]


def find_tile(
    workload: ConvWorkload | LinearWorkload, device: Device, threads: int, pick: Pick
) -> tuple[AnyStrategy, Any] | None:
    """Finds a strategy and its tile by name, among those that it declares for a workload.

    Args:
        workload: What to compute.
        device: The target.
        threads: Workers.
        pick: The names.

    Returns:
        Both, or None where there is no such strategy, it does not apply or declares no such tile.
    """
    held = device.holding(workload.dtypes.input)
    for strategy in strategies_for(workload):
        if strategy.name == pick.strategy and strategy.applies(workload, held) is None:
            for tile in strategy.tiles(workload, held, threads):
                if tile_sizes(tile) == pick.sizes:
                    return strategy, tile
    return None


def structure_key(workload: ConvWorkload) -> str:
    """Gives what the record of a chain's structure is kept by.

    Args:
        workload: The chain as the graph passes grouped it.

    Returns:
        Its key, with `chain` before it instead of `conv`: one kernel may compute the same workload.
    """
    return f"chain{workload.key.removeprefix('conv')}"


def spell_cut(cut: Sequence[int]) -> Pick:
    """Spells a structure for a record.

    Args:
        cut: Stages of each kernel, in execution order.

    Returns:
        `structure kernel0=1 kernel1=2`.
    """
    return Pick(STRUCTURE, tuple((f"kernel{place}", stages) for place, stages in enumerate(cut)))


def _segments(workload: ConvWorkload, cut: Sequence[int]) -> list[ConvWorkload]:
    """The kernels of a structure, one workload each."""
    borders = (0, *itertools.accumulate(cut))
    return [segment(workload, start, end) for start, end in itertools.pairwise(borders)]


def segment(workload: ConvWorkload, start: int, end: int) -> ConvWorkload:
    """Makes some stages of a chain a workload of their own.

    Args:
        workload: The chain.
        start: The first stage.
        end: The one behind the last.

    Returns:
        The part; residual and last activation go with the last stage.
    """
    last = end == len(workload.stages)
    return replace(
        workload,
        spatial=workload.spatials[start],
        stages=workload.stages[start:end],
        residual=workload.residual and last,
        post_activation=workload.post_activation if last else None,
        input_lanes=workload.input_lanes if start == 0 else workload.output_lanes,
    )


def _boundary_cycles(workload: ConvWorkload | LinearWorkload, device: Device) -> float:
    """Cycles to read the inputs from where their producer left them, and to write the output."""
    if not isinstance(workload, ConvWorkload):
        return 0.0
    read, written = boundary_bytes(workload)
    return stream_cycles(device, read + written + (written if workload.residual else 0))
