"""Figures as inline SVG: axes, what cannot be drawn, names instead of numbers."""

import json
import re

import numpy as np
import pytest

from emergence_train.analysis.figures import PALETTE, Figure, Ramp, Trace, interval
from emergence_train.report.svg import Axis, figure_html, palette_css


def read_out(text: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S).group(1))["series"]


def test_axis_ends_are_the_pixels():
    axis = Axis(1.0, 100.0, True, (66.0, 466.0))
    assert axis.at(1) == pytest.approx(66) and axis.at(100) == pytest.approx(466) and axis.at(10) == pytest.approx(266)


def test_values_that_cannot_be_drawn_are_left_out():
    trace = Trace(np.array([0, 1, 2.0, np.nan]), np.array([1, 2, np.inf, 1]), "s")
    drawn = figure_html(Figure("t", "x", "y", (trace,), x_log=True))
    assert "NaN" not in drawn and "inf" not in drawn.lower().replace("info", "")
    assert [series["x"] for series in read_out(drawn)] == [["1"]]
    assert "No data" in figure_html(Figure("t", "x", "y", ()))


def test_unlabelled_traces_are_in_no_legend_and_no_read_out():
    x = np.array([1.0, 2.0])
    band = Trace(x, x, "band", line=False, low=x - 1, high=x + 1)
    drawn = figure_html(Figure("t", "x", "y", (band, Trace(x, x), Trace(x, x, "line"))))
    assert [series["label"] for series in read_out(drawn)] == ["line"]
    assert drawn.count('class="key ') == 2 and drawn.count('class="line"') == 2


def test_names_stand_for_rows():
    figure = Figure("t", "x", "", interval(1, 2, 3, 0, "a") + interval(2, 3, 4, 1), y_names=("first <row>", "second"))
    drawn = figure_html(figure)
    assert "first &lt;row&gt;" in drawn and read_out(drawn)[0]["y"] == ["first <row>"]
    first, second = (float(y) for y in re.findall(r'<circle class="point"[^>]*cy="([\d.]+)"', drawn))
    assert first < second


def test_no_name_opens_or_closes_a_script():
    x, name = np.array([1.0, 2.0]), "<!--<script></script>-->"
    drawn = figure_html(Figure(name, name, name, (Trace(x, x, name), Trace(x, x, "other"))))
    data = re.findall(r'<script type="application/json">(.*?)</script>', drawn, re.S)
    assert len(data) == 1 and "<" not in data[0] and drawn.count("<script") == 1
    assert read_out(drawn)[0]["label"] == name


def test_a_ramp_replaces_the_entries_of_its_traces():
    x = np.array([1.0, 2.0])
    traces = tuple(Trace(x, x + k, f"{k}", shade=float(k)) for k in (0, 1))
    drawn = figure_html(Figure("t", "x", "y", traces, ramp=Ramp("tokens", 1e6, 2e9)))
    assert "tokens: 1M" in drawn and "2B" in drawn and 'class="key' not in drawn and len(read_out(drawn)) == 2


def test_palette_follows_the_colour_scheme():
    light, dark = palette_css().split("@media")
    assert all(pair[0] in light and pair[1] in dark for pair in PALETTE)
