"""Strategies by kind of workload: plain lists, in the order in which ties are broken.

A new strategy is a file in this folder and a line in a list below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.dense import DenseStrategy
from sepwise.lowering.strategies.depthwise import DepthwiseStrategy
from sepwise.lowering.strategies.linear import LinearStrategy
from sepwise.lowering.strategies.pointwise import PointwiseStrategy
from sepwise.lowering.strategies.separable import SeparableStrategy
from sepwise.lowering.workload import ConvWorkload

if TYPE_CHECKING:
    from sepwise.lowering.strategies.base import AnyStrategy
    from sepwise.lowering.workload import LinearWorkload

__all__ = ["CONV_STRATEGIES", "LINEAR_STRATEGIES", "Implementation", "Refusal", "strategies_for"]

CONV_STRATEGIES: list[AnyStrategy] = [
    SeparableStrategy(),
    PointwiseStrategy(),
    DepthwiseStrategy(),
    DenseStrategy(),
]

LINEAR_STRATEGIES: list[AnyStrategy] = [LinearStrategy()]


def strategies_for(workload: ConvWorkload | LinearWorkload) -> list[AnyStrategy]:
    """Lists the strategies for a kind of workload.

    Args:
        workload: A chain of convolutions or a matrix product.

    Returns:
        The visible list, whether or not each applies.
    """
    return CONV_STRATEGIES if isinstance(workload, ConvWorkload) else LINEAR_STRATEGIES
