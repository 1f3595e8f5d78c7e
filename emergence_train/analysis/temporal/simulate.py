"""Simulated logs with known truth: those of a run that follows the temporal law exactly."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_schedule import INTRINSIC, PlannedSchedule
from emergence_train.analysis.temporal.position_law import position_curve

TOKENS_PER_STEP = 250_000  # 5e9 in 20,000 steps, where the prior states its drop
TOKEN_SD = 2.5  # nats, of one token's loss about its position's mean
SEQUENCE_SD = 0.4  # nats, of one sequence's mean loss


def learning_rate(kind: str, x: np.ndarray, peak: float = 1e-3) -> np.ndarray:
    """Rate at steps `x` of a run that ends at x[-1]; warm-up over the first hundredth."""
    t = x / x[-1]
    warmup = np.minimum(t / 0.01, 1)
    if kind == "constant":
        shape = np.ones_like(t)
    elif kind == "cosine":
        shape = 0.1 + 0.45 * (1 + np.cos(np.pi * t))
    elif kind == "wsd":
        shape = np.clip((1 - t) / 0.2, 0, 1)
    elif kind == "restarts":
        shape = 0.1 + 0.45 * (1 + np.cos(np.pi * ((t * 3) % 1)))
    else:
        raise ValueError(kind)
    return peak * warmup * shape


@dataclass(frozen=True)
class Truth:
    """Constants of the simulated law; the defaults are near those of public runs."""

    l0: float = 2.5
    a: float = 0.2  # nats at the run's end
    alpha: float = 0.5
    b: float = 0.2
    a0: tuple[float, float] = (4.0, 0.15)  # value at the end, slope on log N
    a1: tuple[float, float, float] = (0.12, 0.2, 20.0)  # q3, q1, q2 in units of 1 / run length

    def curves(self, x: np.ndarray, plan: PlannedSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """a0, a1, a2 at steps x."""
        end = plan.x[-1]
        work = np.sqrt(np.maximum(plan.clock(x) * x, 1e-9)) / np.sqrt(plan.clock(plan.x[-1:])[0] * end)
        kernel = next(k for k in INTRINSIC if k.name == "fast^0.75")
        a2 = self.l0 + self.a * work**-self.alpha - self.b * plan.decay(x, kernel)
        a0 = self.a0[0] + self.a0[1] * np.log(x / end)
        a1 = self.a1[0] + self.a1[1] / (1 + self.a1[2] * x / end)
        return a0, a1, a2


def draw(rng: np.random.Generator) -> Truth:
    """A truth drawn from the spread that the shipped prior states."""
    return Truth(
        l0=float(rng.normal(2.5, 0.2)),
        a=float(np.exp(rng.normal(np.log(0.3), 0.3))),
        alpha=float(np.exp(rng.normal(np.log(0.5), 0.28))),
        b=float(np.exp(rng.normal(-1.76, 0.25))),
        a0=(float(rng.normal(4, 0.3)), float(rng.normal(0.1, 0.05))),
        a1=(0.12, 0.05, 20.0),  # the mean over positions hardly moves: what moves is a2, as in the prior's mean losses
    )


def positions(
    rng: np.random.Generator,
    schedule: str = "cosine",
    truth: Truth | None = None,
    checkpoints: int = 60,
    length: int = 256,
    sequences: int = 1500,
    shared: float = 0.9,
    steps: int = 20000,
    run: str = "simulated",
    split: str = "iid",
) -> tuple[pd.DataFrame, PlannedSchedule, np.ndarray]:
    """A positions frame, the plan and the true losses (C, P).

    `shared` is the part of the sampling variance that is the same at all checkpoints, because the validation
    sequences are; positions of a sequence also share its difficulty.
    """
    truth = truth or Truth()
    x = np.round(np.linspace(steps / checkpoints, steps, checkpoints)).astype(int)
    grid = np.linspace(0, steps, 2001)
    plan = PlannedSchedule(grid, learning_rate(schedule, grid))
    i = np.arange(1, length + 1)
    a0, a1, a2 = truth.curves(x.astype(float), plan)
    true = position_curve(a0[:, None], a1[:, None], a2[:, None], i)
    token = np.sqrt(shared) * rng.normal(size=length) + np.sqrt(1 - shared) * rng.normal(size=true.shape)
    level = rng.normal() * SEQUENCE_SD
    mean = true + (TOKEN_SD * token + level) / np.sqrt(sequences)
    variance = TOKEN_SD**2 * (1 + rng.normal(size=true.shape) * np.sqrt(2 / sequences)) + SEQUENCE_SD**2
    count = np.full(true.shape, sequences)
    frame = pd.DataFrame(
        {
            "run": run,
            "params": 10**6,
            "step": np.repeat(x, length),
            "tokens": np.repeat(x * TOKENS_PER_STEP, length),
            "split": split,
            "position": np.tile(i, checkpoints),
            "count": count.ravel(),
            "loss_sum": (mean * count).ravel(),
            "loss_sq_sum": ((variance + mean**2) * count).ravel(),
            "correct": 0,
        }
    )
    return frame, plan, true


def curve(
    rng: np.random.Generator,
    schedule: str = "cosine",
    truth: Truth | None = None,
    rows: int = 200,
    noise: float = 0.003,
    steps: int = 20000,
    run: str = "simulated",
) -> tuple[pd.DataFrame, np.ndarray]:
    """A curves frame (losses a2 of the truth plus white noise) and the noiseless losses."""
    truth = truth or Truth()
    x = np.unique(np.round(np.linspace(max(steps // rows, 1), steps, rows)).astype(int))
    grid = np.linspace(0, steps, 2001)
    rate = learning_rate(schedule, grid)
    true = truth.curves(x.astype(float), PlannedSchedule(grid, rate))[2]
    frame = pd.DataFrame(
        {
            "run": run,
            "params": 10**6,
            "step": x,
            "tokens": x * TOKENS_PER_STEP,
            "lr": np.interp(x, grid, rate),
            "loss": true + rng.normal(size=len(x)) * noise,
        }
    )
    return frame, true
