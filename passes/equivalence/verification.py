"""The verdict: all checks of one model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sepwise.passes.equivalence.agreement import Agreement
    from sepwise.passes.equivalence.compare import Check
    from sepwise.passes.equivalence.reproducer import Reproducer
    from sepwise.passes.pipeline import PassReport

__all__ = ["Verification"]


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one model on one target.

    Attributes:
        model: The model's name.
        target: The device's name, None where two files were compared.
        checks: Graph, kernel and model checks; a skipped one counts as not passed.
        against: The second file's name where two were compared.
        passes: What each pass fired on and refused; empty where two files were compared.
        inputs: What each input set was drawn as (see `sample_inputs`), or `given`.
        kernel_inputs: What each kernel was fed: `oracle` for the reference's own tensors on the first input set, and what was
            drawn at the kernel's inputs (see `Stress`); empty where no kernel was run.
        agreement: Whether the network's answers are the reference's, on inputs that were given; no part of the verdict.
        notes: What a reader should know about how the checks were made.
        reproducer: What a failure was narrowed down to, where that was asked for.
    """

    model: str
    target: str | None
    checks: tuple[Check, ...]
    against: str | None = None
    passes: tuple[PassReport, ...] = ()
    inputs: tuple[str, ...] = ()
    kernel_inputs: tuple[str, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    notes: tuple[str, ...] = ()
    reproducer: Reproducer | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst_ratio(self) -> float | None:
        """The largest error relative to its bound, None where some check has no finite ratio."""
        ratios = [check.worst_ratio for check in self.checks if check.status != "skipped"]
        if not ratios or any(ratio is None for ratio in ratios):
            return None
        return max(ratio for ratio in ratios if ratio is not None)

    def save_reproducer(self, folder: Path) -> Verification:
        """Writes the reproducer, and names its folder in the checks whose failure it shows.

        Args:
            folder: Where to write.

        Returns:
            The verdict with the folder in it; itself where there is no reproducer.

        Raises:
            OSError: The folder cannot be written.
        """
        if self.reproducer is None:
            return self
        self.reproducer.save(folder)
        shown = self.reproducer.checks
        checks = (replace(check, reproducer=str(folder)) if check.name in shown else check for check in self.checks)
        return replace(self, checks=tuple(checks), reproducer=replace(self.reproducer, folder=folder))

    def to_json(self) -> dict[str, object]:
        """The fields of the verify JSON."""
        return {
            "model": self.model,
            "target": self.target,
            "passed": self.passed,
            "worst_ratio": self.worst_ratio,
            "checks": [check.to_json() for check in self.checks],
            "against": self.against,
            "passes": [
                {
                    "name": each.name,
                    "fired": each.fired,
                    "refused": [{"node": node, "reason": reason} for node, reason in each.refused],
                }
                for each in self.passes
            ],
            "inputs": list(self.inputs),
            "kernel_inputs": list(self.kernel_inputs),
            "agreement": [each.to_json() for each in self.agreement],
            "notes": list(self.notes),
            "bisection": None if self.reproducer is None else self.reproducer.to_json(),
        }
