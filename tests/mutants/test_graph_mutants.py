"""Wrong rewrites: each is one mistake of one pass, and the check of that pass has to find it, none before it.

A mutant is a generator over the model that a pass is given: what it does before its `yield` happens before the right pass,
the rest behind it. So the algebra of a fold goes wrong by changing what it reads (the variance instead of its square root), and
structure by changing what it left. It raises `NoPlaceError` where the network has no place for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from sepwise.lowering import build, device
from sepwise.lowering.verify import verify_model
from sepwise.passes import fuse, pipeline
from sepwise.passes.equivalence import Check, Oracle, sample_inputs
from sepwise.passes.errors import InputError
from sepwise.passes.rewriting import RewritePass, RewriteResult, is_operator, set_constant_input

HOST = device.get("host")

PASSES: dict[str, type[RewritePass[Any]]] = {each.name: each for each in get_args(pipeline.AnyPass)}

Change = Callable[[ir.Model], None]
Around = Callable[[ir.Model], Iterator[None]]
Differs = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
Record = Callable[[str, object], None]
"""Pytest's `record_property`: `scripts/benchmarks/verification.py` collects what is told to it as `mutant`."""


class NoPlaceError(Exception):
    """The network has no place for a mutant, or it makes no difference there."""


@dataclass(frozen=True)
class Mutant:
    """A wrong rewrite.

    Attributes:
        name: What it is called in test reports.
        kind: Its class: mutants of one class go wrong in one way.
        culprit: The pass that makes the mistake.
        network: The small network that has a place for it.
        around: What it does before and behind the right pass.
        shown_on: A kind of inputs that shows it.
    """

    name: str
    kind: str
    culprit: str
    network: str
    around: Around
    shown_on: str = "normal"


# Finding places --------------------------------------------------------------------------------------------------------


def nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """Nodes of an operator; of a fused one by its family."""
    found = [node for node in model.graph if node.op_type in op_types or node.op_type.split("_")[0] in op_types]
    return chosen(found)


def chosen(found: list[Any]) -> list[Any]:
    """The places, the middle one first; a mutant takes the first."""
    if not found:
        raise NoPlaceError
    middle = len(found) // 2
    return [*found[middle:], *found[:middle]]


def pick(found: list[Any], suits: Callable[[Any], bool]) -> Any:
    """The first place that suits."""
    return chosen([each for each in found if suits(each)])[0]


def attributes(model: ir.Model, suffix: str) -> list[tuple[ir.Node, str]]:
    """Attributes of nodes, or of calls of fused operators under a prefix: `strides`, `depthwise_strides`."""
    return chosen(
        [(node, name) for node in model.graph for name in node.attributes if name == suffix or name.endswith(f"_{suffix}")]
    )


def constant(node: ir.Node, index: int) -> np.ndarray:
    """A constant operand."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise NoPlaceError
    return tensor.numpy()


def set_constant(model: ir.Model, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Gives a node another constant of the same type."""
    dtype = constant(node, index).dtype
    set_constant_input(model, node, index, np.ascontiguousarray(array).astype(dtype), f"{node.name}_{index}_mutant")


def replace_node(model: ir.Model, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Node:
    """Puts another operator in the place of a node."""
    new = ir.node(op_type, inputs, attributes=attributes, name=node.name)
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs[:1], new.outputs)
    return new


def bypass(node: ir.Node, index: int = 0) -> None:
    """Lets the readers of a node read one of its inputs."""
    source = node.inputs[index]
    if source is None or node.outputs[0].is_graph_output():
        raise NoPlaceError
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def behind(change: Change) -> Around:
    """A mutant that acts behind the right pass alone."""

    def around(model: ir.Model) -> Iterator[None]:
        yield
        change(model)

    return around


def before(change: Change) -> Around:
    """A mutant that acts before the right pass alone."""

    def around(model: ir.Model) -> Iterator[None]:
        change(model)
        yield

    return around


# Folding of batch norms ------------------------------------------------------------------------------------------------

GAMMA, BETA, MEAN, VARIANCE = 1, 2, 3, 4


def normed(model: ir.Model) -> tuple[ir.Node, ir.Node]:
    """A convolution and the batch norm that alone reads it."""

    def suits(node: ir.Node) -> bool:
        conv = node.inputs[0].producer() if node.inputs[0] is not None else None
        return is_operator(conv, "Conv") and len(list(node.inputs[0].uses())) == 1 and not node.inputs[0].is_graph_output()

    norm = pick(nodes(model, "BatchNormalization"), suits)
    conv = norm.inputs[0].producer()
    assert conv is not None
    return conv, norm


def on_norm(change: Callable[[ir.Model, ir.Node], None]) -> Around:
    """A batch norm that a convolution is in front of is read wrongly."""
    return before(lambda model: change(model, normed(model)[1]))


def on_constant(index: int, change: Callable[[np.ndarray], np.ndarray]) -> Around:
    """One of its constants is read wrongly."""

    def apply(model: ir.Model, node: ir.Node) -> None:
        array = constant(node, index)
        changed = change(array)
        if np.array_equal(array, changed):
            raise NoPlaceError
        set_constant(model, node, index, changed)

    return on_norm(apply)


def epsilon_of(node: ir.Node) -> float:
    return float(node.attributes.get_float("epsilon", 1e-5) or 0.0)


def drop_epsilon(model: ir.Model, node: ir.Node) -> None:
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def default_epsilon(model: ir.Model, node: ir.Node) -> None:
    """The attribute is overlooked, so its default counts."""
    if abs(epsilon_of(node) - 1e-5) < 1e-9:
        raise NoPlaceError
    node.attributes.pop("epsilon")


def add_epsilon_behind_the_root(model: ir.Model, node: ir.Node) -> None:
    epsilon, variance = epsilon_of(node), constant(node, VARIANCE).astype(np.float64)
    set_constant(model, node, VARIANCE, (np.sqrt(variance) + epsilon) ** 2)
    drop_epsilon(model, node)


def leave_out_the_root(model: ir.Model, node: ir.Node) -> None:
    """gamma / (var + epsilon)."""
    epsilon, variance = epsilon_of(node), constant(node, VARIANCE).astype(np.float64)
    set_constant(model, node, VARIANCE, (variance + epsilon) ** 2)
    drop_epsilon(model, node)


def swap_mean_and_variance(model: ir.Model, node: ir.Node) -> None:
    """The mean where the variance belongs, its sign lost as no root takes it, and the reverse."""
    mean, variance = constant(node, MEAN).copy(), constant(node, VARIANCE).copy()
    set_constant(model, node, MEAN, variance)
    set_constant(model, node, VARIANCE, np.abs(mean))


def leave_the_bias_unscaled(model: ir.Model) -> None:
    """bias + shift instead of bias * scale + shift: https://github.com/Tencent/ncnn/issues/1339 ."""
    conv, norm = normed(model)
    bias = constant(conv, 2).astype(np.float64)
    scale = constant(norm, GAMMA) / np.sqrt(constant(norm, VARIANCE).astype(np.float64) + epsilon_of(norm))
    set_constant(model, conv, 2, bias / scale)


def forget_the_bias(model: ir.Model) -> None:
    conv, _ = normed(model)
    constant(conv, 2)
    conv.resize_inputs(2)


def fold_through_padding(model: ir.Model) -> Iterator[None]:
    """A batch norm in front of a convolution that pads: right inside, wrong at the border."""
    for norm in nodes(model, "BatchNormalization"):
        uses = list(norm.outputs[0].uses())
        conv = uses[0].node if len(uses) == 1 else None
        if conv is not None and is_operator(conv, "Conv") and is_padded(conv):
            break
    else:
        raise NoPlaceError
    pads = conv.attributes.pop("pads")
    conv.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads.as_ints()))
    yield
    conv.attributes["pads"] = pads


def fold_what_others_see(model: ir.Model) -> None:
    """The convolution's own output is one of the graph: https://github.com/microsoft/onnxruntime/issues/4110 ."""
    for norm in nodes(model, "BatchNormalization"):
        source = norm.inputs[0]
        if source is not None and is_operator(source.producer(), "Conv") and source.is_graph_output():
            break
    else:
        raise NoPlaceError
    conv = source.producer()
    assert conv is not None
    scale = constant(norm, GAMMA) / np.sqrt(constant(norm, VARIANCE).astype(np.float64) + epsilon_of(norm))
    shift = constant(norm, BETA) - constant(norm, MEAN) * scale
    weight = constant(conv, 1)
    set_constant_input(model, conv, 1, (weight * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype), "folded")
    set_constant_input(model, conv, 2, shift.astype(weight.dtype), "shift")
    bypass(norm)


def scale_input_channels(model: ir.Model) -> Iterator[None]:
    """The scale goes along the weight's second axis."""
    conv, norm = normed(model)
    weight, gamma = constant(conv, 1), constant(norm, GAMMA)
    scale = gamma / np.sqrt(constant(norm, VARIANCE).astype(np.float64) + epsilon_of(norm))
    yield
    axis = np.resize(scale, weight.shape[1])
    set_constant(model, conv, 1, weight * axis.reshape(1, -1, *[1] * (weight.ndim - 2)))


# Weights and biases ----------------------------------------------------------------------------------------------------


def on_weight(change: Callable[[np.ndarray], np.ndarray], suits: Callable[[ir.Node], bool] = lambda node: True) -> Around:
    """A convolution's weight is stored wrongly."""

    def apply(model: ir.Model) -> None:
        def changes(node: ir.Node) -> bool:
            return suits(node) and not np.array_equal(change(constant(node, 1)), constant(node, 1))

        conv = pick(nodes(model, "Conv"), changes)
        set_constant(model, conv, 1, change(constant(conv, 1)))

    return behind(apply)


def is_depthwise(node: ir.Node) -> bool:
    return constant(node, 1).shape[1] == 1


def is_square(node: ir.Node) -> bool:
    return constant(node, 1).ndim == 4 and constant(node, 1).shape[2] == constant(node, 1).shape[3] > 1


def is_padded(node: ir.Node) -> bool:
    return any(node.attributes.get_ints("pads", ()))


def has_groups(node: ir.Node) -> bool:
    return node.attributes.get_int("group", 1) > 1


def has_multiplier(node: ir.Node) -> bool:
    weight = constant(node, 1)
    return has_groups(node) and weight.shape[0] > node.attributes.get_int("group", 1)


def change_one_by_a_hundredth(weight: np.ndarray) -> np.ndarray:
    changed = weight.copy()
    changed.reshape(-1)[np.abs(weight).argmax()] *= 1.01
    return changed


def exchange_two_filters(weight: np.ndarray) -> np.ndarray:
    return weight[[1, 0, *range(2, len(weight))]] if len(weight) > 1 else weight


def lose_a_tap(weight: np.ndarray) -> np.ndarray:
    changed = weight.copy()
    changed[..., -1] = 0
    return changed


def round_to_half(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float16).astype(weight.dtype)


def roll_groups(model: ir.Model) -> None:
    """Each group has the weights of the next one."""
    conv = pick(nodes(model, "Conv"), has_groups)
    weight, group = constant(conv, 1), conv.attributes.get_int("group", 1)
    set_constant(model, conv, 1, np.roll(weight, weight.shape[0] // group, axis=0))


def ignore_the_multiplier(model: ir.Model) -> None:
    """All outputs of one input channel get the first one's weights."""
    conv = pick(nodes(model, "Conv"), has_multiplier)
    weight = constant(conv, 1)
    times = weight.shape[0] // conv.attributes.get_int("group", 1)
    set_constant(model, conv, 1, np.repeat(weight[::times], times, axis=0))


def interleave_the_multiplier(model: ir.Model) -> None:
    """Output `c * times + m` is taken for `m * channels + c`."""
    conv = pick(nodes(model, "Conv"), has_multiplier)
    weight = constant(conv, 1)
    times = weight.shape[0] // conv.attributes.get_int("group", 1)
    set_constant(model, conv, 1, weight.reshape(-1, times, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape))


def roll_the_bias(model: ir.Model) -> None:
    conv = pick(nodes(model, "Conv"), lambda node: len(node.inputs) > 2)
    set_constant(model, conv, 2, np.roll(constant(conv, 2), 1))


def drop_the_bias(model: ir.Model) -> None:
    pick(nodes(model, "Conv"), lambda node: len(node.inputs) > 2).resize_inputs(2)


def weights_of_another_layer(model: ir.Model) -> None:
    """Two layers of one shape, and one gets the other's weights."""
    convs = nodes(model, "Conv", "Gemm")
    for first in convs:
        for second in convs:
            a, b = constant(first, 1), constant(second, 1)
            if a.shape == b.shape and not np.array_equal(a, b):
                set_constant(model, first, 1, b)
                return
    raise NoPlaceError


# Geometry --------------------------------------------------------------------------------------------------------------


def on_geometry(suffix: str, change: Callable[[list[int]], list[int]]) -> Around:
    """A convolution gets other strides, pads or dilations."""

    def apply(model: ir.Model) -> None:
        for node, name in attributes(model, suffix):
            numbers = list(node.attributes[name].as_ints())
            if change(numbers) != numbers:
                node.attributes[name] = ir.AttrInt64s(name, change(numbers))
                return
        raise NoPlaceError

    return behind(apply)


def swap_strides_and_dilations(model: ir.Model) -> None:
    """The pads are made to fit where they can be, so that the output keeps its shape."""

    def suits(node: ir.Node) -> bool:
        return list(node.attributes["strides"].as_ints()) != list(node.attributes["dilations"].as_ints())

    conv = pick([node for node in nodes(model, "Conv") if "dilations" in node.attributes], suits)
    strides, dilations = (list(conv.attributes[name].as_ints()) for name in ("strides", "dilations"))
    data, output = ([int(extent) for extent in conv.inputs[0].shape][2:], [int(extent) for extent in conv.outputs[0].shape][2:])
    kernel = constant(conv, 1).shape[2:]
    needed = [(o - 1) * d + s * (k - 1) + 1 - i for o, s, d, k, i in zip(output, strides, dilations, kernel, data, strict=True)]
    needed = [max(extent, 0) for extent in needed]
    begins = [extent // 2 for extent in needed]
    conv.attributes["strides"] = ir.AttrInt64s("strides", dilations)
    conv.attributes["dilations"] = ir.AttrInt64s("dilations", strides)
    conv.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *(n - b for n, b in zip(needed, begins, strict=True))])


def mirror_pads(pads: list[int]) -> list[int]:
    half = len(pads) // 2
    return [*pads[half:], *pads[:half]]


def transpose_pads(pads: list[int]) -> list[int]:
    half = len(pads) // 2
    return [*pads[:half][::-1], *pads[half:][::-1]]


def move_the_pad_of_a_pointwise_stage(model: ir.Model) -> None:
    """Its border is taken to be the neighbour's: the padding moves to the stage before."""

    def suits(node: ir.Node) -> bool:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        return set(constant(node, 1).shape[2:]) == {1} and is_padded(node) and is_operator(source, "Conv", "Relu")

    pointwise = pick(nodes(model, "Conv"), suits)
    source = pointwise.inputs[0].producer()
    conv = source if is_operator(source, "Conv") else source.inputs[0].producer()
    if not is_operator(conv, "Conv"):
        raise NoPlaceError
    pads = list(pointwise.attributes["pads"].as_ints())
    strides = list(conv.attributes.get_ints("strides", [1] * (len(pads) // 2)))
    more = [pad * stride for pad, stride in zip(pads, strides * 2, strict=True)]
    conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(conv.attributes["pads"].as_ints(), more, strict=True)])
    pointwise.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    for value in (conv.outputs[0], source.outputs[0]):
        value.shape = None


def fold_a_reflection(model: ir.Model) -> None:
    """A Pad of mode `reflect` is taken for one of zeros."""
    pad = pick(nodes(model, "Pad"), lambda node: node.attributes.get_string("mode", "constant") == "reflect")
    pad.attributes.pop("mode")


def fold_a_pad_of_one(model: ir.Model) -> None:
    """The zeros of a Pad are lost to a border of ones."""
    pad = nodes(model, "Pad")[0]
    conv = next((use.node for use in pad.outputs[0].uses() if is_operator(use.node, "Conv")), None)
    if conv is None or pad.inputs[2:3] not in ((), (None,)):
        raise NoPlaceError
    set_constant_input(model, pad, 2, np.ones((), np.float32), f"{pad.name}_value")


# Activations -----------------------------------------------------------------------------------------------------------


def on_scalar(op_type: str, change: Callable[[float], float]) -> Change:
    """A scalar operand of an operator is read wrongly."""

    def apply(model: ir.Model) -> None:
        for node in nodes(model, op_type):
            for index, value in enumerate(node.inputs):
                tensor = None if value is None else ir.convenience.get_const_tensor(value)
                if tensor is None or tensor.size != 1:
                    continue
                number = float(tensor.numpy().reshape(()))
                if change(number) != number:
                    set_constant(model, node, index, np.full(tuple(tensor.shape), change(number)))
                    return
        raise NoPlaceError

    return apply


def on_parameter(op_type: str, name: str, factor: float) -> Around:
    """A parameter of an activation is changed."""

    def apply(model: ir.Model) -> None:
        node = pick(nodes(model, op_type), lambda node: name in node.attributes)
        node.attributes[name] = ir.AttrFloat32(name, node.attributes[name].as_float() * factor)

    return behind(apply)


def on_fused_scalar(suffix: str, change: Callable[[float], float]) -> Around:
    """A scalar that a fused operator carries as an attribute is changed."""

    def apply(model: ir.Model) -> None:
        def suits(place: tuple[ir.Node, str]) -> bool:
            return place[0].attributes[place[1]].type == ir.AttributeType.TENSOR

        node, name = pick(attributes(model, suffix), suits)
        array = node.attributes[name].as_tensor().numpy()
        changed = np.asarray(change(float(array.reshape(()))), array.dtype).reshape(array.shape)
        node.attributes[name] = ir.AttrTensor(name, ir.tensor(changed))

    return behind(apply)


def as_operator(found: str, written: str, **attributes: float) -> Around:
    """An activation is taken for another."""

    def apply(model: ir.Model) -> None:
        node = nodes(model, found)[0]
        replace_node(model, node, written, node.inputs[:1], **attributes)

    return behind(apply)


def drop_activation(model: ir.Model) -> None:
    bypass(pick(nodes(model, "Relu", "Clip", "HardSwish"), lambda node: not node.outputs[0].is_graph_output()))


def exchange_limits(model: ir.Model) -> None:
    """A clip has the upper limit of another."""
    places = [(node, name) for node, name in attributes(model, "max") if node.attributes[name].type == ir.AttributeType.TENSOR]
    for node, name in places:
        for other, other_name in places:
            own, foreign = (n.attributes[k].as_tensor().numpy() for n, k in ((node, name), (other, other_name)))
            if own != foreign:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(foreign))
                return
    raise NoPlaceError


# Sums, structure and other operators -----------------------------------------------------------------------------------


def residual_sum(model: ir.Model, activated: bool) -> tuple[ir.Node, int]:
    """An addition of two computed values, and which summand is an activation's where that matters."""
    for node in nodes(model, "Add"):
        for index, value in enumerate(node.inputs):
            producer = None if value is None else value.producer()
            other = node.inputs[1 - index]
            if other is None or ir.convenience.get_const_tensor(other) is not None or producer is None:
                continue
            if is_operator(producer, *(("LeakyRelu", "Relu", "Clip") if activated else ("Conv", "LeakyRelu", "Relu", "Clip"))):
                return node, index
    raise NoPlaceError


def add_before_activating(model: ir.Model) -> None:
    """activation(conv + residual) instead of activation(conv) + residual."""
    node, index = residual_sum(model, activated=True)
    activation = node.inputs[index].producer()
    if len(list(activation.outputs[0].uses())) != 1:
        raise NoPlaceError
    source, residual, total = activation.inputs[0], node.inputs[1 - index], node.outputs[0]
    node.replace_input_with(index, source)
    node.replace_input_with(1 - index, residual)
    activation.graph.remove(activation)
    model.graph.insert_after(node, activation)
    ir.convenience.replace_all_uses_with(total, activation.outputs[0])
    activation.replace_input_with(0, total)


def lose_the_residual(model: ir.Model) -> None:
    node, index = residual_sum(model, activated=False)
    bypass(node, index)


def add_the_residual_twice(model: ir.Model) -> None:
    node, index = residual_sum(model, activated=False)
    residual = node.inputs[1 - index]
    twice = ir.node("Add", [residual, residual], name=f"{node.name}_twice")
    model.graph.insert_before(node, twice)
    node.replace_input_with(1 - index, twice.outputs[0])


def subtract_the_residual(model: ir.Model) -> None:
    node, index = residual_sum(model, activated=False)
    replace_node(model, node, "Sub", [node.inputs[index], node.inputs[1 - index]])


def lose_the_activation_behind_the_sum(model: ir.Model) -> None:
    node, _ = residual_sum(model, activated=False)
    behind_it = [use.node for use in node.outputs[0].uses() if is_operator(use.node, "Relu", "Clip")]
    reader = pick(behind_it, lambda _: True)
    replace_node(model, reader, "Identity", reader.inputs[:1])


def drop_a_consumer(model: ir.Model) -> None:
    """Of two readers of a value one gets what the value is made of: its producer was fused with the other alone."""
    for node in chosen(list(model.graph)):
        uses = [use for use in node.outputs[0].uses() if node.op_type in ("Relu", "Clip", "Conv")]
        source = node.inputs[0] if node.inputs else None
        if len(uses) > 1 and source is not None and source.shape == node.outputs[0].shape:
            uses[-1].node.replace_input_with(uses[-1].idx, source)
            return
    raise NoPlaceError


def reorder_concatenation(model: ir.Model) -> None:
    node = pick(nodes(model, "Concat"), lambda node: len({tuple(value.shape) for value in node.inputs}) == 1)
    replace_node(model, node, "Concat", node.inputs[::-1], axis=node.attributes.get_int("axis"))


def exchange_split_outputs(model: ir.Model) -> None:
    node = pick(nodes(model, "Split"), lambda node: node.outputs[0].shape == node.outputs[1].shape)
    left, right = node.outputs[:2]
    uses = [(list(left.uses()), right), (list(right.uses()), left)]
    for readers, value in uses:
        for use in readers:
            use.node.replace_input_with(use.idx, value)


def transpose_the_shuffle(model: ir.Model) -> None:
    """A channel shuffle of g groups instead of c / g."""

    def suits(node: ir.Node) -> bool:
        shape = [int(extent) for extent in constant(node, 1)]
        return len(shape) == 5 and shape[1] != shape[2] and is_operator(next(iter(node.outputs[0].uses())).node, "Transpose")

    node = pick([each for each in nodes(model, "Reshape") if len(constant(each, 1)) == 5], suits)
    shape = constant(node, 1).copy()
    shape[[1, 2]] = shape[[2, 1]]
    set_constant(model, node, 1, shape)
    turn = next(iter(node.outputs[0].uses())).node
    node.outputs[0].shape = turn.outputs[0].shape = None


def count_the_border(model: ir.Model) -> None:
    """An average over pixels that are not there."""
    pools = nodes(model, "AveragePool")
    node = pick(pools, lambda node: is_padded(node) and not node.attributes.get_int("count_include_pad", 0))
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)


def resize_asymmetrically(model: ir.Model) -> None:
    mode = "coordinate_transformation_mode"
    node = pick(nodes(model, "Resize"), lambda node: node.attributes.get_string(mode, "half_pixel") != "asymmetric")
    node.attributes[mode] = ir.AttrString(mode, "asymmetric")


def excitation(model: ir.Model) -> tuple[ir.Node, int]:
    """A multiplication of an image by one number per channel, and which operand those are."""
    for node in nodes(model, "Mul"):
        for index, value in enumerate(node.inputs):
            shape = None if value is None or value.shape is None else list(value.shape)
            if shape is not None and len(shape) == 4 and shape[2:] == [1, 1] and value.producer() is not None:
                return node, index
    raise NoPlaceError


def excite_the_wrong_axis(model: ir.Model) -> None:
    """The scales go along the rows of the image, the first ones of them."""
    node, index = excitation(model)
    scale, image = node.inputs[index], node.inputs[1 - index]
    rows, channels = int(image.shape[2]), int(image.shape[1])
    repeated = [scale] * -(-rows // channels)
    joined = ir.node("Concat", repeated, attributes={"axis": 1}, name=f"{node.name}_joined")
    constants = []
    for label, numbers in (("from", [0]), ("to", [rows]), ("axes", [1]), ("shape", [1, 1, rows, 1])):
        tensor = ir.tensor(np.asarray(numbers, np.int64), name=f"{node.name}_{label}")
        value = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        model.graph.register_initializer(value)
        constants.append(value)
    cut = ir.node("Slice", [joined.outputs[0], *constants[:3]], name=f"{node.name}_cut")
    turned = ir.node("Reshape", [cut.outputs[0], constants[3]], name=f"{node.name}_turned")
    model.graph.insert_before(node, [joined, cut, turned])
    node.replace_input_with(index, turned.outputs[0])


def lose_the_excitation(model: ir.Model) -> None:
    node, index = excitation(model)
    bypass(node, 1 - index)


def take_the_maximum(model: ir.Model) -> None:
    node = nodes(model, "GlobalAveragePool")[0]
    replace_node(model, node, "GlobalMaxPool", node.inputs)


def transpose_the_classifier(model: ir.Model) -> None:
    """Weights (out, in) are read as (in, out)."""
    node = nodes(model, "Gemm")[0]
    weight = constant(node, 1)
    set_constant(model, node, 1, weight.reshape(weight.shape[::-1]).T)


def scale_behind_the_shift(model: ir.Model) -> None:
    """(w x + b) * m + a with the addition folded first: (w x + b + a) * m."""
    for node in nodes(model, "Mul"):
        reader = next((use.node for use in node.outputs[0].uses() if is_operator(use.node, "Add")), None)
        if reader is None or not is_operator(node.inputs[0].producer(), "Conv"):
            continue
        factor, shift = constant(node, 1), constant(reader, 1)
        set_constant(model, reader, 1, shift * factor)
        return
    raise NoPlaceError


def exchange_norms(model: ir.Model) -> None:
    """A layer gets the constants of another layer's batch norm."""
    norms = nodes(model, "BatchNormalization")
    for first in norms:
        for second in norms:
            arrays = [constant(second, index) for index in (GAMMA, BETA, MEAN, VARIANCE)]
            if first is not second and arrays[0].shape == constant(first, GAMMA).shape:
                for index, array in zip((GAMMA, BETA, MEAN, VARIANCE), arrays, strict=True):
                    set_constant(model, first, index, array)
                return
    raise NoPlaceError


CANONICAL = "canonicalize"
FOLD, PAD, AFFINE = "fold_batch_norm", "fold_pad", "fold_affine"
NAME, ACT, SUM, GROUP, SINK = "recognise_activation", "fuse_activation", "fuse_residual", "group_separable", "sink_transpose"

MUTANTS = [
    Mutant("epsilon dropped", "epsilon", FOLD, "residual", on_norm(drop_epsilon)),
    Mutant("epsilon's default", "epsilon", FOLD, "residual", on_norm(default_epsilon)),
    Mutant("epsilon behind the root", "epsilon", FOLD, "residual", on_norm(add_epsilon_behind_the_root)),
    Mutant("no square root", "variance", FOLD, "residual", on_norm(leave_out_the_root)),
    Mutant("mean and variance swapped", "variance", FOLD, "residual", on_norm(swap_mean_and_variance)),
    Mutant("variance of the neighbour", "variance", FOLD, "excite", on_constant(VARIANCE, lambda v: np.roll(v, 1))),
    Mutant("sign of gamma lost", "gamma", FOLD, "residual", on_constant(GAMMA, np.abs)),
    Mutant("gamma left out", "gamma", FOLD, "excite", on_constant(GAMMA, np.ones_like)),
    Mutant("beta left out", "shift", FOLD, "residual", on_constant(BETA, np.zeros_like)),
    Mutant("mean left out", "shift", FOLD, "excite", on_constant(MEAN, np.zeros_like)),
    Mutant("bias not scaled (ncnn #1339)", "bias in a fold", FOLD, "residual", before(leave_the_bias_unscaled)),
    Mutant("bias lost in a fold", "bias in a fold", FOLD, "residual", before(forget_the_bias)),
    Mutant("scale along input channels", "axis of a scale", FOLD, "residual", scale_input_channels),
    Mutant("norm of another layer", "wrong layer", FOLD, "residual", before(exchange_norms)),
    Mutant("norm through a border", "padding", FOLD, "excite", fold_through_padding),
    Mutant("norm folded beside a consumer (ORT #4110)", "consumers", FOLD, "shared", before(fold_what_others_see)),
    Mutant("consumer of an intermediate dropped", "consumers", ACT, "shared", before(drop_a_consumer)),
    Mutant("shift before factor", "affine order", AFFINE, "excite", before(scale_behind_the_shift)),
    Mutant("one weight by a hundredth", "weights", FOLD, "residual", on_weight(change_one_by_a_hundredth)),
    Mutant("weights in half precision", "weights", FOLD, "excite", on_weight(round_to_half)),
    Mutant("two filters exchanged", "weights", FOLD, "residual", on_weight(exchange_two_filters)),
    Mutant("last column of taps lost", "taps", FOLD, "residual", on_weight(lose_a_tap, is_square)),
    Mutant("rows and columns of a kernel", "taps", FOLD, "excite", on_weight(lambda w: w.swapaxes(2, 3), is_square)),
    Mutant("kernel flipped", "taps", PAD, "excite", on_weight(lambda w: w[..., ::-1, ::-1], is_square)),
    Mutant("weights of another layer", "wrong layer", FOLD, "shared", behind(weights_of_another_layer)),
    Mutant("bias of the neighbour", "bias", FOLD, "residual", behind(roll_the_bias)),
    Mutant("bias missing", "bias", FOLD, "excite", behind(drop_the_bias)),
    Mutant("group off by one", "groups", PAD, "shuffle", behind(roll_groups)),
    Mutant("multiplier ignored", "groups", FOLD, "excite", behind(ignore_the_multiplier)),
    Mutant("multiplier interleaved", "groups", FOLD, "excite", behind(interleave_the_multiplier)),
    Mutant("strides and dilations swapped", "strides", PAD, "shuffle", behind(swap_strides_and_dilations)),
    Mutant("dilations and strides swapped", "strides", PAD, "excite", behind(swap_strides_and_dilations)),
    Mutant("pads mirrored", "padding", PAD, "excite", on_geometry("pads", mirror_pads)),
    Mutant("pads of rows and columns", "padding", PAD, "excite", on_geometry("pads", transpose_pads)),
    Mutant("pads mirrored in a fused operator", "padding", ACT, "excite", on_geometry("pads", mirror_pads)),
    Mutant("pad of a pointwise stage moved", "padding", ACT, "shuffle", before(move_the_pad_of_a_pointwise_stage)),
    Mutant("reflection as zeros", "border value", PAD, "shared", before(fold_a_reflection)),
    Mutant("border of ones", "border value", PAD, "excite", before(fold_a_pad_of_one)),
    Mutant("hard-swish with 2.99", "activation constant", NAME, "excite", before(on_scalar("Add", lambda v: min(v, 2.99)))),
    Mutant("hard-swish over 5.99", "activation constant", NAME, "excite", before(on_scalar("Div", lambda v: 5.99))),
    Mutant("clip's maximum by a thousandth", "activation constant", ACT, "residual", on_fused_scalar("max", lambda v: v * 1.001)),
    Mutant("clip's maximum of another layer", "activation constant", ACT, "residual", behind(exchange_limits)),
    Mutant("slope by a hundredth", "activation constant", FOLD, "residual", on_parameter("LeakyRelu", "alpha", 1.01)),
    Mutant("hard sigmoid's offset", "activation constant", FOLD, "excite", on_parameter("HardSigmoid", "beta", 0.99)),
    Mutant("ReLU6 as ReLU", "activation kind", FOLD, "residual", as_operator("Clip", "Relu")),
    Mutant("ReLU6 as ReLU, never reached", "activation kind", FOLD, "unreached", as_operator("Clip", "Relu"), "large"),
    Mutant("sigmoid as hard sigmoid", "activation kind", PAD, "shuffle", as_operator("Sigmoid", "HardSigmoid")),
    Mutant("activation dropped", "activation kind", FOLD, "residual", behind(drop_activation)),
    Mutant("residual before the activation", "residual", ACT, "residual", before(add_before_activating)),
    Mutant("residual lost", "residual", FOLD, "residual", behind(lose_the_residual)),
    Mutant("residual twice", "residual", FOLD, "residual", behind(add_the_residual_twice)),
    Mutant("residual subtracted", "residual", FOLD, "residual", behind(subtract_the_residual)),
    Mutant("activation behind the sum lost", "residual", FOLD, "residual", behind(lose_the_activation_behind_the_sum)),
    Mutant("concatenation in another order", "order of parts", SINK, "shuffle", behind(reorder_concatenation)),
    Mutant("split's outputs exchanged", "order of parts", SINK, "shuffle", behind(exchange_split_outputs)),
    Mutant("shuffle by the transposed count", "order of parts", PAD, "shuffle", before(transpose_the_shuffle)),
    Mutant("average counts the border", "pooling", NAME, "shuffle", behind(count_the_border)),
    Mutant("maximum for average", "pooling", NAME, "excite", behind(take_the_maximum)),
    Mutant("resize from the corner", "resampling", NAME, "shuffle", behind(resize_asymmetrically)),
    Mutant("excitation along rows", "excitation", FOLD, "excite", behind(excite_the_wrong_axis)),
    Mutant("excitation lost", "excitation", AFFINE, "excite", behind(lose_the_excitation)),
    Mutant("tap lost on import", "import", CANONICAL, "residual", on_weight(lose_a_tap, is_square)),
    Mutant("bias lost on import", "import", CANONICAL, "excite", behind(drop_the_bias)),
    Mutant("classifier transposed", "matrix product", GROUP, "residual", behind(transpose_the_classifier)),
]


class Mistake:
    """Makes a mutant's mistake the first time that it sees a model. Models seen later may be fused and have no place any more."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._seen: list[ir.Model] = []
        self._made = False

    def during(self, model: ir.Model, right: Callable[[], Any]) -> tuple[Any, bool]:
        """What the right pass returns, and whether the mistake was made."""
        if any(model is other for other in self._seen):
            return right(), False
        self._seen.append(model)
        steps, result = self._around(model), None
        try:
            next(steps)
            result = right()
            assert next(steps, "the end") == "the end"
        except NoPlaceError:
            if not self._made:
                raise
            return (right() if result is None else result), False
        self._made = True
        return result, True


def wrong(right: Callable[[Any, ir.Model], RewriteResult], around: Around) -> Callable[[Any, ir.Model], RewriteResult]:
    """A pass with a mutant's mistake."""
    mistake = Mistake(around)

    def call(self: Any, model: ir.Model) -> RewriteResult:
        result, made = mistake.during(model, lambda: right(self, model))
        return replace(result, modified=True, fired=max(result.fired, 1)) if made else result

    return call


def wrong_import(right: Callable[[ir.Model], ir.Model], around: Around) -> Callable[[ir.Model], ir.Model]:
    """`canonicalize` with a mutant's mistake, which is not made again in what came out of it."""
    mistake = Mistake(around)
    results: list[ir.Model] = []

    def canonicalized(model: ir.Model) -> ir.Model:
        result = right(model)
        if not any(model is other for other in results):
            mistake.during(result, lambda: None)
        results.append(result)
        return result

    return canonicalized


def install(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant.culprit == CANONICAL:
        for module in (pipeline, build):
            monkeypatch.setattr(module, CANONICAL, wrong_import(module.canonicalize, mutant.around))
        return
    culprit = PASSES[mutant.culprit]
    monkeypatch.setattr(culprit, "call", wrong(culprit.call, mutant.around))


def outputs(fused: ir.Model, feed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a fused model computes, nothing where its shapes do not fit."""
    try:
        return Oracle(fused).run(feed)
    except InputError:
        return {name: np.empty(0) for name in (value.name or "" for value in fused.graph.outputs)}


def verify_mutant(model: ir.Model, mutant: Mutant, differs: Differs, record: Record) -> list[Check]:
    """Verifies a model with a mutant in place, which changes what it computes; what did not pass."""
    feed = sample_inputs(model, 0, mutant.shown_on)
    right = outputs(fuse(model).model, feed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(mutant, monkeypatch)
        wrong = fuse(model).model
        if not differs(right, outputs(wrong, feed)):
            raise NoPlaceError(f"'{mutant.name}' computes the same")
        found = verify_model(model, HOST)
    failed = [check for check in found.checks if not check.passed]
    caught = names_culprit(failed, mutant)
    record("mutant", {"mutant": mutant, "caught": caught, "verification": found, "original": model, "rewritten": wrong})
    return failed


def names_culprit(failed: Sequence[Check], mutant: Mutant) -> bool:
    """Whether the first check that failed is of the pass that is wrong."""
    return bool(failed) and (failed[0].scope, failed[0].status, failed[0].pass_name) == ("graph", "failed", mutant.culprit)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_rewrite_is_found_and_named(
    mutant: Mutant, networks: Mapping[str, ir.Model], differs: Differs, record_property: Record
) -> None:
    failed = verify_mutant(networks[mutant.network], mutant, differs, record_property)
    assert names_culprit(failed, mutant), failed[:1]


def test_the_catalogue_is_large() -> None:
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.kind for mutant in MUTANTS}) >= 20


def test_a_fold_in_single_precision_is_right(networks: Mapping[str, ir.Model]) -> None:
    """Rounding is no mistake, though it is no equality either: https://github.com/onnx/optimizer/issues/255 ."""

    def fold_in_single_precision(model: ir.Model) -> Iterator[None]:
        conv, norm = normed(model)
        weight, bias = constant(conv, 1), constant(conv, 2)
        gamma, beta, mean, variance = (constant(norm, index) for index in (GAMMA, BETA, MEAN, VARIANCE))
        scale = gamma / np.sqrt(variance + np.float32(epsilon_of(norm)))
        yield
        folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert folded.dtype == np.float32
        assert not np.array_equal(folded, constant(conv, 1)), "nothing is rounded otherwise"
        set_constant(model, conv, 1, folded)
        set_constant(model, conv, 2, (bias - mean) * scale + beta)

    with pytest.MonkeyPatch.context() as monkeypatch:
        install(Mutant("", "", FOLD, "residual", fold_in_single_precision), monkeypatch)
        found = verify_model(networks["residual"], HOST)
    assert found.passed, [check for check in found.checks if not check.passed]


def test_a_norm_in_training_is_refused(networks: Mapping[str, ir.Model]) -> None:
    """No pass may fold it, and there is no telling what it should give: https://github.com/apache/tvm/issues/18703 ."""
    model = networks["residual"].clone()
    norm = next(node for node in model.graph if node.name == "bn1")
    norm.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    norm.resize_outputs(3)
    with pytest.raises(InputError, match="training"):
        verify_model(model, HOST)


PLACES = {
    "separable_block": 24, "depth_multiplier": 29, "x3d_block": 28, "ds_cnn": 32, "grouped": 32, "yolov5n_dw": 29, "tcn_1d": 27,
    "mobilenet_v1": 29, "deeplab_aspp": 26, "shufflenet_v2": 29, "mobilenet_v3_small": 35, "mobilenet_v2": 33, "mnasnet": 30,
    "efficientnet_lite0": 34, "mobilenet_v3_large": 35, "xception": 31,
}  # fmt: skip
"""How many of the mutants each network of the zoo has a place for, at least: whether a pass fires depends on no machine."""


@pytest.mark.nightly
def test_wrong_rewrites_of_whole_networks(
    whole_network: ir.Model, differs: Differs, record_property: Record, request: pytest.FixtureRequest
) -> None:
    tried, escaped = 0, []
    for mutant in MUTANTS:
        try:
            failed = verify_mutant(whole_network, mutant, differs, record_property)
        except NoPlaceError:
            continue
        tried += 1
        if not names_culprit(failed, mutant):
            escaped.append((mutant.name, failed[:1]))
    assert tried >= PLACES[request.node.callspec.params["whole_network"].name]
    assert not escaped
