"""The runtimes that a benchmark compares, each alone in a process of its own.

Thread pools that spin collide in one process, and one runtime's weights push another's out of the caches: so
each runtime is loaded by a worker, `python -m sepwise.lowering.peers`, that runs and times it when it is told to.
The parent speaks to it in pickled messages over the worker's standard input and output; what libraries print goes
to standard error.
"""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    import numpy as np

__all__ = ["OURS", "PEERS", "Job", "Worker", "names"]

OURS: Final = "sepwise"
"""Our own runtime's name among the others."""

_CHOICE_ROUNDS: Final = 3
_CHOICE_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker loads.

    Attributes:
        runtime: `OURS` or a key of `PEERS`.
        original: The ONNX file as it came in.
        simplified: The same network canonicalised: shapes fixed, constants folded.
        artifact: Folder of our compiled artifact.
        inputs: One set of inputs, used for every run that is not given another.
        threads: Worker threads.
    """

    runtime: str
    original: Path
    simplified: Path
    artifact: Path
    inputs: dict[str, np.ndarray]
    threads: int


class Runtime(Protocol):
    """A network loaded by one runtime, with its inputs in place."""

    version: str

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""


def _timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Times a call `repeats` times, in microseconds."""
    times_us = []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        call()
        times_us.append((time.perf_counter_ns() - start_ns) / 1e3)
    return times_us


class Sepwise:
    """Our own artifact; its loop of timed runs is in C, but for a tail, which is timed with them."""

    def __init__(self, job: Job) -> None:
        """Loads the artifact and places the inputs.

        Args:
            job: What to load.
        """
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

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""
        return self._runner.time(repeats)

    def time_kernels(self, repeats: int) -> list[list[float]]:
        """Runs `repeats` times and returns for each kernel call, and the tail, the microseconds in each run."""
        return self._runner.time_kernels(repeats)


class OnnxRuntime:
    """ONNX Runtime, all graph optimisations on, the faster of the original and the simplified file.

    Inputs are bound once, so that a run copies none.
    """

    def __init__(self, job: Job) -> None:
        """Loads both files and keeps the faster one.

        Args:
            job: What to load.
        """
        import onnxruntime

        self.version = onnxruntime.__version__
        self._bindings = [self._bind(path, job) for path in (job.original, job.simplified)]
        if len(self._bindings) > 1:
            medians_us: list[list[float]] = [[] for _ in self._bindings]
            for _ in range(_CHOICE_ROUNDS):
                for binding, found in zip(self._bindings, medians_us, strict=True):
                    found.append(statistics.median(self._time(binding, _CHOICE_RUNS)))
            self._bindings = [self._bindings[min(range(len(medians_us)), key=lambda index: min(medians_us[index]))]]

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
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return session, binding

    @staticmethod
    def _time(bound: tuple[Any, Any], repeats: int) -> list[float]:
        session, binding = bound
        return _timed(lambda: session.run_with_iobinding(binding), repeats)

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        session, binding = self._bindings[0]
        outputs = [output.name for output in session.get_outputs()]
        if inputs is not None:
            return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))
        session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""
        return self._time(self._bindings[0], repeats)


class StockTvm:
    """TVM as it comes: its ONNX importer and its default CPU pipeline, built for this machine's cpu.

    It is given the simplified file, because its importer takes more networks so.
    """

    def __init__(self, job: Job) -> None:
        """Imports, compiles and loads the network.

        Args:
            job: What to load.
        """
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        from sepwise.lowering import device
        from sepwise.lowering.codegen import tvm_target

        self.version = tvm.__version__
        model = onnx.load(job.simplified)
        self._outputs = [output.name for output in model.graph.output]
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
        arguments = self._place(job.inputs)
        self._main: Callable[[], Any] = lambda: self._call(*arguments)
        if job.threads > 1:
            # TVM binds its workers to cpus but leaves this thread free to sit on the same one as a worker.
            self._main()
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once, on the job's inputs or on others of their shapes, and returns the outputs by name."""
        result = self._main() if inputs is None else self._call(*self._place(inputs))
        tensors = [result] if len(self._outputs) == 1 and hasattr(result, "numpy") else list(result)
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def time(self, repeats: int) -> list[float]:
        """Runs `repeats` times and returns the microseconds of each."""
        return _timed(self._main, repeats)


PEERS: Final[Mapping[str, Callable[[Job], Runtime]]] = {
    "onnxruntime": OnnxRuntime,
    "stock-tvm": StockTvm,
}
"""What a benchmark can be run against."""


def names() -> list[str]:
    """Lists what a benchmark can be run against.

    Returns:
        The names that `--against` takes.
    """
    return list(PEERS)


class Worker:
    """A runtime in a process of its own, idle until it is told to run.

    Use as a context manager: the process ends with the block.
    """

    def __init__(self, job: Job) -> None:
        """Starts the process on the first `threads` cpus and loads the network.

        Args:
            job: What to load.

        Raises:
            InputError: A peer cannot load this network.
            SepwiseError: Our own runtime cannot.
        """
        self.name = job.runtime
        cpus = sorted(os.sched_getaffinity(0))[: job.threads]
        count = str(job.threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "TVM_NUM_THREADS": count}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sepwise.lowering.peers", *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            self.version: str = self._ask(job)
        except BaseException:
            self.close()
            raise

    def _ask(self, message: object) -> Any:
        """Sends a message and waits for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            status, answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise SepwiseError(
                f"Runtime '{self.name}': its process ended with status {self._process.wait()}; see standard error."
            ) from None
        if status == "done":
            return answer
        if self.name == OURS:
            raise SepwiseError(f"Runtime '{self.name}': {answer}.")
        raise InputError(f"Runtime '{self.name}': cannot run this network ({answer}); leave it out of --against.")

    def run(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs once.

        Args:
            inputs: Other inputs than the job's, of the same shapes.

        Returns:
            The outputs by name.
        """
        outputs: dict[str, np.ndarray] = self._ask(("run", inputs))
        return outputs

    def time(self, repeats: int) -> list[float]:
        """Runs once unmeasured, to wake caches and threads, then `repeats` times.

        Args:
            repeats: Measured runs.

        Returns:
            Microseconds of each.
        """
        times_us: list[float] = self._ask(("time", repeats))
        return times_us

    def time_kernels(self, repeats: int) -> list[list[float]]:
        """Times every kernel call of our own runtime, and its tail, within whole runs.

        Args:
            repeats: Measured runs.

        Returns:
            For each step of the Program in order its microseconds in each run.
        """
        times_us: list[list[float]] = self._ask(("time_kernels", repeats))
        return times_us

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        """Gives the worker itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the process."""
        self.close()


def _answer(runtime: Runtime, verb: str, argument: Any) -> object:
    if verb == "run":
        return runtime.run(argument)
    repeats: int = argument
    runtime.time(1)
    if verb == "time":
        return runtime.time(repeats)
    assert isinstance(runtime, Sepwise)
    return runtime.time_kernels(repeats)


def serve(cpus: set[int]) -> None:
    """Answers the parent's messages until it closes the pipe.

    Args:
        cpus: The cpus that this process may use.
    """
    os.sched_setaffinity(0, cpus)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runtime: Runtime | None = None
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: object
        try:
            if isinstance(message, Job):
                runtime = Sepwise(message) if message.runtime == OURS else PEERS[message.runtime](message)
                answer = runtime.version
            else:
                assert runtime is not None
                answer = _answer(runtime, *message)
            reply = ("done", answer)
        except Exception as error:  # whatever a runtime raises is told to the parent
            text = str(error).strip().splitlines()
            reply = ("failed", f"{type(error).__name__}: {text[-1] if text else ''}".strip(" .:"))
        pickle.dump(reply, answers)
        answers.flush()


if __name__ == "__main__":
    # Messages name `sepwise.lowering.peers.Job`: serve under that name, not as `__main__`.
    from sepwise.lowering import peers

    peers.serve({int(cpu) for cpu in sys.argv[1:]})
