"""What the tables say of right and wrong results, and how a result comes to be judged."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.passes.equivalence import Check, Verification
from sepwise.passes.errors import CheckFailed
from sepwise.passes.saving import save_model

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
net (float[1,3,9,9] x) => (float[1,5,9,9] y)
<float[3,1,3,3] w0, float[3] b0, float[3] g0, float[3] h0, float[3] m0, float[3] var0, float[5,3,1,1] w1>
{
  c0 = Conv <group = 3, pads = [1,1,1,1]> (x, w0, b0)
  n0 = BatchNormalization (c0, g0, h0, m0, var0)
  a0 = Relu (n0)
  y = Conv (a0, w1)
}"""


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("verification")


def test_each_rule_has_its_own_idea_of_right(script: ModuleType) -> None:
    right = np.array([1.0, 100.0, 1e-3])
    verdicts = {
        name: [rule(right + np.array(error), right) for error in ([1.5e-5, 0, 0], [3e-5, 0, 0], [0, 0, 2e-5], [0, 5.0, 0])]
        for name, rule in script.RULES.items()
    }
    assert verdicts == {
        "allclose 1e-5, 1e-5": [True, False, False, False],
        "Polygraphy 1e-5, 1e-5": [False, False, False, False],
        "onnxsim 1e-4, 1e-5": [True, True, False, False],
        "cosine 0.997": [True, True, True, True],
    }
    polygraphy = script.RULES["Polygraphy 1e-5, 1e-5"]
    assert polygraphy(right + np.array([0.9e-5, 0, 0.9e-5]), right)
    assert polygraphy(right + np.array([0, 9e-4, 0]), right)
    assert not any(rule(np.array([np.nan, 1.0]), np.ones(2)) for rule in script.RULES.values())


def test_results_survive_json(script: ModuleType) -> None:
    result = script.Result("wrong kernel", "a", "net", math.inf, math.inf, element_ratio=2.0, accepted={"r": False}, named=True)
    assert script.Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result
    assert result.to_json()["ratio"] is None
    assert "rms_ratio" not in result.to_json()


def measured(script: ModuleType) -> dict[str, Any]:
    no, yes = ({name: verdict for name in script.RULES} for verdict in (False, True))
    results = [
        script.Result("runtime", "p", "a", 0.25, 0.25, 0.25, 0.125, yes),
        script.Result("runtime", "p", "b", 0.5, 0.5, 0.5, 0.125, no),
        script.Result("rewrite", "q", "a", note="why not"),
        script.Result("kernel", "k", "a", 1.5),
        script.Result("wrong runtime", "half", "a", 1234.0, 1234.0, accepted=yes),
        script.Result("wrong rewrite", "m", "tiny", math.inf, 0.5, accepted=yes, named=True),
        script.Result("wrong rewrite", "n", "tiny", 2.0, note="does not run", named=True),
        script.Result("wrong kernel", "o", "large", 0.75, 3.0, accepted=no, named=False),
    ]
    return {
        "date": "2026-01-02",
        "machine": "host",
        "versions": {"tool": "1.2"},
        "images": "of full size",
        "small": ["tiny"],
        "results": [result.to_json() for result in results],
    }


def test_tables(script: ModuleType) -> None:
    text = script.section(measured(script))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert ["model", "p", "2", "0.25", "0.38", "0.5", "0", *["1"] * 4] in rows
    assert ["kernel", "sepwise", "1", "1.5", "1.5", "1.5", "1", *["-"] * 4] in rows
    assert ["half", "1", "1234", "1234", "1234", "0", "0", *["1"] * 4] in rows
    assert ["wrong rewrites in small networks", "2", "2", "> 10^6", "> 10^6", "0", "1", *["1"] * 4] in rows
    assert ["wrong kernels in large", "1", "0.75", "0.75", "0.75", "1", "0", *["0"] * 4] in rows
    assert ["a", "0.25", "1234"] in rows
    assert ["b", "0.5", "-"] in rows
    assert "Below 1: o in large at 0.75." in text
    assert "Not judged: q on a (why not)." in text
    assert "2026-01-02 with tool 1.2" in text


def test_only_the_wrong_side_is_wrong(script: ModuleType) -> None:
    results = [script.Result.from_json(fields) for fields in measured(script)["results"]]
    assert [result.name for result in results if result.on_wrong_side] == ["k", "o"]


def test_the_tables_have_their_place(script: ModuleType) -> None:
    begin, end = script.MARKERS
    once = script.between_markers(f"head\n{begin}\nold\n{end}\ntail\n", "new")
    assert once == f"head\n{begin}\n\nnew\n\n{end}\ntail\n"
    assert script.between_markers(once, "new") == once
    with pytest.raises(CheckFailed, match="no place for the tables"):
        script.between_markers(f"head\n{begin}\n", "new")


def test_the_document_shows_the_numbers_of_the_file(script: ModuleType) -> None:
    document = script.DOCUMENT.read_text()
    assert script.between_markers(document, script.section(json.loads(script.JSON.read_text()))) == document


def test_a_network_is_measured(
    script: ModuleType, network: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RUNTIMES", {name: script.RUNTIMES[name] for name in ("ONNX Runtime", "ONNX Runtime, not optimised")})
    monkeypatch.setattr(script, "WRONG_RUNTIMES", {"none": ("a_module_that_is_not_there", None)})
    monkeypatch.setattr(script, "OPTIMISERS", {"basic": script.OPTIMISERS["ONNX Runtime's file, basic"]})
    save_model(network(TEXT), tmp_path / "net.onnx")
    results = list(script.measure(script.Network("net", tmp_path / "net.onnx")))
    assert [(result.group, result.name) for result in results if result.group != "kernel"] == [
        ("runtime", "ONNX Runtime"),
        ("runtime", "ONNX Runtime, not optimised"),
        ("rewrite", "basic"),
        ("part", "basic"),
        ("rewrite", "sepwise"),
        ("part", "sepwise"),
        ("runtime", "sepwise"),
    ]
    assert any(result.group == "kernel" and result.ratio for result in results)
    assert not any(result.on_wrong_side or result.note for result in results)
    assert all(result.rms_ratio and result.element_ratio for result in results if result.group == "runtime")


def test_a_faint_mutant_is_judged_in_both_scopes(script: ModuleType, network: Callable[..., ir.Model]) -> None:
    """A scale that is off by a few roundings: beyond those of constants, within those of arithmetic."""
    original, rewritten = network(TEXT), network(TEXT)
    weight = rewritten.graph.initializers["w1"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1 + 2.0**-21), name="w1")
    check = Check("graph", "fold: y", (), "failed", 1.0, 1.0, 8.0, None, pass_name="fold")
    facts = {
        "mutant": SimpleNamespace(name="faint", culprit="fold"),
        "caught": True,
        "verification": Verification("net", "host", (check,), inputs=("normal", "uniform")),
        "original": original,
        "rewritten": rewritten,
    }
    result = script.judge_mutant(facts)
    assert (result.group, result.network, result.ratio, result.named) == ("wrong rewrite", "net", 8.0, True)
    assert 0 < result.rms_ratio <= result.model_ratio
    assert all(result.accepted.values())
