"""Which family of schedules wins where: chains of convolutions of some networks, computed in each way, on emulated ARM cores.

    python scripts/benchmarks/families.py [NETWORK ...] [--cores cortex-a53,...] [--output docs/benchmarks]
    python scripts/benchmarks/families.py --page                      only the page, from the results that are there

The ways are those of each strategy that applies to a stage, or to several stages in one kernel, by lane (`fmla v0.4s, v1.4s,
v2.s[1]`, inputs loaded as vectors) and broadcast (each input loaded into all lanes of a register, as packed schedules for x86
have it and as TVM ran them on ARM). Tiles are the first of each strategy's own order: nothing is tuned. All ways of a
chain are calls of one Program, whose instructions are counted and whose cycles are estimated; before that their outputs are
compared. `families.json` is written first, the page `families.md` is made from it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sepwise.console import say
from sepwise.files import resolve
from sepwise.lowering import device as devices
from sepwise.lowering import estimate
from sepwise.lowering.device import Device
from sepwise.lowering.importer import import_graph
from sepwise.lowering.runner import EmulatedRunner
from sepwise.lowering.selection import Selector, segment
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.strategies.separable import SeparableStrategy
from sepwise.lowering.trials import Step, build_trials
from sepwise.passes import canonicalize, fuse, load_model
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sepwise.lowering.workload import ConvWorkload

NETWORKS: Final = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large")
CORES: Final = ("cortex-a53", "cortex-a55", "cortex-a72", "neoverse-n1")
BY_LANE, BROADCAST = "by lane", "broadcast"
FUSED: Final = SeparableStrategy.name


class BroadcastDevice(Device):
    """A device whose multiply-add takes whole vectors alone, as the schedules for x86 suppose."""

    @property
    def multiplies_by_lane(self) -> bool:
        """Never."""
        return False

    @classmethod
    def of(cls, device: Device) -> BroadcastDevice:
        """The same device without multiply-add by lane."""
        return cls(**{field.name: getattr(device, field.name) for field in fields(device)})


class RecordingSelector(Selector):
    """Keeps the chains that it is asked to cut into kernels."""

    def __init__(self, device: Device) -> None:
        """Starts with none."""
        super().__init__(device, threads=1)
        self.chains: dict[str, ConvWorkload] = {}

    def partition(self, workload: ConvWorkload) -> list[ConvWorkload]:
        """Cuts as `Selector` does."""
        self.chains.setdefault(workload.key, workload)
        return super().partition(workload)


def find_chains(network: str, device: Device) -> list[ConvWorkload]:
    """Lists the different chains of a network, as its passes group them, and the stages of each by themselves.

    Args:
        network: A zoo name or an ONNX file.
        device: Gives the lanes of packed tensors.

    Returns:
        The chains in their order, stages behind them.
    """
    file = resolve(network)
    canonical = canonicalize(load_model(file.path, shapes=file.shapes))
    names = {node.name: node.outputs[0].name or "" for node in canonical.graph if node.name}
    selector = RecordingSelector(device)
    import_graph(fuse(canonical).model, device, selector, value_names=names)
    chains = list(selector.chains.values())
    return chains + [segment(chain, stage, stage + 1) for chain in chains for stage in range(len(chain.stages))]


def list_ways(chain: ConvWorkload, device: Device) -> Iterator[tuple[str, str, list[Step]]]:
    """Lists the ways to compute a chain: for each the strategies, the family, and its kernels."""
    stages = len(chain.stages)
    for family, seen in ((BY_LANE, device), (BROADCAST, BroadcastDevice.of(device))):
        for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, stages), count) for count in range(stages)):
            kernels = [
                [
                    Step(part, strategy, strategy.tiles(part, seen, 1)[0], seen)
                    for strategy in strategies_for(part)
                    if strategy.applies(part, seen) is None
                ]
                for part in (segment(chain, *ends) for ends in itertools.pairwise((0, *cuts, stages)))
            ]
            for steps in itertools.product(*kernels):
                yield ", ".join(step.strategy.name for step in steps), family, list(steps)


def chosen_way(chain: ConvWorkload, device: Device) -> str:
    """Names the strategies that the analytic model chooses."""
    selector = Selector(device, 1)
    names = []
    for part in selector.partition(chain):
        choice = selector.choose(part)
        assert not isinstance(choice, list), "a part of a partition has a strategy"
        names.append(choice.strategy.name)
    return ", ".join(names)


def measure(chain: ConvWorkload, device: Device) -> dict[str, Any]:
    """Counts all ways of a chain.

    Args:
        chain: What to compute.
        device: The core.

    Returns:
        The chain's entry of the JSON file.

    Raises:
        SepwiseError: Two ways compute different things.
    """
    ways = list(list_ways(chain, device))
    program = build_trials(chain, [steps for _, _, steps in ways], device)
    rng = np.random.default_rng(1)
    inputs = {value.name: rng.standard_normal(value.type.shape, dtype=np.float32) for value in program.inputs}
    geometry = estimate.cache_geometry(device)
    assert geometry is not None, "the caches of ARM cores are known"
    with EmulatedRunner(program, device) as runner:
        _compare(runner, inputs)
        counts = runner.count(inputs, caches=[geometry])
    cycles = iter(estimate.estimate_cycles(counts, device, device))
    instructions = iter(call.instructions for call in counts.calls)
    rows = [
        {
            "strategies": strategies,
            "family": family,
            "instructions": sum(next(instructions) for _ in steps),
            "estimated_cycles": sum(next(cycles) for _ in steps),
        }
        for strategies, family, steps in ways
    ]
    kind = {"kind": chain.kind, "workload": chain.key, "stages": len(chain.stages), "macs": chain.macs}
    return {"core": device.name, **kind, "chosen": chosen_way(chain, device), "ways": rows}


def _compare(runner: EmulatedRunner, inputs: dict[str, np.ndarray]) -> None:
    """Checks that all ways give the same, up to what sums in another order do."""
    program = runner.program
    tensors: dict[str, np.ndarray] = dict(inputs)
    expected: np.ndarray | None = None
    for index, call in enumerate(program.calls):
        tensors |= runner.run_kernel(index, [tensors[name] for name in call.inputs])
        if call.outputs != ("y",):
            continue
        found = tensors["y"]
        if expected is not None and not np.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise SepwiseError(f"{call.workload}: {call.strategy} computes something else on {program.device}.")
        expected = found


# The page ---------------------------------------------------------------------------------------------------------------


def best(chain: dict[str, Any], field: str, **wanted: Any) -> float:
    """The least of a field over the ways of a chain that are of a family or of a number of kernels; infinite where none is."""
    ways = [
        way
        for way in chain["ways"]
        if wanted.get("family", way["family"]) == way["family"]
        and wanted.get("kernels", _kernels(way)) == _kernels(way)
    ]
    return min((float(way[field]) for way in ways), default=math.inf)


def _kernels(way: dict[str, Any]) -> int:
    """How many kernels a way has."""
    return str(way["strategies"]).count(",") + 1


def compare_families(chains: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sets broadcast against by lane, for each core and kind of single stages."""
    rows = []
    single = [chain for chain in chains if chain["stages"] == 1]
    for core, kind in dict.fromkeys((chain["core"], chain["kind"]) for chain in single):
        ratios = {
            field: [
                best(chain, field, family=BROADCAST) / best(chain, field, family=BY_LANE)
                for chain in single
                if (chain["core"], chain["kind"]) == (core, kind)
            ]
            for field in ("instructions", "estimated_cycles")
        }
        cycles = ratios["estimated_cycles"]
        rows.append(
            {
                "core": core,
                "kind": kind,
                "chains": len(cycles),
                "instructions": _geomean(ratios["instructions"]),
                "cycles": _geomean(cycles),
                "least": min(cycles),
                "most": max(cycles),
                "broadcast_wins": sum(ratio < 1 for ratio in cycles),
            }
        )
    return rows


def compare_fusion(chains: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sets one kernel against one a stage, chain by chain, the largest gain first."""
    rows = []
    for chain in chains:
        fused = best(chain, "estimated_cycles", kernels=1)
        if chain["stages"] > 1 and math.isfinite(fused):
            apart = best(chain, "estimated_cycles", kernels=chain["stages"])
            rows.append({**chain, "fused_over_apart": fused / apart})
    return sorted(rows, key=lambda row: (CORES.index(row["core"]) if row["core"] in CORES else -1, row["fused_over_apart"]))


def judge_fusion(chains: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """By core, of chains that are built with both stages of a pair in one kernel: cycles over the best way apart."""
    found: dict[str, list[float]] = {}
    for chain in chains:
        if FUSED in chain["chosen"]:
            apart = min(
                way["estimated_cycles"] for way in chain["ways"] if FUSED not in way["strategies"] and way["family"] == BY_LANE
            )
            found.setdefault(chain["core"], []).append(chosen_cycles(chain) / apart)
    return found


def chosen_cycles(chain: dict[str, Any]) -> float:
    """The estimated cycles of the way that is built."""
    (way,) = (way for way in chain["ways"] if (way["strategies"], way["family"]) == (chain["chosen"], BY_LANE))
    return float(way["estimated_cycles"])


def judge_choice(chains: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """By core, how many times the cycles of the best way the chosen one takes: geometric mean and worst."""
    found: dict[str, list[float]] = {}
    for chain in chains:
        found.setdefault(chain["core"], []).append(chosen_cycles(chain) / best(chain, "estimated_cycles"))
    return {core: (_geomean(ratios), max(ratios)) for core, ratios in found.items()}


def _geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def write_page(report: dict[str, Any]) -> str:
    """Writes the page.

    Args:
        report: The content of families.json.

    Returns:
        Markdown.
    """
    chains = report["chains"]
    families = [
        f"| {row['core']} | {row['kind']} | {row['chains']} | {row['instructions']:.2f} | {row['cycles']:.2f} | "
        f"{row['least']:.2f} to {row['most']:.2f} | {row['broadcast_wins']} |"
        for row in compare_families(chains)
    ]
    fusion = compare_fusion(chains)
    fused, escaped = [], r"\|"
    for core in dict.fromkeys(row["core"] for row in fusion):
        of_core = [row for row in fusion if row["core"] == core]
        wins = [row for row in of_core if row["fused_over_apart"] < 1]
        fused.append(
            f"| {core} | {len(of_core)} | {len(wins)} | {sum(',' not in row['chosen'] for row in wins)} | "
            f"{_geomean([row['fused_over_apart'] for row in of_core]):.2f} | {of_core[0]['fused_over_apart']:.2f} | "
            f"`{of_core[0]['workload'].replace('|', escaped)}` |"
        )
    kept = [
        f"| {core} | {len(ratios)} | {sum(ratio < 1 for ratio in ratios)} | {_geomean(ratios):.3f} | {min(ratios):.2f} | "
        f"{max(ratios):.2f} |"
        for core, ratios in judge_fusion(chains).items()
    ]
    winners = Counter(
        (chain["core"], chain["kind"], min(chain["ways"], key=lambda way: way["estimated_cycles"])["strategies"])
        for chain in chains
    )
    strategies = [f"| {core} | {kind} | {name} | {count} |" for (core, kind, name), count in sorted(winners.items())]
    choice = [f"| {core} | {mean:.3f} | {worst:.2f} |" for core, (mean, worst) in judge_choice(chains).items()]
    return f"""# Which family of schedules wins where

Every chain of convolutions of {", ".join(report["networks"])}, as the passes group them, and every stage by itself, computed in
each way on emulated cores: {len(chains)} chains and stages, {sum(len(chain["ways"]) for chain in chains)} ways.
Instructions are counted, cycles estimated with LLVM {report["llvm"]} ([how good that is](estimate.md)); nothing is tuned, each
strategy takes its own first tile. All tensors are packed in both families, so that no way needs a conversion. {report["date"]},
`python scripts/benchmarks/families.py`; every way is in [families.json](families.json).

## By lane or broadcast

Broadcast over by lane, the best strategy of either: above 1 by lane wins. Broadcast loads each input into all lanes of a
register, as packed schedules for x86 do; by lane an input is a lane of a vector that was loaded whole. By lane kernels also ask
ahead for lines that the core would wait for, which the estimate's caches carry out; broadcast ones do not.

| core | kind | chains | instructions | estimated cycles | from, to | broadcast wins |
|---|---|---|---|---|---|---|
{chr(10).join(families)}

## One kernel or one a stage

All stages in one kernel over one kernel a stage, estimated cycles: below 1 the fused kernel wins.

| core | chains | fused wins | of these chosen by the model | geometric mean | best | where |
|---|---|---|---|---|---|---|
{chr(10).join(fused)}

Chains of any length that are built with a depthwise and a pointwise stage in one kernel, over the best way by lane that keeps the
two apart. The model adds what is written and read between kernels to their arithmetic, the estimate lets it run beside.

| core | chains | wins | geometric mean | best | worst |
|---|---|---|---|---|---|
{chr(10).join(kept)}

## The best way, by strategy

| core | kind | strategies | chains |
|---|---|---|---|
{chr(10).join(strategies)}

## What the analytic model chooses

Estimated cycles of the chosen way over those of the best one.

| core | geometric mean | worst |
|---|---|---|
{chr(10).join(choice)}
"""


def main() -> None:
    """Measures, then writes the report and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="zoo names or ONNX files")
    parser.add_argument("--cores", default=",".join(CORES), help="names of aarch64 devices")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of families.json and families.md")
    parser.add_argument("--page", action="store_true", help="measure nothing, make families.md of the results that are there")
    options = parser.parse_args()
    file = options.output / "families.json"
    if not options.page:
        chains = []
        for name in options.cores.split(","):
            device = devices.get(name)
            if not device.multiplies_by_lane or (reason := estimate.missing(device)):
                raise InputError(f"Target '{name}': {reason if device.multiplies_by_lane else 'has no multiply-add by lane.'}")
            found = {chain.key: chain for network in options.networks for chain in find_chains(network, device)}
            for number, chain in enumerate(found.values(), start=1):
                say(f"{name}: {number} of {len(found)}, {chain.key}")
                chains.append(measure(chain, device))
        report = {
            "date": datetime.now(UTC).date().isoformat(),
            "version": version("sepwise"),
            "llvm": estimate.llvm_version(),
            "networks": [Path(network).stem for network in options.networks],
            "chains": chains,
        }
        options.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "families.md").write_text(write_page(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
