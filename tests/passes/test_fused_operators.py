from collections.abc import Callable

import onnx_ir as ir
import pytest

from sepwise.passes import fuse
from sepwise.passes.functions import DATA, Operand, Result, Step
from sepwise.passes.fused_operators import ROLES, describe
from sepwise.passes.vocabulary import FUSED_OPERATORS

Build = Callable[..., ir.Model]


def conv(source: Result = DATA, *, bias: bool = False) -> Step:
    weight: list[Operand] = [ir.Value(name="w"), ir.Value(name="b")]
    return Step("Conv", "", (source, *weight[: 1 + bias]), {}, ())


def unary(op_type: str, domain: str = "") -> Step:
    return Step(op_type, domain, (Result(0),), {}, ())


ADD = Step("Add", "", (Result(0), ir.Value(name="r")), {}, ())

NAMES = [
    ("FusedConv", [conv(bias=True), unary("Relu")], "FusedConv_convBiasRelu", ["", ""]),
    ("FusedConv", [conv(), ADD, unary("Relu")], "FusedConv_conv_addRelu", ["", "", "post_"]),
    ("FusedConv", [conv(), unary("Relu"), ADD], "FusedConv_convRelu_add", ["", "", ""]),
    ("FusedConv", [conv(), unary("HardSwish_SigmoidMul", "sepwise")], "FusedConv_convHardSwishSigmoidMul", ["", ""]),
    (
        "SeparableConv",
        [conv(), unary("Clip"), conv(bias=True)],
        "SeparableConv_dwClip_pwBias",
        ["depthwise_"] * 2 + ["pointwise_"],
    ),
    ("InvertedResidual", [conv(), conv(), conv()], "InvertedResidual_pw_dw_pw", ["expand_", "depthwise_", "project_"]),
]


@pytest.mark.parametrize(("operator", "steps", "name", "prefixes"), NAMES)
def test_names_and_prefixes(operator: str, steps: list[Step], name: str, prefixes: list[str]) -> None:
    assert describe(operator, steps, ROLES[operator][0]) == (name, prefixes)


def test_pointwise_first() -> None:
    assert describe("SeparableConv", [conv(), conv()], ROLES["SeparableConv"][1])[0] == "SeparableConv_pw_dw"


def test_every_operator_has_roles() -> None:
    assert set(ROLES) == set(FUSED_OPERATORS)


def test_functions_that_grouping_took_in_are_dropped(build: Build) -> None:
    fused = fuse(
        build(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,4,9,8] x) => (float y) <float[4,1,3,3] w, float[4,4,1,1] v>
            { a = Conv <group = 4> (x, w) b = Relu (a) c = Conv (b, v) y = Relu (c) }"""
        )
    ).model
    assert [name for _, name, _ in fused.functions] == ["SeparableConv_dwRelu_pwRelu"]
