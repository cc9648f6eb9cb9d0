"""From a Program's object and its generated C to something that runs: a shared object here, a static program elsewhere.

zig's clang and lld do it, without a C library for the target: a shared object finds pthreads in the process that loads it, here
or on a board, and an emulated program brings its own main over plain system calls (`runtime/emulated.c`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sepwise.lowering.c_source import ENTRY, generate_c
from sepwise.lowering.device import UNICORN
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program

__all__ = [
    "cache_folder",
    "compile_c",
    "count_plugin",
    "link_example",
    "link_executable",
    "link_remote",
    "link_server",
    "link_shared",
    "merge_objects",
    "run_zig",
    "tally_library",
]

RUNTIME = Path(__file__).parent / "runtime"

_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fno-sanitize=undefined", "-fno-stack-protector")
_HOSTED_FLAGS = ("-fPIC",)
_FREESTANDING_FLAGS = ("-ffreestanding", "-fno-builtin", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
_ELF_EMULATIONS = {"aarch64": "aarch64linux", "arm": "armelf_linux_eabi", "thumb": "armelf_linux_eabi", "x86_64": "elf_x86_64"}


@cache
def cache_folder() -> Path:
    """Finds the folder for what can be made again: `$XDG_CACHE_HOME/sepwise`, or a temporary one where that is not writable.

    Returns:
        An existing folder.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(root) if root else Path.home() / ".cache") / "sepwise"
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # There may be no home at all.
        writable = False
    return folder if writable else Path(tempfile.mkdtemp(prefix="sepwise-cache-"))


@cache
def _zig() -> str:
    """Finds zig's program in the package `ziglang`."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise InputError("ziglang: not installed, but needed to link kernels. Install it with `pip install ziglang`.")
    return str(Path(spec.origin).parent / "zig")


def run_zig(*arguments: str | Path) -> None:
    """Runs zig, its caches in `cache_folder()`.

    Args:
        *arguments: What zig is called with, `cc` or `ld.lld` first.

    Raises:
        InputError: zig is not installed, or there is no room for its output.
        SepwiseError: It fails; the message holds what it said.
    """
    folder = str(cache_folder() / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    command = [_zig(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        return
    said = done.stderr.strip() or f"exit status {done.returncode}"
    if "No space left" in said or "NoSpaceLeft" in said:
        raise InputError(f"zig {arguments[0]}: no space left on the device, neither for its output nor its cache {folder}.")
    undefined = sorted({line.rsplit(": ", 1)[1] for line in said.splitlines() if "undefined symbol:" in line})
    if undefined:
        raise SepwiseError(f"zig {arguments[0]}: kernels need {', '.join(undefined)}, which the target does not have.")
    raise SepwiseError(f"zig {arguments[0]}: {said}")


def _emulation(target: str) -> str:
    """What lld calls the objects of a target, whose name begins with the machine's."""
    return next(emulation for machine, emulation in _ELF_EMULATIONS.items() if target.startswith(machine))


def merge_objects(objects: Sequence[Path], symbols: Collection[str], target: str, output: Path) -> None:
    """Merges relocatable objects to one, without the sections that none of the symbols needs.

    Args:
        objects: Each by itself without undefined symbols.
        symbols: What is to be found in the result.
        target: LLVM's triple or zig's name of the target.
        output: The file to write.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: Two objects define one symbol.
    """
    kept = [option for symbol in symbols for option in ("-u", symbol)]
    run_zig("ld.lld", "-m", _emulation(target), "-r", "--gc-sections", *kept, "-o", output, *objects)


def compile_c(source: Path, output: Path, *, target: str, flags: Sequence[str] = ()) -> None:
    """Compiles one C file to an object.

    Args:
        source: The file; headers of the runtime are found.
        output: The object.
        target: zig's name of the target; a freestanding one gets no C library.
        flags: More of the compiler's flags.

    Raises:
        InputError: zig is not installed.
        SepwiseError: The compiler refuses the file.
    """
    kind = _FREESTANDING_FLAGS if "freestanding" in target else _HOSTED_FLAGS
    run_zig("cc", "-target", target, *_FLAGS, *kind, *flags, "-I", RUNTIME, "-c", source, "-o", output)


def _host_target() -> str:
    """Names this machine for zig, with a C library's headers."""
    return f"{platform.machine()}-linux-gnu"


def _runtime_object(name: str, target: str, flags: Sequence[str] = ()) -> Path:
    """Compiles a file of the runtime once; the object is kept in the cache under a hash of all that it depends on."""
    paths = (RUNTIME / f"{name}.c", *sorted(RUNTIME.glob("*.h")))
    sources = {path.name: path.read_bytes() for path in paths}
    parts = [*sources.values(), repr((target, _FLAGS, flags, _zig())).encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    output = cache_folder() / f"{name}-{key}.o"
    if not output.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
            folder = Path(temporary)
            for file, text in sources.items():  # what is compiled is what was hashed, whatever becomes of the files meanwhile
                (folder / file).write_bytes(text)
            built = folder / output.name
            compile_c(folder / f"{name}.c", built, target=target, flags=flags)
            built.replace(output)
    return output


def _program_objects(program: Program, folder: Path, target: str, flags: Sequence[str] = ()) -> list[Path]:
    """Writes the kernels' object and compiles the generated C."""
    kernels, source, entry = folder / "kernels.o", folder / "model.c", folder / "model.o"
    try:
        kernels.write_bytes(program.object_code)
        source.write_text(generate_c(program, alone=True))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; linking needs room there. Free some or set TMPDIR.") from error
    compile_c(source, entry, target=target, flags=flags)
    return [kernels, entry]


def link_shared(program: Program, output: Path) -> None:
    """Links a shared object for this machine: the program, the thread pool, the timer and guards.

    Args:
        program: Built for a device that this machine can stand for.
        output: The file to write.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: The object does not link.
    """
    _link_shared(program, _host_target(), (), ("pool", "timing", "guarded"), output)


def link_remote(program: Program, device: Device, output: Path) -> None:
    """Links a shared object that a board loads through TVM's RPC: what `link_shared` has, and the entries of `runtime/remote.c`.

    Args:
        program: Built for the device.
        device: What the board is.
        output: The file to write.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: The object does not link.
    """
    flags = (f"-mcpu={device.zig_cpu}", *_ffi_headers())
    target = f"{device.triple.split('-', maxsplit=1)[0]}-linux-gnu"
    _link_shared(program, target, flags, ("pool", "timing", "guarded", "remote"), output)


def _link_shared(program: Program, target: str, flags: Sequence[str], runtime: Sequence[str], output: Path) -> None:
    """Links a program and files of the runtime to a shared object."""
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        objects = _program_objects(program, Path(folder), target, flags)
        objects += [_runtime_object(name, target, flags) for name in runtime]
        # Position-dependent kernels and other mistakes show here; symbols of the C library resolve when it is loaded.
        options = ("-shared", "-Bsymbolic", "-z", "noexecstack", "--gc-sections", "--no-undefined-version")
        run_zig("ld.lld", "-m", _emulation(target), *options, "-o", output, *objects)


def _ffi_headers() -> tuple[str, str]:
    """Gives the compiler's flags that find the headers of TVM's C interface."""
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or spec.origin is None:
        raise InputError("tvm_ffi: not installed, but needed for boards. Install it with `pip install apache-tvm-ffi`.")
    return ("-isystem", str(Path(spec.origin).parent / "include"))


def link_server(machine: str, glibc: str, libraries: Sequence[Path], output: Path) -> None:
    """Links the program that a board runs, `runtime/rpc_server.c`; it finds the libraries beside itself.

    Args:
        machine: As zig and uname name it, `aarch64` or `x86_64`.
        glibc: Oldest version of the C library that it is to run with, such as `2.28`.
        libraries: Of TVM's runtime, for that machine.
        output: The file to write.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: It does not link.
    """
    target = ("-target", f"{machine}-linux-gnu.{glibc}")
    options = ("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN", "-s")  # they need a C++ library
    run_zig("cc", *target, *_FLAGS, *_ffi_headers(), *options, "-o", output, RUNTIME / "rpc_server.c", *libraries)


def link_executable(program: Program, device: Device, output: Path) -> None:
    """Links a static program for a device: the program and a main that obeys commands on its standard input.

    For a bare core there is no main: whoever emulates it calls the program's entry.

    Args:
        program: Built for the device.
        device: Its `zig_target` says for what.
        output: The file to write.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: The object does not link; a kernel calls a function that a machine without a C library lacks.
    """
    target, flags = device.zig_target, (f"-mcpu={device.zig_cpu}",)
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        objects = _program_objects(program, Path(folder), target, flags)
        main, entry = ((), ENTRY) if device.emulator == UNICORN else (("emulated",), "_start")
        runtime = [_runtime_object(name, target, flags) for name in (*main, "freestanding")]
        _link_static((*objects, *runtime), target, entry, output)


def link_example(example: Path, library: Path, device: Device, output: Path, *, entry: str) -> None:
    """Links a bundle's example for a device, with what little of a C library it needs.

    For a bare core the library is linked alone: whoever emulates it calls the entry.

    Args:
        example: Its C source; headers beside it are found.
        library: The static library.
        device: Its `zig_target` says for what.
        output: The file to write.
        entry: The library's function that is called on a bare core.

    Raises:
        InputError: zig is not installed, or there is no room.
        SepwiseError: The example does not compile or link.
    """
    target, flags = device.zig_target, (f"-mcpu={device.zig_cpu}",)
    if device.emulator == UNICORN:
        _link_static((library,), target, entry, output)
        return
    with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
        compiled = Path(folder) / "example.o"
        compile_c(example, compiled, target=device.musl_target, flags=(*flags, "-fno-builtin", "-fno-PIC"))
        runtime = [_runtime_object(name, target, flags) for name in ("example", "freestanding")]
        _link_static((compiled, library, *runtime), target, "_start", output)


def _link_static(objects: Sequence[Path], target: str, entry: str, output: Path) -> None:
    """Links a static program."""
    options = ("-m", _emulation(target), "-static", "-z", "noexecstack", "--gc-sections", "-e", entry, "-u", entry)
    run_zig("ld.lld", *options, "-o", output, *objects)


def count_plugin(qemu_major: int) -> Path:
    """Builds the plugin that counts guest instructions, once.

    Args:
        qemu_major: Major version of the qemu that will load it.

    Returns:
        The shared object.

    Raises:
        InputError: zig is not installed.
        SepwiseError: It does not build.
    """
    interface = 1 if qemu_major < 9 else 2
    return _host_library("count", (f"-DQEMU_PLUGIN_VERSION={interface}", "-fvisibility=hidden"))


def tally_library() -> Path:
    """Builds the hooks that count what a core in unicorn executes, once.

    Returns:
        The shared object.

    Raises:
        InputError: zig is not installed.
        SepwiseError: It does not build.
    """
    return _host_library("tally", ())


def _host_library(name: str, flags: Sequence[str]) -> Path:
    """Builds a shared object for this machine of a file of the runtime, once."""
    built = _runtime_object(name, _host_target(), flags)
    output = built.with_suffix(".so")
    if not output.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            linked = Path(folder) / output.name
            run_zig("ld.lld", "-shared", "-z", "noexecstack", "-o", linked, built)
            linked.replace(output)
    return output
