"""Laws of the mean loss along a run, fitted by quadrature over their nonlinear part, and their forecasts.

Every law here reads  L(x) = L0 + A * basis(clock(x); shape) - B * decay(x): linear in L0, A and B once the shape, the
clock and the kernel of the decay are given. So no optimiser and no starting value is needed: each law is a finite list
of hypotheses (a grid), each solved in closed form, weighted by how well it explains the observed part and by the prior.

  schedule     ours: power law in sqrt(steps * summed rate) or in the summed rate, decay in intrinsic time.
               Reconstructed on public curves; see docs/notebook/
  annealing    L0 + A S1^-alpha - C S2, arXiv 2408.11029
  multi-power  L0 + A S1^-alpha - LD, arXiv 2503.12811, with the shape of LD held (see planned_schedule.MULTI_POWER)
  paper        L0 + A / (1 + b N) up to a separation point, from there on it follows the learning rate:
               arXiv 2404.17785 as reconstructed (its a2 law); the separation point is one of HELD, chosen by fit
  power        L0 + A N^-alpha, the Kaplan-style baseline of arXiv 2404.17785, here with an offset
  reciprocal   L0 + A / (1 + b N)
  logarithmic  L0 - A log N

The last three do not use the learning rate or a prior. Where the rate has not decayed in the observed part, B is not
identified by the data and follows the prior of priors.py, fitted across other runs, with its spread.
"""

from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.planned_schedule import AT_ONCE, INTRINSIC, MOMENTUM, MULTI_POWER, Kernel, PlannedSchedule
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.result import LawConstants
from emergence_train.analysis.temporal.spikes import (
    UnreturnedEnd,
    noise_of,
    returned_part,
    rounding_of,
    shared_noise,
    without_spikes,
)

WINDOW = 0.4  # a fit uses the observed part from this share of its length: earlier loss follows no power law
BINS = 60  # at most; more rows are averaged in bins of log step
# Misfit is smooth, so residuals are not independent: what of their variance is not noise counts as if the n points were
# EFFECTIVE at most, point variance = noise + (residual variance - noise) max(1, n / EFFECTIVE)
EFFECTIVE = 8
EARLIER = 4.0  # a point before the window counts with this power of its share of the window's start
WANTED = 8  # points: the window reaches back, after warm-up and to FURTHEST of the length, until it has as many
FURTHEST = 0.1
KNOTS = 600  # points at which a law is evaluated before it is interpolated to more
MINIMUM = 3  # points that a fit needs
GUESS, GUESS_WEIGHT = 0.003, 4.0  # nats: prior scatter of points, and its weight in points
Z = {50: 0.6745, 80: 1.2816, 95: 1.9600}
# A loss lies below its mean by up to this share of it as by a normal distribution, further as by a lognormal
STRAIGHT = 0.75


def below(mean: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The loss `width` nats below a positive `mean`, bent where it nears 0, which no cross-entropy passes; in the same order."""
    room = (1 - STRAIGHT) * mean
    beyond = width - STRAIGHT * mean
    bent = (mean > 0) & (beyond > 0)
    return np.where(bent, room * np.exp(-np.where(bent, beyond, 0) / np.where(bent, room, 1)), mean - width)


def above_zero(mean: np.ndarray, sd: np.ndarray, last: float) -> np.ndarray:
    """Forecasts `mean` of a loss that is positive, and was `last`: bent to stay so where less than `sd` and a quarter of `last`.

    Smooth where the bend begins, and bend^2 / |mean| far below 0: near the median of the positive part of a normal
    distribution.
    """
    bend = np.minimum(sd, (1 - STRAIGHT) * last)
    near = mean < bend
    return np.where(near, bend**2 / np.where(near, np.maximum(2 * bend - mean, 1e-300), 1.0), mean)


@dataclass(frozen=True)
class Law:
    """A family: which clocks, kernels and shapes its hypotheses combine. No kernel: the rate is not used."""

    name: str
    clocks: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    basis: str = "power"

    @property
    def knows_schedule(self) -> bool:
        return bool(self.kernels)


LAWS = {
    law.name: law
    for law in (
        Law("schedule", ("rate", "mixed"), tuple(INTRINSIC)),
        Law("annealing", ("rate",), (MOMENTUM,)),
        Law("multi-power", ("rate",), (MULTI_POWER,)),
        Law("paper", ("held-0.5", "held-0.7", "held-0.85", "held-1"), (AT_ONCE,), "reciprocal"),
        Law("power", ("steps",), ()),
        Law("reciprocal", ("steps",), (), "reciprocal"),
        Law("logarithmic", ("steps",), (), "logarithmic"),
    )
}
CLASSICAL = ("power", "reciprocal", "logarithmic")
SCHEDULE_AWARE = ("schedule", "annealing", "multi-power")


@dataclass(frozen=True)
class ObservedPart:
    """The observed part of a loss curve, ready to fit: `x` steps, `y` nats, both (n,)."""

    x: np.ndarray
    y: np.ndarray
    noise: float  # standard deviation of one logged row about the curve, nats
    sampling: float  # variance of a point by what of it is independent from row to row, 0 where not known; nats^2
    unreturned: UnreturnedEnd | None = None  # rows at the end that are left out
    # variance of as many independent points that err as these do, whose rows share their noise; nats^2
    shared: float = 0.0

    @property
    def weight(self) -> np.ndarray:
        """(n,) 1 in the window; less before it, where a power law holds less and less."""
        return np.minimum(self.x / (WINDOW * self.x[-1]), 1.0) ** EARLIER


def observed_part(x: np.ndarray, y: np.ndarray, plan: PlannedSchedule | None) -> ObservedPart:
    """The window that a fit uses: from WINDOW of the observed length on and after warm-up, in at most BINS bins.

    `x` ascending steps (n,), `y` losses in nats (n,). Spikes and an unreturned end do not count. It may have fewer than MINIMUM
    points; the caller checks.
    """
    x, y, effect, end = returned_part(x, y, plan)
    warm = min(1.2 * plan.warmup_end, 0.8 * x[-1]) if plan is not None else 0.0
    start = min(WINDOW * x[-1], max(FURTHEST * x[-1], x[-WANTED:][0]), x[-MINIMUM:][0])
    start = max(start, warm)
    keep = x >= max(start, 1e-9)
    alone, rounding = noise_of(y[keep]), rounding_of(y[keep])
    x, y = x[keep], without_spikes(y, alone, effect)[keep]
    noise, correlation = shared_noise(_less_known(x, y, plan), alone, rounding)
    shared = noise**2 * (1 + correlation) / (1 - correlation) / max(len(x) / BINS, 1) if correlation else 0.0
    if len(x) <= BINS:  # of few rows the noise is not known
        return ObservedPart(x, y, noise, alone**2 if len(x) > WANTED else 0.0, end, shared)
    edges = np.geomspace(x[0], x[-1] * (1 + 1e-12), BINS + 1)
    bin_of = np.unique(np.searchsorted(edges, x, side="right"), return_inverse=True)[1]
    count = np.bincount(bin_of)
    rows = len(x) / len(count)
    sampling = alone**2 / rows if rows >= 5 else 0.0
    return ObservedPart(
        np.bincount(bin_of, x) / count, np.bincount(bin_of, y) / count, noise, float(sampling), end, shared
    )


def _less_known(x: np.ndarray, y: np.ndarray, plan: PlannedSchedule | None) -> np.ndarray:
    """(n,) losses less their least-squares fit by a line in log steps and by what the rate has done, at once and later."""
    terms = [np.ones(len(x)), np.log(x)]
    if plan is not None:
        terms += plan.interpolated_decays(x, AT_ONCE, INTRINSIC[2])
    known = np.column_stack(terms)
    return y - known @ np.linalg.lstsq(known, y, rcond=None)[0]


@dataclass(frozen=True)
class Fit:
    """A law fitted to an ObservedPart. J hypotheses with weights; coef (J, 3) are L0, A (at the window's end) and B."""

    law: Law
    weight: np.ndarray  # (J,) sums to 1
    # (J,) likewise, where the exponent may be another than the prior's: how far the mean may be off
    spread_weight: np.ndarray
    coef: np.ndarray  # (J, 3)
    covariance: np.ndarray  # (J, 3, 3)
    labels: list[tuple[str, str, float]]  # clock, kernel, shape
    residual: float  # standard deviation of the fitted points about the best hypothesis, nats
    noise: float
    reference: dict[str, float]  # each clock at the window's end
    decay_seen: float  # change of the decay term in the window: B is identified by this alone
    plan: PlannedSchedule
    shapes: np.ndarray  # the grid behind the labels

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (nats, both (m,)) of the noiseless loss at steps `x` (m,)."""
        x = np.asarray(x, float)
        if len(x) <= 2 * KNOTS:
            return self._predict(x)
        low, high = max(float(x.min()), 1e-9), float(x.max())  # a log of every step: the law is smooth between knots
        knots = np.unique(np.r_[np.linspace(low, high, KNOTS // 2), np.geomspace(low, high, KNOTS // 2)])
        inside = (self.plan.x > low) & (self.plan.x < high)
        knots = np.unique(np.r_[knots, self.plan.x[inside]])
        mean, sd = self._predict(knots)
        return np.interp(x, knots, mean), np.interp(x, knots, sd)

    def _predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = _features(self.law, x, self.plan, self.reference, self.shapes)[0]
        each = (features @ self.coef[:, :, None])[:, :, 0]
        mean = self.weight @ each
        return mean, np.sqrt(np.maximum(self._spread(features, each, mean), 0))

    def _spread(self, features: np.ndarray, each: np.ndarray, mean: np.ndarray) -> np.ndarray:
        inner = ((features @ self.covariance) * features).sum(2)
        return self.spread_weight @ (inner + (each - mean) ** 2)

    @property
    def constants(self) -> LawConstants:
        """Clock and kernel of the heaviest hypothesis; means and standard errors of L0, A, B and the shape over all."""
        clock, kernel, _ = self.labels[int(np.argmax(self.weight))]
        numbers = np.c_[self.coef, [label[2] for label in self.labels]]  # (J, 4)
        within = np.c_[np.diagonal(self.covariance, 0, 1, 2), np.zeros(len(numbers))]
        mean = self.weight @ numbers
        errors = np.sqrt(np.maximum(self.weight @ (numbers**2 + within) - mean**2, 0))
        return LawConstants(clock, kernel, *(float(number) for pair in zip(mean, errors) for number in pair))


def fit(law: Law, curve: ObservedPart, plan: PlannedSchedule, prior: priors.Prior | None = None) -> Fit:
    """Fit `law` to the observed part at the rates of `plan.past`, to be forecast at those of `plan`, which has the whole run;
    `prior` defaults to the shipped one."""
    prior = prior or priors.SHIPPED
    if law.knows_schedule:
        return _fit(law, curve, plan, prior, SHAPES[law.basis])
    shapes = FREE_EXPONENTS if law.basis == "power" else SHAPES[law.basis]
    for _ in range(3):  # refine the grid about its best point, so that a baseline has its best fit
        fitted = _fit(law, curve, plan, prior, shapes)
        best = int(np.argmax(fitted.weight))
        if len(shapes) == 1:
            break
        shapes = np.geomspace(shapes[max(best - 1, 0)], shapes[min(best + 1, len(shapes) - 1)], 24)
    return fitted


def _fit(law: Law, curve: ObservedPart, plan: PlannedSchedule, prior: priors.Prior, shapes: np.ndarray) -> Fit:
    x, y = curve.x, curve.y
    reference = {clock: float(_clock(clock, x[-1:], plan.past)[0]) for clock in law.clocks}
    features, labels = _features(law, x, plan.past, reference, shapes)
    borrowed = law.knows_schedule
    root = np.sqrt(curve.weight)
    known = _borrow(law, prior, plan, labels, len(shapes), curve) if borrowed else Borrowed.nothing(len(labels))
    # work with y + mean_b * decay, so that the prior of the third coefficient sits at 0
    rows = features * root[:, None]
    target = root * (y - features[:, :, 2] * known.mean_b[:, None])
    gram = rows.transpose(0, 2, 1) @ rows
    moment = (rows.transpose(0, 2, 1) @ target[:, :, None])[:, :, 0]
    count = float(curve.weight.sum())
    misfit_factor = max(1.0, count / EFFECTIVE) if borrowed else 1.0
    residual_variance = 1e-6
    for _ in range(4 if borrowed else 1):
        noise, misfit = min(residual_variance, curve.sampling), max(residual_variance - curve.sampling, 0)
        point_variance = max(noise + misfit * misfit_factor, curve.shared)
        normal = gram + 1e-11 * np.eye(3)
        # without a kernel the third feature is 0
        normal[:, 2, 2] += point_variance / known.sd_b**2 if borrowed else 1.0
        coef = np.linalg.solve(normal, moment[:, :, None])[:, :, 0]
        residual = target - (rows @ coef[:, :, None])[:, :, 0]
        sse = (residual**2).sum(1)
        cost = sse + point_variance * (coef[:, 2] / known.sd_b) ** 2
        best = int(np.argmin(np.where(np.isfinite(known.log_prior), cost, np.inf)))
        residual_variance = (sse[best] + GUESS_WEIGHT * GUESS**2) / (max(count - 4, 0) + GUESS_WEIGHT)
    coef, covariance = known.continued(coef, np.linalg.inv(normal) * point_variance)
    log_evidence = -cost / (2 * point_variance) - 50.0 * (coef[:, 1] < 0)
    weight, spread_weight = _weights(log_evidence + known.log_prior), _weights(log_evidence + known.log_prior_elsewhere)
    if not borrowed:  # a baseline forecasts with its one best fit
        weight = spread_weight = (np.arange(len(weight)) == np.argmax(weight)).astype(float)
    coef[:, 2] += known.mean_b
    decays = features[:, :, 2]
    return Fit(
        law,
        weight,
        spread_weight,
        coef,
        covariance,
        labels,
        float(np.sqrt(residual_variance)),
        curve.noise,
        reference,
        float(np.ptp(decays, axis=1).max()),
        plan,
        shapes,
    )


def _weights(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


@dataclass(frozen=True)
class Borrowed:
    """What a law's J hypotheses take from other runs: a Gaussian on B, their log prior, and how A changes ahead."""

    mean_b: np.ndarray  # (J,) nats; coefficients of B are counted from it
    sd_b: np.ndarray
    log_prior: np.ndarray  # (J,)
    log_prior_elsewhere: np.ndarray  # (J,)
    change: tuple[float, float] = (0.0, 0.0)  # log of A ahead over A behind: mean and standard deviation
    above: float = 0.0  # nats, standard deviation of A ahead on top of that

    @classmethod
    def nothing(cls, hypotheses: int) -> "Borrowed":
        zero = np.zeros(hypotheses)
        return cls(zero, np.full(hypotheses, np.inf), zero, zero)

    def continued(self, coef: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (J, 3) and their covariance (J, 3, 3) of the curve ahead; at the window's end nothing moves."""
        mean, sd = self.change
        level_kept = np.array([-1.0, 1.0, 0.0])
        coef = coef + np.expm1(mean) * coef[:, 1:2] * level_kept
        wander = (sd * coef[:, 1]) ** 2 + self.above**2
        return coef, covariance + wander[:, None, None] * np.outer(level_kept, level_kept)


def _borrow(
    law: Law, prior: priors.Prior, plan: PlannedSchedule, labels: list, shapes: int, curve: ObservedPart
) -> Borrowed:
    """What `law` takes from the prior; `labels` come in blocks of so many shapes to a clock and kernel."""
    blocks = labels[::shapes]
    mean_b, sd_b = np.repeat([prior.decay(clock, kernel, plan) for clock, kernel, _ in blocks], shapes, axis=0).T
    if law.basis != "power":
        return Borrowed(mean_b, sd_b, np.zeros(len(labels)), np.zeros(len(labels)))
    loss = float(curve.y[-MINIMUM:].mean())
    small = prior.smallness(plan, curve.x[-1])
    exponents = np.array([label[2] for label in labels])
    like, elsewhere = prior.log_exponent(exponents, small), prior.log_exponent_elsewhere(exponents, small)
    change = prior.log_change(curve.x[-1], loss, small, plan.mean_share_after(curve.x[-1]))
    # small runs were observed at any loss
    return Borrowed(mean_b, sd_b, like, elsewhere, change, (1 - (small or 0.0)) * prior.ahead.above(loss))


def _clock(name: str, x: np.ndarray, plan: PlannedSchedule) -> np.ndarray:
    if name == "steps" or name.startswith("held"):
        return np.maximum(x, 1e-9)
    rate = np.maximum(plan.clock(x), 1e-9)
    return rate if name == "rate" else np.sqrt(rate * np.maximum(x, 1e-9))


SHAPES = {
    "power": np.geomspace(priors.LEAST_EXPONENT * 7 ** (-10 / 27), 7 * priors.LEAST_EXPONENT, 38),  # 0.1 to 1.4
    "reciprocal": np.geomspace(1e-2, 1e4, 60),
    "logarithmic": np.ones(1),
}
FREE_EXPONENTS = np.geomspace(0.01, 4.0, 80)  # the classical power law uses no prior and searches further


def _basis(kind: str, ratio: np.ndarray, shape: np.ndarray) -> np.ndarray:
    if kind == "power":
        return ratio ** -shape[:, None]
    if kind == "reciprocal":
        return 1 / (1 + shape[:, None] * ratio)
    return np.broadcast_to(-np.log(ratio), (len(shape), len(ratio)))


def _features(
    law: Law, x: np.ndarray, plan: PlannedSchedule, reference: dict[str, float], shapes: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str, float]]]:
    """(J, len(x), 3) of 1, basis and -decay for every hypothesis, and their labels."""
    kernels = [(kernel, power) for power in plan.by_batch for kernel in law.kernels]
    decays = [(kernel.name, power, plan.decay(x, kernel, power)) for kernel, power in kernels]
    decays = decays or [("none", 0.0, np.zeros(len(x)))]
    blocks, labels = [], []
    for clock in law.clocks:
        ratio = _clock(clock, x, plan) / reference[clock]
        separation = float(clock.partition("-")[2] or np.inf)  # share of the observed length after which A is held
        basis = _basis(law.basis, np.minimum(ratio, separation), shapes)
        for kernel, power, decay in decays:
            if np.isfinite(separation):
                before = plan.decay(np.array([separation * reference[clock]]), law.kernels[0], power)[0]
                decay = np.where(ratio > separation, decay - before, 0.0)
            block = np.empty((len(shapes), len(x), 3))
            block[:, :, 0], block[:, :, 1], block[:, :, 2] = 1.0, basis, -decay
            blocks.append(block)
            labels += [(clock, kernel, float(shape)) for shape in shapes]
    return np.concatenate(blocks), labels
