"""The float64 oracle: what a model means, apart from any rounding."""

from collections.abc import Collection, Mapping

import numpy as np

from sepwise.passes.equivalence.graph import Array, Graph, Model, Operation, read_graph
from sepwise.passes.equivalence.interpreter import interpret, read_inputs
from sepwise.passes.equivalence.operators import evaluate

__all__ = ["Oracle", "as_graph"]


class Oracle:
    """Runs an ONNX model in float64.

    Every floating-point tensor of any width becomes float64; integers and booleans stay as they are. Model-local
    functions are expanded. It shares no code with the passes, so that it cannot repeat their mistakes.

    Example:
        >>> import numpy as np, onnx
        >>> text = '<ir_version: 9, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        >>> model = onnx.parser.parse_model(text)
        >>> Oracle(model).run({"x": np.array([-1.0, 2.0], np.float32)})["y"]
        array([0., 2.])
    """

    def __init__(self, model: Model) -> None:
        """Reads the model.

        Args:
            model: an `onnx.ModelProto` or an `onnx_ir.Model`.

        Raises:
            UnsupportedError: if it has custom operators or an unknown opset.
        """
        self.graph: Graph = read_graph(model)

    def run(self, inputs: Mapping[str, Array], *, keep: Collection[str] | None = None) -> dict[str, Array]:
        """Computes the outputs.

        Args:
            inputs: tensors by input name; float64 ones are taken as they are.
            keep: names of intermediate values to return as well.

        Returns:
            Tensors by name, outputs first.

        Raises:
            InputError: if inputs do not fit the model, or a name to keep does not exist.
            UnsupportedError: if an operator is not known.
        """
        with np.errstate(all="ignore"):
            return interpret(
                self.graph,
                read_inputs(self.graph, inputs, stored=False),
                constant=lambda _, array, __: array,
                step=_step,
                truth=lambda value: bool(value.all()),
                keep=keep or (),
            )


def as_graph(model: "Model | Oracle") -> Graph:
    """Returns the graph of a model, or of an oracle that has read it already."""
    return model.graph if isinstance(model, Oracle) else read_graph(model)


def _step(op: Operation, inputs: list[Array | None]) -> tuple[Array, ...]:
    return evaluate(op, inputs)
