"""The story's figures, from its committed tables; story.py draws them into docs/images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from story_measures import OTHER_DATA, last_stable

from emergence_train.analysis.drawing import save
from emergence_train.analysis.figures import Figure, Ramp, Trace

TASK, METRIC, SKILL = "continuation", "answer_loglik", "latest"
FROM = 30_000  # tokens: an untrained model's losses would compress the rest of the axis
MARKERS = ("square", "triangle", "cross")


def draw(losses: pd.DataFrame, laws: pd.DataFrame, evaluations: pd.DataFrame, out: Path) -> None:
    """story-curves.svg, story-sizes.svg and story-laws.svg in `out`."""
    save(curves(evaluations), out, "story-curves", columns=3, size=(11.5, 3.6), suffixes=(".svg",))
    save(sizes(losses), out, "story-sizes", columns=2, size=(9.2, 3.4), suffixes=(".svg",))
    save(law_parameters(laws), out, "story-laws", columns=3, size=(9.2, 3.2), suffixes=(".svg",))


def ramp_of(params: pd.Series) -> Ramp:
    return Ramp("parameters", float(params.min()), float(params.max()))


def shade_of(run: pd.DataFrame, ramp: Ramp) -> float:
    """By the size of the run whose rows these are."""
    return float(ramp.shades(run["params"].to_numpy(float)[:1])[0])


def curves(evaluations: pd.DataFrame) -> list[Figure]:
    """Performance against the loss: the sizes, one size's other shapes over them, and those on the planted skill. Runs on other
    data answer other continuations and have another iid text, so they are left out."""
    kept = evaluations.query("tokens >= @FROM and schedule == 'stable'")
    kept = kept[~kept["variant"].isin(OTHER_DATA)]
    chosen = kept.query("task == @TASK and metric == @METRIC and step % 64 == 0")  # every second: points overlap
    ramp = ramp_of(chosen["params"])
    of_sizes = [
        replace(_points(run), shade=shade_of(run, ramp))
        for _, run in chosen[chosen["variant"] == ""].groupby("run", sort=False)
    ]
    skill = kept.query("task == @SKILL and metric == 'acc'")
    labels = ("loss on iid text (bits per byte)", "log-likelihood of the right answer (nats)")
    return [
        Figure("True continuations, five sizes", *labels, tuple(of_sizes), x_falling=True, ramp=ramp),
        Figure("... and one size made otherwise", *labels, _by_variant(chosen), x_falling=True),
        Figure("The planted skill", labels[0], "accuracy (chance 0.25)", _by_variant(skill), x_falling=True),
    ]


def _by_variant(rows: pd.DataFrame) -> tuple[Trace, ...]:
    """All sizes grey, and each variant in a colour and a marker of its own."""
    main, others = rows[rows["variant"] == ""], rows[rows["variant"] != ""]
    return (
        replace(_points(main), label="five sizes", colour=7),
        *(
            replace(_points(of), label=variant.replace("-", " "), colour=number, marker=MARKERS[number % 3])
            for number, (variant, of) in enumerate(others.groupby("variant", sort=False))
        ),
    )


def _points(rows: pd.DataFrame) -> Trace:
    return Trace(rows["bits_per_byte"].to_numpy(float), rows["value"].to_numpy(float), line=False, points=True)


def sizes(losses: pd.DataFrame) -> list[Figure]:
    """The last loss by size with the power law through it, and the stable runs with their decays at one seed."""
    main = losses[losses["variant"] == ""]
    last = last_stable(losses)
    x, y = last["params"].to_numpy(float), last["loss"].to_numpy(float)
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    along = np.geomspace(x.min(), x.max(), 30)
    points = Trace(x, y, "two seeds a size", 0, line=False, points=True)
    line = Trace(along, np.exp(intercept + slope * np.log(along)), f"power {slope:.3f}", 1, dashed=True)
    ramp, runs = ramp_of(main["params"]), []
    for (schedule, _), run in main[(main["split"] == "iid") & (main["seed"] == 1) & (main["tokens"] >= FROM)].groupby(
        ["schedule", "run"], sort=False
    ):
        along_tokens = (run.sort_values("tokens")[name].to_numpy(float) for name in ("tokens", "loss"))
        runs.append(Trace(*along_tokens, shade=shade_of(run, ramp), dashed=schedule == "decay"))
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
            shade = shade_of(run, ramp)
            traces.append(Trace(at, value, shade=shade, points=True, low=value - error, high=value + error, bars=True))
        figures.append(
            Figure(title, "tokens", title, tuple(traces), x_log=name == "a2", ramp=ramp if name == "a2" else None)
        )
    return figures
