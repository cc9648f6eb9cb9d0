"""Brings a model as it came in into the one form that the passes expect."""

import logging
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.optimizer import fold_constants_ir

from sepwise.passes.errors import InputError
from sepwise.passes.geometry import POOLS, explicit_geometry, read_geometry, read_pool_pads
from sepwise.passes.rewriting import (
    Refusal,
    constant_array,
    is_operator,
    original_nodes,
    remove_unused_initializers,
    replace_with_input,
    set_constant_input,
    set_original_nodes,
    static_shape,
    unique_value_name,
)
from sepwise.passes.vocabulary import DOMAIN

__all__ = ["canonicalize"]

logger = logging.getLogger(__name__)

FOLDED_ELEMENTS = 1 << 24
"""Constants of up to this many elements are folded; what exceeds it is no shape arithmetic and no weight."""

MAXIMUM_ROUNDS = 8
"""Rounds of constant folding; three are enough for every file seen."""

CONV_BIAS = 2
"""Input of a Conv that is its bias."""

RESIZE_SCALES = 2
"""Input of a Resize, behind its region, with its scales; the sizes are next."""

IMAGE_AXIS = 2
"""First axis behind batch and channels."""

BIG_TENSOR_BYTES = 1024
"""Larger initializers are no shapes: shape inference sees their type only."""


def canonicalize(model: ir.Model) -> ir.Model:
    """Returns a canonical copy of a model: the same outputs from the same inputs, in plainer words.

    1. Every node has a name of its own (unnamed ones are called `Conv_12`, by operator and position).
    2. Functions are inlined, except those of the domain `sepwise`.
    3. With the input shapes fixed, all that is constant is folded, shape arithmetic included.
    4. Identity, Dropout (in inference mode), and casts, pads, transposes, resizes and so on that change nothing are removed.
    5. Constants are initializers; unused nodes and initializers are gone.
    6. Every Conv spells out kernel_shape, strides, pads, dilations and group; `auto_pad` is resolved, poolings' too. A bias of
       zeros that is not one number per channel (torch writes `(channels, 2)` for a Conv3d without bias) is gone.
    7. A Resize that keeps the corners where they are leaves two elements of each axis at least, and a Slice takes the first.
    8. Shapes are inferred.

    Initializers that are graph inputs too are constants if the IR version is below 4 (there the format demanded that),
    and inputs with a default otherwise.

    Args:
        model: Left as it is. Its input shapes should be fixed.

    Returns:
        A copy, in canonical form.

    Raises:
        InputError: If shapes do not fit each other, with the node where they clash.
    """
    copy = model.clone()
    if copy.ir_version < 4:
        _take_initializers_off_the_inputs(copy)
    _name_nodes(copy)
    _inline_functions(copy)
    declared = [value.shape for value in copy.graph.outputs]
    _forget_symbolic_shapes(copy)
    for _ in range(MAXIMUM_ROUNDS):
        changed = _fold_constants(copy)
        changed |= _remove_no_ops(copy)
        if not changed:
            break
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common_passes.RemoveUnusedNodesPass()(copy)
    _drop_zero_biases(copy)
    remove_unused_initializers(copy)
    _infer_shapes(copy)
    for value, shape in zip(copy.graph.outputs, declared, strict=True):
        if value.shape is None:  # it depends on data: what the file says of it is all there is
            value.shape = shape
    _check_convolutions(copy)
    _check_batch_norms(copy)
    _spell_out_geometry(copy)
    _take_single_corners(copy)
    return copy


def _take_initializers_off_the_inputs(model: ir.Model) -> None:
    kept = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = 4


def _name_nodes(model: ir.Model) -> None:
    nodes = [node for graph in model.graphs() for node in graph]
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for position, node in enumerate(nodes):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        wanted = node.name or f"{node.op_type}_{position}"
        name, number = wanted, 0
        while name in taken or name in seen:
            number += 1
            name = f"{wanted}_{number}"
        node.name = name
        seen.add(name)


def _inline_functions(model: ir.Model) -> None:
    if any(domain != DOMAIN for domain, _, _ in model.functions):
        common_passes.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
        common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        used = {node.domain for graph in model.graphs() for node in graph}
        for domain in set(model.opset_imports) - used - {""}:
            del model.opset_imports[domain]
        _name_nodes(model)


def _forget_symbolic_shapes(model: ir.Model) -> None:
    """Shapes written by the exporter with names for dimensions would hide what follows from the fixed inputs."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.shape is not None and not value.shape.is_static():
                    value.shape = None


def _foldable(node: ir.Node) -> bool | None:
    return True if node.op_type == "ConstantOfShape" else None


def _fold_constants(model: ir.Model) -> bool:
    functions = dict(model.functions)
    model.functions.clear()  # our functions' bodies hold references to attributes, which folding does not expect
    optimizer = logging.getLogger("onnxscript.optimizer")
    level = optimizer.level
    optimizer.setLevel(logging.ERROR)  # it warns of what it leaves as it is
    try:
        result = fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=_foldable,
        )
    finally:
        model.functions.update(functions)
        optimizer.setLevel(level)
    common_passes.RemoveUnusedNodesPass()(model)
    return result.modified


def _remove_no_ops(model: ir.Model) -> bool:
    modified = False
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if node.inputs else None
            if source is None or not _changes_nothing(node, source):
                continue
            output = node.outputs[0]
            if not output.is_graph_output():
                replace_with_input(node, source, keep_name=False)
            elif source.producer() is not None and not source.is_graph_output() and source.graph is graph:
                replace_with_input(node, source, keep_name=True)
            else:
                continue
            modified = True
    return modified


def _changes_nothing(node: ir.Node, source: ir.Value) -> bool:
    if node.domain != "" or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
            omitted = len(node.inputs) <= 2 or node.inputs[2] is None
            return omitted or (training is not None and not training.any())
        case "Cast":
            return source.dtype is not None and node.attributes.get_int("to") == source.dtype.value
        case "Transpose":
            perm = node.attributes.get_ints("perm")
            return perm is not None and list(perm) == list(range(len(perm)))
        case "Pad":
            pads = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
            return pads is not None and not pads.any()
        case "Concat" | "Sum" | "Max" | "Min":
            return len(node.inputs) == 1
        case "Expand" | "Reshape" | "Slice" | "Squeeze" | "Unsqueeze" | "Flatten" | "Tile":
            before, after = source.shape, node.outputs[0].shape
            fixed = before is not None and after is not None and before.is_static() and before == after
            return (fixed and node.op_type not in ("Slice", "Tile")) or (fixed and _takes_all(node))
        case "Resize":
            extents = static_shape(source)
            return extents is not None and extents == static_shape(node.outputs[0]) and _keeps_positions(node)
    return False


def _takes_all(node: ir.Node) -> bool:
    """A Slice that keeps every extent may still reverse; a Tile that keeps them repeats once."""
    if node.op_type == "Tile" or len(node.inputs) < 5 or node.inputs[4] is None:
        return True
    steps = constant_array(node.inputs[4])
    return steps is not None and bool((steps > 0).all())


def _keeps_positions(node: ir.Node) -> bool:
    """Whether a Resize to the extents that are there computes each element from itself alone.

    Scales may be other than 1 and give the same extents, rounded; between the corners there is none but 1 then.
    """
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if coordinates == "align_corners" or coordinates.startswith("tf_"):
        return coordinates == "align_corners"
    scales = node.inputs[RESIZE_SCALES] if len(node.inputs) > RESIZE_SCALES else node.inputs[-1]  # opset 10 has no roi
    given = None if scales is None else constant_array(scales)
    return scales is None or (given is not None and bool((given == 1).all()))


def _infer_shapes(model: ir.Model) -> None:
    """Infers all shapes; a clash is an error of the input."""
    skeleton = model.clone()
    for name, value in list(skeleton.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > BIG_TENSOR_BYTES:
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
            del skeleton.graph.initializers[name]
            value.const_value = None
            if value not in skeleton.graph.inputs:
                skeleton.graph.inputs.append(value)
    proto = ir.to_proto(skeleton)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        text = " ".join(str(error).split())
        shown = ", ".join(f"{value.name}={_dims(value)}" for value in model.graph.inputs)
        raise InputError(
            f"Model '{model.graph.name}': its shapes do not fit each other with the inputs {shown}: {text}. "
            "Give input shapes that the network takes, or repair the file."
        ) from error
    by_name = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            info = by_name.get(value.name or "")
            if info is None or not info.type.HasField("tensor_type"):
                continue
            shape = ir.serde.deserialize_type_proto_for_shape(info.type)
            if shape is not None:
                value.shape = shape
            value.type = ir.serde.deserialize_type_proto_for_type(info.type) or value.type


def _drop_zero_biases(model: ir.Model) -> None:
    """Removes a bias of zeros that is not one number for each channel, which adds nothing however it is read."""
    for graph in model.graphs():
        for node in graph:
            if not is_operator(node, "Conv") or len(node.inputs) <= CONV_BIAS:
                continue
            bias, weight = constant_array(node.inputs[CONV_BIAS]), static_shape(node.inputs[1])
            if bias is not None and weight is not None and bias.shape != (weight[0],) and not bias.any():
                node.resize_inputs(CONV_BIAS)


def _check_convolutions(model: ir.Model) -> None:
    """Checks what ONNX's shape inference does not: channels against weights and groups, and that windows fit."""
    for graph in model.graphs():
        for node in graph:
            if not is_operator(node, "Conv"):
                continue
            data, weight = static_shape(node.inputs[0]), static_shape(node.inputs[1])
            if data is None or weight is None:
                continue
            group: int = node.attributes.get_int("group", 1)
            if len(data) != len(weight) or data[1] != weight[1] * group or weight[0] % group:
                raise InputError(
                    f"Conv '{node.name}': its input has shape {data}, its weight {weight} and group={group}; the weight must be "
                    "(m, channels / group, *kernel) with group dividing m. Give input shapes that the network takes, or check "
                    "the exporter."
                )
            bias = static_shape(node.inputs[CONV_BIAS]) if len(node.inputs) > CONV_BIAS else None
            if bias is not None and bias != (weight[0],):
                raise InputError(
                    f"Conv '{node.name}': its bias has shape {bias}, its weight {weight}; the bias must have shape "
                    f"({weight[0]},). Check the exporter."
                )
            geometry = read_geometry(node)
            if not isinstance(geometry, Refusal) and not geometry.fits(data[2:]):
                raise InputError(
                    f"Conv '{node.name}': its input of shape {data} is smaller than its window, kernel "
                    f"{geometry.kernel_shape} with dilations {geometry.dilations} and pads {geometry.pads}. Give larger input "
                    "shapes."
                )


def _check_batch_norms(model: ir.Model) -> None:
    """Checks what shape inference does not before operator set 14: that there is one constant for each channel."""
    for graph in model.graphs():
        for node in graph:
            data = static_shape(node.inputs[0]) if is_operator(node, "BatchNormalization") else None
            if data is None or node.attributes.get_int("spatial", 1) != 1:
                continue
            for value in node.inputs[1:5]:
                shape = static_shape(value)
                if value is not None and shape not in (None, (data[1],)):
                    raise InputError(
                        f"BatchNormalization '{node.name}': its input has shape {data}, '{value.name}' {shape}; it must be "
                        f"({data[1]},), one number for each channel. Check the exporter."
                    )


def _dims(value: ir.Value) -> str:
    return "unknown" if value.shape is None else ",".join(str(dim) for dim in value.shape)


def _spell_out_geometry(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in graph:
            if is_operator(node, "Conv") and not explicit_geometry(node):
                geometry = read_geometry(node)
                attributes = geometry if isinstance(geometry, Refusal) else geometry.attributes()
            elif is_operator(node, *POOLS) and node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
                pads = read_pool_pads(node)
                attributes = pads if isinstance(pads, Refusal) else {"pads": ir.AttrInt64s("pads", pads)}
            else:
                continue
            if isinstance(attributes, Refusal):
                logger.debug("%s", attributes.reason)
                continue
            node.attributes.pop("auto_pad", None)
            node.attributes.update(attributes)


def _take_single_corners(model: ir.Model) -> None:
    """Gives a Resize between corners at least two elements on each axis where it made one, and takes the first of them.

    Its positions are `(before - 1) / (after - 1)` apart, which one element has no need of and a compiler divides by zero for.
    ONNX puts that element at 0, where the first of any other number is: of as many as there were, or of two copies of one.
    """
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if is_operator(node, "Resize") else None
            before, after = static_shape(source), static_shape(node.outputs[0])
            if source is None or before is None or after is None or not _keeps_corners(node):
                continue
            single = [axis for axis in range(IMAGE_AXIS, len(after)) if after[axis] == 1]
            if not single:
                continue
            wide = [max(before[axis], 2) if axis in single else extent for axis, extent in enumerate(after)]
            _take_first(model, node, wide, single)
            if wide == list(before):
                replace_with_input(node, source, keep_name=False)
            else:
                _resize_to(model, node, before, wide, single)
    remove_unused_initializers(model)


def _take_first(model: ir.Model, node: ir.Node, wide: Sequence[int], axes: Sequence[int]) -> None:
    """Makes a node's output wide, and gives all who read it the first elements of the axes, under its name."""
    graph, output = node.graph, node.outputs[0]
    assert graph is not None, "the node is in a graph"
    name, shape = output.name, output.shape
    taking = ir.Node("", "Slice", [None], num_outputs=1, name=f"{node.name}.first")
    set_original_nodes(taking, original_nodes(node))
    taken = taking.outputs[0]
    ir.convenience.replace_all_uses_with(output, taken, replace_graph_outputs=True)
    taking.replace_input_with(0, output)
    constants = {"starts": [0] * len(axes), "ends": [1] * len(axes), "axes": axes}
    for index, (role, numbers) in enumerate(constants.items(), start=1):
        set_constant_input(model, taking, index, np.array(numbers, np.int64), f"{taking.name}.{role}")
    graph.insert_after(node, taking)
    output.name, output.shape = unique_value_name(model, f"{name}.wide"), ir.Shape(wide)
    taken.name, taken.shape, taken.type = name, shape, output.type


def _resize_to(model: ir.Model, node: ir.Node, before: Sequence[int], wide: Sequence[int], single: Sequence[int]) -> None:
    """Gives a Resize other extents on some axes: by scales of all axes if it has them, else by sizes."""
    scales = constant_array(node.inputs[RESIZE_SCALES]) if len(node.inputs) > RESIZE_SCALES else None
    if scales is not None and scales.size and "axes" not in node.attributes:
        scales[single] = [wide[axis] / before[axis] for axis in single]
        set_constant_input(model, node, RESIZE_SCALES, scales.astype(np.float32), f"{node.name}.scales")
        return
    node.resize_inputs(RESIZE_SCALES + 2)
    if scales is None or scales.size:  # empty ones stand for none where the operator set demands some
        node.replace_input_with(RESIZE_SCALES, None)
    set_constant_input(model, node, RESIZE_SCALES + 1, np.array(wide, np.int64), f"{node.name}.sizes")
    for attribute in ("axes", "keep_aspect_ratio_policy"):
        node.attributes.pop(attribute, None)


def _keeps_corners(node: ir.Node) -> bool:
    """Whether a Resize is by the positions of corners; what it filters besides reads more than one element."""
    attributes = node.attributes
    corners = attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
    return corners and not attributes.get_int("antialias", 0)
