"""Verdicts: errors against derived tolerances, in the fields that `sepwise verify --json` prints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from sepwise.passes.equivalence.formats import BINARY32, BINARY64, Format, format_of
from sepwise.passes.equivalence.graph import Array, Model
from sepwise.passes.equivalence.interpreter import read_inputs
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.tolerances import SEEDS, constant_rounding_sigmas, execution_sigma
from sepwise.passes.errors import InputError, UnsupportedError

__all__ = [
    "ELEMENTWISE_SIGMAS",
    "HISTOGRAM_EDGES",
    "Check",
    "GraphReference",
    "Margin",
    "compare_execution",
    "compare_graph",
    "compare_kernel",
    "root_mean_square",
    "settle",
    "worst_check",
]

Tensors: TypeAlias = Mapping[str, Array]
Several: TypeAlias = Tensors | Sequence[Tensors]

ELEMENTWISE_SIGMAS = 16
RMS_ELEMENTS = 100  # the RMS of fewer elements says little about its expectation

NOTHING_FINITE = "nothing finite to compare: give other inputs"
"""Why a check is skipped where NaN and infinities are in their places, and there is nothing else."""

NOTHING_BOUNDED = "an execution may overflow at every element, so nothing is known of any: give other inputs"
"""Why a check is skipped where all bounds are infinite."""

ALL_UNDECIDED = "rounding decides every element or how many there are, so none was judged: give other inputs"
"""Why a check is skipped where no element is the same however the model is rounded."""

# Six seeds do not settle the sigma of outputs that vary together, be they few or all shifted by one constant, nor that of
# single elements next to where a ReLU bends, which no run may have moved: then it comes from more seeds. Of few outputs
# the limit is five standard deviations of a right fold's error, which is at most 0.6 sigma (DESIGN, Verification).
MANY_SEEDS = 36
SMALL_RATIO = 3.0

VANISHING = 2.0**-537
"""The square of less is 0 in float64, and so is a sigma that is less."""

LOWEST_OCTAVE, HIGHEST_OCTAVE = -20, 5
HISTOGRAM_EDGES = tuple(2.0**octave for octave in range(LOWEST_OCTAVE, HIGHEST_OCTAVE + 1))
"""Upper edges of a histogram's bins between the one of exact elements and the open one; 1, the tolerance, is among them."""


@dataclass(frozen=True)
class Margin:
    """An error and the tolerance of the same thing; their quotient is `Check.worst_ratio`.

    Attributes:
        of: `element`, that at `Check.worst_index`; `RMS`, the root mean square; `RMS / sigma`, that of several outputs, each in
            units of its own tolerance.
        error: the error.
        bound: its tolerance.
    """

    of: Literal["element", "RMS", "RMS / sigma"]
    error: float
    bound: float


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        scope: what was checked: a pass (`graph`), one kernel, or a whole model on its target.
        name: what exactly: an output, a kernel, a model.
        nodes: the ONNX nodes behind it.
        status: `passed`, `failed` or `skipped`; skipped means not passed.
        max_abs_error: largest absolute error, which need not be that of the worst element, as tolerances differ; infinite where
            NaN or infinity is misplaced.
        bound: tolerance at the worst element, or of the RMS where that decides (scope `graph`).
        worst_ratio: largest error relative to its tolerance; 1 still passes. None if the tolerance is 0 and the error is not.
        worst_index: where that element is; None where no single element decides.
        reproducer: file that reproduces a failure.
        rms_error: root mean square error, where it was judged; on the input set where it is largest against its tolerance.
        rms_bound: its tolerance.
        reason: one line for a reader: why it did not pass, or what a check that passed leaves open. Mostly empty where passed.
        worst_tensor: the output that `worst_index` indexes.
        worst_input: the input set that the worst element came from, counted from 0; of a kernel its place in
            `Verification.kernel_inputs`.
        computed: what was computed there.
        expected: what is right there, in float64.
        histogram: elements by the ratio of error to tolerance: exact ones, one count up to each of `HISTOGRAM_EDGES`
            (each bin without its lower and with its upper edge), larger ones. Empty where elements were not compared; in scope
            `graph` an element's error is set against the tolerance of the RMS, which a right one may exceed.
        pass_name: the pass whose rewrites a check of scope `graph` is about.
        strategy: how a kernel is scheduled.
        worst_error: absolute error at `worst_index`.
        rms_ratio: RMS error relative to its tolerance, where it was judged; of a model's outputs each counts in units of its own
            tolerance, so that it need not be the quotient of `rms_error` and `rms_bound`.
    """

    scope: Literal["graph", "kernel", "model"]
    name: str
    nodes: tuple[str, ...]
    status: Literal["passed", "failed", "skipped"]
    max_abs_error: float
    bound: float
    worst_ratio: float | None
    worst_index: tuple[int, ...] | None
    reproducer: str | None = None
    rms_error: float | None = None
    rms_bound: float | None = None
    reason: str = ""
    worst_tensor: str | None = None
    worst_input: int | None = None
    computed: float | None = None
    expected: float | None = None
    histogram: tuple[int, ...] = ()
    pass_name: str | None = None
    strategy: str | None = None
    worst_error: float | None = None
    rms_ratio: float | None = None

    @property
    def margin(self) -> Margin | None:
        """The error and the tolerance that decided, to be set side by side; None where the check is skipped."""
        if self.status == "skipped":
            return None
        if self.rms_ratio is None or self.rms_ratio != self.worst_ratio or self.rms_error is None or self.rms_bound is None:
            return Margin("element", self.max_abs_error if self.worst_error is None else self.worst_error, self.bound)
        if np.isclose(self.rms_error, self.rms_ratio * self.rms_bound, rtol=1e-6, atol=0.0):
            return Margin("RMS", self.rms_error, self.rms_bound)
        return Margin("RMS / sigma", self.rms_ratio, 1.0)

    @property
    def passed(self) -> bool:
        """Tells whether the check passed."""
        return self.status == "passed"

    def to_json(self) -> dict[str, object]:
        """Returns the fields as JSON takes them: infinities as null, indices as lists."""
        fields: dict[str, object] = asdict(self)
        for name, value in fields.items():
            if isinstance(value, float) and not np.isfinite(value):
                fields[name] = None
            elif isinstance(value, tuple):
                fields[name] = list(value)
        return fields


class GraphReference:
    """An original model with its outputs and sigma_c on some inputs, to compare several rewrites with.

    Attributes:
        oracle: the original, in the oracle.
        inputs: input sets.
        outputs: outputs of the original on each.
    """

    def __init__(self, original: Model, inputs: Several) -> None:
        """Runs the original.

        Args:
            original: the model as it came in.
            inputs: one or several sets of tensors by input name.

        Raises:
            InputError: if the inputs do not fit the model.
            UnsupportedError: if an operator is not known.
        """
        self.oracle = Oracle(original)
        self.inputs = _several(inputs)
        self.outputs = [self.oracle.run(feeds) for feeds in self.inputs]
        self._sigma: dict[int, list[dict[str, Array]]] = {}
        self._execution: dict[tuple[int, Format | None], list[dict[str, Array]]] = {}

    def sigma(self, seeds: int = SEEDS) -> list[dict[str, Array]]:
        """Returns sigma_c of each output on each input set; measured once."""
        if seeds not in self._sigma:
            self._sigma[seeds] = constant_rounding_sigmas(self.oracle, self.inputs, seeds)
        return self._sigma[seeds]

    def execution_sigma(self, seeds: int = SEEDS, arithmetic: Format | None = None) -> list[dict[str, Array]]:
        """Returns sigma_x of each output on each input set; measured once.

        Args:
            seeds: number of runs on each.
            arithmetic: format in which all operations round; each in that of its result where None.

        Raises:
            UnsupportedError: if an operator's rounding is not known.
        """
        if {op.format for op in self.oracle.graph.operations} == {arithmetic}:
            arithmetic = None  # the same
        if (seeds, arithmetic) not in self._execution:
            self._execution[seeds, arithmetic] = [
                execution_sigma(self.oracle, feeds, seeds, arithmetic=arithmetic) for feeds in self.inputs
            ]
        return self._execution[seeds, arithmetic]

    def judge(self, results: Sequence[Tensors], *, exact: bool = False) -> list[Check]:
        """Decides whether results in float64 are those of the original; see `compare_graph`.

        Args:
            results: outputs by name on each input set.
            exact: demands equality to the last bit.

        Returns:
            One check per output, named after it.
        """
        checks = []
        floating = []
        for name in self.outputs[0]:
            expected, actual = ([run[name] for run in runs] for runs in (self.outputs, results))
            checks.append(_graph_check(self, name, expected, actual, exact=exact))
            floating.append([e for e in expected if e.dtype.kind == "f" and e.size])
        if _nothing_finite([e for arrays in floating for e in arrays]):
            return [_skip(check) if arrays else check for check, arrays in zip(checks, floating, strict=True)]
        return checks

    def float64_noise(self, name: str, input_set: int) -> Array:
        """Returns what float64 rounding in the oracle itself amounts to in each element of an output."""
        try:
            sigma = self.execution_sigma(arithmetic=BINARY32)[input_set][name]
        except UnsupportedError:
            return np.zeros(())
        return ELEMENTWISE_SIGMAS * BINARY64.unit / BINARY32.unit * sigma


def compare_graph(
    original: "Model | GraphReference",
    rewritten: Model,
    inputs: Several | None = None,
    *,
    exact: bool = False,
    called: str = "The rewritten model",
) -> list[Check]:
    """Decides whether a rewritten model computes the same as the original.

    Both run in the float64 oracle. What is left between them is the rounding of the constants that the rewrite
    stores, so RMS(e) <= RMS(sigma_c) (`constant_rounding_sigma`), per output and on each of the inputs; 3 RMS(sigma_c) for
    under 100 elements, whose mean square depends on few independent errors. The limit is never below 16 times what rounding in
    float64 does to the output, as the oracle itself rounds so. A rewrite without any new constant has the same limit.

    No element may be off by more than 16 of its own sigma_c either, from 36 seeds where six would call it wrong. The roundings
    of a right rewrite move an element as one run of sigma_c does: with a deviation of at most 0.6 sigma_c, of which 16 are far
    out of reach.

    Integers and booleans are exact wherever all seeded runs give what the exact one does; elsewhere rounding decides them, and
    they are not judged. A right rewrite moves the numbers that decide an element by at most 0.6 of their sigma_c. Where it
    flips one, the margin is smaller than that, and a seeded run crosses it with a probability of at least 0.27: that none of
    36 does has one of 1e-5. Of a number moved by twice as much, as few are, it is 1%.

    Args:
        original: the model as it came in, or a reference made of it.
        rewritten: the model to judge.
        inputs: one or several sets of tensors by input name; none where a reference is given.
        exact: demands equality to the last bit.
        called: what the rewritten model is called where it cannot be computed.

    Returns:
        One check per output, named after it; failed ones too where the rewritten model cannot be computed, as its shapes
        do not fit together. Those of floating-point outputs are skipped where no element of any is finite, and one is skipped
        where rounding decides all its elements, or how many there are.

    Raises:
        InputError: if the rewritten model has other inputs or outputs.
        UnsupportedError: if an operator is not known.
    """
    if isinstance(original, GraphReference):
        reference = original
    elif inputs is None:
        raise InputError("compare_graph needs inputs where the original is a model.")
    else:
        reference = GraphReference(original, inputs)
    judged = Oracle(rewritten)
    made = {port.name for port in judged.graph.outputs}
    for name in reference.outputs[0]:
        if name not in made:
            raise InputError(f"{called} has no output {name!r}; it has {', '.join(sorted(made))}.")
    for feeds in reference.inputs:
        read_inputs(judged.graph, feeds, stored=False)
    try:
        results = [judged.run(feeds) for feeds in reference.inputs]
    except UnsupportedError:
        raise
    except InputError as error:  # two of its tensors do not fit together, so it computes nothing
        failed = Check("graph", "", (), "failed", np.inf, 0.0, None, None, reason=f"{called}: {error}")
        return [replace(failed, name=name) for name in reference.outputs[0]]
    return reference.judge(results, exact=exact)


def _graph_check(reference: GraphReference, name: str, expected: list[Array], actual: list[Array], *, exact: bool) -> Check:
    if not exact:
        free = [_undecided(e, sigma[name]) for e, sigma in zip(expected, reference.sigma(), strict=True)]
        if expected[0].dtype.kind != "f" and not all(map(np.array_equal, expected, _settled(actual, expected, free))):
            free = [f | _undecided(e, s[name]) for f, e, s in zip(free, expected, reference.sigma(MANY_SEEDS), strict=True)]
        if any(f.size for f in free) and all(f.all() for f in free):
            return Check("graph", name, (), "skipped", 0.0, 0.0, None, None, reason=ALL_UNDECIDED)
        actual = _settled(actual, expected, free)
    misfit = _misfit(Check("graph", name, (), "failed", np.inf, 0.0, None, None), name, expected, actual)
    if misfit is not None:
        return misfit
    return worst_check([_graph_check_on(reference, i, name, expected, actual, exact=exact) for i in range(len(expected))])


def _graph_check_on(
    reference: GraphReference, input_set: int, name: str, expected: list[Array], actual: list[Array], *, exact: bool
) -> Check:
    """Judges one input set: on larger numbers a mistake that others show would drown."""
    error = _error(actual[input_set], expected[input_set])
    largest, rms = float(error.max(initial=0.0)), root_mean_square([error])
    index = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape)) if error.size else None
    check = Check("graph", name, (), "passed", largest, 0.0, 0.0, index, rms_error=rms, rms_bound=0.0, worst_error=largest)
    check = _with_values(check, name, input_set, actual, expected)
    limit = 0.0 if exact else _finite_rms(reference.sigma()[input_set][name])
    if largest == 0:
        return replace(check, bound=limit, rms_bound=limit, rms_ratio=0.0, histogram=_histogram([error], limit))
    if exact or expected[input_set].dtype.kind != "f":
        reason = f"differs by up to {largest:.3g} and has to be exact"
        return replace(check, status="failed", worst_ratio=None, histogram=_histogram([error], 0.0), reason=reason)
    if rms > limit:
        ratio = SMALL_RATIO if error.size < RMS_ELEMENTS else 1.0
        limit = max(limit, ratio * _finite_rms(reference.sigma(MANY_SEEDS)[input_set][name]))
    explained = "rounding the constants explains"
    if rms > limit:
        noise = root_mean_square([reference.float64_noise(name, input_set)])
        if noise > limit:
            limit, explained = noise, "rounding in the float64 reference explains"
        elif error.size < RMS_ELEMENTS:
            explained = f"{SMALL_RATIO:g} times what rounding the constants explains, as of few elements is allowed, is"
    quotient = rms / limit if limit else None
    check = replace(check, bound=limit, rms_bound=limit, worst_ratio=quotient, rms_ratio=quotient)
    check = replace(check, histogram=_histogram([error], limit))
    if rms <= limit:
        found = _element_check(check, reference, input_set, name, error)
        return _with_values(found, name, input_set, actual, expected)
    reason = f"RMS error {rms:.3g} where {explained} {limit:.3g}"
    return replace(check, status="failed", reason=reason)


def _element_check(check: Check, reference: GraphReference, input_set: int, name: str, error: Array) -> Check:
    """Fails a check whose mean square is right where single elements are not: one row or pixel drowns among all others."""
    limits = ELEMENTWISE_SIGMAS * reference.sigma()[input_set][name]
    if not (error > limits).any():
        return check
    limits = np.maximum(limits, ELEMENTWISE_SIGMAS * reference.sigma(MANY_SEEDS)[input_set][name])
    limits = np.maximum(limits, reference.float64_noise(name, input_set) + VANISHING)
    over = error > limits
    if not over.any():
        return check
    ratios = np.where(over, _ratio(error, limits), 0.0)
    index = tuple(int(i) for i in np.unravel_index(int(ratios.argmax()), ratios.shape))
    worst, limit = float(error[index]), float(limits[index])
    reason = (
        f"{int(over.sum())} of {error.size} elements are off by more than {ELEMENTWISE_SIGMAS} times what rounding the constants "
        f"explains of each, by {worst:.3g} where that is {limit:.3g}"
    )
    ratio = float(ratios[index]) if limit else None
    return replace(check, status="failed", bound=limit, worst_ratio=ratio, worst_index=index, worst_error=worst, reason=reason)


def compare_execution(outputs: Several, oracle: Several, sigma: Several, *, name: str = "model") -> Check:
    """Decides whether an execution computes what the model means.

    RMS(e) <= RMS(sigma_x), pooled over outputs, on each of the inputs and over all (each output in units of its own
    RMS(sigma_x) on that input, so that a small one counts as much as a large one; not applied to under 100 elements), and
    |e| <= 16 sigma_x for every element. Integers and booleans are exact wherever the seeded runs agree on them. NaN and
    infinities are where the oracle's result, rounded to the type of the execution's, has them; either is right where 16 sigma_x
    reach the largest number, and anything where sigma_x is NaN or infinite.

    Args:
        outputs: what the execution returned, for one or several inputs.
        oracle: what `Oracle.run` returned for the same.
        sigma: what `execution_sigma` returned for the same.
        name: name of the check.

    Returns:
        One check of scope `model`; skipped where no element of any floating-point output is finite, or rounding decides all.

    Raises:
        InputError: if an output is missing.
    """
    sets = list(zip(_several(outputs), _several(oracle), _several(sigma), strict=True))
    names = [key for key in sets[0][2] if key in sets[0][1]]
    worst = empty = Check("model", name, (), "passed", 0.0, 0.0, 0.0, None)
    pools: list[list[Array]] = [[] for _ in sets]
    by_set: list[tuple[list[Array], list[Array]]] = [([], []) for _ in sets]
    total_expected: list[Array] = []
    free: list[Array] = []
    for key in names:
        missing = [key for one, _, _ in sets if key not in one]
        if missing:
            raise InputError(f"The execution returned no output {key!r}; it returned {', '.join(sets[0][0])}.")
        actual, expected, sigmas = ([np.asarray(group[i][key]) for group in sets] for i in range(3))
        floating = expected[0].dtype.kind == "f"
        unknown = [~np.isfinite(s) for s in sigmas]
        if any(u.any() for u in unknown):
            actual = _settled(actual, expected, unknown)
            expected = [np.where(u, a, e) if a.shape == e.shape else e for u, e, a in zip(unknown, expected, actual, strict=True)]
        if not floating:
            free.extend(_undecided(e, s) for e, s in zip(expected, sigmas, strict=True))
        sigmas = [np.where(u, 0.0, s) for u, s in zip(unknown, sigmas, strict=True)]
        held = format_of(actual[0].dtype) if actual[0].dtype.kind == "f" else BINARY32
        floor = max(held.smallest, BINARY32.smallest)  # doubles may have been computed in float32
        limits = [ELEMENTWISE_SIGMAS * s + (floor if floating else 0.0) for s in sigmas]
        if floating:
            expected = [_as_held(*group, held) for group in zip(expected, actual, limits, strict=True)]
        failed = Check("model", f"{name}: {key}", (), "failed", np.inf, 0.0, None, None)
        misfit = _misfit(failed, key, expected, actual)
        if misfit is not None:
            return misfit
        errors = [_error(a, e) for a, e in zip(actual, expected, strict=True)]
        if not floating:
            errors = [np.where(s > 0, 0.0, e) for e, s in zip(errors, sigmas, strict=True)]
        worst = _worse(worst, _elementwise(empty, key, errors, limits, actual, expected))
        if floating:
            for pool, (set_errors, set_sigmas), error, one in zip(pools, by_set, errors, sigmas, strict=True):
                pool.append(error / (root_mean_square([one]) + floor))
                set_errors.append(error)
                set_sigmas.append(one)
            total_expected.extend(np.where(u, np.nan, e) for u, e in zip(unknown, expected, strict=True))
    if _nothing_finite(total_expected):
        return _skip(worst, _why_nothing(oracle, sigma))
    if not any(e.size for e in total_expected) and any(f.size for f in free) and all(f.all() for f in free):
        return _skip(worst, ALL_UNDECIDED)
    enough = [pool for pool in ([e for pool in pools for e in pool], *pools) if sum(e.size for e in pool) >= RMS_ELEMENTS]
    if not enough:
        return worst
    ratio = max(root_mean_square(pool) for pool in enough)
    set_errors, set_sigmas = by_set[int(np.argmax([root_mean_square(pool) for pool in pools]))]
    worst = replace(worst, rms_error=root_mean_square(set_errors), rms_bound=root_mean_square(set_sigmas), rms_ratio=ratio)
    if ratio <= 1:
        return worst if worst.worst_ratio is None else replace(worst, worst_ratio=max(worst.worst_ratio, ratio))
    reason = f"RMS error is {ratio:.3g} times what rounding explains"
    return replace(worst, status="failed", reason=worst.reason or reason, worst_ratio=_larger(worst.worst_ratio, ratio))


def settle(judge: Callable[[int], Check]) -> Check:
    """Makes a check of scope `model` with a few seeds, and with many where a few do not settle what seems to be wrong.

    Args:
        judge: compares an execution with sigma_x from a number of seeds.

    Returns:
        The check.
    """
    check = judge(SEEDS)
    pooled = check.rms_error is None or check.rms_bound is None or check.rms_error <= SMALL_RATIO * check.rms_bound
    return judge(MANY_SEEDS) if check.status == "failed" and np.isfinite(check.max_abs_error) and pooled else check


def compare_kernel(
    actual: Array, value: Array, bound: Array, *, name: str = "kernel", nodes: Sequence[str] = (), placed: bool = True
) -> Check:
    """Decides whether a kernel's result lies within its rigorous bound.

    Args:
        actual: what the kernel wrote.
        value: exact result, from `run_with_bounds`.
        bound: bound of the absolute error, from there too; infinite elements are not judged.
        name: name of the check.
        nodes: names of the ONNX nodes that the kernel covers.
        placed: whether NaN and infinities have to be where the exact result has them; if not, elements whose exact result is
            one are not judged.

    Returns:
        One check of scope `kernel`: |e| <= bound for every element, and NaN and infinities in their places; skipped where
        no element of a floating-point result was judged.
    """
    empty = Check("kernel", name, tuple(nodes), "passed", 0.0, 0.0, 0.0, None)
    finite = np.isfinite(value)
    free = np.isinf(bound) & finite
    if not placed:
        free |= ~finite
    if actual.shape == value.shape:
        actual = np.where(free, value, actual)
    failed = replace(empty, status="failed", max_abs_error=np.inf, worst_ratio=None)
    misfit = _misfit(failed, None, [value], [actual])
    if misfit is not None:
        return misfit
    limits = np.where(np.isfinite(bound), bound, 0.0)
    check = _elementwise(empty, None, [_error(actual, value)], [limits], [actual], [value])
    if value.dtype.kind == "f" and value.size and not (finite & ~free).any():
        return _skip(check, NOTHING_BOUNDED if finite.any() else NOTHING_FINITE)
    exact, *others = check.histogram
    return replace(check, histogram=(exact - int(free.sum()), *others))


def worst_check(checks: Sequence[Check]) -> Check:
    """Makes one check of several of the same thing on several inputs.

    Args:
        checks: at least one.

    Returns:
        The worst: one that failed, otherwise one that passed, with the elements of all in its histogram. It is skipped where
        all are.
    """
    failed = [check for check in checks if check.status == "failed"]
    passed = [check for check in checks if check.passed]
    worst = max(failed or passed or checks, key=_badness)
    counts = [check.histogram for check in checks if check.histogram]
    return replace(worst, histogram=tuple(map(sum, zip(*counts, strict=True))))


def _badness(check: Check) -> tuple[float, float]:
    return np.inf if check.worst_ratio is None else check.worst_ratio, check.max_abs_error


def _several(one: Several) -> list[Tensors]:
    return [one] if isinstance(one, Mapping) else list(one)


def _nothing_finite(expected: Sequence[Array]) -> bool:
    """Tells whether floating-point tensors have elements, and all of them are NaN or infinite."""
    return any(e.size for e in expected) and not any(np.isfinite(e).any() for e in expected)


def _why_nothing(oracle: Several, sigma: Several) -> str:
    """Says why nothing was left to compare with an execution: what is right is not finite, is not known, or overflowed."""
    if any(np.isinf(s).any() for each in _several(sigma) for s in each.values()):
        return ALL_UNDECIDED
    floating = [e for each in _several(oracle) for e in each.values() if e.dtype.kind == "f"]
    return NOTHING_BOUNDED if any(np.isfinite(e).any() for e in floating) else NOTHING_FINITE


def _skip(check: Check, reason: str = NOTHING_FINITE) -> Check:
    """What becomes of a check that compared no number: NaN and infinities in wrong places fail nevertheless."""
    if check.status == "failed":
        return check
    return Check(check.scope, check.name, check.nodes, "skipped", 0.0, 0.0, None, None, reason=reason)


def _undecided(expected: Array, sigma: Array) -> Array:
    """Tells which elements rounding decides: integers that a seeded run changed, and whatever has no finite sigma."""
    return ~np.isfinite(sigma) | ((sigma > 0) & (expected.dtype.kind != "f"))


def _settled(actual: list[Array], expected: list[Array], free: list[Array]) -> list[Array]:
    """Puts what is right in place of elements that are not judged, and of all where rounding decides how many there are."""
    settled = []
    for a, e, f in zip(actual, expected, free, strict=True):
        if f.any() and (a.shape == e.shape or f.all()):
            with np.errstate(over="ignore", invalid="ignore"):
                settled.append(np.where(f, e.astype(a.dtype), a if a.shape == e.shape else 0))
        else:
            settled.append(a)
    return settled


def _as_held(value: Array, actual: Array, limit: Array, held: Format) -> Array:
    """Makes those elements infinite that a format cannot hold, or did not where they may overflow; others keep their digits."""
    if actual.shape != value.shape:
        return value
    with np.errstate(invalid="ignore"):
        size = np.abs(value)
        either = (size - limit <= held.largest) & (size + limit > held.largest)
        infinite = np.where(either, actual == np.copysign(np.inf, value), np.isinf(held.round(value)))
    return np.where(infinite & np.isfinite(value), np.copysign(np.inf, value), value)


def _misfit(failed: Check, tensor: str | None, expected: list[Array], actual: list[Array]) -> Check | None:
    """Finds a wrong shape or kind, or NaN and infinities in wrong places, and says so in `failed`."""
    for input_set, (e, a) in enumerate(zip(expected, actual, strict=True)):
        if e.shape != a.shape:
            return replace(failed, reason=f"shape {tuple(a.shape)} where {tuple(e.shape)} is right")
        if (e.dtype.kind == "f") != (a.dtype.kind == "f"):
            return replace(failed, reason=f"type {a.dtype} where {e.dtype} is right")
        if e.dtype.kind != "f":
            continue
        wrong = np.where(np.isfinite(e), ~np.isfinite(a), ~((a == e) | (np.isnan(a) & np.isnan(e))))
        if wrong.any():
            index = np.unravel_index(int(wrong.argmax()), wrong.shape)
            reason = f"{a[index]} where {e[index]:.9g} is right"
            found = replace(failed, worst_index=tuple(int(i) for i in index), reason=reason)
            return _with_values(found, tensor, input_set, actual, expected)
    return None


def _error(actual: Array, expected: Array) -> Array:
    """Returns |actual - expected|, 0 where both are the same infinity or NaN."""
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return np.where(np.isnan(error), 0.0, error)


def _elementwise(
    empty: Check, tensor: str | None, errors: list[Array], limits: list[Array], actual: list[Array], expected: list[Array]
) -> Check:
    """Judges |e| <= limit, element by element; `actual` and `expected` are for the report."""
    check = replace(empty, histogram=_histogram([], 0.0))
    for input_set, (error, limit) in enumerate(zip(errors, limits, strict=True)):
        if not error.size:
            continue
        ratio = _ratio(error, limit)
        index = np.unravel_index(int(ratio.argmax()), ratio.shape)
        found = replace(
            empty,
            max_abs_error=float(error.max()),
            worst_error=float(error[index]),
            bound=float(limit[index]),
            worst_ratio=float(ratio[index]),
            worst_index=tuple(int(i) for i in index),
            histogram=_histogram([error], limit),
        )
        found = _with_values(found, tensor, input_set, actual, expected)
        if ratio[index] > 1:
            at = f"{tensor or ''}{list(found.worst_index or ())}"
            reason = f"off by {error[index]:.3g} at {at}, where {limit[index]:.3g} is allowed"
            found = replace(found, status="failed", reason=reason)
            if np.isinf(ratio[index]):
                found = replace(found, worst_ratio=None)
        check = _worse(check, found)
    return check


def _ratio(error: Array, limit: Array | float) -> Array:
    """Returns error / limit, 0 where there is no error, infinite where none is allowed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / limit)


def _histogram(errors: Sequence[Array], limit: Array | float) -> tuple[int, ...]:
    """Counts elements by their ratio of error to limit, in the bins of `Check.histogram`."""
    counts = np.zeros(len(HISTOGRAM_EDGES) + 2, np.int64)
    for error in errors:
        ratio = _ratio(error, limit).ravel()
        ratio = ratio[ratio > 0]
        mantissa, octave = np.frexp(np.minimum(ratio, 2 * HISTOGRAM_EDGES[-1]))  # ratio = mantissa * 2 ** octave
        place = np.maximum(octave - (mantissa == 0.5) - LOWEST_OCTAVE, 0)
        counts[0] += error.size - ratio.size
        counts[1:] += np.bincount(place, minlength=len(counts) - 1)
    return tuple(int(count) for count in counts)


def _with_values(check: Check, tensor: str | None, input_set: int | None, actual: list[Array], expected: list[Array]) -> Check:
    """Notes what was computed, and what is right, at the worst element."""
    if input_set is None or check.worst_index is None:
        return replace(check, worst_tensor=tensor)
    computed, right = (float(arrays[input_set][check.worst_index]) for arrays in (actual, expected))
    return replace(check, worst_tensor=tensor, worst_input=input_set, computed=computed, expected=right)


def _worse(a: Check, b: Check) -> Check:
    """Returns the worse of two checks, with the larger error and the elements of both."""
    rank_a, rank_b = (np.inf if c.worst_ratio is None else c.worst_ratio for c in (a, b))
    worse = b if rank_b > rank_a or a.worst_index is None else a
    counts = zip(a.histogram, b.histogram, strict=True) if a.histogram and b.histogram else ()
    return replace(
        worse,
        max_abs_error=max(a.max_abs_error, b.max_abs_error),
        histogram=tuple(x + y for x, y in counts) or a.histogram or b.histogram,
    )


def _larger(a: float | None, b: float) -> float | None:
    return None if a is None else max(a, b)


def root_mean_square(arrays: Sequence[Array]) -> float:
    """Computes the root mean square of all elements together, 0 where there are none."""
    count = sum(a.size for a in arrays)
    return float(np.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays) / count)) if count else 0.0


def _finite_rms(sigma: Array) -> float:
    return root_mean_square([np.nan_to_num(sigma, posinf=0.0)])
