"""A core without a system: what a call gets, gives, executes and may not touch."""

from pathlib import Path

import numpy as np
import pytest

from sepwise.lowering import device, link
from sepwise.lowering.bare_metal import CPU_MODELS, Core
from sepwise.lowering.counts import CallCounts
from sepwise.passes.errors import InputError, SepwiseError

SOURCE = """
#include <stdint.h>
#if defined(__aarch64__)
#define ROUND "ldp q0, q1, [%1]\\n  str q0, [%2]\\n  subs %w0, %w0, #1"
#define SKIPPED "tst %w0, wzr\\n  csel %w0, %w0, %w0, ne\\n  ldr s0, [%1]"
#define COUNT "%w0"
#define USED "v0", "v1"
#else
#ifdef __thumb__
#define IT "it ne\\n  "
#else
#define IT "nop\\n  "
#endif
#define SKIPPED "tst %0, #0\\n  " IT "ldrne r3, [%1]"
#define COUNT "%0"
#define ROUND "vldmia %1, {s0-s7}\\n  vstmia %2, {s0-s3}\\n  subs %0, %0, #1"
#define USED "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "r3"
#endif
int32_t model_run_range(int32_t what, int32_t count, float *x, const float *y, float *z, const int32_t *five, int32_t six) {
  switch (what) {
    case 0: return count * 1000 + *five * 10 + six;
    case 1: for (int i = 0; i < count; ++i) z[i] = x[i] * y[i] + z[i]; return 0;
    case 2: return *(volatile int32_t *)z;
    case 3: __builtin_trap();
    case 4: __asm__ volatile("1: " ROUND "\\n  bne 1b" : "+r"(count) : "r"(x), "r"(z) : USED, "cc", "memory"); return 0;
    case 5:
      __asm__ volatile("1: " SKIPPED "\\n  subs " COUNT ", " COUNT ", #1\\n  bne 1b"
                       : "+r"(count) : "r"(x) : USED, "cc", "memory");
      return 0;
  }
  return -1;
}
"""
CORES = {
    "cortex-m7": ("cortex-m7", "armelf_linux_eabi", 1 << 32),
    "cortex-a7": ("cortex-a7", "armelf_linux_eabi", 1 << 32),
    "cortex-a72": ("cortex-a72", "aarch64linux", 1 << 40),
    "max": ("cortex-a76", "aarch64linux", 1 << 40),
}
"""A device, the linker's name of its format, and more bytes than it can have, by the emulator's name of the cpu."""


@pytest.fixture(scope="module", params=CORES)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name, emulation, _ = CORES[request.param]
    folder = tmp_path_factory.mktemp("bare")
    (folder / "image.c").write_text(SOURCE)
    built = device.get(name)
    link.compile_c(folder / "image.c", folder / "image.o", target=built.zig_target, flags=(f"-mcpu={built.zig_cpu}",))
    link.run_zig("ld.lld", "-m", emulation, "-static", "-e", "model_run_range", "-o", folder / "image", folder / "image.o")
    return request.param, folder / "image"


@pytest.fixture
def core(image: tuple[str, Path]) -> Core:
    cpu, path = image
    return Core(path, cpu)


def test_every_cpu_of_a_device_is_known() -> None:
    wanted = {found.unicorn_cpu for found in map(device.get, device.names())} - {None}
    wanted |= {found.emulator_cpu for found in map(device.get, device.names()) if found.emulator == device.UNICORN}
    assert wanted == set(CPU_MODELS)
    assert set(CORES) <= wanted


def test_arguments_beyond_the_registers_and_the_result(core: Core) -> None:
    five = core.allocate(4)
    core.write(five, np.array([7], np.int32))
    assert core.call((0, 3, 0, 0, 0, five, 9)) == 3079
    assert core.call((9, 0, 0, 0, 0, 0, 0)) == 0xFFFFFFFF


def test_floats_are_computed_in_memory_that_was_given(core: Core) -> None:
    arrays = [np.random.default_rng(seed).standard_normal(33).astype(np.float32) for seed in range(3)]
    addresses = [core.allocate(array.nbytes) for array in arrays]
    assert all(address % 64 == 0 for address in addresses)
    for address, array in zip(addresses, arrays, strict=True):
        core.write(address, array)
    core.call((1, 33, *addresses, 0, 0))
    x, y, z = (array.astype(np.float64) for array in arrays)
    found = core.read(addresses[2], arrays[2].nbytes).view(np.float32)
    assert np.all(np.abs(found - (x * y + z)) <= 2.0**-23 * (np.abs(x * y) + np.abs(z)))


def test_what_is_executed_is_counted_exactly(image: tuple[str, Path]) -> None:
    cpu, path = image
    core = Core(path, cpu, count=True)
    x, z = core.allocate(32), core.allocate(16)

    def count(rounds: int) -> CallCounts:
        core.call((4, rounds, x, 0, z, 0, 0))
        return core.take_counts()

    few, many = count(10), count(110)
    assert many.instructions - few.instructions == 4 * 100
    assert 4 * 10 < few.instructions < 4 * 10 + 30
    assert (many.loads - few.loads, many.stores - few.stores) == (100, 100)
    assert (many.load_bytes - few.load_bytes, many.store_bytes - few.store_bytes) == (32 * 100, 16 * 100)
    assert core.take_counts().instructions == 0


def test_an_instruction_whose_condition_fails_counts_but_loads_nothing(image: tuple[str, Path]) -> None:
    cpu, path = image
    core = Core(path, cpu, count=True)
    x = core.allocate(32)

    def count(rounds: int) -> CallCounts:
        core.call((5, rounds, x, 0, 0, 0, 0))
        return core.take_counts()

    few, many = count(10), count(110)
    assert many.instructions - few.instructions == 5 * 100
    assert many.loads - few.loads == (100 if core.address == np.uint64 else 0)  # AArch64 has no loads under a condition


def test_what_a_core_cannot_do_ends_the_call(core: Core) -> None:
    behind = core.allocate(100) + (1 << 12)
    with pytest.raises(SepwiseError, match="READ_UNMAPPED"):
        core.call((2, 0, 0, 0, behind, 0, 0))
    with pytest.raises(SepwiseError, match=r"UC_ERR.* at 0x"):
        core.call((3, 0, 0, 0, 0, 0, 0))


def test_the_address_space_ends(core: Core, image: tuple[str, Path]) -> None:
    nbytes = CORES[image[0]][2]
    with pytest.raises(InputError, match=f"{nbytes} bytes do not fit the"):
        core.allocate(nbytes)


def test_an_unknown_cpu_is_refused(image: tuple[str, Path]) -> None:
    with pytest.raises(InputError, match="cpu 'cortex-m8' is unknown; known are cortex-m7, "):
        Core(image[1], "cortex-m8")
