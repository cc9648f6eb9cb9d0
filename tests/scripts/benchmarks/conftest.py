"""What the tests of the benchmarks share: scripts/benchmarks is no package, so its files are loaded by path."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_script(repository: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Loads a benchmark by its name, once."""
    loaded: dict[str, ModuleType] = {}
    folder = repository / "scripts/benchmarks"
    sys.path.insert(0, str(folder))  # as Python does for a script that it runs: some take from others

    def load(name: str) -> ModuleType:
        if name not in loaded:
            spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            loaded[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
            spec.loader.exec_module(loaded[name])
        return loaded[name]

    yield load
    sys.path.remove(str(folder))
    for module in loaded.values():
        del sys.modules[module.__name__]
