"""What a benchmark can be run against."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from sepwise.lowering.peers.iree import Iree
from sepwise.lowering.peers.mnn import Mnn
from sepwise.lowering.peers.ncnn import Ncnn
from sepwise.lowering.peers.onnx_runtime import OnnxRuntime
from sepwise.lowering.peers.openvino import OpenVino
from sepwise.lowering.peers.stock_tvm import StockTvm
from sepwise.lowering.peers.torch_compile import TorchCompile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.peers.base import Runtime

__all__ = ["OURS", "PEERS", "missing_packages", "names"]

OURS: Final = "sepwise"
"""Our own runtime's name among the others."""

PEERS: Final[Mapping[str, type[Runtime]]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "mnn": Mnn,
    "iree": Iree,
    "torch-compile": TorchCompile,
    "stock-tvm": StockTvm,
}
"""What `--against` takes."""


def names() -> list[str]:
    """Lists what a benchmark can be run against.

    Returns:
        The names that `--against` takes.
    """
    return list(PEERS)


def missing_packages(peer: str) -> list[str]:
    """Lists the modules that a peer needs and that are not installed here."""
    return [package for package in PEERS[peer].packages if not _is_installed(package)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it is part of
        return False
