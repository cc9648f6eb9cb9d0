"""Random separable networks as ONNX text, valid by construction, and the verifier's verdicts on many of them at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import onnx
import onnx.parser
import pytest

OPSETS = (18, 13, 22)

MOST_ELEMENTS = 20_000
"""Elements of a tensor."""

SIZES = {1: (11, 1, 2, 7, 16, 33, 64), 2: (9, 1, 2, 5, 7, 8, 13, 17), 3: (5, 1, 2, 3, 6)}
"""Extents of spatial axes, by their number; mostly odd."""

CHANNELS = (5, 1, 2, 3, 4, 7, 8, 12, 13, 16, 17, 24, 33)
"""Most leave a tail in the blocks of 4, 8 or 16 lanes."""

KINDS = ("normal", "uniform", "positive", "impulse", "knees", "sparse", "large")
"""What inputs are drawn as; a network is named after it."""

SINGLE = {
    "Relu": "",
    "Clip": "",
    "LeakyRelu": "alpha = 0.1",
    "HardSigmoid": "alpha = 0.16666667, beta = 0.5",
    "Sigmoid": "",
    "Tanh": "",
    "Elu": "alpha = 0.7",
    "Softplus": "",
    "PRelu": "",
    "HardSwish": "",
    "Abs": "",
    "Neg": "",
    "Exp": "",
    "Erf": "",
    "Selu": "",
    "Softsign": "",
}
"""Activations of one operator, with their attributes."""

FIRST_OPSET = {"HardSwish": 14, "Mish": 18, "Gelu": 20}

SPELLED = (
    "hard_swish", "hard_swish_by_gate", "hard_sigmoid", "silu", "gelu", "mish", "min_max", "relu_min", "leaky_max", "clip_twice", "half_swish",
)  # fmt: skip
"""Activations of several nodes; the last is none that is known."""


class UnfitError(Exception):
    """What was drawn does not fit there."""


class Network:
    """A network that grows node by node; draws what it needs.

    Attributes:
        shapes: Of all values, by name.
        values: Names of what nodes and the network's inputs give, in order.
        convolutions: How many more there may be.
    """

    def __init__(self, draw: st.DrawFn, convolutions: int) -> None:
        self.draw = draw
        self.convolutions = convolutions
        self.opset = draw(st.sampled_from(OPSETS))
        self.rank = draw(st.sampled_from((2, 2, 1, 3)))
        self.batch = draw(st.sampled_from((1, 1, 1, 2, 3)))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: list[str] = []
        self.inputs: list[str] = []
        self._nodes: list[str] = []
        self._constants: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    # --- what it is made of -------------------------------------------------------------------------------------

    def some(self, *choices: object) -> object:
        """Draws one of several things, the first as the simplest."""
        return self.draw(st.sampled_from(choices))

    def maybe(self, chances: int = 1, of: int = 2) -> bool:
        """Draws whether, rather not."""
        return self.draw(st.integers(0, of - 1)) >= of - chances

    def name(self, stem: str) -> str:
        self._numbers[stem] = self._numbers.get(stem, -1) + 1
        return f"{stem}{self._numbers[stem]}"

    def add_input(self, shape: Sequence[int]) -> str:
        name = self.name("x")
        self.shapes[name] = tuple(shape)
        self.inputs.append(name)
        self.values.append(name)
        return name

    def constant(self, stem: str, *shape: int) -> str:
        """A constant whose numbers are drawn by whoever reads the text; sometimes one that is there already."""
        alike = [name for name in self._constants if name.rstrip("0123456789") == stem and self.shapes[name] == shape]
        if alike and self.maybe(1, 4):
            return str(self.some(*alike))
        name = self.name(stem)
        self.shapes[name] = shape
        self._constants[name] = f"float[{','.join(map(str, shape))}] {name}" if shape else f"float {name}"
        return name

    def number(self, value: float) -> str:
        """A scalar, or a tensor of one element."""
        name = self.name("f")
        shape = self.some("", "", "[1]")
        self._constants[name] = f"float{shape} {name} = {{{float(value)!r}}}"
        self.shapes[name] = (1,) if shape else ()
        return name

    def numbers(self, *values: int | float) -> str:
        """Whole numbers for shapes and axes, or scales."""
        kind = "float" if any(isinstance(value, float) for value in values) else "int64"
        name = self.name("i")
        self._constants[name] = f"{kind}[{len(values)}] {name} = {{{', '.join(map(repr, values))}}}"
        self.shapes[name] = (len(values),)
        return name

    def node(self, operator: str, *sources: str, attributes: str = "") -> str:
        """Adds a node of one output; gives its name.

        Raises:
            UnfitError: The operator cannot take that, or its result would be too large.
        """
        return self.nodes(operator, *sources, attributes=attributes)[0]

    def nodes(self, operator: str, *sources: str, attributes: str = "", outputs: int = 1) -> list[str]:
        """Adds a node as `node` does; gives the names of its outputs."""
        label, place = operator.lower(), len(self.shapes)
        made = [f"v{place + index}" for index in range(outputs)]
        line = f"[{label}{place}] {', '.join(made)} = {operator}{f' <{attributes}>' if attributes else ''} ({', '.join(sources)})"
        shapes = self._infer(line, [source for source in sources if source], made)
        if any(min(shape, default=1) < 1 or math.prod(shape) > MOST_ELEMENTS for shape in shapes):
            raise UnfitError
        self._nodes.append(line)
        self.shapes.update(zip(made, shapes, strict=True))
        self.values += made
        return made

    def _infer(self, line: str, sources: Sequence[str], made: Sequence[str]) -> list[tuple[int, ...]]:
        """The shapes that ONNX infers."""
        given = [f"float[{','.join(map(str, self.shapes[s]))}] {s}" for s in dict.fromkeys(sources) if s not in self._constants]
        stored = [self._constants[s] for s in dict.fromkeys(sources) if s in self._constants]
        text = f"{self._head()} n ({', '.join(given)}) => ({', '.join(f'float[] {name}' for name in made)}) <{', '.join(stored)}> {{ {line} }}"
        proto = onnx.parser.parse_model(text)
        for value in list(proto.graph.value_info):
            proto.graph.input.append(value)
        for value in proto.graph.output:
            value.ClearField("type")
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            raise UnfitError from None
        return [tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in inferred.graph.output]

    def _head(self) -> str:
        return f'<ir_version: 10, opset_import: ["" : {self.opset}]>'

    def text(self) -> str:
        """The network; all that nothing reads is an output, and some that is read."""
        read = {source.strip() for line in self._nodes for source in line[line.rindex("(") + 1 : -1].split(",")}
        ends = [name for name in self.values if name not in read and name not in self.inputs]
        between = [name for name in self.values if name in read and name not in self.inputs]
        if between and self.maybe(1, 4):
            ends += self.draw(st.lists(st.sampled_from(between), min_size=1, max_size=2, unique=True))

        def typed(names: Sequence[str]) -> str:
            return ", ".join(f"float[{','.join(map(str, self.shapes[name]))}] {name}" for name in names)

        used = [text for name, text in self._constants.items() if name in read]
        inputs = [name for name in self.inputs if name in read] or self.inputs[:1]
        kind = self.some(*KINDS)
        lines = [
            self._head(),
            f"{kind} ({typed(inputs)}) => ({typed(ends)})",
            *([f"<{', '.join(used)}>"] if used else []),
            "{",
            *(f"  {line}" for line in self._nodes),
            "}",
        ]
        return "\n".join(lines)

    # --- what may follow ----------------------------------------------------------------------------------------

    def attempt(self, step: Callable[[str], str], x: str) -> str:
        """Takes a step from a value if it fits there; gives where it leads."""
        try:
            return step(x)
        except UnfitError:
            return x

    def images(self) -> list[str]:
        """Values of `(n, c, *spatial)`."""
        return [name for name in self.values if len(self.shapes[name]) == self.rank + 2]

    def convolution(self, x: str) -> str:
        """A convolution of any kind with what stands around it in networks."""
        if self.convolutions < 1:
            raise UnfitError
        if self.maybe(1, 6):
            x = self.attempt(self.pad, x)
        if self.maybe(1, 6):
            x = self.attempt(self.batch_norm, x)
        if self.maybe(1, 8):
            x = self.attempt(self.affine, x)
        kind = self.some("depthwise", "pointwise", "dense", "grouped", "multiplied", "transposed")
        y = self.transposed(x) if kind == "transposed" else self.plain(x, str(kind))
        self.convolutions -= 1
        for step, chances in ((self.batch_norm, 2), (self.affine, 1), (self.activation, 3), (self.residual, 2), (self.activation, 1)):
            if self.maybe(chances, 5):
                y = self.attempt(step, y)
        return y

    def plain(self, x: str, kind: str) -> str:
        """A Conv."""
        channels, spatial = self.shapes[x][1], self.shapes[x][2:]
        same = self.maybe(2, 3)  # keeps the shape, so that it can be added
        out = channels if same else int(self.some(*CHANNELS))
        group, window = 1, (1,) * self.rank
        if kind in ("depthwise", "multiplied"):
            group = channels
            out = channels if kind == "depthwise" else channels * int(self.some(2, 3))
        elif kind == "grouped":
            group = int(self.some(*[g for g in range(1, channels + 1) if channels % g == 0][::-1]))
            out = group * -(-out // group)
        if kind != "pointwise":
            window = tuple(int(self.some(3, 1, 2, 5, 7) if self.rank < 3 else self.some(3, 1, 2)) for _ in spatial)
        attributes = [f"group = {group}"] if group > 1 else []
        strides = (1,) * self.rank if same else tuple(int(self.some(1, 1, 2, 3)) for _ in spatial)
        dilations = (1,) * self.rank if kind == "pointwise" else tuple(int(self.some(1, 1, 1, 2, 3)) for _ in spatial)
        attributes += self.spelled("strides", strides) + self.spelled("dilations", dilations)
        if self.maybe():
            attributes.append(f"kernel_shape = [{','.join(map(str, window))}]")
        attributes += self.padding(x, window, dilations, same=same)
        sources = [x, self.constant("w", out, channels // group, *window)]
        if self.maybe():
            sources.append(self.constant("b", out))
        return self.node("Conv", *sources, attributes=", ".join(attributes))

    def transposed(self, x: str) -> str:
        """A ConvTranspose."""
        channels = self.shapes[x][1]
        group = int(self.some(1, channels, *[g for g in range(2, channels) if channels % g == 0]))
        out = int(self.some(1, 2)) if group > 1 else int(self.some(*CHANNELS))
        window = tuple(int(self.some(2, 1, 3, 4)) for _ in range(self.rank))
        strides = tuple(int(self.some(2, 1, 3)) for _ in range(self.rank))
        dilations = tuple(int(self.some(1, 1, 2)) for _ in range(self.rank))
        attributes = [f"group = {group}"] if group > 1 else []
        attributes += self.spelled("strides", strides) + self.spelled("dilations", dilations)
        mode = self.some("none", "pads", "output_padding", "SAME_UPPER", "SAME_LOWER")
        if mode in ("pads", "output_padding"):
            attributes.append(f"pads = [{','.join(str(self.some(0, 1)) for _ in range(2 * self.rank))}]")
        if mode == "output_padding":
            attributes.append(f"output_padding = [{','.join(str(self.draw(st.integers(0, stride - 1))) for stride in strides)}]")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            attributes.append(f'auto_pad = "{mode}"')
        sources = [x, self.constant("w", channels, out, *window)]
        if self.maybe():
            sources.append(self.constant("b", out * group))
        return self.node("ConvTranspose", *sources, attributes=", ".join(attributes))

    def spelled(self, name: str, values: Sequence[int]) -> list[str]:
        """An attribute, left out where it is the default, but not always."""
        if all(value == 1 for value in values) and not self.maybe(1, 4):
            return []
        return [f"{name} = [{','.join(map(str, values))}]"]

    def padding(self, x: str, window: Sequence[int], dilations: Sequence[int], *, same: bool) -> list[str]:
        """The attribute that says how a convolution's window is padded."""
        reach = [(extent - 1) * dilation for extent, dilation in zip(window, dilations, strict=True)]
        mode = self.some("pads", "SAME_UPPER", "SAME_LOWER") if same else self.some("none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            return [f'auto_pad = "{mode}"']
        begins, ends = [0] * self.rank, [0] * self.rank
        if same:
            begins = [self.draw(st.integers(0, extent)) if self.maybe(1, 3) else extent // 2 for extent in reach]
            ends = [extent - begin for extent, begin in zip(reach, begins, strict=True)]
        elif mode == "pads":
            begins, ends = ([int(self.some(1, 0, 2, 3)) for _ in reach] for _ in range(2))
        self.fit(x, reach, begins, ends)
        if mode == "pads":
            return [f"pads = [{','.join(map(str, (*begins, *ends)))}]"]
        return [] if mode == "none" else ['auto_pad = "VALID"']

    def fit(self, x: str, reach: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> None:
        """Checks what shape inference does not where strides are larger than 1: that a window is no larger than what it moves in."""
        if any(size + b + e <= r for size, r, b, e in zip(self.shapes[x][2:], reach, begins, ends, strict=True)):
            raise UnfitError

    def batch_norm(self, x: str) -> str:
        """A BatchNormalization; its variance may be tiny, half of its gammas are negative."""
        channels = self.shapes[x][1]
        constants = [self.constant(stem, channels) for stem in ("g", "h", "m", str(self.some("var", "var", "tiny")))]
        epsilon = self.some("", "epsilon = 0.001", "epsilon = 0.0000001")
        return self.node("BatchNormalization", x, *constants, attributes=str(epsilon))

    def affine(self, x: str) -> str:
        """An operation with a constant, scalar, by channels or by elements, on either side."""
        operator = str(self.some("Mul", "Add", "Sub", "Div"))
        channels, ones = self.shapes[x][1], (1,) * self.rank
        kind = self.some("channels", "scalar", "with batch", "elements", "row")
        if kind == "scalar":
            constant = self.number(float(self.some(2.0, 0.5, -1.5, 6.0)))
        else:
            stem = "var" if operator == "Div" else "c"
            shape = {"channels": (channels, *ones), "with batch": (1, channels, *ones), "elements": self.shapes[x][1:], "row": self.shapes[x][-1:]}
            constant = self.constant(stem, *shape[str(kind)])
        first = operator != "Div" and self.maybe(1, 3)
        return self.node(operator, *((constant, x) if first else (x, constant)))

    def activation(self, x: str) -> str:
        """An activation in one node or several."""
        known = [operator for operator in SINGLE if FIRST_OPSET.get(operator, 0) <= self.opset]
        new = [operator for operator in ("Mish", "Gelu") if FIRST_OPSET[operator] <= self.opset]
        kind = str(self.some(*known, *new, *SPELLED))
        if kind in SPELLED:
            return self.spelled_activation(x, kind)
        sources, attributes = [x], SINGLE.get(kind, "")
        if kind == "Clip":
            low, high = self.some((0, 6), (0, 1), (-1, 1), (-0.3, 0.7), (0, None), (None, 0.5), (1, 2))
            sources += ["" if low is None else self.scalar(low), *([] if high is None else [self.scalar(high)])]
        elif kind == "PRelu":
            sources.append(self.constant("c", self.shapes[x][1], *(1,) * (len(self.shapes[x]) - 2)))
        elif kind == "Gelu":
            attributes = str(self.some("", 'approximate = "tanh"'))
        elif kind == "HardSigmoid":
            attributes = str(self.some(attributes, "", "alpha = 0.5, beta = 0.3"))
        elif kind == "LeakyRelu":
            attributes = str(self.some(attributes, "", "alpha = 1.5", "alpha = -0.5"))
        elif kind == "Exp":
            sources = [self.node("Tanh", x)]
        return self.node(kind, *sources, attributes=attributes)

    def scalar(self, value: float) -> str:
        """A scalar of rank 0, as Clip demands."""
        name = self.name("f")
        self._constants[name] = f"float {name} = {{{float(value)!r}}}"
        self.shapes[name] = ()
        return name

    def spelled_activation(self, x: str, kind: str) -> str:
        """The nodes of an activation; operands in either order."""

        def both(operator: str, left: str, right: str) -> str:
            pair = (right, left) if self.maybe() else (left, right)
            return self.node(operator, *pair)

        def clip(y: str, low: float, high: float) -> str:
            return self.node("Clip", y, self.scalar(low), self.scalar(high))

        match kind:
            case "hard_swish":
                clipped = clip(both("Add", x, self.number(3)), 0, 6)
                if self.maybe():
                    return both("Mul", x, self.node("Div", clipped, self.number(6)))
                return self.node("Div", both("Mul", x, clipped), self.number(6))
            case "hard_swish_by_gate":
                return both("Mul", x, self.node("HardSigmoid", x, attributes="alpha = 0.16666667, beta = 0.5"))
            case "hard_sigmoid":
                return both("Mul", clip(both("Add", x, self.number(3)), 0, 6), self.number(1 / 6))
            case "silu":
                return both("Mul", x, self.node("Sigmoid", x))
            case "gelu":
                root = self.node("Div", x, self.number(2**0.5))
                gate = both("Add", self.node("Erf", root), self.number(1))
                return both("Mul", both("Mul", x, gate), self.number(0.5))
            case "mish":
                return both("Mul", x, self.node("Tanh", self.node("Softplus", x)))
            case "min_max":
                return both("Min", both("Max", x, self.number(0)), self.number(float(self.some(6.0, 1.0))))
            case "relu_min":
                return both("Min", self.node("Relu", x), self.number(6))
            case "leaky_max":
                return both("Max", x, both("Mul", x, self.number(0.1)))
            case "clip_twice":
                return clip(clip(x, -1, 3), 0, 6)
        return both("Mul", x, clip(both("Add", x, self.number(2)), 0, 5))

    def residual(self, x: str) -> str:
        """An addition of something else of the same shape, or that broadcasts to it."""
        alike = [name for name in self.values if self.shapes[name] == self.shapes[x] and name != x]
        if not alike:
            alike = [name for name in self.images() if name != x and self.broadcasts(self.shapes[name], self.shapes[x])]
        if not alike:
            if self.maybe(1, 3):
                alike = [self.add_input(self.shapes[x])]
            elif self.maybe():
                alike = [x]
            else:
                raise UnfitError
        other = str(self.some(*alike[::-1]))
        operator = str(self.some("Add", "Add", "Add", "Mul", "Sub", "Sum"))
        return self.node(operator, *((x, other) if self.maybe() else (other, x)))

    def broadcasts(self, small: Sequence[int], large: Sequence[int]) -> bool:
        """Whether a tensor fits another one's shape."""
        return all(a in (1, b) for a, b in zip(small, large, strict=True))

    def pad(self, x: str) -> str:
        """A Pad of spatial axes."""
        mode = str(self.some("constant", "constant", "constant", "reflect", "edge"))
        limits = [min(2, extent - 1) if mode == "reflect" else 2 for extent in self.shapes[x][2:]]
        begins, ends = ([self.draw(st.integers(0, limit)) for limit in limits] for _ in range(2))
        sources = [x, self.numbers(0, 0, *begins, 0, 0, *ends)]
        if mode == "constant" and self.maybe(1, 3):
            sources.append(self.scalar(float(self.some(0.0, 0.75))))
        return self.node("Pad", *sources, attributes="" if mode == "constant" else f'mode = "{mode}"')

    def concat(self, x: str) -> str:
        """A Concat over channels, or over another axis."""
        axis = int(self.some(1, 1, 1, 2, -1)) % len(self.shapes[x])

        def fits(name: str) -> bool:
            shape = self.shapes[name]
            return len(shape) == len(self.shapes[x]) and all(
                a == b for place, (a, b) in enumerate(zip(shape, self.shapes[x], strict=True)) if place != axis
            )

        others = [name for name in self.values if fits(name)]
        chosen = self.draw(st.lists(st.sampled_from(others[::-1]), min_size=1, max_size=2))
        return self.node("Concat", *([*chosen, x] if self.maybe() else [x, *chosen]), attributes=f"axis = {axis}")

    def split(self, x: str) -> str:
        """A Split over channels; both parts live on."""
        channels = self.shapes[x][1]
        if channels < 2:
            raise UnfitError
        first = self.draw(st.integers(1, channels - 1))
        made = self.nodes("Split", x, self.numbers(first, channels - first), attributes="axis = 1", outputs=2)
        left, right = made
        if self.maybe(2, 3):
            right = self.activation(right)
        return self.node("Concat", *((left, right) if self.maybe() else (right, left)), attributes="axis = 1") if self.maybe(2, 3) else right

    def shuffle(self, x: str) -> str:
        """A channel shuffle."""
        batch, channels, *spatial = self.shapes[x]
        groups = [g for g in range(2, channels) if channels % g == 0]
        if not groups:
            raise UnfitError
        group = int(self.some(*groups))
        apart = self.node("Reshape", x, self.numbers(batch, group, channels // group, *spatial))
        rest = ",".join(map(str, range(3, 3 + len(spatial))))
        turned = self.node("Transpose", apart, attributes=f"perm = [0,2,1,{rest}]")
        return self.node("Reshape", turned, self.numbers(batch, channels, *spatial))

    def excite(self, x: str) -> str:
        """Squeeze and excitation: two pointwise convolutions of the mean."""
        if self.convolutions < 2:
            raise UnfitError
        self.convolutions -= 2
        channels = self.shapes[x][1]
        inner, ones = int(self.some(3, 1, 8, 17)), (1,) * self.rank
        mean = self.mean(x, keep=True)
        reduced = self.node("Conv", mean, self.constant("w", inner, channels, *ones), self.constant("b", inner))
        active = self.activation(reduced)
        grown = self.node("Conv", active, self.constant("w", channels, inner, *ones), *([self.constant("b", channels)] if self.maybe() else []))
        gate = self.node("Sigmoid", grown) if self.maybe() else self.spelled_activation(grown, "hard_sigmoid")
        return self.node("Mul", *((gate, x) if self.maybe() else (x, gate)))

    def mean(self, x: str, *, keep: bool) -> str:
        """The mean of each channel."""
        if keep and self.maybe(2, 3):
            return self.node("GlobalAveragePool", x)
        return self.reduce("ReduceMean", x, range(2, 2 + self.rank), keep=keep)

    def reduce(self, operator: str, x: str, axes: Sequence[int], *, keep: bool) -> str:
        """A reduction, its axes where the operator set has them."""
        keepdims = f"keepdims = {int(keep)}"
        if self.opset >= 18:
            return self.node(operator, x, self.numbers(*axes), attributes=keepdims)
        return self.node(operator, x, attributes=f"axes = [{','.join(map(str, axes))}], {keepdims}")

    @staticmethod
    def ends_inside(size: int, window: int, stride: int) -> bool:
        """Whether the last window begins inside when their number is rounded up: where not, releases of ONNX differ."""
        return -(-(size - window) // stride) * stride < size

    def pool(self, x: str) -> str:
        """Pooling over windows."""
        operator = str(self.some("MaxPool", "AveragePool"))
        window = [int(self.some(2, 3, 1)) for _ in range(self.rank)]
        attributes = [f"kernel_shape = [{','.join(map(str, window))}]"]
        strides = [int(self.some(2, 1, 3)) for _ in window]
        attributes += self.spelled("strides", strides)
        mode = self.some("none", "pads", "SAME_UPPER", "SAME_LOWER", "ceil")
        pads = [self.draw(st.integers(0, extent - 1)) if mode == "pads" else 0 for extent in (*window, *window)]
        if mode not in ("SAME_UPPER", "SAME_LOWER"):
            self.fit(x, [extent - 1 for extent in window], pads[: self.rank], pads[self.rank :])
        if mode == "pads":
            attributes.append(f"pads = [{','.join(map(str, pads))}]")
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            attributes.append(f'auto_pad = "{mode}"')
        elif mode == "ceil" and all(self.ends_inside(*each) for each in zip(self.shapes[x][2:], window, strides, strict=True)):
            attributes.append("ceil_mode = 1")
        if operator == "AveragePool" and self.maybe(1, 3):
            attributes.append("count_include_pad = 1")
        return self.node(operator, x, attributes=", ".join(attributes))

    def resize(self, x: str) -> str:
        """A Resize of the spatial axes."""
        mode = str(self.some("nearest", "linear"))
        modes = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
        attributes = [f'mode = "{mode}"', f'coordinate_transformation_mode = "{self.some(*modes)}"']
        if mode == "nearest":
            attributes.append(f'nearest_mode = "{self.some("floor", "round_prefer_floor", "ceil")}"')
        if mode == "linear" and self.rank == 3:
            raise UnfitError
        if self.maybe():
            sizes = [extent + int(self.some(3, extent, 1, 0)) for extent in self.shapes[x][2:]]
            return self.node("Resize", x, "", "", self.numbers(*self.shapes[x][:2], *sizes), attributes=", ".join(attributes))
        scales = [float(self.some(2.0, 3.0, 1.0)) for _ in range(self.rank)]
        return self.node("Resize", x, "", self.numbers(1.0, 1.0, *scales), attributes=", ".join(attributes))

    def island(self, x: str) -> str:
        """Nodes between a Transpose to channels-last and one back."""
        last = [0, *range(2, self.rank + 2), 1]
        back = [0, self.rank + 1, *range(1, self.rank + 1)]
        to_last, to_first = (f"perm = [{','.join(map(str, perm))}]" for perm in (last, back))
        y = self.node("Transpose", x, attributes=to_last)
        for _ in range(self.draw(st.integers(0, 3))):
            match self.some("activation", "row", "scalar", "pad", "add", "gate", "normalize", "halves", "first", "concat"):
                case "activation":
                    kind = str(self.some("Relu", "Sigmoid", "hard_swish", "silu", "leaky_max"))
                    y = self.spelled_activation(y, kind) if kind in SPELLED else self.node(kind, y)
                case "row":
                    y = self.node(str(self.some("Add", "Mul")), y, self.constant("c", self.shapes[y][-1]))
                case "scalar":
                    y = self.node("Mul", self.number(1.5), y)
                case "pad":
                    y = self.node("Pad", y, self.numbers(*(0, *(1,) * self.rank, 0) * 2))
                case "add":
                    y = self.node("Add", y, y)
                case "gate":
                    squeezed = self.reduce(str(self.some("ReduceMean", "ReduceMax")), y, range(1, self.rank + 1), keep=True)
                    y = self.node("Mul", y, self.node("Sigmoid", squeezed))
                case "normalize":
                    y = self.node("Softmax", y, attributes="axis = -1")
                case "halves":
                    axis, size = self.rank + 1, self.shapes[y][-1]
                    cuts = (size // 2, size, axis), (0, size // 2 + 1, axis)
                    parts = [self.node("Slice", y, *map(self.numbers, cut)) for cut in cuts]
                    y = self.node("Concat", *parts, attributes="axis = -1")
                case "first":
                    y = self.node("Transpose", self.activation(self.node("Transpose", y, attributes=to_first)), attributes=to_last)
                case _:
                    y = self.node("Concat", y, y, attributes="axis = -1")
        return self.node("Transpose", y, attributes=to_first)

    def slice(self, x: str) -> str:
        """A Slice of a spatial axis or the channels."""
        axis = int(self.some(2, 1, -1)) % len(self.shapes[x])
        extent = self.shapes[x][axis]
        start, step = self.draw(st.integers(0, extent - 1)), int(self.some(1, 1, 2))
        end = self.draw(st.integers(start + 1, extent))
        return self.node("Slice", x, *(self.numbers(value) for value in (start, end, axis, step)))

    def passing(self, x: str) -> str:
        """What computes nothing."""
        if self.maybe():
            return self.node(str(self.some("Identity", "Dropout")), x)
        spread = self.node("Unsqueeze", x, self.numbers(0))
        return self.node("Squeeze", spread, self.numbers(0))

    def head(self, x: str) -> str:
        """Flatten and products of matrices."""
        y = self.mean(x, keep=False) if self.maybe() else self.node("Flatten", x)
        for _ in range(self.draw(st.integers(1, 2))):
            inner, outer = self.shapes[y][1], int(self.some(5, 1, 10, 17))
            if inner * outer > MOST_ELEMENTS:
                raise UnfitError
            kind = self.some("transposed", "plain", "product")
            if kind == "product":
                y = self.node("MatMul", y, self.constant("w", inner, outer))
                y = self.node("Add", y, self.constant("b", outer)) if self.maybe() else y
            else:
                sides, attributes = ((outer, inner), "transB = 1") if kind == "transposed" else ((inner, outer), "")
                sources = [y, self.constant("w", *sides), *([self.constant("b", outer)] if self.maybe(2, 3) else [])]
                y = self.node("Gemm", *sources, attributes=attributes)
            if self.maybe():
                y = self.activation(y)
        return self.node("Softmax", y, attributes="axis = 1") if self.maybe(1, 3) else y


@st.composite
def networks(draw: st.DrawFn, convolutions: int, steps: int) -> str:
    """A network as ONNX text; its constants without values are drawn by who reads it (`network`), its name is a kind of inputs."""
    made = Network(draw, convolutions)
    shape = [made.batch, draw(st.sampled_from(CHANNELS))]
    for _ in range(made.rank):
        shape.append(draw(st.sampled_from([size for size in SIZES[made.rank] if math.prod(shape) * size <= MOST_ELEMENTS])))
    made.add_input(shape)
    grow: tuple[Callable[[str], str], ...] = (
        made.convolution, made.convolution, made.convolution, made.convolution, made.activation, made.residual, made.batch_norm, made.affine,
        made.pool, made.concat, made.split, made.shuffle, made.excite, made.resize, made.island, made.pad, made.slice, made.passing,
    )  # fmt: skip
    for place in itertools.count():
        images = made.images()
        chosen = images[-1] if place == 0 or draw(st.integers(0, 3)) < 3 else draw(st.sampled_from(images))
        made.attempt(draw(st.sampled_from(grow[: 4 if place == 0 else None])), chosen)
        if place + 1 >= steps or not draw(st.integers(0, 4)):
            break
    if draw(st.integers(0, 4)) == 4:
        made.attempt(made.head, made.images()[-1])
    if len(made.values) == len(made.inputs):
        made.node("Relu", made.values[0])
    return made.text()


@pytest.fixture(scope="session")
def random_networks() -> Callable[[int, int], st.SearchStrategy[str]]:
    """Gives the strategy `random_networks(convolutions, steps)`."""
    return networks
