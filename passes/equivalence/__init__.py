"""Tells whether two ONNX graphs compute the same, and whether an execution of one is right.

Needs neither TVM nor torch, and imports in a fraction of a second.

    Oracle                   what a model means, in float64
    constant_rounding_sigma  tolerance between two graphs            -> compare_graph, and part by part compare_parts
    execution_sigma          tolerance of a whole execution          -> compare_execution
    run_with_bounds          rigorous bound of one kernel's result   -> compare_kernel
    extract, sample_inputs   a part of a model as a model, and what to feed it
    Stress                   what to feed a kernel or a part by itself
    bisect_graphs            the operators that two graphs differ in   -> Reproducer
"""

from sepwise.passes.equivalence.agreement import Agreement, compare_answers
from sepwise.passes.equivalence.bisection import bisect_graphs, reduce_inputs
from sepwise.passes.equivalence.branches import compare_branches
from sepwise.passes.equivalence.compare import (
    HISTOGRAM_EDGES,
    Check,
    GraphReference,
    Margin,
    compare_execution,
    compare_graph,
    compare_kernel,
    settle,
    worst_check,
)
from sepwise.passes.equivalence.extract import extract
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.parts import compare_parts
from sepwise.passes.equivalence.precision import compare_precision
from sepwise.passes.equivalence.reproducer import Reproducer
from sepwise.passes.equivalence.running_error import run_with_bounds
from sepwise.passes.equivalence.sample import EMULATED_NETWORK_KINDS, KINDS, NETWORK_KINDS, sample_inputs
from sepwise.passes.equivalence.stress import STRESSES, Stress
from sepwise.passes.equivalence.tolerances import constant_rounding_sigma, execution_sigma
from sepwise.passes.equivalence.verification import Verification

__all__ = [
    "EMULATED_NETWORK_KINDS",
    "HISTOGRAM_EDGES",
    "KINDS",
    "NETWORK_KINDS",
    "STRESSES",
    "Agreement",
    "Check",
    "GraphReference",
    "Margin",
    "Oracle",
    "Reproducer",
    "Stress",
    "Verification",
    "bisect_graphs",
    "compare_answers",
    "compare_branches",
    "compare_execution",
    "compare_graph",
    "compare_kernel",
    "compare_parts",
    "compare_precision",
    "constant_rounding_sigma",
    "execution_sigma",
    "extract",
    "reduce_inputs",
    "run_with_bounds",
    "sample_inputs",
    "settle",
    "worst_check",
]
