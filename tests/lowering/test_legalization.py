"""Floored remainders: those of floats to the last bit, infinities and signs of zero included."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sepwise.lowering import build

SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 2.5, -7.25, 1e30, -1e-40, np.inf, -np.inf, np.nan]


def remainder(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """`Mod(x, y)` through a Program, y constant; and the nodes of the tail."""
    kind = {"float32": "float", "float64": "double", "int32": "int32"}[x.dtype.name]
    shape, other = (",".join(map(str, array.shape)) for array in (x, y))
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 13]>
    net ({kind}[{shape}] x, {kind}[{other}] y) => ({kind}[a,b] z) {{ z = Mod (x, y) }}""")
    with build.compile(ir.from_proto(model)) as made:
        return made.run(x=x, y=y)["z"], tuple(made.report["tail"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_remainders_of_floats_are_exact(dtype: str) -> None:
    rng = np.random.default_rng(0)
    special = np.array(SPECIAL, dtype)
    drawn = (rng.standard_normal((200, 1)) * 10.0 ** rng.uniform(-20, 20, (200, 1))).astype(dtype)
    with np.errstate(all="ignore"):
        for x, y in ((special[:, None], special[None]), (drawn, np.array([[0.1, -3, 7e-5]], dtype))):
            expected = np.mod(x, y)
            found, tail = remainder(x, y)
            np.testing.assert_array_equal(found, expected)
            assert np.array_equal(np.signbit(found)[~np.isnan(found)], np.signbit(expected)[~np.isnan(expected)])
            assert bool(tail) == (dtype == "float64")  # which calls the C library


def test_remainders_of_integers_are_floored() -> None:
    x, y = np.arange(-40, 40, dtype=np.int32)[:, None], np.array([[7, -3]], np.int32)
    found, tail = remainder(x, y)
    np.testing.assert_array_equal(found, np.mod(x, y))
    assert tail == ()

