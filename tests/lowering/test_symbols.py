"""Symbols of objects: hidden under a prefix, and told apart by what they need."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sepwise.lowering import link
from sepwise.lowering.symbols import allocated_bytes, hide_symbols, undefined_symbols, writable_bytes

SOURCE = """
extern int outside(int);
__attribute__((weak)) int weak(int x) { return x + 1; }
static __attribute__((noinline)) int local(int x) { return weak(x) * 2; }
const int table[4] = {1, 2, 3, 4};
int inner(int x) { return local(x) + table[x & 3]; }
int shown(int x) { return inner(x) + 1; }
#ifdef NEEDS
int counter;
int needs(int x) { return counter += outside(x); }
#endif
"""
TARGETS = ["x86_64-freestanding-none", "aarch64-freestanding-none", "arm-freestanding-eabihf"]


def compiled(folder: Path, target: str, *flags: str) -> bytes:
    (folder / "a.c").write_text(SOURCE)
    link.compile_c(folder / "a.c", folder / "a.o", target=target, flags=("-fPIC", *flags))
    return (folder / "a.o").read_bytes()


def globals_of(path: Path) -> dict[str, tuple[str, str, str]]:
    with path.open("rb") as file:
        symbols = list(ELFFile(file).get_section_by_name(".symtab").iter_symbols())
    return {
        symbol.name: (symbol["st_info"]["bind"], symbol["st_other"]["visibility"], symbol["st_info"]["type"])
        for symbol in symbols
        if symbol["st_info"]["bind"] != "STB_LOCAL"
    }


@pytest.mark.parametrize("target", TARGETS)
def test_all_but_public_symbols_are_renamed_and_hidden(target: str, tmp_path: Path) -> None:
    (tmp_path / "b.o").write_bytes(hide_symbols(compiled(tmp_path, target), {"shown"}, "mine_"))
    assert globals_of(tmp_path / "b.o") == {
        "shown": ("STB_GLOBAL", "STV_DEFAULT", "STT_FUNC"),
        "mine_inner": ("STB_GLOBAL", "STV_HIDDEN", "STT_FUNC"),
        "mine_weak": ("STB_WEAK", "STV_HIDDEN", "STT_FUNC"),
        "mine_table": ("STB_GLOBAL", "STV_HIDDEN", "STT_OBJECT"),
    }


def test_what_is_needed_from_outside_keeps_its_name(tmp_path: Path) -> None:
    edited = hide_symbols(compiled(tmp_path, TARGETS[0], "-DNEEDS"), (), "mine_")
    (tmp_path / "b.o").write_bytes(edited)
    assert globals_of(tmp_path / "b.o")["outside"][0] == "STB_GLOBAL"
    assert undefined_symbols(edited) == ["outside"]
    assert writable_bytes(edited) == 4


def test_an_edited_object_computes_the_same(tmp_path: Path) -> None:
    original = compiled(tmp_path, f"{sys.platform}-freestanding-none".replace("linux", link._host_target().split("-")[0]))
    for name, code in {"plain": original, "hidden": hide_symbols(original, {"shown"}, "mine_")}.items():
        (tmp_path / f"{name}.o").write_bytes(code)
        link.run_zig("ld.lld", "-shared", "-o", tmp_path / f"{name}.so", tmp_path / f"{name}.o")
    plain, hidden = (ctypes.CDLL(str(tmp_path / f"{name}.so")) for name in ("plain", "hidden"))
    assert [hidden.shown(x) for x in range(9)] == [plain.shown(x) for x in range(9)]
    assert plain.inner
    assert not hasattr(hidden, "mine_inner")
    assert not hasattr(hidden, "inner")


def test_sizes_of_what_is_in_memory(tmp_path: Path) -> None:
    plain, more = compiled(tmp_path, TARGETS[0]), compiled(tmp_path, TARGETS[0], "-DNEEDS")
    assert undefined_symbols(plain) == []
    assert writable_bytes(plain) == 0
    assert 16 < allocated_bytes(plain) < allocated_bytes(more)
    with (tmp_path / "a.o").open("rb") as file:
        debug = [section for section in ELFFile(file).iter_sections() if section.name.startswith(".debug")]
    assert allocated_bytes(more) < len(more) - sum(section["sh_size"] for section in debug)


def test_two_edited_objects_in_one_program(tmp_path: Path) -> None:
    code = compiled(tmp_path, TARGETS[0])
    for name in ("one", "two"):
        (tmp_path / f"{name}.o").write_bytes(hide_symbols(code, (), f"{name}_"))
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-r", "-o", "both.o", "one.o", "two.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert {"one_shown", "two_shown", "one_inner", "two_inner"} <= set(globals_of(tmp_path / "both.o"))
