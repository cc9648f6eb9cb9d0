import math

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.passes.activations import IDENTITY, Clipped, Form, Gated, Named, Saturating, apply, classify, scalar
from sepwise.passes.vocabulary import Activation

SIXTH = float(np.float32(1 / 6))
INFINITY = math.inf


@pytest.mark.parametrize(
    ("form", "activation"),
    [
        (IDENTITY, None),
        (Clipped(1, 0, 0, INFINITY), Activation("relu")),
        (Clipped(1, 0, 0, 6), Activation("clip", (0, 6))),
        (Clipped(1, 0, -1, INFINITY), Activation("clip", (-1, INFINITY))),
        (Clipped(2, 0, 0, 6), None),
        (Clipped(0.2, 0.5, 0, 1), Activation("hard_sigmoid", (0.2, 0.5))),
        (Clipped(-0.2, 0.5, 0, 1), None),
        (Gated(Clipped(SIXTH, 0.5, 0, 1)), Activation("hard_swish")),
        (Gated(Clipped(SIXTH, SIXTH * 3, 0, SIXTH * 6)), Activation("hard_swish")),
        (Gated(Clipped(0.1666, 0.5, 0, 1)), None),
        (Gated(Clipped(SIXTH, 0.5, 0, 0.999)), None),
        (Gated(Clipped(SIXTH, 0.5, 1e-7, 1)), None),
        (Saturating("sigmoid", 1.0), Activation("sigmoid")),
        (Saturating("sigmoid", 1.0, gated=True), Activation("silu")),
        (Saturating("sigmoid", 1.702, gated=True), None),
        (Saturating("erf", math.sqrt(0.5), 0.5, 0.5, gated=True), Activation("gelu")),
        (Saturating("erf", math.sqrt(0.5), 0.5, 0.5), None),
        (Saturating("tanh_softplus", 1.0, gated=True), Activation("mish")),
        (Named(Activation("elu", (1.0,))), Activation("elu", (1.0,))),
        (None, None),
    ],
)
def test_classify(form: Form | None, activation: Activation | None) -> None:
    assert classify(form) == activation


@pytest.mark.parametrize(
    ("op_type", "operands", "form"),
    [
        ("Add", [IDENTITY, 3.0], Clipped(1, 3)),
        ("Sub", [3.0, Clipped(1, 0, 0, 6)], Clipped(-1, 3, -3, 3)),
        ("Mul", [Clipped(1, 0, 0, 6), -2.0], Clipped(-2, 0, -12, 0)),
        ("Div", [Clipped(1, 3, 0, 6), 2.0], Clipped(0.5, 1.5, 0, 3)),
        ("Div", [IDENTITY, 0.0], None),
        ("Mul", [IDENTITY, 0.0], None),
        ("Mul", [2.0, 3.0], None),
        ("Relu", [Clipped(1, 0, -1, 6)], Clipped(1, 0, 0, 6)),
        ("Min", [6.0, Clipped(1, 0, 0, INFINITY)], Clipped(1, 0, 0, 6)),
        ("Max", [Clipped(1, 0, -2, -1), 0.0], Clipped(1, 0, 0, 0)),
        ("Clip", [IDENTITY, 6.0, 0.0], None),
        ("Clip", [IDENTITY, None, 6.0], None),
        ("Neg", [Clipped(1, 0, 0, 6)], Clipped(-1, 0, -6, 0)),
        ("Max", [Clipped(0.1, 0), IDENTITY], Named(Activation("leaky_relu", (0.1,)))),
        ("Max", [Clipped(2.0, 0), IDENTITY], None),
        ("Mul", [IDENTITY, Clipped(1, 3, 0, 6)], Gated(Clipped(1, 3, 0, 6))),
        ("Mul", [Clipped(1, 1), Clipped(1, 3, 0, 6)], None),
        ("Mul", [Saturating("sigmoid", 1.0), Clipped(2, 0)], Saturating("sigmoid", 1.0, 0.0, 2.0, gated=True)),
        ("Add", [Saturating("erf", 1.0), 1.0], Saturating("erf", 1.0, 1.0)),
        ("Add", [Saturating("erf", 1.0, gated=True), 1.0], None),
        ("Sigmoid", [Clipped(1, 1)], None),
        ("Tanh", [Named(Activation("softplus"))], Saturating("tanh_softplus", 1.0)),
        ("Tanh", [Clipped(2, 0)], None),
        ("Add", [IDENTITY, IDENTITY], None),
        ("Add", [None, 1.0], None),
        ("Conv", [IDENTITY, None], None),
    ],
)
def test_apply(op_type: str, operands: list[Form | float | None], form: Form | None) -> None:
    assert apply(op_type, operands, {}) == form


def test_hard_sigmoid_defaults_and_attributes() -> None:
    attributes = {"alpha": ir.AttrFloat32("alpha", 0.25), "beta": ir.AttrFloat32("beta", 0.75)}
    assert apply("HardSigmoid", [IDENTITY], {}) == Clipped(0.2, 0.5, 0, 1)
    assert apply("HardSigmoid", [IDENTITY], attributes) == Clipped(0.25, 0.75, 0, 1)


def test_the_largest_float_is_no_bound() -> None:
    """Before operator set 11, Clip's bounds default to the ends of float32."""
    largest = float(np.finfo(np.float32).max)
    attributes = {"min": ir.AttrFloat32("min", 0.0), "max": ir.AttrFloat32("max", largest)}
    assert classify(apply("Clip", [IDENTITY], attributes)) == Activation("relu")


def test_scalar() -> None:
    assert scalar(ir.tensor(np.float32(3))) == 3.0
    assert scalar(ir.tensor(np.full((1, 1, 1), 3, np.float32))) == 3.0
    assert scalar(ir.tensor(np.zeros(2, np.float32))) is None
    assert scalar(ir.tensor(np.int64(3))) is None
    assert scalar(None) is None
