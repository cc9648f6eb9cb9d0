"""What the shared steps make of a loop nest: a matrix product of 4 rows, over packed channels."""

import pytest
from tvm import s_tir, te, tirx

from sepwise.lowering import compute, device
from sepwise.lowering.borders import BORDER_LOOP
from sepwise.lowering.strategies.steps import (
    accumulate_in_registers,
    split_reduction,
    stage_rows,
    start_from_bias,
    tile_flat_pixels,
    tile_rectangle,
    unroll_lanes,
)
from sepwise.lowering.workload import ConvWorkload, Stage

ROWS, CHANNELS, LANES = 4, 24, 8


def product() -> s_tir.Schedule:
    """for row, lane: for channel: total += data * weight;  output = max(total, 0)."""
    data = te.placeholder((ROWS, CHANNELS), name="data")
    weight = te.placeholder((CHANNELS, LANES), name="weight")
    padded = te.compute((ROWS + 1, CHANNELS), lambda i, c: te.if_then_else(i < ROWS, data[i, c], 0.0), name="padded")
    channel = te.reduce_axis((0, CHANNELS), "channel")
    total = te.compute((ROWS, LANES), lambda i, v: te.sum(padded[i + 1, channel] * weight[channel, v], channel), name="total")
    output = te.compute((ROWS, LANES), lambda i, v: te.max(total[i, v], 0.0), name="output")
    return s_tir.Schedule(te.create_prim_func([data, weight, output]))


def extents(sch: s_tir.Schedule, block: str) -> list[int]:
    return [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock(block))]


def kinds(sch: s_tir.Schedule, block: str) -> list[str]:
    return [tirx.ForKind(sch.get(loop).kind).name for loop in sch.get_loops(sch.get_sblock(block))]


@pytest.mark.parametrize(
    ("channels", "lanes", "inner"), [(24, 8, 8), (24, 16, 8), (24, 0, 24), (12, 8, 4), (5, 8, 1), (3, 4, 1), (16, 16, 16)]
)
def test_a_reductions_inner_part_stays_in_one_block(channels: int, lanes: int, inner: int) -> None:
    sch = s_tir.Schedule(te.create_prim_func(_sum_of(channels)))
    (_, loop) = sch.get_loops(sch.get_sblock("total"))
    split_reduction(sch, loop, channels, lanes)
    assert extents(sch, "total") == [1, channels // inner, inner]
    if lanes:
        for first in range(0, channels, inner):
            assert first // lanes == (first + inner - 1) // lanes


def _sum_of(channels: int) -> list[te.Tensor]:
    data = te.placeholder((1, channels), name="data")
    channel = te.reduce_axis((0, channels), "channel")
    return [data, te.compute((1,), lambda i: te.sum(data[i, channel], channel), name="total")]


@pytest.mark.parametrize(
    ("target", "accumulators", "steps"),
    [("x86-64-v4", 21, [4, 4]), ("x86-64-v4", 12, [2, 8]), ("x86-64-v4", 101, [16, 1]), ("x86-64-v3", 12, [16]), ("cortex-a72", 12, [2, 8])],
)
def test_steps_are_written_out_where_registers_are_left(target: str, accumulators: int, steps: list[int]) -> None:
    sch = s_tir.Schedule(te.create_prim_func(_sum_of(16)))
    (_, loop) = sch.get_loops(sch.get_sblock("total"))
    left = unroll_lanes(sch, device.get(target), loop, accumulators)
    assert [int(sch.get(left).extent), *extents(sch, "total")[2:]] == steps
    assert kinds(sch, "total")[2:] == ["UNROLLED"] * (len(steps) - 1)


def test_accumulators_are_zeroed_summed_and_written_in_registers() -> None:
    sch = product()
    total, output = sch.get_sblock("total"), sch.get_sblock("output")
    rows, lanes = sch.get_loops(output)
    outer, inner = sch.split(rows, [None, 2])
    sch.compute_at(total, outer)
    _, row, lane, channel = sch.get_loops(total)
    accumulate_in_registers(
        sch, total, output, [channel], unrolled=[row], vector=lane, output_loops=[inner, lanes]
    )
    assert sch.get(sch.get_sblock("total_update")).writes[0].source.scope() == "local"
    assert extents(sch, "total_init") == [2, 2, LANES]
    assert kinds(sch, "total_init") == ["SERIAL", "UNROLLED", "VECTORIZED"]
    assert extents(sch, "total_update") == [2, CHANNELS, 2, LANES]
    assert kinds(sch, "total_update") == ["SERIAL", "SERIAL", "UNROLLED", "VECTORIZED"]
    assert kinds(sch, "output") == ["SERIAL", "UNROLLED", "VECTORIZED"]


def convolution(groups: int, taps: int, *, flat: bool) -> tuple[s_tir.Schedule, compute.StageTensors]:
    """8 channels of 6 x 10 pixels in blocks of 4, the border staged."""
    around = (taps // 2,) * 2
    stage = Stage(8, 8, groups, (taps, taps), (1, 1), around, around, (1, 1), None)
    workload = ConvWorkload(1, (6, 10), (stage,), False, None, 4, 4)
    built = compute.conv(workload, (60,) if flat else (6, 10), 2, (1,), flat=flat)
    return s_tir.Schedule(built.function), built.stages[0]


def test_a_rectangle_is_in_registers_and_reads_the_input_itself() -> None:
    sch, names = convolution(8, 3, flat=False)
    loops = tile_rectangle(sch, names, rank=2, rows=3, pixels=5)
    assert [int(sch.get(loop).extent) for loop in loops] == [1, 2, 2, 2]
    assert extents(sch, names.output) == [1, 2, 2, 2, 3, 5, 4]
    assert kinds(sch, names.output) == ["SERIAL"] * 4 + ["UNROLLED", "UNROLLED", "VECTORIZED"]
    update = f"{names.accumulator}_update"
    assert kinds(sch, update)[-6:] == ["UNROLLED"] * 5 + ["VECTORIZED"]  # taps, the channel of a group, rows, pixels
    assert names.pad is not None
    with pytest.raises(Exception, match=names.pad):
        sch.get_sblock(names.pad)


def test_flat_pixels_are_in_registers() -> None:
    sch, names = convolution(1, 1, flat=True)
    loops, steps = tile_flat_pixels(sch, names, channels=8, lanes=4, pixels=6, oc_vectors=2)
    assert [int(sch.get(loop).extent) for loop in loops] == [1, 1, 10]
    assert [int(sch.get(loop).extent) for loop in steps] == [2, 4]
    assert extents(sch, names.output) == [1, 1, 10, 2, 6, 4]
    assert extents(sch, f"{names.accumulator}_update")[-5:] == [2, 4, 2, 6, 4]


@pytest.mark.parametrize("lanes", [0, CHANNELS])
def test_rows_are_staged_where_they_are_read(lanes: int) -> None:
    sch = product()
    rows, _ = sch.get_loops(sch.get_sblock("output"))
    sch.compute_at(sch.get_sblock("total"), rows)
    stage = Stage(1, 1, 1, (1, 3), (1, 1), (0, 1), (0, 0), (1, 1))
    stage_rows(sch, sch.get_sblock("padded"), rows, ConvWorkload(1, (ROWS, CHANNELS - 3), (stage,), False, None, lanes, 0))
    assert extents(sch, "padded") == [ROWS, 1, CHANNELS]
    assert kinds(sch, "padded") == ["SERIAL", "SERIAL", "VECTORIZED" if lanes else "SERIAL"]
    marks = dict(sch.get(sch.get_loops(sch.get_sblock("padded"))[-1]).annotations)
    assert marks == ({} if lanes else {BORDER_LOOP: "1,2"})  # a pad before, and what only a tile's rounding reads behind


def biased(scope: str, dtype: str = "float32") -> s_tir.Schedule:
    """for row, lane: total = sum of data * weight;  output = max(total + bias, 0) + residual, the total in a scope."""
    data = te.placeholder((ROWS, CHANNELS), dtype, name="data")
    weight = te.placeholder((CHANNELS, LANES), dtype, name="weight")
    bias = te.placeholder((LANES,), dtype=dtype, name="bias")
    residual = te.placeholder((ROWS, LANES), dtype, name="residual")
    zero = tirx.const(0.0, dtype)
    channel = te.reduce_axis((0, CHANNELS), "channel")
    total = te.compute((ROWS, LANES), lambda i, v: te.sum(data[i, channel] * weight[channel, v], channel), name="total")
    output = te.compute((ROWS, LANES), lambda i, v: te.max(total[i, v] + bias[v], zero) + residual[i, v], name="output")
    sch = s_tir.Schedule(te.create_prim_func([data, weight, bias, residual, output]))
    block = sch.get_sblock("total")
    sch.set_scope(block, 0, scope)
    sch.decompose_reduction(block, sch.get_loops(block)[-1])
    return sch


def test_a_sum_starts_from_its_bias_and_what_else_is_added_stays() -> None:
    after = str(start_from_bias(biased("local").mod["main"]))
    assert "total_local[v_i, v_v] = bias[v_v]" in after
    assert "output[v_i, v_v] = T.max(total_local[v_i, v_v], T.float32(0.0)) + residual[v_i, v_v]" in after


@pytest.mark.parametrize(("scope", "dtype"), [("global", "float32"), ("local", "float16")])
def test_a_sum_that_is_no_register_or_in_float16_starts_from_zero(scope: str, dtype: str) -> None:
    before = biased(scope, dtype).mod["main"]
    assert str(start_from_bias(before)) == str(before)
