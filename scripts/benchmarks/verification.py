"""Which side of its tolerance each result falls on: those known to be right, those known to be wrong.

    python scripts/benchmarks/verification.py            all of it, at full size: half an hour on one core
    python scripts/benchmarks/verification.py --help

Right results are the runs of several runtimes, what several optimisers make of a file, and our own kernels; wrong ones are
the catalogue of mutants (`tests/mutants`, which pytest runs and this script listens to) and a runtime in bfloat16. Each is set
against the tolerance that `sepwise verify` derives for its scope. Beside it stand tolerances that are in use elsewhere: they
are given what their users see, the network's outputs in float32, and the float64 oracle as the golden value, which is kinder
to them than another float32 runtime.

All numbers are written as JSON first; the tables in the documentation are made from that file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `sepwise verify` has it; read when numpy is loaded

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_ir as ir

from sepwise.comparison import run_onnxruntime
from sepwise.console import say
from sepwise.files import new_file, resolve
from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.peers import Job, Worker
from sepwise.lowering.runner import open_runner
from sepwise.lowering.verify import GROUPING, KernelChecker
from sepwise.models.catalogue import ENTRIES, Entry
from sepwise.passes import canonicalize, fuse, load_model
from sepwise.passes.equivalence import (
    NETWORK_KINDS,
    GraphReference,
    compare_execution,
    compare_graph,
    compare_parts,
    sample_inputs,
)
from sepwise.passes.errors import CheckFailed, SepwiseError
from sepwise.passes.saving import save_model
from sepwise.report.provenance import collect
from sepwise.samples import CLASSIFIER, DETECTOR, RECOGNISER, TEXT_LINES, draw_line, fetch_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pytest

    from sepwise.passes.equivalence import Check

    Tensors = Mapping[str, np.ndarray]
    Rule = Callable[[np.ndarray, np.ndarray], bool]
    Optimise = Callable[[onnx.ModelProto], onnx.ModelProto]
    Run = Callable[["Network", ir.Model, Sequence[Tensors]], Sequence[Tensors]]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
JSON: Final = REPOSITORY / "docs/benchmarks/verification.json"
DOCUMENT: Final = REPOSITORY / "docs/verification.md"
MARKERS: Final = ("<!-- made by scripts/benchmarks/verification.py -->", "<!-- until here -->")
TRAINED: Final = REPOSITORY / "build/trained"

MUTANTS: Final = "tests/mutants"
MUTATED: Final = ("mobilenet_v2", "mobilenet_v3_small")
"""Whole networks that mutants are planted in, narrow and on images of 64 pixels."""

UNUSUAL: Final = ("large",)
"""Kinds of inputs that users of hand-picked tolerances do not draw: what is right is not held against them there."""

BEYOND: Final = 1e6
"""Ratios are not told apart from here on: the largest are of elements without any rounding, or of NaN."""

FAINTEST: Final = 8
"""Wrong results that the document names."""


# Hand-picked tolerances ------------------------------------------------------------------------------------------------


def is_close(relative: float, absolute: float) -> Rule:
    """Makes the rule of `numpy.allclose`: |e| <= absolute + relative |y| for every element."""
    return lambda found, right: bool(np.allclose(found, right, rtol=relative, atol=absolute, equal_nan=True))


def is_close_either_way(relative: float, absolute: float) -> Rule:
    """Makes Polygraphy's rule: wrong is an element that is off by more than both limits."""

    def rule(found: np.ndarray, right: np.ndarray) -> bool:
        with np.errstate(invalid="ignore"):
            error = np.abs(found - right)
        return not bool(np.any(~(error <= absolute) & ~(error <= relative * np.abs(right))))

    return rule


def is_aligned(cosine: float) -> Rule:
    """Makes the rule that the angle between two outputs, as vectors, is small."""

    def rule(found: np.ndarray, right: np.ndarray) -> bool:
        length = float(np.linalg.norm(found) * np.linalg.norm(right))
        return bool(np.vdot(found, right) >= cosine * length)

    return rule


RULES: Final[Mapping[str, Rule]] = {
    "allclose 1e-5, 1e-5": is_close(1e-5, 1e-5),
    "Polygraphy 1e-5, 1e-5": is_close_either_way(1e-5, 1e-5),
    "onnxsim 1e-4, 1e-5": is_close(1e-4, 1e-5),
    "cosine 0.997": is_aligned(0.997),
}
"""Tolerances in use: numpy's rule, Polygraphy's default, onnxsim's check, Polygraphy's limit of the cosine."""


# Results ---------------------------------------------------------------------------------------------------------------

RIGHT: Final = ("runtime", "rewrite", "part", "kernel")
WRONG: Final = ("wrong runtime", "wrong rewrite", "wrong kernel")


@dataclass(frozen=True, slots=True)
class Result:
    """What is known to be right or wrong, and what is said of it.

    Attributes:
        group: One of `RIGHT` or `WRONG`.
        name: The runtime, the optimiser, the kernel or the mutant.
        network: What it computes.
        ratio: Error over tolerance in its own scope (runtimes model, rewrites and their worst part graph, kernels kernel);
            infinite where nothing finite measures it. None where it was not judged, as `note` says.
        model_ratio: Error over tolerance of the whole network's outputs, in float32. None where there are none.
        rms_ratio: RMS(e) / RMS(sigma_x) of the worst output of 100 elements and more.
        element_ratio: Largest |e| / (16 sigma_x).
        accepted: What each of `RULES` says of the same outputs.
        named: Whether the verifier names the pass or kernel at fault, of a mutant.
        note: Why it was not judged.
    """

    group: str
    name: str
    network: str
    ratio: float | None = None
    model_ratio: float | None = None
    rms_ratio: float | None = None
    element_ratio: float | None = None
    accepted: Mapping[str, bool] | None = None
    named: bool | None = None
    note: str = ""

    @property
    def on_wrong_side(self) -> bool:
        """Whether something right is above its tolerance, or something wrong below it or not named."""
        if self.group in RIGHT:
            return self.ratio is not None and self.ratio > 1
        return self.named is False or (self.ratio is not None and self.ratio <= 1)

    def to_json(self) -> dict[str, Any]:
        """Gives the fields that hold something; infinities become null."""
        fields = {name: value for name, value in asdict(self).items() if value is not None and value != ""}
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Result:
        """Reads what `to_json` gave."""
        values: dict[str, Any] = {name: math.inf if value is None else value for name, value in fields.items()}
        return cls(**values)


def ratio_of(check: Check) -> float:
    """The ratio of error to tolerance; infinite where no number tells it."""
    return math.inf if check.worst_ratio is None else check.worst_ratio


def judge(
    result: Result,
    outputs: Sequence[Tensors],
    expected: Sequence[Tensors],
    sigma: Sequence[Tensors],
    usual: Sequence[bool] | None = None,
) -> Result:
    """Compares a run of the whole network with the oracle.

    Args:
        result: What was run.
        outputs: Its outputs, in float32, on each input set.
        expected: The oracle's.
        sigma: Their `execution_sigma`.
        usual: The input sets that hand-picked tolerances are given, all where None.

    Returns:
        The result with the ratios at scope `model`, and what hand-picked tolerances say.
    """
    alone = [
        compare_execution(*([{name: run[name]} for run in runs] for runs in (outputs, expected, sigma))) for name in expected[0]
    ]
    rms = [check.rms_error / check.rms_bound for check in alone if check.rms_error is not None and check.rms_bound]
    elements = [
        abs(check.computed - check.expected) / check.bound
        for check in alone
        if check.computed is not None and check.expected is not None and check.bound
    ]
    seen = [pair for pair, each in zip(zip(outputs, expected, strict=True), usual or [True] * len(outputs), strict=True) if each]
    pairs = [(run[name], right[name]) for run, right in seen for name in right]
    return replace(
        result,
        model_ratio=ratio_of(compare_execution(outputs, expected, sigma)),
        rms_ratio=max(rms, default=None),
        element_ratio=max(elements, default=None),
        accepted={name: all(a.shape == b.shape and rule(a, b) for a, b in pairs) for name, rule in RULES.items()},
    )


# Networks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Network:
    """A network to run.

    Attributes:
        name: What the tables call it.
        path: The file.
        feeds: Its inputs; drawn as `sepwise verify` draws them where empty.
    """

    name: str
    path: Path
    feeds: tuple[Tensors, ...] = ()

    def load(self) -> tuple[ir.Model, list[Tensors]]:
        """Loads the file with the shapes of its inputs, and draws those where there are none."""
        shapes = {name: array.shape for name, array in self.feeds[0].items()} if self.feeds else None
        model = load_model(self.path, shapes=shapes)
        return model, list(self.feeds) or [sample_inputs(model, seed, kind) for seed, kind in enumerate(NETWORK_KINDS)]


def zoo_network(entry: Entry, size: int | None) -> Network:
    """A network of the zoo, at its own size or on other images.

    Args:
        entry: Which.
        size: Height and width in pixels, raised to the next that it takes; its own where None or smaller.

    Returns:
        The network, exported to the user's cache.
    """
    shape = None
    if size is not None and len(entry.input_shape) == 4:
        fitting = math.ceil(max(size, entry.minimum_size) / entry.size_multiple) * entry.size_multiple
        batch, channels, height, width = entry.input_shape
        shape = (batch, channels, min(fitting, height), min(fitting, width))
    return Network(entry.name, resolve(entry.name, shape).path)


def trained_networks(folder: Path) -> list[Network]:
    """The trained networks of `sepwise.samples`, fed pictures of text."""
    files = fetch_networks(folder)
    upright, turned = draw_line(TEXT_LINES[0]), draw_line(TEXT_LINES[1], turned=True)
    lines = [draw_line(text, width=320) for text in TEXT_LINES]
    return [
        Network(CLASSIFIER, files[CLASSIFIER], ({"x": upright}, {"x": turned})),
        Network(DETECTOR, files[DETECTOR], ({"x": np.concatenate(lines, axis=2)},)),
        Network(RECOGNISER, files[RECOGNISER], ({"x": lines[0]}, {"x": lines[3]})),
    ]


# Runtimes and optimisers -----------------------------------------------------------------------------------------------

def openvino_in(precision: str) -> Run:
    """Makes a run in OpenVINO with the given type of numbers; left to itself it takes bfloat16 where the processor has it."""

    def run(network: Network, model: ir.Model, feeds: Sequence[Tensors]) -> list[dict[str, np.ndarray]]:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise CheckFailed("this processor has no bfloat16")
        compiled = core.compile_model(str(network.path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        wanted = [output.name or "" for output in model.graph.outputs]
        return [{name: np.array(compiled(dict(feed))[name]) for name in wanted} for feed in feeds]

    return run


def run_stock_tvm(network: Network, model: ir.Model, feeds: Sequence[Tensors]) -> list[dict[str, np.ndarray]]:
    """Compiles and runs with TVM as it comes, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        simplified = Path(folder) / "simplified.onnx"
        save_model(canonicalize(model), simplified)
        wanted = tuple(output.name or "" for output in model.graph.outputs)
        with Worker(Job("stock-tvm", network.path, simplified, Path(folder), dict(feeds[0]), wanted, 1)) as worker:
            return [worker.run(dict(feed)) for feed in feeds]


RUNTIMES: Final[Mapping[str, tuple[str, Run]]] = {
    "ONNX Runtime": ("onnxruntime", lambda _, model, feeds: run_onnxruntime(model, feeds, optimised=True)),
    "ONNX Runtime, not optimised": ("onnxruntime", lambda _, model, feeds: run_onnxruntime(model, feeds)),
    "OpenVINO, float32": ("openvino", openvino_in("f32")),
    "stock TVM": ("tvm", run_stock_tvm),
}
"""Right runtimes but ours: the module that each needs, and how it runs a network."""

WRONG_RUNTIMES: Final[Mapping[str, tuple[str, Run]]] = {"OpenVINO, bfloat16": ("openvino", openvino_in("bf16"))}
"""Runtimes that compute in fewer bits than the model says."""


def optimise_in_onnxruntime(level: str) -> Optimise:
    """Makes ONNX Runtime write the graph that it would run at a level of optimisation."""

    def optimise(proto: onnx.ModelProto) -> onnx.ModelProto:
        import onnxruntime

        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            options.log_severity_level = 3
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    return optimise


def optimise_in_onnxslim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Simplifies and fuses with onnxslim."""
    import onnxslim

    slimmed: onnx.ModelProto = onnxslim.slim(proto)
    return slimmed


def optimise_in_onnxoptimizer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Runs the ONNX project's own fusions and eliminations."""
    import onnxoptimizer

    optimised: onnx.ModelProto = onnxoptimizer.optimize(proto, onnxoptimizer.get_fuse_and_elimination_passes())
    return optimised


OPTIMISERS: Final[Mapping[str, tuple[str, Optimise]]] = {
    "ONNX Runtime's file, basic": ("onnxruntime", optimise_in_onnxruntime("ORT_ENABLE_BASIC")),
    "ONNX Runtime's file, extended": ("onnxruntime", optimise_in_onnxruntime("ORT_ENABLE_EXTENDED")),
    "onnxslim": ("onnxslim", optimise_in_onnxslim),
    "onnxoptimizer": ("onnxoptimizer", optimise_in_onnxoptimizer),
}
"""Right rewrites but ours: the module that each needs, and what it makes of a model."""

OURS: Final = "sepwise"


def installed(tools: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Leaves out those whose module is absent."""
    return {name: tool for name, (module, tool) in tools.items() if find_spec(module) is not None}


def name_absent() -> None:
    """Says what is left out, and how to get it."""
    for name, (module, _) in {**RUNTIMES, **WRONG_RUNTIMES, **OPTIMISERS}.items():
        if find_spec(module) is None:
            say(f"left out: {name}, for want of {module} (pip install 'sepwise[peers]')")


def measure(network: Network) -> Iterator[Result]:
    """Runs a network in every runtime and through every optimiser, and verifies ours.

    Args:
        network: Which.

    Yields:
        Results of the groups `RIGHT`, and of `wrong runtime`.
    """
    model, feeds = network.load()
    usual = None if network.feeds else [kind not in UNUSUAL for kind in NETWORK_KINDS]
    reference = GraphReference(model, feeds)
    sigma = reference.execution_sigma()

    def judged(group: str, name: str, outputs: Sequence[Tensors], ratio: float | None = None) -> Result:
        result = judge(Result(group, name, network.name), outputs, reference.outputs, sigma, usual)
        return replace(result, ratio=result.model_ratio if ratio is None else ratio)

    def rewritten(name: str, models: Sequence[ir.Model]) -> Iterator[Result]:
        ratio = max(ratio_of(check) for each in models for check in compare_graph(reference, each))
        yield judged("rewrite", name, run_onnxruntime(models[-1], feeds), ratio)
        parts = max(map(ratio_of, compare_parts(model, models[-1], feeds[0])), default=0.0)
        yield Result("part", name, network.name, parts)

    for group, runtimes in (("runtime", RUNTIMES), ("wrong runtime", WRONG_RUNTIMES)):
        for name, run in installed(runtimes).items():
            try:
                yield judged(group, name, run(network, model, feeds))
            except Exception as error:  # whatever a runtime raises is noted, and the others go on
                yield Result(group, name, network.name, note=" ".join(str(error).split()))
    for name, optimise in installed(OPTIMISERS).items():
        try:
            yield from rewritten(name, [reload(optimise(ir.to_proto(model)))])
        except Exception as error:  # as above
            yield Result("rewrite", name, network.name, note=" ".join(str(error).split()))

    report = fuse(model, keep_stages=True)
    yield from rewritten(OURS, [stage for _, stage in report.stages])

    program, _ = build_program(model, device.get("host"))
    with open_runner(program) as runner:
        yield judged("runtime", OURS, [runner.run(feed) for feed in feeds])
        ungrouped = [stage for name, stage in report.stages if name != GROUPING][-1]
        checker = KernelChecker(program, runner, ungrouped, feeds[0])
        for index in range(len(program.calls)):
            for check in checker.check(index):
                ratio = None if check.status == "skipped" else ratio_of(check)
                yield Result("kernel", check.name, network.name, ratio, note=check.reason if ratio is None else "")


def reload(proto: onnx.ModelProto) -> ir.Model:
    """Loads what an optimiser made as `sepwise verify --against` does."""
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        path = Path(folder) / "rewritten.onnx"
        onnx.save(proto, path)
        try:
            return load_model(path)
        except SepwiseError as error:
            raise CheckFailed(str(error).removeprefix(f"{path}: ")) from error


# Mutants ---------------------------------------------------------------------------------------------------------------


class Listener:
    """A plugin of pytest that hears what the tests of mutants record.

    Attributes:
        results: Of the groups `wrong rewrite` and `wrong kernel`.
    """

    def __init__(self) -> None:
        """Starts with nothing."""
        self.results: list[Result] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Judges the mutants of a test that has ended."""
        if report.when == "call":
            told: Sequence[tuple[str, Any]] = report.user_properties
            self.results += [judge_mutant(facts) for name, facts in told if name == "mutant"]


def judge_mutant(facts: Mapping[str, Any]) -> Result:
    """Sets a mutant against the tolerance of its own scope, and the network with it against that of the whole.

    Args:
        facts: What its test recorded.

    Returns:
        The result.
    """
    mutant, found = facts["mutant"], facts["verification"]
    result = Result("", mutant.name, found.model, named=facts["caught"])
    if "execution" in facts:
        scoped = [check for check in found.checks if check.scope == mutant.scope]
        if mutant.scope == "kernel":
            scoped = [check for check in scoped if check.name in facts["culprits"]]
        return judge(replace(result, group="wrong kernel", ratio=max(map(ratio_of, scoped))), *facts["execution"])
    scoped = [check for check in found.checks if check.pass_name == mutant.culprit]
    result = replace(result, group="wrong rewrite", ratio=max(map(ratio_of, scoped)))
    original = facts["original"]
    feeds = [sample_inputs(original, seed, kind) for seed, kind in enumerate(found.inputs)]
    try:
        outputs = run_onnxruntime(facts["rewritten"], feeds)
    except CheckFailed as error:  # no tolerance is needed to see that
        return replace(result, note=str(error))
    reference = GraphReference(original, feeds)
    return judge(result, outputs, reference.outputs, reference.execution_sigma())


def hear_mutants(mutated: Sequence[str]) -> list[Result]:
    """Runs the tests of mutants, on small networks and in whole ones.

    Args:
        mutated: Whole networks, by name.

    Returns:
        A result for every mutant in every network that has a place for it.
    """
    import pytest

    listener = Listener()
    selected = " or ".join(["not whole_networks", *(f"{name}]" for name in mutated)])
    pytest.main([str(REPOSITORY / MUTANTS), f"--rootdir={REPOSITORY}", "-q", "--nightly", "-k", selected], plugins=[listener])
    return listener.results


# The document ----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Two significant digits; how far beyond a million a ratio is says nothing any more."""
    if value > BEYOND:
        return "> 10^6"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Spells a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def rejections(results: Sequence[Result], verdict: bool) -> list[str]:
    """Counts for each hand-picked tolerance the results of which it says the wrong thing.

    Args:
        results: All right, or all wrong.
        verdict: What it should not say: False where they are right.

    Returns:
        A cell for each of `RULES`; those that gave no outputs are not counted.
    """
    judged = [result.accepted for result in results if result.accepted is not None]
    return [str(sum(each[rule] is verdict for each in judged)) if judged else "-" for rule in RULES]


def spread(ratios: Sequence[float]) -> list[str]:
    """The smallest, the median and the largest ratio."""
    return [number(pick(ratios)) for pick in (min, statistics.median, max)]


def rows_by(results: Sequence[Result], key: Callable[[Result], str]) -> dict[str, list[Result]]:
    """Sorts the results that were judged by a key, in order of appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.ratio is not None:
            groups.setdefault(key(result), []).append(result)
    return groups


def right_table(results: Sequence[Result]) -> list[str]:
    """A row for each right runtime and optimiser, and one for our kernels."""
    right = [result for result in results if result.group in RIGHT]
    scopes = {"runtime": "model", "rewrite": "graph", "part": "graph, part by part", "kernel": "kernel"}
    groups = rows_by(right, lambda result: f"{scopes[result.group]} | {OURS if result.group == 'kernel' else result.name}")
    header = ["scope", "right result", "cases", "smallest", "median", "largest ratio", "above 1"]
    rows = []
    for name in sorted(groups, key=lambda name: list(scopes.values()).index(name.split(" | ")[0])):
        found = [result.ratio for result in groups[name] if result.ratio is not None]
        rows.append([name, len(found), *spread(found), sum(ratio > 1 for ratio in found), *rejections(groups[name], False)])
    return table([*header, *(f"{rule} rejects" for rule in RULES)], rows)


def wrong_table(results: Sequence[Result], small: Sequence[str]) -> list[str]:
    """A row for each kind of wrong result, those in small networks apart from those in whole ones."""
    wrong = [result for result in results if result.group in WRONG]

    def key(result: Result) -> str:
        if result.group == "wrong runtime":
            return result.name
        return f"{result.group}s in {'small networks' if result.network in small else result.network}"

    header = ["wrong result", "cases", "smallest", "median", "largest ratio", "below 1", "below 1 as a whole network"]
    rows = []
    for name, found in rows_by(wrong, key).items():
        ratios = [result.ratio for result in found if result.ratio is not None]
        as_whole = [result.model_ratio for result in found if result.model_ratio is not None]
        below = [sum(ratio <= 1 for ratio in each) for each in (ratios, as_whole)]
        rows.append([name, len(found), *spread(ratios), *below, *rejections(found, True)])
    return table([*header, *(f"{rule} accepts" for rule in RULES)], rows)


def network_table(results: Sequence[Result]) -> list[str]:
    """A row for each network: the ratio of every runtime."""
    ran = [result for result in results if result.group in ("runtime", "wrong runtime")]
    names = list(dict.fromkeys(result.name for result in ran))
    rows = []
    for network in dict.fromkeys(result.network for result in ran):
        ratios = {result.name: result.ratio for result in ran if result.network == network}
        cells = (ratios.get(name) for name in names)
        rows.append([network, *("-" if ratio is None else number(ratio) for ratio in cells)])
    return table(["network", *names], rows)


def section(measured: Mapping[str, Any]) -> str:
    """Makes what stands between the markers of the document.

    Args:
        measured: What the JSON file holds.

    Returns:
        Markdown.
    """
    results = [Result.from_json(fields) for fields in measured["results"]]
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    unseen = [result for result in results if result.group in WRONG and result.ratio is not None and result.ratio <= 1]
    faint = sorted((r for r in results if r.group in WRONG and r.ratio is not None and r.ratio > 1), key=lambda r: r.ratio or 0)
    failures = [result for result in results if result.group in RIGHT and result.ratio is None]
    lines = [
        f"Measured on {measured['date']} with {versions}; {measured['machine']}, images {measured['images']}.",
        "",
        *right_table(results),
        "",
        *wrong_table(results, measured["small"]),
        "",
        "The faintest of the wrong results: "
        + "; ".join(f"{each.name} in {each.network} at {number(each.ratio or 0)}" for each in faint[:FAINTEST])
        + ".",
    ]
    if unseen:
        names = (f"{each.name} in {each.network} at {number(each.ratio or 0)}" for each in unseen)
        lines += ["", "Below 1: " + "; ".join(names) + "."]
    if failures:
        names = (f"{each.name} on {each.network} ({each.note})" for each in failures)
        lines += ["", "Not judged: " + "; ".join(names) + "."]
    return "\n".join([*lines, "", *network_table(results)])


def between_markers(document: str, text: str) -> str:
    """Replaces what stands between the markers.

    Args:
        document: Has both markers.
        text: What is to stand there.

    Returns:
        The new document.
    """
    head, found, rest = document.partition(MARKERS[0])
    _, until, tail = rest.partition(MARKERS[1])
    if not (found and until):
        raise CheckFailed(f"The document has no place for the tables: it needs the lines {' and '.join(MARKERS)}.")
    return f"{head}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{tail}"


def write_json(measured: Mapping[str, Any], path: Path) -> None:
    """Writes the results, one in a line."""
    fields = dict(measured)
    results = ",\n".join(json.dumps(fields) for fields in fields.pop("results"))
    with new_file(path) as partial:
        partial.write_text(json.dumps(fields, indent=1).removesuffix("\n}") + f',\n "results": [\n{results}\n]\n}}\n')


def measure_all(networks: Iterable[Network], mutated: Sequence[str], size: int | None) -> dict[str, Any]:
    """Measures everything.

    Args:
        networks: Those that runtimes run.
        mutated: Those that mutants are planted in, beside the small ones.
        size: Pixels of the zoo's images, None for each network's own.

    Returns:
        What the JSON file holds.
    """
    name_absent()
    results = hear_mutants(mutated)
    small = sorted({result.network for result in results} - set(mutated))
    for network in networks:
        say(f"running {network.name}")
        results += measure(network)
    made = collect("", "host")
    versions = dict(made.versions)
    for name in ("openvino", "onnxslim", "onnxoptimizer"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": f"{made.date:%Y-%m-%d}",
        "machine": made.target,
        "versions": versions,
        "images": "of full size" if size is None else f"of {size} pixels",
        "inputs": list(NETWORK_KINDS),
        "small": small,
        "results": [result.to_json() for result in results],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file, makes the tables.

    Returns:
        1 where a right result is above its tolerance, or a wrong one below or not named; 0 otherwise.
    """
    names = [entry.name for entry in ENTRIES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.onnx", help="further networks, their shapes fixed")
    parser.add_argument("--zoo", nargs="*", choices=names, default=names, metavar="NAME", help="of the zoo; all where absent")
    parser.add_argument("--size", type=int, help="pixels of the zoo's images; each network's own where absent")
    parser.add_argument("--trained", type=Path, default=TRAINED, help="folder of the trained networks; downloaded where empty")
    parser.add_argument("--mutated", nargs="*", choices=names, default=list(MUTATED), metavar="NAME", help="networks of mutants")
    parser.add_argument("--json", type=Path, default=JSON, help="where the numbers are written")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where the tables are")
    parser.add_argument("--tables-only", action="store_true", help="make the tables from the numbers that are there")
    chosen = parser.parse_args(arguments)
    if not chosen.tables_only:
        networks = [zoo_network(entry, chosen.size) for entry in ENTRIES if entry.name in chosen.zoo]
        networks += [*trained_networks(chosen.trained), *(Network(file.stem, file) for file in chosen.files)]
        write_json(measure_all(networks, chosen.mutated, chosen.size), chosen.json)
    measured = json.loads(chosen.json.read_text())
    text = between_markers(chosen.document.read_text(), section(measured))
    with new_file(chosen.document) as partial:
        partial.write_text(text)
    results = [Result.from_json(fields) for fields in measured["results"]]
    wrong_side = [result for result in results if result.on_wrong_side]
    for result in wrong_side:
        say(f"on the wrong side: {result.group} {result.name} of {result.network}, ratio {number(result.ratio or 0)}")
    return 1 if wrong_side else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SepwiseError as error:
        sys.exit(f"verification: {error}")
