"""The smallest size that can gain an ability: performance is non-zero if and only if N >= N0 (eta - L_inf)^(-1/alpha).

From L(N) = L_inf + (N0/N)^alpha at fixed data (arXiv 2403.15796). alpha is a grid, L_inf and N0^alpha are linear; the grid
is averaged by fit. With three sizes the three constants fit any losses, so nothing is identified below four.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.result import LeastSize
from emergence_train.analysis.results import Interval

ALPHAS = np.linspace(0.03, 1.2, 79)
SIZES = 4
# Scatter between runs in nats, which a fit of few sizes can hardly estimate, and the degrees of freedom that it counts as
NOISE, NOISE_WEIGHT = 0.01, 1
WIDEST = 2.0  # decades of N that the interval of an identified size spans at most
DRAWS = 2000


@dataclass(frozen=True)
class SizeLaw:
    """Draws of alpha, L_inf and N0^alpha, (S,); `tokens` at which the losses were compared."""

    alpha: np.ndarray
    floor: np.ndarray
    strength: np.ndarray
    tokens: int
    sizes: int


def losses_at_equal_tokens(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """(sizes, losses, tokens): of each run, its loss at the most tokens that all sizes have, straight in log tokens."""
    points = frame[frame["tokens"] > 0].drop_duplicates(["run", "step"])
    if points.empty:
        return np.empty(0), np.empty(0), 0
    tokens = points.groupby("params")["tokens"].max().min()
    first = points.groupby("run")["tokens"].transform("min")
    last = points.groupby("run")["tokens"].transform("max")
    points = points[(first <= tokens) & (last >= tokens)]
    sizes, losses = [], []
    for (params, _), rows in points.sort_values("tokens").groupby(["params", "run"]):
        sizes.append(float(params))
        losses.append(float(np.interp(np.log(tokens), np.log(rows["tokens"]), rows["loss"])))
    return np.array(sizes), np.array(losses), int(tokens)


def fit_size_law(sizes: np.ndarray, losses: np.ndarray, tokens: int, rng: np.random.Generator) -> SizeLaw | str:
    """Fit the law of loss in size at fixed data, sizes and losses (n,) of runs; return the reason where it is not identified.

    Runs scatter by one variance, with NOISE as a prior: coefficients are Student's."""
    if (number := len(np.unique(sizes))) < SIZES:
        return f"not identified: {number} sizes at equal tokens, the law has three constants and needs {SIZES}"
    if losses[sizes == sizes.max()].mean() >= losses[sizes == sizes.min()].mean():
        return "not identified: the loss does not fall with size at equal tokens"
    log_evidence, coefs, covs = [], [], []
    degrees = len(sizes) - 2 + NOISE_WEIGHT
    scale = np.exp(np.mean(np.log(sizes)))
    for alpha in ALPHAS:
        design = np.stack([np.ones(len(sizes)), (sizes / scale) ** -alpha], 1)
        coef, *_ = np.linalg.lstsq(design, losses, rcond=None)
        rss = float(np.sum((losses - design @ coef) ** 2))
        squares = rss + NOISE**2 * NOISE_WEIGHT
        valid = coef[1] > 0 and coef[0] >= 0
        log_evidence.append(-0.5 * degrees * np.log(squares) if valid else -np.inf)
        coefs.append(coef)
        covs.append(squares / degrees * np.linalg.inv(design.T @ design))
    log = np.array(log_evidence)
    if not np.isfinite(log).any():
        return "not identified: no power law with a floor above zero fits the losses"
    weight = np.exp(log - log.max())
    chosen = rng.choice(len(ALPHAS), DRAWS, p=weight / weight.sum())
    spread = np.sqrt(degrees / rng.chisquare(degrees, DRAWS))
    drawn = np.array([coefs[k] + w * np.linalg.cholesky(covs[k]) @ rng.normal(size=2) for k, w in zip(chosen, spread)])
    good = (drawn[:, 1] > 0) & (drawn[:, 0] >= 0)
    if good.mean() < 0.5:
        return "not identified: the floor of the loss is open"
    alpha, drawn = ALPHAS[chosen][good], drawn[good]
    return SizeLaw(alpha, drawn[:, 0], drawn[:, 1] * scale**alpha, tokens, number)


def least_size(law: SizeLaw | str, eta: np.ndarray, rng: np.random.Generator) -> LeastSize:
    """The closed form for one task from draws of its threshold (nats): least N at the law's tokens, with constants."""
    if isinstance(law, str):
        return LeastSize(identified=False, reason=law)
    threshold = rng.choice(eta, len(law.alpha))
    room = threshold - law.floor
    log_n = np.where(room > 0, (np.log10(law.strength) - np.log10(np.maximum(room, 1e-12))) / law.alpha, np.inf)
    possible = float(np.mean(room > 0))
    reason = n = None
    if possible < 0.975:
        reason = "not identified: the threshold may lie below what any size reaches"
    else:
        low, middle, high = np.quantile(log_n, [0.025, 0.5, 0.975])
        if high - low < WIDEST:
            n = Interval(float(10**middle), float(10**low), float(10**high))
        else:
            reason = f"not identified: the interval of N spans {high - low:.1f} decades"
    return LeastSize(
        alpha=_interval(law.alpha),
        l_inf=_interval(law.floor),
        log10_n0=_interval(np.log10(law.strength) / law.alpha),
        tokens=law.tokens,
        sizes=law.sizes,
        probability_that_any_size_suffices=possible,
        identified=n is not None,
        reason=reason,
        n=n,
    )


def _interval(values: np.ndarray) -> Interval:
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975])
    return Interval(float(middle), float(low), float(high))
