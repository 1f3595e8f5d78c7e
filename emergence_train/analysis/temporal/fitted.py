"""One run's split fitted: the observed part, its laws and forecasts, and the held-out part to score them on."""

import math

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.temporal.fitted_positions import LEVELS, coverage, fit_positions_of
from emergence_train.analysis.temporal.forecast import Forecast, forecast
from emergence_train.analysis.temporal.mean_law import CLASSICAL, LAWS
from emergence_train.analysis.temporal.result import Final, ForecastPoint, MeanLaw, ModelScore, RunResult
from emergence_train.analysis.temporal.tables import RunAnalysis
from emergence_train.errors import InputError

NEEDED = 4  # rows, to fit a law and to see how far it misses
FUTURE_POINTS = 40  # forecast rows of an unfinished run
GROUPS = 100  # of rows, over each of which a forecast's error is averaged for the smooth error
LAST_ROWS, LAST_SHARE = 64, 0.05  # rows at most, and share of them, that a training loss at the end is taken from
ROWS = 2000  # forecast rows in result.json at most; the CSV has all
MORE = "give --to-tokens for a later end, or --fit-fraction to forecast rows that exist"
LABELS = {"paper": "paper (reconstructed)"}


class FittedRun:
    """One run's split with its fits. Raises InputError where the observed part is too short to fit."""

    def __init__(self, series: Series, fraction: float | None) -> None:
        self.series, self.fraction = series, fraction
        seen = series.progress <= fraction + 1e-9 if fraction is not None else np.ones(len(series.step), bool)
        where = f"run {series.run!r}" + (f", split {series.split!r}" if series.split else "")
        if seen.sum() < 2:
            raise InputError(f"{where}: {self._too_few(int(seen.sum()))}")
        beyond = self._named_end_beyond_rows() if fraction is not None else None
        if beyond is not None and series.ahead.schedule is None:
            raise InputError(f"{where}: {beyond}; leave one of --fit-fraction and --to-tokens out")
        if beyond is not None:
            series.notes.append(f"{beyond}; leave --fit-fraction out for a forecast to there")
        self.seen = seen
        self.x, self.y = series.step[seen], series.loss[seen]
        held = ~seen
        if held.any():
            self.future = series.step[held]
        elif not self.finished:
            self.future = np.linspace(series.step[-1], series.end_step, FUTURE_POINTS + 1)[1:]
        else:
            self.future = series.step[-1:]
            if series.plan is not None:
                series.plan = series.plan.past  # nothing is forecast
        self.actual = series.loss[held]
        try:
            self.positions = fit_positions_of(series, seen, self.future)
            self.level: Forecast = (
                self.positions.forecast.level
                if self.positions is not None
                else forecast(self.x, self.y, self.future, series.plan)
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def _too_few(self, observed: int) -> str:
        """How many of the rows are observed, and the fraction that has as many as a forecast needs."""
        share, rows = self.series.progress, len(self.series.step)
        if self.fraction is None:
            return f"{rows} checkpoint(s), a forecast needs at least {NEEDED}; log more often"
        begin = f", as they begin at {share[0]:.0%}" if share[0] > self.fraction else ""
        text = f"{observed} of {rows} checkpoint(s) in the first {100 * self.fraction:g}% of the run{begin}"
        if self.series.plan is not None:
            share = share[self.series.step >= self.series.plan.past.warmup_end]
        enough = math.ceil(100 * share[NEEDED - 1]) / 100 if len(share) > NEEDED else 1.0
        if len(share) == 0 or enough >= min(share[-1], 1.0):
            return f"{text}, a forecast needs at least {NEEDED}; log more often"
        return f"{text}, a forecast needs at least {NEEDED}; analyze temporal with --fit-fraction {enough:g} or more"

    def _named_end_beyond_rows(self) -> str | None:
        """That the user asks for an end beyond the last row, by more than the rows' distance; None: no such thing."""
        end, tokens = self.series.ahead.to_tokens, self.series.tokens
        if end is None or end <= 2 * tokens[-1] - tokens[-2]:
            return None
        return f"--fit-fraction forecasts rows that exist, up to {tokens[-1]:,.0f} tokens, and --to-tokens asks for {end:,}"

    @property
    def held_out(self) -> bool:
        return len(self.actual) > 0

    @property
    def _last_rows(self) -> int:
        """How many rows the outcome is taken from: of a validation loss one, which is of the same text at each."""
        if self.series.split is not None:
            return 1
        return max(min(LAST_ROWS, int(LAST_SHARE * len(self.series.step))), 1)

    @property
    def finished(self) -> bool:
        """Whether the last row is the planned end, as far as that is known: nothing lies ahead of it."""
        return self.series.end_step <= self.series.step[-1] * 1.001

    @property
    def nothing_to_forecast(self) -> str | None:
        """Why there is no forecast; None: there is one."""
        if self.held_out or not self.finished:
            return None
        return f"nothing to forecast: the last row is the end, as far as it is known; {MORE}"

    @property
    def tokens(self) -> np.ndarray:
        """Tokens at the forecast steps; 0 where the table has none."""
        if self.held_out:
            return self.series.tokens[~self.seen]
        if not self.series.by_tokens:
            return np.zeros(len(self.future))
        return self.series.tokens_at(self.future)

    @property
    def selected(self) -> str:
        return "temporal" if self.series.matrix is not None else self.level.selected

    def analysis(self) -> RunAnalysis:
        """The result and the tables; no fit is needed after this."""
        rows = self._rows_ahead()
        result = self._result(rows)
        if result.nothing_to_forecast is not None:
            rows = rows.iloc[:0]
        return RunAnalysis(
            series=self.series,
            seen=self.seen,
            result=result,
            forecast=rows,
            baselines={name: self.level.fits[name].predict(self.future)[0][: len(rows)] for name in CLASSICAL},
            positions=self.positions.tables(self.tokens, ahead=len(rows) > 0) if self.positions is not None else None,
        )

    def _rows_ahead(self) -> pd.DataFrame:
        """One row per forecast step: step, tokens, loss, low and high per level, and actual where it is known. A finished run
        has one, the law at its last row."""
        frame = pd.DataFrame({"step": self.future.astype(int), "tokens": np.round(self.tokens).astype(int)})
        frame["loss"] = self.level.mean
        for level in LEVELS:
            frame[f"low{level}"], frame[f"high{level}"] = self.level.interval(level)
        if self.held_out:
            frame["actual"] = self.actual
        return frame

    def _result(self, rows: pd.DataFrame) -> RunResult:
        """This series' part of result.json."""
        series, level = self.series, self.level
        final = rows.tail(1).to_dict("records")[0]
        for percent in LEVELS:
            low, high = level.interval(percent, noisy=False)
            final[f"curve_low{percent}"], final[f"curve_high{percent}"] = float(low[-1]), float(high[-1])
        if self.held_out:
            rows_of_end = self._last_rows
            off = self.actual - level.mean  # at the end as over its last rows, along which the loss falls
            actual = float(level.mean[-1] + off[-rows_of_end:].mean())
            final |= {"actual": actual, "actual_rows": rows_of_end if rows_of_end > 1 else None}
        thin = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))]
        notes = [*series.notes, *level.notes]
        if self.fraction is not None and series.plan is not None:
            notes.append("the learning rate of the held-out part is taken as planned, not as observed")
        ahead = thin.to_dict("records") if self.nothing_to_forecast is None else []
        return RunResult(
            run=series.run,
            split=series.split,
            fit_fraction=self.fraction,
            fit_until_tokens=int(series.tokens[self.seen][-1]),
            fit_until_step=int(self.x[-1]),
            observed_points=int(self.seen.sum()),
            selected=self.selected,
            weights=level.weights,
            forecast=tuple(ForecastPoint(**row) for row in ahead),
            final=Final(**final),
            models=self._models(),
            coverage=coverage(level, self.actual) if self.held_out else None,
            noise=level.noise,
            law=MeanLaw("schedule", level.fits["schedule"].constants),
            notes=tuple(notes),
            nothing_to_forecast=self.nothing_to_forecast,
            positions=self.positions.result() if self.positions is not None else None,
        )

    def _models(self) -> tuple[ModelScore, ...]:
        """Every law's error on the held-out rows, selected first; None where nothing was held out."""
        guesses = {self.selected: self.level.mean}
        guesses |= {LABELS.get(name, name): fit.predict(self.future)[0] for name, fit in self.level.fits.items()}
        scores = []
        for name, guess in guesses.items():
            mse = r2 = smooth = None
            if self.held_out:
                mse = float(np.mean((guess - self.actual) ** 2))
                spread = float(np.mean((self.actual - self.actual.mean()) ** 2))
                r2 = 1 - mse / spread if spread > 0 else None
                smooth = _smooth_error(guess, self.actual)
            backtest = self.level.backtest.get(next((k for k in LAWS if LABELS.get(k, k) == name), ""), float("nan"))
            scores.append(
                ModelScore(
                    name=name,
                    mse=mse,
                    r2=r2,
                    heldout_points=len(self.actual),
                    mse_smooth=smooth,
                    backtest_mse=backtest if np.isfinite(backtest) else None,
                )
            )
        return tuple(scores)


def _smooth_error(guess: np.ndarray, actual: np.ndarray) -> float:
    """Mean squared error after averaging both in at most GROUPS groups of rows, so without the noise of rows."""
    parts = np.array_split(np.arange(len(actual)), min(GROUPS, len(actual)))
    return float(np.mean([(guess[part].mean() - actual[part].mean()) ** 2 for part in parts]))
