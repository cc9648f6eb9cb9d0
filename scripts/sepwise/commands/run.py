"""`sepwise run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sepwise.console import print_json, print_table, working
from sepwise.options import AsJson, Key, Output, Rpc, Timeout, Tracker, read_inputs

__all__ = ["run"]


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `sepwise compile` wrote.", show_default=False)],
    output: Output,
    inputs: Annotated[
        list[str], typer.Option("--input", metavar="NAME=X.npy", help="An input; again for each, or one npz.", show_default=False)
    ],
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Run a compiled network on numpy arrays, here or on a board, and write its outputs as an npz file."""
    from sepwise import api
    from sepwise.files import require_writable, write_arrays

    require_writable(output)
    with working(f"running {folder}"):
        outputs = api.run(folder, read_inputs(inputs), rpc=rpc, tracker=tracker, key=key, timeout=timeout)
    write_arrays(output, outputs)
    if as_json:
        described = {name: {"shape": array.shape, "dtype": str(array.dtype)} for name, array in outputs.items()}
        print_json({"outputs": described, "file": str(output)})
        return
    rows = [[name, "x".join(map(str, array.shape)), str(array.dtype)] for name, array in outputs.items()]
    print_table(str(output), ["output", "shape", "dtype"], rows)
