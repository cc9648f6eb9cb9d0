"""The wheel holds every module under its import name and nothing under a bare one."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SOURCES = ("lowering", "models", "passes", "scripts", "LICENSE", "README.md", "pyproject.toml", "setup.py")

IMPORT_ALL = """
import importlib, pkgutil, sys, sepwise
names = [module.name for module in pkgutil.walk_packages(sepwise.__path__, "sepwise.")]
assert {"sepwise.models", "sepwise.passes", "sepwise.lowering", "sepwise.cli"} <= set(names), names
for name in names:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), f"{name} came from {module.__file__}"
print(sepwise.__version__, len(names))
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy of the sources: a build writes beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repository / name, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("sepwise-*.whl")
    return built


def test_wheel_holds_data_files_and_no_bare_names(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sepwise"}
    assert "sepwise/py.typed" in names
    data = [*(repository / "lowering").rglob("*.toml"), *(repository / "lowering").rglob("*.[ch]")]
    page = [*(repository / "scripts" / "sepwise").rglob("*.css"), *(repository / "scripts" / "sepwise").rglob("*.js")]
    assert data
    assert page
    wanted = [path.relative_to(repository) for path in data]
    wanted += [path.relative_to(repository / "scripts" / "sepwise") for path in page]
    for path in wanted:
        assert f"sepwise/{path}" in names, f"{path} is not in package-data"


def test_every_module_of_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # The dependencies come from this environment. A folder named in a .pth has its own .pth files ignored, so
    # this environment's editable sepwise stays out of sight.
    Path(purelib, "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    run = subprocess.run([python, "-I", "-c", IMPORT_ALL, purelib], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    script = subprocess.run([environment / "bin" / "sepwise", "--help"], capture_output=True, text=True, check=False)
    assert script.returncode == 0, script.stderr
