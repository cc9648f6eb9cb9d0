"""The vocabulary of fused operators: what a chain of convolutions computes, independent of how it is spelled.

The passes write it as model-local ONNX functions of the domain `sepwise`; `sepwise.passes.chains` reads it back.
Beside it stands which operators of the standard domain are elementwise, as the passes and the lowering see it.
"""

from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACTIVATION_PARAMETERS",
    "DOMAIN",
    "DOMAIN_VERSION",
    "ELEMENTWISE_OPERATORS",
    "FUSED_OPERATORS",
    "Activation",
    "ConvStage",
    "FusedChain",
]

DOMAIN: Final = "sepwise"
"""The operator domain of the model-local functions."""

DOMAIN_VERSION: Final = 1
"""The version under which a fused model imports `DOMAIN`."""

FUSED_OPERATORS: Final = ("FusedConv", "SeparableConv", "InvertedResidual")
"""The families of fused operators: one stage; depthwise and pointwise in either order; pointwise, depthwise, pointwise."""

ELEMENTWISE_OPERATORS: Final = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Clip", "Cos", "Cosh", "Div", "Elu",
        "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "Log", "Max", "Min",
        "Mish", "Mod", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "Where",
    }
)  # fmt: skip
"""Operators of the standard domain, of one output, that compute each element from the elements at its place in their inputs.

Inputs are broadcast from their last axes on (PRelu's slope to the shape of its data) or are scalars (Clip's bounds); no
attribute names an axis. The elements' type may change (Cast, comparisons), their places and their number do not.
"""

ACTIVATION_PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "relu": (),
    "clip": ("lo", "hi"),
    "leaky_relu": ("alpha",),
    "elu": ("alpha",),
    "sigmoid": (),
    "tanh": (),
    "hard_sigmoid": ("alpha", "beta"),
    "hard_swish": (),
    "silu": (),
    "gelu": (),
    "softplus": (),
    "mish": (),
}
"""Every activation kind with the names of its parameters, in the order of `Activation.parameters`."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation, and what its result is multiplied by and what is added to that: scale * kind(x) + shift.

    `relu` is max(x, 0); `clip` is min(max(x, lo), hi) (ReLU6 is clip(0, 6); lo or hi may be infinite);
    `leaky_relu` is x if x >= 0 else alpha * x; `elu` is x if x >= 0 else alpha * (exp(x) - 1);
    `hard_sigmoid` is min(max(alpha * x + beta, 0), 1); `hard_swish` is x * min(max(x / 6 + 1/2, 0), 1);
    `silu` is x * sigmoid(x); `gelu` is x * (1 + erf(x / sqrt(2))) / 2; `softplus` is log(1 + exp(x));
    `mish` is x * tanh(softplus(x)).

    Attributes:
        kind: A key of `ACTIVATION_PARAMETERS`.
        parameters: The values of the kind's parameters, as float32 values.
        scale: Multiplies the result, as a float32 value.
        shift: Is added to the product, as a float32 value.
    """

    kind: str
    parameters: tuple[float, ...] = ()
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Checks the kind and the number of its parameters.

        Raises:
            ValueError: If the kind is unknown or has another number of parameters.
        """
        if self.kind not in ACTIVATION_PARAMETERS:
            raise ValueError(f"Activation {self.kind!r} is unknown; it must be one of {', '.join(ACTIVATION_PARAMETERS)}.")
        names = ACTIVATION_PARAMETERS[self.kind]
        if len(names) != len(self.parameters):
            raise ValueError(
                f"Activation {self.kind!r} has {len(self.parameters)} parameters; it needs {len(names)}: ({', '.join(names)})."
            )

    def __str__(self) -> str:
        """Gives the activation's part of a workload key, as in `clip_0.0_6.0` and `hard_swish*1.5+-0.25`."""
        affine = "" if (self.scale, self.shift) == (1.0, 0.0) else f"*{self.scale!r}+{self.shift!r}"
        return "_".join([self.kind, *map(repr, self.parameters)]) + affine


@dataclass(frozen=True)
class ConvStage:
    """One convolution of a chain with its epilogue: activation(conv(input, weight) + bias).

    Attributes:
        weight: Value name of the weight, shape (out_channels, in_channels / group, *kernel_shape).
        bias: Value name of the bias, shape (out_channels,), or None.
        kernel_shape: Kernel extent of each spatial axis, in elements.
        strides: Stride of each spatial axis, in elements.
        pads: Zero padding in ONNX order: the begins of all spatial axes, then the ends, in elements.
        dilations: Dilation of each spatial axis, in elements.
        group: Number of groups.
        activation: What is applied to the sum, or None.
        nodes: Names of the original nodes that this stage covers.
    """

    weight: str
    bias: str | None
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int
    activation: Activation | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class FusedChain:
    """A chain of convolutions: post_activation(stages(input) + residual).

    Attributes:
        operator: One of `FUSED_OPERATORS`, or `Conv` for a plain convolution.
        input: Value name of the input.
        stages: The convolutions, each reading its predecessor's result.
        residual: Value name of what is added to the last stage's result (after that stage's activation), or None.
        post_activation: What is applied after the residual was added, or None.
        output: Value name of the result.
        nodes: Names of the original nodes that the chain covers: its stages', the residual's addition, the activation after it.
    """

    operator: str
    input: str
    stages: tuple[ConvStage, ...]
    residual: str | None
    post_activation: Activation | None
    output: str
    nodes: tuple[str, ...]
