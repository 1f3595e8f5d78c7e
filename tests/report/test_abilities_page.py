"""When a threshold is reached is drawn from its low end to its high one, or to the edge with an arrow where it is open."""

import pytest

from emergence_train.analysis.results import Interval
from emergence_train.report.abilities import _reached
from emergence_train.report.svg import SHAPES


@pytest.mark.parametrize(
    ("at", "bar", "arrow", "point"),
    [
        (Interval(5.0, 4.0, 6.0), [4.0, 6.0], False, True),
        (Interval(5.0, 4.0, None), [4.0, 9.0], True, True),
        (Interval(None, 4.0, None), [4.0, 9.0], True, False),
    ],
)
def test_an_open_end_is_an_arrow_at_the_edge(at, bar, arrow, point):
    line, *marks = _reached(at, eta=2.5, end=9.0, label="task: when", colour=1)
    assert line.x.tolist() == bar and line.y.tolist() == [2.5, 2.5]
    by_marker = {mark.marker: mark for mark in marks}
    assert ("right" in by_marker) is arrow and ("circle" in by_marker) is point
    assert not arrow or (by_marker["right"].x.tolist() == [9.0] and "right" in SHAPES)
    assert not point or by_marker["circle"].x.tolist() == [at.value]
    assert [mark.label for mark in marks if mark.label] == ["task: when"]
