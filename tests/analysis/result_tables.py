"""Small tables with something of everything in the results of the three analyses."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from emergence_train.analysis.emergence import simulate as emergence_simulate
from emergence_train.analysis.temporal import simulate as temporal_simulate
from emergence_train.recorder import tables


def write_temporal(folder: Path) -> list[Path]:
    """A run with positions, two training curves, and one that is too short."""
    positions, _, _ = temporal_simulate.positions(np.random.default_rng(0), "cosine", checkpoints=16, length=24)
    tables.write(tables.POSITIONS, positions, folder / "positions.parquet")
    curves = [
        temporal_simulate.curve(np.random.default_rng(seed), kind, rows=24, run=kind)[0]
        for seed, kind in enumerate(("cosine", "wsd"))
    ]
    short = curves[0].head(2).assign(run="short")
    pd.concat([*curves, short]).to_csv(folder / "curves.csv", index=False)
    return [folder / "positions.parquet", folder / "curves.csv"]


def write_emergence(folder: Path) -> list[Path]:
    """Four sizes: a task with a threshold, by accuracy and by Brier score, and a gradual one."""
    rng = np.random.default_rng(5)
    frame = emergence_simulate.ladder(rng, sizes=4, checkpoints=14)
    rise = np.maximum(2.5 - frame["loss"], 0)
    parts = []
    for task, share in (("jump", 0.25 + 0.5 * rise), ("steady", 0.8 - 0.15 * frame["loss"])):
        value = rng.binomial(4000, share) / 4000
        scores = {"task": task, "metric": "acc", "value": value, "items": 4000, "chance": 0.25}
        parts.append(frame.assign(**scores, stderr=np.sqrt(value * (1 - value) / 4000), higher_is_better=True))
    scores = {"task": "jump", "metric": "brier", "value": 0.75 - 0.5 * rise, "items": 4000, "chance": np.nan}
    parts.append(frame.assign(**scores, stderr=0.002, higher_is_better=False))
    pd.concat(parts, ignore_index=True).to_csv(folder / "evaluations.csv", index=False)
    return [folder / "evaluations.csv"]


def write_weighted_run(folder: Path, seed: int, weights: dict[str, float], shift: float) -> Path:
    """A run whose tail losses differ from the uniform run's of the same seed by `shift` (nats)."""
    path = folder / f"{'-'.join(weights) or 'uniform'}-{seed}"
    frame = temporal_simulate.positions(np.random.default_rng(seed), checkpoints=3, length=100, run=path.name)[0]
    tail = frame["position"] > 90
    mean = frame["loss_sum"] / frame["count"]
    frame.loc[tail, "loss_sum"] += shift * frame["count"]
    frame.loc[tail, "loss_sq_sum"] += (2 * mean * shift + shift**2) * frame["count"]
    (path / "positions").mkdir(parents=True)
    tables.write(tables.POSITIONS, frame, path / "positions" / "a.parquet")
    (path / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "training": {"position_weights": weights}}))
    return path


def write_weights(folder: Path) -> list[Path]:
    """Two seeds of uniform and of tail weights, one of head weights: rows with and without an interval."""
    runs = [(1, {}), (2, {}), (1, {"tail": 0.5}), (2, {"tail": 0.5}), (1, {"head": 0.5})]
    return [write_weighted_run(folder, seed, weights, 0.1 * seed) for seed, weights in runs]
