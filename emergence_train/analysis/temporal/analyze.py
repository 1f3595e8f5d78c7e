"""`analyze temporal`: fit the observed part of each run, forecast the rest, compare with every baseline.

Entry points: `analyze_temporal` (tables and run directories), `investigate` (the same with the fits behind it, for what
writes and draws), `forecast_final` (inside training, at each checkpoint). Nothing is written here: see output.py.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.position_matrix import observed_rows, position_bins
from emergence_train.analysis.runs import Series, load
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.forecast import Forecast, forecast
from emergence_train.analysis.temporal.mean_law import LAWS, Z
from emergence_train.analysis.temporal.position_forecast import JointFit, PositionForecast, forecast_positions, joint
from emergence_train.analysis.temporal.position_law import (
    bin_residuals,
    compare_forms_of,
    fit_matrix,
    position_curve,
)
from emergence_train.analysis.temporal.ranking import Ranking, rank
from emergence_train.analysis.temporal.result import (
    Final,
    ForecastPoint,
    HeldOut,
    JointLaw,
    ModelScore,
    PositionPoint,
    Positions,
    PriorSource,
    RunResult,
    Skipped,
    TemporalResult,
)
from emergence_train.errors import InputError

LEVELS = (50, 80, 95)
FUTURE_POINTS = 40  # forecast rows of a run that has not got there yet
ROWS = 2000  # forecast rows in result.json at most; the CSV has all
POSITION_BINS = 32
LABELS = {"paper": "paper (reconstructed)"}


def analyze_temporal(
    paths: str | Path | Iterable[str | Path],
    *,
    fit_fraction: float | None = None,
    planned_lr: np.ndarray | None = None,
    splits: Iterable[str] | None = None,
) -> TemporalResult:
    """Fit the temporal law to every run and split in `paths` and forecast the rest of each run.

    `fit_fraction` in (0, 1): only rows up to this share of the planned tokens are observed; the later ones are held
    back, touch no fit and no choice, and are what the forecasts are scored on. None: everything is observed and the
    forecast reaches to the planned end. `planned_lr` (K, 2): tokens and learning rate, see runs.load. `splits` names
    the splits to take; None: all, and the training curve.

    result.as_json gives what result.json holds. Raises InputError for bad tables, for fractions outside (0, 1), and
    where nothing is long enough to fit.
    """
    return investigate(paths, fit_fraction=fit_fraction, planned_lr=planned_lr, splits=splits)[0]


def investigate(
    paths: str | Path | Iterable[str | Path],
    *,
    fit_fraction: float | None = None,
    planned_lr: np.ndarray | None = None,
    splits: Iterable[str] | None = None,
) -> tuple[TemporalResult, list["Analysis"]]:
    """What analyze_temporal returns, and the analyses behind it."""
    if fit_fraction is not None and not 0 < fit_fraction < 1:
        raise InputError(f"fit fraction {fit_fraction}: must lie between 0 and 1, for example 0.1")
    found = load(paths, planned_lr)
    if splits is not None:
        found = [series for series in found if series.split in set(splits)]
        if not found:
            raise InputError(f"no split named {', '.join(splits)} in these tables; leave --split out to see all")
    analysed, skipped = [], []
    for series in found:
        try:
            analysed.append(Analysis(series, fit_fraction))
        except InputError as error:
            skipped.append(Skipped(series.run, series.split, str(error)))
    if not analysed:
        raise InputError(skipped[0].reason)
    result = TemporalResult(
        prior=PriorSource(priors.SHIPPED.source, priors.SHIPPED.runs, priors.SHIPPED.groups),
        runs=tuple(one.result() for one in analysed),
        skipped=tuple(skipped),
        ranking=_rankings(analysed),
    )
    return result, analysed


def forecast_final(
    step: np.ndarray, loss: np.ndarray, planned_steps: np.ndarray, planned_lr: np.ndarray, final_step: float
) -> dict:
    """Forecast the loss at `final_step` from what a run has logged so far; some tens of milliseconds.

    `step`, `loss` (n,) ascending, nats; `planned_steps`, `planned_lr` (K,) the learning rate of the whole run. Returns
    {"loss", "sd", "low95", "high95"} of the noiseless curve in nats, or {"reason": "not identified: ..."}; never
    raises for a run that is merely too young, so that training goes on.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    good = np.isfinite(loss) & (step > 0)
    if good.sum() < 2:
        return {"reason": f"not identified: {int(good.sum())} rows"}
    try:
        one = forecast(
            step[good], loss[good], np.array([float(final_step)]), PlannedSchedule(planned_steps, planned_lr)
        )
    except InputError as error:
        return {"reason": str(error)}
    low, high = one.interval(95, noisy=False)
    return {"loss": float(one.mean[0]), "sd": float(one.sd[0]), "low95": float(low[0]), "high95": float(high[0])}


class Analysis:
    """One run's split: the observed part, its fits and forecasts, and the held-out part to score them on."""

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
    def held(self) -> bool:
        return len(self.actual) > 0

    @property
    def tokens(self) -> np.ndarray:
        """Tokens at the forecast steps; 0 where the table has none."""
        if self.held:
            return self.series.tokens[~self.seen]
        if not self.series.by_tokens:
            return np.zeros(len(self.future))
        return self.future * self.series.tokens[-1] / self.series.step[-1]

    @property
    def selected(self) -> str:
        return "temporal" if self.series.matrix is not None else self.level.selected

    def forecast_rows(self) -> pd.DataFrame:
        """One row per forecast step: step, tokens, loss, low and high per level, and actual where it is known."""
        frame = pd.DataFrame({"step": self.future.astype(int), "tokens": np.round(self.tokens).astype(int)})
        frame["loss"] = self.level.mean
        for level in LEVELS:
            frame[f"low{level}"], frame[f"high{level}"] = self.level.interval(level)
        if self.held:
            frame["actual"] = self.actual
        return frame

    def models(self) -> list[ModelScore]:
        """Every law's error on the held-out rows, selected first; None where nothing was held back."""
        guesses = {self.selected: self.level.mean}
        if self.joint is not None:
            guesses["temporal-joint"] = self.joint.predict(self.future, self.positions.position) @ self.positions.share
        guesses |= {LABELS.get(name, name): fit.predict(self.future)[0] for name, fit in self.level.fits.items()}
        rows = []
        for name, guess in guesses.items():
            mse = r2 = smooth = None
            if self.held:
                mse = float(np.mean((guess - self.actual) ** 2))
                spread = float(np.mean((self.actual - self.actual.mean()) ** 2))
                r2 = 1 - mse / spread if spread > 0 else None
                smooth = _smooth_error(guess, self.actual)
            score = self.level.backtest.get(next((k for k in LAWS if LABELS.get(k, k) == name), ""), float("nan"))
            backtest = score if np.isfinite(score) else None
            rows.append(
                ModelScore(
                    name=name,
                    mse=mse,
                    r2=r2,
                    heldout_points=len(self.actual),
                    mse_smooth=smooth,
                    backtest_mse=backtest,
                )
            )
        return rows

    def result(self) -> RunResult:
        """This series' part of result.json."""
        series, level = self.series, self.level
        rows = self.forecast_rows()
        final = rows.tail(1).to_dict("records")[0]
        for percent in LEVELS:
            low, high = level.interval(percent, noisy=False)
            final[f"curve_low{percent}"], final[f"curve_high{percent}"] = float(low[-1]), float(high[-1])
        thin = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))]
        notes = [*series.notes, *level.notes]
        if self.fraction is not None and series.plan is not None:
            notes.append("the learning rate of the held-out part is taken as planned, not as observed")
        ahead = thin.to_dict("records") if self.held or series.end_step > self.x[-1] else []
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
            models=tuple(self.models()),
            coverage=self.coverage(),
            noise=level.noise,
            law={"name": "schedule", **level.fits["schedule"].best},
            notes=tuple(notes),
            positions=self._positions_result() if self.positions is not None else None,
        )

    def coverage(self) -> dict | None:
        """Share of held-out rows inside each interval."""
        if not self.held:
            return None
        ends = {level: self.level.interval(level) for level in LEVELS}
        return {str(k): float(np.mean((low <= self.actual) & (self.actual <= high))) for k, (low, high) in ends.items()}

    def _positions_result(self) -> Positions:
        positions = self.positions
        last = fit_matrix(self.matrix).iloc[-1]
        laws = {}
        for name, law in (("a0", positions.a0), ("a1", positions.a1)) if positions.identified else ():
            best = law.fits[0]
            laws[name] = {
                "family": best.family,
                "weight": float(law.weights[0]),
                "c0": best.c0,
                "c1": best.c1,
                "c0_se": best.c0_se,
                "c1_se": best.c1_se,
                "q_per_observed_length": best.q,
                "separation_step": best.separation if np.isfinite(best.separation) else None,
                "r2": best.r2,
                "backtest_rmse": best.backtest if np.isfinite(best.backtest) else None,
            }
        laws["a2"] = {"family": "schedule", **positions.a2.fits["schedule"].best}
        final = self.position_rows(last_only=True).drop(columns=["step", "tokens"]).to_dict("records")
        return Positions(
            law="L_i = a0 / (1 + a1 i) + a2, arXiv 2404.17785",
            last_fit=_plain({k: last[k] for k in last.index if k not in ("run", "params", "split")}),
            identified=positions.identified,
            laws=laws,
            final=tuple(PositionPoint(**row) for row in final),
            forms=tuple(_plain(row) for row in self.form_rows().to_dict("records")),
            joint=self._joint_law() if self.joint is not None else None,
            held_out=self._held_out_positions() if self.held else None,
        )

    def _joint_law(self) -> JointLaw:
        return JointLaw(
            a0_family=self.joint.a0_family,
            a1_family=self.joint.a1_family,
            a2_clock=self.joint.clock,
            a2_kernel=self.joint.kernel,
            r2=self.joint.r2,
            rmse=self.joint.rmse,
            constants=tuple(_plain(row) for row in self.joint.table.to_dict("records")),
        )

    def _held_out_positions(self) -> HeldOut:
        actual = self.series.matrix.loss[~self.seen]
        there = self.series.matrix.count[~self.seen] > 0
        mse = float(np.mean((self.positions.loss - actual)[there] ** 2))
        spread = float(np.var(actual[there]))
        inside = {}
        for level in LEVELS:
            low, high = self.positions.interval(level)
            inside[str(level)] = float(np.mean(((low <= actual) & (actual <= high))[there]))
        return HeldOut(mse=mse, r2=1 - mse / spread if spread > 0 else None, coverage=inside)

    def position_rows(self, last_only: bool = False) -> pd.DataFrame:
        """Forecast loss by bin of position and step: position_low, position_high, loss, low50 ... high95, actual."""
        positions = self.positions
        bin_of = position_bins(positions.position, POSITION_BINS)
        member = (bin_of[:, None] == np.arange(bin_of.max() + 1)) * positions.share[:, None]
        member = member / member.sum(0)
        rows = slice(-1, None) if last_only else slice(None)
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
        if self.held:
            frame["actual"] = (self.series.matrix.loss[~self.seen][rows] @ member).ravel()
        return frame

    def parameter_rows(self) -> pd.DataFrame:
        """a0, a1, a2 fitted at every checkpoint, held-out ones included (marked), and their forecasts."""
        fits = fit_matrix(self.series.matrix)
        fits["held_out"] = ~self.seen
        steps = self.series.step
        observed = self.positions
        for name, law in (("a0", observed.a0), ("a1", observed.a1)) if observed.identified else ():
            fits[f"{name}_law"], fits[f"{name}_law_sd"] = law.predict(steps)
        a2 = observed.a2
        fits["a2_law"] = sum(w * a2.fits[name].predict(steps)[0] for name, w in a2.weights.items())
        fits["a2_law_sd"] = a2.fits["schedule"].predict(steps)[1]
        return fits

    def residual_rows(self, bins: int = 16) -> pd.DataFrame:
        """Loss minus the position law fitted at the same checkpoint, by bin of position."""
        matrix = self.series.matrix
        fits = fit_matrix(matrix)
        fitted = position_curve(*(fits[name].to_numpy()[:, None] for name in ("a0", "a1", "a2")), matrix.position)
        bin_of = position_bins(matrix.position, bins)
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

    def form_rows(self) -> pd.DataFrame:
        """How the reciprocal form does against a power law and an exponential in position, at observed checkpoints."""
        return compare_forms_of(self.matrix).drop(columns=["run", "split"])


def _smooth_error(guess: np.ndarray, actual: np.ndarray, points: int = 100) -> float:
    """Mean squared error after averaging both in at most `points` runs of rows: the noise of single rows goes."""
    parts = np.array_split(np.arange(len(actual)), min(points, len(actual)))
    return float(np.mean([(guess[part].mean() - actual[part].mean()) ** 2 for part in parts]))


def _plain(row: dict) -> dict:
    """JSON can hold no infinity and no NaN: null stands for "open" and "unknown"."""
    plain = {}
    for key, value in row.items():
        value = value.item() if hasattr(value, "item") else value
        plain[key] = None if isinstance(value, float) and not np.isfinite(value) else value
    return plain


def _rankings(analysed: list[Analysis]) -> tuple[Ranking, ...]:
    """One ranking per split that at least two runs have."""
    rankings = []
    for split in sorted({one.series.split or "" for one in analysed}):
        group = [one for one in analysed if (one.series.split or "") == split]
        if len(group) < 2:
            continue
        names = [one.series.run for one in group]
        mean, sd = [one.level.mean[-1] for one in group], [one.level.sd[-1] for one in group]
        rankings.append(rank(names, mean, sd, split or None))
    return tuple(rankings)
