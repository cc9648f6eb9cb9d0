"""The analytic model that picks tiles and strategies: cycles from device facts, no table of shapes.

A micro-kernel keeps `pixels * oc_vectors` accumulators and does one step of the reduction with
`pixels * oc_vectors` fused multiply-adds, `oc_vectors` vector loads of weights and `pixels` broadcast loads of
inputs. It is bound by the FMA ports, by the load ports, by issue width, or by the latency of its chains of
accumulations. Around its reduction it pays for zeroing, epilogue and stores.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sepwise.lowering.core_model import core_model

if TYPE_CHECKING:
    from sepwise.lowering.device import Device

__all__ = [
    "LEAST_TOGETHER",
    "LINE_BYTES",
    "MOST_TOGETHER",
    "SPARE_REGISTERS",
    "apart_stay",
    "copy_cycles",
    "is_prefetched",
    "iterations_ahead",
    "line_cycles",
    "line_wait_cycles",
    "loads_alone",
    "micro_kernel_cycles",
    "parallel_cycles",
    "register_tile_fits",
    "register_tiles",
    "repeats_iterations",
    "staged_cycles",
    "stream_cycles",
    "vectors_together",
    "waiting_cycles",
]

TILE_OVERHEAD_CYCLES = 12
"""Loop control and address arithmetic around one register tile."""

EPILOGUE_CYCLES = 2.0
"""Start from zero or the bias, activation and store of one accumulator."""

LOOP_INSTRUCTIONS = 4
"""Two pointers, a counter and a branch."""

STREAM_LOOP_INSTRUCTIONS = 2
"""A counter and a branch, where loads move their pointers."""

MOST_TOGETHER = 4
"""Vectors that one instruction of Advanced SIMD loads, from a pointer that it moves."""

LEAST_TOGETHER = 2
"""Fewer than so many are loaded one by one, or in pairs from addresses of their own."""

SPARE_REGISTERS = 4
"""Registers that LLVM needs beside those of a reduction to place vectors next to each other without moving them."""

LOST_SHARE = 1.0
"""Part of an issue slot that an instruction costs even where ports bound: they are never all busy, and a core in order issues
one or the other."""

LINE_BYTES = 64
"""A cache line, and what one prefetch brings; where lines are longer, some are asked for twice."""

COPY_CYCLES = 1.5
"""Load, test for the border and store of one vector or element that is staged."""

CACHE_SHARE = 0.75
"""Share of a cache that a kernel's own data can count on."""

LAUNCH_CYCLES = 4000
"""Cycles to hand a parallel kernel to a second worker and to wait for it."""

CALL_CYCLES = 500.0
"""Cycles to begin a kernel whose code and arguments are in no first-level cache: an estimate.

Where they are in it, a whole kernel takes 170 cycles, work included: the median run of a chain of 48 pointwise convolutions
of one pixel with 8 to 96 channels, by its kernels (x86-64 at 2.6 GHz, one thread, 2026-11-22, `sepwise bench`). Among large
tensors neither code nor arguments stay there, and three times as much is allowed for."""

TASK_CYCLES = 20
"""Cycles to start one task."""

FLOAT16_BYTES = 2
FLOAT16_FACTORS = 8
"""Inputs of a float16 multiply-add by lane: half of v0 to v15, in which alone they may lie (Arm DDI 0487, FMLA by element).

With more LLVM 22 spills, as it prefers the same registers for accumulators: 10 to 14 inputs and one vector of outputs take 25 to
30 % more instructions than 8 (the chain of a depthwise and a pointwise convolution, 192 to 32 channels, `sepwise bench`)."""


def register_tile_fits(device: Device, pixels: int, oc_vectors: int, *, adjacent: bool = False) -> bool:
    """Whether a register tile compiles without spills.

    LLVM keeps the order of the nest, vectors outside of pixels: the broadcasts of all pixels stay for every vector of
    the tile, the vectors of weights come one after the other; in pairs where inputs are lanes, one load for two. Without
    fused multiply-add the product needs a register too.

    Args:
        device: Gives the number of vector registers.
        pixels: Output pixels of the tile.
        oc_vectors: Output channel vectors of the tile.
        adjacent: Whether the inputs of the pixels lie side by side, as lanes of few vectors.

    Returns:
        Whether `pixels * oc_vectors` accumulators, `pixels` inputs, one weight or two and a product that is not fused fit.
    """
    if device.multiplies_by_lane:
        inputs = 2 * math.ceil(pixels / device.lanes) if adjacent else pixels  # one step's are loaded ahead
        if device.lane_bytes == FLOAT16_BYTES and inputs > FLOAT16_FACTORS:
            return False
        return pixels * oc_vectors + inputs + min(oc_vectors, 2) <= device.vector_registers
    live = pixels * oc_vectors + pixels + 1
    return live + (not device.fuses_multiply_add) <= device.vector_registers


def register_tiles(
    device: Device, most_pixels: int, most_oc_vectors: int, *, adjacent: bool = False
) -> list[tuple[int, int]]:
    """Lists the register tiles that fit a device.

    Args:
        device: Gives the number of vector registers.
        most_pixels: Pixels that there are.
        most_oc_vectors: Output channel vectors that there are.
        adjacent: Whether the inputs of pixels lie side by side.

    Returns:
        Pairs of pixels and output channel vectors.
    """
    registers = device.vector_registers
    return [
        (pixels, oc_vectors)
        for oc_vectors in range(1, min(most_oc_vectors, registers) + 1)
        for pixels in range(1, min(most_pixels, registers) + 1)
        if register_tile_fits(device, pixels, oc_vectors, adjacent=adjacent)
    ]


def vectors_together(device: Device, pixels: int, oc_vectors: int, *, adjacent: bool = False) -> int:
    """Counts the vectors of weights that one instruction loads where inputs are lanes.

    Args:
        device: Gives the number of vector registers.
        pixels: Output pixels of the tile.
        oc_vectors: Output channel vectors of the tile.
        adjacent: Whether the inputs of the pixels lie side by side.

    Returns:
        As many as accumulators and inputs leave registers for, at most `MOST_TOGETHER`; they may be too few to be worth it.
    """
    inputs = math.ceil(pixels / device.lanes) if adjacent else pixels
    return min(MOST_TOGETHER, device.vector_registers - SPARE_REGISTERS - pixels * oc_vectors - inputs)


def micro_kernel_cycles(
    device: Device,
    pixels: int,
    oc_vectors: int,
    reduction: int,
    *,
    adjacent: bool = False,
    weights_together: bool = True,
) -> float:
    """Predicts the cycles of one register tile.

    Args:
        device: Gives ports, issue width and latency.
        pixels: Output pixels of the tile.
        oc_vectors: Output channel vectors of the tile.
        reduction: Steps of the reduction.
        adjacent: Whether the inputs of the pixels lie side by side.
        weights_together: Whether the weights of a step lie side by side.

    Returns:
        Cycles for the whole reduction with prologue and epilogue.
    """
    fmas = pixels * oc_vectors
    if device.multiplies_by_lane:
        # One iteration does as many steps as a vector has lanes.
        inputs = math.ceil(pixels / device.lanes) if adjacent else pixels / device.lanes
        loads = inputs + oc_vectors
        together = vectors_together(device, pixels, oc_vectors, adjacent=adjacent)
        if not weights_together:
            others = inputs + oc_vectors + LOOP_INSTRUCTIONS / device.lanes
        elif together < LEAST_TOGETHER:  # pairs
            others = (inputs + oc_vectors) / 2 + LOOP_INSTRUCTIONS / device.lanes
        else:
            if not adjacent:
                others = math.ceil(pixels / MOST_TOGETHER) / device.lanes
            elif pixels % device.lanes:  # vectors that overlap
                others = inputs + 1 / device.lanes
            else:
                others = math.ceil(inputs / MOST_TOGETHER)
            others += oc_vectors / together + STREAM_LOOP_INSTRUCTIONS / device.lanes
    else:
        loads = pixels + oc_vectors
        others = loads + 1.5
    arithmetic, memory = fmas / device.fma_ports, loads / device.load_ports
    alone = device.multiplies_by_lane and loads_alone(device)
    step = max(
        arithmetic + memory if alone else max(arithmetic, memory),
        (fmas + others) / device.issue_width,
        device.fma_latency_cycles,
    )
    if not alone:
        step += LOST_SHARE * others / device.issue_width
    return reduction * step + fmas * EPILOGUE_CYCLES + TILE_OVERHEAD_CYCLES


def copy_cycles(device: Device, nbytes: float, *, footprint_bytes: float) -> float:
    """Predicts the cycles to stream bytes once.

    Args:
        device: Gives the caches' sizes and rates.
        nbytes: Bytes read.
        footprint_bytes: Bytes that are live between two reads of the same byte: where they come from.

    Returns:
        Cycles, 0 where they stay in the first-level cache.
    """
    if footprint_bytes <= device.l1d_bytes * CACHE_SHARE:
        return 0.0
    if footprint_bytes <= device.l2_bytes * CACHE_SHARE:
        return nbytes / device.l2_bytes_per_cycle
    return nbytes / device.memory_bytes_per_cycle


def staged_cycles(device: Device, nbytes: float, *, passes: int, task_bytes: float, pass_bytes: float) -> float:
    """Predicts the cycles to write what a task stages and to read it in passes.

    Args:
        device: Gives the caches' sizes and rates.
        nbytes: Bytes staged.
        passes: Times that the task reads them.
        task_bytes: What else a task goes through before it stages the next: what it stages from, the weights of
            a tile, outputs.
        pass_bytes: What else a pass goes through: its weights and outputs.

    Returns:
        Cycles, 0 where it stays in the first-level cache.
    """
    again = copy_cycles(device, nbytes * (passes - 1), footprint_bytes=nbytes + pass_bytes)
    return copy_cycles(device, 2 * nbytes, footprint_bytes=nbytes + task_bytes) + again


def line_cycles(device: Device, footprint_bytes: float) -> float:
    """Predicts what a step of a reduction waits for its own line of a plain tensor: the channels of a pixel lie in as many lines.

    In a packed tensor a line holds a vector of channels. Eleven pointwise convolutions of the zoo's shapes take 3 to 20 % longer
    on plain than on packed inputs with the same tile (Sapphire Rapids, one thread, kernels in turn, 2026-11-23).

    Args:
        device: Gives the first-level cache and the rate of the second. Cores that multiply by lane load pixels as whole vectors,
            for which this is not known.
        footprint_bytes: Bytes of the tensor that a task reads.

    Returns:
        Cycles; 0 where the tensor stays in the first-level cache.
    """
    if device.multiplies_by_lane or device.lanes == 1 or footprint_bytes <= device.l1d_bytes * CACHE_SHARE:
        return 0.0
    return LINE_BYTES / device.l2_bytes_per_cycle


def line_wait_cycles(device: Device, nbytes: float) -> float:
    """Predicts how long a core waits for a line of a tensor that no prefetcher foresees.

    Args:
        device: Gives the caches and the core.
        nbytes: Of the tensor: where its lines come from.

    Returns:
        What its reorder buffer does not hide of the line's latency; 0 where the tensor stays in the first-level cache, and of
        cores of which `devices.toml` knows no latency.
    """
    core = core_model(device)
    if core is None or nbytes <= device.l1d_bytes * CACHE_SHARE:
        return 0.0
    near = nbytes <= device.l2_bytes * CACHE_SHARE
    latency = core.l2_latency_cycles if near else core.memory_latency_cycles
    return max(0.0, latency - core.reorder_entries / device.issue_width)


def waiting_cycles(device: Device, nbytes: float, *, lines: float, streams: int, instructions: float) -> float:
    """Predicts how long a register tile waits for its lines of a tensor.

    Args:
        device: Gives the caches and the core.
        nbytes: Of the tensor.
        lines: That no tile has read before.
        streams: Rows of lines that a tile goes on with, read and written.
        instructions: Of the tile: a reorder buffer that holds several of its misses waits for all of them at once.

    Returns:
        Cycles; 0 where the core's prefetcher follows so many streams.
    """
    core = core_model(device)
    if core is None or streams <= core.streams:
        return 0.0
    return lines * line_wait_cycles(device, nbytes) / max(1.0, lines / instructions * core.reorder_entries)


def is_prefetched(device: Device, nbytes: float) -> bool:
    """Tells whether a kernel asks ahead for lines of a tensor that no prefetcher of the core foresees.

    Args:
        device: Gives the caches and the kind of core; x86 cores are left to their prefetchers.
        nbytes: Of the tensor.

    Returns:
        Whether it comes from memory, and so is waited for longer than a few instructions hide; on a core in order whether it is
        waited for at all.
    """
    core = core_model(device)
    in_order = core is not None and core.reorder_entries == 0
    from_memory = nbytes > max(device.l2_bytes, device.l3_bytes) * CACHE_SHARE
    return device.multiplies_by_lane and (from_memory or (in_order and line_wait_cycles(device, nbytes) > 0))


def apart_stay(device: Device, count: int, stride_bytes: int) -> bool:
    """Tells whether lines that are a stride apart stay in the first-level cache together.

    Args:
        device: Gives the cache and its ways; of a core whose ways are not known nothing stays.
        count: Lines.
        stride_bytes: From each to the next: where it is near a multiple of the sets, they share few of these.

    Returns:
        Whether no set has more of them than ways.
    """
    core = core_model(device)
    if core is None:
        return False
    sets = device.l1d_bytes // (core.line_bytes * core.l1d_ways)
    used = sets // math.gcd(stride_bytes // core.line_bytes, sets)
    return math.ceil(count / used) <= core.l1d_ways


def iterations_ahead(
    device: Device, *, total_bytes: float, footprint_bytes: float, panels: int, passes: int, iteration_cycles: float
) -> int:
    """Predicts how early a reduction should ask for a line of its weights, which it reads several times.

    Args:
        device: Gives the caches and the kind of core; x86 cores are left to their prefetchers.
        total_bytes: Of all weights, beyond which a line comes from for its first pass.
        footprint_bytes: Bytes that are live between two passes.
        panels: Sequences of lines that the weights of a tile lie in. The inputs have two: each block of channels begins another.
        passes: Times that a task reads each line.
        iteration_cycles: Of the reduction's loop.

    Returns:
        Iterations; 0 where asking in each pass costs more than is waited for, and where a core out of order has a prefetcher that
        follows the weights: what it foresees late such a core hides.
    """
    core = core_model(device)
    if core is None or not device.multiplies_by_lane or (core.reorder_entries and panels + 2 <= core.streams):
        return 0
    first, again = (line_wait_cycles(device, nbytes) for nbytes in (total_bytes, footprint_bytes))
    if first / passes + again <= (1 + LOST_SHARE) / device.issue_width:
        return 0
    return math.ceil(max(first, again) / iteration_cycles)


def loads_alone(device: Device) -> bool:
    """Tells whether a core issues no multiply-add beside the load of a vector, so that their cycles add up.

    Args:
        device: The core. Where a vector takes more than a cycle to load, it runs in order, and does not (ncnn,
            docs/developer-guide/arm-a53-a55-dual-issue.md).

    Returns:
        Whether it does.
    """
    return device.load_ports < 1


def repeats_iterations(device: Device) -> bool:
    """Tells whether several iterations of a reduction share a counter.

    Args:
        device: The core. For one that runs in order LLVM 22 moves loads across iterations until it spills (cortex-a55,
            `sepwise bench`).

    Returns:
        Whether the order in which they are written stays.
    """
    return device.multiplies_by_lane and not loads_alone(device)


def stream_cycles(device: Device, nbytes: float) -> float:
    """Predicts the cycles to read or write tensors that another kernel wrote or will read.

    Args:
        device: Gives the caches' sizes and rates.
        nbytes: Bytes of all tensors together.

    Returns:
        Cycles, at the rate of the second-level cache where it holds them.
    """
    if nbytes <= device.l2_bytes * CACHE_SHARE:
        return nbytes / device.l2_bytes_per_cycle
    return nbytes / device.memory_bytes_per_cycle


def parallel_cycles(cycles: float, tasks: int, threads: int) -> float:
    """Predicts the cycles of a kernel whose tasks are shared by workers.

    Args:
        cycles: Of all tasks together.
        tasks: Equal shares of the work.
        threads: Workers.

    Returns:
        Cycles until the last worker is done.
    """
    total = cycles + tasks * TASK_CYCLES
    if threads == 1 or tasks == 1:
        return total
    return total / tasks * math.ceil(tasks / threads) + LAUNCH_CYCLES
