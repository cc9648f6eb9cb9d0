"""What the catalogues of mutants share: networks that have a place for each of them, and how a verdict names a culprit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tvm
import tvm_ffi
from tvm import tirx

from sepwise.lowering import build, vector_math, verify
from sepwise.lowering.codegen import CompiledKernel
from sepwise.models.catalogue import ENTRIES
from sepwise.passes import canonicalize, load_model
from sepwise.passes.equivalence import GraphReference, Oracle, execution_sigma

Feed = Mapping[str, np.ndarray]

SIZE = 64
"""Pixels of the whole networks' images, but where a network needs more."""

WIDTH = 0.25

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

# Channels fill no block of lanes, images no whole number of tiles; clips cut a good part of what they get.
TEXTS = {
    # An inverted residual block with an activation before the sum and one behind it.
    "residual": """residual (float[1,8,9,9] x) => (float[1,5] y, float[1,8,9,9] z)
<float[21,8,1,1] w0, float[21] b0, float[21] g0, float[21] h0, float[21] m0, float[21] var0,
 float[21,1,3,3] w1, float[21] b1, float[21] g1, float[21] h1, float[21] m1, float[21] var1,
 float[8,21,1,1] w2, float[8] b2, float[8] g2, float[8] h2, float[8] m2, float[8] var2,
 float[5,8] u, float[5] c, float low = {0.0}, float high = {1.0}, float less = {0.75}>
{
  [expand] c0 = Conv (x, w0, b0)
  [bn0] n0 = BatchNormalization <epsilon = 0.001> (c0, g0, h0, m0, var0)
  [act0] a0 = Clip (n0, low, high)
  [dw] c1 = Conv <group = 21, pads = [1,1,1,1]> (a0, w1, b1)
  [bn1] n1 = BatchNormalization <epsilon = 0.001> (c1, g1, h1, m1, var1)
  [act1] a1 = Clip (n1, low, less)
  [project] c2 = Conv (a1, w2, b2)
  [bn2] n2 = BatchNormalization <epsilon = 0.001> (c2, g2, h2, m2, var2)
  [act2] a2 = LeakyRelu <alpha = 0.25> (n2)
  [add] r = Add (x, a2)
  [post] z = Relu (r)
  [pool] q = GlobalAveragePool (z)
  [flat] f = Flatten (q)
  [fc] y = Gemm <transB = 1> (f, u, c)
}""",
    # Hard-swish in four nodes, a multiplier of 2 with dilation, squeeze and excitation, a batch norm before a padded convolution.
    "excite": """excite (float[1,3,17,17] x) => (float[1,12,8,8] y)
<float[13,3,3,3] w0, float[13] b0, float[26,1,3,3] w1, float[26] g1, float[26] h1, float[26] m1, float[26] var1,
 float[7,26,1,1] w2, float[7] b2, float[26,7,1,1] w3, float[26] b3,
 float[26] g4, float[26] h4, float[26] m4, float[26] var4, float[12,26,3,3] w4, float[12] b4,
 float three = {3.0}, float zero = {0.0}, float six = {6.0}, int64[8] around = {0,0,0,1,0,0,1,0},
 float[1,12,1,1] factor, float[1,12,1,1] shift>
{
  [stem] c0 = Conv <strides = [2,2], pads = [0,0,1,1]> (x, w0, b0)
  [plus3] p0 = Add (c0, three)
  [clip] k0 = Clip (p0, zero, six)
  [times] t0 = Mul (c0, k0)
  [by6] a0 = Div (t0, six)
  [dw] c1 = Conv <group = 13, pads = [2,2,2,2], dilations = [2,2]> (a0, w1)
  [bn1] n1 = BatchNormalization (c1, g1, h1, m1, var1)
  [act1] a1 = Relu (n1)
  [squeeze] s0 = GlobalAveragePool (a1)
  [reduce] s1 = Conv (s0, w2, b2)
  [relu] s2 = Relu (s1)
  [expand] s3 = Conv (s2, w3, b3)
  [gate] s4 = HardSigmoid <alpha = 0.16666667, beta = 0.5> (s3)
  [scale] e = Mul (a1, s4)
  [bn4] n4 = BatchNormalization (e, g4, h4, m4, var4)
  [pad] p4 = Pad (n4, around)
  [head] c4 = Conv <pads = [1,0,1,1]> (p4, w4, b4)
  [mul] v4 = Mul (c4, factor)
  [bias] y = Add (v4, shift)
}""",
    # Two groups, a channel shuffle, a split and its concatenation, resampling, pooling over a border, a padded pointwise stage.
    "shuffle": """shuffle (float[1,12,10,10] x) => (float[1,7,7,7] y, float[1,12,20,20] z)
<float[12,6,1,1] w0, float[12] b0, float[24,1,3,3] w1, float[7,24,1,1] w2, float[7] b2,
 int64[5] apart = {1,2,6,10,10}, int64[4] together = {1,12,10,10}, int64[2] halves = {6,6}, float[4] scales = {1.0,1.0,2.0,2.0}>
{
  [grouped] c0 = Conv <group = 2> (x, w0, b0)
  [act0] a0 = Sigmoid (c0)
  [apart] s0 = Reshape (a0, apart)
  [turn] s1 = Transpose <perm = [0,2,1,3,4]> (s0)
  [together] s2 = Reshape (s1, together)
  [split] l, r = Split <axis = 1> (s2, halves)
  [tanh] t = Tanh (r)
  [join] j = Concat <axis = 1> (l, t)
  [zoom] z = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (j, , scales)
  [pooled] m = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (j)
  [both] k = Concat <axis = 1> (x, m)
  [dw] c1 = Conv <group = 24, strides = [2,2], pads = [1,1,1,1]> (k, w1)
  [act1] a1 = Relu (c1)
  [pw] y = Conv <pads = [1,1,1,1]> (a1, w2, b2)
}""",
    # More pixels in a row than registers, and their number is prime: some tile stands out on every device.
    "tiles": """tiles (float[1,5,3,37] x) => (float[1,7,3,37] y) <float[5,1,3,3] w0, float[5] b0, float[7,5,1,1] w1> {
  [dw] c0 = Conv <group = 5, pads = [1,1,1,1]> (x, w0, b0)
  [act0] a0 = Relu (c0)
  [pw] y = Conv (a0, w1)
}""",
    # Large windows: https://github.com/iree-org/iree/issues/18600 .
    "seven": """seven (float[1,5,9,9] x) => (float[1,5,9,9] y) <float[5,1,7,7] w0, float[5] b0> {
  [dw] y = Conv <group = 5, pads = [3,3,3,3]> (x, w0, b0)
}""",
    # Limits that random inputs never reach.
    "unreached": """unreached (float[1,4,9,9] x) => (float[1,6,9,9] y) <float[4,1,3,3] w0, float[4] b0, float[6,4,1,1] w1,
 float low = {0.0}, float high = {6.0}>
{
  [dw] c0 = Conv <group = 4, pads = [1,1,1,1]> (x, w0, b0)
  [act0] a0 = Clip (c0, low, high)
  [pw] c1 = Conv (a0, w1)
  [act1] y = Relu (c1)
}""",
    # What must not be fused, and so what a pass that looks too little at consumers and modes fuses.
    "shared": """shared (float[1,5,7,7] x) => (float[1,5,7,7] c0, float[1,5,7,7] y)
<float[5,1,3,3] w0, float[5] g0, float[5] h0, float[5] m0, float[5] var0, float[5,5,1,1] w1, float[5] b1, float[5,1,3,3] w2,
 int64[8] around = {0,0,1,1,0,0,1,1}>
{
  [dw] c0 = Conv <group = 5, pads = [1,1,1,1]> (x, w0)
  [bn0] n0 = BatchNormalization (c0, g0, h0, m0, var0)
  [act0] a0 = Relu (n0)
  [pw] c1 = Conv (a0, w1, b1)
  [twice] d1 = Relu (c1)
  [sum] s1 = Add (c1, d1)
  [pad] p2 = Pad <mode = "reflect"> (s1, around)
  [last] y = Conv <group = 5> (p2, w2)
}""",
}


@pytest.fixture(scope="session", autouse=True)
def shared_compilations() -> Iterator[None]:
    """Kernels and objects that were compiled once are not compiled again: a mutant leaves most of them as they are."""
    lower, link = build.lower_kernel, build.build_object
    kernels: dict[tuple[object, ...], CompiledKernel] = {}
    objects: dict[tuple[object, ...], bytes] = {}

    def lower_once(function: tirx.PrimFunc, symbol: str, target: tvm.target.Target) -> CompiledKernel:
        key = (tvm_ffi.structural_hash(function), symbol, str(target), vector_math.EXPM1_Q)
        if key not in kernels:
            kernels[key] = lower(function, symbol, target)
        return kernels[key]

    def link_once(parts: Mapping[str, CompiledKernel], target: tvm.target.Target) -> bytes:
        key = (str(target), *sorted((symbol, tvm_ffi.structural_hash(part.function)) for symbol, part in parts.items()))
        if key not in objects:
            objects[key] = link(parts, target)
        return objects[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "lower_kernel", lower_once)
        monkeypatch.setattr(build, "build_object", link_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_references() -> Iterator[None]:
    """What the original computes, and what rounding may do to it, is measured once a network: mutants leave it as it is."""
    references: dict[int, tuple[ir.Model, Sequence[Feed], GraphReference]] = {}
    sigmas: list[tuple[Oracle, Feed, Mapping[str, Any], Any]] = []

    def reference_once(original: ir.Model, feeds: Sequence[Feed]) -> GraphReference:
        _, known, reference = references.get(id(original), (original, (), None))
        if reference is None or len(known) != len(feeds) or not all(map(same, known, feeds)):
            reference = GraphReference(original, feeds)
            references[id(original)] = (original, feeds, reference)
        return reference

    def oracle_once(model: Any) -> Oracle:
        return references[id(model)][2].oracle if id(model) in references else Oracle(model)

    def sigma_once(oracle: Oracle, feed: Feed, **options: Any) -> Any:
        for known, fed, how, result in sigmas:
            if known is oracle and how == options and same(fed, feed):
                return result
        sigmas.append((oracle, feed, options, execution_sigma(oracle, feed, **options)))
        return sigmas[-1][-1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(verify, "GraphReference", reference_once)
        monkeypatch.setattr(verify, "Oracle", oracle_once)
        monkeypatch.setattr(verify, "execution_sigma", sigma_once)
        yield


def same(feed: Feed, other: Feed) -> bool:
    """Whether two sets of inputs are equal."""
    return feed.keys() == other.keys() and all(np.array_equal(feed[name], other[name], equal_nan=True) for name in feed)


@pytest.fixture(scope="session")
def networks(network: Callable[..., ir.Model]) -> Mapping[str, ir.Model]:
    """The small networks, by name."""
    return {name: canonicalize(network(HEAD + text)) for name, text in TEXTS.items()}


@pytest.fixture(scope="session")
def differs() -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
    """Tells whether two runs gave other float32 numbers, or NaN elsewhere, or one of them nothing.

    By no more than four units in the last place also right results differ: an image of one pixel that is resized by other weights,
    three times two products that are added up.
    """

    def compare(right: Mapping[str, Any], wrong: Mapping[str, Any]) -> bool:
        if right.keys() != wrong.keys():
            return True
        pairs = [(np.asarray(right[name]), np.asarray(wrong[name])) for name in right]
        return any(a.shape != b.shape or not alike(a.astype(np.float32), b.astype(np.float32)) for a, b in pairs)

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        with np.errstate(all="ignore"):
            near = np.abs(a - b) <= 4 * np.spacing(np.maximum(np.abs(a), np.abs(b)))
        return bool((near | (a == b) | (np.isnan(a) & np.isnan(b))).all())

    return compare


@pytest.fixture(scope="module", params=ENTRIES, ids=lambda entry: entry.name)
def whole_network(request: pytest.FixtureRequest, zoo_file: Callable[..., Path]) -> ir.Model:
    """Each network of the zoo, narrow, on images of 64 pixels."""
    entry = request.param
    batch, channels, *sizes = entry.input_shape
    if min(sizes) <= SIZE or len(sizes) != 2:
        return canonicalize(load_model(zoo_file(entry.name)))
    size = math.ceil(max(SIZE, entry.minimum_size) / entry.size_multiple) * entry.size_multiple
    return canonicalize(load_model(zoo_file(entry.name, shape=(batch, channels, size, size), width=WIDTH)))
