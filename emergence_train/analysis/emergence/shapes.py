"""Shapes of performance along falling loss, each fitted in closed form and averaged by their evidence.

The loss range is mapped to x in [0, 1], 0 its highest loss and 1 its lowest. A hypothesis is

    performance = c + A g(x)              g a fixed shape, 0 at its foot, spanning 1 over the range
    performance = c + A left(x) + B right(x)    for curves that turn (U and its mirror), also after a plateau

A finite list of shapes represents all of them (onset on a grid, powers, caps, S-curves; jumps between neighbouring rows), so
there is no optimiser and no starting value. Noise is quasi-binomial: the items' own variance times a dispersion that is
estimated, and within a run neighbouring checkpoints may be correlated, which lowers the number of independent rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 160  # more rows than this are binned by loss before the shapes are fitted
ONSETS = np.linspace(0, 0.96, 49)
# (powers of u, rates of 1 - exp(-rate u), widths of a straight rise, widths of an S-shaped rise, rates of 1 - exp(-rate u^3)),
# u in [0, 1] from the onset
COARSE = (
    (0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    (3.0, 8.0),
    (0.06, 0.15, 0.4),
    (0.06, 0.15, 0.35, 0.65, 1.0),
    (2.0, 10.0, 50.0),
)
JUMPS = (1.0, 0.6, 0.3)  # shares of a rise that come at once, between two rows; the rest of it is straight
RANGES = ((0.4, 3.5), (0.7, 14), (0.03, 0.95), (0.04, 1.3), (1.0, 100.0))
FINE = tuple(tuple(np.geomspace(low, high, 14)) for low, high in RANGES)
MARGIN = 0.04  # the finer grid of onsets extends the coarse one by this
TURNS = np.linspace(0.1, 0.9, 17)
SPACING = 0.05  # of turning points, and of the ends of plateaus before them
PRIOR = {"flat": 0.35, "smooth": 0.20, "onset": 0.30, "turn": 0.12, "late-turn": 0.03}
PRIOR_DISPERSION = 2.0  # weight of the prior dispersion 1, in rows
FLOOR = 0.2  # of the mean variance
FIRST = 0.02  # the part of a rise that is its foot
TRUST = 60.0  # rows' worth of evidence for a shape that more rows approach: no curve is exactly any of the shapes
DRAWS = 2000
GRID = np.linspace(0, 1, 65)  # x at which the drawn curves are known


@dataclass(frozen=True)
class Rows:
    """One task's rows, ready to fit, all (n,): `x` in [0, 1], performance `y` (higher is better), `variance` of one row
    by its items alone, `run` codes, `order` (steps) within a run. With `items`, performance is a share of so many items
    and the variance is that at the expected share: at the observed share lucky rows would weigh too much."""

    x: np.ndarray
    y: np.ndarray
    variance: np.ndarray
    run: np.ndarray
    order: np.ndarray
    items: np.ndarray | None = None

    def variance_at(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sampling variance of each row were `mean` (n,) true, and how much a row says of the dispersion, (n,) in [0, 1].

        At exactly 0 or 1 the binomial variance is 0, so it has a floor. A row at the floor scatters less than its variance
        and says nothing about dispersion.
        """
        if self.items is None:
            return self.variance, np.ones(len(self.y))
        share = np.clip(mean, 0, 1)
        plain = share * (1 - share)
        share = (share * self.items + 0.5) / (self.items + 1)
        spread = share * (1 - share)
        spread = np.maximum(spread, FLOOR * spread.mean())
        return spread / self.items, plain / spread


@dataclass(frozen=True)
class Posterior:
    """Draws from the posterior over curves, all (S,), and the estimated noise.

    `kind` is the family of the drawn curve; `onset` its foot as a share of the range (0 for smooth families, the turning
    point for curves that turn, the plateau's end for those that turn after one), `foot` the share of the range over which the
    rise does its first FIRST (0 where there is no onset), `level` c at the left end, `change` A over the range (for turns: from
    the turning point to the right end), `before` the change from the left end to the turning point (0 otherwise).
    """

    kind: np.ndarray
    onset: np.ndarray
    foot: np.ndarray
    level: np.ndarray
    change: np.ndarray
    before: np.ndarray
    grid: np.ndarray  # (G,) x
    curves: np.ndarray  # (S, G) performance of the drawn curves
    dispersion: float
    correlation: float  # of neighbouring checkpoints of a run
    effective: float  # independent rows


def _smoothstep(u: np.ndarray) -> np.ndarray:
    return u * u * (3 - 2 * u)


def _forms(bends: tuple) -> list[tuple[Callable, float]]:
    """(rise over u in [0, 1], prior weight): powers, saturating, straight to a cap, S-shaped with a square or a cubic foot.

    Powers count double."""
    powers, rates, caps, steps, cubic = bends
    forms: list[tuple[Callable, float]] = [(lambda u, p=p: u**p, 2 / len(powers)) for p in powers]
    forms += [(lambda u, k=k: -np.expm1(-k * u) / -np.expm1(-k), 1 / len(rates)) for k in rates]
    forms += [(lambda u, s=s: np.minimum(u / s, 1), 1 / len(caps)) for s in caps]
    forms += [(lambda u, s=s: _smoothstep(np.minimum(u / s, 1)), 1 / len(steps)) for s in steps]
    forms += [(lambda u, k=k: np.expm1(-k * u**3) / np.expm1(-k), 1 / len(cubic)) for k in cubic]
    return forms


def _logistic(middle: float, width: float) -> Callable:
    low, high = (1 / (1 + np.exp((middle - v) / width)) for v in (0.0, 1.0))
    return lambda x: (1 / (1 + np.exp((middle - x) / width)) - low) / (high - low)


# Rises (or falls) over the whole range: bent, straight, S-shaped; no plateau at the left end.
_SMOOTH: list[Callable] = [
    lambda x, k=k: np.expm1(k * x) / np.expm1(k) for k in (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 3.0)
]
_SMOOTH += [lambda x, p=p: x**p for p in (0.5, 1.0, 1.0, 1.5, 2.0)]
_SMOOTH += [_logistic(middle, width) for middle in (0.3, 0.5) for width in (0.15, 0.2, 0.3)]
_SMOOTH += [_logistic(0.7, width) for width in (0.2, 0.3)]
_TURN_POWERS = ((1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0), (0.6, 1.0), (1.0, 0.6))
_LATE_POWERS = ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))
# (end of the plateau, turning point, powers before and after it)
_TURNS = [(0.0, t, p, q) for t in TURNS for p, q in _TURN_POWERS]
_LATE = [(e, t, p, q) for t in TURNS for e in np.arange(SPACING, t - SPACING / 2, SPACING) for p, q in _LATE_POWERS]
_TURNING = [*_TURNS, *_LATE]


def _jumps(x: np.ndarray, onsets: np.ndarray) -> tuple[list[tuple[float, float]], np.ndarray, np.ndarray]:
    """(middle of a gap between neighbouring rows, share of the rise that comes at once) of each jump within the grid `onsets`,
    the gaps' lengths and the prior weights: in all that of one form, as likely at any place as at another."""
    rows = np.unique(x)
    low, high = np.maximum(rows[:-1], onsets[0]), np.minimum(rows[1:], onsets[-1])
    gaps = np.flatnonzero(high > low)
    mass = (high - low)[gaps] / max(onsets[-1] - onsets[0], 1e-12) * len(onsets) / len(JUMPS)
    middle = (rows[:-1] + rows[1:])[gaps] / 2
    jumps = [(float(at), share) for at in middle for share in JUMPS]
    return jumps, np.repeat(np.diff(rows)[gaps], len(JUMPS)), np.repeat(mass, len(JUMPS))


def _jump(x: np.ndarray, at: float, share: float) -> np.ndarray:
    return (x > at) * (share + (1 - share) * np.maximum(x - at, 0) / (1 - at))


class _Basis:
    """Every hypothesis' shape at `x` (n,): `g` (K, n) of those with one coefficient, `left` and `right` (J, n) of turns."""

    def __init__(self, x: np.ndarray, onsets: np.ndarray, bends: tuple) -> None:
        self.forms = _forms(bends)
        self.onsets = onsets
        u = np.maximum(x - onsets[:, None], 0) / (1 - onsets[:, None])
        rises = np.stack([form(u) for form, _ in self.forms], axis=1).reshape(-1, len(x))  # by onset, then by form
        self.jumps, gaps, mass = _jumps(x, onsets)
        jumps = [_jump(x, at, share) for at, share in self.jumps]
        self.g = np.vstack([*(smooth(x) for smooth in _SMOOTH), rises, *jumps])
        self.family = np.repeat(["smooth", "onset"], [len(_SMOOTH), len(rises) + len(jumps)])
        unit, spacing = np.linspace(0, 1, 1001), np.ptp(onsets) / (len(onsets) - 1)
        feet = [np.interp(FIRST, form(unit), unit) for form, _ in self.forms]  # in units of the rise's length
        none = np.zeros(len(_SMOOTH))
        # (K,) each shape's onset, the length in which it may as well lie, the length of its foot, and its prior weight
        self.onset = np.r_[none, np.repeat(onsets, len(self.forms)), [at for at, _ in self.jumps]]
        self.spread = np.r_[none, np.full(len(rises), spacing), gaps]
        self.foot = np.r_[none, np.outer(1 - onsets, feet).ravel(), np.zeros(len(jumps))]
        self.prior = np.r_[none + 1, np.tile([weight for _, weight in self.forms], len(onsets)), mass]
        self.left, self.right = (np.stack(part) for part in zip(*(self.turn_at(j, x) for j in range(len(_TURNING)))))

    def at(self, k: int, x: np.ndarray) -> np.ndarray:
        """Shape `k` at other points (m,)."""
        if k < len(_SMOOTH):
            return _SMOOTH[k](x)
        e, form = divmod(k - len(_SMOOTH), len(self.forms))
        if e >= len(self.onsets):
            return _jump(x, *self.jumps[k - len(_SMOOTH) - len(self.onsets) * len(self.forms)])
        return self.forms[form][0](np.maximum(x - self.onsets[e], 0) / (1 - self.onsets[e]))

    @staticmethod
    def turn_at(j: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, t, p, q = _TURNING[j]
        return (np.clip(t - x, 0, t - e) / (t - e)) ** p, (np.maximum(x - t, 0) / (1 - t)) ** q


def posterior(rows: Rows, scale: float, rng: np.random.Generator) -> Posterior:
    """Draws from the posterior over curves. `scale` is the prior standard deviation of a change over the range."""
    coarse, correlation = _fitted(rows, scale)
    basis = _Basis(coarse.data.x, coarse.likely_onsets(), FINE)
    fits = _Fits(coarse.data, scale, basis, share=coarse.family_weight())
    return fits.draw(rng, dispersion=coarse.dispersion, correlation=correlation)


def mean_curve(rows: Rows, scale: float) -> np.ndarray:
    """The posterior's mean at the rows, (n,), on the coarser grid of onsets, without draws."""
    return _fitted(rows, scale)[0].mean_curve(rows.x, least=1e-5)


def _fitted(rows: Rows, scale: float) -> tuple["_Fits", float]:
    """The fits on the coarser grid of onsets, and the correlation of neighbours."""
    smooth = _running_mean(rows)
    correlation = 0.0
    data = _Binned(rows, smooth, correlation)
    basis = _Basis(data.x, ONSETS, COARSE)
    for _ in range(2):  # the second time with the noise estimated by the first
        fits = _Fits(data, scale, basis)
        smooth = fits.mean_curve(rows.x)
        correlation = min(_correlation(rows, curve) for curve in (smooth, fits.best_curve(rows.x)))
        data = _Binned(rows, smooth, correlation)
    return _Fits(data, scale, basis), correlation


def _running_mean(rows: Rows) -> np.ndarray:
    """A first guess of the mean curve, (n,): a running mean along the loss."""
    order = np.argsort(rows.x, kind="stable")
    width = max(3, len(order) // 8)
    kernel = np.ones(width)
    y = rows.y[order]
    mean = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    back = np.empty_like(mean)
    back[order] = mean
    return back


def _correlation(rows: Rows, mean: np.ndarray) -> float:
    return neighbour_correlation((rows.y - mean) / np.sqrt(rows.variance_at(mean)[0]), rows.run, rows.order)


def neighbour_correlation(residual: np.ndarray, run: np.ndarray, order: np.ndarray, errors: float = -1.0) -> float:
    """Correlation of neighbouring checkpoints' residuals within runs, in [0, 0.9]; `errors` standard errors more, by default one
    less: that is what chance gives."""
    sorting = np.lexsort((order, run))
    residual, run = residual[sorting], run[sorting]
    pairs = run[1:] == run[:-1]
    count = int(pairs.sum())
    total = np.sum(residual**2) * count / max(len(residual), 1)
    if count < 5 or total <= 0:
        return 0.0
    correlation = np.sum(residual[1:][pairs] * residual[:-1][pairs]) / total
    return float(np.clip(correlation + errors / np.sqrt(count), 0, 0.9))


class _Binned:
    """Rows with weights from the expected variance at the mean curve, binned where they are many."""

    def __init__(self, rows: Rows, mean: np.ndarray, correlation: float) -> None:
        variance, telling = rows.variance_at(mean)
        weight = 1 / variance
        self.weight: np.ndarray
        if len(rows.x) > BINS:
            index = np.minimum((rows.x * BINS).astype(int), BINS - 1)
            count = np.bincount(index, minlength=BINS)
            filled = count > 0
            self.weight = np.bincount(index, weight, BINS)[filled]
            self.x = np.bincount(index, rows.x, BINS)[filled] / count[filled]  # the same whatever the weights
            self.y = np.bincount(index, weight * rows.y, BINS)[filled] / self.weight
        else:
            self.x, self.y, self.weight = rows.x, rows.y, weight
        self.n = max(float(telling.sum()), 2.0)  # rows informative of the noise
        independent = self.n * (1 - correlation) / (1 + correlation)  # equivalent number of independent rows
        self.trusted = 1 / (1 + independent / TRUST)
        self.effective = self.trusted * independent
        self.total = self.weight.sum()
        self.mean = self.weight @ self.y / self.total
        self.within = float(weight @ rows.y**2 - self.weight @ self.y**2)  # scatter inside the bins


@dataclass(frozen=True)
class _Sums:
    """Weighted sums of squares and products about the weighted means: of performance (y), shapes (g), sides of a turn (l, r)."""

    yy: float
    gg: np.ndarray  # (K,)
    gy: np.ndarray
    ll: np.ndarray  # (J,)
    rr: np.ndarray
    lr: np.ndarray
    ly: np.ndarray
    ry: np.ndarray


class _Fits:
    """Every hypothesis fitted: weights (sum 1), coefficients and their covariances.

    The prior on a change is normal with standard deviation `scale`: a ridge = dispersion / scale^2. With n independent rows,
    of which level and change take two, and v = PRIOR_DISPERSION,

        log evidence = -(n + v - 2) / 2 log(v + n / rows RSS) - 1/2 log(1 + gg / ridge)

    RSS with the ridge's penalty; of a turn the last is 1/2 log det(1 + [[ll, lr], [lr, rr]] / ridge).
    """

    def __init__(self, data: _Binned, scale: float, basis: _Basis, share: dict[str, float] | None = None) -> None:
        self.data, self.basis = data, basis
        self.shrink = data.effective / data.n
        self.centre, self.left_centre, self.right_centre = (
            part @ data.weight / data.total for part in (basis.g, basis.left, basis.right)
        )
        sums = self._sums()
        self.dispersion = self._fit_freely(sums)
        self._weigh(self._fit_with_ridge(sums, self.dispersion / scale**2), share)

    def _sums(self) -> _Sums:
        """Without forming the centred shapes; y is centred."""
        basis, weight, total = self.basis, self.data.weight, self.data.total
        y = self.data.y - self.data.mean
        wy = weight * y
        gg = (basis.g * basis.g) @ weight - total * self.centre**2
        ll = (basis.left * basis.left) @ weight - total * self.left_centre**2
        rr = (basis.right * basis.right) @ weight - total * self.right_centre**2
        lr = (basis.left * basis.right) @ weight - total * self.left_centre * self.right_centre
        gg, ll, rr = (np.maximum(part, 0) for part in (gg, ll, rr))
        return _Sums(float(wy @ y) + self.data.within, gg, basis.g @ wy, ll, rr, lr, basis.left @ wy, basis.right @ wy)

    def _fit_freely(self, s: _Sums) -> float:
        """Coefficients without the prior, and the dispersion that the best of them leaves."""
        self.free_slope = s.gy / np.maximum(s.gg, 1e-300)
        det = np.maximum(s.ll * s.rr - s.lr**2, 1e-9 * s.ll * s.rr + 1e-300)
        self.free_turn = np.stack([s.rr * s.ly - s.lr * s.ry, s.ll * s.ry - s.lr * s.ly], 1) / det[:, None]
        degrees = max(self.data.effective - 4, 1.0)
        # a curve that turns has two coefficients more: its residuals are the larger for it
        left = (s.yy - s.ly * self.free_turn[:, 0] - s.ry * self.free_turn[:, 1]) * degrees / max(degrees - 2, 1.0)
        self.explained = np.r_[s.gy * self.free_slope, np.where(self.free_turn.prod(1) > 0, s.yy - left, 0)]
        rss = s.yy - np.max(self.explained)
        return (PRIOR_DISPERSION + max(rss, 0) * self.shrink) / (PRIOR_DISPERSION + degrees) / self.shrink

    def _fit_with_ridge(self, s: _Sums, ridge: float) -> np.ndarray:
        """Coefficients with the prior; the log evidence of the flat curve, the shapes and the turns, (1 + K + J,)."""
        self.slope = s.gy / (s.gg + ridge)
        self.slope_var = self.dispersion / (s.gg + ridge)
        rss = s.yy - s.gy * self.slope
        a, b = s.ll + ridge, s.rr + ridge
        det = a * b - s.lr**2
        self.turn_coef = np.stack([(b * s.ly - s.lr * s.ry) / det, (a * s.ry - s.lr * s.ly) / det], 1)
        self.turn_cov = self.dispersion * np.stack([b, -s.lr, a], 1) / det[:, None]  # var left, cov, var right
        turn_rss = s.yy - (s.ly * self.turn_coef[:, 0] + s.ry * self.turn_coef[:, 1])
        # after a plateau only what does turn: for rises at two rates there are the onset's shapes, with finer onsets
        straight = (self.turn_coef.prod(1) <= 0) & (np.arange(len(_TURNING)) >= len(_TURNS))
        turn_rss = np.where(straight, np.inf, turn_rss)
        degrees = max(self.data.effective + PRIOR_DISPERSION - 2, 1.0)
        fit = -0.5 * degrees * np.log(PRIOR_DISPERSION + np.maximum(np.r_[s.yy, rss, turn_rss], 0) * self.shrink)
        return fit + np.r_[0.0, -0.5 * np.log1p(s.gg / ridge), -0.5 * np.log(det / ridge**2)]

    def _weigh(self, log_evidence: np.ndarray, share: dict[str, float] | None) -> None:
        """The weights by evidence and prior; where `share` is given, with these of the families."""
        kinds = np.r_[["flat"], self.basis.family, np.repeat(["turn", "late-turn"], [len(_TURNS), len(_LATE)])]
        prior = np.r_[1.0, self.basis.prior, np.ones(len(_TURNING))]
        for name, weight in PRIOR.items():
            members = kinds == name
            prior[members] *= weight / prior[members].sum()
        log = log_evidence + np.log(prior)
        weight = np.exp(log - log.max())
        if share is not None:  # the finer grid of onsets changes none of the families' shares
            for name, wanted in share.items():
                members = kinds == name
                weight[members] *= wanted / max(weight[members].sum(), 1e-300)
        self.weight, self.kinds = weight / weight.sum(), kinds

    def family_weight(self) -> dict[str, float]:
        return {name: float(self.weight[self.kinds == name].sum()) for name in PRIOR}

    def likely_onsets(self) -> np.ndarray:
        """A finer grid over the onsets that hold all but a few thousandths of a percent of their family's weight."""
        these = self.kinds == "onset"
        onset = self.basis.onset[these[1 : 1 + len(self.basis.onset)]]
        nearest = np.rint(np.interp(onset, ONSETS, np.arange(len(ONSETS)))).astype(int)
        by_onset = np.bincount(nearest, self.weight[these], len(ONSETS))
        share = np.cumsum(by_onset) / max(by_onset.sum(), 1e-300)
        first = max(int(np.searchsorted(share, 1e-4)) - 1, 0)
        last = min(int(np.searchsorted(share, 1 - 1e-4)) + 1, len(ONSETS) - 1)
        return np.linspace(max(ONSETS[first] - MARGIN, 0), min(ONSETS[last] + MARGIN, 0.97), 41)

    def best_curve(self, x: np.ndarray) -> np.ndarray:
        """The best fit of all shapes at `x`, (n,), its change not shrunk as the mean's is: a change that is taken too small
        leaves residuals of one sign behind it, which would pass for correlation."""
        k = int(np.argmax(self.explained))
        if k < len(self.free_slope):
            return self.data.mean + self.free_slope[k] * (self.basis.at(k, x) - self.centre[k])
        return self.data.mean + self._turn(k - len(self.free_slope), x) @ self.free_turn[k - len(self.free_slope)]

    def _turn(self, j: int, x: np.ndarray) -> np.ndarray:
        """(n, 2) both sides of turning shape `j` at `x`, centred."""
        left, right = self.basis.turn_at(j, x)
        return np.stack([left - self.left_centre[j], right - self.right_centre[j]], 1)

    def mean_curve(self, x: np.ndarray, least: float = 1e-3) -> np.ndarray:
        """Posterior mean of performance at `x`, (n,), of shapes whose weight is above `least`."""
        count = len(self.basis.g)
        mean = np.full(len(x), self.data.mean)
        for k in map(int, np.flatnonzero(self.weight[1 : count + 1] > least)):
            mean += self.weight[1 + k] * self.slope[k] * (self.basis.at(k, x) - self.centre[k])
        for j in map(int, np.flatnonzero(self.weight[count + 1 :] > least)):
            mean += self.weight[count + 1 + j] * (self._turn(j, x) @ self.turn_coef[j])
        return mean

    def draw(self, rng: np.random.Generator, dispersion: float, correlation: float) -> Posterior:
        chosen = np.sort(rng.choice(len(self.weight), DRAWS, p=self.weight))
        wide = rng.standard_t(max(self.data.effective - 2, 2), (2, DRAWS))
        level_sd = np.sqrt(dispersion / self.data.total)
        middle = self.data.mean + level_sd * rng.standard_normal(DRAWS)
        curves = np.empty((DRAWS, len(GRID)))
        onset, foot, change, before = (np.zeros(DRAWS) for _ in range(4))
        count = len(self.basis.g)
        for k in np.unique(chosen):
            these = np.flatnonzero(chosen == k)
            if k == 0:
                curves[these] = middle[these, None]
            elif k <= count:
                a = self.slope[k - 1] + np.sqrt(self.slope_var[k - 1]) * wide[0, these]
                curves[these] = middle[these, None] + a[:, None] * (self.basis.at(k - 1, GRID) - self.centre[k - 1])
                change[these] = a
                if self.basis.family[k - 1] == "onset":
                    spread = self.basis.spread[k - 1] * rng.uniform(-0.5, 0.5, len(these))
                    onset[these], foot[these] = self.basis.onset[k - 1] + spread, self.basis.foot[k - 1]
            else:
                j = k - 1 - count
                var_l, cov, var_r = self.turn_cov[j]
                sd = np.sqrt(var_l)
                a = self.turn_coef[j, 0] + sd * wide[0, these]
                rest = np.sqrt(max(var_r - cov**2 / var_l, 0))
                b = self.turn_coef[j, 1] + cov / sd * wide[0, these] + rest * wide[1, these]
                curves[these] = middle[these, None] + np.stack([a, b], 1) @ self._turn(j, GRID).T
                end, turn = _TURNING[j][:2]
                onset[these] = end + SPACING * rng.uniform(-0.5, 0.5, len(these)) if end else turn
                change[these], before[these] = b, -a
        return Posterior(
            self.kinds[chosen],
            np.clip(onset, 0, 1),
            foot,
            curves[:, 0],
            change,
            before,
            GRID,
            curves,
            float(dispersion * self.data.trusted),
            correlation,
            self.data.effective,
        )
