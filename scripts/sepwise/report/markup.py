"""HTML and SVG elements whose text is escaped where it is put in, so that no name or message can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final, TypeAlias

__all__ = ["Child", "Markup", "clean", "element", "join"]

_VOID: Final = frozenset({"br", "input", "link", "meta", "wbr"})
_UNWRITABLE: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that neither XML 1.0 nor UTF-8 can hold: control characters and lone surrogates."""


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"


def clean(text: str) -> str:
    """Replaces what XML and HTML cannot hold by the replacement character.

    Args:
        text: Any text: names in a model may hold control characters, file names lone surrogates.

    Returns:
        The text as it may stand in a document, not yet escaped.
    """
    return _UNWRITABLE.sub("\ufffd", text)


def join(children: Child) -> Markup:
    """Escapes and concatenates.

    Args:
        children: Text, markup, numbers, None for nothing, or any nesting of these.

    Returns:
        The markup.
    """
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int):
        return Markup(escape(clean(str(children))))
    return Markup("".join(join(child) for child in children))


def element(tag: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Makes an element.

    Args:
        tag: Its name.
        *children: What it holds.
        **attributes: Its attributes: an underscore at the end is dropped, others become dashes; None and False leave an
            attribute out, True writes it without a value.

    Returns:
        The markup.

    Example:
        >>> element("td", "a < b", class_="name")
        '<td class="name">a &lt; b</td>'
    """
    spelled = []
    for key, value in attributes.items():
        attribute = key.removesuffix("_").replace("_", "-")
        if value is True:
            spelled.append(f" {attribute}")
        elif value is not None and value is not False:
            spelled.append(f' {attribute}="{escape(clean(str(value)))}"')
    opened = f"<{tag}{''.join(spelled)}>"
    return Markup(opened if tag in _VOID else f"{opened}{join(children)}</{tag}>")
