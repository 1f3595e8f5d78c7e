"""`analyze temporal`: fit the observed part of each run, forecast the rest, compare with every baseline.

Entry points: `analyze_temporal` (tables and run directories), `investigate` (which also returns the tables, for
output, figures and the report), `forecast_final` (for training, at each checkpoint). No files are written here.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead
from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.fitted import FittedRun
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.mean_law import SCHEDULE_AWARE
from emergence_train.analysis.temporal.ranking import rank
from emergence_train.analysis.temporal.result import FinalForecast, PriorSource, Ranking, Skipped, TemporalResult
from emergence_train.analysis.temporal.tables import RunAnalysis, TemporalAnalysis
from emergence_train.errors import InputError
from emergence_train.waiting import along


def analyze_temporal(
    paths: str | Path | Iterable[str | Path],
    *,
    fit_fraction: float | None = None,
    planned_lr: np.ndarray | None = None,
    splits: Iterable[str | None] | None = None,
    ahead: Ahead | None = None,
    options: LogOptions | None = None,
) -> TemporalResult:
    """Fit the temporal law to every run and split in `paths` and forecast the rest of each run.

    Args:
        paths: run directories, Parquet or CSV files of `positions` or `curves`, logs of other frameworks.
        fit_fraction: in (0, 1): only rows up to this share of the planned tokens are observed; the later ones are held
            out of every fit and choice, and score the forecasts. None: everything is observed and the forecast ends at
            the planned end.
        planned_lr: (K, 2) tokens and learning rate of the whole run, see runs.load.
        splits: names of the splits to take, None among them for the training curve. None: all.
        ahead: where the runs end and their planned learning rate, where no configuration says it.
        options: how to read logs: the format, and what they leave out.

    Returns the result; results.as_json converts it to the content of result.json. Raises InputError for bad tables, for fractions
    outside (0, 1), and where no series is long enough to fit.
    """
    return investigate(
        paths, fit_fraction=fit_fraction, planned_lr=planned_lr, splits=splits, ahead=ahead, options=options
    ).result


def investigate(
    paths: str | Path | Iterable[str | Path],
    *,
    fit_fraction: float | None = None,
    planned_lr: np.ndarray | None = None,
    splits: Iterable[str | None] | None = None,
    ahead: Ahead | None = None,
    options: LogOptions | None = None,
) -> TemporalAnalysis:
    """analyze_temporal, returning also the tables."""
    return investigate_series(
        load(paths, planned_lr, ahead=ahead, options=options), fit_fraction=fit_fraction, splits=splits
    )


def investigate_series(
    loaded: list[Series], *, fit_fraction: float | None = None, splits: Iterable[str | None] | None = None
) -> TemporalAnalysis:
    """investigate for series that are read already, one after another."""
    if fit_fraction is not None and not 0 < fit_fraction < 1:
        raise InputError(f"fit fraction {fit_fraction}: must lie between 0 and 1, for example 0.1")
    if splits is not None:
        names = list(splits)
        loaded = [series for series in loaded if series.split in names]
        if not loaded:
            raise InputError(
                f"no split named {', '.join(map(str, names))} in these tables; leave --split out to see all"
            )
    if len(_vocabularies(loaded)) > 1:
        for series in loaded:
            series.notes.append("the runs have different tokenizers: their losses do not compare, and are not ranked")
    runs: list[RunAnalysis] = []
    ends: list[tuple[Series, float, float]] = []  # forecast loss of each at its end, and its standard deviation
    skipped = []
    for series in along(loaded, "curves fitted"):
        try:
            fitted = FittedRun(series, fit_fraction)
        except InputError as error:
            skipped.append(Skipped(series.run, series.split, str(error)))
            continue
        ends.append((series, float(fitted.level.mean[-1]), float(fitted.level.sd[-1])))
        runs.append(
            fitted.analysis()
        )  # of the fit, with its numbers of every position and checkpoint, only the tables stay
    if not runs:
        raise InputError(skipped[0].reason)
    result = TemporalResult(
        prior=PriorSource(priors.SHIPPED.source, priors.SHIPPED.runs, priors.SHIPPED.groups),
        runs=tuple(run.result for run in runs),
        skipped=tuple(skipped),
        ranking=_rankings(ends),
    )
    return TemporalAnalysis(result, tuple(runs))


def forecast_final(
    step: np.ndarray,
    loss: np.ndarray,
    planned_steps: np.ndarray,
    planned_lr: np.ndarray,
    final_step: float,
    step_tokens: float = 0.0,
) -> FinalForecast:
    """Forecast the loss at `final_step` from what a run has logged so far; some tens of milliseconds.

    `step`, `loss` (n,) ascending, nats; `planned_steps`, `planned_lr` (K,) the learning rate of the whole run;
    `step_tokens` what a step trains on, 0 where unknown. Never raises for a run that is merely too young, so that
    training continues: the forecast then has a reason and no loss. With a loss, the reason is what it leaves out or has no
    law for.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    good = np.isfinite(loss) & (step > 0)
    if good.sum() < 2:
        return FinalForecast(reason=f"not identified: {int(good.sum())} rows")
    try:
        plan = PlannedSchedule(planned_steps, planned_lr, step_tokens)
        ahead = forecast(step[good], loss[good], np.array([float(final_step)]), plan, laws=SCHEDULE_AWARE)
    except InputError as error:
        return FinalForecast(reason=str(error))
    low, high = ahead.interval(95, noisy=False)
    mean, sd = float(ahead.mean[0]), float(ahead.sd[0])
    notes = [note for note in (*ahead.excursions, ahead.unreturned, ahead.jump, ahead.turn) if note]
    return FinalForecast(loss=mean, sd=sd, low95=float(low[0]), high95=float(high[0]), reason="; ".join(notes) or None)


def _vocabularies(all_series: Iterable[Series]) -> set[str]:
    """The tokenizers that are known."""
    return {series.vocabulary for series in all_series} - {""}


def _rankings(ends: list[tuple[Series, float, float]]) -> tuple[Ranking, ...]:
    """One ranking per split that at least two runs have, of one tokenizer as far as it is known."""
    rankings = []
    for split in sorted({series.split or "" for series, _, _ in ends}):
        group = [end for end in ends if (end[0].split or "") == split]
        if len(group) < 2 or len(_vocabularies(series for series, _, _ in group)) > 1:
            continue
        names = [series.run for series, _, _ in group]
        mean, sd = np.array([mean for _, mean, _ in group]), np.array([sd for _, _, sd in group])
        rankings.append(rank(names, mean, sd, split or None))
    return tuple(rankings)
