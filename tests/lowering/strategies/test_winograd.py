"""Convolution by transformed tiles against its bound in every tile; what it refuses, and where it is chosen."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from sepwise.lowering import device
from sepwise.lowering.selection import Selector
from sepwise.lowering.strategies import algorithm_of
from sepwise.lowering.strategies.base import Refusal
from sepwise.lowering.strategies.winograd import Winograd2Strategy, Winograd4Strategy, WinogradTile
from sepwise.lowering.workload import ConvWorkload, DTypes, Stage
from sepwise.passes.vocabulary import Activation

STRATEGIES = (Winograd2Strategy(), Winograd4Strategy())
RELU6 = Activation("clip", (0.0, 6.0))


def square(spatial: tuple[int, int], in_channels: int, out_channels: int, lanes: int, **changes: Any) -> ConvWorkload:
    given: dict[str, Any] = {"pads_begin": (1, 1), "pads_end": (1, 1), "strides": (1, 1), "dilations": (1, 1), "groups": 1}
    residual, batch = changes.pop("residual", False), changes.pop("batch", 1)
    stage = Stage(in_channels, out_channels, kernel=changes.pop("kernel", (3, 3)), activation=RELU6, **{**given, **changes})
    return ConvWorkload(batch, spatial, (stage,), residual, None, lanes, lanes)


def workloads(draws: SimpleNamespace, lanes: int) -> st.SearchStrategy[ConvWorkload]:
    @st.composite
    def build(draw: st.DrawFn) -> ConvWorkload:
        begins, ends = (tuple(draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))) for _ in range(2))
        least = [max(1, 3 - begin - end) for begin, end in zip(begins, ends, strict=True)]
        spatial = tuple(draw(st.integers(low, 11)) for low in least)
        stage = Stage(
            *(draw(draws.channels(lanes)) for _ in range(2)), 1, (3, 3), (1, 1), begins, ends, (1, 1), draw(draws.activations)
        )
        workload: ConvWorkload = draw(draws.chain(spatial, [stage], lanes))
        return workload

    return build()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_drawn_kernels(
    strategy: Any, explore: Callable[..., None], draws: SimpleNamespace, check_native: Callable[..., None], target: device.Device
) -> None:
    cases = draws.batch_of_cases(workloads(draws, target.lanes), strategy, target, 2)
    explore(cases, lambda drawn: check_native(drawn, target))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_every_tile(
    strategy: Any,
    make_case: Callable[..., Any],
    check_native: Callable[..., None],
    drawn_tiles: Callable[..., Any],
    target: device.Device,
) -> None:
    lanes = target.lanes
    workload = square((9, 11), lanes + 1, 2 * lanes + 3, lanes, residual=True, pads_begin=(2, 0), pads_end=(0, 3))
    tiles = strategy.tiles(workload, target, 1)
    assert {tile.rows for tile in tiles} >= {1, 2}
    assert {tile.columns for tile in tiles} >= {1, 2}
    assert {tile.oc_vectors for tile in tiles} == {1, 2, 3}
    some = drawn_tiles(tiles)
    check_native([make_case(workload, strategy, tile) for tile in some[:: max(1, len(some) // 4)]], target)


def test_tiles_fit_every_device(every_device: dict[str, device.Device], check_tiles: Callable[..., None]) -> None:
    for each in every_device.values():
        for strategy in STRATEGIES:
            for spatial, channels in (((56, 56), 64), ((7, 7), 512), ((1, 5), 7)):
                check_tiles(strategy, square(spatial, channels, channels, each.lanes), each)


def test_transformed_inputs_stay_in_the_second_level_cache(every_device: dict[str, device.Device]) -> None:
    for each in every_device.values():
        for strategy in STRATEGIES:
            workload = square((224, 224), 64, 64, each.lanes)
            nbytes = strategy.algorithm.size**2 * 64 * each.lane_bytes
            for tile in strategy.tiles(workload, each, 1):
                assert tile.rows * tile.columns == 1 or nbytes * tile.rows * tile.columns <= each.l2_bytes


def test_chosen_where_channels_are_many_enough() -> None:
    """Transforms cost as many operations a channel as products save, where channels are few."""
    for name in ("cortex-a72", "cortex-a55", "neoverse-n1", "x86-64-v3"):
        target = device.get(name)
        selector = Selector(target, 1)
        wide = selector.choose(square((56, 56), 64, 64, target.lanes))
        narrow = selector.choose(square((56, 56), 1, 4, target.lanes))
        assert not isinstance(wide, list)
        assert not isinstance(narrow, list)
        assert wide.strategy.name == "winograd 4x4", name
        assert narrow.strategy.name == "dense", name


def test_weights_are_cold_where_level_3_does_not_hold_a_network() -> None:
    """What F(4 x 4) has more of them than direct convolution, 27 of 36, comes from memory, or else from level 3."""
    small = replace(device.get("x86-64-v3"), l3_bytes=32 << 20)
    workload, tile, strategy = square((7, 7), 64, 64, small.lanes), WinogradTile(2, 2, 4, 1), Winograd4Strategy()
    cold, warm = (strategy.predicted_cycles(workload, each, 1, tile) for each in (small, replace(small, l3_bytes=256 << 20)))
    assert cold - warm == pytest.approx(27 * 64 * 64 * 4 * (4 - 1) / small.memory_bytes_per_cycle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel": (3, 2)}, "not 3 x 3 with stride 1"),
        ({"strides": (1, 2)}, "not 3 x 3 with stride 1"),
        ({"dilations": (2, 2)}, "not 3 x 3 with stride 1"),
        ({"groups": 2}, "not 3 x 3 with stride 1"),
        ({"phase": True}, "phases of a transposed convolution"),
    ],
)
def test_refuses_other_stages(changes: dict[str, Any], reason: str) -> None:
    v3 = device.get("x86-64-v3")
    for strategy in STRATEGIES:
        refusal = strategy.applies(square((8, 8), 16, 16, 8, **changes), v3)
        assert isinstance(refusal, Refusal)
        assert refusal.reason.startswith(reason)


def test_refuses_devices_without_a_second_level_cache() -> None:
    m7 = device.get("cortex-m7")
    for strategy in STRATEGIES:
        assert isinstance(strategy.applies(square((8, 8), 16, 16, m7.lanes), m7), Refusal)


def test_refuses_other_workloads() -> None:
    v3 = device.get("x86-64-v3")
    one = square((8, 8), 16, 16, 8)
    for strategy in STRATEGIES:
        assert strategy.applies(one, v3) is None
        assert strategy.applies(replace(one, stages=one.stages * 2), v3) == Refusal("one convolution at a time")
        assert strategy.applies(replace(one, input_lanes=0), v3) == Refusal("input and output are packed differently")
        assert isinstance(strategy.applies(replace(one, dtypes=DTypes.all("float16")), v3), Refusal)


def test_tiles_divide_their_task() -> None:
    with pytest.raises(AssertionError):
        WinogradTile(3, 3, 2, 1)


def test_strategies_name_their_algorithm() -> None:
    assert [algorithm_of(strategy.name) for strategy in STRATEGIES] == [strategy.algorithm for strategy in STRATEGIES]
    assert algorithm_of("dense") is None
    assert not any(strategy.direct for strategy in STRATEGIES)


def test_weights_are_transformed_in_float64() -> None:
    """Rounded once: as near to the exact ones as the type allows."""
    v3 = device.get("x86-64-v3")
    workload = square((8, 8), 3, 8, 8)
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    for strategy in STRATEGIES:
        packed, _ = strategy.schedule(workload, v3, strategy.tiles(workload, v3, 1)[0]).pack([(weight, np.zeros(8, np.float32))])
        g = strategy.algorithm.weight_transform
        exact = np.einsum("ai,ocij,bj->abco", g, weight.astype(np.float64), g).reshape(-1, 3, 8)
        np.testing.assert_array_equal(packed.reshape(-1, 3, 8), exact.astype(np.float32))


@pytest.mark.emulated
def test_emulated_kernels(make_case: Callable[..., Any], check_emulated: Callable[..., None], emulated: SimpleNamespace) -> None:
    drawn = [square((9, 10), 6, 9, 4, residual=True), square((5, 4), 4, 8, 4, batch=2, pads_begin=(0, 2), pads_end=(3, 0))]
    cases = []
    for workload in map(emulated.typed, drawn):
        for strategy in STRATEGIES:
            if workload.dtypes != DTypes():
                assert isinstance(strategy.applies(workload, emulated.device), Refusal)
                continue
            tiles = strategy.tiles(workload, emulated.device, 1)
            cases += [make_case(workload, strategy, tile) for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1])]
    if cases:
        check_emulated(cases, emulated.device)
