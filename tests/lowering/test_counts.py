"""What the counting plugin writes, read."""

import pytest

from sepwise.lowering.counts import Block, CacheGeometry, CallCounts, Misses, read_counts

WRITTEN = """\
call 1
run 7 10 160 80 1 2 3 4 5 6 7 8 0 0 0 0 0 0 0 1
edge -1 7 1
edge 7 7 9
run 9 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
edge 7 9 1
call 1
run 9 2 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0
edge -1 9 2
block 7 4096 4 1 1 20cc224e
block 9 8192 2 0 0 c1ffff54
"""


def test_counts_of_blocks() -> None:
    idle, call = read_counts(WRITTEN.replace("call 1\nrun 9 2", "call 2\nrun 9 2"), 3).calls[:2]
    assert (idle.instructions, idle.loads, idle.misses()) == (0, 0, Misses())
    assert (call.instructions, call.loads, call.stores) == (42, 10, 10)
    assert (call.load_bytes, call.store_bytes) == (160, 80)
    assert call.runs[7].block == Block(4096, 4, 1, 1, bytes.fromhex("20cc224e"))
    assert call.runs[7].predecessors == {-1: 1, 7: 9}
    assert call.runs[9].predecessors == {7: 1}


def test_misses_are_told_by_core() -> None:
    call = read_counts(WRITTEN.replace("call 1\nrun 9 2", "call 2\nrun 9 2"), 3).calls[1]
    assert call.misses(0) == Misses(1, 2, 3, 4, 5, 6, 7, 8)
    assert (call.misses(0).l1, call.misses(0).l2) == (6, 18)
    assert call.misses(1) == Misses(l2_written=1)


def test_a_call_that_runs_twice_counts_twice() -> None:
    call = read_counts(WRITTEN, 2).calls[1]
    assert call.runs[9].count == 3
    assert call.runs[9].predecessors == {7: 1, -1: 2}
    assert call.misses(0).l1_demanded == 4


def test_a_geometry_spells_the_plugins_option() -> None:
    assert str(CacheGeometry(32768, 2, 1 << 20, 16, 64, 8)) == "32768:2:1048576:16:64:8"


def test_totals_of_a_call() -> None:
    totals = {"instructions": 1234, "loads": 5, "stores": 4, "load_bytes": 60, "store_bytes": 30}
    call = CallCounts.of_totals(**totals)
    assert {name: getattr(call, name) for name in totals} == totals


def test_memory_that_was_not_seen_whole_is_not_counted() -> None:
    counts = read_counts(WRITTEN, 2)
    call = counts.without_memory().calls[1]
    assert (call.instructions, call.loads, call.stores, call.load_bytes) == (counts.instructions, None, None, None)
    assert call.runs[9].predecessors == counts.calls[1].runs[9].predecessors
    assert call.runs[7].misses == ()
    assert (counts.memory_seen, counts.without_memory().memory_seen) == (True, False)


@pytest.mark.parametrize(
    ("code", "scalable"),
    [
        ("0040a0a5", True),  # ld1w { z0.s }, p0/z, [x0, x0, lsl #2]
        ("e0e32004", True),  # cntb x0
        ("20cc224e", False),  # fmla v0.4s, v1.4s, v2.4s
        ("0004c03d", False),  # ldr q0, [x0, #16]
        ("c1ffff54", False),  # b.ne
    ],
)
def test_instructions_of_scalable_vectors_are_known(code: str, scalable: bool) -> None:
    written = WRITTEN.replace("20cc224e", code)
    assert read_counts(written, 2).scalable == scalable
