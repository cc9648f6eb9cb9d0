"""Gives a network the input that cameras and decoders of images have: bytes, pixel by pixel, not yet normalised."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sepwise.passes.axis_order import permutation
from sepwise.passes.canonical_form import canonicalize
from sepwise.passes.errors import InputError
from sepwise.passes.fold_pad import FoldPadPass
from sepwise.passes.folding import CONVOLUTIONS, ConvConstants, constants_behind, set_constants
from sepwise.passes.rewriting import (
    Refusal,
    RewriteResult,
    free_name,
    is_operator,
    remove_unused_initializers,
    set_constant_input,
    static_shape,
    value_names,
)

__all__ = ["ConvertInputPass", "ImageFormat", "ImageLayout", "convert_input", "name_images", "own_layout"]

logger = logging.getLogger(__name__)

ImageLayout = Literal["NCHW", "NHWC"]
"""Order of an image's axes: batch, channels, height, width; or the channels of a pixel beside each other."""

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
"""Which axis stands where behind a Transpose."""

RANK, CHANNELS = 4, 1
LARGEST = 255.0
"""The largest byte, which stands for 1."""

FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """What a network is to be given for its image.

    Bytes u are normalised as torchvision does it, with numbers of images between 0 and 1:

        x = (u / 255 - mean) / std

    A network that takes 0 to 255 has the mean 0 and the std 1 / 255.

    Attributes:
        layout: Order of the axes; as the network has it where None.
        element_type: `uint8`; as the network has it where None.
        mean: One number, or one for each channel.
        std: Likewise.
        inputs: Which inputs are images; the only one of four axes where there are none.

    Raises:
        InputError: The numbers cannot be used.

    Example:
        >>> ImageFormat(layout="NHWC", element_type="uint8", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).layout
        'NHWC'
    """

    layout: ImageLayout | None = None
    element_type: Literal["uint8"] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.element_type is None and (self.mean, self.std) != ((0.0,), (1.0,)):
            raise InputError("Mean and std: are what bytes are normalised with. Give them with the input type uint8, or neither.")
        for name, numbers in (("Mean", self.mean), ("Std", self.std)):
            if not numbers or not np.isfinite(numbers).all():
                raise InputError(f"{name} {_listed(numbers)}: needed is one finite number, or one for each channel.")
        if min(self.std) <= 0:
            raise InputError(f"Std {_listed(self.std)}: it is divided by, so each has to be above 0.")

    def to_json(self) -> dict[str, object]:
        """Its fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ImageFormat":
        """Reads the fields back, which are lists by then."""
        lists = {key: tuple(fields[key]) for key in ("mean", "std", "inputs")}
        return cls(**{**fields, **lists})


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The normalisation of bytes, and the convolutions that take it in.

    Attributes:
        offset: 255 mean, shape (c,), in the network's type.
        scale: 1 / (255 std), likewise.
        whole: New constants of the convolutions that read bytes.
        scaled: New constants of those that read bytes without the offset.
    """

    offset: npt.NDArray[np.generic]
    scale: npt.NDArray[np.generic]
    whole: dict[ir.Node, ConvConstants]
    scaled: dict[ir.Node, ConvConstants]


@dataclass(frozen=True, eq=False)
class ConvertedInput:
    """An input that changes, and what of the normalisation each of its readers takes in.

    Attributes:
        value: The input.
        transposes: What alone reads it, where it is in N, H, W, C already.
        layout: Of the new input.
        shape: Of the image in N, C, H, W.
        normalisation: What turns bytes into the network's numbers; None where these are given.
    """

    value: ir.Value
    transposes: tuple[ir.Node, ...]
    layout: ImageLayout
    shape: tuple[int, ...]
    normalisation: Normalisation | None = None


class ConvertInputPass(ir.passes.InPlacePass):
    """Gives a network another input, and lets its first convolutions do what has to be done to that.

        x = transpose(u)                              from N, H, W, C
        x = (u / 255 - mean) / std = s (u - m)        from bytes, with s = 1 / (255 std), m = 255 mean
        W * x + b = (s W) * (u - m) + b               zeros around x are zeros around u - m
                  = (s W) * u + (b - sum s m W)       without padding, or where the mean is 0

    in float64, stored in the weight's type. So the scale always goes into a convolution's weight; the shift goes into its bias
    where no padding is read, and stays an operation elsewhere, which is part of the kernel that widens bytes and reorders
    them. What else reads the input gets x itself.

    An input that nothing but Transposes to N, C, H, W reads is in N, H, W, C already: their place takes what is needed
    from the new layout on.

    Class of the rewrite: `exact` for a layout alone, else `rounding`.

    Fires when:
        a named input is not of the asked layout and type.

    Refuses when:
        1. there is no such input, or it has not four axes;
        2. bytes are asked for, and the input is not floating-point;
        3. mean or std are not one number or one for each channel, or the network's type does not hold 255 mean and 1 / (255 std);
        4. the input has a default that callers may leave as it is, or is an output too.

    Changes the main graph's input; readers in subgraphs get x itself. The input keeps its name. Nodes must have names and
    convolutions explicit pads, as `canonicalize` leaves them.
    """

    name = "convert_input"

    def __init__(self, image: ImageFormat) -> None:
        """Takes what the network is to be given, its inputs named."""
        super().__init__()
        self._image = image

    def call(self, model: ir.Model) -> RewriteResult:
        """Changes each image.

        Args:
            model: Changed in place, as a whole or not at all.

        Returns:
            The same model, whether it changed, how many inputs did, and why others did not.
        """
        inputs = {value.name or "": value for value in model.graph.inputs}
        named = dict.fromkeys(self._image.inputs)
        found = [self.match(inputs[name]) if name in inputs else _missing(name, inputs) for name in named]
        refused = tuple(each for each in found if isinstance(each, Refusal))
        for refusal in refused:
            logger.debug("%s refuses '%s': %s", self.name, refusal.node, refusal.reason)
        fired = 0
        for match in () if refused else found:
            if isinstance(match, ConvertedInput):
                self.rewrite(model, match)
                fired += 1
        if fired:
            logger.info("converted %d inputs", fired)
        return RewriteResult(model, modified=fired > 0, fired=fired, refused=refused)

    def match(self, value: ir.Value) -> ConvertedInput | Refusal | None:
        """Decides about one input, and calculates the new constants; None where it is as it should be."""
        name, image, given = value.name or "", self._image, static_shape(value)
        if given is None or len(given) != RANK:
            return Refusal(f"its shape is {value.shape}; an image has {RANK} axes of known extents", name)
        transposes = _transposes(value)
        own = own_layout(value)
        layout = image.layout or own
        if image.element_type is None and layout == own:
            return None
        if value.is_initializer():
            return Refusal("it has a default, which is of the format that it has", name)
        if value.is_graph_output():
            return Refusal("it is an output too", name)
        shape = tuple(given[axis] for axis in TO_NCHW) if transposes else given
        normalisation = None if image.element_type is None else self._normalise(value, transposes, shape[CHANNELS])
        if isinstance(normalisation, Refusal):
            return normalisation
        return ConvertedInput(value, transposes, layout, shape, normalisation)

    def _normalise(self, value: ir.Value, transposes: tuple[ir.Node, ...], channels: int) -> Normalisation | Refusal:
        """Calculates the constants of the normalisation, and those of the convolutions that take it in."""
        name, kind = value.name or "", value.dtype
        if kind not in FLOATS:
            return Refusal(f"its elements are {kind}; bytes stand for floating-point numbers", name)
        vectors = []
        for what, numbers in (("mean", self._image.mean), ("std", self._image.std)):
            if len(numbers) not in (1, channels):
                return Refusal(f"the {what} has {len(numbers)} numbers, and it has {channels} channels", name)
            vectors.append(np.broadcast_to(np.array(numbers, np.float64), (channels,)))
        offset, scale = LARGEST * vectors[0], 1 / (LARGEST * vectors[1])
        with np.errstate(over="ignore", under="ignore"):
            stored = [vector.astype(kind.numpy()) for vector in (offset, scale)]
        if not np.isfinite(stored).all() or not stored[1].all():
            return Refusal(f"255 mean or 1 / (255 std) is beyond what {kind} holds", name)
        whole: dict[ir.Node, ConvConstants] = {}
        scaled: dict[ir.Node, ConvConstants] = {}
        for node, place in _uses(value, transposes):
            if place != 0 or not is_operator(node, *CONVOLUTIONS) or node.graph is not value.graph:
                continue
            for taking, shift in ((whole, -scale * offset), (scaled, np.zeros(channels))):
                constants = constants_behind(node, scale, shift, name)
                if isinstance(constants, ConvConstants):
                    taking[node] = constants
                    break
        return Normalisation(stored[0], stored[1], whole, scaled)

    def rewrite(self, model: ir.Model, match: ConvertedInput) -> None:
        """Puts Transpose, Cast, Sub and Mul in front of the readers of one input, as far as these need them."""
        value, normalisation, kind = match.value, match.normalisation, match.value.dtype
        uses, front = _uses(value, match.transposes), _Front(model, value.name or "", match.shape)
        image, sources = value, dict[ir.Node, ir.Value]()
        value.shape = ir.Shape(match.shape)
        if normalisation is not None:
            value.type = ir.TensorType(ir.DataType.UINT8)
        if match.layout == "NHWC":
            value.shape = ir.Shape([match.shape[axis] for axis in TO_NHWC])
            image = front.apply("Transpose", image, ir.AttrInt64s("perm", TO_NCHW))
        if normalisation is not None:
            assert kind is not None, "bytes stand for floating-point numbers"
            whole, scaled = normalisation.whole, normalisation.scaled
            image = front.apply("Cast", image, ir.AttrInt64("to", kind.value))
            image.type = ir.TensorType(kind)
            sources |= dict.fromkeys(whole, image)
            if len(whole) < len(uses) and normalisation.offset.any():
                image = front.apply("Sub", image, constant=normalisation.offset)
            sources |= dict.fromkeys(scaled, image)
            if len(whole) + len(scaled) < len(uses) and (normalisation.scale != 1).any():
                image = front.apply("Mul", image, constant=normalisation.scale)
            for conv, constants in (whole | scaled).items():
                set_constants(model, conv, constants)
        for node, place in uses:
            node.replace_input_with(place, sources.get(node, image))
        front.insert()
        for node in match.transposes:
            assert isinstance(node.graph, ir.Graph), "it is in the main graph"
            node.graph.remove(node, safe=True)
        remove_unused_initializers(model)


class _Front:
    """Nodes that come before all others, on images of one shape, each named after what it does to the input."""

    def __init__(self, model: ir.Model, name: str, shape: tuple[int, ...]) -> None:
        self._model, self._name, self._shape = model, name, shape
        self._names = value_names(model) | {node.name or "" for node in model.graph}
        self._nodes: list[ir.Node] = []

    def apply(
        self, operator: str, source: ir.Value, *attributes: ir.Attr, constant: npt.NDArray[np.generic] | None = None
    ) -> ir.Value:
        """Adds a node, in no graph yet; its constant is one number per channel."""
        name = free_name(self._names, f"{self._name}.{operator.lower()}")
        node = ir.Node("", operator, [source], attributes, name=name, num_outputs=1)
        if constant is not None:
            set_constant_input(self._model, node, 1, constant.reshape(-1, 1, 1), f"{name}.constant")
        made = node.outputs[0]
        made.name, made.shape, made.type = name, ir.Shape(self._shape), source.type
        self._nodes.append(node)
        return made

    def insert(self) -> None:
        """Puts the nodes where they belong."""
        graph = self._model.graph
        graph.insert_before(graph[0], self._nodes)


def name_images(model: ir.Model, image: ImageFormat) -> ImageFormat:
    """Names the inputs that are images, where the format names none: the only one of four axes.

    Args:
        model: Its input shapes are fixed.
        image: What it is to be given.

    Returns:
        The format with names.

    Raises:
        InputError: None of the inputs has four axes, or several have.
    """
    if image.inputs:
        return image
    found = [value.name or "" for value in model.graph.inputs if value.shape is not None and len(value.shape) == RANK]
    if len(found) != 1:
        listed = f"inputs {', '.join(found)} have" if found else "no input has"
        raise InputError(f"Model '{model.graph.name}': {listed} {RANK} axes; needed is one. Name the images with --image.")
    return replace(image, inputs=tuple(found))


def own_layout(value: ir.Value) -> ImageLayout:
    """Tells the layout of an image that a network takes: N, H, W, C where nothing but Transposes from it read it."""
    return "NHWC" if _transposes(value) else "NCHW"


def convert_input(model: ir.Model, image: ImageFormat) -> ir.Model:
    """Gives a network another input.

    Args:
        model: Left as it is; its input shapes are fixed.
        image: What it is to be given.

    Returns:
        A copy in canonical form, of the inputs asked for. Zeros in front of its convolutions are part of them.

    Raises:
        InputError: It cannot have them, or cannot be canonicalized.

    Example:
        >>> convert_input(load_model("m.onnx"), ImageFormat(layout="NHWC")).graph.inputs[0].shape  # doctest: +SKIP
        Shape([1, 224, 224, 3])
    """
    converted = canonicalize(model)
    FoldPadPass()(converted)  # a scale goes past zeros
    result = ConvertInputPass(name_images(converted, image))(converted)
    assert isinstance(result, RewriteResult), "all of our passes report what fired"
    for refusal in result.refused:
        raise InputError(f"Input '{refusal.node}': {refusal.reason}.")
    return converted


def _missing(name: str, inputs: Collection[str]) -> Refusal:
    """Refuses a name that no input has."""
    return Refusal(f"there is no such input; the model has {', '.join(inputs)}", name)


def _transposes(value: ir.Value) -> tuple[ir.Node, ...]:
    """What reads an input, where that is nothing but Transposes from N, H, W, C to N, C, H, W."""
    readers = tuple(use.node for use in value.uses())
    made = all(is_operator(node, "Transpose") and permutation(node) == TO_NCHW and node.graph is value.graph for node in readers)
    return readers if made and not any(node.outputs[0].is_graph_output() for node in readers) else ()


def _uses(value: ir.Value, transposes: tuple[ir.Node, ...]) -> list[tuple[ir.Node, int]]:
    """Who reads an image in N, C, H, W: the input itself, or what Transposes made of it."""
    images = [node.outputs[0] for node in transposes] or [value]
    return [(use.node, use.idx) for image in images for use in image.uses()]


def _listed(numbers: tuple[float, ...]) -> str:
    """Numbers as the command line takes them."""
    return ",".join(f"{number:g}" for number in numbers)
