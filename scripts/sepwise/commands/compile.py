"""`sepwise compile`."""

from __future__ import annotations

from sepwise.console import number, print_json, print_table, working
from sepwise.options import (
    AsJson,
    Float16,
    Image,
    InputLayout,
    InputType,
    Mean,
    Model,
    Output,
    Shape,
    Std,
    Target,
    Threads,
    read_image,
    read_shapes,
)

__all__ = ["compile_"]


def compile_(
    model: Model,
    output: Output,
    target: Target = "host",
    shape: Shape = None,
    threads: Threads = 1,
    float16: Float16 = False,
    input_type: InputType = None,
    input_layout: InputLayout = None,
    mean: Mean = None,
    std: Std = None,
    image: Image = None,
    as_json: AsJson = False,
) -> None:
    """Compile a network for a target into a folder that `sepwise run` runs."""
    from sepwise import api

    shapes = read_shapes(shape)
    taken = read_image(input_layout, input_type, mean, std, image)
    with working(f"compiling {model} for {target}"):
        artifact = api.compile(
            model, target=target, shapes=shapes, threads=threads, float16=float16, image=taken, output=output
        )
    report = artifact.report
    if as_json:
        print_json(report)
        return
    columns = ["kernel", "strategy", "MACs"]
    rows = [[call.name, call.strategy, number(call.macs)] for call in artifact.program.calls]
    print_table(f"{report['model']} for {report['target']}", columns, rows)
    half = f", {100 * report['float16_mac_share']:.2f} % in float16" if float16 else ""
    print(f"{100 * report['strategy_mac_share']:.2f} % of the MACs on strategies{half}, {report['seconds']:.1f} s -> {output}")
