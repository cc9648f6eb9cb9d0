"""What a device needs for a network, before anything is built: memory exactly, code as an estimate.

All of a compilation happens but machine code: passes, layouts, strategies, schedules, lowering, packing of weights, the memory
plan. So the arena, the weights and the tensors at the caller's are what a bundle will have, to the byte. The size of the code is
estimated from the lowered kernels, in which LLVM finds every loop that is to be unrolled already written out:

    instructions = vectors computed, each as often as its value has operations
                 + vectors stored, and loaded, each address once in the body of a loop or a branch
                 + vectors whose lanes move, but for one that is broadcast, which a multiply-add takes as it is
                 + LOOP_INSTRUCTIONS a loop

and bytes follow by a factor for each instruction set, which makes up for what LLVM adds: addresses, spills, saved registers.
Around the kernels come the calls, and the functions that check what they are given.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad

from sepwise.lowering.build import build_program
from sepwise.lowering.program import Home

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx_ir as ir

    from sepwise.lowering.codegen import CompiledKernel
    from sepwise.lowering.device import Device
    from sepwise.lowering.importer import ImportedGraph
    from sepwise.lowering.program import Program

__all__ = ["CODE_ERROR", "Forecast", "estimate_code_bytes", "foretell"]

LOOP_INSTRUCTIONS = 12
"""Counter, branch, and the addresses that move with it."""

CALL_BYTES = 120
"""A call in the generated C: its addresses, and its place in the table."""

CODE_ERROR = 0.3
"""The estimate was off by no more than this share of a bundle's code over small networks of the zoo on four cores."""

PUBLIC_BYTES = 1024
"""The public functions, and the table of calls."""

_OPERATIONS = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, tirx.Select, Call)
"""What takes an instruction where it is not one with another."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a network will need on a device.

    Attributes:
        target: Name of the device.
        arena_bytes: The arena of one worker.
        arena_lower_bound_bytes: The largest sum of live bytes of values.
        worker_bytes: What each further worker adds.
        tensor_bytes: Inputs and outputs, which are the caller's.
        weight_bytes: The weights, packed.
        code_estimate_bytes: An estimate.
        ram_bytes: Arena and tensors; weights and code too where they are loaded, as under an operating system. The stack is not
            counted.
        flash_bytes: Code and weights.
        device_ram_bytes: What the device has, None where it is not known.
        device_flash_bytes: Likewise.
        largest_call: The kernel that runs where most of the arena is live.
        lacks: What does not fit and why; empty where all fits, or where nothing is known of the device's memories.
    """

    target: str
    arena_bytes: int
    arena_lower_bound_bytes: int
    worker_bytes: int
    tensor_bytes: int
    weight_bytes: int
    code_estimate_bytes: int
    ram_bytes: int
    flash_bytes: int
    device_ram_bytes: int | None
    device_flash_bytes: int | None
    largest_call: str
    lacks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields of the forecast in JSON."""
        return asdict(self)


def foretell(model: ir.Model, device: Device) -> Forecast:
    """Says what a model will need on a device.

    Args:
        model: As `passes.load_model` returns it; left as it is.
        device: The target.

    Returns:
        The forecast for a bundle with its weights inside.

    Raises:
        UnsupportedError: An operator or element type cannot be compiled.
    """
    kernels_bytes = 0

    def emit(imported: ImportedGraph, compiled: Mapping[str, CompiledKernel], device: Device) -> bytes:
        nonlocal kernels_bytes
        kernels_bytes = estimate_code_bytes({kernel.symbol: kernel for kernel in compiled.values()}.values(), device)
        return b""

    program, _ = build_program(model, device, emit=emit)
    code_bytes = kernels_bytes + CALL_BYTES * len(program.calls) + PUBLIC_BYTES
    weight_bytes = program.constants.nbytes
    tensor_bytes = sum(value.type.nbytes for value in (*program.inputs, *program.outputs))
    loaded_bytes = 0 if device.ram_bytes else code_bytes + weight_bytes
    ram_bytes, flash_bytes = program.memory_bytes() + tensor_bytes + loaded_bytes, code_bytes + weight_bytes
    largest = _largest_call(program)
    lacks = []
    if 0 < device.flash_bytes < flash_bytes:
        lacks.append(
            f"Flash: some {flash_bytes:,} bytes are needed and {device.name} has {device.flash_bytes:,}: "
            f"{weight_bytes:,} of weights, some {code_bytes:,} of code."
        )
    if 0 < device.ram_bytes < ram_bytes:
        lacks.append(
            f"RAM: {ram_bytes:,} bytes are needed and {device.name} has {device.ram_bytes:,}: {tensor_bytes:,} of inputs and "
            f"outputs, {program.memory_bytes():,} of arena, where '{largest}' needs most."
        )
    return Forecast(
        target=device.name,
        arena_bytes=program.memory_bytes(),
        arena_lower_bound_bytes=program.arena_lower_bound_bytes,
        worker_bytes=program.scratch_bytes,
        tensor_bytes=tensor_bytes,
        weight_bytes=weight_bytes,
        code_estimate_bytes=code_bytes,
        ram_bytes=ram_bytes,
        flash_bytes=flash_bytes,
        device_ram_bytes=device.ram_bytes or None,
        device_flash_bytes=device.flash_bytes or None,
        largest_call=largest,
        lacks=tuple(lacks),
    )


def estimate_code_bytes(kernels: Iterable[CompiledKernel], device: Device) -> int:
    """Estimates the machine code of lowered kernels.

    Args:
        kernels: Each once.
        device: What they were lowered for.

    Returns:
        Bytes.
    """
    return round(_instruction_bytes(device) * sum(_count_instructions(kernel.function.body, device) for kernel in kernels))


def _instruction_bytes(device: Device) -> float:
    """Bytes of code for each instruction that is counted."""
    if device.isa == "x86":
        return 8.0
    if device.multiplies_by_lane:
        return 4.5
    return 8.8 if device.lanes > 1 else 7.2  # vectors of 32-bit ARM are loaded and stored at a register, without an offset


def _count_instructions(body: Any, device: Device) -> int:
    """Counts what the module's docstring counts, bodies of loops and branches by themselves."""
    found = 0
    addresses: set[tuple[str, int]] = set()

    def vectors(value: Any) -> int:
        dtype = value.ty.dtype
        lanes = abs(int(dtype.lanes))  # below 0 where they are scalable
        return math.ceil(lanes * int(dtype.bits) / (8 * device.vector_bytes))

    def on_store(store: tirx.BufferStore) -> None:
        nonlocal found
        operations = _operations(store.value, device)
        found += vectors(store.value) * (max(1, operations) if store.buffer.scope() == "local" else 1 + operations)

    def on_load(load: TensorLoad) -> None:
        nonlocal found
        address = (load.source.name, tvm_ffi.structural_hash(load.indices[0]))
        if load.source.scope() != "local" and address not in addresses:
            addresses.add(address)
            found += vectors(load)

    def on_shuffle(shuffle: tirx.Shuffle) -> None:
        nonlocal found
        first, *others = (int(index) for index in shuffle.indices)
        is_broadcast = all(other == first for other in others)
        is_part = first % device.lanes == 0 and others == list(range(first + 1, first + 1 + len(others)))
        found += 0 if is_broadcast or is_part else vectors(shuffle)

    def on_loop(loop: tirx.For) -> tvm_ffi.WalkResult:
        nonlocal found
        found += LOOP_INSTRUCTIONS + _count_instructions(loop.body, device)
        return tvm_ffi.WalkResult.SKIP

    def on_branch(branch: tirx.IfThenElse) -> tvm_ffi.WalkResult:
        nonlocal found
        found += sum(_count_instructions(case, device) for case in (branch.then_case, branch.else_case) if case is not None)
        return tvm_ffi.WalkResult.SKIP

    callbacks = (
        (tirx.BufferStore, on_store),
        (TensorLoad, on_load),
        (tirx.Shuffle, on_shuffle),
        (tirx.For, on_loop),
        (tirx.IfThenElse, on_branch),
    )
    tvm_ffi.structural_walk(body, callbacks, order="pre")
    return found


def _operations(value: Any, device: Device) -> int:
    """Counts the operations on floats of a value that is written, products that are added as one with the sum."""
    found = products = sums = 0

    def on_operation(node: Any) -> None:
        nonlocal found, products, sums
        if not str(getattr(node.ty, "dtype", "")).startswith("float"):
            return  # a position, or a pointer
        found += 1
        products += isinstance(node, tirx.Mul)
        sums += isinstance(node, (tirx.Add, tirx.Sub))

    tvm_ffi.structural_walk(value, (_OPERATIONS, on_operation))
    return found - (min(products, sums) if device.fuses_multiply_add else 0)


def _largest_call(program: Program) -> str:
    """Names the call while which most bytes of the arena are live."""
    spans: dict[str, list[int]] = {}
    for index, call in enumerate(program.calls):
        for name in (*call.inputs, *call.outputs):
            spans.setdefault(name, [index, index])[1] = index
    live = [{call.scratch_offset: call.scratch_bytes} for call in program.calls]
    for name, (first, last) in spans.items():
        value = program.find_value(name)
        if value.buffer.home is Home.ARENA:
            for index in range(first, last + 1):
                live[index][value.buffer.offset] = value.type.nbytes  # a view lies where its base does
    sums = [sum(each.values()) for each in live]
    return program.calls[sums.index(max(sums))].name if sums else ""
