"""`sepwise server`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import print_json, working
from sepwise.options import AsJson, Output

__all__ = ["server"]

_PORT = 9090


def server(
    output: Output,
    target: Annotated[str, typer.Option("--target", help="What the board is; one of those that `sepwise targets` lists.")],
    as_json: AsJson = False,
) -> None:
    """Make the folder to copy to a board, so that --rpc reaches it: a server without Python, and TVM's two libraries.

    Whoever reaches the server can run code as its user, there is no password. It listens where only its own machine reaches it,
    which `ssh -L` tunnels to; other addresses it refuses without --public.
    """
    from sepwise import api

    with working(f"building a server for {target}"):
        program = api.server(output, target=target)
    folder = output.resolve().name
    start = f"{folder}/{program.name}"
    commands = [
        f"scp -r {output} USER@BOARD:",
        f"ssh -t -L {_PORT}:localhost:{_PORT} USER@BOARD {start}",
        f"sepwise bench mobilenet_v2 --target {target} --rpc localhost:{_PORT}",
    ]
    if as_json:
        files = sorted(path.name for path in output.iterdir())
        print_json({"target": target, "folder": str(output), "files": files, "start": start})
        return
    print("\n".join(("Copy the folder, start the server through a tunnel, and measure from another terminal:", *commands)))
