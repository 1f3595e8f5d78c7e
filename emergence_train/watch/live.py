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

from emergence_train.formatting import duration
from emergence_train.recorder.naming import names_of
from emergence_train.run_differences import differences_by_origin
from emergence_train.watch.details import details
from emergence_train.watch.listing import table
from emergence_train.watch.progress import Progress, progress, run_directories
from emergence_train.watch.screen import fitting, line, screen

SECONDS, LINE_SECONDS = 2.0, 30.0  # between screens; between lines of a log
LOST_SECONDS = 3600.0  # stale for so long: nobody who reads a file is kept waiting for it


def console(piped: int | None = None) -> Console:
    """Standard output as rich has it: names and texts are shown as they are, whatever brackets are in them, and what the
    terminal has no character for as a question mark. `piped`: its width without a terminal, for rows that are not to break."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else piped
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


class Patience:
    """Whether to look again: while a run is running, and for `seconds` after the last one while a stopped one may be resumed.

    `for_ever` of stale runs: on a terminal someone can leave; without one they are given up after LOST_SECONDS.
    """

    def __init__(self, seconds: float, for_ever: bool) -> None:
        self.seconds, self.for_ever = seconds, for_ever
        self._since: float | None = None

    def more(self, runs: list[Progress]) -> bool:
        """Whether any of `runs` is worth another look."""
        if any(run.state == "running" or (run.state == "stale" and not self._lost(run)) for run in runs):
            self._since = None
            return True
        self._since = time.monotonic() if self._since is None else self._since
        return any(run.awaited for run in runs) and time.monotonic() - self._since < self.seconds

    def note(self, runs: list[Progress]) -> str:
        """What is waited for, and how to leave; "" while a run is running."""
        if self._since is None or not any(run.awaited for run in runs):
            return ""
        limit = "" if math.isinf(self.seconds) else f", {duration(self.seconds)} at most"
        return f"waiting for a requeue, or the same train command, to resume it{limit}; Ctrl-C leaves"

    def _lost(self, run: Progress) -> bool:
        return not self.for_ever and run.age_seconds > LOST_SECONDS


def watch(places: list[Path], *, seconds: float | None = None, once: bool = False, wait: float | None = None) -> None:
    """Show runs until none is running any more, or the user interrupts; with `once` as they are now.

    wait: seconds for which a stopped run that did not fail is waited for: by default for ever on a terminal, and not at
    all without one, so that no script hangs.
    """
    out = console()
    if once:
        out.print(_view(places, out)[0])
        return
    with contextlib.suppress(KeyboardInterrupt):
        if out.is_terminal and not out.is_dumb_terminal:  # TERM=dumb: no place to draw the same lines again
            _on_terminal(places, out, seconds or SECONDS, Patience(math.inf if wait is None else wait, True))
        else:
            patience = Patience(wait or 0.0, False)
            _as_lines(places, lambda text: out.print(text, soft_wrap=True), seconds or LINE_SECONDS, patience)


def _on_terminal(places: list[Path], out: Console, seconds: float, patience: Patience) -> None:
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            shown, runs = _view(places, out, live=True, patience=patience)
            live.update(shown, refresh=True)
            if not patience.more(runs):
                break
            time.sleep(seconds)
    for run in runs:
        out.print(line(run))


def _as_lines(places: list[Path], log: Callable[[str], None], seconds: float, patience: Patience) -> None:
    """A line for a run where anything has changed, at once where that is its state."""
    shown: dict[Path, Progress] = {}
    logged_at, noted = -math.inf, False
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
        if not patience.more(runs):
            return
        if (note := patience.note(runs)) and not noted:
            log(note)
        noted = bool(note)
        time.sleep(min(seconds, SECONDS))


def _runs(places: list[Path]) -> list[Progress]:
    """Where the runs are; of a directory also those that have begun since."""
    directories = run_directories(places)
    names = names_of(directories)
    return [progress(run, names.get(run)) for run in directories]


def _view(
    places: list[Path], out: Console, live: bool = False, patience: Patience | None = None
) -> tuple[RenderableType, list[Progress]]:
    """One run with all there is to see of it (`live`: what the terminal has lines for), several as a table."""
    directories = run_directories(places)
    if len(directories) == 1:
        shown = details(directories[0])
        runs, note = [shown.progress], ""
        if patience is not None and patience.more(runs):
            note = patience.note(runs)
        return (fitting(shown, out, note) if live else screen(shown, out)), runs
    names = names_of(directories)
    runs = [progress(run, names.get(run)) for run in directories]
    rows = list(zip(runs, differences_by_origin(directories)))
    note = patience.note(runs) if patience is not None and patience.more(runs) else ""
    return Group(
        table(rows, out), *(line(run) for run in runs if run.reason or run.problem), *([note] if note else [])
    ), runs
