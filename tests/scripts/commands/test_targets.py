import json
from collections.abc import Callable
from typing import Any

import sepwise


def test_targets(command: Callable[..., Any]) -> None:
    facts = sepwise.targets()
    status, out, err = command("targets")
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if any(target.method in line for target in facts)]
    assert len(rows) == len(facts)
    for target, row in zip(facts, rows, strict=True):
        assert all(word in row for word in (target.name, target.cpu, target.isa, str(32 * target.lanes), f"{target.l2_bytes:,}"))
    status, out, _ = command("targets", "--json")
    assert (status, json.loads(out)) == (0, {"targets": [target.to_json() for target in facts]})
