"""The Python API: every name resolves, lazily, and does what the command of its name does."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import sepwise
from sepwise.passes.errors import InputError

LAZY = """
import sys, sepwise
assert not {"numpy", "onnx", "torch", "tvm"} & set(sys.modules), "import sepwise loads something heavy"
sepwise.InputError, sepwise.compile, sepwise.models
assert not {"onnx", "torch", "tvm"} & set(sys.modules), "looking at the verbs loads something heavy"
"""


def test_import_loads_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LAZY], check=True)


@pytest.mark.parametrize("name", sepwise.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(sepwise, name)
    if inspect.isfunction(value):
        assert inspect.getdoc(value)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_verb'"):
        _ = sepwise.no_such_verb


def test_targets_name_the_host_first() -> None:
    first, *others = sepwise.targets()
    assert (first.name, first.method) == ("host", "native")
    known = {target.name: (target.flash_bytes, target.ram_bytes) for target in (first, *others)}
    assert known["cortex-m7"] == (512 << 10, 128 << 10)
    assert known["cortex-a72"] == known["host"] == (None, None)


def test_facts_come_with_their_values_and_sources() -> None:
    targets = sepwise.targets()
    cores = {target.name: target.core for target in targets}
    assert cores["cortex-m7"] is None
    for target in targets:
        assert {"fma_ports", "issue_width", "l2_bytes_per_cycle"} <= (set(target.to_json()) & set(target.sources))
        if target.core is not None:
            assert set(target.core) == {*target.core["sources"], "sources"}
    assert cores["cortex-a53"] is not None
    assert cores["cortex-a53"]["streams"] == 2


def test_export_and_fuse(tmp_path: Path) -> None:
    path = sepwise.export("separable_block", tmp_path / "m.onnx", shape=(1, 8, 16, 16))
    fusion = sepwise.fuse(path, tmp_path / "fused.onnx")
    assert fusion.model == "m"
    assert any(each.fired for each in fusion.passes)
    fused = onnx.load(tmp_path / "fused.onnx")
    assert "sepwise" in {entry.domain for entry in fused.opset_import}
    sepwise.fuse(path, tmp_path / "inlined.onnx", inline=True)
    assert not onnx.load(tmp_path / "inlined.onnx").functions


def test_what_export_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        sepwise.export("separable_block", tmp_path / "no" / "m.onnx")
    with pytest.raises(InputError, match="mobilenet_v99"):
        sepwise.export("mobilenet_v99", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_compile_run_and_load(zoo_file: Callable[..., Path], tmp_path: Path) -> None:
    import numpy as np

    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    x = np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)
    artifact = sepwise.compile(path, output=tmp_path / "net")
    outputs = artifact.run(x=x)
    for again in (
        sepwise.run(artifact, {"x": x}),
        sepwise.run(tmp_path / "net", {"x": x}),
        sepwise.load(tmp_path / "net").run(x=x),
    ):
        assert again.keys() == outputs.keys()
        for name, array in outputs.items():
            np.testing.assert_array_equal(again[name], array)


def test_verify(zoo_file: Callable[..., Path]) -> None:
    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    assert sepwise.verify(path).passed
    assert sepwise.verify(path, against=path).passed
