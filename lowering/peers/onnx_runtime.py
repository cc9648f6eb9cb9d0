"""ONNX Runtime."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sepwise.lowering.peers.base import Runtime, fastest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from sepwise.lowering.peers.base import Job

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """ONNX Runtime, all graph optimisations on, the faster of the original and the simplified file.

    Inputs are bound once, so that a run copies none.
    """

    packages = ("onnxruntime",)

    def __init__(self, job: Job) -> None:
        """Loads both files and keeps the faster one."""
        import onnxruntime

        self.version = onnxruntime.__version__
        loaded = [self._bind(path, job) for path in job.files]
        self._session, self._binding = loaded[fastest([partial(session.run_with_iobinding, bound) for session, bound in loaded])]
        self._outputs = job.outputs

    @staticmethod
    def _bind(path: Path, job: Job) -> tuple[Any, Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in job.inputs.items():
            binding.bind_cpu_input(name, array)
        for output in job.outputs:
            binding.bind_output(output)
        session.run_with_iobinding(binding)
        return session, binding

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        if inputs is not None:
            return dict(zip(self._outputs, self._session.run(list(self._outputs), dict(inputs)), strict=True))
        self.execute()
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._session.run_with_iobinding(self._binding)
