"""Seeded inputs, among them those that bring mistakes to light."""

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto, helper

from sepwise.passes.equivalence.graph import Array, Graph, Model, Port
from sepwise.passes.equivalence.integers import Numbers, read_integers
from sepwise.passes.equivalence.oracle import Oracle, as_graph
from sepwise.passes.errors import InputError, SepwiseError, UnsupportedError

__all__ = ["EMULATED_NETWORK_KINDS", "KINDS", "NETWORK_KINDS", "sample_inputs"]

IMPULSES = 4  # per channel of an image: enough to meet corners, borders and the inside over a few seeds


def _impulse(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A few ones per image among zeros, one at a corner: every output then shows single weights, exactly."""
    x = np.zeros(shape)
    if not x.size:
        return x
    planes = x.reshape(-1, int(np.prod(shape[2:], dtype=np.int64))) if len(shape) > 2 else x.reshape(1, -1)
    rows = rng.integers(0, len(planes), IMPULSES)
    columns = rng.integers(0, planes.shape[1], IMPULSES)
    columns[0] = rng.choice([0, planes.shape[1] - 1])
    planes[rows, columns] = 1.0
    return x


def _knees(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Values at and next to where ReLU, ReLU6, hard-swish and hard-sigmoid bend: -3, 0, 3, 6."""
    knee = rng.choice(np.array([-3.0, 0.0, 3.0, 6.0], np.float32), shape)
    toward = rng.choice(np.array([-np.inf, np.inf], np.float32), shape)
    return np.where(rng.random(shape) < 0.5, knee, np.nextafter(knee, toward))


KINDS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "positive": lambda rng, shape: rng.uniform(0, 1, shape),  # an image
    "impulse": _impulse,
    "knees": _knees,
    "constant": lambda rng, shape: np.full(shape, rng.uniform(0.5, 2)),  # borders show up as what differs
    "zeros": lambda _, shape: np.zeros(shape),
    "large": lambda rng, shape: rng.standard_normal(shape) * 1e4,
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-40,
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    "nonfinite": lambda rng, shape: np.where(
        rng.random(shape) < min(0.01, 4 / max(int(np.prod(shape)), 1)),
        rng.choice([np.nan, np.inf, -np.inf], shape),
        rng.standard_normal(shape),
    ),
}

NETWORK_KINDS = ("normal", "uniform", "large")
"""What whole networks are fed. Large numbers pass the limits of activations that others never reach.

Impulses are not among them: where an image is constant, all its pixels are rounded alike, and errors of neighbours add up in a
convolution instead of averaging out as sigma_x supposes."""

EMULATED_NETWORK_KINDS = ("normal", "large")
"""What they are fed where a run takes a hundred times as long."""


def sample_inputs(model: "Model | Oracle", seed: int, kind: str = "normal") -> dict[str, Array]:
    """Draws one tensor for every input of a model.

    Args:
        model: the model; its input shapes have to be fixed.
        seed: the same seed draws the same tensors.
        kind: one of `KINDS`. Integers are what their readers can do something with (`read_integers`), and places in an axis come
            without repetition over seeds 0, 1, 2 ... as long as there are more of them. Each boolean takes both values on seeds
            0 and 1.

    Returns:
        Tensors by input name, in the declared types (float32 for all floating-point ones but double and half).

    Raises:
        InputError: if the kind is not known or an input has a symbolic shape.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind of input {kind!r}; use one of {', '.join(KINDS)}.")
    graph = as_graph(model)
    rng = np.random.default_rng([seed, *kind.encode()])
    return {port.name: _draw(graph, port, rng, seed, kind) for port in graph.inputs}


def _draw(graph: Graph, port: Port, rng: np.random.Generator, seed: int, kind: str) -> Array:
    shape = _fixed_shape(port)
    if port.element_type == TensorProto.STRING or not port.element_type:
        raise UnsupportedError(f"Input {port.name!r} has no numeric type. Declare it as float32.")
    dtype = helper.tensor_dtype_to_np_dtype(port.element_type)
    if dtype.kind in "iu":
        numbers = read_integers(graph, port.name).numbers(dtype, kind, lambda name: _shape_of(graph, name))
        return _draw_integers(rng, numbers, shape, seed).astype(dtype)
    if dtype.kind == "b":
        other = np.random.default_rng([seed // 2, *port.name.encode()])
        return np.asarray(other.integers(0, 2, shape) == seed % 2)
    return np.asarray(KINDS[kind](rng, shape), np.float32).astype(dtype)


def _fixed_shape(port: Port) -> tuple[int, ...]:
    if port.shape is None or None in port.shape:
        found = "no shape" if port.shape is None else f"shape {port.shape}"
        raise InputError(f"Input {port.name!r} has {found}; fix it first, for example --shape {port.name}=1,3,224,224.")
    return tuple(d for d in port.shape if d is not None)


def _draw_integers(rng: np.random.Generator, numbers: Numbers, shape: tuple[int, ...], seed: int) -> Array:
    """Draws whole numbers, the first and the last of them where there is room for both."""
    size = int(np.prod(shape, dtype=np.int64))
    ends = np.array([numbers.last, numbers.first])
    if numbers.placed:
        between = np.random.default_rng(numbers.last).permutation(np.arange(1, numbers.last))
        every = np.concatenate([ends, between]) if numbers.last else np.zeros(1, np.int64)
        drawn = every[(seed * size + np.arange(size)) % len(every)]
    else:
        drawn = rng.integers(numbers.first, numbers.last, size, endpoint=True)
        if size > len(ends):
            drawn[: len(ends)] = ends
    return rng.permutation(drawn).reshape(shape)


def _shape_of(graph: Graph, name: str) -> tuple[int, ...] | None:
    """Finds the shape of a tensor that is not in a branch, by a run of the model where it is computed."""
    if name in graph.constants:
        return graph.constants[name].shape
    ports = {port.name: port for port in graph.inputs}
    if name in ports:
        return _fixed_shape(ports[name])
    try:
        ones = {
            port.name: np.ones(_fixed_shape(port), helper.tensor_dtype_to_np_dtype(port.element_type)) for port in graph.inputs
        }
        return Oracle(graph).run(ones, keep=[name])[name].shape
    except SepwiseError:
        return None
