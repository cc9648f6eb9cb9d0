"""Mistakes that other compilers and optimizers have made, each under the number of its thread.

For each: a network that shows it passes all checks here; and a rewrite with the mistake, beside the same rewrite without it,
is told apart by the comparison of graphs. Mistakes of kernels are injected by the catalogues beside this file, under the same
numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from sepwise.lowering import device
from sepwise.lowering.verify import verify_model
from sepwise.passes.equivalence import Oracle, bisect_graphs, compare_execution, compare_graph, execution_sigma, sample_inputs

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

NORM = "float[6] g, float[6] h, float[6] m, float[6] var, float eps = {0.00001}, int64[4] column = {6,1,1,1}"

SCALE = """v = Add (var, eps) r = Sqrt (v) s = Div (g, r) k = Reshape (s, column) ms = Mul (m, s) t = Sub (h, ms)"""
"""Scale `s` and shift `t` of a batch norm, and the scale as it multiplies weights."""


@dataclass(frozen=True)
class Bug:
    """A mistake of another tool.

    Attributes:
        thread: Where it is told.
        signature: Inputs, outputs and constants of the network, in ONNX text.
        network: Its nodes.
        rewritten: Its nodes as a rewrite spells them, `%s` where it goes wrong; empty where a kernel is wrong.
        right: What stands there.
        wrong: What stands there by mistake.
        nodes: Of the network, those that are named; none where the mistake is one of rounding, which the oracle has none of.
        mutants: Names in the catalogues that inject it.
    """

    thread: str
    signature: str
    network: str
    rewritten: str = ""
    right: str = ""
    wrong: str = ""
    nodes: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()


BUGS = [
    Bug(  # bias += shift instead of bias * scale + shift
        "Tencent/ncnn#1339",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6,1,3,3] w, float[6] b, {NORM}>",
        "[dw] c = Conv <group = 6, pads = [1,1,1,1]> (x, w, b) [bn] y = BatchNormalization (c, g, h, m, var)",
        f"{SCALE} u = Mul (w, k) %s d = Add (bs, t) y = Conv <group = 6, pads = [1,1,1,1]> (x, u, d)",
        "bs = Mul (b, s)",
        "bs = Identity (b)",
        nodes=("dw", "bn"),
        mutants=("bias not scaled (ncnn #1339)",),
    ),
    Bug(  # a weight of two convolutions, folded for one of them
        "onnx/optimizer#178",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6,6,3,3] w, {NORM}>",
        """[one] a = Conv <pads = [1,1,1,1]> (x, w) [bn] n = BatchNormalization (a, g, h, m, var)
        [two] y = Conv <pads = [1,1,1,1]> (n, w)""",
        f"{SCALE} u = Mul (w, k) n = Conv <pads = [1,1,1,1]> (x, u, t) y = Conv <pads = [1,1,1,1]> (n, %s)",
        "w",
        "u",
        nodes=("two",),
    ),
    Bug(  # a fold rounds otherwise: no mistake, and no equality either
        "onnx/optimizer#255",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6,6,1,1] w, float[6] b, {NORM}>",
        "[pw] c = Conv (x, w, b) [bn] y = BatchNormalization (c, g, h, m, var)",
        f"{SCALE} u = Mul (w, k) bm = Sub (b, m) bs = Mul (bm, s) %s y = Conv (x, u, d)",
        "d = Add (bs, h)",
    ),
    Bug(  # the convolution's own output is read by others
        "microsoft/onnxruntime#4110",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] c, float[1,6,9,9] y) <float[6,6,1,1] w, {NORM}>",
        "[pw] c = Conv (x, w) [bn] y = BatchNormalization (c, g, h, m, var)",
        f"{SCALE} u = Mul (w, k) y = Conv (x, u, t) c = Conv (x, %s)",
        "w",
        "u",
        nodes=("pw",),
        mutants=("norm folded beside a consumer (ORT #4110)",),
    ),
    Bug(  # a shared output: one of two consumers gets the normed value
        "a convolution of two consumers",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6,1,3,3] w, {NORM}>",
        """[dw] c = Conv <group = 6, pads = [1,1,1,1]> (x, w) [bn] n = BatchNormalization (c, g, h, m, var)
        [act] a = Relu (n) [other] o = Sigmoid (c) [sum] y = Add (a, o)""",
        f"""{SCALE} u = Mul (w, k) n = Conv <group = 6, pads = [1,1,1,1]> (x, u, t) c = Conv <group = 6, pads = [1,1,1,1]> (x, w)
        a = Relu (n) o = Sigmoid (%s) y = Add (a, o)""",
        "c",
        "n",
        nodes=("other",),
        mutants=("consumer of an intermediate dropped",),
    ),
    Bug(  # the zeros of a border are no normed zeros
        "a batch norm in front of a border",
        f"(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6,1,3,3] w, {NORM}, int64[4] image = {{1,6,1,1}}, "
        "int64[8] around = {0,0,1,1,0,0,1,1}, float nothing = {0.0}, int64[2] taps = {2,3}>",
        "[bn] n = BatchNormalization (x, g, h, m, var) [dw] y = Conv <group = 6, pads = [1,1,1,1]> (n, w)",
        f"{SCALE} u = Mul (w, k) sum = ReduceSum <keepdims = 0> (w, taps) one = Squeeze (sum) e = Mul (one, t) %s",
        """i = Reshape (s, image) j = Reshape (t, image) z = Mul (x, i) n = Add (z, j) p = Pad (n, around, nothing)
        y = Conv <group = 6> (p, w)""",
        "y = Conv <group = 6, pads = [1,1,1,1]> (x, u, e)",
        nodes=("bn", "dw"),
        mutants=("norm through a border",),
    ),
    Bug(  # output c * times + m is taken for m * channels + c
        "a multiplier above 1",
        "(float[1,5,9,9] x) => (float[1,10,9,9] y) <float[10,1,3,3] w, float[10] b, int64[5] apart = {5,2,1,3,3}, "
        "int64[4] together = {10,1,3,3}>",
        "[dw] y = Conv <group = 5, pads = [1,1,1,1]> (x, w, b)",
        "a = Reshape (w, apart) o = Transpose <perm = %s> (a) u = Reshape (o, together) y = Conv <group = 5, pads = [1,1,1,1]> (x, u, b)",
        "[0,1,2,3,4]",
        "[1,0,2,3,4]",
        nodes=("dw",),
        mutants=("multiplier ignored", "multiplier interleaved", "multiplier ignored in addresses"),
    ),
    Bug(  # the statistics of the batch in the place of those that were learned
        "apache/tvm#18703",
        "(float[1,6,9,9] x) => (float[1,6,9,9] y) <float[6] g, float[6] h, float[6] m, float[6] var, float eps = {0.00001}, "
        "int64[3] over = {0,2,3}, int64[4] image = {1,6,1,1}>",
        "[act] a = Tanh (x) [bn] y = BatchNormalization (a, g, h, m, var)",
        """a = Tanh (x) mean = ReduceMean (a, over) d = Sub (a, mean) q = Mul (d, d) spread = ReduceMean (q, over)
        m4 = Reshape (m, image) v4 = Reshape (var, image) %s
        c = Sub (a, me) ve = Add (vr, eps) r = Sqrt (ve) n = Div (c, r) g4 = Reshape (g, image) h4 = Reshape (h, image)
        z = Mul (n, g4) y = Add (z, h4)""",
        "me = Identity (m4) vr = Identity (v4)",
        "me = Identity (mean) vr = Identity (spread)",
        nodes=("bn",),
    ),
    Bug(  # a sum and its layer norm as one operator, with half the digits in between
        "microsoft/onnxruntime#17689",
        "(float[1,7,24] x, float[1,7,24] z) => (float[1,7,24] y) <float[24] g, float[24] h>",
        "[sum] s = Add (x, z) [norm] y = LayerNormalization (s, g, h)",
        "s = Add (x, z) half = Cast <to = 10> (s) wide = Cast <to = 1> (half) y = LayerNormalization (%s, g, h)",
        "s",
        "wide",
    ),
    Bug(  # a Pad in the pads of an average, which does not count them
        "microsoft/onnxruntime#22177",
        "(float[1,6,9,9] x) => (float[1,6,9,9] y) <int64[8] around = {0,0,1,1,0,0,1,1}>",
        "[pad] p = Pad (x, around) [pool] y = AveragePool <kernel_shape = [3,3]> (p)",
        "y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = %s> (x)",
        "1",
        "0",
        nodes=("pad", "pool"),
        mutants=("average counts the border",),
    ),
    Bug(
        "iree-org/iree#18600",
        "(float[1,5,16,16] x) => (float[1,5,16,16] y) <float[5,1,7,7] w, float[5] b>",
        "[dw] y = Conv <group = 5, pads = [3,3,3,3]> (x, w, b)",
        mutants=("last row of seven not summed (IREE #18600)",),
    ),
    Bug(  # tiles that do not divide the extents
        "apache/tvm#5148",
        "(float[1,5,3,37] x) => (float[1,5,2,19] y) <float[5,1,3,3] w>",
        "[dw] y = Conv <group = 5, strides = [2,2], pads = [1,1,1,1]> (x, w)",
        mutants=("last tile moved too far (TVM #5148)",),
    ),
]
"""Refused rather than computed: a batch norm in training (`test_a_norm_in_training_is_refused`), and code for instructions
that the processor lacks, https://github.com/alibaba/MNN/issues/4393 (`test_code_that_the_processor_lacks_is_refused`)."""

REWRITTEN = [bug for bug in BUGS if bug.rewritten]


def spelled(bug: Bug) -> str:
    return bug.thread


def read(network: Callable[..., ir.Model], bug: Bug, nodes: str) -> ir.Model:
    return network(f"{HEAD} net {bug.signature} {{ {nodes} }}")


@pytest.mark.parametrize("bug", BUGS, ids=spelled)
def test_it_is_not_made_here(bug: Bug, network: Callable[..., ir.Model]) -> None:
    found = verify_model(read(network, bug, bug.network), device.get("host"))
    assert found.passed, [check for check in found.checks if not check.passed]


@pytest.mark.parametrize("bug", REWRITTEN, ids=spelled)
def test_the_rewrite_without_it_is_right(bug: Bug, network: Callable[..., ir.Model]) -> None:
    original = read(network, bug, bug.network)
    checks = compare_graph(original, read(network, bug, bug.rewritten % bug.right), sample_inputs(original, 0))
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("bug", [bug for bug in REWRITTEN if bug.nodes], ids=spelled)
def test_it_is_found_and_named(bug: Bug, network: Callable[..., ir.Model]) -> None:
    original, wrong = read(network, bug, bug.network), read(network, bug, bug.rewritten % bug.wrong)
    feed = {name: array.astype(np.float32) for name, array in sample_inputs(original, 0).items()}
    assert any(check.status == "failed" for check in compare_graph(original, wrong, feed))
    found = bisect_graphs(original, wrong, [feed])
    assert found.reproduces
    named = {node.name for node in original.graph} & set(found.nodes)
    assert named
    assert named <= set(bug.nodes)


@pytest.mark.parametrize("bug", [bug for bug in REWRITTEN if bug.wrong and not bug.nodes], ids=spelled)
def test_lost_digits_are_found(bug: Bug, network: Callable[..., ir.Model]) -> None:
    original = read(network, bug, bug.network)
    feed = {name: array.astype(np.float32) for name, array in sample_inputs(original, 0).items()}
    oracle = Oracle(original)
    for end, status in ((bug.right, "passed"), (bug.wrong, "failed")):
        rewritten = ir.to_proto(read(network, bug, bug.rewritten % end))
        session = onnxruntime.InferenceSession(rewritten.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs = dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))
        assert compare_execution(outputs, oracle.run(feed), execution_sigma(oracle, feed)).status == status


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.mutants], ids=spelled)
def test_the_catalogues_inject_it(bug: Bug) -> None:
    catalogues = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*_mutants.py"))
    assert all(f'Mutant("{name}"' in catalogues for name in bug.mutants)
