"""Cuts a part out of a model: the nodes between given values, as a model of its own."""

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import helper, shape_inference

from sepwise.passes.equivalence.graph import Model, as_proto
from sepwise.passes.errors import InputError

__all__ = ["declared_types", "extract", "extract_like"]


def extract(
    model: Model,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    types: Mapping[str, onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """Cuts out the nodes that compute some values from others.

    Args:
        model: a model, best a canonical one: its intermediate values have types and shapes.
        inputs: values that become inputs of the part. Initializers need not be listed.
        outputs: values that become its outputs.
        types: what inputs and outputs are declared as; as the model declares them, or as inferred, where None.

    Returns:
        A model of its own with the nodes in between in their order, under their names, the initializers and
        functions that they use, and the types of the values between them.

    Raises:
        InputError: if a value does not exist, an output does not depend on the given inputs alone, or the type of an
            input is not known.
    """
    proto = as_proto(model)
    graph = proto.graph
    nodes = _between(graph, set(inputs), outputs)
    used = {name for node in nodes for name in _reads(node)} | set(outputs)
    infos = declared_types(proto, [] if types else [*inputs, *outputs]) | dict(types or {})

    made = {name for node in nodes for name in node.output}
    part = helper.make_graph(
        nodes,
        graph.name or "part",
        [_info(infos, name) for name in inputs],
        [_info(infos, name) for name in outputs],
        [tensor for tensor in graph.initializer if tensor.name in used and tensor.name not in inputs],
        value_info=[infos[name] for name in sorted(made - set(outputs)) if name in infos],
        sparse_initializer=[tensor for tensor in graph.sparse_initializer if tensor.values.name in used],
    )
    return _as_model(part, proto)


def extract_like(model: Model, sources: Mapping[str, str], output: tuple[str, str], pattern: onnx.ModelProto) -> onnx.ModelProto:
    """Cuts out the nodes that stand in the place of another part, under the names of that part.

    Args:
        model: the model to cut.
        sources: its values that become inputs, and the input of `pattern` that each of them is.
        output: its value that becomes the output, and the output of `pattern` that it is.
        pattern: the other part, of one output; it says names and types of inputs and output.

    Returns:
        A model of its own with the inputs and the output of `pattern`.

    Raises:
        InputError: if a value does not exist, or the output depends on more than `sources`.
    """
    proto = as_proto(model)
    name, wanted = output
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in _between(proto.graph, set(sources), [name])]
    used = {read for node in nodes for read in _reads(node)} | {name}
    taken = {value.name for value in [*pattern.graph.input, *pattern.graph.output]}
    own = used | {made for node in nodes for made in node.output}
    names = {each: f"{each}.rewritten" for each in own & taken} | dict(sources) | {name: wanted}
    _rename(nodes, names)
    constants = []
    for tensor in proto.graph.initializer:
        if tensor.name in used and tensor.name not in sources:
            copy = onnx.TensorProto.FromString(tensor.SerializeToString())
            copy.name = names.get(tensor.name, tensor.name)
            constants.append(copy)
    (shown,) = pattern.graph.output
    tensor = shown.type.tensor_type
    anything = [None] * len(tensor.shape.dim)  # the shape may be what is wrong
    made = helper.make_tensor_value_info(wanted, tensor.elem_type, anything)
    return _as_model(helper.make_graph(nodes, proto.graph.name or "part", pattern.graph.input, [made], constants), proto)


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Renames values in nodes and their subgraphs."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            _rename(attribute.g.node, names)
            for value in attribute.g.output:
                value.name = names.get(value.name, value.name)


def _as_model(part: onnx.GraphProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Makes a model of a part, with the operator sets and functions that it needs."""
    nodes = part.node
    functions = _functions_of(nodes, proto)
    domains = {node.domain for node in nodes} | {""} | {o.domain for f in functions for o in f.opset_import}
    return helper.make_model(
        part,
        ir_version=proto.ir_version,
        opset_imports=[entry for entry in proto.opset_import if entry.domain in domains],
        functions=functions,
        producer_name=proto.producer_name,
    )


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Lists the values that a node reads, those that its subgraphs capture included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = {name for n in attribute.g.node for name in n.output} | {t.name for t in attribute.g.initializer}
            inner |= {value.name for value in attribute.g.input}
            for nested in attribute.g.node:
                yield from (name for name in _reads(nested) if name not in inner)
            yield from (value.name for value in attribute.g.output if value.name not in inner)


def _between(graph: onnx.GraphProto, sources: set[str], targets: Sequence[str]) -> list[onnx.NodeProto]:
    """Lists the nodes that compute the targets from the sources, in graph order."""
    producer = {name: node for node in graph.node for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    free = {value.name for value in graph.input} - constants
    for name in [*sources, *targets]:
        if name not in producer and name not in constants and name not in free:
            raise InputError(f"Cannot extract: the graph has no value named {name!r}.")
    needed: set[str] = set()
    pending = [name for name in targets if name not in sources]
    while pending:
        name = pending.pop()
        if name in needed or name in sources or name in constants:
            continue
        if name not in producer:
            raise InputError(
                f"Cannot extract: {', '.join(map(repr, targets))} also depends on the input {name!r}, which is not among the "
                f"given inputs {sorted(sources)}. Add it."
            )
        needed.add(name)
        pending.extend(_reads(producer[name]))
    return [node for node in graph.node if needed.intersection(node.output)]


def declared_types(proto: onnx.ModelProto, wanted: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    """Collects what is declared about values; infers it where something wanted is missing.

    Args:
        proto: the model.
        wanted: values whose types have to be complete.

    Returns:
        Declarations by value name, those of initializers included.
    """

    def declared(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
        infos = {value.name: value for value in [*graph.input, *graph.output, *graph.value_info]}
        for tensor in graph.initializer:
            infos.setdefault(tensor.name, helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return infos

    infos = declared(proto.graph)
    if any(not _is_complete(infos.get(name)) for name in wanted):
        infos = infos | declared(shape_inference.infer_shapes(proto).graph)
    return infos


def _is_complete(info: onnx.ValueInfoProto | None) -> bool:
    return info is not None and info.type.tensor_type.elem_type != 0 and info.type.tensor_type.HasField("shape")


def _info(infos: dict[str, onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    if name not in infos or not infos[name].type.HasField("tensor_type"):
        raise InputError(f"Cannot extract: the type of {name!r} is not known. Run shape inference (sepwise fuse) first.")
    return infos[name]


def _functions_of(nodes: Iterable[onnx.NodeProto], proto: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """Lists the functions that nodes call, those that these call included."""
    known = {(f.domain, f.name, f.overload): f for f in proto.functions}
    found: dict[tuple[str, str, str], onnx.FunctionProto] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        key = (node.domain, node.op_type, node.overload)
        if key in known and key not in found:
            found[key] = known[key]
            pending.extend(known[key].node)
        for attribute in node.attribute:
            pending.extend(attribute.g.node)
    return [function for key, function in known.items() if key in found]
