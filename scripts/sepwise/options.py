"""The options that several subcommands share, and how their texts are read."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from sepwise.passes.convert_input import ImageFormat

__all__ = [
    "AsJson",
    "Compilation",
    "Database",
    "Float16",
    "Key",
    "Model",
    "Output",
    "Rpc",
    "Shape",
    "Target",
    "Threads",
    "Timeout",
    "Tracker",
    "read_image",
    "read_inputs",
    "read_shape",
    "read_shapes",
    "with_options_of_first",
]


class ImageElement(StrEnum):
    """Element types of images other than the network's own."""

    UINT8 = "uint8"


class ImageAxes(StrEnum):
    """Orders of the axes of images."""

    NCHW = "NCHW"
    NHWC = "NHWC"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or the name of a zoo network.", show_default=False)]
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="[NAME=]N,C,H,W", help="Shape of an input; again for each input.", show_default=False),
]
Target = Annotated[str, typer.Option("--target", help="One of those that `sepwise targets` lists.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Worker threads.")]
Float16 = Annotated[
    bool, typer.Option("--float16", help="Compute in float16 what does not need float32; for cores that have float16 arithmetic.")
]
InputType = Annotated[
    ImageElement | None,
    typer.Option("--input-type", help="Take images as bytes u and compute (u / 255 - mean) / std inside.", show_default=False),
]
InputLayout = Annotated[
    ImageAxes | None, typer.Option("--input-layout", help="Take images in this order of axes.", show_default=False)
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="A,B,C", help="Of images from 0 to 1, with --input-type; one number or one a channel. 0 where absent."
    ),
]
Std = Annotated[str | None, typer.Option("--std", metavar="A,B,C", help="Likewise. 1 where absent.")]
Image = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="NAME", help="An input that is an image; again for each. The only one of rank 4 if absent."),
]
Rpc = Annotated[
    str | None,
    typer.Option("--rpc", metavar="HOST:PORT", help="Run on the board whose RPC server listens there; see `sepwise server`."),
]
Tracker = Annotated[
    str | None, typer.Option("--tracker", metavar="HOST:PORT", help="Run on a board that this RPC tracker has free, with --key.")
]
Key = Annotated[str | None, typer.Option("--key", metavar="K", help="Which of a tracker's boards.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="How long a board may take for one answer. 60 where absent.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)]
Database = Annotated[
    Path | None, typer.Option("--database", metavar="DB", help="Records that `sepwise tune` has made.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True, slots=True)
class Compilation:
    """What is compiled for what: the options of each subcommand that makes a folder of a network."""

    model: Model
    output: Output
    target: Target = "host"
    shape: Shape = None
    threads: Threads = 1
    float16: Float16 = False
    input_type: InputType = None
    input_layout: InputLayout = None
    mean: Mean = None
    std: Std = None
    image: Image = None
    database: Database = None

    def arguments(self) -> dict[str, Any]:
        """Reads the texts.

        Returns:
            What the verbs of `sepwise.api` take besides the model, by keyword.

        Raises:
            InputError: A text cannot be read, or an option says something of nothing.
        """
        return {
            "output": self.output,
            "target": self.target,
            "shapes": read_shapes(self.shape),
            "threads": self.threads,
            "float16": self.float16,
            "image": read_image(self.input_layout, self.input_type, self.mean, self.std, self.image),
            "database": self.database,
        }


def with_options_of_first(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a subcommand the fields of its first parameter as options of its own, in front of its others.

    Args:
        command: Its first parameter is annotated with a dataclass such as `Compilation`, the others have defaults.

    Returns:
        What typer is given: it takes all by keyword, and makes the dataclass of what is its own.
    """
    hints = get_type_hints(command, include_extras=True)
    first, *others = inspect.signature(command).parameters.values()
    shared = hints[first.name]
    names = {field.name for field in fields(shared)}

    @functools.wraps(command)
    def take_all(**given: object) -> None:
        own = {name: given[name] for name in given.keys() - names}
        command(shared(**{name: given[name] for name in names}), **own)

    hints |= get_type_hints(shared, include_extras=True)
    parameters = (*inspect.signature(shared).parameters.values(), *others)
    signature = inspect.Signature([each.replace(annotation=hints[each.name]) for each in parameters])
    take_all.__signature__ = signature  # type: ignore[attr-defined]
    return take_all


def read_shape(text: str) -> tuple[int, ...]:
    """Reads a shape such as `1,3,224,224`.

    Args:
        text: Positive integers between commas.

    Returns:
        The dimensions.

    Raises:
        InputError: The text is something else.
    """
    from sepwise.passes.errors import InputError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {text}: needed are positive whole numbers between commas, as in 1,3,224,224.")
    return tuple(int(part) for part in parts)


def read_shapes(texts: Sequence[str] | None) -> Mapping[str, Sequence[int]] | Sequence[int] | None:
    """Reads the values of `--shape`: one shape without a name, or any number with their inputs' names.

    Args:
        texts: What was given.

    Returns:
        A shape, shapes by input name, or None where nothing was given.

    Raises:
        InputError: A text is not a shape, or a name is missing or repeated.
    """
    from sepwise.passes.errors import InputError

    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return read_shape(texts[0])
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, dimensions = text.rpartition("=")
        if not separator or not name:
            raise InputError(f"--shape {text}: with several inputs each needs its name, as in x=1,3,224,224.")
        if name in shapes:
            raise InputError(f"--shape {text}: input '{name}' already has a shape.")
        shapes[name] = read_shape(dimensions)
    return shapes


def read_image(
    layout: ImageAxes | None, element_type: ImageElement | None, mean: str | None, std: str | None, inputs: Sequence[str] | None
) -> ImageFormat | None:
    """Reads the options that say what a network is given for an image.

    Args:
        layout: Order of its axes.
        element_type: What its elements are.
        mean: Numbers between commas.
        std: Likewise.
        inputs: Names of the inputs that are images.

    Returns:
        The format, or None where it is the network's own.

    Raises:
        InputError: A text holds no numbers, or an option says something of nothing.
    """
    from sepwise.passes.convert_input import ImageFormat
    from sepwise.passes.errors import InputError

    if layout is None and element_type is None:
        given = {"--mean": mean, "--std": std, "--image": inputs}
        for option, value in given.items():
            if value:
                raise InputError(f"{option}: is about images in another format. Give --input-type or --input-layout with it.")
        return None
    numbers = {name: _read_numbers(name, text) for name, text in (("mean", mean), ("std", std)) if text is not None}
    return ImageFormat(
        layout=None if layout is None else layout.value,
        element_type=None if element_type is None else "uint8",
        inputs=tuple(inputs or ()),
        **numbers,
    )


def _read_numbers(name: str, text: str) -> tuple[float, ...]:
    """Reads numbers between commas."""
    from sepwise.passes.errors import InputError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} {text}: needed are numbers between commas, as in 0.485,0.456,0.406.") from None


def read_inputs(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the values of `--input`: `NAME=FILE.npy`, or `FILE.npz` with all inputs by name.

    Args:
        texts: What was given.

    Returns:
        Arrays by input name.

    Raises:
        InputError: A text or a file cannot be read so, or an input is given twice.
    """
    from sepwise.files import read_arrays
    from sepwise.passes.errors import InputError

    inputs: dict[str, np.ndarray] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if separator and name and not Path(text).is_file():
            arrays = read_arrays(Path(file))
            if set(arrays) != {""}:
                raise InputError(f"--input {text}: {file} holds several arrays; give the npz without a name.")
            arrays = {name: arrays[""]}
        else:
            arrays = read_arrays(Path(text))
            if "" in arrays:
                raise InputError(f"--input {text}: an npy file needs its input's name, as in x={text}.")
        if twice := arrays.keys() & inputs.keys():
            raise InputError(f"--input {text}: {', '.join(sorted(twice))} is given twice.")
        inputs |= arrays
    return inputs
