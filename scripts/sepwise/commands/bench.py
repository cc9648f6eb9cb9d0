"""`sepwise bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.kernel_table import print_kernels
from sepwise.options import AsJson, Database, Float16, Key, Model, Rpc, Shape, Target, Threads, Timeout, Tracker, read_shapes

__all__ = ["bench"]


def bench(
    model: Model,
    target: Target = "host",
    threads: Threads = 1,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="PEER,...",
            help="Runtimes to compare with: onnxruntime, openvino, ncnn, mnn, iree, torch-compile, stock-tvm.",
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option("--cores", metavar="TARGET,...", help="Further cores to estimate an emulated target's code for."),
    ] = None,
    shape: Shape = None,
    float16: Float16 = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show each kernel's time or counts, and its share of what the cores allow.")
    ] = False,
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: Timeout = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency beside other runtimes or on a board; count and estimate where the target is emulated."""
    from sepwise import api

    shapes = read_shapes(shape)
    peers, others = (tuple(name.strip() for name in names.split(",")) if names else () for names in (against, cores))
    with working(f"benchmarking {model} on {target}"):
        benchmark = api.bench(
            model,
            target=target,
            threads=threads,
            against=peers,
            shapes=shapes,
            cores=others,
            float16=float16,
            profile=profile,
            rpc=rpc,
            tracker=tracker,
            key=key,
            timeout=timeout,
            database=database,
        )
    result = benchmark.to_json()
    if as_json:
        print_json(result)
        return
    title = f"{result['model']} on {result['target']}, {result['threads']} thread(s), {result['method']}"
    if result["method"] == "emulated":
        counted = ["instructions", "instructions_per_mac", "loads", "stores", "l1_misses", "l2_misses"]
        rows = [[r["name"], *(number(r[count]) for count in counted)] for r in result["runtimes"]]
        columns = ["instructions", "instructions per MAC", "loads", "stores", "L1 misses", "L2 misses"]
        print_table(title, ["runtime", *columns], rows)
        for runtime in result["runtimes"]:
            for core, cycles in runtime["estimated_cycles"].items():
                if cycles is not None:
                    print(f"{runtime['name']} on {core}: {cycles / 1e6:,.2f} million cycles, estimated, not measured")
        for note in result["notes"]:
            print(note)
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
    if profile:
        print_kernels(result)
    half = f", {100 * result['float16_mac_share']:.2f} % in float16" if float16 else ""
    used = f", {result['records_used']} kernels by records of {database}" if database is not None else ""
    print(f"{100 * result['strategy_mac_share']:.2f} % of {result['macs']:,} MACs on strategies{half}{used}")
