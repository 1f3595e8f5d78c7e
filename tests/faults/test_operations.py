"""Limits and stragglers from the times of operations: clocks of ranks that wait for each other, simulated."""

from pathlib import Path

import numpy as np
import pytest

from emergence_train.faults import operations
from emergence_train.faults.operations import Operations, Times, hang_limit, stragglers

USUAL = {"writing rows": 0.001, "loading samples": 0.01, "forward": 0.3, "backward": 0.6, "optimizer step": 0.05}


def simulate(ranks: int, steps: int, slow: dict[int, dict[str, float]], meets: set[str], seed: int = 1) -> dict:
    """Each rank's Times after `steps`, by a clock for each: work takes its time and a little more; in the operations of `meets`,
    and at the end of a step, all leave when the last has come.

    `slow`: seconds more by rank and operation.
    """
    random, clocks = np.random.default_rng(seed), np.zeros(ranks)
    sums = {rank: dict.fromkeys([*USUAL, operations.LAST], 0.0) for rank in range(ranks)}
    for _ in range(steps):
        for operation, seconds in {**USUAL, operations.LAST: 0.002}.items():
            began = clocks.copy()
            more = np.array([slow.get(rank, {}).get(operation, 0.0) for rank in range(ranks)])
            clocks += seconds * random.uniform(1.0, 1.05, ranks) + more
            if operation in meets or operation == operations.LAST:
                clocks[:] = clocks.max()
            for rank in range(ranks):
                sums[rank][operation] += clocks[rank] - began[rank]
    return {rank: {name: Times(steps, total, 1.0) for name, total in of.items()} for rank, of in sums.items()}


def named(ranks: int, slow: dict, meets: set[str], steps: int = 50) -> list[tuple[int, str]]:
    before = {rank: {} for rank in range(ranks)}
    return [(s.rank, s.operation) for s in stragglers(before, simulate(ranks, steps, slow, meets))]


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("operation", ["writing rows", "loading samples", "forward", "optimizer step"])
def test_a_slow_rank_is_named_with_its_operation(ranks, operation):
    """Gradients are reduced in the backward pass, so the others wait there."""
    slow = {ranks - 1: {operation: 0.4}}
    assert named(ranks, slow, {"backward"}) == [(ranks - 1, operation)]


def test_how_much_slower_is_what_was_put_in():
    (straggler,) = stragglers({r: {} for r in range(4)}, simulate(4, 50, {2: {"loading samples": 0.5}}, {"backward"}))
    assert straggler.seconds == pytest.approx(0.5, abs=0.01)
    assert straggler.share == pytest.approx(0.5 / (sum(USUAL.values()) * 1.03 + 0.5), abs=0.03)


def test_several_slow_ranks_and_none():
    slow = {1: {"forward": 0.5}, 5: {"loading samples": 0.6}}
    assert named(8, slow, {"backward"}) == [(5, "loading samples")], "the first to be waited for"
    assert named(8, {1: {"forward": 0.5}, 5: {"forward": 0.6}}, {"backward"}) == [(1, "forward"), (5, "forward")]
    assert named(8, {}, {"backward"}) == [] and named(2, {}, set()) == []


def test_a_small_difference_or_a_short_window_is_no_straggler():
    assert named(4, {1: {"forward": 0.1}}, {"backward"}) == []
    assert named(4, {1: {"forward": 0.5}}, {"backward"}, steps=operations.STEPS - 1) == []


def test_a_rank_slow_where_all_meet_is_not_seen():
    """The documented limit: under ZeRO-3 the others wait within the forward pass, which takes all of them the same time."""
    assert named(4, {1: {"forward": 0.5}}, {"forward", "backward"}) == []


def test_a_window_counts_from_its_beginning():
    first, second = (
        simulate(3, 50, {}, {"backward"}),
        simulate(3, 50, {0: {"forward": 0.4}}, {"backward"}, seed=2),
    )
    both = {
        rank: {name: Times(100, first[rank][name].seconds + second[rank][name].seconds, 1.0) for name in second[rank]}
        for rank in second
    }
    assert [(s.rank, s.operation) for s in stragglers(first, both)] == [(0, "forward")]


@pytest.mark.parametrize(
    ("count", "longest", "most", "limit"),
    [
        (0, 0.0, 1800.0, 1800.0),  # not seen yet
        (7, 1.0, 1800.0, 1800.0),  # too seldom
        (8, 1.0, 1800.0, 600.0),  # the floor
        (1000, 40.0, 1800.0, 800.0),
        (1000, 200.0, 1800.0, 1800.0),  # what was configured
        (1000, 1.0, 60.0, 60.0),
    ],
)
def test_the_hang_limit_is_learned_within_bounds(count, longest, most, limit):
    assert hang_limit((count, count * longest / 2, longest), most) == limit
    assert hang_limit(None, most) == most


def test_operations_add_up_what_each_took(monkeypatch):
    now = iter([10.0, 12.0, 13.0, 17.0, 18.5])
    monkeypatch.setattr(operations.time, "monotonic", lambda: next(now))
    own = Operations()
    for name in ("forward", "backward", "forward"):
        own.begin(name, 3)
    assert own.times == {"starting": (1, 2.0, 2.0), "forward": (1, 1.0, 1.0), "backward": (1, 4.0, 4.0)}
    assert own.sign() == {"ops": 3, "op": "forward", "step": 3, "for": 1.5}


def test_the_operations_of_a_step_are_those_that_training_marks():
    """A name that nothing marks would end all comparisons without a word."""
    source = "".join(
        path.read_text(encoding="utf-8") for path in Path(operations.__file__).parents[1].glob("training/*.py")
    )
    assert all(f'at("{name}"' in source for name in operations.STEP) and ".at(LAST, step)" in source
