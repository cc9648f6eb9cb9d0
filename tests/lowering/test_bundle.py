"""Bundles: what is in them, that they compute what the artifact computes, and what their public functions refuse."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from elftools.elf.elffile import ELFFile

from sepwise.lowering import bundle as bundles
from sepwise.lowering import device
from sepwise.lowering.artifact import Artifact
from sepwise.lowering.build import compile
from sepwise.lowering.bundle import Bundle, bundle, load_bundle, write_bundle
from sepwise.lowering.program import Program, Value
from sepwise.lowering.symbols import undefined_symbols, writable_bytes
from sepwise.passes.convert_input import ImageFormat
from sepwise.passes.errors import InputError, SepwiseError

Tensors = dict[str, np.ndarray]
MODEL = {"name": "small", "file": "small.onnx", "sha256": "", "float16": False}
FILES = ["CMakeLists.txt", "README.md", "example.c", "libnet.a", "libnet.so", "manifest.json", "net.h", "net.hpp", "net.py"]
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")

NEEDS_VARIABLES = """
#include <stdint.h>
static int32_t count;
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) { y[0] = ++count; }
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {}
"""
NEEDS_A_LIBRARY = """
#include <stdint.h>
float sinf(float);
void scale(const float *x, const float *shift, const float *bias, float *y, void *scratch, int32_t task) { *y = sinf(*x); }
void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {}
"""

# Two bundles in one program. Each mode checks one thing and then writes the outputs of the last run; no run that is refused
# may have written any.
HARNESS = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"
#include "other.h"

enum { WORKERS = 3, ROOM = NET_ARENA_BYTES + (WORKERS - 1) * NET_WORKER_BYTES };
#define CHECK(condition) \\
  if (!(condition)) { fprintf(stderr, "line %d: %s\\n", __LINE__, #condition); exit(1); }

static NET_ALIGNED unsigned char arenas[2][(ROOM + 63) / 64 * 64];
static NET_ALIGNED unsigned char weights[OTHER_WEIGHT_BYTES];
static NET_ALIGNED float x[NET_INPUT_X_ELEMENTS + 1], shift[NET_INPUT_SHIFT_ELEMENTS + 1];
static NET_ALIGNED float s[2][NET_OUTPUT_S_ELEMENTS + 14], z[2][NET_OUTPUT_Z_ELEMENTS + 10];
_Static_assert(sizeof s[0] % NET_ALIGNMENT == 0 && sizeof z[0] % NET_ALIGNMENT == 0, "both sets are aligned");

static const net_input input = {.x = x, .shift = shift};
static net_output outputs[2] = {{.s = s[0], .z = z[0]}, {.s = s[1], .z = z[1]}};

static void run_backwards(void *context, int32_t tasks, net_task task, const void *argument) {
  for (int32_t i = tasks; i-- > 0;) task(argument, i, i % WORKERS);
  ++*(int *)context;
}

static void *run_often(void *which) {
  int index = *(int *)which;
  for (int i = 0; i < 20; ++i) CHECK(net_run(&input, &outputs[index], arenas[index]) == NET_OK);
  return NULL;
}

static void check_null(void) {
  const net_input no_x = {.shift = shift}, no_shift = {.x = x};
  net_output no_s = {.z = z[0]}, no_z = {.s = s[0]};
  CHECK(net_run(NULL, outputs, arenas[0]) == NET_ERROR_NULL);
  CHECK(net_run(&input, NULL, arenas[0]) == NET_ERROR_NULL);
  CHECK(net_run(&input, outputs, NULL) == NET_ERROR_NULL);
  CHECK(net_run_with(&input, outputs, NULL) == NET_ERROR_NULL);
  CHECK(net_run(&no_x, outputs, arenas[0]) == NET_ERROR_NULL);
  CHECK(net_run(&no_shift, outputs, arenas[0]) == NET_ERROR_NULL);
  CHECK(net_run(&input, &no_s, arenas[0]) == NET_ERROR_NULL);
  CHECK(net_run(&input, &no_z, arenas[0]) == NET_ERROR_NULL);
}

static void check_alignment(void) {
  const net_input skewed_x = {.x = x + 1, .shift = shift}, skewed_shift = {.x = x, .shift = shift + 1};
  net_output skewed_s = {.s = s[0] + 1, .z = z[0]}, skewed_z = {.s = s[0], .z = z[0] + 1};
  for (int at = 1; at < NET_ALIGNMENT; ++at) CHECK(net_run(&input, outputs, arenas[0] + at) == NET_ERROR_ALIGNMENT);
  CHECK(net_run(&skewed_x, outputs, arenas[0]) == NET_ERROR_ALIGNMENT);
  CHECK(net_run(&skewed_shift, outputs, arenas[0]) == NET_ERROR_ALIGNMENT);
  CHECK(net_run(&input, &skewed_s, arenas[0]) == NET_ERROR_ALIGNMENT);
  CHECK(net_run(&input, &skewed_z, arenas[0]) == NET_ERROR_ALIGNMENT);
}

static void check_arena(void) {
  int calls = 0;
  net_execution execution = {.arena = arenas[0], .parallel_for = run_backwards, .context = &calls};
  for (int workers = 1; workers <= WORKERS; ++workers) {
    execution.workers = workers;
    for (size_t lack = 1; lack < 3 * NET_ARENA_BYTES; lack *= 2) {
      size_t needed = NET_ARENA_BYTES + (workers - 1) * (size_t)NET_WORKER_BYTES;
      execution.arena_bytes = lack < needed ? needed - lack : 0;
      CHECK(net_run_with(&input, outputs, &execution) == NET_ERROR_ARENA_BYTES);
    }
  }
  execution.arena_bytes = ROOM;
  execution.workers = INT32_MAX;
  CHECK(net_run_with(&input, outputs, &execution) == NET_ERROR_ARENA_BYTES);
  execution.workers = 0;
  CHECK(net_run_with(&input, outputs, &execution) == NET_ERROR_WORKERS);
  execution.workers = -1;
  CHECK(net_run_with(&input, outputs, &execution) == NET_ERROR_WORKERS);
  CHECK(calls == 0);
}

static void check_weights(void) {
  static NET_ALIGNED unsigned char wrong[OTHER_WEIGHT_BYTES];
  memcpy(wrong, weights, sizeof wrong);
  wrong[sizeof wrong - 1] ^= 1;
  CHECK(other_check_weights(weights, sizeof weights) == OTHER_OK);
  CHECK(other_check_weights(wrong, sizeof wrong) == OTHER_ERROR_WEIGHTS);
  CHECK(other_check_weights(weights, sizeof weights - 1) == OTHER_ERROR_WEIGHTS);
  CHECK(other_check_weights(NULL, sizeof weights) == OTHER_ERROR_NULL);
  CHECK(other_check_weights(weights + 1, sizeof weights) == OTHER_ERROR_ALIGNMENT);
  other_input none = {.x = x, .shift = shift}, skewed = {.x = x, .shift = shift, .weights = weights + 1};
  other_output output = {.s = s[0], .z = z[0]};
  CHECK(other_run(&none, &output, arenas[0]) == OTHER_ERROR_NULL);
  CHECK(other_run(&skewed, &output, arenas[0]) == OTHER_ERROR_ALIGNMENT);
}

int main(int argc, char **argv) {
  const char *mode = argc == 2 ? argv[1] : "";
  CHECK(fread(weights, 1, sizeof weights, stdin) == sizeof weights);
  CHECK(fread(x, 1, NET_INPUT_X_BYTES, stdin) == NET_INPUT_X_BYTES);
  CHECK(fread(shift, 1, NET_INPUT_SHIFT_BYTES, stdin) == NET_INPUT_SHIFT_BYTES);
  memset(s, 0xff, sizeof s);
  memset(z, 0xff, sizeof z);
  if (!strcmp(mode, "null")) check_null();
  if (!strcmp(mode, "alignment")) check_alignment();
  if (!strcmp(mode, "arena")) check_arena();
  if (!strcmp(mode, "weights")) check_weights();
  for (size_t i = 0; i < sizeof s; ++i) CHECK(((unsigned char *)s)[i] == 0xff);
  for (size_t i = 0; i < sizeof z; ++i) CHECK(((unsigned char *)z)[i] == 0xff);

  if (!strcmp(mode, "workers")) {
    int calls = 0;
    const net_execution execution = {arenas[0], ROOM, WORKERS, run_backwards, &calls};
    CHECK(net_run_with(&input, outputs, &execution) == NET_OK);
    CHECK(calls == 2);
  } else if (!strcmp(mode, "threads")) {
    pthread_t threads[2];
    int which[2] = {0, 1};
    for (int i = 0; i < 2; ++i) CHECK(!pthread_create(&threads[i], NULL, run_often, &which[i]));
    for (int i = 0; i < 2; ++i) CHECK(!pthread_join(threads[i], NULL));
    CHECK(!memcmp(s[0], s[1], NET_OUTPUT_S_BYTES) && !memcmp(z[0], z[1], NET_OUTPUT_Z_BYTES));
  } else if (!strcmp(mode, "other")) {
    const other_input given = {.x = x, .shift = shift, .weights = weights};
    other_output output = {.s = s[0], .z = z[0]};
    CHECK(other_run(&given, &output, arenas[1]) == OTHER_OK);
  } else {
    memset(arenas, 0xff, sizeof arenas);
    CHECK(net_run(&input, outputs, arenas[0]) == NET_OK);
    for (size_t i = NET_ARENA_BYTES; i < sizeof arenas[0]; ++i) CHECK(arenas[0][i] == 0xff);
  }
  CHECK(fwrite(s[0], 1, NET_OUTPUT_S_BYTES, stdout) == NET_OUTPUT_S_BYTES);
  CHECK(fwrite(z[0], 1, NET_OUTPUT_Z_BYTES, stdout) == NET_OUTPUT_Z_BYTES);
  return 0;
}
"""
MODES = ["null", "alignment", "arena", "weights", "workers", "threads", "other"]

CPP = """
#include <cstdio>
#include "net.hpp"
#include "other.hpp"

alignas(OTHER_ALIGNMENT) static unsigned char weights[OTHER_WEIGHT_BYTES];

int main() {
  auto inputs = std::make_unique<sepwise::net::Inputs>();
  auto outputs = std::make_unique<sepwise::net::Outputs>();
  if (std::fread(weights, 1, sizeof weights, stdin) != sizeof weights) return 2;
  if (std::fread(inputs->x.data(), 4, inputs->x.size(), stdin) != inputs->x.size()) return 2;
  if (std::fread(inputs->shift.data(), 4, inputs->shift.size(), stdin) != inputs->shift.size()) return 2;
  sepwise::net::Network network;
  if (network.run(*inputs, *outputs) != NET_OK) return 1;
  std::fwrite(outputs->s.data(), 4, outputs->s.size(), stdout);
  sepwise::other::Inputs given;
  sepwise::other::Outputs results;
  given.x = {inputs->x};
  given.shift = {inputs->shift};
  sepwise::other::Network other(weights);
  if (other.run(given, results) != OTHER_OK) return 1;
  std::fwrite(results.z.data(), 4, results.z.size(), stdout);
}
"""


def build(compiler: str, *words: object) -> None:
    """Runs a compiler of this machine, or zig's where there is none."""
    found = shutil.which(compiler)
    command = [found] if found else [sys.executable, "-m", "ziglang", {"gcc": "cc", "g++": "c++"}[compiler]]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: Path, *words: str, given: bytes) -> bytes:
    done = subprocess.run([program, *words], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def made(c_program: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The Program of kernels in C as the bundle `net`."""
    folder = tmp_path_factory.mktemp("bundle") / "net"
    return write_bundle(c_program(), device.get("host"), folder, name="net", model=MODEL)


@pytest.fixture(scope="module")
def other(c_program: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with separate weights as the bundle `other`."""
    folder = tmp_path_factory.mktemp("bundle") / "other"
    return write_bundle(c_program(), device.get("host"), folder, name="other", model=MODEL, weights="separate")


@pytest.fixture(scope="module")
def given(other: Bundle, c_program_tensors: Tensors) -> bytes:
    """What the harness reads."""
    parts = [c_program_tensors["x"], c_program_tensors["shift"]]
    return (other.folder / "other.bin").read_bytes() + b"".join(part.tobytes() for part in parts)


@pytest.fixture(scope="module")
def expected(c_program: Callable[..., Program], c_program_tensors: Tensors) -> bytes:
    """What the artifact computes."""
    with Artifact(c_program()) as artifact:
        outputs = artifact.run(x=c_program_tensors["x"], shift=c_program_tensors["shift"])
    return outputs["s"].tobytes() + outputs["z"].tobytes()


@pytest.fixture(scope="module")
def harness(made: Bundle, other: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both bundles in one program."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(HARNESS)
    libraries = (made.folder / "libnet.a", other.folder / "libother.a")
    includes = ("-I", made.folder, "-I", other.folder)
    build("gcc", "-std=gnu11", "-O1", *STRICT, *includes, folder / "harness.c", *libraries, "-pthread", "-o", folder / "harness")
    return folder / "harness"


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_has_its_files_and_no_others(made: Bundle, other: Bundle) -> None:
    assert listed(made.folder) == FILES
    assert listed(made.folder.parent) == ["net"]
    assert set(listed(other.folder)) == {file.replace("net", "other") for file in FILES} | {"other.bin"}


def test_the_manifest_says_what_is_there(made: Bundle, c_program: Callable[..., Program]) -> None:
    manifest = json.loads((made.folder / "manifest.json").read_text())
    del manifest["sha256"]
    assert manifest == made.manifest == load_bundle(made.folder).manifest
    program = c_program()
    assert manifest["weight_bytes"] == program.constants.nbytes
    assert manifest["arena_bytes"] == program.arena_bytes
    assert manifest["worker_bytes"] == program.scratch_bytes
    assert manifest["arena_lower_bound_bytes"] == program.arena_lower_bound_bytes
    assert manifest["verification"] is None
    assert [(each["name"], each["shape"], each["dtype"]) for each in manifest["inputs"]] == [
        ("x", [1, 6, 5, 7], "float32"),
        ("shift", [1, 6], "float32"),
    ]
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert 0 < manifest["code_bytes"] < (made.folder / "libnet.a").stat().st_size


def test_the_library_needs_nothing_and_has_no_variables(made: Bundle, tmp_path: Path) -> None:
    build_objects = [sys.executable, "-m", "ziglang", "ar", "x", str(made.folder / "libnet.a")]
    subprocess.run(build_objects, cwd=tmp_path, check=True)
    code = (tmp_path / "net.o").read_bytes()
    assert undefined_symbols(code) == []
    assert writable_bytes(code) == 0
    assert b"/tmp" not in code


def test_the_weights_can_be_pointed_at(made: Bundle, c_program: Callable[..., Program]) -> None:
    library = ctypes.CDLL(str(made.folder / "libnet.so"))
    library.net_weights.restype = ctypes.c_void_p
    constants = c_program().constants
    assert ctypes.string_at(library.net_weights(), constants.nbytes) == bytes(constants.data)
    assert f"#define NET_WEIGHT_BYTES {constants.nbytes}\n" in (made.folder / "net.h").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_public_functions_check_what_they_are_given_and_compute_as_the_artifact(
    harness: Path, given: bytes, expected: bytes, mode: str
) -> None:
    assert run(harness, mode, given=given) == expected


def test_the_cpp_wrapper(made: Bundle, other: Bundle, given: bytes, expected: bytes, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(CPP)
    libraries = (made.folder / "libnet.a", other.folder / "libother.a")
    includes = ("-I", made.folder, "-I", other.folder)
    build("g++", "-std=c++17", *STRICT, *includes, tmp_path / "main.cpp", *libraries, "-o", tmp_path / "main")
    assert run(tmp_path / "main", given=given) == expected


@pytest.mark.parametrize("which", ["made", "other"])
def test_the_example_as_the_readme_builds_it(
    request: pytest.FixtureRequest, which: str, given: bytes, expected: bytes, tmp_path: Path
) -> None:
    made = request.getfixturevalue(which)
    folder = shutil.copytree(made.folder, tmp_path / "copy")
    (line,) = re.findall(r"^    cc (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    words = [folder / word if word.endswith((".c", ".a", "_example")) else word for word in line.split()]
    build("gcc", "-std=c11", *STRICT, *words)
    weight_bytes = made.manifest["weight_bytes"] if which == "made" else 0
    assert run(folder / f"{made.name}_example", given=given[weight_bytes:]) == expected


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("target", "emulator"),
    [pytest.param("host", None, marks=pytest.mark.nightly), ("cortex-a72", "qemu-aarch64")],  # zig builds musl for each, for a minute
)
def test_a_static_program_with_musl(
    target: str,
    emulator: str | None,
    c_program: Callable[..., Program],
    c_program_tensors: Tensors,
    expected: bytes,
    tmp_path: Path,
) -> None:
    native = not device.get(target).emulated
    if emulator is not None and not native and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is missing: apt-get install qemu-user")
    made = write_bundle(c_program(target), device.get(target), tmp_path / "net", name="net", model=MODEL)
    (line,) = re.findall(r"^    python -m (ziglang cc .*)$", (made.folder / "README.md").read_text(), re.MULTILINE)
    words = [str(made.folder / word) if word.endswith((".c", ".a")) else word for word in line.split()]
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True, capture_output=True)
    program = tmp_path / "net_example"
    with program.open("rb") as file:
        elf = ELFFile(file)
        assert elf.get_section_by_name(".dynamic") is None
        assert not [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_INTERP"]
    given = b"".join(c_program_tensors[name].tobytes() for name in ("x", "shift"))
    command = [program] if native or emulator is None else [emulator, program]
    assert subprocess.run(command, input=given, capture_output=True, check=True).stdout == expected


@pytest.mark.parametrize("which", ["made", "other"])
def test_the_shared_library_from_python(
    request: pytest.FixtureRequest, which: str, c_program_tensors: Tensors, expected: bytes, tmp_path: Path
) -> None:
    made = request.getfixturevalue(which)
    np.savez(tmp_path / "given.npz", x=c_program_tensors["x"], shift=c_program_tensors["shift"])
    script = f"""
import sys, numpy as np
sys.dont_write_bytecode = True
sys.path.insert(0, {str(made.folder)!r})
from {made.name} import Network
inputs = np.load({str(tmp_path / "given.npz")!r})
network = Network()
try:
    network.run(x=inputs["x"])
except ValueError as error:
    assert "inputs x found, x, shift needed" in str(error), error
try:
    network.run(x=[1.0], shift=inputs["shift"])
except ValueError as error:
    assert "input x: float64(1,) found, float32(1, 6, 5, 7) needed" in str(error), error
outputs = network.run(**inputs)
sys.stdout.buffer.write(outputs["s"].tobytes() + outputs["z"].tobytes())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == expected


@pytest.mark.parametrize(("sanitizer", "mode"), [("thread", "threads"), ("address,undefined", "workers")])
def test_sanitizers_find_nothing_in_the_c_of_a_bundle(
    sanitizer: str,
    mode: str,
    c_program: Callable[..., Program],
    made: Bundle,
    other: Bundle,
    given: bytes,
    expected: bytes,
    tmp_path: Path,
) -> None:
    options = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-pthread"]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    attempt = [shutil.which("gcc") or "", *options, str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if not attempt[0] or subprocess.run(attempt, capture_output=True, check=False).returncode:
        pytest.skip(f"no gcc that takes -fsanitize={sanitizer}: apt-get install gcc")
    program = c_program()
    source = bundles._Writer(program, device.get("host"), "net", "inside").source()
    numbers = ", ".join(map(str, program.constants))
    (tmp_path / "source.c").write_text(re.sub("#embed .*", numbers, source))  # gcc has it since version 15
    (tmp_path / "harness.c").write_text(HARNESS)
    (tmp_path / "kernels.o").write_bytes(program.object_code)
    files = [*(tmp_path / name for name in ("source.c", "harness.c", "kernels.o")), other.folder / "libother.a"]
    includes = ("-I", made.folder, "-I", other.folder)
    build("gcc", "-std=gnu11", "-O1", *options, *includes, *files, "-o", tmp_path / "harness")
    assert run(tmp_path / "harness", mode, given=given) == expected


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"], ids=bytes.hex)
def test_weights_may_begin_with_a_byte_order_mark(mark: bytes, c_program: Callable[..., Program], tmp_path: Path) -> None:
    program = c_program()
    constants = program.constants.copy()
    constants[: len(mark)] = np.frombuffer(mark, constants.dtype)
    made = write_bundle(replace(program, constants=constants), device.get("host"), tmp_path / "net", name="net", model=MODEL)
    assert (made.folder / "libnet.so").read_bytes().count(constants.tobytes()) == 1


def test_code_with_variables_or_of_a_library_is_a_fault(c_program: Callable[..., Program], tmp_path: Path) -> None:
    with pytest.raises(SepwiseError, match="its code has variables"):
        write_bundle(c_program(kernels=NEEDS_VARIABLES), device.get("host"), tmp_path / "a", name="net", model=MODEL)
    with pytest.raises(SepwiseError, match="its code needs sinf"):
        write_bundle(c_program(kernels=NEEDS_A_LIBRARY), device.get("host"), tmp_path / "a", name="net", model=MODEL)
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-net", "needed is a C identifier"),
        ("3d", "needed is a C identifier"),
        ("_net", "needed is a C identifier"),
        ("", "needed is a C identifier"),
        ("größe", "needed is a C identifier"),
        ("double", "is a word of C or C\\+\\+"),
        ("namespace", "is a word of C or C\\+\\+"),
        ("concept", "is a word of C or C\\+\\+"),
        ("linux", "is a word of C or C\\+\\+"),
        ("NULL", "is a word of C or C\\+\\+"),
        ("features", "features.h, libfeatures.a or its namespace would hide one of the system's"),
        ("numpy", "numpy.h, libnumpy.a or its namespace would hide one of the system's"),
        ("all", "all.h, liball.a or its namespace would hide one of the system's"),
        ("m", "m.h, libm.a or its namespace would hide one of the system's"),
        ("std", "std.h, libstd.a or its namespace would hide one of the system's"),
        ("stdio", "stdio.h, libstdio.a or its namespace would hide one of the system's"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"Name '{name}': {message}"):
        bundles.require_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("mobilenet_v2", "mobilenet_v2"), ("my net-1.0", "my_net_1_0"), ("3d", "n3d"), ("m", "m_2"), ("int", "int_2"), ("--", "tensor")],
)
def test_names_are_made_of_any_text(text: str, name: str) -> None:
    assert bundles._identifier(text, bundles._TAKEN) == name
    assert bundles.require_name(name) == name


def test_names_of_tensors_differ_in_capitals_too(c_program: Callable[..., Program]) -> None:
    names = ["images.1", "images_1", "IMAGES_1", "weights", "for"]
    (value, *_) = c_program().inputs
    values = [Value(name, value.type, value.buffer) for name in names]
    fields = [tensor.field for tensor in bundles._name_tensors(values, "NET_INPUT", frozenset({"weights"}))]
    assert fields == ["images_1", "images_1_2", "IMAGES_1_3", "weights_2", "for_2"]


def test_names_of_tensors_that_compilers_and_headers_know(
    c_program: Callable[..., Program], given: bytes, expected: bytes, made: Bundle, tmp_path: Path
) -> None:
    program = c_program()
    names = iter(["Tensor", "linux", "stdout", "uint8_t"])
    inputs, outputs = ([replace(value, name=next(names)) for value in values] for values in (program.inputs, program.outputs))
    odd = replace(program, inputs=tuple(inputs), outputs=tuple(outputs))
    folder = write_bundle(odd, device.get("host"), tmp_path / "net", name="net", model=MODEL).folder
    build("gcc", "-std=gnu11", *STRICT, folder / "example.c", folder / "libnet.a", "-o", tmp_path / "example")
    assert run(tmp_path / "example", given=given[made.manifest["weight_bytes"] :]) == expected
    (tmp_path / "main.cpp").write_text('#include "net.hpp"\nint main() { return sepwise::net::Inputs{}.Tensor_2.empty(); }\n')
    build("g++", "-std=gnu++20", *STRICT, "-I", folder, "-c", tmp_path / "main.cpp", "-o", tmp_path / "main.o")


def test_a_bundle_is_replaced_only_where_nothing_is_lost(
    made: Bundle, c_program: Callable[..., Program], tmp_path: Path
) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "net")

    def write() -> None:
        write_bundle(c_program(), device.get("host"), folder, name="net", model=MODEL)

    (folder / "__pycache__").mkdir()
    (folder / "net_example").write_text("what the README's command makes")
    write()
    assert listed(folder) == FILES
    for file in ("main.c", "x.bin"):
        (folder / file).write_text("mine")
    message = r"net: exists and is no unchanged bundle \(it also holds main.c, x.bin\); choose another place"
    with pytest.raises(InputError, match=message):
        write()
    for file in ("main.c", "x.bin"):
        (folder / file).unlink()
    (folder / "example.c").write_text("mine")
    message = r"net: exists and is no unchanged bundle \(.*example.c: was changed since it was written\); choose another place"
    with pytest.raises(InputError, match=message):
        write()
    assert (folder / "example.c").read_text() == "mine"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "of another program"}')
    with pytest.raises(InputError, match="net: exists and is no unchanged bundle"):
        write()
    assert listed(tmp_path) == ["net"]


def test_a_place_that_cannot_be_written(c_program: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        write_bundle(c_program(), device.get("host"), tmp_path / "file" / "net", name="net", model=MODEL)


def test_what_was_changed_is_not_loaded(made: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: does not exist, so it is no bundle"):
        load_bundle(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no manifest\.json, so it is no bundle"):
        load_bundle(tmp_path)
    folder = shutil.copytree(made.folder, tmp_path / "net")
    library = folder / "libnet.a"
    library.write_bytes(library.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"libnet\.a: was changed since it was written"):
        load_bundle(folder)
    library.unlink()
    with pytest.raises(InputError, match=r"libnet\.a: is missing"):
        load_bundle(folder)
    manifest = folder / "manifest.json"
    written = manifest.read_text()
    for old, new in (('"arena_bytes": ', '"arena_bytes": 1'), ('"files": {', '"folders": {'), ('"target": "host"', '"target": 4')):
        assert old in written
        manifest.write_text(written.replace(old, new))
        with pytest.raises(InputError, match=r"manifest\.json: (was changed since it was written|is no bundle's manifest)"):
            load_bundle(folder)
    manifest.write_text(written.replace(f'"format": {bundles.FORMAT}', '"format": 0'))
    with pytest.raises(InputError, match=f"a bundle of format 0, this sepwise reads {bundles.FORMAT}"):
        load_bundle(folder)
    manifest.write_text("{")
    with pytest.raises(InputError, match="is no bundle's manifest"):
        load_bundle(folder)


def test_the_checksum_of_a_model_covers_its_external_data(zoo_file: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(zoo_file("separable_block", shape=(1, 8, 16, 16)))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    first = bundles.checksum_model(tmp_path / "m.onnx")
    data = bytearray((tmp_path / "weights").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights").write_bytes(data)
    assert bundles.checksum_model(tmp_path / "m.onnx") != first


def test_a_model_computes_what_its_artifact_computes(zoo_file: Callable[..., Path], tmp_path: Path) -> None:
    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    made = bundle(path, tmp_path / "block", name="block")
    build("gcc", "-std=c11", *STRICT, made.folder / "example.c", made.folder / "libblock.a", "-o", tmp_path / "example")
    x = np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)
    with compile(path) as artifact:
        (output,) = artifact.run(x=x).values()
    assert run(tmp_path / "example", given=x.tobytes()) == output.tobytes()
    report = made.to_json()
    assert set(report) == {
        "name", "model", "target", "records_used", "code_bytes", "weight_bytes", "arena_bytes", "arena_lower_bound_bytes", "files"
    }  # fmt: skip
    assert (report["name"], report["model"], report["target"]) == ("block", "separable_block", "host")


def test_images_as_cameras_give_them(image_network: Path, tmp_path: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = ImageFormat(layout="NHWC", element_type="uint8", mean=mean, std=std)
    made = bundle(image_network, tmp_path / "net", name="net", image=image)
    build("gcc", "-std=c11", *STRICT, made.folder / "example.c", made.folder / "libnet.a", "-o", tmp_path / "example")
    x = np.random.default_rng(0).integers(0, 256, (1, 10, 12, 3), np.uint8)
    with compile(image_network, image=image) as artifact:
        outputs = artifact.run(x=x)
    assert [np.abs(array).max() > 0 for array in outputs.values()] == [True] * 2
    assert run(tmp_path / "example", given=x.tobytes()) == b"".join(array.tobytes() for array in outputs.values())

    header = (made.folder / "net.h").read_text()
    assert "input x: uint8, 1 x 10 x 12 x 3,\n *     an image in N, H, W, C,\n *     bytes u, of which" in header
    assert "(u / 255 - mean) / std with mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225\n" in header
    assert "const uint8_t *x;" in header
    assert "#define NET_INPUT_X_BYTES 360\n" in header
    assert load_bundle(made.folder).manifest["model"] | {"sha256": ""} == {
        "name": "images",
        "file": "images.onnx",
        "sha256": "",
        "float16": False,
        "shapes": {"x": [1, 3, 10, 12]},
        "image": {"layout": "NHWC", "element_type": "uint8", "mean": list(mean), "std": list(std), "inputs": ["x"]},
    }
