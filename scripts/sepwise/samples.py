"""Real input: trained networks, and pictures of text for them to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CLASSIFIER", "DETECTOR", "RECOGNISER", "TEXT_LINES", "WHEEL", "draw_line", "fetch_networks"]

WHEEL: Final = "rapidocr-onnxruntime==1.4.4"
"""The wheel on PyPI that ships the networks; only its files are used, the package is not installed."""

CLASSIFIER: Final = "ch_ppocr_mobile_v2.0_cls_infer"
"""Says whether a line of text, (n, 3, 48, 192), is upright (0) or turned by 180 degrees (1)."""

DETECTOR: Final = "ch_PP-OCRv4_det_infer"
"""Finds text in an image, (n, 3, h, w) with sides that are multiples of 32."""

RECOGNISER: Final = "ch_PP-OCRv4_rec_infer"
"""Reads a line of text, (n, 3, 48, w)."""

TEXT_LINES: Final = ("Separable convolutions", "Exactly the same numbers", "fused and lowered", "Invoice No. 20417")
"""Lines whose direction ONNX Runtime tells with the classifier as it is shipped."""

_MARGIN_PIXELS: Final = (8, 6)


def fetch_networks(folder: Path) -> dict[str, Path]:
    """Takes the trained networks out of their wheel, downloaded once with pip.

    Args:
        folder: Where they are kept.

    Returns:
        Files by the networks' names.

    Raises:
        InputError: The wheel cannot be downloaded.
    """
    import subprocess
    import sys
    import tempfile
    import zipfile

    from sepwise.files import new_file
    from sepwise.passes.errors import InputError

    files = {name: folder / f"{name}.onnx" for name in (CLASSIFIER, DETECTOR, RECOGNISER)}
    if all(file.exists() for file in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sepwise-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", temporary]
        if subprocess.run([*command, WHEEL], capture_output=True, check=False).returncode:
            raise InputError(f"{WHEEL}: pip could not download it. Check the network and the disk, then try again.")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, file in files.items():
                with new_file(file) as partial:
                    partial.write_bytes(archive.read(f"rapidocr_onnxruntime/models/{name}.onnx"))
    return files


def draw_line(text: str, *, turned: bool = False, width: int = 192) -> np.ndarray:
    """Draws a line of text as the classifier and the recogniser take it.

    Args:
        text: The line.
        turned: Whether to turn it by 180 degrees.
        width: Of the result in pixels; a longer line is squeezed, a shorter one padded with zeros.

    Returns:
        (1, 3, 48, width) float32 in -1 to 1, blue first.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(32)
    left, top, right, bottom = font.getbbox(text)
    margin_x, margin_y = _MARGIN_PIXELS
    image = Image.new("RGB", (round(right - left) + 2 * margin_x, round(bottom - top) + 2 * margin_y), "white")
    ImageDraw.Draw(image).text((margin_x - left, margin_y - top), text, fill="black", font=font)
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_180)
    used = min(width, round(48 * image.width / image.height))
    pixels = np.asarray(image.resize((used, 48), Image.Resampling.BILINEAR), np.float32)
    line = np.zeros((1, 3, 48, width), np.float32)
    line[0, :, :, :used] = pixels[..., ::-1].transpose(2, 0, 1) / 127.5 - 1
    return line
