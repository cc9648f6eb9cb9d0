"""Layout assignment: in which layout each value lies, so that the predicted cycles of the whole network are least.

A value is held in the layout in which its producer writes it, and possibly in the other one too, as a conversion
makes it; where that moves no element, on a core without vectors, the other one is a view. Products, views and the network's
inputs and outputs are plain. Open is

- for a value that a generic kernel writes: its layout;
- for every value: whether the other layout is made as well;
- for a convolution: whether it reads its input packed or, where a strategy can, plain; and writes packed or plain
  likewise. What it adds to its output it reads in that layout;
- for each input of a generic kernel: which of the layouts held it reads. Its loops go along the memory of its output, so
  that an input in another layout is gathered or transposed: the mixed layout is possible, and costs what it costs.

    minimise   sum over values held twice   conversion's cycles
             + sum over convolutions        cycles with the input as it is read and the output as it is written
             + sum over generic kernels     cycles in the layouts of what each part of it reads and writes

Each summand depends on few decisions, and those of different regions not on each other: between them are convolutions that write
packed tensors alone, as most do. So `elimination` finds the least sum exactly.

The choice is between plain and packed. What a convolution writes has the lanes of its type, all else the most of them, so that
float32 tensors between float16 ones are packed as those are; a generic kernel takes tensors that are packed alike. A tensor
that the model itself keeps as `(n, h, w, c)` is a plain one of that shape, so channels-last is among them at the ends of a
network: the transposition there reads or writes it as it is, and its other side is whatever is cheapest for the convolution.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import tvm_ffi
from tvm.ir.expr import Expr, TensorLoad, Var

from sepwise.lowering.cost import CALL_CYCLES, stream_cycles
from sepwise.lowering.elimination import Table, minimize
from sepwise.lowering.generic import GenericWorkload, conversion
from sepwise.lowering.generic_schedule import predicted_cycles
from sepwise.lowering.generic_stages import Stage, StageFunction, loads, parse, simplify_stages
from sepwise.lowering.graph import Kernel, Layout
from sepwise.lowering.workload import ConvWorkload, LinearWorkload

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from sepwise.lowering.graph import KernelGraph, TensorType
    from sepwise.lowering.selection import Selector

__all__ = ["assign_layouts"]

PLAIN = Layout()
LEAST_PACKED_RANK = 3

MOST_MIXED = 7
"""Tensors that one part of a generic kernel may have in any mixture of layouts; more of them all have its output's.

Each mixture is one prediction, 128 at most: they double with each tensor, while assigning layouts has to stay a small part of
the time that a network takes to compile."""

Held = tuple[Layout, ...]
"""The layouts in which a value is held; first the one in which it is written."""


def assign_layouts(graph: KernelGraph, views: Mapping[str, str], selector: Selector) -> dict[str, str]:
    """Gives every value a layout, every convolution the lanes of its input, and inserts conversions.

    Args:
        graph: Changed in place; its values are plain before.
        views: Values that are views of others, which must be plain.
        selector: Predicts the cycles of convolutions, and knows the device.

    Returns:
        Further views: values in a layout that differs in no element's place from that of what they view.
    """
    assignment = _Assignment(graph, views, selector)
    assignment.solve()
    return assignment.apply()


class _GenericCycles:
    """Predicted cycles of a generic workload by layouts, part by part.

    Parts are stages that share no tensor but the kernel's own, such as the inputs of a concatenation; their cycles add up.
    """

    def __init__(self, workload: GenericWorkload, selector: Selector) -> None:
        self._selector = selector
        first = len(workload.input_layouts)
        self._constants = range(first, first + workload.constant_count)
        self._cycles: dict[tuple[int, tuple[Layout, ...]], float] = {}
        self.parts: list[tuple[int, ...]] = []
        self._functions: list[StageFunction] = []
        self.turned: frozenset[int] = frozenset()  # positions of inputs whose channels become another axis
        parsed = parse(workload.function)
        if parsed is None:
            return
        function = simplify_stages(parsed)
        parts: dict[tuple[int, ...], list[Stage]] = {}
        for stage in function.stages:
            touched = tuple(range(len(function.parameters)))
            if not function.intermediates:
                sources = [stage.buffer, *(load.source for e in stage.expressions for load in loads(e))]
                touched = tuple(
                    i for i, own in enumerate(function.parameters) if any(own.same_as(other) for other in sources)
                )
            parts.setdefault(touched, []).append(stage)
        self.parts = list(parts)
        self._functions = [replace(function, stages=stages) for stages in parts.values()]
        self.turned = frozenset(
            index
            for index, own in enumerate(function.parameters[:first])
            for stage in function.stages
            for load in (load for expression in stage.expressions for load in loads(expression))
            if load.source.same_as(own) and _turns(stage, load)
        )

    def predict(self, part: int, layouts: tuple[Layout, ...]) -> float:
        """Predicts one part's cycles; `layouts` are those of all inputs and outputs."""
        if (part, layouts) not in self._cycles:
            plain = (PLAIN,) * len(self._constants)
            split = self._constants.start
            self._cycles[part, layouts] = predicted_cycles(
                self._functions[part],
                self._selector.device,
                (*layouts[:split], *plain, *layouts[split:]),
                self._constants,
                threads=self._selector.threads,
            )
        return self._cycles[part, layouts]

    def tensors(self, part: int) -> tuple[int, ...]:
        """Positions among inputs and outputs, constants left out, of what a part touches."""
        split, count = self._constants.start, len(self._constants)
        return tuple(i if i < split else i - count for i in self.parts[part] if i not in self._constants)


class _Assignment:
    """The decisions for one graph: first their costs, then what follows from the cheapest."""

    def __init__(self, graph: KernelGraph, views: Mapping[str, str], selector: Selector) -> None:
        self._graph = graph
        self._selector = selector
        convolutions = [kernel.workload for kernel in graph.kernels if isinstance(kernel.workload, ConvWorkload)]
        self._packed = Layout(max((each.output_lanes for each in convolutions), default=selector.device.lanes))
        self._read_lanes: dict[str, set[int]] = {}  # by value, those of the convolutions that read it
        for kernel in graph.kernels:
            if isinstance(kernel.workload, ConvWorkload):
                for name in kernel.inputs:
                    self._read_lanes.setdefault(name, set()).add(kernel.workload.output_lanes)
        self._packed_types = {"float32", *(each.dtypes.output for each in convolutions)}
        self._plain_names = set(graph.inputs) | set(graph.outputs) | set(views) | set(views.values())
        self._generic: dict[tuple[str, int], _GenericCycles] = {}
        producers = {name: kernel for kernel in graph.kernels for name in kernel.outputs}
        self._options = {name: self._possible(name, producers.get(name)) for name in graph.values}
        self._held: dict[str, Held] = {}
        self._reads: dict[tuple[str, int], Layout] = {}

    def _possible(self, name: str, producer: Kernel | None) -> list[Held]:
        """The ways in which a value can be held; of equally good ones the first is taken."""
        packed = self._packed
        if producer is not None and isinstance(producer.workload, ConvWorkload):
            packed = Layout(producer.workload.output_lanes)
        both = [(packed, PLAIN), (PLAIN, packed)]
        if producer is not None and isinstance(producer.workload, ConvWorkload):
            as_plain = [(PLAIN,), (PLAIN, packed)] if self._can_write_plain(producer.workload) else []
            return ([(packed, PLAIN)] if name in self._plain_names else [(packed,), (packed, PLAIN)]) + as_plain
        if not self._can_be_packed(self._graph.values[name]):
            return [(PLAIN,)]
        others = [(PLAIN, Layout(lanes)) for lanes in self._read_lanes.get(name, ()) if lanes != packed.lanes]
        if producer is None or isinstance(producer.workload, LinearWorkload):
            return [(PLAIN,), (PLAIN, packed), *others]
        return [(PLAIN,), *both, *others] if name in self._plain_names else [(packed,), (PLAIN,), *both, *others]

    def _can_write_plain(self, workload: ConvWorkload) -> bool:
        """Whether some strategy computes a convolution whose output is plain."""
        inputs = (PLAIN.lanes, workload.input_lanes)
        choices = [self._selector.choose(replace(workload, input_lanes=lanes, output_lanes=PLAIN.lanes)) for lanes in inputs]
        return not all(isinstance(choice, list) for choice in choices)

    def _can_be_packed(self, value: TensorType) -> bool:
        """Whether strategies and generic kernels take a packed tensor of that type."""
        return value.dtype in self._packed_types and len(value.shape) >= LEAST_PACKED_RANK

    # --- what decisions cost --------------------------------------------------------------------------------

    def solve(self) -> None:
        """Chooses how every value is held and in which layout it is read."""
        tables = [self._conversion_table(name) for name in self._graph.values]
        for kernel in self._graph.kernels:
            workload = kernel.workload
            if isinstance(workload, GenericWorkload):
                tables += self._generic_tables(kernel, workload)
            else:
                tables += [self._strategy_table(kernel, position) for position in range(len(kernel.inputs))]
        found = minimize(tables)
        self._held = {name: options[found[name]] for name, options in self._options.items()}
        for kernel in self._graph.kernels:
            for position, name in enumerate(kernel.inputs):
                if isinstance(kernel.workload, GenericWorkload):
                    state = found.get((kernel.name, position))
                    layouts = self._readable(kernel, position)
                    self._reads[kernel.name, position] = layouts[state] if state is not None else self._held[name][0]
                else:
                    written = self._held[kernel.outputs[0]][0]
                    costs = {layout: self._strategy_cycles(kernel, position, layout, written) for layout in self._held[name]}
                    self._reads[kernel.name, position] = min(costs, key=costs.__getitem__)

    def _conversion_table(self, name: str) -> Table:
        """The cycles to make a value's other layout."""
        costs = [self._conversion_cycles(self._graph.values[name], held) for held in self._options[name]]
        return Table((name,), np.array(costs))

    def _conversion_cycles(self, value: TensorType, held: Held) -> float:
        if len(held) == 1 or held[0].moves_nothing(held[1]):
            return 0.0
        cycles = self._cycles_of(conversion(value, held[1])).predict(0, held)
        return CALL_CYCLES + cycles + sum(self._stream_cycles(value, layout) for layout in held)

    def _stream_cycles(self, value: TensorType, layout: Layout) -> float:
        """The cycles to read or write a value in a layout, pad lanes included."""
        return stream_cycles(self._selector.device, replace(value, layout=layout).nbytes)

    def _strategy_table(self, kernel: Kernel, position: int) -> Table:
        """The cycles of a convolution or product by how an input is held, read as is cheapest, and by how its output is."""
        name, (output,) = kernel.inputs[position], kernel.outputs
        written = [layout for layout, *_ in self._options[output]]
        costs = [
            [min(self._strategy_cycles(kernel, position, layout, to) for layout in held) for to in written]
            for held in self._options[name]
        ]
        if len(set(written)) == 1:
            return Table((name,), np.array(costs)[:, 0])
        return Table((name, output), np.array(costs))

    def _strategy_cycles(self, kernel: Kernel, position: int, layout: Layout, written: Layout) -> float:
        """The cycles of a convolution or product that reads an input and writes in layouts, infinite where it cannot."""
        workload = kernel.workload
        if isinstance(workload, LinearWorkload):
            return math.inf if layout.packed else 0.0
        assert isinstance(workload, ConvWorkload)
        if position > 0:
            return 0.0 if layout == written else math.inf
        choice = self._selector.choose(replace(workload, input_lanes=layout.lanes, output_lanes=written.lanes))
        return math.inf if isinstance(choice, list) else choice.cycles

    def _generic_tables(self, kernel: Kernel, workload: GenericWorkload) -> list[Table]:
        """A kernel reads what is held, and each part costs what it costs in its layouts."""
        cycles = self._cycles_of(workload)
        tables = []
        for position, name in enumerate(kernel.inputs):
            value, layouts = self._graph.values[name], self._readable(kernel, position)
            streams = {layout: self._stream_cycles(value, layout) for layout in layouts}
            reading = [
                [stream if layout in held else math.inf for layout, stream in streams.items()]
                for held in self._options[name]
            ]
            tables.append(Table((name, (kernel.name, position)), np.array(reading)))
        for name in kernel.outputs:
            writing = [self._stream_cycles(self._graph.values[name], held[0]) for held in self._options[name]]
            tables.append(Table((name,), np.array(writing)))
        for part in range(len(cycles.parts)):
            tables += self._part_tables(kernel, cycles, part)
        return tables

    def _part_tables(self, kernel: Kernel, cycles: _GenericCycles, part: int) -> list[Table]:
        """The cycles of one part by the layouts of its tensors; the layouts of all others do not matter."""
        inputs = len(kernel.inputs)
        touched = cycles.tensors(part)
        variables: list[Hashable] = []
        states: list[list[Layout]] = []
        for index in touched:
            if index < inputs:
                variables.append((kernel.name, index))
                states.append(self._readable(kernel, index))
            else:
                variables.append(kernel.outputs[index - inputs])
                states.append([held[0] for held in self._options[kernel.outputs[index - inputs]]])

        def predict(chosen: Sequence[Layout]) -> float:
            layouts = [PLAIN] * (inputs + len(kernel.outputs))
            for index, layout in zip(touched, chosen, strict=True):
                layouts[index] = layout
            return cycles.predict(part, tuple(layouts))

        if sum(len(set(layouts)) > 1 for layouts in states) <= MOST_MIXED:
            costs = np.array([predict(chosen) for chosen in itertools.product(*states)])
            return [Table(tuple(variables), costs.reshape([len(layouts) for layouts in states]))]
        *others, last = states
        tables = [Table((variables[-1],), np.array([predict([_alike(layouts, want) for layouts in states]) for want in last]))]
        for variable, layouts in zip(variables, others, strict=False):
            unlike = [[0.0 if layout == _alike(layouts, want) else math.inf for want in last] for layout in layouts]
            tables.append(Table((variable, variables[-1]), np.array(unlike)))
        return tables

    def _readable(self, kernel: Kernel, position: int) -> list[Layout]:
        """The layouts in which a generic kernel may read an input: packed as all of its tensors, plain where it reshapes it.

        An input of the network whose channels it makes another axis, as a Transpose does, is read as it came.
        """
        name = kernel.inputs[position]
        assert isinstance(kernel.workload, GenericWorkload)
        read = tuple(int(extent) for extent in kernel.workload.function.params[position].ty.shape)
        if read != self._graph.values[name].shape:
            return [PLAIN]
        if name in self._graph.inputs and position in self._cycles_of(kernel.workload).turned:
            return [PLAIN]  # to pack it first moves all of it twice
        layouts = dict.fromkeys(layout for held in self._options[name] for layout in held)
        return [layout for layout in layouts if layout in (PLAIN, self._packed)]

    def _cycles_of(self, workload: GenericWorkload) -> _GenericCycles:
        """The costs of equal functions, found once."""
        key = (workload.signature, workload.constant_count)  # one function may be fed a constant here and a tensor there
        if key not in self._generic:
            self._generic[key] = _GenericCycles(workload, self._selector)
        return self._generic[key]

    # --- what follows ---------------------------------------------------------------------------------------

    def apply(self) -> dict[str, str]:
        """Renames what is held twice, and puts each conversion before the first kernel that reads what it makes.

        Returns:
            What needs none, as it moves no element: values by the name of the same one in its other layout.
        """
        graph = self._graph
        kernels: list[Kernel] = []
        views: dict[str, str] = {}
        converted: set[str] = set()
        types = dict(graph.values)
        for name in types:
            self._declare(name, self._held[name][0], types[name])

        def convert(name: str) -> None:
            if name in converted or len(self._held[name]) == 1:
                return
            source, target = (self._name(name, layout) for layout in self._held[name])
            self._declare(name, self._held[name][1], types[name])
            if graph.values[source].layout.moves_nothing(graph.values[target].layout):
                views[target] = source
                return
            number = len(graph.kernels) + len(converted)
            converted.add(name)
            label = "".join(c if c.isalnum() else "_" for c in name)
            workload = conversion(graph.values[source], graph.values[target].layout)
            kernels.append(Kernel(f"k{number}_layout_{label}"[:96], workload, (source,), (), (target,), ()))

        for kernel in graph.kernels:
            reads = [self._reads[kernel.name, position] for position in range(len(kernel.inputs))]
            for name, layout in zip(kernel.inputs, reads, strict=True):
                if layout != self._held[name][0]:
                    convert(name)
            written = kernel.outputs
            kernel.inputs = tuple(self._name(name, layout) for name, layout in zip(kernel.inputs, reads, strict=True))
            kernel.outputs = tuple(self._name(name, self._held[name][0]) for name in written)
            self._fix(kernel, reads)
            kernels.append(kernel)
            for name in written:
                if name in self._plain_names and self._held[name][0].packed:
                    convert(name)  # at once: the network's output, or a view of it, is next
        graph.kernels[:] = kernels
        return views

    def _fix(self, kernel: Kernel, reads: Sequence[Layout]) -> None:
        """Notes the layouts in the kernel's workload."""
        workload = kernel.workload
        written = tuple(self._graph.values[name].layout for name in kernel.outputs)
        if isinstance(workload, ConvWorkload):
            kernel.workload = replace(workload, input_lanes=reads[0].lanes, output_lanes=written[0].lanes)
        elif isinstance(workload, GenericWorkload):
            kernel.workload = replace(workload, input_layouts=tuple(reads), output_layouts=written)

    def _name(self, name: str, layout: Layout) -> str:
        """A value's own name for the layout that it is known by, another one for its copy."""
        own = PLAIN if name in self._plain_names else self._held[name][0]
        return name if layout == own else f"{name}.{layout}"

    def _declare(self, name: str, layout: Layout, value: TensorType) -> None:
        """Notes the type of a value in one of its layouts."""
        self._graph.values[self._name(name, layout)] = replace(value, layout=layout)


def _turns(stage: Stage, load: TensorLoad) -> bool:
    """Whether the index where channels stand runs along other axes in a load than in what is written."""
    if min(len(load.indices), len(stage.indices)) < LEAST_PACKED_RANK:
        return False
    read, written = (_variables(each.indices[1]) for each in (load, stage))
    return bool(read) and read.isdisjoint(written)


def _variables(index: Expr) -> set[Var]:
    """The variables of an index."""
    found: set[Var] = set()
    tvm_ffi.structural_walk(index, (Var, found.add))
    return found


def _alike(layouts: Sequence[Layout], wanted: Layout) -> Layout:
    """The wanted layout where it is possible, else the only one that is."""
    return wanted if wanted in layouts else layouts[0]
