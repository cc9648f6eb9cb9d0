"""Whole networks on this machine, beside other runtimes: what `x86.py` measures of them.

Before anything is timed a network is prepared, once for each state of its file and of sepwise's sources: it is compiled for
each target and number of threads, and the float64 oracle computes what its outputs are to be and how far float32 arithmetic moves
them. Each runtime, in a process of its own, is held against that whenever it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import date
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from sepwise.console import say
from sepwise.files import new_file, resolve
from sepwise.lowering.artifact import load
from sepwise.lowering.build import compile
from sepwise.lowering.peers import OURS, YARDSTICKS, Job, Worker
from sepwise.lowering.rounds import BLOCK_SECONDS, speedup, summarise, time_in_rounds
from sepwise.lowering.strategies import transformed_nodes
from sepwise.lowering.verify import transformed_values
from sepwise.passes import canonicalize, load_model
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import CheckFailed, SepwiseError
from sepwise.passes.saving import save_model
from sepwise.samples import DETECTOR, RECOGNISER, fetch_networks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx_ir as ir

    from sepwise.lowering.program import Program

    Row = dict[str, Any]
    Reference = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]

__all__ = [
    "IMPORTS",
    "LIMITED",
    "NETWORKS",
    "TARGETS",
    "Network",
    "check_outputs",
    "checksum_sources",
    "measure_memory",
    "time_compilation",
    "time_imports",
    "time_peak",
    "time_peers",
]

NETWORKS: Final[Mapping[str, tuple[int, ...] | None]] = {
    "mobilenet_v1": None,
    "mobilenet_v2": None,
    "mobilenet_v3_large": None,
    "mobilenet_v3_small": None,
    "efficientnet_lite0": None,
    "mnasnet": None,
    "shufflenet_v2": None,
    "xception": (1, 3, 299, 299),
    "yolov5n_dw": (1, 3, 320, 320),
    "ds_cnn": None,
    DETECTOR: (1, 3, 640, 640),
    RECOGNISER: (1, 3, 48, 320),
}
"""Shapes of the inputs; the zoo's own where None."""

TARGETS: Final = ("host", "x86-64-v3")

LIMITED: Final[Mapping[str, tuple[str, str, Mapping[str, str]]]] = {
    "openvino-avx2": ("openvino", "x86-64-v3", {"ONEDNN_MAX_CPU_ISA": "AVX2"})
}
"""Peers that an option of theirs keeps to the units of a target, with which alone they are compared: the peer, the target, the
option. Of OpenVINO it reaches what oneDNN computes, convolutions and products, and not all of the rest."""

MEMORY_RUNS: Final = 3
IMPORT_RUNS: Final = 9
COLD_BLOCK_SECONDS: Final = 0.02


@cache
def checksum_sources(*packages: str) -> str:
    """Identifies the state of the sources of packages of ours."""
    digest = hashlib.sha256()
    for package in packages:
        (folder,) = import_module(package).__path__
        for source in sorted(Path(folder).rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                digest.update(source.read_bytes())
    return digest.hexdigest()


class Network:
    """A network of the benchmark, with what was prepared of it in a folder.

    Attributes:
        name: A zoo name, a trained network of `samples`, or an ONNX file.
        path: Its file.
        shapes: Of the inputs that the file leaves open.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Finds the file.

        Args:
            name: As above.
            folder: Where files are made and kept.
        """
        self.name = name
        shape = NETWORKS.get(name)
        if name in (DETECTOR, RECOGNISER):
            assert shape is not None
            self.path = fetch_networks(folder / "trained")[name]
            self.shapes: Mapping[str, Sequence[int]] = {"x": shape}
        else:
            found = resolve(name, shape)
            self.path, self.shapes = found.path, found.shapes or {}
        self._folder = folder / Path(name).stem
        self._folder.mkdir(parents=True, exist_ok=True)
        self._programs: dict[tuple[str, int], Program] = {}
        self._references: dict[tuple[str, int], Reference] = {}
        self._key = hashlib.sha256(self.path.read_bytes() + repr(sorted(self.shapes.items())).encode()).hexdigest()

    @cached_property
    def model(self) -> ir.Model:
        """The network as it came in."""
        return load_model(self.path, shapes=self.shapes)

    @cached_property
    def canonical(self) -> ir.Model:
        """The same, canonicalised."""
        return canonicalize(self.model)

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What it runs on."""
        return sample_inputs(self.model, seed=0)

    def kept(self, name: str, *state: object) -> Path:
        """Names a file or folder that is kept for one state of the network and of what it is made by.

        Args:
            name: What it is.
            *state: What it depends on beside the network.

        Returns:
            Its path; there may be nothing yet.
        """
        key = hashlib.sha256("\0".join([self._key, *map(str, state)]).encode()).hexdigest()[:16]
        return self._folder / f"{name}-{key}"

    def artifact(self, target: str, threads: int) -> Path:
        """Compiles the network, unless that was done before.

        Args:
            target: Name of a device.
            threads: Workers.

        Returns:
            The artifact's folder.
        """
        sources = checksum_sources("sepwise.lowering", "sepwise.passes")
        folder = self.kept(f"{target}-{threads}", sources, target, threads)
        if not folder.exists():
            say(f"{self.name}: compiling for {target}, {threads} thread(s)")
            compile(self.path, target=target, shapes=self.shapes, threads=threads, output=folder)
        return folder

    def program(self, target: str, threads: int) -> Program:
        """Gives what `artifact` holds."""
        if (target, threads) not in self._programs:
            self._programs[target, threads] = load(self.artifact(target, threads)).program
        return self._programs[target, threads]

    def job(self, target: str, threads: int) -> Job:
        """Says what a worker loads.

        Args:
            target: What ours is compiled for.
            threads: Of every runtime.

        Returns:
            The job of ours.
        """
        simplified = self.kept("simplified", checksum_sources("sepwise.passes")).with_suffix(".onnx")
        if not simplified.exists():
            with new_file(simplified) as partial:
                save_model(self.canonical, partial)
        outputs = tuple(output.name or "" for output in self.model.graph.outputs)
        return Job(OURS, self.path.absolute(), simplified, self.artifact(target, threads), self.inputs, outputs, threads)

    def reference(self, target: str, threads: int) -> Reference:
        """Computes the outputs, and how far float32 arithmetic moves them, unless that was done before.

        Args:
            target: What ours is compiled for: it says which convolutions are computed by transformed tiles.
            threads: Likewise.

        Returns:
            Both by name; see `execution_sigma`.
        """
        if (target, threads) not in self._references:
            nodes = transformed_nodes(self.program(target, threads).calls)
            self._references[target, threads] = self._compute(transformed_values(nodes, self.canonical) if nodes else {})
        return self._references[target, threads]

    def _compute(self, winograd: Mapping[str, int]) -> Reference:
        """Computes a reference with convolutions by transformed tiles, or reads what was computed before."""
        kept = self.kept("reference", checksum_sources("sepwise.passes.equivalence"), sorted(winograd.items()))
        if not kept.exists():
            say(f"{self.name}: computing its outputs in float64")
            oracle = Oracle(self.model)
            made = oracle.run(self.inputs), execution_sigma(oracle, self.inputs, winograd=winograd)
            with new_file(kept) as partial:
                partial.write_bytes(pickle.dumps(made))
        found: Reference = pickle.loads(kept.read_bytes())
        return found

    def prepare(self, targets: Sequence[str], threads: Sequence[int]) -> None:
        """Compiles and computes all that measurements of it take."""
        for target in targets:
            for count in threads:
                self.job(target, count)
                self.reference(target, count)


class _Cold:
    """A worker whose runs each find cold caches."""

    def __init__(self, worker: Worker) -> None:
        self.name, self.version, self.time = worker.name, worker.version, worker.time_cold


def check_outputs(worker: Worker, reference: Reference) -> None:
    """Holds a runtime's outputs against the oracle's.

    Raises:
        CheckFailed: It computes something else.
    """
    check = compare_execution(worker.run(), *reference)
    if not check.passed:
        raise CheckFailed(f"Runtime '{worker.name}': its outputs are wrong ({check.reason}).")


def _open_peer(stack: ExitStack, peer: str, job: Job) -> Worker:
    runtime, _, environment = LIMITED.get(peer, (peer, "", {}))
    return stack.enter_context(Worker(replace(job, runtime=runtime), environment=environment))


def time_peers(
    network: Network, threads: int, targets: Sequence[str], peers: Sequence[str], rounds: int, *, cold: bool = False
) -> list[Row]:
    """Times ours, built for each target, and peers beside each other.

    Args:
        network: What all compute.
        threads: Of each.
        targets: What ours is built for.
        peers: Names out of `PEERS` and `LIMITED`.
        rounds: Of alternating blocks.
        cold: Whether each run finds cold caches.

    Returns:
        A row of the report for each peer; one that cannot be timed has its reason in it.

    Raises:
        CheckFailed: Ours computes something else than the network.
    """
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        workers: list[Worker] = []
        for target in targets:
            workers.append(stack.enter_context(Worker(network.job(target, threads))))
            check_outputs(workers[-1], network.reference(target, threads))
        for peer in peers:
            try:
                worker = _open_peer(stack, peer, network.job(targets[0], threads))
                check_outputs(worker, network.reference(targets[0], threads))
            except SepwiseError as error:
                failures[peer] = " ".join(str(error).split())
                continue
            workers.append(worker)
        timed = list(map(_Cold, workers)) if cold else workers
        times_us = time_in_rounds(timed, rounds, block_seconds=COLD_BLOCK_SECONDS if cold else BLOCK_SECONDS)
    summaries = list(map(summarise, timed, times_us))
    ours = dict(zip(targets, zip(summaries, times_us, strict=False), strict=False))
    measured = [peer for peer in peers if peer not in failures]
    rows = []
    common: Row = {"network": network.name, "threads": threads, "date": date.today().isoformat(), "rounds": rounds}
    (shape, *_) = (list(array.shape) for array in network.inputs.values())
    common |= {"input": shape, "macs": network.program(targets[0], threads).macs}
    for peer, summary, peer_us in zip(measured, summaries[len(targets) :], times_us[len(targets) :], strict=True):
        beside = {
            target: {
                **asdict(mine),
                "speedup": speedup(mine_us, peer_us),
                "minimum_speedup": summary.minimum_us / mine.minimum_us,
            }
            for target, (mine, mine_us) in ours.items()
            if peer not in LIMITED or target == LIMITED[peer][1]
        }
        rows.append({**common, **asdict(summary), "peer": peer, "ours": beside, "failure": ""})
    return rows + [{**common, "peer": peer, "ours": {}, "failure": reason} for peer, reason in failures.items()]


def time_peak(network: Network, threads: int, rounds: int) -> list[Row]:
    """Times ours beside loops of multiply-adds and the product of two matrices.

    Args:
        network: What ours computes.
        threads: Of each.
        rounds: Of alternating blocks.

    Returns:
        One row of the report: rates, and what ours is of each, by the medians over rounds of the ratios within the round.
    """
    program = network.program("host", threads)
    with ExitStack() as stack:
        job = network.job("host", threads)
        # Whatever this shell tells numpy's library, a yardstick is the best that it can do.
        unset = dict.fromkeys(name for name in os.environ if name.startswith("OPENBLAS_"))
        jobs = [replace(job, runtime=name) for name in (OURS, *YARDSTICKS)]
        workers = [stack.enter_context(Worker(each, environment=unset)) for each in jobs]
        check_outputs(workers[0], network.reference("host", threads))
        ours_us, *others_us = time_in_rounds(workers, rounds)
    row: Row = {"network": network.name, "threads": threads, "date": date.today().isoformat(), "rounds": rounds}
    row |= {"macs": program.macs, "ours": asdict(summarise(workers[0], ours_us))}
    for worker, (name, yardstick), found_us in zip(workers[1:], YARDSTICKS.items(), others_us, strict=True):
        row[name] = asdict(summarise(worker, found_us)) | {
            "macs": yardstick.macs(),
            "share": program.macs / yardstick.macs() * speedup(ours_us, found_us),
        }
    return [row]


def measure_memory(network: Network, peers: Sequence[str]) -> list[Row]:
    """Measures what a process takes of main memory that loads one file and runs it, on one thread.

    Args:
        network: What is run.
        peers: Runtimes beside ours.

    Returns:
        A row of the report for each runtime, ours first.
    """
    program = network.program("host", 1)
    job = network.job("host", 1)
    rows = []
    for runtime in (OURS, *peers):
        row: Row = {"network": network.name, "runtime": runtime, "date": date.today().isoformat(), "failure": ""}
        try:
            with ExitStack() as stack:
                worker = _open_peer(stack, runtime, replace(job, simplified=job.original))
                check_outputs(worker, network.reference("host", 1))
                row |= {"version": worker.version, **worker.measure_memory(MEMORY_RUNS)}
        except SepwiseError as error:
            if runtime == OURS:
                raise
            row["failure"] = " ".join(str(error).split())
        rows.append(row)
    rows[0] |= {
        "constant_bytes": program.constants.nbytes,
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound_bytes": program.arena_lower_bound_bytes,
    }
    return rows


def _time_process(command: Sequence[object]) -> tuple[float, str]:
    """Runs a process and gives its seconds and what it printed.

    Raises:
        SepwiseError: It fails.
    """
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SepwiseError(f"{command[1]}: did not run: {lines[-1] if lines else f'status {done.returncode}'}")
    return seconds, done.stdout


def time_compilation(network: Network) -> list[Row]:
    """Times `sepwise compile` of a network for this machine, in a process of its own.

    Args:
        network: What is compiled.

    Returns:
        One row of the report: seconds of the process, and of the build within it.
    """
    shapes = [word for name, shape in network.shapes.items() for word in ("--shape", f"{name}={','.join(map(str, shape))}")]
    with TemporaryDirectory(prefix="sepwise-") as folder:
        command = [sys.executable, "-m", "sepwise", "compile", network.path, *shapes, "-o", f"{folder}/artifact", "--json"]
        seconds, printed = _time_process(command)
    report = json.loads(printed)
    return [
        {
            "network": network.name,
            "date": date.today().isoformat(),
            "seconds": seconds,
            "build_seconds": report["seconds"],
            "kernels": report["kernels"],
        }
    ]


IMPORTS: Final[Mapping[str, Sequence[str]]] = {
    "python": ("-c", "pass"),
    "import sepwise": ("-c", "import sepwise"),
    "import what runs an artifact": ("-c", "import sepwise.lowering.artifact, sepwise.lowering.runner"),
    "import what compiles": ("-c", "import sepwise.lowering.build"),
    "the same in a subcommand": ("-c", "from sepwise.startup import start_lean; start_lean(); import sepwise.lowering.build"),
    "sepwise --help": ("-m", "sepwise", "--help"),
}
"""Processes that are timed, the bare interpreter among them; `import sepwise` leaves the rest to the first use."""


def time_imports() -> list[Row]:
    """Times processes that import sepwise, in turn; gives a row of the report for each."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(IMPORT_RUNS):
        for name, words in IMPORTS.items():
            seconds[name].append(_time_process([sys.executable, *words])[0])
    today = date.today().isoformat()
    return [
        {"process": name, "date": today, "runs": len(found), "minimum_s": min(found), "median_s": statistics.median(found)}
        for name, found in seconds.items()
    ]
