"""Bundles of random networks: they compute what the artifact computes, to the bit, and touch nothing beside what they are given.

All bundles of a target are linked into one program. There each tensor and each arena lies between canaries, and is filled with other
bytes than an artifact's, so that memory that is read before it is written shows. Every misaligned pointer is refused. On the host the
same goes on under sanitizers, which see the generated C and the public functions; kernels are checked between guards elsewhere.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase

from sepwise.lowering import bundle as bundles
from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.bundle import Bundle, write_bundle
from sepwise.lowering.link import link_example, run_zig
from sepwise.lowering.program import Program
from sepwise.lowering.runner import find_emulator, open_runner
from sepwise.lowering.symbols import hide_symbols
from sepwise.passes.equivalence import sample_inputs

CI, NIGHTLY = 6, 150
"""Networks of a target."""

FIRST_SEED = 1
SEEDS = 1 << 40
CONVOLUTIONS, STEPS = 3, 3

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")

HEAD = """
#include <stdio.h>
enum { CANARIES = 64, FILL = 0xa5 };

static int failed(const char *what) {
  fputs(what, stderr);
  fputs("\\n", stderr);
  return 1;
}

static void fill(unsigned char *at, size_t nbytes) {
  for (size_t i = 0; i < nbytes; ++i) at[i] = FILL;
}

/* Whether the canaries around a buffer are as they were. */
static int is_alone(const unsigned char *room, size_t nbytes) {
  for (size_t i = 0; i < CANARIES; ++i)
    if (room[i] != FILL || room[CANARIES + nbytes + i] != FILL) return 0;
  return 1;
}

static int is_filled(const unsigned char *room, size_t nbytes) {
  for (size_t i = 0; i < nbytes; ++i)
    if (room[CANARIES + i] != FILL) return 0;
  return is_alone(room, nbytes);
}

static unsigned long checksum(const unsigned char *at, size_t nbytes) {
  unsigned long sum = 5381;
  for (size_t i = 0; i < nbytes; ++i) sum = sum * 33 + at[i];
  return sum;
}
"""

PART = """
#include "@name@.h"

static int check_@name@(void) {
  static @NAME@_ALIGNED unsigned char arena[CANARIES + @NAME@_ARENA_BYTES + CANARIES];
@rooms@
  unsigned long sums[] = {@sums@};
  const @name@_input input = {@inputs@};
  @name@_output output = {@outputs@};
  fill(arena, sizeof arena);
  for (int at = 1; at < @NAME@_ALIGNMENT; ++at)
    if (@name@_run(&input, &output, arena + CANARIES + at) != @NAME@_ERROR_ALIGNMENT) return failed("@name@: takes a misaligned arena");
@misaligned@
  if (!is_filled(arena, @NAME@_ARENA_BYTES)) return failed("@name@: writes to the arena of a run that it refuses");
@untouched@
  for (int run = 0; run < 2; ++run) {
    if (@name@_run(&input, &output, arena + CANARIES) != @NAME@_OK) return failed("@name@: does not run");
    if (!is_alone(arena, @NAME@_ARENA_BYTES)) return failed("@name@: writes beside its arena");
@alone@
@written@
  }
  const unsigned long after[] = {@sums@};
  for (size_t i = 0; i < sizeof sums / sizeof *sums; ++i)
    if (sums[i] != after[i]) return failed("@name@: writes to an input");
  return 0;
}
"""


def harness_part(bundle: Bundle) -> str:
    """Writes what checks one bundle: two runs on one arena, whose second finds what the first left there."""
    name, manifest = bundle.name, bundle.manifest
    sides = [("in", "INPUT", each) for each in manifest["inputs"]] + [("out", "OUTPUT", each) for each in manifest["outputs"]]
    rooms, misaligned, untouched, alone, written = [], [], [], [], []
    for side, kind, each in sides:
        room, nbytes = f"{side}_{each['field']}", f"{name.upper()}_{kind}_{each['field'].upper()}_BYTES"
        rooms.append(f"  static {name.upper()}_ALIGNED unsigned char {room}[CANARIES + {nbytes} + CANARIES];")
        rooms.append(f"  fill({room}, sizeof {room});")
        of = "input" if side == "in" else "output"
        misaligned.append(
            f"  {{\n    {name}_{of} skewed = {of};\n    skewed.{each['field']} = (void *)({room} + CANARIES + 4);\n"
            f"    const int error = {name}_run({'&skewed, &output' if side == 'in' else '&input, &skewed'}, arena + CANARIES);\n"
            f'    if (error != {name.upper()}_ERROR_ALIGNMENT) return failed("{name}: takes {each["field"]} misaligned");\n  }}'
        )
        alone.append(f'    if (!is_alone({room}, {nbytes})) return failed("{name}: writes beside {each["field"]}");')
        if side == "in":
            rooms.append(f'  if (fread({room} + CANARIES, 1, {nbytes}, stdin) != {nbytes}) return failed("{name}: no input");')
        else:
            untouched.append(f'  if (!is_filled({room}, {nbytes})) return failed("{name}: a refused run writes {each["field"]}");')
            written.append(f'    if (fwrite({room} + CANARIES, 1, {nbytes}, stdout) != {nbytes}) return failed("{name}: no output");')
    words = {
        "name": name,
        "NAME": name.upper(),
        "rooms": "\n".join(rooms),
        "misaligned": "\n".join(misaligned),
        "untouched": "\n".join(untouched),
        "alone": "\n".join(alone),
        "written": "\n".join(written),
        "sums": ", ".join(f"checksum(in_{each['field']} + CANARIES, {each['bytes']})" for each in manifest["inputs"]),
        "inputs": ", ".join(f".{each['field']} = (void *)(in_{each['field']} + CANARIES)" for each in manifest["inputs"]),
        "outputs": ", ".join(f".{each['field']} = (void *)(out_{each['field']} + CANARIES)" for each in manifest["outputs"]),
    }
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], PART)


@dataclass(frozen=True)
class Made:
    """The bundles of a target.

    Attributes:
        target: Runs them.
        bundles: With the Program of each.
        texts: The networks, for messages.
        given: What the harness reads.
        expected: What the artifacts compute, each output twice.
    """

    target: device.Device
    bundles: list[tuple[Bundle, Program]]
    texts: list[str]
    given: bytes
    expected: list[bytes]

    def write_harness(self, folder: Path) -> Path:
        calls = " || ".join(f"check_{bundle.name}()" for bundle, _ in self.bundles)
        main = f"int main(void) {{ return {calls} || fflush(stdout); }}\n"
        source = folder / "harness.c"
        source.write_text("".join([HEAD, *(harness_part(bundle) for bundle, _ in self.bundles), main]))
        for bundle, _ in self.bundles:
            shutil.copy(bundle.folder / f"{bundle.name}.h", folder)
        return source

    def check(self, command: list[str]) -> None:
        done = subprocess.run(command, input=self.given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert len(done.stdout) == sum(map(len, self.expected))
        at = 0
        for text, right in zip(self.texts, self.expected, strict=True):
            assert done.stdout[at : at + len(right)] == right, f"other bits than the artifact's:\n{text}"
            at += len(right)


def draw(strategy: st.SearchStrategy[str], seed: int) -> str:
    """Draws the network of a seed."""
    drawn: list[str] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=2, phases=(Phase.generate,), database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(strategy)
    def example(text: str) -> None:
        drawn.append(text)

    example()
    return drawn[-1]


PROFILES = [pytest.param(CI, id="ci"), pytest.param(NIGHTLY, id="nightly", marks=pytest.mark.nightly)]
TARGETS = ["host", pytest.param("cortex-a72", marks=pytest.mark.emulated)]


@pytest.fixture(scope="module", params=PROFILES)
def texts(request: pytest.FixtureRequest, random_networks: Callable[[int, int], st.SearchStrategy[str]]) -> list[str]:
    """The same networks in every CI run, fresh ones at night."""
    count: int = request.param
    first = FIRST_SEED if count == CI else random.SystemRandom().randrange(SEEDS)
    print(f"networks of the seeds {first} to {first + count - 1}")
    return [draw(random_networks(CONVOLUTIONS, STEPS), seed) for seed in range(first, first + count)]


@pytest.fixture(scope="module", params=TARGETS)
def made(
    request: pytest.FixtureRequest, texts: list[str], network: Callable[[str], ir.Model], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """Builds each network once, and runs its artifact."""
    target = device.get(request.param)
    if target.emulated and not shutil.which(str(target.emulator)):
        pytest.skip(f"{target.emulator} is missing: apt-get install qemu-user")
    folder = tmp_path_factory.mktemp("bundles")
    found: list[tuple[Bundle, Program]] = []
    given, expected = b"", []
    for place, text in enumerate(texts):
        model = network(text)
        program, _ = build_program(model, target)
        facts = {"name": f"n{place}", "file": "", "sha256": "", "float16": False}
        found.append((write_bundle(program, target, folder / f"n{place}", name=f"n{place}", model=facts), program))
        feed = sample_inputs(model, 0, model.graph.name or "")
        with open_runner(program) as runner:
            outputs = runner.run(feed)
        given += b"".join(np.ascontiguousarray(feed[value.name]).tobytes() for value in program.inputs)
        expected.append(2 * b"".join(outputs[value.name].tobytes() for value in program.outputs))
    return Made(target, found, texts, given, expected)


def test_bundles_compute_as_artifacts_and_keep_to_their_memory(made: Made, tmp_path: Path) -> None:
    libraries = [bundle.folder / bundle.manifest["library"] for bundle, _ in made.bundles]
    options = ("-m", "aarch64linux") if made.target.isa == "arm" else ()
    run_zig("ld.lld", *options, "-r", "--whole-archive", "-o", tmp_path / "all.o", *libraries)
    link_example(made.write_harness(tmp_path), tmp_path / "all.o", made.target, tmp_path / "harness", entry="n0_run")
    emulator = [find_emulator(made.target), "-cpu", str(made.target.emulator_option)] if made.target.emulated else []
    made.check([*emulator, str(tmp_path / "harness")])


@pytest.mark.parametrize("made", ["host"], indirect=True)
def test_sanitizers_find_nothing_in_the_c_of_bundles(made: Made, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or ""
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    attempt = [compiler, *SANITIZERS, str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if not compiler or subprocess.run(attempt, capture_output=True, check=False).returncode:
        pytest.skip("no gcc that takes -fsanitize=address: apt-get install gcc")
    harness = made.write_harness(tmp_path)
    objects = []
    for bundle, program in made.bundles:
        with tempfile.TemporaryDirectory() as build:
            source, compiled, kernels = (Path(build, name) for name in ("source.c", "compiled.o", "kernels.o"))
            text = bundles._Writer(program, made.target, bundle.name, "inside").source()
            source.write_text(re.sub("#embed .*", lambda _, p=program: ", ".join(map(str, p.constants)), text))
            kernels.write_bytes(program.object_code)
            command = [compiler, "-std=gnu11", "-O1", "-fPIC", *SANITIZERS, "-I", str(tmp_path), "-c", str(source), "-o", str(compiled)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            linked = tmp_path / f"{bundle.name}.o"
            run_zig("ld.lld", "-r", "-o", linked, kernels, compiled)
            public = {f"{bundle.name}_{function}" for function in ("run", "run_with")}
            linked.write_bytes(hide_symbols(linked.read_bytes(), public, f"{bundle.name}_internal_"))
            objects.append(str(linked))
    command = [compiler, "-std=gnu11", "-O1", *SANITIZERS, "-I", str(tmp_path), str(harness), *objects, "-o", str(tmp_path / "harness")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made.check([str(tmp_path / "harness")])
