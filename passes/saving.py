"""Writes models to ONNX files."""

from pathlib import Path

import onnx
import onnx_ir as ir

from sepwise.passes.errors import InputError

__all__ = ["save_model"]

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
    weight_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    try:
        if weight_bytes > PROTOBUF_LIMIT_BYTES * 0.9:
            ir.save(model, path, external_data=f"{path.name}.data")
            onnx.checker.check_model(str(path), full_check=True)
            return
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        path.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
