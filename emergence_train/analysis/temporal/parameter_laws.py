"""Laws of a0 and a1 of the position law along training, and the choice among them.

Families (arXiv 2404.17785 names the logarithm for a0 and the hyperbola for a1; their exact forms and which of them is
held after the separation point are reconstructed):

  logarithmic  c0 + c1 log N                 reconstructed (a0)
  hyperbolic   c0 + c1 / (1 + q N)           reconstructed (a1)
  power        c0 + c1 N^-q                  ours
  constant     c0                            ours

each also "held": N stops at a separation point N_sep, which is estimated. All are linear in c0 and c1 given q and
N_sep, so a grid and closed forms suffice. Families are weighted by a rolling-origin backtest inside the observed part.
"""

from dataclasses import dataclass

import numpy as np

SEPARATIONS = np.array([np.inf, 0.8, 0.65, 0.5, 0.35])  # shares of the observed length; inf = not yet separated
ORIGINS = (0.4, 0.55, 0.7, 0.85)
REACH = 0.3  # mean log distance of the backtest's targets from its origins
_EXPONENTS = np.geomspace(0.05, 2.0, 12)
_RATES = np.geomspace(0.3, 300, 14)  # of the hyperbola, in units of 1 / observed length


@dataclass(frozen=True)
class ParameterFit:
    """One family fitted to one parameter: value(N) = c0 + c1 basis(min(N, N_sep); q)."""

    family: str
    c0: float
    c1: float
    q: float
    separation: float  # steps; inf = none within the observed part
    length: float  # observed length in steps, the unit of N in the basis
    c0_se: float
    c1_se: float
    r2: float
    backtest: float  # root mean squared error of its backtest, in the parameter's unit; NaN if too short

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Value at steps `x`."""
        unit = np.minimum(np.asarray(x, float), self.separation) / self.length
        return self.c0 + self.c1 * _basis(self.family, unit, np.array([self.q]))[0]


@dataclass(frozen=True)
class ParameterLaw:
    """Families of one parameter with their weights (sum 1), best first."""

    fits: list[ParameterFit]
    weights: np.ndarray

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean and standard deviation at steps `x`.

        The deviation combines the disagreement of families and their backtest error, which was measured REACH ahead (in
        log N) and is extrapolated in proportion.
        """
        each = np.array([fit.predict(x) for fit in self.fits])
        mean = self.weights @ each
        between = self.weights @ (each - mean) ** 2
        errors = np.array([fit.backtest if np.isfinite(fit.backtest) else 0.0 for fit in self.fits])
        ahead = np.maximum(np.log(np.maximum(np.asarray(x, float) / self.fits[0].length, 1)) / REACH, 1)
        return mean, np.sqrt(between + ahead**2 * (self.weights @ errors**2))


FAMILIES = ("logarithmic", "hyperbolic", "power", "constant")


def _basis(family: str, unit: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """(len(shapes), len(unit))."""
    unit = np.maximum(unit, 1e-9)
    if family == "hyperbolic":
        return 1 / (1 + shapes[:, None] * unit)
    if family == "power":
        return unit ** -shapes[:, None]
    column = np.log(unit) if family == "logarithmic" else np.zeros_like(unit)
    return np.broadcast_to(column, (len(shapes), len(unit)))


def _shapes(family: str) -> np.ndarray:
    return {"hyperbolic": _RATES, "power": _EXPONENTS}.get(family, np.ones(1))


def fit_family(
    family: str, x: np.ndarray, value: np.ndarray, stderr: np.ndarray, backtest: float = float("nan")
) -> ParameterFit:
    """Weighted least squares over the family's grid; x (n,) steps, value and stderr (n,) in the parameter's unit."""
    x, value = np.asarray(x, float), np.asarray(value, float)
    length = x[-1]
    spread = np.maximum(stderr, np.median(stderr) * 0.3 + 1e-12)  # no single checkpoint dominates
    w = 1 / spread**2
    shapes = _shapes(family)
    separations = SEPARATIONS if family != "constant" else SEPARATIONS[:1]
    best = None
    for separation in separations:
        basis = _basis(family, np.minimum(x / length, separation), shapes)
        mean_b, mean_v = basis @ w / w.sum(), w @ value / w.sum()
        centred = basis - mean_b[:, None]
        sbb = np.maximum((centred**2) @ w, 1e-300)
        slope = (centred @ (w * (value - mean_v))) / sbb if family != "constant" else np.zeros(1)
        sse = w @ (value - mean_v) ** 2 - slope**2 * sbb * (family != "constant")
        j = int(np.argmin(sse))
        if best is None or sse[j] < best[0] * (1 - 1e-3):  # prefer "not separated" unless holding fits better
            best = (float(sse[j]), separation, float(shapes[j]), float(slope[j]), float(mean_b[j]), float(sbb[j]))
    assert best is not None  # there is at least one separation
    sse, separation, q, c1, mean_b, sbb = best
    c0 = float(mean_v - c1 * mean_b)
    scale = max(sse / max(len(x) - 4, 1), 1e-300)
    total = float(w @ (value - mean_v) ** 2)
    return ParameterFit(
        family,
        c0,
        c1,
        q,
        float(separation * length),
        float(length),
        float(np.sqrt(scale * (1 / w.sum() + mean_b**2 / sbb))) if c1 else float(np.sqrt(scale / w.sum())),
        float(np.sqrt(scale / sbb)) if c1 else 0.0,
        1 - sse / total if total > 0 else 0.0,
        float(backtest),
    )


def fit_parameter(x: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> ParameterLaw:
    """All families of one parameter, weighted by how well they forecast the later observed part from earlier origins.

    `x` (n,) steps ascending, n >= 2; `value`, `stderr` (n,). Non-finite values are dropped.
    """
    x, value, stderr = (np.asarray(part, float) for part in (x, value, stderr))
    good = np.isfinite(value) & np.isfinite(stderr)
    x, value, stderr = x[good], value[good], stderr[good]
    late = x >= 0.1 * x[-1]
    if late.sum() >= 6:  # the first steps of training follow none of these
        x, value, stderr = x[late], value[late], stderr[late]
    fits = []
    for family in FAMILIES:
        errors = []
        for origin in ORIGINS:
            past = x <= origin * x[-1]
            if past.sum() < 5 or past.all():
                continue
            guess = fit_family(family, x[past], value[past], stderr[past]).predict(x[~past])
            errors.append(np.mean((guess - value[~past]) ** 2))
        score = float(np.sqrt(np.mean(errors))) if errors else float("nan")
        fits.append(fit_family(family, x, value, stderr, score))
    scores = np.array([fit.backtest for fit in fits])
    if np.all(np.isfinite(scores)):
        weights = 1 / (scores**2 + np.median(stderr) ** 2 / 10 + 1e-300) ** 2
    else:
        weights = np.array([float(fit.family == "constant") for fit in fits])  # too short to fit a law
    order = np.argsort(-weights)
    return ParameterLaw([fits[k] for k in order], weights[order] / weights.sum())


def constant_law(x: np.ndarray, value: float) -> ParameterLaw:
    """A parameter that is held at `value`; x (n,) the observed steps."""
    length = float(x[-1])
    return ParameterLaw([ParameterFit("constant", value, 0.0, 1.0, np.inf, length, 0.0, 0.0, 0.0, 0.0)], np.ones(1))
