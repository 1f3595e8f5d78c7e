"""The description of figures: numbers on axes, limits, shades, thinning."""

import re
from pathlib import Path

import numpy as np
import pytest

from emergence_train import report
from emergence_train.analysis.figures import Figure, Ramp, Trace, envelope, even, ramp_colours, ticks


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1, 256, True), (3.1, 3.2, False), (1e9, 4e11, True), (5, 5, False), (7, 7, True)]
)
def test_axes_have_a_few_ticks_within_them(low, high, log):
    x = np.array([low, high], float)
    (left, right), _ = Figure("", "", "", (Trace(x, x),), x_log=log).limits()
    places = ticks(left, right, log)
    assert 2 <= len(places) <= 12 and left <= low <= high <= right and left < right
    assert all(left * 0.99 <= place <= right * 1.01 for place in places)


def test_log_axes_leave_out_what_is_not_positive():
    x, y = np.array([0.0, 1, 2, 3]), np.array([1.0, -1, 2, 3])
    (trace,) = Figure("", "", "", (Trace(x, y, low=y - 2.5, high=y),), x_log=True, y_log=True).drawable()
    assert trace.x.tolist() == [3] and trace.low.tolist() == [0.5]


def test_shades_are_equal_in_the_logarithm():
    assert Ramp("", 1e2, 1e4).shades(np.array([1e2, 1e3, 1e4, 1e6])).tolist() == pytest.approx([0, 0.5, 1, 1])
    assert Ramp("", 5, 5).shades(np.array([5.0])).tolist() == [0]


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_the_newest_stands_out_most():
    """On both backgrounds; and no shade is too faint for a graphical object, which WCAG wants at 3:1."""
    cards = re.findall(r"--card: *(#[0-9a-f]{6})", (Path(report.__file__).parent / "page.css").read_text())
    assert len(cards) == 2
    for place, ground in enumerate(map(luminance, cards)):
        contrasts = []
        for shade in np.linspace(0, 1, 23):
            low, high = sorted((luminance(ramp_colours(shade)[place]), ground))
            contrasts.append((high + 0.05) / (low + 0.05))
        assert min(contrasts) >= 3 and contrasts == sorted(contrasts), contrasts


def test_even_numbers_reach_both_ends():
    assert even(3, 10).tolist() == [0, 1, 2] and even(100, 4).tolist() == [0, 33, 66, 99] and len(even(0, 5)) <= 1


def test_an_envelope_keeps_every_peak():
    """One step of a million, up or down, and both ends, among a few hundred rows."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=1_000_000)
    values[123_456], values[654_321] = 50, -50
    chosen = envelope(values, 300)
    assert {0, 123_456, 654_321, 999_999} <= set(chosen.tolist()) and 200 < len(chosen) <= 300
    for part in np.array_split(np.arange(1_000_000), 20):  # and what a figure shows of any part: its lowest and highest
        inside = values[chosen[(chosen >= part[0]) & (chosen <= part[-1])]]
        assert inside.max() > 3 and inside.min() < -3
    assert envelope(values[:7], 10).tolist() == list(range(7)) and len(envelope(values[:0], 5)) == 0


def test_an_envelope_is_as_dense_as_its_rows():
    """The middle half of a normal distribution has half of the points that are no peaks, all along: the cloud is not hollow."""
    values = np.random.default_rng(0).normal(size=200_000)
    chosen = envelope(values, 1000)
    for part in np.array_split(values[chosen], 5):
        assert 0.15 < np.mean(np.abs(part) < 0.6745) < 0.35
