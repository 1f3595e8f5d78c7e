"""`emergence-train watch`: the screen drawn again and again; without a terminal, plain lines."""

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from emergence_train.recorder.naming import names_of
from emergence_train.run_differences import differences_by_origin
from emergence_train.watch.details import details
from emergence_train.watch.listing import table
from emergence_train.watch.progress import Progress, progress, run_directories
from emergence_train.watch.screen import fitting, line, screen

SECONDS, LINE_SECONDS = 2.0, 30.0  # between screens; between lines of a log
ENDED = ("finished", "stopped", "imported")


def console(piped: int | None = None) -> Console:
    """Standard output as rich has it: names and texts are shown as they are, whatever brackets are in them, and what the
    terminal has no character for as a question mark. `piped`: its width without a terminal, for rows that are not to break."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else piped
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def watch(places: list[Path], *, seconds: float | None = None, once: bool = False) -> None:
    """Show runs until none is running any more, or the user interrupts; with `once` as they are now."""
    out = console()
    if once:
        out.print(_view(places, out)[0])
        return
    with contextlib.suppress(KeyboardInterrupt):
        if out.is_terminal and not out.is_dumb_terminal:  # TERM=dumb: no place to draw the same lines again
            _on_terminal(places, out, seconds or SECONDS)
        else:
            _as_lines(places, lambda text: out.print(text, soft_wrap=True), seconds or LINE_SECONDS)


def _on_terminal(places: list[Path], out: Console, seconds: float) -> None:
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            shown, runs = _view(places, out, live=True)
            live.update(shown, refresh=True)
            if all(run.state in ENDED for run in runs):
                break
            time.sleep(seconds)
    for run in runs:
        out.print(line(run))


def _as_lines(places: list[Path], log: Callable[[str], None], seconds: float) -> None:
    """A line for a run where anything has changed, at once where that is its state."""
    shown: dict[Path, Progress] = {}
    logged_at = -math.inf
    while True:
        due = time.monotonic() - logged_at >= seconds
        runs = _runs(places)
        for run in runs:
            before = shown.get(run.path)
            if before is None or before.state != run.state or (due and before.step != run.step):
                log(line(run))
                shown[run.path] = run
        if due:
            logged_at = time.monotonic()
        if all(run.state in ENDED for run in runs):
            return
        time.sleep(min(seconds, SECONDS))


def _runs(places: list[Path]) -> list[Progress]:
    """Where the runs are; of a directory also those that have begun since."""
    directories = run_directories(places)
    names = names_of(directories)
    return [progress(run, names.get(run)) for run in directories]


def _view(places: list[Path], out: Console, live: bool = False) -> tuple[RenderableType, list[Progress]]:
    """One run with all there is to see of it (`live`: what the terminal has lines for), several as a table."""
    directories = run_directories(places)
    if len(directories) == 1:
        shown = details(directories[0])
        return (fitting(shown, out) if live else screen(shown, out)), [shown.progress]
    names = names_of(directories)
    runs = [progress(run, names.get(run)) for run in directories]
    rows = list(zip(runs, differences_by_origin(directories)))
    return Group(table(rows, out), *(line(run) for run in runs if run.reason)), runs
