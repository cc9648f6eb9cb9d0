"""`sepwise targets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sepwise.console import number, print_json, print_table
from sepwise.options import AsJson

if TYPE_CHECKING:
    from sepwise.api import TargetFacts

__all__ = ["targets"]

_WIDTH = 240
"""Characters in which each target has one line, as grep wants it."""


def targets(as_json: AsJson = False) -> None:
    """List what --target can name."""
    from sepwise import api

    found = api.targets()
    if as_json:
        print_json({"targets": [target.to_json() for target in found]})
        return
    rows = [[spell(target) for spell in _COLUMNS.values()] for target in found]
    print_table("Targets", list(_COLUMNS), rows, width=_WIDTH)
    lacking: dict[tuple[str, str, str | None], list[str]] = {}
    for target in found:
        if target.missing:
            lacking.setdefault(("", ", ".join(target.missing), target.install), []).append(target.name)
    for target in found:
        if target.estimate_install:
            lacking.setdefault(("estimated cycles of ", "llvm-mca", target.estimate_install), []).append(target.name)
    for (use, missing, install), names in lacking.items():
        remedy = f"install it with `{install}`" if install else "nothing installs it"
        print(f"Missing here for {use}{', '.join(names)}: {missing}; {remedy}.")


def _vectors(target: TargetFacts) -> str:
    """Registers and their bits; behind them those of a scalable vector, on the machine that stands for the target."""
    fixed = f"{target.vector_registers} x {32 * target.lanes} bit"
    return f"{fixed}, SVE {8 * target.scalable_bytes}" if target.scalable_bytes else fixed


def _memory(nbytes: int | None) -> str:
    """A memory of a core without an operating system."""
    return "-" if nbytes is None else number(nbytes >> 10)


def _runs(target: TargetFacts) -> str:
    """How programs for a target run on this machine, under its emulator with the cpu that this knows."""
    if target.missing:
        return "not here"
    if target.method == "native":
        return "native"
    return f"{target.emulator} -cpu {target.emulator_cpu}{' (a relative)' if target.stands_in else ''}"


_COLUMNS: Final[dict[str, Callable[[TargetFacts], str]]] = {
    "name": lambda t: t.name,
    "cpu": lambda t: t.cpu,
    "isa": lambda t: t.isa,
    "vectors": _vectors,
    "cores": lambda t: number(t.cores),
    "GHz": lambda t: "-" if t.clock_hz is None else f"{t.clock_hz / 1e9:.3g}",
    "L1d KiB": lambda t: number(t.l1d_bytes >> 10),
    "L2 KiB": lambda t: number(t.l2_bytes >> 10),
    "L3 KiB": lambda t: number(t.l3_bytes >> 10),
    "flash KiB": lambda t: _memory(t.flash_bytes),
    "RAM KiB": lambda t: _memory(t.ram_bytes),
    "runs": _runs,
}
