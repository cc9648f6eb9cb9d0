"""The benchmark of the estimate: its statistics, its schedules, and that the page says what the JSON does."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sepwise.lowering import device as devices
from sepwise.lowering.workload import ConvWorkload


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("estimate")


def test_ranks_share_places(script: ModuleType) -> None:
    assert script.ranks([30.0, 10.0, 10.0, 20.0]).tolist() == [3.0, 0.5, 0.5, 2.0]


def test_rank_correlation_sees_order_only(script: ModuleType) -> None:
    assert script.spearman([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0]) == pytest.approx(1.0)
    assert script.spearman([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_judgement(script: ModuleType) -> None:
    rows = [
        {"workload": workload, "kind": "depthwise", "minimum_us": us, "estimated_cycles": cycles, "instructions": 100 - cycles}
        for workload, us, cycles in [("a", 1.0, 10.0), ("a", 2.0, 20.0), ("b", 40.0, 40.0), ("b", 50.0, 50.0)]
    ]
    found = script.judge(rows, "estimated_cycles")
    assert [found["spearman"], found["spearman_within_workloads"]] == pytest.approx([1.0, 1.0])
    assert found["median_ns"] == pytest.approx(550.0)
    assert found["log_spread"] == pytest.approx(math.log(10) / math.sqrt(3))
    summary = script.judge_all(rows)
    assert [(row["kind"], row["predicted_by"]) for row in summary] == [
        (kind, by) for kind in ("depthwise", "all") for by in ("estimated_cycles", "instructions")
    ]
    assert summary[1]["spearman"] == pytest.approx(-1.0)


def test_layers_are_of_every_kind_and_have_schedules_enough(script: ModuleType) -> None:
    device = devices.get(script.TARGET)
    kinds: dict[str, int] = {}
    for side, stages in script.LAYERS:
        workload = ConvWorkload(1, (side, side), stages, False, None, device.lanes, device.lanes)
        for strategy in script.strategies_for(workload):
            if strategy.applies(workload, device) is None:
                tiles = script.evenly(strategy.tiles(workload, device, 1), script.SCHEDULES)
                kinds[workload.kind] = kinds.get(workload.kind, 0) + len(set(map(str, tiles)))
    assert kinds.keys() == {"depthwise", "pointwise", "depthwise+pointwise"}
    assert sum(kinds.values()) >= 40


def test_evenly_takes_both_ends(script: ModuleType) -> None:
    assert script.evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert script.evenly([1, 2], 4) == [1, 2]


def board_row(name: str, clock_hz: int, published_ms: float, estimated_ms: float, *, published: bool = True) -> dict[str, Any]:
    return {
        "board": name,
        "core": "cortex-a0",
        "source": f"where {name} is",
        "clock_hz": clock_hz,
        "clock_published": published,
        "network": "net",
        "published_ms": published_ms,
        "instructions": 12_340_000,
        "estimated_cycles": estimated_ms * 1e-3 * clock_hz,
        "estimated_ms": estimated_ms,
    }


def test_boards_are_ranked_at_the_published_clock(script: ModuleType) -> None:
    rows = [
        board_row("first", 10**9, 100.0, 90.0),
        board_row("second", 2 * 10**9, 50.0, 60.0),
        board_row("second", 10**9, 50.0, 120.0, published=False),
    ]
    other = {"board": "third", "core": "cortex-a0", "source": "where third is", "clock_hz": 10**9, "network": "net"}
    facts = {"ncnn": "1.2", "llvm": 14, "date": "2026-01-01"}
    rows[0]["core"] = "cortex-a1"
    page = script.write_boards({**facts, "rows": rows, "also_published": [{**other, "published_ms": 80.0}]})
    assert "| third | cortex-a0 | 1.0 | net | 80 | 80.0 | 0.80 |" in page
    assert "| first | cortex-a1 | 1.0 | net | 12.3 | 90.0 | 90 | 100 | 0.90 |" in page
    assert "| second | cortex-a0 | 1.0, not as published | net | 12.3 | 120.0 | 120 | 50 | 2.40 |" in page
    assert "over these 2 is 1.000, and the ratios go from\n0.90 to 1.20. No constant" in page
    assert "Sources: first: where first is; second: where second is; third: where third is." in page


def test_the_page_is_made_from_the_json(script: ModuleType, repository: Path) -> None:
    folder = repository / "docs" / "benchmarks"
    report = json.loads((folder / "estimate.json").read_text())
    boards = json.loads((folder / "boards.json").read_text())
    assert script.write_table(report, boards) == (folder / "estimate.md").read_text()
    assert report["summary"] == script.judge_all(report["measurements"])
    assert report["schedules"] == len(report["measurements"]) >= 40
