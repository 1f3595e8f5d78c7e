"""Priors from other runs on the constants that a run's early part does not identify.

Before the learning rate has decayed, a run has no information on how much the loss will fall when it does. Other runs agree
on it to within a fifth: the fall B (nats, for a decay from the peak rate to 0) grows slowly with the peak rate. They also agree
on the exponent of the power law. `SHIPPED` is prior.json, fitted by benchmarks/studies/temporal_prior.py, with source and spread.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MATURE = 2000.0  # steps: the runs behind the prior were observed for at least about as many
SLOWER = 0.5  # decline of the log exponent for every factor e below that (own tiny runs; public ones agree)
YOUNG = 0.4  # spread added to it for every such factor


def immaturity(steps: float) -> float:
    """How far a run is below MATURE steps, in factors of e; 0 above. Early training passes through phases (unigram
    statistics, then context) that no single power law describes, so the prior from mature runs is widened there."""
    return max(float(np.log(MATURE / steps)), 0.0) if steps > 0 else 10.0


@dataclass(frozen=True)
class Prior:
    """log B ~ Normal(intercept + slope * log(peak rate / 1e-3), sd); log exponent ~ Normal(log mean, sd)."""

    source: str
    runs: int
    groups: int
    drop: dict[tuple[str, str], tuple[float, float, float]]  # (clock, kernel): intercept, slope, sd of log B
    shape: dict[str, tuple[float, float]]  # clock: mean exponent, sd of its logarithm
    rates: tuple[float, float] = field(default=(1e-4, 3e-3))  # peak rates of the runs; outside, the nearest is used

    def decay(self, clock: str, kernel: str, peak: float) -> tuple[float, float]:
        """Mean and standard deviation of B in nats for a run of this peak learning rate."""
        # the paper's reconstructed law has no prior of its own: its rate term is nearest to this one
        intercept, slope, sd = self.drop.get((clock, kernel)) or self.drop["mixed", "fast^1"]
        low, high = self.rates
        inside = float(np.clip(peak, low, high))
        away = abs(np.log(peak / inside))  # another optimiser or parametrisation: a wider prior
        mean = float(np.exp(intercept + slope * np.log(inside / 1e-3)))
        return mean, mean * float(np.hypot(sd, min(0.3 * away, 0.5)))

    def log_shape(self, clock: str, exponent: float, steps: float = np.inf) -> float:
        """Log density (up to a constant) of a power-law exponent, for a run observed for so many steps."""
        mean, sd = self.shape[clock]
        young = immaturity(steps)
        return -0.5 * ((np.log(exponent / mean) + SLOWER * young) / np.hypot(sd, YOUNG * young)) ** 2


def read(path: Path) -> Prior:
    """Read a Prior from a file written with `as_json`."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return Prior(
        held["source"],
        held["runs"],
        held["groups"],
        {(row["clock"], row["kernel"]): (row["intercept"], row["slope"], row["sd"]) for row in held["drop"]},
        {row["clock"]: (row["mean"], row["log_sd"]) for row in held["shape"]},
        tuple(held["rates"]),
    )


def as_json(prior: Prior) -> dict:
    """The content for `read`: a dictionary with names instead of tuples."""
    return {
        "source": prior.source,
        "runs": prior.runs,
        "groups": prior.groups,
        "units": {
            "drop": "log of nats, at peak rate 1e-3; slope on the log of the peak rate",
            "rates": "peak rates fitted",
        },
        "drop": [
            {"clock": clock, "kernel": kernel, "intercept": intercept, "slope": slope, "sd": sd}
            for (clock, kernel), (intercept, slope, sd) in prior.drop.items()
        ],
        "shape": [{"clock": clock, "mean": mean, "log_sd": sd} for clock, (mean, sd) in prior.shape.items()],
        "rates": list(prior.rates),
    }


SHIPPED = read(Path(__file__).with_name("prior.json"))
