"""A network is tuned from nothing and run again; the page says what came of it, target by target."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sepwise.passes.errors import InputError


@pytest.fixture(scope="module")
def tuning(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tuning")


@pytest.fixture(scope="module")
def row(tuning: ModuleType, zoo_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = zoo_file("separable_block", shape=(1, 8, 16, 16))
    found: dict[str, Any] = tuning.tune_network(str(model), "host", 600.0, 8, 2, tmp_path_factory.mktemp("tuning"))
    return found


def test_a_network_of_this_machine(row: dict[str, Any]) -> None:
    assert row["method"] == "measured"
    assert row["trials"] == 8
    assert row["wrong"] == 0
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["rerun"] > 0


def test_the_page(tuning: ModuleType, row: dict[str, Any]) -> None:
    estimated = row | {"target": "cortex-a55", "method": "estimated", "rerun": None}
    page = tuning.make_table([row | {"ratio": 0.5}, row | {"network": "other", "ratio": 0.98, "rerun": 2.0}, estimated])
    assert "## host, measured" in page
    assert "## cortex-a55, estimated" in page
    assert "| geometric mean | | | | | **0.700** |" in page
    assert page.count(f"| {row['network']} |") == 2
    (other,) = (line for line in page.splitlines() if line.startswith("| other |"))
    assert other.endswith("| 2.000 |")
    assert page.rstrip().endswith("| - |")


def test_no_time_to_tune(tuning: ModuleType, zoo_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seconds"):
        tuning.tune_network(str(zoo_file("separable_block", shape=(1, 8, 16, 16))), "host", 0.0, None, 2, tmp_path)
