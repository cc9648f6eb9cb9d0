"""Tolerances by seeded experiment in float64: how far rounding may move the outputs of a model.

Every constant and every result rounds in the format in which the model stores it (`formats`), u is the unit roundoff of that.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sepwise.passes.equivalence.formats import BINARY32, Format
from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import evaluate
from sepwise.passes.equivalence.oracle import Oracle, as_graph
from sepwise.passes.equivalence.rounding import may_overflow, noise_scale, repeats

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
    constant multiplied by 1 + 2u N(0, 1), and sigma_c is the root mean square deviation over the seeds, element by element. A
    right rewrite has RMS(e) <= RMS(sigma_c); a wrong one is off by its own mistake, which has nothing to do with u and
    stands out.

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

    def perturbed(rng: np.random.Generator) -> Callable[[str, Array, Format], Array]:
        drawn: dict[str, Array] = {}

        def constant(name: str, array: Array, stored: Format) -> Array:
            if array.dtype.kind != "f" or name in fixed:
                return array
            if name not in drawn:
                drawn[name] = _rounded(rng, array, stored)
            return drawn[name]

        return constant

    sets = [read_inputs(graph, feeds, stored=False) for feeds in inputs]
    exact = [_run(graph, feeds, lambda _, array, __: array, evaluate) for feeds in sets]
    squares = [_zeros(outputs) for outputs in exact]
    for seed in range(seeds):
        constant = perturbed(np.random.default_rng(seed))
        for feeds, outputs, total in zip(sets, exact, squares, strict=True):
            _add_squares(total, outputs, _run(graph, feeds, constant, evaluate))
    return [{name: np.sqrt(total / seeds) for name, total in totals.items()} for totals in squares]


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
) -> dict[str, Array]:
    """Measures how far floating-point arithmetic is expected to move the outputs of a model (sigma_x).

    The argument: an execution rounds after every operation, in an order of its own, at worst in the format of the
    result throughout. The model is run in float64 with the result of every floating-point node perturbed by what such rounding
    amounts to: sums (Conv, Gemm, MatMul, Reduce, pools, norms) by u (sqrt(k) sqrt(sum terms^2 + y^2 / 9) + |y|) N(0, 1), all
    others by their ulps u |y| N(0, 1) (`rounding.noise_scale`). sigma_x is the root mean square deviation over the seeds. Runtimes that sum in
    blocks, with FMA, or fuse nodes, do better than that, so RMS(e) <= RMS(sigma_x) holds with a margin; with
    sum |terms| in place of the root of squares the tolerance would be tens of times wider and hide faint mistakes.
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

    def measure(op: Operation, operands: list[Array | None]) -> tuple[Array, ...]:
        outputs = evaluate(op, operands)
        if not fixed.intersection(op.outputs):
            scale = noise_scale(op, operands, outputs, arithmetic or op.format)
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
            outputs = evaluate(op, operands)
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
