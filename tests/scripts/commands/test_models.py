import json
from collections.abc import Callable
from typing import Any

from sepwise import models


def test_models(command: Callable[..., Any]) -> None:
    status, out, err = command("models")
    assert (status, out.splitlines(), err) == (0, models.names(), "")
    status, out, _ = command("models", "--json")
    assert (status, json.loads(out)) == (0, {"models": models.names()})
