from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from sepwise import comparison
from sepwise.comparison import compare_files, run_onnxruntime
from sepwise.files import ModelFile, resolve
from sepwise.passes.errors import CheckFailed, InputError, UnsupportedError

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 4, 1, 1] w>
{
   h = Conv(x, w)
   y = Relu(h)
}
"""


def saved(path: Path, *, scale: float = 1.0, activation: str = "Relu", output: str = "y") -> Path:
    model = parser.parse_model(NETWORK.replace("Relu", activation).replace("y", output))
    weight = np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight * np.float32(scale), "w"))
    onnx.save(model, path)
    return path


def test_a_file_equals_itself(tmp_path: Path) -> None:
    file = resolve(saved(tmp_path / "a.onnx"))
    verdict = compare_files(file, file)
    assert verdict.passed
    assert {check.scope for check in verdict.checks} == {"graph", "model"}
    json = verdict.to_json()
    assert json["target"] is None
    assert json["worst_ratio"] <= 1


def test_answers_are_told_on_given_inputs(tmp_path: Path) -> None:
    """Scaled weights are wrong, and the largest channel is the largest one nevertheless; drawn inputs have no answer to tell."""
    first, second = (resolve(saved(tmp_path / f"{name}.onnx", scale=scale)) for name, scale in (("a", 1.0), ("b", 2.0)))
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    verdict = compare_files(first, second, {"x": x})
    assert not verdict.passed
    assert [(answer.output, answer.places, answer.agreeing + answer.undecided) for answer in verdict.agreement] == [("y", 64, 64)]
    assert compare_files(first, second).agreement == ()


@pytest.mark.parametrize("change", [{"scale": 1.001}, {"activation": "Elu"}])
def test_a_mutant_is_rejected(change: dict[str, object], tmp_path: Path) -> None:
    verdict = compare_files(resolve(saved(tmp_path / "a.onnx")), resolve(saved(tmp_path / "b.onnx", **change)))
    assert not verdict.passed
    assert [check.passed for check in verdict.checks] == [False, True, False]


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    other = onnx.load(saved(tmp_path / "b.onnx", output="z"))
    other.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(other, tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"do not fit: y float32\[1,8,8,8\] of a.onnx against z float64\[1,8,8,8\] of b"):
        compare_files(resolve(saved(tmp_path / "a.onnx")), resolve(tmp_path / "b.onnx"))


def test_what_has_no_inputs_is_told(tmp_path: Path) -> None:
    constant = '<ir_version: 10, opset_import: ["" : 18]> net () => (float[1] y) { y = Constant <value = float[1] {1}> () }'
    onnx.save(parser.parse_model(constant), tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"x float32\[1,4,8,8\] of a.onnx against none of b.onnx"):
        compare_files(resolve(saved(tmp_path / "a.onnx")), resolve(tmp_path / "b.onnx"))


def test_the_file_that_cannot_be_computed_is_named(tmp_path: Path) -> None:
    """A loop is refused in either file; shapes that do not fit are the second file's mistake, and a failed check."""
    body = "[step] l = Loop (n, c) <body = body (int64 i, bool a) => (bool b, float[4] r) { b = Identity (a) r = Relu (x) }>"
    texts = {
        "plain": "y = Relu (x)",
        "looped": f"{body} y = ReduceSum <keepdims = 0> (l, z)",
        "misfit": "[shape] y = Reshape (x, s)",
    }
    head = '<ir_version: 10, opset_import: ["" : 18]> net (float[4] x) => (float[4] y)'
    constants = "<int64 n = {2}, bool c = {1}, int64[1] z = {0}, int64[1] s = {7}>"
    files = {}
    for name, text in texts.items():
        onnx.save(parser.parse_model(f"{head} {constants} {{ {text} }}"), tmp_path / f"{name}.onnx")
        files[name] = resolve(tmp_path / f"{name}.onnx")
    for first, second in (("plain", "looped"), ("looped", "plain")):
        with pytest.raises(UnsupportedError, match=r"^looped.onnx: Loop 'step': loops are not supported"):
            compare_files(files[first], files[second])
    with pytest.raises(InputError, match=r"^misfit.onnx: Reshape 'shape': cannot be computed on inputs of shapes"):
        compare_files(files["misfit"], files["plain"])
    check = compare_files(files["plain"], files["misfit"]).checks[0]
    assert (check.name, check.status) == ("y", "failed")
    assert check.reason.startswith("misfit.onnx: Reshape 'shape': cannot be computed on inputs of shapes")


def test_the_same_names_need_the_same_types_and_shapes(tmp_path: Path) -> None:
    text = NETWORK.replace(" <float[8, 4, 1, 1] w>", "").replace("x)", "x, float[8, 4, 1, 1] w)", 1)
    plain, smaller, double = (tmp_path / f"{name}.onnx" for name in "abc")
    onnx.save(parser.parse_model(text), plain)
    onnx.save(parser.parse_model(text.replace("8, 8]", "7, 8]")), smaller)
    onnx.save(parser.parse_model(text.replace("float", "double")), double)
    needed = r"inputs of the two files do not fit: x float32\[1,4,8,8\], w .* of a.onnx against x float32\[1,4,7,8\], w .* of b.onnx"
    with pytest.raises(InputError, match=needed):
        compare_files(resolve(plain), resolve(smaller))
    with pytest.raises(InputError, match=r"against x float64\[1,4,8,8\], w .* of c.onnx"):
        compare_files(resolve(plain), resolve(double))


def test_given_inputs_need_the_declared_type(tmp_path: Path) -> None:
    file = resolve(saved(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"Input 'x': found float64\[1,4,8,8\], needed float32\[1,4,8,8\]\."):
        compare_files(file, file, {"x": np.zeros((1, 4, 8, 8))})


def test_rows_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (resolve(saved(tmp_path / folder / "m.onnx")) for folder in ("a", "b"))
    names = [check.name for check in compare_files(first, second).checks]
    assert names == ["y", *(f"{tmp_path / folder / 'm.onnx'} in ONNX Runtime" for folder in ("a", "b"))]
    names = [check.name for check in compare_files(first, first).checks]
    assert names == ["y", "m.onnx in ONNX Runtime", "m.onnx (second) in ONNX Runtime"]


@pytest.mark.parametrize("element", ["double", "bfloat16"])
def test_what_onnx_runtime_has_no_kernel_for_is_a_note(element: str, tmp_path: Path) -> None:
    text = f"""
<ir_version: 10, opset_import: ["" : 22]>
net ({element}[1, 4, 8, 8] x, {element}[8, 4, 1, 1] w) => ({element}[1, 8, 8, 8] y) {{
   h = Conv(x, w)
   y = Relu(h)
}}
"""
    for name, spelled in (("a", text), ("b", text), ("c", text.replace("Relu(h)", "Neg(h)"))):
        onnx.save(parser.parse_model(spelled), tmp_path / f"{name}.onnx")
    first, second, wrong = (resolve(tmp_path / f"{name}.onnx") for name in "abc")
    verdict = compare_files(first, second)
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["y"]
    assert [note.split(": ")[:2] for note in verdict.notes] == [
        [f"{name}.onnx", "ONNX Runtime does not run it"] for name in "ab"
    ]
    assert not compare_files(first, wrong).passed


def test_other_names_are_matched_by_position(tmp_path: Path) -> None:
    """Also where a name of the first file is that of something else in the second."""
    first = resolve(saved(tmp_path / "a.onnx"))
    other = onnx.load(saved(tmp_path / "b.onnx", output="z"))
    other.graph.node[0].output[0] = other.graph.node[1].input[0] = "y"
    onnx.save(other, tmp_path / "b.onnx")
    verdict = compare_files(first, resolve(tmp_path / "b.onnx"))
    assert verdict.passed
    assert verdict.notes == ("outputs matched by position: z is y",)
    assert not compare_files(first, first).notes
    assert not compare_files(first, resolve(saved(tmp_path / "c.onnx", output="z", scale=1.001))).passed


def test_what_onnx_runtime_does_not_run_has_not_passed(tmp_path: Path) -> None:
    """Two shapes clash behind the change: a failure, not unusable input."""
    text = NETWORK.replace("y = Relu(h)", "t = Transpose<perm=[0,1,3,2]>(h) y = Add(h, t)")
    original = parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32)
    del original.graph.initializer[:]
    original.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(original, tmp_path / "a.onnx")
    conv = original.graph.node[0]
    conv.attribute.append(onnx.helper.make_attribute("strides", [2, 1]))
    onnx.save(original, tmp_path / "b.onnx")
    verdict = compare_files(resolve(tmp_path / "a.onnx"), resolve(tmp_path / "b.onnx"), bisect=True)
    graph, right, wrong = verdict.checks
    assert (graph.status, right.status, wrong.status) == ("failed", "passed", "skipped")
    assert "ONNX Runtime does not run it" in wrong.reason
    assert verdict.reproducer is not None
    assert verdict.reproducer.nodes == ("h",)


def test_bisection_of_files(tmp_path: Path) -> None:
    first, other = resolve(saved(tmp_path / "a.onnx")), resolve(saved(tmp_path / "b.onnx", scale=1.001))
    assert compare_files(first, first, bisect=True).reproducer is None
    assert compare_files(first, other).reproducer is None
    found = compare_files(first, other, bisect=True).reproducer
    assert found is not None
    assert (found.nodes, found.checks, found.reproduces) == (("h",), ("y",), True)


def written(path: Path, text: str, version: str = 'ir_version: 10, opset_import: ["" : 18]') -> ModelFile:
    onnx.save(parser.parse_model(f"<{version}> g {text}"), path)
    return resolve(path)


@pytest.mark.parametrize("version", [3, 8])
def test_inputs_with_an_initializer_are_constants(version: int, tmp_path: Path) -> None:
    """Up to IR version 3 each initializer has to be among the inputs."""
    listed = written(
        tmp_path / "a.onnx",
        "(float[2, 3] x, float[3] w) => (float[2, 3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }",
        f'ir_version: {version}, opset_import: ["" : 8]',
    )
    plain = "(float[2, 3] x) => (float[2, 3] y) <float[3] v = {1, 2, 3}> { y = Mul (x, v) }"
    other = written(tmp_path / "b.onnx", plain)
    wrong = written(tmp_path / "c.onnx", plain.replace("3}", "4}"))
    assert compare_files(listed, other).passed
    assert compare_files(other, listed).passed
    assert not compare_files(wrong, listed).passed


def test_inputs_without_axes(tmp_path: Path) -> None:
    text = "(float[2, 3] x, float t) => (float[2, 3] y) { y = Mul (x, t) }"
    file = written(tmp_path / "a.onnx", text)
    assert compare_files(file, file).passed
    assert not compare_files(file, written(tmp_path / "b.onnx", text.replace("Mul", "Add"))).passed


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            "(float[3] x) => (float[3] y, float[3] passed) { passed = Identity (x) y = Exp (x) }",
            "(float[3] x) => (float[3] y, float[3] x) { y = Exp (x) }",
        ),
        (
            "(float[3] x) => (float[3] y, float[3] z) { y = Exp (x) z = Exp (x) }",
            "(float[3] x) => (float[3] y, float[3] y) { y = Exp (x) }",
        ),
        (
            "(float[3] x) => (float[3] y, float[3] z) { y = Exp (x) z = Abs (x) }",
            "(float[3] x) => (float[3] z, float[3] w) { w = Exp (x) z = Abs (x) }",
        ),
    ],
)
def test_names_that_survive_are_matched_first(text: str, other: str, *, swapped: bool, tmp_path: Path) -> None:
    """And an output that is an input, or an output twice, takes nothing of its name."""
    first, second = (written(tmp_path / f"{name}.onnx", each) for name, each in (("a", text), ("b", other)))
    wrong = written(tmp_path / "c.onnx", other.replace("Exp", "Sin"))
    assert compare_files(*((second, first) if swapped else (first, second))).passed
    assert not compare_files(*((wrong, first) if swapped else (first, wrong))).passed


def test_how_it_rounds_is_not_known(tmp_path: Path) -> None:
    """The graphs are compared nevertheless."""
    text = "(float[5, 3, 3] x) => (float[5] y) { z = Det (x) y = Mul (z, z) }"
    file = written(tmp_path / "a.onnx", text)
    verdict = compare_files(file, file)
    assert verdict.passed
    assert {check.scope for check in verdict.checks} == {"graph"}
    assert verdict.notes == ("not judged in ONNX Runtime: Det 'z': how it rounds is not known, so no tolerance can be derived.",)
    assert not compare_files(file, written(tmp_path / "b.onnx", text.replace("Mul", "Add"))).passed


def test_what_a_runtime_refuses_has_not_passed_even_if_its_rounding_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "(float[5, 3, 3] x) => (float[5] y) { z = Det (x) y = Mul (z, z) }"
    files = [written(tmp_path / f"{name}.onnx", text) for name in "ab"]
    runs: list[ir.Model] = []

    def run(model: ir.Model, feeds: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        runs.append(model)
        if len(runs) > 1:
            raise CheckFailed("a weight has another shape")
        return [{"y": np.zeros(5, np.float32)} for _ in feeds]

    monkeypatch.setattr(comparison, "run_onnxruntime", run)
    verdict = compare_files(*files)
    assert [(check.scope, check.status, check.reason) for check in verdict.checks if not check.passed] == [
        ("model", "skipped", "a weight has another shape")
    ]


def test_where_both_files_fail_alike_a_rewrite_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.onnx", "(float[5] x) => (float[5] y) { y = Exp (x) }")
    monkeypatch.setattr(comparison, "run_onnxruntime", lambda _, feeds: [{"y": feed["x"]} for feed in feeds])
    verdict = compare_files(file, file)
    assert [check.status for check in verdict.checks if check.scope == "model"] == ["failed", "failed"]
    assert any("rather than for a wrong rewrite" in note for note in verdict.notes)


def test_files_of_a_newer_format_are_run(tmp_path: Path) -> None:
    """What onnx writes by itself may be newer than what ONNX Runtime takes."""
    text = "(float[5] x) => (float[5] y) { y = Exp (x) }"
    file = written(tmp_path / "a.onnx", text, f'ir_version: {onnx.IR_VERSION}, opset_import: ["" : 18]')
    verdict = compare_files(file, file)
    assert [check.scope for check in verdict.checks] == ["graph", "model", "model"]
    assert verdict.passed
    assert verdict.notes == ()


def test_operators_of_onnx_runtime_run_as_they_are_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that the first file has for inputs and outputs, and not as what they are read as."""
    first = written(tmp_path / "a.onnx", "(float[2, 9] x) => (float[2, 9] y) <float s = {1.702}> { z = Mul (x, s) g = Sigmoid (z) y = Mul (x, g) }")
    header = 'ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]'
    second = written(tmp_path / "b.onnx", "(float[2, 9] u) => (float[2, 9] v) { v = com.microsoft.QuickGelu (u) }", header)
    run: list[object] = []

    def record(model: ir.Model | Path, feeds: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        run.append(model)
        return run_onnxruntime(model, feeds)

    monkeypatch.setattr(comparison, "run_onnxruntime", record)
    verdict = compare_files(first, second)
    assert verdict.passed
    assert [check.name for check in verdict.checks if check.scope == "model"] == ["a.onnx in ONNX Runtime", "b.onnx in ONNX Runtime"]
    assert isinstance(run[0], ir.Model)
    assert run[1] == second.path


def test_what_onnx_runtime_says_comes_without_its_source(tmp_path: Path) -> None:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[3] x) => (float[3] y) { y = com.microsoft.Gelu (x, x) }')
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CheckFailed) as caught:
        run_onnxruntime(tmp_path / "a.onnx", [{"x": np.zeros(3, np.float32)}])
    assert "onnxruntime_src" not in str(caught.value)


def test_a_branch_that_no_input_takes_has_not_passed(tmp_path: Path) -> None:
    """One that an input decides is taken."""
    text = """(float[4] x, bool p) => (float[4] y) <float high = {1e9}> {
        top = ReduceMax <keepdims = 0> (x)
        big = Greater (top, high)
        y = If (big) <then_branch = a () => (float[4] b) { b = Exp (x) }, else_branch = c () => (float[4] d) { d = Abs (x) }>
    }"""
    file = written(tmp_path / "a.onnx", text)
    assert compare_files(file, file).passed
    verdict = compare_files(file, written(tmp_path / "b.onnx", text.replace("Exp", "Sin")))
    assert {check.name for check in verdict.checks if not check.passed} == {"then_branch of If 'y'"}
    first = written(tmp_path / "c.onnx", text.replace("(big)", "(p)"))
    assert compare_files(first, first).passed
    for name in ("Exp", "Abs"):
        other = written(tmp_path / "d.onnx", text.replace("(big)", "(p)").replace(name, "Sin"))
        assert compare_files(first, other).checks[0].status == "failed"


def test_what_is_compared_at_one_shape_alone(tmp_path: Path) -> None:
    text = "(float[n, 4] x) => (float[m, 4] y) { y = Exp (x) }"
    paths = [written(tmp_path / f"{name}.onnx", text.replace("n,", f"{size},")).path for name, size in (("a", "n"), ("b", "2"), ("c", "k"))]
    first, second, third = (resolve(path, (2, 4)) for path in paths)
    note = "x is [?,4] in a.onnx and [2,4] in b.onnx: they are compared at the given shape alone"
    assert compare_files(first, second).notes == (note,)
    assert compare_files(first, third).notes == ()


def test_the_coarser_file_comes_first(tmp_path: Path) -> None:
    text = "(float[50, 3] x) => (float[50, 3] y) <float[3] w = {0.1, 0.2, 0.3}> { v = Cast <to = 1> (w) y = Mul (x, v) }"
    first = written(tmp_path / "a.onnx", text)
    coarse = onnx.load(first.path)
    weights = onnx.numpy_helper.to_array(coarse.graph.initializer[0])
    coarse.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float16), "w"))
    onnx.save(coarse, tmp_path / "b.onnx")
    second = resolve(tmp_path / "b.onnx")
    verdict = compare_files(first, second)
    assert not verdict.passed
    assert any("give the coarser file first" in note for note in verdict.notes)
    assert compare_files(second, first).checks[0].passed


def test_what_no_part_is_wrong_in_is_not_narrowed_down(tmp_path: Path) -> None:
    """A cast to float16 and back is nothing in float64."""
    text = "(float[50, 3] x) => (float[50, 3] y) { z = Mul (x, x) y = Exp (z) }"
    rounded = text.replace("{ z = Mul (x, x)", "{ s = Mul (x, x) h = Cast <to = 10> (s) z = Cast <to = 1> (h)")
    first, second = written(tmp_path / "a.onnx", text), written(tmp_path / "b.onnx", rounded)
    verdict = compare_files(first, second, bisect=True)
    assert not verdict.passed
    assert verdict.reproducer is None
    assert any(note.startswith("not narrowed down") for note in verdict.notes)
