"""The figure of `analyze weights`."""

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import OBSERVED, Figure, Trace, interval
from emergence_train.analysis.position_weights.analyze import regions
from emergence_train.analysis.position_weights.result import PositionWeightsResult
from emergence_train.analysis.results import as_json


def figures(result: PositionWeightsResult) -> tuple[Figure, ...]:
    """Difference from uniform weights by region with its 95% interval over seeds, one panel a split."""
    rows = table(result)
    splits = [split for split in ("iid", "ood") if split in set(rows["split"])] or sorted(set(rows["split"]))[:2]
    return tuple(_panel(rows[rows["split"] == split], split) for split in splits)


def table(result: PositionWeightsResult) -> pd.DataFrame:
    """The rows as a frame, NaN where a number is unknown."""
    frame = pd.DataFrame(as_json(result.rows))
    unknown = ["low95", "high95", "p"]
    return frame.astype(dict.fromkeys(unknown, float))


def _panel(rows: pd.DataFrame, split: str) -> Figure:
    names: list[str] = []
    traces: list[Trace] = []
    for number, (variant, part) in enumerate(rows.groupby("variant")):
        for row in part.set_index("region").reindex(list(regions(10))).dropna(subset=["difference"]).itertuples():
            known = np.isfinite(row.low95)
            low, high = (row.low95, row.high95) if known else (row.difference, row.difference)
            traces += interval(low, row.difference, high, len(names), colour=number)
            names.append(f"{variant}, {row.Index}")
    zero = Trace(np.zeros(2), np.array([-0.5, len(names) - 0.5]), "", OBSERVED)
    label = "loss - loss with uniform weights (nats)"
    return Figure(split, label, "", (zero, *traces), y_names=tuple(names))
