"""`sepwise bundle`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Compilation, with_options_of_first

__all__ = ["bundle"]


class WeightsPlace(StrEnum):
    """Where the weights are."""

    INSIDE = "inside"
    SEPARATE = "separate"


@with_options_of_first
def bundle(
    asked: Compilation,
    name: Annotated[
        str | None, typer.Option("--name", help="Prefix of all that is public, a C identifier; the model's name where absent.")
    ] = None,
    weights: Annotated[
        WeightsPlace, typer.Option("--weights", help="In the library, or in a file that the caller maps.")
    ] = WeightsPlace.INSIDE,
    as_json: AsJson = False,
) -> None:
    """Make a C library of a network, with a header, an example and nothing to install."""
    from sepwise import api

    arguments = asked.arguments()
    with working(f"bundling {asked.model} for {asked.target}"):
        made = api.bundle(asked.model, name=name, weights=weights.value, **arguments)
    report = made.to_json()
    if as_json:
        print_json(report)
        return
    sizes = {
        "code": made.manifest["code_bytes"],
        "weights": made.manifest["weight_bytes"],
        "arena": made.manifest["arena_bytes"],
        "arena, at least": made.manifest["arena_lower_bound_bytes"],
    }
    print_table(f"{made.name} for {asked.target}", ["", "bytes"], [[what, number(nbytes)] for what, nbytes in sizes.items()])
    print(f"{', '.join(made.manifest['files'])} -> {asked.output}")
