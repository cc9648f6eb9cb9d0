"""Single kernels on this machine: what `x86.py` measures of the schedules and of the model that chooses among them.

**Ragged shapes**: convolutions whose channels fill no whole number of vectors, on images whose sides suit no tile, over those of
the nearest round neighbour: time per multiply-accumulate, each as the model computes it. Round are multiples of `ROUND_CHANNELS`
channels and of `ROUND_SIDE` pixels.

**The model's choice**: for every different convolution and product of a network the time of what the model picks over that of
the fastest candidate that strategies declare: of those that it predicts fastest, and of some that are drawn from all others.
The candidates are calls of one Program and run in turn; the fastest of them and the pick then run in turn again, each round in
another order, and only that second time counts, as the fastest of many is fast by luck too.

Kernels are built before anything is timed and kept for one state of sepwise's sources, without their weights, which are drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import statistics
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from estimate import RELU6, depthwise, pointwise
from x86_networks import checksum_sources

from sepwise.console import say
from sepwise.files import new_file
from sepwise.lowering.build import build_program
from sepwise.lowering.rounds import speedup
from sepwise.lowering.runner import NativeRunner, aligned_empty
from sepwise.lowering.selection import Pick, Selector, tile_sizes
from sepwise.lowering.trials import Step, build_trials
from sepwise.lowering.tuning.space import list_candidates
from sepwise.lowering.tuning.trial import MISHAPS
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from x86_networks import Network

    from sepwise.lowering.device import Device
    from sepwise.lowering.importer import ImportedGraph
    from sepwise.lowering.program import Program

    Row = dict[str, Any]

__all__ = [
    "KINDS",
    "list_workloads",
    "nearest_round",
    "prepare_choice",
    "prepare_ragged",
    "ragged_shapes",
    "time_choice",
    "time_ragged",
]

ROUND_CHANNELS: Final = 32
ROUND_SIDE: Final = 8
CHANNELS: Final = (24, 40, 58, 72, 116)
SIDES: Final = (7, 13, 15, 19, 27)

BLOCK_US: Final = 2000.0
"""What a block of runs of a kernel is to take."""

LEADERS: Final = 4
"""Candidates that are timed again beside the pick."""

DRAWN_SHARE: Final = 0.25
"""Of the candidates, those that are drawn from what is not predicted fastest."""

SCREENING_ROUNDS: Final = 8


def dense(channels: int, kernel: int, stride: int) -> Stage:
    """A dense stage that keeps the size, or divides it by its stride."""
    pad = kernel // 2
    return Stage(channels, channels, 1, (kernel,) * 2, (stride,) * 2, (pad,) * 2, (pad,) * 2, (1, 1), RELU6)


def dilated(channels: int) -> Stage:
    """A depthwise 3 x 3 stage of dilation 2 that keeps the size."""
    return replace(depthwise(channels, 3, 1), pads_begin=(2, 2), pads_end=(2, 2), dilations=(2, 2))


KINDS: Final[Mapping[str, Callable[[int], tuple[Stage, ...]]]] = {
    "pointwise": lambda channels: (pointwise(channels, channels),),
    "pointwise, 6 times as many out": lambda channels: (pointwise(channels, 6 * channels),),
    "pointwise, 6 times as many in": lambda channels: (pointwise(6 * channels, channels),),
    "depthwise 3x3": lambda channels: (depthwise(channels, 3, 1),),
    "depthwise 3x3, stride 2": lambda channels: (depthwise(channels, 3, 2),),
    "depthwise 5x5": lambda channels: (depthwise(channels, 5, 1),),
    "depthwise 5x5, stride 2": lambda channels: (depthwise(channels, 5, 2),),
    "depthwise 7x7": lambda channels: (depthwise(channels, 7, 1),),
    "depthwise 3x3, dilation 2": lambda channels: (dilated(channels),),
    "depthwise 3x3, multiplier 2": lambda channels: (replace(depthwise(channels, 3, 1), out_channels=2 * channels),),
    "pointwise, 2 groups": lambda channels: (replace(pointwise(channels, channels), groups=2),),
    "dense 3x3, 2 groups": lambda channels: (replace(dense(channels, 3, 1), groups=2),),
    "dense 3x3": lambda channels: (dense(channels, 3, 1),),
    "dense 3x3, stride 2": lambda channels: (dense(channels, 3, 2),),
    "depthwise 3x3 + pointwise": lambda channels: (depthwise(channels, 3, 1), pointwise(channels, channels)),
    "pointwise + depthwise 3x3 + pointwise, 6 times as many between": lambda channels: (
        pointwise(channels, 6 * channels),
        depthwise(6 * channels, 3, 1),
        pointwise(6 * channels, channels),
    ),
}
"""Chains of convolutions, by their names in the report."""


def nearest_round(size: int, step: int) -> int:
    """Gives the nearest multiple of a step, the larger one of two that are equally near."""
    return max(step, step * math.floor(size / step + 0.5))


def _kept(folder: Path, name: str, build: Callable[[], Program]) -> Program:
    """Builds a Program, unless one of this name was built by the same sources, and draws its constants.

    Args:
        folder: Where Programs are kept, without constants.
        name: Says what is computed and how.
        build: Builds it.

    Returns:
        The Program.
    """
    key = hashlib.sha256("\0".join([checksum_sources("sepwise.lowering", "sepwise.passes"), name]).encode()).hexdigest()[:24]
    path = folder / "kernels" / key
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        built = build()
        with new_file(path) as partial:
            partial.write_bytes(pickle.dumps((replace(built, constants=built.constants[:0].copy()), built.constants.nbytes)))
    program: Program
    program, nbytes = pickle.loads(path.read_bytes())
    constants = aligned_empty(nbytes)
    constants.view(np.float32)[:] = np.random.default_rng(0).standard_normal(nbytes // 4, dtype=np.float32)
    return replace(program, constants=constants)


def _open(stack: ExitStack, program: Program, threads: int) -> NativeRunner:
    """Loads a Program and places drawn inputs."""
    runner = stack.enter_context(NativeRunner(program, threads=threads))
    rng = np.random.default_rng(1)
    runner.place({value.name: rng.standard_normal(value.type.shape, dtype=np.float32) for value in program.inputs})
    return runner


# Ragged shapes ---------------------------------------------------------------------------------------------------------


def _build_chain(kind: str, channels: int, side: int, device: Device, folder: Path) -> tuple[Program, int]:
    """Builds a chain as the model cuts and computes it; gives its multiply-accumulates, too."""
    chain = ConvWorkload(1, (side, side), KINDS[kind](channels), False, None, device.lanes, device.lanes)

    def build() -> Program:
        selector = Selector(device, 1)
        steps = []
        for part in selector.partition(chain):
            choice = selector.choose(part)
            assert not isinstance(choice, list), "the chain was cut into what strategies compute"
            steps.append(Step(part, choice.strategy, choice.tile, device))
        return build_trials(chain, [steps], device)

    return _kept(folder, f"chosen {device.name} {chain.key}", build), chain.macs


def ragged_shapes() -> list[tuple[str, int, int]]:
    """Lists what is swept: kind, channels and side."""
    return list(itertools.product(KINDS, CHANNELS, SIDES))


def _neighbour(channels: int, side: int) -> tuple[int, int]:
    return nearest_round(channels, ROUND_CHANNELS), nearest_round(side, ROUND_SIDE)


def prepare_ragged(kind: str, channels: int, side: int, device: Device, folder: Path) -> None:
    """Builds what `time_ragged` times."""
    for shape in ((channels, side), _neighbour(channels, side)):
        _build_chain(kind, *shape, device, folder)


def time_ragged(kind: str, channels: int, side: int, device: Device, folder: Path, rounds: int) -> list[Row]:
    """Times a ragged shape beside its round neighbour, on one thread.

    Args:
        kind: Out of `KINDS`.
        channels: Of the shape.
        side: Of its image.
        device: This machine, or what it stands for.
        folder: Where kernels are kept.
        rounds: Of alternating blocks.

    Returns:
        One row of the report.
    """
    neighbour = _neighbour(channels, side)
    with ExitStack() as stack:
        built = [_build_chain(kind, *shape, device, folder) for shape in (neighbour, (channels, side))]
        runners = [_open(stack, program, 1) for program, _ in built]
        repeats = [max(3, round(BLOCK_US / statistics.median(runner.time(5)))) for runner in runners]
        times_us: list[list[list[float]]] = [[], []]
        for number in range(rounds):
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                times_us[place].append(runners[place].time(repeats[place]))
    macs_round, macs = (count for _, count in built)
    medians_us = [statistics.median(run for block in blocks for run in block) for blocks in times_us]
    return [
        {
            "kind": kind,
            "channels": channels,
            "side": side,
            "target": device.name,
            "round_channels": neighbour[0],
            "round_side": neighbour[1],
            "date": date.today().isoformat(),
            "macs": macs,
            "round_macs": macs_round,
            "median_us": medians_us[1],
            "round_median_us": medians_us[0],
            "ratio": speedup(*times_us) * macs_round / macs,
        }
    ]


# The model's choice ----------------------------------------------------------------------------------------------------


def list_workloads(network: Network, device: Device) -> list[ConvWorkload | LinearWorkload]:
    """Lists the different convolutions and products of a network as they are computed: cut into kernels, in their layouts."""
    kept = network.kept(f"workloads-{device.name}", checksum_sources("sepwise.lowering", "sepwise.passes"))
    if not kept.exists():
        workloads: dict[str, ConvWorkload | LinearWorkload] = {}

        def note(imported: ImportedGraph, *_: object) -> bytes:
            workloads.clear()
            for kernel in imported.graph.kernels:
                if isinstance(kernel.workload, ConvWorkload | LinearWorkload):
                    workloads.setdefault(kernel.workload.key, kernel.workload)
            return b""

        build_program(network.model, device, emit=note)
        with new_file(kept) as partial:
            partial.write_bytes(pickle.dumps(list(workloads.values())))
    found: list[ConvWorkload | LinearWorkload] = pickle.loads(kept.read_bytes())
    return found


def _candidates(workload: ConvWorkload | LinearWorkload, device: Device, most: int) -> tuple[list[Step], int, int]:
    """Lists what is timed: the pick, those predicted fastest, and drawn ones; how many are not drawn, and how many there are."""
    candidates = list_candidates(workload, device, 1)
    choice = Selector(device, 1).choose(workload)
    assert not isinstance(choice, list), "a network's kernels are computed by strategies"
    picked = Pick(choice.strategy.name, tile_sizes(choice.tile))
    (chosen,) = (candidate for candidate in candidates if candidate.pick == picked)
    others = [candidate for candidate in candidates if candidate is not chosen]
    first = most - 1 if len(others) < most else most - 1 - round(DRAWN_SHARE * most)
    behind = range(first, len(others))
    drawn = np.random.default_rng(len(others)).permutation(behind)[: most - 1 - first]
    tried = [chosen, *others[:first], *(others[place] for place in sorted(drawn))]
    held = device.holding(workload.dtypes.input)
    return [Step(workload, each.strategy, each.tile, held) for each in tried], 1 + min(first, len(others)), len(candidates)


def _build_candidates(workload: ConvWorkload | LinearWorkload, steps: Sequence[Step], device: Device, folder: Path) -> Program:
    names = [f"{step.strategy.name} {step.tile}" for step in steps]

    def build() -> Program:
        say(f"building {len(steps)} candidates of {workload.key}")
        try:
            return build_trials(workload, [[step] for step in steps], device)
        except MISHAPS:
            return build_trials(workload, [[step] for step in steps if _compiles(workload, step, device)], device)

    return _kept(folder, "\n".join(["candidates", device.name, workload.key, *names]), build)


def _compiles(workload: ConvWorkload | LinearWorkload, step: Step, device: Device) -> bool:
    try:
        build_trials(workload, [[step]], device)
    except MISHAPS:
        return False
    return True


def prepare_choice(workload: ConvWorkload | LinearWorkload, device: Device, folder: Path, most: int) -> None:
    """Builds the candidates of a workload; see `time_choice`."""
    steps, *_ = _candidates(workload, device, most)
    _build_candidates(workload, steps, device, folder)


def time_choice(
    workload: ConvWorkload | LinearWorkload, device: Device, folder: Path, most: int, rounds: int
) -> list[Row]:
    """Times the model's pick for a workload beside the other candidates, on one thread.

    Args:
        workload: What all compute.
        device: This machine, or what it stands for.
        folder: Where kernels are kept.
        most: Candidates that are timed.
        rounds: In which the fastest and the pick are timed again.

    Returns:
        One row of the report: `ratio` is the pick's time over the fastest's.
    """
    steps, predicted, known = _candidates(workload, device, most)
    program = _build_candidates(workload, steps, device, folder)
    names = [f"{call.strategy} {call.tile}" for call in program.calls]
    places = {f"{step.strategy.name} {step.tile}": place for place, step in enumerate(steps)}
    pick = next(place for place, name in enumerate(names) if places[name] == 0)
    with ExitStack() as stack:
        runner = _open(stack, program, 1)
        everything = range(len(program.calls))
        runner.time_calls(everything, 1)
        screened = [min(times_us) for times_us in runner.time_calls(everything, SCREENING_ROUNDS)]
        leaders = sorted(everything, key=screened.__getitem__)[:LEADERS]
        final = list(dict.fromkeys([pick, *leaders]))
        runner.time_calls(final, 1)
        times_us: dict[int, list[float]] = {call: [] for call in final}
        chance = np.random.default_rng(0)
        for _ in range(rounds):
            order = chance.permutation(final).tolist()
            for call, (run_us,) in zip(order, runner.time_calls(order, 1), strict=True):
                times_us[call].append(run_us)
    medians_us = {call: statistics.median(found) for call, found in times_us.items()}
    best = min(final, key=medians_us.__getitem__)
    return [
        {
            "workload": workload.key,
            "target": device.name,
            "kind": workload.kind,
            "date": date.today().isoformat(),
            "macs": workload.macs,
            "candidates": known,
            "timed": len(names),
            "drawn": sum(places[name] >= predicted for name in names),
            "pick": names[pick],
            "best": names[best],
            "best_drawn": places[names[best]] >= predicted,
            "pick_us": medians_us[pick],
            "best_us": medians_us[best],
            "ratio": medians_us[pick] / medians_us[best],
        }
    ]
