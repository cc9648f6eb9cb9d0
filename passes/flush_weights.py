"""Reads weights below the normal range as 0.

Training with weight decay leaves thousands of them in channels that it has switched off (the recogniser of PP-OCRv4 has 31,000).
x86 cores do each multiply-add of such a number in microcode, two orders of magnitude slower than others; the vector units of
Armv7 take it for 0 anyway. A product with a number x is off by less than 2^-126 |x| without it.
"""

import numpy as np
import onnx_ir as ir

from sepwise.passes.rewriting import constant_tensor, is_operator

__all__ = ["flush_weights"]

WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1)}
"""Inputs that are only multiplied or added to products, by operator."""


def flush_weights(model: ir.Model) -> None:
    """Sets float32 weights and biases of convolutions and products to 0 where they are below the normal range.

    Constants that anything else reads too, or that the caller may override, stay as they are: a number may be divided by. So do
    those of a Gemm that multiplies them by more than 1.

    Args:
        model: Is changed.
    """
    for node in [node for graph in model.graphs() for node in graph if is_operator(node, *WEIGHTS)]:
        for value in [node.inputs[place] for place in WEIGHTS[node.op_type] if place < len(node.inputs)]:
            tensor = constant_tensor(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or not _is_weight_alone(value):
                continue
            array = tensor.numpy()
            below = (np.abs(array) < np.finfo(np.float32).tiny) & (array != 0)
            if not below.any():
                continue
            normal = ir.Tensor(np.where(below, np.float32(0), array), name=tensor.name)
            producer = value.producer()
            if producer is None:
                value.const_value = normal
            else:
                producer.attributes.clear()
                producer.attributes["value"] = ir.AttrTensor("value", normal)


def _is_weight_alone(value: ir.Value) -> bool:
    """Whether all that reads a value multiplies by it or adds it to products."""
    return not value.is_graph_output() and all(
        is_operator(use.node, *WEIGHTS)
        and use.idx in WEIGHTS[use.node.op_type]
        and max(abs(use.node.attributes.get_float(name, 1.0)) for name in ("alpha", "beta")) <= 1
        for use in value.uses()
    )
