# numpy types arithmetic on arrays of several dtypes as Any.
# mypy: disable-error-code="no-any-return"
"""Binary floating-point formats, and which of them a value of a graph is in.

    format      unit roundoff u   normal from   subnormals apart by   largest
    binary16    2^-11             2^-14         2^-24                 65504
    bfloat16    2^-8              2^-126        2^-133                3.39e38
    binary32    2^-24             2^-126        2^-149                3.40e38
    binary64    2^-53             2^-1022       2^-1074               1.80e308

A model may mix them: the types of its inputs and constants are in the file, those of all other values follow from them by the
schemas of the operators (`result_format`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, defs, helper

__all__ = ["BFLOAT16", "BINARY16", "BINARY32", "BINARY64", "FORMATS", "Format", "format_of", "result_format"]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary format with rounding to nearest and gradual underflow (IEEE 754).

    Attributes:
        name: what it is called.
        element_type: its `onnx.TensorProto` data type.
        unit: unit roundoff u: a result is rounded by at most u times its size.
        normal: smallest normal number: a smaller result is rounded as if it had this size.
        largest: largest finite number.
    """

    name: str
    element_type: int
    unit: float
    normal: float
    largest: float

    @property
    def smallest(self) -> float:
        """Returns the smallest subnormal, which is the distance of all of them: 2 u times the smallest normal number."""
        return 2 * self.unit * self.normal

    @property
    def dtype(self) -> np.dtype[Any]:
        """Returns numpy's type of it."""
        return helper.tensor_dtype_to_np_dtype(self.element_type)

    def gamma(self, k: int | npt.NDArray[Any]) -> float | npt.NDArray[Any]:
        """Bounds the relative error of k roundings in a row, and of a sum of k terms relative to their sizes.

        k u / (1 - k u) holds for both (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and is all that
        binary32 needs. In binary16 it has no meaning from 2048 terms on; but a sum of k products is off by at most k u
        times their sizes, for any k and in any order (Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013). So where
        k u is more than 1/2, twice k u covers the sum and the few roundings that its weights carry.
        """
        return k * self.unit / np.maximum(1 - k * self.unit, 0.5)

    def round(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rounds floating-point numbers to the format, and gives them in float64; what is beyond `largest` is infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(array).astype(self.dtype).astype(np.float64)

    def misses(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns how far exact numbers are from their rounded ones, 0 for those that the format has."""
        rounded = self.round(array)
        return np.where(np.isfinite(array), np.abs(rounded - array), 0.0)

    def holds(self, other: "Format") -> bool:
        """Tells whether it has every number of another format."""
        return self.unit <= other.unit and self.largest >= other.largest and self.smallest <= other.smallest


BINARY16 = Format("binary16", TensorProto.FLOAT16, 2.0**-11, 2.0**-14, 65504.0)
BFLOAT16 = Format("bfloat16", TensorProto.BFLOAT16, 2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
BINARY32 = Format("binary32", TensorProto.FLOAT, 2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127)
BINARY64 = Format("binary64", TensorProto.DOUBLE, 2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max))

FORMATS: Mapping[int, Format] = {each.element_type: each for each in (BINARY16, BFLOAT16, BINARY32, BINARY64)}
"""By ONNX data type; those of integers and booleans are absent."""

# Attributes that say the type of a result, where no input of an operator does.
TYPE_ATTRIBUTES = ("to", "dtype", "value")


def format_of(dtype: npt.DTypeLike) -> Format:
    """Finds the format of a numpy type.

    Raises:
        KeyError: if it is none of floating-point numbers.
    """
    wanted = np.dtype(dtype)
    return next(each for each in FORMATS.values() if each.dtype == wanted)


def result_format(
    operator: str, version: int, operands: Sequence[Format | None], attributes: Mapping[str, int]
) -> Format | None:
    """Finds the format of an operation's first result, as the operator's schema says.

    Args:
        operator: ONNX operator.
        version: opset that it is written in.
        operands: formats of its inputs; None for those that are left out, no floating-point numbers, or not known.
        attributes: data types that its attributes say: itself (`to`, `dtype`), or as that of a tensor (`value`).

    Returns:
        The format; None where the result is no floating-point number.
    """
    shared, fixed = _typing_rule(operator, version)
    if any(shared):
        formal = len(shared) - 1  # the last one may stand for many
        return next((each for place, each in enumerate(operands) if each and shared[min(place, formal)]), None)
    return FORMATS.get(next((attributes[name] for name in TYPE_ATTRIBUTES if name in attributes), fixed))


@cache
def _typing_rule(operator: str, version: int) -> tuple[tuple[bool, ...], int]:
    """Tells which inputs have the type of the first result by their schema, and which type it has where none has."""
    try:
        schema = defs.get_schema(operator, version, "")
    except defs.SchemaError:
        return (True,), TensorProto.UNDEFINED
    result = schema.outputs[0].type_str
    choices = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}.get(result, [result])
    shared = tuple(formal.type_str == result for formal in schema.inputs)
    return shared, TensorProto.FLOAT if "tensor(float)" in choices else TensorProto.UNDEFINED
