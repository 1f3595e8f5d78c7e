"""Decisions about steps that go wrong, and which batches a rewind skipped."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.config import Faults
from emergence_train.errors import InputError
from emergence_train.faults.anomalies import LEAST, AnomalyDetector, SkippedBatches

CALM = [2.0 + 0.01 * (i % 3) for i in range(64)]


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({}, (2.0, 1.0, True), None),
        ({}, (2.0, math.inf, False), ("not_finite", "skip")),
        ({}, (math.nan, math.nan, False), ("not_finite", "skip")),
        ({}, (math.nan, 1.0, True), ("not_finite", "stop")),  # the update was applied: the weights may be damaged
        ({"not_finite": "rewind"}, (math.inf, math.nan, False), ("not_finite", "rewind")),
        ({"not_finite": "stop"}, (2.0, math.nan, False), ("not_finite", "stop")),
        ({}, (3.0, 1.0, True), ("spike", "log")),
        ({"spike": "rewind"}, (3.0, 1.0, True), ("spike", "rewind")),
        ({"spike": "skip"}, (3.0, math.inf, False), ("spike", "skip")),  # poisoned on purpose
        ({"spike": "skip"}, (2.0, math.inf, False), ("not_finite", "skip")),
        ({"spike_deviations": 1000}, (3.0, 1.0, True), None),
        ({}, (1.0, 1.0, True), None),  # far below is not a spike
    ],
)
def test_each_policy(settings, step, expected):
    event = AnomalyDetector(Faults(**settings), CALM)(*step)
    assert (event and (event.kind, event.action)) == expected


def test_nothing_is_a_spike_before_there_is_a_measure():
    detector = AnomalyDetector(Faults(), [])
    events = [detector(loss, 1.0, True) for loss in [5.0] * (LEAST - 1) + [50.0]]
    assert not any(events)
    assert detector(500.0, 1.0, True).kind == "spike"


def test_second_spike_is_seen_and_a_new_level_accepted():
    detector = AnomalyDetector(Faults(), CALM)
    assert detector(9.0, 1.0, True) and detector(9.0, 1.0, True)
    events = [detector(9.0, 1.0, True) for _ in range(64)]
    assert events[0] and not events[-1]


def test_skipping_for_ever_ends():
    detector = AnomalyDetector(Faults(give_up_after=3), CALM)
    actions = [detector(2.0, math.nan, False).action for _ in range(3)]
    assert actions == ["skip", "skip", "stop"]
    detector.restart(CALM)
    assert detector(2.0, math.nan, False).action == "skip"


@settings(deadline=None)  # a loaded machine must not fail the test
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=6))
def test_skipped_batches_are_never_trained_and_all_others_once(tmp_path_factory, rewinds):
    """Simulated: steps train batches in order, and each rewind unlearns and skipped what came after its checkpoint."""
    skipped, avoided, trained = SkippedBatches(tmp_path_factory.getbasetemp() / "none"), set(), []
    for back_to, more in rewinds:
        back_to = min(back_to, len(trained))
        while len(trained) < back_to + more:
            trained.append(skipped.batch(len(trained) + 1))
        avoided |= set(trained[back_to:])
        skipped.add(back_to, len(trained), "test")
        trained = trained[:back_to]
    later = [skipped.batch(step) for step in range(1, 200)]
    assert later[: len(trained)] == trained, "what was learned before a checkpoint does not change"
    everything = [batch for batch in range(later[-1] + 1) if batch not in avoided]
    assert later == everything


def test_rewinds_are_remembered(tmp_path):
    skipped = SkippedBatches(tmp_path)
    skipped.add(4, 6, "loss not finite")
    skipped.save()
    again = SkippedBatches(tmp_path)
    assert again.rewinds == skipped.rewinds and [again.batch(step) for step in (4, 5, 6)] == [3, 6, 7]
    (tmp_path / "rewinds.json").write_text("{")
    with pytest.raises(InputError, match="rewinds.json"):
        SkippedBatches(tmp_path)
