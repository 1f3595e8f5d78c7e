"""Draw the documentation's pictures from what `make quickstart` and docs/how-to/branch.md leave in runs/: python docs/pictures.py

They are the analyses' own figures, in one size. A picture whose runs are not there is left as it is.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from emergence_train.analysis import emergence, temporal  # noqa: E402
from emergence_train.analysis.drawing import save  # noqa: E402
from emergence_train.analysis.emergence.figures import performance  # noqa: E402
from emergence_train.analysis.figures import Figure, Trace  # noqa: E402
from emergence_train.analysis.position_matrix import observed_rows, position_matrices  # noqa: E402
from emergence_train.analysis.temporal import figures  # noqa: E402
from emergence_train.recorder.tables import POSITIONS, mean_loss, read  # noqa: E402

RUNS = HERE.parent / "runs"
SIZES = ("quickstart-0.1m", "quickstart-0.2m", "quickstart-0.4m")
RUN = SIZES[-1]
DECAYED, STEADY = "quickstart-0.2m", "quickstart-0.2m-constant"
STABLE, ENDS = "stable", ("end-60", "end-120", "end-240", "end-480")  # of docs/how-to/branch.md
SIZE = (4.6, 3.1)
FROM = 30_000  # tokens: an untrained model's losses would compress the rest of the axis


def loss_by_position() -> Figure:
    """Mean loss at each position of the iid set, a line per checkpoint, coloured by tokens trained."""
    matrices = position_matrices(read(POSITIONS, RUNS / RUN))
    iid = next(matrix for matrix in matrices if matrix.keys["split"].iloc[0] == "iid")
    return figures.by_position("Loss against position", observed_rows(iid, iid.keys["tokens"].ge(FROM).to_numpy()))


def forecast() -> Figure:
    """The loss forecast from the first 40% of the run, and the measured rest."""
    (run,) = temporal.investigate(RUNS / RUN, fit_fraction=0.4, splits=["iid"]).runs
    return figures.forecast(run, "Forecast from 40% of the run")


def performance_by_loss() -> Figure:
    """Accuracy on one task against the loss, a point per checkpoint, coloured by parameters."""
    return _performance("latest", "Performance against loss")


def gradual() -> Figure:
    """The same of a task without a threshold."""
    return _performance("continuation", "No threshold: true continuations")


def _performance(name: str, title: str) -> Figure:
    analysis = emergence.investigate([RUNS / run for run in SIZES])
    task, finding = next(pair for pair in analysis.pairs if pair[0].key[1:] == (name, "acc"))
    return replace(
        performance(task, finding, sizes=(min(task.params), max(task.params))), title=title, y_label="accuracy"
    )


def decay() -> Figure:
    """The iid loss of a run whose learning rate decays at the end, and of its branch whose rate does not."""
    rows = {name: mean_loss(read(POSITIONS, RUNS / name)).query("split == 'iid'") for name in (STEADY, DECAYED)}
    decayed = rows[DECAYED].query("tokens >= 100_000")
    parent = decayed[decayed["step"] < rows[STEADY]["step"].min()].tail(1)  # where the branch begins
    traces = []
    for frame, label in (
        (pd.concat([parent, rows[STEADY]]), "constant rate"),
        (decayed, "rate decays over the last fifth"),
    ):
        x, y = frame["tokens"].to_numpy(), frame["loss"].to_numpy()
        traces.append(Trace(x, y, label, colour=len(traces), points=True))
    return Figure("What a decay of the learning rate does", "tokens", "iid loss (nats per token)", tuple(traces))


def one_run_several_ends() -> Figure:
    """The iid loss of a stable run, and of the decays that were branched from it."""
    losses = {name: mean_loss(read(POSITIONS, RUNS / name)).query("split == 'iid'") for name in (STABLE, *ENDS)}
    whole = losses[STABLE].query("tokens >= @FROM")
    traces = [Trace(whole["tokens"].to_numpy(), whole["loss"].to_numpy(), "constant rate")]
    for name in ENDS:
        begin, end = whole[whole["step"] == int(name.rpartition("-")[2])], losses[name].tail(1)
        x, y = (np.concatenate([begin[column], end[column]]) for column in ("tokens", "loss"))
        traces.append(Trace(x, y, "decayed to its end" if name == ENDS[0] else "", colour=1, points=True))
    return Figure("One run, four ends", "tokens", "iid loss (nats per token)", tuple(traces), x_log=True)


if __name__ == "__main__":
    needed = {
        loss_by_position: [RUN],
        forecast: [RUN],
        performance_by_loss: [*SIZES],
        gradual: [*SIZES],
        decay: [DECAYED, STEADY],
        one_run_several_ends: [STABLE, *ENDS],
    }
    for picture, runs in needed.items():
        if not all((RUNS / run).is_dir() for run in runs):
            continue
        stem = picture.__name__.replace("_", "-")
        (name,) = save([picture()], HERE / "images", stem, size=SIZE, suffixes=(".svg",))
        print(f"docs/images/{name}: {(HERE / 'images' / name).stat().st_size:,} bytes")
