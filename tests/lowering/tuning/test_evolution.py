"""MetaSchedule's evolutionary search over declared tiles, with times that a function gives."""

import sys
from collections.abc import Callable

import pytest

from sepwise.lowering import device
from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.evolution import INTRINSICS, Evolution
from sepwise.lowering.tuning.space import Candidate, list_candidates
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage

A72 = device.get("cortex-a72")
BATCH = 8
POINTWISE = Stage(96, 64, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))
DEPTHWISE = Stage(16, 16, 16, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
WIDE = ConvWorkload(1, (28, 28), (POINTWISE,), False, None, 4, 4)
WORKLOADS = {
    "pointwise": WIDE,
    "depthwise": ConvWorkload(1, (14, 14), (DEPTHWISE,), False, None, 4, 4),
    "chain": ConvWorkload(1, (14, 14), (DEPTHWISE, Stage(16, 24, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))), True, None, 4, 4),
    "plain": ConvWorkload(1, (9, 9), (DEPTHWISE,), False, None, 0, 0),
    "linear": LinearWorkload(4, 32, 40),
}


def odd(pick: Pick) -> float:
    """Times that contradict the prediction: one vector of channels and many pixels are best."""
    sizes = dict(pick.sizes)
    return (1.0 + sizes["oc_vectors"]) * (1.0 + 0.1 * abs(sizes["pixels"] - 6))


def tune(time: Callable[[Pick], float | None], batches: int) -> tuple[list[Candidate], list[list[Pick]]]:
    """The space, and what is proposed batch after batch."""
    candidates = list_candidates(WIDE, A72, 1)
    evolution, queue = Evolution(WIDE, candidates, A72, batch=BATCH), list(candidates)
    proposed = []
    for _ in range(batches):
        batch = evolution.propose(queue, BATCH)
        proposed.append([each.pick for each in batch])
        for each in batch:
            queue.remove(each)
            evolution.learn(each.pick, time(each.pick))
    return candidates, proposed


@pytest.mark.parametrize("kind", WORKLOADS)
def test_every_proposal_is_declared_and_new_and_all_come_in_the_end(kind: str) -> None:
    candidates = list_candidates(WORKLOADS[kind], A72, 1)[:30]
    evolution, queue = Evolution(WORKLOADS[kind], candidates, A72, batch=BATCH), list(candidates)
    while queue:
        batch = evolution.propose(queue, BATCH)
        assert len(batch) == min(BATCH, len(queue))
        for each in batch:
            queue.remove(each)
            evolution.learn(each.pick, 1.0)
    assert evolution.propose(queue, BATCH) == []


def test_it_follows_what_was_timed_where_the_prediction_is_wrong() -> None:
    """What is fastest of all is far behind in the order of prediction, and among the first tenth that is proposed."""
    candidates, proposed = tune(odd, 5)
    tried = {pick for batch in proposed for pick in batch}
    assert len(tried) == 5 * BATCH
    by_time = sorted(candidates, key=lambda each: odd(each.pick))
    ahead = [each.pick for each in candidates[: 5 * BATCH]]
    assert min(map(odd, tried)) < min(map(odd, ahead))
    assert min(map(odd, tried)) <= odd(by_time[len(by_time) // 50].pick)
    means = [sum(map(odd, batch)) / len(batch) for batch in proposed]
    assert means[-1] < means[0] / 1.5


def test_the_first_proposals_are_those_that_are_predicted_best() -> None:
    candidates, (first,) = tune(odd, 1)
    cycles = {each.pick: each.cycles for each in candidates}
    middle = candidates[len(candidates) // 2].cycles
    assert sum(cycles[pick] < middle for pick in first) >= BATCH - 1


def test_refused_candidates_are_no_obstacle() -> None:
    _, proposed = tune(lambda _: None, 3)
    assert len({pick for batch in proposed for pick in batch}) == 3 * BATCH


def test_what_won_elsewhere_comes_first() -> None:
    candidates = list_candidates(WIDE, A72, 1)
    gone = Pick("no such strategy", ())
    evolution = Evolution(WIDE, candidates, A72, batch=BATCH, first=[gone, candidates[-1].pick])
    assert evolution.propose(candidates, 1) == [candidates[-1]]


def test_it_goes_on_from_what_is_known() -> None:
    candidates = list_candidates(WIDE, A72, 1)
    known = {each.pick: odd(each.pick) for each in candidates[::7]}
    queue = [each for each in candidates if each.pick not in known]
    means = []
    for start in ({}, known):
        batch = Evolution(WIDE, candidates, A72, batch=BATCH, known=start).propose(queue, BATCH)
        means.append(sum(odd(each.pick) for each in batch) / BATCH)
    assert means[1] < means[0]


def test_no_intrinsics_are_left_behind() -> None:
    before = sys.modules.get(INTRINSICS)
    Evolution(WIDE, list_candidates(WIDE, A72, 1), A72, batch=BATCH)
    assert sys.modules.get(INTRINSICS) is before
