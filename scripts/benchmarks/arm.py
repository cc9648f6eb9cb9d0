"""What other runtimes execute on an emulated ARM core, beside sepwise.

    scripts/benchmarks/arm.sh                                  all networks on a Cortex-A72
    scripts/benchmarks/arm.sh --core cortex-a55 mobilenet_v2   one of them on another core, put beside what is there

Each runtime is its project's own arm64 build, run whole in an emulated arm64 Python under qemu-user with the core's `-cpu`,
and is shown the core's own /proc/cpuinfo, by which libraries pick their kernels. It runs float32 on one thread, once to settle
and once counted; its output is first set against the float64 oracle, in units of what float32 arithmetic explains. Counts
are exact and the same at every run to within a few instructions in a million; cycles are estimates (lowering/estimate.py). All
numbers are written as JSON first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tomllib
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from sepwise.console import say
from sepwise.files import new_file, resolve
from sepwise.lowering import estimate
from sepwise.lowering.bench import RuntimeCount, bench
from sepwise.lowering.build import compile
from sepwise.lowering.counts import read_counts
from sepwise.lowering.device import get as get_device
from sepwise.lowering.link import count_plugin
from sepwise.lowering.peers import OURS
from sepwise.passes import canonicalize, load_model
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import SepwiseError
from sepwise.passes.saving import save_model
from sepwise.samples import DETECTOR, fetch_networks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sepwise.lowering.counts import Counts
    from sepwise.lowering.device import Device
    from sepwise.passes.equivalence import Check

REPOSITORY: Final = Path(__file__).resolve().parents[2]
JSON: Final = REPOSITORY / "docs/benchmarks/arm.json"
RUNTIMES: Final = ("ncnn", "mnn", "litert", "onnxruntime")
GUEST: Final = Path(__file__).with_name("arm_guest.py")

BLOCK: Final = "inverted_residual"
NETWORKS: Final = (
    BLOCK,
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "shufflenet_v2",
    "efficientnet_lite0",
    DETECTOR,
)
DETECTOR_SHAPE: Final = (1, 3, 320, 320)

BLOCK_TEXT: Final = """<ir_version: 8, opset_import: ["" : 17]>
inverted_residual (float[1,32,56,56] x) => (float[1,32,56,56] y)
<float[192,32,1,1] expand_w, float[192] expand_b, float[192,1,3,3] depthwise_w, float[192] depthwise_b,
 float[32,192,1,1] project_w, float[32] project_b, float low = {0.0}, float high = {6.0}>
{
  [expand] a = Conv (x, expand_w, expand_b)
  [expand_relu6] b = Clip (a, low, high)
  [depthwise] c = Conv <group = 192, pads = [1, 1, 1, 1]> (b, depthwise_w, depthwise_b)
  [depthwise_relu6] d = Clip (c, low, high)
  [project] y = Conv (d, project_w, project_b)
}"""
"""A block of MobileNetV2 at 56 x 56, batch norms folded."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one runtime executed.

    Attributes:
        runtime: Its name.
        version: Its version.
        instructions: Of one inference; None where it did not run, or computed something else.
        instructions_per_mac: The same over the network's MACs.
        estimated_cycles: Of one inference on the core; None where llvm-mca is missing or does not know it.
        worst_ratio: Its error over what float32 arithmetic explains, as `sepwise verify` judges a whole model.
        failure: Why it has no count, in one line.
    """

    runtime: str
    version: str
    instructions: int | None
    instructions_per_mac: float | None
    estimated_cycles: float | None
    worst_ratio: float | None
    failure: str = ""


def make_block(path: Path) -> None:
    """Writes the block with drawn weights.

    Args:
        path: The ONNX file to write.
    """
    model = onnx.parser.parse_model(BLOCK_TEXT)
    rng = np.random.default_rng(0)
    for value in list(model.graph.value_info):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) / math.sqrt(max(math.prod(shape[1:]), 1))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def find_network(name: str, folder: Path) -> tuple[Path, Mapping[str, Sequence[int]] | None]:
    """Finds a network's file.

    Args:
        name: `BLOCK`, `DETECTOR`, a zoo name or an ONNX file.
        folder: Where files are made.

    Returns:
        The file, and shapes for the inputs that it leaves open.
    """
    if name == BLOCK:
        file = folder / f"{BLOCK}.onnx"
        make_block(file)
        return file, None
    if name == DETECTOR:
        return fetch_networks(folder / "trained")[DETECTOR], {"x": DETECTOR_SHAPE}
    found = resolve(name)
    return found.path, found.shapes


# Conversion ------------------------------------------------------------------------------------------------------------

LITERT_CONVERSION: Final = """
import sys
import numpy
import onnx2tf
import onnx2tf.onnx2tf

def drawn(*_, **__):
    return numpy.random.default_rng(0).random((20, 128, 128, 3), dtype=numpy.float32)

for module in list(sys.modules.values()):  # it would download images to try the network on
    if hasattr(module, "download_test_image_data"):
        module.download_test_image_data = drawn
onnx2tf.convert(input_onnx_file_path=sys.argv[1], output_folder_path=sys.argv[2], non_verbose=True)
"""


def convert(runtime: str, source: Path, tools: Path) -> Path:
    """Converts a network into a runtime's own format, once.

    Args:
        runtime: Which.
        source: ONNX with fixed shapes, in a folder of its own, where the results go.
        tools: The folder of the converters' programs.

    Returns:
        What `arm_guest.py` is given as the model.

    Raises:
        SepwiseError: The converter failed.
    """
    litert, mnn = source.with_name("litert"), source.with_suffix(".mnn")
    written, command = {
        "onnxruntime": (source, []),
        "ncnn": (source.with_suffix(".ncnn.param"), [tools / "pnnx", source, "fp16=0"]),
        "mnn": (mnn, [tools / "mnnconvert", "-f", "ONNX", "--bizCode", "none", "--modelFile", source, "--MNNModel", mnn]),
        "litert": (litert / f"{source.stem}_float32.tflite", [tools / "python", "-c", LITERT_CONVERSION, source, litert]),
    }[runtime]
    if not written.exists() or written.stat().st_mtime < source.stat().st_mtime:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if not written.exists():
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise SepwiseError(f"conversion failed: {lines[-1] if lines else f'status {done.returncode}'}")
    return written.with_suffix("") if runtime == "ncnn" else written  # which takes the stem of its two files


# Counting --------------------------------------------------------------------------------------------------------------


def describe_core(device: Device, sysroot: Path) -> None:
    """Writes the /proc/cpuinfo that the emulated libraries read.

    Args:
        device: Which core.
        sysroot: Its folder.
    """
    cores = tomllib.loads((files("sepwise.lowering") / "devices.toml").read_text())["arm_core"]
    (core,) = (core for core in cores if core.get("device") == device.cpu)
    lines = {
        "processor": "0",
        "Features": " ".join(sorted(device.flags)),
        "CPU implementer": hex(core["implementer"]),
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": hex(core["part"]),
        "CPU revision": "3",
    }
    (sysroot / "proc").mkdir(exist_ok=True)
    (sysroot / "proc/cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n")


def run_guest(runtime: str, model: Path, device: Device, folder: Path, inputs: Path) -> tuple[Counts, np.ndarray, str]:
    """Runs a runtime under the emulator and counts one inference.

    Args:
        runtime: A name out of `RUNTIMES`.
        model: In its own format.
        device: The core.
        folder: Holds the sysroot and takes the results.
        inputs: The input as .npy.

    Returns:
        What it executed, the first output, the runtime's version.

    Raises:
        SepwiseError: It did not run.
    """
    counts, output, sysroot = folder / "counts.txt", folder / "output.npz", folder / "sysroot"
    for file in (counts, output):
        file.unlink(missing_ok=True)
    assert device.emulator is not None
    assert device.emulator_cpu is not None
    reported = subprocess.run([device.emulator, "--version"], capture_output=True, text=True, check=True).stdout
    plugin = count_plugin(int(reported.split("version ")[1].split(".")[0]))
    geometry = estimate.cache_geometry(device)
    assert geometry is not None, "the caches of ARM cores are known"
    options = f"{plugin},counts={counts},skip=1,core={geometry}"
    command = [device.emulator, "-cpu", device.emulator_cpu, "-L", sysroot, "-plugin", options]
    guest = [sysroot / "usr/bin/python3", GUEST, runtime, model, inputs, output]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [str(word) for word in (*command, *guest)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not output.exists():
        lines = done.stderr.strip().splitlines()
        raise SepwiseError(f"did not run: {lines[-1] if lines else f'status {done.returncode}'}")
    found = read_counts(counts.read_text(), 1)
    with np.load(output) as arrays:
        return found, arrays["output"], str(arrays["version"])


def count_network(name: str, device: Device, folder: Path, runtimes: Sequence[str]) -> dict[str, Any]:
    """Counts what every runtime executes for one network.

    Args:
        name: As `find_network` takes it.
        device: The core.
        folder: build/arm.
        runtimes: Names out of `RUNTIMES`.

    Returns:
        The network's entry of the JSON file.
    """
    path, shapes = find_network(name, folder)
    model = load_model(path, shapes=shapes)
    work = folder / "networks" / path.stem
    work.mkdir(parents=True, exist_ok=True)
    source = work / f"{path.stem}.onnx"
    save_model(canonicalize(model), work / "new.onnx")
    if not source.exists() or source.read_bytes() != (work / "new.onnx").read_bytes():  # conversions of the old one are stale
        (work / "new.onnx").replace(source)
    feeds = sample_inputs(model, seed=0)
    (data,) = feeds.values()
    np.save(work / "x.npy", data.astype(np.float32))
    oracle = Oracle(model)
    expected, sigma = oracle.run(feeds), execution_sigma(oracle, feeds)
    output = next(iter(expected))

    def check(found: np.ndarray) -> Check:
        shaped = {output: found.reshape(expected[output].shape)}
        return compare_execution(shaped, {output: expected[output]}, {output: sigma[output]})

    say(f"{name}: {OURS}")
    judged = check(compile(path, target=device.name, shapes=shapes).run(**feeds)[output])
    if not judged.passed:
        raise SepwiseError(f"{name} on {device.name}: computed wrongly ({judged.reason}), so nothing is counted.")
    ours = bench(path, target=device.name, shapes=shapes)
    (mine,) = ours.runtimes
    assert isinstance(mine, RuntimeCount), "arm cores are emulated here"
    cycles = mine.estimated_cycles[device.name]
    counts = [Count(OURS, version("sepwise"), mine.instructions, mine.instructions_per_mac, cycles, judged.worst_ratio)]
    for runtime in runtimes:
        say(f"{name}: {runtime}")
        try:
            made = convert(runtime, source, folder / "converters/bin")
            executed, array, release = run_guest(runtime, made, device, folder, work / "x.npy")
        except SepwiseError as error:
            counts.append(Count(runtime, "", None, None, None, None, " ".join(str(error).split())))
            continue
        judged = check(array)
        if not judged.passed:
            counts.append(Count(runtime, release, None, None, None, judged.worst_ratio, f"computed wrongly: {judged.reason}"))
            continue
        total = executed.instructions
        cycles = None if estimate.missing(device) else sum(estimate.estimate_cycles(executed, device, device))
        counts.append(Count(runtime, release, total, total / ours.macs, cycles, judged.worst_ratio))
    entry = {"core": device.name, "network": path.stem, "input": list(data.shape), "macs": ours.macs}
    return {**entry, "date": date.today().isoformat(), "runtimes": [asdict(count) for count in counts]}


# The table -------------------------------------------------------------------------------------------------------------


def make_table(results: dict[str, Any]) -> str:
    """Makes the Markdown page of a results file.

    Args:
        results: As `main` writes it.

    Returns:
        The page.
    """
    counts = [count for network in results["networks"] for count in network["runtimes"]]
    names = list(dict.fromkeys(count["runtime"] for count in counts))
    versions = {count["runtime"]: count["version"] for count in counts if count["version"]}
    dates = [network["date"] for network in results["networks"]]
    lines = [
        "# On emulated ARM cores, beside other runtimes",
        "",
        "Each cell: instructions per multiply-accumulate, which are exact, then estimated Mcycles, which are not. One thread, "
        f"float32, {' to '.join(sorted({min(dates), max(dates)}))}, made by `scripts/benchmarks/arm.sh`. The floor is 0.25 "
        "instructions: one multiply-add of 4 lanes each. The last column is sepwise over the best peer, for either.",
        "",
        f"| core | network | input | {' | '.join(names)} | over the best |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    ratios: dict[str, list[tuple[float | None, float | None]]] = {}
    for network in results["networks"]:
        found = {count["runtime"]: count for count in network["runtimes"]}
        over = _over_best(found, "instructions_per_mac"), _over_best(found, "estimated_cycles")
        ratios.setdefault(network["core"], []).append(over)
        cells = [_cell(found[name]["instructions_per_mac"], found[name]["estimated_cycles"], 1e-6) for name in names]
        shape = " x ".join(map(str, network["input"]))
        lines.append(f"| {network['core']} | {network['network']} | {shape} | {' | '.join(cells)} | {_cell(*over)} |")
    lines.append("")
    for core, pairs in ratios.items():
        exact, estimated = (_geometric_mean([each for each in column if each]) for column in zip(*pairs, strict=True))
        lines.append(f"Geometric means of the last column, {core}: {_cell(exact, estimated)}.")
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".", ""]
    for network in results["networks"]:
        for count in network["runtimes"]:
            if count["failure"]:
                lines.append(f"- {network['network']} on {network['core']}, {count['runtime']}: {count['failure']}")
    return "\n".join(lines).rstrip() + "\n"


def _over_best(found: dict[str, dict[str, Any]], field: str) -> float | None:
    """Sepwise's number over the smallest of the others'."""
    peers = [count[field] for name, count in found.items() if name != OURS and count[field] is not None]
    ours = found[OURS][field]
    return None if ours is None or not peers else ours / min(peers)


def _cell(exact: float | None, estimated: float | None, unit: float = 1.0) -> str:
    """Two numbers of a kind beside each other."""
    left = "-" if exact is None else f"{exact:.3f}"
    return f"{left} / {'-' if estimated is None else f'{estimated * unit:.2f}'}"


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def main() -> None:
    """Counts, adds to the JSON file, makes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=f"zoo names, ONNX files, or of {', '.join(NETWORKS)}")
    parser.add_argument("--folder", type=Path, required=True, help="what arm.sh prepared")
    parser.add_argument("--core", default="cortex-a72", help="a device that is emulated here")
    parser.add_argument("--runtimes", nargs="*", default=RUNTIMES, help="peers; all if left out")
    parser.add_argument("-o", "--output", type=Path, default=JSON, help="the JSON file; the table goes beside it, as .md")
    options = parser.parse_args()
    device = get_device(options.core)
    folder = options.folder.absolute()
    describe_core(device, folder / "sysroot")
    known = json.loads(options.output.read_text())["networks"] if options.output.exists() else []
    networks = {(network["core"], network["network"]): network for network in known}
    for name in options.networks:
        network = count_network(name, device, folder, options.runtimes)
        networks[network["core"], network["network"]] = network
    results = {"networks": list(networks.values())}
    with new_file(options.output) as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n")
    with new_file(options.output.with_suffix(".md")) as partial:
        partial.write_text(make_table(results))


if __name__ == "__main__":
    main()
