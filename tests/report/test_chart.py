"""A figure on the page and the data that its script reads."""

import json
import re

import numpy as np

from emergence_train.analysis.figures import Figure, Ramp, Trace, interval
from emergence_train.report.chart import figure_html


def chart_data(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S).group(1))


def test_values_that_cannot_be_drawn_are_left_out():
    trace = Trace(np.array([0, 1, 2.0, np.nan]), np.array([1, 2, np.inf, 1]), "s")
    drawn = figure_html(Figure("t", "x", "y", (trace,), x_log=True))
    assert "NaN" not in drawn and "inf" not in drawn.lower()
    data = chart_data(drawn)
    assert data["xs"] == [[1]] and data["s"][0]["y"] == [2] and data["s"][0]["x"] == 0
    assert figure_html(Figure("t", "x", "y", ())) == ""


def test_the_data_are_the_traces():
    """Equal x once; numbers to five digits, whole ones as they are; a band alone needs no middle."""
    x = np.array([1.0, 2.0, 123_456_789.0])
    y = np.array([1 / 3, 2e-7, 4.0])
    band = Trace(x, y, "band", line=False, low=y - 1, high=y + 1)
    figure = Figure("t", "x", "y", (band, Trace(x, y, "a", 3, run="r", dashed=True), Trace(x, y, "", points=True)))
    data = chart_data(figure_html(figure))
    assert data["xs"] == [[1, 2, 123_456_789]] and data["t"] == "t" and "xl" not in data
    first, second, third = data["s"]
    assert "y" not in first and first["lo"] == [-0.66667, -1, 3] and first["hi"] == [1.3333, 1, 5]
    assert second == {"x": 0, "k": "ld", "l": "a", "r": "r", "y": [0.33333, 2e-07, 4], "c": 3}
    assert third["k"] == "lp" and "l" not in third


def test_a_figure_of_fewer_rows_says_so():
    """What the button is called by; a figure of all rows has nothing to say."""
    traces = (Trace(np.array([1.0, 2.0]), np.array([3.0, 4.0]), "a"),)
    assert "d" not in chart_data(figure_html(Figure("t", "x", "y", traces)))
    assert chart_data(figure_html(Figure("t", "x", "y", traces, reduced="half <of> it")))["d"] == "half <of> it"


def test_unlabelled_traces_are_in_no_legend():
    x = np.array([1.0, 2.0])
    band = Trace(x, x, "band", line=False, low=x - 1, high=x + 1)
    drawn = figure_html(Figure("t", "x", "y", (band, Trace(x, x), Trace(x, x, "line"))))
    assert drawn.count('class="key ') == 2 and drawn.count('class="line"') == 2
    assert re.findall(r"</i>(.*?)</span>", drawn) == ["band", "line"]


def test_names_stand_for_rows():
    figure = Figure("t", "x", "", interval(1, 2, 3, 0, "a") + interval(2, 3, 4, 1), y_names=("first <row>", "second"))
    drawn = figure_html(figure)
    assert "first &lt;row&gt;" in drawn and chart_data(drawn)["n"] == ["first <row>", "second"]
    first, second = (int(y) for y in re.findall(r'class="dots"[^>]*d="M\d+ (\d+)h0"', drawn))
    assert first < second


def test_no_name_opens_or_closes_a_script():
    x, name = np.array([1.0, 2.0]), "<!--<script></script>-->"
    drawn = figure_html(Figure(name, name, name, (Trace(x, x, name), Trace(x, x, "other"))))
    data = re.findall(r'<script type="application/json">(.*?)</script>', drawn, re.S)
    assert len(data) == 1 and "<" not in data[0] and drawn.count("<script") == 1
    assert chart_data(drawn)["s"][0]["l"] == name


def test_a_ramp_replaces_the_entries_of_its_traces():
    x = np.array([1.0, 2.0])
    traces = tuple(Trace(x, x + k, f"{k}", shade=float(k)) for k in (0, 1))
    drawn = figure_html(Figure("t", "x", "y", traces, ramp=Ramp("tokens", 1e6, 2e9)))
    assert "tokens: 1M" in drawn and "2B" in drawn and 'class="key' not in drawn
    assert [trace["h"] for trace in chart_data(drawn)["s"]] == [0, 1]


def test_without_script_a_picture_has_a_name_and_no_tab_stop():
    """page.js makes it an application that keys operate; until then it is an image."""
    x = np.array([1.0, 2.0])
    drawn = figure_html(Figure("Loss", "tokens", "nats", (Trace(x, x, "a"),)))
    assert 'role="img" aria-label="Loss. nats against tokens."' in drawn and "tabindex" not in drawn
