"""Draws workloads, builds them in batches, and holds every element against the running error bound of its arithmetic."""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sepwise.lowering import codegen, compute, device, graph, memory_plan, program, runner
from sepwise.lowering.strategies import algorithm_of
from sepwise.lowering.strategies.base import AnyStrategy, Implementation, Tile
from sepwise.lowering.workload import ConvWorkload, DTypes, LinearWorkload, Stage
from sepwise.passes.equivalence import Check, compare_kernel, run_with_bounds, sample_inputs
from sepwise.passes.vocabulary import Activation

NATIVE_DEVICES = ("host", "x86-64-v3", "x86-64-v2")
GUARD_BYTES = 256
MOST_TILES = 24
KINDS = ("normal", "impulse", "knees", "large", "subnormal", "nonfinite")

LIMIT_AT_INFINITY = frozenset({"silu", "mish"})
"""Activations that give their limit 0 at -infinity, where ONNX's formula gives NaN."""

ACTIVATIONS = (
    None,
    Activation("clip", (0.0, 6.0)),
    Activation("relu"),
    Activation("hard_swish"),
    Activation("silu"),
    Activation("leaky_relu", (0.1,)),
    Activation("hard_sigmoid", (0.2, 0.5)),
    Activation("sigmoid"),
    Activation("tanh"),
    Activation("elu", (1.5,)),
    Activation("gelu"),
    Activation("softplus"),
    Activation("mish"),
    Activation("clip", (-math.inf, 1.0)),
    Activation("hard_swish", (), 1.5, -0.25),
    Activation("silu", (), 1.0, 0.5),
)

OPERATORS = {
    "relu": ("Relu", ()),
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "elu": ("Elu", ("alpha",)),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "hard_swish": ("HardSwish", ()),
    "silu": ("Swish", ()),
    "gelu": ("Gelu", ()),
    "softplus": ("Softplus", ()),
    "mish": ("Mish", ()),
}

Workload = ConvWorkload | LinearWorkload
Weights = list[tuple[np.ndarray, np.ndarray]]


class Case(NamedTuple):
    """A kernel to check, and what it is fed."""

    workload: Workload
    strategy: AnyStrategy
    tile: Tile
    kind: str = "normal"

    def __repr__(self) -> str:
        return f"{self.workload.key} {self.strategy.name} {self.tile} {self.kind}"


class Reference(NamedTuple):
    """What a case computes: its operands, and the exact result with the bound of its error."""

    inputs: list[np.ndarray]
    weights: Weights
    value: np.ndarray
    bound: np.ndarray


# What is right ---------------------------------------------------------------------------------------------------------


def activation_node(
    activation: Activation, source: str, target: str, graph_: onnx.GraphProto, dtype: np.dtype[Any]
) -> onnx.NodeProto:
    """Spells an activation as one standard operator."""
    if activation.kind == "clip":
        names = ["", ""]
        for side, limit in enumerate(activation.parameters):
            if math.isfinite(limit):
                names[side] = f"{target}.limit{side}"
                graph_.initializer.append(numpy_helper.from_array(np.array(limit, dtype), names[side]))
        return helper.make_node("Clip", [source, *names], [target])
    operator, parameters = OPERATORS[activation.kind]
    attributes: dict[str, Any] = dict(zip(parameters, activation.parameters, strict=True))
    return helper.make_node(operator, [source], [target], **attributes)


def build_model(workload: Workload, weights: Weights) -> onnx.ModelProto:
    """Spells a workload in standard operators, each stage a Conv (or a Gemm) with what follows it."""
    model = onnx.ModelProto(ir_version=11, opset_import=[helper.make_opsetid("", 24)])
    graph_, dtype = model.graph, np.dtype(workload.dtypes.input)
    element_type = helper.np_dtype_to_tensor_dtype(dtype)
    graph_.name = "reference"
    last = "data"

    def add(operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{operator}{len(graph_.node)}"
        graph_.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def activate(activation: Activation | None, source: str) -> str:
        if activation is None:
            return source
        target = f"act{len(graph_.node)}"
        graph_.node.append(activation_node(activation, source, target, graph_, dtype))
        for operator, number, neutral in (("Mul", activation.scale, 1.0), ("Add", activation.shift, 0.0)):
            if number != neutral:
                graph_.initializer.append(numpy_helper.from_array(np.array(number, dtype), f"{target}.{operator}"))
                target = add(operator, [target, f"{target}.{operator}"])
        return target

    for index, (weight, bias) in enumerate(weights):
        graph_.initializer.append(numpy_helper.from_array(weight, f"w{index}"))
        graph_.initializer.append(numpy_helper.from_array(bias, f"b{index}"))
    if isinstance(workload, LinearWorkload):
        shapes: dict[str, tuple[int, ...]] = {"data": (workload.rows, workload.in_features)}
        output_shape: tuple[int, ...] = (workload.rows, workload.out_features)
        last = activate(workload.activation, add("Gemm", ["data", "w0", "b0"], transB=1))
    else:
        shapes = {"data": (workload.batch, workload.stages[0].in_channels, *workload.spatial)}
        output_shape = workload.output_shape
        for index, stage in enumerate(workload.stages):
            last = add(
                "Conv",
                [last, f"w{index}", f"b{index}"],
                kernel_shape=stage.kernel,
                strides=stage.strides,
                dilations=stage.dilations,
                group=stage.groups,
                pads=[*stage.pads_begin, *stage.pads_end],
            )
            last = activate(stage.activation, last)
        if workload.residual:
            shapes["residual"] = output_shape
            last = add("Add", [last, "residual"])
        last = activate(workload.post_activation, last)
    for name, shape in shapes.items():
        graph_.input.append(helper.make_tensor_value_info(name, element_type, shape))
    graph_.output.append(helper.make_tensor_value_info(last, element_type, output_shape))
    return model


def draw_weights(workload: Workload, rng: np.random.Generator) -> Weights:
    """Draws weights that keep the scale of what passes through them."""
    if isinstance(workload, LinearWorkload):
        shapes: list[tuple[int, ...]] = [(workload.out_features, workload.in_features)]
    else:
        shapes = [(stage.out_channels, stage.in_channels_per_group, *stage.kernel) for stage in workload.stages]
    return [
        (
            (rng.standard_normal(shape) * math.prod(shape[1:]) ** -0.5).astype(workload.dtypes.weight),
            rng.standard_normal(shape[0]).astype(workload.dtypes.weight),
        )
        for shape in shapes
    ]


def compute_reference(case: Case, seed: int) -> Reference:
    """Draws a case's operands and computes what it must give."""
    weights = draw_weights(case.workload, np.random.default_rng(seed))
    model = build_model(case.workload, weights)
    feeds = sample_inputs(model, seed, case.kind)
    algorithm = algorithm_of(case.strategy.name)
    ((value, bound),) = run_with_bounds(model, feeds, winograd={} if algorithm is None else {"Conv0": algorithm.outputs}).values()
    return Reference([np.asarray(feed, case.workload.dtypes.input) for feed in feeds.values()], weights, value, bound)


# Running it ------------------------------------------------------------------------------------------------------------


def layouts(workload: Workload) -> tuple[graph.Layout, graph.Layout]:
    """The layouts of the input, and of residual and output."""
    if isinstance(workload, LinearWorkload):
        return graph.Layout(), graph.Layout()
    return graph.Layout(workload.input_lanes), graph.Layout(workload.output_lanes)


def guarded(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places an array at a multiple of 64 bytes between NaN; gives it and all the bytes."""
    nbytes = array.nbytes
    whole = runner.aligned_empty(2 * GUARD_BYTES + nbytes)
    whole[:] = 0xFF
    inner = whole[GUARD_BYTES : GUARD_BYTES + nbytes].view(array.dtype).reshape(array.shape)
    inner[...] = array
    return inner, whole


def in_memory(array: np.ndarray, layout: graph.Layout) -> np.ndarray:
    """Lays a tensor out, NaN in the pad lanes."""
    value = program.Value("", graph.TensorType(array.shape, array.dtype.name, layout), program.BufferRef(program.Home.ARENA, 0))
    return runner.to_memory(value, array)


def run_native(kernels: Callable[..., None], symbol: str, case: Case, implementation: Implementation, right: Reference) -> np.ndarray:
    """Runs one kernel; whatever it should leave alone has to stay as it was."""
    input_layout, output_layout = layouts(case.workload)
    operand_layouts = (input_layout, output_layout)
    operands = [in_memory(array, layout) for array, layout in zip(right.inputs, operand_layouts, strict=False)]
    operands += implementation.pack(right.weights)
    memory = np.full(output_layout.physical_shape(right.value.shape), np.nan, case.workload.dtypes.output)
    given_ = [guarded(array) for array in operands]
    written, whole = guarded(memory)
    kernels(symbol, *(inner for inner, _ in given_), written)
    for array, (inner, around) in zip(operands, given_, strict=True):
        assert inner.tobytes() == array.tobytes(), f"{case!r} writes to what it reads"
        assert (around[:GUARD_BYTES] == 0xFF).all(), f"{case!r} writes before an operand"
        assert (around[-GUARD_BYTES:] == 0xFF).all(), f"{case!r} writes behind an operand"
    assert (whole[:GUARD_BYTES] == 0xFF).all(), f"{case!r} writes before its output"
    assert (whole[-GUARD_BYTES:] == 0xFF).all(), f"{case!r} writes behind its output"
    return graph.unpack(written, right.value.shape[1]) if output_layout.packed else written.copy()


def judge(case: Case, right: Reference, written: np.ndarray) -> Check:
    """Holds a result against the bound."""
    return compare_kernel(written, right.value, right.bound, name=repr(case))


def assert_passed(checks: Sequence[Check]) -> None:
    """Fails with every kernel that is off; where nothing finite was drawn, NaN and infinities were compared and no more."""
    assert not [f"{check.name}: {check.reason}" for check in checks if check.status == "failed"]
    assert any(check.passed for check in checks)


@pytest.fixture(scope="session")
def make_case() -> type[Case]:
    """The class of cases: `make_case(workload, strategy, tile, kind="normal")`."""
    return Case


@pytest.fixture(scope="session")
def check_native(native: Callable[..., Any]) -> Callable[..., None]:
    """Gives a function that builds cases into one object, runs them here and checks every element."""

    def check(cases: Sequence[Case], target: device.Device, *, seed: int = 0) -> None:
        scheduled = [case.strategy.schedule(case.workload, target, case.tile) for case in cases]
        kernels = native({f"k{index}": one.function for index, one in enumerate(scheduled)}, target)
        checks = []
        for index, (case, one) in enumerate(zip(cases, scheduled, strict=True)):
            right = compute_reference(case, seed + index)
            checks.append(judge(case, right, run_native(kernels, f"k{index}", case, one, right)))
        assert_passed(checks)

    return check


@pytest.fixture(scope="session")
def check_emulated() -> Callable[..., list[int]]:
    """Gives a function that builds cases into one Program, runs its kernels under the emulator and checks every element.

    Where it is given lengths of scalable vectors, the same object runs at each, and its instructions at each are returned.
    """

    def check(cases: Sequence[Case], target: device.Device, *, seed: int = 0, lengths: Sequence[int] = ()) -> list[int]:
        scheduled = [case.strategy.schedule(case.workload, target, case.tile) for case in cases]
        references = [compute_reference(case, seed + index) for index, case in enumerate(cases)]
        built = make_program(cases, scheduled, references, target)
        emulated_ = [runner.EmulatedRunner(built, dataclasses.replace(target, scalable_bytes=length)) for length in lengths]
        counts = []
        for each in emulated_ or [runner.open_runner(built)]:
            with each:
                written = [each.run_kernel(index, right.inputs)[f"y{index}"] for index, right in enumerate(references)]
                assert_passed([judge(*one) for one in zip(cases, references, written, strict=True)])
                if isinstance(each, runner.EmulatedRunner) and lengths:
                    counts.append(each.count({}).instructions)
        return counts

    return check


def make_program(
    cases: Sequence[Case], scheduled: Sequence[Implementation], references: Sequence[Reference], target: device.Device
) -> program.Program:
    """Puts kernels that have nothing to do with each other into one Program."""
    llvm = codegen.tvm_target(target)
    kernels = {f"k{index}": codegen.lower_kernel(one.function, f"k{index}", target) for index, one in enumerate(scheduled)}
    values: dict[str, program.Value] = {}
    constants: list[np.ndarray] = []
    arena_bytes = constant_bytes = 0
    calls = []
    for index, (case, one, right) in enumerate(zip(cases, scheduled, references, strict=True)):
        input_layout, output_layout = layouts(case.workload)
        tensors = dict(zip((f"x{index}", f"r{index}"), zip(right.inputs, (input_layout, output_layout), strict=False), strict=False))
        tensors[f"y{index}"] = (right.value, output_layout)
        for name, (array, layout) in tensors.items():
            tensor_type = graph.TensorType(array.shape, case.workload.dtypes.input, layout)
            values[name] = program.Value(name, tensor_type, program.BufferRef(program.Home.ARENA, arena_bytes))
            arena_bytes += memory_plan.align(tensor_type.nbytes)
        *inputs, output = tensors
        packed, nbytes = [], []
        for array in one.pack(right.weights):
            nbytes.append(array.nbytes)
            packed.append(program.BufferRef(program.Home.CONSTANT, constant_bytes))
            padded = np.zeros(memory_plan.align(array.nbytes), np.uint8)
            padded[: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            constants.append(padded)
            constant_bytes += padded.nbytes
        kernel = kernels[f"k{index}"]
        arguments = (*(values[name].buffer for name in inputs), *packed, values[output].buffer)
        calls.append(
            program.KernelCall(
                f"k{index}", f"k{index}", arguments, tuple(inputs), (output,), kernel.tasks, kernel.scratch_bytes, arena_bytes, 0, (), "drawn",
                constant_bytes=tuple(nbytes),
            )
        )
        arena_bytes += memory_plan.align(kernel.scratch_bytes)
    return program.Program(
        name="drawn",
        device=target.name,
        calls=tuple(calls),
        inputs=(),
        outputs=(),
        values=tuple(values.values()),
        constants=np.concatenate(constants),
        arena_bytes=arena_bytes,
        arena_lower_bound_bytes=arena_bytes,
        object_code=codegen.build_object(kernels, llvm),
    )


# What is drawn ---------------------------------------------------------------------------------------------------------


def channels(lanes: int) -> st.SearchStrategy[int]:
    """Counts of channels around whole blocks and between."""
    near = [lanes - 1, lanes, lanes + 1, 2 * lanes, 2 * lanes + 3, 3 * lanes]
    return st.sampled_from(near) | st.integers(1, 2 * lanes + 1)


@st.composite
def axis(draw: st.DrawFn, *, kernels: Sequence[int], smallest: int = 1, largest: int = 9) -> tuple[int, ...]:
    """One spatial axis: size, kernel, stride, both pads, dilation."""
    kernel, dilation = draw(st.sampled_from(kernels)), draw(st.sampled_from((1, 1, 2, 3)))
    stride = draw(st.sampled_from((1, 1, 2, 3)))
    begin, end = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    reach = dilation * (kernel - 1) + 1
    size = draw(st.integers(max(smallest, reach - begin - end), max(largest, reach)))
    return size, kernel, stride, begin, end, dilation


@st.composite
def spatial_stage(
    draw: st.DrawFn, in_channels: int, out_channels: int, groups: int, *, kernels: Sequence[int] = (1, 2, 3, 5)
) -> tuple[tuple[int, ...], Stage]:
    """A convolution in one (as height 1), two or three spatial axes, and the size of its input."""
    rank = draw(st.sampled_from((2, 2, 2, 1, 3)))
    axes = [draw(axis(kernels=kernels, largest=5 if rank == 3 and place < 2 else 9)) for place in range(rank)]
    if rank == 1:
        axes.insert(0, (1, 1, 1, 0, 0, 1))
    sizes, kernel, strides, begins, ends, dilations = zip(*axes, strict=True)
    activation = draw(st.sampled_from(ACTIVATIONS))
    return sizes, Stage(in_channels, out_channels, groups, kernel, strides, begins, ends, dilations, activation)


def flat_stage(in_channels: int, out_channels: int, rank: int, activation: Activation | None = None, groups: int = 1) -> Stage:
    """A pointwise convolution without stride or padding."""
    one, none = (1,) * rank, (0,) * rank
    return Stage(in_channels, out_channels, groups, one, one, none, none, one, activation)


@st.composite
def chain(
    draw: st.DrawFn, spatial: tuple[int, ...], stages: Sequence[Stage], lanes: int, *, input_lanes: Sequence[int] = ()
) -> ConvWorkload:
    """A workload of given stages: batch, residual and what follows are drawn."""
    residual = draw(st.booleans())
    return ConvWorkload(
        batch=draw(st.sampled_from((1, 1, 2))),
        spatial=spatial,
        stages=tuple(stages),
        residual=residual,
        post_activation=draw(st.sampled_from(ACTIVATIONS[:3])) if residual else None,
        input_lanes=draw(st.sampled_from(input_lanes or (lanes,))),
        output_lanes=lanes,
    )


@st.composite
def batch_of_cases(
    draw: st.DrawFn, workloads: st.SearchStrategy[Workload], strategy: AnyStrategy, target: device.Device, count: int
) -> list[Case]:
    """Different workloads, each with one of its tiles and a kind of input."""
    drawn = draw(st.lists(workloads, min_size=count, max_size=count, unique_by=lambda workload: workload.key))
    cases = []
    for workload in drawn:
        assert strategy.applies(workload, target) is None, workload.key
        tiles = strategy.tiles(workload, target, draw(st.sampled_from((1, 2, 3))))
        placed = strategy.direct and not LIMIT_AT_INFINITY & activation_kinds(workload)
        kinds = [kind for kind in KINDS if kind != "nonfinite" or placed]
        cases.append(Case(workload, strategy, draw(st.sampled_from(tiles)), draw(st.sampled_from(kinds))))
    return cases


def activation_kinds(workload: Workload) -> set[str]:
    """Names a workload's activations."""
    if isinstance(workload, LinearWorkload):
        activations = [workload.activation]
    else:
        activations = [*(stage.activation for stage in workload.stages), workload.post_activation]
    return {activation.kind for activation in activations if activation is not None}


@pytest.fixture(scope="session")
def draws() -> SimpleNamespace:
    """What the strategies' tests draw from."""
    return SimpleNamespace(
        activations=st.sampled_from(ACTIVATIONS),
        channels=channels,
        spatial_stage=spatial_stage,
        flat_stage=flat_stage,
        chain=chain,
        batch_of_cases=batch_of_cases,
    )


@pytest.fixture(params=[pytest.param(3, id="few"), pytest.param(40, id="many", marks=pytest.mark.nightly)])
def explore(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Gives a function that runs a check on examples drawn from a Hypothesis strategy.

    They are not shrunk: an example is a batch of kernels that is built anew each time, and a failure names its kernel.
    """

    def run(examples: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
        phases = (Phase.explicit, Phase.reuse, Phase.generate)
        settings(max_examples=request.param, deadline=None, phases=phases)(given(examples)(check))()

    return run


@pytest.fixture(scope="session")
def drawn_tiles(request: pytest.FixtureRequest) -> Callable[[Sequence[Tile]], list[Tile]]:
    """Gives a function that takes the first tile, the last and some between; all of them in a nightly run."""

    def draw(tiles: Sequence[Tile]) -> list[Tile]:
        if request.config.getoption("--nightly") or len(tiles) <= MOST_TILES:
            return list(tiles)
        between = np.random.default_rng(len(tiles)).permutation(np.arange(1, len(tiles) - 1))[: MOST_TILES - 2]
        return [tiles[index] for index in (0, *sorted(between), -1)]

    return draw


@pytest.fixture(scope="session", params=NATIVE_DEVICES)
def target(request: pytest.FixtureRequest) -> device.Device:
    """Each device that may run here: vectors of 16 (or whatever the host has), 8 and 4 lanes."""
    return runnable(request.param)


def runnable(name: str) -> device.Device:
    """Finds a device whose code this machine can run."""
    found = device.get(name)
    missing = device.missing_flags(found)
    if missing:
        pytest.skip(f"this processor cannot run {name}: {', '.join(missing)} missing; nothing installs it")
    return found


@pytest.fixture(scope="session", params=[("cortex-a72", "float32"), ("cortex-a76", "float16")], ids="-".join)
def emulated(request: pytest.FixtureRequest) -> SimpleNamespace:
    """An emulated target as kernels of a type see it, and a function that gives a float32 workload of 4 lanes that type."""
    name, dtype = request.param
    found = emulated_target(name)
    return SimpleNamespace(device=found.holding(dtype), typed=in_float16 if dtype == "float16" else lambda workload: workload)


@pytest.fixture(scope="session")
def neoverse_v1() -> device.Device:
    """The emulated target with scalable vectors."""
    return emulated_target("neoverse-v1")


@pytest.fixture(scope="session")
def cortex_a53() -> device.Device:
    """An emulated target that runs in order."""
    return emulated_target("cortex-a53")


def emulated_target(name: str) -> device.Device:
    """Finds a device that may run here."""
    found = device.get(name)
    if found.emulated and shutil.which(str(found.emulator)) is None:
        pytest.skip(f"{found.emulator} is missing: apt-get install qemu-user")
    return found


def in_float16(workload: Workload) -> Workload:
    """The workload in float16, with as many vectors of twice the lanes: channels double, and groups where lanes belong to several."""
    dtypes = DTypes.all("float16")
    if isinstance(workload, LinearWorkload):
        return dataclasses.replace(workload, dtypes=dtypes)
    broadcast = compute.LaneSource.BROADCAST
    stages = tuple(
        dataclasses.replace(
            stage,
            in_channels=2 * stage.in_channels,
            out_channels=2 * stage.out_channels,
            groups=stage.groups if compute.lane_source(stage, workload.output_lanes) is broadcast else 2 * stage.groups,
        )
        for stage in workload.stages
    )
    lanes = {"input_lanes": 2 * workload.input_lanes, "output_lanes": 2 * workload.output_lanes}
    return dataclasses.replace(workload, stages=stages, dtypes=dtypes, **lanes)


@pytest.fixture(scope="session")
def every_device() -> Mapping[str, device.Device]:
    """All devices, whether or not their code runs here; a board that has all facts of another device stands behind it."""
    devices = {name: device.get(name) for name in device.names()}
    facts = {dataclasses.replace(each, name=""): name for name, each in reversed(devices.items())}
    return {name: each for name, each in devices.items() if name in facts.values()}


@pytest.fixture(scope="session")
def check_tiles() -> Callable[..., None]:
    """Gives a function that checks a strategy's list of tiles on a device; those `near` the fewest cycles come in any order."""

    def check(strategy: AnyStrategy, workload: Workload, target: device.Device, near: float = 1.0) -> None:
        for threads in (1, 2, 4):
            tiles = strategy.tiles(workload, target, threads)
            where = f"{strategy.name} {workload.key} on {target.name}, {threads} threads"
            assert tiles, f"{where}: no tile"
            assert len(set(tiles)) == len(tiles), f"{where}: a tile is listed twice"
            assert not [tile for tile in tiles if not tile.fits(target)], f"{where}: a tile does not fit"
            cycles = [strategy.predicted_cycles(workload, target, threads, tile) for tile in tiles]
            ranked = [max(count, near * min(cycles)) for count in cycles]
            assert all(a <= b for a, b in itertools.pairwise(ranked)), f"{where}: not in the order of predicted cycles"
            assert all(math.isfinite(count) and count > 0 for count in cycles), f"{where}: cycles {min(cycles)} to {max(cycles)}"
            assert tiles == strategy.tiles(workload, target, threads), f"{where}: another order the second time"

    return check
