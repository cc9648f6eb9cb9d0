"""Operators that the implementation which ships with onnx computes for the oracle.

It is a reference for its own test cases and passes over much of what they leave out: it runs an LSTM with `clip` as one
without, and says nothing. So it is asked for the operators of `REFUSALS` alone, which are set against ONNX Runtime attribute by
attribute, where that knows them, and refused where the two differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from sepwise.passes.equivalence.graph import Array, Graph, Operation
from sepwise.passes.errors import InputError, UnsupportedError

__all__ = ["REFUSALS", "evaluate_by_reference"]

Refuse = Callable[[Operation, Sequence[Array | None]], str | None]

SEQUENCE_LENGTHS: Final = 4
"""Input of a recurrent operator that cuts sequences short."""


def _take(_: Operation, __: Sequence[Array | None]) -> str | None:
    """Nothing is left out."""
    return None


def _recurrent(gates: int, *functions: str) -> Refuse:
    """Of LSTM, GRU and RNN, whose activations are those of the defaults whatever is asked for."""

    def refuse(op: Operation, inputs: Sequence[Array | None]) -> str | None:
        if len(inputs) > SEQUENCE_LENGTHS and inputs[SEQUENCE_LENGTHS] is not None:
            return "sequence_lens"
        named = op.attributes.get("activations")
        asked = [str(name) for name in named] if isinstance(named, list) else []
        if asked and asked != list(functions) * (len(asked) // len(functions)):
            return f"activations {', '.join(asked)}"
        weights, hidden = inputs[1], op.integer("hidden_size", 0)
        if hidden and weights is not None and weights.shape[1] != gates * hidden:
            raise InputError(f"{op}: hidden_size {hidden} does not fit weights of shape {weights.shape}. Check the model.")
        return next((name for name in ("clip", "input_forget") if op.attributes.get(name)), None)

    return refuse


def _grid_sample(op: Operation, _: Sequence[Array | None]) -> str | None:
    cubic = op.text("mode", "linear") in {"cubic", "bicubic"}
    return "cubic samples beyond a border" if cubic and op.text("padding_mode", "zeros") == "border" else None


def _lp_pool(op: Operation, _: Sequence[Array | None]) -> str | None:
    return "ceil_mode" if op.integer("ceil_mode", 0) else None


def _dft(op: Operation, _: Sequence[Array | None]) -> str | None:
    return "inverse" if op.integer("inverse", 0) else None


REFUSALS: Final[Mapping[str, Refuse]] = {
    **dict.fromkeys(
        (
            "AffineGrid Attention BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow "
            "CausalConvWithState CenterCropPad Col2Im Compress CumProd CumSum DeformConv Det Einsum EyeLike GatherND "
            "GroupNormalization HammingWindow HannWindow IsInf IsNaN LinearAttention MaxUnpool MelWeightMatrix "
            "NegativeLogLikelihoodLoss NonMaxSuppression OneHot ReduceLogSum ReverseSequence RMSNormalization RoiAlign "
            "RotaryEmbedding STFT ScatterElements ScatterND Shrink SoftmaxCrossEntropyLoss SwiGLU TensorScatter Trilu "
            "Unique"
        ).split(),
        _take,
    ),
    "DFT": _dft,
    "GRU": _recurrent(3, "Sigmoid", "Tanh"),
    "GridSample": _grid_sample,
    "LSTM": _recurrent(4, "Sigmoid", "Tanh", "Tanh"),
    "LpPool": _lp_pool,
    "RNN": _recurrent(1, "Tanh"),
}
"""By operator what of an operation it would pass over or get wrong, None where there is nothing."""


def evaluate_by_reference(op: Operation, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Computes one operation with the implementation that ships with onnx.

    Args:
        op: the operation.
        inputs: its inputs in order, None for one that is left out.

    Returns:
        Its outputs in order.

    Raises:
        UnsupportedError: if onnx has none, or none that is right.
        InputError: if the weights do not fit the attributes.
    """
    from onnx.reference import ReferenceEvaluator  # 0.2 s, and rarely needed

    refuse = REFUSALS.get(op.operator)
    if refuse is None or any(isinstance(value, Graph) for value in op.attributes.values()):
        raise UnsupportedError(f"{op}: the oracle does not know this operator. Remove it from the model.")
    if (left_out := refuse(op, inputs)) is not None:
        raise UnsupportedError(f"{op}: the oracle does not know this operator with {left_out}. Remove it from the model.")
    if op.operator == "GridSample":  # its modes have other names since opset 20, which alone onnx knows
        mode = op.text("mode", "linear").removeprefix("bi")
        op = replace(op, version=max(op.version, 20), attributes={**op.attributes, "mode": mode})
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(op.outputs)]
    attributes: dict[str, Any] = {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in op.attributes.items()
    }
    node = helper.make_node(op.operator, names, outputs, **attributes)
    function = helper.make_function(
        "sepwise.oracle", "Single", [n for n in names if n], [n for n in outputs if n], [node],
        [helper.make_opsetid("", op.version)],
    )  # fmt: skip
    try:
        session = ReferenceEvaluator(function)
    except Exception as error:
        raise UnsupportedError(f"{op}: the oracle does not know this operator of opset {op.version}.") from error
    feeds = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    results = iter(session.run(None, feeds, attributes={}))
    return tuple(np.asarray(next(results)) if name else np.zeros(0) for name in outputs)
