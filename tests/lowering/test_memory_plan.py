"""The memory plan: no two live values overlap, and the arena is no larger than it need be."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.lowering.memory_plan import ALIGNMENT_BYTES, Lifetime, align, plan_memory


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    count = draw(st.integers(0, 12))
    values = []
    for index in range(count):
        first_use = draw(st.integers(0, 15))
        values.append(Lifetime(f"v{index}", draw(st.integers(0, 1000)), first_use, first_use + draw(st.integers(0, 6))))
    return values


@given(lifetimes())
def test_live_values_never_overlap(values: list[Lifetime]) -> None:
    plan = plan_memory(values)
    assert set(plan.offsets) == {value.name for value in values}
    assert plan.arena_bytes >= plan.lower_bound_bytes
    for value in values:
        assert plan.offsets[value.name] % ALIGNMENT_BYTES == 0
        assert plan.offsets[value.name] + value.nbytes <= plan.arena_bytes
    for one, other in itertools.combinations(values, 2):
        if one.overlaps(other) and one.nbytes and other.nbytes:
            start, end = plan.offsets[one.name], plan.offsets[one.name] + one.nbytes
            assert end <= plan.offsets[other.name] or plan.offsets[other.name] + other.nbytes <= start


@given(lifetimes())
def test_the_bound_is_the_largest_sum_of_live_bytes(values: list[Lifetime]) -> None:
    sums = [sum(align(value.nbytes) for value in values if value.first_use <= moment <= value.last_use) for moment in range(30)]
    assert plan_memory(values).lower_bound_bytes == max(sums)


@given(lifetimes())
def test_the_plan_is_a_pure_function(values: list[Lifetime]) -> None:
    assert plan_memory(values) == plan_memory(list(values))


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [400, 1200, 1200, 300, 900, 64]
    chain = [Lifetime(f"v{index}", nbytes, index, index + 1) for index, nbytes in enumerate(sizes)]
    plan = plan_memory(chain)
    assert plan.arena_bytes == plan.lower_bound_bytes == 2 * align(1200)


def test_an_arena_has_an_address() -> None:
    plan = plan_memory([])
    assert (plan.arena_bytes, plan.lower_bound_bytes) == (ALIGNMENT_BYTES, 0)


def test_an_inverted_residual_reaches_the_bound() -> None:
    # The block's input lives on beside both expanded tensors until it is added.
    values = [Lifetime("x", 256, 0, 3), Lifetime("wide", 1536, 1, 2), Lifetime("dw", 1536, 2, 3), Lifetime("y", 256, 3, 4)]
    plan = plan_memory(values)
    assert plan.arena_bytes == plan.lower_bound_bytes == 256 + 1536 + 1536


def test_neighbours_of_a_chain_lie_at_either_end() -> None:
    """Placed as low as they fit, these values and the scratch between them would take a ninth more."""
    sizes, scratch = (39, 20, 19, 22, 39, 26, 20, 16, 17, 9, 35, 31), {0: 15, 4: 9, 5: 3, 6: 20, 7: 9, 11: 6}
    values = [Lifetime(f"v{call}", 64 * size, call, call + 1 + (call == 7)) for call, size in enumerate(sizes)]
    values += [Lifetime(f"s{call}", 64 * size, call, call) for call, size in scratch.items()]
    plan = plan_memory(values)
    assert plan.arena_bytes == plan.lower_bound_bytes


def test_a_view_lies_where_its_base_lies_and_keeps_it_alive() -> None:
    values = [Lifetime("base", 128, 0, 1), Lifetime("view", 128, 1, 4), Lifetime("later", 64, 2, 3)]
    plan = plan_memory(values, aliases={"view": "base"})
    assert plan.offsets["view"] == plan.offsets["base"]
    assert plan.offsets["later"] >= 128 or plan.offsets["base"] >= 64


def test_a_view_of_a_view_shares_the_first_base() -> None:
    values = [Lifetime("a", 64, 0, 1), Lifetime("b", 64, 1, 2), Lifetime("c", 64, 2, 3), Lifetime("d", 64, 0, 3)]
    plan = plan_memory(values, aliases={"b": "a", "c": "b"})
    assert plan.offsets["a"] == plan.offsets["b"] == plan.offsets["c"] != plan.offsets["d"]
    assert plan.arena_bytes == 128


@pytest.mark.parametrize(
    ("values", "aliases", "message"),
    [
        ([Lifetime("a", 1, 0, 0), Lifetime("a", 1, 0, 0)], {}, "given twice"),
        ([Lifetime("a", 1, 3, 2)], {}, "last use 2 is before first use 3"),
        ([Lifetime("a", 1, 0, 0)], {"a": "b"}, "view of 'b'"),
    ],
)
def test_malformed_lifetimes_are_refused(values: list[Lifetime], aliases: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_memory(values, aliases=aliases)
