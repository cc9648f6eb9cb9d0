"""The report of a tuning as one self-contained HTML page: how the network got faster, and kernel by kernel by what."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from sepwise.report.elements import definitions, document, grid, number_cell, scrolling, section
from sepwise.report.markup import Markup, element, join
from sepwise.report.shapes import draw_line, draw_rectangle, draw_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.tuning.result import KernelResult, Tuning
    from sepwise.report.markup import Child
    from sepwise.report.provenance import Provenance

__all__ = ["render_tuning"]

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 16, 14, 44
_BAR, _GAP = 12, 8
_TIMES: Final = {"native": "measured here", "remote": "measured on a board", "emulated": "estimated, not measured"}
_UNITS: Final = {"us": "µs", "cycles": "estimated cycles"}
_NUMERIC: Final = frozenset({"Calls", "Chains", "Default", "Tuned", "Tuned / default", "Tried", "Others"})


def render_tuning(tuning: Tuning, provenance: Provenance) -> str:
    """Writes the page.

    Args:
        tuning: What `sepwise tune` found.
        provenance: How it came about.

    Returns:
        A whole HTML document.
    """
    title = f"{tuning.model} on {tuning.target}: tuned"
    return document(
        title,
        element("header", element("h1", title), element("p", _summary(tuning), class_="summary"), _facts(tuning, provenance)),
        [_course(tuning), _kernels(tuning), _chains(tuning), _wrong(tuning)],
        version=provenance.versions.get("sepwise", ""),
    )


def _summary(tuning: Tuning) -> Markup:
    changed = sum(kernel.tuned for kernel in tuning.kernels)
    told = f"{changed} of {len(tuning.kernels)} kernels are faster with another tile or strategy than the default. "
    if tuning.ratio is None or tuning.low is None or tuning.high is None:
        nothing = "Nothing was left to try." if tuning.default_time is None else "There was no time for a play-off."
        return join([told, nothing])
    sure = "" if tuning.method == "estimated" else f", surely between {tuning.low:.3f} and {tuning.high:.3f}"
    return join([told, f"The network takes {tuning.ratio:.3f} of the time that it took{sure}."])


def _facts(tuning: Tuning, provenance: Provenance) -> Markup:
    facts: list[tuple[str, Child]] = [
        ("Model", tuning.model),
        ("Target", provenance.target),
        ("Times", _TIMES[tuning.runner]),
        ("Processor", tuning.machine or "not told"),
        ("Threads", tuning.threads),
        ("Search", tuning.search),
        ("Candidates", f"{tuning.trials} tried in {tuning.seconds:.0f} s, {tuning.records} verified and recorded"),
        ("Database", tuning.database),
        *(("Note", note) for note in tuning.notes),
        ("Date", f"{provenance.date:%Y-%m-%d %H:%M %Z}"),
        ("Machine", provenance.machine),
        ("Versions", ", ".join(f"{name} {text}" for name, text in provenance.versions.items())),
        ("Command", element("code", provenance.command)),
    ]
    return definitions(facts, "facts")


def _course(tuning: Tuning) -> Markup | None:
    """The time of the network by the candidates that were tried."""
    if len(tuning.history) < 2:
        return None
    unit = _UNITS[tuning.unit]
    plot = _step_plot(tuning.history, axis="candidates tried", unit=unit)
    caption = f"Time of all kernels, in {unit}, with the best ones until then, as they were timed by themselves."
    figure = element("figure", scrolling(plot, "Plot of time by candidates"), element("figcaption", caption))
    return section("course", "The network, as candidates were tried", figure)


def _kernels(tuning: Tuning) -> Markup | None:
    if not tuning.kernels:
        return None
    unit = _UNITS[tuning.unit]
    heads = ["Kernel", "Calls", "Default", "Tuned", "Tuned / default", "Tried", "Others", "Chosen", "Default was"]
    caption = f"Time in the network in {unit}, all calls of a kernel together: above the default's, below what was chosen."
    plot = scrolling(_bar_plot(tuning.kernels, unit=unit), "Plot of time by kernel")
    figure = element("figure", plot, element("figcaption", caption))
    table = scrolling(grid(heads, list(map(_row, tuning.kernels)), "Kernels", numeric=_NUMERIC), "Table of kernels")
    return section("kernels", "Kernels, before and after", figure, table)


def _chains(tuning: Tuning) -> Markup | None:
    """Which of the structures of chains were chosen."""
    if not tuning.structures:
        return None
    heads = ["Chain", "Chains", "Default", "Tuned", "Tuned / default", "Tried", "Others", "Chosen", "Default was"]
    told = element("p", "How chains of convolutions are cut into kernels: the stages of the chain that each kernel computes.")
    table = scrolling(grid(heads, list(map(_row, tuning.structures)), "Chains", numeric=_NUMERIC), "Table of chains")
    return section("chains", "Chains, before and after", told, table)


def _row(kernel: KernelResult) -> Markup:
    return element(
        "tr",
        element("th", kernel.name, element("div", kernel.workload), scope="row"),
        number_cell(kernel.calls, str(kernel.calls)),
        number_cell(kernel.default_time, f"{kernel.default_time:,.1f}"),
        number_cell(kernel.tuned_time, f"{kernel.tuned_time:,.1f}"),
        number_cell(kernel.ratio, f"{kernel.ratio:.3f}" if kernel.tuned else "default"),
        number_cell(kernel.tried, str(kernel.tried)),
        number_cell(kernel.space - 1, str(kernel.space - 1)),
        element("td", element("code", kernel.chosen)),
        element("td", element("code", kernel.default) if kernel.tuned else "the same"),
    )


def _wrong(tuning: Tuning) -> Markup | None:
    """Candidates that were refused."""
    if not tuning.wrong:
        return None
    rows = []
    for each in tuning.wrong:
        candidate = element("td", element("code", str(each.pick)))
        rows.append(element("tr", element("th", each.kernel, scope="row"), candidate, element("td", each.reason)))
    table = scrolling(grid(["Kernel", "Candidate", "Why"], rows, "Refused candidates"), "Table of refused candidates")
    return section("wrong", "Candidates that were refused", element("p", "None of them has a record."), table)


def _step_plot(points: Sequence[tuple[int, float]], *, axis: str, unit: str) -> Markup:
    """Draws a line that falls where something was found, from zero so that its height tells the share."""
    last = max(place for place, _ in points) or 1
    top = max(value for _, value in points)
    bottom, width = _HEIGHT - _BOTTOM, _WIDTH - _LEFT - _RIGHT

    def x(place: float) -> float:
        return _LEFT + width * place / last

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * value / top

    parts = []
    for quarter in range(5):
        value = top * quarter / 4
        parts += [
            draw_line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "grid"),
            draw_text(_LEFT - 8, y(value) + 4, f"{value:,.0f}", anchor="end"),
        ]
    for tick in sorted({round(last * quarter / 4) for quarter in range(5)}):
        parts.append(draw_text(x(tick), bottom + 18, str(tick)))
    for (earlier, before), (place, value) in pairwise(points):
        parts.append(draw_line(x(earlier), y(before), x(place), y(before), "course"))
        parts.append(draw_line(x(place), y(before), x(place), y(value), "course"))
    parts.append(draw_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis))
    label = f"Time of the network from {points[0][1]:,.0f} to {points[-1][1]:,.0f} {unit} over {last} {axis}."
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label, class_="ratios")


def _bar_plot(kernels: Sequence[KernelResult], *, unit: str) -> Markup:
    """Draws two bars a kernel."""
    most = max(kernel.default_time for kernel in kernels) or 1.0
    names = 250
    parts = []
    for place, kernel in enumerate(kernels):
        above = place * (2 * _BAR + _GAP)
        name = kernel.name if len(kernel.name) <= 34 else f"{kernel.name[:33]}…"
        parts.append(draw_text(names - 8, above + _BAR + 4, name, anchor="end"))
        for row, value in enumerate((kernel.default_time, kernel.tuned_time)):
            title = element("title", f"{kernel.name}: {value:,.1f} {unit}, {kernel.default if row == 0 else kernel.chosen}")
            width = (_WIDTH - names - _RIGHT) * value / most
            parts.append(draw_rectangle(names, above + row * _BAR, width, _BAR - 1, "bar" if row else "bar before", title))
    height = len(kernels) * (2 * _BAR + _GAP)
    label = f"Time of {len(kernels)} kernels before and after tuning; the table has every number."
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label, class_="ratios")
