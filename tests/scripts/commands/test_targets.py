import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import sepwise
from sepwise import api


def test_targets(command: Callable[..., Any]) -> None:
    facts = sepwise.targets()
    status, out, err = command("targets")
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == len(facts)
    for target, row in zip(facts, rows, strict=True):
        words = (target.name, target.cpu, target.isa, f"{target.vector_registers} x {32 * target.lanes} bit")
        assert all(word in row for word in (*words, f"{target.l2_bytes >> 10:,}", f"{target.cores:,}"))
        assert (f"SVE {8 * target.scalable_bytes}" in row) == bool(target.scalable_bytes)
        if not target.missing:
            assert target.method == "native" or f"{target.emulator} -cpu {target.emulator_cpu}" in row
        assert ("(a relative)" in row) == (not target.missing and target.method == "emulated" and target.stands_in)
    relatives = {target.name for target in facts if target.isa == "arm" and target.stands_in}
    assert relatives == {"cortex-a55", "neoverse-v1", "graviton3", "neoverse-v2", "graviton4"}
    (v1,) = (target for target in facts if target.name == "neoverse-v1")
    assert v1.scalable_bytes == 32
    assert str(v1.emulator_cpu).endswith(",sve-default-vector-length=32")
    status, out, _ = command("targets", "--json")
    assert (status, json.loads(out)) == (0, json.loads(json.dumps({"targets": [target.to_json() for target in facts]})))


def test_what_is_missing_is_said_once(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    host, *others = sepwise.targets()
    absent = [replace(target, method="emulated", missing=("qemu-x",), install="apt-get install x") for target in others[:2]]
    absent[1] = replace(absent[1], estimate_install="apt-get install l")
    foreign = replace(others[2], method="native", missing=("avx", "fma"), install=None)
    monkeypatch.setattr(api, "targets", lambda: [host, *absent, foreign])
    status, out, _ = command("targets")
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("Missing")] == [
        f"Missing here for {absent[0].name}, {absent[1].name}: qemu-x; install it with `apt-get install x`.",
        f"Missing here for {foreign.name}: avx, fma; nothing installs it.",
        f"Missing here for estimated cycles of {absent[1].name}: llvm-mca; install it with `apt-get install l`.",
    ]
    assert ["not here" in line for line in out.splitlines() if line.startswith("│")] == [False, True, True, True]
