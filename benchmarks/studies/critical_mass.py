"""How much of a planted skill must be in the mixture before a model of some size learns it, and what tells whether it has?

    python benchmarks/studies/critical_mass.py --seeds 21 22 --work DIR

Trains the quickstart's configuration with other weights of the planted domain (`latest`), two sizes and fresh seeds, at equal
tokens; a run has learnt the skill where its accuracy on unseen instances is at least 0.6 at the end (chance is 0.25). For each
size the least share of the mixture at which half of the runs have, by the estimator of the critical share of data
(analysis/grokking/critical.py, in the logarithm of the share). Then two explanations beside each other, over all checkpoints of
all runs: does the iid loss tell whether the skill is there, or the tokens of it that were seen? And what the runs have
memorised of it: exercises written exactly from their beginning, and their loss against exercises never seen.

Resumable: what is finished is not trained again. Writes benchmarks/results/critical_mass.json.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from commands import command, write_result  # noqa: E402
from scipy import stats  # noqa: E402

from emergence_train.analysis.grokking.critical import Group, Interval, fit, trend  # noqa: E402
from emergence_train.config import load_run  # noqa: E402
from emergence_train.recorder.tables import EVALUATIONS, read  # noqa: E402

CONFIG = str(ROOT / "configs" / "quickstart.yaml")
SIZES = ("0.1m", "0.4m")
WEIGHTS = (0.1, 0.2, 0.4, 0.7, 1.4)  # beside six domains of weight 1; 1.4 is the quickstart's
PLANTED, PLANTED_SOURCE, OTHERS = "latest", 6, 6
ABLE = 0.6
RESULT = ROOT / "benchmarks" / "results" / "critical_mass.json"


def share(weight: float) -> float:
    """Of all training tokens, those of the planted domain."""
    return weight / (OTHERS + weight)


def train(work: Path, size: str, weight: float, seed: int) -> Path:
    """A finished run of this size, weight and seed, with its memorised share beside it."""
    name = f"{size}-{weight:g}-{seed}"
    run, done = work / "runs" / name, work / f"{name}.memorised"
    if not done.is_dir():
        words = [f"name={name}", f"model.preset=shallow-{size}", f"data.sources.{PLANTED_SOURCE}.weight={weight}"]
        words += [f"seed={seed}", f"tasks=[{{task: {PLANTED}, items: 100, seed: {seed}}}]"]
        command(work, "train", CONFIG, *words)
        words = ["--prefix", "24", "--continuation", "12", "--items", "200"]
        command(work, "memorise", f"runs/{name}", *words, "--out", f"{name}.memorised")
    return run


def checkpoints(run: Path, size: str, weight: float, seed: int) -> pd.DataFrame:
    """A row a checkpoint: iid loss, tokens of the skill so far, accuracy on unseen instances."""
    frame = read(EVALUATIONS, run).query("task == @PLANTED and metric == 'acc'").sort_values("step")
    return pd.DataFrame(
        {
            "size": size,
            "params": load_run(run).model.non_embedding_parameters(),
            "share": share(weight),
            "seed": seed,
            "tokens": frame["tokens"],
            "skill_tokens": share(weight) * frame["tokens"],
            "loss": frame["loss"],
            "accuracy": frame["value"],
        }
    )


def memorised(work: Path, run: Path) -> dict:
    """The probe at the last checkpoint, over all domains: controls have none of the training text."""
    (row,) = json.loads((work / f"{run.name}.memorised" / "result.json").read_text())["runs"]
    return {name: row[name] for name in sorted(row) if name not in ("run", "params", "step")}


def told_by(rows: pd.DataFrame, name: str) -> dict:
    """How well one number, in one order for all runs, tells the checkpoints that have the skill from those that have not.

    The chance that of two checkpoints of different runs, one with the skill, the number is on the right side (the area under the
    ROC curve); pairs within a run are left out, since within a run everything changes with time. The side is the better one
    of the two, so what tells nothing is at a half or a little above. None where no two runs differ.
    """
    able = rows["accuracy"].to_numpy() >= ABLE
    value, run = rows[name].to_numpy(), rows.groupby(["size", "share", "seed"]).ngroup().to_numpy()
    apart = run[able][:, None] != run[~able][None, :]
    if not apart.any():
        return {"area": None, "sign": None, "pairs": 0}
    greater = value[able][:, None] - value[~able][None, :]
    area = float(((greater > 0) + 0.5 * (greater == 0))[apart].mean())
    return {"area": round(max(area, 1 - area), 4), "sign": 1 if area > 0.5 else -1, "pairs": int(apart.sum())}


def at_equal_loss(last: pd.DataFrame) -> dict:
    """Spearman correlation of accuracy with the share, among the last checkpoints of each size, whose losses are alike;
    None where one of the two is the same in all."""
    out = {}
    for size, of_size in last.groupby("size"):
        varied = of_size["share"].nunique() > 1 and of_size["accuracy"].nunique() > 1
        rank = stats.spearmanr(of_size["share"], of_size["accuracy"]) if varied else None
        out[str(size)] = {
            "runs": len(of_size),
            "loss_range": [round(float(x), 4) for x in (of_size["loss"].min(), of_size["loss"].max())],
            "spearman": None if rank is None else round(float(rank.statistic), 3),
            "p": None if rank is None else float(rank.pvalue),
        }
    return out


def back(interval: Interval) -> dict:
    return {
        name: None if getattr(interval, name) is None else round(float(10 ** getattr(interval, name)), 4)
        for name in ("value", "low95", "high95")
    }


def critical(last: pd.DataFrame) -> tuple[list[dict], dict]:
    """The share of each size at which half of the runs learn the skill (of the mixture, or a number of instances), and its trend
    with size: the factor for ten times the parameters."""
    groups = [
        Group(np.log10(of_size["share"].to_numpy()), of_size["accuracy"].to_numpy() >= ABLE, int(params))
        for params, of_size in last.groupby("params")
    ]
    fitted = fit(groups)
    shares = [
        {"params": group.params, "runs": len(group.fractions), "learnt": int(group.generalised.sum())}
        | back(fitted.critical(number))
        for number, group in enumerate(groups)
    ]
    change = trend(fitted)
    return shares, {"factor_for_ten_times": back(change.slope), "p": change.p, "sizes": change.sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22])
    parser.add_argument("--work", type=Path, required=True, help="directory for data and runs")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    command(work, "prepare", CONFIG)
    tables, runs = [], []
    for seed in arguments.seeds:
        for weight in WEIGHTS:
            for size in SIZES:
                run = train(work, size, weight, seed)
                rows = checkpoints(run, size, weight, seed)
                tables.append(rows)
                runs.append(
                    {
                        "size": size,
                        "share": round(share(weight), 4),
                        "seed": seed,
                        "loss": round(float(rows["loss"].iloc[-1]), 4),
                        "accuracy": float(rows["accuracy"].iloc[-1]),
                        "by_checkpoint": [
                            [int(t), round(l, 4), a] for t, l, a in rows[["tokens", "loss", "accuracy"]].to_numpy()
                        ],
                        "memorised": memorised(work, run),
                    }
                )
                print(f"{run.name}: loss {runs[-1]['loss']:.3f}, accuracy {runs[-1]['accuracy']:.2f}", flush=True)
    rows = pd.concat(tables)
    last = rows.sort_values("tokens").groupby(["size", "share", "seed"]).tail(1)
    shares, change = critical(last)
    seeds = " ".join(map(str, arguments.seeds))
    result = {
        "able": ABLE,
        "critical_share": shares,
        "trend": change,
        "told_by": {name: told_by(rows, name) for name in ("loss", "skill_tokens", "tokens")},
        "at_the_end": at_equal_loss(last),
        "runs": runs,
    }
    write_result(RESULT, f"python benchmarks/studies/critical_mass.py --seeds {seeds} --work DIR", result)


if __name__ == "__main__":
    main()
