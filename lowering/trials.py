"""One Program that computes a chain of convolutions in several ways, one after the other.

    way 0   x -> k0 -> (arena) -> k1 -> y
    way 1   x -> k2 -> y

So what is compared reads the same tensors through the same caches, natively and under an emulator, and its calls are timed and
counted like those of any network. Weights are drawn or a network's own; all ways write the same output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sepwise.lowering.codegen import build_object, lower_kernel, tvm_target
from sepwise.lowering.graph import Layout, TensorType
from sepwise.lowering.memory_plan import align
from sepwise.lowering.program import BufferRef, Home, KernelCall, Program, Value
from sepwise.lowering.workload import ConvWorkload, LinearWorkload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.lowering.codegen import CompiledKernel
    from sepwise.lowering.device import Device
    from sepwise.lowering.strategies.base import AnyStrategy, Tile

    Weights = Sequence[tuple[np.ndarray, np.ndarray]]

__all__ = ["IN_MEMORY", "Step", "build_candidates", "build_trials"]

IN_MEMORY = " in memory"
"""What is behind the name of a value that is looked at as a plain tensor."""


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel of a way.

    Attributes:
        workload: The stages that it computes.
        strategy: How.
        tile: In which sizes.
        device: What it is scheduled for; some of its facts may be other than those of the core that runs it.
    """

    workload: ConvWorkload | LinearWorkload
    strategy: AnyStrategy
    tile: Tile
    device: Device


def build_trials(chain: ConvWorkload | LinearWorkload, ways: Sequence[Sequence[Step]], device: Device) -> Program:
    """Builds the Program of all ways, with drawn weights.

    Args:
        chain: What each way computes, by strategies that take its weights alone; of a product each way is one kernel.
        ways: The kernels of each, in order; their stages together are those of the chain.
        device: Runs them.

    Returns:
        A Program of one call for each kernel, way after way. Its input is `x`, a residual's `r`, its output `y`; what is between
        two kernels lies in the arena. All are plain tensors of the packed ones' shapes in memory.
    """
    if isinstance(chain, LinearWorkload):
        shapes = ((chain.rows, chain.in_features), (chain.rows, chain.out_features))
        read, written = (TensorType(shape, chain.dtypes.input) for shape in shapes)
        values = Value("x", read, BufferRef(Home.INPUT, 0)), Value("y", written, BufferRef(Home.OUTPUT, 0))
        return _build(chain.kind, ways, device, _draw_weights(chain), values[:1], values[1])
    shape = (chain.batch, chain.stages[0].in_channels, *chain.spatial)
    inputs = [Value("x", _physical(shape, chain.input_lanes), BufferRef(Home.INPUT, 0))]
    output = Value("y", _physical(chain.output_shape, chain.output_lanes), BufferRef(Home.OUTPUT, 0))
    if chain.residual:
        inputs.append(Value("r", output.type, BufferRef(Home.INPUT, 1)))
    return _build(chain.kind, ways, device, _draw_weights(chain), inputs, output)


def build_candidates(
    steps: Sequence[Step], device: Device, weights: Weights, inputs: Sequence[Value], output: Value
) -> Program:
    """Builds a Program that computes one kernel of a network in several ways.

    Args:
        steps: The ways, of one workload.
        device: Runs them.
        weights: Weight and bias of each stage.
        inputs: What the kernel reads in its network, as it lies there.
        output: What it writes.

    Returns:
        A Program of one call for each way. Its values are those of the network, of the same names and layouts. Its inputs and
        its output are the same memory as plain tensors, for runs of the whole; their names are those of the values with
        `IN_MEMORY` behind.
    """
    names = list(dict.fromkeys(value.name for value in inputs))  # a residual may be the first input
    read = [replace(value, buffer=BufferRef(Home.INPUT, names.index(value.name))) for value in inputs]
    own = list(dict.fromkeys(read))
    written = replace(output, buffer=BufferRef(Home.OUTPUT, 0))
    program = _build(steps[0].workload.kind, [[step] for step in steps], device, weights, read, written)
    return replace(
        program,
        inputs=tuple(map(_in_memory, own)),
        outputs=(_in_memory(written),),
        values=(*own, written),
    )


def _in_memory(value: Value) -> Value:
    """A value as a plain tensor of its shape in memory."""
    return replace(value, name=f"{value.name}{IN_MEMORY}", type=TensorType(value.type.physical_shape, value.type.dtype))


def _build(
    name: str, ways: Sequence[Sequence[Step]], device: Device, weights: Weights, inputs: Sequence[Value], output: Value
) -> Program:
    """Builds the Program of all ways between given values."""
    kernels: dict[str, CompiledKernel] = {}
    calls: list[KernelCall] = []
    values: list[Value] = []
    constants: list[np.ndarray] = []
    arena_bytes = constant_bytes = 0
    for way in ways:
        source, stage = inputs[0], 0
        for step in way:
            workload, symbol = step.workload, f"k{len(calls)}"
            implementation = step.strategy.schedule(workload, step.device, step.tile)
            kernel = kernels[symbol] = lower_kernel(implementation.function, symbol, step.device)
            stages = len(workload.stages) if isinstance(workload, ConvWorkload) else 1
            own = weights[stage : stage + stages]
            stage += stages
            packed = [np.ascontiguousarray(array).view(np.uint8).reshape(-1) for array in implementation.pack(own)]
            references = []
            for raw in packed:
                references.append(BufferRef(Home.CONSTANT, constant_bytes))
                constants += [raw, np.zeros(align(raw.nbytes) - raw.nbytes, np.uint8)]
                constant_bytes += align(raw.nbytes)
            sink = output
            if stage < len(weights):
                assert isinstance(workload, ConvWorkload), "a product is no part of a chain"
                held = _physical(workload.output_shape, workload.output_lanes)
                sink = Value(f"{symbol}.y", held, BufferRef(Home.ARENA, arena_bytes))
                arena_bytes += align(math.prod(held.shape) * np.dtype(held.dtype).itemsize)
                values.append(sink)
            residual = isinstance(workload, ConvWorkload) and workload.residual
            read = [source, *(inputs[1:] if residual else ())]
            calls.append(
                KernelCall(
                    name=symbol,
                    symbol=symbol,
                    arguments=(*(value.buffer for value in read), *references, sink.buffer),
                    inputs=tuple(value.name for value in read),
                    outputs=(sink.name,),
                    tasks=kernel.tasks,
                    scratch_bytes=kernel.scratch_bytes,
                    scratch_offset=arena_bytes,
                    macs=workload.macs,
                    nodes=(),
                    strategy=step.strategy.name,
                    workload=workload.key,
                    tile=str(step.tile),
                    constant_bytes=tuple(raw.nbytes for raw in packed),
                )
            )
            arena_bytes += align(kernel.scratch_bytes)
            source = sink
    return Program(
        name=name,
        device=device.name,
        calls=tuple(calls),
        inputs=tuple(inputs),
        outputs=(output,),
        values=tuple(values),
        constants=np.concatenate(constants),
        arena_bytes=max(arena_bytes, align(1)),
        arena_lower_bound_bytes=0,
        object_code=build_object(kernels, tvm_target(device)),
    )


def _draw_weights(chain: ConvWorkload | LinearWorkload) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias of each stage, scaled so that sums keep the size of what they add up."""
    rng = np.random.default_rng(0)
    if isinstance(chain, LinearWorkload):
        shapes: list[tuple[int, ...]] = [(chain.out_features, chain.in_features)]
    else:
        shapes = [(stage.out_channels, stage.in_channels_per_group, *stage.kernel) for stage in chain.stages]
    weights = []
    for shape in shapes:
        weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
        weights.append((weight, rng.standard_normal(shape[0], dtype=np.float32)))
    return weights


def _physical(shape: tuple[int, ...], lanes: int) -> TensorType:
    """A packed tensor as a plain one of its shape in memory: what a kernel computes matters here, and no value's place."""
    return TensorType(Layout(lanes).physical_shape(shape))
