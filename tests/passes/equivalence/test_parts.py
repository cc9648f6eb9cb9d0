"""What is wrong where a network's own tensors do not show it, and what is right though it looks otherwise on others."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from sepwise.passes import fuse
from sepwise.passes.equivalence import bisect_graphs, compare_graph, compare_parts, sample_inputs

HEAD = '<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,6,6] x) => (float y)'
CONSTANTS = """float[4,4,1,1] w, float[4,4,1,1] u, float[4,4,1,1] v, float[4] b, float[4] dead = {0.5, -1e4, 0.25, 0.125},
    float[4] open = {1e3, 1e3, 1e3, 1e3}, float zero = {0}, float six = {6}, float one = {1}, int64[2] axes = {2, 3}"""

UNSEEN = {
    "a dead channel": ("{ a = Conv (x, w, dead) r = Relu (a) y = Conv (r, u) }", "u"),
    "a gate that is always open": (
        "{ p = GlobalAveragePool (x) e = Conv (p, v) r = Relu (e) c = Conv (r, u, open) s = HardSigmoid (c) y = Mul (x, s) }",
        "u",
    ),
    "in front of such a gate": (
        "{ t = Conv (x, w) p = ReduceMean (t, axes) e = Conv (p, v, b) r = Relu (e) c = Conv (r, u, open) s = HardSigmoid (c)"
        " m = Mul (t, s) y = Relu (m) }",
        "v",
    ),
    "a limit that nothing reaches": ("{ a = Conv (x, w) t = Clip (a, zero, far) y = Conv (t, u) }", "far"),
}

RIGHT = {
    "a rectifier behind a sigmoid": (
        "{ a = Conv (x, w) s = Sigmoid (a) r = Relu (s) y = Conv (r, u) }",
        "{ a = Conv (x, w) s = Sigmoid (a) y = Conv (s, u) }",
    ),
    "limits behind smaller ones": (
        "{ a = Conv (x, w) c = Clip (a, zero, one) m = MaxPool <kernel_shape = [2,2]> (c) d = Clip (m, zero, six) y = Conv (d, u) }",
        "{ a = Conv (x, w) c = Clip (a, zero, one) d = MaxPool <kernel_shape = [2,2]> (c) y = Conv (d, u) }",
    ),
    "a mean read by one side only": (
        "{ a = Conv (x, w) m = ReduceMean (a, axes) n = Sub (a, m) s = Add (n, m) t = Conv (s, u) y = Add (t, m) }",
        "{ a = Conv (x, w) m = ReduceMean (a, axes) t = Conv (a, u) y = Add (t, m) }",
    ),
    "a rectifier behind a mean of what is positive": (
        "{ a = Conv (x, w) r = Relu (a) p = Conv <pads = [1,1,1,1], group = 4> (r, k) q = Relu (p) y = Conv (q, u) }",
        "{ a = Conv (x, w) r = Relu (a) p = Conv <pads = [1,1,1,1], group = 4> (r, k) y = Conv (p, u) }",
    ),
    "a name that survives with another meaning": (
        "{ a = Conv (x, w) t = Transpose <perm = [0,2,3,1]> (a) r = Relu (t) s = Transpose <perm = [0,3,1,2]> (r) y = Conv (s, u) }",
        "{ a = Conv (x, w) r = Relu (a) y = Conv (r, u) }",
    ),
    "a rectifier and a minimum for a clip, on data below its limit": (
        "{ a = Conv (x, w) c = Clip (a, zero, far) y = Conv (c, u) }",
        "{ a = Conv (x, w) r = Relu (a) c = Min (r, far) y = Conv (c, u) }",
    ),
    "a minimum and a maximum for it": (
        "{ a = Conv (x, w) c = Clip (a, zero, far) y = Conv (c, u) }",
        "{ a = Conv (x, w) q = Min (far, a) c = Max (zero, q) y = Conv (c, u) }",
    ),
    "a name that goes to the first of two": (
        "{ a = Conv (x, w) c = Clip (a, zero, far) y = Conv (c, u) }",
        "{ a = Conv (x, w) c = Relu (a) m = Min (c, far) y = Conv (m, u) }",
    ),
    "what is computed twice, once": (
        "{ a = Conv (x, w) h = Conv (a, u) d = Conv (x, w) e = Conv (d, u) f = Relu (e) y = Add (h, f) }",
        "{ a = Conv (x, w) h = Conv (a, u) f = Relu (h) y = Add (h, f) }",
    ),
    "what is computed twice, with other outputs": (
        "{ m = Dropout (x) n, k = Dropout (x) s = Add (m, n) y = Relu (s) }",
        "{ n, k = Dropout (x) s = Add (n, n) y = Relu (s) }",
    ),
    "a rectifier behind two means": (
        "{ a = Conv (x, w) r = Relu (a) p = Conv <group = 4> (r, k) o = Conv <group = 4> (p, k) q = Relu (o) t = Flatten (q)"
        " y = Tanh (t) }",
        "{ a = Conv (x, w) r = Relu (a) p = Conv <group = 4> (r, k) o = Conv <group = 4> (p, k) t = Flatten (o) y = Tanh (t) }",
    ),
    "a rectifier behind three means": (
        "{ a = Conv (x, w) r = Relu (a) p = Conv <pads = [1,1,1,1], group = 4> (r, k) o = Conv <pads = [1,1,1,1], group = 4> (p, k)"
        " n = Conv <pads = [1,1,1,1], group = 4> (o, k) q = Relu (n) y = Conv (q, u) }",
        "{ a = Conv (x, w) r = Relu (a) p = Conv <pads = [1,1,1,1], group = 4> (r, k) o = Conv <pads = [1,1,1,1], group = 4> (p, k)"
        " n = Conv <pads = [1,1,1,1], group = 4> (o, k) y = Conv (n, u) }",
    ),
    "constants of its own that round": (
        "{ a = Conv (x, w) r = LeakyRelu <alpha = 0.1> (a) y = Conv (r, u) }",
        "{ a = Conv (x, w) m = Abs (a) s = Mul (a, more) t = Mul (m, less) r = Add (s, t) y = Conv (r, u) }",
    ),
    "padded channels": (
        "{ a = Conv (x, w) y = Conv (a, u) }",
        "{ a = Conv (x, padded) s = Slice (a, begin, end, channels) y = Conv (s, u) }",
    ),
    "a sum in another order before a value that only one of them has": (
        "{ a = Conv (x, many) t = Transpose <perm = [0,2,3,1]> (a) s = Softmax (t) p = Neg (s) e = Transpose <perm = [0,3,1,2]> (p)"
        " c = Slice (s, begin, end, last) r = Transpose <perm = [0,3,1,2]> (c) y = Concat <axis = 1> (e, r) }",
        "{ a = Conv (x, many) q = Softmax <axis = 1> (a) s = Transpose <perm = [0,2,3,1]> (q) p = Neg (s)"
        " e = Transpose <perm = [0,3,1,2]> (p) r = Slice (q, begin, end, channels) y = Concat <axis = 1> (e, r) }",
    ),
    "nothing bends, nothing is drawn": ("{ y = Relu (x) }", "{ r = Relu (x) y = Relu (r) }"),
}


def model(parse: Callable[..., onnx.ModelProto], body: str) -> onnx.ModelProto:
    constants = CONSTANTS
    constants += ", float far = {1e6}" if "far" in body else ""
    constants += ", float more = {0.55}, float less = {0.45}" if "more" in body else ""
    constants += ", float[4,1,3,3] k" if " k)" in body else ""
    constants += ", float[6,4,1,1] padded" if "padded" in body else ""
    constants += ", float[16,4,1,1] many, int64[1] last = {3}" if "many" in body else ""
    constants += ", int64[1] begin = {0}, int64[1] end = {4}, int64[1] channels = {1}" if "Slice" in body else ""
    proto = parse(f"{HEAD} <{constants}> {body}")
    for tensor in proto.graph.initializer:
        if tensor.name == "k":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 1, 3, 3), 1 / 9, np.float32), "k"))
        if tensor.name == "padded":
            weight = next(numpy_helper.to_array(each) for each in proto.graph.initializer if each.name == "w")
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([weight, np.zeros_like(weight[:2])]), "padded"))
    return proto


def with_one_percent(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The weight changes that reads the second channel, which is the dead one."""
    changed = onnx.ModelProto.FromString(proto.SerializeToString())
    tensor = next(each for each in changed.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[(slice(None), 1) if array.ndim > 1 else ...] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return changed


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_output_shows_is_found_and_reproduced(name: str, parse: Callable[..., onnx.ModelProto]) -> None:
    body, constant = UNSEEN[name]
    original = model(parse, body)
    wrong = with_one_percent(original, constant)
    feed = sample_inputs(original, 0)
    assert all(check.passed for check in compare_graph(original, wrong, feed))
    (check,) = compare_parts(original, wrong, feed)
    assert check.status == "failed"
    assert check.worst_ratio is None or check.worst_ratio > 1
    assert ("drawn" in check.reason) == (name != "in front of such a gate"), "its own result shows that"
    found = bisect_graphs(original, wrong, [feed])
    assert found.reproduces
    (again, *_) = compare_graph(found.models["before.onnx"], found.models["after.onnx"], found.inputs)
    assert again.status == "failed"


SPELLED = """{ a = Conv (x, w) m = ReduceMean (a, axes) d = Sub (a, m) q = Mul (d, d) p = ReduceMean (q, axes) e = Add (p, small)
    r = Sqrt (e) n = Div (d, r) z = Mul (n, stretch) y = Add (z, shift) }"""
EPSILONS = {
    "normalisation": ("{ a = Conv (x, w) y = InstanceNormalization <epsilon = 1e-5> (a, dead, open) }", ("1e-5", "1e-12")),
    "spelled": (SPELLED, ("small", "zero")),
    "norm": ("{ a = Conv (x, w) n = ReduceL2 (a, axes) m = Max (n, tiny) y = Div (a, m) }", ("tiny", "small")),
}


@pytest.mark.parametrize("name", EPSILONS)
def test_epsilons_are_seen_though_the_variance_is_large(name: str, parse: Callable[..., onnx.ModelProto]) -> None:
    body, change = EPSILONS[name]
    constants = f"""<{CONSTANTS}, float small = {{1e-5}}, float tiny = {{1e-12}}, float[1,4,1,1] stretch, float[4,1,1] shift>"""
    original, wrong = (parse(f"{HEAD} {constants} {each}") for each in (body, body.replace(*change)))
    for proto in (original, wrong):
        (tensor,) = [each for each in proto.graph.initializer if each.name == "w"]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e5), "w"))
    feed = sample_inputs(original, 0)
    assert all(check.passed for check in compare_graph(original, wrong, feed))
    (check,) = compare_parts(original, wrong, feed)
    assert check.status == "failed"


def test_a_normalisation_may_be_spelled_out(parse: Callable[..., onnx.ModelProto]) -> None:
    constants = f"""<{CONSTANTS}, float small = {{1e-5}}, float[4] gain = {{1, 2, 3, 4}}, float[1,4,1,1] stretch = {{1, 2, 3, 4}},
        float[1,4,1,1] shift = {{0.5, -1e4, 0.25, 0.125}}>"""
    normalised = "{ a = Conv (x, w) y = InstanceNormalization <epsilon = 1e-5> (a, gain, dead) }"
    original, rewritten = (parse(f"{HEAD} {constants} {body}") for body in (normalised, SPELLED))
    for pair in ((original, rewritten), (rewritten, original)):
        checks = compare_parts(*pair, sample_inputs(original, 0))
        assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", RIGHT)
def test_what_holds_for_all_that_the_network_makes_is_no_fault(name: str, parse: Callable[..., onnx.ModelProto]) -> None:
    original, rewritten = (model(parse, body) for body in RIGHT[name])
    feed = sample_inputs(original, 0)
    assert all(check.passed for check in compare_graph(original, rewritten, feed))
    checks = compare_parts(original, rewritten, feed)
    assert all(check.passed for check in checks), checks
    assert all(check.name == "parts" for check in checks)


def test_what_drowns_on_its_way_is_found(parse: Callable[..., onnx.ModelProto]) -> None:
    """One weight of many by so little that the output is within what rounding explains, its own convolution's result is not."""
    layers = " ".join(f"a{i} = Conv (r{i - 1}, w{i}) r{i} = Relu (a{i})" for i in range(1, 7))
    weights = ", ".join(f"float[32,32,1,1] w{i}" for i in range(7))
    original = parse(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[1,32,6,6] x) => (float y) <{weights}, float big = {{1e3}}>
        {{ a0 = Conv (x, w0) r0 = Relu (a0) {layers} t = Conv (x, w0) s = Mul (t, big) y = Add (r6, s) }}"""
    )
    wrong = onnx.ModelProto.FromString(original.SerializeToString())
    (tensor,) = [each for each in wrong.graph.initializer if each.name == "w1"]
    weight = numpy_helper.to_array(tensor).copy()
    weight[3, 5] *= np.float32(1.0005)
    tensor.CopyFrom(numpy_helper.from_array(weight, "w1"))
    feed = sample_inputs(original, 0)
    assert all(check.passed for check in compare_graph(original, wrong, feed))
    (check,) = compare_parts(original, wrong, feed)
    assert (check.name, check.status) == ("part a1", "failed")


def test_each_part_that_is_fused_is_judged(parse: Callable[..., onnx.ModelProto]) -> None:
    original = parse(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4,6,6] x) => (float y)
        <float[4,1,3,3] w, float[4] g, float[4] h, float[4] m, float[4] var, float[8,4,1,1] u> {
        c = Conv <group = 4> (x, w) n = BatchNormalization (c, g, h, m, var) r = Relu (n) y = Conv (r, u) }"""
    )
    feed = sample_inputs(original, 0)
    (check,) = compare_parts(original, ir.to_proto(fuse(ir.from_proto(original)).model), feed)
    assert (check.name, check.status) == ("parts", "passed")
    assert check.worst_ratio is not None
    assert 0 < check.worst_ratio < 1
    assert compare_parts(original, original, feed) == []


def test_parts_for_which_nothing_can_be_drawn_are_named(parse: Callable[..., onnx.ModelProto]) -> None:
    head = '<ir_version: 9, opset_import: ["" : 18]> g (int32[1,4] n, float[1,4] x) => (float y, float z)'
    constants = "<float two = {2.0}, float three = {3.0}, float six = {6.0}>"
    separate = "t = Cast <to = 1> (n) u = Mul (t, two) y = Mul (u, three) v = Mul (x, two) z = Mul (v, three)"
    folded = "t = Cast <to = 1> (n) y = Mul (t, six) z = Mul (x, six)"
    original, rewritten = (parse(f"{head} {constants} {{ {body} }}") for body in (separate, folded))
    (check,) = compare_parts(original, rewritten, sample_inputs(original, 0))
    assert check.passed
    assert check.reason == "judged on the network's own tensors alone, as nothing can be drawn for them: y"
