"""What other runtimes execute on an emulated ARM core, beside sepwise.

    scripts/benchmarks/arm.sh                                  all networks on a Cortex-A72
    scripts/benchmarks/arm.sh --core cortex-a55 mobilenet_v2   one of them on another core, put beside what is there
    scripts/benchmarks/arm.sh --runtimes                       sepwise again, no peers: theirs stay as they are
    scripts/benchmarks/arm.sh --published                      ncnn on boards whose times its project publishes

The last holds the estimate itself against those times and writes boards.json, a part of docs/benchmarks/estimate.md.

Each runtime is its project's own arm64 build, run whole in an emulated arm64 Python under qemu-user with the core's `-cpu`,
and is shown the core's own /proc/cpuinfo, by which libraries pick their kernels. It runs float32 on one thread, once to settle
and once counted; its output is first set against the float64 oracle, in units of what float32 arithmetic explains. Counts
are exact and the same at every run to within a few instructions in a million; cycles are estimates (lowering/estimate.py), and
left out where a core has scalable vectors, whose loads qemu does not show. All numbers are written as JSON first, each
network's when it is done. Numbers that are not made anew stay only where the same LLVM estimated them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
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
from sepwise.lowering.peers.base import run_converter
from sepwise.lowering.runner import open_runner
from sepwise.lowering.strategies import transformed_nodes
from sepwise.lowering.verify import transformed_values
from sepwise.passes import canonicalize, load_model
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs
from sepwise.passes.errors import SepwiseError
from sepwise.passes.saving import save_model
from sepwise.samples import DETECTOR, fetch_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sepwise.lowering.counts import Counts
    from sepwise.lowering.device import Device
    from sepwise.lowering.program import Program
    from sepwise.passes.equivalence import Check

REPOSITORY: Final = Path(__file__).resolve().parents[2]
JSON: Final = REPOSITORY / "docs/benchmarks/arm.json"
RUNTIMES: Final = ("ncnn", "mnn", "litert", "onnxruntime")
GUEST: Final = Path(__file__).with_name("arm_guest.py")

BOARDS: Final = REPOSITORY / "docs/benchmarks/boards.json"

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
        date: When it was counted.
        failure: Why it has no count, in one line.
    """

    runtime: str
    version: str
    instructions: int | None
    instructions_per_mac: float | None
    estimated_cycles: float | None
    worst_ratio: float | None
    date: str = field(default_factory=lambda: date.today().isoformat())
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """A board on which ncnn was timed, by one thread.

    Attributes:
        device: Its name here, or that of a device with the same core.
        name: Its name.
        clocks_hz: The clock that the source states; others at which its times are looked at, too.
        times_ms: Mean times by network.
        source: Where they are published.
    """

    device: str
    name: str
    clocks_hz: tuple[int, ...]
    times_ms: Mapping[str, float]
    source: str


PUBLISHED: Final = (
    Board(
        device="rpi3b-plus",
        name="Raspberry Pi 3B+",
        clocks_hz=(1_400_000_000,),
        times_ms={"mobilenet_v1": 205.65, "mobilenet_v2": 158.80},
        source="ncnn, benchmark/README.md of 2023-06-23 (commit 3a74ae4d3)",
    ),
    Board(
        device="rpi4",
        name="Raspberry Pi 4",
        clocks_hz=(1_800_000_000, 1_500_000_000),
        times_ms={"mobilenet_v1": 124.32, "mobilenet_v2": 93.48},
        source="ncnn, benchmark/README.md of 2023-06-15 (commit cc37c1099)",
    ),
)

ALSO_PUBLISHED: Final = (
    Board(
        device="rpi4",
        name="Raspberry Pi 4, before",
        clocks_hz=(1_500_000_000,),
        times_ms={"mobilenet_v1": 145.94, "mobilenet_v2": 110.10},
        source="ncnn, benchmark/README.md before 2023-06-15 (the parent of commit cc37c1099)",
    ),
    Board(
        device="cortex-a72",
        name="Rockchip RK3399",
        clocks_hz=(1_800_000_000,),
        times_ms={"mobilenet_v1": 111.99, "mobilenet_v2": 79.18},
        source="ncnn, benchmark/README.md of 2022-01-03 (commit 7b222a19a)",
    ),
)
"""Times beside which the published ones are put: the same cores at another clock or with another memory."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedNetwork:
    """A network that runtimes are given.

    Attributes:
        path: Its file.
        shapes: Of the inputs that the file leaves open.
        source: ONNX with fixed shapes, in a folder of its own.
        data: Its input.
        output: The name of its first output.
        feeds: The input by its name.
        program: What sepwise makes of it.
        check: Judges a runtime's output, by transformed tiles where sepwise's Program convolves so.
    """

    path: Path
    shapes: Mapping[str, Sequence[int]] | None
    source: Path
    data: np.ndarray
    output: str
    feeds: Mapping[str, np.ndarray]
    program: Program
    check: Callable[[np.ndarray], Check]


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
        run_converter(command, written)
    return written.with_suffix("") if runtime == "ncnn" else written  # which takes the stem of its two files


# Counting --------------------------------------------------------------------------------------------------------------


def describe_core(device: Device, sysroot: Path) -> None:
    """Writes what the emulated libraries read of the processor: /proc/cpuinfo, and its caches in /sys, in place of another's.

    A level 2 with no other behind it is what all cores share.

    Args:
        device: Which core.
        sysroot: Its folder.
    """
    cores = tomllib.loads((files("sepwise.lowering") / "devices.toml").read_text())["arm_core"]
    (core,) = (core for core in cores if core.get("device") == device.cpu)
    lines = {
        "Features": " ".join(sorted(device.flags)),
        "CPU implementer": hex(core["implementer"]),
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": hex(core["part"]),
        "CPU revision": "3",
    }
    text = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    _write(sysroot / "proc/cpuinfo", "".join(f"processor\t: {number}\n{text}\n" for number in range(device.cores)))
    everyone = (1 << device.cores) - 1
    cpus = sysroot / "sys/devices/system/cpu"
    if cpus.exists():
        shutil.rmtree(cpus)
    for number in range(device.cores):
        folder, itself = cpus / f"cpu{number}", 1 << number
        _write(folder / "topology/thread_siblings", f"{itself:x}\n")
        levels = [
            ("Data", device.l1d_bytes, itself),
            ("Unified", device.l2_bytes, itself if device.l3_bytes else everyone),
            ("Unified", device.l3_bytes, everyone),
        ]
        for index, (kind, nbytes, sharers) in enumerate(levels):
            if not nbytes:
                continue
            facts = {"level": index + 1, "type": kind, "size": f"{nbytes // 1024}K", "shared_cpu_map": f"{sharers:x}"}
            for name, fact in facts.items():
                _write(folder / f"cache/index{index}" / name, f"{fact}\n")


def _write(file: Path, text: str) -> None:
    """Writes a file into folders that need not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def run_guest(runtime: str, model: Path, device: Device, folder: Path, inputs: Path) -> tuple[Counts, np.ndarray, str]:
    """Runs a runtime under the emulator and counts one inference.

    Args:
        runtime: A name out of `RUNTIMES`.
        model: In its own format.
        device: The core.
        folder: Holds the sysroot.
        inputs: The input as .npy.

    Returns:
        What it executed, the first output, the runtime's version.

    Raises:
        SepwiseError: It did not run.
    """
    sysroot = folder / "sysroot"
    assert device.emulator is not None
    assert device.emulator_option is not None
    reported = subprocess.run([device.emulator, "--version"], capture_output=True, text=True, check=True).stdout
    plugin = count_plugin(int(reported.split("version ")[1].split(".")[0]))
    geometry = estimate.cache_geometry(device)
    assert geometry is not None, "the caches of ARM cores are known"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with TemporaryDirectory() as scratch:
        counts, output = Path(scratch, "counts.txt"), Path(scratch, "output.npz")
        options = f"{plugin},counts={counts},skip=1,core={geometry}"
        command = [device.emulator, "-cpu", device.emulator_option, "-L", sysroot, "-plugin", options]
        guest = [sysroot / "usr/bin/python3", GUEST, runtime, model, inputs, output]
        words = [str(word) for word in (*command, *guest)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if done.returncode or not output.exists():
            lines = done.stderr.strip().splitlines()
            raise SepwiseError(f"did not run: {lines[-1] if lines else f'status {done.returncode}'}")
        with np.load(output) as arrays:
            return read_counts(counts.read_text(), 1), arrays["output"], str(arrays["version"])


def prepare_network(name: str, device: Device, folder: Path) -> PreparedNetwork:
    """Writes a network and its input where runtimes find them, and computes what they are to give.

    Args:
        name: As `find_network` takes it.
        device: The core.
        folder: build/arm.

    Returns:
        The network.
    """
    path, shapes = find_network(name, folder)
    model = load_model(path, shapes=shapes)
    work = folder / "networks" / path.stem
    work.mkdir(parents=True, exist_ok=True)
    source = work / "network.onnx"  # an identifier: pnnx spells other names differently in those of its files
    canonical = canonicalize(model)
    save_model(canonical, work / "new.onnx")
    if not source.exists() or source.read_bytes() != (work / "new.onnx").read_bytes():  # conversions of the old one are stale
        (work / "new.onnx").replace(source)
    feeds = sample_inputs(model, seed=0)
    (data,) = feeds.values()
    np.save(work / "x.npy", data.astype(np.float32))
    oracle = Oracle(model)
    program = compile(path, target=device.name, shapes=shapes).program
    winograd = transformed_values(transformed_nodes(program.calls), canonical)
    expected, sigma = oracle.run(feeds), execution_sigma(oracle, feeds, winograd=winograd)
    output = next(iter(expected))

    def check(found: np.ndarray) -> Check:
        shaped = {output: found.reshape(expected[output].shape)}
        return compare_execution(shaped, {output: expected[output]}, {output: sigma[output]})

    return PreparedNetwork(path, shapes, source, data, output, feeds, program, check)


def count_peer(runtime: str, network: PreparedNetwork, device: Device, folder: Path) -> tuple[Counts | None, Count]:
    """Counts what a peer executes.

    Args:
        runtime: A name out of `RUNTIMES`.
        network: What it computes.
        device: The core.
        folder: build/arm.

    Returns:
        What it executed, None where it did not run or computed something else; and its entry, without instructions per MAC.
    """
    try:
        made = convert(runtime, network.source, folder / "converters/bin")
        executed, array, release = run_guest(runtime, made, device, folder, network.source.with_name("x.npy"))
    except SepwiseError as error:
        return None, Count(runtime, "", None, None, None, None, failure=" ".join(str(error).split()))
    judged = network.check(array)
    if not judged.passed:
        failure = f"computed wrongly: {judged.reason}"
        return None, Count(runtime, release, None, None, None, judged.worst_ratio, failure=failure)
    hidden = bool(device.scalable_bytes) and executed.scalable  # qemu does not show what scalable vectors load
    unknown = hidden or estimate.missing(device)
    cycles = None if unknown else sum(estimate.estimate_cycles(executed, device, device))
    return executed, Count(runtime, release, executed.instructions, None, cycles, judged.worst_ratio)


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
    say(f"{name}: {OURS}")
    network = prepare_network(name, device, folder)
    with open_runner(network.program) as runner:
        judged = network.check(runner.run(network.feeds)[network.output])
    if not judged.passed:
        raise SepwiseError(f"{name} on {device.name}: computed wrongly ({judged.reason}), so nothing is counted.")
    ours = bench(network.path, target=device.name, shapes=network.shapes)
    (mine,) = ours.runtimes
    assert isinstance(mine, RuntimeCount), "arm cores are emulated here"
    cycles = mine.estimated_cycles[device.name]
    counts = [Count(OURS, version("sepwise"), mine.instructions, mine.instructions_per_mac, cycles, judged.worst_ratio)]
    for runtime in runtimes:
        say(f"{name}: {runtime}")
        _, count = count_peer(runtime, network, device, folder)
        total = count.instructions
        counts.append(count if total is None else replace(count, instructions_per_mac=total / ours.macs))
    entry = {"core": device.name, "network": network.path.stem, "input": list(network.data.shape), "macs": ours.macs}
    return {**entry, "llvm": estimate.llvm_version(), "runtimes": [asdict(count) for count in counts]}


def with_others(network: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    """Keeps the counts of runtimes that are not made anew.

    Args:
        network: An entry of the JSON file.
        known: The entry that it replaces.

    Returns:
        The entry with the others' counts out of the old one, where they are of the same network and the same LLVM.
    """
    same = ("macs", "input", "llvm")
    if known is None or any(known.get(fact) != network[fact] for fact in same):
        return network
    counts = {count["runtime"]: count for count in (*known["runtimes"], *network["runtimes"])}
    return {**network, "runtimes": list(counts.values())}


def at_clock(device: Device, clock_hz: int) -> Device:
    """A device at another clock: beyond its caches, the same bytes come in a second.

    Args:
        device: The device.
        clock_hz: Its other clock.

    Returns:
        The device with that clock and the bytes that a cycle of it brings.
    """
    assert device.clock_hz is not None, "boards have a clock"
    return replace(device, clock_hz=clock_hz, memory_bytes_per_cycle=device.memory_bytes_per_cycle * device.clock_hz / clock_hz)


def count_boards(folder: Path) -> dict[str, Any]:
    """Estimates ncnn's times on the boards of `PUBLISHED`.

    Args:
        folder: build/arm.

    Returns:
        The content of boards.json.

    Raises:
        SepwiseError: ncnn did not run or computed something else, or llvm-mca is missing.
    """
    rows = []
    release = ""
    for board in PUBLISHED:
        device = get_device(board.device)
        if reason := estimate.missing(device):
            raise SepwiseError(reason)
        describe_core(device, folder / "sysroot")
        for name, published_ms in board.times_ms.items():
            say(f"{board.name}: {name}")
            executed, count = count_peer("ncnn", prepare_network(name, device, folder), device, folder)
            if executed is None:
                raise SepwiseError(f"ncnn, {name} on {board.name}: {count.failure}")
            release = count.version
            for clock_hz in board.clocks_hz:
                cycles = sum(estimate.estimate_cycles(executed, device, at_clock(device, clock_hz)))
                rows.append(
                    {
                        "board": board.name,
                        "core": device.cpu,
                        "source": board.source,
                        "clock_hz": clock_hz,
                        "clock_published": clock_hz == board.clocks_hz[0],
                        "network": name,
                        "published_ms": published_ms,
                        "instructions": executed.instructions,
                        "estimated_cycles": cycles,
                        "estimated_ms": 1e3 * cycles / clock_hz,
                    }
                )
    facts = {"date": date.today().isoformat(), "ncnn": release, "llvm": estimate.llvm_version()}
    return {**facts, "rows": rows, "also_published": also_published()}


def also_published() -> list[dict[str, Any]]:
    """Lists the times of `ALSO_PUBLISHED` as boards.json has them."""
    return [
        {
            "board": board.name,
            "core": get_device(board.device).cpu,
            "source": board.source,
            "clock_hz": board.clocks_hz[0],
            "network": name,
            "published_ms": published_ms,
        }
        for board in ALSO_PUBLISHED
        for name, published_ms in board.times_ms.items()
    ]


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
    estimators = sorted({str(network["llvm"]) for network in results["networks"] if network["llvm"]})
    dates = [count["date"] for count in counts]
    lines = [
        "# On emulated ARM cores, beside other runtimes",
        "",
        "Each cell: instructions per multiply-accumulate, which are exact, then estimated Mcycles, which are not. One thread, "
        f"float32, {' to '.join(sorted({min(dates), max(dates)}))}, made by `scripts/benchmarks/arm.sh`. The floor is 0.25 "
        "instructions: one multiply-add of 4 lanes each, less where Winograd's algorithm saves some. The last column is sepwise "
        "over the best peer, for either. In the estimate what sepwise prefetches is there at once, and each prefetch of a peer "
        "hides a miss.",
        "",
        f"| core | network | input | {' | '.join(names)} | over the best |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    ratios: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    incomplete = {
        (network["core"], network["network"])
        for network in results["networks"]
        if any(count["failure"] for count in network["runtimes"])
    }
    for network in results["networks"]:
        found = {count["runtime"]: count for count in network["runtimes"]}
        over = _over_best(found, "instructions_per_mac"), _over_best(found, "estimated_cycles")
        ratios.setdefault(network["core"], {})[network["network"]] = over
        facts = [found.get(name, {}) for name in names]
        cells = [_cell(fact.get("instructions_per_mac"), fact.get("estimated_cycles"), 1e-6) for fact in facts]
        shape = " x ".join(map(str, network["input"]))
        lines.append(f"| {network['core']} | {network['network']} | {shape} | {' | '.join(cells)} | {_cell(*over)} |")
    lines.append("")
    for core, overs in ratios.items():
        whole = {name: over for name, over in overs.items() if name != BLOCK}
        if len(whole) < 2:
            continue
        without = f", {BLOCK} left out" if BLOCK in overs else ""
        mean = f"Geometric means of the last column, {core}, {len(whole)} networks{without}: {_mean_cell(whole.values())}"
        complete = [over for name, over in whole.items() if (core, name) not in incomplete]
        if 1 < len(complete) < len(whole):
            mean += f"; of the {len(complete)} that every peer computes: {_mean_cell(complete)}"
        lines.append(f"{mean}.")
    releases = [f"{name} {number}" for name, number in versions.items()]
    lines += ["", f"Versions: {', '.join(releases)}; estimated with LLVM {', '.join(estimators)}.", ""]
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


def _mean_cell(overs: Iterable[tuple[float | None, float | None]]) -> str:
    """The geometric means of pairs."""
    exact, estimated = (_geometric_mean([each for each in column if each]) for column in zip(*overs, strict=True))
    return _cell(exact, estimated)


def _geometric_mean(values: Sequence[float]) -> float | None:
    """The mean of several values; one has none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if len(values) > 1 else None


def main() -> None:
    """Counts, adds to the JSON file, makes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"zoo names, ONNX files, or of {', '.join(NETWORKS)}")
    parser.add_argument("--folder", type=Path, required=True, help="what arm.sh prepared")
    parser.add_argument("--core", help="a device that is emulated here, cortex-a72 if left out")
    parser.add_argument("--runtimes", nargs="*", help="peers; all if left out")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file, arm.json in docs if left out; its table goes beside it")
    parser.add_argument("--published", action="store_true", help="hold the estimate against published times of ncnn instead")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.published:
        if options.networks or any(given is not None for given in (options.core, options.runtimes, options.output)):
            parser.error("--published takes no networks, --core, --runtimes or --output: all is as published.")
        boards = count_boards(folder)
        with new_file(BOARDS) as partial:
            partial.write_text(json.dumps(boards, indent=2) + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name("estimate.py"), "--page"], check=True)
        return
    device, output = get_device(options.core or "cortex-a72"), options.output or JSON
    runtimes = RUNTIMES if options.runtimes is None else options.runtimes
    describe_core(device, folder / "sysroot")
    known = json.loads(output.read_text())["networks"] if output.exists() else []
    networks = {(network["core"], network["network"]): network for network in known}
    for name in options.networks or NETWORKS:
        network = count_network(name, device, folder, runtimes)
        key = network["core"], network["network"]
        networks[key] = with_others(network, networks.get(key))
        results = {"networks": list(networks.values())}
        with new_file(output) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
        with new_file(output.with_suffix(".md")) as partial:
            partial.write_text(make_table(results))


if __name__ == "__main__":
    main()
