"""IREE."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sepwise.lowering.peers.base import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.peers.base import Job

__all__ = ["Iree"]

FLAGS: Final = ("--iree-hal-target-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3")


class Iree(Runtime):
    """IREE's compiler for this processor at its highest level, and its runtime; inputs lie in its own buffers."""

    packages = ("iree.compiler", "iree.runtime")

    def __init__(self, job: Job) -> None:
        """Imports, compiles and loads the network."""
        from importlib.metadata import version

        from iree import compiler, runtime

        self.version = version("iree-base-compiler")
        self._outputs, self._order = job.outputs, tuple(job.inputs)
        with tempfile.TemporaryDirectory(prefix="sepwise-") as folder:
            module = Path(folder) / "net.mlir"
            importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(job.simplified), "-o", str(module)]
            subprocess.run(importer, check=True)
            code = compiler.compile_file(str(module), extra_args=list(FLAGS))
        runtime.flags.parse_flags(f"--task_topology_group_count={job.threads}")
        self._config = runtime.Config("local-task" if job.threads > 1 else "local-sync")
        context = runtime.SystemContext(config=self._config)
        loaded = runtime.VmModule.copy_buffer(self._config.vm_instance, code)
        context.add_vm_module(loaded)
        (name,) = {name.removesuffix("$async") for name in loaded.function_names} - {"__init"}
        self._call = context.modules[loaded.name][name]
        self._given = self._place(job.inputs)

    def _place(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        from iree import runtime

        return [runtime.asdevicearray(self._config.device, inputs[name]) for name in self._order]

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        found = self._call(*(self._given if inputs is None else self._place(inputs)))
        results = found if isinstance(found, tuple | list) else [found]
        return {name: np.array(result.to_host()) for name, result in zip(self._outputs, results, strict=True)}

    def execute(self) -> object:
        """Runs once on the job's inputs."""
        return self._call(*self._given)
