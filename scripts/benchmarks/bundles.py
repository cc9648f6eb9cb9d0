"""What bundles take in bytes and until their first inference, beside other runtimes on the same networks.

    python scripts/benchmarks/bundles.py                           the whole zoo, on this machine
    python scripts/benchmarks/bundles.py ds_cnn separable_block    some of it, put beside what is there

A bundle is linked into a small C program, which prepares its memory as the bundle's README advises. Every runtime runs in
processes of its own on one cpu, in turn in each round: it loads the network, runs it once, and then some times more. What counts
as the first inference is the time from the start of the program (execve) to its end; of the other runtimes, which are called
from Python, that of the interpreter, numpy and the input is left out. The files are in the page cache by then. Beside it stands
the time to read the bundle's program through, weights and all, with every page mapped anew. Outputs are set against the float64
oracle first, as arm.py does it.

Peers are packages (`pip install 'sepwise[peers]'`, or the Python of another environment with `--python`), their converters those
that arm.sh installs. One that is missing is named in the JSON, which is written first, each network when it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from arm import PreparedNetwork, convert, prepare_network

from sepwise.console import say
from sepwise.files import new_file
from sepwise.lowering.bundle import checksum_model, write_bundle
from sepwise.lowering.device import get as get_device
from sepwise.lowering.device import host_processor
from sepwise.lowering.peers import OURS
from sepwise.models import names
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sepwise.lowering.bundle import Bundle

REPOSITORY: Final = Path(__file__).resolve().parents[2]
JSON: Final = REPOSITORY / "docs/benchmarks/bundles.json"
GUEST: Final = Path(__file__).with_name("bundles_guest.py")
TOOLS: Final = REPOSITORY / "build/arm/converters/bin"
PEERS: Final = ("onnxruntime", "litert", "ncnn")
TITLES: Final = {OURS: "bundle", "onnxruntime": "ONNX Runtime", "litert": "LiteRT", "ncnn": "ncnn"}
SIZES: Final = ("code_bytes", "weight_bytes", "arena_bytes", "arena_lower_bound_bytes")

PROGRAM: Final = r"""
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "net.h"

#define HUGE_PAGE (2 << 20)
static _Alignas(HUGE_PAGE) unsigned char arena[NET_ARENA_BYTES];
@arrays@

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* As the bundle's README advises. */
static void prepare_memory(void) {
  if (NET_ARENA_BYTES >= HUGE_PAGE) madvise(arena, sizeof arena, MADV_HUGEPAGE);
  uintptr_t page = sysconf(_SC_PAGESIZE), weights = (uintptr_t)net_weights();
  madvise((void *)(weights / page * page), weights % page + NET_WEIGHT_BYTES, MADV_POPULATE_READ);
}

static void run(void) {
  const net_input input = {@inputs@};
  net_output output = {@outputs@};
  if (net_run(&input, &output, arena)) exit(1);
}

/* Reads a line of each 64 bytes of this program's file. */
static void read_file(const char *path) {
  struct stat facts;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &facts)) exit(2);
  long long begun = now();
  const unsigned char *bytes = mmap(NULL, facts.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  if (bytes == MAP_FAILED) exit(2);
  volatile unsigned char sink = 0;
  for (long long i = 0; i < facts.st_size; i += 64) sink ^= bytes[i];
  printf("{\"read_us\": %.3f}\n", (now() - begun) / 1e3);
}

int main(int argc, char **argv) {
  long long begun = now();
  if (argc == 2) return read_file(argv[1]), 0;
  if (argc == 4) { /* once more as a new program, which is told when it began */
    char started[24];
    snprintf(started, sizeof started, "%lld", now());
    return execv(argv[0], (char *[]){argv[0], started, argv[1], argv[2], argv[3], NULL});
  }
  if (argc != 5) return 2;
  prepare_memory();
  FILE *given = fopen(argv[2], "rb");
  if (!given || fread(in0, 1, sizeof in0, given) != sizeof in0) return 2;
  long long loaded = now(), last = loaded;
  printf("{\"version\": \"\", \"start_us\": %.3f, \"load_us\": %.3f", (begun - atoll(argv[1])) / 1e3, (loaded - begun) / 1e3);
  for (int i = 0, runs = atoi(argv[4]); i <= runs; ++i) {
    run();
    long long done = now();
    const char *head = i == 0 ? ", \"first_us\": " : i == 1 ? ", \"warm_us\": [" : ", ";
    printf("%s%.3f", head, (done - last) / 1e3);
    last = now();
  }
  puts("]}");
  FILE *results = fopen(argv[3], "wb");
  return !results || fwrite(out0, 1, sizeof out0, results) != sizeof out0 || fclose(results);
}
"""
"""Times a bundle: argv is [time of its start in ns,] input, output, inferences behind the first; or a file to read through."""


@dataclass(frozen=True, slots=True)
class Times:
    """What one runtime takes for one network; medians over the processes, in microseconds.

    Attributes:
        runtime: Its name.
        version: Its version.
        first_us: From the start of the program to the end of the first inference, without an interpreter's own start.
        load_us: Of this, loading the runtime and the network.
        warm_us: The median of later inferences.
        minimum_us: The fastest of them.
        worst_ratio: Its error over what float32 arithmetic explains.
        failure: Why it has no times, in one line.
    """

    runtime: str
    version: str = ""
    first_us: float | None = None
    load_us: float | None = None
    warm_us: float | None = None
    minimum_us: float | None = None
    worst_ratio: float | None = None
    failure: str = ""


def build_program(made: Bundle, folder: Path) -> Path:
    """Links a bundle into the program that times it.

    Args:
        made: Named `net`, of one input.
        folder: Where to.

    Returns:
        The program.

    Raises:
        SepwiseError: It does not build.
    """
    sides = {"in": made.manifest["inputs"], "out": made.manifest["outputs"]}
    arrays = [
        f"static NET_ALIGNED unsigned char {side}{index}[{each['bytes']}];"
        for side, tensors in sides.items()
        for index, each in enumerate(tensors)
    ]
    pointers = {side: ", ".join(f"(void *){side}{index}" for index in range(len(tensors))) for side, tensors in sides.items()}
    text = PROGRAM.replace("@arrays@", "\n".join(arrays))
    text = text.replace("@inputs@", pointers["in"]).replace("@outputs@", pointers["out"])
    source, program = folder / "first.c", folder / "first"
    source.write_text(text)
    compiler = [found] if (found := shutil.which("cc")) else [sys.executable, "-m", "ziglang", "cc"]
    words = ["-std=gnu11", "-O2", "-I", made.folder, source, made.folder / made.manifest["library"], "-o", program]
    done = subprocess.run([*compiler, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SepwiseError(f"{source}: does not build: {done.stderr.strip()}")
    return program


def run_once(command: Sequence[str | Path]) -> dict[str, Any]:
    """Runs a process that prints one JSON object last.

    Args:
        command: Its words.

    Returns:
        The object.

    Raises:
        SepwiseError: It does not end as it should.
    """
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SepwiseError(f"did not run: {lines[-1] if lines else f'status {done.returncode}'}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def prepare_peer(runtime: str, network: PreparedNetwork, python: Path, tools: Path, runs: int) -> list[str | Path]:
    """Converts a network for a peer.

    Args:
        runtime: A name out of `PEERS`.
        network: What it computes.
        python: Has the runtime.
        tools: The folder of the converters' programs.
        runs: Inferences behind the first.

    Returns:
        The command that times it.

    Raises:
        SepwiseError: It cannot be converted.
    """
    try:
        model = convert(runtime, network.source, tools)
    except OSError as error:
        raise SepwiseError(f"conversion failed: {error.filename}: {error.strerror}") from error
    work = network.source.parent
    return [python, GUEST, runtime, model, work / "x.npy", work / f"{runtime}.npy", str(runs)]


def measure(commands: Mapping[str, list[str | Path]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs processes in turn, each once a round, on one cpu.

    Args:
        commands: By name.
        rounds: How many; one more comes before them, for the page cache.

    Returns:
        What each printed in each round.
    """
    allowed = os.sched_getaffinity(0)
    printed: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    os.sched_setaffinity(0, {max(allowed)})
    try:
        for index in range(rounds + 1):
            for name, command in commands.items():
                found = run_once(command)
                if index:
                    printed[name].append(found)
    finally:
        os.sched_setaffinity(0, allowed)
    return printed


def summarise(runtime: str, printed: Sequence[dict[str, Any]], worst_ratio: float | None) -> Times:
    """Makes a runtime's times of what its processes printed.

    Args:
        runtime: Its name.
        printed: One object a process.
        worst_ratio: Its error over its bound.

    Returns:
        The medians.
    """
    first = [each["load_us"] + each["first_us"] + each.get("start_us", 0) for each in printed]
    warm = [us for each in printed for us in each["warm_us"]]
    return Times(
        runtime,
        version("sepwise") if runtime == OURS else str(printed[0]["version"]),
        first_us=statistics.median(first),
        load_us=statistics.median(each["load_us"] for each in printed),
        warm_us=statistics.median(warm),
        minimum_us=min(warm),
        worst_ratio=worst_ratio,
    )


def measure_network(name: str, folder: Path, python: Path, tools: Path, rounds: int, runs: int) -> dict[str, Any]:
    """Bundles a network, and times it beside the peers that can run it.

    Args:
        name: A zoo name or an ONNX file, of one input.
        folder: Where files are made.
        python: Has the peers' packages.
        tools: Has their converters.
        rounds: Processes of each runtime.
        runs: Inferences of each behind the first.

    Returns:
        The network's entry of the JSON file.

    Raises:
        SepwiseError: The bundle does not build, or computes something else.
    """
    say(f"{name}: bundle")
    host = get_device("host")
    network = prepare_network(name, host, folder)
    work = network.source.parent
    described = {"name": network.path.stem, "file": network.path.name, "sha256": checksum_model(network.path), "float16": False}
    made = write_bundle(network.program, host, work / "bundle", name="net", model=described)
    program = build_program(made, work)
    (work / "x.bin").write_bytes(network.data.astype(np.float32).tobytes())
    timed: dict[str, list[str | Path]] = {OURS: [program, work / "x.bin", work / "out.bin", str(runs)]}
    ratios: dict[str, float | None] = {}
    failed = []
    run_once(timed[OURS])
    if not (judged := network.check(np.fromfile(work / "out.bin", np.float32))).passed:
        raise SepwiseError(f"{name}: its bundle computed wrongly ({judged.reason}), so nothing is timed.")
    ratios[OURS] = judged.worst_ratio
    for runtime in PEERS:
        say(f"{name}: {runtime}")
        try:
            command = prepare_peer(runtime, network, python, tools, runs)
            run_once(command)
            if not (judged := network.check(np.load(work / f"{runtime}.npy"))).passed:
                raise SepwiseError(f"computed wrongly: {judged.reason}")  # noqa: TRY301 - answered as any other failure below
        except SepwiseError as error:
            failed.append(Times(runtime, failure=" ".join(str(error).split())))
            continue
        timed[runtime], ratios[runtime] = command, judged.worst_ratio
    printed = measure({**timed, "read": [program, program]}, rounds)
    times = [summarise(runtime, printed[runtime], ratios[runtime]) for runtime in timed]
    return {
        "network": network.path.stem,
        "input": list(network.data.shape),
        "date": date.today().isoformat(),
        "machine": host_processor() or "unnamed processor",
        "target": f"{host.name}, {host.cpu}",
        "rounds": rounds,
        "runs": runs,
        **{size: made.manifest[size] for size in SIZES},
        "read_us": statistics.median(each["read_us"] for each in printed["read"]),
        "runtimes": [asdict(each) for each in (*times, *failed)],
    }


def make_table(results: dict[str, Any]) -> str:
    """Writes the page of the results.

    Args:
        results: The content of the JSON file.

    Returns:
        Markdown.
    """
    networks = results["networks"]

    def cell(times: dict[str, Any], column: str) -> str:
        return "-" if times.get(column) is None else f"{times[column] / 1e3:.2f}"

    sizes, rows, notes = [], [], []
    for each in networks:
        found = {times["runtime"]: times for times in each["runtimes"]}
        bound = each["arena_lower_bound_bytes"]
        over = f"{each['arena_bytes'] / bound:.2f}" if bound else "-"
        sizes.append(f"| {each['network']} | {' | '.join(f'{each[size]:,}' for size in SIZES)} | {over} |")
        ours = found[OURS]
        waited = (ours["first_us"] - each["read_us"]) / ours["warm_us"]
        cells = [cell(found.get(runtime, {}), column) for runtime in TITLES for column in ("first_us", "warm_us")]
        rows.append(f"| {each['network']} | {each['read_us'] / 1e3:.2f} | {waited:.2f} | {' | '.join(cells)} |")
        failures = {TITLES[name]: times["failure"] for name, times in found.items() if times["failure"]}
        notes += [f"- {each['network']}, {title}: {failure}." for title, failure in failures.items()]
    heads = [f"{title}, {column}" for title in TITLES.values() for column in ("first", "warm")]
    settings = sorted({(each["machine"], each["target"], each["date"], each["rounds"], each["runs"]) for each in networks})
    measured = "; ".join(
        f"{machine} (target {target}), {day}, {rounds} processes of {1 + runs} inferences each"
        for machine, target, day, rounds, runs in settings
    )
    left_out = "\n\nNot timed:\n\n" + "\n".join(notes) if notes else ""
    return f"""# Bundles beside other runtimes

float32, one thread, one image. `python scripts/benchmarks/bundles.py`, which says how it is measured. {measured}.
Every number is in [{JSON.name}]({JSON.name}).

## Sizes, in bytes

| network | code | weights | arena | lower bound | arena / bound |
|---|---|---|---|---|---|
{chr(10).join(sizes)}

## Times, in milliseconds

The first inference counts from the start of the program, that of an interpreter left out; the warm one is the median of
later ones. Reading is that of the bundle's program, whose weights are inside; the column behind it is what the first
inference takes without it, over a warm one.

| network | reading | (first - reading) / warm | {" | ".join(heads)} |
|{"---|" * (3 + len(heads))}
{chr(10).join(rows)}{left_out}
"""


def main() -> None:
    """Measures, adds to the JSON file, makes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="zoo names or ONNX files of one input; the zoo if left out")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build/bundles", help="where files are made")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python that has the peers")
    parser.add_argument("--tools", type=Path, default=TOOLS, help="the folder of their converters' programs")
    parser.add_argument("--rounds", type=int, default=9, help="processes of each runtime")
    parser.add_argument("--runs", type=int, default=20, help="inferences of each process behind its first")
    parser.add_argument("-o", "--output", type=Path, default=JSON, help="the JSON file; its page goes beside it")
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["networks"] if options.output.exists() else []
    networks = {network["network"]: network for network in known}
    for name in options.networks or names():
        folder = options.folder.absolute()
        found = measure_network(name, folder, options.python, options.tools, options.rounds, options.runs)
        networks[found["network"]] = found
        results = {"networks": list(networks.values())}
        with new_file(options.output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")
        with new_file(options.output.with_suffix(".md")) as partial:
            partial.write_text(make_table(results))


if __name__ == "__main__":
    try:
        main()
    except SepwiseError as error:
        sys.exit(str(error))
