"""Descending numerators: the same numbers in ascending ones, and through TVM's FlattenBuffer, which gets descending ones wrong."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

from sepwise.lowering.generic_stages import substitute
from sepwise.lowering.quotients import ascend_quotients

WIDE, HIGH = 6, 4
FORMS: dict[str, Callable[[Any, Any, int, Any], Any]] = {
    "descending": lambda i, _, d, rounded: rounded(74 - i, d),
    "twice as fast": lambda i, _, d, rounded: rounded(75 - 2 * i, d),
    "beside multiples": lambda i, j, d, rounded: rounded(11 - i + j * (2 * d), d),
    "beside descending multiples": lambda i, j, d, rounded: rounded(40 + i - j * d, d),
    "both descend": lambda i, j, d, rounded: rounded(70 - i - 3 * j, d),
    "one ascends": lambda i, j, d, rounded: rounded(70 - i + 5 * j, d),
    "nested": lambda i, j, d, rounded: rounded(50 - rounded(9 - i, d) - j, d),
    "itself": lambda i, j, d, rounded: rounded(i + j - i - j * d + 5, d),
    "constant first": lambda i, j, d, rounded: rounded(2 * d * j - i, d) + 40,
}


def function(index: Callable[[Any, Any], Any]) -> tirx.PrimFunc:
    """`y[j, i] = x[1, index(i, j)]`."""
    i, j = tirx.Var("i", "int32"), tirx.Var("j", "int32")
    x, y = tirx.decl_buffer((4, 200), "float32", "x"), tirx.decl_buffer((HIGH, WIDE), "float32", "y")
    store = tirx.BufferStore(y, tirx.BufferLoad(x, [1, index(i, j)]), [j, i])
    loops = tirx.For(j, 0, HIGH, tirx.ForKind.SERIAL, tirx.For(i, 0, WIDE, tirx.ForKind.SERIAL, store))
    return tirx.PrimFunc([x, y], loops).with_attr("global_symbol", "f")


def places(flat: tirx.PrimFunc) -> np.ndarray:
    """What it reads at each point, by evaluation of its index."""
    loops: list[tirx.For] = []
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(flat.body, [(tirx.For, loops.append)], order="pre")
    tvm_ffi.structural_walk(flat.body, [(TensorLoad, found.append)])
    (high, wide), (load,) = (loop.loop_var for loop in loops), found
    analyzer = tvm.sym.Analyzer()

    def at(i: int, j: int) -> int:
        values = [(wide, tirx.const(i, "int32")), (high, tirx.const(j, "int32"))]
        return int(analyzer.simplify(substitute(load.indices[-1], values)))

    return np.array([[at(i, j) for i in range(WIDE)] for j in range(HIGH)])


@pytest.mark.parametrize(("form", "divisor"), list(itertools.product(FORMS, (2, 3, 5))))
def test_the_same_element_is_read(form: str, divisor: int) -> None:
    for kind, divide in (("quotient", tirx.floordiv), ("remainder", tirx.floormod)):
        rising = ascend_quotients(function(lambda i, j, divide=divide: FORMS[form](i, j, divisor, divide)), None, None)
        numbers = {"quotient": lambda a, b: a // b, "remainder": lambda a, b: a % b}[kind]
        expected = np.array([[FORMS[form](i, j, divisor, numbers) for i in range(WIDE)] for j in range(HIGH)])
        np.testing.assert_array_equal(places(rising), expected)
        flat = tirx.transform.FlattenBuffer()(tvm.IRModule({"f": rising}))["f"]
        np.testing.assert_array_equal(places(flat), 200 + expected)


def test_what_ascends_is_left() -> None:
    before = function(lambda i, j: tirx.floordiv(i + 3 * j + 4, 2))
    assert tvm_ffi.structural_equal(ascend_quotients(before, None, None), before)


def test_there_is_something_to_mend() -> None:
    """When TVM reads the right element by itself, `lowering/quotients.py` may go."""
    flat = tirx.transform.FlattenBuffer()(tvm.IRModule({"f": function(lambda i, _: tirx.floordiv(74 - i, 3))}))["f"]
    assert places(flat)[0].tolist() != [200 + (74 - i) // 3 for i in range(WIDE)]
