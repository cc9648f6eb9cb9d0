"""`sepwise bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Model, Shape, Target, Threads, read_shapes

__all__ = ["bench"]


def bench(
    model: Model,
    target: Target = "host",
    threads: Threads = 1,
    against: Annotated[
        str | None, typer.Option("--against", metavar="PEER,...", help="Runtimes to compare with: onnxruntime, stock-tvm.")
    ] = None,
    shape: Shape = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency beside other runtimes, each in its own process, in alternating rounds."""
    from sepwise import api

    shapes = read_shapes(shape)
    peers = tuple(peer.strip() for peer in against.split(",")) if against else ()
    with working(f"benchmarking {model} on {target}"):
        result = api.bench(model, target=target, threads=threads, against=peers, shapes=shapes).to_json()
    if as_json:
        print_json(result)
        return
    title = f"{result['model']} on {result['target']}, {result['threads']} thread(s), {result['method']}"
    if result["method"] == "emulated":
        rows = [[r["name"], number(r["instructions"]), number(r["instructions_per_mac"])] for r in result["runtimes"]]
        print_table(title, ["runtime", "instructions", "instructions per MAC"], rows)
    else:
        rows = [
            [
                f"{r['name']} {r['version']}",
                *map(number, (r["median_us"], r["minimum_us"], r["p90_us"], r["runs"], result["speedup"].get(r["name"]))),
            ]
            for r in result["runtimes"]
        ]
        print_table(title, ["runtime", "median us", "minimum us", "p90 us", "runs", "times ours"], rows)
        for tail in (kernel for kernel in result["kernels"] if kernel["name"] == "tail"):
            print(f"of ours {number(tail['median_us'])} us in TVM's virtual machine: {', '.join(tail['nodes'])}")
    print(f"{100 * result['strategy_mac_share']:.2f} % of {result['macs']:,} MACs on strategies")
