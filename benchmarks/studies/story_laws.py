"""The position law of the story's runs, on many more held-out sequences than a run evaluates: `make story`.

    python benchmarks/studies/story_laws.py --work . --runs runs/story

A run's own 256 sequences leave a0 and a1 of most checkpoints unknown one by one. Here every fourth state of the stable runs and
the last of the decays are evaluated on all held-out documents. Losses by position of each run are kept in RUNS/laws/ (what is
there is not evaluated again); the laws go to benchmarks/results/story/laws.csv. Runs that are not finished are left out.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import held_out  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from rich.progress import track  # noqa: E402
from story import DIGITS, PLACE, about, finished  # noqa: E402

from emergence_train.analysis.position_matrix import position_matrices  # noqa: E402
from emergence_train.analysis.temporal.position_law import fit_matrix  # noqa: E402
from emergence_train.checkpoint import format as checkpoints  # noqa: E402
from emergence_train.config import load_run  # noqa: E402
from emergence_train.evaluation.saved_model import load_model  # noqa: E402
from emergence_train.ladder.file import Row  # noqa: E402
from emergence_train.recorder.layout import step_of  # noqa: E402

CONFIG = ROOT / "configs" / "story.yaml"
COUNTS = {"iid": 4096, "ood": 256}  # sequences; fewer where the held-out documents have no more
FIRST = 128  # the step: before it the loss hardly depends on the position
EVERY = 4  # states of a stable run, counted from the last
KEPT = (
    *["a0", "a0_se", "a0_low", "a0_high", "a1", "a1_se", "a1_low", "a1_high", "a2", "a2_se", "r2", "bin_max", "status"],
)


def wanted(row: Row, run: Path) -> list[Path]:
    """The states that are evaluated: the last, and of a stable run every fourth before it."""
    states = [state for state in checkpoints.complete(run / "checkpoints") if step_of(state) >= FIRST]
    return sorted({*states[-1::-EVERY], states[-1]} if row.parent is None else {states[-1]})


def positions(row: Row, run: Path, windows: dict[str, np.ndarray]) -> pd.DataFrame:
    """A positions table of the run's wanted states."""
    config = load_run(run)
    step_tokens = config.training.batch * config.data.sequence
    parts = []
    for state in wanted(row, run):
        model = load_model(config.model, state)
        params = sum(parameter.numel() for parameter in model.parameters())
        keys = {"run": run.name, "params": params, "step": step_of(state), "tokens": step_of(state) * step_tokens}
        for split, ids in windows.items():
            sums = held_out.position_sums(held_out.token_losses(model, ids))
            parts.append(pd.DataFrame(keys | {"split": split} | sums))
    return pd.concat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="directory of the ladder's runs")
    parser.add_argument("--work", type=Path, default=Path(), help="where data/story is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in finished(arguments.runs)[0] if not about(row)["variant"]]
    windows = held_out.windows(arguments.work.resolve(), CONFIG, "story", COUNTS)
    choice = "-".join(map(str, (FIRST, EVERY, *COUNTS.values())))  # of states and text
    kept = arguments.runs / "laws" / choice
    kept.mkdir(parents=True, exist_ok=True)
    laws = []
    for row in track(rows, "laws"):
        file = kept / f"{row.run}.parquet"
        if not file.is_file():
            part = file.with_suffix(".part")
            positions(row, arguments.runs / row.run, windows).to_parquet(part)
            part.rename(file)
        for matrix in position_matrices(pd.read_parquet(file)):
            laws.append(fit_matrix(matrix)[["run", "params", "step", "tokens", "split", *KEPT]].assign(**about(row)))
    PLACE.mkdir(parents=True, exist_ok=True)
    pd.concat(laws).round(DIGITS).to_csv(PLACE / "laws.csv", index=False)


if __name__ == "__main__":
    main()
