"""When do hidden runs reach levels of performance that were ahead? Forecasts against the runs' own measured scores.

Each run of a table is hidden in turn. The other runs give performance as a function of loss, hence the loss at which a level is
reached; the hidden run's first losses give the forecast of its loss; both give the tokens at which it gets there. The truth is
where a monotone curve through the run's own scores crosses the level: nothing of the forecast is in it. Only levels that this
curve had not reached where the observation ends count.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import generator
from emergence_train.analysis.emergence.forecast import crossing, draw_losses
from emergence_train.analysis.emergence.shapes import Posterior, posterior

OBSERVED = 0.2  # of the run's tokens
LEVELS = {
    "hellaswag": 0.02,
    "arc_easy": 0.02,
    "piqa": 0.02,
}  # steps between levels; tasks whose items can tell them apart


def crossings(path: Path, rate_known: bool) -> pd.DataFrame:
    """Forecast and truth of every run, task and level of the table at `path` that was ahead; tokens, inf where not reached.

    `rate_known`: the forecast knows that the learning rate stays constant; else it has only the table, as users' have.
    """
    frame = pd.read_csv(path)
    rows = []
    plan = {"training": {"tokens": int(frame["tokens"].max()), "schedule": {"kind": "constant", "lr": 1e-3}}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(plan))
        for name, step in LEVELS.items():
            task_rows = frame[frame["task"] == name].sort_values(["run", "step"])
            task = emergence_table.task_metric("", name, "acc", task_rows)
            for run in task.frame["run"].unique():
                rows += _hidden_run(task, str(run), step, Path(folder) if rate_known else None)
    return pd.DataFrame(rows)


def summaries(table: pd.DataFrame) -> dict:
    """Coverage of the forecasts by task and of all, with errors in factors of tokens."""
    return {name: _summary(part) for name, part in [*table.groupby("task"), ("all", table)]}


def _summary(rows: pd.DataFrame) -> dict:
    reached = rows[np.isfinite(rows["actual"])]
    both = reached[np.isfinite(reached["predicted"])]
    factor = np.abs(np.log(both["predicted"] / both["actual"]))
    never = rows[~np.isfinite(rows["actual"])]
    return {
        "crossings_ahead": len(rows),
        "runs": int(rows["run"].nunique()),
        "reached_by_the_end": len(reached),
        "coverage95": float(rows["inside"].mean()),
        "coverage95_reached": float(reached["inside"].mean()),
        "median_factor": float(np.exp(factor.median())),
        "too_late": float((reached["predicted"] > reached["actual"]).mean()),
        "forecast_reached_where_it_was": float(np.isfinite(reached["predicted"]).mean()),
        "forecast_reached_where_it_was_not": float(np.isfinite(never["predicted"]).mean()) if len(never) else None,
    }


def _hidden_run(task: emergence_table.TaskMetric, run: str, step: float, plan: Path | None) -> list[dict]:
    hidden = (task.frame["run"] == run).to_numpy()
    others = emergence_table.part(task, ~hidden)
    points = task.frame[hidden].sort_values("step")
    tokens, score = points["tokens"].to_numpy(float), monotone(points["value"].to_numpy(float))
    rng = generator(run, task.task)
    ahead = draw_losses(run, points, plan, rng, until=OBSERVED)
    drawn = posterior(others.rows, task.scale, rng)
    seen = tokens <= OBSERVED * tokens[-1]
    offset = rng.normal(
        0, between_runs(others, drawn), len(drawn.curves)
    )  # a new run has its own, as those that were seen
    rows = []
    for level in np.arange(0.24, 0.9, step):
        if level <= score[seen][-1] or level > score[-1] + step or not len(ahead.future):
            continue
        eta = losses_at(level, others, drawn.grid, drawn.curves + offset[:, None])
        predicted = crossing(ahead, eta, rng).tokens
        actual = _first_at(level, tokens, score)
        low, middle, high = (
            np.inf if at is None else at for at in (predicted.low95, predicted.value, predicted.high95)
        )
        rows.append({"task": task.task, "run": run, "level": level, "predicted": middle, "actual": actual})
        rows[-1] |= {"low": low, "high": high, "inside": bool(low <= actual <= high)}
    return rows


def between_runs(task: emergence_table.TaskMetric, drawn: Posterior) -> float:
    """Standard deviation of the runs' own offsets from the common curve: of their scores at equal loss."""
    rest = task.rows.y - np.interp(task.rows.x, drawn.grid, drawn.curves.mean(0))
    return float(pd.Series(rest).groupby(task.rows.run).mean().std())


def losses_at(level: float, task: emergence_table.TaskMetric, grid: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """(S,) the loss at which each drawn curve (S, G) along the range first reaches `level`; 0 nats where it never does."""
    above = curves >= level
    place = np.maximum(above.argmax(1), 1)
    row = np.arange(len(curves))
    before, after = curves[row, place - 1], curves[row, place]
    share = np.clip((level - before) / np.where(after > before, after - before, 1), 0, 1)
    x = grid[place - 1] + share * (grid[place] - grid[place - 1])
    return np.where(above.any(1), task.loss_from + x * (task.loss_to - task.loss_from), 0.0)


def monotone(values: np.ndarray) -> np.ndarray:
    """Least squares among rising sequences: neighbours that fall are replaced by their mean, again and again."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count),
                blocks[-1][1] + count,
            ]
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])


def _first_at(level: float, tokens: np.ndarray, score: np.ndarray) -> float:
    if score[-1] < level:
        return float("inf")
    place = int(np.argmax(score >= level))
    gap = score[place] - score[place - 1]
    share = (level - score[place - 1]) / gap if gap > 0 else 1.0
    return float(np.exp(np.log(tokens[place - 1]) + share * np.log(tokens[place] / tokens[place - 1])))
