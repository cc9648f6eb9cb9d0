"""The demonstration behind scripts/demo.sh.

A trained classifier of text direction, taken out of the wheel rapidocr-onnxruntime on PyPI, reads lines drawn upright and
turned by 180 degrees; then MobileNetV2 goes from torch to both targets. One table says what was fused, how far the
numbers moved against their bound, and what a run costs.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import sepwise
from sepwise.lowering import device
from sepwise.lowering.bench import RuntimeCount, RuntimeTime
from sepwise.samples import CLASSIFIER, TEXT_LINES, draw_line, fetch_networks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sepwise.lowering.artifact import Artifact
    from sepwise.passes.equivalence import Check

CACHE: Final = Path("build/demo")
EMULATED: Final = "cortex-a72"
FUSED: Final = ("FusedConv", "SeparableConv", "InvertedResidual")
DEGREES: Final = ("0", "180")
SHAPE: Final = (1, 3, 48, 192)

console = Console(width=None if sys.stdout.isatty() else 160)


def ratio(check: Check) -> float:
    """The error relative to its bound; infinite where the bound is 0 and the error is not."""
    return math.inf if check.worst_ratio is None else check.worst_ratio


def available_targets() -> tuple[str, ...]:
    """Lists the host, and the Cortex-A72 where it or its emulator is at hand; says what is left out.

    Returns:
        Names of targets.
    """
    facts = device.get(EMULATED)
    lacking = device.reach(facts)
    if lacking.missing:
        console.print(f"left out: everything on {EMULATED}, for want of {', '.join(lacking.missing)} ({lacking.install})")
        return ("host",)
    return ("host", EMULATED)


def classify(file: Path, targets: Sequence[str]) -> bool:
    """Reads every line in ONNX Runtime and on each target.

    Args:
        file: The classifier.
        targets: Where to run it.

    Returns:
        Whether all say the truth about every line.
    """
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    artifacts: dict[str, Artifact] = {}
    for target in targets:
        console.print(f"compiling {file.stem} for {target} ...", highlight=False)
        artifacts[target] = sepwise.compile(file, target=target, shapes={name: SHAPE})
    table = Table(title="Text direction, in degrees", title_justify="left")
    for column in ("line", "drawn", "ONNX Runtime", *targets):
        table.add_column(column)
    right = True
    for text in TEXT_LINES:
        for turned in (False, True):
            line = draw_line(text, turned=turned)
            scores = [session.run(None, {name: line})[0]]
            scores += [next(iter(artifact.run(**{name: line}).values())) for artifact in artifacts.values()]
            said = [f"{DEGREES[int(np.argmax(score))]} ({float(np.max(score)):.3f})" for score in scores]
            right &= all(int(np.argmax(score)) == int(turned) for score in scores)
            table.add_row(text, DEGREES[turned], *said)
    console.print(table)
    return right


def measure(model: str | Path, inputs: Mapping[str, np.ndarray] | None, targets: Sequence[str]) -> tuple[list[str], bool]:
    """Verifies and measures a network on every target.

    Args:
        model: A zoo name or an ONNX file.
        inputs: What to verify it on; drawn where None.
        targets: Where to run it.

    Returns:
        A row of the table, and whether all checks passed.
    """
    name = Path(model).stem
    shapes = None if inputs is None else {key: array.shape for key, array in inputs.items()}
    fusion = sepwise.fuse(model, shapes=shapes)
    cells = [name, ", ".join(f"{count} {operator}" for operator, count in fusion.operators.items() if operator in FUSED)]
    passed = True
    for target in targets:
        console.print(f"verifying {name} on {target} ...", highlight=False)
        verdict = sepwise.verify(model, target=target, inputs=inputs, shapes=shapes)
        passed &= verdict.passed
        whole = max((check for check in verdict.checks if check.scope == "model"), key=ratio)
        cells.append("-" if whole.margin is None else f"{whole.margin.error:.1e} ({ratio(whole):.3f} of its bound)")
    console.print(f"measuring {name} ...", highlight=False)
    host = sepwise.bench(model, target="host", against=("onnxruntime", "stock-tvm"), shapes=shapes)
    cells += [f"{runtime.median_us / 1e3:.2f}" for runtime in host.runtimes if isinstance(runtime, RuntimeTime)]
    if EMULATED in targets:
        emulated = sepwise.bench(model, target=EMULATED, shapes=shapes)
        cells += [f"{runtime.instructions_per_mac:.3f}" for runtime in emulated.runtimes if isinstance(runtime, RuntimeCount)]
    return cells, passed


def demonstrate() -> bool:
    """Runs the demonstration.

    Returns:
        Whether every answer and every check was right.
    """
    targets = available_targets()
    classifier = fetch_networks(CACHE)[CLASSIFIER]
    right = classify(classifier, targets)
    table = Table(title="From ONNX and from torch to the targets", title_justify="left")
    columns = ["network", "fused operators", *(f"{target}: worst error" for target in targets)]
    columns += ["host ms", "ONNX Runtime ms", "stock TVM ms"]
    if EMULATED in targets:
        columns.append(f"{EMULATED}: instructions per MAC")
    for column in columns:
        table.add_column(column, overflow="fold")
    networks: list[tuple[str | Path, Mapping[str, np.ndarray] | None]] = [
        (classifier, {"x": draw_line(TEXT_LINES[0])}),
        ("mobilenet_v2", None),
    ]
    for model, inputs in networks:
        cells, passed = measure(model, inputs, targets)
        right &= passed
        table.add_row(*cells)
    console.print(table)
    console.print("all right" if right else "NOT right: see the tables above")
    return right


if __name__ == "__main__":
    try:
        sys.exit(0 if demonstrate() else 1)
    except sepwise.SepwiseError as error:
        sys.exit(f"demo: {error}")
