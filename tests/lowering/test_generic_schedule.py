"""Generic kernels against ONNX's reference evaluator, in every layout, on the object code that ships."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepwise.lowering import device, generic
from sepwise.lowering.graph import Layout, pack, unpack

UNIT = 2.0**-24

# name: text of the graph, initializers, roundings of one output as a multiple of the unit and of sum |terms|
GRAPHS = {
    "global_average_pool": ("(float[2,37,5,7] x) => (float[2,37,1,1] y) { y = GlobalAveragePool(x) }", {}, 40),
    "reduce_mean": ("(float[2,37,5,7] x) => (float[2,37] y) { y = ReduceMean<axes=[2,3], keepdims=0>(x) }", {}, 40),
    "reduce_channels": ("(float[2,37,5,7] x) => (float[2,1,5,7] y) { y = ReduceMax<axes=[1], keepdims=1>(x) }", {}, 0),
    "mean_of_channels": ("(float[1,48,5,7] x) => (float[1,5,7] y) { y = ReduceMean<axes=[1], keepdims=0>(x) }", {}, 50),
    "max_pool": ("(float[1,19,14,11] x) => (float[1,19,7,6] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }", {}, 0),
    "max_pool_wide": ("(float[1,24,6,6] x) => (float[1,24,6,6] y) { y = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x) }", {}, 0),
    "average_pool": (
        "(float[1,19,9,8] x) => (float[1,19,5,4] y) { y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }",
        {},
        12,
    ),
    "difference_with_itself": ("(float[1,4,17,9] x) => (float[1,4,17,9] y) { d = Sub(x, x) y = Erf(d) }", {}, 0),
    "squeeze_excite": (
        "(float[2,37,5,6] x, float[2,37,1,1] s) => (float[2,37,5,6] y) { h = HardSigmoid<alpha=0.2, beta=0.5>(s) y = Mul(x, h) }",
        {},
        8,
    ),
    "gate": ("(float[1,20,5,6] x, float[1,20,1,1] s) => (float[1,20,5,6] y) { h = Sigmoid(s) y = Mul(x, h) }", {}, 8),
    "affine": (
        "(float[1,21,5,6] x) => (float[1,21,5,6] y) { a = Mul(x, scale) y = Add(a, shift) }",
        {"scale": np.linspace(-1, 2, 21).reshape(1, 21, 1, 1), "shift": np.linspace(3, 1, 21).reshape(21, 1, 1)},
        8,
    ),
    "concat": (
        "(float[1,10,3,4] a, float[1,21,3,4] b, float[1,16,3,4] c) => (float[1,47,3,4] y) { y = Concat<axis=1>(a, b, c) }",
        {},
        0,
    ),
    "concat_aligned": ("(float[1,32,3,4] a, float[1,16,3,4] b) => (float[1,48,3,4] y) { y = Concat<axis=1>(a, b) }", {}, 0),
    "concat_rows": ("(float[1,9,3,4] a, float[1,9,2,4] b) => (float[1,9,5,4] y) { y = Concat<axis=2>(a, b) }", {}, 0),
    "concat_columns": ("(float[1,9,3,4] a, float[1,9,3,2] b) => (float[1,9,3,6] y) { y = Concat<axis=3>(a, b) }", {}, 0),
    "concat_column": ("(float[1,9,1] a, float[1,9,4] b) => (float[1,9,5] y) { m = Mul(b, a) y = Concat<axis=2>(a, m) }", {}, 1),
    "relu_of_concat": (
        "(float[1,10,3,4] a, float[1,21,3,4] b) => (float[1,31,3,4] y) { c = Concat<axis=1>(a, b) y = Relu(c) }",
        {},
        0,
    ),
    "split": (
        "(float[1,30,4,3] x) => (float[1,13,4,3] a, float[1,17,4,3] b) { a, b = Split<axis=1>(x, parts) }",
        {"parts": np.array([13, 17])},
        0,
    ),
    "channel_shuffle": (
        "(float[1,13,4,3] a, float[1,13,4,3] b) => (float[1,26,4,3] y) "
        "{ c = Concat<axis=1>(a, b) r = Reshape(c, five) t = Transpose<perm=[0,2,1,3,4]>(r) y = Reshape(t, four) }",
        {"five": np.array([1, 2, 13, 4, 3]), "four": np.array([1, 26, 4, 3])},
        0,
    ),
    "resize_nearest": (
        '(float[1,18,3,4] x) => (float[1,18,6,8] y) { y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, "", scales) }',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        0,
    ),
    "resize_linear": (
        '(float[1,18,3,4] x) => (float[1,18,6,8] y) { y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">'
        '(x, "", scales) }',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        64,
    ),
    "resize_beside": (
        '(float[1,18,3,4] x, float[1,16,6,8] z) => (float[1,34,6,8] y) { '
        'r = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, "", scales) y = Concat<axis=1>(r, z) }',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        64,
    ),
    "transposed_sum": (
        "(float[1,24,5,18] x, float[1,5,18,24] z, float[1,24,1,1] s) => (float[1,5,18,24] y) "
        "{ m = Mul(x, s) t = Transpose<perm=[0,2,3,1]>(m) h = Sigmoid(t) y = Add(h, z) }",
        {},
        16,
    ),
    "anchors": (
        "(float[1,21,4,5] x) => (float[1,60,7] y) "
        "{ f = Reshape(x, five) t = Transpose<perm=[0,1,3,4,2]>(f) h = Sigmoid(t) y = Reshape(h, rows) }",
        {"five": np.array([1, 3, 7, 4, 5]), "rows": np.array([1, 60, 7])},
        16,
    ),
    "reshaped_transpose": (
        "(float[2,6,4,35] x) => (float[2,35,24] y) { f = Reshape(x, three) y = Transpose<perm=[0,2,1]>(f) }",
        {"three": np.array([2, 24, 35])},
        0,
    ),
    "pad": ("(float[1,18,3,4] x) => (float[1,18,5,7] y) { y = Pad(x, pads) }", {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 1])}, 0),
    "pad_channels": ("(float[1,18,3,4] x) => (float[1,23,3,4] y) { y = Pad(x, pads) }", {"pads": np.array([0, 2, 0, 0, 0, 3, 0, 0])}, 0),
    "slice_channels": (
        "(float[1,40,3,4] x) => (float[1,17,3,4] y) { y = Slice(x, start, end, axis) }",
        {"start": np.array([5]), "end": np.array([22]), "axis": np.array([1])},
        0,
    ),
    "transpose": ("(float[1,9,5,18] x) => (float[1,18,5,9] y) { y = Transpose<perm=[0,3,2,1]>(x) }", {}, 0),
    "transpose_matrix": ("(float[2,35,41] x) => (float[2,41,35] y) { y = Transpose<perm=[0,2,1]>(x) }", {}, 0),
    "sequence": ("(float[2,19,33] x) => (float[2,19,33] y) { y = Tanh(x) }", {}, 16),
    "volume": ("(float[1,18,2,3,4] x) => (float[1,18,1,1,1] y) { y = GlobalAveragePool(x) }", {}, 40),
    "softmax": ("(float[3,5,37] x) => (float[3,5,37] y) { y = Softmax<axis=-1>(x) }", {}, 64),
    "softmax_channels": ("(float[1,37,3,4] x) => (float[1,37,3,4] y) { y = Softmax<axis=1>(x) }", {}, 64),
    "layer_norm": (
        "(float[7,70] x) => (float[7,70] y) { y = LayerNormalization(x, scale, shift) }",
        {"scale": np.linspace(-1, 2, 70), "shift": np.linspace(3, 1, 70)},
        400,
    ),
    "depth_to_space": ('(float[1,76,3,4] x) => (float[1,19,6,8] y) { y = DepthToSpace<blocksize=2, mode="DCR">(x) }', {}, 0),
    "softplus": ("(float[1,18,3,4] x) => (float[1,18,3,4] y) { y = Softplus(x) }", {}, 16),
    "matmul": ("(float[2,9,33] a, float[2,33,37] b) => (float[2,9,37] y) { y = MatMul(a, b) }", {}, 0),
}

TARGETS = ["x86-64-v4", "x86-64-v3"]


def parse(name: str) -> ir.Model:
    text, initializers, _ = GRAPHS[name]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    for key, array in initializers.items():
        kept = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kept, key))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def workload(model: ir.Model) -> tuple[generic.GenericWorkload, list[np.ndarray], tuple[str, ...], tuple[str, ...]]:
    graph = generic.import_generic(model, list(model.graph))
    (kernel,) = graph.kernels
    return kernel.workload, [graph.constants[name] for name in kernel.constants], kernel.inputs, kernel.outputs


def layouts_of(ranks: list[int], lanes: int) -> list[tuple[Layout, ...]]:
    """All plain, all packed, and both mixtures of inputs and outputs."""
    packed = [Layout(lanes) if rank >= 3 else Layout() for rank in ranks]
    return [tuple(packed), tuple(Layout() for _ in ranks)]


def inputs_of(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {value.name: rng.standard_normal([int(d) for d in value.shape]).astype(np.float32) for value in model.graph.inputs}


def exact(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference evaluator in float64."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "scales":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    names = [value.name for value in model.graph.outputs]
    return dict(zip(names, evaluator.run(None, {k: v.astype(np.float64) for k, v in inputs.items()}), strict=True))


def poisoned(array: np.ndarray, layout: Layout) -> np.ndarray:
    """The array in a layout, its pad lanes NaN: nothing may depend on them."""
    if not layout.packed:
        return array
    packed = pack(array, layout.lanes)
    tail = array.shape[1] % layout.lanes
    if tail:
        packed[:, -1, ..., tail:] = np.nan
    return packed


def aligned(size: int) -> np.ndarray:
    raw = np.full(size + 16, -7.0, np.float32)
    return raw[(-raw.ctypes.data % 64) // 4 :][:size]


def run(native, symbol, shaped, constants, inputs, expected):
    """Calls one kernel and unpacks what it wrote."""
    given = [poisoned(array, layout) for array, layout in zip(inputs, shaped.input_layouts, strict=True)]
    outputs = [
        aligned(int(np.prod(layout.physical_shape(array.shape))))
        for array, layout in zip(expected, shaped.output_layouts, strict=True)
    ]
    native(symbol, *given, *constants, *outputs)
    found = []
    for output, array, layout in zip(outputs, expected, shaped.output_layouts, strict=True):
        physical = output.reshape(layout.physical_shape(array.shape))
        found.append(unpack(physical, array.shape[1]) if layout.packed else physical)
    return found


@pytest.fixture(scope="module", params=TARGETS)
def kernels(request, native):
    """Every graph in every layout, in one library."""
    target = device.get(request.param)
    functions, cases = {}, {}
    for name in GRAPHS:
        model = parse(name)
        plain, constants, inputs, outputs = workload(model)
        feeds = inputs_of(model)
        wanted = exact(model, feeds)
        read_arrays, expected = [feeds[i] for i in inputs], [wanted[o] for o in outputs]
        choices = itertools.product(
            layouts_of([a.ndim for a in read_arrays], target.lanes), layouts_of([a.ndim for a in expected], target.lanes)
        )
        for number, (read, written) in enumerate(dict.fromkeys(choices)):
            shaped = replace(plain, input_layouts=read, output_layouts=written)
            symbol = f"{name}_{number}"
            functions[symbol] = generic.schedule_generic(shaped, target)
            cases.setdefault(name, []).append((symbol, shaped, constants, read_arrays, expected))
    return native(functions, target), cases


@pytest.mark.parametrize("name", GRAPHS)
def test_matches_the_reference_in_every_layout(kernels, name):
    library, cases = kernels
    for symbol, shaped, constants, arrays, expected in cases[name]:
        for found, wanted in zip(run(library, symbol, shaped, constants, arrays, expected), expected, strict=True):
            roundings = GRAPHS[name][2]
            if name == "matmul":
                terms = np.abs(arrays[0].astype(np.float64)) @ np.abs(arrays[1].astype(np.float64))
                bound = arrays[0].shape[-1] * UNIT * terms
            else:
                bound = roundings * UNIT * (1 + np.abs(wanted).max())
            assert np.all(np.abs(found - wanted) <= bound), (symbol, shaped.key)


@pytest.mark.parametrize("name", ["cortex-a72", "cortex-a7"])
def test_foreign_objects_need_nothing(foreign_symbols, name):
    target = device.get(name)
    functions = {}
    for graph in GRAPHS:
        plain, *_ = workload(parse(graph))
        ranks = [len(parameter.ty.shape) for parameter in plain.function.params]
        read, written = len(plain.input_layouts), len(plain.output_layouts)
        for number, lanes in enumerate((0, target.lanes)):
            layouts = [Layout(lanes) if rank >= 3 else Layout() for rank in ranks]
            shaped = replace(plain, input_layouts=tuple(layouts[:read]), output_layouts=tuple(layouts[-written:]))
            functions[f"{graph}_{number}"] = generic.schedule_generic(shaped, target)
    assert foreign_symbols(functions, target) == []


UNARY = ["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "HardSwish"]
BINARY = ["Add", "Sub", "Mul", "Max"]


@st.composite
def elementwise_graphs(draw):
    """Up to six operators over tensors that broadcast along some axes."""
    shape = [draw(st.sampled_from([1, 2])), draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 20))]
    shapes = [shape] + [[d if draw(st.booleans()) else 1 for d in shape] for _ in range(draw(st.integers(0, 2)))]
    lines, values = [], [f"x{i}" for i in range(len(shapes))]
    for number in range(draw(st.integers(1, 5))):
        operands = [values[-1] if number else values[0]]
        operator = draw(st.sampled_from(UNARY + BINARY))
        if operator in BINARY:
            operands.append(draw(st.sampled_from(values)))
        values.append(f"v{number}")
        lines.append(f"v{number} = {operator}({', '.join(operands)})")
    lines.append("y = Add(" + ", ".join([values[-1], values[0]]) + ")")
    heads = ", ".join(f"float[{','.join(map(str, s))}] x{i}" for i, s in enumerate(shapes))
    text = f"({heads}) => (float[{','.join(map(str, shape))}] y) {{ {' '.join(lines)} }}"
    return text, draw(st.lists(st.booleans(), min_size=len(shapes) + 1, max_size=len(shapes) + 1))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(case=elementwise_graphs(), target=st.sampled_from(TARGETS))
def test_random_elementwise_graphs_in_random_layouts(native, case, target):
    text, packed = case
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    kernels = generic.import_generic(graph, list(graph.graph)).kernels
    chosen = device.get(target)
    feeds = inputs_of(graph)
    layouts = {value.name: Layout(chosen.lanes) if p else Layout() for value, p in zip(graph.graph.inputs, packed[1:], strict=True)}
    layouts["y"] = Layout(chosen.lanes) if packed[0] else Layout()
    values = dict(feeds)
    functions = {}
    for kernel in kernels:
        shaped = replace(
            kernel.workload,
            input_layouts=tuple(layouts.get(name, Layout()) for name in kernel.inputs),
            output_layouts=tuple(layouts.get(name, Layout()) for name in kernel.outputs),
        )
        functions[kernel.name] = generic.schedule_generic(shaped, chosen)
        kernel.workload = shaped
    library = native(functions, chosen)
    shapes = {value.name: tuple(int(d) for d in value.shape) for node in graph.graph for value in node.outputs}
    for kernel in kernels:
        expected = [np.empty(shapes[name], np.float32) for name in kernel.outputs]
        found = run(library, kernel.name, kernel.workload, [], [values[name] for name in kernel.inputs], expected)
        values.update(zip(kernel.outputs, found, strict=True))
    wanted = exact(graph, feeds)["y"]
    # Each of at most six operators at most doubles the error or squares the magnitude; compared where it stayed moderate.
    moderate = np.abs(wanted) < 1e3
    assert np.all(np.abs(values["y"] - wanted)[moderate] <= 2**10 * UNIT * (1 + np.abs(wanted[moderate])))
