"""The estimate of cycles: what it makes of code and misses whose cost is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from sepwise.lowering import device as devices
from sepwise.lowering import estimate
from sepwise.lowering.core_model import core_model
from sepwise.lowering.counts import Block, BlockRun, CallCounts, Counts, Misses

needs_mca = pytest.mark.skipif(estimate.llvm_version() is None, reason="llvm-mca is missing: apt-get install llvm-19")

FMLA = bytes.fromhex("20cc224e")  # fmla v0.4s, v1.4s, v2.4s
FMLAS = [bytes([register | 0x20, 0xCC, 0x22, 0x4E]) for register in (0, 3, 4, 5, 6, 7, 8, 9)]  # into as many registers
SUBS = bytes.fromhex("210400f1")  # subs x1, x1, #1
BRANCH = bytes.fromhex("c1ffff54")  # b.ne
LOAD = bytes.fromhex("0400c03d")  # ldr q4, [x0]
PREFETCH = bytes.fromhex("000080f9")  # prfm pldl1keep, [x0]
UNSCALED_PREFETCH = bytes.fromhex("00f09ff8")  # prfum pldl1keep, [x0, #-1]
PREFETCH_TO_STORE = bytes.fromhex("100080f9")  # prfm pstl1keep, [x0]
CALL = bytes.fromhex("20013fd6")  # blr x9
UNKNOWN = bytes.fromhex("00000000")  # udf #0
COUNT = 10_000


def run(code: bytes, *, count: int = COUNT, loads: int = 0, before: dict[int, int] | None = None, misses: Misses | None = None) -> BlockRun:
    """A block of aarch64, a loop of its own where nothing else is said."""
    block = Block(4096, len(code) // 4, loads, 0, code)
    return BlockRun(block, count, 16 * loads * count, 0, (misses or Misses(),), before or {-1: 1, 0: count - 1})


def cycles(target: str | devices.Device, *runs: BlockRun) -> float:
    """Estimates one call."""
    device = devices.get(target) if isinstance(target, str) else target
    (found,) = estimate.estimate_cycles(Counts((CallCounts(dict(enumerate(runs))),)), devices.get("cortex-a72"), device)
    return found


@needs_mca
@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a55"])
def test_a_chain_of_multiply_adds_waits_for_the_forwarded_accumulator(target: str) -> None:
    each = cycles(target, run(FMLA * 4 + SUBS + BRANCH)) / COUNT
    assert round(each) == 4 * devices.get(target).fma_latency_cycles


@needs_mca
@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a55", "cortex-a72"])
def test_independent_multiply_adds_take_their_ports(target: str) -> None:
    device = devices.get(target)
    each = cycles(device, run(b"".join(FMLAS) + SUBS + BRANCH)) / COUNT
    assert len(FMLAS) / device.fma_ports <= each <= len(FMLAS) / device.fma_ports + 2


@needs_mca
def test_a_vector_that_takes_two_cycles_to_load_issues_alone() -> None:
    code = b"".join(FMLAS) + LOAD * 4 + SUBS + BRANCH
    a55, a72 = (cycles(target, run(code, loads=4)) / COUNT for target in ("cortex-a55", "cortex-a72"))
    assert a55 >= 8 + 4 * 2
    assert a72 < a55


@needs_mca
def test_code_that_runs_once_between_loops_overlaps_with_them() -> None:
    loop = b"".join(FMLAS) + SUBS + BRANCH
    inner = run(loop, before={1: COUNT // 10, 0: COUNT - COUNT // 10})
    outer = run(SUBS + BRANCH, count=COUNT // 10, before={-1: 1, 0: COUNT // 10 - 1})
    both = cycles("cortex-a72", inner, outer)
    alone = cycles("cortex-a72", run(loop))
    assert alone <= both < 1.5 * alone


@needs_mca
def test_a_block_cut_in_two_costs_what_it_did() -> None:
    halves = b"".join(FMLAS), b"".join(FMLAS) + SUBS + BRANCH
    whole = cycles("cortex-a72", run(b"".join(halves)))
    cut = cycles("cortex-a72", run(halves[0], before={-1: 1, 1: COUNT - 1}), run(halves[1], before={0: COUNT}))
    assert round(cut / COUNT) == round(whole / COUNT)


@needs_mca
def test_instructions_that_the_model_lacks_are_left_out() -> None:
    known = run(b"".join(FMLAS) + SUBS + BRANCH)
    assert cycles("cortex-a72", known, run(UNKNOWN, count=1, before={0: 1})) >= cycles("cortex-a72", known)


@needs_mca
def test_a_call_takes_no_time_of_its_own() -> None:
    code = b"".join(FMLAS) + SUBS
    assert cycles("cortex-a72", run(code + CALL + BRANCH)) - cycles("cortex-a72", run(code + BRANCH)) <= COUNT


@needs_mca
def test_streams_cost_their_bytes_where_arithmetic_does_not_hide_them() -> None:
    device = devices.get("cortex-a72")
    lines = 100_000
    code = b"".join(FMLAS) + SUBS + BRANCH
    near = cycles(device, run(code, misses=Misses(l1_streamed=lines)))
    far = cycles(device, run(code, misses=Misses(l1_streamed=lines, l2_streamed=lines)))
    assert near == lines * 64 / device.l2_bytes_per_cycle
    assert far == lines * 64 / device.memory_bytes_per_cycle
    assert cycles(device, run(code, misses=Misses(l1_streamed=100))) == cycles(device, run(code))


@needs_mca
def test_stores_of_whole_lines_are_not_read_first_on_arm() -> None:
    code = b"".join(FMLAS) + SUBS + BRANCH
    plain = cycles("cortex-a72", run(code))
    assert cycles("cortex-a72", run(code, misses=Misses(l1_stored=100_000, l2_stored=100_000))) == plain
    assert cycles("cortex-a72", run(code, misses=Misses(l1_stored=100_000, l2_stored=100_000, l2_written=100_000))) > plain


@needs_mca
def test_only_a_reorder_buffer_hides_what_no_prefetcher_foresees() -> None:
    code = b"".join(FMLAS) + SUBS + BRANCH
    misses = 1000
    for target, waits in (("cortex-a72", False), ("cortex-a53", True)):
        device = devices.get(target)
        model = core_model(device)
        assert model is not None
        more = cycles(device, run(code, misses=Misses(l1_demanded=misses))) - cycles(device, run(code))
        assert more == pytest.approx(misses * model.l2_latency_cycles if waits else 0)


@needs_mca
@pytest.mark.parametrize("prefetch", [PREFETCH, UNSCALED_PREFETCH])
def test_a_line_that_is_asked_for_is_not_waited_for(prefetch: bytes) -> None:
    device = devices.get("cortex-a53")
    plain, asking = (b"".join(FMLAS) + code + SUBS + BRANCH for code in (PREFETCH_TO_STORE, prefetch))
    for misses, waited in ((COUNT // 2, 0.0), (COUNT, 0.0), (2 * COUNT, 0.5)):
        demanded, streamed = Misses(l1_demanded=misses), Misses(l1_streamed=misses)
        costs = [cycles(device, run(code, misses=demanded)) - cycles(device, run(code, misses=streamed)) for code in (plain, asking)]
        assert costs[0] > 0
        assert costs[1] == pytest.approx(waited * costs[0])


@needs_mca
def test_a_call_without_instructions_takes_no_time() -> None:
    assert estimate.estimate_cycles(Counts((CallCounts({}),)), devices.get("cortex-a72"), devices.get("cortex-a72")) == (0.0,)


@needs_mca
def test_repeated_stores_of_x86_take_vectors() -> None:
    v3 = devices.get("x86-64-v3")
    filled = BlockRun(Block(0, 1, 0, 1, bytes.fromhex("f3aa")), 4096, 0, 4096, (Misses(),), {-1: 1, 0: 4095})
    (found,) = estimate.estimate_cycles(Counts((CallCounts({0: filled}),)), v3, v3)
    assert found == 4096 / v3.vector_bytes


@needs_mca
def test_a_block_cut_at_the_end_of_a_page_does_not_swallow_the_next() -> None:
    v3 = devices.get("x86-64-v3")
    cut = bytes.fromhex("c4817e7f84b0")  # the first bytes of a vmovdqu of ten
    runs = {number: BlockRun(Block(0, 1, 0, 0, code), 10, 0, 0, (Misses(),), {-1: 10}) for number, code in enumerate([cut, b"\xc3"])}
    (found,) = estimate.estimate_cycles(Counts((CallCounts(runs),)), v3, v3)
    assert found > 0


# What is missing ----------------------------------------------------------------------------------------------------------


def test_a_core_without_model_says_so() -> None:
    unknown = replace(devices.get("cortex-a72"), name="toaster", cpu="toaster")
    assert estimate.missing(unknown) == "Target 'toaster': no estimate, the cycles of toaster are not modelled."
    assert estimate.cache_geometry(unknown) is None


def test_missing_tools_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimate._find_tools(str(tmp_path)) is None
    monkeypatch.setattr(estimate, "_find_tools", lambda: None)
    assert estimate.install(devices.get("cortex-a72")) == "apt-get install llvm-19"
    assert estimate.install(devices.get("cortex-m7")) is None  # has no estimate in any case


def test_tools_that_are_too_old_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_find_tools", lambda: estimate._Tools("llvm-mc", "llvm-mca", 14))
    reason = estimate.missing(devices.get("cortex-a76"))
    assert reason is not None
    assert "llvm-mca 14 has no model of neoverse-n1; 16 has" in reason
    assert "apt-get install llvm-19" in reason
    assert estimate.missing(devices.get("cortex-a72")) is None
    assert estimate.install(devices.get("cortex-a72")) is None


def test_a_machine_whose_code_is_not_told_apart_has_no_estimate() -> None:
    thumb = replace(devices.get("cortex-a7"), triple="thumbv7a-none-eabihf")
    assert estimate.missing(thumb) == "Target 'cortex-a7': no estimate, the cycles of cortex-a7 are not modelled."


def test_the_newest_pair_is_found(tmp_path: Path) -> None:
    for tool, version in (("llvm-mc-15", 15), ("llvm-mca-15", 15), ("llvm-mca-19", 19), ("llvm-mc", 14), ("llvm-mca", 14)):
        (tmp_path / tool).write_text(f"#!/bin/sh\necho 'Debian LLVM version {version}.0.6'\n")
        (tmp_path / tool).chmod(0o755)
    found = estimate._find_tools(str(tmp_path))
    assert found is not None
    assert (found.version, Path(found.mc).name) == (15, "llvm-mc-15")


def test_every_arm_target_that_qemu_runs_is_modelled() -> None:
    known = [devices.get(name) for name in devices.names() if name != devices.HOST]
    arm = [device for device in known if device.isa == "arm" and str(device.emulator).startswith("qemu")]
    assert arm
    assert [device.name for device in arm if core_model(device) is None] == []
