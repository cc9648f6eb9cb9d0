"""torch.compile."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepwise.lowering.peers.base import Runtime
from sepwise.lowering.peers.pnnx import convert_with_pnnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from sepwise.lowering.peers.base import Job

__all__ = ["TorchCompile"]


class TorchCompile(Runtime):
    """torch.compile, weights frozen, of the module that pnnx writes of the simplified file."""

    packages = ("torch", "pnnx")

    def __init__(self, job: Job) -> None:
        """Converts and compiles the network."""
        import torch

        self.version = torch.__version__
        self._outputs, self._order = job.outputs, tuple(job.inputs)
        torch.set_num_threads(job.threads)
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            stem = convert_with_pnnx(job, Path(folder))
            spec = importlib.util.spec_from_file_location("net_pnnx", f"{stem}_pnnx.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            net = module.Model().float().eval()
        self._call: Callable[..., Any] = torch.compile(net, options={"freezing": True})
        self._given = self._place(job.inputs)
        self.execute()

    def _place(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        import torch

        return [torch.from_numpy(inputs[name]) for name in self._order]

    def _infer(self, given: list[Any]) -> Any:
        import torch

        with torch.no_grad():
            return self._call(*given)

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        found = self._infer(self._given if inputs is None else self._place(inputs))
        results = found if isinstance(found, tuple | list) else [found]
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._infer(self._given)
