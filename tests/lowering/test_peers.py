"""Workers of peers: they compute, they time, and they say what they cannot do."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sepwise.lowering.peers import PEERS, YARDSTICKS, Job, Worker, base, memory, missing_packages, names
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

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
    return Job("onnxruntime", path, path, tmp_path, {"x": x}, ("y", "z"), threads=1)


def with_runtime(job: Job, runtime: str) -> Job:
    if missing := missing_packages(runtime):
        pytest.skip(f"{', '.join(missing)} is not installed: pip install 'sepwise[peers]'")
    return replace(job, runtime=runtime)


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


def test_what_is_missing() -> None:
    assert missing_packages("onnxruntime") == missing_packages("stock-tvm") == []


def test_a_package_within_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PEERS["iree"], "packages", ("no_such_package.compiler", "json.decoder"))
    assert missing_packages("iree") == ["no_such_package.compiler"]


def test_only_one_image_at_a_time() -> None:
    assert base.pick_image(np.zeros((1, 3, 4))).shape == (3, 4)
    for shape in ((2, 3, 4), (1,)):
        with pytest.raises(UnsupportedError, match="one image at a time"):
            base.pick_image(np.zeros(shape))


def test_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    medians_us = {"a": [3.0, 9.0, 4.0], "b": [8.0, 2.0, 9.0], "c": [5.0, 5.0, 5.0]}
    monkeypatch.setattr(base, "timed", lambda call, repeats: [medians_us[call].pop(0)])
    assert base.fastest(["a", "b", "c"]) == 1
    assert base.fastest(["a"]) == 0


def test_a_converter_that_fails(tmp_path: Path) -> None:
    said = [sys.executable, "-c", "import sys; sys.exit('no such operator')"]
    with pytest.raises(SepwiseError, match=r"^conversion failed; status 1 and no net.mnn; no such operator$"):
        base.run_converter(said, tmp_path / "net.mnn")
    with pytest.raises(SepwiseError, match=r"^conversion failed; status 0 and no net.mnn$"):
        base.run_converter([sys.executable, "-c", ""], tmp_path / "net.mnn")


def test_a_worker_runs_cold_and_says_what_it_takes(job: Job) -> None:
    with Worker(job, environment={"OMP_NUM_THREADS": "1"}) as worker:
        assert len(worker.time_cold(2)) == 2
        found = worker.measure_memory(2)
        assert found["loading"] >= found["running"] > found["start"] > 0


def test_variables_of_the_process(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def popen(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env)
        raise OSError

    monkeypatch.setattr("subprocess.Popen", popen)
    monkeypatch.setenv("SEPWISE_A", "here")
    monkeypatch.setenv("SEPWISE_B", "here")
    with pytest.raises(OSError):  # noqa: PT011 - its own
        Worker(job, environment={"SEPWISE_A": None, "SEPWISE_B": "there"})
    assert "SEPWISE_A" not in given[0]
    assert (given[0]["SEPWISE_B"], given[0]["OMP_NUM_THREADS"]) == ("there", "1")


def test_caches_are_swept_from_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[set[int]] = []
    cpus = os.sched_getaffinity(0)

    class Buffer:
        def __iadd__(self, number: int) -> "Buffer":
            swept.append(os.sched_getaffinity(0))
            return self

    monkeypatch.setattr(memory, "_sweep_buffer", Buffer)
    memory.evict_caches()
    assert sorted(swept, key=sorted) == [{cpu} for cpu in sorted(cpus)]
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.parametrize("name", YARDSTICKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_yardsticks_multiply_and_add(job: Job, name: str, threads: int) -> None:
    with Worker(replace(job, runtime=name, threads=threads)) as worker:
        assert len(worker.time(2)) == 2
        assert worker.version
        assert worker.run() == {}
    assert YARDSTICKS[name].macs() > 1_000_000


def test_a_file_that_is_its_own_simplified_one_is_loaded_once(job: Job, tmp_path: Path) -> None:
    assert job.files == (job.original,)
    assert replace(job, simplified=tmp_path / "other").files == (job.original, tmp_path / "other")
