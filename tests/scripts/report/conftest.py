"""Verifications as reports are made of, written down rather than computed."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sepwise.passes.equivalence import HISTOGRAM_EDGES, Agreement, Check, Verification
from sepwise.passes.equivalence.reproducer import Reproducer
from sepwise.passes.pipeline import PassReport
from sepwise.report.provenance import Provenance

BINS = len(HISTOGRAM_EDGES) + 2
WITHIN = (5, *range(1, BINS - 7), 0, 0, 0, 0, 0, 0)
BEYOND = (*WITHIN[:-1], 3)

GRAPH = Check(
    "graph", "fold_batch_norm: y", (), "passed", 5e-7, 4e-7, 0.25, (0, 7), rms_error=1e-7, rms_bound=4e-7, rms_ratio=0.25, worst_error=5e-7, worst_tensor="y",
    worst_input=1, computed=0.5, expected=0.5000005, histogram=WITHIN, pass_name="fold_batch_norm",
)  # fmt: skip
KERNEL = Check(
    "kernel", "k0_depthwise", ("dw", "bn", "act"), "passed", 7e-5, 8e-6, 0.125, (0, 3, 1, 2), worst_tensor="a", worst_input=0,
    worst_error=1e-6, computed=1.25, expected=1.250001, histogram=WITHIN, strategy="depthwise",
)  # fmt: skip
MODEL = Check(
    "model", "net", (), "passed", 3e-6, 4.8e-5, 0.0625, (0, 1), worst_tensor="y", worst_input=0, computed=2.0, expected=2.000003,
    worst_error=3e-6, histogram=WITHIN,
)  # fmt: skip
EXACT = replace(KERNEL, name="k1_generic", nodes=("pool",), strategy="generic", max_abs_error=0.0, worst_error=0.0, worst_ratio=0.0)
WRONG = replace(
    KERNEL, name="k2_pointwise", nodes=("pw",), strategy="pointwise", status="failed", worst_ratio=1536.0, histogram=BEYOND,
    worst_error=0.012288, reason="off by 0.0123 at [0, 3, 1, 2], where 8e-06 is allowed", reproducer="out/k2.onnx",
)  # fmt: skip
MISPLACED = replace(
    KERNEL, name="k3_dense", nodes=("stem",), strategy="dense", status="failed", max_abs_error=math.inf, worst_error=None, worst_ratio=None,
    computed=math.nan, histogram=(), reason="nan where 1.25 is right",
)  # fmt: skip
SKIPPED = Check(
    "kernel", "k4_loop", ("loop",), "skipped", 0.0, 0.0, None, None, strategy="generic", reason="Loop 'loop': how it rounds is not known",
)  # fmt: skip
PASSES = (
    PassReport("fold_pad", 0),
    PassReport("fold_batch_norm", 2, (("bn7", "the Conv has a second consumer"), ("bn9", "the Conv has a second consumer"))),
)


@pytest.fixture(scope="session")
def passing() -> Verification:
    checks = (GRAPH, KERNEL, EXACT, MODEL)
    return Verification("net", "host", checks, passes=PASSES, inputs=("normal", "uniform"), kernel_inputs=("oracle", "knees"))


@pytest.fixture(scope="session")
def failing() -> Verification:
    checks = (GRAPH, KERNEL, EXACT, SKIPPED, WRONG, MISPLACED, MODEL)
    return Verification("net", "host", checks, passes=PASSES, inputs=("normal", "uniform"))


@pytest.fixture(scope="session")
def skipping() -> Verification:
    return Verification("net", "host", (GRAPH, KERNEL, SKIPPED, MODEL), passes=PASSES, inputs=("normal",))


@pytest.fixture(scope="session")
def comparing() -> Verification:
    changed = replace(GRAPH, name="y", pass_name=None, status="failed", worst_ratio=7.0, rms_error=2.8e-6, rms_ratio=7.0, histogram=BEYOND, reason="RMS error 7")
    return Verification("net", None, (changed, MODEL), against="fused", inputs=("given",), agreement=(Agreement("y", 1, None, 3, 2, 1),))


@pytest.fixture(scope="session")
def bisected(failing: Verification) -> Verification:
    found = Reproducer(
        finding=("Kernel k2_pointwise is wrong.", "It computes 'pw'."),
        nodes=("pw",),
        models={},
        inputs={},
        arguments=("verify", "original.onnx", "--input", "input.npz"),
        reproduces=True,
        checks=("k2_pointwise",),
        folder=Path("net.bisect"),
    )
    return replace(failing, reproducer=found, notes=("Inputs were matched by position.",))


@pytest.fixture(scope="session")
def hostile() -> Verification:
    """Every text that comes from outside holds markup, quotes, a control character and a lone surrogate."""
    text = "</script><script>alert('1')</script> & \"it\" ]]> \x08\ud800 <img src=x>"
    checks = [
        replace(check, name=f"{check.name} {text}", nodes=(text, *check.nodes), reason=text, worst_tensor=text, reproducer=text)
        for check in (GRAPH, KERNEL, SKIPPED, WRONG, MODEL)
    ]
    checks = [replace(check, strategy=text) if check.strategy else replace(check, pass_name=text) for check in checks]
    passes = (PassReport(text, 1, ((text, text),)),)
    found = Reproducer((text,), (text,), {}, {}, (text,), reproduces=False, folder=Path("hostile"))
    return Verification(
        f"net {text}",
        f"host {text}",
        tuple(checks),
        passes=passes,
        inputs=(text,),
        kernel_inputs=(text,),
        agreement=(Agreement(text, None, 0.5, 1, 1, 0),),
        notes=(text,),
        reproducer=found,
    )


@pytest.fixture(scope="session")
def verdicts(
    passing: Verification,
    failing: Verification,
    skipping: Verification,
    comparing: Verification,
    bisected: Verification,
    hostile: Verification,
) -> dict[str, Verification]:
    """All of these by name, and one without any check."""
    nothing = Verification("net", "host", ())
    return {
        "passing": passing,
        "failing": failing,
        "skipping": skipping,
        "comparing": comparing,
        "bisected": bisected,
        "hostile": hostile,
        "nothing": nothing,
    }


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance(
        command="sepwise verify net.onnx --target host",
        target="host (some-cpu, native)",
        date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        versions={"sepwise": "1.2.3", "Python": "3.11.0"},
        machine="Linux on x86_64",
    )
