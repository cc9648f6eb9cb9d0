"""Whole networks on whole targets: every zoo network and the trained files, verified on host and on every emulated core.

CI takes narrow networks at small sizes on the host, a few of them on the Cortex-A72 and the smallest on the other cores; the
nightly profile takes all of them at full size on the host, and all of them at small sizes on the cores, and bundles as foretold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.bundle import bundle
from sepwise.lowering.foretell import CODE_ERROR, foretell
from sepwise.lowering.verify import verify_model
from sepwise.models import names
from sepwise.passes import load_model
from sepwise.samples import CLASSIFIER, DETECTOR, RECOGNISER

SMALL: dict[str, tuple[int, ...]] = {
    "efficientnet_lite0": (1, 3, 32, 32),
    "mnasnet": (1, 3, 32, 32),
    "mobilenet_v1": (1, 3, 32, 32),
    "mobilenet_v2": (1, 3, 32, 32),
    "mobilenet_v3_large": (1, 3, 32, 32),
    "mobilenet_v3_small": (1, 3, 32, 32),
    "shufflenet_v2": (1, 3, 64, 64),
    "xception": (1, 3, 75, 75),
    "yolov5n_dw": (1, 3, 64, 64),
}
"""Input shapes of the reduced networks; those without an entry are small as they are."""

WIDTH = 0.25
"""Width of the reduced networks."""

IN_CI = ("ds_cnn", "grouped", "mobilenet_v2", "mobilenet_v3_small", "separable_block", "shufflenet_v2", "tcn_1d")
EMULATED_IN_CI = ("grouped", "mobilenet_v2", "separable_block")
FLOAT16_IN_CI = ("grouped", "separable_block")
OTHERS_IN_CI = ("separable_block",)
OTHER_CORES = ("cortex-a53", "cortex-a55", "cortex-a76", "neoverse-n1", "neoverse-v1", "neoverse-v2", "a64fx", "cortex-a7", "cortex-m7")

TRAINED = {CLASSIFIER: (1, 3, 48, 192), DETECTOR: (1, 3, 96, 96), RECOGNISER: (1, 3, 48, 96)}


def check(path: Path, target: str, shapes: Mapping[str, tuple[int, ...]] | None = None, *, float16: bool = False) -> None:
    """Every check passes, and every convolution runs in a strategy, in float16 where that is asked for."""
    model = load_model(path, shapes=shapes)
    _, report = build_program(model, device.get(target), float16=float16)
    assert report.strategy_mac_share >= 0.99
    assert report.float16_mac_share == (report.strategy_mac_share if float16 else 0)
    assert report.generic_convolutions == ()
    verification = verify_model(model, device.get(target), float16=float16)
    assert verification.passed, [c for c in verification.checks if not c.passed]


def reduced(name: str) -> dict[str, object]:
    return {"shape": SMALL[name], "width": WIDTH} if name in SMALL else {}


def in_ci(chosen: tuple[str, ...]) -> list[object]:
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.nightly) for name in names()]


@pytest.mark.parametrize("name", in_ci(IN_CI))
def test_reduced_on_host(zoo_file: Callable[..., Path], name: str) -> None:
    check(zoo_file(name, **reduced(name)), "host")


@pytest.mark.emulated
@pytest.mark.parametrize("name", in_ci(EMULATED_IN_CI))
def test_reduced_on_cortex_a72(zoo_file: Callable[..., Path], name: str) -> None:
    check(zoo_file(name, **reduced(name)), "cortex-a72")


@pytest.mark.emulated
@pytest.mark.parametrize("core", OTHER_CORES)
@pytest.mark.parametrize("name", in_ci(OTHERS_IN_CI))
def test_reduced_on_other_cores(zoo_file: Callable[..., Path], name: str, core: str) -> None:
    check(zoo_file(name, **reduced(name)), core)


@pytest.mark.emulated
@pytest.mark.parametrize("name", in_ci(FLOAT16_IN_CI))
def test_reduced_in_float16(zoo_file: Callable[..., Path], name: str) -> None:
    check(zoo_file(name, **reduced(name)), "cortex-a76", float16=True)


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["host", "cortex-a72", "cortex-m7"])
@pytest.mark.parametrize("name", names())
def test_bundles_are_as_foretold(zoo_file: Callable[..., Path], name: str, target: str, tmp_path: Path) -> None:
    path = zoo_file(name, **reduced(name))
    found, manifest = foretell(load_model(path), device.get(target)), bundle(path, tmp_path / "net", target=target).manifest
    for size in ("arena_bytes", "arena_lower_bound_bytes", "worker_bytes", "weight_bytes"):
        assert getattr(found, size) == manifest[size], size
    assert abs(found.code_estimate_bytes / manifest["code_bytes"] - 1) <= CODE_ERROR


@pytest.mark.nightly
@pytest.mark.parametrize("name", names())
def test_full_size_on_host(zoo_file: Callable[..., Path], name: str) -> None:
    check(zoo_file(name), "host")


@pytest.mark.nightly
@pytest.mark.emulated
@pytest.mark.parametrize("target", ["host", "cortex-a72"])
@pytest.mark.parametrize("name", TRAINED)
def test_trained_files(trained_networks: dict[str, Path], name: str, target: str) -> None:
    check(trained_networks[name], target, {"x": TRAINED[name]})
