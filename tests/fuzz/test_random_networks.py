"""Random separable networks through all passes, and through both targets.

Each network is drawn by Hypothesis from a seed of its own: the same in every CI run, fresh ones at night, printed. A target
verifies them in a process of its own, merged into a few binaries (`verify_batches.py`), while the passes are checked here. Of
those that fail, the first is verified alone and made as small as it still fails, and shown as ONNX text that `PAST` takes as it is.

The tests mirror no source: they are about what the passes, the importer, the layouts, the strategies and the verifier do together.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase

from sepwise.comparison import run_onnxruntime
from sepwise.lowering import device
from sepwise.lowering.verify import verify_model
from sepwise.passes import fuse
from sepwise.passes.equivalence import (
    Check,
    GraphReference,
    compare_execution,
    compare_graph,
    compare_parts,
    sample_inputs,
    settle,
)
from sepwise.passes.errors import CheckFailed

FIRST_SEED = 1
"""Of the networks of CI."""

SEEDS = 1 << 40
"""Fresh seeds are drawn from as many."""

TARGETS = ("host", "cortex-a72")

SHOWN = 5
"""Failing networks whose text is shown."""

MOST_LEFT = 4
"""Operations in the smallest form of a network of which one matters: shrinking tries what is simpler, not all that is."""

HEAD = '<ir_version: 10, opset_import: ["" : 22]>\n'

PAST: dict[str, str] = {
    "what is copied in a concatenation beside what is computed became a call of memcpy": HEAD
    + """impulse (float[1,6,10,9,26] x) => (float[1,6,10,9,26] y) <int64[2] parts = {1, 5}> {
      r = Relu (x)
      a, b = Split <axis = 1> (r, parts)
      h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (b)
      m = Mul (b, h)
      y = Concat <axis = 1> (m, a)
    }""",
    "TVM's importer padded the input of a pooling too little, and the kernel read beyond it": HEAD
    + """normal (float[1,5,1,5,5] x) => (float[1,5,1,3,2] y, float[1,5,1,3,5] z) {
      y = MaxPool <kernel_shape = [2,3,1], strides = [1,2,3], auto_pad = "SAME_LOWER"> (x)
      z = MaxPool <kernel_shape = [2,3,1], strides = [1,2,1], auto_pad = "SAME_LOWER"> (x)
    }""",
    "a column of a concatenation was written as a row": HEAD
    + """uniform (float[1,8,11] x, float[1,6,1] z) => (float[1,8,12] y, float[1,8,1] c) <float[8,6,1] w> {
      c = Conv (z, w)
      s = Sigmoid (c)
      m = Mul (x, s)
      y = Concat <axis = 2> (s, m)
    }""",
    "so was a transposed convolution of one position": HEAD
    + """normal (float[2,5,1] x) => (float[2,16,4] y, float[2,16,3] z) <float[5,16,4] w, float[16] b, int64[6] pads = {0,0,0,0,0,1}> {
      c = ConvTranspose <strides = [3], auto_pad = "SAME_LOWER"> (x, w, b)
      z = HardSwish (c)
      y = Pad (c, pads)
    }""",
    "the oracle wanted more of a transposed convolution whose stride exceeds its window": HEAD
    + """normal (float[1,2,1,5] x) => (float[1,3,1,10] y) <float[2,3,1,4] w> {
      c = ConvTranspose <strides = [2,2], dilations = [2,1], auto_pad = "SAME_LOWER"> (x, w)
      y = Relu (c)
    }""",
    "Selu lost its digits next to 0": HEAD
    + """uniform (float[1,2,7,9,5] x) => (float[1,2,7,9,2] y) <float[2,1,1,1,2] w, float[2] b, float[2,7,9,2] c> {
      v = Conv <group = 2, strides = [1,1,2], dilations = [1,1,2]> (x, w, b)
      m = Mul (v, c)
      y = Selu (m)
    }""",
    "a function fed two tensors was taken for the same one fed a constant": HEAD
    + """normal (float[1,8,9,7] x, float[1,8,1,1] g, float[1,8,9,7] z) => (float[1,8,9,7] y, float[1,8,9,7] m) <float[1,8,1,1] c> {
      m = Mul (x, g)
      y = Mul (z, c)
    }""",
    "a position between two elements was rounded to the wrong one": HEAD
    + """normal (float[1,5,67] x) => (float[1,5,201] y) <float[3] scales = {1, 1, 3}> {
      r = Sigmoid (x)
      y = Resize <coordinate_transformation_mode = "align_corners", nearest_mode = "round_prefer_floor"> (r, "", scales)
    }""",
    "a concatenation that is transposed read both of its inputs everywhere, one of them before its beginning": HEAD
    + """large (float[2,3,17,1] x) => (float[2,3,16,2] y) <float[3,1,2,1] w> {
      r = Mul (x, x)
      c = Concat <axis = 3> (r, r)
      y = Conv <group = 3> (c, w)
    }""",
    "more lanes were wanted of a few vectors than TVM shuffles": HEAD
    + """uniform (float[2,4,14,1] x) => (float[2,32,14,3] y) <float k = {1.5}, int64[8] pads = {0,0,1,0,0,0,1,0}, int64[5] wide = {2,4,4,14,3}, int64[4] flat = {2,16,14,3}> {
      a = Concat <axis = 1> (x, x)
      b = Transpose <perm = [0,2,3,1]> (a)
      c = Concat <axis = -1> (b, b)
      d = Mul (k, c)
      e = Pad (d, pads)
      f = Transpose <perm = [0,3,1,2]> (e)
      g = Reshape (f, wide)
      h = Transpose <perm = [0,2,1,3,4]> (g)
      i = Reshape (h, flat)
      y = Concat <axis = 1> (i, i)
    }""",
    "rows that only the first tasks pad were copied by memcpy": HEAD
    + """positive (float[1,66,2,4,4] x) => (float[1,22,6,9,8] y) <float[66,2,3,1,3] w, float[22] b> {
      r = Relu (x)
      y = ConvTranspose <group = 11, strides = [3,3,2], dilations = [2,2,1], pads = [1,1,0,1,1,1], output_padding = [0,1,0]> (r, w, b)
    }""",
    "the reference itself rounded a position between two elements": HEAD
    + """normal (float[1,6,14] x) => (float[1,6,17] y) <int64[3] sizes = {1, 6, 17}> {
      r = Erf (x)
      y = Resize <nearest_mode = "round_prefer_floor"> (r, "", "", sizes)
    }""",
}  # fmt: skip
"""Networks that failed once, by what was wrong; each is named after the kind of inputs that it is fed."""


@dataclass(frozen=True)
class Profile:
    """How many networks of which size.

    Attributes:
        count: Networks.
        convolutions: The most in one.
        steps: The most draws of what comes next in one.
    """

    count: int
    convolutions: int
    steps: int


CI = Profile(200, convolutions=3, steps=3)
NIGHTLY = Profile(2000, convolutions=6, steps=8)

Verdict = Callable[[str], list[str]]
"""What is wrong with a network, given as text."""


class WrongError(Exception):
    """A network that was drawn fails."""


@dataclass(frozen=True)
class Drawn:
    """Networks and how to draw each of them again.

    Attributes:
        texts: The networks.
        seeds: Of those that were drawn, by place in `texts`.
        strategy: What they are drawn from.
    """

    texts: Sequence[str]
    seeds: Mapping[int, int]
    strategy: st.SearchStrategy[str]

    def draw(self, seed: int, check: Callable[[str], None], *phases: Phase) -> None:
        """Checks the simplest network of all and the one of that seed."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=2, phases=phases, database=None, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(self.strategy)
        def example(text: str) -> None:
            check(text)

        example()

    def shrink(self, seed: int, verdict: Verdict) -> tuple[str, list[str]] | None:
        """The smallest network found on the way down from a failing one that fails too, and why; None if it passes alone."""
        found: list[tuple[str, list[str]]] = []

        def check(text: str) -> None:
            reasons = verdict(text)
            if reasons:
                found.append((text, reasons))
                raise WrongError

        try:
            self.draw(seed, check, Phase.generate, Phase.shrink)
        except WrongError:
            return found[-1]
        return None

    def explain(self, wrong: Mapping[int, Sequence[str]], verdict: Verdict) -> str:
        """Names all that failed, the first one in its smallest form."""
        lines = [f"{len(wrong)} of {len(self.texts)} networks fail."]
        for place, reasons in list(wrong.items())[:SHOWN]:
            lines += [f"\n{self._name(place)}:", *reasons, self.texts[place]]
        drawn = [place for place in wrong if place in self.seeds]
        if drawn:
            smallest = self.shrink(self.seeds[drawn[0]], verdict)
            if smallest is None:
                lines.append(f"\n{self._name(drawn[0])} alone does not fail.")
            else:
                lines += [f"\n{self._name(drawn[0])} made smaller:", *smallest[1], smallest[0]]
        return "\n".join(lines)

    def _name(self, place: int) -> str:
        return f"Seed {self.seeds[place]}" if place in self.seeds else list(PAST)[place]


@pytest.fixture(scope="module", params=[pytest.param(CI, id="ci"), pytest.param(NIGHTLY, id="nightly", marks=pytest.mark.nightly)])
def drawn(request: pytest.FixtureRequest, random_networks: Callable[[int, int], st.SearchStrategy[str]]) -> Drawn:
    """Those that failed once, and behind them the networks of a profile."""
    profile: Profile = request.param
    first = FIRST_SEED if profile is CI else random.SystemRandom().randrange(SEEDS)
    print(f"networks of the seeds {first} to {first + profile.count - 1}")
    texts = list(PAST.values())
    found = Drawn(texts, {}, random_networks(profile.convolutions, profile.steps))
    seeds = {}
    for seed in range(first, first + profile.count):
        examples: list[str] = []
        found.draw(seed, examples.append, Phase.generate)
        seeds[len(texts)] = seed
        texts.append(examples[-1])
    return Drawn(texts, seeds, found.strategy)


@pytest.fixture(scope="module")
def verification(
    drawn: Drawn, network: Callable[[str], ir.Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Mapping[str, Any]]]:
    """Starts a process for each target, and gives a function that waits for what it found."""
    folder = tmp_path_factory.mktemp("networks")
    for place, text in enumerate(drawn.texts):
        onnx.save(ir.to_proto(network(text)), folder / f"{place}.onnx")
    script = Path(__file__).with_name("verify_batches.py")
    present = [name for name in TARGETS if not device.get(name).emulated or shutil.which(str(device.get(name).emulator))]
    started = {name: subprocess.Popen([sys.executable, str(script), name, str(folder)]) for name in present}

    def wait(target: str) -> Mapping[str, Any]:
        if target not in started:
            pytest.skip(f"{device.get(target).emulator} is missing: apt-get install qemu-user")
        assert started[target].wait() == 0
        return json.loads((folder / f"{target}.json").read_text())

    yield wait
    for process in started.values():
        process.kill()
        process.wait()


def judge(model: ir.Model, reference: GraphReference) -> Check:
    """Sets ONNX Runtime against what float32 arithmetic explains, as the command does."""
    outputs = run_onnxruntime(model, reference.inputs)
    return settle(lambda seeds: compare_execution(outputs, reference.outputs, reference.execution_sigma(seeds)))


def run_right(model: ir.Model, reference: GraphReference) -> bool:
    """Whether ONNX Runtime takes a network, and stays within what float32 arithmetic explains."""
    try:
        return judge(model, reference).passed
    except CheckFailed:
        return False


@pytest.mark.usefixtures("verification")
def test_passes(drawn: Drawn, network: Callable[[str], ir.Model]) -> None:
    """Each pass leaves what is computed as it was, in float64 and where ONNX Runtime runs it right."""

    def verdict(text: str) -> list[str]:
        model = network(text)
        feeds = [sample_inputs(model, 0, model.graph.name or "")]
        try:
            report = fuse(model, keep_stages=True)
            reference = GraphReference(model, feeds)
            checks = [(name, check) for name, stage in report.stages for check in compare_graph(reference, stage)]
            checks += [("all passes", check) for check in compare_parts(model, report.model, feeds[0])]
            if run_right(model, reference):
                checks.append(("ONNX Runtime", judge(report.model, reference)))
        except Exception as error:  # a fault too, where it is no wrong number
            return [f"{type(error).__name__}: {error}"]
        return [f"{name}: {check.name}: {check.reason}" for name, check in checks if not check.passed]

    wrong = {place: reasons for place, text in enumerate(drawn.texts) if (reasons := verdict(text))}
    assert not wrong, drawn.explain(wrong, verdict)


@pytest.mark.parametrize("target", [pytest.param(name, marks=pytest.mark.emulated if name != "host" else ()) for name in TARGETS])
def test_targets(
    target: str, drawn: Drawn, verification: Callable[[str], Mapping[str, Any]], network: Callable[[str], ir.Model]
) -> None:
    """Every kernel and every network is right on a target."""
    found = verification(target)

    def verdict(text: str) -> list[str]:
        model = network(text)
        try:
            checks = verify_model(model, device.get(target), inputs=sample_inputs(model, 0, model.graph.name or "")).checks
        except Exception as error:  # a fault too, where it is no wrong number
            return [f"{type(error).__name__}: {error}"]
        return [f"{check.scope} {check.name}: {check.reason}" for check in checks if not check.passed]

    wrong = {int(place): reasons for place, reasons in found["wrong"].items()}
    assert not wrong, drawn.explain(wrong, verdict)
    assert found["kernels"] > len(drawn.texts)


def test_a_network_that_fails_is_made_small(drawn: Drawn) -> None:
    place, seed = next((place, seed) for place, seed in drawn.seeds.items() if "BatchNormalization" in drawn.texts[place])

    def verdict(text: str) -> list[str]:
        return ["it normalizes"] if "BatchNormalization" in text else []

    told = drawn.explain({place: verdict(drawn.texts[place])}, verdict)
    assert told.startswith(f"1 of {len(drawn.texts)} networks fail.\n\nSeed {seed}:\nit normalizes\n{drawn.texts[place]}")
    shrunk = drawn.shrink(seed, verdict)
    assert shrunk is not None
    assert told.endswith(f"made smaller:\nit normalizes\n{shrunk[0]}")
    assert shrunk[0].count("\n  [") <= min(drawn.texts[place].count("\n  ["), MOST_LEFT)
    assert drawn.shrink(seed, lambda _: []) is None
