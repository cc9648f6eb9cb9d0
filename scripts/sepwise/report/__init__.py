"""Reports of a verification for people (`page`) and for CI systems (`junit`), and of a tuning (`tuning`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepwise.files import new_file, require_writable

if TYPE_CHECKING:
    from pathlib import Path

    from sepwise.lowering.tuning.result import Tuning
    from sepwise.passes.equivalence import Verification

__all__ = ["require_places", "write_html", "write_junit", "write_tuning"]


def require_places(*paths: Path | None) -> None:
    """Checks before the work that reports can be written.

    Args:
        *paths: Where they will be; None for one that is not wanted.

    Raises:
        InputError: A folder is missing or may not be written to, a path is a folder, or two are the same.
    """
    from sepwise.passes.errors import InputError

    wanted = [path for path in paths if path is not None]
    for path in wanted:
        require_writable(path)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the file that the report is to be written to.")
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise InputError(f"{wanted[0]}: two reports cannot share one file; give each its own.")


def write_html(verdict: Verification, path: Path, *, command: str) -> None:
    """Writes the report as a page, whole or not at all.

    Args:
        verdict: What `sepwise verify` found.
        path: The file.
        command: The command that repeats it, as a shell takes it.

    Raises:
        InputError: The file cannot be written.
    """
    from sepwise.report.page import render
    from sepwise.report.provenance import collect

    page = render(verdict, collect(command, verdict.target)).encode()
    with new_file(path) as temporary:
        temporary.write_bytes(page)


def write_junit(verdict: Verification, path: Path) -> None:
    """Writes the report as JUnit XML, whole or not at all.

    Args:
        verdict: What `sepwise verify` found.
        path: The file.

    Raises:
        InputError: The file cannot be written.
    """
    from sepwise.report.junit import render

    document = render(verdict)
    with new_file(path) as temporary:
        temporary.write_bytes(document)


def write_tuning(tuning: Tuning, path: Path, *, command: str) -> None:
    """Writes the report of a tuning as a page, whole or not at all.

    Args:
        tuning: What `sepwise tune` found.
        path: The file.
        command: The command that repeats it, as a shell takes it.

    Raises:
        InputError: The file cannot be written.
    """
    from sepwise.report.provenance import collect
    from sepwise.report.tuning import render_tuning

    page = render_tuning(tuning, collect(command, tuning.target)).encode()
    with new_file(path) as temporary:
        temporary.write_bytes(page)
