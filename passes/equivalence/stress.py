"""Inputs that hurt, drawn for a few operators at their own inputs.

What reaches a kernel inside of a network is tame: a clip at 6 that no sum comes near is as good as none. So a kernel is fed
what is drawn for it as well:

    knees      normal numbers, scaled so that what the operators in front of a bend compute lies on both sides of it, each pixel
               by its own factor within a few octaves
    impulses   about one number in each sum, among them corners: of what is computed the bound is then a few ulp. Most are powers
               of two that reach the bends; the rest is large, or below the normal range
    nonfinite  as `knees`, with NaN and infinities at single places; with NaN alone where a gate such as that of SiLU may make
               0 times infinity, which one kernel computes and another takes to the limit
    levels     as `knees`, each channel around a mean of its own, each draw at another scale: what is pooled over all pixels
               still differs from draw to draw, so that several of them reach both sides of bends that are applied to few
               numbers. For parts of graphs

Parts are fed `knees` at other scales as well, at which what an epsilon is added to, or sets a limit to, is of its size.

Inputs that are no data are left as they are: whole numbers, booleans, and what says where things are or what limits them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TypeAlias

import numpy as np

from sepwise.passes.equivalence.graph import Array, Graph, Operation
from sepwise.passes.equivalence.operators import clip_limits, hard_sigmoid_parameters, normalized_axes, reduced_axes
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.tolerances import STRUCTURE

__all__ = ["STRESSES", "Stress"]

STRESSES = ("knees", "impulses", "nonfinite")
"""What is drawn for kernels."""

SMOOTH_BEND = 4.0  # where sigmoid, tanh, erf and what is made of them have come close to their asymptotes
SPREAD_OCTAVES = 2
FEWEST_POSITIONS = 4  # fewer positions would all be off to one side where each has its own factor
FEWEST_ELEMENTS = 16  # of fewer in a channel there is no deviation to speak of: then all channels are taken for one
REACHING_CHANNELS = 0.9  # share of the channels that have to reach a bend; a few may be all but constant
LEVEL_OCTAVES = -5, 1  # a scale that reaches one bend saturates another
LEVEL_SPREAD = 0, 2  # octaves: up to so heavy a tail that a few channels decide the sign of a sum over all
ROUNDS = 2  # what is behind a bend follows a change of scale only so far, so it is looked at again
SCALES = (2.0**-20, 2.0**30)
SMALL = 2.0**-6  # constants up to here that something is added to, or kept above, are there for when it vanishes
SLOWEST = 0.5  # power of the scale: a root vanishes as slowly
FAINTER = 2.0**-8  # scale by which it is seen how something vanishes: as the numbers, or as their squares
SHARES = (0.7, 0.85)  # up to here impulses of a power of two, up to here large ones, then those below the normal range
POSITIONS_PER_PLACE = 32
MOST_PLACES = 6

LIMITS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "Dropout": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "Mod": (1,),
    "PRelu": (1,),
}
"""Inputs that the running error analysis takes for constants."""

Tensors: TypeAlias = Mapping[str, Array]


class Stress:
    """Draws inputs for a part of a network.

    Attributes:
        drawn: names of the inputs that are drawn.
        scale: standard deviation of what reaches the bends, 1 where nothing bends.
        few: whether a bend is applied to so few numbers of a channel that one draw may leave all of them on one side.
    """

    def __init__(self, part: Graph, tensors: Tensors, types: Mapping[str, np.dtype], seed: int) -> None:
        """Finds the scale, for which the oracle runs the part twice.

        Args:
            part: what is to be fed, for example what one kernel covers.
            tensors: an example of every input; inputs that are no data keep it.
            types: float16 or float32 for each floating-point input: what is drawn is one of its numbers.
            seed: the same seed draws the same tensors.

        Raises:
            InputError: if the tensors do not fit.
            UnsupportedError: if an operator is not known.
        """
        fixed = {name for op in part.operations for name in _settings(op)}
        self.drawn = tuple(name for name, array in tensors.items() if array.dtype.kind == "f" and name not in fixed)
        self.scale = 1.0
        self.few = False
        self._part = part
        self._tensors = tensors
        self._types = types
        self._seed = seed
        if self.drawn and any(True for _ in self._bending()):
            self.scale = self._find_scale()

    def draw(self, kind: str, scale: float | None = None) -> dict[str, Array]:
        """Draws one tensor for every input.

        Args:
            kind: one of `STRESSES`, or `levels`.
            scale: in place of that of the bends, as one of `faint_scales`.

        Returns:
            Tensors by input name, of the shapes of the examples.
        """
        rng = np.random.default_rng([self._seed, *kind.encode()])
        if scale is not None:
            factor = scale / self.scale
            return self._with(lambda name, array: self._rounded(name, factor * DRAWS[kind](self, rng, name, array.shape)))
        return self._with(lambda name, array: self._rounded(name, DRAWS[kind](self, rng, name, array.shape)))

    def _with(self, draw: Callable[[str, Array], Array]) -> dict[str, Array]:
        return {name: draw(name, array) if name in self.drawn else array for name, array in self._tensors.items()}

    def _rounded(self, name: str, array: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(self._types[name])

    def _bending(self) -> Iterator[tuple[str, Sequence[float]]]:
        """Yields the values that piecewise linear and saturating functions are applied to, and where those bend."""
        for op in self._part.operations:
            known = {**self._part.constants, **{name: self._tensors[name] for name in self._tensors if name not in self.drawn}}
            bends = _bends(op, known)
            if bends:
                yield next((name for name in op.inputs if name not in known), op.inputs[0]), bends

    def _find_scale(self) -> float:
        """Scales what is drawn until each bend lies within one standard deviation of what most channels compute.

        Not so close that all else is far beyond the outermost, but a single bend has no other to be set against.
        """
        rng = np.random.default_rng(self._seed)
        normal = {name: _spread(rng, self._tensors[name].shape) for name in self.drawn}
        bending = list(self._bending())
        oracle = Oracle(self._part)
        scale = 1.0
        for _ in range(ROUNDS):
            feeds = {name: scale * normal[name] if name in normal else array for name, array in self._tensors.items()}
            values = {**feeds, **oracle.run(feeds, keep={name for name, _ in bending} - set(feeds))}
            away = [(_distance(values[name], bends), bends) for name, bends in bending]
            needed = max((distance for distance, bends in away if len(bends) > 1 or distance > 1), default=0.0)
            self.few = any(np.prod(_positions(values[name].shape)) < FEWEST_POSITIONS for name, _ in bending)
            if needed:
                scale = float(np.clip(scale * needed, *SCALES))
        return scale

    def _vanishing(self) -> Iterator[tuple[str, float, Callable[[Array], Array]]]:
        """Yields what epsilons keep from 0: the value that it is computed from, the epsilon, how it is computed."""
        known = {**self._part.constants, **{name: self._tensors[name] for name in self._tensors if name not in self.drawn}}
        for op in self._part.operations:
            if op.operator in ("InstanceNormalization", "LayerNormalization", "RMSNormalization"):
                yield op.inputs[0], op.number("epsilon", 1e-5), partial(_squares, op)
            elif op.operator in ("Add", "Clip", "Max"):
                small = [known[name] for name in op.inputs if name in known and known[name].size == 1]
                computed = [name for name in op.inputs if name and name not in known]
                if small and computed and 0 < small[0].item() < SMALL:
                    yield computed[0], small[0].item(), np.abs

    def faint_scales(self) -> tuple[float, ...]:
        """Finds where each epsilon matters that what is drawn at `scale` hides, for which the oracle runs the part twice.

        How a value vanishes as everything is scaled, as the numbers or as their squares, is seen from two scales; one that
        something else is added to does not.

        Returns:
            Scales at which values are of the size of their epsilons, the smallest first.
        """
        vanishing = list(self._vanishing()) if self.drawn else []
        if not vanishing:
            return ()
        rng = np.random.default_rng(self._seed)
        normal = {name: _spread(rng, self._tensors[name].shape) for name in self.drawn}
        oracle = Oracle(self._part)
        sizes = []
        for scale in (self.scale, self.scale * FAINTER):
            feeds = {name: scale * normal[name] if name in normal else array for name, array in self._tensors.items()}
            values = {**feeds, **oracle.run(feeds, keep={name for name, _, _ in vanishing} - set(feeds))}
            with np.errstate(all="ignore"):
                sizes.append([float(np.median(size(values[name]))) if values[name].size else 0.0 for name, _, size in vanishing])
        found = set()
        for (_, epsilon, _), large, small in zip(vanishing, *sizes, strict=True):
            degree = np.log(large / small) / -np.log(FAINTER) if large > epsilon and small > 0 else 0.0
            if degree >= SLOWEST:
                found.add(float(self.scale * (epsilon / large) ** (1 / degree)))
        return tuple(sorted(found))

    def _terms(self, name: str) -> int:
        """How many products of elements of an input are summed, the most over what reads it."""
        return max((self._sum_length(op) for op in self._part.operations if name in op.inputs), default=1)

    def _sum_length(self, op: Operation) -> int:
        shapes = [self._shape(name) for name in op.inputs[:2]]
        if op.operator in ("Conv", "ConvTranspose") and shapes[1] is not None:
            return int(np.prod(shapes[1][1:] if op.operator == "Conv" else (shapes[1][0], *shapes[1][2:])))
        if op.operator in ("Gemm", "MatMul") and shapes[0] is not None:
            return shapes[0][0 if op.integer("transA", 0) else -1]
        if op.operator == "GlobalAveragePool" and shapes[0] is not None:
            return int(np.prod(shapes[0][2:]))
        if op.operator == "AveragePool":
            return int(np.prod(op.integers("kernel_shape") or []))
        if op.operator in ("ReduceMean", "ReduceSum") and shapes[0] is not None:
            given = self._part.constants.get(op.inputs[1]) if len(op.inputs) > 1 else None
            axes = reduced_axes(op, np.empty(shapes[0]), given)
            return 1 if axes is None else int(np.prod([shapes[0][axis] for axis in axes]))
        return 1

    def _gates(self, op: Operation) -> bool:
        """Tells whether an operator multiplies or divides something computed by something else that is."""
        computed = [name for name in op.inputs if name not in self._part.constants]
        return op.operator in GATED or (op.operator in ("Mul", "Div") and len(computed) > 1)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        array = self._part.constants.get(name, self._tensors.get(name))
        return None if array is None else array.shape


def _settings(op: Operation) -> Iterator[str]:
    """Yields the inputs of an operator that are no data."""
    for places in (STRUCTURE.get(op.operator, ()), LIMITS.get(op.operator, ())):
        yield from (op.inputs[place] for place in places if place < len(op.inputs))


GATED = frozenset(("Gelu", "HardSwish", "Mish", "Swish"))
ONE_BEND = frozenset(("Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu"))
LIMITING = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"))
SATURATING = frozenset(("Erf", "Gelu", "Mish", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"))


def _bends(op: Operation, known: Tensors) -> list[float]:
    """Lists where the slope of a function changes."""
    if op.operator in ONE_BEND:
        return [0.0]
    if op.operator in SATURATING:
        return [-SMOOTH_BEND, SMOOTH_BEND]
    if op.operator == "HardSwish":
        return [-3.0, 3.0]
    if op.operator == "HardSigmoid":
        alpha, beta = hard_sigmoid_parameters(op)
        return [-beta / alpha, (1 - beta) / alpha] if alpha else []
    if op.operator == "ThresholdedRelu":
        return [op.number("alpha", 1.0)]
    if op.operator == "Clip" and all(name in known for name in op.inputs[1:] if name):
        limits = clip_limits(op, *(known[name] if name else None for name in op.inputs[1:]))
        return [limit for limit in limits if limit is not None and np.isfinite(limit)]
    if op.operator in LIMITING:
        constants = [known[name] for name in op.inputs if name in known and known[name].size]
        return [float(edge) for constant in constants for edge in {constant.min(), constant.max()} if np.isfinite(edge)]
    return []


def _squares(op: Operation, x: Array) -> Array:
    """What a normalisation adds its epsilon to."""
    axes = normalized_axes(op, x)
    squares: Array = (x * x if op.operator == "RMSNormalization" else (x - x.mean(axis=axes, keepdims=True)) ** 2).mean(axis=axes)
    return squares


def _distance(value: Array, bends: Sequence[float]) -> float:
    """How many standard deviations of its channel most channels' means are away from the farthest bend."""
    if not value.size:
        return 0.0
    channels = np.moveaxis(value, 1, 0) if value.ndim > 2 else value
    channels = channels.reshape(len(channels), -1) if channels.ndim > 1 else channels.reshape(1, -1)
    if channels.shape[1] < FEWEST_ELEMENTS:
        channels = channels.reshape(1, -1)
    channels = channels[np.isfinite(channels).all(axis=1)]
    mean, deviation = channels.mean(axis=1), channels.std(axis=1)
    varies = deviation > 0
    if not varies.any():
        return 0.0
    away = np.max([np.abs(bend - mean[varies]) for bend in bends], axis=0) / deviation[varies]
    return float(np.quantile(away, REACHING_CHANNELS))


def _positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axis of channels: what a convolution keeps apart."""
    return tuple(1 if axis == 1 else extent for axis, extent in enumerate(shape))


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal numbers, each position scaled by its own power of two."""
    normal = rng.standard_normal(shape)
    positions = _positions(shape)
    if np.prod(positions) < FEWEST_POSITIONS:
        return normal
    return normal * np.exp2(rng.uniform(-SPREAD_OCTAVES, SPREAD_OCTAVES, positions))


def _knees(stress: Stress, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    return stress.scale * _spread(rng, shape)


def _levels(stress: Stress, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    channels = tuple(extent if axis == 1 else 1 for axis, extent in enumerate(shape))
    scale = stress.scale * np.exp2(rng.uniform(*LEVEL_OCTAVES))
    heavy = np.exp2(rng.uniform(*LEVEL_SPREAD) * rng.standard_normal(channels))
    drawn: Array = scale * (_spread(rng, shape) + rng.standard_normal(channels) * heavy)
    return drawn


def _impulses(stress: Stress, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    terms = stress._terms(name)
    there = rng.random(shape) < 1 / terms
    if there.size and len(shape) > 2:
        for corner in product(*((0, extent - 1) for extent in shape[2:])):
            there[(int(rng.integers(shape[0])), int(rng.integers(shape[1])), *corner)] = True
    limits = np.finfo(stress._types[name])
    usual = np.exp2(np.rint(np.log2(stress.scale * np.sqrt(terms))) + rng.integers(-1, 2, shape))
    large = np.full(shape, 2.0 ** (limits.maxexp // 3))
    small = float(limits.smallest_subnormal) * rng.integers(1, 1 << limits.nmant // 2, shape)
    draw = rng.random(shape)
    size = np.where(draw < SHARES[0], usual, np.where(draw < SHARES[1], large, small))
    return np.where(there, np.copysign(size, rng.standard_normal(shape)), 0.0)


def _nonfinite(stress: Stress, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    x = _knees(stress, rng, name, shape)
    if x.size:
        positions = int(np.prod(_positions(shape)))
        places = rng.choice(x.size, min(max(positions // POSITIONS_PER_PLACE, 1), MOST_PLACES, x.size), replace=False)
        gated = any(stress._gates(op) for op in stress._part.operations)
        x.reshape(-1)[places] = np.resize([np.nan] if gated else [np.nan, np.inf, -np.inf], len(places))
    return x


DRAWS: Mapping[str, Callable[[Stress, np.random.Generator, str, tuple[int, ...]], Array]] = {
    "knees": _knees,
    "impulses": _impulses,
    "nonfinite": _nonfinite,
    "levels": _levels,
}
