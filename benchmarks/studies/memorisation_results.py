"""What the committed table of memorisation_sizes.py says: shares by size and repetitions, their trend, counterfactuals, a figure.

    python benchmarks/studies/memorisation_results.py

Every number has its interval over the seeds (Student's t): the pieces of one run share its luck. Reads
benchmarks/results/memorisation_sizes.csv; writes memorisation_sizes.json beside it, and docs/images/memorisation-sizes.svg.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from commands import origin  # noqa: E402
from intervals import equal, student  # noqa: E402
from scipy import stats  # noqa: E402

from emergence_train.analysis.drawing import save  # noqa: E402
from emergence_train.analysis.figures import Figure, Trace  # noqa: E402
from emergence_train.analysis.memorisation import counterfactual  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.files import write_json  # noqa: E402

TABLE = ROOT / "benchmarks" / "results" / "memorisation_sizes.csv"
RESULT = TABLE.with_suffix(".json")
IMAGES = ROOT / "docs" / "images"
KEYS = ["params", "passes", "times"]


def shares(table: pd.DataFrame) -> list[dict]:
    """Of pieces that a run was trained on, the share produced exactly, by size, passes and times a pass; and of its controls."""
    rows = []
    for key, group in table.groupby(KEYS):
        inside = group["seen"] > 0
        parts, controls = [group[inside], group[~inside]], group[~inside]
        if not inside.any():
            continue
        by_seed = [part.groupby("seed")["extracted"].mean() for part in parts]
        losses = [mean_of(part["loss"]) for part in parts]
        rows.append(
            dict(zip(KEYS, map(int, key)))
            | {"seen": round(float(parts[0]["seen"].mean()), 1), "items": len(parts[0]), "controls": len(parts[1])}
            | {
                "extracted": student(by_seed[0].to_numpy(), 0, 1),
                "of_controls": round(float(by_seed[1].mean()), 4) if len(controls) else None,
            }
            | {"loss": losses[0], "loss_of_controls": losses[1]}
        )
    return rows


def mean_of(values: pd.Series) -> float | None:
    """Rounded; None of none."""
    return round(float(values.mean()), 4) if len(values) else None


def of_100(last: pd.DataFrame) -> pd.DataFrame:
    """(sizes, seeds) of 100 trained pieces so many are extracted beyond what controls give."""
    trained, controls = (
        part.pivot_table("extracted", "params", "seed") for part in (last[last["seen"] > 0], last[last["seen"] == 0])
    )
    return 100 * (trained - controls)


def trend(by_size: pd.DataFrame) -> dict:
    """The change for ten times the parameters: a straight line in log10(parameters) for each seed, and their mean.

    No p of one seed, or of seeds that are equal, as no interval."""
    size = np.log10(by_size.index.to_numpy(float))
    slopes = np.array([np.polyfit(size, by_size[seed], 1)[0] for seed in by_size])
    p = None if equal(slopes) else float(stats.ttest_1samp(slopes, 0.0).pvalue)
    return student(slopes) | {"p": p, "by_seed": [round(float(x), 2) for x in slopes]}


def half(last: pd.DataFrame) -> dict:
    """How often a piece is to be seen until half are extracted: by size, where the share first crosses a half.

    Log-linear between levels. A seed in which no level reaches a half, or every one does, has none; a size needs all of its
    seeds.
    """
    out = {}
    for params, group in last[last["seen"] > 0].groupby("params"):
        crossings = []
        for _, run in group.groupby("seed"):
            levels = run.groupby("times").agg(seen=("seen", "mean"), share=("extracted", "mean"))
            above = np.flatnonzero(levels["share"] >= 0.5)
            if len(above) and above[0] > 0:
                (x0, y0), (x1, y1) = levels.iloc[above[0] - 1], levels.iloc[above[0]]
                crossings.append(np.log10(x0) + (0.5 - y0) / (y1 - y0) * np.log10(x1 / x0))
        power = student(np.array(crossings)) if len(crossings) == group["seed"].nunique() else None
        out[str(params)] = power and {name: None if x is None else round(10**x, 1) for name, x in power.items()}
    return out


def measured(table: pd.DataFrame) -> dict:
    """All numbers of the result."""
    last = table[table["passes"] == table["passes"].max()]
    by_size = of_100(last)
    runs = table.assign(run=table["size"] + "-" + table["seed"].astype(str), extracted=table["extracted"] > 0)
    final = counterfactual(runs[runs["passes"] == runs["passes"].max()])
    return {
        "of_100": [
            {"params": int(params), **student(row.to_numpy()), "by_seed": [round(float(x), 1) for x in row]}
            for params, row in by_size.iterrows()
        ],
        "trend_of_100": trend(by_size),
        "largest_less_smallest": student((by_size.iloc[-1] - by_size.iloc[0]).to_numpy()),
        "seen_for_half": half(last),
        "trend_by_times": {
            str(times): trend(of_100(group)) for times, group in last.groupby("times") if group["extracted"].any()
        },
        "counterfactual": [rounded(as_json(row)) for row in final],
        "controls_extracted": int(table[table["seen"] == 0]["extracted"].sum()),
        "controls": int((table["seen"] == 0).sum()),
        "shares": shares(table),
    }


def rounded(value):
    """Floats to four decimals, in nested dictionaries."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def figures(result: dict) -> list[Figure]:
    """The share extracted, and the counterfactual gain, against how often a piece was seen, a colour for each size."""
    sizes = [row["params"] for row in result["of_100"]]
    most = max(row["passes"] for row in result["shares"])
    panels: list[list[Trace]] = [[], []]
    for number, params in enumerate(sizes):
        rows = [row for row in result["shares"] if (row["params"], row["passes"]) == (params, most)]
        gains = [row for row in result["counterfactual"] if row["params"] == params and row["seen"] != "all"]
        for panel, x, values in (
            (0, [row["seen"] for row in rows], [row["extracted"] for row in rows]),
            (1, [row["times"] for row in gains], [row["nats"] for row in gains]),
        ):
            mean = np.array([value["value"] for value in values])
            ends = [
                np.array([v["value"] if v[end] is None else v[end] for v in values], float)
                for end in ("low95", "high95")
            ]
            at, label = np.array(x) * 1.03**number, f"{params / 1e6:.2f}M" if panel == 0 else ""
            panels[panel] += [
                Trace(at, mean, label, number, points=True),
                Trace(at, mean, "", number, line=False, low=ends[0], high=ends[1], bars=True),
            ]
    return [
        Figure("Pieces produced exactly", "times trained on", "share", tuple(panels[0]), x_log=True),
        Figure(
            "Loss without less loss with the piece", "times trained on", "nats per token", tuple(panels[1]), x_log=True
        ),
    ]


def write(about: dict | None = None) -> None:
    """Result and figure; `about` is what only the study itself knows, kept from the last result where it is None."""
    result = measured(pd.read_csv(TABLE))
    if about is None:
        stored = json.loads(RESULT.read_text())
        about = {name: stored[name] for name in stored if name not in result}
    else:
        command = "python benchmarks/studies/memorisation_sizes.py --work DIR"
        about = origin(command) | {"about": about}
    write_json(RESULT, about | result)
    save(figures(result), IMAGES, "memorisation-sizes", columns=2, size=(9.2, 3.4), suffixes=(".svg",))


if __name__ == "__main__":
    write()
