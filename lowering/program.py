"""The Program: a list of kernel calls over one arena and one block of constants.

The same Program runs everywhere: as generated C over the kernels' objects, in this process, under an
emulator, on a board, in a bundle. It knows nothing of TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sepwise.lowering.memory_plan import align

if TYPE_CHECKING:
    import numpy as np

    from sepwise.lowering.graph import TensorType

__all__ = ["BufferRef", "Home", "KernelCall", "Program", "Tail", "Value"]


class Home(Enum):
    """Where a buffer lives."""

    ARENA = "arena"
    CONSTANT = "constant"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class BufferRef:
    """An argument of a kernel call.

    Attributes:
        home: Where it lives.
        offset: Bytes from the start of the arena or of the constants; for an input or an output its index.
    """

    home: Home
    offset: int


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call of a kernel, all its tasks.

    The kernel is the C function `void symbol(arg0 *, ..., void *scratch, int32_t task)`; its tasks
    may run in any order and on any worker.

    Attributes:
        name: The kernel's name in the KernelGraph.
        symbol: Its symbol in `Program.object_code`.
        arguments: Inputs, constants, outputs, in that order.
        inputs: Names of the values that the first arguments are.
        outputs: Names of the values that the last arguments are.
        tasks: Calls with `task` from 0 to `tasks - 1` make up the kernel.
        scratch_bytes: Scratch that one worker needs, 0 for none.
        scratch_offset: Where that of the first worker begins, in bytes from the start of the arena.
        macs: Multiply-accumulates of all tasks.
        nodes: The ONNX nodes it computes.
        strategy: The implementation that was chosen, for reports.
        workload: `Workload.key`, which says in full what is computed.
        tile: The sizes that the strategy works in, for reports; empty where it has none.
        constant_bytes: Size of each constant among the arguments; checks that run the call alone need it.
    """

    name: str
    symbol: str
    arguments: tuple[BufferRef, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: int
    scratch_bytes: int
    scratch_offset: int
    macs: int
    nodes: tuple[str, ...]
    strategy: str
    workload: str = ""
    tile: str = ""
    constant_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A named tensor of the Program and where it lives, for outputs, inputs and inspection.

    Attributes:
        name: The ONNX value's name.
        type: Shape, element type and layout.
        buffer: Where it lives.
    """

    name: str
    type: TensorType
    buffer: BufferRef


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a network that no static kernel computes; TVM's virtual machine runs it on the host, after the kernels.

    Attributes:
        model: ONNX of its own, serialized: what is left of the network behind the Program.
        inputs: Names of what it reads, in the order of that model: inputs and outputs of the Program.
        outputs: Names of what it computes, in the order of that model.
        results: All outputs of the network in order; the others are outputs of the Program.
        nodes: The ONNX nodes it computes.
        macs: Multiply-accumulates.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[str, ...]
    nodes: tuple[str, ...]
    macs: int = 0

    @property
    def name(self) -> str:
        """What reports call it."""
        return "tail"

    @property
    def strategy(self) -> str:
        """How it is run, for reports."""
        return "relax-vm"


@dataclass(frozen=True, slots=True)
class Program:
    """All that is needed to run a network on one device.

    Attributes:
        name: The model's name.
        device: Name of the device it was built for.
        calls: In execution order.
        inputs: The network's inputs, plain layout.
        outputs: The network's outputs, plain layout.
        values: Every intermediate, by name; those in the arena are overwritten as the run goes on.
        constants: One block of bytes (uint8), weights packed, every constant aligned to 64 bytes.
        arena_bytes: Size of the arena for one worker, a multiple of 64, not 0: values, and each call's scratch while it runs.
        arena_lower_bound_bytes: The largest sum of live bytes of values over all calls; scratch is not counted.
        object_code: One relocatable ELF object with every kernel.
        tail: What follows on the host, None for most networks; its inputs are among `outputs`.
    """

    name: str
    device: str
    calls: tuple[KernelCall, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: tuple[Value, ...]
    constants: np.ndarray
    arena_bytes: int
    arena_lower_bound_bytes: int
    object_code: bytes
    tail: Tail | None = None

    @property
    def steps(self) -> tuple[KernelCall | Tail, ...]:
        """All that a run executes, in order: the calls and the tail."""
        return self.calls if self.tail is None else (*self.calls, self.tail)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a run."""
        return sum(step.macs for step in self.steps)

    @property
    def scratch_bytes(self) -> int:
        """Scratch that a worker behind the first needs, the largest over all calls, a multiple of 64."""
        return max((align(call.scratch_bytes) for call in self.calls), default=0)

    def memory_bytes(self, workers: int = 1) -> int:
        """Sizes the arena of several workers: that of one, and behind it the scratch of each further one.

        Args:
            workers: At least 1.

        Returns:
            Bytes, a multiple of 64.
        """
        return self.arena_bytes + (workers - 1) * self.scratch_bytes

    def find_value(self, name: str) -> Value:
        """Finds an input, an intermediate or an output by name.

        Args:
            name: The ONNX value's name.

        Returns:
            The value; an intermediate where a network output has the same name.

        Raises:
            KeyError: The Program has no such value.
        """
        for value in (*self.values, *self.inputs, *self.outputs):
            if value.name == name:
                return value
        raise KeyError(name)
