"""The verdict over all checks."""

import json
from dataclasses import replace

import pytest

from sepwise.passes.equivalence import Check, Verification

PASSED = Check("kernel", "k", ("Conv_0",), "passed", 1e-7, 2e-7, 0.5, (0, 1))
WORSE = replace(PASSED, name="l", worst_ratio=0.75)
SKIPPED = replace(PASSED, status="skipped", worst_ratio=None)
FAILED = replace(PASSED, status="failed", worst_ratio=3.0)
ENDLESS = replace(FAILED, worst_ratio=None, max_abs_error=float("inf"))


@pytest.mark.parametrize(
    ("checks", "passed", "worst_ratio"),
    [
        ((PASSED,), True, 0.5),
        ((PASSED, WORSE), True, 0.75),
        ((PASSED, FAILED), False, 3.0),
        ((PASSED, SKIPPED), False, 0.5),
        ((PASSED, ENDLESS), False, None),
        ((SKIPPED,), False, None),
        ((), False, None),
    ],
)
def test_verdict(checks: tuple[Check, ...], passed: bool, worst_ratio: float | None) -> None:
    """Nothing checked, and anything skipped, is not passed."""
    verdict = Verification("m", "host", checks)
    assert (verdict.passed, verdict.worst_ratio) == (passed, worst_ratio)


def test_json_is_json() -> None:
    written = Verification("m", None, (PASSED, ENDLESS)).to_json()
    read = json.loads(json.dumps(written, allow_nan=False))
    assert (read["model"], read["target"], read["passed"], read["worst_ratio"]) == ("m", None, False, None)
    assert [check["status"] for check in read["checks"]] == ["passed", "failed"]
    assert read["checks"][0]["nodes"] == ["Conv_0"]
    assert read["checks"][1]["max_abs_error"] is None
