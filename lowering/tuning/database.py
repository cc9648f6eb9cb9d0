"""The database: one folder for each device, in MetaSchedule's JSON format, with the evidence beside.

    DB/<device>-<digest>/
      database_workload.json         one line a workload: its hash and its PrimFunc, without a tile
      database_tuning_record.json    one line a kernel that was verified: workload, trace, time, target, arguments
      evidence.jsonl                 one line for what was tried, for each record, and for each verdict
      device.json                    the facts of the device

MetaSchedule's `JSONDatabase` loads the first two (`work_dir=`). A trace says the strategy and the sizes of its tile as
annotations of the PrimFunc; replayed, they are looked up among what the strategy declares. That of a chain (its workload begins
with `chain`) says how many stages each of its kernels computes, under the strategy `structure`. A record alone decides nothing:
what compilations use is a verdict of the play-off, which names its record and the conditions under which it holds: device,
versions, sources, threads, and whether times were measured or estimated. Verdicts of other conditions are refused. Of several
that hold for a workload, which two databases may have had before they were merged, the latest counts, but what was finished
goes before what was not.

Files are appended to and never rewritten. A line is written at once and synced, under an advisory lock, in an order in which each
names only what is there already; whoever is killed between leaves a line that nothing names, or half a line, which readers leave
out and the next writer cuts off. Where the disk is full, what was written of a line is taken back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from sepwise.lowering.artifact import device_from_json, device_to_json, own_version
from sepwise.lowering.core_model import core_model
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.intervals import Interval, Times
from sepwise.lowering.tuning.sources import own_sources
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from sepwise.lowering.device import Device
    from sepwise.lowering.selection import Records
    from sepwise.lowering.tuning.timing import Method, Place

__all__ = [
    "Conditions",
    "Database",
    "Evidence",
    "Findings",
    "Verdict",
    "find_conditions",
    "find_neighbours",
    "list_folders",
    "read_picks",
    "read_records",
    "spell_refused",
]

WORKLOADS, RECORDS, EVIDENCE, DEVICE, LOCK = (
    "database_workload.json",
    "database_tuning_record.json",
    "evidence.jsonl",
    "device.json",
    "lock",
)

ANNOTATION = "sepwise."
"""What the keys of annotations begin with; behind it `strategy`, `method`, `runner`, or `tile.` and a field of the tile."""

_NO_MATTER = (
    "name",
    "cores",
    "clock_hz",
    "emulator",
    "emulator_cpu",
    "unicorn_cpu",
    "zig_target",
    "zig_cpu",
    "flash_bytes",
    "ram_bytes",
)
"""Facts of a device that change neither code nor what it takes."""

_COMPARED = (
    "lanes",
    "vector_registers",
    "fma_ports",
    "load_ports",
    "issue_width",
    "fma_latency_cycles",
    "l1d_bytes",
    "l2_bytes",
    "l2_bytes_per_cycle",
    "memory_bytes_per_cycle",
)
"""Facts whose ratios say how near two devices are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what records hold.

    Attributes:
        device: Digest of the device's facts.
        sepwise: Version of this package, whose strategies schedule.
        sources: Digest of the sources that do (see `sources`), as they may change within a version.
        tvm: Version of TVM, which compiles.
        threads: Workers.
        method: `measured` or `estimated`.
    """

    device: str
    sepwise: str
    sources: str
    tvm: str
    threads: int
    method: Method


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verified candidate took.

    Attributes:
        pick: The candidate.
        record: Index of its record.
        times: Its samples beside the default's.
        interval: Its time over the default's.
        worst_ratio: Largest error over its bound, from the check of the kernel.
        place: Where it ran: `native`, `remote` or `emulated`.
        machine: The processor as it names itself there, None where nothing does.
    """

    pick: Pick
    record: int
    times: Times
    interval: Interval
    worst_ratio: float
    place: Place
    machine: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to compute a workload.

    Attributes:
        pick: The candidate, the default where nothing is faster beyond the noise.
        record: Index of its record.
        tuned: Whether it is another one than the default.
        times: Its samples beside the default's, in the network.
        interval: Its time over the default's, in the network.
        finished: Whether nothing is left to try.
        machine: The processor as it names itself, None where nothing does.
        calls: How many calls the times are of, those of the network that was tuned.
    """

    pick: Pick
    record: int
    tuned: bool
    times: Times
    interval: Interval
    finished: bool
    machine: str | None
    calls: int = 1


@dataclass(slots=True)
class Findings:
    """What a folder holds under some conditions, by workload.

    Attributes:
        tried: Candidates that were timed or refused.
        records: Evidence of those that were verified, by candidate.
        verdicts: The one that counts of each workload.
        refused: Workloads that have verdicts which do not hold, by the reason.
    """

    tried: dict[str, set[Pick]] = field(default_factory=dict)
    records: dict[str, dict[Pick, Evidence]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused: dict[str, set[str]] = field(default_factory=dict)


def find_conditions(device: Device, threads: int, method: Method) -> Conditions:
    """Gives the conditions of records that are made now.

    Args:
        device: The target.
        threads: Workers.
        method: How times come about.

    Returns:
        The conditions.
    """
    return Conditions(_digest(device), own_version(), own_sources(), version("apache-tvm"), threads, method)


def _digest(device: Device) -> str:
    """Hashes what matters of a device."""
    facts = {fact: value for fact, value in device_to_json(device).items() if fact not in _NO_MATTER}
    core = core_model(device)
    facts["core"] = None if core is None else {fact: value for fact, value in asdict(core).items() if fact != "sources"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Database:
    """The folder of one device."""

    def __init__(self, root: Path, device: Device) -> None:
        """Notes where it is; nothing is read or made.

        Args:
            root: The folder of all devices.
            device: The device.
        """
        self.root = root
        self.device = device
        self.folder = root / f"{device.name}-{_digest(device)}"

    def create(self) -> None:
        """Makes the folder, where it is not there, and says in it what device it is for.

        Raises:
            InputError: It cannot be made, or is another device's.
        """
        place = self.folder / DEVICE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                temporary = place.with_name(f".{DEVICE}.{os.getpid()}")
                temporary.write_text(json.dumps(device_to_json(self.device), indent=1) + "\n")
                temporary.replace(place)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); choose another database.") from error
        found = _read_device(self.folder)
        if found is None or _digest(found) != _digest(self.device):
            raise InputError(f"{self.folder}: its {DEVICE} describes another device than '{self.device.name}'; remove it.")

    # Reading ----------------------------------------------------------------------------------------------------------

    def read(self, conditions: Conditions) -> Findings:
        """Reads what holds under some conditions.

        Args:
            conditions: Which.

        Returns:
            What was found, and why the rest does not hold.
        """
        findings = Findings()
        ranks: dict[str, tuple[bool, str]] = {}
        wanted = asdict(conditions)
        with self._locked(fcntl.LOCK_SH):
            lines = _read_lines(self.folder / EVIDENCE)
            traces = [_read_pick(line) for line in _read_lines(self.folder / RECORDS)]
        for number, text in enumerate(lines, 1):
            try:
                line = _parse(text)
                reason = _differs(line["conditions"], wanted)
                if reason is None:
                    _take(findings, line, traces, ranks)
                elif line["kind"] == "verdict":
                    findings.refused.setdefault(reason, set()).add(line["workload"])
            except (ValueError, KeyError, TypeError, IndexError) as error:
                place = self.folder / EVIDENCE
                logger.warning("%s, line %d: is not what was written there (%r); left out.", place, number, error)
        return findings

    # Writing ----------------------------------------------------------------------------------------------------------

    def add_tried(
        self, conditions: Conditions, workload: str, pick: Pick, interval: Interval | None, rounds: int, refused: str | None
    ) -> None:
        """Notes a candidate that was timed, or refused.

        Args:
            conditions: Under what.
            workload: Key of the workload.
            pick: The candidate.
            interval: Its time over that of the best until then, None where it could not be timed.
            rounds: Samples of each.
            refused: Why it was refused, None where it was not.

        Raises:
            InputError: The file cannot be written.
        """
        said = {} if interval is None else {**asdict(interval), "rounds": rounds}
        said |= {} if refused is None else {"refused": refused}
        self._add(conditions, {"kind": "tried", "workload": workload, **_spell(pick), **said})

    def add_record(
        self, conditions: Conditions, workload: str, lines: tuple[str, Sequence[object]], evidence: Evidence
    ) -> Evidence:
        """Adds the record of a candidate that was verified.

        Args:
            conditions: Under what it was timed.
            workload: Key of the workload.
            lines: Those of MetaSchedule: that of the workload, and what is behind its index in that of the record.
            evidence: Its times; the index of the record is found out here.

        Returns:
            The evidence with the index.

        Raises:
            InputError: A file cannot be written.
        """
        first, behind = lines
        with self._locked(fcntl.LOCK_EX):
            hashed = _hash_of(first)
            known = [_hash_of(line) for line in self._repair(WORKLOADS)]
            if hashed not in known:
                self._append(WORKLOADS, first)
                known.append(hashed)
            index = len(self._repair(RECORDS))
            self._append(RECORDS, json.dumps([known.index(hashed), behind], separators=(",", ":")))
            found = replace(evidence, record=index)
            self._repair(EVIDENCE)
            self._append(EVIDENCE, _line(conditions, {"kind": "record", "workload": workload, **_evidence_to_json(found)}))
        return found

    def add_verdict(self, conditions: Conditions, workload: str, verdict: Verdict) -> None:
        """Adds a verdict.

        Args:
            conditions: Under what it holds.
            workload: Key of the workload.
            verdict: What is to compute it.

        Raises:
            InputError: The file cannot be written.
        """
        own = {"tuned": verdict.tuned, "finished": verdict.finished, "calls": verdict.calls}
        self._add(conditions, {"kind": "verdict", "workload": workload, **_evidence_to_json(verdict), **own})

    def merge(self, other: Database) -> Counter[str]:
        """Adds what another folder of the same device has and this one has not, under whatever conditions.

        Its verdicts for the default are left out where this one has found something faster.

        Args:
            other: The folder; it is left as it is.

        Returns:
            Lines that were added, by kind: `tried`, `record` and `verdict`.

        Raises:
            InputError: A file cannot be written.
        """
        with other._locked(fcntl.LOCK_SH):
            workloads, records, lines = (_read_lines(other.folder / name) for name in (WORKLOADS, RECORDS, EVIDENCE))
        added: Counter[str] = Counter()
        with self._locked(fcntl.LOCK_EX):
            known = [_hash_of(line) for line in self._repair(WORKLOADS)]
            count = len(self._repair(RECORDS))
            there = {_identity(line): line for line in map(_parse, self._repair(EVIDENCE))}
            won = {_question(line): line["tuned"] for line in there.values() if line.get("kind") == "verdict"}
            moved: dict[int, int] = {}
            for number, line in enumerate(map(_parse, lines), 1):
                if not line:
                    logger.warning("%s, line %d: is not what was written there; left out.", other.folder / EVIDENCE, number)
                    continue
                identity = _identity(line)
                if identity in there:
                    if "record" in line:
                        moved.setdefault(line["record"], there[identity]["record"])
                    continue
                if line["kind"] == "verdict" and not line["tuned"] and won.get(_question(line)):
                    continue  # what another has not found takes nothing away
                if "record" in line and line["record"] not in moved:
                    try:
                        place, behind = json.loads(records[line["record"]])
                        workload = workloads[place]
                    except (ValueError, TypeError, IndexError):
                        logger.warning("%s: record %d is damaged; left out.", other.folder, line["record"])
                        continue
                    hashed = _hash_of(workload)
                    if hashed is None:
                        logger.warning("%s: workload %d is damaged; its records are left out.", other.folder, place)
                        continue
                    if hashed not in known:
                        self._append(WORKLOADS, workload)
                        known.append(hashed)
                    moved[line["record"]] = count
                    self._append(RECORDS, json.dumps([known.index(hashed), behind], separators=(",", ":")))
                    count += 1
                if "record" in line:
                    line["record"] = moved[line["record"]]
                self._append(EVIDENCE, json.dumps(line, separators=(",", ":")))
                added[line["kind"]] += 1
                there[identity] = line
        return added

    def _add(self, conditions: Conditions, line: Mapping[str, Any]) -> None:
        """Adds a line of evidence."""
        with self._locked(fcntl.LOCK_EX):
            self._repair(EVIDENCE)
            self._append(EVIDENCE, _line(conditions, line))

    def _append(self, name: str, line: str) -> None:
        """Writes a line at once, and syncs it; takes back what was written of it where there is no room."""
        path, data = self.folder / name, f"{line}\n".encode()
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another database.") from error
        try:
            size = os.fstat(file).st_size
            try:
                if os.write(file, data) < len(data):
                    raise _no_room(path)
                os.fsync(file)
            except (OSError, InputError) as error:
                os.ftruncate(file, size)
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: {error.strerror}; all lines before are kept. Free some space.") from error
        finally:
            os.close(file)

    def _repair(self, name: str) -> list[str]:
        """Cuts off half a line at the end, and gives the lines."""
        path = self.folder / name
        lines = _read_lines(path)
        if path.exists() and (rest := path.stat().st_size - path.read_bytes().rfind(b"\n") - 1):
            os.truncate(path, path.stat().st_size - rest)
        return lines

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Holds the folder's lock; readers of a folder that they may not write to, or that is not there, do without."""
        try:
            file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if kind == fcntl.LOCK_SH:
                yield
                return
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); choose another database.") from error
        try:
            fcntl.flock(file, kind)
            yield
        finally:
            os.close(file)


def read_records(root: Path, device: Device, threads: int) -> Records:
    """Reads what compilations are to use of a database.

    Args:
        root: The folder of all devices.
        device: The target.
        threads: Workers.

    Returns:
        What to compute workloads with: what was measured for the device, and what was estimated where nothing was.

    Raises:
        InputError: There is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: is no folder; `sepwise tune MODEL --database {root}` makes a database there.")
    database = Database(root, device)
    found: dict[str, Pick] = {}
    refused: dict[str, set[str]] = {}
    methods: tuple[Method, ...] = ("estimated", "measured")
    for method in methods:
        findings = database.read(find_conditions(device, threads, method))
        found |= {workload: verdict.pick for workload, verdict in findings.verdicts.items()}
        refused |= findings.refused
    reasons = spell_refused(refused, found)
    if found:
        if reasons:
            logger.warning("%s: not used for '%s' with %d thread(s): %s.", root, device.name, threads, "; ".join(reasons))
        return found
    folders = list_folders(root)
    others = [name for name in folders if name != database.folder.name]
    reasons += [f"others are of other devices ({', '.join(others)})"] if others else []
    said = "; ".join(reasons) or "it is empty"
    logger.warning("%s: no record holds for '%s' with %d thread(s): %s.", root, device.name, threads, said)
    return found


def spell_refused(refused: Mapping[str, set[str]], instead: Collection[str] = ()) -> list[str]:
    """Says which verdicts do not hold, and why.

    Args:
        refused: Their workloads, by the reason.
        instead: Workloads for which another verdict holds; they are not counted.

    Returns:
        `3 records are for 2 thread(s)`, for each reason.
    """
    counts = {reason: len(workloads.difference(instead)) for reason, workloads in refused.items()}
    return [f"{count} record{' is' if count == 1 else 's are'} {reason}" for reason, count in counts.items() if count]


def list_folders(root: Path) -> list[str]:
    """Lists the folders of devices that a database has.

    Args:
        root: The folder of all devices.

    Returns:
        Their names, sorted; none where it is no folder.
    """
    return sorted(folder.name for folder in root.iterdir() if (folder / DEVICE).is_file()) if root.is_dir() else []


def find_neighbours(roots: Sequence[Path], device: Device) -> list[Database]:
    """Finds folders of other devices whose verdicts may be worth a trial, the nearest first, such as one of equal facts.

    Args:
        roots: Databases.
        device: The target.

    Returns:
        Folders of devices of the same instruction set and lanes.
    """
    found: list[tuple[float, Database]] = []
    for root in roots:
        own = Database(root, device).folder.name
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            other = _read_device(folder)
            if other is None or (other.isa, other.lanes) != (device.isa, device.lanes) or folder.name == own:
                continue
            neighbour = Database(root, other)
            neighbour.folder = folder
            found.append((_distance(device, other), neighbour))
    return [neighbour for _, neighbour in sorted(found, key=lambda pair: pair[0])]


def read_picks(database: Database) -> dict[str, list[Pick]]:
    """Reads what won on a device, whatever the conditions: candidates for other devices and conditions.

    Args:
        database: The device's folder.

    Returns:
        By workload, the last verdict first.
    """
    found: dict[str, list[Pick]] = {}
    for text in _read_lines(database.folder / EVIDENCE):
        line = _parse(text)
        if line.get("kind") == "verdict" and line["tuned"]:
            found.setdefault(line["workload"], []).insert(0, _pick(line))
    return found


# Lines ------------------------------------------------------------------------------------------------------------------

_TRIED: Final[dict[str, Any]] = {"workload": str, "conditions": dict, "strategy": str, "sizes": dict}
_NUMBERS: Final = ("median", "default_median", "ratio", "low", "high")  # those of all versions
_RECORDED: Final = {**_TRIED, "record": int, "rounds": int, **dict.fromkeys(_NUMBERS, int | float)}
_FIELDS: Final = {
    "tried": _TRIED,
    "record": {**_RECORDED, "worst_ratio": int | float, "place": str},
    "verdict": {**_RECORDED, "tuned": bool, "finished": bool},
}
"""What a line of evidence holds, by its kind."""


def _read_lines(path: Path) -> list[str]:
    """Reads whole lines; half a line at the end is left out."""
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        logger.warning("%s: its last line is cut off, as of a process that was killed; it is left out.", path)
    return [line.decode(errors="replace") for line in lines]


def _hash_of(line: str) -> str | None:
    """Reads the hash of a workload; None where the line is damaged."""
    try:
        return str(json.loads(line)[0])
    except (ValueError, TypeError, IndexError):
        return None


def _parse(line: str) -> dict[str, Any]:
    """Reads a line of evidence; empty where it is damaged."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    fields = _FIELDS.get(str(found.get("kind"))) if isinstance(found, dict) else None
    return found if fields is not None and all(isinstance(found.get(name), kind) for name, kind in fields.items()) else {}


def _line(conditions: Conditions, line: Mapping[str, Any]) -> str:
    """Writes a line of evidence."""
    date = datetime.now(UTC).isoformat(timespec="microseconds")  # by which verdicts of two databases are ordered
    return json.dumps({**line, "conditions": asdict(conditions), "date": date}, separators=(",", ":"))


def _take(
    findings: Findings, line: Mapping[str, Any], traces: Sequence[Pick | None], ranks: dict[str, tuple[bool, str]]
) -> None:
    """Adds a line of evidence to what was found; `ranks` says of each workload how much the verdict counts that it has."""
    workload = line["workload"]
    if line["kind"] == "tried":
        findings.tried.setdefault(workload, set()).add(_pick(line))
        return
    pick = _pick(line)
    if traces[line["record"]] != pick:
        raise ValueError(f"record {line['record']} is of another kernel")
    times = Times(**{each.name: line[each.name] for each in fields(Times)})
    interval = Interval(line["ratio"], line["low"], line["high"], line["least_gain"])
    record, machine = line["record"], line["machine"]
    if line["kind"] == "record":
        known = findings.records.setdefault(workload, {})
        known[pick] = Evidence(pick, record, times, interval, line["worst_ratio"], line["place"], machine)
    elif line["kind"] == "verdict":
        rank = (line["finished"], line["date"])
        if rank >= ranks.get(workload, rank):
            ranks[workload] = rank
            findings.verdicts[workload] = Verdict(
                pick, record, line["tuned"], times, interval, line["finished"], machine, line["calls"]
            )


def _evidence_to_json(evidence: Evidence | Verdict) -> dict[str, Any]:
    """Writes what records and verdicts have in common."""
    known = {"worst_ratio": evidence.worst_ratio, "place": evidence.place} if isinstance(evidence, Evidence) else {}
    common = {"record": evidence.record, "machine": evidence.machine}
    return {**_spell(evidence.pick), **asdict(evidence.interval), **asdict(evidence.times), **common, **known}


def _spell(pick: Pick) -> dict[str, Any]:
    """Writes a candidate."""
    return {"strategy": pick.strategy, "sizes": dict(pick.sizes)}


def _pick(line: Mapping[str, Any]) -> Pick:
    """Reads a candidate."""
    return Pick(line["strategy"], tuple(line["sizes"].items()))


def _read_pick(line: str) -> Pick | None:
    """Reads the candidate out of the trace of a record; None where it is damaged."""
    try:
        (_, ((instructions, _), *_)) = json.loads(line)
        said = {attributes[0]: inputs[1] for kind, inputs, attributes, _ in instructions if kind == "Annotate"}
        strategy = json.loads(said[f"{ANNOTATION}strategy"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    tile = f"{ANNOTATION}tile."
    return Pick(strategy, tuple((key.removeprefix(tile), int(size)) for key, size in said.items() if key.startswith(tile)))


def _differs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Says in what conditions differ, None where they do not; what was estimated or measured is a matter of its own."""
    if found["device"] != wanted["device"]:
        return "of another device"
    for package in ("sepwise", "tvm"):
        if found[package] != wanted[package]:
            return f"of {package} {found[package]}, this is {wanted[package]}"
    if (sources := found.get("sources", "not recorded")) != wanted["sources"]:
        return f"of other sources of sepwise {found['sepwise']} ({sources}), these are {wanted['sources']}"
    if found["threads"] != wanted["threads"]:
        return f"for {found['threads']} thread(s)"
    return None if found["method"] == wanted["method"] else f"{found['method']}, not {wanted['method']}"


def _identity(line: Mapping[str, Any]) -> str:
    """What tells lines of evidence apart, in whichever folder they are."""
    return json.dumps({key: value for key, value in line.items() if key != "record"}, sort_keys=True)


def _question(line: Mapping[str, Any]) -> str:
    """What verdicts answer: the workload and the conditions."""
    return json.dumps([line["workload"], line["conditions"]], sort_keys=True)


def _read_device(folder: Path) -> Device | None:
    """Reads the device that a folder is for; None where it is no folder of a device."""
    try:
        return device_from_json(json.loads((folder / DEVICE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _distance(one: Device, other: Device) -> float:
    """How far two devices are apart: the sum of the octaves between their facts."""
    return sum(abs(math.log2(max(getattr(one, fact), 1e-3) / max(getattr(other, fact), 1e-3))) for fact in _COMPARED)


def _no_room(path: Path) -> InputError:
    """Says that the disk is full."""
    return InputError(f"{path}: no space left on the device; all lines before are kept. Free some space.")
