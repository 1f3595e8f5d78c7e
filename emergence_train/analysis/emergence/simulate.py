"""Simulated evaluations with known truth: tables of several sizes whose performance depends on loss in a known way."""

from typing import Any

import numpy as np
import pandas as pd

KINDS = ("emergent", "gradual", "u-shaped", "inverse", "at-chance", "saturated")


def ladder(rng: np.random.Generator, sizes: int | None = None, checkpoints: int | None = None) -> pd.DataFrame:
    """Runs of 3 to 6 sizes with 8 to 20 checkpoints each: run, params, step, tokens, loss."""
    sizes = sizes or int(rng.integers(3, 7))
    checkpoints = checkpoints or int(rng.integers(8, 21))
    top = rng.uniform(3.0, 5.0)
    frames = []
    for size in range(sizes):
        share = np.linspace(0.03, 1, checkpoints) if rng.random() < 0.5 else np.geomspace(0.02, 1, checkpoints)
        end = 2.9 - 0.2 * size + rng.normal(0, 0.03)
        loss = end + (top - end) * ((1 + 20 * share) ** -0.5 - 21**-0.5) / (1 - 21**-0.5)
        step = np.maximum(np.round(share * 10_000), 1).astype(int)
        params = int(1e8 * 2.5**size)
        frames.append(
            pd.DataFrame(
                {
                    "run": f"size-{params // 10**6}m",
                    "params": params,
                    "step": step,
                    "tokens": step * 1_000_000,
                    "loss": loss,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def performance(
    kind: str, x: np.ndarray, level: float, room: float, rng: np.random.Generator
) -> tuple[np.ndarray, float | None]:
    """(performance at shares `x` of the loss range, true onset or None) for a plateau at `level` and `room` above it."""
    rise = rng.uniform(0.15, 0.6) * room
    if kind == "at-chance":
        return np.full(len(x), level), None
    if kind == "saturated":
        return np.full(len(x), rng.uniform(0.88, 0.97)), None
    if kind == "gradual":
        forms: tuple[np.ndarray, ...] = (
            x,
            x ** rng.uniform(0.5, 2.0),
            1 / (1 + np.exp((0.5 - x) / rng.uniform(0.15, 0.3))),
            -np.expm1(-x * rng.uniform(1, 3)),
            np.expm1(x * rng.uniform(0.5, 2)) / 3,
        )
        return level + rise * forms[rng.integers(len(forms))], None
    if kind == "emergent":
        onset = rng.uniform(0.35, 0.75)
        u = np.maximum(x - onset, 0) / (1 - onset)
        forms = (u, u ** rng.uniform(0.6, 1.5), -np.expm1(-2 * u), np.minimum(u / 0.6, 1))
        return level + rise * forms[rng.integers(len(forms))], onset
    if kind == "inverse":
        level = rng.uniform(0.35, 0.6)
        return level - 0.2 * np.maximum(x - rng.choice([0, 0.3]), 0), None
    turn = rng.uniform(0.3, 0.7)
    fall = rng.uniform(0.06, 0.15)
    level = max(level, 0.3)
    return level - fall * np.minimum(x / turn, 1) + rng.uniform(0.1, 0.4) * np.maximum(x - turn, 0) / (1 - turn), None


def table(
    kind: str,
    rng: np.random.Generator,
    *,
    task: str = "task",
    size: float = 0.0,
    chances: tuple[float, ...] = (0.0, 0.2, 0.25, 0.5),
    **ladder_options: Any,
) -> tuple[pd.DataFrame, float | None]:
    """(evaluations table of one task, true threshold in nats or None).

    500 to 14,000 items; variance between checkpoints of up to twice the items' own; a plateau that answer length or a
    majority answer lifts or lowers by up to 0.06. `size` is added for every ten times the parameters.
    """
    frame = ladder(rng, **ladder_options)
    items = int(np.exp(rng.uniform(np.log(500), np.log(14_000))))
    chance = float(rng.choice(chances))
    level = chance + (rng.uniform(-0.03, 0.06) if chance else 0.0)
    loss = frame["loss"].to_numpy()
    x = (loss.max() - loss) / np.ptp(loss)
    share, onset = performance(kind, x, level, 1 - level, rng)
    share = np.clip(share + size * np.log10(frame["params"] / frame["params"].median()), 0, 0.99)
    jitter = rng.normal(size=len(x)) * np.sqrt(rng.uniform(0, 2) * share * (1 - share) / items)
    value = rng.binomial(items, np.clip(share + jitter, 0, 1)) / items
    frame = frame.assign(
        task=task,
        metric="acc",
        value=value,
        stderr=np.sqrt(value * (1 - value) / items),
        items=items,
        chance=chance,
        higher_is_better=True,
    )
    return frame, None if onset is None else float(loss.max() - onset * np.ptp(loss))
