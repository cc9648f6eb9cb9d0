import torch

from sepwise import models


def test_tcn_is_causal() -> None:
    model = models.build("tcn_1d", shape=(1, 8, 80), width=0.25)
    x = torch.randn(model.input_shape, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, :, 50:] += 1.0
    before, after = model.module(x), model.module(later)
    assert before.shape == (1, 12, 80)
    assert torch.equal(before[:, :, :50], after[:, :, :50])
    assert not torch.equal(before[:, :, 50], after[:, :, 50])


def test_tcn_sees_sixty_frames_back() -> None:
    model = models.build("tcn_1d", shape=(1, 8, 80), width=0.25)
    x = torch.randn(model.input_shape, generator=torch.Generator().manual_seed(0))
    earlier = x.clone()
    earlier[:, :, 10] += 1.0
    changed = (model.module(x) != model.module(earlier)).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(10, 71))


def test_ds_cnn_pads_as_the_original() -> None:
    model = models.build("ds_cnn")
    stem = model.module.get_submodule("stem")
    padded = model.module.get_submodule("pad")(torch.zeros(model.input_shape))
    assert padded.shape == (1, 1, 58, 12)
    assert stem(padded).shape == (1, 64, 25, 5)
