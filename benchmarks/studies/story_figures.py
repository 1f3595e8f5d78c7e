"""The story's figures, from its committed tables; story.py draws them into docs/images."""

from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.drawing import save
from emergence_train.analysis.figures import Figure, Ramp, Trace

TASK, METRIC = "continuation", "answer_loglik"
FROM = 30_000  # tokens: an untrained model's losses would compress the rest of the axis
MARKERS = ("square", "triangle", "cross")


def draw(losses: pd.DataFrame, laws: pd.DataFrame, evaluations: pd.DataFrame, out: Path) -> None:
    """story-curves.svg, story-sizes.svg and story-laws.svg in `out`."""
    save(curves(evaluations), out, "story-curves", columns=2, size=(9.2, 3.8), suffixes=(".svg",))
    save(sizes(losses), out, "story-sizes", columns=2, size=(9.2, 3.4), suffixes=(".svg",))
    save(law_parameters(laws), out, "story-laws", columns=3, size=(9.2, 3.2), suffixes=(".svg",))


def ramp_of(params: pd.Series) -> Ramp:
    return Ramp("parameters", float(params.min()), float(params.max()))


def curves(evaluations: pd.DataFrame) -> list[Figure]:
    """Performance against the loss: the sizes, and one size's variants over them."""
    chosen = evaluations.query("task == @TASK and metric == @METRIC and tokens >= @FROM and schedule == 'stable'")
    main, others = chosen[chosen["variant"] == ""], chosen[chosen["variant"] != ""]
    ramp = ramp_of(main["params"])
    axis = "bits_per_byte"
    of_sizes = [
        Trace(
            *(run[name].to_numpy(float) for name in (axis, "value")),
            line=False,
            points=True,
            shade=float(ramp.shades(run["params"].to_numpy(float)[:1])[0]),
        )
        for _, run in main.groupby("run", sort=False)
    ]
    grey = Trace(main[axis].to_numpy(float), main["value"].to_numpy(float), "five sizes", 7, line=False, points=True)
    of_variants = [
        Trace(
            *(rows[name].to_numpy(float) for name in (axis, "value")),
            variant.replace("-", " "),
            number,
            line=False,
            points=True,
            marker=MARKERS[number % 3],
        )
        for number, (variant, rows) in enumerate(others.groupby("variant", sort=False))
    ]
    labels = ("loss on iid text (bits per byte)", "log-likelihood of the right answer (nats)")
    return [
        Figure("True continuations, five sizes", *labels, tuple(of_sizes), x_falling=True, ramp=ramp),
        Figure("... and one size made otherwise", *labels, (grey, *of_variants), x_falling=True),
    ]


def sizes(losses: pd.DataFrame) -> list[Figure]:
    """The last loss by size with the power law through it, and the stable runs with their decays at one seed."""
    main = losses[losses["variant"] == ""]
    stable = main[(main["schedule"] == "stable") & (main["split"] == "iid")]
    last = stable[stable["tokens"] == stable["tokens"].max()]
    x, y = last["params"].to_numpy(float), last["loss"].to_numpy(float)
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    along = np.geomspace(x.min(), x.max(), 30)
    points = Trace(x, y, "two seeds a size", 0, line=False, points=True)
    line = Trace(along, np.exp(intercept + slope * np.log(along)), f"power {slope:.3f}", 1, dashed=True)
    ramp, runs = ramp_of(main["params"]), []
    for (schedule, _), run in main[(main["split"] == "iid") & (main["seed"] == 1) & (main["tokens"] >= FROM)].groupby(
        ["schedule", "run"], sort=False
    ):
        shade = float(ramp.shades(run["params"].to_numpy(float)[:1])[0])
        run = run.sort_values("tokens")
        runs.append(
            Trace(run["tokens"].to_numpy(float), run["loss"].to_numpy(float), shade=shade, dashed=schedule == "decay")
        )
    unit = "loss on iid text (nats)"
    return [
        Figure("The last loss by size", "parameters", unit, (points, line), x_log=True, y_log=True),
        Figure("Constant rates, and decays (dashed)", "tokens", unit, tuple(runs), x_log=True, ramp=ramp),
    ]


def law_parameters(laws: pd.DataFrame) -> list[Figure]:
    """a0, a1 where they are known one by one, and a2, of the stable runs on the iid text."""
    main = laws.query("variant == '' and schedule == 'stable' and split == 'iid'")
    ramp, figures = ramp_of(main["params"]), []
    for name, title in (("a0", "a0 (nats)"), ("a1", "a1 (per position)"), ("a2", "a2 (nats)")):
        known = main if name == "a2" else main[main["status"] == "ok"]
        traces = []
        for _, run in known.groupby("run", sort=False):
            run = run.sort_values("tokens")
            at, value, error = (run[column].to_numpy(float) for column in ("tokens", name, f"{name}_se"))
            shade = float(ramp.shades(run["params"].to_numpy(float)[:1])[0])
            traces.append(Trace(at, value, shade=shade, points=True, low=value - error, high=value + error, bars=True))
        figures.append(Figure(title, "tokens", title, tuple(traces), x_log=True, ramp=ramp if name == "a2" else None))
    return figures
