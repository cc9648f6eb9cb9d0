"""Wrong kernels: each is one mistake in one scheduled kernel, its constants or the Program, and the verdict has to name it.

A mutant changes what lies between two steps of a build, of the first kernel that has a place for it: the scheduled TensorIR, the
packed weights, the lowered kernel, or the calls. It raises `NoPlaceError` where a kernel has none. Addresses stay within their
buffers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import Call, TensorLoad, Var

from sepwise.lowering import build, device, strategies, vector_math, verify
from sepwise.lowering.guarded import GAP_BYTES
from sepwise.lowering.program import BufferRef, Home, Program
from sepwise.lowering.runner import open_runner
from sepwise.lowering.strategies.base import Implementation
from sepwise.lowering.verify import verify_model
from sepwise.passes.equivalence import Check, sample_inputs
from sepwise.passes.errors import InputError

HOST = device.get("host")

Differs = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]

Record = Callable[[str, object], None]
"""Pytest's `record_property`: `scripts/benchmarks/verification.py` collects what is told to it as `mutant`."""

Rewrite = Callable[[Any], Any]
"""Of a `PrimFunc`, a list of packed constants, a `CompiledKernel` or a `Program`, as the mutant's `at` says."""

REDUCTION = 2
"""TVM's kind of an iteration variable that is summed over."""


class NoPlaceError(Exception):
    """A kernel has no place for a mutant, or it makes no difference there."""


@dataclass(frozen=True)
class Mutant:
    """A wrong kernel.

    Attributes:
        name: What it is called in test reports.
        kind: Its class: mutants of one class go wrong in one way.
        at: What it changes: the scheduled function, the packed constants, the polynomial of exp, the lowered kernel, the Program.
        network: The small network that has a place for it.
        rewrite: The change.
        node: The ONNX node whose kernel it changes, that of the first kernel with a place where None.
        scope: `model` where every kernel by itself is right and only their play together is wrong.
        shown_on: A kind of inputs that shows it, where those of the verifier do not.
        given: Whether the verifier is given one set of inputs instead of drawing its own.
    """

    name: str
    kind: str
    at: Literal["schedule", "constants", "polynomial", "kernel", "program"]
    network: str
    rewrite: Rewrite
    node: str | None = None
    scope: Literal["kernel", "model"] = "kernel"
    shown_on: str = ""
    given: bool = False


# Scheduled TensorIR ----------------------------------------------------------------------------------------------------


def mapped(function: tirx.PrimFunc, node_type: type, change: Callable[[Any], Any]) -> tirx.PrimFunc:
    """Rewrites statements or expressions of one type; `change` gives its argument back where it leaves it alone."""
    changes = 0

    def on_node(node: Any) -> Any:
        nonlocal changes
        new = change(node)
        changes += new is not node
        return new

    body = tvm_ffi.structural_map(function.body, (node_type, on_node))
    if not changes:
        raise NoPlaceError
    return tirx.PrimFunc(function.params, body, function.ret_type, function.attrs)


def everywhere(node_type: type, change: Callable[[Any], Any]) -> Rewrite:
    """Rewrites all statements or expressions of one type."""
    return lambda function: mapped(function, node_type, change)


BORDERS = ("pad", "conv")
"""What reads a padded input: its copy, or the sum itself."""


def on_stores(buffer: str | tuple[str, ...], change: Callable[[tirx.BufferStore], Any]) -> Rewrite:
    """Rewrites what is stored to buffers whose names begin so, and where."""

    def on_store(store: tirx.BufferStore) -> tirx.BufferStore:
        return change(store) if store.buffer.name.startswith(buffer) else store

    return lambda function: mapped(function, tirx.BufferStore, on_store)


def on_values(buffer: str | tuple[str, ...], node_type: type, change: Callable[[Any], Any]) -> Rewrite:
    """Rewrites expressions of one type within what is stored to buffers whose names begin so."""

    def on_store(store: tirx.BufferStore) -> tirx.BufferStore:
        changes = 0

        def on_node(node: Any) -> Any:
            nonlocal changes
            new = change(node)
            changes += new is not node
            return new

        value = tvm_ffi.structural_map(store.value, (node_type, on_node))
        return tirx.BufferStore(store.buffer, value, store.indices) if changes else store

    return on_stores(buffer, on_store)


def loads(expression: Any, *buffers: str) -> list[TensorLoad]:
    """The loads of buffers whose names begin so."""
    found: list[TensorLoad] = []

    def visit(load: TensorLoad) -> None:
        if load.source.name.startswith(buffers):
            found.append(load)

    tvm_ffi.structural_walk(expression, (TensorLoad, visit))
    return found


def reduced_loops(function: tirx.PrimFunc, axes: Sequence[str]) -> list[Var]:
    """The loops that step through axes that are summed over, or, in flat functions, loops of such names."""
    found: list[Var] = []

    def on_realize(realize: s_tir.SBlockRealize) -> None:
        for variable, value in zip(realize.block.iter_vars, realize.iter_values, strict=True):
            if int(variable.iter_type) == REDUCTION and variable.var.name in axes:
                tvm_ffi.structural_walk(value, (Var, found.append))

    tvm_ffi.structural_walk(function.body, (s_tir.SBlockRealize, on_realize))

    def on_for(loop: tirx.For) -> None:
        if loop.loop_var.name in axes:
            found.append(loop.loop_var)

    tvm_ffi.structural_walk(function.body, (tirx.For, on_for))
    return found


def shorten(*axes: str, skip: int = 0) -> Rewrite:
    """A sum leaves out the last step of an axis, or the first ones."""

    def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
        variables = reduced_loops(function, axes)

        def on_for(loop: tirx.For) -> tirx.For:
            if int(loop.extent) < 2 or not any(loop.loop_var.same_as(variable) for variable in variables):
                return loop
            rest = (loop.kind, loop.body, loop.thread_binding, loop.annotations)
            return tirx.For(loop.loop_var, loop.min + skip, loop.extent - 1, *rest)

        return mapped(function, tirx.For, on_for)

    return rewrite


def start_at_one(store: tirx.BufferStore) -> tirx.BufferStore:
    """The accumulator begins with something else than 0 or the bias."""
    starts = isinstance(store.value, tirx.FloatImm | TensorLoad)
    return tirx.BufferStore(store.buffer, store.value + 1.0, store.indices) if starts else store


def on_data(change: Callable[[TensorLoad, list[Any]], list[Any]]) -> Rewrite:
    """Rewrites from where a sum loads its data."""

    def on_load(load: TensorLoad) -> TensorLoad:
        if not load.source.name.startswith(("data", "pad", "output")):
            return load
        indices = change(load, list(load.indices))
        same = all(new.same_as(old) for new, old in zip(indices, load.indices, strict=True))
        return load if same else tirx.BufferLoad(load.source, indices)

    return on_values("conv", TensorLoad, on_load)


def taps_of(index: Any) -> list[Var]:
    """The kernel's axes in an index."""
    found: list[Var] = []
    tvm_ffi.structural_walk(index, (Var, lambda variable: found.append(variable) if variable.name in ("v_kh", "v_kw") else None))
    return found


def turn_taps(load: TensorLoad, indices: list[Any]) -> list[Any]:
    """Tap `k` reads what tap `k + 1` should, the last one what the first should."""

    def turned(index: Any) -> Any:
        def on_var(variable: Var) -> Any:
            return tirx.floormod(variable + 1, 3) if variable.name == "v_kw" else variable

        return tvm_ffi.structural_map(index, (Var, on_var)) if any(tap.name == "v_kw" for tap in taps_of(index)) else index

    return [turned(index) for index in indices]


def swap_factors(load: TensorLoad, indices: list[Any]) -> list[Any]:
    """`position * stride + tap` -> `position + tap * stride`: strides and dilations swapped in addresses."""

    def swapped(index: Any) -> Any:
        if isinstance(index, tirx.Sub):  # behind the border in front
            inner = swapped(index.a)
            return index if inner.same_as(index.a) else inner - index.b
        if not (isinstance(index, tirx.Add) and isinstance(index.a, tirx.Mul) and isinstance(index.b, Var)):
            return index
        if not taps_of(index.b) or not isinstance(index.a.b, tirx.IntImm):
            return index
        return index.a.a + index.b * index.a.b

    return [swapped(index) for index in indices]


def ignore_multiplier(load: TensorLoad, indices: list[Any]) -> list[Any]:
    """Lane `v` reads channel `v` of its part of the block instead of `v // multiplier`."""
    lanes = int(load.source.ty.shape[-1])

    def ignored(index: Any) -> Any:
        def on_division(division: tirx.FloorDiv) -> Any:
            lane = isinstance(division.a, Var) and isinstance(division.b, tirx.IntImm) and int(division.b) > 1
            return tirx.floormod(division.a, lanes // int(division.b)) if lane else division

        return tvm_ffi.structural_map(index, (tirx.FloorDiv, on_division))

    return [*indices[:-1], ignored(indices[-1])]


def read_one_channel_further(load: TensorLoad, indices: list[Any]) -> list[Any]:
    """The last step of the sum reads the first pad lane."""
    *others, last = indices
    if not isinstance(last, Var) or last.name != "v_ic":
        found: list[Var] = []
        tvm_ffi.structural_walk(last, (Var, lambda variable: found.append(variable) if variable.name == "v_ic" else None))
        lanes = int(load.source.ty.shape[-1])
        return [*others, tirx.floormod(last + 1, lanes)] if found and len(indices) > 3 and lanes > 1 else indices
    return [*others, tirx.floormod(last + 1, int(load.source.ty.shape[-1]))]


def part_groups_a_lane_early(comparison: tirx.LT) -> Any:
    return tirx.LT(comparison.a, comparison.b - 1)


def without(buffer: str) -> Rewrite:
    """An epilogue, or the start of a sum, takes an operand for 0."""

    def on_load(load: TensorLoad) -> Any:
        return tirx.const(0.0, "float32") if load.source.name.startswith(buffer) else load

    return on_values(("conv", "output"), TensorLoad, on_load)


def is_activation(call: Call, *kinds: str) -> bool:
    name = getattr(call.op, "name", "")
    return any(name.endswith(f"sepwise_{kind}") or name.endswith(f"sepwise.{kind}") for kind in kinds)


KINDS = ("relu", "clip", "leaky_relu", "sigmoid", "hard_sigmoid", "hard_swish")


def on_activation(kinds: Sequence[str], change: Callable[[Call], Any]) -> Rewrite:
    """Rewrites activations of epilogues."""
    return on_values("output", Call, lambda call: change(call) if is_activation(call, *kinds) else call)


def add_to(index: int, number: float) -> Callable[[Call], Any]:
    """A parameter of an activation is larger."""

    def change(call: Call) -> Any:
        arguments = list(call.args)
        arguments[index] = tirx.const(float(arguments[index]) + number, "float32")
        return Call(call.op, arguments, call.attrs, call.ty_args, call.span, call.ty)

    return change


def lose_nan(call: Call) -> Any:
    """A comparison that NaN fails takes it for something negative."""
    value = call.args[0]
    return tirx.Select(value > tirx.const(0.0, "float32"), value, tirx.const(0.0, "float32"))


def clip_as_relu(call: Call) -> Any:
    return tirx.max(call.args[0], call.args[1])


def outermost(change: Callable[[Call], Any]) -> Rewrite:
    """The activation behind the sum with the residual."""

    def on_store(store: tirx.BufferStore) -> tirx.BufferStore:
        if not isinstance(store.value, Call) or not loads(store.value, "residual"):
            return store
        return tirx.BufferStore(store.buffer, change(store.value), store.indices)

    return on_stores("output", on_store)


def add_before_activating(store: tirx.BufferStore) -> tirx.BufferStore:
    """`activation(total) + residual` -> `activation(total + residual)`."""
    residual = loads(store.value, "residual")
    if not residual:
        return store

    def on_load(load: TensorLoad) -> Any:
        if load.source.name.startswith("conv"):
            return load + residual[0]
        return tirx.const(0.0, "float32") if load.source.name.startswith("residual") else load

    return tirx.BufferStore(store.buffer, tvm_ffi.structural_map(store.value, (TensorLoad, on_load)), store.indices)


def border_of_ones(call: Call) -> Any:
    if getattr(call.op, "name", "") != "prim.if_then_else":
        return call
    condition, inside, outside = call.args
    return tirx.if_then_else(condition, inside, tirx.const(1.0, "float32")) if isinstance(outside, tirx.FloatImm) else call


def widen_the_border(comparison: tirx.LE) -> Any:
    """The first pixels of the image are taken for a border."""
    return tirx.LE(comparison.a + 1, comparison.b)


def widen_the_far_border(comparison: tirx.LT) -> Any:
    return tirx.LT(comparison.a, comparison.b - 1)


def leave_the_border(store: tirx.BufferStore) -> tirx.Stmt:
    """What lies outside the image is not cleared."""
    value = store.value
    if not isinstance(value, Call) or getattr(value.op, "name", "") != "prim.if_then_else":
        return store
    return tirx.IfThenElse(value.args[0], tirx.BufferStore(store.buffer, value.args[1], store.indices), None)


def move_the_last_tile_too_far(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The last tile is moved back by one more than it stands out, so the last element is never computed."""

    def on_min(minimum: tirx.Min) -> Any:
        limit = minimum.b
        return tirx.min(minimum.a, limit - 1) if isinstance(limit, tirx.IntImm) and int(limit) > 0 else minimum

    def on_realize(realize: s_tir.SBlockRealize) -> s_tir.SBlockRealize:
        values = [tvm_ffi.structural_map(value, (tirx.Min, on_min)) for value in realize.iter_values]
        same = all(new.same_as(old) for new, old in zip(values, realize.iter_values, strict=True))
        return realize if same else s_tir.SBlockRealize(values, realize.predicate, realize.block)

    return mapped(function, s_tir.SBlockRealize, on_realize)


def divide_by_one_less(division: tirx.Div) -> Any:
    """A mean over one element fewer."""
    divisor = division.b
    if isinstance(divisor, tirx.Broadcast) and isinstance(divisor.value, tirx.FloatImm):
        return division.a / tirx.Broadcast(tirx.const(float(divisor.value) - 1, "float32"), divisor.lanes)
    return division.a / tirx.const(float(divisor) - 1, "float32") if isinstance(divisor, tirx.FloatImm) else division


def divide_by_the_window(division: tirx.Div) -> Any:
    """An average over pixels that are not there."""
    divisor = division.b
    if isinstance(divisor, tirx.Broadcast) and isinstance(divisor.value, tirx.FloatImm) and float(divisor.value) < 9:
        return division.a / tirx.Broadcast(tirx.const(9.0, "float32"), divisor.lanes)
    return division


def other_weights(number: tirx.FloatImm) -> Any:
    """Half a pixel becomes a quarter."""
    return tirx.const(0.25, "float32") if float(number) == 0.5 else number


def exchange_two_lanes(shuffle: tirx.Shuffle) -> Any:
    first, second, *others = shuffle.indices
    return tirx.Shuffle(shuffle.vectors, [second, first, *others])


# Packed constants: [oc_o, kh, kw, ic, pack, oc_v] and [oc_o, oc_v] of each stage -----------------------------------------


def on_weights(change: Callable[[np.ndarray], np.ndarray], stage: int = 0) -> Rewrite:
    """Changes the packed weights of a stage."""
    return on_packed(2 * stage, change)


def on_last_weights(change: Callable[[np.ndarray], np.ndarray]) -> Rewrite:
    """Changes the packed weights of the last stage, whose products no saturated activation of a stage hides."""
    return on_packed(-2, change)


def on_biases(change: Callable[[np.ndarray], np.ndarray]) -> Rewrite:
    return on_packed(1, change)


def on_packed(place: int, change: Callable[[np.ndarray], np.ndarray]) -> Rewrite:
    def rewrite(constants: list[np.ndarray]) -> list[np.ndarray]:
        if place >= len(constants):
            raise NoPlaceError
        changed = change(constants[place].copy())
        if np.array_equal(changed, constants[place]):
            raise NoPlaceError
        return [*constants[:place], np.ascontiguousarray(changed, np.float32), *constants[place + 1 :]]

    return rewrite


def exchange_two_channels(array: np.ndarray) -> np.ndarray:
    array[..., [0, 1]] = array[..., [1, 0]]
    return array


def repeat_the_last_lane(array: np.ndarray) -> np.ndarray:
    """The last lane that holds a channel gets its neighbour's weights."""
    last = np.flatnonzero(array[-1].reshape(-1, array.shape[-1]).any(axis=0)).max()
    array[-1, ..., last] = array[-1, ..., last - 1]
    return array


def taps_only(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of kernels larger than one tap."""

    def guarded(array: np.ndarray) -> np.ndarray:
        if array.ndim != 6 or array.shape[1] < 2 or array.shape[1] != array.shape[2]:
            raise NoPlaceError
        return change(array)

    return guarded


def lose_a_tap(array: np.ndarray) -> np.ndarray:
    array[:, -1, -1] = 0
    return array


def change_one_by_a_hundredth(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[np.abs(array).argmax()] *= 1.01
    return array


def round_to_half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16)


def reverse_the_steps(array: np.ndarray) -> np.ndarray:
    """Input channels in reverse order."""
    if array.shape[-3] < 2:
        raise NoPlaceError
    return array[..., ::-1, :, :]


# The lowered kernel, and the Program -----------------------------------------------------------------------------------


def lose_the_last_task(kernel: Any) -> Any:
    if kernel.tasks < 2:
        raise NoPlaceError
    return replace(kernel, tasks=kernel.tasks - 1)


def with_calls(program: Program, change: Callable[[list[Any]], None]) -> Program:
    calls = list(program.calls)
    change(calls)
    return replace(program, calls=tuple(calls))


def overlap_two_live_values(program: Program) -> Program:
    """A kernel's output lies where another value lies that is read behind it."""
    for index, call in enumerate(program.calls):
        written = {name: program.find_value(name) for name in call.outputs}
        later = [name for other in program.calls[index + 1 :] for name in other.inputs]
        earlier = [name for other in program.calls[:index] for name in other.outputs]
        for name in later:
            value = program.find_value(name)
            if name not in earlier or name in call.inputs or value.buffer.home is not Home.ARENA:
                continue
            for target in written.values():
                if target.buffer.home is Home.ARENA:
                    return moved(program, target.buffer, value.buffer)
    raise NoPlaceError


def moved(program: Program, old: BufferRef, new: BufferRef) -> Program:
    """All that lies in one place of the arena lies in another."""

    def place(reference: BufferRef) -> BufferRef:
        return new if reference == old else reference

    calls = tuple(replace(call, arguments=tuple(map(place, call.arguments))) for call in program.calls)
    values = tuple(replace(value, buffer=place(value.buffer)) for value in program.values)
    return replace(program, calls=calls, values=values, arena_bytes=2 * program.arena_bytes)


def exchange_constants(program: Program) -> Program:
    """A kernel reads its bias where its weights lie."""

    def change(calls: list[Any]) -> None:
        for index, call in enumerate(calls):
            places = [i for i, argument in enumerate(call.arguments) if argument.home is Home.CONSTANT]
            if len(places) == 2:
                arguments = list(call.arguments)
                arguments[places[1]] = arguments[places[0]]
                calls[index] = replace(call, arguments=tuple(arguments))
                return
        raise NoPlaceError

    return with_calls(program, change)


def exchange_two_calls(program: Program) -> Program:
    """A kernel runs before what it reads was written."""

    def change(calls: list[Any]) -> None:
        for index in range(len(calls) - 1):
            if set(calls[index].outputs) & set(calls[index + 1].inputs):
                calls[index : index + 2] = calls[index : index + 2][::-1]
                return
        raise NoPlaceError

    return with_calls(program, change)


def run_one_task_more(program: Program) -> Program:
    """A kernel writes behind its output, and no further than is guarded there."""
    symbols = [call.symbol for call in program.calls]

    def change(calls: list[Any]) -> None:
        for index, call in enumerate(calls):
            share, rest = divmod(sum(program.find_value(name).type.nbytes for name in call.outputs), call.tasks)
            if call.tasks > 1 and not rest and share <= GAP_BYTES and symbols.count(call.symbol) == 1:
                calls[index] = replace(call, tasks=call.tasks + 1)
                return
        raise NoPlaceError

    return with_calls(program, change)


MUTANTS = [
    Mutant("last channel not summed", "reduction", "schedule", "residual", shorten("v_ic")),
    Mutant("first channel not summed", "reduction", "schedule", "excite", shorten("v_ic", skip=1)),
    Mutant("last column of taps not summed", "reduction", "schedule", "residual", shorten("v_kw")),
    Mutant("first row of taps not summed", "reduction", "schedule", "excite", shorten("v_kh", skip=1)),
    Mutant("last row of seven not summed (IREE #18600)", "reduction", "schedule", "seven", shorten("v_kh")),
    Mutant("last feature not summed", "reduction", "schedule", "residual", shorten("v_ic"), "fc"),
    Mutant("accumulator begins at one", "accumulator", "schedule", "residual", on_stores("conv", start_at_one)),
    Mutant("taps turned", "addresses", "schedule", "excite", on_data(turn_taps)),
    Mutant("strides and dilations in addresses", "addresses", "schedule", "shuffle", on_data(swap_factors)),
    Mutant("multiplier ignored in addresses", "addresses", "schedule", "excite", on_data(ignore_multiplier)),
    Mutant("groups part a lane early", "groups", "schedule", "shuffle", on_values("conv", tirx.LT, part_groups_a_lane_early)),
    Mutant("pad lane in a sum", "pad lanes", "schedule", "residual", on_data(read_one_channel_further)),
    Mutant("bias missing", "bias", "schedule", "residual", without("bias")),
    Mutant("activation missing", "activation", "schedule", "excite", on_activation(KINDS, lambda call: call.args[0])),
    Mutant("clip as ReLU", "activation", "schedule", "residual", on_activation(["clip"], clip_as_relu)),
    Mutant("clip's maximum by a thousandth", "activation", "schedule", "residual", on_activation(["clip"], add_to(2, 0.001))),
    Mutant("slope by a thousandth", "activation", "schedule", "residual", on_activation(["leaky_relu"], add_to(1, 0.001))),
    Mutant("activation behind the sum missing", "residual", "schedule", "residual", outermost(lambda call: call.args[0])),
    Mutant("residual before the activation", "residual", "schedule", "residual", on_stores("output", add_before_activating)),
    Mutant("residual missing", "residual", "schedule", "residual", without("residual")),
    Mutant("border of ones", "border", "schedule", "excite", on_values(BORDERS, Call, border_of_ones)),
    Mutant("border too wide in front", "border", "schedule", "excite", on_values(BORDERS, tirx.LE, widen_the_border)),
    Mutant("border too wide behind", "border", "schedule", "excite", on_values(BORDERS, tirx.LT, widen_the_far_border)),
    Mutant("border left as it was", "border", "schedule", "excite", on_stores(BORDERS, leave_the_border)),
    Mutant("last tile moved too far (TVM #5148)", "tail tile", "schedule", "tiles", move_the_last_tile_too_far),
    Mutant("mean over one less", "pooling", "schedule", "residual", everywhere(tirx.Div, divide_by_one_less), "pool"),
    Mutant("mean without the last row", "pooling", "schedule", "excite", shorten("v_k2"), "squeeze"),
    Mutant("average over the window", "pooling", "schedule", "shuffle", everywhere(tirx.Div, divide_by_the_window), "pooled"),
    Mutant("resize by other weights", "resize", "schedule", "shuffle", everywhere(tirx.FloatImm, other_weights), "zoom"),
    Mutant("two lanes of a layout", "layout", "schedule", "residual", everywhere(tirx.Shuffle, exchange_two_lanes)),
    Mutant("two packed channels", "packing", "constants", "residual", on_weights(exchange_two_channels)),
    Mutant("last lane of a tail", "packing", "constants", "residual", on_weights(repeat_the_last_lane)),
    Mutant("last lane of the second stage", "packing", "constants", "unreached", on_weights(repeat_the_last_lane, 1)),
    Mutant("lost tap", "packing", "constants", "excite", on_weights(taps_only(lose_a_tap))),
    Mutant("transposed taps", "packing", "constants", "shuffle", on_weights(taps_only(lambda array: array.swapaxes(1, 2)))),
    Mutant("channels in reverse", "packing", "constants", "excite", on_weights(reverse_the_steps)),
    Mutant("one weight by a hundredth", "precision", "constants", "residual", on_last_weights(change_one_by_a_hundredth)),
    Mutant("half precision", "precision", "constants", "shuffle", on_weights(round_to_half)),
    Mutant("bias of the next lane", "bias", "constants", "excite", on_biases(lambda array: np.roll(array, 1))),
    Mutant("polynomial a term short", "precision", "polynomial", "shuffle", lambda terms: terms[:-1], "grouped"),
    Mutant("leading term", "precision", "polynomial", "shuffle", lambda terms: (terms[0] * 1.0001, *terms[1:]), "grouped"),
    Mutant("last task not run", "tasks", "kernel", "shuffle", lose_the_last_task),
    Mutant("one task too many", "memory", "program", "shuffle", run_one_task_more),
    Mutant("bias for weights", "memory", "program", "residual", exchange_constants),
    Mutant("two live values in one place", "memory", "program", "excite", overlap_two_live_values, scope="model"),
    Mutant("two calls exchanged", "order of calls", "program", "residual", exchange_two_calls, scope="model"),
    Mutant(
        "two calls exchanged, one input", "order of calls", "program", "residual", exchange_two_calls,
        scope="model", shown_on="uniform", given=True,
    ),
    Mutant("clip as ReLU, never reached", "activation", "schedule", "unreached", on_activation(["clip"], clip_as_relu)),
    Mutant("ReLU loses NaN", "not finite", "schedule", "unreached", on_activation(["relu"], lose_nan)),
]


class Injection:
    """A mutant in place of the first kernel of a build that has a place for it.

    Attributes:
        symbol: The kernel that it changed, None before.
        program: What was built, None before.
        written: What each kernel wrote when it was checked alone, all in a row, and the network's outputs.
        execution: What the whole network was judged by: its outputs, the oracle's and sigma_x, on each input set.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mutant: Mutant | None) -> None:
        self.symbol: str | None = None
        self.program: Program | None = None
        self.written: dict[str, np.ndarray] = {}
        self.execution: tuple[Any, ...] = ()
        self._mutant = mutant
        self._symbols: list[tuple[tirx.PrimFunc, str]] = []
        self._lower, self._build = build.lower_kernel, verify.build_program
        self._compare, self._judge = verify.compare_kernel, verify.compare_execution
        monkeypatch.setattr(build, "lower_kernel", self._lowered)
        monkeypatch.setattr(verify, "build_program", self._built)
        monkeypatch.setattr(verify, "compare_kernel", self._compared)
        monkeypatch.setattr(verify, "compare_execution", self._judged)
        lists = strategies.CONV_STRATEGIES, strategies.PLAIN_STRATEGIES, strategies.LINEAR_STRATEGIES
        for strategy in {type(each) for each in itertools.chain(*lists)}:
            monkeypatch.setattr(strategy, "schedule", self._scheduling(strategy.schedule))

    def culprits(self) -> set[str]:
        """Names of the kernels that are wrong."""
        assert self.program is not None
        return {call.name for call in self.program.calls if call.symbol == self.symbol}

    def _rewritten(self, at: str, symbol: str, right: Any) -> Any:
        mutant = self._mutant
        if mutant is None or mutant.at != at or self.symbol not in (None, symbol):
            return right
        if mutant.node is not None and not symbol.endswith(f"_{mutant.node}"):
            return right
        try:
            changed = mutant.rewrite(right)
        except NoPlaceError:
            return right
        self.symbol = symbol
        return changed

    def _lowered(self, function: tirx.PrimFunc, symbol: str, target: Any) -> Any:
        self._symbols.append((function, symbol))
        if self._mutant is not None and self._mutant.at == "polynomial" and self.symbol is None and self._shows(symbol):
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(vector_math, "EXPM1_Q", self._mutant.rewrite(vector_math.EXPM1_Q))
                changed = self._lower(function, symbol, target)
            right = self._lower(function, symbol, target)
            if tvm_ffi.structural_equal(changed.function, right.function):
                return right
            self.symbol = symbol
            return changed
        return self._rewritten("kernel", symbol, self._lower(self._rewritten("schedule", symbol, function), symbol, target))

    def _shows(self, symbol: str) -> bool:
        """Whether a short polynomial would show in a kernel: where none is named, in one that adds up no products before it."""
        assert self._mutant is not None
        node = self._mutant.node
        return symbol.startswith("g") if node is None else symbol.endswith(f"_{node}")

    def _scheduling(self, schedule: Callable[..., Implementation]) -> Callable[..., Implementation]:
        def scheduled(*arguments: Any) -> Implementation:
            right = schedule(*arguments)

            def pack(stages: Any) -> list[np.ndarray]:
                symbol = next(symbol for function, symbol in self._symbols if function.same_as(right.function))
                changed: list[np.ndarray] = self._rewritten("constants", symbol, right.pack(stages))
                return changed

            return Implementation(right.function, pack)

        return scheduled

    def _built(self, *arguments: Any, **keywords: Any) -> tuple[Program, Any]:
        program, report = self._build(*arguments, **keywords)
        self.program = program
        if self._mutant is not None and self._mutant.at == "program":
            self.program = self._mutant.rewrite(program)
            changed = [new.symbol for new, old in zip(self.program.calls, program.calls, strict=True) if new != old]
            self.symbol = changed[0] if changed else program.calls[0].symbol
        return self.program, report

    def _compared(self, array: np.ndarray, *rest: Any, name: str, **keywords: Any) -> Any:
        before = self.written.get(name, np.empty(0, array.dtype))
        self.written[name] = np.concatenate([before, array.ravel()])
        return self._compare(array, *rest, name=name, **keywords)

    def _judged(self, outputs: Sequence[Mapping[str, np.ndarray]], *rest: Any, **keywords: Any) -> Any:
        self.written.update({name: np.stack([run[name] for run in outputs]) for name in outputs[0]})
        self.execution = (outputs, *rest)
        return self._judge(outputs, *rest, **keywords)


def verify_right(model: ir.Model) -> Injection:
    """What kernels and network write where nothing is wrong, which passes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        injection = Injection(monkeypatch, None)
        found = verify_model(model, HOST)
    assert found.passed, [check for check in found.checks if not check.passed]
    return injection


@pytest.fixture(scope="module")
def right(networks: Mapping[str, ir.Model]) -> Mapping[str, Injection]:
    """Each small network without a mutant."""
    return {name: verify_right(model) for name, model in networks.items()}


def run_twice(program: Program | None, feeds: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """What a Program gives for the last of some inputs."""
    assert program is not None
    with open_runner(program) as runner:
        return [runner.run(feed) for feed in feeds][-1]


def failures(
    model: ir.Model, mutant: Mutant, right: Injection, differs: Differs, record: Record
) -> tuple[list[Check], set[str]]:
    """Verifies a model with a mutant in place, which changes what it computes; what did not pass, and the wrong kernels."""
    normal = {name: array.astype(np.float32) for name, array in sample_inputs(model, 0).items()}
    with pytest.MonkeyPatch.context() as monkeypatch:
        injection = Injection(monkeypatch, mutant)
        found = verify_model(model, HOST, inputs=normal if mutant.given else None)
    culprits = injection.culprits()
    if not culprits:
        raise NoPlaceError
    if mutant.shown_on:
        feeds = [normal, {name: array.astype(np.float32) for name, array in sample_inputs(model, 0, mutant.shown_on).items()}]
        wrote = [run_twice(each.program, feeds) for each in (right, injection)]
    else:
        names = culprits if mutant.scope == "kernel" else {value.name or "" for value in model.graph.outputs}
        wrote = [{name: each.written[name] for name in names & set(each.written)} for each in (right, injection)]
    if not differs(*wrote):
        raise NoPlaceError(f"'{mutant.name}' computes the same")
    failed = [check for check in found.checks if not check.passed]
    caught = names_culprit(failed, mutant, culprits)
    told = {"mutant": mutant, "caught": caught, "verification": found, "culprits": culprits, "execution": injection.execution}
    record("mutant", told)
    return failed, culprits


def names_culprit(failed: Sequence[Check], mutant: Mutant, culprits: set[str]) -> bool:
    """Whether just the wrong kernels failed, or, where each is right by itself, the network alone."""
    if mutant.scope == "model":
        return [(check.scope, check.status) for check in failed] == [("model", "failed")]
    assert not any(check.scope == "graph" for check in failed), "the passes were not touched"
    return {check.name for check in failed if (check.scope, check.status) == ("kernel", "failed")} == culprits


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_kernel_is_found_and_named(
    mutant: Mutant, networks: Mapping[str, ir.Model], right: Mapping[str, Injection], differs: Differs, record_property: Record
) -> None:
    failed, culprits = failures(networks[mutant.network], mutant, right[mutant.network], differs, record_property)
    assert names_culprit(failed, mutant, culprits), (culprits, failed)


def test_the_catalogue_is_large() -> None:
    assert len(MUTANTS) >= 20
    assert sum(mutant.at in ("schedule", "constants") for mutant in MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.kind for mutant in MUTANTS}) >= 10


def test_code_that_the_processor_lacks_is_refused(networks: Mapping[str, ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run, so nothing traps and nothing passes: https://github.com/alibaba/MNN/issues/4393 ."""
    monkeypatch.setattr(device, "missing_flags", lambda target: ["sme2"])
    with pytest.raises(InputError, match="lacks sme2"):
        verify_model(networks["tiles"], HOST)


FEWEST_PLACES = 24
"""How many of the mutants a network of the zoo has a place for, at least: with AVX-512 six small ones have one for 27 (tcn_1d)
to 41 (x3d_block) of 49; the rest is room for processors with other strategies and lanes."""


@pytest.mark.nightly
def test_wrong_kernels_of_whole_networks(whole_network: ir.Model, differs: Differs, record_property: Record) -> None:
    right = verify_right(whole_network)
    tried, escaped = 0, []
    for mutant in MUTANTS:
        try:
            failed, culprits = failures(whole_network, replace(mutant, node=None), right, differs, record_property)
        except NoPlaceError:
            continue
        tried += 1
        if not names_culprit(failed, mutant, culprits):
            escaped.append((mutant.name, culprits, failed[:1]))
    assert tried >= FEWEST_PLACES
    assert not escaped
