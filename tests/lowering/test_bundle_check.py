"""Bundles are run where they will run: they compute what the emulated artifact computes, and what is wrong is found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.lowering import device
from sepwise.lowering.artifact import Artifact
from sepwise.lowering.bundle import Bundle, bundle, checksum_model, load_bundle, save_manifest, write_bundle
from sepwise.lowering.bundle_check import open_bundle, verify_bundle
from sepwise.lowering.program import Program
from sepwise.passes.convert_input import ImageFormat, convert_input
from sepwise.passes.errors import InputError, SepwiseError

Tensors = dict[str, np.ndarray]
MODEL = {"name": "small", "file": "small.onnx", "sha256": "", "float16": False}
EMULATORS = {"cortex-a72": "qemu-aarch64", "cortex-a7": "qemu-arm", "cortex-m7": None}


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("target", "weights"),
    [("host", "separate"), ("cortex-a72", "inside"), ("cortex-a7", "separate"), ("cortex-m7", "inside"), ("cortex-m7", "separate")],
)
def test_a_bundle_computes_the_bits_of_its_artifact(
    target: str, weights: str, c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path
) -> None:
    emulator = EMULATORS.get(target)
    if emulator is not None and device.get(target).emulated and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is missing: apt-get install qemu-user")
    program = c_program(target)
    made = write_bundle(program, device.get(target), tmp_path / "net", name="net", model=MODEL, weights=weights)
    inputs = {name: c_program_tensors[name] for name in ("x", "shift")}
    with open_bundle(made) as runner, Artifact(program) as artifact:
        found, wanted = runner.run(inputs), artifact.run(**inputs)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert (tmp_path / "net" / "libnet.so").exists() == (target != "cortex-m7")


def test_inputs_that_do_not_fit(c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path) -> None:
    made = write_bundle(c_program(), device.get("host"), tmp_path / "net", name="net", model=MODEL)
    x, shift = c_program_tensors["x"], c_program_tensors["shift"]
    with open_bundle(made) as runner:
        with pytest.raises(InputError, match=r"Inputs x: bundle 'net' takes x float32\[1,6,5,7\], shift float32\[1,6\]"):
            runner.run({"x": x})
        with pytest.raises(InputError, match=r"Input 'x': found float64\[1,6,5,7\], bundle 'net' takes"):
            runner.run({"x": x.astype(np.float64), "shift": shift})


@pytest.mark.parametrize("target", ["host", "cortex-m7"])
def test_weights_of_another_build_are_not_run(
    target: str, c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path
) -> None:
    made = write_bundle(c_program(target), device.get(target), tmp_path / "net", name="net", model=MODEL, weights="separate")
    weights = tmp_path / "net" / "net.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    inputs = {name: c_program_tensors[name] for name in ("x", "shift")}
    with open_bundle(made) as runner:
        if target == "host":  # its example checks them; a bare core's caller does
            with pytest.raises(SepwiseError, match="ended with status 1: the weights are not those of this network"):
                runner.run(inputs)
        else:
            assert not np.array_equal(runner.run(inputs)["z"], c_program_tensors["z"])


def test_a_bundle_for_another_processor_is_refused(c_program: Callable[..., Program], tmp_path: Path) -> None:
    made = write_bundle(c_program(), device.get("host"), tmp_path / "net", name="net", model=MODEL)
    made.manifest["device"]["flags"].append("of_the_future")
    with pytest.raises(InputError, match="this machine lacks of_the_future"), open_bundle(made):
        pass


@pytest.fixture(scope="module")
def block(zoo_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    return path, bundle(path, tmp_path_factory.mktemp("bundle") / "block", name="block")


def test_a_right_bundle_passes_and_its_manifest_says_so(block: tuple[Path, Bundle]) -> None:
    path, made = block
    verdict = verify_bundle(made, path)
    assert verdict.passed
    assert [(check.scope, check.name) for check in verdict.checks] == [("model", path.stem)]
    assert verdict.notes == ("Run: the example, natively.",)
    noted = load_bundle(made.folder).manifest["verification"]
    assert noted == {
        "passed": True,
        "worst_ratio": verdict.worst_ratio,
        "method": "the example, natively",
        "inputs": list(verdict.inputs),
    }
    assert sorted(path.name for path in made.folder.iterdir()) == sorted([*made.manifest["files"], "manifest.json"])


def test_given_inputs(block: tuple[Path, Bundle]) -> None:
    path, made = block
    verdict = verify_bundle(made, path, inputs={"x": np.ones((1, 8, 16, 16), np.float32)})
    assert verdict.passed
    assert verdict.inputs == ("given",)


def test_a_folder_that_cannot_be_written_is_verified_all_the_same(
    block: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path, made = block
    monkeypatch.setattr("sepwise.lowering.bundle_check.save_manifest", fail)
    verdict = verify_bundle(made, path, inputs={"x": np.ones((1, 8, 16, 16), np.float32)})
    assert verdict.passed
    assert verdict.notes[-1].endswith("its manifest was left as it is: Permission denied.")


@pytest.mark.parametrize("target", ["cortex-a72", "cortex-a7"])
def test_without_qemu_the_library_runs_in_unicorn(
    target: str, c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not device.get(target).emulated:
        pytest.skip("this machine may run the target itself; nothing installs another one")
    made = write_bundle(c_program(target), device.get(target), tmp_path / "net", name="net", model=MODEL, weights="separate")
    monkeypatch.setenv("PATH", "")
    with open_bundle(made) as runner:
        assert runner.method == f"the library, in unicorn as {target}"
        found = runner.run({name: c_program_tensors[name] for name in ("x", "shift")})
    for name, array in found.items():
        np.testing.assert_array_equal(array, c_program_tensors[name])


CAMERA = ImageFormat(layout="NHWC", element_type="uint8", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("target", "image"),
    [("host", CAMERA), ("cortex-a72", CAMERA), ("cortex-m7", CAMERA), ("host", ImageFormat(layout="NHWC"))],
)
def test_images_are_compared_with_the_model_as_it_came_in(
    target: str, image: ImageFormat, image_network: Path, tmp_path: Path
) -> None:
    emulator = EMULATORS.get(target)
    if emulator is not None and device.get(target).emulated and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is missing: apt-get install qemu-user")
    made = bundle(image_network, tmp_path / "net", target=target, name="net", image=image)
    verdict = verify_bundle(made, image_network)
    assert verdict.passed, verdict.checks
    graph = [check for check in verdict.checks if check.scope == "graph"]
    assert [check.name for check in graph] == ["convert_input: y", "convert_input: z"]
    assert [check.scope for check in verdict.checks] == ["graph", "graph", "model"]
    assert all(check.worst_ratio is not None for check in graph)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("mean", (0.485, 0.456, 0.4061)), ("mean", (0.406, 0.456, 0.485)), ("std", (0.229, 0.2241, 0.225))],
)
def test_a_bundle_of_another_normalisation_fails(field: str, wrong: tuple[float, ...], image_network: Path, tmp_path: Path) -> None:
    other = replace(CAMERA, **{field: wrong})
    made = bundle(image_network, tmp_path / "net", name="net", image=other)
    made.manifest["model"]["image"] = CAMERA.to_json() | {"inputs": ["x"]}
    verdict = verify_bundle(made, image_network)
    assert [check.scope for check in verdict.checks if not check.passed] == ["model"]


def test_a_wrong_rewrite_of_the_input_is_found(image_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(model: ir.Model, image: ImageFormat) -> ir.Model:
        return convert_input(model, replace(image, mean=(0.485, 0.456, 0.4061)))

    for module in ("bundle", "bundle_check"):
        monkeypatch.setattr(f"sepwise.lowering.{module}.convert_input", convert)
    made = bundle(image_network, tmp_path / "net", name="net", image=CAMERA)
    verdict = verify_bundle(made, image_network)
    assert [check.scope for check in verdict.checks if not check.passed] == ["graph", "graph"]


def test_another_model_is_refused(block: tuple[Path, Bundle], tmp_path: Path) -> None:
    path, made = block
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: is not the file that .* was made of, separable_block\.onnx with the SHA-256"):
        verify_bundle(made, tmp_path / "m.onnx")


def test_a_bundle_of_another_weight_fails(zoo_file: Callable[..., Path], tmp_path: Path) -> None:
    path = zoo_file("separable_block", shape=(1, 8, 16, 16))
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    made = bundle(tmp_path / "wrong.onnx", tmp_path / "net", name="net")
    made.manifest["model"]["sha256"] = checksum_model(path)
    save_manifest(made.folder, made.manifest)
    verdict = verify_bundle(load_bundle(made.folder), path)
    assert not verdict.passed
    assert json.loads((made.folder / "manifest.json").read_text())["verification"]["passed"] is False
