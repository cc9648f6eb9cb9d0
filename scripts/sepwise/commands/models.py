"""`sepwise models`."""

from __future__ import annotations

from sepwise.console import print_json, working
from sepwise.options import AsJson

__all__ = ["models"]


def models(as_json: AsJson = False) -> None:
    """List the networks of the zoo."""
    with working("importing the zoo"):
        from sepwise import models as zoo

        names = zoo.names()
    if as_json:
        print_json({"models": names})
    else:
        print("\n".join(names))
