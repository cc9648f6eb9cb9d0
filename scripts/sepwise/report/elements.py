"""What pages are made of: the document around it, sections, tables and lists of facts."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.resources import files
from typing import TYPE_CHECKING

from sepwise.report.markup import Markup, element

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sepwise.report.markup import Child

__all__ = ["definitions", "document", "grid", "number_cell", "scrolling", "section", "sortable"]


def document(title: str, head: Child, main: Child, *, version: str, script: str = "") -> str:
    """Makes a page that holds all that it shows and fetches nothing.

    Args:
        title: Its title.
        head: What comes before the main part.
        main: The main part.
        version: Version of sepwise.
        script: The page's script, which it can do without.

    Returns:
        A whole HTML document.
    """
    style = (files("sepwise.report") / "page.css").read_text(encoding="utf-8")
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"sepwise {version}".strip()),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        head,
        element("main", main),
        element("footer", element("p", "Made by sepwise; it holds all that it shows and fetches nothing.")),
        element("script", Markup(script)) if script else None,
    )
    return f"<!DOCTYPE html>\n{element('html', top, body, lang='en')}\n"


def _policy(style: str, script: str) -> str:
    """The page may run its own script and use its own style, and fetch nothing at all."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    return "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'".format(*hashes)


def definitions(pairs: Sequence[tuple[str, Child]], class_: str) -> Markup:
    """Makes a list of facts.

    Args:
        pairs: Names and values.
        class_: Class of the list.

    Returns:
        A `dl` element.
    """
    return element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in pairs], class_=class_)


def section(identifier: str, heading: str, *children: Child) -> Markup:
    """Makes a section.

    Args:
        identifier: By which links lead to it.
        heading: Its heading.
        *children: What it holds.

    Returns:
        A `section` element.
    """
    title = element("h2", heading, id=f"{identifier}-heading")
    return element("section", title, *children, id=identifier, aria_labelledby=f"{identifier}-heading")


def scrolling(child: Markup, label: str) -> Markup:
    """Lets what may be wider than a phone scroll by itself, with the keyboard too.

    Args:
        child: A table or a plot.
        label: What it is.

    Returns:
        A `div` element.
    """
    return element("div", child, class_="scrolling", role="region", aria_label=label, tabindex="0")


def grid(
    heads: Sequence[str], rows: Sequence[Markup], caption: str, *, numeric: Collection[str] = (), **attributes: str
) -> Markup:
    """Makes a table.

    Args:
        heads: Heads of its columns.
        rows: Its rows.
        caption: What it is, for those who cannot see it.
        numeric: Heads of columns of numbers.
        **attributes: Of the table.

    Returns:
        A `table` element.
    """
    cells = [element("th", text, scope="col", class_="number" if text in numeric else None) for text in heads]
    head = element("thead", element("tr", cells))
    return element("table", element("caption", caption), head, element("tbody", rows), **attributes)


def number_cell(value: float | None, text: str) -> Markup:
    """Makes a cell with a number.

    Args:
        value: By which the page's script sorts; None for none.
        text: What it shows.

    Returns:
        A `td` element.
    """
    return element("td", text, class_="number", data_value=sortable(value))


def sortable(value: float | None) -> str:
    """Spells a number as the page's script reads it.

    Args:
        value: The number; None or NaN for none.

    Returns:
        Its text, empty for none.
    """
    if value is None or math.isnan(value):
        return ""
    return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
