"""What a Program says of itself without running."""

from dataclasses import replace

import numpy as np
import pytest

from sepwise.lowering.graph import TensorType
from sepwise.lowering.program import BufferRef, Home, KernelCall, Program, Value

TYPE = TensorType((1, 4))


def call(scratch_bytes: int) -> KernelCall:
    arguments = (BufferRef(Home.INPUT, 0), BufferRef(Home.OUTPUT, 0))
    return KernelCall("k", "net_k", arguments, ("x",), ("y",), 1, scratch_bytes, 0, 0, ("Relu_0",), "generic")


@pytest.fixture
def program() -> Program:
    return Program(
        name="net",
        device="host",
        calls=(),
        inputs=(Value("x", TYPE, BufferRef(Home.INPUT, 0)),),
        outputs=(Value("y", TYPE, BufferRef(Home.OUTPUT, 0)), Value("z", TYPE, BufferRef(Home.OUTPUT, 1))),
        values=(Value("t", TYPE, BufferRef(Home.ARENA, 64)), Value("z", TYPE, BufferRef(Home.ARENA, 0))),
        constants=np.zeros(0, np.uint8),
        arena_bytes=128,
        arena_lower_bound_bytes=128,
        object_code=b"",
    )


@pytest.mark.parametrize(("needs", "scratch"), [([], 0), ([0, 0], 0), ([1], 64), ([64], 64), ([65, 3, 0], 128)])
def test_scratch_is_the_largest_in_whole_lines(program: Program, needs: list[int], scratch: int) -> None:
    assert replace(program, calls=tuple(call(need) for need in needs)).scratch_bytes == scratch


def test_each_worker_behind_the_first_adds_its_scratch(program: Program) -> None:
    program = replace(program, calls=(call(65), call(3)))
    assert [program.memory_bytes(workers) for workers in (1, 2, 5)] == [128, 128 + 128, 128 + 4 * 128]


@pytest.mark.parametrize(("name", "home", "offset"), [("x", Home.INPUT, 0), ("t", Home.ARENA, 64), ("y", Home.OUTPUT, 0)])
def test_values_are_found_by_name(program: Program, name: str, home: Home, offset: int) -> None:
    found = program.find_value(name)
    assert (found.name, found.buffer) == (name, BufferRef(home, offset))


def test_an_intermediate_goes_before_an_output_of_its_name(program: Program) -> None:
    assert program.find_value("z").buffer == BufferRef(Home.ARENA, 0)


def test_unknown_values_are_key_errors(program: Program) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        program.find_value("nowhere")


def test_a_program_has_no_tail_unless_given(program: Program) -> None:
    assert program.tail is None
