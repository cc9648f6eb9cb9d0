import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sepwise import __version__
from sepwise.options import AsJson, Model, Shape, Target, Threads
from sepwise.report.provenance import collect, spell_command


def spelled(*words: str) -> str:
    """What `spell_command` makes of a command line of `tool check`."""
    found: list[str] = []
    app = typer.Typer()

    @app.callback()
    def tool() -> None:
        """The command that the subcommand belongs to."""

    @app.command("check")
    def check(
        context: typer.Context,
        model: Model,
        target: Target = "host",
        data: Annotated[Path | None, typer.Option("--input")] = None,
        shape: Shape = None,
        threads: Threads = 1,
        as_json: AsJson = False,
    ) -> None:
        found.append(spell_command(context))

    app(args=["check", *words], prog_name="tool", standalone_mode=False)
    return found[0]


def test_defaults_are_left_out() -> None:
    assert spelled("m.onnx") == "tool check m.onnx"
    assert spelled("m.onnx", "--threads", "1") == "tool check m.onnx --threads 1"


def test_every_kind_of_option() -> None:
    words = ["a b.onnx", "--target", "rpi4", "--input", "x y.npz", "--shape", "x=1,3", "--shape", "y=2", "--threads", "2", "--json"]
    command = spelled(*words)
    assert shlex.split(command) == ["tool", "check", *words]
    assert spelled(*shlex.split(command)[2:]) == command


def test_collected() -> None:
    found = collect("tool check", None)
    assert found.target is None
    assert found.versions["sepwise"] == __version__
    assert found.versions["Python"] == platform.python_version()
    assert abs((datetime.now(UTC) - found.date).total_seconds()) < 3600
    assert platform.machine() in found.machine


def test_a_target_is_described() -> None:
    found = collect("tool check", "cortex-a72")
    assert found.target is not None
    assert found.target.startswith("cortex-a72 (cortex-a72, ")
