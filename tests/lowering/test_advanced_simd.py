"""What is written for Advanced SIMD: lanes of common vectors, clamps, the order of multiply-adds, streams; and what stays as it is."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import Call, TensorLoad, Var

from sepwise.lowering import advanced_simd
from sepwise.lowering.prefetch import STREAM_LOOPS


def ramp(start: Any, lanes: int = 4) -> tirx.Ramp:
    start = tirx.IntImm("int32", start) if isinstance(start, int) else start
    return tirx.Ramp(start, tirx.IntImm("int32", 1), lanes)


X = tirx.decl_buffer((64,), "float32", "x")
W = tirx.decl_buffer((64,), "float32", "w")
TOTAL = tirx.decl_buffer((64,), "float32", "total", scope="local")
OTHER = tirx.decl_buffer((64,), "float32", "other", scope="local")
BASE = Var("i", PrimType("int32"))


def function(*statements: tirx.Stmt) -> tirx.PrimFunc:
    end = tirx.BufferStore(W, tirx.FloatImm("float32", 0.0), [tirx.IntImm("int32", 63)])
    return tirx.PrimFunc([], tirx.SeqStmt([*statements, end]))


def by_scalar(number: int, index: Any) -> tirx.Stmt:
    """`total[number] += broadcast(x[index]) * w`."""
    index = tirx.IntImm("int32", index) if isinstance(index, int) else index
    return add(number, tirx.Broadcast(tirx.BufferLoad(X, [index]), 4))


def add(number: int, value: Any) -> tirx.Stmt:
    place = ramp(4 * number)
    return tirx.BufferStore(TOTAL, tirx.BufferLoad(TOTAL, [place]) + value * tirx.BufferLoad(W, [ramp(0)]), [place])


def loads(statement: Any) -> list[str]:
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(statement, (TensorLoad, found.append), order="pre")
    return [str(load.indices[0]) for load in found if load.source.same_as(X)]


def lanes(after: tirx.PrimFunc) -> list[int]:
    shuffles: list[tirx.Shuffle] = []
    tvm_ffi.structural_walk(after.body, (tirx.Shuffle, shuffles.append), order="pre")
    return [int(shuffle.indices[0]) for shuffle in shuffles]


def test_inputs_side_by_side_are_lanes_of_one_vector() -> None:
    after = advanced_simd.load_lanes_together(function(*(by_scalar(number, BASE + number) for number in range(4))))
    assert set(loads(after.body)) == {str(ramp(BASE))}
    assert lanes(after) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ((0, 1, 2, 3, 4, 5), {0: 0, 1: 0, 2: 0, 3: 0, 4: 2, 5: 2}),  # the last vector reaches back, not past the end
        ((0, 2, 4, 6), {0: 0, 2: 0, 4: 3, 6: 3}),  # a stride leaves lanes between
        ((0, 1, 2), {}),  # less than a vector
        ((0, 4, 8, 12), {}),  # one each
        ((0, 1, 2, 3, 40), {0: 0, 1: 0, 2: 0, 3: 0}),
    ],
)
def test_vectors_stay_between_the_outermost(offsets: tuple[int, ...], expected: dict[int, int]) -> None:
    assert advanced_simd._firsts(offsets, 4) == expected


def test_a_register_holds_twice_as_many_lanes_of_float16() -> None:
    assert advanced_simd._firsts(tuple(range(8)), 8) == dict.fromkeys(range(8), 0)
    assert advanced_simd._firsts(tuple(range(7)), 8) == {}
    buffers = [tirx.decl_buffer((64,), dtype, "x") for dtype in ("float32", "float16")]
    assert [advanced_simd._register_lanes(buffer) for buffer in buffers] == [4, 8]


def test_a_store_between_keeps_loads_apart() -> None:
    store = tirx.BufferStore(X, tirx.FloatImm("float32", 0.0), [tirx.IntImm("int32", 1)])
    before = function(by_scalar(0, 0), by_scalar(1, 1), store, by_scalar(2, 2), by_scalar(3, 3))
    assert str(advanced_simd.load_lanes_together(before)) == str(before)


def guarded(choice: Any, number: int, offset: int) -> tirx.Stmt:
    """`total[number] += (broadcast(x[i + offset]) where it lies in `x`, else 0) * w`."""
    inside = tirx.Broadcast(tirx.BufferLoad(X, [BASE + offset]), 4)
    condition = BASE + offset >= 0
    return add(number, choice(condition, inside, tirx.Broadcast(tirx.FloatImm("float32", 0.0), 4)))


@pytest.mark.parametrize("choice", [tirx.if_then_else, tirx.Select])
def test_what_is_read_on_a_condition_is_not_read_without(choice: Any) -> None:
    before = function(guarded(choice, 0, -1), *(by_scalar(number, BASE + number - 1) for number in (1, 2, 3)))
    assert str(advanced_simd.load_lanes_together(before)) == str(before)  # only three are in `x` in any case
    alone = function(*(guarded(choice, number, number) for number in range(4)))
    assert str(advanced_simd.load_lanes_together(alone)) == str(alone)


@pytest.mark.parametrize("choice", [tirx.if_then_else, tirx.Select])
def test_others_beside_a_condition_are_lanes(choice: Any) -> None:
    after = advanced_simd.load_lanes_together(function(guarded(choice, 0, -1), *(by_scalar(n, BASE + n - 1) for n in (1, 2, 3, 4))))
    assert set(loads(after.body)) == {str(BASE + -1), str(ramp(BASE))}
    assert lanes(after) == [0, 1, 2, 3]


def test_places_that_registers_give_stay_apart() -> None:
    """`i = x[j]; a += x[i]; i = ..; a += x[i + 1]`: the same expression is another place."""
    numbers = tirx.decl_buffer((1,), "int32", "numbers", scope="local")
    zero = tirx.IntImm("int32", 0)
    before = function(*(by_scalar(number, tirx.BufferLoad(numbers, [zero]) + number) for number in range(4)))
    assert str(advanced_simd.load_lanes_together(before)) == str(before)


def test_indices_of_unknown_distance_stay_apart() -> None:
    other = Var("j", PrimType("int32"))
    before = function(by_scalar(0, BASE), by_scalar(1, BASE + 1), by_scalar(2, other + 2), by_scalar(3, other + 3))
    assert str(advanced_simd.load_lanes_together(before)) == str(before)


def test_multiply_adds_follow_their_inputs() -> None:
    order = [(0, 4), (1, 8), (0, 8), (2, 0)]
    before = function(*(add(number, tirx.BufferLoad(X, [ramp(BASE + start)])) for number, start in order))
    after = advanced_simd.order_by_input(before)
    assert loads(after.body) == [str(ramp(BASE + start)) if start else str(ramp(BASE)) for start in (0, 4, 8, 8)]
    stores: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(after.body, (tirx.BufferStore, stores.append), order="pre")
    assert [int(store.indices[0].base) // 4 for store in stores[:-1]] == [2, 0, 1, 0]  # equal inputs in their old order


def multiply_add(number: int, start: int, *, read: Any = None, weight: Any = None, buffer: Any = TOTAL, place: int | None = None) -> tirx.Stmt:
    """`total[number] = read + x[start] * weight`; it reads what it writes, unless told otherwise."""
    target = ramp(4 * number if place is None else place)
    read = tirx.BufferLoad(buffer, [target]) if read is None else read
    weight = tirx.BufferLoad(W, [ramp(0)]) if weight is None else weight
    return tirx.BufferStore(buffer, read + tirx.BufferLoad(X, [ramp(start)]) * weight, [target])


@pytest.mark.parametrize(
    "statements",
    [
        # the second writes what the first read: t[0] = t[1] + ..; t[1] = t[2] + ..
        [multiply_add(number, start, read=tirx.BufferLoad(TOTAL, [ramp(4 * number + 4)])) for number, start in ((0, 8), (1, 0))],
        [multiply_add(0, 8), multiply_add(1, 0, read=tirx.BufferLoad(OTHER, [ramp(4)]))],
        [multiply_add(0, 8), multiply_add(1, 0, weight=tirx.BufferLoad(TOTAL, [ramp(0)]))],  # a factor that the first wrote
        [multiply_add(0, 8, weight=tirx.BufferLoad(TOTAL, [ramp(4)])), multiply_add(1, 0)],  # one that the second writes
        [multiply_add(0, 8), multiply_add(0, 0)],  # the order of one sum
        [multiply_add(0, 8), multiply_add(0, 0, place=2)],  # of the half of one
    ],
    ids=["sum of another", "sum elsewhere", "factor written before", "factor written after", "order of a sum", "overlap"],
)
def test_what_depends_on_its_neighbours_keeps_its_place(statements: list[tirx.Stmt]) -> None:
    before = function(*statements)
    assert str(advanced_simd.order_by_input(before)) == str(before)


def test_multiply_adds_by_lane_keep_their_place() -> None:
    """Each lane of a vector serves many sums: in another order more of these would be live at once than there are registers."""
    before = advanced_simd.load_lanes_together(function(*(by_scalar(n, BASE + offset) for n, offset in enumerate((4, 5, 6, 7, 0, 1, 2, 3)))))
    assert lanes(before) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert str(advanced_simd.order_by_input(before)) == str(before)


def test_sums_in_different_buffers_are_ordered() -> None:
    before = function(multiply_add(0, 8), multiply_add(0, 0, buffer=OTHER))
    assert loads(advanced_simd.order_by_input(before).body) == [str(ramp(0)), str(ramp(8))]


def test_other_statements_keep_their_place() -> None:
    epilogue = tirx.BufferStore(W, tirx.BufferLoad(TOTAL, [ramp(0)]), [ramp(0)])
    first, second = (add(0, tirx.BufferLoad(X, [ramp(start)])) for start in (8, 0))
    before = function(first, epilogue, second)
    assert str(advanced_simd.order_by_input(before)) == str(before)


def limited(compare: type, limit: float, *, swapped: bool = False, lanes: int = 4) -> tuple[Any, tirx.PrimFunc]:
    x = tirx.BufferLoad(X, [ramp(0, lanes) if lanes > 1 else tirx.IntImm("int32", 0)])
    constant = tirx.FloatImm("float32", limit)
    constant = tirx.Broadcast(constant, lanes) if lanes > 1 else constant
    condition = compare(constant, x) if swapped else compare(x, constant)
    store = tirx.BufferStore(W, tirx.Select(condition, constant, x), [ramp(0, lanes) if lanes > 1 else tirx.IntImm("int32", 0)])
    return store, function(store)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    ("compare", "swapped", "instruction"),
    [
        (tirx.GT, False, "llvm.minimum"),
        (tirx.LT, True, "llvm.minimum"),
        (tirx.LT, False, "llvm.maximum"),
        (tirx.GT, True, "llvm.maximum"),
    ],
)
def test_a_clamp_is_one_instruction(compare: type, swapped: bool, instruction: str, lanes: int) -> None:
    after = advanced_simd.clamp_by_minimum(limited(compare, 6.0, swapped=swapped, lanes=lanes)[1])
    selects: list[Any] = []
    calls: list[Call] = []
    tvm_ffi.structural_walk(after.body, (tirx.Select, selects.append))
    tvm_ffi.structural_walk(after.body, (Call, calls.append))
    assert not selects
    assert instruction in str(after)
    assert len(calls) >= 1


@pytest.mark.parametrize("limit", [np.nan, np.inf])
def test_a_limit_that_compares_otherwise_stays(limit: float) -> None:
    before = limited(tirx.GT, limit)[1]
    assert str(advanced_simd.clamp_by_minimum(before)) == str(before)


def test_another_selection_stays() -> None:
    x, y = tirx.BufferLoad(X, [ramp(0)]), tirx.BufferLoad(X, [ramp(4)])
    six = tirx.Broadcast(tirx.FloatImm("float32", 6.0), 4)
    for selected in (tirx.Select(x > six, six, y), tirx.Select(x > six, x, six), tirx.Select(x > y, y, x)):
        before = function(tirx.BufferStore(W, selected, [ramp(0)]))
        assert str(advanced_simd.clamp_by_minimum(before)) == str(before)


PIXELS = tirx.decl_buffer((1024,), "float32", "x")
WEIGHTS = tirx.decl_buffer((4096,), "float32", "w")
SUMS = tirx.decl_buffer((128,), "float32", "sums", scope="local")


def reduction(pixels: int, vectors: int, *, steps: int = 7, weight_row: int = 0) -> tirx.PrimFunc:
    """`for i: for k, v, p: sums[p, v] += lane k of x[i, p] * w[i, k, v]`, a row of weights by default as long as those of a step."""
    i = Var("i", PrimType("int32"))
    row = weight_row or 4 * vectors
    statements = []
    for k in range(4):
        for v in range(vectors):
            for p in range(pixels):
                x = tirx.BufferLoad(PIXELS, [ramp(i * 4 * pixels + 4 * p)])
                w = tirx.BufferLoad(WEIGHTS, [ramp(i * 4 * row + k * row + 4 * v)])
                place = ramp(4 * (p * vectors + v))
                product = tirx.Shuffle([x], [tirx.IntImm("int32", k)] * 4) * w
                statements.append(tirx.BufferStore(SUMS, tirx.BufferLoad(SUMS, [place]) + product, [place]))
    return tirx.PrimFunc([], tirx.For(i, 0, steps, tirx.ForKind.SERIAL, tirx.SeqStmt(statements)))


def calls(after: tirx.PrimFunc, name: str) -> int:
    found: list[Call] = []
    tvm_ffi.structural_walk(after.body, (Call, found.append))
    return sum(getattr(call.op, "name", "") == "tirx.call_extern" and str(call.args[0]).strip('"') == name for call in found)


@pytest.mark.parametrize(
    ("pixels", "vectors", "expected"),
    [
        (8, 2, {4: 2 + 2}),  # 16 + 8 + 4 of 28
        (4, 4, {4: 1 + 4}),
        (6, 3, {3: 2, 4: 3}),  # inputs in even parts
        (5, 4, {2: 1 + 2, 3: 1 + 4}),  # 20 + 5 leave 3: the inputs in 2 parts, 16 weights in 6
        (7, 3, {}),  # 21 + 7 leave none
    ],
)
def test_as_many_vectors_are_loaded_together_as_registers_are_left(pixels: int, vectors: int, expected: dict[int, int]) -> None:
    before = reduction(pixels, vectors)
    after = advanced_simd.load_by_streams(before, 32)
    found = {count: calls(after, f"sepwise_load_float32_{count}") for count in (1, 2, 3, 4)}
    assert {count: number for count, number in found.items() if number} == expected
    assert (str(after) == str(before)) == (not expected)


def distances(after: tirx.PrimFunc) -> list[int]:
    """What is added to a pointer that is no constant of an instruction, in bytes."""
    bound: list[tirx.Bind] = []
    tvm_ffi.structural_walk(after.body, (tirx.Bind, bound.append), order="pre")
    return [int(each.value.args[1]) for each in bound if each.var.name == "distance"]


def test_a_pointer_moves_past_each_load_and_on_to_the_next_row() -> None:
    together = advanced_simd.load_by_streams(reduction(8, 2), 32)
    assert calls(together, "sepwise_place") == 2
    assert distances(together) == []  # without gaps each load moves its pointer by what it loads
    apart = advanced_simd.load_by_streams(reduction(8, 2, weight_row=16), 32)
    assert calls(apart, "sepwise_load_float32_2") == 4
    assert distances(apart) == [64] * 4  # rows of 16 floats, of which 8 are read


def with_streams(before: tirx.PrimFunc, mark: str) -> tirx.PrimFunc:
    loop = before.body
    return tirx.PrimFunc([], tirx.For(loop.loop_var, 0, loop.extent, loop.kind, loop.body, None, {STREAM_LOOPS: mark}))


def asked(after: tirx.PrimFunc) -> list[str]:
    """What is asked for."""
    found: list[Call] = []
    tvm_ffi.structural_walk(after.body, (Call, found.append), order="pre")
    return [str(call.args[1]) for call in found if call.args and "sepwise_ask" in str(call.args[0])]


def test_each_load_of_a_stream_asks_for_what_lies_behind_it() -> None:
    after = advanced_simd.load_by_streams(with_streams(reduction(8, 2), "x,64"), 32)
    assert calls(after, "sepwise_load_float32_4") == 4
    assert asked(after) == ["pointer + T.int64(304)"] * 2  # its last vector of four, 64 floats on
    both = advanced_simd.load_by_streams(with_streams(reduction(8, 2), "x,64;w,32"), 32)
    assert sorted(asked(both)) == ["pointer + T.int64(176)"] * 2 + ["pointer + T.int64(304)"] * 2
    assert str(advanced_simd.load_by_streams(with_streams(reduction(8, 2), "other,64"), 32)).count("call_extern") == str(
        advanced_simd.load_by_streams(reduction(8, 2), 32)
    ).count("call_extern")


def test_a_loop_without_registers_for_streams_asks_by_index() -> None:
    before = with_streams(reduction(7, 3), "x,28;w,48")
    assert str(advanced_simd.load_by_streams(reduction(7, 3), 32)) == str(reduction(7, 3))
    after = advanced_simd.load_by_streams(before, 32)
    assert calls(after, "sepwise_load_float32_4") == 0
    assert len(asked(after)) == 5  # 7 vectors of inputs and 12 of weights, up to 4 in a line
    assert STREAM_LOOPS not in str(after)


def test_a_loop_that_does_more_than_accumulate_stays() -> None:
    loop = reduction(8, 2).body
    store = tirx.BufferStore(PIXELS, tirx.FloatImm("float32", 0.0), [loop.loop_var])
    body = tirx.SeqStmt([*loop.body.seq, store])
    before = tirx.PrimFunc([], tirx.For(loop.loop_var, 0, loop.extent, loop.kind, body))
    assert str(advanced_simd.load_by_streams(before, 32)) == str(before)


def test_streams_of_single_vectors_stay() -> None:
    before = reduction(1, 1, weight_row=16)
    assert str(advanced_simd.load_by_streams(before, 32)) == str(before)


def test_a_single_iteration_stays() -> None:
    before = reduction(8, 2, steps=1)
    assert str(advanced_simd.load_by_streams(before, 32)) == str(before)


@pytest.mark.parametrize(("steps", "repeats"), [(8, 4), (6, 3), (7, 1), (2, 2)])
def test_iterations_share_a_counter_up_to_256_multiply_adds(steps: int, repeats: int) -> None:
    after = advanced_simd.load_by_streams(reduction(8, 2, steps=steps), 32)
    extents: list[Call] = []
    tvm_ffi.structural_walk(after.body, (Call, lambda call: extents.append(call) if "sepwise_extent" in str(call) else None))
    assert [int(call.args[1]) for call in extents] == [steps // repeats]
    assert calls(after, "sepwise_load_float32_4") == 4 * repeats
    assert calls(after, "sepwise_behind_float32") == 2 * (repeats - 1)  # both pointers wait for the last sum before


def test_iterations_that_read_by_their_number_keep_a_counter_each() -> None:
    loop = reduction(8, 2, steps=8).body
    place = ramp(64)
    single = tirx.Broadcast(tirx.BufferLoad(PIXELS, [loop.loop_var]), 4)
    total = tirx.BufferStore(SUMS, tirx.BufferLoad(SUMS, [place]) + single, [place])
    body = tirx.SeqStmt([*loop.body.seq, total])
    after = advanced_simd.load_by_streams(tirx.PrimFunc([], tirx.For(loop.loop_var, 0, 8, loop.kind, body)), 32)
    assert calls(after, "sepwise_load_float32_3") > 0
    assert calls(after, "sepwise_behind_float32") == 0
