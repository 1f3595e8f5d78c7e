"""The position law of one run's split fitted: its forecast, its laws along training, its tables."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, position_bins
from emergence_train.analysis.results import as_json
from emergence_train.analysis.temporal.forecast import Forecast
from emergence_train.analysis.temporal.mean_law import Z, below
from emergence_train.analysis.temporal.parameter_laws import ParameterLaw
from emergence_train.analysis.temporal.position_forecast import PositionForecast, forecast_positions
from emergence_train.analysis.temporal.position_law import bin_residuals, compare_forms_of, fit_matrix, position_curve
from emergence_train.analysis.temporal.result import (
    Coverage,
    FormScore,
    HeldOut,
    LevelLaw,
    ParameterLaws,
    PositionFit,
    PositionPoint,
    Positions,
    ShapeLaw,
)
from emergence_train.analysis.temporal.tables import PositionTables

LEVELS = (50, 80, 95)
BINS = 32  # of position in the forecast's table
RESIDUAL_BINS = 16


@dataclass(frozen=True)
class FittedPositions:
    """The position law of one run's split, at all checkpoints (C,) and steps to forecast (m,)."""

    steps: np.ndarray  # (C,)
    seen: np.ndarray  # (C,) whether the checkpoint was observed
    future: np.ndarray  # (m,)
    whole: PositionMatrix
    observed: PositionMatrix
    forecast: PositionForecast

    @property
    def held_out(self) -> bool:
        return not self.seen.all()

    @cached_property
    def forms(self) -> pd.DataFrame:
        """Compare the reciprocal form with a power law and an exponential in position, at observed checkpoints."""
        return compare_forms_of(self.observed).drop(columns=["run", "split"])

    def result(self) -> Positions:
        """The part of result.json on positions."""
        positions = self.forecast
        last = positions.fits.iloc[-1]
        final = self._forecast_rows(slice(-1, None))
        return Positions(
            law="L_i = a0 / (1 + a1 i) + a2, arXiv 2404.17785",
            last_fit=PositionFit(**as_json({k: last[k] for k in last.index if k not in ("run", "params", "split")})),
            identified=positions.identified,
            laws=ParameterLaws(
                a0=_shape_law(positions.a0) if positions.a0 is not None else None,
                a1=_shape_law(positions.a1) if positions.a1 is not None else None,
                a2=LevelLaw("schedule", positions.a2.fits["schedule"].constants),
            ),
            final=tuple(PositionPoint(**row) for row in final.to_dict("records")),
            forms=tuple(FormScore(**as_json(row)) for row in self.forms.to_dict("records")),
            held_out=self._held_out_positions() if self.held_out else None,
        )

    def _held_out_positions(self) -> HeldOut:
        actual = self.whole.loss[~self.seen]
        counted = self.whole.count[~self.seen] > 0
        mse = float(np.mean((self.forecast.loss - actual)[counted] ** 2))
        spread = float(np.var(actual[counted]))
        r2 = 1 - mse / spread if spread > 0 else None
        return HeldOut(mse=mse, r2=r2, coverage=coverage(self.forecast, actual, counted))

    def tables(self, tokens: np.ndarray, *, ahead: bool) -> PositionTables:
        """The tables; `tokens` (m,) at the forecast steps, `ahead` whether these are a forecast."""
        fits = self.forecast.fits
        if self.held_out:
            fits = pd.concat([fits, fit_matrix(observed_rows(self.whole, ~self.seen))], ignore_index=True)
        forecast = self._forecast_rows(slice(None))
        bins = len(forecast) // len(self.future)
        forecast.insert(0, "step", np.repeat(self.future.astype(int), bins))
        forecast.insert(1, "tokens", np.repeat(np.round(tokens).astype(int), bins))
        return PositionTables(
            parameters=self._parameter_rows(fits),
            forecast=forecast if ahead else forecast.iloc[:0],
            residuals=self._residual_rows(fits),
            forms=self.forms,
            end=self.forecast.loss[-1] if ahead else None,
        )

    def _forecast_rows(self, rows: slice) -> pd.DataFrame:
        """Forecast loss by step and bin of position: position_low, position_high, loss, low50 ... high95, actual."""
        positions = self.forecast
        bin_of = position_bins(positions.position, BINS)
        # a position that was never counted before weighs nothing, unless its whole bin was not
        member = (bin_of[:, None] == np.arange(bin_of.max() + 1)) * np.maximum(positions.share, 1e-300)[:, None]
        member = member / member.sum(0)
        loss = positions.loss[rows] @ member
        own = positions.own_variance[rows]
        shared = np.sqrt(np.maximum(positions.sd[rows] ** 2 - own, 0)) @ member
        sd = np.sqrt(shared**2 + own @ member**2)
        count = loss.shape[1]
        frame = pd.DataFrame(
            {
                "position_low": np.tile([int(positions.position[bin_of == b][0]) for b in range(count)], len(loss)),
                "position_high": np.tile([int(positions.position[bin_of == b][-1]) for b in range(count)], len(loss)),
                "loss": loss.ravel(),
            }
        )
        for level in LEVELS:
            low, high = below(loss, Z[level] * sd), loss + Z[level] * sd
            frame[f"low{level}"], frame[f"high{level}"] = low.ravel(), high.ravel()
        if self.held_out:
            counted = self.whole.count[~self.seen][rows] > 0
            with np.errstate(invalid="ignore"):  # a bin that counts nothing has no loss
                actual = (counted * self.whole.loss[~self.seen][rows]) @ member / (counted @ member)
            frame["actual"] = actual.ravel()
        return frame

    def _parameter_rows(self, fits: pd.DataFrame) -> pd.DataFrame:
        """a0, a1, a2 fitted at every checkpoint, held-out ones included (marked), and their laws along training."""
        rows = fits.assign(held_out=~self.seen)
        steps, positions = self.steps, self.forecast
        for name, law in (("a0", positions.a0), ("a1", positions.a1)):
            if law is not None:
                rows[f"{name}_law"], rows[f"{name}_law_sd"] = law.predict(steps)
        a2 = positions.a2
        if a2.turn is None:  # no law rises
            rows["a2_law"] = sum(w * a2.fits[name].predict(steps)[0] for name, w in a2.weights.items())
            rows["a2_law_sd"] = a2.fits["schedule"].predict(steps)[1]
        return rows

    def _residual_rows(self, fits: pd.DataFrame) -> pd.DataFrame:
        """Loss minus the position law fitted at the same checkpoint, by bin of position."""
        matrix = self.whole
        a0, a1, a2 = (fits[name].to_numpy()[:, None] for name in ("a0", "a1", "a2"))
        fitted = position_curve(a0, a1, a2, matrix.position)
        bin_of = position_bins(matrix.position, RESIDUAL_BINS)
        mean, stderr = bin_residuals(np.where(matrix.count > 0, matrix.loss - fitted, 0), matrix.weight, bin_of)
        mean, stderr = np.where(stderr > 0, (mean, stderr), np.nan)
        count = mean.shape[1]
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps.astype(int), count),
                "held_out": np.repeat(~self.seen, count),
                "position_low": np.tile([int(matrix.position[bin_of == b][0]) for b in range(count)], len(mean)),
                "position_high": np.tile([int(matrix.position[bin_of == b][-1]) for b in range(count)], len(mean)),
                "residual": mean.ravel(),
                "stderr": stderr.ravel(),
            }
        )


def fit_positions_of(series: Series, seen: np.ndarray, future: np.ndarray) -> FittedPositions | None:
    """Fit the observed checkpoints of a series, None where it has no positions. Raises InputError where they are too few."""
    if series.matrix is None:
        return None
    steps = series.step[seen]
    observed = observed_rows(series.matrix, seen)
    ahead = forecast_positions(observed, steps, future, series.plan)
    return FittedPositions(series.step, seen, future, series.matrix, observed, ahead)


def _shape_law(law: ParameterLaw) -> ShapeLaw:
    """The best family of a0 or a1."""
    best = law.fits[0]
    return ShapeLaw(
        family=best.family,
        weight=float(law.weights[0]),
        c0=best.c0,
        c1=best.c1,
        c0_se=best.c0_se,
        c1_se=best.c1_se,
        q_per_observed_length=best.q,
        separation_step=best.separation if np.isfinite(best.separation) else None,
        r2=best.r2,
        backtest_rmse=best.backtest if np.isfinite(best.backtest) else None,
    )


def coverage(
    forecasts: Forecast | PositionForecast, actual: np.ndarray, counted: np.ndarray | slice = slice(None)
) -> Coverage:
    """The share of `actual` (of its `counted` part) inside each interval."""
    shares = []
    for level in LEVELS:
        low, high = forecasts.interval(level)
        shares.append(float(np.mean(((low <= actual) & (actual <= high))[counted])))
    return Coverage(*shares)
