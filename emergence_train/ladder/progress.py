"""Where the runs of a ladder are: read from their directories, and from the notes of whoever starts them."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emergence_train import files
from emergence_train.errors import InputError, Stopped
from emergence_train.input_files import read_text
from emergence_train.ladder.file import LOGS, Ladder, Row, row_config
from emergence_train.ladder.queue import HELD, NEVER, QUEUED
from emergence_train.ladder.trainer import HERE, slurm_job, trainer
from emergence_train.recorder.layout import step_name
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.naming import is_run
from emergence_train.recorder.sessions import read_sessions
from emergence_train.run_differences import VOLATILE, flat, read_config, within

# Exit codes of a run that was stopped: all is saved, or the signal came before it answers any, and nothing was trained
STOPPED = (Stopped.code, -signal.SIGTERM)
NOTES = "starts.json"  # in LOGS: by run, its last start: exit code, and where it runs or waits


@dataclass(frozen=True)
class Progress:
    """A run's state: done, running, queued, stopped (a state is saved), failed or waiting (not begun); and how far it is."""

    run: str
    state: str
    step: int
    total_steps: int
    tokens: int
    loss: float | None = None  # held out (iid), else of the last step, nats a token
    forecast: float | None = None  # of the loss at the end
    low95: float | None = None
    high95: float | None = None
    note: str | None = None  # why it failed or what it waits for


def missing_file(ladder: Ladder, row: Row) -> Path | None:
    """What a run that is done has and this one has not: the table of its last step, and its state where it keeps one."""
    run, last = ladder.directory(row.run), step_name(row.total_steps)
    wanted = [
        run / "positions" / f"{last}.parquet",
        *([run / "checkpoints" / last / "manifest.json"] if row.saves else []),
    ]
    return next((path for path in wanted if not path.is_file()), None)


def done(ladder: Ladder, row: Row) -> bool:
    """Whether the run has the files of its end. Starting it again checks more."""
    return missing_file(ladder, row) is None


def check_settings(ladder: Ladder) -> None:
    """Raise InputError where a run has begun with other settings than the ladder's file gives now: `train` would refuse them, and
    is not started for one that is done. Whether a plan may be longer is left to it."""
    for row in ladder.rows:
        run = ladder.directory(row.run)
        if not is_run(run):
            continue
        # a run's file has what model.preset stands for
        given = [override.partition("=")[0].removesuffix(".preset") for override in row.overrides]
        before, now = flat(read_config(run)), flat(row_config(ladder.config, row.overrides).model_dump(mode="json"))
        for key in given:
            had, has = _entries(before, key), _entries(now, key)
            if had != has:
                _refuse(run, f"{key} of {had} entries", f"{has}")
        for key in (key for key in now if key in before and within(key, given) and not within(key, VOLATILE)):
            longer = key == "training.tokens" and isinstance(before[key], int) and before[key] < now[key]
            if now[key] is not None and before[key] != now[key] and not longer:  # None: the start of a run resolves it
                _refuse(run, f"{key} = {before[key]}", f"{now[key]}")


def _entries(tree: dict[str, Any], key: str) -> int:
    """How many entries a list of sections has in a flat configuration."""
    first = {name.removeprefix(f"{key}.").split(".")[0] for name in tree if name.startswith(f"{key}.")}
    return sum(part.isdigit() for part in first)


def _refuse(run: Path, was: str, now: str) -> None:
    raise InputError(
        f"{run}: is a run with {was}, not {now}; give the ladder another out, or its file the former value"
    )


def ready(ladder: Ladder, row: Row) -> bool:
    """Whether the run may start: the state that it begins from is there, or was already taken over."""
    if row.parent is None or (ladder.directory(row.run) / "parent.json").is_file():
        return True
    state = ladder.directory(row.parent) / "checkpoints" / step_name(row.parent_step)
    return (state / "manifest.json").is_file()


def blocked_reason(ladder: Ladder, row: Row) -> str | None:
    """Why the run can never start as things are: its parent is done, and has not the state that it begins from."""
    if row.parent is None or ready(ladder, row):
        return None
    parent = next(other for other in ladder.rows if other.run == row.parent)
    if not done(ladder, parent):
        return None
    state = ladder.directory(row.parent) / "checkpoints" / step_name(row.parent_step)
    return f"without {state}: restore that, or move {row.parent} away, which is then trained again"


def read_notes(ladder: Ladder) -> dict[str, dict]:
    """The last start of each run, as whoever starts them noted it."""
    path = ladder.out / LOGS / NOTES
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{ladder.out / LOGS}/starts.json: cannot be read ({reason}); delete it") from None


def write_notes(ladder: Ladder, notes: dict[str, dict]) -> None:
    files.make_directory(ladder.out / LOGS)
    files.write_json(ladder.out / LOGS / NOTES, notes)


def progress(ladder: Ladder, row: Row, note: dict, queue: dict[str, str] | None) -> Progress:
    """The state of a run. `queue`: states of Slurm's jobs by their number; None where Slurm does not answer."""
    run = ladder.directory(row.run)
    step, loss = 0, None
    ahead: dict = {}
    if is_run(run):
        metrics = Metrics.read(run)
        steps, losses = metrics.train("step"), metrics.train("loss")
        step = int(steps[-1]) if len(steps) else 0
        held = [(event.get("loss") or {}).get("iid") for event in metrics.events if event.get("kind") == "validation"]
        held = [value for value in held if value is not None]
        finite = losses[np.isfinite(losses)]
        loss = held[-1] if held else float(finite[-1]) if len(finite) else None
        ahead = next((event for event in reversed(metrics.events) if event.get("kind") == "forecast"), {})
    state, why = _state(ladder, row, note, queue, step)
    share = step / row.total_steps
    ahead = {} if state == "done" else ahead
    end = (ahead.get("loss"), ahead.get("low95"), ahead.get("high95"))
    return Progress(row.run, state, step, row.total_steps, round(share * row.tokens), loss, *end, why)


def _state(ladder: Ladder, row: Row, note: dict, queue: dict[str, str] | None, step: int) -> tuple[str, str | None]:
    """By the run's files, whoever trains it; then by Slurm; then by how its last start ended."""
    if done(ladder, row):
        return "done", None
    run, log = ladder.directory(row.run), ladder.out / LOGS / f"{row.run}.log"
    job = f"job {note['job']}" if "job" in note else None
    state = (queue or {}).get(note.get("job", ""))
    if state and state not in QUEUED:
        return "running", job if state == "RUNNING" else f"{job}: {state.lower()}"
    trained_by = trainer(ladder, row.run, note)
    if (
        trained_by == HERE or trained_by and state is None
    ):  # what a job that waits anew wrote last is no sign of another
        return "running", job if trained_by == HERE else trained_by
    if state == NEVER and row.parent:
        return "queued", f"{job} waits for a job that is gone; run ladder --slurm again"
    if state is not None:
        return "queued", f"{job} is held; scontrol release {note['job']}" if state == HELD else job
    session = last_start(run, note)
    code = note.get("code", session.get("exit_code"))
    if code not in (None, 0, *STOPPED):
        return "failed", f"exit code {code}: {log}"
    if job and queue is None:
        return "stopped", f"{job}: Slurm does not answer"
    if session and code is None:
        # Slurm would have requeued it; here a power cut takes the ladder with it, which starts a run again whose process is lost
        return ("failed", f"its process was lost: {log}") if job else ("stopped", "its process was lost")
    if job and not session and log.exists():  # it has run, and ended before it began to train
        return "failed", f"{job} has ended: {log}"
    if step or (note and (not job or session)):
        return "stopped", None
    gone = f"{job} is gone; run ladder --slurm again" if job else None
    waits = None if ready(ladder, row) else f"for {row.parent}@{row.parent_step}"
    return "waiting", blocked_reason(ladder, row) or gone or waits


def last_start(run: Path, note: dict) -> dict:
    """What the run itself wrote of the start that is noted; empty where it came to no step."""
    session = (read_sessions(run) or [{}])[-1]
    if "job" in note:
        return session if slurm_job(session) == note["job"] else {}
    return session if note and all(session.get(key) == note.get(key) for key in ("host", "pid")) else {}


def format_table(rows: list[Progress]) -> str:
    """A line for each run."""
    width = max(len(row.run) for row in rows)
    lines = [f"{'run':<{width}}  state    {'step':>17}  {'loss':>7}  forecast of the end"]
    for row in rows:
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        ahead = "" if row.forecast is None else f"{row.forecast:.4f} [{row.low95:.4f}, {row.high95:.4f}]"
        steps = f"{row.step:,} / {row.total_steps:,}"
        lines.append(f"{row.run:<{width}}  {row.state:<7}  {steps:>17}  {loss:>7}  {ahead or row.note or ''}".rstrip())
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts.items())])
