"""Figures as inline SVG: axes, paths, points, colours."""

import re

import numpy as np
import pytest

from emergence_train.analysis.figures import PALETTE, Figure, Trace, ramp_colours
from emergence_train.report.svg import FINE, Axis, figure_svg, palette_css, path


def walked(d: str) -> list[tuple[int, int]]:
    """The points of a path of one M and relative l or h0m, by a plain reader."""
    numbers = [int(text) for text in re.findall(r"-?\d+", d.replace("h0", " "))]
    x, y = numbers[:2]
    points = [(x, y)]
    for right, down in zip(numbers[2::2], numbers[3::2]):
        x, y = x + right, y + down
        points.append((x, y))
    return points


def contrast(colour: str, ground: str) -> float:
    """WCAG 2's ratio of two colours #rrggbb."""

    def luminance(text: str) -> float:
        parts = [int(text[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(colour), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


def test_axis_ends_are_the_pixels():
    axis = Axis(1.0, 100.0, True, (66.0, 466.0))
    assert axis.at(1) == pytest.approx(66) and axis.at(100) == pytest.approx(466) and axis.at(10) == pytest.approx(266)


@pytest.mark.parametrize("step", ["l", "h0m"])
def test_a_path_leads_through_its_points(step):
    points = [(5, 9), (7, 3), (7, 3), (-4, 20), (0, 0)]
    assert walked(path(points, step)) == points


def test_a_line_is_where_the_axes_put_it():
    x, y = np.array([1.0, 3.0, 10.0]), np.array([4.0, 2.0, 3.0])
    figure = Figure("t", "x", "y", (Trace(x, y, points=True),), x_log=True)
    (x_low, x_high), (y_low, y_high) = figure.limits()
    drawn = figure_svg(figure, figure.drawable())
    for kind in ("line", "dots"):
        at = walked(re.search(rf'class="{kind}" [^>]*d="(.*?)"', drawn).group(1))
        for (px, py), a, b in zip(at, x, y):
            assert px / FINE == pytest.approx(66 + 400 * np.log(a / x_low) / np.log(x_high / x_low), abs=0.06)
            assert py / FINE == pytest.approx(292 - 278 * (b - y_low) / (y_high - y_low), abs=0.06)


def test_the_newest_line_of_a_ramp_is_the_thickest():
    x = np.array([1.0, 2.0])
    figure = Figure("t", "x", "y", tuple(Trace(x, x + k, f"{k}", shade=float(k)) for k in (0, 1)))
    assert re.findall(r'class="(line \w+)"', figure_svg(figure, figure.drawable())) == ["line older", "line newest"]


def test_colours_stand_out_from_both_grounds():
    """3:1 for lines; of the names of runs and notes the page's own colours, 4.5:1, are in its style."""
    for light, dark in [*PALETTE, *(ramp_colours(k / 20) for k in range(21))]:
        assert contrast(light, "#ffffff") >= 3 and contrast(dark, "#1b1f24") >= 3


def test_palette_follows_the_colour_scheme():
    light, dark = palette_css().split("@media")
    assert all(pair[0] in light and pair[1] in dark for pair in PALETTE)
