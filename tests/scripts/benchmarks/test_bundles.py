"""The programs that are timed compute what the bundle computes; the page is made from the times, and says which are missing."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sepwise.lowering.bundle import bundle
from sepwise.passes.errors import SepwiseError

STAMPS = {"version", "load_us", "first_us", "warm_us"}


@pytest.fixture(scope="module")
def bundles(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bundles")


def test_a_bundle_in_its_program_and_a_peer_in_its_process(
    bundles: ModuleType, zoo_file: Callable[..., Path], tmp_path: Path
) -> None:
    model = zoo_file("separable_block", shape=(1, 8, 16, 16))
    made = bundle(model, tmp_path / "net", name="net")
    program = bundles.build_program(made, tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    np.save(tmp_path / "x.npy", x)

    found = bundles.run_once([program, tmp_path / "x.bin", tmp_path / "out.bin", "2"])
    assert found.keys() == {*STAMPS, "start_us"}
    assert len(found["warm_us"]) == 2
    assert min(found["start_us"], found["first_us"], *found["warm_us"]) > 0
    spec = importlib.util.spec_from_file_location("net", made.folder / "net.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    (wanted,) = loader.Network().run(x=x).values()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.bin", np.float32).reshape(wanted.shape), wanted)
    assert bundles.run_once([program, program])["read_us"] > 0

    guest = [sys.executable, bundles.GUEST, "onnxruntime", model, tmp_path / "x.npy", tmp_path / "y.npy", "2"]
    found = bundles.run_once(guest)
    assert found.keys() == STAMPS
    assert len(found["warm_us"]) == 2
    assert np.load(tmp_path / "y.npy").shape == wanted.shape


def test_what_does_not_run_is_said(bundles: ModuleType) -> None:
    with pytest.raises(SepwiseError, match="did not run: why"):
        bundles.run_once([sys.executable, "-c", "raise SystemExit('why')"])


def test_processes_take_turns_behind_one_that_does_not_count(bundles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run_once(command: list[str]) -> dict[str, int]:
        order.append(command[0])
        return {"run": len(order)}

    monkeypatch.setattr(bundles, "run_once", run_once)
    assert bundles.measure({"a": ["a"], "b": ["b"]}, 2) == {"a": [{"run": 3}, {"run": 5}], "b": [{"run": 4}, {"run": 6}]}
    assert order == ["a", "b"] * 3


def test_the_start_of_an_interpreter_is_left_out(bundles: ModuleType) -> None:
    printed = {"version": "1.2", "load_us": 20, "first_us": 300, "warm_us": [100, 110, 90]}
    ours = bundles.summarise("sepwise", [{**printed, "start_us": 7}], 0.5)
    peer = bundles.summarise("ncnn", [printed], 0.5)
    assert (ours.first_us, peer.first_us) == (327, 320)
    assert (peer.version, peer.warm_us, peer.minimum_us) == ("1.2", 100, 90)


def test_the_page(bundles: ModuleType) -> None:
    sizes = dict(zip(bundles.SIZES, (1000, 20000, 660, 600), strict=True))
    ours: dict[str, Any] = {"runtime": "sepwise", "first_us": 4000.0, "warm_us": 2000.0, "failure": ""}
    missing: dict[str, Any] = {"runtime": "litert", "first_us": None, "warm_us": None, "failure": "conversion failed: why"}
    settings = {"machine": "m", "target": "host, c", "date": "2026-01-01", "rounds": 9, "runs": 20, "read_us": 1000.0}
    page = bundles.make_table({"networks": [{"network": "a", **settings, **sizes, "runtimes": [ours, missing]}]})
    assert "| a | 1,000 | 20,000 | 660 | 600 | 1.10 |" in page
    assert "| a | 1.00 | 1.50 | 4.00 | 2.00 | - | - | - | - | - | - |" in page
    assert "- a, LiteRT: conversion failed: why." in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows[:3]}) == len({row.count("|") for row in rows[3:]}) == 1
