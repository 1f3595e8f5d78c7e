"""Run directories of any length, written without the project's writers: lines as RunLog writes them, and tables."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH, SEQUENCE = 8, 64
TOKENS = BATCH * SEQUENCE


def loss_at(step: int) -> float:
    return 2 + 4 * step**-0.3


def write(
    run: Path, steps: int, *, every: int, total: int | None = None, name: str = "r", extra: dict | None = None
) -> Path:
    """`steps` steps of `total`, a checkpoint every so many; `extra`: {step: rows that follow its training row}."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "positions").mkdir(exist_ok=True)
    total_tokens = (total or steps) * TOKENS
    header = {"kind": "run", "run": name, "params": 1000, "sequence": SEQUENCE, "batch": BATCH, "vocabulary": "v"}
    header |= {"flops_per_token": 6e9, "total_tokens": total_tokens}
    with open(run / "metrics.jsonl", "w") as file:
        file.write(json.dumps(header) + "\n")
        for step in range(1, steps + 1):
            file.write(
                f'{{"kind": "train", "step": {step}, "tokens": {step * TOKENS}, "loss": {2 + 4 * step**-0.3:.6f}, '
                f'"grad_norm": 0.5, "lr": 0.001, "tokens_per_second": 5000.0}}\n'
            )
            for row in (extra or {}).get(step, ()):
                file.write(json.dumps({"step": step, "tokens": step * TOKENS} | row) + "\n")
            if step % every == 0:
                checkpoint(file, run, step)
    return run


def checkpoint(file, run: Path, step: int) -> None:
    key = {"step": step, "tokens": step * TOKENS}
    rows = [
        {"kind": "validation", **key, "seconds": 2.0, "loss": {"train": loss_at(step), "iid": loss_at(step) + 0.1}},
        {"kind": "forecast", **key, "loss": 2.5 + 1 / step, "sd": 0.1, "low95": 2.4, "high95": 2.7},
    ]
    file.writelines(json.dumps(row) + "\n" for row in rows)
    position = np.arange(1, SEQUENCE + 1)
    table = {
        "run": ["r"] * 2 * SEQUENCE,
        "params": np.full(2 * SEQUENCE, 1000),
        "step": np.full(2 * SEQUENCE, step),
        "tokens": np.full(2 * SEQUENCE, step * TOKENS),
        "split": ["train"] * SEQUENCE + ["iid"] * SEQUENCE,
        "position": np.tile(position, 2).astype(np.int32),
        "count": np.full(2 * SEQUENCE, 4),
        "loss_sum": np.concatenate([4 * (1 + 1 / position), 4 * (2 + 1 / position)]),
        "loss_sq_sum": np.full(2 * SEQUENCE, 100.0),
        "correct": np.full(2 * SEQUENCE, 1),
    }
    pq.write_table(pa.table(table), run / "positions" / f"step-{step:010d}.parquet")


def session(run: Path, **fields) -> None:
    (run / "environment.json").write_text(json.dumps({"sessions": [fields]}))
