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
from sepwise.lowering.roofline import Limit, Roof, RoofMeter, limit_of, roof_of_facts
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
"""Runs in which kernels are timed; for a profile in each of its rounds."""

_PROFILE_ROUNDS: Final = 5
"""Times that kernels and, natively, what the cores can do at most are measured in turn."""


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
        roofline: Share of the cores' peak rate of multiply-accumulates, None where that is not known.
        operand_bytes: Inputs, weights and outputs, each once; None for the tail.
        attainable_us: The least time that the roof allows (see `lowering.roofline`), None where it is not known.
        bound: What takes that: `compute`, or the level of memory; None with it.
        attained: `attainable_us` over `median_us`.
    """

    name: str
    nodes: tuple[str, ...]
    strategy: str
    median_us: float
    macs: int
    roofline: float | None
    operand_bytes: int | None = None
    attainable_us: float | None = None
    bound: str | None = None
    attained: float | None = None


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
        operand_bytes: Inputs, weights and outputs, each once.
        attainable_cycles: The least that the target's facts allow (see `lowering.roofline`).
        bound: What takes that: `compute`, or the level of memory.
        attained: `attainable_cycles` over the target's estimated cycles, an estimate like them, None where there is none.
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
    operand_bytes: int | None = None
    attainable_cycles: float | None = None
    bound: str | None = None
    attained: float | None = None


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
        roof: What the cores can do at most, of which kernels attain a share; None where it was not asked for and the clock is
            not known.
        whole_us: Of a profile the median of whole runs, in turn with those in which kernels were timed; else None.
        kernels_us: Of these the median of what all kernels of a run took; else None.
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
    roof: Roof | None = None
    whole_us: float | None = None
    kernels_us: float | None = None

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


def _kernel_times(program: Program, times_us: Sequence[Sequence[float]], roof: Roof | None) -> tuple[KernelTime, ...]:
    """Summarises each kernel's runs, beside what the roof allows."""
    kernels = []
    for step, runs in zip(program.steps, times_us, strict=True):
        median_us = statistics.median(runs)
        limit = limit_of(step, program, roof) if roof is not None else Limit()
        peak = roof.macs_per_unit if roof is not None else None
        kernels.append(
            KernelTime(
                name=step.name,
                nodes=step.nodes,
                strategy=step.strategy,
                median_us=median_us,
                macs=step.macs,
                roofline=step.macs / median_us / peak if peak and median_us else None,
                operand_bytes=limit.operand_bytes,
                attainable_us=limit.least,
                bound=limit.bound,
                attained=limit.least / median_us if limit.least is not None and median_us else None,
            )
        )
    return tuple(kernels)


def _profile(runtime: Worker | RemoteRunner, meter: RoofMeter | None) -> tuple[list[list[float]], dict[str, Any]]:
    """Times kernels, whole runs, and what the cores can do at most, in turn: clock and other load drift.

    Returns:
        Microseconds of each kernel in each run; and the medians of whole runs and of the sums of kernels.
    """
    times_us: list[list[float]] = []
    whole_us: list[float] = []
    for _ in range(_PROFILE_ROUNDS):
        if meter is not None:
            meter.sample()
        found = runtime.time_kernels(_KERNEL_REPEATS)
        times_us = [[*before, *runs] for before, runs in zip(times_us or [[] for _ in found], found, strict=True)]
        whole_us += runtime.time(_KERNEL_REPEATS)
    sums_us = (sum(runs) for runs in zip(*times_us, strict=True))
    return times_us, {"whole_us": statistics.median(whole_us), "kernels_us": statistics.median(sums_us)}


def _sum(counts: Iterable[int | None]) -> int | None:
    """Sums what is known of every kernel."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _count(
    program: Program, inputs: Mapping[str, np.ndarray], cores: Sequence[Device], roof: Roof
) -> tuple[RuntimeCount, tuple[KernelCount, ...], tuple[str, ...]]:
    """Counts one run and estimates its cycles on cores, the program's own device first; and says what was missing for it."""
    unseen = estimate.unseen(cores[0], scalable=False)
    modelled = [(core, geometry) for core in cores if not unseen and (geometry := estimate.cache_geometry(core)) is not None]
    with EmulatedRunner(program) as runner:
        counts = runner.count(inputs, caches=[geometry for _, geometry in modelled])
    if not counts.memory_seen:
        unseen, modelled = estimate.unseen(cores[0], scalable=True), []
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
        limit = limit_of(call, program, roof)
        estimated = cycles[cores[0].name][index] if cores[0].name in cycles else None
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
                operand_bytes=limit.operand_bytes,
                attainable_cycles=limit.least,
                bound=limit.bound,
                attained=limit.least / estimated if limit.least is not None and estimated else None,
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
    profile: bool = False,
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
        profile: Whether to measure on this machine what its cores can do at most, which kernels attain a share of. On a board and
            under emulation that follows from the target's facts, asked for or not.
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
    for core in others:
        if core.triple != device.triple:
            raise InputError(f"Core '{core.name}': does not run code for {target} ({core.triple}, not {device.triple}).")
        if lacking := sorted(device.flags - core.flags):
            raise InputError(f"Core '{core.name}': does not run code for {target}, it has no {', '.join(lacking)}.")
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
    held = device.holding("float16" if float16 else "float32")
    if emulated:
        per_cycle = roof_of_facts(held, 1, unit="cycles")
        ours, counts, notes = _count(program, inputs, [device, *others], per_cycle)
        return Benchmark(**common, method="emulated", runtimes=(ours,), speedup={}, kernels=counts, notes=notes, roof=per_cycle)
    roof = roof_of_facts(held, threads, unit="us") if device.clock_hz else None
    totals_us: dict[str, Any] = {}
    canonical = canonicalize(loaded)
    executed = fuse(loaded, float16=True).model if float16 else loaded
    winograd = transformed_values(transformed_nodes(program.calls), canonical)
    if board is not None:
        with RemoteRunner(program, board, threads=threads) as runner:
            _compare({OURS: runner.run(inputs)}, Oracle(executed), inputs, winograd)
            there = _OnBoard(runner)
            runs = summarise(there, time_in_rounds([there], rounds)[0])
            if profile:
                kernel_times_us, totals_us = _profile(runner, None)
            else:
                kernel_times_us = runner.time_kernels(_KERNEL_REPEATS)
        kernels = _kernel_times(program, kernel_times_us, roof)
        return Benchmark(**common, method="remote", runtimes=(runs,), speedup={}, kernels=kernels, roof=roof, **totals_us)
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
        if profile:
            meter = RoofMeter(get_device("host"), threads)
            kernel_times_us, totals_us = _profile(workers[0], meter)
            roof = meter.roof(held)
        else:
            kernel_times_us = workers[0].time_kernels(_KERNEL_REPEATS)
    return Benchmark(
        **common,
        method="native",
        runtimes=tuple(map(summarise, workers, times_us)),
        speedup={worker.name: speedup(times_us[0], peer_us) for worker, peer_us in zip(workers[1:], times_us[1:], strict=True)},
        kernels=_kernel_times(program, kernel_times_us, roof),
        roof=roof,
        **totals_us,
    )
