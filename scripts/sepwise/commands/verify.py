"""`sepwise verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Database, Float16, Key, Rpc, Shape, Target, Threads, Timeout, Tracker, read_shapes

if TYPE_CHECKING:
    from sepwise.passes.equivalence import Check

__all__ = ["verify"]

_BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"
"""The oracle's matrices are small: two threads that wait for each other take many times as long where a core is busy."""


def verify(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An ONNX file, or the name of a zoo network.", show_default=False)
    ] = None,
    target: Target = "host",
    against: Annotated[str | None, typer.Option("--against", help="An ONNX file that should compute the same.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="A bundle of the model, linked and run where it will run.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--input", metavar="DATA.npz", help="Inputs by name; drawn where absent.")] = None,
    shape: Shape = None,
    threads: Threads = 1,
    float16: Float16 = False,
    database: Database = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="REPORT.html", help="Write a page with plots.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="REPORT.xml", help="Write JUnit XML for a CI system.")] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Narrow a failure down, and save what reproduces it.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to save it; MODEL.bisect where absent.")
    ] = None,
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Check passes, kernels and the whole network against a float64 reference, with derived tolerances."""
    os.environ.setdefault(_BLAS_THREADS, "1")  # read when numpy is loaded
    from sepwise import api
    from sepwise.files import read_arrays, read_inputs_of
    from sepwise.report import require_places, write_html, write_junit
    from sepwise.report.provenance import spell_command

    require_places(html, junit)
    shapes = read_shapes(shape)
    inputs = None
    if data is not None:
        inputs = read_arrays(data) if model is None else read_inputs_of(model, data, shapes)
    with working(f"verifying {model or bundle}"):
        verdict = api.verify(
            model,
            target=target,
            against=against,
            bundle=bundle,
            inputs=inputs,
            shapes=shapes,
            threads=threads,
            float16=float16,
            bisect=bisect,
            database=database,
            output=output,
            rpc=rpc,
            tracker=tracker,
            key=key,
            timeout=timeout,
        )
    if html is not None:
        write_html(verdict, html, command=spell_command(context))
    if junit is not None:
        write_junit(verdict, junit)
    if as_json:
        print_json(verdict.to_json())
    else:
        rows = [
            [check.name, check.scope, check.status, *_margin(check), number(check.worst_ratio)] for check in verdict.checks
        ]
        print_table(
            f"{verdict.model} on {verdict.target}" if against is None else f"{verdict.model} against {against}",
            ["check", "scope", "status", "judged by", "error", "bound", "error / bound"],
            rows,
        )
        for answer in verdict.agreement:
            print(answer)
        for check in verdict.checks:
            if check.reason:
                print(f"{check.name}: {check.reason}")
        for note in verdict.notes:
            print(note)
        if verdict.reproducer is not None:
            print("\n".join((*verdict.reproducer.text, f"Files: {verdict.reproducer.folder}")))
        print("passed" if verdict.passed else "NOT passed")
    if not verdict.passed:
        raise typer.Exit(1)


def _margin(check: Check) -> list[str]:
    """What decided a check: the worst element or the root mean square, its error and its bound."""
    margin = check.margin
    return ["-", "-", "-"] if margin is None else [margin.of, number(margin.error), number(margin.bound)]
