"""`sepwise bundle`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import (
    AsJson,
    Float16,
    Image,
    InputLayout,
    InputType,
    Mean,
    Model,
    Output,
    Shape,
    Std,
    Target,
    Threads,
    read_image,
    read_shapes,
)

__all__ = ["bundle"]


class WeightsPlace(StrEnum):
    """Where the weights are."""

    INSIDE = "inside"
    SEPARATE = "separate"


def bundle(
    model: Model,
    output: Output,
    target: Target = "host",
    name: Annotated[
        str | None, typer.Option("--name", help="Prefix of all that is public, a C identifier; the model's name where absent.")
    ] = None,
    weights: Annotated[
        WeightsPlace, typer.Option("--weights", help="In the library, or in a file that the caller maps.")
    ] = WeightsPlace.INSIDE,
    shape: Shape = None,
    threads: Threads = 1,
    float16: Float16 = False,
    input_type: InputType = None,
    input_layout: InputLayout = None,
    mean: Mean = None,
    std: Std = None,
    image: Image = None,
    as_json: AsJson = False,
) -> None:
    """Make a C library of a network, with a header, an example and nothing to install."""
    from sepwise import api

    shapes = read_shapes(shape)
    taken = read_image(input_layout, input_type, mean, std, image)
    with working(f"bundling {model} for {target}"):
        made = api.bundle(
            model,
            output,
            target=target,
            name=name,
            weights=weights.value,
            shapes=shapes,
            threads=threads,
            float16=float16,
            image=taken,
        )
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
    print_table(f"{made.name} for {target}", ["", "bytes"], [[what, number(nbytes)] for what, nbytes in sizes.items()])
    print(f"{', '.join(made.manifest['files'])} -> {output}")
