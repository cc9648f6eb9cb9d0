"""The verbs as functions: the same names and options as on the command line.

Each imports what it needs when it is called; importing this module loads nothing heavy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepwise.files import new_file, require_empty, require_writable, resolve, save_reproducer

if TYPE_CHECKING:
    import numpy as np

    from sepwise.files import ModelFile
    from sepwise.inspection import Inspection
    from sepwise.lowering.artifact import Artifact
    from sepwise.lowering.bench import Benchmark
    from sepwise.lowering.bundle import Bundle, Weights
    from sepwise.lowering.remote import Board
    from sepwise.lowering.selection import Records
    from sepwise.lowering.tuning.result import Progress, Tuning
    from sepwise.passes.convert_input import ImageFormat
    from sepwise.passes.equivalence import Verification

__all__ = [
    "Fusion",
    "PassOutcome",
    "Refused",
    "TargetFacts",
    "bench",
    "bundle",
    "compile",
    "export",
    "fuse",
    "inspect",
    "load",
    "run",
    "server",
    "targets",
    "tune",
    "verify",
]

Shapes = Mapping[str, Sequence[int]] | Sequence[int] | None
"""Shapes by input name, the shape of the only input, or None where the file's own hold."""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """A target as `sepwise targets` lists it.

    Attributes:
        name: What `--target` takes.
        method: How programs for it run here: `native` or `emulated`.
        emulator: The emulator's program, or `unicorn`, also where that stands in for a missing one; None where there is none.
        emulator_cpu: What its `-cpu` takes: the target's cpu, or a relative that it knows, with the length of scalable vectors.
        missing: What this machine lacks to run them: programs to install, extensions of the processor, or another machine.
        install: The command that installs what is missing, None where nothing is or no command does.
        estimate_install: The command that installs the llvm-mca which estimates of its cycles lack, None where they lack none
            or there are none for it.
        triple: LLVM's target triple.
        cpu: LLVM's name of the cpu.
        features: LLVM's features that are added to the cpu's, or taken from them.
        isa: Instruction set family.
        lanes: float32 lanes of a vector register.
        vector_registers: Architectural vector registers.
        scalable_bytes: Scalable vector of the machine that stands for the target, 0 for none.
        flushes_subnormals: Whether vector arithmetic takes and gives 0 for numbers below the normal range.
        fma_ports: Vector fused multiply-adds that can start in one cycle.
        load_ports: Vector loads that can start in one cycle.
        scalable_ports: Multiply-adds of scalable vectors, and loads of them, that can start in one cycle.
        issue_width: Instructions that can be renamed, or issued in order, in one cycle.
        fma_latency_cycles: Cycles from one accumulation to the next on the same register.
        l2_bytes_per_cycle: What one core streams from its level 2 cache in one cycle.
        memory_bytes_per_cycle: What one core streams from beyond its level 2 cache in one cycle.
        core: Further facts of the core by name (`lowering.core_model.CoreModel`), their `sources` among them; None where the core
            is not modelled.
        cores: Physical cores of the machine that stands for the target.
        clock_hz: Its clock, None where it is not known or varies.
        l1d_bytes: Level 1 data cache.
        l2_bytes: Level 2 cache that one core sees.
        l3_bytes: Level 3 cache, 0 for none.
        flash_bytes: What a core without an operating system has for code and constants, None where not known.
        ram_bytes: What it has for variables, likewise.
        sources: Where each fact comes from.
    """

    name: str
    method: str
    emulator: str | None
    emulator_cpu: str | None
    missing: tuple[str, ...]
    install: str | None
    estimate_install: str | None
    triple: str
    cpu: str
    features: tuple[str, ...]
    isa: str
    lanes: int
    vector_registers: int
    scalable_bytes: int
    flushes_subnormals: bool
    fma_ports: float
    load_ports: float
    scalable_ports: int
    issue_width: int
    fma_latency_cycles: int
    l2_bytes_per_cycle: float
    memory_bytes_per_cycle: float
    core: dict[str, Any] | None
    cores: int
    clock_hz: int | None
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    flash_bytes: int | None
    ram_bytes: int | None
    sources: dict[str, str]

    @property
    def stands_in(self) -> bool:
        """Whether the emulator knows the core only by a relative."""
        return self.emulator_cpu is not None and self.emulator_cpu.split(",")[0] != self.cpu

    def to_json(self) -> dict[str, object]:
        """Gives the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Refused:
    """A place that a pass left alone.

    Attributes:
        node: Name of the node.
        reason: Why the rewrite would be wrong there.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """What one pass did.

    Attributes:
        name: The pass.
        fired: Number of rewrites.
        refused: Where it would have been wrong.
    """

    name: str
    fired: int
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class Fusion:
    """What fusing a model did.

    Attributes:
        model: Its name.
        passes: In the order in which they ran.
        operators: Fused operators by how often each occurs.
    """

    model: str
    passes: tuple[PassOutcome, ...]
    operators: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """Gives the fields that `sepwise fuse --json` prints."""
        return asdict(self)


def targets() -> list[TargetFacts]:
    """Lists the targets, `host` as detected.

    Returns:
        Facts of each, in the order of `devices.toml`.
    """
    from sepwise.lowering import device, estimate
    from sepwise.lowering.core_model import core_model

    found = []
    for name in device.names():
        facts = device.emulated_here(device.get(name))
        reach = device.reach(facts)
        same = {field.name: getattr(facts, field.name) for field in fields(TargetFacts) if hasattr(facts, field.name)}
        memory = {"flash_bytes": facts.flash_bytes or None, "ram_bytes": facts.ram_bytes or None}
        own = {"emulator_cpu": facts.emulator_option, "sources": dict(facts.sources), **memory}
        model = core_model(facts)
        own["core"] = None if model is None else asdict(model) | {"sources": dict(model.sources)}
        lacking = {"estimate_install": estimate.install(facts) if reach.method == "emulated" else None}
        found.append(TargetFacts(**same | asdict(reach) | own | lacking))
    return found


def export(
    model: str,
    path: str | Path,
    *,
    shape: Sequence[int] | None = None,
    width: float = 1.0,
    batch: int = 1,
    opset: int | None = None,
) -> Path:
    """Exports a zoo network from torch to ONNX, batch norm kept.

    Args:
        model: A name out of `sepwise.models.names()`.
        path: Where the file is to appear.
        shape: Shape of the input with its batch; the network's own where None.
        width: Factor on the number of channels.
        batch: Images at once.
        opset: ONNX operator set; torch's choice where None.

    Returns:
        The path.

    Raises:
        InputError: The name is unknown, a shape does not fit, or the path cannot be written.

    Example:
        >>> export("mobilenet_v2", "m.onnx", shape=(1, 3, 96, 96))  # doctest: +SKIP
        PosixPath('m.onnx')
    """
    from importlib.util import find_spec

    from sepwise import models
    from sepwise.passes.errors import InputError

    path = Path(path)
    require_writable(path)
    models.find(model)
    if find_spec("torch") is None:
        raise InputError(f"'{model}': zoo networks need torch, which is not installed: pip install 'sepwise[export]'.")
    return models.export(model, path, shape=shape, width=width, batch=batch, opset=opset)


def inspect(model: str | Path, *, target: str | None = None, shapes: Shapes = None) -> Inspection:
    """Describes a network's layers and what they cost, separable against standard.

    Args:
        model: An ONNX file or a zoo name.
        target: A name out of `targets()`, to foretell what it will need; None for the network alone.
        shapes: Shapes of inputs that the file leaves open.

    Returns:
        Layers, separable pairs, totals, and for a target what it will need.

    Raises:
        InputError: The model or the target cannot be used.
        UnsupportedError: An operator cannot be compiled for the target.
    """
    from dataclasses import replace

    from sepwise.inspection import inspect_model
    from sepwise.passes import load_model

    source = resolve(model, shapes)
    loaded = load_model(source.path, shapes=source.shapes)
    found = inspect_model(source.name, loaded)
    if target is None:
        return found
    from sepwise.lowering import device
    from sepwise.lowering.foretell import foretell

    return replace(found, forecast=foretell(loaded, device.get(target)))


def fuse(
    model: str | Path,
    path: str | Path | None = None,
    *,
    shapes: Shapes = None,
    inline: bool = False,
    float16: bool = False,
) -> Fusion:
    """Runs the passes over a model.

    Args:
        model: An ONNX file or a zoo name.
        path: Where to write the fused model; nowhere where None.
        shapes: Shapes of inputs that the file leaves open.
        inline: Whether to write plain ONNX in place of functions.
        float16: Whether to convert to float16 what does not need float32.

    Returns:
        What each pass did, and what it refused.

    Raises:
        InputError: The model cannot be used or the path not written.
    """
    from sepwise.passes import fuse as fuse_model
    from sepwise.passes import load_model
    from sepwise.passes.saving import save_model

    target = None if path is None else Path(path)
    if target is not None:
        require_writable(target)
    source = resolve(model, shapes)
    report = fuse_model(load_model(source.path, shapes=source.shapes), inline=inline, float16=float16)
    if target is not None:
        with new_file(target) as temporary:
            save_model(report.model, temporary)
    outcomes = (
        PassOutcome(each.name, each.fired, tuple(Refused(node, reason) for node, reason in each.refused))
        for each in report.passes
    )
    return Fusion(source.name, tuple(outcomes), dict(report.operators))


def compile(
    model: str | Path,
    *,
    target: str = "host",
    shapes: Shapes = None,
    threads: int = 1,
    float16: bool = False,
    image: ImageFormat | None = None,
    database: str | Path | None = None,
    output: str | Path | None = None,
) -> Artifact:
    """Compiles a network for a target.

    Args:
        model: An ONNX file or a zoo name.
        target: A name out of `targets()`.
        shapes: Shapes of inputs that the file leaves open.
        threads: Worker threads.
        float16: Compute in float16 what does not need float32; for cores that have float16 arithmetic.
        image: What it is to be given for an image; as the model has it where None.
        database: What `tune` has made, whose records take the place of the default; none where None.
        output: Folder to save the artifact in; not saved where None.

    Returns:
        What `run` takes; its `report` says how each kernel is computed.

    Raises:
        InputError: The model, the target or the folder cannot be used.

    Example:
        >>> compile("mobilenet_v2").run(x=x)  # doctest: +SKIP
    """
    from sepwise.lowering import device
    from sepwise.lowering.build import compile as compile_model

    device.get(target)
    if output is not None:
        require_writable(Path(output))
    source = resolve(model, shapes)
    return compile_model(
        source.path,
        target=target,
        shapes=source.shapes,
        threads=threads,
        float16=float16,
        image=image,
        records=_read_records(database, target, threads),
        output=output,
    )


def _read_records(database: str | Path | None, target: str, threads: int) -> Records | None:
    """Reads a database's records for a target, where one is given."""
    if database is None:
        return None
    from sepwise.lowering import device
    from sepwise.lowering.tuning.database import read_records

    return read_records(Path(database), device.get(target), threads)


def bundle(
    model: str | Path,
    output: str | Path,
    *,
    target: str = "host",
    name: str | None = None,
    weights: Weights = "inside",
    shapes: Shapes = None,
    threads: int = 1,
    float16: bool = False,
    image: ImageFormat | None = None,
    database: str | Path | None = None,
) -> Bundle:
    """Makes a C library of a network, for projects that have neither Python nor a runtime.

    Args:
        model: An ONNX file or a zoo name.
        output: Folder that is to appear; a bundle that is there and was not changed is replaced.
        target: A name out of `targets()`.
        name: Prefix of all that is public, a C identifier; made of the model's name where None.
        weights: `inside` the library, or `separate` in a file that the caller maps.
        shapes: Shapes of inputs that the file leaves open.
        threads: Workers that the kernels are shared out to, where the caller brings some.
        float16: Compute in float16 what does not need float32; for cores that have float16 arithmetic.
        image: What it is to be given for an image; as the model has it where None.
        database: What `tune` has made, whose records take the place of the default; none where None.

    Returns:
        The bundle: where it is, and what its manifest says.

    Raises:
        InputError: The model, the target, the name or the folder cannot be used.

    Example:
        >>> bundle("mobilenet_v2", "mobilenet", target="rpi4").manifest["arena_bytes"]  # doctest: +SKIP
        5619712
    """
    from sepwise.lowering import device
    from sepwise.lowering.bundle import bundle as bundle_model
    from sepwise.lowering.bundle import require_name

    device.get(target)
    if name is not None:
        require_name(name)
    require_writable(Path(output))
    source = resolve(model, shapes)
    return bundle_model(
        source.path,
        output,
        target=target,
        name=name,
        weights=weights,
        shapes=source.shapes,
        threads=threads,
        float16=float16,
        image=image,
        records=_read_records(database, target, threads),
    )


def load(folder: str | Path) -> Artifact:
    """Loads what `compile` saved.

    Args:
        folder: The artifact's folder.

    Returns:
        The artifact.

    Raises:
        InputError: The folder holds no artifact, or one that this machine cannot run.
    """
    from sepwise.lowering.artifact import load as load_artifact

    return load_artifact(folder)


def run(
    artifact: Artifact | str | Path,
    inputs: Mapping[str, np.ndarray],
    *,
    rpc: str | None = None,
    tracker: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> dict[str, np.ndarray]:
    """Runs a compiled network, here or on a board.

    Args:
        artifact: What `compile` returned, or the folder that it saved.
        inputs: Arrays by input name, of the exact shape and dtype.
        rpc: `HOST:PORT` of the RPC server of a board to run on.
        tracker: `HOST:PORT` of a tracker of such boards, with `key`.
        key: Which of a tracker's boards; with `rpc` what its server asks for.
        timeout: Seconds that the board may take for one answer, 60 where None.

    Returns:
        Arrays by output name.

    Raises:
        InputError: An input is missing, unknown, or has another shape or dtype, or there is no such board.
        BoardError: The board does not answer any more.
    """
    from sepwise.lowering.artifact import load as load_artifact
    from sepwise.lowering.runner import open_runner

    with _connect(rpc, tracker, key, timeout) as board:
        ready = load_artifact(artifact, elsewhere=board is not None) if isinstance(artifact, str | Path) else artifact
        if board is None:
            return ready.run(**inputs)
        with open_runner(ready.program, threads=ready.threads, board=board) as runner:
            return runner.run(inputs)


@contextmanager
def _connect(rpc: str | None, tracker: str | None, key: str | None, timeout: float | None) -> Iterator[Board | None]:
    """Gives the board that the options name, connected; None where they name none."""
    if all(option is None for option in (rpc, tracker, key, timeout)):
        yield None
        return
    from sepwise.lowering.remote import open_board

    board = open_board(rpc, tracker=tracker, key=key, timeout_s=timeout)
    if board is None:
        yield None
        return
    with board:
        yield board


def server(output: str | Path, *, target: str, copy: str | None = None) -> Path:
    """Makes the folder that a board needs to be reached: a server of TVM's RPC and the libraries that it needs.

    Args:
        output: Folder that is to appear; one that was made so is replaced.
        target: A name out of `targets()`, for what the board is.
        copy: `USER@BOARD` to copy the folder to, by scp; none where None.

    Returns:
        The server in the folder.

    Raises:
        InputError: There is no server for the target, the folder cannot be written, or not be copied.

    Example:
        >>> server("board", target="rpi4")  # doctest: +SKIP
        PosixPath('board/rpc_server')
    """
    from sepwise.lowering import device
    from sepwise.lowering.board_server import SERVER, build_server

    found = device.get(target)
    require_writable(Path(output))
    build_server(found, Path(output), copy=copy)
    return Path(output) / SERVER


def verify(
    model: str | Path | None = None,
    *,
    target: str = "host",
    against: str | Path | None = None,
    bundle: str | Path | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Shapes = None,
    threads: int = 1,
    float16: bool = False,
    bisect: bool = False,
    database: str | Path | None = None,
    output: str | Path | None = None,
    rpc: str | None = None,
    tracker: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Verification:
    """Checks that the numbers did not change: passes, kernels and the whole network on a target.

    Args:
        model: An ONNX file or a zoo name. With `bundle` it may be None where the file lies in the current folder, in the bundle
            or beside it.
        target: Where the kernels and the network run.
        against: A second file that should compute the same; then nothing is compiled.
        bundle: Folder of a bundle of the model, which is linked and run; then nothing is compiled.
        inputs: Arrays by input name; drawn where None.
        shapes: Shapes of inputs that the file leaves open.
        threads: Worker threads of the compiled network; 1 with `against`.
        float16: Compute in float16 what does not need float32; not with `against`.
        bisect: Narrow a failure down to a pass and its operators or to a kernel, and save what reproduces it.
        database: What `tune` has made, whose records take the place of the default; not with `against` or `bundle`.
        output: Folder to save it in, new or empty; `<model>.bisect` in the current folder where None. Only with `bisect`.
        rpc: `HOST:PORT` of the RPC server of a board to run on.
        tracker: `HOST:PORT` of a tracker of such boards, with `key`.
        key: Which of a tracker's boards; with `rpc` what its server asks for.
        timeout: Seconds that the board may take for one answer, 60 where None.

    Returns:
        Every check with its error and its bound; with `bisect` also what a failure was narrowed down to.

    Raises:
        InputError: The model, the target or the folder cannot be used, or two options exclude each other.
    """
    from sepwise.passes.errors import InputError

    if output is not None and not bisect:
        raise InputError(f"Output {output}: is for what bisecting finds. Give --output with --bisect, or neither.")
    if bundle is not None:
        _require_defaults(
            {
                "--target": (target, "host"),
                "--against": (against, None),
                "--shape": (shapes, None),
                "--threads": (threads, 1),
                "--float16": (float16, False),
                "--bisect": (bisect, False),
                "--rpc": (rpc, None),
                "--tracker": (tracker, None),
                "--key": (key, None),
                "--timeout": (timeout, None),
                "--database": (database, None),
            }
        )
        return _verify_bundle(Path(bundle), model, inputs)
    if model is None:
        raise InputError("Model: none was given. Give an ONNX file or a zoo name, or a bundle with --bundle.")
    source = resolve(model, shapes)
    folder = None
    if bisect:
        if rpc or tracker:
            raise InputError("Bisect: a failure is narrowed down here. Give one of --bisect and --rpc or --tracker.")
        folder = Path(f"{source.name}.bisect" if output is None else output)
        require_empty(folder)
    with _connect(rpc, tracker, key, timeout) as board:
        verdict = _verify(
            source, target, against, inputs, shapes, threads, float16=float16, bisect=bisect, board=board, database=database
        )
    return verdict if folder is None else save_reproducer(verdict, folder)


def _require_defaults(options: Mapping[str, tuple[object, object]]) -> None:
    """Refuses options that a bundle leaves nothing to say of, given with their defaults."""
    from sepwise.passes.errors import InputError

    if given := [option for option, (value, default) in options.items() if value != default]:
        raise InputError(f"{', '.join(given)}: a bundle is verified as it was made. Give that or --bundle, not both.")


def _verify_bundle(folder: Path, model: str | Path | None, inputs: Mapping[str, np.ndarray] | None) -> Verification:
    """Verifies a bundle against its model, which is looked for where none is given."""
    from sepwise.lowering.bundle import load_bundle
    from sepwise.lowering.bundle_check import verify_bundle

    bundle = load_bundle(folder)
    source = resolve(_find_model(bundle) if model is None else model, bundle.manifest["model"]["shapes"])
    return verify_bundle(bundle, source.path, inputs=inputs)


def _find_model(bundle: Bundle) -> Path | str:
    """Finds the file that a bundle was made of, by its name, or the zoo network."""
    from sepwise import models
    from sepwise.passes.errors import InputError

    described = bundle.manifest["model"]
    for place in (bundle.folder, bundle.folder.absolute().parent, Path()):
        if (file := place / str(described["file"])).is_file():
            return file
    if described["name"] in models.names():
        return str(described["name"])
    raise InputError(
        f"{bundle.folder}: its model {described['file']} is neither in it, beside it, nor in the current folder. Give it, as in "
        f"`sepwise verify {described['file']} --bundle {bundle.folder}`."
    )


def _verify(
    source: ModelFile,
    target: str,
    against: str | Path | None,
    inputs: Mapping[str, np.ndarray] | None,
    shapes: Shapes,
    threads: int,
    *,
    float16: bool,
    bisect: bool,
    board: Board | None,
    database: str | Path | None,
) -> Verification:
    """Compares with a second file, or verifies on a target."""
    if against is not None:
        from sepwise.comparison import compare_files
        from sepwise.passes.errors import InputError

        if target != "host":
            raise InputError(f"Target '{target}': two files are compared without a target. Give one of --target and --against.")
        if threads != 1:
            raise InputError(f"{threads} threads: two files are compared by one. Give one of --threads and --against.")
        if board is not None:
            raise InputError(f"{board.name}: two files are compared here. Give one of --against and --rpc or --tracker.")
        if float16:
            raise InputError("Float16: two files are compared as they are. Give one of --float16 and --against.")
        if database is not None:
            raise InputError("Database: two files are compared without kernels. Give one of --database and --against.")
        return compare_files(source, resolve(against, shapes), inputs, bisect=bisect)
    from sepwise.lowering import device
    from sepwise.lowering.verify import verify as verify_model

    device.get(target)
    return verify_model(
        source.path,
        target=target,
        inputs=inputs,
        shapes=source.shapes,
        threads=threads,
        float16=float16,
        bisect=bisect,
        board=board,
        records=_read_records(database, target, threads),
    )


def bench(
    model: str | Path,
    *,
    target: str = "host",
    threads: int = 1,
    against: Collection[str] = (),
    shapes: Shapes = None,
    cores: Collection[str] = (),
    float16: bool = False,
    profile: bool = False,
    rpc: str | None = None,
    tracker: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
    database: str | Path | None = None,
) -> Benchmark:
    """Measures a network on a target, beside other runtimes.

    Args:
        model: An ONNX file or a zoo name.
        target: Where it runs; peers run natively only.
        threads: Worker threads of every runtime; one where the target is emulated.
        against: Peers out of `sepwise.lowering.peers.names()`.
        shapes: Shapes of inputs that the file leaves open.
        cores: Devices beside an emulated target whose cycles are estimated for the same code.
        float16: Compute in float16 what does not need float32; peers compute the model as it is.
        profile: Measure on this machine what its cores can do at most, which kernels attain a share of; elsewhere that follows
            from the target's facts.
        rpc: `HOST:PORT` of the RPC server of a board to run on.
        tracker: `HOST:PORT` of a tracker of such boards, with `key`.
        key: Which of a tracker's boards; with `rpc` what its server asks for.
        timeout: Seconds that the board may take for one answer, 60 where None.
        database: What `tune` has made, whose records take the place of the default; none where None.

    Returns:
        Latencies (native, remote), or counts and estimated cycles (emulated), and the kernels' share of them.

    Raises:
        InputError: The model, the target or a peer cannot be used.
        CheckFailed: A runtime computes something else than the others.
    """
    from sepwise.lowering.bench import bench as bench_model

    source = resolve(model, shapes)
    with _connect(rpc, tracker, key, timeout) as board:
        return bench_model(
            source.path,
            target=target,
            threads=threads,
            against=tuple(against),
            shapes=source.shapes,
            cores=tuple(cores),
            float16=float16,
            profile=profile,
            board=board,
            records=_read_records(database, target, threads),
        )


def tune(
    model: str | Path,
    database: str | Path,
    *,
    target: str = "host",
    shapes: Shapes = None,
    threads: int = 1,
    float16: bool = False,
    search: str = "predicted",
    trials: int | None = None,
    seconds: float | None = None,
    others: Collection[str | Path] = (),
    rpc: str | None = None,
    tracker: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Tuning:
    """Measures other tiles and strategies than the default for a network's kernels, and keeps what is faster.

    Args:
        model: An ONNX file or a zoo name.
        database: Folder of the records, which `compile`, `verify`, `bench` and `bundle` take; made where it is not there.
        target: A name out of `targets()`.
        shapes: Shapes of inputs that the file leaves open.
        threads: Worker threads.
        float16: Compute in float16 what does not need float32.
        search: Chooses candidates: `predicted` in the order of their prediction, or `evolutionary`, MetaSchedule's search.
        trials: Candidates at most; until nothing is left to try where None.
        seconds: Time for all of it, with the play-off, from this call on; what was begun is ended. No limit where None; with 0
            nothing is tuned, and other databases are taken over.
        others: Further databases: what they have of the same device is taken over, records of the nearest one are tried first.
        rpc: `HOST:PORT` of the RPC server of a board that is the target.
        tracker: `HOST:PORT` of a tracker of such boards; all of its boards of `key` are used at once.
        key: Which of a tracker's boards; with `rpc` what its server asks for.
        timeout: Seconds that a board may take for one answer, 60 where None.
        on_progress: Told after each batch of candidates.

    Returns:
        What was found for each kernel.

    Raises:
        InputError: The model, the target, a board or a database cannot be used, or no time was left for a single candidate.
        CheckFailed: Candidates were tried, and none could be timed.
        BoardError: A board was lost, and could not be reached again; what was recorded until then is kept.

    Example:
        >>> tune("mobilenet_v2", "records", seconds=300).to_json()["tuned_us"]  # doctest: +SKIP
        4820.5
    """
    started = time.monotonic()
    from sepwise.lowering import device
    from sepwise.lowering.remote import list_boards
    from sepwise.lowering.tuning.tune import tune as tune_model

    device.get(target)
    require_writable(Path(database))
    boards = list_boards(rpc, tracker=tracker, key=key, timeout_s=timeout)
    source = resolve(model, shapes)
    return tune_model(
        source.path,
        database,
        target=target,
        shapes=source.shapes,
        threads=threads,
        float16=float16,
        search=search,
        trials=trials,
        seconds=seconds,
        started=started,
        others=tuple(others),
        boards=boards,
        on_progress=on_progress or (lambda _: None),
    )
