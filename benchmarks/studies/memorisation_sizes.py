"""Do larger models memorise a larger share of what they see? Sequences planted 1 to 32 times, five sizes, three seeds.

    python benchmarks/studies/memorisation_sizes.py --work DIR

A text of some 45,000 tokens, and among it pieces of speeches that stand in it 1, 2, 4, ... times a pass, are trained on for six
passes. Each seed has two of the four quarters into which the pieces of each number are divided, so every piece is in the data of
one or two of the three seeds, and the others are its controls. All sizes of a seed have the same data and the same learning
rate. The probe is that of `emergence-train memorise --texts`, after 1, 2, 4 and 6 passes.

Resumable. Writes benchmarks/results/memorisation_sizes.csv, a row a piece, run and checkpoint, and what memorisation_results.py
makes of it.
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

import memorisation_results  # noqa: E402
import pandas as pd  # noqa: E402
import yaml  # noqa: E402
from commands import command  # noqa: E402

from emergence_train.data import sources, tokenizer  # noqa: E402
from emergence_train.data_config import Source  # noqa: E402
from emergence_train.evaluation.memorisation import Probe, probe_run, read_texts  # noqa: E402
from emergence_train.parallel import ranks  # noqa: E402

SIZES = ("0.05m", "0.1m", "0.2m", "0.4m", "1m")
LARGEST = ["layers=2", "width=192", "heads=6", "kv_heads=6", "ffn=576", "tied=true", "max_sequence=1024"]  # no preset
SEEDS = (1, 2, 3)
TIMES = (1, 2, 4, 8, 16, 32)
PIECES = 32  # of each number of times, half of them in a seed's data
PREFIX, CONTINUATION = 24, 12
TEXT = {"manuals": 15_000, "handbook": 15_000, "code": 15_000}  # tokens of the text among which the pieces stand
PASSES, CHECKED = 6, (1, 2, 4, 6)
SEQUENCE, BATCH = 128, 8
IN_PAIRS = ((0, 1), (1, 2), (2, 3), (3, 0))  # quarters that seed number 0 to 3 has


def pieces(tokens_of) -> list[str]:
    """Distinct pieces of speeches of some 40 tokens, all longer than the probe; ValueError where there are too few."""
    least, drawn = PREFIX + CONTINUATION + 4, []
    for document in sources.documents(Source(domain="speeches", sample="speeches")):
        words = document.split()
        for begin in range(0, len(words) - 60, 60):
            piece = ""
            for word in words[begin : begin + 60]:
                piece = f"{piece} {word}".strip()
                if len(tokens_of(piece)) >= least:
                    drawn.append(piece)
                    break
    distinct, wanted = sorted(set(drawn)), PIECES * len(TIMES)
    if len(distinct) < wanted:
        raise ValueError(
            f"{len(distinct)} pieces of {least} tokens, not {wanted}; a smaller vocabulary makes words longer"
        )
    return random.Random("pieces").sample(distinct, wanted)


def prepare(work: Path) -> dict:
    """Texts, one tokenizer for all, and a configuration for each seed: written once; returns tokens a pass by seed."""
    done = work / "pieces.jsonl"
    plan = work / "plan.json"
    if plan.is_file():
        return json.loads(plan.read_text())
    texts = {name: list(sources.documents(Source(domain=name, sample=name))) for name in (*TEXT, "speeches")}
    trained = tokenizer.train(iter([d for documents in texts.values() for d in documents]), 512)
    trained.save(str(work / "tokenizer.json"))

    def tokens_of(text: str) -> list[int]:
        return trained.encode(text).ids

    background = []
    for name, most in TEXT.items():
        taken = 0
        for document in texts[name]:
            if taken >= most:
                break
            part = document[:4000]
            background.append(part)
            taken += len(tokens_of(part)) + 1
    chosen = pieces(tokens_of)
    rows = [
        {"text": text, "times": TIMES[k % len(TIMES)], "quarter": k // len(TIMES) % 4} for k, text in enumerate(chosen)
    ]
    done.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in background))
    a_pass = {}
    for number, seed in enumerate(SEEDS):
        documents = [row["text"] for row in rows if row["quarter"] in IN_PAIRS[number] for _ in range(row["times"])]
        random.Random(seed).shuffle(documents)
        (work / f"planted-{seed}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        lengths = [sum(len(tokens_of(text)) + 1 for text in part) for part in (background, documents)]
        a_pass[str(seed)] = sum(lengths)
        (work / f"seed-{seed}.yaml").write_text(yaml.safe_dump(configuration(seed, *lengths)))
    plan.write_text(json.dumps(a_pass))
    return a_pass


def configuration(seed: int, text: int, planted: int) -> dict:
    """Weights in proportion to the lengths, so that a pass over one is a pass over the other."""
    step = SEQUENCE * BATCH
    a_pass = round((text + planted) / step)
    return {
        "name": f"seed-{seed}",
        "seed": seed,
        "data": {
            "path": f"data/seed-{seed}",
            "sequence": SEQUENCE,
            "tokenizer": {"file": "tokenizer.json"},
            "sources": [
                {"domain": "text", "files": ["text.jsonl"], "weight": text},
                {
                    "domain": "planted",
                    "files": [f"planted-{seed}.jsonl"],
                    "weight": planted,
                    "in_iid": False,
                    "own_sequences": 0,
                },
            ],
            "validation": {"sequences": 16, "domain_sequences": 0, "ood_sequences": 0, "fraction": 0.03},
            "workers": 1,
        },
        "model": {"preset": "shallow-0.1m"},
        "training": {
            "tokens": PASSES * a_pass * step,
            "batch": BATCH,
            "micro_batch": BATCH,
            "precision": "fp32",
            "zero_stage": 0,
            "threads": 1,
            "schedule": {
                "kind": "wsd",
                "lr": 4.0e-3,
                "warmup_tokens": 10 * step,
                "decay_tokens": 60 * step,
                "final_ratio": 0.1,
            },
        },
        "checkpoints": {"every_tokens": a_pass * step, "save_state": "every"},
    }


def train(work: Path, size: str, seed: int) -> Path:
    """A finished run of this size and seed."""
    name = f"{size}-{seed}"
    if not (work / f"{name}.trained").is_file():
        shape = [f"model.{word}" for word in (LARGEST if size == SIZES[-1] else [f"preset=shallow-{size}"])]
        seconds = command(work, "train", f"seed-{seed}.yaml", f"name={name}", *shape)
        (work / f"{name}.trained").write_text(json.dumps({"cpu_seconds": seconds}))
        print(f"{name}: trained in {seconds} CPU seconds", flush=True)
    return work / "runs" / name


def probe(work: Path, size: str, seed: int) -> pd.DataFrame:
    """A row a piece and checkpoint of a run, as the committed table has them."""
    kept = work / f"{size}-{seed}.csv"
    if kept.is_file():
        return pd.read_csv(kept)
    texts = read_texts(work / "pieces.jsonl")
    times = [json.loads(line)["times"] for line in (work / "pieces.jsonl").read_text().splitlines()]
    run, tables = work / "runs" / f"{size}-{seed}", []
    steps = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    if len(steps) != PASSES:
        raise ValueError(f"{run}: has {len(steps)} checkpoints, not {PASSES}, one a pass")
    for passes in CHECKED:
        frame = probe_run(run, Probe(PREFIX, CONTINUATION), steps[passes - 1], texts=texts)
        columns = {"size": size, "params": frame["params"], "seed": seed, "step": frame["step"], "passes": passes}
        columns |= {"item": range(len(texts)), "times": times, "seen": frame["seen"].round(1)}
        tables.append(
            pd.DataFrame(columns | {"extracted": frame["extracted"].astype(int), "loss": frame["loss"].round(4)})
        )
    pd.concat(tables).to_csv(kept, index=False)
    return pd.concat(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for data and runs")
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print("tokens of a pass by seed:", prepare(work))
    runs = [(size, seed) for seed in SEEDS for size in SIZES]
    for size, seed in runs:
        command(work, "prepare", f"seed-{seed}.yaml")
        train(work, size, seed)
    os.chdir(work)  # the runs name their data from here
    try:
        table = pd.concat([probe(work, size, seed) for size, seed in runs])
    finally:
        ranks.stop()
    seconds = [json.loads((work / f"{size}-{seed}.trained").read_text())["cpu_seconds"] for size, seed in runs]
    table.to_csv(memorisation_results.TABLE, index=False)
    about = {"prefix": PREFIX, "continuation": CONTINUATION, "cpu_seconds_of_last_starts": round(sum(seconds))}
    memorisation_results.write(about)


if __name__ == "__main__":
    main()
