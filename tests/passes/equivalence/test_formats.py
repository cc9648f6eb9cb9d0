import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sepwise.passes.equivalence.formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, Format, format_of, result_format
from sepwise.passes.equivalence.graph import read_graph

HEADER = '<ir_version: 10, opset_import: ["" : 19]>'

each_format = pytest.mark.parametrize("each", FORMATS.values(), ids=lambda each: each.name)


@each_format
def test_the_table_is_what_numpy_says(each: Format) -> None:
    import ml_dtypes

    limits = ml_dtypes.finfo(each.dtype)
    assert each.unit == float(limits.eps) / 2
    assert each.normal == float(limits.smallest_normal)
    assert each.smallest == float(limits.smallest_subnormal)
    assert each.largest == float(limits.max)
    assert format_of(each.dtype) is each


@each_format
def test_rounding_is_within_half_a_unit(each: Format) -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    missed = each.misses(x)
    assert (missed <= each.unit * np.abs(x)).all()
    assert missed.any() == (each is not BINARY64)
    assert not each.misses(each.round(x)).any()
    assert each.round(np.array([each.smallest, each.largest])).tolist() == [each.smallest, each.largest]
    below = np.array([each.smallest * 1.25])
    assert each.misses(below) <= each.unit * each.normal
    assert np.isinf(each.round(np.array([1e300]))[0]) == (each is not BINARY64)


def test_gamma() -> None:
    """Higham's constant as far as it means something, then twice what Jeannerod and Rump prove; it never falls."""
    assert BINARY32.gamma(1) == BINARY32.unit / (1 - BINARY32.unit)
    assert BINARY32.gamma(1000) > 1000 * BINARY32.gamma(1)
    terms = np.arange(1, 10000)
    gamma = BINARY16.gamma(terms)
    assert (gamma >= terms * BINARY16.unit).all()
    assert (np.diff(gamma) > 0).all()
    assert BINARY16.gamma(4096) == 4


def test_a_sum_in_binary16_stays_within_gamma() -> None:
    """Terms all alike are the worst there is: at 2048 times their size the sum stops growing."""
    for terms in (10, 1000, 4000):
        total = np.float16(0)
        for _ in range(terms):
            total = np.float16(total + np.float16(1.0))
        assert abs(float(total) - terms) <= BINARY16.gamma(terms) * terms
    assert total == 2048


def test_which_format_has_all_numbers_of_another() -> None:
    assert BINARY32.holds(BINARY16)
    assert BINARY32.holds(BFLOAT16)
    assert BINARY64.holds(BINARY32)
    assert not BINARY16.holds(BFLOAT16)
    assert not BFLOAT16.holds(BINARY16)
    assert BINARY16.holds(BINARY16)


def test_types_follow_from_the_schemas() -> None:
    half, single = BINARY16, BINARY32
    assert result_format("Conv", 19, [half, half, None], {}) is half
    assert result_format("Where", 19, [None, single, half], {}) is single
    assert result_format("Concat", 19, [None, None, half], {}) is half
    assert result_format("Resize", 19, [half, None, single], {}) is half
    assert result_format("Cast", 19, [half], {"to": TensorProto.DOUBLE}) is BINARY64
    assert result_format("Cast", 19, [half], {"to": TensorProto.INT64}) is None
    assert result_format("CastLike", 19, [single, half], {}) is half
    assert result_format("ConstantOfShape", 19, [None], {"value": TensorProto.FLOAT16}) is half
    assert result_format("ConstantOfShape", 19, [None], {}) is single
    assert result_format("Greater", 19, [half, half], {}) is None
    assert result_format("Shape", 19, [half], {}) is None
    assert result_format("NoSuchOperator", 19, [None, half], {}) is half


def test_a_graph_knows_the_formats_of_its_values() -> None:
    """Inputs, constants, results, what functions and branches compute, islands of another type."""
    model = onnx.parser.parse_model(
        f"""{HEADER} g (float16[2] x, bool p) => (float16[2] y) <float16[2] w = {{1, 2}}, double[2] d = {{1, 2}}>
        {{
          a = Mul (x, w)
          f = Cast <to = 1> (a)
          s = local.twice (f)
          n = Shape (s)
          v = Constant <value_float = 2.0> ()
          b = If (p) <then_branch = t () => (float[2] i) {{ i = Mul (s, v) }}, else_branch = e () => (float[2] j) {{ j = Neg (s) }}>
          h = CastLike (b, d)
          y = Cast <to = 10> (h)
        }}
        <domain: "local", opset_import: ["" : 19]> twice (u) => (w) {{ z = Identity (u) w = Add (z, u) }}""".replace(
            'opset_import: ["" : 19]>', 'opset_import: ["" : 19, "local" : 1]>', 1
        )
    )
    graph = read_graph(model)
    formats = {name: each.name for name, each in graph.formats.items()}
    half = {"x", "w", "a", "y"}
    double = {"d", "h"}
    assert {name for name, each in formats.items() if each == "binary16"} == half
    assert {name for name, each in formats.items() if each == "binary64"} == double
    assert {"f", "s", "v", "b"} <= {name for name, each in formats.items() if each == "binary32"}
    assert "n" not in formats
    found = {op.outputs[0]: (op.source, op.format) for op in graph.operations}
    assert found["f"] == (BINARY16, BINARY32)
    assert found["s"] == (BINARY32, BINARY32)
    assert found["y"] == (BINARY64, BINARY16)
    branch = next(op for op in graph.operations if op.operator == "If")
    assert {op.format for subgraph in branch.subgraphs() for op in subgraph.operations} == {BINARY32}
