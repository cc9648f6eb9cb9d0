from collections.abc import Callable

import onnx_ir as ir
import pytest

from sepwise.passes.fold_transpose import FoldTransposePass
from sepwise.passes.rewriting import original_nodes

Build = Callable[..., ir.Model]
Equivalent = Callable[..., None]

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
FLAT = "[t] a = Transpose <perm = [0,2,3,1]> (x) [f] b = Reshape (a, flat)"
CONSTANTS = "int64[2] flat = {0, -1}, float[120,7] w, float[7,120] v, float[7] c, float[120,120] square, int64[3] rows = {2, 30, 4}"


def fold(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    folded = model.clone()
    result = FoldTransposePass()(folded)
    assert result.modified == (result.fired > 0)
    again = FoldTransposePass()(folded)
    assert not again.modified
    return folded, result.fired, tuple(refusal.reason for refusal in result.refused)


FIRES = {
    "MatMul": f"{FLAT} y = MatMul (b, w)",
    "Gemm": f"{FLAT} y = Gemm <alpha = 0.5> (b, w, c)",
    "Gemm of a transposed weight": f"{FLAT} y = Gemm <transB = 1> (b, v, c)",
    "Flatten": "[t] a = Transpose <perm = [0,3,2,1]> (x) [f] b = Flatten (a) y = MatMul (b, w)",
    "two products": f"{FLAT} d = MatMul (b, w) e = Gemm <transB = 1> (b, v) y = Add (d, e)",
    "a shared weight": f"{FLAT} d = MatMul (b, square) e = MatMul (d, square) y = MatMul (e, w)",
}


@pytest.mark.parametrize("body", FIRES)
def test_rows_are_exchanged_instead(body: str, build: Build, equivalent: Equivalent) -> None:
    model = build(HEAD + f"g (float[2,4,5,6] x) => (float y) <{CONSTANTS}> {{ {FIRES[body]} }}")
    folded, fired, refused = fold(model)
    assert (fired, refused) == (1, ())
    assert "Transpose" not in [node.op_type for node in folded.graph]
    assert original_nodes(folded.graph.node("f")) == (("t", "f"),)
    equivalent(model, folded)


REFUSED = {
    "the output 'a' of Transpose 't' has a second consumer, 'other'": f"{FLAT} d = MatMul (b, w) [other] e = Relu (a) y = Flatten (e)",
    "the output 'a' of Transpose 't' is a graph output": f"{FLAT} y = MatMul (b, w)",
    "its first axis moves": "a = Transpose <perm = [1,0,2,3]> (s) b = Flatten (a) y = MatMul (b, w)",
    "nothing, or a graph output, is what reads Reshape 'f'": FLAT.replace("b =", "y ="),
    "Relu 'r' is no product with a constant weight": f"{FLAT} [r] y = Relu (b)",
    "MatMul 'r' is no product with a constant weight": f"{FLAT} [r] y = MatMul (b, given)",
    "Gemm 'r' is no product with a constant weight": f"{FLAT} [r] y = Gemm <transA = 1> (b, two)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason: str, build: Build) -> None:
    outputs = "float y, float a" if "'t' is a graph output" in reason else "float y, float d" if "'other'" in reason else "float y"
    model = build(HEAD + f"""
    g (float[2,4,5,6] x, float[4,2,5,6] s, float[120,7] given) => ({outputs}) <{CONSTANTS}, float[2,3] two> {{ {REFUSED[reason]} }}
    """)
    folded, fired, refused = fold(model)
    assert (fired, refused) == (0, (reason,))
    assert [node.op_type for node in folded.graph] == [node.op_type for node in model.graph]


def test_axes_that_stay_apart_are_left_alone(build: Build) -> None:
    model = build(HEAD + f"g (float[2,4,5,6] x) => (float y) <{CONSTANTS}> {{ {FLAT.replace('flat', 'rows')} y = Relu (b) }}")
    assert fold(model)[1:] == (0, ())
