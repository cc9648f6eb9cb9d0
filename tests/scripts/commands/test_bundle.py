import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepwise import api
from sepwise.passes.convert_input import ImageFormat

FIELDS = ["name", "model", "target", "records_used", "code_bytes", "weight_bytes", "arena_bytes", "arena_lower_bound_bytes", "files"]


@pytest.fixture(scope="module")
def made(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small network, its model beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copy(network, folder)
    api.bundle(folder / network.name, folder / "net", shapes=(1, 3, 6, 6))
    return folder / "net"


def test_bundle_prints_one_json_object(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    words = ("--shape", "1,3,6,6", "--name", "tiny", "--weights", "separate", "--target", "cortex-a72")
    status, out, _ = command("bundle", network, "-o", folder, *words, "--json")
    assert status == 0
    report = json.loads(out)
    assert list(report) == FIELDS
    assert (report["name"], report["model"], report["target"]) == ("tiny", "net", "cortex-a72")
    assert {"libtiny.a", "libtiny.so", "tiny.h", "tiny.hpp", "tiny.py", "tiny.bin"} < set(report["files"])
    assert report["arena_lower_bound_bytes"] <= report["arena_bytes"]


def test_bundle_for_people(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    status, out, _ = command("bundle", network, "-o", tmp_path / "lib", "--shape", "1,3,6,6")
    assert status == 0
    assert out.splitlines()[-1].endswith(f"libnet.so, net.h, net.hpp, net.py, README.md -> {tmp_path / 'lib'}")
    assert "arena" in out


def test_options_are_passed_on(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, network: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    class Made:
        def to_json(self) -> dict[str, str]:
            return {"name": "net"}

    def bundle(model: str, output: Path, **options: Any) -> Made:
        asked.update(model=model, output=output, **options)
        return Made()

    monkeypatch.setattr(api, "bundle", bundle)
    words = ("--target", "cortex-a76", "--threads", "2", "--shape", "x=1,3,6,6", "--float16", "--name", "n", "--json")
    status, out, _ = command("bundle", network, "-o", tmp_path / "d", *words)
    assert (status, json.loads(out)) == (0, {"name": "net"})
    assert asked == {
        "model": str(network),
        "output": tmp_path / "d",
        "target": "cortex-a76",
        "name": "n",
        "weights": "inside",
        "shapes": {"x": (1, 3, 6, 6)},
        "threads": 2,
        "float16": True,
        "image": None,
        "database": None,
    }
    words = ("--input-type", "uint8", "--input-layout", "NHWC", "--mean", "0.5,0.4,0.3", "--std", "0.25", "--image", "x", "--json")
    assert command("bundle", network, "-o", tmp_path / "d", *words).status == 0
    assert asked["image"] == ImageFormat("NHWC", "uint8", (0.5, 0.4, 0.3), (0.25,), ("x",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "z80"), "Target 'z80': unknown"),
        (("--name", "my-net"), "Name 'my-net': needed is a C identifier"),
        (("--input-type", "uint8", "--mean", "0.5,0.5"), "Input 'x': the mean has 2 numbers, and it has 3 channels"),
        (("--name", "while"), "Name 'while': is a word of C or C++"),
        (("--shape", "1,3,6"), "x"),
        (("--weights", "elsewhere"), "--weights"),
        (("--float16", "--target", "cortex-a72"), "has no float16 arithmetic"),
    ],
)
def test_bad_options(
    command: Callable[..., Any], network: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    shape = () if "--shape" in words else ("--shape", "1,3,6,6")
    status, out, err = command("bundle", network, "-o", tmp_path / "lib", *shape, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_places(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    words = ("--shape", "1,3,6,6")
    status, _, err = command("bundle", network, "-o", tmp_path / "mine", *words)
    assert status == 2
    reason = "holds no manifest.json, so it is no bundle"
    assert f"mine: exists and is no unchanged bundle ({reason}); choose another place or remove it." in err
    status, _, err = command("bundle", network, "-o", tmp_path / "none" / "lib", *words)
    assert status == 2
    assert "does not exist" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "diary.txt"]


def test_verify_finds_the_model_beside_the_bundle(command: Callable[..., Any], made: Path) -> None:
    status, out, _ = command("verify", "--bundle", made, "--json")
    assert status == 0
    verdict = json.loads(out)
    assert (verdict["model"], verdict["target"], verdict["passed"]) == ("net", "host", True)
    assert [check["scope"] for check in verdict["checks"]] == ["model"]
    assert json.loads((made / "manifest.json").read_text())["verification"]["passed"] is True


def test_verify_with_the_model_and_inputs(command: Callable[..., Any], made: Path, network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 3, 6, 6), np.float32))
    status, out, _ = command("verify", network, "--bundle", made, "--input", tmp_path / "x.npy", "--html", tmp_path / "r.html")
    assert status == 0
    assert out.splitlines()[-1] == "passed"
    assert (tmp_path / "r.html").exists()


def test_verify_without_the_model(command: Callable[..., Any], made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "alone")
    status, _, err = command("verify", "--bundle", folder)
    assert status == 2
    assert "its model net.onnx is neither in it, beside it, nor in the current folder. Give it, as in" in err


def test_images_as_cameras_give_them(command: Callable[..., Any], network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    words = ("--shape", "1,3,6,6", "--input-type", "uint8", "--input-layout", "NHWC", "--mean", "0.485,0.456,0.406", "--std", "0.2")
    assert command("bundle", network, "-o", folder, *words).status == 0
    (given,) = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert (given["dtype"], given["shape"]) == ("uint8", [1, 6, 6, 3])
    status, out, _ = command("verify", network, "--bundle", folder, "--json")
    assert status == 0
    assert [(check["scope"], check["name"]) for check in json.loads(out)["checks"]] == [("graph", "convert_input: y"), ("model", "net")]
    np.save(tmp_path / "x.npy", np.full((1, 6, 6, 3), 200, np.uint8))
    assert command("verify", network, "--bundle", folder, "--input", tmp_path / "x.npy").status == 0


@pytest.mark.parametrize("words", [("--target", "cortex-a72"), ("--threads", "2"), ("--bisect",), ("--against", "b.onnx"), ("--float16",)])
def test_verify_refuses_what_a_bundle_has_decided(command: Callable[..., Any], made: Path, words: tuple[str, ...]) -> None:
    status, _, err = command("verify", "--bundle", made, *words)
    assert status == 2
    assert f"{words[0]}: a bundle is verified as it was made" in err


def test_verify_needs_a_model_or_a_bundle(command: Callable[..., Any]) -> None:
    status, _, err = command("verify")
    assert status == 2
    assert "Give an ONNX file or a zoo name, or a bundle with --bundle" in err
