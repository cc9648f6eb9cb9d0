"""Runs each runtime alone in a process of its own.

Thread pools that spin collide in one process, and one runtime's weights push another's out of the caches: so
each runtime is loaded by a worker, `python -m sepwise.lowering.peers`, that runs and times it when it is told to.
The parent speaks to it in pickled messages over the worker's standard input and output; what libraries print goes
to standard error.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from sepwise.lowering.peers.artifact import Sepwise
from sepwise.lowering.peers.base import Job, timed
from sepwise.lowering.peers.memory import evict_caches, peak_bytes, reset_peak
from sepwise.lowering.peers.table import OURS, PEERS
from sepwise.lowering.peers.yardsticks import YARDSTICKS
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np

    from sepwise.lowering.peers.base import Runtime

__all__ = ["Worker", "serve"]

RUNTIMES: Final[Mapping[str, type[Runtime]]] = {OURS: Sepwise, **PEERS, **YARDSTICKS}
"""What a job may name."""


class Worker:
    """A runtime in a process of its own, idle until it is told to run.

    Use as a context manager: the process ends with the block.
    """

    def __init__(self, job: Job, *, environment: Mapping[str, str | None] | None = None) -> None:
        """Starts the process on the first `threads` cpus and loads the network.

        Args:
            job: What to load.
            environment: Variables of the process beside those of this one, or None for those that it is not to have.

        Raises:
            InputError: A peer cannot load this network.
            SepwiseError: Our own runtime cannot.
        """
        self.name = job.runtime
        cpus = sorted(os.sched_getaffinity(0))[: job.threads]
        count = str(job.threads)
        own = {"OMP_NUM_THREADS": count, "TVM_NUM_THREADS": count, **(environment or {})}
        variables: dict[str, str | None] = {**os.environ, **own}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sepwise.lowering.peers", *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in variables.items() if value is not None},
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

    def time_cold(self, repeats: int) -> list[float]:
        """Runs `repeats` times, each after all that the caches of its cpus held was pushed out: weights, activations, code.

        Args:
            repeats: Measured runs.

        Returns:
            Microseconds of each.
        """
        times_us: list[float] = self._ask(("time_cold", repeats))
        return times_us

    def measure_memory(self, repeats: int) -> dict[str, int]:
        """Runs and says what the process takes of main memory.

        Args:
            repeats: Runs.

        Returns:
            Bytes: `start`, before anything was loaded; `loading`, the most until now; `running`, the most in the course of
            the runs. All with the interpreter and the libraries.
        """
        found: dict[str, int] = self._ask(("measure_memory", repeats))
        return found

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


def _answer(runtime: Runtime, verb: str, argument: Any, start_bytes: int) -> object:
    if verb == "run":
        return runtime.run(argument)
    repeats: int = argument
    if verb == "time_cold":
        return [_time_cold(runtime) for _ in range(repeats)]
    runtime.time(1)
    if verb == "measure_memory":
        return _measure_memory(runtime, repeats, start_bytes)
    if verb == "time":
        return runtime.time(repeats)
    assert isinstance(runtime, Sepwise)
    return runtime.time_kernels(repeats)


def _time_cold(runtime: Runtime) -> float:
    """Times one run from outside, that of every runtime alike: the interpreter is cold, too."""
    evict_caches()
    (time_us,) = timed(runtime.execute, 1)
    return time_us


def _measure_memory(runtime: Runtime, repeats: int, start_bytes: int) -> dict[str, int]:
    loading = peak_bytes()
    reset_peak()
    runtime.time(repeats)
    return {"start": start_bytes, "loading": loading, "running": peak_bytes()}


def serve(cpus: set[int]) -> None:
    """Answers the parent's messages until it closes the pipe.

    Args:
        cpus: The cpus that this process may use.
    """
    os.sched_setaffinity(0, cpus)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start_bytes = peak_bytes()
    runtime: Runtime | None = None
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: object
        try:
            if isinstance(message, Job):
                runtime = RUNTIMES[message.runtime](message)
                answer = runtime.version
            else:
                assert runtime is not None
                verb, argument = message
                answer = _answer(runtime, verb, argument, start_bytes)
            reply = ("done", answer)
        except Exception as error:  # whatever a runtime raises is told to the parent
            text = str(error).strip().splitlines()
            reply = ("failed", f"{type(error).__name__}: {text[-1] if text else ''}".strip(" .:"))
        pickle.dump(reply, answers)
        answers.flush()
