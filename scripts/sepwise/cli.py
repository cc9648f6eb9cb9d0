"""The command line: one subcommand a file, results on standard output, one clear line for what went wrong.

Exit status: 0 done and right, 1 a check failed, 2 unusable input, 3 a fault of ours. Nothing heavy is imported
here: `sepwise --help` loads neither numpy nor onnx, torch or TVM.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer.exceptions import TyperException

from sepwise.commands import bench, bundle, compile, export, fuse, inspect, models, run, server, targets, tune, verify
from sepwise.console import say
from sepwise.startup import start_lean

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["answer", "app", "main"]

_USERS_ERRNO: Final = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}
"""Mishaps of the file system that whoever runs the command can mend."""

app = typer.Typer(
    name="sepwise",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compiles networks of separable convolutions for x86 and ARM CPUs, and proves that the numbers did not change.",
)
app.command("targets")(targets.targets)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("fuse")(fuse.fuse)
app.command("compile")(compile.compile_)
app.command("run")(run.run)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("tune")(tune.tune)
app.command("bundle")(bundle.bundle)
app.command("server")(server.server)


def _show_version(asked: bool) -> None:
    if asked:
        from sepwise import __version__

        typer.echo(f"sepwise {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Holds the options before any subcommand."""


def answer(error: Exception) -> int:
    """Says in one line what went wrong.

    Args:
        error: What a subcommand raised.

    Returns:
        The exit status.
    """
    if isinstance(error, TyperException):
        text = error.format_message()
        if text:  # none where no subcommand was given and help was shown
            say(text)
        return error.exit_code
    from sepwise.passes.errors import SepwiseError

    if isinstance(error, SepwiseError):
        say(str(error))
        return error.exit_status
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        what = f" ({error})" if str(error) else ""
        say(f"not enough memory{what}. Give a smaller --shape where the model leaves it open, or a machine with more.")
        return 2
    if isinstance(error, OSError) and error.errno in _USERS_ERRNO:
        say(f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}.")
        return 2
    if "SEPWISE_TRACEBACK" in os.environ:
        raise error
    say(f"a fault of ours, {type(error).__name__}: {error}. SEPWISE_TRACEBACK=1 shows where.")
    return 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its status.

    Args:
        arguments: Words after `sepwise`; those of the process where None.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    start_lean()
    try:
        status = app(args=arguments, prog_name="sepwise", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted.")
        sys.exit(130)
    except Exception as error:  # the last line of defence: whatever it is, one line and a status
        sys.exit(answer(error))
    sys.exit(status if isinstance(status, int) else 0)
