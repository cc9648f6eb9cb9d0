"""Choice of strategy, tile and fusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sepwise.lowering import device, selection
from sepwise.lowering.selection import Choice, Selector, spell_cut, structure_key
from sepwise.lowering.strategies import CONV_STRATEGIES, LINEAR_STRATEGIES, PLAIN_STRATEGIES, strategies_for
from sepwise.lowering.strategies.base import Implementation, Refusal
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes.errors import UnsupportedError
from sepwise.passes.vocabulary import Activation

V3 = device.get("x86-64-v3")
RELU = Activation("relu")


def depthwise(channels: int, stride: int = 1) -> Stage:
    return Stage(channels, channels, channels, (3, 3), (stride,) * 2, (1, 1), (1, 1), (1, 1), RELU)


def pointwise(in_channels: int, out_channels: int) -> Stage:
    return Stage(in_channels, out_channels, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), RELU)


def chain(*stages: Stage, spatial: tuple[int, ...] = (14, 14), residual: bool = False) -> ConvWorkload:
    return ConvWorkload(1, spatial, stages, residual, RELU if residual else None, 8, 8)


@dataclass(frozen=True)
class FakeTile:
    def fits(self, target: device.Device) -> bool:
        return True


@dataclass
class FakeStrategy:
    """Takes chains of given lengths, at given cycles."""

    name: str
    cycles: dict[int, float]
    asked: int = 0

    def applies(self, workload: ConvWorkload, target: device.Device) -> Refusal | None:
        self.asked += 1
        return None if len(workload.stages) in self.cycles else Refusal(f"{self.name} takes no {len(workload.stages)}")

    def tiles(self, workload: ConvWorkload, target: device.Device, threads: int) -> list[FakeTile]:
        return [FakeTile()]

    def predicted_cycles(self, workload: ConvWorkload, target: device.Device, threads: int, tile: FakeTile) -> float:
        return self.cycles[len(workload.stages)]

    def schedule(self, workload: ConvWorkload, target: device.Device, tile: FakeTile) -> Implementation:
        raise NotImplementedError


Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Gives a function that replaces the list of strategies, and reading and writing tensors costs nothing."""

    def replace_with(*strategies: FakeStrategy) -> None:
        monkeypatch.setattr(selection, "strategies_for", lambda workload: list(strategies))
        monkeypatch.setattr(selection, "stream_cycles", lambda target, nbytes: 0.0)

    return replace_with


def lengths(parts: Sequence[ConvWorkload]) -> list[int]:
    return [len(part.stages) for part in parts]


def test_each_kind_of_workload_has_its_list() -> None:
    assert strategies_for(chain(pointwise(8, 8))) is CONV_STRATEGIES
    assert strategies_for(LinearWorkload(1, 8, 8)) is LINEAR_STRATEGIES
    assert strategies_for(replace(chain(depthwise(3)), output_lanes=0)) is PLAIN_STRATEGIES
    names = [strategy.name for strategy in (*CONV_STRATEGIES, *PLAIN_STRATEGIES, *LINEAR_STRATEGIES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (pointwise(24, 40), {"pointwise", "dense"}),
        (depthwise(24), {"depthwise", "depthwise tile"}),
        (replace(pointwise(24, 40), pads_begin=(1, 1)), {"dense"}),
        (Stage(16, 32, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), {"dense", "winograd 2x2", "winograd 4x4"}),
        (Stage(16, 32, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), {"dense"}),
        (Stage(16, 20, 2, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), {"grouped", "group-wise"}),
        (Stage(16, 32, 16, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), {"grouped"}),
    ],
)
@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72", "cortex-a7"])
def test_single_convolutions(stage: Stage, names: set[str], target: str) -> None:
    there = device.get(target)
    workload = replace(chain(stage), input_lanes=there.lanes, output_lanes=there.lanes)
    choice = Selector(there, 1).choose(workload)
    assert isinstance(choice, Choice)
    assert choice.strategy.name in names
    assert choice.tile == choice.strategy.tiles(workload, there, 1)[0]


def test_a_matrix_product() -> None:
    choice = Selector(V3, 1).choose(LinearWorkload(1, 64, 10))
    assert isinstance(choice, Choice)
    assert choice.strategy.name == "linear"


def test_no_convolution_of_one_stage_is_refused() -> None:
    """Each kind, in whatever geometry, has a strategy on each device."""
    rng = np.random.default_rng(0)
    for name in device.names():
        target = device.get(name)
        selector = Selector(target, 1)
        for _ in range(60):
            groups, per_group, multiplier = (int(n) for n in rng.integers(1, 6, 3))
            kernel, strides, dilations = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(3))
            begin, end = (tuple(map(int, rng.integers(0, 4, 2))) for _ in range(2))
            stage = Stage(groups * per_group, groups * multiplier, groups, kernel, strides, begin, end, dilations)
            workload = ConvWorkload(1, (9, 9), (stage,), False, None, target.lanes, target.lanes)
            assert isinstance(selector.choose(workload), Choice), workload.key


def test_the_fewest_cycles_win(use: Use) -> None:
    slow, fast = FakeStrategy("slow", {1: 10.0}), FakeStrategy("fast", {1: 9.0})
    use(slow, fast)
    choice = Selector(V3, 1).choose(chain(pointwise(8, 8)))
    assert isinstance(choice, Choice)
    assert (choice.strategy, choice.cycles) == (fast, 9.0)


def test_a_tie_goes_to_the_first(use: Use) -> None:
    first, second = FakeStrategy("first", {1: 9.0}), FakeStrategy("second", {1: 9.0})
    use(first, second)
    choice = Selector(V3, 1).choose(chain(pointwise(8, 8)))
    assert isinstance(choice, Choice)
    assert choice.strategy is first


def test_every_refusal_is_kept(use: Use) -> None:
    use(FakeStrategy("a", {}), FakeStrategy("b", {}))
    assert Selector(V3, 1).choose(chain(pointwise(8, 8))) == [Refusal("a takes no 1"), Refusal("b takes no 1")]


def test_equal_workloads_are_chosen_for_once(use: Use) -> None:
    strategy = FakeStrategy("only", {1: 1.0})
    use(strategy)
    selector = Selector(V3, 1)
    assert selector.choose(chain(pointwise(8, 8))) is selector.choose(chain(pointwise(8, 8)))
    assert strategy.asked == 1


@pytest.mark.parametrize(
    ("cycles", "parts"),
    [
        ({1: 10.0, 2: 19.0, 3: 50.0}, [1, 2]),
        ({1: 10.0, 2: 21.0, 3: 31.0}, [1, 1, 1]),
        ({1: 10.0, 2: 21.0, 3: 29.0}, [3]),
        ({1: 10.0, 2: 12.0}, [1, 2]),
        ({2: 12.0, 1: 100.0, 3: 111.0}, [3]),
        ({1: 10.0}, [1, 1, 1]),
        ({3: 1e9}, [3]),
    ],
)
def test_a_chain_is_cut_where_it_pays(use: Use, cycles: dict[int, float], parts: list[int]) -> None:
    use(FakeStrategy("only", cycles))
    found = Selector(V3, 1).partition(chain(pointwise(8, 16), depthwise(16), pointwise(16, 8), residual=True))
    assert sorted(lengths(found)) == sorted(parts)
    assert sum(lengths(found)) == 3


def test_what_a_cut_chain_computes(use: Use) -> None:
    use(FakeStrategy("only", {1: 1.0}))
    whole = replace(chain(pointwise(8, 16), depthwise(16, 2), pointwise(16, 24), residual=True), input_lanes=0)
    first, second, third = Selector(V3, 1).partition(whole)
    assert [part.stages for part in (first, second, third)] == [(stage,) for stage in whole.stages]
    assert [part.spatial for part in (first, second, third)] == [(14, 14), (14, 14), (7, 7)]
    assert [part.residual for part in (first, second, third)] == [False, False, True]
    assert [part.post_activation for part in (first, second, third)] == [None, None, RELU]
    assert [part.input_lanes for part in (first, second, third)] == [0, 8, 8]
    assert [part.output_lanes for part in (first, second, third)] == [8, 8, 8]
    assert sum(part.macs for part in (first, second, third)) == whole.macs
    assert third.output_shape == whole.output_shape


def test_a_whole_chain_stays_as_it_is(use: Use) -> None:
    use(FakeStrategy("only", {3: 1.0}))
    whole = chain(pointwise(8, 16), depthwise(16), pointwise(16, 8), residual=True)
    assert Selector(V3, 1).partition(whole) == [whole]


def test_structures_are_what_strategies_compute(use: Use) -> None:
    use(FakeStrategy("only", {1: 1.0, 2: 1.0}))
    whole = chain(pointwise(8, 16), depthwise(16), pointwise(16, 8))
    assert Selector(V3, 1).cuts(whole) == [(1, 2), (2, 1), (1, 1, 1)]
    use(FakeStrategy("only", {1: 1.0, 3: 1.0}))
    assert Selector(V3, 1).cuts(whole) == [(3,), (1, 1, 1)]


@pytest.mark.parametrize("cut", [(1, 2), (2, 1), (1, 1, 1), (3,)])
def test_a_record_decides_the_structure(use: Use, cut: tuple[int, ...]) -> None:
    use(FakeStrategy("only", {1: 10.0, 2: 21.0, 3: 25.0}))
    whole = chain(pointwise(8, 16), depthwise(16), pointwise(16, 8), residual=True)
    found = Selector(V3, 1, {structure_key(whole): spell_cut(cut)}).partition(whole)
    assert tuple(lengths(found)) == cut
    assert [part.residual for part in found] == [False] * (len(cut) - 1) + [True]
    assert structure_key(whole) == "chain" + whole.key.removeprefix("conv")


def test_a_record_of_a_structure_that_nothing_computes_is_not_used(use: Use, caplog: pytest.LogCaptureFixture) -> None:
    use(FakeStrategy("only", {1: 10.0}))
    whole = chain(depthwise(16), pointwise(16, 8))
    found = Selector(V3, 1, {structure_key(whole): spell_cut((2,))}).partition(whole)
    assert lengths(found) == [1, 1]
    assert "no strategies compute 'structure kernel0=2' of it any more; not used" in caplog.text


def test_a_stage_that_nothing_computes_is_an_error(use: Use) -> None:
    use(FakeStrategy("a", {2: 1.0}), FakeStrategy("b", {}))
    whole = chain(pointwise(8, 16), depthwise(16), pointwise(16, 8))
    with pytest.raises(UnsupportedError, match=r"Convolution conv/n1x14x14/.*: no strategy computes it \(a takes no 1; b takes no 1"):
        Selector(V3, 1).partition(whole)


def test_a_cut_pays_for_its_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels write and read what one keeps to itself, so with equal arithmetic one wins."""
    monkeypatch.setattr(selection, "strategies_for", lambda workload: [FakeStrategy("only", {1: 100.0, 2: 200.0})])
    assert lengths(Selector(V3, 1).partition(chain(depthwise(16), pointwise(16, 16)))) == [2]


@pytest.mark.parametrize(("channels", "parts"), [(2, [1, 1]), (32, [2])])
@pytest.mark.parametrize("target", ["cortex-a72", "cortex-a7"])
def test_a_chain_of_few_channels_is_cut_where_plain_tensors_pay(target: str, channels: int, parts: list[int]) -> None:
    there = device.get(target)
    whole = chain(depthwise(channels), pointwise(channels, 16), spatial=(112, 112))
    whole = replace(whole, input_lanes=there.lanes, output_lanes=there.lanes)
    found = Selector(there, 1).partition(whole)
    assert lengths(found) == parts
    assert {(part.input_lanes, part.output_lanes) for part in found} == {(there.lanes, there.lanes)}


def test_real_chains_keep_their_stages() -> None:
    for name in device.names():
        target = device.get(name)
        for threads in (1, 4):
            selector = Selector(target, threads)
            whole = chain(pointwise(24, 144), depthwise(144, 2), pointwise(144, 32), residual=True, spatial=(28, 28))
            whole = replace(whole, input_lanes=target.lanes, output_lanes=target.lanes)
            parts = selector.partition(whole)
            assert tuple(stage for part in parts for stage in part.stages) == whole.stages
            assert all(isinstance(selector.choose(part), Choice) for part in parts)
