"""The algebra of folding a per-channel affine map into a convolution that stands beside it.

With `s` and `t` vectors over channels, `*` the convolution and W its weight:

    after:   s * (W * x + b) + t  =  (s W) * x + (s b + t)          scale over the output channels
    before:  W * (s x + t) + b    =  (W s) * x + (b + sum W t)      scale over the input channels

The second holds at the border only without padding (padding adds zeros, not t), or where t is 0.
All arithmetic is in float64; the result is stored in the type that the weight had.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.rewriting import (
    Refusal,
    constant_array,
    constant_tensor,
    original_nodes,
    replace_with_input,
    set_constant_input,
    set_original_nodes,
)

__all__ = [
    "CONVOLUTIONS",
    "ConvConstants",
    "ConvFold",
    "channel_vector",
    "constants_behind",
    "fold_after",
    "fold_before",
    "is_unpadded",
    "rewrite_fold",
    "set_constants",
]

Array = npt.NDArray[np.float64]

CONVOLUTIONS = ("Conv", "ConvTranspose")
"""The operators that take an affine map in."""


@dataclass(frozen=True, eq=False)
class ConvConstants:
    """What a convolution is to be given.

    Attributes:
        weight: The new weight, in the type of the old one.
        bias: The new bias, or None if there is none.
    """

    weight: npt.NDArray[np.generic]
    bias: npt.NDArray[np.generic] | None


@dataclass(frozen=True, eq=False)
class ConvFold:
    """A decided fold: the convolution gets a new weight and bias, and the folded node disappears.

    Attributes:
        conv: The Conv or ConvTranspose.
        folded: The node that disappears.
        before: True if the folded node stands before the convolution.
        source: The value that replaces the folded node's output.
        constants: The new weight and bias.
    """

    conv: ir.Node
    folded: ir.Node
    before: bool
    source: ir.Value
    constants: ConvConstants


def channel_vector(array: Array, channels: int, rank: int) -> Array | None:
    """Reads a constant that broadcasts against (n, c, *spatial) as one number per channel.

    Args:
        array: The constant.
        channels: Number of channels c.
        rank: Rank of the other operand.

    Returns:
        Shape (c,), or None if the constant varies over anything but channels or would widen the result.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(dim != 1 for axis, dim in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(shape[1]), (channels,))


def is_unpadded(conv: ir.Node) -> bool:
    """Tells whether a convolution surely adds no padding."""
    auto_pad = conv.attributes.get_string("auto_pad", "NOTSET")
    pads = conv.attributes.get_ints("pads", ())
    return auto_pad == "VALID" or (auto_pad == "NOTSET" and not any(pads or ()))


def _constants(conv: ir.Node, name: str) -> tuple[Array, Array | None, np.dtype[np.generic]] | Refusal:
    weight_value = conv.inputs[1]
    weight_tensor = constant_tensor(weight_value)
    if weight_value is None or weight_tensor is None:
        return Refusal(f"the weight of {conv.op_type} '{conv.name}' is not constant", name)
    others = [use.node.name for use in weight_value.uses() if use.node is not conv]
    if others or len(list(weight_value.uses())) > 1:
        return Refusal(f"the weight '{weight_value.name}' of '{conv.name}' is shared with '{(others or [conv.name])[0]}'", name)
    if weight_value.is_graph_output():
        return Refusal(f"the weight '{weight_value.name}' of '{conv.name}' is a graph output", name)
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant_array(bias_value)
    if bias_value is not None and bias is None:
        return Refusal(f"the bias of {conv.op_type} '{conv.name}' is not constant", name)
    stored = weight_tensor.numpy()
    return stored.astype(np.float64), bias, stored.dtype


def _narrowed(array: Array, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic] | None:
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    return stored if np.isfinite(stored.astype(np.float64)).all() else None


def _stored(
    conv: ir.Node, name: str, weight: Array, bias: Array | None, dtype: np.dtype[np.generic]
) -> ConvConstants | Refusal:
    new_weight = _narrowed(weight, dtype)
    new_bias = None if bias is None else _narrowed(bias, dtype)
    if new_weight is None or (bias is not None and new_bias is None):
        return Refusal(f"the folded constants of '{conv.name}' are not finite in {dtype}", name)
    return ConvConstants(new_weight, new_bias)


def fold_after(conv: ir.Node, folded: ir.Node, scale: Array, shift: Array) -> ConvFold | Refusal:
    """Decides a fold of `scale * y + shift`, which follows the convolution.

    Args:
        conv: The Conv or ConvTranspose.
        folded: The node that computes the affine map of the convolution's output.
        scale: Shape (output channels,).
        shift: Shape (output channels,).

    Returns:
        The fold, or why it is not possible.
    """
    name = folded.name or ""
    match _constants(conv, name):
        case Refusal() as refusal:
            return refusal
        case (weight, bias, dtype):
            pass
    if conv.op_type == "ConvTranspose":  # weight (c, m / group, ...): output channel g * (m / group) + j
        group = conv.attributes.get_int("group", 1) or 1
        grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        factors = scale.reshape(group, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
        new_weight = (grouped * factors).reshape(weight.shape)
    else:
        new_weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    new_bias = shift if bias is None else bias * scale + shift
    keep_bias = bias is not None or bool(np.any(shift))
    stored = _stored(conv, name, new_weight, new_bias if keep_bias else None, dtype)
    return stored if isinstance(stored, Refusal) else ConvFold(conv, folded, False, conv.outputs[0], stored)


def fold_before(conv: ir.Node, folded: ir.Node, source: ir.Value, scale: Array, shift: Array) -> ConvFold | Refusal:
    """Decides a fold of `scale * x + shift`, which feeds the convolution.

    Args:
        conv: The Conv or ConvTranspose.
        folded: The node that computes the affine map.
        source: Its input x.
        scale: Shape (input channels,).
        shift: Shape (input channels,).

    Returns:
        The fold, or why it is not possible.
    """
    stored = constants_behind(conv, scale, shift, folded.name or "")
    return stored if isinstance(stored, Refusal) else ConvFold(conv, folded, True, source, stored)


def constants_behind(conv: ir.Node, scale: Array, shift: Array, name: str) -> ConvConstants | Refusal:
    """Calculates what makes a convolution of x that of `scale * x + shift`.

    Args:
        conv: The Conv or ConvTranspose.
        scale: Shape (input channels,).
        shift: Shape (input channels,).
        name: What a refusal is to name.

    Returns:
        Its new weight and bias, or why it cannot take the map in.
    """
    match _constants(conv, name):
        case Refusal() as refusal:
            return refusal
        case (weight, bias, dtype):
            pass
    shifts = bool(np.any(shift))
    if conv.op_type == "ConvTranspose":
        if shifts:
            return Refusal(f"the border of ConvTranspose '{conv.name}' would not see the shift", name)
        return _stored(conv, name, weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), bias, dtype)
    if shifts and not is_unpadded(conv):
        return Refusal(f"Conv '{conv.name}' pads its input with zeros, which do not see the shift", name)
    group = conv.attributes.get_int("group", 1) or 1
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])  # (g, m / g, c / g, ...)
    per_group = (group, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
    new_weight = (grouped * scale.reshape(per_group)).reshape(weight.shape)
    new_bias = bias
    if shifts:
        added = (grouped * shift.reshape(per_group)).reshape(weight.shape[0], -1).sum(axis=1)
        new_bias = added if bias is None else bias + added
    return _stored(conv, name, new_weight, new_bias, dtype)


def rewrite_fold(model: ir.Model, fold: ConvFold) -> None:
    """Carries out a fold: new constants, the folded node removed, its name recorded at the convolution."""
    conv, folded = fold.conv, fold.folded
    own, gone = original_nodes(conv)[0], original_nodes(folded)[0]
    set_constants(model, conv, fold.constants)
    replace_with_input(folded, fold.source, keep_name=not fold.before)
    set_original_nodes(conv, [(*gone, *own) if fold.before else (*own, *gone)])


def set_constants(model: ir.Model, conv: ir.Node, constants: ConvConstants) -> None:
    """Gives a convolution its new weight and bias."""
    set_constant_input(model, conv, 1, constants.weight, f"{conv.name}.weight")
    if constants.bias is not None:
        set_constant_input(model, conv, 2, constants.bias, f"{conv.name}.bias")
