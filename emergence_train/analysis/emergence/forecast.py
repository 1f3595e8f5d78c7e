"""When will a run gain an ability? The threshold from smaller or earlier runs, times the loss forecast of the temporal law.

The loss a run will have is drawn as whole curves (a run that turns out better is better throughout), the threshold from its
posterior; each pair crosses at some number of tokens or not before the planned end.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.runs import planned_rates
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.errors import InputError

DRAWS = 1000
POINTS = 60
HORIZON = 10  # times the observed tokens, for runs whose planned end is not known
OBSERVED = 0.4  # share of the hidden run's tokens that a backtest sees


@dataclass
class Outlook:
    """One run: observed tokens and running minimum of the loss (n,), and drawn loss curves (S, m) at future tokens."""

    run: str
    params: int
    tokens: np.ndarray
    loss: np.ndarray
    future: np.ndarray
    curves: np.ndarray
    planned: bool  # whether the last of `future` is the planned end
    note: str = ""


def outlooks(frame: pd.DataFrame, directories: dict[str, Path], rng: np.random.Generator, until: float | None = None):
    """An Outlook for each run of the evaluations in `frame`. `until`: only this share of the tokens is seen."""
    return [
        outlook(str(run), rows.drop_duplicates("step").sort_values("step"), directories.get(str(run)), rng, until)
        for run, rows in frame.groupby("run", sort=True)
    ]


def outlook(run: str, rows: pd.DataFrame, directory: Path | None, rng, until: float | None = None) -> Outlook:
    rows = rows[rows["tokens"] > 0]
    step, tokens, loss = (rows[name].to_numpy(float) for name in ("step", "tokens", "loss"))
    params = int(rows["params"].iloc[0]) if len(rows) else 0
    if not len(step):
        return Outlook(run, params, tokens, loss, np.empty(0), np.empty((0, 0)), False, "no row after token 0")
    plan, end, planned = _plan(directory, tokens, step)
    if until is not None:
        end, planned = tokens[-1], True
        seen = tokens <= until * tokens[-1]
        step, tokens, loss = step[seen], tokens[seen], loss[seen]
    if not len(step) or end <= tokens[-1] * 1.001:
        return Outlook(run, params, tokens, loss, np.empty(0), np.empty((0, 0)), planned)
    future = np.geomspace(tokens[-1], end, POINTS + 1)[1:]
    try:
        per_step = tokens[-1] / step[-1]
        one = forecast(step, loss, future / per_step, plan)
    except InputError as error:
        return Outlook(run, params, tokens, loss, np.empty(0), np.empty((0, 0)), planned, str(error))
    z = rng.standard_normal(DRAWS)[:, None]
    # Where the rate to come is unknown it may decay or not: between the forecast and its lower bound.
    decay = rng.uniform(0, 1, (DRAWS, 1)) * one.shift_low
    return Outlook(run, params, tokens, loss, future, one.mean + z * one.sd - decay, planned, "; ".join(one.notes))


def _plan(directory: Path | None, tokens: np.ndarray, step: np.ndarray) -> tuple[PlannedSchedule | None, float, bool]:
    """(learning rates by step, last token to forecast to, whether that is the planned end)."""
    if directory is not None and (directory / "config.yaml").is_file():
        rates = planned_rates(directory / "config.yaml")
        if rates is not None:
            return PlannedSchedule(rates[:, 0] / (tokens[-1] / step[-1]), rates[:, 1]), float(rates[-1, 0]), True
    return None, HORIZON * float(tokens[-1]), False


def fan(one: Outlook) -> dict | None:
    """The forecast loss of a run that goes on: {"run", "params", "planned_end_known", "tokens": [...], "loss": medians, and
    "low50" to "high95": quantiles}, in nats; None where there is no forecast."""
    if not len(one.future):
        return None
    bands = {
        f"{side}{level}": np.quantile(one.curves, 0.5 + sign * level / 200, axis=0).tolist()
        for level in (95, 80, 50)
        for side, sign in (("low", -1), ("high", 1))
    }
    return {
        "run": one.run,
        "params": one.params,
        "planned_end_known": one.planned,
        "tokens": one.future.tolist(),
        "loss": np.median(one.curves, axis=0).tolist(),
        **bands,
    }


def crossing(one: Outlook, eta: np.ndarray, rng: np.random.Generator) -> dict:
    """Tokens at which the run's loss falls to the threshold, from draws `eta` (nats) of it.

    {"run", "params", "status" ("reached", "expected", "open", "not-before-the-end"), "tokens": {"value", "low95", "high95"},
    "probability" that it happens by "until_tokens"}; an open end of an interval is None.
    """
    threshold = rng.choice(eta, DRAWS)
    reached, tokens = np.zeros(DRAWS, bool), np.full(DRAWS, np.inf)
    until = float(one.tokens[-1]) if len(one.tokens) else 0.0
    if len(one.loss):
        best = np.minimum.accumulate(one.loss)
        reached = threshold >= best[-1]
        tokens[reached] = _first(threshold[reached], one.tokens, np.tile(best, (int(reached.sum()), 1)))
        if len(one.future) and not reached.all():
            rest = ~reached
            curves = np.hstack([np.full((int(rest.sum()), 1), best[-1]), one.curves[rest]])
            tokens[rest] = _first(threshold[rest], np.r_[one.tokens[-1], one.future], np.minimum.accumulate(curves, 1))
            until = float(one.future[-1])
    now = float(reached.mean())
    probability = float(np.isfinite(tokens).mean())
    if now >= 0.5:
        status = "reached"
    elif not len(one.future):
        status = "open" if not one.planned else "not-before-the-end"
    else:
        status = "expected" if probability >= 0.5 else "not-before-the-end"
    low, middle, high = (float(np.quantile(tokens, q, method="higher")) for q in (0.025, 0.5, 0.975))
    return {
        "run": one.run,
        "params": one.params,
        "status": status,
        "tokens": {"value": _finite(middle), "low95": _finite(low), "high95": _finite(high)},
        "probability": probability,
        "reached_now": now,
        "until_tokens": until,
        "planned_end_known": one.planned,
        "note": one.note,
    }


def _first(threshold: np.ndarray, tokens: np.ndarray, falling: np.ndarray) -> np.ndarray:
    """Tokens at which each falling curve, (S, m), first is at or below its threshold (S,), straight in log tokens; inf
    where it never is."""
    below = falling <= threshold[:, None]
    place = below.argmax(1)
    row = np.arange(len(threshold))
    before = np.maximum(place - 1, 0)
    gap = falling[row, before] - falling[row, place]
    share = np.clip((falling[row, before] - threshold) / np.where(gap > 0, gap, 1), 0, 1)
    share = np.where(gap > 0, share, 1.0)
    found = np.exp(np.log(tokens[before]) + share * (np.log(tokens[place]) - np.log(tokens[before])))
    return np.where(below.any(1), found, np.inf)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
