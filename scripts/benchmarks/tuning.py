"""What tuning finds that the analytic model has missed, network by network.

    python scripts/benchmarks/tuning.py                              this machine, the networks of x86.py
    python scripts/benchmarks/tuning.py --target cortex-a55          by estimated cycles, four small networks
    python scripts/benchmarks/tuning.py mobilenet_v2 --seconds 300   one network, for longer

Each network is tuned from an empty database of its own. Where kernels were measured, the network as compiled without and with
that database is timed again behind it: each in its own process, in alternating blocks of runs, outputs compared before.

The JSON is written first, each network when it is done; the page beside it is made from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from x86_networks import NETWORKS, Network, check_outputs

import sepwise
from sepwise.console import say
from sepwise.files import new_file
from sepwise.lowering.device import host_processor
from sepwise.lowering.peers import Worker
from sepwise.lowering.rounds import speedup, time_in_rounds
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = dict[str, Any]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
JSON: Final = REPOSITORY / "docs/benchmarks/tuning.json"

ESTIMATED: Final = ("separable_block", "ds_cnn", "shufflenet_v2", "mobilenet_v2")
"""Networks for cores that are emulated."""


def rerun(network: Network, database: Path, rounds: int) -> float:
    """Times a network without and with a database's records, in turn.

    Args:
        network: What is run, on one thread of this machine.
        database: Holds the records.
        rounds: Of alternating blocks.

    Returns:
        The tuned network's time over the default's.

    Raises:
        CheckFailed: One of them computes something else than the network.
    """
    job = network.job("host", 1)
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder, ExitStack() as stack:
        tuned = Path(folder) / "tuned"
        sepwise.compile(network.path, shapes=network.shapes, database=database, output=tuned)
        workers = [stack.enter_context(Worker(each)) for each in (replace(job, artifact=tuned), job)]
        for worker in workers:
            check_outputs(worker, network.reference("host", 1))
        tuned_us, default_us = time_in_rounds(workers, rounds)
    return 1 / speedup(tuned_us, default_us)


def tune_network(name: str, target: str, seconds: float, trials: int | None, rounds: int, folder: Path) -> Row:
    """Tunes a network from nothing.

    Args:
        name: A zoo name, a trained network of `samples`, or an ONNX file.
        target: Name of a device.
        seconds: Given to `tune`.
        trials: Candidates at most; as many as there is time for where None.
        rounds: Of the timing behind it.
        folder: Where files are made.

    Returns:
        One row of the report.
    """
    say(f"{name}: tuning for {target}")
    network = Network(name, folder)
    database = folder / "databases" / target / network.path.stem
    shutil.rmtree(database, ignore_errors=True)
    database.parent.mkdir(parents=True, exist_ok=True)
    found = sepwise.tune(network.path, database, target=target, shapes=network.shapes, seconds=seconds, trials=trials)
    if found.ratio is None:
        raise InputError(f"{name}: nothing was tuned.")
    return {
        "network": network.path.stem,
        "target": target,
        "date": date.today().isoformat(),
        "machine": host_processor() or "unnamed processor",
        "method": found.method,
        "given_seconds": seconds,
        "seconds": found.seconds,
        "trials": found.trials,
        "wrong": len(found.wrong),
        "kernels": len(found.kernels),
        "tuned_kernels": sum(kernel.tuned for kernel in (*found.kernels, *found.structures)),
        "finished_kernels": sum(kernel.finished for kernel in found.kernels),
        f"default_{found.unit}": found.default_time,
        f"tuned_{found.unit}": found.tuned_time,
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "rerun": rerun(network, database, rounds) if found.runner == "native" else None,
    }


def make_table(rows: Sequence[Row]) -> str:
    """Writes the page of the results.

    Args:
        rows: As `tune_network` gives them.

    Returns:
        Markdown.
    """
    parts: list[str] = []
    for target in dict.fromkeys(row["target"] for row in rows):
        chosen = [row for row in rows if row["target"] == target]
        (method,) = {row["method"] for row in chosen}
        machines = sorted({(row["machine"], row["date"], f"{row['given_seconds']:.0f}") for row in chosen})
        where = "; ".join(f"{machine}, {day}, {given} s given to each" for machine, day, given in machines)
        lines = []
        for row in chosen:
            done = f"{row['finished_kernels']} of {row['kernels']}"
            between = "no play-off" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            ratio, again = f"{row['ratio']:.3f}", "-" if row["rerun"] is None else f"{row['rerun']:.3f}"
            cells = row["network"], f"{row['seconds']:.0f}", row["trials"], done, row["tuned_kernels"], ratio, between, again
            lines.append(f"| {' | '.join(map(str, cells))} |")
        played = [row for row in chosen if row["low"] is not None]
        means = [_mean([row["ratio"] for row in played]), "", _mean([row["rerun"] for row in played if row["rerun"] is not None])]
        parts.append(f"""## {target}, {method}

{where}.

| network | seconds | candidates | kernels done | changed | tuned / default | surely | run again |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
| geometric mean | | | | | {" | ".join(means)} |
""")
    return f"""# Tuned beside default

float32, one thread, one image. `python scripts/benchmarks/tuning.py`, which says how it is measured. The default is 1:
below, tuning has found what the [analytic model](../choice.md) missed. *kernels done* are those of which no candidate is
left that is worth a try: a run that ended before says little about what there is to find. *changed* are the kernels and
chains that are computed in another way now. *surely* is the interval that `tune` gives, *run again* the time of the whole
network with the records, over that without. Every number is in
[{JSON.name}]({JSON.name}).

{chr(10).join(parts)}"""


def _mean(ratios: Sequence[float]) -> str:
    return f"**{statistics.geometric_mean(ratios):.3f}**" if ratios else "-"


def main() -> None:
    """Tunes, adds to the JSON file, makes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="zoo names or ONNX files; those of the benchmark if left out")
    parser.add_argument("--target", default="host", help="a name out of `sepwise targets`")
    parser.add_argument("--seconds", type=float, default=50.0, help="given to each network")
    parser.add_argument("--trials", type=int, help="candidates of each network at most")
    parser.add_argument("--rounds", type=int, default=20, help="of alternating blocks, where networks are run again")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build/tuning", help="where files are made")
    parser.add_argument("-o", "--output", type=Path, default=JSON, help="the JSON file; its page goes beside it")
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["networks"] if options.output.exists() else []
    rows = {(row["target"], row["network"]): row for row in known}
    for name in options.networks or (NETWORKS if options.target == "host" else ESTIMATED):
        row = tune_network(name, options.target, options.seconds, options.trials, options.rounds, options.folder.absolute())
        rows[row["target"], row["network"]] = row
        with new_file(options.output) as partial:
            partial.write_text(json.dumps({"networks": list(rows.values())}, indent=1) + "\n")
        with new_file(options.output.with_suffix(".md")) as partial:
            partial.write_text(make_table(list(rows.values())))


if __name__ == "__main__":
    try:
        main()
    except SepwiseError as error:
        sys.exit(str(error))
