"""What sums of products may begin with: constants that are added to them, by operations one behind the other.

An execution may begin the sum of `Add(MatMul(x, w), b)` with b, or with the shift of a batch norm that is folded into a
convolution. Then each of the k partial sums is rounded with the constant in it.
"""

from collections.abc import Sequence

import numpy as np

from sepwise.passes.equivalence.graph import Array, Graph, Operation
from sepwise.passes.equivalence.operators import evaluate
from sepwise.passes.equivalence.rounding import PRODUCT_SUMS, product_count

__all__ = ["Beginnings"]

AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub", "Sum"})
"""Operators that keep a sum of products one, where all else that they read is constant."""


class Beginnings:
    """Follows the sums of products of a graph; asked in the graph's order.

    Attributes:
        products: how many products each sum has, by the name of what `Conv`, `MatMul` and the like compute.
    """

    def __init__(self, graph: Graph) -> None:
        """Starts with no sum.

        Args:
            graph: whose operations will be asked about.
        """
        self.products: dict[str, int] = {}
        self._constants = graph.constants
        self._sums: dict[str, str] = {}

    def find(self, op: Operation, operands: Sequence[Array | None]) -> tuple[str, Array] | None:
        """Names the sum of products that an operation computes, and gives the size of what it may begin with.

        Args:
            op: an operation, all that its inputs come from having been asked about.
            operands: its inputs.

        Returns:
            A key of `products`, and |b|, which broadcasts to the result; None where the operation is no such sum.
        """
        if op.operator not in PRODUCT_SUMS | AFFINE or (first := operands[0]) is None:
            return None
        others = operands[1:]
        sums = [name for name in op.inputs if name in self._sums]
        begin = np.zeros(1)
        if op.operator in PRODUCT_SUMS:
            assert others[0] is not None
            self._sums[op.outputs[0]] = op.outputs[0]
            self.products[op.outputs[0]] = product_count(op, first, others[0])
            bias = others[1] if len(others) > 1 and op.inputs[2] in self._constants else None
            if bias is not None:
                begin = bias if op.operator == "Gemm" else bias.reshape(-1, *(1,) * (first.ndim - 2))
        elif len(sums) == 1 and all(name in self._constants for name in op.inputs if name and name not in sums):
            self._sums[op.outputs[0]] = self._sums[sums[0]]
            if op.operator == "BatchNormalization":
                begin = evaluate(op, [np.zeros((1, first.shape[1], *(1,) * (first.ndim - 2))), *others])[0]
            elif op.operator in ("Add", "Sub", "Sum"):
                for name, x in zip(op.inputs, operands, strict=True):
                    begin = begin if name in sums or x is None else begin + np.abs(x)
        else:
            return None
        return self._sums[op.outputs[0]], np.abs(begin)
