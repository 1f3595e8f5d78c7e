"""A skill from few instances repeated or many seen once: does the number of instances decide, what is memorised, or the loss?

    python benchmarks/studies/critical_instances.py --sizes 0.1m --seeds 31 32 --also 0.4m:31:1,2,4,8,32,900 --work DIR

The quickstart's configuration for TOKENS tokens, its planted skill (`latest`) at 18.9% of them as a file of LINES lines, of which
1 to 900 are distinct and the rest repeats in random order: equal skill tokens, equal other text, other variety. Each run is
scored on instances that no text contains, and the probe of `memorise --texts` asks which of its own lines it writes from their
beginning, against lines that no text contains. A line's letters cannot be known from its beginning, so a line that is written
exactly is remembered, whether the skill is there or not.

Resumable. Writes benchmarks/results/critical_instances.json.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import pandas as pd  # noqa: E402
import yaml  # noqa: E402
from commands import command, write_result  # noqa: E402
from critical_mass import ABLE, critical, told_by  # noqa: E402
from line_steps import composition  # noqa: E402

from emergence_train.config import load_run  # noqa: E402
from emergence_train.data import planted  # noqa: E402
from emergence_train.evaluation.memorisation import Probe, probe_run  # noqa: E402
from emergence_train.parallel import ranks  # noqa: E402
from emergence_train.recorder.tables import EVALUATIONS, read  # noqa: E402

SKILL = "latest"
DISTINCT = (1, 2, 4, 8, 32, 128, 384, 900)
FEW = 8  # below it: added once 8 had turned out to be enough, as data of their own with the tokenizer of the others
LINES = 900  # of a file: what a run sees of it, once
WEIGHT, OTHERS = 1.4, 6.0
TOKENS = 262_144
PROBE = Probe(prefix=24, continuation=12)
ASKED, CONTROLS = 100, 100
RESULT = ROOT / "benchmarks" / "results" / "critical_instances.json"


def lines(seed: int) -> tuple[list[str], list[planted.Exercise]]:
    """(LINES distinct training lines, CONTROLS exercises that are in no text)."""
    draw = random.Random(f"instances/{seed}")
    written: dict[str, planted.Exercise] = {}
    held_out: dict[str, planted.Exercise] = {}
    while len(written) < LINES or len(held_out) < CONTROLS:
        exercise = planted.SKILLS[SKILL](draw)
        (held_out if exercise.held_out else written)[exercise.text()] = exercise
    return list(written)[:LINES], list(held_out.values())[:CONTROLS]


def documents(distinct: int, seed: int) -> list[str]:
    """LINES lines, the first `distinct` of a seed in rounds of random order, planted.LINES a document."""
    chosen, draw = lines(seed)[0][:distinct], random.Random(f"rounds/{distinct}/{seed}")
    rows: list[str] = []
    while len(rows) < LINES:
        rows += draw.sample(chosen, distinct)
    step = planted.LINES
    return ["".join(row + "\n" for row in rows[k : k + step]) for k in range(0, LINES, step)]


def domain(distinct: int, seed: int) -> str:
    return f"of{distinct}-{seed}"


def prepare(work: Path, seeds: list[int]) -> None:
    """Two data sets with a domain for each number of instances and seed; a run gives one of them a weight."""
    for name, chosen in (("data", DISTINCT[DISTINCT.index(FEW) :]), ("few", DISTINCT[: DISTINCT.index(FEW)])):
        tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
        kept = [source for source in tree["data"]["sources"] if "planted" not in source]
        for seed in seeds:
            for distinct in chosen:
                file = work / f"{domain(distinct, seed)}.jsonl"
                file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(distinct, seed)))
                source = {"domain": domain(distinct, seed), "files": [file.name]}
                kept.append(source | {"in_iid": False, "own_sequences": 0})
        tree["data"] |= {"path": name, "sources": kept}
        if name == "few":
            tree["data"]["tokenizer"] = {"file": "data/tokenizer.json"}
        tree["training"]["tokens"] = TOKENS
        tree["checkpoints"] = {"every_tokens": TOKENS // 8, "save_state": "every"}
        (work / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        command(work, "prepare", f"{name}.yaml")


def train(work: Path, size: str, distinct: int, seed: int) -> Path:
    """A finished run of this size, number of instances and seed."""
    name = f"{size}-{domain(distinct, seed)}"
    done = work / f"{name}.trained"
    if not done.is_file():
        config = "few.yaml" if distinct < FEW else "data.yaml"
        sources = yaml.safe_load((work / config).read_text())["data"]["sources"]
        words = [f"name={name}", f"model.preset=shallow-{size}", f"seed={seed}", "training.threads=1"]
        words += [f"tasks=[{{task: {SKILL}, items: 100, seed: {seed}}}]"]
        for number, source in enumerate(sources):
            if source["domain"].startswith("of"):
                words.append(f"data.sources.{number}.weight={WEIGHT * (source['domain'] == domain(distinct, seed))}")
        done.write_text(json.dumps({"cpu_seconds": command(work, "train", config, *words)}))
    return work / "runs" / name


def checkpoints(run: Path, size: str, distinct: int, seed: int) -> pd.DataFrame:
    """A row a checkpoint: iid loss and accuracy on unseen instances."""
    frame = read(EVALUATIONS, run).query("task == @SKILL and metric == 'acc'").sort_values("step")
    about = {"size": size, "params": load_run(run).model.non_embedding_parameters(), "share": distinct, "seed": seed}
    return pd.DataFrame(
        about | {name: frame[name] for name in ("step", "tokens", "loss")} | {"accuracy": frame["value"]}
    )


def memorised(work: Path, size: str, distinct: int, seed: int) -> dict:
    """Of the run's own lines, so many are written exactly; the loss of their ends, and of those of lines in no text."""
    name = f"{size}-{domain(distinct, seed)}"
    kept = work / f"{name}.memorised"
    if kept.is_file():
        return json.loads(kept.read_text())
    own, never = lines(seed)
    texts = [*own[:distinct][:ASKED], *(line.text() for line in never)]
    frame = probe_run(work / "runs" / name, PROBE, texts=texts, log=lambda text: None)
    trained, controls = frame[frame["seen"] > 0], frame[frame["seen"] == 0]
    result = {
        "asked": len(trained),
        "extracted": int(trained["extracted"].sum()),
        "seen": round(float(trained["seen"].mean()), 1),
        "of_controls": int(controls["extracted"].sum()),
        "instances": round(float(trained["extracted"].mean()) * distinct, 1),
        "loss": round(float(trained["loss"].mean()), 4),
        "loss_of_controls": round(float(controls["loss"].mean()), 4),
    }
    kept.write_text(json.dumps(result))
    return result


def predictors(last: pd.DataFrame) -> dict | None:
    """How well iid loss, memorised and distinct instances tell the last checkpoints that have the skill; null: no such pair."""
    if last["accuracy"].ge(ABLE).nunique() < 2:
        return None
    return {name: told_by(last, name) for name in ("loss", "instances", "share")}


def row(rows: pd.DataFrame, measured: dict) -> dict:
    """A run of the result."""
    end = rows.iloc[-1]
    return {
        "size": end["size"],
        "distinct": int(end["share"]),
        "seed": int(end["seed"]),
        "loss": round(float(end["loss"]), 4),
        "accuracy": float(end["accuracy"]),
        "by_checkpoint": [[int(t), round(l, 4), a] for t, l, a in rows[["tokens", "loss", "accuracy"]].to_numpy()],
        "memorised": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.1m", "0.4m"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[31])
    parser.add_argument(
        "--also", nargs="*", default=[], help="SIZE:SEED:N,N,...: some numbers of instances of another size"
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for data and runs")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.seeds)
    cells = [(size, distinct, seed) for seed in arguments.seeds for size in arguments.sizes for distinct in DISTINCT]
    for size, seed, counts in (word.split(":") for word in arguments.also):
        cells += [(size, int(distinct), int(seed)) for distinct in counts.split(",")]
    os.chdir(work)  # the runs name their data from here
    tables, runs = [], []
    for size, distinct, seed in cells:
        rows = checkpoints(train(work, size, distinct, seed), size, distinct, seed)
        measured = memorised(work, size, distinct, seed)
        tables.append(rows.assign(instances=measured["instances"]))
        runs.append(row(rows, measured))
        if distinct == DISTINCT[-1]:
            runs[-1]["composition"] = composition(work / "runs" / f"{size}-{domain(distinct, seed)}", lines(seed)[1])
        print(f"{size}, {distinct} instances, seed {seed}: accuracy {runs[-1]['accuracy']:.2f}, {measured}", flush=True)
    ranks.stop()
    rows = pd.concat(tables)
    last = rows.groupby(["size", "share", "seed"]).tail(1)
    shares, change = critical(last)
    words = f"--sizes {' '.join(arguments.sizes)} --seeds {' '.join(map(str, arguments.seeds))}"
    words += f" --also {' '.join(arguments.also)}" if arguments.also else ""
    result = {
        "able": ABLE,
        "skill_share": round(WEIGHT / (WEIGHT + OTHERS), 4),
        "critical_instances": shares,
        "trend": change,
        "tokens": TOKENS,
        "told_by": predictors(last),
        "runs": runs,
    }
    write_result(RESULT, f"python benchmarks/studies/critical_instances.py {words} --work DIR", result)


if __name__ == "__main__":
    main()
