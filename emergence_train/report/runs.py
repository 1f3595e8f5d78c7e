"""What a report needs to know of a run, read from its directory."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emergence_train.analysis.temporal.position_law import fit_positions
from emergence_train.errors import InputError
from emergence_train.recorder import tables


@dataclass(frozen=True)
class Run:
    """`positions` and `fits` (the position law, one row a checkpoint and split), the training `curve`, and all lines of
    metrics.jsonl as `metrics`."""

    name: str
    directory: Path
    params: int
    header: dict
    positions: pd.DataFrame
    means: pd.DataFrame
    fits: pd.DataFrame
    curve: pd.DataFrame
    metrics: list[dict]

    @property
    def tokens(self) -> int:
        return int(self.positions["tokens"].max())

    def splits(self) -> list[str]:
        """iid and ood first, then train, then the domains."""
        found = list(self.means["split"].unique())
        return sorted(found, key=lambda s: ({"iid": 0, "ood": 1, "train": 2}.get(s, 3), s))

    def last(self, frame: pd.DataFrame, split: str) -> pd.Series | None:
        """The last checkpoint's row of a split."""
        rows = frame[(frame["split"] == split) & (frame["step"] == frame["step"].max())]
        return rows.iloc[0] if len(rows) else None


def load_run(directory: Path) -> Run:
    """Raises InputError where the directory is not a run or holds no checkpoint yet."""
    metrics = tables.read_metrics(directory)
    header = next((row for row in metrics if row.get("kind") == "run"), None)
    if header is None:
        raise InputError(f"{directory / 'metrics.jsonl'}: has no line of kind 'run'; is this a run directory?")
    if not list((directory / "positions").glob("*.parquet")):
        raise InputError(f"{directory}: has no checkpoint yet; wait for the first one")
    positions = tables.read(tables.POSITIONS, directory)
    curve = pd.DataFrame([row for row in metrics if row.get("kind") == "train"])
    return Run(
        header["run"],
        directory,
        int(header["params"]),
        header,
        positions,
        tables.mean_loss(positions),
        fit_positions(positions),
        curve,
        metrics,
    )
