"""What the command line prints: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["number", "print_json", "print_table", "reserved_stdout", "say", "working"]


def say(message: str) -> None:
    """Prints a message as one line on standard error.

    Args:
        message: What to say; its line breaks become spaces.
    """
    print(f"sepwise: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Sends to standard error whatever is printed meanwhile, by native code and child processes too.

    Standard output belongs to the result: with `--json` nothing else may reach it.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def working(message: str) -> Iterator[None]:
    """Shows that work goes on, where standard error is a terminal, and reserves standard output.

    Args:
        message: What is being done.
    """
    from rich.console import Console

    with reserved_stdout(), Console(stderr=True).status(message):
        yield


def _finite(value: object) -> object:
    """Replaces what JSON cannot say: infinities and NaN become null, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_json(result: Mapping[str, object]) -> None:
    """Prints one JSON object on standard output.

    Args:
        result: The object; numbers that are not finite become null.
    """
    print(json.dumps(_finite(dict(result)), indent=2, allow_nan=False), flush=True)


_LARGEST_WRITTEN_OUT: Final = 1e9
"""Above, what is not an integer has an exponent: its digits would break a table and say nothing."""


def number(value: object) -> str:
    """Spells a number for a table: integers with separators, others with three digits or more, None as a dash.

    Args:
        value: The number.

    Returns:
        Its text.
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and not 100 <= abs(value) < _LARGEST_WRITTEN_OUT:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 200) -> None:
    """Prints a table on standard output, as wide as the terminal.

    Args:
        title: Its title.
        columns: Heads of the columns; the first is aligned to the left, the others to the right.
        rows: Cells, one row after the other.
        width: Its most characters where it goes to a file.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else width).print(table)
