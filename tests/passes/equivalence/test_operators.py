"""Every operator of the oracle beside ONNX Runtime, within the bound that the running error analysis derives."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from sepwise.passes.equivalence import Oracle, compare_kernel, run_with_bounds, sample_inputs
from sepwise.passes.equivalence.formats import BINARY32
from sepwise.passes.equivalence.operators import OPERATORS
from sepwise.passes.equivalence.rounding import ALLOWANCES
from sepwise.passes.equivalence.running_error import RULES
from sepwise.passes.errors import InputError, UnsupportedError

IMAGE = "float[2,4,7,9] x"

# name: opset, inputs, initializers, nodes that end in y. The first operator is the one tested.
CASES: dict[str, tuple[int, str, str, str]] = {
    # convolution
    "conv dense": (18, IMAGE, "float[6,4,3,3] w, float[6] b", "y = Conv(x, w, b)"),
    "conv no bias": (11, IMAGE, "float[6,4,3,3] w", "y = Conv<pads=[1,1,1,1]>(x, w)"),
    "conv pointwise": (18, IMAGE, "float[6,4,1,1] w", "y = Conv(x, w)"),
    "conv pointwise padded": (18, IMAGE, "float[6,4,1,1] w, float[6] b", "y = Conv<pads=[1,1,1,1]>(x, w, b)"),
    "conv pointwise strided": (18, IMAGE, "float[6,4,1,1] w", "y = Conv<strides=[2,3]>(x, w)"),
    "conv depthwise": (18, IMAGE, "float[4,1,3,3] w, float[4] b", "y = Conv<group=4,pads=[1,1,1,1],strides=[2,2]>(x, w, b)"),
    "conv multiplier": (18, IMAGE, "float[12,1,3,3] w", "y = Conv<group=4>(x, w)"),
    "conv grouped": (18, IMAGE, "float[6,2,3,3] w, float[6] b", "y = Conv<group=2,pads=[0,1,2,0]>(x, w, b)"),
    "conv dilated": (18, IMAGE, "float[4,1,3,3] w", "y = Conv<group=4,dilations=[2,3],pads=[2,3,2,3]>(x, w)"),
    "conv asymmetric": (18, IMAGE, "float[6,4,2,5] w", "y = Conv<pads=[0,3,1,1],strides=[1,2]>(x, w)"),
    "conv same upper": (18, IMAGE, "float[6,4,3,2] w", 'y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w)'),
    "conv same lower": (18, IMAGE, "float[6,4,3,2] w", 'y = Conv<auto_pad="SAME_LOWER",strides=[2,2]>(x, w)'),
    "conv valid": (18, IMAGE, "float[6,4,3,2] w", 'y = Conv<auto_pad="VALID">(x, w)'),
    "conv many channels": (18, "float[1,48,5,5] x", "float[8,48,3,3] w", "y = Conv<pads=[1,1,1,1]>(x, w)"),
    "conv 1d": (18, "float[2,6,17] x", "float[6,1,3] w", "y = Conv<group=6,dilations=[4],pads=[8,0]>(x, w)"),
    "conv 3d": (18, "float[1,4,5,6,7] x", "float[4,1,3,3,3] w", "y = Conv<group=4,pads=[1,1,1,1,1,1],strides=[1,2,2]>(x, w)"),
    "conv 3d dense": (18, "float[1,4,5,6,7] x", "float[5,4,1,3,3] w", "y = Conv<pads=[0,1,1,0,1,1]>(x, w)"),
    "conv transpose": (18, IMAGE, "float[4,3,3,3] w, float[3] b", "y = ConvTranspose<strides=[2,2],pads=[1,0,0,1]>(x, w, b)"),
    "conv transpose grouped": (18, IMAGE, "float[4,3,2,2] w", "y = ConvTranspose<group=2,strides=[2,2],dilations=[2,1]>(x, w)"),
    "conv transpose extra": (18, IMAGE, "float[4,3,3,3] w", "y = ConvTranspose<strides=[3,2],output_padding=[2,1]>(x, w)"),
    "conv transpose shape": (18, IMAGE, "float[4,3,3,3] w", "y = ConvTranspose<strides=[2,2],output_shape=[14,18]>(x, w)"),
    "conv transpose same": (18, IMAGE, "float[4,3,3,3] w", 'y = ConvTranspose<strides=[2,2],auto_pad="SAME_UPPER">(x, w)'),
    "conv transpose 1d": (18, "float[2,6,9] x", "float[6,1,4] w", "y = ConvTranspose<group=6,strides=[2]>(x, w)"),
    # products
    "gemm": (18, "float[3,5] x", "float[7,5] w, float[7] b", "y = Gemm<transB=1,alpha=0.5,beta=2.0>(x, w, b)"),
    "gemm plain": (13, "float[5,3] x", "float[5,7] w", "y = Gemm<transA=1>(x, w)"),
    "matmul": (18, "float[2,3,5] x", "float[5,4] w", "y = MatMul(x, w)"),
    "matmul batched": (18, "float[2,1,3,5] x", "float[6,5,4] w", "y = MatMul(x, w)"),
    # normalisation
    "batch norm": (18, IMAGE, "float[4] s, float[4] b, float[4] m, float[4] var", "y = BatchNormalization(x, s, b, m, var)"),
    "batch norm 9": (
        9,
        IMAGE,
        "float[4] s, float[4] b, float[4] m, float[4] var",
        "y = BatchNormalization<epsilon=0.01,momentum=0.9>(x, s, b, m, var)",
    ),
    "batch norm 1d": (
        15,
        "float[3,4] x",
        "float[4] s, float[4] b, float[4] m, float[4] var",
        "y = BatchNormalization(x, s, b, m, var)",
    ),
    "instance norm": (18, IMAGE, "float[4] s, float[4] b", "y = InstanceNormalization(x, s, b)"),
    "layer norm": (18, "float[2,5,16] x", "float[16] s, float[16] b", "y = LayerNormalization(x, s, b)"),
    "layer norm axis": (18, "float[2,5,16] x", "float[5,16] s", "y = LayerNormalization<axis=1,epsilon=0.001>(x, s)"),
    "lrn": (18, IMAGE, "", "y = LRN<size=3,alpha=0.5,bias=2.0>(x)"),
    "lrn of many channels": (18, "float[1,9,3,5] x", "", "y = LRN<size=5>(x)"),
    "lp normalization": (18, IMAGE, "", "y = LpNormalization<axis=1>(x)"),
    "lp normalization 1": (18, IMAGE, "", "y = LpNormalization<axis=2,p=1>(x)"),
    "softmax": (18, "float[3,40] x", "", "y = Softmax(x)"),
    "softmax axis": (13, IMAGE, "", "y = Softmax<axis=1>(x)"),
    "softmax flattened": (11, IMAGE, "", "y = Softmax<axis=2>(x)"),
    "log softmax": (18, "float[3,40] x", "", "y = LogSoftmax(x)"),
    # pools and reductions
    "max pool": (18, IMAGE, "", "y = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)"),
    "max pool ceil": (18, IMAGE, "", "y = MaxPool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(x)"),
    "max pool dilated": (18, IMAGE, "", "y = MaxPool<kernel_shape=[2,3],dilations=[2,2]>(x)"),
    "max pool same": (18, IMAGE, "", 'y = MaxPool<kernel_shape=[3,3],strides=[2,2],auto_pad="SAME_UPPER">(x)'),
    "max pool 1d": (18, "float[2,4,9] x", "", "y = MaxPool<kernel_shape=[3]>(x)"),
    "average pool": (18, IMAGE, "", "y = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)"),
    "average pool counts": (18, IMAGE, "", "y = AveragePool<kernel_shape=[3,3],pads=[1,1,0,2],count_include_pad=1>(x)"),
    "average pool ceil": (19, IMAGE, "", "y = AveragePool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>(x)"),
    "average pool 3d": (18, "float[1,3,4,5,6] x", "", "y = AveragePool<kernel_shape=[2,2,3]>(x)"),
    "global average pool": (18, IMAGE, "", "y = GlobalAveragePool(x)"),
    "global max pool": (18, IMAGE, "", "y = GlobalMaxPool(x)"),
    "reduce mean": (18, IMAGE, "int64[2] a = {2,3}", "y = ReduceMean(x, a)"),
    "reduce mean 13": (13, IMAGE, "", "y = ReduceMean<axes=[-1],keepdims=0>(x)"),
    "reduce sum": (13, IMAGE, "int64[1] a = {1}", "y = ReduceSum<keepdims=0>(x, a)"),
    "reduce sum noop": (13, IMAGE, "", "y = ReduceSum<noop_with_empty_axes=1>(x)"),
    "reduce max": (18, IMAGE, "int64[1] a = {1}", "y = ReduceMax(x, a)"),
    "reduce min": (18, IMAGE, "", "y = ReduceMin(x)"),
    "reduce l1": (18, IMAGE, "int64[1] a = {3}", "y = ReduceL1(x, a)"),
    "reduce l2": (18, IMAGE, "int64[1] a = {3}", "y = ReduceL2(x, a)"),
    "reduce square": (18, IMAGE, "int64[1] a = {3}", "y = ReduceSumSquare(x, a)"),
    # elementwise, one operand
    "abs": (18, IMAGE, "", "y = Abs(x)"),
    "neg": (18, IMAGE, "", "y = Neg(x)"),
    "relu": (18, IMAGE, "", "y = Relu(x)"),
    "clip": (18, IMAGE, "float l = {0.0}, float h = {6.0}", "y = Clip(x, l, h)"),
    "clip low": (18, IMAGE, "float l = {0.25}", "y = Clip(x, l)"),
    "clip high": (18, IMAGE, "float h = {0.25}", 'y = Clip(x, "", h)'),
    "clip attributes": (6, IMAGE, "", "y = Clip<min=0.0,max=1.5>(x)"),
    "leaky relu": (18, IMAGE, "", "y = LeakyRelu<alpha=0.1>(x)"),
    "prelu": (18, IMAGE, "float[4,1,1] s", "y = PRelu(x, s)"),
    "prelu along the last axis": (17, "float[2,4,5,4] x", "float[4] s", "y = PRelu(x, s)"),
    "elu": (18, IMAGE, "", "y = Elu<alpha=1.5>(x)"),
    "selu": (18, IMAGE, "", "y = Selu(x)"),
    "celu": (18, IMAGE, "", "y = Celu<alpha=2.0>(x)"),
    "hard sigmoid": (18, IMAGE, "", "y = HardSigmoid(x)"),
    "hard sigmoid sixth": (18, IMAGE, "", "y = HardSigmoid<alpha=0.16666667>(x)"),
    "hard swish": (18, IMAGE, "", "y = HardSwish(x)"),
    "sigmoid": (18, IMAGE, "", "y = Sigmoid(x)"),
    "tanh": (18, IMAGE, "", "y = Tanh(x)"),
    "erf": (18, IMAGE, "", "y = Erf(x)"),
    "exp": (18, IMAGE, "", "y = Exp(x)"),
    "gelu": (20, IMAGE, "", "y = Gelu(x)"),
    "gelu tanh": (20, IMAGE, "", 'y = Gelu<approximate="tanh">(x)'),
    "mish": (18, IMAGE, "", "y = Mish(x)"),
    "softplus": (18, IMAGE, "", "y = Softplus(x)"),
    "softsign": (18, IMAGE, "", "y = Softsign(x)"),
    "reciprocal": (18, IMAGE, "", "y = Reciprocal(x)"),
    "sin": (18, IMAGE, "", "y = Sin(x)"),
    "cos": (18, IMAGE, "", "y = Cos(x)"),
    "tan": (18, IMAGE, "", "y = Tan(x)"),
    "atan": (18, IMAGE, "", "y = Atan(x)"),
    "sinh": (18, IMAGE, "", "y = Sinh(x)"),
    "cosh": (18, IMAGE, "", "y = Cosh(x)"),
    "asinh": (18, IMAGE, "", "y = Asinh(x)"),
    "asin": (18, IMAGE, "", "y = Asin(x)"),
    "acos": (18, IMAGE, "", "y = Acos(x)"),
    "acosh": (18, IMAGE, "", "y = Acosh(x)"),
    "atanh": (18, IMAGE, "", "y = Atanh(x)"),
    "mod floats": (18, IMAGE, "float[1] c", "y = Mod<fmod=1>(x, c)"),
    "floor": (18, IMAGE, "", "y = Floor(x)"),
    "ceil": (18, IMAGE, "", "y = Ceil(x)"),
    "round": (18, IMAGE, "", "y = Round(x)"),
    "sign": (18, IMAGE, "", "y = Sign(x)"),
    "thresholded relu": (18, IMAGE, "", "y = ThresholdedRelu<alpha=0.5>(x)"),
    "identity": (18, IMAGE, "", "y = Identity(x)"),
    "dropout": (18, IMAGE, "", "y = Dropout(x)"),
    "not": (18, "bool[3,4] x", "", "y = Not(x)"),
    "cast to integer": (18, IMAGE, "", "y = Cast<to=7>(x)"),
    "cast to float": (18, "int64[3] x", "", "y = Cast<to=1>(x)"),
    "cast to bool": (18, IMAGE, "", "y = Cast<to=9>(x)"),
    "cast like": (18, IMAGE, "int32[1] i = {0}", "y = CastLike(x, i)"),
    # elementwise, several operands
    "add": (18, IMAGE, "float[4,1,1] c", "y = Add(x, c)"),
    "sub": (18, IMAGE, "float[1] c", "y = Sub(c, x)"),
    "mul": (18, IMAGE, "float[2,4,1,1] c", "y = Mul(x, c)"),
    "div": (18, IMAGE, "float[4,1,1] c", "y = Div(c, x)"),
    "div integers": (18, "int64[5] x", "int64[1] c = {2}", "y = Div(x, c)"),
    "mod": (18, "int64[5] x", "int64[1] c = {2}", "y = Mod(x, c)"),
    "pow": (18, IMAGE, "float p = {2.0}", "y = Pow(x, p)"),
    "pow cube": (18, IMAGE, "float p = {3.0}", "y = Pow(x, p)"),
    "max": (18, IMAGE, "float[4,1,1] c, float[1] d", "y = Max(x, c, d)"),
    "min": (18, IMAGE, "float[4,1,1] c", "y = Min(x, c)"),
    "sum": (18, IMAGE, "float[4,1,1] c, float[1] d", "y = Sum(x, c, d)"),
    "mean": (18, IMAGE, "float[4,1,1] c, float[1] d", "y = Mean(x, c, d)"),
    "where": (18, f"{IMAGE}, bool[9] k", "float[1] c", "y = Where(k, x, c)"),
    "and": (18, "bool[3,4] x, bool[4] k", "", "y = And(x, k)"),
    "or": (18, "bool[3,4] x, bool[4] k", "", "y = Or(x, k)"),
    "xor": (18, "bool[3,4] x, bool[4] k", "", "y = Xor(x, k)"),
    "equal": (18, "int64[3,4] x, int64[4] k", "", "y = Equal(x, k)"),
    "greater": (18, IMAGE, "float[1] c", "y = Greater(x, c)"),
    "greater or equal": (18, IMAGE, "float[1] c", "y = GreaterOrEqual(x, c)"),
    "less": (18, IMAGE, "float[1] c", "y = Less(x, c)"),
    "less or equal": (18, IMAGE, "float[1] c", "y = LessOrEqual(x, c)"),
    # selection
    "arg max": (18, IMAGE, "", "y = ArgMax<axis=1>(x)"),
    "arg min": (18, IMAGE, "", "y = ArgMin<axis=-1,keepdims=0,select_last_index=1>(x)"),
    "top k": (18, IMAGE, "int64[1] k = {3}", "y, i = TopK<axis=1>(x, k)"),
    "non max suppression": (
        18,
        "float[1,6,4] x, float[1,2,6] s",
        "int64 most = {3}, float iou = {0.5}, float least = {0.4}",
        "y = NonMaxSuppression(x, s, most, iou, least)",
    ),
    "non zero": (18, "bool[3,4] x", "", "y = NonZero(x)"),
    # shapes and movement
    "concat": (18, IMAGE, "float[2,1,7,9] c", "y = Concat<axis=1>(x, c, x)"),
    "split": (18, IMAGE, "int64[2] p = {1,3}", "y, z = Split<axis=1>(x, p)"),
    "split evenly": (18, IMAGE, "", "y, z = Split<axis=3,num_outputs=2>(x)"),
    "split 11": (11, IMAGE, "", "y, z = Split<axis=1,split=[3,1]>(x)"),
    "slice": (
        18,
        IMAGE,
        "int64[2] a = {1,-3}, int64[2] e = {9223372036854775807,-1}, int64[2] d = {1,3}",
        "y = Slice(x, a, e, d)",
    ),
    "slice steps": (
        18,
        IMAGE,
        "int64[2] a = {6,0}, int64[2] e = {-9223372036854775807,8}, int64[2] d = {2,3}, int64[2] t = {-2,3}",
        "y = Slice(x, a, e, d, t)",
    ),
    "slice from before the first": (
        17,
        "float[10] x",
        "int64[1] s = {-100}, int64[1] e = {-1000}, int64[1] a = {0}, int64[1] t = {-1}",
        "y = Slice(x, s, e, a, t)",
    ),
    "slice 9": (9, IMAGE, "", "y = Slice<axes=[1,3],starts=[0,-4],ends=[2,-1]>(x)"),
    "transpose": (18, IMAGE, "", "y = Transpose<perm=[0,2,3,1]>(x)"),
    "transpose reversed": (18, IMAGE, "", "y = Transpose(x)"),
    "reshape": (18, IMAGE, "int64[3] s = {0,-1,9}", "y = Reshape(x, s)"),
    "flatten": (18, IMAGE, "", "y = Flatten<axis=2>(x)"),
    "squeeze": (18, "float[2,1,3,1] x", "int64[1] a = {-1}", "y = Squeeze(x, a)"),
    "squeeze 11": (11, "float[2,1,3,1] x", "", "y = Squeeze<axes=[1]>(x)"),
    "unsqueeze": (18, IMAGE, "int64[2] a = {0,-1}", "y = Unsqueeze(x, a)"),
    "unsqueeze 11": (11, IMAGE, "", "y = Unsqueeze<axes=[2]>(x)"),
    "pad": (18, IMAGE, "int64[8] p = {0,0,1,2,0,0,0,1}, float f = {0.5}", "y = Pad(x, p, f)"),
    "pad axes": (18, IMAGE, "int64[4] p = {1,2,0,1}, int64[2] a = {3,2}", 'y = Pad(x, p, "", a)'),
    "pad negative": (18, IMAGE, "int64[8] p = {0,0,-1,2,0,0,0,-1}", "y = Pad(x, p)"),
    "pad reflect": (18, IMAGE, "int64[8] p = {0,0,1,2,0,0,0,1}", 'y = Pad<mode="reflect">(x, p)'),
    "pad edge": (18, IMAGE, "int64[8] p = {0,0,1,2,0,0,0,1}", 'y = Pad<mode="edge">(x, p)'),
    "pad 2": (2, IMAGE, "", "y = Pad<pads=[0,0,1,2,0,0,0,1],value=2.0>(x)"),
    "gather": (18, IMAGE, "int64[3] i = {0,-1,2}", "y = Gather<axis=1>(x, i)"),
    "gather elements": (18, "float[2,3] x", "int64[1,3] i = {1,0,-1}", "y = GatherElements(x, i)"),
    "expand": (18, "float[3,1] x", "int64[3] s = {2,1,4}", "y = Expand(x, s)"),
    "tile": (18, "float[2,3] x", "int64[2] r = {2,1}", "y = Tile(x, r)"),
    "depth to space": (18, IMAGE, "", "y = DepthToSpace<blocksize=2>(x)"),
    "depth to space crd": (18, IMAGE, "", 'y = DepthToSpace<blocksize=2,mode="CRD">(x)'),
    "space to depth": (18, "float[1,2,4,6] x", "", "y = SpaceToDepth<blocksize=2>(x)"),
    "shape": (18, IMAGE, "", "y = Shape<start=1>(x)"),
    "size": (18, IMAGE, "", "y = Size(x)"),
    "constant of shape": (18, IMAGE, "int64[2] s = {2,3}", "y = ConstantOfShape(s)"),
    "range": (18, IMAGE, "int64 a = {1}, int64 e = {9}, int64 t = {3}", "y = Range(a, e, t)"),
    # resampling
    "resize nearest": (18, IMAGE, "float[4] s = {1,1,2,2}", 'y = Resize<mode="nearest">(x, "", s)'),
    "resize yolo": (
        13,
        IMAGE,
        "float[4] s = {1,1,2,2}",
        'y = Resize<coordinate_transformation_mode="asymmetric",mode="nearest",nearest_mode="floor">(x, "", s)',
    ),
    "resize linear": (18, IMAGE, "int64[4] z = {2,4,13,5}", 'y = Resize<mode="linear">(x, "", "", z)'),
    "resize linear twice": (18, IMAGE, "float[4] s = {1,1,2,2}", 'y = Resize<mode="linear">(x, "", s)'),
    "resize corners": (
        18,
        IMAGE,
        "int64[4] z = {2,4,13,17}",
        'y = Resize<mode="linear",coordinate_transformation_mode="align_corners">(x, "", "", z)',
    ),
    "resize pytorch": (
        18,
        IMAGE,
        "int64[4] z = {2,4,1,17}",
        'y = Resize<mode="linear",coordinate_transformation_mode="pytorch_half_pixel">(x, "", "", z)',
    ),
    "resize cubic": (18, IMAGE, "int64[4] z = {2,4,13,17}", 'y = Resize<mode="cubic">(x, "", "", z)'),
    "resize 10": (10, IMAGE, "float[4] s = {1,1,2,2}", 'y = Resize<mode="nearest">(x, s)'),
    "upsample": (9, IMAGE, "float[4] s = {1,1,2,3}", 'y = Upsample<mode="nearest">(x, s)'),
}

POSITIVE_CASES: dict[str, tuple[int, str, str, str]] = {
    "log": (18, IMAGE, "", "y = Log(x)"),
    "sqrt": (18, IMAGE, "", "y = Sqrt(x)"),
    "pow fraction": (18, IMAGE, "float p = {0.7}", "y = Pow(x, p)"),
    "reduce log sum exp": (18, IMAGE, "int64[1] a = {1}", "y = ReduceLogSumExp(x, a)"),
}

KINDS = ["normal", "impulse", "knees", "large", "subnormal"]


def build(case: tuple[int, str, str, str], parse: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    opset, inputs, initializers, nodes = case
    outputs = ", ".join(f"float {name}" for name in nodes.split("=", 1)[0].replace(" ", "").split(","))
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return parse(f"{header} g ({inputs}) => ({outputs}) <{initializers}> {{ {nodes} }}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(
    name: str,
    kind: str,
    parse: Callable[..., onnx.ModelProto],
    run_onnxruntime: Callable[..., dict[str, np.ndarray]],
    record_property: Callable[[str, object], None],
) -> None:
    model = build(CASES[name], parse)
    check_against_onnxruntime(model, sample_inputs(model, 0, kind), run_onnxruntime, record_property)


@pytest.mark.parametrize("name", POSITIVE_CASES)
def test_agrees_with_onnxruntime_on_positive_numbers(
    name: str,
    parse: Callable[..., onnx.ModelProto],
    run_onnxruntime: Callable[..., dict[str, np.ndarray]],
    record_property: Callable[[str, object], None],
) -> None:
    model = build(POSITIVE_CASES[name], parse)
    check_against_onnxruntime(model, sample_inputs(model, 0, "positive"), run_onnxruntime, record_property)


def check_against_onnxruntime(
    model: onnx.ModelProto,
    inputs: dict[str, np.ndarray],
    run_onnxruntime: Callable[..., dict[str, np.ndarray]],
    record_property: Callable[[str, object], None],
) -> None:
    actual = run_onnxruntime(model, inputs)
    oracle = Oracle(model).run(inputs)
    bounded = run_with_bounds(model, inputs) if model.graph.node[-1].op_type != "ReduceLogSumExp" else None
    for name, value in oracle.items():
        if bounded is None:  # the sum's relative error is the logarithm's absolute one
            (x,) = inputs.values()
            bound = BINARY32.gamma(x.size) + BINARY32.unit * (ALLOWANCES["Exp"].ulps + ALLOWANCES["Log"].ulps * np.abs(value))
            check = compare_kernel(actual[name], value, bound, name=name)
            assert check.passed, check
            continue
        np.testing.assert_array_equal(bounded[name][0], value)
        check = compare_kernel(actual[name], *bounded[name], name=name)
        record_property("worst_ratio", check.worst_ratio)
        judged = value.dtype.kind != "f" or np.isfinite(bounded[name]).all(axis=0).any()
        assert check.status == ("passed" if judged else "skipped"), check


def test_every_operator_is_tested() -> None:
    tested = {
        case[3].split("=", 1)[1].split("<")[0].split("(")[0].strip() for case in [*CASES.values(), *POSITIVE_CASES.values()]
    }
    elsewhere = {"Hardmax", "MeanVarianceNormalization"}  # in test_reference_operators.py, with what they replace
    assert set(OPERATORS) - tested - elsewhere <= {"ReduceProd", "Swish"}
    assert set(RULES) - set(OPERATORS) == set()


def test_unknown_operator_is_named(parse: Callable[..., onnx.ModelProto]) -> None:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Nonsense(x) }')
    with pytest.raises(UnsupportedError, match="Nonsense"):
        Oracle(model).run({"x": np.zeros(2, np.float32)})


def test_training_mode_is_refused(parse: Callable[..., onnx.ModelProto]) -> None:
    model = build(
        (18, IMAGE, "float[4] s, float[4] b, float[4] m, float[4] var", "y = BatchNormalization(x, s, b, m, var)"), parse
    )
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    with pytest.raises(UnsupportedError, match="training_mode=1"):
        Oracle(model).run(sample_inputs(model, 0))


def test_misfitting_shapes_are_one_clear_line(parse: Callable[..., onnx.ModelProto]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1,7,8,8] x, float[7,2,3,3] w) => (float[1,7,6,6] y) '
        "{ y = Conv<group=7>(x, w) }"
    )
    with pytest.raises(InputError, match=r"group=7 with 7 input channels and a weight of shape \(7, 2, 3, 3\)"):
        Oracle(model).run(sample_inputs(model, 0))
