"""Fixtures and options shared by all tests, and the list of what was skipped at the end of a run."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.backend.test.case.test_case import TestCase

    from sepwise.lowering.remote import Connect

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `sepwise verify` has it; read when numpy is loaded

REPOSITORY = Path(__file__).resolve().parent.parent
CROSS_LIBRARY = Path("/usr/aarch64-linux-gnu/lib/libstdc++.so.6")


@dataclass(frozen=True)
class BoardServer:
    """A server that runs, and where it listens."""

    process: subprocess.Popen[str]
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests marked nightly: full sizes, an hour or more")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the nightly tests out, deselected and not skipped: a skip means that this machine lacks something.

    README's commands go first: nothing takes as long, and where several processes share the tests none waits for it at the end.
    """
    items.sort(key=lambda item: item.path.name != "test_readme.py")
    if config.getoption("--nightly"):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test that asks for `node_case` those of ONNX's node tests that its module's `take` takes, with the marks it says."""
    if "node_case" in metafunc.fixturenames:
        taken = [(case, metafunc.module.take(case)) for case in collect_node_cases()]
        parameters = [pytest.param(case, id=case.name, marks=marks) for case, marks in taken if marks is not None]
        metafunc.parametrize("node_case", parameters)


@functools.cache
def collect_node_cases() -> tuple[TestCase, ...]:
    """Collects the cases of one operator on dense tensors out of the ONNX project's own node tests (`onnx.backend.test`)."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)

    def is_taken(case: TestCase) -> bool:
        dense = all(isinstance(x, np.ndarray | np.generic) for data in case.data_sets for part in data for x in part)
        return dense and case.model is not None and len(case.model.graph.node) == 1

    return tuple(case for case in collected if is_taken(case))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ends the run with every skip's reason and how many tests it cost."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] = reasons.get(reason.removeprefix("Skipped: "), 0) + 1
    terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count} x {reason}")
    if not reasons:
        terminalreporter.line("nothing")


@pytest.fixture
def record_property(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """What tests say of themselves, models and all, stays in the process that runs them: others are told nothing."""
    return (lambda *_: None) if hasattr(request.config, "workerinput") else record_property


@pytest.fixture(scope="session")
def node_cases() -> tuple[TestCase, ...]:
    """All cases that `node_case` is chosen from."""
    return collect_node_cases()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def zoo_file(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Gives a function that exports a zoo network: `zoo_file("mobilenet_v2", shape=(1, 3, 32, 32), width=0.25)`.

    A file is exported once, by whichever process comes first, and kept in pytest's cache until a source file of the zoo changes.
    """
    sources = sorted((REPOSITORY / "models").glob("*.py"))
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = Path(request.config.cache.mkdir("exports")) / version
    folder.mkdir(exist_ok=True)

    def export(name: str, **options: object) -> Path:
        spelled = "-".join(f"{key}={value}" for key, value in sorted(options.items()))
        path = folder / f"{name}-{hashlib.sha256(spelled.encode()).hexdigest()[:12]}" / f"{name}.onnx"
        path.parent.mkdir(exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                from sepwise import models

                models.export(name, path, **options)
        return path

    return export


@pytest.fixture(scope="session")
def board_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[BoardServer]]:
    """Gives a function that runs the server of a board while a block lasts: `with board_server("cortex-a72") as server:`.

    Where the target is not this machine, the server runs under its emulator, with the C and C++ libraries of Debian's cross packages.
    """
    from sepwise.lowering import device
    from sepwise.lowering.board_server import SERVER, build_server
    from sepwise.passes.errors import InputError

    @functools.cache
    def build(target: str) -> Path:
        folder = tmp_path_factory.mktemp("server") / target
        try:
            build_server(device.get(target), folder)
        except InputError as error:
            if "cannot download" not in str(error):
                raise
            pytest.skip(str(error))
        return folder / SERVER

    @contextmanager
    def run(target: str = "host", *options: str) -> Iterator[BoardServer]:
        found, command = device.get(target), []
        if found.emulated:
            missing = [path for path in (shutil.which(str(found.emulator)) or "", CROSS_LIBRARY) if not Path(path).is_file()]
            if missing:
                pytest.skip("an emulated board is missing: apt-get install qemu-user libstdc++6-arm64-cross")
            command = [str(found.emulator), "-cpu", str(found.emulator_option), "-L", str(CROSS_LIBRARY.parents[1])]
        process = subprocess.Popen([*command, str(build(target)), "--port", "0", *options], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield BoardServer(process, int(process.stdout.readline().split()[-1]))
        finally:
            process.terminate()
            process.communicate()

    return run


TRACKER = """
import socket
from tvm.rpc import tracker
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
tracker._tracker_server(listening, "stop")
"""


@pytest.fixture
def tracker() -> Iterator[str]:
    """The address of TVM's own tracker."""
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado: pip install tornado")
    with subprocess.Popen([sys.executable, "-c", TRACKER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(scope="session")
def tracked_boards() -> Callable[[str, int], list[Connect]]:
    """Gives a function that lists a tracker's boards of key `desk`, once so many have registered."""
    from sepwise.lowering.remote import list_boards
    from sepwise.passes.errors import InputError

    def find(tracker: str, count: int) -> list[Connect]:
        found: list[Connect] = []
        until = time.monotonic() + 30
        while len(found) < count and time.monotonic() < until:
            time.sleep(0.05)
            with suppress(InputError):
                found = list_boards(None, tracker=tracker, key="desk", timeout_s=30)
        assert len(found) == count
        return found

    return find


@pytest.fixture(scope="session")
def trained_networks(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The three trained networks of `sepwise.samples` by name, downloaded once into pytest's cache."""
    from sepwise.samples import fetch_networks

    folder = Path(request.config.cache.mkdir("trained"))
    with FileLock(folder / "lock"):
        return fetch_networks(folder)


@pytest.fixture(scope="session")
def network() -> Callable[..., ir.Model]:
    """Gives a function that reads ONNX text; constants without values (`<float[4,3] w>`) are drawn, those named `var...` positive, `tiny...` next to 0."""

    import numpy as np
    import onnx
    import onnx.parser
    import onnx_ir as ir

    def read(text: str, *, seed: int = 0) -> ir.Model:
        proto = onnx.parser.parse_model(text)
        rng = np.random.default_rng(seed)
        for value in list(proto.graph.value_info):
            shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            array = rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
            if value.name.startswith("var"):
                array = np.abs(array) + 0.5
            elif value.name.startswith("tiny"):
                array = np.abs(array) * 1e-6
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(dtype), value.name))
            proto.graph.value_info.remove(value)
        for output in proto.graph.output:
            output.ClearField("type")
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
        return ir.from_proto(inferred)

    return read
