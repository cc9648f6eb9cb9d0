"""Estimated cycles of what an emulated Program executed: LLVM's model of the core over the counted blocks, plus its caches.

An estimate and no measurement: good to rank kernels and schedules, not to promise milliseconds. Nothing in it is fitted to
times; every number is a fact of `devices.toml` or a count.

**Core.** A block costs what it adds behind the blocks that ran before it: llvm-mca times the most frequent way to the block's
predecessor, some `WINDOW` instructions of it, with and without the block behind, and the difference is weighed with the
number of times that the two ran in this order. Differences of neighbours add up to the time of the whole path, so what
overlaps in an out-of-order window is counted once; a loop comes out at the pace of its repeats, since its most frequent
predecessor is itself, and code between loops at what it costs once.

LLVM's models are loose in places, so no block takes less than the ports of the device allow: its multiply-adds, the
vectors it loads, and, in order and where a vector takes several cycles to load, both after each other.

**Caches.** For each block the modelled misses (see `runtime/count.c`) give

    transfer = lines moved to and from level 2 / its rate + lines moved to and from beyond / its rate
    waiting  = misses that no prefetcher foresees * what of their latency the reorder buffer does not hide / those in it at a time
    cycles   = max(core, transfer) + waiting

Transfers run beside the arithmetic of their own block, whatever the core: lines that are foreseen come by a prefetcher. Only a
core that runs out of order hides anything of a miss that is not, up to what its reorder buffer holds. A prefetch instruction
foresees one: it asks for a line and waits for nothing (Arm DDI 0487, PRFM; Intel 325383, PREFETCHh). In a Program's kernels for
AArch64 the emulator carries it out (`prefetch_loads`), so that the caches hold the line, or have driven it out again before it
is read. In all other code it passes it over: as many misses of its block count as foreseen as it asks for lines. On ARM a
stream of stores that fills whole lines does not read them first.

**Known limits.** One thread; no TLB, no branch misses, no instruction cache, no conflict of other cores for memory. Every
prefetch of other code is taken to hide one miss of its own block, however early it comes and whichever line it asks for; what
ours ask for is there at once. A loop is timed as if it went on: what a large reorder buffer overlaps of its end with the next
loop's start is missed. LLVM times Cortex-A72, A76 and A78 by its model of the A57, so the A76 takes the Neoverse-N1's; it lets
the A53 wait 10 cycles for the accumulator of a chained multiply-add, so the A53 takes the A55's, which forwards it; the N1's
own is 3 wide, so the device's width is given. The A57's of LLVM 14, no more of LLVM 22, lets an address that a load updates
wait for the load: the newest LLVM that is installed is taken.
`docs/benchmarks/estimate.md` says how well the method does where hardware is at hand.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sepwise.lowering.core_model import core_model
from sepwise.lowering.counts import CacheGeometry
from sepwise.lowering.device import emulated_here
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sepwise.lowering.core_model import CoreModel
    from sepwise.lowering.counts import BlockRun, CallCounts, Counts
    from sepwise.lowering.device import Device

__all__ = ["cache_geometry", "estimate_cycles", "install", "llvm_version", "missing", "unseen"]

WINDOW = 128
"""Instructions before a block that llvm-mca runs through first: what a reorder buffer of the modelled cores holds, or more."""

COVERED = 0.999
"""Share of a call's instructions whose blocks are timed; the rest takes as long an instruction as they do."""

_NEWEST, _OLDEST = 22, 14
_PACKAGED = 19
"""The version that Debian 12, Debian 13 and Ubuntu 24.04 all have; it models every core of `devices.toml`."""
_MULTIPLY_ADD = re.compile(r"fml[as]\b|vml[as]|vfm[as]|vfn?m(?:add|sub)")
_VECTOR_OPERAND = re.compile(r"\b(?:v\d+\.|z\d+\.|q\d+\b)|%[xyz]mm")
_PREFETCH = re.compile(r"prfu?m\s+pld|pld\b|prefetch(?!w)")
_CALL = re.compile(r"(?:blx?|blr|call[lq]?)\b")
_STRING_OPERATION = re.compile(r"\s*rep\b")
_SENTINELS = {
    "aarch64": "00 40 2f d4",
    "x86_64": " ".join(["90"] * 15 + ["cd 7a"]),
    "armv7a": "70 a0 27 e1",
}
"""What marks in the disassembly where a block begins: a breakpoint or an interrupt, which no kernel has.

The last instruction of a block may lie across the end of a page; qemu cuts it there, and translates all of it with the next
block. Where instructions differ in length, nops before the mark keep such a piece from taking the mark for its rest."""


def cache_geometry(device: Device) -> CacheGeometry | None:
    """Gives the caches whose misses `EmulatedRunner.count` is to model.

    Args:
        device: Any device.

    Returns:
        Its geometry, or None where its core is not known.
    """
    model = core_model(device)
    if model is None:
        return None
    return CacheGeometry(
        device.l1d_bytes, model.l1d_ways, device.l2_bytes, model.l2_ways, model.line_bytes, model.streams
    )


# LLVM's tools -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tools:
    """LLVM's disassembler and its timing of instructions.

    Attributes:
        mc: Path of llvm-mc.
        mca: Path of llvm-mca, of the same version.
        version: Major version.
    """

    mc: str
    mca: str
    version: int


@cache
def _find_tools(path: str | None = None) -> _Tools | None:
    """Finds the newest pair on the path."""
    for suffix in (*(f"-{version}" for version in range(_NEWEST, _OLDEST - 1, -1)), ""):
        mc, mca = shutil.which(f"llvm-mc{suffix}", path=path), shutil.which(f"llvm-mca{suffix}", path=path)
        if mc is None or mca is None:
            continue
        said = subprocess.run([mca, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"LLVM version (\d+)", said)
        if found is not None:
            return _Tools(mc, mca, int(found.group(1)))
    return None


def llvm_version() -> int | None:
    """Gives the major version of the llvm-mca that is used, or None where there is none."""
    tools = _find_tools()
    return tools.version if tools is not None else None


def install(device: Device) -> str | None:
    """Says how what an estimate takes is installed.

    Args:
        device: Any device.

    Returns:
        The command that installs an llvm-mca which models its core, or None where there is one, or no estimate whatever is there.
    """
    model, tools = core_model(device), _find_tools()
    if model is None or _machine(device) not in _SENTINELS or (tools is not None and tools.version >= model.llvm):
        return None
    return f"apt-get install llvm-{_PACKAGED}"


def unseen(device: Device, *, scalable: bool) -> str | None:
    """Says why nothing can be estimated of what a device executes under its emulator here.

    Args:
        device: Any device that is emulated.
        scalable: Whether it executes instructions of scalable vectors.

    Returns:
        One line, or None where its emulator shows all that an estimate needs.
    """
    if scalable:
        return f"Target '{device.name}': no estimate, qemu does not show what scalable vectors load and store."
    if emulated_here(device).emulator != device.emulator:
        return (
            f"Target '{device.name}': no estimate, {device.emulator} is missing and unicorn models no caches. "
            "Install it with `apt-get install qemu-user`."
        )
    return None


def missing(device: Device) -> str | None:
    """Says why there is no estimate for a device.

    Args:
        device: Any device.

    Returns:
        One line with what to install, or None where nothing is missing.
    """
    model = core_model(device)
    if model is None or _machine(device) not in _SENTINELS:
        return f"Target '{device.name}': no estimate, the cycles of {device.cpu} are not modelled."
    command = install(device)
    if command is None:
        return None
    found = llvm_version()
    if found is None:
        return f"No estimate: llvm-mca is missing. Install it with `{command}`."
    return (
        f"Target '{device.name}': no estimate, llvm-mca {found} has no model of {model.model}; {model.llvm} has. "
        f"Install it with `{command}`."
    )


def _run(command: Sequence[str], text: str) -> str:
    """Runs one of the tools."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SepwiseError(f"{Path(command[0]).name}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _disassemble(tools: _Tools, device: Device, codes: Sequence[bytes]) -> dict[bytes, tuple[str, ...]]:
    """Disassembles blocks, all in one go.

    Args:
        tools: LLVM's.
        device: Its triple, cpu and features say what the bytes mean.
        codes: Distinct blocks.

    Returns:
        Instructions by block, in LLVM's syntax.
    """
    sentinel = " ".join(f"0x{byte}" for byte in _SENTINELS[_machine(device)].split())
    blocks = "\n".join(f"{sentinel}\n{' '.join(f'0x{byte:02x}' for byte in code)}" for code in codes)
    options = ["--disassemble", f"-triple={device.triple}", f"-mcpu={device.cpu}", *_attributes(device)]
    said = _run([tools.mc, *options], f"{blocks}\n")
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.lstrip().startswith(".")]
    lines = [line for line in lines if line != "nop"]
    found: list[list[str]] = []
    for line in lines:
        if line == lines[0]:
            found.append([])
        else:
            found[-1].append(line)
    assert len(found) == len(codes), "a block begins at each mark"
    return {code: tuple(instructions) for code, instructions in zip(codes, found, strict=True)}


def _machine(device: Device) -> str:
    """The machine that a device's triple names."""
    return device.triple.split("-", maxsplit=1)[0]


def _attributes(device: Device) -> list[str]:
    """The option with a device's features, or none."""
    return [f"-mattr={','.join(device.features)}"] if device.features else []


class _Timer:
    """Times sequences of instructions with llvm-mca; asked for first, then answered together.

    Args:
        tools: LLVM's.
        device: Whose core.
        model: The core.
    """

    def __init__(self, tools: _Tools, device: Device, model: CoreModel) -> None:
        """Has been asked nothing."""
        self._tools = tools
        self._cycles: dict[tuple[str, ...], int] = {(): 0}
        # A width that is given replaces the model's; LLVM times in-order cores by their own only.
        width = [f"-dispatch={device.issue_width}"] if model.reorder_entries else []
        views = ("--json", "--iterations=1", "--instruction-info=false", "--resource-pressure=false")
        self._command = [tools.mca, f"-mtriple={device.triple}", f"-mcpu={model.model}", *_attributes(device), *width, *views]

    def ask(self, sequences: Iterable[tuple[str, ...]]) -> None:
        """Times what was not asked before."""
        new = [sequence for sequence in dict.fromkeys(sequences) if sequence not in self._cycles]
        # A call that is foreseen takes its slot and no more; LLVM knows nothing of what is called and would take 100 cycles.
        unknown = {line for sequence in new for line in sequence if _CALL.match(line)}
        while new:
            regions = (
                "\n".join((f"# LLVM-MCA-BEGIN {index}", *(line for line in sequence if line not in unknown), "# LLVM-MCA-END"))
                for index, sequence in enumerate(new)
            )
            done = subprocess.run(self._command, input="\n".join(regions) + "\n", capture_output=True, text=True, check=False)
            if not done.returncode:
                for region in json.loads(done.stdout)["CodeRegions"]:
                    self._cycles[new[int(region["Name"])]] = region["SummaryView"]["TotalCycles"]
                break
            refused = re.search(r"note: instruction:\s*(.+)", done.stderr)
            if refused is None:
                raise SepwiseError(f"{Path(self._tools.mca).name}: {done.stderr.strip().splitlines()[-1]}")
            unknown |= {line for line in {line for s in new for line in s} if line.split() == refused.group(1).split()}
        for sequence in new:
            self._cycles.setdefault(sequence, 0)  # nothing in it is known to the model

    def __getitem__(self, sequence: tuple[str, ...]) -> int:
        """Cycles of a sequence that was asked for, from the first issue to the last instruction's end."""
        return self._cycles[sequence]


# The estimate -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A block behind another one: how often, and what is timed for it.

    Attributes:
        number: The block.
        count: Times that it ran behind that one.
        before: The way to that one.
        after: The same, with the block `repeats` times behind.
        repeats: More than one where a block runs behind itself, so that a fraction of a cycle shows.
    """

    number: int
    count: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    repeats: int


def _hot_runs(call: CallCounts) -> dict[int, BlockRun]:
    """The blocks that make up almost all of a call."""
    left = (1 - COVERED) * call.instructions
    hot = dict(call.runs)
    for number, run in sorted(call.runs.items(), key=lambda item: item[1].count * item[1].block.instructions):
        left -= run.count * run.block.instructions
        if left < 0:
            break
        del hot[number]
    return hot


def _way_to(number: int, call: CallCounts, assembly: dict[bytes, tuple[str, ...]]) -> tuple[str, ...]:
    """The most frequent way to the end of a block: its last `WINDOW` instructions, as far as the call's own blocks go."""
    way: tuple[str, ...] = ()
    while number in call.runs and len(way) < WINDOW:
        run = call.runs[number]
        way = (*assembly[run.block.code], *way)
        number = max(run.predecessors, key=lambda each: run.predecessors[each], default=-1)
    return way[-WINDOW:]


def _steps(call: CallCounts, assembly: dict[bytes, tuple[str, ...]]) -> list[_Step]:
    """Everything that is to be timed for a call."""
    steps = []
    ways: dict[int, tuple[str, ...]] = {-1: ()}
    for number, run in _hot_runs(call).items():
        body = assembly[run.block.code]
        if not body or _is_string_operation(body):
            continue
        for before, count in run.predecessors.items():
            if before not in ways:
                ways[before] = _way_to(before, call, assembly)
            repeats = max(1, WINDOW // len(body)) if before == number else 1
            steps.append(_Step(number, count, ways[before], ways[before] + body * repeats, repeats))
    return steps


def _is_string_operation(body: tuple[str, ...]) -> bool:
    """Whether a block is one of x86's repeated moves or stores, which qemu runs element by element and a core by vectors."""
    return any(map(_STRING_OPERATION.match, body))


def _port_cycles(run: BlockRun, body: tuple[str, ...], device: Device, model: CoreModel) -> float:
    """The fewest cycles in which the ports of a device execute a block, all times together."""
    multiply_adds = sum(bool(_MULTIPLY_ADD.match(line) and _VECTOR_OPERAND.search(line)) for line in body)
    arithmetic = run.count * multiply_adds / device.fma_ports
    loads = run.load_bytes / device.vector_bytes / device.load_ports
    alone = not model.reorder_entries and device.load_ports < 1
    issue = run.count * run.block.instructions / device.issue_width
    return max(arithmetic + loads if alone else max(arithmetic, loads), issue)


def _transfer_cycles(run: BlockRun, core: int, device: Device, line_bytes: int) -> float:
    """Cycles in which a block's lines move, all times together."""
    misses = run.misses[core]
    first, second = misses.l1, misses.l2
    if device.isa == "arm":  # whole lines that are written need not be read
        first, second = first - misses.l1_stored, second - misses.l2_stored
    near, beyond = first - second + misses.l1_written, second + misses.l2_written
    return line_bytes * (near / device.l2_bytes_per_cycle + beyond / device.memory_bytes_per_cycle)


def _waiting_cycles(run: BlockRun, body: tuple[str, ...], core: int, device: Device, model: CoreModel) -> float:
    """Cycles in which a block waits for lines that neither a prefetcher nor the block has asked for, all times together."""
    misses = run.misses[core]
    asked = run.count * sum(map(bool, map(_PREFETCH.match, body)))
    if asked >= misses.l1_demanded:
        return 0.0
    hidden = model.reorder_entries / device.issue_width
    latency = (misses.l1_demanded - misses.l2_demanded) * max(0.0, model.l2_latency_cycles - hidden)
    latency += misses.l2_demanded * max(0.0, model.memory_latency_cycles - hidden)
    at_a_time = misses.l1_demanded / (run.count * run.block.instructions) * model.reorder_entries
    return latency * (1 - asked / misses.l1_demanded) / max(1.0, at_a_time)


def _call_cycles(
    call: CallCounts,
    core: int,
    device: Device,
    model: CoreModel,
    steps: Sequence[_Step],
    timer: _Timer,
    assembly: dict[bytes, tuple[str, ...]],
) -> float:
    """Estimates one kernel call."""
    timed: dict[int, float] = defaultdict(float)
    for step in steps:
        timed[step.number] += step.count * (timer[step.after] - timer[step.before]) / step.repeats
    core_cycles = {}
    for number in timed:
        run = call.runs[number]
        core_cycles[number] = max(timed[number], _port_cycles(run, assembly[run.block.code], device, model))
    instructions = sum(call.runs[number].count * call.runs[number].block.instructions for number in timed)
    pace = sum(core_cycles.values()) / instructions if instructions else 1.0
    total = 0.0
    for number, run in call.runs.items():
        if number in core_cycles:
            cycles = core_cycles[number]
        elif _is_string_operation(assembly[run.block.code]):
            cycles = max(run.load_bytes, run.store_bytes) / device.vector_bytes
        else:
            cycles = pace * run.count * run.block.instructions
        total += max(cycles, _transfer_cycles(run, core, device, model.line_bytes))
        total += _waiting_cycles(run, assembly[run.block.code], core, device, model)
    return total


def estimate_cycles(counts: Counts, built_for: Device, device: Device, *, core: int = 0) -> tuple[float, ...]:
    """Estimates the cycles of what was counted.

    Args:
        counts: With the misses of the device's caches.
        built_for: The device whose code was counted.
        device: Whose cycles are wanted; it is not `missing` anything.
        core: Index of its caches among those that were counted for.

    Returns:
        The cycles of each kernel call.

    Raises:
        SepwiseError: LLVM's tools fail.
    """
    tools, model = _find_tools(), core_model(device)
    assert tools is not None, "callers ask what is missing"
    assert model is not None, "callers ask what is missing"
    codes = dict.fromkeys(run.block.code for call in counts.calls for run in call.runs.values())
    assembly = _disassemble(tools, built_for, tuple(codes)) if codes else {}
    steps = [_steps(call, assembly) for call in counts.calls]
    timer = _Timer(tools, device, model)
    timer.ask(sequence for call in steps for step in call for sequence in (step.before, step.after))
    return tuple(
        _call_cycles(call, core, device, model, of_call, timer, assembly)
        for call, of_call in zip(counts.calls, steps, strict=True)
    )
