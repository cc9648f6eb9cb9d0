"""`sepwise targets`."""

from __future__ import annotations

from sepwise.console import number, print_json, print_table
from sepwise.options import AsJson

__all__ = ["targets"]


def targets(as_json: AsJson = False) -> None:
    """List what --target can name."""
    from sepwise import api

    found = api.targets()
    if as_json:
        print_json({"targets": [target.to_json() for target in found]})
        return
    rows = [[t.name, t.method, t.cpu, t.isa, number(t.lanes * 32), number(t.l1d_bytes), number(t.l2_bytes)] for t in found]
    print_table("Targets", ["name", "runs", "cpu", "isa", "vector bits", "L1d bytes", "L2 bytes"], rows)
