"""`sepwise inspect`."""

from __future__ import annotations

from sepwise.console import number, print_json, print_table, working
from sepwise.options import AsJson, Model, Shape, read_shapes

__all__ = ["inspect"]


def inspect(model: Model, shape: Shape = None, as_json: AsJson = False) -> None:
    """Show the layers, parameters, MACs, separable against standard cost, peak RAM and flash."""
    from sepwise import api

    shapes = read_shapes(shape)
    with working(f"inspecting {model}"):
        found = api.inspect(model, shapes=shapes)
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
