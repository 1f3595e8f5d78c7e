"""The summary of a run: best and last, in whatever order its points come."""

import random

import pytest

from emergence_train.tracking.summary import Summary

POINTS = [
    {"step": 1, "tokens": 10, "train/loss": 5.0},
    {"step": 2, "tokens": 20, "val/iid/loss": 4.0, "val/ood/loss": 4.5},
    {"step": 3, "tokens": 30, "train/loss": 3.0},
    {"step": 4, "tokens": 40, "val/iid/loss": 3.5},
    {"step": 4, "tokens": 40, "forecast/loss": 3.0, "forecast/low95": 2.5, "forecast/high95": 3.6, "forecast/sd": 0.2},
    {"step": 6, "tokens": 60, "val/iid/loss": float("nan")},
    {"step": 7, "tokens": 70, "val/iid/loss": 3.9},
]


@pytest.mark.parametrize("seed", range(5))
def test_best_and_last_do_not_depend_on_the_order(seed):
    shuffled = random.Random(seed).sample(POINTS, len(POINTS))
    assert Summary(shuffled).values() == {
        "best/val/iid/loss": 3.5,
        "best/step": 4,
        "best/tokens": 40,
        "last/step": 7,
        "last/tokens": 70,
        "last/val/iid/loss": 3.9,
        "last/train/loss": 3.0,
        "last/forecast/loss": 3.0,
        "last/forecast/low95": 2.5,
        "last/forecast/high95": 3.6,
    }


def test_nothing_seen_is_nothing_said():
    assert Summary().values() == {}
