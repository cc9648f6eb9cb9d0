"""Facts of cores beyond those of a `Device`: what hides a miss, and which model of LLVM times their instructions."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from sepwise.lowering.device import FACTS_FILE
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from sepwise.lowering.device import Device

__all__ = ["CoreModel", "core_model"]


@dataclass(frozen=True, slots=True)
class CoreModel:
    """What is known of a core beyond a `Device`; a table `core` of `devices.toml`.

    Attributes:
        model: The cpu whose scheduling model llvm-mca uses.
        llvm: The first version of LLVM that has this model.
        reorder_entries: Instructions that wait in the reorder buffer; 0 where the core runs in order.
        l1d_ways: Associativity of the level 1 data cache.
        l2_ways: Associativity of level 2.
        line_bytes: Cache line.
        streams: Sequences of lines that the prefetcher follows.
        l2_latency_cycles: What a load takes longer that hits level 2 instead of level 1.
        memory_latency_cycles: The same where it misses level 2: level 3 where there is one, or memory.
        sources: Where each fact comes from, as pairs of fact and source.
    """

    model: str
    llvm: int
    reorder_entries: int
    l1d_ways: int
    l2_ways: int
    line_bytes: int
    streams: int
    l2_latency_cycles: int
    memory_latency_cycles: int
    sources: tuple[tuple[str, str], ...]


@cache
def _models(path: Path) -> dict[str, CoreModel]:
    """Reads the tables `core` of a facts file, by LLVM's name of the cpu."""
    with path.open("rb") as file:
        tables: dict[str, dict[str, Any]] = tomllib.load(file).get("core", {})
    needed = {field.name for field in fields(CoreModel)} - {"sources"}
    models = {}
    for cpu, own in tables.items():
        facts = {**tables.get(own.get("like", ""), {}), **{fact: entry for fact, entry in own.items() if fact != "like"}}
        if set(facts) != needed or any(set(entry) != {"value", "source"} or not entry["source"] for entry in facts.values()):
            raise InputError(f"{path.name}: core '{cpu}': needed are {', '.join(sorted(needed))}, each as {{ value, source }}.")
        sources = tuple((fact, entry["source"]) for fact, entry in facts.items())
        models[cpu] = CoreModel(**{fact: entry["value"] for fact, entry in facts.items()}, sources=sources)
    return models


def core_model(device: Device) -> CoreModel | None:
    """Finds what is known of a device's core.

    Args:
        device: Any device.

    Returns:
        Its facts, or None where `devices.toml` has no such core.
    """
    return _models(FACTS_FILE).get(device.cpu)
