"""Loads ONNX files from the wild: every defect that a file can have is named in one line."""

import copy
import heapq
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sepwise.passes.contrib_operators import expand_contrib_operators
from sepwise.passes.errors import InputError, UnsupportedError
from sepwise.passes.flush_weights import flush_weights

__all__ = ["MINIMUM_OPSET", "load_model"]

logger = logging.getLogger(__name__)

MINIMUM_OPSET = 7
"""The oldest operator set taken: before it, broadcasting and BatchNormalization mean something else."""

MACHINE_DOMAIN = "com.microsoft.nchwc"
"""What ONNX Runtime writes at its highest level of optimisation."""

GRAPH_FIELD, OPSET_FIELD = 7, 8
"""Field numbers in ModelProto."""

COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)

DEMONSTRATION_EXTENT = {0: 1, 1: 3}
"""Extents proposed for unnamed dimensions in messages: batch 1, 3 channels, and 224 for all others."""


def load_model(path: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """Loads an ONNX file, checks it, and fixes the shapes of its inputs.

    Nodes that come before what they read, which the format forbids and runtimes put right, are sorted. Weights below the normal
    range are read as 0 (see `sepwise.passes.flush_weights`).

    Args:
        path: The file; external data is looked for beside it.
        shapes: Shapes of inputs by name, needed where the file leaves dimensions open.

    Returns:
        The model, each of its inputs with a fixed shape. External data is in memory: no part of the model depends on where
        its file lies.

    Raises:
        InputError: If the file is missing, is not ONNX, is truncated, lacks its external data, has no outputs or is not
            valid, or if shapes are missing or do not fit.
        UnsupportedError: If an operator set or operator is not known here, or an input is not a tensor of real numbers.

    Example:
        >>> model = load_model("mobilenet_v2.onnx", shapes={"x": (1, 3, 224, 224)})  # doctest: +SKIP
    """
    path = Path(path)
    proto = _parse(path)
    _check_opsets(path, proto)
    expand_contrib_operators(proto, str(path))
    _check_operators(path, proto)
    _check_external_data(path, proto)
    _sort(proto.graph)
    _fix_shapes(path, proto, dict(shapes or {}))
    _check_validity(path, proto)
    onnx.load_external_data_for_model(proto, str(path.parent))
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(f"{path}: is not a valid model: {' '.join(str(cause).split())}. Repair or export it again.") from error
    flush_weights(model)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path.")
    if path.is_dir():
        raise InputError(f"{path}: is not a file but a folder. Name the .onnx file in it.")
    if not path.is_file():
        raise InputError(f"{path}: is not a file but a device or a pipe. Name an .onnx file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    if not data:
        raise InputError(f"{path}: is empty. Copy or export it again.")
    missing = _missing_bytes(data)
    if missing:
        raise InputError(f"{path}: is truncated: it has {len(data)} bytes and needs {missing} more. Copy or export it again.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not an ONNX file: its {len(data)} bytes are no ModelProto. Give an .onnx file.") from error
    if not proto.HasField("graph") or proto.ir_version == 0:
        raise InputError(f"{path}: is not an ONNX file: it holds no graph or no IR version. Give an .onnx file.")
    if not proto.opset_import:
        raise InputError(f"{path}: imports no operator set; the file is truncated or was never complete. Export it again.")
    if not proto.graph.output:
        raise InputError(f"{path}: has no outputs, so it computes nothing. Declare them, or export it again.")
    return proto


def _missing_bytes(data: bytes) -> int:
    """Returns how many bytes the last top-level field of a protobuf lacks, or 0 if none or if it is no protobuf."""
    position, end = 0, len(data)
    fields = 0
    while position < end:
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if field == 0 or field > 30 or wire not in (0, 2):  # no field of ModelProto
            return 0
        length, position = _varint(data, position)
        if wire == 2:
            position += length
        fields += 1
        if fields == 1 and field != 1:  # a ModelProto begins with its IR version
            return 0
    return position - end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while position < len(data):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value, position
    return value, len(data) + 1  # the number itself is cut off


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _sort(graph: onnx.GraphProto) -> set[str]:
    """Puts a graph's nodes, and those of its subgraphs, behind what they read, otherwise in the order that they have.

    Returns:
        The names that it reads from around it. Nodes in a circle stay where they are: the check of validity names one.
    """
    nodes = list(graph.node)
    reads = [set(node.input).union(*map(_sort, _subgraphs(node))) for node in nodes]
    producer = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    needed = [{producer[name] for name in names if name in producer} for names in reads]
    if any(place <= max(before, default=-1) for place, before in enumerate(needed)):
        readers: dict[int, list[int]] = {}
        for place, before in enumerate(needed):
            for each in before:
                readers.setdefault(each, []).append(place)
        ready = [place for place, before in enumerate(needed) if not before]
        order = []
        while ready:
            place = heapq.heappop(ready)
            order.append(place)
            for reader in readers.get(place, ()):
                needed[reader].discard(place)
                if not needed[reader]:
                    heapq.heappush(ready, reader)
        if len(order) == len(nodes):
            in_order = [copy.deepcopy(nodes[place]) for place in order]
            del graph.node[:]
            graph.node.extend(in_order)
    known = {*producer, *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    return set().union(*reads, (value.name for value in graph.output)) - known


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_opsets(path: Path, proto: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for imported in proto.opset_import:
        if _domain(imported.domain) != "":
            continue
        if imported.version > newest:
            raise UnsupportedError(
                f"{path}: uses operator set {imported.version}; the newest known here is {newest}. "
                "Export it with an older one, or install a newer onnx."
            )
        if imported.version < MINIMUM_OPSET:
            raise UnsupportedError(
                f"{path}: uses operator set {imported.version}; the oldest taken is {MINIMUM_OPSET}. "
                "Export it with a newer one, or convert it with onnx.version_converter."
            )


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    functions = {(_domain(function.domain), function.name) for function in proto.functions}
    versions = {_domain(imported.domain): imported.version for imported in proto.opset_import}
    bodies = [(node, versions) for node in _nodes(proto.graph)]
    for function in proto.functions:
        own = versions | {_domain(imported.domain): imported.version for imported in function.opset_import}
        bodies += [(node, own) for node in function.node]
    for node, known_versions in bodies:
        domain = _domain(node.domain)
        if (domain, node.op_type) in functions:
            continue
        who = f"{path}: node '{node.name or node.op_type}' uses the operator {domain + '::' if domain else ''}{node.op_type}"
        if domain not in known_versions:
            raise UnsupportedError(f"{who}, and the file imports no operator set of the domain '{domain}'. Export it again.")
        version = known_versions[domain]
        try:
            schema = onnx.defs.get_schema(node.op_type, version, domain)
        except onnx.defs.SchemaError:
            hint = "Export the model with standard operators only" if domain else "Check the exporter's operator set"
            if domain == MACHINE_DOMAIN:
                hint = "Its tensors are laid out for one machine: let ONNX Runtime save the model at ORT_ENABLE_EXTENDED"
            raise UnsupportedError(f"{who}, which is unknown in version {version} of its domain. {hint}.") from None
        if schema.deprecated:
            raise UnsupportedError(f"{who}, which version {version} of its domain no longer has. Export it again.")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from attribute.g.initializer


def _check_external_data(path: Path, proto: onnx.ModelProto) -> None:
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = PurePosixPath(entries.get("location", ""))
        if not entries.get("location") or location.is_absolute() or ".." in location.parts:
            raise InputError(f"{path}: tensor '{tensor.name}' has its data at '{location}', which is not beside the file.")
        file = path.parent / location
        if not file.is_file():
            raise InputError(
                f"{path}: the external data of tensor '{tensor.name}' is missing: no file {file}. Put it beside the model."
            )
        needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if file.stat().st_size < needed:
            raise InputError(
                f"{path}: its external data {file} is truncated: it has {file.stat().st_size} bytes, "
                f"tensor '{tensor.name}' needs {needed}. Copy it again."
            )


def _check_validity(path: Path, proto: onnx.ModelProto) -> None:
    external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto.graph))
    try:
        onnx.checker.check_model(str(path) if external else proto)
    except onnx.checker.ValidationError as error:
        first = " ".join(str(error).split("==> Context:")[0].split())
        raise InputError(f"{path}: is not a valid model: {first} Repair or export it again.") from error


def _fix_shapes(path: Path, proto: onnx.ModelProto, shapes: dict[str, Sequence[int]]) -> None:
    defaults = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value for value in proto.graph.input if value.name not in defaults or value.name in shapes}
    for name in shapes:
        if name not in inputs:
            raise InputError(f"{path}: has no input '{name}'; its inputs are {', '.join(inputs) or 'none'}. Check --shape.")
    bound: dict[str, int] = {}
    open_inputs: list[str] = []
    for name, value in inputs.items():
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "no type"
            raise UnsupportedError(f"{path}: input '{name}' is not a tensor but {kind}. Only tensors can be given.")
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type in COMPLEX:
            raise UnsupportedError(f"{path}: input '{name}' holds complex numbers, which are not supported. Give their parts.")
        for axis, dim in enumerate(tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value == 0:
                raise InputError(f"{path}: dimension {axis} of '{name}' is 0; tensors without elements are not supported.")
        if name in shapes:
            _bind(path, name, tensor_type, [int(extent) for extent in shapes[name]], bound)
        elif not tensor_type.HasField("shape") or any(_is_open(dim) for dim in tensor_type.shape.dim):
            open_inputs.append(name)
    for name in list(open_inputs):  # dimensions that another input's shape has named
        dims = inputs[name].type.tensor_type.shape.dim
        if inputs[name].type.tensor_type.HasField("shape") and all(not _is_open(dim) or dim.dim_param in bound for dim in dims):
            _bind(path, name, inputs[name].type.tensor_type, [bound.get(d.dim_param, d.dim_value) for d in dims], bound)
            open_inputs.remove(name)
    if open_inputs:
        shown = "; ".join(_describe(name, inputs[name].type.tensor_type) for name in open_inputs)
        options = " ".join(f"--shape {name}={_proposal(inputs[name].type.tensor_type)}" for name in open_inputs)
        raise InputError(f"{path}: the shapes of its inputs are not fixed: {shown}. Fix them, for example with {options}.")


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value <= 0


def _is_name(text: str) -> bool:
    return re.fullmatch(r"\??", text) is None


def _bind(path: Path, name: str, tensor_type: onnx.TypeProto.Tensor, shape: list[int], bound: dict[str, int]) -> None:
    given = ",".join(str(extent) for extent in shape)
    if not all(extent > 0 for extent in shape):
        raise InputError(f"{path}: shape {given} for input '{name}': every extent must be positive. Check --shape.")
    if tensor_type.HasField("shape"):
        dims = tensor_type.shape.dim
        if len(dims) != len(shape):
            raise InputError(
                f"{path}: shape {given} for input '{name}' has {len(shape)} dimensions; the model has {len(dims)}: "
                f"{_describe(name, tensor_type)}. Check --shape."
            )
        for axis, (dim, extent) in enumerate(zip(dims, shape, strict=True)):
            if not _is_open(dim):
                if dim.dim_value != extent:
                    raise InputError(
                        f"{path}: shape {given} for input '{name}': dimension {axis} is fixed to {dim.dim_value} "
                        f"in the model, not {extent}. Check --shape, or export the model for that shape."
                    )
            elif _is_name(dim.dim_param) and bound.setdefault(dim.dim_param, extent) != extent:
                raise InputError(
                    f"{path}: shape {given} for input '{name}': dimension '{dim.dim_param}' is {bound[dim.dim_param]} "
                    f"elsewhere, not {extent}. Check --shape."
                )
    tensor_type.shape.ClearField("dim")
    tensor_type.shape.SetInParent()
    for extent in shape:
        tensor_type.shape.dim.add().dim_value = extent


def _describe(name: str, tensor_type: onnx.TypeProto.Tensor) -> str:
    if not tensor_type.HasField("shape"):
        return f"{name} (unknown rank)"
    words = [str(dim.dim_value) if not _is_open(dim) else dim.dim_param or "?" for dim in tensor_type.shape.dim]
    return f"{name} ({', '.join(words)})"


def _proposal(tensor_type: onnx.TypeProto.Tensor) -> str:
    if not tensor_type.HasField("shape"):
        return "1,3,224,224"
    dims = enumerate(tensor_type.shape.dim)
    return ",".join(str(DEMONSTRATION_EXTENT.get(axis, 224) if _is_open(dim) else dim.dim_value) for axis, dim in dims)
