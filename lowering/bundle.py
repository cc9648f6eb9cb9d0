"""A bundle: a network as a C library with its header, for projects that have neither Python nor a runtime.

The folder holds

    lib<name>.a, lib<name>.so   the kernels, the generated C that calls them, the public functions; the weights
    <name>.h, <name>.hpp        the interface in C, and over it one in C++17
    <name>.py                   the shared library from Python, by ctypes
    <name>.bin                  the weights, where they are separate
    example.c, CMakeLists.txt   the library in use
    manifest.json               what is in it, for what device, of which model, how it was verified
    README.md

The kernels' object and the generated C are those that an artifact runs, so both compute the same bits on the same cpu. Around
them comes one C file of public functions that check what they are given. All is linked to one object, in which every symbol that
is not public gets the bundle's prefix and hidden visibility (`symbols.py`): two bundles can be in one program. Nothing is
compiled for a C library, so that the same archive links with glibc, musl, or none at all.

The arena of a run is that of the Program, and behind it the scratch of each worker but the first. Files are templates in
`templates/`, in which `@word@` stands for text.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from sepwise.lowering import device as devices
from sepwise.lowering.artifact import describe_file, device_to_json, new_folder, own_version
from sepwise.lowering.build import build_program
from sepwise.lowering.c_source import PREFIX, generate_c
from sepwise.lowering.link import compile_c, run_zig
from sepwise.lowering.memory_plan import ALIGNMENT_BYTES
from sepwise.lowering.strategies import transformed_nodes
from sepwise.lowering.symbols import allocated_bytes, hide_symbols, undefined_symbols, writable_bytes
from sepwise.passes import load_model
from sepwise.passes.convert_input import convert_input, name_images
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError
from sepwise.passes.rewriting import static_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program, Value
    from sepwise.lowering.selection import Records
    from sepwise.passes.convert_input import ImageFormat

__all__ = [
    "Bundle",
    "Weights",
    "bundle",
    "checksum_model",
    "load_bundle",
    "require_name",
    "save_manifest",
    "write_bundle",
]

Weights = Literal["inside", "separate"]
"""Where the weights are: in the library, or in a file that the caller maps."""

FORMAT = 4
MANIFEST = "manifest.json"
_TEMPLATES = {path.name: path.read_text() for path in (Path(__file__).parent / "templates").iterdir() if path.is_file()}
"""Text by name, of the same moment as this module: the two of different versions would compile to a library of wrong weights."""
_PYTHON_CACHE = "__pycache__"

_DISCARD = "SECTIONS { /DISCARD/ : { *(.debug*) *(.comment) *(.llvm_addrsig) } }\n"
"""The linker's script: what nothing that runs needs is left out (`--strip-debug` does nothing to relocatable objects)."""

_FIRST_RUN = """

What the first run takes longer than later ones is mostly the system's clearing of the arena's pages and its mapping of the
weights'. Where that counts, under Linux, allocate the arena at a multiple of 2 MiB, and ask for huge pages with `madvise(arena,
bytes, MADV_HUGEPAGE)` before the first run; and map the weights at once, with {populate}."""

_C_TYPES = {
    "bool": "uint8_t",
    "float16": "uint16_t",
    "float32": "float",
    "float64": "double",
    **{f"{kind}{bits}": f"{kind}{bits}_t" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""Element types in C; float16 by its bits."""

_KEYWORDS = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await co_return
    co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires restrict return short signed sizeof
    static static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename typeof
    typeof_unqual union unsigned using virtual void volatile wchar_t while xor xor_eq
    i386 linux unix
    """.split()
)
"""Of C23 and C++20, and what compilers define as numbers where GNU's extensions are on."""

_DECLARED = frozenset(
    """
    BUFSIZ EOF INT16_MAX INT16_MIN INT32_MAX INT32_MIN INT64_MAX INT64_MIN INT8_MAX INT8_MIN NULL Tensor UINT16_MAX UINT32_MAX
    UINT64_MAX UINT8_MAX WCHAR_MAX WCHAR_MIN SIZE_MAX int16_t int32_t int64_t int8_t offsetof size_t stderr stdin stdout uint16_t
    uint32_t uint64_t uint8_t
    """.split()
)
"""What the headers and the example declare or include, which no member of a struct can be called."""

_TAKEN = frozenset(
    """
    all assert c clean complex ctype ctypes dl errno fcntl features fenv gcc help install inttypes iso646 json limits locale m
    math numpy pathlib poll pthread rt sched semaphore setjmp signal std stdalign stdarg stdatomic stdbool stddef stdint stdio
    stdlib stdnoreturn string strings test tgmath threads time uchar unistd util wchar wctype
    """.split()
)
"""Names whose header, library, module or namespace would hide one of the system's, and those that CMake keeps to itself."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Where it is.
        manifest: What `manifest.json` says.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Prefix of all that is public in it."""
        return str(self.manifest["name"])

    def to_json(self) -> dict[str, object]:
        """The fields of the bundle JSON."""
        sizes = ("code_bytes", "weight_bytes", "arena_bytes", "arena_lower_bound_bytes")
        return {
            "name": self.name,
            "model": self.manifest["model"]["name"],
            "target": self.manifest["target"],
            "records_used": self.manifest.get("records_used", 0),
            **{key: self.manifest[key] for key in sizes},
            "files": self.manifest["files"],
        }


def bundle(
    model: str | Path,
    output: str | Path,
    *,
    target: str = "host",
    name: str | None = None,
    weights: Weights = "inside",
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    float16: bool = False,
    image: ImageFormat | None = None,
    records: Records | None = None,
) -> Bundle:
    """Makes a C library of a model.

    Args:
        model: An ONNX file.
        output: Folder that is to appear; a bundle that is there and was not changed is replaced.
        target: Name of a device.
        name: Prefix of all that is public, a C identifier; made of the file's name where None.
        weights: Whether they are in the library or in a file of their own.
        shapes: Shapes of inputs whose dimensions are symbolic, by name.
        threads: Workers that the kernels are shared out to, where the caller has a `parallel_for`.
        float16: Whether what is float32 is computed in float16, but for what needs more.
        image: What it is given for an image; as the model has it where None.
        records: What tuning has found (see `tuning.database.read_records`).

    Returns:
        The bundle.

    Raises:
        InputError: The model, the target, the name or the folder cannot be used, or the input cannot be as is asked for.
        UnsupportedError: An operator cannot be compiled, or needs a runtime.
    """
    path, device = Path(model), devices.get(target)
    name = _identifier(path.stem, taken=_TAKEN) if name is None else require_name(name)
    loaded = load_model(path, shapes=shapes)
    image = None if image is None else name_images(loaded, image)
    facts = {
        "name": path.stem,
        "file": path.name,
        "sha256": checksum_model(path),
        "float16": float16,
        "shapes": {value.name: static_shape(value) for value in loaded.graph.inputs},
        "image": None if image is None else image.to_json(),
    }
    taken = loaded if image is None else convert_input(loaded, image)
    program, report = build_program(taken, device, threads=threads, float16=float16, records=records)
    if program.tail is not None:
        node = program.tail.nodes[0]
        raise UnsupportedError(f"Node '{node}': needs TVM's runtime, which a bundle has not. Cut the model before it.")
    share = {"strategy_mac_share": report.strategy_mac_share, "threads": threads, "records_used": report.records_used}
    return write_bundle(program, device, Path(output), name=name, model=facts, weights=weights, more=share)


def write_bundle(
    program: Program,
    device: Device,
    folder: Path,
    *,
    name: str,
    model: Mapping[str, Any],
    weights: Weights = "inside",
    more: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes the bundle of a Program, whole or not at all.

    Args:
        program: Without a tail.
        device: What it was built for.
        folder: Where it is to appear; a bundle that is there and was not changed is replaced.
        name: Prefix of all that is public, a C identifier.
        model: What the manifest is to say of the model: its name, file and checksum, the shapes of its inputs, and what the
            bundle is given in place of an image.
        weights: Whether they are in the library or in a file of their own.
        more: Further fields of the manifest.

    Returns:
        The bundle.

    Raises:
        InputError: The folder is taken by something else or cannot be written, or the network has no inputs.
        SepwiseError: The code does not link, or is not what a bundle may hold.
    """
    if not program.inputs:
        raise InputError(f"Model '{program.name}': has no inputs, so it always computes the same; there is nothing to run.")
    writer = _Writer(program, device, name, weights, model.get("image"))
    with new_folder(folder, kind="unchanged bundle", find_loss=_find_loss) as temporary:
        code_bytes = writer.write(temporary)
        manifest = {
            "format": FORMAT,
            "sepwise": own_version(),
            "versions": {package: version(package) for package in ("apache-tvm", "ziglang", "onnx")},
            "name": name,
            "model": dict(model),
            "target": device.name,
            "device": device_to_json(device),
            "code_bytes": code_bytes,
            "weight_bytes": program.constants.nbytes,
            "arena_bytes": writer.arena_bytes,
            "arena_lower_bound_bytes": program.arena_lower_bound_bytes,
            "worker_bytes": program.scratch_bytes,
            "winograd": transformed_nodes(program.calls),
            "alignment_bytes": ALIGNMENT_BYTES,
            "inputs": [tensor.to_json() for tensor in writer.inputs],
            "outputs": [tensor.to_json() for tensor in writer.outputs],
            "library": writer.archive,
            "shared_library": writer.shared if writer.hosted else None,
            "weights": writer.weights_file if writer.separate else None,
            **(more or {}),
            "verification": None,
            "files": {path.name: describe_file(path) for path in sorted(temporary.iterdir())},
        }
        writer.write_readme(temporary, manifest)
        manifest["files"]["README.md"] = describe_file(temporary / "README.md")
        save_manifest(temporary, manifest)
    return Bundle(folder, manifest)


def load_bundle(folder: str | Path) -> Bundle:
    """Reads what `bundle` wrote, every checksum compared.

    Args:
        folder: The bundle's folder.

    Returns:
        The bundle.

    Raises:
        InputError: The folder is no bundle, was changed, or comes from another version.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for file, facts in manifest["files"].items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path}: is missing; make the bundle again.")
        if describe_file(path) != facts:
            raise InputError(f"{path}: was changed since it was written; make the bundle again.")
    return Bundle(folder, manifest)


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a bundle, whole or not at all.

    Args:
        folder: The bundle's folder.
        manifest: What it is to say.
    """
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps({**manifest, "sha256": _checksum_manifest(manifest)}, indent=1) + "\n")
    temporary.replace(folder / MANIFEST)


def _checksum_manifest(manifest: Mapping[str, Any]) -> str:
    """Hashes what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def checksum_model(path: Path) -> str:
    """Hashes an ONNX file, and behind it the files of its external data.

    Args:
        path: The file.

    Returns:
        SHA-256 in hexadecimal digits; that of the file alone where it has no external data.
    """
    digest = hashlib.sha256(path.read_bytes())
    initializers = onnx.load(path, load_external_data=False).graph.initializer
    entries = (entry for tensor in initializers for entry in tensor.external_data if entry.key == "location")
    for location in sorted({entry.value for entry in entries}):
        digest.update((path.parent / location).read_bytes())
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a bundle of this format."""
    path = folder / MANIFEST
    if not path.is_file():
        found = "does not exist" if not folder.exists() else f"holds no {MANIFEST}" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder}: {found}, so it is no bundle; `sepwise bundle MODEL -o DIR` makes one.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        file_format = manifest["format"]
        if "sepwise" not in manifest or "files" not in manifest:
            raise ValueError("it names no files")  # noqa: TRY301 - answered as any other damage below
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no bundle's manifest ({error}); make the bundle again.") from error
    if file_format != FORMAT:
        raise InputError(f"{path}: a bundle of format {file_format}, this sepwise reads {FORMAT}; make the bundle again.")
    if manifest.pop("sha256", None) != _checksum_manifest(manifest):
        raise InputError(f"{path}: was changed since it was written; make the bundle again.")
    return manifest


def _find_loss(folder: Path) -> str | None:
    """Says what a folder holds beside a bundle as it was written, and the example's program."""
    try:
        made = load_bundle(folder)
    except InputError as error:
        return str(error).split("; ")[0].removeprefix(f"{folder}: ")
    known = {*made.manifest["files"], MANIFEST, _PYTHON_CACHE, f"{made.name}_example"}
    added = sorted({path.name for path in folder.iterdir()} - known)
    return f"it also holds {', '.join(added)}" if added else None


def require_name(name: str) -> str:
    """Refuses what cannot be the prefix of C symbols and the name of a library.

    Args:
        name: What the user asks for.

    Returns:
        The same.

    Raises:
        InputError: It is no identifier, or it is taken.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(f"Name '{name}': needed is a C identifier, letters, digits and underscores behind a letter.")
    if name in _KEYWORDS | _DECLARED:
        raise InputError(f"Name '{name}': is a word of C or C++; choose another.")
    if name in _TAKEN:
        raise InputError(f"Name '{name}': {name}.h, lib{name}.a or its namespace would hide one of the system's; choose another.")
    return name


def _identifier(text: str, taken: frozenset[str]) -> str:
    """Makes an identifier of C and C++ of any text, different from what is taken in capitals too."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "tensor"
    if word[0].isdigit():
        word = f"n{word}"
    number, found = 1, word
    while found in _KEYWORDS | _DECLARED or found.upper() in {each.upper() for each in taken}:
        number += 1
        found = f"{word}_{number}"
    return found


def _fill(template: str, words: Mapping[str, object]) -> str:
    """Gives a template with `@word@` replaced."""
    return re.sub(r"@(\w+)@", lambda found: str(words[found[1]]), _TEMPLATES[template])


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or an output of the public functions.

    Attributes:
        value: What it is in the Program.
        field: Its name in C.
        macro: What its macros begin with.
    """

    value: Value
    field: str
    macro: str

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return self.value.type.nbytes // self.element_bytes

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return self.value.type.nbytes // max(1, _product(self.value.type.shape))

    @property
    def c_type(self) -> str:
        """Its elements in C."""
        return _C_TYPES[self.value.type.dtype]

    @property
    def shape(self) -> str:
        """Its shape for readers."""
        return " x ".join(map(str, self.value.type.shape)) or "one element"

    def to_json(self) -> dict[str, object]:
        """What the manifest says of it."""
        tensor = self.value.type
        return {
            "name": self.value.name,
            "field": self.field,
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "layout": "row-major",
            "bytes": tensor.nbytes,
        }


def _product(shape: Sequence[int]) -> int:
    """Multiplies dimensions."""
    product = 1
    for dimension in shape:
        product *= dimension
    return product


def _name_tensors(values: Sequence[Value], prefix: str, taken: frozenset[str]) -> list[_Tensor]:
    """Gives inputs or outputs their names in C."""
    tensors: list[_Tensor] = []
    for value in values:
        field = _identifier(value.name, taken | {each.field for each in tensors})
        tensors.append(_Tensor(value, field, f"{prefix}_{field.upper()}"))
    return tensors


class _Writer:
    """Writes the files of one bundle.

    Attributes:
        inputs: With their names in C.
        outputs: Likewise.
        arena_bytes: The Program's arena for one worker.
        hosted: Whether the device has an operating system, which may load a shared library.
        separate: Whether the weights are in a file of their own.
        archive: Name of the static library.
        shared: Name of the shared library.
        weights_file: Name of the weights' file.
    """

    def __init__(
        self, program: Program, device: Device, name: str, weights: Weights, image: Mapping[str, Any] | None = None
    ) -> None:
        """Names everything."""
        self._image = image or {"inputs": ()}
        self._program = program
        self._device = device
        self._name = name
        capitals = name.upper()
        self.inputs = _name_tensors(program.inputs, f"{capitals}_INPUT", frozenset({"weights"}))
        self.outputs = _name_tensors(program.outputs, f"{capitals}_OUTPUT", frozenset())
        self.hosted = device.hosted
        self.separate = weights == "separate"
        self.archive, self.shared, self.weights_file = f"lib{name}.a", f"lib{name}.so", f"{name}.bin"
        self.arena_bytes = program.memory_bytes()

    def write(self, folder: Path) -> int:
        """Writes all but the manifest and the README.

        Args:
            folder: Where to.

        Returns:
            Bytes of code and of its constants, without the weights.
        """
        words = self._words()
        (folder / f"{self._name}.h").write_text(_fill("bundle.h.in", words))
        (folder / f"{self._name}.hpp").write_text(_fill("bundle.hpp.in", words))
        (folder / "example.c").write_text(_fill("example.c.in" if self.hosted else "example_bare.c.in", words))
        (folder / "CMakeLists.txt").write_text(_fill("CMakeLists.txt.in", words))
        if self.separate:
            (folder / self.weights_file).write_bytes(self._program.constants.data)
        if self.hosted:
            (folder / f"{self._name}.py").write_text(_TEMPLATES["loader.py"])
        with tempfile.TemporaryDirectory(prefix="sepwise-") as build:
            library = self._link(Path(build), folder)
            run_zig("ar", "rcsD", folder / self.archive, library)
            if self.hosted:
                options = ("-shared", "-soname", self.shared, "-z", "noexecstack")
                run_zig("ld.lld", *options, "-o", folder / self.shared, library)
            nbytes = allocated_bytes(library.read_bytes())
        return nbytes - (0 if self.separate else self._program.constants.nbytes)

    def source(self) -> str:
        """Writes the C: the generated program, and behind it the public functions."""
        return f"{generate_c(self._program)}\n{_fill('bundle.c.in', self._words())}"

    def _link(self, build: Path, folder: Path) -> Path:
        """Compiles and links all to one object that shows nothing but the public functions."""
        kernels, source, compiled = build / "kernels.o", build / "source.c", build / "compiled.o"
        kernels.write_bytes(self._program.object_code)
        source.write_text(self.source())
        # clang refuses to embed a file whose first bytes are a byte order mark; the first is not embedded.
        (build / self.weights_file).write_bytes(b"w" + bytes(self._program.constants.data))
        flags = (f"-mcpu={self._device.zig_cpu}", *(("-fPIC",) if self.hosted else ()), "-I", str(folder))
        compile_c(source, compiled, target=self._device.zig_target, flags=flags)
        linked = build / f"{self._name}.o"
        (build / "discard.ld").write_text(_DISCARD)
        run_zig("ld.lld", "-r", "-T", build / "discard.ld", "-o", linked, kernels, compiled)
        public = {f"{self._name}_{function}" for function in ("run", "run_with", "check_weights", "weights")}
        code = hide_symbols(linked.read_bytes(), public, f"{self._name}_internal_")
        if needed := undefined_symbols(code):
            raise SepwiseError(f"Bundle '{self._name}': its code needs {', '.join(needed)}, which the target may not have.")
        if writable_bytes(code):
            raise SepwiseError(f"Bundle '{self._name}': its code has variables, so that no two threads could run it.")
        linked.write_bytes(code)
        return linked

    def write_readme(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Writes the README, which needs the sizes."""
        kinds = {
            self.archive: "the library",
            self.shared: "the same, shared",
            f"{self._name}.h": "its interface in C11",
            f"{self._name}.hpp": "over it, one in C++17",
            f"{self._name}.py": "the shared library from Python, with numpy",
            self.weights_file: "the weights",
            "example.c": "the library in use",
            "CMakeLists.txt": "the example for CMake, or the library for a project",
            MANIFEST: "sizes, shapes, checksums, and how it was verified",
        }
        listed = {file: kind for file, kind in kinds.items() if file in (*manifest["files"], MANIFEST)}
        words = self._words() | {key: value for key, value in manifest.items() if key.endswith("_bytes")}
        words["file_rows"] = "\n".join(f"| `{file}` | {kind} |" for file, kind in listed.items())
        (folder / "README.md").write_text(_fill("README.md.in", words))

    def _words(self) -> dict[str, object]:
        """What the templates' words stand for."""
        name, capitals, program = self._name, self._name.upper(), self._program
        words: dict[str, object] = {
            "name": name,
            "NAME": capitals,
            "prefix": PREFIX,
            "target": self._device.name,
            "cpu": self._device.cpu,
            "features": "".join(f", {feature}" for feature in self._device.features),
            "version": own_version(),
            "alignment": ALIGNMENT_BYTES,
            "arena_bytes": self.arena_bytes,
            "worker_bytes": program.scratch_bytes,
            "winograd": transformed_nodes(program.calls),
            "input_count": len(self.inputs),
            "output_count": len(self.outputs),
            "tensors": "\n".join(self._describe_tensors()),
            "constants": "\n\n".join(self._constants()),
            "input_fields": _fields(self.inputs, "const "),
            "output_fields": _fields(self.outputs, ""),
            "input_list": ", ".join(f"input->{tensor.field}" for tensor in self.inputs),
            "output_list": ", ".join(f"output->{tensor.field}" for tensor in self.outputs),
            "input_tensors": _members(self.inputs),
            "output_tensors": _members(self.outputs),
            "input_data": ", ".join(f"inputs.{tensor.field}.data()" for tensor in self.inputs),
            "output_data": ", ".join(f"outputs.{tensor.field}.data()" for tensor in self.outputs),
            "example_inputs": ", ".join(f".{tensor.field} = in_{tensor.field}" for tensor in self.inputs),
            "example_outputs": ", ".join(f".{tensor.field} = out_{tensor.field}" for tensor in self.outputs),
            "example_fill": "\n".join(f"  /* Fill in_{tensor.field}, from a sensor for instance. */" for tensor in self.inputs),
            "build": self._describe_build(),
            "first_run": _FIRST_RUN.format(populate=self._describe_populating()) if self.hosted else "",
            "weights_file": self.weights_file,
            "weights_crc": f"{zlib.crc32(program.constants.data):#010x}",
            "weights_size": program.constants.nbytes,
        }
        words |= self._words_of_example() | self._words_of_weights()
        words["weights"] = _fill(f"weights_{'separate' if self.separate else 'inside'}.c.in", words)
        return words

    def _words_of_weights(self) -> dict[str, object]:
        """What differs between weights inside the library and separate ones."""
        name = self._name
        if not self.separate:
            return {
                "and_weights": "",
                "weights_or": "",
                "weights_function": (
                    f"\n/* All {name.upper()}_WEIGHT_BYTES bytes of weights: to lock them in memory or to map them at once. */\n"
                    f"const void *{name}_weights(void);\n"
                ),
                "check_weights_pointer": "",
                "weights_pointer": "weights",
                "weights_member": "",
                "weights_note": "",
                "constructor": "Network() = default;",
                "example_check": "",
            }
        return {
            "and_weights": ", weights",
            "weights_or": ", weights",
            "input_fields": f"{_fields(self.inputs, 'const ')}\n  const void *weights; /* all of {self.weights_file} */",
            "input_data": ", ".join([*(f"inputs.{tensor.field}.data()" for tensor in self.inputs), "weights_"]),
            "example_inputs": ", ".join([*(f".{t.field} = in_{t.field}" for t in self.inputs), ".weights = weights"]),
            "weights_function": (
                f"\n/* Compares weights with those that the library was built with; once is enough. */\n"
                f"int {name}_check_weights(const void *weights, size_t nbytes);\n"
            ),
            "check_weights_pointer": "  if (!error) error = check_pointer(input->weights);",
            "weights_pointer": "input->weights",
            "weights_member": "  const void *weights_;",
            "weights_note": (
                f" The weights are in `{self.weights_file}`: map it, or link it in where nothing can; `{name}_check_weights` "
                "compares it with the library."
            ),
            "constructor": (
                f"/// `weights` are all of {self.weights_file}, aligned; they have to outlive the network.\n"
                "  explicit Network(const void *weights) : weights_(weights) {}"
            ),
            "example_check": (
                f"  int wrong = {name}_check_weights(weights, sizeof weights);\n"
                f"  if (wrong) {{\n    fputs({name}_describe(wrong), stderr);\n    fputs(\"\\n\", stderr);\n    return 1;\n  }}"
            )
            if self.hosted
            else "",
        }

    def _words_of_example(self) -> dict[str, object]:
        """What the example declares, reads and writes."""
        capitals = self._name.upper()
        arrays = [("in", tensor) for tensor in self.inputs] + [("out", tensor) for tensor in self.outputs]
        declared = [
            f"static {capitals}_ALIGNED {tensor.c_type} {side}_{tensor.field}[{tensor.macro}_ELEMENTS];"
            for side, tensor in arrays
        ]
        read = [(f"in_{tensor.field}", f"in_{tensor.field}") for tensor in self.inputs]
        files = [f"{tensor.field}.bin" for tensor in self.inputs]
        if self.separate:
            const = "" if self.hosted else "const "
            where = "" if self.hosted else f" /* {self.weights_file}, placed by the linker */"
            storage = "static" if self.hosted else "extern"
            declared.insert(0, f"{storage} {const}{capitals}_ALIGNED unsigned char weights[{capitals}_WEIGHT_BYTES];{where}")
            read.insert(0, ("weights", "weights"))
            files.insert(0, self.weights_file)
        what = "The weights and behind them the inputs come" if self.separate else "The inputs come"
        return {
            "example_arrays": "\n".join(declared),
            "example_reads": what,
            "example_command": f"cat {' '.join(files)} | ./{self._name}_example > outputs.bin",
            "example_read": "\n".join(f'  if (!read_all({array}, sizeof {array}, "{text}")) return 2;' for array, text in read),
            "example_write": "\n".join(
                f"  if (fwrite(out_{each.field}, 1, sizeof out_{each.field}, stdout) != sizeof out_{each.field}) return 2;"
                for each in self.outputs
            ),
        }

    def _describe_tensors(self) -> list[str]:
        """The header's list of inputs and outputs."""
        sides = [("input", tensor) for tensor in self.inputs] + [("output", tensor) for tensor in self.outputs]
        return [
            f" *   {side} {each.field}: {each.value.type.dtype}, {each.shape}"
            + (f" ({_as_comment(each.value.name)} in the model)" if each.field != each.value.name else "")
            + (self._describe_image() if side == "input" and each.value.name in self._image["inputs"] else "")
            for side, each in sides
        ]

    def _describe_image(self) -> str:
        """The header's lines about an input that is another one than the model's."""
        lines = []
        if self._image["layout"] is not None:
            lines.append(f"an image in {', '.join(self._image['layout'])}")
        if self._image["element_type"] is not None:
            mean, std = (", ".join(map(str, self._image[numbers])) for numbers in ("mean", "std"))
            lines.append(f"bytes u, of which the network makes (u / 255 - mean) / std with mean {mean} and std {std}")
        return "".join(f",\n *     {line}" for line in lines)

    def _describe_populating(self) -> str:
        """How all pages of the weights are mapped before they are read."""
        if self.separate:
            return "`MAP_POPULATE` where the file is"
        return f"`MADV_POPULATE_READ` for the pages of `{self._name}_weights()`"

    def _constants(self) -> list[str]:
        """The header's sizes and shapes."""
        what = f"Size of {self.weights_file}." if self.separate else "Size of the weights in the library."
        groups = [f"/* {what} */\n#define {self._name.upper()}_WEIGHT_BYTES {self._program.constants.nbytes}"]
        for each in (*self.inputs, *self.outputs):
            shape = each.value.type.shape
            lines = [
                f"#define {each.macro}_ELEMENTS {each.elements}",
                f"#define {each.macro}_BYTES {each.value.type.nbytes}",
                f"#define {each.macro}_RANK {len(shape)}",
                *(f"#define {each.macro}_DIM{axis} {extent}" for axis, extent in enumerate(shape)),
            ]
            groups.append("\n".join(lines))
        return groups

    def _describe_build(self) -> str:
        """The README's commands."""
        if not self.hosted:
            return (
                f"    arm-none-eabi-gcc -mcpu={self._device.cpu} -mfloat-abi=hard -mfpu=fpv5-sp-d16 -O2 -c example.c\n\n"
                f"and link `example.o` and `{self.archive}` with the board's startup code."
            )
        return (
            f"    cc -O2 example.c {self.archive} -o {self._name}_example\n"
            f"    {self._words_of_example()['example_command']}\n\n"
            "Without a compiler for it, `pip install ziglang` brings one to any machine, with musl, a C library that is made\n"
            "part of the program: this needs nothing of the system that it runs on but its kernel.\n\n"
            f"    python -m ziglang cc -target {self._device.musl_target} -O2 example.c {self.archive}"
            f" -o {self._name}_example"
        )


def _as_comment(text: str) -> str:
    """Keeps a name from ending the comment that it stands in."""
    return re.sub(r"[^\w .,:/+-]|/(?=\*)", "_", text)


def _fields(tensors: Sequence[_Tensor], qualifier: str) -> str:
    """Members of a C struct of pointers."""
    return "\n".join(
        f"  {qualifier}{each.c_type} *{each.field}; /* {each.shape}{_bits(each)} */" for each in tensors
    )


def _bits(tensor: _Tensor) -> str:
    """What a reader has to know of elements that C has no type for."""
    return {"float16": ", the bits of float16", "bool": ", each 0 or 1"}.get(tensor.value.type.dtype, "")


def _members(tensors: Sequence[_Tensor]) -> str:
    """Members of a C++ struct of tensors."""
    return "\n".join(f"  Tensor<{each.c_type}, {each.macro}_ELEMENTS> {each.field};" for each in tensors)
