"""A failure by itself: the smallest models and the smallest input that show it, and the command that does."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from sepwise.passes.equivalence.graph import Array

__all__ = ["Reproducer"]

INPUTS = "input.npz"
TEXT = "reproduce.txt"
WORKLOAD = "workload.json"


@dataclass(frozen=True, eq=False)
class Reproducer:
    """What a failure was narrowed down to.

    Attributes:
        finding: what is wrong and where, one line after the other.
        nodes: names of the nodes that are wrong, the original's first.
        models: ONNX models by file name.
        inputs: tensors to feed them.
        arguments: what `sepwise` is called with, in the folder of the files, to see the failure.
        reproduces: whether the files alone were seen to fail.
        workload: the kernel's workload, where the failure is a kernel's.
        checks: names of the checks whose failure it shows.
        folder: where it was saved.
    """

    finding: tuple[str, ...]
    nodes: tuple[str, ...]
    models: Mapping[str, onnx.ModelProto]
    inputs: Mapping[str, Array]
    arguments: tuple[str, ...]
    reproduces: bool
    workload: Mapping[str, object] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def command(self) -> str:
        """The command that shows the failure, in the folder of the files."""
        return " ".join(("sepwise", *self.arguments))

    @property
    def text(self) -> tuple[str, ...]:
        """What was found and how to see it, for a reader."""
        if self.reproduces:
            return (*self.finding, f"The files alone show it: {self.command}")
        return (*self.finding, f"The files alone do NOT show it, only the whole model does. They were tried with: {self.command}")

    def save(self, folder: Path) -> None:
        """Writes the models, the input, the workload and a text into a folder.

        Args:
            folder: made where it does not exist.

        Raises:
            OSError: if it cannot be written.
        """
        import onnx_ir as ir  # half a second, and only needed where something is wrong

        from sepwise.passes.saving import write_model

        folder.mkdir(parents=True, exist_ok=True)
        for name, model in self.models.items():
            write_model(ir.from_proto(model), folder / name)
        with zipfile.ZipFile(folder / INPUTS, "w", zipfile.ZIP_DEFLATED) as archive:  # numpy.savez takes some names for its own
            for name, array in self.inputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
        if self.workload:
            (folder / WORKLOAD).write_text(json.dumps(self.workload, indent=2) + "\n")
        (folder / TEXT).write_text("\n".join(self.text) + "\n")

    def to_json(self) -> dict[str, object]:
        """Returns what JSON shows of it."""
        return {
            "finding": list(self.finding),
            "nodes": list(self.nodes),
            "folder": None if self.folder is None else str(self.folder),
            "command": self.command,
            "reproduces": self.reproduces,
        }
