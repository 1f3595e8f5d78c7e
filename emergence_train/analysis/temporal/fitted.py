"""One run's split fitted: the observed part, its laws and forecasts, and the held-out part to score them on."""

import numpy as np
import pandas as pd

from emergence_train.analysis.position_matrix import observed_rows, position_bins
from emergence_train.analysis.results import as_json
from emergence_train.analysis.runs import Series
from emergence_train.analysis.temporal.forecast import Forecast, forecast
from emergence_train.analysis.temporal.mean_law import CLASSICAL, LAWS, Z
from emergence_train.analysis.temporal.parameter_laws import ParameterLaw
from emergence_train.analysis.temporal.position_forecast import JointFit, PositionForecast, forecast_positions, joint
from emergence_train.analysis.temporal.position_law import bin_residuals, compare_forms_of, fit_matrix, position_curve
from emergence_train.analysis.temporal.result import (
    Constant,
    Coverage,
    Final,
    ForecastPoint,
    FormScore,
    HeldOut,
    JointLaw,
    LevelLaw,
    MeanLaw,
    ModelScore,
    ParameterLaws,
    PositionFit,
    PositionPoint,
    Positions,
    RunResult,
    ShapeLaw,
)
from emergence_train.analysis.temporal.tables import PositionTables, RunAnalysis
from emergence_train.errors import InputError

LEVELS = (50, 80, 95)
FUTURE_POINTS = 40  # forecast rows of a run that has not got there yet
ROWS = 2000  # forecast rows in result.json at most; the CSV has all
POSITION_BINS = 32
RESIDUAL_BINS = 16
LABELS = {"paper": "paper (reconstructed)"}


class FittedRun:
    """One run's split with its fits. Raises InputError where the observed part is too short to fit."""

    def __init__(self, series: Series, fraction: float | None) -> None:
        self.series, self.fraction = series, fraction
        seen = series.progress <= fraction + 1e-9 if fraction is not None else np.ones(len(series.step), bool)
        where = f"run {series.run!r}" + (f", split {series.split!r}" if series.split else "")
        if seen.sum() < 2:
            raise InputError(
                f"{where}: {int(seen.sum())} checkpoint(s) in the observed part, a forecast needs at least 4; "
                f"raise the fit fraction or log more often"
            )
        self.seen = seen
        self.x, self.y = series.step[seen], series.loss[seen]
        held = ~seen
        if held.any():
            self.future = series.step[held]
        elif series.end_step > series.step[-1] * 1.001:
            self.future = np.linspace(series.step[-1], series.end_step, FUTURE_POINTS + 1)[1:]
        else:
            self.future = series.step[-1:]
        self.actual = series.loss[held]
        self.positions: PositionForecast | None = None
        self.joint: JointFit | None = None
        try:
            if series.matrix is not None:
                self.matrix = observed_rows(series.matrix, seen)
                self.positions = forecast_positions(self.matrix, self.x, self.future, series.plan)
                self.level: Forecast = self.positions.level
                if self.positions.identified:
                    self.joint = joint(self.positions, self.matrix, self.x, series.plan)
            else:
                self.level = forecast(self.x, self.y, self.future, series.plan)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @property
    def held_out(self) -> bool:
        return len(self.actual) > 0

    @property
    def tokens(self) -> np.ndarray:
        """Tokens at the forecast steps; 0 where the table has none."""
        if self.held_out:
            return self.series.tokens[~self.seen]
        if not self.series.by_tokens:
            return np.zeros(len(self.future))
        return self.future * self.series.tokens[-1] / self.series.step[-1]

    @property
    def selected(self) -> str:
        return "temporal" if self.series.matrix is not None else self.level.selected

    def analysis(self) -> RunAnalysis:
        """The result and the tables; no fit is needed after this."""
        rows = self._forecast_rows()
        forms = compare_forms_of(self.matrix).drop(columns=["run", "split"]) if self.positions is not None else None
        tables = self._position_tables(forms) if forms is not None else None
        return RunAnalysis(
            series=self.series,
            seen=self.seen,
            result=self._result(rows, forms),
            forecast=rows,
            baselines={name: self.level.fits[name].predict(self.future)[0] for name in CLASSICAL},
            positions=tables,
        )

    def _forecast_rows(self) -> pd.DataFrame:
        """One row per forecast step: step, tokens, loss, low and high per level, and actual where it is known."""
        frame = pd.DataFrame({"step": self.future.astype(int), "tokens": np.round(self.tokens).astype(int)})
        frame["loss"] = self.level.mean
        for level in LEVELS:
            frame[f"low{level}"], frame[f"high{level}"] = self.level.interval(level)
        if self.held_out:
            frame["actual"] = self.actual
        return frame

    def _result(self, rows: pd.DataFrame, forms: pd.DataFrame | None) -> RunResult:
        """This series' part of result.json."""
        series, level = self.series, self.level
        final = rows.tail(1).to_dict("records")[0]
        for percent in LEVELS:
            low, high = level.interval(percent, noisy=False)
            final[f"curve_low{percent}"], final[f"curve_high{percent}"] = float(low[-1]), float(high[-1])
        thin = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))]
        notes = [*series.notes, *level.notes]
        if self.fraction is not None and series.plan is not None:
            notes.append("the learning rate of the held-out part is taken as planned, not as observed")
        ahead = thin.to_dict("records") if self.held_out or series.end_step > self.x[-1] else []
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
            coverage=_coverage(level, self.actual) if self.held_out else None,
            noise=level.noise,
            law=MeanLaw("schedule", level.fits["schedule"].constants),
            notes=tuple(notes),
            positions=self._positions_result(forms) if forms is not None else None,
        )

    def _models(self) -> tuple[ModelScore, ...]:
        """Every law's error on the held-out rows, selected first; None where nothing was held out."""
        guesses = {self.selected: self.level.mean}
        if self.joint is not None:
            guesses["temporal-joint"] = self.joint.predict(self.future, self.positions.position) @ self.positions.share
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

    def _positions_result(self, forms: pd.DataFrame) -> Positions:
        positions = self.positions
        last = fit_matrix(self.matrix).iloc[-1]
        final = self._position_rows(slice(-1, None)).drop(columns=["step", "tokens"])
        return Positions(
            law="L_i = a0 / (1 + a1 i) + a2, arXiv 2404.17785",
            last_fit=PositionFit(**as_json({k: last[k] for k in last.index if k not in ("run", "params", "split")})),
            identified=positions.identified,
            laws=ParameterLaws(
                a0=_shape_law(positions.a0) if positions.identified else None,
                a1=_shape_law(positions.a1) if positions.identified else None,
                a2=LevelLaw("schedule", positions.a2.fits["schedule"].constants),
            ),
            final=tuple(PositionPoint(**row) for row in final.to_dict("records")),
            forms=tuple(FormScore(**as_json(row)) for row in forms.to_dict("records")),
            joint=_joint_law(self.joint) if self.joint is not None else None,
            held_out=self._held_out_positions() if self.held_out else None,
        )

    def _held_out_positions(self) -> HeldOut:
        actual = self.series.matrix.loss[~self.seen]
        counted = self.series.matrix.count[~self.seen] > 0
        mse = float(np.mean((self.positions.loss - actual)[counted] ** 2))
        spread = float(np.var(actual[counted]))
        coverage = _coverage(self.positions, actual, counted)
        return HeldOut(mse=mse, r2=1 - mse / spread if spread > 0 else None, coverage=coverage)

    def _position_tables(self, forms: pd.DataFrame) -> PositionTables:
        fits = fit_matrix(self.series.matrix)
        return PositionTables(
            parameters=self._parameter_rows(fits),
            forecast=self._position_rows(slice(None)),
            residuals=self._residual_rows(fits),
            forms=forms,
            end=self.positions.loss[-1],
        )

    def _position_rows(self, rows: slice) -> pd.DataFrame:
        """Forecast loss by bin of position and step: position_low, position_high, loss, low50 ... high95, actual."""
        positions = self.positions
        bin_of = position_bins(positions.position, POSITION_BINS)
        member = (bin_of[:, None] == np.arange(bin_of.max() + 1)) * positions.share[:, None]
        member = member / member.sum(0)
        loss = positions.loss[rows] @ member
        own = positions.own_variance[rows]
        shared = np.sqrt(np.maximum(positions.sd[rows] ** 2 - own, 0)) @ member
        sd = np.sqrt(shared**2 + own @ member**2)
        count = loss.shape[1]
        frame = pd.DataFrame(
            {
                "step": np.repeat(self.future[rows].astype(int), count),
                "tokens": np.repeat(np.round(self.tokens[rows]).astype(int), count),
                "position_low": np.tile([int(positions.position[bin_of == b][0]) for b in range(count)], len(loss)),
                "position_high": np.tile([int(positions.position[bin_of == b][-1]) for b in range(count)], len(loss)),
                "loss": loss.ravel(),
            }
        )
        for level in LEVELS:
            frame[f"low{level}"], frame[f"high{level}"] = (loss - Z[level] * sd).ravel(), (loss + Z[level] * sd).ravel()
        if self.held_out:
            frame["actual"] = (self.series.matrix.loss[~self.seen][rows] @ member).ravel()
        return frame

    def _parameter_rows(self, fits: pd.DataFrame) -> pd.DataFrame:
        """a0, a1, a2 fitted at every checkpoint, held-out ones included (marked), and their laws along training."""
        rows = fits.assign(held_out=~self.seen)
        steps, positions = self.series.step, self.positions
        for name, law in (("a0", positions.a0), ("a1", positions.a1)) if positions.identified else ():
            rows[f"{name}_law"], rows[f"{name}_law_sd"] = law.predict(steps)
        a2 = positions.a2
        rows["a2_law"] = sum(w * a2.fits[name].predict(steps)[0] for name, w in a2.weights.items())
        rows["a2_law_sd"] = a2.fits["schedule"].predict(steps)[1]
        return rows

    def _residual_rows(self, fits: pd.DataFrame) -> pd.DataFrame:
        """Loss minus the position law fitted at the same checkpoint, by bin of position."""
        matrix = self.series.matrix
        fitted = position_curve(*(fits[name].to_numpy()[:, None] for name in ("a0", "a1", "a2")), matrix.position)
        bin_of = position_bins(matrix.position, RESIDUAL_BINS)
        mean, stderr = bin_residuals(np.where(matrix.count > 0, matrix.loss - fitted, 0), matrix.weight, bin_of)
        count = mean.shape[1]
        return pd.DataFrame(
            {
                "step": np.repeat(self.series.step.astype(int), count),
                "held_out": np.repeat(~self.seen, count),
                "position_low": np.tile([int(matrix.position[bin_of == b][0]) for b in range(count)], len(mean)),
                "position_high": np.tile([int(matrix.position[bin_of == b][-1]) for b in range(count)], len(mean)),
                "residual": mean.ravel(),
                "stderr": stderr.ravel(),
            }
        )


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


def _joint_law(fit: JointFit) -> JointLaw:
    return JointLaw(
        a0_family=fit.a0_family,
        a1_family=fit.a1_family,
        a2_clock=fit.clock,
        a2_kernel=fit.kernel,
        r2=fit.r2,
        rmse=fit.rmse,
        constants=tuple(Constant(**as_json(row)) for row in fit.table.to_dict("records")),
    )


def _coverage(
    forecasts: Forecast | PositionForecast, actual: np.ndarray, counted: np.ndarray | slice = slice(None)
) -> Coverage:
    """The share of `actual` (of its `counted` part) inside each interval."""
    shares = []
    for level in LEVELS:
        low, high = forecasts.interval(level)
        shares.append(float(np.mean(((low <= actual) & (actual <= high))[counted])))
    return Coverage(*shares)


def _smooth_error(guess: np.ndarray, actual: np.ndarray, points: int = 100) -> float:
    """Mean squared error after averaging both in at most `points` groups of rows, so without the noise of rows."""
    parts = np.array_split(np.arange(len(actual)), min(points, len(actual)))
    return float(np.mean([(guess[part].mean() - actual[part].mean()) ** 2 for part in parts]))
