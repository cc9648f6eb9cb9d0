"""`sepwise export`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import print_json, working
from sepwise.options import AsJson, Output, read_shape

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a zoo network.", show_default=False)],
    output: Output,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="N,C,H,W", help="Shape of the input.", show_default=False)
    ] = None,
    width: Annotated[float, typer.Option("--width", help="Factor on the number of channels.")] = 1.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set of the file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Export a zoo network from torch to an ONNX file, batch norm kept."""
    from sepwise import api

    dimensions = None if shape is None else read_shape(shape)
    with working(f"exporting {model}"):
        path = api.export(model, output, shape=dimensions, width=width, batch=batch, opset=opset)
    if as_json:
        print_json({"model": model, "file": str(path), "bytes": path.stat().st_size})
    else:
        print(f"{model} -> {path}")
