"""Evaluations simulated item by item: what a checkpoint knows, what it guesses, and how guesses and label bias persist.

Nothing here is a form that the analysis fits. An item of difficulty d is known once the loss is below eta - d; until then the
model prefers an option for reasons of the item's own that change slowly along training, plus a bias to some labels that
wanders. Every checkpoint of every run answers the same items. Performance follows from counting right answers: its foot is as
sharp or smooth as the distribution of difficulties near 0.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm

SHARP = ("uniform", "exponential", "weibull")  # share known grows in proportion to eta - loss, or faster, at first
SMOOTH = ("beta", "gamma", "softened")  # with its square, or over items that blur their thresholds
CUBIC = ("gamma3",)  # with its cube
# Items that need four skills at once, whose difficulties are correlated (between the first and the fourth power), and a
# logistic share of items (exponential at first)
SMOOTHER = ("chain", "logistic")
UNSEEN = ("lognormal",)  # slower than any power at first; no constant of the analysis was chosen on it
SKILLS, SHARED = 4, 0.3
ROWS = {"sparse": (18, 36), "dense": (80, 160)}


@dataclass(frozen=True)
class Truth:
    """What was simulated: the threshold (nats), the items' difficulties, the gap between rows at the foot (nats)."""

    eta: float
    foot: str
    gap: float
    chance: float
    end: float  # share known at the lowest loss


def losses(rng: np.random.Generator, rows: int, runs: int) -> pd.DataFrame:
    """Runs of one ladder, unevenly spaced: run, params, step, tokens, loss."""
    frames = []
    total, top = 20_000, rng.uniform(3.4, 4.6)
    for run in range(runs):
        count = max(rows // runs, 4)
        start = rng.uniform(0.01, 0.06)
        even, log = np.linspace(start, 1, count), np.geomspace(start, 1, count)
        share = np.clip(np.sort((even if rng.random() < 0.5 else log) * np.exp(rng.normal(0, 0.03, count))), 0.005, 1.0)
        floor = 2.7 - 0.22 * run + rng.normal(0, 0.03)
        loss = floor + (top - floor) * ((share / start) ** -rng.uniform(0.25, 0.6))
        loss += np.cumsum(rng.normal(0, 0.001, count)) + rng.normal(0, 0.002, count)
        step = np.unique(np.round(share * total).astype(int), return_index=True)
        params = int(5e7 * 2.6**run)
        part = pd.DataFrame(
            {"run": f"{params // 10**6}m-{run}", "params": params, "step": step[0], "loss": loss[step[1]]}
        )
        frames.append(part.assign(tokens=part["step"] * 500_000))
    return pd.concat(frames, ignore_index=True)


def difficulties(foot: str, items: int, width: float, rng: np.random.Generator) -> np.ndarray:
    """Nats below eta at which each item becomes known, (items,)."""
    if foot == "uniform":
        return rng.uniform(0, width, items)
    if foot == "exponential":
        return rng.exponential(width / 1.5, items)
    if foot == "weibull":
        return width / 1.5 * rng.weibull(0.8, items)
    if foot == "beta":
        return width * rng.beta(1.8, 2.0, items)
    if foot == "gamma":
        return rng.gamma(2.0, width / 3, items)
    if foot == "gamma3":
        return rng.gamma(3.0, width / 5, items)
    if foot == "lognormal":
        return 0.5 * width * rng.lognormal(0, 0.6, items)
    if foot == "chain":
        skills = np.sqrt(1 - SHARED) * rng.normal(size=(items, SKILLS)) + np.sqrt(SHARED) * rng.normal(size=(items, 1))
        return width * norm.cdf(skills).max(1)
    if foot == "logistic":
        middle, scale = 0.45 * width, 0.15 * width
        first = expit(-middle / scale)  # known at eta itself by the untruncated curve: nobody is, so it is cut off
        return middle + scale * logit(rng.uniform(first, 1, items))
    return np.maximum(rng.uniform(0, width, items), 0)  # softened: each checkpoint blurs it, see `known`


def known(frame: pd.DataFrame, eta: float, difficulty: np.ndarray, foot: str, rng: np.random.Generator) -> np.ndarray:
    """(rows, items) whether each checkpoint knows each item; a few are lost again by a run for good."""
    margin = eta - frame["loss"].to_numpy()[:, None] - difficulty[None, :]
    if foot == "softened":
        margin = margin + 0.012 * np.ptp(frame["loss"]) * rng.logistic(size=(1, len(difficulty)))
    lost = rng.random((frame["run"].nunique(), len(difficulty))) < 0.03
    return (margin > 0) & ~lost[pd.factorize(frame["run"])[0]]


def guesses(frame: pd.DataFrame, options: int, items: int, wander: float, rng: np.random.Generator) -> np.ndarray:
    """(rows, items) whether a guess is right: a run's guess of an item persists, and label bias moves many at once."""
    shares = rng.dirichlet(np.full(options, 60.0))
    label = rng.choice(options, items, p=shares)
    common = rng.normal(size=(options, items)).astype(np.float32)  # what any model prefers about an item
    right = np.zeros((len(frame), items), bool)
    for _, rows in frame.groupby("run"):
        own = rng.normal(size=(options, items)).astype(np.float32)
        bias = rng.normal(0, wander, options)
        order = rows.index[np.argsort(-rows["loss"].to_numpy())]
        before = None
        for row in order:
            if before is not None:
                passed = abs(frame["loss"].iat[row] - before)
                keep = np.float32(np.exp(-passed / 0.5))
                own = keep * own + np.sqrt(1 - keep**2) * rng.normal(size=own.shape).astype(np.float32)
                slow = np.exp(-passed / 0.8)
                bias = slow * bias + np.sqrt(1 - slow**2) * rng.normal(0, wander, options)
            before = frame["loss"].iat[row]
            right[row] = (common + own + bias[:, None].astype(np.float32)).argmax(0) == label
    return right


def table(
    rng: np.random.Generator,
    *,
    items: int,
    rows: str = "sparse",
    foot: str = "",
    options: int | None = None,
    runs: int | None = None,
    task: str = "task",
    frame: pd.DataFrame | None = None,
    at: float | None = None,
) -> tuple[pd.DataFrame, Truth]:
    """(evaluations of one task with a threshold, its truth).

    `options`: 0 for open-ended answers that guessing never hits. `frame` and `at`: losses and the threshold's share of their
    range, instead of drawn ones.
    """
    runs = runs or int(rng.integers(1, 6))
    frame = losses(rng, int(rng.integers(*ROWS[rows])), runs) if frame is None else frame.reset_index(drop=True)
    options = int(rng.choice([0, 2, 4, 5])) if options is None else options
    foot = foot or str(rng.choice([*SHARP, *SMOOTH, *CUBIC]))
    loss = frame["loss"].to_numpy()
    eta = float(loss.max() - (rng.uniform(0.35, 0.75) if at is None else at) * np.ptp(loss))
    width = (eta - loss.min()) * rng.uniform(0.9, 2.5)
    difficulty = difficulties(foot, items, width, rng)
    knows = known(frame, eta, difficulty, foot, rng)
    right = knows | (guesses(frame, options, items, 0.08, rng) if options else False)
    value = right.mean(1)
    near = np.sort(loss)
    place = int(np.clip(np.searchsorted(near, eta), 1, len(near) - 1))
    end = float(knows[int(loss.argmin())].mean())
    chance = 1 / options if options else 0.0
    frame = frame.assign(task=task, metric="acc", value=value, stderr=np.sqrt(value * (1 - value) / items), items=items)
    frame = frame.assign(chance=chance, higher_is_better=True)
    return frame, Truth(eta, foot, float(near[place] - near[place - 1]), chance, end)
