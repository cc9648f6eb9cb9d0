"""The lists of strategies, and the recipe for a new one: one file and one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from sepwise.lowering.strategies import CONV_STRATEGIES, LINEAR_STRATEGIES, PLAIN_STRATEGIES, is_direct, load_strategies

TOY = '''
"""Pointwise convolution, one vector of one pixel at a time."""

import math
from dataclasses import dataclass

from tvm import s_tir

from sepwise.lowering import compute
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.packing import conv_packer
from sepwise.lowering.tiling import mark_task


@dataclass(frozen=True)
class OnePixel:
    def fits(self, device):
        return True


class ToyStrategy:
    name = "toy"
    direct = True

    def applies(self, workload, device):
        stage = workload.stages[0]
        return None if len(workload.stages) == 1 and stage.flat and stage.groups == 1 else Refusal("not pointwise")

    def tiles(self, workload, device, threads):
        return [OnePixel()]

    def predicted_cycles(self, workload, device, threads, tile):
        return 1.0 if workload.stages[0].out_channels == 24 else math.inf

    def schedule(self, workload, device, tile):
        blocks = math.ceil(workload.stages[0].out_channels / workload.output_lanes)
        built = compute.conv(workload, (math.prod(workload.spatial),), blocks, (1,), flat=True)
        sch = s_tir.Schedule(built.function)
        total, output = (sch.get_sblock(name) for name in (built.stages[0].accumulator, built.stages[0].output))
        n, oc_o, p, oc_v = sch.get_loops(output)
        sch.compute_at(total, p)
        sch.set_scope(total, 0, "local")
        mark_task(sch, oc_o)
        return Implementation(sch.mod["main"], conv_packer(workload, (1,)))
'''

LINE = '    "toy.ToyStrategy",\n'

USE = """
import json, sys
import onnx, onnx_ir as ir, sepwise
from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.verify import verify_model

assert sepwise.__file__.startswith(sys.argv[1]), sepwise.__file__
model = ir.load(sys.argv[2])
program, _ = build_program(model, device.get("host"))
verification = verify_model(model, device.get("host"))
checks = [[check.scope, check.status] for check in verification.checks]
print(json.dumps([[call.strategy for call in program.calls], verification.passed, checks]))
"""

NETWORK = """<ir_version: 10, opset_import: ["" : 18]>
network (float[1,8,6,5] x) => (y)
<float[24,8,1,1] wide, float[24] wide_bias, float[16,24,1,1] narrow, float[16] narrow_bias>
{ h = Conv (x, wide, wide_bias) r = Relu (h) y = Conv (r, narrow, narrow_bias) }"""


def test_a_new_strategy_is_one_file_and_one_line(network: Callable[..., ir.Model], repository: Path, tmp_path: Path) -> None:
    """Follows the recipe in a copy of the sources; the strategy runs where it is predicted cheapest, and computes what it should."""
    copy = tmp_path / "sepwise"
    shutil.copytree(repository / "scripts" / "sepwise", copy)
    for package in ("lowering", "passes"):
        shutil.copytree(repository / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    strategies = copy / "lowering" / "strategies"
    (strategies / "toy.py").write_text(TOY)
    before = (strategies / "__init__.py").read_text()
    head = "CONV_STRATEGIES: list[AnyStrategy] = load_strategies(\n"
    assert before.count(head) == 1
    (strategies / "__init__.py").write_text(before.replace(head, head + LINE))
    ir.save(network(NETWORK), tmp_path / "network.onnx")
    run = subprocess.run(
        [sys.executable, "-c", USE, str(copy), str(tmp_path / "network.onnx")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    used, passed, checks = json.loads(run.stdout)
    assert [name for name in used if name != "generic"] == ["toy", "pointwise"]
    assert ["kernel", "passed"] in checks
    assert ["model", "passed"] in checks
    assert passed


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("dens.DenseStrategy", "Strategy 'dens.DenseStrategy': No module named 'sepwise.lowering.strategies.dens'"),
        ("dense.DensStrategy", "Strategy 'dense.DensStrategy': .* has no attribute 'DensStrategy'"),
        ("DenseStrategy", "Strategy 'DenseStrategy': No module named"),
        ("base.Refusal", "Strategy 'base.Refusal': it has no name, direct, applies, tiles, predicted_cycles, schedule"),
    ],
)
def test_what_is_misspelled_fails_at_import(entry: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        load_strategies("pointwise.PointwiseStrategy", entry)


def test_strategies_keep_the_order_of_their_lines() -> None:
    names = [strategy.name for strategy in load_strategies("pointwise.PointwiseStrategy", "dense.DenseStrategy")]
    assert names == ["pointwise", "dense"]


def test_strategies_say_whether_they_are_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy in (*CONV_STRATEGIES, *PLAIN_STRATEGIES, *LINEAR_STRATEGIES):
        assert is_direct(strategy.name) == strategy.direct
    assert not is_direct("generic")
    monkeypatch.setattr(CONV_STRATEGIES[0], "direct", False)
    assert not is_direct(CONV_STRATEGIES[0].name)
