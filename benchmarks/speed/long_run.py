"""What the files of a long run cost to read afterwards: CPU seconds and memory of report, both analyses and a resuming rank 0.

    python benchmarks/speed/long_run.py [--steps 1000000] [--checkpoints 400] [--splits 11] [--positions 2048] [--out FILE]
    python benchmarks/speed/long_run.py --only write --keep DIR        # the run directory alone

The run directory is made by the project's own writers, with losses drawn from a position law whose level falls as training
goes on. Each command runs in a process of its own: CPU seconds are user and system time of all its threads, imports of report
and analyses included; `peak_gb` is its greatest resident set. `resume` is rank 0's writer restored at the last step,
`fresh` the same at step 0 of an empty directory; `kept_gb` is what is still resident when it is done.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

BATCH = 512  # sequences a step
TASKS = 4

# What each process runs; `folder` is the run directory. CPU time counts from after these imports.
IMPORTS = {
    "report": "from emergence_train.cli import main",
    "temporal": "from emergence_train.cli import main",
    "temporal, no figures": "from emergence_train.cli import main",
    "emergence": "from emergence_train.cli import main",
    "read": "from emergence_train.recorder import tables",
    "fresh": "from long_run import restore",
    "resume": "from long_run import restore",
}
COMMANDS = {
    "report": 'assert main(["report", folder, "--out", folder + "/out-report"]) == 0',
    "temporal": 'assert main(["analyze", "temporal", folder, "--out", folder + "/out-temporal"]) == 0',
    "temporal, no figures": 'assert main(["analyze", "temporal", folder]) == 0',
    "emergence": 'assert main(["analyze", "emergence", folder, "--out", folder + "/out-emergence"]) == 0',
    "read": "tables.read(tables.POSITIONS, folder)",
    "fresh": 'kept = restore(folder + "/fresh", 0)',
    "resume": "kept = restore(folder, None)",
}
PROGRAM = """
import gc, json, resource, sys
folder = sys.argv[1]
def resident(what):
    return int(open("/proc/self/status").read().split(what + ":")[1].split()[0])
def seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
{imports}
start = seconds()
{command}
took, peak = seconds() - start, resident("VmHWM")
gc.collect()
print("MEASURED " + json.dumps([took, peak, resident("VmRSS")]))
"""


def configuration(steps: int, sequence: int) -> dict:
    """config.yaml of the run: a small model, the plan of `steps` steps."""
    return {
        "name": "long",
        "data": {
            "path": "none",
            "sequence": sequence,
            "tokenizer": {"vocab_size": 8192},
            "sources": [{"domain": "manuals", "sample": "manuals"}],
        },
        "model": {
            "layers": 2,
            "width": 64,
            "heads": 4,
            "kv_heads": 4,
            "ffn": 128,
            "vocab_size": 8192,
            "max_sequence": sequence,
        },
        "training": {
            "tokens": steps * BATCH * sequence,
            "batch": BATCH,
            "micro_batch": 1,
            "precision": "fp32",
            "schedule": {"kind": "cosine", "lr": 3e-4, "warmup_tokens": steps // 100 * BATCH * sequence},
        },
        "checkpoints": {"every_tokens": steps // 100 * BATCH * sequence},
        "logging": {"wandb": "disabled"},
    }


def write_run(run: Path, steps: int, checkpoints: int, splits: int, positions: int, spike: int | None = None) -> None:
    """A finished run: metrics.jsonl, positions/ and evaluations/. At step `spike` the loss is a million for that step alone."""
    from emergence_train.config import Config
    from emergence_train.optim.schedule import learning_rate
    from emergence_train.recorder.run_log import RunLog

    rng = np.random.default_rng(0)
    config = configuration(steps, positions)
    schedule, total = Config.model_validate(config).training.schedule, steps * BATCH * positions
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    header = {"run": "long", "params": 100_000, "vocabulary": "v", "sequence": positions, "batch": BATCH}
    log = RunLog(run, header | {"total_tokens": total}, 0, [])
    names = ["train", "iid", "ood", *(f"domain{k}" for k in range(splits - 3))][:splits]
    due = set(np.unique(np.linspace(steps / checkpoints, steps, checkpoints).astype(int)).tolist())
    noise = rng.normal(0, 0.05, steps)
    for step in range(1, steps + 1):
        tokens, level = step * BATCH * positions, 2.0 + 12 * step**-0.28
        log.write(
            "train",
            step=step,
            tokens=tokens,
            loss=1e6 if step == spike else level + noise[step - 1],
            grad_norm=abs(noise[step - 1]) * 10 + 0.5,
            lr=learning_rate(schedule, tokens, total),
            tokens_per_second=round(4e6 + 1e7 * noise[step - 1], 1),
        )
        if step in due:
            log.positions(step, position_rows(rng, step, tokens, level, names, positions))
            means = {name: level + 0.1 * k for k, name in enumerate(names)}
            log.write("validation", step=step, tokens=tokens, seconds=12.5, loss=means)
            log.evaluations(step, task_rows(rng, step, tokens, level))
            log.write("evaluation", step=step, tokens=tokens, seconds=30.0, value={})
            log.flush()
    problem = log.close()
    assert problem is None, problem


def position_rows(rng, step: int, tokens: int, level: float, names: list[str], positions: int) -> pd.DataFrame:
    """A checkpoint's positions table: 512 tokens a position, losses about a position law with a standard deviation of 2."""
    i = np.arange(1, positions + 1)
    law = 1.5 / (1 + 0.05 * i) + level - np.mean(1.5 / (1 + 0.05 * i))
    mean = law + 0.1 * np.arange(len(names))[:, None] + rng.normal(0, 2 / np.sqrt(BATCH), (len(names), positions))
    return pd.DataFrame(
        {
            "run": "long",
            "params": 100_000,
            "step": step,
            "tokens": tokens,
            "split": np.repeat(names, positions),
            "position": np.tile(i, len(names)),
            "count": BATCH,
            "loss_sum": BATCH * mean.ravel(),
            "loss_sq_sum": BATCH * (mean.ravel() ** 2 + 4.0),
            "correct": BATCH // 3,
        }
    )


def task_rows(rng, step: int, tokens: int, level: float) -> pd.DataFrame:
    """A checkpoint's evaluations: accuracies on 1,000 items, of which each task rises below a loss of its own."""
    share = 0.25 + np.clip((3.5 - 0.2 * np.arange(TASKS) - level) * 0.4, 0, 0.6)
    value = rng.binomial(1000, share) / 1000
    return pd.DataFrame(
        {
            "run": "long",
            "params": 100_000,
            "step": step,
            "tokens": tokens,
            "loss": level,
            "task": [f"task{k}" for k in range(TASKS)],
            "metric": "acc",
            "value": value,
            "stderr": np.sqrt(value * (1 - value) / 1000),
            "items": 1000,
            "chance": 0.25,
            "higher_is_better": True,
        }
    )


def restore(folder: str, step: int | None):
    """Rank 0's writer, restored at `step` (None: the planned end) of a run directory; returned, so that what it keeps stays."""
    from types import SimpleNamespace

    import torch

    from emergence_train.config import Config
    from emergence_train.recorder.layout import step_of
    from emergence_train.training.checkpoint_plan import Plan
    from emergence_train.training.observers import RunSetup
    from emergence_train.training.recording import RunWriter

    run, lines = Path(folder), []
    tree = yaml.safe_load(((run if step is None else run.parent) / "config.yaml").read_text())
    config = Config.model_validate(tree | {"name": run.name, "out": str(run.parent)})
    plan = Plan(config.training, config.checkpoints, config.data.sequence)
    header = {"run": "long", "params": 100_000, "vocabulary": "v", "sequence": config.data.sequence, "batch": BATCH}
    setup = RunSetup(
        directory=run,
        schedule=config.training.schedule,
        abilities=None,
        logging=config.logging,
        resolved=tree,
        deepspeed={},
        plan=plan,
        header=header,
        evaluator=SimpleNamespace(notes=[]),
        console=None,
        log=lines.append,
    )
    writer = RunWriter(setup, SimpleNamespace(world=SimpleNamespace(size=1), device=torch.device("cpu")))
    measured = {step_of(path) for path in (run / "positions").glob("step-*.parquet")}
    recent = writer.restore(plan.total_steps if step is None else step, [], measured)
    assert not lines and (step == 0 or len(recent) == 64), (lines, len(recent))
    return writer


def measure(command: str, folder: Path) -> dict:
    """CPU seconds and memory of one command in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(imports=IMPORTS[command], command=COMMANDS[command]), str(folder)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("MEASURED ")), None)
    if line is None:
        return {"what": command, "failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    # Not ru_maxrss: a process inherits that of the one that started it.
    seconds, peak, kept = json.loads(line.removeprefix("MEASURED "))
    gigabytes = {name: round(kilobytes * 1024 / 1e9, 3) for name, kilobytes in (("peak_gb", peak), ("kept_gb", kept))}
    return {"what": command, "cpu_seconds": round(seconds, 2), **gigabytes}


def size_of(path: Path) -> float:
    """MB of a file or of all files in a directory."""
    return round(sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()) / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("steps", 1_000_000), ("checkpoints", 400), ("splits", 11), ("positions", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default=";".join(COMMANDS), help="which commands (a;b), or write")
    parser.add_argument("--keep", type=Path, help="where the run directory is made, or lies already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "long_run.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = (arguments.keep or Path(scratch)) / "long"
        if not run.exists():
            write_run(run, arguments.steps, arguments.checkpoints, arguments.splits, arguments.positions)
        if arguments.only == "write":
            return 0
        record = describe(arguments, run)
        for command in arguments.only.split(";"):
            record["rows"].append(measure(command, run))
            print(record["rows"][-1], flush=True)
        page = run / "out-report" / "report.html"
        record["report_mb"] = size_of(page) if page.is_file() else None
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)
    return 0


def describe(arguments: argparse.Namespace, run: Path) -> dict:
    """What was measured, with what, on what."""
    import torch

    from emergence_train.recorder.environment import environment

    return {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
        "environment": environment(torch.device("cpu")),
        "load_average": round(os.getloadavg()[0], 1),
        "run": {name: getattr(arguments, name) for name in ("steps", "checkpoints", "splits", "positions")},
        "metrics_mb": size_of(run / "metrics.jsonl"),
        "positions_mb": size_of(run / "positions"),
        "rows": [],
    }


if __name__ == "__main__":
    sys.exit(main())
