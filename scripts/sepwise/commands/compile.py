"""`sepwise compile`."""

from __future__ import annotations

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Compilation, with_options_of_first

__all__ = ["compile_"]


@with_options_of_first
def compile_(asked: Compilation, as_json: AsJson = False) -> None:
    """Compile a network for a target into a folder that `sepwise run` runs."""
    from sepwise import api

    arguments = asked.arguments()
    with working(f"compiling {asked.model} for {asked.target}"):
        artifact = api.compile(asked.model, **arguments)
    report = artifact.report
    if as_json:
        print_json(report)
        return
    columns = ["kernel", "strategy", "MACs"]
    rows = [[call.name, call.strategy, number(call.macs)] for call in artifact.program.calls]
    print_table(f"{report['model']} for {report['target']}", columns, rows)
    half = f", {100 * report['float16_mac_share']:.2f} % in float16" if asked.float16 else ""
    share = f"{100 * report['strategy_mac_share']:.2f} % of the MACs on strategies{half}"
    used = f", {report['records_used']} of {report['kernels']} kernels by records of {asked.database}" if asked.database else ""
    print(f"{share}{used}, {report['seconds']:.1f} s -> {asked.output}")
