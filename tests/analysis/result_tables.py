"""Small tables with something of everything in their results, and the JSON that both analyses give of them."""

from pathlib import Path

import numpy as np
import pandas as pd

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
