"""Every command and every Python example of README.md runs, in order, but for the tests and the installation that they run in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXCEPTED = ("git clone", "cd ", "pip install", "scripts/test.sh")


def examples(language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall((REPOSITORY / "README.md").read_text()) if kind == language]


def commands() -> list[str]:
    lines = "".join(examples("sh")).replace("\\\n", " ").splitlines()
    stripped = [line.split(" #")[0].strip() for line in lines]
    return [line for line in stripped if line and not line.startswith((*EXCEPTED, "#"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which README's relative paths are right and nothing is written into the repository."""
    made = tmp_path_factory.mktemp("readme")
    (made / "scripts").symlink_to(REPOSITORY / "scripts")
    return made


def run(arguments: list[str], folder: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments[-1]}\n{done.stdout}\n{done.stderr}"


def test_readme_has_examples() -> None:
    assert any(line.startswith("scripts/demo.sh") for line in commands())
    assert any(line.startswith("sepwise ") for line in commands())
    assert examples("python")


def test_commands_run(folder: Path, subtests: pytest.Subtests) -> None:
    for command in commands():
        with subtests.test(command):
            run(["bash", "-c", command], folder)


def test_python_examples_run(folder: Path, subtests: pytest.Subtests) -> None:
    for example in examples("python"):
        with subtests.test(example):
            run([sys.executable, "-c", example], folder)
