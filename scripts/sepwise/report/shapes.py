"""The shapes that plots are drawn of; colours come from the page's style sheet by their classes."""

from __future__ import annotations

from sepwise.report.markup import Markup, element

__all__ = ["draw_line", "draw_rectangle", "draw_text"]


def draw_text(x: float, y: float, text: str, *, anchor: str = "middle", class_: str | None = None) -> Markup:
    """Writes a text.

    Args:
        x: Where it is anchored.
        y: Its base line.
        text: What it says.
        anchor: `start`, `middle` or `end`.
        class_: Class of the element.

    Returns:
        A `text` element.
    """
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def draw_line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draws a line.

    Args:
        x1: Where it begins.
        y1: Likewise.
        x2: Where it ends.
        y2: Likewise.
        class_: Class of the element.

    Returns:
        A `line` element.
    """
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def draw_rectangle(x: float, y: float, width: float, height: float, class_: str, *children: Markup) -> Markup:
    """Draws a rectangle.

    Args:
        x: Its left side.
        y: Its upper side.
        width: Its width.
        height: Its height.
        class_: Class of the element.
        *children: What it holds, as a title.

    Returns:
        A `rect` element.
    """
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    return element("rect", *children, class_=class_, **size)
