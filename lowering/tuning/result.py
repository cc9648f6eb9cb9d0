"""What tuning tells: how far it has come, and what it has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepwise.lowering.tuning.search import Wrong

__all__ = ["KernelResult", "Progress", "Tuning"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a tuning has come.

    Attributes:
        doing: What is done, or the kernel that was tried last.
        trials: Candidates that were timed or refused until then.
        left: Candidates that are tried if none of them brings anything.
        seconds: Since the start.
        seconds_left: Until the end of the play-off, estimated from the pace, or from the time that was given where that is
            less; None where nothing tells yet.
        default: Time of the network with the default kernels, in the timer's unit; None where it was not timed yet.
        current: The same with the best ones, as far as they were timed by themselves.
        unit: `us` or `cycles`.
    """

    doing: str
    trials: int
    left: int
    seconds: float
    seconds_left: float | None
    default: float | None
    current: float | None
    unit: str


@dataclass(frozen=True, slots=True)
class KernelResult:
    """What tuning has found for a workload, or for the structure of a chain.

    Attributes:
        name: Its first kernel.
        calls: Kernels of the network that compute it.
        workload: Its key.
        default: What the model picks.
        chosen: What computes it now.
        tuned: Whether that is another one.
        default_time: Time of all its calls in the network with the default, in microseconds or estimated cycles.
        tuned_time: The same with what was chosen.
        ratio: Of both, the median over rounds in which they took turns.
        low: The ratio is surely no less.
        high: It is surely no more.
        space: Candidates that the strategies declare, or structures of a chain; the default is one of them.
        tried: Those beside the default that were timed or refused, now or before.
        finished: Whether nothing is left to try.
    """

    name: str
    calls: int
    workload: str
    default: str
    chosen: str
    tuned: bool
    default_time: float
    tuned_time: float
    ratio: float
    low: float
    high: float
    space: int
    tried: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `sepwise tune` reports.

    Attributes:
        model: The network's name.
        target: The device.
        method: `measured` or `estimated`.
        machine: The processor that it was timed on as it names itself, or what emulates it; None where nothing tells.
        search: How candidates were chosen: `predicted` or `evolutionary`.
        runner: `native`, `remote` or `emulated`.
        unit: `us` or `cycles`.
        threads: Workers.
        database: The folder of the device.
        trials: Candidates that were timed or refused.
        records: Records that were added.
        seconds: Time that it took.
        default_time: Time of the network's kernels with the default, None where nothing was done.
        tuned_time: The same as chosen.
        ratio: Of both, the median over rounds in which they took turns; None where nothing was done.
        low: The ratio is surely no less, None where nothing has played.
        high: It is surely no more.
        kernels: By workload, what takes longest first; those that the network has by default.
        structures: By chain of which there is more than one structure: how many of its stages each of its kernels computes.
        wrong: Candidates that were refused, and why.
        history: After each batch the trials until then and the estimated time of the network.
        notes: What is worth saying.
    """

    model: str
    target: str
    method: str
    machine: str | None
    search: str
    runner: str
    unit: str
    threads: int
    database: str
    trials: int
    records: int
    seconds: float
    default_time: float | None
    tuned_time: float | None
    ratio: float | None
    low: float | None
    high: float | None
    kernels: tuple[KernelResult, ...]
    structures: tuple[KernelResult, ...]
    wrong: tuple[Wrong, ...]
    history: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that `sepwise tune --json` prints; times bear their unit in the name."""
        unit = self.unit
        fields = asdict(self)
        for each in (fields, *fields["kernels"], *fields["structures"]):
            each[f"default_{unit}"], each[f"tuned_{unit}"] = each.pop("default_time"), each.pop("tuned_time")
        fields["wrong"] = [{"kernel": each.kernel, "candidate": str(each.pick), "reason": each.reason} for each in self.wrong]
        return fields
