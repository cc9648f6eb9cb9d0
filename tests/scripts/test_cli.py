"""The frame of the command line: help without heavy imports, one line for a mistake, the exit statuses."""

import json
import subprocess
import sys

import pytest
from typer.exceptions import TyperException

from sepwise import __version__
from sepwise.cli import answer, main
from sepwise.passes.errors import CheckFailed, InputError, SepwiseError

SUBCOMMANDS = ("targets", "models", "export", "inspect", "fuse", "compile", "run", "verify", "bench", "tune", "server")

HELP_AND_MODULES = """
import json, sys
from sepwise.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("MODULES" + json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("words", [(), *((name,) for name in SUBCOMMANDS)], ids=lambda words: " ".join(words) or "top")
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", HELP_AND_MODULES, *words, "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text, _, modules = output.rpartition("MODULES")
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "tvm", "tvm_ffi"}
    assert not heavy & set(json.loads(modules))
    assert "Usage: sepwise" in text
    if not words:
        assert all(name in text for name in SUBCOMMANDS)


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    captured = capfd.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version") == (0, f"sepwise {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-command",), "No such command"),
        (("fuse",), "Missing argument"),
        (("fuse", "m.onnx"), "Missing option"),
        (("targets", "--no-such-option"), "No such option"),
        (("compile", "m.onnx", "-o", "d", "--threads", "many"), "--threads"),
        (("compile", "m.onnx", "-o", "d", "--threads", "0"), "--threads"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    status, out, err = run(capfd, *words)
    assert (status, out) == (2, "")
    assert err.startswith("sepwise: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("file 'x':\n is not good."), 2, "sepwise: file 'x': is not good.\n"),
        (CheckFailed("no."), 1, "sepwise: no.\n"),
        (SepwiseError("broken."), 3, "sepwise: broken.\n"),
        (OSError(28, "No space left on device", "out.onnx"), 2, "sepwise: out.onnx: No space left on device.\n"),
        (OSError(28, "No space left on device"), 2, "sepwise: No space left on device.\n"),
        (OSError(12, "Cannot allocate memory"), 2, "sepwise: not enough memory ([Errno 12] Cannot allocate memory)."),
        (MemoryError(), 2, "sepwise: not enough memory. Give a smaller --shape"),
        (MemoryError("Unable to allocate 191. GiB"), 2, "sepwise: not enough memory (Unable to allocate 191. GiB). Give"),
        (OSError(5, "Input/output error"), 3, None),
        (ZeroDivisionError("division by zero"), 3, "sepwise: a fault of ours, ZeroDivisionError: division by zero."),
        (TyperException("what?"), 1, "sepwise: what?\n"),
    ],
)
def test_answers(capfd: pytest.CaptureFixture[str], error: Exception, status: int, message: str | None) -> None:
    assert answer(error) == status
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert message is None or err.startswith(message)


def test_fault_shows_its_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPWISE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        answer(ZeroDivisionError())


def test_interruption_is_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sepwise.cli.app", interrupt)
    assert run(capfd, "models") == (130, "", "sepwise: interrupted.\n")


def test_models_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capfd, "models", "--json")
    assert status == 0
    assert "mobilenet_v2" in json.loads(out)["models"]


def test_targets_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capfd, "targets", "--json")
    assert status == 0
    assert {"host", "cortex-a72"} <= {target["name"] for target in json.loads(out)["targets"]}
