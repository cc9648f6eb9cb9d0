"""The C of a Program: its kernel calls in order, over the caller's memory.

The generated file needs nothing but `stddef.h` and `stdint.h`: no allocation, no writable global, no library. Its entries are

    int32_t <prefix>_run(constants, inputs, outputs, arena, parallel_for, context)
    int32_t <prefix>_run_range(first, last, constants, inputs, outputs, arena, parallel_for, context)

`parallel_for` runs the tasks of a call on workers; where it is NULL they run one after the other. The first worker's scratch lies
in the arena, where the memory plan has room for it while the call runs; each further one has `<prefix>_scratch_bytes` behind the
arena. Every pointer is aligned to 64 bytes.

On x86 kernels run with MXCSR's flush-to-zero and denormals-are-zero set, as the vector units of Armv7 always do: a multiply-add
of a number below the normal range is done in microcode there, at a hundred times the cost, and trained weights hold thousands of
them (PP-OCRv4: the channels that training has switched off). The caller's mode is restored.

For checks, each call may be there once more, alone: behind the last, call `calls + i` is call `i` on memory of the caller's, its
arguments by their positions among `inputs`, and in place of the arena the scratch of all workers side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sepwise.lowering.program import BufferRef, Home

if TYPE_CHECKING:
    from sepwise.lowering.program import KernelCall, Program

__all__ = ["ENTRY", "PREFIX", "generate_c"]

PREFIX = "model"
"""Prefix of the entries where the caller gives none."""

ENTRY = f"{PREFIX}_run_range"
"""The entry that runners call."""

_HEAD = """\
#include <stddef.h>
#include <stdint.h>

typedef void (*sepwise_task)(const void *argument, int32_t task, int32_t worker);
typedef void (*sepwise_parallel_for)(void *context, int32_t tasks, sepwise_task task, const void *argument);

struct memory {
  const uint8_t *constants;
  const void *const *inputs;
  void *const *outputs;
  uint8_t *arena;
};

/* Has numbers below the normal range taken and given as 0; returns the mode before. */
static inline uint32_t flush_subnormals(void) {
#if defined(__x86_64__)
  uint32_t mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  return mode;
#else
  return 0;
#endif
}

static inline void restore_mode(uint32_t mode) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(mode);
#else
  (void)mode;
#endif
}

struct shared {
  const struct memory *m;
  sepwise_task task;
};

/* A task in a worker's thread, which has a mode of its own. */
static void run_shared(const void *argument, int32_t index, int32_t worker) {
  const struct shared *s = argument;
  uint32_t mode = flush_subnormals();
  s->task(s->m, index, worker);
  restore_mode(mode);
}

static inline void launch(const struct memory *m, int32_t tasks, sepwise_task task, sepwise_parallel_for parallel_for,
                          void *context) {
  const struct shared s = {m, task};
  if (parallel_for && tasks > 1)
    parallel_for(context, tasks, run_shared, &s);
  else
    for (int32_t i = 0; i < tasks; ++i) task(m, i, 0);
}
"""

_ENTRIES = """\
int32_t {prefix}_run_range(int32_t first, int32_t last, const void *constants, const void *const *inputs,
                           void *const *outputs, void *arena, sepwise_parallel_for parallel_for, void *context) {{
  const struct memory m = {{constants, inputs, outputs, arena}};
  uint32_t mode = flush_subnormals();
  int32_t status = 0;
  for (int32_t call = first; !status && call < last; ++call) {{
    switch (call) {{
{cases}
      default: status = -1;
    }}
  }}
  restore_mode(mode);
  return status;
}}

int32_t {prefix}_run(const void *constants, const void *const *inputs, void *const *outputs, void *arena,
                     sepwise_parallel_for parallel_for, void *context) {{
  return {prefix}_run_range(0, {calls}, constants, inputs, outputs, arena, parallel_for, context);
}}
"""


def generate_c(program: Program, *, prefix: str = PREFIX, alone: bool = False) -> str:
    """Writes the C of a Program.

    Args:
        program: Its kernels are declared, its object is linked beside the result.
        prefix: Prefix of the entries, a C identifier.
        alone: Whether each call can also be run alone.

    Returns:
        One C file.

    Raises:
        ValueError: `prefix` or a kernel's symbol is no C identifier, or a symbol is called with different numbers of
            arguments.
    """
    for name in (prefix, *(call.symbol for call in program.calls)):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is no C identifier")
    each_bytes = program.scratch_bytes
    functions = [_call_function(index, call, program.arena_bytes, each_bytes) for index, call in enumerate(program.calls)]
    if alone:
        moved = enumerate(map(_by_position, program.calls), len(functions))
        functions += [_call_function(index, call, each_bytes, each_bytes) for index, call in moved]
    parts = [
        f"/* {_as_comment(program.name)} for {_as_comment(program.device)}, generated by sepwise. */",
        _HEAD,
        *_declarations(program),
        "",
        f"const int64_t {prefix}_arena_bytes = {program.arena_bytes};",
        f"const int64_t {prefix}_scratch_bytes = {each_bytes}; /* of each worker behind the first */",
        f"const int64_t {prefix}_constant_bytes = {program.constants.nbytes};",
        "",
        *functions,
        _ENTRIES.format(
            prefix=prefix,
            calls=len(program.calls),
            cases="\n".join(
                f"      case {index}: launch(&m, {tasks}, call_{index}, parallel_for, context); break;"
                for index, tasks in enumerate([call.tasks for call in program.calls] * (1 + alone))
            ),
        ),
    ]
    return "\n".join(parts)


def _as_comment(text: str) -> str:
    """Keeps a name from ending the comment that it stands in."""
    return re.sub(r"[^\w .,:+-]", "_", text)


def _declarations(program: Program) -> Iterator[str]:
    """Declares every kernel once."""
    arities: dict[str, int] = {}
    for call in program.calls:
        if arities.setdefault(call.symbol, len(call.arguments)) != len(call.arguments):
            raise ValueError(
                f"kernel '{call.symbol}' is called with {arities[call.symbol]} and with {len(call.arguments)} arguments"
            )
    for symbol, count in arities.items():
        yield f"extern void {symbol}({'void *, ' * count}void *scratch, int32_t task);"


def _call_function(index: int, call: KernelCall, others_at: int, each_bytes: int) -> str:
    """Writes the function that runs one task of a call; `others_at` is where the scratch of the second worker begins."""
    scratch = "m->arena"
    if call.scratch_bytes:
        scratch += f" + (worker ? {others_at} + (size_t)(worker - 1) * {each_bytes} : {call.scratch_offset})"
    arguments = ", ".join([*(_pointer(reference) for reference in call.arguments), scratch, "task"])
    unused = "" if call.scratch_bytes else "  (void)worker;\n"
    return (
        f"/* {_as_comment(call.name)} */\n"
        f"static void call_{index}(const void *argument, int32_t task, int32_t worker) {{\n"
        f"  const struct memory *m = argument;\n{unused}"
        f"  {call.symbol}({arguments});\n"
        "}\n"
    )


def _by_position(call: KernelCall) -> KernelCall:
    """The call on arguments and scratch of the caller's."""
    arguments = tuple(BufferRef(Home.INPUT, place) for place in range(len(call.arguments)))
    return replace(call, arguments=arguments, scratch_offset=0)


def _pointer(reference: BufferRef) -> str:
    """Writes the address of an argument."""
    match reference.home:
        case Home.ARENA:
            return f"m->arena + {reference.offset}"
        case Home.CONSTANT:
            return f"(void *)(m->constants + {reference.offset})"
        case Home.INPUT:
            return f"(void *)m->inputs[{reference.offset}]"
        case Home.OUTPUT:
            return f"m->outputs[{reference.offset}]"
