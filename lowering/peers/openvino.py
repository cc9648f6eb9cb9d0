"""OpenVINO."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sepwise.lowering.peers.base import Runtime, fastest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sepwise.lowering.peers.base import Job

__all__ = ["OpenVino"]


class OpenVino(Runtime):
    """OpenVINO's CPU plugin in one stream of float32, which it leaves for bfloat16 if nothing is said.

    The faster of the original and the simplified file; inputs and outputs are shared with it, so that a run copies none.
    """

    packages = ("openvino",)

    def __init__(self, job: Job) -> None:
        """Compiles both files and keeps the faster one."""
        import openvino

        self.version = openvino.__version__.split("-")[0]
        self._inputs, self._outputs = job.inputs, job.outputs
        requests = [self._compile(path, job) for path in job.files]
        self._request = requests[fastest([partial(request.infer, share_outputs=True) for request in requests])]

    @staticmethod
    def _compile(path: Path, job: Job) -> Any:
        import openvino
        from openvino import properties

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(array.shape) for name, array in job.inputs.items()})
        options = {
            properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
            properties.hint.inference_precision(): openvino.Type.f32,
            properties.inference_num_threads(): job.threads,
            properties.num_streams(): 1,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()
        _place(request, job.inputs)
        request.infer()
        return request

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        _place(self._request, inputs or self._inputs)
        self.execute()
        outputs = {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}
        _place(self._request, self._inputs)
        return outputs

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._request.infer(share_outputs=True)


def _place(request: Any, inputs: Mapping[str, np.ndarray]) -> None:
    import openvino

    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
