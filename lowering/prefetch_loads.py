"""Prefetches made loads that nothing waits for, so that an emulator carries them out.

qemu passes a prefetch over: which line it asks for, and whether the line is still there when it is read, would stay unknown. On
AArch64 a load into the register that is always zero has the same operands in the same places (Arm DDI 0487, PRFM and LDR):

    prfm pldl1keep, [x0, #64]   ->   ldr xzr, [x0, #64]           also unscaled offsets, and registers for offsets

No compiler writes such a load, so that what counts (`runtime/count.c`) knows it. Unlike a prefetch it must not reach unmapped
memory: the program maps 256 MiB behind its tensors, and ours reach a few blocks of channels (`runtime/emulated.c`).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["carry_out_prefetches"]

_PREFETCHES: Final[Sequence[tuple[int, int]]] = ((0xFFC00018, 0xF9800000), (0xFFE00C18, 0xF8800000), (0xFFE00C18, 0xF8A00800))
"""Mask and value of PRFM with an immediate, PRFUM, and PRFM with a register, those that prefetch for a load."""

_OPERATION: Final = 0x00C00000
_LOAD: Final = 0x00400000
_ZERO_REGISTER: Final = 0x1F


def carry_out_prefetches(executable: bytes) -> bytes:
    """Makes the prefetches of a program loads.

    Args:
        executable: A little-endian ELF program.

    Returns:
        The same with such loads; unchanged where it is not of AArch64.
    """
    elf = ELFFile(io.BytesIO(executable))
    if elf["e_machine"] != "EM_AARCH64":
        return executable
    edited = bytearray(executable)
    for section in elf.iter_sections():
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS":
            code = np.frombuffer(edited, "<u4", section["sh_size"] // 4, section["sh_offset"])
            asks = np.logical_or.reduce([code & mask == value for mask, value in _PREFETCHES])
            code[asks] = code[asks] & ~np.uint32(_OPERATION) | _LOAD | _ZERO_REGISTER
    return bytes(edited)
