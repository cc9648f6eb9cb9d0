"""Strategies by kind of workload: visible lists, in the order in which ties are broken.

A new strategy is a file in this folder and one line in a list below, `"file.Class"`: it is imported by that name, so that
nothing else names it, and a wrong line is an error as soon as this package is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sepwise.lowering.strategies.base import Implementation, Refusal, Strategy
from sepwise.lowering.workload import ConvWorkload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sepwise.lowering.program import KernelCall
    from sepwise.lowering.strategies.base import AnyStrategy
    from sepwise.lowering.workload import LinearWorkload
    from sepwise.passes.equivalence.winograd import Winograd

__all__ = [
    "CONV_STRATEGIES",
    "LINEAR_STRATEGIES",
    "PLAIN_STRATEGIES",
    "Implementation",
    "Refusal",
    "algorithm_of",
    "is_direct",
    "load_strategies",
    "strategies_for",
    "transformed_nodes",
]


def load_strategies(*entries: str) -> list[AnyStrategy]:
    """Imports strategies of this package.

    Args:
        entries: `"file.Class"`, each a class whose instances need no arguments.

    Returns:
        One instance of each, in the same order.

    Raises:
        ImportError: There is no such file or class, or the class is no strategy.

    Example:
        >>> [strategy.name for strategy in load_strategies("dense.DenseStrategy")]
        ['dense']
    """
    strategies: list[AnyStrategy] = []
    for entry in entries:
        module, _, name = entry.rpartition(".")
        try:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ImportError(f"Strategy '{entry}': {error}; list it as 'file.Class' of {__name__}.") from error
        missing = [
            member
            for member in (*Strategy.__annotations__, *vars(Strategy))
            if not member.startswith("_") and not hasattr(found, member)
        ]
        if missing:
            raise ImportError(f"Strategy '{entry}': it has no {', '.join(missing)}; every strategy has all of base.Strategy.")
        strategies.append(found())
    return strategies


CONV_STRATEGIES: list[AnyStrategy] = load_strategies(
    "inverted.InvertedStrategy",
    "separable.SeparableStrategy",
    "scalable_pointwise.ScalablePointwiseStrategy",
    "scalable_depthwise.ScalableDepthwiseStrategy",
    "scalable_dense.ScalableDenseStrategy",
    "pointwise.PointwiseStrategy",
    "depthwise_tile.DepthwiseTileStrategy",
    "depthwise.DepthwiseStrategy",
    "dense.DenseStrategy",
    "winograd.Winograd2Strategy",
    "winograd.Winograd4Strategy",
    "group_wise.GroupWiseStrategy",
    "grouped.GroupedStrategy",
)

PLAIN_STRATEGIES: list[AnyStrategy] = load_strategies(
    "plain_depthwise.PlainDepthwiseStrategy",
)
"""Of convolutions that write plain tensors."""

LINEAR_STRATEGIES: list[AnyStrategy] = load_strategies(
    "linear.LinearStrategy",
)


def strategies_for(workload: ConvWorkload | LinearWorkload) -> list[AnyStrategy]:
    """Lists the strategies for a kind of workload.

    Args:
        workload: A chain of convolutions or a matrix product.

    Returns:
        The visible list, whether or not each applies.
    """
    if not isinstance(workload, ConvWorkload):
        return LINEAR_STRATEGIES
    return CONV_STRATEGIES if workload.output_lanes else PLAIN_STRATEGIES


def is_direct(name: str) -> bool:
    """Tells whether a strategy is direct (see `base.Strategy`).

    Args:
        name: The strategy, as calls name it.

    Returns:
        What it says of itself; False for what is no strategy of this package, as the generic schedule.
    """
    return any(strategy.direct for strategy in (*CONV_STRATEGIES, *PLAIN_STRATEGIES, *LINEAR_STRATEGIES) if strategy.name == name)


def algorithm_of(name: str) -> Winograd | None:
    """Tells by which transformed tiles a strategy convolves, on which the bound of its rounding depends.

    Args:
        name: The strategy, as calls name it.

    Returns:
        Its `algorithm`; None where it has none.
    """
    return next((getattr(strategy, "algorithm", None) for strategy in CONV_STRATEGIES if strategy.name == name), None)


def transformed_nodes(calls: Iterable[KernelCall]) -> dict[str, int]:
    """Finds the nodes that kernels compute by Winograd's algorithm, convolutions and what follows them.

    Args:
        calls: Of a Program.

    Returns:
        m of F(m x m, 3 x 3) by the node's name.
    """
    algorithms = [(call, algorithm_of(call.strategy)) for call in calls]
    return {node: found.outputs for call, found in algorithms if found is not None for node in call.nodes}
