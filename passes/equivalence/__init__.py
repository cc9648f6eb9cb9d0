"""Tells whether two ONNX graphs compute the same, and whether an execution of one is right.

Needs neither TVM nor torch, and imports in a fraction of a second. See `docs/verification.md` for the method.
"""

from sepwise.passes.equivalence.compare import (
    Check,
    GraphReference,
    compare_execution,
    compare_graph,
    compare_kernel,
)
from sepwise.passes.equivalence.extract import extract
from sepwise.passes.equivalence.oracle import Oracle
from sepwise.passes.equivalence.running_error import run_with_bounds
from sepwise.passes.equivalence.sample import KINDS, sample_inputs
from sepwise.passes.equivalence.tolerances import constant_rounding_sigma, execution_sigma

__all__ = [
    "KINDS",
    "Check",
    "GraphReference",
    "Oracle",
    "compare_execution",
    "compare_graph",
    "compare_kernel",
    "constant_rounding_sigma",
    "execution_sigma",
    "extract",
    "run_with_bounds",
    "sample_inputs",
]
