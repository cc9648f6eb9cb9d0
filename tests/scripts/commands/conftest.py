"""A small network, and a way to give a command its words and read its answer."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

NETWORK = """<ir_version: 10, opset_import: ["" : 18]> net (float[n,3,6,6] x) => (float[n,4,6,6] y) {
  [dw] a = Conv <group = 3, pads = [1,1,1,1]> (x, w) [pw] b = Conv (a, v) [act] y = Relu (b)
}"""


class Answer(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Gives a function that runs the command line in this process."""
    from sepwise.cli import main

    def run(*words: object) -> Answer:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        captured = capfd.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A depthwise and a pointwise convolution and a ReLU; the batch is open."""
    model = parser.parse_model(NETWORK)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (3, 1, 3, 3)), ("v", (4, 3, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    onnx.save(model, path)
    return path
