"""A processor without an operating system, emulated in this process by unicorn: it runs a Program's calls one by one.

There is no main and no system call. The image is the Program linked for a core that has memory and nothing else; a call of
`model_run_range` is set up in the registers as the C calling convention has it, and the emulation ends where it returns.

    IMAGE_START   code and constants of the image, as linked
    DATA_START    pointers to inputs and outputs; constants, arena, inputs, outputs, 64-byte aligned; the stack
    CONTROL       the system control block, whose CPACR switches the floating-point unit on

A kernel never allocates, never launches and calls nothing, so this is all that it needs. Behind each piece of data lies a
page of nothing, which ends a call that strays far. Instructions are counted block by block: a Thumb instruction has four
bytes where its first halfword is 0xe800 or more.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_ARM, UC_HOOK_BLOCK, UC_HOOK_MEM_INVALID, UC_MODE_MCLASS, UC_MODE_THUMB, Uc, UcError, arm_const

from sepwise.lowering.c_source import ENTRY
from sepwise.lowering.guarded import AccessError
from sepwise.lowering.memory_plan import align
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CPU_MODELS", "Core"]

CPU_MODELS = {"cortex-m7": arm_const.UC_CPU_ARM_CORTEX_M7}
"""Cores that unicorn knows, by the name that `devices.toml` gives them."""

PAGE_BYTES = 0x1000
IMAGE_START, DATA_START, DATA_END = 0x10000, 0x20000000, 0xE0000000
STACK_BYTES = 1 << 20
CONTROL, CPACR = 0xE000E000, 0xE000ED88
FPU_ON = 0xF << 20


class Core:
    """One emulated core with an image, and memory that is handed out from low to high."""

    def __init__(self, image: Path, cpu: str, *, entry: str = ENTRY) -> None:
        """Loads an image and switches the floating-point unit on.

        Args:
            image: A static ELF file.
            cpu: A key of `CPU_MODELS`.
            entry: Symbol of the function in it that is called.

        Raises:
            InputError: unicorn does not know the cpu.
        """
        if cpu not in CPU_MODELS:
            raise InputError(f"Emulator unicorn: cpu '{cpu}' is unknown; known are {', '.join(CPU_MODELS)}.")
        self._core = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        self._core.ctl_set_cpu_model(CPU_MODELS[cpu])
        with image.open("rb") as file:
            elf = ELFFile(file)
            loaded = [(segment["p_vaddr"], segment.data()) for segment in elf.iter_segments("PT_LOAD")]
            (function,) = elf.get_section_by_name(".symtab").get_symbol_by_name(entry)
            self._entry: int = function["st_value"]
        end = max(start + len(data) for start, data in loaded)
        self._map(IMAGE_START, end + PAGE_BYTES - IMAGE_START)
        for start, data in loaded:
            self._core.mem_write(start, data)
        self._return = -(-end // PAGE_BYTES) * PAGE_BYTES
        self._map(CONTROL, PAGE_BYTES)
        self._core.mem_write(CPACR, struct.pack("<I", FPU_ON))
        self._core.hook_add(UC_HOOK_MEM_INVALID, self._note_access)
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
        if self._free > DATA_END:
            raise InputError(f"Emulator unicorn: {nbytes} bytes do not fit the {DATA_END - DATA_START} of the core's data.")
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

    def call(self, arguments: Sequence[int], *, count: bool = False) -> tuple[int, int]:
        """Calls the entry.

        Args:
            arguments: Integers and addresses of 32 bits.
            count: Whether to count instructions.

        Returns:
            What it returns, and the instructions, 0 where they were not counted.

        Raises:
            AccessError: It touched memory that it may not.
            SepwiseError: It met something else that it cannot do; the message says what and where.
        """
        in_registers, behind = arguments[:4], arguments[4:]
        stack = self._stack - align(4 * len(behind))
        self._core.mem_write(stack, struct.pack(f"<{len(behind)}I", *behind))
        for register, value in enumerate(in_registers):
            self._core.reg_write(arm_const.UC_ARM_REG_R0 + register, value)
        self._core.reg_write(arm_const.UC_ARM_REG_SP, stack)
        self._core.reg_write(arm_const.UC_ARM_REG_LR, self._return | 1)
        blocks: Counter[tuple[int, int]] = Counter()
        hook = self._core.hook_add(UC_HOOK_BLOCK, lambda _, at, nbytes, __: blocks.update(((at, nbytes),))) if count else None
        self._touched = None
        try:
            self._core.emu_start(self._entry | 1, self._return)
        except UcError as error:
            what = f"{error} at {self._core.reg_read(arm_const.UC_ARM_REG_PC):#x}"
            if self._touched is not None:
                raise AccessError(what, self._touched) from error
            raise SepwiseError(what) from error
        finally:
            if hook is not None:
                self._core.hook_del(hook)
        instructions = sum(times * self._instructions(*block) for block, times in blocks.items())
        return self._core.reg_read(arm_const.UC_ARM_REG_R0), instructions

    def _note_access(self, core: Uc, kind: int, address: int, *what: object) -> bool:
        """Keeps where a call touched what it may not, which ends it."""
        self._touched = address
        return False

    def _instructions(self, address: int, nbytes: int) -> int:
        """Counts the instructions of a block."""
        halfwords = np.frombuffer(bytes(self._core.mem_read(address, nbytes)), np.uint16)
        index = found = 0
        while index < len(halfwords):
            index += 2 if halfwords[index] >= 0xE800 else 1
            found += 1
        return found

    def _map(self, start: int, nbytes: int) -> None:
        """Makes memory of whole pages."""
        first, last = start // PAGE_BYTES, -(-(start + nbytes) // PAGE_BYTES)
        self._core.mem_map(first * PAGE_BYTES, (last - first) * PAGE_BYTES)
