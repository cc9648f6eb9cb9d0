import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepwise import api


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Stands in for a compiled network that doubles what it is fed; holds what that was."""
    given: dict[str, np.ndarray] = {}

    def run(folder: Path, inputs: dict[str, np.ndarray], **board: object) -> dict[str, np.ndarray]:
        assert folder == Path("net")
        assert board == dict.fromkeys(("rpc", "tracker", "key", "timeout"))
        given.update(inputs)
        return {"y": 2 * inputs["x"]}

    monkeypatch.setattr(api, "run", run)
    return given


def test_an_array_by_name(command: Callable[..., Any], fed: dict[str, np.ndarray], tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    status, out, _ = command("run", "net", "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz", "--json")
    assert status == 0
    assert json.loads(out) == {"outputs": {"y": {"shape": [2, 3], "dtype": "float32"}}, "file": str(tmp_path / "y.npz")}
    np.testing.assert_array_equal(fed["x"], x)
    with np.load(tmp_path / "y.npz") as written:
        np.testing.assert_array_equal(written["y"], 2 * x)


def test_several_inputs_and_the_table(command: Callable[..., Any], fed: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=np.ones((1, 4)), z=np.zeros(3))
    status, out, _ = command("run", "net", "--input", tmp_path / "all.npz", "-o", tmp_path / "y.npz")
    assert status == 0
    assert set(fed) == {"x", "z"}
    assert any(all(word in line for word in ("y", "1x4", "float64")) for line in out.splitlines())


def test_nothing_runs_where_nothing_can_be_written(
    command: Callable[..., Any], fed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(1))
    status, _, err = command("run", "net", "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "nowhere" / "y.npz")
    assert status == 2
    assert "nowhere" in err
    assert not fed
