"""The three sources' claims in miniature, on the runs of configs/ladders/story.yaml: `make story`.

    python benchmarks/studies/story.py --runs runs/story        # tables from the runs, then the numbers
    python benchmarks/studies/story.py                          # the numbers again, from the committed tables

Five sizes, two budgets, rates that decay or not, two seeds; at one size another optimizer, other shapes, another mixture and
another tokenizer. Tables go to benchmarks/results/story/ (losses, evaluations; story_laws.py writes the position
laws first), what they say of each claim to story.json beside them, the figures to docs/images. Runs that are not finished are
left out, and named.
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
import story_figures as figures  # noqa: E402
import story_measures as measures  # noqa: E402
from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence import analyze_emergence  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.files import write_json  # noqa: E402
from emergence_train.ladder.file import Row, read  # noqa: E402
from emergence_train.ladder.progress import done  # noqa: E402
from emergence_train.recorder import tables  # noqa: E402

LADDER = ROOT / "configs" / "ladders" / "story.yaml"
PLACE = ROOT / "benchmarks" / "results" / "story"
IMAGES = ROOT / "docs" / "images"
SPLITS = ("iid", "ood")
DIGITS = 5  # of losses and parameters in the committed tables


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


def losses_of(run: Path) -> pd.DataFrame:
    """Its losses at every checkpoint on the two held-out texts."""
    positions = tables.read(tables.POSITIONS, run)
    losses = tables.mean_loss(positions[positions["split"].isin(SPLITS)])
    return losses[["run", "params", "step", "tokens", "split", "loss"]]


def evaluated(run: Path) -> pd.DataFrame:
    """Its task results, with the bits per byte of the ood text at the same checkpoints."""
    frame = tables.read(tables.EVALUATIONS, run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ood = {line["step"]: line["bits_per_byte"]["ood"] for line in lines if "ood" in line.get("bits_per_byte", {})}
    return frame.assign(ood_bits_per_byte=frame["step"].map(ood))


def write_tables(runs: Path, rows: list[Row]) -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    losses = pd.concat([losses_of(runs / row.run).assign(**about(row)) for row in rows])
    evaluations = pd.concat([evaluated(runs / row.run) for row in rows])
    kept = [*tables.EVALUATIONS.columns, "bits_per_byte", "ood_bits_per_byte", "vocabulary"]
    for name, frame in (
        ("losses", losses),
        ("evaluations", evaluations[[column for column in kept if column in evaluations]]),
    ):
        frame.round(DIGITS).to_csv(PLACE / f"{name}.csv", index=False)


def read_tables() -> dict[str, pd.DataFrame]:
    """The committed tables by their names; each row says of which run it is."""
    frames = {
        name: pd.read_csv(PLACE / f"{name}.csv", keep_default_na=False, na_values=[""], dtype={"variant": object})
        for name in ("losses", "laws", "evaluations")
    }
    for name in ("losses", "laws"):
        frames[name]["variant"] = frames[name]["variant"].fillna("")
    named = frames["losses"].drop_duplicates("run").set_index("run")[["size", "variant", "seed", "schedule"]]
    frames["evaluations"] = frames["evaluations"].join(named, on="run")
    return frames


def numbers(losses: pd.DataFrame, laws: pd.DataFrame, evaluations: pd.DataFrame) -> dict:
    """What the tables say of each claim."""
    main = laws[(laws["variant"] == "") & (laws["schedule"] == "stable")]
    return {
        "runs": losses["run"].nunique(),
        "position_law": measures.identified(main),
        "converged": measures.converged(main),
        "decay": measures.decays(losses[losses["variant"] == ""]),
        "decay_of_law": measures.decay_of_law(laws[(laws["variant"] == "") & (laws["split"] == "iid")]),
        "size_law": measures.size_law(losses),
        "returns": measures.returns(losses),
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
        sessions = [
            session
            for row in rows
            for session in json.loads((arguments.runs / row.run / "environment.json").read_text())["sessions"]
        ]
        trained = {key: sessions[0][key] for key in ("device", "cpu_threads", "versions")}
        trained |= {"commits": sorted({session["commit"] for session in sessions}), "not_finished": left}
        write_json(PLACE / "trained_on.json", trained)
    else:
        trained = json.loads((PLACE / "trained_on.json").read_text())
    frames = read_tables()
    result = {"trained_on": trained, **numbers(**frames)}
    write_result(PLACE / "story.json", "python benchmarks/studies/story.py", result)
    figures.draw(*(frames[name] for name in ("losses", "laws", "evaluations")), IMAGES)


if __name__ == "__main__":
    main()
