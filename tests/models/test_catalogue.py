import re
import subprocess
import sys

import pytest

from sepwise import models
from sepwise.models.catalogue import ENTRIES, Entry
from sepwise.passes.errors import InputError

EVERY = [
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "xception",
    "shufflenet_v2",
    "efficientnet_lite0",
    "mnasnet",
    "yolov5n_dw",
    "deeplab_aspp",
    "ds_cnn",
    "tcn_1d",
    "x3d_block",
    "depth_multiplier",
    "grouped",
    "separable_block",
]


def test_names_are_the_whole_zoo() -> None:
    assert models.names() == EVERY


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from sepwise import models; "
        "print([(e.name, e.input_shape, e.parameters, e.paper) for e in models.ENTRIES] and 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entry_cites_a_paper(entry: Entry) -> None:
    assert re.search(r" (19|20)\d\d, .+, (arXiv:\d{4}\.\d{4,5}|doi:\S+)$", entry.paper)
    assert entry.summary
    assert entry.counts
    assert entry.input_shape[0] == 1


@pytest.mark.parametrize(
    ("asked", "close"),
    [("mobilenetv2", "mobilenet_v2"), ("xceptoin", "xception"), ("ds-cnn", "ds_cnn"), ("MobileNetV3", "mobilenet_v3")],
)
def test_unknown_name_lists_close_ones(asked: str, close: str) -> None:
    with pytest.raises(InputError, match=rf"Model '{asked}' is not in the zoo: .*{close}"):
        models.build(asked)


def test_name_like_none_lists_all() -> None:
    with pytest.raises(InputError, match=r"known are mobilenet_v1, .*separable_block"):
        models.find("#")
