"""The three sources' claims in miniature, on the runs of configs/ladders/story.yaml: `make story`.

    python benchmarks/studies/story.py --runs runs/story        # tables from the runs, then the numbers
    python benchmarks/studies/story.py                          # the numbers again, from the committed tables

Five sizes, two budgets, rates that decay or not, two seeds; at one size another optimizer and other shapes. Tables go to
benchmarks/results/story/ (losses, position laws, forecasts, evaluations), what they say of each claim to story.json beside them.
Runs that are not finished are left out, and named.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import pandas as pd  # noqa: E402
import story_measures as measures  # noqa: E402
from temporal_coverage import provenance  # noqa: E402

from emergence_train.analysis import temporal  # noqa: E402
from emergence_train.analysis.emergence import analyze_emergence  # noqa: E402
from emergence_train.analysis.position_matrix import position_matrices  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.analysis.temporal.mean_law import CLASSICAL  # noqa: E402
from emergence_train.analysis.temporal.position_law import fit_matrix  # noqa: E402
from emergence_train.files import write_json  # noqa: E402
from emergence_train.ladder.file import Row, read  # noqa: E402
from emergence_train.ladder.progress import done  # noqa: E402
from emergence_train.recorder import tables  # noqa: E402

LADDER = ROOT / "configs" / "ladders" / "story.yaml"
PLACE = ROOT / "benchmarks" / "results" / "story"
SPLITS = ("iid", "ood")
FRACTION = 0.4
DIGITS = 5  # of losses and parameters in the committed tables
LAW = ("a0", "a0_se", "a1", "a1_se", "a1_low", "a1_high", "a2", "a2_se", "r2", "bin_max", "status")


def about(row: Row) -> dict:
    """Size, what differs from that size's own shape, seed and schedule."""
    size, _, variant = row.size.partition("-")
    return {"size": size, "variant": variant, "seed": row.seed, "schedule": row.schedule}


def finished(runs: Path) -> tuple[list[Row], list[str]]:
    """The ladder's rows whose runs in `runs` are done, and the names of the others."""
    ladder = read(LADDER)
    ladder = replace(ladder, file=ladder.file.model_copy(update={"out": str(runs)}))
    rows = [row for row in ladder.rows if done(ladder, row)]
    return rows, [row.run for row in ladder.rows if row not in rows]


def from_run(run: Path, named: dict) -> tuple[pd.DataFrame, pd.DataFrame, list[dict]]:
    """Losses, position laws and forecasts of one run that is `about` its row."""
    positions = tables.read(tables.POSITIONS, run)
    positions = positions[positions["split"].isin(SPLITS)]
    losses = tables.mean_loss(positions)[["run", "params", "step", "tokens", "split", "loss"]].assign(**named)
    laws = pd.concat([fit_matrix(matrix) for matrix in position_matrices(positions)])
    laws = laws[["run", "params", "step", "tokens", "split", *LAW]].assign(**named)
    return losses, laws, forecasts(run, named) if named["schedule"] == "stable" else []


def forecasts(run: Path, named: dict) -> list[dict]:
    """From the first 40%: the error of the selected law and of the best classical one, and whether the end was held."""
    rows = []
    for result in temporal.analyze_temporal(run, fit_fraction=FRACTION, splits=SPLITS).runs:
        errors = {model.name: model.mse_smooth for model in result.models}
        held = result.positions.held_out if result.positions is not None else None
        rows.append(
            {"run": run.name, **named, "split": result.split, "selected": errors[result.selected]}
            | {"classical": min(errors[name] for name in CLASSICAL), "forecast": result.final.loss}
            | {"low95": result.final.low95, "high95": result.final.high95, "actual": result.final.actual}
            | {"positions_within95": held.coverage.within95 if held is not None else None}
        )
    return rows


def write_tables(runs: Path, rows: list[Row]) -> None:
    parts = [from_run(runs / row.run, about(row)) for row in rows]
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, frame in (
        ("losses", pd.concat([part[0] for part in parts])),
        ("laws", pd.concat([part[1] for part in parts])),
        ("forecasts", pd.DataFrame([row for part in parts for row in part[2]])),
    ):
        frame.round(DIGITS).to_csv(PLACE / f"{name}.csv", index=False)
    evaluations = tables.read(tables.EVALUATIONS, [runs / row.run for row in rows])
    columns = [name for name in (*tables.EVALUATIONS.columns, "vocabulary") if name in evaluations]
    evaluations[columns].round(DIGITS).to_csv(PLACE / "evaluations.csv", index=False)


def numbers() -> dict:
    """What the tables say of each claim."""
    frames = {
        name: pd.read_csv(PLACE / f"{name}.csv", keep_default_na=False, na_values=[""])
        for name in ("losses", "laws", "forecasts")
    }
    for frame in frames.values():
        frame["variant"] = frame["variant"].fillna("")
    losses, laws = frames["losses"], frames["laws"]
    main = laws[(laws["variant"] == "") & (laws["schedule"] == "stable")]
    ahead = frames["forecasts"]
    ahead = ahead.assign(
        quotient=ahead["selected"] / ahead["classical"], inside=ahead["actual"].between(ahead["low95"], ahead["high95"])
    )
    named = losses.drop_duplicates("run").set_index("run")[["size", "variant", "seed", "schedule"]]
    evaluations = pd.read_csv(PLACE / "evaluations.csv").join(named, on="run").fillna({"variant": ""})
    return {
        "runs": len(named),
        "position_law": measures.identified(main),
        "converged": measures.converged(main),
        "decay": measures.decays(losses[losses["variant"] == ""]),
        "forecasts": {
            split: {
                "forecasts": len(of),
                "median_quotient": round(float(of["quotient"].median()), 3),
                "better": round(float((of["quotient"] < 1).mean()), 3),
                "ends_inside95": round(float(of["inside"].mean()), 3),
                "positions_within95": round(float(of["positions_within95"].mean()), 3),
            }
            for split, of in ahead.groupby("split")
        },
        "size_law": measures.size_law(losses),
        "variants": measures.variants(evaluations),
        "emergence": of_sizes(evaluations),
    }


def of_sizes(evaluations: pd.DataFrame) -> list[dict]:
    """Verdict, threshold and size effect of each task over the main sizes."""
    part = PLACE / "main.csv"
    evaluations[evaluations["variant"] == ""].drop(columns=["size", "variant", "seed", "schedule"]).to_csv(
        part, index=False
    )
    try:
        tasks = as_json(analyze_emergence(part))["tasks"]
    finally:
        part.unlink()
    kept = ("task", "metric", "verdict", "probability", "reason", "eta", "size_effect", "collapse", "rows")
    return [{name: task[name] for name in kept} for task in tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, help="directory of the ladder's runs; without it the committed tables are read"
    )
    arguments = parser.parse_args()
    trained: dict = {}
    if arguments.runs is not None:
        rows, left = finished(arguments.runs)
        if not rows:
            raise SystemExit(
                f"{arguments.runs}: no run of the ladder is finished; run `emergence-train ladder {LADDER}` first"
            )
        write_tables(arguments.runs, rows)
        environment = json.loads((arguments.runs / rows[0].run / "environment.json").read_text())["sessions"][-1]
        trained = {key: environment[key] for key in ("device", "cpu_threads", "commit", "versions")} | {
            "not_finished": left
        }
        write_json(PLACE / "trained_on.json", trained)
    else:
        trained = json.loads((PLACE / "trained_on.json").read_text())
    write_json(
        PLACE / "story.json", {**provenance("python benchmarks/studies/story.py"), "trained_on": trained, **numbers()}
    )


if __name__ == "__main__":
    main()
