"""A run as frames, forecasts and plots, for notebooks: `from emergence_train import open_run`."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emergence_train.analysis import temporal
from emergence_train.analysis.drawing import draw
from emergence_train.analysis.figures import Figure, Trace
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead, parse_schedule
from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal.figures import NATS, by_position, forecast
from emergence_train.analysis.temporal.result import RunResult
from emergence_train.analysis.temporal.tables import RunAnalysis
from emergence_train.errors import InputError
from emergence_train.formatting import short
from emergence_train.recorder import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE = "training curve"  # how the split None is called


def open_run(
    path: str | Path,
    *,
    run: str | None = None,
    params: int | None = None,
    tokens_per_step: int | None = None,
    columns: Mapping[str, str] | None = None,
    loss_unit: str | None = None,
) -> "OpenedRun":
    """A run directory, a table, or another framework's log, as a run to look at.

    Args:
        path: what `analyze temporal` takes.
        run: which one, where there are several.
        params, tokens_per_step, columns: of a log, what it does not say: non-embedding parameters, tokens of a step, and the
            file's name for one of our columns, such as {"loss": "eval/loss"}.
        loss_unit: of a log: "nats", "bits" or "perplexity"; None: by the name of the column.

    Raises:
        InputError: one line that says what cannot be read, or which runs there are.
    """
    options = LogOptions(
        run=None, params=params, tokens_per_step=tokens_per_step, columns=dict(columns or {}), loss_unit=loss_unit
    )
    series = load(path, options=options)
    names = sorted({each.run for each in series})
    if run is None and len(names) > 1 or run is not None and run not in names:
        wanted = "several runs" if run is None else f"no run {run!r}"
        raise InputError(f"{path}: holds {wanted}; choose with run= one of {', '.join(names[:10])}")
    name = run or names[0]
    return OpenedRun(Path(path), name, options, [each for each in series if each.run == name])


class OpenedRun:
    """A run's numbers; frames are read when they are first asked for. Losses in nats per token."""

    def __init__(self, path: Path, name: str, options: LogOptions, series: list[Series]) -> None:
        self.path, self.name, self._options, self._series = path, name, options, series

    def __repr__(self) -> str:
        last = self.curve.iloc[-1] if len(self.curve) else self.losses.iloc[-1]
        tokens = f"{short(last['tokens'])} tokens" if last["tokens"] > 0 else "tokens unknown"
        reached = f"step {int(last['step']):,}, {tokens}, loss {last['loss']:.3f}"
        return f"<run {self.name}: {reached}; splits {', '.join(self.splits) or 'none'}>"

    @property
    def splits(self) -> list[str]:
        """The splits whose losses by position are there."""
        return [series.split for series in self._series if series.split is not None]

    @cached_property
    def curve(self) -> pd.DataFrame:
        """The training curve: step, tokens, lr (NaN where not known), loss. Empty where there is none."""
        for series in self._series:
            if series.split is None:
                frame = pd.DataFrame({"step": series.step, "tokens": series.tokens, "loss": series.loss})
                rates = np.full(len(frame), np.nan)
                if series.plan is not None:
                    rates = series.plan.peak * np.interp(series.step, series.plan.x, series.plan.e)
                frame.insert(2, "lr", rates)
                return frame
        return pd.DataFrame(columns=["step", "tokens", "lr", "loss"], dtype=float)

    @cached_property
    def positions(self) -> pd.DataFrame:
        """Sums by position, a row for each checkpoint, split and position, and `loss`, their mean."""
        frame = tables.read(tables.POSITIONS, self.path)
        frame = frame[frame["run"] == self.name] if self.name in set(frame["run"]) else frame
        return frame.assign(loss=frame["loss_sum"] / frame["count"].where(frame["count"] > 0)).reset_index(drop=True)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Mean loss, standard error and accuracy of every checkpoint and split; of a log, its curve."""
        return tables.mean_loss(self.positions) if self.splits else self.curve

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Task results at every checkpoint."""
        return tables.read(tables.EVALUATIONS, self.path)

    def forecast(
        self,
        split: str | None = None,
        *,
        fit_fraction: float | None = None,
        to_tokens: float | None = None,
        schedule: str | None = None,
    ) -> "Forecast":
        """The loss to the run's end, by the temporal law.

        Args:
            split: of positions; None: the training curve, or iid where there is none.
            fit_fraction: forecast from this share of the run, and score against the rest.
            to_tokens: the end, where the run does not plan one.
            schedule: the learning rate of the whole run, such as "cosine,lr=3e-4,warmup=2e9,final=0.1".
        """
        if split is None and not any(series.split is None for series in self._series):
            split = "iid" if "iid" in self.splits else self.splits[0]
        ahead = Ahead(None if to_tokens is None else int(to_tokens), parse_schedule(schedule) if schedule else None)
        series = [each for each in load(self.path, ahead=ahead, options=self._options) if each.run == self.name]
        analysis = temporal.investigate_series(series, fit_fraction=fit_fraction, splits=[split])
        return Forecast(analysis.runs[0])

    def plot(self, split: str | None = None, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the training curve, or with `split` its loss against position, a line for each checkpoint."""
        axis = _axes(ax)
        if split is not None:
            matrices = [series.matrix for series in self._series if series.split == split and series.matrix is not None]
            if not matrices:
                raise InputError(
                    f"{self.path}: has no positions of split {split!r}; it has {', '.join(self.splits) or 'none'}"
                )
            draw(by_position(f"{self.name}, {split}", matrices[0]), axis)
            return axis
        if not len(self.curve):
            raise InputError(f"{self.path}: has no training curve; give plot() one of {', '.join(self.splits)}")
        x = "tokens" if (self.curve["tokens"] > 0).all() else "step"
        trace = Trace(self.curve[x].to_numpy(float), self.curve["loss"].to_numpy(float), self.name)
        draw(Figure(self.name, "tokens trained" if x == "tokens" else x, NATS, (trace,), x_log=True), axis)
        return axis


class Forecast:
    """A forecast of one run and split; `table` has its rows, `result` every number of result.json."""

    def __init__(self, analysis: RunAnalysis) -> None:
        self._analysis = analysis

    @property
    def result(self) -> RunResult:
        return self._analysis.result

    @property
    def table(self) -> pd.DataFrame:
        """step, tokens, loss, low50 ... high95 at each forecast row; `actual` where it was held out."""
        return self._analysis.forecast

    def __repr__(self) -> str:
        final, split = self.result.final, self._analysis.series.split or CURVE
        where = f"{short(final.tokens)} tokens" if final.tokens > 0 else f"step {final.step:,}"
        end = f"{final.loss:.3f} [{final.low95:.3f}, {final.high95:.3f}] at {where}"
        known = "" if final.actual is None else f", measured {final.actual:.3f}"
        return f"<forecast of {self.result.run}, {split}: {end}{known}>"

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw what was observed, the forecast and its intervals, and what was held out."""
        axis = _axes(ax)
        draw(forecast(self._analysis, f"{self.result.run}, {self._analysis.series.split or CURVE}"), axis)
        return axis


def _axes(ax: "Axes | None") -> "Axes":
    """The caller's axes, or the current ones of pyplot with the backend that is chosen."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()
