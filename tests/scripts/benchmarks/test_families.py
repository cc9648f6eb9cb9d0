"""The benchmark of families: its ways, and that the page says what the JSON does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sepwise.lowering import device as devices
from sepwise.lowering.workload import ConvWorkload, Stage


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("families")


@pytest.fixture
def chain() -> ConvWorkload:
    """A depthwise and a pointwise stage, packed by 4."""
    stages = (
        Stage(8, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), None),
        Stage(8, 16, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), None),
    )
    return ConvWorkload(1, (16, 16), stages, False, None, 4, 4)


def test_only_the_multiply_add_by_lane_is_gone(script: ModuleType) -> None:
    core = devices.get("cortex-a72")
    other = script.BroadcastDevice.of(core)
    assert (core.multiplies_by_lane, other.multiplies_by_lane) == (True, False)
    assert (other.name, other.lanes, other.holding("float16").multiplies_by_lane) == (core.name, core.lanes, False)


def test_ways_are_of_both_families_and_of_one_kernel_and_two(script: ModuleType, chain: ConvWorkload) -> None:
    ways = list(script.list_ways(chain, devices.get("cortex-a72")))
    assert {(family, len(steps)) for _, family, steps in ways} == {
        (family, kernels) for family in (script.BY_LANE, script.BROADCAST) for kernels in (1, 2)
    }
    for names, _, steps in ways:
        assert names.split(", ") == [step.strategy.name for step in steps]
    assert script.chosen_way(chain, devices.get("cortex-a72")) in {names for names, family, _ in ways if family == script.BY_LANE}


def test_ways_cut_a_chain_wherever_a_kernel_can_begin(script: ModuleType, chain: ConvWorkload) -> None:
    core = devices.get("cortex-a72")
    expand = Stage(8, 8, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), None)
    longer = replace(chain, stages=(expand, *chain.stages))
    ways = list(script.list_ways(longer, core))
    cuts = {tuple(len(step.workload.stages) for step in steps) for _, _, steps in ways}
    assert cuts >= {(1, 1, 1), (1, 2)}
    assert all(sum(cut) == 3 for cut in cuts)
    assert script.chosen_way(longer, core) in {names for names, _, _ in ways}


@pytest.mark.emulated
def test_all_ways_are_compared_and_counted(script: ModuleType, chain: ConvWorkload) -> None:
    core = devices.get("cortex-a72")
    if not shutil.which(str(core.emulator)):
        pytest.skip(f"{core.emulator} is missing: apt-get install qemu-user")
    if reason := script.estimate.missing(core):
        pytest.skip(reason)
    entry = script.measure(chain, core)
    assert len(entry["ways"]) == len(list(script.list_ways(chain, core)))
    floor = chain.macs / core.lanes
    assert all(way["instructions"] > floor and way["estimated_cycles"] > 0 for way in entry["ways"])
    by_lane, broadcast = (script.best(entry, "instructions", family=family) for family in (script.BY_LANE, script.BROADCAST))
    assert by_lane < broadcast


def way(strategies: str, family: str, cycles: float) -> dict[str, Any]:
    return {"strategies": strategies, "family": family, "instructions": 10, "estimated_cycles": cycles}


def test_the_page_says_what_was_measured(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = [
        {
            "core": "cortex-a72", "kind": "pointwise", "workload": "one", "stages": 1, "macs": 8, "chosen": "dense",
            "ways": [way("pointwise", "by lane", 2.0), way("dense", "by lane", 2.2), way("pointwise", "broadcast", 3.0)],
        },
        {
            "core": "cortex-a72", "kind": "depthwise+pointwise", "workload": "two", "stages": 2, "macs": 8, "chosen": "separable",
            "ways": [way("tile, pointwise", "by lane", 4.0), way("separable", "by lane", 3.0), way("separable", "broadcast", 5.0)],
        },
    ]  # fmt: skip
    report = {"date": "2026-01-01", "version": "1", "llvm": "22", "networks": ["net"], "chains": chains}
    (tmp_path / "families.json").write_text(json.dumps(report))
    monkeypatch.setattr("sys.argv", ["families.py", "--page", "--output", str(tmp_path)])
    script.main()
    page = (tmp_path / "families.md").read_text()
    assert "| cortex-a72 | pointwise | 1 | 1.00 | 1.50 | 1.50 to 1.50 | 0 |" in page
    assert "| cortex-a72 | 1 | 1 | 1 | 0.75 | 0.75 | `two` |" in page
    assert "| cortex-a72 | pointwise | pointwise | 1 |" in page
    assert "| cortex-a72 | 1.049 | 1.10 |" in page
