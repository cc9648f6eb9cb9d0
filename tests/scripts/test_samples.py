from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sepwise.samples import CLASSIFIER, DETECTOR, RECOGNISER, TEXT_LINES, draw_line


def test_lines_are_drawn_as_the_networks_take_them() -> None:
    line = draw_line("text")
    assert line.shape == (1, 3, 48, 192)
    assert line.dtype == np.float32
    assert (line.min(), line.max()) == (-1, 1)
    assert not line[..., -1].any()
    assert draw_line("text", width=320).shape == (1, 3, 48, 320)


def test_turned_lines_are_the_same_picture_turned() -> None:
    used = 96
    upright, turned = (draw_line("m", turned=way, width=used) for way in (False, True))
    columns = upright[0].any(axis=(0, 1)).nonzero()[0].max() + 1
    np.testing.assert_array_equal(turned[..., :columns], upright[:, :, ::-1, columns - 1 :: -1][..., :columns])


def test_three_trained_networks(trained_networks: dict[str, Path]) -> None:
    assert set(trained_networks) == {CLASSIFIER, DETECTOR, RECOGNISER}
    assert all(path.stat().st_size > 500_000 for path in trained_networks.values())


@pytest.mark.parametrize("turned", [False, True])
def test_onnx_runtime_tells_the_direction_of_every_line(trained_networks: dict[str, Path], turned: bool) -> None:
    session = onnxruntime.InferenceSession(trained_networks[CLASSIFIER], providers=["CPUExecutionProvider"])
    for text in TEXT_LINES:
        (scores,) = session.run(None, {"x": draw_line(text, turned=turned)})
        assert int(scores.argmax()) == int(turned), text
