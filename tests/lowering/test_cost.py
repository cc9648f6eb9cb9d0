"""The analytic model: what fits in registers, and that more work never costs less."""

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering import cost, device
from sepwise.lowering.core_model import core_model

DEVICES = [device.get(name) for name in device.names()]
V3 = device.get("x86-64-v3")
sizes = st.integers(1, 40)


@pytest.mark.parametrize("each", DEVICES, ids=lambda each: each.name)
def test_every_register_tile_fits_and_none_is_missing(each: device.Device) -> None:
    tiles = cost.register_tiles(each, 100, 100)
    assert all(cost.register_tile_fits(each, *tile) for tile in tiles)
    assert len(tiles) == len(set(tiles))
    pairs = [(p, v) for p in range(1, 33) for v in range(1, 33)]
    assert set(tiles) == {pair for pair in pairs if cost.register_tile_fits(each, *pair)}


@pytest.mark.parametrize(
    ("name", "fit", "spill"),
    [
        ("cortex-a72", [(6, 4), (15, 1), (1, 29)], [(7, 4), (16, 1), (1, 30)]),  # 24 + 6 + 2 of 32; weights come in pairs
        ("cortex-a7", [(2, 6), (3, 4), (7, 1), (1, 14)], [(4, 3), (2, 7), (8, 1)]),  # 12 + 3 + 1 of 16
        ("cortex-m7", [(4, 6), (5, 5), (1, 30)], [(7, 4), (6, 5), (1, 31)]),  # 25 + 5 + 1 of 32
        ("x86-64-v3", [(2, 6), (3, 4), (7, 1)], [(4, 3), (8, 1)]),
        ("x86-64-v2", [(2, 6), (7, 1)], [(3, 4), (1, 14)]),  # a product that is not fused takes one more
    ],
)
def test_which_tiles_spill(name: str, fit: list[tuple[int, int]], spill: list[tuple[int, int]]) -> None:
    each = device.get(name)
    assert [tile for tile in fit if not cost.register_tile_fits(each, *tile)] == []
    assert [tile for tile in spill if cost.register_tile_fits(each, *tile)] == []


def test_pixels_side_by_side_are_lanes_on_aarch64_alone() -> None:
    assert cost.register_tile_fits(device.get("cortex-a72"), 12, 2, adjacent=True)  # 24 + 6 + 2 of 32
    assert not cost.register_tile_fits(device.get("cortex-a72"), 12, 2)
    for name in ("cortex-a7", "cortex-m7", "x86-64-v3"):
        each = device.get(name)
        assert cost.register_tiles(each, 40, 8, adjacent=True) == cost.register_tiles(each, 40, 8)


@given(st.sampled_from(DEVICES), sizes, sizes)
def test_tiles_are_no_larger_than_what_there_is(each: device.Device, pixels: int, vectors: int) -> None:
    tiles = cost.register_tiles(each, pixels, vectors)
    assert (1, 1) in tiles
    assert all(p <= pixels and v <= vectors for p, v in tiles)


def test_accumulators_broadcasts_and_a_weight_are_live() -> None:
    v4 = device.get("x86-64-v4")
    assert cost.register_tile_fits(V3, 3, 4)  # 12 + 3 + 1 of 16
    assert cost.register_tile_fits(V3, 5, 2)  # 10 + 5 + 1
    assert not cost.register_tile_fits(V3, 4, 3)  # 12 + 4 + 1
    assert cost.register_tile_fits(v4, 10, 2)  # 20 + 10 + 1 of 32
    assert not cost.register_tile_fits(v4, 8, 3)  # 24 + 8 + 1


def test_a_product_that_is_not_fused_takes_a_register() -> None:
    v2 = device.get("x86-64-v2")
    assert (v2.vector_registers, v2.fuses_multiply_add) == (V3.vector_registers, False)
    assert cost.register_tile_fits(v2, 2, 6)  # 12 + 2 + 1 + 1 of 16
    assert not cost.register_tile_fits(v2, 3, 4)  # 12 + 3 + 1 + 1


@given(st.sampled_from(DEVICES), sizes, sizes, st.integers(1, 2000))
def test_a_longer_reduction_costs_more(each: device.Device, pixels: int, vectors: int, reduction: int) -> None:
    shorter = cost.micro_kernel_cycles(each, pixels, vectors, reduction)
    longer = cost.micro_kernel_cycles(each, pixels, vectors, reduction + 1)
    assert 0 < shorter < longer


@given(st.sampled_from(DEVICES), sizes, sizes, st.integers(1, 2000))
def test_nothing_beats_the_fma_ports(each: device.Device, pixels: int, vectors: int, reduction: int) -> None:
    assert cost.micro_kernel_cycles(each, pixels, vectors, reduction) >= pixels * vectors * reduction / each.fma_ports


def test_a_small_tile_is_bound_by_latency() -> None:
    one = cost.micro_kernel_cycles(V3, 1, 1, 1000)
    eight = cost.micro_kernel_cycles(V3, 4, 2, 1000)
    assert eight < 2 * one
    assert one >= 1000 * V3.fma_latency_cycles


@given(st.sampled_from(DEVICES), st.floats(1, 1e9), st.floats(1, 1e9), st.floats(1, 1e9))
def test_bytes_from_farther_away_cost_more(each: device.Device, nbytes: float, one: float, other: float) -> None:
    near, far = sorted((one, other))
    close = cost.copy_cycles(each, nbytes, footprint_bytes=near)
    assert 0 <= close <= cost.copy_cycles(each, nbytes, footprint_bytes=far)


def test_each_level_has_its_rate() -> None:
    beyond = V3.l2_bytes * 2.0
    assert cost.copy_cycles(V3, 3200.0, footprint_bytes=V3.l1d_bytes / 2) == 0
    assert cost.copy_cycles(V3, 3200.0, footprint_bytes=V3.l2_bytes / 2) == 3200 / V3.l2_bytes_per_cycle
    assert cost.copy_cycles(V3, 3200.0, footprint_bytes=beyond) == 3200 / V3.memory_bytes_per_cycle
    assert cost.stream_cycles(V3, 3200.0) == 3200 / V3.l2_bytes_per_cycle
    assert cost.stream_cycles(V3, beyond) == beyond / V3.memory_bytes_per_cycle


def test_what_is_staged_is_written_and_read_behind_what_it_is_made_of() -> None:
    nbytes, level1 = 3200.0, float(V3.l1d_bytes)
    assert cost.staged_cycles(V3, nbytes, passes=4, task_bytes=level1 / 4, pass_bytes=level1 / 4) == 0
    once = 2 * nbytes / V3.l2_bytes_per_cycle
    assert cost.staged_cycles(V3, nbytes, passes=4, task_bytes=level1, pass_bytes=level1 / 4) == once
    assert cost.staged_cycles(V3, nbytes, passes=4, task_bytes=level1, pass_bytes=level1) == pytest.approx(2.5 * once)


@given(st.floats(1, 1e9), st.integers(1, 5000), st.integers(1, 64))
def test_threads_help_by_at_most_their_number(cycles: float, tasks: int, threads: int) -> None:
    alone = cost.parallel_cycles(cycles, tasks, 1)
    shared = cost.parallel_cycles(cycles, tasks, threads)
    assert alone >= cycles
    assert shared * threads >= alone * (1 - 1e-12)
    assert shared >= (alone / tasks) * (1 - 1e-12)


def test_uneven_shares_wait_for_the_last_worker() -> None:
    even = cost.parallel_cycles(1e6, 4, 2)
    uneven = cost.parallel_cycles(1e6, 3, 2)
    assert uneven > even
    assert cost.parallel_cycles(1e6, 1, 8) == cost.parallel_cycles(1e6, 1, 1)


@pytest.mark.parametrize(
    "better",
    [
        {"fma_ports": 4},
        {"load_ports": 3},
        {"issue_width": 8},
        {"fma_latency_cycles": 2},
        {"fma_ports": 4, "load_ports": 4, "issue_width": 16, "fma_latency_cycles": 1},
    ],
)
def test_a_better_core_never_costs_more(better: dict[str, int]) -> None:
    faster = dataclasses.replace(V3, **better)
    for pixels, vectors in cost.register_tiles(V3, 14, 8):
        assert cost.micro_kernel_cycles(faster, pixels, vectors, 64) <= cost.micro_kernel_cycles(V3, pixels, vectors, 64)


def test_each_fact_of_a_core_can_be_the_bound() -> None:
    step = dataclasses.replace(V3, fma_ports=8, load_ports=8, issue_width=64, fma_latency_cycles=1)
    worse = [{"fma_ports": 1}, {"load_ports": 0.5}, {"issue_width": 1}, {"fma_latency_cycles": 20}]
    for change in worse:
        slower = dataclasses.replace(step, **change)
        assert cost.micro_kernel_cycles(slower, 3, 3, 1000) > 1.5 * cost.micro_kernel_cycles(step, 3, 3, 1000)


def test_a_core_that_loads_alone_takes_cycles_for_each_vector() -> None:
    """Of 20 accumulators, 10 x 2 load 10 / 4 + 2 vectors a step and 5 x 4 load 5 / 4 + 4: 0.75 fewer, at two cycles each."""
    a55 = device.get("cortex-a55")
    assert cost.loads_alone(a55)
    assert not cost.loads_alone(device.get("cortex-a72"))
    wide, tall = (cost.micro_kernel_cycles(a55, *tile, 64) for tile in ((10, 2), (5, 4)))
    assert tall - wide == 64 * 0.75 / a55.load_ports


def test_inputs_of_float16_by_lane_lie_in_few_registers() -> None:
    single = device.get("cortex-a76")
    half = single.holding("float16")
    assert cost.register_tile_fits(single, 14, 1)
    assert not cost.register_tile_fits(half, 14, 1)
    assert cost.register_tile_fits(half, 14, 1, adjacent=True)
    assert cost.register_tile_fits(half, cost.FLOAT16_FACTORS, 2)


@pytest.mark.parametrize(
    ("pixels", "vectors", "adjacent", "together"),
    [(8, 2, False, 4), (4, 5, False, 4), (5, 4, False, 3), (6, 4, False, -2), (8, 3, True, 2), (16, 1, True, 4)],
)
def test_accumulators_and_inputs_leave_registers_for_weights(pixels: int, vectors: int, adjacent: bool, together: int) -> None:
    assert cost.vectors_together(device.get("cortex-a72"), pixels, vectors, adjacent=adjacent) == together


def test_vectors_that_are_loaded_together_cost_less() -> None:
    a72 = device.get("cortex-a72")
    together, pairs = (cost.micro_kernel_cycles(a72, p, v, 128) / (p * v) for p, v in ((4, 4), (9, 2)))
    assert together < pairs  # though 9 x 2 loads fewer vectors for each multiply-add
    assert cost.micro_kernel_cycles(a72, 8, 2, 128) < cost.micro_kernel_cycles(a72, 8, 2, 128, weights_together=False)


def test_lines_are_asked_for_where_a_core_waits_and_no_x86_core_asks() -> None:
    a53, a72, n1 = map(device.get, ("cortex-a53", "cortex-a72", "neoverse-n1"))
    near = a72.l2_bytes * cost.CACHE_SHARE
    assert cost.is_prefetched(a72, near + 1)
    assert not cost.is_prefetched(a72, near)
    assert cost.is_prefetched(a53, a53.l1d_bytes * cost.CACHE_SHARE + 1)  # in order: it waits for level 2 too
    assert not cost.is_prefetched(a53, a53.l1d_bytes * cost.CACHE_SHARE)
    assert not cost.is_prefetched(n1, n1.l2_bytes)  # which has a third level
    assert cost.is_prefetched(n1, n1.l3_bytes)
    assert not cost.is_prefetched(V3, 1 << 30)


def test_a_reorder_buffer_hides_of_a_line_what_it_holds() -> None:
    a53, a72 = device.get("cortex-a53"), device.get("cortex-a72")
    in_order, out_of_order = core_model(a53), core_model(a72)
    assert in_order is not None
    assert out_of_order is not None
    assert cost.line_wait_cycles(a53, a53.l2_bytes / 2) == in_order.l2_latency_cycles
    assert cost.line_wait_cycles(a53, a53.l2_bytes) == in_order.memory_latency_cycles
    hidden = out_of_order.reorder_entries / a72.issue_width
    assert cost.line_wait_cycles(a72, a72.l2_bytes) == out_of_order.memory_latency_cycles - hidden
    assert cost.line_wait_cycles(a72, a72.l2_bytes / 2) == 0
    assert cost.line_wait_cycles(replace(a53, cpu="toaster"), 1 << 30) == 0


def test_a_tile_waits_for_more_streams_than_the_prefetcher_follows() -> None:
    a53, a72 = device.get("cortex-a53"), device.get("cortex-a72")

    def waiting(each: device.Device, streams: int, instructions: float) -> float:
        return cost.waiting_cycles(each, 1 << 22, lines=8, streams=streams, instructions=instructions)

    assert waiting(a53, 2, 200) == 0
    assert waiting(a53, 3, 200) == 8 * cost.line_wait_cycles(a53, 1 << 22)
    assert waiting(a72, 8, 200) == 0
    assert waiting(a72, 9, 128) == cost.line_wait_cycles(a72, 1 << 22)  # eight at a time
    assert waiting(a72, 9, 1024) == 8 * cost.line_wait_cycles(a72, 1 << 22)


def test_lines_apart_stay_as_long_as_their_sets_have_ways() -> None:
    a72 = device.get("cortex-a72")  # 256 sets of two ways
    assert cost.apart_stay(a72, 512, 64)
    assert not cost.apart_stay(a72, 513, 64)
    assert cost.apart_stay(a72, 8, 64 * 64)  # four sets
    assert not cost.apart_stay(a72, 9, 64 * 64)
    assert not cost.apart_stay(a72, 3, 64 * 256)  # one set
    assert not cost.apart_stay(replace(a72, cpu="toaster"), 1, 64)


def test_weights_are_asked_for_where_that_costs_less_than_waiting() -> None:
    a53, a72 = device.get("cortex-a53"), device.get("cortex-a72")

    def ahead(each: device.Device, *, total: float, footprint: float = 1.0, panels: int = 1, passes: int = 100) -> int:
        sizes = {"total_bytes": total, "footprint_bytes": footprint}
        return cost.iterations_ahead(each, **sizes, panels=panels, passes=passes, iteration_cycles=80)

    assert ahead(a53, total=a53.l1d_bytes) == 0  # from level 2 once in a hundred passes
    assert ahead(a53, total=a53.l1d_bytes, passes=4) == 1
    assert ahead(a53, total=a53.l1d_bytes, footprint=a53.l1d_bytes) == 1
    assert ahead(a53, total=1 << 24, passes=4) == 3  # from memory
    assert ahead(a72, total=1 << 24, passes=4) == 0  # its prefetcher follows them
    assert ahead(a72, total=1 << 24, panels=7, passes=4) == 3
    assert ahead(V3, total=1 << 24, panels=64, passes=1) == 0


def test_iterations_share_a_counter_on_cores_out_of_order() -> None:
    repeating = {each.name for each in DEVICES if cost.repeats_iterations(each)}
    assert {"cortex-a72", "cortex-a76", "neoverse-n1"} <= repeating
    assert not repeating & {"cortex-a53", "cortex-a55", "cortex-a7", "x86-64-v3"}
