"""Our own artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepwise.lowering.peers.base import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from sepwise.lowering.peers.base import Job

__all__ = ["Sepwise"]


class Sepwise(Runtime):
    """Our own artifact; its loop of timed runs is in C, but for a tail, which is timed with them."""

    def __init__(self, job: Job) -> None:
        """Loads the artifact and places the inputs."""
        from importlib.metadata import version

        from sepwise.lowering.artifact import load
        from sepwise.lowering.runner import NativeRunner

        self.version = version("sepwise")
        self._artifact = load(job.artifact)
        runner = self._artifact.runner
        assert isinstance(runner, NativeRunner), "peers and we run natively"
        self._runner = runner
        self._inputs = job.inputs
        self._runner.run(job.inputs)

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        return self._runner.run(self._inputs if inputs is None else inputs)

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._runner.time(1)

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times in one loop and returns the microseconds of each."""
        return self._runner.time(repeats)

    def time_kernels(self, repeats: int) -> list[list[float]]:
        """Runs `repeats` times and returns for each kernel call, and the tail, the microseconds in each run."""
        return self._runner.time_kernels(repeats)
