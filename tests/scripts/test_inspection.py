from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import parser

from sepwise.inspection import Inspection, inspect_model

SEPARABLE = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 3, 8, 8] x, float[3, 1, 3, 3] d, float[4, 3, 1, 1] p, float[4, 3, 3, 3] s)
  => (float[1, 4, 8, 8] y, float[1, 4, 8, 8] z)
{
   h = Conv <group = 3, pads = [1, 1, 1, 1]> (x, d)
   a = Relu(h)
   y = Conv(a, p)
   z = Conv <pads = [1, 1, 1, 1]> (x, s)
}
"""


@pytest.fixture(scope="module")
def found() -> Inspection:
    import numpy as np

    model = ir.from_proto(parser.parse_model(SEPARABLE))
    for name in ("d", "p", "s"):
        value = next(value for value in model.graph.inputs if value.name == name)
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=name)
        model.graph.inputs.remove(value)
        model.graph.initializers[name] = value
    return inspect_model("net", model)


def test_a_separable_layer_costs_39_parameters_where_a_standard_one_costs_108(found: Inspection) -> None:
    depthwise, pointwise, dense = found.layers
    assert [layer.kind for layer in found.layers] == ["depthwise", "pointwise", "dense"]
    assert (depthwise.parameters, pointwise.parameters, dense.parameters) == (27, 12, 108)
    (pair,) = found.separable
    assert (pair.parameters, pair.standard_parameters) == (39, 108)
    assert (pair.macs, pair.standard_macs) == (39 * 64, 108 * 64)
    assert dense.macs == pair.standard_macs


def test_totals(found: Inspection) -> None:
    assert found.parameters == 39 + 108
    assert found.standard_parameters == 2 * 108
    assert found.macs == 64 * (39 + 108)
    assert found.flash_bytes == 4 * (39 + 108)
    # x, y and z live together: x is read when z is written, and y is an output
    assert found.peak_ram_bytes == 4 * 64 * (3 + 4 + 4)


def test_json_has_every_field(found: Inspection) -> None:
    assert set(found.to_json()) >= {"model", "layers", "separable", "parameters", "macs", "peak_ram_bytes", "flash_bytes"}


def test_mobilenet_v2_has_the_papers_numbers(zoo_file: Callable[..., Path]) -> None:
    from sepwise.passes import load_model

    whole = inspect_model("mobilenet_v2", load_model(zoo_file("mobilenet_v2", shape=(1, 3, 224, 224))))
    assert whole.macs == 300_774_272  # the same table: 300 M
    assert len(whole.separable) == 17
