"""The algebra of transformed tiles, its bound and its noise: against products of polynomials and executions in binary32."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx
import onnx.parser
import pytest

from sepwise.passes.equivalence import execution_sigma, run_with_bounds
from sepwise.passes.equivalence.graph import Operation
from sepwise.passes.equivalence.winograd import Winograd

ALGORITHMS = [Winograd.of(2), Winograd.of(4)]
OP = Operation("Conv", 18, "conv", ("x", "w"), ("y",), {"pads": [1, 1, 1, 1]})

RATIONAL = np.vectorize(Fraction, otypes=[object])

ENTRY_ROUNDINGS = {2: 0, 4: 19}
"""The most roundings in the three entries that make a term, by m. The entries of F(2 x 2) are halves and whole numbers. Of
F(4 x 4), a root p is rounded, sqrt(2) to twice sqrt(1/2), so that all differences of points are whole multiples of one number:

    A'  p^i, i <= 3                3 of p, 2 of the power (C's pow is within one unit in the last place)
    G   p^k / (4 differences)      2 + 4 of p, 2 of the power, 1 of the difference that is thrice that number, 3 products, 1 quotient
    B'  p times a power of two     1 of p
"""


def model(channels: int = 5, outputs: int = 4, height: int = 9, width: int = 10, bias: bool = False) -> onnx.ModelProto:
    given, used = (f", float[{outputs}] b", ", b") if bias else ("", "")
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        one (float[1,{channels},{height},{width}] x, float[{outputs},{channels},3,3] w{given}) => (y)
        {{ y = Conv <pads = [1, 1, 1, 1]> (x, w{used}) }}"""
    )


def draw(seed: int, channels: int = 5, outputs: int = 4, height: int = 9, width: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (1, channels, height, width), "w": (outputs, channels, 3, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def execute(algorithm: Winograd, x: np.ndarray, w: np.ndarray, *, lost: tuple[int, int] | None = None) -> np.ndarray:
    """An execution in binary32, each product and sum rounded by itself; one product may be lost."""
    m, single = algorithm.outputs, np.float32

    def transform(matrix: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        for axis in (-2, -1):
            moved = np.moveaxis(blocks, axis, 0)
            made = []
            for row in matrix.astype(single):
                total = np.zeros(moved.shape[1:], single)
                for factor, values in zip(row, moved, strict=True):
                    total = (total + (factor * values).astype(single)).astype(single)
                made.append(total)
            blocks = np.moveaxis(np.array(made), 0, axis)
        return blocks

    high, wide = (-(-extent // m) for extent in x.shape[2:])
    padded = np.zeros((x.shape[1], high * m + 2, wide * m + 2), single)
    padded[:, 1 : 1 + x.shape[2], 1 : 1 + x.shape[3]] = x[0]
    weights = algorithm.transform_weight(w).astype(single)
    y = np.zeros((1, w.shape[0], high * m, wide * m), single)
    for row in range(high):
        for column in range(wide):
            tile = transform(algorithm.input_transform, padded[:, row * m : row * m + m + 2, column * m : column * m + m + 2])
            sums = np.zeros((w.shape[0], m + 2, m + 2), single)
            for channel in range(x.shape[1]):
                product = (weights[:, channel] * tile[channel]).astype(single)
                if lost is not None and channel == 0:
                    product[:, lost[0], lost[1]] = 0
                sums = (sums + product).astype(single)
            y[0, :, row * m : row * m + m, column * m : column * m + m] = transform(algorithm.output_transform, sums)
    return y[:, :, : x.shape[2], : x.shape[3]]


def is_convolution(transforms: Sequence[np.ndarray], roundings: int) -> bool:
    """Whether y_i = sum over k of g_k d_(i + k) for each g_k and d_l by itself, but for the roundings of the entries.

    y is linear in g and in d, so that holds for all of them. The terms of exact entries add up to 1 where l is i + k, else to 0,
    and each of ours is one of those times factors (1 + e) or 1 / (1 + e), |e| <= u, as many as there are roundings: it is off by
    at most gamma times itself (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1).
    """
    outputs, weights, inputs = transforms
    i, k, elements = np.ogrid[: len(outputs), : weights.shape[1], : len(inputs)]
    made, terms = (np.einsum("ij,jk,jl->ikl", *each) for each in (transforms, [abs(outputs), abs(weights), abs(inputs)]))
    rounded = roundings * Fraction(1, 2**53)
    return bool((abs(made - (elements == i + k)) <= rounded / (1 - rounded) * terms).all())


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"F{a.outputs}")
def test_transforms_are_a_convolution(algorithm: Winograd) -> None:
    """In exact arithmetic on their float64 entries, of any inputs and weights; one entry off by 1e-12 of itself is found."""
    transforms = [RATIONAL(t) for t in (algorithm.output_transform, algorithm.weight_transform, algorithm.input_transform)]
    assert is_convolution(transforms, ENTRY_ROUNDINGS[algorithm.outputs])
    for number, transform in enumerate(transforms):
        for place in zip(*transform.nonzero(), strict=True):
            wrong = [each.copy() for each in transforms]
            wrong[number][place] *= 1 + Fraction(1, 10**12)
            assert not is_convolution(wrong, ENTRY_ROUNDINGS[algorithm.outputs])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"F{a.outputs}")
def test_terms_together_are_at_least_those_of_the_definition(algorithm: Winograd) -> None:
    feeds = {name: np.abs(array).astype(np.float64) for name, array in draw(1).items()}
    _, total = algorithm.bound(OP, feeds["x"], feeds["w"], 0.0)
    ((direct, _),) = run_with_bounds(model(), feeds).values()
    assert (total >= direct * (1 - 1e-12)).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"F{a.outputs}")
@pytest.mark.parametrize("scale", [1.0, 1e-38], ids=["normal", "subnormal"])
def test_executions_stay_within_the_bound_and_mistakes_do_not(algorithm: Winograd, scale: float) -> None:
    for seed in range(3):
        feeds = draw(seed)
        feeds["x"] *= np.float32(scale)
        ((value, bound),) = run_with_bounds(model(), feeds, winograd={"y": algorithm.outputs}).values()
        assert np.isfinite(bound).all()
        assert (np.abs(execute(algorithm, **feeds) - value) <= bound).all()
        if scale == 1.0:
            for place in ((0, 0), (1, 2), (algorithm.size - 1, algorithm.size - 1)):
                assert (np.abs(execute(algorithm, **feeds, lost=place) - value) > bound).any()


def test_no_other_convolution_has_that_bound() -> None:
    feeds = draw(2)
    ((_, direct),) = run_with_bounds(model(), feeds).values()
    ((_, other),) = run_with_bounds(model(), feeds, winograd={"z": 4}).values()
    np.testing.assert_array_equal(direct, other)
    ((_, tiles),) = run_with_bounds(model(), feeds, winograd={"y": 4}).values()
    assert (tiles > direct).all()


def test_bias_adds_its_own_rounding() -> None:
    feeds = {**draw(3), "b": np.full(4, 1e6, np.float32)}
    ((value, bound),) = run_with_bounds(model(bias=True), feeds, winograd={"y": 4}).values()
    written = execute(ALGORITHMS[1], feeds["x"], feeds["w"]) + feeds["b"].reshape(-1, 1, 1)
    assert (np.abs(written - value) <= bound).all()


def test_nothing_is_known_where_a_partial_result_may_overflow() -> None:
    feeds = draw(4)
    feeds["x"] *= np.float32(1e37)
    feeds["w"] *= np.float32(1e-30)
    ((value, bound),) = run_with_bounds(model(), feeds, winograd={"y": 4}).values()
    assert np.isfinite(value).all()
    assert np.isinf(bound).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"F{a.outputs}")
def test_noise_explains_executions(algorithm: Winograd) -> None:
    """Also where all of an output's own inputs are 0, and others in its tile are not."""
    errors, sigmas = [], []
    for seed in range(4):
        feeds = draw(seed, channels=16)
        feeds["x"][:, :, 4:] = 0
        sigma = execution_sigma(model(channels=16), feeds, winograd={"y": algorithm.outputs})["y"]
        ((value, _),) = run_with_bounds(model(channels=16), feeds).values()
        errors.append(execute(algorithm, **feeds) - value)
        sigmas.append(sigma)
        assert (np.abs(errors[-1]) <= 16 * sigma).all()
    ratio = np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(sigmas)))
    assert 0.05 < ratio <= 1
