"""What the tests share: a small configuration, and a way to run the command line in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def small_config(data: Path, out: Path) -> dict:
    """A model of 7k parameters on sequences of 32 tokens, two domains and one out-of-distribution."""
    return {
        "name": "run",
        "out": str(out),
        "seed": 3,
        "data": {
            "path": str(data),
            "sequence": 32,
            "tokenizer": {"vocab_size": 300},
            "sources": [
                {"domain": "manuals", "sample": "manuals", "limit_documents": 20, "weight": 2},
                {"domain": "speeches", "sample": "speeches", "limit_documents": 20},
            ],
            "ood": [{"domain": "books", "sample": "books", "limit_documents": 3}],
            "validation": {"sequences": 12, "domain_sequences": 4, "ood_sequences": 5, "fraction": 0.2},
            "workers": 1,
        },
        "model": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "ffn": 24, "max_sequence": 32},
        "training": {
            "tokens": 12 * 8 * 32,
            "batch": 8,
            "micro_batch": 2,
            "precision": "fp32",
            "zero_stage": 1,
            "threads": 1,
            "schedule": {"kind": "cosine", "lr": 0.01, "warmup_tokens": 512},
        },
        "checkpoints": {"every_tokens": 4 * 8 * 32},
        "logging": {"wandb": "disabled", "console_seconds": 0},
    }


def command(*arguments: str, processes: int = 0, timeout: float = 240, **environment: str):
    """Run the command line in a process of its own, or under torchrun in several; returns the finished process."""
    start = [sys.executable, "-m"]
    if processes:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        variables.pop(name, None)
    return subprocess.run(
        [*start, "emergence_train", *arguments], capture_output=True, text=True, timeout=timeout, env=variables
    )


def metrics(run: Path, kind: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]
