"""The figures of the temporal analysis: the forecast, loss against position, the law's parameters, its residuals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import (
    FORECAST,
    HELD_OUT,
    INTERVALS,
    OBSERVED,
    Figure,
    Ramp,
    Trace,
    envelope,
    even,
)
from emergence_train.analysis.position_matrix import PositionMatrix, position_bins
from emergence_train.analysis.temporal.position_law import ONLY_RATIO, position_curve
from emergence_train.analysis.temporal.tables import PositionTables, RunAnalysis
from emergence_train.formatting import short

POINTS = 1000  # points drawn of a curve at most
CURVES = 40  # checkpoints drawn against position
BINS = 40  # bins of position, equal in the logarithm
CHECKPOINTS = 12  # points drawn of the residuals
SPIKE = 3.0  # held-out losses so many times as high as the forecast and 95% of them reach are cut
FEWEST = 3  # checkpoints with a closed interval required to draw a parameter
UNITS = {"a0": "nats", "a1": "1 / position", "a2": "nats"}
NATS = "loss (nats per token)"
EVERY_STEP = "every step: metrics.jsonl of the run, open_run(RUN).curve in Python"
EVERY_POSITION = "every position and checkpoint: positions/ of the run, open_run(RUN).positions in Python"


def run_figures(run: RunAnalysis) -> dict[str, tuple[Figure, ...]]:
    """Every figure of one run's split by its name; a figure may have several panels."""
    series = run.series
    title = series.run[:60] + (f", {series.split}" if series.split else "")
    what = "Loss" if run.result.nothing_to_forecast else "Forecast"
    figures: dict[str, tuple[Figure, ...]] = {"forecast": (forecast(run, f"{what}: {title}", baselines=True),)}
    if run.positions is not None and series.matrix is not None:
        figures["positions"] = (by_position(f"Loss against position: {title}", series.matrix, end=run.positions.end),)
        figures["residuals"] = (residuals(run, run.positions, f"Residuals by position: {title}"),)
        panels, _ = parameters(run, run.positions, title)
        if panels and run.result.positions is not None and run.result.positions.identified:
            figures["parameters"] = panels
    return figures


def _progress(run: RunAnalysis) -> tuple[np.ndarray, np.ndarray, str]:
    """Logged rows and forecast rows on the x axis, and its label."""
    if run.series.by_tokens:
        return run.series.tokens, run.forecast["tokens"].to_numpy(float), "tokens trained"
    return run.series.step, run.forecast["step"].to_numpy(float), "step"


def forecast(run: RunAnalysis, title: str, *, baselines: bool = False, points: int = POINTS) -> Figure:
    """The loss as forecast, with 50, 80 and 95% intervals, and as measured: observed and held-out rows."""
    x, ahead, label = _progress(run)
    loss, rows = run.series.loss, run.forecast
    seen, held = np.flatnonzero(run.seen), np.flatnonzero(~run.seen)
    seen, held = seen[envelope(loss[seen], points)], held[envelope(loss[held], points)]
    future = even(len(rows), points)
    mean = rows["loss"].to_numpy(float)
    traces = []
    for level in (95, 80, 50) if len(rows) else ():
        low, high = (rows[f"{end}{level}"].to_numpy(float)[future] for end in ("low", "high"))
        traces.append(Trace(ahead[future], mean[future], INTERVALS, FORECAST, line=False, low=low, high=high))
    for number, (name, guess) in enumerate(run.baselines.items() if baselines and len(rows) else ()):
        traces.append(Trace(ahead[future], guess[future], name, 2 + number, dashed=True))
    traces.append(Trace(x[seen], loss[seen], "observed", OBSERVED, line=False, points=True))
    if len(held):
        traces.append(Trace(x[held], loss[held], "held out", HELD_OUT, line=False, points=True))
    if len(rows):
        traces.append(Trace(ahead[future], mean[future], f"forecast ({run.result.selected})", FORECAST))
    before = loss[run.seen]
    before = before[
        before <= np.quantile(before, 0.9)
    ]  # an untrained model's losses would compress the rest of the axis
    ahead_of_it = np.concatenate([mean, rows["low95"], rows["high95"]])
    shown = np.concatenate([before, _without_spikes(loss[~run.seen], ahead_of_it), ahead_of_it])
    room = 0.05 * float(np.ptp(shown)) + 1e-3
    y_range = float(shown.min()) - room, float(shown.max()) + room
    top = float(shown.max())
    traces += _above(x[run.seen], loss[run.seen], top, points)
    traces += _above(x[~run.seen], loss[~run.seen], top, points, "held out", HELD_OUT)
    drawn = f"at most {points} points of each series" if max(len(loss), len(rows)) > points else ""
    every = EVERY_STEP if run.series.split is None else EVERY_POSITION
    return Figure(
        title,
        label,
        NATS,
        tuple(traces),
        y_range=y_range,
        note=_coverage_note(run),
        reduced=f"{drawn}; {every}" if drawn else "",
    )


def _without_spikes(held: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    """The held-out losses that set the axis: without those by which everything else would be flat."""
    if not len(held) or not len(forecast):
        return held
    usual = np.r_[forecast, np.quantile(held, 0.95)]
    return held[held <= usual.min() + SPIKE * float(np.ptp(usual))]


def _above(
    x: np.ndarray, loss: np.ndarray, top: float, points: int, what: str = "observed", colour: int = OBSERVED
) -> list[Trace]:
    """What lies above the figure, at its upper edge; not the untrained model, before the loss first is in the figure."""
    high = loss > top
    if what == "observed":
        high[: int(np.argmin(high))] = False
    if not high.any():
        return []
    label = f"{what} above the figure, up to {short(loss[high].max())}"
    shown = x[high][envelope(loss[high], points)]
    return [Trace(shown, np.full(len(shown), top), label, colour, line=False, points=True)]


def _coverage_note(run: RunAnalysis) -> str:
    if run.result.nothing_to_forecast is not None:
        return f"{run.result.nothing_to_forecast[0].upper()}{run.result.nothing_to_forecast[1:]}."
    inside = run.result.coverage
    return f"{inside.within95:.0%} of the held-out points lie in the 95% interval." if inside is not None else ""


def binned(matrix: PositionMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean position (B,), mean loss and its standard error (C, B) in bins equal in log position, B at most BINS;
    NaN in a bin that counts nothing."""
    bin_of = position_bins(matrix.position, BINS)
    member = (bin_of[:, None] == np.arange(bin_of.max() + 1)).astype(float)
    count = matrix.count @ member
    count = np.where(count > 0, count, np.nan)
    loss = (matrix.count * matrix.loss) @ member / count
    error = np.sqrt((matrix.count * matrix.variance) @ member) / count
    tokens = matrix.count.sum(0)
    return (tokens * matrix.position) @ member / (tokens @ member), loss, error


def by_position(
    title: str,
    matrix: PositionMatrix,
    *,
    fit: pd.Series | None = None,
    end: np.ndarray | None = None,
    note: str = "",
    curves: int = CURVES,
) -> Figure:
    """Loss against position, a line per checkpoint (at most `curves`), coloured by tokens (by steps where the table has none).

    `fit` is the last checkpoint's row of position_law.fit_matrix, `end` (P,) the forecast at the run's end, nats.
    """
    x, loss, _ = binned(matrix)
    label = "tokens" if matrix.keys["tokens"].gt(0).all() else "step"
    trained = matrix.keys["tokens" if label == "tokens" else "step"].to_numpy(float)
    chosen = even(len(trained), curves)
    ramp = Ramp("tokens trained" if label == "tokens" else "step", trained[chosen[0]], trained[chosen[-1]])
    traces = [
        Trace(x, loss[row], f"{short(trained[row])} {label}", shade=float(shade))
        for row, shade in zip(chosen, ramp.shades(trained[chosen]))
    ]
    if has_curve(fit):
        traces.append(_law(matrix, fit, Trace(x, x, "position law, last checkpoint", HELD_OUT, dashed=True)))
    if end is not None:
        bin_of = position_bins(matrix.position, BINS)
        mean = np.bincount(bin_of, end) / np.bincount(bin_of)
        traces.append(Trace(x, mean, "forecast at the end", HELD_OUT, dashed=True))
    reduced = f"means of {len(x)} bins of position, {len(chosen)} of {len(trained)} checkpoints; {EVERY_POSITION}"
    return Figure(title, "token position", NATS, tuple(traces), x_log=True, ramp=ramp, note=note, reduced=reduced)


def has_curve(fit: pd.Series | None) -> bool:
    """Whether a row of position_law.fit_matrix describes the curve; also where only a0/a1 is identified."""
    return fit is not None and (fit["status"] == "ok" or ONLY_RATIO in str(fit["status"]))


def _law(matrix: PositionMatrix, fit: pd.Series, style: Trace) -> Trace:
    """The position law of `fit` over the positions of `matrix`."""
    x = np.geomspace(1, matrix.position[-1], 60)
    return replace(style, x=x, y=position_curve(fit["a0"], fit["a1"], fit["a2"], x))


def last_checkpoints(
    title: str, runs: Sequence[tuple[str, int, PositionMatrix, pd.Series | None]], *, bands: bool = True
) -> Figure:
    """The last checkpoint's loss against position of several runs (label, colour, matrix, fit), with 95% bands."""
    traces = []
    for label, colour, matrix, fit in runs:
        x, loss, error = binned(matrix)
        y, reach = loss[-1], 1.96 * error[-1]
        ends = {"low": y - reach, "high": y + reach} if bands else {}
        law = has_curve(fit)
        traces.append(Trace(x, y, label, colour, line=not law and not bands, points=True, run=label, **ends))
        if law:
            traces.append(_law(matrix, fit, Trace(x, y, "", colour, run=label)))
    reduced = f"means of at most {BINS} bins of position; {EVERY_POSITION}"
    return Figure(title, "token position", NATS, tuple(traces), x_log=True, reduced=reduced)


def parameters(run: RunAnalysis, positions: PositionTables, title: str) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """a0, a1 and a2 at every checkpoint with the law of each, and the names of those whose intervals are mostly open."""
    rows = positions.parameters
    bounded = {name: np.isfinite(rows[[f"{name}_low", f"{name}_high"]].to_numpy(float)).all(1) for name in UNITS}
    drawn = [name for name, checkpoints in bounded.items() if checkpoints.sum() >= FEWEST]
    missing = tuple(name for name in UNITS if name not in drawn)
    return tuple(_parameter(run, rows, name, bounded[name], f"{title}: {name}") for name in drawn), missing


def _parameter(run: RunAnalysis, rows: pd.DataFrame, name: str, bounded: np.ndarray, title: str) -> Figure:
    """One parameter along training; `bounded` (C,): its interval is closed."""
    seen = run.seen
    x, _, label = _progress(run)
    low, value, high = (rows[f"{name}{end}"].to_numpy(float) for end in ("_low", "", "_high"))
    left_out = int((~bounded).sum())
    some = "1 checkpoint" if left_out == 1 else f"{left_out} checkpoints"
    notes = [f"Without {some} whose curve does not bound {name}."] if left_out else []
    traces = []
    if f"{name}_law" in rows:
        law, reach = rows[f"{name}_law"].to_numpy(float), 1.96 * rows[f"{name}_law_sd"].to_numpy(float)
        band = {"low": (law - reach)[~seen], "high": (law + reach)[~seen]}
        traces.append(Trace(x[~seen], law[~seen], "", FORECAST, line=False, **band))
        traces.append(Trace(x, law, f"law of {name}", FORECAST))
    else:
        notes.append("Too few checkpoints bound it: no law is fitted, and the forecast holds a1.")
    for part, text, colour in ((seen, "seen by the fit", OBSERVED), (~seen, "held out", HELD_OUT)):
        keep = bounded & part
        ends = {"low": low[keep], "high": high[keep], "bars": True}
        traces.append(Trace(x[keep], value[keep], text, colour, line=False, points=True, **ends))
    inside = np.quantile(value[bounded], [0.02, 0.98])
    room = 0.25 * float(np.ptp(inside)) + 1e-6
    return Figure(
        title,
        label,
        f"{name} ({UNITS[name]})",
        tuple(traces),
        x_log=True,
        y_range=(float(inside[0]) - room, float(inside[1]) + room),
        note=" ".join(notes),
    )


def residuals(run: RunAnalysis, positions: PositionTables, title: str, *, lines: int = CHECKPOINTS) -> Figure:
    """Loss minus the position law fitted at the same checkpoint, by position, for at most `lines` checkpoints, with the last
    one's sampling noise."""
    rows = positions.residuals
    steps = np.sort(rows["step"].unique())
    chosen = steps[even(len(steps), lines)]
    progress, _, label = _progress(run)
    trained = dict(zip(run.series.step.astype(int), progress))
    last = rows[rows["step"] == steps[-1]]
    middle = np.sqrt(last["position_low"] * last["position_high"]).to_numpy(float)
    noise = 1.96 * last["stderr"].to_numpy(float)
    zero = np.zeros(len(middle))
    traces = [Trace(middle, zero, "sampling noise, 95%", OBSERVED, line=False, low=-noise, high=noise)]
    traces.append(Trace(middle, zero, "", OBSERVED))
    ramp = Ramp(label, trained[chosen[0]], trained[chosen[-1]])
    unit = "tokens" if run.series.by_tokens else "steps"
    for step, shade in zip(chosen, ramp.shades(np.array([trained[step] for step in chosen]))):
        residual = rows.loc[rows["step"] == step, "residual"].to_numpy(float)
        traces.append(Trace(middle, residual, f"{short(trained[step])} {unit}", shade=float(shade)))
    reduced = f"bins of position, {len(chosen)} of {len(steps)} checkpoints; {EVERY_POSITION}"
    return Figure(title, "token position", "loss - law (nats)", tuple(traces), x_log=True, ramp=ramp, reduced=reduced)
