"""Where a run is: state, step, loss, forecast, speed. A few hundred kilobytes are read, of whatever length the run is."""

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from emergence_train.errors import InputError
from emergence_train.formatting import duration
from emergence_train.models.devices import mfu_of_rate
from emergence_train.recorder.layout import resumption, saved_step, step_name, step_of
from emergence_train.recorder.log_file import LogFile
from emergence_train.recorder.metrics import TRAIN
from emergence_train.recorder.naming import may_be_run, run_name, runs_below
from emergence_train.recorder.planned_end import has_ended, planned_steps, planned_tokens
from emergence_train.recorder.sessions import alive, read_sessions

END_BYTES = 1 << 17  # of the log's end: 700 steps
RECENT = 64  # steps that loss and speed are means of
QUIET_SECONDS = 120.0  # without a row, at least: then a run is stale
QUIET_ROWS = 20  # and without a row for so many times as rows are apart
QUIET_CHECKPOINTS = 3  # and for so many times a checkpoint's measurements
ENDED = (0, 1, 2)  # exit codes after which no requeue resumes it: closed before its end, or failed
TABLE = re.compile(r"step-\d{10}\.parquet")
STATES = ("running", "finished", "stopped", "stale", "imported")


@dataclass(frozen=True)
class Forecast:
    """The loss expected at the run's end, nats per token, with its 95% interval; or why there is none."""

    step: int  # the checkpoint that it was made at
    loss: float | None
    low95: float | None
    high95: float | None
    reason: str | None


@dataclass(frozen=True)
class Progress:
    """A run at a moment. Losses in nats per token; None where the run's files do not say."""

    name: str
    path: Path
    state: str  # one of STATES
    reason: str  # of the state, for people; may be empty
    step: int
    total_steps: int | None
    tokens: int
    total_tokens: int | None
    loss: float | None  # training, mean of the last RECENT steps
    iid: float | None  # held out, at the last checkpoint
    forecast: Forecast | None
    lr: float | None
    grad_norm: float | None
    tokens_per_second: float | None  # median of the last RECENT steps: validation and saving excluded
    mfu: float | None  # a share of the devices' dense bf16 peak
    eta_seconds: float | None  # with the checkpoints' measurements, without saving; None where nothing is running
    age_seconds: float  # since the log was written
    awaited: bool = False  # it is stopped and a requeue may resume it: it did not fail
    saved_step: int | None = None  # of the newest saved state; 0: none yet; None: it does not save here
    problem: str = ""  # the first value in the log, by file, row and column, that cannot be used


@dataclass(frozen=True)
class LogEnd:
    """What the end of the log and the rows of the last checkpoint say."""

    header: dict
    train: list[dict]  # the last RECENT steps
    checkpoint: dict[str, dict]  # by kind: the rows of the last checkpoint that is written
    tables: list[int]  # steps of the positions tables
    log: LogFile


def run_directories(places: list[Path]) -> list[Path]:
    """The runs in each place: itself, or those in it, at most two levels down. InputError where there is none."""
    runs: list[Path] = []
    for place in places:
        inside = [place] if may_be_run(place) else runs_below(place)
        if not inside:
            what = "holds no run that has begun" if place.is_dir() else "no such directory"
            raise InputError(f"{place}: {what}; name a run directory, or one that holds run directories")
        runs += inside
    return list(dict.fromkeys(runs))


def progress(run: Path, name: str | None = None) -> Progress:
    """Where the run is. Raises InputError where it has not begun."""
    with LogFile(run) as log:
        return progress_of(run, read_end(run, log), name)


def read_end(run: Path, log: LogFile) -> LogEnd:
    """The end of the log, and the last checkpoint's rows."""
    lines = log.end(END_BYTES)
    train = log.rows([line for line in lines if line.startswith(TRAIN)][-RECENT:])
    last = log.rows([line for line in lines if not line.startswith(TRAIN)])
    steps = tables_of(run)
    checkpoint = {row["kind"]: row for row in (log.rows_at(steps[-1]) if steps else []) if "kind" in row}
    checkpoint |= {row["kind"]: row for row in last if row.get("kind") in ("validation", "forecast", "evaluation")}
    return LogEnd(log.header(), train, checkpoint, steps, log)


def tables_of(run: Path) -> list[int]:
    """The steps that have a positions table, in order; without looking at the files."""
    try:
        return sorted(step_of(Path(name)) for name in os.listdir(run / "positions") if TABLE.fullmatch(name))
    except OSError:
        return []


def progress_of(run: Path, end: LogEnd, name: str | None = None) -> Progress:
    header, last = end.header, end.train[-1] if end.train else {}
    if header.get("imported"):  # checkpoints of existing models, and no steps
        last = end.checkpoint.get("validation", {})
    step, tokens, speed = last.get("step", 0), last.get("tokens", 0), _median(end.train, "tokens_per_second")
    step_tokens = _step_tokens(header) or (tokens / step if step else 0)
    total_tokens = planned_tokens(header, step, tokens) or None
    total_steps = _total_steps(end, step, tokens, step_tokens)
    sessions, age = read_sessions(run), max(0.0, time.time() - end.log.modified)
    session = sessions[-1] if sessions else {}
    state, reason = _state(run, end, sessions, step, total_steps, age)
    share = mfu_of_rate(header, session)
    return Progress(
        name=name or run_name(run),
        path=run,
        state=state,
        reason=reason,
        step=step,
        total_steps=total_steps,
        tokens=tokens,
        total_tokens=total_tokens,
        loss=_mean_loss(end.train),
        iid=(end.checkpoint.get("validation", {}).get("loss") or {}).get("iid"),
        forecast=forecast_of(end.checkpoint.get("forecast")) if state != "finished" else None,
        lr=last.get("lr"),
        grad_norm=last.get("grad_norm"),
        tokens_per_second=speed,
        mfu=speed * share if speed and share else None,
        eta_seconds=_eta(end, total_steps, step, step_tokens, speed) if state == "running" else None,
        age_seconds=age,
        awaited=state == "stopped" and session.get("exit_code") not in ENDED,
        saved_step=saved_step(run),
        problem=end.log.problem,
    )


def _step_tokens(header: dict) -> int:
    """Tokens of a step of `train`; 0 of a Recorder's, whose batch nobody says."""
    return header.get("batch", 0) * header.get("sequence", 0)


def _total_steps(end: LogEnd, step: int, tokens: int, step_tokens: float) -> int | None:
    """The planned last step: of tokens at the pace of the last rows, which may be of a larger batch than the first ones."""
    total = end.header.get("total_tokens")
    if not total or not step_tokens:
        return end.header.get("total_steps")
    if "batch" in end.header:
        return int(total / step_tokens)
    first = end.train[0] if end.train else {}
    steps, trained = step - first.get("step", step), tokens - first.get("tokens", tokens)
    pace = trained / steps if steps > 0 and trained > 0 else step_tokens
    return round(step + (total - tokens) / pace)


def _state(run: Path, end: LogEnd, sessions: list[dict], step: int, total: int | None, age: float) -> tuple[str, str]:
    """(one of STATES, the reason). The process itself is asked for where it is one of this machine, else the log's age."""
    if total is not None and step >= total and end.tables and end.tables[-1] >= total:
        return "finished", ""
    if end.header.get("imported"):
        return "imported", ""
    session = sessions[-1] if sessions else {}
    if session.get("exit_code") == 0 and not _before_end(end):  # of a Recorder, which was closed
        return "finished", ""
    if "ended" in session:
        return "stopped", str(session.get("reason", ""))
    lives = alive(session)
    if lives is False:
        resumed = resumption(run)
        return "stopped", "its process was lost" + (f"; the same train command {resumed}" if resumed else "")
    if age <= quiet_seconds(end):
        return "running", ""
    where = "its process is there" if lives else f"on {session.get('host', 'a machine that is not known')}"
    return "stale", f"no row for {duration(age)}, {where}"


def quiet_seconds(end: LogEnd) -> float:
    """How long a run that is trained may write no row: some write one every so many steps."""
    speed, tokens = _median(end.train, "tokens_per_second"), _numbers(end.train, "tokens")
    apart = [later - before for before, later in pairwise(tokens)]
    row_tokens = median(apart) if apart else _step_tokens(end.header)
    row_seconds = row_tokens / speed if speed else 0.0
    return max(QUIET_SECONDS, QUIET_ROWS * row_seconds, QUIET_CHECKPOINTS * _checkpoint_seconds(end))


def _before_end(end: LogEnd) -> bool:
    """Whether an end is planned that the rows do not reach."""
    tokens, step = max(
        ((row.get("tokens", 0), row.get("step", 0)) for row in [*end.train[-1:], *end.checkpoint.values()]),
        default=(0, 0),
    )
    return planned_steps(end.header, step, tokens) is not None and not has_ended(end.header, step, tokens)


def _checkpoint_seconds(end: LogEnd) -> float:
    rows = (end.checkpoint.get(kind, {}).get("seconds") for kind in ("validation", "evaluation"))
    return sum(seconds for seconds in rows if isinstance(seconds, (int, float)))


def _eta(end: LogEnd, total: int | None, step: int, step_tokens: float, speed: float | None) -> float | None:
    """Seconds: the steps that are left at the present speed, and as many checkpoints as the last two were apart."""
    if total is None or not speed:
        return None
    left = total - step
    apart = end.tables[-1] - end.tables[-2] if len(end.tables) > 1 else left or 1
    return left * step_tokens / speed + left // apart * _checkpoint_seconds(end)


def forecast_of(row: dict | None) -> Forecast | None:
    if row is None:
        return None
    return Forecast(row.get("step", 0), *(row.get(key) for key in ("loss", "low95", "high95", "reason")))


def _numbers(rows: list[dict], key: str) -> list[float]:
    return [row[key] for row in rows if isinstance(row.get(key), (int, float))]


def _mean_loss(rows: list[dict]) -> float | None:
    numbers = _numbers(rows, "loss")
    return fmean(numbers) if numbers else None


def _median(rows: list[dict], key: str) -> float | None:
    numbers = _numbers(rows, key)
    return median(numbers) if numbers else None


def table_path(run: Path, folder: str, step: int) -> Path:
    return run / folder / f"{step_name(step)}.parquet"


def counted(names: list[str]) -> str:
    """3 skipped, 1 spike."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())
