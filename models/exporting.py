"""Writes a model of the zoo as ONNX, batch norm kept and nodes named after the torch modules.

torch's exporter folds batch norm unless told not to optimise, and then leaves shape arithmetic, scalar casts and zero
biases behind. Constants are folded here instead, which keeps every BatchNormalization.

Opsets: the exporter silently writes 18 when asked for less, so an older one is made from 18 by `lower_opset`, and what
comes out is checked.
"""

from __future__ import annotations

import ast
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from sepwise.models.opsets import OPSET_MINIMUM, lower_opset
from sepwise.passes.errors import InputError

try:
    import onnxscript.optimizer
    import torch
    from onnx_ir.passes import common as common_passes
except ModuleNotFoundError as missing:
    raise InputError(
        f"Export needs {missing.name}, which is not installed; pip install 'sepwise[export]'."
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    import onnx_ir as ir
    from torch import nn

    from sepwise.models.catalogue import ZooModel

__all__ = ["OPSET_MAXIMUM", "OPSET_MINIMUM", "export_model"]

OPSET_MAXIMUM = 25
_EXPORTER_MINIMUM = 18  # below it the exporter writes 18 without a word
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_model(model: ZooModel, path: str | PathLike[str], *, opset: int | None) -> Path:
    """Writes a model; see `sepwise.models.export`.

    Args:
        model: The built model.
        path: The file to write.
        opset: The opset that the file must have, or None for torch's default.

    Returns:
        The path written.

    Raises:
        InputError: See `sepwise.models.export`.
    """
    destination = Path(path)
    if destination.is_dir() or not destination.parent.is_dir():
        raise InputError(f"Cannot write {destination}: it must be a file in a folder that exists.")
    if opset is not None and not OPSET_MINIMUM <= opset <= OPSET_MAXIMUM:
        raise InputError(
            f"Model {model.name!r}: opset {opset} cannot be written; ask for {OPSET_MINIMUM} to {OPSET_MAXIMUM}."
        )
    proto = _trace(model, opset)
    if opset is not None:
        proto = _with_opset(model, proto, opset)
    onnx.checker.check_model(proto, full_check=True)
    _write(proto, destination)
    return destination


def _trace(model: ZooModel, opset: int | None) -> onnx.ModelProto:
    """Exports by torch and tidies up: constants folded, names ours, no traces of the machine."""
    with _silenced():
        program = torch.onnx.export(
            model.module,
            (torch.zeros(model.input_shape),),
            None,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=None if opset is None else max(opset, _EXPORTER_MINIMUM),
            input_names=[model.input_name],
            output_names=list(model.output_names),
        )
    assert program is not None
    graph_model: ir.Model = program.model
    onnxscript.optimizer.fold_constants(graph_model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph_model)
    common_passes.IdentityEliminationPass()(graph_model)
    _drop_added_biases(graph_model, model.module)
    common_passes.RemoveUnusedNodesPass()(graph_model)
    _name_after_modules(graph_model, model.module)
    _name_constants(graph_model, model.module)
    _forget_the_machine(graph_model)
    graph_model.graph.name = model.name
    graph_model.producer_name = "sepwise"
    graph_model.producer_version = None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the exporter's progress, its warnings about itself and its log off both streams."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _drop_added_biases(model: ir.Model, module: nn.Module) -> None:
    """Removes the zero bias that the exporter gives to convolutions without one."""
    learned = {name for name, _ in module.named_parameters()}
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = node.inputs[2]
            if bias is not None and bias.name not in learned and bias.const_value is not None:
                assert not bias.const_value.numpy().any()
                node.resize_inputs(2)


def _name_after_modules(model: ir.Model, module: nn.Module) -> None:
    """Names nodes after the modules that made them, and the values that they compute after the nodes.

    The only node of a module without children bears the module's path; others add their operator, and a number
    where that is not unique.
    """
    leaves = {path for path, layer in module.named_modules() if not any(layer.children())}
    scopes = [_scope(node) for node in model.graph]
    outputs = set(model.graph.outputs)
    taken = {value.name for value in model.graph.inputs} | {value.name for value in outputs}
    taken |= set(model.graph.initializers)
    for node, scope in zip(model.graph, scopes, strict=True):
        whole = scope in leaves and scopes.count(scope) == 1
        stem = scope if whole else ".".join(part for part in (scope, node.op_type) if part)
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        node.name = name
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = name if len(node.outputs) == 1 else f"{name}.{index}"


def _name_constants(model: ir.Model, module: nn.Module) -> None:
    """Names the constants that are no parameter after the first node that reads them, such as `stem.activation.min`."""
    learned = set(module.state_dict())
    initializers = model.graph.initializers
    for node in model.graph:
        formal = onnx.defs.get_schema(node.op_type).inputs
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in initializers or value.name in learned:
                continue
            name = f"{node.name}.{formal[min(index, len(formal) - 1)].name}"
            learned.add(name)
            initializers.pop(str(value.name))
            value.name = name
            initializers[name] = value


def _scope(node: ir.Node) -> str:
    """The dotted path of the module that a node comes from; empty for the network itself.

    A node that folding made has lost its origin: it belongs where all that read it do.
    """
    if _SCOPES in node.metadata_props:
        return str(ast.literal_eval(node.metadata_props[_SCOPES])[-2])
    readers = [_scope(user).split(".") for value in node.outputs for user, _ in value.uses()]
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, zip(*readers, strict=False)))
    return ".".join(parts[0] for parts in shared)


def _forget_the_machine(model: ir.Model) -> None:
    """Removes the exporter's metadata: stack traces with this machine's paths, and class names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _with_opset(model: ZooModel, proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Makes sure that a model has the opset asked for, rewriting it where the exporter wrote a newer one."""
    written = _opset(proto)
    if opset < _EXPORTER_MINIMUM == written:
        try:
            return lower_opset(proto, opset)
        except InputError as error:
            raise InputError(f"Model {model.name!r}: {error}") from error
    if written != opset:
        raise InputError(f"Model {model.name!r}: asked for opset {opset} but the exporter wrote {written}; ask for that one.")
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return max(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _write(proto: onnx.ModelProto, destination: Path) -> None:
    """Writes a model beside its destination and moves it there, so that no half-written file is left."""
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=destination.parent, prefix=f".{destination.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(proto.SerializeToString())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(destination)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise InputError(f"Cannot write {destination}: {error.strerror or error}.") from error
