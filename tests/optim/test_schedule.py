"""The learning rate in closed form at points where it is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emergence_train.config import Schedule
from emergence_train.optim.schedule import learning_rate


def rates(total=1000, at=range(0, 1001, 50), **settings) -> list[float]:
    schedule = Schedule(lr=1.0, **settings)
    return [learning_rate(schedule, tokens, total) for tokens in at]


def test_cosine():
    lr = rates(kind="cosine", warmup_tokens=100, final_ratio=0.1, at=[50, 100, 325, 550, 775, 1000])
    wanted = [
        0.5,
        1.0,
        0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2,
        0.55,
        0.1 + 0.9 * (1 - math.cos(math.pi / 4)) / 2,
        0.1,
    ]
    assert lr == pytest.approx(wanted)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd(shape, middle):
    lr = rates(
        kind="wsd",
        warmup_tokens=100,
        decay_tokens=200,
        decay_shape=shape,
        final_ratio=0.0,
        at=[50, 100, 800, 900, 1000],
    )
    assert lr == pytest.approx([0.5, 1.0, 1.0, middle, 0.0], abs=1e-12)


def test_linear():
    lr = rates(kind="linear", warmup_tokens=100, final_ratio=0.1, at=[50, 100, 325, 550, 1000])
    assert lr == pytest.approx([0.5, 1.0, 0.775, 0.55, 0.1])


def test_constant():
    assert rates(kind="constant", warmup_tokens=100, at=[1, 100, 1000]) == [0.01, 1.0, 1.0]


@given(st.sampled_from(["cosine", "wsd"]), st.integers(0, 400), st.integers(1, 500), st.floats(0, 1))
def test_it_rises_then_falls_and_stays_in_range(kind, warmup, decay, final):
    decay = {"decay_tokens": decay} if kind == "wsd" else {}
    lr = rates(kind=kind, warmup_tokens=warmup, final_ratio=final, at=range(1, 1001), **decay)
    top = max(warmup, 1) - 1
    assert all(a <= b for a, b in zip(lr[:top], lr[1:top]))
    assert all(a >= b - 1e-12 for a, b in zip(lr[top:], lr[top + 1 :]))
    assert max(lr) == pytest.approx(1.0, abs=1e-5)  # without a warm-up the first step has already begun to fall
    assert lr[-1] == pytest.approx(final, abs=1e-9)
