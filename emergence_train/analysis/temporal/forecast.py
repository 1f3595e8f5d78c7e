"""Forecast the loss at later steps from the observed part of one loss curve, with intervals.

Laws that know the planned learning rate are averaged, each weighted by how well it forecast the later observed part
from earlier origins (a rolling-origin backtest). Nothing after the observed part enters a fit, a weight or an
interval; the future learning rate does, because it is planned, not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.excursions import excursions
from emergence_train.analysis.temporal.jumps import find_jump
from emergence_train.analysis.temporal.mean_law import (
    KNOTS,
    LAWS,
    MINIMUM,
    SCHEDULE_AWARE,
    Fit,
    Z,
    above_zero,
    below,
    fit,
    observed_part,
)
from emergence_train.analysis.temporal.turned import Turn, find_turn
from emergence_train.errors import InputError

ORIGINS = (0.5, 0.7)  # shares of the observed part from which the backtest forecasts the rest of it
SHARPNESS = 2  # weights fall with this power of the backtest error
PRIOR_WEIGHT = {"schedule": 4.0, "annealing": 1.0, "multi-power": 1.0}  # prior weights, from public curves
COOLDOWN = 0.2  # share of a run in which an unknown rate may fall from its last value to 0
# Steps of the longest run whose drop with the rate the prior knows. Of longer ones it is up to twice as large, and not in all
# (docs/notebook/2026-11-29-long-cosines.md): the low bound goes down to that where the run has twice the steps
LONGEST = 72_000
RISE = "rise"  # what is selected where the loss has turned
YOUNG = 2000  # steps before which a note says how little of the fall ahead is known


@dataclass(frozen=True)
class Forecast:
    """Loss at the steps `x` (m,): `mean` and `sd` of the noiseless curve, `noise` of one row about it; nats."""

    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    noise: float
    weights: dict[str, float]  # of the averaged laws, sum 1; none where the loss has turned
    backtest: dict[str, float]  # mean squared error of each law's backtest, nats^2; NaN where too short
    fits: dict[str, Fit]
    # (m,) extension of the lower bound, nats, where the future learning rate is unknown, the run is longer than any of the prior
    # or the loss has turned
    shift_low: np.ndarray
    notes: list[str]
    unreturned: str | None = None  # the note on rows at the end that are left out
    jump: str | None = None  # the note on a jump of the level
    excursions: Sequence[str] = ()  # the notes on rises that the loss took back, which are left out
    turn: str | None = None  # the note on a loss that rises, which is what is forecast then

    @property
    def selected(self) -> str:
        """The one law used, "ensemble" when several share the weight, or RISE, which is none."""
        if self.turn is not None:
            return RISE
        return next(iter(self.weights)) if len(self.weights) == 1 else "ensemble"

    def interval(self, level: int, *, noisy: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) at 50, 80 or 95 percent, for one logged row (`noisy`) or for the curve without its noise."""
        width = Z[level] * np.hypot(self.sd, self.noise if noisy else 0.0)
        return below(self.mean, width + self.shift_low), self.mean + width


def forecast(
    x: np.ndarray,
    y: np.ndarray,
    x_future: np.ndarray,
    plan: PlannedSchedule | None,
    prior: priors.Prior | None = None,
    laws: Sequence[str] = tuple(LAWS),
) -> Forecast:
    """Forecast the loss at steps `x_future` (m,) from observed steps `x` (n,) ascending and losses `y` (n,) in nats.

    `plan` holds the learning rate of the whole run, the part to come included, and as its `past` that of the observed part,
    where it is another; None if unknown. `laws` are those to fit,
    SCHEDULE_AWARE at least; the others are baselines. Raises InputError where the observed part is too short to fit.
    """
    x, y, x_future = (np.asarray(values, float) for values in (x, y, x_future))
    prior = prior or priors.SHIPPED
    notes: list[str] = []
    past = plan.past if plan is not None else None
    if len(x) == 0 or (past is not None and x[-1] <= past.warmup_end):
        raise InputError("not identified: nothing is observed beyond the warm-up of the learning rate; observe longer")
    turn = find_turn(x, y, past)
    returned = excursions(x, y, past) if past is not None and turn is None else []
    notes += (returned_notes := [each.note(x) for each in returned])
    for each in returned:
        inside = each.rows(x)
        x, y = x[~inside], y[~inside]
    jump_note = None
    if turn is None and (jump := find_jump(x, y, plan)) is not None:
        jump_note = jump.note
        notes.append(jump_note)
        if jump.lasts:  # no law has it: the rows behind it go on from their own level
            y = y + jump.size * (x < jump.step)
    curve = observed_part(x, y, past)
    if len(curve.x) < MINIMUM:
        raise InputError(
            f"not identified: {len(curve.x)} points after warm-up in the later part of the observed run, a forecast "
            f"needs {MINIMUM}; observe longer or log more often"
        )
    used = plan or PlannedSchedule(np.array([0.0, max(x[-1], 1.0)]), np.array([1e-3, 1e-3]))
    fits = {name: fit(LAWS[name], curve, used, prior) for name in laws}
    scores = _backtest(x, y, used.past, prior, laws)
    weights = _weights(scores, curve.noise)
    shift_low = _room_for_decay(used, x_future, x[-1] if plan is None else used.x[-1], prior)
    if shift_low.any():
        notes.append(
            "learning rate unknown"
            + (f" after step {used.x[-1]:.0f}" if plan is not None else "")
            + ": the forecast is for a rate that stays as it is; low bounds leave room for a decay to 0 "
            f"({shift_low.max():.2f} nats at the end, from other runs)"
        )
    mean, sd = _combine([fits[name] for name in weights], list(weights.values()), x_future)
    if turn is not None:
        notes.append(turn.note)
        mean, sd, shift_low = _risen(turn, x_future, mean, sd, shift_low)
        return Forecast(x_future, mean, sd, curve.noise, {}, scores, fits, shift_low, notes, turn=turn.note)
    if (larger := _room_for_larger_drop(used, x_future, x[-1], prior)).max(initial=0.0) > 0.001:
        shift_low = shift_low + larger
        notes.append(
            f"no run of more than {LONGEST:,} steps is among those whose drop with the learning rate is known, and longer ones "
            f"lost up to twice as much: low bounds leave room for that ({larger.max():.2f} nats)"
        )
    unreturned = curve.unreturned.note if curve.unreturned is not None else None
    if unreturned is not None:
        notes.append(unreturned)
    if x[-1] < YOUNG:
        notes.append(
            f"not identified: where the loss levels off, after {x[-1]:.0f} steps; {_continuation(prior, used, x[-1])}, and "
            "how far other runs so young left theirs is in the interval"
        )
    if plan is not None:
        notes += _identification(fits["schedule"], used, x_future, prior)
    if (y >= 0).all():  # a cross-entropy's
        mean = above_zero(mean, sd, float(curve.y[-MINIMUM:].mean()))
    return Forecast(
        x_future, mean, sd, curve.noise, weights, scores, fits, shift_low, notes, unreturned, jump_note, returned_notes
    )


def _risen(
    turn: Turn, x: np.ndarray, law_mean: np.ndarray, law_sd: np.ndarray, shift_low: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of the rise continued at steps `x`, and an extension of the low bound down to the laws', to
    which the loss may come back; (m,) each."""
    mean, sd = turn.ahead(x)
    return mean, sd, shift_low + np.maximum(mean - Z[95] * sd - (law_mean - Z[95] * law_sd), 0)


def _room_for_decay(plan: PlannedSchedule, x: np.ndarray, known: float, prior: priors.Prior) -> np.ndarray:
    """(m,) nats by which the loss at steps `x` may be lower where the rate is known up to step `known` only.

    A decay to 0 takes what is left of the drop, all of it in the last COOLDOWN of the steps, as most do. Within a step of `known`
    nothing is left to decay: a plan in tokens may end in the middle of the last step.
    """
    left = float(_loss_of_rate(plan, plan.x[-1:], prior)[0])
    beyond = np.maximum(x, known)
    return np.where(
        beyond > max(known * 1.001, known + 1), left * np.minimum((1 - known / beyond) / COOLDOWN, 1.0), 0.0
    )


def _room_for_larger_drop(plan: PlannedSchedule, x: np.ndarray, known: float, prior: priors.Prior) -> np.ndarray:
    """(m,) nats by which the loss at steps `x` may be lower where the rate falls on from step `known` in a run beyond LONGEST."""
    excess = float(np.clip(np.log2(plan.x[-1] / LONGEST), 0.0, 1.0))
    return excess * np.maximum(_loss_of_rate(plan, np.array([known]), prior) - _loss_of_rate(plan, x, prior), 0.0)


def _loss_of_rate(plan: PlannedSchedule, x: np.ndarray, prior: priors.Prior) -> np.ndarray:
    """(m,) nats that the prior expects to be lost by a decay from the rate at steps `x` to 0."""
    drop, _ = prior.decay("mixed", "fast^0.75", plan)
    return drop * plan.share(x) ** 0.75


def _combine(fits: Sequence[Fit], weights: Sequence[float], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the mixture, disagreement between laws included; (m,) each."""
    each = [fit.predict(x) for fit in fits]
    mean, second = np.zeros(len(x)), np.zeros(len(x))
    for w, (m, s) in zip(weights, each):
        mean, second = mean + w * m, second + w * (s**2 + m**2)
    return mean, np.sqrt(np.maximum(second - mean**2, 0))


def _backtest(
    x: np.ndarray, y: np.ndarray, plan: PlannedSchedule, prior: priors.Prior, names: Sequence[str]
) -> dict[str, float]:
    """Mean squared error, nats^2, with which each law forecasts the observed part after each origin."""
    errors: dict[str, list[float]] = {name: [] for name in names}
    for origin in ORIGINS:
        past = x <= origin * x[-1]
        if not past.any():
            continue
        curve = observed_part(x[past], y[past], plan)
        rest = observed_part(x[~past], y[~past], plan)
        if len(curve.x) < MINIMUM or len(rest.x) < 2:
            continue
        for name in names:
            guess, _ = fit(LAWS[name], curve, plan, prior).predict(rest.x)
            errors[name].append(float(np.mean((guess - rest.y) ** 2)))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in errors.items()}


def _weights(scores: dict[str, float], noise: float) -> dict[str, float]:
    """Weights of the schedule-aware laws: prior weight over backtest error (noise counted once for all)."""
    weight = np.array([PRIOR_WEIGHT[name] for name in SCHEDULE_AWARE])
    score = np.array([scores[name] for name in SCHEDULE_AWARE])
    if np.all(np.isfinite(score)):
        weight = weight / (score + noise**2 / 10 + 1e-6) ** SHARPNESS
    return dict(zip(SCHEDULE_AWARE, (weight / weight.sum()).tolist()))


def _continuation(prior: priors.Prior, plan: PlannedSchedule, steps: float) -> str:
    factor = float(np.exp((prior.smallness(plan, steps) or 0.0) * plan.mean_share_after(steps) * prior.small.change))
    if factor < 1.1:
        return "the forecast continues this run's own curve"
    return f"as runs of so few tokens a step did, it is taken to fall on by {factor:.1f} times what its own curve says"


def _identification(fit: Fit, plan: PlannedSchedule, x_future: np.ndarray, prior: priors.Prior) -> list[str]:
    """What the observed part cannot say, in words."""
    shown = np.unique(np.linspace(0, len(x_future) - 1, min(len(x_future), 2 * KNOTS)).astype(int))
    still = float(np.ptp(plan.decay(np.r_[0.0, x_future[shown]], fit.law.kernels[2])))
    if fit.decay_seen >= 0.1 or still <= 0.1:
        return []
    notes = [
        "not identified from this run: the effect of the learning rate's decay (it has hardly begun in the "
        f"observed part); borrowed from {prior.runs} other runs with their spread, and the interval is wider for it"
    ]
    if not prior.knows_rate(plan):
        low, high = prior.rates
        notes.append(
            f"peak learning rate {plan.peak:g} is outside the {low:g} to {high:g} of those runs (another optimizer, or "
            "a multiplier of a rate that is not in the table): the effect of its decay is taken as theirs in the "
            "middle, with a wider spread"
        )
    return notes
