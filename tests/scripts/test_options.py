import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepwise.cli import app
from sepwise.options import (
    AsJson,
    Compilation,
    ImageAxes,
    ImageElement,
    read_image,
    read_inputs,
    read_shape,
    read_shapes,
    with_options_of_first,
)
from sepwise.passes.convert_input import ImageFormat
from sepwise.passes.errors import InputError


def test_shapes() -> None:
    assert read_shapes(None) is None
    assert read_shapes(["1,3,8,8"]) == (1, 3, 8, 8)
    assert read_shapes(["x=1,3,8,8"]) == {"x": (1, 3, 8, 8)}
    assert read_shapes(["x=1,3", "a=b=2"]) == {"x": (1, 3), "a=b": (2,)}


@pytest.mark.parametrize("text", ["", "1,,2", "1,0", "1,-3", "1.5", "one", "²"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(InputError, match="positive whole numbers"):
        read_shape(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["1,2", "3,4"], "needs its name"), (["x=1", "x=2"], "already has a shape"), (["=1"], "needs its name")],
)
def test_what_are_no_shapes(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_shapes(texts)


def test_formats_of_images() -> None:
    assert read_image(None, None, None, None, None) is None
    assert read_image(ImageAxes.NHWC, None, None, None, ["x", "y"]) == ImageFormat(layout="NHWC", inputs=("x", "y"))
    numbers = read_image(None, ImageElement.UINT8, "0.5", "1e-1,0.2, .3", None)
    assert numbers == ImageFormat(element_type="uint8", mean=(0.5,), std=(0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, "0.5", None, None), "--mean: is about images in another format. Give --input-type or --input-layout"),
        ((None, None, None, None, ["x"]), "--image: is about images in another format"),
        ((ImageAxes.NHWC, None, None, "0.5", None), "Mean and std: are what bytes are normalised with"),
        ((None, ImageElement.UINT8, None, "a,b", None), "--std a,b: needed are numbers between commas, as in 0.485,0.456,0.406"),
    ],
)
def test_what_are_no_formats_of_images(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(*given)


def test_inputs_from_npy_and_npz(tmp_path: Path) -> None:
    x, y = np.arange(3.0), np.ones((2, 2), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    assert read_inputs([f"x={tmp_path / 'x.npy'}"]).keys() == {"x"}
    both = read_inputs([str(tmp_path / "both.npz")])
    np.testing.assert_array_equal(both["x"], x)
    np.testing.assert_array_equal(both["y"], y)


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3.0))
    np.savez(tmp_path / "x.npz", x=np.arange(3.0))
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError, match="needs its input's name"):
        read_inputs([str(tmp_path / "x.npy")])
    with pytest.raises(InputError, match="without a name"):
        read_inputs([f"x={tmp_path / 'x.npz'}"])
    with pytest.raises(InputError, match=r"numpy\.save"):
        read_inputs([f"x={tmp_path / 'text'}"])
    np.savez(tmp_path / "named.npz", x=np.arange(3.0), y=np.arange(3.0))
    with pytest.raises(InputError, match="x is given twice"):
        read_inputs([f"x={tmp_path / 'x.npy'}", str(tmp_path / "named.npz")])


def test_what_is_asked_of_the_verbs() -> None:
    assert Compilation("m", Path("d")).arguments() == {
        "output": Path("d"), "target": "host", "shapes": None, "threads": 1, "float16": False, "image": None,
        "database": None,
    }  # fmt: skip
    asked = Compilation("m", Path("d"), shape=["x=1,3"], input_layout=ImageAxes.NHWC, image=["x"])
    assert asked.arguments()["shapes"] == {"x": (1, 3)}
    assert asked.arguments()["image"] == ImageFormat(layout="NHWC", inputs=("x",))


def test_options_of_the_first_parameter() -> None:
    taken: list[object] = []

    @with_options_of_first
    def command(asked: Compilation, depth: int = 2, as_json: AsJson = False) -> None:
        """Does it."""
        taken.extend([asked, depth, as_json])

    parameters = inspect.signature(command).parameters
    assert list(parameters) == [*(field.name for field in fields(Compilation)), "depth", "as_json"]
    assert parameters["output"].default is inspect.Parameter.empty
    assert (parameters["target"].default, parameters["depth"].default) == ("host", 2)
    assert command.__doc__ == "Does it."
    command(**{field.name: None for field in fields(Compilation)} | {"model": "m", "threads": 3}, depth=4)
    assert taken == [Compilation(*("m", *[None] * 3, 3, *[None] * 6)), 4, False]


@pytest.mark.parametrize("name", ["compile", "bundle"])
def test_subcommands_that_compile_have_all_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    app(args=[name, "--help"], standalone_mode=False)
    said = capsys.readouterr().out
    for option in ("--output", "--target", "--shape", "--threads", "--input-layout", "--mean", "--image", "--json"):
        assert option in said
