"""The profile that `sepwise bench --profile` prints: kernel by kernel, under the names of the user's own nodes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from sepwise.console import number, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["print_kernels", "spell_nodes"]

_LONGEST: Final = 160
"""Characters of the names of one kernel's nodes."""

_WIDTH: Final = 100
"""Characters of a line where it is not a terminal that says how wide it is."""


def spell_nodes(nodes: Sequence[str]) -> str:
    """Spells names so that what neighbours share is written once: `block.0.{conv, norm}, head.conv`.

    Args:
        nodes: Names, whose parts end in dots or slashes.

    Returns:
        As many of them as fit a cell, and how many more there are.
    """
    groups = [(stem, [name[len(stem) :] for name in names]) for stem, names in groupby(nodes, _stem)]
    spelled, shown = "", 0
    for stem, leaves in groups:
        part = stem + (leaves[0] if len(leaves) == 1 else "{" + ", ".join(leaves) + "}")
        if shown and len(spelled) + len(", ") + len(part) > _LONGEST:
            return f"{spelled} and {len(nodes) - shown} more"
        spelled += f", {part}" if shown else part
        shown += len(leaves)
    return spelled


def _stem(name: str) -> str:
    """A name up to its last part."""
    return name[: max(name.rfind("/"), name.rfind(".")) + 1]


def print_kernels(result: Mapping[str, Any]) -> None:
    """Prints a table of the kernels in execution order, their sum beside a whole run, and the roof.

    Args:
        result: What `sepwise bench --json` prints.
    """
    if result["method"] == "emulated":
        _print_counts(result)
    else:
        _print_times(result)
    _print_roof(result["roof"])


def _print_times(result: Mapping[str, Any]) -> None:
    kernels = result["kernels"]
    total_us = sum(kernel["median_us"] for kernel in kernels)
    rows = [
        [
            spell_nodes(kernel["nodes"]) or kernel["name"],
            number(kernel["median_us"]),
            _percent(kernel["median_us"], total_us),
            _rate(kernel["macs"], kernel["median_us"]),
            _percent(kernel["attained"], 1.0),
            kernel["bound"] or "-",
        ]
        for kernel in kernels
    ]
    least = [kernel["attainable_us"] for kernel in kernels]
    attained = None if None in least else sum(least)
    rows.append(["all kernels", number(total_us), "100", _rate(result["macs"], total_us), _percent(attained, total_us), ""])
    print_table("kernels, in execution order", ["nodes", "us", "%", "GMAC/s", "% of roof", "bound by"], rows, width=_WIDTH)
    print(f"kernels of a run add up to {number(result['kernels_us'])} us, and a whole run takes {number(result['whole_us'])} us")


def _print_counts(result: Mapping[str, Any]) -> None:
    kernels, target = result["kernels"], result["target"]
    total = sum(kernel["instructions"] for kernel in kernels)
    rows = [
        [
            spell_nodes(kernel["nodes"]) or kernel["name"],
            number(kernel["instructions"]),
            _percent(kernel["instructions"], total),
            number(kernel["instructions"] / kernel["macs"]) if kernel["macs"] else "-",
            number(kernel["estimated_cycles"][target]),
            _percent(kernel["attained"], 1.0),
            kernel["bound"] or "-",
        ]
        for kernel in kernels
    ]
    (ours,) = result["runtimes"]
    cycles, least = ours["estimated_cycles"][target], [kernel["attainable_cycles"] for kernel in kernels]
    attained = None if cycles is None or None in least else sum(least)
    whole = [number(total), "100", number(ours["instructions_per_mac"]), number(cycles), _percent(attained, cycles or 1.0), ""]
    rows.append(["all kernels", *whole])
    columns = ["nodes", "instructions", "%", "per MAC", "est. cycles", "% of roof", "bound by"]
    print_table("kernels, in execution order", columns, rows, width=_WIDTH)
    print(f"kernels take {_percent(total, ours['instructions'])} % of a whole run's {number(ours['instructions'])} instructions")


def _print_roof(roof: Mapping[str, Any] | None) -> None:
    if roof is None or roof["macs_per_unit"] is None:
        print("no roof: the clock of the target is not known, and only this machine's own cores are measured")
        return
    scale, macs, nbytes = (1e3, "GMAC/s", "GB/s") if roof["unit"] == "us" else (1.0, "MACs", "bytes")
    levels = ", ".join(f"{level['name']} {number(level['bytes_per_unit'] / scale)}" for level in roof["levels"])
    origin = "measured beside the kernels" if roof["origin"] == "measured" else "by the target's facts"
    when = "" if roof["unit"] == "us" else " a cycle"
    print(f"roof, {origin}: {number(roof['macs_per_unit'] / scale)} {macs}{when}; {levels} {nbytes}{when}")


def _rate(macs: int, time_us: float) -> str:
    """Billions of multiply-accumulates a second."""
    return number(macs / time_us / 1e3) if macs and time_us else "-"


def _percent(part: float | None, whole: float) -> str:
    """A share with one digit behind the point where it is small."""
    if part is None or not whole:
        return "-"
    share = 100 * part / whole
    return f"{share:.0f}" if share >= 10 else f"{share:.1f}"
