"""Tolerances by seeded experiment in float64: how far rounding may move the outputs of a model.

Every constant and every result rounds in the format in which the model stores it (`formats`), u is the unit roundoff of that.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from onnx import AttributeProto, defs

from sepwise.passes.equivalence.beginnings import Beginnings
from sepwise.passes.equivalence.formats import BINARY32, Format
from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import evaluate
from sepwise.passes.equivalence.oracle import Oracle, as_graph
from sepwise.passes.equivalence.rounding import (
    CASTS,
    SELECTS,
    evaluate_rounded,
    may_overflow,
    moves,
    noise_scale,
    repeats,
)
from sepwise.passes.equivalence.winograd import Winograd

__all__ = ["constant_rounding_sigma", "constant_rounding_sigmas", "execution_sigma", "structural_values"]

SEEDS = 6

# Inputs that say what shape things have or where they are, by operator; the rest are data.
STRUCTURE: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "If": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Pow": (1,),  # a square of a negative number stops existing where the exponent is not quite 2
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}

# Operators whose float attributes say where things are.
PLACING = frozenset({"AffineGrid", "GridSample", "MaxRoiPool", "Resize", "RoiAlign", "Upsample"})

# Operators that are defined with a constant that no file holds: one that scales the operand (1/6 of HardSwish, 1/sqrt(2) and
# sqrt(2/pi) of Gelu), and one that scales the result (1/6 behind a clip, 1/2 of Gelu, 1/k of means).
SCALED_OPERAND = frozenset({"Gelu", "HardSwish"})
SCALED_RESULT = SCALED_OPERAND | {"AveragePool", "GlobalAveragePool", "HardSigmoid", "Mean", "ReduceMean"}

Step = Callable[[Operation, list[Array | None]], tuple[Array, ...]]


def structural_values(graph: Graph) -> set[str]:
    """Lists the values that decide shapes, scales and indices without looking at the inputs' elements.

    Such values are computed exactly by any runtime (they are small whole numbers and ratios of them), and rounding one
    would change the shape of the network rather than the numbers in it. They are never perturbed.
    """
    from_data = {port.name for port in graph.inputs}
    for op in graph.operations:
        if op.operator not in {"Shape", "Size"} and any(name in from_data for name in op.inputs):
            from_data.update(op.outputs)
    found: set[str] = set()
    for op in reversed(graph.operations):
        if op.operator in {"Shape", "Size"}:
            continue
        places = set(range(len(op.inputs))) if found.intersection(op.outputs) else set(STRUCTURE.get(op.operator, ()))
        if op.operator.startswith("Reduce"):
            places.add(1)
        found.update({op.inputs[place] for place in places if place < len(op.inputs)} - from_data)
    return found - {""}


def constant_rounding_sigma(original: "Model | Oracle", inputs: Mapping[str, Array], seeds: int = SEEDS) -> dict[str, Array]:
    """Measures how far rounding its constants moves the outputs of a model (sigma_c).

    The argument: computed in float64, a model and a right rewrite of it differ only because the rewrite stores other
    constants, each rounded to its format. A folded constant is made by a few operations, so it carries a few roundings
    of relative size u / sqrt(3) and, made in the same format, as many intermediate ones: 2u N(0, 1) per constant covers both,
    and no more. Below the normal range they are as large as at its end. The original is run with every floating-point
    constant multiplied by 1 + 2u N(0, 1), each use of one that several operations read by a draw of its own, as a rewrite may
    fold one use and not the other. An attribute that is data, stated or by default, is a constant as well, 0 and 1 excepted,
    which nothing has to multiply by. So is one in the definition of an operator, as a rewrite that spells the operator out
    stores it: HardSwish and Gelu are g(c x) times c' x, a mean is a sum times 1/k. Such a literal is rounded once, by at most u,
    so one factor 1 +- u on the operand and one on the result of a call are what it amounts to.
    What follows from constants and shapes alone, as a root of a number of channels, is a constant too, which a rewrite may store
    as its format has it: each such result is drawn as one where its format does not have it exactly, and so is the divisor of
    what is no constant where it does not have the inverse.
    sigma_c is the root mean square deviation over the seeds, element by element. A right rewrite has RMS(e) <= RMS(sigma_c); a
    wrong one is off by its own mistake, which has nothing to do with u and stands out.

    Args:
        original: the model as it came in.
        inputs: tensors by input name.
        seeds: number of runs.

    Returns:
        sigma_c of each output; for integer outputs it tells where rounding decides the value. Infinite where rounding decides
        the shape.
    """
    (sigma,) = constant_rounding_sigmas(original, [inputs], seeds)
    return sigma


def constant_rounding_sigmas(
    original: "Model | Oracle", inputs: Sequence[Mapping[str, Array]], seeds: int = SEEDS
) -> list[dict[str, Array]]:
    """Measures `constant_rounding_sigma` on several input sets, with the same constants drawn for all.

    Args:
        original: the model as it came in.
        inputs: sets of tensors by input name.
        seeds: number of runs on each.

    Returns:
        sigma_c of each output on each input set.
    """
    graph = as_graph(original)
    fixed = structural_values(graph)
    uses = Counter(_uses(graph))
    shared = {name for name in graph.constants if uses[name] > 1 and graph.constants[name].dtype.kind == "f"} - fixed
    folding = dict(_folding(graph))
    unheld: dict[int, Array] = {}  # by operation: where what it stores, were it folded, is no number of its format

    def measure(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
        outputs = evaluate(op, operands)
        if id(op) in folding and outputs[0].dtype.kind == "f" and not fixed.intersection(op.outputs):
            divisor = operands[1] if folding[id(op)] else None
            unheld[id(op)] = op.format.misses(outputs[0] if divisor is None else 1 / divisor) > 0
        return outputs

    def perturbed(seed: int) -> tuple[Callable[[str, Array, Format], Array], Step]:
        rng, further = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        drawn: dict[str, Array] = {}
        drawn_uses: dict[tuple[int, int], Array] = {}
        drawn_calls: dict[int, tuple[Operation, float, float]] = {}  # by identity: branches may use the same names
        drawn_folds: dict[int, Array] = {}

        def fold(op: Operation, array: Array) -> Array:
            if id(op) not in drawn_folds or drawn_folds[id(op)].shape != array.shape:
                drawn_folds[id(op)] = np.where(unheld[id(op)], _rounded(further, array, op.format), array)
            return drawn_folds[id(op)]

        def constant(name: str, array: Array, stored: Format) -> Array:
            if array.dtype.kind != "f" or name in fixed or name in shared:
                return array
            if name not in drawn:
                drawn[name] = _rounded(rng, array, stored)
            return drawn[name]

        def step(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
            if fixed.intersection(op.outputs):
                return evaluate(op, operands)
            for place, name in enumerate(op.inputs):
                if name in shared:
                    use = id(op), place
                    if use not in drawn_uses:
                        drawn_uses[use] = _rounded(further, graph.constants[name], graph.format_of(name))
                    operands[place] = drawn_uses[use]
            if id(op) not in drawn_calls:
                drawn_calls[id(op)] = _rounded_call(further, op)
            call, before, after = drawn_calls[id(op)]
            if before != 1 and operands[0] is not None:
                operands[0] = operands[0] * before
            divides = folding.get(id(op), False)
            if divides and id(op) in unheld and operands[1] is not None:
                operands[1] = fold(op, operands[1])
            first, *others = evaluate(call, operands)
            first = first * after if after != 1 and first.dtype.kind == "f" else first
            return (fold(op, first) if id(op) in unheld and not divides else first, *others)

        return constant, step

    sets = [read_inputs(graph, feeds, stored=False) for feeds in inputs]
    exact = [_run(graph, feeds, lambda _, array, __: array, measure) for feeds in sets]
    squares = [_zeros(outputs) for outputs in exact]
    for seed in range(seeds):
        constant, step = perturbed(seed)
        for feeds, outputs, total in zip(sets, exact, squares, strict=True):
            _add_squares(total, outputs, _run(graph, feeds, constant, step))
    return [{name: np.sqrt(total / seeds) for name, total in totals.items()} for totals in squares]


def _uses(graph: Graph) -> Iterator[str]:
    """Yields every value as often as operations read it, those in subgraphs too."""
    for op in graph.operations:
        yield from op.inputs
        for subgraph in op.subgraphs():
            yield from _uses(subgraph)


def _folding(graph: Graph, around: Mapping[str, bool] | None = None) -> Iterator[tuple[int, bool]]:
    """Yields the identities of operations that a rewrite may fold, those in subgraphs too.

    Args:
        graph: the graph.
        around: names outside of it that follow from constants and shapes alone, and whether something computes them.

    Yields:
        Those that compute from constants and shapes alone, and with True those that divide something else by what is so computed.
    """
    known = {"": False, **(around or {}), **dict.fromkeys(graph.constants, False)}
    for op in graph.operations:
        branches = list(op.subgraphs())
        for branch in branches:
            yield from _folding(branch, known)
        if op.operator in {"Shape", "Size"} or (known.keys() >= set(op.inputs) and not branches):
            known.update(dict.fromkeys(op.outputs, True))
            if not moves(op) and op.operator not in SELECTS - CASTS - {"Range"}:
                yield id(op), False
        elif op.operator == "Div" and known.get(op.inputs[1], False):
            yield id(op), True


def _rounded_call(rng: np.random.Generator, op: Operation) -> tuple[Operation, float, float]:
    """Rounds the constants of a call itself at random.

    Returns:
        The call with its attributes rounded; factors for its first operand and its first result, 1 where there is no constant.
    """
    unit = 2 * op.format.unit
    numbers = _numbers(op.operator, op.version) | {k: v for k, v in op.attributes.items() if isinstance(v, float)}
    changed = {
        name: value * (1 + unit * float(rng.standard_normal()))
        for name, value in numbers.items()
        if op.operator not in PLACING and value not in {0.0, 1.0} and abs(value) < BINARY32.largest
    }
    call = replace(op, attributes={**op.attributes, **changed}) if changed else op
    before, after = (
        1 + op.format.unit * float(rng.choice((-1, 1))) if op.operator in scaled else 1.0
        for scaled in (SCALED_OPERAND, SCALED_RESULT)
    )
    return call, before, after


@cache
def _numbers(operator: str, version: int) -> dict[str, float]:
    """Lists the float attributes that an operator has by default, as stored."""
    try:
        attributes = defs.get_schema(operator, version).attributes
    except defs.SchemaError:  # of another domain, or newer than the opset
        return {}
    defaults = {name: attribute.default_value for name, attribute in attributes.items()}
    return {name: float(value.f) for name, value in defaults.items() if value.type == AttributeProto.FLOAT}


def _rounded(rng: np.random.Generator, array: Array, stored: Format) -> Array:
    """Rounds a constant at random: array * (1 + 2u N(0, 1)), or array + 2u normal N(0, 1) below the normal range; 0 stays."""
    noise = rng.standard_normal(array.shape, dtype=np.float32).astype(np.float64)
    noise *= 2 * stored.unit
    subnormal = (np.abs(array) < stored.normal) & (array != 0)
    absolute = array + stored.normal * noise if subnormal.any() else array
    noise += 1
    noise *= array
    return np.where(subnormal, absolute, noise)


def execution_sigma(
    model: "Model | Oracle",
    inputs: Mapping[str, Array],
    seeds: int = SEEDS,
    *,
    arithmetic: Format | None = None,
    flush: bool = False,
    winograd: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Measures how far floating-point arithmetic is expected to move the outputs of a model (sigma_x).

    The argument: an execution rounds after every operation, in an order of its own, at worst in the format of the
    result throughout. The model is run in float64 with the result of every floating-point node perturbed by what such rounding
    amounts to: sums (Conv, Gemm, MatMul, Reduce, pools, norms) by u (sqrt(k) sqrt(sum terms^2 + y^2 / 9) + |y|) N(0, 1), all
    others by their ulps u |y| N(0, 1) (`rounding.noise_scale`); the weights of a Resize, which an execution computes, are
    perturbed themselves (`rounding.evaluate_rounded`). sigma_x is the root mean square deviation over the seeds.
    Runtimes that sum in blocks, with FMA, or fuse nodes, do better than that, so RMS(e) <= RMS(sigma_x) holds with a margin;
    with sum |terms| in place of the root of squares the tolerance would be tens of times wider and hide faint mistakes.
    What is added to a sum of products, a bias or the shift of a norm, an execution may begin it with, and then it is part of all
    partial sums (`beginnings`).
    Where a value repeats, as on an image of one colour, it was computed from the same numbers and is rounded alike, so that
    a mean over it averages nothing out: equal elements of a result are perturbed alike.
    The runs of a model in binary64 round by themselves, as the oracle's own result does, which is then among what is measured.
    Where a result, or the terms of a sum together, exceed the largest number of the format, an execution may overflow, and
    nothing is known of what depends on it.

    Args:
        model: the model as it came in.
        inputs: tensors by input name, rounded to the formats of the inputs first, as an execution is fed.
        seeds: number of runs.
        arithmetic: format in which all operations round; each in that of its result where None.
        flush: whether arithmetic takes and gives 0 for numbers below the normal range of binary32, which makes every result
            one off by up to the smallest normal number.
        winograd: m of the convolutions, by the names of their outputs, that are computed as F(m x m, 3 x 3) and round so.

    Returns:
        sigma_x of each output, NaN where an execution may overflow; for integer outputs it tells where rounding decides the
        value. Infinite where rounding decides the shape.

    Raises:
        UnsupportedError: if an operator's rounding is not known.
    """
    graph = as_graph(model)
    fixed = structural_values(graph)
    feeds = read_inputs(graph, inputs, stored=True)
    scales: dict[tuple[str, ...], Array] = {}
    open_ended: dict[tuple[str, ...], Array] = {}
    repeated: dict[tuple[str, ...], Array] = {}
    beginnings = Beginnings(graph)

    def measure(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
        outputs = evaluate(op, operands)
        if not fixed.intersection(op.outputs):
            outputs_of_tile = winograd.get(op.outputs[0]) if winograd and op.operator == "Conv" else None
            algorithm = Winograd.of(outputs_of_tile) if outputs_of_tile else None
            scale = noise_scale(op, operands, outputs, arithmetic or op.format, algorithm)
            if scale is not None:
                scale = scale + (arithmetic or op.format).unit * _beginning_noise(beginnings, op, operands)
            beyond = may_overflow(op, operands, outputs[0], scale, arithmetic or op.format)
            if beyond.any():
                open_ended[op.outputs] = beyond
            if scale is not None:
                amount = np.nan_to_num(scale + BINARY32.normal * flush, posinf=0.0).astype(np.float32)
                scales[op.outputs] = np.broadcast_to(amount, outputs[0].shape)
                if repeats(outputs[0][scales[op.outputs] > 0]):
                    repeated[op.outputs] = np.unique(outputs[0], return_inverse=True)[1].reshape(outputs[0].shape)
        return outputs

    def perturbed(rng: np.random.Generator) -> Callable[[Operation, list[Array | None]], tuple[Array, ...]]:
        def step(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
            outputs = evaluate_rounded(op, operands, rng)
            scale = scales.get(op.outputs)
            if scale is None or scale.shape != outputs[0].shape:  # another shape: no output that depends on it is judged
                return outputs
            first = outputs[0]
            alike = repeated.get(op.outputs)
            if alike is None:
                noise = rng.standard_normal(first.shape, dtype=np.float32)
            else:
                noise = rng.standard_normal(int(alike.max()) + 1, dtype=np.float32)[alike]
            noise *= scale
            return (first + noise, *outputs[1:])

        return step

    exact = _run(graph, feeds, lambda _, array, __: array, measure)
    total = _zeros(exact)
    for seed in range(seeds):
        _add_squares(total, exact, _run(graph, feeds, lambda _, array, __: array, perturbed(np.random.default_rng(seed))))
    sigma = {name: np.sqrt(squares / seeds) for name, squares in total.items()}
    if open_ended:
        unknown = _run(graph, feeds, lambda _, array, __: array, _with_unknown(open_ended))
        for name, value in unknown.items():
            same = value.shape == exact[name].shape and (value == exact[name]) | ~np.isfinite(exact[name])
            sigma[name][...] = np.where(same, sigma[name], np.nan)
    return sigma


def _beginning_noise(beginnings: Beginnings, op: Operation, operands: Sequence[Array | None]) -> Array | float:
    """What beginning with a constant b adds to the noise of an operation, in units of u.

    Each of k partial sums is rounded with a deviation of u b / sqrt 3 at most. Their noise, u sqrt(k / 3) b, counts by a third
    more, as the root mean square of few errors may be that much larger.
    """
    begun = beginnings.find(op, operands)
    return 0.0 if begun is None else 4 / 3 * np.sqrt(beginnings.products[begun[0]] / 3) * begun[1]


def _with_unknown(places: Mapping[tuple[str, ...], Array]) -> Callable[[Operation, list[Array | None]], tuple[Array, ...]]:
    """Evaluates operations with NaN where nothing is known of a result."""

    def step(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
        first, *others = evaluate(op, operands)
        unknown = places.get(op.outputs)
        return (first if unknown is None or unknown.shape != first.shape else np.where(unknown, np.nan, first), *others)

    return step


def _run(
    graph: Graph,
    feeds: Mapping[str, Array],
    constant: Callable[[str, Array, Format], Array],
    step: Callable[[Operation, list[Array | None]], tuple[Array, ...]],
) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return interpret(graph, feeds, constant=constant, step=step, truth=lambda value: bool(value.all()))


def _zeros(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.zeros(value.shape) for name, value in outputs.items()}


def _add_squares(total: Mapping[str, Array], exact: Mapping[str, Array], run: Mapping[str, Array]) -> None:
    """Adds the squared deviations of a run, in place."""
    with np.errstate(all="ignore"):
        for name, value in run.items():
            if value.shape != exact[name].shape:  # rounding decides how many elements there are
                total[name][...] = np.inf
                continue
            total[name][...] += np.nan_to_num((value.astype(np.float64) - exact[name].astype(np.float64)) ** 2, posinf=np.inf)
