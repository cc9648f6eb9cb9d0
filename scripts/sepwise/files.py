"""Files that the verbs read and write: models by path or zoo name, and outputs that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from sepwise.passes.equivalence import Verification

    Shapes = Mapping[str, Sequence[int]] | Sequence[int] | None

__all__ = [
    "ModelFile",
    "new_file",
    "read_arrays",
    "read_inputs_of",
    "require_empty",
    "require_writable",
    "resolve",
    "save_reproducer",
    "write_arrays",
]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An ONNX file that stands for what the user named.

    Attributes:
        name: The zoo name, or the file's name without its suffix.
        path: The file.
        shapes: Shapes to fix, by input name; None where the file's own hold.
    """

    name: str
    path: Path
    shapes: Mapping[str, Sequence[int]] | None


def resolve(model: str | Path, shapes: Shapes = None) -> ModelFile:
    """Finds the ONNX file for a path or a zoo name; a zoo network is exported to the user's cache.

    Args:
        model: Path of an ONNX file, or a zoo name.
        shapes: Shapes by input name, or the shape of the only input.

    Returns:
        The file and the shapes still to be fixed in it.

    Raises:
        InputError: There is no such file or zoo network, or torch is needed and absent.
    """
    from sepwise.passes.errors import InputError

    path = Path(model)
    if path.is_file():
        hint = "give each shape with its input's name, as in --shape x=1,3,224,224"
        named = shapes if shapes is None or isinstance(shapes, Mapping) else {_only_input(path, hint): shapes}
        return ModelFile(path.stem, path, named)
    if path.is_dir():
        raise InputError(f"{model}: is a folder; needed is an ONNX file or a zoo name.")
    if path.exists():
        raise InputError(f"{model}: is a device or a pipe; needed is an ONNX file or a zoo name.")
    if path.suffix or len(path.parts) != 1:
        raise InputError(f"{model}: no such file.")
    if isinstance(shapes, Mapping):
        if len(shapes) != 1:
            raise InputError(f"{model}: a zoo network has one input; found shapes for {', '.join(shapes)}.")
        (shapes,) = shapes.values()
    return ModelFile(str(model), _cached_export(str(model), shapes), None)


def _only_input(path: Path, hint: str) -> str:
    """Names a file's only input, for a shape or an array that was given without a name; `hint` says how to give several."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from sepwise.passes import load_model
    from sepwise.passes.errors import InputError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        load_model(path)  # says what is wrong with the file
        raise
    constants = {initializer.name for initializer in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    if len(names) != 1:
        raise InputError(f"{path}: has the inputs {', '.join(names) or 'none'}; {hint}.")
    return str(names[0])


def _cached_export(name: str, shape: Sequence[int] | None) -> Path:
    """Exports a zoo network once for every state of the zoo's sources, torch's version and shape."""
    from importlib.metadata import PackageNotFoundError, version

    from sepwise import models
    from sepwise.passes.errors import InputError

    if name not in models.names():
        raise InputError(f"'{name}' is neither a file nor a zoo network; the zoo has {', '.join(models.names())}.")
    try:
        state = [name, str(None if shape is None else tuple(shape)), version("torch")]
    except PackageNotFoundError:
        raise InputError(f"'{name}': zoo networks need torch, which is not installed: pip install 'sepwise[export]'.") from None
    (folder,) = models.__path__
    state += [source.read_text() for source in sorted(Path(folder).glob("*.py"))]
    key = hashlib.sha256("\0".join(state).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepwise" / "exports"
    path = cache / key / f"{name}.onnx"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="sepwise-")) / f"{name}.onnx"
    models.export(name, path, shape=None if shape is None else tuple(shape))
    return path


def require_writable(path: Path) -> None:
    """Checks before the work that a file or folder can be made at a path.

    Args:
        path: Where the output will be.

    Raises:
        InputError: Its folder is missing, is a file or may not be written to.
    """
    from sepwise.passes.errors import InputError

    parent = path.absolute().parent
    if not parent.is_dir():
        found = "is not a folder" if parent.exists() else "does not exist"
        raise InputError(f"{path}: the folder {parent} {found}; make it or choose another.")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: the folder {parent} is not writable; choose another.")


def require_empty(folder: Path) -> None:
    """Checks before the work that a folder is new or empty.

    Args:
        folder: Where the output will be.

    Raises:
        InputError: It holds something, is a file, or cannot be made.
    """
    from sepwise.passes.errors import InputError

    require_writable(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; remove it or choose another with --output.")


def save_reproducer(verdict: Verification, folder: Path) -> Verification:
    """Writes what a failure was narrowed down to.

    Args:
        verdict: What was found; nothing is written where there is no reproducer in it.
        folder: New or empty.

    Returns:
        The verdict with the folder in the checks whose failure it shows.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """
    from sepwise.passes.errors import InputError

    try:
        return verdict.save_reproducer(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}). Free some space or choose another place.") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place at the end, or goes where the body fails.

    Args:
        path: Where the file is to appear, whole or not at all.

    Yields:
        The path to write to; its suffix is that of `path`.

    Raises:
        InputError: The folder is missing or may not be written to, or the disk is full.
    """
    from sepwise.passes.errors import InputError

    require_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Free some space or choose another place.") from error
    except InputError as error:
        raise InputError(str(error).replace(str(temporary), str(path))) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file, or the one of an npy file under the name "".

    Args:
        path: The file.

    Returns:
        Arrays by name.

    Raises:
        InputError: The file is missing or holds no arrays.
    """
    import zipfile

    import numpy as np

    from sepwise.passes.errors import InputError

    try:
        with path.open("rb") as file:
            if not file.peek().startswith((np.lib.format.MAGIC_PREFIX, b"PK")):  # numpy takes anything else for a pickle
                raise InputError(f"{path}: is not an .npy or .npz file; save arrays with numpy.save or numpy.savez.")
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as numpy arrays ({error}); save it with numpy.save or numpy.savez.") from error


def read_inputs_of(model: str | Path, path: Path, shapes: Shapes = None) -> dict[str, np.ndarray]:
    """Reads the inputs of a model from an npz file, or its only one from an npy file.

    Args:
        model: Path of an ONNX file, or a zoo name.
        path: The file of arrays.
        shapes: Shapes by input name, or the shape of the only input.

    Returns:
        Arrays by input name.

    Raises:
        InputError: A file cannot be read, or the arrays need names.
    """
    arrays = read_arrays(path)
    if "" not in arrays:
        return arrays
    hint = f"{path} holds one array without a name: give an .npz of all by name, as numpy.savez makes it"
    return {_only_input(resolve(model, shapes).path, hint): arrays[""]}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file, whole or not at all.

    Args:
        path: The file.
        arrays: Arrays by name.
    """
    import zipfile

    import numpy as np

    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
