"""A Program of several ways: each computes the chain, within the bound of its rounding."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from sepwise.lowering import device, trials
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.program import BufferRef, Home, Value
from sepwise.lowering.runner import NativeRunner, open_runner, to_memory
from sepwise.lowering.selection import Selector, segment
from sepwise.lowering.strategies import strategies_for
from sepwise.lowering.trials import IN_MEMORY, Step, build_candidates, build_trials
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage
from sepwise.passes.equivalence import run_with_bounds
from sepwise.passes.equivalence.graph import read_graph

HOST = device.get("host")
SIDE = 9


@pytest.fixture
def chain() -> ConvWorkload:
    """A depthwise and a pointwise stage on as many channels as a block has."""
    c = HOST.lanes
    stages = (
        Stage(c, c, c, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), None),
        Stage(c, c, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), None),
    )
    return ConvWorkload(1, (SIDE, SIDE), stages, False, None, c, c)


def best(workload: ConvWorkload) -> Step:
    choice = Selector(HOST, 1).choose(workload)
    assert not isinstance(choice, list)
    return Step(workload, choice.strategy, choice.tile, HOST)


def bounds(chain: ConvWorkload, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the chain computes of a tensor, in float64, and how far a kernel may be from it; packed."""
    c = HOST.lanes
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> n (float[1,{c},{SIDE},{SIDE}] x) => (float[1,{c},{SIDE},{SIDE}] y) '
        f"{{ d = Conv <group = {c}, pads = [1,1,1,1]> (x, w0, b0) y = Conv (d, w1, b1) }}"
    )
    for i, arrays in enumerate(trials._draw_weights(chain)):
        model.graph.initializer.extend(numpy_helper.from_array(a, f"{n}{i}") for n, a in zip("wb", arrays, strict=True))
    plain = np.moveaxis(x, -1, 2).reshape(1, c, SIDE, SIDE)
    value, bound = run_with_bounds(read_graph(model), {"x": plain})["y"]
    return tuple(np.moveaxis(a.reshape(1, 1, c, SIDE, SIDE), 2, -1) for a in (value, bound))


def test_every_way_computes_the_chain(chain: ConvWorkload) -> None:
    pair = [best(segment(chain, stage, stage + 1)) for stage in range(2)]
    fused = [
        [Step(chain, strategy, strategy.tiles(chain, HOST, 1)[0], HOST)]
        for strategy in strategies_for(chain)
        if strategy.applies(chain, HOST) is None
    ]
    assert fused
    program = build_trials(chain, [pair, *fused], HOST)
    first, second = program.calls[:2]
    assert first.outputs == second.inputs
    assert first.arguments[-1].home is Home.ARENA
    x = np.random.default_rng(0).standard_normal(program.inputs[0].type.shape, dtype=np.float32)
    expected, bound = bounds(chain, x)
    with open_runner(program) as runner:
        found = [runner.run_kernel(1, [runner.run_kernel(0, [x])[first.outputs[0]]])]
        found += [runner.run_kernel(index, [x]) for index in range(2, len(program.calls))]
    for outputs in found:
        assert (np.abs(outputs["y"] - expected) <= bound).all()


def test_every_way_computes_a_product() -> None:
    product = LinearWorkload(3, 20, 2 * HOST.lanes + 1)
    (strategy,) = strategies_for(product)
    tiles = strategy.tiles(product, HOST, 1)
    program = build_trials(product, [[Step(product, strategy, tile, HOST)] for tile in (tiles[0], tiles[-1])], HOST)
    ((weight, bias),) = trials._draw_weights(product)
    x = np.random.default_rng(0).standard_normal((3, 20), dtype=np.float32)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    terms = np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T + np.abs(bias)
    with open_runner(program) as runner:
        for index in range(2):
            roundings = product.in_features + 1  # a product or a sum each, and the bias
            assert (np.abs(runner.run_kernel(index, [x])["y"] - expected) <= roundings * np.finfo(np.float32).eps * terms).all()


def test_candidates_read_a_networks_values_as_they_lie_there(chain: ConvWorkload) -> None:
    c = HOST.lanes
    fused = [strategy for strategy in strategies_for(chain) if strategy.applies(chain, HOST) is None]
    steps = [Step(chain, strategy, tile, HOST) for strategy in fused for tile in strategy.tiles(chain, HOST, 1)[:2]]
    held = TensorType((1, c, SIDE, SIDE), "float32", Layout(c))
    read, written = (Value(name, held, BufferRef(Home.ARENA, 64)) for name in ("in", "out"))
    weights = trials._draw_weights(chain)
    program = build_candidates(steps, HOST, weights, [read], written)
    x = np.random.default_rng(0).standard_normal((1, c, SIDE, SIDE), dtype=np.float32)
    expected, bound = (np.moveaxis(a, -1, 2).reshape(x.shape) for a in bounds(chain, to_memory(read, x)))
    with NativeRunner(program) as runner:
        for index in range(len(steps)):
            assert (np.abs(runner.run_kernel(index, [x])["out"] - expected) <= bound).all()
        runner.place({f"in{IN_MEMORY}": to_memory(read, x)})
        times_us = runner.time_calls([1, 0], 3)
        assert [len(each) for each in times_us] == [3, 3]
        assert min(map(min, times_us)) > 0


def test_a_residual_that_is_the_input(chain: ConvWorkload) -> None:
    """It is one tensor, as in MobileNetV3's first block."""
    c = HOST.lanes
    chain = replace(chain, residual=True)
    held = TensorType((1, c, SIDE, SIDE), "float32", Layout(c))
    read, written = (Value(name, held, BufferRef(Home.ARENA, 64)) for name in ("in", "out"))
    program = build_candidates([best(chain)], HOST, trials._draw_weights(chain), [read, read], written)
    assert [value.name for value in program.inputs] == [f"in{IN_MEMORY}"]
    x = np.random.default_rng(0).standard_normal((1, c, SIDE, SIDE), dtype=np.float32)
    plain, bound = (np.moveaxis(a, -1, 2).reshape(x.shape) for a in bounds(replace(chain, residual=False), to_memory(read, x)))
    with NativeRunner(program) as runner:
        found = runner.run_kernel(0, [x, x])["out"]
        assert (np.abs(found - (plain + x)) <= bound + np.spacing(np.abs(found))).all()
        runner.place({f"in{IN_MEMORY}": to_memory(read, x)})
        assert min(runner.time_calls([0], 1)[0]) > 0
