"""What `watch` shows of a run beside its progress: the curve, forecasts so far, events, tasks, the loss by position, samples."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emergence_train.errors import InputError
from emergence_train.input_files import regular
from emergence_train.recorder.log_file import LogFile
from emergence_train.recorder.metrics import TRAIN
from emergence_train.watch.listing import progress_json
from emergence_train.watch.progress import Forecast, Progress, forecast_of, progress_of, read_end, table_path

EVENT_BYTES = 1 << 22  # of the log's end: 24,000 steps
# Along the log; equal in log tokens, each the mean of the steps that were read there
CURVE_PLACES, CURVE_POINTS = 48, 120
PAST_FORECASTS = 6
EVENTS = ("skipped", "spike", "rewind", "stop", "drift", "save_failed", "straggler", "starved")


@dataclass(frozen=True)
class Event:
    step: int
    kind: str  # one of EVENTS
    text: str


@dataclass(frozen=True)
class TaskScore:
    task: str
    metric: str
    value: float
    stderr: float | None
    chance: float | None


@dataclass(frozen=True)
class PositionCurve:
    """Mean loss at each position at the last checkpoint, nats per token."""

    step: int
    split: str
    position: list[int]
    loss: list[float]


@dataclass(frozen=True)
class Details:
    progress: Progress
    losses: dict[str, float]  # by split, at the last checkpoint
    curve: list[tuple[float, float]]  # (tokens, loss) along the run, means of some steps
    forecasts: list[Forecast]  # at the last checkpoints, oldest first
    events: list[Event]  # newest last
    events_since: int  # the step from which on events are listed
    tasks: list[TaskScore]
    positions: PositionCurve | None
    samples: list[dict[str, str]]  # prompt and text, at the last checkpoint that has some


def details(run: Path) -> Details:
    """All of it as it is now. Raises InputError where the run has not begun."""
    with LogFile(run) as log:
        end = read_end(run, log)
        events, since = _events(log)
        rows = log.train_rows_along(CURVE_PLACES)
        past = [log.rows_at(step) for step in end.tables[-PAST_FORECASTS:]]
    forecasts = [forecast_of(row) for rows_at in past for row in rows_at if row.get("kind") == "forecast"]
    losses = end.checkpoint.get("validation", {}).get("loss") or {}
    return Details(
        progress=progress_of(run, end),
        losses={str(split): loss for split, loss in losses.items() if isinstance(loss, (int, float))},
        curve=_curve(rows),
        forecasts=[forecast for forecast in forecasts if forecast is not None],
        events=events,
        events_since=since,
        tasks=_tasks(run, end.tables),
        positions=_positions(run, end.tables),
        samples=end.checkpoint.get("samples", {}).get("texts", []),
    )


def as_json(shown: Details) -> dict:
    return asdict(shown) | {"progress": progress_json(shown.progress)}


def _curve(rows: list[dict]) -> list[tuple[float, float]]:
    points = [
        (row["tokens"], row["loss"]) for row in rows if isinstance(row.get("loss"), (int, float)) and row.get("tokens")
    ]
    if not points:
        return []
    tokens, loss = np.array(points, float).T
    share = np.log(tokens / tokens[0]) / (np.log(tokens[-1] / tokens[0]) or 1.0)
    part = np.minimum((share * CURVE_POINTS).astype(int), CURVE_POINTS - 1)
    return [(float(tokens[part == k].mean()), float(loss[part == k].mean())) for k in np.unique(part)]


def _events(log: LogFile) -> tuple[list[Event], int]:
    """The events in the last EVENT_BYTES, and the first step there."""
    lines = log.end(EVENT_BYTES)
    first = next((row.get("step", 0) for row in log.rows([line for line in lines if line.startswith(TRAIN)][:1])), 0)
    rows = log.rows([line for line in lines if not line.startswith(TRAIN)])
    events = [row for row in rows if row.get("kind") in EVENTS]
    return [Event(row.get("step", 0), row["kind"], _text(row)) for row in events], first


def _text(row: dict) -> str:
    if row["kind"] != "straggler":
        return str(row.get("reason", ""))
    share = row.get("share") or 0.0
    return f"rank {row.get('rank')} behind by {row.get('seconds') or 0.0:.3g} s a step ({share:.0%}), in {row.get('operation')}"


def _tasks(run: Path, steps: list[int]) -> list[TaskScore]:
    """The scores of the last checkpoint that has some, those of the share right first."""
    import pyarrow.parquet as pq

    for step in reversed(steps[-2:]):  # the newest may not be scored yet
        path = table_path(run, "evaluations", step)
        if path.is_file():
            try:
                rows = pq.read_table(path).to_pylist()
            except (OSError, ValueError):  # as below
                return []
            scores = [
                TaskScore(row["task"], row["metric"], row["value"], row.get("stderr"), row.get("chance"))
                for row in rows
                if row.get("value") is not None
            ]
            main = {score.task: score for score in reversed(scores)}  # of a task the first metric, unless acc is there
            main |= {score.task: score for score in scores if score.metric in ("acc", "exact_match")}
            return [main[task] for task in dict.fromkeys(score.task for score in scores)]
    return []


def _positions(run: Path, steps: list[int]) -> PositionCurve | None:
    """The curve of iid, or of the first split where there is no iid, at the last checkpoint."""
    import pyarrow.parquet as pq

    if not steps:
        return None
    try:
        path = regular(table_path(run, "positions", steps[-1]))
        table = pq.read_table(path, columns=["split", "position", "count", "loss_sum"])
    except (InputError, OSError, ValueError):  # a resumed run has removed it, or it is damaged: the analyses name it
        return None
    if not len(table):  # no loss was finite
        return None
    splits = table["split"].to_numpy(zero_copy_only=False)
    split = "iid" if "iid" in splits else str(splits[0])
    count = table["count"].to_numpy()
    mine = (splits == split) & (count > 0)
    loss = table["loss_sum"].to_numpy()[mine] / count[mine]
    position = table["position"].to_numpy()[mine]
    order = np.argsort(position)
    return PositionCurve(steps[-1], split, position[order].tolist(), loss[order].tolist())
