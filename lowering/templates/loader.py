"""Runs the network beside this file from Python, with numpy and nothing else.

network = Network()
outputs = network.run(x=x)
"""

import ctypes
import json
from pathlib import Path

import numpy as np

__all__ = ["Network"]

_FOLDER = Path(__file__).resolve().parent


class Network:
    """The network with an arena of its own: one run at a time, but several networks may run at once.

    Attributes:
        manifest: What `manifest.json` says.
    """

    def __init__(self, folder: str | Path = _FOLDER) -> None:
        """Loads the shared library and its weights.

        Args:
            folder: The bundle.
        """
        folder = Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self._alignment_bytes = self.manifest["alignment_bytes"]
        self._library = ctypes.CDLL(str(folder / self.manifest["shared_library"]))
        self._run = self._library[f"{self.manifest['name']}_run"]
        self._run.argtypes = [ctypes.c_void_p] * 3
        self._arena = self._allocate(self.manifest["arena_bytes"])
        self._weights = None
        if self.manifest["weights"] is not None:
            self._weights = self._align(np.fromfile(folder / self.manifest["weights"], np.uint8))
            check = self._library[f"{self.manifest['name']}_check_weights"]
            check.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            self._require_done(check(self._weights.ctypes.data, self._weights.nbytes))

    def run(self, /, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the network once.

        Args:
            **inputs: Every input by name, of its exact shape and element type.

        Returns:
            The outputs by name.

        Raises:
            ValueError: An input is missing, unknown, or of another shape or element type.
        """
        wanted = {each["name"]: each for each in self.manifest["inputs"]}
        inputs = {name: np.asarray(array) for name, array in inputs.items()}
        if inputs.keys() != wanted.keys():
            raise ValueError(f"inputs {', '.join(inputs) or 'none'} found, {', '.join(wanted)} needed")
        for name, each in wanted.items():
            shape, dtype = tuple(each["shape"]), np.dtype(each["dtype"])
            if inputs[name].shape != shape or inputs[name].dtype != dtype:
                raise ValueError(f"input {name}: {inputs[name].dtype}{inputs[name].shape} found, {dtype}{shape} needed")
        given = [self._align(inputs[name]) for name in wanted]
        results = [self._allocate(each["bytes"]) for each in self.manifest["outputs"]]
        pointers = [array.ctypes.data for array in given]
        if self._weights is not None:
            pointers.append(self._weights.ctypes.data)
        inputs_at = (ctypes.c_void_p * len(pointers))(*pointers)
        outputs_at = (ctypes.c_void_p * len(results))(*(array.ctypes.data for array in results))
        self._require_done(self._run(ctypes.addressof(inputs_at), ctypes.addressof(outputs_at), self._arena.ctypes.data))
        return {
            each["name"]: array.view(each["dtype"]).reshape(each["shape"])
            for each, array in zip(self.manifest["outputs"], results, strict=True)
        }

    def _allocate(self, nbytes: int) -> np.ndarray:
        """Allocates bytes at a multiple of the alignment."""
        block = np.empty(nbytes + self._alignment_bytes, np.uint8)
        start = -block.ctypes.data % self._alignment_bytes
        return block[start : start + nbytes]

    def _align(self, array: np.ndarray) -> np.ndarray:
        """Gives an array's bytes at a multiple of the alignment, copied only where they are not."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if flat.ctypes.data % self._alignment_bytes == 0:
            return flat
        aligned = self._allocate(flat.nbytes)
        aligned[:] = flat
        return aligned

    def _require_done(self, error: int) -> None:
        """Raises what the library returned."""
        if error:
            raise RuntimeError(f"{self.manifest['name']}: error {error}; {self.manifest['name']}.h says what it is")
