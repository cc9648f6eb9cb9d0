"""Decides whether a rewritten graph has types with enough digits to be an execution of the original.

Graphs are compared in float64, where a cast to float16 and back changes nothing, and a runtime may drop such a pair or have no
kernel for it. So where a rewritten graph has values in a format with fewer digits than any of the original's, what its own types
round (sigma_x of the rewritten graph) is set against what an execution of the original may be off by at any element,
16 sigma_x: beyond that it cannot pass for one.
"""

import numpy as np

from sepwise.passes.equivalence.compare import ELEMENTWISE_SIGMAS, Check, GraphReference, root_mean_square, worst_check
from sepwise.passes.equivalence.formats import BINARY32
from sepwise.passes.equivalence.graph import Array, Graph, Model
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.tolerances import execution_sigma

__all__ = ["compare_precision"]

MOST_NAMED = 3
"""Nodes that a message names."""


def compare_precision(reference: GraphReference, rewritten: Model) -> list[Check]:
    """Compares what the types of two models round; see the module.

    Args:
        reference: the original and its inputs.
        rewritten: a model that computes the same in float64.

    Returns:
        One check per floating-point output, named after it, with the nodes of the format with the fewest digits; none where
        the rewritten model has no format with fewer digits than all of the original's.

    Raises:
        UnsupportedError: if an operator's rounding is not known.
    """
    oracle = Oracle(rewritten)
    coarse = _coarsest(oracle.graph)
    if coarse <= _coarsest(reference.oracle.graph):
        return []
    nodes = tuple(op.name or op.outputs[0] for op in oracle.graph.operations if op.format.unit == coarse)
    sigmas = [execution_sigma(oracle, feeds) for feeds in reference.inputs]
    checks = []
    for name, first in reference.outputs[0].items():
        if first.dtype.kind == "f":
            pairs = zip(sigmas, reference.execution_sigma(), strict=True)
            checks.append(worst_check([_judge(name, nodes, own[name], right[name]) for own, right in pairs]))
    return checks


def _coarsest(graph: Graph) -> float:
    """The largest unit of rounding of a graph's values, constants aside: those are numbers, however they are stored."""
    units = (each.unit for name, each in graph.formats.items() if name not in graph.constants)
    return max(units, default=BINARY32.unit)


def _judge(name: str, nodes: tuple[str, ...], own: Array, right: Array) -> Check:
    known = np.isfinite(right)
    rounds = root_mean_square([np.where(np.isnan(own), np.inf, own)[known]])  # NaN where an execution may overflow
    allowed = ELEMENTWISE_SIGMAS * root_mean_square([right[known]])
    ratio = rounds / allowed if allowed else (None if rounds else 0.0)
    passed = rounds <= allowed
    some = ", ".join(nodes[:MOST_NAMED]) + (f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else "")
    size = f"round by {rounds:.3g}" if np.isfinite(rounds) else "overflow"
    reason = f"its types {size}, where an execution of the original is off by {allowed:.3g} at most: fewest digits have {some}"
    return Check(
        "graph",
        f"precision of {name}",
        nodes,
        "passed" if passed else "failed",
        rounds,
        allowed,
        ratio if ratio is None or np.isfinite(ratio) else None,
        None,
        rms_error=rounds,
        rms_bound=allowed,
        rms_ratio=ratio,
        reason="" if passed else reason,
    )
