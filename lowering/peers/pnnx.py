"""What pnnx, ncnn's converter, makes of an ONNX file: ncnn's own format, and a module of torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sepwise.lowering.peers.base import run_converter
from sepwise.passes.errors import SepwiseError

if TYPE_CHECKING:
    from sepwise.lowering.peers.base import Job

__all__ = ["convert_with_pnnx"]


def convert_with_pnnx(job: Job, folder: Path) -> Path:
    """Converts the simplified file.

    Args:
        job: Names the file.
        folder: Where all that pnnx writes goes.

    Returns:
        The stem of the files: `STEM.ncnn.param`, `STEM.ncnn.bin`, `STEM_pnnx.py` and others.

    Raises:
        SepwiseError: pnnx is missing or fails.
    """
    beside = Path(sys.executable).with_name("pnnx")
    program = str(beside) if beside.exists() else shutil.which("pnnx")
    if program is None:
        raise SepwiseError("its converter pnnx is missing: pip install pnnx")
    source = folder / "net.onnx"
    shutil.copyfile(job.simplified, source)
    run_converter([program, source, "fp16=0"], source.with_suffix(".ncnn.param"))
    return source.with_suffix("")
