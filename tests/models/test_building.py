import re

import pytest
import torch

from sepwise import models
from sepwise.models.building import resolve_shape
from sepwise.passes.errors import InputError

SMALL = (1, 3, 32, 32)


def test_default_shape_and_fields() -> None:
    model = models.build("ds_cnn")
    entry = models.find("ds_cnn")
    assert (model.name, model.input_name, model.output_names) == ("ds_cnn", "x", ("y",))
    assert model.input_shape == entry.input_shape
    assert (model.parameters, model.macs, model.paper, model.width) == (entry.parameters, entry.macs, entry.paper, 1.0)
    assert not model.module.training
    assert not any(layer.training for layer in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(tensor.is_meta for tensor in model.module.state_dict().values())


def test_weights_are_deterministic() -> None:
    first = models.build("mobilenet_v2", shape=SMALL, width=0.25).module.state_dict()
    torch.manual_seed(1)
    second = models.build("mobilenet_v2", shape=SMALL, width=0.25).module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    models.build("separable_block", shape=(1, 4, 8, 8))
    assert torch.equal(state, torch.get_rng_state())


def test_batch_changes_no_weight() -> None:
    one = models.build("grouped", shape=(1, 8, 16, 16), width=0.25)
    many = models.build("grouped", shape=(1, 8, 16, 16), width=0.25, batch=3)
    assert many.input_shape == (3, 8, 16, 16)
    assert many.macs == 3 * one.macs
    a, b = one.module.state_dict(), many.module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_layers_and_models_have_weights_of_their_own() -> None:
    blocks = models.build("mobilenet_v1", shape=SMALL, width=0.25).module.state_dict()
    assert not torch.equal(blocks["blocks.7.depthwise.conv.weight"], blocks["blocks.8.depthwise.conv.weight"])


def test_width_scales_channels() -> None:
    narrow = models.build("mobilenet_v2", shape=SMALL, width=0.5)
    assert narrow.module.get_parameter("blocks.16.project.conv.weight").shape == (160, 480, 1, 1)
    assert narrow.parameters < models.find("mobilenet_v2").parameters


@pytest.mark.parametrize("name", models.names())
def test_every_model_runs_at_its_smallest(name: str) -> None:
    entry = models.find(name)
    shape = (1, entry.input_shape[1], *[entry.minimum_size] * (len(entry.input_shape) - 2))
    model = models.build(name, shape=shape, width=0.25, batch=2)
    outputs = model.module(torch.zeros(model.input_shape))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(model.output_names)
    assert all(output.shape[0] == 2 and output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_input_channels_follow_the_shape(channels: int) -> None:
    model = models.build("separable_block", shape=(1, channels, 6, 6), width=0.25)
    assert model.module(torch.zeros(model.input_shape)).shape == (1, 16, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("mobilenet_v2", (3, 224, 224), "shape 3,224,224 has 3 axes; it needs 4, batch included, such as 1,3,224,224"),
        ("tcn_1d", (1, 40, 128, 1), "has 4 axes; it needs 3"),
        ("mobilenet_v2", (1, 3, 0, 224), "shape 1,3,0,224; every size must be a whole number of at least 1"),
        ("mobilenet_v2", (1, 3, -4, 224), "every size must be a whole number"),
        ("mobilenet_v2", (1, 3, 32.5, 32), "every size must be a whole number"),
        ("mobilenet_v2", (1, 3, "h", 32), "every size must be a whole number"),
        ("xception", (1, 3, 6, 299), "must be at least 7"),
        ("yolov5n_dw", (1, 3, 320, 100), "must be at least 32 and a multiple of 32"),
        ("mobilenet_v1", (1, 3, 100_000, 100_000), "make it smaller"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=rf"Model '{name}': .*{re.escape(said)}"):
        models.build(name, shape=shape)


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf"), 100, "1"])
def test_bad_width(width: float) -> None:
    with pytest.raises(InputError, match=r"Model 'ds_cnn': width .*; it must be a number above 0 and at most 16"):
        models.build("ds_cnn", width=width)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_bad_batch(batch: int) -> None:
    with pytest.raises(InputError, match=r"Model 'ds_cnn': batch .*; it must be a whole number of at least 1"):
        models.build("ds_cnn", batch=batch)


def test_batch_and_shape_that_disagree() -> None:
    with pytest.raises(InputError, match=r"says batch 2 but batch=3; give one of them"):
        models.build("ds_cnn", shape=(2, 1, 49, 10), batch=3)


def test_batch_from_either() -> None:
    entry = models.find("ds_cnn")
    assert resolve_shape(entry, (2, 1, 49, 10), 1) == (2, 1, 49, 10)
    assert resolve_shape(entry, (2, 1, 49, 10), 2) == (2, 1, 49, 10)
    assert resolve_shape(entry, None, 4) == (4, 1, 49, 10)
