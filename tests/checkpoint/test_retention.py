"""Retention of checkpoints, for each setting."""

import pytest

from emergence_train.checkpoint.retention import kept
from emergence_train.config import Checkpoints

REGULAR = set(range(10, 101, 10))
THERE = [5, 10, 15, 20, 25, 30, 35, 40, 45]


@pytest.mark.parametrize(
    ("settings", "best", "pinned", "expected"),
    [
        ({}, None, set(), {40, 45}),
        ({"keep_last": 3}, None, set(), {35, 40, 45}),
        ({"keep_every": 2}, None, set(), {20, 40, 45}),
        ({"keep_best": True}, 30, set(), {30, 40, 45}),
        ({"keep_best": True}, 50, set(), {40, 45}),
        ({}, None, {10}, {10, 40, 45}),
        ({"save_state": "every"}, None, {15}, {10, 15, 20, 30, 40, 45}),
    ],
)
def test_which_checkpoints_are_kept(settings, best, pinned, expected):
    assert kept(THERE, Checkpoints(every_tokens=1, **settings), REGULAR, best, pinned) == expected
