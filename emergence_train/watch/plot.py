"""Curves as text: eight dots in a character where the terminal has Unicode, else a star."""

import math
from collections.abc import Sequence

# The dots of a Braille character, by row and column
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BLANK = 0x2800


def plot(
    x: Sequence[float],
    y: Sequence[float],
    *,
    width: int,
    height: int,
    x_range: tuple[float, float] | None = None,
    interval: tuple[float, float, float] | None = None,
    shown: float = 0.95,
    unicode: bool = True,
    x_label: str = "",
) -> list[str]:
    """The lines of a chart `width` characters wide: x on a logarithmic axis, y on a linear one with its two ends written.

    Args:
        x_range: ends of the axis; what the points have, where it is not given.
        interval: (x, low, high), drawn as an upright bar and within the axis of y.
        shown: the share of the points, the lowest, that the axis of y has room for; the others are drawn at its edge.
        x_label: text below the axis.
    """
    points = [(a, b) for a, b in zip(x, y) if a > 0 and math.isfinite(b)]
    left, right = x_range or (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    points = [point for point in points if point[0] >= left]
    if len(points) < 2 or height < 2:
        return ["nothing to draw yet"]
    low, high = _bounds([b for _, b in points], interval, shown)
    label = max(len(f"{low:.2f}"), len(f"{high:.2f}"))
    across, down = (2, 4) if unicode else (1, 1)
    columns, rows = max(width - label - 2, 4) * across, height * down
    grid = [[False] * columns for _ in range(rows)]

    def column(a: float) -> int:
        share = math.log(max(a, left) / left) / math.log(right / left) if right > left else 0.0
        return min(columns - 1, round(share * (columns - 1)))

    def row(b: float) -> int:
        return min(rows - 1, max(0, round((high - b) / ((high - low) or 1.0) * (rows - 1))))

    for (a, b), (a2, b2) in zip(points, points[1:]):
        begin, end = column(a), column(a2)
        heights = [row(b + (b2 - b) * (k - begin) / max(end - begin, 1)) for k in range(begin, end + 1)]
        for k, (here, there) in enumerate(zip(heights, [*heights[1:], row(b2)]), begin):
            _fill(grid, k, here, there)
    if interval is not None:
        _fill(grid, column(interval[0]), row(interval[2]), row(interval[1]))
    lines = _braille(grid) if unicode else ["".join("*" if dot else " " for dot in dots) for dots in grid]
    side = [f"{high:.2f}", *[""] * (height - 2), f"{low:.2f}"]
    bar = "│" if unicode else "|"
    chart = [f"{text:>{label}} {bar}{line}".rstrip() for text, line in zip(side, lines)]
    return [*chart, f"{'':{label + 2}}{x_label}"] if x_label else chart


def _fill(grid: list[list[bool]], column: int, here: int, there: int) -> None:
    for row in range(min(here, there), max(here, there) + 1):
        grid[row][column] = True


def _bounds(y: list[float], interval: tuple[float, float, float] | None, shown: float) -> tuple[float, float]:
    ordered = sorted(y)
    low, high = ordered[0], ordered[math.ceil(shown * (len(ordered) - 1))]
    if interval is not None:
        low, high = min(low, interval[1]), max(high, interval[2])
    return low, high if high > low else low + 1e-3


def _braille(grid: list[list[bool]]) -> list[str]:
    lines = []
    for top in range(0, len(grid), 4):
        characters = []
        for left in range(0, len(grid[0]), 2):
            dots = sum(DOTS[r][c] for r in range(4) for c in range(2) if grid[top + r][left + c])
            characters.append(chr(BLANK + dots) if dots else " ")
        lines.append("".join(characters))
    return lines
