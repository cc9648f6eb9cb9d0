"""Symbols of an object file: what a library shows of itself, and what it needs.

Two libraries in one program must not know each other's inner names. A relocatable object is edited in place: every global
symbol that is not public gets a name with a prefix and hidden visibility, by which a linker finds it in the same program but
exports it from none. Names are appended to the string table, so that nothing else moves.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["allocated_bytes", "hide_symbols", "undefined_symbols", "writable_bytes"]

_STV_HIDDEN = 2
_STRING_TABLE_FIELDS = {64: ("<QQ", 24), 32: ("<II", 16)}
"""By word: how `sh_offset` and `sh_size` are stored, and where in a section header."""

_VISIBILITY_AT = {64: 5, 32: 13}
"""By word: where `st_other` is in a symbol."""


def hide_symbols(object_code: bytes, public: Collection[str], prefix: str) -> bytes:
    """Renames and hides all global symbols that an object defines but the public ones.

    Args:
        object_code: A relocatable little-endian ELF object.
        public: Names that stay as they are.
        prefix: What the other names begin with afterwards.

    Returns:
        The edited object.
    """
    elf = ELFFile(io.BytesIO(object_code))
    table = elf.get_section_by_name(".symtab")
    edited = bytearray(object_code)
    names = bytearray(elf.get_section(table["sh_link"]).data())
    for index, symbol in enumerate(table.iter_symbols()):
        is_local = symbol["st_info"]["bind"] == "STB_LOCAL"
        if is_local or symbol["st_shndx"] == "SHN_UNDEF" or symbol.name in public:
            continue
        entry = table["sh_offset"] + index * table["sh_entsize"]
        struct.pack_into("<I", edited, entry, len(names))
        visibility = entry + _VISIBILITY_AT[elf.elfclass]
        edited[visibility] = edited[visibility] & ~3 | _STV_HIDDEN
        names += f"{prefix}{symbol.name}\0".encode()
    layout, at = _STRING_TABLE_FIELDS[elf.elfclass]
    header = elf["e_shoff"] + table["sh_link"] * elf["e_shentsize"]
    struct.pack_into(layout, edited, header + at, len(edited), len(names))
    return bytes(edited + names)


def undefined_symbols(object_code: bytes) -> list[str]:
    """Names what an object needs from outside.

    Args:
        object_code: A relocatable ELF object.

    Returns:
        The names, in the order of the symbol table.
    """
    table = ELFFile(io.BytesIO(object_code)).get_section_by_name(".symtab")
    return [symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name]


def allocated_bytes(object_code: bytes) -> int:
    """Sums the sections that are in memory when a program runs.

    Args:
        object_code: A relocatable ELF object.

    Returns:
        Bytes of code and data.
    """
    return _section_bytes(object_code, flag=2)


def writable_bytes(object_code: bytes) -> int:
    """Sums the sections that a program can write to.

    Args:
        object_code: A relocatable ELF object.

    Returns:
        Bytes of variables.
    """
    return _section_bytes(object_code, flag=1)


def _section_bytes(object_code: bytes, *, flag: int) -> int:
    """Sums the sections with a flag: SHF_WRITE is 1, SHF_ALLOC is 2."""
    sections = ELFFile(io.BytesIO(object_code)).iter_sections()
    return sum(int(section["sh_size"]) for section in sections if section["sh_flags"] & flag)
