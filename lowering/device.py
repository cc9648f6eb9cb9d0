"""Devices: the facts that schedules, builds and runs are keyed by, and the detection of this machine."""

from __future__ import annotations

import difflib
import importlib.util
import os
import platform
import shutil
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sepwise.passes.errors import InputError

__all__ = [
    "FACTS_FILE",
    "Device",
    "Reach",
    "detect",
    "emulated_here",
    "get",
    "host_flags",
    "host_processor",
    "load",
    "missing_flags",
    "names",
    "reach",
]

HOST = "host"
Isa = Literal["x86", "arm"]

UNICORN = "unicorn"
"""The emulator that is a Python package and runs in this process; all others are programs of qemu-user."""

FACTS_FILE = Path(__file__).parent / "devices.toml"
"""Devices and cores."""
_X86_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
_AVX512_FLAGS = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
_AVX2_FLAGS = frozenset({"avx2", "fma"})
# What aarch64's /proc/cpuinfo calls an extension, and what LLVM does.
_ARM_FEATURES = {"asimdhp": "+fullfp16", "asimddp": "+dotprod", "i8mm": "+i8mm", "bf16": "+bf16"}


@dataclass(frozen=True, slots=True)
class Device:
    """A target: what code is built for and what its machine offers.

    Attributes:
        name: What the user calls it.
        triple: LLVM target triple.
        cpu: LLVM name of the cpu.
        features: LLVM features beyond those of the cpu, with their sign (`+dotprod`).
        flags: What a machine must report in /proc/cpuinfo to run code built for this device.
        isa: Instruction set family.
        lanes: Lanes of one vector register, float32 as the facts are stated.
        vector_registers: Architectural vector registers.
        flushes_subnormals: Whether vector arithmetic takes and gives 0 for numbers below the normal range.
        fma_ports: Vector fused multiply-adds that can start in one cycle; below 1 where one takes several.
        load_ports: Vector loads that can start in one cycle; below 1 where a vector takes several.
        issue_width: Instructions that can be renamed, or issued in order, in one cycle.
        fma_latency_cycles: Cycles from one accumulation to the next on the same register.
        l2_bytes_per_cycle: What one core streams from its level 2 cache in one cycle.
        memory_bytes_per_cycle: What one core streams from beyond its level 2 cache in one cycle.
        cores: Physical cores that a program may use.
        l1d_bytes: Level 1 data cache of one core.
        l2_bytes: Level 2 cache that one core sees.
        l3_bytes: Level 3 cache, 0 for none.
        clock_hz: Clock, or None where it is not known or varies.
        emulator: qemu-user's program, or `unicorn` for a bare core in this process; None where the device only runs natively.
        emulator_cpu: What the emulator calls the cpu, or the relative of it that it knows.
        zig_target: How zig names the target for freestanding C.
        zig_cpu: How zig names a cpu whose code runs there.
        scalable_bytes: Scalable vector of the machine that stands for the target, 0 for none; code for it runs at every length.
        scalable_ports: Multiply-adds of scalable vectors, and loads of them, that can start in one cycle.
        flash_bytes: What a core without an operating system has for code and constants, 0 where there is one or it is not known.
        ram_bytes: What such a core has for variables.
        unicorn_cpu: What unicorn calls the cpu, or a relative of it; None where it stands in for no missing program.
        sources: Where each fact comes from, as pairs of fact and source.
        lane_bytes: Bytes of one lane.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    flags: frozenset[str]
    isa: Isa
    lanes: int
    vector_registers: int
    flushes_subnormals: bool
    fma_ports: float
    load_ports: float
    issue_width: int
    fma_latency_cycles: int
    l2_bytes_per_cycle: float
    memory_bytes_per_cycle: float
    cores: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    clock_hz: int | None
    emulator: str | None
    emulator_cpu: str | None
    zig_target: str
    zig_cpu: str
    scalable_bytes: int = 0
    scalable_ports: int = 0
    flash_bytes: int = 0
    ram_bytes: int = 0
    unicorn_cpu: str | None = None
    sources: tuple[tuple[str, str], ...] = ()
    lane_bytes: int = 4

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector register."""
        return self.lanes * self.lane_bytes

    @property
    def hosted(self) -> bool:
        """Whether it has an operating system, with threads and shared libraries."""
        return "-linux-" in self.triple

    @property
    def emulator_option(self) -> str | None:
        """What `-cpu` of the emulator takes: the cpu, with the length of its scalable vectors; None where there is none."""
        if self.emulator_cpu is None or not self.scalable_bytes:
            return self.emulator_cpu
        return f"{self.emulator_cpu},sve-default-vector-length={self.scalable_bytes}"

    def holding(self, dtype: str) -> Device:
        """The same device as kernels of a floating-point type see it: its vector registers hold lanes of that type."""
        size = int(dtype.removeprefix("float")) // 8
        return self if size == self.lane_bytes else replace(self, lanes=self.vector_bytes // size, lane_bytes=size)

    @property
    def fuses_multiply_add(self) -> bool:
        """Whether one instruction multiplies and adds: on every ARM device, on x86 where the cpu reports it."""
        return self.isa == "arm" or "fma" in self.flags

    @property
    def multiplies_by_lane(self) -> bool:
        """Whether a vector multiply-add takes a factor from a lane: `fmla v0.4s, v1.4s, v2.s[1]` of AArch64 alone."""
        return self.triple.startswith("aarch64")

    @property
    def musl_target(self) -> str:
        """How zig names its machine under Linux with musl, a C library that static programs are linked with."""
        return self.zig_target.replace("freestanding-none", "linux-musl").replace("freestanding-", "linux-musl")

    @property
    def emulated(self) -> bool:
        """Whether programs for it run under an emulator here: it has one, and this machine cannot run them."""
        return self.emulator is not None and bool(missing_flags(self))


_FACTS = {field.name for field in fields(Device)} - {"name", "isa", "sources", "lane_bytes"}
_CORE_FACTS = (
    "fma_ports",
    "load_ports",
    "issue_width",
    "fma_latency_cycles",
    "l2_bytes_per_cycle",
    "memory_bytes_per_cycle",
)
_SCALABLE_FACTS = ("scalable_bytes", "scalable_ports")
_MEMORY_FACTS = ("flash_bytes", "ram_bytes")
_OPTIONAL_FACTS = {*_SCALABLE_FACTS, *_MEMORY_FACTS, "unicorn_cpu"}


@dataclass(frozen=True, slots=True)
class Reach:
    """How programs for a device run on this machine.

    Attributes:
        method: `native` in this process, `emulated` under the device's emulator.
        missing: Programs to be installed, extensions of the processor, or the machine that is needed; empty where it runs.
        install: The command that installs what is missing, None where nothing is or no command does.
    """

    method: Literal["native", "emulated"]
    missing: tuple[str, ...] = ()
    install: str | None = None


@dataclass(frozen=True, slots=True)
class _Core:
    """What a machine was recognised as.

    Attributes:
        cpu: LLVM name of the cpu.
        flags: What a machine must report to run code built for it.
        features: LLVM features beyond those of the cpu.
        facts: Values of `_CORE_FACTS`, and of `_SCALABLE_FACTS` where it has scalable vectors.
        origin: Where those come from.
    """

    cpu: str
    flags: frozenset[str]
    features: tuple[str, ...]
    facts: dict[str, Any]
    origin: str


def names() -> list[str]:
    """Lists the devices by the names that `get` takes, `host` first."""
    return [HOST, *load(FACTS_FILE)]


def get(name: str) -> Device:
    """Finds a device by name; `host` is detected.

    Args:
        name: A name out of `names()`.

    Returns:
        The device.

    Raises:
        InputError: No device has that name.

    Example:
        >>> get("cortex-a72").lanes
        4
    """
    if name == HOST:
        return detect()
    devices = load(FACTS_FILE)
    if name in devices:
        return devices[name]
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "See `sepwise targets`."
    raise InputError(f"Target '{name}': unknown; known are {', '.join(names())}. {hint}")


@cache
def load(path: Path) -> dict[str, Device]:
    """Reads the devices of a facts file.

    Args:
        path: A TOML file as `devices.toml` describes itself.

    Returns:
        Devices by name.

    Raises:
        InputError: A fact is unknown, missing or has no source.
    """
    with path.open("rb") as file:
        document = tomllib.load(file)
    unknown = sorted(set(document) - {"device", "core", "x86_core", "arm_core"})
    if unknown:
        raise InputError(f"{path.name}: unknown table '{unknown[0]}'; known are device, core, x86_core, arm_core.")
    tables = document["device"]
    return {name: _read_device(path.name, name, _with_likes(path.name, name, tables)) for name in tables}


def _with_likes(file: str, name: str, tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The facts of a device's table over those of the device that it is `like`."""
    own = dict(tables[name])
    like = own.pop("like", None)
    if like is None:
        return own
    if like not in tables or "like" in tables[like]:
        raise InputError(f"{file}: device '{name}' is like '{like}'; needed is a device with facts of its own.")
    return {**tables[like], **own}


def _read_device(file: str, name: str, facts: dict[str, Any]) -> Device:
    """Builds one device from its table, every fact present and sourced."""
    where = f"{file}: device '{name}'"
    unknown = sorted(set(facts) - _FACTS)
    if unknown:
        raise InputError(f"{where}: unknown fact '{unknown[0]}'; known are {', '.join(sorted(_FACTS))}.")
    missing = sorted(_FACTS - set(facts) - _OPTIONAL_FACTS)
    if missing:
        raise InputError(f"{where}: fact '{missing[0]}' is missing; give it as {{ value, source }}.")
    for fact, entry in facts.items():
        if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not entry["source"]:
            raise InputError(f"{where}: fact '{fact}' is {entry!r}; needed is {{ value, source }}.")
    values = {fact: entry["value"] for fact, entry in facts.items()}
    return Device(
        name=name,
        isa="x86" if values["triple"].startswith("x86_64") else "arm",
        sources=tuple((fact, entry["source"]) for fact, entry in facts.items()),
        **{
            **values,
            "features": tuple(values["features"]),
            "flags": frozenset(values["flags"]),
            "clock_hz": values["clock_hz"] or None,
            "emulator": values["emulator"] or None,
            "emulator_cpu": values["emulator_cpu"] or None,
        },
    )


def missing_flags(device: Device) -> list[str]:
    """Says what this machine lacks to run programs built for `device`.

    Args:
        device: Any device.

    Returns:
        Names of missing extensions, or the machine that is needed; empty where the device runs here.
    """
    machine = device.triple.split("-", maxsplit=1)[0]
    if machine != platform.machine():
        return [machine]
    return sorted(device.flags - host_flags())


def reach(device: Device) -> Reach:
    """Says how programs for a device run on this machine, and what that lacks.

    Args:
        device: Any device.

    Returns:
        Method and what is missing.
    """
    missing = tuple(missing_flags(device))
    if not missing or device.emulator is None:
        return Reach("native", missing)
    emulator = str(emulated_here(device).emulator)
    if _is_installed(emulator):
        return Reach("emulated")
    return Reach("emulated", (emulator,), "pip install unicorn" if emulator == UNICORN else "apt-get install qemu-user")


def emulated_here(device: Device) -> Device:
    """Gives a device with the emulator that runs its programs on this machine.

    Args:
        device: Any device.

    Returns:
        The same, in unicorn with the cpu that this knows where its own emulator is missing and unicorn can stand in.
    """
    if device.emulator is None or device.unicorn_cpu is None or _is_installed(device.emulator) or not _is_installed(UNICORN):
        return device
    return replace(device, emulator=UNICORN, emulator_cpu=device.unicorn_cpu)


def _is_installed(emulator: str) -> bool:
    """Whether an emulator is there."""
    return (importlib.util.find_spec(UNICORN) if emulator == UNICORN else shutil.which(emulator)) is not None


@cache
def host_flags() -> frozenset[str]:
    """Reads the extensions that every cpu of this machine reports, as /proc/cpuinfo names them."""
    lists = [frozenset(cpu.get("flags", cpu.get("Features", "")).split()) for cpu in _read_cpuinfo(Path("/proc/cpuinfo"))]
    return frozenset.intersection(*lists) if lists else frozenset()


@cache
def host_processor() -> str | None:
    """Reads what the processor of this machine calls itself; None where /proc/cpuinfo has no name for it."""
    named = (cpu.get("model name") for cpu in _read_cpuinfo(Path("/proc/cpuinfo")))
    return next((name for name in named if name), None)


@cache
def detect() -> Device:
    """Detects this machine.

    Returns:
        The device `host`.
    """
    return describe_machine(
        machine=platform.machine(),
        cpus=_read_cpuinfo(Path("/proc/cpuinfo")),
        cpu_folder=Path("/sys/devices/system/cpu"),
        allowed=frozenset(os.sched_getaffinity(0)),
    )


def describe_machine(*, machine: str, cpus: list[dict[str, str]], cpu_folder: Path, allowed: frozenset[int]) -> Device:
    """Makes the device `host` from what a machine says about itself.

    Args:
        machine: `x86_64` or `aarch64`.
        cpus: Entries of /proc/cpuinfo, one a logical cpu.
        cpu_folder: /sys/devices/system/cpu, for caches and topology.
        allowed: Logical cpus that the process may use.

    Returns:
        The device.

    Raises:
        InputError: sepwise knows nothing of the machine's instruction set.
    """
    if machine not in ("x86_64", "aarch64"):
        raise InputError(f"Target 'host': this machine is {machine}; known are x86_64 and aarch64. Name a target.")
    levels = load(FACTS_FILE)
    if machine == "x86_64":
        core = _recognise_x86(cpus)
        wide = core.flags >= _AVX512_FLAGS
        lanes = 16 if wide else 8 if core.flags >= _AVX2_FLAGS else 4
        registers = 32 if wide else 16
        base = levels["x86-64-v4" if wide else "x86-64-v3" if lanes == 8 else "x86-64-v2"]
    else:
        core = _recognise_arm(cpus)
        lanes, registers = 4, 32
        base = levels["cortex-a72"]
    caches = _read_caches(cpu_folder / f"cpu{min(allowed)}" / "cache")
    origins = dict.fromkeys(_FACTS, f"detected: {core.cpu}") | dict.fromkeys(_CORE_FACTS, core.origin)
    cache_origin = "detected: sysfs" if caches else f"not reported, taken from {base.name}"
    origins |= dict.fromkeys(("l1d_bytes", "l2_bytes", "l3_bytes"), cache_origin)
    return Device(
        name=HOST,
        triple=f"{machine}-unknown-linux-gnu",
        cpu=core.cpu,
        features=core.features,
        flags=core.flags,
        isa=base.isa,
        lanes=lanes,
        vector_registers=registers,
        flushes_subnormals=base.flushes_subnormals,
        cores=len(distinct_cores(cpu_folder, allowed)),
        l1d_bytes=caches.get(1, base.l1d_bytes),
        l2_bytes=caches.get(2, base.l2_bytes),
        l3_bytes=caches.get(3, 0) if caches else base.l3_bytes,
        clock_hz=None,
        emulator=None,
        emulator_cpu=None,
        zig_target=f"{machine}-freestanding-none",
        zig_cpu=base.zig_cpu,
        sources=tuple(sorted(origins.items())),
        **core.facts,
    )


def distinct_cores(cpu_folder: Path, allowed: frozenset[int]) -> list[int]:
    """Picks one logical cpu of each physical core.

    Args:
        cpu_folder: /sys/devices/system/cpu.
        allowed: Logical cpus to pick from.

    Returns:
        The lowest allowed cpu of each core, ascending; every allowed cpu where the topology is not reported.
    """
    seen: dict[str, int] = {}
    for cpu in sorted(allowed):
        siblings = cpu_folder / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        seen.setdefault(siblings.read_text().strip() if siblings.exists() else str(cpu), cpu)
    return list(seen.values())


def _read_cpuinfo(path: Path) -> list[dict[str, str]]:
    """Reads one dictionary a logical cpu."""
    if not path.exists():
        return []
    entries = []
    for block in path.read_text().split("\n\n"):
        pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
        entry = {key.strip(): value.strip() for key, value in pairs}
        if "processor" in entry:
            entries.append(entry)
    return entries


def _read_caches(folder: Path) -> dict[int, int]:
    """Reads bytes of the data (or unified) cache of each level."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    caches = {}
    for index in sorted(folder.glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        size = (index / "size").read_text().strip()
        caches[int((index / "level").read_text())] = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
    return caches


@cache
def _cores(kind: str) -> list[dict[str, Any]]:
    """Reads the table of recognisable cores."""
    with FACTS_FILE.open("rb") as file:
        cores: list[dict[str, Any]] = tomllib.load(file)[kind]
    return cores


def _common_flags(cpus: list[dict[str, str]], key: str) -> frozenset[str]:
    """Intersects the flags of all cpus."""
    lists = [frozenset(cpu.get(key, "").split()) for cpu in cpus]
    return frozenset.intersection(*lists) if lists else frozenset()


def _recognise_x86(cpus: list[dict[str, str]]) -> _Core:
    """Recognises the core of an x86 machine, or else the level of its flags; below the lowest level, that level's facts."""
    present = _common_flags(cpus, "flags")
    levels = load(FACTS_FILE)
    level = next((levels[name] for name in _X86_LEVELS if levels[name].flags <= present), None)
    if level is None:
        return _unrecognised("x86-64", frozenset(), (), levels[_X86_LEVELS[-1]])
    first = cpus[0]
    model = int(first.get("model", -1))
    executable = [
        core
        for core in _cores("x86_core")
        if first.get("vendor_id") == core["vendor"]
        and int(first.get("cpu family", -1)) == core["family"]
        and present >= set(core["flags"])
    ]
    for place, core in enumerate(executable):
        if any(low <= model <= high for low, high in zip(core["models"][::2], core["models"][1::2], strict=True)):
            # Some hypervisors report the model of an older core; the flags say what can be executed. The newest stand first: of
            # this core and those before it, the oldest that has the flags of them all.
            told = {flag for newer in executable[:place] for flag in newer["flags"]} | set(core["flags"])
            core = next((other for other in executable[place::-1] if told - level.flags <= set(other["flags"])), core)
            return _recognised(core, level.flags | set(core["flags"]))
    return _unrecognised(level.cpu, level.flags, (), level)


def _recognise_arm(cpus: list[dict[str, str]]) -> _Core:
    """Recognises the core of an aarch64 machine whose cores are all alike, or else takes the Cortex-A72's facts."""
    present = _common_flags(cpus, "Features")
    parts = {(int(cpu.get("CPU implementer", "0"), 0), int(cpu.get("CPU part", "0"), 0)) for cpu in cpus}
    if len(parts) == 1:
        for core in _cores("arm_core"):
            if (core["implementer"], core["part"]) not in parts:
                continue
            if (name := core.get("device")) is not None:
                device = load(FACTS_FILE)[name]
                if present >= device.flags:
                    return _Core(device.cpu, device.flags, device.features, _core_facts(device), f"detected: {device.cpu}")
            elif present >= set(core["flags"]):
                return _recognised(core, frozenset(core["flags"]))
    used = {flag: feature for flag, feature in _ARM_FEATURES.items() if flag in present}
    features = tuple(used.values())
    return _unrecognised("generic", frozenset({"asimd", *used}), features, load(FACTS_FILE)["cortex-a72"])


def _recognised(core: dict[str, Any], flags: frozenset[str]) -> _Core:
    """The core of a table of recognisable ones."""
    facts = {fact: core[fact] for fact in _CORE_FACTS}
    return _Core(core["cpu"], flags, (), facts, f"detected: {core['cpu']}")


def _unrecognised(cpu: str, flags: frozenset[str], features: tuple[str, ...], base: Device) -> _Core:
    """A core of which only the flags are known, with the facts of a device that stands for it."""
    return _Core(cpu, flags, features, _core_facts(base), f"core not recognised, taken from {base.name}")


def _core_facts(device: Device) -> dict[str, Any]:
    """The facts of a device that are its core's."""
    return {fact: getattr(device, fact) for fact in (*_CORE_FACTS, *_SCALABLE_FACTS)}
