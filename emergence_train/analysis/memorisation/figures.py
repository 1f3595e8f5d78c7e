"""The figure of a probe."""

import numpy as np

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.analysis.memorisation.result import MemorisationResult


def shares(result: MemorisationResult) -> Figure:
    """Share of extracted sequences against how often they were seen, a colour for each run; controls at 0.5."""
    traces = []
    for number, run in enumerate(result.runs):
        rows = [row for row in result.shares if (row.run, row.step) == (run.run, run.step)]
        x = np.array([np.sqrt(row.least * row.most) or 0.5 for row in rows]) * 1.04**number
        share, low, high = (np.array([getattr(row, name) for row in rows]) for name in ("share", "low95", "high95"))
        traces.append(Trace(x, share, f"{run.run}, {run.params:,} parameters", number, line=False, points=True))
        traces.append(Trace(x, share, "", number, line=False, low=low, high=high, bars=True))
    title = f"{result.continuation} tokens that follow {result.prefix}, produced exactly"
    return Figure(
        title, "times trained on (0.5: never)", "share of sequences", tuple(traces), x_log=True, note="95% intervals"
    )
