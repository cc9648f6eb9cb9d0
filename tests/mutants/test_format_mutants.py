"""Networks in float16 and float64: right ones pass, wrong ones fail by the rounding of their own format.

A mutant is a changed copy of a network: compiled in its place it is a set of wrong kernels, compared with it a wrong rewrite.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from sepwise.lowering import device, verify
from sepwise.lowering.build import build_program
from sepwise.lowering.verify import verify_model
from sepwise.passes import canonicalize
from sepwise.passes.equivalence import compare_graph, sample_inputs

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

TEXT = """block (T[1,5,9,9] x) => (T[1,7,9,9] y)
<T[5,1,3,3] w0, T[5] g0, T[5] h0, T[5] m0, T[5] var0, T[7,5,1,1] w1, T[7] b1, T low, T high>
{
  [dw] c0 = Conv <group = 5, pads = [1,1,1,1]> (x, w0)
  [bn0] n0 = BatchNormalization <epsilon = 0.00001> (c0, g0, h0, m0, var0)
  [act0] a0 = Clip (n0, low, high)
  [pw] c1 = Conv (a0, w1, b1)
  [act1] y = LeakyRelu <alpha = 0.1> (c1)
}"""

ISLAND = """island (float16[1,5,9,9] x) => (float16[1,5,9,9] y, float[1,5,1,1] s) <float16[5,1,3,3] w0, float[1,5,1,1] f> {
  [dw] c0 = Conv <group = 5, pads = [1,1,1,1]> (x, w0)
  [wide] d0 = Cast <to = 1> (c0)
  [pool] p = GlobalAveragePool (d0)
  [scale] s = Mul (p, f)
  [gate] g = Mul (d0, s)
  [narrow] y = Cast <to = 10> (g)
}"""

LIMITS = {"low": 0.0, "high": 0.75}
TYPES = ("float16", "double")


def read(text: str) -> onnx.ModelProto:
    """Reads a network and draws its weights in their types."""
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for value in proto.graph.value_info:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        array = np.asarray(LIMITS.get(value.name, rng.standard_normal(shape)))
        if value.name.startswith("var"):
            array = np.abs(array) + 0.5
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), value.name))
    del proto.graph.value_info[:]
    return proto


def on_constant(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    """Changes a constant."""

    def apply(proto: onnx.ModelProto) -> None:
        tensor = next(each for each in proto.graph.initializer if each.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(array.copy()).astype(array.dtype), name))

    return apply


def on_attribute(node: str, name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    """Changes an attribute."""

    def apply(proto: onnx.ModelProto) -> None:
        (attribute,) = (a for n in proto.graph.node if n.name == node for a in n.attribute if a.name == name)
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return apply


def scale_largest(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Multiplies the largest weight."""

    def change(array: np.ndarray) -> np.ndarray:
        array.flat[np.abs(array).argmax()] *= factor
        return array

    return change


def compute_in_float32(proto: onnx.ModelProto) -> None:
    """Passes what the batch norm gives through float32."""
    clip = next(node for node in proto.graph.node if node.name == "act0")
    there = onnx.helper.make_node("Cast", ["n0"], ["narrow"], "there", to=onnx.TensorProto.FLOAT)
    back = onnx.helper.make_node("Cast", ["narrow"], ["n0_back"], "back", to=onnx.TensorProto.DOUBLE)
    clip.input[0] = "n0_back"
    place = list(proto.graph.node).index(clip)
    for node in (back, there):
        proto.graph.node.insert(place, node)


@dataclass(frozen=True)
class Mutant:
    """A wrong network.

    Attributes:
        change: Makes it of the right one.
        types: In which of the formats it is wrong beyond rounding.
        rewrite: Whether it is one in exact arithmetic, too.
    """

    change: Callable[[onnx.ModelProto], None]
    types: tuple[str, ...] = TYPES
    rewrite: bool = True


MUTANTS: Mapping[str, Mutant] = {
    "lost tap": Mutant(on_constant("w0", scale_largest(0.0))),
    "one weight by a tenth": Mutant(on_constant("w1", scale_largest(1.1))),
    "lost bias": Mutant(on_constant("b1", np.zeros_like)),
    "clip as ReLU": Mutant(on_constant("high", lambda high: high * 1000)),
    "shifted by a pixel": Mutant(on_attribute("dw", "pads", [0, 1, 2, 1])),
    "root of the variance": Mutant(on_constant("var0", np.square)),
    "weights in float8": Mutant(on_constant("w1", lambda w: w.astype(ml_dtypes.float8_e4m3fn)), ("float16",)),
    "dropped epsilon": Mutant(on_attribute("bn0", "epsilon", 0.0), ("double",)),
    "one weight by a millionth": Mutant(on_constant("w1", scale_largest(1 + 1e-6)), ("double",)),
    "weights in float32": Mutant(on_constant("w1", lambda w: w.astype(np.float32)), ("double",)),
    "computed in float32": Mutant(compute_in_float32, ("double",), rewrite=False),
}
CASES = [pytest.param(name, each, id=f"{name}-{each}") for name, mutant in MUTANTS.items() for each in mutant.types]


def in_type(spelled: str) -> str:
    """The text of the network in a type, as ONNX's text spells it."""
    return TEXT.replace("T[", f"{spelled}[").replace(" T ", f" {spelled} ")


def mutated(spelled: str, name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network in a type, and the same with a mutant."""
    right, wrong = (read(in_type(spelled)) for _ in range(2))
    MUTANTS[name].change(wrong)
    return right, wrong


@pytest.mark.parametrize(("name", "spelled"), CASES)
def test_wrong_kernels_are_found(name: str, spelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = mutated(spelled, name)
    built = canonicalize(ir.from_proto(wrong))
    monkeypatch.setattr(verify, "build_program", lambda _, target, **options: build_program(built, target, **options))
    found = verify_model(canonicalize(ir.from_proto(right)), device.get("host"))
    scopes = {check.scope for check in found.checks if check.status == "failed"}
    assert "kernel" in scopes, [(check.name, check.status, check.worst_ratio, check.reason) for check in found.checks]
    assert "graph" not in scopes


@pytest.mark.parametrize(("name", "spelled"), [case for case in CASES if MUTANTS[case.values[0]].rewrite])
def test_wrong_rewrites_are_found(name: str, spelled: str) -> None:
    right, wrong = mutated(spelled, name)
    (check,) = compare_graph(right, wrong, [sample_inputs(right, seed) for seed in range(2)])
    assert check.status == "failed", check


RIGHT = {**{spelled: in_type(spelled) for spelled in TYPES}, "island": ISLAND}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass(name: str) -> None:
    found = verify_model(canonicalize(ir.from_proto(read(RIGHT[name]))), device.get("host"))
    assert found.passed, [check for check in found.checks if not check.passed]


@pytest.mark.emulated
@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass_on_an_emulated_device(name: str) -> None:
    cortex_a72 = device.get("cortex-a72")
    if cortex_a72.emulated and shutil.which(str(cortex_a72.emulator)) is None:
        pytest.skip(f"{cortex_a72.emulator} is missing: apt-get install qemu-user")
    found = verify_model(canonicalize(ir.from_proto(read(RIGHT[name]))), cortex_a72)
    assert found.passed, [check for check in found.checks if not check.passed]
