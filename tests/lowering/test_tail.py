"""Networks that end in operators of TVM's runtime, and outputs that no kernel computes, against the oracle."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sepwise.lowering import artifact, build
from sepwise.lowering.runner import NativeRunner
from sepwise.lowering.tail import TailRunner, find_runtime_nodes, split
from sepwise.passes import canonicalize, fuse
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import InputError, UnsupportedError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def convolution(outputs: str, body: str, constants: str = "", inputs: str = "float[1,3,12,12] x") -> onnx.ModelProto:
    """A convolution and what follows it; `c` is its output, `r` that of its activation."""
    model = onnx.parser.parse_model(f"""{HEAD}
    net ({inputs}) => ({outputs}) <float[8,3,3,3] w, float[8] b {constants}> {{
      [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
      [act] r = Relu (c)
      {body}
    }}""")
    return with_weights(model)


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns values that nothing computes into seeded weights."""
    computed = {name for node in model.graph.node for name in node.output}
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        if value.name not in computed:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            weight = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
    del model.graph.value_info[:]
    return model


IF = """y = If (t) <then_branch = yes () => (float[1,8,12,12] a) { a = Neg (r) },
                    else_branch = no () => (float[1,8,12,12] e) { e = Conv (r, w2) }>"""

TAILS = {
    "top-k": (convolution("float[1,3] v, int64[1,3] i", """
        p = GlobalAveragePool (r)
        q = Flatten (p)
        [top] v, i = TopK (q, k)""", ", int64[1] k = {3}"), ("top",)),
    "top-k of a batch, and behind it": (convolution("float[3,4] y, int64[3,3] i, float[3,8] q", """
        p = GlobalAveragePool (r)
        q = Flatten (p)
        [top] v, i = TopK (q, k)
        [product] y = MatMul (v, w2)""", ", int64[1] k = {3}, float[3,4] w2", "float[3,3,12,12] x"), ("top", "product")),
    "a fused convolution behind top-k": (convolution("float[1,4,3,12] y", """
        [top] v, i = TopK <axis = 2> (r, k)
        [after] d = Conv (v, w2)
        [act2] y = Relu (d)""", ", int64[1] k = {3}, float[4,8,1,1] w2"), ("top", "after")),
    "shapes that depend on data": (convolution("float[n] y, float[1,8,12,12] r", """
        [where] z = NonZero (r)
        [turn] t = Transpose <perm = [1,0]> (z)
        [take] g = GatherND (r, t)
        [root] y = Sqrt (g)"""), ("where", "turn", "take", "root")),
    "branches that capture": (convolution("float[1,8,12,12] y", f"[branch] {IF}", ", float[8,8,1,1] w2",
        "float[1,3,12,12] x, bool t"), ("branch",)),
    "nothing but a tail": (onnx.parser.parse_model(f"{HEAD} net (float[10] x) => (int64[1,n] y) {{ [only] y = NonZero (x) }}"),
        ("only",)),
    "a function of a C library": (convolution("double[1,8,12,12] y", """
        [wide] d = Cast <to = 11> (r)
        y = Exp (d)"""), ("wide",)),
    "integers decide": (onnx.parser.parse_model(f"""{HEAD}
        net (int64 a, int64 b) => (int64[n] y) <int64 step = {{1}}> {{ [range] y = Range (a, b, step) }}"""), ("range",)),
}  # fmt: skip

OUTPUTS = {
    "an input": convolution("float[1,3,12,12] x, float[1,8,12,12] r", ""),
    "a constant": convolution("float[1,8,12,12] r, float[2] k", "", ", float[2] k = {1.5, -2}"),
    "nothing but an input": onnx.parser.parse_model(f"{HEAD} net (float[3] x) => (float[3] x) {{ }}"),
    "views of each other": convolution("float[1,8,12,12] r, float[1,m] v, float[n,12] u, float[1,432] z", """
        v = Reshape (r, flat)
        u = Reshape (v, rows)
        z = Reshape (x, flat)""", ", int64[2] flat = {1, -1}, int64[2] rows = {-1, 12}"),
    "two views of a value inside": convolution("float[1,1152] v, float[96,12] u", """
        v = Reshape (r, flat)
        u = Reshape (r, rows)""", ", int64[2] flat = {1, -1}, int64[2] rows = {-1, 12}"),
    "a view of what a convolution reads": convolution("float[1,1152] v, float[1,4,12,12] y", """
        v = Reshape (r, flat)
        y = Conv (r, w2)""", ", int64[2] flat = {1, -1}, float[4,8,1,1] w2"),
    "the same twice": convolution("float[1,8,12,12] r, float[1,8,12,12] i", "i = Identity (r)"),
    "beside an input that nothing reads": convolution("float[1,8,12,12] r", "", inputs="float[1,3,12,12] x, float[5] unused"),
    "a scalar, from a scalar": convolution("float y", """
        m = Mul (r, s)
        y = ReduceSum <keepdims = 0> (m)""", inputs="float[1,3,12,12] x, float s"),
}  # fmt: skip


def check(model: onnx.ModelProto, found: dict[str, np.ndarray], feed: dict[str, np.ndarray]) -> None:
    """Compares outputs with the oracle, within what the rounding of float32 explains."""
    oracle = Oracle(model)
    expected = [oracle.run(feed)]
    result = compare_execution([found], expected, [execution_sigma(oracle, feed)])
    assert result.passed, result.reason
    assert list(found) == list(dict.fromkeys(value.name for value in model.graph.output))


@pytest.mark.parametrize("name", TAILS)
def test_a_tail_runs_from_the_artifact(name: str, tmp_path: Path) -> None:
    model, nodes = TAILS[name]
    made = build.compile(ir.from_proto(model), output=tmp_path / "made")
    assert tuple(made.report["tail"])[: len(nodes)] == nodes
    assert (tmp_path / "made" / "tail.onnx").exists()
    with artifact.load(tmp_path / "made") as loaded:
        for seed in range(2):
            feed = sample_inputs(model, seed)
            check(model, loaded.run(**feed), feed)


def test_a_tail_is_timed_with_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, nodes = TAILS["a fused convolution behind top-k"]
    with build.compile(ir.from_proto(model)) as made:
        made.run(**sample_inputs(model, 0))
        assert isinstance(made.runner, NativeRunner)
        calls: list[None] = []
        run = TailRunner.run
        monkeypatch.setattr(TailRunner, "run", lambda self, values: calls.append(None) or run(self, values))
        assert len(made.runner.time(3)) == len(calls) == 3
        assert [len(times_us) for times_us in made.runner.time_kernels(2)] == [2] * (len(made.program.calls) + 1)
        (*_, last) = made.profile(repeats=1)
    assert (last.name, last.nodes, last.macs) == ("tail", nodes, 4 * 8 * 3 * 12)
    assert made.program.macs == 4 * 8 * 3 * 12 + 8 * 3 * 9 * 12 * 12


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_kind_of_output(name: str) -> None:
    with build.compile(ir.from_proto(OUTPUTS[name])) as made:
        assert made.report["tail"] == ()
        feed = sample_inputs(OUTPUTS[name], 0)
        check(OUTPUTS[name], made.run(**feed), feed)


def test_non_maximum_suppression_agrees_with_onnx_runtime() -> None:
    model = onnx.parser.parse_model(f"""{HEAD}
    net (float[1,6,4] boxes, float[1,2,6] x) => (int64[n,3] i, float[1,2,6] s) <int64 most = {{3}}, float iou = {{0.5}}, float least = {{0.4}}>
    {{
      s = Sigmoid (x)
      [nms] i = NonMaxSuppression (boxes, s, most, iou, least)
    }}""")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with build.compile(ir.from_proto(model)) as made:
        assert made.report["tail"] == ("nms",)
        for seed in range(4):
            corner = np.random.default_rng(seed).uniform(0, 1, (1, 6, 2)).astype(np.float32)
            feed = {"boxes": np.concatenate([corner, corner + 0.6], axis=2), "x": sample_inputs(model, seed)["x"]}
            np.testing.assert_array_equal(made.run(**feed)["i"], session.run(["i"], feed)[0])


def test_a_constant_condition_needs_no_runtime() -> None:
    model = convolution("float[1,8,12,12] y", IF, ", bool t = {1}, float[8,8,1,1] w2")
    with build.compile(ir.from_proto(model)) as made:
        assert made.report["tail"] == ()
        feed = sample_inputs(model, 0)
        check(model, made.run(**feed), feed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top-k", "Node 'top': TopK needs TVM's runtime, which 'cortex-a72' has not"),
        ("shapes that depend on data", "Node 'where': NonZero needs TVM's runtime"),
        ("a function of a C library", "Node 'wide' .Cast.Exp.: it becomes no static kernel: it would call llvm.exp of a C library; "
            "it needs TVM's runtime, which 'cortex-a72' has not. Compile for the target 'host'"),
        ("integers decide", "the shape of its output depends on data, it needs TVM's runtime, which 'cortex-a72' has not. Compile"),
    ],
)
def test_an_emulated_target_refuses_and_names_the_operator(name: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build.compile(ir.from_proto(TAILS[name][0]), target="cortex-a72")


def test_what_tvm_does_not_take_is_refused() -> None:
    model = onnx.parser.parse_model(f"""{HEAD}
    net (float[4] x, int64 n, bool c) => (float[4] y) {{
      [again] y = Loop (n, c, x) <body = step (int64 i, bool go, float[4] s) => (bool on, float[4] t) {{
        on = Identity (go)
        t = Add (s, s)
      }}>
    }}""")
    with pytest.raises(UnsupportedError, match=r"'again' .Loop.: TVM does not take them: .*Loop"):
        build.compile(ir.from_proto(model))


def test_a_damaged_tail_is_found(tmp_path: Path) -> None:
    build.compile(ir.from_proto(TAILS["nothing but a tail"][0]), output=tmp_path / "made")
    path = tmp_path / "made" / "tail.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"tail.onnx: damaged"):
        artifact.load(tmp_path / "made")


def test_split_leaves_the_model_as_it_is_and_names_what_passes_between() -> None:
    model = fuse(canonicalize(ir.from_proto(TAILS["top-k of a batch, and behind it"][0]))).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    head, tail = split(model, find_runtime_nodes(model))
    assert tail is not None
    assert (tail.inputs, tail.outputs, tail.results) == (("q",), ("y", "i"), ("y", "i", "q"))
    assert [value.name for value in head.graph.outputs] == ["q"]
    assert not {node.op_type for node in head.graph} & {"TopK", "MatMul"}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert split(model, ()) == (model, None)
