"""What DESIGN promises of activations: a wrong fusion must not be able to hide."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from sepwise import models
from sepwise.models import ZooModel
from sepwise.models.calibration import _calibration_input, calibrate
from sepwise.models.layers import ConvUnit, Target, aim
from sepwise.passes.equivalence.formats import BINARY32

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
GATES = (nn.Sigmoid, nn.Hardsigmoid)
"""Bounded by 0 and 1, so their standard deviation cannot pass 0.5; they have a floor of their own."""


def small_shape(name: str) -> tuple[int, ...]:
    shape = models.find(name).input_shape
    if name == "ds_cnn":
        return shape
    size = 64 if shape[1] == 3 else min(shape[-1], 16)
    return (*shape[:2], *[size] * (len(shape) - 2))


class Recorder(fx.Interpreter):
    """Runs a network and keeps what it computes: every tensor, and the share of each ReLU6 at its bounds."""

    def __init__(self, model: ZooModel) -> None:
        super().__init__(fx.symbolic_trace(model.module))
        self.stds: dict[str, float] = {}
        self.gate_stds: dict[str, float] = {}
        self.at_zero: dict[str, float] = {}
        self.at_six: dict[str, float] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, torch.Tensor) and node.op in ("call_module", "call_function", "call_method"):
            layer = self.submodules[node.target] if node.op == "call_module" else None
            (self.gate_stds if isinstance(layer, GATES) else self.stds)[node.name] = float(result.std())
            if isinstance(layer, nn.ReLU6):
                self.at_zero[node.name] = float((result == 0).float().mean())
                self.at_six[node.name] = float((result == 6).float().mean())
        return result


def record(model: ZooModel) -> Recorder:
    """Feeds inputs that calibration has not seen."""
    recorder = Recorder(model)
    generator = torch.Generator().manual_seed(99)
    shape = (max(8 if model.input_shape[-1] < 100 else 2, model.input_shape[0]), *model.input_shape[1:])
    with torch.no_grad():
        recorder.run(torch.randn(shape, generator=generator))
    return recorder


def check_activations(model: ZooModel) -> None:
    recorder = record(model)
    assert {name: std for name, std in recorder.stds.items() if not 0.5 <= std <= 2.0} == {}
    assert all(std >= 0.1 for std in recorder.gate_stds.values())
    clipped = {name: recorder.at_zero[name] + recorder.at_six[name] for name in recorder.at_six}
    assert {name: share for name, share in clipped.items() if not 0.05 <= share <= 0.5} == {}
    assert {name: share for name, share in recorder.at_six.items() if share < 0.005} == {}
    assert len(clipped) == sum(isinstance(layer, nn.ReLU6) for layer in model.module.modules())


def check_norms(model: ZooModel) -> None:
    for path, layer in model.module.named_modules():
        if isinstance(layer, NORMS):
            gamma, beta = layer.weight, layer.bias
            assert 0.05 < float((gamma < 0).float().mean()) < 0.5, path
            assert float(gamma.abs().max() / gamma.abs().min()) > 1.2, path
            assert float((gamma - 1).abs().min()) > 0, path
            assert float(beta.abs().min()) > 0, path
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert float(layer.running_mean.abs().min()) > 0, path
            assert float(layer.running_var.max() / layer.running_var.min()) > 1.1, path
            assert layer.running_var.min() > 0, path


@pytest.mark.parametrize("name", models.names())
def test_activations_and_norms_narrow(name: str) -> None:
    model = models.build(name, shape=small_shape(name), width=0.25)
    check_activations(model)
    check_norms(model)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "mobilenet_v3_small"])
def test_activations_at_another_size_and_width(name: str) -> None:
    check_activations(models.build(name, shape=(1, 3, 40, 56), width=0.5))


@pytest.mark.nightly
@pytest.mark.parametrize("name", models.names())
def test_activations_and_norms_full(name: str) -> None:
    model = models.build(name)
    check_activations(model)
    check_norms(model)


def test_relu_for_relu6_is_visible() -> None:
    model = models.build("mobilenet_v2", shape=(1, 3, 64, 64), width=0.25)
    x = torch.randn(model.input_shape, generator=torch.Generator().manual_seed(3))
    right = model.module(x)
    for block in model.module.modules():
        if isinstance(block, ConvUnit) and hasattr(block, "activation"):
            block.activation = nn.ReLU()
    assert float((model.module(x) - right).std() / right.std()) > 0.05


def test_dropped_epsilon_is_above_rounding() -> None:
    model = models.build("separable_block", shape=(1, 8, 10, 10), width=0.25)
    x = torch.randn(model.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    module = model.module.double()
    right = module(x)
    norm = module.get_submodule("pointwise.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps = 0.0
    assert float((module(x) - right).std() / right.std()) > 10 * 2**-24


@pytest.mark.parametrize("bias", [False, True])
def test_target_is_met_on_the_calibration_input(bias: bool) -> None:
    """Up to the rounding of the weights and of the sums of 45 products and a bias, each relative to their size."""
    layer = aim(nn.Conv2d(5, 40, 3, bias=bias), Target(0.0, 1.7))
    calibrate(layer, (1, 5, 20, 20), "t")
    y = layer(_calibration_input((1, 5, 20, 20), "t")).double()
    assert float((y.std(correction=0) / 1.7 - 1).abs()) <= BINARY32.gamma(5 * 9 + 2)
    assert layer.bias is None or float(layer.bias.abs().min()) > 0


def test_one_channel_calibrates() -> None:
    unit = ConvUnit(1, 1, 3, activation="relu6")
    calibrate(unit, (1, 1, 9, 9), "t")
    assert all(parameter.isfinite().all() for parameter in unit.parameters())


def test_hooks_are_gone() -> None:
    module = models.build("separable_block", shape=(1, 4, 8, 8)).module
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
