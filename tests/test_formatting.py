"""Numbers and durations as people read them."""

import pytest

from emergence_train.formatting import duration, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (12, "12"),
        (30_000, "30k"),
        (2.5e6, "2.5M"),
        (4e11, "400B"),
        (1.5e12, "1.5T"),
        (3e12, "3T"),
        (-2e3, "-2k"),
        (3e18, "3e18"),
        (999_400, "999k"),
        (999_999, "1M"),
        (-999.6e9, "-1T"),
        (999.7e12, "1e15"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3599, "1 h 00 min"), (3700, "1 h 02 min"), (431_999, "5 d 0 h")],
    ids=str,
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
