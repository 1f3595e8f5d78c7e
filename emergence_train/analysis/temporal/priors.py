"""Priors from other runs on the constants that a run's early part does not identify.

All are fitted across laboratories (benchmarks/studies/temporal_prior.py; prior.json holds the numbers, their source and
their spread):

drop      B in nats, what a decay from the peak rate to 0 takes off the loss. Before the rate has decayed nothing in a run
          tells it. It grows slowly with the peak rate and falls slowly with the tokens of the run. A rate that no AdamW
          run has (Muon's 0.02) says nothing: such a run gets B at the middle of the known rates and a wider spread.
exponent  of the power law. It hardly differs between laboratories: loss at steps s, 2s and 4s of constant rate.
ahead     how much a run falls from s to REACH * s at a constant rate, over what its own fitted law says from what is
          behind. Runs of 25M to 2B parameters and batches of 50k to 4M tokens keep to their own curve within a tenth.
          Near one loss (about 4 nats a token, whatever the step: 500 with Muon, 2,000 with AdamW at 1e-4) the fall slows.
small     exponent and fall ahead of runs of a few thousand tokens a step, which speed up where the others slow down
          (benchmarks/studies/temporal_small.py; small_runs.json).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule

REACH = 4.0  # the fall ahead is counted to this multiple of the steps behind
RATE, TOKENS = 1e-3, 5e9  # where the drop's intercept holds
NEUTRAL = 6e-4  # middle of the known peak rates: what is taken of a rate outside them
OUTSIDE = 0.4  # standard deviation of log B where the peak rate says nothing
STEPS, AGE = 2000, 0.75  # where FallAhead.sd is stated, and how fast it falls with the steps
# Log sds of exponent and fall ahead where a batch is below the prior's and the run is not like those of small_runs.json either
SMALL_UNKNOWN = (0.4, 0.5)
LEAST_EXPONENT = 0.2  # the mean of a forecast is of no lower one: the prior, and small_runs.json, were fitted so
PUBLISHED = (0.35, 0.42)  # middle and log sd of published exponents: 95% are 0.15 to 0.8
OTHERS = 0.5  # prior probability that a run's exponent is one of those and not of the laboratories'
MARGIN = 1.25  # a rate, or tokens a step, so much outside theirs still count as known
UNKNOWN_TOKENS = 0.1  # added in quadrature to the log sd of B where the tokens are not known


@dataclass(frozen=True)
class Drop:
    """log B = intercept + rate log(peak / RATE) + tokens log(tokens / TOKENS), standard deviation `sd`."""

    intercept: float
    rate: float
    tokens: float
    sd: float


@dataclass(frozen=True)
class FallAhead:
    """Log of the fall to REACH times the steps over that of the run's own law: mean bend * tent(loss).

    The tent is 1 at a loss of `loss` nats and falls to 0 within `width` nats; `bend_sd` is how well its height is known.
    The standard deviation is `least` of a run however old, and sd (STEPS / steps)^AGE on top. No run of the prior was
    observed above `highest` nats: there the spread grows.
    """

    bend: float
    bend_sd: float
    loss: float
    width: float
    least: float
    sd: float
    highest: float

    def above(self, loss: float) -> float:
        """Nats by which a run's loss is higher than any of the prior's: they may fall away at any time."""
        return max(loss - self.highest, 0.0)

    def log_change(self, steps: float, loss: float) -> tuple[float, float]:
        """Mean and standard deviation of the log for a run observed up to `steps`, where it has `loss` nats."""
        tent = max(1 - abs(loss - self.loss) / self.width, 0.0)
        age = self.sd * (STEPS / max(steps, 1.0)) ** AGE
        return self.bend * tent, float(np.sqrt(self.least**2 + age**2 + (self.bend_sd * tent) ** 2))


@dataclass(frozen=True)
class Small:
    """The exponent of small runs (mean, log sd) and the log of their fall ahead over their own law's (mean, sd), from runs of
    `tokens` a step, observed up to `steps`."""

    exponent: float
    exponent_sd: float
    change: float
    change_sd: float
    tokens: float
    steps: float


SMALL = Small(**json.loads(Path(__file__).with_name("small_runs.json").read_text(encoding="utf-8"))["small"])


@dataclass(frozen=True)
class Prior:
    """What other runs say: B by clock and kernel, the exponent's mean and log sd, and how curves go on."""

    source: str
    runs: int
    groups: int
    drop: dict[tuple[str, str], Drop]
    exponent: tuple[float, float]
    ahead: FallAhead
    rates: tuple[float, float] = field(default=(1e-4, 4.1e-3))  # peak rates of the AdamW runs
    least_batch: float = 5e4  # tokens a step of the runs behind `exponent` and `ahead`
    small: Small = SMALL

    def knows_rate(self, plan: PlannedSchedule) -> bool:
        """Whether the peak rate is one that says something: no other optimizer's, no multiplier."""
        low, high = self.rates
        return low / MARGIN <= plan.peak <= high * MARGIN

    def smallness(self, plan: PlannedSchedule, steps: float) -> float | None:
        """How near a run observed up to `steps` is to those behind `small`: 1 with their tokens a step and their steps or fewer,
        towards 0 with more of either. None: with as many tokens a step as the prior's, or an unknown number."""
        batch = plan.tokens / plan.x[-1]
        if not 0 < batch < self.least_batch / MARGIN:
            return None
        near = np.log(self.least_batch / batch) / np.log(self.least_batch / self.small.tokens)
        return float(min(near, 1.0) * min(self.small.steps / steps, 1.0))

    def _log_rate(self, plan: PlannedSchedule) -> tuple[float, bool]:
        """Log over RATE of the peak rate that is taken, and whether it is the run's own."""
        known = self.knows_rate(plan)
        return float(np.log((plan.peak if known else NEUTRAL) / RATE)), known

    def decay(self, clock: str, kernel: str, plan: PlannedSchedule) -> tuple[float, float]:
        """Mean and standard deviation of B in nats for a run of this plan."""
        # the reconstructed law of the paper has no fits of its own: its rate term is nearest to this one
        law = self.drop.get((clock, kernel)) or self.drop["mixed", "fast^1"]
        log_rate, known = self._log_rate(plan)
        log_b = law.intercept + law.rate * log_rate
        sd = law.sd if known else max(law.sd, OUTSIDE)
        if plan.tokens > 0:
            log_b += law.tokens * np.log(plan.tokens / TOKENS)
        else:
            sd = np.hypot(sd, UNKNOWN_TOKENS)
        mean = float(np.exp(log_b))
        return mean, mean * float(sd)

    def log_exponent(self, exponent: np.ndarray, small: float | None = None) -> np.ndarray:
        """Log density (up to a constant) of power-law exponents, for a run of this smallness."""
        mean, sd = self.exponent
        if small is not None:
            mean, sd = (
                mean ** (1 - small) * self.small.exponent**small,
                _between(SMALL_UNKNOWN[0], self.small.exponent_sd, small),
            )
        return np.where(exponent >= LEAST_EXPONENT, _log_normal(exponent, mean, sd), -np.inf)

    def log_exponent_elsewhere(self, exponent: np.ndarray, small: float | None = None) -> np.ndarray:
        """Likewise of a run that may not be like the prior's: OTHERS of the density is as published exponents spread, less where
        it is like the small runs, whose exponents are known."""
        published = _log_normal(exponent, *PUBLISHED)
        share = OTHERS * (1 - (small or 0.0))
        own = self.log_exponent(exponent, small)
        return np.logaddexp(np.log1p(-share) + own, np.log(max(share, 1e-300)) + published)

    def log_change(
        self, steps: float, loss: float, small: float | None = None, rate: float = 1.0
    ) -> tuple[float, float]:
        """Mean and standard deviation of the log of the fall ahead over the own law's, of a run observed up to `steps`, where it
        has `loss` nats. Small runs speed up as far as they learn: `rate` is the mean planned one ahead, a share of its peak."""
        mean, sd = self.ahead.log_change(steps, loss)
        if small is None:
            return mean, sd
        spread = _between(SMALL_UNKNOWN[1], self.small.change_sd, small)
        return _between(mean, rate * self.small.change, small), float(np.hypot(sd, spread))


def _log_normal(values: np.ndarray, middle: float, log_sd: float) -> np.ndarray:
    """Log density of the logarithms of `values`, up to a constant."""
    return -0.5 * (np.log(values / middle) / log_sd) ** 2 - np.log(log_sd)


def _between(far: float, near: float, share: float) -> float:
    return (1 - share) * far + share * near


def from_json(held: dict) -> Prior:
    """The Prior of a dictionary made by `as_json`."""
    return Prior(
        held["source"],
        held["runs"],
        held["groups"],
        {(row["clock"], row["kernel"]): Drop(*(row[name] for name in Drop.__annotations__)) for row in held["drop"]},
        (held["exponent"]["mean"], held["exponent"]["log_sd"]),
        FallAhead(**held["ahead"]),
        tuple(held["rates"]),
    )


def as_json(prior: Prior) -> dict:
    """The content for `from_json`: a dictionary with names instead of tuples."""
    return {
        "source": prior.source,
        "runs": prior.runs,
        "groups": prior.groups,
        "units": {
            "drop": f"log of nats, at peak rate {RATE:g} and {TOKENS:g} tokens; exponents of the rate and of the tokens",
            "ahead": f"log of the fall to {REACH:g} times the steps over the run's own law's, "
            f"its sd at {STEPS:g} steps; loss, width in nats a token",
            "rates": "peak rates fitted",
        },
        "drop": [{"clock": clock, "kernel": kernel, **vars(law)} for (clock, kernel), law in prior.drop.items()],
        "exponent": dict(zip(("mean", "log_sd"), prior.exponent)),
        "ahead": vars(prior.ahead),
        "rates": list(prior.rates),
    }


SHIPPED = from_json(json.loads(Path(__file__).with_name("prior.json").read_text(encoding="utf-8")))
