"""Holds the estimate of cycles against time where there is both: kernels of x86-64-v3 on an x86 machine.

    python scripts/benchmarks/estimate.py [--output docs/benchmarks]
    python scripts/benchmarks/estimate.py --page                      only the page, from the results that are there

The schedules are what strategies list for a workload, the best of their own prediction and worse ones. Those of a workload
make one Program of as many calls; it runs natively, every call timed, and under qemu-x86_64, counted and estimated for this
machine's core. So both see the same code and the same caches before each call. `estimate.json` is written first, the page
`estimate.md` is made from it, and from `boards.json`, which `scripts/benchmarks/arm.sh --published` writes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sepwise.lowering import device as devices
from sepwise.lowering import estimate
from sepwise.lowering.core_model import core_model
from sepwise.lowering.runner import EmulatedRunner, NativeRunner
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.trials import Step, build_trials
from sepwise.lowering.workload import ConvWorkload, Stage
from sepwise.passes.errors import InputError, SepwiseError
from sepwise.passes.vocabulary import Activation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program

TARGET = "x86-64-v3"
SCHEDULES = 9
ROUNDS, REPEATS = 12, 20
RELU6 = Activation("clip", (0.0, 6.0))


@dataclass(frozen=True, slots=True)
class Measurement:
    """A schedule's time and estimate.

    Attributes:
        kind: Of the workload: `depthwise`, `pointwise` or `depthwise+pointwise`.
        workload: Its key.
        strategy: How it is computed.
        tile: In which sizes.
        macs: Multiply-accumulates.
        instructions: Counted.
        l1_misses: Modelled.
        l2_misses: Modelled.
        estimated_cycles: What is to be judged.
        minimum_us: Fastest run; what it is judged by, since other load only ever adds to it.
        median_us: Median of all runs.
        p90_us: 90th percentile.
        runs: How many.
    """

    kind: str
    workload: str
    strategy: str
    tile: str
    macs: int
    instructions: int
    l1_misses: int
    l2_misses: int
    estimated_cycles: float
    minimum_us: float
    median_us: float
    p90_us: float
    runs: int


def depthwise(channels: int, kernel: int, stride: int) -> Stage:
    """A depthwise stage that keeps the size, or divides it by its stride."""
    pad = kernel // 2
    return Stage(channels, channels, channels, (kernel,) * 2, (stride,) * 2, (pad,) * 2, (pad,) * 2, (1, 1), RELU6)


def pointwise(in_channels: int, out_channels: int) -> Stage:
    """A pointwise stage."""
    return Stage(in_channels, out_channels, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), RELU6)


LAYERS: list[tuple[int, tuple[Stage, ...]]] = [
    (112, (depthwise(32, 3, 1),)),
    (56, (depthwise(144, 3, 1),)),
    (56, (depthwise(144, 3, 2),)),
    (28, (depthwise(240, 5, 1),)),
    (14, (depthwise(576, 3, 1),)),
    (56, (pointwise(24, 144),)),
    (28, (pointwise(192, 32),)),
    (14, (pointwise(384, 96),)),
    (7, (pointwise(320, 640),)),
    (112, (depthwise(32, 3, 1), pointwise(32, 16))),
    (56, (depthwise(64, 3, 2), pointwise(64, 128))),
    (28, (depthwise(192, 3, 1), pointwise(192, 64))),
    (14, (depthwise(384, 3, 1), pointwise(384, 96))),
]
"""Side of the image and stages: layers as MobileNets have them."""


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Picks that many items, first and last among them, the others at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def build(workload: ConvWorkload, device: Device, count: int) -> Program:
    """Makes one Program whose calls compute the same workload, each by another schedule.

    Args:
        workload: What to compute.
        device: What for.
        count: Most schedules of a strategy.

    Returns:
        The Program; all calls read its input and write its output.
    """
    strategies = [strategy for strategy in strategies_for(workload) if strategy.applies(workload, device) is None]
    tiles = [(strategy, tile) for strategy in strategies for tile in evenly(strategy.tiles(workload, device, 1), count)]
    return build_trials(workload, [[Step(workload, strategy, tile, device)] for strategy, tile in tiles], device)


def measure(workload: ConvWorkload, device: Device, host: Device, count: int) -> list[Measurement]:
    """Times and estimates the schedules of a workload.

    Args:
        workload: What to compute.
        device: What for, with an emulator.
        host: This machine.
        count: Most schedules of a strategy.

    Returns:
        One measurement a schedule.
    """
    program = build(workload, device, count)
    (value,) = program.inputs
    inputs = {"x": np.random.default_rng(1).standard_normal(value.type.shape, dtype=np.float32)}
    times_us: list[list[float]] = [[] for _ in program.calls]
    with NativeRunner(program) as native:
        expected = native.run(inputs)["y"]
        for _ in range(ROUNDS):
            for runs_us, block in zip(times_us, native.time_kernels(REPEATS), strict=True):
                runs_us += block
    geometry = estimate.cache_geometry(host)
    assert geometry is not None
    with EmulatedRunner(program, device) as emulated:
        if not np.allclose(emulated.run(inputs)["y"], expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise SepwiseError(f"{workload.key}: the emulator computes something else, so its counts say nothing.")
        counts = emulated.count(inputs, caches=[geometry])
    cycles = estimate.estimate_cycles(counts, device, host)
    found = []
    for call, counted, estimated, runs_us in zip(program.calls, counts.calls, cycles, times_us, strict=True):
        runs = sorted(runs_us)
        found.append(
            Measurement(
                kind=workload.kind,
                workload=workload.key,
                strategy=call.strategy,
                tile=call.tile,
                macs=workload.macs,
                instructions=counted.instructions,
                l1_misses=counted.misses().l1,
                l2_misses=counted.misses().l2,
                estimated_cycles=estimated,
                minimum_us=runs[0],
                median_us=statistics.median(runs),
                p90_us=runs[math.ceil(0.9 * len(runs)) - 1],
                runs=len(runs),
            )
        )
    return found


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks values from 0, equal ones by the mean of their places."""
    array = np.asarray(values, np.float64)
    return np.array([np.sum(array < value) + (np.sum(array == value) - 1) / 2 for value in array])


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Rank correlation of two lists."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def judge(rows: Sequence[dict[str, Any]], predicted: str) -> dict[str, float]:
    """Says how well a column predicts time.

    Args:
        rows: Measurements as they are in the JSON.
        predicted: `estimated_cycles` or `instructions`.

    Returns:
        The rank correlation over all rows; the mean of those within the workloads; the standard deviation of log(time /
        predicted); and the median of nanoseconds over predicted.
    """
    def column(name: str, of: Sequence[dict[str, Any]]) -> list[float]:
        return [float(row[name]) for row in of]

    groups = [[row for row in rows if row["workload"] == key] for key in dict.fromkeys(row["workload"] for row in rows)]
    ratios = [1e3 * row["minimum_us"] / row[predicted] for row in rows]
    return {
        "schedules": len(rows),
        "spearman": spearman(column(predicted, rows), column("minimum_us", rows)),
        "spearman_within_workloads": statistics.fmean(
            spearman(column(predicted, group), column("minimum_us", group)) for group in groups
        ),
        "log_spread": statistics.stdev(map(math.log, ratios)),
        "median_ns": statistics.median(ratios),
    }


def judge_all(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judges the estimate, and beside it what instructions alone say, for each kind of workload and for all."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}
    return [
        {"kind": kind, "predicted_by": predicted, **judge(chosen, predicted)}
        for kind, chosen in {**kinds, "all": rows}.items()
        for predicted in ("estimated_cycles", "instructions")
    ]


def write_boards(boards: dict[str, Any]) -> str:
    """Writes the part of the page about boards.

    Args:
        boards: The content of boards.json.

    Returns:
        Markdown.
    """
    published = [row for row in boards["rows"] if row["clock_published"]]
    rank = spearman([row["estimated_ms"] for row in published], [row["published_ms"] for row in published])
    ratios = [row["estimated_ms"] / row["published_ms"] for row in published]
    table = [
        f"| {row['board']} | {row['core']} | {row['clock_hz'] / 1e9:.1f}"
        f"{'' if row['clock_published'] else ', not as published'} | {row['network']} | "
        f"{row['instructions'] / 1e6:.1f} | {row['estimated_cycles'] / 1e6:.1f} | {row['estimated_ms']:.0f} | "
        f"{row['published_ms']:.0f} | {row['estimated_ms'] / row['published_ms']:.2f} |"
        for row in boards["rows"]
    ]
    above = {(row["core"], row["network"]): row["published_ms"] * row["clock_hz"] for row in published}
    others = [
        f"| {row['board']} | {row['core']} | {row['clock_hz'] / 1e9:.1f} | {row['network']} | {row['published_ms']:.0f} | "
        f"{row['published_ms'] * row['clock_hz'] / 1e9:.1f} | "
        f"{row['published_ms'] * row['clock_hz'] / above[row['core'], row['network']]:.2f} |"
        for row in boards["also_published"]
    ]
    named = {row["board"]: row["source"] for row in (*boards["rows"], *boards["also_published"])}
    sources = "; ".join(f"{board}: {source}" for board, source in named.items())
    return f"""## Beside boards

ncnn {boards["ncnn"]}, float32, one thread, one image of 224 x 224, run whole under qemu and estimated with LLVM {boards["llvm"]},
beside the times that its project publishes. {boards["date"]}, `scripts/benchmarks/arm.sh --published`; every number is in
[boards.json](boards.json).

| board | core | clock, GHz | network | Minstructions | estimated Mcycles | estimated ms | published ms | estimated / published |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(table)}

At the published clocks the rank correlation over these {len(published)} is {rank:.3f}, and the ratios go from
{min(ratios):.2f} to {max(ratios):.2f}. No constant is fitted to the times. Sources: {sources}.

The same source has other times for these cores, at another clock or with another memory. The last column is their cycles over
those of the board above with that core: near 1 at another clock, it says that the clocks are as published.

| board | core | clock, GHz | network | published ms | published Mcycles | over those above |
|---|---|---|---|---|---|---|
{chr(10).join(others)}

The times are those of the ncnn of their day, the estimates those of the release named here. ncnn's kernels for the
Cortex-A53 ask for lines ahead of their loads; each such instruction is taken to hide one miss, however early it comes, so
that core may wait longer than is estimated. What the Cortex-A72 is short of is not known: the estimate hides whatever moves
behind the arithmetic of the same block, and has no TLB.
"""


def write_table(report: dict[str, Any], boards: dict[str, Any]) -> str:
    """Writes the page with the tables of a report and of what was estimated for boards."""
    best = next(row for row in report["summary"] if (row["kind"], row["predicted_by"]) == ("all", "estimated_cycles"))
    factor = math.exp(best["log_spread"])
    table = [
        f"| {row['kind']} | {row['schedules']} | {row['predicted_by'].replace('_', ' ')} | {row['spearman']:.3f} | "
        f"{row['spearman_within_workloads']:.3f} | {row['log_spread']:.3f} |"
        for row in report["summary"]
    ]
    return f"""# How good the estimate of cycles is

What `sepwise bench` calls `estimated_cycles` is an estimate: counted blocks, timed by llvm-mca, and modelled caches
(`lowering/estimate.py` says how). No constant in it is fitted to times. Here the same method is held against time where there
is hardware: {report["schedules"]} schedules of depthwise, pointwise and fused kernels, built for {report["target"]},
timed on one core ({report["machine"]}, {report["core"]}) and estimated for it from their run under qemu, with the model of
{report["core_model"]} in LLVM {report["llvm"]}. {report["date"]}, `python scripts/benchmarks/estimate.py`; every schedule is in
[estimate.json](estimate.json).

| kernels | schedules | predicted by | rank correlation | within a workload | spread of log(time / predicted) |
|---|---|---|---|---|---|
{chr(10).join(table)}

Rank correlation is Spearman's: over all schedules, and the mean of that within each workload. Time is the fastest
of {report["runs"]} runs. The spread is a standard deviation: two thirds of all schedules take between 1/{factor:.2f} and
{factor:.2f} times what the median ratio makes of their estimate. So it ranks kernels and schedules; it does not promise
milliseconds, and of ARM cores it knows no more than LLVM's models of them and the facts of `devices.toml` do.
No schedule here prefetches, as only kernels for AArch64 do: that a line is there as soon as it was asked for, as the estimate
has it, is held against nothing.

{write_boards(boards)}"""


def main() -> None:
    """Measures, then writes the report and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of estimate.json and estimate.md")
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="most schedules of a strategy for a workload")
    parser.add_argument("--page", action="store_true", help="measure nothing, make estimate.md of the results that are there")
    options = parser.parse_args()
    if options.page:
        write_page(options.output)
        return
    host = devices.get("host")
    device = replace(devices.get(TARGET), emulator="qemu-x86_64", emulator_cpu="max")
    if missing := devices.missing_flags(device):
        raise InputError(f"Target '{TARGET}': this machine lacks {', '.join(missing)}; there is no time to compare with.")
    if reason := estimate.missing(host):
        raise InputError(reason)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows: list[dict[str, Any]] = []
    for side, stages in LAYERS:
        workload = ConvWorkload(1, (side, side), stages, False, None, device.lanes, device.lanes)
        rows += map(asdict, measure(workload, device, host, options.schedules))
        print(f"{workload.key}: {len(rows)} schedules", file=sys.stderr)
    model = core_model(host)
    assert model is not None
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "version": version("sepwise"),
        "machine": devices.host_processor() or "unnamed processor",
        "core": host.cpu,
        "core_model": model.model,
        "llvm": estimate.llvm_version(),
        "target": TARGET,
        "threads": 1,
        "runs": ROUNDS * REPEATS,
        "schedules": len(rows),
        "summary": judge_all(rows),
        "measurements": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "estimate.json").write_text(json.dumps(report, indent=1) + "\n")
    write_page(options.output)


def write_page(folder: Path) -> None:
    """Makes estimate.md of the two JSON files beside it."""
    report, boards = (json.loads((folder / f"{name}.json").read_text()) for name in ("estimate", "boards"))
    (folder / "estimate.md").write_text(write_table(report, boards))


if __name__ == "__main__":
    try:
        main()
    except SepwiseError as error:
        sys.exit(str(error))
