"""The import arrows of DESIGN: who may import what, read from the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

PACKAGES = {
    "sepwise.models": "models",
    "sepwise.passes": "passes",
    "sepwise.lowering": "lowering",
    "sepwise": "scripts/sepwise",
}

THIRD_PARTY = {
    "models": {"numpy", "onnx", "onnx_ir", "onnxscript", "torch"},
    "passes": {"google", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "lowering": {"elftools", "numpy", "onnx", "onnx_ir", "tvm", "tvm_ffi", "unicorn", "ziglang"},
}
"""What a folder may import from outside."""

OURS = {
    "models": {"sepwise.models", "sepwise.passes.errors"},
    "passes": {"sepwise.passes"},
    "lowering": {"sepwise.lowering", "sepwise.passes"},
}
"""What a folder may import of ours, with what is below it."""

EXCEPTIONS = {
    # They run what we are measured against.
    "lowering/peers/iree.py": {"iree"},
    "lowering/peers/mnn.py": {"MNN"},
    "lowering/peers/ncnn.py": {"ncnn"},
    "lowering/peers/onnx_runtime.py": {"onnxruntime"},
    "lowering/peers/openvino.py": {"openvino"},
    "lowering/peers/torch_compile.py": {"torch"},
    "lowering/peers/yardsticks.py": {"torch"},  # whose product of matrices is one
    "lowering/verify.py": {"onnxruntime"},  # reports its error beside ours
}

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "torch", "tvm", "tvm_ffi"}
"""What the command line imports inside a subcommand only."""


def sources(*folders: str) -> list[str]:
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)


def statements(tree: ast.AST, *, top_level: bool = False) -> Iterator[ast.stmt]:
    """Yields the statements of a file; with `top_level` those that run when it is imported."""
    for child in ast.iter_child_nodes(tree):
        if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if top_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from statements(child, top_level=top_level)


def imports(source: str, *, top_level: bool = False) -> list[str]:
    """Lists the dotted names that a file imports; `from a import b` gives `a.b`, which may be a module."""
    names = []
    for statement in statements(ast.parse((REPOSITORY / source).read_text(), source), top_level=top_level):
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{source}:{statement.lineno} imports relatively"
            names += [f"{statement.module}.{alias.name}" for alias in statement.names]
    return names


def below(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("source", sources("models", "passes", "lowering"))
def test_imports_of_packages(source: str) -> None:
    folder = source.split("/")[0]
    outside = THIRD_PARTY[folder] | EXCEPTIONS.get(source, set()) | set(sys.stdlib_module_names)
    for name in imports(source):
        if below(name, {"sepwise"}):
            assert below(name, OURS[folder]), f"{source} imports {name}; {folder}/ may import {sorted(OURS[folder])}"
        else:
            assert name.split(".")[0] in outside, f"{source} imports {name}; {folder}/ may import {sorted(THIRD_PARTY[folder])}"


@pytest.mark.parametrize("source", sources("models", "passes", "lowering", "scripts", "tests"))
def test_no_bare_and_no_relative_imports(source: str) -> None:
    for name in imports(source):
        assert not below(name, {"models", "passes", "lowering", "scripts"}), f"{source} imports {name}; write sepwise.{name}"


@pytest.mark.parametrize("source", sources("scripts/sepwise"))
def test_command_line_imports_lazily(source: str) -> None:
    for name in imports(source, top_level=True):
        assert not below(name, HEAVY), f"{source} imports {name} when it is imported; do it inside the function"
        assert not below(name, {"sepwise.models", "sepwise.passes", "sepwise.lowering"}), f"{source} imports {name} at once"


def test_equivalence_needs_neither_tvm_nor_torch() -> None:
    for source in sources("passes/equivalence"):
        for name in imports(source):
            assert not below(name, {"tvm", "tvm_ffi", "torch", "sepwise.lowering", "sepwise.models"}), f"{source}: {name}"


def test_every_package_is_mapped() -> None:
    for folder in PACKAGES.values():
        assert (REPOSITORY / folder / "__init__.py").exists()


def test_no_file_names_that_say_nothing() -> None:
    nothing = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
    assert not [source for source in sources(*PACKAGES.values(), "tests") if Path(source).name in nothing]
