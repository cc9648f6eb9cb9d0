"""Loop nests for everything that is no convolution and no matrix product with constant weights.

Each stage becomes one nest in the order of its OUTPUT's memory, the innermost axis a vector:

    # packed output:                    # plain output:              # reduction along the last axis:
    # task: n, c_o, h   (fused)         # task: outer axes (fused)   # task: outer axes
    #   w:                              #   inner axes:              #   for r_o: total[r_v] += x[..., r_o, r_v]
    #     out[n, c_o, h, w, c_v] = ...  #     out[..., i_o, i_v]     #   out = total[0] + total[1] + ...

A reduction over a vector axis keeps its sums in registers, `JAM` outputs (or `JAM` vectors) at once, so that the latency of one
addition does not bound it: 4 of 16 or 32 registers for sums, 2 for what is loaded.

Where several stages make up a kernel (softmax: maximum, exponentials, sum, quotient), they share their common
outer loops, and the buffers between them shrink to what one iteration needs. Stages that are independent (the inputs of
a concatenation, the outputs of a split) stand beside each other, each shared out to all tasks.

Channels that move between lanes (a concatenation at 58 channels of 16 lanes, a channel shuffle) are
resolved when the kernel is built: for each vector written it is known which runs of which vectors it is made from.
Rows of a plain output that are channels across blocks (the 7 or 85 numbers of a detection head's anchors) are made the same way.
Values that are read along one axis and written along another go through tiles of `lanes * lanes` that are
transposed in registers; what is computed of them is computed on vectors of the transposed tile.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad, Var

from sepwise.lowering.cost import parallel_cycles
from sepwise.lowering.generic_stages import (
    EXPENSIVE_CALLS,
    INDEX_TYPE,
    Axis,
    Stage,
    StageFunction,
    analyzer_of,
    loads,
    parse,
    restricted,
    simplify_stages,
    split_digits,
    substitute,
)
from sepwise.lowering.graph import Layout
from sepwise.lowering.lane_loads import shuffle
from sepwise.lowering.relayout import physical_indices, relayout
from sepwise.lowering.tiling import TASK_LOOP
from sepwise.lowering.vector_math import replace_math

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sepwise.lowering.device import Device

    Expr = Any  # tvm has no type stubs

__all__ = ["CONSTANT_SLACK", "predicted_cycles", "schedule"]

TASK_NS: Final = 4_000.0
"""A task is at least about so much work: a few times what it takes to hand it to a worker, whose cache may hold its share."""

MOST_TASKS: Final = 64
"""More tasks than that balance no better."""

VECTOR_NS: Final = 0.5
"""Assumed time of one vector operation on memory."""

EXPENSIVE_NS: Final = 8.0
"""Assumed time of one vector of an elementary function."""

SCALAR_NS: Final = 0.7
"""Assumed time of one element where nothing is a vector."""

PART_NS: Final = 0.125
"""Assumed time to put one run of elements into a vector that is made from several."""

SHUFFLED_PARTS: Final = 2
"""Runs of which a vector of channels is made where channels move between the lanes of packed tensors."""

CYCLES_PER_NS: Final = 3.0
"""Cycles in the times above, which assume a core of about 3 GHz whatever the device: they weigh layouts against each other."""

LONGEST_WRITTEN_OUT: Final = 512
"""Elements of rows whose vectors are written out one by one."""

MOST_PERMUTED: Final = 2048
"""Channels that may move between lanes; each is looked at when the kernel is built."""

JAM: Final = 4
"""Outputs, or vectors of one output, that a reduction computes at once."""

CONSTANT_SLACK: Final = 16
"""Elements behind a constant that may be read: what a vector reads past the last channel."""


def schedule(
    function: tirx.PrimFunc,
    device: Device,
    layouts: Sequence[Layout] | None = None,
    constants: Collection[int] = (),
) -> tirx.PrimFunc:
    """Schedules a generic kernel.

    Args:
        function: Plain, unscheduled; its parameters are inputs, constants, outputs.
        device: Gives the lanes.
        layouts: The parameters' layouts; all plain if None.
        constants: Positions of parameters behind which `CONSTANT_SLACK` elements may be read.

    Returns:
        A function on flat buffers with at most one task loop, loops vectorised, elementary functions written out.
    """
    layouts = list(layouts) if layouts is not None else [Layout()] * len(function.params)
    stages = parse(function)
    if stages is None:
        return relayout(function, layouts)
    return _Scheduler(simplify_stages(stages), _vector_lanes(function.params, device, layouts), layouts, constants).run()


def predicted_cycles(
    function: StageFunction,
    device: Device,
    layouts: Sequence[Layout],
    constants: Collection[int] = (),
    *,
    threads: int = 1,
) -> float:
    """Predicts the cycles of a generic kernel, by the nests that `schedule` would make in these layouts.

    Args:
        function: Simplified stages.
        device: Gives the lanes.
        layouts: The parameters' layouts.
        constants: Positions of parameters behind which `CONSTANT_SLACK` elements may be read.
        threads: Workers.

    Returns:
        Cycles until the last worker is done.
    """
    lanes = _vector_lanes(function.parameters, device, layouts)
    nanoseconds = _Estimate(function, lanes, layouts, constants).nanoseconds()
    return parallel_cycles(nanoseconds * CYCLES_PER_NS, _tasks(nanoseconds, MOST_TASKS), threads)


def _vector_lanes(parameters: Sequence[Var], device: Device, layouts: Sequence[Layout]) -> int:
    """The lanes of packed tensors where all are packed alike; else those of the narrower floating-point type."""
    packed = {layout.lanes for layout in layouts if layout.packed}
    half = any(str(parameter.ty.dtype) == "float16" for parameter in parameters)
    return packed.pop() if len(packed) == 1 else device.holding("float16" if half else "float32").lanes


@dataclass(eq=False)
class _Buffer:
    """A buffer of the plain function and what it becomes."""

    logical: Var
    layout: Layout
    shape: tuple[int, ...]  # physical
    dropped: int = 0  # leading physical axes that shared loops take away
    constant: bool = False
    parameter: bool = False
    flat: Var | None = None
    shaped: Var = None  # stands for the buffer, in its physical shape, until accesses are flat

    def __post_init__(self) -> None:
        self.shaped = self.logical
        if self.layout.packed:
            self.shaped = tirx.decl_buffer(self.shape, self.logical.ty.dtype, self.logical.name)

    def strides(self) -> list[int]:
        """Row-major strides of the axes that are kept, 0 for the dropped ones."""
        kept = self.shape[self.dropped :]
        return [0] * self.dropped + [math.prod(kept[i + 1 :]) for i in range(len(kept))]

    def declare(self) -> Var:
        """The flat buffer."""
        if self.flat is None:
            size = math.prod(self.shape[self.dropped :]) + (CONSTANT_SLACK if self.constant else 0)
            self.flat = tirx.decl_buffer((size,), self.logical.ty.dtype, self.logical.name)
        return self.flat


@dataclass(eq=False)
class _Nest:
    """A stage in physical terms.

    Attributes:
        loops: Spatial loops that are not vectors, outermost first.
        vector: The axis that is vectorised, None for scalar code.
        tail: Where the last block of channels covers fewer lanes: how many; 0 where all are alike.
        stage: The stage; indices and loads physical, not flat.
        body: Statement of one iteration of all loops, for nests that are written out; else None.
        blocked: Whether the vector is one block of channels.
        tiled: Whether `body` copies a tile of many vectors.
        last_block: Whether this is the block of `tail` channels.
    """

    loops: list[Axis]
    vector: Axis | None
    tail: int
    stage: Stage
    body: tirx.Stmt | None = None
    blocked: bool = False
    tiled: bool = False
    last_block: Expr = None

    def replaced(self, values: Sequence[tuple[Var, Expr]]) -> _Nest:
        """The nest with other expressions for variables of its loops."""
        if not values:
            return self
        stage = self.stage.mapped(lambda e: substitute(e, values))
        body = None if self.body is None else substitute(self.body, values)
        last_block = None if self.last_block is None else substitute(self.last_block, values)
        return replace(self, stage=stage, body=body, last_block=last_block)

    @property
    def vector_is_reduced(self) -> bool:
        return any(axis is self.vector for axis in self.stage.reduced)


@dataclass(eq=False)
class _Gather:
    """Where the lanes of one load come from: `places` are (number in `bases`, elements behind that base)."""

    bases: list[tuple[_Buffer, Expr]]
    places: tuple[tuple[int, int], ...]

    def like(self, other: _Gather) -> bool:
        """Whether both take the same lanes from the same buffers, apart from where these begin."""
        return self.places == other.places and all(
            a is b for (a, _), (b, _) in zip(self.bases, other.bases, strict=True)
        )


@dataclass(eq=False)
class _Block:
    """One vector of channels of the output: a template over loads, and where their lanes come from."""

    template: Expr
    store: Expr
    width: int
    gathers: list[_Gather]

    @property
    def offsets(self) -> list[Expr]:
        """All that is computed to address memory."""
        return [self.store, *(offset for gather in self.gathers for _, offset in gather.bases)]

    def replaced(self, values: Sequence[tuple[Var, Expr]]) -> _Block:
        """The block with other expressions for variables of its loops."""
        gathers = [
            _Gather([(buffer, substitute(offset, values)) for buffer, offset in gather.bases], gather.places)
            for gather in self.gathers
        ]
        return _Block(self.template, substitute(self.store, values), self.width, gathers)


@dataclass(eq=False)
class _Run:
    """Blocks that differ only by equal steps of all that they read and write."""

    first: _Block
    distances: list[int]
    count: int
    store_step: int
    steps: list[list[int]]

    def takes(self, block: _Block, analyzer: Any) -> bool:
        """Takes a block in, if it is the next of the run."""
        first = self.first
        if block.width != first.width or len(block.gathers) != len(first.gathers):
            return False
        if not all(a.like(b) for a, b in zip(first.gathers, block.gathers, strict=True)):
            return False
        if not tvm_ffi.structural_equal(first.template, block.template, map_free_vars=True):
            return False
        pairs = [(first.store, block.store)]
        for a, b in zip(first.gathers, block.gathers, strict=True):
            pairs += [(x, y) for (_, x), (_, y) in zip(a.bases, b.bases, strict=True)]
        found = [analyzer.simplify(after - before) for before, after in pairs]
        if not all(isinstance(distance, tirx.IntImm) for distance in found):
            return False
        distances = [int(distance) for distance in found]
        if self.count == 1:
            steps = distances
        else:
            steps = [distance // (self.count - 1) for distance in self.distances]
            if distances != [step * self.count for step in steps]:
                return False
        rest = iter(steps)
        self.store_step = next(rest)
        self.steps = [[next(rest) for _ in gather.bases] for gather in first.gathers]
        self.distances, self.count = distances, self.count + 1
        return True


class _Scheduler:
    """Makes the loop nests of one kernel."""

    def __init__(
        self, function: StageFunction, lanes: int, layouts: Sequence[Layout], constants: Collection[int]
    ) -> None:
        self._lanes = lanes
        self._stages = function.stages
        self._buffers: list[_Buffer] = []
        packed_channels = set()
        for position, (parameter, layout) in enumerate(zip(function.parameters, layouts, strict=True)):
            shape = tuple(int(extent) for extent in parameter.ty.shape)
            if layout.packed:
                packed_channels.add((shape[1], layout))
            constant = position in constants
            self._buffers.append(
                _Buffer(parameter, layout, layout.physical_shape(shape), constant=constant, parameter=True)
            )
        for buffer in function.intermediates:
            shape = tuple(int(extent) for extent in buffer.ty.shape)
            layout = next(
                (lay for channels, lay in packed_channels if len(shape) > 2 and shape[1] == channels), Layout()
            )
            self._buffers.append(_Buffer(buffer, layout, layout.physical_shape(shape)))
        self._parameters = [self._find(parameter) for parameter in function.parameters]

    def run(self) -> tirx.PrimFunc:
        """Builds the function."""
        nests = [nest for stage in self._stages for nest in self._nests(stage)]
        own = [buffer for buffer in self._buffers if not buffer.parameter]
        body = self._shared(nests, own) if own or len(nests) == 1 else self._beside(nests)
        allocations = [tirx.AllocBuffer(buffer.declare()) for buffer in own]
        statement = tirx.SeqStmt([*allocations, body]) if allocations else body
        parameters = [buffer.declare() for buffer in self._parameters]
        function = tirx.PrimFunc(parameters, statement).with_attr("tirx.noalias", True).with_attr("s_tir", True)
        module = _VECTORIZE(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
        return replace_math(module["main"]).without_attr("global_symbol")

    def _find(self, logical: Var) -> _Buffer:
        return next(buffer for buffer in self._buffers if buffer.logical.same_as(logical))

    # --- from stages to nests ------------------------------------------------------------------------

    def _nests(self, stage: Stage) -> list[_Nest]:
        """The nests of one stage: one, or one for each vector of channels that is put together from others."""
        buffer = self._find(stage.buffer)
        reducing = self._lane_reducing_nest(stage)
        if reducing is not None:
            return [reducing]
        if not buffer.layout.packed:
            stage = split_digits(stage)
            nest = self._unpacking_nest(stage, buffer)
            if nest is not None:
                return [nest]
            return self._transposing_nests(stage) or self._gathering_nests(stage, buffer) or [self._plain_nest(stage)]
        channel = next((a for a in stage.axes if _mentions(stage.indices[1], a)), None)
        lanes = buffer.layout.lanes
        if channel is None:
            return [self._plain_nest(stage, vector=False)]
        first = _constant_offset(stage.indices[1], channel)
        if first is None:
            return [self._plain_nest(stage, vector=False)]
        if first % lanes == 0:
            nest = self._packed_nest(stage, channel, first, lanes, buffer)
            if nest is not None:
                return [nest]
        return (
            self._transposing_nests(stage)
            or self._permuted_nests(stage, channel, first, lanes, buffer)
            or [self._plain_nest(stage, vector=False)]
        )

    def _physical(self, stage: Stage, extra: Sequence[Axis] = ()) -> Stage:
        """The stage on physical indices, simplified."""
        analyzer = analyzer_of([*stage.axes, *stage.reduced, *extra])

        def on_load(load: TensorLoad) -> Expr:
            buffer = self._find(load.source)
            indices = physical_indices(load.indices, buffer.layout)
            return tirx.BufferLoad(buffer.shaped, [analyzer.simplify(index) for index in indices])

        changed = stage.mapped(lambda e: tvm_ffi.structural_map(e, (TensorLoad, on_load)))
        buffer = self._find(stage.buffer)
        indices = [analyzer.simplify(index) for index in physical_indices(changed.indices, buffer.layout)]
        return replace(changed.mapped(analyzer.simplify), indices=indices)

    def _plain_nest(self, stage: Stage, *, vector: bool = True) -> _Nest:
        """Loops in the order of the stage's axes, the vector where most loads are contiguous."""
        physical = self._physical(stage)
        axes = [axis for axis in stage.axes]
        if vector:
            last = next((a for a in reversed(axes) if a.extent > 1), None)
            candidates: list[Axis] = []
            if last is not None and self._slope(physical.indices, physical.buffer, last) == 1:
                candidates.append(last)
            candidates += [axis for axis in reversed(stage.reduced[-1:]) if axis.extent > 1]
            for axis in candidates:
                if self._contiguous(physical, axis):
                    return _Nest([a for a in axes if a is not axis], axis, 0, physical)
        return _Nest(axes, None, 0, physical)

    def _lane_reducing_nest(self, stage: Stage) -> _Nest | None:
        """A reduction over the channels of packed inputs: whole blocks are added up, then their lanes; None for any other."""
        if stage.combiner is None:
            return None
        packed = [load for load in loads(stage.value) if self._find(load.source).layout.packed]
        channel = next((a for a in stage.reduced if packed and _mentions(packed[0].indices[1], a)), None)
        if channel is None or channel.extent < self._lanes or _constant_offset(packed[0].indices[1], channel) != 0:
            return None
        dtype = channel.var.ty.dtype
        outer = Axis(Var(f"{channel.var.name}_o", channel.var.ty), math.ceil(channel.extent / self._lanes))
        inner = Axis(Var(f"{channel.var.name}_v", channel.var.ty), self._lanes)
        split = outer.var * tirx.const(self._lanes, dtype) + inner.var
        changed = stage.mapped(lambda e: substitute(e, [(channel.var, split)]))
        reduced = [outer, *(axis for axis in stage.reduced if axis is not channel), inner]
        physical = self._physical(replace(changed, reduced=reduced))
        if not self._contiguous(physical, inner):
            return None
        tail = channel.extent % self._lanes
        last_block = tirx.EQ(outer.var, tirx.const(outer.extent - 1, dtype)) if tail else None
        return _Nest(list(stage.axes), inner, tail, physical, last_block=last_block)

    def _transposing_nests(self, stage: Stage) -> list[_Nest]:
        """Values read along one axis and written along another: square tiles, transposed in registers.

        The channels of packed tensors are blocks and lanes; those behind the last whole block are a nest of their own.
        Empty where nothing has to be transposed, or the stage is too small for a tile.
        """
        copies = isinstance(stage.value, TensorLoad)
        if stage.combiner is not None or not (copies or all(buffer.parameter for buffer in self._buffers)):
            return []
        parts = self._split_by_lanes(stage)
        nests = [self._transposing_nest(part) for part in parts]
        if nests[0] is None:
            return []
        vector = not self._find(stage.buffer).layout.packed
        return [nest or self._plain_nest(part, vector=vector) for nest, part in zip(nests, parts, strict=True)]

    def _split_by_lanes(self, stage: Stage) -> list[Stage]:
        """The stage over blocks and lanes of every packed tensor, then over the channels that are behind whole blocks."""
        accesses = [(stage.indices, stage.buffer), *((load.indices, load.source) for load in loads(stage.value))]
        for indices, logical in accesses:
            lanes = self._find(logical).layout.lanes
            channel = next((axis for axis in stage.axes if lanes and _mentions(indices[1], axis)), None)
            first = _constant_offset(indices[1], channel) if channel is not None else None
            if channel is None or first is None or first % lanes or channel.extent <= lanes:
                continue
            whole = channel.extent // lanes
            blocks = restricted(stage, channel, 0, whole * lanes)
            parts = [restricted(stage, channel, whole * lanes, channel.extent)] if channel.extent % lanes else []
            position = _position(stage.axes, channel)
            axis = blocks.axes[position]
            outer = Axis(Var(f"{axis.var.name}_o", axis.var.ty), whole)
            inner = Axis(Var(f"{axis.var.name}_v", axis.var.ty), lanes)
            split = [(axis.var, outer.var * tirx.const(lanes, axis.var.ty.dtype) + inner.var)]
            axes = [*blocks.axes[:position], outer, inner, *blocks.axes[position + 1 :]]
            parts.insert(0, replace(blocks.mapped(functools.partial(substitute, values=split)), axes=axes))
            return [part for half in parts for part in self._split_by_lanes(half)]
        return [stage]

    def _transposing_nest(self, stage: Stage) -> _Nest | None:
        """`lanes` vectors along one axis, log2(lanes) rounds of interleaving halves, `lanes` vectors along the other."""
        nest = self._fused(_Nest(list(stage.axes), None, 0, self._physical(stage)))
        stage, lanes = nest.stage, self._lanes
        written = next((a for a in nest.loops if self._slope(stage.indices, stage.buffer, a) == 1), None)
        if written is None:
            return None
        across: list[TensorLoad] = []
        for load in loads(stage.value):
            slope = self._slope(load.indices, load.source, written)
            if slope is None:
                return None
            if slope not in (0, 1) and not any(tvm_ffi.structural_equal(load, other) for other in across):
                across.append(load)
        others = [axis for axis in nest.loops if axis is not written]
        read = next((a for a in others if all(self._slope(x.indices, x.source, a) == 1 for x in across)), None)
        if not across or read is None or _conditions(stage.value):
            return None  # a load that a condition guards may not be read where it does not hold
        if not (self._whole_vectors(stage, written) and all(self._readable_beyond(load, read) for load in across)):
            return None
        dtype = read.var.ty.dtype
        tiles, starts = [], {}
        for axis in (read, written):
            start: Expr = tirx.const(0, dtype)
            if axis.extent > lanes:
                tile = Axis(Var(f"{axis.var.name}_t", axis.var.ty), math.ceil(axis.extent / lanes))
                start = tile.var * tirx.const(lanes, dtype)
                if axis.extent % lanes:  # the last tile is moved back into range
                    start = tirx.min(start, tirx.const(axis.extent - lanes, dtype))
                tiles.append(tile)
            starts[id(axis)] = start

        def at(expression: Expr, along_read: Expr, along_written: Expr) -> Expr:
            pairs = [(read.var, starts[id(read)] + along_read), (written.var, starts[id(written)] + along_written)]
            return substitute(expression, pairs)

        body = self._transposed_tile(stage, across, min(read.extent, lanes), min(written.extent, lanes), at)
        return _Nest([*(axis for axis in others if axis is not read), *tiles], None, 0, stage, body=body, tiled=True)

    def _transposed_tile(
        self, stage: Stage, across: list[TensorLoad], height: int, width: int, at: Callable[[Expr, Expr, Expr], Expr]
    ) -> tirx.Stmt:
        """One tile: `height` vectors of the output out of `width` vectors of each load that has to be transposed."""
        lanes, target = self._lanes, self._owner(stage.buffer)
        dtype = stage.indices[0].ty.dtype
        zero = tirx.const(0, dtype)
        everything = _ramp(zero, lanes)
        store = _flat(stage.indices, target.strides())
        statements: list[tirx.Stmt] = []

        def kept(vector: Expr, element: Any) -> Expr:
            local = tirx.decl_buffer((lanes,), element, "row", scope="local")
            statements.extend([tirx.AllocBuffer(local), tirx.BufferStore(local, vector, [everything])])
            return tirx.BufferLoad(local, [everything])

        tiles: list[tuple[TensorLoad, Var]] = []
        for load in across:
            source, element = self._owner(load.source), load.source.ty.dtype
            offset = _flat(load.indices, source.strides())
            columns = [at(offset, zero, tirx.const(min(i, width - 1), dtype)) for i in range(lanes)]
            rows = [kept(tirx.BufferLoad(source.declare(), [_ramp(column, lanes)]), element) for column in columns]
            for _ in range(lanes.bit_length() - 1):
                rows = [
                    kept(_interleaved(rows[i // 2], rows[i // 2 + lanes // 2], lanes, upper=i % 2 == 1), element)
                    for i in range(lanes)
                ]
            if isinstance(stage.value, TensorLoad):
                starts = [at(store, tirx.const(i, dtype), zero) for i in range(height)]
                writes = [
                    tirx.BufferStore(target.declare(), row, [_ramp(start, lanes)])
                    for row, start in zip(rows, starts, strict=False)
                ]
                return tirx.SeqStmt([*statements, *writes])
            tile = tirx.decl_buffer((lanes * lanes,), element, "tile", scope="local")
            statements.append(tirx.AllocBuffer(tile))
            statements += [
                tirx.BufferStore(tile, row, [_ramp(tirx.const(i * lanes, dtype), lanes)]) for i, row in enumerate(rows)
            ]
            tiles.append((load, tile))
        row, lane = Axis(Var("row", dtype), height), Var("v", dtype)

        def on_load(load: TensorLoad) -> Expr:
            tile = next((tile for other, tile in tiles if tvm_ffi.structural_equal(load, other)), None)
            if tile is None:
                return load
            return tirx.BufferLoad(tile, [row.var * tirx.const(lanes, dtype) + lane])

        def flattened(load: TensorLoad) -> Expr:
            if any(load.source.same_as(tile) for _, tile in tiles):
                return load
            owner = self._owner(load.source)
            return tirx.BufferLoad(owner.declare(), [_flat(load.indices, owner.strides())])

        value = at(tvm_ffi.structural_map(stage.value, (TensorLoad, on_load)), row.var, lane)
        value = tvm_ffi.structural_map(value, (TensorLoad, flattened))
        write = tirx.BufferStore(target.declare(), value, [at(store, row.var, lane)])
        return tirx.SeqStmt([*statements, _for(row, _vectorized(lane, lanes, write))])

    def _whole_vectors(self, stage: Stage, written: Axis) -> bool:
        """Whether whole vectors may be written along an axis: it has so many elements, or pad lanes are behind them."""
        if written.extent >= self._lanes:
            return True
        target = self._owner(stage.buffer)
        if not target.layout.packed or not isinstance(stage.indices[1], tirx.IntImm):
            return False
        last = int(stage.indices[1]) * target.layout.lanes + written.extent == int(target.logical.ty.shape[1])
        lane = _constant_offset(stage.indices[-1], written) == 0
        direct = [load for load in loads(stage.value) if self._slope(load.indices, load.source, written) == 1]
        return last and lane and all(self._readable_beyond(load, written) for load in direct)

    def _readable_beyond(self, load: TensorLoad, axis: Axis) -> bool:
        """Whether a whole vector may be read along an axis: it has so many elements, or pad lanes or slack are behind them."""
        owner = self._owner(load.source)
        lane = owner.layout.packed and _constant_offset(load.indices[-1], axis) == 0
        return axis.extent >= self._lanes or lane or owner.constant

    def _packed_nest(
        self, stage: Stage, channel: Axis, first: int, lanes: int, buffer: _Buffer
    ) -> _Nest | None:
        """`n, c_o, spatial | c_v`; None where what is loaded does not move with the channel."""
        dtype = channel.var.ty.dtype
        blocks = math.ceil(channel.extent / lanes)
        outer = Axis(Var(f"{channel.var.name}_o", channel.var.ty), blocks)
        inner = Axis(Var(f"{channel.var.name}_v", channel.var.ty), lanes)
        split = outer.var * tirx.const(lanes, dtype) + inner.var
        axes = [axis for axis in stage.axes if axis is not channel]
        position = _position(stage.axes, channel)
        changed = stage.mapped(lambda e: substitute(e, [(channel.var, split)]))
        loops = [*axes[:position], outer, *axes[position:]]
        physical = self._physical(replace(changed, axes=[*loops, inner]))
        if not self._contiguous(physical, inner) or self._slope(physical.indices, physical.buffer, inner) != 1:
            return None
        tail = channel.extent % lanes
        last = buffer.layout.packed and first + channel.extent == int(buffer.logical.ty.shape[1])
        if tail and last and self._pad_lanes_readable(physical, inner):
            tail = 0
        last_block = tirx.EQ(outer.var, tirx.const(blocks - 1, dtype)) if tail else None
        return _Nest(loops, inner, tail, physical, blocked=True, last_block=last_block)

    def _unpacking_nest(self, stage: Stage, buffer: _Buffer) -> _Nest | None:
        """A plain output whose channels lie side by side, out of packed inputs: vectors of channels; None for any other."""
        packed = [
            load
            for expression in stage.expressions
            for load in loads(expression)
            if self._find(load.source).layout.packed
        ]
        if not packed:
            return None
        channel = next((axis for axis in stage.axes if axis.extent > 1 and _mentions(packed[0].indices[1], axis)), None)
        last = next((axis for axis in reversed(stage.axes) if axis.extent > 1), None)
        if channel is None or channel is not last:
            return None
        return self._packed_nest(stage, channel, 0, self._find(packed[0].source).layout.lanes, buffer)

    def _pad_lanes_readable(self, stage: Stage, inner: Axis) -> bool:
        """Whether lanes past the last channel may be read: they are there, and what becomes of them is undefined."""
        for expression in stage.expressions:
            for load in loads(expression):
                buffer = self._owner(load.source)
                if any(_mentions(index, inner) for index in load.indices[:-1]) or not (
                    buffer.layout.packed or buffer.constant
                ):
                    if any(_mentions(index, inner) for index in load.indices) and not buffer.constant:
                        return False
        return True

    def _contiguous(self, stage: Stage, axis: Axis) -> bool:
        """Whether every load moves by 0 or 1 elements along an axis on which no condition depends."""
        for expression in stage.expressions:
            if _condition_depends(expression, axis):
                return False
            for load in loads(expression):
                if self._slope(load.indices, load.source, axis) not in (0, 1):
                    return False
        return True

    def _slope(self, indices: Sequence[Expr], physical: Var, axis: Axis) -> int | None:
        """By how many elements an access moves along an axis, None where that is not constant."""
        total = 0
        for index, stride in zip(indices, self._owner(physical).strides(), strict=True):
            slope = _index_slope(index, axis)
            if slope is None:
                return None
            total += slope * stride
        return total

    def _owner(self, physical: Var) -> _Buffer:
        return next(b for b in self._buffers if b.logical.same_as(physical) or b.shaped.same_as(physical))

    # --- channels that change lanes ---------------------------------------------------------------------

    def _gathering_nests(self, stage: Stage, buffer: _Buffer) -> list[_Nest]:
        """A plain output whose rows are channels of packed inputs that lie across their blocks; empty for any other.

        Axes that choose where a row begins (the anchors of a detection head) are written out.
        """
        row = next((axis for axis in reversed(stage.axes) if axis.extent > 1), None)
        packed = [load for load in loads(stage.value) if self._find(load.source).layout.packed]
        if row is None or stage.combiner is not None or row.extent > LONGEST_WRITTEN_OUT:
            return []
        if self._slope(stage.indices, stage.buffer, row) != 1:  # a column of a concatenation
            return []
        if not any(_mentions(load.indices[1], row) for load in packed):
            return []
        parts = [stage]
        for axis in stage.axes:
            if axis is row or axis.extent == 1 or not any(_mentions(load.indices[1], axis) for load in packed):
                continue
            if len(parts) * axis.extent * row.extent > LONGEST_WRITTEN_OUT:
                return []
            parts = [restricted(part, axis, i, i + 1) for part in parts for i in range(axis.extent)]
        nests = [self._permuted_nests(part, row, 0, self._lanes, buffer) for part in parts]
        return [nest for found in nests for nest in found] if all(nests) else []

    def _permuted_nests(
        self, stage: Stage, channel: Axis, first: int, lanes: int, buffer: _Buffer
    ) -> list[_Nest]:
        """One nest for each vector of the output, written out; empty where the value is not alike in all lanes."""
        if stage.combiner is not None or channel.extent > MOST_PERMUTED:
            return []
        axes = [axis for axis in stage.axes if axis is not channel]
        analyzer = analyzer_of(axes)
        dtype = channel.var.ty.dtype
        forms: list[tuple[Expr, list[tuple[_Buffer, Expr]]]] = []
        for position in range(channel.extent):
            at = analyzer.simplify(substitute(stage.value, [(channel.var, tirx.const(position, dtype))]))
            if _conditions(at):  # what it guards would be loaded in any case
                return []
            forms.append(self._template(at, analyzer))
        blocks: list[_Block] = []
        start = 0
        while start < channel.extent:
            lane = (first + start) % lanes
            end = min(channel.extent, start + lanes - lane)
            indices = [substitute(index, [(channel.var, tirx.const(start, dtype))]) for index in stage.indices]
            store = analyzer.simplify(_flat(physical_indices(indices, buffer.layout), buffer.strides()))
            block = _block(forms[start:end], store, analyzer)
            if block is None:
                return []
            blocks.append(block)
            start = end
        axes, blocks = _fused_blocks(axes, blocks)
        return [self._permuted_nest(stage, axes, run, buffer) for run in _runs(blocks, analyzer)]

    def _template(self, value: Expr, analyzer: Any) -> tuple[Expr, list[tuple[_Buffer, Expr]]]:
        """A value with numbered variables for its loads, and what is loaded: buffer and flat offset."""
        found: list[tuple[_Buffer, Expr]] = []

        def on_load(load: TensorLoad) -> Expr:
            owner = self._find(load.source)
            indices = physical_indices(load.indices, owner.layout)
            found.append((owner, analyzer.simplify(_flat(indices, owner.strides()))))
            return Var(f"load{len(found) - 1}", load.ty)

        return tvm_ffi.structural_map(value, (TensorLoad, on_load)), found

    def _permuted_nest(self, stage: Stage, axes: list[Axis], run: _Run, buffer: _Buffer) -> _Nest:
        """`for b: out[n, c_o + b, ..., lanes] = shuffle(x[run + b * step], y[run + b * step])`: vectors or parts of them."""
        block = run.first
        dtype = block.store.ty.dtype
        along = Axis(Var("block", block.store.ty), run.count)
        store = block.store + along.var * tirx.const(run.store_step, dtype)
        statements: list[tirx.Stmt] = []
        copies = isinstance(block.template, Var)
        # LLVM cuts arithmetic on 7 lanes into 4, 2 and 1: what is computed, is computed in 8.
        width = block.width if copies else 1 << (block.width - 1).bit_length()
        vectors = []
        for gather, steps in zip(block.gathers, run.steps, strict=True):
            bases = [
                (source, offset + along.var * tirx.const(step, dtype))
                for (source, offset), step in zip(gather.bases, steps, strict=True)
            ]
            vectors.append(_widened(_gathered(bases, gather.places), block.width, width))
        if copies:
            statements.append(tirx.BufferStore(buffer.declare(), vectors[0], [_ramp(store, width)]))
        else:
            inner = Var("c_v", block.store.ty)
            values: list[tuple[Var, Expr]] = []
            zero = tirx.const(0, dtype)

            def local(name: str, element: Any) -> Var:
                lanes = tirx.decl_buffer((width,), element, name, scope="local")
                statements.append(tirx.AllocBuffer(lanes))
                return lanes

            for number, vector in enumerate(vectors):
                name = _load_variable(block.template, number)
                if name is None:
                    continue
                loaded = local(f"{name.name}_lanes", name.ty)
                statements.append(tirx.BufferStore(loaded, vector, [_ramp(zero, width)]))
                values.append((name, tirx.BufferLoad(loaded, [inner])))
            result = local("lanes", buffer.logical.ty.dtype)
            write = tirx.BufferStore(result, substitute(block.template, values), [inner])
            statements.append(_vectorized(inner, width, write))
            written = _widened(tirx.BufferLoad(result, [_ramp(zero, width)]), width, block.width)
            statements.append(tirx.BufferStore(buffer.declare(), written, [_ramp(store, block.width)]))
        body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
        return _Nest([along, *axes], None, 0, stage, body=body)

    # --- from nests to loops ----------------------------------------------------------------------------

    def _shared(self, nests: list[_Nest], own: list[_Buffer]) -> tirx.Stmt:
        """All nests inside their common outer loops."""
        depth = self._common_depth(nests, own)
        for buffer in own:
            buffer.dropped = depth
        if not own:
            nests = [self._fused(nest) for nest in nests]
            depth = len(nests[0].loops)
        lead = nests[-1].loops[:depth]
        work = sum(self._nanoseconds(nest) for nest in nests)
        points = math.prod(axis.extent for axis in lead)
        tasks = _tasks(work, points)
        outer, inner, split = _outer_loops(lead, tasks)
        if len(nests) == 1:
            return _task_loops(outer, self._loops(nests[0].replaced(split), inner), tasks)
        statements = []
        for nest in nests:
            shared = [(a.var, b.var) for a, b in zip(nest.loops[:depth], lead, strict=True) if a is not b]
            aligned = nest.replaced(shared).replaced(split)
            statements.append(self._loops(aligned, nest.loops[depth:]))
        body: tirx.Stmt = tirx.SeqStmt(statements)
        for axis in reversed(inner):
            body = _for(axis, body)
        return _task_loops(outer, body, tasks)

    def _beside(self, nests: list[_Nest]) -> tirx.Stmt:
        """Independent nests, each shared out to all tasks."""
        nests = [self._fused(nest) for nest in nests]
        work = sum(self._nanoseconds(nest) for nest in nests)
        longest = max(math.prod(axis.extent for axis in nest.loops) for nest in nests)
        tasks = _tasks(work, longest)
        if tasks == 1:
            return tirx.SeqStmt([self._loops(nest, nest.loops) for nest in nests])
        dtype = INDEX_TYPE
        task = Axis(Var("task", dtype), tasks)
        statements = []
        for nest in nests:
            points = math.prod(axis.extent for axis in nest.loops)
            if points == 1:
                body = self._loops(nest, nest.loops)
                statements.append(tirx.IfThenElse(tirx.EQ(task.var, tirx.const(0, dtype)), body, None))
                continue
            outer, inner, split = _outer_loops(nest.loops, tasks)
            body = self._loops(nest.replaced(split), inner)
            extent = math.prod(axis.extent for axis in outer)
            share = math.ceil(extent / tasks)
            step = Var("step", dtype)
            flat = task.var * tirx.const(share, dtype) + step
            body = _unfused(outer, flat, body)
            count = tirx.min(tirx.const(share, dtype), tirx.const(extent, dtype) - task.var * tirx.const(share, dtype))
            statements.append(tirx.For(step, tirx.const(0, dtype), count, tirx.ForKind.SERIAL, body))
        body = tirx.SeqStmt(statements)
        return tirx.For(
            task.var, tirx.const(0, dtype), tirx.const(tasks, dtype), tirx.ForKind.SERIAL, body, None, {TASK_LOOP: 1}
        )

    def _common_depth(self, nests: list[_Nest], own: list[_Buffer]) -> int:
        """How many outer loops all nests have in common, seen from the buffers between them."""
        if any(nest.body is not None for nest in nests):
            return 0
        lead = nests[-1].loops
        depth = min(len(nest.loops) for nest in nests)
        for nest in nests:
            while depth and [a.extent for a in nest.loops[:depth]] != [a.extent for a in lead[:depth]]:
                depth -= 1
        for nest in nests:
            accesses = [(nest.stage.indices, self._owner(nest.stage.buffer))]
            accesses += [(x.indices, self._owner(x.source)) for e in nest.stage.expressions for x in loads(e)]
            for indices, buffer in accesses:
                if buffer not in own:
                    continue
                depth = min(depth, len(indices))
                for position in range(depth):
                    axis = nest.loops[position]
                    index = indices[position]
                    if not (isinstance(index, Var) and index.same_as(axis.var)) and not (
                        axis.extent == 1 and isinstance(index, tirx.IntImm)
                    ):
                        depth = position
                        break
        return depth

    def _fused(self, nest: _Nest) -> _Nest:
        """Fuses neighbouring loops where every access goes through them in one stride."""
        if nest.body is not None or nest.tail:
            return nest
        accesses = [(nest.stage.indices, nest.stage.buffer)]
        accesses += [(load.indices, load.source) for e in nest.stage.expressions for load in loads(e)]

        def slopes(axis: Axis) -> list[int | None]:
            return [self._slope(indices, buffer, axis) for indices, buffer in accesses]

        loops = [axis for axis in nest.loops if axis.extent > 1]
        unit = [(axis.var, tirx.const(0, axis.var.ty.dtype)) for axis in nest.loops if axis.extent == 1]
        stage = nest.stage.mapped(lambda e: substitute(e, unit)) if unit else nest.stage
        vector = nest.vector
        if vector is not None and not nest.vector_is_reduced and not nest.blocked:
            loops.append(vector)
        position = len(loops) - 2
        while position >= 0:
            outer, inner = loops[position], loops[position + 1]
            pairs = list(zip(slopes(outer), slopes(inner), strict=True))
            if all(b is not None and a == b * inner.extent for a, b in pairs) and not any(
                _used_outside_of_loads(stage, axis) for axis in (outer, inner)
            ):
                fused = Axis(inner.var, outer.extent * inner.extent)
                zero = tirx.const(0, outer.var.ty.dtype)
                removed = [(outer.var, zero)]
                stage = stage.mapped(functools.partial(substitute, values=removed))
                if inner is vector:
                    vector = fused
                loops[position : position + 2] = [fused]
                accesses = [(stage.indices, stage.buffer)]
                accesses += [(load.indices, load.source) for e in stage.expressions for load in loads(e)]
            position -= 1
        stage = replace(stage, axes=[*loops])
        return replace(nest, loops=[axis for axis in loops if axis is not vector], vector=vector, stage=stage)

    def _nanoseconds(self, nest: _Nest) -> float:
        """A guess at a nest's time, good enough to count tasks and to prefer one layout to another."""
        stage = nest.stage
        points = math.prod(axis.extent for axis in (*nest.loops, *stage.reduced))
        expensive = _expensive_calls(stage)
        if nest.body is not None:
            return points * (self._lanes if nest.tiled else 1) * (2 * VECTOR_NS + expensive * EXPENSIVE_NS)
        if nest.vector is None:
            return points * (SCALAR_NS + expensive * EXPENSIVE_NS)
        vectors = points * nest.vector.extent / self._lanes
        if nest.vector_is_reduced:
            vectors = points / self._lanes
        memory = len(loads(stage.value)) + 1
        return vectors * (memory * VECTOR_NS + expensive * EXPENSIVE_NS)

    # --- one nest --------------------------------------------------------------------------------------

    def _loops(self, nest: _Nest, loops: Sequence[Axis]) -> tirx.Stmt:
        """The nest's statement inside `loops`."""
        nest = nest.replaced([(axis.var, tirx.const(0, axis.var.ty.dtype)) for axis in loops if axis.extent == 1])
        loops = [axis for axis in loops if axis.extent > 1]
        jammed = self._jammed(nest, loops)
        statement = nest.body if nest.body is not None else self._tiles(nest, jammed)
        rest = [axis for axis in loops if axis is not jammed]
        # A copy's innermost loop is the one over its vectors, if there is one.
        inner_vectors = nest.vector is not None and nest.vector.extent >= 2 * self._lanes and nest.body is None
        if rest and not inner_vectors:
            innermost = rest.pop()
            body = statement
            statement = self._copied(nest, innermost, lambda index: substitute(body, [(innermost.var, index)]))
        for axis in reversed(rest):
            statement = _for(axis, statement)
        return statement

    def _copied(self, nest: _Nest, axis: Axis, at: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
        """`for axis: at(axis)`, two at once where the nest only copies: LLVM would make a call of `memcpy` of one at a time."""
        dtype = axis.var.ty.dtype
        stage = nest.stage
        if nest.tiled or stage.combiner is not None or not isinstance(stage.value, TensorLoad) or axis.extent < 2:
            return _for(axis, at(axis.var))
        pair = Axis(axis.var, axis.extent // 2)
        two = tirx.const(2, dtype)
        both = tirx.SeqStmt([at(axis.var * two), at(axis.var * two + tirx.const(1, dtype))])
        if axis.extent % 2 == 0:
            return _for(pair, both)
        return tirx.SeqStmt([_for(pair, both), at(tirx.const(axis.extent - 1, dtype))])

    def _jammed(self, nest: _Nest, loops: Sequence[Axis]) -> Axis | None:
        """The loop of which a reduction does several iterations at once, None for none."""
        if nest.body is not None or nest.stage.combiner is None or nest.vector is None:
            return None
        if nest.tail and not nest.vector_is_reduced:
            return None
        if any(_conditions(expression) for expression in nest.stage.expressions):
            return None  # a border: short, and code for it is not worth four copies
        if nest.vector_is_reduced and nest.vector.extent >= JAM * self._lanes:
            return None
        return next((axis for axis in reversed(loops) if axis.extent > 1), None)

    def _tiles(self, nest: _Nest, jammed: Axis | None) -> tirx.Stmt:
        """Whole tiles of the jammed loop, then what is left of it."""
        if jammed is None:
            return self._vectors(nest, [])
        factor = min(JAM, jammed.extent)
        dtype = jammed.var.ty.dtype
        statements: list[tirx.Stmt] = []
        whole = jammed.extent // factor
        base = Axis(Var(f"{jammed.var.name}_o", jammed.var.ty), whole)
        points = [base.var * tirx.const(factor, dtype) + tirx.const(i, dtype) for i in range(factor)]
        statements.append(_for(base, self._vectors(nest, [(jammed.var, point) for point in points])))
        rest = range(whole * factor, jammed.extent)
        if rest:
            statements.append(self._vectors(nest, [(jammed.var, tirx.const(i, dtype)) for i in rest]))
        return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]

    def _vectors(self, nest: _Nest, copies: list[tuple[Var, Expr]]) -> tirx.Stmt:
        """Whole vectors of the vector axis, then its last, shorter one."""
        stage, vector = nest.stage, nest.vector
        if vector is None or nest.vector_is_reduced:
            return self._point(nest, copies, None, 1)
        dtype = vector.var.ty.dtype
        if nest.blocked:
            whole = self._point(nest, copies, tirx.const(0, dtype), vector.extent)
            if not nest.tail:
                return whole
            partial = self._point(nest, copies, tirx.const(0, dtype), nest.tail)
            return tirx.IfThenElse(nest.last_block, partial, whole)
        width = self._lanes
        if stage.combiner is not None and len(loads(stage.value)) > 1 and vector.extent >= 2 * width:
            width *= 2
        if vector.extent < width:
            return self._point(nest, copies, tirx.const(0, dtype), vector.extent)
        whole = vector.extent // width
        step = Axis(Var(f"{vector.var.name}_o", vector.var.ty), whole)

        def at(index: Expr) -> tirx.Stmt:
            return self._point(nest, copies, index * tirx.const(width, dtype), width)

        statements = [self._copied(nest, step, at)]
        rest = vector.extent - whole * width
        if rest:  # the last vector is moved back into range
            rest = min(width, math.ceil(rest / self._lanes) * self._lanes)
            statements.append(self._point(nest, copies, tirx.const(vector.extent - rest, dtype), rest))
        return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]

    def _point(self, nest: _Nest, copies: list[tuple[Var, Expr]], base: Expr, width: int) -> tirx.Stmt:
        """One vector (or scalar) of output, or of each of its jammed copies."""
        stage = nest.stage
        buffer = self._owner(stage.buffer)
        store = _flat(stage.indices, buffer.strides())
        at = [[copy] for copy in copies] or [[]]
        inner = Var("v", nest.vector.var.ty) if nest.vector is not None and base is not None else None

        def here(expression: Expr, copy: list[tuple[Var, Expr]]) -> Expr:
            pairs = list(copy)
            if inner is not None and nest.vector is not None:
                pairs.append((nest.vector.var, base + inner))
            return self._flattened(substitute(expression, pairs))

        def spread(statement: tirx.Stmt) -> tirx.Stmt:
            return statement if inner is None else _vectorized(inner, width, statement)

        if stage.combiner is None:
            parts = [
                spread(tirx.BufferStore(buffer.declare(), here(stage.value, copy), [here(store, copy)])) for copy in at
            ]
            return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]
        if nest.vector_is_reduced:
            return self._horizontal(nest, at, here, store, buffer)
        dtype = stage.buffer.ty.dtype if stage.accumulator is None else stage.accumulator.ty
        index = inner if inner is not None else tirx.const(0, INDEX_TYPE)
        totals = [tirx.decl_buffer((width,), dtype, f"total{i}", scope="local") for i in range(len(at))]
        begin = [spread(tirx.BufferStore(total, stage.initial, [index])) for total in totals]
        step: list[tirx.Stmt] = []
        end: list[tirx.Stmt] = []
        for total, copy in zip(totals, at, strict=True):
            current = tirx.BufferLoad(total, [index])
            added = _COMBINE[stage.combiner or ""](current, here(stage.value, copy))
            step.append(spread(tirx.BufferStore(total, added, [index])))
            result = current
            if stage.epilogue is not None and stage.accumulator is not None:
                result = substitute(here(stage.epilogue, copy), [(stage.accumulator, current)])
            end.append(spread(tirx.BufferStore(buffer.declare(), result, [here(store, copy)])))
        body: tirx.Stmt = tirx.SeqStmt(step) if len(step) > 1 else step[0]
        for axis in reversed(stage.reduced):
            body = _for(axis, body)
        return tirx.SeqStmt([*[tirx.AllocBuffer(total) for total in totals], *begin, body, *end])

    def _horizontal(
        self,
        nest: _Nest,
        at: list[list[tuple[Var, Expr]]],
        here: Callable[[Expr, list[tuple[Var, Expr]]], Expr],
        store: Expr,
        buffer: _Buffer,
    ) -> tirx.Stmt:
        """A reduction whose own axis is the vector: lanes of partial sums, added up at the end."""
        stage, vector = nest.stage, nest.vector
        assert vector is not None
        combine = _COMBINE[stage.combiner or ""]
        width = self._lanes * (JAM if vector.extent >= JAM * self._lanes else 1)
        width = min(width, vector.extent)
        dtype = stage.buffer.ty.dtype if stage.accumulator is None else stage.accumulator.ty
        index_type = vector.var.ty.dtype
        lane = Var("v", vector.var.ty)
        outer = [axis for axis in stage.reduced if axis is not vector]
        allocations: list[tirx.Stmt] = []
        begin: list[tirx.Stmt] = []
        end: list[tirx.Stmt] = []
        totals = [tirx.decl_buffer((width,), dtype, f"total{i}", scope="local") for i in range(len(at))]

        def added(base: Expr, count: int) -> tirx.Stmt:
            parts = []
            for total, copy in zip(totals, at, strict=True):
                value = here(stage.value, [*copy, (vector.var, base + lane)])
                current = tirx.BufferLoad(total, [lane])
                parts.append(_vectorized(lane, count, tirx.BufferStore(total, combine(current, value), [lane])))
            return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]

        whole = vector.extent // width
        step = Axis(Var(f"{vector.var.name}_o", vector.var.ty), whole)
        parts = [_for(step, added(step.var * tirx.const(width, index_type), width))]
        start = whole * width
        while start < vector.extent:
            count = min(self._lanes, vector.extent - start)
            parts.append(added(tirx.const(start, index_type), count))
            start += count
        body: tirx.Stmt = tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]
        if nest.tail:
            body = tirx.IfThenElse(nest.last_block, added(tirx.const(0, index_type), nest.tail), body)
        for axis in reversed(outer):
            body = _for(axis, body)
        for total, copy in zip(totals, at, strict=True):
            allocations.append(tirx.AllocBuffer(total))
            begin.append(_vectorized(lane, width, tirx.BufferStore(total, stage.initial, [lane])))
            size = width
            while size > 1:  # halves: log2(width) steps of vectors instead of a chain of scalars
                half = size // 2 if size % 2 == 0 else 0
                if not half:
                    chain = tirx.BufferLoad(total, [tirx.const(0, index_type)])
                    for i in range(1, size):
                        chain = combine(chain, tirx.BufferLoad(total, [tirx.const(i, index_type)]))
                    end.append(tirx.BufferStore(total, chain, [tirx.const(0, index_type)]))
                    break
                folded = combine(
                    tirx.BufferLoad(total, [lane]), tirx.BufferLoad(total, [lane + tirx.const(half, index_type)])
                )
                end.append(_vectorized(lane, half, tirx.BufferStore(total, folded, [lane])))
                size = half
            result = tirx.BufferLoad(total, [tirx.const(0, index_type)])
            if stage.epilogue is not None and stage.accumulator is not None:
                result = substitute(here(stage.epilogue, copy), [(stage.accumulator, result)])
            end.append(tirx.BufferStore(buffer.declare(), result, [here(store, copy)]))
        return tirx.SeqStmt([*allocations, *begin, body, *end])

    def _flattened(self, expression: Expr) -> Expr:
        """The expression on flat buffers."""

        def on_load(load: TensorLoad) -> Expr:
            buffer = self._owner(load.source)
            return tirx.BufferLoad(buffer.declare(), [_flat(load.indices, buffer.strides())])

        return tvm_ffi.structural_map(expression, (TensorLoad, on_load))


class _Estimate(_Scheduler):
    """Makes the nests of one kernel only to count what they cost; vectors made from parts are not written out."""

    def nanoseconds(self) -> float:
        """Predicts the time of all nests."""
        return sum(self._nanoseconds(nest) for stage in self._stages for nest in self._nests(stage))

    def _permuted_nests(
        self, stage: Stage, channel: Axis, first: int, lanes: int, buffer: _Buffer
    ) -> list[_Nest]:
        """One nest that stands for all, its first loop over the vectors of channels."""
        del first, buffer
        if stage.combiner is not None or channel.extent > MOST_PERMUTED:
            return []
        vectors = Axis(channel.var, math.ceil(channel.extent / lanes))
        loops = [vectors, *(axis for axis in stage.axes if axis is not channel)]
        return [_Nest(loops, None, 0, stage, body=tirx.Evaluate(0))]

    def _nanoseconds(self, nest: _Nest) -> float:
        """As for any nest, but for vectors made from parts, which cost what their parts cost."""
        if nest.body is None or nest.tiled:
            return super()._nanoseconds(nest)
        vectors, parts = nest.loops[0], 0.0
        channels = next(axis.extent for axis in nest.stage.axes if axis.var.same_as(vectors.var))
        for load in loads(nest.stage.value):
            if self._find(load.source).layout.packed:
                parts += SHUFFLED_PARTS
            else:
                parts += 1 if self._slope(load.indices, load.source, vectors) in (0, 1) else channels / vectors.extent
        each = VECTOR_NS + parts * PART_NS + _expensive_calls(nest.stage) * EXPENSIVE_NS
        return math.prod(axis.extent for axis in nest.loops) * each


_VECTORIZE = tvm.ir.transform.Sequential(
    [tirx.transform.StmtSimplify(), tirx.transform.NarrowDataType(32), tirx.transform.VectorizeLoop()]
)

_COMBINE: Final[dict[str, Callable[[Expr, Expr], Expr]]] = {
    "sum": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "max": lambda a, b: tirx.max(a, b),
    "min": lambda a, b: tirx.min(a, b),
}

def _flat(indices: Sequence[Expr], strides: Sequence[int]) -> Expr:
    """`sum(index * stride)`."""
    dtype = indices[0].ty.dtype if indices else INDEX_TYPE
    total: Expr = tirx.const(0, dtype)
    for index, stride in zip(indices, strides, strict=True):
        if stride:
            total = total + index * tirx.const(stride, dtype)
    return total


def _for(axis: Axis, body: tirx.Stmt) -> tirx.Stmt:
    """`for axis: body` with a variable of its own, no loop where the axis has one point."""
    dtype = axis.var.ty.dtype
    if axis.extent == 1:
        return substitute(body, [(axis.var, tirx.const(0, dtype))])
    fresh = Var(axis.var.name, axis.var.ty)
    body = substitute(body, [(axis.var, fresh)])
    return tirx.For(fresh, tirx.const(0, dtype), tirx.const(axis.extent, dtype), tirx.ForKind.SERIAL, body)


def _vectorized(variable: Var, width: int, body: tirx.Stmt) -> tirx.Stmt:
    """`for variable in vectorized(width): body`."""
    dtype = variable.ty.dtype
    if width == 1:
        return substitute(body, [(variable, tirx.const(0, dtype))])
    # Each statement has a loop variable of its own.
    fresh = Var(variable.name, variable.ty)
    body = substitute(body, [(variable, fresh)])
    return tirx.For(fresh, tirx.const(0, dtype), tirx.const(width, dtype), tirx.ForKind.VECTORIZED, body)


def _expensive_calls(stage: Stage) -> int:
    """How often a stage calls a function of many operations, in all its expressions."""
    calls: list[Call] = []
    for expression in stage.expressions:
        tvm_ffi.structural_walk(expression, (Call, calls.append), order="pre")
    return sum(getattr(call.op, "name", "") in EXPENSIVE_CALLS for call in calls)


def _tasks(nanoseconds: float, points: int) -> int:
    """How many tasks a kernel is worth: a power of two, which two or four workers share evenly, or all points."""
    wanted = max(1, int(nanoseconds / TASK_NS))
    return max(1, min(MOST_TASKS, points, 1 << (wanted.bit_length() - 1)))


def _outer_loops(loops: Sequence[Axis], tasks: int) -> tuple[list[Axis], list[Axis], list[tuple[Var, Expr]]]:
    """The fewest outer loops that make up the tasks, the loops inside them, and what the variable of a split loop becomes.

    The last of the outer loops is split into shares of whole jams; the last share is moved back into range, so that some
    of its elements are computed twice, to the same values.
    """
    if tasks == 1:
        return [], list(loops), []
    points, count = 1, 0
    while points < tasks and count < len(loops):
        points *= loops[count].extent
        count += 1
    outer, inner = list(loops[:count]), list(loops[count:])
    last = outer[-1]
    wanted = tasks / (points / last.extent)
    share = min(last.extent, math.ceil(last.extent / wanted / JAM) * JAM)
    if share < JAM or last.extent <= JAM:
        return outer, inner, []
    major = Axis(Var(f"{last.var.name}_o", last.var.ty), math.ceil(last.extent / share))
    minor = Axis(Var(f"{last.var.name}_i", last.var.ty), share)
    dtype = last.var.ty.dtype
    start = major.var * tirx.const(share, dtype)
    if last.extent % share:
        start = tirx.min(start, tirx.const(last.extent - share, dtype))
    return [*outer[:-1], major], [minor, *inner], [(last.var, start + minor.var)]


def _unfused(axes: Sequence[Axis], flat: Expr, body: tirx.Stmt) -> tirx.Stmt:
    """`body` with the axes' variables taken from one number that counts through all of them."""
    pairs: list[tuple[Var, Expr]] = []
    stride = 1
    total = math.prod(axis.extent for axis in axes)
    for axis in reversed(axes):
        value = flat if stride == 1 else tirx.floordiv(flat, tirx.const(stride, flat.ty.dtype))
        if stride * axis.extent < total:
            value = tirx.floormod(value, tirx.const(axis.extent, flat.ty.dtype))
        if str(value.ty.dtype) != str(axis.var.ty.dtype):
            value = tirx.Cast(axis.var.ty.dtype, value)
        pairs.append((axis.var, value))
        stride *= axis.extent
    return substitute(body, pairs)


def _task_loops(outer: Sequence[Axis], body: tirx.Stmt, tasks: int) -> tirx.Stmt:
    """The outer loops as one loop over tasks."""
    if not outer:
        return body
    total = math.prod(axis.extent for axis in outer)
    dtype = outer[0].var.ty.dtype
    flat = outer[0].var if len(outer) == 1 else Var("task", outer[0].var.ty)
    if len(outer) > 1:
        body = _unfused(outer, flat, body)
    grain = math.ceil(total / tasks)
    return tirx.For(
        flat, tirx.const(0, dtype), tirx.const(total, dtype), tirx.ForKind.SERIAL, body, None, {TASK_LOOP: grain}
    )


def _mentions(expression: Expr, axis: Axis) -> bool:
    """Whether an axis' variable occurs."""
    found: list[Var] = []
    tvm_ffi.structural_walk(expression, (Var, found.append), order="pre")
    return any(variable.same_as(axis.var) for variable in found)


def _constant_offset(index: Expr, axis: Axis) -> int | None:
    """`k` of `axis + k`, None for any other index."""
    linear = tvm.sym.detect_linear_equation(index, [axis.var])
    if len(linear) != 2 or not all(isinstance(part, tirx.IntImm) for part in linear) or int(linear[0]) != 1:
        return None
    return int(linear[1])


def _position(axes: Sequence[Axis], axis: Axis) -> int:
    return next(i for i, other in enumerate(axes) if other is axis)


def _condition_depends(expression: Expr, axis: Axis) -> bool:
    """Whether a condition in an expression changes along an axis."""
    return any(_mentions(condition, axis) for condition in _conditions(expression))


def _conditions(expression: Expr) -> list[Expr]:
    """The conditions in an expression that keep something from being loaded."""
    conditions: list[Expr] = []

    def on_call(call: Call) -> None:
        if getattr(call.op, "name", "") == "prim.if_then_else":
            conditions.append(call.args[0])

    tvm_ffi.structural_walk(expression, (Call, on_call), order="pre")
    return conditions


def _used_outside_of_loads(stage: Stage, axis: Axis) -> bool:
    """Whether a value depends on an axis other than by what it loads."""

    def without_loads(load: TensorLoad) -> Expr:
        return Var("load", load.ty)

    return any(
        _mentions(tvm_ffi.structural_map(expression, (TensorLoad, without_loads)), axis) for expression in stage.expressions
    )


def _ramp(base: Expr, width: int) -> Expr:
    """`base, base + 1, ...`; the base itself for a width of 1."""
    return base if width == 1 else tirx.Ramp(base, tirx.const(1, base.ty.dtype), width)


def _widened(vector: Expr, lanes: int, width: int) -> Expr:
    """A vector of `lanes` in `width` lanes: its first ones, or its last one again at the end."""
    if lanes == width:
        return vector
    return shuffle([vector], [min(i, lanes - 1) for i in range(width)])


def _interleaved(first: Expr, second: Expr, lanes: int, *, upper: bool) -> Expr:
    """The lower or the upper halves of two vectors, element by element."""
    start = lanes // 2 if upper else 0
    order = [start + i // 2 + (i % 2) * lanes for i in range(lanes)]
    return shuffle([first, second], order)


def _load_variable(template: Expr, number: int) -> Var | None:
    """The variable that stands for a load in a template."""
    found: list[Var] = []
    tvm_ffi.structural_walk(template, (Var, found.append), order="pre")
    return next((variable for variable in found if variable.name == f"load{number}"), None)


def _block(
    forms: Sequence[tuple[Expr, list[tuple[_Buffer, Expr]]]], store: Expr, analyzer: Any
) -> _Block | None:
    """How one vector of the output is made; None where its lanes are not alike or their distances vary."""
    template, first_loads = forms[0]
    if any(
        len(found) != len(first_loads) or not tvm_ffi.structural_equal(form, template, map_free_vars=True)
        for form, found in forms[1:]
    ):
        return None
    gathers = []
    for number in range(len(first_loads)):
        bases: list[tuple[_Buffer, Expr]] = []
        places: list[tuple[int, int]] = []
        for _, found in forms:
            buffer, offset = found[number]
            source = next((i for i, (other, _) in enumerate(bases) if other is buffer), None)
            if source is None:
                source = len(bases)
                bases.append((buffer, offset))
            distance = analyzer.simplify(offset - bases[source][1])
            if not isinstance(distance, tirx.IntImm):
                return None
            places.append((source, int(distance)))
        gathers.append(_Gather(bases, tuple(places)))
    return _Block(template, store, len(forms), gathers)


def _fused_blocks(axes: Sequence[Axis], blocks: list[_Block]) -> tuple[list[Axis], list[_Block]]:
    """Fuses neighbouring loops that all blocks go through in one stride."""
    loops = [axis for axis in axes if axis.extent > 1]
    units = [(axis.var, tirx.const(0, axis.var.ty.dtype)) for axis in axes if axis.extent == 1]
    blocks = [block.replaced(units) for block in blocks]
    if any(_mentions(block.template, axis) for block in blocks for axis in loops):
        return loops, blocks
    for position in reversed(range(len(loops) - 1)):
        outer, inner = loops[position], loops[position + 1]
        slopes = [
            (_index_slope(offset, outer), _index_slope(offset, inner)) for block in blocks for offset in block.offsets
        ]
        if all(b is not None and a == b * inner.extent for a, b in slopes):
            removed = [(outer.var, tirx.const(0, outer.var.ty.dtype))]
            blocks = [block.replaced(removed) for block in blocks]
            loops[position : position + 2] = [Axis(inner.var, outer.extent * inner.extent)]
    return loops, blocks


def _index_slope(index: Expr, axis: Axis) -> int | None:
    """By how much an index grows along an axis, None where that is not constant."""
    if not _mentions(index, axis):
        return 0
    linear = tvm.sym.detect_linear_equation(index, [axis.var])
    return int(linear[0]) if len(linear) == 2 and isinstance(linear[0], tirx.IntImm) else None


def _runs(blocks: Sequence[_Block], analyzer: Any) -> list[_Run]:
    """Blocks that are made alike, at equal distances, as one loop over them."""
    runs: list[_Run] = []
    for block in blocks:
        run = next((run for run in runs if run.takes(block, analyzer)), None)
        if run is None:
            runs.append(_Run(block, [], 1, 0, [[0] * len(gather.bases) for gather in block.gathers]))
    return runs


def _gathered(bases: Sequence[tuple[_Buffer, Expr]], places: Sequence[tuple[int, int]]) -> Expr:
    """One vector of elements of several buffers: whole blocks of packed ones and runs of others, shuffled."""
    vectors: list[Expr] = []
    lane_of: dict[tuple[int, int], int] = {}
    lanes = 0
    for number, (buffer, base) in enumerate(bases):
        wanted = sorted({distance for other, distance in places if other == number})
        for start, count in _pieces(buffer, base, wanted):
            first = tvm.sym.Analyzer().simplify(base + tirx.const(start, base.ty.dtype))
            vectors.append(tirx.BufferLoad(buffer.declare(), [_ramp(first, count)]))
            lane_of |= {(number, start + i): lanes + i for i in range(count)}
            lanes += count
    order = [lane_of[place] for place in places]
    if len(vectors) == 1 and order == list(range(lanes)):
        return vectors[0]
    if lanes == 1:
        return tirx.Broadcast(vectors[0], len(order)) if len(order) > 1 else vectors[0]
    return shuffle(vectors, order)


def _pieces(buffer: _Buffer, base: Expr, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Where to load from to get elements at distances from `base`: first distance and elements of each load."""
    lanes = buffer.layout.lanes
    lane = tvm.sym.Analyzer().simplify(tirx.floormod(base, tirx.const(lanes, base.ty.dtype))) if lanes else None
    if isinstance(lane, tirx.IntImm) and len(wanted) > 1:
        blocks = sorted({(int(lane) + distance) // lanes for distance in wanted})
        return [(block * lanes - int(lane), lanes) for block in blocks]
    pieces: list[tuple[int, int]] = []
    for distance in wanted:
        if pieces and sum(pieces[-1]) == distance:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            pieces.append((distance, 1))
    return pieces
