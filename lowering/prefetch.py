"""Prefetches of what the next iteration of a loop will read, where no prefetcher of a core foresees it.

A prefetcher follows a few sequences of lines that lie behind each other. A rectangle of outputs reads a few lines of each of
its rows, which are more than a small core follows; and in the next block of channels the same rows of another plane: every row
begins anew, and its first lines are waited for.

    # for ic_o:                              for ic_o:
    #   for t: f(x[P ic_o + T t + ...])  ->    for t: prefetch(x[P (ic_o + 1) + T t + last of each row]); f(...)

The lines that a tile reads and the tile before it does not are asked for once, an iteration of the marked loop early, but for
those that this iteration reads itself: half of them at the head of the tile, half where it reads what lies before the first of
that half, so that a core has room for them; not beside each row, which costs LLVM registers. The last iteration asks for lines
behind its own, which is allowed for any address: of a packed tensor these are the first of the next plane. It runs on flat
functions, their tiles unrolled and their statements in order.

A reduction that reads weights and the same channels of many pixels has two streams at least, and those of a tile's pixels begin
anew in each block of channels. There every load of a tensor asks for what lies a distance behind it (`advanced_simd`).

Weights of a tile of channels are read once for each tile of pixels, from level 2; those of the next tile of channels come from
beyond it, all of them in the first pass over the pixels, while memory rests in all others. So a tile's iterations ask for the
weights of the next one, each for as few lines as there are iterations for:

    # for p: for ic_o: f(w[...])  ->  for p: for ic_o: prefetch(w[next tile's line n (P p + ic_o)], ... n of them); f(w[...])

Behind the last tile lie the bias and what the next kernel of a network reads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType
from tvm.ir.expr import StringImm, TensorLoad, Var

from sepwise.lowering.cost import LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tvm import s_tir

    Expr = Any  # tvm has no type stubs

__all__ = [
    "AHEAD_LOOP",
    "MOST_LINES",
    "PREFETCH_LOOP",
    "STREAM_LOOPS",
    "ask_for_next_tiles",
    "mark_next_tile",
    "mark_prefetch",
    "mark_streams",
    "prefetch_code",
    "prefetch_next",
    "stream_distances",
]

PREFETCH_LOOP: Final = "sepwise.prefetch"
"""Annotation of a loop, `"parameter,elements"`: what its next iteration reads elsewhere, and how far from its own, 0 where the
loop's variable tells."""

STREAM_LOOPS: Final = "sepwise.streams"
"""Annotation of the loop of a reduction, `"parameter,elements"` joined by `;`: what is asked for, how far behind each load."""


AHEAD_LOOP: Final = "sepwise.ahead"
"""Annotation of the loops over a tile's passes and its reduction, the iterations of each; behind those of the inmost one
`";parameter,elements"`: of a tile."""

MOST_LINES: Final = 32
"""Lines that an iteration asks for at most: beyond there are so few iterations that what is asked for comes too late."""

LEVEL_1, LEVEL_2 = 3, 2
"""How near a line is to come, in LLVM's terms."""


def prefetch_code(name: str, level: int = LEVEL_1) -> str:
    """Gives LLVM's intermediate code of a function `name(address)` that asks for a line.

    Args:
        name: What calls name it, another in each module that LLVM links.
        level: How near it is to come.
    """
    return f"""
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @{name}(i64 %place) {{
  %address = inttoptr i64 %place to ptr
  call void @llvm.prefetch.p0(ptr %address, i32 0, i32 {level}, i32 1)
  ret void
}}
"""


_CODE: Final = f"""{prefetch_code("sepwise_prefetch")}
define i64 @sepwise_ahead(ptr %address, i64 %distance) {{
  %place = ptrtoint ptr %address to i64
  %sum = add i64 %place, %distance
  %ahead = call i64 asm "", "=r,0"(i64 %sum) memory(none)
  ret i64 %ahead
}}
"""
"""The first keeps an address in a register, to which prefetches add a constant."""


def mark_prefetch(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV, parameter: str, *, elements: int = 0) -> None:
    """Notes that the next iteration of a loop reads a parameter where no prefetcher foresees it.

    Args:
        sch: The schedule.
        loop: The loop.
        parameter: The parameter's name.
        elements: How far behind its own the next iteration reads, for loops whose last iterations are moved back or whose
            indices are tested; else the loop's variable tells.
    """
    sch.annotate(loop, PREFETCH_LOOP, f"{parameter},{elements}")


def mark_next_tile(
    sch: s_tir.Schedule, loops: Sequence[tuple[s_tir.schedule.LoopRV, int]], parameter: str, elements: int
) -> None:
    """Notes that a tile asks for the weights of the next one.

    Args:
        sch: The schedule.
        loops: Over passes and over the reduction, with the iterations of each in a task, outer first; what is inside of the last
            one that has several is one iteration.
        parameter: The weights' name.
        elements: Of a tile's weights, which lie together.
    """
    counted = [(loop, extent) for loop, extent in loops if extent > 1]
    for place, (loop, extent) in enumerate(counted):
        last = place == len(counted) - 1
        sch.annotate(loop, AHEAD_LOOP, f"{extent};{parameter},{elements}" if last else f"{extent}")


def mark_streams(sch: s_tir.Schedule, loops: Sequence[s_tir.schedule.LoopRV], distances: Mapping[str, int]) -> None:
    """Notes that a reduction asks for what lies behind its loads.

    Args:
        sch: The schedule.
        loops: Of the reduction, those that are not unrolled: the inmost of more than one iteration counts.
        distances: Elements behind each load, by the parameter's name.
    """
    longer = [loop for loop in loops if int(sch.get(loop).extent) > 1]
    if distances and longer:
        sch.annotate(longer[-1], STREAM_LOOPS, ";".join(f"{name},{elements}" for name, elements in distances.items()))


def stream_distances(loop: tirx.For) -> dict[str, int]:
    """Gives what a loop's mark says, empty where it has none."""
    parts = (part.split(",") for part in str(loop.annotations.get(STREAM_LOOPS, "")).split(";") if part)
    return {name: int(elements) for name, elements in parts}


def ask_for_next_tiles(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Writes the prefetches of tiles that ask for the weights of the next one; see above.

    Args:
        function: Flat and vectorised, its tiles unrolled.

    Returns:
        The function without marks, with LLVM's intermediate code of what it calls.
    """
    around: list[tuple[Var, int]] = []
    asked: list[int] = []

    def visit(statement: tirx.Stmt) -> tirx.Stmt:
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([visit(each) for each in statement.seq])
        if isinstance(statement, tirx.IfThenElse):
            other = None if statement.else_case is None else visit(statement.else_case)
            return tirx.IfThenElse(statement.condition, visit(statement.then_case), other)
        if isinstance(statement, tirx.AttrStmt):
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, visit(statement.body))
        if not isinstance(statement, tirx.For):
            return statement
        extent, _, tile = str(statement.annotations.get(AHEAD_LOOP, "")).partition(";")
        if not extent:
            return _with_body(statement, visit(statement.body))
        around.append((statement.loop_var, int(extent)))
        body = visit(statement.body)
        if tile:
            parameter, elements = tile.split(",")
            prefetches = _next_tile(body, around, parameter, int(elements))
            asked.append(len(prefetches))
            body = tirx.SeqStmt([*prefetches, body]) if prefetches else body
        around.pop()
        return _with_body(statement, body, AHEAD_LOOP)

    body = visit(function.body)
    if any(asked):
        code = prefetch_code("sepwise_prefetch_weights", LEVEL_2)
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(code), body)
    return function.with_body(body)


def _with_body(loop: tirx.For, body: tirx.Stmt, *marks: str) -> tirx.For:
    """A loop with another body and without some annotations."""
    left = {key: value for key, value in loop.annotations.items() if key not in marks}
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, left)


def _next_tile(body: tirx.Stmt, loops: Sequence[tuple[Var, int]], parameter: str, elements: int) -> list[tirx.Stmt]:
    """What an iteration asks for of the next tile's weights; nothing where it is too much, or where none are read as vectors."""
    loads: list[TensorLoad] = []
    tvm_ffi.structural_walk(body, (TensorLoad, loads.append))
    load = next((each for each in loads if each.source.name == parameter and isinstance(each.indices[0], tirx.Ramp)), None)
    if load is None:
        return []
    inner: list[Var] = [variable for variable, _ in loops]
    tvm_ffi.structural_walk(body, (tirx.For, lambda loop: inner.append(loop.loop_var)))
    zero = tirx.IntImm("int32", 0)
    start = tvm_ffi.structural_map(
        load.indices[0].base, (Var, lambda v: zero if any(v.same_as(each) for each in inner) else v)
    )
    line = LINE_BYTES * 8 // int(load.source.ty.dtype.dtype.bits)
    lines, count, iteration = math.ceil(elements / line), 1, zero
    for variable, extent in loops:
        count, iteration = count * extent, iteration * extent + variable
    each = math.ceil(lines / count)
    if each > MOST_LINES:
        return []
    first = tirx.min(iteration * each, lines) * line
    here = tirx.address_of(tirx.BufferLoad(load.source, [start]))
    return [
        tirx.Evaluate(tirx.call_extern("void", "sepwise_prefetch_weights", tirx.reinterpret("int64", here) + place))
        for place in (tirx.Cast("int64", first + elements + line * number) * (LINE_BYTES // line) for number in range(each))
    ]


def prefetch_next(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Writes the prefetches of marked loops; see above.

    Args:
        function: Flat and vectorised, its tiles unrolled.

    Returns:
        The function without marks, with LLVM's intermediate code of what it calls.
    """
    analyzer = tvm.sym.Analyzer()
    marked: list[tirx.For] = []

    def on_loop(loop: tirx.For) -> tirx.Stmt:
        if PREFETCH_LOOP not in loop.annotations:
            return loop
        marked.append(loop)
        body = _with_prefetches(loop.body, loop, None, analyzer)
        annotations = {key: value for key, value in loop.annotations.items() if key != PREFETCH_LOOP}
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, annotations)

    body = tvm_ffi.structural_map(function.body, (tirx.For, on_loop))
    if marked:
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(_CODE), body)
    return function.with_body(body)


def _with_prefetches(body: tirx.Stmt, marked: tirx.For, tile: Var | None, analyzer: Any) -> tirx.Stmt:
    """The body of a marked loop or of one inside, whose variable is `tile`, with prefetches at the head of each tile."""
    if isinstance(body, tirx.For):
        inner = _with_prefetches(body.body, marked, body.loop_var, analyzer)
        return tirx.For(body.loop_var, body.min, body.extent, body.kind, inner, body.thread_binding, body.annotations)
    if isinstance(body, tirx.IfThenElse):
        case, otherwise = body.then_case, body.else_case
        other = None if otherwise is None else _with_prefetches(otherwise, marked, tile, analyzer)
        return tirx.IfThenElse(body.condition, _with_prefetches(case, marked, tile, analyzer), other)
    if not isinstance(body, tirx.SeqStmt):
        return body
    statements = [_with_prefetches(each, marked, tile, analyzer) for each in body.seq]
    loads: list[tuple[TensorLoad, int]] = []
    parameter, elements = str(marked.annotations[PREFETCH_LOOP]).split(",")
    for number, statement in enumerate(statements):
        found: list[TensorLoad] = []
        if isinstance(statement, tirx.BufferStore):
            tvm_ffi.structural_walk(statement.value, (TensorLoad, found.append))
        vectors = (load for load in found if load.source.name == parameter and isinstance(load.indices[0], tirx.Ramp))
        loads += [(load, number) for load in vectors]
    before = _prefetches(loads, int(elements) or marked.loop_var, tile, analyzer)
    return tirx.SeqStmt([each for number, statement in enumerate(statements) for each in (*before.get(number, ()), statement)])


def _prefetches(
    loads: Iterable[tuple[TensorLoad, int]], marked: Var | int, tile: Var | None, analyzer: Any
) -> dict[int, list[tirx.Stmt]]:
    """Prefetches of what vector loads of one parameter will read in the next iteration of the marked loop.

    Args:
        loads: Each with the number of its statement.
        marked: The variable of the marked loop, or how far behind its own the next iteration reads.
        tile: That of the loop over tiles, None for a tile that is apart.
        analyzer: TVM's.

    Returns:
        What stands before which statement.
    """
    places: list[tuple[TensorLoad, Expr, dict[int, int]]] = []
    for load, number in loads:
        index = load.indices[0].base
        apart = ((analyzer.simplify(index - base), readers) for _, base, readers in places)
        known = ((int(offset), readers) for offset, readers in apart if isinstance(offset, tirx.IntImm))
        found: tuple[int, dict[int, int]] | None = next(known, None)
        if found is None:
            found = 0, {}
            places.append((load, index, found[1]))
        found[1].setdefault(found[0], number)
    before: dict[int, list[tirx.Stmt]] = {}
    for load, base, readers in places:
        ahead = marked if isinstance(marked, int) else _step(base, marked, analyzer)
        if not ahead:
            continue
        element_bytes = int(load.source.ty.dtype.dtype.bits) // 8
        step = None if tile is None else _step(base, tile, analyzer)
        offsets = _first_read(readers, LINE_BYTES // element_bytes, ahead, step)
        if not offsets:
            continue
        here = tirx.address_of(tirx.BufferLoad(load.source, [base + offsets[0]]))
        place = Var("ahead", PrimType("int64"))
        start = tirx.call_extern("int64", "sepwise_ahead", here, tirx.IntImm("int64", ahead * element_bytes))
        before.setdefault(0, []).append(tirx.Bind(place, start))
        first, middle = 0, len(offsets) // 2
        for at, offset in enumerate(offsets):
            if at and at == middle:
                first = readers[min(read for read in readers if read >= offset)]  # lines may lie between two reads
            beyond = tirx.IntImm("int64", (offset - offsets[0]) * element_bytes)
            ask = tirx.call_extern("void", "sepwise_prefetch", place + beyond)
            before.setdefault(first, []).append(tirx.Evaluate(ask))
    return before


def _first_read(offsets: Iterable[int], line: int, ahead: int, step: int | None) -> list[int]:
    """Gives an offset in each line that a tile is the first to read in the next iteration.

    Args:
        offsets: All that it reads.
        line: Elements of a line.
        ahead: Elements that iterations are apart: what this one reads too is left out.
        step: Elements that tiles are apart: what the tile before reads is left out; None where there is none before.

    Returns:
        Offsets, row by row.
    """
    read = set(offsets)
    runs: list[tuple[int, int]] = []
    for offset in sorted(read):
        if offset + ahead in read or (step is not None and offset + step in read):
            continue
        if runs and offset - runs[-1][1] < line:
            runs[-1] = runs[-1][0], offset
        else:
            runs.append((offset, offset))
    found = []
    for first, last in runs:
        asked = set(range(last, first - 1, -line))
        found += sorted(asked | {first} if step is None else asked)
    return found


def _step(base: Expr, variable: Var, analyzer: Any) -> int | None:
    """How far an index moves with a variable's next value; None where that is no constant."""
    later = tvm_ffi.structural_map(base, (Var, lambda v: v + 1 if v.same_as(variable) else v))
    step = analyzer.simplify(later - base)
    return int(step) if isinstance(step, tirx.IntImm) else None

