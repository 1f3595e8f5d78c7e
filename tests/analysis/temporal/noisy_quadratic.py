"""Loss curves of stochastic gradient descent on quadratics, computed mode by mode: no law of the analysis is in them.

Mode i has curvature l_i = l_1 i^-1.5 and a share of the loss that falls like i^-p; the gradient's noise is in the steep
modes (walls of a valley; its floor is flat). Expected loss: sum of l_i (m_i^2 + v_i) / 2, where a step at rate h takes
m to (1 - h l) m and v to (1 - h l)^2 v + h^2 s l. A slow sum of exponentials falls, a floor rises and goes with the rate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MODES = np.geomspace(1, 30000, 250)  # of more, each for its neighbours: the slowest takes longer than any run
NEIGHBOURS = np.gradient(MODES)
STEEP = 40  # modes with noise
BLOCK = 20  # steps at one rate


@dataclass(frozen=True)
class Run:
    """A simulated log: step, tokens, rate (n,), loss with noise, and the loss without it; nats."""

    step: np.ndarray
    tokens: np.ndarray
    rate: np.ndarray
    loss: np.ndarray
    truth: np.ndarray

    def rows(self, keep: np.ndarray) -> "Run":
        return Run(*(getattr(self, name)[keep] for name in ("step", "tokens", "rate", "loss", "truth")))


def shape_of(kind: str, progress: np.ndarray) -> np.ndarray:
    """Rate over peak along a run's progress in [0, 1]."""
    warm = np.minimum(progress / 0.02, 1)
    falls = {
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - progress,
        "wsd": np.clip((1 - progress) / 0.25, 0, 1),
        "constant": np.ones_like(progress),
    }
    return warm * falls[kind]


def simulate(
    rng: np.random.Generator,
    kind: str,
    steps: int,
    peak: float = 1e-3,
    drop: float = 0.17,
    fall: float = 0.3,
    spacing: int = 125,
    noise: float = 0.004,
    step_tokens: float = 3e5,
    batch: Callable[[np.ndarray], np.ndarray] = np.ones_like,
) -> Run:
    """A run whose loss falls by about `fall` from step 2,000 to 8,000 and by about `drop` with its rate, in nats. `batch` of the
    progress is its share of step_tokens; the gradient's variance is divided by it."""
    blocks = np.arange(0, steps, BLOCK)
    batches = batch(blocks / steps)
    rate = peak * shape_of(kind, (blocks + BLOCK) / steps)
    curvature = 0.5 * MODES**-1.5 / 1e-3
    slow = rng.uniform(1.6, 1.8)
    share = MODES**-slow * NEIGHBOURS
    mean_sq, variance = share / curvature, np.zeros(len(MODES))

    def pure(at: float) -> float:
        return float(0.5 * (share * (1 - 1e-3 * curvature) ** (2 * at)).sum())

    mean_sq = mean_sq * fall / (pure(2000) - pure(8000))
    spread = np.where(MODES <= STEEP, NEIGHBOURS, 0.0)
    spread *= drop / (0.5 * curvature @ (spread * peak / (2 - peak * curvature)))
    losses = []
    for h, of_usual in zip(rate, batches):
        keep = (1 - h * curvature) ** (2 * BLOCK)
        settled = h * spread / (2 - h * curvature) / of_usual
        mean_sq, variance = mean_sq * keep, settled + (variance - settled) * keep
        losses.append(0.5 * curvature @ (mean_sq + variance))
    step = np.arange(spacing, steps + 1, spacing).astype(float)
    truth = 2.6 + np.interp(step, blocks + BLOCK, losses)
    log = truth + rng.normal(size=len(step)) * noise
    tokens = np.interp(step, np.r_[0, blocks + BLOCK], np.r_[0, np.cumsum(batches) * BLOCK * step_tokens])
    return Run(step, tokens, np.interp(step, blocks + BLOCK, rate), log, truth)


def draw(seed: int, kind: str) -> Run:
    """A run of a laboratory that nobody knows: its own length, rate, batch, drop, fall and way of logging."""
    rng = np.random.default_rng(seed)
    peak = float(np.exp(rng.uniform(np.log(3e-4), np.log(2e-3))))
    steps, rows = int(rng.uniform(4000, 20000)), int(rng.choice([50, 80, 300]))
    return simulate(
        rng,
        kind,
        steps=steps,
        peak=peak,
        drop=0.17 * (peak / 1e-3) ** 0.25 * float(np.exp(rng.normal(0, 0.25))),
        fall=0.3 * float(np.exp(rng.normal(0, 0.25))),
        spacing=steps // rows,
        noise=0.003 if rows < 100 else 0.015,
        step_tokens=float(rng.choice([1e5, 5e5])),
    )
