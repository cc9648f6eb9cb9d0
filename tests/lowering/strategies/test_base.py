"""What every implementation in the visible lists keeps of the contract."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from sepwise.lowering.device import Device
from sepwise.lowering.strategies import CONV_STRATEGIES, LINEAR_STRATEGIES, PLAIN_STRATEGIES, strategies_for
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.strategies.dense import DenseStrategy
from sepwise.lowering.strategies.group_wise import GroupWiseStrategy
from sepwise.lowering.strategies.grouped import GroupedStrategy
from sepwise.lowering.strategies.inverted import NEAR_FASTEST_CHAIN, InvertedStrategy
from sepwise.lowering.strategies.separable import SeparableStrategy
from sepwise.lowering.strategies.tiles import NEAR_FASTEST
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes.vocabulary import Activation

RANKED_BY_STAGING = {
    DenseStrategy.name: NEAR_FASTEST,
    GroupedStrategy.name: NEAR_FASTEST,
    GroupWiseStrategy.name: NEAR_FASTEST,
    SeparableStrategy.name: NEAR_FASTEST,
    InvertedStrategy.name: NEAR_FASTEST_CHAIN,
}


def stage(in_channels: int, out_channels: int, groups: int, kernel: int) -> Stage:
    border = (kernel // 2, kernel // 2)
    size, one = (kernel, kernel), (1, 1)
    return Stage(in_channels, out_channels, groups, size, one, border, border, one, Activation("relu"))


def chain(lanes: int, *stages: Stage) -> ConvWorkload:
    return ConvWorkload(1, (6, 6), stages, False, None, lanes, lanes)


def workloads(device: Device) -> list[ConvWorkload | LinearWorkload]:
    """One of each kind that some strategy is for, of plain tensors on ARM's vectors alone."""
    lanes = device.lanes
    channels = max(lanes, 4)
    depthwise, pointwise = stage(channels, channels, channels, 3), stage(channels, 2 * channels, 1, 1)
    return [
        chain(lanes, stage(channels, channels, 1, 3)),
        chain(lanes, depthwise),
        chain(lanes, stage(channels, channels, channels // 2, 3)),
        chain(lanes, pointwise),
        chain(lanes, depthwise, pointwise),
        chain(lanes, replace(pointwise, out_channels=channels), depthwise, pointwise),
        *([replace(chain(0, depthwise), spatial=(6, 2 * lanes))] if device.isa == "arm" and lanes > 1 else []),
        LinearWorkload(1, 40, 24),
    ]


def test_names_are_unique() -> None:
    names = [strategy.name for strategy in (*CONV_STRATEGIES, *PLAIN_STRATEGIES, *LINEAR_STRATEGIES)]
    assert len(set(names)) == len(names)


def test_a_strategy_of_every_kind_applies(every_device: Mapping[str, Device]) -> None:
    used: set[str] = set()
    for device in every_device.values():
        for workload in workloads(device):
            answers = {strategy.name: strategy.applies(workload, device) for strategy in strategies_for(workload)}
            assert all(answer is None or (isinstance(answer, Refusal) and answer.reason) for answer in answers.values())
            assert None in answers.values(), (device.name, workload.key, answers)
            used |= {name for name, answer in answers.items() if answer is None}
    assert used == {strategy.name for strategy in (*CONV_STRATEGIES, *PLAIN_STRATEGIES, *LINEAR_STRATEGIES)}


def test_tiles_of_every_strategy(every_device: Mapping[str, Device], check_tiles: Callable[..., None]) -> None:
    for device in every_device.values():
        for workload in workloads(device):
            for strategy in strategies_for(workload):
                if strategy.applies(workload, device) is None:
                    check_tiles(strategy, workload, device, RANKED_BY_STAGING.get(strategy.name, 1.0))
                    tile = strategy.tiles(workload, device, 1)[0]
                    with pytest.raises(FrozenInstanceError):
                        setattr(tile, fields(tile)[0].name, 1)


def weights_of(workload: ConvWorkload | LinearWorkload) -> list[tuple[np.ndarray, np.ndarray]]:
    """A weight and a bias for each stage, as ONNX has them."""
    if isinstance(workload, LinearWorkload):
        shapes = [(workload.out_features, workload.in_features)]
    else:
        shapes = [(each.out_channels, each.in_channels_per_group, *each.kernel) for each in workload.stages]
    return [(np.ones(shape, np.float32), np.ones(shape[0], np.float32)) for shape in shapes]


def without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """What a shape says of the order of elements."""
    return tuple(size for size in shape if size != 1)


def test_packed_constants_are_the_functions_parameters(every_device: Mapping[str, Device]) -> None:
    """Inputs come before them, the output behind."""
    device = every_device["cortex-a72"]
    for workload in workloads(device):
        for strategy in strategies_for(workload):
            if strategy.applies(workload, device) is None:
                made = strategy.schedule(workload, device, strategy.tiles(workload, device, 1)[0])
                assert isinstance(made, Implementation)
                declared = [without_ones(int(size) for size in parameter.ty.shape) for parameter in made.function.params]
                packed = [without_ones(constant.shape) for constant in made.pack(weights_of(workload))]
                assert packed == declared[1:-1], strategy.name
