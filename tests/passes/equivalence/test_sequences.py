"""Sequences of tensors beside ONNX Runtime and the ONNX project's own tests, and what is refused of them."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.model import collect_testcases as collect_model_cases
from onnx.backend.test.case.node import collect_testcases as collect_node_cases
from onnx.backend.test.case.test_case import TestCase

from sepwise.passes.equivalence import Oracle, bisect_graphs, compare_graph, compare_kernel, run_with_bounds, sample_inputs
from sepwise.passes.equivalence.graph import read_graph, spell_out
from sepwise.passes.errors import InputError, UnsupportedError

Run = Callable[..., dict[str, np.ndarray]]

OPERATORS = {"ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceLength", "SplitToSequence"}

# name: constants, nodes from x (2, 7, 3) and z of the same shape to y.
CASES = {
    "scalar split": ("int64 n = {3}, int64 i = {2}", "s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i)"),
    "from the end": ("int32 n = {2}, int32 i = {-2}", "s = SplitToSequence <axis = -2> (x, n) y = SequenceAt (s, i)"),
    "sizes": ("int64[3] n = {1, 4, 2}, int64 i = {1}", "s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i)"),
    "one size": ("int64[1] n = {7}, int64 i = {0}", "s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i)"),
    "keepdims of sizes": (
        "int64[3] n = {1, 5, 1}, int64 i = {0}",
        "s = SplitToSequence <axis = 1, keepdims = 0> (x, n) y = SequenceAt (s, i)",
    ),
    "each": ("int64 i = {4}", "s = SplitToSequence <axis = 1> (x) y = SequenceAt (s, i)"),
    "unbind": ("int64 i = {4}", "s = SplitToSequence <axis = 1, keepdims = 0> (x) y = SequenceAt (s, i)"),
    "one taken twice": (
        "int64 i = {1}, int64 j = {-6}",
        "s = SplitToSequence <axis = 1> (x) a = SequenceAt (s, i) b = SequenceAt (s, j) y = Concat <axis = 0> (a, b)",
    ),
    "operands": ("int64 i = {-1}", "s = SequenceConstruct (x, z) y = SequenceAt (s, i)"),
    "length": ("int64 n = {3}", "s = SplitToSequence <axis = 1> (x, n) y = SequenceLength (s)"),
    "length of operands": ("", "s = SequenceConstruct (x, z, x) y = SequenceLength (s)"),
    "concatenated": ("", "s = SequenceConstruct (x, z) y = ConcatFromSequence <axis = -1> (s)"),
    "stacked": ("", "s = SequenceConstruct (x, z) y = ConcatFromSequence <axis = 1, new_axis = 1> (s)"),
    "stacked at the end": ("", "s = SequenceConstruct (x, z) y = ConcatFromSequence <axis = -1, new_axis = 1> (s)"),
    "unbound and stacked": (
        "",
        "s = SplitToSequence <axis = 1, keepdims = 0> (x) y = ConcatFromSequence <axis = 2, new_axis = 1> (s)",
    ),
}


def build(constants: str, nodes: str, *, opset: int = 18, shape: str = "2,7,3") -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x, float[{shape}] z) => (float y) <{constants}> {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].ClearField("type")
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name: str, opset: int, run_onnxruntime: Run) -> None:
    model = build(*CASES[name], opset=opset)
    inputs = sample_inputs(model, 0)
    right, bound = run_with_bounds(model, inputs)["y"]
    check = compare_kernel(run_onnxruntime(model, inputs)["y"], right, bound)
    assert check.passed, check
    assert not np.any(bound)  # nothing is rounded
    assert not {op.operator for op in read_graph(model).operations} & OPERATORS


def bind(case: TestCase) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Makes positions and sizes constants, and outputs of the elements of a sequence that is an output."""
    ((given, expected),) = case.data_sets
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    free = [value for value in graph.input if value.name not in constants]
    feeds = {value.name: np.asarray(array) for value, array in zip(free, given, strict=True)}
    fixed = {name: feeds.pop(name) for name in [*feeds] if feeds[name].dtype.kind == "i"}
    kept = [value for value in free if value.name not in fixed]
    outputs: dict[str, np.ndarray] = {}
    shown = []
    for value, tensors in zip(graph.output, expected, strict=True):
        if not value.type.HasField("sequence_type"):
            outputs[value.name] = np.asarray(tensors)
            shown.append(value)
            continue
        for place, tensor in enumerate(tensors):
            name = f"{value.name}{place}"
            fixed[f"{name}.place"], outputs[name] = np.array(place), np.asarray(tensor)
            graph.node.append(helper.make_node("SequenceAt", [value.name, f"{name}.place"], [name]))
            shown.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    del graph.input[:], graph.output[:]
    graph.input.extend(kept)
    graph.output.extend(shown)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in fixed.items())
    return model, feeds, outputs


def test_tests_of_onnx(node_cases: Sequence[TestCase]) -> None:
    assert node_cases  # collects them with warnings off; they leave out those of sequences
    seen: Counter[str] = Counter()
    for case in [*collect_node_cases(None), *collect_model_cases()]:
        if case.model is None or not {node.op_type for node in case.model.graph.node} <= OPERATORS:
            continue
        model, feeds, outputs = bind(case)
        found = Oracle(model).run(feeds)
        for name, right in outputs.items():
            assert found[name].shape == right.shape, case.name
            np.testing.assert_array_equal(found[name], right, case.name)
        seen.update(node.op_type for node in case.model.graph.node)
    assert set(seen) == OPERATORS


FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 18, "f" : 1]>
g (float[2,7,3] x) => (float[2,3] y) { s = f.unbind (x) y = f.last (s) }
<opset_import: ["" : 18], domain: "f"> unbind (x) => (s) { a = Neg (x) s = SplitToSequence <axis = 1, keepdims = 0> (a) }
<opset_import: ["" : 18], domain: "f"> last (s) => (y) { i = Constant <value_int = -1> () y = SequenceAt (s, i) }
"""
BRANCH = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[2,7,3] x, bool p) => (float[2,3] y) <int64 n = {1}> {
  s = SplitToSequence <axis = 1, keepdims = 0> (x)
  y = If (p) <
    then_branch = t () => (float[2,3] a) { a = SequenceAt (s, n) },
    else_branch = e () => (float[2,3] b) {
      r = SplitToSequence <axis = 2> (x) i = Constant <value_int = 0> () c = SequenceAt (r, i)
      k = SequenceLength (r) d = Gather <axis = 1> (c, k) b = Expand (d, w)
    }
  >
}
"""


def test_functions_that_make_and_read_them() -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 3))
    np.testing.assert_array_equal(Oracle(onnx.parser.parse_model(FUNCTIONS)).run({"x": x})["y"], -x[:, 6])


@pytest.mark.parametrize("taken", [True, False])
def test_branches(*, taken: bool) -> None:
    """One reads a sequence from around it, the other has its own."""
    model = onnx.parser.parse_model(BRANCH.replace("<int64 n = {1}>", "<int64 n = {1}, int64[2] w = {2, 3}>"))
    x = np.random.default_rng(0).standard_normal((2, 7, 3))
    right = x[:, 1] if taken else np.broadcast_to(x[:, 3, :1], (2, 3))
    np.testing.assert_array_equal(Oracle(model).run({"x": x, "p": np.array(taken)})["y"], right)


def test_names_that_are_taken_already() -> None:
    made = "s = SplitToSequence <axis = 1> (x) t = ConcatFromSequence <axis = 1> (s) y = Add (t, z)"
    model = build("", made)
    model.graph.input[1].name = model.graph.node[2].input[1] = "s/0"
    (x, z) = np.random.default_rng(0).standard_normal((2, 2, 7, 3))
    np.testing.assert_array_equal(Oracle(model).run({"x": x, "s/0": z})["y"], x + z)


def test_a_model_without_them_stays_as_it_is() -> None:
    model = build("", "y = Add (x, z)")
    assert spell_out(model) is model


REFUSED = {
    "computed position": (
        UnsupportedError,
        "SequenceAt 'y': its position 'i' is computed",
        "s = SequenceConstruct (x, z) i = Size (x) y = SequenceAt (s, i)",
    ),
    "computed sizes": (
        UnsupportedError,
        "SplitToSequence 's': its sizes 'n' are computed",
        "n = Shape (x) s = SplitToSequence (x, n) y = SequenceLength (s)",
    ),
    "output": (UnsupportedError, "'y' is a sequence, and an input or an output of a graph", "y = SequenceConstruct (x, z)"),
    "another operator": (
        UnsupportedError,
        "SequenceErase 't': the oracle does not know it of a sequence",
        "s = SequenceConstruct (x, z) t = SequenceErase (s) y = SequenceLength (t)",
    ),
    "made otherwise": (
        UnsupportedError,
        "SequenceLength 'y': reads the sequence 's', which neither",
        "s = SequenceEmpty () y = SequenceLength (s)",
    ),
    "beyond the end": (
        InputError,
        "SequenceAt 'y': takes element 2 of a sequence of 2",
        "i = Constant <value_int = 2> () s = SequenceConstruct (x, z) y = SequenceAt (s, i)",
    ),
    "no size": (
        InputError,
        "splits into parts of 0 elements",
        "n = Constant <value_int = 0> () s = SplitToSequence (x, n) y = SequenceLength (s)",
    ),
    "keepdims that runtimes read otherwise": (
        UnsupportedError,
        "ONNX ignores keepdims=0 beside a scalar size",
        "n = Constant <value_int = 1> () s = SplitToSequence <keepdims = 0> (x, n) y = SequenceLength (s)",
    ),
    "no axis": (InputError, "axis 3 of a tensor of 3 axes", "s = SplitToSequence <axis = 3> (x) y = SequenceLength (s)"),
    "sizes that do not add up": (
        InputError,
        r"parts of \[4, 2\] elements",
        "n = Constant <value_ints = [4, 2]> () i = Constant <value_int = 1> () s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_static_is_refused(name: str) -> None:
    kind, message, nodes = REFUSED[name]
    model = build("", nodes)
    with pytest.raises(kind, match=message):
        Oracle(model).run(dict.fromkeys("xz", np.ones((2, 7, 3))))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("float[2,m,3] x", "axis 1 of 'x' has no static extent"),
        ("seq(float[2]) x", "reads the sequence 'x'"),
        ("float x", "shape of 'x'"),
    ],
)
def test_inputs_of_which_nothing_is_known(declared: str, message: str) -> None:
    nodes = "i = Constant <value_int = 1> () "
    nodes += "y = SequenceAt (x, i)" if "seq" in declared else "s = SplitToSequence <axis = 1> (x) y = SequenceAt (s, i)"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g ({declared}) => (float[2] y) {{ {nodes} }}')
    if declared == "float x":
        model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedError, match=message):
        read_graph(model)


def gated(split: str, gate: str) -> onnx.ModelProto:
    """A gated unit of a WaveNet: tanh of one half of the channels, sigmoid of the other."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[1,4,9] x) => (float[1,2,9] y) {{
          c = Relu (x)
          [halves] {split}
          [t] t = Tanh ({gate[0]}) [u] u = Sigmoid ({gate[1]}) [m] m = Mul (t, u) [y] y = Neg (m)
        }}""")


SEQUENCE = (
    "s = SplitToSequence <axis = 1> (c, n) zero = Constant <value_int = 0> () one = Constant <value_int = 1> () "
    "a = SequenceAt (s, zero) b = SequenceAt (s, one)"
)
TWO = "n = Constant <value_int = 2> () "
SPLIT = "a, b = Split <axis = 1> (c, n)"


@pytest.mark.parametrize(
    ("sizes", "gate", "wrong"),
    [("[2, 2]", "ab", ""), ("[2, 2]", "ba", "m"), ("[1, 3]", "ab", "b"), ("[2, 1]", "ab", "b")],
    ids=["right", "swapped", "one off", "too few"],
)
def test_a_wrong_split_is_found_and_located(sizes: str, gate: str, wrong: str) -> None:
    original = gated(TWO + SEQUENCE, "ab")
    rewritten = gated(f"n = Constant <value_ints = {sizes}> () {SPLIT}", gate)
    inputs = sample_inputs(original, 0)
    (check,) = compare_graph(original, rewritten, inputs)
    assert check.passed == (not wrong), check
    if wrong:
        found = bisect_graphs(original, rewritten, [inputs])
        assert found.reproduces
        assert found.finding[0].startswith(f"'{wrong}' is wrong"), found.finding
