"""`sepwise fuse`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Model, Output, Shape, read_shapes

__all__ = ["fuse"]


def fuse(
    model: Model,
    output: Output,
    shape: Shape = None,
    inline: Annotated[bool, typer.Option("--inline", help="Write plain ONNX, for tools that read no functions.")] = False,
    float16: Annotated[bool, typer.Option("--float16", help="Convert to float16 what does not need float32.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fuse depthwise, pointwise, batch norm and activations; say what each pass did and what it refused."""
    from sepwise import api

    shapes = read_shapes(shape)
    with working(f"fusing {model}"):
        report = api.fuse(model, output, shapes=shapes, inline=inline, float16=float16)
    if as_json:
        print_json(report.to_json())
        return
    rows = [[each.name, number(each.fired), number(len(each.refused))] for each in report.passes]
    print_table(report.model, ["pass", "fired", "refused"], rows)
    for each in report.passes:
        for refusal in each.refused:
            print(f"{each.name}: {refusal.node}: {refusal.reason}")
    print(", ".join(f"{count} {operator}" for operator, count in report.operators.items()))
