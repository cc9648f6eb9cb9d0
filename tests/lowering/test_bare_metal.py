"""A core without a system: what a call gets, gives, executes and may not touch."""

from pathlib import Path

import numpy as np
import pytest

from sepwise.lowering import device, link
from sepwise.lowering.bare_metal import Core
from sepwise.passes.errors import InputError, SepwiseError

SOURCE = """
#include <stdint.h>
int32_t model_run_range(int32_t what, int32_t count, float *x, const float *y, float *z, const int32_t *five, int32_t six) {
  switch (what) {
    case 0: return count * 1000 + *five * 10 + six;
    case 1: for (int i = 0; i < count; ++i) z[i] = x[i] * y[i] + z[i]; return 0;
    case 2: return *(volatile int32_t *)z;
    case 3: __builtin_trap();
    case 4: __asm__ volatile("mov r1, %0\\n1: subs r1, #1\\n  add.w r0, r0, #1\\n  bne 1b" :: "r"(count) : "r0", "r1"); return 0;
  }
  return -1;
}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "image.c").write_text(SOURCE)
    m7 = device.get("cortex-m7")
    link.compile_c(folder / "image.c", folder / "image.o", target=m7.zig_target, flags=(f"-mcpu={m7.zig_cpu}",))
    options = ("-m", "armelf_linux_eabi", "-static", "-e", "model_run_range")
    link.run_zig("ld.lld", *options, "-o", folder / "image", folder / "image.o")
    return folder / "image"


@pytest.fixture
def core(image: Path) -> Core:
    return Core(image, "cortex-m7")


def test_arguments_beyond_the_registers_and_the_result(core: Core) -> None:
    five = core.allocate(4)
    core.write(five, np.array([7], np.int32))
    assert core.call((0, 3, 0, 0, 0, five, 9)) == (3079, 0)
    assert core.call((9, 0, 0, 0, 0, 0, 0)) == (0xFFFFFFFF, 0)


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


def test_instructions_are_counted_exactly(core: Core) -> None:
    few, many = (core.call((4, times, 0, 0, 0, 0, 0), count=True)[1] for times in (10, 110))
    assert many - few == 3 * 100  # of 2 and of 4 bytes
    assert 3 * 10 < few < 3 * 10 + 30


def test_what_a_core_cannot_do_ends_the_call(core: Core) -> None:
    behind = core.allocate(100) + (1 << 12)
    with pytest.raises(SepwiseError, match="READ_UNMAPPED"):
        core.call((2, 0, 0, 0, behind, 0, 0))
    with pytest.raises(SepwiseError, match=r"UC_ERR.* at 0x"):
        core.call((3, 0, 0, 0, 0, 0, 0))


def test_the_address_space_ends(core: Core) -> None:
    with pytest.raises(InputError, match="4294967296 bytes do not fit the"):
        core.allocate(1 << 32)


def test_an_unknown_cpu_is_refused(image: Path) -> None:
    with pytest.raises(InputError, match="cpu 'cortex-m8' is unknown; known are cortex-m7"):
        Core(image, "cortex-m8")
