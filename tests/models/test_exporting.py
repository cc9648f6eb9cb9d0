"""The exported files: sound, complete, named, of the asked opset, and computing what torch computes."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from sepwise import models
from sepwise.models import ZooModel
from sepwise.models.opsets import lower_opset
from sepwise.passes.equivalence import compare_execution, execution_sigma
from sepwise.passes.errors import InputError

ZooFile = Callable[..., Path]
ALIKE = {"mobilenet_v1", "mobilenet_v3_large", "efficientnet_lite0", "mnasnet"}
"""Made of the same operators as another one, and each takes the exporter some seconds."""
NAMES = [pytest.param(name, marks=pytest.mark.nightly if name in ALIKE else ()) for name in models.names()]
SIGMAS: dict[tuple[str, tuple[int, ...], float], dict[str, np.ndarray]] = {}
"""What float32 arithmetic explains in the outputs of a network, whose files of all operator sets compute the same."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def small_shape(name: str) -> tuple[int, ...]:
    shape = models.find(name).input_shape
    if name == "ds_cnn":
        return shape
    size = 32 if shape[1] == 3 else min(shape[-1], 8)
    return (2, shape[1], *[size] * (len(shape) - 2))


def check_runs_alike(path: Path, model: ZooModel) -> None:
    """Compares ONNX Runtime, its optimisations off, with torch in float64, within what float32 arithmetic explains."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = torch.randn(model.input_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model.module.double()(x.double())
    model.module.float()
    expected = expected if isinstance(expected, tuple) else (expected,)
    feeds = {model.input_name: x.numpy()}
    assert [value.name for value in session.get_outputs()] == list(model.output_names)
    actual = dict(zip(model.output_names, session.run(None, feeds), strict=True))
    meant = {name: value.numpy() for name, value in zip(model.output_names, expected, strict=True)}
    network = (model.name, model.input_shape, model.width)
    if network not in SIGMAS:
        SIGMAS[network] = execution_sigma(onnx.load(path), feeds)
    check = compare_execution(actual, meant, SIGMAS[network])
    assert check.passed, check


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str, zoo_file: ZooFile) -> None:
    options = {"shape": small_shape(name), "width": 0.25}
    path = zoo_file(name, **options, opset=18)
    model = models.build(name, **options)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)

    norms = [layer for layer in model.module.modules() if isinstance(layer, NORMS)]
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) == len(norms)
    noise = {"Shape", "Expand", "CastLike", "Cast", "Constant", "Identity", "SplitToSequence", "SequenceAt"}
    assert not noise & {node.op_type for node in proto.graph.node}
    convolutions = [layer for layer in model.module.modules() if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    biases = sum(layer.bias is not None for layer in convolutions)
    assert sum(node.op_type == "Conv" and len(node.input) == 3 for node in proto.graph.node) == biases

    (fed,) = proto.graph.input
    assert fed.name == "x"
    assert tuple(axis.dim_value for axis in fed.type.tensor_type.shape.dim) == model.input_shape
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for key, value in model.module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(numpy_helper.to_array(stored[key]), value.numpy())
    check_runs_alike(path, model)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2", "yolov5n_dw"])
def test_nodes_are_named_after_modules(name: str, zoo_file: ZooFile) -> None:
    options = {"shape": small_shape(name), "width": 0.25}
    graph = onnx.load(zoo_file(name, **options, opset=18)).graph
    paths = {path for path, _ in models.build(name, **options).module.named_modules()}
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    for node in graph.node:
        owner, _, last = node.name.rpartition(".")
        assert node.name in paths or (owner in paths and re.fullmatch(rf"{node.op_type}(_\d+)?", last)), node.name
        if len(node.output) == 1 and node.output[0] not in models.find(name).output_names:
            assert node.output[0] == node.name
        if node.op_type in ("Conv", "BatchNormalization"):
            assert node.name in paths


def test_file_tells_nothing_of_the_machine(zoo_file: ZooFile) -> None:
    path = zoo_file("separable_block", shape=(2, 32, 8, 8), width=0.25, opset=18)
    proto = onnx.load(path)
    assert proto.graph.name == "separable_block"
    assert not [*proto.metadata_props, *proto.graph.metadata_props]
    assert all(not node.metadata_props and not node.doc_string for node in proto.graph.node)
    assert os.fsencode(Path(models.__file__).parent) not in path.read_bytes()


def test_export_is_reproducible(tmp_path: Path) -> None:
    model = models.build("separable_block", shape=(1, 4, 8, 8), width=0.25)
    first, second = models.export(model, tmp_path / "a.onnx"), models.export(model, tmp_path / "b.onnx")
    assert first.read_bytes() == second.read_bytes()


def test_export_takes_a_name_or_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = models.build("separable_block", shape=(1, 4, 8, 8), width=0.25, batch=2)
    models.export(model, tmp_path / "a.onnx")
    path = models.export("separable_block", str(tmp_path / "b.onnx"), shape=(1, 4, 8, 8), width=0.25, batch=2)
    assert path == tmp_path / "b.onnx"
    assert path.read_bytes() == (tmp_path / "a.onnx").read_bytes()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_asked_opset_is_written(opset: int, tmp_path: Path) -> None:
    model = models.build("separable_block", shape=(1, 4, 8, 8), width=0.25)
    path = models.export(model, tmp_path / "m.onnx", opset=opset)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", opset)]
    check_runs_alike(path, model)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", NAMES)
def test_old_opset_computes_the_same(name: str, opset: int, zoo_file: ZooFile, tmp_path: Path) -> None:
    """Lowers the file of opset 18 as export does, without another run of the exporter."""
    options = {"shape": small_shape(name), "width": 0.25}
    proto = lower_opset(onnx.load(zoo_file(name, **options, opset=18)), opset)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "m.onnx")
    check_runs_alike(tmp_path / "m.onnx", models.build(name, **options))


@pytest.mark.nightly
@pytest.mark.parametrize("opset", [None, 13, 14, 15, 16, 17, 18, 20, 22, 25])
@pytest.mark.parametrize("name", models.names())
def test_every_opset_at_full_size(name: str, opset: int | None, tmp_path: Path) -> None:
    model = models.build(name)
    path = models.export(model, tmp_path / "m.onnx", opset=opset)
    assert opset is None or [entry.version for entry in onnx.load(path).opset_import] == [opset]
    check_runs_alike(path, model)


@pytest.mark.parametrize("opset", [1, 12, 26, 99])
def test_opset_out_of_range(opset: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"'separable_block': opset {opset} cannot be written; ask for 13 to 25"):
        models.export("separable_block", tmp_path / "m.onnx", shape=(1, 4, 8, 8), opset=opset)
    assert not list(tmp_path.iterdir())


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot write .*m\.onnx: it must be a file in a folder that exists"):
        models.export("separable_block", tmp_path / "nowhere" / "m.onnx", shape=(1, 4, 8, 8))
    with pytest.raises(InputError, match="it must be a file"):
        models.export("separable_block", tmp_path, shape=(1, 4, 8, 8))


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"Cannot write .*m\.onnx: No space left on device"):
        models.export("separable_block", tmp_path / "m.onnx", shape=(1, 4, 8, 8), width=0.25)
    assert not list(tmp_path.iterdir())
