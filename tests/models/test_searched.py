import pytest
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out
from sepwise.models.mobilenet_v2 import InvertedResidual

# As their authors' code spells them: repeats, kernel, stride, expansion, channels in, channels out.
MNASNET = "r1_k3_s1_e1_i32_o16 r3_k3_s2_e3_i16_o24 r3_k5_s2_e3_i24_o40 r3_k5_s2_e6_i40_o80 r2_k3_s1_e6_i80_o96 \
r4_k5_s2_e6_i96_o192 r1_k3_s1_e6_i192_o320"
LITE = "r1_k3_s1_e1_i32_o16 r2_k3_s2_e6_i16_o24 r2_k5_s2_e6_i24_o40 r3_k3_s2_e6_i40_o80 r3_k5_s1_e6_i80_o112 \
r4_k5_s2_e6_i112_o192 r1_k3_s1_e6_i192_o320"


def spelled(block: InvertedResidual) -> str:
    conv, project = block.depthwise.get_submodule("conv"), block.project.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(project, nn.Conv2d)
    inside = block.expand.get_submodule("conv") if not isinstance(block.expand, nn.Identity) else conv
    assert isinstance(inside, nn.Conv2d)
    expansion = conv.out_channels // inside.in_channels
    return f"k{conv.kernel_size[0]}_s{conv.stride[0]}_e{expansion}_i{inside.in_channels}_o{project.out_channels}"


def unrolled(stages: str) -> list[str]:
    """One spelling a block; from the second on a stage's blocks have stride 1 and its own channels."""
    blocks = []
    for stage in stages.split():
        repeats, kernel, stride, expansion, inputs, outputs = (int(part[1:]) for part in stage.split("_"))
        blocks.append(f"k{kernel}_s{stride}_e{expansion}_i{inputs}_o{outputs}")
        blocks += [f"k{kernel}_s1_e{expansion}_i{outputs}_o{outputs}"] * (repeats - 1)
    return blocks


@pytest.mark.parametrize(("name", "stages", "epsilon"), [("mnasnet", MNASNET, 1e-5), ("efficientnet_lite0", LITE, 1e-3)])
def test_blocks_of_the_authors(name: str, stages: str, epsilon: float) -> None:
    network = lay_out(find(name), 3, 1.0)
    assert [spelled(layer) for layer in network.modules() if isinstance(layer, InvertedResidual)] == unrolled(stages)
    assert {layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {epsilon}


@pytest.mark.parametrize("name", ["mnasnet", "efficientnet_lite0"])
@pytest.mark.parametrize("width", [0.25, 1.0, 1.3])
def test_the_head_keeps_its_channels(name: str, width: float) -> None:
    assert lay_out(find(name), 3, width).get_submodule("classifier").in_features == 1280
