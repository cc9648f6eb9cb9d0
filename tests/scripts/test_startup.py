"""What a process of the command line leaves out, and what it does not take from anyone."""

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from sepwise.startup import start_lean

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed: pip install 'sepwise[export]'")


def modules_after(program: str) -> set[str]:
    """Runs a program of its own, and gives the modules that it has at the end."""
    program = f"{program}\nimport json, sys\nprint('MODULES' + json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.rpartition("MODULES")[2]))


@needs_torch
def test_what_compiles_loads_no_torch() -> None:
    loaded = modules_after("from sepwise.startup import start_lean; start_lean(); import sepwise.lowering.build")
    assert "tvm" in loaded
    assert not {"torch", "tvm.runtime.disco", "tvm.backend.cuda.script"} & loaded


@needs_torch
def test_torch_comes_when_it_is_asked_for() -> None:
    torch_later = """
from sepwise.startup import start_lean
start_lean()
import tvm, tvm_ffi, torch
given = torch.arange(6, dtype=torch.float32).reshape(2, 3)
taken = tvm_ffi.from_dlpack(given)
assert taken.shape == (2, 3)
returned = torch.from_dlpack(taken)
returned[1, 2] = 9
assert given[1, 2] == 9, "they share memory"
"""
    assert {"torch", "tvm"} <= modules_after(torch_later)


@needs_torch
def test_torch_that_is_there_already_is_taken() -> None:
    torch_first = """
import torch
from sepwise.startup import start_lean
start_lean()
import tvm_ffi
assert tvm_ffi.convert(torch.float32) == "float32"
"""
    assert {"torch", "tvm_ffi"} <= modules_after(torch_first)


def test_it_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("TVM_DEVICE_BACKEND_AUTOLOAD", "1")  # as its user wants it
    threshold = gc.get_threshold()
    try:
        start_lean()
        installed = list(sys.meta_path)
        start_lean()
        assert sys.meta_path == installed
        assert os.environ["TVM_DEVICE_BACKEND_AUTOLOAD"] == "1"
    finally:
        gc.set_threshold(*threshold)
