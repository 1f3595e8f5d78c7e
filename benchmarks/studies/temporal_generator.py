"""Loss curves of linear regression in many directions, trained on one sample after another: no law of the analysis is in them.

Direction j has curvature j^-a and holds a share of the excess loss that falls like j^-p. A sample's gradient is noisy in
proportion to the loss itself, so that the floor is a share of the loss and goes with the rate (a rate h keeps h tr / 2B of it,
tr the sum of curvatures, B the batch). "adam" divides each direction's rate by the size of its gradients, which flattens the
spectrum. Expectations are followed exactly, direction by direction; what is drawn is a laboratory's constants and its rows.
"""

from dataclasses import dataclass

import numpy as np

DIRECTIONS = np.geomspace(1, 1e8, 300)  # of more, each for its neighbours
NEIGHBOURS = np.gradient(DIRECTIONS)
BLOCK = 20  # steps at one rate
LABEL = 1.0  # nats of loss that no training takes away; BASE more are of the data
BASE = 1.6
FIRST = 0.25  # the highest curvature times the peak rate
KINDS = ("cosine", "linear", "wsd", "inverse root", "constant")


@dataclass(frozen=True)
class Run:
    """A run as it is: `step` (n,) of all logged rows, `rate`, the noiseless `truth` and the logged `loss`, nats."""

    kind: str
    step_tokens: int
    step: np.ndarray
    rate: np.ndarray
    truth: np.ndarray
    loss: np.ndarray


def course(kind: str, progress: np.ndarray) -> np.ndarray:
    """Rate over peak along a run's progress in [0, 1]."""
    warm = np.minimum(progress / 0.015, 1)
    falls = {
        "cosine": 0.05 + 0.475 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - 0.95 * progress,
        "wsd": np.clip((1 - progress) / 0.2, 0.02, 1),
        "inverse root": np.minimum(np.sqrt(0.1 / np.maximum(progress, 1e-9)), 1)
        * np.clip((1 - progress) / 0.1, 0.1, 1),
        "constant": np.ones_like(progress),
    }
    return warm * falls[kind]


def mean_loss(
    rate: np.ndarray, drop: float, fall: float, slow: float, optimizer: str, decay: float = 1.4
) -> np.ndarray:
    """Expected loss after each block at `rate` (n,), a share of the peak; nats.

    `drop` is about what a decay to 0 takes off, `fall` what steps 2,000 to 8,000 do at the peak rate, which without noise
    would fall as steps^-slow.
    """
    curvature = FIRST * DIRECTIONS**-decay
    if optimizer == "adam":
        curvature = FIRST * (curvature / FIRST) ** 0.5  # each divided by its own gradients' root mean square
    excess = DIRECTIONS ** -(1 + slow * (decay if optimizer == "sgd" else decay / 2)) * NEIGHBOURS

    def left(steps: float) -> float:
        return float((excess * (1 - curvature) ** (2 * steps)).sum())

    excess = excess * fall / (left(2000) - left(8000))
    share = DIRECTIONS**-decay * NEIGHBOURS
    share = share / share.sum()  # noise goes to steep directions
    noise = drop / LABEL  # share of the loss that the peak rate keeps
    losses = []
    for h in rate:
        loss = LABEL + excess.sum()
        keep = (1 - h * curvature) ** (2 * BLOCK)
        scale = loss**0.5 if optimizer == "adam" else loss  # Adam's steps do not shrink with the gradients
        floor = h * noise * scale * share * (2 - curvature) / (2 - h * curvature)
        excess = floor + (excess - floor) * keep
        losses.append(LABEL + excess.sum())
    return BASE + np.array(losses)


def draw(seed: int, kind: str, optimizer: str) -> Run:
    """A run of a laboratory that nobody knows, with a training row every few steps."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    steps = int(np.exp(rng.uniform(np.log(4000), np.log(30000))))
    peak = float(np.exp(rng.uniform(np.log(2e-4), np.log(3e-3))))
    blocks = np.arange(BLOCK, steps + 1, BLOCK)
    share = course(kind, blocks / steps)
    drop, fall = (middle * float(np.exp(rng.normal(0, 0.25))) for middle in (0.16, 0.28))
    true = mean_loss(share, drop, fall, rng.uniform(0.4, 0.6), optimizer)
    spacing = max(steps // 400 // BLOCK, 1) * BLOCK
    step = np.arange(spacing, steps + 1, spacing)
    truth = np.interp(step, blocks, true)
    loss = truth + 0.012 * rng.normal(size=len(step))
    return Run(kind, int(rng.choice([131_072, 524_288])), step, peak * np.interp(step, blocks, share), truth, loss)
