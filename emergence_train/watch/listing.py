"""`emergence-train runs`: the runs of a directory as a table, a line each."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emergence_train.errors import InputError, printable
from emergence_train.formatting import short
from emergence_train.recorder.naming import names_of
from emergence_train.run_differences import differences_by_origin, telling
from emergence_train.watch.progress import Forecast, Progress, progress, run_directories

STYLES = {"running": "green", "finished": "bold", "stopped": "red", "stale": "yellow", "imported": "dim"}
PIPED = 240  # columns without a terminal
NARROW = 72  # columns below which the names of runs would be broken by the columns beside them
FEW = 3  # differences of a run that are shown in a table


def list_runs(places: list[Path], unread: list[str] | None = None) -> list[tuple[Progress, dict[str, Any]]]:
    """Where each run is, and its values of what differs between them. A run that vanishes meanwhile is left out; what cannot be
    read is said in `unread`, and raised as InputError where nothing can."""
    directories = run_directories(places)
    names = names_of(directories)
    rows, problems = [], [] if unread is None else unread
    for directory, different in zip(directories, differences_by_origin(directories)):
        try:
            rows.append((progress(directory, names.get(directory)), different))
        except InputError as error:
            if directory.is_dir():
                problems.append(str(error))
    if problems and not rows:
        raise InputError(problems[0])
    return rows


def as_json(rows: list[tuple[Progress, dict[str, Any]]]) -> dict:
    return {"runs": [progress_json(run) | {"differs": different} for run, different in rows]}


def progress_json(run: Progress) -> dict:
    return asdict(run) | {"path": str(run.path)}


def table(rows: list[tuple[Progress, dict[str, Any]]], console: Console) -> Table:
    """As many columns as the console is wide; what differs is the last one. A column that no run has anything in is left out."""
    wide, narrow = console.width >= 110, console.width < NARROW
    ends = any(end(run.forecast) != "-" for run, _ in rows)
    differ = any(different for _, different in rows)
    shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    numbers = ["step", *(["tokens"] if wide else []), "loss", *(["iid"] if wide else [])]
    shown.add_column("run", overflow="fold", ratio=None)
    shown.add_column("state", no_wrap=True)
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    if ends:
        shown.add_column("end, 95%", no_wrap=True)
    if not narrow:
        shown.add_column("tok/s", justify="right", no_wrap=True)
    if differ and not narrow:
        shown.add_column("differs", overflow="fold")
    elif differ:
        shown.caption, shown.caption_justify = "what differs: on a wider terminal, or --json", "left"
    first = telling([different for _, different in rows])
    for run, different in rows:
        cells = {
            "step": step(run),
            "tokens": short(run.tokens),
            "loss": number(run.loss, 3),
            "iid": number(run.iid, 3),
        }
        line: list[Any] = [printable(run.name), Text(run.state, STYLES[run.state]), *(cells[name] for name in numbers)]
        line += [end(run.forecast, 3 if wide else 2)] if ends else []
        line += [] if narrow else [short_number(run.tokens_per_second)]
        shown.add_row(*line, *([differing(different, first)] if different and not narrow else []))
    return shown


def step(run: Progress) -> str:
    return short(run.step) if run.total_steps is None else f"{short(run.step)}/{short(run.total_steps)}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def short_number(value: float | None) -> str:
    return "-" if value is None else short(value)


def end(forecast: Forecast | None, digits: int = 3) -> str:
    """The loss forecast for the end, with its 95% interval."""
    if forecast is None or forecast.loss is None:
        return "-"
    if forecast.low95 is None or forecast.high95 is None:
        return f"{forecast.loss:.{digits}f}"
    return f"{forecast.loss:.{digits}f} [{forecast.low95:.{digits}f}, {forecast.high95:.{digits}f}]"


def differing(different: dict[str, Any], first: list[str]) -> str:
    """A few of a run's values of what differs, those of the keys `first` before the others."""
    order = [key for key in first if key in different] + [key for key in different if key not in first]
    shown = [f"{key} {different[key]}" for key in order]
    more = len(shown) - FEW
    return printable(", ".join(shown[:FEW])) + (f", {more} more (--json)" if more > 0 else "")
