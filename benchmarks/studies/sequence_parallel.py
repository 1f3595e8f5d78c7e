"""Do ranks that share sequences train as one process does: losses, gradient norms and the loss sum of every position?

    python benchmarks/studies/sequence_parallel.py [--out benchmarks/results/cpu/sequence_parallel.json]

A small model in float32: documents masked, positions weighted, softcap, sinks and ALiBi, eight query heads and two key heads.
Differences are relative, the largest over 12 steps (over all positions, splits and tables), against one process. Of layouts
without shared sequences too: what another order of sums does by itself.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent)]

from commands import write_result  # noqa: E402

from emergence_train.recorder import tables  # noqa: E402

# processes, ranks a sequence, ZeRO stage
LAYOUTS = ((8, 2, 3), (8, 4, 3), (8, 1, 3), (4, 2, 0), (4, 4, 1), (2, 2, 1), (2, 1, 1), (2, 2, 2))
KEYS = ["step", "split", "position"]
DATA = """
  sequence: 32
  tokenizer: {vocab_size: 300}
  sources:
    - {domain: manuals, sample: manuals, limit_documents: 20, weight: 2}
    - {domain: speeches, sample: speeches, limit_documents: 20}
  ood: [{domain: books, sample: books, limit_documents: 3}]
  validation: {sequences: 12, domain_sequences: 4, ood_sequences: 5, fraction: 0.2}
"""
REST = """
seed: 3
model:
  {layers: 2, width: 64, heads: 8, kv_heads: 2, ffn: 48, max_sequence: 32,
   attention: {softcap: 20, sinks: true, bias: alibi}}
training:
  tokens: 3072
  batch: 8
  precision: fp32
  threads: 1
  document_mask: true
  z_loss: 0.001
  position_weights: {head: 2, body: 1, tail: 0}
  schedule: {kind: cosine, lr: 0.01, warmup_tokens: 512}
checkpoints: {every_tokens: 1024}
logging: {wandb: disabled}
"""


def start(*arguments: str, processes: int = 1) -> None:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    paths = {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *many, "-m", "emergence_train", *arguments],
        check=True,
        env=os.environ | paths,
        stdout=subprocess.DEVNULL,
    )


def losses(run: Path) -> dict[str, np.ndarray]:
    rows = [row for row in tables.read_metrics(run) if row["kind"] == "train"]
    table = tables.read(tables.POSITIONS, run).sort_values(KEYS)
    return {
        "loss": np.array([row["loss"] for row in rows]),
        "gradient norm": np.array([row["grad_norm"] for row in rows]),
        "sum of a position": table["loss_sum"].to_numpy(),
        "sum of squares of a position": table["loss_sq_sum"].to_numpy(),
        "count of a position": table["count"].to_numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "sequence_parallel.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(f"name: run\nout: {folder}/runs\ndata:\n  path: {folder}/data{DATA}{REST}")
        start("prepare", str(file))

        def trained(name: str, *over: str, processes: int = 1) -> dict[str, np.ndarray]:
            start("train", str(file), *over, f"name={name}", processes=processes)
            return losses(Path(folder, "runs", name))

        alone = trained("alone")
        for processes, ranks, stage in LAYOUTS:
            over = [f"training.sequence_parallel={ranks}", f"training.zero_stage={stage}"]
            run = trained(f"{processes}-{ranks}-{stage}", *over, processes=processes)
            worst = {name: float(np.abs(run[name] / alone[name] - 1).max()) for name in alone}
            rows.append({"processes": processes, "sequence_parallel": ranks, "zero_stage": stage, "largest": worst})
            print(processes, ranks, stage, {name: f"{value:.1e}" for name, value in worst.items()}, flush=True)
    result = {"date": datetime.date.today().isoformat(), "rows": rows}
    write_result(arguments.out, "python benchmarks/studies/sequence_parallel.py", result)


if __name__ == "__main__":
    main()
