"""What Advanced SIMD has instructions for, and LLVM does not find by itself in our kernels.

A multiply-add takes one of its factors from a lane of a vector, so inputs that lie side by side need one load for all:

    # a0 += broadcast(x[i]) * w0; a1 += broadcast(x[i + 1]) * w1; ...
    #   ->  v = x[i : i + 4]; a0 += shuffle(v, [0, 0, 0, 0]) * w0; a1 += shuffle(v, [1, 1, 1, 1]) * w1; ...

Only elements between those that the statements read in any case are loaded, and nothing is written meanwhile. Where whole
vectors are inputs, each is read by neighbouring statements and needs no register for long:

    # a0 += x[4:8] * w0; a1 += x[0:4] * w0; a1 += x[4:8] * w1
    #   ->  a1 += x[0:4] * w0; a0 += x[4:8] * w0; a1 += x[4:8] * w1

A reduction reads each of its tensors through one pointer, which every load of up to four vectors moves on. LLVM by itself loads
two at most, and computes addresses apart. As nothing else depends on its variable then, several iterations share a counter:

    # for i: a0 += x * w[16 i : 16 i + 4]; ...; a3 += x * w[16 i + 12 : 16 i + 16]
    #   ->  p = &w[0]; for i by 4: 4 times (v = ld1(p), p += 64; a0 += x * v[0:4]; ...; a3 += x * v[12:16])

Where a loop is marked so (`prefetch.mark_streams`), each of its loads asks for the line that lies a distance behind it.

Minimum and maximum give NaN for NaN, so a clamp takes two instructions instead of four:

    # select(x > c, c, x)  ->  llvm.minimum(x, c);  select(x < c, c, x)  ->  llvm.maximum(x, c)

All run on flat functions, after loops were vectorised and unrolled.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import Call, StringImm, TensorLoad, Var

from sepwise.lowering.cost import LEAST_TOGETHER, LINE_BYTES, MOST_TOGETHER, SPARE_REGISTERS
from sepwise.lowering.lane_loads import map_runs, shuffle, writes_registers
from sepwise.lowering.prefetch import STREAM_LOOPS, prefetch_code, stream_distances

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Expr = Any  # tvm has no type stubs

__all__ = ["clamp_by_minimum", "load_by_streams", "load_lanes_together", "order_by_input"]

REGISTER_BITS: Final = 128
"""Bits of a vector register."""

MOST_REPEATED_FMAS: Final = 256
"""Multiply-adds of iterations that are written out behind each other, so that a counter and a branch serve all of them."""

_ASK: Final = "sepwise_ask"
"""What asks for a line."""

FLOATS: Final = ("float16", "float32")
"""Types that vector instructions compute in; kernels have the first only where the device computes in it."""


def load_lanes_together(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Broadcast elements that lie side by side -> lanes of one vector.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such loads replaced.
    """
    analyzer = tvm.sym.Analyzer()
    return map_runs(function, lambda run: _merged(run, analyzer))


def clamp_by_minimum(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Selections that clamp floating-point values to a constant -> minimum and maximum, which keep NaN as they do.

    Args:
        function: Without loops still to be vectorised.

    Returns:
        The function with such selections replaced. They may give a zero of the other sign.
    """

    def on_select(select: tirx.Select) -> Expr:
        condition, limit, x = select.condition, select.true_value, select.false_value
        if not isinstance(condition, (tirx.GT, tirx.LT)) or not _finite(limit) or str(x.ty.dtype).split("x")[0] not in FLOATS:
            return select
        greater, less = (condition.a, condition.b) if isinstance(condition, tirx.GT) else (condition.b, condition.a)
        if _equal(greater, x) and _equal(less, limit):
            return tirx.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.minimum", x, limit)
        if _equal(less, x) and _equal(greater, limit):
            return tirx.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.maximum", x, limit)
        return select

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.Select, on_select)))


def order_by_input(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Unrolled vector multiply-adds -> the same in the order in which their inputs lie.

    An input is loaded once for all that read it, one after the other, and needs no register beyond. The order of each sum stays:
    statements stay where theirs would change, and where one reads registers other than its own sum.

    Args:
        function: Flat and vectorised, its loops unrolled.

    Returns:
        The function with such statements in order.
    """
    analyzer = tvm.sym.Analyzer()
    return map_runs(function, lambda run: _by_input(run, analyzer))


def load_by_streams(function: tirx.PrimFunc, registers: int, *, repeated: bool = True) -> tirx.PrimFunc:
    """Vector loads of loops that do nothing but accumulate -> loads of several vectors from pointers that they move on.

    A loop whose accumulators and inputs leave no registers for that stays as it is.

    Args:
        function: Flat and vectorised, its loops unrolled, inputs loaded as lanes. It is the last of these passes.
        registers: Vector registers of the device.
        repeated: Whether several iterations may share a counter.

    Returns:
        The function with such loads replaced, and with LLVM's intermediate code of what it calls for them.
    """
    analyzer = tvm.sym.Analyzer()
    kinds: set[tuple[str, int]] = set()
    marked: list[tirx.For] = []

    def on_loop(loop: tirx.For) -> tirx.Stmt:
        distances = stream_distances(loop)
        if distances:
            marked.append(loop)
            left = {key: value for key, value in loop.annotations.items() if key != STREAM_LOOPS}
            loop = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, loop.thread_binding, left)
        run = list(loop.body.seq) if isinstance(loop.body, tirx.SeqStmt) else [loop.body]
        if not all(map(writes_registers, run)):
            return loop
        return _by_streams(loop, run, registers, MOST_REPEATED_FMAS if repeated else 0, analyzer, kinds, distances)

    body = tvm_ffi.structural_map(function.body, (tirx.For, on_loop))
    if kinds or marked:
        code = _PLACES_CODE + prefetch_code(_ASK) + "".join(_load_code(*kind) for kind in sorted(kinds))
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(code), body)
    return function.with_body(body)


class _Stream(NamedTuple):
    """Vectors of one tensor that a loop loads: `source[base + offset]`, `step` elements on in each iteration.

    `readers` has the number of the first statement that reads each offset; `by_lane` tells whether they are read so.
    """

    source: Expr
    base: Expr
    step: int
    by_lane: bool
    readers: dict[int, int]

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return _register_lanes(self.source)

    @property
    def rows(self) -> list[list[int]]:
        """Offsets, those of vectors that follow each other together."""
        rows: list[list[int]] = []
        for offset in sorted(self.readers):
            if rows and offset == rows[-1][-1] + self.lanes:
                rows[-1].append(offset)
            else:
                rows.append([offset])
        return rows

    def parts(self, most: int) -> list[list[int]]:
        """Rows in as few parts of at most `most` vectors as there can be, as even as they can be."""
        found = []
        for row in self.rows:
            count = math.ceil(len(row) / most)
            ends = [len(row) * number // count for number in range(count + 1)]
            found += [row[start:end] for start, end in itertools.pairwise(ends)]
        return found


class _Move(NamedTuple):
    """A load of neighbouring vectors of a stream, from a pointer that moves on by `distance` bytes.

    `reader` is the number of the first statement that reads them or what the pointer comes to later in the iteration.
    """

    number: int
    stream: _Stream
    part: tuple[int, ...]
    reader: int
    place: Expr
    distance: Expr


def _by_streams(
    loop: tirx.For,
    run: Sequence[tirx.Stmt],
    registers: int,
    most_fmas: int,
    analyzer: Any,
    kinds: set[tuple[str, int]],
    distances: Mapping[str, int],
) -> tirx.Stmt:
    """A loop over `run` with the loads of its streams, in bodies of up to `most_fmas` multiply-adds where one has no more.

    `kinds` gets the types and counts of vectors that are loaded together; `distances` has how far behind its loads is asked for.
    """
    streams, places = _streams(loop, run, analyzer)
    totals = {(statement.buffer, str(statement.indices[0])) for statement in run}
    inputs = sum(max(map(len, stream.rows)) for stream in streams if stream.by_lane)
    together = min(MOST_TOGETHER, registers - SPARE_REGISTERS - len(totals) - inputs)
    if not inputs or together < LEAST_TOGETHER or int(getattr(loop.extent, "value", 0)) == 1:
        return _asking(loop, run, streams, distances)
    before: list[tirx.Stmt] = []
    moves: list[_Move] = []
    for number, stream in enumerate(streams):
        parts = stream.parts(MOST_TOGETHER if stream.by_lane else together)
        if min(map(len, parts)) < LEAST_TOGETHER:
            continue
        element_bytes = int(stream.source.ty.dtype.dtype.bits) // 8
        place = tirx.decl_buffer((1,), "int64", "place", scope="local")
        first = tirx.BufferLoad(stream.source, [_with(stream.base, loop.loop_var, loop.min) + parts[0][0]])
        start = tirx.call_extern("int64", "sepwise_place", tirx.address_of(first))
        before += [tirx.AllocBuffer(place), tirx.BufferStore(place, start, [0])]
        for at, part in enumerate(parts):
            later = parts[at:]
            following = later[1][0] if len(later) > 1 else parts[0][0] + stream.step
            distance: Expr = tirx.IntImm("int64", element_bytes * (following - part[0]))
            if following != part[0] + len(part) * stream.lanes:  # an instruction takes it from a register alone
                distance, constant = Var("distance", PrimType("int64")), distance
                before.append(tirx.Bind(distance, _opaque(constant)))
            reader = min(stream.readers[offset] for row in later for offset in row)
            moves.append(_Move(number, stream, tuple(part), reader, place, distance))
            kinds.add((str(stream.source.ty.dtype), len(part)))
    if not moves:
        return _asking(loop, run, streams, distances)
    extent = loop.extent
    repeats = 1
    if isinstance(extent, tirx.IntImm):
        if all(map(_is_register, run)) and not _reads_place(run, moves, places, loop.loop_var):
            repeats = _repeats(int(extent), len(run), most_fmas)
        # LLVM would unroll a short loop, and load what all of it reads first
        extent = Var("extent", PrimType("int32"))
        before.append(tirx.Bind(extent, tirx.call_extern("int32", "sepwise_extent", loop.extent // repeats)))
    moved = {move.number for move in moves}
    by_index = _asks((stream for number, stream in enumerate(streams) if number not in moved), distances)
    iterations = [[*by_index, *_moving(run, moves, places, distances)] for _ in range(repeats)]
    for iteration in iterations[1:]:
        iteration[:0] = _behind(run[-1], moves)
    body = tirx.SeqStmt([statement for iteration in iterations for statement in iteration])
    return tirx.SeqStmt(
        [*before, tirx.For(loop.loop_var, loop.min, extent, loop.kind, body, loop.thread_binding, loop.annotations)]
    )


def _repeats(extent: int, multiply_adds: int, most: int) -> int:
    """How often the body of a loop is written out, so that all bodies are."""
    return max(n for n in range(1, extent + 1) if extent % n == 0 and (n == 1 or n * multiply_adds <= most))


def _is_register(statement: tirx.BufferStore) -> bool:
    """Whether a statement writes one vector register of floating-point numbers."""
    (ramp,) = statement.indices
    lanes = _register_lanes(statement.buffer)
    return str(statement.buffer.ty.dtype) in FLOATS and isinstance(ramp, tirx.Ramp) and str(ramp.lanes) == str(lanes)


def _reads_place(
    run: Sequence[tirx.Stmt], moves: Sequence[_Move], places: dict[TensorLoad, tuple[int, int]], variable: Var
) -> bool:
    """Whether something else than the loads that pointers serve depends on a loop's variable."""
    moved = {move.number for move in moves}
    found: list[Var] = []

    def on_load(load: TensorLoad) -> tvm_ffi.WalkResult | None:
        return tvm_ffi.WalkResult.SKIP if places.get(load, (-1, 0))[0] in moved else None

    for statement in run:
        tvm_ffi.structural_walk(statement, ((TensorLoad, on_load), (Var, found.append)), order="pre")
    return any(each.same_as(variable) for each in found)


def _asking(loop: tirx.For, run: Sequence[tirx.Stmt], streams: Sequence[_Stream], distances: Mapping[str, int]) -> tirx.Stmt:
    """A loop that asks for what lies behind its loads."""
    asks = _asks(streams, distances)
    if not asks:
        return loop
    body = tirx.SeqStmt([*asks, *run])
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)


def _asks(streams: Iterable[_Stream], distances: Mapping[str, int]) -> list[tirx.Stmt]:
    """Asks for what lies behind the loads of streams, by index and of each line once."""
    asks: list[tirx.Stmt] = []
    for stream in streams:
        ahead, asked = distances.get(stream.source.name, 0), math.inf
        line = LINE_BYTES * 8 // int(stream.source.ty.dtype.dtype.bits)
        for offset in sorted(stream.readers, reverse=True) if ahead else ():
            if asked - offset >= line:
                behind = tirx.address_of(tirx.BufferLoad(stream.source, [stream.base + offset + ahead]))
                asks.append(tirx.Evaluate(tirx.call_extern("void", _ASK, tirx.call_extern("int64", "sepwise_place", behind))))
                asked = offset
    return asks


def _moving(
    run: Sequence[tirx.Stmt], moves: Sequence[_Move], places: dict[TensorLoad, tuple[int, int]], distances: Mapping[str, int]
) -> list[tirx.Stmt]:
    """The statements of one iteration, each after the loads of what it is first to read, which ask for what lies behind them."""
    loads: dict[int, list[tirx.Stmt]] = {}
    loaded: dict[tuple[int, int], tuple[Var, int]] = {}
    for move in moves:
        dtype = str(move.stream.source.ty.dtype)
        pointer = Var("pointer", PrimType("int64"))
        vectors = Var("vectors", PrimType(f"{dtype}x{len(move.part) * move.stream.lanes}"))
        load = tirx.call_extern(str(vectors.ty.dtype), _load_name(dtype, len(move.part)), pointer)
        loads.setdefault(move.reader, []).extend(
            [
                tirx.Bind(pointer, tirx.BufferLoad(move.place, [0])),
                tirx.Bind(vectors, load),
                tirx.BufferStore(move.place, _opaque(pointer + move.distance), [0]),
            ]
        )
        if ahead := distances.get(move.stream.source.name, 0):
            element_bytes = int(move.stream.source.ty.dtype.dtype.bits) // 8
            behind = tirx.IntImm("int64", element_bytes * (ahead + move.part[-1] - move.part[0]))
            loads[move.reader].append(tirx.Evaluate(tirx.call_extern("void", _ASK, pointer + behind)))
        loaded.update({(move.number, offset): (vectors, lane * move.stream.lanes) for lane, offset in enumerate(move.part)})

    def on_load(load: TensorLoad) -> Expr:
        vectors, first = loaded.get(places.get(load, (-1, 0)), (None, 0))
        if vectors is None:
            return load
        return shuffle([vectors], range(first, first + _register_lanes(load.source)))

    statements: list[tirx.Stmt] = []
    for number, statement in enumerate(run):
        statements += [*loads.get(number, []), tvm_ffi.structural_map(statement, (TensorLoad, on_load))]
    return statements


def _behind(last: tirx.BufferStore, moves: Sequence[_Move]) -> list[tirx.Stmt]:
    """Makes pointers seem to depend on the last sum of an iteration, so that LLVM loads nothing of the next one before it."""
    total = tirx.BufferLoad(last.buffer, last.indices)
    name = f"sepwise_behind_{last.buffer.ty.dtype}"
    places = list(dict.fromkeys(move.place for move in moves))
    return [
        tirx.BufferStore(place, tirx.call_extern("int64", name, tirx.BufferLoad(place, [0]), total), [0]) for place in places
    ]


def _streams(
    loop: tirx.For, run: Sequence[tirx.Stmt], analyzer: Any
) -> tuple[list[_Stream], dict[TensorLoad, tuple[int, int]]]:
    """What the statements of a loop load in any case and from another place in each iteration, by tensor and base.

    With it, for each load, the number of its stream and its offset there.
    """
    streams: list[_Stream] = []
    places: dict[TensorLoad, tuple[int, int]] = {}
    by_lane: list[TensorLoad] = []

    def note_lanes(shuffle: tirx.Shuffle) -> None:
        by_lane.extend(vector for vector in shuffle.vectors if isinstance(vector, TensorLoad))

    def note(load: TensorLoad, number: int) -> None:
        found = _vector_place(load, analyzer)
        if found is None:
            return
        base, offset = found
        at = next((at for at, stream in enumerate(streams) if _is_of(stream, load.source, base)), len(streams))
        if at == len(streams):
            step = analyzer.simplify(_with(base, loop.loop_var, loop.loop_var + 1) - base)
            if not isinstance(step, tirx.IntImm) or int(step) == 0:
                return
            streams.append(_Stream(load.source, base, int(step), any(load.same_as(lanes) for lanes in by_lane), {}))
        streams[at].readers.setdefault(offset, number)
        places[load] = at, offset

    for number, statement in enumerate(run):
        by_lane.clear()
        loads: list[TensorLoad] = []
        tvm_ffi.structural_walk(
            statement, ((tirx.Shuffle, note_lanes), (TensorLoad, loads.append), ((tirx.Select, Call), _skip_guarded)), order="pre"
        )
        for load in loads:
            note(load, number)
    return streams, places


def _vector_place(load: TensorLoad, analyzer: Any) -> tuple[Expr, int] | None:
    """The variable and the constant part of a vector's index; None for what is no register's vector of a tensor."""
    (ramp,) = load.indices
    if load.source.scope() == "local" or str(load.source.ty.dtype) not in FLOATS or not isinstance(ramp, tirx.Ramp):
        return None
    if int(ramp.lanes) != _register_lanes(load.source) or int(ramp.stride) != 1 or _reads_registers(ramp):
        return None
    return _split(ramp.base, analyzer)


def _is_of(stream: _Stream, source: Expr, base: Expr) -> bool:
    """Whether a stream reads this tensor, its index with this variable part."""
    return bool(stream.source.same_as(source)) and _equal(stream.base, base)


def _with(expression: Expr, variable: Var, value: Expr) -> Expr:
    """An expression with a value for a variable."""
    return tvm_ffi.structural_map(expression, (Var, lambda v: value if v.same_as(variable) else v))


def _opaque(value: Expr) -> Expr:
    """A number of 64 bits of which LLVM does not know where it comes from, so that it keeps it in a register."""
    return tirx.call_extern("int64", "sepwise_opaque", value)


_PLACES_CODE: Final = """
define i64 @sepwise_place(ptr %address) {
  %place = ptrtoint ptr %address to i64
  ret i64 %place
}

define i64 @sepwise_opaque(i64 %value) {
  %same = call i64 asm "", "=r,0"(i64 %value) memory(none)
  ret i64 %same
}

define i64 @sepwise_behind_float32(i64 %value, <4 x float> %other) {
  %same = call i64 asm "", "=r,0,w"(i64 %value, <4 x float> %other) memory(none)
  ret i64 %same
}

define i64 @sepwise_behind_float16(i64 %value, <8 x half> %other) {
  %same = call i64 asm "", "=r,0,w"(i64 %value, <8 x half> %other) memory(none)
  ret i64 %same
}

declare void @llvm.assume(i1)

define i32 @sepwise_extent(i32 %value) {
  %same = call i32 asm "", "=r,0"(i32 %value) memory(none)
  %positive = icmp sgt i32 %same, 0
  call void @llvm.assume(i1 %positive)
  ret i32 %same
}
"""


def _load_name(dtype: str, vectors: int) -> str:
    """What the function that loads vectors together is called."""
    return f"sepwise_load_{dtype}_{vectors}"


def _load_code(dtype: str, vectors: int) -> str:
    """LLVM's intermediate code of a function that loads vectors together; TVM lets LLVM inline what it imports."""
    bits = int(dtype.removeprefix("float"))
    lanes = REGISTER_BITS // bits
    part, pair, whole = (f"<{count * lanes} x {'half' if bits == 16 else 'float'}>" for count in (1, 2, vectors))
    parts = f"{{{', '.join([part] * vectors)}}}"
    intrinsic = f"@llvm.aarch64.neon.ld1x{vectors}.v{lanes}f{bits}.p0"

    def join(kind: str, first: str, second: str, count: int) -> str:
        """The first lanes of two vectors of a kind, one behind the other."""
        order = ", ".join(f"i32 {lane}" for lane in range(count))
        return f"shufflevector {kind} {first}, {kind} {second}, <{count} x i32> <{order}>"

    lines = ["%address = inttoptr i64 %place to ptr", f"%loaded = call {parts} {intrinsic}(ptr %address)"]
    lines += [f"%part{number} = extractvalue {parts} %loaded, {number}" for number in range(vectors)]
    for number in range(0, vectors, 2):
        other = f"%part{number + 1}" if number + 1 < vectors else "poison"
        lines.append(f"%pair{number} = {join(part, f'%part{number}', other, 2 * lanes)}")
    lines.append(f"%joined = {join(pair, '%pair0', '%pair2' if vectors > 2 else 'poison', vectors * lanes)}")
    code = "\n  ".join([*lines, f"ret {whole} %joined"])
    return f"\ndeclare {parts} {intrinsic}(ptr)\n\ndefine {whole} @{_load_name(dtype, vectors)}(i64 %place) {{\n  {code}\n}}\n"


class _Step(NamedTuple):
    """`a[i] = a[i] + x[j + offset] * w[k]`, all vectors and `a` registers: its place is `x` and `j`, its total `a` and `i`.

    Another statement has none of these, and keeps its place.
    """

    statement: tirx.BufferStore
    place: tuple[Expr, tvm_ffi.StructuralKey] | None = None
    offset: int = 0
    total: tuple[Expr, int] | None = None


def _by_input(run: Sequence[tirx.BufferStore], analyzer: Any) -> list[tirx.Stmt]:
    """Statements that write registers alone, the multiply-adds of one input that follow each other ordered."""
    steps = [_multiply_add(statement, analyzer) or _Step(statement) for statement in run]
    return [step.statement for _, group in itertools.groupby(steps, lambda step: step.place) for step in _ordered(list(group))]


def _multiply_add(statement: tirx.BufferStore, analyzer: Any) -> _Step | None:
    """A multiply-add that neither reads nor overlaps the registers of others, or None."""
    total, place = statement.value, statement.indices[0]
    if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
        return None
    x = total.b.a
    if isinstance(x, tirx.Shuffle) and len(set(map(int, x.indices))) > 1:  # lanes of a vector and of what follows it
        x = x.vectors[0]
    if not isinstance(x, TensorLoad):
        return None
    if not (isinstance(total.a, TensorLoad) and total.a.source.same_as(statement.buffer) and _equal(total.a.indices[0], place)):
        return None
    if not isinstance(x.indices[0], tirx.Ramp) or _reads_registers(total.b):
        return None
    if not (isinstance(place, tirx.Ramp) and isinstance(place.base, tirx.IntImm) and int(place.stride) == 1):
        return None
    if int(place.base) % int(place.lanes):  # it could overlap another
        return None
    base, offset = _split(x.indices[0].base, analyzer)
    return _Step(statement, (x.source, tvm_ffi.StructuralKey(base)), offset, (statement.buffer, int(place.base)))


def _ordered(run: Sequence[_Step]) -> Sequence[_Step]:
    """Multiply-adds of one input by its offset, or as they are where that changes the order of a sum."""
    last: dict[tuple[Expr, int] | None, int] = {}
    for step in run:
        if step.offset < last.get(step.total, step.offset):
            return run
        last[step.total] = step.offset
    return sorted(run, key=lambda step: step.offset)


def _reads_registers(expression: Expr) -> bool:
    """Whether an expression reads a buffer of registers."""
    loads: list[TensorLoad] = []
    tvm_ffi.structural_walk(expression, (TensorLoad, loads.append))
    return any(load.source.scope() == "local" for load in loads)


def _split(index: Expr, analyzer: Any) -> tuple[Expr, int]:
    """An index as a variable part and a constant."""
    index = analyzer.canonical_simplify(index)
    if isinstance(index, tirx.IntImm):
        return tirx.IntImm("int32", 0), int(index)
    if isinstance(index, tirx.Add) and isinstance(index.b, tirx.IntImm):
        return index.a, int(index.b)
    return index, 0


def _merged(run: Sequence[tirx.BufferStore], analyzer: Any) -> Sequence[tirx.Stmt]:
    """Statements that follow each other and write registers alone, with their inputs loaded together."""
    bases: list[Expr] = []

    def place(broadcast: tirx.Broadcast) -> tuple[TensorLoad, int, int] | None:
        """A broadcast element: the load, which of `bases` its index has, and how far from there; None for other broadcasts."""
        load = broadcast.value
        if not isinstance(load, TensorLoad) or str(load.ty.dtype) not in FLOATS or _reads_registers(load):
            return None
        base, offset = _split(load.indices[0], analyzer)
        number = next((number for number, known in enumerate(bases) if _equal(known, base)), len(bases))
        if number == len(bases):
            bases.append(base)
        return load, number, offset

    offsets: dict[tuple[Expr, int], set[int]] = {}

    def note(broadcast: tirx.Broadcast) -> None:
        if found := place(broadcast):
            load, number, offset = found
            offsets.setdefault((load.source, number), set()).add(offset)

    for statement in run:
        tvm_ffi.structural_walk(statement, ((tirx.Broadcast, note), ((tirx.Select, Call), _skip_guarded)), order="pre")
    firsts = {key: _firsts(sorted(found), _register_lanes(key[0])) for key, found in offsets.items()}
    if not any(firsts.values()):
        return run

    def merge(broadcast: tirx.Broadcast) -> Expr:
        found = place(broadcast)
        if found is None:
            return broadcast
        load, number, offset = found
        first = firsts.get((load.source, number), {}).get(offset)
        if first is None:
            return broadcast
        width, lanes = _register_lanes(load.source), int(broadcast.ty.dtype.lanes)
        vector = tirx.BufferLoad(load.source, [tirx.Ramp(bases[number] + first, tirx.IntImm("int32", 1), width)])
        return shuffle([vector], [offset - first] * lanes)

    return [tvm_ffi.structural_map(statement, (tirx.Broadcast, merge)) for statement in run]


def _skip_guarded(expression: tirx.Select | Call) -> tvm_ffi.WalkResult | None:
    """Walks past what is read only where a condition holds, such as inputs that lie outside of a buffer elsewhere."""
    guarded = isinstance(expression, tirx.Select) or getattr(expression.op, "name", "") == "prim.if_then_else"
    return tvm_ffi.WalkResult.SKIP if guarded else None


def _register_lanes(buffer: Expr) -> int:
    """Lanes of a vector register that holds elements of a buffer."""
    return REGISTER_BITS // int(buffer.ty.dtype.dtype.bits)


def _firsts(offsets: Sequence[int], lanes: int) -> dict[int, int]:
    """For each offset the first of the lanes that are loaded with it, where several are; none reaches past the outermost."""
    firsts: dict[int, int] = {}
    rows: list[list[int]] = []
    for offset in offsets:
        if rows and offset - rows[-1][-1] < lanes:
            rows[-1].append(offset)
        else:
            rows.append([offset])
    for row in rows:
        vectors = {offset: min(offset - (offset - row[0]) % lanes, row[-1] - lanes + 1) for offset in row}
        if row[-1] - row[0] >= lanes - 1 and len(set(vectors.values())) < len(row):
            firsts.update(vectors)
    return firsts


def _equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same."""
    return bool(a.same_as(b) or tvm_ffi.structural_equal(a, b))


def _finite(limit: Expr) -> bool:
    """Whether an expression is a constant, in all lanes, that is neither infinite nor NaN."""
    constant = limit.value if isinstance(limit, tirx.Broadcast) else limit
    return isinstance(constant, tirx.FloatImm) and math.isfinite(float(constant.value))
