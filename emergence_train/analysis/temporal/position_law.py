"""The position law L_i = a0 / (1 + a1 i) + a2 of one checkpoint: fit, intervals, goodness of fit, rival forms.

Source of the law: Temporal Scaling Law for Large Language Models (arXiv 2404.17785). i counts from 1, the first
predicted token; losses are in nats. Given a1 the law is linear in a0 and a2, so the fit is a search in one dimension
(separable least squares) and is done for all checkpoints of a run at once.

Weights are count / variance. The variance is smoothed over positions first: a sample variance is correlated
with its sample mean, and weighting by it would bias a2 down by several standard errors. Residuals beyond 2.5 robust
standard deviations count less (Huber). Intervals grow with the residual scale where the law does not fit and with the
residuals' correlation between neighbouring positions. They do not include the error common
to all positions (the difficulty of the validation sequences), which is part of a2 and the same at every checkpoint of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special  # scipy.stats takes a second to import

from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, position_bins, position_matrices

HUBER = 2.5
FLAT_LEVEL = 0.01  # a curve whose dependence on position could be noise at this level is called flat
LAGS = 8  # neighbouring positions whose correlation widens variances
FOLDS, COMPARED = 5, 12  # forms are compared on so many folds of positions, and checkpoints
ONLY_RATIO = "only a0/a1 is determined"
BLOCK = 1 << 16  # cells that are fitted at once: the arrays of more fall out of the cache, which takes twice as long
# Steps of the search for the shape, in the rounds that weigh positions and in the last
COARSE_STEPS, FINE_STEPS = 12, 24
_GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Form:
    """A law y = linear * basis(i, shape) + offset; `bounds` maps the largest position to the shape's search range."""

    name: str
    basis: Callable[[np.ndarray, np.ndarray], np.ndarray]
    bounds: Callable[[float], tuple[float, float]]


FORMS = {
    "reciprocal": Form("reciprocal", lambda i, a: 1 / (1 + a * i), lambda last: (0.01 / last, 100.0)),
    "power": Form("power", lambda i, a: i**-a, lambda last: (0.01, 4.0)),
    "exponential": Form("exponential", lambda i, a: np.exp(-a * i), lambda last: (0.01 / last, 5.0)),
}


def position_curve(a0: ArrayLike, a1: ArrayLike, a2: ArrayLike, position: ArrayLike) -> np.ndarray:
    """The law's loss in nats at `position` (from 1); arguments broadcast against each other."""
    return np.asarray(a0) / (1 + np.asarray(a1) * np.asarray(position)) + np.asarray(a2)


# --------------------------------------------------------------------------------------------------------- fitting


@dataclass
class _Solved:
    """Least squares of y on basis and 1 with weights w; each (C,)."""

    linear: np.ndarray
    offset: np.ndarray
    sse: np.ndarray
    linear_variance: np.ndarray  # given the shape, at unit scale
    offset_variance: np.ndarray


class _Weighted:
    """Rows y (C, P) with weights w, to be solved for many bases: what does not depend on the basis is computed once."""

    def __init__(self, y: np.ndarray, w: np.ndarray) -> None:
        self.w, self.total = w, w.sum(1)
        self.mean_y = (w * y).sum(1) / self.total
        self.dy = y - self.mean_y[:, None]
        self.syy = (w * self.dy * self.dy).sum(1)

    def solve(self, x: np.ndarray) -> _Solved:
        """Least squares on the basis x (C, P)."""
        mean_x = (self.w * x).sum(1) / self.total
        dx = x - mean_x[:, None]
        wdx = self.w * dx
        sxx, sxy = np.maximum((wdx * dx).sum(1), 1e-300), (wdx * self.dy).sum(1)
        linear = sxy / sxx
        sse = np.maximum(self.syy - linear * sxy, 0)
        return _Solved(linear, self.mean_y - linear * mean_x, sse, 1 / sxx, 1 / self.total + mean_x**2 / sxx)


def _best_shape(form: Form, i: np.ndarray, y: np.ndarray, w: np.ndarray, iterations: int) -> np.ndarray:
    """(C,) log of the shape that minimises the squared error: a grid, then a golden section in its best cell."""
    first, last = np.log(form.bounds(i[-1]))
    grid = np.linspace(first, last, 80)
    bases = form.basis(i[:, None], np.exp(grid))  # (P, G)
    bases = bases - bases.mean(0)
    total = w.sum(1, keepdims=True)
    y = y - (w * y).sum(1, keepdims=True) / total
    mean = w @ bases / total
    sxx = w @ bases**2 - total * mean**2
    gain = ((w * y) @ bases) ** 2 / np.maximum(sxx, 1e-300)  # y is centred, so this is the explained sum of squares
    best = np.argmax(gain, 1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]

    weighted = _Weighted(y, w)

    def error(u: np.ndarray) -> np.ndarray:
        return weighted.solve(form.basis(i, np.exp(u)[:, None])).sse

    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    for _ in range(iterations):
        go_left = at_left < at_right
        high, low = np.where(go_left, right, high), np.where(go_left, low, left)
        fresh = np.where(go_left, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        value = error(fresh)
        left, right = np.where(go_left, fresh, right), np.where(go_left, left, fresh)
        at_left, at_right = np.where(go_left, value, at_right), np.where(go_left, at_left, value)
    return (low + high) / 2


@dataclass
class _Fit:
    u: np.ndarray  # (C,) log shape
    solved: _Solved
    weight: np.ndarray  # (C, P) with the robust factors
    residual: np.ndarray  # (C, P) nats, loss - fit
    scale: np.ndarray  # (C,) variance inflation of the residuals, at least 1
    dof: np.ndarray


def _fit(form: Form, i: np.ndarray, y: np.ndarray, weight: np.ndarray, rounds: int = 3) -> _Fit:
    """Robust separable fit of every row of y (C, P)."""
    present = weight > 0
    dof = np.maximum(present.sum(1) - 3, 1)
    w = weight
    for turn in range(rounds):
        u = _best_shape(form, i, y, w, FINE_STEPS if turn == rounds - 1 else COARSE_STEPS)
        x = form.basis(i, np.exp(u)[:, None])
        solved = _Weighted(y, w).solve(x)
        residual = np.where(present, y - solved.linear[:, None] * x - solved.offset[:, None], 0.0)
        z = residual * np.sqrt(weight)
        mad = np.nanmedian(np.where(present, np.abs(z), np.nan), 1) * 1.4826
        spread = np.maximum(mad, 1e-9)[:, None]
        factor = np.minimum(1, HUBER * spread / np.maximum(np.abs(z), 1e-300))
        if turn < rounds - 1:
            w = weight * factor
    inside = (factor >= 1) & present
    slope = np.maximum(inside.sum(1) / np.maximum(present.sum(1), 1), 0.5)
    scale = ((factor * z) ** 2).sum(1) / dof / slope**2  # Huber's asymptotic variance
    return _Fit(u, solved, w, residual, np.maximum(scale, 1.0), dof)


def _correlation_inflation(z: np.ndarray) -> np.ndarray:
    """(C,) factor >= 1 by which correlation between neighbouring positions widens variances (Bartlett weights).

    One standard deviation of the estimate is subtracted first: white noise would otherwise be widened half of the time.
    """
    power = np.maximum((z * z).sum(1), 1e-300)
    factor, noise = np.ones(len(z)), 0.0
    for lag in range(1, min(LAGS, z.shape[1] // 8) + 1):
        bartlett = 2 * (1 - lag / (LAGS + 1))
        factor += bartlett * (z[:, lag:] * z[:, :-lag]).sum(1) / power
        noise += bartlett**2 / z.shape[1]
    return np.maximum(factor - np.sqrt(noise), 1.0)


def fit_positions(frame: pd.DataFrame) -> pd.DataFrame:
    """Fit L_i = a0 / (1 + a1 i) + a2 (arXiv 2404.17785) to every checkpoint and split of a `positions` frame.

    `frame` is from tables.read(POSITIONS, ...). Returns one row per (run, params, step, tokens, split),
    sorted, with these columns:

    a0, a1, a2            estimates: nats, 1/position, nats; finite even where the status is not "ok"
    a0_se, a1_se, a2_se   standard errors of the linearised fit
    a0_low, a0_high, ...  95% profile-likelihood intervals; infinite (a1_low: 0) on a side the data leave open
    mean_loss             nats per token over all positions
    r2                    weighted share of the variance over positions that the law explains
    chi2_dof              robust residual sum of squares per degree of freedom, 1 where only sampling noise is left
    bin_chi2, bin_max     the same for residuals averaged in 16 bins of log position, and the largest one in nats:
                          they show deviations from the law that are within the noise of single positions
    status                "ok", or "not identified: <reason>", in which case a0 and a1 have no separate meaning

    Raises InputError for a missing column or a checkpoint without tokens.
    """
    results = [fit_matrix(matrix) for matrix in position_matrices(frame)]
    return pd.concat(results, ignore_index=True)


def fit_matrix(matrix: PositionMatrix) -> pd.DataFrame:
    """fit_positions for one run and split: every checkpoint by itself, a few at a time."""
    checkpoints = len(matrix.keys)
    rows = max(BLOCK // len(matrix.position), 1)
    blocks = [observed_rows(matrix, slice(begin, begin + rows)) for begin in range(0, max(checkpoints, 1), rows)]
    return (
        pd.concat([_fit_rows(block) for block in blocks], ignore_index=True) if len(blocks) > 1 else _fit_rows(matrix)
    )


def _fit_rows(matrix: PositionMatrix) -> pd.DataFrame:
    form, i, y, weight = FORMS["reciprocal"], matrix.position, matrix.loss, matrix.weight
    out = matrix.keys.copy()
    if len(i) < 5:
        for name in ("a0", "a1", "a2"):
            for suffix in ("", "_se", "_low", "_high"):
                out[name + suffix] = np.nan
        out["a2"], out["mean_loss"] = matrix.mean_loss, matrix.mean_loss
        for name in ("r2", "chi2_dof", "bin_chi2", "bin_max"):
            out[name] = np.nan
        out["status"] = f"not identified: {len(i)} positions, the law needs at least 5"
        return out
    fit = _fit(form, i, y, weight)
    a1, a0, a2 = np.exp(fit.u), fit.solved.linear, fit.solved.offset
    z = fit.residual * np.sqrt(weight)
    variance = fit.scale * _correlation_inflation(z)
    covariance = _covariance(form, i, fit, a0) * variance[:, None, None]
    errors = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0))
    threshold = special.stdtrit(fit.dof, 0.975) ** 2 * variance
    interval, is_open = _profile_intervals(form, i, y, fit, errors[:, 1], threshold)

    centre = (fit.weight * y).sum(1) / fit.weight.sum(1)
    flat_sse = (fit.weight * (y - centre[:, None]) ** 2).sum(1)
    gain = (flat_sse - fit.solved.sse) / variance
    flat = gain < special.chdtri(2, FLAT_LEVEL)

    for k, (name, value) in enumerate((("a0", a0), ("a1", a1), ("a2", a2))):
        out[name] = value
        out[name + "_se"] = errors[:, k] * (a1 if name == "a1" else 1)
        out[name + "_low"], out[name + "_high"] = interval[name]
    out["mean_loss"] = matrix.mean_loss
    out["r2"] = 1 - fit.solved.sse / np.maximum(flat_sse, 1e-300)
    out["chi2_dof"] = (z**2 * (fit.weight / np.maximum(weight, 1e-300))).sum(1) / fit.dof
    binned, stderr = bin_residuals(fit.residual, weight, position_bins(i, 16))
    used = stderr > 0
    standard = np.where(used, binned / np.where(used, stderr, 1), 0)
    out["bin_chi2"] = (standard**2).sum(1) / np.maximum(used.sum(1) - 3, 1)
    out["bin_max"] = np.abs(binned).max(1)
    reason = np.select(
        [flat, is_open["high"], is_open["low"]],
        [
            "not identified: the loss does not depend on position beyond noise",
            f"not identified: a1 has no upper bound, {ONLY_RATIO}",
            "not identified: a1 is not separable from 0, only a0*a1 is determined",
        ],
        "ok",
    )
    out["status"] = reason
    return out


def fit_given_a1(matrix: PositionMatrix, a1: float) -> pd.DataFrame:
    """a0, a0_se, a1, a2 (C rows) with a1 held: for curves of which only a0/a1 is determined."""
    x = np.broadcast_to(1 / (1 + a1 * matrix.position), matrix.loss.shape)
    solved = _Weighted(matrix.loss, matrix.weight).solve(x)
    return pd.DataFrame({"a0": solved.linear, "a0_se": np.sqrt(solved.linear_variance), "a1": a1, "a2": solved.offset})


def _covariance(form: Form, i: np.ndarray, fit: _Fit, linear: np.ndarray) -> np.ndarray:
    """(C, 3, 3) inverse normal matrix in (linear, log shape, offset)."""
    step = 1e-4
    x = form.basis(i, np.exp(fit.u)[:, None])
    slope = (form.basis(i, np.exp(fit.u + step)[:, None]) - form.basis(i, np.exp(fit.u - step)[:, None])) / (2 * step)
    columns = (x, linear[:, None] * slope, np.ones_like(x))
    normal = np.empty((len(linear), 3, 3))
    for r in range(3):
        for c in range(r, 3):
            normal[:, r, c] = normal[:, c, r] = (fit.weight * columns[r] * columns[c]).sum(1)
    size = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-100))
    scaled = normal / size[:, :, None] / size[:, None, :] + 1e-14 * np.eye(3)  # a flat curve makes it singular
    return np.linalg.inv(scaled) / size[:, :, None] / size[:, None, :]


def _profile_intervals(
    form: Form, i: np.ndarray, y: np.ndarray, fit: _Fit, u_error: np.ndarray, threshold: np.ndarray
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """95% profile intervals {name: (low, high)} and whether that of a1 is open {"low", "high"}; `threshold` (C,)."""
    bounds, weighted = np.log(form.bounds(i[-1])), _Weighted(y, fit.weight)

    def excess(u: np.ndarray) -> tuple[np.ndarray, _Solved]:
        solved = weighted.solve(form.basis(i, np.exp(u)[:, None]))
        return np.sqrt(np.maximum(solved.sse - fit.solved.sse, 0) / threshold), solved

    ends: dict[str, np.ndarray] = {}
    is_open: dict[str, np.ndarray] = {}
    for side, sign in (("low", -1), ("high", 1)):
        limit = bounds[0] if sign < 0 else bounds[1]
        root_limit, _ = excess(np.full_like(fit.u, limit))
        is_open[side] = root_limit < 1
        # the root of the excess is near to linear in log a1: false position, bracketed
        inner, outer = fit.u.copy(), np.full_like(fit.u, limit)
        at_inner, at_outer = np.zeros_like(inner), root_limit
        guess = np.clip(fit.u + sign * 1.96 * np.minimum(u_error, 10), *bounds)
        for turn in range(10):
            value, _ = excess(guess)
            below = value < 1
            inner, at_inner = np.where(below, guess, inner), np.where(below, value, at_inner)
            outer, at_outer = np.where(below, outer, guess), np.where(below, at_outer, value)
            linear = inner + (outer - inner) * (1 - at_inner) / np.maximum(at_outer - at_inner, 1e-12)
            guess = np.where(turn % 3 == 2, (inner + outer) / 2, linear)
            guess = np.clip(guess, np.minimum(inner, outer), np.maximum(inner, outer))
        ends[side] = np.where(is_open[side], limit, guess)

    # given a1 the others are quadratic, so their profile bound is the extreme over the a1 interval
    a0_low, a0_high = np.full_like(fit.u, np.inf), np.full_like(fit.u, -np.inf)
    a2_low, a2_high = a0_low.copy(), a0_high.copy()
    for fraction in np.linspace(0, 1, 13):
        root, solved = excess(ends["low"] + fraction * (ends["high"] - ends["low"]))
        room = np.sqrt(np.maximum(1 - root**2, 0) * threshold)
        for value, spread, low, high in (
            (solved.linear, np.sqrt(solved.linear_variance), a0_low, a0_high),
            (solved.offset, np.sqrt(solved.offset_variance), a2_low, a2_high),
        ):
            np.minimum(low, value - room * spread, out=low)
            np.maximum(high, value + room * spread, out=high)
    either = is_open["low"] | is_open["high"]
    positive = fit.solved.linear >= 0
    straight = is_open["low"]
    a1_low, a1_high = np.exp(ends["low"]), np.exp(ends["high"])
    interval = {
        "a0": (np.where(either & ~positive, -np.inf, a0_low), np.where(either & positive, np.inf, a0_high)),
        "a1": (np.where(straight, 0, a1_low), np.where(is_open["high"], np.inf, a1_high)),
        "a2": (np.where(straight & positive, -np.inf, a2_low), np.where(straight & ~positive, np.inf, a2_high)),
    }
    return interval, is_open


# ----------------------------------------------------------------------------------------------- goodness of fit


def bin_residuals(residual: np.ndarray, weight: np.ndarray, bin_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean residual and its standard error in each bin, both (C, B) in nats; 0 in empty bins."""
    member = (bin_of[:, None] == np.arange(bin_of.max() + 1)).astype(float)
    total = weight @ member
    mean = (weight * residual) @ member / np.maximum(total, 1e-300)
    return mean, np.where(total > 0, 1 / np.sqrt(np.maximum(total, 1e-300)), 0.0)


def compare_forms_of(matrix: PositionMatrix) -> pd.DataFrame:
    """Error on held-out positions of reciprocal, power law and exponential, each with three free numbers.

    Positions are held out in blocks of log position (20 blocks dealt to FOLDS folds), so that a form has to
    interpolate; at most COMPARED evenly spread checkpoints are used.
    One row per form: run, split, form, excess_mse (nats^2, held-out squared error minus sampling variance, averaged
    over positions and checkpoints; near 0 = nothing left to explain), stderr (of the excess, over blocks), wins
    (share of checkpoints at which this form has the least error) and checkpoints. No rows below 20 positions.
    """
    columns = ["run", "split", "form", "excess_mse", "stderr", "wins", "checkpoints"]
    if len(matrix.position) < 20:
        return pd.DataFrame(columns=columns)
    keep = np.unique(np.linspace(0, len(matrix.loss) - 1, COMPARED).astype(int))
    y, weight = matrix.loss[keep], matrix.weight[keep]
    noise = np.where(weight > 0, 1 / np.maximum(weight, 1e-300), 0)
    block = position_bins(matrix.position, 20)
    errors = {}
    for name, form in FORMS.items():
        squared = np.zeros_like(y)
        for fold in range(FOLDS):
            held = block % FOLDS == fold
            fit = _fit(form, matrix.position, y, np.where(held, 0.0, weight), rounds=2)
            guess = fit.solved.linear[:, None] * form.basis(matrix.position, np.exp(fit.u)[:, None])
            squared[:, held] = (y - guess - fit.solved.offset[:, None])[:, held] ** 2
        errors[name] = np.where(weight > 0, squared - noise, 0.0)
    best = np.argmin([error.mean(1) for error in errors.values()], 0)
    share = np.bincount(block) / len(block)
    first, rows = matrix.keys.iloc[0], []
    for k, (name, error) in enumerate(errors.items()):
        by_block = np.array([error[:, block == b].mean() for b in range(len(share))])
        excess = by_block @ share
        stderr = np.sqrt((share**2 * (by_block - excess) ** 2).sum())
        rows.append((first["run"], first["split"], name, excess, stderr, np.mean(best == k), len(keep)))
    return pd.DataFrame(rows, columns=columns)
