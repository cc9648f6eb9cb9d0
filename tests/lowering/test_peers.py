"""Workers of peers: they compute, they time, and they say what they cannot do."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sepwise.lowering.peers import PEERS, Job, Worker, names
from sepwise.passes.errors import InputError

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 4, 8, 8] z)
{
   y = Relu(x)
   z = Add(y, x)
}
"""

@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(NETWORK), path)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    return Job("onnxruntime", path, path, tmp_path, {"x": x}, threads=1)


def with_runtime(job: Job, runtime: str) -> Job:
    return Job(runtime, job.original, job.simplified, job.artifact, job.inputs, job.threads)


@pytest.mark.parametrize("runtime", names())
def test_worker_computes_and_times(job: Job, runtime: str) -> None:
    x = job.inputs["x"]
    with Worker(with_runtime(job, runtime)) as worker:
        runs = [(x, worker.run()), (-x, worker.run({"x": -x})), (x, worker.run())]
        times_us = worker.time(5)
    for given, outputs in runs:
        assert set(outputs) == {"y", "z"}
        np.testing.assert_array_equal(outputs["y"], np.maximum(given, 0))
        np.testing.assert_array_equal(outputs["z"], np.maximum(given, 0) + given)
    assert len(times_us) == 5
    assert all(time_us > 0 for time_us in times_us)
    assert worker.version


@pytest.mark.parametrize("runtime", names())
def test_worker_says_what_it_cannot_load(job: Job, runtime: str) -> None:
    job.original.write_bytes(b"not a model")
    with pytest.raises(InputError, match=f"Runtime '{runtime}': cannot run this network .* leave it out of --against"):
        Worker(with_runtime(job, runtime))


def test_worker_keeps_standard_output_clean(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    with Worker(with_runtime(job, "stock-tvm")) as worker:
        worker.run()
    assert capfd.readouterr().out == ""


def test_names_are_the_table() -> None:
    assert names() == list(PEERS)
