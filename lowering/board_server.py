"""The folder that a board needs to be reached: a server of TVM's RPC in C and the two libraries of TVM's runtime.

The server is compiled here from `runtime/rpc_server.c`. The libraries are those of TVM's wheels, for this machine as they are
installed, for another one as pip downloads them, in the versions that are installed here: both sides have to speak the same
protocol. The board needs a C and a C++ library, which every Linux has, and neither Python nor a compiler.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sepwise.lowering.artifact import new_folder, requires
from sepwise.lowering.link import cache_folder, link_server
from sepwise.lowering.remote import server_machine
from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from sepwise.lowering.device import Device

__all__ = ["SERVER", "build_server"]

SERVER: Final = "rpc_server"
"""The program in the folder."""

_LIBRARIES: Final = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}
"""By distribution, the library that it has."""

_GLIBC: Final = "2.28"
"""Oldest C library that the wheels run with."""

_PLATFORMS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17")


def build_server(device: Device, folder: Path, *, copy: str | None = None) -> None:
    """Makes the folder to copy to a board.

    Args:
        device: What the board is.
        folder: Where it is to appear, whole or not at all; a folder made so before is replaced.
        copy: `USER@BOARD` into whose home it is copied too, by scp, which may ask for a password; none where None.

    Raises:
        InputError: There is no server for such a device, the libraries cannot be had, the place is taken or not writable, or scp
            is missing or fails.
        SepwiseError: The server does not link.
    """
    machine = server_machine(device)
    scp = None if copy is None else _find_scp(copy)
    with new_folder(folder, kind="server", find_loss=requires(SERVER)) as temporary:
        libraries = [Path(shutil.copy(path, temporary)) for path in _find_libraries(machine)]
        link_server(machine, _GLIBC, libraries, temporary / SERVER)
    if scp is not None and copy is not None:
        _copy(scp, folder, copy)


def _find_scp(board: str) -> str:
    """Gives the program that copies to a board."""
    if not board or board.startswith("-") or ":" in board or "/" in board:
        raise InputError(f"--copy {board}: needed is USER@BOARD, as in pi@raspberrypi.")
    scp = shutil.which("scp")
    if scp is None:
        raise InputError(f"--copy {board}: scp is missing here. Install OpenSSH's client, or copy the folder by other means.")
    return scp


def _copy(scp: str, folder: Path, board: str) -> None:
    """Copies a folder into the home of a board's user."""
    command = [scp, "-q", "-r", str(folder.resolve()), f"{board}:"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InputError(f"--copy {board}: scp says '{reason}'. Check `ssh {board}`, and end a server that runs there.")


def _find_libraries(machine: str) -> list[Path]:
    """Gives TVM's libraries for a machine: the installed ones for this, otherwise downloaded ones, which are kept."""
    if machine == platform.machine():
        return [Path(str(distribution(name).locate_file(member))) for name, member in _LIBRARIES.items()]
    wanted = {name: version(name) for name in _LIBRARIES}
    kept = cache_folder() / "-".join(("tvm", machine, *wanted.values()))
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            whole = Path(folder) / "libraries"
            whole.mkdir()
            _download(machine, wanted, Path(folder))
            for wheel in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    for member in {*_LIBRARIES.values()} & {*archive.namelist()}:
                        (whole / Path(member).name).write_bytes(archive.read(member))
            whole.replace(kept)
    return [kept / Path(member).name for member in _LIBRARIES.values()]


def _download(machine: str, wanted: dict[str, str], folder: Path) -> None:
    """Has pip download the wheels of a machine."""
    platforms = [option for name in _PLATFORMS for option in ("--platform", f"{name}_{machine}")]
    options = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:")
    python = ("--implementation", "cp", "--python-version", f"{sys.version_info.major}.{sys.version_info.minor}")
    requirements = [f"{name}=={release}" for name, release in wanted.items()]
    command = [sys.executable, "-m", "pip", "download", *options, *python, *platforms, "--dest", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"TVM's runtime for {machine}: pip cannot download {' and '.join(requirements)}. Check that pip is installed here "
            "and reaches its index."
        )
