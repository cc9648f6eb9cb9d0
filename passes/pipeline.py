"""The pass pipeline: from a model as it came in to fused operators, with a report of every pass."""

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from sepwise.passes.canonical_form import canonicalize
from sepwise.passes.chains import family
from sepwise.passes.convert_float16 import ConvertFloat16Pass
from sepwise.passes.fold_affine import FoldAffinePass
from sepwise.passes.fold_batch_norm import FoldBatchNormPass
from sepwise.passes.fold_pad import FoldPadPass
from sepwise.passes.fold_transpose import FoldTransposePass
from sepwise.passes.fuse_activation import FuseActivationPass
from sepwise.passes.fuse_residual import FuseResidualPass
from sepwise.passes.group_separable import GroupSeparablePass
from sepwise.passes.inline_functions import InlineFunctionsPass
from sepwise.passes.recognise_activation import RecogniseActivationPass
from sepwise.passes.rewriting import RewriteResult
from sepwise.passes.sink_transpose import SinkTransposePass

__all__ = ["FuseReport", "PassReport", "fuse"]

AnyPass = (
    SinkTransposePass
    | FoldTransposePass
    | FoldPadPass
    | RecogniseActivationPass
    | FoldBatchNormPass
    | FoldAffinePass
    | ConvertFloat16Pass
    | FuseActivationPass
    | FuseResidualPass
    | GroupSeparablePass
)


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one model.

    Attributes:
        name: The pass, by the stem of its file.
        fired: Number of rewrites.
        refused: What it looked at and left alone, and why: pairs (node name, reason).
    """

    name: str
    fired: int
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class FuseReport:
    """The fused model and how it came about.

    Attributes:
        model: The result, a model of its own.
        passes: One report for each pass, in order.
        operators: Number of fused operators by family, and of all other operators, after the passes.
        stages: The name of each pass that changed something with the model after it, if they were asked for.
    """

    model: ir.Model
    passes: tuple[PassReport, ...]
    operators: dict[str, int]
    stages: tuple[tuple[str, ir.Model], ...] = field(default=(), repr=False)


def fuse(model: ir.Model, *, inline: bool = False, float16: bool = False, keep_stages: bool = False) -> FuseReport:
    """Runs all passes over a copy of a model.

    Recognition precedes the folding of constants, which would otherwise take the first Add of a spelled-out activation
    into a bias. Batch norms and constants are folded in turns, as one can stand behind the other. What is folded is rounded to
    float16 once, so the conversion comes after it.

    Args:
        model: Left as it is; its input shapes must be fixed (see `load_model`).
        inline: Write plain ONNX nodes instead of function calls, for tools that read no functions.
        float16: Convert what it is good for to float16 (see `ConvertFloat16Pass`); inputs and outputs stay as they are.
        keep_stages: Keep a copy of the model after each pass, for verification pass by pass.

    Returns:
        The fused model and the report.

    Raises:
        InputError: If the model cannot be canonicalized.

    Example:
        >>> report = fuse(load_model("mobilenet_v2.onnx"))  # doctest: +SKIP
        >>> report.operators["InvertedResidual"]  # doctest: +SKIP
        16
    """
    fused = canonicalize(model)
    reports: dict[str, PassReport] = {}
    stages: list[tuple[str, ir.Model]] = [("canonicalize", fused.clone())] if keep_stages else []

    def run(*passes: AnyPass) -> int:
        total = 0
        for step in passes:
            result = step(fused)
            assert isinstance(result, RewriteResult), "all of our passes report what fired"
            before = reports.get(step.name)
            fired = result.fired + (before.fired if before else 0)
            reports[step.name] = PassReport(step.name, fired, tuple((refusal.node, refusal.reason) for refusal in result.refused))
            total += result.fired
            if keep_stages and result.modified:
                stages.append((step.name, fused.clone()))
        return total

    run(SinkTransposePass(), FoldTransposePass(), FoldPadPass(), RecogniseActivationPass())
    while run(FoldBatchNormPass(), FoldAffinePass()):
        pass
    if float16:
        run(ConvertFloat16Pass())
    run(FuseActivationPass(), FuseResidualPass(), GroupSeparablePass())
    operators = Counter(family(node) or node.op_type.split("_")[0] for graph in fused.graphs() for node in graph)
    if inline:
        InlineFunctionsPass()(fused)
        if keep_stages:
            stages.append(("inline_functions", fused.clone()))
    return FuseReport(fused, tuple(reports.values()), dict(operators), tuple(stages))
