# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""Winograd's convolution: m x m outputs at once, from products of transformed tiles, and how it rounds.

A convolution of n = m + 2 elements with 3 taps is a product of polynomials, found from its values at n - 1 points and at infinity
(Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015):

    Y = A' [ sum over channels (G g G') * (B' d B) ] A        d a tile of n x n inputs, g the 3 x 3 weights, * element by element

The points are 0 and pairs +-p, so that transforms share the sums of even and of odd elements. For F(2 x 2) p is 1; for F(4 x 4)
sqrt(2) and sqrt(1/2), of which no power that occurs is far from 1: on normally distributed tensors its error is half of that
with the usual 1 and 2. Barabasz, Anderson, Soodhalter and Gregg (Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks, 2020) find the error to grow exponentially with the number of points: F(6 x 6) with
1/2, 1 and 2 is off by two to three times as much as rounding may move a direct sum, so nothing larger than F(4 x 4) is offered.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from sepwise.passes.equivalence.convolution import Window, pad_spatial, read_window
from sepwise.passes.equivalence.graph import Array, Operation

__all__ = ["Winograd"]

TAPS = 3


@dataclass(frozen=True)
class Winograd:
    """The algorithm F(m x m, 3 x 3).

    Attributes:
        squares: p^2 of each pair of points +-p; there are m / 2 of them.
        input_roundings: the most roundings that a term of one element of B' d sees, those of factors that are no binary32
            numbers included.
        output_roundings: the same of A' m.
    """

    squares: tuple[float, ...]
    input_roundings: int
    output_roundings: int

    @classmethod
    @cache
    def of(cls, outputs: int) -> "Winograd":
        """Gives the algorithm for m x m outputs.

        Args:
            outputs: m, 2 or 4.

        Returns:
            The algorithm.

        Example:
            >>> Winograd.of(4).size
            6
        """
        # F(4 x 4): even + p * odd rounds the difference that is odd, p, the product and the sum; the last output
        # the difference, p^3, the product and two sums.
        return {2: cls((1.0,), 1, 2), 4: cls((2.0, 0.5), 4, 5)}[outputs]

    @property
    def outputs(self) -> int:
        """m, the side of a tile of outputs."""
        return 2 * len(self.squares)

    @property
    def size(self) -> int:
        """n, the side of a tile of inputs."""
        return self.outputs + TAPS - 1

    def even(self, square: float | None = None) -> tuple[float, ...]:
        """Gives the coefficients by ascending powers of x^2 of the product over all pairs of x^2 - p^2.

        Args:
            square: p^2 of a pair that is left out, or None.
        """
        roots = [other for other in self.squares if other != square]
        return tuple(float(c) for c in np.atleast_1d(np.poly(roots))[::-1])

    @cached_property
    def input_transform(self) -> Array:
        """B', `(n, n)`: rows for 0, for +p and -p of each pair, for infinity."""
        rows = np.zeros((self.size, self.size))
        whole = self.even()
        rows[0, 0 : 2 * len(whole) : 2] = whole
        rows[-1, 1 : 2 * len(whole) + 1 : 2] = whole
        for pair, square in enumerate(self.squares):
            part = self.even(square)
            for row, sign in ((1 + 2 * pair, 1), (2 + 2 * pair, -1)):
                rows[row, 2 : 2 + 2 * len(part) : 2] = part
                rows[row, 1 : 1 + 2 * len(part) : 2] = sign * math.sqrt(square) * np.array(part)
        return rows

    @cached_property
    def weight_transform(self) -> Array:
        """G, `(n, 3)`: powers of each point over the product of its distances from the others."""
        points = self._points
        rows = [[p**power / math.prod(p - q for q in points if q != p) for power in range(TAPS)] for p in points]
        return np.array([*rows, [0.0] * (TAPS - 1) + [1.0]])

    @cached_property
    def output_transform(self) -> Array:
        """A', `(m, n)`: powers of each point."""
        columns = [[p**power for power in range(self.outputs)] for p in self._points]
        return np.array([*columns, [0.0] * (self.outputs - 1) + [1.0]]).T

    @property
    def _points(self) -> list[float]:
        return [0.0, *(sign * math.sqrt(square) for square in self.squares for sign in (1, -1))]

    def transform_weight(self, weight: Array) -> Array:
        """Computes G g G' in float64.

        Args:
            weight: `(oc, ic, 3, 3)`.

        Returns:
            `(oc, ic, n, n)`.
        """
        return self.weight_transform @ weight.astype(np.float64) @ self.weight_transform.T

    def bound(
        self, op: Operation, x: Array, w: Array, below: float, others: int = 0
    ) -> tuple[Array, Array]:
        """Bounds how far any execution may be from the exact sums.

        Each transform is a sum of products with constants along columns, then along rows. So a term of an output sees at most
        2 `input_roundings`, one of its transformed weight, the ic roundings of the sum over channels in whatever order, and
        2 `output_roundings`; j roundings and k more are j + k (Higham, Accuracy and Stability of Numerical Algorithms, lemma
        3.3). The error is at most gamma of their number times all terms together,

            |A'| [ sum over channels (|G| |g| |G'|) * (|B'| |d| |B|) ] |A|

        which need not be near the output: all inputs of a tile are terms of each of its outputs, and where they do not belong
        to it they cancel only up to rounding. Below the normal range each step is off by a number of its own: in the transformed
        input as if each input were off by that of 2 `input_roundings` steps, as no factor of B' is below 1/2; in the transformed
        weight as if each weight were off by that over the least sum of a row of |G|, twice; and once in each product.

        Args:
            op: a Conv of 3 x 3 taps, stride 1, dilation 1 and one group, for its format and geometry.
            x: the largest magnitudes of its input, `(n, ic, h, w)`.
            w: those of its weight, `(oc, ic, 3, 3)`.
            below: the error of a step below the normal range.
            others: further roundings of a term, before or behind.

        Returns:
            The bound, infinite where a partial result may overflow, and all terms together, both `(n, oc, oh, ow)`.
        """
        inputs, weights, outputs = (np.abs(t) for t in (self.input_transform, self.weight_transform, self.output_transform))
        window = read_window(op, x.shape[2:], w.shape[2:])

        def terms(data: Array, weight: Array) -> Array:
            values = _transform(inputs, self._tiles(data, window))
            return self._outputs(outputs, _transform(weights, weight) @ values, window, len(data))

        total = terms(x, w)
        roundings = 2 * (self.input_roundings + self.output_roundings) + 1 + w.shape[1] + others
        reach = outputs.sum(axis=1).max()
        step_w = below / weights.sum(axis=1).min() ** 2
        error = op.format.gamma(roundings) * total + w.shape[1] * below * reach**2
        error = error + terms(np.full(x.shape, 2 * self.input_roundings * below), w) + terms(x, np.full(w.shape, step_w))
        partial = np.maximum(total / outputs[outputs > 0].min() ** 2, inputs.sum(axis=1).max() ** 2 * x.max(initial=0.0))
        return np.where(partial > op.format.largest, np.inf, error), total

    def energy(self, op: Operation, x: Array, w: Array) -> Array:
        """Estimates the variance of the rounding noise, in squares of the unit roundoff.

        As in a direct sum (`rounding.noise_scale`) a sum of k terms has k partial sums, each rounded at about the root of the
        terms' squares up to it: k times their sum, in each transform and in the sum over channels. The noise of one
        stage passes on through the squares of the factors behind it.

        Args:
            op: a Conv of 3 x 3 taps, stride 1, dilation 1 and one group, for its geometry.
            x: its input, `(n, ic, h, w)`.
            w: its weight, `(oc, ic, 3, 3)`.

        Returns:
            The variance of each output, `(n, oc, oh, ow)`.
        """
        window = read_window(op, x.shape[2:], w.shape[2:])
        tiles = self._tiles(x, window)
        values, weights = _transform(self.input_transform, tiles), _transform(self.weight_transform, w)
        noise = _transform(self.input_transform**2, tiles**2)
        noise = 2 * self.input_roundings * noise + (w.shape[1] + 1) * values**2
        sums = weights**2 @ noise + 2 * self.output_roundings * (weights @ values) ** 2
        return self._outputs(self.output_transform**2, sums, window, len(x))

    def _tiles(self, x: Array, window: Window) -> Array:
        """Cuts an input into tiles that overlap, `(ic, n * th * tw, size, size)`; 0 beyond its borders."""
        padded = pad_spatial(x, window, 0.0)
        counts = self._counts(window)
        ends = [max(count * self.outputs + TAPS - 1 - size, 0) for count, size in zip(counts, padded.shape[2:], strict=True)]
        padded = np.pad(padded, [(0, 0), (0, 0), *((0, end) for end in ends)])
        tiles = np.lib.stride_tricks.sliding_window_view(padded, (self.size, self.size), axis=(2, 3))
        tiles = tiles[:, :, : counts[0] * self.outputs : self.outputs, : counts[1] * self.outputs : self.outputs]
        return tiles.swapaxes(0, 1).reshape(x.shape[1], -1, self.size, self.size)

    def _counts(self, window: Window) -> list[int]:
        """Tiles along each axis of the output."""
        return [math.ceil(extent / self.outputs) for extent in window.outputs]

    def _outputs(self, matrix: Array, sums: Array, window: Window, batch: int) -> Array:
        """Transforms sums, `(size * size, oc, n * th * tw)`, and puts the tiles together."""
        high, wide = self._counts(window)
        made = np.kron(matrix, matrix) @ sums.reshape(self.size**2, -1)
        made = made.reshape(self.outputs, self.outputs, -1, batch, high, wide).transpose(3, 2, 4, 0, 5, 1)
        whole = made.reshape(batch, -1, high * self.outputs, wide * self.outputs)
        return whole[:, :, : window.outputs[0], : window.outputs[1]]


def _transform(matrix: Array, blocks: Array) -> Array:
    """Transforms squares, `(a, b, k, k)`, along both axes: `(rows * rows, a, b)`."""
    first, second, *_ = blocks.shape
    flat = np.kron(matrix, matrix) @ blocks.reshape(first * second, -1).T
    return flat.reshape(-1, first, second)
