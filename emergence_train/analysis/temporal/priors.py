"""Priors from other runs on the constants that a run's early part does not identify.

Two things, both fitted across laboratories (benchmarks/studies/temporal_prior.py; prior.json holds the numbers, their
source and their spread):

drop  B in nats, what a decay from the peak rate to 0 takes off the loss. Before the rate has decayed nothing in a run
      tells it. It grows slowly with the peak rate and falls slowly with the tokens of the run. A rate that no AdamW run
      has (Muon's 0.02) says nothing: such a run gets B at the middle of the known rates and a wider spread.
fall  nats that a run at a constant rate still loses between step s and REACH * s. It depends on the steps and the
      rate; sizes from 25M to 2B and batches from 50k to 4M tokens add nothing to that. So what a run can still reach
      is known before its own curve has bent.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule

REACH = 4.0  # the fall is counted to this multiple of the steps behind
RATE, TOKENS, STEPS = 1e-3, 5e9, 2000.0  # where the laws' intercepts hold
NEUTRAL = 6e-4  # middle of the known peak rates: what is taken of a rate outside them
OUTSIDE = 0.4  # standard deviation of log B where the peak rate says nothing
EXPONENT_RATE = (
    0.12  # exponents grow with this power of the peak rate (0.46 at 5e-4, 0.6 at 2e-3 within one laboratory)
)
MARGIN = 1.25  # a rate so much outside them still counts as known
UNKNOWN_TOKENS, UNKNOWN_RATE = 0.1, 0.2  # added in quadrature to the log sd of B, and of the fall, where not known

STEADY = 0.05  # standard deviation of log A ahead about log A behind in a run that has settled
PHASE, PHASE_STEPS = 0.12, 1250.0


def slowing(steps: float) -> float:
    """Share by which A ahead is smaller than A behind, and its standard deviation, from phases of early training.

    Unigram statistics come first, then context: 500 steps behind fall steeper than any power law that fits the steps
    ahead, and tell less than half of how the fall ahead differs between runs. After 5,000 steps there is little of it.
    """
    return min(PHASE * PHASE_STEPS / max(steps, 1.0), 0.5)


@dataclass(frozen=True)
class Drop:
    """log B = intercept + rate log(peak / RATE) + tokens log(tokens / TOKENS), standard deviation `sd`."""

    intercept: float
    rate: float
    tokens: float
    sd: float


@dataclass(frozen=True)
class Fall:
    """Log of the nats from step s to REACH * s at a constant rate, of standard deviation `sd`:

    intercept + steps log(s / STEPS) + rate log(peak / RATE) + both log(s / STEPS) log(peak / RATE)
    """

    intercept: float
    steps: float
    rate: float
    both: float
    sd: float


@dataclass(frozen=True)
class Prior:
    """What other runs say: B by clock and kernel, the exponent's mean and log sd by clock, and the fall to come."""

    source: str
    runs: int
    groups: int
    drop: dict[tuple[str, str], Drop]
    shape: dict[str, tuple[float, float]]
    fall: Fall
    rates: tuple[float, float] = field(default=(1e-4, 4.1e-3))  # peak rates of the AdamW runs

    def knows_rate(self, plan: PlannedSchedule) -> bool:
        """Whether the peak rate is one that says something: no other optimizer's, no multiplier."""
        low, high = self.rates
        return low / MARGIN <= plan.peak <= high * MARGIN

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

    def log_shape(self, clock: str, exponent: np.ndarray, plan: PlannedSchedule) -> np.ndarray:
        """Log density (up to a constant) of power-law exponents."""
        mean, sd = self.shape[clock]
        return -0.5 * ((np.log(exponent / mean) - EXPONENT_RATE * self._log_rate(plan)[0]) / sd) ** 2

    def fall_from(self, steps: float, plan: PlannedSchedule) -> tuple[float, float]:
        """Mean and standard deviation in nats of the fall from `steps` to REACH * `steps` at a constant rate."""
        law, (log_rate, known) = self.fall, self._log_rate(plan)
        log_steps = np.log(max(steps, 1.0) / STEPS)
        mean = float(np.exp(law.intercept + law.steps * log_steps + (law.rate + law.both * log_steps) * log_rate))
        return mean, mean * (law.sd if known else float(np.hypot(law.sd, UNKNOWN_RATE)))


def read(path: Path) -> Prior:
    """Read a Prior from a file written with `as_json`."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return Prior(
        held["source"],
        held["runs"],
        held["groups"],
        {(row.pop("clock"), row.pop("kernel")): Drop(**row) for row in held["drop"]},
        {row["clock"]: (row["mean"], row["log_sd"]) for row in held["shape"]},
        Fall(**held["fall"]),
        tuple(held["rates"]),
    )


def as_json(prior: Prior) -> dict:
    """The content for `read`: a dictionary with names instead of tuples."""
    return {
        "source": prior.source,
        "runs": prior.runs,
        "groups": prior.groups,
        "units": {
            "drop": f"log of nats, at peak rate {RATE:g} and {TOKENS:g} tokens; exponents of the rate and of the tokens",
            "fall": f"log of nats from {STEPS:g} to {REACH * STEPS:g} steps at constant rate {RATE:g}; exponents",
            "rates": "peak rates fitted",
        },
        "drop": [{"clock": clock, "kernel": kernel, **vars(law)} for (clock, kernel), law in prior.drop.items()],
        "shape": [{"clock": clock, "mean": mean, "log_sd": sd} for clock, (mean, sd) in prior.shape.items()],
        "fall": vars(prior.fall),
        "rates": list(prior.rates),
    }


SHIPPED = read(Path(__file__).with_name("prior.json"))
