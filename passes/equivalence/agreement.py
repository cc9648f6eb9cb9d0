"""What an output answers, and whether two runs answer alike: the class, the places that something was found at.

Numbers within their tolerance may still decide otherwise, and numbers beyond it may not: the answer is told beside the
verdict and is no part of it. It is read out of the reference as follows.

    (n, classes)                                       the class with the largest value
    more axes, along one of which all sums are 1       the class with the largest value along it, at each place
    more axes, all values between 0 and 1              the elements above 0.5
    one channel of other values                        the elements above 0
    several channels of other values                   the channel with the largest value, at each place

Where the reference's own values are closer to each other, or to the threshold, than the tolerance of the check, either answer
is right: the place is undecided, and does not count as a disagreement.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from sepwise.passes.equivalence.compare import ELEMENTWISE_SIGMAS
from sepwise.passes.equivalence.graph import Array

__all__ = ["Agreement", "compare_answers"]

SUM_OF_SHARES = 1e-3  # how far sums of shares that were rounded may be from 1
HALF = 0.5


@dataclass(frozen=True)
class Agreement:
    """How often the answer in one output is the reference's.

    Attributes:
        output: name of the output.
        axis: the axis of the classes; None where elements are above a threshold.
        threshold: None where the largest counts.
        places: where there is something to answer: all but the axis of the classes, or what is above the threshold in either run.
        agreeing: places with the reference's answer.
        undecided: further places, where the tolerance allows for either answer.
    """

    output: str
    axis: int | None
    threshold: float | None
    places: int
    agreeing: int
    undecided: int

    def __str__(self) -> str:
        """Says it in a line."""
        what = "largest" if self.threshold is None else f"above {self.threshold:g}"
        where = f" along axis {self.axis}" if self.axis is not None else ""
        undecided = f", {self.undecided} too close to tell" if self.undecided else ""
        return f"{self.output}: the same is {what}{where} at {self.agreeing} of {self.places} places{undecided}"

    def to_json(self) -> dict[str, object]:
        """Returns the fields as JSON takes them."""
        return asdict(self)


def compare_answers(
    outputs: Mapping[str, Array], expected: Mapping[str, Array], sigma: Mapping[str, Array]
) -> tuple[Agreement, ...]:
    """Compares what the outputs of two runs answer.

    Args:
        outputs: what an execution returned.
        expected: what is right, (n, classes), (n, classes, ...) or whatever sums to 1 along its classes.
        sigma: sigma_x of the same, from `execution_sigma`; each element may be off by 16 of its own.

    Returns:
        One for each output of floating point that has a batch and something else, is finite throughout and of one shape in
        both runs.
    """
    found = []
    for name, right in expected.items():
        actual = np.asarray(outputs[name])
        if right.dtype.kind != "f" or right.ndim < 2 or not right.size or actual.shape != right.shape:
            continue
        if np.isfinite(right).all() and np.isfinite(actual).all():
            found.append(_compare(name, actual.astype(np.float64), right, ELEMENTWISE_SIGMAS * sigma[name]))
    return tuple(found)


def _compare(name: str, actual: Array, right: Array, tolerance: Array) -> Agreement:
    axis, threshold = _question(right)
    if axis is None:
        here, there = actual > threshold, right > threshold
        places, close = here | there, np.abs(right - threshold) <= tolerance
        same = here & there
    else:
        best = {key: array.argmax(axis, keepdims=True) for key, array in (("actual", actual), ("right", right))}
        values, room = ([np.take_along_axis(a, best[key], axis) for key in ("right", "actual")] for a in (right, tolerance))
        same, close = best["actual"] == best["right"], values[0] - values[1] <= room[0] + room[1]
        places = np.ones(same.shape, bool)
    undecided = int((places & ~same & close).sum())
    return Agreement(name, axis, threshold, int(places.sum()), int(same.sum()), undecided)


def _question(right: Array) -> tuple[int | None, float | None]:
    """Finds the axis of the classes, or the threshold."""
    if right.ndim == 2 and right.shape[1] > 1:
        return 1, None
    for axis in range(1, right.ndim):
        if right.shape[axis] > 1 and (right >= 0).all() and np.allclose(right.sum(axis), 1, rtol=0, atol=SUM_OF_SHARES):
            return axis, None
    if (right >= 0).all() and (right <= 1).all():
        return None, HALF
    return (None, 0.0) if right.shape[1] == 1 else (1, None)
