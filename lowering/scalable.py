"""SVE: a loop over quads of lanes becomes a loop over scalable vectors, right at every vector length.

A packed tensor has the four channels of a pixel side by side, so neighbouring pixels are neighbouring quads, and a vector of
`vscale` times 128 bits holds `vscale` of them. A schedule computes one pixel with vectors of four lanes and marks its loop over
pixels; iterations of that loop become segments of scalable vectors, some of which are in registers at a time:

    # for p in range(P): f(p)
    #   ->  for s in range(ceil(P / (vectors * vscale))):
    #         f(p_0), f(p_1), ... statement by statement      p_j = (s * vectors + j) * vscale
    #                                                         segment i of vector j is pixel p_j + i, off from P on

    # x[4 * p + c : 4 * p + c + 4]        one load of neighbouring pixels, under the predicate
    # x[8 * p + c : 8 * p + c + 4]        a gather of every second pixel, each as two elements of 64 bits
    # w[c : c + 4]                        LD1RQ: the same quad in all segments
    # a + broadcast(x[4 * p + c]) * w     FMLA by lane, which takes lane c % 4 of each segment for that segment
    # if_then_else(p >= 1, x[...], 0)     a condition on p is part of the predicate: lanes that are off are 0; where all
    #                                     pixels of a strip meet all conditions, another version of it has no predicates

No vector length is compiled in: `vscale` is read where the code runs. Memory is as Advanced SIMD has it, so kernels of both
kinds follow each other without a conversion. Sums of one pixel may be in another order than written, by the place of the input,
so that an input is loaded once for all that read it.

Gathers that read near each other, as the taps of a row do, share an address and take vectors of indices that stay in registers.
Few sums read what a gather gives, and LLVM would begin many gathers early and spill; so an address is known behind the sums that
the gathers from the address before it feed.

It runs on flat functions, after loops were vectorised and unrolled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import Call, StringImm, TensorLoad, Var
from tvm.ir.prim.expr import BinaryOpExpr, CmpExpr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm import s_tir

    Expr = Any  # tvm has no type stubs

__all__ = ["NEAR_QUADS", "QUAD_BYTES", "SCALABLE_LOOP", "mark_scalable", "widen_loops"]

SCALABLE_LOOP = "sepwise.scalable"
"""Annotation of a loop over pixels; its value is how many vectors of them are in registers."""

QUAD_BYTES: Final = 16
"""Bytes of a segment: what a vector of the schedule has, and a scalable one at least."""

NEAR_QUADS: Final = 5
"""Gathers of quads less than so far behind an address take it, with a vector of indices in a register for each distance."""

_LANES: Final = 4
_HALVES: Final = 2
_ELEMENT_BYTES: Final = QUAD_BYTES // _LANES
_BINARY: Final = (BinaryOpExpr, CmpExpr, tirx.And, tirx.Or)

_CODE: Final = """
define ptr @sepwise_behind_scalable(ptr %place, <vscale x 4 x float> %sum) {
  %same = call ptr asm "", "=r,0,w"(ptr %place, <vscale x 4 x float> %sum) memory(none)
  ret ptr %same
}
"""
"""An address, no sooner than a sum; inlined, it is no instruction."""


def mark_scalable(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, vectors: int) -> None:
    """Makes the iterations of a loop segments of scalable vectors.

    Args:
        sch: The schedule.
        loop: The loop over pixels, with nothing but vectors of four lanes inside.
        vectors: Vectors of pixels in registers.
    """
    sch.annotate(loop, SCALABLE_LOOP, vectors)


def widen_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Writes out marked loops; see above.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function without marks, with LLVM's intermediate code of what it calls.
    """
    widenings: list[_Widening] = []

    def widen(loop: tirx.For) -> tirx.Stmt:
        if SCALABLE_LOOP not in loop.annotations or (isinstance(loop.extent, tirx.IntImm) and int(loop.extent) == 1):
            return loop  # a single pixel stays a quad
        widenings.append(_Widening(loop))
        return widenings[-1].loop()

    body = tvm_ffi.structural_map(function.body, (tirx.For, widen))
    if any(widening.orders_gathers for widening in widenings):
        body = tirx.AttrStmt(_int(0), "pragma_import_llvm", StringImm(_CODE), body)
    return function.with_body(body)


class _Address(NamedTuple):
    """What gathers start from: the element `buffer[index]`."""

    buffer: Expr
    index: Expr
    place: Var


class _Widening:
    """What one loop over quads becomes."""

    def __init__(self, loop: tirx.For) -> None:
        self._loop = loop
        self._vectors = int(loop.annotations[SCALABLE_LOOP])
        self._strip = Var(f"{loop.loop_var.name}_strip", PrimType("int32"))
        self._firsts = [(self._strip * self._vectors + j) * tirx.vscale() for j in range(self._vectors)]
        self._registers: list[tuple[Expr, list[list[Expr]]]] = []
        self._views: list[tirx.Stmt] = []
        self._near: _Address | None = None  # of the last gather
        self._sum: Expr | None = None  # the register that was written last
        self.orders_gathers = False
        self._inside: tuple[Expr, Expr] | None = None  # pixels that meet all conditions
        self._whole = False  # whether all lanes of all vectors are such pixels
        self._analyzer = tvm.sym.Analyzer()

    def loop(self) -> tirx.Stmt:
        """The loop over strips of pixels."""
        pixels = self._vectors * tirx.vscale()
        strips = tirx.truncdiv(self._loop.extent + pixels - 1, pixels)
        body = _sequence(self._statements(self._loop.body))
        if self._inside is not None:
            begin, end = self._inside
            inner = tirx.all(begin <= self._firsts[0], self._firsts[0] + pixels <= end)
            self._whole, self._registers = True, []
            self._forget()
            body = tirx.IfThenElse(inner, _sequence(self._statements(self._loop.body)), body)
        return tirx.For(self._strip, 0, strips, tirx.ForKind.SERIAL, body)

    def _forget(self) -> None:
        """Leaves a body: what follows knows neither its addresses nor its sums."""
        self._near = self._sum = None

    # --- statements -----------------------------------------------------------------------------------------

    def _statements(self, statement: tirx.Stmt) -> list[tirx.Stmt]:
        """The statements of all vectors that one of a quad becomes."""
        if isinstance(statement, tirx.SeqStmt):
            return [wide for each in self._by_input(statement.seq) for wide in self._statements(each)]
        if isinstance(statement, tirx.For):
            each = Var(statement.loop_var.name, statement.loop_var.ty)  # copies of a loop, as of unrolled taps, have one variable
            self._forget()
            body = _sequence(self._statements(_substitute(statement.body, statement.loop_var, each)))
            self._forget()
            return [tirx.For(each, statement.min, statement.extent, statement.kind, body)]
        if isinstance(statement, tirx.AllocBuffer):
            return self._allocate(statement.buffer)
        assert isinstance(statement, tirx.BufferStore), f"no vectors are made of {type(statement).__name__}"
        stores = [self._store(statement, j) for j in range(self._vectors)]
        views, self._views = self._views, []
        return [*views, *stores]

    def _allocate(self, buffer: Expr) -> list[tirx.Stmt]:
        """Registers for each quad of a local buffer, one a vector of pixels."""
        dtype = _scalable(buffer.ty.dtype)
        quads = math.prod(map(int, buffer.ty.shape)) // _LANES
        registers = [
            [tirx.decl_buffer((1,), dtype, f"{buffer.name}_{quad}_{j}", scope="local") for j in range(self._vectors)]
            for quad in range(quads)
        ]
        self._registers.append((buffer, registers))
        return [tirx.AllocBuffer(register) for vectors in registers for register in vectors]

    def _store(self, store: tirx.BufferStore, j: int) -> tirx.Stmt:
        """The store of one vector."""
        value = self._vector(store.value, j)
        (index,) = store.indices
        if store.buffer.scope() == "local":
            self._sum = self._register(store.buffer, index, j)
            return tirx.BufferStore(self._sum, value, [_int(0)])
        assert self._step(index.base) == _LANES, "pixels are written side by side"
        mask, address = self._predicate((), j), self._address(store.buffer, index.base, j)
        return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.aarch64.sve.st1", value, mask, address))

    def _by_input(self, statements: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
        """Multiply-adds that follow each other, in the order of the elements that they read."""
        ordered: list[tirx.Stmt] = []
        run: list[tuple[int, tirx.Stmt]] = []
        first: TensorLoad | None = None

        def end() -> None:
            ordered.extend(statement for _, statement in sorted(run, key=lambda step: step[0]))
            run.clear()

        for statement in statements:
            load = self._input(statement)
            offset = self._offset(load, first) if run else 0
            if offset is None or load is None:
                end()
                offset = 0
            if load is None:
                ordered.append(statement)
            else:
                first = first if run else load
                run.append((offset, statement))
        end()
        return ordered

    def _input(self, statement: tirx.Stmt) -> TensorLoad | None:
        """The input of `a[i] = a[i] + x * w`: what it reads of the pixel; None for other statements."""
        if not (isinstance(statement, tirx.BufferStore) and statement.buffer.scope() == "local"):
            return None
        total = statement.value
        if not (isinstance(total, tirx.Add) and isinstance(total.a, TensorLoad) and isinstance(total.b, tirx.Mul)):
            return None
        if not (total.a.source.same_as(statement.buffer) and tvm_ffi.structural_equal(total.a.indices[0], statement.indices[0])):
            return None
        x, w = total.b.a, total.b.b
        x = x.value if isinstance(x, tirx.Broadcast) else x
        x = x.args[1] if _is_guard(x) else x
        return x if all(isinstance(each, TensorLoad) and each.source.scope() != "local" for each in (x, w)) else None

    def _offset(self, load: TensorLoad | None, first: TensorLoad | None) -> int | None:
        """How far one load lies behind another, None where that is not known."""
        if load is None or first is None or not load.source.same_as(first.source):
            return None
        distance = self._analyzer.simplify(_start(load.indices[0]) - _start(first.indices[0]))
        return int(distance) if isinstance(distance, tirx.IntImm) else None

    # --- expressions ----------------------------------------------------------------------------------------

    def _vector(self, value: Expr, j: int) -> Expr:
        """A quad's value in all segments of a vector."""
        if isinstance(value, TensorLoad):
            return self._load(value, j)
        if isinstance(value, tirx.Broadcast):
            assert self._step(value.value) in (0, None), "what differs between pixels is a factor"
            return tirx.Broadcast(value.value, _lanes())
        if isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul) and (lane := self._lane(value.b.a, j)):
            return _call("fmla.lane", self._vector(value.a, j), self._vector(value.b.b, j), *lane)
        if isinstance(value, tirx.Mul) and (lane := self._lane(value.a, j)):
            return _call("fmul.lane", self._vector(value.b, j), *lane)
        if isinstance(value, _BINARY):
            return type(value)(self._vector(value.a, j), self._vector(value.b, j))
        if isinstance(value, tirx.Not):
            return tirx.Not(self._vector(value.a, j))
        if isinstance(value, tirx.Select):
            return tirx.Select(*(self._vector(each, j) for each in (value.condition, value.true_value, value.false_value)))
        if isinstance(value, tirx.Cast):
            return tirx.Cast(_scalable(value.ty.dtype), self._vector(value.value, j))
        assert isinstance(value, Call), f"no vector is made of {type(value).__name__}"
        if _is_guard(value):
            inside, conditions = _guarded(value)
            assert isinstance(inside, TensorLoad), "a condition chooses whether an element is read"
            return self._load(inside, j, conditions)
        arguments = [self._vector(each, j) if int(each.ty.dtype.lanes) == _LANES else each for each in value.args]
        return tirx.call_intrin(_scalable(value.ty.dtype), value.op, *arguments)

    def _load(self, load: TensorLoad, j: int, conditions: Sequence[Expr] = ()) -> Expr:
        """A quad of a buffer: registers, the same one in all segments, or those of neighbouring pixels."""
        (index,) = load.indices
        if load.source.scope() == "local":
            return tirx.BufferLoad(self._register(load.source, index, j), [_int(0)])
        step = self._step(index.base)
        if step == 0 and not conditions:
            everywhere = tirx.Broadcast(tirx.const(1, "bool"), _lanes())
            return _call("ld1rq", everywhere, tirx.address_of(tirx.BufferLoad(load.source, [index.base])))
        base = index.base + self._only(conditions) * _LANES if step == 0 else index.base
        step = self._step(base)
        if step == _LANES:
            return _call("ld1", self._predicate(conditions, j), self._address(load.source, base, j))
        assert step is not None, "the pixels that are read lie at one distance"
        assert step > 0, "pixels are read in their order"
        assert step % _LANES == 0, "a pixel reads whole quads"
        return self._gather(load.source, base, j, step // _LANES, conditions)

    def _gather(self, buffer: Expr, index: Expr, j: int, stride: int, conditions: Sequence[Expr]) -> Expr:
        """Quads that lie `stride` quads apart, each as two halves: no gather takes elements of 128 bits."""
        lanes = tirx.vscale() * _HALVES

        def everywhere(value: Expr) -> Expr:
            return tirx.Broadcast(tirx.Cast("int64", value), lanes)

        address = self._gathered_from(buffer, index)
        first = tirx.vscale() * (_HALVES * stride * j) + tirx.truncdiv(index - address.index, _LANES // _HALVES)
        halves = tirx.Ramp(tirx.IntImm("int64", 0), tirx.IntImm("int64", 1), lanes)  # 0, 1, 2, 3, ... -> 0, 1, 2 s, 2 s + 1, ...
        between = tirx.bitwise_and(halves, everywhere(_int(-_HALVES))) * everywhere(_int(stride - 1))
        indices = halves + between + everywhere(self._analyzer.simplify(first))
        mask = self._predicate(conditions, j, _HALVES)
        gathered = _call("ld1.gather.index", mask, address.place, indices, dtype=f"float64xvscalex{_HALVES}")
        return tirx.reinterpret(_scalable(buffer.ty.dtype), gathered)

    def _gathered_from(self, buffer: Expr, index: Expr) -> _Address:
        """The last address, where an element lies near behind it; else the element's own, behind the sums so far."""
        if self._near is not None and buffer.same_as(self._near.buffer):
            distance = self._analyzer.simplify(index - self._near.index)
            if isinstance(distance, tirx.IntImm) and int(distance) in range(0, NEAR_QUADS * _LANES, _LANES):
                return self._near
        place = self._place(buffer, index)
        if self._near is not None and self._sum is not None:
            self.orders_gathers = True
            total = tirx.BufferLoad(self._sum, [_int(0)])
            behind = tirx.call_extern(place.ty, "sepwise_behind_scalable", place, total)
            place = Var(f"{buffer.name}_near", place.ty)
            self._views.append(tirx.Bind(place, behind))
        self._near = _Address(buffer, index, place)
        return self._near

    def _lane(self, factor: Expr, j: int) -> tuple[Expr, Expr] | None:
        """The vector and the lane of each of its segments that a broadcast element of the pixel is; None for other factors."""
        if not isinstance(factor, tirx.Broadcast):
            return None
        element, conditions = _guarded(factor.value)
        if not isinstance(element, TensorLoad):
            return None
        (index,) = element.indices
        if self._step(index) == 0 and not conditions:
            return None
        lane = self._analyzer.simplify(tirx.floormod(index, _LANES))
        assert isinstance(lane, tirx.IntImm), "the lane of a factor is known"
        quad = tirx.Ramp(self._analyzer.simplify(index - lane), _int(1), _LANES)
        return self._load(tirx.BufferLoad(element.source, [quad]), j, conditions), lane

    def _register(self, buffer: Expr, index: Expr, j: int) -> Expr:
        """The register of a quad of a local buffer."""
        registers = next(each for known, each in self._registers if known.same_as(buffer))
        return registers[int(_start(index)) // _LANES][j]

    # --- pixels ---------------------------------------------------------------------------------------------

    def _address(self, buffer: Expr, index: Expr, j: int) -> Expr:
        """The address of an element at the first pixel of a vector, counted in vectors from the first as instructions do."""
        vectors = tirx.decl_buffer((self._vectors,), _scalable(buffer.ty.dtype), f"{buffer.name}_vectors")
        self._views.append(tirx.DeclBuffer(vectors, data=self._place(buffer, index)))
        return tirx.address_of(tirx.BufferLoad(vectors, [_int(j)]))

    def _place(self, buffer: Expr, index: Expr) -> Var:
        """The address of an element at the first pixel of all vectors.

        What is constant of the index is added to the pointer: elements of other rows then have their address in common.
        """
        index = self._analyzer.canonical_simplify(_substitute(index, self._loop.loop_var, self._firsts[0]))
        offset = index.b if isinstance(index, tirx.Add) and isinstance(index.b, tirx.IntImm) else _int(0)
        pointer = PointerType(buffer.ty.dtype)
        start, place = Var(f"{buffer.name}_start", pointer), Var(f"{buffer.name}_place", pointer)
        element = tirx.BufferLoad(buffer, [self._analyzer.simplify(index - offset)])
        moved = tirx.call_intrin(pointer, "tirx.handle_add_byte_offset", start, int(offset) * _ELEMENT_BYTES)
        self._views += [tirx.Bind(start, tirx.address_of(element)), tirx.Bind(place, moved)]
        return place

    def _step(self, index: Expr) -> int | None:
        """How far an index moves from one pixel to the next, None where that is not constant or it is none."""
        if isinstance(index, TensorLoad):
            (index,) = index.indices
        if not str(index.ty.dtype).startswith("int"):
            return None
        moved = _substitute(index, self._loop.loop_var, self._loop.loop_var + 1)
        step = self._analyzer.simplify(moved - index)
        return int(step) if isinstance(step, tirx.IntImm) else None

    def _before(self, j: int, end: Expr, lanes: int) -> Expr:
        """The predicate of the lanes of a vector whose pixels are before one."""
        return tirx.get_active_lane_mask(f"boolxvscalex{lanes}", self._firsts[j] * lanes, end * lanes)

    def _only(self, conditions: Sequence[Expr]) -> Expr:
        """How far a pixel is from the only one that meets conditions.

        A row of one pixel is read at the same place for each. With this added, the only reader reads that place, and its
        neighbours, which are off, what would lie beside it.
        """
        begin, end, _ = self._interval(conditions)
        assert self._analyzer.can_prove(end - begin <= 1), "all pixels read one place"
        return self._loop.loop_var - begin

    def _interval(self, conditions: Sequence[Expr]) -> tuple[Expr, Expr, list[Expr]]:
        """The first pixel that meets conditions, the one behind the last, and the conditions that are none on the pixel."""
        begin, end, others = _int(0), self._loop.extent, []
        for condition in conditions:
            bounds = self._bounds(condition)
            if bounds is None:
                others.append(condition)
            else:
                begin, end = tirx.max(begin, bounds[0]), tirx.min(end, bounds[1])
        return begin, end, others

    def _predicate(self, conditions: Sequence[Expr], j: int, lanes: int = _LANES) -> Expr:
        """The predicate of the pixels that there are and that meet conditions, in vectors with `lanes` elements of each."""
        begin, end, others = self._interval(conditions)
        if len(others) < len(conditions):
            inside = (begin, end) if self._inside is None else self._inside
            self._inside = tirx.max(inside[0], begin), tirx.min(inside[1], end)
        if self._whole:
            begin, end = _int(0), self._firsts[j] + tirx.vscale()
        begin, end = self._analyzer.simplify(begin), self._analyzer.simplify(end)
        if self._whole and not others:
            return tirx.Broadcast(tirx.const(1, "bool"), tirx.vscale() * lanes)
        end = tirx.max(end, 0)
        mask = self._before(j, tirx.Select(tirx.all(*others), end, _int(0)) if others else end, lanes)
        if isinstance(begin, tirx.IntImm) and int(begin) <= j:  # each vector before it holds a pixel
            return mask
        return tirx.And(mask, tirx.Not(self._before(j, begin, lanes)))

    def _bounds(self, condition: Expr) -> tuple[Expr, Expr] | None:
        """The first pixel that meets a condition and the one behind the last; None for one that holds for all or none."""
        assert isinstance(condition, (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ)), "a condition is a bound of the pixel"
        less, more = condition.a, condition.b
        if isinstance(condition, (tirx.GT, tirx.GE)):
            less, more = more, less
        if isinstance(condition, (tirx.GT, tirx.LT)):
            less = less + 1
        step = self._step(more - less)
        if step == 0:
            return None
        assert step is not None, "a condition is linear in the pixel"
        at_zero = _substitute(more - less, self._loop.loop_var, _int(0))  # it holds where at_zero + step * p >= 0, or is 0
        if isinstance(condition, tirx.EQ):
            distance = at_zero if step > 0 else -at_zero  # where it is no multiple of the step, no pixel meets the condition
            return -tirx.floordiv(distance, abs(step)), tirx.floordiv(-distance, abs(step)) + 1
        if step > 0:
            return -tirx.floordiv(at_zero, step), self._loop.extent
        return _int(0), tirx.floordiv(at_zero, -step) + 1


def _call(name: str, *arguments: Expr, dtype: str = f"float32xvscalex{_LANES}") -> Expr:
    """Calls an intrinsic of SVE."""
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.aarch64.sve.{name}", *arguments)


def _lanes() -> Expr:
    """The lanes of a scalable vector."""
    return tirx.vscale() * _LANES


def _scalable(dtype: Any) -> str:
    """The scalable vectors of an element type."""
    return f"{str(dtype).split('x')[0]}xvscalex{_LANES}"


def _is_guard(value: Expr) -> bool:
    """Whether an expression reads only where a condition holds."""
    return isinstance(value, Call) and getattr(value.op, "name", "") == "prim.if_then_else"


def _guarded(value: Expr) -> tuple[Expr, list[Expr]]:
    """What an expression reads, and the conditions under which it does; otherwise it is 0."""
    if not _is_guard(value):
        return value, []
    condition, inside, outside = value.args
    zero = outside.value if isinstance(outside, tirx.Broadcast) else outside
    assert isinstance(zero, tirx.FloatImm), "beside an input lie zeros"
    assert float(zero) == 0.0
    return inside, _conjuncts(condition)


def _conjuncts(condition: Expr) -> list[Expr]:
    """The parts of a conjunction."""
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]


def _start(index: Expr) -> Expr:
    """The first of the elements that an index names."""
    return index.base if isinstance(index, tirx.Ramp) else index


def _substitute(expression: Expr, variable: Var, value: Expr) -> Expr:
    """An expression or statement with `value` for `variable`."""
    return tvm_ffi.structural_map(expression, (Var, lambda v: value if v.same_as(variable) else v))


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    """Statements as one."""
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _int(value: int) -> tirx.IntImm:
    """An int32 constant."""
    return tirx.IntImm("int32", value)
