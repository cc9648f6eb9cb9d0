"""What a loop over quads becomes: loads, lanes, predicates, registers, order; and what stays as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import Call, Var
from tvm.target import codegen

from sepwise.lowering import scalable

P = Var("p", PrimType("int32"))
X = tirx.decl_buffer((400,), "float32", "x")
W = tirx.decl_buffer((64,), "float32", "w")
Y = tirx.decl_buffer((400,), "float32", "y")
TOTAL = tirx.decl_buffer((8,), "float32", "total", scope="local")
ZERO = tirx.Broadcast(tirx.FloatImm("float32", 0.0), 4)


def integer(value: int) -> tirx.IntImm:
    return tirx.IntImm("int32", value)


def quad(buffer: Any, start: Any) -> Any:
    return tirx.BufferLoad(buffer, [ramp(start)])


def ramp(start: Any) -> tirx.Ramp:
    return tirx.Ramp(integer(start) if isinstance(start, int) else start, integer(1), 4)


def widened(*statements: tirx.Stmt, pixels: int = 50, vectors: int = 2, mark: bool = True) -> tirx.Stmt:
    """The body of a function whose loop over pixels has these statements and writes a quad of `TOTAL`."""
    body = tirx.SeqStmt([tirx.AllocBuffer(TOTAL), *statements, tirx.BufferStore(Y, quad(TOTAL, 0), [ramp(P * 4)])])
    annotations = {scalable.SCALABLE_LOOP: vectors} if mark else {}
    loop = tirx.For(P, integer(0), integer(pixels), tirx.ForKind.SERIAL, body, annotations=annotations)
    function: tirx.PrimFunc = scalable.widen_loops(tirx.PrimFunc([], loop))
    return function.body


def add(x: Any, number: int = 0, weight: int = 0) -> tirx.Stmt:
    """`total[number] += x * w`."""
    place = ramp(4 * number)
    return tirx.BufferStore(TOTAL, tirx.BufferLoad(TOTAL, [place]) + x * quad(W, weight), [place])


def calls(body: tirx.Stmt, name: str) -> list[Call]:
    """Calls of an intrinsic, of SVE or of TVM."""
    found: list[Call] = []
    tvm_ffi.structural_walk(body, (Call, found.append), order="pre")
    return [call for call in found if getattr(call.op, "name", "") == name or intrinsic(call) == f"llvm.aarch64.sve.{name}"]


def intrinsic(call: Call) -> str:
    """The name of an intrinsic of LLVM, empty for other calls."""
    of_llvm = getattr(call.op, "name", "") in ("tirx.call_llvm_intrin", "tirx.call_llvm_pure_intrin")
    return str(codegen.llvm_get_intrinsic_name(int(call.args[0]))) if of_llvm else ""


def masks(body: tirx.Stmt) -> set[str]:
    """What predicates end before."""
    return {str(call.args[1]) for call in calls(body, "tirx.get_active_lane_mask")}


def test_neighbouring_pixels_are_one_load_and_a_weight_is_in_all_segments() -> None:
    body = widened(add(quad(X, P * 4)))
    assert len(calls(body, "ld1")) == len(calls(body, "ld1rq")) == len(calls(body, "st1")) == 2
    assert not calls(body, "fmla.lane")
    assert masks(body) == {"200"}


@pytest.mark.parametrize("lane", range(4))
def test_an_element_of_a_pixel_is_a_lane_of_its_segment(lane: int) -> None:
    body = widened(add(tirx.Broadcast(tirx.BufferLoad(X, [P * 4 + 8 + lane]), 4)))
    products = calls(body, "fmla.lane")
    assert [int(product.args[-1]) for product in products] == [lane, lane]
    alone = widened(tirx.BufferStore(TOTAL, tirx.Broadcast(tirx.BufferLoad(X, [P * 4 + lane]), 4) * quad(W, 0), [ramp(0)]))
    assert [int(product.args[-1]) for product in calls(alone, "fmul.lane")] == [lane, lane]


def guarded(condition: Any, start: Any) -> Any:
    return tirx.if_then_else(condition, quad(X, start), ZERO)


@pytest.mark.parametrize(
    ("condition", "begin", "end"),
    [
        (lambda p: p >= 3, 3, 50),
        (lambda p: p > 3, 4, 50),
        (lambda p: integer(3) <= p, 3, 50),
        (lambda p: p < 47, 0, 47),
        (lambda p: p + 4 <= 47, 0, 44),
        (lambda p: integer(47) > p, 0, 47),
        (lambda p: tirx.EQ(p, 7), 7, 8),
        (lambda p: tirx.all(p >= 2, p < 9), 2, 9),
        (lambda p: p * 2 < 9, 0, 5),
        (lambda p: p * 2 >= 9, 5, 50),
        (lambda p: p < -2, 0, 0),  # for no pixel
        (lambda p: tirx.EQ(p * 2, 14), 7, 8),
        (lambda p: tirx.EQ(p * 2, 13), 7, 7),
        (lambda p: tirx.EQ(14 - p * 2, 0), 7, 8),
    ],
)
def test_a_condition_on_the_pixel_is_a_predicate(condition: Callable[[Any], Any], begin: int, end: int) -> None:
    body = widened(add(guarded(condition(P), P * 4 + 4)), vectors=1)
    assert isinstance(body.body, tirx.IfThenElse)
    border = body.body.else_case
    load = calls(border, "ld1")[0]
    mask = load.args[1]
    if begin:
        assert isinstance(mask, tirx.And)
        assert str(mask.b.a.args[1]) == str(4 * begin)
        mask = mask.a
    assert str(mask.args[1]) == str(4 * end)
    assert not calls(body.body.then_case, "tirx.get_active_lane_mask")


def test_a_condition_that_the_pixel_has_no_part_in_is_for_all_lanes() -> None:
    row = Var("row", PrimType("int32"))
    body = widened(add(guarded(row > 0, P * 4 + row)))
    assert not isinstance(body.body, tirx.IfThenElse)
    assert {mask for mask in masks(body) if "row" in mask}


def test_a_vector_behind_the_first_needs_no_predicate_for_the_first_pixel() -> None:
    body = widened(add(guarded(P >= 1, P * 4 - 4)), vectors=3).body.else_case
    assert [isinstance(load.args[1], tirx.And) for load in calls(body, "ld1")] == [True, False, False]


def test_the_only_pixel_of_a_row_is_read_where_its_reader_is() -> None:
    body = widened(add(guarded(tirx.all(P >= 7, P < 8), 40)), vectors=1)
    assert isinstance(body.body, tirx.IfThenElse)
    load = calls(body.body.else_case, "ld1")[0]
    assert str(load.args[1].a.args[1]) == "32"
    assert str(load.args[1].b.a.args[1]) == "28"
    place = calls(body.body.else_case, "tirx.handle_add_byte_offset")[0]
    assert int(place.args[1]) == 4 * (40 - 4 * 7)


def test_pixels_apart_are_gathered_by_halves_from_an_address_that_near_ones_share() -> None:
    body = widened(add(quad(X, P * 8)), add(quad(X, P * 8 + 16)), add(quad(X, P * 8 + 20)), pixels=20)
    gathers = calls(body, "ld1.gather.index")
    assert not calls(body, "ld1")
    assert {str(gather.ty.dtype) for gather in gathers} == {"float64xvscalex2"}
    addresses = [gather.args[2] for gather in gathers]
    assert [address.same_as(addresses[0]) for address in addresses] == [True] * 4 + [False] * 2
    assert addresses[4].same_as(addresses[5])


def test_an_address_of_gathers_is_behind_the_sums_before_it() -> None:
    body = widened(add(quad(X, P * 8)), add(quad(X, P * 8 + 200)), add(guarded(P >= 2, P * 8 + 40)), pixels=20, vectors=1)
    behind = [call for call in calls(body, "tirx.call_extern") if "sepwise_behind_scalable" in str(call.args[0])]
    assert len(behind) == 2 * 2  # all but the first, in strips with and without predicates
    assert isinstance(body, tirx.AttrStmt)
    assert not isinstance(widened(add(quad(X, P * 4)), add(quad(X, P * 4 + 80))), tirx.AttrStmt)


def test_registers_are_one_a_quad_and_vector() -> None:
    registers: list[tirx.AllocBuffer] = []
    tvm_ffi.structural_walk(widened(add(quad(X, P * 4)), vectors=3), (tirx.AllocBuffer, registers.append))
    assert [(str(each.buffer.ty.dtype), int(each.buffer.ty.shape[0])) for each in registers] == [("float32xvscalex4", 1)] * 6


def test_sums_are_in_the_order_of_their_inputs() -> None:
    body = widened(add(quad(X, P * 4 + 8)), add(quad(X, P * 4)), add(guarded(P > 0, P * 4 + 4), number=1), vectors=1)
    starts = [int(call.args[1]) for call in calls(body.body.else_case, "tirx.handle_add_byte_offset")]
    assert starts[:3] == [0, 16, 32]


@pytest.mark.parametrize(
    "between",
    [
        tirx.BufferStore(TOTAL, quad(TOTAL, 0) * quad(TOTAL, 4), [ramp(0)]),
        tirx.BufferStore(TOTAL, quad(TOTAL, 0) + quad(X, P * 4 + 12) * quad(TOTAL, 4), [ramp(0)]),
        tirx.BufferStore(TOTAL, quad(TOTAL, 4) + quad(X, P * 4 + 12) * quad(W, 0), [ramp(0)]),
    ],
)
def test_what_lies_between_sums_keeps_its_place(between: tirx.Stmt) -> None:
    body = widened(add(quad(X, P * 4 + 8)), between, add(quad(X, P * 4)), vectors=1)
    places = [int(call.args[1]) for call in calls(body, "tirx.handle_add_byte_offset")]
    assert [place for place in places[:-1] if place != 48] == [32, 0]


def test_an_epilogue_is_of_scalable_vectors() -> None:
    bits = tirx.reinterpret("int32x4", quad(TOTAL, 0)) >> tirx.Broadcast(integer(1), 4)
    halved = tirx.reinterpret("float32x4", bits)
    value = tirx.Select(tirx.Not(quad(TOTAL, 0) > ZERO), tirx.sqrt(halved), tirx.Cast("float32x4", tirx.Cast("int32x4", halved)))
    body = widened(tirx.BufferStore(TOTAL, value, [ramp(0)]))
    stores: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(body, (tirx.BufferStore, stores.append))
    assert {str(store.value.ty.dtype) for store in stores} == {"float32xvscalex4"}


def test_other_loops_and_single_pixels_stay() -> None:
    for changes in ({"mark": False}, {"pixels": 1}):
        body = widened(add(quad(X, P * 4)), **changes)
        assert isinstance(body, tirx.For)
        assert body.loop_var.same_as(P)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (add(quad(X, P * 6)), "a pixel reads whole quads"),
        (add(quad(X, -P * 4)), "pixels are read in their order"),
        (add(quad(X, P * P * 4)), "the pixels that are read lie at one distance"),
        (add(ZERO + tirx.Broadcast(tirx.BufferLoad(X, [P * 4]), 4)), "what differs between pixels is a factor"),
        (add(guarded(P >= 7, 40)), "all pixels read one place"),
        (add(guarded(P * P > 4, P * 4)), "a condition is linear in the pixel"),
        (add(guarded(tirx.NE(P, 4), P * 4)), "a condition is a bound of the pixel"),
        (tirx.BufferStore(Y, ZERO, [ramp(P * 8)]), "pixels are written side by side"),
        (tirx.Evaluate(quad(X, 0)), "no vectors are made of Evaluate"),
    ],
)
def test_a_schedule_that_has_no_vectors_is_a_mistake_of_ours(statement: tirx.Stmt, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        widened(statement)
