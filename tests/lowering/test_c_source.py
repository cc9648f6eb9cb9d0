"""The generated C: what it calls, with what, and what it needs from outside."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sepwise.lowering.c_source import generate_c
from sepwise.lowering.link import compile_c
from sepwise.lowering.program import Program


def test_calls_in_order_with_their_arguments(c_program: Callable[..., Program]) -> None:
    source = generate_c(c_program())
    calls = re.findall(r"^  (scale|add_and_sum)\((.*)\);$", source, re.MULTILINE)
    assert calls == [
        (
            "scale",
            "(void *)m->inputs[0], (void *)m->inputs[1], (void *)(m->constants + 64), m->arena + 128, "
            "m->arena + (worker ? 1856 + (size_t)(worker - 1) * 576 : 1280), task",
        ),
        ("add_and_sum", "m->arena + 128, (void *)m->inputs[0], m->outputs[0], m->outputs[1], m->arena, task"),
    ]


def test_calls_alone_take_arguments_by_position(c_program: Callable[..., Program]) -> None:
    source = generate_c(c_program(), alone=True)
    calls = re.findall(r"^  (scale|add_and_sum)\((.*)\);$", source, re.MULTILINE)
    positions = ", ".join(f"(void *)m->inputs[{place}]" for place in range(4))
    assert calls[2:] == [
        ("scale", f"{positions}, m->arena + (worker ? 576 + (size_t)(worker - 1) * 576 : 0), task"),
        ("add_and_sum", f"{positions}, m->arena, task"),
    ]
    assert [int(case) for case in re.findall(r"case (\d+):", source)] == [0, 1, 2, 3]
    assert "model_run_range(0, 2," in source, "a run has the calls of the program and no others"


def test_sizes_are_in_the_file(c_program: Callable[..., Program]) -> None:
    program = c_program()
    source = generate_c(program, prefix="net")
    assert f"net_arena_bytes = {program.arena_bytes};" in source
    assert "net_scratch_bytes = 576;" in source
    assert "net_constant_bytes = 128;" in source


def test_the_object_needs_only_kernels_and_writes_no_globals(c_program: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "model.c").write_text(generate_c(c_program(), prefix="net"))
    compile_c(tmp_path / "model.c", tmp_path / "model.o", target="aarch64-freestanding-none", flags=("-Werror",))
    with (tmp_path / "model.o").open("rb") as file:
        elf = ELFFile(file)
        symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
        written = [s.name for s in elf.iter_sections() if s["sh_flags"] & 0x1 and s["sh_size"]]
    undefined = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}
    assert undefined == {"scale", "add_and_sum"}
    assert written == []
    assert {"net_run", "net_run_range"} <= {s.name for s in symbols}


def test_a_name_cannot_break_out_of_its_comment(c_program: Callable[..., Program]) -> None:
    source = generate_c(dataclasses.replace(c_program(), name="*/ evil /*"))
    assert "evil */" not in source
    assert source.startswith("/* __ evil __ for host")


def test_wrong_identifiers_and_arities_are_refused(c_program: Callable[..., Program]) -> None:
    program = c_program()
    with pytest.raises(ValueError, match="'a-b' is no C identifier"):
        generate_c(program, prefix="a-b")
    second = dataclasses.replace(program.calls[1], symbol="scale", arguments=program.calls[1].arguments[:2])
    with pytest.raises(ValueError, match="'scale' is called with 4 and with 2 arguments"):
        generate_c(dataclasses.replace(program, calls=(program.calls[0], second)))
