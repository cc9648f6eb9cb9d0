"""Tencent's ncnn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sepwise.lowering.peers.base import Runtime, pick_image
from sepwise.lowering.peers.pnnx import convert_with_pnnx

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sepwise.lowering.peers.base import Job

__all__ = ["Ncnn"]


class Ncnn(Runtime):
    """ncnn without its float16 and bfloat16, of what pnnx makes of the simplified file; it knows no batch."""

    packages = ("ncnn", "pnnx")

    def __init__(self, job: Job) -> None:
        """Converts and loads the network."""
        import ncnn

        self.version = ncnn.__version__
        self._outputs = job.outputs
        self._order = tuple(job.inputs)
        self._net = ncnn.Net()
        self._net.opt.num_threads = job.threads
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self._net.opt, option, False)
        given = self._place(job.inputs)
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            stem = convert_with_pnnx(job, Path(folder))
            self._net.load_param(f"{stem}.ncnn.param")
            self._net.load_model(f"{stem}.ncnn.bin")
        self._given = given

    def _place(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        import ncnn

        # Without a copy a Mat is a view of an array that goes out of scope.
        return [ncnn.Mat(np.ascontiguousarray(pick_image(inputs[name]))).clone() for name in self._order]

    def _extract(self, given: Iterable[Any]) -> list[Any]:
        extractor = self._net.create_extractor()
        for place, mat in enumerate(given):
            extractor.input(f"in{place}", mat)
        return [extractor.extract(f"out{place}")[1] for place in range(len(self._outputs))]

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        found = self._extract(self._given if inputs is None else self._place(inputs))
        return {name: np.array(mat)[None] for name, mat in zip(self._outputs, found, strict=True)}

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._extract(self._given)
