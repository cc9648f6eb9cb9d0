"""TVM without schedules of ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sepwise.lowering.peers.base import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from sepwise.lowering.peers.base import Job

__all__ = ["StockTvm"]


class StockTvm(Runtime):
    """TVM as it comes: its ONNX importer and its default CPU pipeline, built for this machine's cpu.

    It is given the simplified file, because its importer takes more networks so.
    """

    def __init__(self, job: Job) -> None:
        """Imports, compiles and loads the network."""
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        from sepwise.lowering import device
        from sepwise.lowering.codegen import tvm_target

        self.version = tvm.__version__
        model = onnx.load(job.simplified)
        self._outputs = job.outputs
        shapes = {name: list(array.shape) for name, array in job.inputs.items()}
        dtypes = {name: str(array.dtype) for name, array in job.inputs.items()}
        module = from_onnx(model, shape_dict=shapes, dtype_dict=dtypes, sanitize_input_names=False)
        machine = relax.VirtualMachine(tvm.compile(module, tvm_target(device.detect())), tvm.cpu())
        constants = {initializer.name for initializer in model.graph.initializer}
        order = [value.name for value in model.graph.input if value.name not in constants]
        self._call: Callable[..., Any] = machine["main"]
        self._place: Callable[[Mapping[str, np.ndarray]], list[Any]] = lambda inputs: [
            tvm.runtime.tensor(inputs[name]) for name in order
        ]
        self._arguments = self._place(job.inputs)
        if job.threads > 1:
            # TVM binds its workers to cpus but leaves this thread free to sit on the same one as a worker.
            self.execute()
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        result = self.execute() if inputs is None else self._call(*self._place(inputs))
        tensors = [result] if len(self._outputs) == 1 and hasattr(result, "numpy") else list(result)
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def execute(self) -> Any:
        """Runs once on the job's inputs."""
        return self._call(*self._arguments)
