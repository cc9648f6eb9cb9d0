"""Alibaba's MNN."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sepwise.lowering.peers.base import Runtime, run_converter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.peers.base import Job

__all__ = ["Mnn"]


class Mnn(Runtime):
    """MNN at high precision, which is float32, of what its converter makes of the simplified file.

    A run may overwrite the memory of its inputs, so they are copied in front of each.
    """

    packages = ("MNN",)

    def __init__(self, job: Job) -> None:
        """Converts and loads the network."""
        import MNN

        self.version = MNN.version()
        self._outputs = job.outputs
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            written = Path(folder) / "net.mnn"
            program = (sys.executable, "-m", "MNN.tools.mnnconvert", "-f", "ONNX", "--bizCode", "none")
            run_converter([*program, "--modelFile", job.simplified, "--MNNModel", written], written)
            self._interpreter = MNN.Interpreter(str(written))
        self._session = self._interpreter.createSession({"numThread": job.threads, "precision": "high"})
        self._given = self._place(job.inputs)

    def _place(self, inputs: Mapping[str, np.ndarray]) -> list[tuple[Any, Any]]:
        """Pairs each input of the session with what it is given."""
        import MNN

        placed = []
        for name, array in inputs.items():
            inner = self._interpreter.getSessionInput(self._session, name)
            placed.append((inner, MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)))
        return placed

    def _execute(self, given: list[tuple[Any, Any]]) -> None:
        for inner, tensor in given:
            inner.copyFrom(tensor)
        self._interpreter.runSession(self._session)

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        import MNN

        self._execute(self._given if inputs is None else self._place(inputs))
        outputs = {}
        for name in self._outputs:
            found = self._interpreter.getSessionOutput(self._session, name)
            shape = found.getShape()
            zeros = np.zeros(shape, np.float32)
            host = MNN.Tensor(shape, MNN.Halide_Type_Float, zeros, MNN.Tensor_DimensionType_Caffe)
            found.copyToHostTensor(host)
            outputs[name] = np.array(host.getData(), np.float32).reshape(shape)
        return outputs

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        self._execute(self._given)
        return self._session
