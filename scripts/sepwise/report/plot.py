"""Plots of error against tolerance, as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sepwise.report.markup import Markup, element
from sepwise.report.shapes import draw_line, draw_rectangle, draw_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Point", "histogram", "meter", "power_of_two", "ratio_plot"]

_WIDTH: Final = 960
_HEIGHT: Final = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 14, 44
_STRIP: Final = 26
"""Height of the strips above and below the scale, for what has no place on it."""

_FEWEST_DECADES: Final = 3
_METER_WIDTH, _METER_HEIGHT, _METER_DECADES = 96, 12, (-4.0, 1.0)
_BAR_WIDTH: Final = 14
_BARS_HEIGHT: Final = 150
_LABELS: Final = 4
"""Failed points whose names are written below them; there is room for a few."""

_LETTER, _LINE = 7.5, 16
"""Width of a letter and height of a line of a label, about."""


@dataclass(frozen=True, slots=True)
class Point:
    """A check in a plot.

    Attributes:
        number: Where the axis counts it.
        name: For its label.
        ratio: Largest error over its tolerance; None where there is none or it is not finite.
        status: `passed`, `failed` or `skipped`.
        title: What shows when the pointer rests on it.
        anchor: Identifier of the table row that the page's script leads to.
    """

    number: int
    name: str
    ratio: float | None
    status: str
    title: str
    anchor: str


@dataclass(frozen=True, slots=True)
class _Label:
    """A name below a mark: where its text starts or ends, and its base line."""

    text: str
    x: float
    y: float
    anchor: str

    def covers(self, other: _Label) -> bool:
        """Tells whether two labels would share pixels; widths are estimated, as only the browser knows its fonts."""
        pair = (self, other)
        ends = [sorted((each.x, each.x + (1 if each.anchor == "start" else -1) * len(each.text) * _LETTER)) for each in pair]
        return abs(self.y - other.y) < _LINE and ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1]


def power_of_two(octave: int) -> str:
    """Spells a power of two as a reader takes it in: 2⁻⁶, 1, 4.

    Args:
        octave: Its exponent.

    Returns:
        Its text.
    """
    if -3 <= octave < 0:
        return f"1/{2**-octave}"
    return str(2**octave) if octave >= 0 else f"2{_superscript(octave)}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:g}" if abs(exponent) < 4 else f"10{_superscript(exponent)}"


def ratio_plot(points: Sequence[Point], *, axis: str, label: str) -> Markup:
    """Draws one mark a check over a logarithmic scale of error over tolerance, with the line at 1.

    Exact results lie in a strip below the scale; what failed without a finite ratio, and what was skipped, in one above it.

    Args:
        points: At least one, in the order of the axis.
        axis: Title of the horizontal axis.
        label: Text alternative of the whole plot.

    Returns:
        An `svg` element.
    """
    logs = [math.log10(point.ratio) for point in points if point.ratio]
    high = max(1, math.ceil(max(logs, default=0.0) + 0.05))
    low = min(-_FEWEST_DECADES, math.floor(min(logs, default=0.0)))
    exact = any(point.ratio == 0 and point.status != "skipped" for point in points)
    off = any(point.ratio is None or point.status == "skipped" for point in points)
    top = _TOP + (_STRIP if off else 0)
    bottom = _HEIGHT - _BOTTOM - (_STRIP if exact else 0)

    def y(log: float) -> float:
        return bottom - (log - low) / (high - low) * (bottom - top)

    step = (_WIDTH - _LEFT - _RIGHT) / len(points)
    parts = [draw_rectangle(_LEFT, top, _WIDTH - _LEFT - _RIGHT, y(0) - top, "beyond")]
    every = max(1, math.ceil((high - low) / 8))
    for exponent in range(low, high + 1):
        parts.append(draw_line(_LEFT, y(exponent), _WIDTH - _RIGHT, y(exponent), "grid"))
        if exponent % every == 0:
            parts.append(draw_text(_LEFT - 8, y(exponent) + 4, _decade(exponent), anchor="end"))
    if off:
        parts.append(draw_text(_LEFT - 8, _TOP + _STRIP / 2 + 4, "no ratio", anchor="end"))
    if exact:
        parts.append(draw_text(_LEFT - 8, bottom + _STRIP / 2 + 6, "exact", anchor="end"))
    parts.append(draw_line(_LEFT, y(0), _WIDTH - _RIGHT, y(0), "limit"))
    parts.append(draw_text(_WIDTH - _RIGHT - 4, y(0) - 6, "tolerance", anchor="end", class_="limit-label"))
    tick = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, len(points)) if len(points) / size <= 16)
    parts.append(draw_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis))
    labels: list[_Label] = []
    for index, point in enumerate(points):
        x = _LEFT + (index + 0.5) * step
        if point.number % tick == 0:
            parts.append(draw_text(x, _HEIGHT - _BOTTOM + 18, str(point.number)))
        if point.ratio is None or point.status == "skipped":
            at = _TOP + _STRIP / 2
        elif point.ratio == 0:
            at = bottom + _STRIP / 2 + 2
        else:
            at = y(math.log10(point.ratio))
            parts.append(draw_line(x, bottom, x, at, f"stem {point.status}"))
        title = element("title", point.title)
        mark = _mark(x, at, point.status)
        parts.append(element("g", title, mark, data_row=point.anchor, class_=f"mark {point.status}"))
        if point.status == "failed" and len(labels) < _LABELS:
            labels.append(_free_label(point.name, x, at, labels))
    parts += [draw_text(label.x, label.y, label.text, anchor=label.anchor, class_="point-label") for label in labels]
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label, class_="ratios")


def _free_label(text: str, x: float, y: float, placed: Sequence[_Label]) -> _Label:
    """Puts a label below its mark, on the side with more room, and below the labels that it would cover."""
    label = _Label(text, x + 5, y + 19, "start") if x < _WIDTH / 2 else _Label(text, x - 5, y + 19, "end")
    while any(label.covers(other) for other in placed):
        label = replace(label, y=label.y + 1)
    return label


def _mark(x: float, y: float, status: str) -> Markup:
    """A shape for each status, so that colour is not all that tells them apart."""
    if status == "failed":
        return element("path", d=f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z")
    if status == "skipped":
        return element("path", d=f"M{x - 5:.1f} {y - 5:.1f}h10v10h-10z")
    return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4.5")


def meter(ratio: float | None, status: str) -> Markup:
    """Draws one ratio as a small bar on a logarithmic scale with a mark at 1; decoration beside the number.

    Args:
        ratio: Error over tolerance; None fills the bar where the check failed.
        status: `passed`, `failed` or `skipped`.

    Returns:
        An `svg` element that screen readers pass over.
    """
    low, high = _METER_DECADES
    if status == "skipped" or ratio == 0:
        log = low
    else:
        log = high if ratio is None else min(max(math.log10(ratio), low), high)
    scale = _METER_WIDTH / (high - low)
    parts = [
        draw_rectangle(0, 4, _METER_WIDTH, 4, "track"),
        draw_rectangle(0, 2, (log - low) * scale, 8, f"fill {status}"),
        draw_line(-low * scale, 0, -low * scale, _METER_HEIGHT, "limit"),
    ]
    return element("svg", *parts, viewBox=f"0 0 {_METER_WIDTH} {_METER_HEIGHT}", aria_hidden="true", class_="meter")


def histogram(counts: Sequence[int], lowest: int, *, axis: str, label: str, judged: bool) -> Markup:
    """Draws a histogram over octaves of error over tolerance; the heights are logarithmic, as tails are what matters.

    Args:
        counts: Exact elements, then up to 2^lowest, one count an octave, and those beyond the last one.
        lowest: Exponent of the first upper edge.
        axis: Title of the horizontal axis.
        label: Text alternative of the whole plot.
        judged: Whether what lies beyond 1 is wrong.

    Returns:
        An `svg` element.
    """
    left, gap, top = 46, 8, 12
    width = left + gap + _BAR_WIDTH * len(counts) + 10
    bottom = top + _BARS_HEIGHT
    decades = max(1, math.ceil(math.log10(max(*counts, 1)) + 0.01))

    def y(count: int) -> float:  # half a decade of room below 1, so that a single element shows
        return bottom - (math.log10(count) + 0.5) / (decades + 0.5) * _BARS_HEIGHT

    def x(place: int) -> float:
        return left + _BAR_WIDTH * place + (gap if place else 0)

    parts = []
    for exponent in range(0, decades + 1, max(1, math.ceil(decades / 5))):
        parts.append(draw_line(left, y(10**exponent), width - 10, y(10**exponent), "grid"))
        parts.append(draw_text(left - 6, y(10**exponent) + 4, _count(10**exponent), anchor="end"))
    limit = 1 - lowest + 1  # bins from this place on lie beyond 1
    for place, count in enumerate(counts):
        if count:
            title = element("title", f"{_bin(place, len(counts), lowest)}: {count:,} elements")
            kind = "bar beyond" if judged and place >= limit else "bar"
            parts.append(draw_rectangle(x(place) + 1, y(count), _BAR_WIDTH - 2, bottom - y(count), kind, title))
    parts.append(draw_line(left, bottom, width - 10, bottom, "axis"))
    parts.append(draw_line(x(limit), top - 6, x(limit), bottom, "limit"))
    parts.append(draw_text(x(0) + _BAR_WIDTH / 2, bottom + 16, "exact"))
    ticks = range(lowest + 4, lowest + len(counts) - 2, 4)
    parts += [draw_text(x(octave - lowest + 2), bottom + 16, power_of_two(octave)) for octave in ticks]
    parts.append(draw_text((left + width) / 2, bottom + 36, axis))
    return element("svg", *parts, viewBox=f"0 0 {width} {bottom + 42}", role="img", aria_label=label, class_="bars")


def _count(count: int) -> str:
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count // size}{suffix}"
    return str(count)


def _bin(place: int, bins: int, lowest: int) -> str:
    if place == 0:
        return "exact"
    upper = power_of_two(lowest + place - 1)
    if place == 1:
        return f"up to {upper}"
    lower = power_of_two(lowest + place - 2)
    return f"above {lower}" if place == bins - 1 else f"above {lower}, up to {upper}"
