"""Train a sweep and measure it: `emergence-train grok`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from emergence_train import files
from emergence_train.errors import InputError, RunError
from emergence_train.grokking import shapes, tasks
from emergence_train.grokking.runner import BUSY, Runner
from emergence_train.grokking.stacked import MEASURES
from emergence_train.grokking.store import Store
from emergence_train.grokking.sweep import Run, SweepPlan, read, runs_of
from emergence_train.recorder.environment import environment


@dataclass(frozen=True)
class Trained:
    """A sweep whose runs have all ended: its curves, a row a measurement."""

    name: str
    out: Path
    curves: pd.DataFrame
    budget: int  # updates


def train(path: str | Path, out: str | Path | None, log: Callable[[str], None], jobs: int | None = None) -> Trained:
    """Train what is left of a sweep's runs.

    Args:
        path: the sweep's YAML file. out: its directory; None: runs/NAME. jobs: processes at a time; None: one on each CPU.

    Raises:
        InputError: the file or the task is wrong, the directory is in use. Stopped: a signal came, everything is saved.
    """
    sweep = read(path)
    table = tasks.load(sweep.task, Path(path).parent)
    if sweep.device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{path}: device cuda: no GPU is visible here; set device to cpu")
    runs = runs_of(sweep, len(table.answers), path)
    plan = SweepPlan(Path(path), sweep, runs, tasks.identity(sweep.task, table))
    out = Path(out) if out is not None else Path("runs") / sweep.name
    with files.lock(out, busy=BUSY, other="--out") as note:
        if note:
            log(note)
        store = Store(out, plan)
        files.write_bytes(out / "sweep.yaml", yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False).encode())
        files.write_json(out / "environment.json", environment(torch.device(sweep.device)) | {"cpus": os.cpu_count()})
        Runner(store, table, log, jobs).run()
        return Trained(
            sweep.name, out, pd.concat([_rows(store, run, table) for run in plan.runs]), sweep.training.updates
        )


def _rows(store: Store, run: Run, table: tasks.QuestionTable) -> pd.DataFrame:
    """The curve of a run that has ended, as the measures take it."""
    curve = store.read_curve(run)
    if curve is None:
        raise RunError(f"{store.curve_path(run)}: cannot be read back; run the same command again")
    params = shapes.count(run.section.shapes(table.questions.shape[1], table.symbols, table.classes))
    frame = pd.DataFrame(curve, columns=["update", *MEASURES]).astype({"update": int})
    keys = {"run": run.name, "model": run.model, "params": params, "fraction": run.fraction}
    chance = float(np.bincount(table.answers).max() / len(table.answers))
    luck = {"heldout_questions": len(table.answers) - run.trained_on, "chance": chance}
    return frame.assign(**keys, weight_decay=run.weight_decay, seed=run.seed, **luck)
