"""From a model to a Program: passes, import, layouts, schedules, memory plan, one object."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from sepwise.lowering import device as devices
from sepwise.lowering.artifact import Artifact
from sepwise.lowering.codegen import CompiledKernel, build_object, computes_float16, lower_kernel, tvm_target
from sepwise.lowering.device import Device
from sepwise.lowering.generic import GenericWorkload, NeedsRuntimeError, library_calls, schedule_generic
from sepwise.lowering.importer import ImportedGraph, import_graph
from sepwise.lowering.layout import assign_layouts
from sepwise.lowering.memory_plan import Lifetime, align, largest_live_bytes, plan_memory
from sepwise.lowering.program import BufferRef, Home, KernelCall, Program, Value
from sepwise.lowering.selection import Selector
from sepwise.lowering.tail import TailRunner, find_runtime_nodes, split
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import canonicalize, fuse, layer_costs, load_model
from sepwise.passes.convert_input import convert_input
from sepwise.passes.errors import InputError, UnsupportedError
from sepwise.passes.vocabulary import FUSED_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sepwise.lowering.graph import Kernel, KernelGraph
    from sepwise.lowering.memory_plan import MemoryPlan
    from sepwise.lowering.selection import Choice, Records
    from sepwise.passes.convert_input import ImageFormat

__all__ = [
    "COMPILER_ERRORS",
    "CompileReport",
    "Emit",
    "Lowered",
    "build_objects",
    "build_program",
    "compile",
    "require_float16",
]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", *FUSED_OPERATORS})
"""Operators that the generic schedule should never get."""

GENERIC = "generic"
"""What reports call the schedule of operators that no strategy takes."""

LINEAR = "linear"
"""Kind of the layers that are matrix products."""

COMPILER_ERRORS = (RuntimeError, ValueError)
"""What TVM and LLVM raise for code that they do not take; anything else is a fault of ours."""

Emit = Callable[[ImportedGraph, Mapping[str, CompiledKernel], Device], bytes]
"""Makes an object of the kernels of a graph, which were lowered, by name, for a device."""

Lowered = dict[
    tuple[str, str, str, str],
    tuple[CompiledKernel, Callable[["Sequence[tuple[np.ndarray, np.ndarray]]"], list[np.ndarray]]],
]
"""Kernels by name, workload, strategy and tile, each with what packs its weights."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What a compilation made.

    Attributes:
        model: The model's name.
        target: The device's name.
        strategy_mac_share: Share of the multiply-accumulates that run in scheduled strategies, 0 to 1.
        seconds: Wall time from the loaded model to the Program.
        kernels: Kernel calls.
        records_used: Kernels that a tuning record decided.
        generic_convolutions: Names of convolutions left to the generic schedule; any is a defect.
        tail: ONNX nodes that run in TVM's virtual machine after the kernels.
        float16_mac_share: Share of the multiply-accumulates that run in scheduled strategies in float16, 0 to 1.
    """

    model: str
    target: str
    strategy_mac_share: float
    seconds: float
    kernels: int
    records_used: int
    generic_convolutions: tuple[str, ...]
    tail: tuple[str, ...] = ()
    float16_mac_share: float = 0.0

    def to_json(self) -> dict[str, object]:
        """The fields of the compile JSON."""
        return asdict(self)


def compile(
    model: str | Path | ir.Model,
    *,
    target: str = "host",
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    float16: bool = False,
    image: ImageFormat | None = None,
    records: Records | None = None,
    output: str | Path | None = None,
) -> Artifact:
    """Compiles a model for a device.

    Args:
        model: An ONNX file or a model in memory.
        target: Name of a device, `host` for this machine.
        shapes: Shapes of inputs whose dimensions are symbolic, by name.
        threads: Workers that the kernels are shared out to.
        float16: Whether what is float32 is computed in float16, but for what needs more (see `passes.convert_float16`).
        image: What it is given for an image (see `passes.convert_input`); as the model has it where None.
        records: What tuning has found (see `tuning.database.read_records`).
        output: Folder to save the artifact in, or None.

    Returns:
        The artifact, which runs where the device can be reached.

    Raises:
        InputError: The model, the target or the folder cannot be used.

    Example:
        >>> compile("mobilenet_v2.onnx", target="host").run(x=x)  # doctest: +SKIP
    """
    device = devices.get(target)
    loaded = model if isinstance(model, ir.Model) else load_model(model, shapes=shapes)
    taken = loaded if image is None else convert_input(loaded, image)
    program, report = build_program(taken, device, threads=threads, float16=float16, records=records)
    artifact = Artifact(program, report=report.to_json(), threads=threads)
    if output is not None:
        artifact.save(output)
    return artifact


def build_objects(imported: ImportedGraph, compiled: Mapping[str, CompiledKernel], device: Device) -> bytes:
    """Compiles all kernels to one object; where LLVM refuses, finds the generic kernel that it does not take.

    Args:
        imported: Its kernels are asked for in this order.
        compiled: What each was lowered to, by its name.
        device: The target.

    Returns:
        A relocatable object.

    Raises:
        NeedsRuntimeError: LLVM does not take a kernel; it names the ONNX node.
    """
    target = tvm_target(device)
    try:
        return build_object({kernel.symbol: kernel for kernel in compiled.values()}, target)
    except COMPILER_ERRORS:
        for kernel in imported.graph.kernels:
            if not isinstance(kernel.workload, GenericWorkload) or not kernel.nodes:
                continue
            code = compiled[kernel.name]
            try:
                build_object({code.symbol: code}, target)
            except COMPILER_ERRORS as error:
                raise _no_kernel(kernel, error) from error
        raise


def build_program(
    model: ir.Model,
    device: Device,
    *,
    threads: int = 1,
    float16: bool = False,
    emit: Emit = build_objects,
    records: Records | None = None,
    lowered: Lowered | None = None,
) -> tuple[Program, CompileReport]:
    """Builds the Program of a loaded model.

    Args:
        model: As `passes.load_model` returns it; left as it is.
        device: The target.
        threads: Workers that the kernels are shared out to.
        float16: Whether what is float32 is computed in float16, but for what needs more (see `passes.convert_float16`).
        emit: Makes the object of the lowered kernels; another one than `build_objects` may look at them and make none. It is
            called anew, for fewer kernels, where one of them turns out to need TVM's runtime.
        records: What tuning has found (see `tuning.database.read_records`).
        lowered: Kernels of earlier builds for the same device, which are not scheduled and lowered again; those of this one are
            added.

    Returns:
        The Program and the report.

    Raises:
        InputError: The device does not compute in float16, or there are to be threads and it has no operating system.
        UnsupportedError: An operator or element type cannot be compiled.
    """
    started = time.perf_counter()
    if threads > 1 and not device.hosted:
        raise InputError(f"Target '{device.name}': has no operating system, and so no threads; leave --threads {threads} out.")
    if float16:
        require_float16(device)
    canonical = canonicalize(model)
    value_names = {node.name: node.outputs[0].name or "" for node in canonical.graph if node.name}
    fused = fuse(canonical, float16=float16).model
    selector = Selector(device, threads, records)
    program, imported = _build_with_tail(fused, device, selector, value_names, emit, {} if lowered is None else lowered)
    graph = imported.graph
    in_tail = set(program.tail.nodes) if program.tail is not None else set()
    left = [layer for layer in layer_costs(fused).layers if in_tail & {layer.name, *layer.nodes}] if in_tail else []
    if program.tail is not None:
        program = replace(program, tail=replace(program.tail, macs=sum(layer.macs for layer in left)))
    scheduled = [kernel.workload for kernel in graph.kernels if isinstance(kernel.workload, ConvWorkload | LinearWorkload)]
    ours = sum(workload.macs for workload in scheduled)
    in_float16 = sum(workload.macs for workload in scheduled if workload.dtypes.accumulator == "float16")
    generic_convolutions = tuple(
        kernel.name
        for kernel in graph.kernels
        if isinstance(kernel.workload, GenericWorkload) and CONVOLUTIONS & set(kernel.workload.operators)
    ) + tuple(layer.name for layer in left if layer.kind != LINEAR)
    report = CompileReport(
        model=graph.name,
        target=device.name,
        strategy_mac_share=ours / program.macs if program.macs else 1.0,
        float16_mac_share=in_float16 / program.macs if program.macs else 0.0,
        seconds=time.perf_counter() - started,
        kernels=len(program.calls),
        records_used=sum(_is_recorded(selector, kernel) for kernel in graph.kernels),
        generic_convolutions=generic_convolutions,
        tail=program.tail.nodes if program.tail is not None else (),
    )
    return program, report


def _is_recorded(selector: Selector, kernel: Kernel) -> bool:
    """Whether a tuning record decided how a kernel is computed."""
    if not isinstance(kernel.workload, ConvWorkload | LinearWorkload):
        return False
    choice = selector.choose(kernel.workload)
    return not isinstance(choice, list) and choice.recorded


def require_float16(device: Device) -> None:
    """Refuses a device without float16 arithmetic.

    Args:
        device: The target.

    Raises:
        InputError: The device converts float16 at most.
    """
    if not computes_float16(device):
        raise InputError(
            f"Target '{device.name}': its core ({device.cpu}) has no float16 arithmetic (FEAT_FP16 of Armv8.2-A, AVX512-FP16). "
            "Leave --float16 out, or give a target that has it, such as cortex-a55, cortex-a76 or neoverse-n1."
        )


def _build_with_tail(
    fused: ir.Model, device: Device, selector: Selector, value_names: Mapping[str, str], emit: Emit, lowered: Lowered
) -> tuple[Program, ImportedGraph]:
    """Compiles all that becomes static kernels, and leaves the rest to a tail where the device is this machine."""
    runtime_nodes = find_runtime_nodes(fused)
    while True:
        if runtime_nodes and device.emulated:
            raise _no_runtime(next(iter(runtime_nodes.values())), device)
        head, tail = split(fused, runtime_nodes)
        try:
            program, imported = _build(head, device, selector, value_names, emit, lowered)
        except NeedsRuntimeError as error:
            if device.emulated:
                raise _no_runtime(f"{error}; it needs TVM's runtime", device) from error
            if error.node in runtime_nodes:
                raise
            logger.warning("%s; it and what depends on it run in TVM's virtual machine", error)
            runtime_nodes[error.node] = str(error)
            continue
        if tail is not None:
            TailRunner(tail, device.name)  # refuses now what TVM does not take
        return replace(program, tail=tail), imported


def _no_runtime(reason: str, device: Device) -> UnsupportedError:
    """Refuses a tail where nothing runs it."""
    return UnsupportedError(
        f"{reason}, which '{device.name}' has not. Compile for the target 'host', or cut the model before it."
    )


def _build(
    model: ir.Model, device: Device, selector: Selector, value_names: Mapping[str, str], emit: Emit, lowered: Lowered
) -> tuple[Program, ImportedGraph]:
    """Compiles a fused model to static kernels."""
    imported = import_graph(model, device, selector, value_names=value_names)
    graph = imported.graph
    views = imported.views | assign_layouts(graph, imported.views, selector)
    compiled, choices = _compile_kernels(graph, imported.weights, device, selector, lowered)
    objects = emit(imported, compiled, device)
    return _assemble(graph, replace(imported, views=views), device, compiled, choices, objects), imported


def _compile_kernels(
    graph: KernelGraph,
    weights: Mapping[str, list[tuple[np.ndarray, np.ndarray]]],
    device: Device,
    selector: Selector,
    lowered: Lowered,
) -> tuple[dict[str, CompiledKernel], dict[str, Choice]]:
    """Schedules and lowers each kernel, equal workloads once; packs weights. By kernel name; and the choices of strategies."""
    compiled: dict[str, CompiledKernel] = {}
    choices: dict[str, Choice] = {}
    by_key: dict[str, CompiledKernel] = {}
    packers = {}
    for kernel in graph.kernels:
        workload = kernel.workload
        if workload.key not in by_key:
            if isinstance(workload, GenericWorkload):
                by_key[workload.key] = _compile_generic(kernel, workload, device)
            else:
                assert isinstance(workload, ConvWorkload | LinearWorkload)
                choice = selector.choose(workload)
                assert not isinstance(choice, list), "the importer made a workload that nothing computes"
                known = kernel.name, workload.key, choice.strategy.name, str(choice.tile)
                if known not in lowered:
                    implementation = choice.strategy.schedule(workload, device.holding(workload.dtypes.input), choice.tile)
                    lowered[known] = lower_kernel(implementation.function, kernel.name, device), implementation.pack
                by_key[workload.key], pack = lowered[known]
                packers[workload.key] = (pack, choice)
        compiled[kernel.name] = by_key[workload.key]
        if workload.key in packers:
            pack, choices[kernel.name] = packers[workload.key]
            for name, array in zip(kernel.constants, pack(weights[kernel.name]), strict=True):
                graph.constants[name] = array
    return compiled, choices


def _no_kernel(kernel: Kernel, reason: Exception | str) -> NeedsRuntimeError:
    """Says why an operator becomes no kernel."""
    line = (str(reason).strip().splitlines() or [type(reason).__name__])[-1]
    node = kernel.nodes[0]
    return NeedsRuntimeError(node, f"Node '{node}' ({kernel.workload.kind}): it becomes no static kernel: {line}")


def _compile_generic(kernel: Kernel, workload: GenericWorkload, device: Device) -> CompiledKernel:
    """Schedules and lowers a generic kernel; what no kernel can be made of is left to TVM's own compilation."""
    try:
        compiled = lower_kernel(schedule_generic(workload, device), kernel.name, device)
    except COMPILER_ERRORS as error:
        if not kernel.nodes:
            raise
        raise _no_kernel(kernel, error) from error
    if library := library_calls(compiled.function):
        raise _no_kernel(kernel, f"it would call {', '.join(library)} of a C library")
    return compiled


def _assemble(
    graph: KernelGraph,
    imported: ImportedGraph,
    device: Device,
    compiled: Mapping[str, CompiledKernel],
    choices: Mapping[str, Choice],
    objects: bytes,
) -> Program:
    """Places values and constants and spells out the calls."""
    plan, homes = _place_values(graph, imported.views, compiled)
    constants, offsets = _place_constants(graph)
    calls = []
    for kernel in graph.kernels:
        code = compiled[kernel.name]
        choice = choices.get(kernel.name)
        arguments = (
            *(homes[name] for name in kernel.inputs),
            *(BufferRef(Home.CONSTANT, offsets[name]) for name in kernel.constants),
            *(homes[name] for name in kernel.outputs),
        )
        calls.append(
            KernelCall(
                name=kernel.name,
                symbol=code.symbol,
                arguments=arguments,
                inputs=kernel.inputs,
                outputs=kernel.outputs,
                tasks=code.tasks,
                scratch_bytes=code.scratch_bytes,
                scratch_offset=plan.offsets[_scratch_of(kernel)] if code.scratch_bytes else 0,
                macs=kernel.workload.macs,
                nodes=kernel.nodes,
                strategy=GENERIC if choice is None else choice.strategy.name,
                workload=kernel.workload.key,
                tile="" if choice is None else str(choice.tile),
                constant_bytes=tuple(graph.constants[name].nbytes for name in kernel.constants),
            )
        )
    network = set(graph.inputs) | (set(graph.outputs) - set(imported.renamed))
    return Program(
        name=graph.name,
        device=device.name,
        calls=tuple(calls),
        inputs=tuple(Value(name, graph.values[name], homes[name]) for name in graph.inputs),
        outputs=tuple(
            Value(imported.renamed.get(name, name), graph.values[name], BufferRef(Home.OUTPUT, index))
            for index, name in enumerate(graph.outputs)
        ),
        values=tuple(
            Value(name, graph.values[name], home) for name, home in homes.items() if name not in network
        ),
        constants=constants,
        arena_bytes=plan.arena_bytes,
        arena_lower_bound_bytes=plan.lower_bound_bytes,
        object_code=objects,
    )


def _place_values(
    graph: KernelGraph, views: Mapping[str, str], compiled: Mapping[str, CompiledKernel]
) -> tuple[MemoryPlan, dict[str, BufferRef]]:
    """Network inputs and outputs at the caller's, everything else in the arena; the plan's bound is that of values alone."""
    def base(name: str) -> str:
        while name in views:
            name = views[name]
        return name

    homes: dict[str, BufferRef] = {}
    for index, name in enumerate(graph.inputs):
        homes[name] = BufferRef(Home.INPUT, index)
    for index, name in enumerate(graph.outputs):
        homes.setdefault(base(name), BufferRef(Home.OUTPUT, index))
    spans: dict[str, list[int]] = {}
    for index, kernel in enumerate(graph.kernels):
        for name in (*kernel.inputs, *kernel.outputs):
            span = spans.setdefault(base(name), [index, index])
            span[1] = index
    values = {
        name: Lifetime(f"value {name}", graph.values[name].nbytes, first, last)
        for name, (first, last) in spans.items()
        if name not in homes
    }
    scratch = [
        Lifetime(_scratch_of(kernel), compiled[kernel.name].scratch_bytes, index, index)
        for index, kernel in enumerate(graph.kernels)
        if compiled[kernel.name].scratch_bytes
    ]
    plan = plan_memory([*values.values(), *scratch])
    for name, value in values.items():
        homes[name] = BufferRef(Home.ARENA, plan.offsets[value.name])
    for name in views:
        homes[name] = homes[base(name)]
    return replace(plan, lower_bound_bytes=largest_live_bytes(list(values.values()))), homes


def _scratch_of(kernel: Kernel) -> str:
    """What the memory plan calls a kernel's scratch; no value's name begins so."""
    return f"scratch {kernel.name}"


def _place_constants(graph: KernelGraph) -> tuple[np.ndarray, dict[str, int]]:
    """Lays every constant that a kernel reads into one block, each at a multiple of 64 bytes."""
    offsets: dict[str, int] = {}
    used = 0
    names = [name for kernel in graph.kernels for name in kernel.constants]
    for name in dict.fromkeys(names):
        offsets[name] = used
        used += align(graph.constants[name].nbytes)
    block = np.zeros(max(used, 1), np.uint8)
    for name, offset in offsets.items():
        raw = np.ascontiguousarray(graph.constants[name]).view(np.uint8).reshape(-1)
        block[offset : offset + raw.nbytes] = raw
    return block, offsets
