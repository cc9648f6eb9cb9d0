import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence import NETWORK_KINDS, sample_inputs


def drawn(text: str) -> list[tuple[int, int]]:
    """The smallest and the largest number that the input `i` holds on each input set of a network."""
    sets = [sample_inputs(parsed(text), seed, kind)["i"] for seed, kind in enumerate(NETWORK_KINDS)]
    return [(int(each.min()), int(each.max())) for each in sets]


def parsed(text: str, **tables: tuple[int, ...]) -> onnx.ModelProto:
    """A model with constants of some shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in tables.items())
    return model


IMAGE = "({0}[1, 3, 16, 16] i) => (float[1, 3, 16, 16] y) <float scale = {{0.5}}> {{ f = Cast <to = 1> (i) y = Mul (f, scale) }}"


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ("uint8", [(0, 255)] * 3),
        ("int8", [(-128, 127)] * 3),
        ("uint16", [(0, 2), (0, 100), (0, 2**16 - 1)]),
        ("int16", [(0, 2), (-100, 100), (1 - 2**15, 2**15 - 1)]),
        ("int32", [(0, 2), (-100, 100), (-(2**26), 2**26)]),
        ("uint64", [(0, 2), (0, 100), (0, 2**26)]),
    ],
)
def test_data(element: str, expected: list[tuple[int, int]]) -> None:
    assert drawn(IMAGE.format(element)) == expected


def test_integers_that_are_computed_with_do_not_overflow() -> None:
    assert drawn("(int32[9, 9] i) => (int32[9, 9] y) { y = Mul (i, i) }")[-1] == (-(2**12), 2**12)


def test_divisors_are_not_0() -> None:
    low, *_ = zip(*drawn("(int32[9, 9] i, int32[9, 9] x) => (int32[9, 9] y) { y = Div (x, i) }"), strict=True)
    assert min(low) > 0


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather (t, i)",
        "s = Constant <value_ints: ints = [5, 4]> () r = Reshape (i, s) c = Cast <to = 6> (r) y = Gather (t, c)",
        "a = Abs (t) b = Concat <axis = 0> (a, x) y = Gather (b, i)",
        "z = Gather (t, i) y = Gather <axis = 1> (wide, i)",
    ],
)
def test_places_cover_a_table(body: str) -> None:
    """They take every place once before any comes again, whether the table is a constant or computed; of several the shortest."""
    text = f"(int64[20] i, float[10, 2] x) => (float[n, m] y) {{ {body} }}"
    model = parsed(text, t=(50, 2), wide=(3, 60))
    extent = 60 if "Concat" in body else 50
    sets = [sample_inputs(model, seed, kind)["i"] for seed, kind in enumerate(NETWORK_KINDS)]
    assert {0, extent - 1} <= set(sets[0].tolist())
    assert len(set(np.concatenate(sets).tolist())) == min(60, extent)
    assert max(each.max() for each in sets) < extent


@pytest.mark.parametrize(
    "body",
    [
        "y = Tile (x, i)",
        "u = Unsqueeze (i, zero) s = Squeeze (u, zero) y = Expand (x, s)",
        "two = Mul (i, i) r = Gather (t, two) y = Add (x, r)",
    ],
)
def test_what_says_shapes_stays_small(body: str) -> None:
    text = f"(int64[2] i, float[2, 2] x) => (float[n, m] y) <int64[1] zero = {{0}}, float[9] t = {{1,2,3,4,5,6,7,8,9}}> {{ {body} }}"
    assert all(0 <= low <= high <= 2 for low, high in drawn(text))


def test_readers_in_branches_count() -> None:
    text = """(int64[9] i, bool p) => (float[9] y) {
        y = If (p) <
            then_branch = a () => (float[9] b) { b = Gather (t, i) },
            else_branch = c () => (float[9] d) { d = Cast <to = 1> (i) }
        >
    }"""
    places = sample_inputs(parsed(text, t=(50,)), 0)["i"]
    assert (places.min(), places.max()) == (0, 49)
