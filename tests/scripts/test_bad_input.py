"""Whatever is wrong with what the user gave: one clear line on standard error, status 2, nothing half-written."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from sepwise.cli import main

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 4, 1, 1] w>
{
   h = Conv(x, w)
   y = Relu(h)
}
"""
BEYOND_ANY_OPSET = 9999


def network() -> onnx.ModelProto:
    model = parser.parse_model(NETWORK)
    weight = np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def whole(folder: Path) -> Path:
    onnx.save(network(), folder / "m.onnx")
    return folder / "m.onnx"


def no_onnx(folder: Path) -> Path:
    (folder / "m.onnx").write_text("this is a text, not a network\n")
    return folder / "m.onnx"


def empty(folder: Path) -> Path:
    (folder / "m.onnx").touch()
    return folder / "m.onnx"


def truncated(folder: Path) -> Path:
    data = whole(folder).read_bytes()
    (folder / "m.onnx").write_bytes(data[: len(data) * 2 // 3])
    return folder / "m.onnx"


def without_external_data(folder: Path) -> Path:
    onnx.save(network(), folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (folder / "weights").unlink()
    return folder / "m.onnx"


def unknown_opset(folder: Path) -> Path:
    model = network()
    model.opset_import[0].version = BEYOND_ANY_OPSET
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def unknown_operator(folder: Path) -> Path:
    model = network()
    model.graph.node[1].op_type = "Unheard"
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def symbolic(folder: Path) -> Path:
    model = network()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


BAD_FILES = {
    no_onnx: "not an ONNX file",
    empty: "is empty",
    truncated: "truncated",
    without_external_data: "weights",
    unknown_opset: str(BEYOND_ANY_OPSET),
    unknown_operator: "Unheard",
    symbolic: "--shape",
}

VERBS = {
    "inspect": ("inspect", "{model}"),
    "fuse": ("fuse", "{model}", "-o", "{out}"),
    "compile": ("compile", "{model}", "-o", "{out}"),
    "verify": ("verify", "{model}"),
    "bench": ("bench", "{model}"),
}


def expect_refusal(capfd: pytest.CaptureFixture[str], message: str, *words: str | Path) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert end.value.code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("sepwise: ")
    assert message in err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
def test_bad_files(make, verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make(tmp_path)
    before = set(tmp_path.iterdir())
    words = [word.format(model=model, out=tmp_path / "out.onnx") for word in VERBS[verb]]
    expect_refusal(capfd, BAD_FILES[make], *words)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", VERBS)
def test_missing_file_and_unknown_model(verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for model, message in ((tmp_path / "no.onnx", "no such file"), ("mobilenet_v99", "mobilenet_v99")):
        words = [word.format(model=model, out=tmp_path / "out.onnx") for word in VERBS[verb]]
        expect_refusal(capfd, message, *words)


def test_wrong_shapes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = symbolic(tmp_path)
    for shape, message in (("1,x", "whole numbers"), ("z=1,4,8,8", "'z'"), ("1,4,8", "x"), ("1,5,8,8", "x")):
        expect_refusal(capfd, message, "fuse", model, "-o", tmp_path / "out.onnx", "--shape", shape)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_unknown_zoo_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expect_refusal(capfd, "mobilenet_v99", "export", "mobilenet_v99", "-o", tmp_path / "m.onnx")


def test_unknown_target(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = whole(tmp_path)
    for words in (("compile", model, "-o", tmp_path / "out"), ("verify", model), ("bench", model)):
        expect_refusal(capfd, "pdp-11", *words, "--target", "pdp-11")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_unknown_peer_and_peer_under_emulation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = whole(tmp_path)
    expect_refusal(capfd, "abacus", "bench", model, "--against", "onnxruntime,abacus")
    expect_refusal(capfd, "--against", "bench", model, "--target", "cortex-a72", "--against", "onnxruntime")


@pytest.mark.parametrize("place", ["missing/out", "file/out", "/proc/out"])
def test_unwritable_outputs(place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = whole(tmp_path)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / place
    expect_refusal(capfd, str(output), "export", "separable_block", "-o", output)
    expect_refusal(capfd, str(output), "fuse", model, "-o", output)
    expect_refusal(capfd, str(output), "compile", model, "-o", output)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    with pytest.raises(SystemExit) as end:
        main(["compile", str(whole(folder)), "-o", str(folder / "net")])
    assert not end.value.code
    return folder / "net"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4, 8, 9), np.float32), "[1,4,8,9]"),
        (np.zeros((1, 4, 8, 8), np.float64), "float64"),
        (np.zeros((1, 4, 8, 8), np.int32), "int32"),
    ],
    ids=["shape", "double", "integer"],
)
def test_run_with_a_wrong_input(
    artifact: Path, array: np.ndarray, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", array)
    expect_refusal(capfd, message, "run", artifact, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_run_with_wrong_names_files_and_folders(artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 8, 8), np.float32))
    given = f"x={tmp_path / 'x.npy'}"
    y = tmp_path / "y.npz"
    expect_refusal(capfd, "'z'", "run", artifact, "--input", f"z={tmp_path / 'x.npy'}", "-o", y)
    expect_refusal(capfd, "no.npy", "run", artifact, "--input", f"x={tmp_path / 'no.npy'}", "-o", y)
    expect_refusal(capfd, str(tmp_path), "run", tmp_path, "--input", given, "-o", y)
    expect_refusal(capfd, "no", "run", tmp_path / "no", "--input", given, "-o", y)
    expect_refusal(capfd, "y.npz", "run", artifact, "--input", given, "-o", tmp_path / "no" / "y.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_artifact_of_another_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its emulator a Cortex-A72 artifact cannot run on x86, nor an AVX-512 one where that is missing."""
    with pytest.raises(SystemExit) as end:
        main(["compile", str(whole(tmp_path)), "-o", str(tmp_path / "net"), "--target", "x86-64-v4"])
    assert not end.value.code
    capfd.readouterr()
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 8, 8), np.float32))
    monkeypatch.setattr("sepwise.lowering.device.host_flags", lambda: frozenset({"sse4_2"}))
    expect_refusal(capfd, "avx512f", "run", tmp_path / "net", "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz")
    assert not (tmp_path / "y.npz").exists()


FULL_AT_BYTES = {"export": 1 << 10, "fuse": 1 << 17, "compile": 1 << 17, "run": 1 << 17}
"""Larger files do not fit: the outputs below do not, TVM's and the linker's temporary files do."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of 1 MiB of weights and 256 KiB of output, and its artifact."""
    folder = tmp_path_factory.mktemp("large")
    model = parser.parse_model(
        NETWORK.replace("1, 4,", "1, 256,").replace("1, 8,", "1, 1024,").replace("8, 4, 1", "1024, 256, 1")
    )
    weight = np.random.default_rng(0).standard_normal((1024, 256, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "m.onnx")
    with pytest.raises(SystemExit) as end:
        main(["compile", str(folder / "m.onnx"), "-o", str(folder / "net")])
    assert not end.value.code
    np.save(folder / "x.npy", np.ones((1, 256, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize("verb", FULL_AT_BYTES)
def test_full_disk(verb: str, large: Path, tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT_BYTES[verb], FULL_AT_BYTES[verb]))

    words = {
        "export": ("export", "separable_block", "-o", tmp_path / "out.onnx"),
        "fuse": ("fuse", large / "m.onnx", "-o", tmp_path / "out.onnx"),
        "compile": ("compile", large / "m.onnx", "-o", tmp_path / "out"),
        "run": ("run", large / "net", "--input", f"x={large / 'x.npy'}", "-o", tmp_path / "y.npz"),
    }[verb]
    done = subprocess.run(
        [sys.executable, "-m", "sepwise", *map(str, words)],
        preexec_fn=fill_the_disk,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
