"""`sepwise server`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import print_json, reserved_stdout, working
from sepwise.options import AsJson, Output

__all__ = ["server"]

_PORT = 9090


def server(
    output: Output,
    target: Annotated[str, typer.Option("--target", help="What the board is; one of those that `sepwise targets` lists.")],
    copy: Annotated[
        str | None, typer.Option("--copy", metavar="USER@BOARD", help="Copy the folder there too, by scp.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the folder that is copied to a board, so that --rpc reaches it: a server without Python, and TVM's two libraries.

    Whoever reaches the server can run code as its user, there is no password. It listens where only its own machine reaches it,
    which `ssh -L` tunnels to; other addresses it refuses without --public.
    """
    from sepwise import api

    asking = copy is not None  # scp may, for a password, on the terminal
    with reserved_stdout() if asking else working(f"building a server for {target}"):
        program = api.server(output, target=target, copy=copy)
    folder = output.resolve().name
    start = f"{folder}/{program.name}"
    commands = [
        *([f"scp -r {output} USER@BOARD:"] if copy is None else []),
        f"ssh -t -L {_PORT}:localhost:{_PORT} {copy or 'USER@BOARD'} {start}",
        f"sepwise bench mobilenet_v2 --target {target} --rpc localhost:{_PORT}",
    ]
    if as_json:
        files = sorted(path.name for path in output.iterdir())
        print_json({"target": target, "folder": str(output), "files": files, "start": start})
        return
    what = "Start" if copy is not None else "Copy the folder, start"
    print("\n".join((f"{what} the server through a tunnel, and measure from another terminal:", *commands)))
