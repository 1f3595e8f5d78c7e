"""`watch`'s screen of one run: panels below each other, two beside each other where the terminal is wide, without frames
where it is low."""

import math
from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from emergence_train.errors import printable
from emergence_train.formatting import duration, short
from emergence_train.watch.details import Details
from emergence_train.watch.listing import STYLES, end, number
from emergence_train.watch.plot import plot
from emergence_train.watch.progress import Progress, counted

WIDE = 110  # columns from which on panels stand beside each other
EVENTS_SHOWN, TASKS_SHOWN = 6, 12
NARROW = 60  # columns below which two facts do not stand beside each other
HEIGHT, LOW_HEIGHT = 8, 4  # of a chart, lines; on a terminal that has not enough of them
CURVE_BEGINS = 1e-3  # of the run: the loss before that is far above the rest


def screen(shown: Details, console: Console) -> RenderableType:
    """The whole screen of a run, as wide as the console."""
    wide = console.width >= WIDE
    inner = (console.width // 2 if wide else console.width) - 4
    unicode = _unicode(console)
    panels: list[tuple[str, RenderableType]] = [
        *([("events", _events(shown))] if shown.events else []),
        ("training loss", _curve(shown, inner, HEIGHT, unicode)),
        *([("loss by position", _positions(shown, inner, HEIGHT, unicode))] if shown.positions else []),
        *([("held out", _losses(shown, inner))] if shown.losses else []),
        *([("tasks", _tasks(shown))] if shown.tasks else []),
        *([] if shown.events else [("events", _events(shown))]),
    ]
    boxes = [Panel(body, title=title, title_align="left", padding=(0, 1)) for title, body in panels]
    head = Panel(_head(shown.progress, inner), title=_title(shown.progress), title_align="left", padding=(0, 1))
    samples = [Panel(_samples(shown), title="samples", title_align="left", padding=(0, 1))] if shown.samples else []
    if not wide:
        return Group(head, *boxes, *samples)
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(Group(*boxes[::2]), Group(*boxes[1::2]))
    return Group(head, grid, *samples)


def fitting(shown: Details, console: Console, note: str = "") -> RenderableType:
    """The screen where the terminal has the lines for it, else its parts without frames, as many as there are lines for; the
    names of those left out are in the last line. `note`: a line that is always there, below the state."""
    room = console.height - 1
    whole: RenderableType = Group(Text(note, "yellow"), screen(shown, console)) if note else screen(shown, console)
    if _lines(whole, console) <= room:
        return whole
    unicode = _unicode(console)
    parts: list[tuple[str, RenderableType]] = [
        *([("events", _newest_event(shown))] if shown.events else []),
        ("training loss", _curve(shown, console.width, LOW_HEIGHT, unicode)),
        *(
            [("held out", _side_by_side(f"{name} {loss:.4f}" for name, loss in shown.losses.items()))]
            if shown.losses
            else []
        ),
        *([("tasks", _side_by_side(f"{each.task} {each.value:.3f}" for each in shown.tasks))] if shown.tasks else []),
        *([("samples", _samples(shown))] if shown.samples else []),
        *([("loss by position", _positions(shown, console.width, LOW_HEIGHT, unicode))] if shown.positions else []),
    ]
    head = [_title(shown.progress), *([Text(note, "yellow")] if note else []), _head(shown.progress, console.width)]
    taken: list[RenderableType] = [Group(*head)]
    left = []
    room -= _lines(taken[0], console) + 1  # the last line
    for title, body in parts:
        part = Group(Text(title, "dim underline"), body)
        lines = _lines(part, console)
        if lines <= room:
            taken.append(part)
            room -= lines
        else:
            left.append(title)
    more = f"no lines for: {', '.join(left)}; watch --once has all" if left else ""
    return Group(*taken, Text(more, "dim", no_wrap=True, overflow="ellipsis"))


def _lines(part: RenderableType, console: Console) -> int:
    return len(console.render_lines(part, pad=False))


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _title(run: Progress) -> Text:
    return Text(printable(f"{run.name}  {run.path}"), "bold", no_wrap=True, overflow="ellipsis")


def _side_by_side(cells: Iterable[str]) -> RenderableType:
    return Columns([Text(printable(cell)) for cell in cells], padding=(0, 2))


def line(run: Progress) -> str:
    """A run in a line, for a log."""
    total = "" if run.total_steps is None else f"/{run.total_steps}"
    parts = [
        f"{run.name}: {run.state}",
        f"step {run.step}{total}",
        f"tokens {run.tokens:,}",
        f"loss {number(run.loss, 4)}",
    ]
    if run.iid is not None:
        parts.append(f"iid {run.iid:.4f}")
    if run.forecast is not None and run.forecast.loss is not None:
        parts.append(f"end {end(run.forecast)}")
    if run.state == "running":
        parts += [f"{number(run.tokens_per_second, 0)} tokens/s", f"MFU {_mfu(run)}", f"ETA {_eta(run)}"]
    parts += [f"({run.reason})"] if run.reason else []
    return printable("  ".join([*parts, *([run.problem] if run.problem else [])]))


def _head(run: Progress, width: int) -> RenderableType:
    state = Text.assemble((run.state, STYLES[run.state]), f": {printable(run.reason)}" if run.reason else "")
    state.append(f"  log written {duration(run.age_seconds)} ago", "dim")
    beside = 1 if width < NARROW else 2
    facts = Table.grid(padding=(0, 2))
    for _ in range(2 * beside):
        facts.add_column(no_wrap=True)
    cells = [
        ("step", f"{run.step:,}" + ("" if run.total_steps is None else f" of {run.total_steps:,}")),
        ("tokens", short(run.tokens) + ("" if run.total_tokens is None else f" of {short(run.total_tokens)}")),
        ("loss", f"{number(run.loss, 4)} nats/token"),
        ("held out", f"{number(run.iid, 4)} iid"),
        ("speed", f"{number(run.tokens_per_second, 0)} tokens/s"),
        ("MFU", _mfu(run)),
        ("ETA", _eta(run)),
        ("lr, grad norm", f"{_general(run.lr)}, {_general(run.grad_norm)}"),
    ]
    if run.saved_step is not None:
        cells.append(("state saved", f"of step {run.saved_step:,}" if run.saved_step else "none yet"))
    cells += [("", "")] * (len(cells) % beside)
    for first in range(0, len(cells), beside):
        facts.add_row(*(part for name, value in cells[first : first + beside] for part in (Text(name, "dim"), value)))
    lines: list[RenderableType] = [state, *([Text(printable(run.problem), "yellow")] if run.problem else []), facts]
    if run.state != "finished" and run.forecast is not None:
        lines.append(_outlook(run))
    return Group(*lines)


def _outlook(run: Progress) -> Text:
    forecast = run.forecast
    assert forecast is not None
    if forecast.loss is None:
        return Text.assemble(("at the end ", "dim"), f"no forecast: {forecast.reason}")
    return Text.assemble(
        ("at the end ", "dim"),
        (end(forecast), "bold"),
        f"  (95% interval; forecast at step {forecast.step:,})",
        f"; {forecast.reason}" if forecast.reason else "",
    )


def _curve(shown: Details, width: int, height: int, unicode: bool) -> RenderableType:
    run = shown.progress
    x, y = [tokens for tokens, _ in shown.curve], [loss for _, loss in shown.curve]
    last = max(run.total_tokens or 0, x[-1] if x else 0)
    bar, forecast = None, run.forecast
    if forecast is not None and forecast.low95 is not None and forecast.high95 is not None and run.total_tokens:
        bar = (float(run.total_tokens), forecast.low95, forecast.high95)
    x_range = (max(float(x[0]), last * CURVE_BEGINS), float(last)) if x else None
    label = f"{short(x_range[0])} to {short(last)} tokens, log" if x_range else ""
    label += "; bar: forecast, 95%" if bar else ""
    lines = plot(x, y, width=width, height=height, x_range=x_range, interval=bar, unicode=unicode, x_label=label)
    past = [forecast for forecast in shown.forecasts if forecast.loss is not None]
    if len(past) > 1 and run.state != "finished":
        lines.append("forecasts: " + "  ".join(f"{forecast.loss:.3f}@{short(forecast.step)}" for forecast in past))
    return Text("\n".join(lines), no_wrap=True, overflow="crop")


def _positions(shown: Details, width: int, height: int, unicode: bool) -> RenderableType:
    curve = shown.positions
    assert curve is not None
    at = sorted({round(len(curve.position) ** (k / 63)) - 1 for k in range(64)})
    x, y = [curve.position[k] for k in at], [curve.loss[k] for k in at]
    label = f"position 1 to {curve.position[-1]:,}, log; {curve.split}, step {curve.step:,}"
    lines = plot(x, y, width=width, height=height, unicode=unicode, x_label=label, shown=1.0)
    return Text("\n".join(lines), no_wrap=True)


def _losses(shown: Details, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    for split, loss in shown.losses.items():
        label = "perplexity " if width >= NARROW else "ppl "
        grid.add_row(split, f"{loss:.4f}", f"{label}{math.exp(min(loss, 50)):,.4g}")
    return grid


def _tasks(shown: Details) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    for _ in range(2):
        grid.add_column(justify="right", no_wrap=True)
    for score in shown.tasks[:TASKS_SHOWN]:
        stderr = f" ± {score.stderr:.3f}" if _known(score.stderr) else ""
        chance = f"chance {score.chance:.3g}" if _known(score.chance) else ""
        grid.add_row(f"{score.task} {score.metric}", f"{score.value:.3f}{stderr}", Text(chance, "dim"))
    more = len(shown.tasks) - TASKS_SHOWN
    return Group(grid, Text(f"{more} more", "dim")) if more > 0 else grid


def _events(shown: Details) -> RenderableType:
    since = f"since step {shown.events_since:,}" if shown.events_since > 1 else "so far"
    if not shown.events:
        return Text(f"none {since}", "dim")
    lines = [Text(f"{counted([event.kind for event in shown.events])} {since}")]
    for event in shown.events[-EVENTS_SHOWN:]:
        style = "yellow" if event.kind in ("spike", "straggler", "starved") else "red"
        lines.append(Text.assemble(f"step {event.step:,} ", (event.kind, style), f" {printable(event.text)}"))
    return Group(*lines)


def _newest_event(shown: Details) -> RenderableType:
    """How many there are, and the last of them in a line."""
    event = shown.events[-1]
    text = (
        f"{counted([event.kind for event in shown.events])}; step {event.step:,} {event.kind} {printable(event.text)}"
    )
    return Text(text, "yellow", no_wrap=True, overflow="ellipsis")


def _samples(shown: Details) -> RenderableType:
    lines = []
    for sample in shown.samples:
        prompt, text = printable(sample.get("prompt", "")), printable(sample.get("text", ""))
        lines.append(Text.assemble((prompt, "bold"), text))
    return Group(*lines)


def _mfu(run: Progress) -> str:
    return "n/a" if run.mfu is None else f"{run.mfu:.1%}"


def _eta(run: Progress) -> str:
    return "-" if run.eta_seconds is None else duration(run.eta_seconds)


def _general(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
