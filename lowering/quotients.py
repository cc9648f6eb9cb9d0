"""Quotients and remainders whose numerator descends, as those of a mirrored or reversed axis, in terms of ascending ones.

TVM's FlattenBuffer makes `floordiv(74 - i, 3) + 25` into `floordiv(i, -3) + 49`, which is another number: its maps of
iterators lose what is left of a constant in front of a negative scale (of remainders too, and where further terms are multiples
of the divisor). So before it, with d > 0 and multiples of d taken out first,

    floordiv(c - u, d)  =  -floordiv(u - c + d - 1, d)
    floormod(c - u, d)  =  d - 1 - floormod(u - c - 1, d)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import tirx

if TYPE_CHECKING:
    from collections.abc import Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["ascend_quotients"]

def ascend_quotients(function: tirx.PrimFunc, module: tvm.IRModule, context: Any) -> tirx.PrimFunc:
    """Rewrites quotients and remainders by constants whose numerators have negative terms.

    Args:
        function: Any.
        module: Unused; TVM gives a pass its module and context.
        context: Unused.

    Returns:
        The function, its numbers the same.
    """
    del module, context
    return function.with_body(
        tvm_ffi.structural_map(function.body, [(tirx.FloorDiv, _ascending), (tirx.FloorMod, _ascending)])
    )


def _ascending(quotient: Expr) -> Expr:
    """The same number out of ascending numerators, where the terms that are no multiples of the divisor all descend."""
    divisor = quotient.b
    terms = _terms(quotient.a) if isinstance(divisor, tirx.IntImm) and int(divisor) > 0 else []
    if all(factor > 0 or term is None for factor, term in terms):
        return quotient
    d = int(divisor)
    multiples = [(factor // d, term) for factor, term in terms if factor % d == 0 and term is not None]
    constant = sum(factor for factor, term in terms if term is None)
    rest = [(factor, term) for factor, term in terms if factor % d and term is not None]
    if any(factor > 0 for factor, _ in rest):
        return quotient
    dtype = quotient.ty.dtype
    rising = [(-factor, term) for factor, term in rest]
    if isinstance(quotient, tirx.FloorMod):
        if not rising:
            return tirx.const(constant % d, dtype)
        return tirx.const(d - 1, dtype) - tirx.floormod(_sum(rising, -constant - 1, dtype), divisor)
    if not rising:
        return _sum(multiples, constant // d, dtype)
    return _sum(multiples, 0, dtype) - tirx.floordiv(_sum(rising, d - 1 - constant, dtype), divisor)


def _terms(numerator: Expr) -> list[tuple[int, Expr | None]]:
    """A sum as factors and what they multiply, None standing for 1."""
    found: list[tuple[int, Expr | None]] = []

    def add(expression: Expr, factor: int) -> None:
        if isinstance(expression, (tirx.Add, tirx.Sub)):
            add(expression.a, factor)
            add(expression.b, -factor if isinstance(expression, tirx.Sub) else factor)
        elif isinstance(expression, tirx.Mul) and isinstance(expression.b, tirx.IntImm):
            add(expression.a, factor * int(expression.b))
        elif isinstance(expression, tirx.Mul) and isinstance(expression.a, tirx.IntImm):
            add(expression.b, factor * int(expression.a))
        else:
            constant = isinstance(expression, tirx.IntImm)
            term = None if constant else expression
            size = factor * int(expression) if constant else factor
            same = next((i for i, (_, other) in enumerate(found) if _alike(term, other)), len(found))
            found[same : same + 1] = [(size + (found[same][0] if same < len(found) else 0), term)]

    add(numerator, 1)
    return [(factor, term) for factor, term in found if factor]


def _alike(a: Expr | None, b: Expr | None) -> bool:
    return a is b if a is None or b is None else bool(tvm_ffi.structural_equal(a, b))


def _sum(terms: Sequence[tuple[int, Expr]], constant: int, dtype: str) -> Expr:
    """`factor * term + ... + constant`."""
    total: Expr = tirx.const(constant, dtype)
    for factor, term in terms:
        total = total + term * tirx.const(factor, dtype)
    return total
