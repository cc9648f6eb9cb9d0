"""Writes models to ONNX files."""

from pathlib import Path

import onnx
import onnx_ir as ir

from sepwise.passes.errors import InputError

__all__ = ["save_model", "write_model"]

PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""No protobuf message may be larger; weights beyond it go to a file beside the model."""


def save_model(model: ir.Model, path: str | Path) -> None:
    """Checks a model in full and writes it.

    Args:
        model: The model; functions are written as they are.
        path: The file. A model beyond protobuf's two gigabytes has its weights in `<path>.data`.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
    try:
        if _is_large(model):
            write_model(model, path)
            onnx.checker.check_model(str(path), full_check=True)
            return
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        write_model(model, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error


def write_model(model: ir.Model, path: Path) -> None:
    """Writes a model as it is, unchecked.

    Args:
        model: The model.
        path: The file, and `<path>.data` as in `save_model`.

    Raises:
        OSError: If it cannot be written.
    """
    ir.save(model, path, format="protobuf", external_data=f"{path.name}.data" if _is_large(model) else None)


def _is_large(model: ir.Model) -> bool:
    """Tells whether the weights leave too little of one protobuf to the rest."""
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in weights if tensor is not None) > PROTOBUF_LIMIT_BYTES * 0.9
