"""What a report says about how it came about: the command, the date, the versions, the machine."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import typer

__all__ = ["Provenance", "collect", "spell_command"]

_PACKAGES: Final = ("sepwise", "apache-tvm", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a report came about.

    Attributes:
        command: The command that repeats it, as a shell takes it.
        target: The target with its cpu and how its code was run; None where two files were compared.
        date: When it was made.
        versions: Versions by the package's name, Python's among them.
        machine: Operating system and architecture that it was made on.
    """

    command: str
    target: str | None
    date: datetime
    versions: Mapping[str, str]
    machine: str


def collect(command: str, target: str | None) -> Provenance:
    """Looks up everything but the command.

    Args:
        command: As a shell takes it.
        target: Name of the target, None where two files were compared.

    Returns:
        The provenance of a report that is made now.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # two files are compared without TVM too
            continue
    versions["Python"] = platform.python_version()
    machine = f"{platform.system()} on {platform.machine()}"
    return Provenance(command, _describe_target(target), datetime.now(UTC), versions, machine)


def _describe_target(name: str | None) -> str | None:
    if name is None:
        return None
    from sepwise.api import targets

    facts = next(facts for facts in targets() if facts.name == name)
    return f"{name} ({facts.cpu}, {facts.method})"


def spell_command(context: typer.Context) -> str:
    """Spells out the command that is running: what was given, nothing that was left at its default.

    Args:
        context: That of the subcommand.

    Returns:
        The command as a shell takes it.
    """
    words = context.command_path.split()
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[name]
        if parameter.param_type_name == "argument":
            words.append(str(given))
        elif given is True:
            options.append(parameter.opts[-1])
        else:
            for value in given if isinstance(given, list | tuple) else [given]:
                options += [parameter.opts[-1], str(value)]
    return shlex.join([*words, *options])
