"""From operators of Relax to loops: TVM's own legalisation, and ours where TVM's is wrong.

TVM computes the floored remainder of floats as `x - floor(x / y) * y`, which is NaN for an infinite y and loses digits where
the quotient is large. The truncated one is exact in any floating-point format, so ours is made of that:

    r = truncmod(x, y)              sign of x, |r| < |y|
    r + y where r and y differ in sign, 0 with the sign of y
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tvm import relax, te, tirx, topi

if TYPE_CHECKING:
    import tvm

    Tensor = Any  # tvm has no type stubs: a tensor expression

__all__ = ["LEGALIZE"]


def _floor_mod(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalises `relax.floor_mod`."""
    floating = str(call.args[0].ty.dtype).startswith("float")
    return builder.call_te(_floored_remainder if floating else topi.floor_mod, *call.args, primfunc_name_hint="floor_mod")


def _floored_remainder(x: Tensor, y: Tensor) -> Tensor:
    """The remainder of floats with the sign of y; operands broadcast."""
    rest = topi.mod(x, y)
    divisor = topi.broadcast_to(y, rest.shape)

    def with_sign(*i: tirx.Var) -> tirx.Expr:
        r, d, zero = rest(*i), divisor(*i), tirx.const(0.0, x.dtype)
        moved = tirx.Select(d > zero, tirx.Select(r < zero, r + d, r), tirx.Select(r > zero, r + d, r))
        return tirx.Select(tirx.EQ(r, zero), r * r / d, moved)

    return te.compute(rest.shape, with_sign, name="floored")


LEGALIZE: Final[tvm.ir.transform.Pass] = relax.transform.LegalizeOps({"relax.floor_mod": _floor_mod})
"""The pass, in place of `relax.transform.LegalizeOps()`."""
