"""Prefetches made loads: which instructions change, and into what; programs that stay."""

import struct
from pathlib import Path

import pytest

from sepwise.lowering import device, link
from sepwise.lowering.prefetch_loads import carry_out_prefetches

PLD_IMMEDIATE, PLD_UNSCALED, PLD_REGISTER = 0xF9800401, 0xF89FF000, 0xF8A26801  # [x0, #8], of level 1 streaming; [x0, #-1]; [x0, x2]
STORES, CODE = 0xF9800010, 0xF9800008  # pstl1keep, plil1keep
FMLA = 0x4E22CC20


@pytest.fixture
def program(tmp_path: Path) -> bytes:
    """An executable of AArch64 that holds all of them."""
    words = (PLD_IMMEDIATE, PLD_UNSCALED, PLD_REGISTER, STORES, CODE, FMLA)
    source = tmp_path / "asks.c"
    lines = "\n".join(f'__asm__(".inst {word:#x}");' for word in words)
    data = "const unsigned kept[] __attribute__((used)) = {0xf9800401};"
    source.write_text(f"{data}\nvoid asks(void) {{\n{lines}\n}}\n")
    target = device.get("cortex-a72")
    assert target.zig_target is not None
    link.compile_c(source, tmp_path / "asks.o", target=target.zig_target, flags=(f"-mcpu={target.zig_cpu}",))
    return (tmp_path / "asks.o").read_bytes()


def test_prefetches_for_loads_become_loads_into_the_zero_register(program: bytes) -> None:
    after = carry_out_prefetches(program)
    assert len(after) == len(program)
    changed = {
        tuple(struct.unpack_from("<I", each, place)[0] for each in (program, after))
        for place in range(0, len(program) - 3, 4)
        if program[place : place + 4] != after[place : place + 4]
    }
    assert changed == {
        (PLD_IMMEDIATE, 0xF940041F),  # ldr xzr, [x0, #8]
        (PLD_UNSCALED, 0xF85FF01F),  # ldur xzr, [x0, #-1]
        (PLD_REGISTER, 0xF862681F),  # ldr xzr, [x0, x2]
    }
    assert after.count(struct.pack("<I", PLD_IMMEDIATE)) == 1  # which is data


def test_other_machines_have_other_instructions(program: bytes) -> None:
    x86 = bytearray(program)
    struct.pack_into("<H", x86, 18, 62)  # e_machine
    assert carry_out_prefetches(bytes(x86)) == x86
