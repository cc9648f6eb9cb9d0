"""Checks of a bundle where it will run: linked into its example, it is run and compared with the float64 oracle of its model.

The library is the file that is handed over. Its example reads inputs and writes outputs as raw elements, natively or under
qemu-user, one process a run. A bare core, which unicorn also takes for others where qemu-user is missing, has no files: there the
library is linked alone, and its public function is called in unicorn as C would call it, on structs of pointers. Neither needs a
C library of the target.

The manifest knows the model by its checksum; the file itself is no part of a bundle, as it is as large as the weights and of no
use to the library's users.

What a bundle computes is compared with the model that was compiled. Where that takes images in another format, it is compared
in turn with the model as it came in, which is fed the numbers that the bytes stand for.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sepwise.lowering.artifact import check_cpu, device_from_json
from sepwise.lowering.bundle import checksum_model, save_manifest
from sepwise.lowering.device import UNICORN, emulated_here
from sepwise.lowering.link import link_example
from sepwise.lowering.runner import find_emulator
from sepwise.lowering.verify import CONVERSION, check_model, transformed_values
from sepwise.passes import canonicalize, fuse, load_model
from sepwise.passes.convert_input import ConvertInputPass, ImageFormat, convert_input, own_layout
from sepwise.passes.equivalence import (
    EMULATED_NETWORK_KINDS,
    NETWORK_KINDS,
    GraphReference,
    Oracle,
    Verification,
    sample_inputs,
)
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    import onnx_ir as ir

    from sepwise.lowering.bundle import Bundle
    from sepwise.lowering.device import Device
    from sepwise.passes.equivalence import Check

__all__ = ["BundleRunner", "open_bundle", "verify_bundle"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class BundleRunner:
    """Runs a bundle that is linked.

    Attributes:
        bundle: What it runs.
        device: What it was built for, as it was described then.
        program: The example, or for a bare core the library alone.
    """

    bundle: Bundle
    device: Device
    program: Path

    @property
    def method(self) -> str:
        """How it runs, for people."""
        if not self.device.emulated:
            return "the example, natively"
        if self.device.emulator == UNICORN:
            return f"the library, in unicorn as {self.device.emulator_cpu}"
        return f"the example, under {self.device.emulator} -cpu {self.device.emulator_option}"

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs the network once, in a process or on a core of its own.

        Args:
            inputs: Every input by name, of its exact shape and element type.

        Returns:
            The outputs by name.

        Raises:
            InputError: An input is missing, unknown, or of the wrong shape or element type.
            SepwiseError: It does not end as it should.
        """
        manifest = self.bundle.manifest
        arrays = _order_inputs(self.bundle, inputs)
        weights = [] if manifest["weights"] is None else [np.fromfile(self.bundle.folder / manifest["weights"], np.uint8)]
        bare = self.device.emulated and self.device.emulator == UNICORN
        raw = self._call([*arrays, *weights]) if bare else self._execute([*weights, *arrays])
        return {
            each["name"]: part.view(each["dtype"]).reshape(each["shape"])
            for each, part in zip(manifest["outputs"], raw, strict=True)
        }

    def _execute(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the example on its standard input."""
        command = [str(self.program)]
        if self.device.emulated:
            command = [find_emulator(self.device), "-cpu", str(self.device.emulator_option), *command]
        given = b"".join(array.tobytes() for array in arrays)
        done = subprocess.run(command, input=given, capture_output=True, check=False)
        sizes = [each["bytes"] for each in self.bundle.manifest["outputs"]]
        if done.returncode or len(done.stdout) != sum(sizes):
            said = done.stderr.decode(errors="replace").strip() or f"{len(done.stdout)} bytes instead of {sum(sizes)}"
            raise SepwiseError(f"Bundle '{self.bundle.name}': {self.method}, ended with status {done.returncode}: {said}.")
        return np.split(np.frombuffer(done.stdout, np.uint8).copy(), np.cumsum(sizes)[:-1])

    def _call(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Calls the public function on a bare core."""
        from sepwise.lowering.bare_metal import Core  # it loads unicorn, which no other device needs

        manifest = self.bundle.manifest
        core = Core(self.program, str(self.device.emulator_cpu), entry=f"{self.bundle.name}_run")

        def place(data: np.ndarray) -> int:
            address = core.allocate(data.nbytes)
            core.write(address, data)
            return address

        inputs = [place(array) for array in arrays]
        outputs = [core.allocate(each["bytes"]) for each in manifest["outputs"]]
        structs = [place(np.array(pointers, core.address)) for pointers in (inputs, outputs)]
        error = core.call((*structs, core.allocate(manifest["arena_bytes"])))
        if error:
            name = self.bundle.name
            raise SepwiseError(f"Bundle '{name}': {self.method}, returned {error}; {name}.h says what it is.")
        return [core.read(at, each["bytes"]) for at, each in zip(outputs, manifest["outputs"], strict=True)]


@contextmanager
def open_bundle(bundle: Bundle) -> Iterator[BundleRunner]:
    """Links a bundle into its example.

    Args:
        bundle: As `load_bundle` gives it.

    Yields:
        What runs it.

    Raises:
        InputError: This machine can neither run nor emulate it.
        SepwiseError: It does not link.
    """
    device = device_from_json(bundle.manifest["device"])
    if device.emulated:
        device = emulated_here(device)
        find_emulator(device)
    else:
        check_cpu(bundle.folder, device, emulated=False)
    folder = Path(tempfile.mkdtemp(prefix="sepwise-"))
    try:
        library = bundle.folder / bundle.manifest["library"]
        link_example(bundle.folder / "example.c", library, device, folder / "example", entry=f"{bundle.name}_run")
        yield BundleRunner(bundle, device, folder / "example")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verify_bundle(bundle: Bundle, model: Path, *, inputs: Arrays | None = None) -> Verification:
    """Runs a bundle and compares it with its model, as `verify` compares a compiled network; the manifest keeps the result.

    Args:
        bundle: As `load_bundle` gives it.
        model: The ONNX file that it was made of.
        inputs: Arrays by input name; drawn where None.

    Returns:
        One check of the whole network; before it, where it is given another image than the model, one of each output of the model
        that was compiled, on what both make of the same image.

    Raises:
        InputError: The model is another one, the inputs do not fit, or this machine can neither run nor emulate the bundle.
        SepwiseError: It does not link, or does not end as it should.
    """
    described = bundle.manifest["model"]
    if checksum_model(model) != described["sha256"]:
        raise InputError(
            f"{model}: is not the file that {bundle.folder} was made of, {described['file']} with the SHA-256 "
            f"{described['sha256']}. Give that file, or make the bundle again."
        )
    loaded = load_model(model, shapes=described["shapes"])
    image = None if described["image"] is None else ImageFormat.from_json(described["image"])
    taken = loaded if image is None else convert_input(loaded, image)
    executed = taken
    if described["float16"]:
        executed = dict(fuse(taken, float16=True, keep_stages=True).stages).get(CONVERSION, taken)
    with open_bundle(bundle) as runner:
        kinds: tuple[str, ...]
        if inputs is not None:
            feeds, kinds = [dict(inputs)], ("given",)
        else:
            kinds = EMULATED_NETWORK_KINDS if runner.device.emulated else NETWORK_KINDS
            feeds = [sample_inputs(taken, seed, kind) for seed, kind in enumerate(kinds)]
        flush = runner.device.flushes_subnormals
        winograd = transformed_values(bundle.manifest["winograd"], canonicalize(taken))
        check, answers = check_model(
            runner.run, taken, executed, feeds, name=described["name"], flush=flush, winograd=winograd
        )
        method = runner.method
    verdict = Verification(
        described["name"],
        bundle.manifest["target"],
        (*(() if image is None else _check_image(loaded, taken, image, feeds)), check),
        inputs=kinds,
        agreement=() if inputs is None else answers,
        notes=(f"Run: {method}.",),
    )
    return _record(bundle, verdict, method)


def _check_image(original: ir.Model, taken: ir.Model, image: ImageFormat, feeds: Sequence[Arrays]) -> list[Check]:
    """Compares what a model of another input computes with the model as it came in, fed what the image stands for.

    Their difference is what rounding the constants explains that the former stores, so sigma_c is measured on it.
    """
    oracle, reference = Oracle(original), GraphReference(taken, [dict(feed) for feed in feeds])
    wanted = [oracle.run({**feed, **_normalise(original, image, feed)}) for feed in feeds]
    name = ConvertInputPass.name
    return [
        replace(check, name=f"{name}: {check.name}", pass_name=name, computed=check.expected, expected=check.computed)
        for check in reference.judge(wanted)
    ]


def _normalise(original: ir.Model, image: ImageFormat, feed: Arrays) -> dict[str, np.ndarray]:
    """Computes in float64 what a model takes for the images of another one, as their format defines it."""
    values = {value.name: value for value in canonicalize(original).graph.inputs}
    given = {}
    for name in image.inputs:
        own = own_layout(values[name])
        layout = image.layout or own
        pixels = np.moveaxis(feed[name], layout.index("C"), -1)
        if image.element_type is not None:
            pixels = (pixels / 255.0 - image.mean) / image.std
        given[name] = np.moveaxis(pixels, -1, own.index("C"))
    return given


def _record(bundle: Bundle, verdict: Verification, method: str) -> Verification:
    """Writes into the manifest how the bundle was verified, where that can be written."""
    result: dict[str, Any] = {
        "passed": verdict.passed,
        "worst_ratio": verdict.worst_ratio,
        "method": method,
        "inputs": list(verdict.inputs),
    }
    try:
        save_manifest(bundle.folder, {**bundle.manifest, "verification": result})
    except OSError as error:
        return replace(verdict, notes=(*verdict.notes, f"{bundle.folder}: its manifest was left as it is: {error.strerror}."))
    return verdict


def _order_inputs(bundle: Bundle, inputs: Arrays) -> list[np.ndarray]:
    """Brings inputs into the order of the example, or says what is wrong with them."""
    wanted = bundle.manifest["inputs"]
    needed = ", ".join(f"{each['name']} {each['dtype']}[{','.join(map(str, each['shape']))}]" for each in wanted)
    if set(inputs) != {each["name"] for each in wanted}:
        raise InputError(f"Inputs {', '.join(inputs) or 'none'}: bundle '{bundle.name}' takes {needed}.")
    for each in wanted:
        array = inputs[each["name"]]
        if list(array.shape) != each["shape"] or str(array.dtype) != each["dtype"]:
            found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
            raise InputError(f"Input '{each['name']}': found {found}, bundle '{bundle.name}' takes {needed}.")
    return [np.ascontiguousarray(inputs[each["name"]]) for each in wanted]
