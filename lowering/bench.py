"""Benchmarks: latency beside other runtimes on this machine, latency on a board, counts and estimated cycles under emulation."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sepwise.lowering import estimate
from sepwise.lowering.build import compile, require_float16
from sepwise.lowering.device import get as get_device
from sepwise.lowering.peers import OURS, PEERS, Job, Worker, missing_packages
from sepwise.lowering.remote import RemoteRunner
from sepwise.lowering.rounds import ROUNDS, RuntimeTime, speedup, summarise, time_in_rounds
from sepwise.lowering.runner import EmulatedRunner
from sepwise.lowering.strategies import transformed_nodes
from sepwise.lowering.verify import transformed_values
from sepwise.passes import canonicalize, fuse, load_model
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import CheckFailed, InputError
from sepwise.passes.saving import save_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program
    from sepwise.lowering.remote import Board
    from sepwise.lowering.selection import Records

__all__ = ["Benchmark", "KernelCount", "KernelTime", "RuntimeCount", "RuntimeTime", "bench"]

_KERNEL_REPEATS: Final = 20


@dataclass(frozen=True, slots=True)
class RuntimeCount:
    """What a runtime executed under emulation.

    Attributes:
        name: The runtime.
        version: Its version.
        instructions: Of one run.
        instructions_per_mac: The same over the network's MACs.
        loads: Instructions that load, None where the emulator does not count them.
        stores: Instructions that store, the same.
        l1_misses: Modelled misses of the target's level 1, None where its caches are not known.
        l2_misses: The same of level 2.
        estimated_cycles: By core, estimates and no measurements; None where something that it takes is missing.
    """

    name: str
    version: str
    instructions: int
    instructions_per_mac: float | None
    loads: int | None
    stores: int | None
    l1_misses: int | None
    l2_misses: int | None
    estimated_cycles: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class KernelTime:
    """A kernel's share, or the tail's.

    Attributes:
        name: The kernel, or `tail`.
        nodes: The ONNX nodes it computes.
        strategy: How.
        median_us: Median over the runs of the whole network, caches as the network leaves them.
        macs: Multiply-accumulates.
        roofline: Share of the core's peak rate of multiply-accumulates, None where the clock is unknown.
    """

    name: str
    nodes: tuple[str, ...]
    strategy: str
    median_us: float
    macs: int
    roofline: float | None


@dataclass(frozen=True, slots=True)
class KernelCount:
    """A kernel's share under emulation.

    Attributes:
        name: The kernel.
        nodes: The ONNX nodes it computes.
        strategy: How.
        instructions: Of one run.
        loads: Instructions that load, None where the emulator does not count them.
        stores: Instructions that store, the same.
        load_bytes: Bytes loaded, the same.
        store_bytes: Bytes stored, the same.
        l1_misses: Modelled misses of the target's level 1, None where its caches are not known.
        l2_misses: The same of level 2.
        estimated_cycles: By core, estimates and no measurements; None where something that it takes is missing.
        macs: Multiply-accumulates.
    """

    name: str
    nodes: tuple[str, ...]
    strategy: str
    instructions: int
    loads: int | None
    stores: int | None
    load_bytes: int | None
    store_bytes: int | None
    l1_misses: int | None
    l2_misses: int | None
    estimated_cycles: dict[str, float | None]
    macs: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What `sepwise bench` reports.

    Attributes:
        model: The network's name.
        target: The device.
        method: `native`, `remote` or `emulated`.
        threads: Worker threads of every runtime.
        macs: Multiply-accumulates of one run.
        strategy_mac_share: Share of them on our strategies.
        runtimes: Ours first, then the peers.
        speedup: By peer, the median over rounds of its time over ours in that round.
        kernels: Ours, in execution order, then the tail where there is one.
        notes: What could not be told, and what to install for it.
        float16_mac_share: Share of the multiply-accumulates on our strategies in float16.
        records_used: Kernels that a tuning record decided.
    """

    model: str
    target: str
    method: str
    threads: int
    macs: int
    strategy_mac_share: float
    runtimes: tuple[RuntimeTime | RuntimeCount, ...]
    speedup: dict[str, float]
    kernels: tuple[KernelTime | KernelCount, ...]
    notes: tuple[str, ...] = ()
    float16_mac_share: float = 0.0
    records_used: int = 0

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that `sepwise bench --json` prints."""
        return asdict(self)


class _OnBoard:
    """Ours on a board, as `Timed` wants it."""

    def __init__(self, runner: RemoteRunner) -> None:
        self.name, self.version = OURS, version("sepwise")
        self._runner = runner

    def time(self, repeats: int) -> list[float]:
        return self._runner.time(repeats)


def _compare(
    outputs: Mapping[str, Mapping[str, np.ndarray]],
    oracle: Oracle,
    inputs: Mapping[str, np.ndarray],
    winograd: Mapping[str, int],
) -> None:
    """Checks that all runtimes compute the network before any of them is timed, by transformed tiles where ours does."""
    expected, sigma = oracle.run(dict(inputs)), execution_sigma(oracle, inputs, winograd=winograd)
    for name, found in outputs.items():
        check = compare_execution(found, expected, sigma, name=name)
        if check.status != "passed":
            raise CheckFailed(
                f"Runtime '{name}': its outputs are wrong ({check.reason}), so nothing was timed; see `sepwise verify`."
            )


def _peak_macs_per_us(device: Device, threads: int) -> float | None:
    """What the cores multiply and add at most, with vectors of whichever kind do more of it."""
    if not device.clock_hz:
        return None
    macs = max(device.lanes * device.fma_ports, device.scalable_bytes / device.lane_bytes * device.scalable_ports)
    return macs * device.clock_hz * min(threads, device.cores) / 1e6


def _kernel_times(program: Program, times_us: Sequence[Sequence[float]], peak: float | None) -> tuple[KernelTime, ...]:
    kernels = []
    for step, runs in zip(program.steps, times_us, strict=True):
        median_us = statistics.median(runs)
        roofline = step.macs / median_us / peak if peak and median_us else None
        kernels.append(KernelTime(step.name, step.nodes, step.strategy, median_us, step.macs, roofline))
    return tuple(kernels)


def _sum(counts: Iterable[int | None]) -> int | None:
    """Sums what is known of every kernel."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _count(
    program: Program, inputs: Mapping[str, np.ndarray], cores: Sequence[Device]
) -> tuple[RuntimeCount, tuple[KernelCount, ...], tuple[str, ...]]:
    """Counts one run and estimates its cycles on cores, the program's own device first; and says what was missing for it."""
    unseen = estimate.unseen(cores[0])
    modelled = [(core, geometry) for core in cores if not unseen and (geometry := estimate.cache_geometry(core)) is not None]
    with EmulatedRunner(program) as runner:
        counts = runner.count(inputs, caches=[geometry for _, geometry in modelled])
    notes = {core.name: unseen or estimate.missing(core) for core in cores}
    cycles = {
        core.name: estimate.estimate_cycles(counts, cores[0], core, core=index)
        for index, (core, _) in enumerate(modelled)
        if notes[core.name] is None
    }
    known = bool(modelled) and modelled[0][0] is cores[0]
    kernels = []
    for index, (call, counted) in enumerate(zip(program.calls, counts.calls, strict=True)):
        misses = counted.misses() if known else None
        kernels.append(
            KernelCount(
                name=call.name,
                nodes=call.nodes,
                strategy=call.strategy,
                instructions=counted.instructions,
                loads=counted.loads,
                stores=counted.stores,
                load_bytes=counted.load_bytes,
                store_bytes=counted.store_bytes,
                l1_misses=misses.l1 if misses else None,
                l2_misses=misses.l2 if misses else None,
                estimated_cycles={core.name: cycles[core.name][index] if core.name in cycles else None for core in cores},
                macs=call.macs,
            )
        )
    ours = RuntimeCount(
        name=OURS,
        version=version("sepwise"),
        instructions=counts.instructions,
        instructions_per_mac=counts.instructions / program.macs if program.macs else None,
        loads=_sum(kernel.loads for kernel in kernels),
        stores=_sum(kernel.stores for kernel in kernels),
        l1_misses=_sum(kernel.l1_misses for kernel in kernels),
        l2_misses=_sum(kernel.l2_misses for kernel in kernels),
        estimated_cycles={core.name: sum(cycles[core.name]) if core.name in cycles else None for core in cores},
    )
    return ours, tuple(kernels), tuple(dict.fromkeys(note for note in notes.values() if note))


def bench(
    model: str | Path,
    *,
    target: str = "host",
    threads: int = 1,
    against: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    rounds: int = ROUNDS,
    cores: Sequence[str] = (),
    float16: bool = False,
    board: Board | None = None,
    records: Records | None = None,
) -> Benchmark:
    """Measures a network on a target, beside other runtimes.

    Args:
        model: An ONNX file.
        target: Name of a device; peers run natively only.
        threads: Worker threads of every runtime; one where the target is emulated.
        against: Peers out of `peers.names()`.
        shapes: Shapes of inputs that the file leaves open, by name.
        rounds: Rounds of alternating blocks; more for a quieter answer.
        cores: Devices beside an emulated target whose cycles are estimated for the same code.
        float16: Whether ours computes in float16 what is float32, but for what needs more; peers compute the model as it is.
        board: Where to measure, None for here.
        records: What tuning has found (see `tuning.database.read_records`).

    Returns:
        Latencies, or counts and estimated cycles.

    Raises:
        InputError: The model, the target or a peer cannot be used.
        CheckFailed: A runtime computes something else than the network.
    """
    device = get_device(target)
    unknown = [peer for peer in against if peer not in PEERS]
    if unknown:
        raise InputError(f"Peer '{unknown[0]}': unknown; known are {', '.join(PEERS)}.")
    if board is not None:
        board.require(device)
        if against:
            raise InputError(f"{board.name}: measures ours alone, peers run natively only; leave --against out.")
    emulated = device.emulated and board is None
    if emulated and threads > 1:
        raise InputError(f"Target '{target}': is emulated here, where one thread is counted; leave --threads {threads} out.")
    if emulated and against:
        raise InputError(f"Target '{target}': is emulated here, and peers run natively only; leave --against out.")
    for peer in against:
        if missing := missing_packages(peer):
            raise InputError(
                f"Peer '{peer}': {', '.join(missing)} is not installed here; install it with: pip install 'sepwise[peers]'."
            )
    if cores and not emulated:
        where = "here" if board is None else "on a board"
        raise InputError(f"Target '{target}': runs {where} and is measured; cores are estimated beside an emulated target only.")
    others = [get_device(core) for core in dict.fromkeys(cores) if core != target]
    if others and device.scalable_bytes:
        raise InputError(f"{estimate.unseen(device)} That holds for every core: leave --cores out.")
    for core in others:
        if core.triple != device.triple:
            raise InputError(f"Core '{core.name}': does not run code for {target} ({core.triple}, not {device.triple}).")
    for each in (device, *others) if float16 else ():
        require_float16(each)
    original = Path(model)
    loaded = load_model(original, shapes=shapes)
    inputs = sample_inputs(loaded, seed=0)
    artifact = compile(original, target=target, shapes=shapes, threads=threads, float16=float16, records=records)
    program, report = artifact.program, artifact.report
    common: dict[str, Any] = {
        "model": report["model"],
        "target": target,
        "threads": threads,
        "macs": program.macs,
        "strategy_mac_share": report["strategy_mac_share"],
        "float16_mac_share": report["float16_mac_share"],
        "records_used": report["records_used"],
    }
    peak = _peak_macs_per_us(device.holding("float16" if float16 else "float32"), threads)
    if emulated:
        ours, counts, notes = _count(program, inputs, [device, *others])
        return Benchmark(**common, method="emulated", runtimes=(ours,), speedup={}, kernels=counts, notes=notes)
    canonical = canonicalize(loaded)
    executed = fuse(loaded, float16=True).model if float16 else loaded
    winograd = transformed_values(transformed_nodes(program.calls), canonical)
    if board is not None:
        with RemoteRunner(program, board, threads=threads) as runner:
            _compare({OURS: runner.run(inputs)}, Oracle(executed), inputs, winograd)
            there = _OnBoard(runner)
            runs = summarise(there, time_in_rounds([there], rounds)[0])
            kernels = _kernel_times(program, runner.time_kernels(_KERNEL_REPEATS), peak)
        return Benchmark(**common, method="remote", runtimes=(runs,), speedup={}, kernels=kernels)
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder, ExitStack() as stack:
        artifact.save(Path(folder) / "artifact")
        simplified = Path(folder) / "simplified.onnx"
        save_model(canonical, simplified)
        wanted = tuple(output.name or "" for output in loaded.graph.outputs)
        job = Job(OURS, original.absolute(), simplified, Path(folder) / "artifact", inputs, wanted, threads)
        workers = [stack.enter_context(Worker(replace(job, runtime=name))) for name in (OURS, *dict.fromkeys(against))]
        outputs = {worker.name: worker.run() for worker in workers}
        _compare({OURS: outputs.pop(OURS)}, Oracle(executed), inputs, winograd)
        _compare(outputs, Oracle(loaded), inputs, winograd)
        times_us = time_in_rounds(workers, rounds)
        kernel_times_us = workers[0].time_kernels(_KERNEL_REPEATS)
    return Benchmark(
        **common,
        method="native",
        runtimes=tuple(map(summarise, workers, times_us)),
        speedup={worker.name: speedup(times_us[0], peer_us) for worker, peer_us in zip(workers[1:], times_us[1:], strict=True)},
        kernels=_kernel_times(program, kernel_times_us, peak),
    )
