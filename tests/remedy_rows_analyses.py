"""Rows of test_remedies: analyses of runs and tables, logs of other frameworks, launchers."""

import json
import shutil
from pathlib import Path

import yaml

from remedy_rows import At, Row

# ---------------------------------------------------------------------------------------------------------- analyses


def logged_run(at: At, **schedule: object) -> Path:
    """A run directory as the analysis reads it: 3,000 of 6,000 steps."""
    plan = {"kind": "cosine", "lr": 1e-3, "warmup_tokens": 1000, **schedule}
    at.write("logged/config.yaml", yaml.safe_dump({"training": {"tokens": 6_000_000, "schedule": plan}}))
    lines: list[dict] = [{"kind": "run", "run": "logged", "params": 7}]
    for k in range(1, 31):
        lines.append({"kind": "train", "step": 100 * k, "tokens": 100_000 * k, "lr": 1e-3, "loss": 2 + k**-0.3})
    return at.write("logged/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)).parent


def weighted(at: At, name: str, seed: int, head: float) -> Path:
    """A copy of the run as one of a study of position weights."""
    run = at.folder / name
    if not run.exists():
        shutil.copytree(at.trained(), run)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["seed"], tree["training"]["position_weights"]["head"] = seed, head
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    return run


def weights(at: At, *runs: Path) -> list[str]:
    return ["analyze", "weights", *map(str, runs)]


def lonely(at: At) -> list[str]:
    """Two runs without a step in common."""
    first, second = weighted(at, "a", 1, 1.0), weighted(at, "b", 1, 0.5)
    for run, keep in ((first, 2), (second, 4)):
        for file in (run / "positions").glob("*.parquet"):
            if not file.stem.endswith(str(keep)):
                file.unlink()
    return weights(at, first, second)


def again(at: At) -> list[str]:
    for name in "ab":
        shutil.rmtree(at.folder / name, ignore_errors=True)
    return weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 1, 0.5))


def curves(at: At, **columns: list[str]) -> Path:
    """Two curves in one table, with columns of their own."""
    import pandas as pd

    frames = [
        pd.read_csv(at.curve()).assign(run=name, **{c: v[k] for c, v in columns.items()}) for k, name in enumerate("ab")
    ]
    pd.concat(frames).to_csv(at.folder / "both.csv", index=False)
    return at.folder / "both.csv"


def twice(at: At) -> Path:
    lines = at.curve().read_text().splitlines()
    return at.write("twice.csv", "\n".join([*lines, lines[-1]]) + "\n")


PLAIN = "step,loss\n" + "".join(f"{100 * k},{2 + k**-0.3}\n" for k in range(1, 31))
RISING = [1e-6 * k for k in range(1, 31)]

ANALYSES = [
    Row(
        "run {}: {}, which the page counts by; give --tokens-per-step",
        lambda at: ["report", str(at.write("plain.csv", PLAIN)), "--out", str(at.folder / "page")],
        lambda at: [
            *["report", str(at.folder / "plain.csv"), "--out", str(at.folder / "page")],
            *["--tokens-per-step", "1000"],
        ],
    ),
    Row(
        "no such file or directory; name a run directory, a Parquet file, a CSV file or a log",
        lambda at: at.temporal("nowhere.csv"),
        lambda at: at.temporal(at.curve()),
    ),
    Row(
        "no such file or directory; name a run directory, a Parquet file or a CSV file",
        lambda at: at.emergence("nowhere.csv"),
        lambda at: at.emergence(at.evaluations()),
    ),
    Row(
        "holds no positions or curves table; is this a run directory?",
        lambda at: at.temporal(at.write("empty/x", "").parent),
        lambda at: at.temporal(logged_run(at)),
    ),
    Row(
        "holds no {} table (*.parquet or *.csv); is this a run directory?",
        lambda at: at.emergence(at.write("empty/x", "").parent),
        lambda at: at.emergence(at.evaluations()),
    ),
    Row(
        "a run without results of tasks; name tasks in its configuration, or run `emergence-train evaluate {} --tasks NAME`",
        lambda at: at.emergence(logged_run(at)),
        lambda at: at.emergence(at.evaluations()),
    ),
    Row(
        "no row after step 0, so nothing to fit; name one that has trained",
        lambda at: at.temporal(at.write("zero.csv", "step,loss\n0,9\n")),
        lambda at: at.temporal(at.curve()),
    ),
    Row(
        "missing; a table of {} has {}",
        lambda at: at.emergence(at.write("e.csv", "run,params,step,loss\nr,1,1,2\n")),
        lambda at: at.emergence(at.evaluations()),
    ),
    Row(
        "beside shares (chance {}); correct it, or write values and chance as shares",
        lambda at: at.emergence(at.evaluations(value=[0.3] * 11 + [1.7])),
        lambda at: at.emergence(at.evaluations(value=[0.3] * 11 + [0.017])),
    ),
    Row(
        "{}: every loss ({} to {}) is at or above unigram_loss {}; give both in nats per token of one text, or {}",
        lambda at: at.emergence(at.evaluations(unigram_loss=2.0)),
        lambda at: at.emergence(at.evaluations(unigram_loss=7.0)),
    ),
    Row(
        "more nats than guessing leaves; {}, or give unigram_loss if they are nats",
        lambda at: at.emergence(at.evaluations(loss=[100 - 5 * k for k in range(12)])),
        lambda at: at.emergence(at.evaluations(loss=[100 - 5 * k for k in range(12)], unigram_loss=200)),
    ),
    Row(
        "is given twice (split {}); name each table once",
        lambda at: at.temporal(at.curve(), at.curve()),
        lambda at: at.temporal(at.curve()),
    ),
    Row(
        "must lie between 0 and 1, for example 0.1",
        lambda at: at.temporal(at.curve(), "--fit-fraction", 2),
        lambda at: at.temporal(at.curve(), "--fit-fraction", 0.5),
    ),
    Row(
        "in these tables; leave --split out to see all",
        lambda at: at.temporal(at.curve(), "--split", "x"),
        lambda at: at.temporal(at.curve()),
    ),
    Row(
        "a forecast needs at least {}; analyze temporal with --fit-fraction {} or more",
        lambda at: at.temporal(at.curve(), "--fit-fraction", 0.02),
        lambda at: at.temporal(at.curve(), "--fit-fraction", 0.5),
    ),
    Row(
        "checkpoint(s), a forecast needs at least {}; log more often",
        lambda at: at.temporal(at.curve(rows=1)),
        lambda at: at.temporal(at.curve(rows=30)),
    ),
    Row(
        "nothing is observed beyond the warm-up of the learning rate; observe longer",
        lambda at: at.temporal(at.curve(lr=RISING)),
        lambda at: at.temporal(at.curve(rows=60, lr=[*RISING, *[3e-5] * 30])),
    ),
    Row(
        "needs {}; observe longer or log more often",
        lambda at: at.temporal(at.curve(rows=3)),
        lambda at: at.temporal(at.curve(rows=30)),
    ),
    Row(
        "{} ends at {}, before its last row at {} {}; give a later end",
        lambda at: at.temporal(at.curve(), "--to-tokens", 1000),
        lambda at: at.temporal(at.curve(), "--to-tokens", "9e6"),
    ),
    Row(
        "which --to-tokens counts; give --tokens-per-step",
        lambda at: at.temporal(at.write("p.csv", PLAIN), "--to-tokens", "9e6"),
        lambda at: at.temporal(at.write("p.csv", PLAIN), "--to-tokens", "9e6", "--tokens-per-step", 1000),
    ),
    Row(
        "which --schedule counts; give --tokens-per-step",
        lambda at: at.temporal(at.write("p.csv", PLAIN), "--schedule", "constant,lr=1e-3"),
        lambda at: at.temporal(at.write("p.csv", PLAIN), "--schedule", "constant,lr=1e-3", "--tokens-per-step", 1000),
    ),
    Row(
        "do not fit into the run's {} tokens; lower them",
        lambda at: at.temporal(at.curve(), "--schedule", "cosine,lr=1e-3,warmup=9e9"),
        lambda at: at.temporal(at.curve(), "--schedule", "cosine,lr=1e-3,warmup=9e4"),
    ),
    Row(
        "--schedule {}: {} is none of {}; write it as {}",
        lambda at: at.temporal(at.curve(), "--schedule", "cosine,rate=1"),
        lambda at: at.temporal(at.curve(), "--schedule", "cosine,lr=3e-4,warmup=2e5,final=0.1"),
    ),
    Row(
        "--schedule {}: {}: {}; write it as {}",
        lambda at: at.temporal(at.curve(), "--schedule", "cosine"),
        lambda at: at.temporal(at.curve(), "--schedule", "cosine,lr=3e-4,warmup=2e5,final=0.1"),
    ),
    Row(
        "--schedule {}: {} {}; write it as wsd,lr=3e-4,decay=2e9,final=0.1",
        lambda at: at.temporal(at.curve(), "--schedule", "wsd,lr=1e-3"),
        lambda at: at.temporal(at.curve(), "--schedule", "wsd,lr=1e-3,decay=1e5,final=0.1"),
    ),
    Row(
        "leave one of --fit-fraction and --to-tokens out",
        lambda at: at.temporal(at.curve(), "--to-tokens", "9e6", "--fit-fraction", 0.5),
        lambda at: at.temporal(at.curve(), "--to-tokens", "9e6"),
    ),
    Row(
        "give the rate up to there with --schedule",
        lambda at: at.temporal(logged_run(at), "--to-tokens", "9e6"),
        lambda at: at.temporal(logged_run(at), "--to-tokens", "9e6", "--schedule", "constant,lr=1e-3"),
    ),
    Row(
        "leave --format, --run, --params, --tokens-per-step, --column and --loss-unit out, they are for logs",
        lambda at: at.temporal(logged_run(at), "--params", 7),
        lambda at: at.temporal(logged_run(at)),
    ),
    Row(
        "cannot be read as a configuration ({}); give --schedule",
        lambda at: (logged_run(at), at.write("logged/config.yaml", "a: ["), at.temporal(at.folder / "logged"))[-1],
        lambda at: at.temporal(at.folder / "logged", "--schedule", "constant,lr=1e-3", "--to-tokens", "6e6"),
    ),
    Row(
        "{}: {}: {} (got {}); correct it, or give --schedule",
        lambda at: at.temporal(logged_run(at, kind="stairs")),
        lambda at: at.temporal(at.folder / "logged", "--schedule", "constant,lr=1e-3", "--to-tokens", "6e6"),
    ),
    Row(
        "is listed twice: {}; keep one of them",
        lambda at: at.temporal(twice(at)),
        lambda at: at.temporal(at.curve()),
    ),
    Row(
        "has several values ({}); give different runs different names",
        lambda at: at.temporal(at.curve(params=[10] * 15 + [20] * 15)),
        lambda at: at.temporal(at.curve(params=[10] * 15 + [20] * 15, run=["r"] * 15 + ["s"] * 15)),
    ),
    Row(
        "are not comparable, analyse them separately",
        lambda at: at.temporal(curves(at, vocabulary=["v", "w"])),
        lambda at: at.temporal(at.curve(vocabulary="v")),
    ),
    Row(
        "is not a JSON object ({}); remove that line",
        lambda at: (logged_run(at), at.write("logged/metrics.jsonl", broken(at)), at.temporal(at.folder / "logged"))[
            -1
        ],
        lambda at: at.temporal(logged_run(at)),
    ),
    Row(
        "not a table that can be read; use .parquet or .csv",
        lambda at: at.emergence(at.write("e.bin", "neither a table nor a log")),
        lambda at: at.emergence(at.evaluations("e.csv")),
    ),
]

WEIGHTS = [  # of runs that were trained
    Row(
        "has no position weights and seed; is this a run directory?",
        lambda at: weights(at, at.write("empty/x", "").parent),
        again,
    ),
    Row(
        "a second run with weights {} and seed {} beside {}, from which it differs in {}; give one of them",
        lambda at: weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 1, 1.0)),
        lambda at: weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 1, 0.5)),
    ),
    Row(
        "all runs have uniform weights; add one with training.position_weights and the seed of one of them",
        lambda at: weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 2, 1.0)),
        lambda at: weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 2, 1.0), weighted(at, "c", 1, 0.5)),
    ),
    Row(
        "no run shares its seed with one of uniform weights ({}); train that with the seed of another",
        lambda at: weights(at, weighted(at, "a", 2, 1.0), weighted(at, "b", 1, 0.5)),
        lambda at: weights(at, weighted(at, "a", 1, 1.0), weighted(at, "b", 1, 0.5)),
    ),
    Row("no step in common; train them with the same tokens and checkpoints", lonely, again),
]


def broken(at: At) -> str:
    lines = (at.folder / "logged" / "metrics.jsonl").read_text().splitlines()
    return "\n".join([lines[0], "{broken", *lines[1:]]) + "\n"


# -------------------------------------------------------------------------------------------------------------- logs


def log(
    says: str, content: str, *right: str, name: str = "log.csv", wrong: tuple[str, ...] = (), then: str = ""
) -> Row:
    """A log that is refused with the options `wrong`; the options `right` fix it, or the content `then`."""
    return Row(
        says,
        lambda at: at.temporal(at.write(name, content), *wrong),
        lambda at: at.temporal(at.write(name, then or content), *right),
    )


TWO = "Step,a - loss,b - loss\n" + "".join(f"{k},{2 + k**-0.3},{3 + k**-0.3}\n" for k in range(1, 31))
TEXT = "".join(f"iter {k}: loss {2 + k**-0.3}, time 1.0ms, mfu 1%\n" for k in range(1, 31))
LINES = "".join(json.dumps({"step": k, "loss": 2 + k**-0.3}) + "\n" for k in range(1, 31))
HISTORY = [{"step": k, "loss": 2 + k**-0.3} for k in range(1, 31)]
PRINTED = [{"loss": row["loss"], "epoch": 0.1} for row in HISTORY]
NEGATIVE = "step,loss,true\n" + "".join(f"{k},{-2 - k**-0.3},{2 + k**-0.3}\n" for k in range(1, 31))
SAID = "a line that names neither\n" * 9
FIELDS = "".join(f"step: {k} loss: {2 + k**-0.3}\n" for k in range(1, 31))
HEADER = '{"kind": "run", "run": "r", "params": 1, "sequence": 8, "batch": 1}\n'
POSITIONS = "run,params,step,tokens,split,position,count,loss_sum,loss_sq_sum,correct\n" + "".join(
    f"r,7,{step},{step},iid,{p},10,{10 * loss},{11 * loss**2},1\n"
    for step in range(100, 3100, 100)
    for p in (1, 2, 3, 4)
    for loss in [2 + step**-0.3 + 1 / p]
)
MARKDOWN = "| step | loss |\n|---|---|\n" + PLAIN.partition("\n")[2].replace(",", " | ")
PERPLEXITIES = "step\tperplexity\n" + "".join(f"{k}\t{5.5 - k / 10:.3f}\n" for k in range(1, 31))
SAMPLES = PLAIN.replace("loss", "Train/Samples/train_loss")
MILLIONS = "step,tokens,loss\n" + "".join(f"{k},{0.524288 * k},{2 + k**-0.3}\n" for k in range(1, 31))
UNITS = MILLIONS.replace("tokens", "tokens (M)")
MILLIS = UNITS.replace("loss", "loss x1000")


def mlflow(at: At, stage: str, interval: int) -> Path:
    """A store of one run, of a loss every `interval` steps; 0 as log_metric writes it without a step."""
    at.write("mlruns/0/r/meta.yaml", f"lifecycle_stage: {stage}\nrun_name: r\n")
    rows = "".join(f"17 {2 + k**-0.3} {interval * k}\n" for k in range(1, 31))
    return at.write("mlruns/0/r/metrics/loss", rows).parents[3]


LOGS = [
    Row(
        "are for logs and tables of curves; leave them out",
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page"), "--to-tokens", "1e9"],
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page")],
    ),
    Row(
        "no log is of this run, they are of {}; leave it out",
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page"), "--params", "other=7"],
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page")],
    ),
    Row(
        "is for results of tasks, and none is named; leave it out",
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page"), "--loss", "a/b"],
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page")],
    ),
    Row(
        "unknown; choose auto, {}",
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page"), "--format", "w&b"],
        lambda at: ["report", str(at.trained()), "--out", str(at.folder / "page"), "--format", "auto"],
    ),
    Row(
        "name a run directory, or one that holds run directories",
        lambda at: ["runs", str(at.write("none/x", "").parent)],
        lambda at: ["runs", str(at.write("runs/r/metrics.jsonl", HEADER).parent.parent)],
    ),
    log("unknown; choose auto, table, {}", PLAIN, "--format", "csv", wrong=("--format", "w&b")),
    log("write it as OURS=NAME with one of {}", PLAIN, "--column", "loss=loss", wrong=("--column", "los=loss")),
    log("has no run {} (it has {}); give --run one of these", TWO, "--run", "a", wrong=("--run", "c")),
    log("has no column {} (it has {}); correct", PLAIN, "--column", "loss=loss", wrong=("--column", "loss=los")),
    log("no column is like {} (it has {}); correct", PLAIN, "--column", "loss=lo*", wrong=("--column", "loss=a*")),
    log(
        "as 'step: 10 loss: 6.1'; give another --format", TEXT, name="log.txt", wrong=("--format", "text"), then=FIELDS
    ),
    Row(
        "name its output directory, whose trainer_state.json has them",
        lambda at: at.temporal(at.write("out/log.txt", "".join(f"{row}\n" for row in PRINTED))),
        lambda at: at.temporal(at.write("out/trainer_state.json", json.dumps({"log_history": HISTORY})).parent),
    ),
    log("(it has {}); give {}", PLAIN.replace("step,loss", "a,b"), "--column", "step=a", "--column", "loss=b"),
    log(
        "name others with --column step=NAME --column loss=NAME",
        "step,loss,b\n,1,\n" + PLAIN.partition("\n")[2].replace(",", ",,"),
        "--column",
        "loss=b",
    ),
    log(
        "correct the file, or name other columns with --column",
        "step,loss,b\n" + PLAIN.partition("\n")[2].replace(",", ",nan,"),
        "--column",
        "loss=b",
    ),
    log("has no rows; name a file that has some", "step,loss\n", then=PLAIN),
    log("is negative, as a log-likelihood is; name a loss with", NEGATIVE, "--column", "loss=true", name="log.csv"),
    log("is empty; name a file that has rows", "", then=PLAIN),
    log("is an archive or a workbook; unpack it, or save it as CSV", "PK\x03\x04 and more", then=PLAIN),
    log("holds positions, which are read from .parquet or plain .csv", POSITIONS.replace(",", ";"), then=POSITIONS),
    log("is no count of the tokens of {} steps; write their unit into the name", MILLIONS, then=UNITS),
    log("no nats; write them in nats, and call the column loss", MILLIS, then=UNITS),
    log("no nats; write them in nats, and call the column loss", MILLIS, "--loss-unit", "nats"),
    log("is logged by {}, and {} counts them; give", SAMPLES, "--column", "step=step", "--tokens-per-step", "2048"),
    log(", or give --tokens-per-step N", MILLIONS, "--tokens-per-step", "524288"),
    Row(
        "its runs are deleted; restore one with mlflow runs restore",
        lambda at: at.temporal(mlflow(at, "deleted", 1)),
        lambda at: at.temporal(mlflow(at, "active", 1)),
    ),
    Row(
        "were logged without steps; log them with log_metric(..., step=STEP)",
        lambda at: at.temporal(mlflow(at, "active", 0)),
        lambda at: at.temporal(mlflow(at, "active", 1)),
    ),
    log("has no rows; name a log that has some", "\n", then=LINES, name="log.jsonl"),
    log("export the chart with Step or tokens as x axis", TWO.replace("Step", "Relative Time (Process)"), then=TWO),
    log("is not JSON ({}); remove that line", "{a\n" + LINES, then=LINES, name="log.jsonl"),
    log("is not a JSON object; remove that line", "[]\n" + LINES, then=LINES, name="log.jsonl"),
    log(
        "set logging_steps of the Trainer and run again",
        json.dumps({"log_history": [{"epoch": 1.0, "step": 1}]}),
        then=json.dumps({"log_history": HISTORY}),
        name="trainer_state.json",
    ),
    log(
        "is no trainer_state.json of transformers ({}); name one that is",
        "{}",
        "--format",
        "hf",
        wrong=("--format", "hf"),
        then=json.dumps({"log_history": HISTORY}),
        name="trainer_state.json",
    ),
    log("as 'iter 100: loss 6.1'; give --format or a table", PLAIN, wrong=("--format", "nanogpt")),
    log(
        "as 'iteration 100/ 5000 | ...'; give another --format",
        TEXT,
        "--format",
        "nanogpt",
        wrong=("--format", "megatron"),
        name="log.txt",
    ),
    log("not a log that is known; give --format {}", SAID, "--format", "csv", name="log.dat", then=PLAIN),
    log(
        "tables of other columns; keep one",
        MARKDOWN + "\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        name="x.md",
        then=MARKDOWN,
    ),
    log("write its decimals with points", PERPLEXITIES.replace(".", ","), then=PERPLEXITIES),
    log("give --format if it is a text log", "a\nb,c\n" + TEXT, "--format", "nanogpt", wrong=("--format", "csv")),
]


# --------------------------------------------------------------------------------------------------------- launchers


def launched(says: str, wrong: dict[str, str], right: dict[str, str]) -> Row:
    """Variables of a launcher that cannot be; `right` are those that remain, empty ones unset."""

    def begin(at: At) -> list[str]:
        for name, value in wrong.items():
            at.setenv(name, value)
        return at.prepare()

    def fix(at: At) -> list[str]:
        for name in wrong:
            at.delenv(name)
        for name, value in right.items():
            at.setenv(name, value)
        return at.prepare()

    return Row(says, begin, fix)


TASK = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
LAUNCHERS = [
    launched("is not below WORLD_SIZE {}; fix or unset them", {"RANK": "3", "WORLD_SIZE": "2"}, {}),
    launched(
        "fix or unset it, or start with srun, torchrun or deepspeed",
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
    ),
    launched(
        "or set RANK, WORLD_SIZE and LOCAL_RANK for each process",
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ),
    launched("start with srun, or unset both", TASK | {"SLURM_PROCID": "5"}, {}),
    launched("fix or unset it, or start with srun, torchrun or deepspeed", TASK | {"SLURM_STEP_NUM_TASKS": "x"}, {}),
    launched(
        "export MASTER_ADDR, the name of rank 0's node, before srun",
        TASK | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "a[1-"},
        TASK | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "a[1-", "MASTER_ADDR": "localhost"},
    ),
]
