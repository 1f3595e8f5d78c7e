"""One run's split along training, and the learning rate that is planned for the whole of it.

Where the learning rates come from, in this order: the `planned_lr` argument; a schedule given beside the files; a run
directory's config.yaml (its schedule up to the planned end); the column lr of the table, log or metrics.jsonl. In a finished
run that is analysed with --fit-fraction the recorded later rates count as the plan: they were decided before, and no loss is
looked at.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emergence_train.analysis.outlook import MULTIPLIER, Ahead, continued, off_plan, planned_schedule, rates_of
from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.position_matrix import PositionMatrix
from emergence_train.errors import InputError
from emergence_train.optim.schedule import Schedule

TYPICAL_PEAK = 1e-3  # of the runs that the laws' constants come from
SAME_BATCH = 0.01  # rows within this share of all tokens of one number of tokens a step have that
LAST_ROWS = 3  # at least, that say how many tokens a step trains on from now on
MOST_TIED = 0.1  # share of the steps that a counter of all tokens has one value in; that of a step's stays for longer
STALLED = 2  # times as many steps as either count beside it lasts: one that stays for more has stalled


@dataclass
class Series:
    """The mean loss of one run's split along training, ascending by step; all arrays (C,)."""

    run: str
    split: str | None  # None: a `curves` table
    step: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    plan: PlannedSchedule | None = None
    end_step: int = 0  # planned end; the last row where the plan does not extend further
    end_tokens: int = 0
    matrix: PositionMatrix | None = None
    no_tokens: str = ""  # why tokens are unusable (then 0) and shares of the run are counted in steps
    source: Path | None = None  # the run directory or log that is this run; None: a table, which may hold several
    logged_end: float | None = None  # planned last step, where a log or a run's header names it
    course: np.ndarray | None = (
        None  # (K, 2) steps and tokens beyond the last row, where a log says that the batch grows there
    )
    rates_assumed: bool = False  # the plan beyond the last row is taken from how the rates went
    ahead: Ahead = Ahead()  # what the user says of its rest
    notes: list[str] = field(default_factory=list)
    vocabulary: str = ""  # the tokenizer that a run directory names
    params: int = 0  # non-embedding, of a log that says them or is given them

    @property
    def by_tokens(self) -> bool:
        return not self.no_tokens

    @property
    def progress(self) -> np.ndarray:
        """(C,) share of the planned run behind each row."""
        return self.tokens / self.end_tokens if self.by_tokens else self.step / self.end_step

    @property
    def rows_ahead(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and tokens of the rows, and of the course beyond them."""
        if self.course is None or not self.by_tokens:
            return self.step, self.tokens
        later = self.course[self.course[:, 0] > self.step[-1]]
        return np.r_[self.step, later[:, 0]], np.r_[self.tokens, later[:, 1]]

    @property
    def batch_grows(self) -> bool:
        """Whether the rows, or what is planned behind them, are off one number of tokens a step by more than their rounding."""
        return self.by_tokens and len(self.rows_ahead[0]) > 1 and not _even(*self.rows_ahead)

    def _knots(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Steps and tokens by the rows, and the tokens a step of the last ones, which is that of all beyond."""
        steps, tokens = (np.r_[0.0, known] for known in self.rows_ahead)
        if not self.batch_grows:
            steps, tokens = steps[[0, -1]], tokens[[0, -1]]
        back = 1 if len(steps) > len(self.step) + 1 else min(max(LAST_ROWS, len(self.step) // 20), len(steps) - 1)
        return steps, tokens, float((tokens[-1] - tokens[-back - 1]) / (steps[-1] - steps[-back - 1]))

    def tokens_at(self, step: np.ndarray | float) -> np.ndarray:
        """Tokens trained at steps (m,)."""
        steps, tokens, batch = self._knots()
        return np.interp(step, steps, tokens) + batch * np.maximum(step - steps[-1], 0)

    def steps_at(self, tokens: np.ndarray | float) -> np.ndarray:
        """Steps at which tokens (m,) are trained; the tokens themselves where the rows have none."""
        if not self.by_tokens:
            return np.asarray(tokens, float)
        steps, known, batch = self._knots()
        return np.interp(tokens, known, steps) + np.maximum(tokens - known[-1], 0) / batch


def _even(step: np.ndarray, tokens: np.ndarray) -> bool:
    """Whether tokens (C,) are of one number a step, but for their rounding."""
    off = np.abs(tokens - step * (tokens[-1] / step[-1])).max()
    unit = float(np.gcd.reduce(tokens.astype(np.int64)))  # that they are rounded to, at least
    return bool(off <= max(SAME_BATCH * tokens[-1], unit))


def rising(step: np.ndarray, tokens: np.ndarray) -> np.ndarray | None:
    """Tokens (C,) trained at steps (C,) > 0, straight through the middle of rows that share a count, as a rounded one has; None:
    they do not grow with the steps, as those of a step or of an interval, or stall: a rounded count stays everywhere."""
    levels, first, rows = np.unique(tokens, return_index=True, return_counts=True)
    row = np.ptp(step) / max(len(step) - 1, 1)
    stays = step[first + rows - 1] - step[first]
    lasts = np.diff(np.r_[step[first], step[-1] + row])
    beside = np.maximum(np.r_[0, lasts[:-1]], np.r_[lasts[1:], 0])  # a batch that grows has shorter ones on one side
    most = np.minimum(STALLED * beside + row, max(MOST_TIED * step[-1], row))
    if (np.diff(tokens) < 0).any() or (stays > most).any() or (len(levels) == 1 and len(step) > 1):
        return None
    if len(levels) == len(step):
        return tokens
    if _even(step, tokens):
        return step * (tokens[-1] / step[-1])
    middle = (step[first] + step[first + rows - 1]) / 2
    middle, levels = np.r_[0.0, middle[levels > 0]], np.r_[0.0, levels[levels > 0]]
    back = min(LAST_ROWS, len(levels) - 1)
    batch = (levels[-1] - levels[-back - 1]) / (middle[-1] - middle[-back - 1])
    return np.interp(step, middle, levels) + batch * np.maximum(step - middle[-1], 0)


def set_plan(series: Series, recorded: Series | None, planned_lr: np.ndarray | None, ahead: Ahead) -> None:
    """Set the learning rate of the whole run and its planned end."""
    if not len(series.step):
        raise InputError(f"run {series.run!r}: no row after step 0, so nothing to fit; name one that has trained")
    series.end_step, series.end_tokens, series.ahead = int(series.step[-1]), int(series.tokens[-1]), ahead
    if ahead.to_tokens is not None and not series.by_tokens:
        raise InputError(f"run {series.run!r}: {series.no_tokens}, which --to-tokens counts; give --tokens-per-step")
    end = float(series.tokens_at(_logged_end(series, recorded))) if series.by_tokens else _logged_end(series, recorded)
    plan = series.plan or (recorded.plan if recorded else None)
    planned = _given_rates(series, planned_lr) if planned_lr is not None else _scheduled(series, ahead, end)
    if planned is not None:
        steps, end = series.steps_at(planned[:, 0]), float(planned[-1, 0])
        logged, plan = plan, PlannedSchedule(steps, planned[:, 1], end / steps[-1] if series.by_tokens else 0.0)
        plan = _beside_log(series, plan, logged)
    elif ahead.to_tokens is not None:
        end = float(ahead.to_tokens)
        _refuse_past(series, end, "--to-tokens")
    series.plan = plan = _as_rates(series, plan)
    if end > (series.end_tokens if series.by_tokens else series.end_step) * 1.001:
        series.end_step = math.ceil(float(series.steps_at(end)) - 1e-6)
        series.end_tokens = round(end) if series.by_tokens else 0
        if plan is not None and plan.x[-1] < series.end_step * 0.999:
            series.plan, series.rates_assumed = _continued(series, plan), True
    if series.batch_grows:
        _set_batches(series)


def _set_batches(series: Series) -> None:
    if _even(series.step, series.tokens):
        series.notes.append("tokens a step grow beyond the last row: what a larger batch brings is not in the forecast")
        return
    if series.plan is None:
        effect = "without a learning rate the fall that a larger batch brings counts as learning; give --schedule"
    else:
        series.plan = series.plan.with_batches(*series.rows_ahead)
        effect = (
            "the loss is taken to fall with them as with a rate over the batch, or over its root, whichever the rows show (from "
            "papers and simulations: no public log at hand has such a change; a counter that misses tokens looks the same)"
        )
    series.notes.append(f"tokens a step change along the run: {effect}")


def _continued(series: Series, plan: PlannedSchedule) -> PlannedSchedule:
    """The plan to the run's end where its rows say how they go on; otherwise as it is, and the forecast leaves room."""
    longer = continued(plan, series.end_step)
    last = float(plan.peak * plan.e[-1])
    begin = f"the learning rate after step {plan.x[-1]:.0f} is not known and taken to"
    if longer is None:
        series.notes.append(f"{begin} stay at {last:.3g}; give --schedule")
        return plan
    whole, course = longer
    end = float(whole.peak * whole.e[-1])
    series.notes.append(f"{begin} go on from {last:.3g} to {end:.3g} as {course}, as its rows do; give --schedule")
    return whole


def _logged_end(series: Series, recorded: Series | None) -> float:
    """The last step that is known to be planned: a log's own word, or the training curve beside fewer checkpoints."""
    return float(max(series.logged_end or 0, recorded.step[-1] if recorded is not None and len(recorded.step) else 0))


def _given_rates(series: Series, planned_lr: np.ndarray) -> np.ndarray:
    table = np.asarray(planned_lr, float)
    if table.ndim != 2 or table.shape[1] != 2 or np.any(np.diff(table[:, 0]) <= 0):
        raise InputError("planned_lr: must be rows of (tokens, lr) with growing tokens")
    _refuse_past(series, float(table[-1, 0]), "planned_lr (tokens, lr)")
    return table


def _refuse_past(series: Series, end: float, what: str) -> None:
    """An end before the last row is no end: often a number of steps where tokens are meant."""
    last = series.tokens[-1] if series.by_tokens else series.step[-1]
    if end < last * 0.999:
        raise InputError(
            f"run {series.run!r}: {what} ends at {end:,.0f}, before its last row at {last:,.0f} "
            f"{'tokens' if series.by_tokens else 'steps'}; give a later end"
            + (f" (is {end:,.0f} in steps?)" if end <= series.step[-1] * 100 else "")
        )


def _scheduled(series: Series, ahead: Ahead, logged_end: float) -> np.ndarray | None:
    """(K, 2) tokens and rate by --schedule, or by the run's own configuration; None: neither is known."""
    if ahead.schedule is not None:
        return _by_schedule(series, ahead.schedule, ahead.to_tokens, logged_end)
    config = series.source / "config.yaml" if series.source is not None else None
    own = planned_schedule(config) if config is not None and config.is_file() else None
    if own is None:
        return None
    schedule, total = own
    planned = rates_of(schedule, total)
    if ahead.to_tokens is None:
        return planned
    _refuse_past(series, ahead.to_tokens, "--to-tokens")
    longer = rates_of(schedule, ahead.to_tokens)
    past = planned[planned[:, 0] <= series.tokens[-1]]
    if np.abs(np.interp(past[:, 0], *longer.T) - past[:, 1]).max() > 0.01 * schedule.lr:
        raise InputError(
            f"{series.source}: its {schedule.kind} schedule falls towards {total:,.0f} tokens and not {ahead.to_tokens:,}; "
            f"give the rate up to there with --schedule"
        )
    return longer


def _by_schedule(series: Series, schedule: Schedule, to_tokens: int | None, logged_end: float) -> np.ndarray:
    end = to_tokens or max(logged_end, series.tokens[-1])
    if not series.by_tokens:
        raise InputError(f"run {series.run!r}: {series.no_tokens}, which --schedule counts; give --tokens-per-step")
    if to_tokens is not None:
        _refuse_past(series, to_tokens, "--to-tokens")
    if schedule.warmup_tokens + schedule.decay_tokens > end or schedule.warmup_tokens >= end:
        raise InputError(
            f"--schedule: warmup and decay ({schedule.warmup_tokens:,} and {schedule.decay_tokens:,} tokens) do not fit "
            f"into the run's {end:,.0f} tokens; lower them"
        )
    return rates_of(schedule, end)


def _beside_log(series: Series, plan: PlannedSchedule, logged: PlannedSchedule | None) -> PlannedSchedule:
    """The plan; where the log has left it, with the logged rates as its past, and where it is back on it behind them. Where the
    log is nowhere on it, its rates may be those of other parameters, or in another unit: the plan counts."""
    if logged is None:
        return plan
    if (logged.peak >= MULTIPLIER) is not (plan.peak >= MULTIPLIER):
        steps, share = logged.rows
        logged = logged.with_peak(plan.peak * float(plan.share(steps[[np.argmax(share)]])[0]))
    off = off_plan(series.step, plan, logged)
    if not off.rows.any():
        return plan
    last = series.step[off.rows][-1]
    note = f"step {last:.0f}: {plan.peak * plan.share(last):.3g}, logged {logged.peak * logged.share(last):.3g}"
    note = f"the planned learning rate is not the logged one in {off.rows.sum()} rows ({note}): "
    if off.everywhere:
        series.notes.append(f"{note}the planned one counts")
        return plan
    if off.back:
        series.notes.append(f"{note}the log is back on the plan, and the forecast continues from the logged rates")
        return plan.behind(logged, series.step[-1])
    series.notes.append(
        f"{note}the law is fitted at the logged rates, and what lies ahead is forecast at the planned ones"
    )
    return plan.with_past(logged, series.step[-1])


def _as_rates(series: Series, plan: PlannedSchedule | None) -> PlannedSchedule | None:
    """The plan; where its numbers are multipliers of an unknown peak, with a typical peak and a note."""
    if plan is None or plan.peak < MULTIPLIER:
        return plan
    series.notes.append(
        f"rates look like multipliers (the highest is {plan.peak:.3g}): the peak is taken as {TYPICAL_PEAK:g}; give the "
        f"true one with --schedule KIND,lr=PEAK,..."
    )
    return plan.with_peak(TYPICAL_PEAK)
