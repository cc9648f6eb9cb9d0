"""Linking: what comes out, what is missing, what is kept."""

import ctypes
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sepwise.lowering import device, link
from sepwise.lowering.program import Program
from sepwise.passes.errors import InputError, SepwiseError

LIBM_KERNELS = """
#include <stdint.h>
float sinf(float);
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) { *y = sinf(*x); }
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {}
"""


def test_a_shared_object_has_the_entries(c_program: Callable[..., Program], tmp_path: Path) -> None:
    link.link_shared(c_program(), tmp_path / "model.so")
    library = ctypes.CDLL(str(tmp_path / "model.so"))
    for entry in ("model_run", "model_run_range", "sepwise_pool_create", "sepwise_time"):
        assert library[entry]


def test_an_executable_is_static_and_for_its_target(c_program: Callable[..., Program], tmp_path: Path) -> None:
    link.link_executable(c_program("cortex-a72"), device.get("cortex-a72"), tmp_path / "model")
    with (tmp_path / "model").open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == "EM_AARCH64"
        assert elf["e_type"] == "ET_EXEC"
        assert elf.get_section_by_name(".dynamic") is None


def test_a_kernel_that_needs_a_library_is_named(c_program: Callable[..., Program], tmp_path: Path) -> None:
    program = c_program("cortex-a72", kernels=LIBM_KERNELS)
    with pytest.raises(SepwiseError, match="kernels need sinf, which the target does not have"):
        link.link_executable(program, device.get("cortex-a72"), tmp_path / "model")


def test_damaged_object_code_is_an_error_of_ours(c_program: Callable[..., Program], tmp_path: Path) -> None:
    with pytest.raises(SepwiseError, match=r"zig ld\.lld"):
        link.link_shared(dataclasses.replace(c_program(), object_code=b"no object"), tmp_path / "model.so")


def test_without_zig_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    link._zig.cache_clear()
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install ziglang"):
        link.run_zig("version")


def test_the_cache_is_the_users_or_temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = link.cache_folder.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find() == tmp_path / "sepwise"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find().name.startswith("sepwise-cache-")


def test_the_plugin_is_built_once() -> None:
    built = link.count_plugin(7)
    assert built.stat().st_mtime_ns == link.count_plugin(7).stat().st_mtime_ns
    assert link.count_plugin(9) != built


def test_a_kept_object_is_of_the_source_that_it_is_filed_under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, cache = shutil.copytree(link.RUNTIME, tmp_path / "runtime"), tmp_path / "cache"
    cache.mkdir()
    source = (runtime / "timing.c").read_bytes()

    def compile_meanwhile_changed(path: Path, output: Path, **_: object) -> None:
        (runtime / "timing.c").write_text("other\n")
        (runtime / "sepwise.h").unlink(missing_ok=True)
        assert (path.parent / "sepwise.h").is_file()
        output.write_bytes(path.read_bytes())

    monkeypatch.setattr(link, "RUNTIME", runtime)
    monkeypatch.setattr(link, "cache_folder", lambda: cache)
    monkeypatch.setattr(link, "compile_c", compile_meanwhile_changed)
    kept = link._runtime_object("timing", "any")
    assert kept.read_bytes() == source
    assert [path.name for path in cache.iterdir()] == [kept.name]
