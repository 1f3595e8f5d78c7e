"""Forecast when a run gains an ability: the threshold of smaller or earlier runs against the temporal law's loss forecast.

Future losses are drawn as whole curves (errors along one run are correlated), thresholds from their posterior; each pair crosses
at some number of tokens or not before the planned end.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.result import Crossing, LossForecast, Status
from emergence_train.analysis.outlook import planned_rates
from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.results import Interval
from emergence_train.analysis.runs import recorded_plan
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.mean_law import below
from emergence_train.errors import InputError
from emergence_train.recorder.metrics import read_header
from emergence_train.recorder.naming import is_run
from emergence_train.recorder.planned_end import planned_tokens

DRAWS = 1000
POINTS = 60
HORIZON = 10  # horizon as a multiple of the observed tokens, for runs without a known end
OBSERVED = 0.4  # share of the hidden run's tokens observed in a backtest


@dataclass(frozen=True)
class LossDraws:
    """One run: observed tokens and losses (n,), and drawn loss curves (S, m) at `future` tokens (m,); nats."""

    run: str
    params: int
    tokens: np.ndarray
    loss: np.ndarray
    planned: bool  # the last of `future` is the planned end
    future: np.ndarray = field(default_factory=lambda: np.empty(0))
    curves: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    note: str = ""


def draw_all(frame: pd.DataFrame, directories: dict[str, Path], rng: np.random.Generator) -> list[LossDraws]:
    """draw_losses for each run of the evaluations in `frame`."""
    return [
        draw_losses(str(run), rows.drop_duplicates("step").sort_values("step"), directories.get(str(run)), rng)
        for run, rows in frame.groupby("run", sort=True)
    ]


def draw_losses(
    run: str, rows: pd.DataFrame, directory: Path | None, rng: np.random.Generator, until: float | None = None
) -> LossDraws:
    """Draws of the future loss from the evaluations `rows` of a run, one per step.

    `directory` is the run's, whose config.yaml or metrics.jsonl plans its learning rates and its end, if there is one. `until`:
    only this share of the tokens is observed, and the forecast ends at the last one.
    """
    rows = rows[rows["tokens"] > 0]
    step, tokens, loss = (rows[name].to_numpy(float) for name in ("step", "tokens", "loss"))
    params = int(rows["params"].iloc[0]) if len(rows) else 0
    if not len(step):
        return LossDraws(run, params, tokens, loss, False, note="no row after token 0")
    plan, end, planned, unread = _plan(directory, tokens, step)
    if until is not None:
        end, planned = tokens[-1], True
        seen = tokens <= until * tokens[-1]
        step, tokens, loss = step[seen], tokens[seen], loss[seen]
    if not len(step) or end <= tokens[-1] * 1.001:
        return LossDraws(run, params, tokens, loss, planned)
    future = np.geomspace(tokens[-1], end, POINTS + 1)[1:]
    try:
        ahead = forecast(step, loss, future / (tokens[-1] / step[-1]), plan)
    except InputError as error:
        return LossDraws(run, params, tokens, loss, planned, note=str(error))
    z = rng.standard_normal(DRAWS)[:, None]
    # An unknown future rate may stay as it is, as likely as not, or decay: then between the forecast and its lower bound.
    decay = np.maximum(rng.uniform(-1, 1, (DRAWS, 1)), 0) * ahead.shift_low
    curves = below(ahead.mean, decay - z * ahead.sd)
    return LossDraws(run, params, tokens, loss, planned, future, curves, "; ".join([*unread, *ahead.notes]))


def _plan(
    directory: Path | None, tokens: np.ndarray, step: np.ndarray
) -> tuple[PlannedSchedule | None, float, bool, list[str]]:
    """(learning rates by step, last token to forecast to, whether that is the planned end, why rates are not known)."""
    open_end = HORIZON * float(tokens[-1])
    if directory is None:
        return None, open_end, False, []
    config = directory / "config.yaml"
    rates = planned_rates(config) if config.is_file() else None
    if rates is not None:
        step_tokens = tokens[-1] / step[-1]
        return PlannedSchedule(rates[:, 0] / step_tokens, rates[:, 1], step_tokens), float(rates[-1, 0]), True, []
    if not is_run(directory):
        return None, open_end, False, []
    end = float(planned_tokens(read_header(directory), float(step[-1]), float(tokens[-1])))
    if not end:
        return None, open_end, False, []
    try:
        recorded = recorded_plan(directory)
    except InputError as error:
        return None, end, True, [f"learning rates: {error}"]
    if recorded is None:
        return None, end, True, []
    return recorded.plan, float(recorded.end_tokens), True, []


def loss_forecast(family: str, draws: LossDraws) -> LossForecast | None:
    """The forecast loss of a run that has not ended; None where there is no forecast."""
    if not len(draws.future):
        return None
    bands = {
        f"{side}{level}": tuple(np.quantile(draws.curves, 0.5 + sign * level / 200, axis=0).tolist())
        for level in (95, 80, 50)
        for side, sign in (("low", -1), ("high", 1))
    }
    return LossForecast(
        family=family,
        run=draws.run,
        params=draws.params,
        planned_end_known=draws.planned,
        tokens=tuple(draws.future.tolist()),
        loss=tuple(np.median(draws.curves, axis=0).tolist()),
        **bands,
    )


def crossing(draws: LossDraws, eta: np.ndarray, rng: np.random.Generator) -> Crossing:
    """The tokens at which the run's loss falls to the threshold, from draws `eta` (nats) of it."""
    threshold = rng.choice(eta, DRAWS)
    reached, tokens = np.zeros(DRAWS, bool), np.full(DRAWS, np.inf)
    first, until = (float(draws.tokens[0]), float(draws.tokens[-1])) if len(draws.tokens) else (0.0, 0.0)
    if len(draws.loss):
        best = np.minimum.accumulate(draws.loss)
        reached = threshold >= best[-1]
        tokens[reached] = _first(threshold[reached], draws.tokens, np.tile(best, (int(reached.sum()), 1)))
        if len(draws.future) and not reached.all():
            rest = ~reached
            curves = np.hstack([np.full((int(rest.sum()), 1), best[-1]), draws.curves[rest]])
            tokens[rest] = _first(
                threshold[rest], np.r_[draws.tokens[-1], draws.future], np.minimum.accumulate(curves, 1)
            )
            until = float(draws.future[-1])
    now = float(reached.mean())
    probability = float(np.isfinite(tokens).mean())
    if now >= 0.5:
        status: Status = "reached"
    elif not len(draws.future):
        status = "open" if not draws.planned else "not-before-the-end"
    else:
        status = "expected" if probability >= 0.5 else "not-before-the-end"
    low, middle, high = np.quantile(tokens, [0.025, 0.5, 0.975], method="higher")
    middle, high = (
        max(end, first) for end in (middle, high)
    )  # of what came before it, the first row is all that is known
    return Crossing(
        run=draws.run,
        params=draws.params,
        status=status,
        tokens=Interval(_finite(middle), _finite(low), _finite(high)),
        probability=probability,
        reached_now=now,
        until_tokens=until,
        planned_end_known=draws.planned,
        note=draws.note,
    )


def _first(threshold: np.ndarray, tokens: np.ndarray, falling: np.ndarray) -> np.ndarray:
    """Tokens at which each falling curve, (S, m), first is at or below its threshold (S,), straight in log tokens; inf
    where it never is, and 0 where it is from its first row on."""
    below = falling <= threshold[:, None]
    place = below.argmax(1)
    row = np.arange(len(threshold))
    before = np.maximum(place - 1, 0)
    gap = falling[row, before] - falling[row, place]
    share = (falling[row, before] - threshold) / np.where(gap > 0, gap, 1)
    crossed = np.exp(np.log(tokens[before]) + share * (np.log(tokens[place]) - np.log(tokens[before])))
    return np.where(below[:, 0], 0.0, np.where(below.any(1), crossed, np.inf))


def _finite(value: float) -> float | None:
    return float(round(value)) if np.isfinite(value) else None
