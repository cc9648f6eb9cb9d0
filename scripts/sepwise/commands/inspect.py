"""`sepwise inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Model, Shape, read_shapes

if TYPE_CHECKING:
    from sepwise.lowering.foretell import Forecast

__all__ = ["inspect"]

ForecastTarget = Annotated[
    str | None, typer.Option("--target", help="Foretell what one of those that `sepwise targets` lists will need.")
]


def inspect(model: Model, target: ForecastTarget = None, shape: Shape = None, as_json: AsJson = False) -> None:
    """Show the layers, parameters, MACs, separable against standard cost, peak RAM and flash, and what a target will need."""
    from sepwise import api

    shapes = read_shapes(shape)
    with working(f"inspecting {model}"):
        found = api.inspect(model, target=target, shapes=shapes)
    if as_json:
        print_json(found.to_json())
        return

    def size(dimensions: tuple[int, ...]) -> str:
        return "x".join(map(str, dimensions))

    print_table(
        found.model,
        ["layer", "kind", "input", "output", "parameters", "MACs", "standard parameters", "standard MACs"],
        [
            [
                layer.name,
                layer.kind,
                size(layer.input_shape),
                size(layer.output_shape),
                *map(number, (layer.parameters, layer.macs, layer.standard_parameters, layer.standard_macs)),
            ]
            for layer in found.layers
        ],
    )
    if found.separable:
        print_table(
            "Depthwise and pointwise together, against one standard convolution",
            ["first", "second", "parameters", "standard parameters", "MACs", "standard MACs"],
            [
                [
                    *pair.layers,
                    *map(number, (pair.parameters, pair.standard_parameters, pair.macs, pair.standard_macs)),
                ]
                for pair in found.separable
            ],
        )
    print(f"parameters {found.parameters:,} (standard {found.standard_parameters:,})")
    print(f"MACs       {found.macs:,} (standard {found.standard_macs:,})")
    print(f"peak RAM   {found.peak_ram_bytes:,} bytes of activations alive at once")
    print(f"flash      {found.flash_bytes:,} bytes of constants")
    if found.forecast is not None:
        _print_forecast(found.forecast)


def _print_forecast(forecast: Forecast) -> None:
    """Prints what a device will need."""

    def compare(nbytes: int, there: int | None) -> list[str]:
        return [number(nbytes), "" if there is None else number(there)]

    print_table(
        f"A bundle for {forecast.target}, foretold",
        ["", "bytes", "the device has"],
        [
            ["RAM", *compare(forecast.ram_bytes, forecast.device_ram_bytes)],
            ["  arena", number(forecast.arena_bytes), ""],
            ["  inputs and outputs", number(forecast.tensor_bytes), ""],
            ["flash", *compare(forecast.flash_bytes, forecast.device_flash_bytes)],
            ["  weights", number(forecast.weight_bytes), ""],
            ["  code, an estimate", number(forecast.code_estimate_bytes), ""],
        ],
    )
    if forecast.device_ram_bytes is None:
        print("Weights and code are counted in RAM too, where the system loads them.")
    for reason in forecast.lacks:
        print(reason)
