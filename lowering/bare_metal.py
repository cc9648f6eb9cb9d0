"""A processor without an operating system, emulated in this process by unicorn: it runs a Program's calls one by one.

There is no main and no system call. The image is the Program linked for a core that has memory and nothing else; a call of
`model_run_range` is set up in the registers as the C calling convention has it, and the emulation ends where it returns.

    the image     code and constants, where they were linked to
    DATA_START    pointers to inputs and outputs; constants, arena, inputs, outputs, 64-byte aligned; the stack

After a reset the floating-point unit of an ARM core is off: CPACR switches it on, in the system control block of a
microcontroller and a register of all others, on AArch32 together with FPEXC. The MMU stays off: addresses are physical.

A kernel never allocates, never launches and calls nothing, so this is all that it needs. Behind each piece of data lies a
page of nothing, which ends a call that strays far, and so does an instruction that the cpu lacks. What a call executes is
counted by hooks in C (`runtime/tally.c`): an instruction loads, or stores, once, whatever the number of its accesses. One whose
condition fails counts like others, and neither loads nor stores.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from elftools.elf.elffile import ELFFile
from unicorn import (
    UC_ARCH_ARM,
    UC_ARCH_ARM64,
    UC_HOOK_BLOCK,
    UC_HOOK_CODE,
    UC_HOOK_MEM_INVALID,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_WRITE,
    UC_MODE_ARM,
    UC_MODE_MCLASS,
    UC_MODE_THUMB,
    Uc,
    UcError,
    arm64_const,
    arm_const,
)
from unicorn.unicorn_py3.unicorn import uclib

from sepwise.lowering.c_source import ENTRY
from sepwise.lowering.counts import CallCounts
from sepwise.lowering.guarded import AccessError
from sepwise.lowering.link import tally_library
from sepwise.lowering.memory_plan import align
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["CPU_MODELS", "Core"]

PAGE_BYTES = 0x1000
DATA_START = 0x20000000
STACK_BYTES = 1 << 20
CONTROL, CPACR = 0xE000E000, 0xE000ED88


def _switch_on_m(core: Uc) -> None:
    """Gives a microcontroller its floating-point unit: full access to coprocessors 10 and 11."""
    core.mem_map(CONTROL, PAGE_BYTES)
    core.mem_write(CPACR, struct.pack("<I", 0xF << 20))


def _switch_on_a32(core: Uc) -> None:
    """Gives an AArch32 core its floating-point unit: coprocessors 10 and 11, and FPEXC.EN."""
    core.reg_write(arm_const.UC_ARM_REG_C1_C0_2, core.reg_read(arm_const.UC_ARM_REG_C1_C0_2) | 0xF << 20)
    core.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)


def _switch_on_a64(core: Uc) -> None:
    """Gives an AArch64 core its floating-point unit: CPACR_EL1.FPEN."""
    core.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What calls of a kind of core need.

    Attributes:
        kind: unicorn's architecture and mode.
        address: Element type of an address.
        data_end: Where memory for data ends.
        arguments: Registers of the first arguments.
        stack: The stack pointer.
        link: Register of the address that a call returns to.
        counter: The program counter.
        result: Register of a result of 32 bits.
        switch_on: Switches the floating-point unit on.
    """

    kind: tuple[int, int]
    address: type[np.unsignedinteger]
    data_end: int
    arguments: tuple[int, ...]
    stack: int
    link: int
    counter: int
    result: int
    switch_on: Callable[[Uc], None]


def _aarch32(mode: int, switch_on: Callable[[Uc], None]) -> _Architecture:
    """A core of 32 bits."""
    return _Architecture(
        kind=(UC_ARCH_ARM, mode),
        address=np.uint32,
        data_end=0xE0000000,
        arguments=tuple(arm_const.UC_ARM_REG_R0 + index for index in range(4)),
        stack=arm_const.UC_ARM_REG_SP,
        link=arm_const.UC_ARM_REG_LR,
        counter=arm_const.UC_ARM_REG_PC,
        result=arm_const.UC_ARM_REG_R0,
        switch_on=switch_on,
    )


_M = _aarch32(UC_MODE_THUMB | UC_MODE_MCLASS, _switch_on_m)
_A32 = _aarch32(UC_MODE_ARM, _switch_on_a32)
_A64 = _Architecture(
    kind=(UC_ARCH_ARM64, UC_MODE_ARM),
    address=np.uint64,
    data_end=1 << 40,
    arguments=tuple(arm64_const.UC_ARM64_REG_X0 + index for index in range(8)),
    stack=arm64_const.UC_ARM64_REG_SP,
    link=arm64_const.UC_ARM64_REG_X30,
    counter=arm64_const.UC_ARM64_REG_PC,
    result=arm64_const.UC_ARM64_REG_W0,
    switch_on=_switch_on_a64,
)

CPU_MODELS = {
    "cortex-m7": (_M, arm_const.UC_CPU_ARM_CORTEX_M7),
    "cortex-a7": (_A32, arm_const.UC_CPU_ARM_CORTEX_A7),
    "cortex-a53": (_A64, arm64_const.UC_CPU_ARM64_A53),
    "cortex-a72": (_A64, arm64_const.UC_CPU_ARM64_A72),
    "max": (_A64, arm64_const.UC_CPU_ARM64_MAX),
}
"""Cores that unicorn knows, by the name that `devices.toml` gives them: their architecture, and unicorn's number."""


_COUNTED = ("instructions", "loads", "stores", "load_bytes", "store_bytes")


class _Tally(ctypes.Structure):
    """What calls executed, as `runtime/tally.c` counts it."""

    _fields_ = [*((name, ctypes.c_uint64) for name in (*_COUNTED, "seen", "thumb", "start")), ("code", ctypes.c_void_p)]


class Core:
    """One emulated core with an image, and memory that is handed out from low to high.

    Attributes:
        address: Element type of an address.
    """

    def __init__(self, image: Path, cpu: str, *, entry: str = ENTRY, count: bool = False) -> None:
        """Loads an image and switches the floating-point unit on.

        Args:
            image: A static ELF file.
            cpu: A key of `CPU_MODELS`.
            entry: Symbol of the function in it that is called.
            count: Whether `take_counts` is to be asked; calls take longer.

        Raises:
            InputError: unicorn does not know the cpu.
        """
        if cpu not in CPU_MODELS:
            raise InputError(f"Emulator unicorn: cpu '{cpu}' is unknown; known are {', '.join(CPU_MODELS)}.")
        self._architecture, model = CPU_MODELS[cpu]
        self.address = self._architecture.address
        self._core = Uc(*self._architecture.kind)
        self._core.ctl_set_cpu_model(model)
        with image.open("rb") as file:
            elf = ELFFile(file)
            loaded = [(segment["p_vaddr"], segment.data()) for segment in elf.iter_segments("PT_LOAD")]
            (function,) = elf.get_section_by_name(".symtab").get_symbol_by_name(entry)
            self._entry: int = function["st_value"]
        begin, end = min(start for start, _ in loaded), max(start + len(data) for start, data in loaded)
        self._map(begin, end + PAGE_BYTES - begin)
        for start, data in loaded:
            self._core.mem_write(start, data)
        self._return = -(-end // PAGE_BYTES) * PAGE_BYTES
        self._architecture.switch_on(self._core)
        self._core.hook_add(UC_HOOK_MEM_INVALID, self._note_access)
        self._code = ctypes.create_string_buffer(bytes(self._core.mem_read(begin, end - begin)))
        thumb = bool(self._architecture.kind[1] & UC_MODE_THUMB)
        self._tally = _Tally(thumb=thumb, start=begin, code=ctypes.addressof(self._code))
        if count:
            self._add_hooks()
        self._touched: int | None = None
        self._free = DATA_START
        self._stack = self.allocate(STACK_BYTES) + STACK_BYTES

    def allocate(self, nbytes: int) -> int:
        """Gives zeroed memory at a multiple of 64.

        Args:
            nbytes: How many; beyond their page there is nothing, and an access there ends the call.

        Returns:
            The address.

        Raises:
            InputError: The core's address space is full.
        """
        start, mapped = self._free, -(-max(nbytes, 1) // PAGE_BYTES) * PAGE_BYTES
        self._free += mapped + PAGE_BYTES
        room = self._architecture.data_end - DATA_START
        if self._free > self._architecture.data_end:
            raise InputError(f"Emulator unicorn: {nbytes} bytes do not fit the {room} of the core's data.")
        self._map(start, mapped)
        return start

    def protect(self, address: int, nbytes: int, access: int) -> None:
        """Changes what calls may do with whole pages: 0 nothing, 1 read, 3 read and write."""
        self._core.mem_protect(address, nbytes, access)

    def write(self, address: int, data: np.ndarray) -> None:
        """Writes an array's bytes."""
        self._core.mem_write(address, data.tobytes())

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """Reads bytes."""
        return np.frombuffer(bytes(self._core.mem_read(address, nbytes)), np.uint8)

    def call(self, arguments: Sequence[int]) -> int:
        """Calls the entry.

        Args:
            arguments: Integers of 32 bits and addresses.

        Returns:
            What it returns, 32 bits without a sign.

        Raises:
            AccessError: It touched memory that it may not.
            SepwiseError: It met something else that it cannot do; the message says what and where.
        """
        machine, core = self._architecture, self._core
        behind = np.array(arguments[len(machine.arguments) :], self.address)
        stack = self._stack - align(behind.nbytes)
        core.mem_write(stack, behind.tobytes())
        for register, value in zip(machine.arguments, arguments, strict=False):
            core.reg_write(register, value)
        core.reg_write(machine.stack, stack)
        core.reg_write(machine.link, self._return | self._entry & 1)
        self._touched = None
        try:
            core.emu_start(self._entry, self._return)
        except UcError as error:
            what = f"{error} at {core.reg_read(machine.counter):#x}"
            if self._touched is not None:
                raise AccessError(what, self._touched) from error
            raise SepwiseError(what) from error
        return int(core.reg_read(machine.result))

    def take_counts(self) -> CallCounts:
        """Gives what calls have executed since it was asked last.

        Returns:
            Exact counts, nothing but zeros where the core was not told to count.
        """
        counts = {name: int(getattr(self._tally, name)) for name in _COUNTED}
        for name in (*_COUNTED, "seen"):
            setattr(self._tally, name, 0)
        return CallCounts.of_totals(**counts)

    def _add_hooks(self) -> None:
        """Has all be counted that is executed.

        A hook in Python would take a microsecond an instruction, and unicorn's package takes no other: hence its handle.
        """
        library = ctypes.CDLL(str(tally_library()))
        kinds = {"block": UC_HOOK_BLOCK, "instruction": UC_HOOK_CODE, "access": UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE}
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        for name, kind in kinds.items():
            function = ctypes.cast(library[f"sepwise_tally_{name}"], ctypes.c_void_p)
            hook, tally = ctypes.c_size_t(), ctypes.byref(self._tally)
            status = uclib.uc_hook_add(self._core._uch, ctypes.byref(hook), kind, function, tally, *everywhere)
            if status:
                raise UcError(status)

    def _note_access(self, core: Uc, kind: int, address: int, *what: object) -> bool:
        """Keeps where a call touched what it may not, which ends it."""
        self._touched = address
        return False

    def _map(self, start: int, nbytes: int) -> None:
        """Makes memory of whole pages."""
        first, last = start // PAGE_BYTES, -(-(start + nbytes) // PAGE_BYTES)
        self._core.mem_map(first * PAGE_BYTES, (last - first) * PAGE_BYTES)
